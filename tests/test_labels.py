import os
from pathlib import Path

import pytest
from PIL import Image

from tltools.data.dataset import load_dataset
from tltools.data.labels import check_data, read_labels
from tltools.errors import ConfigError, DataError


def write_csv(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def rows(frame):
    return [
        (Path(path).name, label, split)
        for path, label, split in zip(frame["path"], frame["class"], frame["split"], strict=True)
    ]


def read(data, **options):
    return read_labels(data, **options).frame


# --- CSV ------------------------------------------------------------------------------------------


def test_first_column_is_the_image_and_second_the_label(tmp_path):
    csv = write_csv(tmp_path, "image_names,emergency_or_not\nb.jpg,0\na.jpg,1\n")
    frame = read(csv)
    assert list(frame.columns) == ["path", "class", "split"]
    assert rows(frame) == [("b.jpg", "0", ""), ("a.jpg", "1", "")]
    assert all(Path(path).is_absolute() for path in frame["path"])


def test_a_folder_with_one_csv_is_that_csv(tmp_path):
    write_csv(tmp_path, "a,b\n1.jpg,0\n")
    image(tmp_path / "images" / "1.jpg")
    frame = read(tmp_path)
    assert list(frame["path"]) == [str(tmp_path / "images" / "1.jpg")]


def test_images_are_found_beside_the_csv_in_images_and_in_the_given_folder(tmp_path):
    csv = write_csv(tmp_path, "a,b\nbeside.jpg,0\ninside.jpg,1\nsub/deep.jpg,1\ngone.jpg,0\n")
    beside = image(tmp_path / "beside.jpg")
    inside = image(tmp_path / "images" / "inside.jpg")
    deep = image(tmp_path / "images" / "sub" / "deep.jpg")
    # A missing image is named where most of the others lie.
    gone = tmp_path / "images" / "gone.jpg"
    assert list(read(csv)["path"]) == [str(p) for p in (beside, inside, deep, gone)]
    other = tmp_path / "other"
    other.mkdir()
    told = read(csv, images=other)
    assert next(iter(told["path"])) == str(other / "beside.jpg")


def test_absolute_and_relative_names_become_normal_absolute_paths(tmp_path, monkeypatch):
    there = image(tmp_path / "images" / "a b.jpg")
    folder = tmp_path / "labels"
    folder.mkdir()
    write_csv(folder, f"a,b\n{there},0\n../images/a b.jpg,1\n")
    monkeypatch.chdir(tmp_path)
    assert list(read(Path("labels/labels.csv"))["path"]) == [str(there)] * 2


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        pytest.param(["0", "1"], ["0", "1"], id="int"),
        pytest.param(["0.0", "1.0"], ["0", "1"], id="float"),
        pytest.param(["1", "1.0", "1.", " 1 "], ["1"] * 4, id="one class in four spellings"),
        pytest.param(["-1.0", "1.5"], ["-1", "1.5"], id="negative and fraction"),
        pytest.param(["True", "False"], ["True", "False"], id="bool"),
        pytest.param(["007", "7"], ["007", "7"], id="leading zeros"),
        pytest.param(["NA", "None"], ["NA", "None"], id="words that pandas takes for nothing"),
        pytest.param(["12345678901234567890", "1e3"], ["12345678901234567890", "1e3"], id="long"),
        pytest.param(['"fire, brigade"', "v1.0"], ["fire, brigade", "v1.0"], id="text"),
        pytest.param(["구급차", "Élan"], ["구급차", "Élan"], id="letters"),
    ],
)
def test_labels_of_any_type_become_text(tmp_path, cells, classes):
    lines = [f"{index}.jpg,{cell}" for index, cell in enumerate(cells)]
    frame = read(write_csv(tmp_path, "\n".join(["a,b", *lines])))
    assert list(frame["class"]) == classes


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_delimiters_line_ends_and_the_byte_order_mark_are_understood(tmp_path, mark, bom, end):
    text = end.join([f"image{mark} label", f"1.jpg{mark}0", "", f"2.jpg{mark} 1", ""])
    frame = read(write_csv(tmp_path, bom + text.encode()), image_column="image")
    assert rows(frame) == [("1.jpg", "0", ""), ("2.jpg", "1", "")]


