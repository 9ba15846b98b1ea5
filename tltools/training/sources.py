"""Yield batches of samples for the training loop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tltools.backbones.backbone import Augment
from tltools.training.augment import apply_changes, draw_changes
from tltools.training.file_images import FileImages

CPU = torch.device("cpu")


class Source(Protocol):
    """Samples of one split."""

    targets: Tensor
    """Int64 (N,), on the CPU."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batches(
        self, order: Tensor, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches on the device, without ever waiting for a GPU.

        Args:
            order: Indices of the samples, int64 (M,), on the CPU.
            generator: Random generator for the augmentation; None does not augment.

        Yields:
            Inputs (n, …) and targets, int64 (n,).
        """
        ...


@dataclass
class ImageSource:
    """Images, changed at random if the settings say so."""

    samples: Tensor | FileImages
    """Uint8 images (N, H, W, 3); on `device`, on the CPU or in a file."""
    targets: Tensor
    batch_size: int
    device: torch.device = CPU
    augment: Augment = "none"

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def batches(
        self, order: Tensor, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images (n, H, W, 3): see `Source`."""
        targets = self.targets[order].to(self.device).split(self.batch_size)
        here = self.samples.device if isinstance(self.samples, Tensor) else CPU
        indices = order.to(here).split(self.batch_size)
        changes = None
        if generator is not None and self.augment != "none":
            drawn = draw_changes(len(order), self.samples.shape[1], self.augment, generator)
            changes = drawn.to(self.device).split(self.batch_size)
        for number, target in enumerate(targets):
            inputs = _take(self.samples, indices[number], self.device)
            yield (inputs if changes is None else apply_changes(inputs, changes[number])), target


@dataclass
class FeatureSource:
    """Features, or activations within a network, of one or several views of each image."""

    views: Tensor | Sequence[Sequence[Tensor]]
    """Float32 (V, N, F) for V views, on `device` or on the CPU; or for each view N tensors of any
    floating-point type on the CPU, which may be memory-mapped. The first view is the unchanged
    image."""
    targets: Tensor
    batch_size: int
    device: torch.device = CPU

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.views[0])

    def batches(
        self, order: Tensor, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float32 features (n, …): see `Source`.

        With a generator, each sample is a random view of its image.
        """
        chosen = torch.zeros(len(order), dtype=torch.int64)
        if generator is not None and len(self.views) > 1:
            chosen = torch.randint(len(self.views), (len(order),), generator=generator)
        for some, views in zip(
            order.split(self.batch_size), chosen.split(self.batch_size), strict=True
        ):
            yield self._samples(some, views), self.targets[some].to(self.device)

    def _samples(self, indices: Tensor, views: Tensor) -> Tensor:
        if isinstance(self.views, Tensor):
            rows = views * len(self) + indices
            return _take(self.views.flatten(0, 1), rows.to(self.views.device), self.device)
        pairs = zip(views.tolist(), indices.tolist(), strict=True)
        taken = torch.stack([self.views[view][index] for view, index in pairs])
        return taken.to(self.device).float()


def _take(samples: Tensor | FileImages, indices: Tensor, device: torch.device) -> Tensor:
    """Return the samples at `indices`, on the device."""
    if isinstance(samples, FileImages):
        shape = (len(indices), *samples.shape[1:])
        taken = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type != "cpu")
        samples.take(indices.numpy(), taken.numpy())
        return taken.to(device, non_blocking=True)
    if samples.device.type != "cpu":
        return samples.index_select(0, indices)
    values, rows = samples.numpy(), indices.numpy()
    if device.type == "cpu":
        return torch.from_numpy(values[rows])  # five times as fast as index_select on bytes
    # Page-locked memory is copied asynchronously; torch keeps it until the copy is done.
    shape = (len(rows), *values.shape[1:])
    taken = torch.empty(shape, dtype=samples.dtype, pin_memory=True)
    # "clip" avoids numpy's intermediate buffer; no row is out of bounds.
    np.take(values, rows, axis=0, out=taken.numpy(), mode="clip")
    return taken.to(device, non_blocking=True)
