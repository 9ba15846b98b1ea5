import hashlib
import io
import os
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import simplejpeg
from image_grid import Layout, gif, noise, tiff
from PIL import Image, ImageOps

from tltools.card import Preprocessing
from tltools.data import image_formats, images
from tltools.data.images import (
    fit_image,
    image_sha256,
    load_image,
)
from tltools.data.suffixes import IMAGE_SUFFIXES
from tltools.errors import DataError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
BLACK = (0, 0, 0)
SIZE = 32


def quadrants(width=SIZE, height=SIZE):
    """Red, green / blue, white: every flip and rotation looks different."""
    image = Image.new("RGB", (width, height), WHITE)
    half_width, half_height = width // 2, height // 2
    image.paste(RED, (0, 0, half_width, half_height))
    image.paste(GREEN, (half_width, 0, width, half_height))
    image.paste(BLUE, (0, half_height, half_width, height))
    return image


def corners(pixels):
    """The colors in the middle of the four quadrants, row by row."""
    near, far = pixels.shape[0] // 4, pixels.shape[0] * 3 // 4
    return [pixels[y, x].tolist() for y in (near, far) for x in (near, far)]


def assert_quadrants(pixels, *, atol=12, expected=(RED, GREEN, BLUE, WHITE)):
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(corners(pixels), expected, atol=atol)


def load(path, *, size=SIZE, resize="squash"):
    return load_image(path, Preprocessing(size=size, resize=resize))


def assert_unreadable(path, match):
    with pytest.raises(DataError, match=match) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.parent) not in message
    return message


# Kinds of images


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("a.png", {}, id="png"),
        pytest.param("a.jpg", {"quality": 95, "subsampling": 0}, id="jpeg"),
        pytest.param(
            "b.jpg", {"quality": 95, "subsampling": 0, "progressive": True}, id="progressive"
        ),
        pytest.param("a.bmp", {}, id="bmp"),
        pytest.param("a.gif", {}, id="gif"),
        pytest.param("a.webp", {"lossless": True}, id="webp"),
        pytest.param("a.tiff", {}, id="tiff"),
        pytest.param("b.tiff", {"compression": "tiff_lzw"}, id="tiff-lzw"),
        pytest.param("a.ppm", {}, id="ppm"),
        pytest.param("a.avif", {"quality": 95}, id="avif"),
        pytest.param("a.jp2", {}, id="jpeg2000"),
    ],
)
def test_every_format_gives_the_same_colors_at_the_same_places(tmp_path, name, options):
    path = tmp_path / name
    quadrants(48, 64).save(path, **options)
    assert path.suffix in IMAGE_SUFFIXES
    assert_quadrants(load(path))


def test_the_result_is_contiguous_and_writable(tmp_path):
    quadrants().save(tmp_path / "a.png")
    pixels = load(tmp_path / "a.png")
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_the_result_is_written_to_the_given_array(tmp_path):
    quadrants().save(tmp_path / "a.png")
    batch = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    result = load_image(tmp_path / "a.png", Preprocessing(size=SIZE, resize="squash"), out=batch[1])
    assert result.base is batch
    assert_quadrants(batch[1])
    assert not batch[0].any()


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "LA"])
def test_a_decoded_image_is_processed_like_its_file(tmp_path, resize, mode):
    path = tmp_path / "a.png"
    quadrants(48, 64).convert(mode).save(path)
    expected = load_image(path, Preprocessing(size=SIZE, resize=resize))
    np.testing.assert_array_equal(
        fit_image(Image.open(path), Preprocessing(size=SIZE, resize=resize)), expected
    )
    if mode == "RGB":
        pixels = np.asarray(Image.open(path))
        np.testing.assert_array_equal(
            fit_image(pixels, Preprocessing(size=SIZE, resize=resize)), expected
        )


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honored(tmp_path, name, orientation):
    # What each orientation does to stored rows and columns is in the Exif standard: the stored
    # image is made by undoing it.
    undo = {
        1: lambda image: image,
        2: ImageOps.mirror,
        3: lambda image: image.rotate(180),
        4: ImageOps.flip,
        5: lambda image: ImageOps.mirror(image.rotate(-90, expand=True)),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: ImageOps.mirror(image.rotate(90, expand=True)),
        8: lambda image: image.rotate(-90, expand=True),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    undo(quadrants(40, 72)).save(path, exif=exif)
    assert_quadrants(load(path), atol=40)


NO_TIFF = b"Exif\0\0XX*\0\x08"
ENDS_WITHIN_A_TAG = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("exif", [NO_TIFF, ENDS_WITHIN_A_TAG])
def test_damaged_exif_leaves_the_image_unchanged(tmp_path, exif):
    quadrants().save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=exif)
    assert_quadrants(load(tmp_path / "a.jpg"))


