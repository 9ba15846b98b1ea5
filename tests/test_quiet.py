"""By default, commands do not tell settings, nor print a line for each of many epochs."""

import re

import pytest
from conftest import Recorder, run_tltools

from tltools.runtime import device
from tltools.runtime.device import AS_ASKED, DeviceChoice, tell_device


@pytest.fixture
def classify(onnx_path, images, tmp_path):
    def run(*options):
        words = ("classify", images, "--model", onnx_path, "--device", "cpu", *options)
        return run_tltools(*words, cwd=tmp_path)

    return run


def test_device_and_plan_are_details(classify, workplace, drawn):
    assert not re.search("Device:|Plan:", classify().err)
    told = classify("--overwrite", "--verbose").err
    assert "Device: cpu (as asked)" in told
    assert "Plan: " in told
    words = ("evaluate", "runs/cnn", drawn, "--device", "cpu")
    assert "Device:" not in run_tltools(*words, cwd=workplace).err
    assert "Device: cpu (as asked)" in run_tltools(*words, "-v", cwd=workplace).err


class Telling(Recorder):
    """Keeps messages and not details."""

    def detail(self, message: str) -> None:
        pass


@pytest.mark.parametrize(
    ("choice", "gpus", "is_told"),
    [
        (DeviceChoice("cpu", AS_ASKED), 1, False),
        (DeviceChoice("cpu", "no CUDA in PyTorch: no driver"), 0, False),
        (DeviceChoice("cpu", "no CUDA in PyTorch: the driver is too old"), 1, True),
        (DeviceChoice("cuda", "PyTorch sees an H200", 0), 1, False),
    ],
)
def test_a_gpu_that_is_not_used_is_told(choice, gpus, is_told, monkeypatch):
    monkeypatch.setattr(device, "num_gpus", lambda: gpus)
    told = Telling()
    tell_device(choice, told)
    assert told.said == ([f"Device: cpu ({choice.reason})"] if is_told else [])


@pytest.mark.parametrize(("epochs", "most"), [(3, 3), (80, 18)])
def test_of_many_quick_epochs_some_are_told(epochs, most, drawn, tmp_path):
    words = ("train", drawn, "--model", "cnn", "--epochs", epochs, "--image-size", 32)
    ran = run_tltools(*words, "--val-fraction", 0.375, "--device", "cpu", cwd=tmp_path)
    assert ran.code == 0, ran
    told = [int(number) for number in re.findall(r"^epoch +(\d+)/", ran.err, re.MULTILINE)]
    assert told[0] == 1
    assert told[-1] == epochs
    assert len(told) <= most
    history = (tmp_path / "runs" / "cnn" / "history.csv").read_text().splitlines()
    assert len(history) == epochs + 1


def faults(text, folder):
    """What no command should print by default: paths that could be shorter, and wrong plurals."""
    one = r"\b1 (images|rows|runs|exports|epochs|labels|files|steps|classes|groups|findings)\b"
    return re.findall(rf"{re.escape(str(folder))}/\S*|{one}|\w+\(s\)|N bytes", text)


@pytest.fixture
def ran_on_bad_images(images, workplace, onnx_path):
    """Run commands on class folders with an image that cannot be read."""
    whole = (images / "red" / "0.png").read_bytes()
    (images / "red" / "cut.png").write_bytes(whole[: len(whole) // 2])
    model = ("--model", onnx_path, "--device", "cpu")
    commands = {
        "inspect": ("inspect", "images"),
        "inspect by its whole path": ("inspect", images),
        "train": ("train", images),
        "train one class": ("train", images / "red"),
        "evaluate": ("evaluate", onnx_path, images, "--skip-bad", "--device", "cpu"),
        "classify": ("classify", images, *model),
        "classify one": ("classify", images / "red" / "cut.png", *model),
        "classify a few": (
            "classify",
            images / "red" / "cut.png",
            images / "red" / "0.png",
            *model,
        ),
        "sort": ("classify", images, *model, "-o", "o.csv", "--sort-into", workplace / "sorted"),
        "undo": ("classify", workplace / "sorted", "--undo-sort"),
        "inspect exports": ("inspect", workplace / "exports"),
        "runs": ("runs", "--run-dir", workplace / "runs"),
        "report": ("report", workplace / "predictions.csv"),
        "missing": ("train", images / "gone"),
    }
    return {
        name: "".join(run_tltools(*words, cwd=workplace)[1:]) for name, words in commands.items()
    }


def test_messages_are_relative_and_name_the_image(ran_on_bad_images, workplace):
    for name, text in ran_on_bad_images.items():
        assert not faults(text, workplace), (name, faults(text, workplace))
    for name in ("inspect", "train", "evaluate", "classify", "classify one", "classify a few"):
        assert "red/cut.png: " in " ".join(ran_on_bad_images[name].split()), name
    assert "classes from the folders in images" in ran_on_bad_images["inspect"]
    assert "1 run in runs/" in ran_on_bad_images["runs"]


@pytest.mark.parametrize(
    "text", ["/a/b/c.jpg is missing", "1 images", "of 1 rows", "file(s)", "(N bytes not processed)"]
)
def test_a_fault_of_a_message_is_found(text):
    assert faults(text, "/a/b")
    assert not faults("x/c.jpg: 1 image, 2 rows, 11 images (3 s)", "/a/b")
