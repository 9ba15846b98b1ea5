from dataclasses import replace

import pytest

from tltools.bench.budget import (
    MIN_IMAGE_S,
    ONNX_START_S,
    OVER_BUDGET,
    TORCH_START_S,
    Limits,
    Pace,
    Work,
    announcement,
    cannot_pay,
    duration,
    estimates_s,
    image_seconds,
    plan,
    plan_effort,
    quick_flops_per_s,
    share_out,
)
from tltools.bench.settings import BUDGET_S, ROUNDS, BenchSettings, Effort


def test_many_candidates_share_the_time():
    found = share_out(BUDGET_S, num_candidates=10, rounds=3, num_sizes=3)
    # (0.75 x 240 - 30 x 2) / (30 x 4) = 1; a quarter of 240 for ten candidates is 6.
    assert found == Limits(size_s=1.0, classify_s=1.0, accuracy_s=6.0)


def test_few_candidates_are_not_measured_longer_than_useful():
    found = share_out(BUDGET_S, num_candidates=1, rounds=3, num_sizes=3)
    assert found == Limits(size_s=10.0, classify_s=2.0, accuracy_s=60.0)


def test_too_many_candidates_still_get_the_minimum_time():
    found = share_out(BUDGET_S, num_candidates=100, rounds=3, num_sizes=6)
    assert found == Limits(size_s=0.5, classify_s=1.0, accuracy_s=5.0)


EFFORT = Effort(
    device="cpu",
    threads=2,
    batch_sizes=(1, 8, 32),
    rounds=1,
    iterations=50,
    warmup=5,
    max_seconds=2.0,
    classify_seconds=1.0,
    accuracy_s=5.0,
    num_images=0,
    budget_s=BUDGET_S,
    may_leave_out=False,
)


def guess(*works, **changes):
    return sum(estimates_s(works, replace(EFFORT, **changes)))


def test_a_fast_model_is_estimated_from_its_runs():
    # 2 s to start; 55 x 1, 55 x 8 and 55 x 32 ms: 0.055 + 0.44 + 1.76.
    assert guess(Work(image_s=0.001, with_classify=False)) == pytest.approx(2 + 2.255)
    # classify takes 1.75 of its second, and 0.6 to start.
    assert guess(Work(image_s=0.001, with_classify=True)) == pytest.approx(2 + 2.255 + 2.35)


def test_a_slow_model_is_estimated_from_its_minimum_runs():
    slow = Work(image_s=0.1, with_classify=True)
    # Single images: 5 and 20 of 0.1 s. Batches of 8: one, and five for the accuracy's 48 images.
    # Of 32: one, and one. classify: three batches of 8, its start and half of its second.
    runs = 2 + 2.5 + 6 * 0.8 + 2 * 3.2
    classify = 3 * 0.8 + 0.6 + 0.5
    assert guess(slow) == pytest.approx(runs + classify)
    assert guess(slow, slow, rounds=3) == pytest.approx(2 * (3 * runs + classify))


def test_the_estimate_excludes_batch_sizes_that_cannot_pay_off():
    slow = Work(image_s=0.1, with_classify=False)
    assert guess(slow, may_leave_out=True) == pytest.approx(2 + 2.5 + 6 * 0.8)
    # At 10 ms two batches of 32 fit into 2 s.
    fast = Work(image_s=0.01, with_classify=False)
    assert guess(fast, may_leave_out=True) == guess(fast)


def test_the_estimate_includes_images_outside_the_timed_batches():
    slow = Work(image_s=0.1, with_classify=False)
    three = guess(slow, may_leave_out=True, rounds=3)
    assert guess(slow, may_leave_out=True, rounds=3, num_images=144) == pytest.approx(three)
    assert guess(slow, may_leave_out=True, rounds=3, num_images=153) == pytest.approx(three + 0.9)
    # 856 images are left, and there are 5 s for them.
    assert guess(slow, may_leave_out=True, rounds=3, num_images=1000) == pytest.approx(three + 5)


def test_both_models_with_all_exports_take_less_than_five_minutes():
    """By the times of two cores: VGG16's fp32 kinds 150 ms an image, int8 56 ms, the CNN 0.4 ms."""
    effort = plan_effort(BenchSettings(device="cpu"), num_candidates=10, num_images=153)
    images = {"cnn": (4e-4,) * 5, "vgg16": (0.16, 0.16, 0.147, 0.147, 0.056)}
    works = [
        Work(image_s=image_s, with_classify=kind > 0, start_s=start_s)
        for times in images.values()
        for kind, (image_s, start_s) in enumerate(
            zip(times, (TORCH_START_S,) * 2 + (ONNX_START_S,) * 3, strict=True)
        )
    ]
    assert effort.may_leave_out
    assert sum(estimates_s(works, effort)) < 300
    assert sum(estimates_s(works, replace(effort, may_leave_out=False))) > 300
    assert sum(estimates_s(works, replace(effort, num_images=5000))) < 310


