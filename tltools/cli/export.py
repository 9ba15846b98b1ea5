"""`tltools export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tltools.cli.common import DeviceOption, Out, command

if TYPE_CHECKING:
    from tltools.export import ExportResult


@command
def export(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders.", show_default="the newest run of each model in runs/"),
    ] = None,
    *,
    out: Out,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["onnx", "torchscript", "all"],
        typer.Option(help="File format; TorchScript is deprecated by PyTorch, though it works."),
    ] = "onnx",
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "all"],
        typer.Option(
            help="Of ONNX: int8 is a quarter of the size and the fastest on most CPUs; fp16 is "
            "half the size and meant for GPUs."
        ),
    ] = "fp32",
    calibration_images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training pictures that int8's ranges are taken from.", show_default="128"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Exports go to OUTPUT/RUN/.")] = Path("exports"),
    pictures: Annotated[
        int | None,
        typer.Option(min=1, help="Validation pictures to verify with.", show_default="all"),
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Export runs, each verified against PyTorch on real pictures or not made.

    An int8 export keeps as many layers in float as it takes to give the same labels.

    Example: tltools export runs/cnn --precision all
    """
    from tltools.artifacts import find_runs
    from tltools.export import export_run

    progress = out.progress
    folders = runs or [artifact.path for artifact in find_runs()]
    formats = ("torchscript", "onnx") if format == "all" else (format,)
    precisions = ("fp32", "fp16", "int8") if precision == "all" else (precision,)
    results = [
        result
        for folder in folders
        for result in export_run(
            folder,
            formats,
            output,
            precisions=precisions,
            calibration_images=calibration_images,
            num_pictures=pictures,
            device=device,
            progress=progress,
        )
    ]
    out.result([_facts(result) for result in results], lambda: _print_exports(results))
    for result in results:
        if result.facts.float_layers:
            layers = ", ".join(result.facts.float_layers)
            progress.say(f"{result.path} keeps {len(result.facts.float_layers)} in fp32: {layers}")
    progress.say("Next: tltools classify FOLDER, and tltools bench")


def _facts(result: "ExportResult") -> dict[str, Any]:
    return {
        "path": str(result.path),
        "format": result.facts.format,
        "precision": result.facts.precision,
        "size_bytes": result.size_bytes,
        "parity": result.parity,
        "float_layers": result.facts.float_layers,
    }


def _print_exports(results: "list[ExportResult]") -> None:
    from tltools.console import print_table

    print_table(
        "Exports, verified against PyTorch on validation pictures",
        (
            "export",
            "MB",
            "top-1 agreement",
            "accuracy change",
            "largest logit difference",
            "pictures",
        ),
        [
            (
                str(result.path),
                f"{result.size_bytes / 1e6:.1f}",
                f"{result.parity.top1_agreement:.2%}",
                f"{0 - (result.parity.accuracy_drop or 0):+.2%}",
                f"{result.parity.max_abs_logit_diff:.1e}",
                str(result.parity.num_pictures),
            )
            for result in results
        ],
    )
