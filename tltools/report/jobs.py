"""Describe a classification job, from its output: the report's section about it."""

import math
import os
import random
import shlex
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
from tltools.classify.predict import UNCERTAIN, UNKNOWN
from tltools.classify.sorting import sorted_places
from tltools.classify.tally import kind_of_error, reason_in
from tltools.data.location import Location
from tltools.data.suffixes import is_archive_name
from tltools.errors import DataError, cause_of
from tltools.report.blocks import (
    Block,
    Charts,
    Gallery,
    Section,
    Table,
    Text,
    Tile,
    in_turn,
    percent_of,
)
from tltools.report.charts import MAX_ROWS, class_counts_chart, confidence_histogram
from tltools.report.distances import DistanceFacts, Far, FindReference, distance_section
from tltools.wording import grouped, listed

NUM_BINS = 20
"""Bins of the confidence histogram."""
MAX_TILES = 360
"""Maximum images of a job; 10 kB each keeps the page small."""
MAX_EACH = 12
"""Maximum images of each label and kind: most confident, least confident, random."""
MAX_FAILED = 200
"""Maximum failed files listed by name."""
FEW_FAILED = 10
"""Maximum failed files that need no table of their reasons."""
MAX_REASONS = 1000
"""Maximum distinct reasons that are counted; later ones are counted together."""
MAX_REASONS_SHOWN = 20
OTHER_REASONS = "other reasons"

Locate = Callable[[str], Path | None]
"""Maps the name of an image to its path; None if unknown."""


class Shown(NamedTuple):
    """An image that may be shown."""

    path: str
    label: str
    confidence: float
    likeliest: str | None = None
    """Of an unknown or uncertain image: the class whose probability the confidence is."""


@dataclass
class _Sample:
    """A sample of a label's images, drawn in one pass: most and least confident, and random."""

    limit: int
    """Maximum of each kind."""
    most_confident: list[tuple[float, int, Shown]] = field(default_factory=list)
    """A heap, like `least_confident`: its first element is replaced first."""
    least_confident: list[tuple[float, int, Shown]] = field(default_factory=list)
    others: list[Shown] = field(default_factory=list)
    num: int = 0

    def add(self, shown: Shown, chance: random.Random) -> None:
        """Consider an image."""
        self.num += 1
        for heap, key in (
            (self.most_confident, shown.confidence),
            (self.least_confident, -shown.confidence),
        ):
            entry = (key, -self.num, shown)  # among equals, the earliest stays
            if len(heap) < self.limit:
                heappush(heap, entry)
            elif entry > heap[0]:
                heappushpop(heap, entry)
        # Every image is equally likely to stay (Vitter's algorithm R).
        if len(self.others) < self.limit:
            self.others.append(shown)
        elif (place := int(chance.random() * self.num)) < self.limit:
            self.others[place] = shown

    def chosen(self) -> list[Shown]:
        """Return the sample without duplicates, the most confident first."""
        heaps = (shown for _, _, shown in chain(self.most_confident, self.least_confident))
        found = dict.fromkeys(chain(heaps, self.others))
        return sorted(found, key=lambda shown: (-shown.confidence, shown.path))


@dataclass
class JobFacts:
    """Summary of a job's rows; its size does not depend on their number."""

    classes: tuple[str, ...]
    counts: dict[str, int]
    """Images by label: the classes in order, then `uncertain` and `unknown` if any."""
    edges: NDArray[np.float64]
    """Edges of the B confidence bins, (B + 1,)."""
    bins: dict[str, NDArray[np.int64]]
    """Images by label and bin, (B,) each."""
    chosen: dict[str, list[Shown]]
    """Images to show by label, the most confident first."""
    num_failed: int
    reasons: dict[str, int]
    """Failed files by reason, the most frequent first."""
    failed: list[tuple[str, str]]
    """Name and reason of the first `MAX_FAILED` failed files."""
    distances: DistanceFacts
    """Of no image, if the rows have no distances."""

    @property
    def num_classified(self) -> int:
        """Number of images with a label, `uncertain` and `unknown` ones included."""
        return sum(self.counts.values())

    @property
    def num_rows(self) -> int:
        """Total number of images."""
        return self.num_classified + self.num_failed


def _unknown_reference(_classes: Sequence[str]) -> None:
    """Say that the training images of a job are not known."""


