"""Standardize features before a head is trained on them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SMALLEST_STD = 0.01
"""Floor for a feature's standard deviation, as a fraction of the RMS of all features."""


@dataclass(frozen=True)
class Scaling:
    """Standardization of features before a head is trained on them: (x - mean) / std."""

    mean: Tensor
    """Float32 (F,), on the CPU."""
    std: Tensor
    """Float32 (F,), on the CPU; positive."""

    @classmethod
    def fit(cls, features: Tensor) -> "Scaling":
        """Return the scaling that gives features, float32 (N, F), zero mean and unit variance."""
        # Without the floor, a nearly constant feature would be amplified noise on a new image.
        floor = _SMALLEST_STD * features.square().mean().sqrt().item()
        std = features.std(dim=0, correction=0).clamp(min=max(floor, 1e-12))
        return cls(features.mean(dim=0), std)

    def apply(self, features: Tensor) -> Tensor:
        """Scale features, float32 (N, F)."""
        return (features - self.mean) / self.std

    @torch.no_grad()
    def fold_into(self, head: nn.Linear) -> None:
        """Fold the scaling into a head, in place, so that it takes raw features.

        W (x - mean) / std + b becomes W' x + b'.
        """
        weight = head.weight.detach().double().cpu() / self.std.double()
        bias = head.bias.detach().double().cpu() - weight @ self.mean.double()
        head.weight.copy_(weight)
        head.bias.copy_(bias)
