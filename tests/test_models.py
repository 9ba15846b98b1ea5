import re

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tltools.backbones import torchvision_models
from tltools.backbones.cnn import CNN
from tltools.backbones.layers import split_sequential
from tltools.backbones.vgg16 import VGG16
from tltools.card import Preprocessing
from tltools.errors import ConfigError, ModelError
from tltools.training.fit import Step
from tltools.training.models import build_classifier
from tltools.training.sources import ImageSource

SMALL = Preprocessing(size=32)


@pytest.fixture(scope="module")
def vgg16_state():
    """Random values under torchvision's names, small enough to keep activations finite."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vgg16().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * (2 / max(1, shape[1:].numel())) ** 0.5
        for name, shape in shapes.items()
        if name.startswith("features.")
    }


def test_the_cnn_is_the_articles_baseline():
    model = build_classifier(CNN, 2, Preprocessing())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert shapes["backbone.0.weight"] == (4, 3, 3, 3)
    assert shapes["backbone.4.weight"] == (8, 4, 3, 3)
    assert shapes["head.weight"] == (2, 8 * 56 * 56)
    # Weights and biases of two convolutions, two batch normalizations and one linear layer.
    expected = (4 * 27 + 4) + (4 + 4) + (8 * 36 + 8) + (8 + 8) + (2 * 8 * 56 * 56 + 2)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_pixels_are_normalized_by_channel_and_not_reshaped():
    preprocessing = Preprocessing(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    model = build_classifier(CNN, 2, preprocessing)
    model.backbone = torch.nn.Identity()
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    actual = model.features(torch.from_numpy(images)).numpy()
    expected = (images / 255 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]
    np.testing.assert_allclose(actual, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_vgg16_pooled_is_torchvisions_convolutions_and_an_average(vgg16_state):
    from torchvision.models import vgg16

    model = build_classifier(VGG16, 3, SMALL, head="pooled", state=vgg16_state)
    with torch.device("meta"):
        reference = vgg16().features
    reference.load_state_dict(
        {name.removeprefix("features."): tensor for name, tensor in vgg16_state.items()},
        assign=True,
    )
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        maps = reference(images.permute(0, 3, 1, 2) / 255)
        expected = maps.flatten(2).sum(2) / maps[0, 0].numel()
        torch.testing.assert_close(model.features(images), expected, rtol=1e-4, atol=1e-4)


def test_only_vgg16s_head_is_trained(vgg16_state):
    model = build_classifier(VGG16, 3, SMALL, head="pooled", state=vgg16_state)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"head.weight", "head.bias"}


@pytest.mark.parametrize(("backbone", "head"), [(CNN, "linear"), (VGG16, "pooled")])
def test_the_parts_before_and_from_the_last_block_on_are_the_whole(backbone, head):
    torch.manual_seed(0)
    layers = backbone.build_layers(head, 32)[0].eval()
    before, rest = backbone.split(layers)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(rest(before(images)), layers(images), rtol=0, atol=0)
    names = {name for part in (before, rest) for name in part.state_dict()}
    assert names == set(layers.state_dict())
    assert not set(before.state_dict()) & set(rest.state_dict())
    for name in backbone.last_block:
        assert rest.get_submodule(name) is layers.get_submodule(name)


def test_layers_that_do_not_follow_one_another_are_not_split():
    with pytest.raises(ModelError, match="cannot split a Conv2d before its layer 'bias'"):
        split_sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), ("0", "bias"))
    with pytest.raises(ModelError, match="cannot split a Sequential before its layer '1'"):
        split_sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), ("1",))


def test_vgg16_without_its_weights_is_an_error(vgg16_state):
    state = dict(vgg16_state)
    del state["features.28.bias"]
    with pytest.raises(ModelError, match=r"lack 1 tensor .*features\.28\.bias"):
        build_classifier(VGG16, 2, SMALL, head="pooled", state=state)
    with pytest.raises(ModelError, match=r"classifier\.0\.weight\); `head=pooled`"):
        build_classifier(VGG16, 2, SMALL, head="last-layer", state=vgg16_state)
    with pytest.raises(ModelError, match="has shape"):
        build_classifier(
            VGG16, 2, SMALL, head="pooled", state={**vgg16_state, "features.0.bias": torch.zeros(3)}
        )


def test_a_training_step_runs_on_one_device_and_never_waits_for_it():
    # Reading a value of a tensor on the meta device fails: on a GPU it would stall the step.
    with torch.device("meta"):
        model = build_classifier(CNN, 2, SMALL).train()
        images = torch.empty((4, 32, 32, 3), dtype=torch.uint8)
        target, class_weights = torch.empty(4, dtype=torch.int64), torch.empty(2)
    step = Step(
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        class_weights=class_weights,
        label_smoothing=0.1,
        clip_grad=1.0,
    )
    loss, correct = step(model, images, target)
    assert loss.device.type == correct.device.type == "meta"


def test_batches_are_assembled_on_one_device_without_waiting_for_it():
    meta = torch.device("meta")
    images = torch.empty((10, 32, 32, 3), dtype=torch.uint8, device=meta)
    source = ImageSource(images, torch.arange(10) % 2, batch_size=4, device=meta, augment="color")
    order = torch.randperm(10)
    for generator in (None, torch.Generator().manual_seed(0)):
        batches = list(source.batches(order, generator))
        assert [len(inputs) for inputs, _ in batches] == [4, 4, 2]
        for inputs, target in batches:
            assert inputs.device == target.device == meta
            assert inputs.dtype == torch.uint8


def empty_vgg16():
    """VGG16's weights on the default device."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vgg16().state_dict().items()}
    return {name: torch.empty(shape) for name, shape in shapes.items()}


@pytest.fixture
def on_fake_cuda():
    """Tensors without data that claim to be on a GPU, and reject others."""
    with FakeTensorMode(), torch.device("cuda"):
        yield


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: build_classifier(CNN, 2, SMALL), id="cnn"),
        pytest.param(
            lambda: build_classifier(VGG16, 2, SMALL, head="last-layer", state=empty_vgg16()),
            id="vgg16",
        ),
    ],
)
def test_a_forward_pass_on_cuda_never_leaves_it(build, on_fake_cuda):
    logits = build()(torch.empty((4, 32, 32, 3), dtype=torch.uint8))
    assert logits.device.type == "cuda"
    assert logits.shape == (4, 2)
    assert logits.dtype == torch.float32


def test_a_constant_left_on_the_cpu_is_noticed(on_fake_cuda):
    model = build_classifier(CNN, 2, SMALL)
    model.shift = torch.zeros((1, 3, 1, 1), device="cpu")
    with pytest.raises(RuntimeError, match=r"two different devices|same device"):
        model(torch.empty((4, 32, 32, 3), dtype=torch.uint8))


def test_the_names_in_torchvisions_source_are_those_that_it_lists(monkeypatch):
    from torchvision import models

    assert torchvision_models._names_in_source() == models.list_models(module=models)
    monkeypatch.setattr(torchvision_models, "_REGISTERED", re.compile("no such function"))
    assert torchvision_models._names_in_source() == []
    with pytest.raises(ConfigError, match=r"unknown model 'vgg61'; did you mean vgg16 or"):
        torchvision_models.find("vgg61")
    monkeypatch.setattr(torchvision_models, "find_spec", lambda name: None)
    assert torchvision_models._names_in_source() == []
