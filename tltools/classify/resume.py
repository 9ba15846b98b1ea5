"""Go on with a job that was stopped: its part, locked; its record; and the rows that are there."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from io import FileIO
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Protocol

import msgspec

from tltools import __version__
from tltools.card import Card, Resize
from tltools.classify.formats import Row, RowFormat
from tltools.classify.pictures import STDIN
from tltools.classify.shards import Shard
from tltools.data.image_ref import ImageRef
from tltools.data.location import Location
from tltools.errors import ArtifactError, ConfigError, TltoolsError
from tltools.runtime import Plan

if sys.platform != "win32":
    import fcntl

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
LOCK_WAIT_S = 1.0
"""How long a job that was just killed may take to be gone."""
SMALL_MODEL = 8 * 2**20
"""Bytes of a model whose digest is worth no library of its own."""
REMEDY = "start anew with --overwrite, or write elsewhere with --output"


class Opened(Protocol):
    """What a record says of an opened model."""

    card: Card
    device: str
    provider: str


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's rows depend on, kept in `<output>.part.json` while the job is not complete."""

    tltools: str = __version__
    model: str
    """Its path when the job was begun; what counts is `model_sha256`."""
    model_sha256: str
    inputs: tuple[str, ...]
    """As absolute paths and URLs; `-` is standard input."""
    classes: tuple[str, ...]
    size: int
    resize: Resize
    device: str
    provider: str
    plan: Literal["fused", "ahead"]
    batch_size: int
    spreadsheet: bool
    min_confidence: float | None
    overwrite: bool
    """Whether the complete output may replace one that exists."""
    shard: Shard | None = None
    """The part of the listing that has rows here; None: all of it."""
    tf32: bool = False
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Of the tensors on a GPU."""


class Job:
    """What makes a job the same job, before its model is opened."""

    def __init__(
        self,
        model: Path,
        inputs: Sequence[Location],
        *,
        batch_size: int | None,
        spreadsheet: bool,
        min_confidence: float | None,
        overwrite: bool,
        shard: Shard | None = None,
        tf32: bool = False,
    ) -> None:
        """Keep the job's settings; a thread reads the model's file while there is other work."""
        self._model = model
        self._inputs = tuple(
            os.path.abspath(source)  # noqa: PTH100 - links stay
            if isinstance(source, Path) and source != STDIN
            else str(source)
            for source in inputs
        )
        self._batch_size = batch_size
        self.spreadsheet = spreadsheet
        self._min_confidence = min_confidence
        self._overwrite = overwrite
        self._shard = shard
        self._tf32 = tf32
        self._sha256: Future[str] = Future()
        Thread(target=_hash, args=(model, self._sha256), daemon=True).start()

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the model's file, as hexadecimal digits.

        Raises:
            ArtifactError: If it cannot be read.
        """
        try:
            return self._sha256.result()
        except OSError as error:
            raise ArtifactError(f"cannot read {self._model}: {error.strerror or error}") from error

    def differences(self, record: JobRecord) -> Iterator[str]:
        """Say in what the job that left `record` was another one."""
        if record.model_sha256 != self.model_sha256:
            yield f"it was begun with another model ({record.model})"
        if record.inputs != self._inputs:
            yield f"it was begun with other inputs ({', '.join(record.inputs)})"
        if record.spreadsheet != self.spreadsheet:
            yield f"it was begun {'with' if record.spreadsheet else 'without'} --spreadsheet"
        if record.min_confidence != self._min_confidence:
            given = record.min_confidence
            yield (
                "it was begun without --min-confidence"
                if given is None
                else f"it was begun with --min-confidence {given:g}"
            )
        if record.shard != self._shard:
            shard = record.shard
            yield f"it was begun {'without --shard' if shard is None else f'with --shard {shard}'}"
        if record.tf32 != self._tf32:
            yield f"it was begun {'with' if record.tf32 else 'without'} --tf32"
        if self._batch_size not in (None, record.batch_size):
            yield f"it was begun with --batch-size {record.batch_size}"
        if record.tltools != __version__:
            yield f"it was begun by tltools {record.tltools}"

    def record(self, predictor: Opened, plan: Plan) -> JobRecord:
        """Return the record of this job, which is about to begin."""
        card = predictor.card
        return JobRecord(
            model=str(self._model),
            model_sha256=self.model_sha256,
            inputs=self._inputs,
            classes=tuple(card.classes),
            size=card.preprocessing.size,
            resize=card.preprocessing.resize,
            device=predictor.device,
            provider=predictor.provider,
            plan=plan.name,
            batch_size=plan.batch_size,
            spreadsheet=self.spreadsheet,
            min_confidence=self._min_confidence,
            overwrite=self._overwrite,
            shard=self._shard,
            tf32=self._tf32,
            layout=getattr(predictor, "layout", "nchw"),
        )


def record_path(output: Path) -> Path:
    """Return where the record of an unfinished output is."""
    return output.with_name(output.name + ".part.json")


def read_record(output: Path) -> JobRecord | None:
    """Read the record of an unfinished output; None if there is none that can be read."""
    try:
        return msgspec.json.decode(record_path(output).read_bytes(), type=JobRecord)
    except (OSError, msgspec.DecodeError):
        return None


