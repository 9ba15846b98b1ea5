"""Read and write TorchScript files: zip archives of code and weights, which PyTorch runs.

PyTorch is imported to open or write a file, but not to read its card.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tltools.card import CARD_KEY, MAX_CARD_BYTES, Card, Precision, card_from_json
from tltools.errors import ArtifactError
from tltools.runtime.device import Device, allow_tf32, default_threads, torch_device
from tltools.runtime.model_formats import Trained, Written
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
    from tltools.runtime.predictor import Layout

MAX_UNPACKED_BYTES = 64 * 2**20
"""Most bytes a file may unpack to; torch compresses only the code, a few kilobytes."""


class TorchScriptPredictor(ExportMemory):
    """A TorchScript export in PyTorch, which is imported only here."""

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        tf32: bool = False,
        gpu: int | None = None,
        nhwc: bool = False,  # noqa: ARG002 - for ONNX only
    ) -> None:
        """Open `path`; the arguments and errors are those of `tltools.runtime.load_predictor`.

        PyTorch's number of threads and its TF32 switch apply to the whole process.
        """
        self.card = read_card(path)
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
        with _deprecation_untold():
            try:
                module = torch.jit.load(str(path), map_location=self._device)
            except RuntimeError as error:
                raise not_a(path, "TorchScript", error) from error
        self._module = module.eval()
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


def read_card(path: Path) -> Card:
    """Read the card from the archive without touching its code. See `Reader`."""
    import zipfile  # here, because importing it takes 5 % of the start-up time with ONNX

    check_is_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    try:
        with file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if not any("/code/" in member.filename for member in members):
                raise not_a(path, "TorchScript", "it has no code")
            packed = (one.file_size for one in members if one.compress_type != zipfile.ZIP_STORED)
            if sum(packed) > MAX_UNPACKED_BYTES:
                raise refused(path, f"its code unpacks to over {MAX_UNPACKED_BYTES:,} bytes")
            cards = [one for one in members if one.filename.endswith(f"/extra/{CARD_KEY}")]
            if not cards:
                raise no_card(path)
            if len(cards) > 1 or cards[0].file_size > MAX_CARD_BYTES:
                raise refused(path, f"it has two cards, or one of over {MAX_CARD_BYTES:,} bytes")
            text = archive.read(cards[0])
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, EOFError, RuntimeError) as error:
        raise not_a(path, "TorchScript", error) from error
    return card_from_json(text, where=str(path))


open_export = TorchScriptPredictor
"""Implements `Reader.open_export`."""

# -------------------------------------------------------------------------------- writing


def write(
    trained: Trained, precision: Precision, path: Path, check: Callable[[Path], object]
) -> Written:
    """Trace the model and save it with its card as an extra file; see `Writer`."""
    import torch

    module, example = trained.module(precision), trained.example(precision)
    with _deprecation_untold(), torch.inference_mode():
        _save(torch.jit.trace(module, example, check_trace=False), path, trained.card)
    check(path)
    return Written()


def seal(path: Path, card: Card) -> None:
    """Wrap the saved module in one that also gives probabilities; see `Writer`."""
    import torch

    class WithProbabilities(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, temperature: float) -> None:
            super().__init__()
            self.module = module
            self.temperature = temperature

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.module(images)
            return logits, torch.softmax(logits / self.temperature, dim=1)

    with _deprecation_untold():
        module = torch.jit.load(path, map_location="cpu")
        _save(torch.jit.script(WithProbabilities(module, card.temperature)), path, card)


def _save(module: object, path: Path, card: Card) -> None:
    """Save TorchScript with its card.

    The file is written through memory, since torch's own file writer aborts on a full disk.
    """
    import torch

    assert isinstance(module, torch.jit.ScriptModule)  # not the graph of a function
    with path.open("wb") as file:
        torch.jit.save(module, file, _extra_files={CARD_KEY: card.to_json()})


@contextmanager
def _deprecation_untold() -> Iterator[None]:
    """Hide PyTorch's deprecation warnings about TorchScript; the documentation mentions it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        yield
