"""Random flips, crops and color changes: drawn on the CPU, applied to batches on any device.

A frozen part of a network sees a few fixed views of each image instead, since its output is
computed once: see `View`.

The distribution is that of torchvision's `RandomHorizontalFlip()`, `RandomResizedCrop(size,
scale=(0.6, 1.0))` and `ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)`, in this order.
Every image gets its own random numbers. torchvision rounds to bytes after each operation; here the
result is rounded once.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tltools.backbones.backbone import Augment

AREA = (0.6, 1.0)
"""Smallest and largest area of a crop, as a fraction of the image's area."""
ASPECT_RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width of a crop divided by its height; uniform on a log scale."""
FACTOR = (0.8, 1.2)
"""Range of the brightness, contrast and saturation factors."""
LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the grayscale image, as in torchvision."""
_TRIES = 10
"""Crops drawn per image; if none of them fits, the image is not cropped."""
_CPU_CHUNK = 8
"""Images per step on the CPU: a batch of 128 in float would need several copies of 80 MB."""


NUM_VIEWS: Mapping[Augment, int] = {"none": 1, "flip": 2, "crop": 4, "color": 4}
"""Fixed views of an image, by augmentation: unchanged, mirrored, and random crops."""


@dataclass(frozen=True)
class View:
    """A fixed view of each image, which depends on its pixels only and not on its neighbors."""

    number: int
    """0 leaves the images unchanged, 1 mirrors them, others are random."""
    augment: Augment

    @property
    def name(self) -> str:
        """Name that tells different views apart; empty for the unchanged image."""
        if self.number < 2:
            return ("", "mirrored")[self.number]
        return f"{self.augment} {self.number}"

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change images, uint8 (N, S, S, 3), as far as the view does."""
        if self.number == 0:
            return images
        if self.number == 1:
            return np.ascontiguousarray(images[:, :, ::-1])
        changes = torch.cat([self._changes(image) for image in images])
        return apply_changes(torch.from_numpy(images), changes).numpy()

    def _changes(self, image: NDArray[np.uint8]) -> Tensor:
        seed = zlib.crc32(np.ascontiguousarray(image).data, self.number)
        generator = torch.Generator().manual_seed(seed)
        return draw_changes(1, len(image), self.augment, generator)


UNCHANGED = View(0, "none")


def draw_changes(
    num_images: int, size: int, augment: Augment, generator: torch.Generator
) -> Tensor:
    """Draw the random changes of each image.

    Args:
        num_images: N.
        size: Height and width of the images in pixels.
        augment: Kinds of changes.
        generator: A CPU generator, so that every device applies the same changes.

    Returns:
        Float32 (N, 11), on the CPU: 1 for a flip; left, top, width and height of the crop in
        pixels, in the flipped image; factors of brightness, contrast and saturation; and the
        order of these three operations, by their numbers from 0.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        numbers = torch.rand((num_images, *shape), generator=generator, dtype=torch.float64)
        return low + (high - low) * numbers

    flip = uniform(0, 1) < 0.5
    areas = size**2 * uniform(*AREA, _TRIES)
    ratios = uniform(math.log(ASPECT_RATIO[0]), math.log(ASPECT_RATIO[1]), _TRIES).exp()
    widths, heights = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
    fits = (widths <= size) & (heights <= size)
    first = fits.int().argmax(dim=1, keepdim=True)
    width, height = (
        torch.where(fits.any(dim=1), lengths.gather(1, first).squeeze(1), size)
        for lengths in (widths, heights)
    )
    left = (uniform(0, 1) * (size - width + 1)).floor()
    top = (uniform(0, 1) * (size - height + 1)).floor()
    where = torch.stack([flip.double(), left, top, width, height], dim=1)
    order = uniform(0, 1, 3).argsort(dim=1)
    factors = uniform(*FACTOR, 3)
    if augment != "color":
        factors.fill_(1)
    if augment == "flip":
        where[:, 1:3], where[:, 3:] = 0, size
    return torch.cat([where, factors, order.double()], dim=1).float()


def apply_changes(images: Tensor, changes: Tensor) -> Tensor:
    """Flip, crop and recolor each image.

    Args:
        images: Uint8 (N, S, S, 3), RGB.
        changes: Float32 (N, 11) of `draw_changes`, on the images' device.

    Returns:
        Uint8 (N, S, S, 3), on the same device.
    """
    recolor = images.device.type != "cpu" or bool((changes[:, 5:8] != 1).any())  # never wait
    chunk = _CPU_CHUNK if images.device.type == "cpu" else len(images)
    changed = torch.empty_like(images)
    for out, some, how in zip(
        changed.split(chunk), images.split(chunk), changes.split(chunk), strict=True
    ):
        pixels = _cropped(some.permute(0, 3, 1, 2).float(), how[:, :5])
        if recolor:
            pixels = _recolored(pixels, how[:, 5:8], how[:, 8:])
        out.copy_(pixels.round_().permute(0, 2, 3, 1))
    return changed


def _cropped(pixels: Tensor, where: Tensor) -> Tensor:
    """Flip images (N, 3, S, S), crop each one, and resize the crop to S x S, bilinearly.

    A crop is never larger than its image, so no antialiasing is needed.
    """
    size = pixels.shape[-1]
    flip, left, top, width, height = where[:, :, None].unbind(1)  # (N, 1) each
    centers = torch.arange(size, device=pixels.device) + 0.5

    def sources(start: Tensor, length: Tensor) -> Tensor:
        """Return the source position of each pixel along an axis, (N, S), within the crop."""
        inside = (centers * (length / size) - 0.5).clamp(min=0)
        return torch.minimum(inside, length - 1) + start

    x, y = sources(left, width), sources(top, height)
    x = torch.where(flip > 0, size - 1 - x, x)
    x, y = ((2 * position + 1) / size - 1 for position in (x, y))  # grid_sample's scale
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _recolored(pixels: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Blend images (N, 3, S, S), 0 to 255, with black, their mean gray and their grayscale."""
    for operation in order.long().split(1, dim=1):  # (N, 1): each image has its own order
        factor = factors.gather(1, operation)[:, :, None, None]
        kind = operation[:, :, None, None]
        red, green, blue = pixels.split(1, dim=1)
        gray = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
        mean = gray.mean(dim=(2, 3), keepdim=True)
        # 0 brightness, 1 contrast, 2 saturation
        other = torch.where(kind == 2, gray, torch.where(kind == 1, mean, 0))
        pixels = torch.lerp(other, pixels, factor).clamp_(0, 255)
    return pixels
