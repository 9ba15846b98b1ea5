"""Replay the self-test of an export: drawn images, and PyTorch's logits for them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tltools.card import Card, SelfTest
from tltools.errors import ArtifactError, DataError, DeviceError, ParityError
from tltools.runtime.predictor import Predictor

TF32_TOLERANCE = 0.02
"""Extra tolerance for TF32 rounding, as a share of the logits' spread; the error is about 1e-3."""
_TF32_PROVIDERS = ("TensorrtExecutionProvider",)
"""Execution providers that round to TF32 by default."""


def replay(predictor: Predictor, path: Path, *, tf32: bool = False) -> float | None:
    """Run an opened export on the images in its card, and compare with the logits stored there.

    Args:
        predictor: The opened export.
        path: Its file, for messages.
        tf32: Whether TF32 was requested.

    Returns:
        The largest absolute difference of a logit; None if the card has no self-test.

    Raises:
        ArtifactError: If an image in the card cannot be decoded, or the file cannot be run.
        DeviceError: If it cannot be run on an accelerator.
        ParityError: If a difference exceeds the card's tolerance.
    """
    test = predictor.card.export and predictor.card.export.self_test
    if not test:
        return None
    expected = expected_logits(test)
    try:
        images = decode_images(test, predictor.card)
    except DataError as error:
        raise ArtifactError(
            f"{path} has a damaged self-test: {error}; recreate it with tltools export"
        ) from error
    # One at a time: a batch would take more time, and memory that is not needed afterwards.
    try:
        logits = np.concatenate([predictor(image[np.newaxis]) for image in images])
    except DeviceError as error:
        if predictor.device != "cpu":  # which may have too little memory
            raise
        raise ArtifactError(f"{path} fails its self-test: {error}") from error
    difference = np.abs(logits - expected).max(axis=1)
    worst = int(np.nan_to_num(difference, nan=np.inf).argmax())
    tolerance = test.tolerance
    if predictor.device != "cpu" and (tf32 or predictor.provider in _TF32_PROVIDERS):
        tolerance += TF32_TOLERANCE * max(1.0, float(np.ptp(expected)))
    if not difference[worst] <= tolerance:
        raise ParityError(
            f"{path} fails its self-test with {predictor.provider}: on image {worst + 1} of "
            f"{len(images)} its logits are {difference[worst]:.2g} off those of the trained model "
            f"(at most {tolerance:.2g} is allowed), so the file was modified or this machine "
            "computes wrong results; copy it again, choose another `device=`, or export it again, "
            "perhaps with another `precision=`"
        )
    return float(difference[worst])


def decode_images(test: SelfTest, card: Card) -> NDArray[np.uint8]:
    """Decode a self-test's images, uint8 (N, size, size, 3), like any other image.

    Raises:
        DataError: If one cannot be decoded.
    """
    # Imported here, since reading a card needs no decoder.
    from tltools.data.images import decode_image

    return np.stack([decode_image(data, card.preprocessing) for data in test.images])


def expected_logits(test: SelfTest) -> NDArray[np.float32]:
    """Return the logits stored in a self-test, float32 (N, C)."""
    return np.frombuffer(test.logits, dtype="<f4").reshape(len(test.images), -1)


def lacks_self_test(card: Card) -> str | None:
    """Return a warning about an export without a self-test; None for other exports and for runs."""
    if card.export is None or card.export.self_test is not None:
        return None
    return (
        f"this export of {card.run} has no self-test to verify its results on this machine; "
        "export it again to add one"
    )
