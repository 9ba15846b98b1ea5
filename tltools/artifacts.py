"""Find runs and exports in their default folders, and open either as a predictor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path

from tltools.card import Card, Precision
from tltools.data.folders import RUN_DIR
from tltools.data.suffixes import is_image_name
from tltools.errors import ArtifactError, ConfigError
from tltools.progress import SILENT, Progress
from tltools.run_folder import (
    CARD,
    how_to_finish,
    is_begun,
    is_locked,
    load_card,
    missing_run,
    read_split,
    resumable_runs,
    visible,
)
from tltools.runtime.device import Device, allow_tf32, check_tf32
from tltools.runtime.exports import load_predictor, read_card
from tltools.runtime.model_formats import (
    EXPORT_DIR,
    format_of,
    is_export_name,
    refuse_folder_of_exports,
    similar_exports,
    suffixes,
)
from tltools.runtime.predictor import Predictor
from tltools.wording import listed, plural, similar_paths

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""Precisions, the most accurate first."""


@dataclass(frozen=True)
class Artifact:
    """A run or an export, described by its card."""

    path: Path
    card: Card

    @property
    def is_run(self) -> bool:
        """Whether this is a run folder (PyTorch) rather than an export."""
        return self.card.export is None

    @property
    def label(self) -> str:
        """Name in tables: `RUN eager fp32`, `RUN onnx fp32` …."""
        return f"{self.card.run} eager fp32" if self.is_run else self.card.name

    @property
    def kind(self) -> tuple[str, str, frozenset[str]]:
        """What a newer run replaces: one of the same network, fine-tuning and classes."""
        tuned = str(self.card.training.get("fine_tune", "none"))
        return self.card.model, tuned, frozenset(self.card.classes)

    @property
    def place(self) -> tuple[Path, str]:
        """What a later training of the same run replaces: its exports in the same folder."""
        return self.path.parent, self.card.run


def read_artifact(path: Path) -> Artifact:
    """Read the card of a run folder or an export.

    Raises:
        ArtifactError: If it is neither.
    """
    _check_exists(path)
    if path.is_dir():
        if not (path / CARD).exists():
            refuse_folder_of_exports(path)
        return Artifact(path, load_card(path))
    return Artifact(path, read_card(path))


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    similar = similar_exports(path) or similar_paths(path, RUN_DIR)
    if not similar and not is_export_name(path) and (none := missing_run(path)):
        raise ArtifactError(f"{none}, or name an export ({suffixes()})")
    raise ArtifactError(
        f"{path} does not exist{similar}: choose a run (runs/NAME) or an export ({suffixes()})"
    )


def is_artifact(path: Path) -> bool:
    """Return whether a path is a run folder or has the name of an export."""
    return (path / CARD).is_file() or is_export_name(path)


def find_runs(
    run_dir: Path = RUN_DIR,
    *,
    key: Callable[[Artifact], object] = attrgetter("kind"),
    progress: Progress = SILENT,
) -> list[Artifact]:
    """Return the newest usable run of each kind, by model name.

    Args:
        run_dir: Parent of the run folders.
        key: What a run is the newest of.
        progress: Told which runs are left out because they are damaged.

    Raises:
        ArtifactError: If there is none.
    """
    found: list[Artifact] = []
    damaged: dict[Path, str] = {}
    for folder in sorted(path.parent for path in visible(run_dir.glob(f"*/{CARD}"))):
        try:
            found.append(read_artifact(folder))
        except ArtifactError as error:
            damaged[folder] = str(error)
    if not found:
        raise ArtifactError(_no_runs(run_dir, damaged))
    for folder, reason in damaged.items():
        progress.warn(f"{folder} is left out: {reason}")
    newest = {key(one): one for one in sorted(found, key=lambda one: one.card.created)}
    return sorted(newest.values(), key=lambda one: (one.card.model, one.path))


def usable_runs(run_dir: Path = RUN_DIR) -> Iterator[Artifact]:
    """Yield the runs in a folder by name, without damaged and unfinished ones."""
    for card in sorted(visible(run_dir.glob(f"*/{CARD}"))):
        with suppress(ArtifactError):
            yield read_artifact(card.parent)


