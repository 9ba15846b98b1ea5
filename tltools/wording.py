"""Nouns and verbs that agree with a number, and lists in sentences."""

from collections.abc import Iterable, Sequence


def either(names: Sequence[str]) -> str:
    """Join one or more names as alternatives: `a`, `a or b`, `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


MAX_LISTED = 20
"""Most names that a sentence or a table on a terminal lists."""


def listed(names: Sequence[str]) -> str:
    """Join names with commas; of more than `MAX_LISTED`, the first ones and how many follow."""
    shown = ", ".join(names[:MAX_LISTED])
    rest = len(names) - MAX_LISTED
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` did you mean a or b or c?` for an unknown name; empty if no known name is close."""
    from difflib import get_close_matches  # here, because it is needed only for errors

    close = get_close_matches(name, list(dict.fromkeys(known)), n=3)
    return f" did you mean {' or '.join(close)}?" if close else ""


def plural(number: int, one: str, many: str | None = None) -> str:
    """Return the form for `number`: `one` for 1, else `many`, by default `one` with an s."""
    if number == 1:
        return one
    return f"{one}s" if many is None else many


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun: `1 row`, `2000 rows`."""
    return f"{number} {plural(number, one, many)}"


def grouped(number: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun, and commas between thousands: `1 image`, `2,000 images`."""
    return f"{number:,} {plural(number, one, many)}"
