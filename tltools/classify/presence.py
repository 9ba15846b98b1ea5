"""Tell images that were deleted from images that went away with their folder, disk or share."""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator

from tltools.classify.predict import Rows
from tltools.data.image_ref import ImageRef
from tltools.data.reasons import identity_of
from tltools.errors import UnreachableError

MANY = 16
"""Neighboring images that are gone at once; fewer were deleted one by one."""
_MAX_FOLDERS = 4096
"""Number of folders to remember, many more than are in flight."""


class Presence:
    """Watches whether the images of a job are still there when they are read.

    A missing image is an error of its own: it was deleted, or a list names it by mistake. But if
    its folder is gone as well, or many neighbors are, the rows that follow would all be such
    errors: the job stops instead, and resumes once the images are back.
    """

    def __init__(self, *, are_found: bool) -> None:
        """Start watching.

        Args:
            are_found: Whether each image existed when it was listed. False for lists, which may
                name images that never existed.
        """
        self._are_found = are_found
        self._folder: str | None = None
        self._identities: dict[str, tuple[int, int] | None] = {}
        """Which folder was at a path when its images were listed; None if there was none."""
        self._waiting: deque[object] = deque()
        """The places of images that are on their way."""
        self._opened: deque[str] = deque(maxlen=MANY)
        """The latest images that could be opened."""
        self._num_gone = 0
        """Number of images in a row that existed when they were listed, and are gone."""

    def listed(self, images: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Yield images, and note the folders that they are in."""
        wait = self._waiting.append
        for image in images:  # each takes about a microsecond
            place = image.place
            if isinstance(place, str):
                folder = place.rpartition(os.sep)[0]
                if folder != self._folder:
                    self._note(place, folder)
            wait(place)
            yield image

    def _note(self, path: str, folder: str) -> None:
        self._folder = folder
        if folder not in self._identities:
            if len(self._identities) >= _MAX_FOLDERS:
                self._identities.pop(next(iter(self._identities)))
            self._identities[folder] = _identity(path, folder)

    def confirmed(self, results: Iterable[Rows]) -> Generator[Rows, None, None]:
        """Yield the rows of the listed images, in order.

        Rows of missing images are held back until a later image can be read, so that none is
        written if they turn out to be the first of many.

        Raises:
            UnreachableError: If the images went away.
        """
        held: list[Rows] = []
        for rows in results:
            if self._ends_gap(len(rows.labels), rows.missing):
                yield from held
                held.clear()
            held.append(rows)
            if not self._num_gone:
                yield from held
                held.clear()
        yield from held

    def _ends_gap(self, number: int, missing: frozenset[int]) -> bool:
        """Note the next images; return whether one of them can be read."""
        if not missing:
            self._num_gone = 0
            take = self._waiting.popleft
            opened = [take() for _ in range(number)][-MANY:]
            self._opened.extend(one for one in opened if isinstance(one, str))
            return number > 0
        is_read = False
        for index in range(number):
            if self.note_next(is_missing=index in missing):
                is_read = True
        return is_read

    def note_next(self, *, is_missing: bool) -> bool:
        """Note the next image; return whether it is there, or is not on this machine.

        Args:
            is_missing: Whether it could not be opened.

        Raises:
            UnreachableError: If it is one of many that went away.
        """
        place = self._waiting.popleft()
        if isinstance(place, str) and is_missing:
            return self._check(place)
        if isinstance(place, str):
            self._opened.append(place)
        self._num_gone = 0
        return True

    def _check(self, path: str) -> bool:
        """Return whether a missing image is there nonetheless, such as a link that leads nowhere.

        Raises:
            UnreachableError: If it is one of many that went away.
        """
        folder = path.rpartition(os.sep)[0]
        before, now = self._identities.get(folder), _identity(path, folder)
        is_other = before is not None and now != before
        if is_other or (now is None and self._are_found):
            raise UnreachableError(
                f"the folder {folder or '.'} disappeared or was replaced after its images were "
                "listed; mount or move it back, then run the same job again"
            )
        is_gone = self._are_found and not os.path.lexists(path)
        self._num_gone = self._num_gone + 1 if is_gone else 0
        num_gone = self._num_gone + sum(identity_of(one) is None for one in self._opened)
        if num_gone >= MANY:
            raise UnreachableError(
                f"{path} and {num_gone - 1} images next to it disappeared after they were listed; "
                "mount or move them back, then run the same job again"
            )
        return not is_gone


def _identity(path: str, folder: str) -> tuple[int, int] | None:
    """Return which folder holds a path: an empty one is the root or the working folder."""
    return identity_of(folder or (os.sep if path.startswith(os.sep) else "."))
