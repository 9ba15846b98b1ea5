"""Run folders: written, interrupted, resumed, reopened. Real networks, few drawn images."""

import errno
import json
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Recorder, features_of, make_exports, run_tltools
from PIL import Image
from safetensors.torch import load_file, save_file
from test_decisions import chosen

from tltools.backbones.cnn import CNN
from tltools.backbones.vgg16 import VGG16
from tltools.card import Preprocessing
from tltools.cli.train import SettingOptions, _tell_unfit
from tltools.data.dataset import load_dataset
from tltools.data.images import load_image
from tltools.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    ModelError,
    ParityError,
    TltoolsError,
)
from tltools.evaluate import predict
from tltools.graphs.onnx_file import write_module
from tltools.metrics import softmax
from tltools.progress import Silent
from tltools.run_folder import (
    CONFUSION,
    CURVES,
    HISTORY,
    PREDICTIONS,
    locked,
    read_folds,
    read_predictions,
    read_split,
)
from tltools.runs import delete_run, list_runs, plan_deletion
from tltools.training import (
    TrainSetup,
    decoded,
    default_config,
    default_configs,
    find_resumable,
    open_run,
    prepare,
    resume_run,
    train_model,
    train_models,
)
from tltools.training import features as features_module
from tltools.training.features import (
    FeatureCache,
    TorchBackbone,
    check_fp16,
    check_int8,
    choose_calibration,
    extract,
    gpu_batch_size,
)
from tltools.training.models import build_classifier
from tltools.training.pretrained import load_weights
from tltools.training.run import STATE, load_card, load_run, save_card
from tltools.training.train import _Training

NUM = 24
SMALL = Preprocessing(size=32)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noisy images, dark or bright: what a small network learns in a few steps."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(NUM):
        name = ("dark", "bright")[index % 2]
        (folder / name).mkdir(exist_ok=True)
        noise = rng.integers(0, 90, (64, 64, 3)) + (160 if name == "bright" else 0)
        Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def dataset(images):
    return load_dataset(images, val_fraction=0.25)


def train(dataset, tmp_path, model="cnn", progress=None, **changes):
    weights = str(changes.pop("weights", "imagenet"))
    changes = {"epochs": 3, "batch_size": 6, "lr": 1e-3, "image_size": 64} | changes
    return train_model(
        dataset,
        default_config(model, **changes),
        TrainSetup(
            weights=weights, run_dir=tmp_path / "runs", cache_dir=tmp_path / "cache", device="cpu"
        ),
        progress=progress or Silent(),
    )


