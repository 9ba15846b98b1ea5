"""Collect the features that a model's head takes while the model is run over images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tltools.training.scaling import Scaling


class HeadInputs:
    """The inputs of a head, pooled and unscaled, of every `step`-th sample."""

    def __init__(self, num_channels: int, scaling: Scaling | None, *, step: int = 1) -> None:
        """Start without any.

        Args:
            num_channels: Number of channels D that features, (N, F), are pooled to.
            scaling: The scaling of the features that the head takes; None if there is none.
            step: Keep one sample of so many.
        """
        self._num_channels = num_channels
        self._scaling = scaling
        self._step = step
        self._num_seen = 0
        self._kept: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """Take the head's input for the next samples, (n, F)."""
        start = -self._num_seen % self._step
        self._num_seen += len(features)
        values = features[start :: self._step].detach().float().cpu()
        if self._scaling is not None:
            values = values * self._scaling.std + self._scaling.mean
        self._kept.append(values.unflatten(1, (self._num_channels, -1)).mean(dim=2))

    def values(self) -> NDArray[np.float32]:
        """Return the kept features, (N, D)."""
        return torch.cat(self._kept).numpy()


@contextmanager
def collecting(head: nn.Linear, inputs: HeadInputs) -> Iterator[None]:
    """Add to `inputs` whatever the head takes within the block."""

    def take(_module: nn.Module, given: tuple[Any, ...]) -> None:
        inputs.add(given[0])

    hook = head.register_forward_pre_hook(take)
    try:
        yield
    finally:
        hook.remove()


def num_channels(head: nn.Linear, flat_channels: int | None) -> int:
    """Return the number of channels of a head's input, which is flattened maps or has none."""
    return head.in_features if flat_channels is None else flat_channels
