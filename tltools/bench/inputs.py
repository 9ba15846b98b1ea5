"""Collect the inputs of a bench: candidates, the images to measure them on, and their classes."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools.artifacts import (
    EXPORT_DIR,
    RUN_DIR,
    Artifact,
    current_and_earlier_exports,
    earlier_notes,
    read_artifact,
    training_images,
    usable_runs,
)
from tltools.bench.flops import onnx_flops
from tltools.bench.rows import EAGER, BenchPrecision
from tltools.card import Card
from tltools.errors import ArtifactError, DataError
from tltools.evaluate import choose_split, count_trained_on
from tltools.run_folder import CARD, if_moved, read_split
from tltools.runtime.model_formats import ONNX, format_of, is_export_name
from tltools.runtime.selftest import lacks_self_test
from tltools.wording import SPLIT_NAMES, grouped, in_percent, listed, plural

if TYPE_CHECKING:
    import pandas as pd

    from tltools.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model in one format and precision."""

    name: str
    """Unique in the bench; for messages."""
    run: str
    """The run; its candidates are compared with its eager model, and grouped in the tables. Of an
    export of another training, the run and the time of that training."""
    format: str
    """Name of a `tltools.runtime.model_formats.ModelFormat`, or `EAGER`."""
    precision: BenchPrecision
    path: Path
    """The export; for `eager`, the run folder."""
    flops_per_image: int | None = None
    """Operations of convolutions and matrix products; None if unknown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchInputs:
    """The candidates of a bench, and the images to measure them on."""

    candidates: list[Candidate]
    images: list[Path]
    targets: NDArray[np.int64]
    """Class index of each image, (N,)."""
    name: str
    """Name of the images, to print."""
    notes: tuple[str, ...]
    """Warnings about the models, and about the images that they are judged on."""
    unmeasured: str = ""
    """Which better run of the same data is not among the candidates; empty if none is."""


def bench_inputs(
    models: Sequence[Path] | None,
    dataset: "Dataset | None",
    *,
    tf32: bool = False,
    run_dir: Path = RUN_DIR,
    export_dir: Path = EXPORT_DIR,
) -> BenchInputs:
    """Collect the candidates and images of a bench.

    Args:
        models: Runs and exports; None for the exports in `export_dir`. The run of an export is
            added if it is still in `run_dir`, as the reference for comparison, and the exports of
            a run if none of them is named.
        dataset: Labeled images, of which those of the split that `evaluate` would score are used;
            None for the runs' own validation images.
        tf32: Also measure fp32 exports in TF32, which needs a GPU.
        run_dir: Folder of runs.
        export_dir: Folder of exports.

    Raises:
        ArtifactError: If there is nothing to measure, or a model is corrupt.
        DataError: If models have the same name or different classes, or their runs' validation
            images differ or are missing.
    """
    if models:
        artifacts, notes = _with_exports([read_artifact(path) for path in models], export_dir)
    else:
        artifacts, earlier = current_and_earlier_exports(export_dir)
        notes = earlier_notes(artifacts, earlier)
    artifacts = _with_runs(artifacts, run_dir)
    _check_labels(artifacts)
    trainings = _trainings(artifacts, run_dir)
    notes += trainings.notes()
    classes = _classes(artifacts)
    frame, name = _labeled_images(artifacts, dataset)
    notes += _doubts(artifacts)
    if dataset is not None:  # a run was not trained on its own validation images
        notes += _trained_on_notes(artifacts, frame)
    # Shuffled, so that any prefix is a fair sample: a slow model's accuracy may be measured on a
    # prefix only.
    frame = frame.sample(frac=1, random_state=0)
    return BenchInputs(
        candidates=_candidates(artifacts, trainings, tf32=tf32),
        images=[Path(path) for path in frame["path"]],
        targets=_targets(frame, classes),
        name=name,
        notes=tuple(notes),
        unmeasured=unmeasured_note(artifacts, usable_runs(run_dir)),
    )


def _doubts(artifacts: Sequence[Artifact]) -> Iterator[str]:
    """Yield what is missing in the models."""
    yield from filter(None, (lacks_self_test(one.card) for one in artifacts))
    stopped = [one.card.run for one in artifacts if one.card.training.get("interrupted")]
    yield from (f"the training of {name} was stopped early" for name in dict.fromkeys(stopped))


def _classes(artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """Return the classes, which must be the same for all models, in the same order."""
    classes = artifacts[0].card.classes
    for artifact in artifacts:
        if artifact.card.classes != classes:
            raise DataError(
                f"{artifact.path} and {artifacts[0].path} have different classes: bench them "
                f"separately, as with tltools bench {shlex.quote(str(artifact.path))}"
            )
    return classes


def _targets(frame: "pd.DataFrame", classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the index of each image's class, (N,)."""
    index = {name: number for number, name in enumerate(classes)}
    unknown = sorted(set(frame["class"]) - set(index))
    if unknown:
        raise DataError(
            f"the data has classes that the models do not know: {listed(unknown)} (they know "
            f"{listed(classes)}); rename the data's classes with `class_names=`"
        )
    return np.array([index[one] for one in frame["class"]], dtype=np.int64)


