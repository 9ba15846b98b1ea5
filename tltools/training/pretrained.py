"""Load pretrained weights from torchvision or a local file, never unpickling code."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from urllib.error import URLError

import torch
from torch import Tensor

from tltools.backbones import timm_models
from tltools.backbones.backbone import IMAGENET, Backbone, Download, Preset
from tltools.card import Interpolation, Preprocessing, Resize, Weights
from tltools.errors import ArtifactError, ModelError, cause_of, first_line
from tltools.regular import regular_sha256
from tltools.training.early import missing_weights, weights_remedy
from tltools.training.weight_files import load_pickled, load_safetensors, tensors_of


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """Frozen weights, where they come from, and the preprocessing of their training."""

    state: Mapping[str, Tensor]
    """Tensors under the library's names, `features.0.weight` …"""
    facts: Weights
    preset: Preset

    def preprocessing(self, resize: Resize, *, size: int | None = None) -> Preprocessing:
        """Return the preprocessing of images for these weights.

        Args:
            resize: How images are made square.
            size: Height and width in pixels; None is the weights' own.
        """
        return Preprocessing(
            size=size or self.preset.size,
            resize=resize,
            crop_ratio=self.preset.crop_ratio,
            interpolation=self.preset.interpolation,
            mean=self.preset.mean,
            std=self.preset.std,
        )


def load_weights(
    backbone: Backbone, source: str, *, normalization: str = "auto"
) -> PretrainedWeights:
    """Load the weights of a pretrained backbone.

    The preprocessing is that of the published weights. For a file that is not one of these, it is
    that of the default weights, at the backbone's own size.

    Args:
        backbone: The pretrained backbone.
        source: The name of a download (kept in the library's cache, hash verified), or the path of
            a `.safetensors` or `.pth` file, which may lack tensors that the head does not need.
        normalization: Normalization that the weights were trained with, by the backbone's name
            for it; `auto` is that of the preset, or infers it from the tensors present.

    Raises:
        ModelError: If the weights cannot be loaded or are not the backbone's; the message says
            how to get them.
    """
    pretrained = backbone.pretrained
    assert pretrained is not None, f"{backbone.name} has no weights to load"
    names = ["auto", *pretrained.normalizations]
    if normalization not in names:
        raise ModelError(
            f"unknown normalization {normalization!r}; {backbone.name} takes {' or '.join(names)}"
        )
    remedy = weights_remedy(backbone)
    download = find_download(backbone, source)
    state, facts = _read(Path(source), backbone) if download is None else _fetch(download, backbone)
    if pretrained.first_tensor not in state:
        raise ModelError(
            f"{source} holds no {backbone.title} weights: it lacks {pretrained.first_tensor}; "
            f"{remedy}"
        )
    published = download or _recognized(backbone, facts.sha256)
    preset = load_preset(published or pretrained.downloads[IMAGENET])
    if published is None:
        preset = replace(preset, size=backbone.input_size)
    if pretrained.normalizations:
        if normalization == "auto":
            normalization = pretrained.choose_normalization(state)
        chosen = pretrained.normalizations[normalization]
        preset = replace(preset, mean=chosen.mean, std=chosen.std)
    return PretrainedWeights(state=state, facts=facts, preset=preset)


def find_download(backbone: Backbone, source: str) -> Download | None:
    """Return the weights of this name: the backbone's default, or another of torchvision's.

    Args:
        backbone: A pretrained backbone.
        source: A name such as `imagenet` or `IMAGENET1K_V2`, or the path of a file.

    Returns:
        None if it is not the name of weights, hence a file.
    """
    assert backbone.pretrained is not None
    known = backbone.pretrained.downloads
    if source in known:
        return known[source]
    return next(
        (one for one in _published(backbone) if one.torchvision.endswith(f".{source}")), None
    )


def _published(backbone: Backbone) -> list[Download]:
    """Return all weights that torchvision publishes for a backbone."""
    assert backbone.pretrained is not None
    default = backbone.pretrained.downloads[IMAGENET]
    if not default.torchvision:
        return []
    enumeration: Any = type(_weights(default))
    return [Download(torchvision=str(one)) for one in enumeration]


def _recognized(backbone: Backbone, sha256: str) -> Download | None:
    """Return the published weights whose file has this hash, or None.

    The name of torchvision's file ends with the first digits of its hash.
    """
    for one in _published(backbone):
        digits = Path(_weights(one).url).stem.rpartition("-")[2]
        if len(digits) >= _HASH_DIGITS and sha256.startswith(digits):
            return one
    return None


_HASH_DIGITS = 8


def load_preset(download: Download) -> Preset:
    """Return the preprocessing of published weights.

    Raises:
        ModelError: If tltools cannot resample as they need.
    """
    if download.timm:
        return timm_models.load_preset(download.timm)
    rules = _weights(download).transforms()
    (size,), (shorter_side,) = rules.crop_size, rules.resize_size
    interpolation = rules.interpolation.value
    if interpolation not in get_args(Interpolation):
        raise ModelError(
            f"{download.torchvision} resizes images by {interpolation!r}, which tltools does not "
            "support; choose other `weights=`"
        )
    return Preset(
        size=size,
        crop_ratio=shorter_side / size,
        interpolation=interpolation,
        mean=tuple(rules.mean),
        std=tuple(rules.std),
    )


def download_path(download: Download) -> Path:
    """Return the path of torchvision's file in torch's cache, whether it exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_weights(download).url).name


def download_megabytes(download: Download) -> float:
    """Return the size of torchvision's file in units of 2**20 bytes."""
    return _weights(download).meta["_file_size"]


def _weights(download: Download) -> Any:
    """Return torchvision's description of weights, a member of its enumeration."""
    from torchvision.models import get_weight

    return get_weight(download.torchvision)


def _fetch(download: Download, backbone: Backbone) -> tuple[Mapping[str, Tensor], Weights]:
    if download.timm:
        return _fetch_timm(download.timm, weights_remedy(backbone))
    remedy = weights_remedy(backbone)
    try:
        state = torch.hub.load_state_dict_from_url(
            _weights(download).url, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"cannot download {backbone.title}'s weights ({reason}); {remedy}"
        ) from error
    except OSError as error:
        raise ModelError(
            f"cannot keep {backbone.title}'s weights in {download_path(download).parent} "
            f"({cause_of(error)}); set TORCH_HOME to another folder, or {remedy}"
        ) from error
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"the download of {backbone.title}'s weights is unusable ({error}); {remedy}"
        ) from error
    name = str(_weights(download))  # not an alias such as DEFAULT
    return state, Weights(source=name, sha256=regular_sha256(download_path(download)))


def _fetch_timm(name: str, remedy: str) -> tuple[Mapping[str, Tensor], Weights]:
    """Have timm download a model, into the Hugging Face cache; return its tensors."""
    try:
        state = timm_models.download(name)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise ModelError(f"cannot download timm's weights {name} ({reason}); {remedy}") from error
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return state, Weights(source=f"{timm_models.PREFIX}{name}", sha256=digest.hexdigest())


def _read(path: Path, backbone: Backbone) -> tuple[Mapping[str, Tensor], Weights]:
    if not path.exists():
        raise missing_weights(backbone, path)
    load = load_safetensors if path.suffix == ".safetensors" else load_pickled
    try:
        state = tensors_of(load(path))
    except (OSError, ArtifactError) as error:
        raise ModelError(
            f"cannot read weights from {path}: {cause_of(error)}; {weights_remedy(backbone)}"
        ) from error
    return state, Weights(source=path.name, sha256=regular_sha256(path))
