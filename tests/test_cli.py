"""The command line as a user meets it: the whole walk, the errors, Ctrl-C, and the options.

`python tests/test_cli.py` prints what belongs in `tests/golden/options.txt`.
"""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import fields, replace
from inspect import Parameter, getdoc, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import msgspec
import numpy as np
import onnx
import pytest
from conftest import Ran, replace_writer, run_tltools
from typer.main import get_command

from tltools import __version__, cli
from tltools.artifacts import open_predictor
from tltools.card import Preprocessing
from tltools.classify.output_formats import OUTPUT_FORMATS
from tltools.cli.classify import PartFormatOption
from tltools.cli.docs import CHAPTERS
from tltools.cli.export import LayoutOption, PrecisionOption
from tltools.cli.model_card import preparation
from tltools.cli.options import AllDevices, TorchDevices
from tltools.cli.resume import tell_change
from tltools.data.dataset import load_dataset
from tltools.errors import TltoolsError
from tltools.evaluate import evaluate
from tltools.layouts import Layout
from tltools.metrics import score
from tltools.runtime import read_card
from tltools.runtime.device import Kind, TorchKind
from tltools.runtime.model_formats import FORMATS, torchscript
from tltools.training import TrainConfig, default_config
from tltools.training.run import load_card

GOLDEN = Path(__file__).parent / "golden" / "options.txt"
FUNCTIONS = {command.callback.__name__: command.callback for command in cli.app.registered_commands}
COMMANDS = list(FUNCTIONS)
CLASSES = "non-emergency,emergency"
NUM = 20


@pytest.fixture
def run(tmp_path):
    """Run a command in an empty folder."""
    return lambda *args: run_tltools(*args, cwd=tmp_path)


# --------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_in_the_help_is_a_valid_command(run, command):
    result = run(command, "--help")
    assert result.code == 0
    example = re.search(rf"Example: tltools {command}( .*)?$", result.out, re.MULTILINE)
    assert example, result.out
    known = {part for names, *_ in options_of(command) for part in names.split(", ")}
    assert set(re.findall(r"--[a-z-]+", example[0])) <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_no_word_of_the_help_is_broken_at_80_columns(command, tmp_path, monkeypatch):
    """A value's choices are one word: `<onnx|pt2|all>`."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = run_tltools(command, "--help", cwd=tmp_path).out
    assert shown
    assert re.findall(r"<[a-z][a-z|-]+ .*", re.sub(r"<(int|float) range>", "", shown)) == []


def test_help_lists_the_commands(run):
    for args in ([], ["-h"], ["--help"]):
        result = run(*args)
        assert all(re.search(rf"^\W*{name}\b", result.out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_list_of_commands_is_that_of_the_commands_themselves(tmp_path, option):
    environment = os.environ | {"COLUMNS": "200", "TERM": "dumb"}
    listed = subprocess.run(
        [sys.executable, "-m", "tltools", option],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name, function in FUNCTIONS.items():
        summary = getdoc(function).split("\n\n")[0].replace("\n", " ")
        assert re.search(rf"^\W*{name} +{re.escape(summary)}\W*$", listed, re.MULTILINE)


def test_the_version_is_the_packages(run):
    for option in ("--version", "-V"):
        assert run(option) == Ran(0, f"tltools {__version__}\n", "")


# ----------------------------------------------------------------------------------- the walk


class Walk(typing.NamedTuple):
    folder: Path
    ran: dict[str, Ran]

    def predictions(self) -> dict[str, str]:
        """Label by image, as `classify` wrote them."""
        with (self.folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
            return {row["path"]: row["label"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Run each command once, in one folder, on the results of the command before."""
    folder = tmp_path_factory.mktemp("walk")
    names = ("--class-names", CLASSES)
    model = "exports/cnn/cnn.fp32.onnx"
    steps = {
        "sample": ("sample", "--num-images", NUM),
        "train": ("train", "sample", *names, "--model", "cnn", "--epochs", 1, "--batch-size", 6,
                  "--val-fraction", 0.25, "--device", "cpu"),
        "evaluate run": ("evaluate", "runs/cnn", "sample", *names, "--device", "cpu",
                         "--output", "scores"),
        "export": ("export", "--format", "all"),
        "evaluate export": ("evaluate", model, "sample", *names, "--device", "cpu", "--json"),
        "classify": ("classify", "sample/images", "--device", "cpu"),
        "classify to stdout": ("classify", "sample/images", "--device", "cpu", "-o", "-"),
        "bench": ("bench", model, "--rounds", 1, "--iterations", 1, "--batch-sizes", "2",
                  "--device", "cpu", "--output", "report"),
        "inspect run": ("inspect", "runs/cnn", "--json"),
        "inspect export": ("inspect", model, "--json"),
        "card": ("inspect", model),
        "inspect data": ("inspect", "sample", "--sheet", "sheet.png"),
        "doctor": ("doctor",),
        "doctor json": ("doctor", "--json"),
    }  # fmt: skip
    ran: dict[str, Ran] = {}
    for name, args in steps.items():
        ran[name] = run_tltools(*args, cwd=folder)
        assert ran[name].code == 0, (name, ran[name])
    return Walk(folder, ran)


def test_training_ends_with_a_table(walk):
    out, err = walk.ran["train"].out, walk.ran["train"].err
    score = load_card(walk.folder / "runs" / "cnn").metrics["val"]
    assert "Top-1 accuracy with its 95% interval" in out
    assert f"{score.accuracy:.1%} ({score.low:.1%} to " in out
    assert "runs/cnn" in out
    assert "epoch   1/1" in err
    assert f"classes {CLASSES.replace(',', ', ')}" in err


def test_progress_is_on_standard_error_and_results_on_standard_output(walk):
    for name, ran in walk.ran.items():
        assert not re.search(r"images/s|done in|Next:|Written:|warning:|Device:", ran.out), name
        assert "Top-1" not in ran.err
        assert "\x1b" not in ran.out + ran.err  # no colors or cursor movements into a file
    for name in ("sample", "classify"):
        assert walk.ran[name].out == ""
    for name in ("train", "export", "bench"):
        assert walk.ran[name].out.count("\n") >= 4
    for name in ("inspect run", "inspect export", "doctor", "doctor json"):
        assert walk.ran[name].err == ""


def test_every_command_names_the_next_step(walk):
    assert "Next: tltools train sample" in walk.ran["sample"].err
    assert "Next: tltools export" in walk.ran["train"].err
    assert "Next: tltools classify FOLDER, or tltools bench to" in walk.ran["export"].err


