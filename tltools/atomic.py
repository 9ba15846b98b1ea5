"""Write durably: files and folders completely or not at all, and flushed to disk on request."""

import errno
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from tltools.errors import ConfigError, TltoolsError, cause_of

if sys.platform != "win32":
    import fcntl

LEFTOVER_AGE_S = 24 * 3600
"""Age at which a temporary folder of another machine, or without locks, counts as abandoned."""
MAX_ENTRIES = 1000
"""Folder entries to search for such folders: the folder may hold a million images."""
_PREFIX, _SUFFIX = ".tltools-", ".tmp"
_NAME = re.compile(r"\.tltools-[a-z0-9_]{8}\.tmp")  # with the random part of tempfile's names
_OWNER = ".owner"
"""File in a temporary folder that proves what the folder is; locked by the process that uses it."""
_PROOF = b"A temporary folder of tltools, which is deleted when its process has ended. Machine: "
NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
"""Error numbers of a full disk."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF})
"""Error numbers of a file system without locks (EBADF: NFS, of what is open for reading)."""
_PROBE_BYTES = 2**20
_HEAD_BYTES = 4096


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    If anything stops the block, including an interrupt, `path` stays unchanged and the temporary
    file is removed. A missing parent folder is created. The temporary file has the name of `path`,
    in a folder of its own, because some writers infer the format from it.

    Raises:
        TltoolsError: If the file cannot be written there. Other errors of the block propagate.
    """
    with _work_beside(path) as folder:
        temporary = folder / path.name
        with _explained(path, temporary):
            temporary.touch()
            yield temporary
            sync_file(temporary)
            temporary.chmod(0o666 & ~_umask())  # some writers create private files
            temporary.replace(path)
        _sync_name(path)


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Yield the temporary path of `atomic_path`, but remove the file instead of renaming it.

    Raises:
        TltoolsError: As for `atomic_path`.
    """
    with _work_beside(path) as folder, _explained(path, folder / path.name):
        yield folder / path.name


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, completely or not at all.

    Raises:
        TltoolsError: As for `atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all.

    This is much cheaper than `atomic_path`: until `sync_file` and `sync_folder` are called, a power
    failure may lose both old and new content.

    Raises:
        OSError: If it cannot be written; `path` stays unchanged.
    """
    with temporary_folder(path.parent) as folder:
        temporary = folder / path.name
        temporary.write_bytes(data)
        temporary.replace(path)


def refuse_foreign(path: Path, mark: bytes, what: str, *, parameter: str = "`output=`") -> None:
    """Refuse to replace a file that tltools did not write, whatever its name.

    Args:
        path: The file that is to be written.
        mark: What the beginning of such a file contains if tltools wrote it.
        what: What it would be, such as `a report`.
        parameter: What chose the path, for the message.

    Raises:
        ConfigError: If there is something else.
        TltoolsError: If its folder is a link to nowhere.
    """
    refuse_lost_link(path.parent)
    if not os.path.lexists(path):
        return
    try:
        # Opening a FIFO would block.
        is_ours = path.is_file() and mark in _head(path)
    except OSError:
        is_ours = False
    if not is_ours:
        raise exists_as_other(path, what, parameter=parameter)


