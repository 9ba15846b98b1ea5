"""Make int8 and fp16 ONNX files from an fp32 one; nothing is verified here.

int8 is static quantization: each Conv's and Gemm's weights become int8, one scale per output
channel, and the activations between them uint8, whose ranges are the smallest and largest values
on calibration images. onnxruntime's `QDQQuantizer` rewrites the graph. Its front door,
`quantize_static`, is not used: it calibrates again for each file, in one copy of the model on
the disk after another, and writes advice to the terminal.

What was chosen by measuring, on VGG16 (pooled head) and the CNN against fp32:

- MinMax ranges. Largest logit differences on two data sets: MinMax 0.085 and 0.086, Percentile
  99.999 0.095 and 0.18, Percentile 99.9 0.98 and 0.93, Entropy 0.88 and 0.17. The few largest
  activations are what the classes are told apart by.
- Float logits. As uint8 they are cut off at the calibration images' largest: 0.59 against 0.046.
- A float head where its input is not quantized already (behind a mean): half the difference.
- uint8 activations with int8 weights, which x86's VNNI and all other processors multiply without
  saturation; int8 activations are neither nearer nor faster.
"""

import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from tltools.atomic import atomic_path
from tltools.errors import DataError, DeviceError, ParityError
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
"""What does the work, and what int8 makes faster."""
QUANTIZED_OPS = (*WEIGHTED_OPS, "Add", "Relu", "MaxPool", "AveragePool", "Reshape", "Flatten")
"""The others pass the bytes on, where what comes before them is quantized: an Add, as in a residual
block, where both of its branches are."""
FLOAT_OUTPUTS = ("Gemm", "MatMul")
"""Products whose outputs, the logits among them, stay float; only their inputs are bytes."""
FP16_LIMIT = 65504 / 2
"""Half of fp16's largest number, since other images can go beyond those that were looked at."""
PROBE_OPSET = 18
"""onnxruntime finds smallest and largest values on CUDA by this opset and by no later one. What an
export consists of means the same in it."""
NUM_SENSITIVITY_IMAGES = 8


def write_int8(
    source: Path,
    target: Path,
    calibration: Iterable[NDArray[np.uint8]],
    *,
    keep_float: Sequence[str] = (),
    device: Device = "cpu",
) -> None:
    """Quantize an fp32 export; the card, opset, inputs and outputs stay as they are.

    Args:
        source: The fp32 export.
        target: Where the int8 file goes, complete or not at all.
        calibration: Batches (n, size, size, 3), uint8, RGB, each run once. Only one is held.
        keep_float: Names of nodes that are not quantized.
        device: Where the images are run for calibration.

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
    device: Device = "cpu",
    progress: Progress = SILENT,
) -> list[str]:
    """Quantize an fp32 export, keeping as many layers in float as it takes to pass a check.

    First none, then the most sensitive one, two, four and so on are kept, in the end all. The
    images are run for calibration once, and the sensitivity is measured only if it is needed.

    Args:
        source: The fp32 export.
        target: Where the int8 file goes once it has passed, complete or not at all.
        calibration: Batches (n, size, size, 3), uint8, RGB. One and a few images are held.
        check: Raises ParityError if the int8 file at the path misses the bar.
        device: Where the images are run for calibration; sensitivity is measured on the CPU.
        progress: Told of each further try.

    Returns:
        The names of the nodes kept in float, the most sensitive first; those that stay float
        in any case are not among them.

    Raises:
        ArtifactError: If onnxruntime cannot run the source.
        DataError: If there are no calibration images.
        DeviceError: If the device cannot run it.
        ParityError: The check's last, if no choice of layers passes; there is no file then.
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
                if keep >= len(order):
                    raise
                keep = min(max(1, 2 * keep), len(order))
                progress.say(f"int8: {error}; trying with {keep} of {len(order)} layers in float")
            else:
                return order[:keep]


def sensitive_layers(
    source: Path,
    images: NDArray[np.uint8],
    *,
    calibration: Iterable[NDArray[np.uint8]] | None = None,
) -> list[str]:
    """Order the layers by how far the logits move when that layer alone is quantized.

    Args:
        source: The fp32 export.
        images: What the logits are compared on, (N, size, size, 3), uint8, RGB; each layer
            costs one forward pass over them.
        calibration: Batches of images for the activations' ranges; by default `images`.

    Returns:
        Names of the nodes that `write_int8` would quantize, the worst first.

    Raises:
        ArtifactError: If onnxruntime cannot run the source.
        DataError: If there are no images.
    """
    model = _load(source)
    batches = _batches(images) if calibration is None else calibration
    return _by_sensitivity(model, activation_ranges(model, batches), images)


def write_fp16(
    source: Path,
    target: Path,
    calibration: Iterable[NDArray[np.uint8]] | None = None,
    *,
    device: Device = "cpu",
) -> list[str]:
    """Convert an fp32 export to half precision: weights and arithmetic.

    The input stays uint8 and the output float32, and the normalization stays fp32, so that the
    images are rounded once only. onnxruntime's CPU provider computes such a file in fp32 with
    the rounded weights; an activation beyond fp16's 65504 is infinite on a GPU only, where no
    parity check on a CPU sees it. So nodes that come near it on the images stay fp32.

    Args:
        source: The fp32 export.
        target: Where the fp16 file goes, complete or not at all.
        calibration: Batches (n, size, size, 3), uint8, RGB; None: nothing is looked at.
        device: Where the images are run for calibration.

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
    kept = [
        node.name
        for node in model.graph.node
        if node.name not in normalization and not too_large.isdisjoint((*node.input, *node.output))
    ]
    with atomic_path(target) as temporary:
        _save(_halved(model, keep_float=[*normalization, *kept]), temporary)
    return kept


def activation_ranges(
    model: ModelProto, calibration: Iterable[NDArray[np.uint8]], *, device: Device = "cpu"
) -> Ranges:
    """Run images and return the smallest and largest value of each float tensor.

    The model is given outputs for them, so that only two numbers a tensor and batch leave it.

    Args:
        model: An fp32 model.
        calibration: Batches (n, size, size, 3), uint8, RGB, each run once.
        device: Where they are run; TF32 is off.

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
        if not opset.domain:
            opset.version = min(opset.version, PROBE_OPSET)
    session, _ = open_session(probe.SerializeToString(), device=device)
    del probe
    per_batch = [_run(session, images) for images in calibration]
    if not per_batch:
        raise DataError("there are no images to calibrate on; --calibration-images needs some")
    both = np.array(per_batch, dtype=np.float32)
    lowest, highest = both[:, : len(floats)].min(0), both[:, len(floats) :].max(0)
    return dict(zip(floats, zip(lowest, highest, strict=True), strict=True))


