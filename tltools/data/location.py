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
_WEB = ("http", "https")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# A path made of a web address has lost a slash.
_IN_TEXT = re.compile(r"\b(?:https?:/|[A-Za-z][A-Za-z0-9+.-]*://)[^\s\"<>]+", flags=re.IGNORECASE)
_SIGNED = re.compile(
    r"(?:^|[?&;])(?:sig|signature|token|access_token|x-(?:amz|goog|ms)-[a-z-]+|awsaccesskeyid"
    r"|(?:api[_-]?)?key|password)=",
    re.IGNORECASE,
)
"""Parameters that make a query secret, also in an address in which `?` may be part of a name."""


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
        return self.protocol in _WEB

    @property
    def problem(self) -> str | None:
        """Why the URL is refused before any request, without secrets; None if it is not."""
        if self.protocol not in _EXTRAS:
            known = ", ".join(f"{one}://" for one in _EXTRAS)
            return f"{self.protocol}:// is not a protocol that tltools supports; choose {known}"
        user, at, _ = _host(self.text).rpartition("@")
        if at and ":" in user:
            return (
                f"the {self.protocol}:// URL contains a password, which all users of this machine "
                "can see in the process list; use a key, an agent or the service's own "
                "configuration"
            )
        return None

    @property
    def server(self) -> tuple[str, str]:
        """The protocol, and the host with its port and user."""
        return self.protocol, _host(self.text)

    @property
    def local(self) -> Path:
        """The path that a `file://` URL names."""
        return Path(self.text.partition("://")[2])

    @property
    def root(self) -> "Url":
        """The URL of the server, or of its bucket."""
        return Url(f"{self.text.partition('://')[0]}://{_host(self.text)}")

    @property
    def plain(self) -> str:
        """The URL without what may be secret (see `without_secrets`), and without a final `/`."""
        plain = _plain(self.text)
        return plain if plain.endswith("://") else plain.rstrip("/")

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
    return is_address(text) and Url(text).protocol in _EXTRAS


def is_address(text: str) -> bool:
    """Return whether a text is written like a URL, whatever its protocol."""
    return "://" in text and _URL.match(text) is not None


def location(text: str) -> Location:
    """Return the location that a text names.

    Raises:
        ConfigError: If it is a URL with a password or an unsupported protocol.
    """
    if not is_address(text):
        return Path(text)
    url = Url(text)
    if url.protocol == "file":
        return url.local
    if url.problem is not None:
        raise ConfigError(url.problem)
    return url


def without_secrets(text: str) -> str:
    """Remove from all addresses in a text what may be secret.

    These are a password, the user of a web address (often a token), what follows the `?` or `#` of
    a web address, and what follows the `?` of another one if it looks like a signature.
    """
    return _IN_TEXT.sub(_plain_match, text) if ":/" in text else text


def _plain_match(match: re.Match[str]) -> str:
    text = match[0]
    is_path = "://" not in text
    address = text.replace(":/", "://", 1) if is_path else text
    plain = _plain(address)
    if plain == address:
        return text
    # The punctuation of the sentence that the address is in.
    rest = text[len(text.rstrip("'`;:,.)]}")) :]
    return (plain.replace("://", ":/", 1) if is_path else plain) + rest


def without_query(address: str) -> str:
    """Return a web address, or a relative one, without what follows its `?` or `#`."""
    return re.split("[?#]", address, maxsplit=1)[0]


def web_folder(address: str) -> str:
    """Return what the web addresses of all files in a folder start with, up to the last `/`."""
    return without_query(address).rstrip("/") + "/"


def _host(text: str) -> str:
    """Return the host of an address, with its user, password and port."""
    rest = text.partition("://")[2]
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    _, colon, port = host.rpartition(":")
    if colon and "@" in rest[len(host) :] and not (port.isdigit() or port.endswith("]")):
        # No port, therefore the start of a password that was not percent-encoded.
        before, at, after = rest.rpartition("@")
        host = before + at + re.split(r"[/?#]", after, maxsplit=1)[0]
    return host


def _plain(text: str) -> str:
    """Return an address without what may be secret."""
    protocol, _, rest = text.partition("://")
    host = _host(text)
    path = rest[len(host) :]
    user, at, server = host.rpartition("@")
    if protocol.lower() in _WEB:
        return f"{protocol}://{server}{without_query(path)}"
    start, _, query = path.partition("?")
    if _SIGNED.search(query):
        path = start
    return f"{protocol}://{user.partition(':')[0]}{at}{server}{path}"
