"""What readers share: checks of what goes in and comes out, and the errors that they raise."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tltools.card import Card
from tltools.errors import ArtifactError, DeviceError
from tltools.runtime.device import DeviceChoice
from tltools.runtime.driver import PageLock
from tltools.runtime.predictor import PROBABILITIES, REMEDY


def check_is_file(path: Path) -> None:
    """Raise ArtifactError unless there is a file at the path."""
    if not path.is_file():
        what = "is a folder and no export" if path.is_dir() else "does not exist"
        raise ArtifactError(f"{path} {what}; tltools export makes exports, --model names one")


def lock_pages(memory: NDArray[Any], choice: DeviceChoice) -> PageLock | None:
    """Page-lock memory for the GPU of a choice; None on the CPU. See `ExportPredictor`."""
    return None if choice.gpu is None else PageLock(memory, choice.gpu)


def check_logits(
    logits: NDArray[np.float32], num_images: int, card: Card, path: Path
) -> NDArray[np.float32]:
    """Return logits if they are float32, (num_images, C), for the C classes of the card.

    Raises:
        ArtifactError: If they are not, whatever the file says of itself.
    """
    wanted = (num_images, len(card.classes))
    if logits.dtype != np.float32 or logits.shape != wanted:
        raise ArtifactError(
            f"{path} gives {logits.dtype} {logits.shape}, by its card it should be "
            f"float32 {wanted}; {REMEDY}"
        )
    return logits


def check_images(images: NDArray[np.uint8], size: int) -> None:
    """Raise ValueError unless images are uint8, (N, size, size, 3), and at least one."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images must be uint8 (N, {size}, {size}, 3), got {images.dtype} {images.shape}"
        )
    if len(images) == 0:
        raise ValueError("images must hold at least one image")


def no_probabilities(path: Path) -> ArtifactError:
    """Say that a file lacks the second output."""
    return ArtifactError(f"{path} has no output {PROBABILITIES!r}; {REMEDY}")


def no_card(path: Path) -> ArtifactError:
    """Say that a file lacks a card."""
    return ArtifactError(f"{path} has no tltools card, so it is not an export; {REMEDY}")


def not_a(path: Path, what: str, error: object) -> ArtifactError:
    """Say that a file is not of the format that sentences call `what`."""
    reason = str(error).strip().partition("\n")[0]
    article = "an" if what == "ONNX" else "a"
    return ArtifactError(f"{path} is not {article} {what} file ({reason}); {REMEDY}")


def refused(path: Path, reason: object) -> ArtifactError:
    """Say that a file may be of its format, but is none that tltools writes."""
    return ArtifactError(f"{path} is refused: {reason}; {REMEDY}")


def failed_run(num_images: int, error: Exception) -> DeviceError:
    """Say that a forward pass failed, and on how many images."""
    reason = str(error).strip().partition("\n")[0]
    return DeviceError(
        f"the model failed on a batch of {num_images}: {reason}; try a smaller --batch-size"
    )
