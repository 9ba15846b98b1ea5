"""Heat maps of the image regions that support a class."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from tltools.atomic import refuse_foreign, refuse_lost_link
from tltools.backbones import find_backbone
from tltools.backbones.backbone import MapsAxes
from tltools.card import FORBIDDEN, Card, Preprocessing
from tltools.data.folders import find_images, make_output_folder, own_content, refuse_run
from tltools.data.images import load_image, printable_name
from tltools.data.suffixes import IMAGE_SUFFIXES
from tltools.errors import ConfigError, DataError
from tltools.metrics import softmax
from tltools.plots import MARK, plot_heat
from tltools.progress import SILENT, Progress
from tltools.runtime.device import Device, tell_device, torch_device
from tltools.wording import did_you_mean, in_percent, listed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tltools.training.models import Classifier

MAX_CELLS = 14
"""Maximum cells per side of the grid in which evidence is summed, coarse enough to read."""
MAX_OF_FOLDER = 20
"""Most images that are drawn of a folder; images that are named have no limit."""
_VIEW = 2
"""Scale of a drawn image relative to the model's input, along each side."""
_MAX_NAME_BYTES = 80
"""Limit for each part of a file name, so that a name stays below the usual 255 bytes."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A model's prediction for one image, and the heat map of a class."""

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
    """Evidence for that class, (S, S), as a fraction of the largest value, in [0, 1]; all zero if
    there is none."""
    output: Path
    """The PNG that was written."""


def heat_maps(
    model: "Classifier",
    maps: "nn.Module",
    images: "Tensor",
    targets: "Tensor",
    *,
    axes: MapsAxes = "NCHW",
) -> "Tensor":
    """Compute heat maps of the regions that support a class in each image.

    HiResCAM (Draelos and Carin, arXiv:2011.08891) by captum: the activations of the last spatial
    layer, times the gradients of the class's logit there, summed over channels. For a head that is
    one linear layer on these activations or on their averages (the cnn, and vgg16's pooled head),
    the values of all locations plus the head's bias add up to the logit. For the pooled head this
    is the class activation map of Zhou et al. (arXiv:1512.04150), and Grad-CAM gives the same map.
    For the cnn, whose head weights each location separately, Grad-CAM would highlight locations
    that the logit does not depend on, because it averages the gradients over the image first.

    In a vision transformer the layer is the input of the last attention: behind it only the class
    token decides.

    Args:
        model: In eval mode, on the images' device.
        maps: Its last spatial layer, whose output has height and width.
        images: Uint8 (N, S, S, 3).
        targets: The class of each heat map, int64 (N,).
        axes: Order of the axes of that layer's output.

    Returns:
        Positive evidence as a fraction of each image's largest value, float32 (N, S, S) in [0, 1]
        on the CPU; zeros if nothing supports the class.
    """
    from captum.attr import LayerAttribution

    values = evidence(model, maps, images, targets, axes=axes)
    cells = min(MAX_CELLS, *values.shape[1:])
    # Averages instead of sums: the division below removes the constant factor between them.
    grid = LayerAttribution.interpolate(values[:, None], (cells, cells), "area")
    size = images.shape[1]
    heat = LayerAttribution.interpolate(grid.clamp(min=0), (size, size), "bilinear")[:, 0]
    # Divide by the maximum of the map itself: interpolation can lower the grid's maximum.
    largest = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / largest.clamp(min=1e-12)).clamp(max=1).cpu()


def evidence(
    model: "Classifier",
    maps: "nn.Module",
    images: "Tensor",
    targets: "Tensor",
    *,
    axes: MapsAxes = "NCHW",
) -> "Tensor":
    """Compute what each location adds to the logit of a class; negative is evidence against it.

    Args:
        model: As for `heat_maps`.
        maps: As for `heat_maps`.
        images: As for `heat_maps`.
        targets: As for `heat_maps`.
        axes: As for `heat_maps`.

    Returns:
        Float32 (N, H, W) on the images' device, at the resolution of `maps`.
    """
    import torch
    from captum.attr import LayerGradientXActivation

    # captum needs gradients at the layer's output only, so a frozen backbone works and computes no
    # gradients.
    method = LayerGradientXActivation(model, maps)
    products = method.attribute(images, target=targets)
    assert isinstance(products, torch.Tensor)  # one layer with one output
    values = products.sum(dim=axes.index("C")).detach()
    if axes != "NLC":
        return values
    side = math.isqrt(values.shape[1])  # tokens that are no location come first
    return values[:, values.shape[1] - side**2 :].unflatten(1, (side, side))


