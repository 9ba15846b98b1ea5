"""Run images through a model: in order, and in bounded memory.

Worker processes decode the images, and run the model too if it is cheap enough; pixels are passed
in shared memory. The main process does work per batch, not per image.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from mmap import mmap
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, Literal, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tltools.card import Card, Preprocessing
from tltools.data.image_ref import ImageRef
from tltools.data.images import load_image, unreadable
from tltools.data.remote_images import fetch_ahead
from tltools.errors import ConfigError, DataError, DeviceError
from tltools.processes import Launcher, SharedMemory
from tltools.runtime.device import (
    CUDA_PROVIDER,
    Device,
    DeviceChoice,
    chosen_gpus,
    default_threads,
)
from tltools.runtime.driver import PageLock, sleep_while_waiting
from tltools.runtime.exports import load_predictor, read_card
from tltools.runtime.model_formats import format_of, is_export_name
from tltools.runtime.predictor import CardBatches, ExportPredictor, Layout, Predictor
from tltools.runtime.workers import IN_HAND, Crew, Handle, Mark, Pending, Task, Work, in_order
from tltools.wording import counted

FUSED_BATCH = 1
FUSED_TASK = 32
"""Most images in a task of a `fused` plan."""
FUSED_TASK_S = 0.050
"""Target duration of a task: a task of large images has fewer of them, or one worker would still
have many to do when the others are done."""
AHEAD_BATCH = 32
"""Batch size on a GPU for jobs that are too small to find the best one by measuring."""
CPU_BATCH = 8
"""Batch size on the CPU: larger ones are no faster and take memory (VGG16 fp32: 2.1 GB at 32)."""
GPU_BATCHES = (64, 128, 256)
"""Batch sizes that a large job tries on a GPU."""
GOOD_ENOUGH = 0.97
"""Share of the best throughput at which a smaller batch is preferred."""
LARGE_JOB = 4096
"""Number of images from which trying batch sizes, which takes a second or two, pays off."""
AHEAD_TASK = 32
"""Most images in a task of an `ahead` plan; each task costs the main process about 0.1 ms."""
FIRST_TASK = 4
"""Images in a task before the time per image is known."""
AHEAD_TASK_S = 0.010
"""Target duration of a decoding task."""
MAX_BATCH_BYTES = 2**29
"""Most memory for batches; exceeded only if the smallest number of batches needs more."""
FUSED_FORWARD_S = 0.030
"""Seconds for one image on one core below which the model runs inside the workers."""
SMALL_BYTES = 32 * 2**20
"""A larger export has too many weights to be cheap: opening it twice to find out is a waste."""
TASKS_AHEAD = 4
"""Tasks per worker that may be finished or in progress ahead of the one that is due."""
CALLS_PER_GPU = 2
"""Concurrent calls of the model per GPU, so that one copies while the other computes."""

PlanName = Literal["fused", "ahead"]
Image = NDArray[np.uint8]
Result = TypeVar("Result")
Item = TypeVar("Item")
Place = str | ImageRef
"""An image as it is sent to a worker: the path of a file, or another reference."""
Source = TypeVar("Source", bound=ImageRef)


class Model(Protocol):
    """A model that the pipeline runs: a predictor, or a backbone that gives features."""

    @property
    def device(self) -> str:
        """`cpu` or a kind of GPU."""
        ...

    def __call__(self, images: Image) -> NDArray[Any]:
        """Map images, uint8 (N, H, W, 3), to outputs, (N, F); must be thread-safe."""
        ...


Recall = Callable[[bytes], tuple[bytes, NDArray[np.float32] | None]]
"""Maps a file's bytes to its key and the model's outputs for it, (F,), or None if unknown."""


class Memory(Protocol):
    """A cache of outputs, keyed by the bytes of the image files."""

    num_known: int
    """Number of images found in the cache."""

    def remember(self, key: bytes, values: NDArray[np.float32]) -> None:
        """Store the model's outputs, (F,)."""
        ...

    def reader(self) -> Callable[[], Recall]:
        """Return a picklable function that opens the cache for reading, here or in a worker."""
        ...


@dataclass(frozen=True)
class Plan:
    """How decoding and the model share the cores."""

    name: PlanName
    """`fused`: each worker decodes a few images and runs the model on them, on one core, while
    they are in its cache. `ahead`: workers decode ahead of the model, which gets large batches and
    all cores, or a GPU."""
    workers: int
    """Number of processes that decode."""
    batch_size: int
    """Images in one call of the model."""
    sessions: int = 1
    """Concurrent calls of the model in an `ahead` plan: two per GPU."""

    def __str__(self) -> str:
        """Return the plan in words."""
        images = counted(self.batch_size, "image")
        workers = counted(self.workers, "process", "processes")
        one = self.workers == 1
        if self.name == "fused":
            decode = "decodes and runs" if one else "each decodes and runs"
            return f"{workers}, {decode} the model on {images} at a time"
        calls = f", {self.sessions} calls at a time" if self.sessions > 1 else ""
        decode = "decodes" if one else "decode"
        return f"{workers} {decode} ahead of the model, which gets {images}{calls}"


@dataclass(frozen=True, slots=True)
class Outputs(Generic[Source]):
    """The results of images that went through the model together."""

    images: Sequence[Source]
    errors: Sequence[DataError | None]
    """For each of `images`, why it could not be read; None if it could."""
    values: NDArray[Any]
    """The model's outputs, (n, F), for the n readable images, in order."""


# ---------------------------------------------------------------------------------- opening


