"""Do work in threads, ahead of its consumer, in order and in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Return the number of cores that this process may use (affinity and not the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, computed by threads ahead of the consumer.

    Pillow and onnxruntime release the interpreter lock, so threads do use all cores.

    Args:
        function: The work. An exception that it raises is raised where its result would be.
        items: Consumed lazily: at most `ahead` items beyond the one that is waited for.
        workers: Threads; 0 does the work in the calling thread.
        ahead: The largest number of items in flight, which bounds the memory.
    """
    if workers == 0:
        yield from map(function, items)
        return
    source = iter(items)
    executor = ThreadPoolExecutor(max_workers=workers)
    pending: deque[Future[Result]] = deque()
    try:
        for item in islice(source, max(ahead, workers)):
            pending.append(executor.submit(function, item))
        while pending:
            result = pending.popleft().result()
            for item in islice(source, 1):
                pending.append(executor.submit(function, item))
            yield result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
