"""What this process may use of the machine, and work in threads ahead of its consumer."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def num_cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    That is what its affinity allows, and what the quota of its control group amounts to, rounded
    up: a container with `--cpus=1` sees all cores of its machine.
    """
    if hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    else:
        number = os.cpu_count() or 1
    quota = min(_quotas(), default=math.inf)
    return max(1, min(number, math.ceil(quota))) if math.isfinite(quota) else number


def _quotas() -> Iterator[float]:
    """Yield the cores that each control group of this process is limited to.

    https://docs.kernel.org/scheduler/sched-bwc.html
    """
    for folder in _own_groups("cpu"):
        for quota, period in (_words(folder / "cpu.max"), _v1_quota(folder)):
            if quota.isdigit() and period.isdigit() and int(period):
                yield int(quota) / int(period)


def _v1_quota(folder: Path) -> tuple[str, str]:
    quota, period = (_words(folder / f"cpu.cfs_{name}_us")[0] for name in ("quota", "period"))
    return quota, period


def _own_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of those that they are in.

    In a container its own group is usually mounted at the root, whatever path is given.
    """
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [CGROUPS / controllers, CGROUPS / controller] if controllers else [CGROUPS]
        own = PurePosixPath(path.lstrip("/"))
        for mount in dict.fromkeys(mounts):
            for part in (own, *own.parents):
                if ".." not in part.parts:
                    yield mount / part


def _words(path: Path) -> tuple[str, str]:
    """Return the first two words of a file, empty where there are none."""
    try:
        first, second, *_ = [*path.read_text().split(), "", ""]
    except OSError:
        return "", ""
    return first, second


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
