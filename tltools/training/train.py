"""One training from a data set to a run folder: start, resume, interrupt, finish."""

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from tltools.calibration import fit_temperature
from tltools.card import Card, Confidence, DataFacts, Preprocessing, Score, Weights
from tltools.data.dataset import Dataset
from tltools.errors import ArtifactError, ConfigError
from tltools.metrics import confusion_matrix, score, softmax
from tltools.plots import plot_confusion, plot_history
from tltools.progress import SILENT, Progress
from tltools.ray.models import RayCluster
from tltools.run_folder import RunPredictions, write_predictions
from tltools.runtime.device import Device, allow_tf32, make_deterministic, torch_device
from tltools.training import run as runs
from tltools.training.config import TrainConfig
from tltools.training.decoded import decode_once, fits_on_gpu
from tltools.training.features import (
    FeatureCache,
    Precision,
    choose_calibration,
    choose_precision,
    default_cache_dir,
    extract_features,
)
from tltools.training.fit import EpochStats, Trainer, predict_source
from tltools.training.logs import Logs, check_logs, open_logs
from tltools.training.models import Classifier, build_cnn, build_vgg16
from tltools.training.sources import Source
from tltools.training.weights import PretrainedWeights, load_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAVE_EVERY_S = 2.0
"""How much of a training a power cut may cost: a head's epochs are shorter than saving one."""
_SMALLEST_STD = 0.01
"""Of a feature that is scaled, as a share of the root mean square of all features."""


class Extract(Protocol):
    """Computes features, or finds them in the cache."""

    def __call__(
        self, paths: Sequence[Path], hashes: Sequence[str], precision: Precision
    ) -> "NDArray[np.float32]":
        """Return the features of pictures, float32 (N, F)."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """What one training made."""

    folder: Path
    card: Card
    history: tuple[EpochStats, ...]
    interrupted: bool
    """Ended by Ctrl-C; the run is usable and `--resume` goes on with it."""


@dataclass
class _Job:
    """What a training works with: the same for a new one and for one that is resumed."""

    config: TrainConfig
    dataset: Dataset
    model: Classifier
    trained: nn.Module
    """What the optimizer sees: the whole cnn, or vgg16's head."""
    sources: dict[str, Source]
    """By split."""
    weights: Weights
    preprocessing: Preprocessing
    device: torch.device
    scaling: tuple[Tensor, Tensor] | None = None
    """Mean and standard deviation of the features, where the head is trained on scaled ones."""


def train_model(
    dataset: Dataset,
    config: TrainConfig,
    *,
    weights: str = "imagenet",
    normalization: str = "auto",
    device: Device = "auto",
    run_dir: Path = Path("runs"),
    cache_dir: Path | None = None,
    logs: Sequence[str] = (),
    remote: RayCluster | None = None,
    progress: Progress = SILENT,
) -> TrainedRun:
    """Train one model and write its run folder.

    Ctrl-C during the epochs ends the training with what it has; before the first epoch is
    done, nothing is left behind but cached features.

    Args:
        dataset: Labelled pictures with train and val.
        config: Settings.
        weights: VGG16's: `imagenet` or a file. The cnn has none.
        normalization: See `load_weights`.
        device: `auto`, `cpu` or `cuda`.
        run_dir: Where the run folder is made.
        cache_dir: Where features are kept, and decoded images that do not fit in memory; None for
            the user's cache folder.
        logs: Experiment logs to write: `tensorboard`, `mlflow`.
        remote: A cluster that computes VGG16's features.
        progress: Shows epochs and losses.

    Raises:
        ConfigError, DataError, DeviceError, ModelError: See their documentation.
    """
    check_logs(logs)
    plan_weights = weights if config.model == "vgg16" else None
    job = _prepare(
        dataset, config, plan_weights, normalization, device, cache_dir, remote, progress
    )
    plan = runs.Plan(
        config=asdict(job.config),
        data=DataFacts(
            name=dataset.name,
            fingerprint=dataset.fingerprint,
            split=dataset.split_rule,
            num_train=len(dataset.part("train")),
            num_val=len(dataset.part("val")),
        ),
        classes=dataset.classes,
        weights=_absolute(plan_weights),
        normalization=normalization,
        logs=tuple(dict.fromkeys(logs)),
    )
    folder = runs.new_run_folder(run_dir, config.model)
    try:
        runs.write_plan(folder, plan, dataset)
        return _fit(job, folder, plan, [], None, progress)
    finally:
        if not (folder / runs.STATE).exists():  # not one epoch: nothing that is worth keeping
            shutil.rmtree(folder)