class StopsAfter(Silent):
    """Presses Ctrl-C when so many epochs have been reported."""

    def __init__(self, epochs):
        self.left = epochs

    def say(self, message):
        if message.startswith("epoch"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    detail = say  # quick epochs are details


def weights_of(run):
    return load_file(run.folder / "checkpoint.safetensors")


def assert_same_weights(first, second):
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_run_folder_contains_everything_documented(dataset, tmp_path):
    run = train(dataset, tmp_path)
    assert {path.name for path in run.folder.iterdir()} == {
        "card.json",
        "checkpoint.safetensors",
        "confusion_matrix.png",
        "curves.png",
        "distance.safetensors",
        "history.csv",
        "plan.json",
        "predictions.csv",
        "split.csv",
        "state.pt",
    }
    history = pd.read_csv(run.folder / "history.csv")
    assert list(history["epoch"]) == [1, 2, 3]
    split = pd.read_csv(run.folder / "split.csv")
    assert (split["split"] == "val").sum() == len(dataset.part("val"))
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(run.folder / name) as image:
            assert min(image.size) > 200


def test_the_cards_accuracy_equals_that_of_the_saved_run(dataset, tmp_path):
    run = train(dataset, tmp_path)
    predictor = open_run(run.folder, device="cpu")
    for split in ("train", "val"):
        paths = [Path(path) for path in dataset.part(split)["path"]]
        right = predict(predictor, paths).argmax(axis=1) == dataset.targets(split)
        assert run.card.metrics[split].accuracy == pytest.approx(right.mean())
        assert run.card.metrics[split].total == len(paths)


def test_a_run_keeps_its_predictions_on_held_out_images(dataset, tmp_path):
    run = train(dataset, tmp_path)
    found = read_predictions(run.folder, run.card.classes)
    assert list(found) == ["val"]
    assert found["val"].paths == tuple(dataset.part("val")["path"])
    np.testing.assert_array_equal(found["val"].targets, dataset.targets("val"))
    paths = [Path(path) for path in found["val"].paths]
    logits = predict(open_run(run.folder, device="cpu"), paths)
    expected = softmax(logits, temperature=run.card.temperature)
    np.testing.assert_allclose(found["val"].probs, expected, atol=1e-5)


def test_predictions_that_contradict_the_run_are_refused(dataset, tmp_path):
    run = train(dataset, tmp_path)
    path = run.folder / "predictions.csv"
    name = run.card.classes[0]
    path.write_text(path.read_text().replace(f",{name},", ",no-such-class,"))
    with pytest.raises(ArtifactError, match=r"predictions\.csv cannot be read: .*train again"):
        read_predictions(run.folder, run.card.classes)
    path.unlink()
    assert read_predictions(run.folder, run.card.classes) == {}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(dataset, tmp_path):
    first, second = train(dataset, tmp_path), train(dataset, tmp_path)
    assert first.folder != second.folder
    assert_same_weights(first, second)
    other = train(dataset, tmp_path, seed=14)
    assert not torch.equal(weights_of(first)["head.weight"], weights_of(other)["head.weight"])


def test_images_are_decoded_once(dataset, tmp_path, monkeypatch):
    seen = []
    decode_batches = decoded.decode_batches

    def record(paths, **options):
        seen.extend(paths)
        return decode_batches(paths, **options)

    monkeypatch.setattr(decoded, "decode_batches", record)
    train(dataset, tmp_path, epochs=3)
    assert sorted(map(str, seen)) == sorted(dataset.frame["path"])


@pytest.mark.parametrize("augment", [False, True])
def test_images_mapped_from_a_file_give_the_same_weights(dataset, tmp_path, monkeypatch, augment):
    in_memory = train(dataset, tmp_path, augment="color" if augment else "none")
    monkeypatch.setattr(decoded, "available_memory", lambda: 0)
    assert_same_weights(in_memory, train(dataset, tmp_path, augment="color" if augment else "none"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_training_on_a_gpu_uses_strict_fp32_and_deterministic_kernels(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    train(dataset, tmp_path, epochs=1)
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.allow_tf32


def test_augmentation_changes_training_and_is_reproducible(dataset, tmp_path):
    plain = train(dataset, tmp_path)
    first = train(dataset, tmp_path, augment="color")
    assert_same_weights(first, train(dataset, tmp_path, augment="color"))
    assert not torch.equal(weights_of(plain)["head.weight"], weights_of(first)["head.weight"])


def test_resuming_after_ctrl_c_gives_the_same_run_as_without_it(dataset, tmp_path):
    whole = train(dataset, tmp_path, augment="color")
    stopped = train(dataset, tmp_path, augment="color", progress=StopsAfter(1))
    assert stopped.interrupted
    card = load_card(stopped.folder)
    assert card.training["epochs_done"] == 1
    assert open_run(stopped.folder, device="cpu").card == card  # usable as it is
    folder = find_resumable(tmp_path / "runs", ["cnn"], epochs=None)
    assert folder == stopped.folder
    resumed = resume_run(folder, TrainSetup(device="cpu"))
    assert not resumed.interrupted
    assert_same_weights(whole, resumed)
    assert list(pd.read_csv(folder / HISTORY)["epoch"]) == [1, 2, 3]
    with pytest.raises(ArtifactError, match="nothing to resume"):
        find_resumable(tmp_path / "runs", ["cnn"], epochs=None)


@pytest.mark.parametrize("stage", ["Decoding", "Training cnn"])
def test_ctrl_c_before_the_first_epoch_leaves_no_run(dataset, tmp_path, stage):
    class StopsAtOnce(Silent):
        def bar(self, description, total, unit="images", *, epochs=None):
            if description == stage:
                raise KeyboardInterrupt
            return super().bar(description, total, unit)

    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path, progress=StopsAtOnce())
    assert not (tmp_path / "runs").exists()
    assert list(tmp_path.glob("*/*")) == []


def test_a_killed_run_resumes_from_its_last_epoch(dataset, tmp_path):
    whole = train(dataset, tmp_path)
    killed = train(dataset, tmp_path, progress=StopsAfter(2))
    for name in ("card.json", "checkpoint.safetensors", "curves.png", "confusion_matrix.png"):
        (killed.folder / name).unlink()  # as kill -9 after the second epoch leaves it
    with pytest.raises(ArtifactError, match="not a finished run"):
        load_run(killed.folder)
    assert_same_weights(whole, resume_run(killed.folder, TrainSetup(device="cpu")))


def killed_at_once(dataset, tmp_path, name="killed"):
    """Return a run as kill -9 in its first epoch leaves it, beside a whole one."""
    whole = train(dataset, tmp_path)
    killed = whole.folder.with_name(name)
    killed.mkdir()
    for file in ("plan.json", "split.csv"):
        shutil.copy(whole.folder / file, killed)
    return whole, killed


def test_a_run_killed_in_its_first_epoch_begins_again(dataset, tmp_path):
    whole, killed = killed_at_once(dataset, tmp_path)
    assert [one.state for one in list_runs(tmp_path / "runs") if one.path == killed] == [
        "unfinished"
    ]
    with pytest.raises(ArtifactError, match=r"to finish it: tltools train --resume "):
        load_run(killed)
    assert find_resumable(tmp_path / "runs", epochs=None) == killed
    resumed = resume_run(killed, TrainSetup(device="cpu"))
    assert resumed.folder == killed
    assert_same_weights(whole, resumed)
    with pytest.raises(ArtifactError, match="nothing to resume"):
        find_resumable(tmp_path / "runs", epochs=None)


def test_ctrl_c_in_a_run_that_begins_again_leaves_it_resumable(dataset, tmp_path):
    _, killed = killed_at_once(dataset, tmp_path)

    class StopsAtOnce(Silent):
        def bar(self, description, total, unit="images", *, epochs=None):
            raise KeyboardInterrupt

    before = {path.name for path in killed.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        resume_run(killed, TrainSetup(device="cpu"), progress=StopsAtOnce())
    assert {path.name for path in killed.iterdir()} == before
    assert find_resumable(tmp_path / "runs", epochs=None) == killed


def test_a_run_that_another_process_trains_is_neither_resumed_nor_deleted(dataset, tmp_path):
    whole, killed = killed_at_once(dataset, tmp_path)

    def states():
        return {one.path: one.state for one in list_runs(tmp_path / "runs")}

    busy = re.escape(f"another process is training {killed}")
    with locked(killed):
        assert states() == {whole.folder: "finished", killed: "training"}
        with pytest.raises(ArtifactError, match=f"nothing to resume: {busy}, and no other run"):
            find_resumable(tmp_path / "runs", epochs=None)
        with pytest.raises(ConfigError, match=busy):
            resume_run(killed)
        with pytest.raises(ConfigError, match=busy):
            delete_run(plan_deletion(killed))
    assert states()[killed] == "unfinished"
    assert find_resumable(tmp_path / "runs", epochs=None) == killed


def test_a_run_is_locked_while_it_is_trained(dataset, tmp_path):
    seen = []

    class Looks(Silent):
        def bar(self, description, total, unit="images", *, epochs=None):
            if any((tmp_path / "runs").glob("*/plan.json")):
                seen.extend(one.state for one in list_runs(tmp_path / "runs"))
            return super().bar(description, total, unit, epochs=epochs)

    train(dataset, tmp_path, progress=Looks())
    assert "training" in seen
    assert [one.state for one in list_runs(tmp_path / "runs")] == ["finished"]


def test_a_run_is_not_resumed_on_images_that_have_changed(dataset, images, tmp_path):
    changed = tmp_path / "images"
    shutil.copytree(images, changed)
    run = train(load_dataset(changed, val_fraction=0.25), tmp_path, epochs=1)
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    path = next(changed.rglob("*.png"))
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(DataError, match=rf"{path} has changed since run cnn was begun; restore"):
        resume_run(run.folder, epochs=2)
    after = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyboardInterrupt()])
def test_nothing_of_an_earlier_checkpoint_describes_a_later_one(
    dataset, tmp_path, monkeypatch, error
):
    run = train(dataset, tmp_path, epochs=1)
    assert {PREDICTIONS, CONFUSION, CURVES} <= {path.name for path in run.folder.iterdir()}

    def fails(self):
        raise error

    monkeypatch.setattr(_Training, "_outputs", fails)
    told = Recorder()
    with pytest.raises(KeyboardInterrupt) if error.args == () else nullcontext():
        resume_run(run.folder, epochs=2, progress=told)
    assert not {PREDICTIONS, CONFUSION} & {path.name for path in run.folder.iterdir()}
    assert load_card(run.folder).metrics == {}
    if error.args:
        warned = next(line for line in told.said if "scoring failed" in line)
        assert warned.endswith(f"again with tltools train --resume {tmp_path / 'runs' / 'cnn'}")
    monkeypatch.undo()
    assert find_resumable(tmp_path / "runs", epochs=None) == run.folder
    assert resume_run(run.folder).card.metrics


def test_a_folder_of_runs_that_leads_nowhere_is_refused(dataset, tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "not mounted" / "runs")
    with pytest.raises(TltoolsError, match=r"runs is a link to .*, which does not exist; create"):
        train(dataset, tmp_path, epochs=1)


def test_a_run_beside_one_of_the_same_name_is_told(dataset, tmp_path):
    first, second = Recorder(), Recorder()
    folder = train(dataset, tmp_path, epochs=1, progress=first).folder
    again = train(dataset, tmp_path, epochs=1, progress=second).folder
    assert not any(text.startswith("New run") for text in first.said)
    assert f"New run: {again} ({folder} exists)" in second.said


def test_no_hint_costs_a_training(dataset, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr("tltools.training.train.suggest_fine_tuning", fails)
    assert train(dataset, tmp_path, epochs=1).card.metrics


def test_a_damaged_plan_without_an_epoch_does_not_stop_the_search(dataset, tmp_path):
    _, killed = killed_at_once(dataset, tmp_path)
    foreign = killed.with_name("foreign")
    foreign.mkdir()
    (foreign / "plan.json").write_text('{"a": 1}')
    assert find_resumable(tmp_path / "runs", epochs=None) == killed


def test_a_finished_run_can_be_trained_for_more_epochs(dataset, tmp_path):
    run = train(dataset, tmp_path, epochs=1)
    longer = resume_run(find_resumable(tmp_path / "runs", ["cnn"], epochs=3), epochs=3)
    assert longer.folder == run.folder
    assert_same_weights(train(dataset, tmp_path, epochs=3), longer)
    with pytest.raises(ConfigError, match=r"was begun with 3 epochs, .*; use `epochs=3` or more"):
        resume_run(run.folder, epochs=2)


def test_a_run_stopped_while_it_is_extended_is_unfinished(dataset, tmp_path):
    whole = train(dataset, tmp_path, epochs=3)
    run = train(dataset, tmp_path, epochs=1)
    card = (run.folder / "card.json").read_bytes()
    stopped = resume_run(run.folder, epochs=3, progress=StopsAfter(1))
    assert stopped.interrupted
    assert find_resumable(tmp_path / "runs", epochs=None) == run.folder
    (run.folder / "card.json").write_bytes(card)  # as kill -9 before the last epoch leaves it
    assert find_resumable(tmp_path / "runs", epochs=None) == run.folder
    states = {one.path: one.state for one in list_runs(tmp_path / "runs")}
    assert states == {whole.folder: "finished", run.folder: "interrupted"}
    resumed = resume_run(run.folder)
    assert not resumed.interrupted
    assert_same_weights(whole, resumed)


def test_several_runs_that_could_be_extended_are_named(dataset, tmp_path):
    run = train(dataset, tmp_path, epochs=1).folder
    other = shutil.copytree(run, run.with_name("other"))
    with pytest.raises(ConfigError) as raised:
        find_resumable(tmp_path / "runs", epochs=2)
    for folder in (run, other):
        assert f"tltools train --resume {folder} `epochs=2`" in str(raised.value)
    plan = (other / "plan.json").read_text()
    plan = plan.replace('"model": "cnn"', '"model": "vgg16"').replace("linear", "pooled")
    (other / "plan.json").write_text(plan)
    assert find_resumable(tmp_path / "runs", ["cnn"], epochs=2) == run
    with pytest.raises(ArtifactError, match="nothing to resume") as raised:
        find_resumable(tmp_path / "runs", epochs=None)
    assert f"{run} has 1" in str(raised.value)
    assert f"{other} has 1" in str(raised.value)


def diverges(monkeypatch, at_epoch):
    """Make the training loss of an epoch NaN."""
    from tltools.training.fit import Step

    step = Step.__call__
    seen = []

    def spoilt(self, model, inputs, target):
        loss, correct = step(self, model, inputs, target)
        seen.append(len(target))
        return (loss * float("nan") if sum(seen) > 18 * (at_epoch - 1) else loss), correct

    monkeypatch.setattr(Step, "__call__", spoilt)


def test_a_training_that_diverges_keeps_the_epochs_before(dataset, tmp_path, monkeypatch):
    diverges(monkeypatch, at_epoch=3)
    progress = Recorder()
    run = train(dataset, tmp_path, progress=progress, epochs=5)
    assert (len(run.history), run.interrupted) == (2, False)
    assert run.card.training["epochs_done"] == 2
    (said,) = (one for one in progress.said if "diverged" in one)
    assert "in epoch 3, the training loss is nan; use a lower learning rate" in said
    state = weights_of(run)
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_training_that_diverges_at_once_leaves_nothing(dataset, tmp_path, monkeypatch):
    diverges(monkeypatch, at_epoch=1)
    with pytest.raises(ModelError, match=r"in epoch 1, the training loss is nan; use a lower"):
        train(dataset, tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("step", "failed", "remedy"),
    [
        ("predict_source", "scoring", "tltools train --resume"),
        ("fit_temperature", "", ""),
        ("write_predictions", "writing predictions.csv", "tltools evaluate"),
        ("plot_confusion", "drawing confusion_matrix.png", "tltools evaluate"),
        ("plot_history", "drawing curves.png", "tltools report"),
    ],
)
@pytest.mark.parametrize("error", [MemoryError(), ValueError("a few classes\nonly")])
def test_nothing_after_the_last_epoch_costs_the_training(
    dataset, tmp_path, monkeypatch, step, failed, remedy, error
):
    from tltools.training import train as module

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        progress = Recorder()
        run = train(dataset, tmp_path, progress=progress, epochs=1)
    load_run(run.folder)
    said = [one for one in progress.said if f"{failed} failed: " in one]
    assert len(said) == bool(failed)
    assert all(remedy in one and str(run.folder) in one for one in said)
    assert bool(run.card.metrics) == (failed != "scoring")
    if step == "fit_temperature":
        assert run.card.confidence.note.startswith("it could not be fitted: ")


def test_a_run_that_was_not_scored_is_scored_when_it_is_resumed(dataset, tmp_path, monkeypatch):
    from tltools.training import train as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "fit_temperature", lambda *_: 1 / 0)
        run = train(dataset, tmp_path, epochs=1)
    assert load_card(run.folder).metrics == {}
    found = find_resumable(tmp_path / "runs", ["cnn"], epochs=None)
    assert found == run.folder
    again = resume_run(found, TrainSetup(device="cpu"))
    assert again.card.metrics["val"].total == len(dataset.part("val"))
    assert_same_weights(run, again)


def test_a_run_keeps_the_epoch_that_it_names(dataset, tmp_path):
    progress = Recorder()
    run = train(dataset, tmp_path, progress=progress, epochs=3)
    best = min(run.history, key=lambda stats: stats.val_loss).epoch
    assert f"Kept epoch {best} of 3 (lowest validation loss)" in progress.said
    assert run.card.training["kept_epoch"] == best


@pytest.mark.parametrize("name", [b"caf\xe9.png", b'a"b\r\n,c.png'])
def test_a_file_name_may_hold_any_bytes(images, tmp_path, name):
    """In the tables of a run, in its exports and in a report."""
    folder = shutil.copytree(images, tmp_path / "data")
    odd = folder / "dark" / os.fsdecode(name)
    (folder / "dark" / "0.png").rename(odd)
    data = load_dataset(folder, val_fraction=0.25, seed=next(_seeds_with(odd, folder)))
    config = default_config("cnn", epochs=1, batch_size=6)
    setup = TrainSetup(run_dir=tmp_path / "runs", device="cpu")
    run = train_model(data, config, setup, folds=2)
    assert str(odd) in read_predictions(run.folder, data.classes)["val"].paths
    assert str(odd) in read_folds(run.folder, data.classes).paths
    assert sorted(read_split(run.folder)["path"]) == sorted(data.frame["path"])
    (made,) = make_exports(run.folder, ["onnx"], tmp_path / "exports", device="cpu")
    assert made.parity.num_images == len(data.part("val"))
    ran = run_tltools("report", "runs/cnn", "--images", folder, cwd=tmp_path)
    assert ran.code == 0, ran.err


def _seeds_with(path, folder):
    """Seeds of splits in which an image is in the validation set."""
    for seed in range(100):
        data = load_dataset(folder, val_fraction=0.25, seed=seed)
        if str(path) in set(data.part("val")["path"]):
            yield seed


def test_resume_names_the_missing_images(dataset, tmp_path):
    run = train(dataset, tmp_path, epochs=1)
    path = run.folder / "split.csv"
    path.write_text(path.read_text().replace("dark", "gone"))
    with pytest.raises(DataError, match=r"can no longer be found \(first .*gone"):
        resume_run(run.folder, epochs=2)


@pytest.mark.parametrize("name", ["plan.json", STATE, "card.json"])
def test_a_damaged_run_is_a_one_line_error(name, dataset, tmp_path):
    run = train(dataset, tmp_path, epochs=1)
    (run.folder / name).write_bytes(b"\x00 not this")
    with pytest.raises(ArtifactError) as caught:
        load_run(run.folder) if name == "card.json" else resume_run(run.folder, epochs=2)
    assert str(run.folder) in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(dataset, tmp_path):
    run = train(dataset, tmp_path, epochs=1)
    save_file({"head.weight": torch.zeros(2, 2)}, run.folder / "checkpoint.safetensors")
    with pytest.raises(ArtifactError, match="does not match its card"):
        load_run(run.folder)


def test_no_checkpoint_contains_a_pickle(dataset, tmp_path):
    run = train(dataset, tmp_path, epochs=1)
    header = (run.folder / "checkpoint.safetensors").read_bytes()[8:9]
    assert header == b"{"
    torch.load(run.folder / STATE, weights_only=True)  # raises where it would need code


# ---------------------------------------------------------------------------------- vgg16


def test_vgg16_trains_on_cached_features_and_opens_again(dataset, tmp_path, vgg16_file):
    run = train(dataset, tmp_path, "vgg16", weights=vgg16_file, epochs=20)
    assert (run.card.head, run.card.weights.source) == ("pooled", vgg16_file.name)
    predictor = open_run(run.folder, device="cpu")
    paths = [Path(path) for path in dataset.part("val")["path"]]
    logits = predict(predictor, paths)
    # The head was trained on scaled features, and takes raw ones now.
    right = (logits.argmax(axis=1) == dataset.targets("val")).mean()
    assert run.card.metrics["val"].accuracy == pytest.approx(right)
    assert right == 1.0


def test_a_run_is_not_resumed_with_other_weights(dataset, tmp_path, vgg16_file):
    weights = tmp_path / "weights.safetensors"
    shutil.copy(vgg16_file, weights)
    run = train(dataset, tmp_path, "vgg16", weights=weights, epochs=1)
    save_file({name: 2 * one for name, one in load_file(weights).items()}, weights)
    with pytest.raises(ModelError, match=rf"{weights} are not those that run vgg16 was begun with"):
        resume_run(run.folder, TrainSetup(device="cpu"), epochs=2)


@pytest.mark.parametrize("how", ["with the project", "elsewhere"])
def test_weights_that_were_moved_are_found_or_can_be_named(
    how, dataset, tmp_path, vgg16_file, monkeypatch
):
    project = tmp_path / "project"
    project.mkdir()
    weights = project / "weights.safetensors"
    shutil.copy(vgg16_file, weights)
    run = train(dataset, project, "vgg16", weights=weights, epochs=1)
    moved = project.rename(tmp_path / "moved")
    folder = moved / "runs" / run.folder.name
    named = TrainSetup(device="cpu", cache_dir=moved / "cache")
    if how == "elsewhere":
        new = (moved / "weights.safetensors").rename(tmp_path / "other.safetensors")
        with pytest.raises(ModelError, match=f"{weights}, the weights of {folder}, is no longer"):
            resume_run(folder, named, epochs=2)
        monkeypatch.chdir(moved)
        words = ("--resume", "vgg16", "--epochs", "2", "--device", "cpu", "--cache-dir", "cache")
        ran = run_tltools("train", *words, "--weights", new, cwd=moved)
        assert ran.code == 0, ran
    else:
        resume_run(folder, named, epochs=2)
    monkeypatch.chdir(tmp_path)
    assert resume_run(folder, named, epochs=3).card.training["epochs_done"] == 3


def test_exports_of_a_resumed_run_stay_current_if_its_weights_are_the_same(dataset, tmp_path):
    run = train(dataset, tmp_path, epochs=1)
    state = torch.load(run.folder / STATE, weights_only=True)
    torch.save({**state, "best_val_loss": -1.0}, run.folder / STATE)  # no later epoch is better
    threshold = chosen(value=0.7, class_name=None)
    early = "2026-01-02T03:04:05+00:00"
    card = load_card(run.folder)
    before = msgspec.structs.replace(card, threshold=threshold, created=early)
    save_card(run.folder, before)
    after = resume_run(run.folder, TrainSetup(device="cpu"), epochs=2).card
    assert after.training["epochs_done"] == 2
    assert (after.training["kept_epoch"], after.created) == (1, early)
    assert after.threshold == threshold
    changed = train(dataset, tmp_path, epochs=1)
    save_card(changed.folder, msgspec.structs.replace(changed.card, created=early))
    later = resume_run(changed.folder, TrainSetup(device="cpu"), epochs=4).card
    assert later.training["kept_epoch"] > 1
    assert later.created > early


def test_features_are_computed_once(dataset, tmp_path, vgg16_file, monkeypatch):
    first = train(dataset, tmp_path, "vgg16", weights=vgg16_file)
    from tltools.training import features

    def forbidden(*_, **__):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(features, "decode_batches", forbidden)
    monkeypatch.setattr(features, "run_images", forbidden)
    assert_same_weights(first, train(dataset, tmp_path, "vgg16", weights=vgg16_file))


def test_the_layers_are_exported_once_for_all_parts_and_views(
    dataset, tmp_path, vgg16_file, monkeypatch
):
    written = []

    def counted(*args, **options):
        written.append(args)
        write_module(*args, **options)

    monkeypatch.setattr(features_module, "write_module", counted)
    changes = {"augment": "flip", "epochs": 1, "feature_precision": "int8"}
    train(dataset, tmp_path, "vgg16", weights=vgg16_file, **changes)
    assert len(written) == 1
    train(dataset, tmp_path, "vgg16", weights=vgg16_file, **changes)  # all cached
    assert len(written) == 1


def test_layers_are_neither_exported_nor_calibrated_for_few_images(
    dataset, tmp_path, vgg16_file, monkeypatch
):
    def forbidden(*_, **__):
        raise AssertionError("the layers were exported")

    with monkeypatch.context() as patched:
        patched.setattr(features_module, "write_module", forbidden)
        few = train(dataset, tmp_path, "vgg16", weights=vgg16_file, epochs=5)
    monkeypatch.setattr(features_module, "FEW_IMAGES", 1)
    settings = {"weights": vgg16_file, "epochs": 5, "feature_precision": "fp32"}
    many = train(dataset, tmp_path, "vgg16", **settings)
    assert {one.card.training["features_in"] for one in (few, many)} == {"fp32"}
    first, second = weights_of(few), weights_of(many)
    torch.testing.assert_close(first["head.weight"], second["head.weight"], rtol=1e-3, atol=1e-4)


def test_interrupted_extraction_keeps_what_it_computed(tmp_path, dataset, monkeypatch):
    from tltools.training import features
    from tltools.training.models import Classifier

    preprocessing = Preprocessing(size=8)
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    model = Classifier(backbone, torch.nn.Linear(4, 2), preprocessing)
    frame = dataset.frame
    cache = FeatureCache(tmp_path, weights_sha256="0", head="pooled", preprocessing=preprocessing)
    arguments = {
        "model": model,
        "paths": [Path(path) for path in frame["path"]],
        "hashes": list(frame["sha256"]),
        "preprocessing": preprocessing,
        "cache": cache,
        "device": torch.device("cpu"),
    }

    class StopsInTheMiddle(Silent):
        def bar(self, description, total, unit="images", *, epochs=None):
            class Bar:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    return None

                def advance(self, amount=1, note=""):
                    raise KeyboardInterrupt

            return Bar()

    monkeypatch.setattr(features, "BATCH_SIZE", 10)
    with pytest.raises(KeyboardInterrupt):
        features_of(**arguments, progress=StopsInTheMiddle())
    assert len(cache.load()) == 10
    result = features_of(**arguments)
    with torch.inference_mode():
        from tltools.data.images import load_image

        images = [
            load_image(path, Preprocessing(size=8, resize="squash")) for path in arguments["paths"]
        ]
        expected = model.features(torch.from_numpy(np.stack(images))).numpy()
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "fp32", "auto"])
def test_the_head_trains_on_the_chosen_features_and_is_evaluated_on_fp32(
    dataset, tmp_path, vgg16_file, monkeypatch, precision
):
    seen = []

    def record(paths, hashes, settings, *, progress):
        rows = extract(paths, hashes, settings, progress=progress)
        features = torch.stack(rows).numpy()
        seen.append((set(paths), bool(settings.calibration), features, settings.model))
        return rows

    monkeypatch.setattr(prepare, "extract", record)
    run = train(dataset, tmp_path, "vgg16", weights=vgg16_file, feature_precision=precision)
    assert run.card.training["feature_precision"] == precision
    assert run.card.training["features_in"] == ("int8" if precision == "int8" else "fp32")
    assert run.card.training.get("features_float_layers") == (0 if precision == "int8" else None)
    parts = [{Path(path) for path in dataset.part(split)["path"]} for split in ("train", "val")]
    assert [paths for paths, *_ in seen] == parts
    assert [reduced for _, reduced, *_ in seen] == [precision == "int8", False]
    for (_, reduced, features, model), split in zip(seen, ("train", "val"), strict=True):
        images = [
            load_image(path, Preprocessing(size=64, resize=default_config("vgg16").resize))
            for path in dataset.part(split)["path"]
        ]
        with torch.inference_mode():
            expected = model.eval().features(torch.from_numpy(np.stack(images))).numpy()
        error = np.linalg.norm(features - expected, axis=1) / np.linalg.norm(expected, axis=1)
        if reduced:
            assert 1e-4 < error.max() < 0.1
        else:
            assert error.max() < 1e-4


