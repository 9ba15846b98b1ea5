"""Decode images, and squash or crop them to the model's size; no other module opens images."""

import errno
import io
import logging
import math
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin

from tltools.card import Preprocessing
from tltools.data import image_formats
from tltools.data.image_formats import (
    JPEG,
    RefusedError,
    is_image_start,
    name_of_unsupported,
    open_image,
    tiff_layout,
)
from tltools.data.image_ref import MAX_FILE_BYTES, Decoded, ImageRef
from tltools.data.location import is_address, without_secrets
from tltools.data.reasons import GONE, refuse_failing
from tltools.data.repair import repaired
from tltools.data.samples import normalized, prepare, to_rgb
from tltools.errors import DataError, MissingError, cause_of

DRAFT_MARGIN = 1.4
"""Smallest ratio of the size at which a JPEG is decoded to the size that is needed.

libjpeg can halve an image up to three times while decoding it, at a fraction of the cost (the
scales in between gain nothing: 5/8 to 7/8 take longer than decoding at full size, and 3/8 as long
as 1/2). The closer the decoded size is to the final size, the more the result differs from
decoding at full size and then resizing. The value was chosen so that 12-megapixel photographs are
decoded at one eighth with both resize rules, which is 4 times faster. They then differ by 0.7 of
255 levels on average; at the margin itself by 1.3, without a margin by 2.5.
"""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

_APP1, _START_OF_SCAN = 0xE1, 0xDA
_PLAIN_COLORS = frozenset({"YCbCr", "RGB", "Gray"})
_UNOPENED = GONE | {errno.EACCES, errno.EPERM}
_LARGE_FILE = 2**24
"""Bytes of a file whose first bytes are looked at before it is read as a whole."""

# What Pillow's readers raise, or have raised in some version, for corrupt files.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # if warnings are errors
)

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_KEYS = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}

# Pillow warns about corrupt tags and the like in images whose pixels are good: once per kind, in
# the middle of a progress bar, and without naming the image. Warning filters are global and must
# not be changed while threads run, so this is done here, once.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# It warns of sizes that `open_image` checks, too.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Without a handler, its errors would go to standard error; a program that logs still gets them.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def load_image(
    image: str | Path | ImageRef,
    preprocessing: Preprocessing,
    *,
    out: NDArray[np.uint8] | None = None,
    skip: Callable[[bytes], bool] | None = None,
) -> NDArray[np.uint8]:
    """Decode one image to the square RGB array that a model takes.

    EXIF orientation is applied; transparency is composited over white; the first frame of an
    animation and the first page of a TIFF is used; 16-bit gray keeps its full range, and 32-bit
    integers and floats, which have no standard white level, are stretched so that their smallest
    value becomes 0 and their largest 255. Color profiles are not applied, as is usual in training
    pipelines. JPEGs much larger than needed are decoded at reduced scale (see `DRAFT_MARGIN`).

    Args:
        image: A regular file, or a reference to an image; the content, not the suffix, decides how
            it is decoded.
        preprocessing: `size`, the height and width of the result, and the `resize` rule: `squash`
            scales both sides to `size`; `crop` takes the central square whose side is
            `size / round(size * crop_ratio)` of the short side and scales it to `size`, which is
            torchvision's "resize 256, center crop 224" in one step. Both use `interpolation`, with
            antialiasing; an image of `size` x `size` is not changed. `mean` and `std` are not
            applied here.
        out: Array for the result, uint8 (size, size, 3); None to allocate one.
        skip: Called with the file's bytes; if it returns True, nothing is decoded.

    Returns:
        Array (size, size, 3), uint8, RGB, contiguous and writable; `out` if it was given. Its
        content is undefined if the image was skipped.

    Raises:
        DataError: If the file is missing, not a regular file, not an image, truncated, corrupt, or
            so large that it may be a decompression bomb.
        MissingError: If the file cannot be opened.
        UnreachableError: If its disk or share, or the system, fails.
    """
    if out is None:
        out = np.empty(preprocessing.shape(1)[1:], np.uint8)
    place = image.place if isinstance(image, ImageRef) else image
    if isinstance(place, Decoded):
        if isinstance(place.pixels, DataError):
            raise place.pixels
        np.copyto(out, place.pixels)
        return out
    try:
        if isinstance(place, str | Path):
            with _open_file(place) as file:
                data = _read(file)
        else:
            data = place.read()
        if skip is not None and skip(data):
            return out
        if not (data.startswith(JPEG) and _load_plain_jpeg(data, preprocessing, out)):
            np.copyto(out, _load_any(data, preprocessing))
    except _UNREADABLE as error:
        if isinstance(place, str | Path) and isinstance(error, OSError):
            refuse_failing(place, error)
            if error.errno in _UNOPENED:
                raise MissingError(_text(image, _reason(error))) from error
        raise unreadable(image, _reason(error)) from error
    return out


