"""The data set that a job on a cluster writes: a folder of parts, locked while it is written."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

import msgspec

from tltools.atomic import remove_leftovers
from tltools.classify.identity import JobIdentity, JobRecord, PartsRecord
from tltools.classify.inputs import list_portions
from tltools.classify.listing import NamesDigest
from tltools.classify.output_formats import Row, all_suffixes, output_format
from tltools.classify.output_place import describe
from tltools.classify.unfinished import (
    REMEDY,
    UnfinishedOutput,
    cannot_write,
    is_record,
    record_path,
    refusal,
)
from tltools.data.location import Location
from tltools.errors import ConfigError, DataError
from tltools.ray.listing import digests_around
from tltools.ray.updates import PartsTally, PartUpdate

FAST_PART = 4096
"""Images per part if the model is fast or there is a GPU: seconds of work, compared with which
Ray's overhead of tenths of a second per part is small."""
SLOW_PART = 256
"""Images per part if the model is slow: about half a minute of work for a few cores."""
MARK = "_SUCCESS"
"""The file that marks a data set as complete and says what it was made from."""
ATTEMPTS = ".attempts"
"""Folder in an unfinished data set that counts the attempts at each part, as the size of a file."""
_PART_NAME = re.compile(r"part-(\d{6,})(\.\w+)")
_OTHER_NAMES = re.compile(
    rf"{MARK}(\.part(\.json(\.new)?)?)?|{re.escape(ATTEMPTS)}|\.tltools-\w{{8}}\.tmp"
)


class Manifest(PartsRecord, frozen=True, kw_only=True):
    """The content of the file that marks a complete data set."""

    num_parts: int
    num_rows: int
    num_failed: int


def part_path(folder: Path, number: int, part_format: str) -> Path:
    """Return the path of a part of a data set."""
    return folder / f"part-{number:06d}.{part_format}"


def part_number(name: str) -> tuple[int, str] | None:
    """Return the number and format of the part with this file name; None if it is not a part."""
    match = _PART_NAME.fullmatch(name)
    if match is None or match[2] not in all_suffixes():
        return None
    return int(match[1]), match[2].removeprefix(".")


