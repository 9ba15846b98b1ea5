"""List the images in folders, archives, files and lists, lazily and in a fixed order."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from tltools.data.folders import OnSkip, find_folders, own_content, refuse_run
from tltools.data.image_ref import ImageRef
from tltools.data.left_out import LeftOut
from tltools.data.location import Location, Url, is_address, is_url, without_query
from tltools.data.remote import read_text_lines
from tltools.data.remote_images import Remotes, list_remote
from tltools.data.suffixes import TABLE_SUFFIXES, is_archive_name, is_image_name
from tltools.data.text import clean, decoded_lines
from tltools.errors import DataError, cause_of
from tltools.runtime.model_formats import EXPORT_DIR, first_export, is_export_name, named_export
from tltools.wording import similar_paths

STDIN = Path("-")
LIST_SUFFIX = ".txt"
LINES_AT_ONCE = 1024
"""Number of lines of a list that form a portion."""
_LOOKED_AT = 2
"""First lines of a list that may show that it is a table: its header and a row."""
_ODD_STARTS = "\"'# \t\u00a0\u200b\ufeff"
_ODD_ENDS = "\"' \t\u00a0\u200b\ufeff"


class Portion(NamedTuple):
    """Some of the images, listed but not yet read; their number is known."""

    num_images: int
    images: Iterator[ImageRef]
    """Can be consumed only once."""


def list_images(inputs: Sequence[Location]) -> Iterator[ImageRef]:
    """List the images of `inputs`, in the order given.

    Args:
        inputs: Each is one of
            a folder: all images in it and its subfolders, by suffix; their names are relative to
            the folder, or start with it if there are several inputs;
            a `.txt` file: a list with one path per line, relative to the list's folder, in UTF-8 or
            UTF-16; the line is the name, without quotes and blanks around it. Blank lines and
            comments (`# ...`) are skipped. A missing file gets a row with its error;
            an archive, by suffix (see `list_archive`): all images in it, in archive order, named
            like those of a folder;
            `-`: such a list from standard input, relative to the working folder;
            any other file: an image, whatever its suffix; its name is the path as given;
            a URL of any of these (see `tltools.data.remote`); lists may contain URLs, too.

    Returns:
        An iterator that reads folders and lists as it proceeds. It raises DataError if there are
        no images, or if a folder, archive or list cannot be read, and UnreachableError if the
        server of a URL cannot be reached.

    Raises:
        DataError: If an input does not exist.
    """
    return chain.from_iterable(portion.images for portion in list_portions(inputs))


def list_portions(
    inputs: Sequence[Location],
    *,
    on_error: Callable[[DataError], None] | None = None,
    left_out: LeftOut | None = None,
    on_skip: OnSkip | None = None,
) -> Iterator[Portion]:
    """List the same images as `list_images`, in portions.

    Args:
        inputs: See `list_images`.
        on_error: Called for each folder that cannot be listed and each archive that cannot be read
            to its end, which are then skipped; None to raise the error. Also called, once per
            suffix, for an image in a folder whose name has no image suffix.
        left_out: Counts the files without an image suffix.
        on_skip: Called for each folder of a system or of tltools' output, which is not searched.

    Returns:
        An iterator over folders, or the parts of them between subfolders, and over parts of
        archives and lists. Lines of standard input are yielded one by one as they arrive, and so
        are the images of a compressed tar, which hold their bytes.

    Raises:
        DataError: As `list_images`.
    """
    check_inputs(inputs)
    report = _Report(on_error, LeftOut(on_error) if left_out is None else left_out, on_skip)
    return _refuse_nothing(
        chain.from_iterable(_list_one(source, len(inputs) == 1, report) for source in inputs),
        inputs,
    )


def check_inputs(inputs: Sequence[Location]) -> None:
    """Refuse inputs that cannot be listed.

    Raises:
        DataError: If a local one does not exist or is a run, or one is a table.
    """
    for source in inputs:
        if isinstance(source, Path) and source != STDIN and not source.exists():
            if export := first_export(EXPORT_DIR / source) or named_export(str(source)):
                raise DataError(f"{source} is a model, not images: choose it with `model={export}`")
            raise DataError(
                f"{source} does not exist{similar_paths(source)}; name folders, images, archives "
                "or .txt lists"
            )
        if isinstance(source, Path) and is_export_name(source) and source.is_file():
            raise DataError(f"{source} is a model, not images: choose it with `model={source}`")
        if isinstance(source, Path):
            refuse_run(
                source,
                "images",
                f"export it with tltools export {source}, then classify images with tltools "
                "classify FOLDER",
            )
        if source.suffix.lower() in TABLE_SUFFIXES:
            raise DataError(
                f"{source} is neither an image nor a list: write the paths of the images into a "
                ".txt file, one per line"
            )


def is_slow(inputs: Sequence[Location]) -> bool:
    """Return whether listing ahead takes long or needs much memory."""
    if STDIN in inputs or any(isinstance(source, Url) for source in inputs):
        return True  # the listing may take very long
    archives = [Path(str(source)) for source in inputs if is_archive_name(source.name)]
    if not archives:
        return False
    from tltools.data.archives import is_sequential

    return any(map(is_sequential, archives))


def are_found(inputs: Sequence[Location]) -> bool:
    """Return whether all images of `inputs` exist when they are listed; a list may name others."""
    return not any(
        source == STDIN or (source.suffix.lower() == LIST_SUFFIX and not Path(str(source)).is_dir())
        for source in inputs
    )


class _Report(NamedTuple):
    """Where a listing reports what it skips."""

    on_error: Callable[[DataError], None] | None
    left_out: LeftOut
    on_skip: OnSkip | None

    def on_others(self, names: Sequence[str]) -> None:
        """Count files that are not looked into."""
        self.left_out.add(None, names)


def _list_one(source: Location, alone: bool, report: _Report) -> Iterator[Portion]:
    if isinstance(source, Url):
        return _list_url(source, alone, report)
    if source == STDIN:
        lines = _without_image(sys.stdin.buffer, "standard input")
        return _list_lines(lines, Path(), at_once=1)
    if source.is_dir():
        return _list_folder(source, alone, report)
    if is_archive_name(source.name):
        return _list_archive(source, alone, report)
    if source.suffix.lower() == LIST_SUFFIX:
        return _list_file(source)
    return iter([Portion(1, iter([ImageRef.of_file(source)]))])


def _list_folder(root: Path, alone: bool, report: _Report) -> Iterator[Portion]:
    # Slicing the text gives the same as `relative_to`, at a fraction of the cost.
    start = len(os.path.join(root, "")) if alone and root != Path() else 0  # noqa: PTH118
    for folder, names in find_folders(
        root,
        on_error=report.on_error,
        on_others=report.left_out.add,
        on_skip=report.on_skip,
    ):
        prefix = (folder / "_").as_posix()[start:-1]
        yield Portion(len(names), _images(folder, names, prefix))


def _images(folder: Path, names: Iterable[str], prefix: str = "") -> Iterator[ImageRef]:
    start = os.path.join(folder, "")  # noqa: PTH118 - `Path` would drop the end
    for name in names:
        yield ImageRef(prefix + name, start + name)


def _list_archive(source: Path, alone: bool, report: _Report) -> Iterator[Portion]:
    from tltools.data.archives import list_archive  # here, because most jobs do without it

    prefix = "" if alone else source.as_posix() + "/"
    for members in list_archive(source, on_error=report.on_error, on_others=report.on_others):
        images = (member.within(prefix) for member in members)
        yield Portion(len(members), images)


def _list_url(url: Url, alone: bool, report: _Report) -> Iterator[Portion]:
    if url.suffix.lower() == LIST_SUFFIX:
        yield from _list_lines(read_text_lines(url), url.parent, at_once=LINES_AT_ONCE)
        return
    for images in list_remote(url, on_error=report.on_error, on_others=report.on_others):
        prefix = "" if alone or images[0].name == url.plain else url.plain + "/"
        yield Portion(len(images), (image.within(prefix) for image in images))


def _list_file(source: Path) -> Iterator[Portion]:
    try:
        with source.open("rb") as file:
            lines = _without_image(file, str(source))
            yield from _list_lines(lines, source.parent, at_once=LINES_AT_ONCE)
    except OSError as error:
        raise DataError(
            f"cannot read the list {source}: {cause_of(error)}; make it readable"
        ) from error


def _without_image(lines: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield the lines of a list; refuse an image in its place."""
    lines = iter(lines)
    first = next(lines, b"")
    if not first.isascii() or not first.strip().decode().isprintable():
        from tltools.data.image_formats import is_image_start  # here: most lists are plain text

        if is_image_start(first) or first.startswith(b"\x89PNG"):  # whose first line ends there
            raise DataError(f"{name} is an image, not a list of paths; name the image file itself")
    yield first
    yield from lines


