"""Fine-tuning pretrained layers. A real network with random weights, few drawn images."""

import re
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Recorder
from msgspec import structs
from safetensors.torch import load_file, save_file
from test_training import StopsAfter, assert_same_weights
from torch import nn

from tltools.backbones import BACKBONES, Backbone
from tltools.backbones.backbone import IMAGENET, Download, Normalization, Pretrained, Recipe
from tltools.backbones.layers import GlobalAveragePool
from tltools.card import Preprocessing
from tltools.errors import ConfigError
from tltools.evaluate import evaluate
from tltools.metrics import softmax
from tltools.run_folder import read_predictions
from tltools.training import (
    TrainSetup,
    default_config,
    default_configs,
    features,
    fit,
    resume_run,
    train_model,
)
from tltools.training.augment import NUM_VIEWS, View, draw_changes
from tltools.training.estimate import suggest_fine_tuning
from tltools.training.fine_tuning import FineTuned
from tltools.training.fit import Trainer, warm_up_and_cosine
from tltools.training.models import build_classifier
from tltools.training.run import open_run
from tltools.training.sources import FeatureSource

CPU = torch.device("cpu")


def build_layers(head, size):
    def convolution(num_inputs, num_outputs):
        return [nn.Conv2d(num_inputs, num_outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]

    features = nn.Sequential(*convolution(3, 8), *convolution(8, 12), *convolution(12, 16))
    return nn.Sequential(OrderedDict(features=features, pool=GlobalAveragePool())), 16


USUAL = {"lr": 1e-2, "batch_size": 8, "standardize": True}
TUNING = {
    **USUAL,
    "epochs": 2,
    "backbone_lr": 1e-3,
    "optimizer": "adamw",
    "schedule": "cosine",
    "dropout": 0.5,
    "augment": "crop",
}
TOY = Backbone(
    name="toy",
    title="the toy",
    build_layers=build_layers,
    heads={"pooled": ()},
    recipes={"default": Recipe(epochs=2, **USUAL)},
    fine_tuning={"last-block": Recipe(**TUNING), "all": Recipe(**TUNING)},
    last_maps="features",
    last_block=("features.6",),
    input_size=32,
    pretrained=Pretrained(
        first_tensor="features.0.weight",
        downloads={IMAGENET: Download(torchvision="ResNet18_Weights.IMAGENET1K_V1")},
        normalizations={"half": Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))},
    ),
)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Weights of the toy, which the registry knows for one test."""
    monkeypatch.setitem(BACKBONES, "toy", TOY)
    torch.manual_seed(0)
    state = build_layers("pooled", 32)[0].state_dict()
    save_file(state, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


@pytest.fixture
def tune(drawn_dataset, tmp_path, weights):
    """Train the toy for two epochs."""

    def run(fine_tune="last-block", *, progress=None, runs="runs", **changes):
        return train_model(
            drawn_dataset,
            default_config("toy", fine_tune=fine_tune, **changes),
            TrainSetup(
                weights=str(weights),
                run_dir=tmp_path / runs,
                cache_dir=tmp_path / "cache",
                device="cpu",
            ),
            progress=progress or Recorder(),
        )

    return run


def changed(run, weights):
    """Return the names of the backbone's tensors that differ from the pretrained ones."""
    kept = load_file(weights)
    state = load_file(run.folder / "checkpoint.safetensors")
    prefix = "backbone."
    return {
        name.removeprefix(prefix)
        for name, tensor in state.items()
        if name.startswith(prefix) and not torch.equal(tensor, kept[name.removeprefix(prefix)])
    }


# ------------------------------------------------------------------------------- whole trainings


def test_the_last_block_is_trained_and_the_layers_before_it_are_not(tune, weights):
    run = tune()
    assert run.folder.name == "toy-last-block"
    assert run.card.training["fine_tune"] == "last-block"
    assert changed(run, weights) == {"features.6.weight", "features.6.bias"}


def test_all_layers_are_trained_if_asked_for(tune, weights):
    run = tune("all")
    assert run.folder.name == "toy-all"
    assert changed(run, weights) == set(load_file(weights))


