"""The parts that need CUDA: `make test-gpu` runs them on a machine that has it.

They are skipped, visibly, elsewhere. What can be tested of CUDA without one is in test_device.py,
test_models.py and test_predictor.py.
"""

import ctypes
import mmap
import os
import threading
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import load_onnx, make_exports
from PIL import Image
from test_fine_tuning import changed, weights  # noqa: F401 - a fixture
from test_training import assert_same_weights

from tltools.errors import DeviceError, ParityError
from tltools.runtime import device, load_predictor
from tltools.runtime.driver import (
    PageLock,
    gpu_capability,
    gpu_memory,
    gpu_name,
    is_page_locked,
    load_driver,
    num_gpus,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def cuda():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device in PyTorch: tltools doctor says why")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from tltools.data.dataset import load_dataset

    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(40):
        name = ("dark", "bright")[index % 2]
        (folder / name).mkdir(exist_ok=True)
        noise = rng.integers(0, 90, (64, 64, 3)) + (160 if name == "bright" else 0)
        Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{index}.png")
    return load_dataset(folder, val_fraction=0.25)


@pytest.fixture(scope="module", params=["fp32", "amp"])
def run(request, dataset, tmp_path_factory):
    from tltools.training import TrainSetup, default_config, train_model

    return train_model(
        dataset,
        default_config("cnn", epochs=5, batch_size=8, lr=1e-3, precision=request.param),
        TrainSetup(device="cuda", run_dir=tmp_path_factory.mktemp("runs")),
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
    from tltools.classify import Job, run_job

    for result in make_exports(
        run.folder, ("torchscript", "onnx"), tmp_path / "exports", device="cuda"
    ):
        assert result.parity.top1_agreement == 1.0
        output = tmp_path / f"{result.card.export.format}.csv"
        inputs = [Path(dataset.frame["path"][0]).parents[1]]
        summary = run_job(Job(result.path, inputs, output, device="cuda"))
        assert summary.choice.device == "cuda"
        assert summary.num_failed == 0
        if result.path.suffix == ".onnx":
            assert summary.provider == "CUDAExecutionProvider"
            assert summary.placement["CUDAExecutionProvider"] > 0


def test_frozen_features_are_the_same_on_the_gpu(dataset, tmp_path):
    import torch

    from tltools.backbones.cnn import CNN
    from tltools.card import Preprocessing
    from tltools.training.features import Extraction, FeatureCache, extract
    from tltools.training.models import build_classifier

    preprocessing = Preprocessing(size=32)
    torch.manual_seed(0)
    model = build_classifier(CNN, 2, preprocessing)
    features = [
        extract(
            [Path(path) for path in dataset.frame["path"]],
            list(dataset.frame["sha256"]),
            Extraction(
                model=model,
                preprocessing=preprocessing,
                cache=FeatureCache(
                    tmp_path / device,
                    weights_sha256="0",
                    head="pooled",
                    preprocessing=preprocessing,
                ),
                device=torch.device(device),
                runtime=runtime,
            ),
        )
        for device, runtime in (("cpu", "onnxruntime"), ("cuda", "torch"))
    ]
    torch.testing.assert_close(
        torch.stack(features[0]), torch.stack(features[1]), atol=1e-3, rtol=0
    )


# ------------------------------------------------------------------------------------ the driver


def test_the_driver_and_pytorch_agree_about_every_gpu():
    import torch

    assert num_gpus() == torch.cuda.device_count()
    for gpu in range(num_gpus()):
        assert gpu_name(gpu) == torch.cuda.get_device_name(gpu)
        assert gpu_capability(gpu) == torch.cuda.get_device_capability(gpu)
        free, total = gpu_memory(gpu)
        assert 0 < free <= total
        assert total == torch.cuda.mem_get_info(gpu)[1]


def test_doctor_lists_gpus_by_the_index_that_selects_them():
    from tltools import doctor

    for gpu in range(num_gpus()):
        check = doctor._gpu(gpu)
        assert (check.name, check.status) == (f"GPU {gpu}, --device cuda:{gpu}", "ok")
        assert check.detail.startswith(gpu_name(gpu))


@pytest.fixture
def shared_memory():
    """A shareable mapping of 8 MiB; uint8 (N,)."""
    number = os.memfd_create("test")
    os.ftruncate(number, 2**23)
    mapping = mmap.mmap(number, 2**23)
    os.close(number)
    return np.frombuffer(mapping, dtype=np.uint8)


def test_shared_memory_is_page_locked_until_it_is_released(shared_memory):
    assert not is_page_locked(shared_memory)
    lock = PageLock(shared_memory)
    assert is_page_locked(shared_memory)
    assert is_page_locked(shared_memory[5_000_000:])
    with pytest.raises(DeviceError, match=r"failed in cuMemHostRegister_v2: CUDA_ERROR_.*, "):
        PageLock(shared_memory)
    lock.release()
    lock.release()
    assert not is_page_locked(shared_memory)
    with PageLock(shared_memory):
        assert is_page_locked(shared_memory)
    assert not is_page_locked(shared_memory)


def test_a_page_lock_outlives_its_session(onnx_path, shared_memory):
    predictor = load_predictor(onnx_path, device="cuda")
    lock = predictor.lock_pages(shared_memory)
    assert lock is not None
    del predictor
    assert is_page_locked(shared_memory)
    lock.release()


# ------------------------------------------------------------------------------------ predictors


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request, run, tmp_path_factory):
    """An export verified only on the CPU, as on a machine without a GPU."""

    folder = tmp_path_factory.mktemp("exported")
    (result,) = make_exports(
        run.folder, ["onnx"], folder, precisions=(request.param,), device="cpu"
    )
    return result


def batches_in(memory, num, size=224):
    """Batches of different images, as views of the given memory."""
    rng = np.random.default_rng(0)
    shape = (8, size, size, 3)
    length = int(np.prod(shape))
    views = [memory[index * length :][:length].reshape(shape) for index in range(num)]
    for view in views:
        brightness = rng.integers(20, 257, (len(view), 1, 1, 1))
        view[:] = rng.integers(0, brightness, shape)
    return views


def test_concurrent_calls_from_locked_memory_return_the_same_as_plain_calls(
    exported, shared_memory
):
    predictor = load_predictor(exported.path, device="cuda")
    batches = batches_in(shared_memory, 4)
    plain = [predictor(batch.copy()) for batch in batches]
    results = {}

    def work(number):
        results[number] = [predictor(batches[number]) for _ in range(50)]

    with predictor.lock_pages(shared_memory):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == [0, 1, 2, 3]
    for number, answers in results.items():
        for logits in answers:
            np.testing.assert_allclose(logits, plain[number], atol=1e-3)
    assert np.ptp(plain, axis=0).max() > 0.05  # else the answers could be another batch's


def test_refilled_memory_gives_new_results(exported, shared_memory):
    predictor = load_predictor(exported.path, device="cuda")
    (batch,) = batches_in(shared_memory, 1)
    with predictor.lock_pages(shared_memory):
        for value in (0, 250, 90):
            batch[:] = value
            expected = predictor(np.full_like(batch, value))
            np.testing.assert_allclose(predictor(batch), expected, atol=1e-3)


@pytest.mark.parametrize("options", [{"nhwc": True}, {"tf32": True}, {"nhwc": True, "tf32": True}])
def test_layout_and_tf32_change_the_logits_only_slightly(exported, options, shared_memory):
    (batch,) = batches_in(shared_memory, 1)
    expected = load_predictor(exported.path, device="cpu")(batch)
    predictor = load_predictor(exported.path, device="cuda", **options)
    assert predictor.layout == ("nhwc" if "nhwc" in options else "nchw")
    assert predictor.tf32 == ("tf32" in options)
    assert predictor.choice.reason.endswith(", TF32") == predictor.tf32
    assert np.abs(predictor(batch) - expected).max() < 0.02 * max(1.0, np.ptp(expected))


def test_an_fp16_export_is_self_tested_when_a_gpu_first_opens_it(exported, tmp_path):
    import onnx
    from onnx import numpy_helper

    facts = exported.card.export
    if facts.precision != "fp16":
        pytest.skip("about fp16")
    assert facts.fp16_exercised is False
    load_predictor(exported.path, device="cuda")
    model = load_onnx(exported.path)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    tensor = next(one for one in model.graph.initializer if one.name == gemm.input[1])
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * 1.5).astype(values.dtype), tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ParityError, match="fails its self-test with CUDAExecutionProvider"):
        load_predictor(tmp_path / "changed.onnx", device="cuda")