def _list_lines(lines: Iterable[bytes], folder: Location, *, at_once: int) -> Iterator[Portion]:
    names = _names(lines, folder)
    remotes = Remotes()
    while some := list(islice(names, at_once)):
        yield Portion(len(some), (_named(name, folder, remotes) for name in some))


def _named(name: str, folder: Location, remotes: Remotes) -> ImageRef:
    """Return the image named by a line of a list in `folder`."""
    is_remote = isinstance(folder, Url)
    if is_address(name) and (is_remote or is_url(name) or not (folder / name).exists()):
        url = Url(name)
        if url.protocol == "file" and not is_remote:
            return ImageRef.of_file(url.local, name=name)
        return remotes.image(url.plain, url)
    if isinstance(folder, Url):
        shown = without_query(name) if folder.is_web else name
        return remotes.image(shown, folder.joined(name))
    return ImageRef.of_file(folder / name, name=name)


def _names(lines: Iterable[bytes], folder: Location) -> Iterator[str]:
    """Yield the paths of a list in `folder`, without blank lines and comments."""
    for number, line in enumerate(decoded_lines(lines)):
        if not line or line.isspace():
            continue
        if number < _LOOKED_AT:
            _refuse_row(line, number, folder)
        if line[0] in _ODD_STARTS or line[-1] in _ODD_ENDS or "\\" in line:
            name = _plain_name(line, folder)
            if name is not None:
                yield name
        else:
            yield line


