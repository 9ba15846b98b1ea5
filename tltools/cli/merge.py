"""`tltools merge`."""

from typing import Annotated, Any

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import path_or_url
from tltools.wording import counted


@command
def merge(
    shards: Annotated[
        list[Any],  # Location
        typer.Argument(
            help="Outputs of all shards (classify --shard); files or URLs.",
            parser=path_or_url,
        ),
    ],
    *,
    out: Out,
    output: Annotated[
        Any,  # Location
        typer.Option(
            "--output", "-o", help="File or URL in the shards' format.", parser=path_or_url
        ),
    ] = "predictions.csv",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output.")
    ] = False,
) -> None:
    """Merge the shards of a job into the output that one job would have written.

    Rejects missing, duplicate, incomplete or changed shards, and shards of another job.

    Example: tltools merge predictions-*-of-4.csv --output predictions.csv
    """
    from tltools.classify import merge_shards

    progress = out.progress
    merged = merge_shards(shards, output, overwrite=overwrite, progress=progress)
    rows, parts = counted(merged.num_rows, "row"), counted(merged.num_shards, "shard")
    said = f"{rows} of {parts}, {'already in' if merged.was_there else 'written to'} {output}"
    out.result(
        {
            "output": str(merged.output),
            "num_shards": merged.num_shards,
            "num_rows": merged.num_rows,
        },
        lambda: progress.say(said),
    )
