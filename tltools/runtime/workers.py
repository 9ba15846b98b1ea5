"""Run tasks in a crew of worker processes, and lose no task if a worker crashes or hangs.

Each worker records in shared memory which item of which task it is processing. A worker that dies,
or makes no progress for too long, is replaced, and its tasks are retried. If it died at an item, a
new worker first tries that item alone: if that worker dies too, the item is to blame and is
skipped, with the reason.
"""

import signal
import socket
import struct
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any, Protocol, Self

from tltools.errors import TltoolsError, cause_of
from tltools.memory import UNKNOWN, available_memory
from tltools.processes import (
    HAS_FORK_SERVER,
    Channel,
    ClosedError,
    ForkServer,
    Launcher,
    Process,
    SharedMemory,
    Spawner,
    receive_memory,
    wait_for,
)
from tltools.runtime.device import import_onnxruntime

if sys.platform != "win32":
    import resource

TARGET = f"{__name__}:serve"
PRELOAD = ("tltools.runtime.workers", "tltools.runtime.pipeline", "PIL.JpegImagePlugin")
"""Modules that the fork server imports. None may start threads, as onnxruntime does."""
CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP")
    if hasattr(signal, name)
)
"""Signals of programs that crash by their own fault."""
KILLED = getattr(signal, "SIGKILL", signal.SIGTERM)
"""The signal that kills a program from outside, for example when the system is out of memory."""
IN_HAND = 2
"""Tasks sent to a worker at a time, so that it need not wait for the next one."""
MAX_STALLS = 2
"""Workers that may die at the same place, beyond the first, without an item to blame."""
MAX_TICK_S = 1.0
"""Longest time between two checks of the workers' progress, in seconds."""
STOPPED_S = 3.0
"""How long to wait for a worker that was stopped (SIGSTOP), in seconds."""
OPENING_S = 300.0
"""How long a worker may take to open the model, perhaps from a slow disk, in seconds."""
INLINE_S = 0.1
"""Seconds of work done in the calling process before workers are started for the rest."""
RESERVE = 0.2
"""Share of the memory that is reserved for the main process and the system."""
MIN_SHARE = 2**26
"""Bytes that a worker may always use for an item."""
MAX_SHARE = 2**31
"""Bytes that a worker may never exceed for an item, however much memory there is: a file whose
headers hide what it takes to decode costs its own row."""
_CELL = struct.Struct("<QQ")
_ITEMS = 2**24  # more than any task has


class Mark:
    """Records a worker's progress; a call costs less than a microsecond."""

    __slots__ = ("_beat", "_limit", "_task", "_view")

    def __init__(self, view: memoryview | None = None) -> None:
        """Take the worker's two numbers in shared memory; None to record nothing."""
        self._view = view
        self._task = 0
        self._beat = 0
        self._limit: tuple[int, int] | None = None

    def begin(self, task: int) -> None:
        """Record that a task begins."""
        self._task = task * _ITEMS

    def item(self, index: int) -> None:
        """Record that item number `index` of the task begins."""
        if self._view is not None:
            self._beat += 1
            self._view[1] = self._beat
            self._view[0] = self._task + index + 1

    def items_done(self) -> None:
        """Record that no item is being processed any more."""
        if self._view is not None:
            self._beat += 1
            self._view[1] = self._beat
            self._view[0] = 0

    def bound(self, num_bytes: int | None) -> None:
        """Limit the memory of items to `num_bytes` beyond what this process uses now."""
        self._limit = None
        if num_bytes is None or not sys.platform.startswith("linux"):
            return
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = _private_bytes() + num_bytes
        if hard == resource.RLIM_INFINITY or limit < hard:
            self._limit = limit, hard

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Enforce the memory limit within the block: an allocation beyond it fails."""
        if self._limit is None:
            yield
            return
        limit, hard = self._limit
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _private_bytes() -> int:
    """Return the bytes of this process that count toward RLIMIT_DATA."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123 - in each worker
        for line in file:
            if line.startswith(b"VmData:"):
                return int(line.split()[1]) * 1024
    return 0


