"""What the sections of a report say: which data and model they are of, and in which words."""

import json
from dataclasses import replace
from types import SimpleNamespace

from test_report import page_of, prediction, scored_file, write_csv

from tltools.card import DISTANCE_LEVELS, Distances, Proportion, Threshold
from tltools.classify.remembered import Reference, remember_inputs
from tltools.report import models
from tltools.report.blocks import Tile
from tltools.report.models import mistakes_gallery
from tltools.report.scored import read_labeled, scored_section
from tltools.report.sources import Sources

BESIDE = """{
    "data": "photos", "split": "val", "num_images": 4, "classes": ["red", "green"],
    "accuracy": {"value": 0.75, "low": 0.3, "high": 0.95, "correct": 3, "total": 4},
    "roc_auc": {"value": 0.9, "note": ""}, "per_class": [],
    "calibration": {"temperature": 1.0, "ece": 0.1, "ece_uncalibrated": 0.1}
}"""
"""An evaluation.json without the confusion matrix."""


def test_predictions_are_named_after_the_data_of_their_own_evaluation(tmp_path):
    path = scored_file(tmp_path)
    told: dict = json.loads(BESIDE) | {"confusion": [[1, 1], [0, 2]], "model": "cnn onnx fp32"}
    beside = tmp_path / "evaluation.json"
    beside.write_text(json.dumps(told))
    for file in (path, scored_file(tmp_path, only_mistakes=True)):
        scored = read_labeled(file)
        assert (scored.data, scored.split) == ("photos", "val")
        assert scored_section(scored).title in (
            f"Evaluation of cnn onnx fp32 on photos, val ({file})",
            f"Mistakes of cnn onnx fp32 in photos, val ({file})",
        )
        assert Sources(scored=[scored]).title() == "tltools report: photos"
    assert "photos, val: 4 images" in page_of(scored_section(read_labeled(path))).text
    for other in (told | {"confusion": [[2, 0], [0, 2]]}, told | {"classes": ["a", "b"]}, {}):
        beside.write_text(json.dumps(other))
        scored = read_labeled(path)
        assert scored_section(scored).title == f"Evaluation on {path}"
        assert f"{path}: 4 images" in page_of(scored_section(scored)).text


def test_a_job_names_its_model_and_images_if_they_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "tltools").mkdir(parents=True)
    path = write_csv(tmp_path / "job.csv", [prediction("a.png", 0.9)])
    (tmp_path / "photos").mkdir()
    distances = Distances(percentiles=(0.0,) * len(DISTANCE_LEVELS), num_images=9, beyond=())
    assert remember_inputs(
        path, [tmp_path / "photos"], Reference("ants", distances, 95.0), model="ants onnx int8"
    )
    text = page_of(*Sources(jobs=[path]).sections(None)).text
    assert "Model ants onnx int8" in text
    assert "Images from photos" in text
    assert str(tmp_path / "photos") not in text


def test_mistakes_and_correct_predictions_are_counted_only_if_there_are_any():
    tile = Tile(name="a", path=None, true="red", predicted="red", confidence=0.9)
    wrong = replace(tile, predicted="green")
    assert mistakes_gallery(iter([tile]), seen_by=None).note == (
        "No mistakes, 1 of 1 correct prediction."
    )
    for resize, words in (
        ("squash", "squashed to a square"),
        ("crop", "scaled, and cropped to a square"),
    ):
        note = mistakes_gallery(iter([tile]), seen_by=resize).note
        assert note.endswith(f"; {words}, as the model sees them.")
    assert mistakes_gallery(iter([wrong]), seen_by=None).note == (
        "1 of 1 mistake, no correct predictions."
    )


def test_a_smallest_confidence_is_described_in_a_sentence():
    share = Proportion(count=9, total=10, value=0.9, low=0.6, high=0.98)
    fields = {
        "value": 0.64, "class_name": None, "figure": "precision", "at_least": 0.9,
        "images": "validation images", "num_images": 12, "precision": share, "recall": None,
        "coverage": share, "held_out_precision": 0.9, "held_out_recall": None,
        "held_out_coverage": 0.8,
    }  # fmt: skip
    (line,) = models._threshold_lines(Threshold(**fields))
    assert line.startswith(
        "The minimum confidence is 0.64: labels below it are uncertain. It was chosen for a "
        "precision of at least 90% on 12 validation images: precision 90.0% ("
    )


def test_a_precision_without_layers_in_fp32_says_none():
    def cell(precision: str, *layers: str) -> str:
        return models.fp32_layers(SimpleNamespace(precision=precision, float_layers=layers))

    assert (cell("fp32"), cell("fp16"), cell("int8", "a", "b")) == ("all", "none", "2")
