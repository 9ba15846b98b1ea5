import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE, color_logits
from PIL import Image

from tltools.card import Preprocessing
from tltools.data.image_ref import ImageRef
from tltools.data.images import load_image
from tltools.errors import ArtifactError, ConfigError, DataError, DeviceError
from tltools.processes import ForkServer
from tltools.runtime import Plan, default_threads, load_predictor, open_model, pipeline, workers
from tltools.runtime.device import DeviceChoice
from tltools.runtime.pipeline import PredictorPool, decode_batches, run_images


class FakeGpu:
    """A predictor that claims to be on a GPU, and records the shapes of its inputs."""

    device = "gpu"
    provider = "FakeProvider"
    threads = 1
    layout = "nchw"
    tf32 = False
    gives_distances = False

    def __init__(self, predictor, reason="fake"):
        self.card = predictor.card
        self.choice = DeviceChoice("cuda", reason)
        self.placement = {"FakeProvider": 4}
        self.shapes = []
        self.batches = []
        self._predictor = predictor

    def __call__(self, images):
        self.shapes.append(images.shape)
        return self._predictor(images)

    def lock_pages(self, memory):
        return None

    def new_batch(self, num_images):
        self.batches.append(np.empty(self.card.preprocessing.shape(num_images), np.uint8))
        return self.batches[-1]


@pytest.fixture(scope="module")
def predictor(onnx_path):
    return load_predictor(onnx_path, device="cpu", threads=1)


def run(model, files, plan):
    """Return each image's logits, or its error."""
    outcomes = []
    for outputs in run_images(
        model,
        iter(files),
        preprocessing=model.card.preprocessing,
        plan=plan,
        finish=lambda outputs: outputs,
    ):
        values = iter(outputs.values)
        outcomes += [error or next(values) for error in outputs.errors]
        assert next(values, None) is None
    return outcomes


def logits_by_hand(path):
    return color_logits(load_image(path, Preprocessing(size=SIZE, resize="squash"))[None])[0]


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("missing", [[], [0], [3, 4, 29], range(30)], ids=str)
def test_a_gpu_gets_batches_of_one_shape_from_reused_buffers(predictor, images, missing, sessions):
    files = [ImageRef.of_file(path) for path in sorted(images.rglob("*.png"))]
    for index in missing:
        Path(files[index].place).write_bytes(b"")
    gpu = FakeGpu(predictor)
    outcomes = run(gpu, files * 5, Plan("ahead", 2, 8, sessions))
    assert set(gpu.shapes) <= {(8, SIZE, SIZE, 3)}
    assert len(gpu.batches) <= sessions + 5  # of 19 batches
    assert len(outcomes) == 150
    for index, outcome in enumerate(outcomes):
        if index % 30 in missing:
            assert "it is empty" in str(outcome)
        else:
            np.testing.assert_allclose(outcome, logits_by_hand(files[index % 30].place), atol=1e-4)


def test_a_pool_runs_on_all_its_gpus_at_once(predictor, images):
    """Each waits for the others, so that one alone would never return."""
    together = threading.Barrier(3, timeout=10)

    class Waiting(FakeGpu):
        def __call__(self, batch):
            together.wait()
            return super().__call__(batch)

    gpus = [Waiting(predictor, f"gpu {number}") for number in range(3)]
    pool = PredictorPool(gpus)
    files = [ImageRef.of_file(path) for path in sorted(images.rglob("*.png"))]
    outcomes = run(pool, files[:24], Plan("ahead", 2, 8, sessions=3))
    for file, outcome in zip(files, outcomes, strict=False):
        np.testing.assert_allclose(outcome, logits_by_hand(file.place), atol=1e-4)
    assert [len(gpu.shapes) for gpu in gpus] == [1, 1, 1]
    assert pool.choice == DeviceChoice("cuda", "gpu 0, on each of 3 GPUs")


def test_a_pool_continues_after_a_failure(predictor):
    class Failing(FakeGpu):
        def __call__(self, images):
            raise DeviceError("out of memory")

    pool = PredictorPool([Failing(predictor)])
    images = pool.new_batch(2)
    for _ in range(2):  # the second would wait for ever if the first had kept the GPU
        with pytest.raises(DeviceError, match="out of memory"):
            pool(images)


