"""Numbers in sentences and tables: percentages have one format, and are never rounded to all."""

import pytest

from tltools.card import Score
from tltools.wording import in_percent, in_percent_down, percent, score_text, seconds, with_interval


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100.0%"), (0.99977, ">99.9%"), (0.9996, ">99.9%"), (0.9994, "99.9%"),
        (0.94375, "94.4%"), (0.5, "50.0%"), (0.0006, "0.1%"), (0.0004, "<0.1%"), (0.0, "0.0%"),
    ],
)  # fmt: skip
def test_only_all_and_nothing_read_like_it(share, text):
    assert in_percent(share) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100.0%"), (0.9999, "99.9%"), (0.98996, "98.9%"), (0.99, "99.0%"), (0.29, "29.0%"),
        (0.0004, "<0.1%"), (0.0, "0.0%"),
    ],
)  # fmt: skip
def test_a_share_that_is_compared_with_a_limit_is_rounded_down(share, text):
    assert in_percent_down(share) == text


def test_a_limit_has_the_digits_that_it_was_given_with():
    assert [percent(one) for one in (0.95, 0.995, 0.9999)] == ["95%", "99.5%", "99.99%"]


def test_an_accuracy_has_its_interval_unless_the_model_has_seen_the_images():
    score = Score(accuracy=0.94375, low=0.8971, high=0.97, correct=1510, total=1600)
    assert with_interval(score.accuracy, score.low, score.high) == "94.4% (89.7% to 97.0%)"
    assert score_text(score) == "94.4% (89.7% to 97.0%), 1,510/1,600"
    assert score_text(score, is_seen=True) == "94.4%, 1,510/1,600"
    assert score_text(None) == "-"


def test_a_duration_is_never_nothing():
    assert [seconds(one) for one in (12.34, 0.06, 0.049, 0.0)] == [
        "12.3 s", "0.1 s", "<0.1 s", "<0.1 s",
    ]  # fmt: skip
