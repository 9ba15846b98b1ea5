"""List the images of a job beside the driver, and hand them out in parts."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tltools.classify.inputs import list_portions
from tltools.classify.listing import NamesDigest
from tltools.data.image_ref import ImageRef, RemoteObject
from tltools.data.location import Location
from tltools.errors import TltoolsError
from tltools.ray.messages import Failure, value_table

if TYPE_CHECKING:
    import pyarrow


class PartTask(msgspec.Struct, frozen=True):
    """Images that make a part, from the listing to an actor."""

    number: int
    """Of the part, from 0."""
    images: tuple[tuple[bytes, bytes], ...] = ()
    """Absolute path, or URL, and name of each. Without images: the listing has ended."""
    before: bytes = b""
    """Digest of the names of all images before these."""
    after: bytes = b""
    """The same with these."""
    unlisted: tuple[str, ...] = ()
    """Why folders before these images were left out."""
    failure: Failure | None = None
    """Where the listing cannot go on."""


def list_parts(
    _start: object,
    *,
    inputs: Sequence[Location],
    part_size: int,
    done: frozenset[int],
    folder: Path,
) -> "Iterator[pyarrow.Table]":
    """List images, in a task on the driver's machine, and hand them out in parts.

    Ray takes the next part when there is room for it, and calls this again, from the first part,
    if the process is lost.

    Args:
        inputs: The job's.
        part_size: Images of a part.
        done: Numbers of the parts that are there.
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
    digest = NamesDigest()
    number = 0
    try:
        portions = list_portions(inputs, on_error=lambda error: unlisted.append(str(error)))
        images = chain.from_iterable(portion.images for portion in portions)
        while some := list(islice(images, part_size)):
            before, after = digests_around(digest, (image.name for image in some))
            if number not in done:
                paths = ((_place(one), os.fsencode(one.name)) for one in some)
                yield PartTask(number, tuple(paths), before, after, tuple(unlisted))
                unlisted.clear()
            number += 1
        before, after = digests_around(digest, ())
        yield PartTask(number, (), before, after, tuple(unlisted))
    except TltoolsError as error:
        yield PartTask(number, failure=(type(error).__name__, str(error)))


def _place(image: ImageRef) -> bytes:
    """Return where an image is, for every machine."""
    if isinstance(image.place, str):
        return os.fsencode(os.path.abspath(image.place))  # noqa: PTH100 - links stay
    # And no member of an archive: those were refused.
    assert isinstance(image.place, RemoteObject)
    assert image.place.url is not None
    return os.fsencode(image.place.url.text)


def digests_around(digest: NamesDigest, names: Iterable[str]) -> tuple[bytes, bytes]:
    """Take names in; return the digests before and after that."""
    before = digest.digest()
    for name in names:
        digest.add(name)
    return before, digest.digest()
