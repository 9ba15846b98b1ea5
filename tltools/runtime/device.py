"""Choose the device that a model runs on, and verify that it runs there.

This is the only module that imports onnxruntime and the only one that names a kind of GPU, so
everything that depends on the machine is here.
"""

import ctypes
import io
import os
import re
import sys
import warnings
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast, get_args

from tltools.errors import ArtifactError, ConfigError, DeviceError, first_line, problem_of
from tltools.parallel import num_cores
from tltools.progress import Progress
from tltools.runtime.driver import DRIVER_LIBRARY, gpu_capability, load_driver, num_gpus
from tltools.wording import either

if TYPE_CHECKING:
    from types import ModuleType

    import onnxruntime
    import torch

Device: TypeAlias = str
"""A requested device: a `Kind`, or specific GPUs, such as `cuda:1` or `cuda:0,cuda:1` (likewise
with `tensorrt`). `parse_device` reads it."""
Kind = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
"""`auto` uses CUDA if it works and reports its choice; the last two are onnxruntime's execution
providers of that name, for NVIDIA GPUs and for Intel processors."""
TorchKind = Literal["auto", "cpu", "cuda"]
"""Kinds that PyTorch runs on."""
GPU_KINDS = ("cuda", "tensorrt")
"""Kinds that accept GPU indices."""

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
AS_ASKED = "as asked"
"""Why a device was chosen that was named."""
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
OPENVINO_PROVIDER = "OpenVINOExecutionProvider"
COMPUTE_OPS = ("Conv", "Gemm", "MatMul", "Pool")
"""A node whose operator name contains one of these does arithmetic on images. onnxruntime
rightly keeps other nodes, such as those that compute shapes, on the CPU beside a GPU."""
REMEDY_CPU = "or choose the CPU with `device=cpu`"
FATAL = 4
"""onnxruntime's highest log severity. Its errors arrive as exceptions or are detected here; what
it writes to the terminal by itself alarms users whose job runs well."""


TF32_CAPABILITY = (8, 0)
"""Older GPUs do not support TF32 and would silently compute in fp32."""


class DeviceRequest(NamedTuple):
    """A parsed `Device`."""

    kind: Kind
    gpus: tuple[int, ...] = ()
    """Indices of the named GPUs, in the order given; empty if none is named."""


@dataclass(frozen=True)
class DeviceChoice:
    """The device a model runs on, and why."""

    device: Literal["cpu", "cuda"]
    reason: str
    """Completes the sentence "the device is X: ...", in one line."""
    gpu: int | None = None
    """Index of the GPU; None on the CPU, and on a cluster, where each worker has its own GPU."""

    @property
    def name(self) -> str:
        """PyTorch's name of the device, such as `cpu` or `cuda:1`."""
        return self.device if self.gpu is None else f"{self.device}:{self.gpu}"


def tell_device(choice: DeviceChoice, progress: Progress, details: str = "") -> None:
    """Show the device as a detail, or as a message if it is not what one would expect.

    That is a CPU which `auto` chose on a machine with a GPU: the reason says what is wrong.
    """
    is_unexpected = choice.device == "cpu" and choice.reason != AS_ASKED and num_gpus() > 0
    tell = progress.say if is_unexpected else progress.detail
    tell(f"Device: {choice.name} ({choice.reason}){details}")


def parse_device(text: Device) -> DeviceRequest:
    """Parse a requested device, without checking that this machine has it.

    Raises:
        ConfigError: If it is not a device.
    """
    if text in get_args(Kind):
        return DeviceRequest(cast("Kind", text))
    parts = [re.fullmatch(r"([a-z]+):([0-9]{1,3})", part.strip()) for part in text.split(",")]
    kinds = {part and part[1] for part in parts}
    gpus = tuple(int(part[2]) for part in parts if part)
    if len(kinds) != 1 or kinds.isdisjoint(GPU_KINDS):
        raise ConfigError(
            f"{text!r} is not a device: choose {', '.join(get_args(Kind))}, a GPU such as cuda:1, "
            "or several such as cuda:0,cuda:1"
        )
    if len(set(gpus)) < len(gpus):
        raise ConfigError(f"{text!r} lists a GPU twice; list each one once")
    return DeviceRequest(cast("Kind", kinds.pop()), gpus)


