"""Read files from web servers, within limits: a server may send anything, for any time.

Imported only for web addresses, because it needs aiohttp.
"""

import asyncio
import html
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin, urlsplit
from weakref import finalize

import aiohttp
from fsspec.asyn import get_loop, sync
from fsspec.implementations.http import HTTPFileSystem

from tltools.data.answers import (
    AwayError,
    BusyError,
    NotFoundError,
    StalledError,
    TooLargeError,
    UnavailableError,
)
from tltools.data.image_ref import MAX_FILE_BYTES
from tltools.data.location import web_folder, without_secrets

MAX_REDIRECTS = 10
"""Largest number of redirects of one request; browsers follow 20, and image hosts need up to 3."""
CONNECT_S = 15.0
"""Longest wait for a connection, in seconds."""
ANSWER_S = 60.0
"""Longest wait for the headers of the answer, in seconds, redirects included."""
STALL_S = 30.0
"""Longest pause between the bytes of an answer, in seconds."""
GRACE_S = 30.0
"""Seconds after which the average speed counts: servers and connections may start slowly."""
MIN_BYTES_PER_S = 2**12
"""Slowest average of a download; a mobile connection of the year 2000 was as fast."""
MAX_TRANSFER_S = 600.0
"""Longest download of a file into memory, in seconds; the largest file needs 1 MB/s."""
MAX_INDEX_BYTES = 2**25
"""Largest page that lists a folder: more than 100,000 files."""
MAX_UNSIZED_BYTES = 2**36
"""Largest download to disk whose size the server does not report."""
_CHUNK = 2**18
_HREF = re.compile(r"""<a\s[^>]*?\bhref\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE)
# Statuses that concern the moment or the server rather than the file.
_PASSING = frozenset({408, 425, 429})
# Statuses of a proxy whose server is down, or of a server that is down for maintenance.
_AWAY = frozenset({502, 503, 504})


class WebFiles:
    """Files on web servers, with the methods of an fsspec file system that `Remote` uses.

    Errors hold no secrets: those of aiohttp, which hold whole addresses, are never chained to them.
    """

    def __init__(self) -> None:
        """Connect on the first request."""
        self.loop = get_loop()
        self._session: aiohttp.ClientSession | None = None

    def cat_file(
        self,
        path: str,
        start: int | None = None,
        end: int | None = None,
        *,
        max_bytes: int = MAX_FILE_BYTES,
    ) -> bytes:
        """Return the bytes of a file, or those from `start` up to, but not including, `end`.

        Raises:
            UnavailableError: If the server refuses the file, or it has more than `max_bytes` bytes,
                or arrives too slowly.
            OSError: If the server cannot be reached, or has failed.
        """
        headers = {}
        if start is not None and end is not None:
            headers = {"Range": f"bytes={start}-{end - 1}"}
            max_bytes = end - start
        return self._wait(self._read, path, headers, max_bytes)

    def info(self, path: str) -> dict[str, Any]:
        """Return `name`, `type`, `size` (None if unknown) and, if there are any, `ETag` of a file.

        Raises:
            UnavailableError: If the server refuses the file.
            OSError: If the server cannot be reached, or has failed.
        """
        return self._wait(self._info, path)

    def get_file(self, path: str, local: str) -> None:
        """Download a file to disk.

        Raises:
            UnavailableError: If the server refuses the file, or it arrives too slowly.
            OSError: If the server cannot be reached, has failed, or the disk is full.
        """
        self._wait(self._save, path, local)

    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]:
        """List a folder from the links of its page.

        Raises:
            UnavailableError: If the server refuses the page, or it is too large.
            OSError: If the server cannot be reached, or has failed.
        """
        assert detail
        text, is_page = self._wait(self._page, path)
        return _links(text, path) if is_page else []

    def _wait(self, request: Callable[..., Any], *args: object) -> Any:
        return cast("Any", sync(self.loop, request, *args))

    # ------------------------------------------------------------------------------- requests

    async def _read(self, path: str, headers: dict[str, str], max_bytes: int) -> bytes:
        async with self._answer("GET", path, headers) as answer:
            if headers and answer.status != HTTPStatus.PARTIAL_CONTENT:
                raise UnavailableError("the server does not send parts of files (range requests)")
            return await _content(answer, max_bytes)

    async def _page(self, path: str) -> tuple[str, bool]:
        async with self._answer("GET", path, {}) as answer:
            is_page = answer.content_type == "text/html" or "Content-Type" not in answer.headers
            data = await _content(answer, MAX_INDEX_BYTES) if is_page else b""
        return data.decode("utf-8", "replace"), is_page

    async def _info(self, path: str) -> dict[str, Any]:
        size: int | None = None
        for method in ("HEAD", "GET"):
            try:
                # Of a GET request, only the headers are read.
                async with self._answer(method, path, {}) as answer:
                    headers = answer.headers
            except (UnavailableError, BusyError):
                if method == "GET":
                    raise
                continue  # signed addresses, and some servers, allow only GET
            size = None if "Content-Encoding" in headers else _number(headers, "Content-Length")
            if size is not None:
                break
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        return {"name": path, "type": "file", "size": size, "ETag": version}

    async def _save(self, path: str, local: str) -> None:
        async with self._answer("GET", path, {}) as answer:
            size = _number(answer.headers, "Content-Length")
            # What is unpacked on the way may have any size.
            limit = MAX_UNSIZED_BYTES if size is None else max(size, MAX_FILE_BYTES)
            with Path(local).open("wb") as file:
                async for data in _chunks(answer, limit):
                    file.write(data)

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; yield the answer once its headers are here and good.

        An exception is raised without its cause, which would hold the address.
        """
        problem: OSError | None = None
        answer: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(ANSWER_S):
                session = await self._connect()
                answer = await session.request(
                    method, path, headers=headers, max_redirects=MAX_REDIRECTS
                )
            problem = _problem(answer.status)
            if problem is None:
                yield answer
        except OSError as error:
            problem = _without_address(error)
        except (aiohttp.ClientError, ValueError, UnicodeError) as error:
            problem = _web_error(error)
        finally:
            if answer is not None:
                answer.close()
        if problem is not None:
            raise problem from None

    async def _connect(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Images are compressed already; a server that compresses them all the same is slow.
                headers={"Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_S, sock_read=STALL_S
                ),
            )
            finalize(self, HTTPFileSystem.close_session, self.loop, self._session)
        return self._session


# ------------------------------------------------------------------------------------ answers


async def _content(answer: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the content of an answer.

    Raises:
        TooLargeError: If it has more than `max_bytes` bytes.
        UnavailableError: If it arrives too slowly.
    """
    size = _number(answer.headers, "Content-Length")
    if size is not None and size > max_bytes:
        raise _too_large(size, max_bytes)
    content = bytearray()
    try:
        async with asyncio.timeout(MAX_TRANSFER_S):
            async for data in _chunks(answer, max_bytes):
                content += data
    except TimeoutError as error:
        if isinstance(error, aiohttp.ServerTimeoutError):
            raise
        raise _too_slow(len(content), MAX_TRANSFER_S) from None
    except BaseException:
        content.clear()  # otherwise the traceback would keep it
        raise
    return bytes(content)


async def _chunks(answer: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the content of an answer, decompressed, while it keeps to the limits."""
    begun = time.monotonic()
    num_bytes = 0
    while data := await answer.content.read(_CHUNK):
        num_bytes += len(data)
        if num_bytes > max_bytes:
            raise _too_large(None, max_bytes)
        took = time.monotonic() - begun
        if took > GRACE_S and num_bytes < took * MIN_BYTES_PER_S:
            raise _too_slow(num_bytes, took)
        yield data


def _too_large(size: int | None, max_bytes: int) -> TooLargeError:
    sent = "more bytes" if size is None else f"{size:,} bytes, more"
    return TooLargeError(f"the server sends {sent} than the limit of {max_bytes:,}")


def _too_slow(num_bytes: int, took: float) -> UnavailableError:
    return UnavailableError(f"the server is too slow: it sent {num_bytes:,} bytes in {took:.0f} s")


def _problem(status: int) -> OSError | None:
    """Return the error of an answer's status; None for a good one."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    known = {one.value: one.phrase for one in HTTPStatus}
    text = f"the server answered {status} {known.get(status, '')}".rstrip()
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError("no such file")
    if status in _AWAY:
        return AwayError(text)
    if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return BusyError(text)
    return UnavailableError(text)


def _without_address(error: OSError) -> OSError:
    """Return an error of the operating system, or of this module, without an address."""
    if isinstance(error, TimeoutError):
        return StalledError("the server does not answer in time")
    if isinstance(error, aiohttp.ClientConnectionError):
        return ConnectionError(_described(error))
    return error


def _web_error(error: Exception) -> OSError:
    """Return an error of aiohttp, or of an address that it cannot use, without the address."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return UnavailableError(f"the server redirects more than {MAX_REDIRECTS} times")
    if isinstance(error, aiohttp.RedirectClientError):
        return UnavailableError("the server redirects to an address that is not one of the web")
    if isinstance(error, aiohttp.ClientResponseError):  # what it sends is not HTTP
        return UnavailableError("the server's answer is not valid HTTP")
    if isinstance(error, aiohttp.ClientPayloadError):
        return ConnectionError("the answer is incomplete or corrupt")
    if isinstance(error, aiohttp.ClientConnectionError):
        return ConnectionError(_described(error))
    return UnavailableError("the address is not valid")


def _described(error: Exception) -> str:
    """Describe an error in one line, without secrets."""
    cause = getattr(error, "os_error", None)
    text = (cause.strerror if cause is not None else None) or str(error)
    return " ".join(without_secrets(text).split()) or type(error).__name__


def _number(headers: Any, name: str) -> int | None:
    text = str(headers.get(name, ""))
    return int(text) if text.isascii() and text.isdigit() else None


def _links(text: str, folder: str) -> list[dict[str, Any]]:
    """Return the files and folders in `folder` that a page links to."""
    base = web_folder(folder)
    place = urlsplit(base)
    below: dict[str, None] = {}
    for match in _HREF.finditer(text):
        try:
            link = urlsplit(urljoin(base, html.unescape(match[1] or match[2] or "").strip()))
        except ValueError:  # not a URL
            continue
        name = link.path.removeprefix(place.path)
        if link.netloc == place.netloc and name != link.path and name.strip("/"):
            below[name] = None
    # The rest is found in the folders that the page links to, and would be listed twice.
    folders = tuple(name for name in below if name.endswith("/"))
    return [
        {
            "name": base + name,
            "size": None,
            "type": "directory" if name.endswith("/") else "file",
        }
        for name in below
        if not any(name.startswith(one) and name != one for one in folders)
    ]
