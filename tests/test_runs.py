"""Runs are listed, compared by their images, and deleted only if tltools made them."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import run_tltools, set_card

from tltools import runs as runs_module
from tltools.artifacts import find_runs, read_artifact
from tltools.data.images import image_sha256
from tltools.metrics import mcnemar
from tltools.run_folder import (
    FoldPredictions,
    RunPredictions,
    is_finished,
    locked,
    read_predictions,
    read_split,
    write_folds,
    write_predictions,
    write_split,
)
from tltools.run_images import find_by_bytes
from tltools.runs import (
    delete_run,
    differing_settings,
    find_run,
    holds_runs,
    list_runs,
    plan_deletion,
    read_and_compare,
    same_images,
    setting_title,
)
from tltools.training.config import TrainConfig
from tltools.training.run import load_card, save_card


def change_card(folder: Path, **changes) -> None:
    save_card(folder, msgspec.structs.replace(load_card(folder), **changes))


def give_predictions(folder: Path, right: dict[str, bool]) -> None:
    """Let a run be right on some of the images that it names, whose true class is `bright`."""
    probs = np.array([[0.9, 0.1] if hit else [0.2, 0.8] for hit in right.values()])
    targets = np.zeros(len(right), dtype=np.int64)
    predictions = RunPredictions(tuple(right), targets, probs)
    write_predictions(folder, ("bright", "dark"), {"val": predictions})


@pytest.fixture
def second(workplace) -> Path:
    """A second run in the workplace, made a year later from data of another name."""
    folder = workplace / "runs" / "cnn-2"
    shutil.copytree(workplace / "runs" / "cnn", folder)
    card = load_card(folder)
    change_card(
        folder,
        run="cnn-2",
        created="2099-01-01T00:00:00+00:00",
        data=msgspec.structs.replace(card.data, name="other"),
        training=card.training | {"lr": 0.5},
    )
    return folder


# ---------------------------------------------------------------------------------- listing


def test_runs_are_listed_with_what_they_are_the_newest_first(workplace, second, monkeypatch):
    monkeypatch.chdir(workplace)
    newest, oldest = list_runs(Path("runs"))
    assert (newest.path, oldest.path) == (Path("runs/cnn-2"), Path("runs/cnn"))
    card = load_card(Path("runs/cnn"))
    assert (oldest.model, oldest.data, oldest.val) == (
        "cnn linear",
        card.data.name,
        card.metrics["val"],
    )
    assert (oldest.state, newest.data) == ("finished", "other")
    files = [one for one in Path("runs/cnn").iterdir() if one.is_file()]
    assert oldest.num_bytes == sum(one.stat().st_size for one in files)


def test_an_export_belongs_to_the_run_as_it_is_now(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    export = Path("exports/cnn/cnn.fp32.onnx")
    (run,) = list_runs(Path("runs"))
    assert export in run.exports
    assert run.older_exports == ()
    assert list_runs(workplace / "runs")[0].exports == run.exports
    set_card(export, msgspec.structs.replace(read_artifact(export).card, created="2020-01-01"))
    (run,) = list_runs(Path("runs"))
    assert export not in run.exports
    assert run.older_exports == (export,)


def test_a_run_whose_folder_was_renamed_has_its_exports(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    Path("runs/cnn").rename("runs/best")
    (run,) = list_runs(Path("runs"))
    assert Path("exports/cnn/cnn.fp32.onnx") in run.exports
    assert run.older_exports == ()


def test_a_run_that_was_not_scored_is_not_listed_as_finished(workplace):
    folder = workplace / "runs" / "cnn"
    change_card(folder, metrics={})
    assert not is_finished(folder)
    (run,) = list_runs(workplace / "runs")
    assert run.state == "interrupted"


def test_files_and_runs_that_vanish_while_runs_are_listed_do_no_harm(
    workplace, second, monkeypatch
):
    temporary = second / ".tltools-abcdefgh.tmp"
    (temporary / "inner").mkdir(parents=True)
    (temporary / "state.pt").touch()
    gone = workplace / "runs" / "gone"
    gone.mkdir()
    shutil.copy(second / "plan.json", gone)
    lstat, scandir, stat = Path.lstat, os.scandir, Path.stat

    def vanish(path: str | os.PathLike[str] | int) -> None:
        """Delete what another process would, just before it is looked at."""
        if not isinstance(path, int) and Path(path) in (
            temporary / "state.pt",
            temporary / "inner",
        ):
            shutil.rmtree(temporary, ignore_errors=True)
            raise FileNotFoundError(2, "No such file or directory", str(path))

    def vanishing_stat(path: Path, **options: bool) -> os.stat_result:
        found = stat(path, **options)
        if path == gone / "plan.json" and not seen:
            seen.append(path)
            shutil.rmtree(gone)
        return found

    seen: list[Path] = []
    monkeypatch.setattr(Path, "lstat", lambda path: (vanish(path), lstat(path))[1])
    monkeypatch.setattr(os, "scandir", lambda path=".": (vanish(path), scandir(path))[1])
    monkeypatch.setattr(Path, "stat", vanishing_stat)
    listed = list_runs(workplace / "runs")
    assert {one.path.name for one in listed} == {"cnn", "cnn-2"}
    assert not temporary.exists()
    assert not gone.exists()
    sizes = {one.path.name: one.num_bytes for one in listed}
    assert sizes["cnn-2"] == sum(one.lstat().st_size for one in second.iterdir())


def test_a_damaged_folder_that_may_be_another_programs_is_not_offered_for_deletion(workplace):
    (workplace / "runs/other").mkdir()
    (workplace / "runs/other/card.json").write_text("{")
    told = run_tltools("runs", cwd=workplace).err
    assert "runs/other/card.json" in told
    assert "delete the folder yourself" in told
    assert "--delete" not in told


def test_runs_that_are_not_finished_or_damaged_are_listed_as_such(workplace):
    for name in ("begun", "damaged", "stopped"):
        shutil.copytree(workplace / "runs" / "cnn", workplace / "runs" / name)
    (workplace / "runs/begun/card.json").unlink()
    (workplace / "runs/damaged/card.json").write_text("{")
    card = load_card(workplace / "runs/stopped")
    training = card.training | {"interrupted": True}
    change_card(workplace / "runs/stopped", run="stopped", training=training)
    found = {one.path.name: one for one in list_runs(workplace / "runs")}
    states = {name: one.state for name, one in found.items()}
    assert states == {
        "cnn": "finished", "begun": "unfinished", "damaged": "damaged", "stopped": "interrupted",
    }  # fmt: skip
    assert (found["begun"].model, found["begun"].data) == ("cnn", card.data.name)
    assert "card.json" in found["damaged"].problem
    told = run_tltools("runs", cwd=workplace).out.splitlines()
    rows = {line.split()[0]: line for line in told if line.strip()}
    assert rows["stopped"].rstrip().endswith(" interrupted")  # and has its accuracy
    assert "%" in rows["stopped"]
    assert rows["begun"].rstrip().endswith(" unfinished")
    assert rows["cnn"].rstrip().endswith(" 2 exports")
    for command in ("inspect", "report"):
        shown = run_tltools(command, "runs/begun", cwd=workplace)
        assert (shown.code, len(shown.err.splitlines())) == (1, 1)
        assert "runs/begun is not a finished run" in shown.err
        assert "to finish it: tltools train --resume runs/" in shown.err


def test_the_command_lists_runs_and_so_does_inspect(workplace, second):
    ran = run_tltools("runs", cwd=workplace)
    assert ran.code == 0
    assert "trained (UTC)" in " ".join(ran.out.split())
    assert [line.split()[0] for line in ran.out.splitlines() if line.startswith(" cnn")] == [
        "cnn-2",
        "cnn",
    ]
    assert run_tltools("inspect", "runs", cwd=workplace) == ran
    document = json.loads(run_tltools("runs", "--json", cwd=workplace).out)
    assert [one["path"] for one in document] == ["runs/cnn-2", "runs/cnn"]
    assert document[1]["exports"]


def test_a_folder_with_images_beside_runs_is_no_list_of_runs(workplace, drawn):
    assert holds_runs(workplace / "runs")
    assert not holds_runs(workplace)
    shutil.copytree(drawn / "dark", workplace / "runs" / "dark")
    assert not holds_runs(workplace / "runs")


# -------------------------------------------------------------------------------- comparison


def test_two_runs_are_compared_on_the_images_that_both_were_validated_on(workplace, second):
    first = workplace / "runs" / "cnn"
    give_predictions(first, {f"{i}.png": i < 9 for i in range(10)})
    give_predictions(second, {f"{i}.png": i == 2 for i in range(2, 14)})
    found = read_and_compare(read_artifact(first), read_artifact(second))
    hits = np.array([[i < 9, i == 2] for i in range(2, 10)])
    assert found.test == mcnemar(hits[:, 0], hits[:, 1])
    assert (found.num_shared, found.num_first, found.num_second) == (8, 10, 12)
    assert found.better == "cnn"
    assert "Of the 8 validation images that they share (of 10 and 12)" in found.sentence()


def test_images_are_the_same_by_their_bytes_wherever_they_lie(workplace, second):
    split = read_split(second)
    split["path"] = "/elsewhere/" + split["path"].str.rsplit("/", n=1).str[1]
    write_split(second, split)
    here = read_split(workplace / "runs" / "cnn")
    give_predictions(workplace / "runs" / "cnn", dict.fromkeys(here["path"], True))
    give_predictions(second, dict.fromkeys(split["path"], True))
    found = read_and_compare(read_artifact(workplace / "runs" / "cnn"), read_artifact(second))
    assert found.num_shared == found.num_first == len(split)
    assert found.sentence() == (
        f"cnn and cnn-2 get the same images right, out of {len(split)} images."
    )


def test_an_image_with_another_label_is_not_shared(workplace, second):
    first = workplace / "runs" / "cnn"
    give_predictions(first, {"a.png": True, "b.png": True})
    targets, probs = np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]])
    write_predictions(
        second, ("bright", "dark"), {"val": RunPredictions(("a.png", "b.png"), targets, probs)}
    )
    assert read_and_compare(read_artifact(first), read_artifact(second)).num_shared == 1


def test_settings_that_differ_are_named_and_others_are_not(workplace, second):
    cards = load_card(workplace / "runs" / "cnn"), load_card(second)
    changed = differing_settings(*cards)
    assert changed == {"data": (cards[0].data.name, "other"), "lr": (cards[0].training["lr"], 0.5)}


def test_an_export_of_a_run_in_another_folder_is_kept_and_not_listed(workplace, monkeypatch):
    """Both runs are called cnn; the export is of the one in runs/."""
    monkeypatch.chdir(workplace)
    shutil.copytree("runs/cnn", "experiments/cnn")
    copied = run_tltools("export", "experiments/cnn", "--device", "cpu", cwd=workplace)
    assert copied.code == 0, copied.err  # it is the same run
    change_card(Path("experiments/cnn"), created="2099-01-01T00:00:00+00:00")
    (facts,) = list_runs(Path("experiments"))
    assert (facts.exports, facts.older_exports) == ((), ())
    deletion = plan_deletion(Path("experiments/cnn"), with_exports=True)
    assert (deletion.exports, deletion.kept_exports) == ((), ())
    (own,) = list_runs(Path("runs"))
    assert own.exports
    ran = run_tltools("export", "experiments/cnn", "--device", "cpu", cwd=workplace)
    assert ran.code == 1
    told = (
        "is of runs/cnn, perhaps as it was before, and not of experiments/cnn, which has the same"
    )
    assert told in ran.err
    before = load_card(Path("runs/cnn")).created
    change_card(Path("runs/cnn"), created="2098-01-01T00:00:00+00:00")  # it was extended
    ran = run_tltools("export", "experiments/cnn", "--device", "cpu", cwd=workplace)
    assert (ran.code, told in ran.err) == (1, True)
    assert list_runs(Path("experiments"))[0].older_exports == ()
    change_card(Path("runs/cnn"), created=before)
    compared = run_tltools("runs", "cnn", "experiments/cnn", cwd=workplace)
    assert "runs/cnn and experiments/cnn" in " ".join(compared.out.split())
    shutil.rmtree("runs/cnn")
    change_card(Path("experiments/cnn"), created="2001-01-01T00:00:00+00:00")
    ran = run_tltools("export", "experiments/cnn", "--device", "cpu", cwd=workplace)
    assert ran.code == 1
    assert "is of a later training than experiments/cnn; delete it, or choose another" in ran.err


def test_the_images_of_a_moved_project_are_found(workplace, drawn, tmp_path, monkeypatch):
    project = tmp_path / "old"
    shutil.copytree(drawn, project / "photos")
    shutil.copytree(workplace / "runs", project / "runs")
    for table in (project / "runs" / "cnn").glob("*.csv"):
        table.write_text(table.read_text().replace(str(drawn), str(project / "photos")))
    run = project / "runs" / "cnn"
    paths = read_split(run)["path"]
    classes = load_card(run).classes
    assert all(Path(path).is_relative_to(project) for path in paths)
    moved = project.rename(tmp_path / "new")
    for place in (moved, tmp_path):  # the project's folder, and another
        monkeypatch.chdir(place)
        found = list(read_split(moved / "runs" / "cnn")["path"])
        assert found == [path.replace(str(project), str(moved)) for path in paths]
        assert all(Path(path).is_file() for path in found)
        held_out = read_predictions(moved / "runs" / "cnn", classes)["val"].paths
        assert all(Path(path).is_file() for path in held_out)
    first = Path(found[0])
    first.write_bytes(first.read_bytes() + b"0")  # other bytes than those of the run
    (second, third) = map(Path, found[1:3])
    second.unlink()
    third.unlink()
    assert list(read_split(moved / "runs" / "cnn")["path"]) == list(paths)


@pytest.fixture
def moved(workplace, drawn, tmp_path) -> tuple[Path, Path]:
    """A copy of a run, and the folder to which its images were moved under other names."""
    run = shutil.copytree(workplace / "runs" / "cnn", tmp_path / "here" / "runs" / "cnn")
    frame = read_split(run)
    new = tmp_path / "new" / "inner"
    new.mkdir(parents=True)
    for number, path in enumerate(frame["path"]):
        shutil.copy(path, new / f"{number}{Path(path).suffix}")
    for table in run.glob("*.csv"):
        table.write_text(table.read_text().replace(str(drawn), str(tmp_path / "old")))
    (new / "broken.png").symlink_to("nowhere.png")
    return run, new.parent


def test_moved_images_are_found_by_their_bytes(moved, drawn):
    run, folder = moved
    before = read_split(run)
    predictions = (run / "predictions.csv").read_text()
    asked = run_tltools("train", "--resume", "cnn", "--epochs", "3", cwd=run.parents[1])
    hint = "tltools runs runs/cnn --images FOLDER"
    assert (asked.code, hint in asked.err) == (1, True), asked
    ran = run_tltools("runs", "cnn", "--images", folder, cwd=run.parents[1])
    assert ran.code == 0, ran
    assert f"{len(before)} images found in {folder}" in ran.err
    after = read_split(run)
    assert [image_sha256(path) for path in after["path"]] == list(before["sha256"])
    assert after.drop(columns="path").equals(before.drop(columns="path"))
    assert len(set(after["path"])) == len(after)
    renamed = dict(zip(before["path"], after["path"], strict=True))
    for old, new in renamed.items():
        predictions = predictions.replace(f"{old},", f"{new},")
    assert (run / "predictions.csv").read_text() == predictions
    again = run_tltools("runs", "cnn", "--images", folder, cwd=run.parents[1])
    assert "all images are where they were" in again.err


def test_images_in_the_folder_of_another_class_are_told(moved):
    run, folder = moved
    frame = read_split(run)
    (folder / "bright").mkdir()
    (folder / "dark").mkdir()
    for number, label in enumerate(frame["class"]):
        (path,) = (folder / "inner").glob(f"{number}.*")
        path.rename(folder / ("dark" if number == 0 else label) / path.name)
    assert frame["class"][0] == "bright"
    ran = run_tltools("runs", "cnn", "--images", folder, cwd=run.parents[1])
    assert (
        f"runs/cnn: 1 image is in the folder of another class now (first {folder}/dark/0.png, "
        "trained as bright)" in ran.err
    ), ran
    assert read_split(run)["class"][0] == "bright"


def test_nothing_is_changed_if_an_image_is_not_found(moved):
    run, folder = moved
    next((folder / "inner").glob("*.png")).write_bytes(b"other bytes")
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    ran = run_tltools("runs", "cnn", "--images", folder, cwd=run.parents[1])
    assert ran.code == 1
    assert "1 of 16 images of runs/cnn are neither where they were nor in" in ran.err
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_equal_images_get_a_file_each_with_the_old_name_first(tmp_path):
    for name in ("x.png", "b.png", "a.png"):
        (tmp_path / name).write_bytes(b"the same")
    sha256 = image_sha256(tmp_path / "x.png")
    wanted = {f"/old/{name}": sha256 for name in ("a.png", "c.png", "d.png", "e.png")}
    found = find_by_bytes(wanted, tmp_path)
    assert [Path(found[path]).name for path in wanted] == ["a.png", "b.png", "x.png", "x.png"]


def test_another_split_of_the_same_images_is_named(workplace, second):
    runs = [read_artifact(workplace / "runs" / name) for name in ("cnn", "cnn-2")]
    assert same_images(*runs)
    split = read_split(second)
    split.loc[0, "split"] = "test"
    write_split(second, split)
    assert same_images(*runs)
    split.loc[0, "class"] = "another"
    write_split(second, split)
    assert not same_images(*runs)


def test_settings_are_named_as_people_say_them():
    assert setting_title("weight_decay") == "weight decay"
    assert setting_title("lr") == "learning rate"
    assert setting_title("model") == "model"
    internal = {name for name in TrainConfig.__dataclass_fields__ if "_" in setting_title(name)}
    assert not internal


def test_an_inspected_run_says_how_far_it_was_trained_and_its_cross_validation(workplace):
    folder = workplace / "runs" / "cnn"
    card = load_card(folder)

    def shown() -> list[str]:
        out = run_tltools("inspect", "runs/cnn", cwd=workplace).out
        return [" ".join(line.split()) for line in out.splitlines()]

    told = "of at most 12 epochs, weights of epoch 2"
    for state, changes in (
        ("finished", {"epochs_done": 12}),
        ("interrupted", {"epochs_done": 2, "interrupted": True}),
    ):
        change_card(folder, training=card.training | {"epochs": 12, "kept_epoch": 2} | changes)
        lines = shown()
        assert f"state {state}: {changes['epochs_done']} {told}" in lines
        assert not any("cross-validated" in line for line in lines)
    paths, targets = tuple(f"{i}.png" for i in range(4)), np.array([0, 0, 1, 1])
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
    folds = FoldPredictions(paths=paths, targets=targets, folds=np.array([1, 1, 2, 2]), probs=probs)
    write_folds(folder, card.classes, folds)
    wanted = "cross-validated accuracy 75.0% on 2 folds (standard deviation 35.4 points)"
    assert wanted in shown()


def test_the_command_compares_two_runs_by_name_or_path(workplace, second):
    card = load_card(second)
    change_card(second, training=card.training | {"standardize": True, "epochs": 9})
    ran = run_tltools("runs", "cnn", "runs/cnn-2", cwd=workplace)
    lines = {line.strip()[:15]: line for line in ran.out.splitlines()}
    assert " to " not in lines["training accura"]  # the models have seen these images
    assert " to " in lines["validation accu"]
    assert ran.code == 0, ran
    assert "cnn and cnn-2 get the same images right" in ran.out
    assert "validation accuracy" in ran.out
    document = json.loads(run_tltools("runs", "cnn", "cnn-2", "--json", cwd=workplace).out)
    assert document["settings"]["lr"][1] == 0.5
    assert document["settings"]["standardize"] == [False, True]
    rows = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert any(row.startswith("learning rate ") for row in rows)
    assert "features standardized no yes" in rows
    assert "epochs at most 1 9" in rows
    assert "epochs trained 1 1" in rows
    assert not any(row.startswith(("lr ", "epochs 1")) for row in rows)
    assert document["better"] is None
    assert document["comparison"]["test"]["only_first"] == 0


def test_a_folder_that_cannot_be_listed_is_told_where_images_are_read(drawn, tmp_path, monkeypatch):
    shutil.copytree(drawn, tmp_path / "data")
    is_file, scandir = Path.is_file, os.scandir

    def refuse(path):
        if "dark" in Path(path).parts:
            raise PermissionError(13, "Permission denied", str(path))

    def stat_file(path, **options):
        refuse(path)
        return is_file(path, **options)

    def scan(path="."):
        refuse(path)
        return scandir(path)

    monkeypatch.setattr(Path, "is_file", stat_file)
    monkeypatch.setattr(os, "scandir", scan)
    ran = run_tltools("inspect", "data", cwd=tmp_path)
    assert ran.code == 1
    assert ran.err.startswith("error: cannot list the folder data/dark: permission denied; make it")


# ---------------------------------------------------------------------------------- deletion


def test_a_run_is_deleted_and_its_exports_stay(workplace):
    exports = sorted((workplace / "exports").rglob("*"))
    ran = run_tltools("runs", "--delete", "cnn", "--yes", cwd=workplace)
    assert ran.code == 0, ran
    assert "Deleted: runs/cnn" in ran.err
    assert ran.err.splitlines()[-1] == (
        "Kept: exports/cnn/cnn.fp32.onnx, exports/cnn/cnn.fp32.pt; until you delete them, other "
        "commands go on using these exports of the run"
    )
    assert not (workplace / "runs" / "cnn").exists()
    assert sorted((workplace / "exports").rglob("*")) == exports


def test_a_run_is_deleted_with_its_exports_if_that_is_requested(workplace):
    (workplace / "exports" / "cnn" / "notes.txt").write_text("mine")
    own = [workplace / "exports" / "cnn" / f"cnn.fp32.{suffix}" for suffix in ("onnx", "pt")]
    before = shutil.copy(own[0], own[0].with_name("cnn.int8.onnx"))  # of the run, before it went on
    set_card(before, msgspec.structs.replace(read_artifact(own[0]).card, created="2020-01-01"))
    theirs = workplace / "exports" / "theirs" / "cnn.fp32.onnx"  # of a run of the same name
    theirs.parent.mkdir()
    shutil.copy(before, theirs)
    ran = run_tltools("runs", "--delete", "cnn", "--exports", "--yes", cwd=workplace)
    assert ran.code == 0, ran
    assert "exports/cnn/cnn.fp32.onnx" in ran.err
    kept = "Kept: exports/theirs/cnn.fp32.onnx; until you delete it, other commands go on using"
    assert f"{kept} this export of another run of this name" in ran.err
    assert not any(path.exists() for path in (*own, before))
    assert [one.name for one in (workplace / "exports" / "cnn").iterdir()] == ["notes.txt"]
    assert run_tltools("runs", "--exports", cwd=workplace).code == 2


def test_files_that_training_did_not_write_stay(workplace):
    folder = workplace / "runs" / "cnn"
    (folder / "notes.txt").write_text("mine")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events").touch()
    deletion = plan_deletion(folder)
    assert deletion.files[-1].name == "card.json"
    delete_run(deletion)
    assert [one.name for one in folder.iterdir()] == ["notes.txt"]


def test_a_deletion_that_was_stopped_can_be_repeated(workplace):
    folder = workplace / "runs" / "cnn"
    deletion = plan_deletion(folder)
    for number in range(len(deletion.files)):
        rest = replace(deletion, files=deletion.files[number:])
        assert set(plan_deletion(folder).files) == set(rest.files)
        if number < len(deletion.files) - 1:
            delete_run(replace(deletion, files=deletion.files[number : number + 1], kept=(folder,)))
    delete_run(plan_deletion(folder))
    assert not folder.exists()


def test_temporary_files_of_a_killed_training_are_deleted_with_its_run(workplace):
    folder = workplace / "runs" / "cnn"
    code = (
        "import os, pathlib, sys; from tltools.atomic import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as path: path.touch(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "state.pt")], check=True)
    assert list(folder.glob(".tltools-*.tmp"))
    with locked(folder):
        assert plan_deletion(folder).kept  # it may be that of the process that trains
    assert plan_deletion(folder).kept == ()
    delete_run(plan_deletion(folder))
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize("left", [True, False])
def test_the_remains_of_a_killed_deletion_are_not_listed_and_go_with_the_next(
    workplace, second, monkeypatch, left
):
    remove, folder = runs_module._remove, workplace / "runs" / "cnn"

    class Killed(BaseException):
        pass

    def killed(paths):
        remove(paths[:2] if left else paths)
        monkeypatch.setattr(Path, "rename", lambda *_: None)  # the process ends here
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(runs_module, "_remove", killed)
        with pytest.raises(Killed):
            delete_run(plan_deletion(folder))
    monkeypatch.undo()
    remains = folder.with_name(".cnn.deleted")
    assert any(remains.iterdir()) == left
    shutil.copytree(second, folder)
    runs = workplace / "runs"
    assert {one.path.name for one in list_runs(runs)} == {"cnn", "cnn-2"}
    assert remains not in [one.path for one in find_runs(runs)]
    ran = run_tltools("runs", "--delete", "cnn", "--yes", cwd=workplace)
    assert ran.code == 0, ran
    assert [one.name for one in runs.iterdir()] == ["cnn-2"]


def test_a_hidden_folder_that_is_no_remains_of_a_deletion_stays(workplace, second):
    runs = workplace / "runs"
    shutil.copytree(second, runs / ".kept.deleted")
    (runs / ".kept.deleted" / "notes.txt").write_text("mine")
    (runs / ".other.deleted").mkdir()
    (runs / ".other.deleted" / "a.txt").touch()
    before = sorted(runs.glob(".*/*"))
    delete_run(plan_deletion(second))
    assert sorted(runs.glob(".*/*")) == before


@pytest.mark.parametrize("place", ["runs", "runs/cnn"])
def test_what_may_not_be_deleted_loses_nothing(workplace, place, monkeypatch, second):
    monkeypatch.chdir(workplace)
    access, locked = os.access, (workplace / place).resolve()
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: (
            not (mode & os.W_OK and Path(path).resolve() == locked) and access(path, mode)
        ),
    )
    before = sorted(workplace.rglob("*"))
    ran = run_tltools("runs", "--delete", "cnn-2", "cnn", "--yes", cwd=workplace)
    assert ran.code == 1
    assert re.match(r"error: cannot delete runs/cnn(-2)?, and nothing is deleted: ", ran.err)
    assert "is not writable; make it writable, then run it again" in ran.err
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize("method", ["rename", "unlink"])
def test_a_deletion_that_fails_leaves_the_run_where_it_is(workplace, method, monkeypatch):
    folder = workplace / "runs" / "cnn"
    deletion = plan_deletion(folder)

    def refuse(path: Path, *_args: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        if method == "rename":
            patched.setattr(Path, "rename", refuse)
        else:
            patched.setattr(Path, "unlink", refuse)
        with pytest.raises(PermissionError):
            delete_run(deletion)
    assert plan_deletion(folder) == deletion
    assert [one.name for one in folder.parent.iterdir()] == ["cnn"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos", "photos is not a run: it has neither card.json nor plan.json"),
        ("foreign", "nothing shows that tltools made foreign, so it is not deleted"),
        ("link", "link is a link: name the run it leads to"),
        ("cnm", r"cnm does not exist, .* did you mean cnn"),
        (".", "is not a run"),
    ],
)
def test_what_is_not_a_run_is_not_deleted(workplace, name, message):
    (workplace / "photos").mkdir()
    (workplace / "photos" / "a.txt").touch()
    (workplace / "foreign").mkdir()
    (workplace / "foreign" / "card.json").write_text('{"name": "a card of something else"}')
    (workplace / "link").symlink_to(workplace / "runs" / "cnn")
    before = sorted(workplace.rglob("*"))
    ran = run_tltools("runs", "--delete", name, "cnn", "--yes", cwd=workplace)
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert re.search(message, ran.err)
    assert sorted(workplace.rglob("*")) == before


def test_without_a_terminal_the_question_is_an_error(workplace, monkeypatch):
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        ran = run_tltools("runs", "--delete", "cnn", cwd=workplace)
    assert ran.code == 2
    assert "add --yes" in ran.err
    assert find_run("cnn", workplace / "runs").exists()


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_on_a_terminal_deleting_asks(workplace, answer, code):
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "tltools", "runs", "--delete", "cnn"],
        cwd=workplace,
        stdin=theirs,
        capture_output=True,
        text=True,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code, done
    assert "checkpoint.safetensors" in done.stderr
    assert "Delete 1 run?" in done.stderr
    exports = "exports/cnn/cnn.fp32.onnx, exports/cnn/cnn.fp32.pt"
    assert f"exports, kept without --exports: {exports}" in done.stderr
    assert (workplace / "runs" / "cnn").exists() == bool(code)


def test_deleting_a_deleted_run_names_its_exports_and_proposes_no_other(workplace, second):
    shutil.copytree(workplace / "exports" / "cnn", workplace / "exports" / "cnn-3")
    ran = run_tltools("runs", "--delete", "cnn-3", "--exports", "--yes", cwd=workplace)
    assert ran.code == 1
    assert ran.err == (
        "error: there is no run cnn-3 in runs/ any more, only exports, such as "
        "exports/cnn-3/cnn.fp32.onnx: delete the files that you no longer need\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("runs cnn", "compares two runs, and got 1"),
        ("runs a b c", "compares two runs, and got 3"),
        ("runs cnn runs/cnn", "both names are of the run runs/cnn: name two runs"),
        ("runs --delete", "--delete needs the names of runs"),
        ("runs --yes", "--yes answers the question of --delete"),
    ],
)
def test_options_of_runs_that_say_nothing_are_refused(workplace, words, message):
    ran = run_tltools(*words.split(), cwd=workplace)
    assert ran.code == 2
    assert message in ran.err
