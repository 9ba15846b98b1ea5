"""The record beside the complete output of a shard: what it was made from, for merging."""

import hashlib
import os
from pathlib import Path

import msgspec

from tltools.atomic import write_text
from tltools.classify.identity import JobRecord
from tltools.classify.listing import ShardListing
from tltools.classify.shards import Shard
from tltools.classify.unfinished import MAX_RECORD_BYTES
from tltools.errors import ConfigError
from tltools.regular import read_regular

RECORD_SUFFIX = ".shard.json"


class ShardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete shard was made from, stored in `<output>.shard.json`."""

    job: JobRecord
    num_listed: int
    """Number of images in the whole listing."""
    listing_sha256: str
    """SHA-256 over their names, in order."""
    num_rows: int
    num_bytes: int
    sha256: str
    """SHA-256 of the output's bytes."""


def shard_record_path(output: Path) -> Path:
    """Return the path of a complete shard's record."""
    return output.with_name(output.name + RECORD_SUFFIX)


def write_shard_record(
    output: Path, complete: Path, *, job: JobRecord, listing: ShardListing, num_rows: int
) -> None:
    """Write the record of a shard whose rows are complete, before the file is renamed.

    A job that is killed in between keeps its rows and can resume; merging rejects a record without
    its output, or beside an older one.

    Args:
        output: Final path of the shard's output.
        complete: Its path now.
        job: What its rows depend on.
        listing: The listing, read to its end.
        num_rows: Number of rows in the output.

    Raises:
        TltoolsError: If the record cannot be written.
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


def refuse_other_shard(output: Path, shard: Shard | None) -> None:
    """Refuse to replace a complete shard with another one, or with a whole job.

    Args:
        output: Path that is to be written.
        shard: The shard to be written there; None for a whole job.

    Raises:
        ConfigError: If another complete shard is there.
    """
    try:
        content = read_regular(shard_record_path(output), max_bytes=MAX_RECORD_BYTES)
        there = msgspec.json.decode(content, type=ShardRecord).job.shard
    except (OSError, msgspec.DecodeError):
        return  # nothing shows that it is a shard
    if there is None or there == shard or not output.exists():
        return
    example = "" if shard is None else f", such as {shard.name(output)}"
    raise ConfigError(
        f"{output} is shard {there} of a job, which tltools merge needs; choose another file with "
        f"`output=`{example}"
    )
