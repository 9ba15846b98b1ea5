"""Pick the device that a model runs on, and prove that it runs there.

This is the only module that imports onnxruntime and the only one that names a kind of GPU, so
everything that depends on the machine is here.
"""

import ctypes
import io
import os
import sys
import warnings
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tltools.errors import ArtifactError, DeviceError
from tltools.parallel import num_cores

if TYPE_CHECKING:
    from types import ModuleType

    import onnxruntime
    import torch
    from numpy.typing import NDArray

Device = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
"""What a user may ask for. `auto` takes CUDA where it works and says what it chose; the last two
are onnxruntime's execution providers of that name, for NVIDIA GPUs and for Intel's processors."""

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
OPENVINO_PROVIDER = "OpenVINOExecutionProvider"
COMPUTE_OPS = ("Conv", "Gemm", "MatMul", "Pool")
"""A node whose operator's name contains one of these does arithmetic on pictures. onnxruntime
rightly keeps others, those that compute shapes for instance, on the CPU beside a GPU."""
DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
REMEDY_CPU = "or choose the CPU with --device cpu"
FATAL = 4
"""onnxruntime's highest log severity. Its errors reach us as exceptions or are looked for here;
what it writes to the terminal by itself alarms people whose job runs well."""


@dataclass(frozen=True)
class DeviceChoice:
    """Where a model runs, and why there."""

    device: Literal["cpu", "cuda"]
    reason: str
    """Completes the sentence "the device is X: ...", in one line."""


def default_threads() -> int:
    """Return the number of threads that use this process's cores fully."""
    return num_cores()


def cluster_device(requested: Device, num_gpus: int) -> tuple[Device, DeviceChoice]:
    """Choose the device of the workers of a cluster, which are other machines than this one.

    Args:
        requested: What was asked for.
        num_gpus: GPUs of the cluster.

    Returns:
        What each worker opens the model with, never `auto`; and the choice.

    Raises:
        DeviceError: If a GPU is asked for and there is none.
    """
    if requested in ("cpu", "openvino"):
        return requested, DeviceChoice("cpu", "as asked")
    if num_gpus:
        device = "cuda" if requested == "auto" else requested
        return device, DeviceChoice("cuda", f"GPUs of the cluster: {num_gpus}")
    if requested == "auto":
        return "cpu", DeviceChoice("cpu", "the cluster has no GPU")
    raise DeviceError(f"--device {requested}: the cluster has no GPU; add one, {REMEDY_CPU}")


# ------------------------------------------------------------------------------------- torch


def torch_device(requested: Device) -> DeviceChoice:
    """Choose the device for PyTorch.

    Raises:
        DeviceError: If CUDA is asked for and PyTorch cannot use it, or what is asked for runs
            ONNX files only.
    """
    if requested == "cpu":
        return DeviceChoice("cpu", "as asked")
    if requested in ("tensorrt", "openvino"):
        raise DeviceError(
            f"--device {requested} runs ONNX exports only, and this is PyTorch; "
            "choose --device auto, cpu or cuda, or an .onnx file"
        )
    problem, remedy = _torch_problem()
    if problem is None:
        import torch

        return DeviceChoice("cuda", f"PyTorch sees {torch.cuda.get_device_name()}")
    if requested == "cuda":
        raise DeviceError(f"CUDA does not work in PyTorch here: {problem}; {remedy}")
    return DeviceChoice("cpu", f"no CUDA in PyTorch: {problem}")


