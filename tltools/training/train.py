"""Train from a data set to a run folder: start, resume, interrupt and finish."""

import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools.backbones.backbone import FineTune
from tltools.calibration import fit_temperature
from tltools.card import Card, Confidence, DataFacts, Weights
from tltools.created import no_empty_folders
from tltools.data.dataset import Dataset
from tltools.distance import (
    MAX_IMAGES,
    MIN_QUARTILES,
    Measured,
    far_out,
    measure_distances,
    save_distance,
)
from tltools.errors import ArtifactError, ConfigError, ModelError, cause_of
from tltools.metrics import confusion_matrix, score, softmax
from tltools.plots import plot_confusion, plot_history
from tltools.progress import SILENT, Progress
from tltools.regular import regular_sha256
from tltools.run_folder import (
    CONFUSION,
    CURVES,
    DISTANCE,
    DISTANCES,
    FOLDS,
    PREDICTIONS,
    FoldPredictions,
    ImageDistances,
    RunPredictions,
    is_begun,
    is_finished,
    is_locked,
    locked,
    resumable_runs,
    resume_command,
    write_distances,
    write_folds,
    write_predictions,
)
from tltools.run_images import moved_file
from tltools.training import run as runs
from tltools.training.config import TrainConfig, TrainSetup
from tltools.training.early import check_folds
from tltools.training.estimate import suggest_fine_tuning
from tltools.training.fine_tuning import FineTuned
from tltools.training.fit import DivergedError, EpochStats, predict_source
from tltools.training.folds import cross_validate
from tltools.training.head_inputs import HeadInputs, collecting, num_channels
from tltools.training.logs import Logs, check_logs, open_logs
from tltools.training.prepare import Job, check_setup, prepare
from tltools.training.pretrained import find_download
from tltools.wording import counted, in_percent, listed, plural, seconds

_SAVE_EVERY_S = 2.0
"""Most training time that a power failure can cost: saving takes longer than a head's epoch."""
_TOLD_EPOCHS = 16
"""About how many epochs of a training are told, if they are quick."""
_QUICK_S = 1.0
"""Least time between two of them: a head's epochs are over before anyone could read them."""
_NAMED_RUNS = 4
"""Most runs that a question names."""
_TELL_EVERY_S = 10.0
"""Time after which an epoch is told anyway."""
_DEFAULT_SETUP = TrainSetup()


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """The result of one training."""

    folder: Path
    card: Card
    history: tuple[EpochStats, ...]
    interrupted: bool
    """Whether Ctrl-C stopped the training; the run is usable and can be resumed."""


def train_model(
    dataset: Dataset,
    config: TrainConfig,
    setup: TrainSetup = _DEFAULT_SETUP,
    *,
    folds: int = 0,
    progress: Progress = SILENT,
) -> TrainedRun:
    """Train one model and write its run folder.

    Ctrl-C stops the training and keeps the epochs completed so far; before the end of the first
    epoch it leaves nothing behind but cached features.

    Args:
        dataset: Labeled images with a training and a validation split.
        config: Settings that change the result.
        setup: Weights, device and folders.
        folds: Number of folds of a cross-validation before the training; 0 makes none.
        progress: Shows epochs and losses.

    Raises:
        ConfigError, DataError, DeviceError, ModelError: See their documentation.
    """
    check_logs(setup.logs)
    check_folds(folds)
    held_out = cross_validate(dataset, config, setup, folds, progress=progress) if folds else None
    job = prepare(dataset, config, setup, progress=progress)
    with no_empty_folders(setup.run_dir):
        trained = _train_new(job, _plan(job, setup), setup.run_dir, held_out, progress)
    if job.device.type == "cpu" and not trained.interrupted:
        try:
            score = trained.card.metrics.get("val")
            suggest_fine_tuning(job, progress, score=score, command=setup.command)
        except Exception as error:  # no hint is worth a training
            progress.detail(f"The time of fine-tuning cannot be estimated: {cause_of(error)}")
    return trained


