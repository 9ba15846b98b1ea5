"""Prepare a training: build the model, and the samples for the training loop."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tltools.atomic import check_writable, temporary_folder
from tltools.card import Preprocessing, Weights
from tltools.data.dataset import Dataset
from tltools.errors import ConfigError, ModelError, TltoolsError, problem_of
from tltools.memory import available_memory
from tltools.progress import SILENT, Progress
from tltools.runtime.device import allow_tf32, make_deterministic, tell_device, torch_device
from tltools.training.augment import NUM_VIEWS, UNCHANGED, View
from tltools.training.config import TrainConfig, TrainSetup
from tltools.training.decoded import decode_once, fits_on_gpu
from tltools.training.features import (
    Computation,
    Extraction,
    FeatureCache,
    Precision,
    check_int8,
    choose_calibration,
    choose_computation,
    default_cache_dir,
    extract,
)
from tltools.training.fine_tuning import FineTuned, fit_scaling
from tltools.training.fit import HOW_TO_CONVERGE, Trainer, mixed_precision
from tltools.training.models import Classifier, build_classifier
from tltools.training.pretrained import load_weights
from tltools.training.scaling import Scaling
from tltools.training.sources import FeatureSource, ImageSource, Source

if TYPE_CHECKING:
    import pandas as pd

SCALING_IMAGES = 512
"""Images that the scaling of features is fitted on before layers are fine-tuned."""
_NUMBERS_PER_WEIGHT = 3
"""What training holds beside each weight: its gradient and Adam's two moments."""

_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, kw_only=True)
class FeatureFacts:
    """How the training images' outputs of frozen layers were computed."""

    precision: Precision
    num_float_layers: int | None = None
    """Layers of an int8 copy that are computed in fp32; None in other precisions, or if the copy is
    no longer in the cache."""


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
    """Set if a head alone is trained on scaled features."""
    features: FeatureFacts | None = None
    """Set if outputs of frozen layers were computed beforehand."""

    def computed(self) -> dict[str, Any]:
        """Return what this machine made of the settings' `auto`, for the card."""
        dtype = mixed_precision(self.config, self.device)
        facts: dict[str, Any] = {"computed_in": "fp32" if dtype is None else _DTYPES[dtype]}
        if self.features is not None:
            facts["features_in"] = self.features.precision
            if self.features.num_float_layers is not None:
                facts["features_float_layers"] = self.features.num_float_layers
        return facts

    def new_trainer(self) -> Trainer:
        """Return the training loop at its start."""
        return Trainer(
            self.trained,
            self.config,
            self.sources["train"],
            self.sources["val"],
            device=self.device,
            num_classes=len(self.dataset.classes),
            train_targets=self.dataset.targets("train"),
        )

    def finished_state(self) -> dict[str, Tensor]:
        """Return the weights of the whole model on the CPU; its head takes unscaled features.

        Raises:
            ModelError: If a weight is not finite.
        """
        head = copy.deepcopy(self.model.head).cpu()
        scaling = self.trained.scaling if isinstance(self.trained, FineTuned) else self.scaling
        if scaling is not None:
            scaling.fold_into(head)
        state = self.model.state_dict() | head.state_dict(prefix="head.")
        if name := _not_finite(state):
            raise ModelError(
                f"the training diverged: {name} has values that are not finite; {HOW_TO_CONVERGE}"
            )
        return {name: tensor.cpu().contiguous() for name, tensor in state.items()}


def prepare(
    dataset: Dataset,
    config: TrainConfig,
    setup: TrainSetup,
    *,
    calibrate_on: "pd.DataFrame | None" = None,
    check_weights: Callable[[Weights], None] | None = None,
    progress: Progress,
) -> Job:
    """Build the model; decode the images, or compute the outputs of frozen layers.

    Args:
        dataset: Labeled images.
        config: Settings that change the result.
        setup: Weights, device and folders.
        calibrate_on: Rows to choose the images from that calibrate int8; None is the training
            split. Trainings on different splits share cached outputs if these are the same.
        check_weights: Called with pretrained weights before outputs of them are computed.
        progress: Shows the work.

    Raises:
        ConfigError: If the device or the cluster does not support the settings.
        DataError: If an image cannot be read.
        DeviceError: If the device is not available.
        ModelError: If pretrained weights cannot be loaded.
    """
    choice = torch_device(setup.device)
    tell_device(choice, progress)
    device = torch.device(choice.name)
    mixed_precision(config, device)  # raises an error before any work
    allow_tf32(False)  # exports are verified against the run in full fp32
    make_deterministic()
    if setup.cluster is not None:
        setup = _with_cluster(config, setup, progress)
    if config.backbone.pretrained is None:
        return _prepare_images(dataset, config, setup, device, progress)
    pretrained = _load_pretrained(dataset, config, setup, device, progress)
    if check_weights is not None:
        check_weights(pretrained.weights)
    if calibrate_on is not None:
        pretrained = replace(pretrained, calibrate_on=calibrate_on)
    if config.fine_tune == "none":
        return _prepare_features(dataset, pretrained)
    return _prepare_fine_tuning(dataset, pretrained)


