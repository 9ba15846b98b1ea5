"""Classify folders into a file: the whole job, and what there is to say about it."""

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from tltools.card import Card
from tltools.classify.formats import CsvFormat
from tltools.classify.pictures import Portion, is_slow, list_portions
from tltools.classify.pipeline import UNCERTAIN, RowMaker, Rows, check_min_confidence
from tltools.classify.resume import Job, JobRecord, Kept, Part, read_back, refusal
from tltools.classify.shards import Listing, Shard
from tltools.classify.writers import STDOUT, Output, check_output, row_encoder, row_format
from tltools.data.image_ref import ImageRef
from tltools.data.location import Location, Url
from tltools.errors import ConfigError, DataError, TltoolsError
from tltools.processes import Launcher
from tltools.progress import SILENT, Progress
from tltools.runtime import (
    Device,
    DeviceChoice,
    Plan,
    Predictor,
    default_threads,
    load_predictor,
    open_model,
    run_pictures,
)
from tltools.runtime.driver import num_gpus
from tltools.runtime.pipeline import check_positive, may_fuse, open_in_worker
from tltools.runtime.predictor import Layout

if TYPE_CHECKING:
    from tltools.classify.ledger import Ledger
    from tltools.classify.uploads import Destination

COUNTING_S = 0.5
"""Longest time spent on listing further folders beforehand, for the progress bar's total."""


