"""Classify on a cluster: the same job on Ray Data, its rows a data set in parts.

A task beside the driver lists the pictures and hands them out in parts. A pool of actors, each with
one predictor, classifies a part at a time as the local engine does and writes its rows completely
or not at all, so that a part is there or is missing. The driver sees to it that the parts are those
of one listing, and marks the data set when it has all of them.
"""

import hashlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tltools.card import Card
from tltools.classify.formats import CsvFormat, Row, column_names, json_row, utf8_text
from tltools.classify.job import (
    COUNTING_S,
    Summary,
    Tally,
    check_errors_to,
    count_ahead,
)
from tltools.classify.pictures import STDIN, list_portions
from tltools.classify.pipeline import UNCERTAIN, Prediction, check_min_confidence, classify
from tltools.classify.resume import (
    REMEDY,
    Job,
    JobRecord,
    Part,
    cannot_write,
    record_path,
    refusal,
)
from tltools.classify.writers import STDOUT, SUFFIXES, row_format, write_parquet
from tltools.data.image_ref import ImageRef, RemoteObject
from tltools.data.location import Location, Url, is_url
from tltools.data.remote_images import Remotes
from tltools.data.suffixes import is_archive_name
from tltools.errors import ArtifactError, ConfigError, DataError, TltoolsError
from tltools.progress import SILENT, Progress
from tltools.runtime import Device, DeviceChoice, Plan, load_predictor, open_model, read_card
from tltools.runtime.cluster import (
    Failure,
    Pool,
    check_digest,
    check_version,
    choose_pool,
    cluster,
    failure_here,
    from_failure,
    import_ray,
    run_actors,
    table_values,
    value_table,
)
from tltools.runtime.pipeline import AHEAD_BATCH, check_positive
from tltools.runtime.workers import MAX_STALLS, default_launcher

if TYPE_CHECKING:
    import pyarrow

PartFormat = Literal["parquet", "csv"]

FAST_PART = 4096
"""Pictures of a part where the model is fast, or there is a GPU: seconds of work, beside which the
tenths of a second that Ray takes for each part are little."""
SLOW_PART = 256
"""Pictures of a part where it is slow: about half a minute's work for a few cores."""
REPORTS = 4
"""How often an actor says how far it is with a part."""
MAX_DEATHS = MAX_STALLS + 1
"""Workers that a part may cost without a picture to blame; then it is not the pictures."""
MARK = "_SUCCESS"
"""The file that says that a data set is complete, and what it was made of."""
ATTEMPTS = ".attempts"
"""A folder in an unfinished data set: how often each part in work was begun, as a file's size."""
_PART_NAME = re.compile(r"part-(\d{6,})\.(parquet|csv)")
_OWN_NAMES = re.compile(
    rf"{_PART_NAME.pattern}|{MARK}(\.part(\.json(\.new)?)?)?|{re.escape(ATTEMPTS)}|\.part-.*\.tmp.*"
)


class PartsRecord(JobRecord, frozen=True, kw_only=True):
    """What the rows of a data set in parts depend on."""

    part_size: int
    """Pictures of each part but the last."""
    part_format: PartFormat


class Manifest(PartsRecord, frozen=True, kw_only=True):
    """The content of a complete data set's mark."""

    num_parts: int
    num_rows: int
    num_failed: int


class Task(msgspec.Struct, frozen=True):
    """Pictures that make a part, from the listing to an actor."""

    number: int
    """Of the part, from 0."""
    pictures: tuple[tuple[bytes, bytes], ...] = ()
    """Absolute path, or URL, and name of each. Without pictures: the listing has ended."""
    before: bytes = b""
    """Digest of the names of all pictures before these."""
    after: bytes = b""
    """The same with these."""
    unlisted: tuple[str, ...] = ()
    """Why folders before these pictures were left out."""
    failure: Failure | None = None
    """Where the listing cannot go on."""


class Report(msgspec.Struct, frozen=True):
    """What an actor, or the driver of kept parts, says of a part."""

    number: int
    num_pictures: int = 0
    """Pictures that are done since the report before."""
    is_done: bool = False
    """Whether the part is written. What follows is of the whole of it."""
    is_end: bool = False
    """Whether it is no part, but the end of the listing."""
    before: bytes = b""
    after: bytes = b""
    counts: dict[str, int] = {}
    """Pictures by label."""
    failures: tuple[tuple[str, str], ...] = ()
    """Name and error of the pictures that could not be read, in order."""
    unlisted: tuple[str, ...] = ()
    failure: Failure | None = None
    """As a task's: the job cannot go on."""


