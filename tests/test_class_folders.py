import re
from collections import Counter
from pathlib import Path

import pytest

from tltools.data.folders import MARKER
from tltools.data.labels import read_labels
from tltools.errors import ConfigError, DataError

SHARED = ("cat", "dog")


def lay(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def classes(*parents: str, names=SHARED) -> list[str]:
    """One image in each class folder; numbered, because a data set has no empty names."""
    return [f"{parent}{name}/{i}.jpg" for i, parent in enumerate(parents) for name in names]


def counts(root: Path, **options) -> dict[tuple[str, str], int]:
    frame = read_labels(root, **options).frame
    return dict(Counter(zip(frame["split"], frame["class"], strict=True)))


def expected(*splits: str) -> dict[tuple[str, str], int]:
    return {(split, name): 1 for split in splits for name in SHARED}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        pytest.param("training", "testing", id="fastai"),
        pytest.param("Training", "Test", id="fruits-360"),
        pytest.param("TRAIN", "TEST", id="BCCD"),
        pytest.param("seg_train/seg_train", "seg_test/seg_test", id="Intel scenes"),
        pytest.param("train/train", "test/test", id="folder in itself"),
        pytest.param("training_set/training_set", "test_set/test_set", id="cats and dogs"),
        pytest.param("train_images", "test_images", id="what they hold"),
        pytest.param("trainset", "testset", id="one word"),
        pytest.param("TrainSet", "TestSet", id="camel case"),
        pytest.param("pets_train", "pets_test", id="the set's name first"),
        pytest.param("train-224", "test-224", id="size"),
        pytest.param("images/train", "images/test", id="in images"),
        pytest.param("a/b/train", "a/b/test", id="wrapped twice"),
        pytest.param("train/images", "test/images", id="images in each"),
    ],
)
def test_split_folders_are_splits_whatever_they_are_called(tmp_path, train, test):
    lay(tmp_path, *classes(f"{train}/", f"{test}/"))
    assert counts(tmp_path) == expected("train", "test")


@pytest.mark.parametrize(
    "name", ["val", "valid", "validation", "dev", "val2017", "eval", "val_set"]
)
def test_every_usual_name_of_a_validation_set_is_known(tmp_path, name):
    lay(tmp_path, *classes("train/", f"{name}/"))
    assert counts(tmp_path) == expected("train", "val")


def test_splits_within_class_folders_are_splits(tmp_path):
    lay(tmp_path, *(f"{name}/{split}/1.jpg" for name in SHARED for split in ("train", "Test")))
    assert counts(tmp_path) == expected("train", "test")
    assert "split from the folders in them: train, Test" in read_labels(tmp_path).reading


@pytest.mark.parametrize(
    "test",
    [
        pytest.param("test/7.jpg", id="flat"),
        pytest.param("test/test/7.jpg", id="folder in itself"),
        pytest.param("test/images/7.jpg", id="tiny-imagenet"),
        pytest.param("test/all/7.jpg", id="a dummy folder for torchvision"),
        pytest.param("seg_pred/seg_pred/7.jpg", id="to predict"),
        pytest.param("unlabeled/7.jpg", id="unlabeled"),
        pytest.param("asl_test/asl_test/7.jpg", id="with the name of the set"),
    ],
)
def test_images_without_labels_beside_train_are_reported_and_no_class(tmp_path, test):
    train = "asl_train/" if test.startswith("asl") else "train/"
    lay(tmp_path, *classes(train), test)
    assert counts(tmp_path) == expected("train")
    (finding,) = read_labels(tmp_path).findings
    assert (finding.kind, finding.paths) == ("loose", (str(tmp_path / test),))


def test_each_class_folder_may_hold_one_folder_of_images(tmp_path):
    lay(tmp_path, *(f"train/{name}/images/1.jpg" for name in SHARED), "val/images/2.jpg")
    assert counts(tmp_path) == expected("train")


@pytest.mark.parametrize("where", ["data/", "archive/data/", "images/"])
def test_a_folder_that_only_wraps_the_classes_is_no_class(tmp_path, where):
    lay(tmp_path, *classes(where))
    assert counts(tmp_path) == expected("")
    assert read_labels(tmp_path).reading.endswith(str(tmp_path / where))


