"""Turn pictures into predictions: decode and run the model at the same time, in order."""

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tltools.card import Preprocessing
from tltools.classify.pictures import Picture
from tltools.data.images import load_image
from tltools.errors import ConfigError, DataError
from tltools.parallel import ordered_map
from tltools.runtime import Device, Predictor, default_threads, load_predictor

FUSED_BATCH = 1
FUSED_TASK = 16
"""Pictures that a thread is given at once in a `fused` plan."""
AHEAD_BATCH = 32
FUSED_FORWARD_S = 0.030
"""The cost of one picture on one core below which a model runs inside the decoding threads."""
SMALL_BYTES = 32 * 2**20
"""A larger export holds too many weights to be cheap: not worth opening twice to find out."""

Item = TypeVar("Item")
Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What became of one picture: a label, or an error."""

    name: str
    label: str | None
    confidence: float | None
    """The label's probability, in [0, 1]."""
    probabilities: NDArray[np.float64] | None
    """(C,), in the order of the card's classes."""
    error: str | None


@dataclass(frozen=True)
class Plan:
    """How decoding and the model share the cores."""

    name: Literal["fused", "ahead"]
    """`fused`: each worker decodes a few pictures and runs the model on them, on one core; they
    stay in its cache. `ahead`: workers decode ahead of the model, which gets large batches and
    all cores, or a GPU."""
    workers: int
    """Threads."""
    batch_size: int
    """Pictures in one call of the model."""


def open_model(
    path: Path,
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
) -> tuple[Predictor, Plan]:
    """Open an export in the way that classifies fastest, which one forward pass tells.

    Args:
        path: The export.
        device: Where to run.
        batch_size: Pictures in one call of the model; None to choose.
        workers: Threads that decode; None for one per core.

    Raises:
        ArtifactError: As `load_predictor`.
        ConfigError: If `batch_size` or `workers` is not positive.
        DeviceError: As `load_predictor`.
    """
    for flag, value in (("--batch-size", batch_size), ("--workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}")
    workers = workers or default_threads()
    try_fused = path.is_file() and path.stat().st_size < SMALL_BYTES
    predictor = load_predictor(path, device=device, threads=1 if try_fused else None)
    if predictor.device == "cpu" and try_fused and _forward_s(predictor) < FUSED_FORWARD_S:
        return predictor, Plan("fused", workers, batch_size or FUSED_BATCH)
    if predictor.device == "cpu" and predictor.threads != default_threads():
        predictor = load_predictor(path, device=device)
    return predictor, Plan("ahead", workers, batch_size or AHEAD_BATCH)


def classify(
    predictor: Predictor, pictures: Iterable[Picture], *, plan: Plan
) -> Generator[Prediction, None, None]:
    """Classify pictures.

    A picture that cannot be read becomes a prediction with its error; the others of its batch
    go through the model without it.

    Args:
        predictor: The opened export; for a `fused` plan, one that uses one thread.
        pictures: Consumed lazily, a few batches ahead.
        plan: From `open_model`. It changes the speed, and the results only within the rounding
            of the model's own arithmetic.

    Yields:
        One prediction for each picture, in order. Nothing accumulates.
    """
    if plan.name == "fused":
        tasks = _batched(pictures, max(FUSED_TASK, plan.batch_size))
        work = partial(
            _load_and_predict, predictor, batch_size=plan.batch_size, own=threading.local()
        )
        for predictions in ordered_map(work, tasks, workers=plan.workers, ahead=2 * plan.workers):
            yield from predictions
    else:
        load = partial(_load, preprocessing=predictor.card.preprocessing)
        loaded = ordered_map(load, pictures, workers=plan.workers, ahead=2 * plan.batch_size)
        for batch in _batched(loaded, plan.batch_size):
            yield from _predict(predictor, batch, plan)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Turn logits, (N, C), into probabilities, (N, C)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)  # the largest becomes exp(0): no overflow
    exponentials = np.exp(shifted, out=shifted)
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def pad_batch(images: Image, batch_size: int) -> Image:
    """Fill a batch, (N, H, W, 3), with black pictures up to `batch_size`.

    A GPU's libraries search for the best kernels once for each shape, so all batches get one.
    """
    missing = batch_size - len(images)
    if missing <= 0:
        return images
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), dtype=images.dtype)])


def _load(
    picture: Picture, *, preprocessing: Preprocessing, out: Image | None = None
) -> tuple[str, Image | DataError]:
    """Return a picture's name and its pixels, or why there are none."""
    try:
        image = load_image(
            picture.path, size=preprocessing.size, resize=preprocessing.resize, out=out
        )
    except DataError as error:
        return picture.name, error
    return picture.name, image


def _load_and_predict(
    predictor: Predictor,
    pictures: Sequence[Picture],
    *,
    batch_size: int,
    own: threading.local,
) -> list[Prediction]:
    """Decode pictures, then run the model on them, `batch_size` at a time, in this thread.

    First all of the one and then all of the other: in turns, they drive each other's code and
    data out of the core's caches, which has been seen to cost a fifth of the speed. `own` keeps
    the thread's buffer from one call to the next: memory that is new costs a fault for each page.
    """
    preprocessing = predictor.card.preprocessing
    buffer: Image | None = getattr(own, "buffer", None)
    if buffer is None or len(buffer) < len(pictures):
        shape = (len(pictures), preprocessing.size, preprocessing.size, 3)
        own.buffer = buffer = np.empty(shape, dtype=np.uint8)
    outcomes: list[tuple[str, Image | DataError]] = []
    num_good = 0
    for picture in pictures:
        outcome = _load(picture, preprocessing=preprocessing, out=buffer[num_good])
        outcomes.append(outcome)
        num_good += not isinstance(outcome[1], DataError)
    starts = range(0, num_good, batch_size)
    logits = [predictor(buffer[i : min(i + batch_size, num_good)]) for i in starts]
    return _to_predictions(predictor.card.classes, outcomes, logits)


def _predict(
    predictor: Predictor, outcomes: Sequence[tuple[str, Image | DataError]], plan: Plan
) -> list[Prediction]:
    """Run the model once, on those pictures of a batch that could be read."""
    images = [image for _, image in outcomes if not isinstance(image, DataError)]
    logits: list[NDArray[np.float32]] = []
    if images:
        batch = np.stack(images)
        if predictor.device != "cpu":
            batch = pad_batch(batch, plan.batch_size)
        logits.append(predictor(batch)[: len(images)])
    return _to_predictions(predictor.card.classes, outcomes, logits)


def _to_predictions(
    classes: Sequence[str],
    outcomes: Sequence[tuple[str, Image | DataError]],
    logits: Sequence[NDArray[np.float32]],
) -> list[Prediction]:
    """Make one prediction for each outcome; `logits` has rows for those that are pictures."""
    probabilities = softmax(np.concatenate(logits)) if logits else np.empty((0, len(classes)))
    rows = zip(probabilities, probabilities.argmax(axis=1), strict=True)
    predictions: list[Prediction] = []
    for name, outcome in outcomes:
        if isinstance(outcome, DataError):
            predictions.append(Prediction(name, None, None, None, str(outcome)))
        else:
            row, index = next(rows)
            predictions.append(Prediction(name, classes[int(index)], float(row[index]), row, None))
    return predictions


def _forward_s(predictor: Predictor) -> float:
    """Measure one forward pass of one picture in seconds, after one to warm up."""
    size = predictor.card.preprocessing.size
    image = np.zeros((1, size, size, 3), dtype=np.uint8)
    samples: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        predictor(image)
        samples.append(time.perf_counter() - start)
    return min(samples)


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
