"""Write a model as TorchScript or ONNX, with its card inside; nothing is verified here."""

import copy
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
    _trace(fold(model), example_images(card.preprocessing.size), card, path)


def write_torchscript_fp16(
    model: Classifier, card: Card, path: Path, *, device: torch.device
) -> None:
    """Trace `model` in half precision, as in the ONNX file, and save it with its card.

    Args:
        model: In fp32; not changed.
        card: Its card.
        path: Where the file goes.
        device: Where the model is run once; PyTorch takes half a minute for a picture with VGG16
            on CPUs that do not compute in fp16.
    """
    example = example_images(card.preprocessing.size).to(device)
    _trace(HalfClassifier(model).eval().to(device), example, card, path)


class HalfClassifier(nn.Module):
    """A classifier in fp16; the pictures are normalised in fp32, and the logits are float32."""

    def __init__(self, model: Classifier) -> None:
        """Copy the parts."""
        super().__init__()
        self.backbone = copy.deepcopy(model.backbone).half()
        self.head = copy.deepcopy(model.head).half()
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", model.scale.clone())
        self.register_buffer("shift", model.shift.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C)."""
        pixels = images.permute(0, 3, 1, 2).float() * self.scale + self.shift
        return self.head(self.backbone(pixels.half())).float()


def _trace(module: nn.Module, example: Tensor, card: Card, path: Path) -> None:
    with _deprecation_untold(), torch.inference_mode():
        traced = torch.jit.trace(module, example, check_trace=False)
        assert isinstance(traced, torch.jit.ScriptModule)  # and not the graph of a function
        _save(traced, card, path)


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
