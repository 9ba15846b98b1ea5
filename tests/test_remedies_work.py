"""Each message that names a command or an option is provoked, and what it names cures the fault."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Recorder, make_exports, run_tltools
from remedy_table import CASES, UNTRIED, Case
from test_remedies import FOREIGN, RUN, modules, remedies
from test_words import strings_of
from typer.main import get_command

from tltools import cli
from tltools.classify import Job, run_job
from tltools.classify.unfinished import UnfinishedOutput
from tltools.console import in_options
from tltools.data.dataset import load_dataset
from tltools.training import TrainSetup, default_config, train_model


class Told(NamedTuple):
    """A text of the source that names a command or an option."""

    place: str
    """Module and line."""
    text: str
    """With options as they are typed, and `{}` for each formatted value."""


def helps() -> set[str]:
    """All texts of `--help`."""
    commands = get_command(cli.app).commands.values()
    parameters = [one for command in commands for one in command.params]
    return {getattr(one, "help", None) or "" for one in (*commands, *parameters)}


def told() -> Iterator[Told]:
    """Yield each message, and each part of one, that names a remedy."""
    of_help = {re.sub(r"\W", "", one) for one in helps()}
    for module, path in modules():
        for line, text in strings_of(path.read_text(encoding="utf-8")):
            names = any(remedies(text)) or RUN.search(text) or FOREIGN.search(text)
            is_message = " " in text and not re.fullmatch(r"--[a-z-]+ \w+", text)
            if names and is_message and re.sub(r"\W", "", text) not in of_help:
                yield Told(f"{module}:{line}", in_options(text))


TOLD = list(told())


def pattern(text: str) -> re.Pattern[str]:
    """Match a message that was made from a text of the source."""
    parts = map(re.escape, text.split("{}"))
    return re.compile(".*?".join(parts).replace(r"`.*?=`", r"--[a-z-]+"))


def meant(piece: str) -> str:
    """Return the one text of the source that has a piece."""
    found = {one.text for one in TOLD if piece in one.text}
    if piece not in found:
        (piece,) = found
    return piece


def test_each_entry_is_a_message_of_the_source():
    known = [one.told for one in CASES] + list(UNTRIED)
    assert not [piece for piece in known if not any(piece in one.text for one in TOLD)]


def test_each_remedy_of_the_source_is_tried_or_says_why_not():
    known = [one.told for one in CASES] + list(UNTRIED)
    assert len(TOLD) > 200  # they are found
    missing = [
        f"{place}: {text}" for place, text in TOLD if not any(piece in text for piece in known)
    ]
    assert not missing, "add them to remedy_table.py:\n" + "\n".join(missing)


# ------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="session")
def furnished(drawn, make_onnx, make_card, vgg16_file, tmp_path_factory) -> Path:
    """A folder with images, labels, a run of small images and its exports, to be copied."""
    root = tmp_path_factory.mktemp("furnished")
    shutil.copytree(drawn, root / "data")
    furnish(root)
    make_onnx(root / "odd.onnx", make_card(classes=("red", "uncertain", "blue")).to_json())
    (root / "vgg16.safetensors").symlink_to(vgg16_file)
    return root


def furnish(root: Path) -> None:
    """Add to the folder `data` what the commands make of it."""
    with tarfile.open(root / "data.tar", "w") as tar:
        tar.add(root / "data", "data")
    images = sorted((root / "data").glob("*/*.png"))
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in images]
    (root / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    shutil.copy(images[0], root / "one.png")
    (root / "bad.jpg").write_bytes(b"no image")
    config = default_config("cnn", epochs=1, batch_size=5, lr=1e-3, image_size=32)
    setup = TrainSetup(device="cpu", run_dir=root / "runs")
    run = train_model(load_dataset(root / "data", val_fraction=0.375), config, setup).folder
    make_exports(run, ("torchscript", "onnx"), root / "exports", device="cpu")


@pytest.fixture
def place(furnished: Path, tmp_path: Path, monkeypatch) -> Iterator[Path]:
    for name in ("http_proxy", "https_proxy"):  # and set them back
        monkeypatch.setenv(name, "")
    yield Path(shutil.copytree(furnished, tmp_path / "place", symlinks=True))
    while LOCKED:
        LOCKED.pop().close()


class Stopping(Recorder):
    """Progress that stops a job after a few rows."""

    def bar(self, description, total, unit="images"):
        return _Stop()


class _Stop:
    def __enter__(self):
        return self

    def __exit__(self, *details):
        return None

    def advance(self, amount: int = 1, note: str = "") -> None:
        raise KeyboardInterrupt


def stopped(place: Path) -> str:
    """Stop a job after its first batch."""
    with contextlib.chdir(place):
        model, output = Path("exports/cnn/cnn.fp32.onnx"), Path("predictions.csv")
        job = Job(model, [Path("data")], output, device="cpu", batch_size=2)
        progress = Stopping()
        with pytest.raises(KeyboardInterrupt):
            run_job(job, progress=progress)
    return in_options("\n".join(progress.said))


def sorting_stopped(place: Path) -> str:
    """Stop a command that copies sorted images before the first one."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tltools.classify.sorting._place_all", stop)
        run_tltools("classify", "data", "--sort-into", "sorted", cwd=place)
    return ""


LOCKED: list[UnfinishedOutput] = []


def locked(place: Path) -> str:
    """Hold the output of a job, as another job would."""
    LOCKED.append(UnfinishedOutput(place / "predictions.csv"))
    LOCKED[-1].open()
    return ""


def unlocked(place: Path) -> str:
    LOCKED.pop().close()
    return ""


def offline(place: Path) -> str:
    """Let nothing be downloaded until the end of the test."""
    os.environ["https_proxy"] = os.environ["http_proxy"] = "http://127.0.0.1:9"
    return ""


PREPARED: dict[str, Callable[[Path], str]] = {
    one.__name__: one for one in (stopped, sorting_stopped, locked, unlocked, offline)
}


class Said(NamedTuple):
    """What a line of commands came to."""

    code: int
    text: str


def run_line(line: str, place: Path) -> Said:
    """Run commands that are separated by `;`; those after `$` are the shell's.

    All but the last must succeed.
    """
    *before, last = (one.strip() for one in line.split(";"))
    for one in before:
        said = run_line(one, place)
        assert said.code == 0, f"{one}: {said.text}"
    if last.startswith("@"):
        return Said(0, PREPARED[last[1:]](place))
    if last.startswith("$"):
        ran = subprocess.run(last[1:], shell=True, cwd=place, capture_output=True, text=True)  # noqa: S602
        return Said(ran.returncode, ran.stdout + ran.stderr)
    code, out, err = run_tltools(*shlex.split(last), cwd=place)
    return Said(code, out + err)


TRIALS = [
    pytest.param(case, remedy, id=f"{case.fault} -> {remedy}")
    for case in CASES
    for remedy in case.remedies
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "remedy"), TRIALS)
def test_the_remedy_of_a_message_cures_the_fault(case: Case, remedy: str, place: Path):
    message = pattern(meant(case.told))
    fault = run_line(case.fault, place)
    assert message.search(fault.text), fault.text
    assert fault.code == case.code, fault.text
    cured = run_line(remedy, place)
    assert cured.code == 0, cured.text
    # A hint may be printed again.
    assert case.told.startswith("Next: ") or not message.search(cured.text), cured.text
