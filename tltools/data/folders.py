"""Find images in folders, lazily and in sorted order."""

import os
import re
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop
from pathlib import Path
from typing import Literal, NamedTuple

from tltools.data.reasons import ENVIRONMENT, GONE, refuse_failing
from tltools.data.suffixes import is_image_name
from tltools.errors import DataError, UnreachableError, cause_of
from tltools.wording import similar_paths

RUN_DIR = Path("runs")
"""Where runs are, unless another folder is named."""
MANY_NAMES = 200_000
"""Number of names in a folder above which sorting would noticeably delay the first result."""
MARKER = ".tltools"
"""Name of the file that marks a folder of tltools' own output."""
SORT_MANIFEST = "manifest.csv"
"""File in a folder of sorted images that says where each of them was."""
SORT_COLUMNS = ("source", "target", "label", "action")
"""Columns of that file."""
SORT_RECORD = ".sorted.json"
"""File that tells which job a folder of sorted images belongs to."""
SORT_ERRORS = "errors"
"""Folder of sorted images that could not be read."""
SYSTEM_FOLDERS = frozenset(
    {
        "__macosx",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "found.000",
    }  # macOS, Windows
    | {
        "lost+found",
        "lost.dir",
        "network trash folder",
        "temporary items",
    }  # Linux, Android, shares
    | {"@eadir", "#recycle", "#snapshot", "@sharebin", "@tmp", "#synorecycle"}  # Synology
    | {"@recycle", "@recently-snapshot", "@__thumb"}  # QNAP
)
"""Lowercase names of folders in which systems keep thumbnails, deleted files or their own data."""
SHEET = "inspect.png"
"""Name of the contact sheet of `tltools inspect` that is left out of a folder: once its default."""
SHEET_MARK = "tltools contact sheet"
"""Text in the header of a contact sheet, to tell it from images of the user."""
_HEADER_BYTES = 512
_MARK = "tltools wrote this folder and does not search it for images.\n"
_RUN_FILES = ({"split.csv", "card.json"}, {"split.csv", "plan.json"})
"""Files that show a run, finished or not."""
_EXPORTS = frozenset({".onnx", ".pt2", ".pt"})
"""Suffixes of exports."""

SkipReason = Literal["system", "output"]
OnSkip = Callable[[Path, SkipReason], None]
"""Called with what is left out: a folder of a system, or a folder or file that tltools wrote."""


def is_system_folder(name: str) -> bool:
    """Return whether a folder of this name belongs to a system and holds no data."""
    return name.lower() in SYSTEM_FOLDERS


def is_output_folder(folder: Path) -> bool:
    """Return whether tltools wrote a folder; False if it cannot be listed."""
    try:
        return _list_folder(folder).is_output
    except OSError:
        return False


def is_sorted_folder(folder: Path) -> bool:
    """Return whether a folder holds images that `tltools classify --sort-into` sorted into it."""
    files = os.path.isfile  # no error if the folder cannot be accessed
    return files(folder / SORT_MANIFEST) and files(folder / SORT_RECORD)


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run that tltools wrote, finished or not."""
    files = os.path.isfile  # no error if the folder cannot be accessed
    return any(all(files(folder / name) for name in names) for names in _RUN_FILES)


def refuse_run(folder: Path, wanted: str, remedy: str) -> None:
    """Refuse a run where images are wanted: those in it are its plots.

    Args:
        folder: Any path.
        wanted: What is wanted, such as `images`.
        remedy: What to name instead.

    Raises:
        DataError: If it is a run.
    """
    if is_run(folder):
        raise DataError(f"{folder} is a run, not {wanted}; {remedy}")


def own_content(folder: Path) -> str:
    """Return ` (it is a folder of runs)` or ` (… exports)` if it is one; empty otherwise.

    For messages: all folders in it are looked into.
    """
    kind = _own_kind(folder)
    return f" (it is a folder of {kind})" if kind else ""


def content(folder: Path) -> str:
    """Return `runs`, `exports` or `images`, of which a folder is one; empty if of none.

    For messages: all folders in it are looked into.
    """
    if kind := _own_kind(folder):
        return kind
    try:
        if is_output_folder(folder) or next(find_images(folder), None) is None:
            return ""
    except DataError:  # a folder in it cannot be listed
        return ""
    return "images"


def _own_kind(folder: Path) -> Literal["runs", "exports", ""]:
    try:
        inner = [one for one in folder.iterdir() if one.is_dir()]
        if any(map(is_run, inner)):
            return "runs"
        names = (entry.suffix for one in (folder, *inner) for entry in one.iterdir())
        return "exports" if not _EXPORTS.isdisjoint(names) else ""
    except OSError:  # not a folder, or one that cannot be listed: nothing is known of it
        return ""


def runs_in(folder: Path) -> Iterator[Path]:
    """Yield the runs in a folder, by name, the unfinished ones included."""
    try:
        inner = sorted(folder.iterdir())
    except OSError:  # not a folder, or one that cannot be listed
        return
    yield from (one for one in inner if not one.name.startswith(".") and is_run(one))


def say_runs(folder: Path) -> str:
    """Return the message that a folder, whose `content` are runs, is not one of them."""
    return f"{folder} is a folder of runs; name one of them, such as {next(runs_in(folder))}"


def find_images(root: Path) -> Iterator[Path]:
    """Find the images under `root`, lazily and in the order of `sorted(paths)`.

    Subfolders are searched, including links to folders unless they lead back to a parent. Hidden
    files and folders (`.name`), `SYSTEM_FOLDERS`, and folders and contact sheets that tltools wrote
    are skipped, except `root` itself. Images are not opened: a broken link or a corrupt file is
    yielded, so that it gets a row.

    Raises:
        DataError: When called, if `root` is missing or not a folder; while iterating, if a folder
            cannot be listed.
        UnreachableError: While iterating, if a folder disappears, or its disk or share fails.
    """
    return (folder / name for folder, names in find_folders(root) for name in names)


def find_folders(
    root: Path,
    *,
    on_error: Callable[[DataError], None] | None = None,
    on_others: Callable[[Path, Sequence[str]], None] | None = None,
    on_skip: OnSkip | None = None,
) -> "Iterator[tuple[Path, Names]]":
    """Find the same images as `find_images`, as folders and the names in them.

    Args:
        root: The folder to search.
        on_error: Called for each folder that cannot be listed, which is then skipped; None to raise
            the error.
        on_others: Called with a folder and the names of its files without an image suffix.
        on_skip: Called for each folder of a system, and for each folder or contact sheet that
            tltools wrote.

    Returns:
        An iterator over folders, or the parts of them between subfolders, each with at least one
        name.

    Raises:
        DataError: See `find_images`.
    """
    root = Path(root)
    if not root.is_dir():
        missing = f"does not exist{similar_paths(root)}"
        problem = "is not a folder" if root.exists() else missing
        raise DataError(f"{root} {problem}: name a folder of images")
    return _Walk(on_error, on_others, on_skip).walk(root, ancestors=frozenset())


def make_output_folder(folder: Path) -> None:
    """Create a folder and mark it, unless it exists: then it may hold images of the user."""
    if not folder.is_dir():
        mark_folder(folder)


def mark_folder(folder: Path) -> None:
    """Mark a folder as output of tltools, creating it if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(_MARK, encoding="utf-8")


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


