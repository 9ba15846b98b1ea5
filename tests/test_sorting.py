"""Images are sorted by label without losing or overwriting one, whatever happens, and back."""

import csv
import json
import os
import shutil
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import CLASSES, run_tltools
from test_resume import small_disk  # noqa: F401 - a fixture

from tltools.classify import Job, run_job
from tltools.classify.inputs import list_images
from tltools.classify.sorting import (
    AT_ONCE,
    SORT_MANIFEST,
    SortSettings,
    describe_undone,
    label_folders,
    read_manifest,
    safe_name,
    sort_images,
    sorted_places,
    undo_sort,
)
from tltools.data.labels import read_labels
from tltools.errors import ConfigError, DataError, TltoolsError
from tltools.report.jobs import locate_in


def tree(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def predictions(onnx_path, images, tmp_path) -> Path:
    """The predictions of a job on 30 images, each labeled like its folder, and one unreadable."""
    (images / "blue" / "bad.png").write_bytes(b"no image")
    run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"))
    return tmp_path / "out.csv"


def sort(images, predictions, action="copy", **options):
    settings = SortSettings(folder=predictions.parent / "sorted", action=action)
    return sort_images(settings, [images], predictions, **options)


EXPECTED = {
    **{
        f"{label}/{number}.png": f"{label}/{number}.png"
        for label in CLASSES
        for number in range(10)
    },
    "errors/bad.png": "blue/bad.png",
}
"""Where each image is when it is sorted, and where it was."""


def sorted_images(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if "/" in name}


@pytest.mark.parametrize("action", ["copy", "hardlink", "move"])
def test_images_are_sorted_by_label_and_back(action, images, predictions):
    before = tree(images)
    done = sort(images, predictions, action)
    folder = predictions.parent / "sorted"
    assert sorted_images(folder) == {new: before[old] for new, old in EXPECTED.items()}
    assert (done.counts, done.num_errors) == (dict.fromkeys(done.counts, 10), 1)
    assert set(done.counts) == set(CLASSES)
    assert tree(images) == ({} if action == "move" else before)
    if action == "hardlink":
        assert (folder / "red/0.png").samefile(images / "red/0.png")
    undone = undo_sort(folder)
    assert (undone.num_undone, undone.counts, undone.kept) == (31, {action: 31}, ())
    done_to = {
        "copy": "Removed 31 copies",
        "hardlink": "Removed 31 hard links",
        "move": "Moved 31 images back",
    }
    to = f" to {images}" if action == "move" else ""
    assert describe_undone(undone) == f"{done_to[action]} from {folder}{to}"
    assert tree(images) == before
    assert not folder.exists()


def test_the_manifest_names_source_target_label_and_action(images, predictions):
    sort(images, predictions, "move")
    with (predictions.parent / "sorted" / SORT_MANIFEST).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "source": str(images / "blue" / "0.png"), "target": "blue/0.png", "label": "blue",
        "action": "move",
    }  # fmt: skip
    assert len(rows) == 31
    assert rows[10]["label"] == ""


class Stopped(BaseException):
    pass


def end_process() -> None:
    """Release the locks of temporary folders, as the end of a process does."""
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if os.readlink(handle).endswith("/.owner"):  # noqa: PTH115
                os.close(int(handle.name))


