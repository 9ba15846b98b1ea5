"""List, compare and delete runs."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from tltools.artifacts import EXPORT_DIR, Artifact, read_artifact
from tltools.atomic import remove_leftovers
from tltools.card import Card, Score
from tltools.data.suffixes import is_image_name
from tltools.errors import ArtifactError, TltoolsError
from tltools.metrics import SIGNIFICANCE, McNemar, mcnemar
from tltools.regular import read_regular
from tltools.run_folder import (
    CARD,
    CHECKPOINT,
    CONFUSION,
    CURVES,
    DISTANCE,
    DISTANCES,
    FOLDS,
    HISTORY,
    MLFLOW_RUN,
    PLAN,
    PREDICTIONS,
    SPLIT,
    STATE,
    TENSORBOARD,
    RunPredictions,
    is_complete,
    is_locked,
    load_card,
    locked,
    other_run_of,
    read_folds,
    read_predictions,
    read_split,
)
from tltools.runtime.model_formats import first_export, is_export_name
from tltools.wording import did_you_mean, grouped, in_percent, percent_or_dash, score_text

OWN_FILES = frozenset(
    {CARD, PLAN, SPLIT, HISTORY, PREDICTIONS, FOLDS, CHECKPOINT, STATE, CURVES, CONFUSION}
    | {DISTANCE, DISTANCES}
    | {MLFLOW_RUN}
)
"""Files that training writes into a run's folder."""
OWN_FOLDERS = frozenset({TENSORBOARD})
"""Folders that training writes into a run's folder."""
_LAST = (SPLIT, PLAN, CARD)
"""Deleted after the other files: they show that a folder is a run, should deletion be stopped."""