def unreadable(image: str | Path | ImageRef, reason: str) -> DataError:
    """Return the error of an image that cannot be read."""
    return DataError(_text(image, reason))


def _text(image: str | Path | ImageRef, reason: str) -> str:
    return f"cannot read image {printable_name(image)}: {reason}"


def decode_image(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode an image in memory like `load_image`, but use Pillow even for JPEGs.

    Returns:
        Array (size, size, 3), uint8, RGB, read-only.

    Raises:
        DataError: If the data is not an image or is corrupt.
    """
    try:
        return _load_any(data, preprocessing)
    except _UNREADABLE as error:
        raise DataError(f"cannot decode an image: {_reason(error)}") from error


def fit_image(
    image: Image.Image | NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    """Convert a decoded image to the model's input by the same rules as `load_image`.

    Args:
        image: A Pillow image of any mode, whose EXIF orientation is applied; or an array, uint8
            (H, W, 3), RGB.
        preprocessing: Its `mean` and `std` are not used.

    Returns:
        Array (size, size, 3), uint8, RGB; it may be a view of `image`.

    Raises:
        DataError: If the file of a Pillow image, which is read lazily, is corrupt.
        TypeError: If `image` is neither.
        ValueError: If the array has another dtype or shape, or is empty.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"an image must be uint8 (H, W, 3), RGB, got {image.dtype} {image.shape}"
            )
        image = Image.fromarray(image)
    elif not isinstance(image, Image.Image):
        raise TypeError(
            "an image must be a path, the bytes of a file, a Pillow image or an array, got "
            f"{type(image).__name__}"
        )
    if not all(image.size):
        raise DataError(f"cannot read an image: it has {image.width} x {image.height} pixels")
    try:
        prepare(image)
        image.load()
        box = (0.0, 0.0, *image.size)
        upright = _orientation(image)
        return np.asarray(_to_square(normalized(image), box, upright, preprocessing))
    except _UNREADABLE as error:
        raise DataError(f"cannot read an image: {_reason(error)}") from error


