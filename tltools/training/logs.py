"""Write experiment logs of a training, for TensorBoard and MLflow, to local folders.

An epoch is logged only after the run has saved it. So however a training was stopped, a resumed one
continues its logs where they end, and no epoch is logged twice.
"""

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from tltools.atomic import write_text
from tltools.card import Card
from tltools.errors import ConfigError, cause_of
from tltools.packages import pip_install
from tltools.progress import Progress
from tltools.run_folder import (
    CARD,
    CONFUSION,
    CURVES,
    HISTORY,
    MLFLOW_RUN,
    PREDICTIONS,
    TENSORBOARD,
)
from tltools.training.fit import EpochStats

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch.utils.tensorboard import FileWriter

LogName = Literal["tensorboard", "mlflow"]
Status = Literal["finished", "interrupted", "failed"]

MLFLOW_DB = "mlflow.db"
MLFLOW_ARTIFACTS = "mlartifacts"
"""Next to the run folders, which share the store."""
EXPERIMENT = "tltools"
_PACKAGES = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),  # mlflow-skinny lacks the latter two
}
_HOW_TO_WATCH = {
    "tensorboard": "Watch: tensorboard --logdir {runs}",
    "mlflow": f"Watch: mlflow ui --backend-store-uri sqlite:///{{runs}}/{MLFLOW_DB} (needs the "
    "full mlflow package)",
}
_FILES = (CARD, HISTORY, PREDICTIONS, CURVES, CONFUSION)
"""Files of the run that are copied to MLflow if they exist."""
_FINAL = ".final"
"""Suffix of a finished training's last event file; resuming the training replaces it."""
_MLFLOW_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class TrainingLog(Protocol):
    """An experiment log of one training."""

    num_epochs: int
    """Number of epochs logged so far."""

    def epoch(self, stats: EpochStats) -> None:
        """Log the next epoch."""
        ...

    def finish(self, card: Card) -> None:
        """Log the settings, the final scores and the plots of a complete run folder."""
        ...

    def close(self, status: Status) -> None:
        """Close the log, so that its own tools can read it."""
        ...


def check_logs(names: Sequence[str]) -> None:
    """Check that the logs can be written, before any work is done.

    Raises:
        ConfigError: If a log is unknown, or its packages are missing.
    """
    for name in names:
        if name not in _PACKAGES:
            known = " or ".join(get_args(LogName))
            raise ConfigError(f"unknown log {name!r}; choose {known}")
        missing = [package for package in _PACKAGES[name] if find_spec(package) is None]
        if missing:
            raise ConfigError(f"`logs={name}` needs {' and '.join(missing)}: {pip_install(name)}")


