"""The formats of images: first bytes, readers, and what decoding an image would take."""

import io
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, cast

import numpy as np
from PIL import Image, JpegImagePlugin
from PIL.ImageFile import ImageFile

from tltools.data.av1 import coded_size
from tltools.packages import pip_install

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**31
"""Most pixels that are decoded; a JPEG that is decoded at reduced scale may have more."""
MAX_SIDE = 2**22
"""Most pixels in a row or a column: each row takes memory besides its pixels."""
MAX_BYTES = 2**30
"""Most memory that decoding one image may take, beyond its file, in bytes."""
PIXELS_PER_BYTE = 256
"""Most pixels that a byte of a JPEG can describe: an 8 x 8 block takes at least two bits."""
RLE_PIXELS = 2**24
"""Pixels of a run-length encoded BMP above which its runs must describe them all."""

JPEG = b"\xff\xd8\xff"
START_OF_SCAN = 0xDA
# A JPEG's markers, except those that stand within a scan.
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xda-\xfe])")
_UNKNOWN = "not an image of a known format"

# First bytes of a file → the Pillow plugin that reads it. Only these plugins are used, and they are
# called directly: Image.open would only warn up to twice the pixel limit, and would try unsafe
# plugins such as EPS, which runs Ghostscript.
_PLUGINS = (
    (rb"\x89PNG\r\n\x1a\n", "PngImagePlugin", "PngImageFile"),
    (rb"GIF8[79]a", "GifImagePlugin", "GifImageFile"),
    (rb"(?s)RIFF.{4}WEBP", "WebPImagePlugin", "WebPImageFile"),
    (rb"BM", "BmpImagePlugin", "BmpImageFile"),
    (rb"(II[*+]\0|MM\0[*+])", "TiffImagePlugin", "TiffImageFile"),
    (rb"P[1-6f]\s", "PpmImagePlugin", "PpmImageFile"),
    (rb"(\xff\x4f\xff\x51|\0{3}\x0cjP  )", "Jpeg2KImagePlugin", "Jpeg2KImageFile"),
)

