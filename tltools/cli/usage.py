"""Say in one line what is wrong with a command line, and which option or name was meant."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tltools.wording import did_you_mean, plural, together

_QUOTED = re.compile(r"'([^']*)'")


_RANGE = re.compile(
    r"Invalid value for '(?:-\w / )?(?P<option>--[a-z0-9-]+)'.*: "
    r"(?P<value>\S+) is not in the range (?P<range>\S+?)\.?$"
)


def _within(bounds: str) -> str:
    """Put `x>=4` or `0<=x<=1` into words."""
    if found := re.fullmatch(r"x>=(.+)", bounds):
        return f"at least {found[1]}"
    if found := re.fullmatch(r"(.+)<=x<=(.+)", bounds):
        return f"between {found[1]} and {found[2]}"
    return f"in the range {bounds}"


def _bounds(error: Any) -> str:
    """Return the bounds of the option with an error, such as ` between 0 and 1`."""
    kind = getattr(getattr(error, "param", None), "type", None)
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    if low is not None and high is not None:
        return f" between {low:g} and {high:g}"
    if low is not None:
        return f" of at least {low:g}"
    return "" if high is None else f" of at most {high:g}"


def usage_message(error: Exception, commands: Callable[[], Mapping[str, Any]]) -> str | None:
    """Return the message of a usage error.

    The classes of these errors are private to Typer, so they are known by what they have.

    Args:
        error: The error.
        commands: Returns all commands by name, which takes time.

    Returns:
        None if it is the help itself, or another error.
    """
    message, context = getattr(error, "message", None), getattr(error, "ctx", None)
    if not isinstance(message, str) or not hasattr(error, "format_message"):
        return None
    text = _text(error, context, commands).strip().rstrip(".")
    text = text[:1].lower() + text[1:]
    return text if context is None else f"{text} (see {_command(context)} --help)"


def is_help(error: Exception) -> bool:
    """Return whether an error is the help that a command without arguments prints."""
    return type(error).__name__ == "NoArgsIsHelpError"


def _command(context: Any) -> str:
    """Return the command as it is typed, however Python was started."""
    return "tltools" if context.parent is None else f"tltools {context.info_name}"


def _text(error: Any, context: Any, commands: Callable[[], Mapping[str, Any]]) -> str:
    """Return the message with a suggestion."""
    if (unknown := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
        return f"no such option {unknown};{_meant(unknown, context, commands())}".rstrip(";")
    text = re.sub(r"\s+", " ", error.format_message())
    if found := re.match(r"No such command '([^']*)'", text):
        meant = did_you_mean(found[1], context.command.commands)
        if found[1] in _COMMANDS:
            meant = f" use tltools {_COMMANDS[found[1]]}"
        return f"no such command {found[1]!r};{meant}".rstrip(";")
    text = re.sub(r"(?<=is not a valid )(\w+) range", rf"\1{_bounds(error)}", text)
    text = re.sub(r"is not a valid int(eger)?\b", "is not a whole number", text)
    text = text.replace("is not a valid float", "is not a number")
    if found := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", text):
        extra = f"unexpected {plural(len(found[1].split()), 'argument')} {found[1]}"
        meant = _chosen_with_option(context) or _other_images(context)
        return f"{extra};{meant}".rstrip(";")
    if found := re.match(r"Missing argument '(.*)'", text):
        return _missing(found[1].upper(), context)
    if found := _RANGE.search(text):
        return f"{found['option']} must be {_within(found['range'])}, got {found['value']}"
    if (at := text.find(" is not one of ")) >= 0:
        given = _QUOTED.findall(text[:at])
        meant = did_you_mean(given[-1], _QUOTED.findall(text[at:])) if given else ""
        return f"{text.rstrip('.')};{meant}".rstrip(";")
    return text


# ------------------------------------------------------------------------------ what was meant

_COMMANDS = {
    "sort": "classify FOLDER --sort-into DIR",
    "predict": "classify",
    "infer": "classify",
    "test": "evaluate",
    "val": "evaluate",
    "validate": "evaluate",
    "score": "evaluate",
    "benchmark": "bench",
    "fit": "train",
    "convert": "export",
    "gradcam": "explain",
    "list": "runs",
    "delete": "runs --delete NAME",
    "compare": "runs A B",
    "check": "doctor",
}
"""What others call our commands."""

GIVEN = "tltools.given"
"""Key in the `meta` of a command's context: its arguments, as they were typed."""


