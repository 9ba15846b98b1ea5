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
from tltools.distance import SMALLEST_LENGTH
from tltools.errors import ArtifactError, cause_of
from tltools.runtime.device import Device, allow_tf32, default_threads, torch_device
from tltools.runtime.model_formats.shared import (
    ExportMemory,
    check_distances,
    check_images,
    check_is_file,
    check_logits,
    failed_run,
    no_card,
    no_output,
    not_a,
    refused,
)
from tltools.runtime.predictor import DISTANCE, OUTPUT, PROBABILITIES

if TYPE_CHECKING:
    from zipfile import ZipFile

    import torch

    from tltools.distance import Distance
    from tltools.runtime.predictor import Layout

OUTPUTS = (OUTPUT, PROBABILITIES, DISTANCE)
"""What a sealed module returns; older exports have fewer."""

MAX_UNPACKED_BYTES = 64 * 2**20
"""Most bytes a file may unpack to; torch compresses only the code, a few kilobytes."""

Load = Callable[[Path, "torch.device"], Callable[["torch.Tensor"], Any]]
"""Opens the module in a file on a device.

It maps images, uint8 (N, H, W, 3), to logits, float32 (N, C), or to a tuple of them and further
outputs: `OUTPUTS` in a complete file, and features, (N, F), in one that is not sealed yet.
"""


@contextmanager
def open_archive(path: Path, what: str) -> "Iterator[ZipFile]":
    """Open a file of the format called `what`, which is a zip archive, to read its members.

    Raises:
        ArtifactError: If it cannot be read, or is found damaged inside the block.
    """
    import zipfile  # here, because importing it takes 5% of the start-up time with ONNX
    import zlib

    check_is_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {cause_of(error)}") from error
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
        if not self.gives_distances:
            return self._checked_logits(self._run(images, OUTPUT)[0], len(images))
        logits, distances = self._run(images, OUTPUT, DISTANCE)
        distances = check_distances(distances, len(images), self._path)
        return np.column_stack((self._checked_logits(logits, len(images)), distances))

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the graph's own probabilities, float32 (N, C), for images, uint8 (N, H, W, 3).

        Raises:
            ArtifactError: If the graph has no such output, as in older exports.
        """
        return self._checked_logits(self._run(images, PROBABILITIES)[0], len(images))

    def distances(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the distances from the training images, float32 (N,), of images.

        Raises:
            ArtifactError: If the graph has no such output, as in older exports.
        """
        return check_distances(self._run(images, DISTANCE)[0], len(images), self._path)

    def _checked_logits(self, values: NDArray[np.float32], num_images: int) -> NDArray[np.float32]:
        return check_logits(values, num_images, self.card, self._path)

    def _run(self, images: NDArray[np.uint8], *names: str) -> list[NDArray[np.float32]]:
        check_images(images, self.card.preprocessing.size)
        torch = self._torch
        # "W": torch warns about read-only arrays; C order saves a copy.
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        try:
            with torch.inference_mode():
                outputs = self._module(batch.to(self._device))
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                indices = [OUTPUTS.index(name) for name in names]
                if max(indices) >= len(outputs):
                    raise no_output(self._path, names[-1])
                return [outputs[index].cpu().numpy() for index in indices]  # waits for the device
        except RuntimeError as error:
            raise failed_run(len(images), error) from error


def with_outputs(
    module: "torch.nn.Module", temperature: float, distance: "Distance | None"
) -> "torch.nn.Module":
    """Wrap a module that gives (logits, features) in one that gives all outputs of an export.

    Args:
        module: Gives logits, (N, C), and features, (N, F).
        temperature: Divides the logits before softmax.
        distance: None leaves out the output `distance`.
    """
    import torch

    class WithProbabilities(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, temperature: float) -> None:
            super().__init__()
            self.module = module
            self.temperature = temperature

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, _ = self.module(images)
            return logits, torch.softmax(logits / self.temperature, dim=1)

    class WithDistance(torch.nn.Module):
        def __init__(
            self, module: torch.nn.Module, temperature: float, distance: torch.nn.Module
        ) -> None:
            super().__init__()
            self.module = module
            self.temperature = temperature
            self.distance = distance

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits, features = self.module(images)
            probabilities = torch.softmax(logits / self.temperature, dim=1)
            return logits, probabilities, self.distance(features)

    if distance is None:
        return WithProbabilities(module, temperature)
    return WithDistance(module, temperature, _distance_module(distance))


def _distance_module(distance: "Distance") -> "torch.nn.Module":
    """Return a module that maps features, (N, F), to distances, float32 (N, 1), in fp32."""
    import torch

    class DistanceModule(torch.nn.Module):
        mean: torch.Tensor
        directions: torch.Tensor
        precisions: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.smallest = SMALLEST_LENGTH
            for name, value in vars(distance).items():
                self.register_buffer(name, torch.from_numpy(value.copy()))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            maps = features.float().reshape(features.shape[0], self.mean.shape[0], -1)
            values = maps.mean(dim=2)
            length = torch.sqrt((values * values).sum(dim=1, keepdim=True)) + self.smallest
            centered = values / length - self.mean
            parts = centered @ self.directions
            rest = centered - parts @ self.directions.t()
            own = (parts * parts) @ self.precisions[:-1]
            squares = own + (rest * rest).sum(dim=1) * self.precisions[-1]
            return torch.sqrt(squares).unsqueeze(1)

    return DistanceModule()