@pytest.fixture
def int8_features(dataset, tmp_path):
    """Compute int8 features of a small network; each call may say something."""
    preprocessing = Preprocessing(size=32)
    torch.manual_seed(0)
    model = build_classifier(CNN, 2, preprocessing).eval()
    paths, hashes = map(Path, dataset.frame["path"]), list(dataset.frame["sha256"])
    calibration = choose_calibration(list(paths), hashes)
    cache = FeatureCache(
        tmp_path,
        weights_sha256="0",
        head="pooled",
        preprocessing=preprocessing,
        calibration=list(calibration),
    )

    def compute(progress):
        return features_of(
            [Path(path) for path in dataset.frame["path"]],
            hashes,
            model=model,
            preprocessing=preprocessing,
            cache=cache,
            device=torch.device("cpu"),
            calibration=list(calibration.values()),
            progress=progress,
        )

    return compute, cache


def test_an_int8_backbone_is_built_once_and_cached_with_its_features(int8_features):
    compute, cache = int8_features
    first, second = Recorder(), Recorder()
    features = compute(first)
    assert first.bars == ["Calibrating int8 features", "Extracting features"]
    for shard in cache.folder.glob("*.safetensors"):
        shard.unlink()  # as if the extraction had been stopped before its first shard
    np.testing.assert_array_equal(compute(second), features)
    assert second.bars == ["Extracting features"]


