"""Find a job finished that was killed after its output was complete."""

from typing import Any, cast

from tltools.classify.identity import JobRecord
from tltools.classify.job import JobSettings, Summary
from tltools.classify.predict import UNCERTAIN, UNKNOWN
from tltools.progress import Progress
from tltools.runtime import DeviceChoice, Plan, default_threads, read_card


def finished_summary(job: JobSettings, record: JobRecord, progress: Progress) -> Summary:
    """Return the summary of a job that has finished before.

    Args:
        job: The job.
        record: Its record, with the complete output.
        progress: Is told that nothing is left to do.

    Raises:
        ArtifactError: If the model cannot be read.
    """
    complete = record.complete
    assert complete is not None
    progress.say(f"This job has already finished: {job.output} is complete")
    plan = Plan(record.plan, job.workers or default_threads(), record.batch_size)
    return Summary(
        model=job.model,
        card=read_card(job.model),
        output=job.output,
        num_images=complete.num_rows,
        num_kept=complete.num_rows,
        num_known=None,
        counts={name: complete.counts.get(name, 0) for name in record.classes},
        num_uncertain=0 if job.min_confidence is None else complete.counts.get(UNCERTAIN, 0),
        num_unknown=0 if job.unknown is None else complete.counts.get(UNKNOWN, 0),
        num_failed=sum(complete.errors.values()),
        errors=complete.errors,
        examples=complete.examples,
        unlisted=complete.unlisted,
        seconds=0.0,
        choice=DeviceChoice(cast("Any", record.device), "as it was recorded"),
        provider=record.provider,
        placement={},
        plan=plan,
        layout=record.layout,
        tf32=record.tf32,
        left_out=complete.left_out,
    )
