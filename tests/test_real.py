"""Real photographs and full-size VGG16; takes minutes and gigabytes."""

import csv
import math
from dataclasses import replace

import onnx
import pytest
import torch
from conftest import NUM_DRAWN, Recorder, make_exports

from tltools.artifacts import open_predictor
from tltools.classify import Job, run_job
from tltools.data.dataset import Dataset, load_dataset
from tltools.evaluate import evaluate, predict
from tltools.graphs.distance_nodes import PREFIX
from tltools.training import TrainSetup, default_config, train_model

pytestmark = pytest.mark.slow

NAMES = ("non-emergency", "emergency")
FORMATS = ("torchscript", "pt2", "onnx")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """VGG16's features, computed once for all tests here."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def train_vgg16(shared, cache, tmp_path):
    """Train the pooled head on the real weights; returns the run and what was said."""

    def train(dataset: Dataset, **changes):
        progress = Recorder()
        run = train_model(
            dataset,
            default_config("vgg16", **changes),
            TrainSetup(
                weights=str(shared / "weights" / "vgg16_features.safetensors"),
                device="cpu",
                run_dir=tmp_path / "runs",
                cache_dir=cache,
            ),
            progress=progress,
        )
        assert run.card.head == "pooled"
        return run, progress

    return train


@pytest.fixture(scope="module")
def emergency(shared):
    return load_dataset(
        shared / "data" / "emergency" / "emergency_train.csv", split="article", class_names=NAMES
    )


@pytest.fixture(scope="module")
def hymenoptera(shared):
    dataset = load_dataset(shared / "data" / "hymenoptera")
    assert dataset.split_rule == "given"
    return dataset


@pytest.fixture(scope="module")
def small_cnn(shared, tmp_path_factory):
    """The CNN after one epoch on a few dozen real images: it has seen enough to be exported."""
    folder = tmp_path_factory.mktemp("small")
    rows = (shared / "data" / "emergency" / "emergency_train.csv").read_text().splitlines()
    (folder / "few.csv").write_text("\n".join(rows[:65]) + "\n")
    dataset = load_dataset(
        folder / "few.csv",
        images=shared / "data" / "emergency" / "images",
        class_names=NAMES,
        val_fraction=0.25,
    )
    config = default_config("cnn", epochs=1, batch_size=16)
    return train_model(dataset, config, TrainSetup(device="cpu", run_dir=folder / "runs"))


def thinned(dataset: Dataset, split: str, step: int) -> Dataset:
    """Keep each `step`th image of a split: a forward pass of VGG16 takes tenths of a second."""
    frame = dataset.frame
    kept = frame["split"] != split
    kept[frame.index[~kept][::step]] = True
    return replace(dataset, frame=frame[kept].reset_index(drop=True))


def test_vgg16_tells_ants_from_bees_and_its_int8_export_agrees(
    hymenoptera, train_vgg16, cache, tmp_path
):
    run, _ = train_vgg16(hymenoptera)
    assert run.card.metrics["val"].total == len(hymenoptera.part("val"))
    assert run.card.metrics["val"].accuracy >= 0.92

    again, progress = train_vgg16(hymenoptera)
    assert "Extracting features" not in progress.bars  # all from the cache
    assert again.card.metrics == run.card.metrics

    (int8,) = make_exports(run.folder, ["onnx"], tmp_path / "exports", precisions=("int8",))
    assert int8.parity.num_images == len(hymenoptera.part("val"))
    assert int8.parity.top1_agreement >= 0.99
    assert int8.facts.float_layers == ()  # none of VGG16's needs it
    assert int8.size_bytes < 15e6


def test_exports_of_vgg16_agree_with_pytorch(hymenoptera, train_vgg16, tmp_path):
    dataset = thinned(hymenoptera, "val", 6)
    run, _ = train_vgg16(dataset)
    for result in make_exports(run.folder, FORMATS, tmp_path / "exports"):
        assert result.parity.num_images == len(dataset.part("val")) > 20
        assert result.parity.top1_agreement == 1.0
        assert result.parity.max_abs_logit_diff < 1e-4


def test_vgg16_beats_the_article_with_its_split_and_settings(emergency, train_vgg16):
    """The article has 83.47% there; a quarter of its training images is enough for more."""
    assert len(emergency.part("train")) == 1481
    assert len(emergency.part("val")) == 165
    few = thinned(emergency, "train", 4)
    run, _ = train_vgg16(few, recipe="article", feature_precision="fp32")
    assert run.card.data.split == "article"
    assert run.card.metrics["val"].total == 165
    assert run.card.metrics["val"].accuracy > 0.8347


def test_classify_gives_every_real_image_one_row_with_evaluates_label(
    shared, emergency, small_cnn, tmp_path
):
    (export,) = make_exports(small_cnn.folder, ["onnx"], tmp_path / "exports")
    output = tmp_path / "predictions.csv"
    summary = run_job(Job(export.path, [shared / "data"], output, device="cpu"))
    with output.open(newline="", encoding="utf-8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    paths = sorted(
        path
        for path in (shared / "data").rglob("*")
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".gif"}
    )
    assert len(paths) == 2329
    assert summary.num_images == len(rows) == len(paths)
    assert summary.num_failed == 0

    predictor = open_predictor(export.path, device="cpu")
    result = evaluate(predictor, emergency, split="all")
    assert {str(path): index for path, index in zip(result.paths, result.preds, strict=True)} == {
        str(shared / "data" / name): NAMES.index(row["label"])
        for name, row in rows.items()
        if name.startswith("emergency/")
    }
    others = [path for path in paths if "emergency" not in path.parts]
    labels = [NAMES[index] for index in predict(predictor, others).argmax(axis=1)]
    assert labels == [
        rows[path.relative_to(shared / "data").as_posix()]["label"] for path in others
    ]


@pytest.fixture
def complete_weights(tmp_path):
    """All 138 million parameters under torchvision's names, with random values."""
    from safetensors.torch import save_file
    from torchvision.models import vgg16

    torch.manual_seed(0)
    state = vgg16(weights=None).state_dict()
    for name, tensor in state.items():
        if name.endswith("bias"):  # zeros, which the exporter would leave out
            tensor.uniform_(-0.1, 0.1)
    path = tmp_path / "complete.safetensors"
    save_file(state, path)
    assert path.stat().st_size > 138_000_000 * 4
    return path


def test_full_size_vgg16_trains_exports_to_one_file_and_classifies(
    complete_weights, drawn, cache, tmp_path
):
    dataset = load_dataset(drawn, val_fraction=0.25)
    run = train_model(
        dataset,
        default_config("vgg16", epochs=1, feature_precision="fp32"),
        TrainSetup(
            weights=str(complete_weights), device="cpu", run_dir=tmp_path / "runs", cache_dir=cache
        ),
    )
    assert run.card.head == "last-layer"
    (export,) = make_exports(run.folder, ["onnx"], tmp_path / "exports")
    assert list((tmp_path / "exports" / "vgg16").iterdir()) == [export.path]  # no .data beside it
    # As in VGG16, with two classes in place of a thousand.
    parameters = 138_357_544 - 998 * (4096 + 1)
    initializers = onnx.load(export.path).graph.initializer
    own = [one for one in initializers if not one.name.startswith(PREFIX)]
    assert len(own) < len(initializers)  # of the distance
    assert sum(math.prod(one.dims) for one in own) == pytest.approx(parameters, rel=1e-6)

    summary = run_job(Job(export.path, [drawn], tmp_path / "predictions.csv", device="cpu"))
    assert summary.num_images == NUM_DRAWN
    assert summary.num_failed == 0