def test_inaccurate_int8_layers_stay_float(int8_features, monkeypatch):
    from tltools.training import features

    monkeypatch.setattr(features, "MAX_FEATURE_ERROR", 1e-6)
    compute, _ = int8_features
    progress = Recorder()
    compute(progress)
    tries = [line for line in progress.said if line.startswith("int8: int8 features differ")]
    assert re.search(r"%, more than 0%; retrying with (\d+) of \1 layers kept in fp32", tries[-1])


def test_int8_features_without_an_int8_layer_are_refused_where_int8_was_asked_for(
    int8_features, monkeypatch
):
    compute, cache = int8_features
    compute(Recorder())
    usual = check_int8(cache.backbone, "int8")
    assert usual.num_int8 > 0 == usual.num_float
    cache.backbone.unlink()
    for shard in cache.folder.glob("*.safetensors"):
        shard.unlink()
    monkeypatch.setattr(features_module, "MAX_FEATURE_ERROR", 1e-6)
    compute(Recorder())
    assert check_int8(cache.backbone, "auto") == (0, usual.num_int8)
    with pytest.raises(ParityError, match=r"with any of the \d+ layers .*`feature_precision=fp32`"):
        check_int8(cache.backbone, "int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_precision": "fp16"}, "needs a local GPU"),
        ({"feature_precision": "int8", "fine_tune": "all"}, "has no effect with `fine_tune=all`"),
    ],
    ids=["fp16 on the CPU", "no frozen features"],
)
def test_a_precision_that_no_features_get_is_refused_before_anything_is_trained(
    dataset, tmp_path, changes, message
):
    configs = [default_config("cnn"), default_config("vgg16", **changes)]
    setup = TrainSetup(run_dir=tmp_path / "runs", cache_dir=tmp_path / "cache", device="cpu")
    with pytest.raises(ConfigError, match=message):
        next(train_models(dataset, configs, setup=setup))
    assert not list(tmp_path.rglob("*.json"))


