"""Every error that tltools raises deliberately.

TltoolsError (exit code 1)
├── ConfigError    an invalid setting or combination of settings (exit code 2)
├── DataError      an image, label file or folder is missing, empty or malformed
│   └── MissingError   an image cannot be opened
├── ModelError     an unknown architecture, or weights that are missing or do not fit
├── ArtifactError  a run or an export cannot be read, or lacks its card
├── ParityError    an exported model disagrees with its source (exit code 3)
├── DeviceError    the requested device or execution provider is not usable here
└── UnreachableError  a server, a disk or a share does not answer, or refuses access

A message is written where it is raised. It names parameters in backticks, and the command line
turns them into options (`console.in_options`): to find a message, search for its other words.
"""

from collections.abc import Sequence


class TltoolsError(Exception):
    """An error that a user can fix; the message says what is wrong and what to do."""

    exit_code = 1


class ConfigError(TltoolsError, ValueError):
    """An invalid setting or combination of settings."""

    exit_code = 2


class DataError(TltoolsError):
    """An image, a label file or a folder is missing, empty or malformed."""


class MissingError(DataError):
    """An image cannot be opened: it does not exist, or access is denied."""


class ModelError(TltoolsError):
    """An unknown architecture, or weights that are missing or do not fit it."""


class ArtifactError(TltoolsError):
    """A run or an export cannot be read, or lacks its card."""


class ParityError(TltoolsError):
    """An exported model disagrees with its PyTorch model."""

    exit_code = 3


class DeviceError(TltoolsError):
    """The requested device or execution provider is not usable here."""


class UnreachableError(TltoolsError):
    """A server, a disk or a share does not answer, or refuses access, whichever file is requested.

    What a job reads is no longer there: it stops, and resumes once it is there again.
    """


def raise_all(failures: Sequence[TltoolsError]) -> None:
    """Raise a failure, or several as one of the first one's type; return if there is none."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise type(failures[0])("; ".join(map(str, failures)))


def problem_of(error: TltoolsError) -> str:
    """Return what is wrong, without the remedy, which follows the first semicolon of a message."""
    return str(error).partition(";")[0]


def cause_of(error: BaseException) -> str:
    """Return why something failed, in one line, without the path that the system adds."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return first_line(error)


def first_line(error: object) -> str:
    """Return the first line of an error's message, or the name of its type if it has none.

    Messages of libraries can be many lines long; the first one names the problem.
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip() if lines else type(error).__name__
