import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tltools.bench import onnx_flops, uses_gpu
from tltools.bench.gpu import watch_gpu
from tltools.bench.peak import measure_peaks
from tltools.errors import DeviceError
from tltools.runtime.peak import matmul_flops_per_s


def save(path, nodes, weights, *, batch="batch"):
    """Write a model of an input (batch, 4, 8, 8) and an output `out` of a shape to be inferred."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(dims, np.float32), name) for name, dims in weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


@pytest.mark.parametrize("batch", ["batch", 1])
def test_convolutions_and_products_are_counted_for_one_image(tmp_path, batch):
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w3"], ["f"], transB=1),
        helper.make_node("MatMul", ["f", "w4"], ["out"]),
    ]
    weights = [("w1", (6, 4, 3, 3)), ("w2", (10, 3, 3, 3)), ("w3", (5, 10)), ("w4", (5, 7))]
    path = save(tmp_path / "model.onnx", nodes, weights, batch=batch)
    # Each value of (6, 8, 8) takes 4 x 3 x 3 multiply-adds, of (10, 4, 4) half of 6 x 3 x 3,
    # of (5) ten and of (7) five.
    assert onnx_flops(path) == 2 * (384 * 36 + 160 * 27 + 5 * 10 + 7 * 5)


def test_int8_counts_the_operations_of_its_fp32_model(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]),
        helper.make_node("QuantizeLinear", ["w", "scale"], ["qw"]),
        helper.make_node("DequantizeLinear", ["qw", "scale"], ["dw"]),
        helper.make_node("Conv", ["d", "dw"], ["out"], pads=[1, 1, 1, 1]),
    ]
    path = save(tmp_path / "model.onnx", nodes, [("w", (6, 4, 3, 3)), ("scale", ())])
    assert onnx_flops(path) == 2 * 384 * 36


def test_unknown_shapes_are_not_guessed(tmp_path):
    nodes = [
        helper.make_node("Loopless", ["x"], ["a"], domain="elsewhere"),
        helper.make_node("Conv", ["a", "w"], ["out"]),
    ]
    assert onnx_flops(save(tmp_path / "model.onnx", nodes, [("w", (6, 4, 3, 3))])) is None


def test_a_matrix_product_is_timed_in_every_supported_precision():
    rates = matmul_flops_per_s("cpu", ["fp16", "fp32", "int8", "tf32"], size=64, round_s=0.01)
    assert sorted(rates) == ["fp16", "fp32", "tf32"]
    assert min(rates.values()) > 1e6


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_the_cpu_has_no_peak(device):
    assert not uses_gpu(device)
    assert measure_peaks(device, {"fp32"}) == ({}, "")
    assert watch_gpu(device) is None


def test_the_peak_of_a_device_without_pytorch_is_refused():
    with pytest.raises(DeviceError, match="runs ONNX exports only"):
        matmul_flops_per_s("openvino", ["fp32"])