class Settings(msgspec.Struct, frozen=True):
    """What an actor has to know."""

    model: str
    output: str
    device: Device
    workers: int
    """Cores of an actor."""
    picture_timeout_s: float
    record: PartsRecord


def run_ray_job(
    model: Path,
    inputs: Sequence[Location],
    output: Location,
    *,
    address: str | None = None,
    device: Device = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    spreadsheet: bool = False,
    errors_to: Path | None = None,
    min_confidence: float | None = None,
    part_size: int | None = None,
    part_format: PartFormat | None = None,
    picture_timeout_s: float = 30.0,
    progress: Progress = SILENT,
) -> Summary:
    """Classify pictures on a Ray cluster and write a data set, `output/part-000000.parquet` and on.

    The parts in order are the rows of `run_job`. A job that was stopped, in whatever way, is gone
    on with: the parts that are there are skipped. All machines have to see the model, the pictures
    and the output under the same paths.

    Args:
        model: An export.
        inputs: Folders, pictures and lists, as `list_pictures` takes them; not standard input.
        output: A folder of its own.
        address: Of the cluster; None for `RAY_ADDRESS`, or else a cluster on this machine that
            ends with the job.
        device: Where the actors run the model; `auto` takes a GPU each where the cluster has GPUs.
        batch_size: Pictures in one call of the model; None to choose.
        workers: Cores of an actor; None for those of the smallest machine.
        overwrite: Remove the parts that are there, complete or not, and start anew.
        spreadsheet: As for `run_job`; for CSV.
        errors_to: As for `run_job`.
        min_confidence: As for `run_job`.
        part_size: Pictures of a part, a multiple of `batch_size`; None to choose by the model.
        part_format: Of the parts; None for Parquet, or what a stopped job has.
        picture_timeout_s: Longest time for decoding a picture.
        progress: Where to report.

    Raises:
        ArtifactError: If `model` is not a usable export, here or on another machine.
        ConfigError: If Ray is missing or a setting is not possible, another job writes the same
            output, or what is there of it is not of this job.
        DataError: If an input does not exist, or there is no picture.
        DeviceError: If `device` is a GPU and the cluster has none.
        TltoolsError: If the cluster cannot be reached, rows cannot be written, a part ends its
            workers again and again, or pictures have come or gone during the job.
    """
    output = _check_inputs(inputs, output)
    card = read_card(model)
    check_positive({"--batch-size": batch_size, "--part-size": part_size})
    check_min_confidence(min_confidence, card.classes)
    import_ray()
    job = Job(
        model,
        inputs,
        batch_size=batch_size,
        spreadsheet=spreadsheet,
        min_confidence=min_confidence,
        overwrite=overwrite,
    )
    result = _Result(Tally(errors_to, spreadsheet=spreadsheet), progress)
    parts = _Parts(output)
    with closing(result.tally), closing(parts):
        record = parts.open(job, part_size, part_format, anew=overwrite)
        part_format = part_format or (record.part_format if record else "parquet")
        if spreadsheet and part_format != "csv":
            raise ConfigError("--spreadsheet is for CSV; add --part-format csv")
        if errors_to is not None:
            check_errors_to(errors_to, output, overwrite=overwrite or record is not None)
        total, _ = count_ahead(
            list_portions(inputs, on_error=lambda _error: None), seconds=COUNTING_S
        )
        if record is not None:
            for report in parts.kept(record, inputs):
                result.add(report)
        done, num_kept = frozenset(result.parts), result.num_rows
        if done:
            progress.say(f"Going on after {num_kept} rows in {len(done)} parts in {output}")
        begun = time.perf_counter()
        with cluster(address, progress) as ray:
            pool = choose_pool(ray, device, workers)
            opened, plan = _open(model, pool, batch_size, record, output)
            if record is None:
                record = parts.begin(job.record(opened, plan), part_size, part_format)
            progress.detail(f"Ray: ready after {time.perf_counter() - begun:.1f} s")
            progress.say(f"Ray: {pool}")
            listing = {
                "inputs": inputs,
                "part_size": record.part_size,
                "done": done,
                "folder": Path.cwd(),
            }
            settings = Settings(
                model=os.path.abspath(model),  # noqa: PTH100 - links stay
                output=os.path.abspath(output),  # noqa: PTH100
                device=pool.device,
                workers=pool.num_cpus,
                picture_timeout_s=picture_timeout_s,
                record=record,
            )
            begun = time.perf_counter()
            missing = None if total is None else total - num_kept
            reports = _reports(ray, listing, settings, pool)
            _collect(reports, result, missing, progress, begun)
        parts.finish(record, result)
    return Summary(
        model=model,
        card=card,
        output=output,
        num_pictures=result.num_rows,
        num_kept=num_kept,
        num_known=None,
        counts={name: result.tally.counts[name] for name in card.classes},
        num_uncertain=0 if min_confidence is None else result.tally.counts[UNCERTAIN],
        num_failed=result.tally.reasons.total(),
        errors=dict(result.tally.reasons.most_common()),
        unlisted=tuple(result.unlisted),
        seconds=time.perf_counter() - begun,
        choice=opened.choice,
        provider=opened.provider,
        placement=opened.placement,
        plan=plan,
    )


