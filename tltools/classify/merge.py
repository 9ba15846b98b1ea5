"""Put the outputs of shards together, and refuse what is missing, duplicate or changed."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from tltools.atomic import atomic_path
from tltools.classify.identity import shard_difference
from tltools.classify.output_formats import STDOUT, output_format
from tltools.classify.shard_record import RECORD_SUFFIX, ShardRecord, shard_record_path
from tltools.classify.shards import SHARD_BLOCK, Shard
from tltools.classify.unfinished import unfinished_path
from tltools.classify.writer import check_output
from tltools.data.location import Location
from tltools.errors import ConfigError, DataError
from tltools.progress import SILENT, Progress


@dataclass(frozen=True)
class Merged:
    """What a merge made."""

    output: Location
    num_shards: int
    num_rows: int


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
    found = _ordered([_ShardFile(path) for path in shards])
    first = found[0]
    form = output_format(output)
    if form is not output_format(first.path):
        raise ConfigError(
            f"--output {output} is not of the shards' format ({first.path.suffix}); end it in that"
        )
    for shard in found:
        shard.check()
    num_rows = sum(shard.record.num_rows for shard in found)
    codec = form.codec(first.record.job.classes, spreadsheet=first.record.job.spreadsheet)
    with (
        atomic_path(output) as temporary,
        progress.bar("merge", num_rows, "rows") as bar,
    ):
        for amount in form.merge(found, _turns(found), temporary, codec):
            bar.advance(amount)
        for shard in found:
            shard.check_unchanged()
    return Merged(output, len(found), num_rows)


class _ShardFile:
    """The complete output of a shard, which is to be merged."""

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
        self.number: Shard = shard
        self._state: tuple[int, int] | None = None

    def check(self) -> None:
        """See that the file is the one that the job left.

        Raises:
            DataError: If it is not.
        """
        if self.record.num_rows != self.number.size(self.record.num_listed):
            raise DataError(
                f"{self.path} has {self.record.num_rows:,} rows by its record, where shard "
                f"{self.number} of {self.record.num_listed:,} images has "
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
        """See that the file is as it was when it was checked.

        Raises:
            DataError: If it is not.
        """
        with self.open() as file:
            info = os.fstat(file.fileno())
        if self._state != (info.st_size, info.st_mtime_ns):
            raise self.changed()

    @property
    def num_bytes(self) -> int:
        """Size of the file when it was complete."""
        return self.record.num_bytes

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
        """Return the error for a file that is not the one that the job left."""
        return DataError(f"{self.path} has changed since its shard was complete; {self._again}")

    @property
    def _again(self) -> str:
        return f"make it again with --shard {self.number} --overwrite"


def _read_record(path: Path) -> ShardRecord:
    if path.name.endswith(RECORD_SUFFIX):
        raise DataError(f"{path} is the record of a shard; name the shard itself")
    record = shard_record_path(path)
    unfinished = unfinished_path(path)
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


def _ordered(shards: Sequence[_ShardFile]) -> list[_ShardFile]:
    """Return the shards by index, each once and all of one job.

    Raises:
        DataError: If they are not that.
    """
    first = shards[0]
    by_index: dict[int, _ShardFile] = {}
    for shard in shards:
        _refuse_others(first, shard)
        if shard.number.index in by_index:
            raise DataError(
                f"{by_index[shard.number.index].path} and {shard.path} are both shard "
                f"{shard.number}; leave one of them out"
            )
        by_index[shard.number.index] = shard
    count = first.number.count
    if len(by_index) < count:
        missing = next(index for index in range(1, count + 1) if index not in by_index)
        others = count - len(by_index) - 1
        more = f" (and {others} more)" if others else ""
        raise DataError(
            f"shard {missing}/{count}{more} is missing beside {first.path}; name it too, or make "
            f"it with --shard {missing}/{count}"
        )
    return [by_index[index] for index in range(1, count + 1)]


def _refuse_others(first: _ShardFile, shard: _ShardFile) -> None:
    """Refuse a shard of another job than the first one's."""
    reason = None
    if shard.number.count != first.number.count:
        reason = f"is shard {shard.number}, and {first.path} is shard {first.number}"
    elif output_format(shard.path) is not output_format(first.path):
        reason = f"is of another format than {first.path}"
    elif difference := shard_difference(shard.record.job, first.record.job):
        reason = f"{difference} {first.path}"
    else:
        listed = (shard.record.num_listed, shard.record.listing_sha256)
        if listed != (first.record.num_listed, first.record.listing_sha256):
            reason = (
                f"saw other images than {first.path} ({listed[0]:,} and "
                f"{first.record.num_listed:,}): some have come, gone or changed their names"
            )
    if reason is not None:
        raise DataError(f"{shard.path} {reason}; make all shards with the same command, but for K")


def _turns(shards: Sequence[_ShardFile]) -> Iterator[tuple[_ShardFile, int]]:
    """Yield whose rows come next, and how many of them."""
    num_listed = shards[0].record.num_listed
    for start in range(0, num_listed, SHARD_BLOCK):
        shard = shards[start // SHARD_BLOCK % len(shards)]
        yield shard, min(SHARD_BLOCK, num_listed - start)