def test_a_line_separator_of_unicode_does_not_end_a_row(tmp_path):
    frame = read(write_csv(tmp_path, "a,b\n1.jpg,x\u2028y\n"))
    assert list(frame["class"]) == ["x\u2028y"]


def test_columns_are_chosen_by_name(tmp_path):
    csv = write_csv(tmp_path, "id,kind,file\n7,bee,1.jpg\n")
    frame = read(csv, image_column="file", label_column="kind")
    assert rows(frame) == [("1.jpg", "bee", "")]
    assert rows(read(csv, image_column="file")) == [("1.jpg", "bee", "")]


def test_an_unknown_column_is_an_error_that_lists_the_columns(tmp_path):
    csv = write_csv(tmp_path, "id,kind\n1.jpg,bee\n")
    with pytest.raises(ConfigError, match=r"`label_column=`: .* no column 'sort'.* id, kind"):
        read(csv, label_column="sort")


def test_repeated_headers_matter_only_where_one_is_named(tmp_path):
    csv = write_csv(tmp_path, "a,a,b\n1.jpg,0,x\n")
    assert rows(read(csv, label_column="b")) == [("1.jpg", "x", "")]
    with pytest.raises(ConfigError, match="more than one column 'a'"):
        read(csv, image_column="a")


def test_one_column_cannot_be_image_and_label(tmp_path):
    csv = write_csv(tmp_path, "a,b\n1.jpg,0\n")
    with pytest.raises(ConfigError, match="'a' cannot hold both"):
        read(csv, image_column="a", label_column="a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b"", "is empty", id="no bytes"),
        pytest.param(b"\n \n", "is empty", id="blank lines"),
        pytest.param(b",,\n,,\n", "is empty", id="only commas"),
        pytest.param(b"\xef\xbb\xbf", "is empty", id="only a byte order mark"),
        pytest.param(b"a,b\n", "a header but no rows", id="header only"),
        pytest.param(b"a\n1.jpg\n", r"one column \('a'\)", id="one column"),
        pytest.param(b"a,b\n1.jpg,caf\xe9\n", "is not UTF-8 .*0xe9.*CSV UTF-8", id="latin-1"),
        pytest.param("a,b\n1.jpg,x\n".encode("utf-16")[:-1], "is not UTF-16", id="cut"),
        pytest.param(b"1.jpg,0\n2.jpg,1\n", "has no header", id="no header"),
        pytest.param(b"a,b\n1.jpg,0\n2.jpg\n", "not in line 3", id="a cell is missing"),
        pytest.param(b"a,b\n1,5.jpg,0\n", "not in line 2.*a comma in double quotes", id="comma"),
        pytest.param(b'a,b\n"1.jpg,0\n', "line 2: unexpected end", id="open quote"),
        pytest.param(b"a,b\n1.jpg,\n2.jpg,0\n3.jpg,NaN\n", "no label in 2 .*lines 2, 4", id="nan"),
        pytest.param(b"a,b\n ,0\n", r"no image in 1 of 1 row \(column 'a', line 2\)", id="name"),
        pytest.param(b"a,split\n1.jpg,train\n", "no label column", id="no label column"),
        pytest.param(b"a,b,split\n1.jpg,0,fold1\n", "'split' that is not one of", id="odd split"),
    ],
)
def test_a_broken_csv_is_an_error(tmp_path, text, message):
    csv = write_csv(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        read(csv)
    assert str(csv) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_list_of_lines_is_shortened(tmp_path):
    csv = write_csv(tmp_path, "a,b\n" + "1.jpg,\n" * 25)
    with pytest.raises(DataError, match=r"no label in 25 of 25 .* 10, 11 and 15 more"):
        read(csv)


def test_a_cell_that_is_not_a_valid_path_is_a_missing_image(tmp_path):
    csv = write_csv(tmp_path, f"a,b\n{'x' * 5000},0\nn\0ul.jpg,1\n")
    assert len(read(csv)) == 2


@pytest.mark.parametrize("word", ["val", "valid", "validation", "VAL "])
def test_a_split_column_is_honored(tmp_path, word):
    csv = write_csv(tmp_path, f"a,Split,b\n1.jpg,train,x\n2.jpg,{word},y\n3.jpg,test,y\n")
    assert rows(read(csv)) == [
        ("1.jpg", "x", "train"),
        ("2.jpg", "y", "val"),
        ("3.jpg", "y", "test"),
    ]


def test_an_empty_split_column_is_no_split(tmp_path):
    frame = read(write_csv(tmp_path, "a,b,split\n1.jpg,x,\n"))
    assert list(frame["split"]) == [""]


# --- Folders --------------------------------------------------------------------------------------


def test_class_folders_give_their_names(tmp_path):
    image(tmp_path / "bee" / "2.jpg")
    image(tmp_path / "bee" / "deep" / "er" / "1.PNG")
    image(tmp_path / "ant" / "a b.jpg")
    image(tmp_path / ".cache" / "x.jpg")
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    frame = read(tmp_path)
    assert rows(frame) == [("a b.jpg", "ant", ""), ("2.jpg", "bee", ""), ("1.PNG", "bee", "")]
    assert all(Path(path).is_file() for path in frame["path"])


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_train_and_val_folders_are_a_split(tmp_path, name):
    image(tmp_path / "train" / "ant" / "1.jpg")
    image(tmp_path / "train" / "bee" / "2.jpg")
    image(tmp_path / name / "bee" / "3.jpg")
    image(tmp_path / "test" / "ant" / "4.jpg")
    (tmp_path / "runs").mkdir()
    assert rows(read(tmp_path)) == [
        ("1.jpg", "ant", "train"),
        ("2.jpg", "bee", "train"),
        ("3.jpg", "bee", "val"),
        ("4.jpg", "ant", "test"),
    ]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "car", "train", "train/freight"):
        image(tmp_path / name / "1.jpg")
    assert [label for _, label, _ in rows(read(tmp_path))] == ["bus", "car"] + ["train"] * 2