def test_all_formats_are_exported_and_listed_with_their_parity(walk):
    out = walk.ran["export"].out
    for suffix in ("pt", "pt2", "onnx"):
        parity = read_card(walk.folder / f"exports/cnn/cnn.fp32.{suffix}").export.parity
        assert f"exports/cnn/cnn.fp32.{suffix}" in out
        assert f"{parity.max_abs_logit_diff:.1e}" in out
    assert out.count("100.0%") == 3


def test_a_run_and_its_export_get_the_same_score(walk):
    by_run = json.loads((walk.folder / "scores" / "evaluation.json").read_text())
    by_export = json.loads(walk.ran["evaluate export"].out)
    # Confidences differ in the seventh digit, which moves the calibration error by as much.
    eces = [document.pop("calibration")["ece"] for document in (by_run, by_export)]
    assert eces[0] == pytest.approx(eces[1], abs=1e-4)
    assert [document.pop("model") for document in (by_run, by_export)] == ["cnn", "cnn onnx fp32"]
    for document in (by_run, by_export):
        del document["seconds"]
        roc_auc = document.pop("roc_auc")
        assert 0 <= roc_auc["value"] <= 1
    assert by_run == by_export
    assert by_run["num_images"] == NUM
    assert (walk.folder / "scores" / "confusion_matrix.png").stat().st_size > 1000
    assert f"{by_run['accuracy']['correct']}/{NUM}" in walk.ran["evaluate run"].out


def test_classify_labels_each_image_as_evaluate_does(walk):
    dataset = load_dataset(
        walk.folder / "sample", class_names=CLASSES.split(","), purpose="evaluate"
    )
    predictor = open_predictor(walk.folder / "exports/cnn/cnn.fp32.onnx", "cpu")
    result = evaluate(predictor, dataset, split="all")
    assert walk.predictions() == {
        Path(path).name: result.classes[index]
        for path, index in zip(result.paths, result.preds, strict=True)
    }
    assert len(walk.predictions()) == NUM


def test_classify_names_its_model_and_summarizes_the_job(walk):
    err = walk.ran["classify"].err
    assert err.startswith("Model: exports/cnn/cnn.fp32.onnx (best validation accuracy here")
    assert f"{NUM} rows (0 with an error)" in err
    for name in CLASSES.split(","):
        count = list(walk.predictions().values()).count(name)
        assert re.search(rf"^ +{count} .* {name}$", err, re.MULTILINE)


def test_classify_to_standard_output_writes_the_same_csv_and_nothing_else(walk):
    assert walk.ran["classify to stdout"].out == (walk.folder / "predictions.csv").read_text()


def test_bench_compares_the_export_with_its_run(walk):
    out = walk.ran["bench"].out
    assert re.search(r"^ +eager fp32 .*ok|eager fp32", out, re.MULTILINE)
    assert re.search(r"onnx fp32.* 100\.0 ", out)
    assert "failed" not in out
    (report,) = (walk.folder / "report").glob("bench*.json")
    assert len(json.loads(report.read_text())["rows"]) == 2
    assert len(list((walk.folder / "report").glob("bench*.md"))) == 1


def test_inspect_shows_a_card_as_json(walk):
    run_card = json.loads(walk.ran["inspect run"].out)
    export_card = json.loads(walk.ran["inspect export"].out)
    assert run_card["classes"] == CLASSES.split(",")
    assert export_card.pop("export")["format"] == "onnx"
    assert run_card.pop("export") is None
    assert run_card == export_card


@pytest.mark.parametrize("model", ["runs/cnn", "exports/cnn/cnn.fp32.onnx"])
def test_evaluate_says_how_many_images_the_model_was_trained_on(walk, model):
    num_train = load_card(walk.folder / "runs" / "cnn").data.num_train
    args = ("evaluate", model, "sample", "--class-names", CLASSES, "--device", "cpu", "--json")
    all_images = run_tltools(*args, cwd=walk.folder)
    told = json.loads(all_images.out)
    assert (told["split"], told["num_images"], told["num_trained_on"]) == ("all", NUM, num_train)
    assert f"the model was trained on {num_train} of these {NUM} images" in all_images.err
    rest = run_tltools(*args, "--exclude-train", cwd=walk.folder)
    told = json.loads(rest.out)
    assert (told["num_images"], told["num_trained_on"]) == (NUM - num_train, 0)
    assert "was trained on" not in rest.err


def test_training_images_of_an_export_are_known_by_its_run_only(walk, tmp_path):
    model = walk.folder / "exports" / "cnn" / "cnn.fp32.onnx"
    alone = shutil.copy(model, tmp_path / "cnn.fp32.onnx")
    args = ("evaluate", alone, walk.folder / "sample", "--class-names", CLASSES, "--device", "cpu")
    result = run_tltools(*args, "--json", cwd=tmp_path)
    assert json.loads(result.out)["num_trained_on"] is None
    result = run_tltools(*args, "--exclude-train", cwd=tmp_path)
    assert result.code == 2
    assert last_line(result.err).startswith("error: --exclude-train needs the run of")
    found = run_tltools("evaluate", model, *args[2:], "--json", cwd=tmp_path)  # beside exports/
    assert json.loads(found.out)["num_trained_on"] > 0


def test_inspect_says_what_to_feed_a_model(walk):
    lines = walk.ran["card"].out.splitlines()
    assert len([line for line in lines if line.strip()]) < 27
    text = " ".join(" ".join(lines).split())
    for expected in (
        f"classes 2: {CLASSES.replace(',', ', ')}",
        "input images, uint8 (N, 224, 224, 3): RGB, 0 to 255",
        "preparation apply the EXIF orientation, composite transparency on white, convert to RGB, "
        "resize to 224 x 224 (bilinear, antialiased)",
        "output logits, float32 (N, 2), and their probabilities",
        "export onnx fp32, opset",
        "verified on cpu 100.0% of",
    ):
        assert expected in text, text


def test_the_crop_rule_is_told_with_its_numbers():
    rules = Preprocessing(resize="crop")
    assert "short side to 256 (bilinear, antialiased) and crop the central 224 x 224" in (
        preparation(rules)
    )


def test_inspect_audits_data(walk):
    assert f"sample: {NUM} images" in walk.ran["inspect data"].out
    assert (walk.folder / "sheet.png").stat().st_size > 1000