@pytest.mark.parametrize("fine_tune", ["last-block", "all"])
def test_a_fine_tuned_run_answers_as_its_training_did(tune, drawn_dataset, fine_tune):
    # The scaling of the features is folded into the head, and there is no dropout.
    run = tune(fine_tune)
    found = evaluate(open_run(run.folder, device="cpu"), drawn_dataset, split="val")
    assert found.score == run.card.metrics["val"]
    kept = read_predictions(run.folder, run.card.classes)["val"]
    probs = softmax(found.logits, temperature=run.card.temperature)
    order = [found.paths.index(path) for path in kept.paths]
    np.testing.assert_allclose(probs[order], kept.probs, atol=1e-5)


@pytest.mark.parametrize("fine_tune", ["last-block", "all"])
def test_a_resumed_fine_tuning_ends_with_the_same_weights(tune, tmp_path, weights, fine_tune):
    whole = tune(fine_tune, epochs=3)
    stopped = tune(fine_tune, epochs=3, progress=StopsAfter(1), runs="stopped")
    assert stopped.interrupted
    setup = TrainSetup(weights=str(weights), cache_dir=tmp_path / "cache", device="cpu")
    assert_same_weights(whole, resume_run(stopped.folder, setup))


def test_activations_are_computed_once_for_each_view(tune, monkeypatch):
    first = tune()
    monkeypatch.setattr(features, "run_images", lambda *_, **__: pytest.fail("computed again"))
    assert_same_weights(first, tune())


def test_activations_are_stored_in_fp16_unless_they_are_for_scoring(tune, tmp_path):
    tune(feature_precision="int8")
    stored = [load_file(path)["features"] for path in tmp_path.rglob("cache/**/*.safetensors")]
    assert {one.shape[1:] for one in stored} == {(12, 8, 8)}
    kinds = [one.dtype for one in stored]
    assert kinds.count(torch.float16) == NUM_VIEWS["crop"]
    assert kinds.count(torch.float32) == 1


def test_a_head_may_learn_from_mirrored_images_too(tune):
    plain, mirrored = (tune("none", augment=augment) for augment in ("none", "flip"))
    heads = [
        load_file(run.folder / "checkpoint.safetensors")["head.weight"] for run in (plain, mirrored)
    ]
    assert not torch.equal(*heads)


@pytest.fixture
def one_wrong(monkeypatch):
    """Let a head be wrong on one validation image."""

    def suggest(job, progress, *, score, command):
        score = structs.replace(score, correct=score.total - 1)
        suggest_fine_tuning(job, progress, score=score, command=command)

    monkeypatch.setattr("tltools.training.train.suggest_fine_tuning", suggest)


def test_a_head_that_is_always_right_suggests_nothing(tune):
    progress = Recorder()
    score = tune("none", progress=progress).card.metrics["val"]
    assert score.correct == score.total  # else the test says nothing
    assert not any("is usually more accurate" in line for line in progress.said)


def test_a_trained_head_suggests_fine_tuning_and_says_how_long_it_takes(tune, one_wrong):
    progress = Recorder()
    tune("none", progress=progress)
    (line,) = [line for line in progress.said if "Fine-tuning the toy's last block" in line]
    assert re.search(r"at most about \d+ s on this CPU: .*`fine_tune=last-block`$", line)
    progress = Recorder()
    tune("last-block", progress=progress)
    assert not any("is usually more accurate" in line for line in progress.said)


# ----------------------------------------------------------------------------------- the settings


def test_only_pretrained_layers_can_be_fine_tuned():
    with pytest.raises(ConfigError, match=r"`fine_tune=` works only with `model=vgg16"):
        default_config("cnn", fine_tune="last-block")
    with pytest.raises(ConfigError, match=r"`backbone_lr=` works only with `fine_tune=last-block`"):
        default_config("vgg16", backbone_lr=1e-3)
    with pytest.raises(ConfigError, match=r"`recipe=article` trains only a head"):
        default_config("vgg16", "article", fine_tune="all")
    with pytest.raises(ConfigError, match=r"`dropout=` must be at least 0 and less than 1, got 1"):
        default_config("vgg16", fine_tune="all", dropout=1.0)


def test_a_kind_of_fine_tuning_that_a_network_lacks_is_refused_with_those_it_has(monkeypatch):
    only_all = replace(TOY, fine_tuning={"all": Recipe(**TUNING)})
    monkeypatch.setitem(BACKBONES, "toy", only_all)
    with pytest.raises(
        ConfigError, match="`model=toy` has no `fine_tune=last-block`; choose none or all"
    ):
        default_config("toy", fine_tune="last-block")


