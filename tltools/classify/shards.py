"""Shards: which images of a listing belong to which of several jobs."""

import re
from pathlib import Path
from typing import Self

import msgspec

from tltools.errors import ConfigError

SHARD_BLOCK = 32
"""Number of consecutive images that go to one shard before the next shard's turn.

Neighbors are close together on disk and in an archive. It equals `AHEAD_BATCH`, so that with the
default batch sizes, which divide it, the model gets the same batches as in a single job.
"""


class Shard(msgspec.Struct, frozen=True):
    """One of N equal parts of a listing: blocks of `SHARD_BLOCK` images are dealt out in turn.

    This keeps the parts equal without knowing the length of the listing in advance, and lets a
    merge read every shard sequentially.
    """

    index: int
    """From 1 to `count`."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `K/N`.

        Raises:
            ConfigError: If the text is not of that form, or K is not in 1 to N.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"`shard=` takes K/N, shard K of N, such as 1/4 to 4/4; got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        """Return `K/N`."""
        return f"{self.index}/{self.count}"

    def holds(self, number: int) -> bool:
        """Return whether the image with this number in the listing, from 0, is in this shard."""
        return number // SHARD_BLOCK % self.count == self.index - 1

    def size(self, num_images: int) -> int:
        """Return how many images of a listing are in this shard."""
        rounds, rest = divmod(num_images, SHARD_BLOCK * self.count)
        rest -= (self.index - 1) * SHARD_BLOCK
        return rounds * SHARD_BLOCK + min(max(rest, 0), SHARD_BLOCK)

    def name(self, output: Path) -> Path:
        """Return the path of an output with the shard in its name: `predictions-2-of-4.csv`."""
        return output.with_name(f"{output.stem}-{self.index}-of-{self.count}{output.suffix}")
