"""Evaluate a predictor on labeled images."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools.card import Card, Proportion, Score
from tltools.data.image_ref import ImageRef
from tltools.decisions import ClassThreshold, Decided, decide
from tltools.errors import ArtifactError, DataError
from tltools.metrics import (
    ClassScore,
    Reliability,
    RocAuc,
    classification_report,
    confusion_matrix,
    proportion,
    reliability,
    roc_auc,
    score,
    softmax,
)
from tltools.parallel import num_cores
from tltools.progress import SILENT, Progress
from tltools.run_folder import RunPredictions
from tltools.runtime import Outputs, Plan, run_images
from tltools.runtime.pipeline import readable
from tltools.wording import did_you_mean, grouped, listed

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from tltools.data.dataset import Dataset
    from tltools.ray.models import OpenModel, RayCluster
    from tltools.runtime.predictor import Predictor

PART_SIZE = 256
"""Maximum number of images per task of a cluster's actor: a few seconds' work on few cores."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """Results of a predictor on labeled images."""

    model: str
    """Name of the run or export, such as `cnn onnx fp32`."""
    data: str
    """Name of the data set."""
    split: str
    """The split that was evaluated, or `all`."""
    num_trained_on: int | None = None
    """Number of these images that the model was trained on; None if that is not known."""
    classes: tuple[str, ...]
    """The card's classes, in the order of the logits; the data may not contain all of them."""
    num_images: int
    score: Score
    per_class: tuple[ClassScore, ...]
    """In the order of `classes`."""
    confusion: NDArray[np.int64]
    """Counts, (C, C); row is the true class, column the predicted class."""
    roc_auc: RocAuc
    temperature: float
    """Temperature from the model's card."""
    reliability: Reliability
    """Reliability of the calibrated probabilities."""
    ece_uncalibrated: float
    """Expected calibration error of softmax(logits)."""
    seconds: float
    """Wall time of decoding and inference together."""
    paths: tuple[str, ...]
    """Absolute paths of the N images, in source order."""
    logits: NDArray[np.float32]
    """(N, C)."""
    preds: NDArray[np.int64]
    """Class indices, (N,)."""
    kept: NDArray[np.bool_]
    """Whether the class is at least as probable as the minimum confidence, (N,)."""
    targets: NDArray[np.int64]
    """Class indices, (N,)."""
    threshold: ClassThreshold | None = None
    """Threshold of a class that the predictions are made with."""
    min_confidence: float | None = None
    """Minimum confidence. Accuracy, the scores of the classes and the confusion matrix are those
    of the images that reach it."""

    @property
    def coverage(self) -> Proportion | None:
        """The fraction of the images that reach the minimum confidence; None without one."""
        if self.min_confidence is None:
            return None
        return proportion(int(self.kept.sum()), self.num_images)

    def predictions(self) -> RunPredictions:
        """Return the calibrated probabilities of the images, with their labels."""
        probs = softmax(self.logits, temperature=self.temperature)
        decided = Decided(self.preds, self.kept, known=np.ones_like(self.kept))
        return RunPredictions(self.paths, self.targets, probs, decided)

    def to_json(self) -> str:
        """Return everything except the per-image arrays as indented JSON."""
        coverage = self.coverage
        document: dict[str, Any] = {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "num_trained_on": self.num_trained_on,
            "num_images": self.num_images,
            "accuracy": {
                "value": self.score.accuracy,
                "low": self.score.low,
                "high": self.score.high,
                "correct": self.score.correct,
                "total": self.score.total,
            },
            "threshold": self.threshold and msgspec.structs.asdict(self.threshold),
            "min_confidence": self.min_confidence,
            "coverage": coverage and msgspec.structs.asdict(coverage),
            "roc_auc": msgspec.structs.asdict(self.roc_auc),
            "calibration": {
                "temperature": self.temperature,
                "ece": self.reliability.ece,
                "ece_uncalibrated": self.ece_uncalibrated,
            },
            "classes": list(self.classes),
            "per_class": [msgspec.structs.asdict(row) for row in self.per_class],
            "confusion": self.confusion.tolist(),
            "seconds": self.seconds,
        }
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def evaluate(
    predictor: "Predictor",
    dataset: "Dataset",
    *,
    split: str | None = None,
    trained_on: AbstractSet[str] | None = None,
    batch_size: int = 32,
    threshold: ClassThreshold | None = None,
    min_confidence: float | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Classify the images of one split and compare the predictions with their labels.

    Classes are matched by name; results follow the card's class order.

    Args:
        predictor: Any opened export, or a run opened with the same protocol.
        dataset: Labeled images; they need not contain every class of the model.
        split: `train`, `val`, `test` or `all`. None chooses `test`, otherwise `val`, if the data
            has one, because results that include training images would mislead; otherwise `all`.
        trained_on: SHA-256 of the images that the model was trained on, hexadecimal; see
            `tltools.artifacts.training_images`. None if they are not known.
        batch_size: Images per call of the predictor.
        threshold: Threshold of a class; None gives each image its most probable class.
        min_confidence: Score only the images whose class is at least as probable; None scores all.
        progress: Shows the batches.

    Raises:
        ConfigError: If the threshold is of an unknown class.
        DataError: If the split has no images, the model does not know a class, an image cannot be
            read, or none reaches the minimum confidence.
        ArtifactError: If the logits do not match the card or are not finite.
    """
    run = partial(predict, predictor, batch_size=batch_size, progress=progress)
    limits = _Limits(threshold, min_confidence)
    return _evaluate(predictor.card, dataset, run, split, trained_on, limits)


def evaluate_on_cluster(
    card: Card,
    dataset: "Dataset",
    cluster: "RayCluster",
    open_model: "OpenModel",
    same_files: Sequence[Path],
    *,
    split: str | None = None,
    trained_on: AbstractSet[str] | None = None,
    batch_size: int = 32,
    threshold: ClassThreshold | None = None,
    min_confidence: float | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Evaluate like `evaluate`, with a predictor on each actor of a cluster.

    Args:
        card: The predictor's card.
        dataset: As in `evaluate`.
        cluster: The cluster.
        open_model: Opens the predictor on an actor.
        same_files: Files of the predictor, which all machines must be able to read.
        split: As in `evaluate`.
        trained_on: As in `evaluate`.
        batch_size: As in `evaluate`.
        threshold: As in `evaluate`.
        min_confidence: As in `evaluate`.
        progress: As in `evaluate`.

    Raises:
        DataError, ArtifactError: As in `evaluate`.
        TltoolsError: If the cluster cannot be reached, or fails.
    """

    def run(paths: Sequence[Path]) -> NDArray[np.float32]:
        outputs = cluster.outputs(
            paths,
            open_model,
            preprocessing=card.preprocessing,
            batch_size=batch_size,
            task_size=PART_SIZE,
            same_files=same_files,
        )
        with closing(outputs):
            return _collect(card, paths, outputs, f"Evaluating {card.name}", progress)

    cluster.connect()  # before the clock starts
    limits = _Limits(threshold, min_confidence)
    return _evaluate(card, dataset, run, split, trained_on, limits)


class _Limits(NamedTuple):
    """How the predictions are made: see `decide`."""

    threshold: ClassThreshold | None
    min_confidence: float | None


def _evaluate(
    card: Card,
    dataset: "Dataset",
    run: "Callable[[Sequence[Path]], NDArray[np.float32]]",
    split: str | None,
    trained_on: AbstractSet[str] | None,
    limits: _Limits,
) -> Evaluation:
    """Compare the logits, (N, C), that `run` returns for images with their labels."""
    _check_classes(dataset.classes, card)
    split, frame = choose_split(dataset, split)
    index = {name: i for i, name in enumerate(card.classes)}
    targets = np.array([index[name] for name in frame["class"]], dtype=np.int64)
    paths = [Path(path) for path in frame["path"]]
    start = time.perf_counter()
    logits = run(paths)
    seconds = time.perf_counter() - start
    probs = softmax(logits, temperature=card.temperature)
    preds, kept, _ = decide(probs, card.classes, **limits._asdict())
    scored = preds[kept], targets[kept]
    if not len(scored[0]):
        raise DataError(
            f"none of the {grouped(len(paths), 'image')} of {dataset.name} reaches the confidence "
            f"{limits.min_confidence!r}; choose a lower one"
        )
    return Evaluation(
        model=card.name,
        data=dataset.name,
        split=split,
        num_trained_on=None if trained_on is None else count_trained_on(frame, trained_on),
        classes=card.classes,
        num_images=len(paths),
        score=score(*scored),
        per_class=classification_report(*scored, classes=card.classes),
        confusion=confusion_matrix(*scored, num_classes=len(card.classes)),
        roc_auc=roc_auc(probs, targets),
        temperature=card.temperature,
        reliability=reliability(probs, targets),
        ece_uncalibrated=reliability(softmax(logits), targets).ece,
        seconds=seconds,
        paths=tuple(map(str, paths)),
        logits=logits,
        preds=preds,
        kept=kept,
        targets=targets,
        **limits._asdict(),
    )


def choose_split(dataset: "Dataset", split: str | None) -> "tuple[str, pd.DataFrame]":
    """Return the name of the split to score, and its rows.

    Args:
        dataset: Labeled images.
        split: As in `evaluate`.

    Raises:
        DataError: If it has no images.
    """
    frame = dataset.frame
    present = set(frame["split"])
    if split is None and dataset.split_rule == "none":
        split = "all"
    elif split is None:
        split = next((name for name in ("test", "val") if name in present), "all")
    if split != "all":
        frame = dataset.part(split)
    if not len(frame):
        raise DataError(
            f"{dataset.name} has no {split} images; it has "
            f"{', '.join(sorted(present)) or 'no images at all'}"
        )
    return split, frame


def count_trained_on(frame: "pd.DataFrame", trained_on: AbstractSet[str]) -> int:
    """Return how many images of a data set's rows a model was trained on.

    Args:
        frame: Rows of `Dataset.frame`.
        trained_on: As in `evaluate`.
    """
    return sum(sha in trained_on for sha in frame["sha256"])


def predict(
    predictor: "Predictor",
    paths: Sequence[Path],
    *,
    batch_size: int = 32,
    title: str = "",
    progress: Progress = SILENT,
) -> NDArray[np.float32]:
    """Return the logits of images, (N, C), in the order of `paths`.

    Args:
        predictor: The model.
        paths: N images.
        batch_size: Images that the model is given at once.
        title: Title of the bar; empty: `Evaluating` and the model's name.
        progress: Shows the images.

    Raises:
        DataError: If an image cannot be read.
        ArtifactError: If the logits do not match the card or are not finite.
    """
    results = run_images(
        predictor,
        map(ImageRef.of_file, paths),
        preprocessing=predictor.card.preprocessing,
        plan=Plan("ahead", num_cores(), batch_size),
        finish=readable,
    )
    with closing(results):
        card = predictor.card
        shown = title or f"Evaluating {card.name}"
        return _collect(card, paths, _numbered(results), shown, progress)


def _numbered(
    results: Iterable[Outputs[ImageRef]],
) -> Iterator[tuple[range, NDArray[np.float32]]]:
    """Yield outputs with the indices of their images."""
    start = 0
    for outputs in results:
        stop = start + len(outputs.images)
        yield range(start, stop), outputs.values
        start = stop


def _collect(
    card: Card,
    paths: Sequence[Path],
    outputs: Iterable[tuple[range, NDArray[np.float32]]],
    title: str,
    progress: Progress,
) -> NDArray[np.float32]:
    """Collect outputs in image order, and check that they are finite logits, (N, C)."""
    num_classes = len(card.classes)
    logits = np.empty((len(paths), num_classes), dtype=np.float32)
    with progress.bar(title, len(paths)) as bar:
        for indices, batch in outputs:
            if batch.shape != (len(indices), num_classes):
                raise ArtifactError(
                    f"the model's output for {len(indices)} images has shape {batch.shape}, but "
                    f"its card names {num_classes} classes: export it again"
                )
            logits[indices.start : indices.stop] = batch
            bar.advance(len(indices))
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        raise ArtifactError(
            f"the model's logits are not finite for {bad.sum():,} of {len(paths):,} images "
            f"(first {paths[int(bad.argmax())]}): train or export it again"
        )
    return logits


def _check_classes(classes: Sequence[str], card: Card) -> None:
    unknown = [name for name in classes if name not in card.classes]
    if unknown and len(unknown) == len(classes) != len(card.classes):
        raise DataError(
            f"the model knows other classes, {listed(card.classes)}, than the data has, "
            f"{listed(classes)}: choose a model that was trained on these"
        )
    if unknown:
        guesses = [
            f"{name}:{guess}" for name in unknown if (guess := did_you_mean(name, card.classes))
        ]
        meant = f" ({listed(guesses)})" if guesses else ""
        raise DataError(
            f"the model does not know {listed(unknown)}{meant}: the data has {listed(classes)}, "
            f"and the model has {listed(card.classes)}; rename the data's "
            "classes with `class_names=`, in the order of their labels"
        )