def check_setup(dataset: Dataset, configs: Sequence[TrainConfig], setup: TrainSetup) -> None:
    """Check, before anything is trained, what would otherwise fail after minutes of work.

    Raises:
        ConfigError: If the device cannot compute features in the given precision, or none are
            computed.
        DeviceError: If the device is not available.
        ModelError: If the pretrained weights of a model cannot be loaded, or lack tensors.
        TltoolsError: If nothing can be written to the folder of the runs or of the cache.
    """
    check_writable(setup.run_dir)
    device = torch.device(torch_device(setup.device).name)
    for config in configs:
        _check_feature_precision(dataset, config, device, setup)
    for config in configs[1:]:  # the first model loads its own before anything else
        if config.backbone.pretrained is not None:
            _load_pretrained(dataset, config, setup, torch.device("cpu"), SILENT)
    if any(config.backbone.pretrained is not None for config in configs):
        try:
            check_writable(setup.cache_dir or default_cache_dir())
        except TltoolsError as error:
            reason = problem_of(error)
            raise TltoolsError(
                f"features cannot be cached: {reason}; choose another folder with `cache_dir=`"
            ) from error


def _check_feature_precision(
    dataset: Dataset, config: TrainConfig, device: torch.device, setup: TrainSetup
) -> None:
    if config.backbone.pretrained is None or config.feature_precision == "auto":
        return
    on_gpu = device.type != "cpu"
    if config.fine_tune == "all" or (config.fine_tune != "none" and on_gpu):
        raise ConfigError(
            f"`feature_precision={config.feature_precision}` has no effect with "
            f"`fine_tune={config.fine_tune}`{' on a GPU' * (config.fine_tune != 'all')}, which "
            "computes all layers in each epoch; leave it out"
        )
    _computation(dataset, config, device, setup)


def _computation(
    dataset: Dataset, config: TrainConfig, device: torch.device, setup: TrainSetup
) -> Computation:
    """Return how features are computed: in the same way for all folds of a data set.

    Raises:
        ConfigError: If the device cannot compute them in the given precision.
    """
    num_images = len(dataset.frame.query("split != 'test'"))
    return choose_computation(
        config.feature_precision,
        on_gpu=device.type != "cpu",
        on_cluster=setup.cluster is not None,
        num_images=NUM_VIEWS[config.augment] * num_images,
    )


def _with_cluster(config: TrainConfig, setup: TrainSetup, progress: Progress) -> TrainSetup:
    """Return the setup without its cluster if that has nothing to compute.

    Raises:
        ConfigError: If the cluster would have to change images, which only this machine does.
    """
    if config.backbone.pretrained is None or config.fine_tune != "none":
        why = config.model if config.fine_tune == "none" else f"`fine_tune={config.fine_tune}`"
        progress.say(f"{why}: there are no features for Ray to compute; it runs on this machine")
        return replace(setup, cluster=None)
    if config.augment != "none":
        raise ConfigError(
            f"`augment={config.augment}` does not work on a cluster, which computes features of "
            "unchanged images only; use `augment=none`, or train on this machine"
        )
    return setup


def _prepare_images(
    dataset: Dataset,
    config: TrainConfig,
    setup: TrainSetup,
    device: torch.device,
    progress: Progress,
) -> Job:
    """Prepare to train all layers of a model on decoded images.

    Raises:
        ConfigError: If the model is too large for this machine.
    """
    config = _with_head(config, {})
    size = config.image_size or config.backbone.input_size
    preprocessing = Preprocessing(size=size, resize=config.resize)  # pixels on the 0-1 scale
    model = _build(dataset, config, preprocessing)
    if device.type == "cpu":
        _check_memory(model, config, size)
    model = model.to(device).to(memory_format=torch.channels_last)
    return Job(
        config=config,
        dataset=dataset,
        model=model,
        trained=model,
        sources=_image_sources(dataset, config, preprocessing, setup, device, progress),
        weights=Weights(source="random"),
        preprocessing=preprocessing,
        device=device,
    )


