"""The terminal: progress and messages on standard error, tables on standard output.

rich is imported where a terminal is there to draw on, and not before: a job whose output goes to a
file starts without it.
"""

import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self, TextIO

from tltools.progress import SILENT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars
    from rich.progress import Task, TaskID

    from tltools.progress import BarContext

PLAIN_WIDTH = 80
GAP = 2
"""Between the columns of a table."""
MAX_NUMBER_WORDS = 6
"""Of a cell that counts as a number: `95.68% (91.4% to 97.9%), 155/162` has five."""
MAX_TEXT_WIDTH = 100
"""Columns of prose on a terminal: longer lines are hard to read."""
LINE_EVERY_S = 10.0
"""Where there is no terminal, a bar is a line at most this often."""

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, invisible formats, surrogates, separators
_JOINERS = "\u200c\u200d"  # within words of some scripts, and emoji


_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)=([^`]*)`")
_OPTIONS = {
    "budget_s": "budget",
    "dataset": "data",
    "image_timeout_s": "image-timeout",
    "ledger_dir": "cache-dir",
}
"""Parameters whose option is not their own name."""


def in_options(message: str) -> str:
    """Return a message of the library in the words of the command line.

    The library names its parameters, in backticks: `overwrite=True`, `batch_size=`, `device=cpu`.
    Here they become --overwrite, --batch-size and --device cpu; `tf32=False` becomes --no-tf32.
    """

    def as_option(match: re.Match[str]) -> str:
        name, value = match.groups()
        option = _OPTIONS.get(name, name.replace("_", "-"))
        if value == "False":
            return f"--no-{option}"
        return f"--{option}" if value in {"", "True"} else f"--{option} {value}"

    return _PARAMETER.sub(as_option, message)


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""Return `text` with everything escaped that could steer a terminal or break a line.

    Names of files and classes come from anywhere: an escape sequence in one must not recolor the
    screen, a line break not fake a line, and what `encoding` lacks not stop the program.
    """
    safe = "".join(
        char
        if unicodedata.category(char) not in _HIDDEN or char in _JOINERS
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def printable_json(text: str) -> str:
    """Return a JSON text with the same escaped in its strings; it stays the same document."""
    import json

    # All of what `printable` escapes but the line breaks between its lines is within strings.
    return "".join(
        char
        if char == "\n" or unicodedata.category(char) not in _HIDDEN or char in _JOINERS
        else json.dumps(char)[1:-1]
        for char in text
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output.

    It takes the terminal's width, or 80 columns where there is no terminal; what does not fit is
    wrapped and never cut. Columns of numbers stand to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def text(cell: str) -> Text:
        return Text(printable(cell, _encoding(sys.stdout)))  # a Text, so no [markup] is read in it

    interactive = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if interactive else PLAIN_WIDTH, highlight=False)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, GAP - 1, 0, 0),  # and one for the line that the box does not draw
        pad_edge=False,
    )
    console.print(text(title), style="bold")  # a title of the table's own wraps at its width
    cell_widths = [
        max((text(row[index]).cell_len for row in rows), default=0) for index in range(len(columns))
    ]
    widths = _column_widths(columns, cell_widths, console.width - GAP * len(columns))
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        table.add_column(
            text(column),
            justify="right" if all(map(_is_number, cells)) and any(cells) else "left",
            overflow="fold",
            width=widths[index],
        )
    for row in rows:
        table.add_row(*map(text, row))
    console.print(table)


def print_markdown(text: str) -> None:
    """Print Markdown to standard output: formatted on a terminal, unchanged elsewhere."""
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(file=sys.stdout, highlight=False)
    console.print(Markdown(text), width=min(console.width, MAX_TEXT_WIDTH))


def _column_widths(
    headings: Sequence[str], cell_widths: Sequence[int], room: int
) -> list[int | None]:
    """Let headings give way, at their spaces, before cells do; None leaves the choice to rich."""
    least = [
        max(width, *map(len, heading.split()), 0)
        for heading, width in zip(headings, cell_widths, strict=True)
    ]
    if sum(least) > room:
        return [None] * len(least)
    spare = room - sum(least)
    widths: list[int | None] = []
    for heading, width in zip(headings, least, strict=True):
        extra = min(max(len(heading) - width, 0), spare)
        spare -= extra
        widths.append(width + extra)
    return widths


def _is_number(cell: str) -> bool:
    """Tell whether a cell reads as a number, has none ("-"), or is empty.

    A unit or an interval may follow, and no sentence.
    """
    if cell in ("", "-"):
        return True
    starts = cell.lstrip("-<").replace(".", "", 1)[:1].isdigit()
    return starts and len(cell.split()) <= MAX_NUMBER_WORDS


def _encoding(stream: TextIO) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


class RichProgress:
    """Progress as bars and lines on standard error.

    Without a terminal there are no control characters: a bar becomes a plain line now and then and
    one at its end.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to `stream`, or to standard error as it is now.

        Args:
            stream: Where to write.
            quiet: Show warnings only.
            verbose: Show details too.
            clock: Seconds from an arbitrary start; for the plain lines. Tests pass a fake.
        """
        self._stream = stream or sys.stderr
        self._clock = clock
        self._quiet = quiet
        self._verbose = verbose
        self._console = _terminal(self._stream)
        self._bars: RichBars | None = None
        self._num_open = 0

    def bar(self, description: str, total: int | None, unit: str = "images") -> "BarContext":
        """Open a bar over `total` units (None: unknown), for use in a `with` statement."""
        if self._quiet:
            return SILENT.bar(description, total, unit)
        if self._console is None:
            return _PlainBar(self._write, self._clock, description, total, unit)
        return _RichBar(self, description, total, unit)

    def say(self, message: str) -> None:
        """Write one line."""
        if not self._quiet:
            self._line("", message)

    def warn(self, message: str) -> None:
        """Write one line that starts with a yellow `warning:`."""
        self._line("warning: ", message)

    def detail(self, message: str) -> None:
        """Write one line where everything is wanted."""
        if self._verbose:
            self._line("", message)

    def _line(self, prefix: str, message: str) -> None:
        message = in_options(message)
        if self._console is None:
            self._write(prefix + message)
            return
        from rich.text import Text

        # rich writes it above the bars. Soft wrap: the terminal breaks a long line, so that a path
        # can still be copied as one.
        line = Text.assemble((prefix, "yellow"), self._shown(message))
        self._console.print(line, soft_wrap=True)

    def _write(self, line: str) -> None:
        self._stream.write(self._shown(line) + "\n")
        self._stream.flush()

    def _open(self, description: str, total: int | None, unit: str) -> "tuple[RichBars, TaskID]":
        """Add a bar to those on the screen."""
        assert self._console is not None
        if self._bars is None:
            self._bars = _new_bars(self._console)
            self._bars.start()
        self._num_open += 1
        task = self._bars.add_task(self._shown(description), total=total, unit=unit, note="")
        return self._bars, task

    def _shown(self, text: str) -> str:
        return printable(text, _encoding(self._stream))

    def _close(self, task: "TaskID") -> None:
        """Leave the outermost bar on the screen; remove one that was within another."""
        assert self._bars is not None
        self._num_open -= 1
        if self._num_open == 0:
            self._bars.stop()
            self._bars = None
        else:
            self._bars.remove_task(task)


class _RichBar:
    """One bar on a terminal."""

    def __init__(
        self, progress: RichProgress, description: str, total: int | None, unit: str
    ) -> None:
        self._progress = progress
        self._details = (description, total, unit)

    def __enter__(self) -> Self:
        self._bars, self._task = self._progress._open(*self._details)
        return self

    def __exit__(self, *details: object) -> None:
        self._progress._close(self._task)

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report that `amount` more units are done; `note` is shown beside the bar."""
        self._bars.update(self._task, advance=amount, note=self._progress._shown(note))


class _PlainBar:
    """One bar as lines of plain text."""

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Callable[[], float],
        description: str,
        total: int | None,
        unit: str,
    ) -> None:
        self._write = write
        self._clock = clock
        self._description = description
        self._total = total
        self._unit = unit
        self._done = 0

    def __enter__(self) -> Self:
        self._start = self._last = self._clock()
        return self

    def __exit__(self, *details: object) -> None:
        took = self._clock() - self._start
        ending = "done in" if details[0] is None else "stopped after"
        self._write(
            f"{self._description}: {self._count()}, {ending} {duration(took)}{self._rate(took)}"
        )

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report that `amount` more units are done; `note` is put at the end of the line."""
        self._done += amount
        now = self._clock()
        if now - self._last < LINE_EVERY_S:
            return
        self._last = now
        took = now - self._start
        line = f"{self._description}: {self._count()}{self._rate(took)}"
        if self._total and self._done:
            left = max(self._total - self._done, 0) * took / self._done
            line += f", {duration(left)} left"
        self._write(f"{line}, {note}" if note else line)

    def _count(self) -> str:
        total = "" if self._total is None else f"/{self._total:,}"
        return f"{self._done:,}{total} {self._unit}"

    def _rate(self, took: float) -> str:
        if took <= 0 or not self._done:
            return ""
        return f", {rate(self._done / took, self._unit)}"


def _terminal(stream: TextIO) -> "Console | None":
    """Return what draws on `stream`, or None where only plain text will do."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console

    return Console(file=stream, highlight=False)


def rate(per_second: float, unit: str) -> str:
    """Write a rate: per second, or per minute where that reads better."""
    if per_second >= 0.95:
        digits = 0 if per_second >= 100 else 1
        return f"{per_second:,.{digits}f} {unit}/s"
    return f"{per_second * 60:.1f} {unit}/min"


def duration(seconds: float) -> str:
    """Write seconds as people do: `8 s`, `3:05 min`, `2:03:05 h`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes == 0:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _new_bars(console: "Console") -> "RichBars":
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Count(ProgressColumn):
        """Done of total, rate, time left (time taken once it is done)."""

        def render(self, task: "Task") -> Text:
            total = "" if task.total is None else f"/{int(task.total):,}"
            parts = [f"{int(task.completed):,}{total}"]
            speed = task.finished_speed or task.speed
            if speed:
                parts.append(rate(speed, task.fields["unit"]))
            else:
                parts[0] += f" {task.fields['unit']}"
            if task.finished:
                parts.append(duration(task.elapsed or 0))
            elif task.time_remaining is not None:
                parts.append(f"{duration(task.time_remaining)} left")
            return Text(", ".join(parts))

    class Note(ProgressColumn):
        """The note, cut to the room that the others leave."""

        def render(self, task: "Task") -> Text:
            return Text(task.fields["note"], style="dim", no_wrap=True, overflow="ellipsis")

    whole = Column(no_wrap=True)  # not to be narrowed
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole.copy()),
        BarColumn(bar_width=16, table_column=whole.copy()),
        Count(table_column=whole.copy()),
        Note(),
        console=console,
        redirect_stdout=False,  # results go there, perhaps into a file: they are not to be drawn
        # Long enough for the rate of slow steps to be known between two of them.
        speed_estimate_period=120.0,
    )


def flush() -> bool:
    """Write out what was printed; return False if nobody takes it any more."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return False
    return True
