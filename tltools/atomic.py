"""Write durably: files and folders completely or not at all, and flushed to disk on request."""

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
"""Age at which a temporary file counts as abandoned."""
MAX_ENTRIES = 1000
"""Folder entries to search for such files: the folder may hold a million images."""
_RANDOM = "[a-z0-9_]{8}"  # the random part of tempfile's names
_LEFTOVER = rf"\..+\.{_RANDOM}\.tmp(\.[A-Za-z0-9]+)?"
NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
"""Error numbers of a full disk."""
_PROBE_BYTES = 2**20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    If anything stops the block, including an interrupt, `path` stays unchanged and the temporary
    file is removed. A missing parent folder is created. The temporary name ends in `path`'s suffix,
    because some writers infer the format from it.

    Raises:
        TltoolsError: If the folder is not writable, or the disk is full.
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
            # mkstemp creates private files; a result gets the usual permissions of a new file.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        _sync_name(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, completely or not at all.

    Raises:
        TltoolsError: As for `atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all, through a file named `path` plus `.new`.

    This is much cheaper than `atomic_path`, and meant for files with a single writer: until
    `sync_file` and `sync_folder` are called, a power failure may lose both old and new content.

    Raises:
        OSError: If it cannot be written; `path` stays unchanged.
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
    """Flush a file's bytes to disk, so that they are there before a rename.

    Raises:
        OSError: If that fails.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, if the system supports it (Windows does not).

    Raises:
        OSError: If that fails.
    """
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems do not support it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` if the block succeeds.

    `path` must not exist, or must be an empty folder. If anything stops the block, the temporary
    folder is removed.

    Raises:
        FileExistsError: If `path` is not empty.
        TltoolsError: If the temporary folder cannot be created. Errors of the block propagate.
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


def check_writable(folder: Path) -> None:
    """Check that files can be created in a folder, which may not exist yet; leaves nothing behind.

    Raises:
        TltoolsError: If they cannot.
    """
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        raise _cannot_write(folder, error) from error


def remove_leftovers(folder: Path, prefix: str = "") -> None:
    """Remove temporary files that killed processes of this user left at least a day ago.

    Nothing else uses such names, and no active writer leaves a file untouched for that long.
    Errors are ignored.

    Args:
        folder: Folder to search.
        prefix: Prefix of folders created with `tempfile`; if empty, this module's own temporary
            files are searched for.
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
    """Turn a failure to create a temporary file or folder beside `path` into a TltoolsError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn a writer's failure on a full disk into a TltoolsError.

    Writers in C++ and Rust raise their own errors for a full disk. So the disk is probed: if the
    temporary file cannot grow, a full disk was the reason.
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
    remedy = "free some disk space" if error.errno in NO_ROOM else "make its folder writable"
    return TltoolsError(
        f"cannot write {path}: {error.strerror}; an earlier file there is unchanged; {remedy} or "
        "choose another path, then run it again"
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
    """Flush a file's new name to disk if possible; the file itself is already complete."""
    with suppress(OSError):
        sync_folder(path.parent)


def _umask() -> int:
    """Return the process's umask, which can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
