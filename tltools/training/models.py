"""A backbone and its head, with preprocessing inside: uint8 images in, logits out."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from tltools.backbones import BACKBONES, Backbone
from tltools.card import Card, Preprocessing
from tltools.errors import ArtifactError, ModelError


class Classifier(nn.Module):
    """Images as they are decoded → logits; scaling and normalization are inside."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, preprocessing: Preprocessing) -> None:
        """Join the parts.

        Args:
            backbone: Maps normalized images (N, 3, H, W) to features (N, F).
            head: Maps features (N, F) to logits (N, C).
            preprocessing: Its mean and std become constants of the graph.
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

    def features(self, images: Tensor) -> Tensor:
        """Map images, uint8 (N, H, W, 3), to features, float32 (N, F)."""
        pixels = images.permute(0, 3, 1, 2).float()  # (N, 3, H, W)
        return self.backbone(pixels * self.scale + self.shift)

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
    """Build a backbone with a new head, whose weights come from torch's generator.

    Args:
        backbone: One that is trained here gets weights from torch's generator, too. The layers of
            a pre-trained one are frozen.
        num_classes: C.
        preprocessing: Size, mean and std.
        head: One of the backbone's; `auto` is the first that the weights allow.
        state: Weights of a pre-trained backbone. Without them (for a checkpoint that is about to
            be loaded) its tensors have no values (`meta` device).

    Raises:
        ModelError: If there is no such head, or weights that the backbone needs are missing or
            have another shape.
    """
    if head == "auto":
        head = backbone.choose_head(state or {})
    elif head not in backbone.heads:
        raise ModelError(f"unknown head {head!r}; choose --head {' or '.join(backbone.heads)}")
    # No time and memory for random values that are replaced anyway.
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
        hint = f"; --head {possible} needs fewer" if possible != head else ""
        raise ModelError(
            f"the weights lack {missing[0]} and {len(missing) - 1} more tensors that this head "
            f"needs{hint}"
        )
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise ModelError(
                f"{name} has the shape {tuple(state[name].shape)} and {backbone.title} needs "
                f"{tuple(shape)}: are these weights of another network?"
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
        ArtifactError: If this tltools has no such backbone, or the checkpoint does not fit the
            card.
    """
    backbone = BACKBONES.get(card.model)
    if backbone is None:
        raise ArtifactError(f"run {card.run} has a model unknown here: {card.model!r}")
    model = build_classifier(backbone, len(card.classes), card.preprocessing, head=card.head)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ArtifactError(
            f"the checkpoint of run {card.run} does not fit its card: {reason}"
        ) from error
    return model.eval()
