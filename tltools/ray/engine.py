"""Classify on a cluster: the same job on Ray Data, its rows a data set in parts.

A task beside the driver lists the images and hands them out in parts. A pool of actors, each with
one predictor, classifies a part at a time as the local engine does and writes its rows completely
or not at all, so that a part is there or is missing. The driver sees to it that the parts are those
of one listing, and marks the data set when it has all of them.
"""

import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from tltools.card import Card
from tltools.classify.identity import JobIdentity, PartsRecord, device_difference
from tltools.classify.inputs import list_portions
from tltools.classify.job import Summary
from tltools.classify.listing import COUNTING_S, count_ahead
from tltools.classify.output_formats import output_format
from tltools.classify.pipeline import UNCERTAIN, check_min_confidence
from tltools.classify.tally import Tally, check_errors_to
from tltools.classify.unfinished import refusal
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


def run_ray_job(job: RayJob, *, progress: Progress = SILENT) -> Summary:
    """Classify images on a Ray cluster and write a data set in parts.

    The parts, `part-000000.parquet` and on, in order are the rows of `run_job`. A job that was
    stopped, in whatever way, is gone on with: the parts that are there are skipped.

    Args:
        job: The job.
        progress: Where to report.

    Raises:
        ArtifactError: If the model is not a usable export, here or on another machine.
        ConfigError: If Ray is missing, a part would not be whole batches, another job writes the
            same output, or what is there of it is not of this job.
        DataError: If an input does not exist, or there is no image.
        DeviceError: If the device is a GPU and the cluster has none.
        TltoolsError: If the cluster cannot be reached, rows cannot be written, a part ends its
            workers again and again, or images have come or gone during the job.
    """
    card = read_card(job.model)
    check_min_confidence(job.min_confidence, card.classes)
    import_ray()
    identity = JobIdentity(
        job, overwrite=job.overwrite, part_size=job.part_size, part_format=job.part_format
    )
    result = PartsTally(Tally(job.errors_to, spreadsheet=job.spreadsheet), progress)
    parts = PartsFolder(job.folder)
    with closing(result.tally), closing(parts):
        kept = parts.open(identity, anew=job.overwrite)
        part_format = _check_files(job, kept)
        total = _count(job)
        if kept is not None:
            _take_in(parts, kept, job, result, progress)
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
    """Check what kinds of files the job writes; return the format of the parts.

    Raises:
        ConfigError: If it is unknown or not one for spreadsheets, or the file for errors exists.
    """
    name = job.part_format or (kept.part_format if kept else "parquet")
    chosen = output_format(part_path(job.folder, 0, name))
    if job.spreadsheet and not chosen.has_spreadsheet_mode:
        raise ConfigError("--spreadsheet is for CSV; add --part-format csv")
    if job.errors_to is not None:
        goes_on = job.overwrite or kept is not None
        check_errors_to(job.errors_to, job.folder, overwrite=goes_on)
    return name


def _count(job: RayJob) -> int | None:
    """Return the number of images, where that is known soon."""
    portions = list_portions(job.inputs, on_error=lambda _error: None)
    return count_ahead(portions, seconds=COUNTING_S)[0]


def _take_in(
    parts: PartsFolder, kept: PartsRecord, job: RayJob, result: PartsTally, progress: Progress
) -> None:
    """Take in the parts that an earlier job left."""
    for update in parts.kept(kept, job.inputs):
        result.add(update)
    if result.parts:
        progress.say(
            f"Going on after {result.num_rows} rows in {len(result.parts)} parts in {job.folder}"
        )


@dataclass
class _Opened:
    """What there is to say of the model on the actors' device."""

    card: Card
    device: str
    provider: str
    choice: DeviceChoice
    placement: dict[str, int]
    plan: Plan


def _open(job: RayJob, pool: Pool, kept: PartsRecord | None) -> _Opened:
    """Choose the plan by opening the model here, or take that of the rows that are kept."""
    size = job.batch_size if kept is None else kept.batch_size
    if pool.num_gpus:  # which this machine need not have
        plan = Plan("ahead", pool.num_cpus, size or AHEAD_BATCH)
        card = read_card(job.model)
        opened = _Opened(card, pool.choice.device, pool.device, pool.choice, {}, plan)
    else:
        predictor, plan = open_model(
            job.model, device=pool.device, batch_size=size, workers=pool.num_cpus
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
    """Run the job on the cluster; yield what its actors tell, as it comes."""
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
        remedy="the same command goes on from there",
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
    """Take in what the actors tell; if something stops that, say what there is."""
    first = True
    try:
        with progress.bar("classify", total) as bar, closing(updates):
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
            progress.warn(f"stopped: {result.num_rows} rows in {len(result.parts)} parts are kept")
            progress.say("The same command, without --overwrite, goes on from there")
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
        num_failed=tally.num_failed,
        errors=tally.errors,
        unlisted=tuple(result.unlisted),
        seconds=time.perf_counter() - begun,
        choice=opened.choice,
        provider=opened.provider,
        placement=opened.placement,
        plan=opened.plan,
    )
