"""Features and evaluations on a two-node Ray cluster; skipped without Ray."""

import json
import os
import signal
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Recorder, features_of, run_tltools

from tltools import __version__
from tltools.artifacts import model_files, open_predictor, read_artifact
from tltools.backbones.cnn import CNN
from tltools.card import Preprocessing
from tltools.data.dataset import load_dataset
from tltools.errors import ConfigError, DataError, ParityError, TltoolsError
from tltools.evaluate import evaluate, evaluate_on_cluster
from tltools.ray.models import ModelActor, ModelSetup, ModelTask, RayCluster
from tltools.runtime import load_predictor
from tltools.runtime import onnx_backbone as backbones
from tltools.training import TrainSetup, default_config, train_model
from tltools.training import features as features_module
from tltools.training.features import Extraction, FeatureCache, choose_calibration
from tltools.training.models import build_classifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of many kinds
]


# -------------------------------------------------------------------------- without a cluster


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(
            ["train", "images", "--ray-address", "auto"], "--ray-address is for --engine ray",
            id="train",
        ),
        pytest.param(
            ["evaluate", "model.onnx", "images", "--ray-address", "auto"],
            "--ray-address is for --engine ray",
            id="evaluate",
        ),
        pytest.param(
            ["train", "images", "--model", "cnn", "--engine", "ray"],
            "--model cnn has none; leave it out, or choose --model vgg16",
            id="nothing to extract",
        ),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused(args, message, images, tmp_path):
    code, _, err = run_tltools(*args, cwd=tmp_path)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", [["train"], ["evaluate", "model.onnx"]])
def test_without_ray_the_error_names_the_package_before_anything_else(
    command, images, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    code, _, err = run_tltools(*command, images, "--engine", "ray", cwd=tmp_path)
    assert code == 2
    assert 'pip install "ray[data]>=2.60"' in err
    assert len(err.splitlines()) == 1


@pytest.fixture
def setup(onnx_path, card):
    return ModelSetup(
        tltools=__version__,
        open_model=partial(open_predictor, onnx_path),
        device="cpu",
        same_files={},
        preprocessing=card.preprocessing,
        workers=1,
        batch_size=4,
    )


def answer(setup, *paths):
    """Ask an actor in this process."""
    with closing(ModelActor(setup)) as actor:
        return actor._answer(ModelTask(0, tuple(os.fsencode(path) for path in paths)))


def test_an_actor_returns_the_models_outputs(setup, images, onnx_path):
    paths = sorted(images.rglob("*.png"))
    told = answer(setup, *paths)
    values = np.frombuffer(told.values, np.float32).reshape(-1, told.width)
    expected = evaluate(
        load_predictor(onnx_path, device="cpu"), load_dataset(images, purpose="evaluate")
    )
    by_path = dict(zip(expected.paths, expected.logits, strict=True))
    np.testing.assert_array_equal(values, np.stack([by_path[str(path)] for path in paths]))


def test_an_actor_reports_what_its_machine_lacks(setup, images, onnx_path, tmp_path):
    image = images / "red" / "0.png"
    for changes, asked, kind, message in (
        ({"tltools": "0.0"}, image, "ConfigError", "but the driver has 0.0; install the same"),
        (
            {"same_files": {str(onnx_path): "0"}},
            image,
            "ArtifactError",
            "differs from the file on the driver",
        ),
        ({"same_files": {"/no/model": "0"}}, image, "ArtifactError", "see the model and the"),
        ({}, tmp_path / "gone.png", "DataError", "gone.png does not exist here; all machines"),
        ({}, onnx_path, "DataError", "cannot read image tiny.onnx"),
    ):
        failure = answer(replace(setup, **changes), asked).failure
        assert failure is not None
        assert failure[0] == kind
        assert message in failure[1]


def test_a_machine_that_computes_different_features_is_refused(tmp_path, monkeypatch):
    spec = Preprocessing(size=32)
    model = build_classifier(CNN, 2, spec).eval()
    cache = FeatureCache(tmp_path, weights_sha256="0", head="pooled", preprocessing=spec)
    settings = Extraction(
        model=model,
        preprocessing=spec,
        cache=cache,
        device=torch.device("cpu"),
        runtime="onnxruntime",
    )
    with features_module._backbone_file(settings, Recorder()) as path:
        data = path.read_bytes()
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    right = backbones.OnnxBackbone(data, spec)(images)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda shared: shared))
    opened = backbones.open_shared(data, spec, images, right, device="cpu", threads=1)
    np.testing.assert_allclose(opened(images), right, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ParityError, match=r"features are \d+.\d% off those of the machine that started"
    ):
        backbones.open_shared(data, spec, images, 2 * right, device="cpu", threads=1)


