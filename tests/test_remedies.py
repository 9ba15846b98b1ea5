"""Every remedy that a message names exists in the commands that can print the message."""

import re
from collections.abc import Iterator
from pathlib import Path

from test_words import FILES, ROOT, strings_of
from typer.main import get_command

from tltools import cli
from tltools.console import in_options

cli.load_commands()
COMMANDS = {
    name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    for name, command in get_command(cli.app).commands.items()
}
WITH_DEVICE = ("train", "evaluate", "export", "classify", "serve", "bench", "explain")
READING = ("train", "evaluate", "bench", "inspect")
"""The commands that read labels."""

PRINTED_BY: dict[str, tuple[str, ...]] = {
    "artifacts": ("classify", "serve", "bench", "export", "explain"),
    "backbones": ("train",),
    "bench": ("bench",),
    "classify": ("classify",),
    "classify/merge": ("merge",),
    "classify/predict": ("classify", "serve"),
    "classify/threshold": ("classify", "serve", "evaluate"),
    "cli/chance": ("train",),
    "cli/scores": ("evaluate",),
    "curves": ("evaluate",),
    "data/class_folders": READING,
    "data/columns": READING,
    "data/dataset": READING,
    "data/labels": READING,
    "data/remote": ("classify", "merge"),
    "data/split": ("train",),
    "data/tar": ("classify",),
    "decisions": ("classify", "serve", "evaluate"),
    "doctor": ("doctor",),
    "evaluate": ("evaluate", "bench"),
    "explain": ("explain",),
    "export": ("export",),
    "graphs": ("export",),
    "layouts": ("export",),
    "plots": ("train",),
    "ray": ("classify",),
    "ray/cluster": ("train", "evaluate", "classify"),
    "ray/models": ("train", "evaluate", "classify"),
    "report": ("report",),
    "run_folder": ("train",),
    "runtime": WITH_DEVICE,
    "runtime/onnx_backbone": ("train",),
    "runtime/pipeline": ("train", "evaluate", "classify", "serve"),
    "runtime/workers": ("classify", "serve"),
    "sample": ("sample",),
    "serve": ("serve",),
    "thresholds": ("evaluate",),
    "training": ("train",),
    **{f"cli/{name}": (name,) for name in COMMANDS},
    "cli/options": ("train", "evaluate", "classify"),
    "cli/command": tuple(COMMANDS),
    "cli/model_card": ("inspect",),
    "cli/resume": ("train",),
    "cli/sorting": ("classify",),
    "cli/thresholds": ("evaluate",),
    "cli/show": ("train", "evaluate", "classify", "bench"),
}
"""The commands that print the messages of a module, by the longest prefix of its path."""

FEWER: dict[tuple[str, str], tuple[str, ...]] = {
    ("data/dataset", "--split"): ("train",),
    ("data/dataset", "--val-fraction"): ("train",),
    # An inspection lists what is wrong and goes on.
    ("data/dataset", "--skip-bad"): ("train", "evaluate", "bench"),
    # A folder of results, which not all of them write.
    ("cli/show", "--output"): ("evaluate", "export", "bench"),
    # The doctor names what it checks.
    ("doctor", "--device"): WITH_DEVICE,
    # Printed only where the option was typed.
    ("runtime/device", "--tf32"): ("evaluate", "classify", "bench"),
    ("artifacts", "--model"): ("classify",),
    ("runtime/exports", "--unknown"): ("classify", "serve"),
}
"""The commands that print one of its options, where these are fewer."""

FOREIGN = re.compile(
    r"\b(pip|docker|tritonserver|apt-get|git|python3?|ray start|mlflow|tensorboard|tar)\b[^;:,)`]*"
)
"""Command lines of other programs, and what they are given."""
OPTION = re.compile(r"(?<![\w(-])--[a-z0-9]+(-[a-z0-9]+)*(?![\w(-])")
SENTENCE = re.compile(r"[;:.]\s")
VERB = re.compile(
    rf"\btltools ({'|'.join(COMMANDS)})\b"
    r"|\b(train|evaluate|export|classify|merge|bench|explain|inspect)\b"
)
"""The name of a command; names that are also common nouns only after `tltools`."""