def test_a_gpu_is_selected_by_its_index(exported, shared_memory):
    (batch,) = batches_in(shared_memory, 1)
    last = num_gpus() - 1
    predictor = load_predictor(exported.path, device=f"cuda:{last}")
    assert predictor.choice.gpu == last
    assert predictor.choice.name == device.torch_device(f"cuda:{last}").name == f"cuda:{last}"
    both = load_predictor(exported.path, device="cuda", gpu=last)
    np.testing.assert_allclose(predictor(batch), both(batch), atol=1e-3)
    assert device.chosen_gpus("auto") == tuple(range(num_gpus()))
    for open_it in (lambda name: load_predictor(exported.path, device=name), device.torch_device):
        with pytest.raises(DeviceError, match=rf"GPU {last + 1} does not exist: this process sees"):
            open_it(f"cuda:{last + 1}")


# ---------------------------------------------------------------------------------------- export


def test_exports_are_verified_on_both_devices_and_the_card_says_so(run, tmp_path):

    found = {
        result.facts.precision: result.facts
        for result in make_exports(
            run.folder, ["onnx"], tmp_path, precisions=("fp32", "fp16", "int8")
        )
    }
    for precision, providers in (
        ("fp32", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("fp16", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("int8", ["CPUExecutionProvider"]),
    ):
        assert [one.provider for one in found[precision].verified] == providers
        assert found[precision].parity == found[precision].verified[0].parity
    assert found["fp16"].fp16_exercised is True
    on_gpu, on_cpu = (one.parity.max_abs_logit_diff for one in found["fp16"].verified)
    assert on_gpu != on_cpu  # the CPU computes fp16 in fp32


def test_torchscript_in_fp16_is_verified_only_on_the_gpu(run, tmp_path):

    (result,) = make_exports(run.folder, ["torchscript"], tmp_path, precisions=("fp16",))
    assert result.path.name.endswith(".fp16.pt")
    (verified,) = result.facts.verified
    assert (verified.device, verified.provider) == ("cuda", "torch")
    assert result.facts.fp16_exercised is True
    assert verified.parity.max_abs_logit_diff > 1e-6  # else it was computed in fp32
    logits = load_predictor(result.path, device="cuda")(np.zeros((3, 224, 224, 3), np.uint8))
    assert (logits.dtype, logits.shape) == (np.float32, (3, 2))


def test_calibration_ranges_are_the_same_when_computed_on_the_gpu(run, tmp_path, monkeypatch):
    import onnx

    from tltools.export.folding import fold
    from tltools.graphs import precision
    from tltools.graphs.onnx_file import write_module
    from tltools.training import load_run

    model, card = load_run(run.folder)
    write_module(
        fold(model),
        tmp_path / "source.onnx",
        size=card.preprocessing.size,
        output="logits",
        metadata={},
    )
    source = precision._load(tmp_path / "source.onnx")
    assert isinstance(source, onnx.ModelProto)
    images = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
    sessions = []

    def open_session(*args, **options):
        sessions.append(device.open_session(*args, **options))
        return sessions[-1]

    monkeypatch.setattr(precision, "open_session", open_session)
    on_cpu, on_gpu = (
        precision.activation_ranges(source, [images], device=name) for name in ("cpu", "cuda")
    )
    assert list(on_cpu) == list(on_gpu)
    np.testing.assert_allclose(list(on_gpu.values()), list(on_cpu.values()), rtol=1e-3, atol=1e-3)
    stranded = {
        op
        for provider, op in device._assigned_nodes(sessions[-1][0])
        if provider == device.CPU_PROVIDER and op.startswith("Reduce")
    }
    assert stranded == set()  # or all activations would be copied to the CPU


def train_cnn(dataset, folder, **changes):
    from safetensors.torch import load_file

    from tltools.training import TrainSetup, default_config, train_model

    settings = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "augment": "color"} | changes
    run = train_model(
        dataset, default_config("cnn", **settings), TrainSetup(device="cuda", run_dir=folder)
    )
    return run, load_file(run.folder / "checkpoint.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_the_same_seed_gives_the_same_weights_on_the_gpu(dataset, tmp_path, precision):
    import torch

    _, first = train_cnn(dataset, tmp_path, precision=precision)
    _, second = train_cnn(dataset, tmp_path, precision=precision)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_images_in_host_memory_give_the_same_weights_as_images_on_the_gpu(
    dataset, tmp_path, monkeypatch
):
    import torch

    from tltools.training import decoded

    _, on_gpu = train_cnn(dataset, tmp_path)
    monkeypatch.setattr(decoded, "free_gpu_memory", lambda _: 0)
    _, in_memory = train_cnn(dataset, tmp_path)
    for name, tensor in on_gpu.items():
        assert torch.equal(tensor, in_memory[name]), name


def test_a_run_from_the_gpu_resumes_on_the_cpu_and_on_the_gpu(dataset, tmp_path):
    from tltools.training import TrainSetup, resume_run

    run, _ = train_cnn(dataset, tmp_path, epochs=1)
    resume_run(run.folder, TrainSetup(device="cpu"), epochs=2)
    resumed = resume_run(run.folder, TrainSetup(device="cuda"), epochs=3)
    assert [stats.epoch for stats in resumed.history] == [1, 2, 3]


@contextmanager
def syncs_are_errors():
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the mode is a prototype
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("amp", [True, False])
def test_no_training_step_waits_for_the_gpu(on_gpu, amp):
    import torch

    from tltools.backbones.cnn import CNN
    from tltools.card import Preprocessing
    from tltools.training import default_config
    from tltools.training.fit import Trainer
    from tltools.training.models import build_classifier
    from tltools.training.sources import ImageSource

    device = torch.device("cuda")
    images = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8)
    targets = torch.arange(40) % 2
    samples = images.to(device) if on_gpu else images
    source = ImageSource(samples, targets, 8, device, augment="color")
    model = build_classifier(CNN, 2, Preprocessing(size=32)).to(device).train()
    config = default_config("cnn", precision="amp" if amp else "fp32")
    trainer = Trainer(
        model, config, source, source, device=device, num_classes=2, train_targets=targets.numpy()
    )
    batches = source.batches(torch.arange(40), torch.Generator().manual_seed(0))
    trainer.step(model, *next(batches))  # libraries start
    with syncs_are_errors():
        losses = [trainer.step(model, inputs, target)[0] for inputs, target in batches]
    assert len(losses) == 4
    assert all(loss.isfinite() for loss in losses)


def test_the_gpu_augments_like_the_cpu():
    import torch

    from tltools.training.augment import apply_changes, draw_changes

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 224, 224, 3), dtype=torch.uint8, generator=generator)
    changes = draw_changes(16, 224, "color", generator)
    on_cpu = apply_changes(images, changes).short()
    on_gpu = apply_changes(images.cuda(), changes.cuda()).cpu().short()
    difference = (on_cpu - on_gpu).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


