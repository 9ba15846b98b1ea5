"""What a report says of a classification job: read from its output, row by row."""

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tltools.card import Resize
from tltools.classify.inputs import LIST_SUFFIX
from tltools.classify.output_formats import Row, output_format
from tltools.classify.output_formats.csv_rows import without_apostrophe
from tltools.classify.predict import UNCERTAIN
from tltools.classify.tally import kind_of_error
from tltools.data.location import Location
from tltools.data.suffixes import is_archive_name
from tltools.errors import DataError
from tltools.report.blocks import Block, Charts, Gallery, Section, Table, Text, Tile
from tltools.report.charts import class_counts_chart, confidence_histogram
from tltools.wording import grouped

NUM_BINS = 20
"""Of the confidences."""
MAX_TILES = 360
"""Images of a job in all: with 10 kB each they are a fraction of what a page may weigh."""
MAX_EACH = 12
"""Images of a label, of each of the three kinds."""
MAX_FAILED = 200
"""Failed files that are listed by name."""
MAX_REASONS = 1000
"""Different reasons that are grouped; further ones are grouped together."""
MAX_REASONS_SHOWN = 20
OTHER_REASONS = "other reasons"

Locate = Callable[[str], Path | None]
"""Where the image with a name lies; None where that is not known."""


class Shown(NamedTuple):
    """An image that may be shown."""

    path: str
    label: str
    confidence: float


@dataclass
class _Some:
    """Some images of one label, chosen as they pass: the surest, the least sure, and others."""

    limit: int
    """Of each kind."""
    surest: list[tuple[float, int, Shown]] = field(default_factory=list)
    """Heaps: the first one gives way."""
    least_sure: list[tuple[float, int, Shown]] = field(default_factory=list)
    others: list[Shown] = field(default_factory=list)
    num: int = 0

    def add(self, shown: Shown, chance: random.Random) -> None:
        """Take an image into account."""
        self.num += 1
        for heap, key in (
            (self.surest, shown.confidence),
            (self.least_sure, -shown.confidence),
        ):
            entry = (key, -self.num, shown)  # of equals, the first ones stay
            if len(heap) < self.limit:
                heappush(heap, entry)
            elif entry > heap[0]:
                heappushpop(heap, entry)
        # Each image is as likely as any other to be among them (Vitter's algorithm R).
        if len(self.others) < self.limit:
            self.others.append(shown)
        elif (place := int(chance.random() * self.num)) < self.limit:
            self.others[place] = shown

    def chosen(self) -> list[Shown]:
        """Return them once each, the surest first."""
        heaps = (shown for _, _, shown in chain(self.surest, self.least_sure))
        found = dict.fromkeys(chain(heaps, self.others))
        return sorted(found, key=lambda shown: (-shown.confidence, shown.path))


@dataclass
class JobFacts:
    """What a job's rows come to; its size does not depend on their number."""

    classes: tuple[str, ...]
    counts: dict[str, int]
    """Images by label: the classes in order, then `uncertain` where there is one."""
    edges: NDArray[np.float64]
    """Of the B bins of confidence, (B + 1,)."""
    bins: dict[str, NDArray[np.int64]]
    """Images by label and bin, (B,) each."""
    chosen: dict[str, list[Shown]]
    """Images to show by label, the surest first."""
    num_failed: int
    reasons: dict[str, int]
    """Failed files by reason, the most frequent first."""
    failed: list[tuple[str, str]]
    """Name and error of the first `MAX_FAILED` of them."""

    @property
    def num_rows(self) -> int:
        """Images in all."""
        return sum(self.counts.values()) + self.num_failed


