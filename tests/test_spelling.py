import unicodedata
from pathlib import Path

import pytest

from tltools.data.dataset import load_dataset
from tltools.data.labels import read_labels
from tltools.data.text import clean, decoded_lines, look_key, word_key
from tltools.errors import DataError

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def table(folder: Path, names, labels, files=(), *, encoding="utf-8") -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    path = folder / "labels.csv"
    rows = [f"{name},{label}\n" for name, label in zip(names, labels, strict=True)]
    path.write_bytes("".join(["image,label\n", *rows]).encode(encoding))
    return path


def kinds(labels) -> list[str]:
    return [finding.kind for finding in labels.findings]


# --- Labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        pytest.param(NFC, NFD, NFC, id="normal form"),
        pytest.param("cat", "cat\u200b", "cat", id="zero width"),
        pytest.param("cat", "\ufeffcat", "cat", id="byte order mark"),
        pytest.param("big cat", "big\u00a0cat", "big cat", id="no-break space"),
        pytest.param("big cat", "big  cat", "big cat", id="two blanks"),
        pytest.param("cat", "ca\u00adt", "cat", id="soft hyphen"),
        pytest.param("cat", "cat\u200e", "cat", id="direction"),
    ],
)
def test_labels_that_look_the_same_are_one_class(tmp_path, one, other, name):
    labels = read_labels(table(tmp_path, ["1.jpg", "2.jpg"], [one, other]))
    assert list(labels.frame["class"]) == [name, name]
    assert kinds(labels) == ["label-spelling"]
    assert labels.findings[0].message.isascii()  # the difference can be seen


def test_class_folders_that_look_the_same_are_one_class(tmp_path):
    for name in (f"train/{NFC}", f"val/{NFD}", "train/dog", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(b"")
    labels = read_labels(tmp_path)
    assert set(labels.frame["class"]) == {NFC, "dog"}
    assert kinds(labels) == ["label-spelling"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("fire truck", "fire_truck"),
        ("A-1", "a 1"),
        ("cat", "\uff43at"),
        ("ß", "SS"),
    ],
)
def test_labels_that_differ_only_in_case_or_separators_are_reported(tmp_path, one, other):
    labels = read_labels(table(tmp_path, ["1.jpg", "2.jpg"], [one, other]))
    assert list(labels.frame["class"]) == [one, other]
    assert kinds(labels) == ["alike-classes"]
    assert f"{one}" in labels.findings[0].message


def test_a_class_that_val_writes_differently_is_explained(tmp_path):
    from PIL import Image

    for i, name in enumerate(("train/Cat", "train/dog", "val/cat", "val/dog")):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (60 * i, 0, 0)).save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=r"class cat has no image in train.* case or blanks"):
        load_dataset(tmp_path)


def test_letters_that_need_joiners_keep_them():
    persian, family = "\u0645\u06cc\u200c\u062e\u0648", "👨\u200d👩"
    assert (clean(persian), clean(family)) == (persian, family)
    assert look_key(persian) == persian.replace("\u200c", "")
    assert word_key("Fire_Truck") == word_key("fire - truck")


# --- Names of files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param("1.jpg ", "1.jpg", id="blank at the end"),
        pytest.param("1.jpg\u200b", "1.jpg", id="zero width"),
        pytest.param("1.jpg", "1.JPG", id="case of the suffix"),
        pytest.param("Images/1.jpg", "images/1.jpg", id="case of the folder"),
        pytest.param("sub\\1.jpg", "sub/1.jpg", id="backslash"),
        pytest.param("images\\1.jpg", "images/1.jpg", id="backslash and images"),
        pytest.param("1", "1.jpg", id="no suffix"),
        pytest.param("sub/1", "sub/1.JPEG", id="no suffix, in a folder"),
        pytest.param(f"{NFC}.jpg", f"{NFD}.jpg", id="NFD on the disk"),
        pytest.param(f"{NFD}/1.jpg", f"{NFC}/1.jpg", id="NFC on the disk"),
        pytest.param(f"../data/{NFC}.jpg", f"{NFD}.jpg", id="a folder up"),
    ],
)
def test_an_image_is_found_under_a_name_that_is_written_differently(tmp_path, name, file):
    folder = tmp_path / "data"
    folder.mkdir()
    path = table(folder, [name, "2.jpg"], ["cat", "dog"], [file, "2.jpg"])
    labels = read_labels(path)
    assert list(labels.frame["path"]) == [str(folder / file), str(folder / "2.jpg")]
    assert kinds(labels) == ["similar-name"]


def test_an_absolute_name_may_be_written_differently_too(tmp_path):
    path = table(tmp_path, [f"{tmp_path}/{NFC}.jpg"], ["cat"], [f"{NFD}.jpg"])
    assert list(read_labels(path).frame["path"]) == [f"{tmp_path}/{NFD}.jpg"]


@pytest.mark.parametrize(
    ("names", "files", "hint"),
    [
        pytest.param(["1"], ["1.jpg", "1.png"], "similar: '1.jpg', '1.png'", id="two suffixes"),
        pytest.param(["A.jpg"], ["a.jpg", "a.JPG"], "similar: 'a.JPG', 'a.jpg'", id="two cases"),
        pytest.param(["1.jpg"], ["1.png"], "similar: '1.png'", id="another suffix"),
        pytest.param(["1.jpg", "1.JPG"], ["1.jpg"], "similar: '1.jpg'", id="named by another row"),
        pytest.param(["1", "1.JPG"], ["1.jpg"], "similar: '1.jpg'", id="fits two rows"),
    ],
)
def test_where_several_files_fit_none_is_taken_and_all_are_named(tmp_path, names, files, hint):
    labels = read_labels(table(tmp_path, names, ["cat"] * len(names), files))
    missing = [path for path in labels.frame["path"] if not Path(path).exists()]
    assert missing
    assert {labels.hints[path] for path in missing} == {hint}
    with pytest.raises(DataError, match="similar: '"):
        load_dataset(tmp_path / "labels.csv", purpose="evaluate")


# --- Encodings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_csv_may_be_utf_8_or_utf_16(tmp_path, encoding):
    path = table(tmp_path, ["1.jpg", "2.jpg"], ["Größe", "dog"], encoding=encoding)
    assert list(read_labels(path).frame["class"]) == ["Größe", "dog"]


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_by_which_excel_names_the_delimiter_is_no_header(tmp_path, delimiter, end):
    path = tmp_path / "labels.csv"
    lines = [f"sep={delimiter}", f"image{delimiter}label", f"1.jpg{delimiter}cat", "2.jpg"]
    path.write_text(end.join(lines[:3]), newline="")
    assert list(read_labels(path).frame["class"]) == ["cat"]
    path.write_text(end.join(lines), newline="")
    with pytest.raises(DataError, match="not in line 4"):
        read_labels(path)


def test_comments_above_the_header_are_skipped(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("# exported today\n\nimage,label\n1.jpg,#1\n#2.jpg,x\n")
    assert list(read_labels(path).frame["class"]) == ["#1", "x"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_are_decoded_as_they_arrive(encoding, end, last):
    names = ["a.jpg", "Größe ċ.jpg", "日本.jpg", "Ċ.jpg"]  # U+010A holds the byte of a line end
    data = (end.join(names) + end * last).encode(encoding)
    found = list(decoded_lines(data.splitlines(keepends=True)))
    assert [line for line in found if line] == names


def test_bytes_that_are_not_utf_8_are_kept():
    assert list(decoded_lines([b"\xff.jpg\n"])) == ["\udcff.jpg"]
    assert list(decoded_lines([])) == [""]
