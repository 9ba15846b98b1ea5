"""The columns of predictions: one schema for jobs, evaluations, runs and cross-validations.

`path,label,confidence,prob_<class>...,error`, and then `distance` where it was asked for, `true`
where the labels are known, and what only some files have.
"""

from collections.abc import Sequence

PATH, LABEL, CONFIDENCE, ERROR = "path", "label", "confidence", "error"
"""The image, its predicted class, the probability of it, and why there is no prediction."""
DISTANCE = "distance"
"""How far the image is from the training images; see `tltools.distance`."""
TRUE = "true"
"""The class that the image is labeled with, where it is known."""
SPLIT, FOLD, SUSPECT = "split", "fold", "suspect"
"""Columns of runs: the part of the data; and of cross-validations: see `folds.csv`."""
DECIMALS = 6
"""Decimals of probabilities in predictions; more would be rounding noise of the model."""
_PROB = "prob_"
_KNOWN_AFTER_ERROR = frozenset({DISTANCE, TRUE, SPLIT, FOLD, SUSPECT})


def prob_column(name: str) -> str:
    """Return the column of a class's probability."""
    return f"{_PROB}{name}"


def column_names(classes: Sequence[str], *, distance: bool = False) -> list[str]:
    """Return the columns of predictions without known labels, in order."""
    last = [ERROR, DISTANCE] if distance else [ERROR]
    return [PATH, LABEL, CONFIDENCE, *map(prob_column, classes), *last]


def classes_of(columns: Sequence[str]) -> list[str] | None:
    """Return the classes that the columns of a table name; None if it holds no predictions."""
    end = len(columns)
    while end and columns[end - 1] in _KNOWN_AFTER_ERROR:
        end -= 1
    classes = [name.removeprefix(_PROB) for name in columns[:end] if name.startswith(_PROB)]
    return classes if classes and list(columns[:end]) == column_names(classes) else None


def has_predictions(columns: Sequence[str]) -> bool:
    """Return whether a table's columns include those of predictions, in any order."""
    return {PATH, LABEL, CONFIDENCE} <= set(columns) and any(
        name.startswith(_PROB) for name in columns
    )
