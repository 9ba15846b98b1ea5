"""The worker processes of a command: begun before anything heavy is imported, ended with it."""

import os
import signal
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
"""What workers need, and this process too, and what starts no threads: it is imported once."""
TARGET = "tltools.runtime.workers:serve"

_launcher: Launcher | None = None


def start_workers() -> Launcher:
    """Return what starts this command's workers, and have it start the first.

    From here on the first signal that asks for an end ends the command in order, and the second
    one at once.
    """
    global _launcher
    if HAS_FORK_SERVER:
        with own_threads_only():
            for name in PRELOAD:
                import_module(name)
        server = ForkServer(preload=PRELOAD, fork=num_threads() == 1, farewell=_farewell)
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
    os.write(2, b"stopped; the complete rows are kept\n")
    leave(128 + number)


def close() -> None:
    """End the workers, if there are some."""
    if _launcher is not None:
        _launcher.close()


def leave(code: object) -> None:
    """End this process at once if it has workers; else do nothing.

    What the threads of libraries do at the end of Python has nothing to do with the job, which is
    complete; one that waits for a lost connection would keep the process.

    Args:
        code: As `SystemExit` has it. What was printed has to be flushed before.
    """
    if _launcher is None:
        return
    close()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _farewell() -> str:
    return printable(
        "error: the job was ended by another program, or by a fault of the model or the machine; "
        "for lack of memory? Its complete rows are kept: the same command resumes after them"
    )
