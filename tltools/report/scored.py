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
from tltools.report.blocks import Block, Charts, Section, Text, Tile
from tltools.report.charts import confusion_chart
from tltools.report.models import (
    AccuracyFacts,
    CalibrationFacts,
    EvaluationFacts,
    class_table,
    label_tiles,
    mistakes_gallery,
    prediction_charts,
    score_table,
)
from tltools.run_folder import RunPredictions, read_scored
from tltools.schema import TRUE, classes_of
from tltools.wording import grouped


@dataclass(frozen=True, eq=False)
class Scored:
    """Predictions of labeled images, from a file."""

    path: Path
    classes: tuple[str, ...]
    predictions: RunPredictions

    @property
    def has_only_mistakes(self) -> bool:
        """Whether no image got its true class, so that the file holds no accuracy."""
        preds, targets = self.labels
        return not (preds == targets).any()

    @property
    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Predicted and true class indices of the images that have a class, both (n,)."""
        found = self.predictions
        return found.preds[found.is_kept], found.targets[found.is_kept]

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
    return Scored(path, tuple(classes), read_scored(path, classes))


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
    gallery = mistakes_gallery(tiles, as_seen=False)
    if scored.has_only_mistakes:
        return Section(f"Mistakes in {name}", [*_only_mistakes(scored), gallery])
    facts = _facts(scored)
    matrix = np.array(facts.confusion, dtype=np.int64)
    charts = (
        confusion_chart(matrix, classes, title=f"Confusion matrix of {name}"),
        *prediction_charts(found, classes, name=name),
    )
    blocks: list[Block] = [score_table(facts), class_table(facts.per_class), Charts(charts)]
    return Section(f"Evaluation of {name}", [*blocks, gallery])


def _only_mistakes(scored: Scored) -> Iterator[Block]:
    """Say what is in a file without a correct prediction, and draw which mistakes are frequent."""
    num = len(scored.labels[0])
    yield Text(
        (
            f"{scored.path} holds {grouped(num, 'misclassified image')} and no correctly "
            "classified one, as tltools evaluate --mistakes writes it. Accuracy is in the "
            "evaluation.json beside it.",
        ),
        tone="quiet",
    )
    if num:
        matrix = _confusion(scored)
        title = f"Confusion matrix of {scored.path}, mistakes only"
        yield Charts((confusion_chart(matrix, scored.classes, title=title),))


def _confusion(scored: Scored) -> NDArray[np.int64]:
    return confusion_matrix(*scored.labels, num_classes=len(scored.classes))


def _facts(scored: Scored) -> EvaluationFacts:
    """Score the predictions, as an evaluation does."""
    found, kept = scored.predictions, scored.predictions.is_kept
    one, error = scored.score(), reliability(found.probs, found.targets).ece
    assert one is not None
    return EvaluationFacts(
        data=str(scored.path),
        split="all",
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
