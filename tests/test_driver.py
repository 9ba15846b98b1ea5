"""The NVIDIA driver, as far as testable without a GPU; test_gpu.py has the rest."""

import numpy as np
import pytest

from tltools.errors import DeviceError
from tltools.runtime import driver
from tltools.runtime.driver import PageLock, gpu_memory, gpu_name, load_driver, num_gpus

needs_no_driver = pytest.mark.skipif(
    load_driver() is not None, reason="this machine has an NVIDIA driver"
)


class Counted:
    """Stands in for the driver's library with some GPUs."""

    def __init__(self, count, status=0):
        self.count, self.status = count, status

    def cuInit(self, _flags):  # noqa: N802 - the driver's name
        return self.status

    def cuDeviceGetCount(self, pointer):  # noqa: N802
        pointer._obj.value = self.count
        return 0


@pytest.mark.parametrize(
    ("library", "expected"), [(None, 0), (Counted(3), 3), (Counted(3, status=100), 0)]
)
def test_the_number_of_gpus_comes_from_the_driver(monkeypatch, library, expected):
    monkeypatch.setattr(driver, "load_driver", lambda: library)
    assert num_gpus() == expected


@needs_no_driver
@pytest.mark.parametrize("ask", [gpu_name, gpu_memory, lambda gpu: PageLock(np.zeros(9), gpu)])
def test_without_a_driver_the_error_says_so(ask):
    with pytest.raises(DeviceError, match=r"the NVIDIA driver is missing \(libcuda\.so\.1 cannot"):
        ask(0)


@pytest.mark.parametrize("array", [np.zeros(0), np.zeros((4, 4))[:, :2]])
def test_empty_or_noncontiguous_memory_is_not_page_locked(array):
    with pytest.raises(ValueError, match="an array that is empty or not contiguous"):
        PageLock(array)
