import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from tltools.metrics import (
    ClassScore,
    McNemar,
    RocAuc,
    classification_report,
    confusion_matrix,
    mcnemar,
    roc_auc,
    score,
    softmax,
    swapped_classes,
)


def indices(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Wilson's interval by its definition: where |p - share| is z standard errors of p.

    Solved by bisection, so that it shares nothing with the closed formula.
    """
    z, share = 1.959963984540054, correct / total

    def beyond(p: float) -> bool:
        return abs(share - p) > z * math.sqrt(p * (1 - p) / total)

    def edge(inside: float, outside: float) -> float:
        if not beyond(outside):
            return outside
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if beyond(middle) else (middle, outside)
        return inside

    return edge(share, 0.0), edge(share, 1.0)


@pytest.mark.parametrize(
    ("correct", "total"), [(0, 1), (1, 1), (0, 10), (10, 10), (7, 10), (153, 165), (1, 10_000)]
)
def test_accuracy_has_a_wilson_interval_and_counts(correct, total):
    target = np.zeros(total, dtype=np.int64)
    preds = (np.arange(total) >= correct).astype(np.int64)
    result = score(preds, target)
    assert (result.correct, result.total) == (correct, total)
    assert Fraction(result.accuracy).limit_denominator(total) == Fraction(correct, total)
    np.testing.assert_allclose((result.low, result.high), wilson(correct, total), atol=1e-9)


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no accuracy without images"):
        score(indices(), indices())


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("num_images", [0, 1, 1000])
def test_confusion_matrix_agrees_with_counting(num_classes, num_images):
    rng = np.random.default_rng(0)
    preds, target = rng.integers(num_classes, size=(2, num_images))
    expected = [[0] * num_classes for _ in range(num_classes)]
    for pred, true in zip(preds.tolist(), target.tolist(), strict=True):
        expected[true][pred] += 1
    actual = confusion_matrix(preds, target, num_classes=num_classes)
    assert actual.tolist() == expected
    assert actual.dtype == np.int64


def test_the_report_equals_a_hand_count():
    #                a  a  a  b  b  c
    target = indices(0, 0, 0, 1, 1, 2)
    preds = indices(0, 0, 1, 1, 0, 0)
    assert classification_report(preds, target, classes=["a", "b", "c", "d"]) == (
        ClassScore(name="a", precision=2 / 4, recall=2 / 3, f1=4 / 7, support=3),
        ClassScore(name="b", precision=1 / 2, recall=1 / 2, f1=1 / 2, support=2),
        ClassScore(name="c", precision=None, recall=0.0, f1=0.0, support=1),
        ClassScore(name="d", precision=None, recall=None, f1=None, support=0),
    )


def test_a_class_without_images_has_no_f1_even_if_it_is_predicted():
    (_, row) = classification_report(np.array([0, 1]), np.array([0, 0]), classes=["a", "b"])
    assert row == ClassScore(name="b", precision=0.0, recall=None, f1=None, support=0)


def test_the_report_agrees_with_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    rng = np.random.default_rng(1)
    preds, target = rng.integers(4, size=(2, 300))
    expected = precision_recall_fscore_support(target, preds)
    report = classification_report(preds, target, classes=list("abcd"))
    actual = [[getattr(row, k) for row in report] for k in ("precision", "recall", "f1", "support")]
    np.testing.assert_allclose(actual, np.array(expected), rtol=1e-12)


def pairwise_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive outscores a negative, ties for a half: the definition."""
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[positive]
        for low in scores[~positive]
    ]
    return sum(wins) / len(wins)


def test_auc_of_two_classes_is_for_the_second_class():
    rng = np.random.default_rng(2)
    target = rng.integers(2, size=80)
    second = np.round(np.clip(target * 0.2 + rng.random(80) * 0.8, 0, 1), 1)  # rounded: with ties
    result = roc_auc(np.stack([1 - second, second], axis=1), target)
    assert result.value == pytest.approx(pairwise_auc(second, target == 1), abs=1e-12)
    assert result.note == ""


