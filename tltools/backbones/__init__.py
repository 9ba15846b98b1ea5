"""The backbones that tltools knows, one object in one file each.

To add one, write its file and add its object below. The command line, the settings, the weights,
the models, `explain` and `doctor` look up the rest.
"""

from tltools.backbones.backbone import Backbone
from tltools.backbones.cnn import CNN
from tltools.backbones.vgg16 import VGG16
from tltools.errors import ConfigError

__all__ = ["BACKBONES", "Backbone", "find_backbone"]

BACKBONES: dict[str, Backbone] = {one.name: one for one in (CNN, VGG16)}
"""By name, in the order in which `train` trains them."""


def find_backbone(name: str) -> Backbone:
    """Return a backbone.

    Raises:
        ConfigError: If there is none of this name.
    """
    try:
        return BACKBONES[name]
    except KeyError:
        raise ConfigError(
            f"unknown model {name!r}; choose --model {' or '.join(BACKBONES)}"
        ) from None