class Logs:
    """Several logs as one. A log that fails is dropped with a warning; training continues."""

    def __init__(self, logs: dict[str, TrainingLog], progress: Progress) -> None:
        """Take logs by name."""
        self._logs = logs
        self._progress = progress
        self._status: Status = "finished"

    def follow(self, history: Sequence[EpochStats]) -> None:
        """Log all epochs of a saved history that have not been logged yet."""
        for name, log in list(self._logs.items()):
            with self._kept_or_given_up(name):
                for stats in history[log.num_epochs :]:
                    log.epoch(stats)

    def finish(self, card: Card, *, interrupted: bool) -> None:
        """Log the end of a training."""
        self._status = "interrupted" if interrupted else "finished"
        for name, log in list(self._logs.items()):
            with self._kept_or_given_up(name):
                log.finish(card)

    def close(self, *, failed: bool) -> None:
        """Close all logs."""
        for name, log in list(self._logs.items()):
            with self._kept_or_given_up(name):
                log.close("failed" if failed else self._status)

    @contextmanager
    def _kept_or_given_up(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # no failure of a log is worth losing hours of training
            lost = self._logs.pop(name)
            with suppress(Exception):
                lost.close("failed")
            reason = cause_of(error)
            self._progress.warn(
                f"the {name} log failed: {reason}; training continues without this log"
            )


@contextmanager
def open_logs(
    names: Sequence[str], folder: Path, progress: Progress, *, resumed: bool = False
) -> Iterator[Logs]:
    """Open a run's logs, creating or continuing them; close them in any case.

    Args:
        names: Names of the logs.
        folder: The run folder.
        progress: Shows a warning if a log fails later.
        resumed: Only warn if a log cannot be opened, because a resumed run must not depend on it.
            The missing epochs are logged when the run is resumed again.

    Raises:
        ConfigError: If a log cannot be opened.
    """
    opened: dict[str, TrainingLog] = {}
    for name in dict.fromkeys(names):
        try:
            check_logs([name])
            opened[name] = TensorBoardLog(folder) if name == "tensorboard" else MlflowLog(folder)
        except ConfigError as error:
            if not resumed:
                Logs(opened, progress).close(failed=True)
                raise
            progress.warn(f"{error} (training continues without this log)")
            continue
        progress.say(_HOW_TO_WATCH[name].format(runs=folder.parent))
    logs = Logs(opened, progress)
    try:
        yield logs
    except BaseException:
        logs.close(failed=True)
        raise
    logs.close(failed=False)


def _epoch_values(stats: EpochStats) -> dict[str, float]:
    """Return an epoch's metrics by name. The learning rate is constant, hence a setting."""
    values = asdict(stats)
    values.pop("epoch")
    return values


def _final_values(card: Card) -> dict[str, float]:
    """Return a card's metrics of the trained model, by name."""
    values: dict[str, float] = {}
    for split, score in card.metrics.items():
        values |= {
            f"{split}_accuracy": score.accuracy,
            f"{split}_accuracy_low": score.low,
            f"{split}_accuracy_high": score.high,
        }
    values["temperature"] = card.temperature
    if card.confidence is not None:
        facts = card.confidence
        for name in ("ece_before", "ece_after", "nll_before", "nll_after"):
            value = getattr(facts, name)
            if value is not None:
                values[name] = value
    values["kept_epoch"] = float(card.training["kept_epoch"])
    return values


def _settings(card: Card) -> dict[str, Any]:
    """Return the training's settings and facts about its data, by name."""
    told = {
        name: value
        for name, value in card.training.items()
        if name not in ("epochs_done", "kept_epoch", "interrupted")
    }
    return told | {
        "head": card.head,
        "weights": card.weights.source,
        "data": card.data.name,
        "data_fingerprint": card.data.fingerprint,
        "split": card.data.split,
        "num_train": card.data.num_train,
        "num_val": card.data.num_val,
        "num_classes": len(card.classes),
    }


class TensorBoardLog:
    """Log to TensorBoard event files in the run folder."""

    def __init__(self, folder: Path) -> None:
        """Open the log and find its last epoch.

        Args:
            folder: The run folder.

        Raises:
            ConfigError: If an event file cannot be created or read.
        """
        self._folder = folder
        self._place = folder / TENSORBOARD
        try:
            for path in self._place.glob(f"*{_FINAL}"):
                path.unlink()
            self.num_epochs = self._last_step()
            self._writer = self._new_file()
        except OSError as error:
            raise ConfigError(
                f"cannot write the TensorBoard log in {self._place}: {cause_of(error)}; fix this, "
                "or omit `logs=tensorboard`"
            ) from error

    def _new_file(self, suffix: str = "") -> "FileWriter":
        """Open a new event file whose name sorts after those of the others.

        TensorBoard reads the files in the order of their names, which hold the second in which
        they were opened and then numbers of any length: within one second the order is lost.
        """
        from torch.utils.tensorboard import FileWriter

        newest = max((_second_of(path) for path in self._place.glob("*.tfevents.*")), default=0)
        time.sleep(min(max(0.0, newest + 1 - time.time()), 1.0))
        return FileWriter(str(self._place), filename_suffix=suffix)

    def _last_step(self) -> int:
        if not self._place.is_dir():
            return 0
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self._place), size_guidance={"scalars": 0})
        events.Reload()
        tag = _tag("val_loss")  # any tag works: all values of an epoch are one record
        if tag not in events.Tags()["scalars"]:
            return 0
        return max(event.step for event in events.Scalars(tag))

    def epoch(self, stats: EpochStats) -> None:
        """Log an epoch as one record, which is written completely or not at all."""
        values = {_tag(name): value for name, value in _epoch_values(stats).items()}
        self._writer.add_summary(_scalars(values), stats.epoch)
        self._writer.flush()
        self.num_epochs = stats.epoch

    def finish(self, card: Card) -> None:
        """Log the final results in a separate file."""
        from torch.utils.tensorboard.summary import hparams, text

        finals = {f"final/{name}": value for name, value in _final_values(card).items()}
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in _settings(card).items()
        }
        indented = card.to_json().replace("\n", "\n    ")  # a Markdown code block
        summaries = [
            *hparams(settings, finals),
            _scalars(finals),
            text("card", f"    {indented}"),
            *(_png(path.stem, path) for path in self._plots()),
        ]
        # Not SummaryWriter.add_hparams, which would create another run in a subfolder.
        writer = self._new_file(_FINAL)
        try:
            for summary in summaries:
                writer.add_summary(summary, self.num_epochs)
        finally:
            writer.close()

    def _plots(self) -> list[Path]:
        """Return the plots that could be drawn."""
        plots = (self._folder / name for name in _FILES if name.endswith(".png"))
        return [path for path in plots if path.exists()]

    def close(self, status: Status) -> None:  # noqa: ARG002 - event files have no status
        """Flush and close the event file."""
        self._writer.close()


def _second_of(path: Path) -> int:
    """Return the second, since 1970, that the name of an event file holds; 0 if none."""
    found = re.search(r"\.tfevents\.(\d+)\.", path.name)
    return int(found[1]) if found else 0