def test_auc_of_more_classes_is_the_one_versus_rest_mean():
    rng = np.random.default_rng(3)
    target = rng.integers(3, size=90)
    probs = softmax(rng.normal(size=(90, 3)) + np.eye(3)[target])
    expected = np.mean([pairwise_auc(probs[:, i], target == i) for i in range(3)])
    assert roc_auc(probs, target).value == pytest.approx(expected, abs=1e-12)
    wider = np.concatenate([probs, np.zeros((90, 1))], axis=1)
    absent = roc_auc(wider, target)
    assert absent.value == pytest.approx(expected, abs=1e-12)
    assert absent.note == "without the classes that have no image (1)"


def test_auc_of_one_class_is_none_with_a_reason():
    probs = np.full((3, 2), 0.5)
    assert roc_auc(probs, indices(1, 1, 1)) == RocAuc(None, "needs images of two classes")


def test_softmax_is_exact_stable_and_double():
    logits = np.array([[0.0, math.log(3)], [1e4, 1e4], [-1e4, 0.0], [3e38, -3e38]], np.float32)
    probs = softmax(logits)
    assert probs.dtype == np.float64
    expected = [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]
    np.testing.assert_allclose(probs, expected, atol=1e-7)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        pytest.param(indices(0, 1), indices(0), "must both be", id="lengths"),
        pytest.param(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64), "N,", id="shape"),
        pytest.param(indices(0, 2), indices(0, 1), r"\[0, 2\), got 0 to 2", id="too large"),
        pytest.param(indices(0, 1), indices(-1, 1), r"\[0, 2\), got -1 to 1", id="negative"),
        pytest.param(np.array([0.0, 1.0]), indices(0, 1), "must be integers", id="floats"),
    ],
)
def test_invalid_indices_are_refused(preds, target, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(preds, target, num_classes=2)


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        pytest.param(np.zeros((2, 2)), "must be", id="rows"),
        pytest.param(np.zeros(3), "must be", id="one axis"),
        pytest.param(np.zeros((3, 1)), "C >= 2", id="one class"),
        pytest.param(np.full((3, 2), np.nan), "finite", id="nan"),
    ],
)
def test_invalid_probabilities_are_refused(probs, message):
    with pytest.raises(ValueError, match=message):
        roc_auc(probs, indices(0, 1, 0))


def test_importing_loads_nothing_heavy():
    script = (
        "import sys, tltools.metrics, tltools.evaluate, tltools.data.dataset\n"
        "import tltools.plots\n"
        "heavy = {'sklearn', 'scipy', 'pandas', 'matplotlib', 'torch', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 6, 2 / 2**6),
        (5, 1, 2 * (1 + 6) / 2**6),
    ],
)
def test_mcnemar_is_the_exact_binomial_tail(only_first, only_second, p_value):
    agreed = [True] * 7 + [False] * 2
    first = np.array([True] * only_first + [False] * only_second + agreed)
    second = np.array([False] * only_first + [True] * only_second + agreed)
    assert mcnemar(first, second) == McNemar(only_first, only_second, pytest.approx(p_value))


def test_mcnemar_compares_the_same_images():
    with pytest.raises(ValueError, match=r"must both be \(N,\)"):
        mcnemar(np.array([True]), np.array([True, False]))


@pytest.mark.parametrize(
    ("confusion", "pairs"),
    [
        ([[2, 20], [18, 3]], [(0, 1)]),
        ([[20, 2], [3, 18]], []),
        ([[0, 4], [4, 0]], []),  # too few to tell
        ([[10, 12], [12, 10]], []),  # nothing but chance
        ([[0, 40], [0, 40]], []),  # a model that always answers the same
        ([[0, 0, 30], [1, 29, 0], [25, 3, 2]], [(0, 2)]),
        ([[0, 30, 0], [0, 0, 30], [30, 0, 0]], []),  # three in a circle
        ([[5]], []),
        ([[0, 0], [0, 0]], []),
    ],
)
def test_labels_that_are_swapped_are_found(confusion, pairs):
    assert swapped_classes(np.array(confusion)) == pairs