@pytest.mark.parametrize(("task_s", "largest"), [(10.0, pipeline.FUSED_TASK), (0.0, 1)], ids=str)
def test_a_worker_gets_fewer_images_at_once_if_they_are_slow(
    predictor, images, monkeypatch, task_s, largest
):
    monkeypatch.setattr(pipeline, "FUSED_TASK_S", task_s)
    files = [ImageRef.of_file(path, name=path.name) for path in sorted(images.rglob("*.png"))] * 8
    launcher = ForkServer(preload=workers.PRELOAD)
    tasks = run_images(
        predictor,
        iter(files),
        preprocessing=predictor.card.preprocessing,
        plan=Plan("fused", 2, 1),
        finish=count,
        launcher=launcher,
    )
    found = list(tasks)
    launcher.close()
    assert sum(found) == len(files)
    assert max(found) == largest


def count(outputs):
    return len(outputs.images)


@pytest.mark.parametrize("task_s", [0.0, 10.0])
def test_batches_do_not_depend_on_timing(predictor, images, monkeypatch, task_s):
    """A resumed job, which runs at another pace, has the same images in a batch."""
    files = [ImageRef.of_file(path) for path in sorted(images.rglob("*.png"))]
    for index in (0, 5, 6):
        Path(files[index].place).write_bytes(b"")
    monkeypatch.setattr(pipeline, "FUSED_TASK_S", task_s)
    model = FakeGpu(predictor)
    run(model, files, Plan("fused", 1, 4))
    assert [shape[0] for shape in model.shapes] == [3, 2, 4, 4, 4, 4, 4, 2]


# -------------------------------------------------------------------------------- open_model


def test_a_cheap_model_runs_in_the_decoding_threads(onnx_path):
    predictor, plan = open_model(onnx_path, device="cpu")
    assert plan == Plan("fused", default_threads(), pipeline.FUSED_BATCH)
    assert predictor.threads == 1


def test_an_expensive_model_gets_all_cores(onnx_path, monkeypatch):
    monkeypatch.setattr(pipeline, "forward_s", lambda _predictor: 0.5)
    predictor, plan = open_model(onnx_path, device="cpu")
    assert plan == Plan("ahead", default_threads(), pipeline.CPU_BATCH)
    assert predictor.threads == default_threads()


def test_a_large_model_is_opened_once(onnx_path, monkeypatch):
    opened = []

    def load(path, **options):
        opened.append(options)
        return load_predictor(path, **options)

    monkeypatch.setattr(pipeline, "SMALL_BYTES", 10)
    monkeypatch.setattr(pipeline, "load_predictor", load)
    _, plan = open_model(onnx_path, device="cpu")
    assert plan.name == "ahead"
    assert [options["threads"] for options in opened] == [None]


@pytest.mark.parametrize("gpus", [(0,), (0, 1, 2, 3), (2, 1)], ids=str)
def test_every_gpu_gets_a_warmed_up_session(onnx_path, predictor, monkeypatch, gpus):
    opened = {}

    def load(_path, *, device, gpu, nhwc=False, **_options):
        assert device == "auto"
        opened[gpu] = FakeGpu(predictor)
        return opened[gpu]

    monkeypatch.setattr(pipeline, "load_predictor", load)
    monkeypatch.setattr(pipeline, "chosen_gpus", lambda _device: gpus)
    model, plan = open_model(onnx_path, batch_size=5)
    assert plan == Plan("ahead", default_threads(), 5, sessions=2 * len(gpus))
    assert tuple(opened) == gpus
    assert all(gpu.shapes == [(5, SIZE, SIZE, 3)] for gpu in opened.values())
    assert isinstance(model, PredictorPool)


class Timed(FakeGpu):
    """A GPU whose calls take a given time by the pipeline's clock."""

    def __init__(self, predictor, clock, seconds, most=1000):
        super().__init__(predictor)
        self._clock, self._seconds, self._most = clock, seconds, most

    def __call__(self, images):
        if len(images) > self._most:
            raise DeviceError("out of memory")
        self._clock.now += self._seconds(len(images))
        return super().__call__(images)


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "most", "best"),
    [
        (lambda n: 0.01 + n * 1e-9, 1000, 256),
        (lambda n: n * 0.001, 1000, 64),
        (lambda n: 0.001 + n * 0.001, 1000, 64),
        (lambda n: 0.01 + n * 0.001, 1000, 256),
        (lambda n: 0.01 + n * 0.001, 100, 64),
    ],
)
def test_the_smallest_batch_size_nearly_as_fast_as_the_best_is_chosen(
    predictor, monkeypatch, seconds, most, best
):
    clock = Clock()
    monkeypatch.setattr(pipeline.time, "perf_counter", clock.perf_counter)
    assert pipeline.fastest_batch(Timed(predictor, clock, seconds, most))[0] == best


