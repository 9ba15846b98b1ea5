"""Experiment logs match the history, whatever stops a training, and their own tools read them."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from conftest import Recorder, run_tltools
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tltools.cli.train import LogChoice
from tltools.errors import ConfigError
from tltools.packages import pip_install
from tltools.progress import Silent
from tltools.training import TrainSetup, default_config, logs, resume_run, train_model
from tltools.training.fit import EpochStats
from tltools.training.run import load_card, read_plan

BOTH = ("tensorboard", "mlflow")
COLUMNS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")


def train(dataset, run_dir, *, progress=None, log=BOTH, epochs=3):
    config = default_config("cnn", epochs=epochs, batch_size=5, lr=1e-3)
    return train_model(
        dataset,
        config,
        TrainSetup(device="cpu", run_dir=run_dir, logs=log),
        progress=progress or Silent(),
    ).folder


class Stops(Silent):
    """Presses Ctrl-C after or during an epoch."""

    def __init__(self, epoch, *, within=False):
        self.epoch, self.within = epoch, within

    def say(self, message):
        if not self.within and message.startswith(f"epoch {self.epoch:3d}/"):
            raise KeyboardInterrupt

    detail = say  # quick epochs are details

    def bar(self, description, total, unit="images", *, epochs=None):
        if self.within and description.startswith("Training"):
            return StoppingBar()
        return super().bar(description, total, unit)


class StoppingBar:
    def __enter__(self):
        return self

    def __exit__(self, *details):
        return None

    def advance(self, amount=1, note=""):
        raise KeyboardInterrupt


def client_of(folder):
    return logs._open_mlflow(folder.parent.absolute())


def mlflow_runs(folder):
    client = client_of(folder)
    experiment = client.get_experiment_by_name("tltools")
    return client.search_runs([experiment.experiment_id])


def mlflow_history(folder):
    """The epochs of the run's only MLflow run, with its steps as they were logged."""
    (run,) = mlflow_runs(folder)
    client = client_of(folder)
    return {
        name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        for name in COLUMNS
    }


def events_of(folder):
    events = EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    )
    return events.Reload()


def tensorboard_history(folder):
    events = events_of(folder)
    return {
        name: [(event.step, event.value) for event in events.Scalars(logs._tag(name))]
        for name in COLUMNS
    }


def assert_as_history(folder, *, seconds=True, epochs):
    """Check that both logs have each epoch of history.csv once, in order, with its values."""
    history = pd.read_csv(folder / "history.csv")
    assert list(history["epoch"]) == list(range(1, epochs + 1))
    for found in (mlflow_history(folder), tensorboard_history(folder)):
        for name in COLUMNS:
            assert [step for step, _ in found[name]] == list(history["epoch"]), name
            if name != "seconds" or seconds:
                values = [value for _, value in found[name]]
                np.testing.assert_allclose(values, history[name], rtol=1e-6)  # float32 in one


@pytest.fixture(scope="module", autouse=True)
def quick_stores(tmp_path_factory):
    """Begin each store with a copy of an empty one: making its tables takes seconds."""
    open_mlflow = logs._open_mlflow
    empty = tmp_path_factory.mktemp("empty")
    open_mlflow(empty)

    def begin(root):
        if not (root / logs.MLFLOW_DB).exists():
            shutil.copyfile(empty / logs.MLFLOW_DB, root / logs.MLFLOW_DB)
        return open_mlflow(root)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "_open_mlflow", begin)
        yield


@pytest.fixture(scope="module")
def logged(drawn_dataset, tmp_path_factory):
    return train(drawn_dataset, tmp_path_factory.mktemp("logged") / "runs")


# --------------------------------------------------------------------------- what they hold


def test_both_logs_contain_the_history(logged):
    assert_as_history(logged, epochs=3)


