"""Write a PyTorch module as one ONNX file, and check its format; parity is verified elsewhere."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from tltools.errors import ArtifactError

OPSET = 20
"""Opset that torch's exporter writes without conversion; onnxruntime reads it since 1.17."""
IR_VERSION = 10
"""IR version that torch writes; onnxruntime reads it since 1.18. onnx's helpers would raise it."""


def example_images(size: int) -> Tensor:
    """Return two images, uint8 (2, size, size, 3): a batch of one would become a constant."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)


def write_module(
    module: nn.Module, path: Path, *, size: int, output: str, metadata: Mapping[str, str]
) -> None:
    """Export a module to a single ONNX file with a symbolic batch axis.

    Args:
        module: Maps images, uint8 (N, size, size, 3), to one tensor, (N, F).
        path: Path of the file.
        size: Height and width of an image in pixels.
        output: The output's name; the input is `images`.
        metadata: Entries of the file's `metadata_props`.

    Raises:
        ArtifactError: If the exporter froze the batch axis.
    """
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            (example_images(size),),
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # the dynamo exporter always returns a program
    program.model.ir_version = IR_VERSION
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)
    check_onnx(path)


def check_onnx(path: Path) -> None:
    """Run onnx's checker with full shape inference, and check that the batch axis is symbolic.

    Raises:
        ArtifactError: If the file fails the check, or its batch axis is a number (a known problem
            of torch's exporter: pytorch issue 157621).
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"the exporter wrote an invalid ONNX file: {error}") from error
    graph = onnx.load(path, load_external_data=False).graph
    for value in (*graph.input, *graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ArtifactError(f"the exporter froze the batch axis of {value.name!r}")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's messages, which are meant for its developers."""
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
