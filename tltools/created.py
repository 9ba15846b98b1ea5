"""Folders that work creates before it has anything to put into them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Remove what the block creates of a folder and its parents, if it is empty at the end.

    Args:
        folder: A folder that may not exist yet.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # one has files, which stay, and so do its parents
            for one in missing:
                if one.exists():
                    one.rmdir()
