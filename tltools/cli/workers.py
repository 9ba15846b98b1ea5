"""The worker processes of a command: started before heavy imports, ended with the command."""

import os
import signal
from functools import partial
from importlib import import_module
from types import FrameType

from tltools.console import printable
from tltools.processes import (
    HAS_FORK_SERVER,
    STOPS,
    ForkServer,
    Launcher,
    Spawner,
    num_threads,
    own_threads_only,
)

PRELOAD = ("tltools.runtime.pipeline", "tltools.classify.writer", "PIL.JpegImagePlugin")
"""Modules that workers and this process need and that start no threads; imported once."""
TARGET = "tltools.runtime.workers:serve"

KILLED = (
    "the job was killed, perhaps because memory ran out, or crashed; complete rows are kept: run "
    "the same command again to resume"
)
STOPPED = "stopped; complete rows are kept"

_launcher: Launcher | None = None
_stopped = STOPPED


def start_workers(*, killed: str = KILLED, stopped: str = STOPPED) -> Launcher:
    """Return the launcher of this command's workers, which starts the first one.

    From here on, the first stop signal ends the command cleanly and the second one at once.

    Args:
        killed: What a worker says if this process ends without a word.
        stopped: What the second stop signal says.
    """
    global _launcher, _stopped
    _stopped = stopped
    if HAS_FORK_SERVER:
        with own_threads_only():
            for name in PRELOAD:
                import_module(name)
        server = ForkServer(
            preload=PRELOAD, fork=num_threads() == 1, farewell=partial(_farewell, killed)
        )
        server.prepare(TARGET, ("warm",))
        _launcher = server
    else:
        _launcher = Spawner()
    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    return _launcher


def _stop(number: int, _frame: FrameType | None) -> None:
    for other in STOPS:
        if signal.getsignal(other) is not signal.SIG_IGN:
            signal.signal(other, _stop_now)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _stop_now(number: int, _frame: FrameType | None) -> None:
    os.write(2, f"{_stopped}\n".encode())
    leave(128 + number)


def close() -> None:
    """End the workers, if there are any."""
    if _launcher is not None:
        _launcher.close()


def ignore_interrupts() -> None:
    """Ignore Ctrl-C from here on: the command has been stopped, and is ending."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave(code: object, *, at_once: bool = False) -> None:
    """End this process at once if it has workers or `at_once` is set; else do nothing.

    The job is complete, so the threads of libraries need not finish: one that waits for a lost
    connection would keep the process alive. After Ctrl-C, a thread may still be running a model,
    and the end of the interpreter would unwind it within C++ code, which aborts the process.

    Args:
        code: As in `SystemExit`. Flush printed output first.
        at_once: Whether to end a process without workers, too.
    """
    if _launcher is None and not at_once:
        return
    close()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _farewell(killed: str) -> str:
    return printable(f"error: {killed}")
