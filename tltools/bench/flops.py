"""Count the FLOPs of a model in an ONNX file: convolutions and matrix products."""

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

Shape = tuple[int, ...]
"""A symbolic axis (the batch) counts as one."""


def onnx_flops(path: Path) -> int | None:
    """Count the floating-point operations for one image; a multiply-add counts as two.

    Biases, activations, pooling, normalization and the output `distance` are not counted, as is
    customary: together they are one percent or less. An int8 model counts the same operations,
    though most are on integers.

    Args:
        path: An ONNX export whose first axis is the batch.

    Returns:
        Operations per image; None if not all shapes are known.
    """
    import onnx

    from tltools.graphs.distance_nodes import PREFIX

    model = onnx.load(path, load_external_data=False)
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
        shapes = _shapes(graph)
        nodes = [node for node in graph.node if not node.name.startswith(PREFIX)]
        return sum(_COUNTS[node.op_type](node, shapes) for node in nodes if _counted(node))
    except (KeyError, onnx.shape_inference.InferenceError):
        return None


def _counted(node: "NodeProto") -> bool:
    return node.op_type in _COUNTS


def _shapes(graph: "GraphProto") -> dict[str, Shape]:
    """Return the shape of each value that has one, including constants."""
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = tuple(axis.dim_value or 1 for axis in kind.shape.dim)
    return shapes


def _conv(node: "NodeProto", shapes: Mapping[str, Shape]) -> int:
    """Count a convolution: each output value needs the products of one filter."""
    output, weight = (
        shapes[node.output[0]],
        shapes[node.input[1]],
    )  # weight: (out, in / groups, ...)
    return 2 * prod(output) * prod(weight[1:])


def _gemm(node: "NodeProto", shapes: Mapping[str, Shape]) -> int:
    """Count a matrix product, transposed or not."""
    output, weight = shapes[node.output[0]], shapes[node.input[1]]
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return 2 * prod(output) * weight[-1 if transposed else -2]


_COUNTS: dict[str, Callable[["NodeProto", Mapping[str, Shape]], int]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _gemm,
}
