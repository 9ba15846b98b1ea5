"""Share the bench's time among its measurements, and say beforehand how long it will take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

BUDGET_S = 240.0
"""For a whole bench, so that both models with all their exports end within five minutes on two
cores. A target: slow models take longer, since each measurement has its fewest runs."""
START_S = 2.0
"""What a new process takes to import its runtime and open the model, over all formats."""
TORCH_START_S, ONNX_START_S = 3.5, 1.0
"""The same for each of the two runtimes."""
GPU_START_S = 3.0
"""What a GPU adds to it."""
SIZE_RANGE_S = (0.5, 10.0)
CLASSIFY_RANGE_S = (1.0, 2.0)
ACCURACY_SHARE = 0.25
"""Of the budget, for images of the accuracy that no timed batch has classified."""
MIN_ACCURACY_S = 5.0
GPU_FLOPS_PER_S = 20e12
"""A guess, for the estimate alone."""
INT8_SPEEDUP = 3.0
"""A guess, for the estimate alone."""


@dataclass(frozen=True)
class Limits:
    """How long the steps of one measurement may take, in seconds."""

    size_s: float
    """Timed runs of one batch size."""
    classify_s: float
    """The whole of `classify`."""
    accuracy_s: float
    """Accuracy, once for each candidate."""


def share_out(budget_s: float, *, num_candidates: int, rounds: int, num_sizes: int) -> Limits:
    """Divide the time among the steps that all candidates take in all rounds.

    With few candidates each step takes as long as is of use, and with many not less than is
    needed, so that the whole takes less or more than the budget then.
    """
    measurements = num_candidates * rounds
    left_s = (1 - ACCURACY_SHARE) * budget_s - START_S * measurements
    step_s = left_s / (measurements * (num_sizes + 1))
    return Limits(
        size_s=_within(step_s, SIZE_RANGE_S),
        classify_s=_within(step_s, CLASSIFY_RANGE_S),
        accuracy_s=max(MIN_ACCURACY_S, ACCURACY_SHARE * budget_s / num_candidates),
    )


def _within(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return min(max(value, low), high)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is known of a candidate before it is measured."""

    image_s: float
    """Seconds that one image may take; 0 where nothing is known."""
    with_classify: bool
    start_s: float = START_S
    """To import the runtime and open the model."""


def estimate_s(
    works: Sequence[Work],
    limits: Limits,
    *,
    rounds: int,
    runs: int,
    batch_sizes: Sequence[int],
    classify_batch: int = 32,
) -> float:
    """Guess how many seconds a bench will take.

    Args:
        works: One for each candidate.
        limits: Of one measurement's steps.
        rounds: Turns.
        runs: Timed runs per batch size at most.
        batch_sizes: Ascending.
        classify_batch: Images in a batch of `classify` with a slow model.
    """
    total = 0.0
    for work in works:
        seconds = work.start_s
        for size in batch_sizes:
            run_s = size * work.image_s
            least = 1 + (10 if size == 1 else 1)
            seconds += max(least * run_s, min(runs * run_s, limits.size_s))
        if work.with_classify:
            # Reading, decoding and writing take half as long as the whole, which takes two batches.
            seconds += max(1.5 * limits.classify_s, 2 * classify_batch * work.image_s)
        total += rounds * seconds
    return total


def image_seconds(flops_per_image: int | None, *, flops_per_s: float, int8: bool = False) -> float:
    """Guess how long a model takes for an image; 0 where its arithmetic is not known."""
    if flops_per_image is None:
        return 0.0
    return flops_per_image / (flops_per_s * (INT8_SPEEDUP if int8 else 1.0))


def quick_flops_per_s(size: int = 1024, tries: int = 3) -> float:
    """Measure how fast the CPU multiplies fp32 matrices, in a fraction of a second."""
    import numpy as np

    matrix = np.ones((size, size), dtype=np.float32)
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        np.matmul(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def announcement(seconds: float, *, num_candidates: int, rounds: int, on_gpu: bool) -> str:
    """Say how long a bench will take and how to shorten it."""
    no_tf32 = ", --no-tf32" if on_gpu else ""
    return (
        f"This takes about {duration(seconds)} (an estimate: {num_candidates} candidates, {rounds} "
        "rounds, a new process for each measurement). To shorten it, name fewer models or use "
        f"--rounds 1, fewer --batch-sizes{no_tf32}; to measure more exactly, a larger --budget or "
        "more --rounds"
    )


def duration(seconds: float) -> str:
    """Write a rough duration: seconds in tens, then minutes in halves."""
    if seconds < 90:
        return f"{max(10, 10 * round(seconds / 10))} s"
    return f"{round(2 * seconds / 60) / 2:g} min"
