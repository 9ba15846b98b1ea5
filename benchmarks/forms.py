"""Open a model in every form: eager, compiled, TorchScript, and an ONNX session.

All forms have the same weights and accept what a `DataLoader` yields: uint8 images, (N, H, W, 3),
on the host. Each is opened as its documentation recommends.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from systems import Job, run_of

from tltools.runtime import read_card

if TYPE_CHECKING:
    from torch import Tensor

EAGER, COMPILED, TORCHSCRIPT, ONNX = FORMS = ("eager", "compiled", "TorchScript", "ONNX")
PRECISIONS = ("fp32", "tf32", "fp16")
CUDA_PROVIDER = "CUDAExecutionProvider"

Model = Callable[["Tensor"], "Tensor"]
"""Maps uint8 images, (N, H, W, 3), on the host to probabilities, (N, C), on the model's device; on
CUDA it returns before they are computed."""


def open_form(form: str, job: Job, *, device: str, precision: str, threads: int | None) -> Model:
    """Open a form of a model.

    Args:
        form: One of `FORMS`.
        job: Names the ONNX export, which `ONNX` opens, and the run; TorchScript is the `.pt`
            beside the export.
        device: `cpu` or `cuda`.
        precision: One of `PRECISIONS`; tf32 and fp16 only on CUDA. fp16 means autocast for
            TorchScript, half weights for eager and compiled, and an fp16 export for ONNX.
        threads: Threads of one call on the CPU; None for the library's default.

    Raises:
        FileNotFoundError: If the form's file does not exist.
    """
    if form == ONNX:
        return _session_model(job, device=device, precision=precision, threads=threads)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    set_tf32(enabled=precision == "tf32")
    module = open_module(form, job, device=device, precision=precision)
    autocast = form == TORCHSCRIPT and precision == "fp16"

    def call(images: "Tensor") -> "Tensor":
        images = images.to(device, non_blocking=True)
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=autocast):
            return logits_of(module(images)).float().softmax(dim=1)

    return call


def set_tf32(*, enabled: bool) -> None:
    """Let PyTorch round fp32 products to TF32 on CUDA, or not; enable cuDNN's autotuner."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled
    torch.backends.cudnn.benchmark = True


def open_module(form: str, job: Job, *, device: str, precision: str) -> Any:
    """Open a PyTorch form on a device; it maps uint8 images on it, (N, H, W, 3), to logits."""
    import torch

    if form == TORCHSCRIPT:
        path = Path(job.export).with_suffix(".pt")
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path.name} beside the export")
        return torch.jit.freeze(torch.jit.load(path, map_location=device).eval())
    module = _network(job, half=precision == "fp16").to(device)
    return torch.compile(module, dynamic=False) if form == COMPILED else module


def logits_of(output: Any) -> "Tensor":
    """Return a module's logits; an export returns probabilities too."""
    return output[0] if isinstance(output, tuple) else output


def _network(job: Job, *, half: bool) -> Any:
    """Return the run's network in channels_last, in fp32 or with half weights."""
    import torch
    from torch import nn

    from tltools.training import load_run

    model, _card = load_run(run_of(job))
    dtype = torch.float16 if half else torch.float32

    class OnBytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, images: "Tensor") -> "Tensor":
            pixels = images.permute(0, 3, 1, 2).to(dtype)  # channels_last, as images lie
            return self.inner.head(
                self.inner.backbone(pixels * self.inner.scale + self.inner.shift)
            )

    return OnBytes().eval().to(dtype).to(memory_format=torch.channels_last)


def open_session(
    export: str, *, device: str, threads: int = 0, options: Mapping[str, str] | None = None
) -> Any:
    """Open an export in onnxruntime with default settings; refuse a fallback to the CPU.

    Args:
        export: Path of the file.
        device: `cpu` or `cuda`.
        threads: Threads of one call on the CPU; 0 for onnxruntime's default.
        options: Options of the CUDA provider.

    Raises:
        RuntimeError: If onnxruntime fell back to the CPU.
    """
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        onnxruntime.preload_dlls()
        providers.insert(0, (CUDA_PROVIDER, dict(options or {})))
    session = onnxruntime.InferenceSession(export, session_options, providers=providers)
    if device == "cuda" and CUDA_PROVIDER not in session.get_providers():
        raise RuntimeError("onnxruntime fell back to the CPU")
    return session


def _session_model(job: Job, *, device: str, precision: str, threads: int | None) -> Model:
    import torch

    options = {"use_tf32": str(int(precision == "tf32"))}
    if precision == "fp16":
        options["prefer_nhwc"] = "1"
    session = open_session(job.export, device=device, threads=threads or 0, options=options)
    name = session.get_outputs()[0].name

    def call(images: "Tensor") -> "Tensor":
        (logits,) = session.run([name], {"images": images.numpy()})
        return torch.from_numpy(logits).float().softmax(dim=1)

    return call


def classes_of(job: Job) -> tuple[str, ...]:
    """Return the classes of an export, in the order of its outputs."""
    return tuple(read_card(Path(job.export)).classes)
