"""Pictures through a model: decode and run it at the same time, in order, in bounded memory."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tltools.card import Card, Preprocessing
from tltools.data.images import Source as ImageSource
from tltools.data.images import load_image
from tltools.data.remote import fetch_ahead
from tltools.errors import ConfigError, DataError
from tltools.parallel import ordered_map
from tltools.runtime.device import Device, DeviceChoice, default_threads, num_gpus
from tltools.runtime.predictor import Predictor, load_predictor

FUSED_BATCH = 1
FUSED_TASK = 16
"""Most pictures that a thread is given at once in a `fused` plan."""
FUSED_TASK_S = 0.050
"""How long what a thread is given at once may take: of large pictures it gets fewer, or one thread
would still have many when the others have none left."""
AHEAD_BATCH = 32
AHEAD_TASK = 8
"""Pictures that a thread decodes at once in an `ahead` plan."""
FUSED_FORWARD_S = 0.030
"""The cost of one picture on one core below which a model runs inside the decoding threads."""
SMALL_BYTES = 32 * 2**20
"""A larger export holds too many weights to be cheap: not worth opening twice to find out."""

Image = NDArray[np.uint8]
Result = TypeVar("Result")
Item = TypeVar("Item")


class Picture(Protocol):
    """A file to be decoded, or what stands for one."""

    @property
    def path(self) -> Path | ImageSource:
        """Where it is."""
        ...


Source = TypeVar("Source", bound=Picture)


class Model(Protocol):
    """What the pipeline runs: a predictor, or a backbone that gives features."""

    @property
    def device(self) -> str:
        """`cpu` or a kind of GPU."""
        ...

    def __call__(self, images: Image) -> NDArray[np.float32]:
        """Map images, (N, H, W, 3), to outputs, (N, F); from several threads at once."""
        ...

    def new_batch(self, num_images: int) -> Image:
        """Allocate images, (N, H, W, 3), in memory that suits the device."""
        ...


class Memory(Protocol):
    """Outputs of earlier pictures, by the bytes of their files; called from several threads."""

    def recall(self, data: bytes) -> tuple[bytes, NDArray[np.float32] | None]:
        """Return a file's key and, where it is known, the model's outputs for it, (F,)."""
        ...

    def remember(self, key: bytes, values: NDArray[np.float32]) -> None:
        """Keep the model's outputs, (F,)."""
        ...


@dataclass(frozen=True)
class Plan:
    """How decoding and the model share the cores."""

    name: Literal["fused", "ahead"]
    """`fused`: each worker decodes a few pictures and runs the model on them, on one core; they
    stay in its cache. `ahead`: workers decode ahead of the model, which gets large batches and
    all cores, or a GPU."""
    workers: int
    """Threads that decode."""
    batch_size: int
    """Pictures in one call of the model."""
    sessions: int = 1
    """Calls of the model at the same time in an `ahead` plan: one for each GPU."""

    def __str__(self) -> str:
        """Return the plan in words."""
        pictures = f"{self.batch_size} picture" + "s" * (self.batch_size > 1)
        if self.name == "fused":
            return (
                f"{self.workers} threads, each decodes and runs the model on {pictures} at a time"
            )
        gpus = f" on {self.sessions} GPUs" if self.sessions > 1 else ""
        return f"{self.workers} threads decode ahead of the model, which gets {pictures}{gpus}"


@dataclass(frozen=True, slots=True)
class Outputs(Generic[Source]):
    """What became of some pictures that went through the model together."""

    pictures: Sequence[Source]
    errors: Sequence[DataError | None]
    """Why a picture could not be read, for each of `pictures`; None for those that could."""
    values: NDArray[np.float32]
    """The model's outputs, (n, F), for the n readable ones in order."""