def open_model(
    path: Path,
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    tf32: bool = False,
    layout: Layout | None = None,
    num_images: int | None = 0,
    distances: bool = False,
) -> tuple[Predictor, Plan]:
    """Open an export, and choose the fastest plan for many images by a few forward passes.

    Args:
        path: The export.
        device: Device to run on; each of several GPUs gets its own session.
        batch_size: Images in one call of the model; None to choose.
        workers: Number of processes that decode; None for one per core.
        threads: Cores of a forward pass on the CPU; None to choose. With several, all decode ahead.
        tf32: Let CUDA round fp32 products to TF32.
        layout: Memory layout on CUDA; None to choose.
        num_images: Number of images, None if unknown. For many (or None), batch size and layout
            are chosen by measuring.
        distances: See `load_predictor`.

    Raises:
        ArtifactError, DeviceError: See `load_predictor`.
        ConfigError: If `batch_size`, `workers` or `threads` is not positive.
    """
    check_positive({"`batch_size=`": batch_size, "`workers=`": workers, "`threads=`": threads})
    asked = _Asked(
        path=path,
        device=device,
        batch_size=batch_size,
        workers=workers or default_threads(),
        threads=threads,
        tf32=tf32,
        layout=layout,
        distances=distances,
    )
    gpus = chosen_gpus(device)
    try_fused = may_fuse(path, threads)
    predictor = asked.open(
        threads=1 if try_fused else threads, gpu=gpus[0] if gpus else None, nhwc=layout == "nhwc"
    )
    if predictor.device == "cpu":
        return _on_cpu(predictor, asked, try_fused=try_fused)
    is_large = num_images is None or num_images >= LARGE_JOB
    return _on_gpus(predictor, asked, gpus, try_settings=is_large)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The arguments of `open_model`; None leaves a choice to it."""

    path: Path
    device: Device
    batch_size: int | None
    workers: int
    threads: int | None
    tf32: bool
    layout: Layout | None
    distances: bool

    def open(self, *, threads: int | None, gpu: int | None, nhwc: bool) -> ExportPredictor:
        """Open the export with this many cores, or on a GPU, in a layout."""
        return load_predictor(
            self.path,
            device=self.device,
            threads=threads,
            tf32=self.tf32,
            gpu=gpu,
            nhwc=nhwc,
            distances=self.distances,
        )


def _on_cpu(
    predictor: ExportPredictor, asked: _Asked, *, try_fused: bool
) -> tuple[Predictor, Plan]:
    """Choose the plan by the time of a forward pass.

    Args:
        predictor: The export; if `try_fused`, with a single core, which a cheap model keeps.
        asked: What was asked for.
        try_fused: Whether workers may run the model.
    """
    if try_fused and (asked.threads == 1 or forward_s(predictor) < FUSED_FORWARD_S):
        return predictor, Plan("fused", asked.workers, asked.batch_size or FUSED_BATCH)
    if try_fused and default_threads() > 1:
        predictor = load_predictor(asked.path, device=asked.device, distances=asked.distances)
    return predictor, Plan("ahead", asked.workers, asked.batch_size or CPU_BATCH)


def may_fuse(path: Path, threads: int | None) -> bool:
    """Return whether workers may run an export: a small file that does not need PyTorch.

    Args:
        path: The export.
        threads: Requested cores for one forward pass; None if not specified.
    """
    if threads not in (None, 1) or not is_export_name(path) or format_of(path).needs_torch:
        return False
    return threads == 1 or (path.is_file() and path.stat().st_size < SMALL_BYTES)


def check_positive(given: Mapping[str, int | None]) -> None:
    """Check that numbers are at least 1; None means not given.

    Args:
        given: Numbers by the name to use in messages, such as `` `batch_size=` ``.

    Raises:
        ConfigError: If a number is less than 1.
    """
    for name, value in given.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def _on_gpus(
    predictor: ExportPredictor, asked: _Asked, gpus: Sequence[int], *, try_settings: bool
) -> tuple[Predictor, Plan]:
    """Choose batch size and layout, open the export on the other GPUs too, and warm up all.

    Args:
        predictor: The export on the first GPU, in the requested layout if any.
        asked: What was asked for.
        gpus: Indices of the GPUs.
        try_settings: Whether to choose by measuring.
    """
    open_on = partial(asked.open, threads=asked.threads)
    batch_size = asked.batch_size or AHEAD_BATCH
    if try_settings:
        sizes = GPU_BATCHES if asked.batch_size is None else (asked.batch_size,)
        batch_size, rate = fastest_batch(predictor, sizes)
        if asked.layout is None and _may_gain_by_layout(predictor):
            other = open_on(gpu=gpus[0] if gpus else 0, nhwc=True)
            size, other_rate = fastest_batch(other, sizes)
            if rate < GOOD_ENOUGH * other_rate:
                predictor, batch_size = other, size
    nhwc = predictor.layout == "nhwc"
    predictors = [predictor, *(open_on(gpu=gpu, nhwc=nhwc) for gpu in gpus[1:])]
    for one in predictors:
        if one.choice.gpu is not None:
            sleep_while_waiting(one.choice.gpu)
        one(one.new_batch(batch_size))
    return PredictorPool(predictors), Plan(
        "ahead", asked.workers, batch_size, sessions=CALLS_PER_GPU * len(predictors)
    )


def _may_gain_by_layout(predictor: ExportPredictor) -> bool:
    """Return whether channels-last may be faster: with tensor cores, on the CUDA provider."""
    export = predictor.card.export
    is_half = export is not None and export.precision == "fp16"
    return (is_half or predictor.tf32) and predictor.provider == CUDA_PROVIDER


def fastest_batch(predictor: Predictor, sizes: Sequence[int] = GPU_BATCHES) -> tuple[int, float]:
    """Return the smallest batch size that is about as fast as the best, and its images/s.

    Batch sizes that do not fit the GPU's memory are skipped.

    Args:
        predictor: A predictor on a GPU.
        sizes: Candidate batch sizes, ascending.

    Raises:
        DeviceError: If even the smallest batch fails.
    """
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = size / call_s(predictor, size)
        except DeviceError:
            if not rates:
                raise
            break
    best = max(rates.values())
    return next((size, rate) for size, rate in rates.items() if rate >= GOOD_ENOUGH * best)


def call_s(predictor: Predictor, batch_size: int) -> float:
    """Measure one call with a batch of noise, in seconds: the best of three after a warm-up.

    Noise is used since arithmetic on equal values can be faster than on images.
    """
    images = predictor.new_batch(batch_size)
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    return _best_of_three(predictor, images)


def _best_of_three(predictor: Predictor, images: Image) -> float:
    samples: list[float] = []
    for _ in range(4):
        start = time.perf_counter()
        predictor(images)
        samples.append(time.perf_counter() - start)
    return min(samples[1:])


class PredictorPool:
    """The same export on one or several GPUs; each call goes to the least busy one."""

    def __init__(self, predictors: Sequence[ExportPredictor]) -> None:
        """Pool one or more predictors of the same export."""
        first = predictors[0]
        self.card: Card = first.card
        self.device: str = first.device
        several = f", on each of {len(predictors)} GPUs" if len(predictors) > 1 else ""
        self.choice = DeviceChoice(first.choice.device, f"{first.choice.reason}{several}")
        self.provider: str = first.provider
        self.placement: dict[str, int] = first.placement
        self.threads: int = first.threads
        self.layout: Layout = first.layout
        self.tf32: bool = first.tf32
        self.gives_distances: bool = first.gives_distances
        self._first = first
        self._idle: SimpleQueue[Predictor] = SimpleQueue()
        for predictor in [*predictors] * CALLS_PER_GPU:
            self._idle.put(predictor)

    def __call__(self, images: Image) -> NDArray[np.float32]:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C); wait for an idle GPU."""
        predictor = self._idle.get()
        try:
            return predictor(images)
        finally:
            self._idle.put(predictor)

    def new_batch(self, num_images: int) -> Image:
        """Allocate images, uint8 (N, H, W, 3)."""
        return self._first.new_batch(num_images)

    def lock_pages(self, memory: NDArray[Any]) -> PageLock | None:
        """Page-lock memory for all GPUs; see `ExportPredictor.lock_pages`."""
        return self._first.lock_pages(memory)


