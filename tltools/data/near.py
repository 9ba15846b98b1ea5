"""Find near-duplicates: resized, recompressed, mirrored or slightly cropped copies of an image.

Perceptual hashes (pHash, dHash, PDQ) miss copies that are cropped by a tenth of their sides, unless
their threshold also takes different images for copies: `benchmarks/near_duplicates.py` compares
them. So the differences between neighboring pixels of a small gray version are compared, in a few
windows. They are quick to compare only for few pairs; those are chosen by still coarser features.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tltools.parallel import num_cores, ordered_map
from tltools.progress import SILENT, Bar, Progress

SIDE = 16
"""Height and width of a thumbnail."""
THRESHOLD = 0.185
"""Largest distance of near-duplicates, 1 - correlation; the calibration is in benchmarks/LOG.md."""
MIN_DETAIL = 4.0
"""Smallest root mean square of the differences between neighboring pixels, in levels of 255: flat
images would be like each other, whatever they show."""

_CLIP = np.float32(2)
"""Largest difference between neighboring pixels, in multiples of their root mean square."""
_COARSE_SIDE, _NUM_COARSE = 8, 14
_NEIGHBORS = 16
"""Candidates of each image, and as many of its mirror image."""
_CROPS = (0.95, 0.9)
"""Sides of the windows, as fractions of the image's."""
_CELL = 20_000
"""Up to this number of images, all are compared with each other; larger sets are divided."""
_CELL_OF_LARGE = 2000
_NEAREST_CELLS = 3
_BLOCK = 2**22
"""Similarities in memory at a time."""
_MAX_ROWS = 256