def remedies(text: str) -> Iterator[tuple[str | None, str]]:
    """Yield each option in a message, and the command that is named before it in its sentence."""
    text = FOREIGN.sub("", in_options(text))
    if OPTION.fullmatch(text.strip()):
        return
    start = 0
    for end in (*(match.end() for match in SENTENCE.finditer(text)), len(text)):
        for option in OPTION.finditer(text, start, end):
            verbs = list(VERB.finditer(text, start, option.start()))
            yield (verbs[-1][1] or verbs[-1][2] if verbs else None), option.group()
        start = end


def printed_by(module: str) -> tuple[str, ...]:
    """Return the commands that print the messages of a module."""
    parts = module.split("/")
    for length in range(len(parts), 0, -1):
        found = PRINTED_BY.get("/".join(parts[:length]))
        if found is not None:
            return found
    return ()


def dead_ends(module: str, source: str) -> list[str]:
    """Name the options that a command prints and does not have."""
    found = []
    for line, text in strings_of(source):
        for named, option in remedies(text):
            if named is not None and option in COMMANDS[named]:
                continue
            commands = FEWER.get((module, option), printed_by(module))
            if not commands:
                found.append(f"{module}:{line}: who prints {option}? Add it to PRINTED_BY")
            lacking = [one for one in commands if option not in COMMANDS[one]]
            if lacking:
                found.append(f"{module}:{line}: {', '.join(lacking)} has no {option}: {text}")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for path in FILES:
        if path.suffix == ".py" and path.is_relative_to(ROOT / "tltools"):
            yield path.relative_to(ROOT / "tltools").with_suffix("").as_posix(), path


def test_each_option_in_a_message_exists_in_the_commands_that_print_it():
    found = [
        one
        for module, path in modules()
        # CSS, nvidia-smi, and --help, which every command has
        if module not in ("layouts/program", "report/svg", "bench/machine", "cli/usage")
        for one in dead_ends(module, path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_an_option_that_the_printing_command_lacks_is_found():
    source = (
        'A = "x failed; use a smaller `batch_size=`"\n'
        'B = "x failed; export it with another `precision=`, or use `device=cpu`"\n'
        'C = "x failed; run tltools merge, `overwrite=True` and --shard 1/2"\n'
        'D = "x failed; pip install --upgrade x"\n'
    )
    assert dead_ends("export/module", source) == [
        "export/module:1: export has no --batch-size: x failed; use a smaller `batch_size=`",
        "export/module:3: export has no --shard: "
        "x failed; run tltools merge, `overwrite=True` and --shard 1/2",
    ]


def test_a_message_of_an_unknown_room_is_found():
    (found,) = dead_ends("new_room/module", 'A = "x failed; use `device=cpu`"')
    assert "who prints --device?" in found


def test_each_module_in_the_tables_exists():
    known = {module for module, _ in modules()}
    named = {*PRINTED_BY, *(module for module, _ in FEWER)}
    assert not [one for one in named if one not in known and f"{one}/__init__" not in known]


RUN = re.compile(
    r"(?:\b(?:run|with|use|again|see|create one) |`|Next: |resume: )tltools ([a-z]+)\b"
)
"""A command line to type; elsewhere tltools is the subject of a sentence."""


def test_each_command_in_a_message_exists():
    found = {
        f"{module}:{line}": match[1]
        for module, path in modules()
        for line, text in strings_of(path.read_text(encoding="utf-8"))
        for match in RUN.finditer(text)
    }
    assert len(found) > 10  # the pattern finds them
    assert not {place: name for place, name in found.items() if name not in COMMANDS}