def train_models(
    dataset: Dataset,
    configs: Sequence[TrainConfig],
    **options: Any,
) -> Iterator[TrainedRun]:
    """Train several models on the same pictures, one after the other; Ctrl-C ends them all.

    Args:
        dataset: As in `train_model`.
        configs: One for each model.
        options: As in `train_model`.
    """
    for config in configs:
        trained = train_model(dataset, config, **options)
        yield trained
        if trained.interrupted:
            return


def find_resumable(run_dir: Path, models: Sequence[str], *, epochs: int | None) -> Path:
    """Return the newest run that has something left to do.

    Args:
        run_dir: Where runs are.
        models: Which models count.
        epochs: A new number of epochs, which gives finished runs something to do.

    Raises:
        ArtifactError: If there is none.
    """
    states = sorted(run_dir.glob(f"*/{runs.STATE}"), key=lambda path: path.stat().st_mtime)
    for path in reversed(states):
        folder = path.parent
        config = runs.read_plan(folder).train_config()
        more = epochs is not None and epochs > config.epochs
        if config.model in models and (more or not runs.is_finished(folder)):
            return folder
    raise ArtifactError(
        f"nothing to resume: no unfinished run of {' or '.join(models)} in {run_dir}/; a finished "
        "one goes on with a larger --epochs"
    )


def resume_run(
    folder: Path,
    *,
    epochs: int | None = None,
    device: Device = "auto",
    cache_dir: Path | None = None,
    logs: Sequence[str] = (),
    remote: RayCluster | None = None,
    progress: Progress = SILENT,
) -> TrainedRun:
    """Go on with a run where it stopped, on the same pictures with the same settings.

    Args:
        folder: The run.
        epochs: A new number of epochs in all; None keeps the run's own.
        device: As in `train_model`.
        cache_dir: As in `train_model`.
        logs: Experiment logs besides those that the run has; they get all of its epochs.
        remote: As in `train_model`.
        progress: As in `train_model`.

    Raises:
        ArtifactError: If the folder is not a run that can be resumed.
    """
    check_logs(logs)
    plan = runs.read_plan(folder)
    plan = msgspec.structs.replace(plan, logs=tuple(dict.fromkeys((*plan.logs, *logs))))
    config = plan.train_config()
    if epochs is not None:
        config = replace(config, epochs=epochs)
    state, history = runs.read_state(folder)
    if state["epoch"] > config.epochs:
        raise ConfigError(
            f"run {folder.name} has done {state['epoch']} epochs already; --epochs must be more"
        )
    dataset = runs.run_dataset(folder)
    job = _prepare(
        dataset, config, plan.weights, plan.normalization, device, cache_dir, remote, progress
    )
    runs.save_plan(folder, plan)
    return _fit(job, folder, plan, history, state, progress)


def _absolute(weights: str | None) -> str | None:
    """Return a weights file's absolute path, so that a run resumes from any folder."""
    if weights is None or weights == "imagenet":
        return weights
    return str(Path(weights).absolute())


def _prepare(
    dataset: Dataset,
    config: TrainConfig,
    weights: str | None,
    normalization: str,
    device: Device,
    cache_dir: Path | None,
    remote: RayCluster | None,
    progress: Progress,
) -> _Job:
    choice = torch_device(device)
    progress.say(f"Device: {choice.device} ({choice.reason})")
    if config.precision == "amp" and choice.device == "cpu":
        raise ConfigError("--precision amp needs a GPU; use --precision fp32 on the CPU")
    chosen = torch.device(choice.name)
    allow_tf32(False)  # a run is judged by what its exports compute, in full fp32
    make_deterministic()
    cache_dir = cache_dir or default_cache_dir()
    if weights is None:
        if remote is not None:
            progress.say("The cnn has no features for Ray to compute; it is trained here")
        return _prepare_cnn(dataset, config, chosen, cache_dir, progress)
    pretrained = load_weights(weights, normalization=normalization)
    return _prepare_vgg16(dataset, config, pretrained, chosen, cache_dir, remote, progress)


def _prepare_cnn(
    dataset: Dataset,
    config: TrainConfig,
    device: torch.device,
    cache_dir: Path,
    progress: Progress,
) -> _Job:
    preprocessing = Preprocessing(resize=config.resize)  # 0-1 pixels, as in the article
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_cnn(len(dataset.classes), preprocessing)
    paths = {
        split: [Path(path) for path in dataset.part(split)["path"]] for split in _splits(dataset)
    }
    images = decode_once(
        [path for part in paths.values() for path in part],
        preprocessing,
        device=device,
        cache_dir=cache_dir,
        progress=progress,
    )
    parts = images.split([len(part) for part in paths.values()])
    sources = {
        split: Source(samples, torch.from_numpy(dataset.targets(split)), config.batch_size, device)
        for split, samples in zip(paths, parts, strict=True)
    }
    facts = Weights(source="random")
    model = model.to(device).to(memory_format=torch.channels_last)
    return _Job(config, dataset, model, model, sources, facts, preprocessing, device)


