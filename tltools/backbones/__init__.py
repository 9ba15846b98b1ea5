"""The backbones that tltools supports: one object each, found by name.

To add one, write its file and add its object below. The command line, settings, weights, models,
`explain` and `doctor` look up everything else there. Other models of torchvision and those of timm
are described when they are asked for, by importing these libraries.
"""

from tltools.backbones import timm_models, torchvision_models
from tltools.backbones.backbone import Backbone
from tltools.backbones.cnn import CNN
from tltools.backbones.vgg16 import VGG16

__all__ = ["BACKBONES", "COMPARED", "Backbone", "find_backbone"]

BACKBONES: dict[str, Backbone] = {one.name: one for one in (CNN, VGG16, *torchvision_models.NAMED)}
"""Those that are listed, by name."""
COMPARED = (CNN.name, VGG16.name)
"""Those that `train` trains and compares unless it is told which, in this order."""


def find_backbone(name: str) -> Backbone:
    """Return the backbone of this name: one of `BACKBONES`, torchvision's, or `timm:NAME`.

    Raises:
        ConfigError: If the name is unknown, or timm is needed and not installed.
        ModelError: If a new head cannot replace the network's last layer.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith(timm_models.PREFIX):
        return timm_models.find(name)
    return torchvision_models.find(name)