def test_a_single_class_is_a_class_and_not_a_wrapper(tmp_path):
    lay(tmp_path, "cat/1.jpg")
    assert counts(tmp_path) == {("", "cat"): 1}


def test_a_class_beside_one_without_readable_images_is_no_wrapper(tmp_path):
    lay(tmp_path, "cat/indoor/1.jpg", "cat/outdoor/2.jpg", "dog/1.mp4")
    finding = read_labels(tmp_path).findings[0]
    assert "1 empty class folder (dog)" in finding.message


@pytest.mark.parametrize(
    "groups",
    [
        pytest.param(("color/", "gray/"), id="PlantVillage"),
        pytest.param(("fold1/", "fold2/", "fold3/"), id="folds"),
        pytest.param(("amazon/images/", "dslr/images/"), id="Office-31"),
        pytest.param(("2019/", "2020/"), id="years"),
    ],
)
def test_the_same_folders_in_every_folder_are_refused_until_a_level_is_chosen(tmp_path, groups):
    lay(tmp_path, *classes(*groups))
    with pytest.raises(DataError, match=r"either could be .* `class_level=1` .* `class_level=2`"):
        read_labels(tmp_path)
    upper = {group.partition("/")[0] for group in groups}
    assert {label for _, label in counts(tmp_path, class_level=1)} == upper
    level = groups[0].count("/") + 1
    assert counts(tmp_path, class_level=level) == {("", name): len(groups) for name in SHARED}


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        pytest.param(
            [*classes("photos/"), "inbox/1.jpg"],
            r"class photos has no images, only folders \(cat, dog\): name \S+/photos as the data",
            id="the folder above, with others",
        ),
        pytest.param(
            [*classes("photos/"), "more/cat/9.jpg"],
            r"classes more, photos have no images, only folders \(cat, dog\): `class_level=2`",
            id="two sets",
        ),
        pytest.param(
            ["ants/1.jpg", "cars/2.jpg", "bugs/bees/3.jpg"],
            r"class bugs has no images, only folders \(bees\): move bees up",
            id="one class too deep",
        ),
    ],
)
def test_classes_without_images_of_their_own_are_doubted(tmp_path, paths, told):
    lay(tmp_path, *paths)
    (finding,) = read_labels(tmp_path).findings
    assert finding.severity == "warning"
    assert re.search(told, finding.message)


def test_classes_that_are_all_divided_in_their_own_way_are_not_doubted(tmp_path):
    lay(tmp_path, "cat/tabby/1.jpg", "cat/siamese/2.jpg", "dog/poodle/3.jpg", "dog/pug/4.jpg")
    assert read_labels(tmp_path).findings == ()
    assert read_labels(lay(tmp_path / "x", "cat/images/1.jpg", "dog/images/2.jpg")).findings == ()
    assert read_labels(lay(tmp_path / "y", "cat/cat/1.jpg", "dog/2.jpg")).findings == ()


def test_a_single_class_folder_is_answered_with_the_folder_above(tmp_path):
    lay(tmp_path / "photos", *classes(""))
    with pytest.raises(DataError, match=rf"name {tmp_path}/photos if cat is one of the classes"):
        read_labels(tmp_path / "photos" / "cat")
    with pytest.raises(DataError, match="make one folder per class"):
        read_labels(lay(tmp_path / "x" / "alone", "1.jpg"))


def test_a_level_below_split_folders_keeps_the_split(tmp_path):
    lay(tmp_path, *classes("train/", "test/"))
    assert counts(tmp_path, class_level=2) == expected("train", "test")
    with pytest.raises(ConfigError, match="no images in folders at `class_level=3`"):
        read_labels(tmp_path, class_level=3)
    lay(tmp_path, "site/cat/9.jpg")
    with pytest.raises(DataError, match=r"not splits \(site\)"):
        read_labels(tmp_path, class_level=2)


