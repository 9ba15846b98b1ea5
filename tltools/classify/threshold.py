"""Find the threshold that a command applies: a number, or what the model's card has."""

import shlex
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from tltools.card import Card
from tltools.classify.predict import check_min_confidence
from tltools.decisions import ClassThreshold
from tltools.errors import ConfigError
from tltools.run_folder import load_card

ThresholdChoice: TypeAlias = float | Literal["auto"]
"""A number, or `auto` for the threshold in the model's card."""


class Applied(NamedTuple):
    """How a command turns probabilities into labels."""

    threshold: ClassThreshold | None
    min_confidence: float | None


def positive_class(card: Card) -> str | None:
    """Return the second of two classes, which a threshold is of by default; None if there are more.

    It is also the class of the ROC curve.
    """
    return card.classes[1] if len(card.classes) == 2 else None


def resolve_threshold(
    card: Card,
    threshold: ThresholdChoice | None,
    *,
    class_name: str | None,
    min_confidence: float | None,
    run: Path | None = None,
) -> Applied:
    """Return what `threshold=`, `class_name=` and `min_confidence=` mean for a model.

    Args:
        card: The model's card.
        threshold: A number; `auto` for what the card has, which may be a minimum confidence; None
            for no threshold.
        class_name: The class of the threshold; None is that of the card or, for a number, the
            second of two classes.
        min_confidence: Minimum confidence of a label.
        run: Folder of the export's run, if it is known: an error then says whether the run has a
            threshold.

    Raises:
        ConfigError: If a number is out of range, the model has no such class or no threshold, or
            the parameters contradict each other.
    """
    if threshold is None:
        if class_name is not None:
            raise ConfigError(
                "`class_name=` names the class of a threshold; add `threshold=`, or leave it out"
            )
        return Applied(None, min_confidence)
    if threshold == "auto":
        return _from_card(card, class_name, min_confidence, run)
    name = class_name or positive_class(card)
    if name is None:
        raise ConfigError(
            f"`threshold=` applies to a single class, and the model has {len(card.classes):,}; "
            "name it with `class_name=`, or use `min_confidence=` for all classes"
        )
    return _checked(card, ClassThreshold(name, threshold), min_confidence)


def _from_card(
    card: Card, class_name: str | None, min_confidence: float | None, run: Path | None
) -> Applied:
    found = card.threshold
    if found is None:
        raise ConfigError(_without_threshold(card, run, class_name))
    if class_name is not None and class_name != found.class_name:
        ClassThreshold(class_name, found.value).index(card.classes)  # an error if there is none
        kind = "minimum confidence" if found.class_name is None else "threshold"
        of = "for all classes" if found.class_name is None else f"of {found.class_name}"
        raise ConfigError(
            f"the card of {card.run} has a {kind} {of}, and no threshold of {class_name}; leave "
            "out `class_name=`, or give `threshold=` a number"
        )
    if found.class_name is not None:
        return _checked(card, ClassThreshold(found.class_name, found.value), min_confidence)
    if min_confidence is not None:
        raise ConfigError(
            f"the threshold in the card of {card.run} is a minimum confidence, {found.value!r}; "
            "use either `threshold=auto` or `min_confidence=`"
        )
    check_min_confidence(found.value, card.classes)
    return Applied(None, found.value)


def _checked(card: Card, threshold: ClassThreshold, min_confidence: float | None) -> Applied:
    threshold.index(card.classes)
    return Applied(threshold, min_confidence)


def _without_threshold(card: Card, run: Path | None, class_name: str | None) -> str:
    """Say that a card has no threshold, and what to do about it."""
    folder = shlex.quote(str(run or Path("runs", card.run)))
    of = "" if class_name is None else f"`class_name={shlex.quote(class_name)}` "
    if card.export is None:
        return (
            f"the card of {card.run} has no threshold; choose one with tltools evaluate {folder} "
            f"{of}--target-precision 0.95, or give `threshold=` a number"
        )
    if run is None:
        return (
            f"this export of {card.run} has no threshold; if its run has one, export it again; "
            f"otherwise choose one first with tltools evaluate {folder} {of}--target-precision "
            "0.95, or give `threshold=` a number"
        )
    if load_card(run).threshold is None:
        return (
            f"this export of {card.run} has no threshold, nor does {folder}; choose one with "
            f"tltools evaluate {folder} {of}--target-precision 0.95 and export it again, or give "
            "`threshold=` a number"
        )
    return (
        f"this export of {card.run} has no threshold, but {folder} has one; export it again with "
        f"tltools export {folder}, or give `threshold=` a number"
    )
