"""`tltools export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import DeviceOption
from tltools.errors import ConfigError

if TYPE_CHECKING:
    from tltools.artifacts import Artifact
    from tltools.card import ExportFacts, Parity
    from tltools.layouts import Laid

_NEXT = {
    "files": "Next: tltools classify FOLDER, and tltools bench",
    "triton": "Next: tritonserver --model-repository={folder}",
    "docker": "Next: docker build, in such a folder; its README.md says how to run it",
}


IN_FP32 = "*"
_FP16_UNTRIED = (
    "fp16 arithmetic was not exercised, since the CPU computes such a file in fp32; on a GPU, "
    "opening it compares its answers with PyTorch's"
)


@command
def export(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders; with --layout also ONNX exports, which are taken as they are.",
            show_default="the newest run of each model in runs/",
        ),
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
            help="int8 (ONNX only): a quarter of the size and the fastest on most CPUs, but slower "
            "than fp16 on GPUs. fp16: half the size, for GPUs."
        ),
    ] = "fp32",
    calibration_images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training pictures that int8's ranges are taken from.", show_default="128"
        ),
    ] = None,
    layout: Annotated[
        Literal["files", "triton", "docker"],
        typer.Option(
            help="triton: also a model repository for NVIDIA's Triton server, OUTPUT/triton/. "
            "docker: also what a slim image that classifies is built from, in OUTPUT/docker/."
        ),
    ] = "files",
    output: Annotated[Path, typer.Option(help="Exports go to OUTPUT/RUN/.")] = Path("exports"),
    pictures: Annotated[
        int | None,
        typer.Option(min=1, help="Validation pictures to verify with.", show_default="all"),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Export runs; every file is verified against PyTorch on real images before it is kept.

    Where CUDA works, on the GPU and on the CPU; with --device cpu on the CPU alone.

    An int8 export keeps as many layers in float as it takes to give the same labels.

    Example: tltools export runs/cnn --precision all
    """
    from tltools.artifacts import Artifact, find_runs, read_artifact
    from tltools.runtime.predictor import PREDICTORS

    if layout != "files" and format == "torchscript":
        raise ConfigError(f"--layout {layout} takes ONNX exports; leave out --format torchscript")
    progress = out.progress
    given = runs or [artifact.path for artifact in find_runs()]
    # An export as an argument is for those who have it already; without a layout it is no run.
    done = [one for one in given if layout != "files" and one.suffix.lower() in PREDICTORS]
    folders = [path for path in given if path not in done]
    formats = ("torchscript", "onnx") if format == "all" else (format,)
    precisions = ("fp32", "fp16", "int8") if precision == "all" else (precision,)
    exports = [read_artifact(path) for path in done]
    if folders:
        from tltools.export import export_run

        exports += [
            Artifact(result.path, result.card)
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
    laid: dict[Path, Laid] = {}
    if layout != "files":
        from tltools.layouts import lay_out

        made = {one.path for one in exports if one.path in done or one.path.suffix == ".onnx"}
        laid = {path: lay_out(layout, path, output) for path in sorted(made)}
    out.result(
        [_facts(export, laid.get(export.path)) for export in exports],
        lambda: _print_exports(exports),
    )
    for export in exports:
        layers = _added(export).float_layers
        if layers:
            progress.say(f"{export.path} keeps {len(layers)} in fp32: {', '.join(layers)}")
        if _added(export).fp16_exercised is False:
            progress.say(f"{export.path}: {_FP16_UNTRIED}")
    for one in laid.values():
        progress.say(f"{layout}: {one.folder} ({one.size_bytes / 1e6:.1f} MB)")
    progress.say(_NEXT[layout].format(folder=(output / layout).resolve()))


def _added(export: "Artifact") -> "ExportFacts":
    assert export.card.export is not None
    return export.card.export


def _facts(export: "Artifact", laid: "Laid | None") -> dict[str, Any]:
    facts = _added(export)
    return {
        "path": str(export.path),
        "format": facts.format,
        "precision": facts.precision,
        "size_bytes": export.path.stat().st_size,
        "parity": facts.parity,
        "verified": facts.verified,
        "fp16_exercised": facts.fp16_exercised,
        "float_layers": facts.float_layers,
        "layout": None if laid is None else str(laid.folder),
    }


def _print_exports(exports: "list[Artifact]") -> None:
    from tltools.console import print_table

    in_fp32 = any(map(_computes_in_fp32, map(_added, exports)))
    print_table(
        "Exports, verified against PyTorch on validation pictures"
        + (f" ({IN_FP32}: the CPU computes fp16 files in fp32)" if in_fp32 else ""),
        # Short, so that paths stay on one line of a terminal of 80 columns.
        ("export", "MB", "device", "same label", "top-1 change", "max logit diff", "images"),
        [
            (
                str(export.path),
                f"{export.path.stat().st_size / 1e6:.1f}",
                device,
                f"{parity.top1_agreement:.2%}",
                f"{0 - (parity.accuracy_drop or 0):+.2%}",
                f"{parity.max_abs_logit_diff:.1e}",
                str(parity.num_pictures),
            )
            for export in exports
            for device, parity in _by_device(_added(export))
        ],
    )


def _by_device(facts: "ExportFacts") -> "list[tuple[str, Parity]]":
    """Return where an export was verified, and how far it was from PyTorch there."""
    if not facts.verified:  # made before several devices were tried
        return [("?", facts.parity)]
    mark = IN_FP32 if _computes_in_fp32(facts) else ""
    return [
        (one.device + (mark if one.device == "cpu" else ""), one.parity) for one in facts.verified
    ]


def _computes_in_fp32(facts: "ExportFacts") -> bool:
    """Tell whether the CPU's figures of an export say nothing of fp16's arithmetic."""
    return facts.fp16_exercised is not None and facts.format == "onnx"
