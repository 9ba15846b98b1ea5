"""Read and write the files of a run folder that do not need torch."""

import csv
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools import schema
from tltools.atomic import atomic_path, lock
from tltools.card import MAX_CARD_BYTES, Card, card_from_json
from tltools.data.folders import RUN_DIR, content, runs_in, say_runs
from tltools.decisions import UNCERTAIN, Decided
from tltools.errors import ArtifactError, ConfigError, DataError, cause_of
from tltools.progress import SILENT, Progress
from tltools.regular import open_regular, read_regular
from tltools.run_images import find_by_bytes, moved_with_project
from tltools.wording import grouped, plural, similar_paths

if TYPE_CHECKING:
    import pandas as pd

CARD = "card.json"
PLAN = "plan.json"
CHECKPOINT = "checkpoint.safetensors"
STATE = "state.pt"
CURVES = "curves.png"
DISTANCE = "distance.safetensors"
"""How far an image's features are from those of the training images; see `tltools.distance`."""
CONFUSION = "confusion_matrix.png"
EVALUATION = "evaluation.json"
"""The scores of `tltools evaluate`, in a folder of their own."""
MAX_EVALUATION_BYTES = 2**28
"""Largest `evaluation.json`: a confusion matrix of 10,000 classes."""
MISTAKES = "mistakes.csv"
"""What `tltools evaluate --output FOLDER --mistakes` writes beside it."""
MLFLOW_RUN = "mlflow.txt"
"""Holds MLflow's ID of the run."""
TENSORBOARD = "tensorboard"
"""Folder of the TensorBoard log."""
SPLIT = "split.csv"
HISTORY = "history.csv"
PREDICTIONS = "predictions.csv"
FOLDS = "folds.csv"
DISTANCES = "distances.csv"
"""How far each image is from the training images, the most distant first."""
MAX_TABLE_BYTES = 2**30
"""Largest table of a run: the probabilities of 1,000 classes for 50,000 images."""
MAX_HISTORY_BYTES = 2**24
"""Largest history of a run: 100,000 epochs."""
_LOCK_WAIT_S = 0.2
"""Time that a lock is waited for: `is_locked` of another process holds one for an instant."""


def cannot_read(path: Path, error: Exception) -> ArtifactError:
    """Return the error of a file of a run that cannot be read."""
    return ArtifactError(f"{path} cannot be read: {cause_of(error)}")


def load_card(folder: Path) -> Card:
    """Read a run's card.

    Raises:
        ArtifactError: If the folder is not a run, or its card is corrupt.
    """
    path = folder / CARD
    try:
        text = read_regular(path, max_bytes=MAX_CARD_BYTES)
    except FileNotFoundError as error:
        raise ArtifactError(_no_card(folder)) from error
    except NotADirectoryError as error:
        raise ArtifactError(
            f"{folder} is a file, not a run; name a run's folder, such as runs/NAME"
        ) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    return card_from_json(text, where=str(path))


def other_run_of(export: Card, run: Path) -> Path | None:
    """Return the run in `runs/` that may have made an export, if it is not `run`.

    Runs of different folders may have one name, and their exports one place. A run that was
    extended leaves the export of before.

    Args:
        export: The card of an export.
        run: The folder of a run.
    """
    other = RUN_DIR / export.run
    if other.resolve() == run.resolve():
        return None
    with suppress(ArtifactError):
        card = load_card(other)
        if card.created == export.created or card.owner == export.owner:
            return other
    return None


def _no_card(folder: Path) -> str:
    """Return the message that a folder is not a finished run: what it is, and what to name."""
    if not folder.exists():
        return missing_run(folder) or (
            f"{folder} does not exist{similar_paths(folder, RUN_DIR)}: name a run's folder, such "
            "as runs/NAME"
        )
    if is_begun(folder):
        return f"{folder} is not a finished run; {how_to_finish(folder)}"
    kind = content(folder)
    if kind == "runs":
        return say_runs(folder)
    if kind:
        return f"{folder} is a folder of {kind}, not a run; name a run's folder, such as runs/NAME"
    return f"{folder} is not a run: it has no {CARD}; create a run with tltools train"


