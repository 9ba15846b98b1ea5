"""The default batch size fits the data; one that is given is used as given."""

from types import SimpleNamespace

import pytest
from conftest import run_tltools

from tltools.errors import TltoolsError
from tltools.training import TrainSetup, default_config, train_model
from tltools.training.config import MIN_STEPS, fitting_batch_size
from tltools.training.run import load_card


@pytest.mark.parametrize(
    ("num_train", "expected"),
    [
        (10_000, 128), (1_481, 128), (1_024, 128), (1_023, 64), (270, 32), (245, 16), (134, 16),
        (64, 8), (10, 8), (1, 8),
    ],
)  # fmt: skip
def test_a_batch_size_is_halved_until_an_epoch_has_steps_enough(num_train, expected):
    assert fitting_batch_size(128, num_train) == expected
    if expected > 8:
        assert num_train / expected >= MIN_STEPS


def test_small_batch_sizes_stay():
    assert fitting_batch_size(8, 1) == 8
    assert fitting_batch_size(5, 1) == 5
    assert fitting_batch_size(32, 134) == 16


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model", "cnn"], 16),
        (["--model", "cnn", "--batch-size", 128], 128),
        (["--model", "cnn", "--batch-size", 100], 100),
        (["--model", "cnn", "--recipe", "article"], 128),
        (["--model", "vgg16", "--fine-tune", "all"], 16),
    ],
)
def test_the_command_changes_only_a_default(options, expected, tmp_path, monkeypatch):
    seen = []

    def train_models(dataset, configs, **options):
        seen.extend(configs)
        raise TltoolsError("seen enough")

    (tmp_path / "data").mkdir()
    few = SimpleNamespace(part=lambda split: range(134))
    monkeypatch.setattr("tltools.training.train_models", train_models)
    monkeypatch.setattr("tltools.cli.train._training_data", lambda *args, **options: few)
    ran = run_tltools("train", "data", *options, cwd=tmp_path)
    assert [one.batch_size for one in seen] == [expected]
    fine_tuned = "--fine-tune" in options
    words = f"Batch size: 16, because {32 if fine_tuned else 128} would be "
    assert (words in ran.err) == (expected == 16)


def test_the_card_has_the_batch_size_and_a_run_keeps_it(drawn_dataset, drawn, tmp_path):
    words = ("train", drawn, "--model", "cnn", "--epochs", 1, "--val-fraction", 0.375)
    ran = run_tltools(*words, "--device", "cpu", cwd=tmp_path)
    assert ran.code == 0, ran
    assert "1 step per epoch" in ran.err
    assert load_card(tmp_path / "runs" / "cnn").training["batch_size"] == 8
    again = ("train", "--resume", "--model", "cnn", "--device", "cpu")
    ran = run_tltools(*again, "--epochs", 2, "--recipe", "default", cwd=tmp_path)
    assert ran.code == 0, ran
    assert load_card(tmp_path / "runs" / "cnn").training["batch_size"] == 8
    refused = run_tltools(*again, "--epochs", 3, "--batch-size", 128, cwd=tmp_path)
    assert refused.code == 2
    assert "--batch-size is 8, not 128" in refused.err


def test_a_program_that_embeds_tltools_gets_the_batch_size_that_it_names(drawn_dataset, tmp_path):
    setup = TrainSetup(device="cpu", run_dir=tmp_path)
    run = train_model(drawn_dataset, default_config("cnn", epochs=1), setup)
    assert run.card.training["batch_size"] == 128
