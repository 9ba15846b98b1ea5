"""Compare an export with its PyTorch model on real pictures, from bytes to label."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tltools.card import Parity
from tltools.errors import ParityError
from tltools.evaluate import predict
from tltools.progress import SILENT, Progress
from tltools.runtime.predictor import Predictor

ATOL_FP32 = 1e-4
"""The largest logit difference of an fp32 export."""
BATCH_SIZE = 32
SINGLE = 4
"""Pictures that are also run one by one, since a batch of one can take another path."""


def compare(
    reference: NDArray[np.float32],
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    atol: float | None = ATOL_FP32,
    min_top1_agreement: float = 1.0,
    progress: Progress = SILENT,
) -> Parity:
    """Run an export on pictures and compare it with PyTorch's logits on the same ones.

    Args:
        reference: PyTorch's logits, (N, C).
        predictor: The export in its own runtime.
        paths: The N pictures; the export's side decodes them by its own card.
        atol: The largest logit difference that passes; None: only labels count.
        min_top1_agreement: The smallest share of equal labels that passes.
        progress: Told of each batch.

    Raises:
        ParityError: If the export is beyond a limit, or its answer depends on the batch size.
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
    agreement = float(same.mean())
    worst = paths[int(difference.argmax())]
    if atol is not None and largest > atol:
        raise ParityError(
            f"the logits differ by {largest:.2e}, more than {atol:.0e}, at worst on {worst}"
        )
    if agreement < min_top1_agreement:
        different = paths[int(np.flatnonzero(~same)[0])]
        raise ParityError(
            f"{agreement:.2%} of {len(paths)} pictures get the same label, fewer than "
            f"{min_top1_agreement:.2%}; the first that differs is {different}"
        )
    if min_top1_agreement == 1.0 and not same_single.all():
        raise ParityError(f"a batch of one gets another label than a batch of {batch_size}")
    return Parity(
        max_abs_logit_diff=largest,
        top1_agreement=agreement,
        num_pictures=len(paths),
        batch_sizes=tuple(sorted(sizes)),
        atol=atol,
        min_top1_agreement=min_top1_agreement,
    )