def chosen_gpus(device: Device) -> tuple[int, ...]:
    """Return the indices of the requested GPUs, without opening any.

    Args:
        device: `auto`, `cuda` and `tensorrt` mean all GPUs; `cuda:1` means that one.

    Returns:
        The indices in the order given; empty for the CPU, and if there is no GPU.

    Raises:
        ConfigError: If `device` is not a device.
        DeviceError: If a named GPU does not exist.
    """
    request = parse_device(device)
    if request.kind in ("cpu", "openvino"):
        return ()
    if not request.gpus:
        return tuple(range(num_gpus()))
    _check_exist(request.gpus)
    return request.gpus


def _check_exist(gpus: tuple[int, ...]) -> None:
    count = num_gpus()
    missing = [gpu for gpu in gpus if gpu >= count]
    if missing:
        have = {0: "no GPU", 1: "one GPU, cuda:0"}.get(count, f"{count} GPUs, from cuda:0")
        raise DeviceError(
            f"GPU {missing[0]} does not exist: this process sees {have}; "
            f"choose one that exists (CUDA_VISIBLE_DEVICES hides GPUs), {REMEDY_CPU}"
        )


def _one_gpu(request: DeviceRequest, gpu: int | None) -> int:
    """Return the GPU for one session or module; `gpu` takes precedence if given.

    Raises:
        DeviceError: If the request names several.
    """
    if gpu is not None:
        return gpu
    if len(request.gpus) > 1:
        names = ",".join(f"{request.kind}:{gpu}" for gpu in request.gpus)
        raise DeviceError(
            f"`device={names}` names several GPUs, but only one can be used here; "
            f"choose `device={request.kind}:{request.gpus[0]}`"
        )
    return request.gpus[0] if request.gpus else 0


def check_tf32(choice: DeviceChoice) -> None:
    """Check that a device supports the requested TF32.

    Raises:
        DeviceError: If it does not.
    """
    if choice.device == "cpu":
        raise DeviceError(
            f"`tf32=True` needs an NVIDIA GPU, but the device is the CPU ({choice.reason}); "
            "leave it out, or choose `device=cuda`"
        )
    major, minor = gpu_capability(choice.gpu or 0)
    if (major, minor) < TF32_CAPABILITY:
        raise DeviceError(
            "`tf32=True` needs a GPU of compute capability 8.0 or later, but this one has "
            f"{major}.{minor}; leave it out"
        )


def default_threads() -> int:
    """Return the number of threads that fully use the cores available to this process."""
    return num_cores()


def cluster_device(requested: Device, num_gpus: int) -> tuple[Device, DeviceChoice]:
    """Choose the device of a cluster's workers, which run on other machines than this one.

    Args:
        requested: The requested device.
        num_gpus: Number of GPUs in the cluster.

    Returns:
        The device each worker opens the model on, never `auto`; and the choice.

    Raises:
        ConfigError: If `requested` is not a device.
        DeviceError: If a GPU is requested and there is none, or GPUs are named by index.
    """
    request = parse_device(requested)
    if request.gpus:
        raise DeviceError(
            f"`device={requested}` names GPUs of one machine, but a cluster assigns its own; "
            f"choose `device={request.kind}`"
        )
    if requested in ("cpu", "openvino"):
        return requested, DeviceChoice("cpu", AS_ASKED)
    if num_gpus:
        device = "cuda" if requested == "auto" else requested
        return device, DeviceChoice("cuda", f"GPUs of the cluster: {num_gpus}")
    if requested == "auto":
        return "cpu", DeviceChoice("cpu", "the cluster has no GPU")
    raise DeviceError(f"`device={requested}`: the cluster has no GPU; add one, {REMEDY_CPU}")


# ------------------------------------------------------------------------------------- torch


