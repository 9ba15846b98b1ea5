"""Images that arrive one by one: batches, waiting, and failures that cost only what they must."""

import io
import threading
import time
from functools import partial

import numpy as np
import pytest
from conftest import CLASSES, GAIN, SIZE, color_logits
from PIL import Image

from tltools.card import Preprocessing
from tltools.classify.predict import predictions
from tltools.data.image_ref import Content, ImageRef
from tltools.errors import DeviceError, TltoolsError
from tltools.runtime import Plan, load_predictor
from tltools.runtime.live import LiveRunner, LiveSettings
from tltools.runtime.workers import default_launcher


class Model:
    """The tiny model by its definition; waits for `go` in each call, and may fail."""

    def __init__(self, device="cpu"):
        self.device = device
        self.go = threading.Event()
        self.go.set()
        self.called = threading.Event()
        self.sizes: list[int] = []
        self.error: Exception | None = None

    def new_batch(self, num_images):
        return np.zeros((num_images, SIZE, SIZE, 3), np.uint8)

    def __call__(self, images):
        self.called.set()
        self.go.wait(60)
        if self.error is not None:
            raise self.error
        self.sizes.append(len(images))
        return color_logits(images).astype(np.float32)


@pytest.fixture
def launcher():
    made = default_launcher()
    yield made
    made.close()


@pytest.fixture
def run(launcher):
    """Start runners; they are closed at the end."""
    started: list[LiveRunner] = []

    def one(model, **changes):
        batches: list[int] = []
        fields = {
            "model": model,
            "preprocessing": Preprocessing(size=SIZE),
            "plan": Plan("ahead", 2, 4),
            "finish": partial(predictions, CLASSES, 1.0, min_confidence=None),
            "launcher": launcher,
            "tell": print,
            "on_batch": batches.append,
        }
        runner = LiveRunner(LiveSettings(**(fields | changes)))
        started.append(runner)
        runner.start()
        return runner, batches

    yield one
    for runner in started:
        runner.close()


def image(color=(250, 10, 20)) -> ImageRef:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), color).save(file, "PNG")
    return ImageRef("image", Content.of(file.getvalue()))


BAD = ImageRef("bad", Content.of(b"no image"))


def labels(futures) -> list[str | None]:
    return [future.result(60).label for future in futures]


def test_images_that_arrive_while_the_model_runs_share_its_next_call(run):
    model = Model()
    runner, batches = run(model, max_delay_s=0)
    model.go.clear()
    first = runner.submit(image())
    assert model.called.wait(60)
    others = [runner.submit(one) for one in (image(), BAD, image((5, 240, 15)), image(), image())]
    assert others[1].result(60).error.endswith("not an image of a known format")
    while runner._arrived:
        time.sleep(0.01)
    model.go.set()
    assert labels([first, others[0], *others[2:]]) == ["red", "red", "green", "red", "red"]
    assert batches == model.sizes
    assert sum(batches) == 5
    assert max(batches) > 1


def test_an_image_waits_for_others_until_its_batch_is_full(run):
    model = Model()
    runner, batches = run(model, max_delay_s=1000)
    futures = [runner.submit(image()) for _ in range(3)]
    assert runner.submit(BAD).result(60).error  # a bad one waits for none
    assert not any(future.done() for future in futures)
    futures.append(runner.submit(image()))
    assert labels(futures) == ["red"] * 4
    assert batches == [4]


def test_an_image_waits_no_longer_than_the_delay(run):
    runner, batches = run(Model(), max_delay_s=0.05)
    assert labels([runner.submit(image())]) == ["red"]
    assert batches == [1]


def test_a_gpu_always_gets_whole_batches(run):
    """The shape of its input chooses its kernels, so that it must not change."""
    model = Model(device="cuda")
    runner, batches = run(model)
    assert labels([runner.submit(image())]) == ["red"]
    assert (batches, model.sizes) == ([1], [4])


def test_a_call_that_fails_costs_its_own_images(run):
    model = Model()
    runner, _ = run(model)
    model.error = DeviceError("out of memory")
    with pytest.raises(DeviceError, match="out of memory"):
        runner.submit(image()).result(60)
    model.error = None
    assert labels([runner.submit(image())]) == ["red"]
    assert runner.failure is None


def test_workers_that_cannot_be_started_are_an_error_at_the_start(launcher, run, tmp_path):
    model = load_stub(tmp_path / "missing.onnx")
    with pytest.raises(TltoolsError, match=r"missing\.onnx"):
        run(model, plan=Plan("fused", 2, 1))


def load_stub(path):
    model = Model()
    model.path, model.opened_with = path, "cpu"
    return model


def test_a_fused_plan_gives_what_the_model_gives(run, onnx_path):
    model = load_predictor(onnx_path, device="cpu", threads=1)
    runner, batches = run(model, plan=Plan("fused", 2, 3), max_delay_s=0.02)
    colors = [(250, 10, 20), (5, 240, 15), (30, 25, 245)] * 4
    found = [one.result(60) for one in [runner.submit(image(color)) for color in colors]]
    for color, one in zip(colors, found, strict=True):
        logits = np.array(color) / 255 * GAIN
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(one.probabilities, expected, rtol=1e-5)
    assert sum(batches) == 12
    assert max(batches) <= 3


def test_all_workers_failing_costs_what_waits_and_then_goes_on(run, onnx_path, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_path.read_bytes())
    said: list[str] = []
    model = load_predictor(path, device="cpu", threads=1)
    runner, _ = run(model, plan=Plan("fused", 1, 1), tell=said.append)
    assert labels([runner.submit(image())]) == ["red"]
    path.unlink()  # the next worker cannot open it
    for worker in list(runner._crew._workers):
        worker.process.kill()
    while runner.failure is None:
        time.sleep(0.01)
    assert "model.onnx" in runner.failure
    assert "all workers failed" in said[0]
    path.write_bytes(onnx_path.read_bytes())
    while runner.failure is not None:
        time.sleep(0.01)
    assert labels([runner.submit(image())]) == ["red"]


def test_what_is_left_at_the_end_gets_an_error(run):
    model = Model()
    runner, _ = run(model, max_delay_s=1000)
    future = runner.submit(image())
    runner.close()
    with pytest.raises(TltoolsError, match="the service has ended"):
        future.result(1)
