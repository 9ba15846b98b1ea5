"""Write the sample set into a folder: images, their labels, and the settings of the sample."""

import csv
from pathlib import Path

import msgspec
import numpy as np

from tltools.atomic import atomic_folder, refuse_lost_link
from tltools.errors import ConfigError, DataError, cause_of
from tltools.parallel import num_cores, ordered_map
from tltools.progress import SILENT, Progress
from tltools.sample.image import draw_image
from tltools.wording import counted

SAMPLE_CLASSES = ("non-emergency", "emergency")
"""Class names of the labels 0 and 1."""

SAMPLE_CSV = "sample.csv"
"""Name of the table in the sample's folder; the images are in `images/` beside it."""

EMERGENCY_SHARE = 0.45
"""Fraction of the images that show an emergency vehicle."""
JPEG_QUALITY = 90


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that identify a sample; stored in its folder as `sample.json`."""

    num_images: int
    seed: int
    size: int
    version: int = 1
    """Version of the drawing code; incremented when the same seed yields different images."""


def draw_sample(
    folder: Path,
    *,
    num_images: int = 300,
    seed: int = 13,
    size: int = 224,
    progress: Progress = SILENT,
) -> Path:
    """Draw the sample set into `folder`, in the layout of the article's data.

    `sample.csv` has the columns `image_names` and `emergency_or_not` (1 or 0); the images are in
    `images/`. The same arguments yield the same images. A folder that already holds this sample is
    left unchanged.

    Args:
        folder: Folder to draw into; it must not exist, be empty, or hold the same sample.
        num_images: Number of images, of which `EMERGENCY_SHARE` show an emergency vehicle.
        seed: Random seed.
        size: Height and width of an image in pixels.
        progress: Shows the images being drawn.

    Returns:
        `folder`.

    Raises:
        ConfigError: If there are fewer than two images per class, the images are too small to show
            anything, the seed is negative, or `folder` has other content.
        DataError: If `folder` cannot be written.
    """
    if num_images < 4:
        raise ConfigError(f"`num_images=` must be at least 4, got {num_images}")
    if size < 32:
        raise ConfigError(f"the sample's images need at least 32 pixels a side, got {size}")
    if seed < 0:
        raise ConfigError(f"the seed must not be negative, got {seed}")
    folder = Path(folder)
    refuse_lost_link(folder)
    facts = _Facts(num_images=num_images, seed=seed, size=size)
    try:
        if _holds(folder, facts):
            return folder
        with atomic_folder(folder) as temporary:
            _write_sample(temporary, facts, progress)
    except OSError as error:
        raise DataError(f"cannot write the sample to {folder}: {cause_of(error)}") from error
    return folder


def _holds(folder: Path, facts: _Facts) -> bool:
    """Return whether `folder` holds this sample; False if it is empty or does not exist."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = msgspec.json.decode((folder / "sample.json").read_bytes(), type=_Facts)
    except (OSError, msgspec.MsgspecError):
        found = None
    num_found = len(list((folder / "images").glob("*.jpg")))
    if found == facts and num_found == facts.num_images and (folder / SAMPLE_CSV).is_file():
        return True
    if found is None:
        what = "is not a sample of tltools"
    elif found == facts:
        what = "lacks files of this sample"
    else:
        what = f"is another sample ({counted(found.num_images, 'image')}, seed {found.seed})"
    raise ConfigError(f"{folder} exists and {what}: choose another folder, or delete it first")


def _write_sample(folder: Path, facts: _Facts, progress: Progress) -> None:
    """Draw all images into an empty folder, and write the table and the facts."""
    num_emergency = min(max(round(facts.num_images * EMERGENCY_SHARE), 2), facts.num_images - 2)
    labels = np.arange(facts.num_images) < num_emergency
    labels = np.random.default_rng(facts.seed).permutation(labels).astype(int).tolist()
    digits = max(4, len(str(facts.num_images - 1)))
    names = [f"{index:0{digits}d}.jpg" for index in range(facts.num_images)]
    (folder / "images").mkdir()

    def draw(index: int) -> None:
        rng = np.random.default_rng((facts.seed, index))
        image = draw_image(rng, emergency=bool(labels[index]), size=facts.size)
        image.save(folder / "images" / names[index], quality=JPEG_QUALITY)

    with progress.bar("Drawing the sample set", facts.num_images) as bar:
        workers = num_cores()
        for _ in ordered_map(draw, range(facts.num_images), workers=workers, ahead=4 * workers):
            bar.advance()
    with (folder / SAMPLE_CSV).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_names", "emergency_or_not"])
        writer.writerows(zip(names, labels, strict=True))
    (folder / "sample.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2))
