"""Write a model as TorchScript or ONNX, with its card inside; nothing is verified here."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from tltools.card import CARD_KEY, Card
from tltools.export.folding import fold
from tltools.graphs.onnx_file import check_onnx, example_images, write_module
from tltools.runtime.predictor import PROBABILITIES
from tltools.training.models import Classifier

SUFFIXES = {"torchscript": ".pt", "onnx": ".onnx"}


def write_torchscript(model: Classifier, card: Card, path: Path) -> None:
    """Trace `model` and save it with its card as an extra file."""
    with _deprecation_untold(), torch.inference_mode():
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


def add_probabilities(path: Path, temperature: float) -> None:
    """Give an export of either format its second output in place.

    `probabilities`, float32 (N, C), are softmax(logits / temperature); `logits` stay as they are.

    Raises:
        ArtifactError: If the file is malformed with it.
    """
    if path.suffix == ".onnx":
        model = onnx.load(path)
        (logits,) = model.graph.output
        name = "temperature"
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(temperature, np.float32), name)
        )
        model.graph.node.extend(
            [
                onnx.helper.make_node("Div", [logits.name, name], ["scaled_logits"], name),
                onnx.helper.make_node(
                    "Softmax", ["scaled_logits"], [PROBABILITIES], PROBABILITIES, axis=1
                ),
            ]
        )
        probabilities = model.graph.output.add()
        probabilities.CopyFrom(logits)
        probabilities.name = PROBABILITIES
        onnx.save(model, path)
        check_onnx(path)
        return
    with _deprecation_untold():
        module = torch.jit.script(_WithProbabilities(_load(path), temperature))
        assert isinstance(module, torch.jit.ScriptModule)
        with path.open("wb") as file:  # see _save
            torch.jit.save(module, file)


class _WithProbabilities(nn.Module):
    def __init__(self, module: nn.Module, temperature: float) -> None:
        super().__init__()
        self.module = module
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images, uint8 (N, H, W, 3), to logits and probabilities, both float32 (N, C)."""
        logits = self.module(images)
        return logits, torch.softmax(logits / self.temperature, dim=1)


def set_card(path: Path, card: Card) -> None:
    """Replace the card of an export of either format in place."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        kept = {item.key: item.value for item in model.metadata_props}
        onnx.helper.set_model_props(model, kept | {CARD_KEY: card.to_json()})
        onnx.save(model, path)
        return
    with _deprecation_untold():
        _save(_load(path), card, path)


def _load(path: Path) -> torch.jit.ScriptModule:
    module = torch.jit.load(path, map_location="cpu")
    assert isinstance(module, torch.jit.ScriptModule)
    return module


@contextmanager
def _deprecation_untold() -> Iterator[None]:
    """Keep from the terminal that PyTorch has deprecated TorchScript: a fact for the documents."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        yield
