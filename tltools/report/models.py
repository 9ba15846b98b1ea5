"""Describe runs, evaluations and exports: the report's sections about them."""

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools.artifacts import Artifact
from tltools.bench.text import digits
from tltools.card import Card, Confidence, ExportFacts, Proportion, Resize, Score, Threshold
from tltools.curves import class_curve, confidence_curve
from tltools.decisions import ClassThreshold
from tltools.distance import CHECKED_LEVELS, far_out, load_distance
from tltools.errors import ArtifactError, DataError
from tltools.metrics import (
    ClassScore,
    RocAuc,
    confusion_matrix,
    most_mistaken,
    reliability,
    softmax,
)
from tltools.report.blocks import (
    Block,
    Charts,
    Gallery,
    Section,
    Table,
    Text,
    Tile,
    in_turn,
)
from tltools.report.charts import Chart, confusion_chart, history_chart, reliability_chart
from tltools.report.curve_charts import MAX_PANELS, Panel, precision_recall_chart
from tltools.report.distances import beyond_cells, distance_notes
from tltools.run_folder import (
    DISTANCE,
    RunPredictions,
    read_distances,
    read_folds,
    read_history,
    read_predictions,
    read_split,
)
from tltools.runs import compare_runs, cross_validated, model_title
from tltools.wording import (
    SPLIT_NAMES,
    grouped,
    in_percent,
    in_percent_down,
    minute,
    ordinal,
    percent,
    percent_or_dash,
    score_text,
)

if TYPE_CHECKING:
    import pandas as pd

    from tltools.evaluate import Evaluation

MAX_MISTAKES = 48
MAX_CORRECT = 24
"""Maximum misclassified and correctly classified images in a gallery."""
MAX_SUSPECTS = 24
"""Maximum images in the gallery of labels that may be wrong."""
MAX_DISTANT = 24
"""Maximum images in the gallery of those most unlike the training images."""
MAX_GROUPS = 24
"""Maximum groups of near-duplicates in a gallery, with two images of each."""
MAX_SAMPLES = 6
"""Maximum sample images of each class and split."""
MAX_SAMPLE = 240
"""Maximum sample images in all."""
SPLITS = ("train", "val", "test")

_SHAPED: dict[Resize, str] = {
    "squash": "squashed to a square",
    "crop": "scaled, and cropped to a square",
}

Read = TypeVar("Read")


# --------------------------------------------------------------------------------------- runs


def by_accuracy(runs: Sequence[Artifact]) -> list[Artifact]:
    """Return runs with the highest validation accuracy first, those without one last.

    What counts is the lower end of its interval: 12 of 12 images say more than 2 of 2.
    """

    def quality(run: Artifact) -> tuple[float, float]:
        score = run.card.metrics.get("val")
        return (-1.0, -1.0) if score is None else (score.low, score.accuracy)

    return sorted(runs, key=quality, reverse=True)


def training_section(
    runs: Sequence[Artifact], *, told: Collection[tuple[Path, Path]] = ()
) -> Section:
    """Return the section about runs: their accuracy, comparisons, and each one, the best first.

    Args:
        runs: The runs.
        told: Pairs of runs, the better one first, whose comparison is elsewhere on the page.

    Raises:
        ArtifactError: If a run's predictions are damaged.
    """
    ranked = by_accuracy(runs)
    predictions = {run.path: read_predictions(run.path, run.card.classes) for run in ranked}
    blocks: list[Block] = [_accuracy_table(ranked)]
    lines = tuple(
        compare_runs(*pair, predictions[pair[0].path], predictions[pair[1].path]).sentence()
        for pair in combinations(ranked, 2)
        if (pair[0].path, pair[1].path) not in told
    )
    if lines:
        title = "Other comparisons" if told else "Statistically significant?"
        blocks.append(Text(lines, title=title))
    blocks += [_run_section(run, predictions[run.path]) for run in ranked]
    by_data = {run.card.data.fingerprint: run for run in reversed(ranked)}
    blocks += [_data_section(run) for run in reversed(by_data.values())]
    return Section("Training", blocks)


