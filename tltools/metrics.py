"""Score predicted against true classes, using scikit-learn and SciPy."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools.card import Proportion, Score

CONFIDENCE_LEVEL = 0.95
"""Level of the interval around an accuracy."""
SIGNIFICANCE = 0.05
"""Significance level: 1 in 20 pairs of equally good models would seem to differ."""
NUM_BINS = 15
"""Number of confidence bins in a reliability diagram, as in Guo et al., On Calibration of Modern
Neural Networks (2017)."""


class ClassScore(msgspec.Struct, frozen=True):
    """Precision, recall and F1 of one class."""

    name: str
    precision: float | None
    """Fraction of the predictions of this class that are correct; None without predictions."""
    recall: float | None
    """Fraction of the class's images that are labeled correctly; None without images."""
    f1: float | None
    """Harmonic mean of precision and recall; None without images."""
    support: int
    """Number of images of the class."""


class RocAuc(msgspec.Struct, frozen=True):
    """Area under the ROC curve, or why it is undefined."""

    value: float | None
    """In [0, 1]; 0.5 is chance."""
    note: str = ""
    """Why there is no value, or which classes it excludes."""


def score(preds: NDArray[np.int64], target: NDArray[np.int64]) -> Score:
    """Return top-1 accuracy with its 95% Wilson interval.

    Args:
        preds: Predicted class indices, (N,).
        target: True class indices, (N,).

    Raises:
        ValueError: If the shapes differ or N is 0.
    """
    _check_indices(preds, target)
    if not len(target):
        raise ValueError("no accuracy without images")
    correct, total = int((preds == target).sum()), len(target)
    low, high = interval(correct, total)
    return Score(accuracy=correct / total, low=low, high=high, correct=correct, total=total)


def interval(correct: int, total: int) -> tuple[float, float]:
    """Return the ends of the 95% Wilson interval of `correct` out of `total`, in [0, 1]."""
    from scipy.stats import binomtest

    found = binomtest(correct, total).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return float(found.low), float(found.high)


def proportion(count: int, total: int) -> Proportion:
    """Return a fraction with its 95% Wilson interval.

    Raises:
        ValueError: If the total is 0.
    """
    low, high = interval(count, total)
    return Proportion(value=count / total, low=low, high=high, count=count, total=total)


class McNemar(msgspec.Struct, frozen=True):
    """Whether two models differ significantly on the same images."""

    only_first: int
    """Number of images that only the first model labels correctly."""
    only_second: int
    """Number of images that only the second model labels correctly."""
    p_value: float
    """Two-sided p-value: the probability of a division at least this uneven if the models are
    equally good; 1 if they are correct on the same images."""


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Test whether one of two models is better, using the images on which only one is correct.

    McNemar's test, Note on the sampling error of the difference between correlated proportions or
    percentages (1947), in its exact form: if the models are equally good, each is the correct one
    on half of these images, which a binomial test checks.

    Args:
        first: Whether the first model is correct, by image, (N,).
        second: The same for the second model, on the same images in the same order, (N,).

    Raises:
        ValueError: If the shapes differ.
    """
    from scipy.stats import binomtest

    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"first {first.shape} and second {second.shape} must both be (N,)")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total = only_first + only_second
    p_value = float(binomtest(only_first, total, 0.5).pvalue) if total else 1.0
    return McNemar(only_first, only_second, p_value)


MAX_P_SWAPPED = 0.001
"""P value below which two classes that are mostly exchanged are no accident."""


def swapped_classes(confusion: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return pairs of classes whose labels may be swapped: most images of either get the other.

    By a binomial test: if the labels are right, an image of the two that gets either class would
    get the wrong one at most half of the time.

    Args:
        confusion: Counts, (C, C); row is the true class, column the predicted class.
    """
    from scipy.stats import binomtest

    rows = np.arange(len(confusion))
    others = np.where(np.eye(len(confusion), dtype=bool), -1, confusion).argmax(axis=1)
    is_exchanged = (confusion[rows, others] > confusion[rows, rows]) & (others[others] == rows)
    found: list[tuple[int, int]] = []
    for one in np.flatnonzero(is_exchanged & is_exchanged[others] & (rows < others)):
        other = others[one]
        wrong = int(confusion[one, other] + confusion[other, one])
        total = wrong + int(confusion[one, one] + confusion[other, other])
        if binomtest(wrong, total, 0.5, alternative="greater").pvalue < MAX_P_SWAPPED:
            found.append((int(one), int(other)))
    return found


def confusion_matrix(
    preds: NDArray[np.int64], target: NDArray[np.int64], *, num_classes: int
) -> NDArray[np.int64]:
    """Count predictions per true class.

    Args:
        preds: Predicted class indices, (N,).
        target: True class indices, (N,).
        num_classes: Number of classes C.

    Returns:
        Counts, (C, C); row is the true class, column the predicted class.

    Raises:
        ValueError: If the shapes differ, or an index lies outside [0, C).
    """
    from sklearn.metrics import confusion_matrix as count

    _check_indices(preds, target, num_classes=num_classes)
    if not len(target):  # scikit-learn refuses an empty set of known labels
        return np.zeros((num_classes, num_classes), dtype=np.int64)
    return count(target, preds, labels=np.arange(num_classes)).astype(np.int64, copy=False)