State = Literal["finished", "interrupted", "unfinished", "training", "damaged"]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a list of runs shows of one run."""

    path: Path
    model: str
    """Name of the backbone, its head and what was fine-tuned; empty if unknown."""
    data: str
    """Name of the CSV or folder of the images; empty if unknown."""
    num_train: int
    num_val: int
    val: Score | None
    """Validation accuracy; None if the run has none."""
    created: str
    """UTC, ISO 8601; empty if unknown."""
    num_bytes: int
    """Size of all files in the folder."""
    state: State
    """`interrupted` but usable, or not scored; `unfinished`: without a model; `damaged`."""
    exports: tuple[Path, ...]
    """Exports of this run as it is now."""
    older_exports: tuple[Path, ...]
    """Exports of an earlier run of this name, or of this run before it was resumed."""
    problem: str = ""
    """Why the run cannot be read, if it is damaged."""


# ---------------------------------------------------------------------------------- listing


def is_run_folder(folder: Path) -> bool:
    """Return whether training made a folder, finished or not: it has a card or a plan, as files."""
    return any((folder / name).is_file() for name in (CARD, PLAN)) and not folder.is_symlink()


def chance(folder: Path, classes: Sequence[str]) -> float | None:
    """Return the validation accuracy of always choosing the largest class, in [0, 1].

    Args:
        folder: A run, whose validation images are counted.
        classes: Its classes.

    Returns:
        None if the run has no predictions of validation images.

    Raises:
        ArtifactError: If they cannot be read.
    """
    part = read_predictions(folder, classes).get("val")
    if part is None or not len(part.targets):
        return None
    return float(np.bincount(part.targets).max()) / len(part.targets)


def chance_doubt(folder: Path, card: Card) -> str | None:
    """Say that a run's validation accuracy may be chance; empty if it is not, None if not known.

    It may be if its interval reaches down to what always choosing the largest class would get.

    Args:
        folder: The run.
        card: Its card.

    Raises:
        ArtifactError: If its predictions cannot be read.
    """
    share, score = chance(folder, card.classes), card.metrics.get("val")
    if share is None or score is None:
        return None
    if score.low > share:
        return ""
    return (
        f"a validation accuracy of {score_text(score)}, may be chance: always choosing the largest "
        f"class would get {in_percent(share)}"
    )


def cross_validated(folder: Path, classes: Sequence[str]) -> str:
    """Return the accuracy of a run's cross-validation in words; empty if there is none.

    Raises:
        ArtifactError: If it cannot be read.
    """
    folds = read_folds(folder, classes)
    if folds is None:
        return ""
    mean, deviation = folds.mean_and_deviation()
    return (
        f"{percent_or_dash(mean)} on {len(folds.accuracies())} folds (standard deviation "
        f"{100 * deviation:.1f} points)"
    )


def holds_runs(folder: Path) -> bool:
    """Return whether a folder contains runs, and no images beside them.

    False if a folder in it cannot be listed, which reading images from it will report.
    """
    try:
        children = [one for one in sorted(folder.iterdir()) if one.is_dir()]
        runs = [one for one in children if is_run_folder(one)]
        return bool(runs) and not any(
            is_image_name(entry.name)
            for child in children
            if child not in runs
            for entry in child.iterdir()
        )
    except PermissionError:
        return False


def list_runs(
    run_dir: Path, *, on_problem: Callable[[ArtifactError], None] | None = None
) -> list[RunFacts]:
    """Describe the runs in a folder, the newest first.

    Args:
        run_dir: Parent of the run folders.
        on_problem: Called with the error of each export that cannot be read.

    Raises:
        ArtifactError: If there is no run.
    """
    folders = sorted(run_dir.iterdir()) if run_dir.is_dir() else []
    # A deletion that was killed leaves a hidden folder.
    runs = [one for one in folders if is_run_folder(one) and not one.name.startswith(".")]
    if not runs:
        raise ArtifactError(f"no runs in {run_dir}/: train one with tltools train")
    exports = list(_exports_of(run_dir, on_problem))
    found = [_facts_if_there(folder, exports) for folder in runs]
    there = [one for one in found if one is not None]
    return sorted(there, key=lambda one: one.created, reverse=True)


def _exports_of(
    run_dir: Path, on_problem: Callable[[ArtifactError], None] | None
) -> Iterator[Artifact]:
    """Yield the exports here and beside a folder of runs."""
    places = dict.fromkeys(one.resolve() for one in (EXPORT_DIR, run_dir.parent / EXPORT_DIR))
    here = Path.cwd()
    for place in places:
        for path in sorted(place.glob("*/*")):
            if not is_export_name(path) or path.name.startswith("."):
                continue
            shown = path.relative_to(here) if path.is_relative_to(here) else path
            try:
                yield read_artifact(shown)
            except ArtifactError as error:
                if on_problem is not None:
                    on_problem(error)


def _facts_if_there(folder: Path, exports: Sequence[Artifact]) -> RunFacts | None:
    """Describe one run; None if another process has deleted it in the meantime."""
    try:
        facts = _facts(folder, exports)
    except FileNotFoundError:
        if is_run_folder(folder):
            raise
        return None
    return facts if is_run_folder(folder) else None


def _facts(folder: Path, exports: Sequence[Artifact]) -> RunFacts:
    """Describe one run.

    Raises:
        FileNotFoundError: If it is deleted while it is read.
    """
    common: dict[str, Any] = {"path": folder, "num_bytes": _size(folder)}
    if not (folder / CARD).is_file():
        return RunFacts(**common, **_planned(folder), val=None, exports=(), older_exports=())
    try:
        card = load_card(folder)
    except ArtifactError as error:
        unknown = {"model": "", "data": "", "num_train": 0, "num_val": 0, "created": ""}
        return RunFacts(
            **common, **unknown, val=None, exports=(), older_exports=(), state="damaged",
            problem=str(error),
        )  # fmt: skip
    return RunFacts(
        **common,
        model=model_title(card),
        data=card.data.name,
        num_train=card.data.num_train,
        num_val=card.data.num_val,
        val=card.metrics.get("val"),
        created=card.created,
        state=state_of(folder, card),
        # Exports have the name that the run was trained under: its folder may be renamed.
        exports=tuple(
            one.path
            for one in exports
            if one.card.run == card.run and one.card.created == card.created
        ),
        older_exports=tuple(
            one.path
            for one in exports
            if one.card.run == folder.name
            and one.card.created != card.created
            and other_run_of(one.card, folder) is None
        ),
    )


def state_of(folder: Path, card: Card) -> State:
    """Return whether the training of a run that has a card goes on, finished, or stopped before.

    One that could not be scored has stopped before: resuming it scores it.
    """
    if is_locked(folder):
        return "training"
    return "finished" if is_complete(folder, card) else "interrupted"


class _PlannedData(msgspec.Struct):
    name: str = ""
    num_train: int = 0
    num_val: int = 0


class _Plan(msgspec.Struct):
    """The parts of a run's plan that a list shows."""

    config: dict[str, Any]
    data: _PlannedData