def explain_images(
    run: Path,
    paths: Sequence[Path],
    output: Path,
    *,
    class_name: str | None = None,
    device: Device = "auto",
    on_error: Callable[[DataError], None] | None = None,
    progress: Progress = SILENT,
) -> Iterator[Explanation]:
    """Draw a heat map for each readable image; all are checked before the first is drawn.

    Args:
        run: Run folder; an export has no gradients.
        paths: Images and folders of images; see `images_of`.
        output: PNG for a single image, or a folder, created if missing; see `output_paths`.
        class_name: Class to explain; None explains each image's predicted class.
        device: One of `TorchKind`, or a GPU such as `cuda:1`.
        on_error: Called for each unreadable image, which is left out; None to raise the error.
        progress: Receives progress over the images.

    Yields:
        An explanation per readable image, in the order of `paths`.

    Raises:
        ConfigError: If the class is not one of the model's, or `output` does not fit `paths`.
        DataError: If a file is not a readable image, without `on_error`; see also `images_of`.
        ArtifactError, DeviceError, TltoolsError: See `load_run`, `torch_device` and `atomic`.
    """
    from tltools.training.run import load_run

    refuse_lost_link(output)
    choice = torch_device(device)
    model, card = load_run(run)
    target = check_class(card, class_name)
    images = images_of(paths, progress)
    outputs = output_paths(images, output, card=card, class_name=class_name)
    rules = card.preprocessing
    pairs = zip(images, outputs, strict=True)
    pairs = [pair for pair in pairs if _is_readable(pair[0], rules, on_error)]
    if pairs and outputs[0] != output:
        make_output_folder(output)
    tell_device(choice, progress)
    model.to(choice.name)
    with progress.bar("Explaining", len(pairs)) as bar:
        for path, png in pairs:
            found = _explain(model, card, load_image(path, rules), target, path=path, output=png)
            _draw(found, load_image(path, replace(rules, size=_VIEW * rules.size)), run=card.run)
            bar.advance()
            yield found


