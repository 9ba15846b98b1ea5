"""Find images in folders, lazily and in sorted order."""

import os
import re
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop
from pathlib import Path

from tltools.data.reasons import reason_of
from tltools.data.suffixes import is_image_name
from tltools.errors import DataError

MANY_NAMES = 200_000
"""Number of names in a folder above which sorting would noticeably delay the first result."""


def find_images(root: Path) -> Iterator[Path]:
    """Find the images under `root`, lazily and in the order of `sorted(paths)`.

    Subfolders are searched, including links to folders unless they lead back to a parent. Hidden
    files and folders (`.name`) are skipped. Files are not opened: a broken link or a corrupt file
    is yielded, so that it gets a row.

    Raises:
        DataError: When called, if `root` is missing or not a folder; while iterating, if a folder
            cannot be listed.
    """
    return (folder / name for folder, names in find_folders(root) for name in names)


def find_folders(
    root: Path,
    *,
    on_error: Callable[[DataError], None] | None = None,
    on_others: Callable[[Path, Sequence[str]], None] | None = None,
) -> "Iterator[tuple[Path, Names]]":
    """Find the same images as `find_images`, as folders and the names in them.

    Args:
        root: The folder to search.
        on_error: Called for each folder that cannot be listed, which is then skipped; None to raise
            the error.
        on_others: Called with a folder and the names of its files without an image suffix.

    Returns:
        An iterator over folders, or the parts of them between subfolders, each with at least one
        name.

    Raises:
        DataError: See `find_images`.
    """
    root = Path(root)
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {problem}: name a folder of images")
    return _walk(root, ancestors=frozenset(), on_error=on_error, on_others=on_others)


class Names:
    """The names of a folder's images in sorted order, to be iterated over once.

    They are stored as one string, which takes a fifth of the memory of a list. Because sorting a
    million names takes half a second, larger numbers are stored as a heap, which has its first name
    ready ten times sooner.
    """

    def __init__(self, names: list[str]) -> None:
        """Take ownership of `names`, which may be in any order."""
        self._num_names = len(names)
        self._heap: list[str] = []
        self._text = ""
        if len(names) > MANY_NAMES:
            heapify(names)
            self._heap = names
        else:
            names.sort()
            self._text = "/".join(names)  # no name contains it

    def __len__(self) -> int:
        """Return the original number of names."""
        return self._num_names

    def __iter__(self) -> Iterator[str]:
        """Yield the names; those in a heap are freed as they are yielded."""
        for match in re.finditer("[^/]+", self._text):
            yield match[0]
        while self._heap:
            yield heappop(self._heap)


def _walk(
    folder: Path,
    *,
    ancestors: frozenset[tuple[int, int]],
    on_error: Callable[[DataError], None] | None,
    on_others: Callable[[Path, Sequence[str]], None] | None,
) -> Iterator[tuple[Path, Names]]:
    """Yield `folder` with its names, split where subfolders sort in between, and the subfolders."""
    try:
        info = folder.stat()
        identity = (info.st_dev, info.st_ino)
        if identity in ancestors:
            return
        names, folders, others = _list_folder(folder)
    except OSError as error:
        failure = DataError(
            f"cannot list the folder {folder}: {reason_of(error)}; make it readable, or move it "
            "elsewhere"
        )
        if on_error is None:
            raise failure from error
        on_error(failure)
        return
    if others and on_others is not None:
        on_others(folder, others)
    if folders:
        names.sort()
        folders.sort()
    start = 0
    for name in folders:
        stop = bisect(names, name, start)
        if start < stop:
            yield folder, Names(names[start:stop])
        yield from _walk(
            folder / name,
            ancestors=ancestors | {identity},
            on_error=on_error,
            on_others=on_others,
        )
        start = stop
    if start < len(names):
        rest = Names(names[start:] if start else names)
        del names  # otherwise they would stay in memory until the rest has been consumed
        yield folder, rest


def _list_folder(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the names of images, folders and other files in `folder`, in any order."""
    names: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(name)
            elif is_image_name(name):
                names.append(name)
            else:
                others.append(name)
    return names, folders, others


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for instance; broken links are False by themselves
        return False
