"""Prepare a training: build the model, and the samples for the training loop."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tltools.card import Preprocessing, Weights
from tltools.data.dataset import Dataset
from tltools.errors import ConfigError
from tltools.progress import Progress
from tltools.runtime.device import allow_tf32, make_deterministic, torch_device
from tltools.training.config import TrainConfig, TrainSetup
from tltools.training.decoded import decode_once, fits_on_gpu
from tltools.training.features import (
    FeatureCache,
    Precision,
    choose_calibration,
    choose_precision,
    default_cache_dir,
    extract_features,
)
from tltools.training.models import Classifier, build_classifier
from tltools.training.pretrained import load_weights
from tltools.training.sources import Source

_SMALLEST_STD = 0.01
"""Floor for a feature's standard deviation, as a fraction of the RMS of all features."""


@dataclass(frozen=True)
class Scaling:
    """Standardization of features before a head is trained on them: (x - mean) / std."""

    mean: Tensor
    """Float32 (F,), on the CPU."""
    std: Tensor
    """Float32 (F,), on the CPU; positive."""

    @classmethod
    def fit(cls, features: Tensor) -> "Scaling":
        """Return the scaling that gives features, float32 (N, F), zero mean and unit variance."""
        # Without the floor, a nearly constant feature would be amplified noise on a new image.
        floor = _SMALLEST_STD * features.square().mean().sqrt().item()
        std = features.std(dim=0, correction=0).clamp(min=max(floor, 1e-12))
        return cls(features.mean(dim=0), std)

    def apply(self, features: Tensor) -> Tensor:
        """Scale features, float32 (N, F)."""
        return (features - self.mean) / self.std

    @torch.no_grad()
    def fold_into(self, head: nn.Linear) -> None:
        """Fold the scaling into a head, in place, so that it takes raw features.

        W (x - mean) / std + b becomes W' x + b'.
        """
        weight = head.weight.detach().double().cpu() / self.std.double()
        bias = head.bias.detach().double().cpu() - weight @ self.mean.double()
        head.weight.copy_(weight)
        head.bias.copy_(bias)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A prepared training, whether new or resumed."""

    config: TrainConfig
    """Settings with the head that was chosen for `auto`."""
    dataset: Dataset
    model: Classifier
    trained: nn.Module
    """The part that the optimizer updates: the whole model, or the head of a frozen backbone."""
    sources: dict[str, Source]
    """By split."""
    weights: Weights
    preprocessing: Preprocessing
    device: torch.device
    scaling: Scaling | None = None
    """Set if the head is trained on scaled features."""


def prepare(dataset: Dataset, config: TrainConfig, setup: TrainSetup, *, progress: Progress) -> Job:
    """Build the model; decode the images, or compute the features of a frozen backbone.

    Raises:
        ConfigError: If the device or the cluster does not support the settings.
        DataError: If an image cannot be read.
        DeviceError: If the device is not available.
        ModelError: If pre-trained weights cannot be loaded.
    """
    choice = torch_device(setup.device)
    progress.say(f"Device: {choice.device} ({choice.reason})")
    if config.precision == "amp" and choice.device == "cpu":
        raise ConfigError("`precision=amp` needs a GPU; use `precision=fp32` on the CPU")
    allow_tf32(False)  # exports are verified against the run in full fp32
    make_deterministic()
    device = torch.device(choice.name)
    if config.backbone.pretrained is None:
        if setup.remote is not None:
            progress.say(
                f"{config.model} has no features for Ray to compute; training it on this machine"
            )
        return _prepare_images(dataset, config, setup, device, progress)
    return _prepare_features(dataset, config, setup, device, progress)


def _prepare_images(
    dataset: Dataset,
    config: TrainConfig,
    setup: TrainSetup,
    device: torch.device,
    progress: Progress,
) -> Job:
    """Prepare to train all layers of a model on decoded images."""
    config = _with_head(config, {})
    size = config.image_size or config.backbone.input_size
    preprocessing = Preprocessing(size=size, resize=config.resize)  # pixels on the 0-1 scale
    model = _build(dataset, config, preprocessing)
    paths = {
        split: [Path(path) for path in dataset.part(split)["path"]] for split in _splits(dataset)
    }
    images = decode_once(
        [path for part in paths.values() for path in part],
        preprocessing,
        device=device,
        cache_dir=setup.cache_dir or default_cache_dir(),
        progress=progress,
    )
    parts = images.split([len(part) for part in paths.values()])
    model = model.to(device).to(memory_format=torch.channels_last)
    return Job(
        config=config,
        dataset=dataset,
        model=model,
        trained=model,
        sources={
            split: _source(dataset, split, samples, config, device)
            for split, samples in zip(paths, parts, strict=True)
        },
        weights=Weights(source="random"),
        preprocessing=preprocessing,
        device=device,
    )


def _prepare_features(
    dataset: Dataset,
    config: TrainConfig,
    setup: TrainSetup,
    device: torch.device,
    progress: Progress,
) -> Job:
    """Prepare to train the head of a frozen backbone on its features."""
    backbone = config.backbone
    pretrained = load_weights(backbone, setup.weights, normalization=setup.normalization)
    config = _with_head(config, pretrained.state)
    preprocessing = pretrained.preprocessing(config.resize, size=config.image_size)
    model = _build(dataset, config, preprocessing, pretrained.state)
    progress.say(f"{backbone.title}: weights {pretrained.facts.source}, head {config.head}")
    frozen = _FrozenBackbone(
        model=model,
        head=config.head,
        weights_sha256=pretrained.facts.sha256,
        preprocessing=preprocessing,
        setup=setup,
        device=device,
        progress=progress,
    )
    precision = choose_precision(
        config.feature_precision, on_gpu=device.type != "cpu", on_cluster=setup.remote is not None
    )
    with setup.remote or nullcontext():  # leave the cluster before the epochs
        features = _features(dataset, frozen, precision)
    scaling = None
    if config.standardize:
        scaling = Scaling.fit(features[_rows(dataset, "train")])
        features = scaling.apply(features)
    if fits_on_gpu(features.nbytes, device):
        features = features.to(device)
    return Job(
        config=config,
        dataset=dataset,
        model=model,
        trained=model.head.to(device),
        sources={
            split: _source(
                dataset, split, features[_rows(dataset, split).to(features.device)], config, device
            )
            for split in _splits(dataset)
        },
        weights=pretrained.facts,
        preprocessing=preprocessing,
        device=device,
        scaling=scaling,
    )


def _with_head(config: TrainConfig, state: Mapping[str, Tensor]) -> TrainConfig:
    """Return the settings with `auto` replaced by the head that the weights support."""
    if config.head != "auto":
        return config
    return replace(config, head=config.backbone.choose_head(state))


def _build(
    dataset: Dataset,
    config: TrainConfig,
    preprocessing: Preprocessing,
    state: Mapping[str, Tensor] | None = None,
) -> Classifier:
    """Build the model with random values that depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_classifier(
            config.backbone, len(dataset.classes), preprocessing, head=config.head, state=state
        )


