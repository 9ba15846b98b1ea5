"""Ctrl-C in a training before it has a run: what is kept, and how to go on, is told."""

import subprocess
import sys

import pytest
from conftest import Recorder, run_tltools

from tltools.cli.resume import Stopped
from tltools.training import TrainSetup, default_config, prepare


@pytest.mark.parametrize("folds", [(), ("--folds", 2)])
def test_ctrl_c_while_features_are_computed_says_what_to_do(
    drawn, vgg16_file, tmp_path, monkeypatch, folds
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "extract", stop)
    model = ("--model", "vgg16", "--weights", vgg16_file, "--image-size", 32, "--device", "cpu")
    result = run_tltools("train", drawn, *model, *folds, "--cache-dir", "cache", cwd=tmp_path)
    *_, told, last = result.err.splitlines()
    assert (result.code, last) == (130, "stopped by Ctrl-C")
    assert told == (
        "warning: vgg16 was stopped before its first epoch was complete, so there is nothing to "
        "resume: run the same command again; "
        "features in the cache are not computed again"
    )


def test_the_models_before_the_stopped_one_need_not_be_trained_again(tmp_path):
    configs = [default_config("cnn"), default_config("vgg16")]
    progress = Recorder()
    Stopped(configs, TrainSetup(run_dir=tmp_path)).tell([tmp_path / "cnn"], progress)
    (told,) = progress.said
    assert told.startswith("vgg16 was stopped")
    assert "run the same command again with `model=vgg16`" in told


def test_of_decoded_images_nothing_is_kept(tmp_path):
    progress = Recorder()
    Stopped([default_config("cnn")], TrainSetup(run_dir=tmp_path)).tell([], progress)
    assert progress.said == [
        "cnn was stopped before its first epoch was complete, so there is nothing to "
        "resume: run the same command again"
    ]


def test_a_run_that_was_stopped_after_its_epochs_can_be_resumed(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "state.pt").touch()
    stopped = Stopped([default_config("cnn")], TrainSetup(run_dir=tmp_path))
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "state.pt").touch()
    (tmp_path / "cnn" / "plan.json").write_text('{"config": {"model": "cnn"}}')
    progress = Recorder()
    stopped.tell([], progress)
    assert progress.said == [f"To resume: tltools train --resume {tmp_path / 'cnn'}"]


BUSY = """
import sys, threading, time
import torch
import tltools.sample
from tltools.cli import main

def run_model():
    images, weights = torch.rand(8, 64, 56, 56), torch.rand(64, 64, 3, 3)
    while True:
        torch.conv2d(images, weights)

def stop(*_, **__):
    threading.Thread(target=run_model, daemon=True).start()
    time.sleep(0.2)
    raise KeyboardInterrupt

tltools.sample.draw_sample = stop
sys.argv[1:] = ["sample", "images"]
main()
"""
"""Ctrl-C while a thread runs a model, which the end of the interpreter would unwind within C++."""


def test_ctrl_c_while_a_thread_runs_a_model_does_not_abort(tmp_path):
    command = [sys.executable, "-c", BUSY]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (ran.returncode, ran.stderr) == (130, "stopped by Ctrl-C\n")


IMPORTING = """
import sys
import tltools.cli

def stop(*_, **__):
    raise KeyboardInterrupt

tltools.cli.import_module = stop
sys.argv[1:] = ["sample", "images"]
tltools.cli.main()
"""


def test_ctrl_c_in_an_import_prints_no_traceback(tmp_path):
    command = [sys.executable, "-c", IMPORTING]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (ran.returncode, ran.stderr) == (130, "stopped by Ctrl-C\n")