class Part:
    """The file that holds an output's rows until they are complete; locked while it is open."""

    def __init__(self, output: Path) -> None:
        """Name the files of `output`; nothing is opened yet."""
        self.output = output
        self.path = output.with_name(output.name + ".part")
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
        """Open the file, which is made where it is missing, and lock it.

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
        """Cut the file off there, and write on from there.

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
            OSError: If they cannot be written, in whole; a part of them may be.
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
        temporary = self._record.with_name(self._record.name + ".new")
        try:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
            temporary.replace(self._record)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise cannot_write(self._record, error) from error

    def sync(self) -> None:
        """Put what was written on the disk, so that it survives a loss of power.

        Raises:
            OSError: If that cannot be done.
        """
        os.fsync(self._opened.fileno())
        if not self._synced_folder:  # once: the names do not change any more
            with suppress(FileNotFoundError):
                _sync_file(self._record)
            sync_folder(self.path.parent)
            self._synced_folder = True

    def finish(self, *, rename: bool = True) -> None:
        """Put the file on the disk and give it its name, or remove it; release the lock.

        Args:
            rename: False if the output was made of it and is complete.

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


def read_back(
    part: Part, job: Job, make_format: Callable[[Sequence[str]], RowFormat]
) -> "Kept | None":
    """Look at what an earlier job left in an opened part.

    Args:
        part: Opened.
        job: This job.
        make_format: Makes the rows' format for classes.

    Returns:
        What can be gone on with; None if there is nothing, and the part is to be begun.

    Raises:
        ConfigError: If the part is not of this job; the message says why.
    """
    if part.num_bytes == 0:
        return None
    record = read_record(part.output)
    if record is None:
        raise ConfigError(
            f"{part.path} exists and was not left by a job that can be gone on with: there is no "
            f"record of it ({record_path(part.output).name}); move it, {REMEDY}"
        )
    reasons = "; ".join(job.differences(record))
    if reasons:
        raise refusal(part.path, reasons)
    return Kept(part, record, make_format(record.classes))


def refusal(path: Path, reason: str) -> ConfigError:
    """Return the error of a part that this job must not go on with."""
    return ConfigError(f"cannot go on with {path}: {reason}; {REMEDY}")


class Kept:
    """The complete rows of an unfinished output."""

    def __init__(self, part: Part, record: JobRecord, row_format: RowFormat) -> None:
        """Take an opened part, which is read when the rows are."""
        self.record = record
        self.path = part.path
        self.num_rows = 0
        """Complete rows that were read."""
        self.num_bytes = 0
        """Where the last of them ends."""
        self._format = row_format

    def rows(self) -> Iterator[Row]:
        """Yield the complete rows, which end where one is torn.

        Raises:
            ConfigError: If the file does not begin as this job's output does.
        """
        # The part's own position does not matter: it is set when the rows are cut.
        with self.path.open("rb") as file:
            header = self._format.header
            found = file.read(len(header))
            if found != header:
                if header.startswith(found):  # torn within it
                    return
                raise refusal(self.path, "it does not begin with the columns of its model")
            self.num_bytes = len(header)
            for row, num_bytes in self._format.read(file):
                self.num_rows += 1
                self.num_bytes += num_bytes
                yield row

    def matched(self, pictures: Iterator[ImageRef]) -> Iterator[tuple[Row, ImageRef]]:
        """Yield the rows with their pictures, which are taken from the listing.

        Position alone is not trusted: each row has to have the name that is next in the listing.

        Raises:
            ConfigError: If the listing is another one than that of the rows.
        """
        for row in self.rows():
            picture = next(pictures, None)
            where = f"row {self.num_rows:,} is of {row.path!r}"
            if picture is None:
                raise refusal(
                    self.path, f"{where}, and the inputs have fewer pictures than that now"
                )
            if self._format.text(picture.name) != row.path:
                raise refusal(
                    self.path,
                    f"{where}, where the inputs have {picture.name!r} now: pictures have come or "
                    "gone since",
                )
            yield row, picture


def cannot_write(path: Path | str, error: OSError) -> TltoolsError:
    """Return the error of a file that cannot be written."""
    return TltoolsError(
        f"cannot write {path}: {error.strerror or error}; choose another place with --output"
    )


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk, where the system can do that.

    Raises:
        OSError: If that fails.
    """
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(handle)


def _hash(path: Path, found: "Future[str]") -> None:
    try:
        if path.stat().st_size < SMALL_MODEL:
            found.set_result(_small_sha256()(path.read_bytes()).hexdigest())
            return
        import hashlib

        with path.open("rb") as file:
            found.set_result(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        found.set_exception(error)


def _small_sha256() -> Callable[[bytes], Any]:
    """Return Python's own SHA-256, which needs no OpenSSL: that takes 3.5 MB and 10 ms to load.

    As in the standard library's random.py. It is four times as slow, which counts for large files.
    """
    for module in ("_sha2", "_sha256"):  # since Python 3.12; before
        with suppress(ImportError):
            return import_module(module).sha256
    import hashlib

    return hashlib.sha256


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
