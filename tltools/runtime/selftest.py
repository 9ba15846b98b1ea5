"""Replay the self-test in an export: drawn images, and the answers that PyTorch gave to them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tltools.card import Card, SelfTest
from tltools.errors import ArtifactError, DataError, ParityError
from tltools.runtime.predictor import Predictor

TF32_TOLERANCE = 0.02
"""What rounding to TF32 may add, as a share of the logits' spread; it is about 1e-3."""
_TF32_PROVIDERS = ("TensorrtExecutionProvider",)
"""They round to TF32 unless they are told not to."""


def replay(predictor: Predictor, path: Path, *, tf32: bool = False) -> float | None:
    """Run an opened export on the images in its card and compare with the answers there.

    Args:
        predictor: The export, opened.
        path: Its file, for messages.
        tf32: Whether TF32 was asked for.

    Returns:
        The largest difference of a logit; None where the card has no self-test.

    Raises:
        ArtifactError: If an image in the card cannot be decoded.
        ParityError: If an answer is farther off than the card allows.
    """
    test = predictor.card.export and predictor.card.export.self_test
    if not test:
        return None
    expected = expected_logits(test)
    try:
        images = decode_images(test, predictor.card)
    except DataError as error:
        raise ArtifactError(
            f"{path} has a damaged self-test: {error}; make it again with tltools export"
        ) from error
    # One by one: together they would take memory that nobody needs afterwards, and more time.
    logits = np.concatenate([predictor(image[np.newaxis]) for image in images])
    difference = np.abs(logits - expected).max(axis=1)
    worst = int(np.nan_to_num(difference, nan=np.inf).argmax())
    tolerance = test.tolerance
    if predictor.device != "cpu" and (tf32 or predictor.provider in _TF32_PROVIDERS):
        tolerance += TF32_TOLERANCE * max(1.0, float(np.ptp(expected)))
    if not difference[worst] <= tolerance:
        raise ParityError(
            f"{path} fails its self-test with {predictor.provider}: on image {worst + 1} of "
            f"{len(images)} its logits are {difference[worst]:.2g} from those of the trained model "
            f"(at most {tolerance:.2g} is right), so the file was changed or this machine computes "
            "it wrongly; copy or export it again, or choose another --device or --precision"
        )
    return float(difference[worst])


def decode_images(test: SelfTest, card: Card) -> NDArray[np.uint8]:
    """Decode a self-test's images, (N, size, size, 3), as any image is decoded.

    Raises:
        DataError: If one cannot be decoded.
    """
    # Here, since reading a card needs no decoder.
    from tltools.data.images import decode_image

    return np.stack([decode_image(data, card.preprocessing) for data in test.images])


def expected_logits(test: SelfTest) -> NDArray[np.float32]:
    """Return the answers in a self-test, (N, C)."""
    return np.frombuffer(test.logits, dtype="<f4").reshape(len(test.images), -1)


def lacks_self_test(card: Card) -> str | None:
    """Return what there is to say of an export without a self-test, None of others and of runs."""
    if card.export is None or card.export.self_test is not None:
        return None
    return (
        f"this export of {card.run} has no self-test, so that nothing shows whether this machine "
        "computes it right: tltools export makes one with it"
    )
