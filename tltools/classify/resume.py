"""Go on after the rows that a stopped job left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
        """Take an open file, which is read when the rows are."""
        self.record = record
        self.path = unfinished.path
        self.num_rows = 0
        """Complete rows that were read."""
        self.num_bytes = 0
        """Where the last of them ends."""
        self._codec = codec

    def rows(self) -> Iterator[Row]:
        """Yield the complete rows, which end where one is torn.

        Raises:
            ConfigError: If the file does not begin as this job's output does.
        """
        # The file's own position does not matter: it is set when the rows are cut.
        with self.path.open("rb") as file:
            header = self._codec.header
            found = file.read(len(header))
            if found != header:
                if header.startswith(found):  # torn within it
                    return
                raise refusal(self.path, "it does not begin with the columns of its model")
            self.num_bytes = len(header)
            for row, num_bytes in self._codec.read(file):
                self.num_rows += 1
                self.num_bytes += num_bytes
                yield row

    def matched(self, images: Iterator[ImageRef]) -> Iterator[tuple[Row, ImageRef]]:
        """Yield the rows with their images, which are taken from the listing.

        Position alone is not trusted: each row has to have the name that is next in the listing.

        Raises:
            ConfigError: If the listing is another one than that of the rows.
        """
        for row in self.rows():
            image = next(images, None)
            where = f"row {self.num_rows:,} is of {row.path!r}"
            if image is None:
                raise refusal(self.path, f"{where}, and the inputs have fewer images than that now")
            if self._codec.text(image.name) != row.path:
                raise refusal(
                    self.path,
                    f"{where}, where the inputs have {image.name!r} now: images have come or "
                    "gone since",
                )
            yield row, image


@dataclass(frozen=True)
class Start:
    """Where a job begins in its listing."""

    kept: Kept | None = None
    """The rows of an earlier job to go on after."""
    again: Sequence[ImageRef] = ()
    """Images that have rows and go through the model once more, so that those after them are in
    the same batch as without a stop."""

    @property
    def record(self) -> JobRecord | None:
        """Of the job that is gone on with."""
        return None if self.kept is None else self.kept.record

    @property
    def num_rows(self) -> int:
        """Rows that are there."""
        return 0 if self.kept is None else self.kept.num_rows


def go_on(
    unfinished: UnfinishedOutput | None,
    job: JobSettings,
    identity: JobIdentity,
    images: Iterator[ImageRef],
    tally: Tally,
) -> Start:
    """Open what an earlier job left of an output, if it did, and count its rows.

    With `overwrite`, they are removed instead.

    Args:
        unfinished: The job's; None on standard output.
        job: The job that goes on.
        identity: What makes it the same job.
        images: The listing, from which the images that have rows are taken.
        tally: Counts them.

    Raises:
        ConfigError: If the rows are not of this job; the message says why.
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
    """Return what can be gone on with; None if there is nothing."""
    if unfinished.num_bytes == 0:
        return None
    record = read_record(unfinished.output)
    if record is None:
        raise ConfigError(
            f"{unfinished.path} exists and was not left by a job that can be gone on with: there "
            f"is no record of it ({record_path(unfinished.output).name}); move it, {REMEDY}"
        )
    if difference := identity.differences(record):
        raise refusal(unfinished.path, difference)
    codec = output_format(unfinished.output).codec(record.classes, spreadsheet=spreadsheet)
    return Kept(unfinished, record, codec)