class Work(Protocol):
    """The work that workers do; pickled and sent to each of them once."""

    def open(self, memory: mmap | None) -> "tuple[Handle, object]":
        """Get ready in a worker.

        Args:
            memory: Memory shared with the main process, if any.

        Returns:
            The function that does a task, and a report for the main process.
        """
        ...

    def pack(self, task: "Task") -> tuple[Any, Any]:
        """Return a task's items and details as they are sent to a worker."""
        ...

    def try_item(self, item: Any) -> None:
        """Do only the part of an item's processing that may crash the process."""
        ...


class Handle(Protocol):
    """A function that does tasks."""

    def __call__(self, task: "Task", mark: Mark) -> Any:
        """Do a task, and record on `mark` which of its items is being processed."""
        ...


@dataclass(slots=True)
class Task:
    """The items that a worker is sent at once."""

    items: Sequence[Any]
    """Items, each of which may crash its worker."""
    details: Any = None
    """Anything else its `Work` needs."""
    blamed: dict[int, str] = field(default_factory=dict)
    """Why an item must be skipped, by its index."""


class Pending:
    """A submitted task."""

    __slots__ = ("_error", "_value", "is_done", "is_held", "number", "task")

    def __init__(self, number: int, task: Task) -> None:
        """Start unfinished."""
        self.number = number
        self.task = task
        self.is_done = False
        self.is_held = False
        """Whether one of its items is being tried alone, so that no other worker may get it."""
        self._value: Any = None
        self._error: BaseException | None = None

    def finish(self, value: Any, error: BaseException | None = None) -> None:
        """Record the result or the error."""
        self._value, self._error, self.is_done = value, error, True

    def result(self) -> Any:
        """Return the result, or raise the error."""
        if self._error is not None:
            raise self._error
        return self._value


class _Worker:
    """The crew's view of a worker process."""

    def __init__(self, process: Process, view: memoryview, opening: bool) -> None:
        self.process = process
        self.view = view
        view[0] = view[1] = 0
        self.hand: deque[Pending] = deque()
        self.is_open = False
        self.is_opening = opening
        self.suspect: _Suspect | None = None
        """The item it tries alone."""
        self.seen: tuple[int, int, int] = (-1, -1, 0)
        self.waited_s = 0.0
        """Seconds since its last observed progress."""
        self.is_overdue = False


@dataclass(slots=True)
class _Suspect:
    """An item at which a worker died."""

    pending: Pending
    index: int
    reason: str
    num_trials: int
    """Number of further workers that must die at it before it is blamed."""


