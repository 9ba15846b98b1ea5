"""Measure the GPU's peak FLOP/s once per bench, in a separate process."""

import multiprocessing
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tltools.bench.gpu import uses_gpu
from tltools.errors import TltoolsError
from tltools.runtime import Device


def measure_peaks(device: Device, precisions: Collection[str]) -> tuple[dict[str, float], str]:
    """Measure how fast a GPU multiplies large matrices; the CPU is not measured.

    Returns:
        Floating-point operations per second by precision, empty without a GPU; and a message why
        they could not be measured, or an empty string.
    """
    if not uses_gpu(device):
        return {}, ""
    from tltools.runtime.peak import matmul_flops_per_s

    device = "auto" if device == "tensorrt" else device  # PyTorch is on the same GPU
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(matmul_flops_per_s, device, sorted(precisions)).result(), ""
    except (TltoolsError, ImportError, RuntimeError, BrokenProcessPool) as error:
        return {}, f"cannot measure the GPU's peak FLOP/s ({error}): shares of it are left out"
