"""Where a run's model looks: heat maps of what speaks for a class, laid over images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tltools.backbones import find_backbone
from tltools.card import FORBIDDEN, Card, Preprocessing
from tltools.data.images import load_image
from tltools.data.suffixes import IMAGE_SUFFIXES
from tltools.errors import ConfigError
from tltools.metrics import softmax
from tltools.plots import plot_heat
from tltools.progress import SILENT, Progress
from tltools.runtime.device import Device, torch_device

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tltools.training.models import Classifier

MAX_CELLS = 14
"""Cells along a side of the grid that evidence is added up in: what an eye can tell apart."""
_VIEW = 2
"""How much larger than the model's input an image is drawn, along each side."""
_MAX_NAME_BYTES = 80
"""Of each part of a file's name: with the others it stays below the 255 bytes of most systems."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a model says of one image, and where it sees it."""

    path: Path
    label: str
    """The predicted class."""
    confidence: float
    """Its calibrated probability, in [0, 1]."""
    explained: str
    """The class that the heat map is for."""
    probability: float
    """Its calibrated probability, in [0, 1]."""
    heat: NDArray[np.float32]
    """What speaks for that class, (S, S), as a share of the largest value, in [0, 1]; all zero if
    nothing does."""
    output: Path
    """The PNG that was written."""


def heat_maps(
    model: "Classifier", maps: "nn.Module", images: "Tensor", targets: "Tensor"
) -> "Tensor":
    """Return where in each image the model finds what speaks for a class.

    HiResCAM (Draelos and Carin, arXiv:2011.08891) by captum: the activations of the last layer
    that has places, times the gradients of the class's logit there, summed over channels. For a
    head that is one linear layer on these activations or on their averages (the cnn, and vgg16's
    pooled head) the values of all places and the head's bias add up to the logit. For the pooled
    head this is the class activation map of Zhou et al. (arXiv:1512.04150), and Grad-CAM there
    gives the same; Grad-CAM averages the gradients over the image first, so that for the cnn,
    whose head weighs each place by itself, it points at places that the logit does not depend on.

    Args:
        model: In eval mode, on the images' device.
        maps: Its last layer whose output has height and width.
        images: Uint8 (N, S, S, 3).
        targets: The class of each heat map, int64 (N,).

    Returns:
        What is positive, as a share of each image's largest value: float32 (N, S, S) in [0, 1]
        on the CPU; zeros where nothing speaks for the class.
    """
    from captum.attr import LayerAttribution

    values = evidence(model, maps, images, targets)
    cells = min(MAX_CELLS, *values.shape[1:])
    # Adaptive averages: the sum of a cell and its average differ by a factor that the division
    # below removes.
    grid = LayerAttribution.interpolate(values[:, None], (cells, cells), "area")
    size = images.shape[1]
    heat = LayerAttribution.interpolate(grid.clamp(min=0), (size, size), "bilinear")[:, 0]
    # By the grid's maximum: between the middles of two cells the values are lower.
    largest = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / largest.clamp(min=1e-12)).clamp(max=1).cpu()


def evidence(
    model: "Classifier", maps: "nn.Module", images: "Tensor", targets: "Tensor"
) -> "Tensor":
    """Return what each place adds to the logit of a class; negative where it speaks against it.

    Args:
        model: As for `heat_maps`.
        maps: As for `heat_maps`.
        images: As for `heat_maps`.
        targets: As for `heat_maps`.

    Returns:
        Float32 (N, H, W) on the images' device, at the resolution of `maps`.
    """
    import torch
    from captum.attr import LayerGradientXActivation

    # captum asks for gradients at the layer's output, so that a frozen backbone is no obstacle and
    # none of its gradients are computed.
    method = LayerGradientXActivation(model, maps)
    products = method.attribute(images, target=targets)  # (N, C, H, W)
    assert isinstance(products, torch.Tensor)  # one layer with one output
    return products.sum(dim=1).detach()


