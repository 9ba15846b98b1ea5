"""Run images through a model as they arrive, for a service: each result as soon as it is there.

`run_images` keeps a list's order, so that it waits for the next image and for the slowest. Here
each image is on its own: those that are there together share a batch, but one that crashes its
worker or takes too long delays no other.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tltools.card import Preprocessing
from tltools.data.image_ref import ImageRef
from tltools.errors import DataError, TltoolsError
from tltools.processes import Launcher
from tltools.runtime.pipeline import Outputs, Plan, open_crew, task_of
from tltools.runtime.predictor import Predictor
from tltools.runtime.workers import MAX_TICK_S, Crew, Pending

Result = TypeVar("Result")

SLOTS_PER_WORKER = 2
"""Decoded images per worker that wait for the model, beyond the batches that it has in hand."""
RESTART_S = 1.0
"""Pause before workers are started again after all of them failed, in seconds."""


def _running_future() -> "Future[Any]":
    """Return a future that cannot be canceled: a client that has left does not stop a batch."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(slots=True)
class _Entry(Generic[Result]):
    """An image on its way."""

    image: ImageRef
    future: "Future[Result]" = field(default_factory=_running_future)
    since: float = field(default_factory=time.monotonic)
    """When it began to wait for a batch; set again when it is decoded."""

    def answer(self, result: Result) -> None:
        """Hand out the result."""
        self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Hand out an error that is not the image's own."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, kw_only=True)
class LiveSettings(Generic[Result]):
    """What `LiveRunner` runs, and how."""

    model: Predictor
    preprocessing: Preprocessing
    plan: Plan
    finish: Callable[[Outputs[Any]], Sequence[Result]]
    """Turns the outputs of some images into a result for each; can be pickled."""
    launcher: Launcher
    max_delay_s: float = 0.0
    """How long an image waits for others to fill its batch, in seconds."""
    timeout_s: float = 30.0
    """Time limit for decoding one image, in seconds."""
    tell: Callable[[str], None]
    """Called, in the runner's thread, with a line for whatever goes wrong and is not an image's
    own error."""
    on_batch: Callable[[int], None]
    """Called, in any thread, with the number of images of each call of the model."""


class LiveRunner(Generic[Result]):
    """A thread that gives images to workers as they arrive."""

    def __init__(self, settings: LiveSettings[Result]) -> None:
        """Prepare the runner; `start` starts it."""
        self._settings = settings
        self._arrived: deque[_Entry[Result]] = deque()
        self._lock = threading.Lock()
        self._crew: Crew | None = None
        self._is_closing = False
        self._takes_more = False
        """Whether the thread waits, or is about to, although it could take another image: only
        then does one wake it, which is a system call."""
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self.failure: str | None = None
        """Why no image can be classified at the moment; None if all is well."""

    def start(self) -> None:
        """Start the workers, and wait until all of them have opened the model.

        Raises:
            TltoolsError: If they cannot.
        """
        self._thread.start()
        self._ready.result()

    def submit(self, image: ImageRef) -> "Future[Result]":
        """Queue an image, from any thread; its bytes must be in memory.

        Returns:
            Its result; or a TltoolsError if the model, the device or all workers failed.
        """
        entry: _Entry[Result] = _Entry(image)
        self._arrived.append(entry)
        if self._takes_more:
            self._wake()
        return entry.future

    def close(self) -> None:
        """End the workers; images that are not classified yet get an error."""
        self._is_closing = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        with self._lock:
            if self._crew is not None:
                self._crew.wake()

    # -------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        while not self._is_closing:
            lane: _Lane | None = None
            try:
                with ExitStack() as stack:
                    lane = self._open(stack)
                    self._serve(lane)
                self._drop(TltoolsError("the service has ended"), lane)
            except Exception as error:  # a bug fails its images too, and not the service
                self._fail(error)
                self._drop(error, lane)
                if not self._is_closing:
                    time.sleep(RESTART_S)

    def _open(self, stack: ExitStack) -> "_Lane":
        """Start the workers, and return the stages before and after them."""
        of = self._settings
        crew, slots = stack.enter_context(
            open_crew(
                of.model,
                preprocessing=of.preprocessing,
                plan=of.plan,
                finish=of.finish,
                num_slots=_num_slots(of.plan),
                launcher=of.launcher,
                timeout_s=of.timeout_s,
                tell=of.tell,
            )
        )
        stack.callback(self._set_crew, None)
        self._set_crew(crew)
        crew.staff(of.plan.workers)
        while not crew.is_complete:
            crew.wait()
        self.failure = None
        if not self._ready.done():
            self._ready.set_result(None)
        if of.plan.name == "fused":
            return _FusedLane(of, crew)
        return stack.enter_context(_AheadLane(of, crew, slots))

    def _set_crew(self, crew: Crew | None) -> None:
        with self._lock:
            self._crew = crew

    def _serve(self, lane: "_Lane") -> None:
        """Give images to the lane until the runner is closed."""
        while not self._is_closing:
            while self._arrived and lane.has_room:
                lane.put(self._arrived.popleft())
            timeout_s = lane.advance()
            self._takes_more = lane.has_room  # first; then an image that arrives is not missed
            if not (self._takes_more and self._arrived):
                lane.crew.wait(timeout_s)
            self._takes_more = False

    def _fail(self, error: Exception) -> None:
        """Record that no image can be classified."""
        self.failure = str(error)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._is_closing = True
        else:
            self._settings.tell(f"all workers failed and are started again: {error}")

    def _drop(self, error: Exception, lane: "_Lane | None") -> None:
        """Answer everything that is waiting with an error."""
        for entry in lane.entries() if lane else ():
            entry.fail(error)
        while self._arrived:
            self._arrived.popleft().fail(error)


