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


def test_bench_knows_the_gpus_memory_and_its_peak(run, dataset, tmp_path):
    from tltools.artifacts import bench_inputs, open_predictor
    from tltools.bench import run_bench
    from tltools.classify import open_model
    from tltools.export import export_run

    exports = [
        result.path
        for precision in ("fp32", "fp16")
        for result in export_run(
            run.folder, ("onnx",), tmp_path / "exports", precisions=(precision,), device="cuda"
        )
    ]
    inputs = bench_inputs([run.folder, *exports], dataset, tf32=True)
    report = run_bench(
        inputs.candidates,
        open_predictor=open_predictor,
        open_model=open_model,
        pictures=inputs.pictures,
        targets=inputs.targets,
        device="cuda",
        batch_sizes=(1, 64),
        rounds=1,
        runs=5,
    )
    assert [row.reason for row in report.rows] == [""] * 4
    rows = {f"{row.format} {row.precision}": row for row in report.rows}
    assert set(rows) == {"eager fp32", "onnx fp32", "onnx tf32", "onnx fp16"}
    peaks = report.peak_flops_per_s
    assert peaks["fp16"] > peaks["tf32"] > peaks["fp32"] > 1e12
    for row in rows.values():
        # 64 images of 224 x 224 x 3 in fp32 alone are 38.5 MB.
        assert row.peak_gpu_bytes is not None
        assert 38e6 < row.peak_gpu_bytes < 8e9
        if row.format == "eager":
            continue
        assert row.flops_per_image == 32_212_992
        assert row.peak_share is not None
        assert 0 < row.peak_share < 1
    assert rows["onnx tf32"].agreement == 1.0
    assert "GPU MB" in report.to_markdown()


def test_the_driver_tells_what_a_process_has_taken():
    import torch

    from tltools.bench.gpu import GpuMemory, uses_gpu

    assert uses_gpu("auto")
    assert not uses_gpu("cpu")
    watch = GpuMemory()
    block = torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda")
    watch.look()
    del block
    torch.cuda.empty_cache()
    watch.look()
    # The driver gives whole pages; what torch loads for itself comes on top.
    assert 512 * 2**20 <= watch.peak_bytes < 1500 * 2**20
