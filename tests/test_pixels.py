"""Samples of every kind become the right pixels, or an error that names what is not supported."""

import io
import struct
import zlib

import numpy as np
import pytest
from image_grid import chunk
from PIL import Image

from tltools.card import Preprocessing
from tltools.data import samples
from tltools.data.image_ref import Content, ImageRef
from tltools.data.images import fit_image, load_image
from tltools.errors import DataError

SIZE = 24  # of the files and of the result, so that nothing is resampled
RULES = Preprocessing(size=SIZE, resize="squash")
ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE]
GRAY = ((ROWS + COLUMNS) * 255 // (2 * (SIZE - 1))).astype(np.uint8)  # from 0 to 255
COLOR = np.dstack([COLUMNS * 255 // (SIZE - 1), ROWS * 255 // (SIZE - 1), GRAY]).astype(np.uint8)


def load(data):
    return load_image(ImageRef("a", Content.of(data)), RULES)


def assert_pixels(data, expected, *, atol=1):
    expected = expected if expected.ndim == 3 else np.dstack([expected] * 3)
    np.testing.assert_allclose(load(data).astype(int), expected.astype(int), atol=atol)


def assert_refused(data, match):
    with pytest.raises(DataError, match=match) as caught:
        load(data)
    assert "\n" not in str(caught.value)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# TIFF


def tiff(
    values,
    *,
    color=1,
    bits=None,
    order="<",
    compression=1,
    planes=1,
    shape=None,
    tags=None,
    kind=None,
):
    """A TIFF of one strip; `values` are an array (H, W) or (H, W, C), or the bytes of its rows."""
    if isinstance(values, bytes):
        data, (height, width, channels) = values, shape
    else:
        height, width, channels = (*values.shape, 1)[:3]
        bits = bits or values.itemsize * 8
        kind = kind or {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
        rows = np.moveaxis(values, 2, 0) if planes == 2 else values
        data = rows.astype(values.dtype.newbyteorder(order)).tobytes()
    if planes == 2:
        one = len(data) // channels
        parts = [data[n * one : (n + 1) * one] for n in range(channels)]
    else:
        parts = [data]
    if compression == 8:
        parts = [zlib.compress(part) for part in parts]
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * channels),
        259: (3, [compression]),
        262: (3, [color]),
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(part) for part in parts]),
        284: (3, [planes]),
        339: (3, [kind or 1] * channels),
        **(tags or {}),
    }
    start = 8
    offsets = []
    for part in parts:
        offsets.append(start)
        start += len(part)
    entries[273] = (4, offsets)
    body, extra = b"", b""
    base = start + 2 + 12 * len(entries) + 4
    for tag, (type_, numbers) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(numbers)}{'H' if type_ == 3 else 'I'}", *numbers)
        if len(content) > 4:
            value = struct.pack(f"{order}I", base + len(extra))
            extra += content
        else:
            value = content.ljust(4, b"\0")
        body += struct.pack(f"{order}HHI", tag, type_, len(numbers)) + value
    magic = b"II*\0" if order == "<" else b"MM\0*"
    header = magic + struct.pack(f"{order}I", start)
    count = struct.pack(f"{order}H", len(entries))
    return header + b"".join(parts) + count + body + bytes(4) + extra


def stretched(values):
    low, high = float(values.min()), float(values.max())
    return np.rint((values.astype(np.float64) - low) * 255 / (high - low))


GRAYS = {
    "uint8": GRAY,
    "uint16": GRAY.astype(np.uint16) * 257,
    "int8": (GRAY.astype(np.int16) - 128).astype(np.int8),
    "int16": ((GRAY.astype(np.int16) - 128) * 200).astype(np.int16),
    "uint32": GRAY.astype(np.uint32) * 16_843_009,
    "uint32-small": GRAY.astype(np.uint32) * 1000,
    "int32": (GRAY.astype(np.int32) - 128) * 10_000_000,
    "float32": GRAY.astype(np.float32) / 255,
    "float32-negative": GRAY.astype(np.float32) - 100,
    "float32-huge": (GRAY.astype(np.float32) - 128) * np.float32(2.5e36),
}
# What Pillow cannot read; a later version may.
NOT_READ = {("uint32", ">"), ("uint32-small", ">")}