def test_inspect_counts_the_images_that_are_unreadable(tmp_path, drawn):
    shutil.copytree(drawn, tmp_path / "data")
    number = len(list((tmp_path / "data").glob("*/*.png")))
    (tmp_path / "data" / "dark" / "bad.png").write_bytes(b"no image")
    found = run_tltools("inspect", "data", cwd=tmp_path)
    assert f"data: {number} of {number + 1} images (1 unreadable), split: default" in found.out


def test_findings_of_inspect_name_options_of_the_command_line(tmp_path, images):
    shutil.copytree(images, tmp_path / "data")
    (tmp_path / "data" / "red" / "bad.png").write_bytes(b"")
    for options in ((), ("--json",)):
        found = run_tltools("inspect", "data", *options, cwd=tmp_path)
        assert found.code == 1
        assert "--skip-bad" in found.out
        assert "skip_bad" not in found.out


def test_doctor_names_what_is_installed(walk):
    checks = {check["name"]: check for check in json.loads(walk.ran["doctor json"].out)}
    assert checks["tltools"]["detail"] == __version__
    assert checks["onnx"]["detail"] == onnx.__version__
    assert all(name in walk.ran["doctor"].out for name in ("torch", "onnxruntime on the CPU"))


def test_overwrite_replaces_an_existing_output(walk):
    args = ("classify", "sample/images", "--device", "cpu", "-o", "again.csv")
    again = walk.folder / "again.csv"
    again.write_text("precious\n")
    refused = run_tltools(*args, cwd=walk.folder)
    assert refused.code == 2
    assert last_line(refused.err) == (
        "error: again.csv exists; replace it with --overwrite, or write elsewhere with --output"
    )
    assert again.read_text() == "precious\n"
    assert run_tltools(*args, "--overwrite", cwd=walk.folder).code == 0
    assert again.read_text() == (walk.folder / "predictions.csv").read_text()


def test_train_without_data_draws_the_sample_and_says_so(walk, monkeypatch):
    """With a sample that is there already and is taken for the one that would be drawn."""
    monkeypatch.setattr("tltools.sample.draw_sample", lambda folder, progress: folder)
    result = run_tltools("train", "--model", "cnn", "--epochs", 1, "--run-dir", "without",
                         "--device", "cpu", cwd=walk.folder)  # fmt: skip
    assert result.code == 0
    assert re.search(r"^warning: no DATA given: .* drawn sample set in sample/", result.err, re.M)
    assert load_card(walk.folder / "without" / "cnn").classes == tuple(CLASSES.split(","))


# --------------------------------------------------------------------- --quiet, --verbose, --json


@pytest.fixture(scope="module")
def quiet_walk(walk, tmp_path_factory):
    """Run each command with --json and --quiet; return the documents by command."""
    folder = tmp_path_factory.mktemp("quiet")
    for name in ("sample", "runs", "exports"):
        shutil.copytree(walk.folder / name, folder / name)
    names = ("--class-names", CLASSES)
    model = "exports/cnn/cnn.fp32.onnx"
    steps = {
        "sample": ("sample", "drawn", "--num-images", 4),
        "train": ("train", "sample", *names, "--model", "cnn", "--epochs", 1, "--batch-size", 6,
                  "--val-fraction", 0.25, "--device", "cpu"),
        "evaluate": ("evaluate", model, "sample", *names, "--device", "cpu"),
        "export": ("export", "runs/cnn"),
        "classify": ("classify", "sample/images", "--device", "cpu"),
        "bench": ("bench", model, "--rounds", 1, "--iterations", 1, "--batch-sizes", "2",
                  "--device", "cpu", "--output", "report"),
        "report": ("report", "runs/cnn", "predictions.csv", "--images", "sample/images"),
        "inspect": ("inspect", "sample", *names),
        "runs": ("runs",),
        "doctor": ("doctor",),
        "docs": ("docs",),
    }  # fmt: skip
    assert set(steps) == set(COMMANDS) - ELSEWHERE
    ran = {
        name: run_tltools(*args, "--json", "--quiet", cwd=folder) for name, args in steps.items()
    }
    for name, result in ran.items():
        assert result.code == 0, (name, result)
    return ran


ELSEWHERE = {"explain", "merge", "models", "serve"}
"""Commands whose options are tested with their own tests."""


def test_quiet_commands_print_only_warnings_on_standard_error(quiet_walk):
    for name, ran in quiet_walk.items():
        assert all(line.startswith("warning: ") for line in ran.err.splitlines()), (name, ran.err)


def test_every_command_prints_its_result_as_one_json_document(quiet_walk):
    found = {name: json.loads(ran.out) for name, ran in quiet_walk.items()}
    assert found["sample"] == {"folder": "drawn", "num_images": 4, "seed": 13}
    (run,) = found["train"]
    assert run["run"] == "runs/cnn-2"
    assert set(run["metrics"]) == {"train", "val"}
    assert found["evaluate"]["num_images"] == NUM
    (exported,) = found["export"]
    assert exported["path"] == "exports/cnn/cnn.fp32.onnx"
    assert exported["parity"]["top1_agreement"] == 1
    assert found["classify"]["num_images"] == sum(found["classify"]["counts"].values()) == NUM
    assert [row["status"] for row in found["bench"]["rows"]] == ["ok", "ok"]
    assert found["report"]["report"] == "report.html"
    assert found["report"]["jobs"] == ["predictions.csv"]
    counts = found["inspect"]["images"]
    assert list(counts) == CLASSES.split(",")
    assert sum(row["all"] for row in counts.values()) == found["inspect"]["num_images"] == NUM
    assert {check["name"] for check in found["doctor"]} >= {"tltools", "onnx"}
    assert {"runs/cnn", "runs/cnn-2"} <= {one["path"] for one in found["runs"]}
    assert set(found["docs"]) == set(CHAPTERS)


def test_verbose_prints_what_a_bug_report_needs(walk):
    result = run_tltools("inspect", "runs/cnn", "--verbose", "--json", cwd=walk.folder)
    assert f"tltools {__version__}, Python" in result.err
    assert "path = 'runs/cnn'" in result.err
    assert "images = None" in result.err
    assert re.search(r"^took \d+\.\d s$", result.err, re.MULTILINE)
    assert json.loads(result.out)


def test_verbose_shows_where_an_error_came_from(walk):
    for options, shown in (((), False), (("-v",), True)):
        result = run_tltools("inspect", "nowhere", *options, cwd=walk.folder)
        assert result.code == 1
        assert ("Traceback" in result.err) == shown
        assert last_line(result.err).startswith("error: ")


