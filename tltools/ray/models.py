"""Run images through a model on a Ray cluster, with a pool of actors that open the model once.

Training and evaluation use this: it returns the outputs of known, readable images in memory.
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
    from_failure,
    table_values,
    value_table,
)
from tltools.ray.pool import Pool, choose_pool, run_actors
from tltools.regular import regular_sha256
from tltools.runtime.device import Device
from tltools.runtime.pipeline import Model, Plan, readable, run_images
from tltools.runtime.workers import default_launcher

if TYPE_CHECKING:
    import pyarrow

MAX_RETRIES = 4
"""Number of retries of a task whose worker is lost: the images have been decoded before, so the
model or the machines must be the cause."""


class OpenModel(Protocol):
    """Opens a model on an actor; must be picklable."""

    def __call__(self, *, device: Device, threads: int) -> Model:
        """Open the model on a device; on the CPU with this many cores."""
        ...


class ModelTask(msgspec.Struct, frozen=True):
    """Images that an actor processes together."""

    number: int
    """Number of the task, from 0."""
    paths: tuple[bytes, ...]


class Answer(msgspec.Struct, frozen=True):
    """The result of a task."""

    number: int
    width: int = 0
    """Number of outputs per image, F."""
    values: bytes = b""
    """The outputs, float32 (n, F)."""
    failure: Failure | None = None


@dataclass(frozen=True)
class ModelSetup:
    """The settings of an actor."""

    tltools: str
    open_model: OpenModel
    device: Device
    same_files: Mapping[str, str]
    """SHA-256 of the files that must exist, by absolute path."""
    preprocessing: Preprocessing
    workers: int
    """Number of cores per actor."""
    batch_size: int


class RayCluster:
    """A cluster that runs images through models; joined or started when first needed.

    A context manager that leaves the cluster at the end.
    """

    def __init__(
        self, address: str | None = None, *, device: Device = "auto", progress: Progress = SILENT
    ) -> None:
        """Check that Ray is available.

        Args:
            address: Address of the cluster; None for `RAY_ADDRESS` or, if that is not set, a
                cluster on this machine that ends with the context.
            device: Where the actors run models; `auto` gives each a GPU if there are GPUs.
            progress: Where to report progress.

        Raises:
            ConfigError: If Ray is missing, or the address is a Ray Client address.
            TltoolsError: If nothing answers at the address.
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
            paths: The images; all machines must see them under these paths.
            open_model: Called once by each actor.
            preprocessing: How images are decoded.
            batch_size: Number of images per model call.
            task_size: Largest number of images that an actor processes together.
            device: Device to use instead of the cluster's.
            same_files: Model files that all machines must see, identical to those here.

        Yields:
            Indices of images and their outputs, float32 (n, F); each image once.

        Raises:
            DataError: If an image cannot be read.
            TltoolsError: If Ray gives up. Errors of `open_model` and the model are raised, too.
        """
        ray = self.connect()
        pool = choose_pool(ray, device or self._device, None)
        self._progress.say(f"Ray: {pool}")
        share = min(task_size, -(-len(paths) // pool.max_size))
        tasks = _in_whole_batches(len(paths), share, batch_size)
        setup = ModelSetup(
            tltools=__version__,
            open_model=open_model,
            device=pool.device,
            same_files={str(path.absolute()): regular_sha256(path) for path in same_files},
            preprocessing=preprocessing,
            workers=pool.num_cpus,
            batch_size=batch_size,
        )
        names = [os.fsencode(path.absolute()) for path in paths]
        groups = [tuple(names[task.start : task.stop]) for task in tasks]
        with closing(_run_on_actors(ray, pool, setup, groups)) as values:
            for number, array in _answers(values, len(tasks)):
                yield tasks[number], array


def _in_whole_batches(num_images: int, share: int, batch_size: int) -> list[range]:
    """Split images into tasks of about `share`, with the batches that one machine alone has."""
    size = -(-share // batch_size) * batch_size
    return [range(i, min(i + size, num_images)) for i in range(0, num_images, size)]


def _run_on_actors(
    ray: Any, pool: Pool, setup: ModelSetup, groups: Sequence[tuple[bytes, ...]]
) -> Generator[bytes, None, None]:
    """Let actors do the task of each group of paths; yield their answers in any order."""
    return run_actors(
        ray,
        pool,
        ModelActor,
        setup,
        tasks=hand_out,
        tasks_options={"groups": groups},
        remedy="run the same command again, or use `engine=local`",
        max_task_retries=MAX_RETRIES,
    )


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
            f"Ray lost {len(missing)} of {num_tasks} tasks; run the same command again"
        )


# ------------------------------------------------------------------- code that runs on the actors


def hand_out(_start: object, *, groups: Sequence[tuple[bytes, ...]]) -> "Iterator[pyarrow.Table]":
    """Yield a table for each group of paths, with one row: a `ModelTask` as MessagePack."""
    for number, paths in enumerate(groups):
        yield value_table(msgspec.msgpack.encode(ModelTask(number, paths)))


class ModelActor:
    """An actor: one model that answers one task at a time."""

    def __init__(self, setup: ModelSetup) -> None:
        """Open the model; an error becomes the answer to the first task."""
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
        """End the worker processes; the end of the actor does so, too."""
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
    """Check that a model file is the same as the driver's.

    Raises:
        ArtifactError: If it is missing or differs.
    """
    if not path.is_file():
        raise ArtifactError(
            f"{path} does not exist here; all machines of the cluster must see the model and the "
            "images under the same paths, on a shared file system"
        )
    check_digest(path, digest)


def _of_this_machine(error: TltoolsError, paths: Sequence[Path]) -> TltoolsError:
    """Return a clearer error if an image does not exist on this machine."""
    gone = next((path for path in paths if not path.exists()), None)
    if not isinstance(error, DataError) or gone is None:
        return error
    return DataError(
        f"{gone} does not exist here; all machines of the cluster must see the images under the "
        "same paths, on a shared file system"
    )
