"""The settings of a service, checked before anything is started."""

import ipaddress
from dataclasses import KW_ONLY, dataclass
from importlib.util import find_spec
from math import inf
from pathlib import Path

from tltools.classify.predict import check_min_confidence, check_unknown
from tltools.decisions import ClassThreshold
from tltools.errors import ConfigError
from tltools.packages import pip_install
from tltools.runtime import Device
from tltools.runtime.pipeline import check_positive

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
"""Modules that a service needs, with the names of their packages."""
MB = 10**6
MAX_FORM_FILES = 64
"""Most images in a form."""
MAX_FORM_IMAGES = 8
"""Size limit of a form, in images of the largest size: many small ones, or a few large ones."""
MAX_HELD_IMAGES = 32
"""Size limit of all bodies that are in memory at a time, in images of the largest size."""


def check_packages() -> None:
    """Check that the packages of the extra are installed.

    Raises:
        ConfigError: If one is missing; names the command that installs them.
    """
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}: {pip_install('serve')}")


@dataclass(frozen=True)
class ServeSettings:
    """What is served, where, and within which limits.

    Raises:
        ConfigError: If a number is out of range.
    """

    model: Path
    """Path of an export."""
    _: KW_ONLY
    host: str = "127.0.0.1"
    """Address to listen on; that of the loopback interface is reachable from this machine only."""
    port: int = 8000
    """0: a free one."""
    device: Device = "auto"
    batch_size: int | None = None
    """Most images in one call of the model; None to choose."""
    max_delay_ms: float = 2.0
    """How long an image waits for others to fill its batch, in milliseconds."""
    workers: int | None = None
    """Number of processes that decode; None for one per core."""
    threads: int | None = None
    """Cores of one call of the model on the CPU; None to choose."""
    min_confidence: float | None = None
    """Label images whose largest probability is lower `uncertain`; None labels none so."""
    threshold: ClassThreshold | None = None
    """Threshold of a class; None gives each image its most probable class."""
    unknown: float | None = None
    """Label images beyond this percentile of the training images' distances `unknown`, and answer
    with all distances; None does neither."""
    max_image_mb: float = 20.0
    """Largest image file, in megabytes."""
    max_waiting: int = 256
    """Most images that are in the service at a time; beyond, requests are refused."""
    client_timeout_s: float = 30.0
    """How long a client may take to send a request, in seconds."""
    image_timeout_s: float = 10.0
    """Time limit for decoding one image, in seconds."""

    def __post_init__(self) -> None:
        """Reject invalid numbers; more is checked once the model's classes are known."""
        check_positive(
            {
                "`batch_size=`": self.batch_size,
                "`workers=`": self.workers,
                "`threads=`": self.threads,
                "`max_waiting=`": self.max_waiting,
            }
        )
        check_min_confidence(self.min_confidence)
        check_unknown(self.unknown)
        for name, value in (
            ("max_image_mb", self.max_image_mb),
            ("client_timeout", self.client_timeout_s),
            ("image_timeout", self.image_timeout_s),
        ):
            if not 0 < value < inf:
                raise ConfigError(f"`{name}=` must be a number above 0, got {value:g}")
        if not 0 <= self.max_delay_ms < inf:
            raise ConfigError(f"`max_delay_ms=` must be at least 0, got {self.max_delay_ms:g}")

    @property
    def max_image_bytes(self) -> int:
        """Largest image file, in bytes."""
        return int(self.max_image_mb * MB)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address, without a port, can only be this machine."""
    name = host.removeprefix("[").removesuffix("]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