def _meant(unknown: str, context: Any, commands: Mapping[str, Any]) -> str:
    """Return what an unknown option may be: an argument, one of other commands, or a close name."""
    having = [name for name, one in commands.items() if unknown in _options(one)]
    which = "each command" if len(having) == len(commands) else together(having or ["none"])
    if context.parent is None:  # before the name of a command
        if having:
            return f" {unknown} is an option of {which}, and follows its name"
        return did_you_mean(unknown, _options(context.command))
    if unknown in _NAMES_OF_RUNS and context.info_name == "train":
        return " a run is named after its model; its folder in runs/ may be renamed"
    if _IMAGES_OF_A_SPLIT.fullmatch(unknown) and (meant := _other_images(context)):
        return meant
    argument = _argument_of(unknown, context.command)
    if argument is not None and (right := _as_argument(unknown, argument, context)):
        name = (argument.metavar or argument.name.upper()).rstrip(".")
        return f" give {name} without it: {right}"
    if having:
        return f" {unknown} is an option of {which}"
    return did_you_mean(unknown, _options(context.command))


def _options(command: Any) -> list[str]:
    """Return all names of a command's options, those that turn one off included."""
    options = (one for one in command.params if one.param_type_name == "option")
    return [name for one in options for name in (*one.opts, *one.secondary_opts)]


def _argument_of(option: str, command: Any) -> Any:
    """Return the argument with the name of an option, singular or plural; None if there is none."""
    name = option.lstrip("-").replace("-", "_").rstrip("s")
    names = ("model", "run") if name in ("model", "run") else (name,)  # one in place of the other
    arguments = (one for one in command.params if one.param_type_name == "argument")
    return next((one for one in arguments if name and one.name.rstrip("s") in names), None)


def _as_argument(option: str, argument: Any, context: Any) -> str:
    """Return the command with the value of an option as an argument; empty if it has no value."""
    words = list(context.meta.get(GIVEN, ()))
    at = next((i for i, word in enumerate(words) if word.partition("=")[0] == option), None)
    if at is None:
        return ""
    _, has_value, value = words.pop(at).partition("=")
    if not has_value:
        if at == len(words) or words[at].startswith("-"):
            return ""
        value = words.pop(at)
    arguments = [one for one in context.command.params if one.param_type_name == "argument"]
    first = argument is arguments[0]
    return _typed(context, [value, *words] if first else [*words, value])


def typed_without(context: Any, *options: str) -> str:
    """Return the command line as it was typed, without options that have a value."""
    words: list[str] = []
    given = iter(context.meta.get(GIVEN, ()))
    for word in given:
        name, has_value, _ = word.partition("=")
        if name not in options:
            words.append(word)
        elif not has_value:
            next(given, None)
    return _typed(context, words)


def _typed(context: Any, words: Sequence[str]) -> str:
    """Return a command line without the secrets in it."""
    from tltools.data.location import without_secrets

    return without_secrets(shlex.join([*_command(context).split(), *words]))


def _chosen_with_option(context: Any) -> str:
    """Propose --model for the name of a network among the arguments of a command that takes one."""
    from tltools.backbones import BACKBONES

    model = next((one for one in context.command.params if "--model" in one.opts), None)
    words = list(context.meta.get(GIVEN, ()))
    network = next((one for one in _arguments(context, words) if one in BACKBONES), None)
    if model is None or network is None or not _is_free(model, words):
        return ""
    words.remove(network)
    right = _typed(context, [*words, "--model", network])
    return f" the network is chosen with --model: {right}"


_NAMES_OF_RUNS = ("--name", "--run-name", "--run", "--experiment", "--project")
"""Options that other programs have for the name of a run."""
_IMAGES_OF_A_SPLIT = re.compile(
    "--(val|valid|validation|test)(-?(data|dir|folder|images|path|set|split))?"
)
"""Options that other programs have for images of other splits."""


def _other_images(context: Any) -> str:
    """Say where images for validation and tests go, if the command is `train`."""
    if context.info_name != "train":
        return ""
    return (
        " DATA may hold the folders train/ and val/; other images are scored after training, with "
        "tltools evaluate RUN IMAGES"
    )


def _is_free(option: Any, words: Sequence[str]) -> bool:
    """Return whether an option is not among the words of a command line."""
    return not any(word.partition("=")[0] in option.opts for word in words)


def _arguments(context: Any, words: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command line that are neither options nor their values."""
    values, rest, _ = context.command.make_parser(context).parse_args(list(words))
    names = [one.name for one in context.command.params if one.param_type_name == "argument"]
    for value in (*(values.get(name) for name in names), *rest):
        if isinstance(value, str):
            yield value


def _missing(name: str, context: Any) -> str:
    """Return the message of a missing argument; images in place of a model are no model."""
    first = next((one for one in context.command.params if one.param_type_name == "argument"), None)
    given = None if first is None else context.params.get(first.name)
    if first is None or first.name != "model" or given is None:
        return f"missing argument {name}"
    from tltools.cli.options import holds_images

    if not holds_images(given):
        return f"missing argument {name}"
    model = (first.metavar or first.name).upper()
    right = _typed(context, [model, str(given)])
    return f"missing argument {model}, which comes first: {right}"