def _check_inputs(inputs: Sequence[Location], output: Location) -> Path:
    """Refuse what this engine cannot take, before anything is done."""
    if output == STDOUT:
        raise ConfigError(
            "--engine ray writes a folder of parts, and not standard output; name one with --output"
        )
    if isinstance(output, Url):
        raise ConfigError(
            f"--engine ray writes a folder that all machines see, and --output {output} is a URL; "
            "name a folder on a shared file system"
        )
    if output.suffix.lower() in SUFFIXES:
        raise ConfigError(
            f"--engine ray writes a folder of parts, and --output {output} is named as a file; "
            f"choose --output {output.with_suffix('')}, and --part-format for parquet or csv"
        )
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; --engine ray writes a folder, choose another name")
    if STDIN in inputs:
        raise ConfigError(
            "--engine ray cannot list standard input, which other machines do not have; write the "
            "list to a .txt file and name that"
        )
    for source in inputs:
        if is_archive_name(source.name) and (isinstance(source, Url) or source.is_file()):
            raise ConfigError(
                f"--engine ray does not read archives yet, and {source} is one; unpack it, or use "
                "--engine local"
            )
    return output


# ------------------------------------------------------------------------------------- the parts


class _Parts:
    """The data set: its folder, which is locked while a job writes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = Part(folder / MARK)
        self._made = not folder.exists()

    def open(
        self, job: Job, part_size: int | None, part_format: str | None, *, anew: bool
    ) -> PartsRecord | None:
        """Lock the folder; return the record of a job to go on with, None to begin.

        Raises:
            ConfigError: If the folder is complete, not ours, or of another job.
        """
        names = [] if self._made else sorted(path.name for path in self._folder.iterdir())
        others = [name for name in names if not _OWN_NAMES.fullmatch(name)]
        if others:
            raise ConfigError(
                f"{self._folder} holds other files ({others[0]!r}); name a folder of its own with "
                "--output"
            )
        if MARK in names and not anew:
            raise ConfigError(
                f"{self._folder} exists and is complete; replace it with --overwrite, or write "
                "elsewhere with --output"
            )
        self._mark.open()
        if anew:
            self._remove(names)
            return None
        if not self._mark.num_bytes:
            if any(_PART_NAME.fullmatch(name) for name in names):
                raise self._without_record()
            return None
        try:
            data = record_path(self._folder / MARK).read_bytes()
            record = msgspec.json.decode(data, type=PartsRecord)
        except (OSError, msgspec.DecodeError) as error:
            raise self._without_record() from error
        reasons = list(job.differences(record))
        if part_size not in (None, record.part_size):
            reasons.append(f"it was begun with --part-size {record.part_size}")
        if part_format not in (None, record.part_format):
            reasons.append(f"it was begun with --part-format {record.part_format}")
        if reasons:
            raise refusal(self._folder, "; ".join(reasons))
        shutil.rmtree(self._folder / ATTEMPTS, ignore_errors=True)  # of the earlier job's workers
        return record

    def begin(
        self, record: JobRecord, part_size: int | None, part_format: PartFormat
    ) -> PartsRecord:
        """Write the record of a job that begins, and return it.

        Raises:
            ConfigError: If parts of that size would not be whole batches.
        """
        size, batch = part_size, record.batch_size
        if size is None:
            # Neither many calls of the model nor a long time to lose.
            fast = record.plan == "fused" or record.device != "cpu"
            size = -(-(FAST_PART if fast else SLOW_PART) // batch) * batch
        if size % batch:
            fitting = -(-size // batch) * batch
            raise ConfigError(
                f"--part-size {size} is not a multiple of the batch of {batch} pictures, which "
                f"makes the rows those of --engine local; choose --part-size {fitting}"
            )
        whole = PartsRecord(
            **msgspec.structs.asdict(record), part_size=size, part_format=part_format
        )
        self._mark.begin(whole)
        try:
            self._mark.append(b"not complete\n")
            self._mark.sync()
        except OSError as error:
            raise cannot_write(self._mark.path, error) from error
        return whole

    def kept(self, record: PartsRecord, inputs: Sequence[Location]) -> Iterator[Report]:
        """Yield reports of the parts that are there, compared with the listing.

        Raises:
            ConfigError: If they are not those of the listing.
        """
        numbers = self._numbers(record.part_format)
        portions = list_portions(inputs, on_error=lambda _error: None)
        pictures = chain.from_iterable(portion.pictures for portion in portions)
        names = row_format(
            part_path(self._folder, 0, record.part_format),
            record.classes,
            spreadsheet=record.spreadsheet,
        )
        digest = _Digest()
        for number in range(max(numbers, default=-1) + 1):
            some = list(islice(pictures, record.part_size))
            before, after = digest.add(picture.name for picture in some)
            if number not in numbers:
                continue
            path = part_path(self._folder, number, record.part_format)
            rows = _read_part(path, record)
            if [row.path for row in rows] != [names.text(picture.name) for picture in some]:
                raise refusal(
                    path,
                    "its rows are not those of the pictures that are there now: pictures have come "
                    "or gone since",
                )
            yield Report(
                number,
                len(rows),
                is_done=True,
                before=before,
                after=after,
                counts=Counter(row.label for row in rows if row.label is not None),
                failures=tuple(
                    (picture.name, row.error or "")
                    for row, picture in zip(rows, some, strict=True)
                    if row.label is None
                ),
            )

    def finish(self, record: PartsRecord, result: "_Result") -> None:
        """Mark the data set as complete."""
        manifest = Manifest(
            **msgspec.structs.asdict(record),
            num_parts=len(result.parts),
            num_rows=result.num_rows,
            num_failed=result.tally.reasons.total(),
        )
        shutil.rmtree(self._folder / ATTEMPTS, ignore_errors=True)
        try:
            for leftover in self._folder.glob(".part-*.tmp*"):  # of workers that were lost
                leftover.unlink(missing_ok=True)
            self._mark.cut(0)
            self._mark.append(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
            self._mark.finish()
        except OSError as error:
            raise cannot_write(self._mark.path, error) from error

    def close(self) -> None:
        """Release the lock; leave nothing where there is no part."""
        if not self._mark.is_open:
            return
        if not self._numbers("parquet") and not self._numbers("csv"):
            with suppress(OSError):
                self._mark.cut(0)
            shutil.rmtree(self._folder / ATTEMPTS, ignore_errors=True)
        self._mark.close()
        if self._made:
            with suppress(OSError):
                self._folder.rmdir()  # which fails where there is something in it

    def _numbers(self, part_format: str) -> set[int]:
        matches = (_PART_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return {int(match[1]) for match in matches if match and match[2] == part_format}

    def _remove(self, names: Sequence[str]) -> None:
        """Remove the parts; the mark first, so that nobody takes the rest for complete."""
        try:
            (self._folder / MARK).unlink(missing_ok=True)
            self._mark.empty()
            for name in names:
                if _PART_NAME.fullmatch(name):
                    (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        shutil.rmtree(self._folder / ATTEMPTS, ignore_errors=True)

    def _without_record(self) -> ConfigError:
        return ConfigError(
            f"{self._folder} holds parts that were not left by a job that can be gone on with: "
            f"there is no record of it ({record_path(self._folder / MARK).name}); move it, {REMEDY}"
        )


def part_path(folder: Path, number: int, part_format: PartFormat) -> Path:
    """Return where a part of a data set is."""
    return folder / f"part-{number:06d}.{part_format}"


def _write_part(
    path: Path, predictions: Sequence[Prediction], classes: Sequence[str], *, spreadsheet: bool
) -> None:
    """Write a part completely or not at all."""
    from tltools.atomic import atomic_path

    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".csv":
                rows = CsvFormat(classes, spreadsheet=spreadsheet)
                with temporary.open("wb") as file:
                    file.write(rows.header)
                    file.writelines(map(rows.encode, predictions))
            else:
                made = (json_row(prediction, classes) for prediction in predictions)
                write_parquet(temporary, made, classes)
    except OSError as error:
        raise cannot_write(path, error) from error


def _read_part(path: Path, record: PartsRecord) -> list[Row]:
    """Read the rows of a part that an earlier job left.

    Raises:
        ConfigError: If it cannot be read.
    """
    if record.part_format == "csv":
        rows = CsvFormat(record.classes, spreadsheet=record.spreadsheet)
        with path.open("rb") as file:
            if file.read(len(rows.header)) != rows.header:
                raise refusal(path, "it does not begin with the columns of its model")
            return [row for row, _ in rows.read(file)]
    import pyarrow
    import pyarrow.parquet

    try:
        # Not read_table, which would take a folder's name for a partition of its parts.
        table = pyarrow.parquet.ParquetFile(path).read()
    except (OSError, pyarrow.ArrowException) as error:
        raise refusal(path, "it is damaged") from error
    if table.column_names != column_names(record.classes):
        raise refusal(path, "it does not have the columns of its model")
    columns = (table.column(name).to_pylist() for name in Row._fields)
    return [Row(*values) for values in zip(*columns, strict=True)]


class _Digest:
    """A digest of the names of pictures, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, names: Iterable[str]) -> tuple[bytes, bytes]:
        """Take in more names; return the digests before and after that."""
        before = self._hash.digest()
        for name in names:
            self._hash.update(os.fsencode(name) + b"\0")
        return before, self._hash.digest()


