"""Open an export of any format, and check that it gives the same results as where it was made."""

from pathlib import Path

from tltools.card import Card, Distances
from tltools.errors import ArtifactError, cause_of
from tltools.runtime.device import Device, check_tf32
from tltools.runtime.model_formats import Reader, format_of
from tltools.runtime.predictor import DISTANCE, REMEDY, ExportPredictor
from tltools.runtime.selftest import replay


def load_predictor(
    path: Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    tf32: bool = False,
    gpu: int | None = None,
    nhwc: bool = False,
    self_test: bool = True,
    distances: bool = False,
) -> ExportPredictor:
    """Open an export; its suffix decides the format.

    An ONNX file is inspected before onnxruntime opens it, and rejected if it is not what tltools
    writes. A format that is code (`ModelFormat.is_code`) runs the code in the file.

    Args:
        path: The file.
        device: Device to run on; `auto` uses CUDA if it works.
        threads: Cores for one forward pass on the CPU; None for all available to this process.
        tf32: Let CUDA round fp32 products to TF32: faster, with an error of about 1e-3 in the
            logits.
        gpu: Index of the GPU, one of `chosen_gpus(device)`; overrides the one in `device`.
        nhwc: Let ONNX on CUDA compute in channels-last layout, which is faster for some models; no
            effect elsewhere (see `layout`).
        self_test: Check the file's checksum, and compare with PyTorch's logits stored in the file,
            if it has any. Off in the exporter and in the workers of a program that has done this.
        distances: Return the distances from the training images in a last column of each call.

    Raises:
        ArtifactError: If the file is missing, is not an export, has no card or contradicts it, or
            lacks distances that are wanted.
        ConfigError: If `device` is not a device.
        DeviceError: If the requested device cannot run the model, or does not support TF32.
        ParityError: If the model gives other results here than where it was made.
    """
    reader = format_of(path).load_reader()
    if self_test:
        _check_as_written(path, reader)  # before a runtime stumbles over it
    predictor = reader.open_export(
        path, device=device, threads=threads, tf32=tf32, gpu=gpu, nhwc=nhwc
    )
    if tf32:
        check_tf32(predictor.choice)
    if self_test:
        _check_is_export(path, predictor.card)
        replay(predictor, path, tf32=tf32)
    predictor.gives_distances = distances and distances_of(predictor.card) is not None
    return predictor


def gives_distances(card: Card) -> bool:
    """Return whether an export gives distances that are those of the trained model."""
    try:
        distances_of(card)
    except ArtifactError:
        return False
    return True


def distances_of(card: Card) -> Distances:
    """Return what an export knows of the distances that it gives.

    Raises:
        ArtifactError: If it gives none, or they differ too much from those of the trained model.
    """
    export = card.export
    found = export and export.distances
    if export is None or found is None:
        raise ArtifactError(
            f"this export of {card.run} has no output {DISTANCE!r}, which `unknown=` needs; export "
            "the run again, or leave out `unknown=`"
        )
    if found.max_diff is not None and found.rtol is not None and found.max_diff > found.rtol:
        raise ArtifactError(
            f"the distances of this {export.precision} export of {card.run} differ from the "
            f"trained model's by up to {found.max_diff:.1%}, more than {found.rtol:.1%}; use an "
            "export with `precision=fp32`, or leave out `unknown=`"
        )
    return found


def read_card(path: Path) -> Card:
    """Read the card of an export, and check that the file is one, without running any of it.

    Raises:
        ArtifactError: If the file is missing, is not an export, or has no valid card.
    """
    card = format_of(path).load_reader().read_card(path)
    _check_is_export(path, card)
    return card


def _check_as_written(path: Path, reader: Reader) -> None:
    try:
        if reader.is_as_written(path):
            return
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {cause_of(error)}") from error
    raise ArtifactError(
        f"{path} has changed since tltools export wrote it: its checksum differs; copy it again, "
        "or export it again"
    )


def _check_is_export(path: Path, card: Card) -> None:
    if card.export is None:
        raise ArtifactError(f"{path} has the card of a run: it is an unfinished export; {REMEDY}")
