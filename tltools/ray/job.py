"""The settings of a job on a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tltools.classify.inputs import STDIN
from tltools.classify.job import JobSettings
from tltools.classify.output_formats import STDOUT, all_suffixes
from tltools.data.location import Location, Url
from tltools.data.suffixes import is_archive_name
from tltools.errors import ConfigError
from tltools.runtime.pipeline import check_positive


@dataclass(frozen=True, kw_only=True)
class RayJob(JobSettings):
    """A job on a Ray cluster, which writes a data set: a folder of parts.

    All machines have to see the model, the images and the output under the same paths.

    Raises:
        ConfigError: If a setting is out of its range, or an input or the output is of a kind that
            a cluster cannot take.
    """

    address: str | None = None
    """Of the cluster; None for `RAY_ADDRESS`, or else a cluster on this machine that ends with the
    job."""
    part_size: int | None = None
    """Images of a part, a multiple of `batch_size`; None to choose by the model."""
    part_format: str | None = None
    """Of the parts: the first suffix of an output format, without its dot; None for Parquet, or
    what a stopped job has."""

    def __post_init__(self) -> None:
        """Refuse what a cluster cannot take, before any work is done."""
        super().__post_init__()
        check_positive({"--part-size": self.part_size})
        _check_output(self.output)
        _check_inputs(self.inputs)

    @property
    def folder(self) -> Path:
        """The output."""
        assert isinstance(self.output, Path)
        return self.output


def _check_output(output: Location) -> None:
    """Refuse what cannot be a folder that all machines see."""
    if output == STDOUT:
        raise ConfigError(
            "--engine ray writes a folder of parts, and not standard output; name one with --output"
        )
    if isinstance(output, Url):
        raise ConfigError(
            f"--engine ray writes a folder that all machines see, and --output {output} is a URL; "
            "name a folder on a shared file system"
        )
    if output.suffix.lower() in all_suffixes():
        raise ConfigError(
            f"--engine ray writes a folder of parts, and --output {output} is named as a file; "
            f"choose --output {output.with_suffix('')}, and --part-format for parquet or csv"
        )
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; --engine ray writes a folder, choose another name")


def _check_inputs(inputs: Sequence[Location]) -> None:
    """Refuse what other machines cannot list or read."""
    if STDIN in inputs:
        raise ConfigError(
            "--engine ray cannot list standard input, which other machines do not have; write the "
            "list to a .txt file and name that"
        )
    for source in inputs:
        if is_archive_name(source.name) and (isinstance(source, Url) or source.is_file()):
            raise ConfigError(
                f"--engine ray does not read archives yet, and {source} is one; unpack it, or use "
                "--engine local"
            )
