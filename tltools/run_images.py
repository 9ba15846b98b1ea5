"""Find the images and the weights of a run after they, or the project with them, were moved."""

import csv
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice, product
from pathlib import Path

from tltools import schema
from tltools.data.folders import find_images
from tltools.data.images import image_sha256
from tltools.errors import DataError
from tltools.parallel import num_cores, ordered_map
from tltools.progress import SILENT, Progress

_NUM_TRIED = 3
"""Images of a run that are looked for elsewhere; more may be missing for another reason."""


def moved_with_project(split: Path) -> tuple[str, str] | None:
    """Return where the images of a run were and are, if a folder with both was moved.

    They are looked for below the current folder and below the one with the folder of runs, and are
    those of the run if their bytes are.

    Args:
        split: The run's table of images.

    Returns:
        Two beginnings of paths that end with a separator; None if the images are where they were,
        or are not found.
    """
    for path, sha256 in _first_images(split):
        if os.path.lexists(path):
            return None
        if (found := _moved(Path(path), sha256, split.parent)) is not None:
            return found
    return None


def moved_file(path: Path, sha256: str, run: Path) -> Path | None:
    """Return where a file of a run is, if a folder with both was moved; None if it is not found.

    Args:
        path: Where it was.
        sha256: The hash of its bytes.
        run: The run's folder.
    """
    found = _moved(path, sha256, run)
    return None if found is None else Path(found[1] + str(path).removeprefix(found[0]))


def _moved(path: Path, sha256: str, run: Path) -> tuple[str, str] | None:
    """Return how the paths of a file began, and how they begin now; None if it is not found."""
    parts = path.parts
    places = dict.fromkeys((Path.cwd(), run.absolute().parent.parent))
    for start, place in product(range(1, len(parts)), places):
        found = place.joinpath(*parts[start:])
        with suppress(DataError):
            if found.is_file() and image_sha256(found) == sha256:
                return str(Path(*parts[:start])).rstrip(os.sep) + os.sep, f"{place}{os.sep}"
    return None


def _first_images(split: Path) -> list[tuple[str, str]]:
    """Return the path and the SHA-256 of a few images of a run; empty if they cannot be read."""
    try:
        with split.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = islice(csv.DictReader(file), _NUM_TRIED)
            return [(row[schema.PATH], row["sha256"]) for row in rows]
    except (OSError, KeyError, csv.Error):
        return []


def find_by_bytes(
    wanted: Mapping[str, str], folder: Path, *, progress: Progress = SILENT
) -> dict[str, str]:
    """Find images by their bytes in a folder and those below it, whatever their names are.

    Of images with equal bytes, each is another file if there are as many; one with its old name
    comes first.

    Args:
        wanted: The SHA-256 of each image, by its old path.
        folder: Where they are looked for.
        progress: Where to report progress.

    Returns:
        The new absolute path of each image that was found, by its old path.

    Raises:
        DataError: If the folder is missing or cannot be listed, or a file in it cannot be read.
    """
    files = [os.path.abspath(path) for path in find_images(folder)]  # noqa: PTH100 - a link stays
    found: dict[str, str] = {}
    free: dict[str, deque[str]] = {}
    workers = num_cores()
    with progress.bar("Looking for the images", len(files)) as bar:
        hashes = ordered_map(_sha256_if_any, files, workers=workers, ahead=16 * workers)
        for path, sha256 in zip(files, hashes, strict=True):
            free.setdefault(sha256, deque()).append(path)
            bar.advance()
    for old, sha256 in wanted.items():
        if places := free.get(sha256):
            found[old] = _take(places, old)
    return found


def _sha256_if_any(path: str) -> str:
    """Return the SHA-256 of a file; empty if there is none, such as at the end of a broken link."""
    try:
        return image_sha256(path)
    except DataError:
        return ""


def _take(places: deque[str], old: str) -> str:
    """Take the file with an image's old name, else the next one; the last one stays for others."""
    name = os.path.basename(old)  # noqa: PTH119 - speed
    best = next((one for one in places if os.path.basename(one) == name), places[0])  # noqa: PTH119
    if len(places) > 1:
        places.remove(best)
    return best
