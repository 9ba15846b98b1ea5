"""The trained part of a fine-tuned network: its last layers, or all, and the head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tltools.training.scaling import Scaling


class FineTuned(nn.Module):
    """Map the samples of a training to logits; everything inside is trained, except scaling.

    The features are scaled to unit variance and thinned out by dropout before the head, which
    keeps a new head from pushing large gradients into pretrained layers.
    """

    def __init__(
        self,
        layers: nn.Module,
        head: nn.Linear,
        *,
        frozen: Callable[[Tensor], Tensor],
        scaling: Scaling | None,
        dropout: float,
    ) -> None:
        """Combine the trained layers.

        Args:
            layers: Layers up to the head.
            head: Maps features (N, F) to logits (N, C).
            frozen: Maps a batch of samples to the input of `layers`; never trained.
            scaling: Standardization of the features; None leaves them as they are.
            dropout: Fraction of the features set to zero in training mode.
        """
        super().__init__()
        self.backbone = layers.requires_grad_(True)
        for parameter in layers.parameters():  # they may share memory with the loaded weights
            parameter.data = parameter.data.clone()
        self.head = head
        self._frozen = frozen
        self._dropout = nn.Dropout(dropout)
        # Part of the state, because a resumed training must not fit them to trained layers.
        size = head.in_features
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(size) if scaling is None else scaling.mean)
        self.register_buffer("std", torch.ones(size) if scaling is None else scaling.std)

    @property
    def scaling(self) -> Scaling:
        """The standardization of the features."""
        return Scaling(self.mean.cpu(), self.std.cpu())

    def train(self, mode: bool = True) -> "FineTuned":
        """Switch between training and evaluation; batch norm keeps its pretrained statistics.

        Those of a small batch would be far noisier.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, samples: Tensor) -> Tensor:
        """Map samples to logits, (N, C)."""
        with torch.no_grad():
            inputs = self._frozen(samples)
        features = (self.backbone(inputs) - self.mean) / self.std
        return self.head(self._dropout(features))


@torch.no_grad()
def fit_scaling(layers: nn.Module, batches: list[Tensor]) -> Scaling:
    """Return the scaling of the features that layers give for a few batches of their input."""
    layers.eval()
    return Scaling.fit(torch.cat([layers(batch).float().cpu() for batch in batches]))