def stop_at(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """End the process, as it seems, before the given call that changes a file's name."""
    calls: list[str] = []

    def counted(name, function):
        def call(*args, **options):
            calls.append(name)
            if len(calls) > number:
                raise Stopped
            return function(*args, **options)

        return call

    patch.setattr(os, "link", counted("link", os.link))
    patch.setattr(Path, "unlink", counted("unlink", Path.unlink))
    patch.setattr(Path, "mkdir", counted("mkdir", Path.mkdir))
    patch.setattr(Path, "replace", counted("replace", Path.replace))
    return calls


@pytest.mark.parametrize("action", ["copy", "move"])
def test_a_sort_that_is_stopped_anywhere_is_finished_by_the_same_call(
    action, onnx_path, images, tmp_path, monkeypatch
):
    for path in [*images.glob("*/[1-9].png")]:
        path.unlink()
    (images / "red" / "bad.png").write_bytes(b"no image")
    output = tmp_path / "out.csv"
    run_job(Job(onnx_path, [images], output, device="cpu"))
    before, number, complete = tree(images), 0, False
    while not complete:
        with monkeypatch.context() as patch:
            calls = stop_at(patch, number)
            with suppress(Stopped):
                sort(images, output, action)
                complete = True
        end_process()
        assert set(before.values()) <= {*tree(images).values(), *tree(tmp_path).values()}
        sort(images, output, action)
        found = sorted_images(tmp_path / "sorted")
        assert sorted(found.values()) == sorted(before.values()), number
        assert len(undo_sort(tmp_path / "sorted").kept) == 0
        assert tree(images) == before
        number += 1
    assert number > 15
    assert calls


@pytest.mark.parametrize("action", ["copy", "move"])
def test_an_undo_after_the_project_was_moved_stays_within_it(
    action, images, predictions, tmp_path_factory
):
    """The images went back to the old place, which was made anew."""
    before = tree(images)
    sort(images, predictions, action)
    old, new = predictions.parent, tmp_path_factory.mktemp("elsewhere") / "project"
    inbox = images.relative_to(old)
    old.rename(new)
    undone = undo_sort(new / "sorted")
    assert (undone.num_undone, undone.kept) == (31, ())
    assert tree(new / inbox) == before
    assert not old.exists()
    if action == "move":
        assert describe_undone(undone).endswith(f" to {new / inbox}")


def test_an_undo_goes_back_to_the_old_place_if_only_the_sorted_folder_was_moved(
    images, predictions, tmp_path_factory
):
    before = tree(images)
    sort(images, predictions, "move")
    moved = tmp_path_factory.mktemp("elsewhere") / "sorted"
    (predictions.parent / "sorted").rename(moved)
    undo_sort(moved)
    assert tree(images) == before


def test_an_undo_without_a_place_for_the_images_changes_nothing(
    images, predictions, tmp_path_factory
):
    sort(images, predictions, "move")
    moved = tmp_path_factory.mktemp("elsewhere") / "sorted"
    (predictions.parent / "sorted").rename(moved)
    shutil.rmtree(images)
    before = tree(moved)
    with pytest.raises(DataError, match=r"where images came from, is gone; make that folder"):
        undo_sort(moved)
    assert tree(moved) == before


def test_predictions_are_not_replaced_if_their_images_are_sorted(images, predictions, onnx_path):
    sort(images, predictions)
    before = predictions.read_bytes()
    words = ("classify", images, "--model", onnx_path, "--output", predictions, "--device", "cpu")
    words += ("--sort-into", predictions.parent / "sorted")
    ran = run_tltools(*words, "--overwrite", cwd=predictions.parent)
    assert (ran.code, "holds the images of an earlier" in ran.err) == (2, True)
    assert predictions.read_bytes() == before
    predictions.unlink()
    ran = run_tltools(*words, cwd=predictions.parent)
    assert (ran.code, "holds the images of an earlier" in ran.err) == (2, True)
    assert not predictions.exists()


def test_an_undo_names_files_that_sorting_did_not_put_there(images, predictions):
    sort(images, predictions, "move")
    folder = predictions.parent / "sorted"
    (folder / "red" / "mine.txt").write_text("mine")
    undone = undo_sort(folder)
    assert undone.others == ("red/mine.txt",)
    stays = f"; {folder} stays, since sorting did not put red/mine.txt there"
    assert describe_undone(undone).endswith(stays)


@pytest.mark.parametrize("action", ["copy", "hardlink", "move"])
def test_an_undo_keeps_images_whose_labels_were_corrected(action, images, predictions):
    before = tree(images)
    folder = sort(images, predictions, action).folder
    moved = next((folder / CLASSES[0]).iterdir())
    (folder / "corrected").mkdir()
    new = moved.rename(folder / "corrected" / moved.name)
    undone = undo_sort(folder)
    assert undone.kept == (f"{moved} was moved to {new}; put it back to undo that, too",)
    assert undone.num_undone == 30
    assert new.exists()
    assert (folder / "manifest.csv").exists()
    moved.parent.mkdir()
    new.rename(moved)
    assert undo_sort(folder).kept == ()
    assert tree(images) == before
    assert not (folder / "manifest.csv").exists()


@pytest.mark.parametrize("action", ["copy", "move"])
def test_sorted_images_are_labeled_by_their_folders(action, images, predictions):
    done = sort(images, predictions, action)
    (label, number), *_ = done.counts.items()
    for name in ("uncertain", "errors", "corrected"):
        (done.folder / name).mkdir(exist_ok=True)
    some = sorted((done.folder / label).iterdir())
    for path, name in zip(some, ("uncertain", "errors", "corrected", "corrected"), strict=False):
        path.rename(done.folder / name / path.name)
    found = read_labels(done.folder)
    counts = Counter(found.frame["class"])
    assert counts == {**done.counts, label: number - 4, "corrected": 2}, found.reading
    by_kind = {one.kind: one.message for one in found.findings}
    assert "3 images without a label left out: errors (2), uncertain (1)" in by_kind["unlabeled"]
    assert "predicted labels" in by_kind["predicted-labels"]
    with pytest.raises(DataError, match=f"says where images were sorted to: name {done.folder}"):
        read_labels(done.folder / "manifest.csv")
    for path in (done.folder / "uncertain").iterdir():
        path.unlink()
    assert all(one.severity != "error" for one in read_labels(done.folder).findings)


def test_sorted_images_among_others_are_read_once_their_mark_is_deleted(images, predictions):
    done = sort(images, predictions)
    for name in (*CLASSES, "uncertain"):
        (images / "old" / name).mkdir(parents=True)
        shutil.copy(images / CLASSES[0] / "0.png", images / "old" / name / "x.png")
    new = done.folder.rename(images / "new")
    for name in CLASSES:
        shutil.rmtree(images / name)
    (finding,) = (
        one for one in read_labels(images, class_level=2).findings if one.kind == "left-out-sorted"
    )
    mark = new / ".tltools"
    assert finding.severity == "warning"
    assert "new holds images that tltools sorted by predicted labels, and left out" in (
        finding.message
    )
    assert finding.message.endswith(f"delete {mark}")
    mark.unlink()
    found = read_labels(images, class_level=2)
    counts = Counter(found.frame["class"])
    assert counts == {**{name: done.counts[name] + 1 for name in CLASSES}, "uncertain": 1}
    assert {one.kind for one in found.findings} >= {"predicted-labels", "unlabeled"}


def test_sorted_images_are_found_by_their_earlier_names(images, predictions):
    """A report of the predictions shows them."""
    before = tree(images)
    sort(images, predictions, "move")
    locate = locate_in(predictions.parent / "sorted")
    for name, data in before.items():
        assert locate(name).read_bytes() == data
    assert locate("../red/0.png") is None
    assert locate("red/99.png") is None
    assert sorted_places(images) == {}


def test_an_undo_that_is_stopped_anywhere_can_be_repeated(images, predictions, monkeypatch):
    before, number, complete = tree(images), 0, False
    while not complete:
        sort(images, predictions, "move")
        with monkeypatch.context() as patch:
            stop_at(patch, number)
            with suppress(Stopped):
                undo_sort(predictions.parent / "sorted")
                complete = True
        end_process()
        if not complete:
            assert undo_sort(predictions.parent / "sorted").kept == ()
        assert tree(images) == before
        number += 31
    assert number > 60


# ------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cat", "cat"), ("a/b", "a_b"), ("..", "_"), (".", "_"), ("", "_"), ("CON", "CON_"),
        ("com1.x", "com1.x_"), ("end. .", "end"), (".hidden", "_hidden"), ("a\x1b[0m", "a_[0m"),
        ("a\nb", "a_b"), ("c:\\d", "c__d"), ("  x ", "x"), ("é漢", "é漢"), ("x" * 300, "x" * 200),
    ],
)  # fmt: skip
def test_a_label_becomes_a_name_that_every_system_takes(label, name):
    assert safe_name(label) == name


