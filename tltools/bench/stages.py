"""Measure the cost of each stage of `classify` on this machine, and the throughput of the whole."""

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import cycle, repeat
from math import ceil
from mmap import mmap
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tltools.atomic import temporary_folder
from tltools.bench.rows import ClassifyRound, StageCosts
from tltools.classify import ImageRef, Output, Plan
from tltools.classify.output_formats import row_encoder
from tltools.classify.predict import RowMaker, Rows
from tltools.data.images import load_image
from tltools.parallel import ordered_map
from tltools.runtime import Device, Predictor, load_predictor, run_images
from tltools.runtime.pipeline import FUSED_TASK, TASKS_AHEAD
from tltools.runtime.workers import (
    IN_HAND,
    Crew,
    Handle,
    Mark,
    Task,
    default_launcher,
    in_order,
)

MAX_IMAGES = 256
"""Largest number of different images, sampled evenly; they are repeated if more are needed."""
CHUNK = 8
"""Images in a worker's task."""
MIN_CHUNKS = 3
"""Minimum number of timed chunks per worker: the first ones started before the clock did."""
MAX_OVERLAP = 2
"""Largest speed-up from overlap: a GPU and the cores, if equally slow, work concurrently."""
MIN_BATCHES = 2
"""Minimum number of batches of the whole `classify`. A large model takes seconds for one."""
MAX_ROWS = 256
"""Number of tasks whose rows are kept to measure writing."""


class OpenModel(Protocol):
    """Opens an export as `classify` does; a top-level function, so a new process can import it."""

    def __call__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        tf32: bool = False,
    ) -> tuple[Predictor, Plan]:
        """Return the opened export, and how decoding and the model share the cores."""
        ...


def measure_classify(
    open_model: OpenModel,
    path: Path,
    images: Sequence[Path],
    *,
    device: Device,
    seconds: float,
    enter: Callable[[str], object],
    tf32: bool = False,
    known_s: Mapping[int, float] = MappingProxyType({}),
    clock: Callable[[], float] = time.perf_counter,
) -> ClassifyRound:
    """Measure the stages one after the other, then all of them together.

    All images are read once before, so that files come from the system's cache: otherwise the
    disk's speed would affect only the first process that reads them.

    Args:
        open_model: Opens the export and chooses the plan, like the command without options.
        path: The export.
        images: One or more readable images.
        device: Device to run on.
        seconds: Time for the whole of `classify`; inference and decoding get a quarter of it each,
            reading and writing an eighth. Slow models take longer, because of `MIN_CHUNKS` and
            `MIN_BATCHES`.
        enter: Called with the name of each stage as it begins.
        tf32: Let a GPU round fp32 products to TF32.
        known_s: Seconds per image by batch size, measured before in calls with all cores. A slow
            model, whose batch takes longer than `seconds`, is not measured again.
        clock: Returns seconds from an arbitrary start. Tests pass a fake.

    Raises:
        DataError: If an image cannot be read.
        TltoolsError: If the export cannot be opened or run.
    """
    enter("classify: opening")
    predictor, plan = open_model(path, device=device, tf32=tf32)
    some = images[:: ceil(len(images) / MAX_IMAGES)]
    trial = _Trial(predictor, plan, some, seconds=seconds, clock=clock)
    costs, stopwatch = trial.stages(enter, known_s.get(plan.batch_size, 0.0))
    return ClassifyRound(
        plan=plan,
        device=predictor.device,
        costs=costs,
        images_per_s=stopwatch.rate(),
        num_images=stopwatch.num_rows,
    )


