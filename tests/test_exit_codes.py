"""Each fault has the same exit code in every command, and the documentation lists them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_tltools

from tltools import errors
from tltools.cli.command import INTERRUPTED

TABLE = (Path(__file__).parents[1] / "tltools" / "docs" / "reliability.md").read_text()


def test_the_documentation_lists_every_exit_code():
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", TABLE, re.MULTILINE)}
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    raised = {one.exit_code for one in kinds if issubclass(one, errors.TltoolsError)}
    assert listed == {0, INTERRUPTED} | raised


@pytest.mark.parametrize(
    "words",
    [
        "train gone", "evaluate gone gone", "export gone", "classify gone --model model.onnx",
        "classify images --model gone.onnx", "merge gone.csv", "bench gone.onnx", "report gone.csv",
        "explain gone gone.png", "inspect gone", "runs gone gone", "runs --delete gone --yes",
    ],
)  # fmt: skip
def test_a_path_that_does_not_exist_is_a_failure(words, onnx_path, images, tmp_path):
    (tmp_path / "model.onnx").symlink_to(onnx_path)
    ran = run_tltools(*words.split(), cwd=tmp_path)
    assert ran.code == 1, ran
    assert ran.err.splitlines()[-1].startswith("error: gone")


@pytest.mark.parametrize(
    "words",
    [
        "classify images --model model.onnx -o there.csv",
        "sample images",
        "merge a.csv -o there.csv",
    ],
)
def test_an_output_that_exists_is_a_fault_of_usage(words, onnx_path, images, tmp_path):
    (tmp_path / "model.onnx").symlink_to(onnx_path)
    (tmp_path / "there.csv").touch()
    ran = run_tltools(*words.split(), cwd=tmp_path)
    assert ran.code == 2, ran
    assert "exists" in ran.err


@pytest.mark.parametrize(
    "words", [["--no-such"], ["classify"], ["nothing"], ["doctor", "-q", "-v"]]
)
def test_a_command_line_that_cannot_be_used_is_one_line(words, tmp_path):
    ran = run_tltools(*words, cwd=tmp_path)
    assert ran.code == 2
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")


def test_without_arguments_the_help_is_printed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tltools"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Getting started" in done.stdout
    assert "error" not in done.stderr