def torch_device(requested: Device, gpu: int | None = None) -> DeviceChoice:
    """Choose the device for PyTorch: `torch.device(choice.name)`.

    A GPU chosen by its index also becomes the calling thread's current one, for PyTorch calls that
    do not name a device.

    Args:
        requested: The requested device.
        gpu: Index of the GPU; overrides the one in `requested`.

    Raises:
        ConfigError: If `requested` is not a device.
        DeviceError: If CUDA is requested and PyTorch cannot use it, or the requested device runs
            ONNX files only, or it names several GPUs.
    """
    request = parse_device(requested)
    if request.kind == "cpu":
        return DeviceChoice("cpu", AS_ASKED)
    if request.kind not in get_args(TorchKind):
        raise DeviceError(
            f"`device={requested}` runs ONNX exports only, but this model runs in PyTorch; "
            f"choose {either(get_args(TorchKind))}, or use an ONNX export"
        )
    index = _one_gpu(request, gpu)
    problem, remedy = _torch_problem()
    if problem is None:
        return _torch_gpu(index, named=gpu is not None or bool(request.gpus))
    if request.kind == "cuda":
        raise DeviceError(f"CUDA does not work in PyTorch here: {problem}; {remedy}")
    return DeviceChoice("cpu", f"no CUDA in PyTorch: {problem}")


def _torch_gpu(gpu: int, *, named: bool) -> DeviceChoice:
    import torch

    if named:
        _check_exist((gpu,))
        torch.cuda.set_device(gpu)
    return DeviceChoice("cuda", f"PyTorch sees {torch.cuda.get_device_name(gpu)}", gpu)