def _num_slots(plan: Plan) -> int:
    """Return how many decoded images an `ahead` plan holds: a batch is gathered beside those."""
    return plan.batch_size + SLOTS_PER_WORKER * plan.workers


class _Lane(Protocol):
    """The way of images through a plan."""

    crew: Crew

    @property
    def has_room(self) -> bool:
        """Whether it takes another image."""
        ...

    def put(self, entry: _Entry[Any]) -> None:
        """Take an image."""
        ...

    def advance(self) -> float:
        """Move images on; return the longest time to wait for the next event, in seconds."""
        ...

    def entries(self) -> list[_Entry[Any]]:
        """Return the images that are on their way."""
        ...


class _Window:
    """Images that wait to share a batch: until it is full, or the first has waited long enough."""

    def __init__(self, size: int, max_delay_s: float) -> None:
        self.size = size
        self._max_delay_s = max_delay_s
        self.waiting: deque[_Entry[Any]] = deque()

    def left_s(self) -> float:
        """Return how long the next batch may still wait, in seconds; 0 if it is due."""
        if len(self.waiting) >= self.size:
            return 0.0
        if not self.waiting:
            return MAX_TICK_S
        return max(0.0, self.waiting[0].since + self._max_delay_s - time.monotonic())

    def take(self) -> list[_Entry[Any]]:
        """Return the images of the next batch."""
        return [self.waiting.popleft() for _ in range(min(self.size, len(self.waiting)))]


class _FusedLane:
    """Each worker decodes the images of a batch and runs the model on them."""

    def __init__(self, settings: LiveSettings[Any], crew: Crew) -> None:
        self.crew = crew
        self._settings = settings
        self._window = _Window(settings.plan.batch_size, settings.max_delay_s)
        self._working: list[tuple[Pending, list[_Entry[Any]]]] = []

    @property
    def has_room(self) -> bool:
        return len(self._window.waiting) < self._window.size

    def put(self, entry: _Entry[Any]) -> None:
        self._window.waiting.append(entry)

    def advance(self) -> float:
        done = [one for one in self._working if one[0].is_done]
        if done:
            self._working = [one for one in self._working if not one[0].is_done]
        for pending, some in done:
            self._answer(pending, some)
        left_s = self._window.left_s()
        if not self.crew.has_room:
            return MAX_TICK_S  # a finished task is an event
        if left_s:
            return left_s
        some = self._window.take()
        images = [entry.image for entry in some]
        self._settings.on_batch(len(some))
        self._working.append((self.crew.submit(task_of(images, images)), some))
        return 0.0 if self._window.waiting else MAX_TICK_S

    def _answer(self, pending: Pending, some: list[_Entry[Any]]) -> None:
        try:
            results = pending.result()[0]
        except Exception as error:
            _fail(some, error)
            return
        for entry, result in zip(some, results, strict=True):
            entry.answer(result)

    def entries(self) -> list[_Entry[Any]]:
        return [*self._window.waiting, *(one for _, some in self._working for one in some)]


