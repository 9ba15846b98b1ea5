"""Fit a temperature, so that a model's confidence matches its accuracy."""

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from tltools.card import Confidence
from tltools.metrics import reliability, softmax

BOUNDS = (0.05, 20.0)
"""Range of temperatures. A fit at a bound means that the images contain too few mistakes."""
MIN_IMAGES = 30
"""Fewer images are too few to estimate an error rate."""
FOLDS, REPEATS = 5, 10


def fit_temperature(logits: NDArray[np.floating], targets: NDArray[np.int64]) -> Confidence:
    """Fit a temperature by maximum likelihood, and keep it if it helps on held-out images.

    Temperature scaling after Guo et al., On Calibration of Modern Neural Networks (2017). The
    benefit is measured by cross-validation (`FOLDS` folds, `REPEATS` times): each image gets a
    temperature that was fitted without it. Labels cannot change, because all logits of an image
    are divided by the same number.

    Args:
        logits: Logits of images that the model was not trained on, (N, C).
        targets: Their class indices, (N,).

    Returns:
        The temperature fitted on all images, or 1 with the reason in `note`: if there are too few
        images, or the held-out expected calibration error or negative log likelihood does not
        decrease.
    """
    num_images = len(targets)
    if num_images < MIN_IMAGES:
        few = f"{num_images} validation images are too few to fit it (at least {MIN_IMAGES})"
        return _unchanged(logits, targets, few) if num_images else Confidence(note=few)
    right = logits.argmax(axis=1) == targets
    if right.all() or not right.any():
        all_or_none = "all" if right.all() else "none"
        return _unchanged(
            logits, targets, f"{all_or_none} of the validation images get the right label"
        )
    ece_before, ece_after, nll_before, nll_after = _held_out(logits, targets)
    note = ""
    temperature = _fit(logits, targets)
    if not BOUNDS[0] * 1.01 < temperature < BOUNDS[1] * 0.99:
        note = f"the fit ends at {temperature:.2g}, the bound of the plausible range"
    elif ece_after >= ece_before:
        note = (
            f"{temperature:.2f} would not lower the held-out expected calibration error "
            f"({ece_before:.4f} before, {ece_after:.4f} after)"
        )
    elif nll_after >= nll_before:
        note = (
            f"{temperature:.2f} would not lower the held-out negative log likelihood "
            f"({nll_before:.4f} before, {nll_after:.4f} after)"
        )
    return Confidence(
        temperature=1.0 if note else temperature,
        num_images=num_images,
        ece_before=ece_before,
        ece_after=ece_before if note else ece_after,
        nll_before=nll_before,
        nll_after=nll_before if note else nll_after,
        note=note,
    )


def negative_log_likelihood(
    logits: NDArray[np.floating], targets: NDArray[np.int64], *, temperature: float = 1.0
) -> float:
    """Return the mean negative log of the true class's probability, in nats.

    Args:
        logits: (N, C).
        targets: Class indices, (N,).
        temperature: Divides the logits.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    log_probs = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return float(-log_probs[np.arange(len(targets)), targets].mean())


def _fit(logits: NDArray[np.floating], targets: NDArray[np.int64]) -> float:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: negative_log_likelihood(logits, targets, temperature=math.exp(log)),
        bounds=(math.log(BOUNDS[0]), math.log(BOUNDS[1])),
        method="bounded",
    )
    return math.exp(float(found.x))


def _held_out(
    logits: NDArray[np.floating], targets: NDArray[np.int64]
) -> tuple[float, float, float, float]:
    """Return the calibration error before and after, and the likelihoods, by cross-validation."""
    from sklearn.model_selection import StratifiedKFold

    eces: list[float] = []
    nlls: list[float] = []
    for repeat in range(REPEATS):
        scaled = np.empty(logits.shape, dtype=np.float64)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat)
        with warnings.catch_warnings():
            # A class with fewer images than folds is missing from some folds, which is harmless.
            warnings.filterwarnings("ignore", message="The least populated class", module="sklearn")
            for fitted, held_out in folds.split(logits, targets):
                scaled[held_out] = logits[held_out] / _fit(logits[fitted], targets[fitted])
        eces.append(reliability(softmax(scaled), targets).ece)
        nlls.append(negative_log_likelihood(scaled, targets))
    before = reliability(softmax(logits), targets).ece
    return (
        before,
        float(np.mean(eces)),
        negative_log_likelihood(logits, targets),
        float(np.mean(nlls)),
    )


def _unchanged(logits: NDArray[np.floating], targets: NDArray[np.int64], note: str) -> Confidence:
    ece = reliability(softmax(logits), targets).ece
    nll = negative_log_likelihood(logits, targets)
    return Confidence(
        num_images=len(targets),
        ece_before=ece,
        ece_after=ece,
        nll_before=nll,
        nll_after=nll,
        note=note,
    )
