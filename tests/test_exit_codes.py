"""Each fault has the same exit code in every command, and the documentation lists them."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_tltools

from tltools import errors
from tltools.cli.command import INTERRUPTED

TABLE = (Path(__file__).parents[1] / "tltools" / "docs" / "reliability.md").read_text()


def test_the_documentation_lists_every_exit_code():
    cells = re.findall(r"^\| (\d[\d, ]*) \|", TABLE, re.MULTILINE)
    listed = {int(code) for cell in cells for code in cell.split(", ")}
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    raised = {one.exit_code for one in kinds if issubclass(one, errors.TltoolsError)}
    stopped = {128 + signal.SIGTERM, 128 + signal.SIGHUP}
    assert listed == {0, INTERRUPTED} | stopped | raised


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
    ("words", "code"),
    [
        ("bad -o rows.csv", 1),
        ("bad -o -", 1),
        ("bad/0.jpg", 1),
        ("bad/0.jpg -o rows.csv", 1),
        ("bad images -o rows.csv", 0),
        ("bad images -o rows.csv --strict", 1),
        ("bad --shard 1/2 -o rows.csv", 0),  # the other one may be good
    ],
)
def test_a_job_in_which_no_image_is_classified_has_failed(words, code, onnx_path, images, tmp_path):
    (tmp_path / "model.onnx").symlink_to(onnx_path)
    (tmp_path / "bad").mkdir()
    for number in range(2):
        (tmp_path / "bad" / f"{number}.jpg").write_bytes(b"no image")
    ran = run_tltools("classify", *words.split(), "--model", "model.onnx", cwd=tmp_path)
    assert ran.code == code, ran
    is_job = "-o" in words
    failed = "error: no image was classified" in ran.err
    assert failed == (is_job and code == 1 and "--strict" not in words)


@pytest.mark.parametrize(
    "words",
    [
        "classify images --model model.onnx -o there.csv",
        "sample images",
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


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("train imags", "did you mean images?"),
        ("evaluate tiny images", "did you mean runs/tiny?"),
        ("evaluate runs/tny images", "did you mean runs/tiny?"),
        ("export runs/tny", "did you mean runs/tiny?"),
        ("export tiny", "did you mean runs/tiny?"),
        ("classify images --model runs/tny", "did you mean runs/tiny?"),
        ("serve runs/tny", "did you mean runs/tiny?"),
        ("train images --weights modle.onnx --model vgg16", "did you mean model.onnx?"),
        ("export --format onx", "did you mean onnx?"),
        ("classify imags --model model.onnx", "did you mean images?"),
        ("classify images --model modle.onnx", "did you mean model.onnx?"),
        ("report modle.onnx", "did you mean model.onnx?"),
        ("merge modle.onnx", "did you mean model.onnx?"),
        ("docs trainning", "did you mean training?"),
        ("runs tny tiny", "did you mean tiny?"),
        ("train images --model cnnn", "did you mean cnn?"),
        ("train images --epoch 3", "did you mean --epochs"),
        ("train images --fine-tune lastblock", "did you mean last-block?"),
        ("explain --clas x", "did you mean --class?"),
    ],
)
def test_a_name_that_is_close_is_proposed(words, meant, onnx_path, images, tmp_path):
    (tmp_path / "model.onnx").symlink_to(onnx_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "plan.json").write_text("{}")
    ran = run_tltools(*words.split(), cwd=tmp_path)
    assert ran.code in (1, 2)
    (line,) = (one for one in ran.err.splitlines() if one.startswith("error: "))
    assert meant in line


@pytest.mark.parametrize("words", ["inspect nope.onnx", "classify x.jpg --model model.onnx"])
def test_a_name_that_shares_only_its_extension_is_not_proposed(words, onnx_path, tmp_path):
    (tmp_path / "model.onnx").symlink_to(onnx_path)
    (tmp_path / "b.jpg").touch()
    ran = run_tltools(*words.split(), cwd=tmp_path)
    assert ran.code == 1
    assert "does not exist" in ran.err
    assert "did you mean" not in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample --num-images 1", "--num-images must be at least 4, got 1"),
        ("serve --port 70000", "--port must be between 0 and 65535, got 70000"),
        ("classify x --min-confidence 70", "--min-confidence must be between 0 and 1, got 70.0"),
        ("export --parity-images 0", "--parity-images must be at least 1, got 0"),
    ],
)
def test_a_number_out_of_range_is_said_in_words(words, message, tmp_path):
    ran = run_tltools(*words.split(), cwd=tmp_path)
    assert (ran.code, ran.err.partition(" (see")[0]) == (2, f"error: {message}")


@pytest.mark.parametrize(
    "words",
    ["evaluate x y -o scores.csv", "export -o model.onnx", "bench -o bench.json"],
)
def test_a_folder_of_results_is_not_named_like_a_file(words, tmp_path):
    ran = run_tltools(*words.split(), cwd=tmp_path)
    assert ran.code == 2
    assert "would be a folder, for several files; name one without ." in ran.err
    assert not list(tmp_path.iterdir())


def test_without_arguments_the_help_is_printed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tltools"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Getting started" in done.stdout
    assert "error" not in done.stderr
