"""The images of a job: listed lazily, counted ahead if that is quick, their names hashed.

The digest shows whether several jobs or machines saw the same images.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from tltools.classify.inputs import Portion, is_slow, list_portions
from tltools.classify.shards import Shard
from tltools.data.folders import SkipReason
from tltools.data.image_ref import ImageRef
from tltools.data.left_out import LeftOut
from tltools.data.location import Location
from tltools.errors import DataError

COUNTING_S = 0.5
"""Longest time spent listing ahead to find the progress bar's total."""


class NamesDigest:
    """SHA-256 over image names, in order."""

    def __init__(self) -> None:
        """Start with no names."""
        import hashlib  # here, because most jobs do without it

        self._hash = hashlib.sha256()

    def add(self, name: str) -> None:
        """Add a name."""
        # A zero byte ends a name; one within a name becomes a byte that UTF-8 does not have.
        self._hash.update(name.encode("utf-8", "surrogatepass").replace(b"\0", b"\xff") + b"\0")

    def digest(self) -> bytes:
        """Return the digest of the names so far, 32 bytes."""
        return self._hash.digest()


class ShardListing:
    """The images of one shard; the whole listing is read to find them."""

    def __init__(self, images: Iterable[ImageRef], shard: Shard) -> None:
        """Take the whole listing, which is consumed together with the shard's images."""
        self._images = images
        self.shard = shard
        self._digest = NamesDigest()
        self.num_listed = 0
        """Number of images in the whole listing, once it has been read."""

    def __iter__(self) -> Iterator[ImageRef]:
        """Yield the images of the shard."""
        for number, image in enumerate(self._images):
            self._digest.add(image.name)
            self.num_listed = number + 1
            if self.shard.holds(number):
                yield image

    @property
    def sha256(self) -> str:
        """Digest of all names in the listing, as hexadecimal digits, once it has been read."""
        return self._digest.digest().hex()


class JobListing:
    """The images of a job or of its shard; folders that cannot be listed are skipped."""

    def __init__(
        self, inputs: Sequence[Location], *, shard: Shard | None, warn: Callable[[str], None]
    ) -> None:
        """Start listing.

        Args:
            inputs: See `list_images`.
            shard: The shard of the listing to return; None for all of it.
            warn: Called with a message for each folder or archive that cannot be listed, and for
                images that have no image suffix.

        Raises:
            DataError: If an input does not exist, or there is no image.
        """
        self.unlisted: list[str] = []
        """Why each skipped folder, rest of an archive, or image without an image suffix has no
        rows; may still grow."""

        def leave_out(error: DataError) -> None:
            self.unlisted.append(str(error))
            warn(f"skipped: {error}")

        self.left_out = LeftOut(leave_out)
        """The files without an image suffix; may still grow."""
        portions = list_portions(
            inputs, on_error=leave_out, left_out=self.left_out, on_skip=FirstSkipped(warn)
        )
        self.total, portions = count_ahead(portions, seconds=0.0 if is_slow(inputs) else COUNTING_S)
        """Number of images; None if unknown."""
        self.images: Iterator[ImageRef] = chain.from_iterable(
            portion.images for portion in portions
        )
        """Can be consumed only once."""
        self.of_shard: ShardListing | None = None
        if shard is not None:
            self.of_shard = ShardListing(self.images, shard)
            self.images = iter(self.of_shard)
            self.total = None if self.total is None else shard.size(self.total)


class FirstSkipped:
    """Tells of the first skipped folder of each kind: a system may have one in every folder."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Take the function to call with a message."""
        self._warn = warn
        self._told: set[SkipReason] = set()

    def __call__(self, folder: Path, reason: SkipReason) -> None:
        """Tell of a folder that is not searched."""
        if reason not in self._told:
            self._told.add(reason)
            what = "the system made" if reason == "system" else "tltools wrote"
            self._warn(f"skipped what {what}, such as {folder}")


def count_ahead(
    portions: Iterator[Portion], *, seconds: float
) -> tuple[int | None, Iterator[Portion]]:
    """Count the images by listing ahead for up to `seconds`; None if that is not enough.

    The first portion is always read, so that an empty input fails at once. What was listed ahead is
    kept, as names only, and returned with the rest: listing it again would take as long.
    """
    ahead = [next(portions)]
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        portion = next(portions, None)
        if portion is None:
            return sum(portion.num_images for portion in ahead), iter(ahead)
        ahead.append(portion)
    return None, chain(ahead, portions)
