"""Precision-recall curves and the choice of a threshold, against scikit-learn and by counting."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from tltools.curves import (
    MIN_IMAGES,
    Curve,
    choose_threshold,
    class_curve,
    confidence_curve,
    curve,
)
from tltools.errors import ConfigError, DataError

TWO = ("other", "wanted")


def two_classes(num=400, *, seed=0, decimals=None, strength=1.5):
    """Probabilities of two classes, with many ties if they are rounded."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(2, size=num)
    positive = 1 / (1 + np.exp(-(rng.normal(size=num) + strength * (2 * targets - 1))))
    if decimals is not None:
        positive = positive.round(decimals)
    return np.stack([1 - positive, positive], axis=1), targets


def many_classes(num=600, num_classes=5, *, seed=1, strength=3.0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(num_classes, size=num)
    logits = rng.normal(size=(num, num_classes)) * 1.5
    logits[np.arange(num), targets] += strength
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True), targets


def choose(probs, targets, at_least=0.95, *, figure="precision", **changes):
    options = {"classes": TWO, "class_name": "wanted", "images": "validation images of a.csv"}
    return choose_threshold(probs, targets, figure=figure, at_least=at_least, **(options | changes))


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
def test_precision_and_recall_are_those_of_scikit_learn(decimals):
    probs, targets = two_classes(decimals=decimals)
    found = class_curve(probs, targets, 1)
    precision, recall, thresholds = precision_recall_curve(targets, probs[:, 1])
    np.testing.assert_array_equal(found.thresholds[::-1], thresholds)
    np.testing.assert_array_equal(found.precision[::-1], precision[:-1])
    np.testing.assert_array_equal(found.recall[::-1], recall[:-1])
    expected = average_precision_score(targets, probs[:, 1])
    assert found.average_precision == pytest.approx(expected, abs=1e-12)


def test_one_class_of_many_is_measured_against_the_rest_as_by_scikit_learn():
    probs, targets = many_classes()
    for index in range(5):
        found = class_curve(probs, targets, index)
        precision, recall, _ = precision_recall_curve(targets == index, probs[:, index])
        np.testing.assert_array_equal(found.precision[::-1], precision[:-1])
        np.testing.assert_array_equal(found.recall[::-1], recall[:-1])


@pytest.mark.parametrize("figure", ["precision", "recall"])
@pytest.mark.parametrize("at_least", [0.8, 0.95])
@pytest.mark.parametrize("decimals", [None, 2])
def test_the_choice_is_the_best_of_all_thresholds(figure, at_least, decimals):
    """Every score is tried, slowly: no threshold reaches the target at a lower cost."""
    probs, targets = two_classes(decimals=decimals, strength=2.0)
    found = choose(probs, targets, at_least, figure=figure)
    above = probs[:, 1] >= found.value
    assert (found.precision.count, found.precision.total) == (targets[above].sum(), above.sum())
    assert (found.recall.count, found.recall.total) == (targets[above].sum(), targets.sum())
    assert (found.coverage.count, found.coverage.total) == (above.sum(), len(targets))
    reached = []
    for score in probs[:, 1]:
        kept = probs[:, 1] >= score
        precision, recall = targets[kept].mean(), targets[kept].sum() / targets.sum()
        one, other = (precision, recall) if figure == "precision" else (recall, precision)
        if one >= at_least and kept.sum() >= MIN_IMAGES:
            reached.append(other)
    assert getattr(found, figure).value >= at_least
    assert (found.recall if figure == "precision" else found.precision).value == max(reached)


def test_a_threshold_is_a_short_number_with_distance_to_the_nearest_scores():
    probs, targets = two_classes()
    found = choose(probs, targets, 0.9)
    assert len(repr(found.value)) <= 6
    assert np.abs(probs[:, 1] - found.value).min() > 1e-5


def test_images_with_the_same_score_are_never_divided():
    scores = np.array([0.9] * 12 + [0.8] * 8)
    counts = np.array([True] * 12 + [True, False] * 4)
    found = curve(scores, counts)
    assert found.thresholds.tolist() == [0.9, 0.8]
    assert (found.kept.tolist(), found.hits.tolist()) == ([12, 20], [12, 16])
    assert [found.at(value) for value in (0.95, 0.9, 0.85, 0.8, 0.0)] == [None, 0, 0, 1, 1]


