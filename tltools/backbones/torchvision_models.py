"""torchvision's classification models as frozen backbones: seven by name here, others by look-up.

Their recipes are those found for VGG16. torchvision is not imported for those named here
before their layers are built.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from tltools.backbones.backbone import (
    IMAGENET,
    Backbone,
    Download,
    FitState,
    Pretrained,
    unchanged,
)
from tltools.backbones.recipes import FINE_TUNING, HEAD
from tltools.errors import ConfigError
from tltools.wording import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_BLOCKS = 2
"""Blocks of a network without its own entry that count as its last ones."""
NO_LINEAR_LAYER = ("maxvit_t", "squeezenet1_0", "squeezenet1_1")
"""torchvision's models whose last layer a new head cannot replace."""
_STAGES = ("features", "layers", "trunk_output")
"""torchvision's names of a sequence of all blocks of a network."""
LAST_LAYER: Mapping[str, tuple[str, ...]] = {"last-layer": ()}


def _build(name: str, head: str, size: int) -> "tuple[nn.Module, int]":
    from tltools.backbones.torchvision_layers import build

    return build(name, head, size)


def _backbone(
    name: str,
    title: str,
    *,
    first_tensor: str,
    last_maps: str,
    last_block: tuple[str, ...],
    weights: str,
    hidden: tuple[str, ...] = (),
    input_size: int = 224,
    min_size: int = 32,
    computes_constants: bool = False,
    fit_state: FitState = unchanged,
) -> Backbone:
    """Describe a convolutional network.

    Args:
        name: torchvision's name.
        title: Name in sentences.
        first_tensor: See `Pretrained`.
        last_maps: See `Backbone`.
        last_block: See `Backbone`.
        weights: Name of torchvision's enumeration of its weights.
        hidden: Linear layers before the last one, which the head `pooled` does without.
        input_size: See `Backbone`.
        min_size: See `Backbone`.
        computes_constants: See `Backbone`.
        fit_state: See `Pretrained`.
    """
    tensors = tuple(f"{layer}.{kind}" for layer in hidden for kind in ("weight", "bias"))
    return Backbone(
        name=name,
        title=title,
        build_layers=partial(_build, name),
        heads={"last-layer": tensors, "pooled": ()} if hidden else LAST_LAYER,
        recipes={"default": HEAD},
        fine_tuning=FINE_TUNING,
        last_maps=last_maps,
        last_block=last_block,
        input_size=input_size,
        min_size=min_size,
        computes_constants=computes_constants,
        pretrained=Pretrained(
            first_tensor=first_tensor,
            downloads={IMAGENET: Download(torchvision=f"{weights}.DEFAULT")},
            fit_state=fit_state,
        ),
    )


def _transformer(
    name: str, title: str, *, patch: int, num_layers: int, weights: str, input_size: int = 224
) -> Backbone:
    """Describe a vision transformer, whose position embeddings are interpolated to the size.

    Args:
        name: torchvision's name.
        title: Name in sentences.
        patch: Height and width of a patch in pixels.
        num_layers: Number of encoder layers.
        weights: Name of torchvision's enumeration of its weights.
        input_size: See `Backbone`.
    """
    first, last = (f"layers.encoder_layer_{num_layers - back}" for back in (2, 1))
    return Backbone(
        name=name,
        title=title,
        build_layers=partial(_build, name),
        heads=LAST_LAYER,
        recipes={"default": HEAD},
        fine_tuning=FINE_TUNING,
        # Behind the last attention, only the class token decides.
        last_maps=f"{last}.ln_1",
        maps_axes="NLC",
        last_block=(first, last, "ln"),
        input_size=input_size,
        min_size=2 * patch,
        size_step=patch,
        pretrained=Pretrained(
            first_tensor="conv_proj.weight",
            downloads={IMAGENET: Download(torchvision=f"{weights}.DEFAULT")},
            rename=_transformer_name,
            fit_state=partial(_fit_transformer, patch=patch),
        ),
    )


def _transformer_name(name: str) -> str:
    from tltools.backbones.torchvision_layers import weights_name

    return weights_name(name)


def _fit_transformer(state: "dict[str, Tensor]", size: int, *, patch: int) -> "dict[str, Tensor]":
    from tltools.backbones.torchvision_layers import resized_embeddings

    return resized_embeddings(state, size, patch)