def forward_s(predictor: Predictor) -> float:
    """Measure a forward pass of one image, in seconds, after a warm-up."""
    image = predictor.new_batch(1)
    image[:] = 0
    return _best_of_three(predictor, image)


class WorkerModel(CardBatches):
    """An export that each worker runs by itself; this process opens it only if it is called.

    Its attributes are those reported by the first worker.
    """

    def __init__(
        self, path: Path, card: Card, device: Device, told: "Told", *, distances: bool
    ) -> None:
        """Take the export, a worker's device and report, and whether calls give distances."""
        self.gives_distances = distances
        self.path = path
        self.opened_with = device
        self.card = card
        self.choice = told.choice
        self.device: str = told.choice.device
        self.provider = told.provider
        self.placement = told.placement
        self.threads = 1
        self._opened: Predictor | None = None

    def __call__(self, images: Image) -> NDArray[np.float32]:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C)."""
        if self._opened is None:
            self._opened = load_predictor(
                self.path,
                device=self.opened_with,
                threads=1,
                self_test=False,
                distances=self.gives_distances,
            )
        return self._opened(images)


class Told(NamedTuple):
    """A worker's report about the export it opened."""

    choice: DeviceChoice
    provider: str
    placement: dict[str, int]
    forward_s: float


@dataclass(frozen=True)
class _Opening:
    """Work that opens an export in a worker, to learn about it."""

    path: Path
    device: Device
    distances: bool

    def open(self, memory: mmap | None) -> tuple[Handle, object]:  # noqa: ARG002
        """Open the export, verify it and measure it."""
        model = _opened_once(self.path, self.device, self.distances)
        told = Told(model.choice, model.provider, model.placement, forward_s(model))
        return _no_tasks, told

    def pack(self, task: Task) -> tuple[Any, Any]:
        """Do nothing: there are no tasks."""
        return task.items, task.details

    def try_item(self, item: Any) -> None:
        """Do nothing: there are no items."""


def _no_tasks(task: Task, mark: Mark) -> None:  # noqa: ARG001
    raise AssertionError("a worker that only opens a model got a task")


@lru_cache(maxsize=1)
def _opened_once(path: Path, device: Device, distances: bool) -> Predictor:
    """Open an export in a worker, and keep it open for the job that follows."""
    return load_predictor(path, device=device, threads=1, distances=distances)


def open_in_worker(
    path: Path,
    *,
    device: Device,
    batch_size: int | None,
    workers: int | None,
    launcher: Launcher,
    plan: PlanName | None = None,
    distances: bool = False,
) -> tuple[Predictor, Plan] | None:
    """Open an export in a worker, which will be the first to run it if the model is cheap enough.

    Args:
        path: An ONNX export.
        device: `cpu`, or `auto` on a machine without a GPU.
        batch_size: See `open_model`.
        workers: See `open_model`.
        launcher: Starts the worker, and keeps it for the job.
        plan: The plan of the resumed job; None to choose.
        distances: See `load_predictor`.

    Returns:
        None if the model needs an `ahead` plan, and so has to be opened in this process.

    Raises:
        ArtifactError, DeviceError, ParityError: See `load_predictor`.
    """
    card = read_card(path)
    with Crew(_Opening(path, device, distances), size=1, launcher=launcher) as crew:
        told = crew.ready()
    assert isinstance(told, Told)
    if plan == "ahead" or (plan is None and told.forward_s >= FUSED_FORWARD_S):
        return None
    fused = Plan("fused", workers or default_threads(), batch_size or FUSED_BATCH)
    return WorkerModel(path, card, device, told, distances=distances), fused


