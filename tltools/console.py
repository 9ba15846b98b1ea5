"""The terminal: progress and messages on standard error, tables on standard output.

rich is imported only to draw on a terminal: a job whose output goes to a file starts without it.
"""

import os
import re
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, TextIO

from tltools.data.location import without_secrets
from tltools.progress import SILENT
from tltools.wording import plural
from tltools.wording import seconds as short_duration

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
"""Limit for a cell to count as a number: `95.7% (91.4% to 97.9%), 155/162` has five words."""
_NUMBER = re.compile(r"[<>+-]?[\d.][\d,.]*(e[+-]?\d+)?%?,?|\d{4}-\d\d-\d\d|\d+/\d+")
"""The first word of such a cell; names of images often start with digits, too."""
MAX_TEXT_WIDTH = 100
"""Maximum width of prose on a terminal, in columns: longer lines are hard to read."""
LINE_EVERY_S = 10.0
"""Minimum seconds between the lines of a bar without a terminal."""

QUICK_S = 1.0
"""Work that takes less than these seconds leaves no line and no bar behind."""
RECENT_S = 10.0
"""Seconds over which a rate is measured; longer if a single step takes longer."""

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


_START = r"(?<![^\s\"'`(\[{=,;])"
"""The start of a path, and not within one such as /mnt/work/a.jpg or file:///work/a.jpg."""
_typed: dict[str, str] = {}
"""Relative paths that were typed and lead out of the current folder, by absolute path."""


def remember_typed(arguments: Sequence[str]) -> None:
    """Have `from_here` write paths below `../data`, if it is an argument, as they were typed."""
    _typed.clear()
    for argument in map(str, arguments):
        path = argument.partition("=")[2] if argument.startswith("--") else argument
        if path == ".." or path.startswith(f"..{os.sep}"):
            try:
                whole = os.path.abspath(path)  # noqa: PTH100 - links stay
            except OSError:  # the current folder was deleted
                return
            if whole != os.sep:
                _typed[whole] = path.rstrip(os.sep)


def from_here(text: str) -> str:
    """Shorten the paths in a message that lie below the current folder: `/work/a.jpg` to `a.jpg`.

    What is printed can be typed in the current folder only, and reads better there. Paths below one
    that was typed as `../data` begin with that, see `remember_typed`.
    """
    text = _below_here(text)
    for whole in sorted(_typed, key=len, reverse=True):
        if whole in text:
            # The path itself, or one below it, at the start of a path.
            found = rf"{_START}{re.escape(whole)}(?![^\s/\"'`)\]}},;:])"
            text = re.sub(found, _typed[whole].replace("\\", r"\\"), text)
    return text


def _below_here(text: str) -> str:
    try:
        here = os.getcwd()  # noqa: PTH109 - for each line
    except OSError:  # it was deleted
        return text
    if here == os.sep or here not in text:
        return text
    return re.sub(rf"{_START}{re.escape(here + os.sep)}(?=[^\s/])", "", text)


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
    cells = [[printable(from_here(cell), encoding) for cell in row] for row in rows]
    interactive = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if interactive else PLAIN_WIDTH, highlight=False)
    lines = wrap(printable(from_here(title), encoding), console.width, fold=interactive)
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
        show_header=any(headings),
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
    """Print Markdown to standard output: formatted on a terminal, unchanged elsewhere.

    Prose is wrapped to the terminal's width; listings are not, so that commands can be copied.
    """
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from rich.console import Console
    from rich.markdown import CodeBlock, Markdown
    from rich.text import Text

    class Listing(CodeBlock):
        """Show a listing as it is written."""

        def __rich_console__(self, *_: Any) -> "Iterator[Text]":
            yield Text(str(self.text).rstrip(), no_wrap=True, overflow="ignore")

    class Page(Markdown):
        elements: ClassVar = {**Markdown.elements, "fence": Listing, "code_block": Listing}

    console = Console(file=sys.stdout, highlight=False)
    console.print(Page(text), width=min(console.width, MAX_TEXT_WIDTH), crop=False)


def _is_number(cell: str) -> bool:
    """Tell whether a cell is a number, "-" or empty.

    A unit or an interval may follow the number, but not a sentence.
    """
    words = cell.removeprefix("< ").split()
    if cell in ("", "-"):
        return True
    return len(words) <= MAX_NUMBER_WORDS and _NUMBER.fullmatch(words[0]) is not None


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

    def bar(
        self,
        description: str,
        total: int | None,
        unit: str = "images",
        *,
        epochs: range | None = None,
    ) -> "BarContext":
        """Open a bar over `total` units (None: unknown), for use in a `with` statement.

        With `epochs`, such as `range(1, 16)`, the total is of each of these epochs.
        """
        if self._quiet:
            return SILENT.bar(description, total, unit)
        count = _Count(total, unit, epochs, self._clock)
        if self._console is None:
            return _PlainBar(self._write, description, count)
        return _RichBar(self, description, count)

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

    def _open(self, description: str, count: "_Count") -> "tuple[RichBars, TaskID]":
        """Add a bar to the screen."""
        assert self._console is not None
        if self._bars is None:
            self._bars = _new_bars(self._console)
            self._bars.start()
        self._num_open += 1
        task = self._bars.add_task(
            self._shown(description), total=count.whole, figures=count.figures(), note=""
        )
        return self._bars, task

    def _shown(self, text: str) -> str:
        return printable(from_here(text), _encoding(self._stream))

    def _close(self, task: "TaskID", *, is_kept: bool) -> None:
        """Keep the outermost bar on the screen; remove a nested one, or one that was quick."""
        assert self._bars is not None
        self._num_open -= 1
        if self._num_open == 0:
            self._bars.live.transient = not is_kept
            self._bars.stop()
            self._bars = None
        else:
            self._bars.remove_task(task)


