"""An actor of the pool: one predictor that classifies one part at a time and writes its rows."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tltools.classify.identity import PartsRecord
from tltools.classify.inputs import are_found
from tltools.classify.output_formats.format import utf8_text
from tltools.classify.predict import Prediction, classify
from tltools.classify.presence import Presence
from tltools.classify.unfinished import cannot_write
from tltools.classify.writer import write_complete
from tltools.data.location import is_url, location
from tltools.data.remote_images import Remotes
from tltools.errors import ArtifactError, DataError, TltoolsError
from tltools.ray.listing import PartTask
from tltools.ray.messages import (
    Failure,
    check_digest,
    check_version,
    failure_here,
    table_values,
    value_table,
)
from tltools.ray.parts import ATTEMPTS, part_path
from tltools.ray.updates import PartUpdate
from tltools.runtime import Device, Plan, load_predictor
from tltools.runtime.workers import MAX_STALLS, default_launcher

if TYPE_CHECKING:
    import pyarrow

NUM_UPDATES = 4
"""Number of progress updates an actor sends per part."""
MAX_DEATHS = MAX_STALLS + 1
"""Number of workers that may die on a part without an image to blame before the job gives up."""


class ActorSettings(msgspec.Struct, frozen=True):
    """The settings of an actor."""

    model: str
    output: str
    device: Device
    workers: int
    """Number of cores per actor."""
    image_timeout_s: float
    record: PartsRecord


class ClassifyActor:
    """One predictor that classifies one part at a time."""

    def __init__(self, settings: bytes) -> None:
        """Open the model; an error is reported with the first part."""
        self._settings = msgspec.msgpack.decode(settings, type=ActorSettings)
        self._problem: Failure | None = None
        self._launcher = default_launcher()
        try:
            self._open()
        except TltoolsError as error:
            self._problem = failure_here(error)

    def _open(self) -> None:
        settings, record = self._settings, self._settings.record
        check_version(record.tltools)
        model = Path(settings.model)
        inputs = [Path(place) for place in record.inputs if not is_url(place)]
        for path in (model, *inputs, Path(settings.output)):
            if not path.exists():
                kind = ArtifactError if path == model else DataError
                raise kind(
                    f"{path} does not exist here; all machines of the cluster must see the model, "
                    "the images and the output under the same paths, on a shared file system"
                )
        check_digest(model, record.model_sha256)
        fused = record.plan == "fused"
        self._predictor = load_predictor(
            model,
            device=settings.device,
            threads=1 if fused else settings.workers,
            distances=record.unknown is not None,
        )
        self._plan = Plan(record.plan, settings.workers, record.batch_size)
        self._folder = Path(settings.output)
        self._remotes = Remotes()

    def close(self) -> None:
        """End the worker processes; the end of the actor does so, too."""
        self._launcher.close()

    def __call__(self, table: "pyarrow.Table") -> "Iterator[pyarrow.Table]":
        """Classify parts and write them.

        Args:
            table: A column `value` with one `PartTask` per row, as MessagePack.

        Yields:
            A table with one row, `value`: a `PartUpdate` as MessagePack. A part that is retried
            after its worker was lost yields as many as the first time: Ray relies on that.
        """
        for value in table_values(table):
            task = msgspec.msgpack.decode(value, type=PartTask)
            for update in self._run(task):
                yield value_table(msgspec.msgpack.encode(update))

    def _run(self, task: PartTask) -> Iterator[PartUpdate]:
        failure = task.failure or self._problem
        if failure is None and not task.images:
            yield PartUpdate(
                task.number,
                is_end=True,
                before=task.before,
                after=task.after,
                unlisted=task.unlisted,
                skipped=task.skipped,
                left_out=task.left_out,
            )
            return
        num_updates = 0
        if failure is None:
            try:
                for update in self._classify(task):
                    yield update
                    num_updates += 1
            except TltoolsError as error:
                failure = failure_here(error)
        while failure is not None and num_updates <= NUM_UPDATES:
            yield PartUpdate(task.number, failure=failure)
            num_updates += 1

    def _write(self, number: int, made: Sequence[Prediction]) -> None:
        """Write a part."""
        record = self._settings.record
        write_complete(
            part_path(self._folder, number, record.part_format),
            made,
            record.classes,
            spreadsheet=record.spreadsheet,
            distance=record.unknown is not None,
        )

    def _classify(self, task: PartTask) -> Iterator[PartUpdate]:
        """Classify a part; yield `NUM_UPDATES` updates on the way and one at the end."""
        images = [
            self._remotes.image(os.fsdecode(name), os.fsdecode(place))
            for place, name in task.images
        ]
        attempts = self._folder / ATTEMPTS / f"{task.number:06d}"
        _count_attempt(task.number, attempts)
        stops = [len(images) * step // NUM_UPDATES for step in range(NUM_UPDATES + 1)]
        inputs = [location(place) for place in self._settings.record.inputs]
        presence = Presence(are_found=are_found(inputs))
        predictions = classify(
            self._predictor,
            presence.listed(images),
            plan=self._plan,
            min_confidence=self._settings.record.min_confidence,
            threshold=self._settings.record.threshold,
            unknown=self._settings.record.unknown,
            launcher=self._launcher,
            timeout_s=self._settings.image_timeout_s,
        )
        made: list[Prediction] = []
        with closing(predictions):
            for start, stop in pairwise(stops):
                for one in islice(predictions, stop - start):
                    presence.note_next(is_missing=one.is_missing)
                    made.append(one)
                yield PartUpdate(task.number, stop - start)
        self._write(task.number, made)
        with suppress(OSError):
            attempts.unlink()
        yield PartUpdate(
            task.number,
            is_done=True,
            before=task.before,
            after=task.after,
            counts=Counter(one.label for one in made if one.label is not None),
            failures=tuple(
                (utf8_text(one.name), utf8_text(one.error or ""))
                for one in made
                if one.label is None
            ),
            unlisted=task.unlisted,
            skipped=task.skipped,
        )


def _count_attempt(number: int, attempts: Path) -> None:
    """Count an attempt at a part; give up if it has cost too many workers.

    Images that crash a decoder do not crash a worker, so something else must be the cause.
    """
    try:
        attempts.parent.mkdir(exist_ok=True)
        with attempts.open("ab") as file:
            file.write(b"x")
        num_lost = attempts.stat().st_size - 1
    except OSError as error:
        raise cannot_write(attempts, error) from error
    if num_lost > MAX_DEATHS:
        raise TltoolsError(
            f"part {number} has crashed {num_lost} workers, and none of its images is to blame: "
            "suspect the model or the machines; try `workers=1`, another `device=` or another "
            "export"
        )
