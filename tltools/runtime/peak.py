"""Measure how fast a device multiplies matrices: the limit for a model's speed."""

import time
from collections.abc import Callable, Sequence

from tltools.runtime.device import Device, allow_tf32, torch_device

SIZE = 8192
"""Rows and columns: large enough that the arithmetic alone counts, 768 MB in fp32."""
ROUND_S = 0.3
NUM_ROUNDS = 3


def matmul_flops_per_s(
    device: Device, precisions: Sequence[str], *, size: int = SIZE, round_s: float = ROUND_S
) -> dict[str, float]:
    """Multiply two large square matrices in PyTorch, again and again.

    To be called in a process of its own: it imports torch, and sets its TF32 switch.

    Args:
        device: Where.
        precisions: Of `fp32`, `tf32` and `fp16`; others are left out.
        size: Rows and columns of the matrices.
        round_s: Seconds of work at least for each of three rounds, of which the best counts.

    Returns:
        Floating-point operations per second by precision.

    Raises:
        DeviceError: If PyTorch cannot use the device.
    """
    chosen = torch_device(device).device
    import torch

    types = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}
    rates: dict[str, float] = {}
    for precision in precisions:
        if precision not in types:
            continue
        allow_tf32(precision == "tf32")
        left, right = (
            torch.randn(size, size, device=chosen).to(types[precision]) for _ in range(2)
        )
        product = torch.empty_like(left)

        def multiply(times: int, out=product, factors=(left, right)) -> None:
            for _ in range(times):
                torch.matmul(*factors, out=out)
            out[0, 0].item()  # waits for the device

        rates[precision] = 2 * size**3 / _seconds_each(multiply, round_s)
    return rates


def _seconds_each(work: Callable[[int], None], round_s: float) -> float:
    """Return the seconds that one repetition takes, in the best of some rounds.

    Args:
        work: Does something so many times.
        round_s: Seconds that each round takes at least.
    """
    work(1)  # chooses kernels
    times, best = 1, float("inf")
    rounds = 0
    while rounds < NUM_ROUNDS:
        start = time.perf_counter()
        work(times)
        seconds = time.perf_counter() - start
        if seconds < round_s:
            times *= 2
        else:
            rounds += 1
            best = min(best, seconds / times)
    return best
