"""Write a model as ONNX: in fp32 from PyTorch, in other precisions by converting that file."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from tltools.card import CARD_KEY, Card, Precision
from tltools.distance import Distance
from tltools.graphs.distance_nodes import add_distance
from tltools.graphs.onnx_file import check_onnx, write_module
from tltools.graphs.precision import quantize_until, write_fp16
from tltools.runtime.checksum import add_checksum
from tltools.runtime.model_formats import Trained, Written
from tltools.runtime.predictor import OUTPUT, PROBABILITIES


def write(
    trained: Trained, precision: Precision, path: Path, check: Callable[[Path], object]
) -> Written:
    """Write a file and check it; see `tltools.runtime.model_formats.Writer`.

    If an int8 file fails its check, it is written again with more layers in fp32.
    """
    source = trained.once("fp32.onnx", partial(write_fp32, trained))
    if precision == "fp32":
        shutil.copyfile(source, path)
        check(path)
        return Written(opset=trained.opset)
    if precision == "fp16":
        images = trained.calibration("Checking fp16 for overflow")
        kept = write_fp16(source, path, images, device=trained.device)
        check(path)
        return Written(opset=trained.opset, float_layers=tuple(kept))
    kept = quantize_until(
        source,
        path,
        trained.calibration(),
        check,
        device=trained.device,
        progress=trained.progress,
    )
    return Written(
        opset=trained.opset,
        calibration=trained.describe_calibration(),
        float_layers=tuple(kept),
    )


def write_fp32(trained: Trained, path: Path) -> None:
    """Export a model to a single ONNX file with a symbolic batch axis.

    Raises:
        ArtifactError: As for `write_module`.
    """
    write_module(
        trained.module("fp32"),
        path,
        size=trained.card.preprocessing.size,
        output=OUTPUT,
        metadata={CARD_KEY: trained.card.to_json()},
        opset=trained.opset,
    )


def seal(path: Path, card: Card, distance: Distance | None) -> None:
    """Append the nodes for the other outputs, replace the card and add a checksum; see `Writer`.

    Raises:
        ArtifactError: If the graph has no head, or the file is malformed.
    """
    model = onnx.load(path)
    (logits,) = model.graph.output
    name = "temperature"
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array(card.temperature, np.float32), name)
    )
    softmax = onnx.helper.make_node(
        "Softmax", ["scaled_logits"], [PROBABILITIES], PROBABILITIES, axis=1
    )
    model.graph.node.extend(
        [onnx.helper.make_node("Div", [logits.name, name], ["scaled_logits"], name), softmax]
    )
    probabilities = model.graph.output.add()
    probabilities.CopyFrom(logits)
    probabilities.name = PROBABILITIES
    if distance is not None:
        add_distance(model.graph, distance)
    kept = {item.key: item.value for item in model.metadata_props}
    onnx.helper.set_model_props(model, kept | {CARD_KEY: card.to_json()})
    onnx.save(model, path)
    add_checksum(path)
    check_onnx(path)
