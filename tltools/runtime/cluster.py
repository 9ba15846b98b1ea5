"""Ray: connect to a cluster, choose a pool of actors, run work on it, say in a line what failed.

Nothing here knows what the actors do. Ray is an extra, and imported when it is asked for.
"""

import hashlib
import os
import socket
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tltools import __version__, errors
from tltools.errors import ArtifactError, ConfigError, DeviceError, TltoolsError
from tltools.packages import pip_install
from tltools.parallel import num_cores
from tltools.progress import Progress
from tltools.runtime.device import Device, DeviceChoice, cluster_device

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow

CONNECT_S = 10.0
"""Longest time until a cluster answers."""
STORE_BYTES = 2**28
"""Of shared memory for a cluster of this machine's own: names of pictures go through it, features
and logits of a few hundred, and a backbone (59 MB)."""
Failure = tuple[str, str]
"""Name of an error's class and its message: an error on its way from another machine."""


@dataclass(frozen=True)
class Pool:
    """The actors of a job."""

    device: Device
    choice: DeviceChoice
    max_size: int
    num_cpus: int
    """Of each actor, and threads of its predictor."""
    num_nodes: int

    @property
    def num_gpus(self) -> int:
        """Of each actor."""
        return 0 if self.choice.device == "cpu" else 1

    def __str__(self) -> str:
        """Return the pool in words."""
        gpu = " and a GPU" if self.num_gpus else ""
        cores = "a core" if self.num_cpus == 1 else f"{self.num_cpus} cores"
        actors = "1 actor" if self.max_size == 1 else f"up to {self.max_size} actors"
        nodes = "1 machine" if self.num_nodes == 1 else f"{self.num_nodes} machines"
        return f"{actors} with {cores}{gpu} on {nodes}"


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


def choose_pool(ray: Any, device: Device, workers: int | None) -> Pool:
    """Share the cluster's cores and GPUs out to actors, all of one size.

    Args:
        ray: The module, connected.
        device: Where the actors run the model; `auto` takes a GPU each where there are GPUs.
        workers: Cores of an actor; None for those of the smallest machine.

    Raises:
        ConfigError: If no machine has so many cores.
        DeviceError: If a GPU is asked for and there is none, or there are no cores.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    device, choice = cluster_device(device, sum(int(node.get("GPU", 0)) for node in nodes))
    if choice.device != "cpu":
        nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
        shares = [int(node.get("CPU", 0) // int(node["GPU"])) for node in nodes]
    else:
        nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
        shares = [int(node["CPU"]) for node in nodes]
    if not shares or min(shares) < 1:
        raise DeviceError("the Ray cluster has no cores to classify with; add a machine to it")
    num_cpus = workers or min(shares)
    sizes = [int(node["CPU"] // num_cpus) for node in nodes]
    if choice.device != "cpu":
        sizes = [min(size, int(node["GPU"])) for size, node in zip(sizes, nodes, strict=True)]
    if not sum(sizes):
        raise ConfigError(
            f"no machine of the cluster has the {num_cpus} cores of --workers; the largest has "
            f"{max(int(node['CPU']) for node in nodes)}"
        )
    return Pool(device, choice, sum(sizes), num_cpus, len(nodes))


def run_actors(
    ray: Any,
    pool: Pool,
    actor: type,
    *actor_args: object,
    tasks: "Callable[..., Iterator[pyarrow.Table]]",
    tasks_options: Mapping[str, object],
    remedy: str,
    max_task_retries: int = -1,
) -> Generator[bytes, None, None]:
    """Let a pool of actors work on tasks; yield what comes back, as it comes, in any order.

    Args:
        ray: The module, connected.
        pool: From `choose_pool`.
        actor: Made with `actor_args`, then called with tables of tasks; yields tables of results,
            as many for a task each time that it is done: after a lost worker it is done again.
        actor_args: Pickled.
        tasks: Run on the driver's machine, with a first argument that says nothing; yields a table
            for each task. Called anew, and to yield the same, if its process is lost.
        tasks_options: Its keyword arguments.
        remedy: What to do when Ray gives up.
        max_task_retries: Workers that one task may cost before that; -1 for any number.

    Yields:
        The column `value` of the results.

    Raises:
        TltoolsError: If Ray gives up.
    """
    import logging

    data = import_module("ray.data")
    strategies = import_module("ray.util.scheduling_strategies")
    faults = import_module("ray.data.exceptions")
    here = strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # a row is a block: a part is a task, a report comes at once
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = (
            data.from_items([0])
            .map_batches(
                tasks,
                fn_kwargs=dict(tasks_options),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0,
                scheduling_strategy=here,
            )
            .map_batches(
                actor,
                fn_constructor_args=actor_args,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=pool.num_cpus,
                num_gpus=pool.num_gpus or None,
                max_task_retries=max_task_retries,
                # Down to one: at the end idle actors make room for those of a lost machine, and
                # for the parts that it had in work.
                compute=data.ActorPoolStrategy(
                    min_size=1, max_size=pool.max_size, initial_size=pool.max_size
                ),
            )
        )
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from table_values(table)
        except (ray.exceptions.RayError, faults.SystemException) as error:
            raise TltoolsError(
                f"Ray ended the job: {first_line(error)}; {remedy}. "
                "Every machine needs the same tltools and Ray: see Ray's logs in /tmp/ray"
            ) from error


def value_table(value: bytes) -> "pyarrow.Table":
    """Return a table with one row, `value`: what goes from one task to another."""
    import pyarrow

    return pyarrow.table({"value": pyarrow.array([value], pyarrow.binary())})


def table_values(table: "pyarrow.Table") -> list[bytes]:
    """Return what `value_table` put into the rows of a table."""
    return table.column("value").to_pylist()


def failure_here(error: TltoolsError) -> Failure:
    """Return what to tell the driver of an error on this machine."""
    return type(error).__name__, f"on {socket.gethostname()}: {error}"


def from_failure(failure: Failure) -> TltoolsError:
    """Return the error that another process told of."""
    kind, message = failure
    return getattr(errors, kind)(message)


def check_version(wanted: str) -> None:
    """See that this machine has the driver's tltools.

    Raises:
        ConfigError: If not.
    """
    if __version__ != wanted:
        raise ConfigError(
            f"this machine has tltools {__version__}, and the command's {wanted}; install the same"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(model: Path, digest: str) -> None:
    """See that a model's file on this machine is the command's.

    Raises:
        ArtifactError: If not.
    """
    if file_sha256(model) != digest:
        raise ArtifactError(f"{model} is another file than on the machine of the command")


def first_line(said: object) -> str:
    """Return the first line of what somebody says, or its kind where that is nothing."""
    lines = str(said).strip().splitlines()
    return lines[0] if lines else type(said).__name__
