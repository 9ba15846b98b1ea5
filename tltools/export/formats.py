"""Write a model as TorchScript or ONNX, with its card inside; nothing is verified here."""

import warnings
from pathlib import Path

import onnx
import torch

from tltools.card import CARD_KEY, Card
from tltools.export.folding import fold
from tltools.graphs.onnx_file import example_images, write_module
from tltools.training.models import Classifier

SUFFIXES = {"torchscript": ".pt", "onnx": ".onnx"}


def write_torchscript(model: Classifier, card: Card, path: Path) -> None:
    """Trace `model` and save it with its card as an extra file.

    PyTorch has deprecated TorchScript in favour of torch.export and says so in a warning, which
    is a fact for the documents and kept from the terminal here.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        example = example_images(card.preprocessing.size)
        module = torch.jit.trace(fold(model), example, check_trace=False)
        assert isinstance(module, torch.jit.ScriptModule)  # and not the graph of a function
        _save(module, card, path)


def _save(module: torch.jit.ScriptModule, card: Card, path: Path) -> None:
    """Save TorchScript with its card.

    Through memory: torch's own writer of files ends the process when the disk is full.
    """
    with path.open("wb") as file:
        torch.jit.save(module, file, _extra_files={CARD_KEY: card.to_json()})


def write_onnx(model: Classifier, card: Card, path: Path) -> None:
    """Export `model` to a single ONNX file with a symbolic batch axis.

    Raises:
        ArtifactError: If the exporter froze the batch axis.
    """
    write_module(
        fold(model),
        path,
        size=card.preprocessing.size,
        output="logits",
        metadata={CARD_KEY: card.to_json()},
    )


def set_card(path: Path, card: Card) -> None:
    """Replace the card of an export of either format in place."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        kept = {item.key: item.value for item in model.metadata_props}
        onnx.helper.set_model_props(model, kept | {CARD_KEY: card.to_json()})
        onnx.save(model, path)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        module = torch.jit.load(path, map_location="cpu")
        _save(module, card, path)