def _train_new(
    job: Job,
    plan: runs.RunPlan,
    run_dir: Path,
    held_out: FoldPredictions | None,
    progress: Progress,
) -> TrainedRun:
    """Train in a new folder, which stays only if an epoch is completed, or if this is killed."""
    folder = runs.new_run_folder(run_dir, _run_name(job.config))
    usual = folder.with_name(runs.folder_name(_run_name(job.config)))
    if folder != usual:
        progress.say(f"New run: {folder} ({usual} exists)")
    try:
        with locked(folder):
            if held_out is not None:  # before the plan, which makes the folder a run to resume
                write_folds(folder, job.dataset.classes, held_out)
            runs.write_plan(folder, plan, job.dataset)
            return _Training(job, folder, plan, [], progress).run()
    finally:
        if not (folder / runs.STATE).exists():  # no completed epoch: nothing worth keeping
            shutil.rmtree(folder)


def _run_name(config: TrainConfig) -> str:
    return config.model if config.fine_tune == "none" else f"{config.model}-{config.fine_tune}"


def train_models(
    dataset: Dataset,
    configs: Sequence[TrainConfig],
    *,
    setup: TrainSetup = _DEFAULT_SETUP,
    folds: int = 0,
    progress: Progress = SILENT,
) -> Iterator[TrainedRun]:
    """Train several models on the same images, one after the other; Ctrl-C stops all of them.

    Args:
        dataset: As in `train_model`.
        configs: Settings of each model.
        setup: As in `train_model`.
        folds: As in `train_model`.
        progress: As in `train_model`.

    Raises:
        TltoolsError: If pretrained weights or the folder of the runs cannot be used, before the
            first model is trained; later, as in `train_model`.
    """
    check_setup(dataset, configs, setup)
    for config in configs:
        trained = train_model(dataset, config, setup, folds=folds, progress=progress)
        yield trained
        if trained.interrupted:
            return


