"""What a backbone is: the one object in which tltools looks up all that it knows of a network.

Nothing here imports torch, so that the command line can ask which backbones there are at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tltools.card import Resize

Keep = Literal["best", "last"]
RecipeName = Literal["default", "article"]

IMAGENET = "imagenet"
"""The weights that a pre-trained backbone takes unless others are chosen; each has some."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyper-parameters that suit a backbone."""

    epochs: int
    """Passes over the training split."""
    lr: float
    """Adam's learning rate."""
    batch_size: int = 128
    """Images per optimizer step."""
    weight_decay: float = 0.0
    """L2 penalty, part of the loss as in torch's Adam (not decoupled as in AdamW)."""
    standardize: bool = False
    """Train the head on features of zero mean and unit variance (folded into it afterwards)."""
    keep: Keep = "best"
    """Save the epoch with the lowest validation loss, or the last one."""
    resize: "Resize" = "squash"
    """How an image becomes a square."""


@dataclass(frozen=True, kw_only=True)
class Download:
    """Weights that torchvision publishes."""

    torchvision: str
    """torchvision's name of them, for example `VGG16_Weights.IMAGENET1K_V1`."""
    megabytes: int
    """Size of the file in units of 2**20 bytes."""


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """What pixels on the 0-1 scale go through, `(x - mean) / std`, by channel (RGB)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tensors: tuple[str, ...] = ()
    """What weights that were trained with it have and others lack; empty: nothing."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The weights of a backbone that is trained already; its layers stay frozen."""

    first_tensor: str
    """A tensor that all such weights have, by which a file of something else is noticed."""
    downloads: Mapping[str, Download]
    """By the name that a user chooses them by; `IMAGENET` is among them."""
    normalizations: Mapping[str, Normalization]
    """What the weights may have been trained with, by name. The first whose `tensors` they have
    is taken unless another is chosen."""

    def choose_normalization(self, state: "Mapping[str, Tensor]") -> str:
        """Return the name of the first normalization that fits some weights."""
        tensors = {name: one.tensors for name, one in self.normalizations.items()}
        return _first_that_fits(tensors, state)


BuildLayers = Callable[[str, int], "tuple[nn.Module, int]"]
"""Takes the name of a head, and height and width of the images in pixels. Returns the layers up
to that head, which map normalized images, float32 (N, 3, H, W), to features, float32 (N, F); and F.

The tensors of a pre-trained backbone have the names of its weights. It is built on torch's `meta`
device, where tensors take neither time nor memory; others draw theirs from torch's generator."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network without its head, and everything that depends on which one it is."""

    name: str
    """What users, cards and run folders call it."""
    title: str
    """What sentences call it."""
    summary: str
    """A few words for a help text."""
    build_layers: BuildLayers
    heads: Mapping[str, tuple[str, ...]]
    """Where a new head can be put, by name, with the tensors that only this choice takes of
    pre-trained weights. The first that the weights allow is taken unless another is chosen."""
    recipes: Mapping[RecipeName, Recipe]
    """Hyper-parameters; `default` is taken unless another is chosen."""
    last_maps: str
    """The last layer whose output has height and width, on which heat maps are drawn: its name in
    what `build_layers` returns, as torch's `get_submodule` takes it."""
    last_block: tuple[str, ...]
    """The layers with weights that come last, which fine-tuning would change first; names as in
    `last_maps`."""
    input_size: int = 224
    """Height and width of the images in pixels."""
    pretrained: Pretrained | None = None
    """Its weights; None if all of its layers are trained here, from random values."""

    def choose_head(self, state: "Mapping[str, Tensor]") -> str:
        """Return the first head that some weights allow; the last if they allow none."""
        return _first_that_fits(self.heads, state)


def _first_that_fits(choices: Mapping[str, tuple[str, ...]], state: "Mapping[str, Tensor]") -> str:
    """Return the first name whose tensors are among the weights, or else the last name."""
    fitting = [name for name, tensors in choices.items() if _has_tensors(state, tensors)]
    return fitting[0] if fitting else list(choices)[-1]


def _has_tensors(state: "Mapping[str, Tensor]", names: tuple[str, ...]) -> bool:
    """Tell whether weights have values for these tensors.

    torchvision's features-only file fills the others with NaN, which counts as absent.
    """
    return all(name in state and bool(state[name].isfinite().all()) for name in names)