Thumbnails = NDArray[np.uint8]
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Groups of near-duplicates among N images."""

    leaders: Indices
    """The image that stands for each image's group, (N,); the image itself if it is alone. Every
    image is a near-duplicate of its leader, or of an image that is one: groups are no chains."""
    pairs: Indices
    """Near-duplicates, (M, 2), the most similar first; the first index of a pair is the smaller."""
    distances: Floats
    """Distance of each pair, (M,), at most `THRESHOLD`."""


def thumbnail(image: NDArray[np.uint8]) -> Thumbnails:
    """Return a small gray version of an image, (SIDE, SIDE).

    Args:
        image: RGB, (H, W, 3); both sides are multiples of `SIDE`.
    """
    height, width, _ = image.shape
    blocks = image.reshape(SIDE, height // SIDE, SIDE, width // SIDE, 3).mean(axis=(1, 3))
    return (blocks @ [0.299, 0.587, 0.114]).round().astype(np.uint8)


def find_near_duplicates(thumbnails: Thumbnails, *, progress: Progress = SILENT) -> NearDuplicates:
    """Find near-duplicates and group them.

    Memory is bounded by the thumbnails and the pairs found. Up to 20,000 images, each is compared
    coarsely with all others; more are divided into overlapping cells of similar images.

    Args:
        thumbnails: Gray images, (N, SIDE, SIDE); of equals, the earlier becomes the leader.
        progress: Shows the search in large sets.
    """
    rows = np.flatnonzero(_has_detail(thumbnails))
    search = _Search(thumbnails[rows])
    found: dict[tuple[int, int], float] = {}
    shown = progress if len(rows) > _CELL else SILENT
    with shown.bar("Comparing images", len(rows)) as bar:
        for queries, others, distances in search.near(bar):
            for one, other, distance in zip(
                rows[queries].tolist(), rows[others].tolist(), distances.tolist(), strict=True
            ):
                pair = min(one, other), max(one, other)
                found[pair] = min(distance, found.get(pair, distance))
    ordered = sorted(found, key=lambda pair: (found[pair], pair))
    pairs = np.array(ordered, dtype=np.int64).reshape(-1, 2)
    return NearDuplicates(
        leaders=_grouped(thumbnails, pairs),
        pairs=pairs,
        distances=np.array([found[pair] for pair in ordered], dtype=np.float32),
    )


def _has_detail(thumbnails: Thumbnails) -> NDArray[np.bool_]:
    return np.concatenate(
        [
            np.sqrt((_differences(some[:, None]) ** 2).mean(axis=(1, 2))) >= MIN_DETAIL
            for some in _blocks(thumbnails)
        ]
        or [np.empty(0, dtype=np.bool_)]
    )


def _blocks(thumbnails: Thumbnails) -> Iterator[Floats]:
    for start in range(0, len(thumbnails), _CELL_OF_LARGE):
        yield thumbnails[start : start + _CELL_OF_LARGE].astype(np.float32)


class _Search:
    """Compares each image, and its mirror image, with those that are most like it."""

    def __init__(self, thumbnails: Thumbnails) -> None:
        self._images = thumbnails
        self._features = _coarse(thumbnails)

    def near(self, bar: Bar) -> Iterator[tuple[Indices, Indices, Floats]]:
        """Yield images, near-duplicates of them and their distances, (n,) each."""
        workers = num_cores()
        for members, queries, num_done in self._cells():
            if len(members) > 1:
                rows = max(1, min(_MAX_ROWS, _BLOCK // len(members)))
                parts = (
                    (some[start : start + rows], members, mirrored)
                    for mirrored, some in enumerate(queries)
                    for start in range(0, len(some), rows)
                )
                yield from ordered_map(self._near, parts, workers=workers, ahead=2 * workers)
            bar.advance(num_done)

    def _near(self, part: tuple[Indices, Indices, int]) -> tuple[Indices, Indices, Floats]:
        """Compare images with the members of a cell that are most like them."""
        queries, members, mirrored = part
        alike = self._features[mirrored][queries] @ self._features[0][members].T  # (Q, M)
        alike[queries[:, None] == members] = -2  # less than any
        count = min(_NEIGHBORS, len(members) - 1)
        chosen = members[np.argpartition(alike, -count, axis=1)[:, -count:]]  # (Q, K)
        others = self._images[chosen].astype(np.float32)
        if mirrored:
            others = others[..., ::-1]
        distances = _distances(self._images[queries].astype(np.float32), others)
        near, which = np.nonzero((distances <= THRESHOLD) & (chosen != queries[:, None]))
        return queries[near], chosen[near, which], distances[near, which]

    def _cells(self) -> Iterator[tuple[Indices, tuple[Indices, Indices], int]]:
        """Yield cells: members, images to compare with them as they are and mirrored, and progress.

        An image belongs to several cells, so that near-duplicates share one.
        """
        plain, mirrored = self._features
        if len(plain) <= _CELL:
            everything = np.arange(len(plain))
            yield everything, (everything, everything), len(plain)
            return
        centers = plain[::_CELL_OF_LARGE]
        homes, mirrored_homes = _nearest(plain, centers), _nearest(mirrored, centers)
        for cell in range(len(centers)):
            members = np.flatnonzero((homes == cell).any(axis=1))
            flipped = np.flatnonzero((mirrored_homes == cell).any(axis=1))
            yield members, (members, flipped), int((homes[:, 0] == cell).sum())


def _nearest(features: Floats, centers: Floats) -> NDArray[np.int32]:
    """Return the most similar centers of each image, the most similar first."""
    rows = max(1, _BLOCK // len(centers))
    found: list[NDArray[np.int32]] = []
    for start in range(0, len(features), rows):
        alike = features[start : start + rows] @ centers.T
        best = np.argsort(-alike, axis=1)[:, :_NEAREST_CELLS]
        found.append(best.astype(np.int32))
    return np.concatenate(found)


def _coarse(thumbnails: Thumbnails) -> tuple[Floats, Floats]:
    """Return features of images and of their mirror images, (N, F): their lowest frequencies."""
    from scipy.fft import dctn

    y, x = np.divmod(np.arange(_COARSE_SIDE**2), _COARSE_SIDE)
    lowest = np.argsort(x + y, kind="stable")[1 : _NUM_COARSE + 1]
    factor = SIDE // _COARSE_SIDE
    found: list[Floats] = [np.empty((0, _NUM_COARSE), dtype=np.float32)]
    for images in _blocks(thumbnails):
        small = images.reshape(-1, _COARSE_SIDE, factor, _COARSE_SIDE, factor).mean(axis=(2, 4))
        waves = np.asarray(dctn(small, axes=(1, 2), norm="ortho")).reshape(len(images), -1)
        waves[:, 0] = 0  # the brightness
        found.append(_unit(waves[:, lowest]))
    features = np.concatenate(found)
    signs = np.where(x[lowest] % 2, -1, 1).astype(np.float32)
    return features, (features * signs).astype(np.float32)


def _distances(images: Floats, others: Floats) -> Floats:
    """Return the distance between windows of each image and other images.

    Args:
        images: (Q, SIDE, SIDE).
        others: K images for each of them, (Q, K, SIDE, SIDE).

    Returns:
        Distance in the window that fits best, (Q, K).
    """
    windows = _edges(_windows(images))  # (Q, W, D)
    whole = _edges(others)  # (Q, K, D)
    alike = (whole @ windows.transpose(0, 2, 1)).max(axis=2)
    return 1 - alike


def _windows(images: Floats) -> Floats:
    """Return the whole image and its windows, scaled to the same size, (N, W, SIDE, SIDE)."""
    places = [(1.0, 0.0)]
    for scale in _CROPS:
        places += [(scale, offset) for offset in (0.0, (1 - scale) / 2, 1 - scale)]
    scaling = np.concatenate([_scaling(*place) for place in places])  # (P * SIDE, SIDE)
    wide = images @ scaling.T  # (N, SIDE, P * SIDE)
    both = (scaling @ wide).reshape(-1, len(places), SIDE, len(places), SIDE)
    chosen = [
        (down, across)
        for down, across in product(range(len(places)), repeat=2)
        if places[down][0] == places[across][0]
    ]
    windows = [both[:, down, :, across] for down, across in chosen]
    return np.stack(windows, axis=1).astype(np.float32, copy=False)


def _scaling(scale: float, offset: float) -> Floats:
    """Return the matrix that scales a window of a line to the whole line, (SIDE, SIDE)."""
    places = (np.arange(SIDE) + 0.5) * scale + offset * SIDE - 0.5
    places = places.clip(0, SIDE - 1)
    left = np.minimum(places.astype(int), SIDE - 2)
    matrix = np.zeros((SIDE, SIDE), dtype=np.float32)
    matrix[np.arange(SIDE), left] = 1 - (places - left)
    matrix[np.arange(SIDE), left + 1] = places - left
    return matrix


def _edges(images: Floats) -> Floats:
    """Return the differences between neighboring pixels, scaled to length 1, (N, K, D).

    They are clipped: a horizon or a frame would outweigh everything else.
    """
    found = _differences(images)
    limit = _CLIP * np.sqrt((found**2).mean(axis=-1, keepdims=True))
    return _unit(np.clip(found, -limit, limit))


def _differences(images: Floats) -> Floats:
    """Return the differences between neighboring pixels, (N, K, D) of (N, K, SIDE, SIDE)."""
    shape = (*images.shape[:2], SIDE * (SIDE - 1))
    down = np.diff(images, axis=2).reshape(shape)
    return np.concatenate([down, np.diff(images, axis=3).reshape(shape)], axis=2)


def _unit(vectors: Floats) -> Floats:
    """Scale vectors along the last axis to length 1."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-6).astype(np.float32)


