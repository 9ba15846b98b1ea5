"""Open a job's model, in a worker if possible, with the settings of rows that are kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tltools.classify.identity import JobRecord, device_difference
from tltools.classify.job import Job
from tltools.classify.predict import check_min_confidence, check_unknown
from tltools.classify.resume import Kept
from tltools.classify.unfinished import refusal
from tltools.processes import Launcher
from tltools.runtime import Device, Plan, Predictor, default_threads, load_predictor, open_model
from tltools.runtime.driver import num_gpus
from tltools.runtime.pipeline import PlanName, may_fuse, open_in_worker
from tltools.runtime.predictor import Layout


def open_for(
    job: Job, kept: Kept | None, *, num_images: int | None, launcher: Launcher | None
) -> tuple[Predictor, Plan]:
    """Open the model of a job; choose a plan, or reuse the plan of the rows that are kept.

    Args:
        job: The job.
        kept: Rows of a stopped job to resume after; None to start.
        num_images: Number of images; None if unknown.
        launcher: Starts worker processes; None to open the model in this process.

    Raises:
        ArtifactError: If the model is not a usable export.
        ConfigError: If the rows were made on another device, the model has a class with
            the name of a label that `min_confidence` or `unknown` assigns, or `threshold` is of a
            class that it lacks.
        DeviceError: If the device cannot run the model.
    """
    if kept is None:
        predictor, plan = _open(job, None, num_images, launcher)
    else:
        predictor, plan = _open_again(job, kept, num_images, launcher)
    check_min_confidence(job.min_confidence, predictor.card.classes)
    check_unknown(job.unknown, predictor.card.classes)
    if job.threshold is not None:
        job.threshold.index(predictor.card.classes)
    return predictor, plan


def _open_again(
    job: Job, kept: Kept, num_images: int | None, launcher: Launcher | None
) -> tuple[Predictor, Plan]:
    """Open the model in the same way as for the rows that were kept."""
    record = kept.record
    again = replace(job, batch_size=record.batch_size)
    predictor, plan = _open(again, record, num_images, launcher)
    if difference := device_difference(record, predictor):
        raise refusal(kept.path, difference)
    if plan.name != record.plan:  # this time the measurement was on the other side of its limit
        fused = record.plan == "fused"
        predictor = load_predictor(
            job.model,
            device=job.device,
            threads=1 if fused else None,
            distances=job.unknown is not None,
        )
        plan = replace(plan, name=record.plan)
    return predictor, plan


def _open(
    job: Job, record: JobRecord | None, num_images: int | None, launcher: Launcher | None
) -> tuple[Predictor, Plan]:
    """Open the model of a job, as the record of its kept rows says, if there is one."""
    return open_where_best(
        job.model,
        device=job.device,
        batch_size=job.batch_size,
        workers=job.workers,
        threads=job.threads,
        tf32=job.tf32,
        layout=record and record.layout,
        plan=record and record.plan,
        num_images=num_images,
        launcher=launcher,
        distances=job.unknown is not None,
    )


def open_where_best(
    model: Path,
    *,
    device: Device,
    batch_size: int | None,
    workers: int | None,
    threads: int | None,
    tf32: bool,
    num_images: int | None,
    launcher: Launcher | None,
    layout: Layout | None = None,
    plan: PlanName | None = None,
    distances: bool = False,
) -> tuple[Predictor, Plan]:
    """Open an export in a worker if workers may run it, otherwise in this process.

    Args:
        model: The export.
        device: See `open_model`, as for its other arguments.
        batch_size: Images in one call of the model; None to choose.
        workers: Number of processes; None for one per core.
        threads: Cores for one forward pass on the CPU; None to choose.
        tf32: Let CUDA round fp32 products to TF32.
        num_images: Number of images; None if unknown.
        launcher: Starts worker processes; None to open the model in this process.
        layout: Memory layout on CUDA; None to choose.
        plan: The plan to keep to; None to choose.
        distances: See `load_predictor`.
    """
    shared: dict[str, Any] = {"device": device, "batch_size": batch_size, "workers": workers}
    shared["distances"] = distances
    if launcher is not None and not tf32 and _may_fuse(model, device, threads):
        opened = open_in_worker(
            model,
            launcher=launcher,
            plan="fused" if threads == 1 else plan,
            **shared,
        )
        if opened is not None:
            return opened
        threads = default_threads()
    return open_model(
        model,
        threads=threads,
        tf32=tf32,
        layout=layout,
        num_images=num_images,
        **shared,
    )


def _may_fuse(model: Path, device: Device, threads: int | None) -> bool:
    """Return whether workers might run the model, judged without opening it."""
    on_cpu = device in ("cpu", "openvino") or (device == "auto" and not num_gpus())
    return on_cpu and may_fuse(model, threads)