def _fail(some: Sequence[_Entry[Any]], error: BaseException) -> None:
    for entry in some:
        entry.fail(error)


class _AheadLane:
    """Workers decode each image by itself; the model gets those that are decoded."""

    def __init__(self, settings: LiveSettings[Any], crew: Crew, slots: NDArray[np.uint8]) -> None:
        self.crew = crew
        self._settings = settings
        self._slots = slots
        self._idle = deque(range(len(slots)))
        self._decoding: list[tuple[Pending, _Entry[Any], int]] = []
        self._window = _Window(settings.plan.batch_size, settings.max_delay_s)
        self._slot_of: dict[int, int] = {}
        """Slot of each decoded image, by the identity of its entry."""
        sessions = settings.plan.sessions
        self._threads = ThreadPoolExecutor(sessions, "model")
        self._buffers = [settings.model.new_batch(self._window.size) for _ in range(sessions)]
        self._running: list[tuple[Future[None], list[_Entry[Any]], NDArray[np.uint8]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    @property
    def has_room(self) -> bool:
        return bool(self._idle) and self.crew.has_room

    def put(self, entry: _Entry[Any]) -> None:
        slot = self._idle.popleft()
        self._decoding.append((self.crew.submit(task_of([entry.image], slot)), entry, slot))

    def advance(self) -> float:
        self._take_decoded()
        self._take_finished()
        left_s = self._window.left_s()
        if not self._buffers:
            return MAX_TICK_S  # a finished call wakes the crew
        if left_s:
            return left_s
        self._start()
        return 0.0 if self._window.waiting else MAX_TICK_S

    def _take_decoded(self) -> None:
        done = [one for one in self._decoding if one[0].is_done]
        if not done:
            return
        self._decoding = [one for one in self._decoding if not one[0].is_done]
        for pending, entry, slot in done:
            try:
                errors, _ = pending.result()
            except Exception as error:
                entry.fail(error)
                self._idle.append(slot)
                continue
            if errors is not None and errors[0] is not None:
                self._reject(entry, errors[0])
                self._idle.append(slot)
                continue
            entry.since = time.monotonic()
            self._slot_of[id(entry)] = slot
            self._window.waiting.append(entry)

    def _reject(self, entry: _Entry[Any], error: DataError) -> None:
        empty = np.empty((0, 0), np.float32)
        entry.answer(self._settings.finish(Outputs([entry.image], [error], empty))[0])

    def _start(self) -> None:
        """Copy decoded images into a batch, whose slots are then free, and run the model on it."""
        some = self._window.take()
        buffer = self._buffers.pop()
        for index, entry in enumerate(some):
            slot = self._slot_of.pop(id(entry))
            buffer[index] = self._slots[slot]
            self._idle.append(slot)
        self._settings.on_batch(len(some))
        future = self._threads.submit(self._call, buffer, some)
        self._running.append((future, some, buffer))
        future.add_done_callback(lambda _done: self.crew.wake())

    def _call(self, buffer: NDArray[np.uint8], some: list[_Entry[Any]]) -> None:
        """Run the model on a batch, in one of its threads."""
        model = self._settings.model
        # As in `run_images`, a GPU always gets the same shape.
        values = model(buffer if model.device != "cpu" else buffer[: len(some)])[: len(some)]
        images = [entry.image for entry in some]
        results = self._settings.finish(Outputs(images, [None] * len(some), values))
        for entry, result in zip(some, results, strict=True):
            entry.answer(result)

    def _take_finished(self) -> None:
        for one in [one for one in self._running if one[0].done()]:
            future, some, buffer = one
            self._running.remove(one)
            self._buffers.append(buffer)
            if (error := future.exception()) is not None:
                _fail(some, error)

    def entries(self) -> list[_Entry[Any]]:
        decoding = [entry for _, entry, _ in self._decoding]
        running = [entry for _, some, _ in self._running for entry in some]
        return [*decoding, *self._window.waiting, *running]