def _accuracy_table(runs: Sequence[Artifact]) -> Table:
    """Return the table of the runs' accuracies; that of images seen in training has no interval."""
    splits = [name for name in SPLITS if any(name in run.card.metrics for run in runs)]
    folds = [cross_validation(run) for run in runs]
    crossed = ["cross-validation"] if any(folds) else []
    return Table(
        "Accuracy, with its 95% interval on images that were not trained on",
        ("run", "model", *crossed, *(f"{SPLIT_NAMES[split]} accuracy" for split in splits)),
        tuple(
            (
                run.path.name,
                model_title(run.card),
                *([found or "-"] if crossed else []),
                *(
                    score_text(run.card.metrics.get(split), is_seen=split == "train")
                    for split in splits
                ),
            )
            for run, found in zip(runs, folds, strict=True)
        ),
        numbers_from=2,
    )


def cross_validation(run: Artifact) -> str:
    """Return the accuracy of a run's cross-validation in words; empty if there is none."""
    try:
        return cross_validated(run.path, run.card.classes)
    except ArtifactError:  # the run's own section says what is wrong
        return ""


def _run_section(run: Artifact, predictions: Mapping[str, RunPredictions]) -> Section:
    card, name = run.card, run.path.name
    facts = [*_run_facts(card)]
    if crossed := cross_validation(run):
        facts.append(f"Cross-validation: accuracy {crossed}")
    blocks: list[Block] = [Text(tuple(facts), tone="quiet")]
    charts: list[Chart] = []
    history = _history(run)
    if isinstance(history, Text):
        blocks.append(history)
    else:
        charts.append(history)
    for split in (split for split in ("val", "test") if split in predictions):
        words = "validation" if split == "val" else "test"
        matrix = _matrix(predictions[split], len(card.classes))
        charts.append(
            confusion_chart(
                matrix, card.classes, title=f"Confusion matrix of {name}, {words} images"
            )
        )
    if "val" in predictions:
        charts.append(
            _reliability(
                predictions["val"].probs,
                predictions["val"].targets,
                card.temperature,
                title=f"Accuracy by confidence of {name}, validation images",
            )
        )
        charts += _precision_recall(
            predictions["val"],
            card.classes,
            _chosen(card.threshold),
            title=f"Precision and recall of {name}, validation images",
        )
    lines = [_calibration_text(card.confidence), *_threshold_lines(card.threshold)]
    blocks += [Charts(tuple(charts)), Text(tuple(lines))]
    if predictions:
        blocks.append(
            mistakes_gallery(
                (
                    tile
                    for split, part in predictions.items()
                    for tile in label_tiles(part, card.classes, card.preprocessing.resize, split)
                ),
                seen_by=card.preprocessing.resize,
            )
        )
    else:
        blocks.append(
            Text(
                (
                    "This run has no predictions (an earlier version of tltools made it), so its "
                    "confusion matrix and its mistakes are missing. Train it again to see them.",
                ),
                tone="warning",
            )
        )
    return Section(f"Run {name}", [*blocks, *_suspects(run), *_most_distant(run)])


def _history(run: Artifact) -> Chart | Text:
    """Draw the run's history, or say what is wrong with it."""
    history = _or_problem(read_history, run.path)
    if isinstance(history, Text):
        return history
    kept = run.card.training.get("kept_epoch")
    return history_chart(
        history,
        kept=kept if isinstance(kept, int) else None,
        title=f"Loss and accuracy of {run.path.name}",
    )


def _suspects(run: Artifact) -> Iterator[Block]:
    """Show the images whose labels may be wrong, or say what is wrong with the folds."""
    classes = run.card.classes
    folds = _or_problem(partial(read_folds, classes=classes), run.path)
    if folds is None:
        return
    if isinstance(folds, Text):
        yield folds
        return
    suspects = folds.suspects()
    if not len(suspects):
        return
    shown = suspects[:MAX_SUSPECTS]
    held_out = RunPredictions(
        paths=tuple(folds.paths[row] for row in shown),
        targets=folds.targets[shown],
        probs=folds.probs[shown],
    )
    yield Gallery(
        "Labels that may be wrong",
        tuple(
            replace(tile, is_label_in_doubt=True)
            for tile in label_tiles(held_out, classes, run.card.preprocessing.resize)
        ),
        f"{len(shown):,} of {grouped(len(suspects), 'image')} that models trained without them "
        "assign to another class with confidence, most suspicious first.",
    )