def allow_tf32(enabled: bool) -> None:
    """Let PyTorch's CUDA kernels round to TF32, or keep them in full fp32 (needed for parity).

    This setting applies to the whole process; it has no effect without a GPU.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled


def make_deterministic() -> None:
    """Make PyTorch's CUDA kernels deterministic, so that a seed gives the same result each time.

    This setting applies to the whole process; it has no effect without a GPU.
    """
    import torch

    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def free_gpu_memory(device: "torch.device") -> int:
    """Return how many bytes of a CUDA device's memory PyTorch can still use.

    This is the driver's free memory plus what PyTorch has reserved but not allocated.
    """
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _torch_problem() -> tuple[str | None, str]:
    """Return why PyTorch cannot use CUDA (None: it can), and how to fix it."""
    import torch

    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA",
            f"install a CUDA build of torch, {REMEDY_CPU}",
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None, ""
    problem, remedy = _driver_problem()
    if problem is None and caught:
        problem = first_line(caught[0].message)
    return problem or "PyTorch sees no GPU", remedy


# ------------------------------------------------------------------------------- onnxruntime


def import_onnxruntime() -> "ModuleType":
    """Import onnxruntime with telemetry and terminal messages turned off.

    On import, the official builds report usage and write a device id under the user's cache folder;
    the variable that stops both must be set before. A value set by the user is respected.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.set_default_logger_severity(FATAL)
    return onnxruntime


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that onnxruntime raises; they share no base class."""
    import_onnxruntime()
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    return (
        state.EPFail,
        state.EngineError,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
        RuntimeError,
        ValueError,
    )


def open_session(
    model: Path | bytes,
    *,
    device: Device = "auto",
    threads: int | None = None,
    tf32: bool = False,
    gpu: int | None = None,
    nhwc: bool = False,
) -> "tuple[onnxruntime.InferenceSession, DeviceChoice]":
    """Open an ONNX model on the chosen device, and verify that it runs there.

    onnxruntime falls back to the CPU without an error even if only CUDA was requested. So the
    session is asked which execution providers it has, and which of them got each node.

    Args:
        model: An ONNX file, or its bytes.
        device: `auto` uses CUDA if all compute nodes run there; otherwise the CPU, with the reason.
        threads: Cores for one forward pass on the CPU; None for all available to this process.
        tf32: Let CUDA round fp32 products to TF32: faster, with an error of about 1e-3 in the
            logits.
        gpu: Index of the GPU; overrides the one in `device`.
        nhwc: Let CUDA compute in channels-last layout, which is faster for some models; no effect
            on other devices.

    Raises:
        ArtifactError: If onnxruntime cannot read the model.
        ConfigError: If `device` is not a device.
        DeviceError: If the requested device cannot run the model, or it names several GPUs.
    """
    request = parse_device(device)
    if request.kind == "cpu":
        return _cpu_session(model, threads), DeviceChoice("cpu", AS_ASKED)
    if request.kind == "openvino":
        session = _openvino_session(model, threads=threads)
        return session, DeviceChoice("cpu", _placed(session, OPENVINO_PROVIDER))
    index = _one_gpu(request, gpu)
    try:
        session = _gpu_session(model, request, index, threads=threads, tf32=tf32, nhwc=nhwc)
    except DeviceError as error:
        if request.kind != "auto":
            raise
        reason = problem_of(error)
        return _cpu_session(model, threads), DeviceChoice("cpu", reason)
    reason = _placed(session, session.get_providers()[0])
    return session, DeviceChoice("cuda", f"{reason}, TF32" if tf32 else reason, index)


def _placed(session: "onnxruntime.InferenceSession", provider: str) -> str:
    nodes = placement(session)
    return f"onnxruntime placed {nodes.get(provider, 0)} of {sum(nodes.values())} nodes on it"


def placement(session: "onnxruntime.InferenceSession") -> dict[str, int]:
    """Return the number of nodes of an opened model by execution provider."""
    return dict(Counter(provider for provider, _op in _assigned_nodes(session)))


def _assigned_nodes(session: "onnxruntime.InferenceSession") -> list[tuple[str, str]]:
    """Return (provider, operator) for each node, as recorded by onnxruntime."""
    return [
        (subgraph.ep_name, node.op_type)
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    ]


def _cpu_session(model: Path | bytes, threads: int | None) -> "onnxruntime.InferenceSession":
    return _new_session(model, threads=threads, providers=[CPU_PROVIDER])


def _gpu_session(
    model: Path | bytes,
    request: DeviceRequest,
    gpu: int,
    *,
    threads: int | None,
    tf32: bool,
    nhwc: bool,
) -> "onnxruntime.InferenceSession":
    """Open a session with all compute nodes on CUDA, or on TensorRT and CUDA.

    Raises:
        DeviceError: With the reason and the remedy, separated by the first semicolon.
    """
    ort = import_onnxruntime()
    cuda_options = {
        "device_id": str(gpu),
        # EXHAUSTIVE, the default, costs 0.3 to 1.3 s per new shape; DEFAULT picks slow kernels.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "1" if tf32 else "0",
    }
    if nhwc:
        cuda_options["prefer_nhwc"] = "1"
    providers: list[Any] = [(CUDA_PROVIDER, cuda_options), CPU_PROVIDER]
    name, wheel, libraries = "CUDA", "onnxruntime-gpu", '"onnxruntime-gpu[cuda,cudnn]"'
    if request.kind == "tensorrt":
        name, libraries = "TensorRT", "tensorrt"
        providers.insert(0, (TENSORRT_PROVIDER, _tensorrt_options(gpu)))
    _check_built(ort, providers[0][0], name, wheel)
    problem, remedy = _driver_problem()
    if problem is not None:
        raise DeviceError(f"{name} does not work in onnxruntime here: {problem}; {remedy}")
    if request.gpus:
        _check_exist((gpu,))
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints missing libraries; they are found below
            ort.preload_dlls()
    return _proven_session(model, threads, providers, name, libraries)


def _openvino_session(
    model: Path | bytes, *, threads: int | None
) -> "onnxruntime.InferenceSession":
    """Open a session with all compute nodes on OpenVINO's CPU device.

    Raises:
        DeviceError: With the reason and the remedy.
    """
    _check_built(import_onnxruntime(), OPENVINO_PROVIDER, "OpenVINO", "onnxruntime-openvino")
    options = {"device_type": "CPU", "num_of_threads": str(threads or default_threads())}
    providers = [(OPENVINO_PROVIDER, options), CPU_PROVIDER]
    return _proven_session(model, threads, providers, "OpenVINO", "onnxruntime-openvino")


def _check_built(ort: "ModuleType", provider: str, name: str, wheel: str) -> None:
    if provider not in ort.get_available_providers():
        raise DeviceError(
            f"onnxruntime {ort.__version__} is built without {name}; "
            f"pip uninstall onnxruntime onnxruntime-gpu && pip install {wheel}, {REMEDY_CPU}"
        )


def _proven_session(
    model: Path | bytes, threads: int | None, providers: list[Any], name: str, package: str
) -> "onnxruntime.InferenceSession":
    """Open a session; check that it has the first provider and no compute node on the CPU.

    Raises:
        DeviceError: With the reason and the remedy.
    """
    ort = import_onnxruntime()
    provider = providers[0][0]
    try:
        session = _new_session(model, threads=threads, providers=providers)
    except onnxruntime_errors() as error:
        missing = _missing_library(ort, provider)
        remedy = f"pip install {package}" if missing else "run `tltools doctor`"
        raise DeviceError(
            f"{name} does not work in onnxruntime here: {missing or first_line(error)}; "
            f"{remedy}, {REMEDY_CPU}"
        ) from error
    active = session.get_providers()
    if provider not in active:
        fallen_to = "the CPU" if active[0] == CPU_PROVIDER else active[0]
        reason = _missing_library(ort, provider) or f"{provider} is not in the session"
        raise DeviceError(
            f"onnxruntime fell back to {fallen_to}: {reason}; install the libraries it needs "
            f"with pip install {package}, {REMEDY_CPU}"
        )
    stranded = Counter(
        op
        for placed_on, op in _assigned_nodes(session)
        if placed_on == CPU_PROVIDER and any(kind in op for kind in COMPUTE_OPS)
    )
    if stranded:
        names = ", ".join(f"{count} {op}" for op, count in sorted(stranded.items()))
        raise DeviceError(
            f"{name} cannot run all of this model (left on the CPU: {names}); "
            f"export it with another `precision=`, {REMEDY_CPU}"
        )
    return session


def _tensorrt_options(gpu: int) -> dict[str, str]:
    """Return options that cache TensorRT's engines, since building one takes minutes."""
    from platformdirs import user_cache_path

    folder = user_cache_path("tltools", appauthor=False) / "tensorrt"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "device_id": str(gpu),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
    }


