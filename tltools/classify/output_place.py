"""Where a job's rows go: its unfinished output, and the URL of the complete one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import structs

from tltools.classify.identity import Complete, JobIdentity, JobRecord, absolute_or_none
from tltools.classify.job import Job
from tltools.classify.listing import JobListing
from tltools.classify.output_formats import STDOUT
from tltools.classify.tally import Tally, check_errors_to
from tltools.classify.unfinished import UnfinishedOutput, exists_already, read_record, refusal
from tltools.classify.writer import check_output
from tltools.data.location import Url
from tltools.errors import ConfigError
from tltools.progress import Progress


def describe(
    path: Path,
    num_rows: int,
    tally: Tally,
    unlisted: Sequence[str],
    left_out: Mapping[str, int],
) -> Complete:
    """Describe a complete output that is about to get its name.

    Args:
        path: The output's path now.
        num_rows: Number of its rows.
        tally: The counts of the job.
        unlisted: As in a summary.
        left_out: As in a summary.
    """
    info = path.stat()
    return Complete(
        device=info.st_dev,
        inode=info.st_ino,
        num_bytes=info.st_size,
        modified_ns=info.st_mtime_ns,
        num_rows=num_rows,
        counts=dict(tally.counts),
        errors=tally.errors,
        examples=tally.examples,
        unlisted=tuple(unlisted),
        left_out=dict(left_out),
    )


class OutputPlace:
    """The output of a job on this machine."""

    def __init__(self, job: Job) -> None:
        """Reject an output that cannot or must not be written, before any work is done.

        Raises:
            ConfigError: If the output is rejected.
            UnreachableError: If the server of a URL cannot be reached.
        """
        self._destination = None
        self.path: Path
        """File that the rows are written to, or `-`."""
        if isinstance(job.output, Url):
            from tltools.classify.uploads import Destination  # here, because most jobs have none

            self._destination = Destination(job.output)
            self.path = self._destination.staged
        else:
            self.path = job.output
        self.unfinished = None if self.path == STDOUT else UnfinishedOutput(self.path)
        """None on standard output."""
        before = None if self.unfinished is None else read_record(self.path)
        resumes = self.unfinished is not None and self.unfinished.exists()
        self.finished: JobRecord | None = None
        """The record of a job that was killed after its output was complete."""
        if before is not None and self._is_finished(job, before, resumes=resumes):
            self.finished = before
        # A job started with `overwrite` resumes without it; giving it again would start over.
        self.replaces = job.overwrite or (resumes and before is not None and before.overwrite)
        """Whether an existing output is replaced when this one is complete."""
        if self.path.exists() and not (self.replaces or self.finished):
            from tltools.classify.shard_record import refuse_other_shard  # here, as it is rare

            refuse_other_shard(self.path, job.shard)
        check_output(
            self.path, overwrite=self.replaces or bool(self.finished), spreadsheet=job.spreadsheet
        )
        if self._destination is not None and self.finished is None:
            self._destination.discard_sent()
            if not self.replaces:
                self._destination.check_free(before and before.complete if resumes else None)
        if job.shard is not None and self.path == STDOUT:
            raise ConfigError(
                "`shard=` keeps a record beside its output; name a file with `output=`"
            )
        self.must_own_errors = False
        """Whether a file of failed images is replaced only if this job wrote it."""
        if job.errors_to is not None:
            is_same = before is not None and before.errors_to == absolute_or_none(job.errors_to)
            replaces = job.overwrite or (is_same and (resumes or self.finished is not None))
            check_errors_to(job.errors_to, self.path, overwrite=replaces)
            self.must_own_errors = not replaces or not self.replaces

    def _is_finished(self, job: Job, record: JobRecord, *, resumes: bool) -> bool:
        """Return whether the record's job was killed after its output was complete."""
        errors_to = job.errors_to
        if record.errors_to != absolute_or_none(errors_to) or job.overwrite:
            return False
        if record.complete is None or (errors_to is not None and not errors_to.exists()):
            return False
        if self._destination is None:
            return record.complete.is_at(self.path)
        return not resumes and self._destination.holds(record.complete)

    def take_finished(self, identity: JobIdentity) -> JobRecord:
        """Return the record of the finished job.

        Raises:
            ConfigError: If it is another job than this one, whose output exists then.
        """
        assert self.finished is not None
        if identity.differences(self.finished) is not None:
            raise exists_already(self._destination.url if self._destination else self.path)
        return self.finished

    def begin(
        self, kept: JobRecord | None, make_record: Callable[[], JobRecord]
    ) -> JobRecord | None:
        """Open the unfinished output of a new job and write its record.

        Args:
            kept: The record of the rows to resume after, whose output is open; None to start.
            make_record: Returns the record of a new job.

        Returns:
            The record; None on standard output, which has none.

        Raises:
            ConfigError: If another job has started the same output.
            TltoolsError: If the record cannot be written.
        """
        if self.unfinished is None or kept is not None:
            return kept
        record = make_record()
        if not self.unfinished.is_open:
            self.unfinished.open()
            if self.unfinished.num_bytes:
                raise refusal(self.unfinished.path, "another job has created it in the meantime")
        self.unfinished.begin(record)
        return record

    def when_complete(
        self, record: JobRecord | None, listing: JobListing, tally: Tally, progress: Progress
    ) -> Callable[[Path, int], None]:
        """Return a function to call with the complete file before it is renamed."""

        def finish(complete: Path, num_rows: int) -> None:
            if listing.of_shard is not None and record is not None:
                from tltools.classify.shard_record import write_shard_record  # rarely needed

                write_shard_record(
                    self.path,
                    complete,
                    job=structs.replace(record, complete=None),
                    listing=listing.of_shard,
                    num_rows=num_rows,
                )
            if self.unfinished is not None and record is not None:
                facts = describe(
                    complete, num_rows, tally, listing.unlisted, listing.left_out.counts()
                )
                self.unfinished.record(structs.replace(record, complete=facts))
            if self._destination is not None:
                self._destination.send(complete, progress)

        return finish

    def clear_up(self) -> None:
        """Remove what is left of a finished job: its record, and the local copy of an upload.

        Raises:
            TltoolsError: If something cannot be removed.
        """
        if self._destination is not None:
            self._destination.discard_sent()
        if self.unfinished is not None:
            self.unfinished.clear_up()
        if self._destination is not None:
            self._destination.discard_folder()

    def close(self) -> None:
        """Release the unfinished output."""
        if self.unfinished is not None:
            self.unfinished.close()
