"""Run one measurement in a new process: open the model, time it, and send back the results."""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tltools.atomic import temporary_folder
from tltools.bench.budget import ROUND_IMAGES, cannot_pay, outlasts
from tltools.bench.gpu import GpuMemory, watch_gpu
from tltools.bench.machine import peak_memory_bytes
from tltools.bench.rows import ClassifyRound
from tltools.bench.stages import OpenModel, measure_classify
from tltools.bench.timing import (
    MIN_LATENCY_RUNS,
    MIN_THROUGHPUT_RUNS,
    MIN_WARMUP,
    Timing,
    measure,
)
from tltools.errors import DeviceError, TltoolsError, first_line
from tltools.runtime import Device, Predictor
from tltools.runtime.pipeline import decode_batches


class OpenPredictor(Protocol):
    """Opens a candidate; a top-level function of a module, so that a new process can import it."""

    def __call__(
        self, path: Path, device: Device, threads: int | None, *, tf32: bool = False
    ) -> Predictor:
        """Return the opened candidate."""
        ...


ACCURACY_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that the new process needs."""

    open_predictor: OpenPredictor
    path: Path
    device: Device
    threads: int
    batch_sizes: tuple[int, ...]
    """Ascending, 1 included."""
    may_leave_out: bool
    """Skip larger batch sizes of a slow model if they gain nothing."""
    iterations: int
    warmup: int
    max_seconds: float
    images: tuple[Path, ...]
    num_known: int
    """Number of images with logits from earlier rounds; timed batches continue after them."""
    accuracy_s: float
    """Seconds for classifying images without logits after the timing; 0 leaves them to the next
    round."""
    tf32: bool
    """Let a GPU round fp32 products to TF32."""
    open_model: OpenModel | None
    """Opens it as `classify` does; None to skip that measurement."""
    classify_seconds: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The results of the new process."""

    classes: tuple[str, ...]
    device: str
    device_reason: str
    provider: str
    placement: dict[str, int]
    threads: int
    load_s: float
    timings: dict[int, Timing]
    """By batch size."""
    peak_memory_bytes: int | None
    peak_gpu_bytes: int | None
    logits: NDArray[np.float32]
    """Logits of the n images classified from `Task.num_known` on, (n, C)."""
    classify: ClassifyRound | None
    classify_took_s: float = 0.0
    """Seconds that the measurement of `classify` took."""


@dataclass(frozen=True)
class Failure:
    """Why there is no result."""

    stage: str
    reason: str

    def __str__(self) -> str:
        """Return the stage and the reason in one line."""
        return f"failed at {self.stage}: {self.reason}"


@dataclass(frozen=True)
class _Stage:
    """A sign of life: the process enters a stage."""

    name: str


def measure_in_new_process(
    task: Task, *, timeout_s: float, on_stage: Callable[[str], object]
) -> Measured | Failure:
    """Run `task` in a new process and wait for it.

    An exception, a crash or silence of that process is returned as a failure.

    Args:
        task: The measurement.
        timeout_s: The process is killed after this many seconds without a sign of life; it reports
            before each stage and after each batch of images for the accuracy.
        on_stage: Called with the name of each stage as it begins.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        log = folder / "log"
        log.touch()
        process = context.Process(target=_work, args=(task, sender, log))
        with _interrupts_ignored():
            process.start()
        sender.close()  # so that the pipe ends when the process does
        try:
            return _listen(process, receiver, log, timeout_s=timeout_s, on_stage=on_stage)
        finally:
            process.kill()
            process.join()
            process.close()
            receiver.close()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Make processes started within the block ignore Ctrl-C, which they inherit.

    The terminal also sends Ctrl-C to them, and they would print a traceback; this process ends
    them. Only the main thread may set signal handlers, so other threads change nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _listen(
    process: SpawnProcess,
    receiver: Connection,
    log: Path,
    *,
    timeout_s: float,
    on_stage: Callable[[str], object],
) -> Measured | Failure:
    stage = "start"
    while receiver.poll(timeout_s):
        try:
            message = receiver.recv()
        except (EOFError, OSError):
            process.join()
            return Failure(stage, _how_it_ended(process.exitcode, log))
        if not isinstance(message, _Stage):
            return message
        if message.name != stage:
            stage = message.name
            on_stage(stage)
    return Failure(stage, f"no sign of life for {timeout_s:g} s, so the process was killed")


def _how_it_ended(exit_code: int | None, log: Path) -> str:
    """Describe how a process without a result ended, with the last line it wrote."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        ending = f"the process was killed by {name}"
        if name == "SIGKILL":
            ending += ", perhaps out of memory: try smaller batches"
    else:
        ending = f"the process ended with exit code {exit_code}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{ending} ({last[:200]})" if last else ending


