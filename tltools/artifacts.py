"""Find runs and exports where the commands left them, and open either as a predictor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from tltools.card import Card, Precision
from tltools.errors import ArtifactError, DataError
from tltools.run_folder import CARD, load_card, read_split
from tltools.runtime.device import Device, allow_tf32, check_tf32
from tltools.runtime.predictor import PREDICTORS, Predictor, load_predictor, read_card
from tltools.runtime.selftest import lacks_self_test

if TYPE_CHECKING:
    from tltools.bench import Candidate
    from tltools.data.dataset import Dataset

RUN_DIR = Path("runs")
EXPORT_DIR = Path("exports")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""The most exact first."""


@dataclass(frozen=True)
class Artifact:
    """A run or an export, known by its card alone."""

    path: Path
    card: Card

    @property
    def is_run(self) -> bool:
        """Whether this is a run folder (PyTorch) and not an export."""
        return self.card.export is None

    @property
    def label(self) -> str:
        """What tables call it: `RUN eager fp32`, `RUN onnx fp32` …."""
        facts = self.card.export
        return f"{self.card.run} " + (
            f"{facts.format} {facts.precision}" if facts else "eager fp32"
        )


def read_artifact(path: Path) -> Artifact:
    """Read the card of a run folder or an export.

    Raises:
        ArtifactError: If it is neither.
    """
    _check_exists(path)
    if path.is_dir():
        return Artifact(path, load_card(path))
    return Artifact(path, read_card(path))


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise ArtifactError(
            f"{path} does not exist: name a run (runs/NAME) or an export (.onnx, .pt)"
        )


def is_artifact(path: Path) -> bool:
    """Tell whether a path is a run folder or an export by its name, and not labelled pictures."""
    return (path / "card.json").is_file() or path.suffix.lower() in PREDICTORS


def find_runs(run_dir: Path = RUN_DIR) -> list[Artifact]:
    """Return the newest usable run of each model, by model name.

    Raises:
        ArtifactError: If there is none.
    """
    newest: dict[str, Artifact] = {}
    folders = sorted(path.parent for path in run_dir.glob("*/card.json"))
    for artifact in sorted(map(read_artifact, folders), key=lambda one: one.card.created):
        newest[artifact.card.model] = artifact
    if not newest:
        raise ArtifactError(f"no runs in {run_dir}/: make one with tltools train, or name one")
    return [newest[model] for model in sorted(newest)]


def find_exports(export_dir: Path = EXPORT_DIR) -> list[Artifact]:
    """Return the exports in a folder: of each model those of its newest run.

    Raises:
        ArtifactError: If there is none.
    """
    paths = sorted(path for path in export_dir.glob("*/*") if path.suffix in PREDICTORS)
    artifacts = [read_artifact(path) for path in paths if not path.name.startswith(".")]
    newest: dict[str, Card] = {}
    for artifact in sorted(artifacts, key=lambda one: one.card.created):
        newest[artifact.card.model] = artifact.card
    if not newest:
        raise ArtifactError(
            f"no exports in {export_dir}/: make them with tltools export --format onnx, or name one"
        )
    return [one for one in artifacts if newest[one.card.model].run == one.card.run]


def best_export(export_dir: Path = EXPORT_DIR) -> Artifact:
    """Return the ONNX export with the highest validation accuracy, of these the most exact one.

    Which of its precisions is the fastest depends on the machine: `tltools bench` measures it.

    Raises:
        ArtifactError: If there is no ONNX export.
    """
    found = [
        one
        for one in find_exports(export_dir)
        if one.path.suffix == ".onnx" and "val" in one.card.metrics
    ]
    if not found:
        raise ArtifactError(
            f"no ONNX export with a validation accuracy in {export_dir}/: make one with tltools "
            "export --format onnx, or name an export with --model"
        )
    return max(found, key=_quality)


def _quality(export: Artifact) -> tuple[float, int]:
    """Return what orders exports: their run's validation accuracy, then their precision."""
    assert export.card.export is not None
    return export.card.metrics["val"].accuracy, -PRECISIONS.index(export.card.export.precision)


@dataclass(frozen=True)
class BenchInputs:
    """What a bench measures, and on what."""

    candidates: "list[Candidate]"
    pictures: list[Path]
    targets: NDArray[np.int64]
    """Class index of each picture, (N,)."""
    name: str
    """What the pictures are, for people."""
    notes: tuple[str, ...]
    """What there is to say of the models beforehand."""


