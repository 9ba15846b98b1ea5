"""The parts that need CUDA: `make test-gpu` runs them on a machine that has it.

They are skipped, visibly, elsewhere. What can be tested of CUDA without one is in test_device.py,
test_models.py and test_predictor.py.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def cuda():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device in PyTorch: tltools doctor says why")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from tltools.data.dataset import load_dataset

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(40):
        name = ("dark", "bright")[index % 2]
        (folder / name).mkdir(exist_ok=True)
        noise = rng.integers(0, 90, (64, 64, 3)) + (160 if name == "bright" else 0)
        Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{index}.png")
    return load_dataset(folder, val_fraction=0.25)


@pytest.fixture(scope="module", params=["fp32", "amp"])
def run(request, dataset, tmp_path_factory):
    from tltools.training import default_config, train_model

    return train_model(
        dataset,
        default_config("cnn", epochs=5, batch_size=8, lr=1e-3, precision=request.param),
        device="cuda",
        run_dir=tmp_path_factory.mktemp("runs"),
    )


def test_training_learns_on_the_gpu(run):
    assert run.card.metrics["val"].accuracy == 1.0
    assert run.history[-1].train_loss < run.history[0].train_loss


def test_the_gpu_and_the_cpu_give_the_same_labels(run, dataset):
    from tltools.evaluate import predict
    from tltools.training import open_run

    paths = [Path(path) for path in dataset.frame["path"]]
    on_cpu = predict(open_run(run.folder, device="cpu"), paths)
    on_gpu = predict(open_run(run.folder, device="cuda"), paths)
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-3)
    np.testing.assert_array_equal(on_gpu.argmax(axis=1), on_cpu.argmax(axis=1))


def test_exports_are_verified_and_classify_on_the_gpu(run, dataset, tmp_path):
    from tltools.classify import run_job
    from tltools.export import export_run

    for result in export_run(
        run.folder, ("torchscript", "onnx"), tmp_path / "exports", device="cuda"
    ):
        assert result.parity.top1_agreement == 1.0
        output = tmp_path / f"{result.card.export.format}.csv"
        inputs = [Path(dataset.frame["path"][0]).parents[1]]
        summary = run_job(result.path, inputs, output, device="cuda")
        assert summary.choice.device == "cuda"
        assert summary.num_failed == 0
        if result.path.suffix == ".onnx":
            assert summary.provider == "CUDAExecutionProvider"
            assert summary.placement["CUDAExecutionProvider"] > 0


def test_frozen_features_are_the_same_on_the_gpu(dataset, tmp_path):
    import torch

    from tltools.card import Preprocessing
    from tltools.training.features import FeatureCache, extract_features
    from tltools.training.models import build_cnn

    preprocessing = Preprocessing(size=32)
    torch.manual_seed(0)
    model = build_cnn(2, preprocessing)
    features = [
        extract_features(
            model,
            [Path(path) for path in dataset.frame["path"]],
            list(dataset.frame["sha256"]),
            preprocessing=preprocessing,
            cache=FeatureCache(
                tmp_path / device, weights_sha256="0", head="pooled", preprocessing=preprocessing
            ),
            device=torch.device(device),
        )
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(features[0], features[1], atol=1e-3)


def train_cnn(dataset, folder, **changes):
    from safetensors.torch import load_file

    from tltools.training import default_config, train_model

    settings = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "augment": True} | changes
    run = train_model(dataset, default_config("cnn", **settings), device="cuda", run_dir=folder)
    return run, load_file(run.folder / "checkpoint.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_the_same_seed_gives_the_same_weights_on_the_gpu(dataset, tmp_path, precision):
    import torch

    _, first = train_cnn(dataset, tmp_path, precision=precision)
    _, second = train_cnn(dataset, tmp_path, precision=precision)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_images_beside_the_gpu_give_the_same_weights_as_images_on_it(
    dataset, tmp_path, monkeypatch
):
    import torch

    from tltools.training import decoded

    _, on_gpu = train_cnn(dataset, tmp_path)
    monkeypatch.setattr(decoded, "free_gpu_memory", lambda _: 0)
    _, in_memory = train_cnn(dataset, tmp_path)
    for name, tensor in on_gpu.items():
        assert torch.equal(tensor, in_memory[name]), name


def test_a_run_of_the_gpu_resumes_on_the_cpu_and_on_the_gpu(dataset, tmp_path):
    from tltools.training import resume_run

    run, _ = train_cnn(dataset, tmp_path, epochs=1)
    resume_run(run.folder, epochs=2, device="cpu")
    resumed = resume_run(run.folder, epochs=3, device="cuda")
    assert [stats.epoch for stats in resumed.history] == [1, 2, 3]


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("amp", [True, False])
def test_no_step_waits_for_the_gpu(on_gpu, amp):
    import torch

    from tltools.card import Preprocessing
    from tltools.training.config import TrainConfig
    from tltools.training.fit import Trainer, train_step
    from tltools.training.models import build_cnn
    from tltools.training.sources import Source

    device = torch.device("cuda")
    images = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8)
    targets = torch.arange(40) % 2
    source = Source(images.to(device) if on_gpu else images, targets, 8, device)
    model = build_cnn(2, Preprocessing(size=32)).to(device).train()
    config = TrainConfig(precision="amp" if amp else "fp32")
    trainer = Trainer(
        model, config, source, source, device=device, num_classes=2, train_targets=targets.numpy()
    )
    batches = source.batches(torch.arange(40), augment=torch.Generator().manual_seed(0))
    train_step(model, trainer.optimizer, trainer.scaler, *next(batches))  # libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [
            train_step(model, trainer.optimizer, trainer.scaler, inputs, target)[0]
            for inputs, target in batches
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(losses) == 4
    assert all(loss.isfinite() for loss in losses)


def test_the_gpu_augments_as_the_cpu_does():
    import torch

    from tltools.training.augment import apply_changes, draw_changes

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 224, 224, 3), dtype=torch.uint8, generator=generator)
    changes = draw_changes(16, 224, generator)
    on_cpu = apply_changes(images, changes).short()
    on_gpu = apply_changes(images.cuda(), changes.cuda()).cpu().short()
    difference = (on_cpu - on_gpu).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


def test_training_features_are_fp16_and_others_fp32_on_the_gpu(
    dataset, tmp_path, vgg16_file, monkeypatch
):
    from tltools.training import default_config, train_model
    from tltools.training import train as train_module
    from tltools.training.features import FeatureCache, extract_features

    seen = []

    def record(model, paths, hashes, **options):
        features = extract_features(model, paths, hashes, **options)
        cache = FeatureCache(
            tmp_path / "exact",
            weights_sha256="0",
            head="pooled",
            preprocessing=options["preprocessing"],
        )
        exact = extract_features(
            model, paths, hashes, **options | {"precision": "fp32", "cache": cache}
        )
        error = np.linalg.norm(features - exact, axis=1) / np.linalg.norm(exact, axis=1)
        seen.append((options["precision"], error.max()))
        return features

    monkeypatch.setattr(train_module, "extract_features", record)
    train_model(
        dataset,
        default_config("vgg16", epochs=2),
        weights=str(vgg16_file),
        device="cuda",
        run_dir=tmp_path / "runs",
        cache_dir=tmp_path / "cache",
    )
    (train_precision, train_error), (val_precision, val_error) = seen
    assert (train_precision, val_precision) == ("fp16", "fp32")
    assert 0 < train_error < 0.02
    assert val_error < 1e-5


def test_memory_that_pytorch_holds_counts_as_free():
    import torch

    from tltools.runtime.device import free_gpu_memory

    device = torch.device("cuda")
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    used = free_gpu_memory(device)
    del held  # torch keeps it
    assert free_gpu_memory(device) - used == pytest.approx(2**28, rel=0.1)
