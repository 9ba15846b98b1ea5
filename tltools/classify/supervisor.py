"""Run a job in a process of its own, so that a picture that kills a decoder costs one row.

The process divides before anything heavy is imported. The child does the job; the parent waits
for it, passes signals on, and looks after what ended it. After a crash, or a decoder that does not
come back, another child decodes the pictures that were in work, one by one and nothing else, to
learn which of them are to blame. Then a new child goes on where the rows end.
"""

import mmap
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tltools.data.remote import Location

CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGSYS", "SIGTRAP")
    if hasattr(signal, name)
)
"""Signals by which a program ends through its own fault."""
STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals by which somebody asks for an end."""
MAX_STALLS = 2
"""Restarts in succession without a new row or a picture to blame; then it is not the pictures."""
MAX_TICK_S = 1.0
"""Longest time between two looks at what the decoders do."""

_DASH = Path("-")
_is_job = False  # whether this process is the one that does the job
_PULLED, _BEAT, _OVERDUE, _EXAMINED, _ROWS = range(5)
_NUM_CELLS = 8


class Watch:
    """What the processes of a job know of each other: a few numbers in memory that they share."""

    def __init__(self, timeout_s: float) -> None:
        """Allocate the memory; to be called before the process divides."""
        self.timeout_s = timeout_s
        """Longest time that a picture may take to be decoded."""
        self.is_restarted = False
        """Whether this process goes on with what another one began."""
        self.verdicts: dict[int, str] = {}
        """What the pictures that must not be decoded do, by their number in the listing."""
        self._cells = memoryview(mmap.mmap(-1, _NUM_CELLS * 8)).cast("Q")

    @property
    def num_pulled(self) -> int:
        """Pictures that the job has taken from the listing, those that it skipped included."""
        return self._cells[_PULLED]

    def pulled(self, num_pictures: int) -> None:
        """Note that so many pictures are taken from the listing; some may be in work."""
        self._cells[_PULLED] = num_pictures

    def examine(self, number: int | None) -> None:
        """Note which picture is about to be decoded, for its own sake."""
        self._cells[_EXAMINED] = 0 if number is None else number + 1

    def found_rows(self, num_rows: int) -> None:
        """Note how many complete rows there are."""
        self._cells[_ROWS] = num_rows

    @property
    def tick_s(self) -> float:
        """Time between two looks at what the decoders do."""
        return min(MAX_TICK_S, self.timeout_s / 4)


def can_supervise() -> bool:
    """Tell whether this system can divide a process."""
    return hasattr(os, "fork")


def supervise_job(
    watch: Watch,
    inputs: "Sequence[Location]",
    output: "Location",
    *,
    spreadsheet: bool,
    tell: Callable[[str], None],
) -> None:
    """Divide the process; return in each child that is to do the job. The parent never returns.

    Args:
        watch: What the processes share; the children pass it to `run_job`.
        inputs: The job's.
        output: The job's.
        spreadsheet: The job's.
        tell: Tells the user one line.
    """

    def examine(start: int) -> None:
        from tltools.classify.job import examine_pictures

        examine_pictures(inputs, output, spreadsheet=spreadsheet, watch=watch, start=start)

    stdin = _position_of_stdin() if _DASH in inputs else None
    restartable = output != _DASH and (_DASH not in inputs or stdin is not None)
    _Supervisor(watch, examine, tell, stdin=stdin, restartable=restartable).run()


class _Supervisor:
    def __init__(
        self,
        watch: Watch,
        examine: Callable[[int], None],
        tell: Callable[[str], None],
        *,
        stdin: int | None,
        restartable: bool,
    ) -> None:
        self._watch = watch
        self._cells = watch._cells
        self._examine = examine
        self._restartable = restartable
        self._tell = tell
        self._child = 0
        self._asked: int | None = None
        """The signal by which the user asked for an end."""
        self._stdin = stdin
        """Where the list on standard input begins, for each child to read it from there."""

    def run(self) -> None:
        """Start children until the job is done; return in each child that is to do it."""
        self._handlers = {
            number: signal.signal(number, self._pass_on)
            for number in STOPS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        stalls, rows = 0, -1
        while True:
            if self._fork():
                _stop_once(self._handlers)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
                return
            status = self._wait(self._is_stuck_job())
            self._leave_unless_crashed(status)
            reason = self._reason(status, "the job")
            if not self._restartable or not self._watch.num_pulled:
                self._give_up(f"{reason}{self._place()}")
            self._tell(f"warning: {reason}; looking for the picture that does it")
            blamed = self._find_culprits()
            if blamed or self._cells[_ROWS] > rows:
                stalls = 0
            elif stalls == MAX_STALLS:
                self._give_up(
                    f"{reason}, {stalls + 1} times at the same place, and no picture does it when "
                    "it is decoded alone: the model or the machine is at fault; try --workers 1, "
                    "another --device or another export"
                )
            else:
                stalls += 1
            rows = self._cells[_ROWS]
            self._watch.is_restarted = True

    def _fork(self) -> bool:
        """Divide the process; return True in the child, whose signals wait for their handlers."""
        if self._stdin is not None:
            os.lseek(0, self._stdin, os.SEEK_SET)
        self._cells[_PULLED] = self._cells[_OVERDUE] = self._cells[_EXAMINED] = 0
        parent_lives, parent_end = os.pipe()
        self._child_lives, child_end = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        self._child = os.fork()
        if self._child:
            os.close(parent_lives)
            os.close(child_end)
            self._parent_end = parent_end
            if self._asked is not None:  # it came while there was nobody to pass it on to
                os.kill(self._child, self._asked)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            return False
        os.close(parent_end)
        os.close(self._child_lives)  # `child_end` stays open for as long as this process lives
        global _is_job
        _is_job = True
        threading.Thread(target=_end_with, args=(parent_lives,), daemon=True).start()
        threading.Thread(target=watch_decoders, args=(self._watch,), daemon=True).start()
        return True

    def _wait(self, is_stuck: Callable[[], bool]) -> int:
        """Wait for the child's end, which `is_stuck` may bring about; return its status."""
        while not select.select([self._child_lives], [], [], self._watch.tick_s)[0]:
            if is_stuck():
                self._cells[_OVERDUE] = 1
                os.kill(self._child, signal.SIGKILL)
                break
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        os.close(self._child_lives)
        os.close(self._parent_end)
        return os.waitstatus_to_exitcode(status)

    def _is_stuck_job(self) -> Callable[[], bool]:
        """Tell when the child's watching thread does not come to its turn: Python is blocked.

        Looks are counted, and not seconds, so that a job that was suspended is not taken for one
        that is stuck.
        """
        seen, looks = 0, 0

        def is_stuck() -> bool:
            nonlocal seen, looks
            looks = looks + 1 if self._cells[_BEAT] == seen else 0
            seen = self._cells[_BEAT]
            limit = 2 * self._watch.timeout_s / self._watch.tick_s
            return self._watch.num_pulled > 0 and looks > limit

        return is_stuck

    def _is_stuck_picture(self) -> Callable[[], bool]:
        """Tell when a picture that is examined takes too long."""
        seen, looks = 0, 0

        def is_stuck() -> bool:
            nonlocal seen, looks
            number = self._cells[_EXAMINED]
            looks = looks + 1 if number and number == seen else 0
            seen = number
            return looks > self._watch.timeout_s / self._watch.tick_s

        return is_stuck

    def _find_culprits(self) -> int:
        """Decode the pictures that were in work; return how many of them must not be decoded."""
        num_pulled = self._watch.num_pulled
        start, num_found = 0, 0
        while True:
            if self._fork():
                self._examine_and_leave(num_pulled, start)
            status = self._wait(self._is_stuck_picture())
            if self._asked is not None:
                self._give_up("stopped", 128 + self._asked)
            number = self._cells[_EXAMINED] - 1
            if number < 0 or not self._has_crashed(status):
                return num_found
            reason = self._reason(status, "the decoder")
            self._watch.verdicts[number] = reason
            self._tell(f"Picture {number + 1:,}: {reason}; it gets a row that says so")
            start, num_found = number + 1, num_found + 1

    def _examine_and_leave(self, num_pulled: int, start: int) -> NoReturn:
        for number in self._handlers:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        self._watch.pulled(num_pulled)
        code = 1
        try:
            self._examine(start)
            code = 0
        finally:
            os._exit(code)  # an error is heard from the job itself, which meets it next

    def _leave_unless_crashed(self, status: int) -> None:
        if self._asked is not None and status < 0:  # it was asked, and could not end in order
            self._give_up("stopped; the complete rows are kept", 128 + self._asked)
        if not self._has_crashed(status):
            if status < 0:
                self._tell(
                    f"error: the job was ended by {_name(-status)}; for lack of memory? "
                    "The same command goes on from there"
                )
            self._leave(status if status >= 0 else 128 - status)

    def _has_crashed(self, status: int) -> bool:
        return bool(self._cells[_OVERDUE]) or -status in CRASHES

    def _reason(self, status: int, subject: str) -> str:
        if self._cells[_OVERDUE]:
            return timeout_reason(subject, self._watch.timeout_s)
        return crash_reason(subject, -status)

    def _place(self) -> str:
        if not self._watch.num_pulled:
            return " before the first picture, so that no picture is at fault"
        return (
            f" at one of the last pictures up to number {self._watch.num_pulled:,}; where the "
            "output is a file, and no list comes through a pipe, such a picture costs its own row "
            "only"
        )

    def _give_up(self, message: str, code: int = 1) -> NoReturn:
        self._tell(message if code != 1 else f"error: {message}")
        self._leave(code)

    def _leave(self, code: int) -> NoReturn:
        """End this process without what Python does at an end: it has nothing of its own."""
        os._exit(code)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Pass a signal on to the child; the second one ends it at once."""
        again = self._asked is not None
        self._asked = number
        if self._child:
            os.kill(self._child, signal.SIGKILL if again else number)


def leave(code: object) -> None:
    """End this process at once if it has done a job; else do nothing.

    What the threads of libraries do at the end of Python has nothing to do with the job, which is
    complete; one that waits for a lost connection must not make it look stuck.

    Args:
        code: As `SystemExit` has it. What was printed has to be flushed before.
    """
    if not _is_job:
        return
    os._exit(code if isinstance(code, int) else int(code is not None))


def timeout_reason(subject: str, timeout_s: float) -> str:
    """Say that a process was ended because a picture took it too long."""
    return f"{subject} took longer than {timeout_s:g} s for a picture"


def crash_reason(subject: str, number: int) -> str:
    """Say that a process was ended by a signal, through its own fault."""
    return f"{subject} crashed ({_name(number)})"


def _stop_once(handlers: Iterable[signal.Signals]) -> None:
    """Make the first signal end the job in order, and further ones wait for that.

    Ctrl-C reaches a child twice, from the terminal and from its parent.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in handlers:
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in handlers:
        signal.signal(number, stop)


