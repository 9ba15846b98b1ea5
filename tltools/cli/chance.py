"""What `train` and `inspect` say where validation images are few, or an accuracy may be chance."""

from collections import Counter
from typing import TYPE_CHECKING

from tltools.data.findings import Finding
from tltools.wording import counted, listed, plural, together, with_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.training import TrainedRun

MAX_WIDTH = 0.25
"""Width of the interval of an accuracy above which there are few images."""
_EXAMPLE = 0.9
"""Accuracy whose interval says whether images are few, before and after a training alike."""
FOLDS = 5
"""Most folds that a message proposes."""


def tell_chance(
    trained: "Sequence[TrainedRun]", progress: "RichProgress", *, resumed: bool = False
) -> None:
    """Warn of each run that may be no better than chance; say once if validation images are few.

    Chance is what always choosing the largest class of the validation images would get.

    Args:
        trained: The runs.
        progress: Where to say it.
        resumed: Whether they were resumed: only a new run can be cross-validated.
    """
    from tltools.run_folder import read_split
    from tltools.runs import chance_doubt

    few: list[str] = []
    new = "train a new run with " if resumed else ""
    for run in trained:
        score, doubt = run.card.metrics.get("val"), chance_doubt(run.folder, run.card)
        if score is None or doubt is None:
            continue
        if doubt:
            progress.warn(f"{run.folder}: {doubt}; {_remedy(_sizes(read_split(run.folder)), new)}")
        elif are_few(score.total):
            few.append(
                f"{counted(score.total, 'validation image')} "
                f"{plural(score.total, 'is', 'are')} few: the 95% interval of the "
                f"accuracy is {100 * (score.high - score.low):.0f} points wide; "
                f"{_remedy(_sizes(read_split(run.folder)), new)}"
            )
    if few:
        progress.say(few[0])


def are_few(num_images: int) -> bool:
    """Return whether validation images are too few to measure an accuracy well."""
    from tltools.metrics import interval

    low, high = interval(round(_EXAMPLE * num_images), num_images)
    return high - low > MAX_WIDTH


def _remedy(sizes: "Mapping[str, int]", command: str = "") -> str:
    """Return how to measure an accuracy better.

    Args:
        sizes: Number of different images by class.
        command: What `--folds` is an option of, with a blank after it.
    """
    tiny = [name for name, size in sizes.items() if size < 2]  # which no two folds can share
    if tiny:
        return f"add images of {together(tiny)}"
    folds = min(FOLDS, *sizes.values())
    return f"cross-validation measures it on all images: {command}--folds {folds}"


def _sizes(frame: "pd.DataFrame") -> "dict[str, int]":
    """Return the number of different training and validation images by class."""
    image = "group" if "group" in frame else "sha256"  # as cross-validation counts them
    rows = set(zip(frame["class"], frame[image], frame["split"] == "test", strict=True))
    return Counter(name for name, _, is_test in rows if not is_test)


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
    if not are_few(total):
        return []
    right = round(_EXAMPLE * total)
    low, high = interval(right, total)
    is_bad = any(one.kind in ("missing", "unreadable") for one in dataset.findings)
    skipping = "--skip-bad " if is_bad else ""
    classes = listed([f"{name} {count:,}" for name, count in by_class.items()])
    text = (
        f"val has {counted(total, 'image')} ({classes}), too few to measure an accuracy well: "
        f"even {right:,} of {total:,} correct would be {with_interval(right / total, low, high)}; "
        f"{_remedy(_sizes(dataset.frame), f'tltools train DATA {skipping}')}"
    )
    return [Finding("note", "few-val", text, tuple(dataset.part("val")["path"]))]
