"""Open an export: pictures in, logits out; the same call for each format."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tltools.card import CARD_KEY, MAX_CARD_BYTES, Card, card_from_json
from tltools.errors import ArtifactError, DeviceError
from tltools.runtime.device import (
    CUDA_PROVIDER,
    Device,
    DeviceChoice,
    allow_tf32,
    check_tf32,
    default_threads,
    onnxruntime_errors,
    open_session,
    placement,
    torch_device,
)
from tltools.runtime.driver import PageLock
from tltools.runtime.onnx_reader import (
    OnnxFile,
    TensorType,
    UnsafeOnnxError,
    read_onnx,
    signature_problem,
)
from tltools.runtime.selftest import replay

if TYPE_CHECKING:
    from collections.abc import Callable

Layout = Literal["nchw", "nhwc"]
"""Order of the axes that a model's convolutions compute in; its input is (N, H, W, 3) always."""
Value = TypeVar("Value")
INPUT = "images"
OUTPUT = "logits"
PROBABILITIES = "probabilities"
"""The second output, softmax(logits / temperature), for those who run a file by other means."""
MAX_UNPACKED_BYTES = 64 * 2**20
"""Of a TorchScript file; torch compresses the code alone, which is some kilobytes."""
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
        """Allocate images, (N, H, W, 3), to fill and pass to a call as often as one likes."""
        ...


class ExportPredictor(Predictor, Protocol):
    """An opened export, as `load_predictor` returns it."""

    layout: Layout
    tf32: bool
    """Whether fp32 products are rounded to TF32."""

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the graph's own probabilities, (N, C), of images, (N, H, W, 3)."""
        ...

    def lock_pages(self, memory: NDArray[Any]) -> PageLock | None:
        """Page-lock memory, so that a GPU reads images in it by itself; see `PageLock`.

        Any call with an array that lies in the memory profits from it. Lock memory once, however
        many predictors read it: a lock holds for all GPUs.

        Args:
            memory: Contiguous; the whole of a shared mapping, for instance.

        Returns:
            The lock, to release before the memory goes; None on the CPU, which needs none.

        Raises:
            DeviceError: If the driver refuses; the predictor works without the lock.
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
        gpu: int | None = None,
        nhwc: bool = False,
    ) -> None:
        """Open `path`; the arguments and errors are those of `load_predictor`."""
        self.card = _onnx_card(path)  # before onnxruntime sees the file
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
        """What was asked for."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, (N, H, W, 3), to logits, (N, C)."""
        return self._run(images, OUTPUT)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the graph's own probabilities, (N, C), of images, (N, H, W, 3).

        Raises:
            ArtifactError: If it has none, as exports made before there were any.
        """
        if PROBABILITIES not in [value.name for value in self._session.get_outputs()]:
            raise _no_probabilities(self._path)
        return self._run(images, PROBABILITIES)

    def _run(self, images: NDArray[np.uint8], output: str) -> NDArray[np.float32]:
        """Run on images where they lie: onnxruntime wraps a contiguous array without a copy.

        On a GPU, `run` queues the copy to it on a stream of this call's own, without Python's lock;
        from page-locked memory the GPU then copies by itself while other calls compute. An I/O
        binding would copy when the input is bound, under the lock.
        """
        _check_images(images, self.card.preprocessing.size)
        try:
            outputs = self._session.run([output], {INPUT: images})
        except self._errors as error:
            raise _failed_run(len(images), error) from error
        return _checked(cast("NDArray[np.float32]", outputs[0]), len(images), self.card, self._path)

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3)."""
        return np.empty(self.card.preprocessing.shape(num_images), dtype=np.uint8)

    def lock_pages(self, memory: NDArray[Any]) -> PageLock | None:
        """Page-lock memory; None on the CPU."""
        return _lock_pages(memory, self.choice)


