"""Turn images into predictions."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tltools.data.image_ref import ImageRef
from tltools.errors import ConfigError
from tltools.metrics import softmax
from tltools.runtime import Outputs, Plan, Predictor, run_images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tltools.runtime.pipeline import Memory


UNCERTAIN = "uncertain"
"""The label of an image whose most probable class is not probable enough."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What became of one image: a label, or an error."""

    name: str
    label: str | None
    """A class, or `UNCERTAIN`; None where there is an error."""
    confidence: float | None
    """The largest probability, in [0, 1]."""
    probabilities: "NDArray[np.float64] | None"
    """(C,), in the order of the card's classes."""
    error: str | None


def check_min_confidence(min_confidence: float | None, classes: Sequence[str] = ()) -> None:
    """Refuse a threshold that is no probability, or whose label a class could be mistaken for.

    Raises:
        ConfigError: If it is so.
    """
    if min_confidence is None:
        return
    if not 0 <= min_confidence <= 1:
        raise ConfigError(f"--min-confidence is a probability, from 0 to 1, not {min_confidence}")
    if UNCERTAIN in classes:
        raise ConfigError(
            f"the model has a class {UNCERTAIN!r}, which --min-confidence would be mistaken for; "
            "do without that option"
        )


def classify(
    predictor: Predictor,
    images: Iterable[ImageRef],
    *,
    plan: Plan,
    min_confidence: float | None = None,
    memory: "Memory | None" = None,
    **options: Any,
) -> Generator[Prediction, None, None]:
    """Classify images.

    An image that cannot be read becomes a prediction with its error; the others of its batch
    go through the model without it.

    Args:
        predictor: The opened export; for a `fused` plan, one that uses one thread.
        images: Consumed lazily, a few batches ahead.
        plan: From `open_model`. It changes the speed, and the results only within the rounding
            of the model's own arithmetic.
        min_confidence: What is less likely than that is labeled `UNCERTAIN`; None: nothing is.
        memory: Knows the logits of earlier images, which are then not decoded.
        **options: Others of `tltools.runtime.run_images`.

    Yields:
        One prediction for each image, in order. Nothing accumulates.
    """
    card = predictor.card
    finish = partial(predictions, card.classes, card.temperature, min_confidence=min_confidence)
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
) -> list[Prediction]:
    """Return the predictions of images that went through the model together.

    Args:
        classes: The model's, in the order of the logits.
        temperature: What logits are divided by.
        outputs: The logits of those that could be read, and the errors of the others.
        min_confidence: As for `classify`.
    """
    threshold = 0.0 if min_confidence is None else min_confidence
    values = outputs.values
    rows = iter(softmax(values, temperature=temperature) if len(values) else ())
    made: list[Prediction] = []
    for image, error in zip(outputs.images, outputs.errors, strict=True):
        if error is not None:
            made.append(Prediction(image.name, None, None, None, str(error)))
            continue
        row = next(rows)
        index = int(row.argmax())
        label = classes[index] if row[index] >= threshold else UNCERTAIN
        made.append(Prediction(image.name, label, float(row[index]), row, None))
    return made


class Rows(NamedTuple):
    """Predictions as an output holds them, and what there is to count."""

    encoded: list[bytes]
    labels: list[str | None]
    """A class, or `UNCERTAIN`; None where there is an error."""
    errors: list[tuple[str, str]]
    """Name and error of each image without a label."""

    def without(self, number: int) -> "Rows":
        """Return them without the first `number`."""
        failed = self.labels[:number].count(None)
        return Rows(self.encoded[number:], self.labels[number:], self.errors[failed:])


@dataclass(frozen=True)
class RowMaker:
    """Makes rows of outputs, in whichever process has these."""

    is_portable: ClassVar[bool] = True
    """Workers may do it."""
    classes: tuple[str, ...]
    temperature: float
    min_confidence: float | None
    encoder: Callable[[], Callable[[Prediction], bytes]]
    """Returns what encodes a prediction; may be pickled, and costs little when it is called
    again."""

    def __call__(self, outputs: Outputs[Any]) -> Rows:
        """Return the rows of images that went through the model together."""
        made = predictions(
            self.classes, self.temperature, outputs, min_confidence=self.min_confidence
        )
        encode = self.encoder()
        return Rows(
            [encode(one) for one in made],
            [one.label for one in made],
            [(one.name, one.error or "") for one in made if one.label is None],
        )
