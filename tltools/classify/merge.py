"""Put the outputs of shards together, with a check that nothing is missing, double or changed."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from tltools.atomic import atomic_path, write_text
from tltools.classify.formats import RowFormat
from tltools.classify.resume import JobRecord
from tltools.classify.shards import SHARD_BLOCK, Listing, Shard
from tltools.classify.writers import (
    PARQUET,
    PARQUET_ROW_GROUP,
    STDOUT,
    check_output,
    parquet_schema,
    row_format,
)
from tltools.data.location import Location
from tltools.errors import ConfigError, DataError
from tltools.progress import SILENT, Progress

if TYPE_CHECKING:
    import pyarrow

RECORD_SUFFIX = ".shard.json"
_JSON_LINES = (".jsonl", ".ndjson")
_DIFFERENCES = {
    "tltools": "was made by another version of tltools",
    "model_sha256": "was made with another model",
    "inputs": "has other inputs",
    "classes": "has other classes",
    "device": "ran on another device",
    "provider": "ran on another execution provider",
    "plan": "ran with another plan (--threads 1 chooses one for all)",
    "batch_size": "has another --batch-size",
    "spreadsheet": "differs in --spreadsheet",
    "min_confidence": "has another --min-confidence",
}
"""What a job's rows depend on, and how to say that two jobs differ in it."""


class ShardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete shard was made from, kept in `<output>.shard.json`."""

    job: JobRecord
    num_listed: int
    """Pictures of the whole listing."""
    listing_sha256: str
    """Over their names, in order."""
    num_rows: int
    num_bytes: int
    sha256: str
    """Of the output's bytes."""


@dataclass(frozen=True)
class Merged:
    """What a merge made."""

    output: Location
    num_shards: int
    num_rows: int


def shard_record_path(output: Path) -> Path:
    """Return where the record of a complete shard is."""
    return output.with_name(output.name + RECORD_SUFFIX)


def write_shard_record(
    output: Path, complete: Path, *, job: JobRecord, listing: Listing, num_rows: int
) -> None:
    """Write the record of a shard whose rows are complete, before they get their name.

    Killed in between, the job still has its part and goes on; a record without its output, or
    beside an older one, is refused by the merge.

    Args:
        output: What the shard's output will be called.
        complete: What it is called now.
        job: What its rows depend on.
        listing: Read to its end.
        num_rows: Rows of the output.

    Raises:
        TltoolsError: If it cannot be written.
    """
    with complete.open("rb") as file:
        record = ShardRecord(
            job=job,
            num_listed=listing.num_listed,
            listing_sha256=listing.sha256,
            num_rows=num_rows,
            num_bytes=os.fstat(file.fileno()).st_size,
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),
        )
    text = msgspec.json.format(msgspec.json.encode(record), indent=2)
    write_text(shard_record_path(output), text.decode() + "\n")