class AskedError(Exception):
    """Of `FakeCluster`."""


class FakeCluster:
    """Records the requests."""

    def connect(self):
        return SimpleNamespace(put=lambda data: data)

    def outputs(self, paths, open_model, **options):
        raise AskedError(options["device"])


@pytest.mark.parametrize(("int8", "device"), [(True, "cpu"), (False, None)])
def test_int8_features_are_computed_on_cpus(extraction, int8, device):
    with pytest.raises(AskedError) as asked:
        features_of(**extraction("ray", int8=int8), cluster=FakeCluster())
    assert asked.value.args == (device,)  # None: that of the cluster


# ------------------------------------------------------------------------------ with a cluster


@pytest.fixture
def ray_cluster(cluster):
    with RayCluster(device="cpu") as made:
        yield made


@pytest.fixture
def extraction(images, tmp_path):
    """Return arguments of `features_of` for a small network, with its own cache."""
    dataset = load_dataset(images, val_fraction=0.25)
    spec = Preprocessing(size=32)
    torch.manual_seed(0)
    model = build_classifier(CNN, 2, spec).eval()
    paths, hashes = [Path(path) for path in dataset.frame["path"]], list(dataset.frame["sha256"])

    def make(name, *, int8=False):
        calibration = choose_calibration(paths, hashes) if int8 else {}
        return {
            "model": model,
            "paths": paths,
            "hashes": hashes,
            "preprocessing": spec,
            "cache": FeatureCache(
                tmp_path / name,
                weights_sha256="0",
                head="pooled",
                preprocessing=spec,
                calibration=list(calibration),
            ),
            "device": torch.device("cpu"),
            "calibration": list(calibration.values()),
        }

    return make


@pytest.mark.parametrize("int8", [False, True])
def test_ray_computes_the_same_features_as_this_machine(ray_cluster, extraction, int8):
    local = features_of(**extraction("local", int8=int8))
    recorder = Recorder()
    arguments = extraction("ray", int8=int8)
    features = features_of(**arguments, cluster=ray_cluster, progress=recorder)
    assert (features.shape, features.dtype) == (local.shape, np.float32)
    np.testing.assert_allclose(features, local, rtol=1e-4, atol=1e-5)
    assert recorder.bars[-1] == "Extracting features"
    # Either engine finds them under the same keys.
    again = Recorder()
    np.testing.assert_array_equal(features_of(**arguments, progress=again), features)
    assert again.bars == []


def test_an_interrupted_extraction_resumes_from_the_cache(ray_cluster, extraction, monkeypatch):
    monkeypatch.setattr(features_module, "BATCH_SIZE", 4)
    monkeypatch.setattr(features_module, "PART_SIZE", 4)
    arguments = extraction("ray")

    class StopsInTheMiddle(Recorder):
        def bar(self, description, total, unit="images"):
            self.bars.append(f"{description} of {total}")
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, amount=1, note=""):
            self.num_seen = getattr(self, "num_seen", 0) + amount
            if self.num_seen >= 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features_of(**arguments, cluster=ray_cluster, progress=StopsInTheMiddle())
    num_kept = len(arguments["cache"].load())
    assert 0 < num_kept < 30
    features = features_of(**arguments, cluster=ray_cluster)
    np.testing.assert_allclose(features, features_of(**extraction("local")), rtol=1e-4, atol=1e-5)


class Dying:
    """A model that kills its process, once for each file that it can delete."""

    device = "cpu"

    def __init__(self, folder, model):
        self.folder, self.model = folder, model
        self.new_batch = model.new_batch

    def __call__(self, images):
        for file in self.folder.iterdir():
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model(images)


def open_dying(path, folder, *, device, threads):
    return Dying(folder, load_predictor(path, device=device, threads=threads))