def test_a_target_of_1_is_reached_only_without_a_mistake():
    probs, targets = two_classes(strength=3.0)
    found = choose(probs, targets, 1.0)
    assert found.precision.count == found.precision.total >= MIN_IMAGES
    assert found.precision.low < 1 == found.precision.high
    everything = choose(probs, targets, 1.0, figure="recall")
    assert everything.recall.count == everything.recall.total == targets.sum()


def test_a_class_that_is_never_predicted_can_have_a_threshold():
    """All its probabilities are below one half, and yet they order the images."""
    probs, targets = two_classes(strength=3.0)
    probs[:, 1] *= 0.4
    probs[:, 0] = 1 - probs[:, 1]
    assert (probs.argmax(axis=1) == 0).all()
    found = choose(probs, targets, 0.95)
    assert found.value < 0.4
    assert found.recall.value > 0.8


def test_a_target_that_is_reached_nowhere_is_refused_with_the_best_there_is():
    probs, targets = two_classes(strength=0.0)
    with pytest.raises(
        DataError,
        match=r"no threshold reaches a precision of 99% for class wanted on the 400 validation "
        r"images of a\.csv: the best, of those that at least 10 images reach, has \d\d\.\d% \(",
    ):
        choose(probs, targets, 0.99)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        pytest.param([1] * 9 + [0] * 40, "9 of the 49 .* are of class wanted, too few", id="few"),
        pytest.param([0] * 40, "0 of the 40 .* are of class wanted, too few", id="none"),
        pytest.param([1] * 40, "all 40 .* are of class wanted, so no threshold", id="all"),
    ],
)
def test_images_that_say_nothing_about_a_class_are_refused(targets, message):
    targets = np.array(targets)
    positive = np.linspace(0.9, 0.1, len(targets))
    with pytest.raises(DataError, match=message):
        choose(np.stack([1 - positive, positive], axis=1), targets)


def test_few_images_are_refused_for_confidence_too():
    probs, targets = many_classes(9)
    with pytest.raises(DataError, match=r"9 images .* are too few to choose a threshold"):
        choose(probs, targets, 0.5, classes=tuple("abcde"), class_name=None)


def test_many_classes_without_a_name_get_a_smallest_confidence():
    probs, targets = many_classes()
    found = choose(probs, targets, 0.95, classes=tuple("abcde"), class_name=None)
    kept = probs.max(axis=1) >= found.value
    right = probs.argmax(axis=1) == targets
    assert right.mean() < 0.95
    assert (found.precision.count, found.precision.total) == (right[kept].sum(), kept.sum())
    assert found.precision.value >= 0.95
    assert (found.coverage.count, found.coverage.total) == (kept.sum(), 600)
    assert (found.class_name, found.recall, found.held_out_recall) == (None, None, None)
    with pytest.raises(ConfigError, match="`target_recall=` applies to a single class"):
        choose(probs, targets, figure="recall", class_name=None)


def test_figures_that_are_held_out_are_less_optimistic():
    """On average over data whose scores say little, where choosing and counting flatters most."""
    chosen, held_out, later = [], [], []
    for seed in range(30):
        probs, targets = two_classes(150, seed=seed, strength=0.8)
        try:
            found = choose(probs, targets, 0.9)
        except DataError:
            continue
        new, their = two_classes(4000, seed=1000 + seed, strength=0.8)
        chosen.append(found.precision.value)
        held_out.append(found.held_out_precision)
        later.append(their[new[:, 1] >= found.value].mean())
    assert len(chosen) > 10
    assert np.mean(chosen) > np.mean(later) + 0.02
    assert abs(np.mean(held_out) - np.mean(later)) < np.mean(chosen) - np.mean(later)


@pytest.mark.parametrize("at_least", [0.0, -0.1, 1.01, float("nan")])
def test_a_target_that_is_no_share_is_refused(at_least):
    with pytest.raises(ConfigError, match="`target_precision=` must be above 0 and at most 1"):
        choose(*two_classes(), at_least)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        curve(np.array([0.5, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="must both be"):
        curve(np.array([0.5]), np.array([True, False]))


def test_a_curve_without_images_has_no_points():
    found = curve(np.empty(0), np.empty(0, dtype=bool))
    assert isinstance(found, Curve)
    assert (found.num_images, len(found.thresholds), found.at(0.0)) == (0, 0, None)
    with pytest.raises(ValueError, match="no recall"):
        assert found.recall.size
    assert confidence_curve(np.array([[0.2, 0.8]]), np.array([1])).precision.tolist() == [1.0]
