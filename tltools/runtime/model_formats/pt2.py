"""Read and write PT2 files, `torch.export`'s format: zip archives of weights and a graph in JSON.

`torch.export.load` unpickles whatever the file calls a pickle, loads compiled libraries from it,
and evaluates expressions in its text. So a file is inspected before PyTorch opens it, and rejected
if it holds what exports never do: ours have tensors as plain bytes and call tensor operators only.
The format still counts as code, because PyTorch's loader was not made for files from strangers.

PyTorch is imported to open or write a file, but not to read its card.
"""

import io
import json
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tltools.card import CARD_KEY, Card, Precision, card_from_json
from tltools.errors import ArtifactError, DeviceError, first_line
from tltools.runtime.device import Device
from tltools.runtime.model_formats import Trained, Written
from tltools.runtime.model_formats.shared import not_a, refused
from tltools.runtime.model_formats.shared_torch import (
    TorchPredictor,
    card_text,
    members_as_written,
    open_archive,
    with_outputs,
)

if TYPE_CHECKING:
    from zipfile import ZipFile

    import torch
    from torch.export import ExportedProgram

    from tltools.distance import Distance

TITLE = "PT2"
MAX_TEXT_BYTES = 32 * 2**20
"""Longest graph or list of tensors; VGG16's graph has 75 kB."""
_GRAPH = "models/model.json"
_TEXTS = (
    _GRAPH,
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_PICKLE = "data/sample_inputs/model.pt"
"""The example that the model was exported with; empty in exports."""
_MEMBER = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|"
    r"\.data/\w+|\.format_version|\.storage_alignment|"
    + "|".join(map(re.escape, (*_TEXTS, _PICKLE, f"extra/{CARD_KEY}")))
)
"""Members of an export."""
_ALLOWED = {
    # What a node calls: PyTorch looks the name up and calls it, whatever it is.
    "target": re.compile(
        r"torch\.ops\.aten\.(?!from_file\b|save\b)\w+\.\w+|"
        r"_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge)"
    ),
    # Sizes that depend on the batch: Python's eval computes them.
    "expr_str": re.compile(
        r"(?:Symbol\('[a-z]+\d+'(?:, \w+=True)*\)|Integer\(-?\d+\)|"
        r"\b(?:Add|Mul|Pow|Max|Min|Mod|FloorDiv|CeilDiv)\b|[(), ])+"
    ),
    # File of a tensor: those with other names are unpickled.
    "path_name": re.compile(r"(?:weight|tensor)_\d+"),
    # Structure of inputs and outputs: PyTorch imports the modules of types that it does not know.
    "in_spec": (
        _SPEC := re.compile(
            r'(?:[\s\[\]{}:,\d]|null|"(?:type|context|children_spec|null|\[\]|'
            r'builtins\.(?:tuple|list|dict))")+'
        )
    ),
    "out_spec": _SPEC,
}
"""Text that PyTorch acts upon, by its key: what exports have there."""
_EMPTY = ("use_pickle", "guards_code")
"""Keys of pickled tensors, and of conditions that are compiled: false or empty in exports."""
_LOAD_ERRORS = (
    *(RuntimeError, AssertionError, ValueError, LookupError, TypeError, AttributeError, OSError),
)
"""What PyTorch raises for a damaged file: some parts it checks by assertions, others not at all."""
_loading = threading.Lock()
"""PyTorch loads one program at a time, and fails in other threads meanwhile."""


def open_export(
    path: Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    tf32: bool = False,
    gpu: int | None = None,
    nhwc: bool = False,  # noqa: ARG001 - for ONNX only
) -> TorchPredictor:
    """Open `path`; see `Reader`."""
    return TorchPredictor(
        path, read_card(path), _load, device=device, threads=threads, tf32=tf32, gpu=gpu
    )


is_as_written = partial(members_as_written, TITLE)
"""Implements `Reader.is_as_written`."""


def _load(path: Path, device: "torch.device") -> Callable[["torch.Tensor"], Any]:
    from torch.export.passes import move_to_device_pass

    program = _program(path)
    if device.type != "cpu":
        try:
            program = move_to_device_pass(program, device)
        except RuntimeError as error:
            raise DeviceError(
                f"cannot move {path} to {device}: {first_line(error)}; free memory on the device, "
                "or use `device=cpu`"
            ) from error
    return program.module().forward  # without the hooks that check its inputs: they are checked


