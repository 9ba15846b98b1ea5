"""Where a job's rows go: its unfinished output, and the URL of the complete one."""

from collections.abc import Callable
from pathlib import Path

from tltools.classify.identity import JobRecord
from tltools.classify.job import Job
from tltools.classify.listing import JobListing
from tltools.classify.output_formats import STDOUT
from tltools.classify.tally import check_errors_to
from tltools.classify.unfinished import UnfinishedOutput, refusal
from tltools.classify.writer import check_output
from tltools.data.location import Url
from tltools.errors import ConfigError
from tltools.progress import Progress


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
            self._destination.discard_sent()
        else:
            self.path = job.output
        self.unfinished = None if self.path == STDOUT else UnfinishedOutput(self.path)
        """None on standard output."""
        # A job started with `overwrite` resumes without it; giving it again would start over.
        self.replaces = job.overwrite or (
            self.unfinished is not None and self.unfinished.may_replace()
        )
        """Whether an existing output is replaced when this one is complete."""
        check_output(self.path, overwrite=self.replaces, spreadsheet=job.spreadsheet)
        if self._destination is not None and not self.replaces:
            self._destination.check_free()
        if job.shard is not None and self.path == STDOUT:
            raise ConfigError(
                "`shard=` keeps a record beside its output; name a file with `output=`"
            )
        if job.errors_to is not None:
            resumes = self.unfinished is not None and self.unfinished.exists()
            check_errors_to(job.errors_to, self.path, overwrite=self.replaces or resumes)

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
        self, record: JobRecord | None, listing: JobListing, progress: Progress
    ) -> Callable[[Path, int], None]:
        """Return a function to call with the complete file before it is renamed."""

        def finish(complete: Path, num_rows: int) -> None:
            if listing.of_shard is not None and record is not None:
                from tltools.classify.shard_record import write_shard_record  # rarely needed

                write_shard_record(
                    self.path, complete, job=record, listing=listing.of_shard, num_rows=num_rows
                )
            if self._destination is not None:
                self._destination.send(complete, progress)

        return finish

    def discard_sent(self) -> None:
        """Remove the local copy of a complete output that was uploaded to its URL."""
        if self._destination is not None:
            self._destination.discard_sent()

    def close(self) -> None:
        """Release the unfinished output."""
        if self.unfinished is not None:
            self.unfinished.close()
