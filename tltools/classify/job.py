"""Classify folders into a file: the whole job, and what there is to say about it."""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tltools.card import Card
from tltools.classify.pictures import STDIN, Portion, list_portions
from tltools.classify.pipeline import Prediction, classify
from tltools.classify.writers import STDOUT, Output, check_output
from tltools.errors import DataError
from tltools.progress import SILENT, Progress
from tltools.runtime import Device, DeviceChoice, Plan, open_model

COUNTING_S = 0.5
"""Longest time spent on listing further folders beforehand, for the progress bar's total."""


@dataclass(frozen=True)
class Summary:
    """What a job did."""

    model: Path
    card: Card
    output: Path | None
    """None: standard output."""
    num_pictures: int
    """Rows written: `sum(counts.values()) + num_failed`."""
    counts: dict[str, int]
    """Pictures by label, in the order of the card's classes."""
    num_failed: int
    errors: dict[str, int]
    """Pictures that could not be read, by reason, the most frequent first; digits are `N`."""
    unlisted: tuple[str, ...]
    """Why a folder could not be listed, for each that was left out; its pictures have no rows."""
    seconds: float
    """From the first picture to the finished file; opening the model is not in it."""
    choice: DeviceChoice
    provider: str
    placement: dict[str, int]
    """Number of the model's nodes by execution provider."""
    plan: Plan

    @property
    def pictures_per_s(self) -> float:
        """Pictures a second, from the first to the finished file."""
        return self.num_pictures / self.seconds


def run_job(
    model: Path,
    inputs: Sequence[Path],
    output: Path,
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Classify pictures and write one row for each.

    A folder that cannot be listed is left out with a warning.

    Args:
        model: An export.
        inputs: Folders, pictures and lists, as `list_pictures` takes them.
        output: `.csv`, `.jsonl` (`.ndjson`) or `.parquet`; `-` for CSV on standard output.
        device: Where to run.
        batch_size: Pictures in one call of the model; None to choose.
        workers: Threads that decode; None for one per core.
        overwrite: Replace an output that exists.
        progress: Where to report.

    Raises:
        ArtifactError: If `model` is not a usable export.
        ConfigError: If `output` exists or has an unknown suffix, or a number is out of range.
        DataError: If an input does not exist, or there is no picture.
        DeviceError: If `device` cannot run the model.
        TltoolsError: If the output cannot be written. The rows written so far stay in
            `<output>.part`, here and whenever the job is stopped.
    """
    check_output(output, overwrite=overwrite)
    unlisted: list[str] = []

    def leave_out(error: DataError) -> None:
        unlisted.append(str(error))
        progress.warn(f"left out: {error}")

    portions = list_portions(inputs, on_error=leave_out)
    # The end of standard input may be a long way off.
    total, portions = _count(portions, seconds=0.0 if STDIN in inputs else COUNTING_S)
    pictures = chain.from_iterable(portion.pictures for portion in portions)
    predictor, plan = open_model(model, device=device, batch_size=batch_size, workers=workers)
    classes = predictor.card.classes
    counts = dict.fromkeys(classes, 0)
    reasons: Counter[str] = Counter()
    rows = Output(output, classes, overwrite=overwrite)
    start = time.perf_counter()
    try:
        with (
            rows,
            progress.bar("classify", total) as bar,
            closing(classify(predictor, pictures, plan=plan)) as predictions,
        ):
            for prediction in predictions:
                rows.write(prediction)
                if prediction.label is None:
                    reasons[_kind_of_error(prediction)] += 1
                else:
                    counts[prediction.label] += 1
                bar.advance()
    finally:
        if rows.num_rows and rows.part is not None and rows.part.exists():  # not renamed
            progress.warn(f"stopped: {rows.num_rows} complete rows are kept in {rows.part}")
    return Summary(
        model=model,
        card=predictor.card,
        output=None if output == STDOUT else output,
        num_pictures=rows.num_rows,
        counts=counts,
        num_failed=reasons.total(),
        errors=dict(reasons.most_common()),
        unlisted=tuple(unlisted),
        seconds=time.perf_counter() - start,
        choice=predictor.choice,
        provider=predictor.provider,
        placement=predictor.placement,
        plan=plan,
    )


def _kind_of_error(prediction: Prediction) -> str:
    """Return an error without the file's name and numbers, so that there are few of them."""
    message = prediction.error or ""
    _, found, reason = message.partition(f" {os.path.basename(prediction.name)}: ")  # noqa: PTH119
    return re.sub(r"\d[\d,.]*", "N", reason if found else message)


def _count(portions: Iterator[Portion], *, seconds: float) -> tuple[int | None, Iterator[Portion]]:
    """Count the pictures by listing ahead, for so long; None where that is not enough.

    The first portion is always read, so that finding nothing is an error at once. What is listed
    is kept, as names only, and returned with the rest: a second time would take as long again.
    """
    ahead = [next(portions)]
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        portion = next(portions, None)
        if portion is None:
            return sum(portion.num_pictures for portion in ahead), iter(ahead)
        ahead.append(portion)
    return None, chain(ahead, portions)