def _planned(folder: Path) -> dict[str, Any]:
    """Return the facts of a run that has a plan and no card."""
    from datetime import UTC, datetime

    path = folder / PLAN
    facts: dict[str, Any] = {"model": "", "data": "", "num_train": 0, "num_val": 0}
    began = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    try:
        plan = msgspec.json.decode(read_regular(path, max_bytes=2**21), type=_Plan)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        return facts | {"created": began, "state": "damaged", "problem": f"{path}: {error}"}
    data = plan.data
    return {
        "model": str(plan.config.get("model", "")),
        "data": data.name,
        "num_train": data.num_train,
        "num_val": data.num_val,
        "created": began,
        "state": "training" if is_locked(folder) else "unfinished",
    }


def model_title(card: Card) -> str:
    """Name a run's model, its head and what was fine-tuned."""
    tuned = card.training.get("fine_tune", "none")
    return f"{card.model} {card.head}" + ("" if tuned == "none" else f", {tuned} tuned")


def find_run(name: str, run_dir: Path, *, to_delete: bool = False) -> Path:
    """Return the folder of a run that is named by its path, or by its name in `run_dir`.

    Args:
        name: The path or the name.
        run_dir: Folder of runs.
        to_delete: Name exports that are left of a deleted run instead of proposing another one.

    Raises:
        ArtifactError: If there is no such run.
    """
    named = (Path(name), run_dir / name)
    for path in named:
        if path.is_symlink():
            raise ArtifactError(f"{path} is a link: name the run it leads to")
        if is_run_folder(path):
            return path
    existing = next((path for path in named if path.exists()), None)
    if existing is not None:
        raise ArtifactError(
            f"{existing} is not a run: it has neither {CARD} nor {PLAN}; tltools runs lists the "
            "runs"
        )
    known = (
        [one.name for one in run_dir.iterdir() if is_run_folder(one)] if run_dir.is_dir() else []
    )
    guess = did_you_mean(name, known)
    if to_delete and (export := first_export(EXPORT_DIR / name)):
        raise ArtifactError(
            f"there is no run {name} in {run_dir}/ any more, only exports, such as {export}: "
            "delete the files that you no longer need"
        )
    raise ArtifactError(
        f"{name} does not exist, and is not the name of a run in {run_dir}/;"
        + (guess or " tltools runs lists the runs")
    )


