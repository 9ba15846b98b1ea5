"""Define a backbone: the one object that holds everything tltools knows about a network.

Nothing here imports torch, so the command line can list the backbones without waiting for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tltools.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tltools.card import Interpolation, Resize

Keep = Literal["best", "last"]
RecipeName = Literal["default", "article"]
FineTune = Literal["none", "last-block", "all"]
Optimizer = Literal["adam", "adamw"]
Schedule = Literal["constant", "cosine"]
Augment = Literal["none", "flip", "crop", "color"]

IMAGENET = "imagenet"
"""Name of the default weights, which every pretrained backbone has."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters that suit a backbone."""

    epochs: int
    """Passes over the training split."""
    lr: float
    """Learning rate of the head, and of all layers that are trained from random values."""
    backbone_lr: float = 0.0
    """Learning rate of fine-tuned pretrained layers; unused if there are none."""
    batch_size: int = 128
    """Images per optimizer step."""
    optimizer: Optimizer = "adam"
    """`adam` adds the weight decay to the gradient (L2 penalty); `adamw` decouples it."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer."""
    schedule: Schedule = "constant"
    """Learning rates over the training: constant, or a linear warm-up followed by a cosine decay to
    zero."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes in the targets of the loss, in [0, 1)."""
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 does not clip it."""
    dropout: float = 0.0
    """Fraction of the features set to zero before the head during training, in [0, 1)."""
    augment: Augment = "none"
    """Random changes of training images: `flip` mirrors them, `crop` also crops them, `color` also
    changes brightness, contrast and saturation. A frozen part sees a few fixed ones of each
    image, since its output is computed once."""
    standardize: bool = False
    """Train the head on features with zero mean and unit variance (folded into it afterwards)."""
    keep: Keep = "best"
    """Keep the epoch with the lowest validation loss, or the last epoch."""
    resize: "Resize" = "squash"
    """How images are made square."""


@dataclass(frozen=True, kw_only=True)
class Download:
    """Weights that a library publishes."""

    torchvision: str = ""
    """torchvision's name of the weights, for example `VGG16_Weights.IMAGENET1K_V1`."""
    timm: str = ""
    """timm's name of the model, for example `resnet18.a1_in1k`, if they are timm's."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The preprocessing that weights were trained or published with."""

    size: int
    """Height and width of the images in pixels."""
    crop_ratio: float
    """The shorter side before the central crop, divided by `size`."""
    interpolation: "Interpolation"
    mean: tuple[float, float, float]
    """Per channel (RGB), on the 0-1 scale."""
    std: tuple[float, float, float]
    """Per channel (RGB), on the 0-1 scale."""


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Normalization of pixels on the 0-1 scale, `(x - mean) / std`, per channel (RGB)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tensors: tuple[str, ...] = ()
    """Tensors found only in weights that were trained with it; empty if there are none."""


FitState = Callable[["dict[str, Tensor]", int], "dict[str, Tensor]"]
"""Takes weights, and the height and width of the images in pixels. Returns weights that fit the
layers for such images."""


def unchanged(state: "dict[str, Tensor]", size: int) -> "dict[str, Tensor]":  # noqa: ARG001
    """Return the weights: they fit images of any size."""
    return state


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights of a pretrained backbone, whose layers stay frozen."""

    first_tensor: str
    """A tensor that all weights of the backbone have; used to reject other files."""
    downloads: Mapping[str, Download]
    """Downloads by the name that users type; includes `IMAGENET`."""
    normalizations: Mapping[str, Normalization] = field(default_factory=dict)
    """Normalizations that a file's weights may have been trained with, by name. The default is the
    first one whose `tensors` are all present. Empty if all published weights of the backbone share
    the one of their preset."""
    rename: Callable[[str], str] = str
    """Takes the name of a tensor of the layers, and returns its name in the weights."""
    fit_state: FitState = unchanged
    """Fits the weights to the size of the images."""

    def choose_normalization(self, state: "Mapping[str, Tensor]") -> str:
        """Return the name of the first normalization that fits the weights."""
        tensors = {name: one.tensors for name, one in self.normalizations.items()}
        return _first_that_fits(tensors, state)


BuildLayers = Callable[[str, int], "tuple[nn.Module, int]"]
"""Takes the name of a head, and the height and width of the images in pixels. Returns the layers up
to that head, which map normalized images, float32 (N, 3, H, W), to features, float32 (N, F); and F.

