"""What the library says while long work goes on; the command line turns it into bars."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol


class Bar(Protocol):
    """One piece of work in progress."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report that `amount` more units are done; `note` is shown beside the bar."""
        ...


class Progress(Protocol):
    """Where long work is reported. The library never prints; the command line passes one in."""

    def bar(self, description: str, total: int | None, unit: str = "images") -> "BarContext":
        """Open a bar over `total` units (None: unknown), for use in a `with` statement."""
        ...

    def say(self, message: str) -> None:
        """Tell the user one line that is worth knowing."""
        ...

    def warn(self, message: str) -> None:
        """Tell the user one line that they should not miss."""
        ...

    def detail(self, message: str) -> None:
        """Tell who wants to know everything one line more."""
        ...


class BarContext(Protocol):
    """What `Progress.bar` returns: a context manager that yields a bar."""

    def __enter__(self) -> Bar:
        """Show the bar."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> bool | None:
        """Finish the bar."""
        ...


class _SilentBar:
    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report nothing."""


class Silent:
    """Progress that nobody watches: the library's default."""

    @contextmanager
    def bar(
        self,
        description: str,  # noqa: ARG002
        total: int | None,  # noqa: ARG002
        unit: str = "images",  # noqa: ARG002
    ) -> Iterator[Bar]:
        """Open a bar that shows nothing."""
        yield _SilentBar()

    def say(self, message: str) -> None:
        """Say nothing."""

    def warn(self, message: str) -> None:
        """Say nothing."""

    def detail(self, message: str) -> None:
        """Say nothing."""


SILENT: Progress = Silent()
