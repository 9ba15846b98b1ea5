"""One measurement in one new process: open the model, time it, and send back what was found."""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tltools.bench.machine import peak_memory_bytes
from tltools.bench.rows import ClassifyRound
from tltools.bench.stages import TEMPORARY, OpenModel, measure_classify
from tltools.bench.timing import Timing, measure
from tltools.errors import TltoolsError
from tltools.runtime import Device, Predictor
from tltools.runtime.pipeline import decode_batches

OpenPredictor: TypeAlias = Callable[[Path, Device, int | None], Predictor]
"""`(path, device, threads)`; a function at the top of a module, so that a new process finds it."""

ACCURACY_BATCH = 32
MIN_LATENCY_RUNS = 10
MIN_THROUGHPUT_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that the new process needs."""

    open_predictor: OpenPredictor
    path: Path
    device: Device
    threads: int
    batch_sizes: tuple[int, ...]
    """Ascending, 1 included."""
    runs: int
    warmup: int
    max_seconds: float
    pictures: tuple[Path, ...]
    with_logits: bool
    """Whether to classify all pictures once timing is done; else some are timed and no more."""
    open_model: OpenModel | None
    """What `classify` opens it with; None where that is not to be measured."""
    classify_seconds: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the new process found."""

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
    logits: NDArray[np.float32] | None
    """(N, C), in the order of the pictures."""
    classify: ClassifyRound | None


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
    """A sign of life: what the process does next."""

    name: str


def measure_in_new_process(
    task: Task, *, timeout_s: float, on_stage: Callable[[str], object]
) -> Measured | Failure:
    """Run `task` in a process of its own and wait for it.

    Whatever happens to that process, an exception, a crash or silence, is returned as a failure.

    Args:
        task: What to measure.
        timeout_s: The process is ended if it stays silent for longer than this; it speaks before
            each stage and after each batch of the accuracy's pictures.
        on_stage: Called with the name of each stage as it begins.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
        log = Path(folder) / "log"
        log.touch()
        process = context.Process(target=_work, args=(task, sender, log))
        with _interrupts_ignored():
            process.start()
        sender.close()  # so that the process's end is the end of the pipe
        try:
            return _listen(process, receiver, log, timeout_s=timeout_s, on_stage=on_stage)
        finally:
            process.kill()
            process.join()
            process.close()
            receiver.close()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Have a process that is started meanwhile ignore Ctrl-C, as it inherits that.

    The terminal sends Ctrl-C to it as well, and it would answer with a traceback; it is for this
    process to end it. Signals are the main thread's business, so others change nothing.
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
    return Failure(stage, f"no sign of life for {timeout_s:g} s, so it was ended")


def _how_it_ended(exit_code: int | None, log: Path) -> str:
    """Say how a process ended that sent no result, with the last thing it wrote."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        ending = f"the process was ended by {name}"
        if name == "SIGKILL":
            ending += ", by the system perhaps, for want of memory: try smaller batches"
    else:
        ending = f"the process ended with exit code {exit_code}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{ending} ({last[:200]})" if last else ending


def _work(task: Task, sender: Connection, log: Path) -> None:
    """Do the task; runs in the new process."""
    # What runtimes write by themselves must not tear the parent's progress bar; a crash's last
    # words are read from here.
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
    except Exception as error:  # a border: whatever one candidate does, the others go on
        message = Failure(stage, one_line(error))
    sender.send(message)
    sender.close()


def _measure(task: Task, enter: Callable[[str], None]) -> Measured:
    measured = _measure_model(task, enter)  # which is closed now: two of them may not fit in memory
    if task.open_model is None:
        return measured
    found = measure_classify(
        task.open_model,
        task.path,
        task.pictures,
        device=task.device,
        seconds=task.classify_seconds,
        enter=enter,
    )
    return replace(measured, classify=found)


def _measure_model(task: Task, enter: Callable[[str], None]) -> Measured:
    enter("load")
    start = time.perf_counter()
    predictor = task.open_predictor(task.path, task.device, task.threads)
    load_s = time.perf_counter() - start

    enter("pictures")
    largest = task.batch_sizes[-1]
    images = np.concatenate(list(_batches(predictor, task.pictures[:largest])))

    timings: dict[int, Timing] = {}
    for batch_size in task.batch_sizes:
        enter(f"batch size {batch_size}")
        # The first pictures, again from the start where there are fewer.
        batch = np.ascontiguousarray(images[np.arange(batch_size) % len(images)])
        timings[batch_size] = measure(
            lambda batch=batch: predictor(batch),
            warmup=task.warmup,
            runs=task.runs,
            max_seconds=task.max_seconds,
            min_runs=MIN_LATENCY_RUNS if batch_size == 1 else MIN_THROUGHPUT_RUNS,
        )
    peak = peak_memory_bytes()

    logits: list[NDArray[np.float32]] = []
    if task.with_logits:
        enter("accuracy")
        for batch in _batches(predictor, task.pictures):
            logits.append(predictor(batch))
            enter("accuracy")
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
        logits=np.concatenate(logits) if logits else None,
        classify=None,
    )


def _batches(predictor: Predictor, pictures: Sequence[Path]) -> Iterable[NDArray[np.uint8]]:
    rules = predictor.card.preprocessing
    return decode_batches(pictures, preprocessing=rules, batch_size=ACCURACY_BATCH)


def one_line(error: Exception) -> str:
    """Return an error as one line; ours are written for people, others need their type's name."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0] if isinstance(error, TltoolsError) else f"{type(error).__name__}: {lines[0]}"
