"""Options that several commands share, and how their values are parsed."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from tltools.cli.show import tell_findings
from tltools.errors import ConfigError, TltoolsError
from tltools.runtime.model_formats import (
    EXPORT_DIR,
    FORMATS,
    first_export,
    format_named,
    named_export,
)

if TYPE_CHECKING:
    from tltools.data.dataset import Dataset
    from tltools.data.location import Location
    from tltools.progress import Progress
    from tltools.ray.models import RayCluster
    from tltools.runtime.device import Device


def _bad(error: ConfigError) -> typer.BadParameter:
    """Return what typer shows for an error of the library."""
    from tltools.console import in_options

    return typer.BadParameter(in_options(str(error)))


def path_or_url(text: str) -> "Location":
    """Parse a path or URL.

    Raises:
        BadParameter: If it is a URL that cannot be used.
    """
    if "://" not in text:  # the usual case, without an import
        return Path(text)
    from tltools.data.location import location

    try:
        return location(text)
    except ConfigError as error:
        raise _bad(error) from error


def path_or_run(text: str) -> Path:
    """Parse a path; the bare name of a run in `runs/` is the run, unless there is such a path."""
    path = Path(text)
    if path.name != text or os.path.lexists(path):
        return path
    from tltools.artifacts import RUN_DIR
    from tltools.data.folders import is_run

    run = RUN_DIR / text
    return run if is_run(run) else path


def path_or_export(text: str) -> Path:
    """Parse a path; a run, its name, or the name of an export in `exports/` is the export.

    Of several exports of a run, it is the one in fp32 and ONNX. An existing path that is no run
    comes first.

    Raises:
        BadParameter: If the export of a run is of an earlier training.
    """
    from tltools.data.folders import is_run

    path = Path(text)
    if is_run(path):
        return _export_of(path)
    if path.name != text or os.path.lexists(path):
        return path
    return named_export(text) or _export_of(path_or_run(text))


def _export_of(run: Path) -> Path:
    """Return the export of a run, or of one that is deleted; the path itself if it has none.

    Raises:
        BadParameter: If it is of an earlier training.
    """
    from tltools.artifacts import newer_training, read_artifact
    from tltools.run_folder import CARD

    try:
        # An export has the name that its run was trained under: the folder may be renamed.
        name = read_artifact(run).card.run if (run / CARD).is_file() else run.name
        export = first_export(EXPORT_DIR / name)
        if export is None or not (run / CARD).is_file():
            return export or run
        why = newer_training(read_artifact(export), run)
    except TltoolsError as error:
        raise typer.BadParameter(str(error)) from error
    if why:
        raise typer.BadParameter(f"{export} {why}, or give the file's path")
    return export


def holds_images(path: Path) -> bool:
    """Return whether a path is of images or their labels, named where a model is expected."""
    from tltools.artifacts import is_artifact
    from tltools.data.folders import content, is_run
    from tltools.data.labels import LABEL_SUFFIXES
    from tltools.data.suffixes import is_archive_name, is_image_name

    if is_artifact(path) or is_run(path):
        return False
    if path.is_dir():
        return content(path) == "images"
    is_named = path.suffix.lower() in LABEL_SUFFIXES or is_image_name(path.name)
    return path.is_file() and (is_named or is_archive_name(path.name))


def path_or_run_or_url(text: str) -> "Location":
    """Parse a path, the name of a run or a URL.

    Raises:
        BadParameter: If it is a URL that cannot be used.
    """
    return path_or_url(text) if "://" in text else path_or_run(text)


path_or_run.__name__ = path_or_export.__name__ = "path"  # which help shows as the type
path_or_run_or_url.__name__ = path_or_url.__name__


# Titles of the panels of a help with many options.
DATA, SPEED, CLUSTER, TERMINAL = "Data", "Speed", "Cluster", "Terminal"


TorchDevices = Literal["auto", "cpu", "cuda"]
AllDevices = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]


def _device(text: str, kinds: tuple[str, ...]) -> str:
    """Check a device and return it unchanged.

    Raises:
        BadParameter: If it is not a device of one of these kinds.
    """
    if text in kinds:  # the usual case, without an import
        return text
    from tltools.runtime.device import parse_device

    try:
        kind = parse_device(text).kind
    except ConfigError as error:
        raise _bad(error) from error
    if kind not in kinds:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(kinds)}")
    return text


def _choices(*names: str) -> str:
    """Return choices as the help shows them: `<onnx|torchscript|all>`."""
    return f"<{'|'.join(names)}>"


def _starting(start: str, names: tuple[str, ...]) -> list[str]:
    """Return the names that begin with `start`."""
    return [name for name in names if name.startswith(start)]


def _torch_devices(incomplete: str) -> list[str]:
    return _starting(incomplete, get_args(TorchDevices))


def _all_devices(incomplete: str) -> list[str]:
    return _starting(incomplete, get_args(AllDevices))


def _format(text: str) -> str:
    """Check the name of a model format, or `all`, and return it unchanged.

    Raises:
        BadParameter: If it is neither.
    """
    if text == ALL:
        return text
    try:
        return format_named(text).name
    except ConfigError as error:
        raise typer.BadParameter(f"{error}, {ALL}") from error


def _formats(incomplete: str) -> list[str]:
    return _starting(incomplete, (*FORMATS, ALL))


ALL = "all"
FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        help="File format; pt2 is torch.export's; PyTorch has deprecated TorchScript.",
        metavar=_choices(*FORMATS, ALL),
        parser=_format,
        autocompletion=_formats,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Device; auto: CUDA if it works; cuda:1: the second GPU.",
        metavar=_choices(*get_args(TorchDevices), "cuda:N"),
        parser=partial(_device, kinds=get_args(TorchDevices)),
        autocompletion=_torch_devices,
    ),
]
InferenceDeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Device: auto, cuda, tensorrt (all GPUs), cuda:N (cuda:0,cuda:1: two), cpu or "
        "openvino.",
        metavar="<device>",
        parser=partial(_device, kinds=get_args(AllDevices)),
        autocompletion=_all_devices,
    ),
]
Tf32Option = Annotated[
    bool,
    typer.Option(
        "--tf32",
        help="Let CUDA compute fp32 in TF32: faster, logits about 1e-3 off.",
        rich_help_panel=SPEED,
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        help="Folder of a CSV's images.",
        show_default="beside the CSV, or images/",
        rich_help_panel=DATA,
    ),
]
ImageColumnOption = Annotated[
    str | None,
    typer.Option(help="CSV column of image paths.", show_default="detected", rich_help_panel=DATA),
]
LabelColumnOption = Annotated[
    str | None,
    typer.Option(help="CSV column of labels.", show_default="detected", rich_help_panel=DATA),
]
ClassLevelOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Level of the class folders; 1: DATA/CLASS, 2: DATA/x/CLASS.",
        show_default="detected",
        rich_help_panel=DATA,
    ),
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option(
        help="Names for the sorted labels, comma-separated: non-emergency,emergency.",
        rich_help_panel=DATA,
    ),
]
SkipBadOption = Annotated[
    bool,
    typer.Option("--skip-bad", help="Skip missing and unreadable images.", rich_help_panel=DATA),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that decode images and run cheap models.",
        show_default="one per core",
        rich_help_panel=SPEED,
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images per forward pass.",
        show_default="chosen for the model",
        rich_help_panel=SPEED,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="CPU threads per forward pass.",
        show_default="chosen for the model",
        rich_help_panel=SPEED,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
MinConfidenceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Label predictions below this confidence 'uncertain'.",
        show_default="every image gets a class",
    ),
]
UnknownOption = Annotated[
    float | None,
    typer.Option(
        help="Label images beyond this percentile of training images' distances 'unknown'.",
        show_default="every image gets a class",
        metavar="PERCENTILE",
    ),
]
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help='ray: run the model on a Ray cluster (pip install "ray\\[data]>=2.60").',
        rich_help_panel=CLUSTER,
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        help="Address of the Ray cluster, or auto.",
        show_default="RAY_ADDRESS, or a cluster on this machine",
        rich_help_panel=CLUSTER,
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", help="Also write an HTML report, replacing an existing file."),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Show only results, warnings and errors.", rich_help_panel=TERMINAL
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also show settings, versions, times and full tracebacks.",
        rich_help_panel=TERMINAL,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=TERMINAL)
]


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How labels are read."""

    images: ImagesOption = None
    image_column: ImageColumnOption = None
    label_column: LabelColumnOption = None
    class_level: ClassLevelOption = None
    class_names: ClassNamesOption = None
    skip_bad: SkipBadOption = False


