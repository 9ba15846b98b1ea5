"""Nouns and verbs that agree with a number, percentages, and lists in sentences."""

import math
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
"""How the parts of a data set are called in sentences and tables."""


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


def together(names: Sequence[str]) -> str:
    """Join names with `and`: `a`, `a and b`; of more than `MAX_LISTED`, say how many follow."""
    if len(names) > MAX_LISTED:
        return listed(names)
    shown = [name if name.isprintable() else repr(name) for name in names]
    *others, last = shown
    return f"{', '.join(others)} and {last}" if others else last


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` did you mean a or b or c?` for an unknown name; empty if no known name is close.

    The closest name is first. Case and the dashes of options do not count.
    """
    names = list(dict.fromkeys(known))
    whole = [one for one in names if name.lower() in one.lower()]  # bee, of honey bees
    close = _closest(name, names)[:3] or (whole[:3] if name else [])
    return f" did you mean {' or '.join(close)}?" if close else ""


MAX_BEHIND = 0.1
"""Names whose similarity, from 0 to 1, is further behind that of the closest are not proposed."""


def _closest(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are close to `name`, the closest first.

    Of equally close ones, those with the same characters in another order are first: vgg16 for
    vgg61. The others keep their order.
    """
    from difflib import SequenceMatcher, get_close_matches  # here, needed only for errors

    def key(one: str) -> str:
        return one.lstrip("-").lower()

    wanted = key(name)
    by_key: dict[str, str] = {}
    for one in names:
        by_key.setdefault(key(one), one)
    close = set(get_close_matches(wanted, by_key, n=max(1, len(by_key))))
    ratios = {one: SequenceMatcher(None, one, wanted).ratio() for one in by_key if one in close}
    least = max(ratios.values(), default=0.0) - MAX_BEHIND
    ranked = sorted(ratios, key=lambda one: (-ratios[one], sorted(one) != sorted(wanted)))
    return [by_key[one] for one in ranked if ratios[one] >= least]


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
                found = (one.name for one in islice(entries, MAX_NAMES))
                names = [name for name in found if folder / name != path]
        except OSError:  # it cannot be listed, so nothing in it is close
            continue
        # Temporary files are of a command that runs, or was killed.
        names = [name for name in names if not name.endswith((".part", ".tmp"))]
        similar = filter(is_close, _closest(path.name, sorted(names)))
        close += [folder / name for name in islice(similar, 2)]
    return f" (did you mean {either(list(map(str, close)))}?)" if close else ""


def percent(limit: float) -> str:
    """Write a setting or a limit as a percentage with as many digits as it has: `95%`, `99.5%`."""
    return f"{100 * limit:.4g}%"


def in_percent(share: float) -> str:
    """Write a measured share, in [0, 1], with one decimal place: `94.4%`.

    Only all and nothing are `100.0%` and `0.0%`: others that round to these are `>99.9%`, `<0.1%`.
    """
    return _unless_all_or_nothing(share, f"{100 * share:.1f}%")


def in_percent_down(share: float) -> str:
    """Write a share as `in_percent` does, but rounded down, for comparisons with a limit."""
    return _unless_all_or_nothing(share, f"{math.floor(round(1000 * share, 6)) / 10:.1f}%")


def with_interval(share: float, low: float, high: float) -> str:
    """Write a share with the ends of its interval: `94.4% (89.7% to 97.0%)`."""
    return f"{in_percent(share)} ({in_percent(low)} to {in_percent(high)})"


def with_counts(share: float, low: float, high: float, count: int, total: int) -> str:
    """Write a share with its interval and counts: `94.4% (89.7% to 97.0%), 151/160`."""
    return f"{with_interval(share, low, high)}, {count:,}/{total:,}"


def with_likeliest(label: str, likeliest: str | None, share: float) -> str:
    """Write a label that is no class with the class it may be: `unknown (likeliest cat, 68.6%)`.

    Beside the label alone, the share would read as how sure it is that the image is unknown.

    Args:
        label: The label.
        likeliest: The class whose probability the share is; None if the label is a class.
        share: In [0, 1].
    """
    return label if likeliest is None else f"{label} (likeliest {likeliest}, {in_percent(share)})"


class Accuracy(Protocol):
    """What `score_text` needs of a `Score`."""

    @property
    def accuracy(self) -> float:
        """In [0, 1], like the ends of its interval."""
        ...

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def correct(self) -> int: ...
    @property
    def total(self) -> int: ...


def score_text(score: Accuracy | None, *, is_seen: bool = False) -> str:
    """Write an accuracy with its interval and counts: `94.4% (89.7% to 97.0%), 151/160`.

    Without the interval if the model was trained on the images (`is_seen`), since their accuracy
    says nothing about others.
    """
    if score is None:
        return "-"
    if is_seen:
        return f"{in_percent(score.accuracy)}, {score.correct:,}/{score.total:,}"
    return with_counts(score.accuracy, score.low, score.high, score.correct, score.total)


def size_text(num_bytes: int) -> str:
    """Write a size of a file: `37 kB`, `2.8 MB`."""
    return f"{num_bytes / 1e3:.0f} kB" if num_bytes < 1e5 else f"{num_bytes / 1e6:.1f} MB"


def percent_or_dash(share: float | None) -> str:
    """Write a share as `in_percent` does, or `-` if there is none."""
    return "-" if share is None else in_percent(share)


def _unless_all_or_nothing(share: float, text: str) -> str:
    if text == "100.0%" and share < 1:
        return ">99.9%"
    return "<0.1%" if text == "0.0%" and share > 0 else text


def ordinal(number: float) -> str:
    """Write a number as a place in an order: 1st, 22nd, 99.5th."""
    text = f"{number:g}"
    ends = {"1": "st", "2": "nd", "3": "rd"}
    is_teen = text[-2:] in ("11", "12", "13")
    return text + ("th" if is_teen or "." in text else ends.get(text[-1], "th"))


def minute(created: str) -> str:
    """Shorten an ISO 8601 time to `2026-11-26 12:30`."""
    return created[:16].replace("T", " ")


def seconds(value: float) -> str:
    """Write a short duration: `2.5 s`, or `<0.1 s`."""
    return f"{value:.1f} s" if value >= 0.05 else "<0.1 s"


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