def _most_distant(run: Artifact) -> Iterator[Block]:
    """Show the images of a run's data that are most unlike the training images."""
    images = _or_problem(read_distances, run.path)
    measured = _or_problem(load_distance, run.path / DISTANCE)
    if images is None or measured is None:
        return
    if isinstance(images, Text) or isinstance(measured, Text):
        yield from (one for one in (images, measured) if isinstance(one, Text))
        return
    facts = measured[1]
    limit = far_out(facts)
    shown = np.argsort(-images.distances, kind="stable")[:MAX_DISTANT].tolist()
    root = _common_folder(images.paths)
    tiles = tuple(
        Tile(
            name=images.paths[row].removeprefix(root),
            path=Path(images.paths[row]),
            resize=run.card.preprocessing.resize,
            true=images.labels[row],
            split=images.splits[row],
            notes=distance_notes(
                float(images.distances[row]), facts, is_training=images.splits[row] == "train"
            ),
        )
        for row in shown
    )
    num_far = int((images.distances > limit).sum())
    note = (
        f"{len(tiles):,} of {grouped(len(images.paths), 'image')}, the most distant first; each "
        "training image is compared with the others"
    )
    if math.isfinite(limit):
        note += f"; {grouped(num_far, 'outlier')} (beyond {limit:.2f})"
    yield Gallery("Images most unlike the training data", tiles, f"{note}.")


def _run_facts(card: Card) -> Iterator[str]:
    done, kept = card.training.get("epochs_done"), card.training.get("kept_epoch")
    tuned = card.training.get("fine_tune", "none")
    trained = "" if tuned == "none" else f", fine-tuned: {tuned}"
    yield f"{card.model}, head {card.head}, weights {card.weights.source}{trained}"
    if isinstance(done, int) and isinstance(kept, int):
        stopped = ", stopped by Ctrl-C" if card.training.get("interrupted") else ""
        yield f"{grouped(done, 'epoch')}, weights of epoch {kept}{stopped}"
    yield (
        f"Data {card.data.name}: {card.data.num_train:,} images for training, "
        f"{card.data.num_val:,} for validation, split {card.data.split}"
    )
    yield f"Trained {minute(card.created)} UTC with tltools {card.versions.get('tltools', '?')}"


def _calibration_text(confidence: Confidence | None) -> str:
    if confidence is None:
        return "Confidence is not calibrated: an earlier version of tltools made this model."
    before, after = confidence.ece_before, confidence.ece_after
    if confidence.note or before is None or after is None:
        error = "" if before is None else f" Expected calibration error {percent_or_dash(before)}."
        return f"Confidence is not calibrated (temperature 1): {confidence.note}.{error}"
    return (
        f"Confidence is calibrated with temperature {confidence.temperature:.2f}. Expected "
        f"calibration error on held-out images: {percent_or_dash(before)} before, "
        f"{percent_or_dash(after)} after. "
        f"The chart shows all {confidence.num_images:,} images."
    )


def _reliability(
    probs: NDArray[np.float64], targets: NDArray[np.int64], temperature: float, *, title: str
) -> Chart:
    """Draw the reliability with the temperature and, unless it is 1, without."""
    plain = None
    if temperature != 1:
        # log(p) is the divided logits plus a constant for each image, which softmax ignores.
        plain = reliability(softmax(np.log(np.maximum(probs, 1e-300)) * temperature), targets)
    return reliability_chart(reliability(probs, targets), plain, title=title)


def _matrix(predictions: RunPredictions, num_classes: int) -> NDArray[np.int64]:
    return confusion_matrix(predictions.preds, predictions.targets, num_classes=num_classes)


_Chosen: TypeAlias = tuple[str | None, float] | None
"""A class, or None for the confidence of all, and its threshold; None if there is no threshold."""


def _chosen(threshold: Threshold | None) -> _Chosen:
    return None if threshold is None else (threshold.class_name, threshold.value)


def _precision_recall(
    predictions: RunPredictions, classes: Sequence[str], chosen: _Chosen, *, title: str
) -> Iterator[Chart]:
    """Draw precision and recall: of the second of two classes, or of all and a few classes.

    Nothing is drawn if the images are all of one class.
    """
    probs, targets = predictions.probs, predictions.targets
    of, value = chosen or (None, None)
    if len(classes) == 2:
        indices = [1 if of is None else list(classes).index(of)]
    else:
        worst = most_mistaken(_matrix(predictions, len(classes)), MAX_PANELS - 1).tolist()
        marked = [] if of is None else [list(classes).index(of)]
        indices = [*marked, *(index for index in worst if index not in marked)][: MAX_PANELS - 1]
    panels = [
        Panel(curve, classes[index], value if classes[index] == of else None)
        for index in sorted(indices)
        if 0 < (curve := class_curve(probs, targets, index)).num_hits < curve.num_images
    ]
    if len(classes) > 2 and (curve := confidence_curve(probs, targets)).num_hits:
        panels.insert(0, Panel(curve, None, value if chosen and of is None else None))
    if panels:
        left_out = len(classes) > max(2, MAX_PANELS - 1)
        note = f"Of {len(classes):,} classes, those with the most mistakes." if left_out else ""
        yield precision_recall_chart(panels, title=title, note=note)