def test_contradicting_options_are_refused(walk):
    both = run_tltools("doctor", "-q", "-v", cwd=walk.folder)
    assert both.code == 2
    assert "--quiet and --verbose contradict each other" in both.err
    stdout = run_tltools("classify", "sample/images", "-o", "-", "--json", cwd=walk.folder)
    assert stdout.code == 2
    assert "--json and --output -" in stdout.err


def test_a_failed_training_keeps_the_models_before_it_and_their_table(
    walk, vgg16_file, monkeypatch
):
    def fail(*_, **__):
        raise TltoolsError("the features cannot be computed")

    monkeypatch.setattr("tltools.training.prepare.extract", fail)
    result = run_tltools("train", "sample", "--model", "all", "--epochs", 1, "--weights",
                         vgg16_file, "--run-dir", "both", "--device", "cpu",
                         cwd=walk.folder)  # fmt: skip
    assert result.code == 1
    assert "both/cnn" in result.out
    assert last_line(result.err) == "error: the features cannot be computed"
    assert result.err.count("error:") == 1
    assert [path.name for path in (walk.folder / "both").iterdir()] == ["cnn"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "nowhere.pth"], "error: nowhere.pth does not exist: correct the path"),
        (
            ["--run-dir", "exports/cnn/cnn.fp32.onnx/runs"],
            "error: cannot write exports/cnn/cnn.fp32.onnx/runs: ",
        ),
        (
            ["--cache-dir", "exports/cnn/cnn.fp32.onnx"],
            "error: features cannot be cached: cannot write exports/cnn/cnn.fp32.onnx: not a "
            "directory; choose another folder with --cache-dir",
        ),
    ],
)
def test_what_prevents_a_later_model_is_found_before_the_first_epoch(
    walk, vgg16_file, options, message
):
    chosen = {"--weights": vgg16_file, "--run-dir": "late"} | {options[0]: options[1]}
    given = [word for pair in chosen.items() for word in pair]
    result = run_tltools("train", "sample", "--model", "all", *given, cwd=walk.folder)
    assert result.code == 1
    assert last_line(result.err).startswith(message)
    assert not re.search(r"^epoch", result.err, re.MULTILINE)
    assert not (walk.folder / "late").exists()


def test_resume_trains_for_more_epochs(walk):
    shutil.copytree(walk.folder / "runs", walk.folder / "resumed")
    args = ("train", "--resume", "--run-dir", "resumed", "--model", "cnn", "--device", "cpu")
    result = run_tltools(*args, "--epochs", 2, cwd=walk.folder)
    assert result.code == 0
    assert "Extending resumed/cnn from 1 to 2 epochs" in result.err
    assert "Next: tltools export resumed/cnn, or tltools report resumed/cnn" in result.err
    assert "epoch   2/2" in result.err
    assert re.search(
        r"The same epoch is kept as before: 1|the validation accuracy was .* with epoch 2$",
        result.err,
        re.MULTILINE,
    )
    nothing = run_tltools(*args, cwd=walk.folder)
    assert nothing.code == 1
    assert nothing.err.startswith("error: nothing to resume")


@pytest.mark.parametrize(("right", "is_worse"), [(3, True), (5, False), (4, False)])
def test_a_resumed_run_says_how_its_accuracy_has_changed(walk, right, is_worse):
    card = load_card(walk.folder / "runs" / "cnn")

    def with_score(correct, epoch):
        return msgspec.structs.replace(
            card,
            metrics={
                "val": score((np.arange(8) < correct).astype(np.int64), np.ones(8, dtype=np.int64))
            },
            training=card.training | {"kept_epoch": epoch},
        )

    told, warned = [], []
    progress = SimpleNamespace(say=told.append, warn=warned.append)
    tell_change(with_score(4, 1), with_score(right, 3), progress)
    (line,) = warned if is_worse else told
    assert re.fullmatch(
        r"the validation accuracy was 50\.0% \(.*\), 4/8 before, with epoch 1, and is "
        rf"{12.5 * right:.1f}% \(.*\), {right}/8 now, with epoch 3",
        line,
    )


def test_export_names_older_runs_and_warns_of_a_training_that_was_stopped(walk, tmp_path):
    """Otherwise an older run that is better is missed, and one that was stopped looks finished."""
    shutil.copytree(walk.folder / "runs" / "cnn", tmp_path / "runs" / "cnn")
    shutil.copytree(tmp_path / "runs" / "cnn", tmp_path / "runs" / "cnn-2")
    path = tmp_path / "runs" / "cnn-2" / "card.json"
    card = json.loads(path.read_text())
    card |= {"run": "cnn-2", "created": "2999-01-01T00:00:00+00:00"}
    card["training"] |= {"interrupted": True, "epochs": 9}
    path.write_text(json.dumps(card))
    ran = run_tltools("export", "--device", "cpu", cwd=tmp_path)
    assert ran.code == 0, ran.err
    told = " ".join(ran.err.split())
    assert re.search(
        r"Left out, since there are newer runs of the same models: runs/cnn \(.*\); name a run",
        told,
    )
    stopped = "the training of runs/cnn-2 was stopped after 1 of 9 epochs; tltools train --resume"
    assert f"warning: {stopped} runs/cnn-2 finishes it" in told
    named = run_tltools("export", "runs/cnn", "--device", "cpu", cwd=tmp_path)
    assert "Left out" not in named.err
    assert "was stopped" not in named.err


