"""Measure how much GPU memory a measurement uses, by asking the NVIDIA driver."""

import ctypes

from tltools.errors import DeviceError
from tltools.runtime.device import DRIVER_LIBRARY, num_gpus


def uses_gpu(device: str) -> bool:
    """Return whether models opened on `device` should run on a GPU of this machine."""
    return device not in ("cpu", "openvino") and num_gpus() > 0


class GpuMemory:
    """Tracks the GPU memory allocated from now on by any runtime in this process.

    The driver's free memory (`cuMemGetInfo`) is compared with its initial value. PyTorch and
    onnxruntime keep the memory they have allocated, so it is enough to check after each step of
    work. The CUDA context itself is not included; memory that other programs allocate on the same
    GPU meanwhile is.
    """

    def __init__(self, index: int = 0) -> None:
        """Start tracking; this creates the CUDA context that the runtimes also use.

        Args:
            index: Index of the GPU among those visible to this process, from 0.

        Raises:
            DeviceError: If the driver refuses.
        """
        try:
            self._driver = ctypes.CDLL(DRIVER_LIBRARY)
        except OSError as error:
            raise DeviceError(f"cannot query the GPU's memory: {error}") from error
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._free_at_start = self._least_free = self._free_bytes()

    def look(self) -> None:
        """Record how much memory is free now."""
        self._least_free = min(self._least_free, self._free_bytes())

    @property
    def peak_bytes(self) -> int:
        """The largest allocation, in bytes, over all calls of `look`."""
        return self._free_at_start - self._least_free

    def _free_bytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        return free.value

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            raise DeviceError(f"the NVIDIA driver's {name} failed with status {status}")


def watch_gpu(device: str) -> GpuMemory | None:
    """Start tracking the GPU named by `device`, if it is one.

    If it names several (`NAME:INDEX,NAME:INDEX`), the first is tracked, where models are measured.

    Raises:
        DeviceError: If the driver refuses.
    """
    if not uses_gpu(device):
        return None
    first = device.split(",")[0]
    return GpuMemory(int(first.partition(":")[2] or 0))
