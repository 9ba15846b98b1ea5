"""What actors tell of their parts, and what it comes to: the parts have to be of one listing."""

import msgspec

from tltools.classify.listing import NamesDigest
from tltools.classify.tally import Tally
from tltools.errors import TltoolsError
from tltools.progress import Progress
from tltools.ray.messages import Failure, from_failure


class PartUpdate(msgspec.Struct, frozen=True):
    """What an actor, or the driver of kept parts, says of a part."""

    number: int
    num_images: int = 0
    """Images that are done since the update before."""
    is_done: bool = False
    """Whether the part is written. What follows is of the whole of it."""
    is_end: bool = False
    """Whether it is no part, but the end of the listing."""
    before: bytes = b""
    after: bytes = b""
    counts: dict[str, int] = {}
    """Images by label."""
    failures: tuple[tuple[str, str], ...] = ()
    """Name and error of the images that could not be read, in order."""
    unlisted: tuple[str, ...] = ()
    failure: Failure | None = None
    """As a task's: the job cannot go on."""


class PartsTally:
    """What is known of a job's parts, which become complete in any order."""

    def __init__(self, tally: Tally, progress: Progress) -> None:
        """Know of no part yet; warnings go to `progress`."""
        self.tally = tally
        self.parts: set[int] = set()
        self.num_rows = 0
        self.unlisted: list[str] = []
        self._progress = progress
        self._waiting: dict[int, PartUpdate] = {}
        """Those that are complete and come after one that is not, by number."""
        self._next = 0
        self._digest = NamesDigest().digest()
        self._end: PartUpdate | None = None

    def check_whole(self) -> None:
        """See that the parts that are there are all that the listing has.

        Raises:
            TltoolsError: If not.
        """
        end = self._end
        if end is None or (end.number, end.before) != (self._next, self._digest):
            raise TltoolsError(
                "Ray has lost some parts, or images have come or gone during the job; the same "
                "command goes on with the parts that are there, or says why not"
            )

    def add(self, update: PartUpdate) -> None:
        """Take in what is told.

        Raises:
            TltoolsError: If it is a failure, or the parts are not those of one listing.
        """
        if update.failure is not None:
            raise from_failure(update.failure)
        for reason in update.unlisted:
            if reason not in self.unlisted:  # a listing that begins again says it again
                self.unlisted.append(reason)
                self._progress.warn(f"left out: {reason}")
        if update.is_end:
            self._end = update
            return
        if not update.is_done or update.number in self.parts:
            return
        self.parts.add(update.number)
        self.num_rows += sum(update.counts.values()) + len(update.failures)
        self._waiting[update.number] = update
        while (first := self._waiting.pop(self._next, None)) is not None:
            if first.before != self._digest:
                raise TltoolsError(
                    f"part {self._next} is not of the same listing as the parts before: images "
                    "have come or gone during the job; run it again with --overwrite"
                )
            self._digest = first.after
            self._next += 1
            self.tally.counts.update(first.counts)
            for name, error in first.failures:
                self.tally.add(name, None, error)
