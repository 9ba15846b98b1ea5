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


def test_where_a_run_is_missing_explain_proposes_no_export(workplace):
    ran = run_tltools("explain", "cnm", "a.png", cwd=workplace)
    assert ran.err == (
        "error: cnm does not exist (did you mean runs/cnn?): name a run's folder, such as "
        "runs/NAME\n"
    )
