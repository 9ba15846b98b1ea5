"""Classify on a cluster: the same job on Ray Data, written as a data set in parts.

A task next to the driver lists the images and hands them out in parts. A pool of actors, each with
one predictor, classifies one part at a time like the local engine and writes its rows completely or
not at all, so that a part is either complete or missing. The driver checks that all parts come from
one listing, and marks the data set as complete once it has all of them.
"""

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from tltools.card import Card
from tltools.classify.finished import finished_summary
from tltools.classify.identity import (
    JobIdentity,
    PartsRecord,
    absolute_or_none,
    device_difference,
)
from tltools.classify.inputs import list_portions
from tltools.classify.job import Summary
from tltools.classify.listing import COUNTING_S, count_ahead
from tltools.classify.output_formats import OUTPUT_FORMATS, output_format
from tltools.classify.predict import (
    UNCERTAIN,
    UNKNOWN,
    check_min_confidence,
    check_unknown,
    max_distance,
)
from tltools.classify.tally import Tally, check_errors_to
from tltools.classify.unfinished import HOW_TO_RESUME, refusal
from tltools.errors import ConfigError
from tltools.progress import SILENT, Progress
from tltools.ray.actor import ActorSettings, ClassifyActor
from tltools.ray.cluster import cluster, import_ray
from tltools.ray.job import RayJob
from tltools.ray.listing import list_parts
from tltools.ray.parts import PartsFolder, part_path
from tltools.ray.pool import Pool, choose_pool, run_actors
from tltools.ray.updates import PartsTally, PartUpdate
from tltools.runtime import DeviceChoice, Plan, open_model, read_card
from tltools.runtime.pipeline import AHEAD_BATCH
from tltools.wording import counted, either, plural


def run_ray_job(
    job: RayJob,
    *,
    progress: Progress = SILENT,
    on_summary: Callable[[Summary], None] | None = None,
) -> Summary:
    """Classify images on a Ray cluster and write a data set in parts.

    The parts, `part-000000.parquet` and so on, hold the rows of `run_job` in order. A job that was
    stopped, however it was stopped, is resumed: existing parts are skipped.

    Args:
        job: The job.
        progress: Where to report progress.
        on_summary: As in `run_job`.

    Raises:
        ArtifactError: If the model is not a usable export, here or on another machine.
        ConfigError: If Ray is missing, a part would not consist of whole batches, another job is
            writing the output, or its existing parts are from another job.
        DataError: If an input does not exist, or there are no images.
        DeviceError: If the device is a GPU and the cluster has none.
        TltoolsError: If the cluster cannot be reached, rows cannot be written, a part repeatedly
            crashes its workers, or images were added or removed during the job.
    """
    card = read_card(job.model)
    check_min_confidence(job.min_confidence, card.classes)
    check_unknown(job.unknown, card.classes)
    max_distance(card, job.unknown)  # raises an error before any work
    if job.threshold is not None:
        job.threshold.index(card.classes)
    import_ray()
    identity = JobIdentity(
        job, overwrite=job.overwrite, part_size=job.part_size, part_format=job.part_format
    )
    parts = PartsFolder(job.folder)
    finished = None if job.overwrite else parts.finished(identity)
    if finished is None:
        summary = _run(job, parts, identity, progress)
    else:
        summary = finished_summary(job, finished, progress)
    if on_summary is not None:
        on_summary(summary)
    parts.clear_up()
    return summary


def _run(job: RayJob, parts: PartsFolder, identity: JobIdentity, progress: Progress) -> Summary:
    """Run a job that has not finished."""
    result = PartsTally(Tally(job.errors_to, spreadsheet=job.spreadsheet), progress)
    result.tally.replaces = job.overwrite
    with closing(result.tally), closing(parts):
        kept = parts.open(identity, anew=job.overwrite)
        part_format = _check_files(job, kept)
        total = _count(job)
        if kept is not None:
            _take_in(parts, kept, job, result, progress)
            result.tally.replaces = kept.overwrite
            if not kept.overwrite:
                result.tally.refuse_other_file()
        num_kept = result.num_rows
        begun = time.perf_counter()
        with cluster(job.address, progress) as ray:
            pool = choose_pool(ray, job.device, job.workers)
            opened = _open(job, pool, kept)
            record = kept or parts.begin(
                identity.record(opened, opened.plan), job.part_size, part_format
            )
            progress.detail(f"Ray: ready after {time.perf_counter() - begun:.1f} s")
            progress.say(f"Ray: {pool}")
            begun = time.perf_counter()
            missing = None if total is None else total - num_kept
            updates = _updates(ray, job, pool, record, done=frozenset(result.parts))
            _collect(updates, result, missing, progress, begun)
        parts.finish(record, result)
    return _summary(job, opened, result, num_kept, begun)