# -------------------------------------------------------------------------------- comparison


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Whether two runs differ by more than chance on the validation images that they share."""

    first: str
    second: str
    """Names of the runs."""
    num_shared: int
    """Number of images that both were validated on, with the same label."""
    num_first: int
    num_second: int
    """Number of validation images of each run."""
    test: McNemar | None
    """None if they cannot be compared."""
    problem: str = ""
    """Why not."""

    @property
    def better(self) -> str | None:
        """Name of the run that is better by more than chance; None if the difference may be."""
        if self.test is None or self.test.p_value >= SIGNIFICANCE:
            return None
        return self.first if self.test.only_first > self.test.only_second else self.second

    def sentence(self) -> str:
        """Say in a sentence or two what was found."""
        pair, test = f"{self.first} and {self.second}", self.test
        if test is None:
            return f"{pair} cannot be compared{self.problem}."
        same = self.num_shared == self.num_first == self.num_second
        if not test.only_first + test.only_second:
            rest = "" if same else " that they share"
            return (
                f"{pair} get the same images right, out of {grouped(self.num_shared, 'image')}"
                f"{rest}."
            )
        verdict = (
            f"{self.better} is better by more than chance"
            if self.better
            else "the difference may be chance"
        )
        shared = (
            f"the same {self.num_shared:,} validation images"
            if same
            else f"the {grouped(self.num_shared, 'validation image')} that they share (of "
            f"{self.num_first:,} and {self.num_second:,})"
        )
        return (
            f"{pair}: {verdict} ({_p_text(test.p_value)}, McNemar's exact test). Of {shared}, "
            f"{self.first} alone is right on {test.only_first:,} and {self.second} alone on "
            f"{test.only_second:,}."
        )


def _p_text(value: float) -> str:
    return f"p = {value:.2g}" if value >= 0.001 else "p < 0.001"


def compare_runs(
    first: Artifact,
    second: Artifact,
    first_predictions: Mapping[str, RunPredictions],
    second_predictions: Mapping[str, RunPredictions],
) -> Comparison:
    """Compare two runs on the validation images that they share.

    Images are the same if their bytes are, wherever they lie; both runs must have them under the
    same label.

    Args:
        first: A run.
        second: Another run.
        first_predictions: The predictions of the first run, by split.
        second_predictions: Those of the second.

    Raises:
        ArtifactError: If the images of a run cannot be read.
    """
    names = names_of(first, second)
    blank = Comparison(
        first=names[0],
        second=names[1],
        num_shared=0,
        num_first=0,
        num_second=0,
        test=None,
    )
    for run, predictions in ((first, first_predictions), (second, second_predictions)):
        if "val" not in predictions:
            problem = (
                f" image by image: {run.path.name} has no predictions (an earlier version of "
                "tltools made it; train it again)"
            )
            return replace(blank, problem=problem)
    ones, others = (
        _right(first, first_predictions["val"]),
        _right(second, second_predictions["val"]),
    )
    shared = [key for key, (label, _) in ones.items() if key in others and others[key][0] == label]
    found = replace(blank, num_shared=len(shared), num_first=len(ones), num_second=len(others))
    if not shared:
        return replace(found, problem=": they have different validation images")
    hits = [np.array([run[key][1] for key in shared], dtype=np.bool_) for run in (ones, others)]
    return replace(found, test=mcnemar(hits[0], hits[1]))


def _right(run: Artifact, predictions: RunPredictions) -> dict[tuple[str, int], tuple[str, bool]]:
    """Return the class of each image, and whether the run predicts it.

    The key is the hash of the image's bytes, and how many images before it have the same.
    """
    split = read_split(run.path)
    hashes = dict(zip(split["path"], split["sha256"], strict=True))
    preds = predictions.probs.argmax(axis=1)
    seen: Counter[str] = Counter()
    found: dict[tuple[str, int], tuple[str, bool]] = {}
    for path, target, pred in zip(predictions.paths, predictions.targets, preds, strict=True):
        image = hashes.get(path, path)
        found[image, seen[image]] = (run.card.classes[target], bool(pred == target))
        seen[image] += 1
    return found


def names_of(first: Artifact, second: Artifact) -> tuple[str, str]:
    """Return the names of two runs, or their paths if they have one name."""
    one, other = first.path, second.path
    return (one.name, other.name) if one.name != other.name else (str(one), str(other))


def read_and_compare(first: Artifact, second: Artifact) -> Comparison:
    """Read the predictions of two runs and compare them.

    Raises:
        ArtifactError: If a run's images or predictions cannot be read.
    """
    return compare_runs(
        first,
        second,
        read_predictions(first.path, first.card.classes),
        read_predictions(second.path, second.card.classes),
    )


def same_images(first: Artifact, second: Artifact) -> bool:
    """Return whether two runs have the same images with the same labels, however divided.

    Raises:
        ArtifactError: If a run's split.csv cannot be read.
    """
    found: list[Counter[tuple[str, str]]] = []
    for run in (first, second):
        split = read_split(run.path)
        found.append(Counter(zip(split["sha256"], split["class"], strict=True)))
    return found[0] == found[1]


def differing_settings(first: Card, second: Card) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two runs differ, with both values; None if a run lacks one."""
    one, other = _settings(first), _settings(second)
    names = dict.fromkeys([*one, *other])
    return {
        name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)
    }


