"""Find runs and exports where the commands left them, and open either as a predictor."""

from dataclasses import dataclass, replace
from pathlib import Path

from tltools.card import Card, Precision
from tltools.errors import ArtifactError
from tltools.run_folder import CARD, load_card
from tltools.runtime.device import Device, allow_tf32, check_tf32
from tltools.runtime.exports import load_predictor, read_card
from tltools.runtime.formats import format_of, is_export_name, suffixes
from tltools.runtime.predictor import Predictor

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
            f"{path} does not exist: name a run (runs/NAME) or an export ({suffixes()})"
        )


def is_artifact(path: Path) -> bool:
    """Tell whether a path is a run folder or an export by its name, and not labeled images."""
    return (path / CARD).is_file() or is_export_name(path)


def find_runs(run_dir: Path = RUN_DIR) -> list[Artifact]:
    """Return the newest usable run of each model, by model name.

    Raises:
        ArtifactError: If there is none.
    """
    newest: dict[str, Artifact] = {}
    folders = sorted(path.parent for path in run_dir.glob(f"*/{CARD}"))
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
    paths = sorted(path for path in export_dir.glob("*/*") if is_export_name(path))
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

    Formats that need PyTorch are left out: `classify` starts much sooner without it.
    Which of its precisions is the fastest depends on the machine: `tltools bench` measures it.

    Raises:
        ArtifactError: If there is no ONNX export.
    """
    found = [
        one
        for one in find_exports(export_dir)
        if not format_of(one.path).needs_torch and "val" in one.card.metrics
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
