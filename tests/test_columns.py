from pathlib import Path

import pytest

from tltools.data.labels import read_labels
from tltools.errors import DataError

LABELS = ("cat", "dog") * 3
UNCLEAR = "could be in .* name the column with"


def table(folder: Path, header: str, row) -> Path:
    """A CSV with one row for each of six images, which exist."""
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(b"")
    path = folder / "labels.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row(i))) for i in range(6))]) + "\n")
    return path


def pairs(path: Path, **options) -> list[tuple[str, str]]:
    frame = read_labels(path, **options).frame
    return [(Path(p).name, label) for p, label in zip(frame["path"], frame["class"], strict=True)]


def splits(path: Path) -> list[str]:
    return list(read_labels(path).frame["split"])


RIGHT = [(f"{i}.jpg", LABELS[i]) for i in range(6)]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        pytest.param(
            "image_name,patient_id,sex,target", lambda i: (f"{i}.jpg", i // 2, "m", LABELS[i]),
            id="ISIC",
        ),
        pytest.param("label,image", lambda i: (LABELS[i], f"{i}.jpg"), id="swapped"),
        pytest.param("kind,anything", lambda i: (LABELS[i], f"{i}.jpg"), id="swapped, odd names"),
        pytest.param(",image,label", lambda i: (i, f"{i}.jpg", LABELS[i]), id="index"),
        pytest.param("Unnamed: 0,file,kind", lambda i: (i, f"{i}.jpg", LABELS[i]), id="pandas"),
        pytest.param("id,breed", lambda i: (i, LABELS[i]), id="Dog Breed Identification"),
        pytest.param(
            "class id,filepaths,labels", lambda i: (i % 2, f"{i}.jpg", LABELS[i]), id="birds"
        ),
        pytest.param(
            "filename,width,height,class,xmin", lambda i: (f"{i}.jpg", 9, 9, LABELS[i], i),
            id="detection",
        ),
        pytest.param(
            "image,mask,label", lambda i: (f"{i}.jpg", f"{i}_m.png", LABELS[i]), id="mask"
        ),
        pytest.param(
            "image_id,mask_path,label", lambda i: (i, f"{i}_m.png", LABELS[i]), id="mask, no suffix"
        ),
        pytest.param(
            "image,caption,breed", lambda i: (f"{i}.jpg", f"no {i}", LABELS[i]), id="text"
        ),
        pytest.param("Image Index,Finding Labels", lambda i: (f"{i}.jpg", LABELS[i]), id="NIH"),
        pytest.param("#image,label", lambda i: (f"{i}.jpg", LABELS[i]), id="commented header"),
        pytest.param(
            "image,cat,dog", lambda i: (f"{i}.jpg", (i + 1) % 2, i % 2), id="one-hot, integers"
        ),
        pytest.param(
            "image,cat,dog", lambda i: (i, float((i + 1) % 2), float(i % 2)), id="one-hot, floats"
        ),
    ],
)  # fmt: skip
def test_columns_are_found_by_their_names_and_cells(tmp_path, header, row):
    assert pairs(table(tmp_path, header, row)) == RIGHT


def test_the_columns_that_were_read_are_said_in_one_line(tmp_path):
    path = table(
        tmp_path,
        "image_name,sex,target,set",
        lambda i: (f"{i}.jpg", "m", LABELS[i], ("train", "test")[i > 3]),
    )
    assert read_labels(path).reading == (
        "images from column 'image_name', labels from 'target', split from 'set'; not used: 'sex'"
    )


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        pytest.param(
            "image,patient,site,malignant",
            lambda i: (f"{i}.jpg", i // 2, "arm", i % 2),
            "labels could be in 'patient', 'site', 'malignant' .* `label_column=`",
            id="no known label",
        ),
        pytest.param(
            "lesion_id,image_id,dx,dx_type", lambda i: (i // 2, i, LABELS[i], "abc"[i % 3]),
            "labels could be in 'dx', 'dx_type'", id="HAM10000",
        ),
        pytest.param(
            "image,label,category", lambda i: (f"{i}.jpg", LABELS[i], "abc"[i % 3]),
            "labels could be in 'label', 'category'", id="two known labels",
        ),
        pytest.param(
            "left,right,same", lambda i: (f"{i}.jpg", f"{i}.jpg", i % 2),
            "images could be in 'left', 'right' .* `image_column=`", id="two images",
        ),
        pytest.param("x,cat", lambda i: (f"{i}.jpg", LABELS[i]), "has no header", id="label first"),
        pytest.param("7,bird", lambda i: (i, LABELS[i]), "has no header", id="number first"),
        pytest.param(
            "image,label", lambda i: ("image", "label") if i == 3 else (f"{i}.jpg", LABELS[i]),
            "repeats its header in line 5", id="header twice",
        ),
    ],
)  # fmt: skip
def test_a_table_that_can_be_read_in_two_ways_is_refused(tmp_path, header, row, message):
    with pytest.raises(DataError, match=message):
        read_labels(table(tmp_path, header, row))


def test_a_named_column_decides(tmp_path):
    path = table(tmp_path, "image,site,kind", lambda i: (f"{i}.jpg", "ab"[i % 2], LABELS[i]))
    with pytest.raises(DataError, match=UNCLEAR):
        read_labels(path)
    assert pairs(path, label_column="kind") == RIGHT


