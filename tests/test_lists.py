"""Lists of images as people and programs write them."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tltools.classify import list_images
from tltools.data.folders import MARKER, make_output_folder
from tltools.errors import DataError


def listed(folder: Path, text: str | bytes, *files: str) -> list[str]:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    path = folder / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [image.name for image in list_images([path])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_may_be_utf_8_or_utf_16(tmp_path, encoding):
    text = "Größe.jpg\r\nb.jpg\r\n".encode(encoding)
    assert listed(tmp_path, text) == ["Größe.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('"a.jpg"', "a.jpg"),
        ("'a.jpg'", "a.jpg"),
        ("a.jpg  ", "a.jpg"),
        ("\ta.jpg\u00a0", "a.jpg"),
        ("a.jpg\u200b", "a.jpg"),
        ("s\\b.jpg", "s/b.jpg"),
        ('"s\\b.jpg" ', "s/b.jpg"),
        ("gone.jpg ", "gone.jpg"),
        ("#1.jpg", "#1.jpg"),
    ],
)
def test_quotes_blanks_and_backslashes_are_understood(tmp_path, line, name):
    assert listed(tmp_path, f"{line}\n", "a.jpg", "s/b.jpg") == [name]


@pytest.mark.parametrize("name", ["a.jpg ", "'a.jpg'", "s\\b.jpg", "# a.jpg", "a.jpg,0", "a.jpg 0"])
def test_a_file_with_exactly_this_name_comes_first(tmp_path, name):
    assert listed(tmp_path, f"{name}\n", name, "a.jpg") == [name]


def test_blank_lines_and_comments_are_no_images(tmp_path):
    text = "# chosen by hand\n\n  \na.jpg\n# b.jpg\n#\nc.jpg\n"
    assert listed(tmp_path, text) == ["a.jpg", "c.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,0\n",
        "image,label\na.jpg,0\n",
        "a.jpg\t0\n",
        "a.jpg 0\n",
        '"a.jpg";"cat"\n',
    ],
)
def test_a_table_named_as_a_list_is_refused(tmp_path, text):
    with pytest.raises(DataError, match=r"holds more than a path .* keep only the paths"):
        listed(tmp_path, text, "a.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_an_image_in_place_of_a_list_is_refused(tmp_path, kind):
    Image.new("RGB", (30, 20), (200, 10, 10)).save(file := io.BytesIO(), kind)
    with pytest.raises(DataError, match=r"list\.txt is an image, not a list of paths"):
        listed(tmp_path, file.getvalue())


@pytest.mark.parametrize("name", ["BM.jpg", "GIF89a.gif", "RIFF.webp", "Größe.jpg"])
def test_names_that_begin_like_an_image_are_names(tmp_path, name):
    assert listed(tmp_path, f"{name}\n") == [name]


@pytest.mark.parametrize("name", ["labels.csv", "l.json", "l.JSONL", "l.xlsx", "l.parquet"])
def test_a_table_given_as_an_image_is_refused(tmp_path, name):
    (tmp_path / name).write_text("a.jpg")
    with pytest.raises(DataError, match=r"neither an image nor a list: write .* \.txt file"):
        list_images([tmp_path / name])


def test_folders_of_systems_and_of_tltools_are_not_searched(tmp_path):
    for name in ("a.jpg", "@eaDir/1.jpg", "s/#recycle/2.jpg", "$RECYCLE.BIN/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    make_output_folder(tmp_path / "explained")
    assert (tmp_path / "explained" / MARKER).is_file()
    (tmp_path / "explained" / "a.png").write_bytes(b"")
    assert [image.name for image in list_images([tmp_path])] == ["a.jpg"]
    # A folder that is named is searched, whatever it is.
    assert [image.name for image in list_images([tmp_path / "explained"])] == ["a.png"]


def test_a_folder_of_the_user_is_never_marked(tmp_path):
    make_output_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
