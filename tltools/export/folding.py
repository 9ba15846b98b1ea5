"""Rewrite narrow convolutions as fewer, wider ones with the same result.

Processors multiply 8 or 16 channels at once, and their libraries pad narrower layers: in the small
CNN's first layer, with 4 channels, three quarters of the work is padding. Here, a 3x3 convolution
followed by 2x2 max pooling becomes one convolution with four times the channels: one group for each
position in the 2x2 window. The output is the maximum over the groups.
"""

import copy

import torch
from torch import Tensor, nn

from tltools.training.models import Classifier

MAX_CHANNELS = 32
"""Limit for a folded convolution: wider layers already fill the processor's vectors."""
WINDOW = ((0, 0), (0, 1), (1, 0), (1, 1))


class PooledConv(nn.Module):
    """Conv2d 3x3, BatchNorm2d, ReLU, MaxPool2d 2 in one: (N, C, H, W) → (N, D, H / 2, W / 2)."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Combine the weights of both, with the normalization in eval mode."""
        super().__init__()
        weight, bias = _normalized(conv, norm)
        self.num_channels = conv.out_channels
        wide = weight.new_zeros(len(WINDOW) * conv.out_channels, conv.in_channels, 4, 4)
        groups = wide.view(len(WINDOW), conv.out_channels, conv.in_channels, 4, 4)
        for group, (row, column) in zip(groups, WINDOW, strict=True):
            group[:, :, row : row + 3, column : column + 3] = weight
        self.conv = nn.Conv2d(conv.in_channels, len(wide), 4, stride=2, padding=1)
        self.conv.weight = nn.Parameter(wide.to(conv.weight.dtype))
        self.conv.bias = nn.Parameter(bias.repeat(len(WINDOW)).to(conv.weight.dtype))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, D, H / 2, W / 2)."""
        wide, size = self.conv(maps), self.num_channels
        # Not `split`: onnx's version converter cannot take that operator before opset 18.
        first, second, third, fourth = (
            wide[:, start : start + size] for start in range(0, len(WINDOW) * size, size)
        )
        largest = torch.maximum(torch.maximum(first, second), torch.maximum(third, fourth))
        return torch.relu(largest)


class FoldedClassifier(nn.Module):
    """A classifier whose first convolution also scales the pixels, with the same logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        """Combine a backbone and a head."""
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C)."""
        return self.head(self.backbone(images.permute(0, 3, 1, 2).float()))


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Return a faster module with the same logits, or the model itself if it cannot be folded.

    Args:
        model: A classifier in eval mode, which is not changed; anything else is returned as it is.
    """
    if not isinstance(model, Classifier) or model.training:
        return model
    layers = list(model.backbone.children())
    folded: list[nn.Module] = []
    while layers:
        if _is_foldable(layers[:4]):
            conv, norm, *_ = layers[:4]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            folded.append(PooledConv(conv, norm))
            del layers[:4]
        else:
            folded.append(layers.pop(0))
    first = folded[0] if folded else None
    # The layer pads with zeros, so a scale of the pixels can move behind the padding, a shift not.
    if not isinstance(first, PooledConv) or model.shift.any():
        return model
    first.conv.weight *= model.scale
    return FoldedClassifier(nn.Sequential(*folded), copy.deepcopy(model.head)).eval()


def _is_foldable(layers: list[nn.Module]) -> bool:
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
    if [type(layer) for layer in layers] != list(kinds):
        return False
    conv, norm, _, pool = layers
    assert isinstance(conv, nn.Conv2d)
    return (
        (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
        and (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) == (2, 2, 0, False)
        and bool(norm.track_running_stats)
        and len(WINDOW) * conv.out_channels <= MAX_CHANNELS
    )


@torch.no_grad()
def _normalized(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias, float64, of a convolution with its normalization folded in."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = 0.0 if conv.bias is None else conv.bias.double()
    shifted = (bias - norm.running_mean.double()) * gain + norm.bias.double()
    return conv.weight.double() * gain.view(-1, 1, 1, 1), shifted
