"""Describe how far a job's images are from the training images: a part of the report."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tltools.artifacts import Artifact
from tltools.card import Beyond, Distances, Resize
from tltools.classify.remembered import Reference
from tltools.decisions import UNKNOWN
from tltools.distance import CHECKED_LEVELS
from tltools.report.blocks import Block, Charts, Gallery, Section, Table, Text, Tile, percent_of
from tltools.report.charts import Chart
from tltools.report.distance_chart import EDGES, bin_of, distance_histogram
from tltools.wording import grouped, in_percent, ordinal, with_likeliest

TITLE = "Images unlike the training data"
MAX_FARTHEST = 48
"""Maximum images in the gallery of the most distant ones."""

FindReference = Callable[[Sequence[str]], Reference | None]
"""Takes the classes of a job, and returns what its distances are compared with, if that is known.
"""


class Far(NamedTuple):
    """An image that may be shown for its distance."""

    path: str
    label: str
    confidence: float
    distance: float
    likeliest: str | None = None
    """Of an unknown or uncertain image: the class whose probability the confidence is."""


@dataclass
class DistanceFacts:
    """Summary of the distances of a job's images; its size does not depend on their number."""

    reference: Reference | None
    """The training images; None if the job's model is not known."""
    num_images: int = 0
    num_unknown: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    """Images by bin of `distance_chart.EDGES`, (B,)."""
    beyond: dict[float, int] = field(default_factory=dict)
    """Images beyond the training images' percentiles; the keys are percentiles."""
    nearest_unknown: float = np.inf
    """The smallest distance of an unknown image."""
    _farthest: list[tuple[float, int, Far]] = field(default_factory=list)
    """A heap: its first element is replaced first."""
    _limits: dict[float, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look up the distances at the percentiles."""
        if self.reference is not None:
            given = self.reference.unknown
            levels = {*CHECKED_LEVELS, *(() if given is None else (given,))}
            self._limits = {one: self.reference.distances.at(one) for one in sorted(levels)}
            self.beyond = dict.fromkeys(self._limits, 0)

    def add(self, far: Far, *, is_unknown: bool) -> None:
        """Consider an image."""
        self.num_images += 1
        self.counts[bin_of(far.distance)] += 1
        if is_unknown:
            self.num_unknown += 1
            self.nearest_unknown = min(self.nearest_unknown, far.distance)
        given = None if self.reference is None else self.reference.unknown
        for level, limit in self._limits.items():
            # A label is of the distance before it was rounded.
            self.beyond[level] += is_unknown if level == given else far.distance > limit
        entry = (far.distance, -self.num_images, far)  # among equals, the earliest stays
        if len(self._farthest) < MAX_FARTHEST:
            heappush(self._farthest, entry)
        elif entry > self._farthest[0]:
            heappushpop(self._farthest, entry)

    def farthest(self) -> list[Far]:
        """Return the most distant images, the most distant first."""
        return [far for _, _, far in sorted(self._farthest, reverse=True)]

    @property
    def limit(self) -> float | None:
        """The distance from which on images are unknown; None if none is, or it is not known."""
        if self.reference is not None and self.reference.unknown is not None:
            return self._limits[self.reference.unknown]
        return self.nearest_unknown if self.num_unknown else None


def reference_among(exports: Sequence[Artifact], classes: Sequence[str]) -> Reference | None:
    """Return the training images of the one model among exports that has the classes.

    None if no export with distances has them, or several models do.
    """
    found: dict[Distances, Reference] = {}
    for one in exports:
        facts = one.card.export
        if facts is None or facts.distances is None or one.card.classes != tuple(classes):
            continue
        same = Distances(
            percentiles=facts.distances.percentiles,
            num_images=facts.distances.num_images,
            beyond=facts.distances.beyond,
        )
        found[same] = Reference(one.card.run, same, None)
    return next(iter(found.values())) if len(found) == 1 else None


def distance_section(
    facts: DistanceFacts, *, locate: Callable[[str], Path | None] | None, resize: Resize
) -> Section:
    """Return the part of a job's section about its images' distances.

    Args:
        facts: Their summary, of at least one image.
        locate: Finds the images; None if their folder is unknown.
        resize: Resize rule for the images.
    """
    reference = facts.reference
    blocks: list[Block] = [Text(tuple(_lines(facts)))]
    if reference is not None:
        blocks.append(_levels_table(facts, reference))
    blocks.append(Charts((_chart(facts),)))
    training = None if reference is None else reference.distances
    found = facts.farthest()
    title, note = "The most distant images", _note(facts)
    if locate is None:
        blocks.append(_farthest_table(title, found, training))
        return Section(TITLE, blocks)
    tiles = tuple(
        Tile(
            name=one.path,
            path=locate(one.path),
            resize=resize,
            predicted=one.label,
            confidence=one.confidence,
            likeliest=one.likeliest,
            notes=distance_notes(one.distance, training),
        )
        for one in found
    )
    return Section(TITLE, [*blocks, Gallery(title, tiles, note)])


def _lines(facts: DistanceFacts) -> Iterator[str]:
    """Say how many images are unknown, and what a distance is."""
    reference, num = facts.reference, facts.num_images
    told = (
        f"Labeled {UNKNOWN}: {facts.num_unknown:,} of {grouped(num, 'image')} "
        f"({percent_of(facts.num_unknown, num)})"
    )
    if reference is None:
        yield (
            f"{told}. The percentiles of the training images are in the model: to see them, report "
            "its export together with these predictions."
        )
        return
    training = f"{grouped(reference.distances.num_images, 'training image')} of {reference.run}"
    if reference.unknown is None:
        yield (
            f"{told}. Percentiles are of the {training}, the only model on this page with these "
            "classes."
        )
    else:
        yield f"{told}, beyond the {ordinal(reference.unknown)} percentile of the {training}."
    yield (
        "The distance compares the features that the model computes of an image with those of its "
        "training images; about 1 is typical of the training images."
    )


def _levels_table(facts: DistanceFacts, reference: Reference) -> Table:
    validation = {one.level: one.validation for one in reference.distances.beyond}
    rows = []
    for level, count in facts.beyond.items():
        share = validation.get(level)
        rows.append(
            (
                f"{ordinal(level)} (limit)" if level == reference.unknown else ordinal(level),
                f"{reference.distances.at(level):.2f}",
                "-" if share is None else in_percent(share.value),
                f"{percent_of(count, facts.num_images)} ({count:,})",
            )
        )
    return Table(
        f"Images beyond a percentile of {reference.run}'s training images",
        ("percentile", "distance", "validation images", "these images"),
        tuple(rows),
    )


def _chart(facts: DistanceFacts) -> Chart:
    reference, limit = facts.reference, facts.limit
    given = None if reference is None else reference.unknown
    name = "nearest unknown image" if given is None else f"limit: {ordinal(given)} percentile"
    of = "" if reference is None else f" from the training images of {reference.run}"
    text = f"Distances of {grouped(facts.num_images, 'image')}{of}, on a logarithmic axis"
    if reference is not None:
        text += (
            f". Half of the training images are within {reference.distances.at(50):.2f}, all "
            f"within {reference.distances.at(100):.2f}"
        )
    if limit is not None:
        text += f". The {name} is at {limit:.2f}".replace("limit: ", "limit, the ", 1)
    text += f". The most distant image is at {facts.farthest()[0].distance:.2f}."
    return distance_histogram(
        facts.counts,
        training=None if reference is None else reference.distances,
        limit=limit,
        limit_name=name,
        title=f"Distance{of or ' from the training images'}",
        description=text,
    )


def _note(facts: DistanceFacts) -> str:
    shown = min(facts.num_images, MAX_FARTHEST)
    note = f"{shown:,} of {grouped(facts.num_images, 'image')}, the most distant first"
    if facts.reference is not None:
        note += f"; the most distant training image is at {facts.reference.distances.at(100):.2f}"
    return note


def _farthest_table(title: str, found: Sequence[Far], training: Distances | None) -> Table:
    return Table(
        title,
        ("file", "label", "distance", "among the training images"),
        tuple(
            (
                one.path,
                with_likeliest(one.label, one.likeliest, one.confidence),
                f"{one.distance:.2f}",
                "-" if training is None else _place(one.distance, training, is_training=False),
            )
            for one in found
        ),
        numbers_from=2,
    )


def _place(distance: float, training: Distances, *, is_training: bool) -> str:
    """Say where a distance lies among those of the training images.

    Args:
        distance: Of an image.
        training: Those of the training images.
        is_training: Whether the image is one of them.
    """
    largest = training.at(100)
    if math.isclose(distance, largest, rel_tol=1e-4, abs_tol=1e-6):  # a file rounds it
        if is_training:
            return "the most distant of them"
        return "as far as the most distant training image"
    place = training.percentile_of(distance)
    if place < 100:
        return f"{ordinal(max(1, math.floor(place)))} percentile"
    ratio = distance / largest if largest > 0 else math.inf
    many = 1.05 <= ratio < 1000
    farthest = "the most distant training image"
    return f"{ratio:.1f} times as far as {farthest}" if many else f"farther than {farthest}"


def distance_notes(
    distance: float, training: Distances | None, *, is_training: bool = False
) -> tuple[str, ...]:
    """Return the lines of a tile about an image's distance.

    Args:
        distance: Of the image.
        training: Distances of the training images; None if they are not known.
        is_training: Whether the image is one of them.
    """
    told = f"distance {distance:.2f}"
    if training is None:
        return (told,)
    return told, _place(distance, training, is_training=is_training)


def beyond_cells(beyond: Sequence[Beyond]) -> tuple[str, ...]:
    """Return the cells of a table with the shares of validation images beyond each level."""
    found = {one.level: one.validation for one in beyond}
    return tuple(
        "-"
        if (share := found.get(level)) is None
        else f"{in_percent(share.value)} ({share.count:,}/{share.total:,})"
        for level in CHECKED_LEVELS
    )