class NoCluster:
    """A cluster that must not be used."""

    def __enter__(self):
        pytest.fail("the cluster was joined")

    def __exit__(self, *_):
        pass

    def connect(self):
        pytest.fail("the cluster was joined")


def test_a_cluster_takes_no_part_in_fine_tuning(drawn_dataset, tmp_path, weights):
    progress = Recorder()
    setup = TrainSetup(
        weights=str(weights),
        run_dir=tmp_path / "runs",
        cache_dir=tmp_path / "cache",
        device="cpu",
        cluster=NoCluster(),
    )
    train_model(
        drawn_dataset, default_config("toy", fine_tune="last-block"), setup, progress=progress
    )
    assert any("no features for Ray to compute" in line for line in progress.said)


def test_a_cluster_does_not_compute_features_of_changed_images(drawn_dataset, tmp_path, weights):
    setup = TrainSetup(
        weights=str(weights), run_dir=tmp_path / "runs", device="cpu", cluster=NoCluster()
    )
    with pytest.raises(ConfigError, match="`augment=flip` does not work on a cluster"):
        train_model(drawn_dataset, default_config("toy", augment="flip"), setup)


def test_fine_tuning_several_models_leaves_the_others_as_they_are():
    cnn, vgg16 = default_configs(["cnn", "vgg16"], fine_tune="last-block", backbone_lr=1e-4)
    assert (cnn.fine_tune, vgg16.fine_tune) == ("none", "last-block")
    assert (cnn.backbone_lr, vgg16.backbone_lr) == (0.0, 1e-4)


def test_mixed_precision_needs_a_device_that_computes_in_it(monkeypatch):
    config = default_config("vgg16", fine_tune="last-block")
    monkeypatch.setattr(fit, "computes_in_bf16", lambda: True)
    assert fit.mixed_precision(config, CPU) == torch.bfloat16
    assert fit.mixed_precision(default_config("cnn"), CPU) is None
    assert fit.mixed_precision(config, torch.device("cuda")) == torch.float16
    monkeypatch.setattr(fit, "computes_in_bf16", lambda: False)
    assert fit.mixed_precision(config, CPU) is None
    with pytest.raises(ConfigError, match="needs a GPU or a CPU that computes in bf16"):
        fit.mixed_precision(default_config("cnn", precision="amp"), CPU)


# ---------------------------------------------------------------------------------- the optimizer


