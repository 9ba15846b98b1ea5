"""A grid of image files has the pixels that the specifications give it, or is refused by name.

`python -m pytest tests/test_decoders.py -rs -s` prints how OpenCV and libvips read the same files;
they are independent of Pillow, which tltools uses, and are not installed with it:
`pip install opencv-python-headless "pyvips[binary]"`.
"""

import re
from collections import Counter
from collections.abc import Callable

import image_grid
import numpy as np
import pytest
from image_grid import SIZE, Case, Pixels, over_white, stretched

from tltools.card import Preprocessing
from tltools.data.image_ref import Content, ImageRef
from tltools.data.images import load_image
from tltools.errors import DataError

RULES = Preprocessing(size=SIZE, resize="squash")  # nothing is resampled
KINDS = [
    image_grid.png_cases,
    image_grid.bmp_cases,
    image_grid.tiff_cases,
    image_grid.jpeg_cases,
    image_grid.gif_cases,
    image_grid.netpbm_cases,
    image_grid.pillow_cases,
]
# What Pillow does not read, or reads wrongly: names of files → the error. A later Pillow may read
# more of them.
REFUSED = {
    r"bmp-palette-2-.*": "Unsupported BMP pixel depth",
    r"bmp-fields-(4+|bgr|rgbx|xrgb|argb|101010|888-gap)-.*": "Unsupported BMP bitfields layout",
    r"bmp-fields-1555-.*": "BMP of 16 bits with transparency",
    r"tiff-.*-big-endian-bigtiff": "a big-endian BigTIFF",
    r"tiff-(white-is-zero-)?(u?int64|float(16|64))-.*": "1 x (16|64)-bit",
    r"tiff-white-is-zero(12|-u?int\d+)-.*": "white is zero",
    r"tiff-(gray12|white-is-zero16|uint32)-.*big-endian.*": "big-endian",
    r"tiff-color(2|4|-.*)-.*": r"3 x (2|4|\d+)-bit.*RGB",
    r"tiff-(gray|white-is-zero)(8|16)-(unspecified|associated|alpha)-.*": "2 x (8|16)-bit",
    r"tiff-color16-two-extra-.*": "5 x 16-bit",
    r"tiff-.*(lsb-first|planes).*": "is not supported",
    r"tiff-ycbcr-(\dx\d|default)-compression1": r"YCbCr subsampled \dx\d, compression raw",
}  # fmt: skip


def load(case: Case) -> Pixels:
    return load_image(ImageRef(case.name, Content.of(case.data)), RULES).astype(float)


def is_right(pixels: Pixels, case: Case, *, atol: float) -> bool:
    """Return whether pixels are those of a case; gray ones may have one channel."""
    both = [one if one.ndim == 3 else np.dstack([one] * 3) for one in (pixels, case.pixels)]
    return both[0].shape == both[1].shape and bool(np.abs(both[0] - both[1]).max() <= atol)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.removesuffix("_cases"))
def test_every_file_has_its_pixels_or_an_error_that_names_what_is_not_supported(kind):
    wrong, count = [], Counter()
    for case in kind():
        try:
            pixels = load(case)
        except DataError as error:
            reasons = [text for name, text in REFUSED.items() if re.fullmatch(name, case.name)]
            if not any(re.search(text, str(error)) for text in reasons):
                wrong.append(f"{case.name}: {error}")
            count["refused"] += 1
        else:
            if not is_right(pixels, case, atol=case.atol):
                wrong.append(f"{case.name}: other pixels")
            count["read"] += 1
    print(f"\n{kind.__name__}: {dict(count)}")
    assert wrong == []
    assert count["read"] > count["refused"] or kind is image_grid.tiff_cases


# ------------------------------------------------------------------------- other decoders


def levels_of(samples: Pixels) -> Pixels:
    if samples.dtype == np.uint8:
        return samples.astype(float)
    with np.errstate(invalid="ignore"):  # OpenCV makes NaN of separate planes of floats
        return samples / 257 if samples.dtype == np.uint16 else stretched(samples)


