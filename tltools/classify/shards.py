"""One listing for several jobs: which images are a shard's."""

import re
from pathlib import Path
from typing import Self

import msgspec

from tltools.errors import ConfigError

SHARD_BLOCK = 32
"""Images of the listing that go to a shard together, before the next shard has its turn.

Neighbors lie near each other on a disk and in an archive. It is `AHEAD_BATCH`, so that with the
default batch sizes, which divide it, the model gets the same batches as in one job.
"""


class Shard(msgspec.Struct, frozen=True):
    """One of the equal parts of a listing: blocks of `SHARD_BLOCK` images go round the shards.

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
        """Tell whether the image with that number in the listing, from 0, is of this shard."""
        return number // SHARD_BLOCK % self.count == self.index - 1

    def size(self, num_images: int) -> int:
        """Return how many images of a listing are of this shard."""
        rounds, rest = divmod(num_images, SHARD_BLOCK * self.count)
        rest -= (self.index - 1) * SHARD_BLOCK
        return rounds * SHARD_BLOCK + min(max(rest, 0), SHARD_BLOCK)

    def name(self, output: Path) -> Path:
        """Return an output's name with the shard in it: `predictions-2-of-4.csv`."""
        return output.with_name(f"{output.stem}-{self.index}-of-{self.count}{output.suffix}")
