"""Open files that strangers may have made: regular files only, no larger than expected.

A pipe, a socket or a device would block the program or never end, and a file with holes may claim
any size.
"""

import os
import stat
from io import BufferedReader
from pathlib import Path

_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
# Opening a pipe would wait for its other end, if it took a file's place after the check.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def check_regular(path: Path, *, max_bytes: int | None = None) -> None:
    """Check a file that a library is about to open.

    Raises:
        OSError: If the path does not exist, is not a regular file, or is larger than `max_bytes`.
    """
    _check(os.stat(path), max_bytes)  # noqa: PTH116 - follows links, like opening


def open_regular(path: Path, *, max_bytes: int | None = None) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: As for `check_regular`, or if it cannot be read.
    """
    check_regular(path, max_bytes=max_bytes)
    handle = os.open(path, _FLAGS | _NO_WAIT)
    try:
        _check(os.fstat(handle), max_bytes)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: As for `open_regular`.
    """
    with open_regular(path, max_bytes=max_bytes) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # it is growing
        raise OSError(_too_large(len(data), max_bytes))
    return data


def regular_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file's bytes as 64 hexadecimal digits.

    Raises:
        OSError: As for `open_regular`.
    """
    import hashlib  # here, because most jobs do without it

    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(info: os.stat_result, max_bytes: int | None) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise OSError("it is a folder" if stat.S_ISDIR(info.st_mode) else "it is not a file")
    if max_bytes is not None and info.st_size > max_bytes:
        raise OSError(_too_large(info.st_size, max_bytes))


def _too_large(num_bytes: int, max_bytes: int) -> str:
    return f"it has {num_bytes:,} bytes, more than {max_bytes:,}"
