"""Export settings, without PyTorch, so that a command can create them without delay."""

from dataclasses import dataclass
from pathlib import Path

from tltools.card import Precision
from tltools.errors import ConfigError
from tltools.runtime.device import Device
from tltools.runtime.model_formats import OPSET, OPSETS, ModelFormat, format_named

CALIBRATION_IMAGES = 128
"""Default number of images for int8 calibration; more change little (benchmarks/LOG.md)."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Which files to export from a run, and how to verify them."""

    formats: tuple[str, ...] = ("onnx",)
    """Names of `tltools.runtime.model_formats.FORMATS`."""
    precisions: tuple[Precision, ...] = ("fp32",)
    """Precisions of the files; a format skips those that it does not support."""
    output: Path = Path("exports")
    """Exports go to `output`/RUN/RUN.PRECISION.SUFFIX."""
    calibration_images: int = CALIBRATION_IMAGES
    """Maximum number of images of the run's training split for calibrating int8 and for checking
    the range of fp16."""
    num_images: int | None = None
    """Number of images of the run's validation split to compare; None: all."""
    opset: int = OPSET
    """Opset of ONNX files, one of `tltools.runtime.model_formats.OPSETS`."""
    device: Device = "auto"
    """Device for the comparison and the calibration; TF32 is off. Exports verified on a GPU are
    also verified on the CPU, and int8 only on the CPU."""

    def __post_init__(self) -> None:
        """Check the opset.

        Raises:
            ConfigError: If exports are not written in it.
        """
        if self.opset not in OPSETS:
            raise ConfigError(
                f"`opset={self.opset}` is not supported; choose {OPSETS[0]} to {OPSETS[-1]}"
            )
        if self.opset != OPSET and "onnx" not in self.formats:
            raise ConfigError("`opset=` is for `formats=onnx`; leave it out")

    def files(self) -> list[tuple[ModelFormat, Precision]]:
        """Return the format and the precision of each file.

        Raises:
            ConfigError: If a format is unknown, or no format supports any of the precisions.
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
                f"{one.title} supports only {' and '.join(one.precisions)}; "
                f"`precisions={wanted}` needs `formats=onnx`"
            )
        return found
