"""VGG16's pre-trained weights: torchvision's own or a local file, never pickled code."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from tltools.card import Weights
from tltools.errors import ModelError, first_line

REMEDY = (
    "give VGG16's weights with --weights FILE (.safetensors or .pth under torchvision's names), "
    "or run once with a network, so that --weights imagenet can download them"
)

# As torchvision publishes them, on the 0-1 scale: VGG16_Weights.IMAGENET1K_V1 was trained with
# the mean and std of ImageNet; IMAGENET1K_FEATURES, the authors' original, with the mean alone.
_TORCHVISION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_ORIGINAL = ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255))
NORMALIZATIONS = {"torchvision": _TORCHVISION, "original": _ORIGINAL}


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """Frozen weights and what their training tells about using them."""

    state: Mapping[str, Tensor]
    """Under torchvision's names, `features.0.weight` …"""
    facts: Weights
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def has_classifier(self) -> bool:
        """Whether the layers before `classifier.6` have values too.

        torchvision's features-only file fills them with NaN, which counts as absent.
        """
        names = [f"classifier.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")]
        return all(name in self.state and bool(self.state[name].isfinite().all()) for name in names)


def load_weights(source: str, *, normalization: str = "auto") -> PretrainedWeights:
    """Load VGG16's weights.

    Args:
        source: `imagenet` (torchvision's download, kept in torch's cache, hash checked), or a
            path of a `.safetensors` or `.pth` file, complete or features only.
        normalization: What the weights were trained with: `torchvision`, `original` (the mean
            only; Simonyan and Zisserman), or `auto`: `torchvision` for complete weights,
            `original` for features only, as torchvision publishes the two.

    Raises:
        ModelError: If the weights cannot be had or are not VGG16's; the message says how to get
            them.
    """
    if normalization not in ("auto", *NORMALIZATIONS):
        raise ModelError(
            f"unknown --normalization {normalization!r}; choose auto, {' or '.join(NORMALIZATIONS)}"
        )
    if source == "imagenet":
        state, facts = _download()
    else:
        state, facts = _read(Path(source))
    if "features.0.weight" not in state:
        raise ModelError(f"{source} holds no features.0.weight: not VGG16; {REMEDY}")
    weights = PretrainedWeights(state=state, facts=facts, mean=(0, 0, 0), std=(1, 1, 1))
    if normalization == "auto":
        normalization = "torchvision" if weights.has_classifier else "original"
    mean, std = NORMALIZATIONS[normalization]
    return PretrainedWeights(state=state, facts=facts, mean=mean, std=std)


def _download() -> tuple[Mapping[str, Tensor], Weights]:
    from torchvision.models import VGG16_Weights

    weights = VGG16_Weights.IMAGENET1K_V1
    name = Path(weights.url).name
    try:
        state = torch.hub.load_state_dict_from_url(
            weights.url, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(f"VGG16's weights cannot be downloaded ({reason}); {REMEDY}") from error
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise ModelError(f"VGG16's download is unusable ({error}); {REMEDY}") from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    return state, Weights(source=str(weights), sha256=_sha256(path))


def _read(path: Path) -> tuple[Mapping[str, Tensor], Weights]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"no weights at {path}; {REMEDY}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{path} cannot be read as weights ({first_line(error)}); {REMEDY}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path} is not a state dict of tensors; {REMEDY}")
    return state, Weights(source=path.name, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