class PartsFolder:
    """The folder of a data set, which is locked while a job writes it."""

    def __init__(self, folder: Path) -> None:
        """Take the path of the folder; nothing is created or opened yet."""
        self._folder = folder
        self._mark = UnfinishedOutput(folder / MARK)
        self._made = not folder.exists()

    def finished(self, identity: JobIdentity) -> PartsRecord | None:
        """Return the record of this job if it was killed after it had marked the folder complete.

        None if not, or if another job did that.
        """
        try:
            data = record_path(self._folder / MARK).read_bytes()
            record = msgspec.json.decode(data, type=PartsRecord)
        except (OSError, msgspec.DecodeError):
            return None
        is_there = record.complete is not None and record.complete.is_at(self._folder / MARK)
        return record if is_there and identity.differences(record) is None else None

    def open(self, identity: JobIdentity, *, anew: bool) -> PartsRecord | None:
        """Lock the folder; return the record of the job to resume, None to start.

        Raises:
            ConfigError: If the folder is complete, holds other files, or is from another job.
        """
        names = [] if self._made else sorted(path.name for path in self._folder.iterdir())
        others = [name for name in names if not _is_own(name)]
        if others:
            raise ConfigError(
                f"{self._folder} contains other files ({others[0]!r}); choose a new folder with "
                "`output=`"
            )
        if MARK in names and not anew:
            raise ConfigError(
                f"{self._folder} exists and is complete; replace it with `overwrite=True`, or "
                "write elsewhere with `output=`"
            )
        self._mark.open()
        if anew:
            self._check_own(names)
            self._remove(names)
            return None
        if not self._mark.num_bytes:
            if any(map(part_number, names)):
                raise self._without_record()
            return None
        try:
            data = record_path(self._folder / MARK).read_bytes()
            record = msgspec.json.decode(data, type=PartsRecord)
        except (OSError, msgspec.DecodeError) as error:
            raise self._without_record() from error
        if difference := identity.differences(record):
            raise refusal(self._folder, difference)
        shutil.rmtree(self._folder / ATTEMPTS, ignore_errors=True)  # of the earlier job's workers
        return record

    def begin(self, record: JobRecord, part_size: int | None, part_format: str) -> PartsRecord:
        """Write the record of a new job, and return it.

        Raises:
            ConfigError: If parts of that size would not consist of whole batches.
        """
        size, batch = part_size, record.batch_size
        if size is None:
            # Long enough to make Ray's overhead small, short enough to lose little work.
            fast = record.plan == "fused" or record.device != "cpu"
            size = -(-(FAST_PART if fast else SLOW_PART) // batch) * batch
        if size % batch:
            fitting = -(-size // batch) * batch
            raise ConfigError(
                f"`part_size={size}` is not a multiple of the batch size, {batch}, as needed for "
                f"the same rows as `engine=local`; choose `part_size={fitting}`"
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

    def kept(self, record: PartsRecord, inputs: Sequence[Location]) -> Iterator[PartUpdate]:
        """Yield updates for the existing parts, after comparing them with the listing.

        Raises:
            ConfigError: If they do not match the listing.
        """
        numbers = self._numbers(record.part_format)
        portions = list_portions(inputs, on_error=lambda _error: None)
        images = chain.from_iterable(portion.images for portion in portions)
        chosen = output_format(part_path(self._folder, 0, record.part_format))
        codec = chosen.codec(record.classes, spreadsheet=record.spreadsheet)
        digest = NamesDigest()
        for number in range(max(numbers, default=-1) + 1):
            some = list(islice(images, record.part_size))
            before, after = digests_around(digest, (image.name for image in some))
            if number not in numbers:
                continue
            path = part_path(self._folder, number, record.part_format)
            rows = _read_part(path, record)
            if [row.path for row in rows] != [codec.text(image.name) for image in some]:
                raise refusal(
                    path,
                    "its rows do not match the images that the inputs have now: images were added "
                    "or removed since",
                )
            yield PartUpdate(
                number,
                len(rows),
                is_done=True,
                before=before,
                after=after,
                counts=Counter(row.label for row in rows if row.label is not None),
                failures=tuple(
                    (image.name, row.error or "")
                    for row, image in zip(rows, some, strict=True)
                    if row.label is None
                ),
            )

    def finish(self, record: PartsRecord, result: PartsTally) -> None:
        """Mark the data set as complete and release the lock; `clear_up` is still to be called."""
        manifest = Manifest(
            **msgspec.structs.asdict(record),
            num_parts=len(result.parts),
            num_rows=result.num_rows,
            num_failed=result.tally.num_failed,
        )
        shutil.rmtree(self._folder / ATTEMPTS, ignore_errors=True)
        try:
            remove_leftovers(self._folder)  # of workers that were lost
            self._mark.cut(0)
            self._mark.append(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
            complete = describe(
                self._mark.path, result.num_rows, result.tally, result.unlisted, result.left_out
            )
            self._mark.record(msgspec.structs.replace(record, complete=complete))
            self._mark.finish()
        except OSError as error:
            raise cannot_write(self._mark.path, error) from error

    def clear_up(self) -> None:
        """Remove what is left of a finished job: its record.

        Raises:
            TltoolsError: If it cannot be removed.
        """
        self._mark.clear_up()

    def close(self) -> None:
        """Release the lock; remove everything if there is no part."""
        if not self._mark.is_open:
            return
        if not any(part_number(path.name) for path in self._folder.iterdir()):
            with suppress(OSError):
                self._mark.cut(0)
            shutil.rmtree(self._folder / ATTEMPTS, ignore_errors=True)
        self._mark.close()
        if self._made:
            with suppress(OSError):
                self._folder.rmdir()  # fails if it is not empty

    def _numbers(self, part_format: str) -> set[int]:
        found = (part_number(path.name) for path in self._folder.iterdir())
        return {one[0] for one in found if one is not None and one[1] == part_format}

    def _check_own(self, names: Sequence[str]) -> None:
        """Refuse to remove parts that nothing proves to be from a job of tltools.

        Raises:
            ConfigError: If there are such parts.
        """
        proofs = (self._folder / MARK, record_path(self._folder / MARK))
        if any(map(part_number, names)) and not any(map(is_record, proofs)):
            raise ConfigError(
                f"{self._folder} contains parts, but no record of a job of tltools; move the "
                "folder, or write elsewhere with `output=`"
            )

    def _remove(self, names: Sequence[str]) -> None:
        """Remove the parts; the mark first, so that the rest is not mistaken for complete."""
        try:
            (self._folder / MARK).unlink(missing_ok=True)
            self._mark.empty()
            for name in names:
                if part_number(name):
                    (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        shutil.rmtree(self._folder / ATTEMPTS, ignore_errors=True)

    def _without_record(self) -> ConfigError:
        return ConfigError(
            f"cannot resume {self._folder}: it contains parts, but their record "
            f"({record_path(self._folder / MARK).name}) is missing or damaged; move the folder, "
            f"{REMEDY}"
        )


def _is_own(name: str) -> bool:
    """Return whether a job leaves files of this name in its folder."""
    return part_number(name) is not None or _OTHER_NAMES.fullmatch(name) is not None


def _read_part(path: Path, record: PartsRecord) -> list[Row]:
    """Read the rows of a part that a stopped job left.

    Raises:
        ConfigError: If the part cannot be read.
    """
    try:
        classes, rows = output_format(path).read(path)
        if classes and classes != list(record.classes):
            raise refusal(path, "it does not have the columns of its model")
        return list(rows)
    except (OSError, DataError) as error:
        raise refusal(path, "it is corrupt") from error