def explain_images(
    run: Path,
    paths: Sequence[Path],
    output: Path,
    *,
    class_name: str | None = None,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> Iterator[Explanation]:
    """Draw a heat map for each image, once all of them have been found to be images.

    Args:
        run: A run folder: an export has no gradients.
        paths: Images.
        output: A PNG for a single image, or a folder, which is made; see `output_paths`.
        class_name: What to look for; None for each image's predicted class.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        progress: Shows the images.

    Yields:
        What was drawn, in the order of `paths`.

    Raises:
        ConfigError: If the class is not one of the model's, or `output` does not fit `paths`.
        DataError: If a file is not an image; nothing is written then.
        ArtifactError, DeviceError: See `load_run` and `torch_device`.
    """
    from tltools.training.run import load_run

    choice = torch_device(device)
    model, card = load_run(run)
    target = _class_index(card, class_name)
    outputs = output_paths(paths, output, card=card, class_name=class_name)
    rules = card.preprocessing
    large = Preprocessing(size=_VIEW * rules.size, resize=rules.resize)
    for path in paths:  # decoded twice, which takes a fraction of what drawing takes
        load_image(path, rules)
    progress.say(f"Device: {choice.name} ({choice.reason})")
    model = model.to(choice.name)
    with progress.bar("Explaining", len(paths)) as bar:
        for path, png in zip(paths, outputs, strict=True):
            image = load_image(path, rules)
            found = _explain(model, card, image, target, path=path, output=png)
            view = load_image(path, large)
            _draw(found, view, run=card.run)
            bar.advance()
            yield found


def _explain(
    model: "Classifier",
    card: Card,
    image: NDArray[np.uint8],
    target: int | None,
    *,
    path: Path,
    output: Path,
) -> Explanation:
    """Find the heat map of one image, (S, S, 3), for a class or for the predicted one."""
    import torch

    batch = torch.from_numpy(image[None]).to(model.scale.device)
    with torch.no_grad():
        logits = model(batch).float().cpu()  # (1, C)
    probs = softmax(logits.numpy(), temperature=card.temperature)[0]  # (C,)
    predicted = int(logits[0].argmax())
    explained = predicted if target is None else target
    maps = model.backbone.get_submodule(find_backbone(card.model).last_maps)
    heat = heat_maps(model, maps, batch, torch.tensor([explained], device=batch.device))[0]
    return Explanation(
        path=path,
        label=card.classes[predicted],
        confidence=float(probs[predicted]),
        explained=card.classes[explained],
        probability=float(probs[explained]),
        heat=heat.numpy(),
        output=output,
    )


def _class_index(card: Card, class_name: str | None) -> int | None:
    if class_name is None:
        return None
    if class_name not in card.classes:
        raise ConfigError(
            f"run {card.run} knows no class {class_name!r}; --class takes one of "
            f"{', '.join(card.classes)}"
        )
    return card.classes.index(class_name)


def _draw(found: Explanation, view: NDArray[np.uint8], *, run: str) -> None:
    said = f"{found.label}, {found.confidence:.1%}"
    if found.explained != found.label:
        said += f" ({found.explained}, {found.probability:.1%})"
    name = found.path.name
    plot_heat(
        view,
        found.heat,
        found.output,
        title=name if name.isprintable() else ascii(name),
        image_title=f"{run}: {said}",
        heat_title=f"what speaks for {found.explained}"
        if found.heat.any()
        else f"nothing speaks for {found.explained}",
    )


def output_paths(
    paths: Sequence[Path], output: Path, *, card: Card, class_name: str | None = None
) -> list[Path]:
    """Return where each image's heat map goes: no two in the same place, and none in an image's.

    In a folder the files are called after the image, the run and the class that was asked for.

    Args:
        paths: Images.
        output: A file that ends in .png, for one image, or a folder.
        card: Of the run.
        class_name: What was asked for.

    Raises:
        ConfigError: If `output` does not fit, or would replace one of the images.
    """
    suffix = output.suffix.lower()
    if not output.is_dir() and suffix in IMAGE_SUFFIXES:
        if suffix != ".png":
            raise ConfigError(f"heat maps are PNG files: --output {output.with_suffix('.png')}")
        if len(paths) > 1:
            raise ConfigError(
                f"--output {output} is one file for {len(paths)} images; name a folder"
            )
        outputs = [output]
    elif output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is neither a folder nor a .png: name one of them")
    else:
        ending = "".join(f".{_part(name)}" for name in (card.run, class_name) if name)
        taken: set[str] = set()
        outputs = [output / _new_name(_part(path.stem), ending, taken) for path in paths]
    images = {os.path.realpath(path) for path in paths}
    for one in outputs:
        if os.path.realpath(one) in images:
            raise ConfigError(f"{one} is one of the images: give another --output")
    return outputs


def _part(name: str) -> str:
    """Return a name as a part of a file's name: visible letters that no system forbids."""
    kept = "".join(
        char if char.isprintable() and char not in FORBIDDEN else "_" for char in name
    ).strip(" .")
    return kept.encode()[:_MAX_NAME_BYTES].decode(errors="ignore") or "_"


def _new_name(stem: str, ending: str, taken: set[str]) -> str:
    """Return a PNG's name that is not among `taken`, whatever the case of its letters; add it."""
    number = 1
    while True:
        name = f"{stem}{'' if number == 1 else f'-{number}'}{ending}.png"
        if name.casefold() not in taken:
            taken.add(name.casefold())
            return name
        number += 1
