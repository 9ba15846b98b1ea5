"""`tltools sample`."""

from pathlib import Path
from typing import Annotated

import typer

from tltools.cli.command import Out, command
from tltools.wording import counted


@command
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")] = Path("sample"),
    *,
    out: Out,
    num_images: Annotated[int, typer.Option(min=4, help="Number of images.")] = 300,
    seed: Annotated[int, typer.Option(help="Random seed for the drawings.")] = 13,
) -> None:
    """Draw the sample set: emergency and other vehicles, with their labels.

    Example: tltools sample sample/
    """
    from tltools.sample import SAMPLE_CLASSES, draw_sample

    progress = out.progress
    drawn = draw_sample(folder, num_images=num_images, seed=seed, progress=progress)
    progress.say(f"Written: {drawn}/ ({counted(num_images, 'drawn image')} with labels)")
    out.result({"folder": str(drawn), "num_images": num_images, "seed": seed})
    progress.say(f"Next: tltools train {drawn} --class-names {','.join(SAMPLE_CLASSES)}")
