"""`tltools explain`."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import DeviceOption, path_or_run
from tltools.errors import ConfigError, DataError
from tltools.wording import in_percent

if TYPE_CHECKING:
    from tltools.artifacts import Artifact
    from tltools.explain import Explanation

EXPLAINED = Path("explained")
ImagesArgument = Annotated[
    list[Path],
    typer.Argument(
        help="Images to explain, or folders; up to 20 images of each.",
        metavar="IMAGE...",
    ),
]


@command
def explain(
    model: Annotated[
        Path, typer.Argument(help="Run (runs/NAME).", metavar="RUN", parser=path_or_run)
    ],
    images: ImagesArgument,
    *,
    out: Out,
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="Class to explain.", show_default="the predicted class"),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for heat maps, or a .png file for a single image."
        ),
    ] = EXPLAINED,
    device: DeviceOption = "auto",
) -> None:
    """Draw heat maps of the image regions that support a class.

    Example: tltools explain runs/vgg16 photo.jpg
    """
    from tltools.explain import explain_images

    _check_early(model, images, class_name)
    failures: list[DataError] = []

    def fail(error: DataError) -> None:
        failures.append(error)
        out.progress.warn(str(error))  # before the bar, which counts the others

    is_alone = len(images) == 1 and not images[0].is_dir()
    found = list(
        explain_images(
            model,
            images,
            output,
            class_name=class_name,
            device=device,
            on_error=None if is_alone else fail,
            progress=out.progress,
        )
    )
    out.result([_facts(one) for one in found], lambda: _print_explanations(found))
    are_named = not any(one.is_dir() for one in images)  # each by itself, as for classify
    if failures and (are_named or not found):
        raise typer.Exit(1)


def _check_early(model: Path, images: list[Path], class_name: str | None) -> None:
    """Check names that may be misspelled, before PyTorch is imported.

    Raises:
        TltoolsError: If the model is no run, has no such class, or the only image does not exist,
            or the images come first.
    """
    from tltools.artifacts import is_artifact, read_artifact
    from tltools.explain import check_class
    from tltools.run_folder import load_card

    runs = [one for one in images if is_artifact(path_or_run(str(one)))]
    if runs and not is_artifact(model):
        words = ["tltools", "explain", str(runs[0]), str(model)]
        raise ConfigError(f"the run comes first, then the images: {shlex.join(words)}")
    if not model.exists():
        load_card(model)  # raises an error that names runs alone
    artifact = read_artifact(model)
    if not artifact.is_run:
        raise ConfigError(_use_run(artifact))
    check_class(artifact.card, class_name)
    if len(images) == 1:
        _check_image(images[0])


def _check_image(path: Path) -> None:
    """Refuse the only image if it does not exist, before PyTorch is imported.

    Raises:
        DataError: If it does not.
    """
    from tltools.wording import similar_paths

    if not os.path.lexists(path):
        raise DataError(
            f"{path} does not exist{similar_paths(path)}: name images, or a folder of them"
        )


def _use_run(export: "Artifact") -> str:
    """Say which run to use instead of an export."""
    from tltools.artifacts import RUN_DIR

    run = RUN_DIR / export.card.run
    known = (run / "card.json").is_file()
    return f"{export.path} is an export, but heat maps need gradients, which only a run has; " + (
        f"name {run}" if known else f"name the folder of run {export.card.run}"
    )


def _facts(found: "Explanation") -> dict[str, Any]:
    from tltools.console import printable

    return {
        "image": printable(str(found.path)),
        "label": found.label,
        "confidence": found.confidence,
        "explained": found.explained,
        "probability": found.probability,
        "empty": not found.heat.any(),
        "output": printable(str(found.output)),
    }


def _print_explanations(explanations: "list[Explanation]") -> None:
    from tltools.console import print_table

    if not explanations:
        return
    print_table(
        "Predictions and heat maps",
        ("image", "label", "confidence", "heat map"),
        [
            (str(one.path), one.label, in_percent(one.confidence), str(one.output) + _remark(one))
            for one in explanations
        ],
    )


def _remark(found: "Explanation") -> str:
    """Name the explained class if it is not the predicted one; say if the heat map is empty."""
    if not found.heat.any():
        return f" (empty: no region supports {found.explained})"
    if found.explained != found.label:
        return f" (for {found.explained}, {in_percent(found.probability)})"
    return ""
