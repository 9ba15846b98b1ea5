"""How much memory this process may still use."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

UNKNOWN = 4 * 2**30
"""Assumed where the system tells nothing, in bytes."""

_CGROUPS = {
    # The controllers of a line in /proc/self/cgroup → the mount point and the files of the limit,
    # of the memory in use, and the line of memory.stat that counts what is given back on demand.
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


def available_memory(root: Path = Path("/")) -> int:
    """Return how many more bytes this process may use.

    That is what the system has available or what the limits of its cgroups (version 1 or 2) leave,
    whichever is less.

    Args:
        root: Where `proc` and `sys` are.
    """
    return max(0, min([*_of_system(root), *_of_cgroups(root)], default=UNKNOWN))


def _of_system(root: Path) -> Iterator[int]:
    info = root / "proc/meminfo"
    if info.is_file():
        yield 1024 * _counters(info)["MemAvailable"]
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_cgroups(root: Path) -> Iterator[int]:
    """Yield what the limit of each cgroup that this process is in leaves."""
    membership = root / "proc/self/cgroup"
    if not membership.is_file():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in _CGROUPS:
                mount, limit, usage, cached = _CGROUPS[controller]
                inner = PurePosixPath(path.lstrip("/"))
                # In a container the path may be the host's: what is not there is left out.
                for folder in dict.fromkeys((inner, *inner.parents)):
                    yield from _left(root / mount / folder, limit, usage, cached)


def _left(folder: Path, limit: str, usage: str, cached: str) -> Iterator[int]:
    if not (folder / limit).is_file():
        return
    most = (folder / limit).read_text().strip()
    if most != "max":
        used = int((folder / usage).read_text())
        yield int(most) - used + _counters(folder / "memory.stat")[cached]


def _counters(path: Path) -> dict[str, int]:
    """Read lines of a name and a number, such as `MemAvailable: 12 kB`."""
    fields = (line.split() for line in path.read_text().splitlines())
    return {name.rstrip(":"): int(number) for name, number, *_ in fields}
