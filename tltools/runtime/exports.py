"""Open an export of any format, and see that it answers here as it did where it was made."""

from pathlib import Path

from tltools.card import Card
from tltools.errors import ArtifactError
from tltools.runtime.device import Device, check_tf32
from tltools.runtime.formats import format_of
from tltools.runtime.predictor import REMEDY, ExportPredictor
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
) -> ExportPredictor:
    """Open an export in the format that its suffix stands for.

    An ONNX file is looked into before onnxruntime opens it, and refused if it is not what tltools
    writes. A format that is code (`ModelFormat.is_code`) runs what the file's maker put into it.

    Args:
        path: The file.
        device: Where to run; `auto` takes CUDA where it works.
        threads: Cores for one forward pass on the CPU; None for all of this process's.
        tf32: Let CUDA round fp32 products to TF32: faster, about 1e-3 off in the logits.
        gpu: Index of the GPU, in place of the one in `device`: one of `chosen_gpus(device)`.
        nhwc: Let ONNX on CUDA compute with the channels last, which is faster for some models;
            without effect elsewhere, as `layout` tells.
        self_test: Compare with the answers in the file that its maker got from PyTorch, where it
            has some. Only who is making the file does without.

    Raises:
        ArtifactError: If the file is missing, is not an export, lacks its card or contradicts it.
        ConfigError: If `device` is not a device.
        DeviceError: If a device is asked for that cannot run the model, or TF32 on one that does
            not know it.
        ParityError: If the model answers otherwise here than where it was made.
    """
    reader = format_of(path).load_reader()
    predictor = reader.open_export(
        path, device=device, threads=threads, tf32=tf32, gpu=gpu, nhwc=nhwc
    )
    if tf32:
        check_tf32(predictor.choice)
    if self_test:
        _check_is_export(path, predictor.card)
        replay(predictor, path, tf32=tf32)
    return predictor


def read_card(path: Path) -> Card:
    """Read the card of an export, and see that the file is one, without running any of it.

    Raises:
        ArtifactError: If the file is missing, is not an export, or has no valid card.
    """
    card = format_of(path).load_reader().read_card(path)
    _check_is_export(path, card)
    return card


def _check_is_export(path: Path, card: Card) -> None:
    if card.export is None:
        raise ArtifactError(f"{path} has the card of a run, so it is no finished export; {REMEDY}")
