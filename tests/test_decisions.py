"""How probabilities become labels, and what the options of a threshold mean for a model."""

import msgspec
import numpy as np
import pytest

from tltools.card import Proportion, Threshold, card_from_json, with_threshold
from tltools.classify.threshold import Applied, resolve_threshold
from tltools.decisions import ClassThreshold, decide
from tltools.errors import ArtifactError, ConfigError

NAMES = ("red", "green", "blue")
SHARE = Proportion(value=0.95, low=0.8, high=0.99, count=19, total=20)


def chosen(value=0.25, class_name="green", **changes):
    fields = {
        "value": value, "class_name": class_name, "figure": "precision", "at_least": 0.9,
        "images": "images of a.csv", "num_images": 40, "precision": SHARE, "coverage": SHARE,
        "recall": None if class_name is None else SHARE, "held_out_precision": 0.9,
        "held_out_recall": None, "held_out_coverage": 0.5,
    }  # fmt: skip
    return Threshold(**fields | changes)


def test_a_class_is_given_from_its_threshold_on_and_else_the_best_other_one():
    probs = np.array([[0.7, 0.3, 0.0], [0.71, 0.29, 0.0], [0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    low = decide(probs, NAMES, threshold=ClassThreshold("green", 0.3))
    assert [NAMES[pred] for pred in low.preds] == ["green", "red", "green", "red"]
    high = decide(probs, NAMES, threshold=ClassThreshold("green", 0.61))
    assert [NAMES[pred] for pred in high.preds] == ["red", "red", "blue", "red"]
    assert high.kept.all()


def test_thresholds_of_0_and_1_give_the_class_always_and_only_if_it_is_certain():
    probs = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert decide(probs, NAMES, threshold=ClassThreshold("green", 0)).preds.tolist() == [1, 1]
    assert decide(probs, NAMES, threshold=ClassThreshold("green", 1)).preds.tolist() == [0, 1]


def test_a_smallest_confidence_is_that_of_the_class_that_is_given():
    probs = np.array([[0.6, 0.4], [0.3, 0.7]])
    limits = {"threshold": ClassThreshold("b", 0.4), "min_confidence": 0.5}
    found = decide(probs, ("a", "b"), **limits)
    assert (found.preds.tolist(), found.kept.tolist()) == ([1, 1], [False, True])


def test_without_a_threshold_the_most_probable_class_is_given_and_of_equal_ones_the_first():
    probs = np.array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])
    found = decide(probs, NAMES)
    assert (found.preds.tolist(), found.kept.tolist()) == ([0, 1], [True, True])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(value):
    with pytest.raises(ConfigError, match="`threshold=` must be between 0 and 1"):
        ClassThreshold("red", value)


def resolve(card, threshold=None, class_name=None, min_confidence=None):
    return resolve_threshold(card, threshold, class_name=class_name, min_confidence=min_confidence)


def test_a_number_is_of_the_named_class_or_of_the_second_of_two(make_card):
    two = make_card(classes=("calm", "urgent"))
    assert resolve(two, 0.8) == Applied(ClassThreshold("urgent", 0.8), None)
    assert resolve(two, 0.8, "calm", 0.6) == Applied(ClassThreshold("calm", 0.8), 0.6)
    assert resolve(make_card(), 0.8, "blue") == Applied(ClassThreshold("blue", 0.8), None)
    assert resolve(make_card(), min_confidence=0.6) == Applied(None, 0.6)


def test_auto_is_what_the_card_has(make_card):
    of_class = make_card(threshold=chosen())
    assert resolve(of_class, "auto") == Applied(ClassThreshold("green", 0.25), None)
    assert resolve(of_class, "auto", "green", 0.5) == Applied(ClassThreshold("green", 0.25), 0.5)
    of_all = make_card(threshold=chosen(class_name=None))
    assert resolve(of_all, "auto") == Applied(None, 0.25)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        pytest.param({}, ("auto",), r"tltools evaluate runs/tiny --target-precision", id="none"),
        pytest.param({}, (0.5,), "has 3; name it with `class_name=`", id="no class"),
        pytest.param({}, (0.5, "gren"), "no class 'gren'; did you mean green", id="typo"),
        pytest.param({}, (None, "green"), "add `threshold=`", id="class alone"),
        pytest.param(
            {"threshold": chosen()},
            ("auto", "red"),
            "has a threshold of green, and no threshold of red",
            id="other class",
        ),
        pytest.param(
            {"threshold": chosen(class_name=None)},
            ("auto", "red"),
            "has a minimum confidence for all classes, and no threshold of red",
            id="confidence, not class",
        ),
        pytest.param(
            {"threshold": chosen(class_name=None)},
            ("auto", "gren"),
            "no class 'gren'; did you mean green",
            id="typo, with a threshold in the card",
        ),
        pytest.param(
            {"threshold": chosen(class_name=None)},
            ("auto", None, 0.5),
            "use either `threshold=auto` or `min_confidence=`",
            id="two confidences",
        ),
    ],
)
def test_options_that_contradict_the_model_are_refused(make_card, changes, given, message):
    with pytest.raises(ConfigError, match=message):
        resolve(make_card(**changes), *given)


def test_a_card_takes_a_threshold_and_keeps_all_else(make_card):
    card = make_card()
    document = msgspec.json.decode(card.to_json()) | {"of_a_later_version": [1, {"a": 2}]}
    text = msgspec.json.encode(document)
    written = with_threshold(text, chosen(), where="card.json", of=card)
    found = card_from_json(written, where="card.json")
    assert found == msgspec.structs.replace(card, threshold=chosen())
    assert msgspec.json.decode(written)["of_a_later_version"] == [1, {"a": 2}]
    again = with_threshold(written, chosen(0.75), where="card.json", of=card)
    assert card_from_json(again, where="card.json").threshold == chosen(0.75)
    other = make_card(created="2026-02-02T00:00:00Z")
    with pytest.raises(ArtifactError, match="has changed in the meantime"):
        with_threshold(text, chosen(), where="card.json", of=other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": 1.5},
        {"at_least": 0.0},
        {"class_name": "violet"},
        {"precision": msgspec.structs.replace(SHARE, count=21)},
        {"held_out_coverage": -1.0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_card_with_an_invalid_threshold_is_refused(make_card, wrong):
    card = make_card(threshold=chosen(**{"class_name": "green"} | wrong))
    with pytest.raises(ArtifactError, match="its threshold is out of range"):
        card_from_json(card.to_json(), where="a.onnx")
