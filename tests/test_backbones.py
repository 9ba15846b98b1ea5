"""torchvision's and timm's networks as backbones: the same numbers, from the same files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_exports, run_tltools
from torch import nn
from torchvision import models

from tltools.backbones import BACKBONES, find_backbone, timm_models
from tltools.backbones.torchvision_layers import renamed_dense_layers
from tltools.backbones.torchvision_models import NAMED, NO_LINEAR_LAYER
from tltools.card import Preprocessing
from tltools.data.images import load_image
from tltools.errors import ConfigError, ModelError
from tltools.explain import heat_maps
from tltools.training import TrainSetup, default_config, train_model
from tltools.training.models import build_classifier
from tltools.training.pretrained import find_download, load_preset, load_weights

SIZE = 32
NAMES = [one.name for one in NAMED]
FAMILIES = ["densenet121", "googlenet", "mnasnet0_5", "mobilenet_v2", "regnet_y_400mf"]
FAMILIES += ["shufflenet_v2_x0_5", "efficientnet_v2_s", "alexnet"]
AS_PUBLISHED = {"aux_logits": False, "transform_input": True, "init_weights": False}


def reference(name: str) -> nn.Module:
    """torchvision's own network with random weights, seeded, and without its last layer."""
    sizes = {"image_size": SIZE} if name.startswith("vit") else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = AS_PUBLISHED if name == "googlenet" else sizes
        model = models.get_model(name, weights=None, **kind).eval()
    last = [key for key, one in model.named_modules() if isinstance(one, nn.Linear)][-1]
    model.set_submodule(last, nn.Identity())
    return model


def preprocessing(size: int = SIZE) -> Preprocessing:
    return Preprocessing(size=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def noise(num: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, size, size, 3), generator=generator, dtype=torch.uint8)