def allow_tf32(enabled: bool) -> None:
    """Let PyTorch's CUDA kernels round to TF32, or keep them at full fp32 (parity needs that).

    A setting of the whole process; without a GPU it has no effect.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled


def make_deterministic() -> None:
    """Let PyTorch's CUDA kernels give the same result each time, for a seed to mean something.

    A setting of the whole process; without a GPU it has no effect.
    """
    import torch

    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def free_gpu_memory(device: "torch.device") -> int:
    """Return how many bytes of a CUDA device's memory PyTorch can still use.

    That is what the driver has free, and what PyTorch holds for later without using it.
    """
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _torch_problem() -> tuple[str | None, str]:
    """Return why PyTorch cannot use CUDA (None: it can), and what would mend that."""
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
        problem = _first_line(caught[0].message)
    return problem or "PyTorch sees no GPU", remedy


# ------------------------------------------------------------------------------- onnxruntime


def import_onnxruntime() -> "ModuleType":
    """Import onnxruntime without its usage reports and without its messages on the terminal.

    The official builds report usage and write a device id under the user's cache folder when
    they are imported; the variable that stops both must be set before. A user who has set it to
    something else has decided, and is left alone.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.set_default_logger_severity(FATAL)
    return onnxruntime


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that onnxruntime raises; they have no base class of their own."""
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
    gpu: int = 0,
) -> "tuple[onnxruntime.InferenceSession, DeviceChoice]":
    """Open an ONNX model on the chosen device, and prove that it is there.

    onnxruntime falls back to the CPU without an error even when only CUDA was asked for. So the
    session is asked which providers it has, and which of them got each node.

    Args:
        model: An ONNX file, or its bytes.
        device: `auto` takes CUDA if all compute nodes run there, else the CPU, with the reason.
        threads: Cores for one forward pass on the CPU; None for all of this process's.
        tf32: Let CUDA round fp32 products to TF32: faster, about 1e-3 off in the logits.
        gpu: Which of the GPUs, from 0.

    Raises:
        ArtifactError: If onnxruntime cannot read the model.
        DeviceError: If a device is asked for that cannot run the model.
    """
    if device == "cpu":
        return _cpu_session(model, threads), DeviceChoice("cpu", "as asked")
    if device == "openvino":
        session = _openvino_session(model, threads=threads)
        return session, DeviceChoice("cpu", _placed(session, OPENVINO_PROVIDER))
    try:
        session = _gpu_session(
            model, tensorrt=device == "tensorrt", threads=threads, tf32=tf32, gpu=gpu
        )
    except DeviceError as error:
        if device != "auto":
            raise
        reason = str(error).partition(";")[0]
        return _cpu_session(model, threads), DeviceChoice("cpu", reason)
    return session, DeviceChoice("cuda", _placed(session, session.get_providers()[0]))


def _placed(session: "onnxruntime.InferenceSession", provider: str) -> str:
    nodes = placement(session)
    return f"onnxruntime placed {nodes.get(provider, 0)} of {sum(nodes.values())} nodes on it"


def placement(session: "onnxruntime.InferenceSession") -> dict[str, int]:
    """Return how many nodes of an opened model each execution provider runs."""
    return dict(Counter(provider for provider, _op in _assigned_nodes(session)))


def _assigned_nodes(session: "onnxruntime.InferenceSession") -> list[tuple[str, str]]:
    """Return (provider, operator) of each node, as onnxruntime has recorded them."""
    return [
        (subgraph.ep_name, node.op_type)
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    ]


def _cpu_session(model: Path | bytes, threads: int | None) -> "onnxruntime.InferenceSession":
    return _new_session(model, threads=threads, providers=[CPU_PROVIDER])


def _gpu_session(
    model: Path | bytes, *, tensorrt: bool, threads: int | None, tf32: bool, gpu: int
) -> "onnxruntime.InferenceSession":
    """Open a session whose compute nodes are all on CUDA, or on TensorRT and CUDA.

    Raises:
        DeviceError: With the reason and the remedy; the reason ends at the first semicolon.
    """
    ort = import_onnxruntime()
    cuda_options = {
        "device_id": str(gpu),
        # Each new shape costs EXHAUSTIVE, the default, 0.3 to 1.3 s; DEFAULT picks slow kernels.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "1" if tf32 else "0",
    }
    providers: list[Any] = [(CUDA_PROVIDER, cuda_options), CPU_PROVIDER]
    name, wheel, libraries = "CUDA", "onnxruntime-gpu", '"onnxruntime-gpu[cuda,cudnn]"'
    if tensorrt:
        name, libraries = "TensorRT", "tensorrt"
        providers.insert(0, (TENSORRT_PROVIDER, _tensorrt_options(gpu)))
    _check_built(ort, providers[0][0], name, wheel)
    problem, remedy = _driver_problem()
    if problem is not None:
        raise DeviceError(f"{name} does not work in onnxruntime here: {problem}; {remedy}")
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what it misses; we look for that below
            ort.preload_dlls()
    return _proven_session(model, threads, providers, name, libraries)


def _openvino_session(
    model: Path | bytes, *, threads: int | None
) -> "onnxruntime.InferenceSession":
    """Open a session whose compute nodes are all on OpenVINO's CPU device.

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
    """Open a session, and see that the first provider is in it and no compute node on the CPU.

    Raises:
        DeviceError: With the reason and the remedy.
    """
    ort = import_onnxruntime()
    provider = providers[0][0]
    try:
        session = _new_session(model, threads=threads, providers=providers)
    except onnxruntime_errors() as error:
        missing = _missing_library(ort, provider)
        remedy = f"pip install {package}" if missing else "look at `tltools doctor`"
        raise DeviceError(
            f"{name} does not work in onnxruntime here: {missing or _first_line(error)}; "
            f"{remedy}, {REMEDY_CPU}"
        ) from error
    active = session.get_providers()
    if provider not in active:
        fallen_to = "the CPU" if active[0] == CPU_PROVIDER else active[0]
        reason = _missing_library(ort, provider) or f"{provider} is not in the session"
        raise DeviceError(
            f"onnxruntime fell back to {fallen_to}: {reason}; install the libraries that it was "
            f"built for with pip install {package}, {REMEDY_CPU}"
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
            f"export it with another --precision, {REMEDY_CPU}"
        )
    return session


