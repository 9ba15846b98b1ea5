"""`tltools merge`."""

from pathlib import Path
from typing import Annotated

import typer

from tltools.cli.command import Out, command


@command
def merge(
    shards: Annotated[
        list[Path],
        typer.Argument(help="What classify --shard wrote: all of 1/N to N/N, in any order."),
    ],
    *,
    out: Out,
    output: Annotated[Path, typer.Option("--output", "-o", help="Of the shards' format.")] = Path(
        "predictions.csv"
    ),
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
