"""The file that an output's rows are in until all are there, locked, with its job's record."""

import errno
import os
import sys
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

import msgspec

from tltools.atomic import replace_bytes, sync_file, sync_folder
from tltools.classify.identity import JobRecord
from tltools.errors import ConfigError, TltoolsError

if sys.platform != "win32":
    import fcntl

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
LOCK_WAIT_S = 1.0
"""How long a job that was just killed may take to be gone."""
SUFFIX = ".part"
REMEDY = "start anew with --overwrite, or write elsewhere with --output"


def unfinished_path(output: Path) -> Path:
    """Return where the rows of an output are until all are there."""
    return output.with_name(output.name + SUFFIX)


def record_path(output: Path) -> Path:
    """Return where the record of an unfinished output is."""
    return output.with_name(f"{output.name}{SUFFIX}.json")


def read_record(output: Path) -> JobRecord | None:
    """Read the record of an unfinished output; None if there is none that can be read."""
    try:
        return msgspec.json.decode(record_path(output).read_bytes(), type=JobRecord)
    except (OSError, msgspec.DecodeError):
        return None


def refusal(path: Path, reason: str) -> ConfigError:
    """Return the error for unfinished rows that this job must not go on after."""
    return ConfigError(f"cannot go on with {path}: {reason}; {REMEDY}")


def cannot_write(path: Path | str, error: OSError, *, option: str = "--output") -> TltoolsError:
    """Return the error for a file that cannot be written; `option` names another place for it."""
    return TltoolsError(
        f"cannot write {path}: {error.strerror or error}; choose another place with {option}"
    )


class UnfinishedOutput:
    """A file that takes an output's rows and is renamed when all are there; locked while open."""

    def __init__(self, output: Path) -> None:
        """Name the files of `output`; nothing is opened yet."""
        self.output = output
        self.path = unfinished_path(output)
        self._record = record_path(output)
        self._synced_folder = False
        self.file: FileIO | None = None

    @property
    def is_open(self) -> bool:
        """Whether the file is open, and locked."""
        return self.file is not None

    def exists(self) -> bool:
        """Tell whether an earlier job left the file."""
        try:
            return self.path.exists()
        except OSError:  # its file system is gone, for instance
            return False

    def may_replace(self) -> bool:
        """Tell whether an earlier job left rows that were to replace an existing output."""
        record = read_record(self.output)
        return record is not None and record.overwrite and self.exists()

    def open(self) -> None:
        """Open the file, creating it if it is missing, and lock it.

        The system releases the lock of a process that has ended, in whatever way.

        Raises:
            ConfigError: If another job writes it.
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
                    "--output"
                )
            time.sleep(0.05)

    def _lock(self, handle: int) -> bool:
        """Lock the file; tell whether that was possible and it still has its name."""
        if sys.platform == "win32":
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            # A file system without locks: nobody keeps a second job from the same output.
        # A job that was complete in the meantime has given the file its final name.
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return os.fstat(self._opened.fileno()).st_size

    @property
    def _opened(self) -> FileIO:
        assert self.file is not None
        return self.file

    def cut(self, num_bytes: int) -> None:
        """Truncate the file to `num_bytes`, and write on from there.

        Raises:
            OSError: If that cannot be done.
        """
        if self.num_bytes > num_bytes:
            self._opened.truncate(num_bytes)
        with suppress(OSError):  # a device has no positions
            self._opened.seek(num_bytes)

    def append(self, data: bytes) -> None:
        """Hand bytes to the system; a process that ends after that has not lost them.

        Raises:
            OSError: If they cannot all be written; some of them may be.
        """
        write = self._opened.write
        written = write(data)
        while written < len(data):  # the disk is full, which the next attempt says
            written += write(data[written:])

    def begin(self, record: JobRecord) -> None:
        """Write the job's record, completely or not at all; the file is empty then.

        Raises:
            TltoolsError: If it cannot be written.
        """
        data = msgspec.json.format(msgspec.json.encode(record), indent=2)
        try:
            replace_bytes(self._record, data)
        except OSError as error:
            raise cannot_write(self._record, error) from error

    def sync(self) -> None:
        """Put what was written on the disk, so that it survives a loss of power.

        Raises:
            OSError: If that cannot be done.
        """
        os.fsync(self._opened.fileno())
        if not self._synced_folder:  # once: the names do not change any more
            with suppress(FileNotFoundError):
                sync_file(self._record)
            sync_folder(self.path.parent)
            self._synced_folder = True

    def finish(self, *, rename: bool = True) -> None:
        """Put the file on the disk and give it its name, or remove it; release the lock.

        Args:
            rename: False if the output was made from it and is complete.

        Raises:
            OSError: If that cannot be done. The file and its record are as they were then.
        """
        if rename:
            self.sync()
            self.path.replace(self.output)
        sync_folder(self.path.parent)
        if not rename:
            self.path.unlink()
        self.forget()
        self._release()

    def empty(self) -> None:
        """Remove the rows, and the record with which they could be gone on with.

        Raises:
            TltoolsError: If that cannot be done.
        """
        try:
            self.cut(0)
            self.forget()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def forget(self) -> None:
        """Remove the record, with which the file could be gone on with."""
        self._record.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock and leave the file and its record, or no file where it is empty."""
        if self.file is None:
            return
        try:
            if self.num_bytes == 0 and self.path.exists():
                self.path.unlink()
                self.forget()
        finally:
            self._release()

    def _release(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