The tensors of a pretrained backbone are named as in its weights, or `Pretrained.rename` gives the
names there. Unless it computes constants, it is built on torch's `meta` device, which costs neither
time nor memory; others are initialized from torch's generator."""

MapsAxes = Literal["NCHW", "NHWC", "NLC"]
"""Order of the axes of feature maps: N images, C channels, H x W locations, or L of them in a row,
perhaps after a few tokens that are no location."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network without its head, and everything that depends on the choice of network."""

    name: str
    """Name in options, cards and run folders."""
    title: str
    """Name in sentences."""
    build_layers: BuildLayers
    heads: Mapping[str, tuple[str, ...]]
    """Positions of a new head, by name, each with the pretrained tensors that only it needs. The
    default is the first one whose tensors are all present."""
    recipes: Mapping[RecipeName, Recipe]
    """Sets of hyperparameters by name, among them `default`."""
    fine_tuning: Mapping[FineTune, Recipe] = field(default_factory=dict[FineTune, Recipe])
    """Sets of hyperparameters for training pretrained layers too, by which layers are trained."""
    last_maps: str
    """The last layer whose output has height and width and decides about the features, used for
    heat maps: its name in the layers from `build_layers`, as torch's `get_submodule` takes it."""
    last_block: tuple[str, ...]
    """The last layers with weights, which fine-tuning changes first, in the order in which images
    pass them; names as in `last_maps`. `split` needs the first one to be a layer of nested
    `nn.Sequential`."""
    maps_axes: MapsAxes = "NCHW"
    """Order of the axes of the output of `last_maps`."""
    flat_channels: int | None = None
    """Number of channels of the last maps, if the features are these maps, flattened; None if the
    features have no locations."""
    input_size: int = 224
    """Height and width of the images in pixels, unless the settings give another."""
    min_size: int = 1
    """Smallest height and width of the images in pixels."""
    size_step: int = 1
    """The height and width of the images must be a multiple of this."""
    computes_constants: bool = False
    """Whether the layers hold tensors that are computed when they are built and are not part of
    the weights."""
    pretrained: Pretrained | None = None
    """Pretrained weights; None if all layers are trained from random values."""

    def check_size(self, size: int) -> None:
        """Check the height and width of the images, in pixels.

        Raises:
            ModelError: If the network cannot take such images.
        """
        least = -(-self.min_size // self.size_step) * self.size_step
        if size < least:
            raise ModelError(
                f"{self.title} needs images of at least {least} pixels, got {size}; use "
                f"`image_size={least}` or more"
            )
        if size % self.size_step:
            lower = size - size % self.size_step
            raise ModelError(
                f"{self.title} needs an input size divisible by {self.size_step}, got {size}; use "
                f"`image_size={lower}` or {lower + self.size_step}"
            )

    @property
    def split_at(self) -> tuple[str, ...]:
        """Names of the children that lead to the first layer of `last_block`."""
        return tuple(self.last_block[0].split("."))

    def split(self, layers: "nn.Module") -> "tuple[nn.Module, nn.Module]":
        """Split the layers in two, before the first layer of `last_block`.

        Both parts hold the layers themselves, no copies, and name their tensors as the whole does.

        Args:
            layers: The layers from `build_layers`.

        Returns:
            The part before, which maps normalized images, float32 (N, 3, H, W), to activations,
            and the rest, which maps these to features, float32 (N, F).

        Raises:
            ModelError: If the layers do not follow one another as `nn.Sequential`.
        """
        from tltools.backbones.layers import split_sequential

        return split_sequential(layers, self.split_at)

    def choose_head(self, state: "Mapping[str, Tensor]") -> str:
        """Return the first head that the weights support, or else the last head."""
        return _first_that_fits(self.heads, state)


def _first_that_fits(choices: Mapping[str, tuple[str, ...]], state: "Mapping[str, Tensor]") -> str:
    """Return the first name whose tensors are all present, or else the last name."""
    fitting = [name for name, tensors in choices.items() if _has_tensors(state, tensors)]
    return fitting[0] if fitting else list(choices)[-1]


def _has_tensors(state: "Mapping[str, Tensor]", names: tuple[str, ...]) -> bool:
    """Return whether the weights have values for these tensors.

    torchvision's features-only file fills missing tensors with NaN, which counts as absent.
    """
    return all(name in state and bool(state[name].isfinite().all()) for name in names)
