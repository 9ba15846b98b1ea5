"""Write a PyTorch module as one ONNX file, and check its format; parity is verified elsewhere."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from tltools.errors import ArtifactError, first_line
from tltools.runtime.model_formats import OPSET

_EXPORTED = (18, OPSET)
"""Opsets that torch's exporter writes itself; it converts to others, or silently does not."""
IR_VERSION = 10
"""IR version that torch writes; onnxruntime reads it since 1.18. onnx's helpers would raise it."""


def example_images(size: int) -> Tensor:
    """Return two images, uint8 (2, size, size, 3): a batch of one would become a constant."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)


def write_module(
    module: nn.Module,
    path: Path,
    *,
    size: int,
    output: str,
    metadata: Mapping[str, str],
    opset: int = OPSET,
) -> None:
    """Export a module to a single ONNX file with a symbolic batch axis.

    Args:
        module: Maps images, uint8 (N, size, size, 3), to one tensor, (N, F).
        path: Path of the file.
        size: Height and width of an image in pixels.
        output: The output's name; the input is `images`.
        metadata: Entries of the file's `metadata_props`.
        opset: Opset of the file's operators, one of `OPSETS`.

    Raises:
        ArtifactError: If the exporter froze the batch axis, or the model needs a later opset.
    """
    # onnx converts between the two opsets that torch's exporter writes, `_lower` to the one before.
    written = _EXPORTED[0] if opset < _EXPORTED[1] else _EXPORTED[1]
    with _quiet_exporter():
        model = export_module(module, size=size, output=output, opset=written)
    if opset != written:
        model = _converted(model, opset)
    model.ir_version = IR_VERSION
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    del model
    check_onnx(path)


def export_module(module: nn.Module, *, size: int, output: str, opset: int) -> onnx.ModelProto:
    """Return what torch's exporter makes of a module; see `write_module`."""
    with torch.no_grad(), _no_operation_in_place(module):
        program = torch.onnx.export(
            module,
            (example_images(size),),
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # the dynamo exporter always returns a program
    return program.model_proto


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert what the exporter wrote to a later opset, or to the one before its earliest.

    Raises:
        ArtifactError: If an operator has no equivalent in the opset.
    """
    (written,) = model.opset_import
    try:
        if opset > written.version:
            return onnx.version_converter.convert_version(model, opset)
        _lower(model)
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"the model cannot be written in opset {opset}: {first_line(error)}"
        ) from error
    return model


def _lower(model: onnx.ModelProto) -> None:
    """Convert a file from opset 18 to 17 in place; onnx's converter lacks most of these steps.

    Raises:
        ValueError: If an operator changed between the two in another way.
    """
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.domain or onnx.defs.get_schema(node.op_type, 18).since_version < 18:
            continue
        attributes = {one.name: one for one in node.attribute}
        if node.op_type == "Split":
            gone = "num_outputs"  # the sizes are given, or equal
        elif node.op_type.startswith("Reduce") and node.input[-1] in constants:
            axes = onnx.numpy_helper.to_array(constants[node.input.pop()])
            node.attribute.append(onnx.helper.make_attribute("axes", axes.tolist()))
            gone = "noop_with_empty_axes"
        else:
            raise ValueError(f"{node.op_type} needs opset 18")
        if gone in attributes:
            node.attribute.remove(attributes[gone])
    used = {name for node in model.graph.node for name in node.input}
    for name, constant in constants.items():
        if name not in used:
            model.graph.initializer.remove(constant)
    model.opset_import[0].version = 17


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
def _no_operation_in_place(module: nn.Module) -> Iterator[None]:
    """Let activations return new tensors: the exporter takes far longer to rewrite the others.

    The operators are the same. With gradients off as well, torchvision's networks are exported up
    to 1.5 times as fast (MobileNetV3; ResNet-50 1.15, VGG16 no faster).
    """
    changed: list[Any] = [one for one in module.modules() if getattr(one, "inplace", None) is True]
    try:
        for one in changed:
            one.inplace = False
        yield
    finally:
        for one in changed:
            one.inplace = True


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