class TwoParts(nn.Module):
    """A pretrained layer and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, samples):
        return self.head(self.backbone(samples))


def make_trainer(**changes):
    config = default_config(
        "vgg16", fine_tune="last-block", **{"epochs": 5, "batch_size": 10} | changes
    )
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(1, 40, 4, generator=generator)
    source = FeatureSource(samples, torch.arange(40) % 2, config.batch_size)
    return Trainer(
        TwoParts(),
        config,
        source,
        source,
        device=CPU,
        num_classes=2,
        train_targets=source.targets.numpy(),
    )


def test_pretrained_layers_have_their_own_learning_rate():
    trainer = make_trainer(lr=1e-2, backbone_lr=1e-4, schedule="constant")
    rates = {len(group["params"]): group["lr"] for group in trainer.optimizer.param_groups}
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-2, 1e-4]
    assert rates  # each group has the weight and the bias of its layer
    head, backbone = (group["params"] for group in trainer.optimizer.param_groups)
    assert head[0] is trainer.model.head.weight
    assert backbone[0] is trainer.model.backbone.weight


def test_learning_rates_rise_and_then_fall_to_zero():
    factors = [warm_up_and_cosine(step, 100) for step in range(100)]
    top = int(np.argmax(factors))
    assert top == 10
    assert factors[top] == 1
    assert all(np.diff(factors[: top + 1]) > 0)
    assert all(np.diff(factors[top:]) < 0)
    assert factors[0] > 0
    assert warm_up_and_cosine(100, 100) == pytest.approx(0, abs=1e-12)


def test_each_step_has_the_learning_rate_of_its_place_in_the_training():
    trainer = make_trainer(lr=1e-2, backbone_lr=1e-4)
    seen = []
    step = trainer.step

    def record(*arguments):
        seen.append([group["lr"] for group in trainer.optimizer.param_groups])
        return step(*arguments)

    trainer.step = record
    while not trainer.finished:
        list(trainer.run_epoch())
    expected = [warm_up_and_cosine(number, 20) for number in range(20)]
    np.testing.assert_allclose(seen, [[1e-2 * one, 1e-4 * one] for one in expected])


def test_the_gradient_is_clipped():
    trainer = make_trainer(clip_grad=0.01, label_smoothing=0.0)
    samples, target = next(trainer.train.batches(torch.arange(10)))
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.extend(one.grad.norm() for one in trainer.model.parameters())
    )
    trainer.step(trainer.model, samples, target)
    assert torch.stack(norms).norm() == pytest.approx(0.01, rel=1e-3)


def test_label_smoothing_is_torchs():
    trainer = make_trainer(label_smoothing=0.2, clip_grad=0.0, precision="fp32")
    samples, target = next(trainer.train.batches(torch.arange(10)))
    expected = nn.functional.cross_entropy(trainer.model(samples), target, label_smoothing=0.2)
    loss, _ = trainer.step(trainer.model, samples, target)
    torch.testing.assert_close(loss, 10 * expected.detach())


# ------------------------------------------------------------------------------------- the layers


def test_training_leaves_the_loaded_weights_as_they_were():
    preprocessing = Preprocessing(size=32)
    state = build_layers("pooled", 32)[0].state_dict()
    before = {name: one.clone() for name, one in state.items()}
    model = build_classifier(TOY, 2, preprocessing, head="pooled", state=state)
    tuned = FineTuned(
        model.backbone, model.head, frozen=model.normalized, scaling=None, dropout=0.0
    ).train()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=1.0)
    tuned(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], state[name]) for name in state)
    assert not torch.equal(
        model.backbone.state_dict()["features.0.weight"], state["features.0.weight"]
    )


def test_batch_norm_keeps_its_pretrained_statistics():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten())
    before = {name: one.clone() for name, one in layers[1].named_buffers()}
    model = FineTuned(
        layers, nn.Linear(64, 2), frozen=lambda samples: samples, scaling=None, dropout=0.5
    ).train()
    model(torch.randn(8, 3, 4, 4))
    assert all(torch.equal(before[name], one) for name, one in layers[1].named_buffers())
    assert model.head.training


# -------------------------------------------------------------------------------------- the views


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_the_first_views_are_the_image_and_its_mirror(pixels):
    assert View(0, "crop")(pixels) is pixels
    np.testing.assert_array_equal(View(1, "crop")(pixels), pixels[:, :, ::-1])


@pytest.mark.parametrize("augment", ["crop", "color"])
def test_a_view_of_an_image_does_not_depend_on_its_neighbors(pixels, augment):
    view = View(3, augment)
    together = view(pixels)
    assert not np.array_equal(together, pixels)
    for number in range(5):
        np.testing.assert_array_equal(view(pixels[number : number + 1])[0], together[number])
    assert not np.array_equal(View(4, augment)(pixels), together)


def test_each_kind_of_augmentation_includes_those_before_it():
    drawn = {
        kind: draw_changes(200, 64, kind, torch.Generator().manual_seed(0))
        for kind in ("flip", "crop", "color")
    }
    assert all(0 < one[:, 0].mean() < 1 for one in drawn.values())
    assert (drawn["flip"][:, 1:5] == torch.tensor([0.0, 0.0, 64.0, 64.0])).all()
    assert (drawn["crop"][:, 3:5] < 64).any()
    assert (drawn["crop"][:, 5:8] == 1).all()
    assert (drawn["color"][:, 5:8] != 1).any()


def test_random_views_are_drawn_only_for_training():
    views = [[torch.full((2,), 10.0 * view + image) for image in range(6)] for view in range(3)]
    source = FeatureSource(views, torch.arange(6) % 2, batch_size=4)
    (first, _), (second, _) = source.batches(torch.arange(6))
    assert torch.cat([first, second])[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    drawn = torch.cat(
        [one for one, _ in source.batches(torch.arange(6), torch.Generator().manual_seed(1))]
    )
    assert (drawn[:, 0] % 10).tolist() == [0, 1, 2, 3, 4, 5]
    assert len(set((drawn[:, 0] // 10).tolist())) > 1
    stacked = FeatureSource(torch.stack([torch.stack(view) for view in views]), source.targets, 4)
    again = torch.cat(
        [one for one, _ in stacked.batches(torch.arange(6), torch.Generator().manual_seed(1))]
    )
    torch.testing.assert_close(again, drawn)
