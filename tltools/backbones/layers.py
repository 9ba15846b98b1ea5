"""Layers shared by several backbones."""

from torch import Tensor, nn


class GlobalAveragePool(nn.Module):
    """Average each feature map: (N, F, H, W) → (N, F) (Lin et al., arXiv:1312.4400)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Average over height and width."""
        return maps.mean(dim=(2, 3))
