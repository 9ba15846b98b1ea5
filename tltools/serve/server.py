"""Listen for requests until a signal says to stop; then answer those that have begun."""

import asyncio
import errno
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from tltools.classify import Prediction
from tltools.classify.opening import open_where_best
from tltools.classify.predict import (
    check_min_confidence,
    check_unknown,
    max_distance,
    predictions,
)
from tltools.errors import ConfigError, cause_of
from tltools.processes import STOPS, Launcher
from tltools.runtime import Plan, Predictor
from tltools.runtime.live import LiveRunner, LiveSettings
from tltools.serve.app import Service
from tltools.serve.bodies import Capacity
from tltools.serve.front import Front
from tltools.serve.metrics import Metrics
from tltools.serve.settings import ServeSettings

if sys.platform != "win32":
    import resource

BACKLOG = 512
"""Connections that the system accepts while the service is busy with others."""
MAX_CONNECTIONS = 1000
SPARE_FILES = 100
"""Open files that are left for everything else, where the system allows few."""
GRACE_S = 0.5
"""How long the end of the service waits for requests that clients have sent on open connections
before they could know of it, in seconds."""
STOP_S = 60
"""How long the end of the service waits for answers, in seconds."""


class Serving(NamedTuple):
    """A service that is ready."""

    url: str
    model: Path
    predictor: Predictor
    plan: Plan


class Served(NamedTuple):
    """What a service did, until it was stopped."""

    num_requests: int
    """Requests for labels; not those for the page, its health or its metrics."""
    num_errors: int
    """Those of them whose answer was an error: about the request, or its only image."""
    num_classified: int
    num_failed: int


def serve(
    settings: ServeSettings,
    *,
    launcher: Launcher,
    tell: Callable[[str], None],
    on_ready: Callable[[Serving], None],
    on_end: Callable[[Served], None],
) -> None:
    """Serve a model until a stop signal; then finish what has begun, and act on the signal.

    Args:
        settings: What to serve, and where.
        launcher: Starts the workers.
        tell: Called with a line for whatever goes wrong with the service itself.
        on_ready: Called once requests can be answered.
        on_end: Called after the last answer.

    Raises:
        ArtifactError, DeviceError, ParityError: If the model cannot be opened.
        ConfigError: If the address cannot be listened on.
        TltoolsError: If no worker can be started.
    """
    with bind(settings.host, settings.port) as listener:
        model, plan = _open(settings, launcher)
        capacity = Capacity(settings)
        metrics = Metrics(
            {
                "tltools_waiting_images": ("Images in the service.", lambda: capacity.num_images),
                "tltools_held_bytes": ("Bytes of images in memory.", lambda: capacity.num_bytes),
            }
        )
        runner = _runner(settings, model, plan, launcher, metrics, tell)
        runner.start()
        service = Service(settings, model, runner, metrics, capacity, tell)
        ready = Serving(_url(settings.host, listener), settings.model, model, plan)
        try:
            _listen(listener, settings)
            _run(service.front, listener, settings.client_timeout_s, partial(on_ready, ready))
        finally:
            runner.close()
            on_end(
                Served(
                    metrics.num_requests,
                    metrics.num_errors,
                    metrics.num_classified,
                    metrics.num_failed,
                )
            )


def _open(settings: ServeSettings, launcher: Launcher) -> tuple[Predictor, Plan]:
    model, plan = open_where_best(
        settings.model,
        device=settings.device,
        batch_size=settings.batch_size,
        workers=settings.workers,
        threads=settings.threads,
        tf32=False,
        num_images=0,
        launcher=launcher,
        distances=settings.unknown is not None,
    )
    check_min_confidence(settings.min_confidence, model.card.classes)
    check_unknown(settings.unknown, model.card.classes)
    if settings.threshold is not None:
        settings.threshold.index(model.card.classes)
    return model, plan


def _runner(
    settings: ServeSettings,
    model: Predictor,
    plan: Plan,
    launcher: Launcher,
    metrics: Metrics,
    tell: Callable[[str], None],
) -> LiveRunner[Prediction]:
    card = model.card
    finish = partial(
        predictions,
        card.classes,
        card.temperature,
        min_confidence=settings.min_confidence,
        threshold=settings.threshold,
        max_distance=max_distance(card, settings.unknown),
    )
    return LiveRunner(
        LiveSettings(
            model=model,
            preprocessing=card.preprocessing,
            plan=plan,
            finish=finish,
            launcher=launcher,
            max_delay_s=settings.max_delay_ms / 1000,
            timeout_s=settings.image_timeout_s,
            tell=tell,
            on_batch=metrics.add_batch,
        )
    )


# ---------------------------------------------------------------------------------- the address


def bind(host: str, port: int) -> socket.socket:
    """Reserve an address, before any work; connections are refused until `listen`.

    Raises:
        ConfigError: If that is impossible.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_address(host, port, error) from error
    try:
        if os.name == "posix":  # a port is free at once, although its last connections linger
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _no_address(host, port, error) from error
    return listener


def _listen(listener: socket.socket, settings: ServeSettings) -> None:
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another program was quicker
        raise _no_address(settings.host, settings.port, error) from error


def _no_address(host: str, port: int, error: Exception) -> ConfigError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is in use; stop the program that uses it, or choose another "
            "with `port=`; 0 takes a free one"
        )
    if isinstance(error, PermissionError):
        return ConfigError(f"port {port} is reserved for root; choose one above 1023 with `port=`")
    return ConfigError(
        f"cannot listen on {host}, port {port}: {cause_of(error)}; choose an address of this "
        "machine with `host=`"
    )


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


# ----------------------------------------------------------------------------------- the server


class _PatientProtocol(H11Protocol):
    """HTTP that closes a connection whose client does not complete a request's head in time."""

    patience_s: ClassVar[float]
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Wait for the end of a head if none has arrived, counting from the first call."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.patience_s, self.transport.close)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    """A server that says when it is ready, and loses no request when it ends."""

    def __init__(self, config: uvicorn.Config, front: Front, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._front = front
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGHUP too, but not at signals that are ignored, as below nohup."""
        before = {number: signal.getsignal(number) for number in {*HANDLED_SIGNALS, *STOPS}}
        with super().capture_signals():  # which acts on the signals once the server has ended
            try:
                for number, handler in before.items():
                    is_ignored = handler is signal.SIG_IGN
                    signal.signal(number, handler if is_ignored else self.handle_exit)
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, answer what has been sent on open ones, and close them."""
        self._front.is_draining = True
        for server in self.servers:
            server.close()
        deadline = asyncio.get_running_loop().time() + GRACE_S
        while self.server_state.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)


def _run(
    front: Front, listener: socket.socket, patience_s: float, on_ready: Callable[[], None]
) -> None:
    class Protocol(_PatientProtocol):
        """Takes the time limit for a request's head."""

    Protocol.patience_s = patience_s
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a stranger's mistakes are not ours
    config = uvicorn.Config(
        front,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=_max_connections(),
        timeout_keep_alive=math.ceil(patience_s),
        timeout_graceful_shutdown=STOP_S,
    )
    server = _Server(config, front, on_ready)
    server.run(sockets=[listener])


def _max_connections() -> int:
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, allowed - SPARE_FILES))