# --- Groups ---------------------------------------------------------------------------------------


def _grouped(thumbnails: Thumbnails, pairs: Indices) -> Indices:
    """Return the leader of each image.

    Groups are stars around a leader, and then stars of leaders: following pairs on and on would
    chain unlike images.
    """
    leaders = _stars(len(thumbnails), pairs)
    linked = np.unique(np.sort(leaders[pairs], axis=1), axis=0)
    linked = linked[linked[:, 0] != linked[:, 1]]
    if not len(linked):
        return leaders
    return _stars(len(thumbnails), linked[_are_near(thumbnails, linked)])[leaders]


def _are_near(thumbnails: Thumbnails, pairs: Indices) -> NDArray[np.bool_]:
    """Return whether the images of each pair are near-duplicates, (M,)."""
    found: list[Floats] = []
    for start in range(0, len(pairs), _MAX_ROWS):
        one, other = thumbnails[pairs[start : start + _MAX_ROWS].T].astype(np.float32)
        ways = [
            _distances(a, np.stack([b, b[:, :, ::-1]], axis=1)).min(axis=1)
            for a, b in ((one, other), (other, one))
        ]
        found.append(np.minimum(*ways))
    return np.concatenate(found) <= THRESHOLD


def _stars(num_images: int, pairs: Indices) -> Indices:
    """Make the image with the most neighbors a leader of those without one, again and again."""
    leaders = np.arange(num_images)
    neighbors: dict[int, list[int]] = {}
    for one, other in pairs.tolist():
        neighbors.setdefault(one, []).append(other)
        neighbors.setdefault(other, []).append(one)
    counts = Counter({image: len(some) for image, some in neighbors.items()})
    taken: set[int] = set()
    for image in sorted(counts, key=lambda image: (-counts[image], image)):
        if image not in taken:
            members = [image, *(other for other in neighbors[image] if other not in taken)]
            taken.update(members)
            leaders[members] = image
    return leaders
