"""What is known about networks before they are trained: their size, cost and published accuracy."""

from dataclasses import dataclass

import torch

from tltools.backbones import BACKBONES, Backbone
from tltools.backbones.torchvision_models import NO_LINEAR_LAYER


@dataclass(frozen=True, kw_only=True)
class Published:
    """A network, and the figures that torchvision publishes for its default weights."""

    model: str
    """Name for `--model`."""
    parameters: int
    """With ImageNet's head of 1000 classes; without a head if it has no weights."""
    multiply_adds: float | None
    """Billion multiply-adds per image (torchvision calls them GFLOPS); None if unknown."""
    accuracy: float | None
    """Top-1 accuracy on ImageNet's validation set, in [0, 1]; None without weights."""
    megabytes: float | None
    """Size of the file in units of 2**20 bytes; None without weights."""
    input_size: int
    """Height and width of the images in pixels."""
    default_weights: str | None
    """torchvision's name of the weights that `imagenet` stands for; None without weights."""
    weights: tuple[str, ...] = ()
    """Names of all published weights, which `--weights` takes."""


def list_published(*, every: bool = False) -> list[Published]:
    """List the named backbones; or `every` classification model of torchvision, after these.

    torchvision is imported, but no network is built except those without weights.
    """
    from torchvision import models

    names = list(BACKBONES)
    if every:
        known = models.list_models(module=models)
        names += [one for one in known if one not in BACKBONES and one not in NO_LINEAR_LAYER]
    return [
        _without_weights(BACKBONES[name])
        if name in BACKBONES and BACKBONES[name].pretrained is None
        else _published(name)
        for name in names
    ]


def _published(name: str) -> Published:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)
    default = weights["DEFAULT"]
    (accuracy,) = (one["acc@1"] for one in default.meta["_metrics"].values())
    (size,) = default.transforms().crop_size
    return Published(
        model=name,
        parameters=default.meta["num_params"],
        multiply_adds=default.meta["_ops"],
        accuracy=round(accuracy / 100, 5),
        megabytes=default.meta["_file_size"],
        input_size=size,
        default_weights=default.name,
        weights=tuple(one.name for one in weights),
    )


def _without_weights(backbone: Backbone) -> Published:
    with torch.device("meta"):
        layers, _ = backbone.build_layers(next(iter(backbone.heads)), backbone.input_size)
    return Published(
        model=backbone.name,
        parameters=sum(one.numel() for one in layers.parameters()),
        multiply_adds=None,
        accuracy=None,
        megabytes=None,
        input_size=backbone.input_size,
        default_weights=None,
    )
