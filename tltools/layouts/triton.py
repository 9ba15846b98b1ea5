"""A model repository for NVIDIA's Triton Inference Server.

The configuration is written as text, and not by way of Triton's protobuf classes: it is a page of
fixed fields, and the package that has the classes would be there for nothing else. A test parses it
with these classes.
"""

from collections.abc import Sequence
from pathlib import Path

from tltools.card import Card
from tltools.errors import ArtifactError
from tltools.runtime.formats.onnx import read_signature
from tltools.runtime.onnx_reader import TensorType
from tltools.runtime.predictor import OUTPUT, PROBABILITIES

MAX_BATCH = 32
"""As many as `classify` gives a GPU."""
PREFERRED_BATCHES = (8, MAX_BATCH)
"""Few, since a GPU's libraries look for the best kernels once for each size that occurs."""
MAX_QUEUE_DELAY_US = 2000
"""How long Triton holds a request back for others, in microseconds."""
LABELS = "labels.txt"
TYPES = {"uint8": "TYPE_UINT8", "float": "TYPE_FP32"}
"""Triton's names of the element types that exports have at their ends."""


def triton_files(export: Path, card: Card, name: str) -> dict[str, str | Path]:
    """Return a model's folder in a repository: configuration, labels, and the export as version 1.

    Args:
        export: The ONNX export.
        card: Its card.
        name: Of the model, which is that of its folder too.

    Raises:
        ArtifactError: If a class has a name that takes no line, or more than one, of the labels.
    """
    inputs, outputs = read_signature(export)
    return {
        "config.pbtxt": _config(name, card, inputs, outputs),
        LABELS: labels_text(card.classes),
        "1/model.onnx": export,
    }


def labels_text(classes: Sequence[str]) -> str:
    r"""Return the classes' names, one a line, as Triton reads them.

    A name with a line break in it is refused and not escaped: every label behind it would move, and
    a client that compares labels with the card's classes would not know an escaped one.

    Raises:
        ArtifactError: If a name is empty or holds a line break, of the kinds that Python and
            Unicode know; Triton knows `\n` alone, but its clients read the file too.
    """
    for name in classes:
        if name.splitlines() != [name]:
            raise ArtifactError(
                f"class {name!r} is empty or holds a line break, and Triton's {LABELS} has a line "
                "for each class: rename the class in the data and train again (the docker layout "
                "takes any name)"
            )
    return "".join(f"{name}\n" for name in classes)


def _config(
    name: str, card: Card, inputs: Sequence[TensorType], outputs: Sequence[TensorType]
) -> str:
    """Return a ModelConfig in protobuf's text format.

    The names in it need no escapes: a run's has no quotes, backslashes and control characters,
    which its card would not have passed with, and the graph's are tltools' own.
    """
    rules = card.preprocessing
    how = {
        "squash": f"scaled to {rules.size} x {rules.size}, whatever their proportions",
        "crop": f"scaled and cropped to the central {rules.size} x {rules.size}",
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

# A place to start from: Triton's perf_analyzer says what suits a machine.
dynamic_batching {{
  preferred_batch_size: [ {preferred} ]
  max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US}
}}

# Triton decides on instances: one on each GPU, or one on the CPU. Other numbers, for instance:
# instance_group [ {{ kind: KIND_CPU count: 2 }} ]
"""


def _tensors(tensors: Sequence[TensorType], labeled: str = "") -> str:
    return ",\n".join(_tensor(one, labels=one.name == labeled) for one in tensors)


def _tensor(tensor: TensorType, *, labels: bool) -> str:
    """Return an input or output; the batch is Triton's business and not among the dims."""
    dims = ", ".join(str(size) for size in tensor.shape[1:])
    lines = [
        f'name: "{tensor.name}"',
        f"data_type: {TYPES[tensor.element]}",
        f"dims: [ {dims} ]",
        *([f'label_filename: "{LABELS}"'] if labels else []),
    ]
    return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"
