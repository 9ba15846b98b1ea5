"""Connect to a Ray cluster, or start one on this machine.

Ray is an extra, and imported when it is asked for.
"""

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tltools.errors import ConfigError, TltoolsError, first_line
from tltools.packages import pip_install
from tltools.parallel import num_cores
from tltools.progress import Progress

CONNECT_S = 10.0
"""Longest time until a cluster answers."""
STORE_BYTES = 2**28
"""Of shared memory for a cluster of this machine's own: names of images go through it, features
and logits of a few hundred, and a backbone (59 MB)."""


def import_ray() -> Any:
    """Import Ray Data, without usage reports unless the user wants them.

    Raises:
        ConfigError: If Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ part writes to the terminal
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("ray.data")
    except ImportError as error:
        raise ConfigError(f"--engine ray needs Ray Data ({error}); {pip_install('ray')}") from error


def check_cluster(address: str | None) -> None:
    """Find out early whether `cluster` can be.

    Raises:
        ConfigError: If Ray is not installed, or the address is one of Ray Client.
        TltoolsError: If nobody is there.
    """
    import_ray()
    if address is not None:
        _check_reachable(address)


@contextmanager
def cluster(address: str | None, progress: Progress) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine; yield the module `ray`.

    Raises:
        TltoolsError: If the cluster cannot be reached.
    """
    import logging

    ray = import_module("ray")
    if ray.is_initialized():  # the program that calls us has its own
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _check_reachable(address)
    progress.say("Ray: starting on this machine" if address is None else f"Ray: joining {address}")
    own: dict[str, Any] = (
        {"include_dashboard": False, "num_cpus": num_cores(), "object_store_memory": STORE_BYTES}
        if address is None
        else {}
    )
    try:
        with warnings.catch_warnings(), _no_stderr():
            warnings.simplefilter("ignore")
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **own,
            )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unreachable(address, error) from error
    try:
        with _told(progress):
            yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Knock at the cluster's door: Ray waits for minutes before it says that nobody is there.

    Raises:
        ConfigError: If it is an address of Ray Client.
        TltoolsError: If nobody is there.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"--ray-address {address} is one of Ray Client, which has no machine of its own in the "
            "cluster; run the command on a machine of the cluster, with --ray-address auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():  # `auto`, or what Ray has to make sense of
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str | None, error: Exception) -> TltoolsError:
    if address is None:
        return TltoolsError(f"cannot start Ray on this machine: {first_line(error)}")
    return TltoolsError(
        f"cannot reach the Ray cluster at {address}: {first_line(error)}; start it with "
        "`ray start --head`, and name the address that it shows with --ray-address"
    )


@contextmanager
def _told(progress: Progress) -> Iterator[None]:
    """Show what Ray says of lost workers to who wants to know everything.

    It is written to standard output, which may be the result, and no setting stops that; it is
    about what the engine looks after. Where a later Ray does it in another way, so be it.
    """
    module: Any = import_module("ray._private.worker")
    show = getattr(module, "print_to_stdstream", None)

    def tell(data: dict[str, Any], **_options: object) -> None:
        for line in data.get("lines", ()):
            progress.detail(f"Ray: {first_line(line)}")

    if show is not None:
        module.print_to_stdstream = tell
    try:
        yield
    finally:
        if show is not None:
            module.print_to_stdstream = show


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Keep what Ray's C++ part says on standard error while it starts from the terminal.

    Its errors reach us as exceptions; there is no setting that stops its first line.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
