"""One listing for several jobs: which pictures are a shard's, and whether all saw the same ones."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import msgspec

from tltools.data.image_ref import ImageRef
from tltools.errors import ConfigError

SHARD_BLOCK = 32
"""Pictures of the listing that go to a shard together, before the next shard has its turn.

Neighbours lie near each other on a disk and in an archive. It is `AHEAD_BATCH`, so that with the
default batch sizes, which divide it, the model gets the same batches as in one job.
"""


class Shard(msgspec.Struct, frozen=True):
    """One of the equal parts of a listing: blocks of `SHARD_BLOCK` pictures go round the shards.

    That keeps the parts equal however long the listing is, which nobody has to know beforehand,
    and lets a merge read all shards from their beginnings to their ends.
    """

    index: int
    """From 1 to `count`."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `K/N`.

        Raises:
            ConfigError: If it is something else, or K is not one of 1 to N.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"--shard takes K/N, the K-th of N parts, as in 1/4 to 4/4; got {text!r}"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        """Return `K/N`."""
        return f"{self.index}/{self.count}"

    def holds(self, number: int) -> bool:
        """Tell whether the picture with that number in the listing, from 0, is of this shard."""
        return number // SHARD_BLOCK % self.count == self.index - 1

    def size(self, num_pictures: int) -> int:
        """Return how many pictures of a listing are of this shard."""
        rounds, rest = divmod(num_pictures, SHARD_BLOCK * self.count)
        rest -= (self.index - 1) * SHARD_BLOCK
        return rounds * SHARD_BLOCK + min(max(rest, 0), SHARD_BLOCK)

    def name(self, output: Path) -> Path:
        """Return an output's name with the shard in it: `predictions-2-of-4.csv`."""
        return output.with_name(f"{output.stem}-{self.index}-of-{self.count}{output.suffix}")


class Listing:
    """The pictures of one shard, of a listing that is read to its end."""

    def __init__(self, pictures: Iterable[ImageRef], shard: Shard) -> None:
        """Take the whole listing, which is consumed as the shard's pictures are."""
        import hashlib  # here, because most jobs are whole and do without it

        self._pictures = pictures
        self.shard = shard
        self._digest = hashlib.sha256()
        self.num_listed = 0
        """Pictures of the whole listing, once it has been read."""

    def __iter__(self) -> Iterator[ImageRef]:
        """Yield the pictures of the shard."""
        for number, picture in enumerate(self._pictures):
            # No file's name contains a zero byte.
            self._digest.update(picture.name.encode("utf-8", "surrogatepass") + b"\0")
            self.num_listed = number + 1
            if self.shard.holds(number):
                yield picture

    @property
    def sha256(self) -> str:
        """SHA-256 over the names of the whole listing, once it has been read."""
        return self._digest.hexdigest()