def test_on_the_gpu_training_features_are_fp16_and_others_fp32(
    dataset, tmp_path, vgg16_file, monkeypatch
):
    import torch

    from tltools.training import TrainSetup, default_config, prepare, train_model
    from tltools.training.features import FeatureCache, extract

    seen = []

    def record(paths, hashes, settings, *, progress):
        rows = extract(paths, hashes, settings, progress=progress)
        cache = FeatureCache(
            tmp_path / "exact",
            weights_sha256="0",
            head="pooled",
            preprocessing=settings.preprocessing,
        )
        exactly = replace(settings, precision="fp32", cache=cache)
        exact = torch.stack(extract(paths, hashes, exactly)).numpy()
        error = np.linalg.norm(torch.stack(rows).numpy() - exact, axis=1)
        seen.append((settings.precision, (error / np.linalg.norm(exact, axis=1)).max()))
        return rows

    monkeypatch.setattr(prepare, "extract", record)
    train_model(
        dataset,
        default_config("vgg16", epochs=2),
        TrainSetup(
            weights=str(vgg16_file),
            device="cuda",
            run_dir=tmp_path / "runs",
            cache_dir=tmp_path / "cache",
        ),
    )
    (train_precision, train_error), (val_precision, val_error) = seen
    assert (train_precision, val_precision) == ("fp16", "fp32")
    assert 0 < train_error < 0.02
    assert val_error < 1e-5