NAMED: tuple[Backbone, ...] = (
    _backbone(
        "vgg16_bn",
        "VGG16 with batch normalization",
        weights="VGG16_BN_Weights",
        first_tensor="features.0.weight",
        last_maps="features",
        last_block=tuple(f"features.{layer}" for layer in (34, 35, 37, 38, 40, 41)),
        hidden=("classifier.0", "classifier.3"),
    ),
    _backbone(
        "resnet18",
        "ResNet-18",
        weights="ResNet18_Weights",
        first_tensor="conv1.weight",
        last_maps="layer4",
        last_block=("layer4",),
    ),
    _backbone(
        "resnet50",
        "ResNet-50",
        weights="ResNet50_Weights",
        first_tensor="conv1.weight",
        last_maps="layer4",
        last_block=("layer4",),
    ),
    _backbone(
        "mobilenet_v3_large",
        "MobileNetV3-Large",
        weights="MobileNet_V3_Large_Weights",
        first_tensor="features.0.0.weight",
        last_maps="features",
        last_block=("features.14", "features.15", "features.16"),
        hidden=("classifier.0",),
    ),
    _backbone(
        "efficientnet_b0",
        "EfficientNet-B0",
        weights="EfficientNet_B0_Weights",
        first_tensor="features.0.0.weight",
        last_maps="features",
        last_block=("features.7", "features.8"),
    ),
    _backbone(
        "convnext_tiny",
        "ConvNeXt-Tiny",
        weights="ConvNeXt_Tiny_Weights",
        first_tensor="features.0.0.weight",
        last_maps="features",
        last_block=("features.7", "classifier.0"),
    ),
    _transformer("vit_b_16", "ViT-B/16", patch=16, num_layers=12, weights="ViT_B_16_Weights"),
)
"""The backbones that the command line lists beside those with their own file."""


@cache
def find(name: str) -> Backbone:
    """Describe any of torchvision's classification models.

    Raises:
        ConfigError: If torchvision has no such model.
        ModelError: If a new head cannot replace its last layer.
    """
    written = _names_in_source()
    if written and name not in written:  # known without an import that takes seconds
        raise unknown(name, written)
    import torch
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown(name, known)
    weights = models.get_model_weights(name)
    preset = weights["DEFAULT"]
    size = preset.transforms().crop_size[0]
    # RegNet computes its widths with torch, which needs values.
    with nullcontext() if name.startswith("regnet") else torch.device("meta"):
        if name.startswith("vit_"):
            model = models.get_model(name, weights=None)
            assert isinstance(model, models.VisionTransformer)
            return _transformer(
                name,
                name,
                patch=model.patch_size,
                num_layers=len(list(model.encoder.layers.children())),
                weights=weights.__name__,
                input_size=size,
            )
        layers, _ = _build(name, "last-layer", size)
    return _backbone(
        name,
        name,
        weights=weights.__name__,
        first_tensor=next(iter(layers.state_dict())),
        hidden=_hidden(layers),
        input_size=size,
        min_size=max(32, preset.meta["min_size"][0]),
        computes_constants=True,
        fit_state=_fit_dense if name.startswith("densenet") else unchanged,
        **_last_layers(layers),
    )


_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
"""A function of torchvision's source that builds a model which `list_models` lists."""


def _names_in_source() -> list[str]:
    """Read the names of torchvision's classification models from its source, sorted.

    Empty if the source is not there, or is no longer written like this: then the names that tltools
    knows are not among those found.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "models"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))]
    names = {name for text in texts for name in _REGISTERED.findall(text)}
    return sorted(names) if names.issuperset(one.name for one in NAMED) else []


def unknown(name: str, known: Iterable[str]) -> ConfigError:
    """Return the error of a model that neither tltools nor torchvision has."""
    return ConfigError(
        f"unknown model {name!r};{did_you_mean(name, ('cnn', *known))} tltools models --all lists "
        "torchvision's, and timm:NAME takes a model of timm"
    )


def _hidden(layers: "nn.Module") -> tuple[str, ...]:
    """Return the linear layers of the classifier, if `pooled` can do without them."""
    from torch import nn

    if "features" not in dict(layers.named_children()):
        return ()
    *_, (last, classifier) = layers.named_children()
    return tuple(
        f"{last}.{name}"
        for name, layer in classifier.named_children()
        if isinstance(layer, nn.Linear)
    )


def _last_layers(layers: "nn.Module") -> "_LastLayers":
    """Find the last feature maps, and the last layers with weights before they are averaged."""
    from tltools.backbones.torchvision_layers import POOLS

    before: list[tuple[str, nn.Module]] = []
    for name, layer in layers.named_children():
        if name in POOLS:
            break
        before.append((name, layer))
    weighted = [name for name, one in before if any(True for _ in one.parameters())]
    # Norms and convolutions behind the last stage belong to its last blocks.
    stage = next((name for name in reversed(weighted) if name in _STAGES), weighted[-1])
    behind = weighted[weighted.index(stage) :]
    if stage in _STAGES:
        blocks = dict(before)[stage].named_children()
        inner = [key for key, one in blocks if any(True for _ in one.parameters())]
        behind[:1] = [f"{stage}.{key}" for key in inner[-NUM_BLOCKS:]]
    return {"last_maps": before[-1][0], "last_block": tuple(behind)}


class _LastLayers(TypedDict):
    last_maps: str
    last_block: tuple[str, ...]


def _fit_dense(state: "dict[str, Tensor]", size: int) -> "dict[str, Tensor]":
    from tltools.backbones.torchvision_layers import renamed_dense_layers

    return renamed_dense_layers(state, size)
