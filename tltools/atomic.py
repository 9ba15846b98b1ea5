"""Write durably: a file or a folder completely or not at all, and on the disk when asked."""

import errno
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from tltools.errors import TltoolsError

LEFTOVER_AGE_S = 24 * 3600
"""A temporary file that has not changed for so long belongs to nobody any more."""
MAX_ENTRIES = 1000
"""Of a folder are looked at for such files: a result may go into a folder of a million images."""
_RANDOM = "[a-z0-9_]{8}"  # what tempfile puts into names
_LEFTOVER = rf"\..+\.{_RANDOM}\.tmp(\.[A-Za-z0-9]+)?"
NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
"""Numbers of the errors of a disk that is full."""
_PROBE_BYTES = 2**20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    Whatever stops the block, an interrupt included, leaves `path` as it was and removes the
    temporary file. The parent folder is made where it is missing. The temporary name ends in
    `path`'s own suffix, because some writers choose the format by it.

    Raises:
        TltoolsError: If the folder cannot be written to, or there is no room for the file.
    """
    with _made_beside(path):
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}", dir=path.parent
        )
        os.close(handle)
    temporary = Path(name)
    try:
        with _explained(path, temporary):
            yield temporary
            sync_file(temporary)
            # mkstemp makes files private; a result should have the permissions of any new file.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        _sync_name(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, completely or not at all.

    Raises:
        TltoolsError: As `atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all, by way of `path` with `.new` at its end.

    Much cheaper than `atomic_path`, and for files that have one writer: after a loss of power there
    may be neither the old content nor the new one until `sync_file` and `sync_folder` are called.

    Raises:
        OSError: If it cannot be written; `path` is as it was then.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Put a file's bytes on the disk, so that a rename never precedes them.

    Raises:
        OSError: If that fails.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can do that (not on Windows).

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


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` if the block succeeds.

    `path` must not exist or be an empty folder; whatever stops the block removes the temporary
    folder.

    Raises:
        FileExistsError: If `path` has content.
        TltoolsError: If the temporary folder cannot be made; what the block raises is raised.
    """
    with _made_beside(path):
        name = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} exists and is not empty")
        temporary.replace(path)
        _sync_name(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, prefix: str = "") -> None:
    """Remove what killed processes of this user left a day ago or more, as far as that goes.

    Nothing else has such names, and nobody who still writes leaves a file alone for so long.

    Args:
        folder: Where to look.
        prefix: Of folders that `tempfile` made; without it, what this module makes is looked for.
    """
    pattern = re.compile(re.escape(prefix) + _RANDOM if prefix else _LEFTOVER)
    oldest = time.time() - LEFTOVER_AGE_S
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in islice(entries, MAX_ENTRIES):
            if pattern.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_old(entry, oldest)


def _remove_if_old(entry: os.DirEntry[str], oldest: float) -> None:
    info = entry.stat(follow_symlinks=False)
    if info.st_mtime >= oldest or (hasattr(os, "getuid") and info.st_uid != os.getuid()):
        return
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        Path(entry.path).unlink()


@contextmanager
def _made_beside(path: Path) -> Iterator[None]:
    """Turn any failure to make a temporary file or folder beside `path` into a TltoolsError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn the failure of a writer for want of room into a TltoolsError.

    Writers in C++ and Rust raise errors of their own for a full disk. So the disk is asked: if
    the temporary file cannot grow either, that was the reason.
    """
    try:
        yield
    except TltoolsError:
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise _cannot_write(path, error) from error
    except Exception as error:
        full = _why_it_cannot_grow(temporary)
        if full is None:
            raise
        raise _cannot_write(path, full) from error


def _cannot_write(path: Path, error: OSError) -> TltoolsError:
    remedy = "make room" if error.errno in NO_ROOM else "make its folder writable"
    return TltoolsError(
        f"cannot write {path}: {error.strerror}; what was there before is unchanged: {remedy}, "
        "or choose another place, and run it again"
    )


def _why_it_cannot_grow(path: Path) -> OSError | None:
    try:
        with path.open("ab") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error if error.errno in NO_ROOM else None
    return None


def _sync_name(path: Path) -> None:
    """Put a file's new name on the disk, where that can be done: the file itself is there."""
    with suppress(OSError):
        sync_folder(path.parent)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
