"""The terminal: progress and messages on standard error, tables on standard output.

rich is imported only to draw on a terminal: a job whose output goes to a file starts without it.
"""

import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self, TextIO

from tltools.data.location import without_secrets
from tltools.progress import SILENT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars
    from rich.progress import Task, TaskID

    from tltools.progress import BarContext

PLAIN_WIDTH = 80
GAP = 2
"""Spaces between the columns of a table."""
MAX_STACKED = 8
"""Most columns of a table that is shown as one line per cell; more would be long lists."""
MAX_NUMBER_WORDS = 6
"""Limit for a cell to count as a number: `95.68% (91.4% to 97.9%), 155/162` has five words."""
MAX_TEXT_WIDTH = 100
"""Maximum width of prose on a terminal, in columns: longer lines are hard to read."""
LINE_EVERY_S = 10.0
"""Minimum seconds between the lines of a bar without a terminal."""

EARLY = 0.05
"""Fraction of a bar's units up to which an estimate of the remaining time is marked as early."""

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, invisible formats, surrogates, separators
_JOINERS = "\u200c\u200d"  # occur within words of some scripts and within emoji


_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)=([^`]*)`")
_OPTIONS = {
    "address": "ray-address",
    "budget_s": "budget",
    "class_name": "class",
    "dataset": "data",
    "formats": "format",
    "image_timeout_s": "image-timeout",
    "ledger_dir": "cache-dir",
    "logs": "log",
    "precisions": "precision",
}
"""Options that are not named like their parameter."""


def in_options(message: str) -> str:
    """Replace the parameters in a message of the library by command-line options.

    The library names its parameters in backticks: `overwrite=True`, `batch_size=`, `device=cpu`.
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
    r"""Escape every character that could control a terminal or break a line; remove secrets.

    File and class names are untrusted: an escape sequence must not recolor the screen, a line break
    must not fake a line, and a character that `encoding` lacks must not stop the program. Addresses
    lose their passwords and signatures.
    """
    safe = "".join(
        char
        if unicodedata.category(char) not in _HIDDEN or char in _JOINERS
        else char.encode("unicode_escape").decode("ascii")
        for char in without_secrets(text)
    )
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def printable_json(text: str) -> str:
    """Escape the same characters in a JSON text, and remove the same secrets."""
    import json

    # Apart from line breaks, JSON has such characters only within strings.
    return "".join(
        char
        if char == "\n" or unicodedata.category(char) not in _HIDDEN or char in _JOINERS
        else json.dumps(char)[1:-1]
        for char in without_secrets(text)
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output.

    The table is as wide as the terminal, or 80 columns without one. Long cells are wrapped, never
    cut: text at spaces, and on a terminal paths after slashes, so that no name is broken. If it
    still does not fit, a terminal shows a table of few columns as one line per cell; otherwise the
    table is wider. Columns of numbers are right-aligned.
    """
    from rich.console import Console
    from rich.text import Text

    from tltools.table import column_widths, full_widths, wrap

    encoding = _encoding(sys.stdout)
    headings = [printable(column, encoding) for column in columns]
    cells = [[printable(cell, encoding) for cell in row] for row in rows]
    interactive = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if interactive else PLAIN_WIDTH, highlight=False)
    lines = wrap(printable(title, encoding), console.width, fold=interactive)
    # A Text, so that rich reads no [markup] in it.
    console.print(Text("\n".join(lines)), style="bold", soft_wrap=True)
    room = console.width - GAP * len(columns)
    widths = column_widths(headings, cells, room, fold=False)
    if widths is None and interactive:
        widths = column_widths(headings, cells, room, fold=True)
        if widths is None and len(columns) <= MAX_STACKED:
            _print_stacked(console, headings, cells)
            return
    _print_columns(console, headings, cells, widths or full_widths(headings, cells))


def _print_columns(
    console: "Console",
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
) -> None:
    """Print a table whose columns have these widths, even if it is wider than the console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from tltools.table import wrap

    def text(cell: str, width: int) -> Text:
        return Text("\n".join(wrap(cell, width, fold=True)))

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, GAP - 1, 0, 0),  # the box adds one
        pad_edge=False,
    )
    for index, (heading, width) in enumerate(zip(headings, widths, strict=True)):
        cells = [row[index] for row in rows]
        table.add_column(
            text(heading, width),
            justify="right" if all(map(_is_number, cells)) and any(cells) else "left",
            width=width,
        )
    for row in rows:
        table.add_row(*map(text, row, widths))
    console.width = max(console.width, sum(widths) + GAP * len(widths))
    console.print(table)


def _print_stacked(
    console: "Console", headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a line for each cell, with its heading, and an empty line after each row."""
    from rich.text import Text

    from tltools.table import wrap

    for row in rows:
        for heading, cell in zip(headings, row, strict=True):
            line = f"{heading}: {cell}" if heading else cell
            wrapped = wrap(line, console.width, fold=True)
            console.print(Text("\n".join(wrapped)), soft_wrap=True)
        console.print()


def print_markdown(text: str) -> None:
    """Print Markdown to standard output: formatted on a terminal, unchanged elsewhere."""
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(file=sys.stdout, highlight=False)
    console.print(Markdown(text), width=min(console.width, MAX_TEXT_WIDTH))


def _is_number(cell: str) -> bool:
    """Tell whether a cell is a number, "-" or empty.

    A unit or an interval may follow the number, but not a sentence.
    """
    if cell in ("", "-"):
        return True
    starts = cell.lstrip("+-<").replace(".", "", 1)[:1].isdigit()
    return starts and len(cell.split()) <= MAX_NUMBER_WORDS


def _encoding(stream: TextIO) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


class RichProgress:
    """Progress as bars and lines on standard error.

    Without a terminal there are no control characters: a bar becomes a plain line every few seconds
    and one at its end.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to `stream`, or to the current standard error.

        Args:
            stream: Stream to write to; None is standard error.
            quiet: Show warnings only.
            verbose: Also show details.
            clock: Return seconds from an arbitrary start, for plain lines. Tests pass a fake.
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
        """Write one line if `verbose` is set."""
        if self._verbose:
            self._line("", message)

    def _line(self, prefix: str, message: str) -> None:
        message = in_options(message)
        if self._console is None:
            self._write(prefix + message)
            return
        from rich.text import Text

        # rich writes it above the bars. With soft wrap the terminal breaks long lines, so that a
        # path can be copied as one.
        line = Text.assemble((prefix, "yellow"), self._shown(message))
        self._console.print(line, soft_wrap=True)

    def _write(self, line: str) -> None:
        self._stream.write(self._shown(line) + "\n")
        self._stream.flush()

    def _open(self, description: str, total: int | None, unit: str) -> "tuple[RichBars, TaskID]":
        """Add a bar to the screen."""
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
        """Keep the outermost bar on the screen; remove a nested one."""
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
        self._done_at_last = 0
        return self

    def __exit__(self, *details: object) -> None:
        took = self._clock() - self._start
        ending = "done in" if details[0] is None else "stopped after"
        self._write(
            f"{self._description}: {self._count()}, {ending} {duration(took)}{self._rate(took)}"
        )

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report that `amount` more units are done; `note` is appended to the line."""
        self._done += amount
        now = self._clock()
        if now - self._last < LINE_EVERY_S:
            return
        recent, took = self._done - self._done_at_last, now - self._last
        self._last, self._done_at_last = now, self._done
        line = f"{self._description}: {self._count()}"
        if recent:
            line += f", {rate(recent / took, self._unit)}"
            line += self._time_left(recent / took)
        self._write(f"{line}, {note}" if note else line)

    def _time_left(self, per_second: float) -> str:
        if not self._total:
            return ""
        left = f"{duration(max(self._total - self._done, 0) / per_second)} left"
        is_early = self._done < EARLY * self._total
        return f", about {left} (early estimate)" if is_early else f", {left}"

    def _count(self) -> str:
        total = "" if self._total is None else f"/{self._total:,}"
        return f"{self._done:,}{total} {self._unit}"

    def _rate(self, took: float) -> str:
        if took <= 0 or not self._done:
            return ""
        return f", {rate(self._done / took, self._unit)}"


def _terminal(stream: TextIO) -> "Console | None":
    """Return a console for `stream`, or None if only plain text works there."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console

    return Console(file=stream, highlight=False)


def rate(per_second: float, unit: str) -> str:
    """Format a rate per second, or per minute if it is slow."""
    if per_second >= 0.95:
        digits = 0 if per_second >= 100 else 1
        return f"{per_second:,.{digits}f} {unit}/s"
    return f"{per_second * 60:.1f} {unit}/min"


def duration(seconds: float) -> str:
    """Format seconds for people: `8 s`, `3:05 min`, `2:03:05 h`."""
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
        """Show done of total, the rate, and the time left (or taken, at the end)."""

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
                is_early = task.total and task.completed < EARLY * task.total
                parts.append(f"{'about ' * bool(is_early)}{duration(task.time_remaining)} left")
            return Text(", ".join(parts))

    class Note(ProgressColumn):
        """Show the note, cut to the remaining width."""

        def render(self, task: "Task") -> Text:
            return Text(task.fields["note"], style="dim", no_wrap=True, overflow="ellipsis")

    whole = Column(no_wrap=True)  # never narrowed
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole.copy()),
        BarColumn(bar_width=16, table_column=whole.copy()),
        Count(table_column=whole.copy()),
        Note(),
        console=console,
        redirect_stdout=False,  # it holds results, perhaps for a file
        # Long enough to cover two steps of a slow bar.
        speed_estimate_period=120.0,
    )


def flush() -> bool:
    """Flush standard output and error; return False if a reader has closed its end."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return False
    return True
