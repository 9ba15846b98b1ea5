"""Messages between machines: values in one-column tables, errors, and checks that they agree."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tltools import __version__, errors
from tltools.errors import ArtifactError, ConfigError, TltoolsError
from tltools.regular import regular_sha256

if TYPE_CHECKING:
    import pyarrow

Failure = tuple[str, str]
"""An error from another machine: the name of its class and its message."""


def value_table(value: bytes) -> "pyarrow.Table":
    """Return a table with one row, `value`, to pass from one task to another."""
    import pyarrow

    return pyarrow.table({"value": pyarrow.array([value], pyarrow.binary())})


def table_values(table: "pyarrow.Table") -> list[bytes]:
    """Return the values that `value_table` put into the rows of a table."""
    return table.column("value").to_pylist()


def failure_here(error: TltoolsError) -> Failure:
    """Return an error on this machine as a message for the driver."""
    return type(error).__name__, f"on {socket.gethostname()}: {error}"


def from_failure(failure: Failure) -> TltoolsError:
    """Return the error that another process reported."""
    kind, message = failure
    return getattr(errors, kind)(message)


def check_version(wanted: str) -> None:
    """Check that this machine has the driver's version of tltools.

    Raises:
        ConfigError: If it has not.
    """
    if __version__ != wanted:
        raise ConfigError(
            f"this machine has tltools {__version__}, but the driver has {wanted}; install the "
            "same version"
        )


def check_digest(model: Path, digest: str) -> None:
    """Check that a model file on this machine is the same as the driver's.

    Raises:
        ArtifactError: If it is not.
    """
    if regular_sha256(model) != digest:
        raise ArtifactError(f"{model} differs from the file on the driver's machine; copy that one")
