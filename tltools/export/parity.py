"""Compare an export with its PyTorch model on real images, from file to label."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools.card import Parity, Precision
from tltools.errors import ParityError
from tltools.evaluate import predict
from tltools.progress import SILENT, Progress
from tltools.runtime.predictor import Predictor
from tltools.wording import in_percent_down, percent


@dataclass(frozen=True, kw_only=True)
class ParityBar:
    """Parity limits that an export of one precision must meet to be kept."""

    atol: float | None
    """Largest logit difference that passes; None checks only labels and accuracy."""
    rtol: float = 0.0
    """A difference of this fraction of the largest absolute logit passes as well."""
    min_top1_agreement: float
    """Smallest fraction of equal labels that passes."""
    max_accuracy_drop: float | None = None
    """Largest drop in top-1 accuracy that passes; None does not check it."""


BARS: dict[Precision, ParityBar] = {
    "fp32": ParityBar(atol=1e-4, rtol=1e-5, min_top1_agreement=1.0),
    "fp16": ParityBar(atol=None, min_top1_agreement=0.995),
    "int8": ParityBar(atol=None, min_top1_agreement=0.99, max_accuracy_drop=0.005),
}
DISTANCE_RTOL: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.25}
"""Largest difference of an image's distance from PyTorch's, as a fraction of that. It is no bar of
reduced precisions, whose layers would stay in fp32 for it: if it is exceeded, the card says so."""
DISTANCE_FLOOR = 0.5
"""Distance below which differences are compared with this, not with the distance; it is about 1 for
images like the training images, and shorter ones are never unlike them."""
BATCH_SIZE = 32
ROUNDING_IMAGES = 8
"""Images that differ most, of which float64 logits are computed if the difference is too large."""
ROUNDING_FACTOR = 4.0
"""A difference of this many times PyTorch's own rounding error passes as well. Two computations
with errors of e each are 2e apart at most, and 8 images do not show the largest error of all."""
ROUNDING_RTOL = 1e-3
"""A difference of more than this fraction of the largest absolute logit is not rounding."""
SINGLE = 4
"""Images that are also run one by one, since a batch of one may use other kernels."""


def compare(
    reference: NDArray[np.float32],
    predictor: Predictor,
    paths: Sequence[Path],
    targets: NDArray[np.int64] | None = None,
    *,
    bar: ParityBar = BARS["fp32"],
    exact: Callable[[list[Path]], NDArray[np.float64]] | None = None,
    progress: Progress = SILENT,
) -> Parity:
    """Run an export on images and compare its logits with PyTorch's on the same images.

    Args:
        reference: PyTorch's logits, (N, C).
        predictor: The export in its own runtime.
        paths: The N images, which are decoded according to the export's own card.
        targets: True class indices of the first images, (M,), M <= N: the model was not trained on
            these. None: it was trained on none, and their accuracy is not compared.
        bar: Limits that the export must meet.
        exact: Gives the model's logits in float64, (n, C), for some of the images. It is called if
            differences exceed the limit: a network that amplifies rounding errors is as far from
            float64 in PyTorch, and then its export may be so as well.
        progress: Shows the batches.

    Raises:
        ParityError: If the export exceeds a limit, or its labels depend on the batch size.
    """
    batch_size = min(BATCH_SIZE, max(2, len(paths)))
    found = _Logits(
        paths,
        reference,
        batched=predict(
            predictor,
            paths,
            batch_size=batch_size,
            title=f"Comparing {predictor.card.name} with PyTorch",
            progress=progress,
        ),
        single=predict(predictor, paths[:SINGLE], batch_size=1),
    )
    found.check_shape()
    parity = found.parity(targets, bar=bar, batch_size=batch_size)
    if exact is not None and _exceeds(parity):
        parity = msgspec.structs.replace(parity, rounding=found.rounding(exact))
    _check_limits(parity, found)
    if bar.min_top1_agreement == 1.0 and not found.is_same_alone():
        raise ParityError(f"labels differ between a batch of one and a batch of {batch_size}")
    return parity


@dataclass(frozen=True)
class _Logits:
    """An export's logits for N images beside PyTorch's, all float32."""

    paths: Sequence[Path]
    reference: NDArray[np.float32]
    """PyTorch's, (N, C)."""
    batched: NDArray[np.float32]
    """The export's, (N, C)."""
    single: NDArray[np.float32]
    """The export's for the first images, (n, C), which were run one by one."""

    def check_shape(self) -> None:
        """Raise ParityError unless the export's logits are finite and as many as PyTorch's."""
        is_finite = bool(np.isfinite(self.batched).all())
        if self.batched.shape != self.reference.shape or not is_finite:
            raise ParityError(
                f"the export's logits are {self.batched.shape}, finite: {is_finite}; "
                f"PyTorch's are {self.reference.shape}"
            )

    def parity(
        self, targets: NDArray[np.int64] | None, *, bar: ParityBar, batch_size: int
    ) -> Parity:
        """Return how far the export is from PyTorch, without its rounding errors."""
        num = len(self.paths)
        sizes = {1, min(batch_size, num), num % batch_size or batch_size}
        return Parity(
            max_abs_logit_diff=self.largest_difference(),
            top1_agreement=float(self.is_same.mean()),
            num_images=num,
            num_training_images=0 if targets is None else num - len(targets),
            batch_sizes=tuple(sorted(sizes)),
            atol=bar.atol,
            rtol=bar.rtol,
            max_abs_logit=float(np.abs(self.reference).max()),
            min_top1_agreement=bar.min_top1_agreement,
            accuracy_drop=None if targets is None else self.accuracy_drop(targets),
            max_accuracy_drop=bar.max_accuracy_drop,
        )

    @property
    def differences(self) -> NDArray[np.float32]:
        """Largest difference of a logit of each image, (N,)."""
        return np.abs(self.batched - self.reference).max(axis=1)

    @property
    def is_same(self) -> NDArray[np.bool_]:
        """Whether an image gets PyTorch's label, (N,)."""
        return self.batched.argmax(axis=1) == self.reference.argmax(axis=1)

    def is_same_alone(self) -> bool:
        """Return whether the images that were run one by one get PyTorch's labels."""
        first = self.reference[: len(self.single)]
        return bool((self.single.argmax(axis=1) == first.argmax(axis=1)).all())

    def largest_difference(self) -> float:
        """Return the largest difference of a logit, in batches and one by one."""
        alone = np.abs(self.single - self.reference[: len(self.single)])
        return float(max(self.differences.max(), alone.max()))

    def rounding(self, exact: Callable[[list[Path]], NDArray[np.float64]]) -> float:
        """Return PyTorch's largest difference from float64 on the images that differ most."""
        worst = np.argsort(-self.differences, kind="stable")[:ROUNDING_IMAGES]
        logits = exact([self.paths[index] for index in worst])
        return float(np.abs(self.reference[worst] - logits).max())

    def accuracy_drop(self, targets: NDArray[np.int64]) -> float:
        """Return how much lower the export's top-1 accuracy is, given class indices, (M,)."""
        before, after = (
            int((values[: len(targets)].argmax(axis=1) == targets).sum())
            for values in (self.reference, self.batched)
        )
        return (before - after) / len(targets)


