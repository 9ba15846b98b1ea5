"""A run in `runs/` may be named without its folder wherever a run is named."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import run_tltools

from tltools.cli.options import path_or_run, path_or_run_or_url


@pytest.fixture
def workplace(cnn_run, tmp_path, monkeypatch) -> Path:
    shutil.copytree(cnn_run, tmp_path / "runs" / "cnn")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("workplace")
def test_a_bare_name_is_that_of_a_run_unless_there_is_such_a_path():
    assert path_or_run("cnn") == path_or_run_or_url("cnn") == Path("runs/cnn")
    assert path_or_run("./cnn") == Path("cnn")  # a path, as it is typed
    for text in ("nowhere", "x/cnn", "/cnn", ""):
        assert path_or_run(text) == Path(text)
    Path("runs/empty").mkdir()
    assert path_or_run("empty") == Path("empty")
    Path("cnn").mkdir()
    assert path_or_run("cnn") == Path("cnn")


COMMANDS = {
    "evaluate": ("evaluate", "cnn", "data", "--device", "cpu"),
    "inspect": ("inspect", "cnn"),
    "export": ("export", "cnn", "--device", "cpu"),
    "explain": ("explain", "cnn", "data/dark/0.png", "--device", "cpu"),
    "report": ("report", "cnn"),
    "bench": ("bench", "cnn", "--rounds", "1", "--iterations", "1", "--batch-sizes", "1",
              "--device", "cpu", "--budget", "5"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_that_takes_a_run_takes_its_name(name, workplace, drawn):
    (workplace / "data").symlink_to(drawn)
    ran = run_tltools(*COMMANDS[name], "--json", cwd=workplace)
    assert ran.code == 0, ran
    assert json.loads(ran.out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("export runs", "runs is a folder of runs; name one of them, such as runs/cnn"),
        ("evaluate runs data", "runs is a folder of runs; name one of them, such as runs/cnn"),
        ("bench runs", "runs is a folder of runs; name one of them, such as runs/cnn"),
        ("explain runs data", "runs is a folder of runs; name one of them, such as runs/cnn"),
        ("serve runs", "runs is a folder of runs; name one of them, such as runs/cnn"),
        ("export data", "data is a folder of images, not a run; name a run's folder, such as"),
        ("export exports/x", "exports/x is a folder of exports, not a run; name a run's folder"),
        ("serve data", "data is a folder of images, not an export; name an export (.onnx, .pt2,"),
        ("serve runs/nope", "runs/nope does not exist; name an export (.onnx, .pt2, .pt), or the"),
        ("serve x.int8", "x.int8 does not exist (did you mean exports/x/x.int8.onnx?); name an"),
        (
            "serve exports/x/x.int8",
            "exports/x/x.int8 does not exist (did you mean exports/x/x.int8",
        ),
        ("classify data --model runs/nope", "runs/nope does not exist; name an export (.onnx"),
        ("classify data --model x.int8", "x.int8 does not exist (did you mean exports/x/x.int8"),
        (
            "classify x.int8.onnx",
            "x.int8.onnx is a model, not images: choose it with --model exports",
        ),
        ("evaluate x.int8 data", "x.int8 does not exist (did you mean exports/x/x.int8.onnx?)"),
        ("evaluate runs/x data", "runs/x does not exist (did you mean exports/x/x.int8.onnx?)"),
    ],
)
def test_what_is_named_instead_of_a_run_or_an_export_is_said(words, said, workplace, drawn):
    (workplace / "data").symlink_to(drawn)
    (workplace / "exports" / "x").mkdir(parents=True)
    (workplace / "exports" / "x" / "x.int8.onnx").touch()
    ran = run_tltools(*words.split(), cwd=workplace)
    assert (ran.code, len(ran.err.splitlines())) == (1, 1), ran
    assert ran.err.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate cnn data", "cnn does not exist: no runs in runs/; train one with tltools train"),
        ("explain cnn data", "cnn does not exist: no runs in runs/; train one with tltools train"),
        ("export runs/cnn", "runs/cnn does not exist: no runs in runs/; train one with tltools"),
        ("bench cnn", "cnn does not exist: no runs in runs/; train one with tltools train"),
        ("classify data --model cnn", "no run in runs/ and no export is named cnn; train one with"),
        ("evaluate dat data", "dat does not exist (did you mean data?): choose a run (runs/NAME)"),
        ("evaluate x/cnn data", "x/cnn does not exist: choose a run (runs/NAME) or an export"),
        ("evaluate x.onnx data", "x.onnx does not exist: choose a run (runs/NAME) or an export"),
    ],
)
def test_where_there_are_no_runs_the_message_says_so(words, said, drawn, tmp_path):
    (tmp_path / "data").symlink_to(drawn)
    ran = run_tltools(*words.split(), cwd=tmp_path)
    assert ran.code == 1
    assert ran.err.startswith(f"error: {said}")


def test_where_a_run_is_missing_explain_proposes_no_export(workplace):
    ran = run_tltools("explain", "cnm", "a.png", cwd=workplace)
    assert ran.err == (
        "error: cnm does not exist (did you mean runs/cnn?): name a run's folder, such as "
        "runs/NAME\n"
    )
