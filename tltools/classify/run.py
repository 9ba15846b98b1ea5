"""Run a job on this machine: list, open, classify, write and summarize."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from tltools.classify.finished import finished_summary
from tltools.classify.identity import JobIdentity
from tltools.classify.inputs import are_found, check_inputs
from tltools.classify.job import Job, Summary
from tltools.classify.listing import JobListing
from tltools.classify.opening import open_for
from tltools.classify.output_formats import STDOUT, row_encoder
from tltools.classify.output_place import OutputPlace
from tltools.classify.predict import UNCERTAIN, UNKNOWN, RowMaker, Rows, max_distance
from tltools.classify.presence import Presence
from tltools.classify.resume import Start, go_on
from tltools.classify.tally import Tally
from tltools.classify.unfinished import HOW_TO_RESUME, UnfinishedOutput
from tltools.classify.writer import Output
from tltools.data.image_ref import ImageRef
from tltools.errors import ConfigError
from tltools.processes import Launcher
from tltools.progress import SILENT, Progress
from tltools.runtime import Plan, Predictor, run_images
from tltools.wording import counted

if TYPE_CHECKING:
    from tltools.classify.ledger import Ledger


def run_job(
    job: Job,
    *,
    progress: Progress = SILENT,
    launcher: Launcher | None = None,
    on_summary: Callable[[Summary], None] | None = None,
) -> Summary:
    """Classify images and write one row for each.

    If the same job was stopped, however it was stopped, this resumes after its rows. A folder that
    cannot be listed is skipped with a warning.

    Args:
        job: The job.
        progress: Where to report progress.
        launcher: Starts worker processes. With one, no image is decoded in this process, so that no
            image can crash it; without, a small job runs here entirely, and a large one starts
            here.
        on_summary: Called with the summary once the output is complete, before the job's record is
            removed: a job that is killed before that is found finished, and calls it again.

    Raises:
        ArtifactError: If the model is not a usable export.
        ConfigError: If the output exists or has an unknown suffix, a shard's output is standard
            output, another job is writing the output, or its unfinished rows are from another job.
        DataError: If an input does not exist, or there are no images.
        DeviceError: If the device cannot run the model.
        UnreachableError: If a server cannot be reached, or the images went away: their folder was
            unmounted or moved, many disappeared, or their disk or share fails.
        TltoolsError: If the output or the ledger cannot be written.
            The rows written so far stay in `<output>.part`, as they do whenever a job is stopped.
    """
    try:
        place = OutputPlace(job)
    except ConfigError:
        check_inputs(job.inputs)  # a misspelled image is the likelier mistake
        raise
    identity = JobIdentity(job, overwrite=place.replaces, shard=job.shard, tf32=job.tf32)
    if place.finished is None:
        summary = _run(job, place, identity, progress, launcher)
    else:
        summary = finished_summary(job, place.take_finished(identity), progress)
    if on_summary is not None:
        on_summary(summary)
    place.clear_up()
    return summary


def _run(
    job: Job,
    place: OutputPlace,
    identity: JobIdentity,
    progress: Progress,
    launcher: Launcher | None,
) -> Summary:
    """Run a job that has not finished."""
    listing = JobListing(job.inputs, shard=job.shard, warn=progress.warn)
    with closing(Tally(job.errors_to, spreadsheet=job.spreadsheet)) as tally, closing(place):
        start = go_on(place.unfinished, job, identity, listing.images, tally)
        tally.replaces = not place.must_own_errors
        if place.must_own_errors:
            tally.refuse_other_file()
        if start.kept is not None and start.num_rows:
            rows = counted(start.num_rows, "row")
            progress.say(f"Resuming after {rows} in {start.kept.path}")
        opened = open_for(job, start.kept, num_images=listing.total, launcher=launcher)
        predictor, plan = opened
        record = place.begin(start.record, partial(identity.record, predictor, plan))
        output = Output(
            place.path,
            predictor.card.classes,
            overwrite=place.replaces,
            spreadsheet=job.spreadsheet,
            distance=job.unknown is not None,
            opened=place.unfinished,
            kept=start.kept,
            on_complete=place.when_complete(record, listing, tally, progress),
        )
        with _open_ledger(job, identity, predictor) as ledger:
            run = _runner(job, place, opened, ledger, launcher, progress)
            presence = Presence(are_found=are_found(job.inputs))
            made = classify_missing(run, listing.images, start, presence)
            begun = time.perf_counter()
            _write_rows(output, place.unfinished, made, tally, progress, listing.total)
    return _summary(job, opened, output, start, listing, tally, ledger, begun)


def _open_ledger(
    job: Job, identity: JobIdentity, predictor: Predictor
) -> "AbstractContextManager[Ledger | None]":
    if job.ledger_dir is None:
        return nullcontext()
    from tltools.classify.ledger import Ledger  # here, because most jobs do without it

    return Ledger(
        job.ledger_dir,
        model_sha256=identity.model_sha256,
        num_classes=len(predictor.card.classes),
        distances=job.unknown is not None,
        tf32=job.tf32,
    )


def _runner(
    job: Job,
    place: OutputPlace,
    opened: tuple[Predictor, Plan],
    ledger: "Ledger | None",
    launcher: Launcher | None,
    progress: Progress,
) -> Callable[[Iterator[ImageRef]], Generator[Rows, None, None]]:
    """Return a function that makes rows from images."""
    predictor, plan = opened
    card = predictor.card
    encoder = partial(
        row_encoder,
        place.path,
        card.classes,
        spreadsheet=job.spreadsheet,
        distance=job.unknown is not None,
    )
    finish = RowMaker(
        card.classes,
        card.temperature,
        job.min_confidence,
        encoder,
        job.threshold,
        max_distance(card, job.unknown),
    )
    return partial(
        run_images,
        predictor,
        preprocessing=card.preprocessing,
        plan=plan,
        finish=finish,
        memory=ledger,
        launcher=launcher,
        timeout_s=job.image_timeout_s,
        tell=progress.warn,
    )


def classify_missing(
    run: Callable[[Iterator[ImageRef]], Generator[Rows, None, None]],
    images: Iterator[ImageRef],
    start: Start,
    presence: Presence,
) -> Generator[Rows, None, None]:
    """Classify the images that have no rows yet."""
    num_again = len(start.again)
    with closing(run(presence.listed(chain(start.again, images)))) as results:
        for rows in presence.confirmed(results):
            skipped = min(num_again, len(rows.encoded))
            num_again -= skipped
            yield rows.without(skipped) if skipped else rows


def _write_rows(
    output: Output,
    unfinished: UnfinishedOutput | None,
    made: Generator[Rows, None, None],
    tally: Tally,
    progress: Progress,
    total: int | None,
) -> None:
    """Write the missing rows; if that is interrupted, report how many are complete."""
    try:
        with output:
            num_missing = None if total is None else total - output.num_rows
            with progress.bar("Classifying", num_missing) as bar, closing(made):
                for some in made:
                    output.write_encoded(some.encoded)
                    tally.add_all(some)
                    bar.advance(len(some.encoded))
            tally.save()
    finally:
        is_kept = unfinished is not None and unfinished.exists() and not unfinished.is_lost
        if output.num_rows and unfinished is not None and is_kept:  # not renamed
            kept = counted(output.num_rows, "complete row is", "complete rows are")
            progress.warn(f"stopped: {kept} kept in {unfinished.path}")
            progress.say(HOW_TO_RESUME)


def _summary(
    job: Job,
    opened: tuple[Predictor, Plan],
    output: Output,
    start: Start,
    listing: JobListing,
    tally: Tally,
    ledger: "Ledger | None",
    begun: float,
) -> Summary:
    predictor, plan = opened
    return Summary(
        model=job.model,
        card=predictor.card,
        output=None if job.output == STDOUT else job.output,
        num_images=output.num_rows,
        num_kept=start.num_rows,
        num_known=None if ledger is None else ledger.num_known,
        counts=tally.by_class(predictor.card.classes),
        num_uncertain=0 if job.min_confidence is None else tally.counts[UNCERTAIN],
        num_unknown=0 if job.unknown is None else tally.counts[UNKNOWN],
        num_failed=tally.num_failed,
        errors=tally.errors,
        examples=tally.examples,
        unlisted=tuple(listing.unlisted),
        seconds=time.perf_counter() - begun,
        choice=predictor.choice,
        provider=predictor.provider,
        placement=predictor.placement,
        plan=plan,
        layout=getattr(predictor, "layout", "nchw"),
        tf32=job.tf32,
        left_out=listing.left_out.counts(),
    )