def open_model(
    path: Path,
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    tf32: bool = False,
) -> tuple[Predictor, Plan]:
    """Open an export in the way that is fastest on folders, which one forward pass tells.

    On a machine with several GPUs, each gets a session of its own.

    Args:
        path: The export.
        device: Where to run.
        batch_size: Pictures in one call of the model; None to choose.
        workers: Threads that decode; None for one per core.
        threads: Cores of one forward pass on the CPU; None to choose. With more than one, workers
            decode ahead of the model.
        tf32: Let CUDA round fp32 products to TF32.

    Raises:
        ArtifactError: As `load_predictor`.
        ConfigError: If `batch_size`, `workers` or `threads` is not positive.
        DeviceError: As `load_predictor`.
    """
    check_positive({"--batch-size": batch_size, "--workers": workers, "--threads": threads})
    workers = workers or default_threads()
    ahead = Plan("ahead", workers, batch_size or AHEAD_BATCH)
    try_fused = threads is None and path.is_file() and path.stat().st_size < SMALL_BYTES
    predictor = load_predictor(path, device=device, threads=1 if try_fused else threads, tf32=tf32)
    if predictor.device != "cpu":
        return _on_gpus(path, predictor, device, ahead, tf32)
    if threads == 1 or (try_fused and forward_s(predictor) < FUSED_FORWARD_S):
        return predictor, Plan("fused", workers, batch_size or FUSED_BATCH)
    if try_fused and default_threads() > 1:
        predictor = load_predictor(path, device=device)
    return predictor, ahead


def check_positive(given: Mapping[str, int | None]) -> None:
    """Refuse numbers below 1, by the options that they were given with; None was not given.

    Raises:
        ConfigError: If there is one.
    """
    for flag, value in given.items():
        if value is not None and value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}")


def _on_gpus(
    path: Path, first: Predictor, device: Device, plan: Plan, tf32: bool
) -> tuple[Predictor, Plan]:
    """Open the export on the other GPUs too, and run each once with the shape that will occur."""
    others = [
        load_predictor(path, device=device, gpu=gpu, tf32=tf32) for gpu in range(1, num_gpus())
    ]
    for predictor in (first, *others):
        predictor(predictor.new_batch(plan.batch_size))
    if not others:
        return first, plan
    pool = PredictorPool([first, *others])
    return pool, Plan(plan.name, plan.workers, plan.batch_size, sessions=1 + len(others))


class PredictorPool:
    """The same export on several GPUs; a call goes to one that is idle."""

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        """Take predictors of one export, at least one."""
        first = predictors[0]
        self.card: Card = first.card
        self.device: str = first.device
        self.choice = DeviceChoice(
            first.choice.device, f"{first.choice.reason}, on each of {len(predictors)} GPUs"
        )
        self.provider: str = first.provider
        self.placement: dict[str, int] = first.placement
        self.threads: int = first.threads
        self._idle: SimpleQueue[Predictor] = SimpleQueue()
        for predictor in predictors:
            self._idle.put(predictor)

    def __call__(self, images: Image) -> NDArray[np.float32]:
        """Map images, (N, H, W, 3), to logits, (N, C); waits where no GPU is idle."""
        predictor = self._idle.get()
        try:
            return predictor(images)
        finally:
            self._idle.put(predictor)

    def new_batch(self, num_images: int) -> Image:
        """Allocate images, (N, H, W, 3), in ordinary memory: which GPU will take them is open."""
        return np.empty(self.card.preprocessing.shape(num_images), dtype=np.uint8)


