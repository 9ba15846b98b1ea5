import hashlib
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tltools.data.dataset import Dataset, load_dataset
from tltools.errors import ConfigError, DataError


@pytest.fixture
def emergency(shared) -> Path:
    return shared / "data" / "emergency"


def image(path: Path, number: int) -> Path:
    """Write an image whose bytes depend on the number alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def class_folders(root: Path, *, first: int = 0, **counts: int) -> Path:
    number = first
    for name, count in counts.items():
        for index in range(count):
            image(root / name / f"{index}.png", number)
            number += 1
    return root


def csv_of(root: Path, *lines: str) -> Path:
    path = root / "labels.csv"
    path.write_text("\n".join(["image,label", *lines]) + "\n")
    return path


def kinds(dataset: Dataset) -> list[tuple[str, str]]:
    return [(finding.severity, finding.kind) for finding in dataset.findings]


def finding(dataset: Dataset, kind: str):
    (found,) = [finding for finding in dataset.findings if finding.kind == kind]
    return found


def names(paths) -> list[str]:
    return [Path(path).name for path in paths]


class Watcher:
    """Progress that counts."""

    def __init__(self) -> None:
        self.total, self.done, self.description = 0, 0, ""

    def bar(self, description, total, unit="images"):
        self.description, self.total = f"{description} ({unit})", total
        return self

    def __enter__(self):
        return self

    def __exit__(self, *details):
        return None

    def advance(self, amount=1, note=""):
        self.done += amount


# --- A clean set ----------------------------------------------------------------------------------


def test_clean_class_folders_are_split_without_a_finding(tmp_path):
    data = class_folders(tmp_path / "insects", bee=20, ant=30)
    dataset = load_dataset(data)
    assert dataset.name == "insects"
    assert dataset.classes == ("ant", "bee")
    assert dataset.split_rule == "default"
    assert dataset.findings == ()
    assert list(dataset.frame.columns) == ["path", "class", "split", "sha256", "group"]
    assert list(dataset.frame["group"]) == list(dataset.frame["sha256"])
    counts = Counter(zip(dataset.frame["class"], dataset.frame["split"], strict=True))
    assert counts == {
        ("ant", "train"): 27,
        ("ant", "val"): 3,
        ("bee", "train"): 18,
        ("bee", "val"): 2,
    }
    for path, digest in zip(dataset.frame["path"], dataset.frame["sha256"], strict=True):
        assert digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_splits_and_targets_match(tmp_path):
    dataset = load_dataset(class_folders(tmp_path, b=10, a=10, c=10), val_fraction=0.3)
    for split, total in (("train", 21), ("val", 9), ("test", 0)):
        part, targets = dataset.part(split), dataset.targets(split)
        assert len(part) == len(targets) == total
        assert targets.dtype == np.int64
        assert [dataset.classes[target] for target in targets] == list(part["class"])
        assert list(part.index) == list(range(total))


def test_every_check_is_reported_to_progress(tmp_path):
    watcher = Watcher()
    load_dataset(class_folders(tmp_path, a=3, b=4), progress=watcher)
    assert (watcher.description, watcher.total, watcher.done) == (
        "Checking images (images)",
        7,
        7,
    )


def test_rows_stay_in_the_order_of_the_csv(tmp_path):
    for index in range(10):
        image(tmp_path / f"{index}.png", index)
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    csv = csv_of(tmp_path, *(f"{index}.png,{index % 2}" for index in order))
    dataset = load_dataset(csv)
    assert names(dataset.frame["path"]) == [f"{index}.png" for index in order]


# --- Fingerprint ----------------------------------------------------------------------------------


def test_the_fingerprint_depends_only_on_images_classes_and_split(tmp_path):
    data = class_folders(tmp_path / "here", a=6, b=6)
    first = load_dataset(data)
    moved = tmp_path / "there" / "too"
    moved.mkdir(parents=True)
    lines = []
    for index, (path, label) in enumerate(zip(first.frame["path"], first.frame["class"])):  # noqa: B905
        shutil.copy(path, moved / f"{99 - index}.png")
        lines.append(f"{99 - index}.png,{label}")
    csv = csv_of(moved, *reversed(lines))
    assert load_dataset(csv).fingerprint == first.fingerprint
    assert load_dataset(csv, seed=5).fingerprint != first.fingerprint
    assert load_dataset(csv, class_names=["x", "y"]).fingerprint != first.fingerprint
    image(data / "a" / "0.png", 1000)
    assert load_dataset(data).fingerprint != first.fingerprint


def test_the_fingerprint_follows_its_definition(tmp_path):
    dataset = load_dataset(class_folders(tmp_path, a=4, b=4))
    lines = sorted(
        "\0".join(row)
        for row in dataset.frame[["sha256", "class", "split"]].itertuples(index=False, name=None)
    )
    text = "".join(f"{line}\n" for line in lines)
    assert dataset.fingerprint == hashlib.sha256(text.encode()).hexdigest()


# --- Class names ----------------------------------------------------------------------------------


def test_numbers_are_ordered_by_value_and_other_labels_as_text(tmp_path):
    labels = ["10", "9", "1.0", "-2"]
    for index in range(8):
        image(tmp_path / f"{index}.png", index)
    csv = csv_of(tmp_path, *(f"{i}.png,{labels[i % 4]}" for i in range(8)))
    assert load_dataset(csv).classes == ("-2", "1", "9", "10")
    assert load_dataset(csv, class_names=["a", "b", "c", "d"]).classes == ("a", "b", "c", "d")
    csv = csv_of(tmp_path, *(f"{i}.png,{('10', '9', 'x', 'x')[i % 4]}" for i in range(8)))
    assert load_dataset(csv).classes == ("10", "9", "x")


def test_class_names_rename_in_the_order_of_the_labels(tmp_path):
    for index in range(4):
        image(tmp_path / f"{index}.png", index)
    csv = csv_of(tmp_path, "0.png,1", "1.png,0", "2.png,0", "3.png,1")
    dataset = load_dataset(csv, class_names=["normal", "emergency"])
    assert dataset.classes == ("normal", "emergency")
    assert list(dataset.frame["class"]) == ["emergency", "normal", "normal", "emergency"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param(["a"], r"has 1 name for 2 classes \(0, 1\)", id="too few"),
        pytest.param(["a", "b", "c"], "has 3 names for 2 classes", id="too many"),
        pytest.param(["a", " a"], "must be unique", id="equal"),
        pytest.param(["a", " "], "not empty", id="empty"),
    ],
)
def test_class_names_that_do_not_match_the_labels_are_refused(tmp_path, given, message):
    for index in range(4):
        image(tmp_path / f"{index}.png", index)
    csv = csv_of(tmp_path, "0.png,1", "1.png,0", "2.png,0", "3.png,1")
    with pytest.raises(ConfigError, match=message):
        load_dataset(csv, class_names=given)


# --- Bad images ---------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path) -> Path:
    """20 good images, two missing and three unreadable ones."""
    for index in range(20):
        image(tmp_path / f"{index}.png", index)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    whole = image(tmp_path / "whole.png", 99).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    bad = ["gone.png", "empty.png", "away.png", "text.jpg", "cut.png"]
    return csv_of(tmp_path, *(f"{i}.png,{i % 2}" for i in range(20)), *(f"{b},1" for b in bad))


def test_missing_and_unreadable_images_stop_training(damaged):
    with pytest.raises(DataError, match=r"2 images are missing .*3 images are unrea") as caught:
        load_dataset(damaged)
    message = str(caught.value)
    for name in ("gone.png", "away.png", "empty.png", "text.jpg", "cut.png", "`skip_bad=True`"):
        assert name in message
    assert "\n" not in message


def test_missing_and_unreadable_images_stop_an_evaluation_too(damaged):
    with pytest.raises(DataError, match="`skip_bad=True`"):
        load_dataset(damaged, purpose="evaluate")


def test_skip_bad_leaves_bad_images_out_with_a_note(damaged):
    dataset = load_dataset(damaged, skip_bad=True)
    assert len(dataset.frame) == 20
    assert kinds(dataset) == [("warning", "missing"), ("warning", "unreadable")]
    assert names(finding(dataset, "missing").paths) == ["gone.png", "away.png"]
    assert names(finding(dataset, "unreadable").paths) == ["empty.png", "text.jpg", "cut.png"]
    assert all(found.message.endswith("skipped") for found in dataset.findings)


def test_an_inspection_lists_bad_images_as_errors(damaged):
    dataset = load_dataset(damaged, purpose="inspect")
    assert kinds(dataset) == [("error", "missing"), ("error", "unreadable")]
    assert len(dataset.frame) == 20


def test_a_long_list_is_shortened_only_in_the_message(tmp_path):
    class_folders(tmp_path, a=2, b=2)
    lines = [f"gone{index}.png,b" for index in range(25)]
    csv = csv_of(tmp_path, "a/0.png,a", "a/1.png,a", "b/0.png,b", *lines)
    with pytest.raises(DataError, match=r"25 images are missing .*gone9\.png and 15 more"):
        load_dataset(csv)
    assert len(finding(load_dataset(csv, skip_bad=True), "missing").paths) == 25


@pytest.mark.parametrize("skip_bad", [False, True])
def test_if_all_images_are_missing_the_message_suggests_the_images_option(tmp_path, skip_bad):
    csv = csv_of(tmp_path, "a.png,0", "b.png,1")
    with pytest.raises(DataError, match=r"2 images are missing .*/a.png.* check `images=`"):
        load_dataset(csv, skip_bad=skip_bad)
    dataset = load_dataset(csv, skip_bad=skip_bad, purpose="inspect")
    assert finding(dataset, "missing").severity == "error"
    assert len(dataset.frame) == 0


def test_an_image_whose_name_is_not_unicode_is_like_any_other(tmp_path):
    class_folders(tmp_path, a=4, b=4)
    odd = os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png")
    (tmp_path / "a" / "0.png").rename(odd)
    dataset = load_dataset(tmp_path)
    assert odd in set(dataset.frame["path"])
    Path(odd).write_text("no image")
    with pytest.raises(DataError, match="1 image is unreadable") as caught:
        load_dataset(tmp_path)
    str(caught.value).encode()


# --- Duplicates and copies ------------------------------------------------------------------------


def test_a_repeated_row_is_counted_once(tmp_path):
    class_folders(tmp_path, a=5, b=5)
    lines = [f"{label}/{index}.png,{label}" for label in "ab" for index in range(5)]
    csv = csv_of(tmp_path, *lines, "a/0.png,a", "a/../a/0.png,a")
    dataset = load_dataset(csv)
    assert len(dataset.frame) == 10
    assert kinds(dataset) == [("warning", "duplicate-row")]
    assert names(finding(dataset, "duplicate-row").paths) == ["0.png"]


@pytest.fixture
def copied(tmp_path) -> Path:
    """60 images, ten groups of duplicates, and two contradictions: duplicate files and rows."""
    lines = []
    for index in range(60):
        label = "ab"[index % 2]
        image(tmp_path / f"{index}.png", index)
        lines.append(f"{index}.png,{label}")
        if index < 10:
            shutil.copy(tmp_path / f"{index}.png", tmp_path / f"copy{index}.png")
            lines.append(f"copy{index}.png,{label}")
    shutil.copy(tmp_path / "50.png", tmp_path / "other.png")
    return csv_of(tmp_path, *lines, "other.png,b", "51.png,a")


@pytest.mark.parametrize("seed", range(8))
def test_duplicates_stay_in_one_split_and_contradictions_are_left_out(copied, seed):
    dataset = load_dataset(copied, val_fraction=0.4, seed=seed)
    sides = dataset.frame.groupby("sha256")["split"].nunique()
    assert set(sides) == {1}
    assert kinds(dataset) == [("warning", "contradiction"), ("note", "copies")]
    found = finding(dataset, "contradiction")
    assert sorted(names(found.paths)) == ["50.png", "51.png", "51.png", "other.png"]
    assert "50.png (a) against other.png (b); 51.png (a) against 51.png (b)" in found.message
    assert "skipped" in found.message
    assert not set(found.paths) & set(dataset.frame["path"])
    assert (
        "11 images occur more than once (11 surplus copies)" in finding(dataset, "copies").message
    )


def test_an_evaluation_keeps_contradictions_and_makes_no_split(copied):
    dataset = load_dataset(copied, purpose="evaluate")
    assert set(dataset.frame["split"]) == {"test"}
    assert len(dataset.frame) == 72
    assert "are kept" in finding(dataset, "contradiction").message


def test_duplicates_across_a_given_split_are_reported_and_kept(tmp_path):
    class_folders(tmp_path / "train", a=10, b=10)
    class_folders(tmp_path / "val", first=100, a=5, b=5)
    class_folders(tmp_path / "test", first=200, a=5, b=5)
    shutil.copy(tmp_path / "train/a/0.png", tmp_path / "val/a/leak.png")
    shutil.copy(tmp_path / "val/b/1.png", tmp_path / "test/b/leak.png")
    dataset = load_dataset(tmp_path)
    assert dataset.split_rule == "given"
    assert Counter(dataset.frame["split"]) == {"train": 20, "val": 11, "test": 11}
    leaks = [found for found in dataset.findings if found.kind == "copies-across-splits"]
    assert [found.message.split(",")[0] for found in leaks] == [
        "1 of the 11 val images has a byte-identical duplicate in train",
        "1 of the 11 test images has a byte-identical duplicate in val",
    ]
    assert [found.paths for found in leaks] == [
        (str(tmp_path / "val/a/leak.png"),),
        (str(tmp_path / "test/b/leak.png"),),
    ]


def test_an_image_in_train_and_val_is_a_leak_and_not_a_repeated_row(tmp_path):
    class_folders(tmp_path, a=4, b=4)
    lines = [f"{label}/{i}.png,{label},{'val' if i else 'train'}" for label in "ab" for i in (0, 1)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["image,label,split", *lines, "a/0.png,a,val"]))
    dataset = load_dataset(path)
    assert kinds(dataset) == [("warning", "copies-across-splits")]
    assert names(dataset.part("val")["path"]) == ["1.png", "1.png", "0.png"]


# --- Splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["default", "article"])
def test_data_with_its_own_split_cannot_be_split_again(tmp_path, split):
    class_folders(tmp_path / "train", a=10, b=10)
    class_folders(tmp_path / "val", first=100, a=5, b=5)
    with pytest.raises(ConfigError, match=f"has its own split: leave out `split={split}`"):
        load_dataset(tmp_path, split=split)


def test_a_given_train_split_without_val_gets_one(tmp_path):
    class_folders(tmp_path / "train", a=20, b=10)
    class_folders(tmp_path / "test", first=100, a=5, b=5)
    dataset = load_dataset(tmp_path)
    assert dataset.split_rule == "given"
    assert Counter(dataset.frame["split"]) == {"train": 27, "val": 3, "test": 10}
    assert "3 of its 30 train images became val" in finding(dataset, "val-from-train").message
    in_test = [Path(path).parts[-3] == "test" for path in dataset.frame["path"]]
    assert list(dataset.frame["split"] == "test") == in_test


def test_classes_are_matched_by_name_across_the_split(tmp_path):
    class_folders(tmp_path / "train", ant=4, bee=4, cat=4)
    class_folders(tmp_path / "val", first=100, bee=4, cat=4)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("ant", "bee", "cat")
    assert set(dataset.targets("val")) == {1, 2}
    assert "class ant has no image in val" in finding(dataset, "class-not-in-val").message


def test_a_class_missing_from_train_is_an_error(tmp_path):
    class_folders(tmp_path / "train", ant=4, bee=4)
    class_folders(tmp_path / "val", first=100, bee=4, wasp=4)
    with pytest.raises(DataError, match="class wasp has no image in train"):
        load_dataset(tmp_path)
    inspected = load_dataset(tmp_path, purpose="inspect")
    assert ("error", "class-not-in-train") in kinds(inspected)


def test_a_split_without_train_is_an_error(tmp_path):
    class_folders(tmp_path / "val", a=4, b=4)
    with pytest.raises(DataError, match="no images are left for train: add"):
        load_dataset(tmp_path)
    assert Counter(load_dataset(tmp_path, purpose="evaluate").frame["split"]) == {"val": 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"val_fraction": 1.5}, "`val_fraction=` must be", id="fraction"),
        pytest.param(
            {"val_fraction": 0.2, "split": "article"}, "10% of the data, not 20%", id="article"
        ),
        pytest.param({"purpose": "evaluate", "split": "default"}, "makes no split", id="evaluate"),
    ],
)
def test_contradictory_settings_are_refused(tmp_path, settings, message):
    class_folders(tmp_path, a=4, b=4)
    with pytest.raises(ConfigError, match=message):
        load_dataset(tmp_path, **settings)


# --- Classes --------------------------------------------------------------------------------------


def test_one_class_is_an_error_except_in_an_evaluation(tmp_path):
    class_folders(tmp_path, bee=5)
    with pytest.raises(DataError, match=r"only one class \(bee\)"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, purpose="evaluate").classes == ("bee",)
    assert ("error", "single-class") in kinds(load_dataset(tmp_path, purpose="inspect"))


def test_a_class_with_one_image_stays_in_train(tmp_path):
    class_folders(tmp_path, ant=10, bee=10, wasp=1)
    shutil.copy(tmp_path / "wasp/0.png", tmp_path / "wasp/again.png")
    dataset = load_dataset(tmp_path)
    assert kinds(dataset) == [("warning", "tiny-class"), ("note", "copies")]
    assert set(dataset.frame.loc[dataset.frame["class"] == "wasp", "split"]) == {"train"}


def test_a_class_that_loses_all_its_images_is_an_error(tmp_path):
    class_folders(tmp_path, ant=3, bee=3)
    lines = [f"{label}/{index}.png,{label}" for label in ("ant", "bee") for index in range(3)]
    csv = csv_of(tmp_path, *lines, "gone.png,wasp")
    with pytest.raises(DataError, match="no images are left of class wasp"):
        load_dataset(csv, skip_bad=True)


def test_classes_that_contradict_each_other_have_their_true_reason_first(tmp_path):
    class_folders(tmp_path, a=3, c=3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    reason = "all 3 images of a are also in b: keep each in one class"
    with pytest.raises(DataError, match=f"^{reason}$"):
        load_dataset(tmp_path)
    shutil.rmtree(tmp_path / "c")
    first, *others = load_dataset(tmp_path, purpose="inspect").findings
    assert (first.severity, first.message) == ("error", reason)
    assert {one.kind for one in others} == {"contradiction", "copies"}


def test_long_lists_of_contradictions_are_cut(tmp_path):
    class_folders(tmp_path, a=8, c=3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (found,) = (
        one
        for one in load_dataset(tmp_path, purpose="evaluate").findings
        if one.kind == "contradiction"
    )
    assert found.message.count("against") == 3
    assert found.message.endswith(" and 5 more")


def test_several_classes_are_named_in_the_plural(tmp_path):
    class_folders(tmp_path, ant=4, bee=4)
    lines = [f"{label}/{index}.png,{label}" for label in ("ant", "bee") for index in range(4)]
    csv = csv_of(tmp_path, *lines, "gone.png,wasp", "lost.png,fly")
    with pytest.raises(DataError, match="no images are left of classes fly and wasp"):
        load_dataset(csv, skip_bad=True)


def test_data_with_only_tiny_classes_has_nothing_to_validate(tmp_path):
    with pytest.raises(
        DataError, match="no images are left for val, since each class has only one"
    ):
        load_dataset(class_folders(tmp_path, a=1, b=1))


def test_images_beside_their_csv_are_proposed(images, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(images, place / "my photos")
    (place / "other").mkdir()
    names = [path.relative_to(images).as_posix() for path in sorted(images.rglob("*.png"))]
    table = place / "labels.csv"
    table.write_text("\n".join(["image,label", *(f"{one},{one[0]}" for one in names)]) + "\n")
    (finding,) = load_dataset(table, purpose="inspect").findings
    assert (finding.severity, finding.kind) == ("error", "missing")
    told = f"all of them are in {place}/my photos; add `images=` '{place}/my photos'"
    assert finding.message.endswith(told)
    with pytest.raises(DataError, match=re.escape(told)):
        load_dataset(table)
    assert len(load_dataset(table, images=place / "my photos").frame) == len(names)
    shutil.copytree(images, place / "copy")  # now two folders have them
    (finding,) = load_dataset(table, purpose="inspect").findings
    assert finding.message.endswith("no image is left; check `images=` (their folder) and "
                                    "`image_column=`")  # fmt: skip


@pytest.mark.parametrize("purpose", ["train", "evaluate"])
def test_class_folders_of_unreadable_images_are_told_as_such(purpose, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path, skip_bad=True, purpose=purpose)
    message = str(caught.value)
    assert message.startswith(f"all 2 images are unreadable ({tmp_path}/a/1.png: not an image")
    assert message.endswith(": no image is left; replace them, or name other data")


@pytest.mark.parametrize(("large", "noted"), [(20, False), (21, True)])
def test_imbalance_is_noted_beyond_ten_to_one(tmp_path, large, noted):
    dataset = load_dataset(class_folders(tmp_path, a=2, b=large))
    assert (("note", "imbalance") in kinds(dataset)) is noted


def test_images_outside_class_folders_are_named(tmp_path):
    class_folders(tmp_path, a=3, b=3)
    image(tmp_path / "loose.png", 50)
    dataset = load_dataset(tmp_path)
    assert kinds(dataset) == [("warning", "loose")]
    assert "1 image is not in a class folder and skipped: loose.png" in dataset.findings[0].message


# --- The article's data ---------------------------------------------------------------------------


@pytest.fixture
def same_bytes(emergency) -> list[list[str]]:
    """Groups of byte-identical files, compared by bytes rather than by hash."""
    groups: dict[bytes, list[str]] = {}
    for path in sorted((emergency / "images").iterdir()):
        groups.setdefault(path.read_bytes(), []).append(path.name)
    return [group for group in groups.values() if len(group) > 1]


def test_the_articles_split_has_its_size_and_its_leaks(emergency, same_bytes):
    dataset = load_dataset(emergency, split="article")
    assert Counter(dataset.frame["split"]) == {"train": 1481, "val": 165}
    train = set(names(dataset.part("train")["path"]))
    expected = {
        name
        for name in names(dataset.part("val")["path"])
        if any(name in group and train & set(group) for group in same_bytes)
    }
    leak = finding(dataset, "copies-across-splits")
    assert set(names(leak.paths)) == expected
    assert len(leak.paths) == 16
    assert leak.severity == "warning"
    renamed = load_dataset(emergency, split="article", class_names=["normal", "emergency"])
    assert list(renamed.frame["split"]) == list(dataset.frame["split"])


def test_the_default_split_of_the_articles_data_has_no_leak(emergency, same_bytes):
    dataset = load_dataset(emergency)
    assert dataset.classes == ("0", "1")
    found = finding(dataset, "contradiction")
    assert "1302.jpg, 1356.jpg, 1906.jpg (0) against 523.jpg, 709.jpg, 872.jpg (1)" in found.message
    assert "2029.jpg (0) against 54.jpg (1)" in found.message
    assert len(found.paths) == 1646 - len(dataset.frame) == 8
    copies = finding(dataset, "copies")
    assert set(names(copies.paths)) == {name for group in same_bytes for name in group}
    assert f"{len(same_bytes)} images occur more than once" in copies.message
    surplus = sum(map(len, same_bytes)) - len(same_bytes)
    assert f"({surplus} surplus copies)" in copies.message
    assert "copies-across-splits" not in [kind for _, kind in kinds(dataset)]
    different = dataset.frame.drop_duplicates("sha256")
    part = different[different["split"] == "val"]
    for label, count in Counter(different["class"]).items():
        assert abs((part["class"] == label).sum() - 0.1 * count) <= 2