def _new_session(
    model: Path | bytes, *, threads: int | None, providers: list[Any]
) -> "onnxruntime.InferenceSession":
    """Open a session.

    Raises:
        ArtifactError: If the model cannot be read and only the CPU was requested.
        Exception: One of `onnxruntime_errors()` otherwise.
    """
    ort = import_onnxruntime()
    options = _session_options(threads)
    try:
        # enable_fallback=0: no retry on the CPU after an exception, in run() either.
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=providers,
            enable_fallback=0,
        )
    except onnxruntime_errors() as error:
        if providers != [CPU_PROVIDER]:
            raise
        name = "the model" if isinstance(model, bytes) else model
        raise ArtifactError(
            f"onnxruntime cannot open {name}: {first_line(error)}; recreate it with tltools export"
        ) from error


def _session_options(threads: int | None) -> "onnxruntime.SessionOptions":
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads or default_threads()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


# -------------------------------------------------------------------------------- the driver


def _driver_problem() -> tuple[str | None, str]:
    """Ask the NVIDIA driver for a GPU.

    Returns:
        The problem (None: there is a GPU), and how to fix it.
    """
    driver = load_driver()
    if driver is None:
        return (
            f"the NVIDIA driver is missing ({DRIVER_LIBRARY} cannot be loaded)",
            f"install the driver (start a container with `docker run --gpus all`), {REMEDY_CPU}",
        )
    if num_gpus() == 0:
        return (
            f"the NVIDIA driver finds no GPU (status {driver.cuInit(0)})",
            f"check nvidia-smi and CUDA_VISIBLE_DEVICES, {REMEDY_CPU}",
        )
    return None, f"run `tltools doctor`, {REMEDY_CPU}"


def _missing_library(ort: "ModuleType", provider: str) -> str | None:
    """Return which dependency of a provider's library is missing; onnxruntime only logs it.

    None if that is not the problem.
    """
    folder = Path(str(ort.__file__)).parent / "capi"
    windows = sys.platform == "win32"
    kind = provider.removesuffix("ExecutionProvider").lower()
    try:
        for name in ("onnxruntime_providers_shared", f"onnxruntime_providers_{kind}"):
            ctypes.CDLL(str(folder / (f"{name}.dll" if windows else f"lib{name}.so")))
    except OSError as error:
        return first_line(error)
    return None
