import pytest
import torch
from torch import nn

from tltools.backbones.cnn import CNN
from tltools.card import Preprocessing
from tltools.export.folding import FoldedClassifier, PooledConv, fold
from tltools.training.models import Classifier, build_classifier


def with_random_values(module: nn.Module) -> nn.Module:
    """Make every layer and channel different, so that a mix-up shows."""
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.2, 3.0)
        elif tensor.is_floating_point():
            tensor.uniform_(-1.0, 1.0)
    return module.eval()


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3)], ids=str)
@pytest.mark.parametrize("channels", [(3, 4), (4, 8), (1, 3)], ids=str)
def test_a_folded_convolution_computes_the_same_as_its_four_layers(channels, size):
    layers = nn.Sequential(
        nn.Conv2d(*channels, 3, padding=1), nn.BatchNorm2d(channels[1]), nn.ReLU(), nn.MaxPool2d(2)
    ).double()
    with_random_values(layers)
    maps = torch.randn(2, channels[0], *size, dtype=torch.float64)
    expected = layers(maps)
    assert (expected > 0).any()
    actual = PooledConv(layers[0], layers[1])(maps)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_folding_the_cnn_keeps_its_logits():
    model = with_random_values(build_classifier(CNN, 3, Preprocessing(size=32)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model)
    assert isinstance(folded, FoldedClassifier)
    assert [type(layer) for layer in folded.backbone] == [PooledConv, PooledConv, nn.Flatten]
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected, actual = model(images), folded(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def block(**changes) -> list[nn.Module]:
    settings = {"kernel_size": 3, "padding": 1, "out_channels": 4} | changes
    conv = nn.Conv2d(3, **settings)
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(), nn.MaxPool2d(2)]


@pytest.mark.parametrize(
    ("layers", "mean"),
    [
        pytest.param(block(), (0.5, 0.5, 0.5), id="pixels are shifted"),
        pytest.param(block(out_channels=64), (0.0, 0.0, 0.0), id="wide"),
        pytest.param(block(kernel_size=5, padding=2), (0.0, 0.0, 0.0), id="5x5"),
        pytest.param(block(padding=0), (0.0, 0.0, 0.0), id="without padding"),
        pytest.param(block(padding_mode="reflect"), (0.0, 0.0, 0.0), id="other padding"),
        pytest.param([*block()[:3], nn.MaxPool2d(3)], (0.0, 0.0, 0.0), id="other window"),
        pytest.param([*block()[:2], nn.MaxPool2d(2)], (0.0, 0.0, 0.0), id="no ReLU"),
    ],
)
def test_layers_that_cannot_be_folded_exactly_are_unchanged(layers, mean):
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    num_features = layers[1].num_features
    preprocessing = Preprocessing(size=16, mean=mean)
    model = Classifier(backbone, nn.Linear(num_features, 2), preprocessing).eval()
    assert fold(model) is model
