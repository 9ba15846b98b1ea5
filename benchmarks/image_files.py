"""Make the images to classify: copies, hard links, large JPEGs and a truncated one."""

import os
import shutil
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image
from systems import SUFFIX

LARGE_SIZE = (4000, 3000)
LARGE_QUALITIES = (92, 85)
"""JPEG qualities: as from a camera, and as saved by an editor. With grain, 12 megapixels take
3.5 and 2.1 MB."""
NUM_LARGE = 16
GRAIN = 5.0
"""Standard deviation of the noise on a large image, in levels of 255, like a phone's at dusk."""


def find_jpegs(folder: Path) -> list[Path]:
    """Return the JPEGs directly in a folder, in order.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg"})
    if not found:
        raise FileNotFoundError(f"no JPEGs in {folder}")
    return found


def copies(sources: Sequence[Path], folder: Path, count: int) -> Path:
    """Fill a new folder with copies of the images, repeating them as often as needed."""
    return _fill(sources, folder, count, shutil.copyfile)


def links(sources: Sequence[Path], folder: Path, count: int) -> Path:
    """Fill a new folder with hard links to the images, which must be on the same file system."""
    return _fill(sources, folder, count, os.link)


def link_tree(sources: Sequence[Path], folder: Path, count: int, *, folders: int) -> Path:
    """Spread hard links over `folders` folders, or put all into one if it is 0."""
    if not folders:
        return links(sources, folder, count)
    for number in range(folders):
        share = count // folders + (number < count % folders)
        links(sources, folder / f"{number:04}", share)
    return folder


def large(sources: Sequence[Path], folder: Path, count: int, *, quality: int) -> Path:
    """Scale images up to 12 megapixels and add grain, so that the files are as large as photos.

    Only `NUM_LARGE` are made, at a second each; the rest are copies.
    """
    made = folder.with_name(folder.name + "-made")
    made.mkdir(parents=True)
    for number, source in enumerate(islice(cycle(sources), min(count, NUM_LARGE))):
        with Image.open(source) as image:
            pixels = image.convert("RGB").resize(LARGE_SIZE, Image.Resampling.BICUBIC)
        rng = np.random.default_rng(number)
        grain = rng.standard_normal((LARGE_SIZE[1], LARGE_SIZE[0], 1), np.float32) * GRAIN
        noisy = np.clip(np.asarray(pixels) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(made / f"{number:03}{SUFFIX}", quality=quality)
    return copies(find_jpegs(made), folder, count)


def with_broken(sources: Sequence[Path], folder: Path, count: int) -> tuple[Path, str]:
    """Copy images, and truncate the middle one to half its length; return its name."""
    copies(sources, folder, count)
    broken = folder / f"{count // 2:07}{SUFFIX}"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    return folder, broken.name


def _fill(
    sources: Sequence[Path], folder: Path, count: int, put: Callable[[Path, Path], object]
) -> Path:
    folder.mkdir(parents=True)
    for number, source in enumerate(islice(cycle(sources), count)):
        put(source, folder / f"{number:07}{SUFFIX}")
    return folder