def test_a_gpu_without_memory_for_any_batch_is_an_error(predictor):
    with pytest.raises(DeviceError, match="out of memory"):
        pipeline.fastest_batch(Timed(predictor, Clock(), float, most=1))


def test_the_users_settings_are_kept(onnx_path, monkeypatch):
    _, plan = open_model(onnx_path, device="cpu", batch_size=5, workers=3)
    assert plan == Plan("fused", 3, 5)
    monkeypatch.setattr(pipeline, "SMALL_BYTES", 0)
    _, plan = open_model(onnx_path, device="cpu", batch_size=5, workers=3)
    assert plan == Plan("ahead", 3, 5)


def test_the_users_threads_are_kept(onnx_path):
    predictor, plan = open_model(onnx_path, device="cpu", threads=1)
    assert (predictor.threads, plan.name) == (1, "fused")
    predictor, plan = open_model(onnx_path, device="cpu", threads=3)
    assert (predictor.threads, plan.name) == (3, "ahead")


@pytest.mark.parametrize("flag", ["batch_size", "workers", "threads"])
def test_numbers_below_one_are_refused(onnx_path, flag):
    with pytest.raises(ConfigError, match=f"`{flag}=` must be at least 1, got 0"):
        open_model(onnx_path, **{flag: 0})


def test_a_missing_model_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        open_model(tmp_path / "none.onnx")


# ---------------------------------------------------------------------------- decoding alone

SMALL = Preprocessing(size=8)


@pytest.fixture
def numbered(tmp_path):
    """21 images whose red value is their number."""
    paths = [tmp_path / f"{number}.png" for number in range(21)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return paths


@pytest.mark.parametrize("workers", [None, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 10, 21, 64])
def test_batches_contain_all_images_in_order(numbered, workers, batch_size):
    batches = list(
        decode_batches(numbered, preprocessing=SMALL, batch_size=batch_size, workers=workers)
    )
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    red = np.concatenate(batches)[:, 0, 0, 0]
    assert red.tolist() == list(range(21))
    assert len({id(batch) for batch in batches}) == len(batches)


def test_no_images_give_no_batches():
    assert list(decode_batches([], preprocessing=SMALL, batch_size=4)) == []


def test_the_first_unreadable_image_raises_after_the_batches_before_it(numbered):
    numbered[9].write_bytes(b"")
    numbered[11].write_bytes(b"")
    batches = decode_batches(numbered, preprocessing=SMALL, batch_size=4, workers=2)
    assert len(next(batches)) == 4
    assert len(next(batches)) == 4
    with pytest.raises(DataError, match=r"9\.png: it is empty"):
        next(batches)


def test_decoding_runs_only_a_limited_way_ahead(numbered, monkeypatch):
    loaded = []
    original = load_image
    monkeypatch.setattr(
        pipeline, "load_image", lambda *a, **kw: (loaded.append(a), original(*a, **kw))[1]
    )
    batches = decode_batches(numbered * 20, preprocessing=SMALL, batch_size=8, workers=1)
    next(batches)
    assert len(loaded) <= 8 * 8
    batches.close()


def test_an_impossible_batch_size_is_refused_immediately(numbered):
    with pytest.raises(ConfigError, match="`batch_size=` must be at least 1, got 0"):
        decode_batches(numbered, preprocessing=SMALL, batch_size=0)


class Locked(FakeGpu):
    """A GPU that page-locks memory slowly, or fails to."""

    def __init__(self, predictor, refusal=None):
        super().__init__(predictor)
        self.is_locked = False
        self._refusal = refusal

    def lock_pages(self, memory):
        time.sleep(0.05)
        self.is_locked = True
        if self._refusal:
            raise DeviceError(self._refusal)

    def __call__(self, images):
        assert self.is_locked
        return super().__call__(images)


@pytest.mark.parametrize("refusal", [None, "no memory left to lock"])
def test_the_model_waits_until_page_locking_succeeds_or_fails(predictor, tmp_path, refusal):
    files = [ImageRef.of_file(tmp_path / f"{index}.png") for index in range(10)]
    for file in files:
        Image.new("RGB", (SIZE, SIZE)).save(file.place)
    told = []
    values = run_images(
        Locked(predictor, refusal),
        iter(files),
        preprocessing=predictor.card.preprocessing,
        plan=Plan("ahead", 2, 4),
        finish=lambda outputs: outputs.values,
        tell=told.append,
    )
    assert sum(map(len, values)) == len(files)
    expected = f"cannot page-lock memory, so copies to the GPU are slower: {refusal}"
    assert told == ([expected] if refusal else [])