@pytest.mark.parametrize("compression", [1, 8], ids=["raw", "deflate"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("kind", GRAYS)
def test_gray_tiff_of_any_type_has_its_levels(kind, order, compression):
    data = tiff(GRAYS[kind], order=order, compression=compression)
    if (kind, order) in NOT_READ:
        assert_refused(data, "a TIFF of 1 x 32-bit samples, black is zero, .*is not supported")
    else:
        assert_pixels(data, GRAY)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("kind", GRAYS)
def test_gray_tiff_whose_white_is_zero_is_no_negative(kind, order):
    data = tiff(GRAYS[kind], color=0, order=order)
    try:
        load(data)
    except DataError as error:
        assert "white is zero" in str(error)  # noqa: PT017 - some Pillow reads, some it refuses
    else:
        assert_pixels(data, 255 - GRAY)
    if kind == "uint8" or (order == "<" and kind in ("uint16", "float32")):
        assert_pixels(data, 255 - GRAY)


def test_bright_pixels_of_a_32_bit_tiff_stay_bright():
    values = np.zeros((SIZE, SIZE), np.uint32)
    values[:, SIZE // 2 :] = 2**32 - 1
    pixels = load(tiff(values))
    assert (pixels[0, 0].max(), pixels[0, -1].min()) == (0, 255)


def test_12_bits_are_scaled_by_their_own_range():
    levels = GRAY.astype(int) * 4095 // 255
    bits = "".join(f"{level:012b}" for level in levels.ravel())
    rows = int(bits, 2).to_bytes(len(bits) // 8)
    assert_pixels(tiff(rows, bits=12, shape=(SIZE, SIZE, 1)), GRAY)


@pytest.mark.parametrize(
    ("values", "options", "names"),
    [
        pytest.param(GRAY.astype(np.float64), {}, "1 x 64-bit float", id="float64"),
        pytest.param(GRAY.astype(np.uint64), {}, "1 x 64-bit samples", id="uint64"),
        pytest.param(COLOR / np.float32(255), {"color": 2}, "3 x 32-bit float", id="float-color"),
        pytest.param(
            COLOR.astype(np.int16), {"color": 2}, "16-bit signed samples, RGB", id="int16"
        ),
        pytest.param(
            COLOR.astype(np.uint16), {"color": 2, "planes": 2}, "separate planes", id="planes-16"
        ),
        pytest.param(
            np.dstack([GRAY, GRAY]),
            {"planes": 2, "compression": 8, "tags": {338: (3, [2])}},
            "2 x 8-bit samples.*separate planes",
            id="planes-gray-alpha",
        ),
        pytest.param(GRAY, {"compression": 34712}, "compression JPEG 2000", id="jpeg2000"),
        pytest.param(GRAY, {"compression": 50002}, "compression JPEG XL", id="jpegxl"),
        pytest.param(GRAY, {"color": 32803}, "color filter array", id="raw-sensor"),
        pytest.param(GRAY, {"tags": {254: (4, [1])}}, "thumbnail", id="thumbnail-first"),
        pytest.param(GRAY, {"tags": {50706: (4, [1])}}, "DNG", id="dng"),
    ],
)
def test_tiff_that_is_not_supported_is_named(values, options, names):
    assert_refused(tiff(values, **options), names)


def test_corrupt_tiff_is_described_in_its_row_and_nowhere_else(capfd):
    data = bytearray(tiff(COLOR, color=2, compression=8))
    data[40:60] = b"\xff" * 20
    assert_refused(
        bytes(data), r"its samples are corrupt or not supported: it is a TIFF of 3 x 8-bit"
    )
    assert capfd.readouterr() == ("", "")  # libtiff would write there


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("compression", [1, 8])
def test_color_tiff_in_chunks_or_planes_has_its_pixels(planes, compression):
    assert_pixels(tiff(COLOR, color=2, planes=planes, compression=compression), COLOR, atol=0)


def test_samples_that_are_no_numbers_do_not_change_the_others():
    values = GRAY.astype(np.float32) + 1000
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    expected = stretched(np.where(np.isfinite(values), values, values[1, 0]))
    expected[0, :3] = 0, 255, 0
    assert_pixels(tiff(values), expected)


def test_no_warning_comes_of_a_nan_that_signals():
    values = GRAY.astype(np.float32)
    values[1, 1] = 0
    values.view(np.uint32)[1, 1] = 0x7F800001
    assert load(tiff(values))[1, 1].max() == 0


def test_large_images_are_converted_in_bands(monkeypatch):
    alpha = Image.fromarray(np.dstack([COLOR, GRAY]))
    files = [tiff(GRAYS["uint32"]), tiff(GRAYS["uint16"], color=0), encoded(alpha, "PNG")]
    whole = [load(data) for data in files]
    monkeypatch.setattr(samples, "BAND_PIXELS", 5 * SIZE)
    for data, expected in zip(files, whole, strict=True):
        np.testing.assert_array_equal(load(data), expected)


# PNG


def png(bits, color, rows, *chunks):
    header = struct.pack(">IIBBBBB", SIZE, SIZE, bits, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_gray_of_a_png_is_white(bits, value):
    most = (1 << bits) - 1
    values = (ROWS * SIZE + COLUMNS) * 7 % (most + 1)
    values[3, 4] = value
    text = ["".join(f"{level:0{bits}b}" for level in row) for row in values]
    rows = [int(row, 2).to_bytes(len(row) // 8) for row in text]
    expected = np.rint(values * 255 / most)
    expected[values == value] = 255
    assert_pixels(png(bits, 0, rows, chunk(b"tRNS", struct.pack(">H", value))), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_transparent_color_of_a_png_is_white(bits):
    values = COLOR.astype(f">u{bits // 8}") * (257 if bits == 16 else 1)
    expected = COLOR.copy()
    expected[5, 6] = 255
    key = chunk(b"tRNS", values[5, 6].astype(">u2").tobytes())
    assert_pixels(png(bits, 2, [row.tobytes() for row in values], key), expected)


def test_decoded_png_goes_the_way_of_its_file():
    values = (ROWS * SIZE + COLUMNS) % 4
    rows = [int("".join(f"{level:02b}" for level in row), 2).to_bytes(SIZE // 4) for row in values]
    data = png(2, 0, rows, chunk(b"tRNS", b"\0\2"))
    np.testing.assert_array_equal(fit_image(Image.open(io.BytesIO(data)), RULES), load(data))


# BMP


def bmp(alpha, *, header_size=124, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000)):
    """A BMP of 32 bits per pixel, whose header says where the channels are."""
    shifts = [mask.bit_length() - 8 for mask in masks]
    channels = (*np.moveaxis(COLOR.astype(np.uint32), 2, 0), alpha.astype(np.uint32))
    words = sum(channel << shift for channel, shift in zip(channels, shifts, strict=True))
    pixels = words[::-1].astype("<u4").tobytes()
    sizes = (header_size, SIZE, SIZE, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    header = struct.pack("<IiiHHIIiiII", *sizes) + struct.pack("<4I", *masks)
    header = header.ljust(header_size, b"\0")[:header_size]
    start = 14 + header_size
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels


ORDERS = {
    "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
    "abgr": (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
}


@pytest.mark.parametrize("header_size", [56, 108, 124])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("alpha", [0, 255])
def test_bmp_whose_alpha_is_the_same_everywhere_is_opaque(alpha, order, header_size):
    alphas = np.full((SIZE, SIZE), alpha)
    assert_pixels(bmp(alphas, header_size=header_size, masks=ORDERS[order]), COLOR, atol=0)


def test_bmp_with_transparent_parts_is_laid_over_white():
    alphas = np.where(COLUMNS < SIZE // 2, 0, 255)
    expected = COLOR.copy()
    expected[:, : SIZE // 2] = 255
    assert_pixels(bmp(alphas), expected, atol=0)


def test_png_whose_alpha_is_zero_everywhere_is_white():
    rgba = np.dstack([COLOR, np.zeros_like(GRAY)])
    assert_pixels(encoded(Image.fromarray(rgba), "PNG"), np.full_like(GRAY, 255), atol=0)


# The other formats


@pytest.mark.parametrize("order", ["<", ">"])
def test_gray_pfm_is_stretched_and_upright(order):
    scale = b"-1.0" if order == "<" else b"1.0"
    rows = (GRAY[::-1] / 255).astype(f"{order}f4").tobytes()
    assert_pixels(b"Pf\n%d %d\n%s\n" % (SIZE, SIZE, scale) + rows, GRAY)


@pytest.mark.parametrize("most", [1, 15, 100, 255, 300, 1023, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P5"])
def test_pgm_is_scaled_by_its_largest_value(kind, most):
    levels = GRAY.astype(int) * most // 255
    header = b"%s\n%d %d\n%d\n" % (kind, SIZE, SIZE, most)
    text = b" ".join(b"%d" % level for level in levels.ravel())
    rows = text if kind == b"P2" else levels.astype(">u2" if most > 255 else "u1").tobytes()
    assert_pixels(header + rows, np.rint(levels * 255 / most))


@pytest.mark.parametrize("bits", [10, 16])
def test_jpeg_2000_with_deep_colors_is_refused(bits):
    # Pillow would turn its white into black.
    data = bytearray(encoded(Image.fromarray(COLOR), "JPEG2000"))
    depths = data.index(b"\xff\x4f\xff\x51") + 4 + 38
    for component in range(3):
        data[depths + 3 * component] = bits - 1
    assert_refused(bytes(data), f"JPEG 2000 with 3 components of {bits} bits is not supported")


def test_jpeg_2000_with_signed_samples_is_refused():
    data = encoded(Image.fromarray(COLOR), "JPEG2000", signed=True)
    assert_refused(data, "JPEG 2000 with signed samples is not supported")


def test_deep_gray_jpeg_2000_keeps_its_range():
    image = Image.fromarray(GRAYS["uint16"])
    assert_pixels(encoded(image, "JPEG2000"), GRAY)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
        (b"P7\nWIDTH 1\n", "PAM"),
        (b"PF\n1 1\n-1.0\n" + bytes(12), "color PFM"),
        (b"\0\0\1\0\1\0" + bytes(50), "a Windows icon"),
        (b"8BPS\0\1" + bytes(50), "Photoshop"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "a video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw format"),
        (b"PK\3\4" + bytes(50), "an archive"),
        (bytes(18) + b"TRUEVISION-XFILE.\0", "TGA"),
    ],
)
def test_format_that_is_not_supported_is_named(data, name):
    assert_refused(data, f"not an image of a known format, but {name}")


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_is_called_heic_where_its_reader_is_missing(brand, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pi_heif", None)
    data = struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1heic" + bytes(400)
    assert_refused(data, r'but HEIC; install its reader \(pip install "pi-heif')


def test_damaged_heic_is_called_heic():
    pytest.importorskip("pi_heif")
    data = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(400)
    assert_refused(data, "its HEIC is damaged: ")


def test_heic_is_read_where_its_reader_is_installed():
    heif = pytest.importorskip("pillow_heif", reason="needs an HEVC encoder")
    pytest.importorskip("pi_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(COLOR)).save(file, quality=100, chroma=444)
    assert_pixels(file.getvalue(), COLOR, atol=12)
