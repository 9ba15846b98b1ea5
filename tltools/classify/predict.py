"""Turn images into predictions."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tltools.data.image_ref import ImageRef
from tltools.data.images import printable_name
from tltools.decisions import UNCERTAIN, ClassThreshold, decide
from tltools.errors import ConfigError, MissingError
from tltools.metrics import softmax
from tltools.runtime import Outputs, Plan, Predictor, run_images

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
    """A class or `UNCERTAIN`; None if there is an error."""
    confidence: float | None
    """The probability of the label, in [0, 1]; of an uncertain one, that of the class it may be."""
    probabilities: "NDArray[np.float64] | None"
    """Probabilities, float64 (C,), in the order of the card's classes."""
    error: str | None
    is_missing: bool = False
    """Whether the image could not be opened."""


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


def classify(
    predictor: Predictor,
    images: Iterable[ImageRef],
    *,
    plan: Plan,
    min_confidence: float | None = None,
    threshold: ClassThreshold | None = None,
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
) -> list[Prediction]:
    """Return the predictions of images that went through the model together.

    Args:
        classes: The model's classes, in the order of the logits.
        temperature: The divisor of the logits.
        outputs: The logits of readable images and the errors of the others.
        min_confidence: See `classify`.
        threshold: See `classify`.
    """
    values = outputs.values
    probs = _probabilities(values, temperature) if len(values) else values.reshape(0, len(classes))
    decided = decide(probs, classes, threshold=threshold, min_confidence=min_confidence)
    rows = zip(probs, decided.preds.tolist(), decided.kept.tolist(), strict=True)
    made: list[Prediction] = []
    for image, error in zip(outputs.images, outputs.errors, strict=True):
        row, index, is_kept = (None, 0, False) if error is not None else next(rows)
        if row is None or row[0] != row[0]:  # NaN
            reason = str(error or f"cannot classify image {printable_name(image)}: {NOT_FINITE}")
            is_missing = isinstance(error, MissingError)
            made.append(Prediction(image.name, None, None, None, reason, is_missing))
            continue
        label = classes[index] if is_kept else UNCERTAIN
        made.append(Prediction(image.name, label, float(row[index]), row, None))
    return made


def _probabilities(values: "NDArray[Any]", temperature: float) -> "NDArray[np.float64]":
    """Return the probabilities, float64 (N, C), of logits (N, C); NaN where one is not finite."""
    import numpy as np

    if np.isfinite(values).all():
        return softmax(values, temperature=temperature)
    is_finite = np.isfinite(np.abs(values).max(axis=1))
    probabilities = softmax(np.where(is_finite[:, None], values, 0), temperature=temperature)
    probabilities[~is_finite] = np.nan
    return probabilities


class Rows(NamedTuple):
    """Encoded predictions of an output, with their labels and errors for counting."""

    encoded: list[bytes]
    labels: list[str | None]
    """A class or `UNCERTAIN`; None if there is an error."""
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

    def __call__(self, outputs: Outputs[Any]) -> Rows:
        """Return the rows of images that went through the model together."""
        made = predictions(
            self.classes,
            self.temperature,
            outputs,
            min_confidence=self.min_confidence,
            threshold=self.threshold,
        )
        encode = self.encoder()
        return Rows(
            [encode(one) for one in made],
            [one.label for one in made],
            [(one.name, one.error or "") for one in made if one.label is None],
            frozenset(index for index, one in enumerate(made) if one.is_missing),
        )