class Crew:
    """Worker processes for one kind of work; a context manager that ends them."""

    def __init__(
        self,
        work: Work | None,
        *,
        size: int,
        launcher: Launcher | None = None,
        local: Handle | None = None,
        memory: SharedMemory | None = None,
        timeout_s: float = 30.0,
        on_blame: Callable[[Task, int, str], None] | None = None,
        in_hand: int = IN_HAND,
    ) -> None:
        """Prepare the crew; processes are started on demand.

        Args:
            work: The work that workers do; None: there are no workers, and `local` does it all.
            size: Largest number of workers.
            launcher: Starts the workers, and stays open afterwards; None to create one.
            local: Does tasks in this process while that is cheaper than starting workers; None to
                leave all tasks, and the risk of crashing, to workers.
            memory: Memory that all processes share.
            timeout_s: Time limit for an item, in seconds.
            on_blame: Called with the task, index and reason of each skipped item.
            in_hand: Tasks sent to a worker at a time; with 1, none waits behind a slow one.
        """
        self._work = work
        self._in_hand = in_hand
        self._size = size
        self._launcher = launcher
        self._owned: Launcher | None = None
        self._local = local
        self._memory = memory
        self._timeout_s = timeout_s
        self._on_blame = on_blame
        self._cells: SharedMemory | None = None
        self._free_cells: list[int] = []
        self._cell_of: dict[int, int] = {}
        self._workers: list[_Worker] = []
        self._waiting: deque[Pending] = deque()
        self._number = 0
        self._local_s = 0.0
        self._stalls: Counter[tuple[int, int]] = Counter()
        self._deaths_before_work = 0
        self._failure: BaseException | None = None
        self._looked = time.monotonic()
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        self.report: object = None
        """The report of the first worker that was ready."""

    def __enter__(self) -> Self:
        """Return the crew."""
        return self

    def __exit__(self, *_details: object) -> None:
        """End all workers; idle ones go back to the launcher if it keeps them."""
        for worker in self._workers:
            if self._is_kept(worker):
                continue
            worker.process.kill()
            worker.process.channel.close()
            worker.process.wait()
        self._workers.clear()
        if self._owned is not None:
            self._owned.close()
        if self._cells is not None:
            self._cells.close()
        self._wake.close()
        self._waker.close()

    def _is_kept(self, worker: _Worker) -> bool:
        """Return a worker to the launcher if possible; return whether it was."""
        if self._owned is not None or not isinstance(self._launcher, ForkServer):
            return False
        if not worker.is_open or worker.hand:
            return False
        try:
            worker.process.channel.send(("leave",))
        except ClosedError:
            return False
        self._launcher.keep(worker.process)
        return True

    # -------------------------------------------------------------------------- giving work

    @property
    def has_room(self) -> bool:
        """Whether a worker is, or soon will be, waiting for another task."""
        return self.works_here or self._num_unfinished < self._in_hand * self._size

    @property
    def is_complete(self) -> bool:
        """Whether all started workers are ready."""
        return bool(self._workers) and all(worker.is_open for worker in self._workers)

    @property
    def works_here(self) -> bool:
        """Whether the next task will be done in this process."""
        return self._local is not None and not self.is_staffed

    @property
    def _num_unfinished(self) -> int:
        return len(self._waiting) + sum(len(worker.hand) for worker in self._workers)

    @property
    def is_staffed(self) -> bool:
        """Whether a worker is ready."""
        return any(worker.is_open for worker in self._workers)

    def submit(self, task: Task, *, here: bool = False, first: bool = False) -> Pending:
        """Do a task now, or queue it.

        Args:
            task: The task.
            here: Do it in this process, since it cannot be sent.
            first: Put it at the front of the queue.
        """
        self._number += 1
        pending = Pending(self._number, task)
        if self._local is not None and (here or not self.is_staffed):
            self._do_here(pending)
            if self._local_s > INLINE_S and not here and self._work is not None:
                self.staff(self._size)
                self.wait(0)
            return pending
        if first:
            self._waiting.appendleft(pending)
        else:
            self._waiting.append(pending)
        self._grow()
        self._hand_out()
        return pending

    def _do_here(self, pending: Pending) -> None:
        assert self._local is not None
        begun = time.perf_counter()
        try:
            pending.finish(self._local(pending.task, Mark()))
        except Exception as error:
            pending.finish(None, error)
        self._local_s += time.perf_counter() - begun

    def _grow(self) -> None:
        """Start workers for the queued tasks."""
        wanted = min(self._size, self._num_unfinished)
        if len(self._workers) < wanted:
            self.staff(wanted)

    def staff(self, size: int) -> None:
        """Start workers until there are `size` of them.

        Raises:
            TltoolsError: If the system cannot start any.
        """
        while len(self._workers) < min(size, self._size):
            try:
                self._start()
            except OSError as error:
                if self._workers:  # continue with fewer
                    self._size = len(self._workers)
                    return
                raise TltoolsError(
                    f"cannot start a worker process: {cause_of(error)}; close other "
                    "programs, or raise the process limit (ulimit -u)"
                ) from error

    def _start(self, suspect: _Suspect | None = None) -> None:
        if self._launcher is None:
            self._launcher = self._owned = default_launcher()
        if self._cells is None:
            self._cells = SharedMemory(_CELL.size * self._size)
            self._free_cells = list(range(self._size))
        process = self._launcher.start(TARGET)
        number = self._free_cells.pop()
        self._cell_of[process.pid] = number
        view = memoryview(self._cells.map).cast("Q")[2 * number : 2 * number + 2]
        worker = _Worker(process, view, opening=suspect is None)
        self._workers.append(worker)
        share = share_of_memory(self._size)
        try:
            memory = None if self._memory is None else self._memory.announce()
            process.channel.send(("meet", number, self._cells.announce(), memory, share))
            self._cells.send(process.channel)
            if self._memory is not None:
                self._memory.send(process.channel)
            process.channel.send(("work", self._work))
            if suspect is not None:
                worker.suspect = suspect
                item = self._packed(suspect.pending.task)[0][suspect.index]
                process.channel.send(("try", suspect.pending.number, suspect.index, item))
            else:
                process.channel.send(("open",))
        except ClosedError:
            return  # it has died; `wait` will notice

    def _hand_out(self) -> None:
        # The first workers that are ready leave tasks for those that soon will be.
        most = self._in_hand if all(one.is_open for one in self._workers) else 1
        while pending := next((one for one in self._waiting if not one.is_held), None):
            able = [one for one in self._workers if one.is_open and len(one.hand) < most]
            if not able:
                return
            worker = min(able, key=lambda one: len(one.hand))
            self._waiting.remove(pending)
            worker.hand.append(pending)
            packed = self._packed(pending.task)
            with suppress(ClosedError):  # it has died; `wait` will notice
                worker.process.channel.post(("do", pending.number, *packed))

    def _packed(self, task: Task) -> tuple[Any, Any, dict[int, str]]:
        assert self._work is not None
        items, details = self._work.pack(task)
        return items, details, task.blamed

    # ------------------------------------------------------------------------- getting results

    def wake(self) -> None:
        """Interrupt `wait`, from another thread."""
        with suppress(BlockingIOError):
            self._waker.send(b"w")

    def wait(self, timeout_s: float = MAX_TICK_S) -> None:
        """Wait for the next event, and handle it.

        Raises:
            TltoolsError: If no worker can do the work.
        """
        tick = min(MAX_TICK_S, self._timeout_s / 4, timeout_s)
        by_channel = {worker.process.channel: worker for worker in self._workers}
        ready = wait_for(by_channel, [self._wake], tick)
        if self._wake in ready:
            ready.remove(self._wake)
            with suppress(BlockingIOError):
                self._wake.recv(4096)
        for channel in ready:
            self._listen(by_channel[channel])
        self._look()
        self._hand_out()
        if self._failure is not None:
            raise self._failure

    def ready(self) -> object:
        """Wait for the first worker to be ready; return its report.

        Raises:
            TltoolsError: If it could not get ready.
        """
        self.staff(1)
        while not self.is_staffed:
            self.wait()
        return self.report

    def _listen(self, worker: _Worker) -> None:
        worker.waited_s = 0.0
        try:
            for message in worker.process.channel.collect():
                self._hear(worker, *message)
        except ClosedError:
            self._bury(worker)

    def _hear(self, worker: _Worker, kind: str, *content: Any) -> None:
        if kind == "done":
            pending = worker.hand.popleft()
            assert pending.number == content[0]
            pending.finish(content[1])
        elif kind == "opened":
            worker.is_open, worker.is_opening = True, False
            self.report = self.report or content[0]
            self._deaths_before_work = 0
        elif kind == "failed":  # an error, while the process lives on
            number, error = content
            if number is None:
                self._failure = error
            else:
                worker.hand.popleft().finish(None, error)
        elif kind == "survived":
            self._acquit(worker)

    # ---------------------------------------------------------------------- death and blame

    def _look(self) -> None:
        """Check whether each worker has made progress since the last check; kill stuck ones.

        The time between checks is capped, in case the whole job was suspended.
        """
        now = time.monotonic()
        tick = min(MAX_TICK_S, self._timeout_s / 4)
        if now - self._looked < tick / 2:
            return
        passed = min(now - self._looked, 2 * tick)
        self._looked = now
        for worker in list(self._workers):
            seen = (worker.view[0], worker.view[1], len(worker.hand))
            is_busy = worker.hand or worker.is_opening or worker.suspect is not None
            if seen != worker.seen or not is_busy:
                worker.seen, worker.waited_s = seen, 0.0
                continue
            worker.waited_s += passed
            if worker.waited_s > self._patience(worker) or (
                worker.waited_s > STOPPED_S and _is_stopped(worker.process.pid)
            ):
                worker.is_overdue = worker.waited_s > self._patience(worker)
                worker.process.kill()
                worker.waited_s = 0.0

    def _patience(self, worker: _Worker) -> float:
        if worker.view[0]:
            return self._timeout_s
        return OPENING_S if worker.is_opening else max(OPENING_S, 2 * self._timeout_s)

    def _bury(self, worker: _Worker) -> None:
        """Take back a dead worker's tasks, and start another worker."""
        place, _ = worker.view
        worker.process.channel.close()
        worker.process.kill()  # in case it only closed its channel
        code = worker.process.wait()
        self._workers.remove(worker)
        self._free_cells.append(self._cell_of.pop(worker.process.pid))
        for pending in reversed(worker.hand):
            self._waiting.appendleft(pending)
        reason = self._reason(worker, code)
        if worker.suspect is not None:
            self._judge(worker.suspect, reason, tried=bool(place))
        elif not worker.is_open:
            self._count_start(reason)
        else:
            self._suspect(worker, place, code, reason)

    def _suspect(self, worker: _Worker, place: int, code: int, reason: str) -> None:
        """Find the item that killed a worker, if any."""
        number, index = divmod(place - 1, _ITEMS) if place else (0, 0)
        pending = next((one for one in worker.hand if one.number == number), None)
        if pending is None:
            if worker.hand:  # without a task, something from outside ended it, and nothing is lost
                self._stall((worker.hand[0].number, -1), reason)
            self.staff(1)
            self._grow()
            return
        # A worker killed from outside gets a second trial: it may be killed again.
        num_trials = 2 if code == -KILLED and not worker.is_overdue else 1
        self._try(_Suspect(pending, index, reason, num_trials))

    def _try(self, suspect: _Suspect) -> None:
        suspect.pending.is_held = True
        try:
            self._start(suspect)
        except OSError as error:
            self._failure = TltoolsError(f"cannot start a worker process: {error}")

    def _judge(self, suspect: _Suspect, reason: str, *, tried: bool) -> None:
        """Handle the death of a worker whose only task was to try the suspect."""
        if not tried:  # it died before it began
            self._count_start(reason)
            if self._failure is None:
                self._try(suspect)
            return
        suspect.num_trials -= 1
        if suspect.num_trials > 0:
            self._try(suspect)
            return
        suspect.pending.is_held = False
        task = suspect.pending.task
        task.blamed[suspect.index] = reason
        if self._on_blame is not None:
            self._on_blame(task, suspect.index, reason)
        self.staff(1)
        self._grow()

    def _acquit(self, worker: _Worker) -> None:
        """Clear a suspect that proved harmless: something else killed the worker."""
        suspect, worker.suspect = worker.suspect, None
        assert suspect is not None
        suspect.pending.is_held = False
        self._stall(
            (suspect.pending.number, suspect.index), suspect.reason.replace("decoder", "job")
        )
        worker.is_opening = True
        with suppress(ClosedError):
            worker.process.channel.post(("open",))

    def _stall(self, place: tuple[int, int], reason: str) -> None:
        self._stalls[place] += 1
        if self._stalls[place] > MAX_STALLS:
            self._failure = TltoolsError(
                f"{reason.replace('the decoder', 'the job')}, {self._stalls[place]} times at the "
                "same place, but no image causes it when decoded alone, so the model or the "
                "machine is at fault; try `workers=1`, another `device=` or another export"
            )

    def _count_start(self, reason: str) -> None:
        self._deaths_before_work += 1
        if self._deaths_before_work > MAX_STALLS:
            self._failure = TltoolsError(
                f"{reason.replace('the decoder', 'the job')} before the first image, so no image "
                "is at fault; check this machine with tltools doctor"
            )
            return
        if not self._workers or self._waiting:
            self.staff(len(self._workers) + 1)

    def _reason(self, worker: _Worker, code: int) -> str:
        if worker.is_overdue:
            return f"the decoder took longer than {self._timeout_s:g} s for an image"
        if code >= 0:
            return f"the decoder ended with exit code {code}"
        name = _signal_name(-code)
        if -code in CRASHES:
            return f"the decoder crashed ({name})"
        return f"the decoder was killed by {name}, perhaps out of memory"


