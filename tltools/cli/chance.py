"""What `train` and `inspect` say where validation images are few, or an accuracy may be chance."""

from typing import TYPE_CHECKING

from tltools.data.findings import Finding
from tltools.wording import counted, listed, with_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.training import TrainedRun

MAX_WIDTH = 0.25
"""Width of the interval of an accuracy above which there are few images."""
_EXAMPLE = 0.9
"""Accuracy of which the interval is told before anything is trained."""


def tell_chance(trained: "Sequence[TrainedRun]", progress: "RichProgress") -> None:
    """Warn of each run that may be no better than chance; say once if validation images are few.

    Chance is what always choosing the largest class of the validation images would get.
    """
    from tltools.runs import chance_doubt

    few: list[str] = []
    for run in trained:
        score, doubt = run.card.metrics.get("val"), chance_doubt(run.folder, run.card)
        if score is None or doubt is None:
            continue
        if doubt:
            progress.warn(
                f"{run.folder}: {doubt}; cross-validation measures it on all images: --folds 5"
            )
        elif score.high - score.low > MAX_WIDTH:
            few.append(
                f"{counted(score.total, 'validation image')} are few: the 95% interval of the "
                f"accuracy is {100 * (score.high - score.low):.0f} points wide; "
                "cross-validation measures it on all images: --folds 5"
            )
    if few:
        progress.say(few[0])


def note_few(dataset: "Dataset", counts: "Mapping[str, Mapping[str, int]]") -> list[Finding]:
    """Return a note if validation images are few: how many of each class, and what follows.

    Args:
        dataset: Audited images.
        counts: Number of images by class and split.
    """
    from tltools.metrics import interval

    by_class = {name: row.get("val", 0) for name, row in counts.items()}
    total = sum(by_class.values())
    if not total:
        return []
    right = round(_EXAMPLE * total)
    low, high = interval(right, total)
    if high - low <= MAX_WIDTH:
        return []
    classes = listed([f"{name} {count:,}" for name, count in by_class.items()])
    text = (
        f"val has {counted(total, 'image')} ({classes}), too few to measure an accuracy well: "
        f"{right:,} right ones would be {with_interval(right / total, low, high)}; "
        "cross-validation measures it on all images: tltools train with --folds 5"
    )
    return [Finding("note", "few-val", text, tuple(dataset.part("val")["path"]))]
