"""List the pictures of folders, files and lists, lazily and in a fixed order."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tltools.data.images import IMAGE_SUFFIXES, find_images
from tltools.errors import DataError

STDIN = Path("-")
LIST_SUFFIX = ".txt"


@dataclass(frozen=True, slots=True)
class Picture:
    """A file to classify, and what the results call it."""

    path: Path
    name: str
    """With `/` between folders. May hold surrogates, for bytes that are not UTF-8."""


def list_pictures(inputs: Sequence[Path]) -> Iterator[Picture]:
    """List the pictures of `inputs`, in the order given.

    Args:
        inputs: Each is one of
            a folder: all pictures in it and below it, by suffix; their names are relative to the
            folder, or start with it where there are several inputs;
            a `.txt` file: a list, one path a line, relative to the list's own folder; the name is
            the line. Files that turn out to be missing get a row with their error;
            `-`: such a list from standard input, relative to the working folder;
            any other file: a picture, whatever its suffix; the name is the path as given.

    Returns:
        An iterator that reads folders and lists as it goes. It raises DataError if there was
        not one picture.

    Raises:
        DataError: If an input does not exist.
    """
    for source in inputs:
        if source != STDIN and not source.exists():
            raise DataError(f"{source} does not exist; give folders, pictures or .txt lists")
    return _refuse_nothing(
        chain.from_iterable(_list_one(source, alone=len(inputs) == 1) for source in inputs),
        inputs,
    )


def _list_one(source: Path, *, alone: bool) -> Iterator[Picture]:
    if source == STDIN:
        return _list_lines(sys.stdin.buffer, Path())
    if source.is_dir():
        return _list_folder(source, alone=alone)
    if source.suffix.lower() == LIST_SUFFIX:
        return _list_file(source)
    return iter([Picture(source, source.as_posix())])


def _list_folder(folder: Path, *, alone: bool) -> Iterator[Picture]:
    # Slicing the text gives what `relative_to` gives, at a fraction of its cost.
    start = len(os.path.join(folder, "")) if alone and folder != Path() else 0  # noqa: PTH118
    for path in find_images(folder):
        yield Picture(path, path.as_posix()[start:])


def _list_file(source: Path) -> Iterator[Picture]:
    try:
        with source.open("rb") as file:
            yield from _list_lines(file, source.parent)
    except OSError as error:
        raise DataError(f"cannot read the list {source}: {error.strerror}") from error


def _list_lines(lines: Iterable[bytes], folder: Path) -> Iterator[Picture]:
    """Yield the picture of each line that is not empty; bytes that are not UTF-8 survive."""
    for number, line in enumerate(lines):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        name = os.fsdecode(content.rstrip(b"\r\n"))
        if name.strip():
            yield Picture(folder / name, name)


def _refuse_nothing(pictures: Iterator[Picture], inputs: Sequence[Path]) -> Iterator[Picture]:
    empty = True
    for picture in pictures:
        empty = False
        yield picture
    if empty:
        names = ", ".join(str(source) for source in inputs) or "nothing"
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"no pictures in {names} (folders are searched for {suffixes})")
