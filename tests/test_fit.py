import copy
import dataclasses
import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tltools.errors import ConfigError
from tltools.training import fit
from tltools.training.config import default_config
from tltools.training.features import FEW_IMAGES, choose_computation
from tltools.training.fit import Trainer, predict_source
from tltools.training.scaling import Scaling
from tltools.training.sources import FeatureSource

CPU = torch.device("cpu")


def blobs(num, *, seed=0, batch_size=16):
    """Two classes of points that a line separates."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(num) % 2
    features = torch.randn(num, 4, generator=generator) + target[:, None] * 6 - 3
    return FeatureSource(features[None], target, batch_size)


def make_trainer(**changes):
    config = default_config("cnn", **{"epochs": 5, "batch_size": 16, "lr": 0.1} | changes)
    torch.manual_seed(0)
    train = blobs(50)
    return Trainer(
        nn.Linear(4, 2),
        config,
        train,
        blobs(20, seed=1),
        device=CPU,
        num_classes=2,
        train_targets=train.targets.numpy(),
    )


def run(trainer, epochs):
    history = []
    for _ in range(epochs):
        for _ in trainer.run_epoch():
            pass
        history.append(trainer.stats)
    return history


def test_training_learns_and_is_reproducible():
    first, second = make_trainer(), make_trainer()
    losses = [stats.train_loss for stats in run(first, 5)]
    assert losses == [stats.train_loss for stats in run(second, 5)]
    assert losses[-1] < losses[0]
    assert first.stats.val_accuracy == 1.0


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    whole = make_trainer()
    run(whole, 5)
    started = make_trainer()
    run(started, 2)
    torch.save(started.state_dict(), tmp_path / "state.pt")
    resumed = make_trainer()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(resumed, 3)
    for name, tensor in whole.chosen_state().items():
        assert torch.equal(tensor, resumed.chosen_state()[name]), name


@pytest.mark.parametrize(
    ("every_s", "expected"),
    [pytest.param(float("inf"), [50], id="once"), pytest.param(0, [16, 16, 16, 2], id="steps")],
)
def test_the_loss_is_read_occasionally_and_at_the_end(monkeypatch, every_s, expected):
    monkeypatch.setattr(fit, "REPORT_EVERY_S", every_s)
    trainer = make_trainer()
    reports = list(trainer.run_epoch())
    assert [done for done, _ in reports] == expected
    assert reports[-1][1] == pytest.approx(trainer.stats.train_loss)


def test_a_restored_optimizer_is_fused_only_if_its_device_allows():
    trainer = make_trainer()
    run(trainer, 1)
    state = copy.deepcopy(trainer.state_dict())
    state["optimizer"]["param_groups"][0]["fused"] = True  # as saved on a GPU
    resumed = make_trainer()
    resumed.load_state_dict(state)
    assert resumed.optimizer.param_groups[0]["fused"] is None
    run(trainer, 1)
    run(resumed, 1)
    assert torch.equal(trainer.model.weight, resumed.model.weight)


def interrupted(trainer):
    """Stop an epoch after a step, and rewind."""
    trainer.config = dataclasses.replace(trainer.config, epochs=9)
    steps = trainer.run_epoch()
    before = trainer.model.weight.detach().clone()
    next(steps)
    assert not torch.equal(trainer.model.weight, before)
    steps.close()
    trainer.rewind()


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("lr", [0.1, 30.0], ids=["last is best", "earlier is best"])
def test_an_interrupted_epoch_leaves_no_trace(monkeypatch, tmp_path, is_saved, lr):
    monkeypatch.setattr(fit, "REPORT_EVERY_S", 0)
    whole, stopped = make_trainer(lr=lr), make_trainer(lr=lr)
    run(whole, 5)
    for _ in range(5):
        run(stopped, 1)
        if is_saved:
            torch.save(stopped.state_dict(), tmp_path / "state.pt")
            stopped.is_saved(lambda: torch.load(tmp_path / "state.pt", weights_only=True))
        interrupted(stopped)
    assert torch.equal(whole.model.weight, stopped.model.weight)
    assert whole.best_epoch == stopped.best_epoch
    for name, tensor in whole.chosen_state().items():
        assert torch.equal(tensor, stopped.chosen_state()[name]), name


def held(shape):
    """Return the tensors of a shape that exist, by the piece of memory that each takes."""
    found = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    grads = [one.grad for one in found if one.is_leaf and one.grad is not None]
    return {one.data_ptr(): one for one in (*found, *grads) if one.shape == shape}


@pytest.mark.parametrize(("is_saved", "copies"), [(True, 4), (False, 6)])
def test_a_saved_training_holds_its_weights_two_moments_and_the_best_weights_between_steps(
    tmp_path, is_saved, copies
):
    before = held((2, 4))  # of other tests: kept, so that nothing takes their memory
    trainer = make_trainer()
    trainer.train.batch_size = 10  # 50 samples leave no batch of two, which has the same shape
    most = 0
    for _ in range(3):
        for _ in trainer.run_epoch():
            most = max(most, len(held((2, 4)).keys() - before))
        if is_saved:
            torch.save(trainer.state_dict(), tmp_path / "state.pt")
            trainer.is_saved(lambda: torch.load(tmp_path / "state.pt", weights_only=True))
    assert most == copies


def test_a_short_last_batch_is_weighted_by_its_size():
    trainer = make_trainer(lr=1e-12, batch_size=16)  # 50 samples: batches of 16, 16, 16 and 2
    expected = predict_source(trainer.model, trainer.train)
    loss = F.cross_entropy(*expected).item()
    accuracy = (expected[0].argmax(1) == expected[1]).double().mean().item()
    stats = run(trainer, 1)[0]
    assert stats.train_loss == pytest.approx(loss, rel=1e-4)
    assert stats.train_accuracy == pytest.approx(accuracy)


def test_validation_runs_in_eval_mode():
    trainer = make_trainer()
    trainer.model = nn.Sequential(nn.Dropout(0.9), trainer.model)
    first = predict_source(trainer.model, trainer.val)[0]
    assert torch.equal(first, predict_source(trainer.model, trainer.val)[0])


def test_the_kept_weights_are_those_of_the_lowest_validation_loss():
    trainer = make_trainer(lr=30.0, epochs=6)  # far too large: the loss jumps about
    losses, weights = [], []
    for _ in range(6):
        losses.append(run(trainer, 1)[0].val_loss)
        weights.append(trainer.model.weight.detach().clone())
    best = int(np.argmin(losses))
    assert best != 5, "the case must have its best epoch before the last"
    assert trainer.best_epoch == best + 1
    assert torch.equal(trainer.chosen_state()["weight"], weights[best])


def test_keep_last_keeps_the_last_weights():
    trainer = make_trainer(lr=30.0, keep="last")
    run(trainer, 3)
    assert torch.equal(trainer.chosen_state()["weight"], trainer.model.weight)


def test_patience_stops_after_epochs_without_a_better_loss():
    trainer = make_trainer(epochs=100, patience=3)
    trainer.epoch, trainer.best_epoch = 10, 8
    assert not trainer.finished
    trainer.epoch = 11
    assert trainer.finished


def test_class_weights_equal_scikit_learns_balanced_ones():
    from sklearn.utils.class_weight import compute_class_weight

    targets = np.array([0] * 30 + [1] * 10)
    trainer = Trainer(
        nn.Linear(4, 2),
        default_config("cnn", class_weights=True),
        blobs(40),
        blobs(4),
        device=CPU,
        num_classes=2,
        train_targets=targets,
    )
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=targets)
    np.testing.assert_allclose(trainer.step.class_weights.numpy(), expected, rtol=1e-6)


def test_scaling_folds_into_the_head():
    torch.manual_seed(0)
    head = nn.Linear(5, 3)
    features, mean, std = torch.randn(7, 5) * 4 + 2, torch.randn(5), torch.rand(5) + 0.5
    expected = head((features - mean) / std).detach()
    Scaling(mean, std).fold_into(head)
    torch.testing.assert_close(head(features), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"epochs": 0}, "`epochs=` must be at least 1, got 0", id="epochs"),
        pytest.param({"batch_size": 0}, "`batch_size=` must be at least 1", id="batch"),
        pytest.param({"lr": -1.0}, "`lr=` must be positive, got -1", id="lr"),
        pytest.param({"lr": float("nan")}, "`lr=` must be positive, got nan", id="nan"),
        pytest.param({"weight_decay": -0.1}, "`weight_decay=` must not be negative", id="decay"),
        pytest.param({"patience": -1}, "`patience=` must not be negative", id="patience"),
        pytest.param({"seed": -1}, "`seed=` must be between", id="seed"),
        pytest.param({"head": "pooled"}, "`model=cnn` has no `head=pooled`", id="head"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        default_config("cnn", **changes)


MANY = FEW_IMAGES + 1


@pytest.mark.parametrize(
    ("requested", "on_gpu", "on_cluster", "num_images", "expected"),
    [
        ("auto", False, False, MANY, ("int8", "onnxruntime")),
        ("auto", False, False, FEW_IMAGES, ("fp32", "torch")),
        ("auto", True, False, MANY, ("fp16", "torch")),
        ("auto", True, False, 1, ("fp16", "torch")),
        ("auto", False, True, MANY, ("int8", "onnxruntime")),
        ("auto", False, True, 1, ("int8", "onnxruntime")),
        ("auto", True, True, 1, ("fp32", "onnxruntime")),
        ("fp32", True, False, MANY, ("fp32", "torch")),
        ("fp32", False, False, MANY, ("fp32", "onnxruntime")),
        ("fp32", False, False, FEW_IMAGES, ("fp32", "torch")),
        ("fp16", True, False, 1, ("fp16", "torch")),
        ("int8", False, False, 1, ("int8", "onnxruntime")),
        ("int8", True, True, 1, ("int8", "onnxruntime")),
    ],
)
def test_training_features_are_computed_as_suits_the_device_and_their_number(
    requested, on_gpu, on_cluster, num_images, expected
):
    found = choose_computation(
        requested, on_gpu=on_gpu, on_cluster=on_cluster, num_images=num_images
    )
    assert found == expected


@pytest.mark.parametrize(
    ("requested", "on_gpu", "on_cluster", "message"),
    [
        ("fp16", False, False, "fp16` needs a local GPU; use int8 or fp32 on the CPU"),
        ("fp16", True, True, "fp16` needs a local GPU.* on a cluster"),
        ("int8", True, False, "int8` needs the CPU; use fp16 or fp32 on a GPU"),
    ],
)
def test_a_precision_that_the_device_does_not_support_is_refused(
    requested, on_gpu, on_cluster, message
):
    with pytest.raises(ConfigError, match=message):
        choose_computation(requested, on_gpu=on_gpu, on_cluster=on_cluster, num_images=1)


def test_the_article_recipe_uses_the_articles_hyper_parameters():
    cnn, vgg16 = default_config("cnn", "article"), default_config("vgg16", "article")
    assert (cnn.epochs, cnn.batch_size, cnn.lr, cnn.weight_decay) == (15, 128, 1e-4, 0)
    assert (vgg16.epochs, vgg16.batch_size, vgg16.lr, vgg16.weight_decay) == (30, 128, 5e-4, 0)
    assert (cnn.keep, vgg16.keep, vgg16.standardize) == ("last", "last", False)
