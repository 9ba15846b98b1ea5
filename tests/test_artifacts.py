"""Runs and exports are found where the commands write them, and opened as predictors."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import Recorder

from tltools.artifacts import (
    best_export,
    current_and_earlier_exports,
    find_runs,
    is_artifact,
    open_predictor,
    read_artifact,
)
from tltools.cli.options import path_or_export
from tltools.cli.show import choose_export
from tltools.errors import ArtifactError, ConfigError
from tltools.report.sources import find_sources
from tltools.training.run import EagerPredictor, load_card


@pytest.fixture
def make_run(make_card, tmp_path):
    """Write the only part of a run that is read here: its card."""

    def make(name: str, **changes) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        card = make_card(run=name, export=None, **changes)
        (folder / "card.json").write_text(card.to_json())
        (folder / "split.csv").touch()
        return folder

    return make


# ------------------------------------------------------------------------------------- finding


def test_the_newest_run_of_each_model_is_found(make_run, tmp_path):
    make_run("cnn", created="2026-01-01T00:00:00+00:00")
    newest = make_run("cnn-2", created="2026-03-01T00:00:00+00:00")
    make_run("cnn-3", created="2026-02-01T00:00:00+00:00")
    other = make_run("vgg16", model="vgg16", created="2025-01-01T00:00:00+00:00")
    (tmp_path / "runs" / "unfinished").mkdir()
    found = find_runs(tmp_path / "runs")
    assert [one.path for one in found] == [newest, other]
    assert all(one.is_run for one in found)


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (find_runs, r"no runs in .*nothing/: train one with tltools train"),
        (current_and_earlier_exports, r"no exports in .*nothing/: create some with tltools export"),
        (best_export, r"no exports in .*nothing/: create some with tltools export"),
    ],
)
def test_without_runs_or_exports_the_error_says_how_to_create_them(tmp_path, find, message):
    with pytest.raises(ArtifactError, match=message):
        find(tmp_path / "nothing")
    (tmp_path / "nothing" / "folder").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=message):
        find(tmp_path / "nothing")


def test_a_damaged_run_is_left_out_and_an_error_if_there_is_no_other(make_run, tmp_path):
    healthy = make_run("cnn")
    (make_run("cnn-2") / "card.json").write_text("{")
    make_run(".cnn.deleted")  # as a killed deletion leaves it
    progress = Recorder()
    assert [one.path for one in find_runs(tmp_path / "runs", progress=progress)] == [healthy]
    (said,) = progress.said
    assert f"cnn-2 is left out: {tmp_path}/runs/cnn-2/card.json has no valid tltools card" in said
    shutil.rmtree(healthy)
    with pytest.raises(ArtifactError, match=r"no usable run in .*cnn-2/card\.json has no valid"):
        find_runs(tmp_path / "runs")


def test_exports_of_older_runs_and_other_files_are_skipped(make_export, tmp_path):
    old = make_export("cnn", created="2026-01-01T00:00:00+00:00")
    new = make_export("cnn-2", created="2026-02-01T00:00:00+00:00")
    second = make_export("cnn-2", created="2026-02-01T00:00:00+00:00", name="cnn-2.fp16.onnx")
    other = make_export("vgg16", model="vgg16", created="2025-01-01T00:00:00+00:00")
    (old.parent / "notes.txt").write_text("not an export")
    shutil.copy(old, new.parent / ".cnn-2.fp32.abc.tmp.onnx")  # as a killed export leaves it
    assert {one.path for one in current_and_earlier_exports(tmp_path / "exports")[0]} == {
        new,
        second,
        other,
    }


def test_exports_of_an_earlier_training_of_the_same_run_are_left_out_and_named(
    make_export, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_export("cnn", created="2026-01-01T00:00:00+00:00", name="cnn.int8.onnx", val=0.9)
    new = make_export("cnn", created="2026-02-01T00:00:00+00:00", val=0.8)
    other = make_export("vgg16", model="vgg16", created="2025-01-01T00:00:00+00:00")
    assert {one.path for one in current_and_earlier_exports(tmp_path / "exports")[0]} == {
        new,
        other,
    }
    said = Recorder()
    assert choose_export(said) == new.relative_to(tmp_path)
    assert said.said == [
        "Model: exports/cnn/cnn.fp32.onnx (best validation accuracy here: 80.0%, 80/100)",
        "Exports left out, since an earlier training of cnn made it: exports/cnn/cnn.int8.onnx",
    ]
    assert list(find_sources([]).left_out) == [Path("exports/cnn/cnn.int8.onnx")]


def test_an_export_in_another_folder_is_of_no_earlier_training(make_export, tmp_path):
    """Runs of two projects may have the same name."""
    old = make_export("cnn", created="2026-01-01T00:00:00+00:00", val=0.9)
    theirs = old.parent.rename(tmp_path / "exports" / "theirs") / old.name
    make_export("cnn", created="2026-02-01T00:00:00+00:00", val=0.8)
    assert best_export(tmp_path / "exports").path == theirs


def test_the_best_export_has_the_highest_validation_accuracy(make_export, tmp_path):
    make_export("cnn", val=0.7)
    best = make_export("vgg16", model="vgg16", val=0.9)
    make_export("other", model="other", val=0.8)
    assert best_export(tmp_path / "exports").path == best


def test_an_accuracy_of_few_images_does_not_beat_one_of_many(make_export, tmp_path):
    make_export("cnn", val=1, total=2)
    best = make_export("vgg16", model="vgg16", val=0.9, total=100)
    assert best_export(tmp_path / "exports").path == best


def test_between_exports_with_different_classes_the_user_chooses(
    make_export, make_run, tmp_path, monkeypatch
):
    """A tutorial's model, say, beside one's own: neither replaces the other, nor is it a guess."""
    monkeypatch.chdir(tmp_path)
    own = make_export("vgg16", created="2026-01-01T00:00:00+00:00", val=0.8)
    other = make_export("cnn", created="2026-02-01T00:00:00+00:00", val=1, classes=("a", "b", "c"))
    assert {one.path for one in current_and_earlier_exports(tmp_path / "exports")[0]} == {
        own,
        other,
    }
    with pytest.raises(ConfigError, match="have different classes") as caught:
        choose_export(Recorder())
    assert str(caught.value) == (
        "the exports in exports/ have different classes (exports/cnn/cnn.fp32.onnx tells a, b, c; "
        "exports/vgg16/vgg16.fp32.onnx tells red, green, blue); choose one with `model=`, "
        "or delete those that you no longer need"
    )
    other.unlink()
    assert choose_export(Recorder()) == own.relative_to(tmp_path)
    runs = [make_run("cnn"), make_run("cnn-2", classes=("a", "b", "c"))]
    assert [one.path for one in find_runs(tmp_path / "runs")] == runs


def test_a_fine_tuned_run_does_not_replace_a_frozen_one(make_run, tmp_path):
    frozen = make_run("vgg16", model="vgg16", created="2026-01-01T00:00:00+00:00")
    tuned = make_run("vgg16-2", model="vgg16", training={"fine_tune": "last-block"})
    assert [one.path for one in find_runs(tmp_path / "runs")] == [frozen, tuned]


def test_a_quick_trial_does_not_replace_a_more_accurate_model(make_export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_export("cnn", created="2026-01-01T00:00:00+00:00", val=0.9)
    trial = make_export("cnn-2", created="2026-02-01T00:00:00+00:00", val=0.8)
    said = Recorder()
    choose_export(said)
    assert said.said == [
        "Model: exports/cnn/cnn.fp32.onnx (best validation accuracy here: 90.0%, 90/100)"
    ]
    make_export("cnn-3", created="2026-03-01T00:00:00+00:00", val=0.9)
    assert choose_export(said) == Path("exports/cnn-3/cnn-3.fp32.onnx")  # of equals, the newer
    assert trial.exists()


def test_a_run_is_not_an_export_of_an_earlier_one_of_its_name(
    make_export, make_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = make_export("cnn", created="2026-01-01T00:00:00+00:00").relative_to(tmp_path)
    run = make_run("cnn", created="2026-01-01T00:00:00+00:00").relative_to(tmp_path)
    assert path_or_export("cnn") == path_or_export("runs/cnn") == path
    shutil.rmtree(run)
    assert path_or_export("cnn") == path  # kept when its run was deleted
    make_run("cnn", created="2026-02-01T00:00:00+00:00")
    for name in ("cnn", "runs/cnn"):
        with pytest.raises(
            typer.BadParameter,
            match=r"not of runs/cnn as it is now: run tltools export runs/cnn, or give",
        ):
            path_or_export(name)
    assert path_or_export(str(path)) == path
    make_run("other")
    assert path_or_export("other") == Path("runs/other")  # which is refused later


@pytest.mark.parametrize("name", ["cnn", "cnn.fp32.onnx"])
def test_an_export_may_be_named_by_its_run_or_its_file(make_export, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_export("cnn", name="cnn.fp16.onnx")
    path = make_export("cnn")
    assert path_or_export(name) == path.relative_to(tmp_path)
    Path(name).write_text("a file of this name comes first")
    assert path_or_export(name) == Path(name)
    assert path_or_export("other") == Path("other")
    assert path_or_export("other.onnx") == Path("other.onnx")


def test_the_best_export_is_onnx_because_torchscript_needs_torch(workplace):
    assert best_export(workplace / "exports").path.name == "cnn.fp32.onnx"
    (workplace / "exports" / "cnn" / "cnn.fp32.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"no ONNX export .* export, or choose .* `model=`"):
        best_export(workplace / "exports")


def test_artifacts_are_recognized_by_their_names(workplace, drawn):
    assert is_artifact(workplace / "runs" / "cnn")
    assert is_artifact(workplace / "exports" / "cnn" / "cnn.fp32.pt")
    assert is_artifact(Path("missing.onnx"))
    assert not is_artifact(drawn)
    assert not is_artifact(Path("labels.csv"))


def test_artifacts_are_read_and_opened(workplace, cnn_run, cnn_exports):
    run = read_artifact(workplace / "runs" / "cnn")
    assert run.card == load_card(cnn_run)
    assert run.label == "cnn eager fp32"
    images = np.zeros((1, 224, 224, 3), dtype=np.uint8)
    eager = open_predictor(run.path, "cpu")
    assert isinstance(eager, EagerPredictor)
    for format_, result in cnn_exports.items():
        export = read_artifact(result.path)
        assert (export.label, export.is_run) == (f"cnn {format_} fp32", False)
        predictor = open_predictor(result.path, "cpu", 1)
        assert predictor.card == export.card
        assert predictor.threads == 1
        np.testing.assert_allclose(predictor(images), eager(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("function", [read_artifact, open_predictor])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"missing does not exist: choose a run \(runs/NAME\) or an export"),
        ("missing.onnx", r"missing\.onnx does not exist: choose a run"),
        ("folder", r"folder is not a run: it has no card\.json"),
        ("text.csv", r"text\.csv is not an export: its name ends in '\.csv'"),
        ("text.pt2", r"text\.pt2 is not a PT2 file"),
        ("text.pt", r"text\.pt is not a TorchScript file"),
        ("text.onnx", r"cannot open .*text\.onnx|text\.onnx is not an? ONNX file"),
    ],
)
def test_other_paths_are_refused_as_artifacts(tmp_path, function, name, message):
    (tmp_path / "folder").mkdir()
    for suffix in ("csv", "pt", "pt2", "onnx"):
        (tmp_path / f"text.{suffix}").write_text("some text")
    with pytest.raises(ArtifactError, match=message):
        function(tmp_path / name)
