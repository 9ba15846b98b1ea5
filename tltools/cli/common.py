"""What the commands share: the Typer app, options, and where results and progress go."""

import inspect
import sys
import time
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tltools.errors import ConfigError

if TYPE_CHECKING:
    from tltools.console import RichProgress

app = typer.Typer(
    name="tltools",
    help="Train image classifiers, export them verified, classify folders, measure it all.\n\n"
    "A first walk: [bold]tltools train[/bold], [bold]tltools export --format onnx[/bold], "
    "[bold]tltools classify FOLDER[/bold], [bold]tltools bench[/bold], "
    "[bold]tltools report[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""
REPORT_PACKAGES = ("jinja2", "matplotlib")
"""What every page of `--report` is made with; an installation for classifying alone has neither."""

# Titles of the parts of a help with many options.
DATA, SPEED, TERMINAL = "Data", "Speed", "Terminal"

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="Where to run; auto takes CUDA where it works and says so."),
]
InferenceDeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "tensorrt", "openvino"],
    typer.Option(
        "--device",
        help="Where to run; auto takes CUDA where it works and says so. tensorrt and openvino are "
        "onnxruntime's execution providers, where they are installed.",
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        help="Where a CSV's pictures lie.",
        show_default="beside it, or images/",
        rich_help_panel=DATA,
    ),
]
ImageColumnOption = Annotated[
    str | None,
    typer.Option(
        help="The CSV's column of pictures.", show_default="the first", rich_help_panel=DATA
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
        "--skip-bad", help="Leave out missing and unreadable pictures.", rich_help_panel=DATA
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Decoding threads.", show_default="by the machine", rich_help_panel=SPEED
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


class Out:
    """Where a command says what it does, on standard error, and what came of it."""

    is_verbose = False
    """Of the command that runs now."""

    def __init__(self, *, quiet: bool, verbose: bool, as_json: bool) -> None:
        """Take what the user asked for.

        Raises:
            ConfigError: If that contradicts itself.
        """
        if quiet and verbose:
            raise ConfigError("--quiet and --verbose contradict each other; give one of them")
        self.as_json = as_json
        self._quiet = quiet
        self._verbose = verbose
        self._progress: RichProgress | None = None
        Out.is_verbose = verbose

    @property
    def progress(self) -> "RichProgress":
        """Where progress is shown."""
        if self._progress is None:
            from tltools.console import RichProgress

            self._progress = RichProgress(quiet=self._quiet, verbose=self._verbose)
        return self._progress

    def result(self, document: object, show: Callable[[], None]) -> None:
        """Print the result on standard output.

        Args:
            document: What msgspec can write as JSON; printed with `--json`.
            show: Prints it for people; called without.
        """
        if not self.as_json:
            show()
            return
        import msgspec

        self.json(msgspec.json.encode(document).decode())

    def json(self, text: str) -> None:
        """Print a JSON document."""
        import msgspec

        from tltools.console import printable_json

        typer.echo(printable_json(msgspec.json.format(text, indent=2)))


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function; its parameter `out` becomes the options that all have."""
    added = {"quiet": QuietOption, "verbose": VerboseOption, "as_json": JsonOption}
    signature = inspect.signature(function)
    parameters = [value for name, value in signature.parameters.items() if name != "out"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters += [
        inspect.Parameter(name, keyword, default=False, annotation=annotation)
        for name, annotation in added.items()
    ]

    @wraps(function)
    def run(*args: Any, quiet: bool, verbose: bool, as_json: bool, **options: Any) -> None:
        out = Out(quiet=quiet, verbose=verbose, as_json=as_json)
        if not verbose:
            function(*args, out=out, **options)
            return
        begun = time.perf_counter()
        _tell_settings(out, signature.bind(*args, out=out, **options).arguments)
        try:
            function(*args, out=out, **options)
        finally:
            out.progress.detail(f"took {time.perf_counter() - begun:.1f} s")

    annotations = {
        name: kind for name, kind in function.__annotations__.items() if name != "out"
    } | added
    setattr(run, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    run.__annotations__ = annotations
    app.command()(run)
    return run


def _tell_settings(out: Out, settings: dict[str, Any]) -> None:
    """Say what a report of a fault needs."""
    import platform

    from tltools import __version__

    out.progress.detail(
        f"tltools {__version__}, Python {platform.python_version()} at {sys.executable}, "
        f"{platform.platform()}"
    )
    for name, value in settings.items():
        if name not in ("out", "context"):
            shown = str(value) if isinstance(value, Path) else value
            out.progress.detail(f"{name.replace('_', '-')} = {shown!r}")


def check_report(report: Path | None) -> None:
    """Refuse a page that cannot be made or a place that none can have, before the work.

    Raises:
        ConfigError: If a package that pages are made with is missing, as where tltools only
            classifies; and see `check_place`.
    """
    if report is not None:
        missing = [name for name in REPORT_PACKAGES if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"--report needs {' and '.join(missing)}, which is not installed: pip install "
                f"{' '.join(missing)}, or leave --report out"
            )
        from tltools.report import check_place

        check_place(report)


def tell(message: str) -> None:
    """Write one line to standard error, without a progress to write it."""
    from tltools.console import printable

    typer.echo(printable(message), err=True)


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