def _candidates(
    artifacts: Sequence[Artifact], trainings: "_Trainings", *, tf32: bool
) -> list[Candidate]:
    """Return a candidate for each artifact; if requested, another in TF32 for fp32 exports."""
    flops = _flops_by_run(artifacts, trainings)
    candidates: list[Candidate] = []
    for artifact in artifacts:
        facts = artifact.card.export
        run = trainings.name(artifact)
        candidate = Candidate(
            name=run + artifact.label.removeprefix(artifact.card.run),
            run=run,
            format=facts.format if facts else EAGER,
            precision=facts.precision if facts else "fp32",
            path=artifact.path,
            # Exports of small models are folded, so the run itself computes less.
            flops_per_image=flops.get(run) if facts else None,
        )
        candidates.append(candidate)
        if tf32 and facts and facts.precision == "fp32":
            label = f"{run} {facts.format} tf32"
            candidates.append(replace(candidate, name=label, precision="tf32"))
    return candidates


def _flops_by_run(artifacts: Sequence[Artifact], trainings: "_Trainings") -> dict[str, int]:
    """Count each run's operations per image, from one of its ONNX exports if it has any."""
    found: dict[str, int] = {}
    for artifact in artifacts:
        is_onnx = not artifact.is_run and format_of(artifact.path) is ONNX
        if is_onnx and trainings.name(artifact) not in found:
            flops = onnx_flops(artifact.path)
            if flops is not None:
                found[trainings.name(artifact)] = flops
    return found


def _with_runs(artifacts: list[Artifact], run_dir: Path) -> list[Artifact]:
    """Return the artifacts grouped by run, with each run's own folder first if it exists."""
    found: dict[Path, Artifact] = {}
    for artifact in sorted(artifacts, key=lambda one: one.card.run):
        folder = run_dir / artifact.card.run
        if not artifact.is_run and (folder / CARD).is_file():
            run = read_artifact(folder)
            if _came_from(artifact.card, run.card):
                found.setdefault(folder.resolve(), run)
        found.setdefault(artifact.path.resolve(), artifact)
    return list(found.values())


def _with_exports(named: Sequence[Artifact], export_dir: Path) -> tuple[list[Artifact], list[str]]:
    """Add the exports of each named run, unless some of them are named too.

    Returns:
        The artifacts, and warnings: which exports are of an earlier training and left out, and
        that there is no export at all.
    """
    found, notes = [*named], list[str]()
    for run in (one for one in named if one.is_run):
        if any(not one.is_run and one.card.run == run.card.run for one in named):
            continue
        exports = _exports_of(run, export_dir)
        current = [one for one in exports if _came_from(one.card, run.card)]
        notes += earlier_notes([run], [one for one in exports if one not in current])
        found += current
    if all(one.is_run for one in found):  # else the recommendation names the runs without one
        paths = [str(one.path) for one in named]
        notes.append(
            f"{listed(paths)} {plural(len(paths), 'has', 'have')} no export in {export_dir}/, so "
            "only PyTorch is measured and nothing is recommended; create one with tltools export "
            f"{shlex.quote(paths[0])}"
        )
    return found, notes


