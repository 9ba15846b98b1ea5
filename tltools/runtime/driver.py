"""Query GPUs and page-lock host memory with the NVIDIA driver, without PyTorch or a CUDA toolkit.

Only the driver's library is loaded. Its functions return a status; the functions here return the
value, or raise DeviceError with the driver's own message.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from tltools.errors import DeviceError

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# Names and numbers as in the driver's header, cuda.h.
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_MEMHOSTREGISTER_PORTABLE = 1
"""Locked for the contexts of all GPUs, not just for the current one."""
_POINTER_ATTRIBUTE_MEMORY_TYPE, _MEMORYTYPE_HOST = 2, 1
_CTX_SCHED_BLOCKING_SYNC, _CTX_SCHED_MASK = 4, 7
_NAME_BYTES = 256

_INT, _UINT, _SIZE, _POINTER = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p
_TEXT = ctypes.POINTER(ctypes.c_char_p)
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuInit": (_UINT,),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_POINTER), _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuDevicePrimaryCtxGetState": (_INT, ctypes.POINTER(_UINT), ctypes.POINTER(_INT)),
    "cuDevicePrimaryCtxSetFlags_v2": (_INT, _UINT),
    "cuCtxPushCurrent_v2": (_POINTER,),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(_POINTER),),
    "cuMemGetInfo_v2": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cuMemHostRegister_v2": (_POINTER, _SIZE, _UINT),
    "cuMemHostUnregister": (_POINTER,),
    "cuPointerGetAttribute": (_POINTER, _INT, ctypes.c_uint64),
    "cuGetErrorName": (_INT, _TEXT),
    "cuGetErrorString": (_INT, _TEXT),
}


def load_driver() -> ctypes.CDLL | None:
    """Return the driver's library; None if it is not installed."""
    try:
        return ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None


def num_gpus() -> int:
    """Return how many GPUs the NVIDIA driver lets this process use."""
    driver = load_driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def gpu_name(gpu: int) -> str:
    """Return the product name of a GPU.

    Raises:
        DeviceError: If there is no such GPU.
    """
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call("cuDeviceGetName", name, _NAME_BYTES, _handle(gpu))
    return name.value.decode(errors="replace")


def gpu_capability(gpu: int) -> tuple[int, int]:
    """Return the compute capability of a GPU, for example (9, 0).

    Raises:
        DeviceError: If there is no such GPU.
    """
    major, minor = _INT(), _INT()
    handle = _handle(gpu)
    _call("cuDeviceGetAttribute", ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, handle)
    _call("cuDeviceGetAttribute", ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, handle)
    return major.value, minor.value


def gpu_memory(gpu: int) -> tuple[int, int]:
    """Return the free and total memory of a GPU, in bytes.

    Memory used by any process counts as used. If this process does not use the GPU yet, the call
    itself takes a few hundred megabytes until it returns.

    Raises:
        DeviceError: If there is no such GPU, or its memory is exhausted.
    """
    free, total = _SIZE(), _SIZE()
    with _context(gpu) as context, _current(context):
        _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def sleep_while_waiting(gpu: int) -> None:
    """Let threads of this process sleep while they wait for a GPU.

    By default they poll: each reacts some microseconds sooner, but occupies a core that decoding
    needs.

    Raises:
        DeviceError: If there is no such GPU, or the driver fails.
    """
    handle, flags, is_active = _handle(gpu), _UINT(), _INT()
    _call("cuDevicePrimaryCtxGetState", handle, ctypes.byref(flags), ctypes.byref(is_active))
    wanted = (flags.value & ~_CTX_SCHED_MASK) | _CTX_SCHED_BLOCKING_SYNC
    _call("cuDevicePrimaryCtxSetFlags_v2", handle, wanted)


class PageLock:
    """Page-locked host memory, which GPUs read directly (DMA) while the CPU does other work.

    Copies from pageable memory go through a buffer of the driver, and the caller waits for them.
    Release the lock before the memory is unmapped; until then the lock keeps the array alive.
    """

    def __init__(self, array: NDArray[Any], gpu: int = 0) -> None:
        """Lock the memory of `array`; it may be shared with other processes.

        Args:
            array: A contiguous array that is not empty. Lock a whole mapping at once: two locks
                must not share a page.
            gpu: GPU in whose context the lock is made; it applies to all GPUs of this process.

        Raises:
            DeviceError: If the driver fails.
            ValueError: If the array is empty or not contiguous.
        """
        if not array.nbytes or not array.flags.c_contiguous:
            raise ValueError("cannot page-lock an array that is empty or not contiguous")
        self._array: NDArray[Any] | None = array
        self._address: int = array.ctypes.data
        with ExitStack() as stack:
            self._context = stack.enter_context(_context(gpu))
            with _current(self._context):
                size = array.nbytes
                _call("cuMemHostRegister_v2", self._address, size, _MEMHOSTREGISTER_PORTABLE)
            self._stack = stack.pop_all()

    def release(self) -> None:
        """Unlock the memory; further calls do nothing.

        Raises:
            DeviceError: If the driver fails.
        """
        if self._array is None:
            return
        self._array = None
        with self._stack, _current(self._context):
            _call("cuMemHostUnregister", self._address)

    def __enter__(self) -> Self:
        """Return the lock."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the lock."""
        self.release()


def is_page_locked(array: NDArray[Any], gpu: int = 0) -> bool:
    """Return whether the memory of `array` is page-locked.

    Raises:
        DeviceError: If there is no such GPU.
    """
    kind = _UINT(0)
    with _context(gpu) as context, _current(context):
        try:
            _call(
                "cuPointerGetAttribute",
                ctypes.byref(kind),
                _POINTER_ATTRIBUTE_MEMORY_TYPE,
                array.ctypes.data,
            )
        except DeviceError:  # the driver fails for memory that it has not locked
            return False
    return kind.value == _MEMORYTYPE_HOST


# ------------------------------------------------------------------------------------- calling


def _handle(gpu: int) -> int:
    _call("cuInit", 0)
    handle = _INT()
    _call("cuDeviceGet", ctypes.byref(handle), gpu)
    return handle.value


@contextmanager
def _context(gpu: int) -> Iterator[ctypes.c_void_p]:
    """Hold the primary context of a GPU: the one that onnxruntime and PyTorch use."""
    handle, context = _handle(gpu), _POINTER()
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    try:
        yield context
    finally:
        _call("cuDevicePrimaryCtxRelease_v2", handle)


@contextmanager
def _current(context: ctypes.c_void_p) -> Iterator[None]:
    """Make a context current in the calling thread, and restore the previous one afterwards."""
    _call("cuCtxPushCurrent_v2", context)
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(_POINTER()))


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        DeviceError: If the driver is missing, or the function fails.
    """
    driver = load_driver()
    if driver is None:
        raise DeviceError(f"the NVIDIA driver is missing ({DRIVER_LIBRARY} cannot be loaded)")
    status = _function(driver, name)(*arguments)
    if status:
        raise DeviceError(f"the NVIDIA driver failed in {name}: {_error_text(driver, status)}")


def _function(driver: ctypes.CDLL, name: str) -> Any:
    function = getattr(driver, name)
    function.argtypes, function.restype = _ARGUMENTS[name], _INT
    return function


def _error_text(driver: ctypes.CDLL, status: int) -> str:
    texts = []
    for name in ("cuGetErrorName", "cuGetErrorString"):
        text = ctypes.c_char_p()
        if not _function(driver, name)(status, ctypes.byref(text)) and text.value:
            texts.append(text.value.decode(errors="replace"))
    return ", ".join(texts) or f"status {status}"
