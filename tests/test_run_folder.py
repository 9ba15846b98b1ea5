"""Runs in a folder: a damaged one stops no other, the next to resume is named, locks are asked."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from conftest import Recorder, run_tltools

from tltools.atomic import lock
from tltools.cli.resume import Stopped, tell_how_to_resume
from tltools.errors import ArtifactError, ConfigError
from tltools.run_folder import is_locked, load_card, locked, resumable_runs, unfinished_runs
from tltools.training import TrainSetup, default_config, find_resumable, resume_run
from tltools.training.run import save_card


def begin(run_dir: Path, name: str, *, age_s: float, **settings: str) -> Path:
    """Begin a run of this age, as a training that is killed in its first epoch leaves it."""
    folder = run_dir / name
    folder.mkdir(parents=True)
    config = {"model": "cnn", "fine_tune": "none"} | settings
    (folder / "plan.json").write_text(json.dumps({"config": config}))
    os.utime(folder / "plan.json", (time.time() - age_s,) * 2)
    return folder


def unfinish(folder: Path) -> None:
    """Leave a run as one that Ctrl-C stopped."""
    card = load_card(folder)
    training = card.training | {"interrupted": True}
    save_card(folder, msgspec.structs.replace(card, training=training))


def break_card(folder: Path) -> None:
    (folder / "card.json").write_text("{")


def break_plan(folder: Path) -> None:
    (folder / "plan.json").write_text("{")


def change_settings(folder: Path, **settings: object) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    plan["config"] |= settings
    (folder / "plan.json").write_text(json.dumps(plan))


def add_setting(folder: Path) -> None:
    change_settings(folder, new_setting=1)


def rename_model(folder: Path) -> None:
    change_settings(folder, model="resnet999")


def spoil_epochs(folder: Path) -> None:
    change_settings(folder, epochs="many")


DAMAGES = [
    (break_card, r"card\.json has no valid tltools card: "),
    (break_plan, "is not a resumable run: "),
    (
        add_setting,
        r"does not know the settings of the run's plan\.json \(got an unexpected .*new_s",
    ),
    (rename_model, "unknown model .resnet999"),
    (spoil_epochs, r"does not know the settings of the run's plan\.json "),
]


# ----------------------------------------------------------------------------- damaged runs


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_a_damaged_run_is_left_out_of_the_runs_to_resume(workplace, damage, reason):
    runs = workplace / "runs"
    unfinish(runs / "cnn")
    shutil.copytree(runs / "cnn", runs / "bad")
    damage(runs / "bad")
    os.utime(runs / "bad" / "state.pt")  # the newest
    progress = Recorder()
    assert find_resumable(runs, epochs=None, progress=progress) == runs / "cnn"
    (said,) = progress.said
    assert re.match(f"{re.escape(str(runs / 'bad'))} is left out: .*{reason}", said)
    shutil.rmtree(runs / "cnn")
    with pytest.raises(ArtifactError, match=rf"nothing to resume: .*bad is left out: .*{reason}"):
        find_resumable(runs, epochs=None)


def test_a_run_of_settings_of_another_version_is_an_error_if_it_is_named(workplace):
    add_setting(workplace / "runs" / "cnn")
    with pytest.raises(ArtifactError, match="resume it with the version that began it, or train"):
        resume_run(workplace / "runs" / "cnn", TrainSetup(device="cpu"))


def test_a_damaged_run_does_not_stop_a_new_training_and_without_its_card_it_is_resumed(
    drawn, workplace
):
    break_card(workplace / "runs" / "cnn")
    options = ("--model", "cnn", "--image-size", 32, "--epochs", 1, "--device", "cpu")
    ran = run_tltools("train", drawn, *options, cwd=workplace)
    assert ran.code == 0, ran
    assert (workplace / "runs" / "cnn-2" / "card.json").exists()
    shutil.rmtree(workplace / "runs" / "cnn-2")
    ran = run_tltools("train", "--resume", "--device", "cpu", cwd=workplace)
    assert ran.code == 1
    assert (
        "if only its card.json is damaged, delete that file, and tltools train --resume" in ran.err
    )
    (workplace / "runs" / "cnn" / "card.json").unlink()
    assert run_tltools("train", "--resume", "--device", "cpu", cwd=workplace).code == 0
    assert load_card(workplace / "runs" / "cnn").metrics


def test_a_damaged_run_is_told_and_not_exported_or_reported_with_the_others(workplace):
    shutil.copytree(workplace / "runs" / "cnn", workplace / "runs" / "bad")
    break_card(workplace / "runs" / "bad")
    ran = run_tltools("export", "--device", "cpu", cwd=workplace)
    assert ran.code == 0, ran
    told = "warning: runs/bad is left out: runs/bad/card.json has no valid tltools card"
    assert " ".join(ran.err.split()).count(told) == 1
    ran = run_tltools("report", cwd=workplace)
    assert ran.code == 0, ran
    assert "Left out: runs/bad;" in ran.err
    for command in ("export", "report"):
        ran = run_tltools(command, "runs/bad", cwd=workplace)
        assert (ran.code, len(ran.err.splitlines())) == (1, 1)
        assert "runs/bad/card.json has no valid tltools card" in ran.err


# ----------------------------------------------------------------------------- what is next


def test_a_message_about_an_unfinished_run_names_the_command_that_takes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = begin(Path("runs"), "cnn old", age_s=20)
    begin(Path("runs"), "cnn-new", age_s=10)
    command = "tltools train --resume 'runs/cnn old'"
    with pytest.raises(ArtifactError, match=rf"to finish it: {command}$"):
        load_card(old)
    progress = Recorder()
    tell_how_to_resume(old, progress)
    assert progress.said == [f"To resume: {command}"]
    with locked(old), pytest.raises(ArtifactError, match="another process is training it: wait"):
        load_card(old)


def test_unfinished_runs_are_those_of_the_model_that_can_be_resumed(tmp_path):
    runs = tmp_path / "runs"
    renamed = begin(runs, "best", age_s=10)
    timm = begin(runs, "timm-resnet18", age_s=20, model="timm:resnet18")
    begin(runs, "cnn", age_s=5, model="vgg16")
    shutil.copytree(renamed, runs / ".best.deleted")  # as a killed deletion leaves it
    assert unfinished_runs(runs, ["cnn"]) == [renamed]
    assert unfinished_runs(runs, ["timm:resnet18", "cnn"]) == [renamed, timm]
    assert runs / ".best.deleted" not in resumable_runs(runs)
    with locked(renamed):
        assert unfinished_runs(runs, ["cnn"]) == []


def test_a_run_that_another_process_trains_is_not_taken_for_the_stopped_one(tmp_path):
    stopped = Stopped([default_config("cnn")], TrainSetup(run_dir=tmp_path))
    begin(tmp_path, "cnn", age_s=10)
    other = begin(tmp_path, "cnn-2", age_s=5)
    progress = Recorder()
    with locked(other):
        stopped.tell([], progress)
    assert progress.said == [f"To resume: tltools train --resume {tmp_path / 'cnn'}"]


# ------------------------------------------------------------------------------------ locks


def test_asking_whether_a_run_is_locked_does_not_lock_it(tmp_path):
    asking = os.open(tmp_path, os.O_RDONLY)
    try:
        assert lock(asking, shared=True)  # as `is_locked` does, in another process
        assert not is_locked(tmp_path)
    finally:
        os.close(asking)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "gone")


def test_a_run_is_locked_though_another_process_asks_at_that_moment(tmp_path):
    asking = os.open(tmp_path, os.O_RDONLY)
    assert lock(asking, shared=True)
    timer = threading.Timer(0.05, os.close, [asking])
    timer.start()
    with locked(tmp_path):
        assert is_locked(tmp_path)
    timer.join()


def test_a_run_that_another_process_holds_is_refused_soon(tmp_path):
    code = (
        "import sys, pathlib; from tltools.run_folder import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print(flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_locked(tmp_path)
        with pytest.raises(ConfigError, match="another process is training"), locked(tmp_path):
            pytest.fail("locked twice")
        holder.communicate("\n")
    assert not is_locked(tmp_path)