def test_damaged_exif_gives_no_warning(tmp_path):
    path = tmp_path / "a.jpg"
    quadrants().save(path, exif=ENDS_WITHIN_A_TAG)
    pillow = f"from PIL import Image\nwith Image.open({str(path)!r}) as image: image.getexif()"
    ours = (
        "from tltools.card import Preprocessing\n"
        "from tltools.data.images import load_image\n"
        f"load_image({str(path)!r}, Preprocessing(size=8, resize='crop'))"
    )
    shown = []
    for script in (pillow, ours):
        command = [sys.executable, "-W", "default", "-c", script]
        shown.append(subprocess.run(command, capture_output=True, text=True, check=True).stderr)
    assert "UserWarning: Corrupt EXIF data" in shown[0]
    assert shown[1] == ""


@pytest.mark.parametrize(
    ("name", "dtype", "white"),
    [
        pytest.param("a.png", np.bool, True, id="1-bit-png"),
        pytest.param("a.tiff", np.bool, True, id="1-bit-tiff"),
        pytest.param("a.png", np.uint8, 255, id="8-bit-png"),
        pytest.param("a.jpg", np.uint8, 255, id="8-bit-jpeg"),
        pytest.param("a.png", np.uint16, 65535, id="16-bit-png"),
        pytest.param("a.tiff", np.uint16, 65535, id="16-bit-tiff"),
        pytest.param("a.tiff", np.int32, 2_000_000, id="32-bit-tiff"),
        pytest.param("a.tiff", np.float32, 0.75, id="float-tiff"),
    ],
)
def test_gray_images_of_any_depth_keep_their_full_range(tmp_path, name, dtype, white):
    values = np.zeros((SIZE, SIZE), dtype)
    values[:, SIZE // 2 :] = white
    Image.fromarray(values).save(tmp_path / name)
    assert_quadrants(load(tmp_path / name), expected=(BLACK, WHITE, BLACK, WHITE))


def test_a_constant_float_image_is_black(tmp_path):
    Image.fromarray(np.full((SIZE, SIZE), np.nan, np.float32)).save(tmp_path / "a.tiff")
    assert not load(tmp_path / "a.tiff").any()


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path, name):
    values = np.full((SIZE, SIZE), 65535 // 2, np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert load(tmp_path / name)[0, 0].tolist() == [127, 127, 127]


def test_16_bit_pgm_is_scaled_and_not_clipped(tmp_path):
    values = np.full((SIZE, SIZE), 65535 // 4, ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 %d %d 65535\n" % (SIZE, SIZE) + values.tobytes())
    assert load(tmp_path / "a.pgm")[0, 0].tolist() == [64, 64, 64]


def test_transparency_is_composited_over_white(tmp_path):
    rgba = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    rgba.paste((255, 0, 0, 255), (0, 0, SIZE // 2, SIZE))
    rgba.paste((0, 0, 0, 128), (0, SIZE // 2, SIZE // 2, SIZE))
    rgba.save(tmp_path / "a.png")
    expected = (RED, WHITE, (127, 127, 127), WHITE)
    assert_quadrants(load(tmp_path / "a.png"), atol=1, expected=expected)


def test_gray_with_transparency_is_composited_over_white(tmp_path):
    Image.new("LA", (SIZE, SIZE), (0, 51)).save(tmp_path / "a.png")
    np.testing.assert_allclose(load(tmp_path / "a.png"), 204, atol=1)


@pytest.mark.parametrize(
    ("name", "transparency"),
    [("a.png", 1), ("a.gif", 1), ("a.png", bytes([255, 0]))],
    ids=["png-index", "gif-index", "png-alpha-per-color"],
)
def test_a_palette_with_transparency_is_composited_over_white(tmp_path, name, transparency):
    image = Image.new("P", (SIZE, SIZE), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (SIZE // 2, 0, SIZE, SIZE))
    image.save(tmp_path / name, transparency=transparency)
    assert_quadrants(load(tmp_path / name), expected=(RED, WHITE, RED, WHITE))


def test_the_transparent_color_of_an_rgb_png_is_white(tmp_path):
    quadrants().save(tmp_path / "a.png", transparency=BLUE)
    assert_quadrants(load(tmp_path / "a.png"), expected=(RED, GREEN, WHITE, WHITE))


@pytest.mark.parametrize("name", ["a.jpg", "a.tiff"])
def test_cmyk_is_not_inverted(tmp_path, name):
    quadrants().convert("CMYK").save(tmp_path / name)
    assert_quadrants(load(tmp_path / name), atol=40)


# JPEGs, which are decoded past Pillow


@pytest.fixture
def decoders(monkeypatch):
    """Names of the decoders used: `simplejpeg` or `Pillow`."""
    used = []

    def recording(name, function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            if name not in used:  # Pillow calls its `load` again before each operation
                used.append(name)
            return result

        return call

    monkeypatch.setattr(simplejpeg, "decode_jpeg", recording("simplejpeg", simplejpeg.decode_jpeg))
    load = images.JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(images.JpegImagePlugin.JpegImageFile, "load", recording("Pillow", load))
    return used


def blotches(width, height):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def by_pillow(path, *, scale=1):
    """A JPEG as Pillow decodes and squashes it."""
    with Image.open(path) as image:
        width, height = image.size
        if scale > 1:
            image.draft(None, (width // scale, height // scale))
        image.load()
        box = (0, 0, width / scale, height / scale)
        if image.size != (SIZE, SIZE):
            image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(SIZE, SIZE), (33, 47), (7, 5), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="4:2:0"),
        pytest.param({"subsampling": 1}, id="4:2:2"),
        pytest.param({"subsampling": 0}, id="4:4:4"),
        pytest.param({"progressive": True}, id="progressive"),
        pytest.param({"progressive": True, "subsampling": 0, "quality": 20}, id="poor"),
        pytest.param({"restart_marker_blocks": 2}, id="restart-markers"),
        pytest.param({"optimize": True, "comment": b"\xff\xd8\xff\xda"}, id="comment"),
        pytest.param({"icc_profile": b"\xff\xda" * 40_000}, id="icc-profile"),
    ],
)
def test_a_plain_jpeg_has_pillows_pixels(tmp_path, decoders, mode, size, options):
    path = tmp_path / "a.jpg"
    blotches(*size).convert(mode).save(path, **options)
    pixels = load(path)
    assert decoders == ["simplejpeg"]
    np.testing.assert_array_equal(pixels, by_pillow(path))


@pytest.mark.parametrize("keep_rgb", [False, True], ids=["ycbcr", "rgb"])
def test_a_plain_jpeg_is_written_to_the_given_array(tmp_path, decoders, keep_rgb):
    path = tmp_path / "a.jpg"
    blotches(SIZE, SIZE).save(path, keep_rgb=keep_rgb)
    batch = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    load_image(path, Preprocessing(size=SIZE, resize="squash"), out=batch[1])
    assert decoders == ["simplejpeg"]
    np.testing.assert_array_equal(batch[1], by_pillow(path))
    assert not batch[0].any()


def test_a_jpeg_that_only_pillow_can_convert_is_left_to_pillow(tmp_path, decoders):
    path = tmp_path / "a.jpg"
    blotches(SIZE, SIZE).convert("CMYK").save(path)
    pixels = load(path)
    assert decoders == ["Pillow"]
    np.testing.assert_array_equal(pixels, by_pillow(path))


@pytest.mark.parametrize("size", [(SIZE, SIZE), (50, 40)])
def test_a_jpeg_with_a_minor_fault_is_left_to_pillow(tmp_path, decoders, size):
    path = tmp_path / "a.jpg"
    blotches(*size).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:-40] + data[-20:])  # libjpeg fills in what is missing, and warns
    with pytest.raises(ValueError, match="premature end of data segment"):
        simplejpeg.decode_jpeg(path.read_bytes())
    pixels = load(path)
    assert decoders == ["Pillow"]
    np.testing.assert_array_equal(pixels, by_pillow(path))


@pytest.mark.parametrize("size", [(SIZE, SIZE), (50, 40)])
@pytest.mark.parametrize("orientation", [1, 2, 6])
def test_a_rotated_jpeg_has_pillows_pixels(tmp_path, decoders, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    blotches(*size).save(path, exif=exif)
    pixels = load(path)
    assert decoders == ["simplejpeg"]
    turn = {1: lambda square: square, 2: np.fliplr, 6: lambda square: np.rot90(square, -1)}
    np.testing.assert_array_equal(pixels, turn[orientation](by_pillow(path)))


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(b"", id="first"),
        pytest.param(segment(0xE2, b"\xff\xda\0\x0c"), id="behind-what-looks-like-the-scan"),
        pytest.param(b"\xff\xff\xff", id="behind-fill-bytes"),
        pytest.param(segment(0xFE, b""), id="behind-an-empty-comment"),
    ],
)
@pytest.mark.parametrize("kind", ["exif", "xmp"])
def test_the_orientation_is_found_anywhere_in_the_header(tmp_path, before, kind):
    exif = Image.Exif()
    exif[0x0112] = 3
    content = {
        "exif": b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"),
        "xmp": b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="3"/>',
    }
    path = tmp_path / "a.jpg"
    quadrants(40, 40).rotate(180).save(path, quality=95, subsampling=0)
    data = path.read_bytes()
    path.write_bytes(data[:2] + before + segment(0xE1, content[kind]) + data[2:])
    assert_quadrants(load(path), atol=40)


def test_the_first_image_of_a_multi_image_jpeg_is_used(tmp_path, decoders):
    path = tmp_path / "a.jpg"
    other = Image.new("RGB", (SIZE, SIZE), BLACK)
    quadrants().save(path, "MPO", save_all=True, append_images=[other], quality=95, subsampling=0)
    assert_quadrants(load(path))
    assert decoders == ["simplejpeg"]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tiff"])
def test_the_first_frame_of_an_animation_is_used(tmp_path, name):
    other = Image.new("RGB", (SIZE, SIZE), BLACK)
    quadrants().save(tmp_path / name, save_all=True, append_images=[other, other])
    assert_quadrants(load(tmp_path / name), atol=40)


def test_the_format_depends_on_the_content_not_the_suffix(tmp_path):
    buffer = io.BytesIO()
    quadrants().save(buffer, "PNG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert_quadrants(load(tmp_path / "a.jpg"), atol=0)


# Resizing


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_an_image_of_the_right_size_is_not_resampled(tmp_path, resize):
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load(tmp_path / "a.png", resize=resize), noise)


def test_squash_equals_pillows_bilinear_resize(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    noise.save(tmp_path / "a.png")
    expected = np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(load(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (225, 900), (100, 100)])
def test_crop_equals_torchvisions_resize_and_center_crop(tmp_path, width, height):
    from torchvision.transforms import v2

    rng = np.random.default_rng(0)
    blotches = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    image = blotches.resize((width, height), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.png")
    expected = np.asarray(v2.CenterCrop(224)(v2.Resize(256)(image)))
    pixels = load(tmp_path / "a.png", size=224, resize="crop")
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.mean() < 2  # the crop's edge may lie a fraction of a pixel away
    wrong = np.abs(load(tmp_path / "a.png", size=224).astype(int) - expected)
    assert wrong.mean() > 10


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (7, 5)])
def test_extreme_shapes_are_resized(tmp_path, resize, shape):
    Image.new("RGB", shape, GREEN).save(tmp_path / "a.png")
    assert (load(tmp_path / "a.png", resize=resize) == GREEN).all()


def smooth_photo(width, height):
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        128 + 100 * np.sin(x / width * a + y / height * b) for a, b in [(9, 4), (3, 8), (6, 6)]
    ]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("width", [600, 603, 1201])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_jpeg_decoded_at_reduced_scale_is_close_to_full_scale(
    tmp_path, monkeypatch, resize, width, orientation, mode
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    smooth_photo(width, 450).convert(mode).save(path, quality=95, exif=exif)
    decoded = []
    to_square = images._to_square
    monkeypatch.setattr(
        images, "_to_square", lambda *args: (decoded.append(args[0].size), to_square(*args))[1]
    )
    reduced = load(path, resize=resize).astype(int)
    monkeypatch.setattr(images, "DRAFT_MARGIN", 1e9)
    full = load(path, resize=resize).astype(int)
    assert decoded[1] == (width, 450)
    assert SIZE * 1.4 <= min(decoded[0]) <= 450 / 4
    assert np.abs(reduced - full).mean() < 1


@pytest.mark.parametrize(("side", "scale"), [(89, 1), (90, 2), (179, 2), (180, 4), (361, 8)])
@pytest.mark.parametrize("options", [{}, {"progressive": True, "subsampling": 0}])
def test_the_scale_is_the_smallest_that_keeps_the_margin(tmp_path, decoders, side, scale, options):
    # 1.4 times 32 is 44.8, so at least 45 pixels of each side are needed.
    path = tmp_path / "a.jpg"
    blotches(side + 30, side).save(path, **options)
    pixels = load(path)
    assert decoders == ["simplejpeg"]
    np.testing.assert_array_equal(pixels, by_pillow(path, scale=scale))
    assert (pixels != by_pillow(path, scale=2 * scale)).any()


# What cannot be read


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("a.jpg", {}, id="jpeg"),
        pytest.param("b.jpg", {"progressive": True}, id="progressive"),
        pytest.param("a.png", {}, id="png"),
        pytest.param("a.gif", {}, id="gif"),
        pytest.param("a.bmp", {}, id="bmp"),
        pytest.param("a.webp", {}, id="webp"),
        pytest.param("a.tiff", {}, id="tiff"),
        pytest.param("a.ppm", {}, id="ppm"),
        pytest.param("a.avif", {}, id="avif"),
    ],
)
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, name, options, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = tmp_path / f"whole{name}"
    Image.fromarray(noise).save(whole, **options)
    data = whole.read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * kept)])
    load(whole)
    assert_unreadable(tmp_path / name, f"^cannot read image {name}: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image of a known format"),
        (b"\xff\xd8\xff", "cannot read"),
        (b"\x89PNG\r\n\x1a\n", "cannot read"),
    ],
)
def test_a_file_that_is_not_an_image_is_refused(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    assert_unreadable(tmp_path / "a.jpg", reason)


def test_a_missing_file_is_refused(tmp_path):
    message = assert_unreadable(tmp_path / "a.jpg", "no such file")
    assert message == "cannot read image a.jpg: no such file or directory"


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    assert_unreadable(tmp_path / "a.jpg", "it is a folder")


def test_a_fifo_is_refused_immediately(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    raised = []

    def read():
        try:
            load(tmp_path / "a.jpg")
        except DataError as error:
            raised.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert raised == ["cannot read image a.jpg: it is not a file"]


def test_a_read_failure_is_reported_without_the_path(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(images, "_open_file", refuse)
    message = assert_unreadable(tmp_path / "a.png", "permission denied")
    assert message == "cannot read image a.png: permission denied"


@pytest.mark.parametrize("factor", [1.5, 3], ids=["pillow-warns", "pillow-refuses"])
@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.jpg", "a.webp", "a.tiff", "a.bmp"])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, monkeypatch, name, factor):
    Image.new("RGB", (60, 50)).save(tmp_path / name)
    limit = int(60 * 50 / factor)
    monkeypatch.setattr(image_formats, "MAX_PIXELS", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(Image.core, "new", lambda *_: pytest.fail("the pixels were decoded"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    assert_unreadable(tmp_path / name, "pixels")


@pytest.mark.parametrize("size", [(1, 2**22 + 1), (2**22 + 1, 1)], ids=["tall", "wide"])
def test_a_side_of_millions_of_pixels_is_refused(tmp_path, monkeypatch, size):
    Image.new("1", size).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.core, "new", lambda *_: pytest.fail("the pixels were decoded"))
    assert_unreadable(tmp_path / "a.png", "a side of 4,194,305 pixels exceeds the limit")


def gif_with_a_larger_frame():
    data = gif(np.zeros((9, 9), np.uint8), 1, np.zeros((2, 3)))
    start = data.index(b"\x2c") + 5
    return data[:start] + struct.pack("<HH", 13_000, 13_000) + data[start + 4 :]


def tiff_with_many_samples():
    return tiff(noise(8, 3), 8, 2, Layout(), tags={277: (3, [50_000])})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(gif_with_a_larger_frame, "13,000 x 13,000 pixels exceed the limit", id="gif"),
        pytest.param(tiff_with_many_samples, "a TIFF of 50000 x 8-bit samples", id="tiff"),
    ],
)
def test_readers_say_nothing_besides_the_error_of_the_row(tmp_path, make, reason):
    path = tmp_path / "a"
    path.write_bytes(make())
    script = (
        "import sys; from tltools.card import Preprocessing\n"
        "from tltools.data.images import load_image\n"
        "from tltools.errors import DataError\n"
        "try: load_image(sys.argv[1], Preprocessing(size=8, resize='crop'))\n"
        "except DataError as error: print(error)"
    )
    command = [sys.executable, "-c", script, str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert reason in result.stdout
    assert result.stderr == ""


def test_the_pixel_limit_is_pillows():
    assert image_formats.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_a_name_with_a_line_break_is_escaped(tmp_path):
    (tmp_path / "a\nb.jpg").write_bytes(b"")
    message = assert_unreadable(tmp_path / "a\nb.jpg", "it is empty")
    assert message == r"cannot read image 'a\nb.jpg': it is empty"


def test_a_path_may_be_a_string(tmp_path):
    quadrants().save(tmp_path / "a.png")
    assert_quadrants(load(str(tmp_path / "a.png")))
    with pytest.raises(DataError, match=r"^cannot read image b\.png: no such file"):
        load(str(tmp_path / "b.png"))


# Hashes


def test_the_sha256_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 1000
    (tmp_path / "a.jpg").write_bytes(data)
    assert image_sha256(tmp_path / "a.jpg") == hashlib.sha256(data).hexdigest()


def test_the_sha256_of_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"cannot read image a\.jpg: no such file"):
        image_sha256(tmp_path / "a.jpg")


def test_decoding_needs_neither_torch_nor_pandas(tmp_path):
    quadrants().save(tmp_path / "a.png")
    script = (
        "import sys; sys.modules.update(torch=None, pandas=None, sklearn=None, torchvision=None)\n"
        "from tltools.card import Preprocessing\n"
        "from tltools.data.images import load_image\n"
        "rules = Preprocessing(size=8, resize='crop')\n"
        f"print(load_image({str(tmp_path / 'a.png')!r}, rules).shape)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "(8, 8, 3)\n"), result.stderr
