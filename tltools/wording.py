"""Nouns and verbs that agree with a number, percentages, and lists in sentences."""

import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path


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

    names = list(dict.fromkeys(known))
    whole = [one for one in names if name.lower() in one.lower()]  # bee, of honey bees
    close = get_close_matches(name, names, n=3) or (whole[:3] if name else [])
    return f" did you mean {' or '.join(close)}?" if close else ""


MAX_NAMES = 10_000
"""Most names of a folder among which a similar one is searched for."""


def similar_paths(path: Path, *folders: Path) -> str:
    """Return ` (did you mean runs/cnn?)` for a path that does not exist; empty if none is close.

    Args:
        path: The path; names in its folder are compared with it.
        folders: Other folders in which the name may be.
    """
    from difflib import get_close_matches

    def is_close(name: str) -> bool:  # an extension in common says nothing
        return bool(get_close_matches(path.stem, [Path(name).stem]))

    close: list[Path] = []
    for folder in dict.fromkeys((path.parent, *folders)):
        try:
            with os.scandir(folder) as entries:
                names = [one.name for one in islice(entries, MAX_NAMES)]
        except OSError:  # it cannot be listed, so nothing in it is close
            continue
        similar = filter(is_close, get_close_matches(path.name, names, n=MAX_LISTED))
        close += [folder / name for name in islice(similar, 2)]
    return f" (did you mean {either(list(map(str, close)))}?)" if close else ""


def percent(share: float) -> str:
    """Return a fraction as a percentage with as many digits as it needs, up to four: `97.5 %`."""
    return f"{100 * share:.4g} %"


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