class _Result:
    """What is known of a job's parts, which become complete in any order."""

    def __init__(self, tally: Tally, progress: Progress) -> None:
        self.tally = tally
        self.parts: set[int] = set()
        self.num_rows = 0
        self.unlisted: list[str] = []
        self._progress = progress
        self._waiting: dict[int, Report] = {}
        """Those that are complete and come after one that is not, by number."""
        self._next = 0
        self._digest = _Digest().add(())[1]
        self._end: Report | None = None

    def check_whole(self) -> None:
        """See that the parts that are there are all that the listing has.

        Raises:
            TltoolsError: If not.
        """
        end = self._end
        if end is None or (end.number, end.before) != (self._next, self._digest):
            raise TltoolsError(
                "Ray has lost some parts, or pictures have come or gone during the job; the same "
                "command goes on with the parts that are there, or says why not"
            )

    def add(self, report: Report) -> None:
        """Take in what is reported.

        Raises:
            TltoolsError: If it is a failure, or the parts are not those of one listing.
        """
        if report.failure is not None:
            raise from_failure(report.failure)
        for reason in report.unlisted:
            if reason not in self.unlisted:  # a listing that begins again says it again
                self.unlisted.append(reason)
                self._progress.warn(f"left out: {reason}")
        if report.is_end:
            self._end = report
            return
        if not report.is_done or report.number in self.parts:
            return
        self.parts.add(report.number)
        self.num_rows += sum(report.counts.values()) + len(report.failures)
        self._waiting[report.number] = report
        while (first := self._waiting.pop(self._next, None)) is not None:
            if first.before != self._digest:
                raise TltoolsError(
                    f"part {self._next} is not of the same listing as the parts before: pictures "
                    "have come or gone during the job; run it again with --overwrite"
                )
            self._digest = first.after
            self._next += 1
            self.tally.counts.update(first.counts)
            for name, error in first.failures:
                self.tally.add(name, None, error)