def test_mlflow_contains_settings_scores_and_files(logged):
    (run,) = mlflow_runs(logged)
    card = load_card(logged)
    assert (run.info.run_name, run.info.status) == ("cnn", "FINISHED")
    assert run.data.params["lr"] == "0.001"
    assert run.data.params["batch_size"] == "5"
    assert run.data.params["data_fingerprint"] == card.data.fingerprint
    assert run.data.tags["epochs"] == "3"
    val = card.metrics["val"]
    metrics = run.data.metrics
    assert metrics["final_val_accuracy"] == val.accuracy
    assert (metrics["final_val_accuracy_low"], metrics["final_val_accuracy_high"]) == (
        val.low,
        val.high,
    )
    assert metrics["final_temperature"] == card.temperature
    assert metrics["final_ece_before"] == card.confidence.ece_before
    client = client_of(logged)
    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"card.json", "history.csv", "curves.png", "confusion_matrix.png"} <= names
    for name in names:
        copy = Path(client.download_artifacts(run.info.run_id, name))
        assert copy.read_bytes() == (logged / name).read_bytes()


def test_tensorboard_contains_settings_scores_and_images(logged):
    events, card = events_of(logged), load_card(logged)
    assert events.Scalars("final/val_accuracy")[0].value == pytest.approx(
        card.metrics["val"].accuracy
    )
    assert events.Scalars("final/temperature")[0].value == pytest.approx(card.temperature)
    for name in ("curves", "confusion_matrix"):
        (image,) = events.Images(name)
        assert image.encoded_image_string == (logged / f"{name}.png").read_bytes()
        assert image.width > image.height / 2 > 100
    assert hyperparameters(events)["lr"] == 0.001
    text = events.Tensors("card/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text) == json.loads((logged / "card.json").read_text())


def hyperparameters(events):
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    content = events.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in found.items()
        if value.WhichOneof("kind")
    }


# ------------------------------------------------------------------------ stopped and resumed


def test_ctrl_c_leaves_readable_logs_and_resume_continues_them(drawn_dataset, tmp_path):
    folder = train(drawn_dataset, tmp_path, progress=Stops(2), epochs=4)
    assert_as_history(folder, epochs=2)
    (run,) = mlflow_runs(folder)
    assert run.info.status == "KILLED"
    resume_run(folder, TrainSetup(device="cpu"))
    assert_as_history(folder, epochs=4)
    (run,) = mlflow_runs(folder)
    assert run.info.status == "FINISHED"


def test_a_continued_training_logs_its_new_figures(drawn_dataset, tmp_path):
    folder = train(drawn_dataset, tmp_path, epochs=1)
    resume_run(folder, TrainSetup(device="cpu"), epochs=3)
    assert_as_history(folder, epochs=3)
    events, (run,) = events_of(folder), mlflow_runs(folder)
    assert hyperparameters(events)["epochs"] == 3
    assert run.data.tags["epochs"] == "3"
    val = load_card(folder).metrics["val"].accuracy
    assert run.data.metrics["final_val_accuracy"] == val
    assert [(event.step, event.value) for event in events.Scalars("final/val_accuracy")] == [
        (3, pytest.approx(val))
    ]
    assert len(events.Images("curves")) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from tltools.data.dataset import load_dataset
from tltools.progress import Silent
from tltools.training import TrainSetup, default_config, train, train_model

train._SAVE_EVERY_S = 0.0

class Kills(Silent):
    def say(self, message):
        if message.startswith("epoch   2/"):
            os.kill(os.getpid(), signal.SIGKILL)
    detail = say