def _exports_of(run: Artifact, export_dir: Path) -> list[Artifact]:
    """Read the exports in the folders of a run's name, by path; a renamed run has two names."""
    names = dict.fromkeys((run.path.resolve().name, run.card.run))
    paths = sorted(path for name in names for path in (export_dir / name).glob("*"))
    exports = (path for path in paths if is_export_name(path) and not path.name.startswith("."))
    return [one for one in map(read_artifact, exports) if one.card.run == run.card.run]


def unmeasured_note(measured: Sequence[Artifact], runs: Iterable[Artifact]) -> str:
    """Say which run has a higher validation accuracy than all models that were measured.

    Args:
        measured: Runs and exports.
        runs: Runs to compare with; those of other data, or without an accuracy, are ignored.

    Returns:
        A sentence without its period; empty if there is no such run.
    """
    in_order = sorted(measured, key=lambda one: not one.is_run)
    paths = {one.card.run: one.path for one in reversed(in_order)}  # of runs, where they are known
    names = list(dict.fromkeys(one.card.run for one in measured))
    data = {one.card.data.fingerprint for one in measured}
    scores = [one.card.metrics["val"] for one in measured if "val" in one.card.metrics]
    best = max(scores, key=lambda one: one.accuracy, default=None)
    if best is None:
        return ""
    better = [
        run
        for run in runs
        if run.card.run not in names
        and run.card.data.fingerprint in data
        and "val" in run.card.metrics
        and run.card.metrics["val"].accuracy > best.accuracy
    ]
    if not better:
        return ""
    other = max(better, key=lambda run: run.card.metrics["val"].low)
    accuracies = f"{in_percent(other.card.metrics['val'].accuracy)} against " + in_percent(
        best.accuracy
    )
    command = shlex.join(["tltools", "bench", *(str(paths[name]) for name in names)])
    return (
        f"Only {listed(names)} {plural(len(names), 'was', 'were')} measured, not "
        f"{other.path.name}, whose validation accuracy is higher ({accuracies}): {command} "
        f"{shlex.quote(str(other.path))} compares them"
    )


def _came_from(export: Card, run: Card) -> bool:
    """Return whether an export was made from a run.

    Exporting adds a missing calibration, and a threshold may be chosen at any time.
    """
    changes: dict[str, Any] = {"confidence": None} if run.confidence is None else {}
    changes["threshold"] = run.threshold
    return run == msgspec.structs.replace(export, export=None, **changes)


@dataclass(frozen=True)
class _Trainings:
    """Which artifacts are of another training than the run whose name they have."""

    others: dict[Path, Artifact]
    """By the path of such an artifact, the run, or the newest export, that it is not of."""
    artifacts: Sequence[Artifact]

    def name(self, artifact: Artifact) -> str:
        """Return the run of an artifact; of another training, with the time of that."""
        run = artifact.card.run
        if artifact.path not in self.others:
            return run
        return f"{run} ({artifact.card.created[:19].replace('T', ' ')})"

    def notes(self) -> Iterator[str]:
        """Warn of artifacts of another training, one line for those of each run."""
        by_run: dict[Path, list[Artifact]] = {}
        for one in self.artifacts:
            if one.path in self.others:
                by_run.setdefault(self.others[one.path].path, []).append(one)
        for path, others in by_run.items():
            newest = self.others[others[0].path].card.created
            which = "an earlier" if all(one.card.created < newest for one in others) else "another"
            yield (
                f"{listed([str(one.path) for one in others])} {plural(len(others), 'is', 'are')} "
                f"of {which} training than {path}, and so not compared with it"
            )


