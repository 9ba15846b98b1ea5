"""What is said where validation images are too few, or an accuracy may be chance."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import Recorder, run_tltools

from tltools.cli.chance import tell_chance
from tltools.metrics import score
from tltools.run_folder import RunPredictions, write_predictions, write_split


def run_with(folder: Path, targets: list[int], num_right: int) -> SimpleNamespace:
    """Return a run of two classes that is right on its first validation images."""
    folder.mkdir()
    truth = np.array(targets)
    preds = np.where(np.arange(len(truth)) < num_right, truth, 1 - truth)
    names = tuple(f"{index}.png" for index in range(len(truth)))
    part = RunPredictions(names, truth, np.eye(2)[preds])
    write_predictions(folder, ("a", "b"), {"val": part})
    labels = ["ab"[index] for index in truth]
    write_split(
        folder, pd.DataFrame({"path": names, "class": labels, "split": "val", "sha256": names})
    )
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
        pytest.param([0, 1] * 6, 12, "12 validation images are few: the 95% interval of the"
                     " accuracy is 24 points wide", id="few-and-all-right"),
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
    recorder.said.clear()
    tell_chance(runs, recorder, resumed=True)
    assert all(text.endswith("train a new run with --folds 5") for text in recorder.said)


def test_inspect_counts_few_validation_images(drawn, tmp_path):
    found = json.loads(run_tltools("inspect", drawn, "--json", cwd=tmp_path).out)
    (note,) = [one for one in found["findings"] if one["kind"] == "few-val"]
    assert note["message"] == (
        "val has 2 images (bright 1, dark 1), too few to measure an accuracy well: even 2 of 2 "
        "correct would be 100.0% (34.2% to 100.0%); cross-validation measures it on all images: "
        "tltools train DATA --folds 5"
    )
    assert len(note["paths"]) == 2


@pytest.mark.parametrize(
    ("targets", "remedy"),
    [([0] * 19 + [1], "; add images of b"), ([0] * 18 + [1] * 2, "all images: --folds 2")],
)
def test_cross_validation_is_proposed_only_where_the_classes_allow_it(targets, remedy, tmp_path):
    recorder = Recorder()
    tell_chance([run_with(tmp_path / "run", targets, 18)], recorder)
    (text,) = recorder.said
    assert text.endswith(remedy)


def test_inspect_of_a_class_with_one_image_says_to_add_images(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "data")
    for image in sorted((tmp_path / "data" / "dark").iterdir())[1:]:
        image.unlink()
    ran = run_tltools("inspect", "data", "--json", cwd=tmp_path)
    (note,) = [one for one in json.loads(ran.out)["findings"] if one["kind"] == "few-val"]
    assert note["message"].endswith("; add images of dark")
    assert ran.err.endswith("Next: add images of dark, then tltools train data\n")