@pytest.mark.parametrize("num_lives", [1, 12])
def test_one_lost_worker_is_harmless_and_many_end_the_job(
    ray_cluster, onnx_path, images, tmp_path, num_lives
):
    (tmp_path / "lives").mkdir()
    for number in range(num_lives):
        (tmp_path / "lives" / str(number)).touch()
    dataset = load_dataset(images, purpose="evaluate")
    local = evaluate(load_predictor(onnx_path, device="cpu"), dataset)

    def run():
        return evaluate_on_cluster(
            read_artifact(onnx_path).card,
            dataset,
            ray_cluster,
            partial(open_dying, onnx_path, tmp_path / "lives"),
            [onnx_path],
            batch_size=4,
        )

    if num_lives > 2 * 5:  # two parts, each with a first worker and its retries
        with pytest.raises(TltoolsError, match=r"Ray ended the job: .*, or use `engine=local`"):
            run()
        return
    np.testing.assert_array_equal(run().logits, local.logits)
    assert list((tmp_path / "lives").iterdir()) == []


@pytest.mark.parametrize("kind", ["onnx", "torchscript", "run"])
def test_ray_evaluates_the_same_as_this_machine(
    ray_cluster, kind, onnx_path, torchscript_path, cnn_run, drawn, images
):
    path, data = {
        "onnx": (onnx_path, images),
        "torchscript": (torchscript_path, images),
        "run": (cnn_run, drawn),
    }[kind]
    dataset = load_dataset(data, purpose="evaluate")
    local = evaluate(open_predictor(path, "cpu"), dataset, batch_size=4)
    recorder = Recorder()
    result = evaluate_on_cluster(
        read_artifact(path).card,
        dataset,
        ray_cluster,
        partial(open_predictor, path),
        model_files(path),
        batch_size=4,
        progress=recorder,
    )
    assert recorder.bars == ["Evaluating cnn" if kind == "run" else "Evaluating tiny onnx fp32"]
    np.testing.assert_allclose(result.logits, local.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result.preds, local.preds)
    np.testing.assert_array_equal(result.confusion, local.confusion)
    assert (result.paths, result.split, result.score) == (local.paths, local.split, local.score)


def test_the_commands_print_the_same_with_both_engines(cluster, onnx_path, images, tmp_path):
    def told(*args):
        code, out, _ = run_tltools(
            "evaluate", onnx_path, images, "--device", "cpu", "--json", *args, cwd=tmp_path
        )
        assert code == 0
        document = json.loads(out)
        assert document.pop("seconds") > 0
        return document

    assert told("--engine", "ray") == told()


def test_vgg16_trains_on_features_from_the_cluster(
    cluster, drawn_dataset, vgg16_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(features_module, "FEW_IMAGES", 0)  # of few, PyTorch computes them here

    def train(name, progress, ray_cluster=None):
        config = default_config("vgg16", epochs=2, image_size=64, feature_precision="fp32")
        return train_model(
            drawn_dataset,
            config,
            TrainSetup(
                weights=str(vgg16_file),
                device="cpu",
                run_dir=tmp_path / name,
                cache_dir=tmp_path / "cache",
                cluster=ray_cluster,
            ),
            progress=progress,
        )

    recorder = Recorder()
    ray_cluster = RayCluster(device="cpu", progress=recorder)
    first = train("ray", recorder, ray_cluster)
    assert "Ray: up to 2 actors with a core on 2 machines" in recorder.said
    assert ray_cluster._ray is None  # the epochs need no cluster
    again = Recorder()
    second = train("local", again)
    assert any("come from the cache" in line for line in again.said)
    assert "Extracting features" not in again.bars
    assert [one.train_loss for one in first.history] == [one.train_loss for one in second.history]


def test_an_unreadable_image_ends_the_evaluation(ray_cluster, onnx_path, images):
    dataset = load_dataset(images, purpose="evaluate")
    (images / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"on .*: cannot read image 0.png"):
        evaluate_on_cluster(
            read_artifact(onnx_path).card,
            dataset,
            ray_cluster,
            partial(open_predictor, onnx_path),
            [onnx_path],
        )


def test_an_impossible_address_is_refused_at_once(monkeypatch):
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]>=2.60'")
    with pytest.raises(TltoolsError, match=r"cannot reach the Ray cluster at 127.0.0.1:9"):
        RayCluster("127.0.0.1:9")
    with pytest.raises(ConfigError, match="a Ray Client address"):
        RayCluster("ray://127.0.0.1:9")
