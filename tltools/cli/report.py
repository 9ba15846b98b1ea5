"""`tltools report`."""

from pathlib import Path
from typing import Annotated

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import path_or_run
from tltools.cli.show import write_report
from tltools.wording import listed

TITLES = {"benches": "Benchmarks", "jobs": "Predictions"}
"""Kinds of results whose name on the page differs from that in JSON."""


@command
def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Runs, exports, bench-*.json, evaluation.json or predictions files.",
            show_default="the newest of each in this folder",
            parser=path_or_run,
        ),
    ] = None,
    *,
    out: Out,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="HTML file to write, replacing an existing one."),
    ] = Path("report.html"),
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder that was classified, to show its images.", show_default="remembered"
        ),
    ] = None,
) -> None:
    """Write results to one HTML page that opens offline and prints.

    Example: tltools report runs/cnn predictions.csv --images photos/
    """
    from tltools.errors import ConfigError
    from tltools.report import check_place

    check_place(output, "--output")
    if images is not None and not images.is_dir():
        raise ConfigError(f"--images {images} is not a folder; name the folder that was classified")
    from tltools.report.sources import find_sources

    progress = out.progress
    sources = find_sources(paths or [])
    for kind, found in sources.paths().items():
        progress.say(f"{TITLES.get(kind, kind.capitalize())}: {', '.join(found)}")
    if sources.left_out:
        progress.say(
            f"Left out: {listed(list(map(str, sources.left_out)))}; the page says why; to report "
            "them, name all that the page should have"
        )
    num_bytes = write_report(output, sources.sections(images), progress, title=sources.title())
    out.result({"report": str(output), "num_bytes": num_bytes, **sources.paths()})