def most_mistaken(matrix: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Return the classes that take part in the most mistakes, as true or as predicted class.

    Args:
        matrix: Counts, (C, C), as `confusion_matrix` returns them.
        most: How many classes to return at most.

    Returns:
        Class indices, (n,), in ascending order.
    """
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    return np.sort(np.argsort(-mistakes, kind="stable")[:most])


def classification_report(
    preds: NDArray[np.int64], target: NDArray[np.int64], *, classes: Sequence[str]
) -> tuple[ClassScore, ...]:
    """Return precision, recall and F1 of each class, in the order of `classes`.

    Args:
        preds: Predicted class indices, (N,).
        target: True class indices, (N,).
        classes: Names of the C classes.

    Raises:
        ValueError: If the shapes differ, or an index lies outside [0, C).
    """
    _check_indices(preds, target, num_classes=len(classes))
    size = len(classes)
    right = np.bincount(target[preds == target], minlength=size)
    predicted, support = np.bincount(preds, minlength=size), np.bincount(target, minlength=size)
    return tuple(
        ClassScore(
            name=name,
            precision=_ratio(right[i], predicted[i]),
            recall=_ratio(right[i], support[i]),
            f1=_ratio(2 * right[i], predicted[i] + support[i]) if support[i] else None,
            support=int(support[i]),
        )
        for i, name in enumerate(classes)
    )


def roc_auc(probs: NDArray[np.float64], target: NDArray[np.int64]) -> RocAuc:
    """Return the area under the ROC curve.

    With two classes, it is computed from the second class's probability; with more, it is the mean
    over the classes, one against the rest.

    Args:
        probs: Probabilities, (N, C).
        target: True class indices, (N,).

    Raises:
        ValueError: If the shapes do not match, a probability is not finite or C is below 2.
    """
    from sklearn.metrics import roc_auc_score

    if probs.ndim != 2 or probs.shape[0] != len(target) or probs.shape[1] < 2:
        raise ValueError(f"probs {probs.shape} must be (N, C), with N {len(target)} and C >= 2")
    if not np.isfinite(probs).all():
        raise ValueError("probs must be finite")
    _check_indices(target, target, num_classes=probs.shape[1])
    present = np.unique(target)
    if len(present) < 2:
        return RocAuc(None, "needs images of two classes")
    if probs.shape[1] == 2:
        return RocAuc(float(roc_auc_score(target, probs[:, 1])))
    values = [roc_auc_score(target == index, probs[:, index]) for index in present]
    num_absent = probs.shape[1] - len(present)
    note = f"without the classes that have no image ({num_absent})" if num_absent else ""
    return RocAuc(float(np.mean(values)), note)


class Reliability(msgspec.Struct, frozen=True, eq=False):
    """Accuracy by confidence: the bins of a reliability diagram, and the calibration error."""

    edges: NDArray[np.float64]
    """Edges of the B bins, (B + 1,), from 0 to 1. A bin includes its upper edge."""
    counts: NDArray[np.int64]
    """Number of images by bin, (B,)."""
    confidence: NDArray[np.float64]
    """Mean confidence by bin, (B,); NaN for empty bins."""
    accuracy: NDArray[np.float64]
    """Fraction of correct labels by bin, (B,); NaN for empty bins."""
    ece: float
    """Expected calibration error: mean |confidence - accuracy| over all images, in [0, 1]."""


def reliability(
    probs: NDArray[np.float64], target: NDArray[np.int64], *, num_bins: int = NUM_BINS
) -> Reliability:
    """Compare confidence, the largest probability, with accuracy, in bins of equal width.

    After Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning (2015).

    Args:
        probs: Probabilities, (N, C).
        target: True class indices, (N,).
        num_bins: Number of bins B.

    Raises:
        ValueError: If the shapes do not match or N is 0.
    """
    if probs.ndim != 2 or len(probs) != len(target) or not len(target):
        raise ValueError(f"probs {probs.shape} must be (N, C), with N {len(target)} and not 0")
    confidences = probs.max(axis=1)
    right = probs.argmax(axis=1) == target
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, confidences, num_bins) / counts
        accuracy = np.bincount(bins, right, num_bins) / counts
    gaps = np.nan_to_num(np.abs(confidence - accuracy))
    ece = float((gaps * counts).sum() / counts.sum())
    return Reliability(edges, counts.astype(np.int64), confidence, accuracy, ece)


def softmax(logits: NDArray[np.floating], *, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return probabilities, (N, C), from logits, (N, C), in double precision.

    Logits are first divided by the temperature: above 1 it lowers confidence, below 1 it raises it.
    """
    shifted = np.asarray(logits, dtype=np.float64) / temperature
    shifted = shifted - shifted.max(axis=-1, keepdims=True)  # prevents overflow in exp
    weights = np.exp(shifted)
    return weights / weights.sum(axis=-1, keepdims=True)


def _ratio(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None


def _check_indices(
    preds: NDArray[np.int64], target: NDArray[np.int64], *, num_classes: int | None = None
) -> None:
    if preds.ndim != 1 or preds.shape != target.shape:
        raise ValueError(f"preds {preds.shape} and target {target.shape} must both be (N,)")
    indices = np.stack([preds, target])
    if indices.dtype.kind not in "iu":
        raise ValueError(f"class indices must be integers, got {indices.dtype}")
    if num_classes is not None and indices.size:
        low, high = indices.min(), indices.max()
        if low < 0 or high >= num_classes:
            raise ValueError(f"class indices must lie in [0, {num_classes}), got {low} to {high}")