def _end_with(parent_lives: int) -> None:
    """End this process at once when its parent has ended: nobody would look after it."""
    os.read(parent_lives, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def watch_decoders(watch: Watch) -> None:
    """End this process when a thread is in one call of `load_image` for too long.

    Looking at what the threads do, now and then, costs the decoders nothing.
    """
    cells = watch._cells
    limit = watch.timeout_s / watch.tick_s
    looks: dict[int, tuple[FrameType, int]] = {}
    while True:
        time.sleep(watch.tick_s)
        cells[_BEAT] += 1
        images = sys.modules.get("tltools.data.images")
        load_image = getattr(images, "load_image", None)
        if load_image is None:
            continue
        calls = {
            thread: call
            for thread, frame in sys._current_frames().items()
            if (call := _call_of(load_image.__code__, frame)) is not None
        }
        looks = {
            thread: (call, looks[thread][1] + 1)
            if thread in looks and looks[thread][0] is call
            else (call, 0)
            for thread, call in calls.items()
        }
        if any(count > limit for _, count in looks.values()):
            cells[_OVERDUE] = 1
            os.kill(os.getpid(), signal.SIGKILL)


def _call_of(code: object, frame: FrameType | None) -> FrameType | None:
    """Return the frame of a call of the function with that code, if a thread is in one."""
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def _position_of_stdin() -> int | None:
    """Return where standard input is now, None where one cannot go back to that."""
    try:
        return os.lseek(0, 0, os.SEEK_CUR)
    except OSError:
        return None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
