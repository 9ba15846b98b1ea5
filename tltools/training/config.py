"""Training settings: hyperparameters that change the result, and where the training runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tltools.backbones import BACKBONES, Backbone, find_backbone
from tltools.backbones.backbone import IMAGENET, FineTune, Recipe, RecipeName
from tltools.errors import ConfigError
from tltools.wording import either

if TYPE_CHECKING:
    from tltools.ray.models import RayCluster
    from tltools.runtime.device import Device

FINE_TUNING_ONLY = frozenset({"backbone_lr", "dropout"})
"""Settings without effect unless pretrained layers are trained."""

TrainPrecision = Literal["auto", "fp32", "amp"]
FeaturePrecision = Literal["auto", "fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """The settings of one training run; saved with the run, so that it can be resumed."""

    model: str
    """Name of the backbone."""
    fine_tune: FineTune = "none"
    """Pretrained layers to train besides the head: `none`, the `last-block` or `all`."""
    head: str = "auto"
    """One of the backbone's heads; `auto` is the first one that the weights support."""
    image_size: int | None = None
    """Height and width of the model's input in pixels; None is the weights' own."""
    seed: int = 13
    """Random seed for initial weights, shuffling and augmentation."""
    precision: TrainPrecision = "auto"
    """`amp` is mixed precision: fp16 on a GPU, bf16 on a CPU with bf16 instructions. `auto` is
    `amp` on a GPU, and on such a CPU if pretrained layers are fine-tuned; otherwise fp32."""
    patience: int = 0
    """Stop after this many epochs without a lower validation loss; 0 never stops early."""
    class_weights: bool = False
    """Weight the loss by inverse class frequency."""
    feature_precision: FeaturePrecision = "auto"
    """Precision in which frozen layers see training images; evaluation always uses fp32. `auto` is
    int8 on the CPU and fp16 on a GPU, each several times as fast as fp32; for few images on the CPU
    it is fp32."""

    @property
    def backbone(self) -> Backbone:
        """The backbone that `model` names."""
        return find_backbone(self.model)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: If a value is out of range or contradicts another.
        """
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}=` must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"`lr=` must be positive, got {self.lr}")
        for name in ("backbone_lr", "weight_decay", "clip_grad", "patience"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"`{name}=` must not be negative, got {getattr(self, name)}")
        for name in ("label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"`{name}=` must be at least 0 and less than 1, got {getattr(self, name)}"
                )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"`seed=` must be between 0 and 2**32 - 1, got {self.seed}")
        self._check_backbone()

    def _check_backbone(self) -> None:
        """Check that the settings suit the backbone."""
        pretrained = self.backbone.pretrained is not None
        if self.head not in ("auto", *self.backbone.heads):
            several = len(self.backbone.heads) > 1  # a single one has no name on the command line
            choices = " or ".join(("auto", *self.backbone.heads))
            raise ConfigError(
                f"`model={self.model}` has no `head={self.head}`; "
                + (f"choose {choices}" if several else "it has only one: leave it out")
            )
        if not pretrained and self.fine_tune != "none":
            raise ConfigError(
                f"`fine_tune=` works only with `model={_names(pretrained=True)}`: all layers of "
                f"{self.model} are trained anyway"
            )
        if self.fine_tune != "none" and not self.backbone_lr:
            raise ConfigError(f"`fine_tune={self.fine_tune}` needs a positive `backbone_lr=`")
        for name in FINE_TUNING_ONLY:
            if self.fine_tune == "none" and getattr(self, name):
                raise ConfigError(
                    f"`{name}=` works only with `fine_tune=last-block` or `fine_tune=all`"
                )
        if not pretrained and self.feature_precision != "auto":
            raise ConfigError(
                f"`feature_precision=` works only with `model={_names(pretrained=True)}`: "
                f"{self.model} has no frozen features"
            )


def _names(*, pretrained: bool) -> str:
    """Name the backbones that are pretrained, or those that are not."""
    return " or ".join(
        name for name, one in BACKBONES.items() if (one.pretrained is not None) == pretrained
    )


def default_config(
    model: str, recipe: RecipeName = "default", *, fine_tune: FineTune = "none", **changes: Any
) -> TrainConfig:
    """Return a model's default settings with the given changes; None keeps a default.

    Args:
        model: Name of a backbone.
        recipe: Name of a set of hyperparameters of the backbone.
        fine_tune: Pretrained layers to train; has hyperparameters of its own.
        changes: Fields of `TrainConfig`.

    Raises:
        ConfigError: If a value is invalid, or the model or recipe does not exist.
    """
    chosen = _recipe(find_backbone(model), recipe, fine_tune)
    config = TrainConfig(model=model, fine_tune=fine_tune, **asdict(chosen))
    return replace(config, **{key: value for key, value in changes.items() if value is not None})


def _recipe(backbone: Backbone, recipe: RecipeName, fine_tune: FineTune) -> Recipe:
    if recipe not in backbone.recipes:
        raise ConfigError(
            f"`model={backbone.name}` has no `recipe={recipe}`; choose "
            f"{' or '.join(backbone.recipes)}"
        )
    if fine_tune == "none":
        return backbone.recipes[recipe]
    if recipe != "default":
        raise ConfigError(
            f"`recipe={recipe}` trains only a head; use it without `fine_tune={fine_tune}`"
        )
    if fine_tune in backbone.fine_tuning:
        return backbone.fine_tuning[fine_tune]
    if backbone.pretrained is not None:
        raise ConfigError(
            f"`model={backbone.name}` has no `fine_tune={fine_tune}`; choose "
            f"{either(('none', *backbone.fine_tuning))}"
        )
    return backbone.recipes[recipe]  # TrainConfig says why it cannot be fine-tuned


def default_configs(
    models: Sequence[str],
    recipe: RecipeName = "default",
    *,
    fine_tune: FineTune = "none",
    **changes: Any,
) -> list[TrainConfig]:
    """Return the settings of several models, as `default_config` does for one.

    With several models, a change that does not apply to one of them (a head, fine-tuning, the
    precision of frozen features) is ignored for that model; with a single model it is an error.

    Args:
        models: Names of backbones.
        recipe: As in `default_config`.
        fine_tune: As in `default_config`.
        changes: As in `default_config`.

    Raises:
        ConfigError: As in `default_config`.
    """
    if len(models) == 1:
        return [default_config(models[0], recipe, fine_tune=fine_tune, **changes)]
    configs: list[TrainConfig] = []
    for model in models:
        backbone = find_backbone(model)
        pretrained = backbone.pretrained is not None
        tuned: FineTune = fine_tune if pretrained else "none"
        unfit = set[str]() if pretrained else {"feature_precision"}
        if tuned == "none":
            unfit |= FINE_TUNING_ONLY
        if changes.get("head") not in backbone.heads:
            unfit.add("head")
        fitting = {name: value for name, value in changes.items() if name not in unfit}
        configs.append(default_config(model, recipe, fine_tune=tuned, **fitting))
    return configs


MIN_STEPS = 8
"""Fewest steps of an epoch for which a batch size is halved."""
MIN_BATCH_SIZE = 8
"""Batch size that is not halved: batch normalization needs some images."""


def fitting_batch_size(batch_size: int, num_train: int) -> int:
    """Return the batch size for so many training images, of which `batch_size` may be too many.

    With one or two steps per epoch, a training that has most of its epochs behind it has hardly
    begun. So the batch size is halved until an epoch has `MIN_STEPS`.
    """
    while batch_size >= 2 * MIN_BATCH_SIZE and num_train < MIN_STEPS * batch_size:
        batch_size //= 2
    return batch_size


def fit_batch_sizes(configs: Sequence[TrainConfig], num_train: int) -> list[TrainConfig]:
    """Return settings whose batch sizes, which the user has not chosen, fit the training images."""
    return [
        replace(one, batch_size=fitting_batch_size(one.batch_size, num_train)) for one in configs
    ]


@dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """Where a training gets its weights, where it runs, and where it saves its results."""

    weights: str = IMAGENET
    """Weights of a pretrained backbone: the name of a download, or a file."""
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
    cluster: "RayCluster | None" = None
    """A Ray cluster that computes the features of a frozen backbone."""
    command: str = ""
    """The command line of this training, without its model, to propose others; empty in Python."""