def _threshold_lines(one: Threshold | None) -> Iterator[str]:
    """Describe the threshold in a run's card, if there is one."""
    if one is None:
        return
    if one.class_name is None:
        kept = "images kept"
        what = f"The minimum confidence is {one.value!r}: labels below it are uncertain"
    else:
        kept = "images that get the class"
        what = f"The threshold for {one.class_name} is {one.value!r}"
    held_out = f"precision {percent_or_dash(one.held_out_precision)}"
    if one.recall is not None:
        held_out += f", recall {percent_or_dash(one.held_out_recall)}"
    recall = "" if one.recall is None else f", recall {_interval(one.recall)}"
    yield (
        f"{what}. It was chosen for a {one.figure} of at least {percent(one.at_least)} on "
        f"{one.num_images:,} {one.images}: precision {_interval(one.precision)}{recall}, {kept} "
        f"{_interval(one.coverage)}. Cross-validated: {held_out}. Labels follow it only with "
        "tltools classify --threshold auto, which evaluate and serve take, too."
    )


def _interval(one: Proportion) -> str:
    ends = f"{in_percent(one.low)} to {in_percent(one.high)}"
    return f"{in_percent(one.value)} ({ends}, {one.count:,}/{one.total:,})"


def label_tiles(
    predictions: RunPredictions, classes: Sequence[str], resize: Resize, split: str = ""
) -> Iterator[Tile]:
    """Yield a tile for each image that has a class, with its true one."""
    names, targets = list(classes), predictions.targets.tolist()
    root = _common_folder(predictions.paths)
    preds, kept = predictions.preds.tolist(), predictions.is_kept.tolist()
    columns = predictions.paths, targets, predictions.probs, preds, kept
    for path, target, row, pred, is_kept in zip(*columns, strict=True):
        if not is_kept:  # neither right nor wrong
            continue
        yield Tile(
            name=path.removeprefix(root),
            path=Path(path),
            resize=resize,
            true=names[target],
            predicted=names[pred],
            confidence=float(row[pred]),
            split=split,
        )


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder of all paths, with a last separator: a page to share need not name it."""
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    except ValueError:  # none, or absolute and relative ones
        return ""
    return folder.rstrip(os.path.sep) + os.path.sep if folder else ""


def mistakes_gallery(tiles: Iterator[Tile], *, seen_by: Resize | None) -> Gallery:
    """Choose the most confident mistakes, and the least confident correct predictions.

    Args:
        tiles: The images that have a class.
        seen_by: Resize rule of the model, which the tiles have too; None if it is not known.
    """
    mistakes: list[Tile] = []
    correct: list[Tile] = []
    for tile in tiles:
        (mistakes if tile.is_wrong else correct).append(tile)
    mistakes.sort(key=_confidence, reverse=True)
    correct.sort(key=_confidence)
    chosen = (*mistakes[:MAX_MISTAKES], *correct[:MAX_CORRECT])
    shown = min(len(mistakes), MAX_MISTAKES), min(len(correct), MAX_CORRECT)
    title = "The most confident mistakes and the least confident correct predictions"
    if len(chosen) == len(mistakes) + len(correct):
        title = "Mistakes and correct predictions" if correct else "Mistakes"
    note = ", ".join(
        f"{num:,} of {grouped(len(tiles), noun)}" if tiles else f"no {noun}s"
        for num, tiles, noun in (
            (shown[0], mistakes, "mistake"),
            (shown[1], correct, "correct prediction"),
        )
    )
    note = note[0].upper() + note[1:]
    seen = "" if seen_by is None else f"; {_SHAPED[seen_by]}, as the model sees them"
    return Gallery(title, chosen, f"{note}{seen}.")


def _confidence(tile: Tile) -> float:
    return tile.confidence or 0.0


def _data_section(run: Artifact) -> Section:
    """Return the section about a run's data: images by class and split, and a sample of them."""
    title = f"Data {run.card.data.name}"
    frame = _or_problem(read_split, run.path)
    if isinstance(frame, Text):
        return Section(title, [frame])
    counts = Counter(zip(frame["class"], frame["split"], strict=True))
    splits = [split for split in SPLITS if split in set(frame["split"])]
    classes = run.card.classes
    table = Table(
        "Images by class and split",
        ("class", *(SPLIT_NAMES[split] for split in splits), "all"),
        tuple(
            (
                name,
                *(f"{counts[name, split]:,}" for split in splits),
                f"{sum(counts[name, split] for split in splits):,}",
            )
            for name in classes
        ),
    )
    tiles = _sample(frame, classes, splits, run.card.preprocessing.resize)
    note = f"{len(tiles):,} of {grouped(len(frame), 'image')}, evenly spaced through the data"
    sample = Gallery("A sample of each class and split", tiles, note)
    near = _near_duplicates(frame, run.card.preprocessing.resize)
    return Section(title, [table, sample] if near is None else [table, sample, near])


