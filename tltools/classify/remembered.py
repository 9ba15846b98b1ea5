"""What was classified into an output, and by which distances: kept in the user's cache for reports.

The output itself does not say it, because it may be shared, and should not tell others where
images are on this machine.
"""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tltools.atomic import write_text
from tltools.card import Distances, distances_problem
from tltools.data.location import Location
from tltools.data.suffixes import is_archive_name
from tltools.errors import TltoolsError
from tltools.regular import read_regular

MAX_BYTES = 2**20
"""Largest record: inputs are few, or the names of files typed on a command line."""


class Reference(msgspec.Struct, frozen=True):
    """The training images that the distances of a job's images are compared with."""

    run: str
    """Name of the run whose training images these are."""
    distances: Distances
    unknown: float | None
    """The percentile beyond which the job labeled images `unknown`; None if it is not known."""


class _Remembered(msgspec.Struct, frozen=True):
    """The inputs of a job, and which file they are the inputs of."""

    output: str
    """Its absolute path."""
    num_bytes: int
    modified_ns: int
    inputs: list[str] | None
    """Absolute paths; None if the images are not found there."""
    reference: Reference | None = None
    """None for a job without distances."""
    model: str = ""
    """Name of the export that classified; empty if unknown, as in records of earlier versions."""
    sorted_into: str = ""
    """Absolute path of the folder that the images were moved to; empty if they were not."""


def remember_inputs(
    output: Path,
    inputs: Sequence[Location] | None,
    reference: Reference | None = None,
    *,
    model: str = "",
    sorted_into: Path | None = None,
) -> bool:
    """Record the inputs of a finished job; return whether a report can find its images.

    Only a cache that is there is written to: to classify leaves nothing in an empty home.

    Args:
        output: The output on this machine.
        inputs: Folders, images and lists; images at URLs and in archives are never found again.
            None for images that are no longer there.
        reference: What the distances in the output are compared with; None if it has none.
        model: Name of the export.
        sorted_into: The folder of sorted images that the images were moved to; None if they were
            not.
    """
    found = None if inputs is None else _places(inputs)
    if (found is None and reference is None) or not _cache().is_dir():
        return False
    try:
        info = output.stat()
        record = _Remembered(
            output=str(output.absolute()),
            num_bytes=info.st_size,
            modified_ns=info.st_mtime_ns,
            inputs=found,
            reference=reference,
            model=model,
            sorted_into="" if sorted_into is None else str(sorted_into.absolute()),
        )
        write_text(_place(output), msgspec.json.encode(record).decode())
    except (OSError, TltoolsError, UnicodeError):  # no cache, or a name that JSON cannot hold
        return False
    return found is not None


def _places(inputs: Sequence[Location]) -> list[str] | None:
    """Return the absolute paths of inputs; None if images are not found there again."""
    if any(not isinstance(one, Path) or is_archive_name(one.name) for one in inputs):
        return None
    return [str(Path(str(one)).absolute()) for one in inputs]


def remembered_inputs(output: Path) -> list[Path] | None:
    """Return the inputs of the job that wrote this very file; None if they are not known."""
    record = _read(output)
    if record is None or record.inputs is None:
        return None
    return [Path(one) for one in record.inputs]


def remembered_sorted(output: Path) -> Path | None:
    """Return the folder that the images of this very file were moved to; None if there is none."""
    record = _read(output)
    return Path(record.sorted_into) if record is not None and record.sorted_into else None


def remembered_model(output: Path) -> str:
    """Return the name of the export that wrote this very file; empty if it is not known."""
    record = _read(output)
    return "" if record is None else record.model


def remembered_reference(output: Path) -> Reference | None:
    """Return what the distances in this very file are compared with; None if it is not known."""
    record = _read(output)
    found = None if record is None else record.reference
    return None if found is None or distances_problem(found.distances) else found


def _read(output: Path) -> _Remembered | None:
    """Return the record of the job that wrote this very file; None if there is none."""
    try:
        data = read_regular(_place(output), max_bytes=MAX_BYTES)
        record = msgspec.json.decode(data, type=_Remembered)
        info = output.stat()
    except (OSError, msgspec.MsgspecError):
        return None
    now = (str(output.absolute()), info.st_size, info.st_mtime_ns)
    if now != (record.output, record.num_bytes, record.modified_ns):
        return None
    return record


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("tltools", appauthor=False)


def _place(output: Path) -> Path:
    # Two outputs of one checksum replace each other's record; it says whose it is.
    name = f"{zlib.crc32(os.fsencode(output.absolute())):08x}.json"
    return _cache() / "inputs" / name
