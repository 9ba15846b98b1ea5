"""Updates from actors about their parts, and the check that all parts come from one listing."""

import msgspec

from tltools.classify.listing import NamesDigest
from tltools.classify.tally import Tally
from tltools.errors import TltoolsError
from tltools.progress import Progress
from tltools.ray.messages import Failure, from_failure


class PartUpdate(msgspec.Struct, frozen=True):
    """An update about a part, from an actor or, for kept parts, from the driver."""

    number: int
    num_images: int = 0
    """Number of images done since the previous update."""
    is_done: bool = False
    """Whether the part is written. The fields below then describe all of it."""
    is_end: bool = False
    """Whether this marks the end of the listing instead of a part."""
    before: bytes = b""
    after: bytes = b""
    counts: dict[str, int] = {}
    """Number of images by label."""
    failures: tuple[tuple[str, str], ...] = ()
    """Name and error of the images that could not be read, in order."""
    unlisted: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """Messages about folders that are not searched."""
    left_out: dict[str, int] = {}
    """With `is_end`: number of files without an image suffix, by suffix."""
    failure: Failure | None = None
    """The error that ends the job."""


class PartsTally:
    """Counts of a job's parts, which are completed in any order."""

    def __init__(self, tally: Tally, progress: Progress) -> None:
        """Start without parts; warnings go to `progress`."""
        self.tally = tally
        self.parts: set[int] = set()
        self.num_rows = 0
        self.unlisted: list[str] = []
        self.left_out: dict[str, int] = {}
        self._skipped: set[str] = set()
        self._progress = progress
        self._waiting: dict[int, PartUpdate] = {}
        """Complete parts that come after an incomplete one, by number."""
        self._next = 0
        self._digest = NamesDigest().digest()
        self._end: PartUpdate | None = None

    def check_whole(self) -> None:
        """Check that all parts of the listing are complete.

        Raises:
            TltoolsError: If some are missing.
        """
        end = self._end
        if end is None or (end.number, end.before) != (self._next, self._digest):
            raise TltoolsError(
                "Ray lost some parts, or images were added or removed during the job; run the same "
                "job again to resume, or to see why that is impossible"
            )

    def add(self, update: PartUpdate) -> None:
        """Add an update.

        Raises:
            TltoolsError: If it reports a failure, or the parts do not come from one listing.
        """
        if update.failure is not None:
            raise from_failure(update.failure)
        self._tell(update)
        if update.is_end:
            self._end = update
            self.left_out = update.left_out
            return
        if not update.is_done or update.number in self.parts:
            return
        self.parts.add(update.number)
        self.num_rows += sum(update.counts.values()) + len(update.failures)
        self._waiting[update.number] = update
        while (first := self._waiting.pop(self._next, None)) is not None:
            if first.before != self._digest:
                raise TltoolsError(
                    f"part {self._next} is not from the same listing as the parts before it: "
                    "images were added or removed during the job; run it again with "
                    "`overwrite=True`"
                )
            self._digest = first.after
            self._next += 1
            self.tally.counts.update(first.counts)
            for name, error in first.failures:
                self.tally.add(name, None, error)

    def _tell(self, update: PartUpdate) -> None:
        """Warn of what the listing left out, once: one that is restarted reports it again."""
        for reason in update.unlisted:
            if reason not in self.unlisted:
                self.unlisted.append(reason)
                self._progress.warn(f"skipped: {reason}")
        for message in update.skipped:
            if message not in self._skipped:
                self._skipped.add(message)
                self._progress.warn(message)