def missing_run(path: Path) -> str:
    """Return the message that a run does not exist because none was trained here.

    Args:
        path: A path that does not exist.

    Returns:
        Nothing if there are runs in `runs/`, if another name is close, or if the path is of
        another folder.
    """
    is_here = path.parent in (Path(), RUN_DIR)
    if not is_here or next(runs_in(RUN_DIR), None) is not None or similar_paths(path, RUN_DIR):
        return ""
    return f"{path} does not exist: no runs in {RUN_DIR}/; train one with tltools train"


class _Plan(msgspec.Struct):
    """The part of a run's plan that can be read without torch."""

    config: dict[str, Any]


def planned_settings(folder: Path) -> dict[str, Any]:
    """Return the settings in a run's plan; none if it has no plan that can be read."""
    try:
        plan = read_regular(folder / PLAN, max_bytes=MAX_CARD_BYTES)
        return msgspec.json.decode(plan, type=_Plan).config
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run while it is trained or deleted.

    The system releases the lock when the process exits, however it ends. Windows has none.

    Raises:
        ConfigError: If another process trains the run.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while lock(handle) is False:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"another process is training {folder}; wait until it ends, or stop it with "
                    "Ctrl-C"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Return whether a run is being trained; False if there is no such folder (any more)."""
    if sys.platform == "win32":
        return False
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two processes that ask do not take each other for a training.
        return lock(handle, shared=True) is False
    finally:
        os.close(handle)


def is_begun(folder: Path) -> bool:
    """Return whether a run has been begun and has no model yet, so that it can be resumed."""
    return not (folder / CARD).is_file() and "model" in planned_settings(folder)


def resume_command(folder: Path, epochs: int | None = None) -> str:
    """Return the command that resumes a run, or extends it to a number of epochs."""
    name = shlex.quote(str(folder))
    if epochs is None:
        return f"tltools train --resume {name}"
    return f"tltools train --resume {name} `epochs={epochs}`"


def how_to_finish(folder: Path) -> str:
    """Say how an unfinished run is finished: by a command, or by waiting."""
    if is_locked(folder):
        return "another process is training it: wait until it ends"
    return f"to finish it: {resume_command(folder)}"


def is_finished(folder: Path) -> bool:
    """Return whether a run completed its plan.

    Raises:
        ArtifactError: If its card cannot be read.
    """
    return (folder / CARD).is_file() and is_complete(folder, load_card(folder))


def is_complete(folder: Path, card: Card) -> bool:
    """Return whether a run that has a card completed its plan.

    A run that was interrupted has a card too, and so has one that could not be scored, or that was
    stopped while it was trained for more epochs.
    """
    return bool(card.metrics) and not was_stopped(folder, card)


def was_stopped(folder: Path, card: Card) -> bool:
    """Return whether a run with a model was stopped before it completed its plan."""
    planned, done = planned_settings(folder).get("epochs"), card.training.get("epochs")
    # Killed while it was trained for more epochs, it still has the card of the earlier ones.
    is_short = isinstance(planned, int) and isinstance(done, int) and done < planned
    return is_short or card.training.get("interrupted", False)


def unfinished_runs(run_dir: Path, models: Sequence[str]) -> list[Path]:
    """Return the folders of unfinished runs of models, the newest first.

    Runs that another process trains, and damaged ones, are left out: they cannot be resumed.

    Args:
        run_dir: Parent of the run folders.
        models: Names of backbones.
    """
    found: list[Path] = []
    for folder in resumable_runs(run_dir):
        is_asked = planned_settings(folder).get("model") in models
        if is_asked and not is_locked(folder) and _is_unfinished(folder):
            found.append(folder)
    return found


def _is_unfinished(folder: Path) -> bool:
    """Return whether a run did not complete its plan; False if its card is damaged."""
    try:
        return not is_finished(folder)
    except ArtifactError:
        return False


def resumable_runs(run_dir: Path) -> list[Path]:
    """Return the folders of runs that can be resumed, the newest first.

    These have their training's state, or only a plan: they were killed in their first epoch.
    """
    newest = {path.parent: path for path in visible(run_dir.glob(f"*/{STATE}"))}
    for path in visible(run_dir.glob(f"*/{PLAN}")):
        if path.parent not in newest and is_begun(path.parent):
            newest[path.parent] = path
    return sorted(newest, key=lambda folder: _changed_s(newest[folder]), reverse=True)


def visible(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield those of the files in run folders whose folder is not hidden.

    A deletion that was killed leaves a hidden folder, and writing a file has one for a moment.
    """
    return (path for path in paths if not path.parent.name.startswith("."))


