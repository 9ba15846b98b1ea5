"""Create the self-test embedded in an export: drawn images and PyTorch's logits for them."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tltools.card import Precision, SelfTest
from tltools.data.images import decode_image
from tltools.errors import ParityError
from tltools.runtime.predictor import Predictor
from tltools.runtime.selftest import TF32_TOLERANCE

SIDE = 32
"""Height and width of a drawn image in pixels."""
NUM_IMAGES, NUM_FOR_LARGE = 4, 1
LARGE_PARAMETERS = 5_000_000
"""Models with more parameters replay fewer images, because each takes longer."""

# How far another processor or execution provider may be from PyTorch: a multiple of the difference
# measured here, plus a fraction of the logits' spread, since other kernels sum in another order or
# round activations differently. fp32's fraction is ten times the parity limit. fp16's is that of
# TF32, which has the same ten bits: onnxruntime's CPU provider computes fp16 files in fp32, so a
# difference measured on a CPU says nothing about fp16 (VGG16 on an H200: 5.5e-3, on a CPU 5e-4).
_TOLERANCES: dict[Precision, tuple[float, float]] = {
    "fp32": (2.0, 1e-3),
    "fp16": (2.0, TF32_TOLERANCE),
    "int8": (2.0, 5e-2),
}


def draw_images(num: int) -> tuple[bytes, ...]:
    """Draw up to four small images, always the same ones, as PNG files.

    The user's own images are not used: an export may go to people who must not see them.
    """
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    radius = np.hypot(x - 0.5, y - 0.5)
    coarse = np.random.default_rng(0).uniform(size=(8, 8, 3))
    drawings = [
        np.stack([x, y, radius < 0.3], axis=2),  # a disc on a slope of colors
        coarse.repeat(SIDE // 8, axis=0).repeat(SIDE // 8, axis=1),  # a quilt
        np.stack([np.cos(40 * radius) / 2 + 0.5, 1 - y, x * y], axis=2),  # rings
        np.stack([(x * 4 % 1 < 0.5) ^ (y * 4 % 1 < 0.5)] * 3, axis=2),  # a chessboard
    ]
    return tuple(map(_png, drawings[:num]))


def _png(image: NDArray[np.floating | np.bool_]) -> bytes:
    """Encode an image, (H, W, 3), whose values are between 0 and 1."""
    file = io.BytesIO()
    Image.fromarray(np.rint(image * 255.0).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


def make_self_test(
    trained: Predictor, exported: Predictor, *, precision: Precision, num_parameters: int
) -> SelfTest:
    """Draw images, compute PyTorch's logits, and set the tolerance for the export.

    Args:
        trained: The run's PyTorch model.
        exported: The export, opened in its own runtime.
        precision: Precision of the export.
        num_parameters: Number of parameters of the model.

    Raises:
        ParityError: If a logit of either is not finite.
    """
    num = NUM_FOR_LARGE if num_parameters > LARGE_PARAMETERS else NUM_IMAGES
    files = draw_images(num)
    images = np.stack([decode_image(data, trained.card.preprocessing) for data in files])
    logits, answers = (
        np.concatenate([predictor(image[np.newaxis]) for image in images])
        for predictor in (trained, exported)
    )
    difference = float(np.abs(answers - logits).max())
    spread = float(np.ptp(logits))
    if not np.isfinite([difference, spread]).all():
        raise ParityError("the logits of the self-test's images are not finite")
    times, share = _TOLERANCES[precision]
    return SelfTest(
        images=files,
        logits=logits.astype("<f4").tobytes(),
        tolerance=times * difference + share * max(1.0, spread),
    )