class _Trial:
    """An opened export with its plan, and images to try each stage on."""

    def __init__(
        self,
        predictor: Predictor,
        plan: Plan,
        images: Sequence[Path],
        *,
        seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._predictor = predictor
        self._plan = plan
        self._images = images
        self._seconds = seconds
        self._clock = clock

    def stages(
        self, enter: Callable[[str], object], known_s: float
    ) -> "tuple[StageCosts, Stopwatch]":
        """Measure each stage, and all together; return their costs and the overall rate.

        Args:
            enter: Called with the name of each stage as it begins.
            known_s: See `infer_s`.
        """
        enter("classify: reading")
        read_s = self.read_s()
        enter("classify: decoding")
        load_s = self.load_s()
        enter("classify: inference")
        infer_s = self.infer_s(known_s)
        with temporary_folder(Path(tempfile.gettempdir())) as folder:
            output = folder / "predictions.csv"
            enter("classify: all stages")
            stopwatch, made = self.classify(output, image_s=max(load_s, read_s) + infer_s)
            enter("classify: writing")
            write_s = self.write_s(output, made)
        costs = StageCosts(
            read_s=read_s,
            decode_s=max(load_s - read_s, 0.0),  # loading an image includes reading it
            infer_s=infer_s,
            write_s=write_s,
        )
        return costs, stopwatch

    def read_s(self) -> float:
        """Return the seconds to read an image from the system's cache."""
        for image in self._images:
            image.read_bytes()
        return self._cost_in_workers_s(_read, 1 / 8)

    def load_s(self) -> float:
        """Return the seconds to read and decode an image."""
        rules = self._predictor.card.preprocessing
        load = partial(load_image, preprocessing=rules)
        return self._cost_in_workers_s(load, 1 / 4)

    def infer_s(self, known_s: float) -> float:
        """Return the seconds per image in the model, which is not run if a batch takes long.

        Args:
            known_s: The same, measured before in calls with all cores; 0 if unknown.
        """
        callers = num_callers(self._plan)
        if not (self._plan.name == "ahead" and callers == 1):
            known_s = 0.0
        if known_s * self._plan.batch_size >= self._seconds:
            return known_s
        with closing(_inference(self._predictor, self._images, self._plan)) as batches:
            min_steps = 1 if callers == 1 else MIN_CHUNKS * callers
            return self._cost_s(lambda: next(batches), 1 / 4, min_steps)

    def classify(self, output: Path, *, image_s: float) -> "tuple[Stopwatch, list[Rows]]":
        """Classify as the command does, and return the rate and some rows."""
        stopwatch = Stopwatch(self._clock, skip=_num_in_work(self._plan))
        source = _images_for(self._seconds, image_s, self._images, self._plan, stopwatch)
        return stopwatch, _classify(self._predictor, source, self._plan, output, stopwatch)

    def write_s(self, output: Path, made: Sequence[Rows]) -> float:
        """Return the seconds to write the row of an image."""
        with Output(output, self._predictor.card.classes, overwrite=True) as rows:
            return self._cost_s(partial(_write, rows, made), 1 / 8)

    def _cost_s(self, step: Callable[[], int], share: float, min_steps: int = 1) -> float:
        seconds = share * self._seconds
        return seconds_per_image(step, seconds=seconds, min_steps=min_steps, clock=self._clock)

    def _cost_in_workers_s(self, work: Callable[[Path], object], share: float) -> float:
        with closing(_in_workers(work, self._images, self._plan.workers)) as chunks:
            return self._cost_s(lambda: next(chunks), share, MIN_CHUNKS * self._plan.workers)


def seconds_per_image(
    step: Callable[[], int],
    *,
    seconds: float,
    min_steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Repeat `step` for `seconds`, after a warm-up, and return the mean per image.

    The mean, not the median, since images differ and a stage's cost is that of all of them.

    Args:
        step: Processes some images, and returns how many. It must not return before it is done.
        seconds: No step starts later than this, after the first `min_steps`.
        min_steps: Minimum number of timed steps, at least 1.
        clock: Returns seconds from an arbitrary start. Tests pass a fake.
    """
    step()
    num_images = num_steps = 0
    start = clock()
    while num_steps < min_steps or clock() - start < seconds:
        num_images += step()
        num_steps += 1
    return (clock() - start) / num_images


def is_slow(found: ClassifyRound, *, seconds: float) -> bool:
    """Return whether `MIN_BATCHES` of the whole `classify` exceed its time limit.

    Then its rate is the model's, which differs little from round to round.
    """
    return MIN_BATCHES * found.plan.batch_size * found.costs.infer_s > seconds


def num_callers(plan: Plan) -> int:
    """Return how many threads run the model concurrently."""
    return plan.workers if plan.name == "fused" else plan.sessions


def _num_in_work(plan: Plan) -> int:
    """Return about how many images `classify` has in progress at once."""
    if plan.name == "fused":
        return IN_HAND * FUSED_TASK * plan.workers
    return max(plan.batch_size, CHUNK) * plan.sessions


def _read(path: Path) -> None:
    path.read_bytes()


@dataclass(frozen=True)
class _Each:
    """Work that does the same to each image, in a worker like those of `classify`."""

    do: Callable[[Path], object]

    def open(self, memory: mmap | None) -> tuple[Handle, object]:  # noqa: ARG002
        """Return the handle; nothing has to be opened."""
        return self._do_all, None

    def pack(self, task: Task) -> tuple[Any, Any]:
        """Return the paths to send."""
        return task.items, task.details

    def try_item(self, item: Path) -> None:
        """Process one image."""
        self.do(item)

    def _do_all(self, task: Task, mark: Mark) -> int:
        for index, path in enumerate(task.items):
            mark.item(index)
            self.do(path)
        return len(task.items)


@dataclass(frozen=True)
class _Infer:
    """Work that runs an export on images in memory, like the workers of a `fused` plan."""

    path: Path
    device: Device
    images: Sequence[Path]
    batch_size: int

    def open(self, memory: mmap | None) -> tuple[Handle, object]:  # noqa: ARG002
        """Open the export, and decode the images."""
        predictor = load_predictor(self.path, device=self.device, threads=1, self_test=False)
        images = _images(predictor, self.images, max(CHUNK, self.batch_size))
        step = self.batch_size
        batches = [images[i : i + step] for i in range(0, len(images), step)]
        return lambda task, mark: sum(len(predictor(batch)) for batch in batches), None  # noqa: ARG005

    def pack(self, task: Task) -> tuple[Any, Any]:
        """Return nothing to send."""
        return task.items, task.details

    def try_item(self, item: Any) -> None:
        """Do nothing: there are no items."""


def _in_workers(
    work: Callable[[Path], object], images: Sequence[Path], workers: int
) -> Generator[int, None, None]:
    """Do `work` on images in all workers, forever, one chunk per iteration."""
    chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    yield from _results(_Each(work), workers, map(Task, cycle(chunks)))


def _results(
    work: _Each | _Infer, workers: int, tasks: Iterator[Task]
) -> Generator[int, None, None]:
    with Crew(work, size=workers) as crew:
        crew.staff(workers)
        while not crew.is_complete:
            crew.wait()
        for pending in in_order(crew, tasks, ahead=TASKS_AHEAD * workers):
            yield pending.result()


def _inference(
    predictor: Predictor, paths: Sequence[Path], plan: Plan
) -> Generator[int, None, None]:
    """Run the model as the plan does, on images in memory, forever."""
    path: Path | None = getattr(predictor, "path", None)
    if plan.name == "fused" and path is not None:
        work = _Infer(path, getattr(predictor, "opened_with", "cpu"), paths, plan.batch_size)
        yield from _results(work, plan.workers, (Task(()) for _ in repeat(None)))
    callers = num_callers(plan)
    if callers == 1:  # one batch after the other
        images = _images(predictor, paths, plan.batch_size)
        while True:
            yield len(predictor(images))
    number = max(CHUNK, plan.batch_size)
    images = _images(predictor, paths, number)
    batches = [images[i : i + plan.batch_size] for i in range(0, number, plan.batch_size)]

    def run(_turn: None) -> int:
        return sum(len(predictor(batch)) for batch in batches)

    yield from ordered_map(run, repeat(None), workers=callers, ahead=2 * callers)


def _images(predictor: Predictor, paths: Sequence[Path], number: int) -> NDArray[np.uint8]:
    """Decode `number` images, repeating paths if there are fewer: uint8 (number, H, W, 3)."""
    images = predictor.new_batch(number)
    for out, path in zip(images, cycle(paths), strict=False):  # the latter is endless
        load_image(path, predictor.card.preprocessing, out=out)
    return images


def _classify(
    predictor: Predictor,
    source: Iterator[ImageRef],
    plan: Plan,
    output: Path,
    stopwatch: "Stopwatch",
) -> list[Rows]:
    """Classify into a file as the command does; return some of the rows."""
    card = predictor.card
    # A model that is not a file, and runs in this process, has no workers.
    has_workers = plan.name == "ahead" or getattr(predictor, "path", None) is not None
    with ExitStack() as stack:
        launcher = default_launcher() if has_workers else None
        if launcher is not None:
            stack.callback(launcher.close)
        rows = stack.enter_context(Output(output, card.classes))
        results = run_images(
            predictor,
            source,
            preprocessing=card.preprocessing,
            plan=plan,
            finish=RowMaker(
                card.classes, card.temperature, None, partial(row_encoder, output, card.classes)
            ),
            launcher=launcher,
        )
        some: list[Rows] = []
        for made in stack.enter_context(closing(results)):
            rows.write_encoded(made.encoded)
            stopwatch.count(len(made.encoded))
            if len(some) < MAX_ROWS:
                some.append(made)
        stopwatch.stop()
    return some


class Stopwatch:
    """Measures a rate from the first rows on.

    One-time work of the pipeline, such as starting its workers, is excluded.
    """

    def __init__(self, clock: Callable[[], float], *, skip: int) -> None:
        """Skip the first `skip` rows; there must be more."""
        self._clock = clock
        self._skip = skip
        self._start = self._end = 0.0
        self._num_before = 0
        self.num_rows = 0

    def count(self, number: int = 1) -> None:
        """Count rows."""
        self.num_rows += number
        if not self._num_before and self.num_rows >= self._skip:
            self._start = self._clock()
            self._num_before = self.num_rows

    def stop(self) -> None:
        """Stop after the last row."""
        self._end = self._clock()

    def seconds(self) -> float:
        """Return the seconds since the start; 0 before it."""
        return self._clock() - self._start if self._num_before else 0.0

    def rate(self) -> float:
        """Return rows per second."""
        return (self.num_rows - self._num_before) / (self._end - self._start)


def _write(rows: Output, made: Sequence[Rows]) -> int:
    for some in made:
        rows.write_encoded(some.encoded)
    return sum(len(some.encoded) for some in made)


def _images_for(
    seconds: float, image_s: float, paths: Sequence[Path], plan: Plan, stopwatch: "Stopwatch"
) -> Iterator[ImageRef]:
    """Yield whole batches of images until rows have come for `seconds`.

    A pipeline takes images long before their rows come, many seconds with a slow model. So the
    number of images is limited to what the stages can do in that time at `image_s` per image, with
    the largest possible overlap.
    """
    batch = _num_in_work(plan)
    most = batch * (1 + ceil(MAX_OVERLAP * seconds / (image_s * batch)))
    source = cycle([ImageRef.of_file(path) for path in paths])
    for number, image in enumerate(source):
        is_over = number >= most or stopwatch.seconds() >= seconds
        if is_over and number % batch == 0 and number >= MIN_BATCHES * batch:
            return
        yield image
