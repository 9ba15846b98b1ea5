"""Append the nodes of the output `distance` to an ONNX graph, behind the features of its head.

They are appended to the finished graph, so that converting it to int8 or fp16 leaves them alone,
and are the same in every opset.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from tltools.distance import SMALLEST_LENGTH, Distance
from tltools.errors import ArtifactError
from tltools.runtime.predictor import DISTANCE

PREFIX = f"{DISTANCE}/"
"""Prefix of the names of the nodes, their tensors and constants."""
_BEHIND_HEAD = ("Add", "Cast", "QuantizeLinear", "DequantizeLinear", "Identity")
"""Operators between the head's product and the logits."""
_PRODUCTS = ("Gemm", "MatMul")


def add_distance(graph: GraphProto, distance: Distance) -> None:
    """Append the output `distance`, float32 (N, 1), to a graph whose first output is the logits.

    Raises:
        ArtifactError: If the logits are not the output of a linear layer.
    """
    nodes = _Nodes(graph)
    head = _head(graph)
    # A graph in fp16 has its features in fp16; in others the cast changes nothing.
    values = nodes.add("Cast", head.input[0], to=TensorProto.FLOAT)
    if distance.num_channels < _num_features(graph, head):
        shape = nodes.constant("shape", np.array([0, distance.num_channels, -1], np.int64))
        maps = nodes.add("Reshape", values, shape)
        values = nodes.add("Flatten", nodes.add("GlobalAveragePool", maps), axis=1)
    # By products, because the operators that sum differ between opsets.
    ones = nodes.constant("ones", np.ones((distance.num_channels, 1), np.float32))
    length = nodes.add("Sqrt", nodes.add("MatMul", nodes.add("Mul", values, values), ones))
    smallest = nodes.constant("smallest_length", np.array(SMALLEST_LENGTH, np.float32))
    scaled = nodes.add("Div", values, nodes.add("Add", length, smallest))
    centered = nodes.add("Sub", scaled, nodes.constant("mean", distance.mean))
    directions = nodes.constant("directions", distance.directions)
    parts = nodes.add("MatMul", centered, directions)
    rest = nodes.add("Sub", centered, nodes.add("Gemm", parts, directions, transB=1))
    both = nodes.add("Concat", parts, rest, axis=1)
    own, others = distance.precisions[:-1], distance.precisions[-1]
    weights = np.append(own, np.full(distance.num_channels, others, np.float32))[:, np.newaxis]
    squares = nodes.add("Mul", both, both)
    sums = nodes.add("MatMul", squares, nodes.constant("precisions", weights))
    graph.node.append(helper.make_node("Sqrt", [sums], [DISTANCE], DISTANCE))
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    graph.output.append(helper.make_tensor_value_info(DISTANCE, TensorProto.FLOAT, [batch, 1]))


class _Nodes:
    """Appends nodes and constants with names that begin with `PREFIX`."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._number = 0

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node, and return the name of its output."""
        self._number += 1
        name = f"{PREFIX}{self._number}_{kind}"
        self._graph.node.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant, and return its name."""
        value = np.ascontiguousarray(value)
        self._graph.initializer.append(numpy_helper.from_array(value, PREFIX + name))
        return PREFIX + name


def _head(graph: GraphProto) -> NodeProto:
    """Return the product whose result is the logits."""
    producers = {output: node for node in graph.node for output in node.output}
    node = producers.get(graph.output[0].name)
    while node is not None and node.op_type in _BEHIND_HEAD:
        node = next((producers[one] for one in node.input if one in producers), None)
    if node is None or node.op_type not in _PRODUCTS:
        found = "nothing" if node is None else node.op_type
        raise ArtifactError(f"the logits are the output of {found}, not of a linear layer")
    return node


def _num_features(graph: GraphProto, head: NodeProto) -> int:
    """Return the number of features that a head takes, F, by its weights, (F, C) or (C, F)."""
    producers = {output: node for node in graph.node for output in node.output}
    weight = head.input[1]
    while weight in producers:  # in int8, or behind a cast
        weight = producers[weight].input[0]
    (size,) = (math.prod(one.dims) for one in graph.initializer if one.name == weight)
    num_classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return size // num_classes