def exists_as_other(path: Path, what: str, *, parameter: str = "`output=`") -> ConfigError:
    """Return the error of a file that tltools did not write; see `refuse_foreign`."""
    return ConfigError(
        f"{path} exists, and tltools did not write it as {what}; choose another {parameter}, or "
        "move it away"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def sync_file(path: Path) -> None:
    """Flush a file's bytes to disk, so that they are there before a rename.

    Raises:
        OSError: If that fails.
    """
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
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
    with _work_beside(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} exists and is not empty")
        temporary.replace(path)
        _sync_name(path)


def check_writable(folder: Path) -> None:
    """Check that files can be created in a folder, which may not exist yet; leaves nothing behind.

    Raises:
        TltoolsError: If they cannot.
    """
    refuse_lost_link(folder)
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        writable = "it" if existing == folder else "the folder above it"
        raise _cannot_write(folder, error, writable=writable) from error


def refuse_lost_link(path: Path) -> None:
    """Refuse a path that leads through a link to nowhere: of a disk that is not mounted, say.

    Creating its folder would fail with "file exists".

    Raises:
        TltoolsError: If it does.
    """
    for one in map(str, (path, *path.absolute().parents)):
        if os.path.islink(one) and not os.path.exists(one):  # noqa: PTH110, PTH114 - never raise
            raise TltoolsError(
                f"cannot write {path}: {one} is a link to {Path(one).readlink()}, which does not "
                "exist; create that folder, or choose another path"
            )


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent`, which is removed at the end of the block.

    Folders that killed processes left in `parent` are removed, too.

    Raises:
        OSError: If it cannot be created.
    """
    remove_leftovers(parent)
    folder, handle = _new_folder(parent)
    try:
        yield folder
    finally:
        if sys.platform == "win32":  # which does not delete what is open
            os.close(handle)
            _empty(folder)
        else:
            _empty(folder)
            os.close(handle)


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders in `parent` that killed processes left.

    A folder is one only if it contains the proof that tltools wrote: a name proves nothing. It is
    left if no process has locked that file any more; where locks do not reach, after a day. Errors
    are ignored.
    """
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in islice(entries, MAX_ENTRIES):
            if is_temporary_name(entry.name):
                with suppress(OSError):
                    _remove_if_left(Path(entry.path))


def is_temporary_name(name: str) -> bool:
    """Return whether a file name is like those of `temporary_folder`."""
    return _NAME.fullmatch(name) is not None


def _new_folder(parent: Path) -> tuple[Path, int]:
    """Create a temporary folder; return it with the handle that locks it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=parent))
        try:
            handle = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            continue  # another process has just removed it, because it was still empty
        try:
            lock(handle)
            os.write(handle, _PROOF + os.fsencode(platform.node()))
        except OSError:
            os.close(handle)
            _empty(folder)
            raise
        return folder, handle


def _remove_if_left(folder: Path) -> None:
    if not stat.S_ISDIR(folder.lstat().st_mode):
        return
    try:
        handle = os.open(folder / _OWNER, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        folder.rmdir()  # fails unless it is empty
        return
    try:
        if _is_left(folder, handle):
            _empty(folder)
    finally:
        os.close(handle)


def lock(handle: int, *, shared: bool = False) -> bool | None:
    """Lock an open file until it is closed; never waits.

    Args:
        handle: The file.
        shared: Allow other shared locks beside this one, which asks whether there is a lock that
            is not shared.

    Returns:
        Whether it is locked now: False if another process holds the lock, None if the system or
        the file system has no locks.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _is_left(folder: Path, handle: int) -> bool:
    """Return whether a temporary folder is one of tltools, and its process has ended."""
    content = os.read(handle, 1024)
    if not content.startswith(_PROOF):
        return False
    is_here = content.removeprefix(_PROOF) == os.fsencode(platform.node())
    locked = lock(handle) if is_here else None
    if locked is not None:
        return locked
    oldest = time.time() - LEFTOVER_AGE_S
    return all(path.lstat().st_mtime < oldest for path in list(folder.iterdir()))


def _empty(folder: Path) -> None:
    """Remove a temporary folder, the proof last; errors are ignored."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _OWNER:
                Path(entry.path).unlink()
        (folder / _OWNER).unlink()
        folder.rmdir()


@contextmanager
def _work_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; a failure to create it is a TltoolsError."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(temporary_folder(path.parent))
        except OSError as error:
            refuse_lost_link(path.parent)
            raise _cannot_write(path, error) from error
        yield folder


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn a failure to write a temporary file, or a full disk, into a TltoolsError.

    Writers in C++ and Rust raise their own errors for a full disk. So the disk is probed: if the
    temporary file cannot grow, a full disk was the reason.
    """
    try:
        yield
    except TltoolsError:
        raise
    except OSError as error:
        # The temporary file's name would tell the user nothing.
        if error.errno in NO_ROOM or error.filename in (temporary, str(temporary)):
            raise _cannot_write(path, error) from error
        raise
    except Exception as error:
        full = _why_it_cannot_grow(temporary)
        if full is None:
            raise
        raise _cannot_write(path, full) from error


def _cannot_write(path: Path, error: OSError, *, writable: str = "its folder") -> TltoolsError:
    """Return the error of a file or folder that cannot be written.

    Args:
        path: The file or folder.
        error: Why.
        writable: What to make writable.
    """
    if error.errno in NO_ROOM:
        remedy = "free some disk space"
    elif error.errno in (errno.EIO, errno.ESTALE):
        remedy = "check its disk or share"
    else:
        remedy = f"make {writable} writable"
    is_file = os.path.isfile(path)  # noqa: PTH113 - no error if it cannot be accessed
    unchanged = " the earlier file there is unchanged;" if is_file else ""
    return TltoolsError(
        f"cannot write {path}: {cause_of(error)};{unchanged} {remedy} or choose another path, then "
        "run it again"
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


_UMASK_LOCK = threading.Lock()
"""Held while the umask is read: else a thread could restore what another one has set."""


def _umask() -> int:
    """Return the process's umask, which can be read only by setting it."""
    with _UMASK_LOCK:
        mask = os.umask(0o077)
        os.umask(mask)
        return mask
