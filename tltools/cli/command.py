"""Turn functions into commands: the Typer app, and the output of results and progress."""

import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import typer.core

from tltools.cli.options import JsonOption, QuietOption, VerboseOption
from tltools.cli.usage import GIVEN
from tltools.data.location import without_secrets
from tltools.errors import ConfigError

if TYPE_CHECKING:
    from tltools.console import RichProgress

app = typer.Typer(
    name="tltools",
    help="Train image classifiers, export verified models, classify folders, measure every step."
    "\n\nGetting started: [bold]tltools train[/bold], [bold]tltools export[/bold], "
    "[bold]tltools classify FOLDER[/bold], [bold]tltools bench[/bold], "
    "[bold]tltools report[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""


class Command(typer.core.TyperCommand):
    """A command whose usage errors quote arguments without their secrets."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            ConfigError: If an option of one value is given several.
        """
        ctx.meta[GIVEN] = tuple(map(str, args))
        try:
            if not ctx.resilient_parsing:  # for completion
                self._check_single(ctx, args)
            return super().parse_args(ctx, args)
        except Exception as error:
            # The class of these errors is private to Typer, which prints them as a box.
            if isinstance(message := getattr(error, "message", None), str):
                setattr(error, "message", without_secrets(message))  # noqa: B010
            raise

    def _check_single(self, ctx: Any, args: list[str]) -> None:
        """Refuse several values of an option that takes one, of which the parser keeps the last."""
        kind = type(self.make_parser(ctx))

        class Keeping(kind):
            """A parser that keeps all values of an option."""

            def add_option(self, *given: Any, action: Any = None, **settings: Any) -> None:
                kept = "append" if action == "store" else action
                super().add_option(*given, action=kept, **settings)

        parser = Keeping(ctx)
        parameters = self.get_params(ctx)
        for one in parameters:
            one.add_to_parser(parser, ctx)
        values, _, _ = parser.parse_args(args=list(args))
        for one in parameters:
            given = values.get(one.name or "")
            is_single = one.param_type_name == "option" and not one.multiple
            if is_single and isinstance(given, list) and len(set(given)) > 1:
                raise ConfigError(_given_twice(ctx, one, len(given)))


_EACH = ("model", "format", "precision")
"""Options whose value `all`, if they have it, means each of the others."""


def _given_twice(ctx: Any, option: Any, times: int) -> str:
    """Return the message that an option was given several times, with different values."""
    name = max(option.opts, key=len)
    how_often = "twice" if times == 2 else f"{times} times"
    choices = [one.value for one in option.shell_complete(ctx, "")]
    every = f", or {name} all" if option.name in _EACH and "all" in choices else ""
    return f"{name} is given {how_often}; give it once{every}"


class Out:
    """Output of a command: progress on standard error, the result on standard output."""

    is_verbose = False
    """Whether the running command was called with --verbose."""

    def __init__(self, *, quiet: bool, verbose: bool, as_json: bool) -> None:
        """Store how much to print.

        Raises:
            ConfigError: If both `quiet` and `verbose` are set.
        """
        if quiet and verbose:
            raise ConfigError("--quiet and --verbose contradict each other; use one of them")
        self.as_json = as_json
        self._quiet = quiet
        self._verbose = verbose
        self._progress: RichProgress | None = None
        Out.is_verbose = verbose
        if not verbose:
            _hush_libraries()

    @property
    def progress(self) -> "RichProgress":
        """Progress on standard error."""
        if self._progress is None:
            from tltools.console import RichProgress

            self._progress = RichProgress(quiet=self._quiet, verbose=self._verbose)
        return self._progress

    def result(self, document: object, show: Callable[[], None] | None = None) -> None:
        """Print the result on standard output.

        Args:
            document: Printed with `--json`; paths, and anything that msgspec can encode.
            show: Prints the result for people, without `--json`. None: nothing is left to print.
        """
        if not self.as_json:
            if show is not None:
                show()
            return
        import msgspec

        self.json(msgspec.json.encode(document, enc_hook=_path_text).decode())

    def json(self, text: str) -> None:
        """Print a JSON document."""
        import msgspec

        from tltools.console import printable_json

        typer.echo(printable_json(msgspec.json.format(text, indent=2)))


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a function as a command; its parameter `out` becomes the common options.

    A parameter that is a dataclass becomes one option for each of its fields.
    """
    added = {"quiet": QuietOption, "verbose": VerboseOption, "as_json": JsonOption}
    signature = inspect.signature(function)
    groups: dict[str, type] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }
    own = [
        one
        for name, parameter in signature.parameters.items()
        for one in (_options_of(groups[name]) if name in groups else [parameter])
        if one.name != "out"
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [
        inspect.Parameter(name, keyword, default=False, annotation=annotation)
        for name, annotation in added.items()
    ]

    @wraps(function)
    def run(*args: Any, quiet: bool, verbose: bool, as_json: bool, **options: Any) -> None:
        out = Out(quiet=quiet, verbose=verbose, as_json=as_json)
        settings = signature.replace(parameters=own).bind(*args, **options).arguments
        for name, group in groups.items():
            values = {field.name: options.pop(field.name) for field in fields(group)}
            options[name] = group(**values)
        if not verbose:
            function(*args, out=out, **options)
            return
        begun = time.perf_counter()
        _tell_settings(out, settings)
        try:
            function(*args, out=out, **options)
        finally:
            out.progress.detail(f"took {time.perf_counter() - begun:.1f} s")

    setattr(run, "__signature__", signature.replace(parameters=[*own, *common]))  # noqa: B010
    run.__annotations__ = {one.name: one.annotation for one in (*own, *common)}
    app.command(cls=Command)(run)
    return run


def _path_text(value: Any) -> str:
    """Return a path as text, for JSON."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _hush_libraries() -> None:
    """Keep warnings of matplotlib's own, about its caches and fonts, off the terminal."""
    import logging

    # With a handler of its own, a logger's warnings do not end up on standard error.
    logging.getLogger("matplotlib").addHandler(logging.NullHandler())


def given_options(context: typer.Context) -> dict[str, Any]:
    """Return the parameters of a command that were given, not left to their defaults."""
    given: dict[str, Any] = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            given[name] = value
    return given


def _options_of(group: type) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as keyword parameters."""
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )
        for field in fields(group)
    ]


def _tell_settings(out: Out, settings: dict[str, Any]) -> None:
    """Print what a bug report needs."""
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
