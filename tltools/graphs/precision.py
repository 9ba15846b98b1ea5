"""Convert an fp32 ONNX file to int8 or fp16; the result is verified elsewhere.

int8 is static quantization: the weights of each Conv and Gemm become int8 with one scale per output
channel, and the activations between them become uint8, with the smallest and largest values on the
calibration images as their range. onnxruntime's `QDQQuantizer` rewrites the graph. The usual entry
point, `quantize_static`, is not used: it calibrates again for every file, writes several copies of
the model to disk, and prints advice to the terminal.

These choices were made by measurement, on VGG16 (pooled head) and the CNN against fp32:

- MinMax ranges. Largest logit differences on two data sets: MinMax 0.085 and 0.086, Percentile
  99.999 0.095 and 0.18, Percentile 99.9 0.98 and 0.93, Entropy 0.88 and 0.17. The few largest
  activations separate the classes.
- Float logits. As uint8 they saturate at the calibration images' maximum: 0.59 against 0.046.
- A float head if its input is not already quantized (after a mean): half the difference. Other
  products (a transformer's layers, behind its float normalizations) are quantized.
- uint8 activations with int8 weights; int8 activations are neither more accurate nor faster.
- Weights of 7 bits. An x86 processor without VNNI (before 2019, and many since) adds two products
  of 8 bits in a signed word of 16, which holds two of 8 and 7 bits. With 8 bits, VGG16's logits
  were 1.09 off on such a processor (Haswell) and 0.14 on others; with 7 bits they are 0.19 off on
  all of them. uint8 weights would be as safe, but take 2.9 times as long on a processor with VNNI,
  as does onnxruntime's `session.x64quantprecision`, and TensorRT does not accept them.
"""