def _near_duplicates(frame: "pd.DataFrame", resize: Resize) -> Gallery | None:
    """Show groups of near-duplicates: those with several labels or splits first.

    Runs of earlier versions do not say which images these are.
    """
    if "group" not in frame:
        return None
    groups: dict[str, dict[str, tuple[str, str, str]]] = {}
    columns = [frame[name] for name in ("group", "sha256", "path", "class", "split")]
    for group, sha256, path, name, split in zip(*columns, strict=True):
        groups.setdefault(group, {}).setdefault(sha256, (path, name, split))
    found = [list(images.values()) for images in groups.values() if len(images) > 1]
    if not found:
        return None
    found.sort(key=lambda images: -len({one[1:] for one in images}))
    root = _common_folder(list(frame["path"]))
    tiles = tuple(
        Tile(
            name=path.removeprefix(root),
            path=Path(path),
            resize=resize,
            true=name,
            split=split,
            group=f"group {number} of {len(images)}" if len(images) > 2 else f"group {number}",
        )
        for number, images in enumerate(found[:MAX_GROUPS], start=1)
        for path, name, split in _most_unlike(images)
    )
    return Gallery(
        "Near-duplicates",
        tiles,
        f"{min(len(found), MAX_GROUPS):,} of {grouped(len(found), 'group')}, two images of each; "
        "groups with several labels or splits first.",
    )


def _most_unlike(images: "Sequence[tuple[str, str, str]]") -> "list[tuple[str, str, str]]":
    """Choose two images of a group (path, class, split) that differ in class or split if any do."""
    first = images[0]
    return [first, max(images[1:], key=lambda one: sum(map(str.__ne__, one[1:], first[1:])))]


