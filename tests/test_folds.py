"""Cross-validation, and the labels that it finds suspicious."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Recorder, run_tltools
from test_fine_tuning import tune, weights  # noqa: F401 - fixtures

from tltools.cli.train import _tell_folds
from tltools.errors import ArtifactError, ConfigError, DataError
from tltools.run_folder import FOLDS, FoldPredictions, read_folds, write_folds
from tltools.training import TrainSetup, default_config, features, train_model
from tltools.training.folds import cross_validate


@pytest.fixture
def validate(drawn_dataset, tmp_path, weights):  # noqa: F811
    """Cross-validate the toy of the fine-tuning tests."""

    def run(num_folds=3, dataset=drawn_dataset, **changes):
        setup = TrainSetup(weights=str(weights), cache_dir=tmp_path / "cache", device="cpu")
        return cross_validate(dataset, default_config("toy", **changes), setup, num_folds)

    return run


def test_each_image_is_held_out_once(validate, drawn_dataset):
    found = validate()
    labeled = drawn_dataset.frame.query("split != 'test'")
    assert found.paths == tuple(labeled["path"])
    assert set(found.folds) == {1, 2, 3}
    np.testing.assert_allclose(found.probs.sum(axis=1), 1)
    classes = np.array(drawn_dataset.classes)
    assert list(classes[found.targets]) == list(labeled["class"])
    assert len(found.accuracies()) == 3
    mean, deviation = found.mean_and_deviation()
    assert mean == pytest.approx(np.mean(found.accuracies()))
    assert deviation == pytest.approx(np.std(found.accuracies(), ddof=1))


def test_the_same_seed_gives_the_same_folds(validate):
    first, again, other = validate(), validate(), validate(seed=14)
    np.testing.assert_array_equal(first.folds, again.folds)
    np.testing.assert_array_equal(first.probs, again.probs)
    assert not np.array_equal(first.folds, other.folds)


def test_identical_images_are_in_the_same_fold(validate, drawn_dataset):
    frame = drawn_dataset.frame
    hashes = list(frame["sha256"])
    rows = [row for row in range(len(frame)) if frame["class"][row] == frame["class"][0]][:2]
    hashes[rows[1]] = hashes[rows[0]]
    changed = frame.assign(sha256=hashes, group=hashes)
    found = validate(dataset=replace(drawn_dataset, frame=changed))
    assert found.folds[rows[0]] == found.folds[rows[1]]


def test_folds_share_the_outputs_of_frozen_layers(validate, monkeypatch):
    validate(fine_tune="last-block")
    monkeypatch.setattr(features, "run_images", lambda *_, **__: pytest.fail("computed again"))
    validate(num_folds=2, fine_tune="last-block")


def test_a_class_with_too_few_images_is_refused_with_the_number_that_works(validate, drawn_dataset):
    fewest = int(drawn_dataset.frame.groupby("class")["sha256"].nunique().min())
    with pytest.raises(DataError, match=f"too few for 100 folds; use `folds={fewest}` or fewer"):
        validate(num_folds=100)


def test_one_fold_is_refused(drawn_dataset, tmp_path):
    setup = TrainSetup(run_dir=tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="`folds=` must be at least 2, got 1"):
        train_model(drawn_dataset, default_config("cnn"), setup, folds=1)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------- suspects


def predictions(probs, targets):
    probs, targets = np.array(probs), np.array(targets)
    return FoldPredictions(
        paths=tuple(f"{row}.jpg" for row in range(len(targets))),
        targets=targets,
        folds=np.arange(len(targets)) % 2 + 1,
        probs=probs,
    )


SURE = [[0.9, 0.1]] * 20 + [[0.1, 0.9]] * 20
SURE_LABELS = [0] * 20 + [1] * 20


def test_suspects_are_those_that_another_class_claims_with_confidence():
    found = predictions([*SURE, [0.05, 0.95], [0.97, 0.03], [0.45, 0.55]], [*SURE_LABELS, 0, 1, 0])
    # 0.55 for the other class is less than what its own images have on average.
    assert list(found.suspects()) == [41, 40]


def test_good_labels_are_not_suspicious():
    assert len(predictions(SURE, SURE_LABELS).suspects()) == 0


def test_a_class_without_images_claims_none():
    probs = [[*row, 0.0] for row in SURE]
    found = predictions([*probs, [0.1, 0.0, 0.9]], [*SURE_LABELS, 0])
    assert len(found.suspects()) == 0


def test_predictions_that_do_not_beat_chance_suspect_nothing():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([1, 1], 40)
    found = predictions(probs, [0] * 30 + [1] * 10)
    assert not found.beats_chance()
    assert len(found.suspects()) == 0
    assert predictions(SURE, SURE_LABELS).beats_chance()


def test_models_that_doubt_more_than_a_quarter_of_the_labels_accuse_none():
    wrong = [[0.05, 0.95]] * 6 + [[0.95, 0.05]] * 6
    few = predictions([*SURE, *wrong], [*SURE_LABELS, *[0] * 6, *[1] * 6])
    assert len(few.suspects()) == len(few.doubted) == 12  # of 52
    more = wrong[:8]
    many = predictions([*SURE, *wrong, *more], [*SURE_LABELS, *[0] * 6, *[1] * 6, *[0] * 6, 1, 1])
    assert many.beats_chance()
    assert (len(many.suspects()), len(many.doubted)) == (0, 20)  # of 60
    _, verdict = told(many)
    assert verdict == (
        "runs/x: the folds' models (accuracy 66.7%) doubt 20 of 60 labels, too many to say which "
        "are wrong; a better model, or more images, would say it"
    )


def test_swapped_labels_are_found_and_no_others():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 200)
    probs = np.where(np.eye(2)[targets] > 0, 0.9, 0.1) + rng.uniform(-0.05, 0.05, (200, 2))
    probs /= probs.sum(axis=1, keepdims=True)
    swapped = rng.choice(200, 8, replace=False)
    labels = targets.copy()
    labels[swapped] = 1 - labels[swapped]
    found = predictions(probs, labels).suspects()
    assert set(found) <= set(swapped)
    assert len(found) >= 5  # the others are less sure than the average


# -------------------------------------------------------------------------------------- the file


def test_folds_are_read_as_they_were_written(tmp_path):
    found = predictions([*SURE, [0.95, 0.05]], [*SURE_LABELS, 1])
    write_folds(tmp_path, ["cat", "dog"], found)
    lines = (tmp_path / FOLDS).read_text().splitlines()
    assert lines[0] == "path,label,confidence,prob_cat,prob_dog,error,true,fold,suspect"
    assert lines[41] == "40.jpg,cat,0.95,0.95,0.05,,dog,1,1"
    again = read_folds(tmp_path, ["cat", "dog"])
    assert again.paths == found.paths
    for name in ("targets", "folds", "probs"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert read_folds(tmp_path / "elsewhere", ["cat", "dog"]) is None
    with pytest.raises(ArtifactError, match=r"folds\.csv cannot be read"):
        read_folds(tmp_path, ["cat", "bird"])


def test_train_says_what_cross_validation_found(drawn, tmp_path):
    done = run_tltools(
        *("train", drawn, "--model", "cnn", "--epochs", "1", "--folds", "2", "--json"),
        *("--device", "cpu"),
        cwd=tmp_path,
    )
    assert "2 folds: accuracy" in done.err
    assert (tmp_path / "runs" / "cnn" / FOLDS).is_file()
    assert '"fold_accuracies"' in done.out
    more = run_tltools(
        *("train", "--resume", "cnn", "--epochs", 2, "--json", "--device", "cpu"), cwd=tmp_path
    )
    assert "runs/cnn: the cross-validation of 1 epoch is removed" in more.err
    assert not (tmp_path / "runs" / "cnn" / FOLDS).exists()
    assert '"fold_accuracies": null' in more.out


def test_a_training_without_folds_has_none(tune):  # noqa: F811
    run = tune("none", progress=Recorder())
    assert read_folds(run.folder, run.card.classes) is None


def told(found):
    """Return what `tltools train` says about a cross-validation."""
    progress = Recorder()
    run = SimpleNamespace(folder=Path("runs/x"), card=SimpleNamespace(classes=("a", "b")))
    _tell_folds(run, found, progress)
    return progress.said


def test_it_is_told_that_no_label_looks_wrong():
    scores, verdict = told(predictions(SURE, SURE_LABELS))
    assert "folds: accuracy" in scores
    assert verdict.startswith("runs/x: no label looks wrong")
    assert "runs/x/folds.csv" in verdict


def test_models_no_better_than_chance_do_not_say_that_labels_are_right():
    said = told(predictions([[0.4, 0.6]] * 20, [0, 1] * 10))
    assert [("no label looks wrong" in one, "better than" in one) for one in said] == [
        (False, False),
        (False, True),
    ]
