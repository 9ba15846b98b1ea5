"""Describe predictions of labeled images: the report's section about a file of `evaluate`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tltools.card import Score
from tltools.classify.output_formats.csv_rows import read_columns
from tltools.errors import DataError, cause_of
from tltools.metrics import (
    classification_report,
    confusion_matrix,
    proportion,
    reliability,
    roc_auc,
    score,
)
from tltools.regular import read_regular
from tltools.report.blocks import Block, Charts, Section, Text, Tile
from tltools.report.charts import confusion_chart
from tltools.report.models import (
    AccuracyFacts,
    CalibrationFacts,
    EvaluationFacts,
    class_table,
    kept_text,
    label_tiles,
    mistakes_gallery,
    of_model,
    prediction_charts,
    read_evaluation,
    score_table,
    scored_on,
)
from tltools.run_folder import EVALUATION, MAX_EVALUATION_BYTES, RunPredictions, read_scored
from tltools.schema import TRUE, classes_of
from tltools.wording import grouped


@dataclass(frozen=True, eq=False)
class Scored:
    """Predictions of labeled images, from a file."""

    path: Path
    classes: tuple[str, ...]
    predictions: RunPredictions
    told: EvaluationFacts | None = None
    """Contents of the evaluation.json beside the file, if it is of this file."""

    @property
    def data(self) -> str:
        """Name of the labeled images; empty if unknown."""
        return "" if self.told is None else self.told.data

    @property
    def split(self) -> str:
        """Which of them were scored; empty if unknown."""
        return "" if self.told is None else self.told.split

    @property
    def of(self) -> str:
        """` of ` and the model's name; empty if unknown."""
        return "" if self.told is None else of_model(self.told)

    @property
    def title(self) -> str:
        """What the predictions are of: `photos, val (scores/predictions.csv)`."""
        return str(self.path) if self.told is None else f"{scored_on(self.told)} ({self.path})"

    @property
    def has_only_mistakes(self) -> bool:
        """Whether no image got its true class, so that the file holds no accuracy."""
        preds, targets = self.labels
        return not (preds == targets).any()

    @property
    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Predicted and true class indices of the images that have a class, both (n,)."""
        return _labels(self.predictions)

    def score(self) -> Score | None:
        """Return the accuracy of the images that have a class; None if it means nothing."""
        return None if self.has_only_mistakes else score(*self.labels)


def read_labeled(path: Path) -> Scored | None:
    """Read predictions with true labels; None if a file has none.

    Raises:
        DataError: If the file cannot be read, or holds other labels than its classes.
    """
    if path.suffix.lower() != ".csv":  # other formats are of jobs, whose labels are not known
        return None
    try:
        columns = read_columns(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {cause_of(error)}") from error
    classes = classes_of(columns)
    if classes is None or TRUE not in columns:
        return None
    found = read_scored(path, classes)
    return Scored(path, tuple(classes), found, _told_beside(path, tuple(classes), found))


def _told_beside(
    path: Path, classes: tuple[str, ...], found: RunPredictions
) -> EvaluationFacts | None:
    """Return the evaluation.json beside a file, if it is of this file.

    None if it is not there, or of other images: files of several evaluations may lie
    together, and one that cannot be read says nothing about the others.
    """
    beside = path.with_name(EVALUATION)
    try:
        facts = read_evaluation(read_regular(beside, max_bytes=MAX_EVALUATION_BYTES), where=beside)
    except (OSError, DataError):
        return None
    matrix = confusion_matrix(*_labels(found), num_classes=len(classes))
    told = np.array(facts.confusion, dtype=np.int64)
    wrong = told - np.diag(np.diag(told))  # all that a file of mistakes has
    is_same = facts.classes == classes and any(np.array_equal(matrix, x) for x in (told, wrong))
    return facts if is_same else None


def _labels(found: RunPredictions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return predicted and true class indices of the images that have a class, both (n,)."""
    return found.preds[found.is_kept], found.targets[found.is_kept]


def scored_section(
    scored: Scored,
    *,
    locate: Callable[[str], Path | None] | None = None,
) -> Section:
    """Return the section about predictions of labeled images.

    Args:
        scored: The predictions.
        locate: Finds the images; None for those at the paths in the file.
    """
    name, found, classes = str(scored.path), scored.predictions, scored.classes
    tiles = _located(label_tiles(found, classes, "squash"), locate or _existing)
    gallery = mistakes_gallery(tiles, seen_by=None)
    if scored.has_only_mistakes:
        return Section(f"Mistakes{scored.of} in {scored.title}", [*_only_mistakes(scored), gallery])
    facts = _facts(scored)
    matrix = np.array(facts.confusion, dtype=np.int64)
    charts = (
        confusion_chart(matrix, classes, title=f"Confusion matrix of {name}{kept_text(facts)}"),
        *prediction_charts(found, classes, name=name),
    )
    blocks: list[Block] = [score_table(facts), class_table(facts.per_class), Charts(charts)]
    return Section(f"Evaluation{scored.of} on {scored.title}", [*blocks, gallery])


def _only_mistakes(scored: Scored) -> Iterator[Block]:
    """Say what is in a file without a correct prediction; show the scores beside it, if any."""
    num = len(scored.labels[0])
    yield Text(
        (
            f"{scored.path} holds {grouped(num, 'misclassified image')} and no correctly "
            "classified one, as tltools evaluate --mistakes writes it. "
            + (
                f"Accuracy is in the {EVALUATION} that tltools evaluate wrote with it."
                if scored.told is None
                else f"Accuracy and confusion matrix are of the {EVALUATION} beside it."
            ),
        ),
        tone="quiet",
    )
    if scored.told is not None:  # shares of the mistakes alone would mislead
        matrix = np.array(scored.told.confusion, dtype=np.int64)
        title = f"Confusion matrix of {scored.path.with_name(EVALUATION)}{kept_text(scored.told)}"
        yield score_table(scored.told)
        yield Charts((confusion_chart(matrix, scored.classes, title=title),))


def _confusion(scored: Scored) -> NDArray[np.int64]:
    return confusion_matrix(*scored.labels, num_classes=len(scored.classes))


def _facts(scored: Scored) -> EvaluationFacts:
    """Score the predictions, as an evaluation does."""
    found, kept = scored.predictions, scored.predictions.is_kept
    one, error = scored.score(), reliability(found.probs, found.targets).ece
    assert one is not None
    return EvaluationFacts(
        data=scored.data or str(scored.path),
        split=scored.split,
        num_images=len(kept),
        accuracy=AccuracyFacts(one.accuracy, one.low, one.high, one.correct, one.total),
        roc_auc=roc_auc(found.probs, found.targets),
        calibration=CalibrationFacts(1.0, error, error),
        classes=scored.classes,
        per_class=classification_report(*scored.labels, classes=scored.classes),
        confusion=tuple(tuple(row) for row in _confusion(scored).tolist()),
        coverage=None if kept.all() else proportion(int(kept.sum()), len(kept)),
    )


def _located(tiles: Iterator[Tile], locate: Callable[[str], Path | None]) -> Iterator[Tile]:
    for tile in tiles:
        yield replace(tile, path=locate(str(tile.path)))


def _existing(name: str) -> Path | None:
    path = Path(name)
    return path if path.exists() else None