def bench_inputs(
    models: Sequence[Path] | None,
    dataset: "Dataset | None",
    *,
    tf32: bool = False,
    run_dir: Path = RUN_DIR,
    export_dir: Path = EXPORT_DIR,
) -> BenchInputs:
    """Collect what `bench` measures.

    Args:
        models: Runs and exports; None for the exports in `export_dir`. The run that an export came
            from joins them if it is still in `run_dir`, since the others are compared with it.
        dataset: Labelled pictures; None for the runs' own validation pictures.
        tf32: Whether fp32 exports are measured a second time in TF32, which GPUs alone have.
        run_dir: Where runs are.
        export_dir: Where exports are.

    Raises:
        ArtifactError: If there is nothing to measure, or a model is damaged.
        DataError: If the models cannot be told apart or do not go together, or the validation
            pictures of their runs are not the same, or have gone.
    """
    from tltools.bench import Candidate

    artifacts = [read_artifact(path) for path in models] if models else find_exports(export_dir)
    artifacts = _with_runs(artifacts, run_dir)
    _check_labels(artifacts)
    classes = artifacts[0].card.classes
    for artifact in artifacts:
        if artifact.card.classes != classes:
            raise DataError(
                f"{artifact.path} has other classes than {artifacts[0].path}: measure them one "
                "after the other"
            )
    frame, name = _bench_pictures(artifacts, dataset)
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(frame["class"]) - set(index))
    if unknown:
        raise DataError(
            f"the models do not know class {', '.join(unknown)}, they know {', '.join(classes)}: "
            "--class-names gives the data's classes other names"
        )
    flops = _flops_by_run(artifacts)
    candidates: list[Candidate] = []
    for artifact in artifacts:
        facts = artifact.card.export
        candidate = Candidate(
            name=artifact.label,
            run=artifact.card.run,
            format=facts.format if facts else "eager",
            precision=facts.precision if facts else "fp32",
            path=artifact.path,
            # Exports of small models are folded, so a run itself computes less.
            flops_per_image=flops.get(artifact.card.run) if facts else None,
        )
        candidates.append(candidate)
        if tf32 and facts and facts.precision == "fp32":
            name = f"{artifact.card.run} {facts.format} tf32"
            candidates.append(replace(candidate, name=name, precision="tf32"))
    # In random order, so that any first part of them is a fair sample: where a model is slow, the
    # accuracy may be that of a part.
    frame = frame.sample(frac=1, random_state=0)
    targets = np.array([index[one] for one in frame["class"]], dtype=np.int64)
    notes = tuple(filter(None, (lacks_self_test(artifact.card) for artifact in artifacts)))
    return BenchInputs(candidates, [Path(path) for path in frame["path"]], targets, name, notes)


def _flops_by_run(artifacts: Sequence[Artifact]) -> dict[str, int]:
    """Count the operations for one image, by one ONNX export of each run that has any."""
    from tltools.bench import onnx_flops

    found: dict[str, int] = {}
    for artifact in artifacts:
        if artifact.path.suffix == ".onnx" and artifact.card.run not in found:
            flops = onnx_flops(artifact.path)
            if flops is not None:
                found[artifact.card.run] = flops
    return found


def _with_runs(artifacts: list[Artifact], run_dir: Path) -> list[Artifact]:
    """Return the artifacts by run, each run's own folder first where it can be found."""
    found: dict[Path, Artifact] = {}
    for artifact in sorted(artifacts, key=lambda one: one.card.run):
        folder = run_dir / artifact.card.run
        if not artifact.is_run and (folder / "card.json").is_file():
            run = read_artifact(folder)
            if _came_from(artifact.card, run.card):
                found.setdefault(folder.resolve(), run)
        found.setdefault(artifact.path.resolve(), artifact)
    return list(found.values())


def _came_from(export: Card, run: Card) -> bool:
    """Tell whether an export was made of a run; one without calibration got it then."""
    changes = {"confidence": None} if run.confidence is None else {}
    return run == msgspec.structs.replace(export, export=None, **changes)


def _check_labels(artifacts: Sequence[Artifact]) -> None:
    known: dict[str, Path] = {}
    for artifact in artifacts:
        other = known.setdefault(artifact.label, artifact.path)
        if other != artifact.path:
            raise DataError(
                f"{other} and {artifact.path} are both called {artifact.label!r}: measure them one "
                "after the other"
            )


def _bench_pictures(artifacts: list[Artifact], dataset: "Dataset | None"):
    """Return a frame with path and class, and its name."""
    if dataset is not None:
        return dataset.frame, dataset.name
    runs = [artifact for artifact in artifacts if artifact.is_run]
    fingerprints = {artifact.card.data.fingerprint for artifact in artifacts}
    if not runs:
        raise DataError(
            "the runs of these exports are not in runs/, so there are no pictures to measure on: "
            "give labelled ones with --data"
        )
    if len(fingerprints) > 1:
        raise DataError(
            "these models were trained on different data: give labelled pictures for all of them "
            "with --data"
        )
    frame = read_split(runs[0].path)
    frame = frame[frame["split"] == "val"]
    gone = [path for path in frame["path"] if not Path(path).is_file()]
    if gone:
        raise DataError(
            f"{len(gone)} validation pictures of {runs[0].path} have gone, the first is {gone[0]}: "
            "put them back, or give others with --data"
        )
    return frame, f"{runs[0].card.data.name} (validation)"


def open_predictor(
    path: Path, device: Device = "auto", threads: int | None = None, *, tf32: bool = False
) -> Predictor:
    """Open a run or an export.

    Args:
        path: A run folder, or an export's file.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        threads: Cores for one forward pass on the CPU; None for all of this process's.
        tf32: Let CUDA round fp32 products to TF32: faster, about 1e-3 off in the logits.

    Raises:
        ArtifactError: If it is neither, or is damaged.
        DeviceError: If the device is not usable here, or does not know TF32 that was asked for.
    """
    _check_exists(path)
    if not path.is_dir():
        return load_predictor(path, device=device, threads=threads, tf32=tf32)
    from tltools.training.run import open_run

    predictor = open_run(path, device=device, threads=threads)
    if tf32:
        check_tf32(predictor.choice)
        allow_tf32(True)
        predictor.choice = replace(predictor.choice, reason=f"{predictor.choice.reason}, TF32")
    return predictor


def model_files(path: Path) -> list[Path]:
    """Return the files that a run or an export is opened from.

    Raises:
        ArtifactError: If it is not there.
    """
    _check_exists(path)
    if path.is_dir():
        from tltools.training.run import CHECKPOINT

        return [path / CARD, path / CHECKPOINT]
    return [path]