def _check_memory(model: Classifier, config: TrainConfig, size: int) -> None:
    """Refuse a model whose training the system would end for lack of memory.

    The head of the small CNN grows with the number of classes and the size of the images.
    """
    num_bytes = _NUMBERS_PER_WEIGHT * sum(one.nbytes for one in model.parameters())
    left = available_memory()
    if num_bytes > left:
        raise ConfigError(
            f"training {config.model} on {model.head.out_features:,} classes of {size}-pixel "
            f"images takes {num_bytes / 1e9:,.1f} GB beside its weights, and {left / 1e9:,.1f} GB "
            "are available; use a smaller `image_size=`, or a pretrained model (tltools models)"
        )


def _image_sources(
    dataset: Dataset,
    config: TrainConfig,
    preprocessing: Preprocessing,
    setup: TrainSetup,
    device: torch.device,
    progress: Progress,
) -> dict[str, Source]:
    """Decode all images, and return those of each split."""
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
    return {
        split: ImageSource(
            samples, _targets(dataset, split), config.batch_size, device, config.augment
        )
        for split, samples in zip(paths, parts, strict=True)
    }


def _load_pretrained(
    dataset: Dataset,
    config: TrainConfig,
    setup: TrainSetup,
    device: torch.device,
    progress: Progress,
) -> "_Pretrained":
    """Load pretrained weights and build the model around them."""
    backbone = config.backbone
    loaded = load_weights(backbone, setup.weights, normalization=setup.normalization)
    config = _with_head(config, loaded.state)
    preprocessing = loaded.preprocessing(config.resize, size=config.image_size)
    progress.detail(f"{backbone.title}: weights {loaded.facts.source}, head {config.head}")
    model = _build(dataset, config, preprocessing, loaded.state)
    if name := _not_finite(model.backbone.state_dict()):
        raise ModelError(
            f"the weights {loaded.facts.source} are corrupt: {name} has values that are not "
            "finite; use other weights"
        )
    return _Pretrained(
        config=config,
        model=model,
        weights=loaded.facts,
        preprocessing=preprocessing,
        setup=setup,
        device=device,
        progress=progress,
    )


def _not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a value that is not finite."""
    return next((name for name, one in state.items() if not one.isfinite().all()), None)


def _prepare_features(dataset: Dataset, pretrained: "_Pretrained") -> Job:
    """Prepare to train the head of a frozen backbone on its features."""
    config, device = pretrained.config, pretrained.device
    with pretrained.setup.cluster or nullcontext():  # leave the cluster before the epochs
        rows = pretrained.outputs(dataset)
    features = {
        split: torch.stack([torch.stack(view) for view in views]) for split, views in rows.items()
    }  # (V, N, F)
    scaling = None
    if config.standardize:
        scaling = Scaling.fit(features["train"].flatten(0, 1))
        features = {split: scaling.apply(values) for split, values in features.items()}
    if fits_on_gpu(sum(values.nbytes for values in features.values()), device):
        features = {split: values.to(device) for split, values in features.items()}
    return pretrained.job(
        dataset,
        trained=pretrained.model.head.to(device),
        sources={
            split: FeatureSource(values, _targets(dataset, split), config.batch_size, device)
            for split, values in features.items()
        },
        scaling=scaling,
        features=pretrained.feature_facts(dataset),
    )


def _prepare_fine_tuning(dataset: Dataset, pretrained: "_Pretrained") -> Job:
    """Prepare to train pretrained layers and the head.

    On the CPU, the layers before the last block are run once; a GPU is so fast that it sees
    different random crops in each epoch.
    """
    config, model, device = pretrained.config, pretrained.model, pretrained.device
    before, rest, facts = None, model.backbone, None
    if config.fine_tune == "last-block":
        before, rest = config.backbone.split(model.backbone)
    sources: dict[str, Source]
    if before is not None and device.type == "cpu":
        rows = pretrained.outputs(dataset, before)
        facts = pretrained.feature_facts(dataset, before)
        sources = {
            split: FeatureSource(views, _targets(dataset, split), config.batch_size)
            for split, views in rows.items()
        }
        to_inputs = _unchanged
    else:
        sources = _image_sources(
            dataset, config, pretrained.preprocessing, pretrained.setup, device, pretrained.progress
        )
        model.to(device).to(memory_format=torch.channels_last)
        to_inputs = partial(_through, model, (before or nn.Identity()).eval())
    scaling = None
    if config.standardize:
        chosen = torch.arange(len(sources["train"]))[:: len(sources["train"]) // SCALING_IMAGES + 1]
        few = [to_inputs(samples) for samples, _ in sources["train"].batches(chosen)]
        scaling = fit_scaling(rest, few)
    trained = FineTuned(rest, model.head, frozen=to_inputs, scaling=scaling, dropout=config.dropout)
    return pretrained.job(dataset, trained=trained.to(device), sources=sources, features=facts)


def _unchanged(samples: Tensor) -> Tensor:
    return samples


@torch.no_grad()
def _through(model: Classifier, layers: nn.Module, images: Tensor) -> Tensor:
    """Map images, uint8 (N, H, W, 3), to the output of a model's first layers."""
    return layers(model.normalized(images))


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


