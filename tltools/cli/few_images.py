"""`tltools classify` for a few images: print their labels instead of writing a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tltools.cli.command import Out
from tltools.cli.show import unknown_text
from tltools.wording import MAX_LISTED, in_percent, percent_or_dash, with_likeliest

if TYPE_CHECKING:
    from tltools.classify import Prediction
    from tltools.decisions import ClassThreshold

MOST_LABELS = 5
"""Most classes that are listed for an image."""
_ANSWERED = {
    "inputs", "model", "device", "batch_size", "threads", "tf32", "min_confidence", "threshold",
    "unknown",
    "class_name", "quiet", "verbose", "as_json",
}  # fmt: skip
"""Parameters of `classify` that an answer on the terminal has, too; any other one is a job's."""


def are_few_images(inputs: Sequence[object], given: Mapping[str, Any]) -> bool:
    """Return whether these are a few image files, and no option is given that only a job has."""
    from tltools.classify.inputs import LIST_SUFFIX
    from tltools.data.suffixes import TABLE_SUFFIXES, is_archive_name

    return (
        len(inputs) <= MAX_LISTED
        and given.keys() <= _ANSWERED
        and all(
            isinstance(one, Path)
            and not is_archive_name(one.name)
            and one.suffix.lower() not in (LIST_SUFFIX, *TABLE_SUFFIXES)
            and one.is_file()
            for one in inputs
        )
    )


def print_labels(
    model: Path,
    images: Sequence[Path],
    out: Out,
    *,
    min_confidence: float | None = None,
    threshold: "ClassThreshold | None" = None,
    unknown: float | None = None,
    **opening: Any,
) -> None:
    """Classify images and print their labels; exit with 1 if one cannot be read.

    Args:
        model: The export.
        images: Image files.
        out: Where to print.
        min_confidence: See `ImagePredictor.predict`.
        threshold: Threshold of a class of the model.
        unknown: See `ImagePredictor.predict`.
        opening: Keyword arguments of `tltools.runtime.open_model`.

    Raises:
        TltoolsError: If the model cannot be opened or run.
    """
    from tltools.api import ImagePredictor
    from tltools.classify.predict import check_min_confidence, check_unknown
    from tltools.classify.tally import reason_in
    from tltools.runtime import open_model

    check_unknown(unknown)
    opened, plan = open_model(model, distances=unknown is not None, **opening)
    check_min_confidence(min_confidence, opened.card.classes)
    chosen: dict[str, Any] = {"min_confidence": min_confidence, "unknown": unknown}
    if threshold is not None:
        chosen |= {"threshold": threshold.value, "class_name": threshold.class_name}
    answers = ImagePredictor(opened, plan).predict(images, **chosen)
    classes = opened.card.classes
    out.result(
        [_facts(one, classes, distance=unknown is not None) for one in answers],
        lambda: _show(answers, classes),
    )
    if unknown is not None:
        out.progress.say(unknown_text(opened.card, unknown))
    failed = [one for one in answers if one.error is not None]
    for one in failed:
        out.progress.warn(f"not classified: {one.name}: {reason_in(one.name, one.error or '')}")
    if failed:
        raise typer.Exit(1)


def _facts(one: "Prediction", classes: Sequence[str], *, distance: bool) -> dict[str, Any]:
    shares = None if one.probabilities is None else one.probabilities.tolist()
    facts = {
        "path": one.name,
        "label": one.label,
        "confidence": one.confidence,
        "probabilities": None if shares is None else dict(zip(classes, shares, strict=True)),
        "error": one.error,
    }
    return facts | {"distance": one.distance} if distance else facts


def _show(answers: "Sequence[Prediction]", classes: Sequence[str]) -> None:
    """Print one image's most probable classes, or a table of several images."""
    from tltools.console import print_table, printable

    if len(answers) > 1:
        far = any(one.distance is not None for one in answers)
        print_table(
            "Labels (--output FILE writes all probabilities)",
            ("image", "label", "confidence", "next", *(["distance"] if far else [])),
            [_cells(one, classes, distance=far) for one in answers],
        )
        return
    for line in _ranked(answers[0], classes):
        typer.echo(printable(line))


def _cells(one: "Prediction", classes: Sequence[str], *, distance: bool) -> tuple[str, ...]:
    """Return the row of an image; an unknown or uncertain one has the class that it may be."""
    from tltools.classify.output_formats.format import likeliest_of

    likeliest = None
    if one.probabilities is not None:
        likeliest = likeliest_of(one.label, one.confidence, classes, one.probabilities.tolist())
    cells = (
        one.name,
        with_likeliest(one.label or "-", likeliest, one.confidence or 0.0),
        "-" if likeliest is not None else percent_or_dash(one.confidence),
        _runner_up(one, classes),
    )
    away = "-" if one.distance is None else f"{one.distance:.2f}"
    return (*cells, away) if distance else cells


def _ranked(one: "Prediction", classes: Sequence[str]) -> list[str]:
    """Return the most probable classes with their probabilities, the label first."""
    if one.probabilities is None:
        return []
    order = one.probabilities.argsort()[::-1][:MOST_LABELS]
    lines = [f"{classes[index]} {in_percent(float(one.probabilities[index]))}" for index in order]
    if one.label != classes[order[0]]:  # uncertain, unknown, or by a threshold
        lines.insert(0, one.label or "")
    return lines if one.distance is None else [*lines, f"distance {one.distance:.2f}"]


def _runner_up(one: "Prediction", classes: Sequence[str]) -> str:
    if one.probabilities is None or len(classes) < 2:
        return "-"
    first = int(one.probabilities.argmax())
    if one.label in classes and one.label != classes[first]:  # by a threshold
        index = first
    else:
        index = int(one.probabilities.argsort()[-2])
    return f"{classes[index]} {in_percent(float(one.probabilities[index]))}"
