"""Compare ways to find near-duplicates: recall by kind of copy, and false alarms.

    python benchmarks/near_duplicates.py DATA... [--images 400] [--hashes]

DATA are folders of images. Each method gets the copies of `--images` of them. Its distances of all
pairs of different images say how many false alarms a threshold gives; pairs that tltools takes for
near-duplicates are left out of these, so look at those first, with `tltools inspect`. `--hashes`
adds the hashes of imagehash and pdqhash, if these are installed.
"""

import argparse
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asking import say
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from tltools.card import Preprocessing
from tltools.data.images import decode_image, load_image
from tltools.data.near import THRESHOLD, find_near_duplicates, thumbnail
from tltools.data.suffixes import is_image_name
from tltools.errors import DataError

Pixels = NDArray[np.uint8]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]

CHECK, HASHED = Preprocessing(size=32), Preprocessing(size=64)
FALSE_ALARMS = (0, 13)
"""Pairs of different images that a hash's threshold may take for near-duplicates."""


def _resized(image: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Cut a share off the width and the height, anywhere."""
    width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _brighter(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


KINDS: Mapping[str, tuple[Change, int]] = {
    "resized to 80%": (lambda image, _: _resized(image, 0.8), 95),
    "resized to 50%": (lambda image, _: _resized(image, 0.5), 95),
    "JPEG quality 85": (lambda image, _: image, 85),
    "JPEG quality 30": (lambda image, _: image, 30),
    "mirrored": (lambda image, _: ImageOps.mirror(image), 95),
    "brightness 0.7": (lambda image, _: _brighter(image, 0.7), 95),
    "brightness 1.3": (lambda image, _: _brighter(image, 1.3), 95),
    "cropped by 3%": (lambda image, rng: _cropped(image, 0.03, rng), 95),
    "cropped by 5%": (lambda image, rng: _cropped(image, 0.05, rng), 95),
    "cropped by 10%": (lambda image, rng: _cropped(image, 0.1, rng), 95),
    "60%, mirrored, quality 50": (lambda image, _: ImageOps.mirror(_resized(image, 0.6)), 50),
    "cropped by 5%, 70%, brightness 1.2, quality 50": (
        lambda image, rng: _brighter(_resized(_cropped(image, 0.05, rng), 0.7), 1.2),
        50,
    ),
    "cropped by 10%, mirrored, quality 40": (
        lambda image, rng: ImageOps.mirror(_cropped(image, 0.1, rng)),
        40,
    ),
}
"""Each kind of copy: what is done to an image, and the quality of the JPEG."""


def read_images(folders: Sequence[Path]) -> list[Path]:
    """Return the images in folders that can be decoded, in order."""
    found: list[Path] = []
    for path in sorted(one for folder in folders for one in folder.rglob("*")):
        try:
            if is_image_name(path.name) and path.is_file():
                load_image(path, CHECK)
                found.append(path)
        except DataError:
            say(f"left out: {path}")
    return found


def copies(paths: Sequence[Path], kind: str) -> list[bytes]:
    """Return a JPEG of each image, changed."""
    change, quality = KINDS[kind]
    rng = np.random.default_rng(1)
    made: list[bytes] = []
    for path in paths:
        file = io.BytesIO()
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        change(image, rng).save(file, "JPEG", quality=quality)
        made.append(file.getvalue())
    return made


def recall_of_tltools(paths: Sequence[Path], chosen: Sequence[int]) -> dict[str, float]:
    """Return the share of copies that the search finds among all images, by kind."""
    images = [thumbnail(load_image(path, CHECK)) for path in paths]
    start = time.perf_counter()
    found = find_near_duplicates(np.array(images))
    say(f"{len(paths):,} images compared in {time.perf_counter() - start:.1f} s")
    for (one, other), distance in zip(found.pairs.tolist(), found.distances, strict=True):
        if distance > THRESHOLD / 4:
            say(f"  {distance:.3f}  {paths[one]}  {paths[other]}")
    recall: dict[str, float] = {}
    for kind in KINDS:
        made = copies([paths[row] for row in chosen], kind)
        changed = [thumbnail(decode_image(data, CHECK)) for data in made]
        pairs = find_near_duplicates(np.array(images + changed)).pairs.tolist()
        linked = set(map(tuple, pairs))
        hits = [(row, len(paths) + number) in linked for number, row in enumerate(chosen)]
        recall[kind] = float(np.mean(hits))
    return recall


def _hashes() -> dict[str, Callable[[Pixels], Any]]:
    import imagehash
    import pdqhash

    return {
        "pHash 64": lambda image: imagehash.phash(Image.fromarray(image)).hash,
        "dHash 64": lambda image: imagehash.dhash(Image.fromarray(image)).hash,
        "dHash 256": lambda image: imagehash.dhash(Image.fromarray(image), hash_size=16).hash,
        "PDQ 256": lambda image: pdqhash.compute(np.ascontiguousarray(image))[0],
    }


def recall_of_hash(
    hashed: Callable[[Pixels], Any], paths: Sequence[Path], chosen: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Return the recall by number of false alarms and kind of copy."""

    def bits(images: Sequence[Pixels]) -> NDArray[np.float32]:
        return np.array([np.ravel(hashed(one)) for one in images], dtype=np.float32) * 2 - 1

    images = [load_image(path, HASHED) for path in paths]
    plain, mirrored = bits(images), bits([np.ascontiguousarray(one[:, ::-1]) for one in images])
    alike = np.maximum(plain @ plain.T, plain @ mirrored.T)
    known = find_near_duplicates(np.array([thumbnail(load_image(one, CHECK)) for one in paths]))
    alike[tuple(known.pairs.T)] = -np.inf
    others = np.sort(alike[np.triu_indices(len(paths), 1)])[::-1]
    found: dict[int, dict[str, float]] = {number: {} for number in FALSE_ALARMS}
    for kind in KINDS:
        made = copies([paths[row] for row in chosen], kind)
        changed = bits([decode_image(data, HASHED) for data in made])
        rows = list(chosen)
        same = np.maximum((changed * plain[rows]).sum(1), (changed * mirrored[rows]).sum(1))
        for number in FALSE_ALARMS:
            found[number][kind] = float((same > others[number]).mean())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of recalls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+", help="folders of images")
    parser.add_argument("--images", type=int, default=400, help="images to copy")
    parser.add_argument("--hashes", action="store_true", help="also imagehash and pdqhash")
    settings = parser.parse_args(arguments)
    paths = read_images(settings.data)
    rng = np.random.default_rng(0)
    chosen = sorted(
        rng.choice(len(paths), min(settings.images, len(paths)), replace=False).tolist()
    )
    columns = {"tltools": recall_of_tltools(paths, chosen)}
    for name, hashed in _hashes().items() if settings.hashes else ():
        for number, recall in recall_of_hash(hashed, paths, chosen).items():
            columns[f"{name}, {number} false alarms"] = recall
    say(f"| copy | {' | '.join(columns)} |")
    say(f"| --- |{' --: |' * len(columns)}")
    for kind in KINDS:
        cells = (f"{100 * recall[kind]:.0f}%" for recall in columns.values())
        say(f"| {kind} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
