"""Write a model as TorchScript or ONNX, with its card inside; nothing is verified here."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor

from tltools.card import CARD_KEY, Card
from tltools.errors import ArtifactError
from tltools.export.folding import fold
from tltools.training.models import Classifier

OPSET = 20
"""What torch's exporter writes without conversion, and onnxruntime has read since 1.17."""
IR_VERSION = 10
"""What torch writes and onnxruntime has read since 1.18; onnx's helpers would raise it."""
SUFFIXES = {"torchscript": ".pt", "onnx": ".onnx"}


def write_torchscript(model: Classifier, card: Card, path: Path) -> None:
    """Trace `model` and save it with its card as an extra file.

    PyTorch has deprecated TorchScript in favour of torch.export and says so in a warning, which
    is a fact for the documents and kept from the terminal here.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        module = torch.jit.trace(fold(model), _example(card), check_trace=False)
        torch.jit.save(module, path, _extra_files={CARD_KEY: card.to_json()})


def write_onnx(model: Classifier, card: Card, path: Path) -> None:
    """Export `model` to a single ONNX file with a symbolic batch axis.

    Raises:
        ArtifactError: If the exporter froze the batch axis.
    """
    with _quiet_exporter():
        program = torch.onnx.export(
            fold(model),
            (_example(card),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # the dynamo exporter always returns a program
    program.model.ir_version = IR_VERSION
    program.model.metadata_props[CARD_KEY] = card.to_json()
    program.save(str(path), external_data=False)
    check_onnx(path)


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
        torch.jit.save(module, path, _extra_files={CARD_KEY: card.to_json()})


def check_onnx(path: Path) -> None:
    """Run onnx's own checker with full shape inference, and look at the batch axis.

    Raises:
        ArtifactError: If the file fails the check, or its batch axis is a number (seen with
            torch's exporter: pytorch issue 157621).
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"the exporter wrote an invalid ONNX file: {error}") from error
    graph = onnx.load(path, load_external_data=False).graph
    for value in (*graph.input, *graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ArtifactError(f"the exporter froze the batch axis of {value.name!r}")


def _example(card: Card) -> Tensor:
    """Return a batch of two: an example batch of one would be taken for a constant."""
    size = card.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's advice to developers of exporters from the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=FutureWarning, module="torch|onnxscript|copyreg"
            )
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning, module="torch|onnxscript|copyreg"
            )
            yield
    finally:
        logger.setLevel(level)