def _source(
    dataset: Dataset, split: str, samples: Tensor, config: TrainConfig, device: torch.device
) -> Source:
    return Source(samples, torch.from_numpy(dataset.targets(split)), config.batch_size, device)


@dataclass(frozen=True, kw_only=True)
class _FrozenBackbone:
    """Compute features, or find them in the cache."""

    model: Classifier
    head: str
    weights_sha256: str
    preprocessing: Preprocessing
    setup: TrainSetup
    device: torch.device
    progress: Progress

    def features(
        self, paths: Sequence[Path], hashes: Sequence[str], precision: Precision
    ) -> NDArray[np.float32]:
        """Return the features of images with these SHA-256 values, float32 (N, F)."""
        remote = self.setup.remote
        calibration = choose_calibration(paths, hashes) if precision == "int8" else {}
        cache = FeatureCache(
            self.setup.cache_dir or default_cache_dir(),
            weights_sha256=self.weights_sha256,
            head=self.head,
            preprocessing=self.preprocessing,
            runtime="torch" if remote is None and self.device.type != "cpu" else "onnxruntime",
            precision=precision,
            calibration=list(calibration),
        )
        return extract_features(
            self.model,
            paths,
            hashes,
            preprocessing=self.preprocessing,
            cache=cache,
            device=self.device,
            precision=precision,
            calibration=list(calibration.values()),
            remote=remote,
            progress=self.progress,
        )


def _features(dataset: Dataset, frozen: _FrozenBackbone, precision: Precision) -> Tensor:
    """Return the frozen features of all images, float32 (N, F), in the frame's order.

    `precision` applies to the training split; the others always use fp32.
    """
    rows = dataset.frame.reset_index(drop=True)
    parts: list[NDArray[np.float32]] = []
    order: list[int] = []
    in_train = rows["split"] == "train"
    precisions: tuple[Precision, Precision] = (precision, "fp32")
    for part, computed_in in zip((rows[in_train], rows[~in_train]), precisions, strict=True):
        if len(part):
            paths = [Path(path) for path in part["path"]]
            parts.append(frozen.features(paths, list(part["sha256"]), computed_in))
            order += list(part.index)
    features = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
    features[order] = np.concatenate(parts)
    return torch.from_numpy(features)


def _rows(dataset: Dataset, split: str) -> Tensor:
    """Return which of the frame's images are in a split, bool (N,)."""
    return torch.from_numpy(dataset.frame["split"].to_numpy() == split)


def _splits(dataset: Dataset) -> list[str]:
    return [split for split in ("train", "val", "test") if len(dataset.part(split))]
