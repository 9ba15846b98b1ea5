"""Fit tables into a terminal: text wraps at spaces, paths after slashes, names stay whole.

So do intervals: `(89.7% to 97.0%)` counts as one word.
"""

import re
from collections.abc import Sequence

from rich.cells import cell_len

SHORT_WORD = 16
"""Width up to which a word with slashes is no path to fold: `155/162`, `images/s`."""
READABLE = 40
"""Width of text, in columns, in a table that is wider than the terminal anyway."""
_WORD = re.compile(r"\([<>]?[\d.]+% to [<>]?[\d.]+%\)\S*|\S+")
_PATH_PARTS = re.compile(r"[^/]*/+|[^/]+")


def wrap(text: str, width: int, *, fold: bool) -> list[str]:
    """Break text into lines at spaces; a longer word has a line of its own.

    Args:
        text: One line. Its indentation is repeated.
        width: Width of the lines, in columns.
        fold: Break words longer than that after slashes.
    """
    if cell_len(text) <= width:
        return [text]
    indent = text[: len(text) - len(text.lstrip())]
    lines: list[str] = []
    line = indent
    for word in _WORD.findall(text):
        is_long = cell_len(indent + word) > width
        for number, part in enumerate(_parts(word) if fold and is_long else [word]):
            space = "" if number or line == indent else " "
            if line != indent and cell_len(line + space + part) > width:
                lines.append(line)
                line, space = indent, ""
            line += space + part
    return [*lines, line]


def column_widths(
    headings: Sequence[str], rows: Sequence[Sequence[str]], room: int, *, fold: bool
) -> list[int] | None:
    """Return the widths of columns in which all words are whole; None if they do not fit.

    Headings are wrapped before cells, and the widest cells before others.

    Args:
        headings: The headings.
        rows: The cells.
        room: Sum of the widths, in columns.
        fold: Whether paths may be broken after slashes.
    """
    cells = list(zip(*rows, strict=True)) or [()] * len(headings)
    words = [max(map(cell_len, heading.split()), default=0) for heading in headings]
    whole = [
        max(word, *map(cell_len, column), 0) for word, column in zip(words, cells, strict=True)
    ]
    if sum(whole) <= room:
        return _widened(whole, list(map(cell_len, headings)), room)
    least = [
        max(word, *(_least(cell, fold=fold) for cell in column), 0)
        for word, column in zip(words, cells, strict=True)
    ]
    return _widened(least, whole, room) if sum(least) <= room else None


def full_widths(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return widths for a table that does not fit: text is wrapped, and paths are whole."""
    return [
        max(
            min(max(map(cell_len, column)), READABLE),
            *(_least(cell, fold=False) for cell in column),
        )
        for column in zip(headings, *rows, strict=True)
    ]


def _widened(widths: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """Share the room that is left: columns that want little get it all, the others equal parts."""
    widened = list(widths)
    spare = room - sum(widths)
    by_need = sorted(range(len(widths)), key=lambda index: wanted[index] - widths[index])
    for number, index in enumerate(by_need):
        extra = min(max(wanted[index] - widths[index], 0), spare // (len(by_need) - number))
        widened[index] += extra
        spare -= extra
    return widened


def _least(cell: str, *, fold: bool) -> int:
    """Return the width of the longest part of a cell that must stay whole."""
    indent = len(cell) - len(cell.lstrip())
    parts = [part for word in _WORD.findall(cell) for part in (_parts(word) if fold else [word])]
    return indent + max(map(cell_len, parts), default=0)


def _parts(word: str) -> list[str]:
    """Return the parts of a path, each with its slash; a short word is one part."""
    return [word] if cell_len(word) <= SHORT_WORD else _PATH_PARTS.findall(word)
