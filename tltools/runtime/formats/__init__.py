"""The formats of exports: the facts of each, and where its reader and its writer are.

A new format is a module beside this one, with a `Reader` and a `Writer`, and an entry in `FORMATS`.
The facts are here, and both are loaded when they are needed, so that the command line can name the
formats without importing anything heavy, and `classify` can open ONNX where PyTorch is missing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tltools.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from tltools.card import Calibration, Card, Precision
    from tltools.progress import Progress
    from tltools.runtime.device import Device
    from tltools.runtime.predictor import ExportPredictor


class Reader(Protocol):
    """Opens the files of one format; a module with these functions is one."""

    def read_card(self, path: Path) -> "Card":
        """Read the card, and see that the file is one of this format, without running any of it.

        Raises:
            ArtifactError: If the file is missing, damaged, of another format, or has no valid card.
        """
        ...

    def open_export(
        self,
        path: Path,
        *,
        device: "Device" = "auto",
        threads: int | None = None,
        tf32: bool = False,
        gpu: int | None = None,
        nhwc: bool = False,
    ) -> "ExportPredictor":
        """Open a file; the arguments and errors are those of `tltools.runtime.load_predictor`."""
        ...


class Trained(Protocol):
    """A trained model on its way into files, as writers get it."""

    card: "Card"
    """The run's, which a file has until it is sealed."""
    device: "Device"
    """Where images are run to find the ranges of activations."""
    progress: "Progress"

    def module(self, precision: "Precision") -> "torch.nn.Module":
        """Return the model in fp32 on the CPU, or in fp16 where it is verified.

        It maps images, uint8 (N, size, size, 3), to logits, float32 (N, C).
        """
        ...

    def example(self, precision: "Precision") -> "torch.Tensor":
        """Return images, uint8 (2, size, size, 3), where `module` has its weights."""
        ...

    def calibration(self) -> "Iterator[NDArray[np.uint8]]":
        """Yield images of the training split in batches, uint8 (n, size, size, 3)."""
        ...

    def describe_calibration(self) -> "Calibration":
        """Return what the card says of `calibration`."""
        ...

    def once(self, name: str, write: Callable[[Path], object]) -> Path:
        """Return a scratch file of this name, which is written once for all files of the model."""
        ...


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the card says of how a file was written."""

    opset: int | None = None
    """Of ONNX."""
    calibration: "Calibration | None" = None
    float_layers: tuple[str, ...] = ()
    """Nodes that stay in fp32 in a file of another precision."""


class Writer(Protocol):
    """Writes the files of one format; a module with these functions is one."""

    def write(
        self,
        trained: Trained,
        precision: "Precision",
        path: Path,
        check: Callable[[Path], object],
    ) -> Written:
        """Write a file with the run's card, and have it checked.

        Args:
            trained: The model.
            precision: One of the format's.
            path: Where the file goes.
            check: Compares the file with PyTorch; to be called with `path` at least once, and after
                the last change of it. It raises ParityError if the file misses its bar; a writer
                that has another way then tries it.

        Raises:
            ArtifactError: If the file came out malformed.
            ParityError: If no way passes the check.
        """
        ...

    def seal(self, path: Path, card: "Card") -> None:
        """Put the second output and the export's card into a file; `logits` stay as they are.

        The second output, `probabilities`, float32 (N, C), is softmax(logits / card.temperature).

        Raises:
            ArtifactError: If the file is malformed with it.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ModelFormat:
    """What there is to know of a format, with its reader and its writer."""

    name: str
    """What options and cards call it."""
    title: str
    """What sentences call it."""
    suffix: str
    """Of its files' names, in lower case, with the dot."""
    precisions: "tuple[Precision, ...]"
    gpu_precisions: "tuple[Precision, ...]" = ()
    """Those that CPUs are too slow for, so that a file is verified on a GPU alone."""
    is_code: bool
    """Whether opening a file runs what its maker put into it."""
    needs_torch: bool
    """Whether it runs in PyTorch, which takes seconds and 650 MB to import."""
    load_reader: Callable[[], Reader]
    load_writer: Callable[[], Writer]

    def is_for_gpus(self, precision: "Precision") -> bool:
        """Tell whether CPUs are too slow for a file of this precision."""
        return precision in self.gpu_precisions


def _module(name: str) -> Callable[[], Any]:
    """Return what imports a module with a reader's or a writer's functions, when it is called."""
    return lambda: import_module(name)


ONNX = ModelFormat(
    name="onnx",
    title="ONNX",
    suffix=".onnx",
    precisions=("fp32", "fp16", "int8"),
    is_code=False,
    needs_torch=False,
    load_reader=_module("tltools.runtime.formats.onnx"),
    # Beside the graphs that it rewrites: it is the only one whose reader does without PyTorch.
    load_writer=_module("tltools.export.onnx_writer"),
)
TORCHSCRIPT = ModelFormat(
    name="torchscript",
    title="TorchScript",
    suffix=".pt",
    precisions=("fp32", "fp16"),
    gpu_precisions=("fp16",),
    is_code=True,
    needs_torch=True,
    load_reader=_module("tltools.runtime.formats.torchscript"),
    load_writer=_module("tltools.runtime.formats.torchscript"),
)
FORMATS: dict[str, ModelFormat] = {one.name: one for one in (ONNX, TORCHSCRIPT)}
"""By name. Of exports that are as good and as fast, those of an earlier format are preferred."""


def format_named(name: str) -> ModelFormat:
    """Return the format of this name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in FORMATS:
        raise ConfigError(f"there is no model format {name!r}: choose from {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(path: Path) -> ModelFormat:
    """Return the format that a file's suffix stands for.

    Raises:
        ArtifactError: If it stands for none.
    """
    for one in FORMATS.values():
        if path.suffix.lower() == one.suffix:
            return one
    raise ArtifactError(
        f"{path} is no export: its name ends in {path.suffix or 'nothing'!r}, exports end in "
        f"{suffixes(' or ')}"
    )


def is_export_name(path: Path) -> bool:
    """Tell whether a path has the suffix of some format."""
    return any(path.suffix.lower() == one.suffix for one in FORMATS.values())


def suffixes(separator: str = ", ") -> str:
    """Return the suffixes of all formats for sentences, as `.onnx, .pt`."""
    return separator.join(one.suffix for one in FORMATS.values())