def test_labels_never_share_a_folder():
    labels = ["errors", "Cat", "cat", "a/b", "a_b", "manifest.csv", "uncertain"]
    labels.append("Unknown")
    folders = label_folders(labels)
    assert folders == {
        "": "errors", "uncertain": "uncertain", "unknown": "unknown", "Unknown": "Unknown-2",
        "errors": "errors-2", "Cat": "Cat",
        "cat": "cat-2", "a/b": "a_b", "a_b": "a_b-2", "manifest.csv": "manifest.csv-2",
    }  # fmt: skip


def test_equal_names_from_different_folders_are_numbered_and_recorded(onnx_path, images, tmp_path):
    (images / "more").mkdir()
    shutil.copy(images / "red" / "1.png", images / "more" / "0.png")
    shutil.copy(images / "red" / "2.png", images / "more" / "0.PNG")
    output = tmp_path / "out.csv"
    run_job(Job(onnx_path, [images], output, device="cpu"))
    done = sort(images, output)
    assert done.num_clashes == 2
    entries = {
        Path(one.source): one.target for one in read_manifest(tmp_path / "sorted" / SORT_MANIFEST)
    }
    assert entries[images / "more" / "0.PNG"] == "red/0.PNG"
    assert entries[images / "more" / "0.png"] == "red/0-2.png"
    assert entries[images / "red" / "0.png"] == "red/0-3.png"


