"""What machines tell one another: values in tables of one column, errors, and what must agree."""

import hashlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tltools import __version__, errors
from tltools.errors import ArtifactError, ConfigError, TltoolsError

if TYPE_CHECKING:
    import pyarrow

Failure = tuple[str, str]
"""Name of an error's class and its message: an error on its way from another machine."""


def value_table(value: bytes) -> "pyarrow.Table":
    """Return a table with one row, `value`: what goes from one task to another."""
    import pyarrow

    return pyarrow.table({"value": pyarrow.array([value], pyarrow.binary())})


def table_values(table: "pyarrow.Table") -> list[bytes]:
    """Return what `value_table` put into the rows of a table."""
    return table.column("value").to_pylist()


def failure_here(error: TltoolsError) -> Failure:
    """Return what to tell the driver of an error on this machine."""
    return type(error).__name__, f"on {socket.gethostname()}: {error}"


def from_failure(failure: Failure) -> TltoolsError:
    """Return the error that another process told of."""
    kind, message = failure
    return getattr(errors, kind)(message)


def check_version(wanted: str) -> None:
    """See that this machine has the driver's tltools.

    Raises:
        ConfigError: If not.
    """
    if __version__ != wanted:
        raise ConfigError(
            f"this machine has tltools {__version__}, and the command's {wanted}; install the same"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(model: Path, digest: str) -> None:
    """See that a model's file on this machine is the command's.

    Raises:
        ArtifactError: If not.
    """
    if file_sha256(model) != digest:
        raise ArtifactError(f"{model} is another file than on the machine of the command")
