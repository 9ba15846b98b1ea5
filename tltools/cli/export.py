"""`tltools export`."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import ALL, DeviceOption, FormatOption, path_or_run
from tltools.cli.show import check_output_folder, free_output
from tltools.errors import ArtifactError, ConfigError, TltoolsError, raise_all
from tltools.runtime.model_formats import (
    FORMATS,
    OPSET,
    OPSETS,
    format_named,
    format_of,
    is_export_name,
)
from tltools.wording import counted, in_percent_down, listed, score_text, size_text

if TYPE_CHECKING:
    from tltools.artifacts import Artifact
    from tltools.card import Calibration, ExportFacts, Parity
    from tltools.export import ExportSettings
    from tltools.layouts import Laid

_NEXT_IN_FOLDER = {
    "python": "Next: python {folder}/predict.py IMAGE; it needs only {folder}/requirements.txt",
    "triton": "Next: tritonserver --model-repository={folder}",
    "docker": "Next: docker build {folder}; {folder}/README.md says how to run the image",
}


IN_FP32 = "*"
_FP16_UNTRIED = (
    "fp16 arithmetic was not exercised, because the CPU computes fp16 files in fp32; on a GPU, "
    "the self-test compares the file with PyTorch when it is opened"
)


_INT8 = ", ".join(one.title for one in FORMATS.values() if "int8" in one.precisions)
"""The formats that have int8."""

RunsArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Runs; with --layout, also existing ONNX exports.",
        parser=path_or_run,
        show_default="the newest run of each model in runs/",
    ),
]
PrecisionOption = Annotated[
    Literal["fp32", "fp16", "int8", "all"],
    typer.Option(help=f"fp16: half the size, for GPUs; int8 ({_INT8}): a quarter, for CPUs."),
]
CalibrationOption = Annotated[
    int, typer.Option(min=1, help="Training images for calibrating int8.")
]
LayoutOption = Annotated[
    Literal["files", "python", "triton", "docker"],
    typer.Option(
        help="Also write a program (python), Triton repository (triton) or Docker "
        "context (docker).",
        metavar="<layout>",
    ),
]
ParityImagesOption = Annotated[
    int | None, typer.Option(min=1, help="Validation images to verify with.", show_default="all")
]

OpsetOption = Annotated[
    int, typer.Option(help=f"ONNX opset, {OPSETS[0]} to {OPSETS[-1]}, for older or newer runtimes.")
]


@command
def export(
    runs: RunsArgument = None,
    *,
    out: Out,
    format: FormatOption = "onnx",  # noqa: A002 - the option's name
    precision: PrecisionOption = "fp32",
    calibration_images: CalibrationOption = 128,
    layout: LayoutOption = "files",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for exports; each run gets a subfolder.")
    ] = Path("exports"),
    parity_images: ParityImagesOption = None,
    opset: OpsetOption = OPSET,
    device: DeviceOption = "auto",
) -> None:
    """Export runs; every file is verified against PyTorch before it is kept.

    If CUDA works, files are verified on the GPU and the CPU; with --device cpu, on the CPU only.

    An int8 export keeps as many layers in fp32 as it needs to give the same labels.

    Example: tltools export runs/cnn --precision all
    """
    formats = tuple(reversed(FORMATS)) if format == ALL else (format,)
    _check_layout(layout, formats)
    check_output_folder(output)
    from tltools.artifacts import PRECISIONS, read_artifact
    from tltools.export import ExportSettings

    settings = ExportSettings(
        formats=formats,
        precisions=PRECISIONS if precision == "all" else (precision,),
        output=output,
        calibration_images=calibration_images,
        num_images=parity_images,
        opset=opset,
        device=device,
    )
    given = runs or _newest_runs(out)
    # Existing exports are accepted with a layout only; otherwise an argument must be a run.
    done = [path for path in given if layout != "files" and is_export_name(path)]
    exports = [read_artifact(path) for path in done]
    folders = [path for path in given if path not in done]
    _check_names(exports, folders)
    made, failures = _make_exports(folders, settings, out)
    exports += made
    laid = _lay_out(layout, exports, done, output)
    out.result(
        [_facts(export, laid.get(export.path)) for export in exports],
        lambda: _print_exports(exports),
    )
    _tell_rest(exports, out)
    for one in laid.values():
        out.progress.say(f"{layout}: {one.folder} ({size_text(one.size_bytes)})")
    raise_all(failures)
    _tell_next(layout, exports, output, [one.folder for one in laid.values()], out)


def _newest_runs(out: Out) -> list[Path]:
    """Return the newest run of each model, and name the others."""
    from tltools.artifacts import find_runs, usable_runs

    found = [one.path for one in find_runs(progress=out.progress)]
    others = [
        f"{one.path} ({score_text(one.card.metrics.get('val'))})"
        for one in usable_runs()
        if one.path not in found
    ]
    if others:
        out.progress.say(
            f"Left out, since there are newer runs of the same models: {listed(others)}; name a "
            "run to export it"
        )
    return found


def _tell_interrupted(run: "Artifact", out: Out) -> None:
    """Warn if the training of a run was stopped, so that its export is not its final one."""
    from tltools.run_folder import resume_command

    training = run.card.training
    if training.get("interrupted"):
        out.progress.warn(
            f"the training of {run.path} was stopped after {training.get('epochs_done')} of "
            f"{training.get('epochs')} epochs; {resume_command(run.path)} finishes it"
        )


def _tell_next(
    layout: str, exports: "Sequence[Artifact]", output: Path, laid: Sequence[Path], out: Out
) -> None:
    """Say what can be done with exports, which commands find by themselves only in `exports/`."""
    if layout != "files":
        folder = (output / layout).resolve() if layout == "triton" else laid[0]
        out.progress.say(_NEXT_IN_FOLDER[layout].format(folder=shlex.quote(str(folder))))
        return
    from tltools.artifacts import EXPORT_DIR, best_of

    best, is_default = best_of(exports), output.absolute() == EXPORT_DIR.absolute()
    model: list[str] = []
    if best is None or not (is_default and _is_found(best)):
        model = ["--model", str((best or exports[0]).path)]
    files = [] if is_default and _are_current(exports) else _with_siblings(exports)
    out.progress.say(
        f"Next: tltools classify {shlex.join(['FOLDER', *model, *free_output()])}, or "
        f"{shlex.join(['tltools', 'bench', *files])} to compare the files"
    )


def _with_siblings(exports: "Sequence[Artifact]") -> list[str]:
    """Return the paths of exports, and of others of the same trainings in the same folders."""
    from tltools.artifacts import read_artifact

    paths = dict.fromkeys(one.path for one in exports)
    for export in exports:
        for path in sorted(export.path.parent.iterdir()):
            with suppress(ArtifactError):  # it is damaged
                is_other = path not in paths and is_export_name(path)
                if is_other and read_artifact(path).card.created == export.card.created:
                    paths[path] = None
    return [str(path) for path in sorted(paths)]


def _is_found(export: "Artifact") -> bool:
    """Return whether commands without --model take this export, of those in `exports/`."""
    from tltools.artifacts import best_export

    try:
        return best_export().path.resolve() == export.path.resolve()
    except (ArtifactError, ConfigError):  # another one is damaged, or has other classes
        return False


def _are_current(exports: "Sequence[Artifact]") -> bool:
    """Return whether `bench` without names measures all of these exports in `exports/`."""
    from tltools.artifacts import current_and_earlier_exports

    try:
        current, _ = current_and_earlier_exports()
    except ArtifactError:  # another one is damaged
        return False
    return {one.path.resolve() for one in exports} <= {one.path.resolve() for one in current}


def _check_layout(layout: str, formats: Sequence[str]) -> None:
    """Refuse a layout that none of the formats fits, before any work.

    Raises:
        ConfigError: If none of the formats goes into a layout.
    """
    if layout == "files":
        return
    from tltools.layouts import FORMAT

    if FORMAT.name not in formats:
        raise ConfigError(
            f"--layout {layout} needs {FORMAT.title} exports; leave out --format {formats[0]}"
        )


def _check_names(exports: "Sequence[Artifact]", folders: Sequence[Path]) -> None:
    """Refuse runs whose files would replace each other's, before any work.

    Runs of one name on different data are told apart by their cards when a file is written.

    Raises:
        ArtifactError: If a folder is not a run.
        ConfigError: If two runs, or two exports of one precision, cannot be told apart.
    """
    from tltools.run_folder import load_card

    named: list[tuple[Path, str, tuple[object, ...]]] = [
        (one.path, one.card.run, (one.card.run, _added(one).precision)) for one in exports
    ]
    for folder in dict.fromkeys(folders):
        card = load_card(folder)
        key = (card.run, card.model, card.classes, card.data.fingerprint)
        named.append((folder, card.run, key))
    first: dict[tuple[object, ...], Path] = {}
    for path, name, key in named:
        if first.setdefault(key, path) != path:
            raise ConfigError(
                f"{first[key]} and {path} are both named {name} and would be written to the same "
                "files; export them one after another, with a different --output each"
            )


def _make_exports(
    folders: Sequence[Path], settings: "ExportSettings", out: Out
) -> "tuple[list[Artifact], list[TltoolsError]]":
    """Export runs one after another; return the exports, and what failed."""
    if not folders:  # so that PyTorch is not imported
        return [], []
    from tltools.artifacts import Artifact, read_artifact
    from tltools.export import export_run

    made: list[Artifact] = []
    failures: list[TltoolsError] = []
    for folder in dict.fromkeys(folders):
        try:
            _tell_interrupted(read_artifact(folder), out)
            for result in export_run(folder, settings, progress=out.progress):
                made.append(Artifact(result.path, result.card))  # noqa: PERF401 - keeps those before
        except TltoolsError as error:
            failures.append(error)
    if not made:
        raise_all(failures)
    return made, failures


def _lay_out(
    layout: 'Literal["files", "python", "triton", "docker"]',
    exports: "list[Artifact]",
    done: Sequence[Path],
    output: Path,
) -> "dict[Path, Laid]":
    """Write a layout for each given export, and for each new one in the layouts' format."""
    if layout == "files":
        return {}
    from tltools.layouts import FORMAT, lay_out

    made = {one.path for one in exports if one.path in done or format_of(one.path) is FORMAT}
    return {path: lay_out(layout, path, output) for path in sorted(made)}


