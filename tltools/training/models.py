"""The two networks, with preprocessing inside: uint8 pictures in, logits out."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tltools.card import Card, Preprocessing
from tltools.errors import ArtifactError, ModelError

VGG16_PREFIXES = ("features.", "classifier.")


class Classifier(nn.Module):
    """Pictures as they are decoded → logits; scaling and normalisation are inside."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, preprocessing: Preprocessing) -> None:
        """Join the parts.

        Args:
            backbone: Maps normalised pictures (N, 3, H, W) to features (N, F).
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


class GlobalAveragePool(nn.Module):
    """Average each feature map: (N, F, H, W) → (N, F) (Lin et al., arXiv:1312.4400)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Average over height and width."""
        return maps.mean(dim=(2, 3))


def build_cnn(num_classes: int, preprocessing: Preprocessing) -> Classifier:
    """Build the article's baseline with fresh weights from torch's generator."""
    size = preprocessing.size
    if size % 4:
        raise ModelError(f"the cnn needs an input size divisible by 4, got {size}")
    backbone = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),  # (N, 4, H / 2, W / 2)
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),  # (N, 8, H / 4, W / 4)
        nn.Flatten(),
    )
    return Classifier(backbone, nn.Linear(8 * (size // 4) ** 2, num_classes), preprocessing)


def build_vgg16(
    num_classes: int,
    preprocessing: Preprocessing,
    *,
    head: str,
    state: Mapping[str, Tensor] | None = None,
) -> Classifier:
    """Build VGG16 (Simonyan and Zisserman, arXiv:1409.1556) with a new head.

    Args:
        num_classes: C.
        preprocessing: Size, mean and std.
        head: `last-layer`: `classifier[6]` becomes Linear(4096, C). `pooled`: the global average
            of the 512 feature maps, then Linear(512, C); needs no other layer of the classifier.
        state: Frozen weights under torchvision's names. Without it (for a checkpoint that is
            about to be loaded) the backbone's tensors have no values (`meta` device).

    Raises:
        ModelError: If weights that the backbone needs are missing or have another shape.
    """
    from torchvision.models import vgg16

    with torch.device("meta"):  # no time and memory for random values that are replaced anyway
        full = vgg16(weights=None)
        if head == "pooled":
            backbone = nn.Sequential()
            backbone.add_module("features", full.features)
            backbone.add_module("pool", GlobalAveragePool())
        elif head == "last-layer":
            backbone = nn.Sequential()
            backbone.add_module("features", full.features)
            backbone.add_module("pool", full.avgpool)
            backbone.add_module("flatten", nn.Flatten())
            backbone.add_module("classifier", full.classifier[:6])
        else:
            raise ModelError(f"unknown head {head!r}; choose --head last-layer or pooled")
    if state is not None:
        wanted = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
        _check_weights(wanted, state)
        backbone.load_state_dict({name: state[name].float() for name in wanted}, assign=True)
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    features = 512 if head == "pooled" else 4096
    return Classifier(backbone, nn.Linear(features, num_classes), preprocessing)


def _check_weights(wanted: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> None:
    missing = [name for name in wanted if name not in state]
    if missing:
        raise ModelError(
            f"the weights lack {missing[0]} and {len(missing) - 1} more tensors that this head "
            "needs; --head pooled needs only features.*"
        )
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise ModelError(
                f"{name} has the shape {tuple(state[name].shape)} and VGG16 needs {tuple(shape)}: "
                "is this VGG16 without batch normalisation, under torchvision's names?"
            )


def build_from_card(card: Card, state: Mapping[str, Tensor]) -> Classifier:
    """Build a run's model and load its checkpoint.

    Args:
        card: The run's card.
        state: The checkpoint's tensors.

    Raises:
        ArtifactError: If the checkpoint does not fit the card.
    """
    num_classes = len(card.classes)
    if card.model == "cnn":
        model = build_cnn(num_classes, card.preprocessing)
    elif card.model == "vgg16":
        model = build_vgg16(num_classes, card.preprocessing, head=card.head)
    else:
        raise ArtifactError(f"run {card.run} has a model unknown here: {card.model!r}")
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ArtifactError(
            f"the checkpoint of run {card.run} does not fit its card: {reason}"
        ) from error
    return model.eval()
