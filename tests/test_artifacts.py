"""Runs and exports are found where the commands left them, and opened as predictors."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tltools.artifacts import (
    bench_inputs,
    best_export,
    find_exports,
    find_runs,
    is_artifact,
    open_predictor,
    read_artifact,
)
from tltools.card import Score
from tltools.data.dataset import load_dataset
from tltools.errors import ArtifactError, DataError
from tltools.export.formats import set_card
from tltools.training.run import EagerPredictor, load_card, read_split


def accuracy(value: float) -> dict[str, Score]:
    return {"val": Score(accuracy=value, low=0, high=1, correct=round(value * 100), total=100)}


@pytest.fixture
def make_run(make_card, tmp_path):
    """Write what is looked at of a run: its card."""

    def make(name: str, **changes) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        card = make_card(run=name, export=None, **changes)
        (folder / "card.json").write_text(card.to_json())
        return folder

    return make


@pytest.fixture
def make_export(make_onnx, make_card, tmp_path):
    def make(run: str, *, val: float = 0.5, name: str = "", **changes) -> Path:
        path = tmp_path / "exports" / run / (name or f"{run}.fp32.onnx")
        path.parent.mkdir(parents=True, exist_ok=True)
        return make_onnx(path, make_card(run=run, metrics=accuracy(val), **changes).to_json())

    return make


@pytest.fixture
def workplace(cnn_run, cnn_exports, tmp_path):
    """A copy of a real run and its two exports, as the commands leave them."""
    shutil.copytree(cnn_run, tmp_path / "runs" / "cnn")
    (tmp_path / "exports" / "cnn").mkdir(parents=True)
    for result in cnn_exports.values():
        shutil.copy(result.path, tmp_path / "exports" / "cnn")
    return tmp_path


def inputs(workplace, models=None, dataset=None, *, tf32=False):
    return bench_inputs(
        models, dataset, tf32=tf32, run_dir=workplace / "runs", export_dir=workplace / "exports"
    )


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
        (find_runs, r"no runs in .*nothing/: make one with tltools train"),
        (find_exports, r"no exports in .*nothing/: make them with tltools export"),
        (best_export, r"no exports in .*nothing/: make them with tltools export"),
    ],
)
def test_where_nothing_is_there_the_remedy_is_named(tmp_path, find, message):
    with pytest.raises(ArtifactError, match=message):
        find(tmp_path / "nothing")
    (tmp_path / "nothing" / "folder").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=message):
        find(tmp_path / "nothing")


def test_a_damaged_card_is_named_and_not_passed_over(make_run, tmp_path):
    make_run("cnn")
    damaged = make_run("cnn-2") / "card.json"
    damaged.write_text("{")
    with pytest.raises(ArtifactError, match=r"cnn-2/card\.json has no valid tltools card"):
        find_runs(tmp_path / "runs")


def test_exports_of_older_runs_and_files_that_are_no_exports_are_passed_over(make_export, tmp_path):
    old = make_export("cnn", created="2026-01-01T00:00:00+00:00")
    new = make_export("cnn-2", created="2026-02-01T00:00:00+00:00")
    second = make_export("cnn-2", created="2026-02-01T00:00:00+00:00", name="cnn-2.fp16.onnx")
    other = make_export("vgg16", model="vgg16", created="2025-01-01T00:00:00+00:00")
    (old.parent / "notes.txt").write_text("not an export")
    shutil.copy(old, new.parent / ".cnn-2.fp32.abc.tmp.onnx")  # as a killed export leaves it
    assert {one.path for one in find_exports(tmp_path / "exports")} == {new, second, other}


def test_the_best_export_is_the_most_accurate_in_validation(make_export, tmp_path):
    make_export("cnn", val=0.7)
    best = make_export("vgg16", model="vgg16", val=0.9)
    make_export("other", model="other", val=0.8)
    assert best_export(tmp_path / "exports").path == best


def test_the_best_export_is_onnx_since_torchscript_needs_torch(workplace):
    assert best_export(workplace / "exports").path.name == "cnn.fp32.onnx"
    (workplace / "exports" / "cnn" / "cnn.fp32.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"no ONNX export .*--format onnx, or name .* --model"):
        best_export(workplace / "exports")


def test_what_is_an_artifact_is_told_by_its_name(workplace, drawn):
    assert is_artifact(workplace / "runs" / "cnn")
    assert is_artifact(workplace / "exports" / "cnn" / "cnn.fp32.pt")
    assert is_artifact(Path("missing.onnx"))
    assert not is_artifact(drawn)
    assert not is_artifact(Path("labels.csv"))


def test_reading_and_opening(workplace, cnn_run, cnn_exports):
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
        ("missing", r"missing does not exist: name a run \(runs/NAME\) or an export"),
        ("missing.onnx", r"missing\.onnx does not exist: name a run"),
        ("folder", r"folder is not a finished run: it has no card\.json"),
        ("text.csv", r"text\.csv is no export: its name ends in '\.csv'"),
        ("text.pt", r"text\.pt is not a TorchScript file"),
        ("text.onnx", r"cannot open .*text\.onnx|text\.onnx is not an? ONNX file"),
    ],
)
def test_what_is_no_artifact_is_refused(tmp_path, function, name, message):
    (tmp_path / "folder").mkdir()
    for suffix in ("csv", "pt", "onnx"):
        (tmp_path / f"text.{suffix}").write_text("some text")
    with pytest.raises(ArtifactError, match=message):
        function(tmp_path / name)


# --------------------------------------------------------------------------------------- bench


def test_bench_takes_all_exports_their_run_and_its_validation_pictures(workplace, drawn):
    found = inputs(workplace)
    assert [(one.format, one.path) for one in found.candidates] == [
        ("eager", workplace / "runs" / "cnn"),
        ("onnx", workplace / "exports" / "cnn" / "cnn.fp32.onnx"),
        ("torchscript", workplace / "exports" / "cnn" / "cnn.fp32.pt"),
    ]
    assert {one.run for one in found.candidates} == {"cnn"}
    split = read_split(workplace / "runs" / "cnn")
    val = split[split["split"] == "val"]
    assert sorted(found.pictures) == sorted(Path(path) for path in val["path"])
    assert found.pictures == inputs(workplace).pictures  # in the same random order each time
    # Class folders are sorted: bright is 0, dark is 1.
    assert found.targets.tolist() == [
        ["bright", "dark"].index(p.parent.name) for p in found.pictures
    ]
    assert found.name == f"{drawn.name} (validation)"


def test_bench_takes_given_pictures_instead(workplace, drawn):
    dataset = load_dataset(drawn, purpose="evaluate")
    shutil.rmtree(workplace / "runs")
    found = inputs(workplace, dataset=dataset)
    assert [one.format for one in found.candidates] == ["onnx", "torchscript"]
    assert sorted(found.pictures) == sorted(Path(path) for path in dataset.frame["path"])
    # In random order, so that any first part has images of all classes.
    assert {path.parent.name for path in found.pictures[:8]} == {"bright", "dark"}


def test_fp32_exports_are_measured_in_tf32_as_well_where_that_is_asked_for(workplace):
    found = inputs(workplace, tf32=True)
    assert [(one.name, one.precision) for one in found.candidates] == [
        ("cnn eager fp32", "fp32"),
        ("cnn onnx fp32", "fp32"),
        ("cnn onnx tf32", "tf32"),
        ("cnn torchscript fp32", "fp32"),
        ("cnn torchscript tf32", "tf32"),
    ]
    assert {one.path for one in found.candidates if one.precision == "tf32"} == {
        one.path for one in found.candidates if one.precision == "fp32" and one.format != "eager"
    }


def test_exports_of_a_run_know_the_arithmetic_of_its_onnx_export(workplace):
    found = inputs(workplace)
    # As it is folded: 16 filters of 3 x 4 x 4 on 112 x 112, 32 of 4 x 4 x 4 on 56 x 56, and
    # 8 x 56 x 56 values to two classes.
    flops = 2 * (16 * 48 * 112**2 + 32 * 64 * 56**2 + 2 * 8 * 56**2)
    assert {one.format: one.flops_per_image for one in found.candidates} == {
        "eager": None,  # it is not folded
        "onnx": flops,
        "torchscript": flops,
    }


def test_a_run_that_an_export_did_not_come_from_is_not_used(workplace):
    path = workplace / "runs" / "cnn" / "card.json"
    card = load_card(path.parent)
    path.write_text(msgspec.structs.replace(card, created="2020-01-01T00:00:00+00:00").to_json())
    with pytest.raises(DataError, match=r"not in runs/.* with --data"):
        inputs(workplace)


def test_a_run_from_before_calibration_is_that_of_its_exports(workplace):
    path = workplace / "runs" / "cnn" / "card.json"
    card = load_card(path.parent)
    assert card.confidence is not None
    path.write_text(msgspec.structs.replace(card, confidence=None).to_json())
    assert next(one.format for one in inputs(workplace).candidates) == "eager"


def test_a_model_is_measured_once_however_often_it_is_named(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    run, export = Path("runs/cnn"), Path("exports/cnn/cnn.fp32.onnx")
    found = inputs(workplace, [export, workplace / export, run, workplace / run])
    assert sorted(one.format for one in found.candidates) == ["eager", "onnx"]


def test_two_files_that_tables_would_call_the_same_are_refused(workplace):
    export = workplace / "exports" / "cnn" / "cnn.fp32.onnx"
    copy = shutil.copy(export, workplace / "copy.onnx")
    with pytest.raises(DataError, match=r"are both called 'cnn onnx fp32': measure them one after"):
        inputs(workplace, [export, copy])


def test_models_of_different_data_need_pictures_for_all(workplace, drawn):
    export = workplace / "exports" / "cnn" / "cnn.fp32.onnx"
    other = shutil.copy(export, workplace / "other.onnx")
    card = read_artifact(export).card
    data = msgspec.structs.replace(card.data, fingerprint="f" * 64)
    set_card(other, msgspec.structs.replace(card, run="other", data=data))
    with pytest.raises(DataError, match=r"trained on different data: .* with --data"):
        inputs(workplace, [export, other])
    dataset = load_dataset(drawn, purpose="evaluate")
    assert len(inputs(workplace, [export, other], dataset).candidates) == 3


def test_models_of_different_classes_are_not_compared(workplace, make_export):
    export = workplace / "exports" / "cnn" / "cnn.fp32.onnx"
    with pytest.raises(DataError, match=r"has other classes than .*: measure them one after"):
        inputs(workplace, [export, make_export("colours")])


def test_pictures_of_an_unknown_class_are_refused(workplace, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "renamed")
    (tmp_path / "renamed" / "dark").rename(tmp_path / "renamed" / "night")
    dataset = load_dataset(tmp_path / "renamed", purpose="evaluate")
    with pytest.raises(DataError, match=r"do not know class night, they know bright, dark"):
        inputs(workplace, dataset=dataset)


def test_validation_pictures_that_have_gone_are_named(workplace):
    split = workplace / "runs" / "cnn" / "split.csv"
    split.write_text(split.read_text().replace("/dark/", "/gone/"))
    with pytest.raises(
        DataError, match=r"3 validation pictures .* have gone, the first is .*/gone/"
    ):
        inputs(workplace)
