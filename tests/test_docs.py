"""README and the chapters: their commands run, the files they name exist; and `tltools docs`."""

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple, get_args

import pytest
from conftest import run_tltools
from typer.main import get_command

from tltools import __version__, cli
from tltools.cli import COMMANDS
from tltools.cli.docs import CHAPTERS
from tltools.layouts import Layout
from tltools.packages import DISTRIBUTION, pip_install

ROOT = Path(__file__).parents[1]
CHAPTER_FOLDER = ROOT / "tltools" / "docs"
PAGES = {"README": ROOT / "README.md"} | {name: CHAPTER_FOLDER / f"{name}.md" for name in CHAPTERS}
MAX_WORDS = 900
MAX_SUMMARY = 66
"""Characters that fit into a line of the list of chapters."""

NUM = 20
ELSEWHERE = {
    "needs a server", "needs a GPU", "needs Ray", "needs Docker", "needs Triton",
    "needs tltools serve", "for your shell", "until Ctrl-C", "needs enough images",
}  # fmt: skip
"""How a page marks a command that is not run here; its options are still parsed."""
QUICK = {
    "train": {"--model": "cnn", "--epochs": "1", "--device": "cpu"},
    "evaluate": {"--device": "cpu"},
    "export": {"--device": "cpu"},
    "classify": {"--device": "cpu"},
    "explain": {"--device": "cpu"},
    "bench": {"--rounds": "1", "--iterations": "1", "--batch-sizes": "1,2,4", "--device": "cpu"},
}
"""Options that make a command quick, where the page says nothing else."""
FOREIGN = {
    "--cpus", "--logdir", "--backend-store-uri", "--model-repository", "--no-deps", "--wheel-dir",
    "--upgrade", "--data-binary",
}  # fmt: skip
"""Options of other programs."""