# ----------------------------------------------------------------------------------- the cluster


@dataclass
class _Opened:
    """What there is to say of the model on the actors' device."""

    card: Card
    device: str
    provider: str
    choice: DeviceChoice
    placement: dict[str, int]


def _open(
    model: Path, pool: Pool, batch_size: int | None, record: PartsRecord | None, output: Path
) -> tuple[_Opened, Plan]:
    """Choose the plan by opening the model here, or take that of the rows that are kept."""
    size = batch_size if record is None else record.batch_size
    if pool.num_gpus:  # which this machine need not have
        plan = Plan("ahead", pool.num_cpus, size or AHEAD_BATCH)
        opened = _Opened(read_card(model), pool.choice.device, pool.device, pool.choice, {})
    else:
        predictor, plan = open_model(
            model, device=pool.device, batch_size=size, workers=pool.num_cpus
        )
        placed, provider = predictor.placement, predictor.provider
        opened = _Opened(predictor.card, predictor.device, provider, pool.choice, placed)
    if record is None:
        return opened, plan
    if (opened.device, opened.provider) != (record.device, record.provider):
        raise refusal(
            output,
            f"it was begun on {record.device} ({record.provider}), and this is {opened.device} "
            f"({opened.provider})",
        )
    return opened, replace(plan, name=record.plan)


