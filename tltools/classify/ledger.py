"""Logits of images that a model has classified, by the bytes of their files.

Each model has a SQLite file in the user's cache folder. SQLite keeps it intact if the machine
stops, and lets several jobs share a ledger.
"""

import hashlib
import sqlite3
import time
import weakref
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from tltools import __version__
from tltools.errors import TltoolsError, cause_of

if TYPE_CHECKING:
    from collections.abc import Callable

SAVE_EVERY_S = 1.0
"""Longest time before logits are written: a killed job loses at most this much work."""
LOCK_WAIT_S = 30.0
"""How long to wait for another job that is writing."""


class Ledger:
    """The logits of one model, by the SHA-256 of a file's bytes."""

    def __init__(
        self,
        folder: Path,
        *,
        model_sha256: str,
        num_classes: int,
        distances: bool = False,
        tf32: bool = False,
    ) -> None:
        """Open the model's ledger, creating it if it is missing.

        Args:
            folder: Folder of the ledgers.
            model_sha256: SHA-256 of the export file. Logits depend on it and on the version of
                tltools, which decodes the images; each such pair has its own ledger.
            num_classes: Number of logits per image.
            distances: Whether a distance follows the logits of each image; such images have a
                ledger of their own.
            tf32: Whether the logits are of products in TF32, which have one of their own, too.

        Raises:
            TltoolsError: If the ledger cannot be opened or is corrupt.
        """
        kind = ("-distances" if distances else "") + ("-tf32" if tf32 else "")
        self.path = folder / f"{model_sha256[:32]}-{__version__}{kind}.sqlite"
        self._num_bytes = (num_classes + distances) * np.dtype("<f4").itemsize
        self._lock = Lock()
        self._new: dict[bytes, bytes] = {}
        self._next_save = time.monotonic() + SAVE_EVERY_S
        self.num_known = 0
        """Number of images found, here or by a reader."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # One connection for all threads; the lock admits one at a time.
            self._connection = sqlite3.connect(
                self.path, timeout=LOCK_WAIT_S, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS classified"
                    " (sha256 BLOB PRIMARY KEY, logits BLOB NOT NULL) WITHOUT ROWID"
                )
        except sqlite3.Error as error:
            self._connection.close()
            raise self._unusable(error) from error

    def __enter__(self) -> Self:
        """Return the ledger itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Write new logits, however the block ended, and close the file.

        Raises:
            TltoolsError: If writing fails and the block raised no error.
        """
        try:
            with self._lock:
                self._save()
        except TltoolsError:
            if kind is None:
                raise
        finally:
            self._connection.close()

    def recall(self, data: bytes) -> tuple[bytes, NDArray[np.float32] | None]:
        """Return the SHA-256 of a file's bytes, and its logits, float32 (C,), or None.

        Raises:
            TltoolsError: If the ledger cannot be read.
        """
        key = hashlib.sha256(data).digest()
        try:
            with self._lock:
                values = _find(self._connection, key, self._num_bytes)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        self.num_known += values is not None
        return key, values

    def reader(self) -> "Reader":
        """Return an object that opens the ledger read-only in a worker process."""
        return Reader(self.path, self._num_bytes)

    def remember(self, key: bytes, values: NDArray[np.float32]) -> None:
        """Store the logits, float32 (C,), of the bytes with this SHA-256, unless one is not finite.

        Raises:
            TltoolsError: If the ledger cannot be written.
        """
        if not np.isfinite(values).all():  # an error, which is not remembered
            return
        with self._lock:
            self._new[key] = values.astype("<f4").tobytes()
            if time.monotonic() > self._next_save:
                self._save()
                self._next_save = time.monotonic() + SAVE_EVERY_S

    def _save(self) -> None:
        try:
            with self._connection:
                self._connection.executemany(
                    "INSERT OR REPLACE INTO classified VALUES (?, ?)", self._new.items()
                )
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        self._new.clear()

    def _unusable(self, error: Exception) -> TltoolsError:
        return _unusable(self.path, error)


class Reader:
    """Opens a ledger in a worker process; can be pickled."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        """Take the path of the ledger and the number of bytes of an image's logits."""
        self._path = path
        self._num_bytes = num_bytes

    def __call__(self) -> "Callable[[bytes], tuple[bytes, NDArray[np.float32] | None]]":
        """Open the ledger; return a function that works like `Ledger.recall`.

        The file is closed when the function is no longer referenced.

        Raises:
            TltoolsError: If the ledger cannot be opened.
        """
        try:
            # One thread uses it; another one may close it.
            connection = sqlite3.connect(self._path, timeout=LOCK_WAIT_S, check_same_thread=False)
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error

        def recall(data: bytes) -> tuple[bytes, NDArray[np.float32] | None]:
            key = hashlib.sha256(data).digest()
            try:
                return key, _find(connection, key, self._num_bytes)
            except sqlite3.Error as error:
                raise _unusable(self._path, error) from error

        weakref.finalize(recall, connection.close)
        return recall


def _find(connection: sqlite3.Connection, key: bytes, num_bytes: int) -> NDArray[np.float32] | None:
    """Return the logits of a key, float32 (C,); None if they are missing or corrupt."""
    found = connection.execute("SELECT logits FROM classified WHERE sha256 = ?", (key,)).fetchone()
    if found is None or len(found[0]) != num_bytes:
        return None
    return np.frombuffer(found[0], "<f4").astype(np.float32, copy=False)


def _unusable(path: Path, error: Exception) -> TltoolsError:
    if isinstance(error, OSError):  # its folder cannot be used
        reason, remedy = cause_of(error), ""
    else:
        reason, remedy = error, "delete it, or "
    return TltoolsError(
        f"cannot use the ledger {path}: {reason}; {remedy}choose another folder with `ledger_dir=`"
    )
