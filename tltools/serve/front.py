"""What every request passes: who may ask, the headers of every answer, and counting."""

import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tltools.serve.metrics import CLASSIFY, Metrics
from tltools.serve.refusals import error_response
from tltools.serve.settings import is_loopback

PATHS = frozenset({"/", CLASSIFY, "/health", "/metrics", "/openapi.json"})
OTHER = "other"
"""Stands for all other paths in the metrics: strangers may name any number of them."""
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
CLOSE = (b"connection", b"close")


class Front:
    """Wraps the service's routes."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, is_local: bool) -> None:
        """Wrap `app`.

        Args:
            app: The routes.
            metrics: Counts the requests.
            is_local: Whether the service listens on loopback, where no other name can be meant.
        """
        self._app = app
        self._metrics = metrics
        self._is_local = is_local
        self.is_draining = False
        """Whether the service ends, so that connections are closed after their answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(message)
            await send(message)

        try:
            reason = self._stranger(scope)
            app = self._app if reason is None else error_response(403, reason)
            await app(scope, receive, watch)
        finally:
            path = scope["path"] if scope["path"] in PATHS else OTHER
            seconds = time.perf_counter() - begun if path == CLASSIFY else None
            self._metrics.add_request(path, status, seconds)

    def _add_headers(self, message: MutableMapping[str, Any]) -> None:
        headers = [*message.get("headers", ()), *_HEADERS]
        if self.is_draining and CLOSE not in headers:
            headers.append(CLOSE)
        message["headers"] = headers

    def _stranger(self, scope: Scope) -> str | None:
        """Return why a browser's request is refused: it comes from another site's page.

        Such a page can send forms to any address, and, if its own name leads to loopback (DNS
        rebinding), read the answers.
        """
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._is_local and host and not is_loopback(_without_port(host)):
            return f"{host!r} is not a name of this service; use its address, 127.0.0.1"
        origin = headers.get(b"origin")
        if origin is not None and _site_of(origin) != host:
            return f"pages of {origin!r} may not use this service; call it from a program"
        return None


def _site_of(origin: str) -> str | None:
    """Return the host and port of an Origin header; None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