def by_opencv(case: Case) -> Pixels | None:
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    is_plain = re.search(
        r"orientation|header12\b", case.name
    )  # else it would not turn or color them
    flags = cv2.IMREAD_COLOR if is_plain else cv2.IMREAD_UNCHANGED
    samples = cv2.imdecode(np.frombuffer(case.data, np.uint8), flags)
    if samples is None:
        return None
    pixels = levels_of(samples)
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        return pixels.reshape(*pixels.shape[:2], -1)[..., 0]
    color = pixels[..., 2::-1]
    return over_white(color, pixels[..., 3] / 255) if pixels.shape[2] == 4 else color


def by_libvips(case: Case) -> Pixels | None:
    import pyvips

    try:
        image = pyvips.Image.new_from_buffer(case.data, "").autorot()
        samples = image.numpy()
    except pyvips.Error:
        return None
    if image.interpretation == "cmyk":  # without the profile that libvips would take
        rest = 255 - levels_of(samples)
        return rest[..., :3] * rest[..., 3:4] / 255
    alpha = levels_of(samples[..., -1]) / 255 if image.hasalpha() else None
    colors = levels_of(samples[..., :-1] if alpha is not None else samples)
    if colors.ndim == 3:
        colors = colors[..., :3] if colors.shape[2] >= 3 else colors[..., 0]
    return colors if alpha is None else over_white(colors, alpha)


# Files that are read otherwise → why.
_EXTRA = r"tiff-(color|gray|white-is-zero)(8|16)"
_PLANES = "mixes up separate planes"
_OPACITY = "takes samples of no stated meaning for opacity, as libtiff does"
DIFFERENCES = {
    "OpenCV": {
        r"png-gray-\d+(-adam7)?-transparent": "ignores the transparent value of gray",
        r"bmp-(16-no-fields|fields-(555|565)-header40)": "shifts 5 bits to 8, white is 248",
        r"bmp-fields-.*-header40": "ignores the fields of 32 bits",
        r"P[2356]-\d+": "does not scale by the largest value",
        rf"{_EXTRA}-unspecified-.*": _OPACITY,
        rf"{_EXTRA}-(associated|alpha)-.*": "multiplies the colors by opacity, or drops it",
        r"tiff-white-is-zero.*": "inverts only 1 and 8 bits",
        r"tiff-.*planes.*": _PLANES,
        r"tiff-lab-.*": "takes the white of another light",
    },
    "libvips": {
        rf"{_EXTRA}-unspecified-.*": _OPACITY,
        r"tiff-color(8|16)-two-extra-.*": _OPACITY,
        r"tiff-(gray|white-is-zero)(8|16)-(associated|alpha)-.*planes.*": _PLANES,
        r"tiff-white-is-zero.*": "inverts only unsigned integers without opacity",
        r"tiff-ycbcr-.*": "does not convert raw YCbCr",
        r"tiff-(zstd|lzma)": "was built without it, and gives black",
    },
}


@pytest.mark.parametrize(
    ("name", "module", "decode"),
    [("OpenCV", "cv2", by_opencv), ("libvips", "pyvips", by_libvips)],
    ids=["opencv", "libvips"],
)
def test_other_decoders_differ_only_where_the_reason_is_known(
    name: str, module: str, decode: Callable[[Case], Pixels | None]
):
    pytest.importorskip(module, reason=f"needs {name}")
    reasons = DIFFERENCES[name]
    count, unknown = Counter(), []
    for case in image_grid.cases():
        pixels = decode(case)
        if pixels is None:
            count["not read"] += 1
        elif is_right(pixels, case, atol=case.atol + 1):
            count["same"] += 1
        elif reason := next(
            (why for like, why in reasons.items() if re.fullmatch(like, case.name)), ""
        ):
            count[reason] += 1
        else:
            unknown.append(case.name)
    print(f"\n{name}: {count.total():,} files, {dict(count.most_common())}")
    assert unknown == []