class Shown(NamedTuple):
    """A command on a page."""

    words: list[str]
    line: str
    mark: str
    """Text after `#`; empty for a command that is run here."""
    output: list[str]


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def shown(page: str) -> list[Shown]:
    """Return the commands in a page's listings, each with the output below it."""
    found: list[Shown] = []
    for listing in re.findall(r"^```console\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
        for line in listing.splitlines():
            if line.startswith("$ "):
                command, _, mark = line[2:].partition("  # ")
                found.append(Shown(shlex.split(command), command, mark, []))
            else:
                found[-1].output.append(line)
    return found


ALL = [(page, one) for page in PAGES for one in shown(page)]


# ------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vgg16_file):
    """A reader's folder: images, archives, weights, a run and its export."""
    folder = tmp_path_factory.mktemp("reader")
    assert run_tltools("sample", "sample", "--num-images", NUM, cwd=folder).code == 0
    shutil.copytree(folder / "sample" / "images", folder / "photos" / "images")
    table = (folder / "sample" / "sample.csv").read_text()
    names = {"0": "non-emergency", "1": "emergency"}
    table = re.sub(r",([01])$", lambda found: f",{names[found[1]]}", table, flags=re.MULTILINE)
    (folder / "photos" / "labels.csv").write_text(table)
    images = sorted((folder / "photos").rglob("*.jpg"))
    shutil.copy(images[0], folder / "photo.jpg")
    (folder / "list.txt").write_text("photo.jpg\n")
    with tarfile.open(folder / "photos.tar", "w") as archive:
        archive.add(images[0], "some.jpg")
    shutil.copy(vgg16_file, folder / "vgg16.safetensors")
    small = ("--model", "cnn", "--epochs", 1, "--batch-size", 6, "--val-fraction", 0.25)
    steps = (
        ("train", "photos/labels.csv", *small, "--device", "cpu"),
        ("export", "--device", "cpu"),
    )
    for step in steps:
        ran = run_tltools(*step, cwd=folder)
        assert ran.code == 0, ran
    return folder


LONG = ("training", "benchmarks", "deploy")


@pytest.mark.parametrize(
    "page", [pytest.param(one, marks=[pytest.mark.slow] if one in LONG else []) for one in PAGES]
)
def test_the_commands_on_a_page_run_and_print_what_it_shows(page, trained, tmp_path, monkeypatch):
    """In a copy of the folder, one after the other; for README, with nothing made before.

    Where a page leaves the choice of the model, it is the CNN here, and not VGG16 as well.
    """
    folder = tmp_path / "reader"
    shutil.copytree(trained, folder)
    if page == "README":
        shutil.rmtree(folder / "runs")
        shutil.rmtree(folder / "exports")
    # Few images in place of the 300 that `train` would draw.
    monkeypatch.setattr("tltools.sample.draw_sample", lambda drawn, **options: drawn)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    said: set[str] = set()
    for one in shown(page):
        if one.words[0] != "tltools" or one.mark:
            continue
        ran = run_tltools(*quick(one.words[1:]), cwd=folder)
        assert ran.code == 0, (one.line, ran)
        said |= words_of(ran.out + ran.err)
        text = "\n".join(one.output).replace("vgg16", "cnn").replace("pooled", "linear")
        missing = words_of(text) - said
        assert not missing, (one.line, missing)
    code = re.findall(r"^```python\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    for program in code:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "photo.jpg" in done.stdout or "emergency" in done.stdout


def quick(words: list[str]) -> list[str]:
    """Return a command with the options that make it quick."""
    if "--undo-sort" in words:  # takes no other options
        return words
    added = QUICK.get(words[0], {})
    if words[0] == "train" and "--model" not in words and "--weights" in words:  # not the CNN's
        place = words.index("--weights")
        words = [*words[:place], *words[place + 2 :]]
    return [*words, *(part for name in added if name not in words for part in (name, added[name]))]


def words_of(output: str) -> set[str]:
    """Return the printed words, without figures."""
    same = re.sub(r"\bunstable\b", "ok", re.sub(r"[+-]?\d[\d.,]*", "0", output))
    return {word.strip("(),%") for word in same.split()}


def test_every_listing_is_run_or_marked():
    assert {one.mark for _, one in ALL if one.mark} <= ELSEWHERE
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", text_of(page), re.MULTILINE)[::2]
        assert set(fences) <= {"console", "python", ""}, page
        assert len([one for one in fences if not one]) == (page == "development"), page


@pytest.mark.parametrize(
    "line", sorted({one.line for _, one in ALL if one.mark and one.words[0] == "tltools"})
)
def test_a_command_that_is_not_run_is_a_valid_command(line):
    _, *words = shlex.split(line)
    group = get_command(cli.app)
    if words[0] in group.commands:
        group.commands[words[0]].make_context(words[0], words[1:])
    else:
        assert {*words} <= {name for option in group.params for name in option.opts}


@pytest.mark.parametrize(
    "line", sorted({one.line for _, one in ALL if one.words[0] == "rm" and not one.mark})
)
def test_paths_deleted_on_a_page_exist(line, trained, tmp_path, monkeypatch):
    """With a home folder that is none: only relative paths and those below ~ are let through."""
    folder = tmp_path / "reader"
    shutil.copytree(trained, folder)
    home = folder / "home"
    _, *words = shlex.split(line)
    paths = [word for word in words if not word.startswith("-")]
    assert all(re.match(r"~/\.cache/|\w", path) for path in paths)
    assert ".." not in line
    for path in paths:
        if path.startswith("~"):
            (home / path[2:]).mkdir(parents=True)
    before = [Path(path.replace("~", str(home))) for path in paths]
    assert all((folder / path).exists() for path in before)
    if "hub/checkpoints" in line:
        before[0].rmdir()
        before[0].touch()
    done = subprocess.run(["/bin/sh", "-c", line], cwd=folder, env=os.environ | {"HOME": str(home)})
    assert done.returncode == 0
    assert not any((folder / path).exists() for path in before)


def test_make_and_pip_commands_name_existing_targets_and_packages():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wheel = f"dist/{DISTRIBUTION.replace('-', '_')}-{__version__}-py3-none-any.whl"
    for page, one in ALL:
        program, *rest = one.words
        if program == "make":
            assert set(rest) <= targets, (page, one.line)
        elif program == "pip":
            named = [word for word in rest[1:] if not word.startswith("-") and word != "dist"]
            assert named in (["."], [wheel], [DISTRIBUTION]), (page, one.line)
        elif program not in ("tltools", "rm"):
            assert one.mark or one.line in (
                "git pull", "python3 -m venv .venv && . .venv/bin/activate",
                "python exports/python/cnn_fp32/predict.py photo.jpg",
            ), (page, one.line)  # fmt: skip


def test_the_optional_parts_are_listed_with_their_packages():
    lines = dict(re.findall(r"^\| (.+) \| `(pip install .+)` \|$", text_of("install"), re.M))
    extras = {
        "`--engine ray`": "ray",
        "`train --log tensorboard`": "tensorboard",
        "`train --log mlflow`": "mlflow",
        "`train --model timm:NAME`": "timm",
        "`tltools serve`": "serve",
        "HEIC images": "heic",
        **{f"`{name}://`": name for name in ("s3", "gs", "az", "sftp", "https")},
    }
    assert lines == {name: pip_install(extra) for name, extra in extras.items()}


# ---------------------------------------------------------------------- names, links and words


def test_readme_is_short():
    assert len(text_of("README").split()) <= MAX_WORDS


def test_readme_names_every_command_and_no_other():
    named = re.findall(r"^(?:\$ |\| `)tltools ([a-z]+)\b", text_of("README"), re.MULTILINE)
    assert set(named) == set(COMMANDS)


def test_readme_names_both_ways_to_begin():
    assert {"make demo", "make test"} <= {one.line for one in shown("README")}


def test_readme_links_every_chapter():
    assert set(re.findall(r"\(tltools/docs/(\w+)\.md\)", text_of("README"))) == set(CHAPTERS)


@pytest.mark.parametrize("page", PAGES)
def test_options_on_a_page_exist(page):
    group = get_command(cli.app)
    known = {name for option in group.params for name in option.opts} | {"--help"}
    for command in group.commands.values():
        for option in command.params:
            known |= {*option.opts, *option.secondary_opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text_of(page))) <= known | FOREIGN


@pytest.mark.parametrize("page", PAGES)
def test_files_on_a_page_exist(page):
    text = text_of(page)
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text)
    for link in filter(None, (a or b for a, b in links)):
        assert (PAGES[page].parent / link).exists(), link
    for path in re.findall(r"\b((?:tests|benchmarks)/\w+\.(?:py|md))\b", text):
        assert (ROOT / path).is_file(), path


