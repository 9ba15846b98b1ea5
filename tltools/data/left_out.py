"""Files that a search for images leaves out because of their names: counted, and looked into."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tltools.data.suffixes import suffix_of
from tltools.errors import DataError

MAX_LOOKED_INTO = 100
"""Files of one suffix whose first bytes are read, to learn whether they are images."""


class LeftOut:
    """Counts the files without an image suffix, and reports those that are images nonetheless."""

    def __init__(self, on_image: Callable[[DataError], None] | None = None) -> None:
        """Start counting.

        Args:
            on_image: Called once per suffix with an error that names an image of that suffix; None
                to look into no file.
        """
        self._on_image = on_image
        self._counts: Counter[str] = Counter()
        self._num_looked_into: Counter[str] = Counter()

    def add(self, folder: Path | None, names: Iterable[str]) -> None:
        """Count files; those of a folder on this machine are looked into."""
        for name in names:
            suffix = suffix_of(name)
            self._counts[suffix] += 1
            if folder is None or self._on_image is None:
                continue
            if self._num_looked_into[suffix] >= MAX_LOOKED_INTO:
                continue
            self._num_looked_into[suffix] += 1
            if _is_image(folder / name):
                self._num_looked_into[suffix] = MAX_LOOKED_INTO
                kind = f"names in {suffix}" if suffix else "names without a suffix"
                self._on_image(
                    DataError(
                        f"{folder / name} is an image, but {kind} are not searched for; rename "
                        "such files, or name them in a .txt list"
                    )
                )

    def counts(self) -> dict[str, int]:
        """Return the number of files by lowercase suffix, most frequent first; `""` has none."""
        return dict(self._counts.most_common())


def describe_counts(counts: Mapping[str, int], most: int = 10) -> str:
    """Describe the numbers of files without an image suffix, by suffix, in one line."""
    kinds = [f"{count} {suffix or 'no suffix'}" for suffix, count in counts.items()]
    more = f", and {len(kinds) - most} more suffixes" if len(kinds) > most + 1 else ""
    shown = kinds[:most] if more else kinds
    return f"Left out, without an image suffix: {', '.join(shown)}{more}"


def _is_image(path: Path) -> bool:
    """Return whether a file starts like an image; False if it cannot be read."""
    # Here, because most folders have images only.
    from tltools.data.image_formats import HEAD_BYTES, is_image_start

    try:
        # Opening a FIFO would block.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):
        return False
    try:
        is_file = stat.S_ISREG(os.fstat(handle).st_mode)
        return is_file and is_image_start(os.read(handle, HEAD_BYTES))
    except OSError:
        return False
    finally:
        os.close(handle)