def test_resume_takes_the_run_that_is_named(walk):
    for name in ("named", "newer"):
        shutil.copytree(walk.folder / "runs" / "cnn", walk.folder / "several" / name)

    def resume(run, *options):
        return run_tltools("train", "--resume", run, *options, "--device", "cpu", cwd=walk.folder)

    for run, options, code, told in (
        ("several/named", (), 1, "several/named is finished, with 1 epoch; to extend it, increase"),
        ("named", ("--run-dir", "runs", "--epochs", 2), 2, "named does not exist: name a run"),
        ("cn", ("--epochs", 2), 2, "cn does not exist (did you mean runs/cnn?): name a run"),
        ("cnn", ("--run-dir", "several", "--epochs", 2), 2, "runs/cnn is not in several; omit"),
        ("several/named", ("--model", "vgg16", "--epochs", 2), 2, "--model is cnn, not vgg16"),
    ):
        refused = resume(run, *options)
        assert (refused.code, told in last_line(refused.err)) == (code, True), refused
    whole = resume("several/named", "--epochs", 2)
    assert whole.code == 0, whole.err
    assert "Extending several/named from 1 to 2 epochs" in whole.err
    in_folder = resume("newer", "--run-dir", "several", "--epochs", 2)
    assert "Extending several/newer from 1 to 2 epochs" in in_folder.err
    shutil.rmtree(walk.folder / "several")


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        (["--lr", "0.5"], "--lr is 0.0001, not 0.5"),
        (["--batch-size", 7], "--batch-size is 6, not 7"),
        (["--seed", 99], "--seed is 13, not 99"),
        (["--class-weights"], "--class-weights is False, not True"),
        (["--augment", "crop"], "--augment is none, not crop"),
        (["--recipe", "article"], "--keep is best, not last"),
        (["--folds", 3], "only a new run can be cross-validated"),
        (["--val-fraction", 0.2], "--val-fraction cannot be checked without the data"),
        (["sample", "--val-fraction", 0.2], "sample has other images, labels, class names or"),
        (["sample", "--class-names", "a,b"], "sample has other images, labels, class names or"),
    ],
)
def test_resume_refuses_options_that_the_run_was_not_begun_with(walk, options, differs):
    args = ("train", "--resume", "--model", "cnn", "--epochs", 5, "--device", "cpu")
    before = (walk.folder / "runs" / "cnn" / "card.json").read_bytes()
    result = run_tltools(*args, *options, cwd=walk.folder)
    assert result.code == 2
    assert differs in result.err
    assert "runs/cnn can be resumed only with its original settings" in last_line(result.err)
    assert (walk.folder / "runs" / "cnn" / "card.json").read_bytes() == before


def test_resume_refuses_fewer_epochs_than_the_run_was_begun_with(walk):
    run = shutil.copytree(walk.folder / "runs", walk.folder / "fewer") / "cnn"
    plan = (run / "plan.json").read_text()
    assert '"epochs": 1,' in plan
    (run / "plan.json").write_text(plan.replace('"epochs": 1,', '"epochs": 12,'))
    args = ("train", "--resume", "--run-dir", "fewer", "--device", "cpu")
    result = run_tltools(*args, "--epochs", 11, cwd=walk.folder)
    assert result.code == 2
    assert "fewer/cnn can be resumed only" in last_line(result.err)
    assert "--epochs is 12 and can only be increased, not 11" in last_line(result.err)


def test_resume_takes_the_options_that_the_run_was_begun_with(walk):
    shutil.copytree(walk.folder / "runs", walk.folder / "again")
    begun = ("train", "sample", "--class-names", CLASSES, "--model", "cnn", "--batch-size", 6,
             "--val-fraction", 0.25, "--device", "cpu")  # fmt: skip
    result = run_tltools(*begun, "--run-dir", "again", "--resume", "--epochs", 2, cwd=walk.folder)
    assert result.code == 0, result.err
    assert "epoch   2/2" in result.err


def test_an_export_that_disagrees_exits_with_code_3(walk, monkeypatch):
    def write_wrong(trained, precision, path, check):
        model, rules = trained.model, replace_std(trained.card.preprocessing)
        trained.model = type(model)(model.backbone, model.head, rules).eval()
        return torchscript.write(trained, precision, path, check)

    def replace_std(preprocessing):
        import msgspec

        return msgspec.structs.replace(preprocessing, std=(0.5, 0.5, 0.5))

    replace_writer(monkeypatch, "torchscript", write=write_wrong)
    result = run_tltools("export", "--format", "torchscript", "--output", "wrong", cwd=walk.folder)
    assert (result.code, result.out) == (3, "")
    assert last_line(result.err).startswith(
        "error: wrong/cnn/cnn.fp32.pt was not written: the logits differ by"
    )
    assert not (walk.folder / "wrong").exists()


# ------------------------------------------------------------------------------------- errors


