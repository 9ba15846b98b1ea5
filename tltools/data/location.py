"""Locations of files: a path on this machine, or a URL."""

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
"""The kind of server of each supported protocol."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True, repr=False)
class Url:
    """A location that fsspec can reach; a `Path` is one on this machine."""

    text: str
    """The URL as given."""

    @property
    def protocol(self) -> str:
        """The part before `://`, in lowercase."""
        return self.text.partition("://")[0].lower()

    @property
    def kind(self) -> str:
        """The extra of tltools that installs the protocol's packages: `s3`, `sftp` and so on."""
        return _EXTRAS[self.protocol]

    @property
    def is_web(self) -> bool:
        """Whether the part after a `?` is a query, which may hold a signature."""
        return self.protocol in ("http", "https")

    @property
    def plain(self) -> str:
        """The URL without a query, which may be secret, and without a trailing `/`."""
        return (self.text.partition("?")[0] if self.is_web else self.text).rstrip("/")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.plain.partition("://")[2].rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The last suffix of the name, including the dot."""
        return Path(self.name).suffix

    def __str__(self) -> str:
        """Return the URL without secrets, which may be printed and stored."""
        return self.plain

    def __repr__(self) -> str:
        """Return the URL without secrets, quoted."""
        return repr(self.plain)

    def as_posix(self) -> str:
        """Return the URL without secrets, for results."""
        return self.plain

    @property
    def parent(self) -> "Url":
        """The URL of the parent folder."""
        return Url(self.plain.rpartition("/")[0])

    def joined(self, name: str) -> "Url":
        """Return the URL of `name`, with `/` between folders, below this one."""
        start, mark, query = self.text.partition("?") if self.is_web else (self.text, "", "")
        return Url(f"{start.rstrip('/')}/{name}{mark}{query}")


Location = Path | Url
"""A path on this machine, or a URL."""


def is_url(text: str) -> bool:
    """Return whether a text is a URL with a supported protocol."""
    found = _URL.match(text) if "://" in text else None
    return found is not None and found[1].lower() in _EXTRAS


def location(text: str) -> Location:
    """Return the location that a text names.

    Raises:
        ConfigError: If it is a URL with a password or an unsupported protocol.
    """
    found = _URL.match(text) if "://" in text else None
    if found is None:
        return Path(text)
    protocol, rest = found[1], text[found.end() :]
    if protocol.lower() == "file":
        return Path(rest)
    if "::" in text or not is_url(text):
        known = ", ".join(f"{one}://" for one in _EXTRAS)
        raise ConfigError(f"{protocol}:// is not a protocol that tltools supports; choose {known}")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise ConfigError(
            f"the {protocol}:// URL contains a password, which all users of this machine can see "
            "in the process list; use a key, an agent or the service's own configuration"
        )
    return Url(text)