@dataclass(frozen=True)
class Summary:
    """What a job did."""

    model: Path
    card: Card
    output: Location | None
    """None: standard output."""
    num_pictures: int
    """Rows of the output: `sum(counts.values()) + num_uncertain + num_failed`."""
    num_kept: int
    """Those of them that an earlier job had left, which this one went on with."""
    num_known: int | None
    """Pictures whose bytes the ledger knew; None without one. Up to a batch of `num_kept` may be
    among them."""
    counts: dict[str, int]
    """Pictures by label, in the order of the card's classes."""
    num_uncertain: int
    """Pictures labelled `UNCERTAIN`."""
    num_failed: int
    errors: dict[str, int]
    """Pictures that could not be read, by reason, the most frequent first; digits are `N`."""
    unlisted: tuple[str, ...]
    """Why a folder could not be listed, or the rest of an archive, for each that was left out; its
    pictures have no rows."""
    seconds: float
    """From the first picture to the finished file; opening the model is not in it."""
    choice: DeviceChoice
    provider: str
    placement: dict[str, int]
    """Number of the model's nodes by execution provider."""
    plan: Plan
    layout: Layout = "nchw"
    """Of the tensors on CUDA, where it is chosen by measuring."""
    tf32: bool = False
    """Whether fp32 products were rounded to TF32."""

    @property
    def pictures_per_s(self) -> float:
        """Pictures a second, from the first to the finished file."""
        return (self.num_pictures - self.num_kept) / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return what a program wants to know, for JSON."""
        return {
            "model": str(self.model),
            "output": None if self.output is None else str(self.output),
            "num_pictures": self.num_pictures,
            "num_kept": self.num_kept,
            "num_known": self.num_known,
            "counts": self.counts,
            "num_uncertain": self.num_uncertain,
            "num_failed": self.num_failed,
            "errors": self.errors,
            "unlisted": self.unlisted,
            "seconds": self.seconds,
            "pictures_per_s": self.pictures_per_s,
            "device": self.choice.device,
            "provider": self.provider,
            "nodes": self.placement,
            "plan": self.plan,
            "layout": self.layout,
            "tf32": self.tf32,
        }


def run_job(
    model: Path,
    inputs: Sequence[Location],
    output: Location,
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    tf32: bool = False,
    overwrite: bool = False,
    spreadsheet: bool = False,
    errors_to: Path | None = None,
    min_confidence: float | None = None,
    ledger_dir: Path | None = None,
    shard: Shard | None = None,
    progress: Progress = SILENT,
    picture_timeout_s: float = 30.0,
    launcher: Launcher | None = None,
) -> Summary:
    """Classify pictures and write one row for each.

    A job that was stopped, in whatever way, is gone on with where its rows end, if it is the same
    job. A folder that cannot be listed is left out with a warning.

    Args:
        model: An export.
        inputs: Folders, pictures and lists, as `list_pictures` takes them.
        output: `.csv`, `.jsonl` (`.ndjson`) or `.parquet`; `-` for CSV on standard output. For a
            URL, the rows are made in the user's cache folder and sent when they are complete.
        device: Where to run.
        batch_size: Pictures in one call of the model; None to choose.
        workers: Threads that decode; None for one per core.
        threads: Cores of one forward pass on the CPU; None to choose.
        tf32: Let CUDA round fp32 products to TF32.
        overwrite: Replace an output that exists, and what a job that was stopped left of it.
        spreadsheet: Put an apostrophe before fields that a spreadsheet takes for a formula.
        errors_to: A CSV of the pictures that could not be read, with the reasons, written at the
            end.
        min_confidence: Pictures whose largest probability is less are labelled `UNCERTAIN`; None:
            none is.
        ledger_dir: Where the model's ledger is: pictures whose bytes it has classified already are
            neither decoded nor run, and their rows are made of what it gave then; what is new is
            added to it. None: all pictures are classified.
        shard: The part of the listing to classify; a record of it is kept beside the complete
            output, for `merge_shards`. None: all of it.
        progress: Where to report.
        picture_timeout_s: Longest time for decoding a picture.
        launcher: Starts worker processes. With one, no picture is decoded in this process, so that
            none can end it; without, a small job is done here, and a large one begins here.

    Raises:
        ArtifactError: If `model` is not a usable export.
        ConfigError: If `output` exists or has an unknown suffix, or is standard output for a
            shard, a number is out of range, another job writes the same output, or what is there
            of it is not of this job.
        DataError: If an input does not exist, or there is no picture.
        DeviceError: If `device` cannot run the model.
        TltoolsError: If the output or the ledger cannot be written, or a server cannot be asked.
            The rows written so far stay in `<output>.part`, here and whenever the job is stopped.
    """
    destination = None
    if isinstance(output, Url):
        from tltools.classify.uploads import Destination  # here, because most jobs do without it

        destination = Destination(output)
        output = destination.staged
        destination.discard_sent()
    part = None if output == STDOUT else Part(output)
    # Who began a job with `overwrite` need not say it again, which would start it anew.
    replaces = overwrite or (part is not None and part.may_replace())
    check_output(output, overwrite=replaces, spreadsheet=spreadsheet)
    if destination is not None and not replaces:
        destination.check_free()
    if shard is not None and output == STDOUT:
        raise ConfigError("--shard keeps a record beside its output; name a file with --output")
    check_min_confidence(min_confidence)  # once more when the classes are known
    if errors_to is not None:
        goes_on = part is not None and part.exists()
        check_errors_to(errors_to, output, overwrite=replaces or goes_on)
    unlisted: list[str] = []

    def leave_out(error: DataError) -> None:
        unlisted.append(str(error))
        progress.warn(f"left out: {error}")

    portions = list_portions(inputs, on_error=leave_out)
    total, portions = count_ahead(portions, seconds=0.0 if is_slow(inputs) else COUNTING_S)
    pictures = chain.from_iterable(portion.pictures for portion in portions)
    listing = None if shard is None else Listing(pictures, shard)
    if listing is not None:
        pictures = iter(listing)
        total = None if total is None else listing.shard.size(total)
    job = Job(
        model,
        inputs,
        batch_size=batch_size,
        spreadsheet=spreadsheet,
        min_confidence=min_confidence,
        overwrite=replaces,
        shard=shard,
        tf32=tf32,
    )
    tally = Tally(errors_to, spreadsheet=spreadsheet)
    with closing(tally), nullcontext() if part is None else closing(part):
        start = _go_on(part, job, pictures, tally, anew=overwrite)
        if start.kept is not None and start.num_rows:
            progress.say(f"Going on after {start.num_rows} rows in {start.kept.path}")
        opening = _Opening(
            model,
            device=device,
            batch_size=batch_size,
            workers=workers,
            threads=threads,
            tf32=tf32,
            num_pictures=total,
        )
        predictor, plan = opening.open_as(start.kept, launcher)
        check_min_confidence(min_confidence, predictor.card.classes)
        on_complete = None
        if part is not None:
            record = _begin(part, start.kept, partial(job.record, predictor, plan))
            on_complete = _when_complete(output, record, listing, destination, progress)
        rows = Output(
            output,
            predictor.card.classes,
            overwrite=replaces,
            spreadsheet=spreadsheet,
            opened=part,
            kept=start.kept,
            on_complete=on_complete,
        )
        known = nullcontext() if ledger_dir is None else _open_ledger(ledger_dir, job, predictor)
        with known as ledger:
            card = predictor.card
            run = partial(
                run_pictures,
                predictor,
                preprocessing=card.preprocessing,
                plan=plan,
                finish=RowMaker(
                    card.classes,
                    card.temperature,
                    min_confidence,
                    partial(row_encoder, output, card.classes, spreadsheet=spreadsheet),
                ),
                memory=ledger,
                launcher=launcher,
                timeout_s=picture_timeout_s,
                tell=progress.warn,
            )
            made = classify_missing(run, pictures, start)
            begun = time.perf_counter()
            _write_rows(rows, part, made, tally, progress, total)
    if destination is not None:
        destination.discard_sent()
        output = destination.url
    return Summary(
        model=model,
        card=predictor.card,
        output=None if output == STDOUT else output,
        num_pictures=rows.num_rows,
        num_kept=start.num_rows,
        num_known=None if ledger is None else ledger.num_known,
        counts={name: tally.counts[name] for name in predictor.card.classes},
        num_uncertain=0 if min_confidence is None else tally.counts[UNCERTAIN],
        num_failed=tally.reasons.total(),
        errors=dict(tally.reasons.most_common()),
        unlisted=tuple(unlisted),
        seconds=time.perf_counter() - begun,
        choice=predictor.choice,
        provider=predictor.provider,
        placement=predictor.placement,
        plan=plan,
        layout=getattr(predictor, "layout", "nchw"),
        tf32=tf32,
    )


class Tally:
    """What became of a job's pictures, in numbers, and the errors for `errors_to`."""

    def __init__(self, errors_to: Path | None, *, spreadsheet: bool) -> None:
        """Count from nothing."""
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._path = errors_to
        self._format = CsvFormat((), spreadsheet=spreadsheet)
        self._failed: BinaryIO | None = None if errors_to is None else _nameless_file(errors_to)
        self._write("path", "error")

    def add(self, name: str, label: str | None, error: str | None) -> None:
        """Count a picture."""
        if label is None:
            self.reasons[kind_of_error(name, error or "")] += 1
            self._write(self._format.text(name), self._format.text(error or ""))
        else:
            self.counts[label] += 1

    def add_all(self, rows: Rows) -> None:
        """Count the pictures of rows."""
        self.counts.update(label for label in rows.labels if label is not None)
        for name, error in rows.errors:
            self.add(name, None, error)

    def save(self) -> None:
        """Write the pictures that failed, completely or not at all.

        Raises:
            TltoolsError: If that cannot be done.
        """
        if self._path is None or self._failed is None:
            return
        from tltools.atomic import atomic_path

        try:
            self._failed.seek(0)
            with atomic_path(self._path) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(self._failed, file)
        except OSError as error:
            raise _cannot_write_errors(self._path, error) from error

    def close(self) -> None:
        """Let go of what was collected."""
        if self._failed is not None:
            with suppress(OSError):
                self._failed.close()

    def _write(self, *fields: str) -> None:
        if self._path is None or self._failed is None:
            return
        try:
            self._failed.write(self._format.line(fields))
        except OSError as error:
            raise _cannot_write_errors(self._path, error) from error


