"""What a training is told: the settings that change its result, and where and with what it runs."""

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
    """One of the backbone's; `auto` is the first that the weights allow."""
    seed: int = 13
    """Of the initial weights, the order of the images and the augmentation."""
    precision: TrainPrecision = "auto"
    """`amp` is mixed precision, which needs a GPU; `auto` uses it there, and fp32 elsewhere."""
    patience: int = 0
    """Stop after this many epochs without a lower validation loss; 0 never stops early."""
    augment: bool = False
    """Flip, crop and recolor the training images at random; not with a frozen backbone."""
    class_weights: bool = False
    """Weight the loss by inverse class frequency."""
    feature_precision: FeaturePrecision = "auto"
    """Of a frozen backbone's features in training; evaluation always uses fp32. `auto`: int8 on
    the CPU and fp16 on a GPU, each of which is several times as fast as fp32 there."""

    @property
    def backbone(self) -> Backbone:
        """The backbone that `model` names."""
        return find_backbone(self.model)

    def __post_init__(self) -> None:
        """Refuse what no run can use.

        Raises:
            ConfigError: If a value is out of range or contradicts another.
        """
        if self.epochs < 1:
            raise ConfigError(f"--epochs must be 1 or more, got {self.epochs}")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be 1 or more, got {self.batch_size}")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"--lr must be positive, got {self.lr}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"--weight-decay must be 0 or more, got {self.weight_decay}")
        if self.patience < 0:
            raise ConfigError(f"--patience must be 0 or more, got {self.patience}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed must be between 0 and 2**32 - 1, got {self.seed}")
        self._check_backbone()

    def _check_backbone(self) -> None:
        """Refuse what does not fit the backbone."""
        frozen = self.backbone.pretrained is not None
        if self.head not in ("auto", *self.backbone.heads):
            raise ConfigError(
                f"--head {self.head} does not fit --model {self.model}, which takes auto or "
                f"{' or '.join(self.backbone.heads)}"
            )
        if frozen and self.augment:
            raise ConfigError(
                f"--augment works with --model {_names(frozen=False)} only: the features of "
                f"{self.model} are computed once"
            )
        if not frozen and self.feature_precision != "auto":
            raise ConfigError(
                f"--feature-precision is for --model {_names(frozen=True)}: {self.model} has no "
                "frozen features"
            )


def _names(*, frozen: bool) -> str:
    """Name the backbones whose layers are frozen, or the others."""
    return " or ".join(
        name for name, one in BACKBONES.items() if (one.pretrained is not None) == frozen
    )


def default_config(model: str, recipe: RecipeName = "default", **changes: Any) -> TrainConfig:
    """Return a model's settings with the given changes; a change to None keeps the default.

    Args:
        model: Name of a backbone.
        recipe: Which of its hyper-parameters.
        changes: Fields of `TrainConfig`.

    Raises:
        ConfigError: If the result is not usable, or there is no such model or recipe.
    """
    recipes = find_backbone(model).recipes
    if recipe not in recipes:
        raise ConfigError(
            f"--model {model} has no --recipe {recipe}; choose {' or '.join(recipes)}"
        )
    config = TrainConfig(model=model, **asdict(recipes[recipe]))
    return replace(config, **{key: value for key, value in changes.items() if value is not None})


def default_configs(
    models: Sequence[str], recipe: RecipeName = "default", **changes: Any
) -> list[TrainConfig]:
    """Return the settings of several models, as `default_config` does for one.

    A change that suits some of them alone (a head, augmentation, the precision of frozen
    features) changes nothing for the others; of a single model, it is an error.

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
    """Where a training takes its weights from, where it runs, and where it leaves what it makes."""

    weights: str = IMAGENET
    """Of a pre-trained backbone: the name of a download, or a file; others take none."""
    normalization: str = "auto"
    """What the weights were trained with: see `load_weights`."""
    device: "Device" = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    run_dir: Path = Path("runs")
    """Where run folders are made."""
    cache_dir: Path | None = None
    """Where features are kept, and decoded images that do not fit in memory; None for the user's
    cache folder."""
    logs: tuple[str, ...] = ()
    """Experiment logs to write: `tensorboard`, `mlflow`."""
    remote: "RayCluster | None" = None
    """A cluster that computes the features of a frozen backbone."""
