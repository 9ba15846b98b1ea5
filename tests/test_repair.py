"""Good images whose files are damaged where it does not matter, and the limits of decoding."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from tltools.card import Preprocessing
from tltools.data import image_formats
from tltools.data.image_ref import MAX_FILE_BYTES, Content, ImageRef
from tltools.data.images import load_image
from tltools.errors import DataError

SIZE = 48
RULES = Preprocessing(size=SIZE, resize="squash")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))


def load(data):
    return load_image(ImageRef("a", Content.of(data)), RULES)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def assert_same(data, whole):
    np.testing.assert_array_equal(load(data), load(whole))


def assert_refused(data, match):
    with pytest.raises(DataError, match=match) as caught:
        load(data)
    assert "\n" not in str(caught.value)


# Metadata


def chunk(kind, data, checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


PNG = encoded(NOISE, "PNG")
HEADER_END = 33
CONTENTS = [
    b"",
    b"x",
    b"ICC\0\0" + zlib.compress(bytes(300)),
    b"Comment\0hello",
    b"k\0\0\xff\xff",
    b"k\0\0" + zlib.compress(bytes(80_000_000)),
    bytes(26),
    b"\xff" * 9,
]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
@pytest.mark.parametrize(
    "kind",
    [
        "iCCP",
        "pHYs",
        "tEXt",
        "zTXt",
        "iTXt",
        "gAMA",
        "cHRM",
        "sRGB",
        "tIME",
        "bKGD",
        "eXIf",
        "fcTL",
    ],
)
def test_no_ancillary_chunk_of_a_png_costs_the_image(kind, content):
    for checksum in (None, 1):
        piece = chunk(kind.encode(), content, checksum)
        assert_same(PNG[:HEADER_END] + piece + PNG[HEADER_END:], PNG)
        assert_same(PNG[:-12] + piece + PNG[-12:], PNG)


def test_intact_orientation_of_a_png_survives_a_corrupt_chunk():
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encoded(NOISE, "PNG", exif=exif)
    broken = turned[:HEADER_END] + chunk(b"tEXt", b"a\0b", 1) + turned[HEADER_END:]
    assert_same(broken, turned)
    assert (load(broken) != load(PNG)).any()


@pytest.mark.parametrize("kind", [b"IHDR", b"tRNS"])
def test_corrupt_chunk_that_the_pixels_need_is_an_error(kind):
    data = encoded(NOISE, "PNG", transparency=(1, 2, 3))
    end = data.index(kind) + 4 + int.from_bytes(data[data.index(kind) - 4 : data.index(kind)])
    assert_refused(data[:end] + bytes(4) + data[end + 4 :], "checksum")


JPEG = encoded(NOISE, "JPEG", quality=95)
SEGMENTS = [
    b"",
    b"x",
    b"JFIF\0",
    b"Exif\0\0II*\0",
    b"Exif\0\0MM\0*\xff\xff\xff\xff",
    b"ICC_PROFILE\0\1",
    b"MPF\0II*\0",
    b"Photoshop 3.0\x008BIM",
    b"FPXR\0",
    b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<",
]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("content", SEGMENTS, ids=range(len(SEGMENTS)))
@pytest.mark.parametrize("marker", [*range(0xE0, 0xEE), 0xEF, 0xFE], ids=hex)
def test_no_metadata_of_a_jpeg_costs_the_image(marker, content):
    piece = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    assert_same(JPEG[:2] + piece + JPEG[2:], JPEG)
    assert_same(JPEG[:2] + piece + JPEG[2:-2], JPEG)  # and for Pillow, which is strict there


@pytest.mark.parametrize("name", ["EXIF", "XMP ", "ICCP", "junk"])
def test_metadata_that_a_webp_lacks_a_part_of_does_not_cost_the_image(name):
    options = {"exif": b"Exif\0\0" + bytes(99), "xmp": bytes(99), "icc_profile": bytes(99)}
    whole = encoded(NOISE, "WEBP", lossless=True, **options)
    at = whole.find(name.encode())
    broken = whole[:-50] if at < 0 else whole[: at + 4] + b"\xff\xff\xff\x7f" + whole[at + 8 :]
    if name == "ICCP":  # it precedes the pixels: nothing is known of them
        assert_refused(broken, "cannot read")
    else:
        assert_same(broken, encoded(NOISE, "WEBP", lossless=True))


# End markers


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    ("mode", "subsampling"),
    # TurboJPEG, which judges whether all pixels are there, knows no subsampled CMYK.
    [("RGB", 0), ("RGB", 2), ("L", 0), ("CMYK", 0)],
)
def test_jpeg_that_lacks_only_its_end_marker_is_read(mode, progressive, subsampling):
    image = NOISE.convert(mode)
    whole = encoded(image, "JPEG", progressive=progressive, subsampling=subsampling)
    assert_same(whole[:-2], whole)
    assert_same(whole[:-1], whole)
    assert_same(whole[:-2] + bytes(1000), whole)
    for num_bytes in (6, 20, len(whole) // 4, len(whole) // 2):
        assert_refused(whole[:-num_bytes], "truncated")


def test_progressive_jpeg_without_its_last_scans_is_an_error():
    whole = encoded(NOISE, "JPEG", progressive=True, quality=95)
    scans = [
        start
        for marker, start, _ in image_formats.jpeg_segments(whole)
        if marker == image_formats.START_OF_SCAN
    ]
    assert len(scans) > 5
    for start in scans[1:]:
        tables = whole.rfind(b"\xff\xc4", 0, start)  # the scan's own tables precede it
        assert_refused(whole[: min(start, tables)], "truncated")
        assert_refused(whole[:start], "truncated")


# Limits


def test_jpeg_larger_than_the_limit_is_decoded_at_an_eighth(monkeypatch):
    image = NOISE.resize((1600, 1200), Image.Resampling.BICUBIC)
    files = {
        (mode, progressive): encoded(image.convert(mode), "JPEG", progressive=progressive)
        for mode in ("RGB", "L", "CMYK")
        for progressive in (False, True)
        if (mode, progressive) != ("CMYK", True)  # has more coefficients
    }
    expected = {key: load(data) for key, data in files.items()}
    monkeypatch.setattr(image_formats, "MAX_PIXELS", 1600 * 1200 - 1)
    for key, data in files.items():
        np.testing.assert_array_equal(load(data), expected[key])
    monkeypatch.setattr(image_formats, "MAX_PIXELS", 1600 * 1200 // 32)
    for (mode, progressive), data in files.items():
        if progressive:  # its coefficients would be held in memory, in full
            assert_refused(data, "in several scans exceed the limit")
        else:
            np.testing.assert_array_equal(load(data), expected[mode, False])


def with_size(data, marker, width, height):
    at = data.index(marker) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def test_jpeg_that_claims_more_pixels_than_its_bytes_can_hold_is_refused():
    assert_refused(with_size(JPEG, b"\xff\xc0", 65_500, 65_500), "691|pixels are more than .* hold")


def webp(kind, width, height):
    if kind == b"VP8L":
        bits = width - 1 | height - 1 << 14
        content = b"\x2f" + bits.to_bytes(4, "little") + b"\x88\x88\x08"
    elif kind == b"VP8 ":
        content = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20)
    else:
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        content = bytes(4) + sides
    body = b"WEBP" + kind + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiled_tiff(side, compression):
    """64 x 64 pixels in one tile of any size."""
    entries = [
        *((256, 64), (257, 64), (258, 8), (259, compression), (262, 1), (277, 1)),
        *((322, side), (323, side), (324, 200), (325, 5000)),
    ]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body).ljust(5200, b"\0")


def jpeg2000(width, height):
    data = bytearray(encoded(NOISE, "JPEG2000"))
    at = data.index(b"ihdr") + 4
    data[at : at + 8] = struct.pack(">II", height, width)
    at = data.index(b"\xff\x4f\xff\x51") + 8
    data[at : at + 8] = data[at + 16 : at + 24] = struct.pack(">II", width, height)
    return bytes(data)


def run_length_bmp(width, height):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 100, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1180, 0, 0, 1078) + header + bytes(1024) + bytes(102)


def avif(width, height):
    """An AVIF that claims 64 x 64 pixels around frames of another size."""
    data = bytearray(encoded(Image.new("RGB", (width, height)), "AVIF", speed=10, quality=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 64, 64)
    return bytes(data)


BOMBS = {
    "webp-lossless": webp(b"VP8L", 16_383, 16_383),
    "webp-lossy": webp(b"VP8 ", 16_383, 16_383),
    "webp-canvas": webp(b"VP8X", 16_384, 16_384),
    "webp-below-the-pixel-limit": webp(b"VP8L", 9_400, 9_400),
    "tiff-tile": tiled_tiff(46_336, 8),
    "tiff-tile-lzw": tiled_tiff(46_336, 5),
    "tiff-tile-raw": tiled_tiff(46_336, 1),
    "jpeg2000": jpeg2000(9_400, 9_400),
    "jpeg2000-huge": jpeg2000(60_000, 60_000),
    "bmp-runs": run_length_bmp(9_400, 9_400),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_file_that_takes_gigabytes_is_refused_before_they_are_allocated(name, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(BOMBS[name])
    script = (
        "import sys\n"
        "from tltools.bench.machine import peak_memory_bytes\n"
        "from tltools.card import Preprocessing\n"
        "from tltools.data.images import load_image\n"
        "from tltools.errors import DataError\n"
        "before = peak_memory_bytes()\n"
        "try: load_image(sys.argv[1], Preprocessing(size=32, resize='squash'))\n"
        "except DataError as error: print(error)\n"
        "print(peak_memory_bytes() - before)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "a decompression bomb?" in shown[0]
    assert int(shown[1]) < 50e6


def test_avif_is_judged_by_its_frames_and_not_by_what_its_container_claims(monkeypatch):
    data = avif(400, 300)
    monkeypatch.setattr(image_formats, "MAX_PIXELS", 400 * 300 - 1)
    assert_refused(data, "400 x 300 pixels exceed the limit")


def test_usual_tiles_around_a_small_image_are_no_bomb():
    pixels = bytes(range(256)) * 256
    entries = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, 322: 256, 323: 256}
    entries |= {324: 200, 325: len(pixels)}
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    header = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body
    assert load(header.ljust(200, b"\0") + pixels).max() > 0


def test_large_file_that_is_no_image_is_not_read(tmp_path):
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(2**28)
    with pytest.raises(DataError, match="not an image of a known format"):
        load_image(path, RULES)
    with path.open("wb") as file:
        file.write(JPEG)
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match=r"the file has 536,870,913 bytes, more than 536,870,912"):
        load_image(path, RULES)


def test_jpeg_with_millions_of_zeros_behind_it_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG[:-2] + bytes(2**25))
    np.testing.assert_array_equal(load_image(path, RULES), load(JPEG))
