"""What was classified into an output: kept in the user's cache, so that a report finds the images.

The output itself does not say it, because it may be shared, and should not tell others where
images are on this machine.
"""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tltools.atomic import write_text
from tltools.data.location import Location
from tltools.data.suffixes import is_archive_name
from tltools.errors import TltoolsError
from tltools.regular import read_regular

MAX_BYTES = 2**20
"""Largest record: inputs are few, or the names of files typed on a command line."""


class _Remembered(msgspec.Struct, frozen=True):
    """The inputs of a job, and which file they are the inputs of."""

    output: str
    """Its absolute path."""
    num_bytes: int
    modified_ns: int
    inputs: list[str]
    """Absolute paths."""


def remember_inputs(output: Path, inputs: Sequence[Location]) -> bool:
    """Record the inputs of a finished job; return whether a report can find its images.

    Only a cache that is there is written to: to classify leaves nothing in an empty home.

    Args:
        output: The output on this machine.
        inputs: Folders, images and lists; images at URLs and in archives are never found again.
    """
    if any(not isinstance(one, Path) or is_archive_name(one.name) for one in inputs):
        return False
    if not _cache().is_dir():
        return False
    try:
        info = output.stat()
        record = _Remembered(
            output=str(output.absolute()),
            num_bytes=info.st_size,
            modified_ns=info.st_mtime_ns,
            inputs=[str(Path(str(one)).absolute()) for one in inputs],
        )
        write_text(_place(output), msgspec.json.encode(record).decode())
    except (OSError, TltoolsError, UnicodeError):  # no cache, or a name that JSON cannot hold
        return False
    return True


def remembered_inputs(output: Path) -> list[Path] | None:
    """Return the inputs of the job that wrote this very file; None if they are not known."""
    try:
        data = read_regular(_place(output), max_bytes=MAX_BYTES)
        record = msgspec.json.decode(data, type=_Remembered)
        info = output.stat()
    except (OSError, msgspec.MsgspecError):
        return None
    now = (str(output.absolute()), info.st_size, info.st_mtime_ns)
    if now != (record.output, record.num_bytes, record.modified_ns):
        return None
    return [Path(one) for one in record.inputs]


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("tltools", appauthor=False)


def _place(output: Path) -> Path:
    # Two outputs of one checksum replace each other's record; it says whose it is.
    name = f"{zlib.crc32(os.fsencode(output.absolute())):08x}.json"
    return _cache() / "inputs" / name
