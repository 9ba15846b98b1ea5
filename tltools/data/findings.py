"""What an audit of labeled images finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One finding of the audit of a data set."""

    severity: Severity
    """`error`: training is impossible; `warning`: images were skipped, or results may mislead; or
    `note`."""
    kind: str
    """A stable identifier for programs: `missing`, `unreadable`, `copies`, `contradiction`, ..."""
    message: str
    """One line: what was found, how often, and what was skipped or should be done."""
    paths: tuple[str, ...] = ()
    """All affected images."""


def shorten(items: Iterable[object], *, limit: int = 10, separator: str = ", ") -> str:
    """Join the first `limit` items for a one-line message, and count the rest."""
    texts = [text if text.isprintable() else repr(text) for text in map(str, items)]
    rest = f" and {len(texts) - limit:,} more" if len(texts) > limit else ""
    return separator.join(texts[:limit]) + rest