def _nameless_file(errors_to: Path) -> BinaryIO:
    """Open a file without a name beside `errors_to`, of which nothing is left in any case."""
    import tempfile  # here, because most jobs do without it

    try:
        errors_to.parent.mkdir(parents=True, exist_ok=True)
        return cast("BinaryIO", tempfile.TemporaryFile(dir=errors_to.parent))
    except OSError as error:
        raise _cannot_write_errors(errors_to, error) from error


def _cannot_write_errors(path: Path, error: OSError) -> TltoolsError:
    return TltoolsError(
        f"cannot write {path}: {error.strerror or error}; choose another place with --errors-to"
    )


def check_errors_to(path: Path, output: Path, *, overwrite: bool) -> None:
    """Refuse a place for the errors that must not be written."""
    if path.absolute() == output.absolute():
        raise ConfigError(f"--errors-to and --output are both {path}; name another file for one")
    if path.is_dir():
        raise ConfigError(f"--errors-to {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{path} exists; replace it with --overwrite, or write elsewhere with --errors-to"
        )


@dataclass(frozen=True)
class Start:
    """Where a job begins in its listing."""

    kept: Kept | None = None
    """The rows of an earlier job to go on after."""
    again: Sequence[ImageRef] = ()
    """Pictures that have rows and go through the model once more, so that those after them are in
    the same batch as without a stop."""

    @property
    def num_rows(self) -> int:
        """Rows that are there."""
        return 0 if self.kept is None else self.kept.num_rows


