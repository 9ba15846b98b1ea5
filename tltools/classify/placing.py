"""Copy, link or move one file without ever overwriting or losing one, and take that back."""

import errno
import filecmp
import os
import shutil
from pathlib import Path
from typing import Literal

from tltools.atomic import sync_file, sync_folder, temporary_folder

Action = Literal["copy", "hardlink", "move"]

_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})
"""Error numbers of a hard link to another disk, or on a file system without hard links."""


def place(source: Path, target: Path, action: Action) -> None:
    """Give a file a second place; a moved one keeps its first until `release` is called.

    Does nothing if the target holds the same bytes: an earlier call was stopped after it.

    Args:
        source: The file.
        target: A path in an existing folder.
        action: A `hardlink` is the same file under another name; a `move` is one too, or a copy
            if the target is on another disk; a link to a file is copied.

    Raises:
        FileExistsError: If another file is at the target.
        OSError: If it cannot be placed.
    """
    if os.path.lexists(target):
        if not _is_placed(source, target):
            raise FileExistsError(errno.EEXIST, "another file has this name", str(target))
        return
    if action == "copy":
        _copy(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if action == "hardlink" or error.errno not in _NO_LINKS:
            raise
        _copy(source, target)


def release(source: Path, target: Path) -> None:
    """Remove the first place of a moved file, whose second place is on the disk.

    Raises:
        OSError: If the two differ, or the second is a link, so that nothing is removed; or if it
            cannot be removed.
    """
    if not _is_placed(source, target):
        raise OSError(errno.EIO, f"differs from {source}, which was kept", str(target))
    source.unlink()


def take_back(source: Path, target: Path, action: Action) -> str | None:
    """Undo `place` and `release`: the source is what it was, and the target is gone.

    Returns:
        Why nothing was done, or None.

    Raises:
        OSError: If a file cannot be moved or deleted.
    """
    if not os.path.lexists(target):
        gone = f"and {source} are gone; if you moved the image, put it back to undo that, too"
        return None if os.path.lexists(source) else gone
    if _links_to(source, target):
        if action != "move":
            return f"is the last copy: {source} is a link to it; it was kept"
        source.unlink()  # which was put in the place of the moved image
    if os.path.lexists(source):
        if not is_same(source, target):
            return f"has changed, or {source} has; it was kept"
        target.unlink()
        return None
    if action != "move":
        return f"is the last copy: {source} is gone; it was kept"
    source.parent.mkdir(parents=True, exist_ok=True)
    place(target, source, "move")
    sync_folder(source.parent)
    release(target, source)
    return None


def _is_placed(source: Path, target: Path) -> bool:
    """Return whether a target is the image itself, not a link that may lead back to its source."""
    return not target.is_symlink() and is_same(source, target)


def _links_to(source: Path, target: Path) -> bool:
    """Return whether one path is a link that leads to the file at the other one."""
    return source.is_symlink() and source.exists() and source.samefile(target)


def is_same(first: Path, second: Path) -> bool:
    """Return whether two paths lead to the same file, or to files of the same bytes."""
    if first.samefile(second):
        return True
    return second.is_file() and filecmp.cmp(first, second, shallow=False)


def _copy(source: Path, target: Path) -> None:
    """Copy a file's bytes, times and permissions; the target appears when it is complete."""
    with temporary_folder(target.parent) as folder:
        temporary = folder / "image"
        shutil.copy2(source, temporary)
        sync_file(temporary)
        if not filecmp.cmp(source, temporary, shallow=False):
            raise OSError(errno.EIO, "the copy differs from the image", str(source))
        try:
            os.link(temporary, target)  # unlike a rename, never overwrites
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, "another file", str(target)) from error
            temporary.rename(target)
