"""How far an image's features are from those of the training images.

A Mahalanobis distance (Lee et al., arXiv:1807.03888) with one Gaussian for all classes, of features
of unit length: the length says more of contrast than of content. The covariance is shrunk after
Ledoit and Wolf (A well-conditioned estimator for large-dimensional covariance matrices, 2004), so
that few images are enough. `NUM_DIRECTIONS` of its directions and one variance for all others are
kept, so that it takes little room in a file. Other forms were compared in benchmarks/LOG.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tltools.atomic import atomic_path
from tltools.card import DISTANCE_LEVELS, Beyond, Distances
from tltools.errors import ArtifactError, cause_of
from tltools.metrics import proportion
from tltools.regular import read_regular

NUM_DIRECTIONS = 32
"""Directions in which the features vary most, each with its own variance."""
MAX_IMAGES = 2048
"""Maximum number of training images that a distance is fitted to."""
MIN_IMAGES = 4
"""Fewer distinct images have no percentiles."""
FAR_RANGES = 2
"""Tukey takes 1.5 or 3; with VGG16, 3 miss ants among vehicles, see benchmarks/LOG.md."""
MIN_QUARTILES = 40
"""Fewer training images have quartiles too uncertain to say which image is unlike the others."""
FOLDS = 5
"""Percentiles are of distances that were fitted without the image: the others are too small."""
CHECKED_LEVELS = (90.0, 95.0, 99.0)
"""Percentiles of the training images for which the share of validation images beyond is kept."""
SMALLEST_LENGTH = 1e-12
"""Added to the length of features, which may all be 0."""
_SMALLEST_STD = 1e-3
"""Least deviation of features of unit length: what deviates less is rounding noise."""
_SMALLEST_VARIANCE = 1e-9
"""Fraction of the largest variance below which a direction is rounding noise."""
_MAX_BYTES = 2**26
"""Largest file: 32 directions of 500,000 features."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Distance:
    """The parameters of a distance between features and those of the training images.

    Features that are maps, flattened, are averaged over their locations first: F values become
    those of D channels, F a multiple of D. Then all are scaled to unit length.
    """

    mean: NDArray[np.float32]
    """Mean of the scaled features, (D,)."""
    directions: NDArray[np.float32]
    """Orthonormal columns, (D, K)."""
    precisions: NDArray[np.float32]
    """1 / (D * variance) of the scaled features in each direction, and last that in all other
    directions, (K + 1,)."""

    @property
    def num_channels(self) -> int:
        """D."""
        return len(self.mean)

    def __call__(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the distances, (N,), of features (N, F).

        They are the root of the mean squared deviation, in standard deviations: about 1 for images
        like the training images.
        """
        centered = _unit(pooled(features, self.num_channels)) - self.mean
        parts = centered @ self.directions
        rest = centered - parts @ self.directions.T
        own, others = self.precisions[:-1].astype(np.float64), self.precisions[-1]
        return np.sqrt(parts**2 @ own + (rest**2).sum(axis=1) * others)


def pooled(features: NDArray[np.floating], num_channels: int) -> NDArray[np.float64]:
    """Average flattened maps over their locations: (N, F) → (N, D)."""
    num, size = features.shape
    maps = np.asarray(features, dtype=np.float64).reshape(num, num_channels, size // num_channels)
    return maps.mean(axis=2)


def _unit(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale rows, (N, D), to unit length."""
    values = np.asarray(values, dtype=np.float64)
    return values / (np.linalg.norm(values, axis=1, keepdims=True) + SMALLEST_LENGTH)


def fit_distance(features: NDArray[np.floating]) -> Distance:
    """Fit a distance to the pooled features of training images, (N, D)."""
    scaled = _unit(features)
    mean = scaled.mean(axis=0)
    found = _Covariance.of(scaled - mean)
    size = scaled.shape[1]
    variances = np.maximum(found.shrunk(), _SMALLEST_STD**2 / size)
    return Distance(
        mean=mean.astype(np.float32),
        directions=np.ascontiguousarray(found.directions, dtype=np.float32),
        precisions=(1 / (variances * size)).astype(np.float32),
    )


class _Covariance(NamedTuple):
    """The largest variances of centered values, (N, D), and how much to shrink them."""

    variances: NDArray[np.float64]
    """Of the K directions, (K,)."""
    directions: NDArray[np.float64]
    """(D, K)."""
    others: float
    """Mean variance of the other directions."""
    average: float
    """Mean variance of all directions."""
    shrinkage: float
    """Ledoit and Wolf's weight of the mean variance, in [0, 1]."""

    @classmethod
    def of(cls, scaled: NDArray[np.float64]) -> "_Covariance":
        """Analyze centered values, (N, D)."""
        from scipy.linalg import eigh

        num, size = scaled.shape
        # The smaller one of the two products, whose largest eigenvalues are the same.
        gram = (scaled @ scaled.T if num < size else scaled.T @ scaled) / num
        last = len(gram) - 1
        values, vectors = eigh(gram, subset_by_index=[max(0, last - NUM_DIRECTIONS + 1), last])
        is_used = values > _SMALLEST_VARIANCE * max(float(values[-1]), 0.0)
        values, vectors = values[is_used], vectors[:, is_used]
        if num < size:
            vectors = scaled.T @ vectors / np.sqrt(values * num)
        total, squared = float(np.trace(gram)), float((gram**2).sum())
        noise = (float(((scaled**2).sum(axis=1) ** 2).mean()) - squared) / num
        spread = squared - total**2 / size
        return cls(
            variances=values,
            directions=vectors,
            others=max(total - float(values.sum()), 0.0) / max(size - len(values), 1),
            average=total / size,
            shrinkage=min(max(noise / spread, 0.0), 1.0) if spread > 0 else 1.0,
        )

    def shrunk(self) -> NDArray[np.float64]:
        """Return the shrunk variances, and last that of the other directions, (K + 1,)."""
        variances = np.append(self.variances, self.others)
        return (1 - self.shrinkage) * variances + self.shrinkage * self.average


class Measured(NamedTuple):
    """A distance, and how far the images are that it was measured on."""

    distance: Distance
    facts: Distances
    """Its percentiles."""
    training: NDArray[np.float64]
    """Distances of the training images, each fitted without the image, (N,)."""


def measure_distances(
    training: NDArray[np.floating], validation: NDArray[np.floating]
) -> Measured | None:
    """Fit a distance, and measure how far training and validation images are.

    Args:
        training: Pooled features of training images, (N, D); equal rows count once.
        validation: Pooled features of validation images, (M, D).

    Returns:
        The distance with its percentiles; None for fewer than `MIN_IMAGES` distinct images.
    """
    distinct, where = np.unique(training, axis=0, return_inverse=True)
    if len(distinct) < MIN_IMAGES:
        return None
    held_out = np.empty(len(distinct))
    order = np.random.default_rng(0).permutation(len(distinct))
    for fold in np.array_split(order, min(FOLDS, len(distinct))):
        others = np.delete(distinct, fold, axis=0)
        held_out[fold] = fit_distance(others)(distinct[fold])
    found = fit_distance(distinct)
    percentiles = np.percentile(held_out, DISTANCE_LEVELS)
    facts = Distances(percentiles=tuple(percentiles.tolist()), num_images=len(distinct), beyond=())
    away = found(validation)
    beyond = (
        Beyond(level=level, validation=proportion(int((away > facts.at(level)).sum()), len(away)))
        for level in CHECKED_LEVELS
        if len(away)
    )
    facts = Distances(
        percentiles=facts.percentiles, num_images=facts.num_images, beyond=tuple(beyond)
    )
    return Measured(found, facts, held_out[where.reshape(-1)])


def far_out(facts: Distances) -> float:
    """Return the distance beyond which an image is far from the training images.

    `FAR_RANGES` interquartile ranges above the upper quartile (Tukey, Exploratory Data Analysis,
    1977), of the distances' logarithms, since large distances are more spread; and at least twice
    the median, since the quartiles of images that are much alike are close. Infinite for fewer than
    `MIN_QUARTILES` images, or where a quarter of them are equal.
    """
    low, high = facts.at(25), facts.at(75)
    if facts.num_images < MIN_QUARTILES or low <= 0:
        return np.inf
    return max(high * (high / low) ** FAR_RANGES, 2 * facts.at(50))


def save_distance(path: Path, distance: Distance, facts: Distances) -> None:
    """Write a distance and its facts to a safetensors file.

    Raises:
        TltoolsError: If it cannot be written.
    """
    import msgspec
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file(vars(distance), temporary, {"facts": msgspec.json.encode(facts).decode()})


def load_distance(path: Path) -> tuple[Distance, Distances] | None:
    """Read what `save_distance` wrote; None if there is no such file.

    Raises:
        ArtifactError: If it cannot be read.
    """
    import msgspec
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    try:
        tensors = load(read_regular(path, max_bytes=_MAX_BYTES))
        with safe_open(path, framework="numpy") as file:
            facts = msgspec.json.decode(file.metadata()["facts"], type=Distances)
        return Distance(**tensors), facts
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {cause_of(error)}; delete it, and export the run again"
        ) from error