def _go_on(
    part: Part | None, job: Job, pictures: Iterator[ImageRef], tally: Tally, *, anew: bool
) -> Start:
    """Open the part that an earlier job left, if it did, and count its rows."""
    if part is None or not part.exists():
        return Start()
    part.open()
    if anew:
        part.empty()
        return Start()
    kept = read_back(part, job, partial(row_format, part.output, spreadsheet=job.spreadsheet))
    if kept is None:
        return Start()
    again: list[ImageRef] = []
    for row, picture in kept.matched(pictures):
        tally.add(picture.name, row.label, row.error)
        again.append(picture)
        if len(again) == kept.record.batch_size:
            again.clear()
    return Start(kept, again)


def _begin(part: Part, kept: Kept | None, make_record: Callable[[], JobRecord]) -> JobRecord:
    """Open the part of a job that begins, and write its record; return the record."""
    if kept is not None:
        return kept.record
    record = make_record()
    if not part.is_open:
        part.open()
        if part.num_bytes:
            raise refusal(part.path, "another job has made it in the meantime")
    part.begin(record)
    return record


def _when_complete(
    output: Path,
    record: JobRecord,
    listing: Listing | None,
    destination: "Destination | None",
    progress: Progress,
) -> Callable[[Path, int], None] | None:
    """Return what is to be done with the complete file before it gets its name, if anything is."""
    if listing is None and destination is None:
        return None

    def finish(complete: Path, num_rows: int) -> None:
        if listing is not None:
            from tltools.classify.merge import write_shard_record  # most jobs are whole

            write_shard_record(output, complete, job=record, listing=listing, num_rows=num_rows)
        if destination is not None:
            destination.send(complete, progress)

    return finish