_TITLES = {
    "lr": "learning rate",
    "backbone_lr": "learning rate of the backbone",
    "clip_grad": "gradient clipping",
    "epochs": "epochs at most",
    "fingerprint": "images, labels or their split",
    "features_in": "feature precision used",
    "feature_precision": "feature precision",
    "standardize": "features standardized",
}
"""Names of settings for people, where more than the underscores differs."""


def setting_title(name: str) -> str:
    """Name a setting of `differing_settings` for people."""
    return _TITLES.get(name, name.replace("_", " "))


_RESULTS = frozenset({"epochs_done", "kept_epoch", "interrupted"})
"""Entries of a card's `training` that are results and no settings."""


def _settings(card: Card) -> dict[str, Any]:
    """Return all that a run was trained with."""
    rules = card.preprocessing
    return {
        "model": card.model,
        "weights": card.weights.source,
        "classes": ", ".join(card.classes),
        "data": card.data.name,
        "split": card.data.split,
        "fingerprint": card.data.fingerprint[:12],
        "interpolation": rules.interpolation,
        **{name: value for name, value in card.training.items() if name not in _RESULTS},
        "image_size": rules.size,
        "head": card.head,
        "torch": card.versions.get("torch"),
        "tltools": card.versions.get("tltools"),
    }


# ---------------------------------------------------------------------------------- deletion


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """The files that deleting a run removes, and those that stay."""

    folder: Path
    files: tuple[Path, ...]
    """Files and folders that training wrote, in the order in which they are removed."""
    kept: tuple[Path, ...]
    """Files and folders that training did not write; the run's folder stays for them."""
    exports: tuple[Path, ...]
    """Exports of the run that are removed with it; empty unless that is requested."""
    kept_exports: tuple[Path, ...]
    """Exports that stay, and that other commands go on finding: those of the run unless they are
    removed, and those of an earlier run of its name, or of an equal name in another folder."""
    num_bytes: int
    """Size of what is removed."""


def plan_deletion(folder: Path, *, with_exports: bool = False) -> Deletion:
    """Return what deleting a run removes.

    Temporary files that a killed process left in it are removed now.

    Args:
        folder: The run.
        with_exports: Remove its exports, too.

    Raises:
        ArtifactError: If the folder is not a run that tltools made.
    """
    check_is_ours(folder)
    if not is_locked(folder):
        remove_leftovers(folder)
    entries = sorted(folder.iterdir())
    files = [one for one in entries if one.name in OWN_FILES and not one.is_dir()]
    files += [one for one in entries if one.name in OWN_FOLDERS and one.is_dir()]
    own = sorted(files, key=lambda one: _LAST.index(one.name) if one.name in _LAST else -1)
    exports, others = _own_and_other_exports(folder)
    removed = exports if with_exports else ()
    return Deletion(
        folder=folder,
        files=tuple(own),
        kept=tuple(one for one in entries if one not in files),
        exports=removed,
        kept_exports=others if with_exports else exports + others,
        num_bytes=sum(map(_size, [*own, *removed])),
    )


