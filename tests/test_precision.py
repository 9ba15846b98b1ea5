"""int8 and fp16 files written from an fp32 file: their contents and their accuracy."""

import logging
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from conftest import Recorder
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from tltools.card import CARD_KEY, card_from_json
from tltools.errors import ArtifactError, DataError, ParityError
from tltools.graphs import precision
from tltools.graphs.precision import (
    FP16_LIMIT,
    quantize_until,
    sensitive_layers,
    write_fp16,
    write_int8,
)
from tltools.runtime.device import open_session

SIZE = 16
CHANNELS = 48
"""Enough that the weights, and not the card and the names, decide the size of the file."""
LAYERS = ["first", "second", "head"]


def network(source_of_numbers, *, gain=1.0, wild_channel=False):
    """Two Convs, a mean and two Gemms; the weights are random, scaled as He et al. do."""
    rng = np.random.default_rng(source_of_numbers)
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        tiny (uint8[batch, {SIZE}, {SIZE}, 3] images) => (float[batch, 3] logits)
        <float scale = {{0.00392156862745098}}, int64[2] axes = {{2, 3}}, int64[2] flat = {{0, -1}}>
        {{
            [permute] permuted = Transpose <perm = [0, 3, 1, 2]> (images)
            [cast] pixels = Cast <to = 1> (permuted)
            [scale_them] scaled = Mul (pixels, scale)
            [first] maps = Conv <pads = [1, 1, 1, 1]> (scaled, first_weight, first_bias)
            [relu] positive = Relu (maps)
            [pool] pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (positive)
            [second] deep = Conv <pads = [1, 1, 1, 1]> (pooled, second_weight, second_bias)
            [second_relu] features = Relu (deep)
            [small] smaller = MaxPool <kernel_shape = [8, 8]> (features)
            [flatten] vector = Reshape (smaller, flat)
            [head] logits = Gemm <transB = 1> (vector, head_weight, head_bias)
        }}
    """)
    shapes = {
        "first": (CHANNELS, 3, 3, 3),
        "second": (CHANNELS, CHANNELS, 3, 3),
        "head": (3, CHANNELS),
    }
    for layer, shape in shapes.items():
        weight = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        if layer == "first":
            weight *= gain
        if layer == "second" and wild_channel:
            # One output channel a thousand times the others and its sign such that Relu cuts it
            # off: with one scale for all channels, the other 47 would round to almost nothing.
            weight[0] = -1000 * np.abs(weight[0])
        bias = rng.normal(size=shape[0]) * 0.1
        for name, array in ((f"{layer}_weight", weight), (f"{layer}_bias", bias)):
            model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    # torch's exporter notes the weights' types too, where only activations' are expected.
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info("scale", TensorProto.FLOAT, [])
    )
    return model


def saved(model, path, card):
    onnx.helper.set_model_props(model, {"other": "entry", CARD_KEY: card.to_json()})
    onnx.save(model, path)
    return path


@pytest.fixture
def source(tmp_path, card):
    return saved(network(0), tmp_path / "in" / "tiny.fp32.onnx", card)


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out" / "tiny.onnx"


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def logits_of(path, images):
    session, _ = open_session(path, device="cpu")
    return np.asarray(session.run(None, {"images": images})[0])


def logits_in_half(path, images):
    """By onnx's own evaluator, which rounds each result to half; onnxruntime's CPU does not."""
    (logits,) = ReferenceEvaluator(str(path)).run(None, {"images": images}) or []
    return np.asarray(logits)


def nodes_of(path):
    return {node.name: node for node in onnx.load(path).graph.node}


def weights_of(path):
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def quantized_layers(path):
    """The layers whose weights come from a DequantizeLinear."""
    nodes = nodes_of(path)
    made = {name: node for node in nodes.values() for name in node.output}
    sources = {layer: made.get(nodes[layer].input[1]) for layer in LAYERS}
    return {layer for layer, node in sources.items() if node and node.op_type == "DequantizeLinear"}


# -------------------------------------------------------------------------------------- int8


def test_int8_logits_are_close_to_fp32(source, target, images):
    write_int8(source, target, [images[:8], images[8:16]])
    expected, logits = logits_of(source, images), logits_of(target, images)
    # A tensor of 256 steps is off by half a step, 1/512 of its range: with seven such roundings
    # on the way (three inputs, and weights four times as coarse), 2% is generous.
    assert np.abs(logits - expected).max() < 0.02 * np.ptp(expected)
    assert not np.array_equal(logits, expected)


def test_int8_weights_have_one_scale_for_each_output_channel(source, target, images):
    write_int8(source, target, [images])
    before, after = weights_of(source), weights_of(target)
    for layer in LAYERS:
        weight = before[f"{layer}_weight"]
        integers, scale = after[f"{layer}_weight_quantized"], after[f"{layer}_weight_scale"]
        assert integers.dtype == np.int8
        largest = np.abs(weight).reshape(len(weight), -1).max(1)
        np.testing.assert_allclose(scale, largest / 63, rtol=0.03)
        assert np.abs(integers).max() <= 64  # a sum of two products with uint8 fits into 16 bits
        restored = integers * scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.all(np.abs(restored - weight).reshape(len(weight), -1).max(1) <= scale * 0.51)
    activations = [
        item.data_type for item in onnx.load(target).graph.initializer if "_zero_point" in item.name
    ]
    assert set(activations) >= {TensorProto.UINT8}


HASWELL = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(logits,) = session.run(["logits"], {"images": np.load(sys.argv[2])})
np.save(sys.argv[3], logits)
"""