def in_order(
    crew: Crew,
    tasks: Iterator[Task],
    *,
    ahead: int,
    is_here: Callable[[Task], bool] = lambda _task: False,
) -> Iterator[Pending]:
    """Run tasks in a crew; yield them in order once they are done.

    Args:
        crew: The crew.
        tasks: Consumed lazily.
        ahead: Maximum number of tasks finished or in progress beyond the next one to yield.
        is_here: Returns whether a task must be done in this process.
    """
    pending: deque[Pending] = deque()
    is_more = True
    while True:
        is_done = bool(pending) and pending[0].is_done
        # Workers must not run out of tasks; results of this process are yielded at once.
        is_hungry = is_more and len(pending) < ahead and crew.has_room
        if is_hungry and not (is_done and not crew.is_staffed):
            task = next(tasks, None)
            if task is None:
                is_more = False
            else:
                pending.append(crew.submit(task, here=is_here(task)))
        elif is_done:
            yield pending.popleft()
        elif not pending and not is_more:
            return
        else:
            crew.wait()


def share_of_memory(num_workers: int) -> int | None:
    """Return how many bytes each worker may use for an item; None if unknown."""
    left = available_memory()
    if left == UNKNOWN:
        return None
    return min(MAX_SHARE, max(MIN_SHARE, int(left * (1 - RESERVE) / num_workers)))