# ------------------------------------------------------------------------------------ rewriting


def _quantized(
    model: ModelProto, ranges: Ranges, *, keep_float: Sequence[str] = (), only: Sequence[str] = ()
) -> ModelProto:
    """Return a copy with int8 weights and uint8 activations; `only`: of these nodes alone."""
    import_onnxruntime()
    with _onnxruntime_tools():
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData
        from onnxruntime.quantization.quant_utils import add_infer_metadata

    copy = ModelProto()
    copy.CopyFrom(model)
    # Says that shapes are inferred, or onnxruntime would do it again in files of its own.
    add_infer_metadata(copy)
    with _quiet_quantizer():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
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
    """Return a copy in half precision, apart from `keep_float`."""
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
    """Connect neighbors in fp32 directly: the converter casts between them to fp16 and back."""
    graph = model.graph
    producers = {node.output[0]: node for node in graph.node}
    original = {}
    for name, node in producers.items():
        halving = producers.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if halving is not None and _casts_to(halving, TensorProto.FLOAT16):
            original[name] = halving.input[0]
    for value in graph.output:
        if value.name in original:  # a node in fp32 makes an output, and takes its name
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
    """Return the quantizable nodes, the one whose quantization moves the logits most first."""
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
    """Return the Relu that is quantized as one with `node`, if there is one."""
    users = [user for user in model.graph.node if node.output[0] in user.input]
    return [user.name for user in users if user.op_type == "Relu" and len(users) == 1]


def _float_heads(model: ModelProto) -> list[str]:
    """Return products whose input no quantized operator makes: making bytes of it costs most."""
    float_adds = _float_adds(model)
    quantized = {
        name
        for node in model.graph.node
        if node.op_type in QUANTIZED_OPS and node.name not in float_adds
        for name in node.output
    }
    return [
        node.name
        for node in model.graph.node
        if node.op_type in FLOAT_OUTPUTS and node.input[0] not in quantized
    ]


def _float_adds(model: ModelProto, keep_float: Sequence[str] = ()) -> list[str]:
    """Return the sums of which a branch stays float: onnxruntime would quantize each of them.

    Among them are those with a constant: the normalization of the pixels, and a product's bias.
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
    """Yield the nodes before the first layer; a graph is in order of computation."""
    return itertools.takewhile(lambda node: node.op_type not in WEIGHTED_OPS, model.graph.node)


def _logits(model: ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session, _ = open_session(model.SerializeToString(), device="cpu")
    return np.concatenate([_run(session, batch)[0] for batch in _batches(images)])


def _run(session: "InferenceSession", images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    try:
        outputs = session.run(None, {session.get_inputs()[0].name: images})
    except onnxruntime_errors() as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"the model failed on {len(images)} images: {reason}; free some of the device's "
            "memory, or choose --device cpu"
        ) from error
    return [np.asarray(output) for output in outputs]


# ------------------------------------------------------------------------------- in and out


def _load(source: Path) -> ModelProto:
    """Load an export and infer the shape and type of each tensor that a node makes.

    torch's exporter notes those of the weights as well; both rewriters take them for activations.
    """
    model = onnx.load(source)
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


def _save(model: ModelProto, path: Path) -> None:
    onnx.save(model, path)
    check_onnx(path)


def _like(result: ModelProto, source: ModelProto) -> ModelProto:
    """Give a rewritten model its source's card and IR version back, and its nodes an order."""
    with _onnxruntime_tools():
        from onnxruntime.quantization.onnx_model import ONNXModel

    ONNXModel(result).topological_sort()
    del result.graph.value_info[:]  # of before; whoever needs the types infers them again
    result.ir_version = source.ir_version
    del result.metadata_props[:]
    result.metadata_props.extend(source.metadata_props)
    return result


def _remember(
    batches: Iterable[NDArray[np.uint8]], few: list[NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """Pass batches on, and put copies of the first images into `few`."""
    missing = NUM_SENSITIVITY_IMAGES
    for images in batches:
        if missing > 0:
            few.append(images[:missing].copy())
            missing -= len(images)
        yield images


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield images in batches of a few, which bounds the activations' memory."""
    for start in range(0, len(images), NUM_SENSITIVITY_IMAGES):
        yield images[start : start + NUM_SENSITIVITY_IMAGES]


@contextmanager
def _onnxruntime_tools() -> Iterator[None]:
    """Let onnxruntime's tools find their own modules, and nobody else.

    Importing them puts their folder on Python's search path for good, where a module of theirs
    could take the place of somebody else's.
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
    """Keep the quantizer's advice from the terminal.

    It goes through `logging.warning`, which would also set the root logger up for good.
    """
    root = logging.getLogger()
    disabled, handlers = root.manager.disable, list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