def test_int8_logits_are_the_same_on_a_processor_that_saturates(tmp_path, source, target, images):
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("needs qemu-x86_64 (Debian's qemu-user), which emulates other processors")
    write_int8(source, target, [images])
    bright = 255 - images // 8  # their products with weights that use all 8 bits would saturate
    np.save(tmp_path / "images.npy", bright)
    subprocess.run(
        [emulator, "-cpu", "Haswell", sys.executable, "-c", HASWELL]
        + [str(path) for path in (target, tmp_path / "images.npy", tmp_path / "logits.npy")],
        check=True, capture_output=True,
    )  # fmt: skip
    logits, here = np.load(tmp_path / "logits.npy"), logits_of(target, bright)
    assert np.abs(logits - here).max() < 1e-4 * np.ptp(here)


def test_a_channel_with_large_weights_does_not_affect_the_others(tmp_path, card, target, images):
    source = saved(network(0, wild_channel=True), tmp_path / "in" / "wild.onnx", card)
    write_int8(source, target, [images])
    expected = logits_of(source, images)
    assert np.abs(logits_of(target, images) - expected).max() < 0.02 * np.ptp(expected)


def test_int8_ranges_cover_the_calibration_images_of_all_batches(source, target, images):
    dark, bright = images // 8, 255 - images // 8
    write_int8(source, target, [dark, bright])
    both = weights_of(target)["scaled_scale"]
    assert both == pytest.approx(1 / 255, rel=1e-5)  # from 0 to 1 in 255 steps
    write_int8(source, target, [dark])
    assert weights_of(target)["scaled_scale"] == pytest.approx(31 / 255 / 255, rel=1e-5)


def test_int8_logits_are_not_clipped_beyond_the_calibration_images(source, target, images):
    write_int8(source, target, [images])
    graph = onnx.load(target).graph
    (last,) = (node for node in graph.node if "logits" in node.output)
    assert last.op_type == "Gemm"


def test_a_head_after_a_mean_stays_float(tmp_path, card, target, images):
    model = network(0)
    (small,) = (node for node in model.graph.node if node.name == "small")
    small.CopyFrom(
        onnx.helper.make_node(
            "ReduceMean", ["features", "axes"], ["smaller"], name="small", keepdims=0
        )
    )
    (flatten,) = (node for node in model.graph.node if node.name == "flatten")
    model.graph.node.remove(flatten)
    (head,) = (node for node in model.graph.node if node.name == "head")
    head.input[0] = "smaller"
    source = saved(model, tmp_path / "in" / "mean.onnx", card)
    write_int8(source, target, [images])
    assert quantized_layers(target) == {"first", "second"}
    assert sorted(sensitive_layers(source, images)) == ["first", "second"]


@pytest.mark.parametrize("kept", [["first"], ["second"], ["first", "head"]])
def test_layers_kept_in_float_keep_their_weights(source, target, images, kept):
    write_int8(source, target, [images], keep_float=kept)
    assert quantized_layers(target) == set(LAYERS) - set(kept)
    before, after = weights_of(source), weights_of(target)
    for layer in kept:
        np.testing.assert_array_equal(after[f"{layer}_weight"], before[f"{layer}_weight"])


