"""`tltools docs`."""

import re
from typing import Annotated

import typer

from tltools.cli.command import Out, command
from tltools.errors import ConfigError
from tltools.wording import did_you_mean

CHAPTERS = (
    "install",
    "data",
    "training",
    "export",
    "classify",
    "serve",
    "reliability",
    "remote",
    "deploy",
    "gpu",
    "benchmarks",
    "development",
)
"""In the order in which `tltools docs` lists them."""

_COMMENTS = re.compile(r"<!--.*?-->\n*", re.DOTALL)
_LINKS = re.compile(r"\[([^\]]+)\]\((\w+)\.md\)")


def _complete(incomplete: str) -> list[str]:
    return [name for name in CHAPTERS if name.startswith(incomplete)]


@command
def docs(
    topic: Annotated[
        str | None,
        typer.Argument(
            help="Chapter to print.", show_default="list the chapters", autocompletion=_complete
        ),
    ] = None,
    *,
    out: Out,
) -> None:
    """Read the documentation, one chapter at a time.

    Example: tltools docs training
    """
    if topic is None:
        found = {name: summary(read_chapter(name)) for name in CHAPTERS}
        out.result(found, lambda: _print_list(found))
        out.progress.say("Next: tltools docs TOPIC")
        return
    from tltools.console import print_markdown

    text = read_chapter(topic)
    out.result({"topic": topic, "text": text}, lambda: print_markdown(text))


def read_chapter(topic: str) -> str:
    """Return a chapter as Markdown, without comments; links become commands.

    Raises:
        ConfigError: If the chapter does not exist.
    """
    if topic not in CHAPTERS:
        described = _chapter_of(topic)
        guess = (
            f" tltools {topic} is described in {described};"
            if described
            else did_you_mean(topic, CHAPTERS)
        )
        raise ConfigError(f"no chapter {topic!r};{guess} choose from {', '.join(CHAPTERS)}")
    text = _text_of(topic)
    return _LINKS.sub(r"\1 (`tltools docs \2`)", _COMMENTS.sub("", text))


def _text_of(chapter: str) -> str:
    from importlib.resources import files  # here, because most commands do without it

    return (files("tltools") / "docs" / f"{chapter}.md").read_text(encoding="utf-8")


def _chapter_of(command: str) -> str | None:
    """Return the chapter that has the most of a command; None if none has it."""
    pattern = re.compile(rf"tltools {re.escape(command)}\b")
    uses = {name: len(pattern.findall(_text_of(name))) for name in CHAPTERS}
    best = max(uses, key=uses.__getitem__)
    return best if uses[best] else None


def summary(text: str) -> str:
    """Return the line below a chapter's title."""
    return text.split("\n\n")[1].replace("\n", " ")


def _print_list(found: dict[str, str]) -> None:
    from tltools.console import print_table

    print_table("Chapters", ("topic", "contents"), list(found.items()))