def images_of(paths: Sequence[Path], progress: Progress = SILENT) -> list[Path]:
    """Return the images that are named, and those of folders, found as by `find_images`.

    A folder with more than `MAX_OF_FOLDER` images gives this many, evenly spaced in its listing, so
    that each of a few subfolders, such as those of classes, has its share.

    Args:
        paths: Images and folders.
        progress: Receives a message about each folder whose images are not all taken.

    Raises:
        DataError: If a folder has no images, is a run, or cannot be listed.
    """
    images: list[Path] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        refuse_run(path, "images", "name images, or a folder of them")
        found = list(find_images(path))
        if not found:
            raise DataError(
                f"no images in {path}{own_content(path)}; name images, or a folder of them"
            )
        number = min(len(found), MAX_OF_FOLDER)
        images += [found[index * len(found) // number] for index in range(number)]
        if number < len(found):
            progress.say(
                f"Drawing {number} of {len(found):,} images in {path}, evenly spaced; name images "
                "to draw others"
            )
    return images


def _is_readable(
    path: Path, rules: Preprocessing, on_error: Callable[[DataError], None] | None
) -> bool:
    """Report an image that cannot be read, before any is drawn; decoding twice is cheap."""
    try:
        load_image(path, rules)
    except DataError as error:
        whole = str(error).replace(f" {printable_name(path)}: ", f" {path}: ", 1)
        failure = DataError(whole)
        if on_error is None:
            raise failure from error
        on_error(failure)
        return False
    return True


def _explain(
    model: "Classifier",
    card: Card,
    image: NDArray[np.uint8],
    target: int | None,
    *,
    path: Path,
    output: Path,
) -> Explanation:
    """Explain one image, uint8 (S, S, 3), for a class or, by default, the predicted one."""
    import torch

    batch = torch.from_numpy(image[None]).to(model.scale.device)
    with torch.no_grad():
        logits = model(batch).float().cpu()  # (1, C)
    probs = softmax(logits.numpy(), temperature=card.temperature)[0]  # (C,)
    predicted = int(logits[0].argmax())
    explained = predicted if target is None else target
    backbone = find_backbone(card.model)
    maps = model.backbone.get_submodule(backbone.last_maps)
    targets = torch.tensor([explained], device=batch.device)
    heat = heat_maps(model, maps, batch, targets, axes=backbone.maps_axes)[0]
    return Explanation(
        path=path,
        label=card.classes[predicted],
        confidence=float(probs[predicted]),
        explained=card.classes[explained],
        probability=float(probs[explained]),
        heat=heat.numpy(),
        output=output,
    )


def check_class(card: Card, class_name: str | None) -> int | None:
    """Return the index of a class; None if none is named.

    Raises:
        ConfigError: If the model has no such class.
    """
    if class_name is None:
        return None
    if class_name not in card.classes:
        raise ConfigError(
            f"run {card.run} has no class {class_name!r};{did_you_mean(class_name, card.classes)} "
            f"`class_name=` takes one of {listed(card.classes)}"
        )
    return card.classes.index(class_name)


def _draw(found: Explanation, view: NDArray[np.uint8], *, run: str) -> None:
    said = f"{found.label}, {in_percent(found.confidence)}"
    if found.explained != found.label:
        said += f" ({found.explained}, {in_percent(found.probability)})"
    name = found.path.name
    plot_heat(
        view,
        found.heat,
        found.output,
        title=name if name.isprintable() else ascii(name),
        image_title=f"{run}: {said}",
        heat_title=f"evidence for {found.explained}"
        if found.heat.any()
        else f"no evidence for {found.explained}",
    )


def output_paths(
    paths: Sequence[Path], output: Path, *, card: Card, class_name: str | None = None
) -> list[Path]:
    """Return a distinct path for each image's heat map, which replaces nothing but a heat map.

    In a folder, files are named after the image, the run and the requested class.

    Args:
        paths: Images.
        output: A .png file for one image, or a folder.
        card: The run's card.
        class_name: The requested class, if any.

    Raises:
        ConfigError: If `output` is unsuitable, or would replace one of the images or another file.
    """
    suffix = output.suffix.lower()
    if not output.is_dir() and suffix in IMAGE_SUFFIXES:
        if suffix != ".png":
            raise ConfigError(f"heat maps are PNG files; use `output={output.with_suffix('.png')}`")
        if len(paths) > 1:
            raise ConfigError(
                f"`output={output}` is one file for {len(paths)} images; name a folder"
            )
        outputs = [output]
    elif output.exists() and not output.is_dir():
        raise ConfigError(
            f"`output={output}` is neither a folder nor a .png file; name one of them"
        )
    else:
        ending = "".join(f".{_part(name)}" for name in (card.run, class_name) if name)
        taken: set[str] = set()
        outputs = [output / _new_name(_part(path.stem), ending, taken) for path in paths]
    images = {os.path.realpath(path) for path in paths}
    for one in outputs:
        if os.path.realpath(one) in images:
            raise ConfigError(f"{one} is one of the images; choose another `output=`")
        refuse_foreign(one, MARK, "a heat map")
    return outputs


def _part(name: str) -> str:
    """Make a name safe as part of a file name: printable characters that every system allows."""
    kept = "".join(
        char if char.isprintable() and char not in FORBIDDEN else "_" for char in name
    ).strip(" .")
    return kept.encode()[:_MAX_NAME_BYTES].decode(errors="ignore") or "_"


def _new_name(stem: str, ending: str, taken: set[str]) -> str:
    """Return a PNG name that is not in `taken`, ignoring case, and add it."""
    number = 1
    while True:
        name = f"{stem}{'' if number == 1 else f'-{number}'}{ending}.png"
        if name.casefold() not in taken:
            taken.add(name.casefold())
            return name
        number += 1