dataset = load_dataset(Path(sys.argv[1]), val_fraction=0.375)
config = default_config("cnn", epochs=4, batch_size=5, lr=1e-3)
setup = TrainSetup(device="cpu", run_dir=Path(sys.argv[2]), logs=("tensorboard", "mlflow"))
train_model(dataset, config, setup, progress=Kills())
"""


def test_a_resumed_training_logs_every_epoch_once(drawn, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, drawn, tmp_path], check=False)
    assert killed.returncode == -9
    folder = tmp_path / "cnn"
    assert_as_history(folder, epochs=2)
    (file,) = (folder / "tensorboard").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])  # the kill came while the last epoch was written
    resume_run(folder, TrainSetup(device="cpu"))
    assert_as_history(folder, epochs=4)


@pytest.mark.parametrize("lost", ["moved", "deleted"])
def test_a_lost_log_is_recreated_with_all_epochs(drawn_dataset, tmp_path, lost):
    folder = train(drawn_dataset, tmp_path, epochs=1)
    shutil.rmtree(folder / "tensorboard")
    if lost == "moved":
        folder = Path(shutil.move(folder, tmp_path / "elsewhere" / "cnn"))
    else:
        (run,) = mlflow_runs(folder)
        client_of(folder).delete_run(run.info.run_id)
    resume_run(folder, TrainSetup(device="cpu"), epochs=2)
    assert_as_history(folder, epochs=2)


def test_a_log_can_be_added_later(drawn_dataset, tmp_path):
    folder = train(drawn_dataset, tmp_path, epochs=1, log=["tensorboard"])
    assert not (tmp_path / "mlflow.db").exists()
    resume_run(folder, TrainSetup(device="cpu", logs=["mlflow"]), epochs=2)
    assert read_plan(folder).logs == BOTH
    resume_run(folder, TrainSetup(device="cpu"), epochs=3)
    assert_as_history(folder, epochs=3)


def test_a_run_can_be_resumed_without_its_log(drawn_dataset, tmp_path, monkeypatch):
    """And the log catches up when it can be opened again."""
    folder = train(drawn_dataset, tmp_path, epochs=1)
    found, progress = logs.find_spec, Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(logs, "find_spec", lambda name: None if name == "mlflow" else found(name))
        resume_run(folder, TrainSetup(device="cpu"), epochs=2, progress=progress)
    (warning,) = (line for line in progress.said if "continues without this log" in line)
    assert warning.startswith(f"`logs=mlflow` needs mlflow: {pip_install('mlflow')}")
    assert [step for step, _ in mlflow_history(folder)["val_loss"]] == [1]
    assert [step for step, _ in tensorboard_history(folder)["val_loss"]] == [1, 2]
    resume_run(folder, TrainSetup(device="cpu"), epochs=3)
    assert_as_history(folder, epochs=3)


def test_a_plan_without_logs_can_still_be_read(drawn_dataset, tmp_path):
    folder = train(drawn_dataset, tmp_path, epochs=1, log=())
    plan = json.loads((folder / "plan.json").read_text())
    assert plan.pop("logs") == []
    (folder / "plan.json").write_text(json.dumps(plan))
    resume_run(folder, TrainSetup(device="cpu"), epochs=2)
    assert not (folder / "tensorboard").exists()


def test_a_training_stopped_in_its_first_epoch_leaves_no_run(drawn_dataset, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(drawn_dataset, tmp_path, progress=Stops(1, within=True))
    assert not (tmp_path / "cnn").exists()
    assert mlflow_runs(tmp_path / "cnn") == []


def test_a_loss_that_is_not_finite_is_logged(tmp_path):
    folder = tmp_path / "cnn"
    folder.mkdir()
    rest = dict.fromkeys(COLUMNS, 0.5) | {"train_loss": float("nan")}
    for log in (logs.TensorBoardLog(folder), logs.MlflowLog(folder)):
        log.epoch(EpochStats(epoch=1, **rest))
        log.close("finished")
    for found in (tensorboard_history(folder), mlflow_history(folder)):
        assert found["train_loss"] == [(1, pytest.approx(float("nan"), nan_ok=True))]
        assert found["val_loss"] == [(1, 0.5)]


def test_two_trainings_share_a_store(drawn_dataset, tmp_path):
    for _ in range(2):
        train(drawn_dataset, tmp_path, epochs=1, log=["mlflow"])
    assert {run.info.run_name for run in mlflow_runs(tmp_path / "cnn")} == {"cnn", "cnn-2"}


# -------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    ("name", "missing"),
    [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("mlflow", "alembic")],
)
def test_a_missing_package_is_a_one_line_error_before_any_work(
    drawn, tmp_path, monkeypatch, name, missing
):
    found = logs.find_spec
    monkeypatch.setattr(logs, "find_spec", lambda one: None if one == missing else found(one))
    ran = run_tltools("train", drawn, "--model", "cnn", "--log", name, cwd=tmp_path)
    assert ran.code == 2
    assert ran.err == f"error: --log {name} needs {missing}: {pip_install(name)}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_log_is_refused(drawn, tmp_path):
    with pytest.raises(ConfigError, match="unknown log 'wandb'; choose tensorboard or mlflow"):
        logs.check_logs(["wandb"])
    assert run_tltools("train", drawn, "--log", "wandb", cwd=tmp_path).code == 2


def test_the_command_lists_the_available_logs():
    assert tuple(LogChoice) == get_args(logs.LogName)


def test_a_failing_log_does_not_end_the_training(drawn_dataset, tmp_path, monkeypatch):
    def fail(self, stats):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs.TensorBoardLog, "epoch", fail)
    progress = Recorder()
    folder = train(drawn_dataset, tmp_path, progress=progress, epochs=2)
    warnings = [line for line in progress.said if "log failed" in line]
    assert warnings == [
        "the tensorboard log failed: no space left on device; training continues without this log"
    ]
    assert load_card(folder).training["epochs_done"] == 2
    assert [step for step, _ in mlflow_history(folder)["val_loss"]] == [1, 2]


def test_an_invalid_store_is_a_one_line_error(drawn, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_text("no database " * 100)
    ran = run_tltools("train", drawn, "--model", "cnn", "--log", "mlflow", cwd=tmp_path)
    assert ran.code == 2
    assert "mlflow.db: " in ran.err.splitlines()[-1]
    assert ran.err.splitlines()[-1].endswith("or omit --log mlflow")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mlflow.db"]


def test_log_folders_may_have_any_name(drawn_dataset, tmp_path):
    name = "a b 100%41 x#y 구급차 a&b=c"
    folder = train(drawn_dataset, tmp_path / name, epochs=1)
    assert (folder.parent / "mlflow.db").is_file()
    (run,) = folder.parent.glob("mlartifacts/*/artifacts")
    assert_as_history(folder, epochs=1)
    assert (run / "card.json").read_bytes() == (folder / "card.json").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {name}
    with pytest.raises(ConfigError, match="without a question mark"):
        train(drawn_dataset, tmp_path / "what?", epochs=1)
    assert not (tmp_path / "what?").exists()


# ---------------------------------------------------------------------- what they do not do

OFFLINE = """
import socket, sys
tried = []
def refuse(*details, **named):
    tried.append(details)
    raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from tltools.cli import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    assert not leaving.code
