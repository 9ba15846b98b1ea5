"""Open an export: pictures in, logits out; the same call for each format."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tltools.card import CARD_KEY, Card, card_from_json
from tltools.errors import ArtifactError, DeviceError
from tltools.runtime.device import (
    Device,
    DeviceChoice,
    allow_tf32,
    default_threads,
    onnxruntime_errors,
    open_session,
    page_locked_array,
    placement,
    torch_device,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxruntime import OrtValue

Value = TypeVar("Value")
INPUT = "images"
OUTPUT = "logits"
REMEDY = "make it again with tltools export"


class Predictor(Protocol):
    """An opened export: uint8 pictures in, logits out, on one device."""

    card: Card
    choice: DeviceChoice
    device: str
    """`choice.device`."""
    provider: str
    """onnxruntime's name of what runs the model, or `torch`."""
    placement: dict[str, int]
    """Number of nodes by provider, as onnxruntime recorded it; empty for TorchScript."""
    threads: int
    """Cores that one call uses on the CPU."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, (N, H, W, 3), to logits, (N, C); returns when they are ready.

        Safe to call from several threads at once.

        Raises:
            ValueError: If the array's type or shape is not what the card says.
            DeviceError: If the device fails, for lack of memory for instance.
        """
        ...

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3), to fill and pass to a call as often as one likes.

        In memory that suits the device: passing the whole array saves a GPU a copy.
        """
        ...


class OnnxPredictor:
    """An ONNX export in onnxruntime."""

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        tf32: bool = False,
        gpu: int = 0,
    ) -> None:
        """Open `path`; the arguments and errors are those of `load_predictor`."""
        _check_exists(path)
        self._session, self.choice = open_session(
            path, device=device, threads=threads, tf32=tf32, gpu=gpu
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        if CARD_KEY not in metadata:
            raise _no_card(path)
        self.card = card_from_json(metadata[CARD_KEY], where=str(path))
        self.device: str = self.choice.device
        self.provider: str = self._session.get_providers()[0]
        self.placement = placement(self._session)
        self.threads = threads or default_threads()
        self._errors = onnxruntime_errors()
        self._locked: dict[int, tuple[NDArray[np.uint8], OrtValue]] = {}
        self._check_signature(path)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, (N, H, W, 3), to logits, (N, C)."""
        _check_images(images, self.card.preprocessing.size)
        array, value = self._locked.get(images.ctypes.data, (None, None))
        try:
            if value is not None and array is not None and array.shape == images.shape:
                return self._run_bound(value)
            outputs = self._session.run([OUTPUT], {INPUT: images})
        except self._errors as error:
            raise _failed_run(len(images), error) from error
        return cast("NDArray[np.float32]", outputs[0])

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3); for a GPU in page-locked memory."""
        shape = self.card.preprocessing.shape(num_images)
        locked = page_locked_array(self._session, shape) if self.device != "cpu" else None
        if locked is None:
            return np.empty(shape, dtype=np.uint8)
        self._locked[locked[0].ctypes.data] = locked
        return locked[0]

    def _run_bound(self, value: "OrtValue") -> NDArray[np.float32]:
        """Run on an input that the device reads where it lies."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(INPUT, value)
        binding.bind_output(OUTPUT)  # in main memory
        self._session.run_with_iobinding(binding)
        return cast("NDArray[np.float32]", binding.copy_outputs_to_cpu()[0])

    def _check_signature(self, path: Path) -> None:
        """Raise ArtifactError unless the graph's input and output are what the card says."""
        size, num_classes = self.card.preprocessing.size, len(self.card.classes)
        wanted_input = ([INPUT], ["tensor(uint8)"], [[size, size, 3]])
        wanted_output = ([OUTPUT], ["tensor(float)"], [[num_classes]])
        for kind, nodes, wanted in (
            ("input", self._session.get_inputs(), wanted_input),
            ("output", self._session.get_outputs(), wanted_output),
        ):
            found = (
                [node.name for node in nodes],
                [node.type for node in nodes],
                [list(node.shape[1:]) for node in nodes],  # without the batch axis
            )
            if found != wanted:
                raise ArtifactError(
                    f"{path}: its {kind} (names, types, shapes after the batch axis) is {found}, "
                    f"by its card it should be {wanted}; {REMEDY}"
                )
            if isinstance(nodes[0].shape[0], int):
                raise ArtifactError(
                    f"{path}: its {kind} has a fixed batch size of {nodes[0].shape[0]}; {REMEDY}"
                )


class TorchScriptPredictor:
    """A TorchScript export in PyTorch, which is imported here and not before."""

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        tf32: bool = False,
        gpu: int = 0,
    ) -> None:
        """Open `path`; the arguments and errors are those of `load_predictor`.

        PyTorch's number of threads and its TF32 switch are settings of the whole process.
        """
        self.card = read_card(path)
        self.choice = torch_device(device)
        self.device: str = self.choice.device
        self.provider = "torch"
        self.placement: dict[str, int] = {}
        self.threads = threads or default_threads()
        import torch

        self._torch = torch
        self._device = torch.device(self.device if self.device == "cpu" else f"{self.device}:{gpu}")
        torch.set_num_threads(self.threads)
        allow_tf32(tf32)
        with warnings.catch_warnings():
            # torch.jit warns that it is deprecated: a fact for our documents and no help here.
            warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
            warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
            try:
                module = torch.jit.load(str(path), map_location=self._device)
            except RuntimeError as error:
                raise _not_a(path, "TorchScript", error) from error
        self._module = module.eval()
        self._path = path

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, (N, H, W, 3), to logits, (N, C)."""
        _check_images(images, self.card.preprocessing.size)
        torch = self._torch
        # "W": torch warns about arrays that it must not write to; C order spares it a copy.
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        try:
            with torch.inference_mode():
                logits = self._module(batch.to(self._device)).cpu().numpy()  # waits for the device
        except RuntimeError as error:
            raise _failed_run(len(images), error) from error
        wanted = (len(images), len(self.card.classes))
        if logits.dtype != np.float32 or logits.shape != wanted:
            raise ArtifactError(
                f"{self._path} gives {logits.dtype} {logits.shape}, by its card it should be "
                f"float32 {wanted}; {REMEDY}"
            )
        return logits

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3)."""
        return np.empty(self.card.preprocessing.shape(num_images), dtype=np.uint8)


