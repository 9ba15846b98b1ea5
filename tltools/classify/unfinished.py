"""The locked file that holds an output's rows until all are written, with its job's record."""

import os
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

import msgspec

from tltools.atomic import lock, remove_leftovers, replace_bytes, sync_file, sync_folder
from tltools.classify.identity import JobRecord
from tltools.errors import ConfigError, TltoolsError, cause_of
from tltools.regular import read_regular

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
LOCK_WAIT_S = 1.0
"""How long a job that was just killed may take to exit, in seconds."""
MAX_RECORD_BYTES = 2**26
"""Largest record of a job: its classes, inputs and identity."""
SUFFIX = ".part"
HOW_TO_RESUME = "Run the same job again, without `overwrite=True`, to resume"
REMEDY = "start over with `overwrite=True`, or write elsewhere with `output=`"


def unfinished_path(output: Path) -> Path:
    """Return the path of an output's rows until all are written."""
    return output.with_name(output.name + SUFFIX)


def record_path(output: Path) -> Path:
    """Return the path of an unfinished output's record."""
    return output.with_name(f"{output.name}{SUFFIX}.json")


def read_record(output: Path) -> JobRecord | None:
    """Read the record of an unfinished output; None if it is missing or unreadable."""
    try:
        data = read_regular(record_path(output), max_bytes=MAX_RECORD_BYTES)
        return msgspec.json.decode(data, type=JobRecord)
    except (OSError, msgspec.DecodeError):
        return None


def is_record(path: Path) -> bool:
    """Return whether a file is the record of a job, perhaps of another version."""
    try:
        data = read_regular(path, max_bytes=MAX_RECORD_BYTES)
        found = msgspec.json.decode(data, type=dict[str, object])
    except (OSError, msgspec.DecodeError):
        return False
    return found.keys() >= {"tltools", "model_sha256", "inputs"}


def _holds_something(path: Path) -> bool:
    """Return whether a file holds more than the zeros that a power failure leaves."""
    try:
        return bool(read_regular(path, max_bytes=MAX_RECORD_BYTES).strip(b"\0"))
    except FileNotFoundError:
        return False
    except OSError:  # not a file, or too large for a record
        return True


def refusal(path: Path, reason: str) -> ConfigError:
    """Return the error for unfinished rows that this job must not resume after."""
    return ConfigError(f"cannot resume {path}: {reason}; {REMEDY}")


def exists_already(path: object, *, parameter: str = "output") -> ConfigError:
    """Return the error for a file that must not be replaced; `parameter` chooses another place."""
    return ConfigError(
        f"{path} exists; replace it with `overwrite=True`, or write elsewhere with `{parameter}=`"
    )


def cannot_write(path: Path | str, error: OSError, *, parameter: str = "output") -> TltoolsError:
    """Return the error for a file that cannot be written; `parameter` chooses another place."""
    return TltoolsError(
        f"cannot write {path}: {cause_of(error)}; choose another place with `{parameter}=`"
    )


