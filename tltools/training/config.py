"""Training settings: hyper-parameters that change the result, and where the training runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tltools.backbones import BACKBONES, Backbone, find_backbone
from tltools.backbones.backbone import IMAGENET, Recipe, RecipeName
from tltools.errors import ConfigError

if TYPE_CHECKING:
    from tltools.ray.models import RayCluster
    from tltools.runtime.device import Device

TrainPrecision = Literal["auto", "fp32", "amp"]
FeaturePrecision = Literal["auto", "fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """The settings of one training run; saved with the run, so that it can be resumed."""

    model: str
    """Name of the backbone."""
    head: str = "auto"
    """One of the backbone's heads; `auto` is the first one that the weights support."""
    image_size: int | None = None
    """Height and width of the model's input in pixels; None is the weights' own."""
    seed: int = 13
    """Random seed for initial weights, shuffling and augmentation."""
    precision: TrainPrecision = "auto"
    """`amp` is mixed precision and needs a GPU; `auto` is `amp` on a GPU and fp32 on the CPU."""
    patience: int = 0
    """Stop after this many epochs without a lower validation loss; 0 never stops early."""
    augment: bool = False
    """Randomly flip, crop and recolor the training images; not available for frozen backbones."""
    class_weights: bool = False
    """Weight the loss by inverse class frequency."""
    feature_precision: FeaturePrecision = "auto"
    """Precision of a frozen backbone's training features; evaluation always uses fp32. `auto` is
    int8 on the CPU and fp16 on a GPU, each several times as fast as fp32."""

    @property
    def backbone(self) -> Backbone:
        """The backbone that `model` names."""
        return find_backbone(self.model)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: If a value is out of range or contradicts another.
        """
        if self.epochs < 1:
            raise ConfigError(f"`epochs=` must be at least 1, got {self.epochs}")
        if self.batch_size < 1:
            raise ConfigError(f"`batch_size=` must be at least 1, got {self.batch_size}")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"`lr=` must be positive, got {self.lr}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"`weight_decay=` must not be negative, got {self.weight_decay}")
        if self.patience < 0:
            raise ConfigError(f"`patience=` must not be negative, got {self.patience}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"`seed=` must be between 0 and 2**32 - 1, got {self.seed}")
        self._check_backbone()

    def _check_backbone(self) -> None:
        """Check that the settings suit the backbone."""
        frozen = self.backbone.pretrained is not None
        if self.head not in ("auto", *self.backbone.heads):
            raise ConfigError(
                f"`model={self.model}` has no `head={self.head}`; choose "
                f"{' or '.join(('auto', *self.backbone.heads))}"
            )
        if frozen and self.augment:
            raise ConfigError(
                f"`augment=True` works only with `model={_names(frozen=False)}`: the features of "
                f"{self.model} are computed only once"
            )
        if not frozen and self.feature_precision != "auto":
            raise ConfigError(
                f"`feature_precision=` works only with `model={_names(frozen=True)}`: {self.model} "
                "has no frozen features"
            )


def _names(*, frozen: bool) -> str:
    """Name the backbones whose layers are frozen, or those that are trained."""
    return " or ".join(
        name for name, one in BACKBONES.items() if (one.pretrained is not None) == frozen
    )


def default_config(model: str, recipe: RecipeName = "default", **changes: Any) -> TrainConfig:
    """Return a model's default settings with the given changes; None keeps a default.

    Args:
        model: Name of a backbone.
        recipe: Name of a set of hyper-parameters of the backbone.
        changes: Fields of `TrainConfig`.

    Raises:
        ConfigError: If a value is invalid, or the model or recipe does not exist.
    """
    recipes = find_backbone(model).recipes
    if recipe not in recipes:
        raise ConfigError(
            f"`model={model}` has no `recipe={recipe}`; choose {' or '.join(recipes)}"
        )
    config = TrainConfig(model=model, **asdict(recipes[recipe]))
    return replace(config, **{key: value for key, value in changes.items() if value is not None})


def default_configs(
    models: Sequence[str], recipe: RecipeName = "default", **changes: Any
) -> list[TrainConfig]:
    """Return the settings of several models, as `default_config` does for one.

    With several models, a change that does not apply to one of them (a head, augmentation, the
    precision of frozen features) is ignored for that model; with a single model it is an error.

    Args:
        models: Names of backbones.
        recipe: As in `default_config`.
        changes: As in `default_config`.

    Raises:
        ConfigError: As in `default_config`.
    """
    if len(models) == 1:
        return [default_config(models[0], recipe, **changes)]
    configs: list[TrainConfig] = []
    for model in models:
        backbone = find_backbone(model)
        unfit = {"feature_precision"} if backbone.pretrained is None else {"augment"}
        if changes.get("head") not in backbone.heads:
            unfit.add("head")
        fitting = {name: value for name, value in changes.items() if name not in unfit}
        configs.append(default_config(model, recipe, **fitting))
    return configs


@dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """Where a training gets its weights, where it runs, and where it saves its results."""

    weights: str = IMAGENET
    """Weights of a pre-trained backbone: the name of a download, or a file."""
    normalization: str = "auto"
    """Normalization that the weights were trained with: see `load_weights`."""
    device: "Device" = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    run_dir: Path = Path("runs")
    """Parent of the run folders."""
    cache_dir: Path | None = None
    """Folder for cached features, and for decoded images that do not fit in memory; None is the
    user's cache folder."""
    logs: tuple[str, ...] = ()
    """Experiment logs to write: `tensorboard`, `mlflow`."""
    remote: "RayCluster | None" = None
    """A Ray cluster that computes the features of a frozen backbone."""
