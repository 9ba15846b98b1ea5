"""Turn probabilities into classes: the most probable one, or one by its threshold."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools.errors import ConfigError
from tltools.wording import did_you_mean, listed

UNCERTAIN = "uncertain"
"""The label of an image whose class is less probable than the minimum confidence."""

UNKNOWN = "unknown"
"""The label of an image that is unlike the training data; comes before `UNCERTAIN`."""


class ClassThreshold(msgspec.Struct, frozen=True):
    """A threshold on the probability of one class.

    At or above it, an image gets the class, even if another one is more probable; below it, the
    most probable of the other classes. Of two classes, that is the other one.

    Raises:
        ConfigError: If the threshold is not in [0, 1].
    """

    class_name: str
    value: float
    """In [0, 1]."""

    def __post_init__(self) -> None:
        """Reject a value that is no probability."""
        if not 0 <= self.value <= 1:  # NaN, too
            raise ConfigError(f"`threshold=` must be between 0 and 1, got {self.value}")

    def __str__(self) -> str:
        """Return the threshold as an option's value, with the class."""
        return f"{self.value!r} for {self.class_name}"

    def index(self, classes: Sequence[str]) -> int:
        """Return the index of the class.

        Raises:
            ConfigError: If the model has no such class.
        """
        if self.class_name not in classes:
            raise ConfigError(
                f"the model has no class {self.class_name!r};"
                f"{did_you_mean(self.class_name, classes)} `class_name=` takes one of "
                f"{listed(classes)}"
            )
        return classes.index(self.class_name)


class Decided(NamedTuple):
    """The classes that images get, and which of them are certain enough to be given."""

    preds: NDArray[np.int64]
    """Class indices, (N,)."""
    kept: NDArray[np.bool_]
    """Whether the class is at least as probable as the minimum confidence, (N,)."""
    known: NDArray[np.bool_]
    """Whether the image is like the training data, (N,); the label of others is `UNKNOWN`, whatever
    `kept` is."""


def decide(
    probs: NDArray[np.float64],
    classes: Sequence[str],
    *,
    threshold: ClassThreshold | None = None,
    min_confidence: float | None = None,
    distances: NDArray[np.floating] | None = None,
    max_distance: float | None = None,
) -> Decided:
    """Return the class of each image.

    Args:
        probs: Probabilities, (N, C).
        classes: Names of the C classes.
        threshold: Threshold of one class; None chooses the most probable class.
        min_confidence: Smallest probability of the class for the image to keep it; None keeps all.
        distances: How far the images are from the training images, (N,); needed for `max_distance`.
        max_distance: Largest distance of an image that is like the training data; None takes all
            for like it.

    Raises:
        ConfigError: If the threshold is of an unknown class.
    """
    if threshold is None:
        preds = probs.argmax(axis=1).astype(np.int64)
    else:
        index = threshold.index(classes)
        others = probs.copy()
        others[:, index] = -1.0
        preds = others.argmax(axis=1).astype(np.int64)
        preds[probs[:, index] >= threshold.value] = index
    kept = known = np.ones(len(preds), dtype=np.bool_)
    if min_confidence is not None:
        kept = np.take_along_axis(probs, preds[:, None], axis=1)[:, 0] >= min_confidence
    if max_distance is not None:
        assert distances is not None
        known = distances <= max_distance
    return Decided(preds, kept, known)
