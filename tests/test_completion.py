"""The Tab key in a real bash, set up as the chapter on installing says."""

import os
import shutil
import subprocess
import sys

import pytest

from tltools.backbones import BACKBONES
from tltools.cli import COMMANDS

TAB = """
eval "$(tltools --show-completion)"
COMP_WORDS=({words}) COMP_CWORD={last}
_tltools_completion tltools
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """Run a line in bash, with a home of its own and `tltools` on its path."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("needs bash")
    home = tmp_path_factory.mktemp("home")
    command = home / "bin" / "tltools"
    command.parent.mkdir()
    code = "import sys; sys.argv[0] = 'tltools'; from tltools.cli import main; main()"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "HOME": str(home), "PATH": f"{command.parent}:{os.environ['PATH']}"
    }  # fmt: skip

    def run(script):
        done = subprocess.run(
            [shell, "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    run.home = home
    return run


def tab(bash, *words):
    return bash(TAB.format(words=" ".join(words), last=len(words) - 1))


def test_tab_completes_commands(bash):
    assert tab(bash, "tltools", "''") == list(COMMANDS)
    assert tab(bash, "tltools", "ex") == [name for name in COMMANDS if name.startswith("ex")]


def test_tab_completes_options_and_their_values(bash):
    assert "--weights" in tab(bash, "tltools", "train", "--w")
    assert tab(bash, "tltools", "train", "--log", "''") == ["tensorboard", "mlflow"]
    assert tab(bash, "tltools", "train", "--device", "c") == ["cpu", "cuda"]
    assert tab(bash, "tltools", "train", "--model", "''") == [*BACKBONES, "all"]
    assert "openvino" in tab(bash, "tltools", "classify", "--device", "''")


def test_completion_installs_itself(bash):
    bash("tltools --install-completion; true")
    assert "tltools" in (bash.home / ".bashrc").read_text()
    script = "\n".join(
        (
            f"source {bash.home}/.bashrc",
            "COMP_WORDS=(tltools insp) COMP_CWORD=1",
            "_tltools_completion tltools",
            'echo "${COMPREPLY[@]}"',
        )
    )
    assert bash(script) == ["inspect"]
