"""Resume after the rows that a stopped job left."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tltools.classify.identity import JobIdentity, JobRecord
from tltools.classify.job import JobSettings
from tltools.classify.output_formats import Row, RowCodec, output_format
from tltools.classify.tally import Tally
from tltools.classify.unfinished import (
    REMEDY,
    UnfinishedOutput,
    read_record,
    record_path,
    refusal,
)
from tltools.data.image_ref import ImageRef
from tltools.errors import ConfigError


class Kept:
    """The complete rows of an unfinished output."""

    def __init__(self, unfinished: UnfinishedOutput, record: JobRecord, codec: RowCodec) -> None:
        """Take an open file, which is read together with the rows."""
        self.record = record
        self.path = unfinished.path
        self.num_rows = 0
        """Number of complete rows read."""
        self.num_bytes = 0
        """Position in the file at which the last of them ends."""
        self._codec = codec

    def rows(self) -> Iterator[Row]:
        """Yield the complete rows, up to the first truncated one.

        Raises:
            ConfigError: If the file does not start like this job's output.
        """
        # The file's own position does not matter: it is set when the rows are truncated.
        with self.path.open("rb") as file:
            header = self._codec.header
            found = file.read(len(header))
            if found != header:
                if header.startswith(found):  # the header itself is truncated
                    return
                raise refusal(self.path, "it does not start with the columns of its model")
            self.num_bytes = len(header)
            for row, num_bytes in self._codec.read(file):
                self.num_rows += 1
                self.num_bytes += num_bytes
                yield row

    def matched(self, images: Iterator[ImageRef]) -> Iterator[tuple[Row, ImageRef]]:
        """Yield the rows with their images, which are taken from the listing.

        Position alone is not trusted: each row must have the next name of the listing.

        Raises:
            ConfigError: If the listing is not the one that the rows came from.
        """
        for row in self.rows():
            image = next(images, None)
            where = f"row {self.num_rows:,} is for {row.path!r}"
            if image is None:
                raise refusal(self.path, f"{where}, but the inputs have fewer images now")
            if self._codec.text(image.name) != row.path:
                raise refusal(
                    self.path,
                    f"{where}, but the inputs have {image.name!r} there now: images were added or "
                    "removed since",
                )
            yield row, image


class Start(NamedTuple):
    """Where a job starts in its listing."""

    kept: Kept | None = None
    """The rows of a stopped job to resume after."""
    again: Sequence[ImageRef] = ()
    """Images that have rows but go through the model again, so that those after them are in the
    same batch as in an uninterrupted job."""

    @property
    def record(self) -> JobRecord | None:
        """The record of the job that is resumed."""
        return None if self.kept is None else self.kept.record

    @property
    def num_rows(self) -> int:
        """Number of rows that exist already."""
        return 0 if self.kept is None else self.kept.num_rows


def go_on(
    unfinished: UnfinishedOutput | None,
    job: JobSettings,
    identity: JobIdentity,
    images: Iterator[ImageRef],
    tally: Tally,
) -> Start:
    """Open the rows that a stopped job left of an output, if any, and count them.

    With `overwrite`, they are removed instead.

    Args:
        unfinished: The job's unfinished output; None on standard output.
        job: The job to resume.
        identity: What makes it the same job.
        images: The listing; the images that have rows are taken from it.
        tally: Counts the rows.

    Raises:
        ConfigError: If the rows are not from this job; the message says why.
        TltoolsError: If they cannot be opened.
    """
    if unfinished is None or not unfinished.exists():
        return Start()
    unfinished.open()
    if job.overwrite:
        unfinished.empty()
        return Start()
    kept = _read_back(unfinished, identity, spreadsheet=job.spreadsheet)
    if kept is None:
        return Start()
    again: list[ImageRef] = []
    for row, image in kept.matched(images):
        tally.add(image.name, row.label, row.error)
        again.append(image)
        if len(again) == kept.record.batch_size:
            again.clear()
    return Start(kept, again)


def _read_back(
    unfinished: UnfinishedOutput, identity: JobIdentity, *, spreadsheet: bool
) -> Kept | None:
    """Return the rows to resume after; None if there are none."""
    if unfinished.num_bytes == 0:
        return None
    record = read_record(unfinished.output)
    if record is None:
        raise ConfigError(
            f"cannot resume {unfinished.path}: its record ({record_path(unfinished.output).name}) "
            f"is missing or damaged; move the file, {REMEDY}"
        )
    if difference := identity.differences(record):
        raise refusal(unfinished.path, difference)
    codec = output_format(unfinished.output).codec(
        record.classes, spreadsheet=spreadsheet, distance=record.unknown is not None
    )
    return Kept(unfinished, record, codec)