class TorchScriptPredictor:
    """A TorchScript export in PyTorch, which is imported here and not before."""

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        tf32: bool = False,
        gpu: int | None = None,
        nhwc: bool = False,  # noqa: ARG002 - for ONNX only
    ) -> None:
        """Open `path`; the arguments and errors are those of `load_predictor`.

        PyTorch's number of threads and its TF32 switch are settings of the whole process.
        """
        self.card = _torchscript_card(path)
        self.choice = torch_device(device, gpu)
        self.device: str = self.choice.device
        self.provider = "torch"
        self.layout: Layout = "nchw"
        self.tf32 = tf32
        self.placement: dict[str, int] = {}
        self.threads = threads or default_threads()
        import torch

        self._torch = torch
        self._device = torch.device(self.choice.name)
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
        return self._run(images, 0)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the graph's own probabilities, (N, C), of images, (N, H, W, 3).

        Raises:
            ArtifactError: If it has none, as exports made before there were any.
        """
        return self._run(images, 1)

    def _run(self, images: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        _check_images(images, self.card.preprocessing.size)
        torch = self._torch
        # "W": torch warns about arrays that it must not write to; C order spares it a copy.
        batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        try:
            with torch.inference_mode():
                outputs = self._module(batch.to(self._device))
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                if index >= len(outputs):
                    raise _no_probabilities(self._path)
                array = outputs[index].cpu().numpy()  # waits for the device
        except RuntimeError as error:
            raise _failed_run(len(images), error) from error
        return _checked(array, len(images), self.card, self._path)

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3)."""
        return np.empty(self.card.preprocessing.shape(num_images), dtype=np.uint8)

    def lock_pages(self, memory: NDArray[Any]) -> PageLock | None:
        """Page-lock memory; None on the CPU."""
        return _lock_pages(memory, self.choice)


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
    """Open an export by its suffix.

    An ONNX file is looked into before onnxruntime opens it, and refused if it is not what tltools
    writes. TorchScript is code: opening it runs what its maker put into it.

    Args:
        path: `.onnx` or `.pt`.
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
    open_predictor: Callable[..., ExportPredictor] = _by_suffix(path, PREDICTORS)
    predictor = open_predictor(path, device=device, threads=threads, tf32=tf32, gpu=gpu, nhwc=nhwc)
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
    card = _by_suffix(path, CARD_READERS)(path)
    _check_is_export(path, card)
    return card


def read_signature(path: Path) -> tuple[Sequence[TensorType], Sequence[TensorType]]:
    """Return the inputs and the outputs of an ONNX export, which `read_card` has passed."""
    found = read_onnx(path, key=CARD_KEY, max_entry_bytes=MAX_CARD_BYTES)
    return found.inputs, found.outputs


# ------------------------------------------------------------------------------------- cards


def _torchscript_card(path: Path) -> Card:
    """Read the card from the zip archive that a TorchScript file is; its code is not touched."""
    import zipfile  # here, because it takes a twentieth of the start-up time of the other format

    _check_exists(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    try:
        with file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if not any("/code/" in member.filename for member in members):
                raise _not_a(path, "TorchScript", "it has no code")
            packed = (one.file_size for one in members if one.compress_type != zipfile.ZIP_STORED)
            if sum(packed) > MAX_UNPACKED_BYTES:
                raise _refused(path, f"its code unpacks to over {MAX_UNPACKED_BYTES:,} bytes")
            cards = [one for one in members if one.filename.endswith(f"/extra/{CARD_KEY}")]
            if not cards:
                raise _no_card(path)
            if len(cards) > 1 or cards[0].file_size > MAX_CARD_BYTES:
                raise _refused(path, f"it has two cards, or one of over {MAX_CARD_BYTES:,} bytes")
            text = archive.read(cards[0])
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, EOFError, RuntimeError) as error:
        raise _not_a(path, "TorchScript", error) from error
    return card_from_json(text, where=str(path))


def _onnx_card(path: Path) -> Card:
    """Read the card from an ONNX file, and see that it is safe to open and as the card says."""
    _check_exists(path)
    try:
        found = read_onnx(path, key=CARD_KEY, max_entry_bytes=MAX_CARD_BYTES)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except UnsafeOnnxError as error:
        raise _refused(path, error) from error
    except ValueError as error:
        raise _not_a(path, "ONNX", error) from error
    if found.entry is None:
        raise _no_card(path)
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
        allowed_output=TensorType(PROBABILITIES, "float", (None, num_classes)),
    )


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


def _check_is_export(path: Path, card: Card) -> None:
    if card.export is None:
        raise ArtifactError(f"{path} has the card of a run, so it is no finished export; {REMEDY}")


def _lock_pages(memory: NDArray[Any], choice: DeviceChoice) -> PageLock | None:
    return None if choice.gpu is None else PageLock(memory, choice.gpu)


def _checked(
    logits: NDArray[np.float32], num_images: int, card: Card, path: Path
) -> NDArray[np.float32]:
    """Return logits that are as the card says, whatever the file says of itself."""
    wanted = (num_images, len(card.classes))
    if logits.dtype != np.float32 or logits.shape != wanted:
        raise ArtifactError(
            f"{path} gives {logits.dtype} {logits.shape}, by its card it should be "
            f"float32 {wanted}; {REMEDY}"
        )
    return logits


def _check_images(images: NDArray[np.uint8], size: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images must be uint8 (N, {size}, {size}, 3), got {images.dtype} {images.shape}"
        )
    if len(images) == 0:
        raise ValueError("images must hold at least one picture")


def _no_probabilities(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} has no output {PROBABILITIES!r}; {REMEDY}")


def _no_card(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} has no tltools card, so it is not an export; {REMEDY}")


def _not_a(path: Path, what: str, error: object) -> ArtifactError:
    reason = str(error).strip().partition("\n")[0]
    article = "an" if what == "ONNX" else "a"
    return ArtifactError(f"{path} is not {article} {what} file ({reason}); {REMEDY}")


def _refused(path: Path, reason: object) -> ArtifactError:
    return ArtifactError(f"{path} is refused: {reason}; {REMEDY}")


def _failed_run(num_images: int, error: Exception) -> DeviceError:
    reason = str(error).strip().partition("\n")[0]
    return DeviceError(
        f"the model failed on a batch of {num_images}: {reason}; try a smaller --batch-size"
    )