def _changed_s(path: Path) -> float:
    """Return when a file was changed, in seconds; 0 if another process has just deleted it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def read_split(folder: Path) -> "pd.DataFrame":
    """Read a run's images: columns path, class, split and sha256, all as text.

    Raises:
        ArtifactError: If split.csv is missing, unreadable or lacks columns.
    """
    try:
        frame = _read_table(folder / SPLIT, dtype=object)
    except (OSError, ValueError) as error:
        raise cannot_read(folder / SPLIT, error) from error
    missing = {"path", "class", "split", "sha256"} - set(frame.columns)
    if missing:
        columns = plural(len(missing), "column")
        raise ArtifactError(f"{folder / SPLIT} lacks the {columns} {', '.join(sorted(missing))}")
    return frame


def check_present(paths: Iterable[str], noun: str, *, of: Path, remedy: str) -> None:
    """Check that a run's images still exist.

    Args:
        paths: The images.
        noun: What one of them is, such as `validation image`.
        of: The run.
        remedy: What to do if they cannot be restored.

    Raises:
        DataError: If an image is missing.
    """
    gone = [path for path in paths if not os.path.exists(path)]  # noqa: PTH110 (speed)
    if gone:
        raise DataError(
            f"{grouped(len(gone), noun)} of {of} can no longer be found (first {gone[0]}); "
            f"{if_moved(of)}; otherwise restore them, or {remedy}"
        )


def if_moved(run: Path) -> str:
    """Return the remedy for images of a run that are missing because they were moved."""
    command = f"tltools runs {shlex.quote(str(run))} `images=FOLDER`"
    return f"if they were moved, name their folder: {command}"


def write_split(folder: Path, frame: "pd.DataFrame") -> None:
    """Write a run's images: columns path, class, split and sha256."""
    _write_table(frame, folder / SPLIT)


def _write_table(frame: "pd.DataFrame", path: Path) -> None:
    """Write a CSV file whose text may hold any bytes of a file name, such as a carriage return.

    Python's csv module quotes a carriage return only if it quotes all text.
    """
    text = frame.select_dtypes(exclude="number")
    odd = any("\r" in str(value) for name in text for value in text[name])
    with atomic_path(path) as temporary:
        frame.to_csv(
            temporary,
            index=False,
            errors="surrogateescape",
            quoting=csv.QUOTE_NONNUMERIC if odd else csv.QUOTE_MINIMAL,
        )


def _read_table(path: Path, dtype: Any) -> "pd.DataFrame":
    """Read what `_write_table` wrote; text is read as objects, since pandas' strings are UTF-8.

    Raises:
        OSError, ValueError: If it cannot be read.
    """
    import pandas as pd

    with open_regular(path, max_bytes=MAX_TABLE_BYTES) as file:
        frame = pd.read_csv(
            file, dtype=dtype, keep_default_na=False, encoding_errors="surrogateescape"
        )
    if schema.PATH in frame.columns and (moved := moved_with_project(path.with_name(SPLIT))):
        old, new = moved
        frame[schema.PATH] = [
            new + one.removeprefix(old) if one.startswith(old) else one
            for one in frame[schema.PATH]
        ]
    return frame


