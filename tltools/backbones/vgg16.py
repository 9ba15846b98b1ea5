"""VGG16 (Simonyan and Zisserman, arXiv:1409.1556) as torchvision builds it, frozen."""

from typing import TYPE_CHECKING

from tltools.backbones.backbone import (
    IMAGENET,
    Backbone,
    Download,
    Normalization,
    Pretrained,
    Recipe,
)
from tltools.backbones.recipes import FINE_TUNING, HEAD

if TYPE_CHECKING:
    from torch import nn

_CLASSIFIER = tuple(f"classifier.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias"))
"""Tensors between the convolutions and `classifier.6`, which features-only files lack."""


def _build_layers(head: str, size: int) -> "tuple[nn.Module, int]":  # noqa: ARG001 - any size
    """Build the layers up to a head.

    `last-layer` replaces `classifier.6` and takes 4096 features. `pooled` takes the averages of
    the 512 feature maps and needs no other layer of the classifier.
    """
    from torch import nn
    from torchvision.models import vgg16

    from tltools.backbones.layers import GlobalAveragePool

    full = vgg16(weights=None)
    layers = nn.Sequential()
    layers.add_module("features", full.features)
    if head == "pooled":
        layers.add_module("pool", GlobalAveragePool())
        return layers, 512
    layers.add_module("pool", full.avgpool)
    layers.add_module("flatten", nn.Flatten())
    layers.add_module("classifier", full.classifier[:6])
    return layers, 4096


VGG16 = Backbone(
    name="vgg16",
    title="VGG16",
    build_layers=_build_layers,
    heads={"last-layer": _CLASSIFIER, "pooled": ()},
    recipes={
        "default": HEAD,
        # The article's transfer learning: plain Adam.
        "article": Recipe(epochs=30, lr=5e-4, keep="last"),
    },
    fine_tuning=FINE_TUNING,
    last_maps="features",
    last_block=("features.24", "features.26", "features.28"),
    min_size=32,
    pretrained=Pretrained(
        first_tensor="features.0.weight",
        downloads={IMAGENET: Download(torchvision="VGG16_Weights.IMAGENET1K_V1")},
        # As torchvision publishes them: IMAGENET1K_V1 was trained with ImageNet's mean and
        # standard deviation; IMAGENET1K_FEATURES, the authors' original, with the mean only.
        normalizations={
            "torchvision": Normalization(
                mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), tensors=_CLASSIFIER
            ),
            "original": Normalization(
                mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255)
            ),
        },
    ),
)
