"""Compare an export with its PyTorch model on real images, from file to label."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tltools.card import Parity, Precision
from tltools.errors import ParityError
from tltools.evaluate import predict
from tltools.progress import SILENT, Progress
from tltools.runtime.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class ParityBar:
    """Parity limits that an export of one precision must meet to be kept."""

    atol: float | None
    """Largest logit difference that passes; None checks only labels and accuracy."""
    min_top1_agreement: float
    """Smallest fraction of equal labels that passes."""
    max_accuracy_drop: float | None = None
    """Largest drop in top-1 accuracy that passes; None does not check it."""


BARS: dict[Precision, ParityBar] = {
    "fp32": ParityBar(atol=1e-4, min_top1_agreement=1.0),
    "fp16": ParityBar(atol=None, min_top1_agreement=0.995),
    "int8": ParityBar(atol=None, min_top1_agreement=0.99, max_accuracy_drop=0.005),
}
BATCH_SIZE = 32
SINGLE = 4
"""Images that are also run one by one, since a batch of one may use other kernels."""


def compare(
    reference: NDArray[np.float32],
    predictor: Predictor,
    paths: Sequence[Path],
    targets: NDArray[np.int64] | None = None,
    *,
    bar: ParityBar = BARS["fp32"],
    progress: Progress = SILENT,
) -> Parity:
    """Run an export on images and compare its logits with PyTorch's on the same images.

    Args:
        reference: PyTorch's logits, (N, C).
        predictor: The export in its own runtime.
        paths: The N images, which are decoded according to the export's own card.
        targets: Their true class indices, (N,); None skips the comparison of accuracy.
        bar: Limits that the export must meet.
        progress: Shows the batches.

    Raises:
        ParityError: If the export exceeds a limit, or its labels depend on the batch size.
    """
    batch_size = min(BATCH_SIZE, max(2, len(paths)))
    logits = predict(predictor, paths, batch_size=batch_size, progress=progress)
    singles = predict(predictor, paths[:SINGLE], batch_size=1)
    sizes = {1, min(batch_size, len(paths)), len(paths) % batch_size or batch_size}
    if logits.shape != reference.shape or not np.isfinite(logits).all():
        raise ParityError(
            f"the export's logits are {logits.shape}, finite: {bool(np.isfinite(logits).all())}; "
            f"PyTorch's are {reference.shape}"
        )
    difference = np.abs(logits - reference).max(axis=1)
    single_difference = np.abs(singles - reference[:SINGLE]).max(axis=1)
    largest = float(max(difference.max(), single_difference.max()))
    same = logits.argmax(axis=1) == reference.argmax(axis=1)
    same_single = singles.argmax(axis=1) == reference[:SINGLE].argmax(axis=1)
    drop = None
    if targets is not None:
        before, after = (
            int((values.argmax(axis=1) == targets).sum()) for values in (reference, logits)
        )
        drop = (before - after) / len(paths)
    _check_differences(paths, difference, same, drop, bar, largest=largest)
    if bar.min_top1_agreement == 1.0 and not same_single.all():
        raise ParityError(f"labels differ between a batch of one and a batch of {batch_size}")
    return Parity(
        max_abs_logit_diff=largest,
        top1_agreement=float(same.mean()),
        num_images=len(paths),
        batch_sizes=tuple(sorted(sizes)),
        atol=bar.atol,
        min_top1_agreement=bar.min_top1_agreement,
        accuracy_drop=drop,
        max_accuracy_drop=bar.max_accuracy_drop,
    )


def _check_differences(
    paths: Sequence[Path],
    difference: NDArray[np.float32],
    same: NDArray[np.bool_],
    drop: float | None,
    bar: ParityBar,
    *,
    largest: float,
) -> None:
    """Raise ParityError if a result exceeds its limit."""
    if bar.atol is not None and largest > bar.atol:
        raise ParityError(
            f"the logits differ by up to {largest:.2e}, more than {bar.atol:.0e} (worst image "
            f"{paths[int(difference.argmax())]})"
        )
    agreement = float(same.mean())
    if agreement < bar.min_top1_agreement:
        raise ParityError(
            f"only {agreement:.2%} of {len(paths)} images get the same label, less than "
            f"{bar.min_top1_agreement:.2%} (first difference "
            f"{paths[int(np.flatnonzero(~same)[0])]})"
        )
    if drop is not None and bar.max_accuracy_drop is not None and drop > bar.max_accuracy_drop:
        raise ParityError(
            f"the accuracy on {len(paths)} images drops by {drop:.2%}, more than "
            f"{bar.max_accuracy_drop:.2%}"
        )
