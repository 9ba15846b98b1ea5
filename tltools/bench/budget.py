"""Divide the bench's time among its measurements, and estimate its duration."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from tltools.bench.gpu import uses_gpu
from tltools.bench.inputs import Candidate
from tltools.bench.rows import EAGER
from tltools.bench.settings import (
    BUDGET_S,
    CPU_BATCH_SIZES,
    GPU_BATCH_SIZES,
    ROUNDS,
    BenchSettings,
    Effort,
)
from tltools.bench.timing import MIN_LATENCY_RUNS, MIN_WARMUP
from tltools.parallel import num_cores
from tltools.runtime.model_formats import format_named
from tltools.wording import counted, either

START_S = 2.0
"""Seconds a new process takes to import its runtime and open the model, averaged over formats."""
TORCH_START_S, ONNX_START_S = 3.5, 1.0
"""The same for each runtime."""
GPU_START_S = 9.0
"""Extra start-up time on a GPU, in seconds."""
SIZE_RANGE_S = (0.5, 10.0)
CLASSIFY_RANGE_S = (1.0, 2.0)
ACCURACY_SHARE = 0.25
"""Share of the budget for images that no timed batch has classified, to measure the accuracy."""
MIN_ACCURACY_S = 5.0
GPU_FLOPS_PER_S = 20e12
"""A guess, for the estimate only."""
INT8_SPEEDUP = 3.0
"""A guess, for the estimate only."""
MIN_IMAGE_S = 4e-4
"""Seconds per image with a small model, where memory and calls cost more than arithmetic."""
CLASSIFY_START_S = 0.6
"""Seconds to start the workers of `classify`."""
CLASSIFY_SHARES = 1.75
"""Time for all stages of `classify` and the whole of it, relative to the time for the whole."""
CLASSIFY_BATCH, CLASSIFY_BATCHES = 8, 3
"""Images in a batch of `classify` with a slow model, and the number of such batches."""
ROUND_IMAGES = 48
"""Images per round that timed batches classify for the accuracy, at least; 144 in three rounds."""
MIN_KNOWN, WRONG, WORTH_TELLING_S = 0.25, 1.5, 60.0
"""A wrong estimate is corrected after this share of it, if the measurements took this many times as
long, or were this many times as fast, and if it is wrong by this many seconds."""
OVER_BUDGET = 0.25
"""An estimate that exceeds the budget by more than this share of it says so."""
NOISE = 0.05
"""Relative differences in throughput below this do not count."""


@dataclass(frozen=True)
class Limits:
    """Time limits for the steps of one measurement, in seconds."""

    size_s: float
    """For the timed passes of one batch size."""
    classify_s: float
    """For the whole of `classify`."""
    accuracy_s: float
    """For the accuracy, once per candidate."""


def plan(
    settings: BenchSettings, works: "Sequence[Work]", *, num_images: int
) -> tuple[Effort, list[float]]:
    """Decide how to measure the candidates, and estimate how many seconds each will take.

    A budget that is given is kept to with fewer rounds, unless their number is given too.
    """
    is_fixed = settings.rounds is not None or settings.budget_s is None
    while True:
        effort = plan_effort(settings, num_candidates=len(works), num_images=num_images)
        found = estimates_s(works, effort)
        if is_fixed or effort.rounds == 1 or not exceeds(sum(found), effort.budget_s):
            return effort, found
        settings = replace(settings, rounds=effort.rounds - 1)


def exceeds(seconds: float, budget_s: float) -> bool:
    """Return whether an estimate is worth telling to exceed the budget."""
    return seconds > (1 + OVER_BUDGET) * budget_s


def plan_effort(settings: BenchSettings, *, num_candidates: int, num_images: int) -> Effort:
    """Decide how to measure each candidate, from the settings and the number of candidates."""
    rounds = ROUNDS if settings.rounds is None else settings.rounds
    budget_s = BUDGET_S if settings.budget_s is None else settings.budget_s
    sizes = settings.batch_sizes
    if sizes is None:
        sizes = GPU_BATCH_SIZES if uses_gpu(settings.device) else CPU_BATCH_SIZES
    sizes = tuple(sorted({1, *sizes}))
    limits = share_out(
        budget_s,
        num_candidates=max(1, num_candidates),
        rounds=max(1, rounds),
        num_sizes=len(sizes),
    )
    return Effort(
        device=settings.device,
        threads=settings.threads or num_cores(),
        batch_sizes=sizes,
        rounds=rounds,
        iterations=settings.iterations,
        warmup=settings.warmup,
        max_seconds=settings.max_seconds or limits.size_s,
        classify_seconds=settings.classify_seconds or limits.classify_s,
        accuracy_s=limits.accuracy_s,
        num_images=num_images,
        budget_s=budget_s,
        may_leave_out=settings.batch_sizes is None,
    )


def share_out(budget_s: float, *, num_candidates: int, rounds: int, num_sizes: int) -> Limits:
    """Divide the time among the steps of all candidates in all rounds.

    The time for a step has an upper and a lower limit, so the whole may take less than the budget
    with few candidates, and more with many.
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