def _check_files(job: RayJob, kept: PartsRecord | None) -> str:
    """Check the files that the job writes; return the format of the parts.

    Raises:
        ConfigError: If it is unknown or has no spreadsheet mode, or the file for errors exists.
    """
    name = job.part_format or (kept.part_format if kept else "parquet")
    chosen = output_format(part_path(job.folder, 0, name))
    if job.spreadsheet and not chosen.has_spreadsheet_mode:
        safe = [f"`part_format={one.name}`" for one in OUTPUT_FORMATS if one.has_spreadsheet_mode]
        raise ConfigError(
            f"parts in {name} have no spreadsheet mode; add {either(safe)}, or leave out "
            "`spreadsheet=True`"
        )
    if job.errors_to is not None:
        is_same = kept is not None and kept.errors_to == absolute_or_none(job.errors_to)
        replaces = job.overwrite or is_same
        check_errors_to(job.errors_to, job.folder, overwrite=replaces)
    return name


def _count(job: RayJob) -> int | None:
    """Return the number of images; None if counting takes too long."""
    portions = list_portions(job.inputs, on_error=lambda _error: None)
    return count_ahead(portions, seconds=COUNTING_S)[0]


def _take_in(
    parts: PartsFolder, kept: PartsRecord, job: RayJob, result: PartsTally, progress: Progress
) -> None:
    """Add the parts that a stopped job left."""
    for update in parts.kept(kept, job.inputs):
        result.add(update)
    if result.parts:
        progress.say(f"Resuming after {_rows_in_parts(result)} in {job.folder}")


def _rows_in_parts(result: PartsTally) -> str:
    """Return how many rows and parts there are, in words."""
    rows, parts = counted(result.num_rows, "row"), counted(len(result.parts), "part")
    return f"{rows} in {parts}"


@dataclass
class _Opened:
    """What is known about the model on the actors' device."""

    card: Card
    device: str
    provider: str
    choice: DeviceChoice
    placement: dict[str, int]
    plan: Plan


def _open(job: RayJob, pool: Pool, kept: PartsRecord | None) -> _Opened:
    """Choose the plan by opening the model here, or reuse the plan of the rows that are kept."""
    size = job.batch_size if kept is None else kept.batch_size
    if pool.num_gpus:  # this machine may have none
        plan = Plan("ahead", pool.num_cpus, size or AHEAD_BATCH)
        card = read_card(job.model)
        opened = _Opened(card, pool.choice.device, pool.device, pool.choice, {}, plan)
    else:
        predictor, plan = open_model(
            job.model,
            device=pool.device,
            batch_size=size,
            workers=pool.num_cpus,
            distances=job.unknown is not None,
        )
        opened = _Opened(
            predictor.card,
            predictor.device,
            predictor.provider,
            pool.choice,
            predictor.placement,
            plan,
        )
    if kept is None:
        return opened
    if difference := device_difference(kept, opened):
        raise refusal(job.folder, difference)
    return replace(opened, plan=replace(plan, name=kept.plan))


def _updates(
    ray: Any, job: RayJob, pool: Pool, record: PartsRecord, *, done: frozenset[int]
) -> Generator[PartUpdate, None, None]:
    """Run the job on the cluster; yield its actors' updates as they arrive."""
    settings = ActorSettings(
        model=os.path.abspath(job.model),  # noqa: PTH100 - links stay
        output=os.path.abspath(job.folder),  # noqa: PTH100
        device=pool.device,
        workers=pool.num_cpus,
        image_timeout_s=job.image_timeout_s,
        record=record,
    )
    values = run_actors(
        ray,
        pool,
        ClassifyActor,
        msgspec.msgpack.encode(settings),
        tasks=list_parts,
        tasks_options={
            "inputs": job.inputs,
            "part_size": record.part_size,
            "done": done,
            "folder": Path.cwd(),
        },
        remedy="run the same job again to resume",
    )
    with closing(values):
        for value in values:
            yield msgspec.msgpack.decode(value, type=PartUpdate)


def _collect(
    updates: Generator[PartUpdate, None, None],
    result: PartsTally,
    total: int | None,
    progress: Progress,
    begun: float,
) -> None:
    """Collect the actors' updates; if that is interrupted, report what is complete."""
    first = True
    try:
        with progress.bar("Classifying", total) as bar, closing(updates):
            for update in updates:
                if first:
                    waited = time.perf_counter() - begun
                    progress.detail(f"Ray: first images after {waited:.1f} s")
                    first = False
                bar.advance(update.num_images)
                result.add(update)
            result.check_whole()
            result.tally.save()
    except BaseException:
        if result.parts:
            verb = plural(result.num_rows, "is", "are")
            progress.warn(f"stopped: {_rows_in_parts(result)} {verb} kept")
            progress.say(HOW_TO_RESUME)
        raise


def _summary(
    job: RayJob, opened: _Opened, result: PartsTally, num_kept: int, begun: float
) -> Summary:
    tally = result.tally
    return Summary(
        model=job.model,
        card=opened.card,
        output=job.folder,
        num_images=result.num_rows,
        num_kept=num_kept,
        num_known=None,
        counts=tally.by_class(opened.card.classes),
        num_uncertain=0 if job.min_confidence is None else tally.counts[UNCERTAIN],
        num_unknown=0 if job.unknown is None else tally.counts[UNKNOWN],
        num_failed=tally.num_failed,
        errors=tally.errors,
        examples=tally.examples,
        unlisted=tuple(result.unlisted),
        left_out=result.left_out,
        seconds=time.perf_counter() - begun,
        choice=opened.choice,
        provider=opened.provider,
        placement=opened.placement,
        plan=opened.plan,
    )