def _largest_allowed(parity: Parity) -> float:
    """Return the largest logit difference that passes: rounding errors grow with the logits."""
    largest = parity.max_abs_logit or 0.0
    rounding = min(ROUNDING_FACTOR * (parity.rounding or 0.0), ROUNDING_RTOL * largest)
    return max(parity.atol or 0.0, parity.rtol * largest, rounding)


def _exceeds(parity: Parity) -> bool:
    return parity.atol is not None and parity.max_abs_logit_diff > _largest_allowed(parity)


def _check_limits(parity: Parity, found: _Logits) -> None:
    """Raise ParityError if a result exceeds its limit; name the worst or first image."""
    agreement, drop = parity.top1_agreement, parity.accuracy_drop
    if _exceeds(parity):
        own = parity.rounding
        raise ParityError(
            f"the logits differ by up to {parity.max_abs_logit_diff:.2e}, more than "
            f"{_largest_allowed(parity):.2g} (worst image "
            f"{found.paths[int(found.differences.argmax())]}"
            + (")" if own is None else f"; PyTorch's own rounding error is {own:.1e})")
        )
    if agreement < parity.min_top1_agreement:
        raise ParityError(
            f"only {in_percent_down(agreement)} of {parity.images} get the same label, less than "
            f"{percent(parity.min_top1_agreement)} (first difference "
            f"{found.paths[int(np.flatnonzero(~found.is_same)[0])]})"
            + _needed(1 - parity.min_top1_agreement, parity.num_images)
        )
    limit = parity.max_accuracy_drop
    if drop is not None and limit is not None and drop > limit:
        num_images = parity.num_validation_images
        raise ParityError(
            f"the accuracy on {num_images} images drops by {100 * drop:.2f} points, more than the "
            f"limit of {100 * limit:.2f}" + _needed(limit, num_images)
        )


def compare_distances(
    reference: NDArray[np.float64],
    distances: NDArray[np.float32],
    paths: Sequence[Path],
    *,
    precision: Precision,
) -> float:
    """Return the largest relative difference of a distance, both (N,), from PyTorch's.

    Raises:
        ParityError: If one is not finite or, in fp32, differs by more than `DISTANCE_RTOL`; names
            the worst image.
    """
    scale = np.maximum(reference, DISTANCE_FLOOR)
    differences = np.nan_to_num(np.abs(distances - reference) / scale, nan=np.inf)
    worst = int(differences.argmax())
    limit = DISTANCE_RTOL["fp32"] if precision == "fp32" else math.inf
    if not differences[worst] <= limit or not np.isfinite(differences[worst]):
        raise ParityError(
            f"the distances differ from PyTorch's by up to {differences[worst]:.1%}, more than "
            f"{DISTANCE_RTOL[precision]:.1%} (worst image {paths[worst]})"
        )
    return float(differences[worst])


def wanted_images(bar: ParityBar) -> int:
    """Return how many images let one of them get another label; 0 if none may."""
    share = 1 - bar.min_top1_agreement
    return images_needed(share) if share else 0


def images_needed(share: float) -> int:
    """Return how many images a limit needs, so that one of them may differ."""
    return math.ceil(round(1 / share, 6))


def _needed(share: float, num_images: int) -> str:
    """Say how many images a limit needs, if it allows no image of these to differ."""
    if not share or num_images >= images_needed(share):
        return ""
    return (
        f"; among {num_images} images, no label may change (from {images_needed(share)} images on, "
        "one may)"
    )
