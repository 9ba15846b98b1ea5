"""A frozen backbone in onnxruntime: images in, features out."""

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
"""Largest length of an image's difference as a share of its right features' length.

int8 features are about 0.03 off where processors add int8 products exactly; those that saturate
are far off."""


class OnnxBackbone:
    """The backbone in onnxruntime, on the CPU's cores or on a GPU."""

    def __init__(
        self,
        model: Path | bytes,
        preprocessing: Preprocessing,
        *,
        device: Device = "cpu",
        threads: int | None = None,
    ) -> None:
        """Open a backbone's file, or its bytes; see `open_session`."""
        self._session, choice = open_session(model, device=device, threads=threads)
        self.device: str = choice.device
        self._preprocessing = preprocessing

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, (N, H, W, 3), to features, (N, F)."""
        return np.asarray(self._session.run(None, {"images": images})[0])

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3)."""
        return np.empty(self._preprocessing.shape(num_images), dtype=np.uint8)


def load_few(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode a few images, (N, H, W, 3), to compare features with."""
    return next(decode_batches(paths, preprocessing=preprocessing, batch_size=len(paths)))


def feature_error(features: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Return the largest length of a row's difference, as a share of the right row's length."""
    lengths = np.linalg.norm(right, axis=1)
    return float((np.linalg.norm(features - right, axis=1) / lengths).max())


def open_shared(
    shared: Any,
    preprocessing: Preprocessing,
    images: NDArray[np.uint8],
    right: NDArray[np.float32],
    *,
    device: Device,
    threads: int,
) -> OnnxBackbone:
    """Open a backbone on an actor, and see that its features are those of the driver's machine.

    Args:
        shared: Of the backbone's bytes in Ray's object store.
        preprocessing: The backbone's.
        images: A few images, (N, H, W, 3).
        right: Their features there, (N, F).
        device: As `open_session`.
        threads: As `open_session`.

    Raises:
        ParityError: If they are not.
    """
    model = import_module("ray").get(shared)
    backbone = OnnxBackbone(model, preprocessing, device=device, threads=threads)
    error = feature_error(backbone(images), right)
    if not error <= MAX_FEATURE_ERROR:
        raise ParityError(
            f"this machine's features are {error:.1%} off those of the command's machine, more "
            f"than {MAX_FEATURE_ERROR:.0%}; try --feature-precision fp32"
        )
    return backbone
