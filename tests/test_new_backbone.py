"""Adding a backbone takes one object, defined in this test; the commands then know it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, COLORS, run_tltools, save_image
from safetensors.torch import save_file
from torch import nn

import tltools.cli  # noqa: F401 - the help shows what there is when it is first imported
from tltools import doctor
from tltools.artifacts import open_predictor
from tltools.backbones import BACKBONES, Backbone
from tltools.backbones.backbone import IMAGENET, Download, Normalization, Pretrained, Recipe
from tltools.backbones.layers import GlobalAveragePool
from tltools.bench.run import run_bench
from tltools.card import Preprocessing
from tltools.errors import ModelError
from tltools.training.models import build_classifier
from tltools.training.run import load_card

# ------------------------------------------------------------------------- a backbone


class Block(nn.Module):
    """A residual block: int8 has to add bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(maps + self.conv(maps))


def build_layers(head: str, size: int) -> tuple[nn.Module, int]:
    layers = nn.Sequential()
    layers.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()))
    layers.add_module("block", Block())
    layers.add_module("pool", GlobalAveragePool())
    return layers, 8


TOY = Backbone(
    name="toy",
    title="the toy",
    build_layers=build_layers,
    heads={"pooled": ()},
    recipes={"default": Recipe(epochs=20, lr=3e-2, batch_size=8)},
    last_maps="block",
    last_block=("block.conv",),
    input_size=32,
)
FROZEN = replace(
    TOY,
    pretrained=Pretrained(
        first_tensor="stem.0.weight",
        downloads={IMAGENET: Download(torchvision="ResNet18_Weights.IMAGENET1K_V1")},
        normalizations={"half": Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))},
    ),
)


def open_with_toy(path, device, threads, *, tf32=False):
    """Open a candidate of `bench`, in a process that knows the backbone as it knows the others."""
    BACKBONES.setdefault(TOY.name, TOY)
    return open_predictor(path, device, threads, tf32=tf32)


@pytest.fixture(scope="module")
def colored(tmp_path_factory):
    """Noisy images of three colors, in folders named by their color."""
    root = tmp_path_factory.mktemp("colored")
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir()
        for number in range(12):
            save_image(root / name / f"{number}.png", color, rng)
    return root


def run_in(folder: Path, *args: object) -> str:
    """Run a command that succeeds; return what it prints."""
    ran = run_tltools(*args, cwd=folder)
    assert ran.code == 0, (args, ran)
    return ran.out


