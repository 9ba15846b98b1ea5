import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import Recorder, run_tltools

from tltools.card import Card, Preprocessing
from tltools.cli.evaluate import _tell_doubts
from tltools.data.dataset import load_dataset
from tltools.errors import ArtifactError, DataError
from tltools.evaluate import evaluate, predict
from tltools.runtime import load_predictor


class BrightnessPredictor:
    """Answers with the mean of each channel, and remembers the batches."""

    device = "cpu"

    def __init__(self, card: Card) -> None:
        self.card = card
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        self.batches.append(images.shape)
        return images.mean(axis=(1, 2)).astype(np.float32)


class AnswerPredictor(BrightnessPredictor):
    """Answers with the same row for each image."""

    def __init__(self, card: Card, *answer: float) -> None:
        super().__init__(card)
        self.answer = answer

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.tile(np.float32(self.answer), (len(images), 1))


@pytest.fixture
def dataset(images):
    return load_dataset(images, purpose="evaluate")


def test_classes_are_matched_by_name_in_the_cards_order(card, dataset):
    assert dataset.classes != card.classes  # else this test could not fail
    result = evaluate(BrightnessPredictor(card), dataset)
    assert result.classes == card.classes == ("red", "green", "blue")
    assert [card.classes[target] for target in result.targets] == list(dataset.frame["class"])
    assert (result.score.correct, result.score.total, result.num_images) == (30, 30, 30)
    assert result.confusion.tolist() == [[10, 0, 0], [0, 10, 0], [0, 0, 10]]
    assert result.roc_auc.value == 1.0
    assert result.split == "all"


def test_mistakes_are_counted_by_class(card, dataset):
    result = evaluate(AnswerPredictor(card, 0, 1, 0), dataset)
    assert result.score.accuracy == 10 / 30
    assert result.confusion.tolist() == [[0, 10, 0], [0, 10, 0], [0, 10, 0]]
    by_name = {row.name: row for row in result.per_class}
    assert (by_name["green"].precision, by_name["green"].recall) == (1 / 3, 1.0)
    assert (by_name["red"].precision, by_name["red"].recall) == (None, 0.0)
    assert result.roc_auc.value == 0.5


def test_a_real_export_agrees_with_the_definition(onnx_path, dataset):
    predictor = load_predictor(onnx_path, device="cpu")
    result = evaluate(predictor, dataset, batch_size=7)
    assert result.score.accuracy == 1.0
    np.testing.assert_array_equal(result.logits.argmax(axis=1), result.preds)
    assert result.paths == tuple(dataset.frame["path"])


@pytest.mark.parametrize("batch_size", [1, 7, 30, 100])
def test_batches_do_not_change_the_logits(card, dataset, batch_size):
    predictor = BrightnessPredictor(card)
    paths = [Path(path) for path in dataset.frame["path"]]
    logits = predict(predictor, paths, batch_size=batch_size)
    whole = predict(BrightnessPredictor(card), paths, batch_size=30)
    np.testing.assert_array_equal(logits, whole)
    assert (logits.shape, logits.dtype) == ((30, 3), np.float32)
    assert max(predictor.batches)[0] == min(batch_size, 30)
    assert sum(shape[0] for shape in predictor.batches) == 30
    size = card.preprocessing.size
    assert {shape[1:] for shape in predictor.batches} == {(size, size, 3)}


def test_the_cards_preprocessing_is_used(make_card, dataset):
    predictor = BrightnessPredictor(make_card(preprocessing=Preprocessing(size=16)))
    evaluate(predictor, dataset)
    assert {shape[1:] for shape in predictor.batches} == {(16, 16, 3)}


def test_data_may_lack_classes_of_the_model(card, images):
    for path in (images / "blue").iterdir():
        path.unlink()
    (images / "blue").rmdir()
    result = evaluate(BrightnessPredictor(card), load_dataset(images, purpose="evaluate"))
    assert result.score.total == result.score.correct == 20
    assert result.per_class[2].support == 0
    assert result.roc_auc.note == "without the classes that have no image (1)"


