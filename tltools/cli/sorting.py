"""Options of `tltools classify` that sort images by label, and undo that."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tltools.errors import ConfigError

if TYPE_CHECKING:
    from tltools.classify.job import JobSettings
    from tltools.classify.sorting import Sorted, SortSettings
    from tltools.cli.command import Out
    from tltools.console import RichProgress
    from tltools.data.location import Location

_WITH_UNDO = frozenset({"inputs", "undo_sort", "quiet", "verbose", "as_json"})
"""Parameters that make sense with `--undo-sort`."""
SORTING = "Sorting"


@dataclass(frozen=True, kw_only=True)
class SortOptions:
    """Options for sorting the images by label."""

    sort_into: Annotated[
        Path | None,
        typer.Option(
            help="Also sort the images into a new folder, by label.",
            show_default="no sorting",
            rich_help_panel=SORTING,
        ),
    ] = None
    sort_by: Annotated[
        Literal["copy", "hardlink", "move"],
        typer.Option(help="Copy, hard-link or move the images.", rich_help_panel=SORTING),
    ] = "copy"
    undo_sort: Annotated[
        bool,
        typer.Option(
            "--undo-sort",
            help="Undo --sort-into: the argument is the sorted folder.",
            rich_help_panel=SORTING,
        ),
    ] = False


def check_sorting(
    options: SortOptions,
    inputs: "Sequence[Location]",
    output: "Location",
    *,
    engine: str,
    shard: str | None,
    overwrite: bool,
) -> "SortSettings | None":
    """Return how images are sorted, or None; refuse what cannot be sorted, before any work.

    Raises:
        ConfigError: If it cannot be sorted.
    """
    if options.sort_into is None:
        if options.sort_by != SortOptions.sort_by:
            raise ConfigError("--sort-by works only with --sort-into; add --sort-into FOLDER")
        return None
    if engine != "local" or shard is not None:
        other = "--shard" if shard is not None else "--engine ray"
        raise ConfigError(f"--sort-into sorts the images of a whole job here; leave out {other}")
    from tltools.classify.sorting import SortSettings

    settings = SortSettings(folder=options.sort_into, action=options.sort_by)
    is_written = overwrite or not (isinstance(output, Path) and output.exists())
    settings.check(inputs, output, is_written=is_written)
    return settings


def sort_job(sort: "SortSettings", job: "JobSettings", progress: "RichProgress") -> "Sorted":
    """Sort the images of a finished job."""
    from tltools.classify.sorting import sort_images

    assert isinstance(job.output, Path)
    try:
        return sort_images(
            sort, job.inputs, job.output, spreadsheet=job.spreadsheet, progress=progress
        )
    except KeyboardInterrupt:
        progress.warn(
            f"{sort.folder} holds only some of the images; run the same command again to finish, "
            f"or undo it with tltools classify {shlex.quote(str(sort.folder))} --undo-sort"
        )
        raise


def tell_sorted(done: "Sorted", progress: "RichProgress") -> None:
    """Say how many images went where, and how to undo that."""
    from tltools.classify.sorting import describe, notes

    for note in notes(done):
        progress.say(note)
    progress.say(describe(done))
    progress.say(f"To undo: tltools classify {done.folder} --undo-sort")


def undo_sorts(folders: "Sequence[Location]", given: Mapping[str, Any], out: "Out") -> None:
    """Undo the sorting of folders.

    Raises:
        ConfigError: If other options are given.
        Exit: If images were kept.
    """
    from tltools.classify.sorting import describe_undone, undo_sort

    others = sorted(given.keys() - _WITH_UNDO)
    if others:
        raise ConfigError(f"--undo-sort takes no other options; leave out `{others[0]}=`")
    undone = [undo_sort(Path(str(folder)), progress=out.progress) for folder in folders]
    for one in undone:
        for reason in one.kept:
            out.progress.warn(reason)
        out.progress.say(describe_undone(one))
    out.result(undone)
    if any(one.kept for one in undone):
        raise typer.Exit(1)