def test_memory_cached_by_pytorch_counts_as_free():
    import torch

    from tltools.runtime.device import free_gpu_memory

    device = torch.device("cuda")
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    used = free_gpu_memory(device)
    del held  # torch keeps it
    assert free_gpu_memory(device) - used == pytest.approx(2**28, rel=0.1)


def test_bench_measures_the_gpus_memory_and_its_peak(run, dataset, tmp_path):
    from tltools.bench import BenchSettings, bench_inputs, run_bench

    exports = [
        result.path
        for precision in ("fp32", "fp16")
        for result in make_exports(
            run.folder, ("onnx",), tmp_path / "exports", precisions=(precision,), device="cuda"
        )
    ]
    inputs = bench_inputs([run.folder, *exports], dataset, tf32=True)
    settings = BenchSettings(device="cuda", batch_sizes=(1, 64), rounds=1, iterations=5)
    report = run_bench(inputs, settings)
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


def test_the_driver_reports_the_memory_that_a_process_uses():
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


def test_threads_sleep_while_they_wait_for_the_gpu(exported):
    from tltools.runtime import open_model

    open_model(exported.path, device="cuda", batch_size=4)
    driver = load_driver()
    flags, is_active = ctypes.c_uint(), ctypes.c_int()
    assert not driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(is_active))
    assert is_active.value
    assert flags.value & 7 == 4  # CU_CTX_SCHED_BLOCKING_SYNC


# ----------------------------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize("fine_tune", ["last-block", "all"])
def test_fine_tuning_on_the_gpu_changes_the_layers_that_it_should(
    drawn_dataset,
    tmp_path,
    weights,  # noqa: F811
    fine_tune,
):
    from safetensors.torch import load_file

    from tltools.evaluate import evaluate
    from tltools.training import TrainSetup, default_config, train_model
    from tltools.training.run import open_run

    def train(name):
        setup = TrainSetup(weights=str(weights), run_dir=tmp_path / name, device="cuda")
        return train_model(drawn_dataset, default_config("toy", fine_tune=fine_tune), setup)

    run = train("first")
    expected = set(load_file(weights))
    if fine_tune == "last-block":
        expected = {"features.6.weight", "features.6.bias"}
    assert changed(run, weights) == expected
    assert_same_weights(run, train("again"))
    found = evaluate(open_run(run.folder, device="cuda"), drawn_dataset, split="val")
    assert found.score == run.card.metrics["val"]
