"""The inputs of a bench are found, belong together, and have distinct names."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from conftest import run_tltools, set_card

from tltools.artifacts import read_artifact
from tltools.bench import bench_inputs
from tltools.card import Score, Threshold
from tltools.data.dataset import load_dataset
from tltools.errors import DataError
from tltools.metrics import interval
from tltools.training.run import load_card, read_split


def inputs(workplace, models=None, dataset=None, *, tf32=False):
    return bench_inputs(
        models, dataset, tf32=tf32, run_dir=workplace / "runs", export_dir=workplace / "exports"
    )


def test_bench_measures_all_exports_and_their_run_on_its_validation_images(workplace, drawn):
    found = inputs(workplace)
    assert [(one.format, one.path) for one in found.candidates] == [
        ("eager", workplace / "runs" / "cnn"),
        ("onnx", workplace / "exports" / "cnn" / "cnn.fp32.onnx"),
        ("torchscript", workplace / "exports" / "cnn" / "cnn.fp32.pt"),
    ]
    assert {one.run for one in found.candidates} == {"cnn"}
    split = read_split(workplace / "runs" / "cnn")
    val = split[split["split"] == "val"]
    assert sorted(found.images) == sorted(Path(path) for path in val["path"])
    assert found.images == inputs(workplace).images  # in the same random order each time
    # Class folders are sorted: bright is 0, dark is 1.
    assert found.targets.tolist() == [["bright", "dark"].index(p.parent.name) for p in found.images]
    assert found.name == f"{drawn.name} (validation)"


def test_bench_uses_the_given_images_instead(workplace, drawn):
    dataset = load_dataset(drawn, purpose="evaluate")
    shutil.rmtree(workplace / "runs")
    found = inputs(workplace, dataset=dataset)
    assert [one.format for one in found.candidates] == ["onnx", "torchscript"]
    assert sorted(found.images) == sorted(Path(path) for path in dataset.frame["path"])
    # In random order, so that any first part has images of all classes.
    assert {path.parent.name for path in found.images[:8]} == {"bright", "dark"}


def test_of_data_with_splits_the_test_or_validation_images_are_measured(workplace, drawn):
    for splits, name in ((("train", "val"), "validation"), (("train", "val", "test"), "test")):
        dataset = load_dataset(drawn, purpose="evaluate")
        dataset.frame["split"] = [splits[i % len(splits)] for i in range(len(dataset.frame))]
        found = inputs(workplace, dataset=replace(dataset, split_rule="given"))
        assert sorted(found.images) == sorted(
            Path(path) for path in dataset.frame["path"][dataset.frame["split"] == splits[-1]]
        )
        assert found.name == f"{drawn.name} ({name})"


def test_images_that_models_were_trained_on_are_counted_once_for_all_of_the_same_data(
    workplace, drawn
):
    run = workplace / "runs" / "cnn"
    other = shutil.copytree(run, run.with_name("other"))
    card = msgspec.structs.replace(load_card(run), run="other")
    (other / "card.json").write_text(card.to_json())
    dataset = load_dataset(drawn, purpose="evaluate")
    split = read_split(run)["split"]
    (note,) = inputs(workplace, [run, other], dataset).notes
    assert note.startswith(
        f"cnn, other were trained on {(split == 'train').sum()} of these {len(split)} images, so "
        "their accuracy looks better than it is; leave out --data"
    )
    assert inputs(workplace).notes == ()  # its own validation images
    new = dataset.frame[(split == "val").to_numpy()]
    assert inputs(workplace, [run], replace(dataset, frame=new)).notes == ()


def test_it_is_said_if_the_training_images_are_not_known(workplace, drawn):
    dataset = load_dataset(drawn, purpose="evaluate")
    (workplace / "runs" / "cnn" / "split.csv").write_text("damaged")
    (note,) = inputs(workplace, dataset=dataset).notes
    assert "split.csv lacks the columns" in note
    assert note.endswith("so it is not known whether cnn was trained on these images")
    shutil.rmtree(workplace / "runs")
    (note,) = inputs(workplace, dataset=dataset).notes
    assert re.match(r"the run of .*cnn\.fp32\.onnx is not found, so it is not known", note)


def test_fp32_exports_are_also_measured_in_tf32_on_request(workplace):
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


def test_exports_of_a_run_share_the_operation_count_of_its_onnx_export(workplace):
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
    with pytest.raises(DataError, match=r"not in runs/.* with `dataset=`"):
        inputs(workplace)


def other_run(workplace, name, correct, fingerprint=None):
    """Copy the run under another name, with this many of 6 validation images right."""
    run = workplace / "runs" / "cnn"
    other = shutil.copytree(run, run.with_name(name))
    card = load_card(run)
    low, high = interval(correct, 6)
    score = Score(accuracy=correct / 6, low=low, high=high, correct=correct, total=6)
    data = msgspec.structs.replace(card.data, fingerprint=fingerprint or card.data.fingerprint)
    changed = msgspec.structs.replace(card, run=name, metrics={"val": score}, data=data)
    (other / "card.json").write_text(changed.to_json())
    return other


def test_a_run_is_measured_with_its_exports_unless_one_of_them_is_named(workplace):
    run, onnx = workplace / "runs" / "cnn", workplace / "exports" / "cnn" / "cnn.fp32.onnx"
    assert [one.format for one in inputs(workplace, [run]).candidates] == [
        "eager", "onnx", "torchscript",
    ]  # fmt: skip
    assert [one.format for one in inputs(workplace, [run, onnx]).candidates] == ["eager", "onnx"]
    _, _, old = retrained(workplace)
    found = inputs(workplace, [run])
    assert [one.format for one in found.candidates] == ["eager", "onnx"]
    assert found.notes == (f"exports left out, since an earlier training of cnn made it: {old}",)


def test_a_run_without_exports_is_measured_and_said_to_have_none(workplace):
    run = workplace / "runs" / "cnn"
    shutil.rmtree(workplace / "exports")
    found = inputs(workplace, [run])
    assert [one.format for one in found.candidates] == ["eager"]
    (note,) = found.notes
    assert note == (
        f"{run} has no export in {workplace / 'exports'}/, so only PyTorch is measured and nothing "
        f"is recommended; create one with tltools export {run}"
    )


def test_a_better_run_of_the_same_data_that_is_not_measured_is_named(workplace):
    run = workplace / "runs" / "cnn"
    worse, better = other_run(workplace, "worse", 3), other_run(workplace, "better", 5)
    other_run(workplace, "elsewhere", 6, fingerprint="f" * 64)
    card = load_card(run)
    score = load_card(worse).metrics["val"]
    (run / "card.json").write_text(msgspec.structs.replace(card, metrics={"val": score}).to_json())
    assert inputs(workplace, [run, worse]).unmeasured == (
        "Only cnn, worse were measured, not better, whose validation accuracy is higher (83.3% "
        f"against 50.0%): tltools bench {run} {worse} {better} compares them"
    )
    assert inputs(workplace, [run, better]).unmeasured == ""
    (better / "card.json").write_text("damaged")
    assert inputs(workplace, [run]).unmeasured == ""


def retrained(workplace):
    """Train the run anew, by its card, and export it as ONNX again."""
    run, export = workplace / "runs" / "cnn", workplace / "exports" / "cnn" / "cnn.fp32.onnx"
    for path, card in ((run / "card.json", load_card(run)), (export, read_artifact(export).card)):
        card = msgspec.structs.replace(card, created="2100-01-01T00:00:00+00:00")
        if path.suffix == ".json":
            path.write_text(card.to_json())
        else:
            set_card(path, card)
    return run, export, export.with_suffix(".pt")


def test_exports_of_an_earlier_training_of_the_run_are_left_out_and_named(workplace):
    _, _, old = retrained(workplace)
    found = inputs(workplace)
    assert [one.name for one in found.candidates] == ["cnn eager fp32", "cnn onnx fp32"]
    assert found.notes == (f"exports left out, since an earlier training of cnn made it: {old}",)


def test_an_export_of_an_earlier_training_that_is_named_is_not_compared_with_the_run(workplace):
    run, new, old = retrained(workplace)
    day = read_artifact(old).card.created[:19].replace("T", " ")
    groups = {run: "cnn", new: "cnn", old: f"cnn ({day})"}
    for models in ([run, new, old], [run, old], [new, old], [old, run]):
        found = inputs(workplace, models)
        # A row is compared with the eager model of the same run.
        assert {one.path: one.run for one in found.candidates} == {
            path: groups[path] for path in [run, *models]
        }
        assert next(one.name for one in found.candidates if one.path == old) == (
            f"cnn ({day}) torchscript fp32"
        )
        assert found.notes == (
            f"{old} is of an earlier training than {run}, and so not compared with it",
        )


def test_exports_of_several_trainings_whose_run_is_gone_are_compared_with_their_own(
    workplace, drawn
):
    run, new, old = retrained(workplace)
    shutil.rmtree(run)
    found = inputs(workplace, [new, old], load_dataset(drawn, purpose="evaluate"))
    assert len({one.run for one in found.candidates}) == 2
    assert f"{old} is of an earlier training than {new}, and so not compared with it" in found.notes


def test_a_run_matches_its_exports_after_a_threshold_is_chosen(workplace):
    path = workplace / "runs" / "cnn" / "card.json"
    shares = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 5, "total": 10}
    threshold = msgspec.convert(
        {
            "class_name": None, "value": 0.5, "figure": "precision", "at_least": 0.5,
            "images": "images", "num_images": 10, "precision": shares, "recall": None,
            "coverage": shares, "held_out_precision": None, "held_out_recall": None,
            "held_out_coverage": 0.5,
        },
        Threshold,
    )  # fmt: skip
    card = load_card(path.parent)
    path.write_text(msgspec.structs.replace(card, threshold=threshold).to_json())
    assert {one.run for one in inputs(workplace).candidates} == {"cnn"}
    assert next(one.format for one in inputs(workplace).candidates) == "eager"


def test_a_run_from_before_calibration_matches_its_exports(workplace):
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


@pytest.mark.parametrize("model", ["runs/cnn", "exports/cnn/cnn.fp32.onnx"])
def test_images_among_the_models_belong_to_an_option(model, workplace, drawn):
    (workplace / "labels.csv").write_text("image,label\n")
    for images in (drawn, "labels.csv"):
        ran = run_tltools("bench", model, images, cwd=workplace)
        right = f"tltools bench {model} --data {images}"
        said = f"error: {images} is not a model; labeled images go to --data: {right}\n"
        assert (ran.code, ran.err) == (2, said)


def test_two_files_with_the_same_name_in_the_tables_are_refused(workplace):
    export = workplace / "exports" / "cnn" / "cnn.fp32.onnx"
    copy = shutil.copy(export, workplace / "copy.onnx")
    with pytest.raises(DataError, match=r"are both called 'cnn onnx fp32': bench them"):
        inputs(workplace, [export, copy])


def test_models_trained_on_different_data_need_given_images(workplace, drawn):
    export = workplace / "exports" / "cnn" / "cnn.fp32.onnx"
    other = shutil.copy(export, workplace / "other.onnx")
    card = read_artifact(export).card
    data = msgspec.structs.replace(card.data, fingerprint="f" * 64)
    set_card(other, msgspec.structs.replace(card, run="other", data=data))
    with pytest.raises(DataError, match=r"trained on different data: .* with `dataset=`"):
        inputs(workplace, [export, other])
    dataset = load_dataset(drawn, purpose="evaluate")
    assert len(inputs(workplace, [export, other], dataset).candidates) == 3


def test_models_with_different_classes_are_not_compared(workplace, make_export):
    export = workplace / "exports" / "cnn" / "cnn.fp32.onnx"
    with pytest.raises(DataError, match=r"have different classes: bench them"):
        inputs(workplace, [export, make_export("colors")])


def test_images_of_an_unknown_class_are_refused(workplace, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "renamed")
    (tmp_path / "renamed" / "dark").rename(tmp_path / "renamed" / "night")
    dataset = load_dataset(tmp_path / "renamed", purpose="evaluate")
    with pytest.raises(DataError, match=r"do not know: night \(they know bright, dark\)"):
        inputs(workplace, dataset=dataset)


def test_missing_validation_images_are_named(workplace):
    split = workplace / "runs" / "cnn" / "split.csv"
    split.write_text(split.read_text().replace("/dark/", "/gone/"))
    with pytest.raises(
        DataError, match=r"3 validation images are missing .*, the first is .*/gone/"
    ):
        inputs(workplace)
