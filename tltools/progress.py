"""Progress of long work; the command line shows it as bars."""

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
    """Receiver of progress. The library never prints; the command line passes in a printing one."""

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
        ...

    def say(self, message: str) -> None:
        """Show one line."""
        ...

    def warn(self, message: str) -> None:
        """Show one line as a warning."""
        ...

    def detail(self, message: str) -> None:
        """Show one line if the user wants details."""
        ...


class BarContext(Protocol):
    """Result of `Progress.bar`: a context manager that yields a bar."""

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
        """Show nothing."""


class Silent:
    """Progress that shows nothing: the library's default."""

    @contextmanager
    def bar(
        self,
        description: str,  # noqa: ARG002
        total: int | None,  # noqa: ARG002
        unit: str = "images",  # noqa: ARG002
        *,
        epochs: range | None = None,  # noqa: ARG002
    ) -> Iterator[Bar]:
        """Open a bar that shows nothing."""
        yield _SilentBar()

    def say(self, message: str) -> None:
        """Show nothing."""

    def warn(self, message: str) -> None:
        """Show nothing."""

    def detail(self, message: str) -> None:
        """Show nothing."""


SILENT: Progress = Silent()
