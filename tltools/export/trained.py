"""A run being exported: its model, its images, and intermediate results that its files share."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tltools.atomic import temporary_folder
from tltools.backbones import find_backbone
from tltools.calibration import fit_temperature
from tltools.card import Calibration, Confidence, Distances, Precision
from tltools.distance import Distance, load_distance, measure_distances
from tltools.errors import DataError
from tltools.evaluate import predict
from tltools.export.folding import fold
from tltools.export.parity import BARS, wanted_images
from tltools.graphs.onnx_file import example_images
from tltools.graphs.precision import WEIGHT_BITS
from tltools.progress import Progress
from tltools.run_folder import DISTANCE, if_moved, read_split
from tltools.runtime.device import Device
from tltools.runtime.pipeline import decode_batches
from tltools.training.head_inputs import HeadInputs, collecting, num_channels
from tltools.training.models import Classifier
from tltools.training.run import load_run, open_run

CALIBRATION_BATCH = 16
DISTANCE_IMAGES = 512
"""Training images that a distance is fitted to, if the training has not fitted it to more."""
NUM_DISTANCES = 32
"""Validation images that an export's distances are compared on."""


class TrainedRun:
    """A run's model and images; a `tltools.runtime.model_formats.Trained`.

    Results that several files share are computed once, on first use.
    """

    def __init__(
        self,
        run: Path,
        output: Path,
        *,
        device: Device,
        num_images: int | None,
        calibration_images: int,
        opset: int,
        progress: Progress,
        stack: ExitStack,
    ) -> None:
        """Open a run.

        Args:
            run: The run folder.
            output: Parent folder of the run's exports; scratch files go there too.
            device: Device that runs the model.
            num_images: Number of images of the validation split to compare; None: all.
            calibration_images: Maximum number of training images that `calibration` yields.
            opset: Opset of ONNX files.
            progress: Shows the images being run.
            stack: Removes the scratch files when it is closed.

        Raises:
            ArtifactError: If the folder is not a run.
            DataError: If the run has no validation images, or some are missing.
            DeviceError: If the device is not available.
        """
        self.model, self.card = load_run(run)
        self.device: Device = device
        self.opset = opset
        self.progress = progress
        self.predictor = open_run(run, device=device)
        self._frame = read_split(run)
        self.run = run
        self._val = _part(self._frame, "val", run)[:num_images]
        self._num_calibration = calibration_images
        self._takes_all = num_images is None
        self._others_reference = np.empty((0, len(self.card.classes)), np.float32)
        self.folder = output / self.card.run
        self._stack = stack
        self.paths = [Path(path) for path in self._val["path"]]
        """Paths of the N validation images that exports are compared on."""

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Class index of each validation image, (N,)."""
        index = {name: number for number, name in enumerate(self.card.classes)}
        return np.array([index[name] for name in self._val["class"]], dtype=np.int64)

    @property
    def reference(self) -> NDArray[np.float32]:
        """PyTorch's logits of `paths`, (N, C)."""
        return self._own[0]

    @cached_property
    def _own(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """PyTorch's logits, (N, C), and pooled features, (N, D), of `paths`."""
        return self._run_model(self.paths)

    @cached_property
    def confidence(self) -> Confidence:
        """The run's calibration, computed now for a run that was trained without."""
        return self.card.confidence or fit_temperature(self.reference, self.targets)

    @cached_property
    def distance(self) -> tuple[Distance, Distances] | None:
        """The run's distance, measured now for a run that was trained without; None if too few.

        Raises:
            ArtifactError: If the run's file cannot be read.
        """
        found = load_distance(self.run / DISTANCE) or self._measured_distance()
        if found is None:
            self.progress.say(
                f"{self.card.run}: too few training images to tell others from; exports have no "
                "output `distance`"
            )
        return found

    def _measured_distance(self) -> tuple[Distance, Distances] | None:
        training = self._frame.loc[self._frame["split"] == "train", "path"]
        chosen = training.sample(frac=1.0, random_state=0)
        existing = list(islice(filter(Path.is_file, map(Path, chosen)), DISTANCE_IMAGES))
        if not existing:
            return None
        measured = measure_distances(self._run_model(existing)[1], self._own[1])
        return None if measured is None else (measured.distance, measured.facts)

    @cached_property
    def distances(self) -> NDArray[np.float64]:
        """PyTorch's distances of the first `NUM_DISTANCES` of `paths`, (n,)."""
        assert self.distance is not None
        return self.distance[0](self._own[1][:NUM_DISTANCES])

    def _run_model(self, paths: list[Path]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return PyTorch's logits, (N, C), and pooled features, (N, D), of images."""
        head = self.predictor.model.head
        channels = num_channels(head, find_backbone(self.card.model).flat_channels)
        inputs = HeadInputs(channels, None)
        with collecting(head, inputs):
            logits = self._logits(paths)
        return logits, inputs.values()

    def _logits(self, paths: list[Path]) -> NDArray[np.float32]:
        title = f"Running {self.card.name} in PyTorch"
        return predict(self.predictor, paths, title=title, progress=self.progress)

    def compared(self, wanted: int) -> list[Path]:
        """Return images to compare labels on: `paths`, and others if these are too few.

        The others are training images that `calibration` does not yield: whether two files of a
        model agree does not depend on what the model has seen, but int8 was fitted to those. There
        are none if the number of images was chosen.
        """
        lacking = wanted - len(self.paths)
        return self.paths + (self._others[:lacking] if lacking > 0 and self._takes_all else [])

    def reference_of(self, paths: list[Path]) -> NDArray[np.float32]:
        """Return PyTorch's logits of images that `compared` returned, (N, C)."""
        number = len(paths) - len(self.paths)
        if number > len(self._others_reference):
            new = self._others[len(self._others_reference) : number]
            self._others_reference = np.concatenate([self._others_reference, self._logits(new)])
        logits = np.concatenate([self.reference, self._others_reference[: max(0, number)]])
        return logits[: len(paths)]

    def exact(self, paths: list[Path]) -> NDArray[np.float64]:
        """Return the model's logits of a few images, computed in float64 on the CPU, (N, C)."""
        module = CastClassifier(self.model, torch.float64).eval()
        rules = self.card.preprocessing
        with torch.inference_mode():
            return np.concatenate(
                [
                    module(torch.from_numpy(images)).numpy()
                    for images in decode_batches(paths, preprocessing=rules, batch_size=1)
                ]
            )

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(one.numel() for one in self.model.parameters())

    def module(self, precision: Precision, *, features: bool = False) -> nn.Module:
        """Return the model to write: folded for fp32, or on the run's device for fp16.

        With `features`, it gives a tuple of logits and the features that the head takes.
        """
        if precision == "fp16":
            module = CastClassifier(self.model, torch.float16).eval()
            module = module.to(self.predictor.choice.name)
        else:
            module = fold(self.model)
        return WithFeatures(module) if features else module

    def example(self, precision: Precision) -> Tensor:
        """Return two images, uint8 (2, size, size, 3), on the device of `module`.

        They are noise, for a writer that traces the model.
        """
        images = example_images(self.card.preprocessing.size)
        return images.to(self.predictor.choice.name) if precision == "fp16" else images

    def calibration(self, title: str = "Calibrating int8") -> Iterator[NDArray[np.uint8]]:
        """Yield batches of training images, balanced across the classes where possible."""
        paths = self._calibration_paths
        with self.progress.bar(title, len(paths)) as bar:
            for images in decode_batches(
                paths, preprocessing=self.card.preprocessing, batch_size=CALIBRATION_BATCH
            ):
                yield images
                bar.advance(len(images))

    def describe_calibration(self) -> Calibration:
        """Return the facts about `calibration` for the card."""
        return Calibration(
            method="MinMax",
            num_images=len(self._calibration_paths),
            requested=self._num_calibration,
            weight_bits=WEIGHT_BITS,
        )

    def once(self, name: str, write: Callable[[Path], object]) -> Path:
        """Return the scratch file of this name; write it on first use."""
        path = self._scratch / name
        if not path.exists():
            write(path)
        return path

    @cached_property
    def _scratch(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._stack.enter_context(temporary_folder(self.folder))

    @cached_property
    def _calibration_paths(self) -> list[Path]:
        chosen = _balanced(_part(self._frame, "train", self.run))[: self._num_calibration]
        return [Path(path) for path in chosen["path"]]

    @cached_property
    def _others(self) -> list[Path]:
        """Training images that exist and equal none of those of `calibration`.

        As many as any precision's bar wants: not each of a million is looked for.
        """
        frame = _balanced(self._frame.loc[self._frame["split"] == "train"])
        used = set(frame["sha256"][: self._num_calibration])
        rest = frame.loc[~frame["sha256"].isin(list(used))]
        existing = filter(Path.is_file, map(Path, rest["path"]))
        return list(islice(existing, max(map(wanted_images, BARS.values()))))


def _balanced(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows shuffled, so that the first ones are of all classes alike."""
    shuffled = frame.sample(frac=1.0, random_state=0)
    rank = shuffled.groupby("class").cumcount()
    return shuffled.loc[rank.sort_values(kind="stable").index]


class CastClassifier(nn.Module):
    """A classifier in another dtype; images are normalized in float32 or wider."""

    def __init__(self, model: Classifier, dtype: torch.dtype) -> None:
        """Copy the model's parts; the model itself is not changed."""
        super().__init__()
        self.dtype = dtype
        self.backbone = copy.deepcopy(model.backbone).to(dtype)
        self.head = copy.deepcopy(model.head).to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", model.scale.to(wide, copy=True))
        self.register_buffer("shift", model.shift.to(wide, copy=True))

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 (N, H, W, 3), to logits (N, C) in float32 or wider."""
        wide = self.scale.dtype
        pixels = images.permute(0, 3, 1, 2).to(wide) * self.scale + self.shift
        return self.head(self.backbone(pixels.to(self.dtype))).to(wide)


class WithFeatures(nn.Module):
    """A classifier that also gives the features that its head takes."""

    def __init__(self, model: nn.Module) -> None:
        """Take a classifier, in whatever mode it is, whose last `head` takes the features."""
        super().__init__()
        self.model = model
        self.training = model.training
        # In a list, which does not register it a second time.
        self._head = [one for name, one in model.named_modules() if name.endswith("head")][-1:]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C), and features (N, F)."""
        taken: list[Tensor] = []
        with ExitStack() as stack:
            hook = self._head[0].register_forward_pre_hook(lambda _, given: taken.append(given[0]))
            stack.callback(hook.remove)
            logits = self.model(images)
        return logits, taken[0]


_SPLIT_NAMES = {"val": ("validation", "verified"), "train": ("training", "calibrated")}


def _part(frame: pd.DataFrame, split: Literal["val", "train"], run: Path) -> pd.DataFrame:
    """Return the rows of a split, all of whose images must exist.

    Raises:
        DataError: If it has no images, or some are missing.
    """
    part = frame.loc[frame["split"] == split]
    gone = [path for path in part["path"] if not Path(path).is_file()]
    if gone or not len(part):
        name, need = _SPLIT_NAMES[split]
        what = f"{len(gone):,} are missing (first {gone[0]})" if gone else "it has none"
        remedy = f"restore them; {if_moved(run)}" if gone else "train a run that has some"
        raise DataError(
            f"run {run.name} cannot be {need} on its {name} images: {what}; every export is {need} "
            f"on real images: {remedy}"
        )
    return part