def run_pictures(
    model: Model,
    pictures: Iterable[Source],
    *,
    preprocessing: Preprocessing,
    plan: Plan,
    finish: Callable[[Outputs[Source]], Result],
    memory: Memory | None = None,
) -> Generator[Result, None, None]:
    """Decode pictures and run the model on them.

    A picture that cannot be read keeps its place with its error, and one that `memory` knows keeps
    it with the outputs from there; the others of its batch go through the model without it.

    Args:
        model: For a `fused` plan, one that uses one thread.
        pictures: Consumed lazily, a few batches ahead; those of servers, a few dozen more.
        preprocessing: How they are decoded.
        plan: From `open_model`. It changes the speed, and the outputs only within the rounding
            of the model's own arithmetic.
        finish: Turns the outputs of some pictures into a result, in the thread that made them.
        memory: Knows the outputs of pictures, which are then neither decoded nor run; it is told
            of the others.

    Yields:
        The results, which are those of all pictures in their order. Nothing accumulates.
    """
    pictures = fetch_ahead(pictures)
    if plan.name == "fused":
        pace = _Pace(max(1, FUSED_TASK // plan.batch_size))
        work = partial(
            _run_fused,
            model,
            preprocessing=preprocessing,
            batch_size=plan.batch_size,
            finish=finish,
            memory=memory,
            pace=pace,
            own=threading.local(),
        )
        tasks = _tasks(pictures, plan.batch_size, pace)
        yield from ordered_map(work, tasks, workers=plan.workers, ahead=2 * plan.workers)
    else:
        yield from _run_ahead(model, pictures, preprocessing, plan, finish, memory)


def readable(outputs: Outputs[Source]) -> Outputs[Source]:
    """Return outputs as they are, for `run_pictures` where no picture may fail.

    Raises:
        DataError: If one could not be read.
    """
    for error in outputs.errors:
        if error is not None:
            raise error
    return outputs


def forward_s(predictor: Predictor) -> float:
    """Measure one forward pass of one picture in seconds, after one to warm up."""
    image = predictor.new_batch(1)
    image[:] = 0
    samples: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        predictor(image)
        samples.append(time.perf_counter() - start)
    return min(samples)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class _Recalled:
    """What a memory says of a picture, once it has been called with the bytes of its file."""

    __slots__ = ("_memory", "key", "values")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.key = b""
        self.values: NDArray[np.float32] | None = None

    def __call__(self, data: bytes) -> bool:
        """Ask the memory; return whether it knows the picture, which need not be decoded then."""
        self.key, self.values = self._memory.recall(data)
        return self.values is not None


_Loaded = DataError | _Recalled | None
"""Why a picture was not decoded, or what `memory` says; None: it was decoded."""


def _load(
    picture: Picture, preprocessing: Preprocessing, out: Image, memory: Memory | None
) -> _Loaded:
    """Decode a picture into `out`, (size, size, 3), unless that cannot be or need not be done."""
    recalled = None if memory is None else _Recalled(memory)
    try:
        load_image(
            picture.path,
            size=preprocessing.size,
            resize=preprocessing.resize,
            out=out,
            skip=recalled,
        )
    except DataError as error:
        return error
    return recalled


def _is_decoded(loaded: _Loaded) -> bool:
    return loaded is None or (isinstance(loaded, _Recalled) and loaded.values is None)


def _outputs(
    pictures: Sequence[Source],
    loaded: Sequence[_Loaded],
    values: Sequence[NDArray[np.float32]],
    memory: Memory | None,
) -> Outputs[Source]:
    """Put together what the model and the memory say.

    Args:
        pictures: All.
        loaded: What became of each.
        values: The model's outputs for those that were decoded, in order.
        memory: Is told of them.
    """
    whole = np.concatenate(values) if values else np.empty((0, 0), dtype=np.float32)
    if memory is not None:
        new = iter(whole)
        rows: list[NDArray[np.float32]] = []
        for one in loaded:
            if isinstance(one, _Recalled):
                rows.append(next(new) if one.values is None else one.values)
                if one.values is None:
                    memory.remember(one.key, rows[-1])
        whole = np.stack(rows) if rows else whole
    errors = [one if isinstance(one, DataError) else None for one in loaded]
    return Outputs(pictures, errors, whole)


class _Pace:
    """How many batches a thread is given at once, from how long the last ones took."""

    def __init__(self, most: int) -> None:
        """Begin with one batch."""
        self.num_batches = 1
        self.most = most

    def took(self, seconds: float, num_batches: int) -> None:
        """Learn from a task that is done."""
        fitting = int(FUSED_TASK_S * num_batches / max(seconds, 1e-9))
        self.num_batches = min(max(1, fitting), self.most)


def _tasks(pictures: Iterable[Source], batch_size: int, pace: _Pace) -> Iterator[list[Source]]:
    """Yield whole batches, as many at once as `pace` says by then; the last may be shorter."""
    source = iter(pictures)
    while task := list(islice(source, batch_size * pace.num_batches)):
        yield task


def _run_fused(
    model: Model,
    pictures: Sequence[Source],
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    finish: Callable[[Outputs[Source]], Result],
    memory: Memory | None,
    pace: _Pace,
    own: threading.local,
) -> Result:
    """Decode pictures, then run the model on them, `batch_size` at a time, in this thread.

    First all of the one and then all of the other: in turns, they drive each other's code and
    data out of the core's caches, which has been seen to cost a fifth of the speed. `own` keeps
    the thread's buffer from one call to the next: memory that is new costs a fault for each page.
    """
    begun = time.perf_counter()
    buffer: Image | None = getattr(own, "buffer", None)
    if buffer is None:
        own.buffer = buffer = model.new_batch(batch_size * pace.most)
    loaded: list[_Loaded] = []
    batches: list[Image] = []
    num_decoded = 0
    for some in batched(pictures, batch_size):
        start = num_decoded
        for picture in some:
            loaded.append(_load(picture, preprocessing, buffer[num_decoded], memory))
            num_decoded += _is_decoded(loaded[-1])
        batches.append(buffer[start:num_decoded])
    values = [model(batch) for batch in batches if len(batch)]
    pace.took(time.perf_counter() - begun, len(batches))
    return finish(_outputs(pictures, loaded, values, memory))


@dataclass(slots=True)
class _Batch(Generic[Source]):
    """Pictures on their way through an `ahead` plan."""

    pictures: list[Source]
    images: Image
    """Of the plan's batch size, whatever the number of pictures."""
    loaded: list[_Loaded]


def _run_ahead(
    model: Model,
    pictures: Iterable[Source],
    preprocessing: Preprocessing,
    plan: Plan,
    finish: Callable[[Outputs[Source]], Result],
    memory: Memory | None,
) -> Iterator[Result]:
    """Three stages: threads decode, one thread for each session runs the model, the caller writes.

    Batches go round: what the model is done with is decoded into again.
    """
    idle: deque[Image] = deque()

    def tasks() -> Iterator[tuple[_Batch[Source], int]]:
        for some in batched(pictures, plan.batch_size):
            images = idle.pop() if idle else model.new_batch(plan.batch_size)
            batch = _Batch(some, images, [None] * len(some))
            for start in range(0, len(some), AHEAD_TASK):
                yield batch, start

    def decode(task: tuple[_Batch[Source], int]) -> _Batch[Source] | None:
        batch, start = task
        stop = min(start + AHEAD_TASK, len(batch.pictures))
        for index in range(start, stop):
            batch.loaded[index] = _load(
                batch.pictures[index], preprocessing, batch.images[index], memory
            )
        return batch if stop == len(batch.pictures) else None

    def run(batch: _Batch[Source]) -> Result:
        good = [index for index, loaded in enumerate(batch.loaded) if _is_decoded(loaded)]
        if good and len(good) < len(batch.loaded):
            batch.images[: len(good)] = batch.images[good]
        values: list[NDArray[np.float32]] = []
        if good:
            # A GPU's libraries search for the best kernels once for each shape: it gets one shape,
            # whose rest holds pictures of before.
            whole = model.device != "cpu"
            values.append(model(batch.images if whole else batch.images[: len(good)])[: len(good)])
        idle.append(batch.images)
        return finish(_outputs(batch.pictures, batch.loaded, values, memory))

    ahead = -(-plan.batch_size // AHEAD_TASK) + plan.workers
    decoded = ordered_map(decode, tasks(), workers=plan.workers, ahead=ahead)
    # The last task of a batch comes after all others of it.
    whole = (batch for batch in decoded if batch is not None)
    yield from ordered_map(run, whole, workers=plan.sessions, ahead=plan.sessions + 1)