def test_with_all_layers_in_float_nothing_is_quantized(source, target, images):
    write_int8(source, target, [images], keep_float=LAYERS)
    kinds = {node.op_type for node in nodes_of(target).values()}
    assert kinds.isdisjoint({"QuantizeLinear", "DequantizeLinear"})
    np.testing.assert_allclose(logits_of(target, images), logits_of(source, images), atol=1e-6)


def test_normalization_is_not_quantized(source, target, images):
    write_int8(source, target, [images])
    nodes = nodes_of(target)
    assert nodes["scale_them"].input[0] == "pixels"
    assert nodes["cast"].input[0] == "permuted"


def residual(card, path):
    """The same network with normalized pixels and a residual block in front of its last maximum."""
    model = network(0)
    nodes = {node.name: node for node in model.graph.node}
    shift = numpy_helper.from_array(np.full((1, 3, 1, 1), -0.5, np.float32), "shift")
    model.graph.initializer.append(shift)
    shifting = onnx.helper.make_node("Add", ["scaled", "shift"], ["shifted"], "shift_them")
    joining = onnx.helper.make_node("Add", ["deep", "pooled"], ["joined"], "join")
    nodes["first"].input[0] = "shifted"
    nodes["second_relu"].input[0] = "joined"
    order = list(model.graph.node)
    order.insert(order.index(nodes["first"]), shifting)
    order.insert(order.index(nodes["second_relu"]), joining)
    del model.graph.node[:]
    model.graph.node.extend(order)
    return saved(model, path, card)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [([], {"join"}), (["second"], set()), (["first"], set()), (["head"], {"join"})],
)
def test_a_sum_is_quantized_if_both_branches_are(tmp_path, card, target, images, kept, expected):
    source = residual(card, tmp_path / "in" / "residual.onnx")
    write_int8(source, target, [images], keep_float=kept)
    nodes = nodes_of(target)
    takers = {name: node for node in nodes.values() for name in node.input}
    found = set()
    for name in ("join", "shift_them"):
        taker = takers[nodes[name].output[0]]
        if name == "join" and taker.op_type == "Relu":
            taker = takers[taker.output[0]]
        makers = [
            node.op_type
            for node in nodes.values()
            for one in node.output
            if one in nodes[name].input
        ]
        if [*makers, taker.op_type] == ["DequantizeLinear", "DequantizeLinear", "QuantizeLinear"]:
            found.add(name)
    assert found == expected
    expected_logits = logits_of(source, images)
    assert np.abs(logits_of(target, images) - expected_logits).max() < 0.03 * np.ptp(
        expected_logits
    )


def test_with_all_layers_in_float_no_sum_is_quantized(tmp_path, card, target, images):
    source = residual(card, tmp_path / "in" / "residual.onnx")
    write_int8(source, target, [images], keep_float=LAYERS)
    kinds = {node.op_type for node in nodes_of(target).values()}
    assert kinds.isdisjoint({"QuantizeLinear", "DequantizeLinear"})


def test_int8_needs_images(source, target):
    with pytest.raises(
        DataError, match="no images to calibrate on; increase `calibration_images=`"
    ):
        write_int8(source, target, [])
    assert names_in(target.parent) == []


def test_calibration_holds_one_batch_at_a_time(source, target, images):
    alive = []

    def batches():
        for start in range(0, 24, 4):
            assert sum(reference() is not None for reference in alive) <= 1
            batch = images[start : start + 4].copy()
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    write_int8(source, target, batches())
    assert len(alive) == 6


# -------------------------------------------------------------------------------------- fp16


def test_fp16_has_half_weights_and_the_same_inputs_and_outputs(source, target, images):
    assert write_fp16(source, target) == []
    after = weights_of(target)
    for layer in LAYERS:
        assert after[f"{layer}_weight"].dtype == np.float16
        expected = weights_of(source)[f"{layer}_weight"].astype(np.float16)
        np.testing.assert_array_equal(after[f"{layer}_weight"], expected)
    assert target.stat().st_size < 0.55 * source.stat().st_size
    expected = logits_of(source, images)
    logits = logits_of(target, images)
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - expected).max() < 0.005 * np.ptp(expected)


def test_fp16_computes_in_half_after_an_fp32_normalization(source, target):
    write_fp16(source, target)
    model = onnx.shape_inference.infer_shapes(onnx.load(target), strict_mode=True)
    kinds = {item.name: item.type.tensor_type.elem_type for item in model.graph.value_info}
    nodes = {node.name: node for node in model.graph.node}
    for layer in LAYERS:
        assert kinds[nodes[layer].input[0]] == TensorProto.FLOAT16
        assert kinds[nodes[layer].output[0]] == TensorProto.FLOAT16
    assert kinds[nodes["scale_them"].output[0]] == TensorProto.FLOAT
    # One cast into half, one out of it, and the source's own of the images.
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 3
    assert weights_of(target)["scale"].dtype == np.float32


