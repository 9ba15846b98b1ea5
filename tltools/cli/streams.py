"""Standard streams that cannot be used: a lost terminal or a full disk must lose no work."""

import io
import os
import sys
from contextlib import suppress
from typing import Any

_STDOUT, _STDERR = 1, 2


def secure_streams() -> None:
    """Make messages that cannot be written disappear, and keep files off closed streams.

    If standard error is closed or full, a job goes on. Standard output holds results, so that
    writing to it still fails.
    """
    for number in range(_STDERR + 1):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would take its place
            # Standard output takes no results then: a file opened for reading refuses them.
            os.open(os.devnull, os.O_WRONLY if number == _STDERR else os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = os.fdopen(_STDOUT, "w", encoding="utf-8", closefd=False)
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Forgiving()),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )


class _Forgiving(io.RawIOBase):
    """Standard error; what cannot be written is dropped."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _STDERR

    def isatty(self) -> bool:
        try:
            return os.isatty(_STDERR)
        except OSError:
            return False

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        with suppress(OSError):
            while left:
                left = left[os.write(_STDERR, left) :]
        return size
