"""Time a step of work after a warm-up, and evaluate the samples; tests need no model or waiting."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

MAX_ROUND_SPREAD = 0.10
"""Largest relative difference between the medians of stable rounds."""
OUTLIER_SCORE = 14.826
"""Smallest modified Z-score of an outlier: ten standard deviations, since 1.4826 times the
median absolute deviation estimates one (Iglewicz and Hoaglin, 1993; hyperfine uses the same)."""
MIN_LATENCY_RUNS = 10
MIN_THROUGHPUT_RUNS = 1
"""Per round; a slow model's batch takes seconds, and its time varies little."""
MIN_WARMUP = 2
"""TorchScript profiles in the first run and compiles in the second."""


@dataclass(frozen=True)
class Timing:
    """The samples of one measurement."""

    samples_s: tuple[float, ...]
    """Seconds of every timed run, in order."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles over the samples of all rounds, in seconds."""

    p50_s: float
    p95_s: float
    p99_s: float
    num_samples: int


def measure(
    step: Callable[[], object],
    *,
    warmup: int,
    runs: int,
    max_seconds: float,
    min_runs: int = 10,
    min_warmup: int = MIN_WARMUP,
    prepare: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Run `step` and time it.

    Args:
        step: The work. It must not return before the work is done (a predictor returns numpy
            arrays, so it waits for a GPU).
        warmup: Number of untimed runs before the timed ones, to fill caches and choose kernels.
            They end early once they have taken a quarter of `max_seconds`.
        runs: Number of timed runs.
        max_seconds: Timed runs end early once they have taken this long, in seconds.
        min_runs: Minimum number of timed runs (or `runs` if that is less).
        min_warmup: Minimum number of warm-up runs.
        prepare: Called before each run, including warm-up runs, and not timed.
        clock: Returns seconds from an arbitrary start. Tests pass a fake.
    """
    ready = prepare or _nothing
    start = clock()
    for done in range(1, warmup + 1):
        ready()
        step()
        if done >= min_warmup and clock() - start >= max_seconds / 4:
            break
    samples: list[float] = []
    total = 0.0
    while len(samples) < runs and (len(samples) < min_runs or total < max_seconds):
        ready()
        start = clock()
        step()
        samples.append(clock() - start)
        total += samples[-1]
    return Timing(samples_s=tuple(samples))


def _nothing() -> None:
    """Do nothing."""


def latency(samples_s: Sequence[float]) -> Latency:
    """Return the percentiles of one or more samples, with linear interpolation."""
    p50, p95, p99 = np.percentile(samples_s, [50, 95, 99])
    return Latency(p50_s=float(p50), p95_s=float(p95), p99_s=float(p99), num_samples=len(samples_s))


def round_spread(rounds_s: Sequence[Sequence[float]]) -> float:
    """Return the relative difference between the slowest and the fastest round's median."""
    medians = [median(samples) for samples in rounds_s]
    return max(medians) / min(medians) - 1


def num_outliers(samples_s: Sequence[float]) -> int:
    """Count the slow samples whose modified Z-score exceeds `OUTLIER_SCORE`.

    Times have a lower bound but no upper one, so only slow samples indicate interference.
    """
    samples = np.asarray(samples_s, dtype=np.float64)
    center = np.median(samples)
    deviation = np.median(np.abs(samples - center))
    # If more than half of the samples are equal, any other is infinitely far away; the clock's
    # resolution is the smallest meaningful difference.
    resolution = time.get_clock_info("perf_counter").resolution
    return int(np.sum((samples - center) / max(deviation, resolution) > OUTLIER_SCORE))
