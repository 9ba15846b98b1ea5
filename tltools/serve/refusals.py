"""Answers to requests that are refused: a status, a reason, and a client that can read both."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LINGER_S = 5.0
"""How long the rest of a refused body is read and dropped, in seconds. Clients read the answer once
they have sent everything; if the connection were closed at once, they would see a broken one."""


class RefusedError(Exception):
    """A request is refused."""

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        retry_after_s: int | None = None,
        linger_s: float | None = None,
    ) -> None:
        """Refuse a request.

        Args:
            status: HTTP status.
            reason: What is wrong and what to do, for the client.
            retry_after_s: When to try again, in seconds; None if that is pointless.
            linger_s: How long the rest of the body is read and dropped before the connection is
                closed, in seconds; None if all of it has been read.
        """
        super().__init__(reason)
        self.status = status
        self.retry_after_s = retry_after_s
        self.linger_s = linger_s

    def response(self) -> Response:
        """Return the answer."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        if self.linger_s is None:
            return error_response(self.status, str(self), headers)
        return _EarlyError(self.status, str(self), headers, self.linger_s)


def busy(reason: str, *, is_read: bool) -> RefusedError:
    """Return the refusal of a request that may be sent again soon.

    Args:
        reason: What the service is busy with.
        is_read: Whether all of the request has been read.
    """
    return RefusedError(
        503,
        f"{reason}; try again in a second",
        retry_after_s=1,
        linger_s=None if is_read else LINGER_S,
    )


def error_response(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as JSON."""
    return Response(_as_json(reason), status, headers, "application/json")


def _as_json(reason: str) -> bytes:
    return json.dumps({"error": reason}).encode()


class _EarlyError(Response):
    """An error that is sent before its request has been read; then the connection is closed."""

    def __init__(
        self, status: int, reason: str, headers: Mapping[str, str], linger_s: float
    ) -> None:
        self._linger_s = linger_s
        headers = {**headers, "connection": "close"}
        super().__init__(_as_json(reason), status, headers, "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the error, then drop what the client still sends."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(self._linger_s):
                while (message := await receive())["type"] == "http.request":
                    if not message.get("more_body", False):
                        break
        await send({"type": "http.response.body", "body": b"", "more_body": False})