def find_resumable(
    run_dir: Path,
    models: Sequence[str] | None = None,
    *,
    epochs: int | None,
    fine_tune: FineTune | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Return the newest run that has epochs left to train and that no other process is training.

    Args:
        run_dir: Parent of the run folders.
        models: Models to consider; None considers all.
        fine_tune: Consider only runs that fine-tune these layers; None considers all.
        epochs: A new total number of epochs; finished runs with fewer epochs count too.
        progress: Told which runs are left out because they are damaged.

    Raises:
        ArtifactError: If there is no such run.
        ConfigError: If the newest one is finished, and it is not the only one.
    """
    found = _sorted_out(run_dir, models, fine_tune)
    candidates = found.unfinished_or_below(epochs)
    if found.damaged and not (candidates or found.finished or found.busy):
        raise ArtifactError(_only_damaged(found.damaged))
    for folder, reason in found.damaged.items():
        progress.warn(f"{folder} is left out: {reason}")
    if not candidates:
        raise ArtifactError(_nothing_to_resume(run_dir, models, found.finished, found.busy))
    newest = next(iter(candidates))
    # Unfinished runs are continued in turn; which finished one to extend must be said.
    if newest in found.finished and len(candidates) > 1:
        raise ConfigError(_several(list(candidates), epochs))
    return newest


@dataclass(frozen=True)
class _Found:
    """The runs that have a plan, the newest first, by whether they can be resumed."""

    idle: dict[Path, TrainConfig] = field(default_factory=dict)
    """Runs that no process is training."""
    finished: dict[Path, TrainConfig] = field(default_factory=dict)
    """Those of them that completed their plan."""
    busy: list[Path] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)
    """Runs whose plan or card cannot be read, and why."""

    def unfinished_or_below(self, epochs: int | None) -> dict[Path, TrainConfig]:
        """Return the idle runs that are unfinished, or finished with fewer epochs."""
        return {
            folder: config
            for folder, config in self.idle.items()
            if folder not in self.finished or (epochs is not None and epochs > config.epochs)
        }


def _sorted_out(run_dir: Path, models: Sequence[str] | None, fine_tune: FineTune | None) -> _Found:
    """Look at the runs that `find_resumable` considers; one that is damaged does not stop it."""
    found = _Found()
    for folder in resumable_runs(run_dir):
        try:
            config = runs.read_plan(folder).train_config()
            is_other = models is not None and config.model not in models
            if is_other or fine_tune not in (None, config.fine_tune):
                continue
            if is_locked(folder):
                found.busy.append(folder)
                continue
            if is_finished(folder):
                found.finished[folder] = config
            found.idle[folder] = config
        except (ArtifactError, ConfigError) as error:
            found.damaged[folder] = str(error)
    return found


def _only_damaged(damaged: dict[Path, str]) -> str:
    """Return the message that no run can be resumed, because those that could be are damaged."""
    why = "; ".join(f"{folder} is left out: {reason}" for folder, reason in damaged.items())
    return (
        f"nothing to resume: {why}; if only its {runs.CARD} is damaged, delete that file, and "
        "tltools train --resume writes it anew; otherwise, train a new run"
    )


def _nothing_to_resume(
    run_dir: Path,
    models: Sequence[str] | None,
    finished: dict[Path, TrainConfig],
    busy: Sequence[Path],
) -> str:
    """Return the message that no run can be resumed; it names the busy or the finished ones."""
    of = f" of {' or '.join(models)}" if models else ""
    if busy:
        return (
            f"nothing to resume: another process is training {listed(list(map(str, busy)))}, and "
            f"no other run{of} in {run_dir}/ is unfinished; wait until it ends"
        )
    why = f"nothing to resume: no unfinished run{of} in {run_dir}/"
    if not finished:
        return f"{why}; train one with tltools train"
    named = listed([f"{folder} has {config.epochs}" for folder, config in finished.items()])
    return f"{why}; to extend a finished run, increase `epochs=` ({named})"


def _several(folders: Sequence[Path], epochs: int | None) -> str:
    """Return the message that several runs qualify, with a command for each."""
    shown = folders[:_NAMED_RUNS]
    more = f" (or {len(folders) - len(shown)} older ones)" if len(folders) > len(shown) else ""
    return (
        f"{counted(len(folders), 'run')} can be trained for {epochs} epochs; choose one: "
        f"{', or '.join(resume_command(one, epochs) for one in shown)}{more}"
    )


def check_resumable(folder: Path, epochs: int | None) -> None:
    """Check that a run has epochs left to train.

    Args:
        folder: The run.
        epochs: A new total number of epochs, or None.

    Raises:
        ArtifactError: If it is finished and is not given more epochs, or cannot be read.
    """
    planned = runs.read_plan(folder).train_config().epochs
    if is_finished(folder) and (epochs is None or epochs <= planned):
        raise ArtifactError(
            f"nothing to resume: {folder} is finished, with {counted(planned, 'epoch')}; to extend "
            "it, increase `epochs=`"
        )


def resume_run(
    folder: Path,
    setup: TrainSetup = _DEFAULT_SETUP,
    *,
    epochs: int | None = None,
    progress: Progress = SILENT,
) -> TrainedRun:
    """Resume a run where it stopped, on the same images with the same settings.

    A run that was stopped before the end of its first epoch begins again.

    Args:
        folder: The run.
        setup: Device, cache folder and logs, and the file of the run's weights if it was moved.
            The run keeps its own weights, normalization and logs; new logs receive all of its
            epochs.
        epochs: A new total number of epochs; None keeps the run's own.
        progress: As in `train_model`.

    Raises:
        ArtifactError: If the folder is not a resumable run.
        ConfigError: If the run was begun with more epochs, or another process is training it.
    """
    check_logs(setup.logs)
    if not folder.is_dir():
        raise ArtifactError(f"there is no run {folder}; tltools runs lists them")
    with locked(folder):
        return _resume(folder, setup, epochs, progress)


def _resume(folder: Path, setup: TrainSetup, epochs: int | None, progress: Progress) -> TrainedRun:
    plan = runs.read_plan(folder)
    plan = msgspec.structs.replace(plan, logs=tuple(dict.fromkeys((*plan.logs, *setup.logs))))
    config, state, history = plan.train_config(), None, []
    if (folder / runs.STATE).exists() or not is_begun(folder):
        state, history = runs.read_state(folder)
    # An earlier version did not note in the plan that a run was trained for more epochs.
    planned = max(config.epochs, len(history))
    if epochs is not None and epochs < planned:
        raise ConfigError(
            f"run {folder.name} was begun with {planned} epochs, which can only be increased; use "
            f"`epochs={planned}` or more"
        )
    config = replace(config, epochs=epochs or planned)
    plan = msgspec.structs.replace(plan, config=asdict(config))
    if plan.weights is not None:
        plan = msgspec.structs.replace(plan, weights=_weights_now(plan, config, setup, folder))
        setup = replace(setup, weights=plan.weights)
    setup = replace(setup, normalization=plan.normalization)
    dataset = runs.run_dataset(folder, progress=progress)

    def check_weights(weights: Weights) -> None:
        if plan.weights_sha256 not in ("", weights.sha256):
            raise ModelError(
                f"the weights {plan.weights} are not those that run {folder.name} was begun with; "
                "restore them, or train a new run"
            )

    job = prepare(dataset, config, setup, check_weights=check_weights, progress=progress)
    runs.save_plan(folder, plan)
    if config.epochs > planned and (folder / FOLDS).exists():
        (folder / FOLDS).unlink()
        progress.warn(
            f"{folder}: the cross-validation of {counted(planned, 'epoch')} is removed, since it "
            "says nothing about more; train a new run with `folds=` to repeat it"
        )
    training = _Training(job, folder, plan, history, progress)
    if state is not None:
        training.trainer.load_state_dict(state)
    del state  # the trainer has what it needs of it
    return training.run(resumed=True)


def _weights_now(plan: runs.RunPlan, config: TrainConfig, setup: TrainSetup, folder: Path) -> str:
    """Return the weights that a run was begun with: their name, or where their file is now.

    Raises:
        ModelError: If the file is no longer there and no other one is given.
    """
    assert plan.weights is not None
    if find_download(config.backbone, plan.weights) is not None:
        return plan.weights
    given = weights_to_resume_with(config, setup.weights)
    if given is not None and find_download(config.backbone, setup.weights) is None:
        return given  # that its bytes are the same is checked when it is read
    if os.path.lexists(plan.weights):
        return plan.weights
    found = moved_file(Path(plan.weights), plan.weights_sha256, folder)
    if found is None:
        raise ModelError(
            f"{plan.weights}, the weights of {folder}, is no longer there: restore it, or say "
            "where it is now with `weights=FILE`"
        )
    return str(found)


def _plan(job: Job, setup: TrainSetup) -> runs.RunPlan:
    dataset = job.dataset
    return runs.RunPlan(
        config=asdict(job.config),
        data=DataFacts(
            name=dataset.name,
            fingerprint=dataset.fingerprint,
            split=dataset.split_rule,
            num_train=len(dataset.part("train")),
            num_val=len(dataset.part("val")),
        ),
        classes=dataset.classes,
        weights=weights_to_resume_with(job.config, setup.weights),
        weights_sha256=job.weights.sha256,
        normalization=setup.normalization,
        logs=tuple(dict.fromkeys(setup.logs)),
    )


def weights_to_resume_with(config: TrainConfig, weights: str) -> str | None:
    """Return the weights of a frozen backbone; a file as an absolute path, valid in any folder."""
    if config.backbone.pretrained is None:
        return None
    named = find_download(config.backbone, weights) is not None
    return weights if named else os.path.abspath(weights)  # noqa: PTH100 - a link stays one


class _Training:
    """A run in progress, from its first or next epoch to its card."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        plan: runs.RunPlan,
        history: list[EpochStats],
        progress: Progress,
    ) -> None:
        self._job = job
        self._folder = folder
        self._plan = plan
        self._history = history
        self._progress = progress
        self._told = time.monotonic()
        self.trainer = job.new_trainer()

    def run(self, *, resumed: bool = False) -> TrainedRun:
        """Train the remaining epochs and finish the run; Ctrl-C keeps the complete epochs."""
        interrupted = False
        if self._history:
            self.trainer.is_saved(self._saved_state)
        with open_logs(self._plan.logs, self._folder, self._progress, resumed=resumed) as logs:
            try:
                self._run_epochs(logs)
            except (KeyboardInterrupt, DivergedError) as error:
                if not self._history:
                    raise
                interrupted = isinstance(error, KeyboardInterrupt)
                self._rewind("stopped by Ctrl-C" if interrupted else str(error))
            logs.follow(self._history)
            card = self._finish(interrupted=interrupted)
            logs.finish(card, interrupted=interrupted)
        return TrainedRun(
            folder=self._folder,
            card=card,
            history=tuple(self._history),
            interrupted=interrupted,
        )

    def _rewind(self, why: str) -> None:
        """Return to the last complete epoch."""
        self.trainer.rewind()
        self._save()
        self._progress.warn(
            f"{self._folder}: {why}; finishing the run with epoch {len(self._history)} as its last"
        )

    def _save(self) -> None:
        runs.save_state(self._folder, self.trainer.state_dict(), self._history)
        self.trainer.is_saved(self._saved_state)

    def _saved_state(self) -> dict[str, Any]:
        return runs.read_state(self._folder)[0]

    def _run_epochs(self, logs: Logs) -> None:
        trainer, config = self.trainer, self.trainer.config
        epochs = range(trainer.epoch + 1, config.epochs + 1)
        saved = -math.inf
        title = f"Training {config.model}"
        with self._progress.bar(title, len(trainer.train), epochs=epochs) as bar:
            while not trainer.finished:
                for done, loss in trainer.run_epoch():
                    bar.advance(done, note=f"loss {loss:.4f}")
                stats = trainer.stats
                self._history.append(stats)
                if trainer.finished or time.monotonic() - saved > _SAVE_EVERY_S:
                    self._save()
                    logs.follow(self._history)
                    saved = time.monotonic()
                self._tell_epoch(stats)
            if trainer.epoch < config.epochs:
                self._progress.say(
                    f"Stopped early: no lower validation loss for {config.patience} "
                    f"{plural(config.patience, 'epoch')}"
                )

    def _tell_epoch(self, stats: EpochStats) -> None:
        """Say how an epoch went; of many quick ones, only some, since `history.csv` has all."""
        num_epochs, now = self.trainer.config.epochs, time.monotonic()
        every = -(-num_epochs // _TOLD_EPOCHS)
        wait_s = _QUICK_S if stats.epoch % every == 0 else _TELL_EVERY_S
        is_told = stats.epoch == 1 or now - self._told >= wait_s
        tell = self._progress.detail
        if is_told or self.trainer.finished:
            self._told, tell = now, self._progress.say
        tell(
            f"epoch {stats.epoch:3d}/{num_epochs}  "
            f"train loss {stats.train_loss:.4f} acc {in_percent(stats.train_accuracy)}  "
            f"val loss {stats.val_loss:.4f} acc {in_percent(stats.val_accuracy)}  "
            f"{seconds(stats.seconds)}"
        )

    def _finish(self, *, interrupted: bool) -> Card:
        """Write the kept epoch's weights and a card; then score and describe them.

        Nothing after the checkpoint costs the training: a step that fails is reported with the
        command that repeats it.
        """
        job = self._job
        before = self._earlier()
        job.trained.load_state_dict(self.trainer.chosen_state())
        # Of an earlier checkpoint; the folds' predictions are of the settings.
        for name in (DISTANCE, DISTANCES, PREDICTIONS, CONFUSION, CURVES):
            (self._folder / name).unlink(missing_ok=True)
        runs.save_checkpoint(self._folder, job.finished_state())
        card = self._card(interrupted=interrupted)
        if before is not None and before[0] == self._checkpoint_sha256():
            # The same model as before: its exports and its threshold still hold.
            card = msgspec.structs.replace(
                card, created=before[1].created, threshold=before[1].threshold
            )
        why = "lowest validation loss" if job.config.keep == "best" else "the last one"
        kept, done = card.training["kept_epoch"], card.training["epochs_done"]
        self._progress.say(f"Kept epoch {kept} of {done} ({why})")
        runs.save_card(self._folder, card)  # without scores, in case that scoring is killed
        again = resume_command(self._folder)
        with self._optional("scoring", f"score it again with {again}"):
            outputs = self._outputs()
            card = self._scored(card, outputs)
            runs.save_card(self._folder, card)
            self._describe(outputs, card)
        with self._optional("drawing curves.png", "tltools report draws it"):
            self._plot_history(kept)
        return card

    def _earlier(self) -> tuple[str, Card] | None:
        """Return the hash of the checkpoint that is there, and its card; None if one is missing."""
        try:
            return self._checkpoint_sha256(), runs.load_card(self._folder)
        except (OSError, ArtifactError):
            return None

    def _checkpoint_sha256(self) -> str:
        return regular_sha256(self._folder / runs.CHECKPOINT)

    @contextmanager
    def _optional(self, what: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # no score or drawing is worth hours of training
            self._progress.warn(
                f"{self._folder}: {what} failed: {cause_of(error)}; the model is saved; {remedy}"
            )

    def _scored(self, card: Card, outputs: "dict[str, _Outputs]") -> Card:
        """Return the card with the scores of all splits and the temperature."""
        metrics = {name: score(one.preds, one.targets) for name, one in outputs.items()}
        val = outputs["val"]
        try:
            confidence = fit_temperature(val.logits, val.targets)
        except (ValueError, MemoryError) as error:
            confidence = Confidence(note=f"it could not be fitted: {cause_of(error)}")
        tell = self._progress.say if confidence.note else self._progress.detail
        tell(_of_confidence(confidence))
        return msgspec.structs.replace(card, metrics=metrics, confidence=confidence)

    def _describe(self, outputs: "dict[str, _Outputs]", card: Card) -> None:
        """Write the predictions for held-out images, and draw the confusion matrix."""
        remedy = f"tltools evaluate {self._folder} DATA --output FOLDER writes it"
        with self._optional("writing predictions.csv", remedy):
            self._write_predictions(outputs, card)
        with self._optional("drawing confusion_matrix.png", remedy):
            self._plot_confusion(outputs["val"])
        with self._optional("measuring distances", "tltools export measures them"):
            self._measure_distances(outputs)

    def _write_predictions(self, outputs: "dict[str, _Outputs]", card: Card) -> None:
        dataset = self._job.dataset
        predictions = {
            split: RunPredictions(
                paths=tuple(dataset.part(split)["path"]),
                targets=one.targets,
                probs=softmax(one.logits, temperature=card.temperature),
            )
            for split, one in outputs.items()
            if split != "train"
        }
        write_predictions(self._folder, dataset.classes, predictions)

    def _outputs(self) -> "dict[str, _Outputs]":
        """Run the model over all splits."""
        sources = self._job.sources
        outputs: dict[str, _Outputs] = {}
        with self._progress.bar("Scoring", sum(map(len, sources.values()))) as bar:
            for split, source in sources.items():
                inputs = self._head_inputs(len(source))
                with collecting(self._job.model.head, inputs):
                    logits, targets = predict_source(self._job.trained, source)
                outputs[split] = _Outputs(logits.numpy(), targets.numpy(), inputs.values())
                bar.advance(len(source))
        return outputs

    def _head_inputs(self, num_images: int) -> HeadInputs:
        job = self._job
        scaling = job.trained.scaling if isinstance(job.trained, FineTuned) else job.scaling
        channels = num_channels(job.model.head, job.config.backbone.flat_channels)
        return HeadInputs(channels, scaling, step=_step(num_images))

    def _measure_distances(self, outputs: "dict[str, _Outputs]") -> None:
        """Write how far an image's features are from those of the training images."""
        found = measure_distances(outputs["train"].features, outputs["val"].features)
        if found is None:
            return
        save_distance(self._folder / DISTANCE, found.distance, found.facts)
        if found.facts.num_images < MIN_QUARTILES:
            return
        images = self._image_distances(outputs, found)
        write_distances(self._folder, images)
        far = np.flatnonzero(images.distances > far_out(found.facts))
        if len(far):
            first = images.paths[far[images.distances[far].argmax()]]
            self._progress.say(
                f"Unlike the other training images: {len(far):,} of "
                f"{counted(len(images.paths), 'image')}, most of all {first}; look at them in "
                f"{self._folder / DISTANCES} or in a report"
            )

    def _image_distances(self, outputs: "dict[str, _Outputs]", found: Measured) -> ImageDistances:
        """Return the distances of the images whose features were kept."""
        dataset = self._job.dataset
        paths: list[str] = []
        labels: list[str] = []
        splits: list[str] = []
        values: list[NDArray[np.float64]] = []
        for split, one in outputs.items():
            kept = slice(None, None, _step(len(one.targets)))
            paths.extend(dataset.part(split)["path"].iloc[kept])
            labels.extend(dataset.classes[target] for target in one.targets[kept])
            splits.extend([split] * len(one.features))
            values.append(found.training if split == "train" else found.distance(one.features))
        return ImageDistances(
            paths=tuple(paths),
            labels=tuple(labels),
            splits=tuple(splits),
            distances=np.concatenate(values),
        )

    def _plot_confusion(self, val: "_Outputs") -> None:
        classes = self._job.dataset.classes
        matrix = confusion_matrix(val.preds, val.targets, num_classes=len(classes))
        share = in_percent(matrix.trace() / matrix.sum())
        right = f"{share} of {matrix.sum():,} validation images"
        title = f"{self._folder.name}: {right}"
        plot_confusion(matrix, classes, self._folder / CONFUSION, title=title)

    def _plot_history(self, kept: int) -> None:
        import pandas as pd

        history = pd.DataFrame([asdict(stats) for stats in self._history])
        plot_history(history, self._folder / CURVES, title=self._folder.name, kept=kept)

    def _card(self, *, interrupted: bool) -> Card:
        """Return the card without scores."""
        job = self._job
        epochs_done = kept_epoch = len(self._history)
        if job.config.keep == "best":
            kept_epoch = self.trainer.best_epoch
        return Card(
            run=self._folder.name,
            model=job.config.model,
            head=job.config.head,
            classes=job.dataset.classes,
            preprocessing=job.preprocessing,
            weights=job.weights,
            data=self._plan.data,
            metrics={},
            training={
                **asdict(job.config),
                **job.computed(),
                "epochs_done": epochs_done,
                "kept_epoch": kept_epoch,
                "interrupted": interrupted,
            },
            versions=runs.tool_versions(),
            created=runs.now(),
        )


@dataclass(frozen=True, eq=False)
class _Outputs:
    """Outputs of the trained model on a split."""

    logits: NDArray[np.float32]
    """(N, C)."""
    targets: NDArray[np.int64]
    """(N,)."""
    features: NDArray[np.float32]
    """Pooled features of some of the images, (n, D)."""

    @property
    def preds(self) -> NDArray[np.int64]:
        """Predicted class indices, (N,)."""
        return self.logits.argmax(axis=1)


def _step(num_images: int) -> int:
    """Return one of how many images gives its features."""
    return max(1, -(-num_images // MAX_IMAGES))


def _of_confidence(confidence: Confidence) -> str:
    """Describe the calibration in one line."""
    before, after = confidence.ece_before, confidence.ece_after
    if confidence.note or before is None or after is None:
        return f"Confidence is not calibrated (temperature 1): {confidence.note}"
    return (
        f"Temperature {confidence.temperature:.2f}: expected calibration error "
        f"{in_percent(before)} before, {in_percent(after)} after (held out)"
    )