def _work(task: Task, sender: Connection, log: Path) -> None:
    """Do the task, in the new process."""
    # Output of the runtimes must not break the parent's progress bar; after a crash, its last line
    # is read from here.
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    stage = "start"

    def enter(name: str) -> None:
        nonlocal stage
        stage = name
        sender.send(_Stage(name))

    try:
        message: Measured | Failure = _measure(task, enter)
    except Exception as error:  # a boundary: whatever one candidate does, the others continue
        message = Failure(stage, one_line(error))
    sender.send(message)
    sender.close()


def _measure(task: Task, enter: Callable[[str], None]) -> Measured:
    measured = _measure_model(task, enter)  # closed by now: two models may not fit in memory
    if task.open_model is None:
        return measured
    start = time.perf_counter()
    found = measure_classify(
        task.open_model,
        task.path,
        task.images,
        device=task.device,
        seconds=task.classify_seconds,
        tf32=task.tf32,
        known_s={size: median(one.samples_s) / size for size, one in measured.timings.items()},
        enter=enter,
    )
    return replace(measured, classify=found, classify_took_s=time.perf_counter() - start)


def _measure_model(task: Task, enter: Callable[[str], None]) -> Measured:
    enter("load")
    start = time.perf_counter()
    gpu = watch_gpu(task.device)  # creates the CUDA context, which is part of loading
    predictor = task.open_predictor(task.path, task.device, task.threads, tf32=task.tf32)
    load_s = time.perf_counter() - start
    if task.tf32 and predictor.device == "cpu":
        raise DeviceError(f"TF32 needs a GPU, but this runs on the CPU: {predictor.choice.reason}")

    enter("images")
    feed = Feed(predictor, task.images, start=task.num_known, size=task.batch_sizes[-1])
    feed.advance()

    timings = _time_sizes(task, predictor, feed, gpu=gpu, enter=enter)
    peak = peak_memory_bytes()

    if task.accuracy_s > 0 and feed.num_left:
        enter("accuracy")
        feed.finish(task.accuracy_s, enter=enter)
    return Measured(
        classes=predictor.card.classes,
        device=predictor.device,
        device_reason=predictor.choice.reason,
        provider=predictor.provider,
        placement=predictor.placement,
        threads=predictor.threads,
        load_s=load_s,
        timings=timings,
        peak_memory_bytes=peak,
        peak_gpu_bytes=None if gpu is None or predictor.device == "cpu" else gpu.peak_bytes,
        logits=np.concatenate(feed.logits or [np.empty((0, len(predictor.card.classes)), "f4")]),
        classify=None,
    )


def _time_sizes(
    task: Task,
    predictor: Predictor,
    feed: "Feed",
    *,
    gpu: GpuMemory | None,
    enter: Callable[[str], None],
) -> dict[int, Timing]:
    """Time batches of each size, the smallest first, up to the last one that may gain anything."""
    timings: dict[int, Timing] = {}
    for batch_size in task.batch_sizes:
        known_s = {size: median(one.samples_s) for size, one in timings.items()}
        if task.may_leave_out and cannot_pay(batch_size, known_s, size_s=task.max_seconds):
            break
        enter(f"batch size {batch_size}")
        timings[batch_size] = _time_batches(
            task, predictor, feed, batch_size, may_be_last=_may_be_last(task, batch_size, known_s)
        )
        if gpu is not None:
            gpu.look()
    return timings


def _may_be_last(task: Task, batch_size: int, known_s: Mapping[int, float]) -> bool:
    """Return whether this may be the largest batch, judging by the time of smaller ones."""
    larger = [size for size in task.batch_sizes if size > batch_size]
    if not larger:
        return True
    if not task.may_leave_out or not known_s:
        return False
    size, seconds = list(known_s.items())[-1]
    return outlasts(larger[0], seconds / size, size_s=task.max_seconds)


