"""Precision and recall at each threshold, and the choice of a threshold that reaches a target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tltools.card import Threshold
from tltools.errors import ConfigError, DataError
from tltools.metrics import proportion
from tltools.wording import grouped, in_percent, in_percent_down, percent, plural

Figure = Literal["precision", "recall"]

MIN_IMAGES = 10
"""Fewest images that a precision or a recall is taken from: even if all ten count, the 95%
interval begins at 72%."""
FOLDS, REPEATS = 5, 10
_MAX_SCORES = 20_000_000
"""Scores that all repeats together may sort; many images need no repeats."""


@dataclass(frozen=True, eq=False)
class Curve:
    """How many images are at or above each threshold, and how many of these count.

    For the threshold of a class, an image counts if it is of the class; for a minimum confidence,
    if its label is right.
    """

    thresholds: NDArray[np.float64]
    """The T different scores of the images, largest first, (T,). Images with the same score are
    always on the same side."""
    kept: NDArray[np.int64]
    """Number of images at or above each threshold, (T,)."""
    hits: NDArray[np.int64]
    """Number of them that count, (T,)."""
    num_hits: int
    """Number of all images that count."""

    @property
    def num_images(self) -> int:
        """Number of all images."""
        return int(self.kept[-1]) if len(self.kept) else 0

    @property
    def precision(self) -> NDArray[np.float64]:
        """Fraction of the images at or above each threshold that count, (T,)."""
        return self.hits / self.kept

    @property
    def recall(self) -> NDArray[np.float64]:
        """Fraction of the images that count that are at or above each threshold, (T,).

        Raises:
            ValueError: If no image counts.
        """
        if not self.num_hits:
            raise ValueError("no recall without an image that counts")
        return self.hits / self.num_hits

    @property
    def coverage(self) -> NDArray[np.float64]:
        """Fraction of all images at or above each threshold, (T,)."""
        return self.kept / self.num_images

    @property
    def average_precision(self) -> float:
        """Mean precision, weighted by the increase of recall; scikit-learn's definition."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())

    def at(self, threshold: float) -> int | None:
        """Return the index of the smallest score at or above a threshold; None if all are below."""
        num_above = int((self.thresholds >= threshold).sum())
        return num_above - 1 if num_above else None


def curve(scores: NDArray[np.float64], counts: NDArray[np.bool_]) -> Curve:
    """Return the curve of scores.

    Args:
        scores: One score for each image, (N,).
        counts: Whether the image counts, (N,).

    Raises:
        ValueError: If the shapes differ, or a score is not finite.
    """
    if scores.ndim != 1 or scores.shape != counts.shape:
        raise ValueError(f"scores {scores.shape} and counts {counts.shape} must both be (N,)")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True)[: len(ordered)])
    hits = np.cumsum(counts[order], dtype=np.int64)[ends]
    return Curve(ordered[ends], (ends + 1).astype(np.int64), hits, int(counts.sum()))


def class_curve(probs: NDArray[np.float64], targets: NDArray[np.int64], index: int) -> Curve:
    """Return the curve of one class against the rest.

    Args:
        probs: Probabilities, (N, C).
        targets: True class indices, (N,).
        index: Index of the class.

    Raises:
        ValueError: If the shapes do not match, or a probability is not finite.
    """
    return curve(*_scores(probs, targets, index))


def confidence_curve(probs: NDArray[np.float64], targets: NDArray[np.int64]) -> Curve:
    """Return the curve of confidence: the accuracy of the images that keep their label.

    Selective classification, after Geifman and El-Yaniv, Selective Classification for Deep Neural
    Networks (2017); there, 1 - precision is the risk.

    Args:
        probs: Probabilities, (N, C).
        targets: True class indices, (N,).

    Raises:
        ValueError: If the shapes do not match, or a probability is not finite.
    """
    return curve(*_scores(probs, targets, None))