class Relocated(NamedTuple):
    """What `relocate` found."""

    num_images: int
    """Number of images with a new place."""
    relabeled: tuple[tuple[str, str], ...]
    """Those of them in a folder that has the name of another class of the run: the new path, and
    the class that the run was trained with."""


def relocate(run: Path, images: Path, *, progress: Progress = SILENT) -> Relocated:
    """Note where the images of a run are now, which are found by their bytes.

    Images that are where they were stay there.

    Args:
        run: The run's folder.
        images: The folder that holds the others, itself or in folders below it.
        progress: Where to report progress.

    Raises:
        ArtifactError: If the run's tables cannot be read.
        ConfigError: If another process trains the run.
        DataError: If an image is missing, or the folder is; then nothing is changed.
    """
    with locked(run):
        frame = read_split(run)
        hashes = dict(zip(frame["path"], frame["sha256"], strict=True))
        gone = {path: sha256 for path, sha256 in hashes.items() if not os.path.exists(path)}  # noqa: PTH110
        places = find_by_bytes(gone, images, progress=progress) if gone else {}
        if lost := [path for path in gone if path not in places]:
            raise DataError(
                f"{len(lost):,} of {grouped(len(hashes), 'image')} of {run} are neither where they "
                f"were nor in {images} (first {lost[0]}); nothing is changed; name a folder that "
                "has all of them"
            )
        if places:
            _write_places(run, places)
        labels = dict(zip(frame["path"], frame["class"], strict=True))
        classes = set(labels.values())
        relabeled = (
            (new, labels[old])
            for old, new in places.items()
            if (folder := Path(new).parent.name) in classes and folder != labels[old]
        )
        return Relocated(len(places), tuple(relabeled))


def _write_places(run: Path, places: Mapping[str, str]) -> None:
    """Replace paths in the tables of a run; the split is last, so that the call can be repeated."""
    for name in (PREDICTIONS, FOLDS, DISTANCES, SPLIT):
        if (run / name).exists():
            try:
                frame = _read_table(run / name, dtype=object)
            except (OSError, ValueError) as error:
                raise cannot_read(run / name, error) from error
            frame[schema.PATH] = [places.get(path, path) for path in frame[schema.PATH]]
            _write_table(frame, run / name)


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the history: one row per epoch."""
    import pandas as pd

    with atomic_path(folder / HISTORY) as temporary:
        pd.DataFrame(list(history)).to_csv(temporary, index=False)


def read_history(folder: Path) -> "pd.DataFrame":
    """Read a run's history: columns `epoch`, `train_loss`, `val_loss`, …, one row per epoch.

    Raises:
        ArtifactError: If it cannot be read.
    """
    import pandas as pd

    wanted = ["epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy"]
    try:
        with open_regular(folder / HISTORY, max_bytes=MAX_HISTORY_BYTES) as file:
            frame = pd.read_csv(file)
        return frame.astype(dict.fromkeys(wanted, float))
    except (OSError, ValueError, KeyError) as error:
        raise cannot_read(folder / HISTORY, error) from error


@dataclass(frozen=True, eq=False)
class RunPredictions:
    """Predictions of a run's model for the labeled images of one split."""

    paths: tuple[str, ...]
    """Paths of the N images."""
    targets: NDArray[np.int64]
    """True class indices, (N,)."""
    probs: NDArray[np.float64]
    """Calibrated probabilities, (N, C)."""
    decided: Decided | None = None
    """The classes that the images get; None: the most probable ones."""

    @property
    def preds(self) -> NDArray[np.int64]:
        """Predicted class indices, (N,)."""
        if self.decided is not None:
            return self.decided.preds
        return self.probs.argmax(axis=1).astype(np.int64)

    @property
    def is_kept(self) -> NDArray[np.bool_]:
        """Whether an image gets its class, and not `UNCERTAIN`, (N,)."""
        if self.decided is not None:
            return self.decided.kept
        return np.ones(len(self.targets), dtype=np.bool_)


