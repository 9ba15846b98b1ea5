"""Describe the machine of a measurement, and measure a process's peak memory."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tltools import __version__
from tltools.parallel import num_cores

PACKAGES = (
    "torch",
    "torchvision",
    "onnxruntime-gpu",
    "onnxruntime",
    "onnx",
    "numpy",
    "pillow",
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts about a machine that are needed to compare two results."""

    cpu: str
    cores: int
    """Cores available to this process."""
    memory_bytes: int | None
    """Main memory of the machine; None if unknown."""
    os: str
    gpus: tuple[str, ...]
    """Name, memory and driver of each NVIDIA GPU."""
    versions: dict[str, str]
    """Versions of Python, tltools and each installed package in `PACKAGES`."""


def describe_machine() -> Machine:
    """Describe this machine, without importing the packages whose versions are listed."""
    return Machine(
        cpu=cpu_name(),
        cores=num_cores(),
        memory_bytes=memory_bytes(),
        os=platform.platform(),
        gpus=gpu_names(),
        versions={"python": platform.python_version(), "tltools": __version__}
        | installed_versions(PACKAGES),
    )


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each installed package of `packages`, from its metadata."""
    versions: dict[str, str] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as reported by the system."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Return the size of the main memory in bytes; None if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def gpu_names() -> tuple[str, ...]:
    """Return name, memory and driver of each NVIDIA GPU listed by nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(  # noqa: S603 - the driver's own tool, fixed arguments
            query, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if result.returncode != 0:
        return ()
    return tuple(line.strip() for line in result.stdout.splitlines() if line.strip())


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Return the peak resident set size of this process so far, in bytes.

    On Linux this is `VmHWM`. Elsewhere it is `getrusage`'s `ru_maxrss`, which is wrong on Linux,
    where a new process inherits its parent's peak. None if neither exists (Windows).
    """
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key == "VmHWM":
            return int(value.split()[0]) * 1024  # "   53200 kB"
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