@dataclass(frozen=True, kw_only=True)
class _Pretrained:
    """A pretrained model, and what its frozen layers are run with."""

    config: TrainConfig
    model: Classifier
    weights: Weights
    preprocessing: Preprocessing
    setup: TrainSetup
    device: torch.device
    progress: Progress
    calibrate_on: "pd.DataFrame | None" = None
    """See `prepare`."""

    def job(self, dataset: Dataset, **trained: Any) -> Job:
        """Return the prepared training of these layers."""
        return Job(
            config=self.config,
            dataset=dataset,
            model=self.model,
            weights=self.weights,
            preprocessing=self.preprocessing,
            device=self.device,
            **trained,
        )

    def outputs(
        self, dataset: Dataset, layers: nn.Module | None = None
    ) -> dict[str, list[list[Tensor]]]:
        """Return the outputs of frozen layers for each split, each view and each image.

        The training split has all views of the augmentation, in the precision of the settings;
        the others have unchanged images in fp32.

        Args:
            dataset: The images.
            layers: The layers, which map normalized images to activations; None for the backbone.
        """
        config, computation = self.config, self._computation(dataset)
        views = [View(number, config.augment) for number in range(NUM_VIEWS[config.augment])]
        train, others = dataset.part("train"), dataset.frame.query("split != 'train'")
        with temporary_folder(Path(gettempdir())) as scratch:
            extract_part = partial(self._extract, layers=layers, scratch=scratch)
            found = {"train": [extract_part(train, computation, view=view) for view in views]}
            if len(others):
                exact = computation._replace(precision="fp32")
                outputs = extract_part(others, exact, view=UNCHANGED)
                rows = list(zip(others["split"], outputs, strict=True))
                for split in _splits(dataset)[1:]:
                    found[split] = [[row for its_split, row in rows if its_split == split]]
        return found

    def _computation(self, dataset: Dataset) -> Computation:
        return _computation(dataset, self.config, self.device, self.setup)

    def feature_facts(self, dataset: Dataset, layers: nn.Module | None = None) -> FeatureFacts:
        """Return how `outputs` has computed the training images' features.

        Raises:
            ParityError: If int8 was asked for, and no layer could be computed in it.
        """
        computation = self._computation(dataset)
        calibration = self._calibration(dataset.part("train"))
        file = self._cache(computation, calibration, layers).backbone
        if computation.precision != "int8" or not file.is_file():
            return FeatureFacts(precision=computation.precision)
        counts = check_int8(file, self.config.feature_precision)
        if counts.num_float:
            self.progress.say(
                f"int8 features: {counts.num_float} of {sum(counts)} layers are computed in fp32"
            )
        return FeatureFacts(precision="int8", num_float_layers=counts.num_float)

    def _cache(
        self,
        computation: Computation,
        calibration: Mapping[str, Path],
        layers: nn.Module | None,
        view: View = UNCHANGED,
    ) -> FeatureCache:
        return FeatureCache(
            self.setup.cache_dir or default_cache_dir(),
            weights_sha256=self.weights.sha256,
            head=self.config.head,
            preprocessing=self.preprocessing,
            runtime=computation.runtime,
            precision=computation.precision,
            calibration=list(calibration),
            layers="" if layers is None else f"before {'.'.join(self.config.backbone.split_at)}",
            view=view.name,
        )

    def _extract(
        self,
        part: "pd.DataFrame",
        computation: Computation,
        *,
        layers: nn.Module | None,
        view: View,
        scratch: Path,
    ) -> list[Tensor]:
        paths, hashes = [Path(path) for path in part["path"]], list(part["sha256"])
        calibration = self._calibration(part) if computation.precision == "int8" else {}
        settings = Extraction(
            model=self.model,
            preprocessing=self.preprocessing,
            cache=self._cache(computation, calibration, layers, view),
            device=self.device,
            runtime=computation.runtime,
            precision=computation.precision,
            calibration=list(calibration.values()),
            layers=layers,
            view=view,
            cluster=self.setup.cluster,
            scratch=scratch,
        )
        return extract(paths, hashes, settings, progress=self.progress)

    def _calibration(self, train: "pd.DataFrame") -> dict[str, Path]:
        rows = train if self.calibrate_on is None else self.calibrate_on
        return choose_calibration([Path(path) for path in rows["path"]], list(rows["sha256"]))


def _targets(dataset: Dataset, split: str) -> Tensor:
    return torch.from_numpy(dataset.targets(split))


def _splits(dataset: Dataset) -> list[str]:
    return [split for split in ("train", "val", "test") if len(dataset.part(split))]
