"""Fit a temperature, so that a model's confidence matches its accuracy."""

import math
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tltools.card import Confidence
from tltools.metrics import reliability, softmax
from tltools.wording import in_percent, plural

BOUNDS = (0.05, 20.0)
"""Range of temperatures. A fit at a bound means that the images contain too few mistakes."""
MIN_IMAGES = 30
"""Fewer images are too few to estimate an error rate."""
FOLDS, REPEATS = 5, 10
_MAX_VALUES = 20_000_000
"""Logits that all repeats together may go through; many images need no repeats."""


def fit_temperature(logits: NDArray[np.floating], targets: NDArray[np.int64]) -> Confidence:
    """Fit a temperature by maximum likelihood, and keep it if it helps on held-out images.

    Temperature scaling after Guo et al., On Calibration of Modern Neural Networks (2017). The
    benefit is measured by cross-validation (`FOLDS` folds, at most `REPEATS` times): each image
    gets a temperature that was fitted without it. Labels cannot change, because all logits of an
    image are divided by the same number.

    Args:
        logits: Logits of images that the model was not trained on, (N, C).
        targets: Their class indices, (N,).

    Returns:
        The temperature fitted on all images, or 1 with the reason in `note`: if there are too few
        images, or the held-out expected calibration error or negative log-likelihood does not
        decrease.
    """
    num_images = len(targets)
    note = _too_few(logits, targets)
    if not num_images:
        return Confidence(note=note)
    if note:
        return _unchanged(logits, targets, note)
    held_out = _held_out(logits, targets)
    temperature = _fit(logits, targets)
    note = _objection(temperature, held_out)
    if note:
        return _unchanged(logits, targets, note)
    return Confidence(temperature=temperature, num_images=num_images, **held_out._asdict())


def _too_few(logits: NDArray[np.floating], targets: NDArray[np.int64]) -> str:
    """Return why a temperature cannot be fitted to so few images or mistakes; else nothing."""
    if len(targets) < MIN_IMAGES:
        return (
            f"calibration needs at least {MIN_IMAGES} validation images, but there "
            f"{plural(len(targets), 'is', 'are')} {len(targets)}"
        )
    right = logits.argmax(axis=1) == targets
    if right.any() and not right.all():
        return ""
    return f"{'all' if right.all() else 'none'} of the validation images get the right label"


class _HeldOut(NamedTuple):
    """What temperatures change on images that they were fitted without; see `Confidence`."""

    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float


def _objection(temperature: float, held_out: _HeldOut) -> str:
    """Return why a fitted temperature is not used; empty if it is."""
    if not BOUNDS[0] * 1.01 < temperature < BOUNDS[1] * 0.99:
        return f"the fitted temperature, {temperature:.2g}, is a bound of the plausible range"
    for name, written, before, after in (
        ("expected calibration error", in_percent, held_out.ece_before, held_out.ece_after),
        ("negative log-likelihood", "{:.4f}".format, held_out.nll_before, held_out.nll_after),
    ):
        if after >= before:
            old, new = written(before), written(after)
            change = f"raise the {name} of held-out images from {old} to {new}"
            if old == new:
                change = f"leave the {name} of held-out images at {old}"
            return f"a temperature of {temperature:.2f} would {change}"
    return ""


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


def _held_out(logits: NDArray[np.floating], targets: NDArray[np.int64]) -> _HeldOut:
    """Measure by cross-validation."""
    from sklearn.model_selection import KFold, StratifiedKFold

    # Stratified folds need a class with an image in each fold.
    kind = StratifiedKFold if np.bincount(targets).max() >= FOLDS else KFold
    repeats = min(REPEATS, max(1, _MAX_VALUES // logits.size))
    eces: list[float] = []
    nlls: list[float] = []
    for repeat in range(repeats):
        scaled = np.empty(logits.shape, dtype=np.float64)
        folds = kind(FOLDS, shuffle=True, random_state=repeat)
        with warnings.catch_warnings():
            # A class with fewer images than folds is missing from some folds, which is harmless.
            warnings.filterwarnings("ignore", message="The least populated class", module="sklearn")
            for fitted, held_out in folds.split(logits, targets):
                scaled[held_out] = logits[held_out] / _fit(logits[fitted], targets[fitted])
        eces.append(reliability(softmax(scaled), targets).ece)
        nlls.append(negative_log_likelihood(scaled, targets))
    return _HeldOut(
        ece_before=reliability(softmax(logits), targets).ece,
        ece_after=float(np.mean(eces)),
        nll_before=negative_log_likelihood(logits, targets),
        nll_after=float(np.mean(nlls)),
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
