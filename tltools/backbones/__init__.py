"""The backbones that tltools supports: one object each, in its own file.

To add one, write its file and add its object below. The command line, settings, weights, models,
`explain` and `doctor` look up everything else there.
"""

from tltools.backbones.backbone import Backbone
from tltools.backbones.cnn import CNN
from tltools.backbones.vgg16 import VGG16
from tltools.errors import ConfigError

__all__ = ["BACKBONES", "Backbone", "find_backbone"]

BACKBONES: dict[str, Backbone] = {one.name: one for one in (CNN, VGG16)}
"""By name, in the order in which `train` trains them."""


def find_backbone(name: str) -> Backbone:
    """Return the backbone of this name.

    Raises:
        ConfigError: If the name is unknown.
    """
    try:
        return BACKBONES[name]
    except KeyError:
        raise ConfigError(f"unknown model {name!r}; choose {' or '.join(BACKBONES)}") from None