def load_predictor(
    path: Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    tf32: bool = False,
    gpu: int = 0,
) -> Predictor:
    """Open an export by its suffix.

    Args:
        path: `.onnx` or `.pt`.
        device: Where to run; `auto` takes CUDA where it works.
        threads: Cores for one forward pass on the CPU; None for all of this process's.
        tf32: Let CUDA round fp32 products to TF32: faster, about 1e-3 off in the logits.
        gpu: Which of the GPUs, from 0.

    Raises:
        ArtifactError: If the file is missing, is not an export, lacks its card or contradicts it.
        DeviceError: If a device is asked for that cannot run the model.
    """
    open_predictor: Callable[..., Predictor] = _by_suffix(path, PREDICTORS)
    return open_predictor(path, device=device, threads=threads, tf32=tf32, gpu=gpu)


def read_card(path: Path) -> Card:
    """Read the card of an export without running, or even loading, the model.

    Raises:
        ArtifactError: If the file is missing, is not an export or has no valid card.
    """
    read_text = _by_suffix(path, CARD_READERS)
    _check_exists(path)
    try:
        text = read_text(path)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    if text is None:
        raise _no_card(path)
    return card_from_json(text, where=str(path))


# ------------------------------------------------------------------------------------- cards


def _torchscript_card(path: Path) -> bytes | None:
    """Return the card's JSON from the zip archive that a TorchScript file is."""
    import zipfile  # here, because it takes a twentieth of the start-up time of the other format

    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(f"/extra/{CARD_KEY}"):
                    return archive.read(name)
    except zipfile.BadZipFile as error:
        raise _not_a(path, "TorchScript", error) from error
    return None


# Numbers of the fields in onnx.proto: ModelProto and StringStringEntryProto.
GRAPH, METADATA_PROPS = 7, 14
KEY, VALUE = 1, 2


def _onnx_card(path: Path) -> bytes | None:
    """Return the card's JSON from an ONNX file.

    An ONNX file is one protobuf message, in which each field starts with its number and length.
    Skipping the graph takes 1 ms and no memory; parsing it takes seconds for a large VGG16.
    """
    found: bytes | None = None
    has_graph = False
    try:
        with path.open("rb") as file:
            for number, length in _read_fields(file, path.stat().st_size):
                has_graph |= number == GRAPH
                if number == METADATA_PROPS:
                    end = file.tell() + length
                    entry = {key: file.read(size) for key, size in _read_fields(file, end)}
                    if entry.get(KEY) == CARD_KEY.encode():
                        found = entry.get(VALUE, b"")
    except ValueError as error:
        raise _not_a(path, "ONNX", error) from error
    if not has_graph:
        raise _not_a(path, "ONNX", "it has no graph")
    return found


def _read_fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield each protobuf field's number and length, with `file` where its bytes start.

    Raises:
        ValueError: If the bytes up to `end` are not protobuf.
    """
    while file.tell() < end:
        tag = _read_varint(file)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _read_varint(file)
            length = 0
        elif wire_type == 2:
            length = _read_varint(file)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire_type}")
        start = file.tell()
        if number == 0 or start + length > end:
            raise ValueError(f"field {number} goes beyond its end")
        yield number, length
        file.seek(start + length)


def _read_varint(file: BinaryIO) -> int:
    """Read an integer of seven bits a byte, the lowest first, until a byte below 128."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("the file ends within a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number has more than ten bytes")


# ------------------------------------------------------------------------------------ checks

PREDICTORS: dict[str, type[OnnxPredictor] | type[TorchScriptPredictor]] = {
    ".onnx": OnnxPredictor,
    ".pt": TorchScriptPredictor,
}
CARD_READERS = {".onnx": _onnx_card, ".pt": _torchscript_card}


def _by_suffix(path: Path, table: dict[str, Value]) -> Value:
    try:
        return table[path.suffix.lower()]
    except KeyError:
        raise ArtifactError(
            f"{path} is no export: its name ends in {path.suffix or 'nothing'!r}, "
            f"exports end in {' or '.join(table)}"
        ) from None


def _check_exists(path: Path) -> None:
    if not path.is_file():
        what = "is a folder and no export" if path.is_dir() else "does not exist"
        raise ArtifactError(f"{path} {what}; tltools export makes exports, --model names one")


def _check_images(images: NDArray[np.uint8], size: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images must be uint8 (N, {size}, {size}, 3), got {images.dtype} {images.shape}"
        )
    if len(images) == 0:
        raise ValueError("images must hold at least one picture")


def _no_card(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} has no tltools card, so it is not an export; {REMEDY}")


def _not_a(path: Path, what: str, error: object) -> ArtifactError:
    reason = str(error).strip().partition("\n")[0]
    return ArtifactError(f"{path} is not a {what} file ({reason}); {REMEDY}")


def _failed_run(num_images: int, error: Exception) -> DeviceError:
    reason = str(error).strip().partition("\n")[0]
    return DeviceError(
        f"the model failed on a batch of {num_images}: {reason}; try a smaller --batch-size"
    )