def predictions_frame(
    classes: Sequence[str], part: RunPredictions, *, decimals: int | None = None
) -> "pd.DataFrame":
    """Return predictions as a table: the columns of `tltools.schema`, with the known labels.

    Args:
        classes: Class names in the order of the probabilities.
        part: The predictions of N images.
        decimals: Decimals of the probabilities; None keeps all their digits.
    """
    import pandas as pd

    probs = part.probs if decimals is None else part.probs.round(decimals)
    names = np.array(classes, dtype=object)
    preds = part.preds
    return pd.DataFrame(
        {
            schema.PATH: pd.Series(part.paths, dtype=object),
            schema.LABEL: np.where(part.is_kept, names[preds], UNCERTAIN),
            schema.CONFIDENCE: np.take_along_axis(probs, preds[:, None], axis=1)[:, 0],
            **{schema.prob_column(name): probs[:, i] for i, name in enumerate(classes)},
            schema.ERROR: "",
            schema.TRUE: names[part.targets],
        }
    )


def write_scored(
    path: Path, classes: Sequence[str], part: RunPredictions, *, only_mistakes: bool = False
) -> int:
    """Write the predictions of an evaluation: one row per image.

    Args:
        path: The file.
        classes: Class names in the order of the probabilities.
        part: The predictions.
        only_mistakes: Leave out the images whose predicted class is right, or uncertain.

    Returns:
        Number of rows.

    Raises:
        TltoolsError: If the file cannot be written.
    """
    frame = predictions_frame(classes, part, decimals=schema.DECIMALS)
    if only_mistakes:
        frame = frame.loc[part.is_kept & (part.preds != part.targets), :]
    _write_table(frame, path)
    return len(frame)


def write_predictions(
    folder: Path, classes: Sequence[str], predictions: Mapping[str, RunPredictions]
) -> None:
    """Write `predictions.csv`: `path,label,confidence,prob_<class>...,error,true,split`.

    There is one row per image. Probabilities keep all their digits, so logits can be recovered.

    Args:
        folder: The run.
        classes: Class names in the order of the logits.
        predictions: Predictions by split.

    Raises:
        TltoolsError: If the file cannot be written.
    """
    import pandas as pd

    frames = [
        predictions_frame(classes, part).assign(**{schema.SPLIT: split})
        for split, part in predictions.items()
    ]
    _write_table(pd.concat(frames), folder / PREDICTIONS)


def _true_labels(frame: "pd.DataFrame") -> list[str]:
    """Return the known labels, whose column was named `class` by earlier versions.

    Raises:
        KeyError: If there is no such column.
    """
    return list(frame[schema.TRUE if schema.TRUE in frame else "class"])


def read_predictions(folder: Path, classes: Sequence[str]) -> dict[str, RunPredictions]:
    """Read `predictions.csv`, by split; empty if the run predates this file.

    Raises:
        ArtifactError: If it cannot be read, or does not match the classes.
    """
    path = folder / PREDICTIONS
    columns = [schema.prob_column(name) for name in classes]
    try:
        if not path.exists():
            return {}
        frame = _read_table(path, dtype=object)
        index = {name: i for i, name in enumerate(classes)}
        targets = np.array([index[name] for name in _true_labels(frame)], dtype=np.int64)
        probs = frame[columns].astype(np.float64).to_numpy()
        splits = frame[schema.SPLIT].to_numpy()
        paths = frame[schema.PATH].to_numpy()
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}; train again to recreate it"
        ) from error
    return {
        str(split): RunPredictions(
            tuple(paths[splits == split]), targets[splits == split], probs[splits == split]
        )
        for split in dict.fromkeys(splits)
    }