def test_a_setting_that_fits_none_of_several_models_is_refused(images, tmp_path):
    done = run_tltools("train", images, "--model", "all", "--backbone-lr", "0.1", cwd=tmp_path)
    assert done.code == 2
    assert "--backbone-lr applies to none of the models to train; leave it out" in done.err


def test_weights_for_a_model_that_takes_none_are_refused(images, vgg16_file, tmp_path):
    for weights in (vgg16_file, "gone.pth"):
        words = ("train", images, "--model", "cnn", "--weights", weights)
        done = run_tltools(*words, cwd=tmp_path)
        assert done.code == 2
        assert "--weights applies to none of the models to train; leave it out" in done.err
    assert not list(tmp_path.iterdir())


def test_a_setting_that_does_not_fit_one_of_several_models_is_told():
    progress = Recorder()
    configs = default_configs(["cnn", "vgg16"], head="pooled", epochs=3)
    _tell_unfit(configs, SettingOptions(head="pooled", epochs=3), progress)
    assert progress.said == ["cnn: `head=` does not apply"]


def test_a_model_too_large_for_the_memory_is_refused_before_it_is_trained(
    dataset, tmp_path, monkeypatch
):
    weights = build_classifier(CNN, 2, SMALL).parameters()
    needed = 3 * sum(one.nbytes for one in weights)
    monkeypatch.setattr("tltools.training.prepare.available_memory", lambda: needed)
    train(dataset, tmp_path / "fits", epochs=1, image_size=32)
    monkeypatch.setattr("tltools.training.prepare.available_memory", lambda: needed - 1)
    message = "training cnn on 2 classes of 32-pixel images takes .* GB beside its weights, and .*"
    with pytest.raises(ConfigError, match=f"{message}use a smaller `image_size=`"):
        train(dataset, tmp_path / "too-large", epochs=1, image_size=32)
    assert not list(tmp_path.glob("too-large/*/*"))


