"""What PyTorch's formats share: archives with a card in them, and running a module.

PyTorch is imported only to run one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tltools.card import CARD_KEY, MAX_CARD_BYTES, Card
from tltools.errors import ArtifactError
from tltools.runtime.device import Device, allow_tf32, default_threads, torch_device
from tltools.runtime.model_formats.shared import (
    ExportMemory,
    check_images,
    check_is_file,
    check_logits,
    failed_run,
    no_card,
    no_probabilities,
    not_a,
    refused,
)

if TYPE_CHECKING:
    from zipfile import ZipFile

    import torch

    from tltools.runtime.predictor import Layout

MAX_UNPACKED_BYTES = 64 * 2**20
"""Most bytes a file may unpack to; torch compresses only the code, a few kilobytes."""

Load = Callable[[Path, "torch.device"], Callable[["torch.Tensor"], Any]]
"""Opens the module in a file on a device.

It maps images, uint8 (N, H, W, 3), to logits, float32 (N, C), or to a tuple of them and
probabilities, (N, C).
"""


@contextmanager
def open_archive(path: Path, what: str) -> "Iterator[ZipFile]":
    """Open a file of the format called `what`, which is a zip archive, to read its members.

    Raises:
        ArtifactError: If it cannot be read, or is found damaged inside the block.
    """
    import zipfile  # here, because importing it takes 5 % of the start-up time with ONNX
    import zlib

    check_is_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    try:
        with file, zipfile.ZipFile(file) as archive:
            yield archive
    except (
        zipfile.BadZipFile, zlib.error, OSError, ValueError, LookupError, EOFError, RuntimeError
    ) as error:  # fmt: skip
        raise not_a(path, what, error) from error


def members_as_written(what: str, path: Path) -> bool:
    """Return whether all members of a file of the format called `what` match their checksums.

    PyTorch does not compare them.
    """
    with open_archive(path, what) as archive:
        if unpacked_bytes(archive) > MAX_UNPACKED_BYTES:
            return True  # left to `read_card`, which rejects it unread
        return archive.testzip() is None


def unpacked_bytes(archive: "ZipFile") -> int:
    """Return how many bytes the compressed members claim to have."""
    return sum(one.file_size for one in archive.infolist() if one.compress_type)  # 0: stored


def card_text(archive: "ZipFile", path: Path) -> bytes:
    """Return the card in an archive, which is one of its extra files.

    Raises:
        ArtifactError: If it has none, two, or one that is too long.
    """
    cards = [one for one in archive.infolist() if one.filename.endswith(f"/extra/{CARD_KEY}")]
    if not cards:
        raise no_card(path)
    if len(cards) > 1 or cards[0].file_size > MAX_CARD_BYTES:
        raise refused(path, f"it has two cards, or one of over {MAX_CARD_BYTES:,} bytes")
    return archive.read(cards[0])


class TorchPredictor(ExportMemory):
    """An export in PyTorch."""

    def __init__(
        self,
        path: Path,
        card: Card,
        load: Load,
        *,
        device: Device = "auto",
        threads: int | None = None,
        tf32: bool = False,
        gpu: int | None = None,
    ) -> None:
        """Open `path`; the arguments and errors are those of `tltools.runtime.load_predictor`.

        PyTorch's number of threads and its TF32 switch apply to the whole process.
        """
        self.card = card
        self.choice = torch_device(device, gpu)
        self.device: str = self.choice.device
        self.provider = "torch"
        self.layout: Layout = "nchw"
        self.tf32 = tf32
        self.placement: dict[str, int] = {}
        self.threads = threads or default_threads()
        import torch

        self._torch = torch
        self._device = torch.device(self.choice.name)
        torch.set_num_threads(self.threads)
        allow_tf32(tf32)
        self._module = load(path, self._device)
        self._path = path

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C)."""
        return self._run(images, 0)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the graph's own probabilities, float32 (N, C), for images, uint8 (N, H, W, 3).

        Raises:
            ArtifactError: If the graph has no such output, as in older exports.
        """
        return self._run(images, 1)

    def _run(self, images: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        check_images(images, self.card.preprocessing.size)
        torch = self._torch
        # "W": torch warns about read-only arrays; C order saves a copy.
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        try:
            with torch.inference_mode():
                outputs = self._module(batch.to(self._device))
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                if index >= len(outputs):
                    raise no_probabilities(self._path)
                array = outputs[index].cpu().numpy()  # waits for the device
        except RuntimeError as error:
            raise failed_run(len(images), error) from error
        return check_logits(array, len(images), self.card, self._path)


def with_probabilities(module: "torch.nn.Module", temperature: float) -> "torch.nn.Module":
    """Wrap a module that gives logits, (N, C), in one that gives (logits, probabilities)."""
    import torch

    class WithProbabilities(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, temperature: float) -> None:
            super().__init__()
            self.module = module
            self.temperature = temperature

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.module(images)
            return logits, torch.softmax(logits / self.temperature, dim=1)

    return WithProbabilities(module, temperature)
