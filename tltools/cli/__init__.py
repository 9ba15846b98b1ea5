"""The command line: parse, call the library, print. One module for each command.

Nothing heavy is imported before a command runs, so that `--help` is quick.
"""

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any, cast

import typer

from tltools.cli import workers
from tltools.cli.command import INTERRUPTED, Out, app
from tltools.cli.streams import secure_streams
from tltools.errors import TltoolsError, cause_of

__all__ = ["COMMANDS", "app", "load_commands", "main"]

COMMANDS = {
    "train": "Train models and compare them.",
    "evaluate": "Score a run or an export on labeled images, or choose a threshold for it.",
    "export": "Export runs; every file is verified against PyTorch before it is kept.",
    "classify": "Classify images: one row each, with its label and probabilities or its error.",
    "serve": "Answer HTTP requests with the labels of the images that they send.",
    "merge": "Merge the shards of a job into the output that one job would have written.",
    "bench": "Measure exports beside their runs and recommend one for this machine.",
    "runs": "List runs, compare two, or delete some.",
    "report": "Write results to one HTML page that opens offline and prints.",
    "explain": "Draw heat maps of the image regions that support a class.",
    "inspect": "Show a model's card, or audit labeled images; runs no model.",
    "models": "List the networks that train takes, with their size, cost and accuracy.",
    "sample": "Draw the sample set: emergency and other vehicles, with their labels.",
    "doctor": "Check versions, devices and execution providers, and suggest fixes.",
    "docs": "Read the documentation, one chapter at a time.",
}
"""What each command does, in the order in which the help lists them."""


def load_commands(names: Iterable[str] = COMMANDS) -> None:
    """Import the modules of these commands, which adds them to `app`.

    `main` imports only the command it is given, because the others take 5% of the start-up time.
    """
    for name in names:
        import_module(f"tltools.cli.{name}")
    order = list(COMMANDS)
    app.registered_commands.sort(key=lambda one: order.index(cast("Any", one.callback).__name__))


SYSTEM_ERRORS = frozenset(
    {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
    | {errno.ESTALE, errno.ENOTCONN, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""Full, failing or removed disks, missing permissions, files or memory: not bugs in tltools."""


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and exit.")
    ] = False,
) -> None:
    if version:
        from tltools import __version__

        typer.echo(f"tltools {__version__}")
        raise typer.Exit


def main(args: list[str] | None = None) -> None:
    """Run the command line; print an expected error as one line and a bug as a traceback."""
    if args is None:
        secure_streams()
        # PyTorch's threads soon sleep when they wait for each other: spinning on, they would keep
        # the one that is waited for from its core when other programs are using the machine.
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ["OMP_WAIT_POLICY"] = "passive"
            os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # a few microseconds
    try:
        _run(args)
    except SystemExit as leaving:
        from tltools.console import flush

        is_stopped = args is None and leaving.code == INTERRUPTED
        if is_stopped:
            workers.ignore_interrupts()
        workers.leave(leaving.code if flush() else 1, at_once=is_stopped)
        raise
    except BaseException:  # a bug: Python prints its traceback
        workers.close()
        sys.excepthook = _print_bug
        raise


def _print_bug(*details: Any) -> None:
    """Print the traceback of a bug, without secrets."""
    import traceback

    from tltools.data.location import without_secrets

    text = "".join(traceback.format_exception(*details))
    typer.echo(without_secrets(text), err=True, nl=False)


def _prepare(args: Sequence[str], *, own_process: bool) -> None:
    """Import what these arguments need, in a process of their own or in one that may go on."""
    if args and args[0] in COMMANDS:
        load_commands(args[:1])
    elif own_process and args in (["--help"], ["-h"]):  # lists the commands and runs none
        for name, summary in COMMANDS.items():
            app.command(name, help=summary)(_no_command)
    else:
        load_commands()


def _no_command() -> None:
    """Stand for a command in the help."""


def _run(args: list[str] | None) -> None:
    from tltools.console import remember_typed

    Out.is_verbose = False
    given = sys.argv[1:] if args is None else args
    remember_typed(given)
    try:
        _prepare(given, own_process=args is None)
        # `obj` tells `classify` whether it may fork worker processes from this process.
        code = app(args, obj=args is None, standalone_mode=False)
    # Ctrl-C in an import, or at a question, where the end of the input is the same.
    except (KeyboardInterrupt, typer.Abort) as error:
        _tell_of_interrupt()
        raise SystemExit(INTERRUPTED) from error
    except TltoolsError as error:
        _trace()
        _tell_of_error(str(error))
        raise SystemExit(error.exit_code) from error
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        _trace()
        where = f" {error.filename}" if error.filename else ""
        _tell_of_error(
            f"cannot access{where}: {cause_of(error)}; fix that and run the command again"
        )
        raise SystemExit(1) from error
    except Exception as error:
        _leave_for_usage(error)
        raise
    # Typer turns Ctrl-C into this exit code and prints nothing.
    if code == INTERRUPTED:
        _tell_of_interrupt()
    raise SystemExit(code if isinstance(code, int) else 0)


def _tell_of_error(message: str) -> None:
    """Print a message of the library as the line of an error."""
    from tltools.console import from_here, in_options, printable

    typer.secho(f"error: {printable(from_here(in_options(message)))}", fg="red", err=True)


def _tell_of_interrupt() -> None:
    typer.secho("stopped by Ctrl-C", fg="yellow", err=True)


def _leave_for_usage(error: Exception) -> None:
    """Print an error of the command line as one line, and leave; return if it is another one."""
    from tltools.cli.usage import is_help, usage_message

    message = usage_message(error, _all_commands)
    if message is None:
        return
    if is_help(error):
        getattr(error, "show")()  # noqa: B009 - the class is private
    else:
        _tell_of_error(message)
    raise SystemExit(2) from error


def _all_commands() -> dict[str, Any]:
    """Return all commands by name, as Typer makes them."""
    from typer.main import get_command

    load_commands()
    return getattr(get_command(app), "commands", {})


def _trace() -> None:
    """Print the traceback of an error with --verbose."""
    if Out.is_verbose:
        import traceback

        from tltools.console import printable

        for line in traceback.format_exc().splitlines():
            typer.echo(printable(line), err=True)