def test_the_card_says_what_auto_has_come_to(dataset, tmp_path):
    facts = train(dataset, tmp_path, epochs=1, image_size=32).card.training
    assert (facts["precision"], facts["computed_in"]) == ("auto", "fp32")
    assert "features_in" not in facts  # the CNN has no frozen layers


def test_fp16_features_are_close_to_fp32():
    torch.manual_seed(0)
    model, cpu = build_classifier(CNN, 2, SMALL), torch.device("cpu")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    exact = TorchBackbone(model, SMALL, cpu)(images)
    half = TorchBackbone(model, SMALL, cpu, fp16=True)(images)
    assert exact.dtype == half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.01
    check_fp16(half, exact)
    with pytest.raises(ParityError, match=r"by 100.0%, more than 10%; .*`feature_precision=fp32`"):
        check_fp16(0 * half, exact)


def test_features_too_large_for_fp16_are_refused():
    model = build_classifier(CNN, 2, SMALL)
    torch.nn.init.constant_(model.backbone[0].weight, 1e7)
    backbone = TorchBackbone(model, SMALL, torch.device("cpu"), fp16=True)
    with pytest.raises(ParityError, match=r"overflow fp16; .*`feature_precision=fp32`"):
        backbone(np.full((2, 32, 32, 3), 200, dtype=np.uint8))


