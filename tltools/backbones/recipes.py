"""Hyper-parameters that several backbones share.

The head's were found by cross-validation on the training split with VGG16; those for fine-tuning
were compared with them in the same way, and hardly varied (benchmarks/LOG.md). For other networks
both are a start.
"""

from collections.abc import Mapping
from dataclasses import replace

from tltools.backbones.backbone import FineTune, Recipe

HEAD = Recipe(epochs=80, lr=1e-3, weight_decay=0.1, standardize=True, resize="crop")
"""For the head of a frozen network."""

_TUNED = Recipe(
    epochs=8,
    lr=1e-3,
    backbone_lr=5e-5,
    batch_size=32,
    optimizer="adamw",
    weight_decay=0.01,
    schedule="cosine",
    label_smoothing=0.1,
    clip_grad=1.0,
    dropout=0.5,
    augment="flip",
    standardize=True,
    resize="crop",
)

FINE_TUNING: Mapping[FineTune, Recipe] = {
    # Crops gained nothing there, and each view of an image takes as long as the image itself.
    "last-block": _TUNED,
    "all": replace(_TUNED, backbone_lr=3e-5, augment="crop"),
}
"""For pretrained layers too."""
