"""Turn pictures into predictions."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tltools.classify.pictures import Picture
from tltools.metrics import softmax
from tltools.runtime import Outputs, Plan, Predictor, run_pictures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tltools.runtime.pipeline import Memory


@dataclass(frozen=True, slots=True)
class Prediction:
    """What became of one picture: a label, or an error."""

    name: str
    label: str | None
    confidence: float | None
    """The label's probability, in [0, 1]."""
    probabilities: "NDArray[np.float64] | None"
    """(C,), in the order of the card's classes."""
    error: str | None


def classify(
    predictor: Predictor,
    pictures: Iterable[Picture],
    *,
    plan: Plan,
    memory: "Memory | None" = None,
) -> Generator[Prediction, None, None]:
    """Classify pictures.

    A picture that cannot be read becomes a prediction with its error; the others of its batch
    go through the model without it.

    Args:
        predictor: The opened export; for a `fused` plan, one that uses one thread.
        pictures: Consumed lazily, a few batches ahead.
        plan: From `open_model`. It changes the speed, and the results only within the rounding
            of the model's own arithmetic.
        memory: Knows the logits of earlier pictures, which are then not decoded.

    Yields:
        One prediction for each picture, in order. Nothing accumulates.
    """
    classes = predictor.card.classes

    def predictions(outputs: Outputs[Picture]) -> list[Prediction]:
        return _predictions(classes, outputs)

    for some in run_pictures(
        predictor,
        pictures,
        preprocessing=predictor.card.preprocessing,
        plan=plan,
        finish=predictions,
        memory=memory,
    ):
        yield from some


def _predictions(classes: Sequence[str], outputs: Outputs[Picture]) -> list[Prediction]:
    rows = iter(softmax(outputs.values) if len(outputs.values) else ())
    made: list[Prediction] = []
    for picture, error in zip(outputs.pictures, outputs.errors, strict=True):
        if error is not None:
            made.append(Prediction(picture.name, None, None, None, str(error)))
            continue
        row = next(rows)
        index = int(row.argmax())
        made.append(Prediction(picture.name, classes[index], float(row[index]), row, None))
    return made