def read_scored(path: Path, classes: Sequence[str]) -> RunPredictions:
    """Read what `write_scored` wrote, or the predictions of a run, of all splits.

    Raises:
        DataError: If it cannot be read, or does not match the classes.
    """
    index = {name: i for i, name in enumerate(classes)}
    try:
        frame = _read_table(path, dtype=object)
        targets = np.array([index[name] for name in _true_labels(frame)], dtype=np.int64)
        columns = [schema.prob_column(name) for name in classes]
        probs = frame[columns].astype(np.float64).to_numpy()
        labels = list(frame[schema.LABEL])
        kept = np.array([name in index or name != UNCERTAIN for name in labels], dtype=np.bool_)
        likeliest = probs.argmax(axis=1)
        rows = zip(labels, kept.tolist(), likeliest.tolist(), strict=True)
        preds = np.array([index[name] if is_kept else best for name, is_kept, best in rows])
        paths = tuple(frame[schema.PATH])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read: {cause_of(error)}; run tltools evaluate again"
        ) from error
    if not ((probs >= 0) & (probs <= 1)).all():
        raise DataError(
            f"{path} has a probability that is not between 0 and 1; run tltools evaluate again"
        )
    decided = Decided(preds.astype(np.int64), kept, known=np.ones_like(kept))
    return RunPredictions(paths, targets, probs, decided)


MAX_DOUBTED = 0.25
"""Share of labels above which it is the models that are too weak, not the labels that are wrong."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldPredictions:
    """Predictions of cross-validation: each image by a model that was trained without it."""

    paths: tuple[str, ...]
    """Paths of the N images."""
    targets: NDArray[np.int64]
    """Class indices of their labels, (N,)."""
    folds: NDArray[np.int64]
    """The fold of each image, counted from 1, (N,)."""
    probs: NDArray[np.float64]
    """Probabilities, temperature 1, (N, C)."""

    def accuracies(self) -> list[float]:
        """Return the top-1 accuracy of each fold, in [0, 1]."""
        right = self.probs.argmax(axis=1) == self.targets
        return [float(right[self.folds == fold].mean()) for fold in np.unique(self.folds)]

    def mean_and_deviation(self) -> tuple[float, float]:
        """Return the mean of the folds' accuracies and their standard deviation."""
        scores = self.accuracies()
        return float(np.mean(scores)), float(np.std(scores, ddof=1))

    def beats_chance(self) -> bool:
        """Return whether more predictions are right than if all were the most common class.

        By at least two standard deviations of that number; otherwise they say nothing about labels.
        """
        right = (self.probs.argmax(axis=1) == self.targets).sum()
        total = len(self.targets)
        share = np.bincount(self.targets).max() / total
        return bool(right > total * share + 2 * np.sqrt(total * share * (1 - share)))

    def suspects(self) -> NDArray[np.int64]:
        """Return the images whose labels look wrong, most suspicious first: their rows, (n,).

        There are none if the predictions say nothing about labels: if they do not beat chance, or
        doubt more than `MAX_DOUBTED`.
        """
        doubted = self.doubted
        return doubted if self.beats_chance() and not self.doubts_too_many() else doubted[:0]

    def doubts_too_many(self) -> bool:
        """Return whether more than `MAX_DOUBTED` of the labels are doubted."""
        return len(self.doubted) > MAX_DOUBTED * len(self.targets)

    @cached_property
    def doubted(self) -> NDArray[np.int64]:
        """Return the images whose labels the models doubt, most suspicious first: their rows, (n,).

        Confident learning (Northcutt et al., arXiv:1911.00068): an image belongs to another class
        with confidence if its probability of that class is at least what images with that label
        have on average. Suspects are ordered by the difference between the probabilities of the
        label and of the other class.
        """
        rows, num_classes = np.arange(len(self.targets)), self.probs.shape[1]
        thresholds = np.array(
            [
                self.probs[self.targets == label, label].mean()
                if (self.targets == label).any()
                else np.inf
                for label in range(num_classes)
            ]
        )
        confident = np.where(self.probs >= thresholds, self.probs, -1.0)
        guesses = confident.argmax(axis=1)
        doubted = (confident.max(axis=1) >= 0) & (guesses != self.targets)
        margins = self.probs[rows, self.targets] - self.probs[rows, guesses]
        found = np.flatnonzero(doubted)
        return found[np.argsort(margins[found], kind="stable")]


