"""Load pre-trained weights from torchvision or a local file, never unpickling code."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from tltools.backbones.backbone import IMAGENET, Backbone, Download
from tltools.card import Weights
from tltools.errors import ModelError, first_line


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """Frozen weights, where they come from, and the normalization of their training."""

    state: Mapping[str, Tensor]
    """Tensors under torchvision's names, `features.0.weight` …"""
    facts: Weights
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_weights(
    backbone: Backbone, source: str, *, normalization: str = "auto"
) -> PretrainedWeights:
    """Load the weights of a pre-trained backbone.

    Args:
        backbone: The pre-trained backbone.
        source: The name of a download (kept in torch's cache, hash verified), or the path of a
            `.safetensors` or `.pth` file, which may lack tensors that the head does not need.
        normalization: Normalization that the weights were trained with, by the backbone's name
            for it; `auto` infers it from the tensors present.

    Raises:
        ModelError: If the weights cannot be loaded or are not the backbone's; the message says
            how to get them.
    """
    pretrained = backbone.pretrained
    assert pretrained is not None, f"{backbone.name} has no weights to load"
    names = ("auto", *pretrained.normalizations)
    if normalization not in names:
        raise ModelError(
            f"unknown normalization {normalization!r}; choose {', '.join(names[:-1])} or "
            f"{names[-1]}"
        )
    remedy = _remedy(backbone)
    download = pretrained.downloads.get(source)
    state, facts = _read(Path(source), remedy) if download is None else _fetch(download, backbone)
    if pretrained.first_tensor not in state:
        raise ModelError(
            f"{source} holds no {backbone.title} weights: it lacks {pretrained.first_tensor}; "
            f"{remedy}"
        )
    if normalization == "auto":
        normalization = pretrained.choose_normalization(state)
    chosen = pretrained.normalizations[normalization]
    return PretrainedWeights(state=state, facts=facts, mean=chosen.mean, std=chosen.std)


def download_path(download: Download) -> Path:
    """Return the path of a download in torch's cache, whether it exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_url(download)).name


def _url(download: Download) -> str:
    from torchvision.models import get_weight

    return get_weight(download.torchvision).url


def _remedy(backbone: Backbone) -> str:
    return (
        f"provide {backbone.title}'s weights with `weights=FILE` (.safetensors or .pth with "
        f"torchvision's tensor names), or run once with network access, so that "
        f"`weights={IMAGENET}` can download them"
    )


def _fetch(download: Download, backbone: Backbone) -> tuple[Mapping[str, Tensor], Weights]:
    remedy = _remedy(backbone)
    try:
        state = torch.hub.load_state_dict_from_url(
            _url(download), check_hash=True, weights_only=True, map_location="cpu"
        )
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"cannot download {backbone.title}'s weights ({reason}); {remedy}"
        ) from error
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"the download of {backbone.title}'s weights is unusable ({error}); {remedy}"
        ) from error
    facts = Weights(source=download.torchvision, sha256=_sha256(download_path(download)))
    return state, facts


def _read(path: Path, remedy: str) -> tuple[Mapping[str, Tensor], Weights]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"{path} does not exist; {remedy}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise ModelError(f"cannot read weights from {path} ({reason}); {remedy}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path} is not a state dict of tensors; {remedy}")
    return state, Weights(source=path.name, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