def _trainings(artifacts: Sequence[Artifact], run_dir: Path) -> _Trainings:
    """Find the artifacts that are not of the run of their name, or else of its newest export."""
    others: dict[Path, Artifact] = {}
    for name in dict.fromkeys(one.card.run for one in artifacts):
        same = [one for one in artifacts if one.card.run == name]
        newest = next((one for one in same if one.is_run), None)
        if newest is None and (run_dir / name / CARD).is_file():
            newest = read_artifact(run_dir / name)
        if newest is None:
            newest = max(same, key=lambda one: one.card.created)
        for one in same:
            is_of = (
                _came_from(one.card, newest.card)
                if newest.is_run
                else one.card.created == newest.card.created
            )
            if not is_of:
                others[one.path] = newest
    return _Trainings(others, artifacts)


def _check_labels(artifacts: Sequence[Artifact]) -> None:
    known: dict[str, Path] = {}
    for artifact in artifacts:
        other = known.setdefault(artifact.label, artifact.path)
        if other != artifact.path:
            raise DataError(
                f"{other} and {artifact.path} are both called {artifact.label!r}: bench them "
                "separately"
            )


def _labeled_images(
    artifacts: list[Artifact], dataset: "Dataset | None"
) -> "tuple[pd.DataFrame, str]":
    """Return a frame with the columns path and class, and its name."""
    if dataset is not None:
        split, frame = choose_split(dataset, None)
        return frame, dataset.name if split == "all" else f"{dataset.name} ({SPLIT_NAMES[split]})"
    runs = [artifact for artifact in artifacts if artifact.is_run]
    fingerprints = {artifact.card.data.fingerprint for artifact in artifacts}
    if not runs:
        raise DataError(
            "the runs of these exports are not in runs/, or were trained again since, so there are "
            "no images to measure on: provide labeled images with `dataset=`"
        )
    if len(fingerprints) > 1:
        raise DataError(
            "these models were trained on different data: provide labeled images for all of them "
            "with `dataset=`"
        )
    frame = read_split(runs[0].path)
    frame = frame.loc[frame["split"] == "val"]
    gone = [path for path in frame["path"] if not Path(path).is_file()]
    if gone:
        raise DataError(
            f"{len(gone)} validation image{'s are' if len(gone) > 1 else ' is'} missing from "
            f"{runs[0].path}, the first is {gone[0]}; {if_moved(runs[0].path)}; otherwise restore "
            "them, or provide others with `dataset=`"
        )
    return frame, f"{runs[0].card.data.name} ({SPLIT_NAMES['val']})"


def _trained_on_notes(artifacts: Sequence[Artifact], frame: "pd.DataFrame") -> Iterator[str]:
    """Warn of models that were trained on some of the images, or may have been.

    Yields:
        A sentence for all runs that were trained on the same data.
    """
    by_data: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        by_data.setdefault(artifact.card.data.fingerprint, []).append(artifact)
    for same in by_data.values():
        runs = list(dict.fromkeys(one.card.run for one in same))
        trained_on, problem = _training_images(same)
        if trained_on is None:
            yield (
                f"{problem}, so it is not known whether {listed(runs)} "
                f"{plural(len(runs), 'was', 'were')} trained on these images"
            )
        elif number := count_trained_on(frame, trained_on):
            yield (
                f"{listed(runs)} {plural(len(runs), 'was', 'were')} trained on {number:,} of these "
                f"{grouped(len(frame), 'image')}, so {plural(len(runs), 'its', 'their')} accuracy "
                "looks better than it is; leave out --data to use the validation images, or name "
                "images that are new to all models"
            )


def _training_images(same: Sequence[Artifact]) -> tuple[frozenset[str] | None, str]:
    """Return the training images of models of the same data, or None and why they are unknown."""
    problem = f"the run of {same[0].path} is not found"
    for one in same:
        try:
            found = training_images(one.path, one.card)
        except ArtifactError as error:
            problem = str(error)
        else:
            if found is not None:
                return found, ""
    return None, problem
