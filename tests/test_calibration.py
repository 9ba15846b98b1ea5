"""The temperature: how it is fitted, when it is kept, and how it changes predictions."""

import csv
import math
import re

import msgspec
import numpy as np
import pytest
from conftest import GAIN, run_tltools

from tltools.calibration import (
    MIN_IMAGES,
    fit_temperature,
    negative_log_likelihood,
)
from tltools.card import Confidence, card_from_json
from tltools.classify import Job, run_job
from tltools.errors import ArtifactError, ConfigError
from tltools.metrics import reliability, softmax


def drawn_from_its_own_probabilities(num, *, num_classes=3, sharpness=1.0, seed=0):
    """Calibrated logits, scaled by `sharpness`, which is the temperature that corrects them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num, num_classes)) * 2
    targets = np.array([rng.choice(num_classes, p=row) for row in softmax(logits)])
    return logits * sharpness, targets


@pytest.mark.parametrize("sharpness", [0.25, 0.5, 3.0, 8.0])
def test_the_temperature_undoes_a_scaling_of_the_logits(sharpness):
    logits, targets = drawn_from_its_own_probabilities(4000, sharpness=sharpness)
    found = fit_temperature(logits, targets)
    assert found.temperature == pytest.approx(sharpness, rel=0.1)
    assert found.note == ""
    assert found.num_images == 4000
    assert found.ece_after < found.ece_before / 2
    assert found.nll_after < found.nll_before
    calibrated = reliability(softmax(logits, temperature=found.temperature), targets).ece
    assert found.ece_after == pytest.approx(calibrated, abs=0.01)


def test_a_calibrated_model_keeps_temperature_1_and_the_card_says_why():
    """On few images, a fitted temperature does not always help the held-out ones."""
    kept, changed = [], []
    for seed in range(12):
        logits, targets = drawn_from_its_own_probabilities(60, seed=seed)
        found = fit_temperature(logits, targets)
        (kept if found.note else changed).append(found)
    for found in kept:
        assert found.temperature == 1
        assert (found.ece_after, found.nll_after) == (found.ece_before, found.nll_before)
        assert re.fullmatch(
            r"a temperature of \d+\.\d\d would (raise|leave) the .* of held-out images .*",
            found.note,
        )
    for found in changed:
        assert found.temperature != 1
        assert found.ece_after < found.ece_before
        assert found.nll_after < found.nll_before
    assert len(kept) >= 3


@pytest.mark.parametrize(
    ("num", "targets", "note"),
    [
        (0, [], "calibration needs at least 30 validation images, but there are 0"),
        (MIN_IMAGES - 1, None, f"calibration needs at least {MIN_IMAGES} validation images"),
        (MIN_IMAGES, "right", "all of the validation images get the right label"),
        (MIN_IMAGES, "wrong", "none of the validation images get the right label"),
    ],
)
def test_without_information_the_temperature_stays_1(num, targets, note):
    logits, drawn = drawn_from_its_own_probabilities(num, num_classes=2)
    if targets == "right":
        drawn = logits.argmax(axis=1)
    elif targets == "wrong":
        drawn = logits.argmin(axis=1)
    found = fit_temperature(logits, np.asarray(drawn, dtype=np.int64))
    assert (found.temperature, found.ece_after) == (1, found.ece_before)
    assert found.note.startswith(note)


def test_a_class_with_one_image_does_no_harm():
    logits, targets = drawn_from_its_own_probabilities(80, num_classes=2, sharpness=5)
    logits = np.column_stack([logits, np.full(80, -9.0)])
    targets[0] = 2
    assert fit_temperature(logits, targets).num_images == 80


def test_the_likelihood_follows_its_definition():
    logits, targets = drawn_from_its_own_probabilities(50)
    probs = softmax(logits, temperature=2.5)
    by_hand = -np.log(probs[np.arange(50), targets]).mean()
    found = negative_log_likelihood(logits, targets, temperature=2.5)
    assert found == pytest.approx(by_hand, rel=1e-12)
    assert math.isfinite(negative_log_likelihood(logits * 1e6, targets))


# ---------------------------------------------------------------------------------- reliability


def test_the_calibration_error_equals_a_hand_calculation():
    probs = np.array([[0.9, 0.1], [0.95, 0.05], [0.3, 0.7], [0.5, 0.5]])
    found = reliability(probs, np.array([0, 1, 1, 1]), num_bins=10)
    # (0.8, 0.9]: 0.9, right. (0.9, 1]: 0.95, wrong. (0.6, 0.7]: 0.7, right. (0.4, 0.5]: wrong.
    assert found.counts.tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 1, 1]
    assert found.ece == pytest.approx((0.1 + 0.95 + 0.3 + 0.5) / 4)
    assert np.isnan(found.accuracy[0])
    assert found.accuracy[[4, 6, 8, 9]].tolist() == [0, 1, 1, 0]
    assert found.confidence[[4, 6, 8, 9]] == pytest.approx([0.5, 0.7, 0.9, 0.95])


def test_a_confidence_of_1_falls_into_the_last_bin():
    found = reliability(np.array([[1.0, 0.0]]), np.array([0]))
    assert found.counts.tolist() == [0] * 14 + [1]
    assert found.ece == 0


@pytest.mark.parametrize("shape", [(0, 2), (3, 2)])
def test_mismatched_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="must be"):
        reliability(np.zeros(shape), np.zeros(0, dtype=np.int64))


# -------------------------------------------------------------------------------- in predictions


@pytest.fixture
def with_temperature(make_onnx, make_card, tmp_path):
    def make(temperature, **changes):
        card = make_card(confidence=Confidence(temperature=temperature), **changes)
        return make_onnx(tmp_path / f"at-{temperature}.onnx", card.to_json())

    return make


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_temperature_changes_confidence_and_no_label(with_temperature, images, tmp_path):
    rows = {}
    for temperature in (1.0, 4.0):
        output = tmp_path / f"{temperature}.csv"
        run_job(Job(with_temperature(temperature), [images], output, device="cpu"))
        rows[temperature] = rows_of(output)
    for plain, calibrated in zip(rows[1.0], rows[4.0], strict=True):
        assert plain["label"] == calibrated["label"]
        names = [name for name in plain if name.startswith("prob_")]
        probs = np.array([float(plain[name]) for name in names])
        expected = probs ** (1 / 4) / (probs ** (1 / 4)).sum()
        found = np.array([float(calibrated[name]) for name in names])
        np.testing.assert_allclose(found, expected, atol=2e-3)  # of six decimals
        assert float(calibrated["confidence"]) == found.max()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_label_below_min_confidence_is_uncertain(with_temperature, images, tmp_path, suffix):
    model = with_temperature(GAIN)  # confidences between 0.4 and 0.6
    plain, marked = tmp_path / f"plain{suffix}", tmp_path / f"marked{suffix}"
    run_job(Job(model, [images], plain, device="cpu"))
    import pandas as pd

    read = {".csv": pd.read_csv, ".jsonl": lambda path: pd.read_json(path, lines=True)}
    read = read.get(suffix, pd.read_parquet)
    expected = read(plain)
    threshold = float(expected["confidence"].median())
    summary = run_job(Job(model, [images], marked, device="cpu", min_confidence=threshold))
    found = read(marked)
    below = expected["confidence"] < threshold
    assert 0 < below.sum() < len(below)
    assert (found["label"] == expected["label"].mask(below, "uncertain")).all()
    others = [name for name in expected.columns if name != "label"]
    pd.testing.assert_frame_equal(found[others], expected[others])
    assert summary.num_uncertain == below.sum()
    assert sum(summary.counts.values()) + summary.num_uncertain == len(found)


def test_a_model_with_a_class_named_uncertain_is_refused(with_temperature, images, tmp_path):
    model = with_temperature(1.0, classes=("uncertain", "green", "red"))
    with pytest.raises(ConfigError, match="has a class named 'uncertain'"):
        run_job(Job(model, [images], tmp_path / "out.csv", device="cpu", min_confidence=0.5))
    assert not list(tmp_path.glob("out.csv*"))


def test_min_confidence_works_on_the_command_line(with_temperature, images, tmp_path):
    command = ("classify", images, "--model", with_temperature(GAIN), "--device", "cpu")
    ran = run_tltools(*command, "--min-confidence", "0.99", "--json", cwd=tmp_path)
    assert msgspec.json.decode(ran.out)["num_uncertain"] == 30
    assert {row["label"] for row in rows_of(tmp_path / "predictions.csv")} == {"uncertain"}
    assert run_tltools(*command, "--min-confidence", "1.5", cwd=tmp_path).code == 2


@pytest.mark.parametrize("temperature", ["0", "-1", "1e9"])
def test_a_card_with_an_impossible_temperature_is_refused(card, temperature):
    text = msgspec.structs.replace(card, confidence=Confidence(temperature=2.0)).to_json()
    with pytest.raises(ArtifactError, match="is out of range"):
        card_from_json(
            text.replace('"temperature": 2.0', f'"temperature": {temperature}'), where="x"
        )