def write_folds(folder: Path, classes: Sequence[str], predictions: FoldPredictions) -> None:
    """Write `folds.csv`: the columns of `predictions.csv` but `split`, and `fold,suspect`.

    `suspect` ranks the labels that look wrong from 1; it is empty for the others.

    Raises:
        TltoolsError: If the file cannot be written.
    """
    import pandas as pd

    ranks = pd.Series(pd.NA, index=range(len(predictions.paths)), dtype="Int64")
    suspects = predictions.suspects()
    ranks.iloc[suspects] = np.arange(1, len(suspects) + 1)
    part = RunPredictions(predictions.paths, predictions.targets, predictions.probs)
    frame = predictions_frame(classes, part, decimals=schema.DECIMALS)
    frame = frame.assign(**{schema.FOLD: predictions.folds, schema.SUSPECT: ranks})
    _write_table(frame, folder / FOLDS)


def read_folds(folder: Path, classes: Sequence[str]) -> FoldPredictions | None:
    """Read `folds.csv`; None if the run was not cross-validated.

    Raises:
        ArtifactError: If it cannot be read, or does not match the classes.
    """
    path = folder / FOLDS
    if not path.exists():
        return None
    try:
        frame = _read_table(path, dtype=object)
        names = _true_labels(frame)
        return FoldPredictions(
            paths=tuple(frame[schema.PATH]),
            targets=np.array([list(classes).index(name) for name in names]),
            folds=frame[schema.FOLD].to_numpy(np.int64),
            probs=frame[[schema.prob_column(name) for name in classes]].to_numpy(np.float64),
        )
    except (OSError, ValueError, KeyError) as error:
        raise cannot_read(path, error) from error


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageDistances:
    """How far the images of a run's data are from the training images, the most distant first."""

    paths: tuple[str, ...]
    """Paths of the N images."""
    labels: tuple[str, ...]
    """Their classes, (N,)."""
    splits: tuple[str, ...]
    """(N,)."""
    distances: NDArray[np.float64]
    """(N,); a training image is compared with the others."""


def write_distances(folder: Path, found: ImageDistances) -> None:
    """Write `distances.csv`: `path,true,split,distance`, the most distant image first.

    Raises:
        TltoolsError: If the file cannot be written.
    """
    import pandas as pd

    columns = {
        schema.PATH: pd.Series(found.paths, dtype=object),
        schema.TRUE: pd.Series(found.labels, dtype=object),
        schema.SPLIT: pd.Series(found.splits, dtype=object),
        schema.DISTANCE: found.distances.round(schema.DECIMALS),
    }
    frame = pd.DataFrame(columns).sort_values(schema.DISTANCE, ascending=False, kind="stable")
    _write_table(frame, folder / DISTANCES)


def read_distances(folder: Path) -> ImageDistances | None:
    """Read `distances.csv`; None if the run has none.

    Raises:
        ArtifactError: If it cannot be read.
    """
    path = folder / DISTANCES
    if not path.exists():
        return None
    try:
        frame = _read_table(path, dtype=object)
        found = ImageDistances(
            paths=tuple(frame[schema.PATH]),
            labels=tuple(frame[schema.TRUE]),
            splits=tuple(frame[schema.SPLIT]),
            distances=frame[schema.DISTANCE].to_numpy(np.float64),
        )
    except (OSError, ValueError, KeyError) as error:
        raise cannot_read(path, error) from error
    if not (np.isfinite(found.distances) & (found.distances >= 0)).all():
        raise ArtifactError(f"{path} has a distance that is not a number of at least 0")
    return found
