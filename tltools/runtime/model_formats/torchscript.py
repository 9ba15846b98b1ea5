"""Read and write TorchScript files: zip archives of code and weights, which PyTorch runs.

PyTorch is imported to open or write a file, but not to read its card.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tltools.card import CARD_KEY, Card, Precision, card_from_json
from tltools.runtime.device import Device
from tltools.runtime.model_formats import Trained, Written
from tltools.runtime.model_formats.shared import not_a, refused
from tltools.runtime.model_formats.shared_torch import (
    MAX_UNPACKED_BYTES,
    TorchPredictor,
    card_text,
    members_as_written,
    open_archive,
    unpacked_bytes,
    with_outputs,
)

if TYPE_CHECKING:
    import torch

    from tltools.distance import Distance


def open_export(
    path: Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    tf32: bool = False,
    gpu: int | None = None,
    nhwc: bool = False,  # noqa: ARG001 - for ONNX only
) -> TorchPredictor:
    """Open `path`; see `Reader`."""
    return TorchPredictor(
        path, read_card(path), _load, device=device, threads=threads, tf32=tf32, gpu=gpu
    )


is_as_written = partial(members_as_written, "TorchScript")
"""Implements `Reader.is_as_written`."""


def _load(path: Path, device: "torch.device") -> Callable[["torch.Tensor"], Any]:
    import torch

    with _deprecation_untold():
        try:
            module = torch.jit.load(str(path), map_location=device)
        except RuntimeError as error:
            raise not_a(path, "TorchScript", error) from error
    return module.eval()


def read_card(path: Path) -> Card:
    """Read the card from the archive without touching its code. See `Reader`."""
    with open_archive(path, "TorchScript") as archive:
        members = archive.infolist()
        if not any("/code/" in member.filename for member in members):
            raise not_a(path, "TorchScript", "it has no code")
        if unpacked_bytes(archive) > MAX_UNPACKED_BYTES:
            raise refused(path, f"its code unpacks to over {MAX_UNPACKED_BYTES:,} bytes")
        text = card_text(archive, path)
    return card_from_json(text, where=str(path))


# -------------------------------------------------------------------------------- writing


def write(
    trained: Trained, precision: Precision, path: Path, check: Callable[[Path], object]
) -> Written:
    """Trace the model and save it with its card as an extra file; see `Writer`."""
    import torch

    module, example = trained.module(precision, features=True), trained.example(precision)
    with _deprecation_untold(), torch.inference_mode():
        _save(torch.jit.trace(module, example, check_trace=False), path, trained.card)
    check(path)
    return Written()


def seal(path: Path, card: Card, distance: "Distance | None") -> None:
    """Wrap the saved module in one that gives all outputs; see `Writer`."""
    import torch

    with _deprecation_untold():
        module = torch.jit.load(path, map_location="cpu")
        _save(torch.jit.script(with_outputs(module, card.temperature, distance)), path, card)


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
