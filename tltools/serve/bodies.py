"""Read the images of a request, within the limits of size, time and memory.

Only bytes that the client sends are ever read: no path and no URL that it names.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import NamedTuple, Self

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from tltools.classify import Prediction
from tltools.classify.tally import reason_in
from tltools.serve.refusals import LINGER_S, RefusedError, busy
from tltools.serve.settings import (
    MAX_FORM_FILES,
    MAX_FORM_IMAGES,
    MAX_HELD_IMAGES,
    MB,
    ServeSettings,
)
from tltools.wording import counted

BODY = "request body"
"""Name of an image that is sent without a form, which could name it."""
FORM = "multipart/form-data"


class Upload(NamedTuple):
    """An image as a client sent it."""

    name: str
    data: bytes


class Capacity:
    """What the service holds at the moment, and may hold at most."""

    def __init__(self, settings: ServeSettings) -> None:
        """Start empty."""
        self._max_images = settings.max_waiting
        self._max_bytes = MAX_HELD_IMAGES * settings.max_image_bytes
        self.num_images = 0
        self.num_bytes = 0

    def hold(self) -> "Hold":
        """Return what a request holds, to be used as a context manager."""
        return Hold(self)

    def check(self, num_images: int, *, is_read: bool) -> None:
        """Refuse images beyond the limit.

        Raises:
            RefusedError: With status 503; 413 if they are too many for an idle service, too.
        """
        if num_images > self._max_images:
            raise RefusedError(
                413,
                f"the form has {counted(num_images, 'image')}, and this service takes "
                f"{self._max_images} at a time",
            )
        if self.num_images + num_images > self._max_images:
            raise busy(
                f"the service is busy with {counted(self.num_images, 'image')}, of "
                f"{self._max_images} at most",
                is_read=is_read,
            )

    def check_bytes(self, num_bytes: int) -> None:
        """Refuse bytes beyond the limit.

        Raises:
            RefusedError: With status 503.
        """
        if self.num_bytes + num_bytes > self._max_bytes:
            raise busy(f"the service holds {self.num_bytes / MB:.0f} MB of images", is_read=False)


class Hold:
    """What one request holds; given back at the end of the block."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._num_images = 0
        self._num_bytes = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_details: object) -> None:
        """Give everything back."""
        self._capacity.num_images -= self._num_images
        self._capacity.num_bytes -= self._num_bytes

    def add_images(self, num_images: int) -> None:
        """Hold images.

        Raises:
            RefusedError: If the limit is exceeded.
        """
        self._capacity.check(num_images, is_read=True)
        self._num_images += num_images
        self._capacity.num_images += num_images

    def add_bytes(self, num_bytes: int) -> None:
        """Hold bytes.

        Raises:
            RefusedError: If the limit is exceeded.
        """
        self._capacity.check_bytes(num_bytes)
        self._num_bytes += num_bytes
        self._capacity.num_bytes += num_bytes


async def read_uploads(request: Request, settings: ServeSettings, hold: Hold) -> list[Upload]:
    """Return the images of a request: its body, or the files of a form.

    Args:
        request: The request.
        settings: The limits.
        hold: Holds the images until they are classified.

    Raises:
        RefusedError: If the request exceeds a limit or has no image.
    """
    is_form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM
    most = settings.max_image_bytes * (MAX_FORM_IMAGES if is_form else 1)
    try:
        async with asyncio.timeout(settings.client_timeout_s):
            body = await _read_body(request, "form" if is_form else "image", most, hold)
    except TimeoutError:
        raise RefusedError(
            408,
            f"the request took longer than {settings.client_timeout_s:g} s to arrive; send it "
            "faster, or a smaller image",
            linger_s=0,
        ) from None
    except ClientDisconnect:
        raise RefusedError(
            400, "the client closed the connection before the end of its body"
        ) from None
    if not body:
        raise RefusedError(400, "the request has no body; send an image, or a form with a file")
    if not is_form:
        return [Upload(BODY, body)]
    uploads = await _files_of(request, body)
    for one in uploads:
        if len(one.data) > settings.max_image_bytes:
            raise _too_large("image", settings.max_image_bytes, linger_s=None)
    return uploads


def without_name(row: Prediction) -> Prediction:
    """Return a row whose error does not name the body of a request as if it were a file."""
    reason = "" if row.error is None else reason_in(BODY, row.error)
    if row.name != BODY or reason == (row.error or ""):
        return row
    return replace(row, error=f"cannot read the request body as an image: {reason}")


async def _read_body(request: Request, what: str, most: int, hold: Hold) -> bytes:
    """Return a body of at most `most` bytes; of a larger one, no more is kept in memory."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > most:
        raise _too_large(what, most, linger_s=LINGER_S)
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > most:
            raise _too_large(what, most, linger_s=LINGER_S)
        hold.add_bytes(len(chunk))
        body += chunk
    return bytes(body)


def _too_large(what: str, most: int, *, linger_s: float | None) -> RefusedError:
    return RefusedError(
        413,
        f"the {what} is larger than {most / MB:g} MB, the limit of this service; send a smaller "
        "one",
        linger_s=linger_s,
    )


class _InMemory(MultiPartParser):
    """Keeps files in memory, whose size is limited already: a service may have no disk."""

    spool_max_size = 2**40


async def _files_of(request: Request, body: bytes) -> list[Upload]:
    """Return the files of a form."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _InMemory(
        request.headers, stream(), max_files=MAX_FORM_FILES, max_fields=MAX_FORM_FILES
    )
    try:
        form = await parser.parse()
    # The second by older starlettes, the last of a charset that cannot be used.
    except (MultiPartException, FormParserError, ValueError, LookupError) as error:
        raise RefusedError(400, f"the form cannot be read: {error}") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise RefusedError(400, "the form has no file; with curl: -F file=@photo.jpg")
    return [Upload(file.filename or BODY, await file.read()) for file in files]
