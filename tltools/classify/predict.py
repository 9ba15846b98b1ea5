"""Turn images into predictions."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tltools.card import Card
from tltools.data.image_ref import ImageRef
from tltools.data.images import printable_name
from tltools.decisions import UNCERTAIN, UNKNOWN, ClassThreshold, Decided, decide
from tltools.errors import ConfigError, MissingError
from tltools.metrics import softmax
from tltools.runtime import Outputs, Plan, Predictor, run_images
from tltools.runtime.exports import distances_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tltools.runtime.pipeline import Memory


NOT_FINITE = "the model gave no finite answer"
"""Why an image has no label although it could be read."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result for one image: a label or an error."""

    name: str
    label: str | None
    """A class, `UNKNOWN` or `UNCERTAIN`; None if there is an error."""
    confidence: float | None
    """The probability of the label, in [0, 1]; of an uncertain or unknown one, that of the class it
    may be."""
    probabilities: "NDArray[np.float64] | None"
    """Probabilities, float64 (C,), in the order of the card's classes."""
    error: str | None
    is_missing: bool = False
    """Whether the image could not be opened."""
    distance: float | None = None
    """How far the image is from the training images; about 1 for images like these. None if there
    is an error, or the model was opened without distances."""


def check_min_confidence(min_confidence: float | None, classes: Sequence[str] = ()) -> None:
    """Reject a threshold outside [0, 1], or a class with the name of the threshold's label.

    Raises:
        ConfigError: In either case.
    """
    if min_confidence is None:
        return
    if not 0 <= min_confidence <= 1:
        raise ConfigError(f"`min_confidence=` must be between 0 and 1, got {min_confidence}")
    if UNCERTAIN in classes:
        raise ConfigError(
            f"the model has a class named {UNCERTAIN!r}, the label that `min_confidence=` assigns; "
            "leave `min_confidence=` out"
        )


def check_unknown(unknown: float | None, classes: Sequence[str] = ()) -> None:
    """Reject a percentile that is not from 1 to below 100, or a class with the name of its label.

    Raises:
        ConfigError: In either case.
    """
    if unknown is None:
        return
    if not 1 <= unknown < 100:  # NaN, too; a lower one is a share that was meant as a percentage
        meant = f": did you mean {100 * unknown:g}?" if 0 < unknown < 1 else ""
        raise ConfigError(
            f"`unknown=` must be a percentile of at least 1 and below 100, such as 99, got "
            f"{unknown:g}{meant}"
        )
    if UNKNOWN in classes:
        raise ConfigError(
            f"the model has a class named {UNKNOWN!r}, the label that `unknown=` assigns; leave "
            "`unknown=` out"
        )


def max_distance(card: Card, unknown: float | None) -> float | None:
    """Return the largest distance of an image that is not `UNKNOWN`; None if none is.

    Raises:
        ArtifactError: If the export does not give distances.
        ConfigError: As `check_unknown`.
    """
    check_unknown(unknown, card.classes)
    return None if unknown is None else distances_of(card).at(unknown)


def classify(
    predictor: Predictor,
    images: Iterable[ImageRef],
    *,
    plan: Plan,
    min_confidence: float | None = None,
    threshold: ClassThreshold | None = None,
    unknown: float | None = None,
    memory: "Memory | None" = None,
    **options: Any,
) -> Generator[Prediction, None, None]:
    """Classify images.

    An unreadable image becomes a prediction with its error, and the rest of its batch goes through
    the model without it; so does an image for which the model gives NaN or infinity.

    Args:
        predictor: The opened export; for a `fused` plan, one that uses one thread.
        images: Consumed lazily, a few batches ahead.
        plan: From `open_model`. It affects speed, and results only within the rounding error of
            the model's arithmetic.
        min_confidence: Label predictions below this confidence `UNCERTAIN`; None labels none so.
        threshold: Threshold of a class; None gives each image its most probable class.
        unknown: Label images beyond this percentile of the training images' distances `UNKNOWN`;
            None labels none so. The predictor must have been opened with distances.
        memory: Holds the logits of earlier images, which are then not decoded again.
        **options: Further options of `tltools.runtime.run_images`.

    Yields:
        One prediction per image, in order. Memory use does not grow.
    """
    card = predictor.card
    finish = partial(
        predictions,
        card.classes,
        card.temperature,
        min_confidence=min_confidence,
        threshold=threshold,
        max_distance=max_distance(card, unknown),
    )
    for some in run_images(
        predictor,
        images,
        preprocessing=card.preprocessing,
        plan=plan,
        finish=finish,
        memory=memory,
        **options,
    ):
        yield from some


