"""References to images: where their bytes are, and their names in results."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    from tltools.data.location import Url
    from tltools.errors import DataError

MAX_FILE_BYTES = 2**29
"""Largest image file, in bytes; it is read as a whole. The largest number of pixels that is decoded
takes no more, uncompressed, with three channels of 16 bits."""
UNKNOWN_BYTES = 2**21
"""Assumed size of a file whose server does not report one."""


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of an image that is not a file of its own, such as a member of an archive."""

    read: Callable[[], bytes]
    """Returns the bytes, from any thread; raises OSError with a reason if they are unavailable."""
    is_portable: bool = False
    """Whether `read` can be pickled; if not, it is called before the image leaves this process."""

    @classmethod
    def of(cls, data: bytes | OSError) -> "Self":
        """Hold bytes in memory, or the reason why there are none."""
        return cls(partial(_give, data), is_portable=True)

    def __reduce__(self) -> "tuple[type[Content], tuple[object, ...]]":
        """Pickle the content; what is not portable is read first."""
        read = self.read if self.is_portable else Content.of(_read_now(self.read)).read
        return Content, (read, True)


class RemoteObject:
    """The bytes of a file on a server, which can be fetched before they are read."""

    __slots__ = ("_held", "fetch", "fetch_small", "num_bytes", "url")

    def __init__(
        self,
        fetch: Callable[[], bytes],
        *,
        fetch_small: Callable[[int], bytes] | None = None,
        num_bytes: int | None = None,
        url: "Url | None" = None,
    ) -> None:
        """Describe a file.

        Args:
            fetch: Returns the bytes, from any thread; raises OSError if the file is unavailable,
                and UnreachableError if its server is.
            fetch_small: Like `fetch`, but raises TooLargeError if there are more bytes than its
                argument; None if the size is known.
            num_bytes: Size of the file; None if the server does not report it.
            url: URL of the file; None for a member of an archive.
        """
        self.fetch = fetch
        self.fetch_small = fetch_small
        self.num_bytes = UNKNOWN_BYTES if num_bytes is None else num_bytes
        self.url = url
        self._held: bytes | OSError | None = None

    def hold(self, fetched: bytes | OSError) -> None:
        """Keep what was fetched, or why that failed, until it is read."""
        self._held = fetched

    def read(self) -> bytes:
        """Return the bytes that were kept, which are then freed, or fetch them now.

        Raises:
            OSError: If the file is unavailable.
            UnreachableError: If its server cannot be reached.
        """
        held, self._held = self._held, None
        return self.fetch() if held is None else _give(held)

    def __reduce__(self) -> "tuple[type[Content], tuple[object, ...]]":
        """Pickle the bytes, fetching them first."""
        return Content, (Content.of(_read_now(self.read)).read, True)


class Decoded(NamedTuple):
    """The pixels of an image that needs no decoding."""

    pixels: "NDArray[np.uint8] | DataError"
    """Model input, uint8 (size, size, 3), RGB; or the error of an unreadable image."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image that has not been read yet, with its name in results."""

    name: str
    """Name with `/` between folders; bytes that are not UTF-8 are surrogates."""
    place: str | Content | RemoteObject | Decoded
    """The path of a file as a str, which costs a listing a tenth of a `Path`; or an object that
    provides the image."""

    @classmethod
    def of_file(cls, path: str | Path, *, name: str | None = None) -> "Self":
        """Refer to a file; its name in results is `name`, or its path if that is None."""
        return cls(Path(path).as_posix() if name is None else name, str(path))

    @property
    def is_decoded(self) -> bool:
        """Whether its pixels are already in memory."""
        return isinstance(self.place, Decoded)

    def within(self, prefix: str) -> "ImageRef":
        """Return the same image with a prefix added to its name."""
        return ImageRef(prefix + self.name, self.place) if prefix else self


def _give(data: bytes | OSError) -> bytes:
    if isinstance(data, OSError):
        raise data
    return data


def _read_now(read: Callable[[], bytes]) -> bytes | OSError:
    try:
        return read()
    except OSError as error:
        return error