def test_images_without_a_class_are_listed_separately(tmp_path):
    for name in ("train/ant/1.jpg", "train/bee/2.jpg", "train/stray.jpg", "top.jpg", "test/3.jpg"):
        image(tmp_path / name)
    labels = read_labels(tmp_path)
    assert [name for name, _, _ in rows(labels.frame)] == ["1.jpg", "2.jpg"]
    loose = [str(tmp_path / name) for name in ("test/3.jpg", "top.jpg", "train/stray.jpg")]
    (finding,) = labels.findings
    assert (finding.kind, sorted(finding.paths)) == ("loose", loose)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        pytest.param(["train/1.jpg", "test/2.jpg"], "but no class folders", id="flat"),
        pytest.param(["train/a/1.jpg", "cats/2.jpg"], r"not splits \(cats\): move", id="mixed"),
        pytest.param(["1.jpg"], "neither a CSV nor class folders", id="no folders"),
        pytest.param([], "neither a CSV nor class folders", id="empty"),
    ],
)
def test_an_ambiguous_folder_is_an_error(tmp_path, images, message):
    for name in images:
        image(tmp_path / name)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_a_file_name_that_is_not_unicode_is_kept_and_such_a_class_refused(tmp_path):
    image(tmp_path / "ant" / "plain.png")
    (tmp_path / "ant" / "plain.png").rename(
        os.fsdecode(os.fsencode(tmp_path / "ant") + b"/\xff.png")
    )
    (path,) = read(tmp_path)["path"]
    assert Path(path).is_file()
    (tmp_path / "ant").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"))
    with pytest.raises(DataError, match=r"names are not UTF-8: rename '.udcfe'") as caught:
        read(tmp_path)
    str(caught.value).encode()


def test_control_characters_do_not_reach_a_message(tmp_path):
    csv = write_csv(tmp_path, 'a,"b\n\x1b[31m"\n1.jpg,0\n')
    with pytest.raises(ConfigError, match=r"its columns are a, 'b\\n\\x1b\[31m'"):
        read(csv, label_column="c")


