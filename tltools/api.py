"""Classify pictures from within a program: files, bytes and decoded pictures in, labels out."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tltools.card import Card
from tltools.classify import Prediction, classify
from tltools.data.image_ref import Content, Decoded, ImageRef
from tltools.data.images import fit_image
from tltools.errors import ConfigError, DataError
from tltools.parallel import ordered_map
from tltools.runtime import Device, Plan, Predictor, open_model

AnyPicture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""The path of a file, a file's bytes, or a decoded picture: Pillow's, or (H, W, 3), RGB."""


class PicturePredictor:
    """An opened export that takes pictures in whatever form a program has them.

    Made by `load_model`. What it answers for a file is what `tltools classify` writes for it.
    """

    def __init__(self, model: Predictor, plan: Plan) -> None:
        """Take what `tltools.runtime.open_model` returns."""
        self._model = model
        self._plan = plan

    @property
    def card(self) -> Card:
        """What the export knows of itself: preprocessing, accuracy, training data, parity."""
        return self._model.card

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of `Prediction.probabilities`."""
        return self._model.card.classes

    @property
    def device(self) -> str:
        """Where the model runs: `cpu` or `cuda`."""
        return self._model.device

    def predict(
        self, pictures: Iterable[AnyPicture], *, min_confidence: float | None = None
    ) -> list[Prediction]:
        """Classify pictures; safe to call from several threads at once.

        Files and bytes are decoded in threads while the model runs. A decoded picture is resized
        from all of its pixels, whereas JPEG files that are much larger than the model's input are
        decoded at a reduced scale; probabilities differ a little by that.

        Args:
            pictures: Each is a path (str or os.PathLike), the bytes of a picture file, a Pillow
                image, or an array (H, W, 3), uint8, RGB. Forms may be mixed.
            min_confidence: What is less likely than that, in [0, 1], is labelled `uncertain`;
                None: every picture gets a class.

        Returns:
            One prediction for each picture, in order. A picture that cannot be read has its
            reason in `error`, and neither label nor probabilities. `name` is the path as given,
            or the picture's number in the call, from 0.

        Raises:
            ConfigError: If `min_confidence` is not in [0, 1].
            DeviceError: If the device fails, for lack of memory for instance.
            TypeError: If `pictures` is one picture and no list, or holds something else.
            ValueError: If an array's type or shape is none of a picture.
        """
        if isinstance(pictures, str | bytes | os.PathLike | Image.Image):
            raise TypeError("predict takes several pictures: write predict([picture])")
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise ConfigError(f"min_confidence must be in [0, 1], got {min_confidence}")
        workers = self._plan.workers
        # Decoded pictures are resized in threads, so that no pixels go to another process.
        prepared = ordered_map(self._prepare, enumerate(pictures), workers=workers, ahead=workers)
        return list(classify(self._model, prepared, plan=self._plan, min_confidence=min_confidence))

    def _prepare(self, numbered: tuple[int, AnyPicture]) -> ImageRef:
        """Return what the pipeline takes for a picture."""
        number, picture = numbered
        name = str(number)
        if isinstance(picture, str | os.PathLike):
            path = os.fspath(picture)
            return ImageRef.of_file(path, name=path)
        if isinstance(picture, bytes):
            return ImageRef(name, Content.of(picture))
        try:
            pixels = fit_image(picture, self.card.preprocessing)
        except DataError as error:
            return ImageRef(name, Decoded(error))
        return ImageRef(name, Decoded(pixels))


def load_model(
    path: str | os.PathLike[str],
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
) -> PicturePredictor:
    """Open an export to classify images with; ONNX needs no PyTorch.

    Args:
        path: The file. ONNX is checked before it is opened; formats of PyTorch's are code.
        device: `auto` takes CUDA where it works, and the CPU elsewhere; `cpu`; `cuda`, `tensorrt`
            and `openvino` run there or raise DeviceError.
        batch_size: Pictures in one call of the model; None to choose. On a GPU each call has so
            many, whatever the number of files: small numbers suit programs that have few at once.
        threads: Cores of one call on the CPU; None to choose.

    Raises:
        ArtifactError: If the file is missing, is not an export, lacks its card or contradicts it.
        ConfigError: If `batch_size` or `threads` is not positive.
        DeviceError: If a device is asked for that cannot run the model.
        ParityError: If the model answers otherwise here than where it was made.

        All of them are TltoolsErrors.
    """
    model, plan = open_model(Path(path), device=device, batch_size=batch_size, threads=threads)
    return PicturePredictor(model, plan)
