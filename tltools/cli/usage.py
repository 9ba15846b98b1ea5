"""Say in one line what is wrong with a command line, and which option or name was meant."""

import re
from typing import Any

from tltools.wording import did_you_mean, plural

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


def usage_message(error: Exception) -> str | None:
    """Return the message of a usage error; None if it is the help itself, or another error.

    The classes of these errors are private to Typer, so they are known by what they have.
    """
    message, context = getattr(error, "message", None), getattr(error, "ctx", None)
    if not isinstance(message, str) or not hasattr(error, "format_message"):
        return None
    text = _text(error, context).strip().rstrip(".")
    text = text[:1].lower() + text[1:]
    return text if context is None else f"{text} (see {_command(context)} --help)"


def is_help(error: Exception) -> bool:
    """Return whether an error is the help that a command without arguments prints."""
    return type(error).__name__ == "NoArgsIsHelpError"


def _command(context: Any) -> str:
    """Return the command as it is typed, however Python was started."""
    return "tltools" if context.parent is None else f"tltools {context.info_name}"


def _text(error: Any, context: Any) -> str:
    """Return the message with a suggestion."""
    if (unknown := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
        known = [name for one in context.command.params for name in one.opts]
        return f"no such option {unknown};{did_you_mean(unknown, known)}".rstrip(";")
    text = re.sub(r"\s+", " ", error.format_message())
    if found := re.match(r"No such command '([^']*)'", text):
        meant = did_you_mean(found[1], context.command.commands)
        return f"no such command {found[1]!r};{meant}".rstrip(";")
    text = re.sub(r"(?<=is not a valid )(\w+) range", rf"\1{_bounds(error)}", text)
    text = re.sub(r"is not a valid int(eger)?\b", "is not a whole number", text)
    text = text.replace("is not a valid float", "is not a number")
    if found := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", text):
        return f"unexpected {plural(len(found[1].split()), 'argument')} {found[1]}"
    if found := re.match(r"Missing argument '(.*)'", text):
        return f"Missing argument {found[1].upper()}"
    if found := _RANGE.search(text):
        return f"{found['option']} must be {_within(found['range'])}, got {found['value']}"
    if (at := text.find(" is not one of ")) >= 0:
        given = _QUOTED.findall(text[:at])
        meant = did_you_mean(given[-1], _QUOTED.findall(text[at:])) if given else ""
        return f"{text.rstrip('.')};{meant}".rstrip(";")
    return text
