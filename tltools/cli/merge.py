"""`tltools merge`."""

from typing import Annotated, Any

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import path_or_url


@command
def merge(
    shards: Annotated[
        list[Any],  # Location
        typer.Argument(
            help="What classify --shard wrote: all of 1/N to N/N, in any order; files or URLs.",
            parser=path_or_url,
        ),
    ],
    *,
    out: Out,
    output: Annotated[
        Any,  # Location
        typer.Option(
            "--output", "-o", help="Of the shards' format; a URL, too.", parser=path_or_url
        ),
    ] = "predictions.csv",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
) -> None:
    """Put the shards of a classification together, to what one job would have written.

    Refused are shards that are missing, double, incomplete, changed since, or of another job.

    Example: tltools merge predictions-*-of-4.csv --output predictions.csv
    """
    from tltools.classify import merge_shards

    progress = out.progress
    merged = merge_shards(shards, output, overwrite=overwrite, progress=progress)
    said = f"{merged.num_rows} rows of {merged.num_shards} shards, written to {output}"
    out.result(
        {
            "output": str(merged.output),
            "num_shards": merged.num_shards,
            "num_rows": merged.num_rows,
        },
        lambda: progress.say(said),
    )