class _Walk:
    """A search for images in folders, with the callbacks for folders that are left out."""

    def __init__(
        self,
        on_error: Callable[[DataError], None] | None,
        on_others: Callable[[Path, Sequence[str]], None] | None,
        on_skip: OnSkip | None,
    ) -> None:
        self._on_error = on_error
        self._on_others = on_others
        self._on_skip = on_skip

    def walk(
        self, folder: Path, *, ancestors: frozenset[tuple[int, int]]
    ) -> Iterator[tuple[Path, Names]]:
        """Yield `folder` with its names, split where subfolders sort in between, and those."""
        try:
            info = folder.stat()
            identity = (info.st_dev, info.st_ino)
            if identity in ancestors:
                return
            listed = _list_folder(folder)
        except OSError as error:
            _refuse_vanished(folder, error)
            self._report(folder, error)
            return
        if listed.is_output and ancestors:
            self._skip(folder, "output")
            return
        names, folders = listed.names, listed.folders
        self._tell_of_rest(folder, listed)
        del listed  # otherwise the names would stay in memory until the rest has been consumed
        if folders:
            names.sort()
            folders.sort()
        start = 0
        for name in folders:
            stop = bisect(names, name, start)
            if start < stop:
                yield folder, Names(names[start:stop])
            yield from self.walk(folder / name, ancestors=ancestors | {identity})
            start = stop
        if start < len(names):
            rest = Names(names[start:] if start else names)
            del names  # for the same reason
            yield folder, rest

    def _tell_of_rest(self, folder: Path, listed: "_Listed") -> None:
        """Report what a folder holds beside images and folders to search."""
        for name in sorted(listed.system_folders):
            self._skip(folder / name, "system")
        if listed.has_sheet:
            self._skip(folder / SHEET, "output")
        if listed.others and self._on_others is not None:
            self._on_others(folder, listed.others)

    def _report(self, folder: Path, error: OSError) -> None:
        failure = DataError(
            f"cannot list the folder {folder}: {cause_of(error)}; make it readable, or move it "
            "elsewhere"
        )
        if self._on_error is None:
            raise failure from error
        self._on_error(failure)

    def _skip(self, folder: Path, reason: SkipReason) -> None:
        if self._on_skip is not None:
            self._on_skip(folder, reason)


class _Listed(NamedTuple):
    names: list[str]
    """Names of the images, in any order."""
    folders: list[str]
    others: list[str]
    """Names of other files that are not hidden."""
    system_folders: list[str]
    is_output: bool
    has_sheet: bool


def _list_folder(folder: Path) -> _Listed:
    names: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    system_folders: list[str] = []
    is_marked = False
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                is_marked = is_marked or name == MARKER
            elif _is_folder(entry):
                (system_folders if is_system_folder(name) else folders).append(name)
            elif is_image_name(name):
                names.append(name)
            else:
                others.append(name)
    is_output = is_marked or any(map(set(others).issuperset, _RUN_FILES))
    has_sheet = SHEET in names and _is_sheet(folder / SHEET)
    if has_sheet:
        names.remove(SHEET)
    return _Listed(names, folders, others, system_folders, is_output, has_sheet)


def _is_sheet(path: Path) -> bool:
    """Return whether a file is a contact sheet of tltools, by its content."""
    try:
        if not path.is_file():  # opening a FIFO would block
            return False
        with path.open("rb") as file:
            return SHEET_MARK.encode() in file.read(_HEADER_BYTES)
    except OSError as error:
        if error.errno in ENVIRONMENT:
            raise
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in ENVIRONMENT:
            raise
        return False  # a link to itself, for instance; broken links are False by themselves


def _refuse_vanished(folder: Path, error: OSError) -> None:
    """Stop if a folder that was there a moment ago is gone, or its disk or share fails.

    Skipping it would leave out all images in it.
    """
    refuse_failing(folder, error)
    if error.errno in GONE:
        raise UnreachableError(
            f"the folder {folder} disappeared while it was searched; mount or move it back, then "
            "run it again"
        ) from error
