"""A backbone and its head, with preprocessing inside: uint8 images in, logits out."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from tltools.backbones import Backbone, find_backbone
from tltools.card import Card, Preprocessing
from tltools.errors import ArtifactError, ConfigError, ModelError
from tltools.wording import plural


class Classifier(nn.Module):
    """Map decoded images to logits; scaling and normalization are part of the model."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, preprocessing: Preprocessing) -> None:
        """Combine a backbone and a head.

        Args:
            backbone: Maps normalized images (N, 3, H, W) to features (N, F).
            head: Maps features (N, F) to logits (N, C).
            preprocessing: Mean and std, which become constants of the graph.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        # (x / 255 - mean) / std as one multiplication and one addition.
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", _channels(1 / (255 * std)), persistent=False)
        self.register_buffer("shift", _channels(-mean / std), persistent=False)

    def train(self, mode: bool = True) -> "Classifier":
        """Switch to training mode, except for frozen layers.

        Batch normalization in training mode would use, and update, statistics of the batch.
        """
        super().train(mode)
        for part in (self.backbone, *self.backbone.children()):
            parameters = list(part.parameters())
            if parameters and not any(one.requires_grad for one in parameters):
                part.eval()
        return self

    def normalized(self, images: Tensor) -> Tensor:
        """Map images, uint8 (N, H, W, 3), to the backbone's input, float32 (N, 3, H, W)."""
        return images.permute(0, 3, 1, 2).float() * self.scale + self.shift

    def features(self, images: Tensor) -> Tensor:
        """Map images, uint8 (N, H, W, 3), to features, float32 (N, F)."""
        return self.backbone(self.normalized(images))

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C)."""
        return self.head(self.features(images))


def _channels(values: Tensor) -> Tensor:
    return values.float().view(1, 3, 1, 1)


def build_classifier(
    backbone: Backbone,
    num_classes: int,
    preprocessing: Preprocessing,
    *,
    head: str = "auto",
    state: Mapping[str, Tensor] | None = None,
) -> Classifier:
    """Build a backbone with a new head, initialized from torch's random generator.

    Args:
        backbone: A pretrained backbone's layers are frozen; others are initialized from torch's
            generator too.
        num_classes: C.
        preprocessing: Size, mean and std.
        head: One of the backbone's heads; `auto` is the first one that the weights support.
        state: Weights of a pretrained backbone. Without them (if a checkpoint is loaded next)
            its tensors have no values (`meta` device).

    Raises:
        ModelError: If the head does not exist, the network cannot take images of this size, or
            weights that the backbone needs are missing or have the wrong shape.
    """
    backbone.check_size(preprocessing.size)
    if head == "auto":
        head = backbone.choose_head(state or {})
    elif head not in backbone.heads:
        raise ModelError(f"unknown head {head!r}; choose {' or '.join(backbone.heads)}")
    # Spend no time and memory on random values that are replaced anyway.
    empty = backbone.pretrained is not None and not backbone.computes_constants
    with torch.device("meta") if empty else nullcontext():
        layers, num_features = backbone.build_layers(head, preprocessing.size)
    if state is not None:
        _load_weights(layers, state, backbone, head, size=preprocessing.size)
    if backbone.pretrained:
        layers.requires_grad_(False)
    return Classifier(layers, nn.Linear(num_features, num_classes), preprocessing)


def _load_weights(
    layers: nn.Module, state: Mapping[str, Tensor], backbone: Backbone, head: str, *, size: int
) -> None:
    assert backbone.pretrained is not None
    state = backbone.pretrained.fit_state(dict(state), size)
    values = layers.state_dict()  # keeps the versions of the layers' formats
    names = {name: backbone.pretrained.rename(name) for name in values}
    missing = [one for one in names.values() if one not in state and not one.endswith(_COUNTER)]
    if missing:
        possible = backbone.choose_head(state)
        hint = f"; `head={possible}` needs fewer" if possible != head else ""
        tensors = plural(len(missing), "tensor")
        raise ModelError(
            f"the weights lack {len(missing)} {tensors} that this head needs (first "
            f"{missing[0]}){hint}"
        )
    for name, theirs in names.items():
        value = state.get(theirs, torch.zeros((), dtype=torch.int64))
        if value.shape != values[name].shape:
            raise ModelError(
                f"{theirs} has shape {tuple(value.shape)}, but {backbone.title} needs "
                f"{tuple(values[name].shape)}; are these the weights of another network?"
            )
        if value.is_floating_point() != values[name].is_floating_point():
            raise ModelError(
                f"{theirs} holds values of type {_type(value)}, but {backbone.title} needs "
                f"{_type(values[name])}; are these the weights of another network?"
            )
        values[name] = value.float() if value.is_floating_point() else value
    layers.load_state_dict(values, assign=True)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


_COUNTER = ".num_batches_tracked"
"""Ending of a tensor that older files lack, and that only training without momentum reads."""


def build_from_card(card: Card, state: Mapping[str, Tensor]) -> Classifier:
    """Build a run's model and load its checkpoint.

    Args:
        card: The run's card.
        state: The checkpoint's tensors.

    Raises:
        ArtifactError: If the card names an unknown backbone, or the checkpoint does not match the
            card.
    """
    try:
        backbone = find_backbone(card.model)
    except ConfigError as error:
        raise ArtifactError(
            f"run {card.run} has a model that this tltools does not know: {error}"
        ) from error
    model = build_classifier(backbone, len(card.classes), card.preprocessing, head=card.head)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ArtifactError(
            f"the checkpoint of run {card.run} does not match its card: {reason}"
        ) from error
    return model.eval()
