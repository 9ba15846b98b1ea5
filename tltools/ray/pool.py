"""A pool of actors on the cluster: their number and size, and the tasks they run."""

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tltools.errors import ConfigError, DeviceError, TltoolsError, first_line
from tltools.ray.messages import table_values
from tltools.runtime.device import Device, DeviceChoice, cluster_device

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Pool:
    """The actors of a job."""

    device: Device
    choice: DeviceChoice
    max_size: int
    num_cpus: int
    """Cores of each actor, and threads of its predictor."""
    num_nodes: int

    @property
    def num_gpus(self) -> int:
        """GPUs of each actor."""
        return 0 if self.choice.device == "cpu" else 1

    def __str__(self) -> str:
        """Return the pool in words."""
        gpu = " and a GPU" if self.num_gpus else ""
        cores = "a core" if self.num_cpus == 1 else f"{self.num_cpus} cores"
        actors = "1 actor" if self.max_size == 1 else f"up to {self.max_size} actors"
        nodes = "1 machine" if self.num_nodes == 1 else f"{self.num_nodes} machines"
        return f"{actors} with {cores}{gpu} on {nodes}"


def choose_pool(ray: Any, device: Device, workers: int | None) -> Pool:
    """Divide the cluster's cores and GPUs among actors of equal size.

    Args:
        ray: The module `ray`, connected.
        device: Where the actors run the model; `auto` gives each a GPU if there are GPUs.
        workers: Number of cores per actor; None for those of the smallest machine.

    Raises:
        ConfigError: If no machine has that many cores.
        DeviceError: If a GPU is requested and there is none, or there are no cores.
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
            f"no machine of the cluster has the {num_cpus} cores of `workers=`; choose at most "
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
    """Run tasks on a pool of actors; yield the results as they arrive, in any order.

    Args:
        ray: The module `ray`, connected.
        pool: From `choose_pool`.
        actor: Created with `actor_args`, then called with tables of tasks; yields tables of
            results. A task is retried after a lost worker, and must yield as many tables again.
        actor_args: Arguments of the actor; they are pickled.
        tasks: Runs on the driver's machine, with a first argument to be ignored; yields a table
            per task. Called again, and must yield the same, if its process is lost.
        tasks_options: Keyword arguments of `tasks`.
        remedy: What to do if Ray gives up, for the error message.
        max_task_retries: Number of retries of a task; -1 for no limit.

    Yields:
        The column `value` of the results.

    Raises:
        TltoolsError: If Ray gives up.
    """
    faults = import_module("ray.data.exceptions")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = _dataset(ray, pool, actor, actor_args, tasks, tasks_options, max_task_retries)
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from table_values(table)
        except (ray.exceptions.RayError, faults.SystemException) as error:
            raise TltoolsError(
                f"Ray ended the job: {first_line(error)}; {remedy}. Check that every machine has "
                "the same versions of tltools and Ray; Ray's logs are in /tmp/ray"
            ) from error


def _dataset(
    ray: Any,
    pool: Pool,
    actor: type,
    actor_args: tuple[object, ...],
    tasks: "Callable[..., Iterator[pyarrow.Table]]",
    tasks_options: Mapping[str, object],
    max_task_retries: int,
) -> Any:
    """Return a data set of tasks from the driver's machine, mapped by the pool of actors."""
    data = import_module("ray.data")
    _make_quiet(data)
    strategies = import_module("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    options = {"batch_size": None, "batch_format": "pyarrow"}
    handed_out = data.from_items([0]).map_batches(
        tasks, fn_kwargs=dict(tasks_options), num_cpus=0, scheduling_strategy=here, **options
    )
    return handed_out.map_batches(
        actor,
        fn_constructor_args=actor_args,
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
        max_task_retries=max_task_retries,
        # Down to one: at the end, idle actors make room for those of a lost machine and its
        # unfinished tasks.
        compute=data.ActorPoolStrategy(
            min_size=1, max_size=pool.max_size, initial_size=pool.max_size
        ),
        **options,
    )


def _make_quiet(data: Any) -> None:
    """Make Ray Data print nothing, and pass on each result as soon as it is ready."""
    import logging

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # a row is a block: each task and each result is one
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
