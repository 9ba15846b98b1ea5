"""Jobs that are killed before every call that changes a folder, and then run again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COLORS
from test_resume import content

from tltools.classify import Job, Shard, run_job
from tltools.classify.shard_record import shard_record_path

SCRIPT = """
import json, os, shutil, signal, sys
from pathlib import Path

commands, folder, images = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
CALLS = ("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir")


def run(command, kill_at=None):
    \"\"\"Run a command in a new process, which kills itself before a call; return its code.\"\"\"
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    number = 0

    def counted(call):
        def instead(path, *args, **options):
            nonlocal number
            number += Path(os.path.abspath(path)).is_relative_to(folder)
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(path, *args, **options)

        return instead

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    os.chdir(folder)
    errors = os.open(folder.parent / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    from tltools.cli import main

    try:
        main(command)
    except SystemExit as leaving:
        code = leaving.code or 0
    else:
        code = 0
    os._exit(code)


# Once, before the processes are forked: what a command imports.
import matplotlib.figure, pyarrow.parquet, jinja2, PIL.WebPImagePlugin
import tltools.classify.run, tltools.classify.merge, tltools.cli.classify, tltools.cli.merge
import tltools.report.jobs, tltools.report.page
from tltools.runtime.device import import_onnxruntime

import_onnxruntime()
*before, command = commands
kill_at = 0
while True:
    kill_at += 1
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for one in before:
        assert run(one) == 0
    first = run(command, kill_at)
    after_kill = sorted(os.listdir(folder))
    second = run(command) if first else None
    said = (folder.parent / "stderr").read_text()
    copy = folder.parent / "copies" / str(kill_at)
    shutil.copytree(folder, copy)
    print(json.dumps([first, second, after_kill, said, str(copy)]), flush=True)
    if first != -signal.SIGKILL:
        break
"""


def kill_everywhere(tmp_path, images, *commands):
    """Run commands, the last one killed before each of its calls in turn, and then run again.

    Returns:
        For each: what was left by the kill, what the second run printed, and the folder after it.
    """
    (tmp_path / "copies").mkdir()
    texts = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, texts, str(tmp_path / "work"), str(images)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert outcomes[-1][0] == 0, outcomes[-1]  # at last it was not killed
    for number, (_, second, left, said, _) in enumerate(outcomes[:-1], 1):
        assert second == 0, (number, left, said)
    return outcomes


def check_copies(tmp_path, outcomes, *, same=(), there=()):
    """All runs left the same files: equal to those of the run that was not killed."""
    *killed, whole = [tmp_path / "copies" / str(n) for n in range(1, len(outcomes) + 1)]
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted([*(path.name for path in same), *(path.name for path in there)])
    for folder in killed:
        assert sorted(path.name for path in folder.iterdir()) == names, folder
        for path in same:
            assert content(folder / path.name) == content(whole / path.name), folder


@pytest.fixture
def few(images):
    """Six images, two of which cannot be read."""
    for color in COLORS:
        for number in range(2, 10):
            (images / color / f"{number}.png").unlink()
    (images / "red/1.png").write_bytes(b"no image")
    (images / "blue/0.png").write_bytes(b"")
    (images / "note.txt").write_text("no image")
    return images


def slow(suffix):
    return pytest.param(suffix, marks=pytest.mark.slow)


@pytest.mark.parametrize("suffix", [".csv", *map(slow, (".jsonl", ".parquet"))])
def test_a_job_killed_before_any_call_is_completed_by_the_same_command(
    suffix, few, onnx_path, tmp_path
):
    output, errors, report = Path(f"out{suffix}"), Path("errors.csv"), Path("page.html")
    command = ["classify", few, "--model", onnx_path, "--device", "cpu", "-o", output]
    command += ["--errors-to", errors]
    reports = [report] if suffix == ".csv" else []  # it takes time, and no format changes it
    command += ["--report", report] if reports else []
    outcomes = kill_everywhere(tmp_path, few, command)
    check_copies(tmp_path, outcomes, same=[output, errors], there=reports)
    finished = [one for one in outcomes[:-1] if "has already finished" in one[3]]
    assert finished
    for _, _, left, said, _ in finished:
        assert output.name in left
        assert "2 images not classified" in said or said.count("1 image not classified") == 2
        assert "Left out, without an image suffix: 1 .txt" in said
    resumed = [one for one in outcomes[:-1] if "Resuming after" in one[3]]
    assert resumed


@pytest.mark.parametrize("suffix", [".csv", slow(".parquet")])
def test_a_shard_killed_before_any_call_is_completed_and_can_be_merged(
    suffix, few, onnx_path, tmp_path
):
    output = Path(f"out{suffix}")
    command = ["classify", few, "--model", onnx_path, "--device", "cpu", "-o", output]
    outcomes = kill_everywhere(tmp_path, few, [*command, "--shard", "1/1"])
    record = shard_record_path(output)
    check_copies(tmp_path, outcomes, same=[output], there=[record])
    expected = json.loads((tmp_path / "copies/1" / record).read_text())
    for number in range(1, len(outcomes) + 1):
        found = json.loads((tmp_path / "copies" / str(number) / record).read_text())
        assert found == expected


@pytest.mark.parametrize("suffix", [".csv", slow(".parquet")])
def test_a_merge_killed_before_any_call_is_completed_by_the_same_command(
    suffix, few, onnx_path, tmp_path
):
    shard = tmp_path / f"shard{suffix}"
    run_job(Job(onnx_path, [few], shard, device="cpu", shard=Shard(1, 1)))
    output = Path(f"out{suffix}")
    outcomes = kill_everywhere(tmp_path, few, ["merge", shard, "-o", output])
    check_copies(tmp_path, outcomes, same=[output])