def _scores(
    probs: NDArray[np.float64], targets: NDArray[np.int64], index: int | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the score of each image, and whether it counts; an index of None is confidence."""
    if index is None:
        return probs.max(axis=1), probs.argmax(axis=1) == targets
    return probs[:, index], targets == index


def check_target(figure: Figure, at_least: float) -> None:
    """Check a target.

    Raises:
        ConfigError: If it is not above 0 and at most 1.
    """
    if not 0 < at_least <= 1:  # NaN, too
        raise ConfigError(
            f"`target_{figure}=` must be above 0 and at most 1, such as 0.95, got {at_least}"
        )


def check_has_class(figure: Figure, class_name: str | None) -> None:
    """Reject a recall that is of no class.

    Raises:
        ConfigError: If it is.
    """
    if class_name is None and figure == "recall":
        raise ConfigError("`target_recall=` applies to a single class; name it with `class_name=`")


def choose_threshold(
    probs: NDArray[np.float64],
    targets: NDArray[np.int64],
    *,
    classes: Sequence[str],
    class_name: str | None,
    figure: Figure,
    at_least: float,
    images: str,
) -> Threshold:
    """Choose the threshold that reaches a target at the lowest cost.

    Of the thresholds that reach a precision, it is the one with the highest recall; of those that
    reach a recall, the one with the highest precision. What it reaches is counted on the same
    images, which is optimistic, and also by cross-validation: each image at a threshold that was
    chosen without it (`FOLDS` folds, at most `REPEATS` times).

    Args:
        probs: Probabilities of images that the model was not trained on, (N, C).
        targets: Their class indices, (N,).
        classes: Names of the C classes.
        class_name: The class; None chooses a minimum confidence for the labels of all classes.
        figure: What the target is of.
        at_least: The target, in (0, 1].
        images: What they are, such as `validation images of labels.csv`.

    Raises:
        ConfigError: If the target is out of range, or is a recall without a class.
        DataError: If no threshold reaches the target, or there are too few images to say so.
        ValueError: If a probability is not finite, or the class is unknown.
    """
    check_target(figure, at_least)
    check_has_class(figure, class_name)
    index = None if class_name is None else list(classes).index(class_name)
    scores, counts = _scores(probs, targets, index)
    found = curve(scores, counts)
    if class_name is not None:
        _check_class(found, class_name, images)
    place = _place(found, figure, at_least, MIN_IMAGES)
    if place is None:
        raise DataError(_out_of_reach(found, figure, at_least, class_name, images))
    kept, hits = int(found.kept[place]), int(found.hits[place])
    held_out = _held_out(scores, counts, figure, at_least)
    return Threshold(
        value=_between(found, place),
        class_name=class_name,
        figure=figure,
        at_least=at_least,
        images=images,
        num_images=found.num_images,
        precision=proportion(hits, kept),
        recall=None if class_name is None else proportion(hits, found.num_hits),
        coverage=proportion(kept, found.num_images),
        held_out_precision=held_out[0],
        held_out_recall=None if class_name is None else held_out[1],
        held_out_coverage=held_out[2],
    )


def _check_class(found: Curve, class_name: str, images: str) -> None:
    """Refuse images that say nothing about the threshold of a class."""
    if found.num_hits < MIN_IMAGES:
        raise DataError(
            f"{found.num_hits:,} of the {found.num_images:,} {images} "
            f"{plural(found.num_hits, 'is', 'are')} of class {class_name}, too few to choose its "
            f"threshold (at least {MIN_IMAGES}); use more labeled images"
        )
    if found.num_hits == found.num_images:
        raise DataError(
            f"all {found.num_images:,} {images} are of class {class_name}, so no threshold can be "
            "chosen; add images of other classes"
        )


def _place(found: Curve, figure: Figure, at_least: float, min_images: int) -> int | None:
    """Return the index of the threshold that reaches a target at the lowest cost, if any."""
    if not found.num_hits:
        return None
    if figure == "precision":
        ranks, enough = found.precision, found.kept >= min_images
        costs = found.hits
    else:
        ranks, enough = found.recall, np.full(len(found.kept), found.num_hits >= min_images)
        costs = found.precision
    good = np.flatnonzero((ranks >= at_least) & enough)
    if not len(good):
        return None
    # The first of the best ones is the highest threshold: the fewest images for the same result.
    return int(good[np.argmax(costs[good])])


def _out_of_reach(
    found: Curve, figure: Figure, at_least: float, class_name: str | None, images: str
) -> str:
    """Say why no threshold reaches a precision; each recall can be reached."""
    of = "the labels" if class_name is None else f"class {class_name}"
    start = (
        f"no threshold reaches a {figure} of {percent(at_least)} for {of} on the "
        f"{found.num_images:,} {images}"
    )
    enough = np.flatnonzero(found.kept >= MIN_IMAGES)
    if not len(enough):
        return (
            f"{grouped(found.num_images, 'image')} ({images}) are too few to choose a threshold, "
            f"which takes at least {MIN_IMAGES}; give more labeled images that the model was not "
            "trained on"
        )
    best = int(enough[np.argmax(found.precision[enough])])
    share = proportion(int(found.hits[best]), int(found.kept[best]))
    return (
        f"{start}: the best, of those that at least {MIN_IMAGES} images reach, has "
        f"{in_percent_down(share.value)} ({in_percent(share.low)} to {in_percent(share.high)}), "
        f"{share.count:,} of {grouped(share.total, 'image')}; choose a lower target, use more "
        "labeled images, or train a better model"
    )


def _between(found: Curve, place: int) -> float:
    """Return a short number between the score at `place` and the next lower one.

    It divides the images as the score itself does, but the small differences between one export or
    machine and another seldom move an image across it.
    """
    upper = float(found.thresholds[place])
    lower = float(found.thresholds[place + 1]) if place + 1 < len(found.thresholds) else 0.0
    middle = lower + (upper - lower) / 2
    for digits in range(1, 17):
        short = round(middle, digits)
        if lower < short <= upper and abs(short - middle) <= (upper - lower) / 4:
            return short
    return upper


def _held_out(
    scores: NDArray[np.float64], counts: NDArray[np.bool_], figure: Figure, at_least: float
) -> tuple[float | None, float | None, float]:
    """Return precision, recall and coverage at thresholds that were chosen without the image.

    Folds have the same share of images that count. A fold for which no threshold is found keeps no
    image.
    """
    repeats = min(REPEATS, max(1, _MAX_SCORES // len(scores)))
    fewest = math.ceil(MIN_IMAGES * (FOLDS - 1) / FOLDS)
    kept = hits = 0
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        fold_of = np.empty(len(scores), dtype=np.int64)
        for group in (np.flatnonzero(counts), np.flatnonzero(~counts)):
            fold_of[rng.permutation(group)] = np.arange(len(group)) % FOLDS
        for fold in range(FOLDS):
            held_out = fold_of == fold
            chosen = curve(scores[~held_out], counts[~held_out])
            place = _place(chosen, figure, at_least, fewest)
            if place is not None:
                above = held_out & (scores >= _between(chosen, place))
                kept += int(above.sum())
                hits += int((above & counts).sum())
    total = int(counts.sum())
    return (
        hits / kept if kept else None,
        hits / (repeats * total) if total else None,
        kept / (repeats * len(scores)),
    )