# ---------------------------------------------------------------------------------- running


def run_images(
    model: Model,
    images: Iterable[Source],
    *,
    preprocessing: Preprocessing,
    plan: Plan,
    finish: Callable[[Outputs[Source]], Result],
    memory: Memory | None = None,
    launcher: Launcher | None = None,
    timeout_s: float = 30.0,
    tell: Callable[[str], None] | None = None,
) -> Generator[Result, None, None]:
    """Decode images and run the model on them.

    An unreadable image keeps its place with its error, and one found in `memory` keeps it with the
    stored outputs; the rest of the batch goes through the model without them. An image that
    crashes its worker, or exceeds the time limit, counts as unreadable.

    Args:
        model: The model; for a `fused` plan, one that uses a single thread.
        images: Consumed lazily, a few batches ahead; remote images, a few dozen more.
        preprocessing: How to decode the images.
        plan: The plan from `open_model`. It affects the speed; outputs change only within the
            rounding error of the model's arithmetic.
        finish: Turns the outputs of some images into a result. It runs in the workers, where
            images only have a name, in a `fused` plan, and in an `ahead` plan if it has a true
            attribute `is_portable`; otherwise in a thread of this process.
        memory: Cache of outputs: images found there are neither decoded nor run; the outputs of
            the others are stored.
        launcher: Starts workers for all images. None: this process, which a bad image may crash,
            does the first tenth of a second of work, and newly started workers the rest.
        timeout_s: Time limit for decoding one image, in seconds.
        tell: Called with one line for each image that is skipped because it crashes its worker,
            and for memory that a GPU cannot read directly.

    Yields:
        The results for all images, in order. Nothing accumulates.
    """
    job = _Job(
        model=model,
        images=fetch_ahead(images),
        preprocessing=preprocessing,
        plan=plan,
        finish=finish,
        memory=memory,
        launcher=launcher,
        timeout_s=timeout_s,
        tell=tell or _say_nothing,
    )
    yield from (_run_fused(job) if plan.name == "fused" else _run_ahead(job))


def _say_nothing(_message: str) -> None:
    """Ignore a message."""


def _tell_of_blame(tell: Callable[[str], None], task: Task, index: int, reason: str) -> None:
    place = task.items[index]
    name = place if isinstance(place, str) else place.name
    tell(f"{name}: {reason}; the error is recorded in its row")


def readable(outputs: Outputs[Source]) -> Outputs[Source]:
    """Return outputs unchanged: a `finish` for `run_images` if no image may fail.

    Raises:
        DataError: If an image could not be read.
    """
    for error in outputs.errors:
        if error is not None:
            raise error
    return outputs


class _Pixels:
    """A model that returns the images themselves."""

    device = "cpu"

    def __call__(self, images: Image) -> Image:
        """Return a copy of images, uint8 (N, H, W, 3), since their memory is reused."""
        return images.copy()


def decode_batches(
    paths: Iterable[Path],
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int | None = None,
) -> Generator[Image, None, None]:
    """Decode images ahead of the consumer; fail at the first unreadable one.

    Args:
        paths: See `load_image`.
        preprocessing: Size and resize rule.
        batch_size: Images in a batch, N; the last batch may be smaller.
        workers: Number of processes; None for one per core.

    Returns:
        Arrays (N, size, size, 3), uint8, RGB, in order.

    Raises:
        ConfigError: If `batch_size` is less than 1.
        DataError: While iterating, at the first unreadable image.
    """
    if batch_size < 1:
        raise ConfigError(f"`batch_size=` must be at least 1, got {batch_size}")
    results = run_images(
        _Pixels(),
        map(ImageRef.of_file, paths),
        preprocessing=preprocessing,
        plan=Plan("ahead", workers or default_threads(), batch_size),
        finish=readable,
    )
    return _values_of(results)


