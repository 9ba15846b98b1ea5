"""The formats of exports: the facts of each, and how to load its reader and its writer.

To add a format, write a module beside this one with a `Reader` and a `Writer`, and add an entry to
`FORMATS`. Readers and writers are loaded on demand, so that the command line can list the formats
without importing anything heavy, and `classify` can open ONNX without PyTorch.
"""

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tltools.data.folders import RUN_DIR, content, is_run, runs_in, say_runs
from tltools.errors import ArtifactError, ConfigError
from tltools.wording import did_you_mean, either, similar_paths

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from tltools.card import Calibration, Card, Precision
    from tltools.distance import Distance
    from tltools.progress import Progress
    from tltools.runtime.device import Device
    from tltools.runtime.predictor import ExportPredictor

EXPORT_DIR = Path("exports")
"""Where `export` writes unless told otherwise, and where other commands look."""
OPSETS = range(17, 27)
"""Opsets of ONNX files: what torch's exporter or onnx's converter writes, and onnxruntime runs."""
OPSET = 20
"""The default, which torch's exporter writes without conversion; onnxruntime reads it since
1.17."""


class Reader(Protocol):
    """Opens the files of one format; a module with these functions qualifies."""

    def read_card(self, path: Path) -> "Card":
        """Read the card, and check that the file has this format, without running any of it.

        Raises:
            ArtifactError: If the file is missing, corrupt, in another format, or has no valid card.
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

    def is_as_written(self, path: Path) -> bool:
        """Return whether the bytes of a file match its checksums, if it has any.

        Raises:
            ArtifactError: If the file is missing or is in another format.
            OSError: If the file cannot be read.
        """
        ...


class Trained(Protocol):
    """A trained model to be written to files, as writers get it."""

    card: "Card"
    """The run's card, which a file has until it is sealed."""
    device: "Device"
    """Device for the forward passes that find the ranges of activations."""
    progress: "Progress"
    opset: int
    """Opset of ONNX files, one of `OPSETS`."""

    def module(self, precision: "Precision", *, features: bool = False) -> "torch.nn.Module":
        """Return the model, in fp32 on the CPU or in fp16 on the device that verifies it.

        It maps images, uint8 (N, size, size, 3), to logits, float32 (N, C); with `features`, to a
        tuple of these and the features that the head takes, (N, F).
        """
        ...

    def example(self, precision: "Precision") -> "torch.Tensor":
        """Return images, uint8 (2, size, size, 3), on the device of the weights of `module`."""
        ...

    def calibration(self, title: str = ...) -> "Iterator[NDArray[np.uint8]]":
        """Yield images of the training split in batches, uint8 (n, size, size, 3).

        Args:
            title: What they are for, which their progress bar says; by default for int8.
        """
        ...

    def describe_calibration(self) -> "Calibration":
        """Return the card's description of `calibration`."""
        ...

    def once(self, name: str, write: Callable[[Path], object]) -> Path:
        """Return a temporary file of this name, written once for all files of the model."""
        ...


class Written(NamedTuple):
    """How a file was written, as recorded in its card."""

    opset: int | None = None
    """ONNX opset."""
    calibration: "Calibration | None" = None
    float_layers: tuple[str, ...] = ()
    """Nodes that stay in fp32 in a file of another precision."""


class Writer(Protocol):
    """Writes the files of one format; a module with these functions qualifies."""

    def write(
        self,
        trained: Trained,
        precision: "Precision",
        path: Path,
        check: Callable[[Path], object],
    ) -> Written:
        """Write a file with the run's card, and check it.

        Args:
            trained: The model.
            precision: One of the format's precisions.
            path: Path of the file.
            check: Compares the file with PyTorch; must be called with `path` after the last change
                to the file. It raises ParityError if the file misses its tolerance; a writer
                with an alternative then tries it.

        Raises:
            ArtifactError: If the written file is malformed.
            ParityError: If no alternative passes the check.
        """
        ...

    def seal(self, path: Path, card: "Card", distance: "Distance | None") -> None:
        """Add the further outputs and the export's card to a file; `logits` stay unchanged.

        The second output, `probabilities`, float32 (N, C), is softmax(logits / card.temperature).
        The third one, `distance`, float32 (N, 1), is computed in fp32 from the features that the
        head takes.

        Args:
            path: A file that `write` has written.
            card: The export's card.
            distance: Computes the third output; None leaves it out.

        Raises:
            ArtifactError: If the file is malformed with it.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ModelFormat:
    """The facts of a format, with its reader and its writer."""

    name: str
    """Name in options and cards."""
    title: str
    """Name in sentences."""
    suffix: str
    """Suffix of its files, in lower case, with the dot."""
    precisions: "tuple[Precision, ...]"
    gpu_precisions: "tuple[Precision, ...]" = ()
    """Precisions that are too slow on CPUs, so that files are verified on a GPU only."""
    is_code: bool
    """Whether opening a file runs code from it."""
    needs_torch: bool
    """Whether it runs in PyTorch, which takes seconds and 650 MB of memory to import."""
    load_reader: Callable[[], Reader]
    load_writer: Callable[[], Writer]
    is_deprecated: bool = False
    """Whether PyTorch has deprecated it, so that files of another format stay usable for longer."""
    unsupported_from: tuple[int, int] | None = None
    """Python version from which PyTorch does not support it any more, though it still works."""

    def is_for_gpus(self, precision: "Precision") -> bool:
        """Return whether CPUs are too slow for files of this precision."""
        return precision in self.gpu_precisions


def _module(name: str) -> Callable[[], Any]:
    """Return a function that imports the module of a reader or a writer."""
    return lambda: import_module(name)


ONNX = ModelFormat(
    name="onnx",
    title="ONNX",
    suffix=".onnx",
    precisions=("fp32", "fp16", "int8"),
    is_code=False,
    needs_torch=False,
    load_reader=_module("tltools.runtime.model_formats.onnx"),
    # Kept with the graph rewriting it uses: this is the only format whose reader needs no PyTorch.
    load_writer=_module("tltools.export.onnx_writer"),
)
PT2 = ModelFormat(
    name="pt2",
    title="PT2",
    suffix=".pt2",
    precisions=("fp32", "fp16"),
    gpu_precisions=("fp16",),
    is_code=True,
    needs_torch=True,
    load_reader=_module("tltools.runtime.model_formats.pt2"),
    load_writer=_module("tltools.runtime.model_formats.pt2"),
)
TORCHSCRIPT = ModelFormat(
    name="torchscript",
    title="TorchScript",
    suffix=".pt",
    precisions=("fp32", "fp16"),
    gpu_precisions=("fp16",),
    is_code=True,
    needs_torch=True,
    load_reader=_module("tltools.runtime.model_formats.torchscript"),
    load_writer=_module("tltools.runtime.model_formats.torchscript"),
    is_deprecated=True,
    unsupported_from=(3, 14),
)
FORMATS: dict[str, ModelFormat] = {one.name: one for one in (ONNX, PT2, TORCHSCRIPT)}
"""Formats by name. Between equally accurate and fast exports, the earlier format is preferred."""


def format_named(name: str) -> ModelFormat:
    """Return the format with this name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"unknown model format {name!r};{did_you_mean(name, FORMATS)} choose from "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[name]


