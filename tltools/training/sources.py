"""Yield batches of samples for the training loop."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tltools.training.augment import apply_changes, draw_changes

CPU = torch.device("cpu")


@dataclass
class Source:
    """Samples of one split, and the device that their batches go to."""

    samples: Tensor
    """Uint8 images (N, H, W, 3) or float32 features (N, F); on `device` or on the CPU."""
    targets: Tensor
    """Int64 (N,), on the CPU."""
    batch_size: int
    device: torch.device = CPU

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def batches(
        self, order: Tensor, *, augment: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches on the device, without ever waiting for a GPU.

        Args:
            order: Indices of the samples, int64 (M,), on the CPU.
            augment: Random generator for the augmentation of images; None disables it.

        Yields:
            Inputs (n, …), with the samples' dtype, and targets, int64 (n,).
        """
        targets = self.targets[order].to(self.device).split(self.batch_size)
        indices = order.to(self.samples.device).split(self.batch_size)
        changes = None
        if augment is not None:
            drawn = draw_changes(len(order), self.samples.shape[1], augment)
            changes = drawn.to(self.device).split(self.batch_size)
        for number, target in enumerate(targets):
            inputs = self._take(indices[number])
            yield (inputs if changes is None else apply_changes(inputs, changes[number])), target

    def _take(self, indices: Tensor) -> Tensor:
        """Return the samples at `indices`, on the device."""
        if self.samples.device.type != "cpu":
            return self.samples.index_select(0, indices)
        samples, rows = self.samples.numpy(), indices.numpy()
        if self.device.type == "cpu":
            return torch.from_numpy(samples[rows])  # five times as fast as index_select on bytes
        # Page-locked memory is copied asynchronously; torch keeps it until the copy is done.
        shape = (len(rows), *samples.shape[1:])
        taken = torch.empty(shape, dtype=self.samples.dtype, pin_memory=True)
        # "clip" avoids numpy's intermediate buffer; no row is out of bounds.
        np.take(samples, rows, axis=0, out=taken.numpy(), mode="clip")
        return taken.to(self.device, non_blocking=True)
