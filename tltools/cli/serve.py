"""`tltools serve`."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import (
    SPEED,
    BatchSizeOption,
    InferenceDeviceOption,
    MinConfidenceOption,
    ThreadsOption,
    UnknownOption,
    WorkersOption,
    path_or_export,
)
from tltools.cli.show import choose_export
from tltools.cli.thresholds import ThresholdOptions
from tltools.cli.workers import start_workers
from tltools.runtime.model_formats import suffixes
from tltools.wording import counted

if TYPE_CHECKING:
    from tltools.console import RichProgress
    from tltools.processes import Launcher
    from tltools.serve import ServeSettings
    from tltools.serve.server import Served, Serving

LIMITS = "Limits"
"""Title of a panel of the help."""
KILLED = "the service was killed, perhaps because memory ran out, or crashed"
STOPPED = "stopped; requests in progress are not answered"


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What clients may ask of a service."""

    max_image_mb: Annotated[
        float, typer.Option(help="Largest image file, in MB.", rich_help_panel=LIMITS)
    ] = 20.0
    max_waiting: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum images in the service; further requests get 503.",
            rich_help_panel=LIMITS,
        ),
    ] = 256
    client_timeout: Annotated[
        float,
        typer.Option(
            help="Time limit for a client to send a request, in seconds.", rich_help_panel=LIMITS
        ),
    ] = 30.0
    image_timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Time limit for decoding one image, in seconds.", rich_help_panel=LIMITS
        ),
    ] = 10.0

    def settings(self) -> dict[str, Any]:
        """Return their values by the names of `ServeSettings`."""
        values = dict(vars(self))
        for name in ("client_timeout", "image_timeout"):
            values[f"{name}_s"] = values.pop(name)
        return values


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """How a service uses the machine."""

    device: InferenceDeviceOption = "auto"
    batch_size: BatchSizeOption = None
    max_delay_ms: Annotated[
        float,
        typer.Option(
            min=0,
            help="Longest wait of an image for others in its batch, in ms.",
            rich_help_panel=SPEED,
        ),
    ] = 2.0
    workers: WorkersOption = None
    threads: ThreadsOption = None


@command
def serve(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(
            help=f"Export ({suffixes()}), or the run whose export it is.",
            parser=path_or_export,
            show_default="most accurate ONNX export in exports/",
        ),
    ] = None,
    *,
    out: Out,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: every network, without a password.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")
    ] = 8000,
    min_confidence: MinConfidenceOption = None,
    unknown: UnknownOption = None,
    labeling: ThresholdOptions,
    speed: SpeedOptions,
    limits: LimitOptions,
) -> None:
    """Answer HTTP requests with the labels of the images that they send.

    POST an image, or a form with files, to /classify. / is a page to drop images on.

    Example: tltools serve exports/cnn/cnn.fp32.onnx --port 8080
    """
    # Before any import that starts threads.
    launcher = start_workers(killed=KILLED, stopped=STOPPED) if context.obj else None
    from tltools.serve import ServeSettings, check_packages

    check_packages()
    progress = out.progress
    model = model or choose_export(progress)
    settings = ServeSettings(
        model,
        host=host,
        port=port,
        unknown=unknown,
        **labeling.resolve(model, min_confidence, progress),
        **vars(speed),
        **limits.settings(),
    )
    _warn_if_public(settings, out)
    _serve(settings, out, launcher)


def _warn_if_public(settings: "ServeSettings", out: Out) -> None:
    if not settings.is_local:
        out.progress.warn(
            f"{settings.host} can be reached from other machines, and the service has no password; "
            "put a server with one in front of it, or leave out `host=`"
        )


def _serve(settings: "ServeSettings", out: Out, launcher: "Launcher | None") -> None:
    from tltools.runtime.workers import default_launcher
    from tltools.serve.server import serve as run_server

    progress = out.progress
    with ExitStack() as stack:
        if launcher is None:
            launcher = default_launcher()
            stack.callback(launcher.close)
        run_server(
            settings,
            launcher=launcher,
            tell=progress.warn,
            on_ready=lambda ready: _tell_ready(ready, out),
            on_end=lambda served: _tell_end(served, progress),
        )


def _tell_ready(ready: "Serving", out: Out) -> None:
    from tltools.runtime.device import tell_device

    predictor = ready.predictor
    facts = {
        "url": ready.url,
        "model": str(ready.model),
        "device": predictor.device,
        "provider": predictor.provider,
        "plan": ready.plan,
    }
    tell_device(predictor.choice, out.progress)
    out.progress.detail(f"Plan: {ready.plan}")
    out.result(facts, lambda: typer.echo(f"Serving {ready.model} at {ready.url}"))
    out.progress.say("Ctrl-C stops the service")


def _tell_end(served: "Served", progress: "RichProgress") -> None:
    errors = f", {served.num_errors:,} of them with an error" if served.num_errors else ""
    failed = f", {served.num_failed:,} failed" if served.num_failed else ""
    progress.say(
        f"{counted(served.num_requests, 'request')} for labels answered{errors}; "
        f"{counted(served.num_classified, 'image')} classified{failed}"
    )