def outlasts(batch_size: int, image_s: float, *, size_s: float) -> bool:
    """Return whether one warm-up batch and one timed batch of a size exceed its time limit."""
    return 2 * batch_size * image_s > size_s


def cannot_pay(batch_size: int, known_s: Mapping[int, float], *, size_s: float) -> bool:
    """Return whether a batch size can be skipped: a slow model's, which gains nothing from it.

    A call has a fixed cost and a cost per image. The two largest measured sizes give both, and so
    the expected gain of a larger batch.

    Args:
        batch_size: A batch size larger than those measured.
        known_s: Seconds for one batch by its size, ascending; at least two are needed to decide.
        size_s: Seconds for the timed passes of one batch size.
    """
    if len(known_s) < 2:
        return False
    (small, small_s), (large, large_s) = list(known_s.items())[-2:]
    image_s = max(0.0, (large_s - small_s) / (large - small))
    expected_s = large_s + (batch_size - large) * image_s
    gain = large_s / large * batch_size / expected_s - 1
    return outlasts(batch_size, large_s / large, size_s=size_s) and gain < NOISE


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is known about a candidate before it is measured."""

    image_s: float
    """Estimated seconds per image; 0 if unknown."""
    with_classify: bool
    start_s: float = START_S
    """Seconds to import the runtime and open the model."""


def works(candidates: Sequence[Candidate], *, on_gpu: bool, with_classify: bool) -> list[Work]:
    """Estimate how fast each candidate is, from its FLOPs and the machine's FLOP/s."""
    flops_per_s = GPU_FLOPS_PER_S if on_gpu else quick_flops_per_s()
    flops = {one.run: one.flops_per_image for one in candidates if one.flops_per_image}
    return [
        Work(
            image_s=image_seconds(
                flops.get(one.run),
                flops_per_s=flops_per_s,
                int8=one.precision == "int8" and not on_gpu,
            ),
            with_classify=with_classify and one.format != EAGER,
            start_s=(TORCH_START_S if _needs_torch(one.format) else ONNX_START_S)
            + (GPU_START_S if on_gpu else 0.0),
        )
        for one in candidates
    ]


def _needs_torch(name: str) -> bool:
    return name == EAGER or format_named(name).needs_torch


def estimates_s(works: Sequence[Work], effort: Effort) -> list[float]:
    """Estimate how many seconds all rounds of each candidate will take."""
    return [_candidate_s(work, effort) for work in works]


class Pace:
    """Corrects the estimate of a bench, once, if its measurements take far longer or shorter."""

    def __init__(self, estimates_s: Sequence[float], rounds: int) -> None:
        """Store the estimates of all rounds of each candidate, in seconds."""
        self._rounds_s = [one / rounds for one in estimates_s]
        self._left_s = sum(estimates_s)
        self._known_s = MIN_KNOWN * self._left_s
        self._expected_s = self._spent_s = 0.0
        self._is_told = False

    def correction(self, index: int, seconds: float) -> str:
        """Take a measurement of a candidate into account; return a line if the estimate is wrong.

        Args:
            index: Number of the candidate, from 0.
            seconds: Duration of one round of it.
        """
        self._left_s -= self._rounds_s[index]
        self._expected_s += self._rounds_s[index]
        self._spent_s += seconds
        times = self._spent_s / max(self._expected_s, 1e-9)
        left_s = times * self._left_s
        if self._is_told or self._expected_s < self._known_s or 1 / WRONG < times < WRONG:
            return ""
        if abs(left_s - self._left_s) < WORTH_TELLING_S:
            return ""
        self._is_told = True
        how = "slower than estimated, perhaps busy" if times > 1 else "faster than estimated"
        return f"This machine is {how}: about {duration(left_s)} left"


