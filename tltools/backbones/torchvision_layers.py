"""Build torchvision's classification models as layers that follow one another, without their head.

The tensors keep torchvision's names (those of a vision transformer: see `weights_name`), so its
weights fit, and `Backbone.split` can cut the network in two.
"""

import re
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from tltools.backbones.layers import GlobalAveragePool, replace_average_pools
from tltools.errors import ModelError

# Both normalize their input once more, for weights that were converted from TensorFlow, as
# torchvision does if it loads them; the auxiliary classifiers only serve training.
_AS_PUBLISHED: dict[str, Any] = {
    "aux_logits": False, "transform_input": True, "init_weights": False,
}  # fmt: skip
_ARGUMENTS = {"googlenet": _AS_PUBLISHED, "inception_v3": _AS_PUBLISHED}
POOLS = ("avgpool", "pool")
"""Names of the layer that averages the feature maps."""


def build(name: str, head: str, size: int) -> tuple[nn.Sequential, int]:
    """Build the layers of a model up to a head; see `tltools.backbones.backbone.BuildLayers`.

    Args:
        name: torchvision's name of the model.
        head: `last-layer` replaces the last linear layer; `pooled` takes the averages of the
            feature maps and needs no other layer of the classifier.
        size: Height and width of the images in pixels.

    Raises:
        ModelError: If the model is not a sequence of layers that ends with a linear one.
    """
    if name.startswith("vit_"):
        return _transformer(name, size)
    model = get_model(name, weights=None, **_ARGUMENTS.get(name, {}))
    replace_average_pools(model)
    *children, (last, classifier) = model.named_children()
    inner = list(classifier.named_children()) or [("", classifier)]
    linear = inner.pop()[1]
    if not isinstance(linear, nn.Linear) or any(
        isinstance(one, nn.ModuleList) for _, one in children
    ):
        raise ModelError(
            f"torchvision's {name} does not end with a linear layer that a new head could replace; "
            "choose another `model=`"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(children)
    if getattr(model, "transform_input", False):
        layers = OrderedDict([("renormalize", Renormalize()), *children])
    if name.startswith("densenet"):
        layers["relu"] = nn.ReLU()
    if head == "pooled":
        layers = OrderedDict((key, one) for key, one in layers.items() if key not in POOLS)
        layers["pool"] = GlobalAveragePool()
        return nn.Sequential(layers), _channels(layers["features"])
    if not any(key in POOLS for key in layers):
        layers["pool"] = GlobalAveragePool()
    if not any(isinstance(one, nn.Flatten) for _, one in (*layers.items(), *inner)):
        layers["flatten"] = nn.Flatten()
    if inner:
        layers[last] = nn.Sequential(OrderedDict(inner))
    return nn.Sequential(layers), linear.in_features


def _channels(features: nn.Module) -> int:
    """Return the number of feature maps: the width of the last convolution."""
    return [one for one in features.modules() if isinstance(one, nn.Conv2d)][-1].out_channels


class Renormalize(nn.Module):
    """Turn ImageNet's normalization into one of -1 to 1, as GoogLeNet and Inception expect."""

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the same shape."""
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
        return (images * std + mean - 0.5) / 0.5


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Patches(nn.Module):
    """The first layer of a vision transformer: (N, 3, H, W) → tokens (N, 1 + L, C)."""

    def __init__(self, model: VisionTransformer) -> None:
        """Take the layer's tensors from a model."""
        super().__init__()
        self.conv_proj = model.conv_proj
        self.class_token = model.class_token
        self.pos_embedding = model.encoder.pos_embedding

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches behind the class token."""
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)  # (N, L, C)
        # Not by `expand`: no export may have an Expand.
        first = self.pos_embedding[:, :1] + self.class_token
        embedding = torch.cat([first, self.pos_embedding[:, 1:]], dim=1)
        return nn.functional.pad(patches, (0, 0, 1, 0)) + embedding


class ClassToken(nn.Module):
    """Keep the class token: (N, 1 + L, C) → (N, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the first token."""
        return tokens[:, 0]


def _transformer(name: str, size: int) -> tuple[nn.Sequential, int]:
    model = get_model(name, weights=None, image_size=size)
    assert isinstance(model, VisionTransformer)
    layers = OrderedDict(
        patches=Patches(model),
        layers=model.encoder.layers,
        ln=model.encoder.ln,
        token=ClassToken(),
    )
    return nn.Sequential(layers), model.hidden_dim


_TRANSFORMER_NAMES = {
    "patches.pos_embedding": "encoder.pos_embedding",
    "patches": "",
    "layers": "encoder.layers",
    "ln": "encoder.ln",
}


def weights_name(name: str) -> str:
    """Return torchvision's name of a tensor of a vision transformer's layers."""
    ours = next(one for one in _TRANSFORMER_NAMES if name.startswith(one))
    return (_TRANSFORMER_NAMES[ours] + name.removeprefix(ours)).removeprefix(".")


def resized_embeddings(state: dict[str, Tensor], size: int, patch: int) -> dict[str, Tensor]:
    """Interpolate a vision transformer's position embeddings for images of another size.

    Args:
        state: The weights, which are not changed.
        size: Height and width of the images in pixels.
        patch: Height and width of a patch in pixels.

    Raises:
        ModelError: If the embeddings are not those of a square of patches.
    """
    name = "encoder.pos_embedding"
    if name not in state:
        return state  # reported as missing, with any others
    try:
        return dict(interpolate_embeddings(size, patch, OrderedDict(state)))
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"{name} has shape {tuple(state[name].shape)}, which is not a square of patches and a "
            "class token; are these the weights of another network?"
        ) from error


_OLD_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def renamed_dense_layers(state: dict[str, Tensor], size: int) -> dict[str, Tensor]:  # noqa: ARG001
    """Rename tensors as in torchvision's present DenseNet; its files have older names."""
    return {_OLD_DENSE_LAYER.sub(r"\1\2", name): tensor for name, tensor in state.items()}
