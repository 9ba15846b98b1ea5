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

    All machines must see the model, the images and the output under the same paths.

    Raises:
        ConfigError: If a setting is out of range, or a cluster cannot use an input or the output.
    """

    address: str | None = None
    """Address of the cluster; None for `RAY_ADDRESS` or, if that is not set, a cluster on this
    machine that ends with the job."""
    part_size: int | None = None
    """Number of images per part, a multiple of `batch_size`; None to choose by the model."""
    part_format: str | None = None
    """Format of the parts: the first suffix of an output format, without the dot; None for Parquet,
    or the format of the job that is resumed."""

    def __post_init__(self) -> None:
        """Reject what a cluster cannot use, before any work is done."""
        super().__post_init__()
        check_positive({"`part_size=`": self.part_size})
        _check_output(self.output)
        _check_inputs(self.inputs)

    @property
    def folder(self) -> Path:
        """The output folder."""
        assert isinstance(self.output, Path)
        return self.output


def _check_output(output: Location) -> None:
    """Reject an output that cannot be a folder seen by all machines."""
    if output == STDOUT:
        raise ConfigError(
            "`engine=ray` cannot write to standard output; name a folder with `output=`"
        )
    if isinstance(output, Url):
        raise ConfigError(
            f"`engine=ray` cannot write to a URL ({output}); name a folder on a shared file system "
            "with `output=`"
        )
    if output.suffix.lower() in all_suffixes():
        raise ConfigError(
            f"`engine=ray` writes a folder of parts, but `output={output}` is named like a file; "
            f"choose `output={output.with_suffix('')}`, and the format with `part_format=`"
        )
    if output.exists() and not output.is_dir():
        raise ConfigError(
            f"`engine=ray` writes a folder of parts, but {output} is a file; choose another "
            "`output=`"
        )


def _check_inputs(inputs: Sequence[Location]) -> None:
    """Reject inputs that other machines cannot list or read."""
    if STDIN in inputs:
        raise ConfigError(
            "`engine=ray` cannot read standard input; write the list to a .txt file and name that"
        )
    for source in inputs:
        if is_archive_name(source.name) and (isinstance(source, Url) or source.is_file()):
            raise ConfigError(
                f"`engine=ray` cannot read archives such as {source}; unpack it, or use "
                "`engine=local`"
            )
