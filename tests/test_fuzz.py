"""Random and damaged input to everything that reads files of strangers.

In the suite a few hundred examples each, always the same ones. To search further, for as long as
one likes: `pytest tests/test_fuzz.py --hypothesis-profile long`, which takes others each time.
"""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, features

from tltools.card import MAX_NAME, Card, Preprocessing, card_from_json
from tltools.data.images import load_image
from tltools.data.labels import read_labels
from tltools.errors import ArtifactError, ConfigError, DataError
from tltools.runtime import read_card

SIZE = 24


# ----------------------------------------------------------------------------------- damage


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """A few changes to a file: the kind, the place as a share of its length, and the value."""
    kinds = st.sampled_from(["put", "insert", "cut", "repeat", "drop"])
    where = st.floats(0, 1, exclude_max=True)
    bits = st.binary(min_size=1, max_size=8) | st.sampled_from(
        [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff", b"\x80\x80\x80\x80\x80\x80"]
    )
    return draw(st.lists(st.tuples(kinds, where, bits), min_size=1, max_size=6))


def damaged(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, bits in changes:
        at = int(where * len(data))
        if kind == "put":
            data = data[:at] + bits + data[at + len(bits) :]
        elif kind == "insert":
            data = data[:at] + bits + data[at:]
        elif kind == "cut":
            data = data[:at]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 64] * 3 + data[at + 64 :]
        else:
            data = data[:at] + data[at + len(bits) :]
    return data


def assert_one_line(error: Exception) -> None:
    assert str(error)
    assert "\n" not in str(error)


# --------------------------------------------------------------------------------- images


def _images() -> dict[str, bytes]:
    """Small images in every format and many variants."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 31, 3), dtype=np.uint8))
    frames = [rgb.convert("P"), rgb.rotate(90, expand=True).convert("P")]
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "jpeg": (rgb, {}),
        "jpeg progressive": (rgb, {"progressive": True}),
        "jpeg gray": (rgb.convert("L"), {}),
        "jpeg cmyk": (rgb.convert("CMYK"), {}),
        "jpeg exif": (rgb, {"exif": exif}),
        "png": (rgb, {}),
        "png palette": (rgb.convert("P"), {"transparency": 3}),
        "png alpha": (rgb.convert("RGBA"), {}),
        "png one bit": (rgb.convert("1"), {}),
        "png 16 bits": (Image.fromarray(rng.integers(0, 2**16, (9, 9), dtype=np.uint16)), {}),
        "png exif": (rgb, {"exif": exif}),
        "gif": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "bmp": (rgb, {}),
        "tiff": (rgb, {}),
        "tiff lzw": (rgb, {"compression": "tiff_lzw"}),
        "tiff deflate": (rgb, {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (rgb, {"compression": "jpeg"}),
        "tiff float": (Image.fromarray(rng.normal(size=(8, 8)).astype(np.float32)), {}),
        "ppm": (rgb, {}),
        "webp": (rgb, {}),
        "webp lossless": (rgb.convert("RGBA"), {"lossless": True, "exif": exif}),
    }
    if features.check("avif"):
        kinds["avif"] = (rgb, {})
    if features.check("jpg_2000"):
        kinds["jpeg2000"] = (rgb, {})
    return {name: _encoded(name, *kind) for name, kind in kinds.items()}


def _encoded(name: str, image: Image.Image, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, format=name.partition(" ")[0], **options)
    return file.getvalue()


IMAGES = _images()
MAGICS = [data[:size] for data in IMAGES.values() for size in (4, 12, 30)]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "image"


def check_image(file: Path, data: bytes) -> None:
    """Check that the file gives an image or a one-line DataError."""
    file.write_bytes(data)
    for resize in ("squash", "crop"):
        try:
            pixels = load_image(file, Preprocessing(size=SIZE, resize=resize))
        except DataError as error:
            assert_one_line(error)
        else:
            assert (pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), np.uint8)


@given(st.sampled_from(sorted(IMAGES)), damages())
def test_a_damaged_image_is_decoded_or_an_error(file, name, changes):
    check_image(file, damaged(IMAGES[name], changes))


@given(st.sampled_from([b"", *MAGICS]), st.binary(max_size=300))
def test_any_bytes_are_an_image_or_an_error(file, magic, rest):
    check_image(file, magic + rest)


# ----------------------------------------------------------------------------------- labels

CELLS = st.one_of(
    st.sampled_from(["image", "label", "split", "a.jpg", "1", "1.0", "007", "nan", "", " ", '"'])
    | st.sampled_from(["train", "val", "x\0y", "../a.png", "/etc/passwd", "é", "\ufeff", "'"]),
    st.text(max_size=8),
)
TABLES = st.lists(st.lists(CELLS, min_size=0, max_size=4), max_size=6)


@st.composite
def csv_files(draw: st.DrawFn) -> bytes:
    file = io.StringIO()
    delimiter = draw(st.sampled_from([",", ";", "\t"]))
    table = draw(TABLES)
    if draw(st.booleans()):  # else it is refused at its header, mostly
        table = [["image", "label"], *([*row, "a", "b"][:2] for row in table)]
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows(table)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    data = file.getvalue().encode(encoding, "replace")
    return damaged(data, draw(damages())) if draw(st.booleans()) else data


@given(
    csv_files() | st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode()),
    st.sampled_from([None, "image", "label", ""]),
    st.sampled_from([None, "label", "split"]),
)
@example(b'""\n', None, None)
@example(b"\x0b", None, None)
def test_any_csv_gives_labels_or_an_error(file, data, image_column, label_column):
    path = file.with_suffix(".csv")
    path.write_bytes(data)
    try:
        frame = read_labels(path, image_column=image_column, label_column=label_column).frame
    except (DataError, ConfigError) as error:
        assert_one_line(error)
    else:
        assert list(frame.columns) == ["path", "class", "split"]
        assert len(frame) > 0
        assert all(map(os.path.isabs, frame["path"]))
        assert not frame["class"].isin(["", "nan"]).any()


# ------------------------------------------------------------------------------------ cards

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from([2**63, -1, 0, 10**30, 1e308, "../x", "\0", "squash", "\u202e", "x" * 300]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON document, as sequences of keys and indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path]
    for key, inner in items:
        inner_path = (*path, key)
        found += places(inner, inner_path) if isinstance(inner, dict | list) else [inner_path]
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def check_card(text: str | bytes) -> None:
    """Check that the text gives a usable card or a one-line ArtifactError."""
    try:
        card = card_from_json(text, where="somewhere")
    except ArtifactError as error:
        assert_one_line(error)
        return
    assert Path(card.run).name == card.run
    assert len(card.run) <= MAX_NAME
    assert "\0" not in card.run
    assert json.loads(card.to_text())["run"] == card.run
    assert card_from_json(card.to_json(), where="again") == card


@pytest.fixture(scope="module")
def card_document(cnn_exports) -> dict[str, Any]:
    """The card of a real export, with scores, a self-test and a training configuration."""
    card: Card = cnn_exports["onnx"].card
    return json.loads(card.to_json())


@given(st.data())
def test_any_value_in_a_card_is_accepted_or_an_error(card_document, data):
    document = card_document
    for _ in range(data.draw(st.integers(1, 3))):
        if isinstance(document, dict | list):
            place = data.draw(st.sampled_from(places(document)))
            document = replaced(document, place, data.draw(JSON))
    check_card(json.dumps(document))


@given(damages())
def test_a_damaged_card_is_read_or_an_error(card_document, changes):
    check_card(damaged(json.dumps(card_document).encode(), changes))


# ---------------------------------------------------------------------------------- exports


def check_export(file: Path, data: bytes, suffix: str) -> None:
    path = file.with_suffix(suffix)
    path.write_bytes(data)
    try:
        card = read_card(path)
    except ArtifactError as error:
        assert_one_line(error)
    else:
        assert card.export is not None


@given(damages())
def test_a_damaged_onnx_file_is_opened_or_an_error(file, onnx_path, changes):
    check_export(file, damaged(onnx_path.read_bytes(), changes), ".onnx")


@given(damages())
def test_a_damaged_torchscript_file_is_opened_or_an_error(file, torchscript_path, changes):
    check_export(file, damaged(torchscript_path.read_bytes(), changes), ".pt")


@given(damages())
def test_a_damaged_pt2_file_is_an_export_or_an_error(file, pt2_path, changes):
    check_export(file, damaged(pt2_path.read_bytes(), changes), ".pt2")


@given(st.sampled_from([".onnx", ".pt2", ".pt"]), st.binary(max_size=200))
@example(".onnx", b"\x3a\x00")
@example(".pt", b"PK\x05\x06" + bytes(18))
@example(".pt2", b"PK\x05\x06" + bytes(18))
def test_random_bytes_are_not_an_export(file, suffix, data):
    check_export(file, data, suffix)
