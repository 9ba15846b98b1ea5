"""A training's experiment logs: TensorBoard and MLflow, written to local folders.

A log follows what the run has saved, never ahead of it: so a training that is resumed, whatever
stopped it, goes on with its logs where they end, and no epoch is in one twice.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from tltools.atomic import write_text
from tltools.card import Card
from tltools.errors import ConfigError, first_line
from tltools.packages import pip_install
from tltools.progress import Progress
from tltools.training.fit import EpochStats

if TYPE_CHECKING:
    from mlflow import MlflowClient

LogName = Literal["tensorboard", "mlflow"]
Status = Literal["finished", "interrupted", "failed"]

TENSORBOARD = "tensorboard"
"""The folder in the run's."""
MLFLOW_DB = "mlflow.db"
MLFLOW_ARTIFACTS = "mlartifacts"
"""Beside the runs, which share them."""
MLFLOW_RUN = "mlflow.txt"
"""In the run's folder: MLflow's id of the run."""
EXPERIMENT = "tltools"
_PACKAGES = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),  # mlflow-skinny comes without the latter two
}
_HOW_TO_WATCH = {
    "tensorboard": "Watch: tensorboard --logdir {runs}",
    "mlflow": f"Watch: mlflow ui --backend-store-uri sqlite:///{{runs}}/{MLFLOW_DB} (its server is "
    "in the whole mlflow package)",
}
_FILES = ("card.json", "history.csv", "predictions.csv", "curves.png", "confusion_matrix.png")
"""What MLflow gets a copy of, as far as the run has it."""
_FINAL = ".final"
"""Ending of the event file of a finished training: replaced when it is resumed and ends anew."""
_MLFLOW_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class TrainingLog(Protocol):
    """Where the figures of one training go."""

    num_epochs: int
    """How many epochs it holds."""

    def epoch(self, stats: EpochStats) -> None:
        """Log an epoch that follows those that are there."""
        ...

    def finish(self, card: Card) -> None:
        """Log the settings, the final scores and the plots; the run's folder is complete."""
        ...

    def close(self, status: Status) -> None:
        """Leave the log as its own tools can read it."""
        ...


def check_logs(names: Sequence[str]) -> None:
    """See whether logs can be written, before any work is done.

    Raises:
        ConfigError: If one is unknown, or its packages are missing.
    """
    for name in names:
        if name not in _PACKAGES:
            known = " or ".join(get_args(LogName))
            raise ConfigError(f"there is no log {name!r}: --log takes {known}")
        missing = [package for package in _PACKAGES[name] if find_spec(package) is None]
        if missing:
            raise ConfigError(f"--log {name} needs {' and '.join(missing)}: {pip_install(name)}")


class Logs:
    """Several logs as one. A log that fails is given up with a warning: training goes on."""

    def __init__(self, logs: dict[str, TrainingLog], progress: Progress) -> None:
        """Take logs by name."""
        self._logs = logs
        self._progress = progress
        self._status: Status = "finished"

    def follow(self, history: Sequence[EpochStats]) -> None:
        """Log the epochs of a saved history that are not logged yet."""
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
        """Close all."""
        for name, log in list(self._logs.items()):
            with self._kept_or_given_up(name):
                log.close("failed" if failed else self._status)

    @contextmanager
    def _kept_or_given_up(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, hours of training are worth more
            lost = self._logs.pop(name)
            with suppress(Exception):
                lost.close("failed")
            reason = first_line(error)
            self._progress.warn(f"the {name} log ends here: {reason}; the training goes on")


@contextmanager
def open_logs(
    names: Sequence[str], folder: Path, progress: Progress, *, resumed: bool = False
) -> Iterator[Logs]:
    """Open a run's logs, new ones or where they ended; close them whatever happens.

    Args:
        names: Which ones.
        folder: The run's.
        progress: Is warned if one fails later.
        resumed: Warn of a log that cannot be opened, too: the run must not depend on it. It gets
            what it lacks when the run is resumed another time.

    Raises:
        ConfigError: If one cannot be opened.
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
            progress.warn(f"{error} (the training goes on without it)")
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
    """Return an epoch's figures by name. The learning rate is constant, and so a setting."""
    values = asdict(stats)
    values.pop("epoch")
    return values


def _final_values(card: Card) -> dict[str, float]:
    """Return what a card says of the trained model, by name."""
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
    """Return what the training was told, and on what."""
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
    """Event files in the run's folder."""

    def __init__(self, folder: Path) -> None:
        """Find where the log ends.

        Args:
            folder: The run's.

        Raises:
            ConfigError: If an event file cannot be made or read.
        """
        from torch.utils.tensorboard import FileWriter

        self._folder = folder
        self._place = folder / TENSORBOARD
        try:
            for path in self._place.glob(f"*{_FINAL}"):
                path.unlink()
            self.num_epochs = self._last_step()
            self._writer = FileWriter(str(self._place))
        except OSError as error:
            raise ConfigError(
                f"the tensorboard log in {self._place} cannot be written: {error.strerror}; mend "
                "that, or go without --log tensorboard"
            ) from error

    def _last_step(self) -> int:
        if not self._place.is_dir():
            return 0
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self._place), size_guidance={"scalars": 0})
        events.Reload()
        tag = _tag("val_loss")  # any would do: an epoch's values are one record
        if tag not in events.Tags()["scalars"]:
            return 0
        return max(event.step for event in events.Scalars(tag))

    def epoch(self, stats: EpochStats) -> None:
        """Log an epoch as one record, which is in the file whole or not at all."""
        values = {_tag(name): value for name, value in _epoch_values(stats).items()}
        self._writer.add_summary(_scalars(values), stats.epoch)
        self._writer.flush()
        self.num_epochs = stats.epoch

    def finish(self, card: Card) -> None:
        """Log the end in a file of its own."""
        from torch.utils.tensorboard import FileWriter
        from torch.utils.tensorboard.summary import hparams, text

        finals = {f"final/{name}": value for name, value in _final_values(card).items()}
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in _settings(card).items()
        }
        indented = card.to_json().replace("\n", "\n    ")  # Markdown's sign for code
        summaries = [
            *hparams(settings, finals),
            _scalars(finals),
            text("card", f"    {indented}"),
            *(_png(name, self._folder / f"{name}.png") for name in ("curves", "confusion_matrix")),
        ]
        # Not by SummaryWriter.add_hparams, which makes another run of them, in a folder below.
        writer = FileWriter(str(self._place), filename_suffix=_FINAL)
        try:
            for summary in summaries:
                writer.add_summary(summary, self.num_epochs)
        finally:
            writer.close()

    def close(self, status: Status) -> None:  # noqa: ARG002 - event files have no such thing
        """Write what is left."""
        self._writer.close()


