"""The folder of `tltools evaluate --output`: scores, rows and a plot of one evaluation."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tltools.errors import ConfigError, DataError, TltoolsError

if TYPE_CHECKING:
    from tltools.evaluate import Evaluation

_SAME_DECIMALS = 4
"""Digits to which the scores of one model agree if it is evaluated again, on a GPU, too."""


def refuse_others(output: Path, *, only_mistakes: bool) -> None:
    """Refuse a folder with files of the names that are written, but not of an evaluation.

    Raises:
        ConfigError: If there is one.
    """
    from tltools.atomic import exists_as_other, refuse_foreign
    from tltools.plots import MARK
    from tltools.run_folder import CONFUSION, EVALUATION

    refuse_foreign(output / EVALUATION, b'"num_trained_on":', "an evaluation")
    refuse_foreign(output / CONFUSION, MARK, "a plot")
    rows = output / _rows_names(only_mistakes=only_mistakes)[0]
    if os.path.lexists(rows) and not _is_scored(rows):
        raise exists_as_other(rows, "an evaluation")


def refuse_another(output: Path, model: str, data: str) -> None:
    """Refuse a folder with the scores of another model, or on other data.

    Args:
        output: The folder.
        model: Name of the run or export, such as `cnn onnx fp32`.
        data: Name of the data set.

    Raises:
        ConfigError: If it holds them.
    """
    from tltools.run_folder import EVALUATION

    found = _read_scores(output / EVALUATION)
    if found is not None and (found["model"], found["data"]) != (model, data):
        raise ConfigError(
            f"{output} holds the evaluation of {found['model']} on {found['data']}; choose another "
            "--output, or replace it with --overwrite"
        )


def write_scores(result: "Evaluation", folder: Path, *, title: str, only_mistakes: bool) -> str:
    """Write the files of an evaluation, and remove earlier rows that are of another one.

    All are written beside their places before the first one is replaced, so that a failure leaves
    the earlier ones. A process that is killed while they are replaced leaves some of the new files,
    never a mixture.

    Returns:
        What was written and removed, to print.

    Raises:
        TltoolsError: If they cannot be written.
    """
    from tltools.atomic import sync_folder, temporary_path, write_text
    from tltools.data.folders import make_output_folder
    from tltools.plots import plot_confusion
    from tltools.run_folder import CONFUSION, EVALUATION, write_scored

    make_output_folder(folder)
    name, other = _rows_names(only_mistakes=only_mistakes)
    scores, rows, plot = folder / EVALUATION, folder / name, folder / CONFUSION
    is_ours = _is_scored(folder / other) and not (folder / other).is_symlink()
    text = result.to_json()
    is_stale = is_ours and not _is_of(scores, text)
    replaced = _told_by(scores)
    with (
        temporary_path(scores) as new_scores,
        temporary_path(rows) as new_rows,
        temporary_path(plot) as new_plot,
    ):
        with _named(scores, new_scores):
            write_text(new_scores, text + "\n")
        with _named(rows, new_rows):
            predictions = result.predictions()
            write_scored(new_rows, result.classes, predictions, only_mistakes=only_mistakes)
        with _named(plot, new_plot):
            plot_confusion(result.confusion, result.classes, new_plot, title=title)
        for old in (scores, rows, plot, *([folder / other] if is_stale else [])):
            old.unlink(missing_ok=True)
        for new, path in ((new_rows, rows), (new_plot, plot), (new_scores, scores)):
            new.replace(path)
    with suppress(OSError):  # the files are complete; only their names may be lost
        sync_folder(folder)
    removed = f"; {other} was of another evaluation and is removed" if is_stale else ""
    if replaced not in (None, f"{result.model} on {result.data}, {result.split}"):
        removed += f"; they replace the evaluation of {replaced}"
    return f"{EVALUATION}, {name} and {CONFUSION}{removed}"


def _told_by(scores: Path) -> str | None:
    """Return what an evaluation.json is of, `cnn on photos, val`; None if it does not say it."""
    facts = _read_scores(scores)
    return None if facts is None else f"{facts['model']} on {facts['data']}, {facts['split']}"


def _read_scores(scores: Path) -> dict[str, Any] | None:
    """Return the contents of an evaluation.json; None if it does not say what it is of."""
    from tltools.regular import read_regular
    from tltools.run_folder import MAX_EVALUATION_BYTES

    try:
        facts = json.loads(read_regular(scores, max_bytes=MAX_EVALUATION_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    is_told = isinstance(facts, dict) and {"model", "data", "split"} <= facts.keys()
    return facts if is_told else None


def _rows_names(*, only_mistakes: bool) -> tuple[str, str]:
    """Return the name of the file with a row for each image, and the one that is not written."""
    from tltools.run_folder import MISTAKES, PREDICTIONS

    return (MISTAKES, PREDICTIONS) if only_mistakes else (PREDICTIONS, MISTAKES)


def _is_scored(path: Path) -> bool:
    """Return whether a file has the columns that an evaluation writes; a run's have more."""
    from tltools.classify.output_formats.csv_rows import read_columns
    from tltools.schema import SPLIT, TRUE, classes_of

    try:
        columns = read_columns(path)
    except (OSError, DataError):
        return False
    return classes_of(columns) is not None and TRUE in columns and SPLIT not in columns


def _is_of(scores: Path, text: str) -> bool:
    """Return whether an evaluation.json has the scores, model and images of another one's text."""
    from tltools.regular import read_regular

    try:
        known = _comparable(read_regular(scores, max_bytes=2 * len(text) + 1_000_000))
    except (OSError, ValueError, RecursionError):
        return False
    return known == _comparable(text)


def _comparable(text: str | bytes) -> Any:
    """Return an evaluation's facts without its duration, and rounded."""

    def rounded(number: str) -> float:
        return round(float(number), _SAME_DECIMALS)

    facts = json.loads(text, parse_float=rounded)
    return {**facts, "seconds": None} if isinstance(facts, dict) else None


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Name a file, not its temporary one, if it cannot be written."""
    try:
        yield
    except TltoolsError as error:
        raise TltoolsError(str(error).replace(str(temporary), str(path))) from error
