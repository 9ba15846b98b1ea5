"""List the images of a job next to the driver, and hand them out in parts."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tltools.classify.inputs import list_portions
from tltools.classify.listing import FirstSkipped, NamesDigest
from tltools.data.image_ref import ImageRef, RemoteObject
from tltools.data.left_out import LeftOut
from tltools.data.location import Location
from tltools.errors import DataError, TltoolsError
from tltools.ray.messages import Failure, value_table

if TYPE_CHECKING:
    import pyarrow


class PartTask(msgspec.Struct, frozen=True):
    """The images of a part, sent from the listing to an actor."""

    number: int
    """Number of the part, from 0."""
    images: tuple[tuple[bytes, bytes], ...] = ()
    """Absolute path or URL, and name, of each image. Empty at the end of the listing."""
    before: bytes = b""
    """Digest of the names of all images before these."""
    after: bytes = b""
    """Digest of the names up to and including these."""
    unlisted: tuple[str, ...] = ()
    """Why folders before these images could not be listed, or images are left out."""
    skipped: tuple[str, ...] = ()
    """Messages about folders before these images that are not searched."""
    left_out: dict[str, int] = {}
    """At the end of the listing: number of files without an image suffix, by suffix."""
    failure: Failure | None = None
    """The error that ended the listing."""


def list_parts(
    _start: object,
    *,
    inputs: Sequence[Location],
    part_size: int,
    done: frozenset[int],
    folder: Path,
) -> "Iterator[pyarrow.Table]":
    """List images in a task on the driver's machine, and hand them out in parts.

    Ray takes the next part when there is room for it; if the process is lost, Ray calls this again
    from the first part.

    Args:
        inputs: The job's inputs.
        part_size: Number of images per part.
        done: Numbers of the parts that exist already.
        folder: The driver's working folder, to which `inputs` are relative.

    Yields:
        A table with one row, `value`: a `PartTask` as MessagePack.
    """
    os.chdir(folder)
    for task in part_tasks(inputs, part_size, done):
        yield value_table(msgspec.msgpack.encode(task))


def part_tasks(
    inputs: Sequence[Location], part_size: int, done: frozenset[int]
) -> Iterator[PartTask]:
    """Yield the tasks of the parts that are not done, and one without images at the end."""
    unlisted: list[str] = []
    skipped: list[str] = []

    def leave_out(error: DataError) -> None:
        unlisted.append(str(error))

    left_out = LeftOut(leave_out)
    digest = NamesDigest()
    number = 0
    try:
        portions = list_portions(
            inputs, on_error=leave_out, left_out=left_out, on_skip=FirstSkipped(skipped.append)
        )
        images = chain.from_iterable(portion.images for portion in portions)
        while some := list(islice(images, part_size)):
            before, after = digests_around(digest, (image.name for image in some))
            if number not in done:
                paths = ((_place(one), os.fsencode(one.name)) for one in some)
                notes = tuple(unlisted), tuple(skipped)
                yield PartTask(number, tuple(paths), before, after, *notes)
                unlisted.clear()
                skipped.clear()
            number += 1
        before, after = digests_around(digest, ())
        notes = tuple(unlisted), tuple(skipped)
        yield PartTask(number, (), before, after, *notes, left_out.counts())
    except TltoolsError as error:
        yield PartTask(number, failure=(type(error).__name__, str(error)))


def _place(image: ImageRef) -> bytes:
    """Return an image's location as seen from every machine."""
    if isinstance(image.place, str):
        return os.fsencode(os.path.abspath(image.place))  # noqa: PTH100 - links stay
    # It is not a member of an archive: archives were rejected.
    assert isinstance(image.place, RemoteObject)
    assert image.place.url is not None
    return os.fsencode(image.place.url.text)


def digests_around(digest: NamesDigest, names: Iterable[str]) -> tuple[bytes, bytes]:
    """Add names to a digest; return its values before and after."""
    before = digest.digest()
    for name in names:
        digest.add(name)
    return before, digest.digest()
