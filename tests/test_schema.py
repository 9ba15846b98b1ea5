"""All files of predictions have the same columns, and each reader takes each of them."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_tltools

from tltools.artifacts import open_predictor
from tltools.classify import Job, run_job
from tltools.classify.output_formats import output_format
from tltools.data.dataset import load_dataset
from tltools.evaluate import evaluate
from tltools.run_folder import (
    FoldPredictions,
    RunPredictions,
    read_folds,
    read_predictions,
    write_folds,
    write_predictions,
    write_scored,
)
from tltools.schema import classes_of, column_names

CLASSES = ("bright", "dark")
PART = RunPredictions(
    ("a.png", "b\r.png", "c,\udce9.png"),
    np.array([0, 1, 1]),
    np.array([[0.9, 0.1], [0.25, 0.75], [0.123456789, 0.876543211]]),
)


def header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return next(csv.reader(file))


def test_columns_name_their_classes():
    names = column_names(["error", "true", "a,b"])
    assert names == [
        "path", "label", "confidence", "prob_error", "prob_true", "prob_a,b", "error",
    ]  # fmt: skip
    assert classes_of(names) == classes_of([*names, "true", "split"]) == ["error", "true", "a,b"]
    assert classes_of([*names, "other"]) is None
    assert classes_of(["path", "split", "class", "prob_a"]) is None
    assert classes_of(["path", "label", "confidence", "error"]) is None


def test_every_writer_begins_with_the_columns_of_classify(onnx_path, images, tmp_path):
    run_job(Job(onnx_path, [images], tmp_path / "job.csv", device="cpu"))
    write_predictions(tmp_path, CLASSES, {"val": PART})
    write_scored(tmp_path / "scored.csv", CLASSES, PART)
    folds = FoldPredictions(
        paths=PART.paths, targets=PART.targets, folds=np.array([1, 2, 1]), probs=PART.probs
    )
    write_folds(tmp_path, CLASSES, folds)
    columns = column_names(CLASSES)
    assert header(tmp_path / "job.csv") == column_names(("red", "green", "blue"))
    assert header(tmp_path / "scored.csv") == [*columns, "true"]
    assert header(tmp_path / "predictions.csv") == [*columns, "true", "split"]
    assert header(tmp_path / "folds.csv") == [*columns, "true", "fold", "suspect"]


def test_what_a_run_wrote_is_read_again(tmp_path):
    write_predictions(tmp_path, CLASSES, {"val": PART, "test": PART})
    found = read_predictions(tmp_path, CLASSES)
    assert list(found) == ["val", "test"]
    assert found["test"].paths == PART.paths
    assert list(found["val"].targets) == [0, 1, 1]
    assert np.array_equal(found["val"].probs, PART.probs)


def test_predictions_of_a_run_are_read_like_those_of_a_job(tmp_path):
    part = RunPredictions(("a.png", "b.png", "c.png"), PART.targets, PART.probs)
    write_predictions(tmp_path, CLASSES, {"val": part})
    path = tmp_path / "predictions.csv"
    classes, rows = output_format(path).read(path)
    assert classes == list(CLASSES)
    found = [(row.path, row.label, row.error) for row in rows]
    assert found == [("a.png", "bright", None), ("b.png", "dark", None), ("c.png", "dark", None)]


def test_files_of_earlier_versions_can_be_read(tmp_path):
    """Their column of known labels is `class`, and they have no predicted one."""
    columns = {"path": ["a.png", "b.png"], "class": ["dark", "bright"]}
    probs = {"prob_bright": [0.25, 0.75], "prob_dark": [0.75, 0.25]}
    pd.DataFrame({**columns, "split": "val", **probs}).to_csv(
        tmp_path / "predictions.csv", index=False
    )
    pd.DataFrame({**columns, "fold": [1, 2], "suspect": ["", "1"], **probs}).to_csv(
        tmp_path / "folds.csv", index=False
    )
    found = read_predictions(tmp_path, CLASSES)["val"]
    assert (found.paths, list(found.targets)) == (("a.png", "b.png"), [1, 0])
    folds = read_folds(tmp_path, CLASSES)
    assert folds is not None
    assert list(folds.folds) == [1, 2]
    assert folds.probs.tolist() == [[0.25, 0.75], [0.75, 0.25]]


@pytest.mark.parametrize("mistakes", [False, True])
def test_evaluate_writes_its_predictions(mistakes, workplace, drawn):
    words = ["evaluate", "runs/cnn", drawn, "--device", "cpu", "-o", "scores"]
    ran = run_tltools(*words, *(["--mistakes"] if mistakes else []), cwd=workplace)
    assert ran.code == 0, ran
    name = "mistakes.csv" if mistakes else "predictions.csv"
    assert name in ran.err
    dataset = load_dataset(drawn, purpose="evaluate")
    result = evaluate(open_predictor(workplace / "runs/cnn", "cpu"), dataset)
    expected = {
        path: (result.classes[pred], result.classes[target])
        for path, pred, target in zip(result.paths, result.preds, result.targets, strict=True)
        if not mistakes or pred != target
    }
    with (workplace / "scores" / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: (row["label"], row["true"]) for row in rows} == expected
    assert all(
        float(row["confidence"]) == max(float(row["prob_bright"]), float(row["prob_dark"]))
        for row in rows
    )


def test_a_report_shows_predictions_of_an_evaluation(workplace, drawn):
    words = ("evaluate", "runs/cnn", drawn, "--device", "cpu", "-o", "scores")
    assert run_tltools(*words, cwd=workplace).code == 0
    for path in ("scores/predictions.csv", "runs/cnn/predictions.csv"):
        ran = run_tltools("report", path, "--output", "page.html", cwd=workplace)
        assert ran.code == 0, ran


def test_mistakes_need_a_folder(workplace, drawn):
    ran = run_tltools("evaluate", "runs/cnn", drawn, "--mistakes", cwd=workplace)
    assert ran.code == 2
    assert "--mistakes needs a folder to write to; add --output FOLDER" in ran.err