@pytest.fixture(scope="module")
def place(tmp_path_factory, onnx_path, cnn_run):
    """A folder with a model, images, and broken files."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "empty").mkdir()
    (folder / "text.onnx").write_text("not a model")
    (folder / "text.csv").write_text("not,a\ntable,")
    shutil.copy(onnx_path, folder / "model.onnx")
    shutil.copytree(cnn_run, folder / "broken")
    (folder / "broken" / "card.json").write_text("{")
    model = onnx.load(onnx_path)
    del model.metadata_props[:]
    onnx.save(model, folder / "plain.onnx")
    (folder / "images").mkdir()
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(folder / "images" / "red.png")
    (folder / "there.csv").write_text("mine")
    return folder


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        pytest.param(command, code, message, id=name)
        for name, command, code, message in [
            ("classify-missing-folder", "classify nowhere --model model.onnx", 1,
             "nowhere does not exist; name folders, images, archives or .txt lists"),
            ("classify-empty-folder", "classify empty --model model.onnx", 1,
             "no images in empty"),
            ("classify-missing-model", "classify images --model nope.onnx", 1,
             "; name an export, or create one with tltools export"),
            ("classify-no-export", "classify images", 1,
             "no exports in exports/: create some with tltools export"),
            ("classify-text-as-model", "classify images --model text.onnx", 1,
             "text.onnx"),
            ("classify-model-without-card", "classify images --model plain.onnx", 1,
             "plain.onnx has no tltools card"),
            ("classify-run-as-model", "classify images --model empty", 1,
             "empty is a folder, not an export; name an export"),
            ("export-an-export", "export model.onnx", 1, "model.onnx is a file, not a run"),
            ("train-resume-nothing-of-this-name", "train --resume cnm", 2,
             "cnm does not exist: name a run, which tltools runs lists, or the images"),
            ("train-one-fold", "train images --folds 1", 2, "--folds must be at least 2, got 1"),
            ("runs-delete-without-dashes", "runs delete cnn", 2,
             "--delete is an option: tltools runs --delete cnn"),
            ("classify-existing-output", "classify images --model model.onnx -o there.csv", 2,
             "there.csv exists; replace it with --overwrite"),
            ("classify-unknown-suffix", "classify images --model model.onnx -o out.txt", 2,
             "--output out.txt ends in '.txt'; choose .csv, .jsonl"),
            ("classify-output-is-a-folder", "classify images --model model.onnx -o empty", 2,
             "empty"),
            ("train-missing", "train nowhere", 1, "nowhere does not exist: name a CSV"),
            ("train-empty", "train empty", 1, "empty contains neither a CSV nor class folders"),
            ("train-bad-table", "train text.csv", 1, "text.csv has no label in 1 of 1 row"),
            ("train-no-epochs", "train images --epochs 0", 2,
             "--epochs must be at least 1, got 0"),
            ("train-bad-lr", "train images --lr -1", 2, "--lr must be positive, got -1.0"),
            ("train-bad-batch", "train images --batch-size 0", 2,
             "--batch-size must be at least 1, got 0"),
            ("train-fine-tuned-cnn", "train images --model cnn --fine-tune all", 2,
             "--fine-tune works only with --model vgg16"),
            ("train-bad-dropout", "train images --model vgg16 --fine-tune all --dropout 1", 2,
             "--dropout must be at least 0 and less than 1, got 1.0"),
            ("train-head-of-cnn", "train images --model cnn --head pooled", 2,
             "--model cnn has no --head pooled"),
            ("train-nothing-to-resume", "train --resume", 1, "nothing to resume"),
            ("evaluate-corrupt-card", "evaluate broken images", 1,
             "broken/card.json has no valid tltools card"),
            ("evaluate-missing-model", "evaluate nowhere images", 1,
             "nowhere does not exist: no runs in runs/; train one with tltools train, or name an"),
            ("evaluate-folder-as-model", "evaluate empty images", 1,
             "empty is not a run: it has no card.json"),
            ("evaluate-missing-data", "evaluate model.onnx nowhere --device cpu", 1,
             "nowhere does not exist: name a CSV"),
            ("evaluate-tf32-on-cpu", "evaluate model.onnx images --device cpu --tf32", 1,
             "--tf32 needs an NVIDIA GPU, but the device is the CPU (as asked)"),
            ("export-no-runs", "export", 1, "no runs in runs/: train one with tltools train"),
            ("export-missing-run", "export nowhere", 1, "nowhere does not exist"),
            ("export-corrupt-card", "export broken", 1,
             "broken/card.json has no valid tltools card"),
            ("bench-nothing", "bench", 1, "no exports in exports/"),
            ("bench-missing", "bench nope.onnx", 1, "nope.onnx does not exist"),
            ("inspect-missing", "inspect nowhere", 1, "nowhere does not exist: name a run, an"),
            ("inspect-missing-model", "inspect nope.onnx", 1, "nope.onnx does not exist"),
            ("inspect-text-as-model", "inspect text.onnx", 1, "text.onnx is not a"),
            ("sample-in-the-way", "sample images", 2, "choose another folder"),
        ]
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_its_remedy(place, command, code, message):
    before = snapshot(place)
    result = run_tltools(*command.split(), cwd=place)
    assert result.code == code
    assert result.out == ""
    *progress, line = result.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not [one for one in progress if "error" in one.lower() or "Traceback" in one]
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("frobnicate", "no such command 'frobnicate' .see tltools --help"),
        ("train --model resnet", "unknown model .resnet.; did you mean"),
        ("train --epochs many", "--epochs"),
        ("train --epochz 3", "no such option --epochz; did you mean --epochs"),
        ("train --qqq", "no such option --qqq .see tltools train --help"),
        ("--qqq", "no such option --qqq .see tltools --help"),
        ("train --unknown 99", "; --unknown is an option of classify and serve .see tltools train"),
        ("train -o x", "no such option -o; -o is an option of evaluate, export, .* and explain"),
        ("classify --format onnx", "--format; --format is an option of export .see"),
        ("train --no-tf32", "; --no-tf32 is an option of bench .see"),
        ("--json runs", "no such option --json; --json is an option of each command, and follows"),
        ("evaluate x --model cnn", "--model; give MODEL without it: tltools evaluate cnn x .see"),
        ("evaluate x --model=cnn -q", " give MODEL without it: tltools evaluate cnn x -q .see"),
        ("evaluate cnn --data x", "--data; give DATA without it: tltools evaluate cnn x .see"),
        ("evaluate x --model", "--model; --model is an option of train and classify .see"),
        ("explain x --model cnn", "--model; give RUN without it: tltools explain cnn x .see"),
        ("train photos test", "unexpected argument test; DATA may hold the folders train/ and val"),
        ("train photos --val test", "option --val; DATA may hold the folders train/ and val/; ot"),
        ("sort photos", "no such command 'sort'; use tltools classify FOLDER --sort-into DIR .see"),
        ("train photos --name big", "option --name; a run is named after its model; its folder"),
        ("train photos --val-fractoin 0.2", "option --val-fractoin; did you mean --val-fraction"),
        ("train photos --model cnn,vgg16", "name one model, or all, for cnn, vgg16"),
        ("export --model cnn", "--model; give RUNS without it: tltools export cnn .see"),
        ("bench --model cnn", "--model; give MODELS without it: tltools bench cnn .see"),
        ("train cnn a", " a; the network is chosen with --model: tltools train a --model cnn .see"),
        ("train a vgg16 -q", " vgg16; .* with --model: tltools train a -q --model vgg16 .see"),
        ("train cnn a --model vgg16", "unexpected argument a; DATA may hold"),
        ("train a b --run-dir cnn", "unexpected argument b; DATA may hold"),
        ("serve cnn a", "unexpected argument a .see"),
        ("evaluat x", r"no such command 'evaluat'; did you mean evaluate\?"),
        ("train --augment flipp", r"'flipp' is not one of .*; did you mean flip\?"),
        ("train --epochs 2.5", "'2.5' is not a whole number"),
        ("doctor x", "unexpected argument x .see tltools doctor --help"),
        ("doctor x y", "unexpected arguments x y"),
        ("classify", "missing argument INPUTS .see tltools classify --help"),
        ("classify images --batch-size 0", "--batch-size"),
        ("export --parity-images 0", "--parity-images"),
        ("classify images --device gpu", "'gpu' is not a device: choose auto, cpu, cuda"),
        ("train --device tensorrt", "'tensorrt' is not one of auto, cpu, cuda"),
    ],
)
def test_an_invalid_command_line_names_the_invalid_part(run, command, message):
    result = run(*command.split())
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)


@pytest.mark.parametrize(
    "command",
    ["train --unknown 9", "train cnn images", "evaluate images", "evaluate images --model cnn",
     "bench model.onnx images", "explain images", "serve images", "export images", "serve nowhere"],
)  # fmt: skip
def test_a_wrong_command_line_is_refused_without_torch(place, command):
    script = (
        "import sys; sys.modules['torch'] = None  # so that an import of it fails\n"
        f"from tltools.cli import main; main({command.split()})"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=place)
    assert ran.returncode in (1, 2)
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("given", [None, "active"])
def test_threads_of_a_command_sleep_while_they_wait_unless_told_otherwise(given):
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"OMP_WAIT_POLICY": given} if given else {}
    script = (
        "import os, sys; sys.argv = ['tltools', '--version']\n"
        "from tltools.cli import main\n"
        "try: main()\n"
        "finally: print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'), "
        "'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    expected = f"{given} None False" if given else "passive 1000 False"
    assert ran.stdout.splitlines()[-1:] == [expected], ran


def test_an_error_cannot_control_the_terminal(place):
    result = run_tltools("classify", "evil\x1b[31m\nname", "--model", "model.onnx", cwd=place)
    assert result.err == (
        "error: evil\\x1b[31m\\nname does not exist; name folders, images, archives or .txt lists\n"
    )


def test_a_bug_keeps_its_traceback(place, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tltools.classify.run_job", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_tltools("classify", "images", "--model", "model.onnx", cwd=place)


def snapshot(folder: Path) -> set[tuple[str, bytes]]:
    return {(str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def last_line(text: str) -> str:
    return text.splitlines()[-1]


# ------------------------------------------------------------------- in a process of its own

START = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored
sys.argv[0] = "tltools"
from tltools.cli import main
*before, last = json.loads(sys.argv[1])
for args in before:
    try:
        main(args)
    except SystemExit as leaving:
        print(f"LEFT {leaving.code}", file=sys.stderr, flush=True)
main(last)
"""