def _prepare_vgg16(
    dataset: Dataset,
    config: TrainConfig,
    pretrained: PretrainedWeights,
    device: torch.device,
    cache_dir: Path,
    remote: RayCluster | None,
    progress: Progress,
) -> _Job:
    head = config.head
    if head == "auto":
        head = "last-layer" if pretrained.has_classifier else "pooled"
        config = replace(config, head=head)
    preprocessing = Preprocessing(resize=config.resize, mean=pretrained.mean, std=pretrained.std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_vgg16(len(dataset.classes), preprocessing, head=head, state=pretrained.state)
    progress.say(f"VGG16: weights {pretrained.facts.source}, head {head}")

    def extract(
        paths: Sequence[Path], hashes: Sequence[str], precision: Precision
    ) -> "NDArray[np.float32]":
        calibration = choose_calibration(paths, hashes) if precision == "int8" else {}
        cache = FeatureCache(
            cache_dir,
            weights_sha256=pretrained.facts.sha256,
            head=head,
            preprocessing=preprocessing,
            runtime="torch" if remote is None and device.type != "cpu" else "onnxruntime",
            precision=precision,
            calibration=list(calibration),
        )
        return extract_features(
            model,
            paths,
            hashes,
            preprocessing=preprocessing,
            cache=cache,
            device=device,
            precision=precision,
            calibration=list(calibration.values()),
            remote=remote,
            progress=progress,
        )

    precision = choose_precision(
        config.feature_precision, on_gpu=device.type != "cpu", on_cluster=remote is not None
    )
    with remote or nullcontext():  # the epochs need no cluster
        features = _features(dataset, extract, precision)
    splits = dataset.frame["split"].to_numpy()
    scaling = None
    if config.standardize:
        trained_on = features[torch.from_numpy(splits == "train")]
        # A feature that hardly varies in train would be noise, blown up, on a picture that differs.
        floor = _SMALLEST_STD * trained_on.square().mean().sqrt().item()
        std = trained_on.std(dim=0, correction=0).clamp(min=max(floor, 1e-12))
        scaling = trained_on.mean(dim=0), std
        features = (features - scaling[0]) / scaling[1]
    if fits_on_gpu(features.nbytes, device):
        features = features.to(device)
    sources = {
        split: Source(
            features[torch.from_numpy(splits == split).to(features.device)],
            torch.from_numpy(dataset.targets(split)),
            config.batch_size,
            device,
        )
        for split in _splits(dataset)
    }
    trained = model.head.to(device)
    return _Job(
        config, dataset, model, trained, sources, pretrained.facts, preprocessing, device, scaling
    )


def _features(dataset: Dataset, extract: "Extract", precision: Precision) -> Tensor:
    """Return the frozen features of all images, float32 (N, F), in the frame's order.

    `precision` is the training split's; what the head is judged by is always fp32.
    """
    rows = dataset.frame.reset_index(drop=True)
    parts: list[NDArray[np.float32]] = []
    order: list[int] = []
    in_train = rows["split"] == "train"
    precisions: tuple[Precision, Precision] = (precision, "fp32")
    for part, computed_in in zip((rows[in_train], rows[~in_train]), precisions, strict=True):
        if len(part):
            paths = [Path(path) for path in part["path"]]
            parts.append(extract(paths, list(part["sha256"]), computed_in))
            order += list(part.index)
    features = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
    features[order] = np.concatenate(parts)
    return torch.from_numpy(features)


def _splits(dataset: Dataset) -> list[str]:
    return [split for split in ("train", "val", "test") if len(dataset.part(split))]


def _fit(
    job: _Job,
    folder: Path,
    plan: runs.Plan,
    history: list[EpochStats],
    state: dict | None,
    progress: Progress,
) -> TrainedRun:
    trainer = Trainer(
        job.trained,
        job.config,
        job.sources["train"],
        job.sources["val"],
        device=job.device,
        num_classes=len(job.dataset.classes),
        train_targets=job.dataset.targets("train"),
    )
    if state is not None:
        trainer.load_state_dict(state)
    interrupted = False
    with open_logs(plan.logs, folder, progress, resumed=state is not None) as logs:
        try:
            _run_epochs(trainer, folder, history, logs, progress)
        except KeyboardInterrupt:
            if not history:
                raise
            interrupted = True
            trainer.rewind()
            runs.save_state(folder, trainer.state_dict(), history)
            progress.warn(
                f"Stopped by Ctrl-C after epoch {len(history)}: keeping what it has learnt"
            )
        logs.follow(history)
        run = _finish(job, trainer, folder, plan, history, progress, interrupted=interrupted)
        logs.finish(run.card, interrupted=interrupted)
    return run


def _run_epochs(
    trainer: Trainer, folder: Path, history: list[EpochStats], logs: Logs, progress: Progress
) -> None:
    config = trainer.config
    left = (config.epochs - trainer.epoch) * len(trainer.train)
    name = f"Training {config.model}"
    saved = -math.inf
    with progress.bar(name, left) as bar:
        while not trainer.finished:
            for done, loss in trainer.run_epoch():
                bar.advance(done, note=f"epoch {trainer.epoch + 1} loss {loss:.4f}")
            stats = trainer.stats
            history.append(stats)
            if trainer.finished or time.monotonic() - saved > _SAVE_EVERY_S:
                runs.save_state(folder, trainer.state_dict(), history)
                logs.follow(history)
                saved = time.monotonic()
            progress.say(
                f"epoch {stats.epoch:3d}/{config.epochs}  "
                f"train loss {stats.train_loss:.4f} acc {stats.train_accuracy:.4f}  "
                f"val loss {stats.val_loss:.4f} acc {stats.val_accuracy:.4f}  "
                f"{stats.seconds:.1f} s"
            )
        if trainer.epoch < config.epochs:
            progress.say(f"No lower validation loss for {config.patience} epochs: stopped early")


def _finish(
    job: _Job,
    trainer: Trainer,
    folder: Path,
    plan: runs.Plan,
    history: list[EpochStats],
    progress: Progress,
    *,
    interrupted: bool,
) -> TrainedRun:
    """Score the chosen epoch's weights, then write checkpoint, plots and, last, the card."""
    job.trained.load_state_dict(trainer.chosen_state())
    metrics: dict[str, Score] = {}
    confidence: Confidence | None = None
    outputs: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
    with progress.bar("Scoring", sum(map(len, job.sources.values()))) as bar:
        for split, source in job.sources.items():
            logits, target = predict_source(job.trained, source)
            preds = logits.argmax(dim=1).numpy()
            metrics[split] = score(preds, target.numpy())
            bar.advance(len(source))
            if split != "train":
                outputs[split] = logits.numpy(), target.numpy()
            if split == "val":
                confidence = fit_temperature(logits.numpy(), target.numpy())
                progress.say(_of_confidence(confidence))
                matrix = confusion_matrix(
                    preds, target.numpy(), num_classes=len(job.dataset.classes)
                )
                plot_confusion(
                    matrix,
                    job.dataset.classes,
                    folder / "confusion_matrix.png",
                    title=f"{folder.name}: validation",
                )
    if job.scaling is not None:
        _fold_scaling(job.model.head, *job.scaling)
    keep_best = job.config.keep == "best" and trainer.best_epoch
    card = Card(
        run=folder.name,
        model=job.config.model,
        head=job.config.head,
        classes=job.dataset.classes,
        preprocessing=job.preprocessing,
        weights=job.weights,
        data=plan.data,
        metrics=metrics,
        confidence=confidence,
        training={
            **asdict(job.config),
            "epochs_done": len(history),
            "kept_epoch": trainer.best_epoch if keep_best else len(history),
            "interrupted": interrupted,
        },
        versions=runs.tool_versions(),
        created=runs.now(),
    )
    plot_history(_frame(history), folder / "curves.png", title=folder.name)
    write_predictions(
        folder,
        job.dataset.classes,
        {
            split: RunPredictions(
                paths=tuple(job.dataset.part(split)["path"]),
                targets=targets,
                probs=softmax(logits, temperature=card.temperature),
            )
            for split, (logits, targets) in outputs.items()
        },
    )
    runs.save_run(folder, job.model.cpu(), card)
    return TrainedRun(folder=folder, card=card, history=tuple(history), interrupted=interrupted)


def _of_confidence(confidence: Confidence) -> str:
    """Say what the calibration came to."""
    before, after = confidence.ece_before, confidence.ece_after
    if confidence.note or before is None or after is None:
        return f"Temperature 1: {confidence.note}"
    return (
        f"Temperature {confidence.temperature:.2f}: expected calibration error {before:.4f} "
        f"before, {after:.4f} after (held out)"
    )


def _frame(history: list[EpochStats]):
    import pandas as pd

    return pd.DataFrame([asdict(stats) for stats in history])


@torch.no_grad()
def _fold_scaling(head: nn.Linear, mean: Tensor, std: Tensor) -> None:
    """Let a head trained on scaled features take raw ones: W (x - mean) / std + b, in place."""
    weight = head.weight.detach().double().cpu() / std.double()
    bias = head.bias.detach().double().cpu() - weight @ mean.double()
    head.weight.copy_(weight)
    head.bias.copy_(bias)