import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from tltools.atomic import atomic_path
from tltools.errors import DataError, DeviceError, ParityError, first_line
from tltools.graphs.distance_nodes import PREFIX
from tltools.graphs.onnx_file import check_onnx
from tltools.progress import SILENT, Progress
from tltools.runtime.device import (
    Device,
    import_onnxruntime,
    onnxruntime_errors,
    open_session,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Ranges = dict[str, tuple[np.float32, np.float32]]
"""Smallest and largest value of each float tensor on the calibration images, by its name."""

WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")
"""Operators that do most of the work and that int8 speeds up."""
QUANTIZED_OPS = (*WEIGHTED_OPS, "Add", "Relu", "MaxPool", "AveragePool", "Reshape", "Flatten")
"""Operators that are quantized. Those without weights pass bytes through if their input is
quantized; an Add, as in a residual block, only if both of its branches are."""
WEIGHT_BITS = 7
"""Bits that int8 weights use."""
FLOAT_OUTPUTS = ("Gemm", "MatMul")
"""Products whose outputs, including the logits, stay float; only their inputs are bytes."""
FP16_LIMIT = 65504 / 2
"""Half of fp16's largest number, since other images may exceed the values seen in calibration."""
PROBE_OPSET = 18
"""Latest opset in which onnxruntime computes minima and maxima on CUDA. The operators of an export
mean the same in it, if it has them all; otherwise the probe keeps the opset, and a GPU leaves the
minima and maxima to the CPU."""
FP32_OPS = ("Gelu",)
"""Operators that stay fp32 in an fp16 file: in fp16 they crash onnxruntime 1.28 on the CPU."""
NUM_SENSITIVITY_IMAGES = 8


def write_int8(
    source: Path,
    target: Path,
    calibration: Iterable[NDArray[np.uint8]],
    *,
    keep_float: Sequence[str] = (),
    device: Device = "cpu",
) -> None:
    """Quantize an fp32 export; the card, opset, inputs and outputs stay unchanged.

    Args:
        source: The fp32 export.
        target: Path of the int8 file, written completely or not at all.
        calibration: Batches (n, size, size, 3), uint8, RGB, each run once; one is held at a time.
        keep_float: Names of nodes that are not quantized.
        device: Device that runs the calibration images.

    Raises:
        ArtifactError: If onnxruntime cannot run the source.
        DataError: If there are no calibration images.
        DeviceError: If the device cannot run it.
    """
    model = _load(source)
    ranges = activation_ranges(model, calibration, device=device)
    with atomic_path(target) as temporary:
        _save(_quantized(model, ranges, keep_float=keep_float), temporary)


def quantize_until(
    source: Path,
    target: Path,
    calibration: Iterable[NDArray[np.uint8]],
    check: Callable[[Path], object],
    *,
    may_keep_all: bool = False,
    device: Device = "cpu",
    progress: Progress = SILENT,
) -> list[str]:
    """Quantize an fp32 export, keeping as many layers in fp32 as needed to pass a check.

    The first try keeps none; then the most sensitive one, two, four and so on. The last one keeps
    all but one, since an export without an int8 layer would not be what its name says. The
    calibration images are run once, and sensitivity is measured only if the first try fails.

    Args:
        source: The fp32 export.
        target: Path of the int8 file, written completely and only if it passes.
        calibration: Batches (n, size, size, 3), uint8, RGB. One batch and a few images are held.
        check: Raises ParityError if the int8 file at the path fails.
        may_keep_all: Whether the last try keeps all layers in fp32 instead.
        device: Device that runs the calibration images; sensitivity is measured on the CPU.
        progress: Reports each further try.

    Returns:
        The names of the nodes kept in fp32, the most sensitive first, without those that stay
        float in any case.

    Raises:
        ArtifactError: If onnxruntime cannot run the source.
        DataError: If there are no calibration images.
        DeviceError: If the device cannot run it.
        ParityError: The last error of the check, if no choice of layers passes; no file is written.
    """
    model = _load(source)
    few: list[NDArray[np.uint8]] = []
    ranges = activation_ranges(model, _remember(calibration, few), device=device)
    order: list[str] = []
    keep = 0
    with atomic_path(target) as temporary:
        while True:
            _save(_quantized(model, ranges, keep_float=order[:keep]), temporary)
            try:
                check(temporary)
            except ParityError as error:
                order = order or _by_sensitivity(model, ranges, np.concatenate(few))
                most = len(order) if may_keep_all else len(order) - 1
                if keep >= most:
                    raise
                keep = min(max(1, 2 * keep), most)
                progress.say(
                    f"int8: {error}; retrying with {keep} of {len(order)} layers kept in fp32"
                )
            else:
                return order[:keep]


def sensitive_layers(
    source: Path,
    images: NDArray[np.uint8],
    *,
    calibration: Iterable[NDArray[np.uint8]] | None = None,
) -> list[str]:
    """Order the layers by how much the logits change if only that layer is quantized.

    Args:
        source: The fp32 export.
        images: Images to compare the logits on, (N, size, size, 3), uint8, RGB; each layer costs
            one forward pass over them.
        calibration: Batches of calibration images; the default is `images`.

    Returns:
        Names of the nodes that `write_int8` would quantize, the most sensitive first.

    Raises:
        ArtifactError: If onnxruntime cannot run the source.
        DataError: If there are no images.
    """
    model = _load(source)
    batches = _batches(images) if calibration is None else calibration
    return _by_sensitivity(model, activation_ranges(model, batches), images)


class LayerCounts(NamedTuple):
    """How many of an int8 file's layers are computed in which precision."""

    num_int8: int
    num_float: int


def count_layers(path: Path) -> LayerCounts:
    """Count the layers with weights of an int8 file, without those of the output `distance`.

    Raises:
        ArtifactError: If it is not an ONNX file.
    """
    graph = _load(path).graph
    weights = {one.name for one in graph.initializer}
    quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [
        node.input[1]
        for node in graph.node
        if node.op_type in WEIGHTED_OPS and not node.name.startswith(PREFIX)
    ]
    return LayerCounts(
        sum(map(quantized.__contains__, layers)), sum(map(weights.__contains__, layers))
    )


def write_fp16(
    source: Path,
    target: Path,
    calibration: Iterable[NDArray[np.uint8]] | None = None,
    *,
    device: Device = "cpu",
) -> list[str]:
    """Convert the weights and arithmetic of an fp32 export to half precision.

    The input stays uint8 and the output float32, and normalization stays fp32, so images are
    rounded only once. onnxruntime's CPU execution provider computes such a file in fp32 with the
    rounded weights; an activation beyond fp16's 65504 overflows only on a GPU, where a parity check
    on the CPU cannot see it. So nodes that come near this limit on the images stay fp32.

    Args:
        source: The fp32 export.
        target: Path of the fp16 file, written completely or not at all.
        calibration: Batches (n, size, size, 3), uint8, RGB; None skips the check for overflow.
        device: Device that runs the calibration images.

    Returns:
        Names of the nodes that stay fp32 because their activations are too large.

    Raises:
        ArtifactError: If onnxruntime cannot run the source.
        DataError: If `calibration` has no images.
        DeviceError: If the device cannot run it.
    """
    model = _load(source)
    ranges = {} if calibration is None else activation_ranges(model, calibration, device=device)
    too_large = {name for name, (low, high) in ranges.items() if not max(-low, high) <= FP16_LIMIT}
    normalization = {node.name for node in _normalization(model)}
    crashing = [node.name for node in model.graph.node if node.op_type in FP32_OPS]
    kept = [
        node.name
        for node in model.graph.node
        if node.name not in normalization and not too_large.isdisjoint((*node.input, *node.output))
    ]
    with atomic_path(target) as temporary:
        _save(_halved(model, keep_float=[*normalization, *crashing, *kept]), temporary)
    return kept


def activation_ranges(
    model: ModelProto, calibration: Iterable[NDArray[np.uint8]], *, device: Device = "cpu"
) -> Ranges:
    """Run images and return the smallest and largest value of each float tensor.

    The minima and maxima are computed inside the graph, as extra outputs: two numbers per tensor
    and batch.

    Args:
        model: An fp32 model.
        calibration: Batches (n, size, size, 3), uint8, RGB, each run once.
        device: Device that runs them; TF32 is off.

    Raises:
        ArtifactError: If onnxruntime cannot run the model.
        DataError: If there are no images.
        DeviceError: If the device cannot run it.
    """
    known = (*model.graph.value_info, *model.graph.output)
    floats = [
        value.name for value in known if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for kind, name in itertools.product(("ReduceMin", "ReduceMax"), floats):
        output = f"{name}.{kind}"
        probe.graph.node.append(helper.make_node(kind, [name], [output], output, keepdims=0))
        probe.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    for opset in probe.opset_import:
        if not opset.domain and all(_in_probe_opset(node.op_type) for node in model.graph.node):
            opset.version = min(opset.version, PROBE_OPSET)
    session, choice = open_session(probe.SerializeToString(), device=device)
    del probe
    if choice.device == "cpu":  # one by one, since no tensor is freed before its minimum is known
        calibration = (one for images in calibration for one in _batches(images, 1))
    per_batch = [_run(session, images) for images in calibration]
    if not per_batch:
        raise DataError("there are no images to calibrate on; increase `calibration_images=`")
    both = np.array(per_batch, dtype=np.float32)
    lowest, highest = both[:, : len(floats)].min(0), both[:, len(floats) :].max(0)
    return dict(zip(floats, zip(lowest, highest, strict=True), strict=True))


def _in_probe_opset(op_type: str) -> bool:
    """Return whether an operator exists in `PROBE_OPSET`; Gelu, for one, is younger."""
    try:
        onnx.defs.get_schema(op_type, PROBE_OPSET)
    except onnx.defs.SchemaError:
        return False
    return True


# ------------------------------------------------------------------------------------ rewriting


def _quantized(
    model: ModelProto, ranges: Ranges, *, keep_float: Sequence[str] = (), only: Sequence[str] = ()
) -> ModelProto:
    """Return a copy with int8 weights, within ±64, and uint8 activations.

    Args:
        model: The fp32 model.
        ranges: See `activation_ranges`.
        keep_float: Names of nodes that are not quantized.
        only: Names of the nodes to quantize; empty for all.
    """
    import_onnxruntime()
    with _onnxruntime_tools():
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData
        from onnxruntime.quantization.quant_utils import add_infer_metadata

    copy = ModelProto()
    copy.CopyFrom(model)
    # Marks the shapes as inferred; otherwise onnxruntime would infer them again, in its own files.
    add_infer_metadata(copy)
    with _quiet_quantizer():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=WEIGHT_BITS == 7,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, dict(ranges)),
            nodes_to_quantize=list(only),
            nodes_to_exclude=[*keep_float, *_float_heads(model), *_float_adds(model, keep_float)],
            op_types_to_quantize=list(QUANTIZED_OPS),
            extra_options={"OpTypesToExcludeOutputQuantization": list(FLOAT_OUTPUTS)},
        )
        result = quantizer.quantize_model()
    return _like(result, model)


