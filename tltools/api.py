"""Classify images from within a program: files, bytes and decoded images in, labels out."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tltools.card import Card
from tltools.classify import Prediction, classify
from tltools.classify.predict import check_min_confidence
from tltools.classify.threshold import ThresholdChoice, resolve_threshold
from tltools.data.image_ref import Content, Decoded, ImageRef
from tltools.data.images import fit_image
from tltools.errors import DataError
from tltools.parallel import ordered_map
from tltools.runtime import Device, Plan, Predictor, open_model, read_card
from tltools.runtime.exports import gives_distances

AnyImage: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""The path of a file, a file's bytes, or a decoded image: Pillow's, or (H, W, 3), RGB."""


class ImagePredictor:
    """An opened export that takes images in whatever form a program has them.

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
        self,
        images: Iterable[AnyImage],
        *,
        min_confidence: float | None = None,
        threshold: ThresholdChoice | None = None,
        class_name: str | None = None,
        unknown: float | None = None,
    ) -> list[Prediction]:
        """Classify images; safe to call from several threads at once.

        Files and bytes are decoded in threads while the model runs. A decoded image is resized
        from all of its pixels, whereas JPEG files that are much larger than the model's input are
        decoded at a reduced scale; probabilities differ a little by that.

        Args:
            images: Each is a path (str or os.PathLike), the bytes of an image file, a Pillow
                image, or an array (H, W, 3), uint8, RGB. Forms may be mixed.
            min_confidence: What is less likely than that, in [0, 1], is labeled `uncertain`;
                None: every image gets a class.
            threshold: An image gets the class `class_name` if its probability is at least that, in
                [0, 1], and else the most probable other class. `auto` takes the threshold that the
                export's card has; None: every image gets its most probable class.
            class_name: The class of the threshold; None: the second of two classes.
            unknown: What is beyond this percentile of training images' distances is `unknown`.

        Returns:
            One prediction for each image, in order. An image that cannot be read has its
            reason in `error`, and neither label nor probabilities. `name` is the path as given,
            or the image's number in the call, from 0. `distance` is None if the export has none.

        Raises:
            ArtifactError: If the export does not give the distances that `unknown` needs.
            ConfigError: If a number is out of range, or the export has no such class or threshold.
            DeviceError: If the device fails, for lack of memory for instance.
            TypeError: If `images` is one image and no list, or holds something else.
            ValueError: If an array's type or shape is none of an image.
        """
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise TypeError("predict takes several images: write predict([image])")
        check_min_confidence(min_confidence, self.card.classes)
        applied = resolve_threshold(
            self.card, threshold, class_name=class_name, min_confidence=min_confidence
        )
        workers = self._plan.workers
        # Decoded images are resized in threads, so that no pixels go to another process.
        prepared = ordered_map(self._prepare, enumerate(images), workers=workers, ahead=workers)
        options = {"unknown": unknown, **applied._asdict()}
        return list(classify(self._model, prepared, plan=self._plan, **options))

    def _prepare(self, numbered: tuple[int, AnyImage]) -> ImageRef:
        """Return what the pipeline takes for an image."""
        number, image = numbered
        name = str(number)
        if isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            return ImageRef.of_file(path, name=path)
        if isinstance(image, bytes):
            return ImageRef(name, Content.of(image))
        try:
            pixels = fit_image(image, self.card.preprocessing)
        except DataError as error:
            return ImageRef(name, Decoded(error))
        return ImageRef(name, Decoded(pixels))


def load_model(
    path: str | os.PathLike[str],
    *,
    device: Device = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
) -> ImagePredictor:
    """Open an export to classify images with; ONNX needs no PyTorch.

    Args:
        path: The file. ONNX is checked before it is opened; formats of PyTorch's are code.
        device: `auto` takes CUDA where it works, and the CPU elsewhere; `cpu`; `cuda`, `tensorrt`
            and `openvino` run there or raise DeviceError.
        batch_size: Images in one call of the model; None to choose. On a GPU each call has so
            many, whatever the number of files: small numbers suit programs that have few at once.
        threads: Cores of one call on the CPU; None to choose.

    Raises:
        ArtifactError: If the file is missing, is not an export, lacks its card or contradicts it.
        ConfigError: If `batch_size` or `threads` is not positive.
        DeviceError: If a device is asked for that cannot run the model.
        ParityError: If the model answers otherwise here than where it was made.

        All of them are TltoolsErrors.
    """
    model, plan = open_model(
        Path(path),
        device=device,
        batch_size=batch_size,
        threads=threads,
        distances=gives_distances(read_card(Path(path))),
    )
    return ImagePredictor(model, plan)
