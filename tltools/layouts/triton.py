"""Create a model repository for NVIDIA's Triton Inference Server.

The configuration is written as text rather than with Triton's protobuf classes: it is a page of
fixed fields, and the package with the classes would be needed for nothing else. A test parses it
with these classes.
"""

from collections.abc import Sequence
from pathlib import Path

from tltools.card import Card
from tltools.errors import ArtifactError
from tltools.runtime.model_formats.onnx import read_signature
from tltools.runtime.onnx_reader import TensorType
from tltools.runtime.predictor import OUTPUT, PROBABILITIES

MAX_BATCH = 32
"""Maximum batch size, the same as that of `classify` on a GPU."""
PREFERRED_BATCHES = (8, MAX_BATCH)
"""Few sizes, because a GPU's libraries search for the best kernels once per batch size."""
MAX_QUEUE_DELAY_US = 2000
"""Longest time that Triton delays a request to form a batch, in microseconds."""
LABELS = "labels.txt"
TYPES = {"uint8": "TYPE_UINT8", "float": "TYPE_FP32"}
"""Triton's names for the element types of an export's inputs and outputs."""


def triton_files(export: Path, card: Card, name: str) -> dict[str, str | Path]:
    """Return a model's folder in a repository: configuration, labels, and the export as version 1.

    Args:
        export: The ONNX export.
        card: Its card.
        name: Name of the model and of its folder.

    Raises:
        ArtifactError: If a class name is not exactly one line of text.
    """
    inputs, outputs = read_signature(export)
    return {
        "config.pbtxt": _config(name, card, inputs, outputs),
        LABELS: labels_text(card.classes),
        "1/model.onnx": export,
    }


def labels_text(classes: Sequence[str]) -> str:
    r"""Return the class names, one per line, as Triton reads them.

    A name with a line break is rejected: unescaped, it would shift every label after it; escaped,
    it would no longer equal the card's class name, with which clients compare it.

    Raises:
        ArtifactError: If a name is empty or contains any line break known to Python and Unicode;
            Triton splits only at `\n`, but its clients read the file too.
    """
    for name in classes:
        if name.splitlines() != [name]:
            raise ArtifactError(
                f"class {name!r} is empty or contains a line break, but Triton's {LABELS} needs a "
                "line per class: rename the class in the data and train again (the docker layout "
                "supports any name)"
            )
    return "".join(f"{name}\n" for name in classes)


def _config(
    name: str, card: Card, inputs: Sequence[TensorType], outputs: Sequence[TensorType]
) -> str:
    """Return a ModelConfig in protobuf's text format.

    The names need no escaping: a valid card's run name has no quotes, backslashes or control
    characters, and the names in the graph are tltools' own.
    """
    rules = card.preprocessing
    how = {
        "squash": f"resized to {rules.size} x {rules.size}, ignoring the aspect ratio",
        "crop": f"resized and cropped to the central {rules.size} x {rules.size}",
    }[rules.resize]
    labeled = PROBABILITIES if PROBABILITIES in [one.name for one in outputs] else OUTPUT
    preferred = ", ".join(map(str, PREFERRED_BATCHES))
    return f"""\
# ModelConfig of NVIDIA's Triton Inference Server, by tltools export.
name: "{name}"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}

# Decoded images: RGB bytes, {how}.
# Normalization is in the model.
input [
{_tensors(inputs)}
]
output [
{_tensors(outputs, labeled)}
]

# A starting point: use Triton's perf_analyzer to tune it for your machine.
dynamic_batching {{
  preferred_batch_size: [ {preferred} ]
  max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US}
}}

# Triton's default is one instance per GPU, or one on the CPU. To change it, for example:
# instance_group [ {{ kind: KIND_CPU count: 2 }} ]
"""


def _tensors(tensors: Sequence[TensorType], labeled: str = "") -> str:
    return ",\n".join(_tensor(one, labels=one.name == labeled) for one in tensors)


def _tensor(tensor: TensorType, *, labels: bool) -> str:
    """Return an input or output; Triton adds the batch dimension itself.

    Triton requires dims: a tensor that has only the batch dimension, as the distance of older
    exports, gets one of 1.
    """
    dims = ", ".join(str(size) for size in tensor.shape[1:])
    lines = [
        f'name: "{tensor.name}"',
        f"data_type: {TYPES[tensor.element]}",
        *([f"dims: [ {dims} ]"] if dims else ["dims: [ 1 ]", "reshape { shape: [ ] }"]),
        *([f'label_filename: "{LABELS}"'] if labels else []),
    ]
    return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"