def test_fp16_is_correct_in_half_precision_arithmetic(source, target, images):
    write_fp16(source, target)
    logits = logits_in_half(target, images[:4])
    expected = logits_of(source, images[:4])
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 0.02 * np.ptp(expected)


@pytest.mark.parametrize("gain", [1.0, 1e6])
def test_nodes_beyond_the_range_of_fp16_stay_fp32(tmp_path, card, target, images, gain):
    source = saved(network(0, gain=gain), tmp_path / "in" / "large.onnx", card)
    kept = write_fp16(source, target, [images[:4]])
    expected = logits_of(source, images[:4])
    # The first Conv's outputs are beyond the limit, and all that follows has them as its input.
    assert ("first" in kept) == (gain > FP16_LIMIT)
    assert ("head" in kept) == (gain > FP16_LIMIT)
    logits = logits_in_half(target, images[:4])
    assert np.abs(logits - expected).max() < (0.02 if gain == 1.0 else 1e-5) * np.ptp(expected)


def test_only_the_layers_that_need_it_stay_fp32(tmp_path, card, target, images):
    model = network(0, gain=1e6)
    for item in model.graph.initializer:
        if item.name == "second_weight":  # back to what the head expects
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) / 1e6, item.name))
    source = saved(model, tmp_path / "in" / "large.onnx", card)
    kept = write_fp16(source, target, [images[:4]])
    assert kept == ["first", "relu", "pool", "second"]
    expected = logits_of(source, images[:4])
    logits = logits_in_half(target, images[:4])
    assert np.abs(logits - expected).max() < 0.02 * np.ptp(expected)


# ------------------------------------------------------------------------- keeping layers in fp32


def sensitive_network(path, card):
    """`second` is hurt most: one of its weights, of nine, is a hundred times as large."""
    model = network(0)
    for item in model.graph.initializer:
        if item.name == "second_weight":
            weight = numpy_helper.to_array(item).copy()
            weight[:, 0, 0, 0] = 100 * np.abs(weight[:, 0, 0, 0])
            item.CopyFrom(numpy_helper.from_array(weight, item.name))
    return saved(model, path, card)


def test_the_layer_that_rounding_hurts_most_is_named_first(tmp_path, card, images):
    source = sensitive_network(tmp_path / "in" / "s.onnx", card)
    assert sensitive_layers(source, images)[0] == "second"
    assert sorted(sensitive_layers(source, images[:4], calibration=[images])) == sorted(LAYERS)


@pytest.mark.parametrize(("tries", "kept"), [(1, 0), (2, 1), (3, 2)])
def test_layers_are_kept_in_float_until_the_check_passes(
    source, target, images, tries, kept, monkeypatch
):
    seen = []

    def check(path):
        seen.append(quantized_layers(path))
        if len(seen) < tries:
            raise ParityError("too far")

    progress = Recorder()
    order = sensitive_layers(source, images[:8], calibration=[images])
    names = quantize_until(source, target, [images], check, progress=progress)
    assert names == order[:kept]
    assert [len(layers) for layers in seen] == [3, 2, 1][:tries]
    assert quantized_layers(target) == set(LAYERS) - set(names)
    assert len(progress.said) == tries - 1
    assert all("too far" in line for line in progress.said)


def test_sensitivity_is_measured_only_when_needed(source, target, images, monkeypatch):
    monkeypatch.setattr(precision, "_by_sensitivity", lambda *args: pytest.fail("not needed"))
    assert quantize_until(source, target, [images], lambda path: None) == []


def test_a_check_that_never_passes_leaves_no_file_and_its_own_error(source, target, images):
    """A file in which all layers are float is not tried: it would not be int8."""
    seen = []

    def check(path):
        seen.append(path)
        raise ParityError(f"try {len(seen)}")

    with pytest.raises(ParityError, match="try 3"):
        quantize_until(source, target, [images], check)
    assert names_in(target.parent) == []


def test_an_earlier_file_stays_when_the_check_fails(source, target, images):
    target.write_bytes(b"earlier")

    def check(path):
        raise ParityError("never")

    with pytest.raises(ParityError, match="never"):
        quantize_until(source, target, [images], check)
    assert target.read_bytes() == b"earlier"