def test_a_backbone_is_trained_exported_classified_and_measured(colored, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, TOY.name, TOY)
    monkeypatch.setitem(run_bench.__kwdefaults__, "open_predictor", open_with_toy)
    run = partial(run_in, tmp_path)

    run("train", colored, "--model", "toy", "--val-fraction", 0.25, "--device", "cpu")
    card = load_card(tmp_path / "runs" / "toy")
    assert (card.model, card.head, card.preprocessing.size) == ("toy", "pooled", 32)
    assert card.training["lr"] == 3e-2
    assert card.metrics["val"].accuracy == 1.0

    run("export", "runs/toy", "--format", "onnx", "--precision", "fp32", "--device", "cpu")
    run("export", "runs/toy", "--format", "onnx", "--precision", "int8", "--device", "cpu")
    for precision in ("fp32", "int8"):
        export = f"exports/toy/toy.{precision}.onnx"
        run("classify", colored, "--model", export, "--device", "cpu", "-o", f"{precision}.jsonl")
        lines = (tmp_path / f"{precision}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == 12 * len(CLASSES)
        assert all(row["label"] == Path(row["path"]).parent.name for row in rows)
    assert sums_of_bytes(tmp_path / "exports" / "toy" / "toy.int8.onnx") == 1

    options = ("--rounds", 1, "--iterations", 1, "--batch-sizes", "2", "--budget", 5)
    exports = [f"exports/toy/toy.{precision}.onnx" for precision in ("fp32", "int8")]
    report = json.loads(run("bench", *exports, *options, "--device", "cpu", "--json"))
    assert [row["status"] for row in report["rows"]] == ["ok", "ok", "ok"]

    (heat,) = json.loads(run("explain", "runs/toy", colored / "red" / "0.png", "--json"))
    assert (heat["label"], heat["empty"]) == ("red", False)


def sums_of_bytes(path: Path) -> int:
    """Count the sums in a file of which both branches, and the result, are bytes."""
    graph = onnx.load(path).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    return sum(
        [makers.get(name) for name in node.input] == ["DequantizeLinear", "DequantizeLinear"]
        for node in graph.node
        if node.op_type == "Add"
    )


def test_a_pretrained_backbone_is_frozen_with_weights_that_fit(colored, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, FROZEN.name, FROZEN)
    run = partial(run_in, tmp_path)
    torch.manual_seed(0)
    weights = build_layers("pooled", 32)[0].state_dict()
    save_file(weights, tmp_path / "toy.safetensors")
    (others,) = [check for check in doctor._all_weights() if check.name == "other weights"]
    assert others.detail.endswith(", toy (45 MB)")

    options = ("--model", "toy", "--val-fraction", 0.25, "--device", "cpu", "--cache-dir", "cache")
    run("train", colored, *options, "--weights", "toy.safetensors")
    card = load_card(tmp_path / "runs" / "toy")
    assert card.weights.source == "toy.safetensors"
    assert card.preprocessing.mean == (0.5, 0.5, 0.5)
    trained = torch.load(tmp_path / "runs" / "toy" / "state.pt", weights_only=True)["model"]
    assert set(trained) == {"weight", "bias"}  # the head alone

    del weights["stem.0.weight"]
    save_file(weights, tmp_path / "other.safetensors")
    ran = run_tltools("train", colored, *options, "--weights", "other.safetensors", cwd=tmp_path)
    assert ran.code == 1
    assert "it lacks stem.0.weight; provide the toy's weights with" in ran.err


def usage_error(folder: Path, *args: object) -> str:
    """Return what the command line says of options that it does not take, without its frame."""
    ran = run_tltools(*args, cwd=folder)
    assert ran.code == 2, ran
    return " ".join(ran.err.replace("│", " ").split())


def test_the_command_line_accepts_what_the_backbones_offer(tmp_path, monkeypatch):
    wrong = {"--head": "first", "--normalization": "none"}
    known = {
        "--head": "auto, last-layer, pooled",
        "--normalization": "auto, torchvision, original",
    }
    for option, value in wrong.items():
        told = usage_error(tmp_path, "train", option, value)
        assert f"'{value}' is not one of {known[option]}" in told
    told = usage_error(tmp_path, "train", "--model", "resnet19")
    assert "unknown model 'resnet19'; did you mean resnet18 or" in told
    monkeypatch.setitem(BACKBONES, FROZEN.name, FROZEN)
    assert "original, half" in usage_error(tmp_path, "train", "--normalization", "none")


@pytest.mark.parametrize("backbone", [*BACKBONES.values(), TOY], ids=lambda one: one.name)
def test_the_layers_that_a_backbone_names_exist(backbone):
    """And their outputs have height and width, or weights to be tuned."""
    for head in backbone.heads:
        with torch.device("meta"):
            layers, num_features = backbone.build_layers(head, backbone.input_size)
            sizes = []
            layers.get_submodule(backbone.last_maps).register_forward_hook(
                lambda _module, _inputs, output, sizes=sizes: sizes.append(output.ndim)
            )
            images = torch.empty((2, 3, backbone.input_size, backbone.input_size))
            features = layers.eval()(images)
        assert features.shape == (2, num_features)
        assert sizes == [len(backbone.maps_axes)]
        for name in backbone.last_block:
            assert list(layers.get_submodule(name).parameters())


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda one: one.name)
def test_every_backbone_has_what_the_other_modules_rely_on(backbone):
    assert "default" in backbone.recipes
    if backbone.pretrained is not None:
        assert IMAGENET in backbone.pretrained.downloads
        # The last normalization and the last head fit any weights.
        assert all(one.tensors == () for one in [*backbone.pretrained.normalizations.values()][-1:])
        assert list(backbone.heads.values())[-1] == ()


def test_an_unknown_head_of_a_backbone_is_refused():
    with pytest.raises(ModelError, match="unknown head 'linear'; choose pooled"):
        build_classifier(TOY, 2, Preprocessing(size=32), head="linear")