def _sample(
    frame: "pd.DataFrame", classes: Sequence[str], splits: Sequence[str], resize: Resize
) -> tuple[Tile, ...]:
    """Return a few images of each class and split, one of each in turn."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path, name, split in zip(frame["path"], frame["class"], frame["split"], strict=True):
        groups.setdefault((name, split), []).append(path)
    keys = [(name, split) for name in classes for split in splits if (name, split) in groups]
    each = max(1, min(MAX_SAMPLES, MAX_SAMPLE // max(len(keys), 1)))
    root = _common_folder(list(frame["path"]))
    return in_turn(
        [
            Tile(
                name=path.removeprefix(root), path=Path(path), resize=resize, true=name, split=split
            )
            for path in _evenly(groups[name, split], each)
        ]
        for name, split in keys[:MAX_SAMPLE]
    )


def _evenly(paths: Sequence[str], most: int) -> list[str]:
    """Choose up to `most` paths, evenly spaced."""
    places = np.linspace(0, len(paths) - 1, min(most, len(paths))).round()
    return [paths[int(place)] for place in places]


def _or_problem(read: Callable[[Path], Read], folder: Path) -> Read | Text:
    """Read a file of a run; if it is damaged, return a warning to show in its place."""
    try:
        return read(folder)
    except ArtifactError as error:
        return Text((str(error),), tone="warning")


# -------------------------------------------------------------------------------- evaluations


class AccuracyFacts(msgspec.Struct, frozen=True):
    """Accuracy with its interval and counts."""

    value: float
    low: float
    high: float
    correct: int
    total: int


class CalibrationFacts(msgspec.Struct, frozen=True):
    """The temperature, and the expected calibration error with and without it."""

    temperature: float
    ece: float
    ece_uncalibrated: float


class EvaluationFacts(msgspec.Struct, frozen=True):
    """Contents of `evaluation.json`."""

    data: str
    split: str
    """Empty if unknown, as of predictions without their evaluation."""
    num_images: int
    accuracy: AccuracyFacts
    roc_auc: RocAuc
    calibration: CalibrationFacts
    classes: tuple[str, ...]
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    threshold: ClassThreshold | None = None
    min_confidence: float | None = None
    coverage: Proportion | None = None
    model: str = ""
    """Name of the run or export; empty if unknown, as in files of earlier versions."""
    num_trained_on: int | None = None
    """Number of images that the model was trained on; None if unknown."""


def read_evaluation(data: bytes, *, where: Path) -> EvaluationFacts:
    """Parse an `evaluation.json`.

    Args:
        data: Contents of the file.
        where: Path of the file, for the message.

    Raises:
        DataError: If this version did not write it, or it contradicts itself.
    """
    try:
        facts = msgspec.json.decode(data, type=EvaluationFacts)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise DataError(
            f"{where} is not a result of tltools bench or tltools evaluate of this version: "
            f"{error}; run the command again"
        ) from error
    size = len(facts.classes)
    if len(facts.confusion) != size or any(len(row) != size for row in facts.confusion):
        raise DataError(
            f"{where} has a confusion matrix that does not match its classes; run tltools "
            "evaluate again"
        )
    return facts


def evaluation_section(
    facts: EvaluationFacts,
    *,
    name: str,
    result: "Evaluation | None" = None,
    resize: Resize = "squash",
) -> Section:
    """Return the section about an evaluation.

    Args:
        facts: Contents of its file.
        name: Name of the model, or of the file, which does not have it.
        result: The evaluation with its images; None if only the file is left.
        resize: Resize rule of the model, for the images.
    """
    matrix = np.array(facts.confusion, dtype=np.int64)
    title = f"Confusion matrix of {name}{kept_text(facts)}"
    charts = [confusion_chart(matrix, facts.classes, title=title)]
    gallery: Block = Text(
        ("This file has no images; tltools evaluate --report shows the mistakes.",),
        tone="quiet",
    )
    if result is not None:
        predictions = result.predictions()
        charts += prediction_charts(
            predictions,
            result.classes,
            name=name,
            temperature=result.temperature,
            chosen=_applied(result),
        )
        tiles = label_tiles(predictions, result.classes, resize)
        gallery = mistakes_gallery(tiles, seen_by=resize)
    tables = score_table(facts), class_table(facts.per_class)
    of = (
        f" of {name}" if result is not None else f"{of_model(facts)} on {scored_on(facts)} ({name})"
    )
    return Section(f"Evaluation{of}", [*tables, Charts(tuple(charts)), gallery])


def of_model(facts: EvaluationFacts) -> str:
    """Return ` of cnn onnx fp32`, or nothing if the model is unknown."""
    return f" of {facts.model}" if facts.model else ""


def prediction_charts(
    predictions: RunPredictions,
    classes: Sequence[str],
    *,
    name: str,
    temperature: float = 1.0,
    chosen: _Chosen = None,
) -> Iterator[Chart]:
    """Draw accuracy by confidence, and precision and recall, of at least one image.

    Args:
        predictions: The predictions.
        classes: Class names in the order of the probabilities.
        name: Name of the model or the file, for the titles.
        temperature: What the logits were divided by; not 1: the chart also shows 1.
        chosen: The threshold to mark.
    """
    probs, targets = predictions.probs, predictions.targets
    yield _reliability(probs, targets, temperature, title=f"Accuracy by confidence of {name}")
    yield from _precision_recall(
        predictions, classes, chosen, title=f"Precision and recall of {name}"
    )


def _applied(result: "Evaluation") -> _Chosen:
    """Return the threshold that an evaluation was made with."""
    if result.threshold is not None:
        return result.threshold.class_name, result.threshold.value
    return None if result.min_confidence is None else (None, result.min_confidence)


def score_table(facts: EvaluationFacts) -> Table:
    """Return the table with the figures of all classes together."""
    one = facts.accuracy
    score = Score(
        accuracy=one.value, low=one.low, high=one.high, correct=one.correct, total=one.total
    )
    auc, calibration = facts.roc_auc, facts.calibration
    error = percent_or_dash(calibration.ece)
    if calibration.temperature != 1:
        error += (
            f" ({percent_or_dash(calibration.ece_uncalibrated)} without the temperature "
            f"{calibration.temperature:.2f})"
        )
    is_part = facts.coverage is not None
    of_all = ", all images" if is_part else ""
    return Table(
        f"{scored_on(facts)}: {grouped(facts.num_images, 'image')}",
        ("metric", "value"),
        (
            *_limit_rows(facts),
            (f"accuracy{' of these' * is_part} with its 95% interval", score_text(score)),
            (f"ROC AUC{of_all}", f"- ({auc.note})" if auc.value is None else f"{auc.value:.4f}"),
            (f"expected calibration error{of_all}", error),
        ),
    )


def kept_text(facts: EvaluationFacts) -> str:
    """Say which images a matrix counts, if not all of them."""
    kept = facts.coverage
    if kept is None:
        return ""
    return f": the {kept.count:,} of {grouped(kept.total, 'image')} that reach the confidence"


def scored_on(facts: EvaluationFacts) -> str:
    """Name the images of an evaluation: `photos, val`."""
    return f"{facts.data}, {facts.split}" if facts.split else facts.data


def _limit_rows(facts: EvaluationFacts) -> Iterator[tuple[str, str]]:
    """Yield the rows of a table that say how the labels were chosen."""
    if facts.threshold is not None:
        yield f"threshold for {facts.threshold.class_name}", repr(facts.threshold.value)
    if facts.coverage is not None:
        if facts.min_confidence is not None:
            yield "minimum confidence", repr(facts.min_confidence)
        yield "images that reach it, with the 95% interval", _interval(facts.coverage)


def class_table(scores: Sequence[ClassScore]) -> Table:
    """Return the table with the figures of each class."""
    return Table(
        "By class",
        ("class", "precision", "recall", "F1", "images"),
        tuple(
            (
                row.name,
                *map(percent_or_dash, (row.precision, row.recall, row.f1)),
                f"{row.support:,}",
            )
            for row in scores
        ),
    )


# ------------------------------------------------------------------------------------ exports


def exports_section(exports: Sequence[Artifact]) -> Section:
    """Return the section about exports, with the results of their verification."""
    return Section(
        "Exports",
        [
            Table(
                "Exports, verified against PyTorch",
                (
                    "export",
                    "format",
                    "precision",
                    "MB",
                    "same label",
                    "top-1 change",
                    "max logit diff",
                    "images",
                    "layers in fp32",
                ),
                tuple(_export_cells(one) for one in exports),
                numbers_from=3,
            ),
            *_distances_table(exports),
            Text(
                (
                    "Same label: share of images that get PyTorch's label, rounded down. "
                    "1 MB is 10^6 bytes.",
                ),
                tone="quiet",
            ),
        ],
    )


def _distances_table(exports: Sequence[Artifact]) -> Iterator[Table]:
    """Show how many validation images lie beyond percentiles of the training images."""
    rows = [
        (str(one.path), f"{facts.distances.num_images:,}", *beyond_cells(facts.distances.beyond))
        for one in exports
        if (facts := one.card.export) is not None and facts.distances is not None
    ]
    if rows:
        levels = (f"beyond the {ordinal(level)} percentile" for level in CHECKED_LEVELS)
        yield Table(
            "Validation images unlike the training data, by distance",
            ("export", "training images", *levels),
            tuple(rows),
        )


def _export_cells(export: Artifact) -> tuple[str, ...]:
    facts = export.card.export
    assert facts is not None
    parity = facts.parity
    drop, of_training = parity.accuracy_drop, parity.num_training_images
    return (
        str(export.path),
        facts.format,
        facts.precision,
        digits(export.path.stat().st_size / 1e6),
        in_percent_down(parity.top1_agreement),
        "-" if drop is None else f"{0 - 100 * drop:+.1f} points",
        f"{parity.max_abs_logit_diff:.1e}",
        f"{parity.num_images:,}" + (f" ({of_training:,} training)" if of_training else ""),
        fp32_layers(facts),
    )


def fp32_layers(facts: ExportFacts) -> str:
    """Say how many layers of an export are in fp32."""
    return "all" if facts.precision == "fp32" else f"{len(facts.float_layers) or 'none'}"
