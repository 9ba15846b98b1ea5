"""Why a file could not be read, and whether the file or what it lies on is to blame."""

import errno
import os

from tltools.errors import UnreachableError, cause_of

_FAILING = ("EIO", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN", "EREMOTEIO", "ENOMEDIUM", "EMEDIUMTYPE")
_AWAY = ("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ETIMEDOUT", "ECONNABORTED")
_KEYS = ("ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED")
_FILES, _MEMORY = ("EMFILE", "ENFILE"), ("ENOMEM",)
_REMEDIES = {
    getattr(errno, name): remedy
    for names, remedy in (
        (_FAILING, "reconnect its disk or share, or move the file away if it alone is damaged"),
        (_AWAY, "reconnect its share"),
        (_KEYS, "renew the credentials of its share"),
        (_FILES, "close other programs, or raise the limit of open files (ulimit -n)"),
        (_MEMORY, "close other programs"),
    )
    for name in names
    if hasattr(errno, name)
}
ENVIRONMENT = frozenset(_REMEDIES)
"""Error numbers of a disk, a share or a system that fails: other files fail with it."""
GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
"""Error numbers of a file or folder that does not exist."""


def refuse_failing(path: object, error: BaseException) -> None:
    """Stop if a file on this machine could not be read because the environment fails.

    Args:
        path: The file or folder.
        error: The error of reading it.

    Raises:
        UnreachableError: If the disk, the share or the system is to blame, so that other files
            would fail with it.
    """
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        raise UnreachableError(
            f"cannot read {path}: {cause_of(error)}; {_REMEDIES[error.errno]}, then run it again"
        ) from error


def identity_of(path: str) -> tuple[int, int] | None:
    """Return what tells a file or folder from another at the same path; None if it is gone."""
    try:
        info = os.stat(path)  # noqa: PTH116 - called for many images
    except (OSError, ValueError):
        return None
    return info.st_dev, info.st_ino