def default_launcher() -> Launcher:
    """Return a launcher for this system; the calling program may have threads."""
    return ForkServer(preload=PRELOAD) if HAS_FORK_SERVER else Spawner()


def _is_stopped(pid: int) -> bool:
    """Return whether a process is stopped, for example by SIGSTOP (Linux)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --------------------------------------------------------------------------- in the worker


def serve(channel: Channel) -> None:
    """Run a worker: follow the other end's messages until it is closed."""
    _offer_to_the_system()
    while True:
        kind, *content = channel.receive()
        if kind == "warm":  # import ahead of the work, while the main process is busy
            import_onnxruntime()
        else:
            _serve_crew(channel, *content)


def _serve_crew(
    channel: Channel,
    number: int,
    cells: tuple[int, str],
    shared: tuple[int, str] | None,
    share: int | None,
) -> None:
    """Work for a crew until it ends."""
    view = memoryview(receive_memory(channel, *cells)).cast("Q")[2 * number : 2 * number + 2]
    memory = None if shared is None else receive_memory(channel, *shared)
    mark = Mark(view)
    _, work = channel.receive()
    handle: Handle | None = None
    mark.bound(share)
    while True:
        kind, *content = channel.receive()
        if kind == "leave":
            return
        if kind == "try":
            task, index, item = content
            mark.begin(task)
            mark.item(index)
            with mark.bounded():
                work.try_item(item)
            mark.items_done()
            channel.send(("survived",))
        elif kind == "open":
            try:
                handle, report = work.open(memory)
            except TltoolsError as error:
                channel.send(("failed", None, error))
                continue
            except Exception as error:
                channel.send(("failed", None, _bug(error)))
                continue
            mark.bound(share)
            channel.send(("opened", report))
        else:
            assert handle is not None
            channel.send(_answer(handle, mark, *content))


def _answer(
    handle: Handle,
    mark: Mark,
    number: int,
    items: Sequence[Any],
    details: Any,
    blamed: dict[int, str],
) -> tuple[Any, ...]:
    mark.begin(number)
    try:
        return "done", number, handle(Task(items, details, blamed), mark)
    except TltoolsError as error:
        return "failed", number, error
    except Exception as error:
        return "failed", number, _bug(error)
    finally:
        mark.items_done()


def _bug(error: Exception) -> RuntimeError:
    """Return an error that includes the traceback, which is lost between processes."""
    text = "".join(traceback.format_exception(error))
    return RuntimeError(f"a worker process failed:\n{text}")


def _offer_to_the_system() -> None:
    """Make the system kill a worker rather than the main process when out of memory."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")