def load_to_score(data: "Location", reading: ReadingOptions, progress: "Progress") -> "Dataset":
    """Load the labeled images that a model is scored on, and print the findings of their audit.

    Raises:
        ConfigError, DataError: See `load_dataset`.
    """
    from tltools.data.dataset import load_dataset

    options = {**asdict(reading), "class_names": split_names(reading.class_names)}
    dataset = load_dataset(data, purpose="evaluate", progress=progress, **options)
    tell_findings(dataset, progress)
    return dataset


def check_ray_options(engine: str, options: Mapping[str, object]) -> None:
    """Refuse options of `--engine ray` for another engine; one that was not given is None.

    Raises:
        ConfigError: If one was given.
    """
    for option, value in options.items():
        if engine != "ray" and value is not None:
            raise ConfigError(f"{option} is for --engine ray; add --engine ray")


def open_cluster(
    engine: str, address: str | None, device: "Device", progress: "Progress"
) -> "RayCluster | None":
    """Return the cluster of `--engine ray`, which connects on first use, or None.

    Raises:
        ConfigError: If `--ray-address` is given for another engine, or Ray is missing.
        TltoolsError: If no cluster answers at the address.
    """
    check_ray_options(engine, {"--ray-address": address})
    if engine != "ray":
        return None
    from tltools.ray.models import RayCluster

    return RayCluster(address, device=device, progress=progress)


def split_names(text: str | None) -> tuple[str, ...]:
    """Split comma-separated names."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def split_numbers(text: str, option: str) -> tuple[int, ...]:
    """Split comma-separated integers.

    Raises:
        ConfigError: If a part is not an integer; names `option`.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} takes integers separated by commas, got {text!r}") from None