def start(*commands: list[object], cwd: Path) -> "subprocess.Popen[str]":
    """Run commands one after the other in one new process."""
    return subprocess.Popen(
        [sys.executable, "-c", START, json.dumps(commands, default=str)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(process: "subprocess.Popen[str]") -> Ran:
    import signal

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err)


@pytest.fixture(scope="module")
def trainings(drawn, tmp_path_factory):
    """Request CUDA, then press Ctrl-C, in one process, because torch takes seconds to load."""
    folder = tmp_path_factory.mktemp("trainings")
    train = ["train", drawn, "--model", "cnn"]
    process = start(
        [*train, "--device", "cuda", "--run-dir", "on-cuda"],
        [*train, "--device", "cpu", "--epochs", 100_000],
        cwd=folder,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("epoch   1/100000"):
            break
    stopped = interrupt(process)
    on_cuda, code, rest = re.split(r"LEFT (\d+)\n", "".join(lines))
    return folder, Ran(int(code), "", on_cuda), stopped._replace(err=rest + stopped.err)


def test_ctrl_c_ends_training_with_a_usable_run(trainings):
    folder, _, result = trainings
    assert result.code == 130
    assert "Traceback" not in result.err
    assert "stopped by Ctrl-C; finishing the run with epoch" in result.err
    assert "To resume: tltools train --resume" in result.err
    assert "runs/cnn" in result.out
    card = load_card(folder / "runs" / "cnn")
    assert card.training["interrupted"]
    images = np.zeros((1, 224, 224, 3), dtype=np.uint8)
    assert open_predictor(folder / "runs" / "cnn", "cpu")(images).shape == (1, 2)


def test_ctrl_c_ends_classify_and_keeps_the_rows_so_far(place, tmp_path):
    (tmp_path / "many.txt").write_text(f"{place}/images/red.png\n" * 1_000_000)
    process = start(
        ["classify", "many.txt", "--model", place / "model.onnx", "--device", "cpu"], cwd=tmp_path
    )
    part = tmp_path / "predictions.csv.part"
    while process.poll() is None and (not part.exists() or part.stat().st_size < 1000):
        pass
    result = interrupt(process)
    assert result.code == 130
    assert result.out == ""
    assert re.search(
        r"^warning: stopped: \d+ complete rows are kept in \S+\.part$", result.err, re.M
    )
    assert last_line(result.err) == "stopped by Ctrl-C"
    assert "Traceback" not in result.err
    assert not (tmp_path / "predictions.csv").exists()
    rows = list(csv.DictReader(io.StringIO(part.read_text())))
    counted = int(re.search(r"(\d+) complete rows", result.err)[1])
    assert len(rows) - counted in (0, 1)  # the signal may come between a row and its being counted
    assert {row["label"] for row in rows} == {"red"}
    assert all(row["error"] == "" for row in rows)


no_cuda = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="CUDA may well work here")


def assert_cuda_is_refused(err: str, runtime: str, beginnings: tuple[str, ...] = ()) -> None:
    """Read at the file descriptor, where the runtimes' own libraries write."""
    *progress, line = err.splitlines()
    assert line.startswith(f"error: CUDA does not work in {runtime} here: ")
    assert "--device cpu" in line
    assert [one for one in progress if not one.startswith(beginnings)] == []


ALREADY_TOLD = ("Checking images: ", "Labels: ", "drawn", "Batch size: ")


@no_cuda
def test_training_on_broken_cuda_is_a_one_line_error(trainings):
    folder, result, _ = trainings
    assert result.code == 1
    assert_cuda_is_refused(result.err, "PyTorch", ALREADY_TOLD)
    assert not (folder / "on-cuda").exists()


@no_cuda
def test_classifying_on_broken_cuda_is_a_one_line_error(place):
    process = start(
        ["classify", "images", "--model", "model.onnx", "-o", "cuda.csv", "--device", "cuda"],
        cwd=place,
    )
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert_cuda_is_refused(err, "onnxruntime")
    assert not (place / "cuda.csv").exists()


def test_a_closed_pipe_is_not_an_error(place):
    """As in `tltools classify ... -o - | head -1`."""
    lines = place / "lines.txt"
    lines.write_text(f"{place}/images/red.png\n" * 20_000)
    process = start(
        ["classify", lines, "--model", "model.onnx", "--device", "cpu", "-o", "-"], cwd=place
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("path,label")
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) in (0, 1)
    assert "Traceback" not in err
    assert "error" not in err.lower()
    lines.unlink()


# ------------------------------------------------------------------------------------ options


def options_of(command: str) -> Iterator[tuple[str, str, str]]:
    """Name, type and default of each of a command's arguments and options."""
    function = FUNCTIONS[command]
    hints = typing.get_type_hints(function)
    parameters = signature(function).parameters
    for option in get_command(cli.app).commands[command].params:
        kind, default = hints[option.name], parameters[option.name].default
        shown = kind.__name__ if isinstance(kind, type) else str(kind)
        shown = re.sub(r"typing\.Optional\[(.*)\]", r"\1 | None", shown)
        shown = re.sub(r"typing\.|pathlib\.(_local\.)?", "", shown)
        names = ", ".join([*option.opts, *option.secondary_opts])
        if not names.startswith("-"):
            names = names.upper()
        if default is Parameter.empty:
            text = "required"
        else:
            text = repr(str(default) if isinstance(default, Path) else default)
        yield names, shown, text


def option_list() -> str:
    lines = []
    for command in COMMANDS:
        lines.append(f"tltools {command}")
        lines += [f"  {names}: {kind} = {default}" for names, kind, default in options_of(command)]
    return "\n".join(lines) + "\n"


def test_the_options_equal_the_recorded_ones():
    """A promise to scripts: a changed option shows up in the diff of a file."""
    assert option_list() == GOLDEN.read_text(encoding="utf-8"), (
        "the options have changed; if that is meant: "
        "python tests/test_cli.py > tests/golden/options.txt"
    )


def help_texts() -> Iterator[tuple[str, str, str]]:
    """Yield each command, parameter and help text."""
    for command in COMMANDS:
        for one in get_command(cli.app).commands[command].params:
            name = one.opts[0] if one.opts[0].startswith("-") else one.opts[0].upper()
            yield command, name, getattr(one, "help", None) or ""


def test_each_help_text_is_a_sentence_of_at_most_twelve_words():
    for command, name, text in help_texts():
        is_list = (command, name) == ("train", "--model")  # of all backbones
        assert text, f"{command} {name}"
        assert len(text.split()) <= 12 or is_list, f"{command} {name}: {text}"
        assert re.search(r"[.)]$", text), f"{command} {name}: {text}"


SEVERAL_MEANINGS = {
    "--batch-size", "--cache-dir", "--class", "--device", "--engine", "--images", "--model",
    "--output", "--precision", "--seed", "--split", "--tf32",
    "DATA", "MODEL",
}  # fmt: skip
"""Parameters that do not mean the same in all commands, or not quite."""


def test_the_same_option_has_the_same_help_in_all_commands():
    texts: dict[str, set[str]] = {}
    for _, name, text in help_texts():
        texts.setdefault(name, set()).add(text)
    assert {name for name, found in texts.items() if len(found) > 1} == SEVERAL_MEANINGS


NOT_OPTIONS = {"standardize", "keep"}
"""Settings that come with the recipe."""


def test_every_training_setting_has_an_option_of_the_same_name():
    options = {names for names, *_ in options_of("train")}
    for field in fields(TrainConfig):
        if field.name not in NOT_OPTIONS:
            assert "--" + field.name.replace("_", "-") in options, field.name


CHANGES = {
    "epochs": 3,
    "batch_size": 7,
    "lr": 0.125,
    "weight_decay": 0.25,
    "seed": 5,
    "precision": "fp32",
    "patience": 4,
    "resize": "crop",
    "augment": "color",
    "class_weights": True,
    "schedule": "cosine",
    "optimizer": "adamw",
    "label_smoothing": 0.25,
    "image_size": 64,
    "clip_grad": 0.5,
}
FINE_TUNING_CHANGES = {"backbone_lr": 0.125, "dropout": 0.25}


@pytest.mark.parametrize("field", [field.name for field in fields(TrainConfig)])
def test_a_training_option_changes_only_its_setting(run, monkeypatch, field):
    """Return the arguments that the command passes to `train_models`."""
    seen: list[TrainConfig] = []

    def train_models(dataset, configs, **options):
        seen.extend(configs)
        raise TltoolsError("seen enough")

    monkeypatch.setattr("tltools.training.train_models", train_models)
    many = SimpleNamespace(part=lambda split: range(2000))  # so that batch sizes stay as they are
    monkeypatch.setattr("tltools.cli.train._training_data", lambda *args, **options: many)
    model, head = "cnn", "linear"
    args: list[object] = []
    if field in CHANGES:
        name, value = "--" + field.replace("_", "-"), CHANGES[field]
        args = [name] if value is True else [name, value]
        expected = replace(default_config("cnn"), **{field: value})
    elif field == "head":
        model, head, args = "vgg16", "pooled", ["--head", "pooled"]
        expected = replace(default_config("vgg16"), head=head)
    elif field == "fine_tune":
        model, args = "vgg16", ["--fine-tune", "all"]
        expected = default_config("vgg16", fine_tune="all")
    elif field in FINE_TUNING_CHANGES:
        value = FINE_TUNING_CHANGES[field]
        model, args = "vgg16", ["--fine-tune", "all", "--" + field.replace("_", "-"), value]
        expected = replace(default_config("vgg16", fine_tune="all"), **{field: value})
    elif field == "feature_precision":
        model, args = "vgg16", ["--feature-precision", "fp32"]
        expected = replace(default_config("vgg16"), feature_precision="fp32")
    elif field == "model":
        model, expected = "vgg16", default_config("vgg16")
    else:
        assert field in NOT_OPTIONS
        args, expected = ["--recipe", "article"], default_config("cnn", "article")
    result = run("train", ".", "--model", model, *args)
    assert last_line(result.err) == "error: seen enough"
    assert seen == [expected]


if __name__ == "__main__":
    sys.stdout.write(option_list())


def test_choices_written_for_the_command_line_are_those_of_the_library():
    """They stand in `cli` once more, since importing the library would slow every command down."""

    def choices(annotation: object) -> set[str]:
        """Values of all Literals in an annotation."""
        inner = typing.get_args(annotation)
        if typing.get_origin(annotation) is Literal:
            return set(inner)
        return set().union(*map(choices, inner))

    assert choices(TorchDevices) == choices(TorchKind)
    assert choices(AllDevices) == choices(Kind)
    precisions = {one for known in FORMATS.values() for one in known.precisions}
    assert choices(PrecisionOption) == precisions | {"all"}
    assert choices(LayoutOption) == choices(Layout) | {"files"}
    assert choices(PartFormatOption) <= {one.name for one in OUTPUT_FORMATS}


def test_bench_refuses_options_that_say_how_data_is_read_without_data(run):
    code, _, err = run("bench", "--label-column", "kind")
    assert code == 2
    assert "--label-column says how --data is read; add --data, or leave it out" in err