def test_data_of_one_class_has_an_accuracy_and_no_auc(card, images):
    for name in ("blue", "green"):
        (images / name).rename(images.parent / name)
    result = evaluate(BrightnessPredictor(card), load_dataset(images, purpose="evaluate"))
    assert result.score.accuracy == 1.0
    assert json.loads(result.to_json())["roc_auc"] == {
        "value": None,
        "note": "needs images of two classes",
    }


def numbered(images: Path) -> Path:
    csv = images.parent / "labels.csv"
    rows = [f"red/{n}.png,1.0" for n in range(10)] + [f"green/{n}.png,0.0" for n in range(10)]
    csv.write_text("\n".join(["image,label", *rows]))
    return csv


def test_numbers_are_never_matched_to_names_by_guessing(make_card, images):
    predictor = BrightnessPredictor(make_card(classes=("green", "red")))
    data = load_dataset(numbered(images), images=images, purpose="evaluate")
    with pytest.raises(
        DataError,
        match=r"does not know 0, 1: .* 0, 1, and the model has green, red; .*`class_names=`",
    ):
        evaluate(predictor, data)


def test_numeric_labels_can_be_named_with_class_names(card, images):
    data = load_dataset(
        numbered(images), images=images, purpose="evaluate", class_names=["green", "red"]
    )
    assert evaluate(BrightnessPredictor(card), data).score.accuracy == 1.0


def test_a_model_of_another_task_is_not_mended_by_renaming_classes(make_card, dataset):
    predictor = BrightnessPredictor(make_card(classes=("day", "night")))
    with pytest.raises(DataError, match="knows other classes, day, night, than the data has, blue"):
        evaluate(predictor, dataset)


def test_an_unknown_class_among_known_ones_is_an_error(make_card, dataset):
    predictor = BrightnessPredictor(make_card(classes=("red", "green", "violet")))
    with pytest.raises(DataError, match=r"does not know blue: the data has blue, green, red"):
        evaluate(predictor, dataset)


def test_a_class_that_is_written_differently_is_proposed(make_card, dataset):
    predictor = BrightnessPredictor(make_card(classes=("red", "green", "Blue_")))
    with pytest.raises(
        DataError, match=r"does not know blue \(blue: did you mean Blue_\?\): the data has"
    ):
        evaluate(predictor, dataset)


