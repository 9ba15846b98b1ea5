"""Images through a model on a Ray cluster: a pool of actors, each with the model opened once.

What training and evaluation need: the outputs of images that are known and readable, in memory.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools import __version__
from tltools.card import Preprocessing
from tltools.data.image_ref import ImageRef
from tltools.errors import ArtifactError, DataError, TltoolsError
from tltools.progress import SILENT, Progress
from tltools.ray.cluster import check_cluster, cluster
from tltools.ray.messages import (
    Failure,
    check_digest,
    check_version,
    failure_here,
    file_sha256,
    from_failure,
    table_values,
    value_table,
)
from tltools.ray.pool import choose_pool, run_actors
from tltools.runtime.device import Device
from tltools.runtime.pipeline import Model, Plan, readable, run_images
from tltools.runtime.workers import default_launcher

if TYPE_CHECKING:
    import pyarrow

MAX_RETRIES = 4
"""Workers that a task may cost besides the first: the images have been decoded before, so it is
the model or the machines."""


class OpenModel(Protocol):
    """Opens a model on an actor; has to be pickled."""

    def __call__(self, *, device: Device, threads: int) -> Model:
        """Open it on a device, on the CPU with so many cores."""
        ...


class ModelTask(msgspec.Struct, frozen=True):
    """Images that an actor answers together."""

    number: int
    """Of the task, from 0."""
    paths: tuple[bytes, ...]


class Answer(msgspec.Struct, frozen=True):
    """What became of a task."""

    number: int
    width: int = 0
    """Outputs of an image, F."""
    values: bytes = b""
    """Float32 (n, F)."""
    failure: Failure | None = None


@dataclass(frozen=True)
class ModelSetup:
    """What an actor has to know."""

    tltools: str
    open_model: OpenModel
    device: Device
    same_files: Mapping[str, str]
    """SHA-256 of files that have to be there, by their absolute paths."""
    preprocessing: Preprocessing
    workers: int
    """Cores of an actor."""
    batch_size: int


class RayCluster:
    """A cluster that runs images through models; joined, or started, when it is needed.

    A context manager, which leaves it at the end.
    """

    def __init__(
        self, address: str | None = None, *, device: Device = "auto", progress: Progress = SILENT
    ) -> None:
        """See that there is a Ray to connect to.

        Args:
            address: Of the cluster; None for `RAY_ADDRESS`, or else one on this machine that ends
                with the context.
            device: Where the actors run models; `auto` takes a GPU each where there are GPUs.
            progress: Where to report.

        Raises:
            ConfigError: If Ray is missing, or the address is one of Ray Client.
            TltoolsError: If nobody is at the address.
        """
        check_cluster(address)
        self._address = address
        self._device: Device = device
        self._progress = progress
        self._stack = ExitStack()
        self._ray: Any = None

    def __enter__(self) -> Self:
        """Do nothing yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the cluster."""
        self._ray = None
        self._stack.close()

    def connect(self) -> Any:
        """Return the module `ray`, connected.

        Raises:
            TltoolsError: If the cluster cannot be reached.
        """
        if self._ray is None:
            self._ray = self._stack.enter_context(cluster(self._address, self._progress))
        return self._ray

    def outputs(
        self,
        paths: Sequence[Path],
        open_model: OpenModel,
        *,
        preprocessing: Preprocessing,
        batch_size: int,
        task_size: int,
        device: Device | None = None,
        same_files: Sequence[Path] = (),
    ) -> Generator[tuple[range, NDArray[np.float32]], None, None]:
        """Run images through a model, task by task, in any order.

        Args:
            paths: The images, which all machines have to see under these paths.
            open_model: Called by each actor, once.
            preprocessing: How images are decoded.
            batch_size: Images in one call of the model.
            task_size: Most images that an actor answers together.
            device: Instead of the one that the cluster was asked for.
            same_files: Files of the model that all machines have to see, the same as here.

        Yields:
            Indices of images, and their outputs, float32 (n, F): each image once.

        Raises:
            DataError: If an image cannot be read.
            TltoolsError: If Ray gives up. And what `open_model` and the model raise.
        """
        ray = self.connect()
        pool = choose_pool(ray, device or self._device, None)
        self._progress.say(f"Ray: {pool}")
        share = min(task_size, -(-len(paths) // pool.max_size))
        size = -(-share // batch_size) * batch_size  # whole batches: those of one machine alone
        tasks = [range(i, min(i + size, len(paths))) for i in range(0, len(paths), size)]
        setup = ModelSetup(
            tltools=__version__,
            open_model=open_model,
            device=pool.device,
            same_files={str(path.absolute()): file_sha256(path) for path in same_files},
            preprocessing=preprocessing,
            workers=pool.num_cpus,
            batch_size=batch_size,
        )
        names = [os.fsencode(path.absolute()) for path in paths]
        values = run_actors(
            ray,
            pool,
            ModelActor,
            setup,
            tasks=hand_out,
            tasks_options={"groups": [tuple(names[task.start : task.stop]) for task in tasks]},
            remedy="try the same command again, or --engine local",
            max_task_retries=MAX_RETRIES,
        )
        with closing(values):
            for number, array in _answers(values, len(tasks)):
                yield tasks[number], array


def _answers(values: Iterable[bytes], num_tasks: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the number of each task, once, with its outputs, float32 (n, F)."""
    missing = set(range(num_tasks))
    for value in values:
        answer = msgspec.msgpack.decode(value, type=Answer)
        if answer.failure is not None:
            raise from_failure(answer.failure)
        if answer.number in missing:  # a task may come twice, when a worker is lost late
            missing.remove(answer.number)
            yield (
                answer.number,
                np.frombuffer(answer.values, np.float32).reshape(-1, answer.width),
            )
    if missing:
        raise TltoolsError(
            f"Ray has lost {len(missing)} of {num_tasks} tasks; try the same command again"
        )


