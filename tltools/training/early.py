"""Check what a training needs before PyTorch is imported, which takes seconds."""

from collections.abc import Sequence
from pathlib import Path

from tltools.backbones import Backbone, find_backbone
from tltools.backbones.backbone import IMAGENET
from tltools.errors import ConfigError, ModelError
from tltools.wording import similar_paths


def check_folds(folds: int) -> None:
    """Refuse a number of folds that is no cross-validation; 0 stands for none.

    Raises:
        ConfigError: If it is 1 or negative.
    """
    if folds < 0 or folds == 1:
        raise ConfigError(f"`folds=` must be at least 2, got {folds}")


def check_weights(models: Sequence[str], source: str) -> None:
    """Refuse a file of weights that does not exist, or that none of the models takes.

    A name without a suffix and without a folder may be that of weights of torchvision, which is
    checked later.

    Args:
        models: Names of backbones.
        source: See `load_weights`.

    Raises:
        ConfigError: If it was chosen and no model takes weights.
        ModelError: If the file does not exist.
    """
    path = Path(source)
    may_be_name = not path.suffix and path.name == source
    pretrained = [one for one in map(find_backbone, models) if one.pretrained is not None]
    if not pretrained and source != IMAGENET:
        raise ConfigError("`weights=` applies to none of the models to train; leave it out")
    for backbone in pretrained:
        assert backbone.pretrained is not None
        if source in backbone.pretrained.downloads:
            continue
        if not may_be_name and not path.exists():
            raise missing_weights(backbone, path)


def missing_weights(backbone: Backbone, path: Path) -> ModelError:
    """Return the error of a file of weights that does not exist."""
    return ModelError(
        f"{path} does not exist{similar_paths(path)}: correct the path in `weights=`, or leave it "
        f"out to download {backbone.title}'s weights"
    )


def weights_remedy(backbone: Backbone) -> str:
    """Say how to get a backbone's weights."""
    return (
        f"provide {backbone.title}'s weights with `weights=FILE` (.safetensors or .pth with "
        f"{_library(backbone)}'s tensor names), run once with network access, so that "
        f"`weights={IMAGENET}` can download them, or train only the small CNN with `model=cnn`"
    )


def _library(backbone: Backbone) -> str:
    assert backbone.pretrained is not None
    return "timm" if backbone.pretrained.downloads[IMAGENET].timm else "torchvision"
