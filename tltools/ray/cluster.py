"""Connect to a Ray cluster, or start one on this machine.

Ray is an optional dependency, imported when it is used.
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
"""Longest time to wait for a cluster to answer, in seconds."""
STORE_BYTES = 2**28
"""Shared memory of a cluster started on this machine: it holds image names, the features and logits
of a few hundred images, and a backbone (59 MB)."""


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
        raise ConfigError(f"`engine=ray` needs Ray Data ({error}); {pip_install('ray')}") from error


def check_cluster(address: str | None) -> None:
    """Check early whether `cluster` can succeed.

    Raises:
        ConfigError: If Ray is not installed, or the address is a Ray Client address.
        TltoolsError: If nothing answers at the address.
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
    if ray.is_initialized():  # the calling program has its own connection
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
    """Check that the cluster answers: Ray itself waits for minutes before it reports that.

    Raises:
        ConfigError: If the address is a Ray Client address.
        TltoolsError: If nothing answers at the address.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"`address={address}` is a Ray Client address, and a client is not part of the "
            "cluster; run the job on a machine of the cluster with `address=auto`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():  # `auto`, or something for Ray to interpret
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
        "`ray start --head`, and pass the address that it prints as `address=`"
    )


@contextmanager
def _told(progress: Progress) -> Iterator[None]:
    """Report Ray's messages about lost workers as details only.

    Ray prints them to standard output, which may be the result, and no setting prevents that; the
    engine handles lost workers itself. With a Ray version that prints differently, this does
    nothing.
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
    """Hide what Ray's C++ code writes to standard error while it starts.

    Its errors also arrive as exceptions; no setting suppresses its first line.
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