def predictions(
    classes: Sequence[str],
    temperature: float,
    outputs: Outputs[Any],
    *,
    min_confidence: float | None,
    threshold: ClassThreshold | None = None,
    max_distance: float | None = None,
) -> list[Prediction]:
    """Return the predictions of images that went through the model together.

    Args:
        classes: The model's classes, in the order of the logits.
        temperature: The divisor of the logits.
        outputs: The logits of readable images, (n, C), with the distances as a last column if the
            model gives them; and the errors of the others.
        min_confidence: See `classify`.
        threshold: See `classify`.
        max_distance: Largest distance of an image that is not `UNKNOWN`; None if none is.
    """
    num_classes, values = len(classes), outputs.values
    if not len(values):
        values = values.reshape(0, num_classes + (max_distance is not None))
    distances = values[:, num_classes] if values.shape[1] > num_classes else None
    probs = _probabilities(values[:, :num_classes], distances, temperature)
    decided = decide(
        probs,
        classes,
        threshold=threshold,
        min_confidence=min_confidence,
        distances=distances,
        max_distance=max_distance,
    )
    labels = _labels(decided, classes)
    away = [None] * len(probs) if distances is None else distances.tolist()
    rows = zip(probs, decided.preds.tolist(), labels, away, strict=True)
    made: list[Prediction] = []
    for image, error in zip(outputs.images, outputs.errors, strict=True):
        row, index, label, distance = (None, 0, "", None) if error is not None else next(rows)
        if row is None or row[0] != row[0]:  # NaN
            reason = str(error or f"cannot classify image {printable_name(image)}: {NOT_FINITE}")
            is_missing = isinstance(error, MissingError)
            made.append(Prediction(image.name, None, None, None, reason, is_missing))
            continue
        made.append(Prediction(image.name, label, float(row[index]), row, None, distance=distance))
    return made


def _labels(decided: Decided, classes: Sequence[str]) -> list[str]:
    """Return the label of each image: that it is unlike the training data comes first."""
    import numpy as np

    labels: list[str] = [classes[int(index)] for index in decided.preds]
    for index in np.flatnonzero(~decided.kept):
        labels[index] = UNCERTAIN
    for index in np.flatnonzero(~decided.known):
        labels[index] = UNKNOWN
    return labels


def _probabilities(
    logits: "NDArray[Any]", distances: "NDArray[Any] | None", temperature: float
) -> "NDArray[np.float64]":
    """Return the probabilities, float64 (N, C), of logits (N, C); NaN where a value is not finite.

    The distances, (N,), are values, too.
    """
    import numpy as np

    if not len(logits):
        return logits.astype(np.float64)
    largest = np.abs(logits).max(axis=1)
    is_finite = np.isfinite(largest if distances is None else largest + distances)
    if is_finite.all():
        return softmax(logits, temperature=temperature)
    probabilities = softmax(np.where(is_finite[:, None], logits, 0), temperature=temperature)
    probabilities[~is_finite] = np.nan
    return probabilities


class Rows(NamedTuple):
    """Encoded predictions of an output, with their labels and errors for counting."""

    encoded: list[bytes]
    labels: list[str | None]
    """A class, `UNKNOWN` or `UNCERTAIN`; None if there is an error."""
    errors: list[tuple[str, str]]
    """Name and error of each image without a label."""
    missing: frozenset[int] = frozenset()
    """Indices of the images that could not be opened."""

    def without(self, number: int) -> "Rows":
        """Return the rows without the first `number`."""
        failed = self.labels[:number].count(None)
        return Rows(
            self.encoded[number:],
            self.labels[number:],
            self.errors[failed:],
            frozenset(index - number for index in self.missing if index >= number),
        )


@dataclass(frozen=True)
class RowMaker:
    """Makes rows from a model's outputs, in the process that has them."""

    is_portable: ClassVar[bool] = True
    """Whether it can run in a worker."""
    classes: tuple[str, ...]
    temperature: float
    min_confidence: float | None
    encoder: Callable[[], Callable[[Prediction], bytes]]
    """Returns a function that encodes a prediction; can be pickled, and is cheap to call again."""
    threshold: ClassThreshold | None = None
    max_distance: float | None = None

    def __call__(self, outputs: Outputs[Any]) -> Rows:
        """Return the rows of images that went through the model together."""
        made = predictions(
            self.classes,
            self.temperature,
            outputs,
            min_confidence=self.min_confidence,
            threshold=self.threshold,
            max_distance=self.max_distance,
        )
        encode = self.encoder()
        return Rows(
            [encode(one) for one in made],
            [one.label for one in made],
            [(one.name, one.error or "") for one in made if one.label is None],
            frozenset(index for index, one in enumerate(made) if one.is_missing),
        )