def _candidate_s(work: Work, effort: Effort) -> float:
    """Estimate how many seconds all rounds of one candidate will take."""
    round_s = work.start_s
    judged = 0  # images classified by the timed batches of a round
    sizes = _likely_sizes(work.image_s, effort)
    for size in sizes:
        runs = _num_iterations(size, work.image_s, effort)
        judged = 0 if size == 1 else runs * size
        round_s += runs * size * work.image_s
    left = max(0, effort.num_images - effort.rounds * judged)
    total = effort.rounds * round_s + min(effort.accuracy_s, left * work.image_s)
    if not work.with_classify:
        return total
    batches_s = CLASSIFY_BATCHES * CLASSIFY_BATCH * work.image_s
    if batches_s > effort.classify_seconds:  # only in the first round
        return total + CLASSIFY_START_S + 0.5 * effort.classify_seconds + batches_s
    return total + effort.rounds * (CLASSIFY_START_S + CLASSIFY_SHARES * effort.classify_seconds)


def _likely_sizes(image_s: float, effort: Effort) -> list[int]:
    """Return the batch sizes that will be timed if a slow model gains nothing from batches."""
    if not effort.may_leave_out or not image_s:
        return list(effort.batch_sizes)
    known_s = {size: size * image_s for size in effort.batch_sizes[:2]}
    return [
        *known_s,
        *(
            size
            for size in effort.batch_sizes[2:]
            if not cannot_pay(size, known_s, size_s=effort.max_seconds)
        ),
    ]


def _num_iterations(size: int, image_s: float, effort: Effort) -> int:
    """Return how often a batch will be run, including the warm-up passes."""
    run_s = size * image_s
    least = MIN_LATENCY_RUNS if size == 1 else max(1, ceil(ROUND_IMAGES / size) - 1)
    if not run_s:
        return 0
    warmup = max(MIN_WARMUP if size == 1 else 1, ceil(effort.max_seconds / 4 / run_s))
    timed = max(least, ceil(effort.max_seconds / run_s))
    return min(effort.warmup, warmup) + min(effort.iterations, timed)


def image_seconds(flops_per_image: int | None, *, flops_per_s: float, int8: bool = False) -> float:
    """Estimate a model's seconds per image; 0 if its FLOPs are unknown."""
    if flops_per_image is None:
        return 0.0
    seconds = flops_per_image / (flops_per_s * (INT8_SPEEDUP if int8 else 1.0))
    return max(seconds, MIN_IMAGE_S)


def quick_flops_per_s(size: int = 1024, tries: int = 10) -> float:
    """Measure the CPU's FLOP/s in fp32 matrix products, within a fraction of a second.

    The fastest of many counts: on a busy machine, most wait for a core.
    """
    import numpy as np

    matrix = np.ones((size, size), dtype=np.float32)
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        np.matmul(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def announcement(
    seconds: float,
    *,
    budget_s: float,
    num_candidates: int,
    rounds: int,
    num_sizes: int,
    with_tf32: bool,
) -> str:
    """Return a line with the bench's estimated duration and how to change it.

    Args:
        seconds: The estimate.
        budget_s: The time that the bench should take, in seconds.
        num_candidates: Number of candidates.
        rounds: Number of rounds.
        num_sizes: Number of batch sizes.
        with_tf32: Whether a candidate runs in TF32.
    """
    shorter = [
        *(["`rounds=1`"] if rounds > 1 else []),
        *(["fewer models"] if num_candidates > 1 else []),
        *(["fewer `batch_sizes=`"] if num_sizes > 1 else []),
        *(["`tf32=False`"] if with_tf32 else []),
    ]
    is_over = exceeds(seconds, budget_s)
    return (
        f"This takes about {duration(seconds)}{f', not {budget_s:g} s' if is_over else ''} "
        f"(estimate: {counted(num_candidates, 'candidate')}, "
        f"{counted(rounds, 'round')}, a new process for each measurement); "
        + (f"to shorten it, use {either(shorter)}; " if shorter else "")
        + ("no measurement can be shorter" if is_over else "a larger `budget_s=` is more precise")
    )


def duration(seconds: float) -> str:
    """Format a rough duration: seconds in tens, then minutes in halves."""
    if seconds < 90:
        return f"{max(10, 10 * round(seconds / 10))} s"
    return f"{round(2 * seconds / 60) / 2:g} min"