def _scalars(values: dict[str, float]) -> Any:
    """Return a TensorBoard summary with several values."""
    from torch.utils.tensorboard.summary import scalar

    merged = scalar("", 0)
    merged.ClearField("value")
    for tag, value in values.items():
        merged.MergeFrom(scalar(tag, value))
    return merged


def _png(tag: str, path: Path) -> Any:
    """Return a TensorBoard summary with an image, using the file's own bytes."""
    from tensorboard.compat.proto import summary_pb2

    data = path.read_bytes()
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    summary = summary_pb2.Summary()  # pyright: ignore[reportAttributeAccessIssue] - generated
    image = summary.value.add(tag=tag).image
    image.encoded_image_string = data
    image.width, image.height, image.colorspace = width, height, 3
    return summary


def _tag(name: str) -> str:
    """Return a tag that TensorBoard groups by: `loss/train` is shown next to `loss/val`."""
    split, _, quantity = name.rpartition("_")
    return f"{quantity}/{split}" if split else f"epoch/{name}"


class MlflowLog:
    """Log to MLflow: an SQLite database and an artifact folder next to the run folders."""

    def __init__(self, folder: Path) -> None:
        """Open the store, and the MLflow run of an earlier session, if there is one.

        Args:
            folder: The run folder.

        Raises:
            ConfigError: If the store cannot be opened.
        """
        self._folder = folder
        self._run_id: str | None = None
        self.num_epochs = 0
        root = folder.parent.absolute()
        if "?" in str(root):  # would start the query part of the database's URI
            raise ConfigError(
                f"MLflow cannot use {root}: choose a `run_dir=` without a question mark, or omit "
                "`logs=mlflow`"
            )
        try:
            self._client = _open_mlflow(root)
            self._experiment = _experiment(self._client, root)
            self._find_run()
        except Exception as error:
            raise ConfigError(
                f"cannot open the MLflow store {root / MLFLOW_DB}: {cause_of(error)}; fix or "
                "move it, or omit `logs=mlflow`"
            ) from error

    def _find_run(self) -> None:
        """Continue the run of an earlier session, if the store still has it."""
        from mlflow.exceptions import MlflowException

        try:
            run_id = (self._folder / MLFLOW_RUN).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return
        try:
            found = self._client.get_run(run_id)
        except MlflowException:
            return  # a different or new store: the whole history is logged again
        if found.info.lifecycle_stage != "active":
            return
        self._run_id = run_id
        last = list(EpochStats.__dataclass_fields__)[-1]
        steps = [metric.step for metric in self._client.get_metric_history(run_id, last)]
        self.num_epochs = max(steps, default=0)

    def _run(self) -> str:
        """Return MLflow's ID of the run, which is created with the first epoch."""
        if self._run_id is None:
            run = self._client.create_run(self._experiment, run_name=self._folder.name)
            self._run_id = run.info.run_id
            write_text(self._folder / MLFLOW_RUN, self._run_id + "\n")
        return self._run_id

    def epoch(self, stats: EpochStats) -> None:
        """Log an epoch, in one transaction."""
        self._metrics(_epoch_values(stats), stats.epoch)
        self.num_epochs = stats.epoch

    def _metrics(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run(), metrics=metrics)

    def finish(self, card: Card) -> None:
        """Log settings, final scores and files."""
        from mlflow.entities import Param, RunTag

        run_id = self._run()
        settings = {name: str(value) for name, value in _settings(card).items()}
        # MLflow's parameters cannot change, but a resumed training may have more epochs.
        tags = {name: settings.pop(name) for name in ("epochs",)}
        tags["versions"] = json.dumps(card.versions)
        self._client.log_batch(
            run_id,
            params=[Param(name, value) for name, value in settings.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        self._metrics(
            {f"final_{name}": value for name, value in _final_values(card).items()},
            self.num_epochs,
        )
        for name in _FILES:
            if (self._folder / name).is_file():
                self._client.log_artifact(run_id, str(self._folder / name))

    def close(self, status: Status) -> None:
        """Set the status of the MLflow run."""
        if self._run_id is not None:
            self._client.set_terminated(self._run_id, status=_MLFLOW_STATUS[status])


def _open_mlflow(root: Path) -> "MlflowClient":
    """Open the store in a folder, without a server, network access or telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # both log every table that they create
        logging.getLogger(name).setLevel(logging.WARNING)
    # An explicit URI overrides MLFLOW_TRACKING_URI, which may name a server.
    return MlflowClient(tracking_uri=f"sqlite:///{root / MLFLOW_DB}")


def _experiment(client: "MlflowClient", root: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    return client.create_experiment(
        EXPERIMENT, artifact_location=(root / MLFLOW_ARTIFACTS).as_uri()
    )
