"""Choose a threshold on images that a model has not seen, and keep it in its run's card."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tltools.artifacts import images_of, run_of
from tltools.atomic import write_text
from tltools.card import MAX_CARD_BYTES, Card, Threshold, with_threshold
from tltools.classify.threshold import positive_class
from tltools.curves import Figure, check_has_class, check_target, choose_threshold
from tltools.data.dataset import Dataset
from tltools.decisions import ClassThreshold
from tltools.errors import ArtifactError, ConfigError, DataError
from tltools.regular import read_regular
from tltools.run_folder import (
    CARD,
    PREDICTIONS,
    RunPredictions,
    check_present,
    read_predictions,
    read_split,
)
from tltools.wording import grouped


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a threshold shall reach.

    Raises:
        ConfigError: If the target is out of range.
    """

    figure: Figure
    at_least: float
    """In (0, 1]."""
    class_name: str | None = None
    """The class; None: the second of two classes, or the labels of all if there are more."""

    def __post_init__(self) -> None:
        """Reject a target that no threshold can have."""
        check_target(self.figure, self.at_least)

    def class_of(self, card: Card) -> str | None:
        """Return the class that the threshold is of for a model; None: the labels of all classes.

        Raises:
            ConfigError: If the model has no such class, or the target is a recall without a class.
        """
        if self.class_name is None:
            name = positive_class(card)
            check_has_class(self.figure, name)
            return name
        ClassThreshold(self.class_name, 0.0).index(card.classes)
        return self.class_name


def choose(card: Card, target: Target, predictions: RunPredictions, *, images: str) -> Threshold:
    """Choose a threshold for a model.

    Args:
        card: The model's card.
        target: What it shall reach.
        predictions: The model's probabilities for images that it has not seen.
        images: What they are, such as `validation images of labels.csv`.

    Raises:
        ConfigError: If the model has no such class, or the target is a recall without a class.
        DataError: If no threshold reaches the target, or there are too few images to say so.
    """
    return choose_threshold(
        predictions.probs,
        predictions.targets,
        classes=card.classes,
        class_name=target.class_of(card),
        figure=target.figure,
        at_least=target.at_least,
        images=images,
    )


def described(name: str, split: str) -> str:
    """Return what the images of a data set's split are called in a threshold."""
    return f"{'validation images' if split == 'val' else 'images'} of {name}"


def is_chosen_on(threshold: Threshold | None, applied: float | None, images: str) -> bool:
    """Return whether an applied threshold was chosen on the same images, by their names.

    Args:
        threshold: The threshold in a model's card.
        applied: The probability or minimum confidence that is applied; None if none is.
        images: What the images are; see `described`.
    """
    return threshold is not None and (threshold.value, threshold.images) == (applied, images)


def own_predictions(run: Path, card: Card) -> RunPredictions:
    """Return a run's predictions for its validation images, as training wrote them.

    Raises:
        ArtifactError: If they are missing or damaged, or are not those that the card's accuracy
            is of.
    """
    found = read_predictions(run, card.classes).get("val")
    remedy = "give it labeled images that the model was not trained on, or train it again"
    if found is None:
        raise ArtifactError(
            f"{run} has no predictions for its validation images (an earlier version of tltools "
            f"made it, or writing them failed); {remedy}"
        )
    wanted, right = card.metrics.get("val"), int((found.preds == found.targets).sum())
    is_sane = np.isfinite(found.probs).all() and ((found.probs >= 0) & (found.probs <= 1)).all()
    counts = None if wanted is None else (wanted.correct, wanted.total)
    if not is_sane or counts != (right, len(found.targets)):
        raise ArtifactError(f"{run / PREDICTIONS} does not match the accuracy in {CARD}; {remedy}")
    return found


def own_images(export: Path, card: Card) -> Dataset:
    """Return the validation images of an export's run.

    Raises:
        DataError: If the run is not found, or an image is missing.
        ArtifactError: If the run's images cannot be read.
    """
    run = run_of(export, card)
    if run is None:
        raise DataError(
            f"the run of {export} is not found, so its validation images are unknown; run the "
            "command where runs/ is, or add labeled images that the model was not trained on"
        )
    frame = read_split(run)
    frame = frame.loc[frame["split"] == "val"].reset_index(drop=True)
    check_present(
        frame["path"],
        "validation image",
        of=run,
        remedy="add labeled images that the model was not trained on",
    )
    return Dataset(
        name=card.data.name,
        frame=frame,
        classes=card.classes,
        split_rule="given",
        findings=(),
        fingerprint=card.data.fingerprint,
    )


def unseen_split(dataset: Dataset, split: str | None) -> str:
    """Return the split of labeled images on which a threshold is chosen: `val`, or `all`.

    Raises:
        ConfigError: If another split is requested.
        DataError: If the data has only training and test images.
    """
    has_splits = dataset.split_rule != "none"
    if split == "val" or (split in (None, "all") and not has_splits):
        return split or "all"
    if split is not None:
        raise ConfigError(
            f"a threshold is not chosen on `split={split}`: training images flatter the model, and "
            "test images are there to confirm the choice; leave out `split=`"
        )
    if "val" not in set(dataset.frame["split"]):
        raise DataError(
            f"{dataset.name} has no validation images, and a threshold is not chosen on training "
            "or test images; use other labeled images"
        )
    return "val"


def check_unseen(model: Path, card: Card, dataset: Dataset, split: str) -> bool:
    """Refuse images that the model was trained on, or that are its run's test images.

    Args:
        model: A run or an export.
        card: Its card.
        dataset: Labeled images.
        split: Their split that a threshold is chosen on, or `all`.

    Returns:
        Whether that is known, because the run was found.

    Raises:
        DataError: If there is such an image.
        ArtifactError: If the run's images cannot be read.
    """
    run = run_of(model, card)
    if run is None:
        return False
    frame = dataset.frame if split == "all" else dataset.part(split)
    for of, what, remedy in (
        ("train", "the model was trained on", "or add `exclude_train=True`"),
        ("test", f"the test split of {run} has", "since they are there to confirm the choice"),
    ):
        seen = images_of(run, of)
        number = sum(sha in seen for sha in frame["sha256"])
        if number:
            raise DataError(
                f"{what} {number:,} of these {grouped(len(frame), 'image')}, so no threshold is "
                f"chosen on them; leave out the data to use the run's validation images, {remedy}"
            )
    return True


def keep_in_card(run: Path, card: Card, threshold: Threshold) -> Path:
    """Write a threshold into a run's card, in place of an earlier one; return the card's path.

    Everything else in the file stays, and with it the match with earlier exports.

    Raises:
        ArtifactError: If the card has changed since it was read.
        TltoolsError: If it cannot be written.
    """
    path = run / CARD
    text = read_regular(path, max_bytes=MAX_CARD_BYTES)
    written = with_threshold(text, threshold, where=str(path), of=card)
    write_text(path, written)
    return path
