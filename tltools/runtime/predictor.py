"""The interface of an opened export: images in, logits out, on one device."""

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tltools.card import Card
from tltools.runtime.device import DeviceChoice
from tltools.runtime.driver import PageLock

Layout = Literal["nchw", "nhwc"]
"""Memory layout of a model's convolutions; its input is always (N, H, W, 3)."""
INPUT = "images"
OUTPUT = "logits"
PROBABILITIES = "probabilities"
"""The second output, softmax(logits / temperature), for programs that run a file directly."""
DISTANCE = "distance"
"""The third output, float32 (N, 1): how far the images are from the training images; see
`tltools.distance`. That of older exports is (N,), and still older ones have none."""
REMEDY = "recreate it with tltools export"


class Predictor(Protocol):
    """An opened export: uint8 images in, logits out, on one device."""

    card: Card
    choice: DeviceChoice
    device: str
    """`choice.device`."""
    provider: str
    """The onnxruntime execution provider that runs the model, or `torch`."""
    placement: dict[str, int]
    """Number of nodes by execution provider, as recorded by onnxruntime; empty in PyTorch."""
    threads: int
    """Cores used by one call on the CPU."""
    gives_distances: bool
    """Whether a call returns the distances, too."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C), and wait for them.

        If it `gives_distances`, they are (N, C + 1), and the last column has the distances.

        Safe to call from several threads at once.

        Raises:
            ValueError: If the array's dtype or shape does not match the card.
            DeviceError: If the device fails, for example because it is out of memory.
        """
        ...

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, uint8 (N, H, W, 3), to fill and pass to any number of calls."""
        ...


class CardBatches:
    """Allocates the batches of a predictor in ordinary memory, in the size that its card gives."""

    card: Card
    gives_distances = False

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, uint8 (N, H, W, 3)."""
        return np.empty(self.card.preprocessing.shape(num_images), dtype=np.uint8)


class ExportPredictor(Predictor, Protocol):
    """An opened export, as `load_predictor` returns it."""

    layout: Layout
    tf32: bool
    """Whether fp32 products are rounded to TF32."""

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the graph's own probabilities, (N, C), of images, (N, H, W, 3)."""
        ...

    def distances(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the distances from the training images, (N,), of images, (N, H, W, 3)."""
        ...

    def lock_pages(self, memory: NDArray[Any]) -> PageLock | None:
        """Page-lock memory, so that a GPU reads images from it directly; see `PageLock`.

        Every call with an array in that memory benefits. Lock memory once, however many
        predictors read it: a lock is valid for all GPUs.

        Args:
            memory: A contiguous array, such as a whole shared mapping.

        Returns:
            The lock, to release before the memory is freed; None on the CPU, which needs none.

        Raises:
            DeviceError: If the driver refuses; the predictor also works without the lock.
        """
        ...