# ---------------------------------------------------------------------------------- both precisions


def both(source, target, images):
    write_int8(source, target.with_name("int8.onnx"), [images])
    write_fp16(source, target.with_name("fp16.onnx"), [images])
    return [target.with_name("int8.onnx"), target.with_name("fp16.onnx")]


def test_the_card_and_the_interface_survive(source, target, images, card):
    for path in both(source, target, images):
        model = onnx.load(path)
        assert {item.key: item.value for item in model.metadata_props} == {
            "other": "entry",
            CARD_KEY: card.to_json(),
        }
        text = next(item.value for item in model.metadata_props if item.key == CARD_KEY)
        assert card_from_json(text, where=path.name) == card
        assert model.ir_version == 10
        assert [(item.domain, item.version) for item in model.opset_import] == [("", 20)]
        assert list(model.graph.input) == list(onnx.load(source).graph.input)
        assert list(model.graph.output) == list(onnx.load(source).graph.output)
        for count in (1, 5):  # the batch axis is free
            assert logits_of(path, images[:count]).shape == (count, 3)


def test_only_the_results_remain(source, target, images, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # may not be used at all
    before = source.read_bytes()
    both(source, target, images)
    quantize_until(source, target, [images], lambda path: None)
    assert names_in(target.parent) == ["fp16.onnx", "int8.onnx", "tiny.onnx"]
    assert names_in(source.parent) == [source.name]
    assert source.read_bytes() == before


@pytest.mark.parametrize("where", ["_quantized", "check_onnx", "_by_sensitivity"])
def test_an_interrupt_leaves_no_files(source, target, images, monkeypatch, where):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    def check(path):
        raise ParityError("go on")

    monkeypatch.setattr(precision, where, interrupt)
    with pytest.raises(KeyboardInterrupt):  # it has no message to match
        quantize_until(source, target, [images], check)
    assert names_in(target.parent) == []
    assert names_in(source.parent) == [source.name]


def test_a_source_that_does_not_run_is_refused(source, target, images):
    model = onnx.load(source)
    model.graph.node[-1].domain = "nowhere"
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    onnx.save(model, source)
    with pytest.raises(ArtifactError, match="onnxruntime cannot open"):
        write_int8(source, target, [images])
    assert names_in(target.parent) == []


def test_the_quantizers_warnings_are_hidden(source, target, images, monkeypatch, capfd):
    from onnxruntime.quantization import QDQQuantizer

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # pytest's own
    quantize_model = QDQQuantizer.quantize_model

    def warn(self):
        logging.warning("advice")
        return quantize_model(self)

    monkeypatch.setattr(QDQQuantizer, "quantize_model", warn)
    before = (root.manager.disable, root.level)
    both(source, target, images)
    assert (root.manager.disable, root.level) == before
    assert root.handlers == []
    assert capfd.readouterr() == ("", "")


def test_a_reused_buffer_does_not_change_the_order(source, target, images):
    def check(path):
        orders.append(path)
        if len(orders) < 3:
            raise ParityError("again")

    def refilled():
        buffer = np.empty_like(images[:8])
        for start in range(0, 24, 8):
            buffer[:] = images[start : start + 8]
            yield buffer

    orders, seen = [], []
    measure = precision._by_sensitivity
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            precision,
            "_by_sensitivity",
            lambda model, ranges, few: seen.append(few) or measure(model, ranges, few),
        )
        quantize_until(source, target, refilled(), check)
    np.testing.assert_array_equal(seen[0], images[:8])


@pytest.mark.parametrize("first", ["int8", "fp16"])
def test_nothing_is_written_to_the_terminal(source, target, images, first):
    """In a process of its own: both libraries write past Python's sys.stderr."""
    np.save(source.parent / "images.npy", images)
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from tltools.errors import ParityError\n"
        "from tltools.graphs.precision import quantize_until, write_fp16\n"
        "source, target = map(Path, sys.argv[1:])\n"
        "images = np.load(source.parent / 'images.npy')\n"
        "seen = []\n"
        "def check(path):\n"
        "    seen.append(path)\n"
        "    if len(seen) < 3:\n"
        "        raise ParityError('again')\n"
        "steps = [lambda: quantize_until(source, target, [images], check),\n"
        "         lambda: write_fp16(source, target, [images])]\n"
        f"for step in steps[::{1 if first == 'int8' else -1}]:\n"
        "    step()\n"
        "assert not [path for path in sys.path if 'onnxruntime' in path], sys.path\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