def read_job(path: Path) -> JobFacts:
    """Read what `classify` wrote, in memory that does not grow with the number of rows.

    Args:
        path: In one of the output formats.

    Raises:
        ConfigError: If its suffix is none of theirs.
        DataError: If it cannot be read, or is not what `classify` writes.
    """
    try:
        classes, rows = output_format(path).read(path)
        return _sum_up(classes, rows, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _sum_up(classes: Sequence[str], rows: Iterable[Row], path: Path) -> JobFacts:
    labels = (*classes, UNCERTAIN)
    # A class may be called so; --min-confidence is refused then.
    counts = dict.fromkeys(labels, 0)
    bins = {label: [0] * NUM_BINS for label in labels}
    limit = max(1, min(MAX_EACH, MAX_TILES // (3 * len(labels))))
    some: dict[str, _Some] = {}
    reasons: Counter[str] = Counter()
    failed: list[tuple[str, str]] = []
    chance = random.Random(0)  # noqa: S311 - which images are shown is no secret
    for number, row in enumerate(rows, 1):
        if row.label is None:
            reason = kind_of_error(row.path, row.error or "")
            known = reason in reasons or len(reasons) < MAX_REASONS
            reasons[reason if known else OTHER_REASONS] += 1
            if len(failed) < MAX_FAILED:
                failed.append((row.path, row.error or ""))
            continue
        if row.label not in counts or row.confidence is None or not 0 <= row.confidence <= 1:
            raise DataError(
                f"{path} row {number:,}: {row.label!r} with the confidence {row.confidence} is "
                "nothing that tltools classify writes; make the file again"
            )
        counts[row.label] += 1
        bins[row.label][min(int(row.confidence * NUM_BINS), NUM_BINS - 1)] += 1
        found = some.setdefault(row.label, _Some(limit))
        found.add(Shown(row.path, row.label, row.confidence), chance)
    if UNCERTAIN not in classes and not counts[UNCERTAIN]:
        del counts[UNCERTAIN]
    return JobFacts(
        classes=tuple(classes),
        counts=counts,
        edges=np.linspace(0, 1, NUM_BINS + 1),
        bins={name: np.array(bins[name], dtype=np.int64) for name in counts},
        chosen={name: some[name].chosen() for name in counts if name in some},
        num_failed=reasons.total(),
        reasons=dict(reasons.most_common()),
        failed=failed,
    )


# ----------------------------------------------------------------------------- where images are


def locate_in(folder: Path) -> Locate:
    """Find images by their names relative to a folder, and never outside of it.

    A file of predictions may come from another person: it must not put other images of this
    computer on a page.
    """
    root = os.path.abspath(folder)  # noqa: PTH100 - Path.resolve would follow links

    def locate(name: str) -> Path | None:
        for one in dict.fromkeys((name, without_apostrophe(name))):
            path = os.path.normpath(os.path.join(root, one))  # noqa: PTH118
            inside = Path(path).is_relative_to(root)
            if inside and "\0" not in path and os.path.lexists(path):
                return Path(path)
        return None

    return locate


def locate_inputs(sources: Sequence[Location]) -> Locate:
    """Find the images of a job that was just done, by what `classify` was given."""
    inputs = [source for source in sources if isinstance(source, Path)]
    if len(inputs) < len(sources):
        return lambda _name: None  # what is on a server is not fetched again
    if len(inputs) == 1 and inputs[0].is_dir():
        return locate_in(inputs[0])
    if len(inputs) == 1 and is_archive_name(inputs[0].name):
        return lambda _name: None  # its members are no files, and must not be taken for some
    lists = [source.parent for source in inputs if source.suffix.lower() == LIST_SUFFIX]
    places = (Path(), *lists)

    def locate(name: str) -> Path | None:
        candidates = (place / one for one in (name, without_apostrophe(name)) for place in places)
        return next((path for path in candidates if os.path.lexists(path)), None)

    return locate


# ------------------------------------------------------------------------------------ section


def job_section(
    path: Path,
    *,
    locate: Locate | None,
    resize: Resize = "squash",
    facts: Sequence[str] = (),
) -> Section:
    """Say what a job found.

    Args:
        path: Its output.
        locate: Finds the images; None if their place is unknown.
        resize: How images are cut.
        facts: What else is known of the job, a line each.

    Raises:
        DataError: As `read_job`.
    """
    job = read_job(path)
    certain = job.num_rows - job.num_failed
    rows = [
        (name, f"{count:,}", _percent(count, job.num_rows)) for name, count in job.counts.items()
    ]
    if job.num_failed:
        failed = f"{job.num_failed:,}", _percent(job.num_failed, job.num_rows)
        rows.append(("not classified", *failed))
    blocks: list[Block] = [
        Text((f"{grouped(job.num_rows, 'image')} in {path}", *facts), tone="quiet"),
        Table("Labels", ("label", "images", "share"), tuple(rows)),
    ]
    if certain:
        blocks.append(
            Charts(
                (
                    class_counts_chart(job.counts, title="Images by label"),
                    confidence_histogram(job.edges, job.bins, title="Images by confidence"),
                )
            )
        )
        blocks.append(_gallery(job, locate, resize))
    if job.num_failed:
        blocks += _failures(job)
    return Section(f"Classified: {path.name}", blocks)


def _gallery(job: JobFacts, locate: Locate | None, resize: Resize) -> Block:
    if locate is None:
        return Text(
            (
                "To see the images, say where they are: tltools report --images FOLDER, the "
                "folder that was classified.",
            ),
            title="Images",
            tone="warning",
        )
    chosen = sorted(job.chosen.items(), key=lambda item: -job.counts[item[0]])
    tiles: list[Tile] = []
    num_labels = 0
    for label, shown in chosen:
        if len(tiles) + len(shown) > MAX_TILES:
            break
        num_labels += 1
        tiles += (
            Tile(
                name=one.path,
                path=locate(one.path),
                resize=resize,
                predicted=label,
                confidence=one.confidence,
            )
            for one in shown
        )
    total = sum(job.counts.values())
    note = (
        f"{len(tiles):,} of {grouped(total, 'image')}: of each label the surest, "
        "the least sure and some between, by chance"
    )
    if num_labels < len(chosen):
        note += f"; the {num_labels:,} most frequent of {len(chosen):,} labels"
    return Gallery("Images by label and confidence", tuple(tiles), note)


def _failures(job: JobFacts) -> Iterator[Block]:
    reasons = list(job.reasons.items())
    shown = reasons[:MAX_REASONS_SHOWN]
    rest = job.num_failed - sum(count for _, count in shown)
    if rest:
        shown.append((OTHER_REASONS, rest))
    yield Table(
        f"{grouped(job.num_failed, 'file')} not classified, by reason",
        ("reason", "files"),
        tuple((reason, f"{count:,}") for reason, count in shown),
    )
    few = len(job.failed) < job.num_failed
    first = f"The first {len(job.failed):,} of them" if few else "Each of them"
    yield Table(first, ("file", "reason"), tuple(job.failed), numbers_from=2)


def _percent(part: int, whole: int) -> str:
    share = 100 * part / max(whole, 1)
    # A few of very many must not read as none of them.
    return "< 0.1 %" if 0 < share < 0.05 else f"{math.floor(share * 10 + 0.5) / 10:.1f} %"