assert not tried, tried
if "--log" in sys.argv:
    from mlflow.telemetry.utils import is_telemetry_disabled
    assert is_telemetry_disabled()
print("LOADED", *sys.modules)
"""


@pytest.mark.parametrize(
    "log",
    [["--log", "mlflow", "--log", "tensorboard"], pytest.param([], marks=pytest.mark.slow)],
)
def test_logging_uses_no_network_and_loads_nothing_unrequested(drawn, tmp_path, log):
    unset = ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"  # a server that is not to be asked
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, "train", drawn, "--model", "cnn", "--epochs", "1", *log],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "INFO" not in done.stderr
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert ({"mlflow", "tensorboard"} <= loaded) == bool(log)
    assert bool({"mlflow", "tensorboard"} & loaded) == bool(log)
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    beside = {"mlflow.db", "mlartifacts"} if log else set()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"cnn"} | beside


def test_event_files_of_one_second_keep_their_order(drawn_dataset, tmp_path):
    folder = train(drawn_dataset, tmp_path, epochs=1, log=("tensorboard",))
    place = folder / "tensorboard"
    first = next(path for path in place.iterdir() if not path.name.endswith(logs._FINAL))
    head, host = first.name.split(".tfevents.")
    later = time.time() + 1  # as if another process, with a later number, had just opened it
    first.rename(place / f"{head}.tfevents.{int(later)}.{host.split('.', 1)[1]}9")
    resume_run(folder, TrainSetup(device="cpu"), epochs=2)
    assert [step for step, _ in tensorboard_history(folder)["val_loss"]] == [1, 2]
