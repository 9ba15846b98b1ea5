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

from tltools.errors import ArtifactError, DeviceError
from tltools.parallel import num_cores

if TYPE_CHECKING:
    from types import ModuleType

    import onnxruntime

Device = Literal["auto", "cpu", "cuda"]
"""What a user may ask for; `auto` takes CUDA where it works and says what it chose."""

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
COMPUTE_OPS = ("Conv", "Gemm", "MatMul", "Pool")
"""A node whose operator's name contains one of these does arithmetic on pictures. onnxruntime
rightly keeps others, those that compute shapes for instance, on the CPU beside a GPU."""
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


# ------------------------------------------------------------------------------------- torch


def torch_device(requested: Device) -> DeviceChoice:
    """Choose the device for PyTorch.

    Raises:
        DeviceError: If CUDA is asked for and PyTorch cannot use it.
    """
    if requested == "cpu":
        return DeviceChoice("cpu", "as asked")
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
) -> "tuple[onnxruntime.InferenceSession, DeviceChoice]":
    """Open an ONNX model on the chosen device, and prove that it is there.

    onnxruntime falls back to the CPU without an error even when only CUDA was asked for. So the
    session is asked which providers it has, and which of them got each node.

    Args:
        model: An ONNX file, or its bytes.
        device: `auto` takes CUDA if all compute nodes run there, else the CPU, with the reason.
        threads: Cores for one forward pass on the CPU; None for all of this process's.
        tf32: Let CUDA round fp32 products to TF32: faster, about 1e-3 off in the logits.

    Raises:
        ArtifactError: If onnxruntime cannot read the model.
        DeviceError: If CUDA is asked for and cannot run the model.
    """
    if device == "cpu":
        return _cpu_session(model, threads), DeviceChoice("cpu", "as asked")
    try:
        session = _cuda_session(model, threads=threads, tf32=tf32)
    except DeviceError as error:
        if device == "cuda":
            raise
        reason = str(error).partition(";")[0]
        return _cpu_session(model, threads), DeviceChoice("cpu", reason)
    nodes = placement(session)
    on_gpu, total = nodes[CUDA_PROVIDER], sum(nodes.values())
    return session, DeviceChoice("cuda", f"onnxruntime placed {on_gpu} of {total} nodes on it")


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


def _cuda_session(
    model: Path | bytes, *, threads: int | None, tf32: bool
) -> "onnxruntime.InferenceSession":
    """Open a session whose compute nodes are all on CUDA.

    Raises:
        DeviceError: With the reason and the remedy; the reason ends at the first semicolon.
    """
    ort = import_onnxruntime()
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise DeviceError(
            f"onnxruntime {ort.__version__} is built without CUDA; "
            f"pip uninstall onnxruntime && pip install onnxruntime-gpu, {REMEDY_CPU}"
        )
    problem, remedy = _driver_problem()
    if problem is not None:
        raise DeviceError(f"CUDA does not work in onnxruntime here: {problem}; {remedy}")
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what it misses; we look for that below
            ort.preload_dlls()
    options = {
        # Each new shape costs EXHAUSTIVE, the default, 0.3 to 1.3 s; DEFAULT picks slow kernels.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "1" if tf32 else "0",
    }
    try:
        session = _new_session(
            model, threads=threads, providers=[(CUDA_PROVIDER, options), CPU_PROVIDER]
        )
    except onnxruntime_errors() as error:
        raise DeviceError(
            f"CUDA does not work in onnxruntime here: {_first_line(error)}; "
            f"look at `tltools doctor`, {REMEDY_CPU}"
        ) from error
    if CUDA_PROVIDER not in session.get_providers():
        raise DeviceError(
            f"onnxruntime fell back to the CPU: {_provider_problem(ort)}; install the libraries "
            f'that it was built for with pip install "onnxruntime-gpu[cuda,cudnn]", {REMEDY_CPU}'
        )
    stranded = Counter(
        op
        for provider, op in _assigned_nodes(session)
        if provider != CUDA_PROVIDER and any(kind in op for kind in COMPUTE_OPS)
    )
    if stranded:
        names = ", ".join(f"{count} {op}" for op, count in sorted(stranded.items()))
        raise DeviceError(
            f"CUDA cannot run all of this model (left on the CPU: {names}); "
            f"export it with another --precision, {REMEDY_CPU}"
        )
    return session


def _new_session(
    model: Path | bytes, *, threads: int | None, providers: list[Any]
) -> "onnxruntime.InferenceSession":
    """Open a session.

    Raises:
        ArtifactError: If the model cannot be read and the CPU alone was asked for.
        Exception: One of `onnxruntime_errors()` in other cases.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads or default_threads()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
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


# -------------------------------------------------------------------------------- the driver


def _driver_problem() -> tuple[str | None, str]:
    """Ask the NVIDIA driver for a GPU.

    Returns:
        What is wrong (None: there is a GPU), and what would mend it.
    """
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return (
            f"the NVIDIA driver is missing ({library} cannot be loaded)",
            f"install the driver (in a container, start it with --gpus all), {REMEDY_CPU}",
        )
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return (
            f"the NVIDIA driver finds no GPU (status {status})",
            f"look at nvidia-smi and CUDA_VISIBLE_DEVICES, {REMEDY_CPU}",
        )
    return None, f"look at `tltools doctor`, {REMEDY_CPU}"


def _provider_problem(ort: "ModuleType") -> str:
    """Return why onnxruntime's CUDA library does not load; it logs that and raises nothing."""
    folder = Path(str(ort.__file__)).parent / "capi"
    windows = sys.platform == "win32"
    names = ["onnxruntime_providers_shared", "onnxruntime_providers_cuda"]
    try:
        for name in names:
            ctypes.CDLL(str(folder / (f"{name}.dll" if windows else f"lib{name}.so")))
    except OSError as error:
        return _first_line(error)
    return f"{CUDA_PROVIDER} was asked for and is not in the session"


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
