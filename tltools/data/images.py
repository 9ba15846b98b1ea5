"""Find and decode pictures: the only place in tltools that opens one."""

import io
import math
import os
import re
import stat
import struct
import warnings
import zlib
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop
from importlib import import_module
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin
from PIL.ImageFile import ImageFile

from tltools.card import Resize
from tltools.errors import DataError

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"}
)
"""Lower-case suffixes of the files that `find_images` yields. What a file is decoded as is decided
by its content."""

ARCHIVE_SUFFIXES = (*(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip"),)
"""Lower-case endings of the files that are taken for archives; what kind, their content decides."""

MAX_FILE_BYTES = 2**31
"""Of a picture's file; it is read as a whole."""

_USUAL_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG")  # most names end here: found in one call

MANY_NAMES = 200_000
"""In one folder; sorting more takes longer than people like to wait for the first result."""

DRAFT_MARGIN = 1.4
"""How much larger than needed, at least, a JPEG is still decoded.

libjpeg can halve a picture up to three times while decoding it, at a fraction of the cost (its
scales between those gain nothing: 5/8 to 7/8 take longer than decoding in full, and 3/8 as long as
1/2). The nearer that comes to the final size, the more the result differs from decoding in full
and then resizing. Chosen so that photographs of 12 megapixels are decoded at an eighth with both
resize rules, which is 4 times as fast as in full. They differ by 0.7 of 255 levels on average then;
at the margin itself it is 1.3, without any margin 2.5.
"""

CROP_RATIO = 256 / 224
"""`crop` scales the short side to this multiple of the final size, as torchvision's presets do."""

_JPEG = b"\xff\xd8\xff"
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_PLAIN_COLORS = frozenset({"YCbCr", "RGB", "Gray"})
_MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**31

# What a file starts with → the Pillow plugin that reads it. Plugins are called directly, and only
# these: Image.open would warn (and not refuse) below twice the limit of pixels, and would try
# plugins that nobody wants to meet in a folder of pictures, such as EPS, which runs Ghostscript.
_PLUGINS = (
    (rb"\x89PNG\r\n\x1a\n", "PngImagePlugin", "PngImageFile"),
    (rb"GIF8[79]a", "GifImagePlugin", "GifImageFile"),
    (rb"(?s)RIFF.{4}WEBP", "WebPImagePlugin", "WebPImageFile"),
    (rb"BM", "BmpImagePlugin", "BmpImageFile"),
    (rb"(II[*+]\0|MM\0[*+])", "TiffImagePlugin", "TiffImageFile"),
    (rb"P[1-6]\s", "PpmImagePlugin", "PpmImageFile"),
    (rb"(?s).{4}ftyp(avi[fs]|mif1|msf1)", "AvifImagePlugin", "AvifImageFile"),
    (rb"(\xff\x4f\xff\x51|\0{3}\x0cjP  )", "Jpeg2KImagePlugin", "Jpeg2KImageFile"),
)

# What Pillow's readers raise, or have raised in some version, on damaged files.
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
    Warning,  # where warnings are errors
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

# Pillow warns about damaged tags and the like in pictures whose pixels are good: once for each
# kind, in the middle of a progress bar, and without the picture's name. The filters belong to the
# whole process and must not be changed while threads run, so this is done here and once.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(slots=True)
class Source:
    """A picture that is not a file of its own: a member of an archive, for instance."""

    name: str
    read: Callable[[], bytes]
    """Returns its bytes; raises OSError, with a reason, where that cannot be done. Called in
    `load_image`, from any thread."""
    is_portable: bool = False
    """Whether `read` can be pickled. If not, a picture that goes to another process is read before
    that."""

    def __reduce__(self) -> "tuple[type[Source], tuple[object, ...]]":
        """Return what another process makes this picture of."""
        return Source, (self.name, self.read if self.is_portable else Bytes.of(self.read), True)


class Bytes:
    """The bytes of a picture, or why there are none, where a function is wanted that returns them.

    May be pickled.
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes | OSError) -> None:
        """Keep them."""
        self._data = data

    @classmethod
    def of(cls, read: Callable[[], bytes]) -> "Bytes":
        """Read now what `read` returns, or the reason why it cannot."""
        try:
            return cls(read())
        except OSError as error:
            return cls(error)

    def __call__(self) -> bytes:
        """Return the bytes.

        Raises:
            OSError: If there are none.
        """
        if isinstance(self._data, OSError):
            raise self._data
        return self._data


@dataclass(slots=True)
class Decoded:
    """A picture that needs no decoding any more."""

    name: str
    pixels: NDArray[np.uint8] | DataError
    """(size, size, 3), RGB, as the model takes it; or why there are none."""


def find_images(root: Path) -> Iterator[Path]:
    """Find the pictures under `root`, lazily and in the order of `sorted(paths)`.

    Folders are entered, links to folders too unless they lead back to a folder that they are in.
    Hidden files and folders (`.name`) are skipped. What a name promises is not checked here: a
    broken link or a damaged file is yielded, so that it gets its row.

    Raises:
        DataError: At the call, if `root` is missing or not a folder; while iterating, if a folder
            cannot be listed.
    """
    return (folder / name for folder, names in find_folders(root) for name in names)


def find_folders(
    root: Path, *, on_error: Callable[[DataError], None] | None = None
) -> "Iterator[tuple[Path, Names]]":
    """Find the same pictures as `find_images`, as folders and the names in them.

    Args:
        root: Where to look.
        on_error: Is told of each folder that cannot be listed, which is then left out; None to
            raise the error.

    Returns:
        An iterator over folders, or their parts between subfolders, and the names in each, at
        least one.

    Raises:
        DataError: As `find_images`.
    """
    root = Path(root)
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {problem}: name a folder of pictures")
    return _walk(root, ancestors=frozenset(), on_error=on_error)


class Names:
    """The names of a folder's pictures, in sorted order, to be iterated over once.

    They are kept as one string, which takes a fifth of the memory of a list. Sorting a million
    takes half a second, though, so that many are kept as a heap, which has its first name ready
    ten times sooner.
    """

    def __init__(self, names: list[str]) -> None:
        """Keep `names`, which are in any order and nobody else's."""
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
        """Return how many there were at first."""
        return self._num_names

    def __iter__(self) -> Iterator[str]:
        """Yield the names; those of a heap leave the memory."""
        for match in re.finditer("[^/]+", self._text):
            yield match[0]
        while self._heap:
            yield heappop(self._heap)


def _walk(
    folder: Path,
    *,
    ancestors: frozenset[tuple[int, int]],
    on_error: Callable[[DataError], None] | None,
) -> Iterator[tuple[Path, Names]]:
    """Yield `folder` with its names, in parts where subfolders sort in between, and those."""
    try:
        info = folder.stat()
        identity = (info.st_dev, info.st_ino)
        if identity in ancestors:
            return
        names, folders = _list_folder(folder)
    except OSError as error:
        failure = DataError(
            f"cannot list the folder {folder}: {_reason(error)}; make it readable, or move it "
            "out of the way"
        )
        if on_error is None:
            raise failure from error
        on_error(failure)
        return
    if folders:
        names.sort()
        folders.sort()
    start = 0
    for name in folders:
        stop = bisect(names, name, start)
        if start < stop:
            yield folder, Names(names[start:stop])
        yield from _walk(folder / name, ancestors=ancestors | {identity}, on_error=on_error)
        start = stop
    if start < len(names):
        rest = Names(names[start:] if start else names)
        del names  # or they would wait here until the rest is done with
        yield folder, rest


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the pictures and of the folders in `folder`, in any order."""
    names: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(name)
            elif is_image_name(name):
                names.append(name)
    return names, folders


def is_image_name(name: str) -> bool:
    """Tell whether a file's name ends as a picture's does."""
    return name.endswith(_USUAL_SUFFIXES) or _suffix(name) in IMAGE_SUFFIXES


def is_archive_name(name: str) -> bool:
    """Tell whether a file's name ends as an archive's does."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def _suffix(name: str) -> str:
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for instance; broken links are False by themselves
        return False


def load_image(
    path: str | Path | Source,
    *,
    size: int,
    resize: Resize,
    out: NDArray[np.uint8] | None = None,
    skip: Callable[[bytes], bool] | None = None,
) -> NDArray[np.uint8]:
    """Decode one picture to a square of RGB bytes.

    EXIF orientation is applied; transparency is laid over white; the first frame of an animation
    and the first page of a TIFF is taken; 16-bit grey keeps its full range, and 32-bit integers
    and floats, which have no agreed white, are stretched so that their smallest value becomes 0
    and their largest 255. Colour profiles are not applied, as in training pipelines generally.
    JPEGs that are much larger than needed are decoded at reduced scale (see `DRAFT_MARGIN`).

    Args:
        path: A regular file, or what stands for one; its content and not its suffix decides how
            it is decoded.
        size: Height and width of the result in pixels.
        resize: `squash` scales both sides to `size`. `crop` takes the central square whose side
            is `size / round(size * CROP_RATIO)` of the short side and scales that to `size`,
            which is torchvision's "resize 256, centre crop 224" in one step. Either way bilinear
            with antialiasing, and a picture that is `size` x `size` already is left as it is.
        out: Where to put the result instead of in a new array, (size, size, 3).
        skip: Is shown the file's bytes; where it returns True, nothing is decoded.

    Returns:
        Array (size, size, 3), uint8, RGB, contiguous and writable; `out` where it was given. It is
        undefined where the picture was skipped.

    Raises:
        DataError: If the file is missing, not a regular file, not a picture, truncated, damaged,
            or so large that it may be a decompression bomb.
    """
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    try:
        if isinstance(path, Source):
            data = path.read()
        else:
            with _open_file(path) as file:
                data = _read(file)
        if skip is not None and skip(data):
            return out
        if not (data.startswith(_JPEG) and _load_plain_jpeg(data, size, resize, out)):
            np.copyto(out, _load_any(data, size, resize))
    except _UNREADABLE as error:
        raise unreadable(path, _reason(error)) from error
    return out


def unreadable(path: str | Path | Source, reason: str) -> DataError:
    """Return the error of a picture that cannot be read."""
    return DataError(f"cannot read image {_printable(path)}: {reason}")


def decode_image(data: bytes, *, size: int, resize: Resize) -> NDArray[np.uint8]:
    """Decode one picture that is in memory; as `load_image`, but for JPEGs, which Pillow decodes.

    Returns:
        Array (size, size, 3), uint8, RGB, read-only.

    Raises:
        DataError: If it is not a picture, or is damaged.
    """
    try:
        return _load_any(data, size, resize)
    except _UNREADABLE as error:
        raise DataError(f"cannot decode a picture: {_reason(error)}") from error


def fit_image(
    image: Image.Image | NDArray[np.uint8], *, size: int, resize: Resize
) -> NDArray[np.uint8]:
    """Bring a decoded picture to the model's input by the same rules as `load_image`.

    Args:
        image: A Pillow image of any mode, turned upright by its EXIF data if it still has some; or
            an array (H, W, 3), uint8, RGB.
        size: Height and width of the result in pixels.
        resize: `squash` or `crop`.

    Returns:
        Array (size, size, 3), uint8, RGB; it may be a view of `image`.

    Raises:
        DataError: If the image's file turns out to be damaged, which Pillow reads late.
        TypeError: If it is neither.
        ValueError: If the array is not of that type and shape, or without a pixel.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"a picture must be uint8 (H, W, 3), RGB, got {image.dtype} {image.shape}"
            )
        image = Image.fromarray(image)
    elif not isinstance(image, Image.Image):
        raise TypeError(
            "a picture must be a path, the bytes of a file, a Pillow image or an array, got "
            f"{type(image).__name__}"
        )
    try:
        image.load()
        box = (0.0, 0.0, *image.size)
        return np.asarray(_to_square(image, box, _orientation(image), size, resize))
    except _UNREADABLE as error:
        raise DataError(f"cannot read a picture: {_reason(error)}") from error


def image_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        DataError: If it is missing or not a regular file.
    """
    import hashlib  # here, because classifying starts without it

    try:
        with _open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, _reason(error)) from error


def _open_file(path: str | Path) -> io.FileIO:
    """Open a regular file; anything else could block for ever or never end.

    Unbuffered: it is read in one go, and then decoding from memory is a quarter faster than
    letting Pillow read the file piece by piece.
    """
    info = os.stat(path)  # noqa: PTH116 - called for each picture, and Path.stat costs more
    if not stat.S_ISREG(info.st_mode):
        raise OSError("it is a folder" if stat.S_ISDIR(info.st_mode) else "it is not a file")
    if info.st_size > MAX_FILE_BYTES:
        raise OSError(f"the file has {info.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    return io.FileIO(path)


def _read(file: io.FileIO) -> bytes:
    """Read a file as long as it is now: one that grows meanwhile might never end."""
    size = os.fstat(file.fileno()).st_size
    data = file.read(size) or b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _load_plain_jpeg(data: bytes, size: int, resize: Resize, out: NDArray[np.uint8]) -> bool:
    """Decode an ordinary JPEG into `out`, (size, size, 3), RGB.

    The pixels are those that Pillow would give, for it contains the same libjpeg-turbo; but a
    small picture takes half the time without Pillow's objects, copies and parsing.

    Returns:
        Whether it was done. If not, `out` is undefined and Pillow has to look at the file: other
        colour spaces, pictures that are too large, and whatever is damaged, since libjpeg reads on
        after many a fault and Pillow knows which of them to forgive.
    """
    try:
        rows, columns, colors, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(rows), int(columns)
        if colors not in _PLAIN_COLORS or width * height > _MAX_PIXELS:
            return False
        upright = None
        if _has_app1(data):
            upright = _orientation(JpegImagePlugin.JpegImageFile(io.BytesIO(data)))
        if width == height == size and upright is None:
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
            return True
        scale = _scale_while_decoding(width, height, size, resize)
        # The smallest scale that gives at least so much is chosen, so it is 1 / scale.
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=math.ceil(height / scale), min_width=math.ceil(width / scale)
        )
    except _UNREADABLE:
        return False
    box = (0.0, 0.0, width / scale, height / scale)
    square = _to_square(Image.fromarray(pixels), box, upright, size, resize)
    np.copyto(out, np.asarray(square))
    return True


def _has_app1(data: bytes) -> bool:
    """Tell whether a JPEG has an APP1 segment, the place of Exif and XMP, or may have one.

    Finding out takes a tenth of the time that Pillow takes to read all segments.
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


def _load_any(data: bytes, size: int, resize: Resize) -> NDArray[np.uint8]:
    """Decode a picture of any kind with Pillow, to (size, size, 3), RGB, read-only."""
    image = _open_picture(data)
    width, height = image.size
    box = (0.0, 0.0, width, height)
    scale = _scale_while_decoding(width, height, size, resize)
    if isinstance(image, JpegImagePlugin.JpegImageFile) and scale > 1:
        drafted = image.draft(None, (width // scale, height // scale))
        box = drafted[1] if drafted else box
    image.load()
    return np.asarray(_to_square(image, box, _orientation(image), size, resize))


def _open_picture(data: bytes) -> ImageFile:
    """Read a picture's header: its kind, size and mode; its pixels are not decoded yet."""
    file = io.BytesIO(data)
    if data.startswith(_JPEG):
        image = JpegImagePlugin.JpegImageFile(file)
    else:
        for magic, module, name in _PLUGINS:
            if re.match(magic, data):
                image = getattr(import_module(f"PIL.{module}"), name)(file)
                break
        else:
            raise ValueError("it is not a picture of a known format" if data else "it is empty")
    width, height = image.size
    if width * height > _MAX_PIXELS:
        raise ValueError(
            f"{width:,} x {height:,} pixels are more than the {_MAX_PIXELS:,} that are decoded "
            "(a decompression bomb?); scale it down"
        )
    return image


def _scale_while_decoding(width: int, height: int, size: int, resize: Resize) -> int:
    """Return 8, 4, 2 or 1: how many times smaller a JPEG can be decoded with enough left of it.

    A side that this does not divide is decoded to one pixel more, of which only a part counts.
    """
    needed = round(size * CROP_RATIO) if resize == "crop" else size
    needed = math.ceil(needed * DRAFT_MARGIN)
    return next((scale for scale in (8, 4, 2) if min(width, height) >= scale * needed), 1)


def _to_square(
    image: Image.Image,
    box: tuple[float, float, float, float],
    upright: Image.Transpose | None,
    size: int,
    resize: Resize,
) -> Image.Image:
    """Bring a decoded picture to RGB, `size` x `size`, upright.

    Turned upright last: a turned square is the square of the turned picture, and small.

    Args:
        image: Of any mode.
        box: The part of `image` that is the picture.
        upright: What turns it upright.
        size: Height and width of the result in pixels.
        resize: `squash` or `crop`.
    """
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        image = _to_rgb(image)
    if image.size != (size, size):
        if resize == "crop":
            box = _central_square(box, size)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    if upright is not None:
        image = image.transpose(upright)
    return image if image.mode == "RGB" else image.convert("RGB")


def _central_square(
    box: tuple[float, float, float, float], size: int
) -> tuple[float, float, float, float]:
    """Return the part of `box` that the crop rule keeps."""
    _, _, width, height = box
    side = min(width, height) * size / round(size * CROP_RATIO)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return what turns a decoded picture upright, None where it is upright or does not say."""
    if _ORIENTATION_KEYS.isdisjoint(image.info):
        return None
    try:
        return _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _UNREADABLE:
        return None  # the pixels are good, so a damaged description of them must not cost them


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB, transparent parts over white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _stretched_to_8_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _stretched_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits to 0-255; Pillow's own conversion clips them."""
    values = np.asarray(image).astype(np.float32)
    values[~np.isfinite(values)] = 0
    if image.mode.startswith("I;16") or image.format == "PPM":
        low, high = 0.0, 65535.0
    else:
        low, high = float(values.min()), float(values.max())
    values -= low
    values *= 255 / (high - low) if high > low else 0
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _reason(error: BaseException) -> str:
    """Say in one line, without the path, why a file could not be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is for a picture; try fewer --workers"
    return " ".join(str(error).split()) or type(error).__name__


def _printable(path: str | Path | Source) -> str:
    """Return a file's name as it can be printed on one line in any terminal."""
    name = os.path.basename(path.name if isinstance(path, Source) else path)  # noqa: PTH119 - accepts str as well
    return name if name.isprintable() else ascii(name)