def _tensorrt_options(gpu: int) -> dict[str, str]:
    """Keep the engines that TensorRT builds: building one takes minutes."""
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
        ArtifactError: If the model cannot be read and the CPU alone was asked for.
        Exception: One of `onnxruntime_errors()` in other cases.
    """
    ort = import_onnxruntime()
    options = _session_options(threads)
    try:
        # enable_fallback=0: no second try on the CPU after an exception, not in run() either.
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
            f"onnxruntime cannot open {name}: {_first_line(error)}; "
            f"make it again with tltools export"
        ) from error


def _session_options(threads: int | None) -> "onnxruntime.SessionOptions":
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads or default_threads()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def page_locked_array(
    session: "onnxruntime.InferenceSession", shape: tuple[int, ...]
) -> "tuple[NDArray[np.uint8], onnxruntime.OrtValue] | None":
    """Allocate an input's memory where a GPU reads it by itself, without a copy on the way.

    Returns:
        An array, uint8, and the value that owns its memory and can be bound to the input; None
        where the session's device has no such memory (the CPU).
    """
    ort = import_onnxruntime()
    (device,) = session.get_input_epdevices() or (None,)
    memory = device and device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
    if memory is None:
        return None
    value = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, memory_info=memory)
    return value.numpy(), value


# -------------------------------------------------------------------------------- the driver


def num_gpus() -> int:
    """Return how many GPUs the NVIDIA driver lets this process use."""
    driver = _driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None


def _driver_problem() -> tuple[str | None, str]:
    """Ask the NVIDIA driver for a GPU.

    Returns:
        What is wrong (None: there is a GPU), and what would mend it.
    """
    driver = _driver()
    if driver is None:
        return (
            f"the NVIDIA driver is missing ({DRIVER_LIBRARY} cannot be loaded)",
            f"install the driver (in a container, start it with --gpus all), {REMEDY_CPU}",
        )
    if num_gpus() == 0:
        return (
            f"the NVIDIA driver finds no GPU (status {driver.cuInit(0)})",
            f"look at nvidia-smi and CUDA_VISIBLE_DEVICES, {REMEDY_CPU}",
        )
    return None, f"look at `tltools doctor`, {REMEDY_CPU}"


def _missing_library(ort: "ModuleType", provider: str) -> str | None:
    """Return which library a provider's own cannot load; onnxruntime logs that and raises nothing.

    None where that is not the problem.
    """
    folder = Path(str(ort.__file__)).parent / "capi"
    windows = sys.platform == "win32"
    kind = provider.removesuffix("ExecutionProvider").lower()
    try:
        for name in ("onnxruntime_providers_shared", f"onnxruntime_providers_{kind}"):
            ctypes.CDLL(str(folder / (f"{name}.dll" if windows else f"lib{name}.so")))
    except OSError as error:
        return _first_line(error)
    return None


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