def _no_runs(run_dir: Path, damaged: dict[Path, str]) -> str:
    """Return the message that no run is usable; it names those that are not, and why."""
    if begun := [one for one in resumable_runs(run_dir) if is_begun(one)]:
        first = min(begun, key=is_locked)  # the newest that no other process trains
        return f"no finished run in {run_dir}/: {first} is unfinished; {how_to_finish(first)}"
    if damaged:
        return (
            f"no usable run in {run_dir}/: {'; '.join(damaged.values())}; train a new one with "
            "tltools train, or give a run's path"
        )
    return f"no runs in {run_dir}/: train one with tltools train, or give a run's path"


def current_and_earlier_exports(
    export_dir: Path = EXPORT_DIR, *, key: Callable[[Artifact], object] = attrgetter("kind")
) -> tuple[list[Artifact], list[Artifact]]:
    """Return the exports of the newest training of each kind, and those of earlier ones.

    A run that is resumed, or trained anew under its name, leaves the exports of before in place
    until they are made again. They are of another model, though they have its name.

    Args:
        export_dir: Folder of exports.
        key: What a training is the newest of. With `Artifact.place` each run counts, and only
            exports of an earlier training of the same run are left out.

    Returns:
        The exports of the newest training that has any, and those of earlier ones.

    Raises:
        ArtifactError: If there is none.
    """
    paths = sorted(path for path in export_dir.glob("*/*") if is_export_name(path))
    artifacts = [read_artifact(path) for path in paths if not path.name.startswith(".")]
    if not artifacts:
        raise ArtifactError(
            f"no exports in {export_dir}/: create some with tltools export, or give an export's "
            "path"
        )
    newest = {key(one): one.card for one in sorted(artifacts, key=lambda one: one.card.created)}

    def is_current(one: Artifact) -> bool:
        card = newest[key(one)]
        return (card.run, card.created) == (one.card.run, one.card.created)

    current = [one for one in artifacts if is_current(one)]
    return current, [one for one in artifacts if one not in current]


def earlier_notes(current: Sequence[Artifact], earlier: Sequence[Artifact]) -> list[str]:
    """Say which exports are left out, and why; nothing if there is none.

    Args:
        current: Exports that are used, as of `current_and_earlier_exports`.
        earlier: Exports that are not.
    """
    runs = {one.card.run for one in current}
    same = [one for one in earlier if one.card.run in runs]
    older = [one for one in earlier if one.card.run not in runs]
    notes: list[str] = []
    if same:
        names = listed(list(dict.fromkeys(one.card.run for one in same)))
        notes.append(
            f"exports left out, since an earlier training of {names} made "
            f"{plural(len(same), 'it', 'them')}: {_paths(same)}"
        )
    if older:
        notes.append(
            "exports left out, since there are those of a newer run of the same model: "
            f"{_paths(older)}; name {plural(len(older), 'it', 'them')} to include "
            f"{plural(len(older), 'it', 'them')}"
        )
    return notes


def _paths(artifacts: Sequence[Artifact]) -> str:
    return listed([str(one.path) for one in artifacts])


def exports_in(folder: Path) -> list[Artifact]:
    """Return the exports in a folder and its subfolders, by path; none if it holds images.

    Raises:
        ArtifactError: If one is damaged.
    """
    found: list[Path] = []
    for one in chain(folder.glob("*"), folder.glob("*/*")):
        if is_image_name(one.name):  # one of perhaps a million: look no further
            return []
        # A run's training state has an export's suffix, too.
        if is_export_name(one) and one.name[0] != "." and not (one.parent / CARD).exists():
            found.append(one)
    return [read_artifact(one) for one in sorted(found)]


def best_export(
    export_dir: Path = EXPORT_DIR, exports: Sequence[Artifact] | None = None
) -> Artifact:
    """Return the ONNX export with the highest validation accuracy.

    Ties go to higher precision, then to the newer run. Accuracies are compared by the lower ends
    of their intervals: 2 of 2 images say less than 11 of 12. Formats that need PyTorch are
    skipped, because `classify` starts much sooner without it.
    The fastest precision depends on the machine: `tltools bench` measures it.

    Args:
        export_dir: Folder of exports.
        exports: Those to choose from; None for all there but those of earlier trainings.

    Raises:
        ArtifactError: If there is no ONNX export.
        ConfigError: If the exports are of models with different classes.
    """
    if exports is None:
        exports = current_and_earlier_exports(export_dir, key=attrgetter("place"))[0]
    best = best_of(exports)
    if best is None:
        raise ArtifactError(
            f"no ONNX export with a validation accuracy in {export_dir}/: create one with tltools "
            "export, or choose an export with `model=`"
        )
    by_classes: dict[frozenset[str], list[Artifact]] = {}
    for one in exports:
        by_classes.setdefault(one.kind[-1], []).append(one)
    if len(by_classes) > 1:
        bests = filter(None, map(best_of, by_classes.values()))
        kinds = [f"{one.path} tells {listed(one.card.classes)}" for one in bests]
        if len(kinds) > 1:
            raise ConfigError(
                f"the exports in {export_dir}/ have different classes ({'; '.join(kinds)}); choose "
                "one with `model=`, or delete those that you no longer need"
            )
    return best