@pytest.mark.parametrize(
    ("free", "expected"), [(140e9, 128), (16 * 2**30, 128), (8e9, 32), (1e9, 4), (0, 1)]
)
def test_a_small_gpu_gets_smaller_batches(monkeypatch, free, expected):
    monkeypatch.setattr(features_module, "free_gpu_memory", lambda _: int(free))
    assert gpu_batch_size(torch.device("meta")) == expected


def test_calibration_does_not_depend_on_names_or_order():
    hashes = [f"{number:064x}" for number in range(200)]
    paths = [Path(f"{number}.png") for number in range(200)]
    chosen = choose_calibration(paths[::-1], hashes[::-1])
    assert list(chosen) == hashes[:64]
    assert list(chosen.values()) == paths[:64]
    assert choose_calibration(paths[:3], hashes[:3]) == dict(zip(hashes[:3], paths, strict=False))


def test_a_damaged_shard_is_computed_again(tmp_path):
    cache = FeatureCache(tmp_path, weights_sha256="0", head="pooled", preprocessing=Preprocessing())
    cache.add(["ab" * 32, "cd" * 32], np.ones((2, 3), np.float32))
    cache.add(["ef" * 32], np.zeros((1, 3), np.float32))
    shard = sorted(cache.folder.iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    assert len(cache.load()) in (1, 2)
    assert not shard.exists()


def test_a_shard_with_more_hashes_than_outputs_is_computed_again(tmp_path):
    cache = FeatureCache(tmp_path, weights_sha256="0", head="pooled", preprocessing=Preprocessing())
    cache.add(["ab" * 32, "cd" * 32], np.ones((2, 3), np.float32))
    (shard,) = cache.folder.iterdir()
    save_file(load_file(shard) | {"features": torch.ones(1, 3)}, shard)
    assert cache.load() == {}
    assert not shard.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        RuntimeError("unable to mmap 24 bytes"),
    ],
)
def test_a_shard_that_cannot_be_read_now_is_kept_and_skipped(tmp_path, monkeypatch, error):
    cache = FeatureCache(tmp_path, weights_sha256="0", head="pooled", preprocessing=Preprocessing())
    for sha in ("ab" * 32, "cd" * 32, "ef" * 32):
        cache.add([sha], np.ones((1, 3), np.float32))
    shards = sorted(cache.folder.iterdir())

    def load(path):
        if path in shards[:2]:
            raise error
        return load_file(path)

    monkeypatch.setattr("tltools.training.features.load_file", load)
    progress = Recorder()
    assert len(cache.load(progress)) == 1
    assert sorted(cache.folder.iterdir()) == shards
    (warning,) = progress.said
    assert warning.startswith(f"2 files of the cache {cache.folder} cannot be read (first ")
    monkeypatch.undo()
    assert len(cache.load()) == 3


