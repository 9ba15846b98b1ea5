import itertools

import numpy as np
import pytest

from tltools.bench.timing import latency, measure, num_outliers, round_spread


class Clock:
    """Time that passes only while a step works: each step takes the next of `durations`."""

    def __init__(self, durations):
        self.now = 100.0
        self.durations = iter(durations)
        self.steps = 0

    def __call__(self):
        return self.now

    def step(self):
        self.steps += 1
        self.now += next(self.durations)


def measure_with(durations, **options):
    clock = Clock(durations)
    return measure(clock.step, clock=clock, **options), clock


def test_warmup_runs_come_first_and_are_not_timed():
    timing, clock = measure_with([9, 9, 9, 1, 2], warmup=3, runs=2, max_seconds=1000)
    assert timing.samples_s == (1.0, 2.0)
    assert clock.steps == 5


def test_preparing_a_run_is_not_timed():
    clock = Clock([1, 1, 1])

    def prepare():
        clock.now += 50

    timing = measure(clock.step, warmup=1, runs=2, max_seconds=1000, prepare=prepare, clock=clock)
    assert timing.samples_s == (1.0, 1.0)
    assert clock.now == 100 + 3 * (50 + 1)


def test_warmup_takes_at_most_a_quarter_of_the_time():
    # 3 s in the third one reach a quarter of 10 s.
    _, clock = measure_with(itertools.repeat(1), warmup=5, runs=1, max_seconds=10)
    assert clock.steps == 3 + 1
    _, clock = measure_with(itertools.repeat(100), warmup=5, runs=1, max_seconds=10, min_warmup=1)
    assert clock.steps == 1 + 1


def test_no_warmup_times_the_first_run():
    timing, _ = measure_with([9, 1], warmup=0, runs=2, max_seconds=1000)
    assert timing.samples_s == (9.0, 1.0)


def test_timed_runs_end_when_the_time_is_up():
    # 4 x 3 s: the fourth run makes it 12 s.
    timing, _ = measure_with(itertools.repeat(3), warmup=0, runs=50, max_seconds=10, min_runs=2)
    assert timing.samples_s == (3.0, 3.0, 3.0, 3.0)


def test_a_slow_step_still_gets_the_minimum_number_of_runs():
    timing, _ = measure_with(itertools.repeat(100), warmup=0, runs=50, max_seconds=10, min_runs=7)
    assert len(timing.samples_s) == 7


def test_the_minimum_number_of_runs_is_ten_by_default():
    timing, _ = measure_with(itertools.repeat(100), warmup=0, runs=50, max_seconds=10)
    assert len(timing.samples_s) == 10


def test_the_number_of_runs_also_limits_the_minimum():
    timing, _ = measure_with(itertools.repeat(100), warmup=0, runs=4, max_seconds=10)
    assert len(timing.samples_s) == 4


def test_warmup_of_a_slow_step_ends_after_two_runs():
    _, clock = measure_with(itertools.repeat(100), warmup=5, runs=1, max_seconds=10)
    assert clock.steps == 2 + 1


def test_a_warmup_of_one_run_is_one_run():
    _, clock = measure_with(itertools.repeat(100), warmup=1, runs=1, max_seconds=10)
    assert clock.steps == 1 + 1


def test_percentiles_interpolate_between_samples():
    # Of 1 to 101: the rank of percentile p is p, counted from 0, so the value is p + 1.
    samples = [float(value) for value in range(1, 102)]
    np.random.default_rng(0).shuffle(samples)
    found = latency(samples)
    assert (found.p50_s, found.p95_s, found.p99_s) == pytest.approx((51, 96, 100), abs=1e-9)
    assert found.num_samples == 101


def test_percentiles_of_one_sample_equal_the_sample():
    found = latency([0.25])
    assert (found.p50_s, found.p95_s, found.p99_s, found.num_samples) == (0.25, 0.25, 0.25, 1)


def test_the_spread_between_rounds_compares_medians_not_extremes():
    assert round_spread([(1, 2, 3), (2, 2, 90), (1.9, 2, 2.1)]) == 0
    assert round_spread([(1, 2, 3), (3, 3, 3), (2.5, 2.5, 2.5)]) == pytest.approx(0.5)
    assert round_spread([(1.0, 5.0)]) == 0


def test_outliers_are_more_than_ten_deviations_above_the_median():
    # Median 10, absolute deviations 1 1 0 1 1 and the last one's: their median is 1, so a sample
    # is an outlier from 24.826 on.
    samples = [9, 11, 10, 9, 11]
    assert num_outliers([*samples, 10, 24.8]) == 0
    assert num_outliers([*samples, 10, 24.9]) == 1
    assert num_outliers([*samples, *samples, 10, 60, 70]) == 2


def test_a_fast_sample_is_not_an_outlier():
    assert num_outliers([9, 11, 10, 9, 11, 10, -50]) == 0


def test_among_equal_samples_a_different_one_is_the_only_outlier():
    assert num_outliers([0.1 + 0.2, 0.3, 0.3]) == 0
    assert num_outliers([0.3] * 9) == 0
    assert num_outliers([0.3] * 9 + [0.4]) == 1