def test_the_map_lists_every_part_of_the_package():
    paths = re.findall(r"^(\S+/\S*)  ", text_of("development"), re.MULTILINE)
    assert all((ROOT / path).exists() for path in paths)
    rooms = {f"tltools/{path.parent.name}/" for path in (ROOT / "tltools").glob("*/__init__.py")}
    assert rooms <= set(paths)


# ------------------------------------------------------------------------------- tltools docs


def test_docs_lists_the_chapters_with_a_line_each(tmp_path):
    ran = run_tltools("docs", cwd=tmp_path)
    assert ran.code == 0
    lines = [line.split(maxsplit=1) for line in ran.out.splitlines()]
    assert {path.stem for path in CHAPTER_FOLDER.glob("*.md")} == set(CHAPTERS)
    for name in CHAPTERS:
        summary = text_of(name).split("\n\n")[1]
        assert len(summary) <= MAX_SUMMARY
        assert [name, summary] in [[*map(str.strip, line)] for line in lines]
    as_json = json.loads(run_tltools("docs", "--json", cwd=tmp_path).out)
    assert list(as_json) == list(CHAPTERS)


@pytest.mark.parametrize("name", CHAPTERS)
def test_docs_prints_plain_text_into_a_pipe(name, tmp_path):
    ran = run_tltools("docs", name, cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("# ")
    assert not re.search(r"<!--|\x1b|\]\(\w+\.md\)", ran.out)
    for one in shown(name):
        assert one.line in ran.out
    for topic in re.findall(r"`tltools docs (\w+)`", ran.out):
        assert topic in CHAPTERS
    assert json.loads(run_tltools("docs", name, "--json", cwd=tmp_path).out) == {
        "topic": name, "text": ran.out
    }  # fmt: skip


def test_docs_formats_a_chapter_on_a_terminal():
    here, there = pty.openpty()
    command = [sys.executable, "-m", "tltools", "docs", "gpu"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=there, stderr=there)
    os.close(there)
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(here, 65536)
        except OSError:  # Linux's end of file
            break
        if not part:
            break
        parts.append(part)
    os.close(here)
    assert done.wait(60) == 0
    text = b"".join(parts).decode()
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "TensorRT and OpenVINO" in plain
    assert "## " not in plain
    assert "```" not in plain
    lines = {line.rstrip() for line in plain.splitlines()}
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text_of("gpu"), re.MULTILINE | re.DOTALL)
    listings = {line for block in blocks for line in block.splitlines()}
    long = {line for line in lines if len(line) > 80}
    assert long == {line for line in listings if len(line) > 80}  # can be copied
    assert long


def test_the_chapter_of_a_command_is_proposed(tmp_path):
    for command, chapter in (("report", "training"), ("doctor", "install"), ("merge", "classify")):
        ran = run_tltools("docs", command, cwd=tmp_path)
        assert ran.code == 2
        told = f"error: no chapter {command!r}; tltools {command} is described in {chapter}; choose"
        assert ran.err.startswith(told)


def test_an_unknown_chapter_is_a_one_line_error_that_lists_the_chapters(tmp_path):
    ran = run_tltools("docs", "cooking", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: no chapter 'cooking'; choose from {', '.join(CHAPTERS)}\n"


def test_docs_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from tltools.cli import main\n"
        "try:\n    main(['docs', 'training'])\n"
        "except SystemExit as leaving:\n    assert not leaving.code\n"
        "print('LOADED', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.partition("LOADED ")[2].split())
    assert "tltools.cli.docs" in loaded
    assert not loaded & {"torch", "onnxruntime", "numpy", "PIL", "pandas", "onnx"}


def test_docs_name_each_layout_and_the_option_of_each_kind_of_threshold():
    docs = Path(cli.__file__).parents[1] / "docs"
    export = (docs / "export.md").read_text()
    assert all(f"`--layout {name}`" in export for name in get_args(Layout))
    training = " ".join((docs / "training.md").read_text().split())
    assert training.count("or `--min-confidence` for a minimum confidence") == 2
    assert "misclassified images instead of `predictions.csv`" in training


def test_one_spelling_of_pretrained_in_the_docs_and_the_help_of_train():
    docs = Path(cli.__file__).parents[1] / "docs"
    told = run_tltools("train", "--help", cwd=docs).out
    texts = [*(path.read_text() for path in docs.glob("*.md")), told]
    assert "Pretrained" in texts[-1]
    assert not any(re.search("pre-trained", text, re.IGNORECASE) for text in texts)