def _program(path: Path) -> "ExportedProgram":
    """Load a program that `read_card` has accepted, with its tensors on the CPU."""
    import torch

    with _loading, _log_kept() as log:
        try:
            with path.open("rb") as file:
                return torch.export.load(file)
        except _LOAD_ERRORS as error:
            causes = [record.exc_info[1] for record in log if record.exc_info]
            reason = first_line(next(filter(None, causes), error))
            raise not_a(path, TITLE, f"torch {torch.__version__}: {reason}") from error


@contextmanager
def _log_kept() -> Iterator[list[logging.LogRecord]]:
    """Keep what `torch.export` logs: it logs the reason of a failure, and raises another error."""
    kept: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        kept.append(record)
        return False

    logger = logging.getLogger("torch.export")
    logger.addFilter(keep)
    try:
        yield kept
    finally:
        logger.removeFilter(keep)


# -------------------------------------------------------------------------------- inspection


def read_card(path: Path) -> Card:
    """Read the card, and check that the file holds what exports hold; see `Reader`."""
    with open_archive(path, TITLE) as archive:
        names = archive.namelist()
        root = names[0].partition("/")[0] if names else ""
        if not {f"{root}/archive_format", *(f"{root}/{name}" for name in _TEXTS)} <= {*names}:
            raise not_a(path, TITLE, "it has no program")
        text = card_text(archive, path)
        problem = _problem(archive, root)
        if problem:
            raise refused(path, problem)
    return card_from_json(text, where=str(path))


def _problem(archive: "ZipFile", root: str) -> str | None:
    """Return what an archive has that exports do not have, None if there is nothing."""
    if len({*archive.namelist()}) < len(archive.namelist()):
        return "it has two parts with the same name"
    for member in archive.infolist():
        name = member.filename.removeprefix(f"{root}/")
        if not _MEMBER.fullmatch(name):
            return f"it has a part {name[:80]!r}, and exports do not"
        if member.compress_type:
            return f"its part {name!r} is compressed, and those of exports are not"
        if name == _PICKLE and member.file_size:
            return "it has a pickle, which could run any program"
        if name in _TEXTS and member.file_size > MAX_TEXT_BYTES:
            return f"its part {name!r} has over {MAX_TEXT_BYTES:,} bytes"
    # By the parser that torch uses, since another one could read something else.
    texts = (json.loads(archive.read(f"{root}/{name}")) for name in _TEXTS)
    return next(filter(None, map(_problem_in, texts)), None)


def _problem_in(text: object) -> str | None:
    """Return what a graph or a list of tensors has that exports do not have."""
    left = [text]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            for key, one in value.items():
                allowed = _ALLOWED.get(key)
                if allowed and not (isinstance(one, str) and allowed.fullmatch(one)):
                    return f"its {key} is {str(one)[:80]!r}, and exports have none like it"
                if key in _EMPTY and one:
                    return f"it has {key}, which could run any program"
            left += value.values()
    return None


# -------------------------------------------------------------------------------- writing


def write(
    trained: Trained, precision: Precision, path: Path, check: Callable[[Path], object]
) -> Written:
    """Export the model and save it with its card as an extra file; see `Writer`."""
    # On the CPU, where every machine can open it; nothing is computed.
    module = trained.module(precision, features=True).cpu()
    example = trained.example(precision).cpu()
    _save(_export(module, example), path, trained.card)
    check(path)
    return Written()


def seal(path: Path, card: Card, distance: "Distance | None") -> None:
    """Wrap the saved module in one that gives all outputs; see `Writer`."""
    import torch

    module = with_outputs(_program(path).module(), card.temperature, distance)
    # Two images: a batch of one would become a constant.
    example = torch.zeros(card.preprocessing.shape(2), dtype=torch.uint8)
    _save(_export(module, example), path, card)


def _export(module: "torch.nn.Module", example: "torch.Tensor") -> "ExportedProgram":
    """Export a module for batches of any size.

    Raises:
        ArtifactError: If `torch.export` cannot, for example because the batch size is fixed.
    """
    import torch

    printed = io.StringIO()
    try:
        with redirect_stderr(printed):  # before it fails, it prints the graph so far
            program = torch.export.export(
                module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
    except RuntimeError as error:
        raise ArtifactError(f"torch.export rejects the model: {first_line(error)}") from error
    if printed.getvalue():
        warnings.warn(printed.getvalue(), stacklevel=2)
    program.example_inputs = None  # it would be saved as a pickle
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def _save(program: "ExportedProgram", path: Path, card: Card) -> None:
    """Save a program with its card.

    The file is written through memory, since torch's own file writer aborts on a full disk.
    """
    import torch

    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={CARD_KEY: card.to_json()})