def _plain_name(line: str, folder: Location) -> str | None:
    """Return the path of a line that is not written plainly; None for a comment.

    A file with exactly this name comes first.
    """
    if _exists(folder, line):
        return line
    name = clean(line)
    for quote in "\"'":
        if len(name) > 1 and name[0] == name[-1] == quote:
            name = name[1:-1].strip()
    if not name or (name.startswith("#") and (name[1:2] == " " or not is_image_name(name))):
        return None
    forward = name.replace("\\", "/")
    return forward if forward != name and _exists(folder, forward) else name


def _refuse_row(line: str, number: int, folder: Location) -> None:
    """Refuse a list whose lines hold an image and more, such as its label."""
    for delimiter in (",", ";", "\t", " "):
        first, _, rest = (part.strip(" \"'") for part in line.partition(delimiter))
        is_row = bool(rest) and is_image_name(first) and not _exists(folder, line)
        if is_row and _exists(folder, first):
            raise DataError(
                f"line {number + 1} of the list holds more than a path ({line!r}): keep only the "
                "paths of the images, one per line"
            )


def _exists(folder: Location, name: str) -> bool:
    """Return whether a list in a folder of this machine names a file."""
    return isinstance(folder, Path) and not is_url(name) and os.path.exists(folder / name)  # noqa: PTH110


def _refuse_nothing(portions: Iterator[Portion], inputs: Sequence[Location]) -> Iterator[Portion]:
    empty = True
    for portion in portions:
        empty = False
        yield portion
    if empty:
        names = ", ".join(str(one) + _content(one) for one in inputs) or "nothing"
        raise DataError(
            f"no images in {names}; name others (folders and archives are searched by suffix: "
            "tltools docs classify)"
        )


def _content(source: Location) -> str:
    return own_content(source) if isinstance(source, Path) else ""