ODD = [b"caf\xe9.png", b"car\rriage.png", b'a,"b".png', b"=1.png", b"line\nbreak.png"]


@pytest.mark.parametrize("spreadsheet", [False, True])
def test_images_with_odd_names_are_sorted_and_come_back(spreadsheet, onnx_path, images, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ODD:
        shutil.copy(images / "red" / "0.png", os.path.join(os.fsencode(folder), name))  # noqa: PTH118
    output = tmp_path / "out.csv"
    run_job(Job(onnx_path, [folder], output, device="cpu", spreadsheet=spreadsheet))
    sort(folder, output, "move", spreadsheet=spreadsheet)
    assert sorted(os.listdir(os.fsencode(tmp_path / "sorted" / "red"))) == sorted(ODD)  # noqa: PTH208
    undo_sort(tmp_path / "sorted")
    assert sorted(os.listdir(os.fsencode(folder))) == sorted(ODD)  # noqa: PTH208


def test_a_link_to_an_image_is_copied_and_stays(onnx_path, images, tmp_path):
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "a.png").symlink_to("../images/red/0.png")
    output = tmp_path / "out.csv"
    run_job(Job(onnx_path, [folder], output, device="cpu"))
    sort(folder, output, "move")
    assert (folder / "a.png").is_symlink()
    target = tmp_path / "sorted" / "red" / "a.png"
    assert not target.is_symlink()
    assert target.read_bytes() == (images / "red" / "0.png").read_bytes()