@pytest.mark.parametrize(
    ("known_s", "size_s", "expected"),
    [
        pytest.param({1: 0.1, 8: 0.8}, 1.0, True, id="64 images of 0.1 s take longer"),
        pytest.param({1: 0.12, 8: 0.82}, 1.0, True, id="a call of 20 ms: 1.8% more at 32"),
        pytest.param({1: 0.17, 8: 0.87}, 1.0, False, id="a call of 70 ms: 6.4% more at 32"),
        pytest.param({1: 0.1, 8: 1.2}, 1.0, True, id="a loss is no gain"),
        pytest.param({1: 0.8, 8: 0.8}, 1.0, False, id="calls that cost the same gain most"),
        pytest.param({8: 0.8, 32: 3.2}, 1.0, True, id="the two largest decide"),
        pytest.param({1: 0.1}, 1.0, False, id="one size says nothing"),
        pytest.param({1: 0.01, 8: 0.08}, 1.0, False, id="64 images of 10 ms have the time"),
        pytest.param({1: 0.1, 8: 0.8}, 12.8, False, id="a larger budget brings it back"),
    ],
)
def test_a_slow_batch_size_that_gains_nothing_is_skipped(known_s, size_s, expected):
    size = 64 if 32 in known_s else 32
    assert cannot_pay(size, known_s, size_s=size_s) is expected


def test_for_an_unknown_model_only_the_start_up_is_estimated():
    assert image_seconds(None, flops_per_s=1e9) == 0
    assert guess(Work(image_s=0, with_classify=False, start_s=3)) == 3


def test_the_time_per_image_follows_from_the_operation_count():
    assert image_seconds(31_000_000_000, flops_per_s=310e9) == pytest.approx(0.1)
    assert image_seconds(31_000_000_000, flops_per_s=310e9, int8=True) == pytest.approx(0.1 / 3)
    assert image_seconds(31_000_000, flops_per_s=310e9) == MIN_IMAGE_S


def test_the_cpu_is_timed_in_under_a_second():
    rate = quick_flops_per_s(size=256)
    assert 1e7 < rate < 1e14


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "10 s"), (44, "40 s"), (89, "90 s"), (90, "1.5 min"), (239, "4 min"), (270, "4.5 min")],
)
def test_estimated_durations_are_rounded(seconds, text):
    assert duration(seconds) == text


SLOW = Work(image_s=0.1, with_classify=True)


def test_a_budget_that_is_given_is_kept_to_with_fewer_rounds():
    """A round of this model takes about 16 s, and classify 4 s."""

    def rounds(**given):
        effort, estimates = plan(BenchSettings(device="cpu", **given), [SLOW], num_images=8)
        return effort.rounds, sum(estimates)

    assert rounds()[0] == ROUNDS
    assert rounds(budget_s=240)[0] == ROUNDS
    few, seconds = rounds(budget_s=20)
    assert few < ROUNDS
    assert seconds <= 20 * (1 + OVER_BUDGET)
    assert rounds(budget_s=1)[0] == 1  # nothing is shorter
    assert rounds(budget_s=1, rounds=2)[0] == 2  # as it was asked for


def test_the_estimate_says_what_it_is_and_how_to_shorten_it():
    line = announcement(240, budget_s=240, num_candidates=10, rounds=3, num_sizes=3, with_tf32=True)
    assert line.startswith("This takes about 4 min (estimate: 10 candidates, 3 rounds, ")
    for option in ("`rounds=1`", "`batch_sizes=`", "`tf32=False`", "`budget_s=`"):
        assert option in line


def test_the_estimate_names_only_what_would_shorten_it():
    line = announcement(240, budget_s=240, num_candidates=1, rounds=1, num_sizes=1, with_tf32=False)
    assert line.endswith(
        "a new process for each measurement); a larger `budget_s=` is more precise"
    )


def test_the_estimate_says_that_it_exceeds_the_budget():
    line = announcement(80, budget_s=30, num_candidates=8, rounds=1, num_sizes=1, with_tf32=False)
    assert line.startswith("This takes about 80 s, not 30 s (estimate: 8 candidates, 1 round, ")
    assert line.endswith("to shorten it, use fewer models; no measurement can be shorter")
    assert "budget" not in line


def test_an_estimate_that_is_far_too_low_is_corrected_once():
    pace = Pace([60.0, 30.0, 30.0], rounds=3)  # 20, 10 and 10 s for a round
    assert pace.correction(0, 48.0) == ""
    # 30 s of 120 are known, and took 2.4 times as long: the other 90 s take 216.
    line = pace.correction(1, 24.0)
    assert line == "This machine is slower than estimated, perhaps busy: about 3.5 min left"
    assert pace.correction(2, 24.0) == ""


def test_an_estimate_that_is_far_too_high_is_corrected_once():
    pace = Pace([60.0, 30.0, 30.0], rounds=3)
    assert pace.correction(0, 4.0) == ""
    # 30 s of 120 are known, and took a fifth: the other 90 s take 18.
    line = pace.correction(1, 2.0)
    assert line == "This machine is faster than estimated: about 20 s left"
    assert pace.correction(2, 2.0) == ""


@pytest.mark.parametrize(
    ("estimates", "took"),
    [
        pytest.param([300.0, 60.0], 149.0, id="less than 1.5 times as long"),
        pytest.param([300.0, 60.0], 67.0, id="less than 1.5 times as fast"),
        pytest.param([60.0, 300.0], 100.0, id="too little is known"),
        pytest.param([60.0, 60.0], 40.0, id="a minute more is not worth telling"),
        pytest.param([20.0, 6.0], 80.0, id="hardly anything is left"),
    ],
)
def test_an_estimate_is_not_corrected_without_need(estimates, took):
    rounds = 1 if estimates[0] == 20.0 else 3
    assert Pace(estimates, rounds).correction(0, took) == ""