def _reports(
    ray: Any, listing: dict[str, Any], settings: Settings, pool: Pool
) -> Generator[Report, None, None]:
    """Run the job on the cluster; yield what its actors report, as it comes."""
    values = run_actors(
        ray,
        pool,
        Classifier,
        msgspec.msgpack.encode(settings),
        tasks=list_parts,
        tasks_options=listing,
        remedy="the same command goes on from there",
    )
    with closing(values):
        for value in values:
            yield msgspec.msgpack.decode(value, type=Report)


def _collect(
    reports: Generator[Report, None, None],
    result: _Result,
    total: int | None,
    progress: Progress,
    begun: float,
) -> None:
    """Take in what the actors report; say what there is if something stops that."""
    first = True
    try:
        with progress.bar("classify", total) as bar, closing(reports):
            for report in reports:
                if first:
                    waited = time.perf_counter() - begun
                    progress.detail(f"Ray: first pictures after {waited:.1f} s")
                    first = False
                bar.advance(report.num_pictures)
                result.add(report)
            result.check_whole()
            result.tally.save()
    except BaseException:
        if result.parts:
            progress.warn(f"stopped: {result.num_rows} rows in {len(result.parts)} parts are kept")
            progress.say("The same command, without --overwrite, goes on from there")
        raise


# ------------------------------------------------------------------------- what runs on machines


def list_parts(
    _start: object,
    *,
    inputs: Sequence[Location],
    part_size: int,
    done: frozenset[int],
    folder: Path,
) -> "Iterator[pyarrow.Table]":
    """List pictures, in a task on the driver's machine, and hand them out in parts.

    Ray takes the next part when there is room for it, and calls this again, from the first part,
    if the process is lost.

    Args:
        inputs: The job's.
        part_size: Pictures of a part.
        done: Numbers of the parts that are there.
        folder: The driver's working folder, to which `inputs` are relative.

    Yields:
        A table with one row, `value`: a `Task` as MessagePack.
    """
    os.chdir(folder)
    for task in _tasks(inputs, part_size, done):
        yield value_table(msgspec.msgpack.encode(task))


def _tasks(inputs: Sequence[Location], part_size: int, done: frozenset[int]) -> Iterator[Task]:
    unlisted: list[str] = []
    digest = _Digest()
    number = 0
    try:
        portions = list_portions(inputs, on_error=lambda error: unlisted.append(str(error)))
        pictures = chain.from_iterable(portion.pictures for portion in portions)
        while some := list(islice(pictures, part_size)):
            before, after = digest.add(picture.name for picture in some)
            if number not in done:
                paths = ((_place(one), os.fsencode(one.name)) for one in some)
                yield Task(number, tuple(paths), before, after, tuple(unlisted))
                unlisted.clear()
            number += 1
        before, after = digest.add(())
        yield Task(number, (), before, after, tuple(unlisted))
    except TltoolsError as error:
        yield Task(number, failure=(type(error).__name__, str(error)))


def _place(picture: ImageRef) -> bytes:
    """Return where a picture is, for every machine."""
    if isinstance(picture.place, str):
        return os.fsencode(os.path.abspath(picture.place))  # noqa: PTH100 - links stay
    # And no member of an archive: those were refused.
    assert isinstance(picture.place, RemoteObject)
    assert picture.place.url is not None
    return os.fsencode(picture.place.url.text)


