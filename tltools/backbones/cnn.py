"""The article's baseline: a small CNN with two convolutions, trained from scratch."""

from typing import TYPE_CHECKING

from tltools.backbones.backbone import Backbone, Recipe

if TYPE_CHECKING:
    from torch import nn


def _build_layers(head: str, size: int) -> "tuple[nn.Module, int]":  # noqa: ARG001 - only one
    from torch import nn

    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),  # (N, 4, H / 2, W / 2)
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),  # (N, 8, H / 4, W / 4)
        nn.Flatten(),
    )
    return layers, 8 * (size // 4) ** 2


CNN = Backbone(
    name="cnn",
    title="the CNN",
    build_layers=_build_layers,
    heads={"linear": ()},
    recipes={
        "default": Recipe(epochs=15, lr=1e-4),
        "article": Recipe(epochs=15, lr=1e-4, keep="last"),
    },
    last_maps="7",
    last_block=("4", "5"),
    flat_channels=8,
    min_size=4,
    size_step=4,
)