@dataclass(frozen=True)
class _Opening:
    """How a job's model is to be opened."""

    model: Path
    _: KW_ONLY
    device: Device
    batch_size: int | None
    workers: int | None
    threads: int | None
    tf32: bool
    num_pictures: int | None
    plan: Literal["fused", "ahead"] | None = None
    layout: Layout | None = None

    def open_as(self, kept: Kept | None, launcher: Launcher | None) -> tuple[Predictor, Plan]:
        """Open the model, in the same way as for the rows that are kept."""
        if kept is None:
            return self._open(launcher)
        record = kept.record
        again = replace(self, batch_size=record.batch_size, plan=record.plan, layout=record.layout)
        predictor, plan = again._open(launcher)
        if (predictor.device, predictor.provider) != (record.device, record.provider):
            raise refusal(
                kept.path,
                f"it was begun on {record.device} ({record.provider}), and this is "
                f"{predictor.device} ({predictor.provider})",
            )
        if plan.name != record.plan:  # a measurement that comes out beyond its limit this time
            fused = record.plan == "fused"
            predictor = load_predictor(self.model, device=self.device, threads=1 if fused else None)
            plan = replace(plan, name=record.plan)
        return predictor, plan

    def _open(self, launcher: Launcher | None) -> tuple[Predictor, Plan]:
        """Open the model in a worker if workers may run it, else in this process."""
        check_positive(
            {
                "--batch-size": self.batch_size,
                "--workers": self.workers,
                "--threads": self.threads,
            }
        )
        threads = self.threads
        if launcher is not None and not self.tf32 and self._may_fuse():
            opened = open_in_worker(
                self.model,
                device=self.device,
                batch_size=self.batch_size,
                workers=self.workers,
                launcher=launcher,
                plan="fused" if threads == 1 else self.plan,
            )
            if opened is not None:
                return opened
            threads = default_threads()
        return open_model(
            self.model,
            device=self.device,
            batch_size=self.batch_size,
            workers=self.workers,
            threads=threads,
            tf32=self.tf32,
            layout=self.layout,
            num_pictures=self.num_pictures,
        )

    def _may_fuse(self) -> bool:
        """Tell whether workers may run the model, as far as that can be told without opening it."""
        on_cpu = self.device in ("cpu", "openvino") or (self.device == "auto" and not num_gpus())
        return on_cpu and may_fuse(self.model, self.threads)


def _open_ledger(folder: Path, job: Job, predictor: Predictor) -> "Ledger":
    from tltools.classify.ledger import Ledger  # here, because most jobs do without it

    classes = predictor.card.classes
    return Ledger(folder, model_sha256=job.model_sha256, num_classes=len(classes))


def _write_rows(
    rows: Output,
    part: Part | None,
    made: Generator[Rows, None, None],
    tally: Tally,
    progress: Progress,
    total: int | None,
) -> None:
    """Write the rows that are missing; say what there is if something stops that."""
    try:
        with rows:
            num_missing = None if total is None else total - rows.num_rows
            with progress.bar("classify", num_missing) as bar, closing(made):
                for some in made:
                    rows.write_encoded(some.encoded)
                    tally.add_all(some)
                    bar.advance(len(some.encoded))
            tally.save()
    finally:
        if rows.num_rows and part is not None and part.exists():  # not renamed
            progress.warn(f"stopped: {rows.num_rows} complete rows are kept in {part.path}")
            progress.say("The same command, without --overwrite, goes on from there")


def classify_missing(
    run: Callable[[Iterator[ImageRef]], Generator[Rows, None, None]],
    pictures: Iterator[ImageRef],
    start: Start,
) -> Generator[Rows, None, None]:
    """Classify the pictures that have no rows yet."""
    num_again = len(start.again)
    with closing(run(chain(start.again, pictures))) as results:
        for rows in results:
            skipped = min(num_again, len(rows.encoded))
            num_again -= skipped
            yield rows.without(skipped) if skipped else rows


def kind_of_error(name: str, error: str) -> str:
    """Return an error without the file's name and numbers, so that there are few of them."""
    _, found, reason = error.partition(f" {_last_name(name)}: ")
    return re.sub(r"\d[\d,.]*", "N", reason if found else error)


def _last_name(name: str) -> str:
    """Return a picture's name without its folders, as errors show it."""
    last = os.path.basename(name)  # noqa: PTH119 - of a million pictures, perhaps
    return last if last.isprintable() else ascii(last)


def count_ahead(
    portions: Iterator[Portion], *, seconds: float
) -> tuple[int | None, Iterator[Portion]]:
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
