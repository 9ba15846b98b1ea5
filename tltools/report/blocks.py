"""What a report is made of, before it becomes HTML. All texts are plain; the page escapes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from tltools.card import Resize, Score
from tltools.report.charts import Chart

Tone = Literal["plain", "quiet", "warning"]


@dataclass(frozen=True)
class Text:
    """A paragraph, or a list where there are several lines."""

    lines: tuple[str, ...]
    title: str = ""
    """Above it; empty for none."""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Table:
    """A table; columns of numbers stand to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 1
    """Index of the first column of numbers."""


@dataclass(frozen=True)
class Charts:
    """Charts, side by side where there is room."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """An image of a gallery and what there is to say of it."""

    name: str
    path: Path | None
    """Where the image is; None if unknown."""
    resize: Resize = "squash"
    true: str | None = None
    """Its class; None where that is not known."""
    predicted: str | None = None
    """The label that it got; None where it got none."""
    confidence: float | None = None
    """In [0, 1]."""
    split: str = ""

    @property
    def is_wrong(self) -> bool | None:
        """Whether the label is a mistake; None where there are not both."""
        if self.true is None or self.predicted is None:
            return None
        return self.true != self.predicted

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the classes under which it is found."""
        names = (self.true, self.predicted)
        return tuple(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True)
class Gallery:
    """Images that can be enlarged, and filtered by class, mistake, confidence and split."""

    title: str
    tiles: tuple[Tile, ...]
    note: str = ""
    """What was chosen, of how many."""

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
    """A part of the page under its heading; sections in it have smaller ones."""

    title: str
    blocks: Sequence[Block]

    def tiles(self) -> Iterator[Tile]:
        """Yield the images of all galleries in it."""
        for block in self.blocks:
            if isinstance(block, Gallery):
                yield from block.tiles
            elif isinstance(block, Section):
                yield from block.tiles()


def score_cell(score: Score | None) -> str:
    """Write an accuracy with its interval and counts."""
    if score is None:
        return "-"
    return (
        f"{100 * score.accuracy:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f}), "
        f"{score.correct}/{score.total}"
    )
