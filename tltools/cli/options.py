"""Options that several commands have, and how lists in them are read."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from tltools.errors import ConfigError
from tltools.runtime.formats import FORMATS, format_named

if TYPE_CHECKING:
    from tltools.data.location import Location
    from tltools.progress import Progress
    from tltools.ray.models import RayCluster
    from tltools.runtime.device import Device


def path_or_url(text: str) -> "Location":
    """Return the path or URL that was typed.

    Raises:
        BadParameter: If it is a URL that cannot be used.
    """
    if "://" not in text:  # so that nothing is imported for what is typed most
        return Path(text)
    from tltools.data.location import location

    try:
        return location(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


# Titles of the parts of a help with many options.
DATA, SPEED, CLUSTER, TERMINAL = "Data", "Speed", "Cluster", "Terminal"


TorchDevices = Literal["auto", "cpu", "cuda"]
AllDevices = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]


def _device(text: str, kinds: tuple[str, ...]) -> str:
    """Return a device as it was typed.

    Raises:
        BadParameter: If it is not a device of one of these kinds.
    """
    if text in kinds:  # so that nothing is imported for what is typed most
        return text
    from tltools.runtime.device import parse_device

    try:
        kind = parse_device(text).kind
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    if kind not in kinds:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(kinds)}")
    return text


def _starting(start: str, names: tuple[str, ...]) -> list[str]:
    """Return the names that begin with what was typed."""
    return [name for name in names if name.startswith(start)]


def _torch_devices(incomplete: str) -> list[str]:
    return _starting(incomplete, get_args(TorchDevices))


def _all_devices(incomplete: str) -> list[str]:
    return _starting(incomplete, get_args(AllDevices))


def _format(text: str) -> str:
    """Return the name of a model format, or `all`, as it was typed.

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
        help="File format; TorchScript is deprecated by PyTorch, though it works.",
        metavar=f"<{'|'.join((*FORMATS, ALL))}>",
        parser=_format,
        autocompletion=_formats,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where to run; auto takes CUDA where it works and says so. cuda:1 is the second GPU.",
        metavar="<auto|cpu|cuda|cuda:N>",
        parser=partial(_device, kinds=get_args(TorchDevices)),
        autocompletion=_torch_devices,
    ),
]
InferenceDeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where to run; auto takes CUDA where it works, on every GPU, and says so. cuda:1 is "
        "the second GPU; cuda:0,cuda:1 takes two. tensorrt and openvino are onnxruntime's "
        "execution providers, where they are installed.",
        metavar="<auto|cpu|cuda|cuda:N|tensorrt|openvino>",
        parser=partial(_device, kinds=get_args(AllDevices)),
        autocompletion=_all_devices,
    ),
]
Tf32Option = Annotated[
    bool,
    typer.Option(
        "--tf32",
        help="Let CUDA round fp32 products to TF32: faster, logits about 1e-3 off.",
        rich_help_panel=SPEED,
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        help="Where a CSV's images lie.",
        show_default="beside it, or images/",
        rich_help_panel=DATA,
    ),
]
ImageColumnOption = Annotated[
    str | None,
    typer.Option(
        help="The CSV's column of images.", show_default="the first", rich_help_panel=DATA
    ),
]
LabelColumnOption = Annotated[
    str | None,
    typer.Option(
        help="The CSV's column of labels.", show_default="the second", rich_help_panel=DATA
    ),
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option(
        help="Names for the labels in sorted order, with commas: non-emergency,emergency",
        rich_help_panel=DATA,
    ),
]
SkipBadOption = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave out missing and unreadable images.", rich_help_panel=DATA
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that decode, and run models that are cheap enough.",
        show_default="one for each core",
        rich_help_panel=SPEED,
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        help="The cluster's address, or auto.",
        show_default="RAY_ADDRESS, or a cluster of this machine",
        rich_help_panel=CLUSTER,
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", help="Write an HTML page too; an earlier one is replaced."),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Only results, warnings and errors.", rich_help_panel=TERMINAL
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also settings, versions, times; errors in full.",
        rich_help_panel=TERMINAL,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=TERMINAL)
]


def check_ray_options(engine: str, options: Mapping[str, object]) -> None:
    """Refuse options of `--engine ray` for another engine; those that are not given are None.

    Raises:
        ConfigError: If there is one.
    """
    for option, value in options.items():
        if engine != "ray" and value is not None:
            raise ConfigError(f"{option} is for --engine ray; add that")


def open_cluster(
    engine: str, address: str | None, device: "Device", progress: "Progress"
) -> "RayCluster | None":
    """Return the cluster of `--engine ray`, which is joined when it is needed; else None.

    Raises:
        ConfigError: If `--ray-address` is given for another engine, or Ray is missing.
        TltoolsError: If nobody is at the address.
    """
    check_ray_options(engine, {"--ray-address": address})
    if engine != "ray":
        return None
    from tltools.ray.models import RayCluster

    return RayCluster(address, device=device, progress=progress)


def split_names(text: str | None) -> tuple[str, ...]:
    """Return names that stand with commas between them."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def split_numbers(text: str, option: str) -> tuple[int, ...]:
    """Return whole numbers that stand with commas between them.

    Raises:
        ConfigError: If they are not; names `option`.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} takes numbers with commas, got {text!r}") from None
