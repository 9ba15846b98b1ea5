"""timm's models as frozen backbones: `timm:NAME`, with the extra `timm`."""

from functools import cache, partial
from importlib import import_module
from math import floor
from typing import TYPE_CHECKING, Any

from tltools.backbones.backbone import (
    IMAGENET,
    Backbone,
    Download,
    MapsAxes,
    Preset,
    Pretrained,
)
from tltools.backbones.recipes import FINE_TUNING, HEAD
from tltools.backbones.torchvision_models import LAST_LAYER
from tltools.errors import ConfigError, ModelError
from tltools.packages import pip_install
from tltools.wording import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "timm:"
_INTERPOLATIONS = ("bilinear", "bicubic")


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"`model={PREFIX}NAME` needs timm ({error}): {pip_install('timm')}"
        ) from error


@cache
def find(name: str) -> Backbone:
    """Describe one of timm's models.

    Args:
        name: timm's name, behind `PREFIX`, as timm.create_model takes it.

    Raises:
        ConfigError: If timm is not installed, or has no such model.
        ModelError: If the model is of no use as a backbone.
    """
    timm = _timm()
    model_name = name.removeprefix(PREFIX)
    if not timm.is_model(model_name.partition(".")[0]) or "/" in model_name:
        meant = did_you_mean(name, (PREFIX + one for one in timm.list_models()))
        raise ConfigError(f"timm has no model {model_name!r};{meant} timm.list_models() lists them")
    layers = _create(timm, model_name)
    size = layers.pretrained_cfg["input_size"][-1]
    last_maps, axes = _last_maps(layers, size, name)
    return Backbone(
        name=name,
        title=name,
        build_layers=partial(_build, model_name),
        heads=LAST_LAYER,
        recipes={"default": HEAD},
        # Its networks are not a sequence of layers, so none can be split before a block.
        fine_tuning={"all": FINE_TUNING["all"]},
        last_maps=last_maps,
        maps_axes=axes,
        last_block=(_last_weights(layers, last_maps.partition(".")[0]),),
        input_size=size,
        min_size=32,
        computes_constants=True,
        pretrained=Pretrained(
            first_tensor=next(iter(layers.state_dict())),
            downloads={IMAGENET: Download(timm=model_name)},
        ),
    )


def _create(timm: Any, name: str, **changes: Any) -> Any:
    """Build a model without its head and without weights."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **changes)
    except RuntimeError as error:  # an unknown set of weights
        raise ConfigError(
            f"timm has no {name}: {error}; timm.list_pretrained() lists them"
        ) from error


def _build(name: str, head: str, size: int) -> "tuple[nn.Module, int]":  # noqa: ARG001 - only one
    timm = _timm()
    from tltools.backbones.layers import replace_average_pools

    layers = _create(timm, name)
    replace_average_pools(layers)
    config = layers.pretrained_cfg
    if config.get("fixed_input_size") and size != config["input_size"][-1]:
        raise ModelError(
            f"{PREFIX}{name} takes only images of {config['input_size'][-1]} pixels, not {size}; "
            "leave out `image_size=`"
        )
    return layers, layers.head_hidden_size


def _last_maps(layers: "nn.Module", size: int, name: str) -> tuple[str, MapsAxes]:
    """Run the model once, to find the last layer whose output has height and width."""
    import torch

    found: list[tuple[str, tuple[int, ...]]] = []

    def remember(module_name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                found.append((module_name, tuple(output.shape)))

        return hook

    hooks = [one.register_forward_hook(remember(key)) for key, one in layers.named_modules() if key]
    with torch.inference_mode():
        layers.eval()(torch.zeros(1, 3, size, size))
    for one in hooks:
        one.remove()
    for key, shape in reversed(found):
        if len(shape) == 4 and min(shape[1:]) > 1:
            return key, "NHWC" if shape[1] == shape[2] != shape[3] else "NCHW"
        if len(shape) == 3 and key.endswith(("norm1", "ln_1")):
            return key, "NLC"
    raise ModelError(f"{name} has no feature maps that tltools knows; choose another `model=`")


def _last_weights(layers: "nn.Module", child: str) -> str:
    """Return the last child with weights among those up to the given one."""
    names: list[str] = []
    for name, layer in layers.named_children():
        if any(True for _ in layer.parameters()):
            names.append(name)
        if name == child:
            break
    return names[-1]


def load_preset(name: str) -> Preset:
    """Return the preprocessing of a model's weights.

    Raises:
        ModelError: If tltools cannot resample as the weights need.
    """
    config = _create(_timm(), name).pretrained_cfg
    size = config["input_size"][-1]
    if config["interpolation"] not in _INTERPOLATIONS:
        raise ModelError(
            f"{PREFIX}{name} resizes images by {config['interpolation']!r}, which tltools does not "
            f"support ({' and '.join(_INTERPOLATIONS)}); choose another `model=`"
        )
    return Preset(
        size=size,
        crop_ratio=floor(size / config["crop_pct"]) / size,  # as timm's transforms round it
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def download(name: str) -> "dict[str, Tensor]":
    """Return a model's published weights, which timm downloads unless they are cached.

    Raises:
        OSError, RuntimeError, ValueError: If timm cannot load them.
    """
    layers = _timm().create_model(name, pretrained=True, num_classes=0)
    return dict(layers.state_dict())
