"""A folder of files from the wild: one row each, no crash, no hang, correct good images."""

import base64
import csv
import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, COLORS, SIZE
from PIL import Image

from tltools.card import Preprocessing
from tltools.classify import Job, Output, Plan, classify, list_images, run_job
from tltools.data import images as images_module
from tltools.data.images import load_image
from tltools.errors import DataError
from tltools.runtime import load_predictor, pipeline

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any such name"),
    # pytest makes errors of what Pillow warns of and `tltools.data.images` silences.
    pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\."),
]

# 32 x 32 pixels, reddish; written with libjpeg-turbo's `arith_code`, which Pillow cannot set.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4"
    "UG1RV19iZ2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2NjY2NjY2NjY2NjY2P/yQARCAAgACADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD+8LxQ"
    "gqgaoP/Z"
)
MAGIC = {
    "jpg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "gif": b"GIF89a",
    "webp": b"RIFF\x10\0\0\0WEBP",
    "bmp": b"BM",
    "tif": b"II*\0",
    "ppm": b"P6 ",
    "avif": b"\0\0\0\x1cftypavif",
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
}


def plain(color: str, size: int = SIZE) -> Image.Image:
    """An image of one color with some structure, so that its file has a length."""
    pixels = np.empty((size, size, 3), np.int16)
    pixels[...] = COLORS[color]
    pixels += np.random.default_rng(size).integers(-5, 6, pixels.shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with any header and any chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [MAGIC["png"]]
    for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + kind + data)
        parts.append(struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def with_exif(exif: bytes) -> bytes:
    jpeg = encoded(plain("green"), "JPEG")
    segment = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def good_files() -> Iterator[tuple[bytes, bytes, str]]:
    """Names, contents and colors of unusual images that must be readable."""
    red, green, blue = (plain(color) for color in COLORS)
    yield b"plain.png", encoded(red, "PNG"), "red"
    yield b"progressive.jpg", encoded(green, "JPEG", progressive=True), "green"
    yield b"arithmetic.jpg", ARITHMETIC, "red"
    yield b"cmyk.jpg", encoded(blue.convert("CMYK"), "JPEG"), "blue"
    yield b"cmyk.tif", encoded(red.convert("CMYK"), "TIFF"), "red"
    yield b"palette.png", encoded(green.quantize(8), "PNG"), "green"
    yield b"alpha.png", encoded(blue.convert("RGBA"), "PNG"), "blue"
    yield b"animated.gif", encoded(red, "GIF", save_all=True, append_images=[blue]), "red"
    yield b"animated.webp", encoded(green, "WEBP", save_all=True, append_images=[red]), "green"
    yield b"large.jpg", encoded(plain("blue", 2000), "JPEG"), "blue"
    yield b"narrow.png", encoded(plain("red", 600).crop((0, 0, 600, 1)), "PNG"), "red"
    yield b"one-pixel.bmp", encoded(plain("blue", 1), "BMP"), "blue"
    yield b"png-inside.jpg", encoded(green, "PNG"), "green"
    yield b"jpeg-inside.PNG", encoded(red, "JPEG"), "red"
    yield b"exif-broken.jpg", with_exif(b"MM\0*\xff\xff\xff\xff" + b"\xff" * 50), "green"
    yield b"exif-cut.jpg", with_exif(b"II*\0"), "green"
    yield b"exif-huge.jpg", with_exif(b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 32_000), "green"
    yield b"exif-loop.jpg", with_exif(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), "green"
    yield b"trailing.png", encoded(blue, "PNG") + b"\0" * 100_000, "blue"
    yield b"icc-broken.png", encoded(red, "PNG", icc_profile=b"no profile"), "red"
    yield b"new\nline.png", encoded(red, "PNG"), "red"
    yield b"\r\n.png", encoded(blue, "PNG"), "blue"
    yield b'quotes "" \' `.png', encoded(green, "PNG"), "green"
    yield b"comma,semicolon;.png", encoded(blue, "PNG"), "blue"
    yield b"\x1b[31mred\x07\x7f.png", encoded(red, "PNG"), "red"
    yield b"not-utf8-\xe9\xff\xfe.png", encoded(green, "PNG"), "green"
    yield "right-to-left-\u202egnp.png".encode(), encoded(blue, "PNG"), "blue"
    yield b"=cmd|' /C calc'!A0.png", encoded(red, "PNG"), "red"
    yield b"--overwrite.png", encoded(green, "PNG"), "green"
    yield b"   .png", encoded(blue, "PNG"), "blue"
    yield b"%s%n{0}$(x).png", encoded(red, "PNG"), "red"
    yield b"x" * 251 + b".png", encoded(green, "PNG"), "green"
    yield b"x.jpg/inside.png", encoded(blue, "PNG"), "blue"


def either_files() -> Iterator[tuple[bytes, bytes]]:
    """Images without a color to expect, and damaged ones of which some can be read."""
    ramp = Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 64)
    yield b"16-bit.png", encoded(ramp, "PNG")
    yield b"1-bit.png", encoded(plain("red").convert("1"), "PNG")
    yield b"float.tif", encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF")
    yield b"gray-alpha.png", encoded(plain("red").convert("LA"), "PNG")
    text = (b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 80_000_000))
    yield b"text-bomb.png", png(8, 8, text, (b"IDAT", zlib.compress(b"\0" * 200)))
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("GIF", "gif"), ("WEBP", "webp")):
        data = encoded(plain("green"), kind)
        for length in np.linspace(1, len(data) - 1, 12, dtype=int):
            yield f"cut-{suffix}-{length}.{suffix}".encode(), data[:length]
        flipped = bytearray(data)
        for position in range(len(data) // 3, len(data), 7):
            flipped[position] ^= 0x55
        yield f"flipped.{suffix}".encode(), bytes(flipped)


def bad_files() -> Iterator[tuple[bytes, bytes]]:
    """Files that are no images, or must not be decoded."""
    yield b"empty.jpg", b""
    yield b"text.jpg", b"This is not an image.\n" * 100
    yield b"page.png", b"<html><body>404</body></html>"
    yield b"document.png", b"%PDF-1.7\n"
    yield b"script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n"
    yield b"zeros.jpg", b"\0" * 100_000
    for suffix, magic in MAGIC.items():
        yield f"magic.{suffix}".encode(), magic
        yield f"magic-zeros.{suffix}".encode(), magic + b"\0" * 1000
    pixels = (b"IDAT", zlib.compress(b"\0" * 1000))
    yield b"bomb.png", png(50_000, 50_000, pixels)
    yield b"bomb-max.png", png(2**31 - 1, 2**31 - 1, pixels)
    yield b"bomb-none.png", png(0, 0, pixels)
    sides = struct.pack("<HH", 65_535, 65_535)
    frame = b",\0\0\0\0" + sides + b"\0\x02\x02\x4c\x01\0;"
    yield b"bomb.gif", b"GIF89a" + sides + b"\0\0\0" + frame
    size = struct.pack("<iihh", 60_000, 60_000, 1, 24)
    yield b"bomb.bmp", b"BM" + struct.pack("<IHHII", 54, 0, 0, 54, 40) + size + b"\0" * 24
    yield b"bomb.ppm", b"P6 60000 60000 255\n"
    jpeg = bytearray(encoded(plain("red"), "JPEG"))
    position = jpeg.index(b"\xff\xc0") + 5
    jpeg[position : position + 4] = struct.pack(">HH", 65_500, 65_500)
    yield b"bomb.jpg", bytes(jpeg)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """The folder, including entries that are not files."""
    folder = tmp_path_factory.mktemp("hostile") / "images"
    folder.mkdir()
    for name, content, *_ in (*good_files(), *either_files(), *bad_files()):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    os.mkfifo(folder / "fifo.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "nowhere.jpg").symlink_to("nowhere")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    (folder / "up").symlink_to("..")
    with socket.socket(socket.AF_UNIX) as listening, working_in(folder):
        listening.bind("socket.jpg")  # the whole path would be too long
    yield folder
    shutil.rmtree(folder)  # pytest would stumble over some of the names


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


NO_FILES = {"fifo.jpg", "itself.jpg", "nowhere.jpg", "endless.jpg", "socket.jpg"}


def text(name: bytes | str) -> str:
    """A name as written in the results."""
    return os.fsdecode(name).encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="module")
def rows(hostile, onnx_path, tmp_path_factory) -> dict[str, dict[str, str]]:
    """What the command makes of the folder, by name."""
    output = tmp_path_factory.mktemp("results") / "out.csv"
    command = "from tltools.cli import main; main()"
    args = ["classify", hostile, "--model", onnx_path, "--device", "cpu", "-o", output]
    done = subprocess.run(
        [sys.executable, "-c", command, *map(str, args)], capture_output=True, timeout=120
    )
    err = done.stderr.decode()
    assert done.returncode == 0, err
    assert "looking for the image" not in err  # no decoder crashed, none hung
    assert all(line.isprintable() for line in err.splitlines())
    with output.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    found = {row["path"]: row for row in table}
    assert len(found) == len(table)
    return found


def test_every_hostile_file_gets_one_row(rows):
    made = [name for name, *_ in (*good_files(), *either_files(), *bad_files())]
    assert len(made) > 60
    assert set(rows) == {text(name) for name in made} | NO_FILES
    for row in rows.values():
        assert (row["label"] in CLASSES) != bool(row["error"])


def test_unusual_images_get_their_labels(rows):
    wanted = {text(name): color for name, _, color in good_files()}
    assert {name: rows[name]["label"] for name in wanted} == wanted


def test_files_that_are_not_images_get_error_rows(rows):
    for name in (*(text(name) for name, _ in bad_files()), *NO_FILES):
        assert rows[name]["error"].startswith("cannot read image "), name
        assert rows[name]["error"].isprintable()


def test_decompression_bombs_are_refused_by_their_headers(rows):
    for name in ("bomb.png", "bomb-max.png", "bomb.gif", "bomb.bmp", "bomb.ppm", "bomb.jpg"):
        assert "a decompression bomb?" in rows[name]["error"], rows[name]


def test_every_image_gets_the_same_prediction_as_alone(rows, hostile, onnx_path):
    predictor = load_predictor(onnx_path, device="cpu", threads=1)
    errors = {}
    for listed in list_images([hostile]):
        row = rows[text(listed.name)]
        try:
            image = load_image(listed, Preprocessing(size=SIZE, resize="squash"))
        except DataError as error:
            errors[text(listed.name)] = text(str(error))
            continue
        logits = predictor(image[None])[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        found = [float(row[f"prob_{name}"]) for name in CLASSES]
        assert found == pytest.approx(list(probabilities), abs=1e-6)
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == errors


@pytest.mark.parametrize("plan", [Plan("fused", 2, 4), Plan("ahead", 2, 16)], ids=str)
def test_every_plan_survives_the_hostile_folder(plan, rows, hostile, onnx_path, tmp_path):
    predictor = load_predictor(onnx_path, device="cpu", threads=1)
    output = tmp_path / "out.csv"
    with Output(output, CLASSES) as writer:
        for prediction in classify(predictor, list_images([hostile]), plan=plan):
            writer.write(prediction)
    with output.open(encoding="utf-8", newline="") as file:
        found = {row["path"]: row["label"] for row in csv.DictReader(file)}
    assert found == {name: row["label"] for name, row in rows.items()}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_job_over_the_hostile_folder_resumes(suffix, hostile, onnx_path, tmp_path):
    from test_resume import content, stop

    run_job(Job(onnx_path, [hostile], tmp_path / f"whole{suffix}", device="cpu"))
    output = tmp_path / f"out{suffix}"
    for _ in range(4):
        stop(onnx_path, [hostile], output, 23)
    assert run_job(Job(onnx_path, [hostile], output, device="cpu")).num_kept == 92
    assert content(output) == content(tmp_path / f"whole{suffix}")


def test_a_file_deleted_after_listing_gets_an_error_row(onnx_path, images, tmp_path, monkeypatch):
    load = pipeline.load_image

    def delete_some(path, rules, **options):
        if Path(path).name == "5.png":
            Path(path).unlink()
        return load(path, rules, **options)

    monkeypatch.setattr(pipeline, "load_image", delete_some)
    summary = run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"))
    assert (summary.num_images, summary.num_failed) == (30, 3)
    assert list(summary.errors) == ["no such file or directory"]


def test_a_growing_file_is_read_up_to_its_initial_size(onnx_path, images, tmp_path, monkeypatch):
    fstat, seen, grown = os.fstat, [], []

    def growing(handle):
        info = fstat(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.name == "5.png":
            grown.append(path)
            with path.open("ab") as file:
                file.write(b"\0" * 1000)
        return info

    load_any = images_module._load_any

    def recorded(data, rules):
        seen.append(len(data))
        return load_any(data, rules)

    sizes = sorted(path.stat().st_size for path in images.glob("*/*.png"))
    monkeypatch.setattr(images_module, "_load_any", recorded)
    monkeypatch.setattr(os, "fstat", growing)
    summary = run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"))
    monkeypatch.undo()
    assert summary.counts == {"red": 10, "green": 10, "blue": 10}
    assert sorted(seen) == sizes
    assert len(set(grown)) == 3


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_file_without_read_permission_gets_an_error_row(onnx_path, images, tmp_path):
    run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"))  # imports what it needs
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        shutil.copytree(images, folder / "images")
        model = Path(shutil.copy(onnx_path, folder / "tiny.onnx"))
        (folder / "images/red/3.png").chmod(0)
        folder.chmod(0o777)
        with as_nobody():
            summary = run_job(Job(model, [folder / "images"], folder / "out.csv", device="cpu"))
    assert (summary.num_images, summary.errors) == (30, {"permission denied": 1})
