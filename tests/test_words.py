"""Phrases that are gone stay gone, and the library names parameters where users type options."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from tltools import cli

ROOT = Path(__file__).parents[1]
FILES = sorted(
    [
        *(ROOT / "tltools").rglob("*.py"),
        *(ROOT / "tltools").rglob("*.md"),
        *(ROOT / "tltools").rglob("*.j2"),
        *(ROOT / "tltools").rglob("*.html"),
        ROOT / "README.md",
        ROOT / "exports" / "README.md",
    ]
)

GONE = {
    # One vocabulary: the word, and what to say instead.
    r"pictures?\b": "image",
    r"photographed\b": "image",
    r"mend(s|ed|ing)?\b": "fix",
    r"(go|goes|going|went|gone) on with\b": "resume, continue",
    r"speaks? (for|against)\b": "supports, evidence for",
    r"spoke (for|against)\b": "supports, evidence for",
    r"doubles\b": "duplicates",
    r"mislabelled\b": "mislabeled",
    # Turns of phrase from another language.
    r"the makings of\b": "a build context",
    r"(is|are) told of\b": "is reported",
    r"first walk\b": "getting started",
    r"com(e|es|ing) into being\b": "is written, is created",
    r"weighs? rare\b": "weight by inverse class frequency",
    r"keeps its word\b": "honors",
    r"of which there (is|are) none\b": "that does not exist",
    r"is nothing that can be\b": "is not a",
    r"(that|as) there (is|are)[.,;)\"]": "existing, available",
    r"the system refuses\b": "cannot access",
    r"(or|and|;|:) make room\b": "free some disk space",
    r"or nothing is\b": "completely or not at all",
    r"asked for everything\b": "verbose",
    r"nothing to complain\b": "no problems found",
    r"cannot be believed|can be believed\b": "calibrated",
    r"never a guess\b": "you always know",
    r"(is|are) seldom\b": "is rare",
    r"has been seen to\b": "costs about",
    r"somebody|nobody\b": "a person, no one",
    r"(is|are|be) gone on with\b": "resume",
    r"(is|are) no (name|file|image|model|export|archive|run|JSON|CSV) of\b": "is not a",
    r"neither of tltools\b": "is not a result of",
    r"that (a|the|this) (user|caller)s? may take\b": "allowed",
    r"(says|said) farewell\b": "prints a last line",
    r"divides? itself\b": "forks",
    r"answered on the terminal\b": "printed",
    r"could be meant\b": "qualify",
    r"(make|makes|making) up for (it|that)\b": "repeats, writes it",
    r"(made|makes?|create) (it|the file) again\b": "recreate, run the command again",
    r"takes? no room\b|(has|is) no room\b": "takes no space, out of memory, disk full",
    r"right with \w+ alone\b": "x alone is right on",
    r"by a name of (its|their) own\b": "with its own name",
    r"(is|are) cut and scaled\b": "cropped and scaled",
    r"hits and mistakes|mistakes and hits\b": "mistakes and correct predictions",
    r"keeps? no predictions\b": "has no predictions",
    r"whosoever|whatsoever|thereof|therein|thereby\b": "plain words",
    # American spelling.
    r"(colou|favou|behaviou|neighbou|honou|labou)r(s|ed|ing|less|ful|able|ite)?\b": "-or",
    r"(labell|modell|cancell|travell|signall|totall)(ed|ing)\b": "one l",
    r"\w{3,}isation(s)?\b": "-ization",
    r"(normal|quant|optim|serial|initial|organ|recogn|summar|minim|maxim|general|synchron|parallel|"
    r"token|categor|visual|util|real|final|standard|random)is(e|es|ed|ing|er|ers)\b": "-ize",
    r"(grey|centred?|metre|analysed?|catalogue|licence|artefact|cheque)s?\b": "American",
}

OPTIONS_ALLOWED = tuple(ROOT / "tltools" / room for room in ("cli", "docs", "bench", "report"))
"""Folders whose text is shown unchanged; elsewhere `console.in_options` translates it."""
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
COMMANDS = get_command(cli.app).commands.values()
OPTIONS = {name for command in COMMANDS for option in command.params for name in option.opts}
PROGRAMS = re.compile(
    r"\b(tltools|pip|docker|tritonserver|apt-get|git|python3?|ray start|mlflow|tensorboard)"
    r"\b[^.;]*--[a-z]"
)
"""A whole command line."""


@pytest.mark.parametrize("phrase", GONE)
def test_a_phrase_that_is_gone_stays_gone(phrase):
    pattern = re.compile(rf"(?<!\w){phrase}", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, f"say {GONE[phrase]!r}:\n" + "\n".join(found)


def strings_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string but docstrings, with {} for formatted values."""
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):  # docstrings, of constants and fields as well
            skipped |= {id(part) for part in ast.walk(node.value)} if is_text(node.value) else set()
        if isinstance(node, ast.JoinedStr) and id(node) not in skipped:
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
            skipped |= {id(part) for part in node.values}
            yield node.lineno, text
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in skipped
        ):
            yield node.lineno, node.value


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def spelled_options(path: Path) -> list[str]:
    """Name the strings of a module that spell an option outside a whole command line."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for line, text in strings_of(path.read_text(encoding="utf-8"))
        if OPTIONS & {*OPTION.findall(text)}
        and not PROGRAMS.search(text)
        and not OPTION.fullmatch(text)
    ]


def test_the_library_names_parameters_and_not_options():
    found = [
        one
        for path in FILES
        if path.suffix == ".py" and not any(path.is_relative_to(room) for room in OPTIONS_ALLOWED)
        for one in spelled_options(path)
    ]
    assert not found, "write `overwrite=True` for --overwrite:\n" + "\n".join(found)


def test_a_string_that_spells_an_option_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(
        '"""Docstring about --option."""\n'
        'first = f"{x} exists; replace it with " f"--overwrite"\n'
        'second = "run tltools train --resume"\n'
        'third = "`overwrite=True` replaces it"\n'
        'fourth = "--output names it"\n'
        'fifth = "pack without --sparse"\n'
        'ARGUMENTS = ["--layout"]\n'
    )
    assert spelled_options(path) == [
        "module.py:2: {} exists; replace it with --overwrite",
        "module.py:5: --output names it",
    ]
