"""The record beside the complete output of a shard: what it was made from, for the merge."""

import hashlib
import os
from pathlib import Path

import msgspec

from tltools.atomic import write_text
from tltools.classify.identity import JobRecord
from tltools.classify.listing import ShardListing

RECORD_SUFFIX = ".shard.json"


class ShardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete shard was made from, kept in `<output>.shard.json`."""

    job: JobRecord
    num_listed: int
    """Images of the whole listing."""
    listing_sha256: str
    """Over their names, in order."""
    num_rows: int
    num_bytes: int
    sha256: str
    """Of the output's bytes."""


def shard_record_path(output: Path) -> Path:
    """Return where the record of a complete shard is."""
    return output.with_name(output.name + RECORD_SUFFIX)


def write_shard_record(
    output: Path, complete: Path, *, job: JobRecord, listing: ShardListing, num_rows: int
) -> None:
    """Write the record of a shard whose rows are complete, before they get their name.

    Killed in between, the job still has its rows and goes on; a record without its output, or
    beside an older one, is refused by the merge.

    Args:
        output: What the shard's output will be called.
        complete: What it is called now.
        job: What its rows depend on.
        listing: Read to its end.
        num_rows: Rows of the output.

    Raises:
        TltoolsError: If it cannot be written.
    """
    with complete.open("rb") as file:
        record = ShardRecord(
            job=job,
            num_listed=listing.num_listed,
            listing_sha256=listing.sha256,
            num_rows=num_rows,
            num_bytes=os.fstat(file.fileno()).st_size,
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),
        )
    text = msgspec.json.format(msgspec.json.encode(record), indent=2)
    write_text(shard_record_path(output), text.decode() + "\n")