def test_an_image_that_is_listed_twice_or_missing_is_not_sorted(onnx_path, images, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("images/red/0.png\nimages/red/0.png\nimages/gone.png\n")
    output = tmp_path / "out.csv"
    run_job(Job(onnx_path, [listed], output, device="cpu"))
    done = sort(listed, output, "move")
    assert (done.counts, done.num_skipped) == ({"red": 1}, 2)


@pytest.mark.parametrize("num_others", [0, AT_ONCE])
def test_links_beside_their_images_are_sorted_resumed_and_undone(
    onnx_path, images, tmp_path, num_others
):
    """Also where the link comes first, or in a later batch than the image."""
    source = images / "red" / "0.png"
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a-link.png").symlink_to("b.png")
    for name in ("b.png", *(f"c{number}.png" for number in range(num_others))):
        (folder / name).write_bytes(source.read_bytes())
    (folder / "z-link.png").symlink_to("b.png")
    before = tree(folder)
    output = tmp_path / "out.csv"
    run_job(Job(onnx_path, [folder], output, device="cpu"))
    done = sort(folder, output, "move")
    assert done.counts == {"red": 3 + num_others}
    assert sort(folder, output, "move") == done  # as a job that was killed repeats it
    assert undo_sort(tmp_path / "sorted").kept == ()
    assert tree(folder) == before
    assert (folder / "a-link.png").is_symlink()


@pytest.mark.parametrize("action", ["copy", "hardlink", "move"])
def test_undoing_keeps_images_whose_old_places_are_links_to_them(action, images, predictions):
    before = tree(images)
    sort(images, predictions, action)
    folder = predictions.parent / "sorted"
    for new, old in EXPECTED.items():
        (images / old).unlink(missing_ok=True)
        (images / old).symlink_to(folder / new)
    undone = undo_sort(folder)
    assert tree(images) == before
    if action == "move":
        assert not any(path.is_symlink() for path in images.rglob("*"))
    else:
        assert len(undone.kept) == len(EXPECTED)
        assert all("is the last copy: " in one and "is a link to it" in one for one in undone.kept)


def test_a_link_in_the_place_of_a_sorted_image_does_not_cost_the_image(images, predictions):
    sort(images, predictions, "move")
    target = predictions.parent / "sorted" / "red" / "0.png"
    source = images / "red" / "0.png"
    target.rename(source)
    target.symlink_to(source)
    with pytest.raises(TltoolsError, match="another file has this name"):
        sort(images, predictions, "move")
    assert source.is_file()


def test_a_sort_is_finished_only_as_it_was_begun(images, predictions):
    sort(images, predictions, "move")
    folder = predictions.parent / "sorted"
    (folder / "red" / "0.png").rename(images / "red" / "0.png")
    before = tree(images)
    with pytest.raises(ConfigError, match=r"was begun with `sort_by=move`; use that to finish it"):
        sort(images, predictions, "copy")
    assert tree(images) == before
    sort(images, predictions, "move")
    assert tree(images) == {}


def test_an_image_that_a_linked_folder_lists_again_is_sorted_once(onnx_path, images, tmp_path):
    folder = tmp_path / "twice"
    folder.mkdir()
    (images / "red").rename(folder / "real")
    (folder / "link").symlink_to("real")
    before = tree(folder)
    output = tmp_path / "out.csv"
    run_job(Job(onnx_path, [folder], output, device="cpu"))
    done = sort(folder, output, "move")
    assert (done.counts, done.num_skipped) == ({"red": 10}, 10)
    undo_sort(tmp_path / "sorted")
    assert tree(folder) == before


# ----------------------------------------------------------------------- what can go wrong


def test_a_file_that_is_already_there_is_not_overwritten(images, predictions, monkeypatch):
    folder = predictions.parent / "sorted"
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        with pytest.raises(Stopped):
            sort(images, predictions, "move")
    (folder / "red").mkdir()
    (folder / "red" / "3.png").write_text("precious")
    before = tree(images)
    with pytest.raises(TltoolsError, match=r"cannot move .*red/3\.png: another file has this name"):
        sort(images, predictions, "move")
    assert (folder / "red" / "3.png").read_text() == "precious"
    assert {name for name in before if name.startswith("red")} <= set(tree(images))


def test_images_that_changed_since_are_not_sorted(images, predictions):
    (images / "blue" / "00.png").write_bytes(b"new")
    before = tree(images)
    with pytest.raises(DataError, match=r"the images have changed .*nothing was sorted"):
        sort(images, predictions, "move")
    assert tree(images) == before


def test_a_full_disk_in_the_middle_loses_nothing_and_the_same_call_finishes(
    images,
    predictions,
    small_disk,  # noqa: F811
):
    before = tree(images)
    settings = SortSettings(folder=small_disk / "sorted", action="move")
    message = r"no space left on device; no image is lost; free some disk space"
    with pytest.raises(TltoolsError, match=message):
        sort_images(settings, [images], predictions)
    remaining = tree(images)
    assert remaining
    assert set(before.values()) == {*remaining.values(), *sorted_images(settings.folder).values()}
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)  # noqa: S607
    sort_images(settings, [images], predictions)
    assert tree(images) == {}
    assert sorted(sorted_images(settings.folder).values()) == sorted(before.values())
    undo_sort(settings.folder)
    assert tree(images) == before


