"""Layers shared by several backbones, and the split of a network in two."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from tltools.errors import ModelError


class GlobalAveragePool(nn.Module):
    """Average each feature map: (N, F, H, W) → (N, F) (Lin et al., arXiv:1312.4400)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Average over height and width."""
        return maps.mean(dim=(2, 3))


class KeptAveragePool(nn.Module):
    """Average each feature map and keep its axes: (N, F, H, W) → (N, F, 1, 1)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Average over height and width."""
        return maps.mean(dim=(2, 3), keepdim=True)


def replace_average_pools(layers: nn.Module) -> None:
    """Replace `nn.AdaptiveAvgPool2d(1)` everywhere within the layers by `KeptAveragePool`.

    The result is the same. For the original, torch's exporter writes seven more nodes, among them
    a Range, which no export may have.
    """
    for name, layer in list(layers.named_children()):
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
            setattr(layers, name, KeptAveragePool())
        else:
            replace_average_pools(layer)


def split_sequential(layers: nn.Module, path: Sequence[str]) -> tuple[nn.Sequential, nn.Sequential]:
    """Split nested `nn.Sequential` before the layer at the end of a path.

    Args:
        layers: An `nn.Sequential`.
        path: Names of nested children: all but the last name an `nn.Sequential`.

    Returns:
        The layers before, and the layers from there on; their tensors are those of `layers`, under
        the same names.

    Raises:
        ModelError: If there is no such layer, or a module on the way is not an `nn.Sequential`.
    """
    name, *inner = path
    children = list(layers.named_children())
    names = [child for child, _ in children]
    if not isinstance(layers, nn.Sequential) or name not in names:
        raise ModelError(
            f"cannot split a {type(layers).__name__} before its layer {name!r}: it is not an "
            "nn.Sequential with such a layer; choose a layer that is in one"
        )
    index = names.index(name)
    before, after = OrderedDict(children[:index]), OrderedDict(children[index:])
    if inner:
        before[name], after[name] = split_sequential(after[name], inner)
    return nn.Sequential(before), nn.Sequential(after)