class UnfinishedOutput:
    """The file that collects an output's rows and is renamed when complete; locked while open."""

    def __init__(self, output: Path) -> None:
        """Derive the file names for `output`; nothing is opened yet."""
        self.output = output
        self.path = unfinished_path(output)
        self._record = record_path(output)
        self._written = b""
        """The record as this job wrote it."""
        self._synced_folder = False
        self.is_lost = False
        """Whether the file was moved, deleted or replaced while it was open."""
        self.file: FileIO | None = None

    @property
    def is_open(self) -> bool:
        """Whether the file is open and locked."""
        return self.file is not None

    def exists(self) -> bool:
        """Return whether an earlier job left the file."""
        try:
            return self.path.exists()
        except OSError:  # for instance, its file system is gone
            return False

    def open(self) -> None:
        """Open the file, creating it if it is missing, and lock it.

        The system releases the lock when the process exits, however it ends.

        Raises:
            ConfigError: If another job is writing the file.
            TltoolsError: If it cannot be opened.
        """
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
            except OSError as error:
                raise cannot_write(self.path, error) from error
            if self._lock(handle):
                self.file = FileIO(handle, "r+")
                return
            os.close(handle)
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"another job is writing {self.path}; wait for it, or write elsewhere with "
                    "`output=`"
                )
            time.sleep(0.05)

    def _lock(self, handle: int) -> bool:
        """Lock the file; return whether that succeeded and the file still has its name."""
        # Without locks, nothing keeps a second job from the same output.
        if lock(handle) is False:
            return False
        # A job that finished in the meantime has given the file its final name.
        return self._is_at_path(handle)

    def _is_at_path(self, handle: int) -> bool:
        """Return whether the path leads to the open file, and not to another one or none."""
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False

    def check_own(self) -> None:
        """Check that the path still leads to the open file.

        Raises:
            OSError: If it does not.
        """
        if not self._is_at_path(self._opened.fileno()):
            self.is_lost = True
            raise OSError("it was moved, deleted or replaced while the job was running")

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return os.fstat(self._opened.fileno()).st_size

    @property
    def _opened(self) -> FileIO:
        assert self.file is not None
        return self.file

    def cut(self, num_bytes: int) -> None:
        """Truncate the file to `num_bytes` and continue writing there.

        Raises:
            OSError: If it cannot be truncated.
        """
        if self.num_bytes > num_bytes:
            self._opened.truncate(num_bytes)
        with suppress(OSError):  # a device has no positions
            self._opened.seek(num_bytes)

    def append(self, data: bytes) -> None:
        """Hand bytes to the system, so that they survive the end of the process.

        Raises:
            OSError: If not all of them can be written; some may have been.
        """
        write = self._opened.write
        written = write(data)
        while written < len(data):  # the disk is full, as the next attempt will report
            written += write(data[written:])

    def begin(self, record: JobRecord) -> None:
        """Write the job's record, completely or not at all, while the file is still empty.

        Raises:
            ConfigError: If there is a file of this name that is no record.
            TltoolsError: If it cannot be written.
        """
        if _holds_something(self._record) and not is_record(self._record):
            raise ConfigError(
                f"{self._record} exists, and tltools did not write it; move it away, or write "
                "elsewhere with `output=`"
            )
        self.record(record)

    def record(self, record: JobRecord) -> None:
        """Write the job's record, completely or not at all.

        Raises:
            TltoolsError: If it cannot be written.
        """
        data = msgspec.json.format(msgspec.json.encode(record), indent=2)
        try:
            self.check_own()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._written = data
        try:
            replace_bytes(self._record, data)
        except OSError as error:
            raise cannot_write(self._record, error) from error

    def sync(self) -> None:
        """Flush what was written to disk, so that it survives a power failure.

        Raises:
            OSError: If it cannot be flushed, or is no longer at its path.
        """
        self.check_own()
        os.fsync(self._opened.fileno())
        if not self._synced_folder:  # only once: the names do not change again
            with suppress(FileNotFoundError):
                sync_file(self._record)
            sync_folder(self.path.parent)
            self._synced_folder = True

    def finish(self, *, rename: bool = True) -> None:
        """Flush the file to disk and rename it, or remove it; release the lock.

        The record stays until `forget`: with it, the next job finds this one finished.

        Args:
            rename: False if the complete output was converted from the file.

        Raises:
            OSError: If that fails. The file and its record are unchanged then.
        """
        self.check_own()
        if rename:
            self.sync()
            self.path.replace(self.output)
        sync_folder(self.path.parent)
        if not rename:
            self.path.unlink()
        self._release()

    def clear_up(self) -> None:
        """Remove the record of a finished job, and the rows if the job was killed before that.

        Raises:
            ConfigError: If another job is writing the same output.
            TltoolsError: If something cannot be removed.
        """
        try:
            if not self._written and self.exists():
                self.open()
                self.path.unlink()
                self._release()
            self.forget()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        remove_leftovers(self.path.parent)

    def empty(self) -> None:
        """Remove the rows, and the record needed to resume after them.

        Raises:
            TltoolsError: If they cannot be removed.
        """
        try:
            self.cut(0)
            self.forget()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def forget(self) -> None:
        """Remove the record needed to resume, but no other file of its name."""
        if self._written:
            with suppress(FileNotFoundError):
                if self._record.read_bytes() == self._written:  # not that of a later job
                    self._record.unlink(missing_ok=True)
        elif is_record(self._record):
            self._record.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock; keep the file and its record, unless the file is empty."""
        if self.file is None:
            return
        try:
            if self.num_bytes == 0 and self._is_at_path(self._opened.fileno()):
                self.path.unlink()
                self.forget()
        finally:
            self._release()

    def _release(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