class Classifier:
    """An actor: one predictor, which classifies a part at a time."""

    def __init__(self, settings: bytes) -> None:
        """Open the model; what is wrong with that is reported with the first part."""
        self._settings = msgspec.msgpack.decode(settings, type=Settings)
        self._problem: Failure | None = None
        self._launcher = default_launcher()
        try:
            self._open()
        except TltoolsError as error:
            self._problem = failure_here(error)

    def _open(self) -> None:
        settings, record = self._settings, self._settings.record
        check_version(record.tltools)
        model = Path(settings.model)
        inputs = [Path(place) for place in record.inputs if not is_url(place)]
        for path in (model, *inputs, Path(settings.output)):
            if not path.exists():
                kind = ArtifactError if path == model else DataError
                raise kind(
                    f"{path} is not there; all machines of the cluster have to see the model, the "
                    "pictures and the output under the same paths, on a shared file system"
                )
        check_digest(model, record.model_sha256)
        fused = record.plan == "fused"
        self._predictor = load_predictor(
            model, device=settings.device, threads=1 if fused else settings.workers
        )
        self._plan = Plan(record.plan, settings.workers, record.batch_size)
        self._folder = Path(settings.output)
        self._remotes = Remotes()

    def close(self) -> None:
        """End the worker processes; an actor's end does it too."""
        self._launcher.close()

    def __call__(self, table: "pyarrow.Table") -> "Iterator[pyarrow.Table]":
        """Classify parts, and write them.

        Args:
            table: A column `value`: a `Task` as MessagePack in each row.

        Yields:
            A table with one row, `value`: a `Report` as MessagePack. As many for a part when it is
            done again, after its worker was lost, as the first time: Ray counts on that.
        """
        for value in table_values(table):
            task = msgspec.msgpack.decode(value, type=Task)
            for report in self._run(task):
                yield value_table(msgspec.msgpack.encode(report))

    def _run(self, task: Task) -> Iterator[Report]:
        failure = task.failure or self._problem
        if failure is None and not task.pictures:
            yield Report(
                task.number,
                is_end=True,
                before=task.before,
                after=task.after,
                unlisted=task.unlisted,
            )
            return
        num_reports = 0
        if failure is None:
            try:
                for report in self._classify(task):
                    yield report
                    num_reports += 1
            except TltoolsError as error:
                failure = failure_here(error)
        while failure is not None and num_reports <= REPORTS:
            yield Report(task.number, failure=failure)
            num_reports += 1

    def _classify(self, task: Task) -> Iterator[Report]:
        """Classify a part; yield a report `REPORTS` times on the way and one at the end."""
        pictures = [
            self._remotes.image(os.fsdecode(name), os.fsdecode(place))
            for place, name in task.pictures
        ]
        attempts = self._folder / ATTEMPTS / f"{task.number:06d}"
        _count_attempt(task.number, attempts)
        stops = [len(pictures) * step // REPORTS for step in range(REPORTS + 1)]
        predictions = classify(
            self._predictor,
            pictures,
            plan=self._plan,
            min_confidence=self._settings.record.min_confidence,
            launcher=self._launcher,
            timeout_s=self._settings.picture_timeout_s,
        )
        made: list[Prediction] = []
        with closing(predictions):
            for start, stop in pairwise(stops):
                made.extend(islice(predictions, stop - start))
                yield Report(task.number, stop - start)
        record = self._settings.record
        path = part_path(self._folder, task.number, record.part_format)
        _write_part(path, made, record.classes, spreadsheet=record.spreadsheet)
        with suppress(OSError):
            attempts.unlink()
        yield Report(
            task.number,
            is_done=True,
            before=task.before,
            after=task.after,
            counts=Counter(one.label for one in made if one.label is not None),
            failures=tuple(
                (utf8_text(one.name), utf8_text(one.error or ""))
                for one in made
                if one.label is None
            ),
            unlisted=task.unlisted,
        )


def _count_attempt(number: int, attempts: Path) -> None:
    """Count an attempt at a part; give up where too many workers have been lost by it.

    Pictures that end a decoder do not end a worker, so that it is something else.
    """
    try:
        attempts.parent.mkdir(exist_ok=True)
        with attempts.open("ab") as file:
            file.write(b"x")
        num_lost = attempts.stat().st_size - 1
    except OSError as error:
        raise cannot_write(attempts, error) from error
    if num_lost > MAX_DEATHS:
        raise TltoolsError(
            f"part {number} has ended {num_lost} workers, and no picture of it does that: the "
            "model or the machines are at fault; try --workers 1, another --device or another "
            "export"
        )
