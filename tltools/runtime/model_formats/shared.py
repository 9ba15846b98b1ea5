"""Checks of inputs and outputs, and errors, that all readers share."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tltools.card import Card
from tltools.errors import ArtifactError, DeviceError, cause_of, first_line
from tltools.regular import check_regular
from tltools.runtime.device import DeviceChoice
from tltools.runtime.driver import PageLock
from tltools.runtime.predictor import REMEDY, CardBatches
from tltools.wording import similar_paths

MAX_EXPORT_BYTES = 2**34
"""Largest export: an ONNX file has at most 2 GB, and other formats hold no larger network."""


def check_is_file(path: Path) -> None:
    """Raise ArtifactError unless the path is a regular file that is not too large."""
    try:
        check_regular(path, max_bytes=MAX_EXPORT_BYTES)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            what = f"does not exist{similar_paths(path)}"
        elif path.is_dir():
            what = "is a folder, not an export"
        else:
            what = f"cannot be read: {cause_of(error)}"
        raise ArtifactError(
            f"{path} {what}; name an export, or create one with tltools export"
        ) from error


class ExportMemory(CardBatches):
    """The memory of an opened export's images, the same in every format."""

    choice: DeviceChoice

    def lock_pages(self, memory: NDArray[Any]) -> PageLock | None:
        """Page-lock memory for the chosen GPU; None on the CPU. See `ExportPredictor`."""
        return None if self.choice.gpu is None else PageLock(memory, self.choice.gpu)


def check_logits(
    logits: NDArray[np.float32], num_images: int, card: Card, path: Path
) -> NDArray[np.float32]:
    """Return logits if they are float32, (num_images, C), for the C classes of the card.

    Raises:
        ArtifactError: If they are not, whatever the file claims.
    """
    wanted = (num_images, len(card.classes))
    if logits.dtype != np.float32 or logits.shape != wanted:
        raise ArtifactError(
            f"{path} gives {logits.dtype} {logits.shape}, but according to its card it should be "
            f"float32 {wanted}; {REMEDY}"
        )
    return logits


def check_distances(
    distances: NDArray[np.float32], num_images: int, path: Path
) -> NDArray[np.float32]:
    """Return the output `distance` as float32, (num_images,), if it is float32, (num_images, 1).

    That of older exports is (num_images,).

    Raises:
        ArtifactError: If it is neither.
    """
    wanted = (num_images, 1)
    if distances.dtype != np.float32 or distances.shape not in (wanted, wanted[:1]):
        raise ArtifactError(
            f"{path} gives distances {distances.dtype} {distances.shape}, but they should be "
            f"float32 {wanted}; {REMEDY}"
        )
    return distances.reshape(num_images)


def check_images(images: NDArray[np.uint8], size: int) -> None:
    """Raise ValueError unless images are uint8, (N, size, size, 3), with N at least 1."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images must be uint8 (N, {size}, {size}, 3), got {images.dtype} {images.shape}"
        )
    if len(images) == 0:
        raise ValueError("images must contain at least one image")


def no_output(path: Path, name: str) -> ArtifactError:
    """Return the error for a file without the output of this name."""
    return ArtifactError(f"{path} has no output {name!r}; {REMEDY}")


def no_card(path: Path) -> ArtifactError:
    """Return the error for a file without a card."""
    return ArtifactError(f"{path} has no tltools card, so it is not an export; {REMEDY}")


def not_a(path: Path, what: str, error: object) -> ArtifactError:
    """Return the error for a file that is not in the format called `what`."""
    article = "an" if what == "ONNX" else "a"
    return ArtifactError(f"{path} is not {article} {what} file ({first_line(error)}); {REMEDY}")


def refused(path: Path, reason: object) -> ArtifactError:
    """Return the error for a file that may be valid, but was not written by tltools."""
    return ArtifactError(f"{path} is rejected: {reason}; {REMEDY}")


def failed_run(num_images: int, error: Exception) -> DeviceError:
    """Return the error for a forward pass on `num_images` images that failed."""
    # Not every command that runs a model has an option for the size.
    if num_images == 1:
        what, remedy = "one image", "free memory on the device, or copy or export the model again"
    else:
        what, remedy = (
            f"a batch of {num_images}",
            "free memory on the device, or use smaller batches",
        )
    return DeviceError(f"the model failed on {what}: {first_line(error)}; {remedy}")
