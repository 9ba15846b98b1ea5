"""Turn samples of any kind into 8-bit RGB or gray, where Pillow's own conversion is wrong."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image
from PIL.ImageFile import ImageFile

from tltools.data.image_formats import silence_libtiff, tags_of

BAND_PIXELS = 2**22
"""Pixels that are converted at a time: a conversion takes up to 20 bytes for each."""

_BITS, _COMPRESSION, _COLOR, _SAMPLES, _PLANES, _SAMPLE_KIND = 258, 259, 262, 277, 284, 339
_SUBSAMPLING = 530
_RAW, _SEPARATE, _YCBCR = 1, 2, 6
_SIGNED = 2
# Samples that libtiff has already brought into the machine's order → how Pillow must take them.
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF", "I;32B": "I;32N"}


def prepare(image: Image.Image) -> None:
    """Correct how Pillow is about to read an image's samples, before its pixels are loaded.

    Raises:
        ValueError: If Pillow reads such samples, but wrongly.
    """
    if not isinstance(image, ImageFile):
        return
    if image.format == "PNG":
        _scale_transparency(image)
    tags = tags_of(image)
    if not tags:
        return
    silence_libtiff()
    _check_layout(image.mode, tags)
    image.tile = [
        tile._replace(args=(_NATIVE.get(str(tile.args[0]), tile.args[0]), *tile.args[1:]))
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple)
        else tile
        for tile in image.tile
    ]


def _check_layout(mode: str, tags: Mapping[int, Any]) -> None:
    """Reject a TIFF whose samples Pillow would take for others.

    Raises:
        ValueError: If it is such a one.
    """
    is_raw = tags.get(_COMPRESSION, _RAW) == _RAW
    if is_raw and tags.get(_COLOR) == _YCBCR and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        raise ValueError("raw subsampled colors are not supported")  # Pillow reads on behind them
    if tags.get(_PLANES) != _SEPARATE or int(tags.get(_SAMPLES, 1)) == 1:
        return
    if mode not in ("RGB", "RGBA", "CMYK") or (is_raw and max(tags.get(_BITS, (1,))) > 8):
        raise ValueError("such separate planes are not supported")


def _scale_transparency(image: ImageFile) -> None:
    """Scale the transparent value of a PNG with 2, 4 or 16 bits, as Pillow scales its pixels."""
    stored = str(image.tile[0].args) if image.tile else ""
    num_bits = {"L;2": 2, "L;4": 4}.get(stored)
    value = image.info.get("transparency")
    if num_bits and isinstance(value, int) and value < 1 << num_bits:
        image.info["transparency"] = value * 255 // ((1 << num_bits) - 1)
    if stored == "RGB;16B" and isinstance(value, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in value)


def normalized(image: Image.Image) -> Image.Image:
    """Return a loaded image whose mode says all about its samples, as `to_rgb` needs it.

    Gray samples of more than 8 bits become 8 bits, and so do signed ones.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _gray(image)
    if image.format == "TIFF" and tags_of(image).get(_SAMPLE_KIND, (1,))[0] == _SIGNED:
        return _gray(image)
    # Programs that write no transparency leave the fourth byte 0; no one saves an empty image.
    is_bitmap = image.format in ("BMP", "DIB") and image.mode == "RGBA"
    if is_bitmap and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, with transparent parts over white."""
    if image.has_transparency_data:
        return _in_bands(image, _over_white)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _in_bands(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image], *, mode: str = "RGB"
) -> Image.Image:
    """Convert an image piece by piece, so that large ones take no more memory than the result."""
    bands = list(_bands(image.size))
    if len(bands) == 1:
        return convert(image)
    whole = Image.new(mode, image.size)
    for band in bands:
        whole.paste(convert(image.crop(band)), band)
    return whole


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield the boxes of an image's bands, from top to bottom."""
    width, height = size
    rows = max(1, BAND_PIXELS // max(width, 1))
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


class _Levels(NamedTuple):
    """How the samples of a gray image become levels of gray."""

    dtype: DTypeLike
    """The type of the samples, which Pillow may take for another of the same size."""
    low: float
    high: float
    is_negative: bool
    """Whether `low` is white and `high` black."""
    transparent: int | None
    """The value of pixels that are transparent."""

    def convert(self, band: Image.Image) -> Image.Image:
        """Return a part of the image with its levels from 0 to 255."""
        samples = np.asarray(band).view(self.dtype)
        span = self.high - self.low
        with np.errstate(invalid="ignore"):  # of a NaN that signals
            values = samples.astype(np.float64)
        values -= self.low
        values *= 255 / span if 0 < span < np.inf else 0
        np.nan_to_num(values, copy=False, nan=0, posinf=255, neginf=0)
        np.clip(values, 0, 255, out=values)
        if self.is_negative:
            np.subtract(255, values, out=values)
        if self.transparent is not None:
            values[samples == self.transparent] = 255
        return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def _gray(image: Image.Image) -> Image.Image:
    """Scale gray samples that are not of 8 bits to 0-255; Pillow's own conversion clips them."""
    return _in_bands(image, _levels(image).convert, mode="L")


def _levels(image: Image.Image) -> _Levels:
    tags = tags_of(image)
    num_bits = int(max(tags.get(_BITS, (16,))))
    dtype = np.asarray(image.crop((0, 0, 1, 1))).dtype
    if tags.get(_SAMPLE_KIND, (1,))[0] == _SIGNED and image.mode == "L":
        dtype = np.dtype(np.int8)
    elif tags and image.mode == "I" and tags.get(_SAMPLE_KIND, (1,))[0] == 1:
        dtype = np.dtype(np.uint32)
    if image.mode.startswith("I;16"):
        low, high = 0.0, float((1 << min(num_bits, 16)) - 1)
    elif image.format in ("PPM", "PNG") and image.mode == "I":
        low, high = 0.0, 65535.0
    else:
        low, high = _extremes(image, dtype)
    transparent = image.info.get("transparency")
    return _Levels(
        dtype,
        low,
        high,
        is_negative=tags.get(_COLOR) == 0,
        transparent=transparent if isinstance(transparent, int) else None,
    )


def _extremes(image: Image.Image, dtype: DTypeLike) -> tuple[float, float]:
    """Return the smallest and the largest finite sample; zeros if there is none."""
    low, high = np.inf, -np.inf
    for band in _bands(image.size):
        samples = np.asarray(image.crop(band)).view(dtype)
        finite = samples[np.isfinite(samples)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)