def image_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        DataError: If the file is missing or not a regular file.
        UnreachableError: If its disk or share, or the system, fails.
    """
    import hashlib  # here, to keep it out of the start of classify

    try:
        with _open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        refuse_failing(path, error)
        raise unreadable(path, _reason(error)) from error


def _open_file(path: str | Path) -> io.FileIO:
    """Open a regular file; anything else could block forever or never end.

    Unbuffered: it is read in one go, since decoding from memory is a quarter faster than letting
    Pillow read the file piece by piece.
    """
    info = os.stat(path)  # noqa: PTH116 - called for each image, and Path.stat costs more
    if not stat.S_ISREG(info.st_mode):
        raise OSError("it is a folder" if stat.S_ISDIR(info.st_mode) else "it is not a file")
    if info.st_size > MAX_FILE_BYTES:
        raise OSError(f"the file has {info.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    return io.FileIO(path)


def _read(file: io.FileIO) -> bytes:
    """Read a file up to its current size: a file that is growing might never end.

    Raises:
        ValueError: If a large file does not start like an image; it is not read further.
    """
    size = os.fstat(file.fileno()).st_size
    data = b""
    if size > _LARGE_FILE:
        data = file.read(image_formats.HEAD_BYTES) or b""
        if not is_image_start(data):
            raise ValueError(f"not an image of a known format{name_of_unsupported(data)}")
        file.seek(0)
    data = file.read(size) or b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _load_plain_jpeg(data: bytes, rules: Preprocessing, out: NDArray[np.uint8]) -> bool:
    """Decode an ordinary JPEG into `out`, (size, size, 3), RGB.

    The pixels equal those of Pillow, which contains the same libjpeg-turbo; but without Pillow's
    objects, copies and parsing a small image takes half the time.

    Returns:
        Whether the image was decoded. If not, `out` is undefined and Pillow must read the file:
        other color spaces, images that are too large, and corrupt files, since libjpeg continues
        after many errors and Pillow knows which of them to tolerate.
    """
    try:
        rows, columns, colors, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(rows), int(columns)
        if colors not in _PLAIN_COLORS or width * height > image_formats.MAX_PIXELS:
            return False
        upright = None
        if _has_app1(data):
            upright = _orientation(JpegImagePlugin.JpegImageFile(io.BytesIO(data)))
        if width == height == rules.size and upright is None:
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
            return True
        scale = _scale_while_decoding(width, height, rules)
        # simplejpeg picks the smallest scale that gives at least this size, which is 1 / scale.
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=math.ceil(height / scale), min_width=math.ceil(width / scale)
        )
    except _UNREADABLE:
        return False
    box = (0.0, 0.0, width / scale, height / scale)
    square = _to_square(Image.fromarray(pixels), box, upright, rules)
    np.copyto(out, np.asarray(square))
    return True


def _has_app1(data: bytes) -> bool:
    """Return whether a JPEG has, or may have, an APP1 segment, which holds Exif and XMP.

    This takes a tenth of the time that Pillow needs to read all segments.
    """
    position = 2
    while position + 4 <= len(data):
        mark, marker = data[position], data[position + 1]
        if marker == _START_OF_SCAN:
            return False
        if mark != 0xFF or marker == _APP1 or not 0xC0 <= marker <= 0xFE:
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return True


def _load_any(data: bytes, rules: Preprocessing) -> NDArray[np.uint8]:
    """Decode an image of any format with Pillow to uint8 (size, size, 3), RGB, read-only."""
    if data.startswith(JPEG):
        data = data.rstrip(b"\0")  # Pillow takes hours for hundreds of megabytes of them
    try:
        return _load_as_it_is(data, rules)
    except _UNREADABLE as error:
        if isinstance(error, RefusedError | MemoryError):
            raise
        for whole in repaired(data):
            with suppress(*_UNREADABLE):  # the first error is the one to report
                return _load_as_it_is(whole, rules)
        if reason := _reason_of_tiff(error, data):
            raise ValueError(reason) from error
        raise


def _reason_of_tiff(error: Exception, data: bytes) -> str:
    """Return why a TIFF was not read, if Pillow does not say it; else nothing."""
    layout = tiff_layout(data)
    if layout and not isinstance(error, OSError):
        return f"it is {layout}, which is not supported; convert it to PNG"
    if layout and "decoder error" in str(error):
        return (
            f"its samples are corrupt or not supported: it is {layout}; recreate it, or convert it "
            "to PNG"
        )
    return ""


def _load_as_it_is(data: bytes, rules: Preprocessing) -> NDArray[np.uint8]:
    image = open_image(data, lambda width, height: _scale_while_decoding(width, height, rules))
    width, height = image.size
    box = (0.0, 0.0, width, height)
    scale = _scale_while_decoding(width, height, rules)
    if isinstance(image, JpegImagePlugin.JpegImageFile) and scale > 1:
        drafted = image.draft(None, (width // scale, height // scale))
        box = drafted[1] if drafted else box
    prepare(image)
    image.load()
    return np.asarray(_to_square(normalized(image), box, _orientation(image), rules))


def _scale_while_decoding(width: int, height: int, rules: Preprocessing) -> int:
    """Return 8, 4, 2 or 1: the factor by which a JPEG can be scaled down while decoding.

    A side that is not a multiple of it is decoded to one more pixel, which counts only in part.
    """
    needed = rules.scaled_side if rules.resize == "crop" else rules.size
    needed = math.ceil(needed * DRAFT_MARGIN)
    return next((scale for scale in (8, 4, 2) if min(width, height) >= scale * needed), 1)


def _to_square(
    image: Image.Image,
    box: tuple[float, float, float, float],
    upright: Image.Transpose | None,
    rules: Preprocessing,
) -> Image.Image:
    """Convert a decoded image to RGB, `size` x `size`, upright.

    Rotation comes last: it gives the same result, and the square is small.

    Args:
        image: An image of any mode.
        box: The part of `image` to use, in pixels.
        upright: The transposition that turns it upright; None if it is upright.
        rules: Its `mean` and `std` are not used.
    """
    size = rules.size
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        image = to_rgb(image)
    if image.size != (size, size):
        if rules.resize == "crop":
            box = _central_square(box, rules)
        image = image.resize((size, size), _FILTERS[rules.interpolation], box)
    if upright is not None:
        image = image.transpose(upright)
    return image if image.mode == "RGB" else image.convert("RGB")


def _central_square(
    box: tuple[float, float, float, float], rules: Preprocessing
) -> tuple[float, float, float, float]:
    """Return the part of `box` that the `crop` rule keeps."""
    _, _, width, height = box
    side = min(width, height) * rules.size / rules.scaled_side
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that turns a decoded image upright; None if none is needed."""
    if _ORIENTATION_KEYS.isdisjoint(image.info):
        return None
    try:
        return _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _UNREADABLE:
        return None  # the pixels are good, so corrupt metadata must not make the image fail


def _reason(error: BaseException) -> str:
    """Describe in one line, without the path, why a file could not be read."""
    if isinstance(error, ValueError) and "embedded null" in str(error):  # stat: before it on 3.14
        return "its name contains a zero byte (a list in UTF-16? save it as UTF-8)"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it; try fewer workers"
    return cause_of(error)


def printable_name(image: str | Path | ImageRef) -> str:
    """Return an image's file name, or its address, in a form that can be printed on one line."""
    if isinstance(image, ImageRef):
        place = None if is_address(image.name) else image.place
        image = place if isinstance(place, str) else image.name
    text = os.fspath(image)
    is_whole = is_address(text)  # its end may occur on many servers
    name = without_secrets(text) if is_whole else os.path.basename(text)  # noqa: PTH119
    return name if name.isprintable() else ascii(name)