def read_job(path: Path, find_reference: FindReference = _unknown_reference) -> JobFacts:
    """Summarize an output of `classify`, in memory that does not grow with the number of rows.

    Args:
        path: A file in one of the output formats.
        find_reference: Returns what the distances are compared with.

    Raises:
        ConfigError: If its suffix is unknown.
        DataError: If it cannot be read, or `classify` did not write it.
    """
    try:
        classes, rows = output_format(path).read(path)
        return _sum_up(classes, rows, path, DistanceFacts(find_reference(classes)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {cause_of(error)}") from error


def _sum_up(
    classes: Sequence[str], rows: Iterable[Row], path: Path, distances: DistanceFacts
) -> JobFacts:
    labels = (*classes, UNCERTAIN, UNKNOWN)
    # A class may have such a name; then `classify` refuses --min-confidence or --unknown.
    counts = dict.fromkeys(labels, 0)
    bins = {label: [0] * NUM_BINS for label in labels}
    limit = max(1, min(MAX_EACH, MAX_TILES // (3 * len(labels))))
    samples: dict[str, _Sample] = {}
    reasons: Counter[str] = Counter()
    failed: list[tuple[str, str]] = []
    chance = random.Random(0)  # noqa: S311 - which images are shown is no secret
    for number, row in enumerate(rows, 1):
        if row.label is None:
            reason = kind_of_error(row.path, row.error or "")
            known = reason in reasons or len(reasons) < MAX_REASONS
            reasons[reason if known else OTHER_REASONS] += 1
            if len(failed) < MAX_FAILED:
                failed.append((row.path, reason_in(row.path, row.error or "")))
            continue
        if row.label not in counts or row.confidence is None or not 0 <= row.confidence <= 1:
            raise _foreign_row(path, number, row, f"confidence {row.confidence}")
        if row.distance is not None:
            if not 0 <= row.distance < math.inf:
                raise _foreign_row(path, number, row, f"distance {row.distance}")
            far = Far(row.path, row.label, row.confidence, row.distance, row.likeliest)
            distances.add(far, is_unknown=row.label == UNKNOWN and UNKNOWN not in classes)
        counts[row.label] += 1
        bins[row.label][min(int(row.confidence * NUM_BINS), NUM_BINS - 1)] += 1
        sample = samples.setdefault(row.label, _Sample(limit))
        sample.add(Shown(row.path, row.label, row.confidence, row.likeliest), chance)
    for label in {UNCERTAIN, UNKNOWN}.difference(classes):
        if not counts[label]:
            del counts[label]
    return JobFacts(
        classes=tuple(classes),
        counts=counts,
        edges=np.linspace(0, 1, NUM_BINS + 1),
        bins={name: np.array(bins[name], dtype=np.int64) for name in counts},
        chosen={name: samples[name].chosen() for name in counts if name in samples},
        num_failed=reasons.total(),
        reasons=dict(reasons.most_common()),
        failed=failed,
        distances=distances,
    )


def _foreign_row(path: Path, number: int, row: Row, what: str) -> DataError:
    return DataError(
        f"{path} row {number:,} is not from tltools classify: label {row.label!r} with {what}; run "
        "tltools classify again"
    )


# ----------------------------------------------------------------------------- where images are


def locate_in(folder: Path) -> Locate:
    """Return a function that finds images by name in a folder, and never outside it.

    A predictions file may come from someone else: it must not put other images from this machine
    on a page. In a folder of sorted images, the names of the images before that are found, too.
    """
    root = os.path.abspath(folder)  # noqa: PTH100 - Path.resolve would follow links
    places = sorted_places(folder)

    def locate(name: str) -> Path | None:
        for one in dict.fromkeys((name, without_apostrophe(name))):
            path = os.path.normpath(os.path.join(root, one))  # noqa: PTH118
            inside = Path(path).is_relative_to(root)
            if inside and "\0" not in path and os.path.lexists(path):
                return Path(path)
            if one in places:
                return folder / places[one]
        return None

    return locate


def locate_inputs(sources: Sequence[Location]) -> Locate:
    """Return a function that finds the images of the current `classify` job by its inputs."""
    inputs = [source for source in sources if isinstance(source, Path)]
    if len(inputs) < len(sources):
        return lambda _name: None  # images on a server are not fetched again
    if len(inputs) == 1 and inputs[0].is_dir():
        return locate_in(inputs[0])
    if len(inputs) == 1 and is_archive_name(inputs[0].name):
        return lambda _name: None  # other files may have its members' names
    lists = [source.parent for source in inputs if source.suffix.lower() == LIST_SUFFIX]
    places = (Path(), *lists)

    def locate(name: str) -> Path | None:
        candidates = (place / one for one in (name, without_apostrophe(name)) for place in places)
        return next((path for path in candidates if os.path.lexists(path)), None)

    return locate


def images_from(sources: Sequence[Location]) -> str:
    """Return a line that names a job's inputs without their folders: pages are shared."""
    names = (one.name if isinstance(one, Path) and one.name else str(one) for one in sources)
    named = ["standard input" if name == "-" else name for name in names]
    return f"Images from {listed(named)}"


# ------------------------------------------------------------------------------------ section


def job_section(
    path: Path,
    *,
    locate: Locate | None,
    resize: Resize = "squash",
    facts: Iterable[str] = (),
    job: JobFacts | None = None,
) -> Section:
    """Return the section about a job.

    Args:
        path: Output of the job.
        locate: Finds the images; None if their folder is unknown.
        resize: Resize rule for the images.
        facts: More lines about the job.
        job: Its summary; None to read the output.

    Raises:
        DataError: As `read_job`.
    """
    job = job or read_job(path)
    total = job.num_classified
    rows = tuple(
        (name, f"{count:,}", percent_of(count, total)) for name, count in job.counts.items()
    )
    blocks: list[Block] = [
        Text((f"{grouped(job.num_rows, 'image')} in {path}", *facts), tone="quiet"),
    ]
    if not total or len(job.counts) > MAX_ROWS:  # else the chart has the same figures
        blocks.append(Table("Labels", ("label", "images", "share"), rows))
    if total:
        blocks.append(
            Charts(
                (
                    class_counts_chart(job.counts, title=f"Images by label, {path.name}"),
                    confidence_histogram(
                        job.edges, job.bins, title=f"Images by confidence, {path.name}"
                    ),
                )
            )
        )
        blocks.append(_gallery(path, job, locate, resize))
    if job.num_failed:
        blocks += _failures(job)
    if job.distances.num_images:
        blocks.append(distance_section(job.distances, locate=locate, resize=resize))
    return Section(f"Predictions: {path.name}", blocks)


def _gallery(path: Path, job: JobFacts, locate: Locate | None, resize: Resize) -> Block:
    if locate is None:
        return Text(
            (
                "To see the images, name the folder that was classified: tltools report "
                f"{shlex.quote(str(path))} --images FOLDER.",
            ),
            title="Images",
            tone="warning",
        )
    chosen = sorted(job.chosen.items(), key=lambda item: -job.counts[item[0]])
    groups: list[list[Tile]] = []
    num_tiles = 0
    for label, shown in chosen:
        if num_tiles + len(shown) > MAX_TILES:
            break
        num_tiles += len(shown)
        groups.append(
            [
                Tile(
                    name=one.path,
                    path=locate(one.path),
                    resize=resize,
                    predicted=label,
                    confidence=one.confidence,
                    likeliest=one.likeliest,
                )
                for one in shown
            ]
        )
    tiles, num_labels = in_turn(groups), len(groups)
    note = (
        f"{len(tiles):,} of {grouped(job.num_classified, 'image')}: for each label the most "
        "confident, the least confident and a random sample"
    )
    if num_labels < len(chosen):
        note += f"; the {num_labels:,} most frequent of {len(chosen):,} labels"
    return Gallery("Images by label and confidence", tiles, note)


def _failures(job: JobFacts) -> Iterator[Block]:
    title = f"{grouped(job.num_failed, 'file')} not classified"
    if job.num_failed <= FEW_FAILED:
        yield Table(title, ("file", "reason"), tuple(job.failed), numbers_from=2)
        return
    reasons = list(job.reasons.items())
    shown = reasons[:MAX_REASONS_SHOWN]
    rest = job.num_failed - sum(count for _, count in shown)
    if rest:
        shown.append((OTHER_REASONS, rest))
    yield Table(
        f"{title}, by reason",
        ("reason", "files"),
        tuple((reason, f"{count:,}") for reason, count in shown),
    )
    few = len(job.failed) < job.num_failed
    first = f"The first {len(job.failed):,} failed files" if few else "All failed files"
    yield Table(first, ("file", "reason"), tuple(job.failed), numbers_from=2)