class _Count:
    """How much of some work is done, how fast, and what is left, in words."""

    def __init__(
        self, total: int | None, unit: str, epochs: range | None, clock: Callable[[], float]
    ) -> None:
        self._total = total
        self._units = unit
        self._epochs = epochs
        self._clock = clock
        self.done = 0

    @property
    def whole(self) -> int | None:
        """All units, of all epochs."""
        return None if self._total is None else self._total * len(self._epochs or range(1))

    @property
    def is_complete(self) -> bool:
        """Whether all units are done."""
        return self.done == self.whole

    def start(self) -> None:
        """Start the clock."""
        self._start = self._clock()
        self._steps = deque([(self._start, 0)])

    def advance(self, amount: int) -> None:
        """Add units that are done."""
        self.done += amount
        now = self._clock()
        if amount:
            self._steps.append((now, self.done))
        while len(self._steps) > 2 and self._steps[1][0] <= now - RECENT_S:
            self._steps.popleft()

    @property
    def took_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def figures(self, *, with_unit: bool = True) -> str:
        """Return what is done: `64/216 images`, and of which epoch."""
        if self._total is None:
            return f"{self.done:,} {self._units}"
        epoch, done = divmod(self.done, self._total) if self._epochs else (0, self.done)
        if epoch and not done:  # the end of an epoch, not the start of the next
            epoch, done = epoch - 1, self._total
        figures = f"{done:,}/{self._total:,}"
        if with_unit:
            figures += f" {plural(self._total, self._units.removesuffix('s'), self._units)}"
        if not self._epochs:
            return figures
        number = self._epochs[min(epoch, len(self._epochs) - 1)]
        return f"epoch {number} of {self._epochs[-1]}, {figures}"

    def pace(self, early: str = "") -> str:
        """Return the rate of the last seconds and the time left, or nothing.

        Args:
            early: Added to an estimate that is still vague.
        """
        (then, before), (now, done) = self._steps[0], self._steps[-1]
        if done == before or now <= then:
            return ""
        per_second = (done - before) / (now - then)
        pace = f", {rate(per_second, self._units)}"
        if not self.whole:
            return pace
        left = f"{duration(max(self.whole - self.done, 0) / per_second)} left"
        is_early = self.done < EARLY * self.whole
        return f"{pace}, about {left}{early}" if is_early else f"{pace}, {left}"

    def result(self) -> str:
        """Return the time that it took and the rate over all of it."""
        took = self.took_s
        overall = f", {rate(self.done / took, self._units)}" if took > 0 and self.done else ""
        return f"{duration(took)}{overall}"


class _RichBar:
    """One bar on a terminal."""

    def __init__(self, progress: RichProgress, description: str, count: _Count) -> None:
        self._progress = progress
        self._description = description
        self._count = count

    def __enter__(self) -> Self:
        self._count.start()
        self._bars, self._task = self._progress._open(self._description, self._count)
        return self

    def __exit__(self, *details: object) -> None:
        is_kept = self._count.took_s >= QUICK_S or details[0] is not None
        self._update(0, note="", ending=self._count.result())
        self._progress._close(self._task, is_kept=is_kept)

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report that `amount` more units are done; `note` is shown beside the bar."""
        self._count.advance(amount)
        self._update(amount, note=self._progress._shown(note))

    def _update(self, amount: int, *, note: str, ending: str = "") -> None:
        pace = f", {ending}" if ending else self._count.pace()
        figures = self._count.figures(with_unit="/" not in pace) + pace
        self._bars.update(self._task, advance=amount, note=note, figures=figures)


class _PlainBar:
    """One bar as lines of plain text."""

    def __init__(self, write: Callable[[str], None], description: str, count: _Count) -> None:
        self._write = write
        self._description = description
        self._count = count

    def __enter__(self) -> Self:
        self._count.start()
        self._told_s = 0.0
        return self

    def __exit__(self, *details: object) -> None:
        if details[0] is None and self._count.took_s < QUICK_S:
            return
        ending = "done in" if details[0] is None else "stopped after"
        self._tell(f", {ending} {self._count.result()}")

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report that `amount` more units are done; `note` is appended to the line."""
        self._count.advance(amount)
        took = self._count.took_s
        if took - self._told_s < LINE_EVERY_S or self._count.is_complete:
            return
        self._told_s = took
        pace = self._count.pace(early=" (early estimate)")
        self._tell(f"{pace}, {note}" if note else pace)

    def _tell(self, more: str) -> None:
        self._write(f"{self._description}: {self._count.figures()}{more}")


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
        return short_duration(seconds) if seconds < 10 else f"{whole} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _new_bars(console: "Console") -> "RichBars":
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Note(ProgressColumn):
        """Show the note, cut to the remaining width."""

        def render(self, task: "Task") -> Text:
            return Text(task.fields["note"], style="dim", no_wrap=True, overflow="ellipsis")

    whole = Column(no_wrap=True)  # never narrowed
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole.copy()),
        BarColumn(bar_width=16 if console.width >= 100 else 8, table_column=whole.copy()),
        TextColumn("{task.fields[figures]}", markup=False, table_column=whole.copy()),
        Note(),
        console=console,
        redirect_stdout=False,  # it holds results, perhaps for a file
    )


def flush() -> bool:
    """Flush standard output and error; return False if a reader has closed its end."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return False
    return True
