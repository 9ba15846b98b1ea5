"""What an opened export is to everybody: images in, logits out, on one device."""

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tltools.card import Card
from tltools.runtime.device import DeviceChoice
from tltools.runtime.driver import PageLock

Layout = Literal["nchw", "nhwc"]
"""Order of the axes that a model's convolutions compute in; its input is (N, H, W, 3) always."""
INPUT = "images"
OUTPUT = "logits"
PROBABILITIES = "probabilities"
"""The second output, softmax(logits / temperature), for those who run a file by other means."""
REMEDY = "make it again with tltools export"


class Predictor(Protocol):
    """An opened export: uint8 images in, logits out, on one device."""

    card: Card
    choice: DeviceChoice
    device: str
    """`choice.device`."""
    provider: str
    """onnxruntime's name of what runs the model, or `torch`."""
    placement: dict[str, int]
    """Number of nodes by provider, as onnxruntime recorded it; empty for TorchScript."""
    threads: int
    """Cores that one call uses on the CPU."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, (N, H, W, 3), to logits, (N, C); returns when they are ready.

        Safe to call from several threads at once.

        Raises:
            ValueError: If the array's type or shape is not what the card says.
            DeviceError: If the device fails, for lack of memory for instance.
        """
        ...

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3), to fill and pass to a call as often as one likes."""
        ...


class ExportPredictor(Predictor, Protocol):
    """An opened export, as `load_predictor` returns it."""

    layout: Layout
    tf32: bool
    """Whether fp32 products are rounded to TF32."""

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the graph's own probabilities, (N, C), of images, (N, H, W, 3)."""
        ...

    def lock_pages(self, memory: NDArray[Any]) -> PageLock | None:
        """Page-lock memory, so that a GPU reads images in it by itself; see `PageLock`.

        Any call with an array that lies in the memory profits from it. Lock memory once, however
        many predictors read it: a lock holds for all GPUs.

        Args:
            memory: Contiguous; the whole of a shared mapping, for instance.

        Returns:
            The lock, to release before the memory goes; None on the CPU, which needs none.

        Raises:
            DeviceError: If the driver refuses; the predictor works without the lock.
        """
        ...