def best_of(exports: Sequence[Artifact]) -> Artifact | None:
    """Return the export that `best_export` would choose from these; None if there is no such."""
    found = [
        one for one in exports if not format_of(one.path).needs_torch and "val" in one.card.metrics
    ]
    return max(found, key=_quality, default=None)


def _quality(export: Artifact) -> tuple[float, int, str]:
    """Return the sort key of an export: its run's validation accuracy, its precision, its date."""
    assert export.card.export is not None
    precision = PRECISIONS.index(export.card.export.precision)
    return export.card.metrics["val"].low, -precision, export.card.created


def training_images(path: Path, card: Card) -> frozenset[str] | None:
    """Return the images that a model was trained on: SHA-256 of their bytes, hexadecimal.

    An export does not hold them, so they are those of its run: see `run_of`.

    Args:
        path: A run folder, or an export's file.
        card: Its card.

    Returns:
        The hashes; None if the run of an export is not found.

    Raises:
        ArtifactError: If the run's images cannot be read.
    """
    run = run_of(path, card)
    return None if run is None else images_of(run, "train")


def run_of(path: Path, card: Card) -> Path | None:
    """Return the folder of the run that a model is of, or None if it is not found.

    An export's run is looked for in `runs/`, here and beside its folder.

    Args:
        path: A run folder, or an export's file.
        card: Its card.
    """
    if path.is_dir():
        return path
    beside = [folder / RUN_DIR for folder in path.absolute().parents[2:3]]
    for folder in (RUN_DIR / card.run, *(runs / card.run for runs in beside)):
        try:
            run = load_card(folder)
        except ArtifactError:
            continue
        if run.data.fingerprint == card.data.fingerprint:
            return folder
    return None


def newer_training(export: Artifact, run: Path | None = None) -> str:
    """Say that the run of an export's name is of another training than the export, if it is.

    Args:
        export: An export.
        run: The run; None for the one of the export's name in `runs/`.

    Returns:
        The end of a sentence about the export; empty if there is nothing to say.
    """
    run = RUN_DIR / export.card.run if run is None else run
    try:
        card = load_card(run)
    except ArtifactError:
        return ""
    if card.created == export.card.created:
        return ""
    how = "" if card.owner == export.card.owner else "delete it and "
    return f"is not of {run} as it is now: {how}run tltools export {run}"


def images_of(run: Path, split: str) -> frozenset[str]:
    """Return the images of one split of a run: SHA-256 of their bytes, hexadecimal.

    Raises:
        ArtifactError: If they cannot be read.
    """
    frame = read_split(run)
    return frozenset(frame.loc[frame["split"] == split, "sha256"])


def open_predictor(
    path: Path, device: Device = "auto", threads: int | None = None, *, tf32: bool = False
) -> Predictor:
    """Open a run or an export.

    Args:
        path: A run folder, or an export's file.
        device: One of `TorchKind`, or a GPU such as `cuda:1`.
        threads: Cores for one forward pass on the CPU; None uses all cores of this process.
        tf32: Let CUDA round fp32 products to TF32: faster, with errors of about 1e-3 in the logits.

    Raises:
        ArtifactError: If it is neither, or is corrupt.
        DeviceError: If the device is not available, or TF32 is requested but not supported.
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
    """Return the files needed to open a run or an export.

    Raises:
        ArtifactError: If the path does not exist.
    """
    _check_exists(path)
    if path.is_dir():
        from tltools.training.run import CHECKPOINT

        return [path / CARD, path / CHECKPOINT]
    return [path]