def test_a_level_is_for_folders_only(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\n1.jpg,cat\n")
    with pytest.raises(ConfigError, match="`class_level=` is for folders"):
        read_labels(tmp_path / "labels.csv", class_level=1)


def test_class_folders_with_different_folders_in_them_are_classes(tmp_path):
    lay(tmp_path, "cat/kitten/1.jpg", "cat/adult/2.jpg", "dog/puppy/3.jpg", "dog/adult/4.jpg")
    assert counts(tmp_path) == {("", "cat"): 2, ("", "dog"): 2}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param(["train/train/1.jpg", "test/test/2.jpg"], "no class folders", id="flat"),
        pytest.param(["dogs_train/1.jpg", "dogs_test/2.jpg"], "no class folders", id="named"),
        pytest.param(["train/1.jpg", "test/2.jpg", "cats/3.jpg"], "like splits", id="and one more"),
        pytest.param(["images/1.jpg", "masks/1.png"], "not classes", id="segmentation"),
        pytest.param(
            ["images/train/1.jpg", "masks/train/1.png", "images/val/2.jpg", "masks/val/2.png"],
            "not classes",
            id="segmentation with splits",
        ),
        pytest.param(["x_part_1/1.jpg", "x_part_2/2.jpg"], "parts of one set", id="HAM10000"),
        pytest.param(classes("train/", "val/", "valid/"), "both mean the val split", id="two val"),
        pytest.param(classes("train/", "train_2/", "test/"), "both mean", id="two train"),
        pytest.param(
            classes("photos/", "test/"),
            r"class folders in test and in photos, .* name \S+/photos as the data, or rename it to",
            id="photos beside test",
        ),
        pytest.param(
            classes("x/train/", "x/test/", "x/x/train/", "x/x/test/"),
            r"not splits \(x\)",
            id="chest_xray, which holds itself",
        ),
        pytest.param(
            ["a/train/good/1.png", "a/test/bad/2.png", "b/train/good/1.png", "b/test/bad/2.png"],
            "not all CLASS/SPLIT or all SPLIT/CLASS: name one",
            id="MVTec AD",
        ),
        pytest.param(
            ["cat/train/1.jpg", "cat/test/2.jpg", "dog/3.jpg"], "not all CLASS/SPLIT", id="only one"
        ),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, files, message):
    lay(tmp_path, *files)
    with pytest.raises(DataError, match=message) as caught:
        read_labels(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "junk",
    [
        "@eaDir/cat0.jpg/SYNOPHOTO_THUMB_M.jpg",
        "cat/@eaDir/1.jpg",
        "#recycle/1.jpg",
        "$RECYCLE.BIN/1.jpg",
        "System Volume Information/1.jpg",
        "lost+found/1.jpg",
        "__MACOSX/cat/1.jpg",
    ],
)
def test_folders_of_systems_are_reported_and_no_classes(tmp_path, junk):
    lay(tmp_path, *classes(""), junk)
    assert counts(tmp_path) == expected("")
    (finding,) = read_labels(tmp_path).findings
    assert (finding.severity, finding.kind) == ("note", "system-folder")


def test_an_empty_folder_of_a_system_is_no_empty_class(tmp_path):
    lay(tmp_path, *classes(""))
    for name in ("lost+found", "System Volume Information"):
        (tmp_path / name).mkdir()
    assert counts(tmp_path) == expected("")


def test_output_of_tltools_is_reported_and_no_class(tmp_path):
    runs = ["runs/cnn/card.json", "runs/cnn/split.csv", "runs/cnn/curves.png"]
    unfinished = ["runs/cnn-2/plan.json", "runs/cnn-2/split.csv"]
    others = [f"explained/{MARKER}", "explained/1.png", "exports/cnn/cnn.fp32.onnx"]
    lay(tmp_path, *classes(""), *runs, *unfinished, *others)
    (tmp_path / "predictions.csv").write_text(
        "path,label,confidence,prob_cat,error\n1.jpg,cat,1,1,\n"
    )
    assert counts(tmp_path) == expected("")
    finding, rest = read_labels(tmp_path).findings
    assert (rest.kind, rest.message) == (
        "left-out-files", "Left out, without an image suffix: 1 .csv, 1 .onnx"
    )  # fmt: skip
    assert finding.kind == "own-output"
    assert finding.message == (
        "4 folders that tltools wrote skipped: explained, runs/cnn, runs/cnn-2, exports/cnn"
    )
    with pytest.raises(DataError, match="holds predictions of tltools, not labels"):
        read_labels(tmp_path / "predictions.csv")