def _scalars(values: dict[str, float]) -> Any:
    """Return TensorBoard's message of several values."""
    from torch.utils.tensorboard.summary import scalar

    merged = scalar("", 0)
    merged.ClearField("value")
    for tag, value in values.items():
        merged.MergeFrom(scalar(tag, value))
    return merged


def _png(tag: str, path: Path) -> Any:
    """Return TensorBoard's message of an image, with the file's own bytes."""
    from tensorboard.compat.proto import summary_pb2

    data = path.read_bytes()
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    summary = summary_pb2.Summary()  # pyright: ignore[reportAttributeAccessIssue] - generated
    image = summary.value.add(tag=tag).image
    image.encoded_image_string = data
    image.width, image.height, image.colorspace = width, height, 3
    return summary


def _tag(name: str) -> str:
    """Return what TensorBoard groups by: `loss/train` and `loss/val` stand side by side."""
    split, _, quantity = name.rpartition("_")
    return f"{quantity}/{split}" if split else f"epoch/{name}"


class MlflowLog:
    """A run in an SQLite database beside the run folders, its files in a folder beside it."""

    def __init__(self, folder: Path) -> None:
        """Open the store, and the run that was begun before, if there is one.

        Args:
            folder: The run's.

        Raises:
            ConfigError: If the store cannot be opened.
        """
        self._folder = folder
        self._run_id: str | None = None
        self.num_epochs = 0
        root = folder.parent.absolute()
        if "?" in str(root):  # where a database's URI ends
            raise ConfigError(
                f"MLflow cannot keep a store in {root}: give a --run-dir without a question mark, "
                "or go without --log mlflow"
            )
        try:
            self._client = _open_mlflow(root)
            self._experiment = _experiment(self._client, root)
            self._find_run()
        except Exception as error:
            raise ConfigError(
                f"the MLflow store {root / MLFLOW_DB} cannot be used: {first_line(error)}; mend or "
                "move it, or go without --log mlflow"
            ) from error

    def _find_run(self) -> None:
        """Go on with the run that was begun, if its store still knows it."""
        from mlflow.exceptions import MlflowException

        try:
            run_id = (self._folder / MLFLOW_RUN).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return
        try:
            found = self._client.get_run(run_id)
        except MlflowException:
            return  # another store, or one begun anew: it gets the whole history
        if found.info.lifecycle_stage != "active":
            return
        self._run_id = run_id
        last = list(EpochStats.__dataclass_fields__)[-1]
        steps = [metric.step for metric in self._client.get_metric_history(run_id, last)]
        self.num_epochs = max(steps, default=0)

    def _run(self) -> str:
        """Return MLflow's id of the run. It is made with its first epoch."""
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
        # MLflow's parameters never change, and a resumed training may have more epochs.
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
        """Say how it ended."""
        if self._run_id is not None:
            self._client.set_terminated(self._run_id, status=_MLFLOW_STATUS[status])


def _open_mlflow(root: Path) -> "MlflowClient":
    """Open the store in a folder: no server, no network, and no reports of use."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # which announce each table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    # Given here, so that MLFLOW_TRACKING_URI, which may be a server, is not asked.
    return MlflowClient(tracking_uri=f"sqlite:///{root / MLFLOW_DB}")


def _experiment(client: "MlflowClient", root: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    return client.create_experiment(
        EXPERIMENT, artifact_location=(root / MLFLOW_ARTIFACTS).as_uri()
    )
