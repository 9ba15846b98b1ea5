import pytest

from tltools.bench.budget import (
    BUDGET_S,
    Limits,
    Work,
    announcement,
    duration,
    estimate_s,
    image_seconds,
    quick_flops_per_s,
    share_out,
)

LIMITS = Limits(size_s=2.0, classify_s=1.0, accuracy_s=5.0)


def test_many_candidates_share_the_time():
    found = share_out(BUDGET_S, num_candidates=10, rounds=3, num_sizes=3)
    # (0.75 x 240 - 30 x 2) / (30 x 4) = 1; a quarter of 240 for ten candidates is 6.
    assert found == Limits(size_s=1.0, classify_s=1.0, accuracy_s=6.0)


def test_few_candidates_are_measured_as_long_as_is_of_use():
    found = share_out(BUDGET_S, num_candidates=1, rounds=3, num_sizes=3)
    assert found == Limits(size_s=10.0, classify_s=2.0, accuracy_s=60.0)


def test_too_many_candidates_still_get_the_least():
    found = share_out(BUDGET_S, num_candidates=100, rounds=3, num_sizes=6)
    assert found == Limits(size_s=0.5, classify_s=1.0, accuracy_s=5.0)


def guess(*works, rounds=1, sizes=(1, 8, 32)):
    return estimate_s(works, LIMITS, rounds=rounds, runs=50, batch_sizes=sizes)


def test_a_fast_model_is_estimated_by_its_runs():
    # 2 s to start; 50 x 1, 50 x 8 and 50 x 32 ms, the last bounded by 2 s: 0.05 + 0.4 + 1.6.
    assert guess(Work(image_s=0.001, with_classify=False)) == pytest.approx(2 + 2.05)
    # classify takes one and a half of its second.
    assert guess(Work(image_s=0.001, with_classify=True)) == pytest.approx(2 + 2.05 + 1.5)


def test_a_slow_model_is_estimated_by_its_fewest_runs():
    slow = Work(image_s=0.1, with_classify=True)
    # Single images 2 s (20 of 0.1 s); batches of 8: 2 s (1.6 for two); of 32: two of 3.2 s;
    # classify: two batches of 32, 6.4 s.
    assert guess(slow) == pytest.approx(2 + 2 + 2 + 6.4 + 6.4)
    assert guess(slow, slow, rounds=3) == pytest.approx(6 * guess(slow))


def test_of_an_unknown_model_the_start_alone_is_estimated():
    assert image_seconds(None, flops_per_s=1e9) == 0
    assert guess(Work(image_s=0, with_classify=False, start_s=3)) == 3


def test_the_time_for_an_image_follows_from_the_arithmetic():
    assert image_seconds(31_000_000_000, flops_per_s=310e9) == pytest.approx(0.1)
    assert image_seconds(31_000_000_000, flops_per_s=310e9, int8=True) == pytest.approx(0.1 / 3)


def test_the_processor_is_tried_in_a_moment():
    rate = quick_flops_per_s(size=256)
    assert 1e7 < rate < 1e14


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "10 s"), (44, "40 s"), (89, "90 s"), (90, "1.5 min"), (239, "4 min"), (270, "4.5 min")],
)
def test_durations_are_rough(seconds, text):
    assert duration(seconds) == text


def test_the_estimate_says_what_it_is_and_how_to_shorten_it():
    line = announcement(240, num_candidates=10, rounds=3, on_gpu=True)
    assert line.startswith("This takes about 4 min (an estimate: 10 candidates, 3 rounds, ")
    for option in ("--rounds 1", "--batch-sizes", "--no-tf32", "--budget"):
        assert option in line
    assert "tf32" not in announcement(240, num_candidates=10, rounds=3, on_gpu=False)