@pytest.mark.parametrize(
    "other",
    [
        {"weights_sha256": "1"},
        {"head": "last-layer"},
        {"preprocessing": Preprocessing(resize="crop")},
        {"preprocessing": Preprocessing(mean=(0.1, 0.0, 0.0))},
        {"runtime": "torch"},
        {"precision": "fp16"},
        {"calibration": ["ab" * 32]},
        {"calibration": ["ab" * 32, "cd" * 32]},
        {"layers": "before features.24"},
        {"view": "mirrored"},
    ],
)
def test_models_that_compute_different_features_never_share_them(other, tmp_path):
    same = {
        "weights_sha256": "0",
        "head": "pooled",
        "preprocessing": Preprocessing(),
        "calibration": ["cd" * 32],
    }
    assert FeatureCache(tmp_path, **same).folder == FeatureCache(tmp_path, **same).folder
    assert FeatureCache(tmp_path, **same).folder != FeatureCache(tmp_path, **same | other).folder


# -------------------------------------------------------------------------------- weights


def test_missing_weights_are_an_error_with_a_remedy(dataset, tmp_path):
    (tmp_path / "vgg16.pth").touch()
    for name, close in (("nowhere.pth", ""), ("vgg61.pth", r" \(did you mean .*/vgg16\.pth\?\)")):
        said = rf"{name} does not exist{close}: correct the path in `weights=`, or leave it out to"
        with pytest.raises(ModelError, match=said):
            train(dataset, tmp_path, "vgg16", weights=tmp_path / name)
    assert not (tmp_path / "runs").exists()


def test_a_failed_download_is_an_error_with_a_remedy(monkeypatch):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ModelError, match=r"cannot download .* \(no route\); provide .* `weights="):
        load_weights(VGG16, "imagenet")


def test_a_folder_that_cannot_keep_a_download_is_named_with_a_way_out(monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/proc/torch")
    with pytest.raises(ModelError, match=r"in /proc/torch/checkpoints .* set TORCH_HOME to anoth"):
        load_weights(VGG16, "imagenet")


def test_a_pickle_with_code_is_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth", pickle_module=pickle)
    with pytest.raises(ModelError, match="cannot read weights from"):
        load_weights(VGG16, str(tmp_path / "evil.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_another_network_are_refused(suffix, tmp_path):
    path = tmp_path / f"other{suffix}"
    state = {"conv.weight": torch.zeros(1)}
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    with pytest.raises(ModelError, match=r"it lacks features\.0\.weight"):
        load_weights(VGG16, str(path))


def test_the_normalization_follows_the_weights(vgg16_file, tmp_path):
    alone = load_weights(VGG16, str(vgg16_file))
    assert VGG16.choose_head(alone.state) == "pooled"
    assert alone.preset.mean == (0.48235, 0.45882, 0.40784)
    assert alone.preset.std == (1 / 255,) * 3
    state = load_file(vgg16_file)
    for layer in (0, 3):
        for kind in ("weight", "bias"):
            state[f"classifier.{layer}.{kind}"] = torch.zeros(1)
    save_file(state, tmp_path / "complete.safetensors")
    complete = load_weights(VGG16, str(tmp_path / "complete.safetensors"))
    assert VGG16.choose_head(complete.state) == "last-layer"
    assert (complete.preset.mean, complete.preset.std) == (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
    # torchvision's features-only file has the classifier's tensors, full of NaN.
    state["classifier.3.bias"][:] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    features_only = load_weights(VGG16, str(tmp_path / "nan.safetensors"))
    assert VGG16.choose_head(features_only.state) == "pooled"
    forced = load_weights(VGG16, str(vgg16_file), normalization="torchvision")
    assert forced.preset.mean == (0.485, 0.456, 0.406)


def test_the_plan_is_readable_text(dataset, tmp_path):
    run = train(dataset, tmp_path, epochs=1)
    plan = json.loads((run.folder / "plan.json").read_text())
    assert plan["classes"] == ["bright", "dark"]
    assert plan["config"]["lr"] == 1e-3
