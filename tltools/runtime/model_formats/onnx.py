"""Read and open ONNX files with onnxruntime, without PyTorch.

A file is inspected before onnxruntime opens it, and rejected if it is not what tltools writes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tltools.card import CARD_KEY, MAX_CARD_BYTES, Card, card_from_json
from tltools.errors import ArtifactError, cause_of
from tltools.runtime import checksum
from tltools.runtime.device import (
    CUDA_PROVIDER,
    Device,
    default_threads,
    onnxruntime_errors,
    open_session,
    placement,
)
from tltools.runtime.model_formats.shared import (
    ExportMemory,
    check_distances,
    check_images,
    check_is_file,
    check_logits,
    failed_run,
    no_card,
    no_output,
    not_a,
    refused,
)
from tltools.runtime.onnx_reader import (
    OnnxFile,
    TensorType,
    UnsafeOnnxError,
    read_onnx,
    signature_problem,
)
from tltools.runtime.predictor import DISTANCE, INPUT, OUTPUT, PROBABILITIES, REMEDY, Layout


class OnnxPredictor(ExportMemory):
    """An ONNX export in onnxruntime."""

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        tf32: bool = False,
        gpu: int | None = None,
        nhwc: bool = False,
    ) -> None:
        """Open `path`; the arguments and errors are those of `tltools.runtime.load_predictor`."""
        self.card = read_card(path)  # before onnxruntime sees the file
        self._session, self.choice = open_session(
            path, device=device, threads=threads, tf32=tf32, gpu=gpu, nhwc=nhwc
        )
        self.device: str = self.choice.device
        self.provider: str = self._session.get_providers()[0]
        self.layout: Layout = "nhwc" if nhwc and self.provider == CUDA_PROVIDER else "nchw"
        self.tf32 = tf32
        self.placement = placement(self._session)
        self.threads = threads or default_threads()
        self._errors = onnxruntime_errors()
        self._path = path
        self.path = path
        """The export."""
        self.opened_with: Device = device
        """The requested device."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C)."""
        if not self.gives_distances:
            return self._logits(images, OUTPUT)
        logits, distances = self._run(images, OUTPUT, DISTANCE)
        return np.column_stack(
            (
                check_logits(logits, len(images), self.card, self._path),
                check_distances(distances, len(images), self._path),
            )
        )

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the graph's own probabilities, float32 (N, C), for images, uint8 (N, H, W, 3).

        Raises:
            ArtifactError: If the graph has no such output, as in older exports.
        """
        self._check_output(PROBABILITIES)
        return self._logits(images, PROBABILITIES)

    def distances(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the distances from the training images, float32 (N,), of images.

        Raises:
            ArtifactError: If the graph has no such output, as in older exports.
        """
        self._check_output(DISTANCE)
        return check_distances(self._run(images, DISTANCE)[0], len(images), self._path)

    def _check_output(self, name: str) -> None:
        if name not in [value.name for value in self._session.get_outputs()]:
            raise no_output(self._path, name)

    def _logits(self, images: NDArray[np.uint8], output: str) -> NDArray[np.float32]:
        (values,) = self._run(images, output)
        return check_logits(values, len(images), self.card, self._path)

    def _run(self, images: NDArray[np.uint8], *outputs: str) -> "list[NDArray[np.float32]]":
        """Run the model in place: onnxruntime wraps a contiguous array without a copy.

        On a GPU, `run` queues the copy on this call's own stream, without holding the GIL; from
        page-locked memory the GPU copies by itself while other calls compute. An I/O binding
        would copy when the input is bound, while holding the GIL.
        """
        check_images(images, self.card.preprocessing.size)
        try:
            found = self._session.run(outputs, {INPUT: images})
        except self._errors as error:
            raise failed_run(len(images), error) from error
        return cast("list[NDArray[np.float32]]", found)


def read_card(path: Path) -> Card:
    """Read the card, and check that the file is safe to open and matches it; see `Reader`."""
    check_is_file(path)
    try:
        found = read_onnx(path, key=CARD_KEY, max_entry_bytes=MAX_CARD_BYTES)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {cause_of(error)}") from error
    except UnsafeOnnxError as error:
        raise refused(path, error) from error
    except ValueError as error:
        raise not_a(path, "ONNX", error) from error
    if found.entry is None:
        raise no_card(path)
    card = card_from_json(found.entry, where=str(path))
    problem = _signature_problem(found, card)
    if problem:
        raise ArtifactError(f"{path}: {problem}; {REMEDY}")
    return card


def _signature_problem(found: OnnxFile, card: Card) -> str | None:
    size, num_classes = card.preprocessing.size, len(card.classes)
    return signature_problem(
        found,
        wanted_input=TensorType(INPUT, "uint8", (None, size, size, 3)),
        wanted_output=TensorType(OUTPUT, "float", (None, num_classes)),
        further_outputs=(
            (TensorType(PROBABILITIES, "float", (None, num_classes)),),
            # That of older exports has only the batch axis.
            (TensorType(DISTANCE, "float", (None, 1)), TensorType(DISTANCE, "float", (None,))),
        ),
    )


open_export = OnnxPredictor
"""Implements `Reader.open_export`."""


def is_as_written(path: Path) -> bool:
    """Return whether the bytes match their checksum, if the file has one; see `Reader`."""
    check_is_file(path)
    return checksum.is_as_written(path)


def read_signature(path: Path) -> tuple[Sequence[TensorType], Sequence[TensorType]]:
    """Return the inputs and the outputs of an ONNX export that `read_card` has accepted."""
    found = read_onnx(path, key=CARD_KEY, max_entry_bytes=MAX_CARD_BYTES)
    return found.inputs, found.outputs