def _own_and_other_exports(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the exports of a run, and those of another run of its name.

    Exports of the run before it was resumed or extended are its own, too.
    """
    try:
        found = list(_exports_of(folder.parent, None))
        facts = _facts(folder, found)
    except FileNotFoundError:  # its training was killed before its first epoch
        return (), ()
    if not facts.older_exports:
        return facts.exports, ()
    card = load_card(folder)
    earlier = tuple(
        one.path
        for one in found
        if one.path in facts.older_exports
        and one.path.parent.name == card.run
        and (one.card.model, one.card.data.fingerprint) == (card.model, card.data.fingerprint)
    )
    others = tuple(one for one in facts.older_exports if one not in earlier)
    return facts.exports + earlier, others


def check_is_ours(folder: Path) -> None:
    """Check that the content of a folder proves that tltools made it: a valid card or plan.

    Raises:
        ArtifactError: If it does not.
    """
    if not is_run_folder(folder):
        raise ArtifactError(f"{folder} is not a run: it has neither {CARD} nor {PLAN}")
    if (folder / PLAN).is_file() and _planned(folder)["state"] != "damaged":
        return
    try:
        load_card(folder)
    except ArtifactError as error:
        raise ArtifactError(
            f"nothing shows that tltools made {folder}, so it is not deleted ({error}); delete it "
            "yourself if you do not need it"
        ) from error


def is_ours(folder: Path) -> bool:
    """Return whether the content of a folder proves that tltools made it."""
    try:
        check_is_ours(folder)
    except ArtifactError:
        return False
    return True


def _size(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes; 0 for what has vanished."""
    if not path.is_dir() or path.is_symlink():
        return _file_size(path)
    # Unlike rglob, walk goes on if a folder vanishes: a training that saves has temporary ones.
    return sum(
        _file_size(Path(folder, name)) for folder, _, names in os.walk(path) for name in names
    )


def _file_size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def check_deletable(deletion: Deletion) -> None:
    """Check that a run can be deleted, before anything is.

    Raises:
        ConfigError: If another process is training it.
        TltoolsError: If its folder, the folder above it or a folder in it is not writable.
    """
    folders = [deletion.folder, *(one for one in deletion.files if one.is_dir())]
    if not deletion.kept:
        folders.append(deletion.folder.absolute().parent)
    for folder in folders:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise TltoolsError(
                f"cannot delete {deletion.folder}, and nothing is deleted: {folder} is not "
                "writable; make it writable, then run it again"
            )
    with locked(deletion.folder):
        pass


def delete_run(deletion: Deletion) -> None:
    """Delete a run; its folder goes too, unless it holds files that training did not write.

    A folder that goes is renamed first: where that fails, nothing of the run is lost. A deletion
    that is stopped can be repeated: exports go first, and the files that show the run last. What
    killed deletions beside it have left is removed, too.

    Raises:
        OSError: If a file cannot be deleted.
        TltoolsError: As for `check_deletable`.
    """
    check_deletable(deletion)
    with locked(deletion.folder):
        _delete_exports(deletion.exports)
        _delete(deletion)
    for folder in sorted(deletion.folder.absolute().parent.iterdir()):
        if _DELETED.fullmatch(folder.name) and not folder.is_symlink():
            with suppress(OSError, TltoolsError):  # of another deletion: this one has succeeded
                _finish_deletion(folder)


def _delete_exports(exports: Sequence[Path]) -> None:
    """Delete exports, and their folders if nothing else is in them."""
    for path in exports:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in exports}:
        remove_leftovers(folder)
        if not any(folder.iterdir()):
            folder.rmdir()


_DELETED = re.compile(r"\..+\.deleted(-\d+)?")
"""Name of a folder that is being deleted."""


def _deleted_name(folder: Path) -> Path:
    """Return a free name for a folder while it is deleted: a killed deletion may have left one."""
    number = 1
    while True:
        name = folder.with_name(f".{folder.name}.deleted" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(name):
            return name
        number += 1


def _finish_deletion(folder: Path) -> None:
    """Delete what a killed deletion left of a run, unless it holds other files.

    Raises:
        OSError: If it cannot be deleted.
        TltoolsError: If its content does not prove that it is a run, or another process deletes it.
    """
    with locked(folder):
        if any(folder.iterdir()):
            deletion = plan_deletion(folder)
            if deletion.kept:
                return
            _remove(deletion.files)
        folder.rmdir()


def _delete(deletion: Deletion) -> None:
    if deletion.kept:
        _remove(deletion.files)
        return
    folder = deletion.folder
    renamed = _deleted_name(folder)
    folder.rename(renamed)
    try:
        _remove([renamed / path.name for path in deletion.files])
        renamed.rmdir()
    except BaseException:
        renamed.rename(folder)
        raise


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