SMALL = ["resnet18", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"]
SLOW = [name for name in NAMES if name not in SMALL] + FAMILIES


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_features_are_those_of_the_librarys_network(name):
    backbone = find_backbone(name)
    size = 2 * SIZE if name in ("googlenet", "alexnet") else max(SIZE, backbone.min_size)
    theirs = reference(name)
    first = next(iter(backbone.heads))
    model = build_classifier(
        backbone, 3, preprocessing(size), head=first, state=theirs.state_dict()
    ).eval()
    images = noise(2, size)
    with torch.inference_mode():
        normalized = images.permute(0, 3, 1, 2).float() * model.scale + model.shift
        expected = theirs(normalized)
        before, rest = backbone.split(model.backbone)
        torch.testing.assert_close(model.features(images), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rest(before(normalized)), expected, rtol=1e-4, atol=1e-4)
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert trained == {"head.weight", "head.bias"}


def test_frozen_normalization_keeps_its_statistics_in_training():
    model = build_classifier(
        BACKBONES["resnet18"], 2, preprocessing(), state=reference("resnet18").state_dict()
    ).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(noise(4))
    assert model.head.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_tensors_that_are_missing_or_misshaped_are_named():
    state = dict(reference("resnet18").state_dict())
    shorter = {key: value for key, value in state.items() if key != "layer4.1.bn2.running_var"}
    with pytest.raises(ModelError, match=r"lack 1 tensor .*layer4\.1\.bn2\.running_var"):
        build_classifier(BACKBONES["resnet18"], 2, preprocessing(), state=shorter)
    other = state | {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    with pytest.raises(ModelError, match=r"layer1\.0\.conv1\.weight has shape \(64, 64, 1, 1\)"):
        build_classifier(BACKBONES["resnet18"], 2, preprocessing(), state=other)


def test_older_files_lack_the_counters_of_batch_normalization():
    state = dict(reference("resnet18").state_dict())
    older = {key: value for key, value in state.items() if "num_batches" not in key}
    model = build_classifier(BACKBONES["resnet18"], 2, preprocessing(), state=older)
    assert model.state_dict()["backbone.bn1.num_batches_tracked"] == 0


def test_older_densenets_are_renamed():
    older = {"features.denseblock1.denselayer2.norm.1.weight": torch.zeros(1)}
    assert list(renamed_dense_layers(older, 224)) == [
        "features.denseblock1.denselayer2.norm1.weight"
    ]


def test_a_transformer_takes_sizes_of_whole_patches():
    vit = BACKBONES["vit_b_16"]
    with pytest.raises(ModelError, match=r"divisible by 16, got 100; use `image_size=96` or 112"):
        vit.check_size(100)
    with pytest.raises(ModelError, match=r"at least 32 pixels, got 16; use `image_size=32`"):
        vit.check_size(16)
    state = {"encoder.pos_embedding": torch.rand(1, 1 + 14**2, 8)}
    assert vit.pretrained is not None
    fitted = vit.pretrained.fit_state(state, 64)["encoder.pos_embedding"]
    assert fitted.shape == (1, 1 + 4**2, 8)
    torch.testing.assert_close(fitted[:, 0], state["encoder.pos_embedding"][:, 0])
    with pytest.raises(ModelError, match="not a square of patches"):
        vit.pretrained.fit_state({"encoder.pos_embedding": torch.rand(1, 12, 8)}, 64)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown model 'resnet19'; did you mean resnet18 or"):
        find_backbone("resnet19")
    with pytest.raises(ConfigError, match=r"unknown model 'convnet_tiny'.* convnext_tiny"):
        find_backbone("convnet_tiny")


@pytest.mark.parametrize("name", NO_LINEAR_LAYER)
def test_networks_without_a_linear_layer_are_refused(name):
    with pytest.raises(ModelError, match=f"torchvision's {name} does not end with a linear layer"):
        find_backbone(name)


def test_timm_is_asked_for_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm .*pip install \"timm>=1\.0\.20\""):
        timm_models.find("timm:resnet18x")


def test_timms_network_is_a_backbone():
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    backbone = find_backbone("timm:test_resnet")
    assert backbone.maps_axes == "NCHW"
    theirs = timm.create_model("test_resnet", num_classes=0).eval()
    model = build_classifier(backbone, 2, preprocessing(64), state=theirs.state_dict()).eval()
    images = noise(2, 64)
    with torch.inference_mode():
        expected = theirs(images.permute(0, 3, 1, 2).float() * model.scale + model.shift)
        torch.testing.assert_close(model.features(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(
        ConfigError, match="timm has no model 'resnet_18'; did you mean timm:resnet"
    ):
        find_backbone("timm:resnet_18")


# ------------------------------------------------------------------------------ preprocessing


@pytest.mark.parametrize("name", ["vgg16", *NAMES])
def test_the_preset_is_that_of_torchvisions_transforms(name):
    backbone = BACKBONES[name]
    assert backbone.pretrained is not None
    rules = models.get_model_weights(name)["DEFAULT"].transforms()
    preset = load_preset(backbone.pretrained.downloads["imagenet"])
    assert [preset.size] == rules.crop_size == [backbone.input_size]
    assert [round(preset.size * preset.crop_ratio)] == rules.resize_size
    assert preset.interpolation == rules.interpolation.value
    assert (list(preset.mean), list(preset.std)) == (rules.mean, rules.std)


def test_other_published_weights_are_found_by_name():
    download = find_download(BACKBONES["resnet50"], "IMAGENET1K_V1")
    assert download is not None
    assert load_preset(download).crop_ratio == 256 / 224
    assert find_download(BACKBONES["resnet50"], "weights.pth") is None


@pytest.mark.parametrize(("interpolation", "ratio"), [("bicubic", 256 / 224), ("bilinear", 1.0)])
def test_images_are_resized_as_torchvision_does(tmp_path, interpolation, ratio):
    from PIL import Image
    from torchvision.transforms import v2

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    coarse.resize((256, 256), Image.Resampling.BICUBIC).save(tmp_path / "image.png")
    rules = Preprocessing(size=56, resize="crop", crop_ratio=ratio, interpolation=interpolation)
    ours = load_image(tmp_path / "image.png", rules).astype(int)
    shorter = v2.Resize(round(56 * ratio), v2.InterpolationMode(interpolation), antialias=True)
    with Image.open(tmp_path / "image.png") as image:
        theirs = np.asarray(v2.CenterCrop(56)(shorter(image))).astype(int)
    # One step instead of two; at these sizes, torchvision's crop needs no rounding.
    assert np.abs(ours - theirs).max() < 3


# -------------------------------------------------------------------------- from end to end


def weights_file(name: str, folder: Path) -> Path:
    """Random weights under torchvision's names whose activations neither vanish nor explode."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    try:
        from random_weights import write_random_weights
    finally:
        sys.path.pop(0)
    small = "pooled" in BACKBONES[name].heads
    path = folder / f"{name}.safetensors"
    return write_random_weights(name, path, size=2 * SIZE, features_only=small)


@pytest.mark.slow  # of a small network in test_new_backbone.py
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_trained_exported_classified_and_explained(
    name, drawn, drawn_dataset, tmp_path
):
    setup = TrainSetup(
        weights=str(weights_file(name, tmp_path)),
        device="cpu",
        run_dir=tmp_path / "runs",
        cache_dir=tmp_path / "cache",
    )
    config = default_config(name, epochs=1, image_size=2 * SIZE, feature_precision="fp32")
    run = train_model(drawn_dataset, config, setup)
    assert run.card.preprocessing.size == 2 * SIZE
    output = tmp_path / "exports"
    made = [
        *make_exports(run.folder, ["torchscript"], output, device="cpu"),
        *make_exports(
            run.folder, ["onnx"], output, device="cpu", precisions=("fp32", "fp16", "int8")
        ),
    ]
    assert len(made) == 4
    for one in made:
        ran = run_tltools(
            "classify", drawn, "--model", one.path, "--device", "cpu", "-o", "-", cwd=tmp_path
        )
        assert (ran.code, len(ran.out.splitlines())) == (0, 17), ran.err
    backbone = BACKBONES[name]
    state = load_weights(backbone, setup.weights).state
    torch.manual_seed(0)  # with another head, no location may speak for a class
    model = build_classifier(backbone, 2, run.card.preprocessing, state=state).eval()
    maps = model.backbone.get_submodule(backbone.last_maps)
    targets = torch.tensor([0, 1])
    heat = heat_maps(model, maps, noise(2, 2 * SIZE), targets, axes=backbone.maps_axes)
    assert heat.shape == (2, 2 * SIZE, 2 * SIZE)
    assert heat.max() == 1


# ------------------------------------------------------------------------------ the commands


def test_models_lists_what_torchvision_publishes(tmp_path):
    ran = run_tltools("models", "--json", cwd=tmp_path)
    rows = {row["model"]: row for row in json.loads(ran.out)}
    assert list(rows) == list(BACKBONES)
    meta = models.ResNet50_Weights.DEFAULT.meta
    assert rows["resnet50"] == {
        "model": "resnet50",
        "parameters": meta["num_params"],
        "multiply_adds": meta["_ops"],
        "accuracy": pytest.approx(meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100),
        "megabytes": meta["_file_size"],
        "input_size": 224,
        "default_weights": "IMAGENET1K_V2",
        "weights": ["IMAGENET1K_V1", "IMAGENET1K_V2"],
    }
    assert rows["cnn"]["accuracy"] is None
    every = json.loads(run_tltools("models", "--all", "--json", cwd=tmp_path).out)
    known = set(models.list_models(module=models)) - set(NO_LINEAR_LAYER)
    assert {row["model"] for row in every} == known | {"cnn"}


def test_names_are_checked_and_listed_without_torch():
    code = (
        "import sys; from tltools.cli import main\n"
        "from tltools.backbones import BACKBONES, find_backbone\n"
        "[find_backbone(name) for name in BACKBONES]\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False"