def format_of(path: Path) -> ModelFormat:
    """Return the format of a file by its suffix.

    Raises:
        ArtifactError: If no format has this suffix.
    """
    for one in FORMATS.values():
        if path.suffix.lower() == one.suffix:
            return one
    if path.is_dir():
        raise ArtifactError(_folder(path))
    if not os.path.lexists(path):
        raise ArtifactError(_missing(path))
    ending = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
    raise ArtifactError(
        f"{path} is not an export: its name {ending}, exports end in {_endings()}"
        f"{similar_paths(EXPORT_DIR / path.name)}"
    )


def _folder(path: Path) -> str:
    """Return the message that a folder is not an export: what it is, and what to name."""
    refuse_folder_of_exports(path)
    if is_run(path):
        if done := first_export(EXPORT_DIR / path.name):
            return f"{path} is a run, not an export; name its export, such as {done}"
        return f"{path} is a run that has no export; create one with tltools export {path}"
    kind = content(path)
    if kind == "runs":
        return say_runs(path)
    if kind == "images":
        return f"{path} is a folder of images, not an export; {_choose()}"
    return f"{path} is a folder, not an export; {_choose()}"


def _missing(path: Path) -> str:
    """Return the message that neither an export nor a run has this name."""
    # A bare name is one of a run or an export, not of another file here.
    is_bare = path.name == str(path)
    meant = EXPORT_DIR / path if is_bare else path
    similar = similar_exports(path) or similar_paths(meant, EXPORT_DIR)
    if is_bare and not path.suffix:
        has_none = not similar and next(runs_in(RUN_DIR), None) is None
        none = "; train one with tltools train, and export it" if has_none else ""
        return f"no run in runs/ and no export is named {path}{similar}{none}"
    return f"{path} does not exist{similar}; {_choose()}"


def _choose() -> str:
    return f"name an export ({suffixes()}), or the run of one"


def _endings() -> str:
    return either([one.suffix for one in FORMATS.values()])


def similar_exports(path: Path) -> str:
    """Return ` (did you mean exports/cnn/cnn.int8.onnx?)` for an export without its suffix.

    Args:
        path: A path that does not exist, such as `cnn.int8`, `exports/cnn/cnn.int8`, or `cnn` and
            `runs/cnn` for the exports of a run that is deleted.

    Returns:
        Nothing if there is no such export.
    """
    name = f"{glob.escape(path.name)}.*"
    places = (path.parent.glob(name), EXPORT_DIR.glob(f"*/{name}"))
    found = sorted(
        one for one in {*chain(*places)} if is_export_name(one) and one.stem == path.name
    )
    if not found and (first := first_export(EXPORT_DIR / path.name)):
        found = [first]
    return f" (did you mean {found[0]}?)" if found else ""


def refuse_folder_of_exports(folder: Path) -> None:
    """Refuse a folder in place of one of the exports in it; do nothing if it has none.

    Raises:
        ArtifactError: With the name of the first export.
    """
    first = first_export(folder)
    if first is not None:
        raise ArtifactError(f"{folder} is a folder of exports; name one of them, such as {first}")


def first_export(folder: Path) -> Path | None:
    """Return the first export in a folder: fp32 ONNX if there is one; None if there is none."""
    # A run's training state, `state.pt`, has an export's suffix; an export's name has a precision.
    found = [one for one in folder.glob("*.*.*") if is_export_name(one) and one.name[0] != "."]
    return min(found, key=lambda one: (not one.name.endswith(".fp32.onnx"), one.name), default=None)


def named_export(name: str) -> Path | None:
    """Return the one export in `exports/` whose file has this name; None if there is no such."""
    if not is_export_name(Path(name)):
        return None
    found = list(EXPORT_DIR.glob(f"*/{glob.escape(name)}"))
    return found[0] if len(found) == 1 else None


def is_export_name(path: Path) -> bool:
    """Return whether a path has the suffix of a format."""
    return any(path.suffix.lower() == one.suffix for one in FORMATS.values())


def suffixes() -> str:
    """Return the suffixes of all formats for sentences, such as `.onnx, .pt`."""
    return ", ".join(one.suffix for one in FORMATS.values())
