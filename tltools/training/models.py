"""A backbone and its head, with preprocessing inside: uint8 images in, logits out."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from tltools.backbones import BACKBONES, Backbone
from tltools.card import Card, Preprocessing
from tltools.errors import ArtifactError, ModelError
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
        backbone: A pre-trained backbone's layers are frozen; others are initialized from torch's
            generator too.
        num_classes: C.
        preprocessing: Size, mean and std.
        head: One of the backbone's heads; `auto` is the first one that the weights support.
        state: Weights of a pre-trained backbone. Without them (if a checkpoint is loaded next)
            its tensors have no values (`meta` device).

    Raises:
        ModelError: If the head does not exist, or weights that the backbone needs are missing or
            have the wrong shape.
    """
    if head == "auto":
        head = backbone.choose_head(state or {})
    elif head not in backbone.heads:
        raise ModelError(f"unknown head {head!r}; choose {' or '.join(backbone.heads)}")
    # Spend no time and memory on random values that are replaced anyway.
    with torch.device("meta") if backbone.pretrained else nullcontext():
        layers, num_features = backbone.build_layers(head, preprocessing.size)
    if state is not None:
        _load_weights(layers, state, backbone, head)
    if backbone.pretrained:
        layers.requires_grad_(False)
    return Classifier(layers, nn.Linear(num_features, num_classes), preprocessing)


def _load_weights(
    layers: nn.Module, state: Mapping[str, Tensor], backbone: Backbone, head: str
) -> None:
    wanted = {name: tensor.shape for name, tensor in layers.state_dict().items()}
    missing = [name for name in wanted if name not in state]
    if missing:
        possible = backbone.choose_head(state)
        hint = f"; `head={possible}` needs fewer" if possible != head else ""
        tensors = plural(len(missing), "tensor")
        raise ModelError(
            f"the weights lack {len(missing)} {tensors} that this head needs (first "
            f"{missing[0]}){hint}"
        )
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise ModelError(
                f"{name} has shape {tuple(state[name].shape)}, but {backbone.title} needs "
                f"{tuple(shape)}; are these the weights of another network?"
            )
    values = {name: state[name] for name in wanted}
    layers.load_state_dict(
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in values.items()
        },
        assign=True,
    )


def build_from_card(card: Card, state: Mapping[str, Tensor]) -> Classifier:
    """Build a run's model and load its checkpoint.

    Args:
        card: The run's card.
        state: The checkpoint's tensors.

    Raises:
        ArtifactError: If the card names an unknown backbone, or the checkpoint does not match the
            card.
    """
    backbone = BACKBONES.get(card.model)
    if backbone is None:
        raise ArtifactError(
            f"run {card.run} has a model that this tltools does not know: {card.model!r}"
        )
    model = build_classifier(backbone, len(card.classes), card.preprocessing, head=card.head)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ArtifactError(
            f"the checkpoint of run {card.run} does not match its card: {reason}"
        ) from error
    return model.eval()
