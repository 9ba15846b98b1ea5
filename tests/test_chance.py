"""What is said where validation images are too few, or an accuracy may be chance."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Recorder, run_tltools

from tltools.cli.chance import tell_chance
from tltools.metrics import score
from tltools.run_folder import RunPredictions, write_predictions


def run_with(folder: Path, targets: list[int], num_right: int) -> SimpleNamespace:
    """Return a run of two classes that is right on its first validation images."""
    folder.mkdir()
    truth = np.array(targets)
    preds = np.where(np.arange(len(truth)) < num_right, truth, 1 - truth)
    names = tuple(f"{index}.png" for index in range(len(truth)))
    part = RunPredictions(names, truth, np.eye(2)[preds])
    write_predictions(folder, ("a", "b"), {"val": part})
    card = SimpleNamespace(classes=("a", "b"), metrics={"val": score(preds, truth)})
    return SimpleNamespace(folder=folder, card=card)


@pytest.mark.parametrize(
    ("targets", "num_right", "told"),
    [
        pytest.param([0, 1] * 6, 5, "41.7% (19.3% to 68.0%), 5/12, may be chance: always"
                     " choosing the largest class would get 50.0%", id="few"),
        pytest.param([0] * 80 + [1] * 20, 82, "82/100, may be chance: always choosing the"
                     " largest class would get 80.0%", id="unbalanced"),
        pytest.param([0, 1] * 10, 17, "20 validation images are few: the 95% interval of the"
                     " accuracy is 31 points wide", id="wide"),
        pytest.param([0, 1] * 50, 90, None, id="enough"),
    ],
)  # fmt: skip
def test_an_accuracy_that_may_be_chance_is_told(targets, num_right, told, tmp_path):
    recorder = Recorder()
    runs = [run_with(tmp_path / name, targets, num_right) for name in ("one", "two")]
    tell_chance(runs, recorder)
    is_chance = told is not None and "chance" in told
    assert len(recorder.said) == (0 if told is None else 2 if is_chance else 1)
    assert all(str(told) in text for text in recorder.said)
    assert all(text.endswith("all images: --folds 5") for text in recorder.said)


def test_inspect_counts_few_validation_images(drawn, tmp_path):
    found = json.loads(run_tltools("inspect", drawn, "--json", cwd=tmp_path).out)
    (note,) = [one for one in found["findings"] if one["kind"] == "few-val"]
    assert note["message"] == (
        "val has 2 images (bright 1, dark 1), too few to measure an accuracy well: 2 right ones "
        "would be 100.0% (34.2% to 100.0%); cross-validation measures it on all images: tltools "
        "train with --folds 5"
    )
    assert len(note["paths"]) == 2
