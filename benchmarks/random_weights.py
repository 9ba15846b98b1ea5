"""Random weights of a network in a file that tltools takes, where nothing can be downloaded."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

SEED = 0
NUM_NOISE = 8
"""Noise images of each coarseness."""
COARSENESS = (1, 2, 8, 32)
"""Heights and widths that noise is scaled up from: real images are smooth, and batch normalization
must have seen such ones."""
STRENGTH = 3.0
"""Standard deviation of the noise: weaker input than this makes activations small, not huge."""
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
        norms = [one for one in body.modules() if isinstance(one, nn.BatchNorm2d)]
        body.eval()  # without dropout and stochastic depth, which would change the statistics
        for norm in norms:
            norm.train()
        if norms:
            body(_noise(size))
    state = model.state_dict()
    kept = {
        key: tensor.contiguous()
        for key, tensor in state.items()
        if not features_only or key.startswith("features.")
    }
    save_file(kept, path)
    return path


def _noise(size: int) -> Tensor:
    """Return smooth and rough noise, float32 (N, 3, size, size), as strong as images get."""
    return torch.cat(
        [
            F.interpolate(
                STRENGTH * torch.randn(NUM_NOISE, 3, side, side), (size, size), mode="bilinear"
            )
            for side in COARSENESS
        ]
    )
