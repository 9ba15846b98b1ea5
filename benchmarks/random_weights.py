"""Random weights of a network in a file that tltools takes, where nothing can be downloaded."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

SEED = 0
NUM_NOISE = 32
LAYER_SCALE = 0.3
"""In place of ConvNeXt's initial 1e-6, which would switch its blocks off."""


@torch.no_grad()
def write_random_weights(
    name: str, path: Path, *, size: int = 64, features_only: bool = False
) -> Path:
    """Write random weights under torchvision's names; their activations neither vanish nor explode.

    Args:
        name: torchvision's name of the network.
        path: The `.safetensors` file.
        size: Height and width in pixels of the noise whose statistics batch normalization takes.
        features_only: Leave out the classifier, as in a file for the head `pooled`.

    Returns:
        `path`.
    """
    from torchvision.models import get_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        sizes = {"image_size": size} if name.startswith("vit_") else {}
        model = get_model(name, weights=None, **sizes)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for key, parameter in model.named_parameters():
            if key.endswith("layer_scale"):
                parameter.fill_(LAYER_SCALE)
        body = model.features if features_only else model
        if any(isinstance(one, nn.BatchNorm2d) for one in body.modules()):
            body.train()(torch.randn(NUM_NOISE, 3, size, size))
    state = model.state_dict()
    kept = {
        key: tensor.contiguous()
        for key, tensor in state.items()
        if not features_only or key.startswith("features.")
    }
    save_file(kept, path)
    return path
