"""Decode pictures one by one in child processes, to learn which of them must not be decoded.

What `supervisor` does with divided processes, for a process that must not be divided because it
has threads of others'. The child is this module as a program.
"""

import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import msgspec

from tltools.card import Resize
from tltools.classify.supervisor import CRASHES, crash_reason, timeout_reason
from tltools.errors import DataError, TltoolsError

STARTUP_S = 120.0
"""Longest time until a child says which picture is its first: it has to import what decodes."""


class Order(msgspec.Struct, frozen=True):
    """What a child is told on its standard input."""

    places: tuple[bytes, ...]
    size: int
    resize: Resize


class Verdict(NamedTuple):
    """A picture that must not be decoded."""

    number: int
    """Among those that were asked for, from 0."""
    reason: str


def find_culprits(
    places: Sequence[bytes], *, size: int, resize: Resize, timeout_s: float
) -> Iterator[Verdict]:
    """Decode pictures, each in a process that may die of it.

    Args:
        places: Paths or URLs of the pictures.
        size: Of the decoded pictures, in pixels.
        resize: How they are brought to that size.
        timeout_s: Longest time that a picture may take.

    Yields:
        Those that end their process by a crash, or take too long, in order.

    Raises:
        TltoolsError: If a child ends in another way, so that nothing is learnt.
    """
    start = 0
    while start < len(places):
        order = Order(tuple(places[start:]), size, resize)
        index, status, overdue = _watch_child(order, timeout_s)
        if overdue:
            yield Verdict(start + index, timeout_reason("the decoder", timeout_s))
        elif -status in CRASHES and index >= 0:
            yield Verdict(start + index, crash_reason("the decoder", -status))
        elif status == 0:
            return
        else:
            raise TltoolsError(
                f"the process that looks for a picture that crashes its decoder ended with {status}"
                "; see that tltools works on this machine: tltools doctor"
            )
        start += index + 1


def _watch_child(order: Order, timeout_s: float) -> tuple[int, int, bool]:
    """Run a child; return the last picture that it began, its status, and whether it took long."""
    paths = os.pathsep.join(path for path in sys.path if path)
    index, overdue = -1, False
    with subprocess.Popen(  # noqa: S603 - this module itself
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):
            child.stdin.write(msgspec.msgpack.encode(order))
            child.stdin.close()
        while True:
            limit = timeout_s if index >= 0 else max(timeout_s, STARTUP_S)
            if not select.select([child.stdout], [], [], limit)[0]:
                overdue = index >= 0
                child.kill()
                break
            begun = os.read(child.stdout.fileno(), 4096)  # a byte for each picture that is begun
            if not begun:
                break
            index += len(begun)
    return index, child.returncode, overdue


def main() -> None:
    """Decode the pictures of standard input; say with a byte that one is begun."""
    from tltools.data.images import Source, load_image
    from tltools.data.remote import Remotes

    remotes = Remotes()
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
    for place in order.places:
        source = remotes.source(os.fsdecode(place))
        with suppress(DataError, OSError):
            if isinstance(source, Source):
                source.read = partial(bytes, source.read())  # a server's time is not the decoder's
            os.write(1, b".")
            load_image(source, size=order.size, resize=order.resize)


if __name__ == "__main__":
    main()