def test_hard_links_to_another_disk_are_refused_with_the_remedy(
    images,
    predictions,
    small_disk,  # noqa: F811
):
    settings = SortSettings(folder=small_disk / "sorted", action="hardlink")
    with pytest.raises(TltoolsError, match=r"cannot hard-link .*cross-device.*`sort_by=copy`"):
        sort_images(settings, [images], predictions)


def test_images_that_changed_after_sorting_are_kept_by_undo(images, predictions):
    sort(images, predictions, "copy")
    folder = predictions.parent / "sorted"
    (folder / "red" / "3.png").write_text("edited")
    (images / "red" / "4.png").unlink()
    for _ in range(2):
        undone = undo_sort(folder)
        assert len(undone.kept) == 2
    assert sorted(sorted_images(folder)) == ["red/3.png", "red/4.png"]
    assert (folder / SORT_MANIFEST).exists()


def test_a_manifest_cannot_lead_out_of_its_folder(images, predictions):
    sort(images, predictions, "copy")
    manifest = predictions.parent / "sorted" / SORT_MANIFEST
    manifest.write_text(manifest.read_text().replace("red/3.png", "../out.csv"))
    with pytest.raises(DataError, match=r"manifest\.csv line \d+ is not what tltools wrote"):
        undo_sort(predictions.parent / "sorted")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("images.zip --sort-into new", 2, "images.zip is an archive; extract"),
        ("https://127.0.0.1/a.png --sort-into new", 2, "is on a server; extract or download"),
        ("- --sort-into new", 2, "- is standard input"),
        ("images -o - --sort-into new", 2, "--sort-into needs a predictions file"),
        ("images --sort-into full", 2, "full exists and is not empty; choose another folder"),
        ("images --sort-into images", 2, "images exists and is not empty"),
        ("images --sort-into new -o new/a.csv", 2, "new/a.csv lies in the folder for the sorted"),
        ("images --sort-by move", 2, "--sort-by works only with --sort-into"),
        ("images --sort-into new --shard 1/2", 2, "leave out --shard"),
        ("images --undo-sort", 1, "images holds no sorted images"),
        ("images --undo-sort --overwrite", 2, "leave out --overwrite"),
    ],
)
def test_what_cannot_be_sorted_is_refused_before_any_work(
    words, code, message, images, onnx_path, tmp_path
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    (tmp_path / "images.zip").touch()
    model = () if "--undo-sort" in words else ("--model", onnx_path)
    ran = run_tltools("classify", *words.split(), *model, cwd=tmp_path)
    assert ran.code == code, ran
    assert message in ran.err
    assert not (tmp_path / "predictions.csv").exists()
    assert not (tmp_path / "new").exists()


# -------------------------------------------------------------------------------- the command


def classify(onnx_path, folder, *words):
    model = ("--model", onnx_path, "--device", "cpu")
    return run_tltools("classify", *words, *model, cwd=folder)


def test_a_report_finds_images_that_were_moved_by_a_sort(onnx_path, images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "tltools").mkdir(parents=True)
    moving = ("images", "--sort-into", "sorted", "--sort-by", "move")
    assert classify(onnx_path, tmp_path, *moving).code == 0
    ran = run_tltools("report", "predictions.csv", cwd=tmp_path)
    assert (ran.code, "cannot be found" in ran.err) == (0, False), ran
    assert run_tltools("classify", "sorted", "--undo-sort", cwd=tmp_path).code == 0
    ran = run_tltools("report", "predictions.csv", cwd=tmp_path)
    assert (ran.code, "cannot be found" in ran.err) == (0, False), ran


def test_a_sort_that_is_stopped_names_the_way_on(onnx_path, images, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tltools.classify.sorting._place_all", stop)
        ran = classify(onnx_path, tmp_path, "images", "--sort-into", "sorted")
    assert ran.code == 130, ran
    assert "sorted holds only some of the images; run the same command again to finish" in ran.err
    again = classify(onnx_path, tmp_path, "images", "--sort-into", "sorted")
    assert (again.code, "Copied 30 images" in again.err) == (0, True), again


def test_sorted_images_inside_the_input_are_not_classified_again(onnx_path, images, tmp_path):
    ran = classify(onnx_path, tmp_path, "images", "--sort-into", "images/sorted")
    assert ran.code == 0, ran
    assert "Copied 30 images into images/sorted/: " in ran.err
    assert "To undo: tltools classify images/sorted --undo-sort" in ran.err
    assert len(list(list_images([images]))) == 30
    again = classify(onnx_path, tmp_path, "images", "--overwrite")
    assert "30 rows" in again.err
    assert run_tltools("classify", "images/sorted", "--undo-sort", cwd=tmp_path).code == 0
    assert not (images / "sorted").exists()


def test_uncertain_and_unreadable_images_are_apart(onnx_path, images, tmp_path):
    (images / "bad.png").write_bytes(b"x")
    words = ("images", "--sort-into", "sorted", "--min-confidence", 1, "--json")
    ran = classify(onnx_path, tmp_path, *words)
    assert ran.code == 0
    assert len(list((tmp_path / "sorted" / "uncertain").iterdir())) == 30
    document = json.loads(ran.out)["sorted"]
    assert (document["counts"], document["num_errors"]) == ({"uncertain": 30}, 1)
    assert [path.name for path in (tmp_path / "sorted" / "errors").iterdir()] == ["bad.png"]


def test_a_command_that_fails_while_sorting_is_finished_by_the_same_command(
    onnx_path,
    images,
    small_disk,  # noqa: F811
    tmp_path,
):
    words = ("images", "--sort-into", small_disk / "sorted", "--sort-by", "move")
    ran = classify(onnx_path, tmp_path, *words)
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("error: cannot move ")
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)  # noqa: S607
    again = classify(onnx_path, tmp_path, *words)
    assert again.code == 0, again
    assert "already finished" in again.err
    assert "Moved 30 images" in again.err
    assert tree(images) == {}


def test_a_folder_of_another_job_is_refused(onnx_path, images, tmp_path):
    assert classify(onnx_path, tmp_path, "images", "--sort-into", "sorted").code == 0
    words = ("images", "-o", "other.csv", "--sort-into", "sorted")
    ran = classify(onnx_path, tmp_path, *words)
    assert ran.code == 2
    assert "holds the sorted images of" in ran.err
    predictions = tmp_path / "predictions.csv"
    predictions.write_text("path,label,confidence,prob_a,error\n")
    with pytest.raises(ConfigError, match="holds the images of an earlier"):
        sort_images(SortSettings(folder=tmp_path / "sorted"), [images], predictions)