def test_swapped_arguments_are_refused_with_the_right_command(cnn_run, drawn, tmp_path):
    ran = run_tltools("evaluate", drawn, cnn_run, cwd=tmp_path)
    assert ran.code == 2
    right = f"tltools evaluate {cnn_run} {drawn}"
    assert ran.err == f"error: the model comes first, then the labeled images: {right}\n"


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("data cnn", "cnn data"),
        ("data runs/cnn", "runs/cnn data"),
        ("data", "runs/cnn data"),
        ("data data", "runs/cnn data"),
        ("data nowhere", "runs/cnn data"),
        ("data --target-recall 0.5", "runs/cnn data"),
        ("labels.csv", "runs/cnn labels.csv"),
    ],
)
def test_images_in_place_of_the_model_are_answered_with_the_whole_command(
    words, right, cnn_run, drawn, tmp_path
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cnn").symlink_to(cnn_run)
    (tmp_path / "data").symlink_to(drawn)
    for name in ("labels.csv", "cnn.csv"):
        (tmp_path / name).write_text("image,label\n")
    ran = run_tltools("evaluate", *words.split(), cwd=tmp_path)
    said = f"the model comes first, then the labeled images: tltools evaluate {right}\n"
    assert (ran.code, ran.err[-len(said) :]) == (2, said)


def test_without_the_only_run_a_name_stands_for_it(drawn, tmp_path):
    ran = run_tltools("evaluate", drawn, cwd=tmp_path)
    assert ran.err.endswith(f": tltools evaluate runs/NAME {drawn}\n")


def test_misclassified_images_have_a_next_command(cnn_run, drawn, tmp_path):
    rows = [f"{path},dark" for path in sorted(drawn.rglob("*.png"))]  # some are wrong
    (tmp_path / "l.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    words = ("evaluate", cnn_run, "l.csv", "--device", "cpu")
    *_, last = run_tltools(*words, cwd=tmp_path).err.splitlines()
    assert last.startswith(
        "Next: the same command with --output scores-cnn --mistakes, then tltools report "
        "scores-cnn/mistakes.csv -o mistakes.html to see the "
    )
    ran = run_tltools(*words, "--output", "scores", "--mistakes", cwd=tmp_path)
    *_, last = ran.err.splitlines()
    assert last.startswith("Next: tltools report scores/mistakes.csv -o mistakes.html to see the ")
    assert (tmp_path / "scores" / "mistakes.csv").exists()


def test_labels_that_are_swapped_are_told(card, images):
    red, blue = images / "red", images / "blue"
    red.rename(images / "x")
    blue.rename(red)
    (images / "x").rename(blue)
    result = evaluate(BrightnessPredictor(card), load_dataset(images, purpose="evaluate"))
    said = Recorder()
    _tell_doubts(result, card, said)
    assert any(
        "10 of 10 images labeled red are predicted as blue, and 10 of 10 labeled blue as red: the "
        "two labels may be swapped" in line
        for line in said.said
    )


def test_classes_without_images_are_told(cnn_run, drawn, tmp_path):
    rows = [f"{path},dark" for path in sorted((drawn / "dark").glob("*.png"))]
    (tmp_path / "l.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    ran = run_tltools("evaluate", cnn_run, "l.csv", "--device", "cpu", cwd=tmp_path)
    assert ran.code == 0, ran
    assert "no image of class bright among these, so recall and F1 of this class are" in ran.err
    (line,) = [line for line in ran.out.splitlines() if re.match(r"\W*bright .*-", line)]
    assert line.split()[-3:] == ["-", "-", "0"]


@pytest.mark.parametrize(
    ("split", "measured", "total"),
    [
        pytest.param(None, "val", 3, id="val rather than training images"),
        pytest.param("train", "train", 27, id="train"),
        pytest.param("all", "all", 30, id="all"),
    ],
)
def test_the_split_is_chosen_and_named(card, images, split, measured, total):
    data = load_dataset(images)
    assert Counter(data.frame["split"]) == {"train": 27, "val": 3}
    result = evaluate(BrightnessPredictor(card), data, split=split)
    assert (result.split, result.num_images) == (measured, total)
    expected = data.frame if split == "all" else data.part(measured)
    assert result.paths == tuple(expected["path"])


def test_a_split_without_images_is_an_error(card, dataset):
    with pytest.raises(DataError, match="has no val images; it has test"):
        evaluate(BrightnessPredictor(card), dataset, split="val")


def test_an_image_deleted_meanwhile_is_an_error(card, dataset, images):
    (images / "red" / "5.png").unlink()
    with pytest.raises(DataError, match=r"5\.png"):
        evaluate(BrightnessPredictor(card), dataset)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        pytest.param(
            (0, 1), r"shape \(30, 2\), but its card names 3 classes", id="too few classes"
        ),
        pytest.param((0, float("nan"), 0), "not finite for 30 of 30 images", id="nan"),
        pytest.param((0, float("inf"), 0), "not finite for 30 of 30 images", id="overflow"),
    ],
)
def test_invalid_logits_are_refused(card, dataset, answer, message):
    with pytest.raises(ArtifactError, match=message):
        evaluate(AnswerPredictor(card, *answer), dataset)


def test_json_contains_the_figures_and_no_array_per_image(card, dataset):
    result = evaluate(AnswerPredictor(card, 0, 1, 0), dataset)
    document = json.loads(result.to_json())
    assert document["accuracy"]["value"] == 10 / 30
    assert document["accuracy"]["total"] == document["num_images"] == 30
    assert document["confusion"] == [[0, 10, 0], [0, 10, 0], [0, 10, 0]]
    assert document["classes"] == ["red", "green", "blue"]
    assert document["per_class"][0] == {
        "name": "red",
        "precision": None,
        "recall": 0.0,
        "f1": 0.0,
        "support": 10,
    }
    assert document["seconds"] > 0
    assert not {"paths", "logits", "preds", "targets"} & set(document)
