"""Everything that changes a training's result, checked, with its defaults written once."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from tltools.card import Resize
from tltools.errors import ConfigError

ModelName = Literal["cnn", "vgg16"]
HeadName = Literal["auto", "linear", "last-layer", "pooled"]
Keep = Literal["best", "last"]
TrainPrecision = Literal["auto", "fp32", "amp"]
FeaturePrecision = Literal["auto", "fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one training run; saved with the run, so that it can be resumed."""

    model: ModelName = "cnn"
    """Architecture."""
    head: HeadName = "linear"
    """`linear` for the cnn; for vgg16 `last-layer`, `pooled`, or `auto` (by the weights)."""
    epochs: int = 15
    """Passes over the training split."""
    batch_size: int = 128
    """Pictures per optimizer step."""
    lr: float = 1e-4
    """Adam's learning rate."""
    weight_decay: float = 0.0
    """L2 penalty, part of the loss as in torch's Adam (not decoupled as in AdamW)."""
    standardize: bool = False
    """Train the head on features of zero mean and unit variance (folded into it afterwards)."""
    seed: int = 13
    """Of the initial weights, the order of the pictures and the augmentation."""
    precision: TrainPrecision = "auto"
    """`amp` is mixed precision, which needs a GPU; `auto` uses it there, and fp32 elsewhere."""
    patience: int = 0
    """Stop after this many epochs without a lower validation loss; 0 never stops early."""
    augment: bool = False
    """Flip, crop and recolour the training pictures at random (cnn only)."""
    class_weights: bool = False
    """Weigh each class in the loss by the inverse of its frequency."""
    keep: Keep = "best"
    """Save the epoch with the lowest validation loss, or the last one."""
    resize: Resize = "squash"
    """How a picture becomes a square."""
    feature_precision: FeaturePrecision = "auto"
    """Of the frozen features that vgg16's head is trained on; it is judged by fp32 ones. `auto`:
    int8 on the CPU and fp16 on a GPU, each of which is several times as fast as fp32 there."""

    def __post_init__(self) -> None:
        """Refuse what no run can use.

        Raises:
            ConfigError: If a value is out of range or contradicts another.
        """
        if self.model not in ("cnn", "vgg16"):
            raise ConfigError(f"unknown model {self.model!r}; choose --model cnn or vgg16")
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
        self._check_model()

    def _check_model(self) -> None:
        """Refuse what does not fit the model."""
        if self.model == "vgg16" and self.augment:
            raise ConfigError(
                "--augment works with --model cnn only: vgg16's features are computed once"
            )
        if self.model == "cnn" and self.feature_precision != "auto":
            raise ConfigError("--feature-precision is for --model vgg16: the cnn has no features")
        if (self.model == "cnn") != (self.head == "linear"):
            raise ConfigError(
                f"--head {self.head} does not fit --model {self.model}: vgg16 takes auto, "
                "last-layer or pooled, the cnn has one head"
            )


_DEFAULTS: dict[tuple[str, str], TrainConfig] = {
    # The article's baseline: 15 epochs, batch 128, Adam at 1e-4.
    ("cnn", "article"): TrainConfig(keep="last"),
    ("cnn", "default"): TrainConfig(),
    # The article's transfer learning: 30 epochs, batch 128, Adam at 5e-4, nothing else.
    ("vgg16", "article"): TrainConfig(model="vgg16", head="auto", epochs=30, lr=5e-4, keep="last"),
    # Found by cross-validation on the training part: benchmarks/LOG.md.
    ("vgg16", "default"): TrainConfig(
        model="vgg16",
        head="auto",
        epochs=80,
        lr=1e-3,
        weight_decay=0.1,
        standardize=True,
        resize="crop",
    ),
}

Recipe = Literal["default", "article"]


def default_config(model: str, recipe: str = "default", **changes: Any) -> TrainConfig:
    """Return a model's settings with the given changes; a change to None keeps the default.

    Args:
        model: `cnn` or `vgg16`.
        recipe: `default`, or `article` for the article's hyper-parameters.
        changes: Fields of `TrainConfig`.

    Raises:
        ConfigError: If the result is not usable, or there is no such model or recipe.
    """
    try:
        config = _DEFAULTS[model, recipe]
    except KeyError:
        known = ", ".join(sorted({name for name, _ in _DEFAULTS}))
        raise ConfigError(
            f"no settings for --model {model} --recipe {recipe}; models: {known}, "
            "recipes: default, article"
        ) from None
    return replace(config, **{key: value for key, value in changes.items() if value is not None})
