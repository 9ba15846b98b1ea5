"""What an export is asked for; without PyTorch, so that a command can build it at once."""

from dataclasses import dataclass
from pathlib import Path

from tltools.card import Precision
from tltools.errors import ConfigError
from tltools.runtime.device import Device
from tltools.runtime.formats import ModelFormat, format_named

CALIBRATION_IMAGES = 128
"""Images that int8's ranges are taken from: more change little (benchmarks/LOG.md)."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Which files to make of a run, and how to verify them."""

    formats: tuple[str, ...] = ("onnx",)
    """Names of `tltools.runtime.formats.FORMATS`."""
    precisions: tuple[Precision, ...] = ("fp32",)
    """A format that lacks one of them leaves it out."""
    output: Path = Path("exports")
    """Exports go to `output`/RUN/RUN.PRECISION.SUFFIX."""
    calibration_images: int = CALIBRATION_IMAGES
    """Images of the run's training split that int8's ranges are taken from and that fp16's are
    checked with, at most."""
    num_images: int | None = None
    """How many images of the run's validation split are compared; None: all."""
    device: Device = "auto"
    """Where both sides of the comparison and the calibration run; TF32 is off. What is verified on
    a GPU is verified on the CPU too, and int8 on the CPU alone."""

    def files(self) -> list[tuple[ModelFormat, Precision]]:
        """Return the format and the precision of each file.

        Raises:
            ConfigError: If a format is unknown, or there is no file since the formats have none of
                the precisions.
        """
        formats = [format_named(name) for name in self.formats]
        found: list[tuple[ModelFormat, Precision]] = [
            (one, precision)
            for one in formats
            for precision in self.precisions
            if precision in one.precisions
        ]
        if not found:
            one, wanted = formats[0], self.precisions[0]
            raise ConfigError(
                f"{one.title} exports are {' or '.join(one.precisions)}; --precision {wanted} "
                "needs --format onnx"
            )
        return found