# First bytes of files that people take for images → how to name them in an error.
_UNSUPPORTED = (
    (rb"\xff\x0a|\0{3}\x0cJXL ", "JPEG XL"),
    (rb"P7\s", "PAM"),
    (rb"PF\s", "color PFM"),
    (rb"\0\0[\x01\x02]\0[^\0]\0", "a Windows icon"),
    (rb"8BPS", "Photoshop (PSD)"),
    (rb"II\xbc", "JPEG XR"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?R", "Radiance HDR"),
    (rb"DDS ", "DDS"),
    (rb"qoif", "QOI"),
    (rb"icns", "an Apple icon"),
    (rb"IIRO|IIRS|IIU\0|FUJIFILMCCD", "a camera's raw format"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--[^>]*>\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG"),
    (rb"(?i)\s*(<!doctype html|<html)", "a web page (HTML)"),
    (rb"version https://git-lfs", "a Git LFS pointer (git lfs pull fetches the image)"),
    (rb"\x1a\x45\xdf\xa3|(?s:RIFF.{4}AVI )", "a video"),
    (rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|Rar!|7z\xbc\xaf", "an archive"),
)
HEAD_BYTES = 512
"""Bytes at the start of a file that show whether it is an image."""
_HEIC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_AVIF = frozenset((b"avif", b"avis"))
_EITHER = frozenset((b"mif1", b"msf1"))
_HEAD = 512


class RefusedError(ValueError):
    """An image is too large, or of a kind that is not supported: no repair of it changes that."""


@cache
def _install_heic() -> str:
    return pip_install("heic")  # reads the installed metadata, which takes milliseconds


def open_image(data: bytes, scale_of: Callable[[int, int], int]) -> ImageFile:
    """Read an image's header (format, size and mode) without decoding its pixels.

    Args:
        data: The bytes of a file.
        scale_of: Returns the factor by which a JPEG of a width and height is scaled down while it
            is decoded.

    Raises:
        RefusedError: If decoding would exceed `MAX_PIXELS` or `MAX_BYTES`, or the format is not
            supported. Readers raise other errors for corrupt files.
    """
    file = io.BytesIO(data)
    if data.startswith(JPEG):
        image = JpegImagePlugin.JpegImageFile(file)
        _check_jpeg(image, data, scale_of(*image.size))
        return image
    if data[4:8] == b"ftyp":
        image = _open_iso_media(data, file)
    else:
        found = next((plugin for plugin in _PLUGINS if re.match(plugin[0], data)), None)
        if found is None:
            raise RefusedError(f"{_UNKNOWN}{name_of_unsupported(data)}" if data else "it is empty")
        _, module, name = found
        if check := _BEFORE_OPENING.get(module):
            check(data)
        image = getattr(import_module(f"PIL.{module}"), name)(file)
    _check_size(*image.size)
    if check := _AFTER_OPENING.get(image.format or ""):
        check(image, data)
    return image


def is_image_start(head: bytes) -> bool:
    """Return whether the first `HEAD_BYTES` of a file, or all, are those of a supported image."""
    if head[4:8] == b"ftyp":
        return bool(_brands(head) & (_HEIC | _AVIF | _EITHER))
    return head.startswith(JPEG) or any(re.match(magic, head) for magic, *_ in _PLUGINS)


def name_of_unsupported(head: bytes) -> str:
    """Return the end of an error that names the format of a file that is no image; may be empty."""
    for magic, name in _UNSUPPORTED:
        if re.match(magic, head[:_HEAD]):
            return f", but {name}"
    if head[4:8] == b"ftyp":
        return ", but a video" if head[8:12] != b"crx " else ", but a camera's raw format (CR3)"
    return ", but TGA" if head.endswith(b"TRUEVISION-XFILE.\0") else ""


def _brands(head: bytes) -> set[bytes]:
    """Return the brands of an ISO media file: the major one and the compatible ones."""
    end = min(int.from_bytes(head[:4]), len(head), _HEAD)
    return {head[8:12]} | {head[start : start + 4] for start in range(16, end - 3, 4)}


def _open_iso_media(data: bytes, file: io.BytesIO) -> ImageFile:
    brands = _brands(data)
    if brands & _HEIC and not brands & _AVIF:
        try:
            heif = import_module("pi_heif")
        except ImportError as error:
            raise RefusedError(
                f"{_UNKNOWN}, but HEIC; install its reader ({_install_heic()}), or "
                "convert it to JPEG"
            ) from error
        try:
            return heif.HeifImageFile(file)
        except (SyntaxError, ValueError, RuntimeError, EOFError) as error:
            raise OSError(f"its HEIC is damaged: {error}") from error  # whatever its name says
    if not brands & (_AVIF | _EITHER):
        raise RefusedError(f"{_UNKNOWN}{name_of_unsupported(data)}")
    if size := coded_size(data):
        _check_size(*size)
    return getattr(import_module("PIL.AvifImagePlugin"), "AvifImageFile")(file)  # noqa: B009


# ----------------------------------------------------------------------------------- limits


def _check_size(width: int, height: int, *, num_bytes: int = 0) -> None:
    """Reject an image with too many pixels, or whose decoding takes too much memory.

    Raises:
        RefusedError: If it is one.
    """
    if width * height > MAX_PIXELS:
        raise RefusedError(
            f"{width:,} x {height:,} pixels exceed the limit of {MAX_PIXELS:,} "
            "(a decompression bomb?); scale it down"
        )
    if max(width, height) > MAX_SIDE:
        raise RefusedError(
            f"a side of {max(width, height):,} pixels exceeds the limit of {MAX_SIDE:,} "
            "(a decompression bomb?); cut it into pieces"
        )
    if num_bytes > MAX_BYTES:
        raise RefusedError(
            f"decoding its {width:,} x {height:,} pixels would take {num_bytes:,} bytes, more than "
            f"the limit of {MAX_BYTES:,} (a decompression bomb?); scale it down, or save it as PNG"
        )


def _check_jpeg(image: JpegImagePlugin.JpegImageFile, data: bytes, scale: int) -> None:
    """Reject a JPEG that is too large at the scale at which it is decoded.

    One whose scans do not hold all components in full is kept in memory as coefficients.
    """
    width, height = image.size
    if width * height <= MAX_PIXELS:
        return
    _check_size(-(-width // scale), -(-height // scale))
    if width * height > PIXELS_PER_BYTE * len(data):
        raise RefusedError(
            f"{width:,} x {height:,} pixels are more than {len(data):,} bytes can hold "
            "(a decompression bomb?); download it again"
        )
    layers = cast("list[tuple[int, int, int, int]]", image.layer)
    scans = (start for marker, start, _ in jpeg_segments(data) if marker == START_OF_SCAN)
    first = next(scans, len(data))
    if image.info.get("progressive") or data[first + 4 : first + 5] != bytes([len(layers)]):
        most = max(layer[1] for layer in layers) * max(layer[2] for layer in layers)
        num_samples = width * height * sum(layer[1] * layer[2] for layer in layers) // max(most, 1)
        if num_samples > 3 * MAX_PIXELS:
            raise RefusedError(
                f"{width:,} x {height:,} pixels in several scans exceed the limit of "
                f"{MAX_PIXELS:,} (a decompression bomb?); scale it down, or save it without "
                "progressive scans"
            )


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the markers of a JPEG's segments, where each starts, and where it ends."""
    position = 2
    while (found := _JPEG_MARKER.search(data, position)) and found.end() + 2 <= len(data):
        start = found.start()
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
        yield found[1][0], start, position


def _check_webp(data: bytes) -> None:
    """Check the canvas of a WebP, which its reader allocates when it opens the file."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 " and len(data) >= 30:
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    else:
        return  # the reader says what is wrong
    _check_size(width, height, num_bytes=18 * width * height)


def _check_jpeg2000(data: bytes) -> None:
    """Check the size of a JPEG 2000, all of whose components are decoded to 32-bit integers."""
    start = data.find(b"\xff\x4f\xff\x51") + 4
    if start < 4 or len(data) < start + 38:
        return  # the reader says what is wrong
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 4)
    components = int.from_bytes(data[start + 36 : start + 38])
    width, height = max(0, right - left), max(0, bottom - top)
    _check_size(width, height, num_bytes=width * height * (4 + 5 * components))
    stored = data[start + 38 : start + 38 + 3 * components : 3]
    if any(depth & 0x80 for depth in stored):
        raise RefusedError("JPEG 2000 with signed samples is not supported; convert it to PNG")
    depths = {1 + (depth & 0x7F) for depth in stored}
    if components > 1 and max(depths, default=8) > 8:
        # Pillow rounds such samples to 8 bits in such a way that white becomes black.
        raise RefusedError(
            f"JPEG 2000 with {components} components of {max(depths)} bits is not supported; "
            "convert it to PNG"
        )


def _check_tiff(image: ImageFile, data: bytes) -> None:  # noqa: ARG001
    """Reject TIFFs that are previews, or whose tiles take too much memory."""
    tags = tags_of(image)
    if 50706 in tags:
        raise RefusedError(f"{_UNKNOWN}, but a camera's raw format (DNG); convert it to JPEG")
    if int(tags.get(254, 0)) & 1:
        raise RefusedError("its first page is a thumbnail; save the page itself as a file")
    width, height = image.size
    columns, rows = int(tags.get(322, width)), int(tags.get(323, tags.get(278, height)))
    # The reader of compressed files holds one tile, which may be larger than the image, or strip.
    held = columns * (rows if 322 in tags else min(rows, height))
    sample_bytes = -(-int(max(tags.get(258, (1,)))) * int(tags.get(277, 1)) // 8)
    num_bytes = 2 * width * height * _MODE_BYTES.get(image.mode, 4) + held * sample_bytes
    _check_size(width, height, num_bytes=num_bytes)


def _check_bmp(image: ImageFile, data: bytes) -> None:
    """Reject BMPs that Pillow reads wrongly, or in Python although they are larger than their runs.

    It takes 16 bits per pixel for opaque, whatever their opacity is.
    """
    width, height = image.size
    compression = int.from_bytes(data[30:34], "little") if len(data) > 34 else 0
    if compression in (1, 2) and width * height > max(RLE_PIXELS, 128 * len(data)):
        raise RefusedError(
            f"{width:,} x {height:,} pixels are more than {len(data):,} bytes can hold "
            "(a decompression bomb?); save it as PNG"
        )
    if compression == 3 and _is_partly_transparent(data, width, height):
        raise RefusedError("a BMP of 16 bits with transparency is not supported; convert it to PNG")


def _is_partly_transparent(data: bytes, width: int, height: int) -> bool:
    """Return whether a BMP has 16 bits per pixel, and pixels that differ in opacity."""
    start, header = struct.unpack_from("<II", data, 10)
    bits = int.from_bytes(data[28:30], "little")
    mask = int.from_bytes(data[66:70], "little") if header >= 56 and bits == 16 else 0
    row = width + width % 2  # rows end at a multiple of four bytes
    rows = min(height, (len(data) - start) // (2 * row))
    if not mask & 0xFFFF or rows <= 0:
        return False
    words = np.frombuffer(data, "<u2", count=rows * row, offset=start).reshape(rows, row)
    opacity = words[:, :width] & np.uint16(mask & 0xFFFF)
    return bool(opacity.min() != opacity.max())


def _check_avif(image: ImageFile, data: bytes) -> None:  # noqa: ARG001
    """Check the size of an AVIF, whose color and opacity are decoded before they are joined."""
    width, height = image.size
    _check_size(width, height, num_bytes=width * height * (13 if image.mode == "RGBA" else 10))


_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
"""Bytes of a pixel in memory, where they are not four."""
_BEFORE_OPENING: Mapping[str, Callable[[bytes], None]] = {
    "WebPImagePlugin": _check_webp,
    "Jpeg2KImagePlugin": _check_jpeg2000,
}
_AFTER_OPENING: Mapping[str, Callable[[ImageFile, bytes], None]] = {
    "TIFF": _check_tiff,
    "BMP": _check_bmp,
    "AVIF": _check_avif,
}


# ------------------------------------------------------------------------------------- TIFF


def tags_of(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF's first page; empty for other images."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


@cache
def silence_libtiff() -> None:
    """Keep Pillow's libtiff from writing to standard error.

    It would interrupt the progress bar without naming the image; the row has the error.
    """
    import ctypes  # here, because most images are no TIFFs

    with suppress(OSError, AttributeError):  # a Pillow without libtiff has nothing to say
        library = ctypes.CDLL(str(Image.core.__file__))
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def tiff_layout(data: bytes) -> str:
    """Describe how a TIFF stores its samples, for an error; empty if it is none, or corrupt."""
    if not re.match(rb"II[*+]\0|MM\0[*+]", data):
        return ""
    if data.startswith(b"MM\0+"):  # Pillow takes it for a TIFF that is not big
        return "a big-endian BigTIFF"
    from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

    try:
        is_big = 43 in (data[2], data[3])
        tags = ImageFileDirectory_v2(data[: 16 if is_big else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits = "/".join(str(value) for value in sorted(set(tags.get(258, (1,)))))
        kind = {1: "", 2: " signed", 3: " float"}.get(tags.get(339, (1,))[0], " complex")
        compression = tags.get(259, 1)
        planes = ", separate planes" if tags.get(284, 1) == 2 else ""
        order = "big-endian" if data.startswith(b"MM") else "little-endian"
        color = _PHOTOMETRIC.get(tags.get(262, 0), f"photometric {tags.get(262)}")
        if color == "YCbCr" and (subsampling := tuple(tags.get(530, (2, 2)))) != (1, 1):
            color += f" subsampled {'x'.join(map(str, subsampling))}"
        return (
            f"a TIFF of {tags.get(277, 1)} x {bits}-bit{kind} samples, {color}, compression "
            f"{COMPRESSION_INFO.get(compression) or _COMPRESSION.get(compression, compression)}"
            f"{planes}, {order}"
        )
    except (OSError, SyntaxError, LookupError, TypeError, ValueError, struct.error):
        return ""


_COMPRESSION = {33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 50002: "JPEG XL"}
_PHOTOMETRIC = {
    0: "white is zero",
    1: "black is zero",
    2: "RGB",
    3: "palette",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    32803: "color filter array",
}