def _time_batches(
    task: Task, predictor: Predictor, feed: "Feed", batch_size: int, *, may_be_last: bool
) -> Timing:
    """Time batches of one size; those of the largest size advance through the images.

    A single image stays the same: decoding another between two runs would cool the caches.
    """
    single = batch_size == 1
    min_runs = MIN_LATENCY_RUNS if single else MIN_THROUGHPUT_RUNS
    if may_be_last and not single:
        feed.resize(batch_size)
        step, prepare = feed.run, feed.advance
        # Including the warm-up, as many as the round's share of the accuracy needs.
        min_runs = max(min_runs, ceil(min(ROUND_IMAGES, feed.num_left) / batch_size) - 1)
    else:
        batch = predictor.new_batch(batch_size)
        batch[:] = feed.batch[:batch_size]
        step, prepare = partial(predictor, batch), None
    return measure(
        step,
        warmup=task.warmup,
        runs=task.iterations,
        max_seconds=task.max_seconds,
        min_runs=min_runs,
        min_warmup=MIN_WARMUP if single else 1,
        prepare=prepare,
    )


class Feed:
    """Provides batches of the images for the accuracy to the timed passes, one after the other.

    So the timed passes do work that the accuracy needs anyway. The content of an image does not
    change how long a model takes for it.
    """

    def __init__(
        self, predictor: Predictor, images: Sequence[Path], *, start: int, size: int
    ) -> None:
        """Start at image `start`, with batches of `size`, the largest there will be."""
        self._predictor = predictor
        self._images = images
        self._next = start
        self._num_new = 0
        self._is_filled = False
        self._memory = self.batch = predictor.new_batch(size)
        """Images, uint8 (size, H, W, 3), after `advance` was called; always the same memory."""
        self.logits: list[NDArray[np.float32]] = []
        """Logits of the images from `start` on, (n, C) each."""

    @property
    def is_done(self) -> bool:
        """Whether all images have logits."""
        return self._next + self._num_new >= len(self._images)

    @property
    def num_left(self) -> int:
        """Number of images without logits."""
        return len(self._images) - self._next

    def resize(self, size: int) -> None:
        """Use batches of `size` from the next one on, in the same memory."""
        if size != len(self.batch):
            self.batch = self._memory[:size]
            self._is_filled, self._num_new = False, 0

    def advance(self) -> None:
        """Decode the next batch, unless the current one is still to be run or is the last one.

        If fewer images are left than a batch holds, it continues with the first ones.
        """
        if self._is_filled and (self._num_new or self.is_done):
            return
        total = len(self._images)
        size = len(self.batch)
        self._num_new = min(size, total - self._next)
        number = min(size, total)
        chosen = [self._images[(self._next + i) % total] for i in range(number)]
        images = np.concatenate(list(_batches(self._predictor, chosen)))
        np.take(images, np.arange(size) % number, axis=0, out=self.batch, mode="clip")
        self._is_filled = True

    def run(self) -> None:
        """Run the model on the batch, and keep the logits of new images."""
        logits = self._predictor(self.batch)
        if self._num_new:
            self.logits.append(logits[: self._num_new])
            self._next += self._num_new
            self._num_new = 0

    def finish(self, seconds: float, *, enter: Callable[[str], None]) -> None:
        """Classify the remaining images, for at most `seconds`."""
        start = time.perf_counter()
        for batch in _batches(self._predictor, self._images[self._next :]):
            self.logits.append(self._predictor(batch))
            enter("accuracy")
            if time.perf_counter() - start >= seconds:
                return


def _batches(predictor: Predictor, images: Sequence[Path]) -> Iterable[NDArray[np.uint8]]:
    rules = predictor.card.preprocessing
    return decode_batches(images, preprocessing=rules, batch_size=ACCURACY_BATCH)


def one_line(error: Exception) -> str:
    """Return an error as one line, with the type's name unless it is a TltoolsError."""
    line, kind = first_line(error), type(error).__name__
    return line if isinstance(error, TltoolsError) or line == kind else f"{kind}: {line}"
