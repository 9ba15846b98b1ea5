"""List images on servers, and prefetch them for decoding."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from tltools.data.answers import TooLargeError
from tltools.data.image_ref import MAX_FILE_BYTES, ImageRef, RemoteObject
from tltools.data.location import Url, is_address
from tltools.data.remote import (
    READS,
    Answered,
    Entry,
    Remote,
    RemoteFile,
    list_files,
    remote_reason,
)
from tltools.data.suffixes import is_archive_name, is_image_name
from tltools.errors import DataError

MAX_AHEAD = 2**26
"""Largest number of bytes requested or waiting to be decoded; a single file may exceed it."""
MAX_UNSIZED = 2**24
"""Largest file of unknown size that is fetched ahead, in bytes. Any larger one is given up there
and fetched again, alone, when it is its turn: otherwise each of the requests that run at the same
time could take as much memory as the largest file."""

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
    return _unread(remote, remote.path_of(url), url, None)


def _listed(remote: Remote, entry: Entry) -> ImageRef:
    url = remote.url.joined(entry.name)
    return ImageRef(entry.name, _unread(remote, entry.path, url, entry.num_bytes))


def _unread(remote: Remote, path: str, url: Url, num_bytes: int | None) -> RemoteObject:
    def fetch(most: int | None = None) -> bytes:
        return remote.read(path, url, max_bytes=most)

    if num_bytes is not None:
        return RemoteObject(fetch, num_bytes=num_bytes, url=url)
    return RemoteObject(partial(fetch, MAX_FILE_BYTES), fetch_small=fetch, url=url)


class Remotes:
    """The servers of a list of URLs, one connection for each."""

    def __init__(self) -> None:
        """Start without servers."""
        self._remotes: dict[tuple[str, str], Remote] = {}
        self._answered = Answered()

    def image(self, name: str, place: str | Url) -> ImageRef:
        """Refer to the image at a path or a URL; no request is made yet.

        The image of a URL that is refused, such as one with a password, cannot be read.

        Raises:
            ConfigError: If a package that the URL's protocol needs is not installed.
        """
        if isinstance(place, str):
            if not is_address(place):
                return ImageRef(name, place)
            place = Url(place)
        if place.problem is not None:
            refused = partial(_refuse, place.problem)
            return ImageRef(name, RemoteObject(refused, num_bytes=0, url=place))
        if place.server not in self._remotes:
            self._remotes[place.server] = Remote(place, self._answered)
        return ImageRef(name, _object(self._remotes[place.server], place))


def _refuse(problem: str) -> bytes:
    raise OSError(problem)


def fetch_ahead(images: Iterable[Image]) -> Iterator[Image]:
    """Yield images in order; those on servers after their bytes have been fetched.

    Decoding therefore never waits for a server. Other images are passed on unchanged.

    Args:
        images: Consumed up to `READS` ahead if they are on servers, otherwise one by one.

    Raises:
        UnreachableError: At the first image whose server cannot be reached.
    """
    waiting: deque[tuple[Image, Future[_Fetched] | None]] = deque()
    executor: ThreadPoolExecutor | None = None
    num_bytes = 0

    def arrive() -> Image:
        """Wait for the bytes of the first image and attach them to it."""
        nonlocal num_bytes
        image, future = waiting.popleft()
        if future is not None and isinstance(image.place, RemoteObject):
            num_bytes -= image.place.num_bytes
            fetched = future.result()
            # Only now, since it is the only one that is waited for.
            image.place.hold(_fetch(image.place) if fetched is None else fetched)
        return image

    try:
        for image in images:
            place = image.place
            if isinstance(place, RemoteObject):
                executor = executor or ThreadPoolExecutor(READS, "fetch")
                while waiting and num_bytes + place.num_bytes > MAX_AHEAD:
                    yield arrive()
                waiting.append((image, executor.submit(_fetch_early, place)))
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


_Fetched = bytes | OSError | None


def _fetch_early(place: RemoteObject) -> _Fetched:
    """Return a file's bytes, or the error that occurred; None if the file has to wait its turn."""
    if place.fetch_small is None:
        return _fetch(place)
    try:
        return place.fetch_small(MAX_UNSIZED)
    except TooLargeError:
        return None
    except OSError as error:
        return error


def _fetch(place: RemoteObject) -> bytes | OSError:
    """Return a file's bytes, or the error that occurred."""
    if place.num_bytes > MAX_FILE_BYTES:
        return OSError(f"the file has {place.num_bytes:,} bytes, more than {MAX_FILE_BYTES:,}")
    try:
        return place.fetch()
    except OSError as error:
        return error


def _is_here(future: "Future[_Fetched] | None") -> bool:
    return future is None or future.done()