# ------------------------------------------------------------------------- what runs on machines


def hand_out(_start: object, *, groups: Sequence[tuple[bytes, ...]]) -> "Iterator[pyarrow.Table]":
    """Yield a table for each group of paths, with one row: a `ModelTask` as MessagePack."""
    for number, paths in enumerate(groups):
        yield value_table(msgspec.msgpack.encode(ModelTask(number, paths)))


class ModelActor:
    """An actor: one model, which answers a task at a time."""

    def __init__(self, setup: ModelSetup) -> None:
        """Open the model; what is wrong with that is the answer to the first task."""
        self._setup = setup
        self._launcher = default_launcher()
        self._problem: Failure | None = None
        try:
            check_version(setup.tltools)
            for path, digest in setup.same_files.items():
                _check_same(Path(path), digest)
            self._model = setup.open_model(device=setup.device, threads=setup.workers)
        except TltoolsError as error:
            self._problem = failure_here(error)

    def close(self) -> None:
        """End the worker processes; an actor's end does it too."""
        self._launcher.close()

    def __call__(self, table: "pyarrow.Table") -> "Iterator[pyarrow.Table]":
        """Answer tasks: yield a table with one `Answer`, as MessagePack, for each `ModelTask`."""
        for value in table_values(table):
            task = msgspec.msgpack.decode(value, type=ModelTask)
            yield value_table(msgspec.msgpack.encode(self._answer(task)))

    def _answer(self, task: ModelTask) -> Answer:
        if self._problem is not None:
            return Answer(task.number, failure=self._problem)
        paths = [Path(os.fsdecode(path)) for path in task.paths]
        try:
            values = self._outputs(paths)
        except TltoolsError as error:
            return Answer(task.number, failure=failure_here(_of_this_machine(error, paths)))
        return Answer(task.number, values.shape[1], values.tobytes())

    def _outputs(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        setup = self._setup
        results = run_images(
            self._model,
            map(ImageRef.of_file, paths),
            preprocessing=setup.preprocessing,
            plan=Plan("ahead", setup.workers, setup.batch_size),
            finish=readable,
            launcher=self._launcher,
        )
        with closing(results):
            return np.concatenate([outputs.values for outputs in results]).astype(np.float32)


def _check_same(path: Path, digest: str) -> None:
    """See that a model's file is the one that the command has.

    Raises:
        ArtifactError: If not.
    """
    if not path.is_file():
        raise ArtifactError(
            f"{path} is not there; all machines of the cluster have to see the model and the "
            "images under the same paths, on a shared file system"
        )
    check_digest(path, digest)


def _of_this_machine(error: TltoolsError, paths: Sequence[Path]) -> TltoolsError:
    """Return what to say instead where images are not on this machine at all."""
    gone = next((path for path in paths if not path.exists()), None)
    if not isinstance(error, DataError) or gone is None:
        return error
    return DataError(
        f"{gone} is not there; all machines of the cluster have to see the images under the same "
        "paths, on a shared file system"
    )
