"""Run a frozen backbone in onnxruntime: images in, features out."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tltools.card import Preprocessing
from tltools.errors import ParityError
from tltools.runtime.device import Device, open_session
from tltools.runtime.pipeline import decode_batches

MAX_FEATURE_ERROR = 0.1
"""Largest relative error (L2 norm) of an image's features.

int8 features are about 0.03 off. On a processor that saturates, weights that use all 8 bits would
make them 0.16 off."""


class OnnxBackbone:
    """A backbone in onnxruntime, on the CPU or on a GPU."""

    def __init__(
        self,
        model: Path | bytes,
        preprocessing: Preprocessing,
        *,
        device: Device = "cpu",
        threads: int | None = None,
    ) -> None:
        """Open a backbone from a file or from bytes; see `open_session`."""
        self._session, choice = open_session(model, device=device, threads=threads)
        self.device: str = choice.device
        self._preprocessing = preprocessing

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, uint8 (N, H, W, 3), to features, float32 (N, F)."""
        return np.asarray(self._session.run(None, {"images": images})[0])

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3)."""
        return np.empty(self._preprocessing.shape(num_images), dtype=np.uint8)


def load_few(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode a few images, uint8 (N, H, W, 3), to compare features on."""
    return next(decode_batches(paths, preprocessing=preprocessing, batch_size=len(paths)))


def feature_error(features: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Return the largest relative error (L2 norm) of an image's outputs, both (N, …)."""
    rows, right_rows = features.reshape(len(features), -1), right.reshape(len(right), -1)
    lengths = np.linalg.norm(right_rows, axis=1)
    return float((np.linalg.norm(rows - right_rows, axis=1) / lengths).max())


def open_shared(
    shared: Any,
    preprocessing: Preprocessing,
    images: NDArray[np.uint8],
    right: NDArray[np.float32],
    *,
    device: Device,
    threads: int,
) -> OnnxBackbone:
    """Open a backbone in a Ray actor, and check its features against the driver machine's.

    Args:
        shared: Reference to the backbone's bytes in Ray's object store.
        preprocessing: The backbone's preprocessing.
        images: A few images, uint8 (N, H, W, 3).
        right: Their features on the driver's machine, float32 (N, F).
        device: See `open_session`.
        threads: See `open_session`.

    Raises:
        ParityError: If the features differ by more than `MAX_FEATURE_ERROR`.
    """
    model = import_module("ray").get(shared)
    backbone = OnnxBackbone(model, preprocessing, device=device, threads=threads)
    error = feature_error(backbone(images), right)
    if not error <= MAX_FEATURE_ERROR:
        raise ParityError(
            f"this machine's features are {error:.1%} off those of the machine that started the "
            f"job (at most {MAX_FEATURE_ERROR:.0%} is allowed); use `feature_precision=fp32`"
        )
    return backbone
