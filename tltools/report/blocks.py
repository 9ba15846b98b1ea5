"""The blocks of a report, before they become HTML. All text is plain; the page escapes it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeAlias

from tltools.card import Resize
from tltools.report.charts import Chart
from tltools.wording import in_percent

Tone = Literal["plain", "quiet", "warning"]

_PHONE = 46
"""Digits side by side in a table on a phone."""
_GAP = 1.7
"""Width of the space between two columns, in digits."""


@dataclass(frozen=True)
class Text:
    """A paragraph, or a list if it has several lines."""

    lines: tuple[str, ...]
    title: str = ""
    """Heading; empty for none."""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Table:
    """A table; columns of numbers are right-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 1
    """Index of the first column of numbers."""

    @property
    def _has_intervals(self) -> bool:
        return len(self.columns) > 3 and any(" to " in one for row in self.rows for one in row)

    @property
    def is_wide(self) -> bool:
        """Whether it is too wide for a phone, where names of rows and words are not broken."""
        if self._has_intervals:
            return True  # each would take three lines
        names = [self.columns[0], *(row[0] for row in self.rows)]
        cells = list(zip(self.columns, *self.rows, strict=True))[1:]
        words = (max(map(len, " ".join(column).split(" "))) for column in cells)
        gaps = _GAP * (len(self.columns) - 1)
        return max(map(len, names)) + sum(words) + gaps > _PHONE


@dataclass(frozen=True)
class Charts:
    """Charts, side by side if the page is wide enough."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """An image in a gallery, with its labels."""

    name: str
    path: Path | None
    """Path of the image; None if unknown."""
    resize: Resize = "squash"
    true: str | None = None
    """Its class; None if unknown."""
    predicted: str | None = None
    """Its predicted label; None if it has none."""
    confidence: float | None = None
    """In [0, 1]."""
    likeliest: str | None = None
    """Of an image whose label is no class: the class whose probability the confidence is."""
    split: str = ""
    group: str = ""
    """What it has in common with its neighbors in the gallery: `group 2`."""
    notes: tuple[str, ...] = ()
    """More lines about it, such as its distance."""
    is_label_in_doubt: bool = False
    """Whether the label in `true` may be the mistake, and not the prediction."""

    @property
    def is_wrong(self) -> bool | None:
        """Whether the prediction is wrong; None if a label is missing or in doubt."""
        if self.true is None or self.predicted is None or self.is_label_in_doubt:
            return None
        return self.true != self.predicted

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the classes that the gallery's filter finds it under."""
        names = (self.true, self.predicted)
        return tuple(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True)
class Gallery:
    """Images to enlarge, and to filter by class, correctness, confidence and split."""

    title: str
    tiles: tuple[Tile, ...]
    note: str = ""
    """Which images were chosen, and out of how many."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of its images, in the order of first appearance."""
        return tuple(dict.fromkeys(label for tile in self.tiles for label in tile.labels))

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the splits of its images, in the order of first appearance."""
        return tuple(dict.fromkeys(tile.split for tile in self.tiles if tile.split))


Block: TypeAlias = "Text | Table | Charts | Gallery | Section"


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading; nested sections have smaller headings."""

    title: str
    blocks: Sequence[Block]

    def tiles(self) -> Iterator[Tile]:
        """Yield the images of all its galleries."""
        for block in self.blocks:
            if isinstance(block, Gallery):
                yield from block.tiles
            elif isinstance(block, Section):
                yield from block.tiles()


def in_turn(groups: Iterable[Sequence[Tile]]) -> tuple[Tile, ...]:
    """Return the images of all groups, one of each in turn: a long gallery shows the first few."""
    rounds = zip_longest(*groups)
    return tuple(tile for tiles in rounds for tile in tiles if tile is not None)


def percent_of(part: int, whole: int) -> str:
    """Format a share; of nothing, it is none."""
    return in_percent(part / max(whole, 1))