def merge_shards(
    shards: Sequence[Location],
    output: Location,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Merged:
    """Put all shards of a job together, in the order of the listing, as one job would have written.

    Args:
        shards: The complete outputs of all shards, in any order, each with its record beside it;
            those at URLs are fetched.
        output: Of the same format as they.
        overwrite: Replace an output that exists.
        progress: Where to report.

    Raises:
        ConfigError: If `output` exists, cannot be one, or is one of the shards.
        DataError: If a shard is missing, double, incomplete, changed, or of another job.
        TltoolsError: If the output cannot be written, or a server cannot be asked.
    """
    here = [shard for shard in shards if isinstance(shard, Path)]
    if len(here) == len(shards) and isinstance(output, Path):
        return _merge(here, output, overwrite=overwrite, progress=progress)
    from tltools.classify.uploads import Destination, fetch_shard  # here, because few need it

    destination = None if isinstance(output, Path) else Destination(output)
    if destination is not None and not overwrite:
        destination.check_free()
    with TemporaryDirectory(prefix="tltools-merge-") as folder:
        local = [
            shard if isinstance(shard, Path) else fetch_shard(shard, Path(folder) / str(index))
            for index, shard in enumerate(shards)
        ]
        place = output if isinstance(output, Path) else Path(folder) / output.name
        merged = _merge(local, place, overwrite=overwrite, progress=progress)
        if destination is not None:
            destination.send(place, progress)
    return replace(merged, output=output)


def _merge(shards: Sequence[Path], output: Path, *, overwrite: bool, progress: Progress) -> Merged:
    if output == STDOUT:
        raise ConfigError("tltools merge writes a file or nothing; name one with --output")
    check_output(output, overwrite=overwrite)
    if not shards:
        raise ConfigError("there is nothing to merge; name the outputs of all shards")
    if output.resolve() in {path.resolve() for path in shards}:
        raise ConfigError(f"{output} is one of the shards; name another file with --output")
    found = _ordered([_Part(path) for path in shards])
    first = found[0]
    if _kind(output) != _kind(first.path):
        raise ConfigError(
            f"--output {output} is not of the shards' format ({first.path.suffix}); end it in that"
        )
    for part in found:
        part.check()
    num_rows = sum(part.record.num_rows for part in found)
    with (
        atomic_path(output) as temporary,
        progress.bar("merge", num_rows, "rows") as bar,
    ):
        merge = _merge_parquet if _kind(output) == PARQUET else _merge_lines
        for amount in merge(found, temporary):
            bar.advance(amount)
        for part in found:
            part.check_unchanged()
    return Merged(output, len(found), num_rows)


class _Part:
    """A shard that is to be merged."""

    def __init__(self, path: Path) -> None:
        """Read the record.

        Raises:
            DataError: If there is none that can be read.
        """
        self.path = path
        self.record = _read_record(path)
        shard = self.record.job.shard
        if shard is None:
            raise DataError(
                f"{shard_record_path(path)} is not the record of a shard; make {path} again with "
                "--shard K/N --overwrite"
            )
        self.shard: Shard = shard
        self._state: tuple[int, int] | None = None

    def check(self) -> None:
        """Look whether the file is the one that the job left.

        Raises:
            DataError: If it is not.
        """
        if self.record.num_rows != self.shard.size(self.record.num_listed):
            raise DataError(
                f"{self.path} has {self.record.num_rows:,} rows by its record, where shard "
                f"{self.shard} of {self.record.num_listed:,} pictures has "
                f"{self.shard.size(self.record.num_listed):,}; {self._again}"
            )
        with self.open() as file:
            info = os.fstat(file.fileno())
            self._state = (info.st_size, info.st_mtime_ns)
            same = info.st_size == self.record.num_bytes and (
                hashlib.file_digest(file, "sha256").hexdigest() == self.record.sha256
            )
        if not same:
            raise self.changed()

    def check_unchanged(self) -> None:
        """Look whether the file is as it was when it was checked.

        Raises:
            DataError: If it is not.
        """
        with self.open() as file:
            info = os.fstat(file.fileno())
        if self._state != (info.st_size, info.st_mtime_ns):
            raise self.changed()

    def open(self) -> BufferedReader:
        """Open the file.

        Raises:
            DataError: If that cannot be done.
        """
        try:
            return self.path.open("rb")
        except OSError as error:
            raise DataError(
                f"cannot read {self.path}: {error.strerror or error}; {self._again}"
            ) from error

    def changed(self) -> DataError:
        """Return the error of a file that is not the one that the job left."""
        return DataError(f"{self.path} has changed since its shard was complete; {self._again}")

    @property
    def _again(self) -> str:
        return f"make it again with --shard {self.shard} --overwrite"


def _read_record(path: Path) -> ShardRecord:
    if path.name.endswith(RECORD_SUFFIX):
        raise DataError(f"{path} is the record of a shard; name the shard itself")
    record = shard_record_path(path)
    unfinished = path.with_name(path.name + ".part")
    try:
        content = record.read_bytes()
    except FileNotFoundError:
        if path.exists():
            reason = f"has no record ({record.name}) beside it: it is not the output of a shard, "
            raise DataError(f"{path} {reason}or was moved without it") from None
        if unfinished.exists():
            raise DataError(f"{path} is not complete; give its command again") from None
        raise DataError(f"{path} does not exist; name the outputs of all shards") from None
    except OSError as error:
        raise DataError(f"cannot read {record}: {error.strerror or error}; mend that") from error
    if not path.exists():
        what = "is not complete" if unfinished.exists() else "is missing, only its record is there"
        raise DataError(f"{path} {what}; give its command again")
    try:
        return msgspec.json.decode(content, type=ShardRecord)
    except msgspec.DecodeError as error:
        raise DataError(
            f"{record} is not the record of a shard ({error}); make {path} again with --shard K/N "
            "--overwrite"
        ) from error


def _ordered(parts: Sequence[_Part]) -> list[_Part]:
    """Return the shards by index, each once and all of one job.

    Raises:
        DataError: If they are not that.
    """
    first = parts[0]
    by_index: dict[int, _Part] = {}
    for part in parts:
        _refuse_others(first, part)
        if part.shard.index in by_index:
            raise DataError(
                f"{by_index[part.shard.index].path} and {part.path} are both shard {part.shard}; "
                "leave one of them out"
            )
        by_index[part.shard.index] = part
    count = first.shard.count
    if len(by_index) < count:
        missing = next(index for index in range(1, count + 1) if index not in by_index)
        others = count - len(by_index) - 1
        more = f" (and {others} more)" if others else ""
        raise DataError(
            f"shard {missing}/{count}{more} is missing beside {first.path}; name it too, or make "
            f"it with --shard {missing}/{count}"
        )
    return [by_index[index] for index in range(1, count + 1)]


def _refuse_others(first: _Part, part: _Part) -> None:
    """Refuse a shard of another job than the first one's."""
    reason = None
    if part.shard.count != first.shard.count:
        reason = f"is shard {part.shard}, and {first.path} is shard {first.shard}"
    elif _kind(part.path) != _kind(first.path):
        reason = f"is of another format than {first.path}"
    else:
        for field, difference in _DIFFERENCES.items():
            if getattr(part.record.job, field) != getattr(first.record.job, field):
                reason = f"{difference} than {first.path}"
                reason = reason.replace("differs in --spreadsheet than", "has --spreadsheet unlike")
                break
        else:
            listed = (part.record.num_listed, part.record.listing_sha256)
            if listed != (first.record.num_listed, first.record.listing_sha256):
                reason = (
                    f"saw other pictures than {first.path} ({listed[0]:,} and "
                    f"{first.record.num_listed:,}): some have come, gone or changed their names"
                )
    if reason is not None:
        raise DataError(f"{part.path} {reason}; make all shards with the same command, but for K")


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return _JSON_LINES[0] if suffix in _JSON_LINES else suffix


def _blocks(parts: Sequence[_Part]) -> Iterator[tuple[_Part, int]]:
    """Yield whose rows come next, and how many of them."""
    num_listed = parts[0].record.num_listed
    for start in range(0, num_listed, SHARD_BLOCK):
        part = parts[start // SHARD_BLOCK % len(parts)]
        yield part, min(SHARD_BLOCK, num_listed - start)


def _merge_lines(parts: Sequence[_Part], output: Path) -> Iterator[int]:
    """Write the rows of CSV or JSON Lines as they are; yield how many, each time.

    A file is opened for each block, so that there may be more shards than files can be open at
    once; a block fits into what one read fetches anyway.
    """
    job = parts[0].record.job
    rows = row_format(output, job.classes, spreadsheet=job.spreadsheet)
    positions = {part.shard.index: _after_header(part, rows) for part in parts}
    with output.open("wb") as merged:
        merged.write(rows.header)
        for part, num_rows in _blocks(parts):
            with part.open() as file:
                file.seek(positions[part.shard.index])
                records = list(islice(rows.records(file), num_rows))
            if len(records) < num_rows:
                raise part.changed()
            block = b"".join(records)
            positions[part.shard.index] += len(block)
            merged.write(block)
            yield num_rows
    for part in parts:
        if positions[part.shard.index] != part.record.num_bytes:
            raise part.changed()


def _after_header(part: _Part, rows: RowFormat) -> int:
    with part.open() as file:
        if file.read(len(rows.header)) != rows.header:
            raise part.changed()
    return len(rows.header)


def _merge_parquet(parts: Sequence[_Part], output: Path) -> Iterator[int]:
    """Write the rows of Parquet files; yield how many, each time.

    Memory: a row group of each shard, and one of the output.
    """
    import pyarrow
    import pyarrow.parquet

    schema = parquet_schema(parts[0].record.job.classes)
    sources = {part.shard.index: _ParquetRows(part, schema) for part in parts}
    waiting: list[pyarrow.Table] = []
    num_waiting = 0
    with pyarrow.parquet.ParquetWriter(output, schema) as writer:
        for part, num_rows in _blocks(parts):
            waiting.extend(sources[part.shard.index].take(num_rows))
            num_waiting += num_rows
            if num_waiting >= PARQUET_ROW_GROUP:  # blocks divide it
                writer.write_table(pyarrow.concat_tables(waiting).combine_chunks())
                yield num_waiting
                waiting.clear()
                num_waiting = 0
        if waiting:
            writer.write_table(pyarrow.concat_tables(waiting).combine_chunks())
            yield num_waiting
    for source in sources.values():
        source.check_end()


class _ParquetRows:
    """The rows of a Parquet file from its beginning to its end, a group of them in memory."""

    def __init__(self, part: _Part, schema: "pyarrow.Schema") -> None:
        """Take a shard whose file has these columns."""
        self._part = part
        self._schema = schema
        self._group: pyarrow.Table = schema.empty_table()
        self._next_group = 0
        self._start = 0

    def take(self, num_rows: int) -> "Iterator[pyarrow.Table]":
        """Yield tables that have the next rows.

        Raises:
            DataError: If there are not so many.
        """
        while num_rows:
            if self._start == len(self._group) and not self._read_group():
                raise self._part.changed()
            some = self._group.slice(self._start, num_rows)
            self._start += len(some)
            num_rows -= len(some)
            yield some

    def check_end(self) -> None:
        """Look whether all rows were taken.

        Raises:
            DataError: If there are more.
        """
        if self._start < len(self._group) or self._read_group():
            raise self._part.changed()

    def _read_group(self) -> bool:
        """Read the next group; tell whether there was one."""
        import pyarrow
        import pyarrow.parquet

        try:
            with self._part.open() as file, pyarrow.parquet.ParquetFile(file) as content:
                if self._next_group == content.num_row_groups:
                    return False
                self._group = content.read_row_group(self._next_group).cast(self._schema)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise self._part.changed() from error
        self._next_group += 1
        self._start = 0
        return True