@pytest.mark.parametrize("split", ["", "val/"])
def test_a_class_folder_without_images_is_an_error(tmp_path, split):
    image(tmp_path / "train" / "ant" / "1.jpg")
    image(tmp_path / f"{split}ant" / "1.jpg") if split else image(tmp_path / "x" / "1.jpg")
    root = tmp_path if split else tmp_path / "train"
    (tmp_path / "val" / "wasp" if split else root / "wasp").mkdir(parents=True)
    (finding,) = read_labels(root).findings
    assert finding.severity == "error"
    assert "1 empty class folder (wasp)" in finding.message
    with pytest.raises(DataError, match=r"1 empty class folder \(wasp\)"):
        load_dataset(root)


def test_several_csv_files_are_an_error_that_names_them(tmp_path):
    write_csv(tmp_path, "a,b\n1.jpg,0\n", "one.csv")
    write_csv(tmp_path, "a,b\n1.jpg,0\n", "two.csv")
    with pytest.raises(DataError, match=r"2 CSV files \(one.csv, two.csv\): name one"):
        read(tmp_path)


def test_a_csv_beside_class_folders_is_not_guessed(tmp_path):
    csv = write_csv(tmp_path, "a,b\nant/1.jpg,x\n")
    image(tmp_path / "ant" / "1.jpg")
    with pytest.raises(DataError, match=r"labels.csv and folders of images \(ant\)"):
        read(tmp_path)
    assert rows(read(csv)) == [("1.jpg", "x", "")]
    assert rows(read(tmp_path, label_column="b")) == [("1.jpg", "x", "")]


def test_csv_options_are_refused_for_folders(tmp_path):
    image(tmp_path / "ant" / "1.jpg")
    with pytest.raises(ConfigError, match="contains no CSV: leave out `images=`"):
        read(tmp_path, images=tmp_path)


def test_a_missing_path_or_a_file_that_is_not_csv_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "gone")
    with pytest.raises(DataError, match=r"is not a CSV"):
        read(image(tmp_path / "1.jpg"))
    csv = write_csv(tmp_path, "a,b\n1.jpg,0\n")
    with pytest.raises(DataError, match="name the folder of the images with `images=`"):
        read(csv, images=tmp_path / "gone")


def test_a_misspelled_column_is_proposed(tmp_path):
    path = write_csv(tmp_path, "Datei,Klasse\na.png,x\n")
    with pytest.raises(ConfigError, match="no column 'klase'; did you mean Klasse\\? its columns"):
        read_labels(path, label_column="klase")


def test_a_run_is_not_labeled_images(cnn_run, cnn_exports):
    for read in (read_labels, check_data):
        with pytest.raises(DataError, match=r"cnn is a run, not labeled images; name a CSV or a f"):
            read(cnn_run)
    with pytest.raises(DataError, match=r"class folders \(it is a folder of runs\): make one f"):
        read_labels(cnn_run.parent)
    with pytest.raises(DataError, match=r"class folders \(it is a folder of exports\): make one"):
        read_labels(cnn_run.parents[1] / "exports")


def test_a_csv_without_the_class_folders_of_its_images_says_where_one_is(tmp_path):
    for name, label in (("a1", "ants"), ("b1", "bees")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / label / f"{name}.jpg")
    (tmp_path / "lab.csv").write_text("image,label\na1,ants\nb1,bees\n")
    found = read_labels(tmp_path / "lab.csv", images=tmp_path / "photos")
    assert found.hints == {
        str(tmp_path / "photos" / "a1"): f"{tmp_path}/photos/ants/a1.jpg has this name; the CSV "
        "needs its folder, too"
    }


@pytest.mark.parametrize(("mark", "other"), [("x", ""), ("1", ""), ("X", " "), ("yes", "no")])
def test_a_table_with_a_column_for_each_class_may_be_marked_as_people_do(tmp_path, mark, other):
    lines = ["image,ants,bees,cars"]
    lines += [
        f"a{i}.jpg," + ",".join(mark if i == j else other for j in range(3)) for i in range(3)
    ]
    (tmp_path / "labels.csv").write_text("\n".join([*lines, ""]))
    found = read_labels(tmp_path / "labels.csv")
    assert list(found.frame["class"]) == ["ants", "bees", "cars"]
    (tmp_path / "labels.csv").write_text("\n".join([*lines, f"b.jpg,{mark},{mark},{other}", ""]))
    with pytest.raises(DataError, match=r"not exactly one 1 in line 5"):
        read_labels(tmp_path / "labels.csv")
