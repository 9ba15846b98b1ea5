"""Places of files: on this machine, or at a URL."""

import re
from dataclasses import dataclass
from pathlib import Path

from tltools.errors import ConfigError

_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "az"),
    **dict.fromkeys(("sftp", "ssh"), "sftp"),
    **dict.fromkeys(("http", "https"), "https"),
}
"""The kind of server that each known protocol speaks to."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True, repr=False)
class Url:
    """A place that fsspec reaches, where a `Path` names one of this machine."""

    text: str
    """As given."""

    @property
    def protocol(self) -> str:
        """What stands before `://`, in lower case."""
        return self.text.partition("://")[0].lower()

    @property
    def kind(self) -> str:
        """The extra of tltools that brings what the protocol needs: `s3`, `sftp` and so on."""
        return _EXTRAS[self.protocol]

    @property
    def is_web(self) -> bool:
        """Whether what follows a `?` is no part of the name, and may be a signature."""
        return self.protocol in ("http", "https")

    @property
    def plain(self) -> str:
        """The URL without what may be secret in it, and without a `/` at the end."""
        return (self.text.partition("?")[0] if self.is_web else self.text).rstrip("/")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.plain.partition("://")[2].rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The last suffix of the name, with its dot."""
        return Path(self.name).suffix

    def __str__(self) -> str:
        """Return what may be printed and kept."""
        return self.plain

    def __repr__(self) -> str:
        """Return the same, quoted."""
        return repr(self.plain)

    def as_posix(self) -> str:
        """Return the same, for results."""
        return self.plain

    @property
    def parent(self) -> "Url":
        """The folder that it is in."""
        return Url(self.plain.rpartition("/")[0])

    def joined(self, name: str) -> "Url":
        """Return the URL of what is called `name`, with `/` between folders, below this one."""
        start, mark, query = self.text.partition("?") if self.is_web else (self.text, "", "")
        return Url(f"{start.rstrip('/')}/{name}{mark}{query}")


Location = Path | Url
"""A place on this machine or elsewhere."""


def is_url(text: str) -> bool:
    """Tell whether a text is a URL of a protocol that is known, and no path."""
    found = _URL.match(text) if "://" in text else None
    return found is not None and found[1].lower() in _EXTRAS


def location(text: str) -> Location:
    """Return the place that a text names.

    Raises:
        ConfigError: If it is a URL with a password, or of no protocol that is known.
    """
    found = _URL.match(text) if "://" in text else None
    if found is None:
        return Path(text)
    protocol, rest = found[1], text[found.end() :]
    if protocol.lower() == "file":
        return Path(rest)
    if "::" in text or not is_url(text):
        known = ", ".join(f"{one}://" for one in _EXTRAS)
        raise ConfigError(f"{protocol}:// is not a protocol that tltools reads; choose {known}")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise ConfigError(
            f"the {protocol}:// URL holds a password, which everybody on this machine can read in "
            "the list of processes; use a key, an agent or the service's own configuration"
        )
    return Url(text)