def _tell_rest(exports: "list[Artifact]", out: Out) -> None:
    """Print what the table of exports leaves out."""
    for export in exports:
        layers = _added(export).float_layers
        if layers:
            out.progress.say(
                f"{export.path} keeps {counted(len(layers), 'layer')} in fp32: {', '.join(layers)}"
            )
        if short := _too_few(_added(export).calibration):
            out.progress.say(f"{export.path} is {short}")
        if _added(export).fp16_exercised is False:
            out.progress.say(f"{export.path}: {_FP16_UNTRIED}")


def _too_few(calibration: "Calibration | None") -> str:
    """Say on how few images an int8 export was calibrated, if they are fewer than asked for."""
    if calibration is None or calibration.num_images >= (calibration.requested or 0):
        return ""
    return (
        f"calibrated on {counted(calibration.num_images, 'image')}, all that the run was trained "
        f"on, instead of {calibration.requested}"
    )


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
        "calibration": facts.calibration,
        "layout": None if laid is None else str(laid.folder),
    }


def _print_exports(exports: "list[Artifact]") -> None:
    from tltools.console import print_table

    in_fp32 = any(map(_computes_in_fp32, map(_added, exports)))
    with_training = any(
        one.num_training_images for export in exports for _, one in _by_device(_added(export))
    )
    kept = [
        f"{export.path.name}: {counted(len(layers), 'layer')} in fp32"
        for export in exports
        if (layers := _added(export).float_layers)
    ]
    print_table(
        f"Exports, verified against PyTorch on validation {'+ training ' * with_training}images"
        + (f" ({IN_FP32}: the CPU computes fp16 files in fp32)" if in_fp32 else "")
        + (f" ({'; '.join(kept)})" if kept else ""),
        # Short headings, so that a path fits on one line of 80 columns.
        (
            "export",
            "MB",
            "device",
            "same label",
            "top-1 change, points",
            "max logit diff",
            "images",
        ),
        [
            (
                str(export.path),
                f"{export.path.stat().st_size / 1e6:.1f}",
                device,
                in_percent_down(parity.top1_agreement),
                f"{0 - 100 * (parity.accuracy_drop or 0):+.1f}",
                f"{parity.max_abs_logit_diff:.1e}",
                _num_images(parity),
            )
            for export in exports
            for device, parity in _by_device(_added(export))
        ],
    )


def _num_images(parity: "Parity") -> str:
    trained = parity.num_training_images
    return f"{parity.num_validation_images}{f'+{trained}' if trained else ''}"


def _by_device(facts: "ExportFacts") -> "list[tuple[str, Parity]]":
    """Return the devices an export was verified on, with its deviation from PyTorch on each."""
    if not facts.verified:  # an older export, verified on one device
        return [("?", facts.parity)]
    mark = IN_FP32 if _computes_in_fp32(facts) else ""
    return [
        (one.device + (mark if one.device == "cpu" else ""), one.parity) for one in facts.verified
    ]


def _computes_in_fp32(facts: "ExportFacts") -> bool:
    """Tell whether an export's figures on the CPU come from fp32 arithmetic."""
    return facts.fp16_exercised is not None and not format_named(facts.format).is_for_gpus("fp16")