def _halved(model: ModelProto, *, keep_float: Sequence[str]) -> ModelProto:
    """Return a copy in half precision, except for the nodes in `keep_float`."""
    import_onnxruntime()
    with _onnxruntime_tools():
        from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(model)
    result = convert_float_to_float16(
        copy, keep_io_types=True, disable_shape_infer=True, node_block_list=list(keep_float)
    )
    _drop_round_trips(result)
    return _like(result, model)


def _drop_round_trips(model: ModelProto) -> None:
    """Remove the casts to fp16 and back that the converter puts between neighbors in fp32."""
    graph = model.graph
    producers = {node.output[0]: node for node in graph.node}
    original = {}
    for name, node in producers.items():
        halving = producers.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if halving is not None and _casts_to(halving, TensorProto.FLOAT16):
            original[name] = halving.input[0]
    for value in graph.output:
        if value.name in original:  # an fp32 node produces this output, and takes its name
            graph.node.remove(producers[value.name])
            made = original.pop(value.name)
            producers[made].output[0] = value.name
            original[made] = value.name
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = original.get(name, name)
    while unused := _unused_casts(graph):
        for node in unused:
            graph.node.remove(node)


def _unused_casts(graph: onnx.GraphProto) -> list[NodeProto]:
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    return [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(
        attribute.name == "to" and attribute.i == kind for attribute in node.attribute
    )


# -------------------------------------------------------------------------------------- choosing


def _by_sensitivity(model: ModelProto, ranges: Ranges, images: NDArray[np.uint8]) -> list[str]:
    """Return the quantizable nodes, the one that changes the logits most first."""
    reference = _logits(model, images)
    shift = {}
    for node in _quantizable(model):
        only = _quantized(model, ranges, only=[node.name, *_relus_behind(model, node)])
        shift[node.name] = float(np.abs(_logits(only, images) - reference).mean())
    return sorted(shift, key=lambda name: -shift[name])


def _quantizable(model: ModelProto) -> list[NodeProto]:
    heads = _float_heads(model)
    return [
        node for node in model.graph.node if node.op_type in WEIGHTED_OPS and node.name not in heads
    ]


def _relus_behind(model: ModelProto, node: NodeProto) -> list[str]:
    """Return the Relu that is quantized together with `node`, if there is one."""
    users = [user for user in model.graph.node if node.output[0] in user.input]
    return [user.name for user in users if user.op_type == "Relu" and len(users) == 1]


def _float_heads(model: ModelProto) -> list[str]:
    """Return products that stay float: those of two activations, as in attention, and the head.

    The head is the last product. It stays float only if its input is not quantized: quantizing it
    would cost the most accuracy.
    """
    weights = {one.name for one in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in FLOAT_OUTPUTS]
    of_activations = [node.name for node in products if weights.isdisjoint(node.input)]
    float_adds = _float_adds(model)
    means = {node.output[0] for node in model.graph.node if node.op_type == "ReduceMean"}
    quantized = {
        name
        for node in model.graph.node
        if node.op_type in QUANTIZED_OPS
        and node.name not in float_adds
        and means.isdisjoint(node.input)  # a mean that is flattened stays float
        for name in node.output
    }
    heads = [node.name for node in products[-1:] if node.input[0] not in quantized]
    return [*of_activations, *heads]


def _float_adds(model: ModelProto, keep_float: Sequence[str] = ()) -> list[str]:
    """Return the Adds with a float branch, which onnxruntime would quantize anyway.

    These include Adds of a constant: the normalization of the pixels, and a product's bias.
    """
    quantized: set[str] = set()
    float_adds: list[str] = []
    for node in model.graph.node:  # in order of computation
        if node.op_type == "Add":
            is_quantized = quantized.issuperset(node.input)
            if not is_quantized:
                float_adds.append(node.name)
        elif node.op_type in WEIGHTED_OPS:
            is_quantized = node.op_type not in FLOAT_OUTPUTS and node.name not in keep_float
        else:
            is_quantized = node.op_type in QUANTIZED_OPS and node.input[0] in quantized
        if is_quantized:
            quantized.update(node.output)
    return float_adds


def _normalization(model: ModelProto) -> Iterator[NodeProto]:
    """Yield the nodes before the first layer; a graph is topologically sorted."""
    return itertools.takewhile(lambda node: node.op_type not in WEIGHTED_OPS, model.graph.node)


def _logits(model: ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session, _ = open_session(model.SerializeToString(), device="cpu")
    return np.concatenate([_run(session, batch)[0] for batch in _batches(images)])


def _run(session: "InferenceSession", images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    try:
        outputs = session.run(None, {session.get_inputs()[0].name: images})
    except onnxruntime_errors() as error:
        raise DeviceError(
            f"the model failed on a batch of {len(images)}: {first_line(error)}; free memory on "
            "the device, or use `device=cpu`"
        ) from error
    return [np.asarray(output) for output in outputs]


# ------------------------------------------------------------------------------- in and out


def _load(source: Path) -> ModelProto:
    """Load an export and infer the shape and type of each tensor that a node outputs.

    torch's exporter records those of the weights as well, which both rewriters would mistake for
    activations.
    """
    model = onnx.load(source)
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


def _save(model: ModelProto, path: Path) -> None:
    onnx.save(model, path)
    check_onnx(path)


def _like(result: ModelProto, source: ModelProto) -> ModelProto:
    """Sort a rewritten model's nodes, and restore the card and IR version of its source."""
    with _onnxruntime_tools():
        from onnxruntime.quantization.onnx_model import ONNXModel

    ONNXModel(result).topological_sort()
    del result.graph.value_info[:]  # outdated; the types are inferred again when needed
    result.ir_version = source.ir_version
    del result.metadata_props[:]
    result.metadata_props.extend(source.metadata_props)
    return result


def _remember(
    batches: Iterable[NDArray[np.uint8]], few: list[NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the batches unchanged, and put copies of the first images into `few`."""
    missing = NUM_SENSITIVITY_IMAGES
    for images in batches:
        if missing > 0:
            few.append(images[:missing].copy())
            missing -= len(images)
        yield images


def _batches(
    images: NDArray[np.uint8], size: int = NUM_SENSITIVITY_IMAGES
) -> Iterator[NDArray[np.uint8]]:
    """Yield images in small batches, which bounds the activations' memory."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


@contextmanager
def _onnxruntime_tools() -> Iterator[None]:
    """Let onnxruntime's tools import their own modules, within the block only.

    Importing the tools leaves their folder on Python's search path, where their modules could
    shadow those of other packages.
    """
    path = list(sys.path)
    try:
        import onnxruntime.transformers

        sys.path[:] = [*path, *onnxruntime.transformers.__path__]
        yield
    finally:
        sys.path[:] = path


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Suppress the quantizer's advice.

    It is logged with `logging.warning`, which would also configure the root logger permanently.
    """
    root = logging.getLogger()
    disabled, handlers = root.manager.disable, list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
