"""List images on servers, and prefetch them for decoding."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tltools.data.image_ref import MAX_FILE_BYTES, ImageRef, RemoteObject
from tltools.data.location import Url, is_url
from tltools.data.remote import READS, Entry, Remote, RemoteFile, list_files, remote_reason
from tltools.data.suffixes import is_archive_name, is_image_name
from tltools.errors import DataError

MAX_AHEAD = 2**26
"""Largest number of bytes requested or waiting to be decoded; a single file may exceed it."""

Image = TypeVar("Image", bound=ImageRef)


def list_remote(
    url: Url,
    *,
    on_error: Callable[[DataError], None] | None,
    on_others: Callable[[Sequence[str]], None] | None = None,
) -> Iterator[list[ImageRef]]:
    """List the images of a folder or an archive on a server, or a single image.

    Args:
        url: A folder, an archive or an image.
        on_error: See `list_files` and `list_archive`.
        on_others: Called with the names of files without an image suffix.

    Yields:
        Lists of images; names are relative to the folder or archive, and the name of a single image
        is its URL.

    Raises:
        DataError: See `list_files`; or if the URL does not exist.
        UnreachableError: If the server cannot be reached.
    """
    remote = Remote(url)
    if is_archive_name(url.name):
        from tltools.data.archives import list_archive  # here, because most jobs do without it

        archive = RemoteFile(remote)
        try:
            archive.size  # noqa: B018 - requested now, so that a missing archive is an error
        except OSError as error:
            raise DataError(f"cannot read {url}: {remote_reason(error)}") from error
        yield from list_archive(archive, on_error=on_error, on_others=on_others)
        return
    if is_image_name(url.name) and _is_file(remote):
        yield [ImageRef(url.plain, _object(remote, url))]
        return
    for entries in list_files(remote, on_error=on_error):
        some = [entry for entry in entries if is_image_name(entry.name)]
        if on_others is not None and len(some) < len(entries):
            on_others([entry.name for entry in entries if not is_image_name(entry.name)])
        if some:
            yield [_listed(remote, entry) for entry in some]


def _is_file(remote: Remote) -> bool:
    try:
        return remote.info(remote.url)["type"] != "directory"
    except OSError as error:
        raise DataError(f"cannot read {remote.url}: {remote_reason(error)}") from error


def _object(remote: Remote, url: Url) -> RemoteObject:
    """Return the file at a URL on `remote`'s server; no request is made yet."""
    path = remote.path_of(url)
    return RemoteObject(lambda: remote.read(path), url=url)


def _listed(remote: Remote, entry: Entry) -> ImageRef:
    found = RemoteObject(
        lambda: remote.read(entry.path),
        num_bytes=entry.num_bytes,
        url=remote.url.joined(entry.name),
    )
    return ImageRef(entry.name, found)


class Remotes:
    """The servers of a list of URLs, one connection for each."""

    def __init__(self) -> None:
        """Start without servers."""
        self._remotes: dict[tuple[str, str], Remote] = {}

    def image(self, name: str, place: str | Url) -> ImageRef:
        """Refer to the image at a path or a URL; no request is made yet.

        Raises:
            ConfigError: If a package that the URL's protocol needs is not installed.
        """
        if isinstance(place, str):
            if not is_url(place):
                return ImageRef(name, place)
            place = Url(place)
        server = (place.protocol, place.text.partition("://")[2].partition("/")[0])
        if server not in self._remotes:
            self._remotes[server] = Remote(place)
        return ImageRef(name, _object(self._remotes[server], place))


def fetch_ahead(images: Iterable[Image]) -> Iterator[Image]:
    """Yield images in order; those on servers after their bytes have been fetched.

    Decoding therefore never waits for a server. Other images are passed on unchanged.

    Args:
        images: Consumed up to `READS` ahead if they are on servers, otherwise one by one.

    Raises:
        UnreachableError: At the first image whose server cannot be reached.
    """
    waiting: deque[tuple[Image, Future[bytes | OSError] | None]] = deque()
    executor: ThreadPoolExecutor | None = None
    num_bytes = 0

    def arrive() -> Image:
        """Wait for the bytes of the first image and attach them to it."""
        nonlocal num_bytes
        image, future = waiting.popleft()
        if future is not None and isinstance(image.place, RemoteObject):
            num_bytes -= image.place.num_bytes
            image.place.hold(future.result())
        return image

    try:
        for image in images:
            place = image.place
            if isinstance(place, RemoteObject):
                executor = executor or ThreadPoolExecutor(READS, "fetch")
                while waiting and num_bytes + place.num_bytes > MAX_AHEAD:
                    yield arrive()
                waiting.append((image, executor.submit(_fetch, place)))
                num_bytes += place.num_bytes
            elif waiting:
                waiting.append((image, None))
            else:
                yield image
                continue
            while len(waiting) > READS or (waiting and _is_here(waiting[0][1])):
                yield arrive()
        while waiting:
            yield arrive()
    finally:
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)


def _fetch(place: RemoteObject) -> bytes | OSError:
    """Return a file's bytes, or the error that occurred."""
    if place.num_bytes > MAX_FILE_BYTES:
        return OSError(f"the file has {place.num_bytes:,} bytes, more than {MAX_FILE_BYTES:,}")
    try:
        return place.fetch()
    except OSError as error:
        return error


def _is_here(future: "Future[bytes | OSError] | None") -> bool:
    return future is None or future.done()