# --- Several labels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "row"),
    [
        pytest.param(
            "filename,cat,dog,bird", lambda i: (f"{i}.jpg", 1, i % 2, 0), id="Roboflow's multiclass"
        ),
        pytest.param(
            "image_id,Smiling,Young", lambda i: (f"{i}.jpg", i % 2 * 2 - 1, 1), id="CelebA"
        ),
        pytest.param(
            "image,label1,label2", lambda i: (f"{i}.jpg", LABELS[i], i % 3), id="numbered"
        ),
        pytest.param(
            "image,label", lambda i: (f"{i}.jpg", ("cat|dog", "cat", "dog")[i % 3]), id="pipe"
        ),
        pytest.param(
            "image,label", lambda i: (f"{i}.jpg", ("a|b", "b|c", "a|c")[i % 3]), id="never alone"
        ),
        pytest.param(
            "image,label", lambda i: (f"{i}.jpg", ('"cat,dog"', "cat", "dog")[i % 3]), id="comma"
        ),
        pytest.param(
            "image,label", lambda i: (f"{i}.jpg", ("scab rust", "scab", "rust")[i % 3]), id="blank"
        ),
        pytest.param("Id,Target", lambda i: (i, ("16 0", "0 7", "16 7")[i % 3]), id="HPA"),
        pytest.param("image,label", lambda i: (f"{i}.jpg", f"['{LABELS[i]}']"), id="Python list"),
        pytest.param("image,label", lambda i: (f"{i // 2}.jpg", LABELS[i]), id="row per label"),
    ],
)
def test_several_labels_for_an_image_are_refused(tmp_path, header, row):
    path = table(tmp_path, header, row)
    with pytest.raises(DataError, match="one label per image, and does not support several"):
        read_labels(path)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(
            ["red apple", "green apple", "red pear", "panda", "red panda", "x"], id="words"
        ),
        pytest.param(["tomato/ok", "tomato/ill", "potato/ok", "potato/ill", "a", "b"], id="levels"),
        pytest.param(["tench; Tinca tinca", "crane", "crane; bird", "a", "b", "c"], id="synonyms"),
    ],
)
def test_names_of_several_words_are_single_labels(tmp_path, labels):
    path = table(tmp_path, "image,label", lambda i: (f"{i}.jpg", labels[i]))
    assert [label for _, label in pairs(path)] == labels


# --- Splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train", "held_out", "split"),
    [
        ("set", "train", "test", "test"),
        ("subset", "Training", "Testing", "test"),
        ("data set", "train", "valid", "val"),
        ("partition", "TRAIN", "dev", "val"),
        ("type", "train", "test", "test"),
        ("set", "training set", "test set", "test"),
        ("is_valid", "False", "True", "val"),
        ("is_val", "0", "1", "val"),
        ("is_test", "no", "yes", "test"),
        ("is_train", "1", "0", "test"),
        ("is_training_image", "1.0", "0.0", "test"),
        ("train", "TRUE", "FALSE", "test"),
    ],
)
def test_a_split_is_read_from_a_column_of_any_usual_name(tmp_path, name, train, held_out, split):
    path = table(
        tmp_path, f"image,label,{name}", lambda i: (f"{i}.jpg", LABELS[i], (train, held_out)[i > 3])
    )
    assert pairs(path) == RIGHT
    assert splits(path) == ["train"] * 4 + [split] * 2
    (finding,) = read_labels(path).findings
    assert finding.kind == "split-column"
    assert repr(name) in finding.message


def test_columns_that_mark_val_and_test_go_together(tmp_path):
    path = table(
        tmp_path,
        "image,label,is_valid,is_test",
        lambda i: (f"{i}.jpg", LABELS[i], int(i == 4), int(i == 5)),
    )
    assert splits(path) == ["train"] * 4 + ["val", "test"]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        pytest.param(
            "image,label,usage",
            lambda i: (f"{i}.jpg", LABELS[i], ("Training", "PublicTest")[i > 3]),
            "'usage' that is not one of .* in lines 6, 7", id="unknown word",
        ),
        pytest.param(
            "image,label,split,set",
            lambda i: (f"{i}.jpg", LABELS[i], ("train", "test")[i > 3], ("train", "test")[i > 2]),
            r"divide the images differently \('split', 'set'\)", id="two splits",
        ),
        pytest.param(
            "image,label,is_val,is_test", lambda i: (f"{i}.jpg", LABELS[i], int(i > 4), int(i > 3)),
            "marks several splits .* in line 7", id="two marks",
        ),
        pytest.param(
            "image,label,valid", lambda i: (f"{i}.jpg", LABELS[i], i % 2),
            "may mark the validation set or the usable rows", id="valid",
        ),
    ],
)  # fmt: skip
def test_a_split_that_is_unclear_is_refused(tmp_path, header, row, message):
    with pytest.raises(DataError, match=message):
        read_labels(table(tmp_path, header, row))


@pytest.mark.parametrize(("name", "values"), [("fold", "01"), ("partition", "AB")])
def test_a_column_that_looks_like_a_split_and_is_none_is_reported(tmp_path, name, values):
    path = table(tmp_path, f"image,label,{name}", lambda i: (f"{i}.jpg", LABELS[i], values[i > 3]))
    (finding,) = read_labels(path).findings
    assert (finding.severity, finding.kind) == ("warning", "no-split-column")
    assert repr(name) in finding.message
