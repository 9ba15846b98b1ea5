"""Merge the outputs of shards; reject missing, duplicate or changed ones."""

import filecmp
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from tempfile import gettempdir

import msgspec

from tltools.atomic import atomic_path, temporary_folder, temporary_path
from tltools.classify.identity import shard_difference
from tltools.classify.output_formats import STDOUT, output_format
from tltools.classify.shard_record import (
    RECORD_SUFFIX,
    ShardRecord,
    shard_record_path,
)
from tltools.classify.shards import SHARD_BLOCK, Shard
from tltools.classify.unfinished import MAX_RECORD_BYTES, exists_already, unfinished_path
from tltools.classify.writer import check_output
from tltools.data.location import Location
from tltools.errors import ConfigError, DataError, cause_of
from tltools.progress import SILENT, Progress
from tltools.regular import open_regular, read_regular
from tltools.wording import similar_paths


@dataclass(frozen=True)
class Merged:
    """The result of a merge."""

    output: Location
    num_shards: int
    num_rows: int
    was_there: bool = False
    """Whether the output was there and equal: an earlier merge was killed after it, or repeated."""


def merge_shards(
    shards: Sequence[Location],
    output: Location,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Merged:
    """Merge all shards of a job in listing order, into the file that a single job would write.

    Args:
        shards: The complete outputs of all shards, in any order, each with its record beside it;
            those at URLs are downloaded.
        output: File or URL to write, in the format of the shards.
        overwrite: Replace an existing output; one that is equal is kept in any case.
        progress: Where to report progress.

    Raises:
        ConfigError: If `output` exists, is not a valid output, or is one of the shards.
        DataError: If a shard is missing, duplicate, incomplete, changed, or from another job.
        TltoolsError: If the output cannot be written, or a server cannot be reached.
    """
    here = [shard for shard in shards if isinstance(shard, Path)]
    if len(here) == len(shards) and isinstance(output, Path):
        return _merge(here, output, overwrite=overwrite, progress=progress)
    from tltools.classify.uploads import Destination, fetch_shard  # here, because few need it

    destination = None if isinstance(output, Path) else Destination(output)
    if destination is not None and not overwrite:
        destination.check_free()
    with temporary_folder(Path(gettempdir())) as folder:
        local = [
            shard if isinstance(shard, Path) else fetch_shard(shard, folder / str(index))
            for index, shard in enumerate(shards)
        ]
        place = output if isinstance(output, Path) else folder / output.name
        merged = _merge(local, place, overwrite=overwrite, progress=progress)
        if destination is not None:
            destination.send(place, progress)
    return replace(merged, output=output)


def _merge(shards: Sequence[Path], output: Path, *, overwrite: bool, progress: Progress) -> Merged:
    if output == STDOUT:
        raise ConfigError("a merge cannot write to standard output; name a file with `output=`")
    is_there = output.is_file() and not overwrite
    check_output(output, overwrite=overwrite or is_there)
    if not shards:
        raise ConfigError("no shards to merge; name the outputs of all shards")
    read = [_ShardFile(path) for path in shards]  # first: another output makes no shards of them
    if output.resolve() in {path.resolve() for path in shards}:
        raise ConfigError(f"{output} is one of the shards; choose another file with `output=`")
    try:
        return _write(_ordered(read), output, keep=is_there, progress=progress)
    except DataError:
        if is_there:  # an output that is not from these shards
            check_output(output, overwrite=False)
        raise


def _write(
    found: Sequence["_ShardFile"], output: Path, *, keep: bool, progress: Progress
) -> Merged:
    """Merge shards in the order of their indices.

    Args:
        found: All shards.
        output: File to write.
        keep: Whether there is an output, which must be equal: a merge was killed after it.
        progress: Where to report progress.
    """
    first = found[0]
    form = output_format(output)
    if form is not output_format(first.path):
        raise ConfigError(
            f"`output={output}` does not have the format of the shards; choose a name that ends in "
            f"{first.path.suffix}"
        )
    for shard in found:
        shard.check()
    num_rows = sum(shard.record.num_rows for shard in found)
    job = first.record.job
    codec = form.codec(job.classes, spreadsheet=job.spreadsheet, distance=job.unknown is not None)
    place = temporary_path(output) if keep else atomic_path(output)
    with place as temporary, progress.bar("Merging", num_rows, "rows") as bar:
        for amount in form.merge(found, _turns(found), temporary, codec):
            bar.advance(amount)
        for shard in found:
            shard.check_unchanged()
        if keep and not filecmp.cmp(temporary, output, shallow=False):
            raise exists_already(output)
    return Merged(output, len(found), num_rows, was_there=keep)


class _ShardFile:
    """The complete output of a shard that is being merged."""

    def __init__(self, path: Path) -> None:
        """Read the record of the shard.

        Raises:
            DataError: If the record is missing or unreadable.
        """
        self.path = path
        self.record = _read_record(path)
        shard = self.record.job.shard
        if shard is None:
            raise DataError(
                f"{shard_record_path(path)} is not the record of a shard; recreate {path} with "
                "tltools classify, `shard=K/N` and `overwrite=True`"
            )
        self.number: Shard = shard
        self._state: tuple[int, int] | None = None

    def check(self) -> None:
        """Check that the file is the one that the job wrote.

        Raises:
            DataError: If it is not.
        """
        if self.record.num_rows != self.number.size(self.record.num_listed):
            raise DataError(
                f"{self.path} has {self.record.num_rows:,} rows according to its record, but shard "
                f"{self.number} of {self.record.num_listed:,} images must have "
                f"{self.number.size(self.record.num_listed):,}; {self._again}"
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
        """Check that the file has not changed since `check`.

        Raises:
            DataError: If it has.
        """
        with self.open() as file:
            info = os.fstat(file.fileno())
        if self._state != (info.st_size, info.st_mtime_ns):
            raise self.changed()

    @property
    def num_bytes(self) -> int:
        """Size of the complete file, in bytes."""
        return self.record.num_bytes

    def open(self) -> BufferedReader:
        """Open the file for reading.

        Raises:
            DataError: If it cannot be opened.
        """
        try:
            return open_regular(self.path)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {cause_of(error)}; {self._again}") from error

    def changed(self) -> DataError:
        """Return the error for a file that is not the one that the job wrote."""
        return DataError(f"{self.path} has changed since the shard was completed; {self._again}")

    @property
    def _again(self) -> str:
        return f"recreate it with tltools classify, `shard={self.number}` and `overwrite=True`"


def _read_record(path: Path) -> ShardRecord:
    if path.name.endswith(RECORD_SUFFIX):
        raise DataError(f"{path} is the record of a shard; name the shard's output instead")
    record = shard_record_path(path)
    unfinished = unfinished_path(path)
    try:
        content = read_regular(record, max_bytes=MAX_RECORD_BYTES)
    except FileNotFoundError:
        if path.exists():
            raise DataError(
                f"{path} has no record ({record.name}) beside it: it is not a shard, or was moved "
                "alone; move its record too, or name a shard"
            ) from None
        if unfinished.exists():
            raise DataError(f"{path} is not complete; run its command again") from None
        raise DataError(
            f"{path} does not exist{similar_paths(path)}; name the outputs of all shards"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {record}: {cause_of(error)}; make it readable") from error
    if not path.exists():
        what = (
            "is not complete" if unfinished.exists() else "is missing, although its record exists"
        )
        raise DataError(f"{path} {what}; run its command again")
    try:
        return msgspec.json.decode(content, type=ShardRecord)
    except msgspec.DecodeError as error:
        raise DataError(
            f"{record} is not the record of a shard ({error}); recreate {path} with tltools "
            "classify, `shard=K/N` and `overwrite=True`"
        ) from error


def _ordered(shards: Sequence[_ShardFile]) -> list[_ShardFile]:
    """Return the shards in order of their indices.

    Raises:
        DataError: If one is missing, duplicate or from another job.
    """
    first = shards[0]
    by_index: dict[int, _ShardFile] = {}
    for shard in shards:
        _refuse_others(first, shard)
        if shard.number.index in by_index:
            raise DataError(
                f"{by_index[shard.number.index].path} and {shard.path} are both shard "
                f"{shard.number}; name only one of them"
            )
        by_index[shard.number.index] = shard
    count = first.number.count
    if len(by_index) < count:
        missing = next(index for index in range(1, count + 1) if index not in by_index)
        others = count - len(by_index) - 1
        more = f" (and {others} more)" if others else ""
        raise DataError(
            f"shard {missing}/{count}{more} is missing; name it too, or create it with "
            f"tltools classify and `shard={missing}/{count}`"
        )
    return [by_index[index] for index in range(1, count + 1)]


def _refuse_others(first: _ShardFile, shard: _ShardFile) -> None:
    """Reject a shard that comes from another job than the first one."""
    reason = None
    if shard.number.count != first.number.count:
        reason = f"is shard {shard.number}, but {first.path} is shard {first.number}"
    elif output_format(shard.path) is not output_format(first.path):
        reason = f"has a different format than {first.path}"
    elif difference := shard_difference(shard.record.job, first.record.job):
        reason = f"{difference} {first.path}"
    else:
        listed = (shard.record.num_listed, shard.record.listing_sha256)
        if listed != (first.record.num_listed, first.record.listing_sha256):
            reason = (
                f"listed different images than {first.path} ({listed[0]:,} and "
                f"{first.record.num_listed:,}): some were added, removed or renamed"
            )
    if reason is not None:
        raise DataError(f"{shard.path} {reason}; create all shards with the same command except K")


def _turns(shards: Sequence[_ShardFile]) -> Iterator[tuple[_ShardFile, int]]:
    """Yield the shard whose rows come next, and how many of them."""
    num_listed = shards[0].record.num_listed
    for start in range(0, num_listed, SHARD_BLOCK):
        shard = shards[start // SHARD_BLOCK % len(shards)]
        yield shard, min(SHARD_BLOCK, num_listed - start)