def _values_of(results: Generator[Outputs[ImageRef], None, None]) -> Generator[Image, None, None]:
    with closing(results):
        for outputs in results:
            yield outputs.values


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of length `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@dataclass(frozen=True, kw_only=True)
class _Job(Generic[Source, Result]):
    """The settings that both plans share."""

    model: Model
    images: Iterator[Source]
    preprocessing: Preprocessing
    plan: Plan
    finish: Callable[[Outputs[Source]], Result]
    memory: Memory | None
    launcher: Launcher | None
    timeout_s: float
    """Time limit for decoding one image, in seconds."""
    tell: Callable[[str], None]

    @property
    def is_isolated(self) -> bool:
        """Whether all images are decoded in workers, none in this process."""
        return self.launcher is not None

    def crew(
        self,
        work: Work | None,
        *,
        local: Handle | None,
        memory: SharedMemory | None = None,
        in_hand: int = IN_HAND,
    ) -> Crew:
        """Return the workers that do this work."""
        return Crew(
            work,
            size=self.plan.workers,
            local=local,
            memory=memory,
            launcher=self.launcher,
            timeout_s=self.timeout_s,
            on_blame=partial(_tell_of_blame, self.tell),
            in_hand=in_hand,
        )

    def recall(self) -> "Callable[[], Recall] | None":
        """Return the function that opens the memory in a worker."""
        return None if self.memory is None else self.memory.reader()

    def remember(self, loaded: "_Remembered") -> None:
        """Count what workers found in the memory, and store what is new."""
        if self.memory is not None:
            self.memory.num_known += loaded.num_known
            for key, values in loaded.new:
                self.memory.remember(key, values)


@dataclass(slots=True)
class _Remembered:
    """An update for a memory."""

    num_known: int = 0
    new: list[tuple[bytes, NDArray[np.float32]]] = field(default_factory=list)


# ------------------------------------------------------------------------- decoding, anywhere


class _Recalled:
    """A memory's answer for an image, once it has been called with the bytes of its file."""

    __slots__ = ("_recall", "key", "values")

    def __init__(self, recall: Recall) -> None:
        self._recall = recall
        self.key = b""
        self.values: NDArray[np.float32] | None = None

    def __call__(self, data: bytes) -> bool:
        """Ask the memory; return whether it knows the image, so that decoding can be skipped."""
        self.key, self.values = self._recall(data)
        return self.values is not None

    def __reduce__(self) -> "tuple[Callable[..., _Recalled], tuple[object, ...]]":
        """Pickle the answer, for another process."""
        return _answered, (self.key, self.values)


def _answered(key: bytes, values: NDArray[np.float32] | None) -> _Recalled:
    recalled = _Recalled(lambda data: (key, values))  # noqa: ARG005
    recalled(b"")
    return recalled


_Loaded = DataError | _Recalled | None
"""Why an image was not decoded, or the memory's answer; None: it was decoded."""


def _load(place: Place, preprocessing: Preprocessing, out: Image, recall: Recall | None) -> _Loaded:
    """Decode an image into `out`, uint8 (size, size, 3), unless it is unreadable or known."""
    is_decoded = isinstance(place, ImageRef) and place.is_decoded
    recalled = None if recall is None or is_decoded else _Recalled(recall)
    try:
        load_image(place, preprocessing, out=out, skip=recalled)
    except DataError as error:
        return error
    return recalled


def _is_decoded(loaded: _Loaded) -> bool:
    return loaded is None or (isinstance(loaded, _Recalled) and loaded.values is None)


def _outputs(
    images: Sequence[Any],
    loaded: Sequence[_Loaded],
    values: Sequence[NDArray[Any]],
) -> tuple[Outputs[Any], _Remembered]:
    """Combine the model's outputs with the memory's answers.

    Args:
        images: All images.
        loaded: The outcome of loading each image.
        values: The model's outputs for the decoded images, in order.

    Returns:
        The outputs, and the update for the memory.
    """
    whole = np.concatenate(values) if values else np.empty((0, 0), dtype=np.float32)
    remembered = _Remembered()
    if any(isinstance(one, _Recalled) for one in loaded):
        new = iter(whole)
        rows: list[NDArray[np.float32]] = []
        for one in loaded:
            if isinstance(one, _Recalled):
                rows.append(next(new) if one.values is None else one.values)
                if one.values is None:
                    remembered.new.append((one.key, rows[-1]))
                else:
                    remembered.num_known += 1
        whole = np.stack(rows) if rows else whole
    errors = [one if isinstance(one, DataError) else None for one in loaded]
    return Outputs(images, errors, whole), remembered


def _place(image: ImageRef) -> Place:
    """Return an image as it is sent to a worker: for a file only its path, which is cheap."""
    return image.place if isinstance(image.place, str) else image


@dataclass(frozen=True)
class _Decoding:
    """Work that the workers of both plans do."""

    preprocessing: Preprocessing
    recall: Callable[[], Recall] | None

    def try_item(self, item: Any) -> None:
        """Only decode an image."""
        shape = self.preprocessing.shape(1)
        _load(item, self.preprocessing, np.empty(shape, np.uint8)[0], None)

    def pack(self, task: Task) -> tuple[Any, Any]:
        """Return a task's items and details as they are sent to workers."""
        return list(task.items), task.details


def _opened(reader: Callable[[], Recall] | None) -> Recall | None:
    return None if reader is None else reader()


class _Loader:
    """Decodes the images of a task, in a worker or in the main process."""

    def __init__(self, decoding: _Decoding, recall: Recall | None) -> None:
        self._preprocessing = decoding.preprocessing
        self._recall = recall

    def load(self, index: int, task: Task, out: Image, mark: Mark) -> _Loaded:
        """Decode one of a task's images into `out`, uint8 (size, size, 3)."""
        place = task.items[index]
        if task.blamed and index in task.blamed:
            return unreadable(place, task.blamed[index])
        mark.item(index)
        return _load(place, self._preprocessing, out, self._recall)


# ---------------------------------------------------------------------------------- fused


class _Pace:
    """The size of the next task, by the duration of the last ones."""

    def __init__(self, first: int, most: int, seconds: float) -> None:
        """Start with size `first`; then aim at a duration of `seconds`, with at most `most`."""
        self.number = first
        self.most = most
        self._seconds = seconds

    def took(self, seconds: float, number: int) -> None:
        """Learn from a finished task of size `number`."""
        fitting = int(self._seconds * number / max(seconds, 1e-9))
        self.number = min(max(1, fitting), self.most)


@dataclass(frozen=True, slots=True)
class _Named:
    """An image as known to a worker: by its name only."""

    name: str


@dataclass(frozen=True)
class _Fused(_Decoding):
    """Work that decodes images and runs the model on them."""

    path: Path
    device: Device
    distances: bool
    """Whether the model gives distances."""
    batch_size: int
    most: int
    """Most images in a task."""
    finish: Callable[[Any], Any]

    def open(self, memory: mmap | None) -> tuple[Handle, object]:  # noqa: ARG002
        """Open the model, unless it is already open."""
        model = _opened_once(self.path, self.device, self.distances)
        return _FusedHandle(self, model, _opened(self.recall), named=True), None

    def pack(self, task: Task) -> tuple[Any, Any]:
        """Return the images' places and names."""
        return list(task.items), [image.name for image in task.details]


class _FusedHandle:
    """Does the tasks of a `fused` plan.

    It decodes all of a task's images before it runs the model on them: alternating between the two
    evicts each other's code and data from the core's caches, which costs about 20% of throughput.
    The buffer is reused from task to task, since new memory costs a page fault for each page.
    """

    def __init__(self, work: _Fused, model: Model, recall: Recall | None, *, named: bool) -> None:
        self._loader = _Loader(work, recall)
        self._model = model
        self._work = work
        self._named = named
        self._buffer = np.empty(work.preprocessing.shape(work.most), np.uint8)

    def __call__(self, task: Task, mark: Mark) -> tuple[Any, _Remembered | None, float]:
        """Return the result of `finish`, the update for the memory, and the seconds taken."""
        begun = time.perf_counter()
        loaded: list[_Loaded] = []
        batches: list[Image] = []
        num_decoded = 0
        with mark.bounded():
            for start in range(0, len(task.items), self._work.batch_size):
                first = num_decoded
                for index in range(start, min(start + self._work.batch_size, len(task.items))):
                    out = self._buffer[num_decoded]
                    loaded.append(self._loader.load(index, task, out, mark))
                    num_decoded += _is_decoded(loaded[-1])
                batches.append(self._buffer[first:num_decoded])
        mark.items_done()
        values = [self._model(batch) for batch in batches if len(batch)]
        images = [_Named(name) for name in task.details] if self._named else task.details
        outputs, remembered = _outputs(images, loaded, values)
        told = None if self._work.recall is None else remembered
        return self._work.finish(outputs), told, time.perf_counter() - begun


def _run_fused(job: _Job[Source, Result]) -> Iterator[Result]:
    """Decode and run the model in workers; yield the results in order."""
    plan = job.plan
    pace = _Pace(1, max(1, FUSED_TASK // plan.batch_size), FUSED_TASK_S)
    path: Path | None = getattr(job.model, "path", None)
    work = _fused_work(job, most=plan.batch_size * pace.most)
    local: Handle | None = None
    if not job.is_isolated:
        local = _FusedHandle(work, job.model, _opened(work.recall), named=False)
    # A model that is not a file stays in this process.
    with job.crew(work if path else None, local=local) as crew:
        tasks = _fused_tasks(job.images, plan.batch_size, pace, crew)
        ahead = TASKS_AHEAD * plan.workers
        for pending in in_order(crew, tasks, ahead=ahead, is_here=_is_here):
            result, remembered, seconds = pending.result()
            pace.took(seconds, -(-len(pending.task.items) // plan.batch_size))
            if remembered is not None:
                job.remember(remembered)
            yield result


def _fused_work(job: _Job[Source, Result], most: int) -> _Fused:
    """Return the work of a `fused` plan, for tasks of `most` images at most."""
    return _Fused(
        preprocessing=job.preprocessing,
        recall=job.recall(),
        path=getattr(job.model, "path", Path()),
        device=getattr(job.model, "opened_with", "cpu"),
        distances=getattr(job.model, "gives_distances", False),
        batch_size=job.plan.batch_size,
        most=most,
        finish=job.finish,
    )


def _fused_tasks(
    images: Iterator[Source], batch_size: int, pace: _Pace, crew: Crew
) -> Iterator[Task]:
    """Yield tasks of whole batches, as many as `pace` allows; the last may be shorter.

    In this process a task is a single batch, so that each result is available at once.
    """
    while some := list(islice(images, batch_size * (1 if crew.works_here else pace.number))):
        yield Task([_place(image) for image in some], some)


def _is_here(task: Task) -> bool:
    """Return whether a task's pixels are already in this process; arrays are never sent."""
    return any(isinstance(place, ImageRef) and place.is_decoded for place in task.items)


# ---------------------------------------------------------------------------------- ahead


@dataclass(frozen=True)
class _Ahead(_Decoding):
    """Work that decodes images into the memory of the model's batches, and finishes outputs."""

    finish: Callable[[Any], Any] | None
    """None: outputs are finished elsewhere."""

    def open(self, memory: mmap | None) -> tuple[Handle, object]:
        """Map the batches' memory."""
        assert memory is not None
        _opened_once.cache_clear()  # the model turned out not to run in workers
        images = _images(memory, self.preprocessing)
        return _AheadHandle(self, images, _opened(self.recall)), None


class _Finishing(NamedTuple):
    """The details of a task that only has to be finished."""

    names: list[str]
    errors: Sequence[DataError | None]
    values: NDArray[Any]


class _AheadHandle:
    """Does the tasks of an `ahead` plan; a task's details are its first index in the memory."""

    def __init__(self, work: _Ahead, images: Image, recall: Recall | None) -> None:
        self._loader = _Loader(work, recall)
        self._images = images
        self._finish = work.finish

    def __call__(self, task: Task, mark: Mark) -> Any:
        """Return the outcome for each image (None: all were decoded) and the seconds taken.

        For a task that only has to be finished, return the result of `finish`.
        """
        if isinstance(task.details, _Finishing):
            assert self._finish is not None
            names, errors, values = task.details
            images: list[Any] = [_Named(name) for name in names]
            return self._finish(Outputs(images, errors, values))
        begun = time.perf_counter()
        first: int = task.details
        with mark.bounded():
            loaded = [
                self._loader.load(index, task, self._images[first + index], mark)
                for index in range(len(task.items))
            ]
        mark.items_done()
        told = loaded if any(one is not None for one in loaded) else None
        return told, time.perf_counter() - begun


def _images(memory: mmap, preprocessing: Preprocessing) -> Image:
    """View memory as images, uint8 (N, size, size, 3), as many as fit."""
    shape = preprocessing.shape(1)[1:]
    each = int(np.prod(shape))
    number = len(memory) // each
    return np.frombuffer(memory, np.uint8, number * each).reshape(number, *shape)


@dataclass(slots=True)
class _Batch(Generic[Source]):
    """A batch on its way through an `ahead` plan."""

    number: int
    """Index of its slot in the memory."""
    images: list[Source]
    loaded: list[_Loaded]
    parts: deque[Pending] = field(default_factory=deque)
    future: "Future[tuple[Outputs[Any], _Remembered, Any]] | None" = None
    end: Pending | None = None
    """The finishing task, if a worker finishes the outputs."""

    @property
    def is_done(self) -> bool:
        """Whether the result is available."""
        if self.end is not None:
            return self.end.is_done
        return self.future is not None and self.future.done()


class _AheadRun(Generic[Source, Result]):
    """Three stages: workers decode, threads run the model, the caller takes the results.

    Batches are recycled: once the model is done with one, new images are decoded into it.
    """

    def __init__(
        self, job: _Job[Source, Result], crew: Crew, images: Image, num: int, lock: "_Locking"
    ) -> None:
        """Prepare the run.

        Args:
            job: The job.
            crew: The workers that decode.
            images: The batches' memory, uint8 (N, size, size, 3).
            num: Number of batches that fit in it.
            lock: Page lock of that memory; the model's first batch waits for it, decoding does not.
        """
        self._job = job
        self._crew = crew
        self._ends_there = bool(getattr(job.finish, "is_portable", False))
        self._size = job.plan.batch_size
        self._images = images
        self._lock = lock
        lock.on_done(crew.wake)
        self._idle = deque(range(num))
        self._batches: deque[_Batch[Source]] = deque()
        self._source = batched(job.images, self._size)
        self._is_more = True
        self._left: tuple[_Batch[Source], int] | None = None
        """The batch being handed out, and how many of its images have been."""
        self._pace = _Pace(min(FIRST_TASK, self._size), _most(self._size), AHEAD_TASK_S)
        self._threads = ThreadPoolExecutor(job.plan.sessions, "model")

    def __iter__(self) -> Iterator[Result]:
        """Yield the results, in order."""
        try:
            while True:
                self._pass_on()
                first = self._batches[0] if self._batches else None
                is_done = first is not None and first.is_done
                if is_done and not (self._crew.is_staffed and self._can_submit()):
                    yield self._take()
                elif self._can_submit():
                    self._submit()
                elif is_done:
                    yield self._take()
                elif first is None and not self._is_more:
                    return
                else:
                    self._crew.wait()
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _can_submit(self) -> bool:
        return self._crew.has_room and bool(self._left or (self._is_more and self._idle))

    def _submit(self) -> None:
        """Hand out the next task; start a new batch if necessary."""
        if self._left is None:
            some = next(self._source, None)
            if some is None:
                self._is_more = False
                return
            self._left = _Batch(self._idle.popleft(), some, [None] * len(some)), 0
            self._batches.append(self._left[0])
        batch, start = self._left
        stop = min(start + self._pace.number, len(batch.images))
        self._left = (batch, stop) if stop < len(batch.images) else None
        places = [_place(one) for one in batch.images[start:stop]]
        task = Task(places, batch.number * self._size + start)
        batch.parts.append(self._crew.submit(task, here=_is_here(task)))

    def _pass_on(self) -> None:
        """Pass decoded batches to the model, in order."""
        for batch in self._batches:
            if batch.future is not None:
                if batch.end is None and self._ends_there and batch.future.done():
                    self._finish_elsewhere(batch, batch.future)
                continue
            is_whole = self._left is None or self._left[0] is not batch
            is_whole = is_whole and all(part.is_done for part in batch.parts)
            if not (is_whole and self._lock.is_done()):
                return
            start = 0
            for part in batch.parts:
                number = len(part.task.items)
                loaded, seconds = part.result()
                self._pace.took(seconds, number)
                if loaded is not None:
                    batch.loaded[start : start + number] = loaded
                start += number
            batch.parts.clear()
            batch.future = self._threads.submit(self._run, batch)
            batch.future.add_done_callback(lambda _done: self._crew.wake())

    def _finish_elsewhere(self, batch: _Batch[Source], future: "Future[Any]") -> None:
        """Let a worker finish a batch that the model is done with, and free its memory."""
        if self._crew.works_here or future.exception() is not None:
            return
        outputs, remembered, _ = future.result()
        names = [image.name for image in outputs.images]
        details = _Finishing(names, outputs.errors, outputs.values)
        batch.end = self._crew.submit(Task((), details), first=True)
        self._job.remember(remembered)
        self._idle.append(batch.number)

    def _run(self, batch: _Batch[Source]) -> tuple[Outputs[Source], _Remembered, Any]:
        """Run the model on a batch, in one of the model's threads."""
        start = batch.number * self._size
        images = self._images[start : start + self._size]
        good = [index for index, loaded in enumerate(batch.loaded) if _is_decoded(loaded)]
        if good and len(good) < len(batch.loaded):
            images[: len(good)] = images[good]
        values: list[NDArray[Any]] = []
        if good:
            model = self._job.model
            # GPU libraries search for the best kernels once per shape: the shape is always the
            # same, padded with earlier images.
            whole = model.device != "cpu"
            values.append(model(images if whole else images[: len(good)])[: len(good)])
        outputs, remembered = _outputs(batch.images, batch.loaded, values)
        ends_here = not self._ends_there or self._crew.works_here
        return outputs, remembered, _Ended(self._job.finish(outputs)) if ends_here else None

    def _take(self) -> Result:
        batch = self._batches.popleft()
        if batch.end is not None:
            return batch.end.result()
        assert batch.future is not None
        self._idle.append(batch.number)
        outputs, remembered, ended = batch.future.result()
        self._job.remember(remembered)
        return self._job.finish(outputs) if ended is None else ended.result


class _Ended(NamedTuple):
    """A result, which may be None."""

    result: Any


def _most(batch_size: int) -> int:
    """Return the largest number of images in a task of an `ahead` plan."""
    return min(batch_size, AHEAD_TASK)


def _num_batches(plan: Plan, num_bytes: int) -> int:
    """Return the number of batches, of `num_bytes` each, to allocate.

    These are the batches in the model, the one being filled, and those the workers have in
    progress, plus half of the latter for complete batches that wait behind an incomplete one.
    """
    in_hand = IN_HAND * plan.workers * _most(plan.batch_size)
    wanted = plan.sessions + 1 + -(-3 * in_hand // (2 * plan.batch_size))
    return max(plan.sessions + 2, min(wanted, MAX_BATCH_BYTES // num_bytes))


def _run_ahead(job: _Job[Source, Result]) -> Iterator[Result]:
    """Decode in workers, ahead of the model."""
    plan = job.plan
    each = int(np.prod(job.preprocessing.shape(plan.batch_size)))
    num = _num_batches(plan, each)
    with ExitStack() as stack:
        memory = SharedMemory(num * each)
        stack.callback(memory.close)
        images = _images(memory.map, job.preprocessing)
        is_portable = getattr(job.finish, "is_portable", False)
        work = _Ahead(job.preprocessing, job.recall(), job.finish if is_portable else None)
        local: Handle | None = None
        if not job.is_isolated:
            local = _AheadHandle(work, images, _opened(work.recall))
        crew = stack.enter_context(job.crew(work, local=local, memory=memory))
        if job.model.device != "cpu" and job.is_isolated:
            crew.staff(plan.workers)  # they get ready while the memory is being locked
        lock = stack.enter_context(_Locking(job.model, images, job.tell))
        yield from _AheadRun(job, crew, images, num, lock)


class _Locking:
    """Page-locks the batches' memory, so that a GPU reads it directly; a context manager.

    A thread does it, since it takes a tenth of a second, while workers already decode.
    """

    def __init__(self, model: Model, images: Image, tell: Callable[[str], None]) -> None:
        """Start locking, if the model's device benefits from it."""
        self._tell = tell
        self._is_told = False
        self._future: Future[PageLock | DeviceError | None] = Future()
        lock_pages = getattr(model, "lock_pages", None)
        if lock_pages is None or model.device == "cpu":
            self._future.set_result(None)
            return
        thread = ThreadPoolExecutor(1, "lock")
        self._future = thread.submit(_lock_or_error, lock_pages, images)
        thread.shutdown(wait=False)

    def is_done(self) -> bool:
        """Return whether the memory may be read; warn, once, if it could not be locked."""
        if not self._future.done():
            return False
        outcome = self._future.result()
        if isinstance(outcome, DeviceError) and not self._is_told:
            self._is_told = True
            self._tell(f"cannot page-lock memory, so copies to the GPU are slower: {outcome}")
        return True

    def on_done(self, call: Callable[[], None]) -> None:
        """Call `call`, in any thread, once the memory may be read."""
        self._future.add_done_callback(lambda _done: call())

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_details: object) -> None:
        """Unlock the memory."""
        lock = self._future.result()
        if isinstance(lock, PageLock):
            lock.release()


def _lock_or_error(
    lock_pages: Callable[[Image], PageLock | None], images: Image
) -> PageLock | DeviceError | None:
    try:
        return lock_pages(images)
    except DeviceError as error:
        return error


# ---------------------------------------------------------------------------------- one by one


@contextmanager
def open_crew(
    model: Model,
    *,
    preprocessing: Preprocessing,
    plan: Plan,
    finish: Callable[[Outputs[Any]], Any],
    num_slots: int,
    launcher: Launcher,
    timeout_s: float,
    tell: Callable[[str], None],
) -> Iterator[tuple[Crew, Image]]:
    """Open workers for images that arrive one by one; `tltools.runtime.live` gives them tasks.

    Args:
        model: See `run_images`, as for the following ones.
        preprocessing: How to decode the images.
        plan: `fused`: a task is up to `plan.batch_size` images, with the images as its details,
            and its result begins with that of `finish`. `ahead`: a task is an image, with its slot
            as details, and its result begins with None or a list of the image's error.
        finish: Turns the outputs of a `fused` task into a result; can be pickled.
        num_slots: Images that are decoded and not yet taken from memory, in an `ahead` plan.
        launcher: Starts the workers.
        timeout_s: Time limit for decoding one image, in seconds.
        tell: Called with a line for each image that crashes its worker.

    Yields:
        The workers, and the slots: uint8 (num_slots, size, size, 3), empty in a `fused` plan.
    """
    job: _Job[ImageRef, Any] = _Job(
        model=model,
        images=iter(()),
        preprocessing=preprocessing,
        plan=plan,
        finish=finish,
        memory=None,
        launcher=launcher,
        timeout_s=timeout_s,
        tell=tell,
    )
    if plan.name == "fused":
        work = _fused_work(job, most=plan.batch_size)
        with job.crew(work, local=None, in_hand=1) as crew:
            yield crew, np.empty(preprocessing.shape(0), np.uint8)
        return
    with ExitStack() as stack:
        memory = SharedMemory(num_slots * int(np.prod(preprocessing.shape(1))))
        stack.callback(memory.close)
        crew = job.crew(_Ahead(preprocessing, None, None), local=None, memory=memory, in_hand=1)
        yield stack.enter_context(crew), _images(memory.map, preprocessing)


def task_of(images: Sequence[ImageRef], details: Any) -> Task:
    """Return a task for a crew of `open_crew`."""
    return Task([_place(image) for image in images], details)
