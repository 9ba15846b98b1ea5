"""Write the files of a run folder, and open a run again."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from tltools import __version__
from tltools.atomic import atomic_path, check_writable, write_text
from tltools.card import FORBIDDEN, MAX_CARD_BYTES, Card, DataFacts
from tltools.data.dataset import Dataset
from tltools.data.images import image_sha256
from tltools.errors import ArtifactError, DataError, cause_of
from tltools.parallel import num_cores, ordered_map
from tltools.progress import SILENT, Progress
from tltools.regular import read_regular
from tltools.run_folder import (
    CARD,
    CHECKPOINT,
    PLAN,
    STATE,
    cannot_read,
    check_present,
    load_card,
    read_split,
    write_history,
    write_split,
)
from tltools.runtime.device import Device, DeviceChoice, allow_tf32, torch_device
from tltools.runtime.predictor import CardBatches
from tltools.training.config import TrainConfig
from tltools.training.fit import EpochStats
from tltools.training.models import Classifier, build_from_card
from tltools.training.weight_files import load_pickled, load_safetensors, tensors_of


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of a training, written first, so that the training can be resumed."""

    config: dict[str, Any]
    """`TrainConfig` as a dictionary."""
    data: DataFacts
    classes: tuple[str, ...]
    weights: str | None
    """Name of a download or absolute path, for a frozen backbone; None for others."""
    weights_sha256: str = ""
    """SHA-256 of these weights; empty in plans of earlier versions."""
    normalization: str
    logs: tuple[str, ...] = ()
    """Experiment logs to write: see `tltools.training.logs`."""

    def train_config(self) -> TrainConfig:
        """Return the settings.

        Raises:
            ArtifactError: If they are those of another version of tltools.
            ConfigError: If one has an invalid value.
        """
        try:
            return TrainConfig(**self.config)
        except (TypeError, AttributeError) as error:
            why = str(error).removeprefix("TrainConfig.__init__() ")
            raise ArtifactError(
                f"this version of tltools does not know the settings of the run's {PLAN} ({why}); "
                "resume it with the version that began it, or train a new run"
            ) from error


def new_run_folder(run_dir: Path, model: str) -> Path:
    """Create `run_dir`/`model`, or the first of `model`-2, `model`-3 … that does not exist.

    Raises:
        TltoolsError: If `run_dir` cannot be created.
    """
    check_writable(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    number = 1
    model = folder_name(model)
    while True:
        folder = run_dir / (model if number == 1 else f"{model}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def folder_name(model: str) -> str:
    """Return the name of a model's first run: `timm-NAME` for `timm:NAME`."""
    return "".join("-" if char in FORBIDDEN else char for char in model)


def write_plan(folder: Path, plan: RunPlan, dataset: Dataset) -> None:
    """Write the plan and the split, before the first epoch."""
    write_split(folder, dataset.frame)
    save_plan(folder, plan)


def save_plan(folder: Path, plan: RunPlan) -> None:
    """Write the plan."""
    write_text(folder / PLAN, msgspec.json.format(msgspec.json.encode(plan), indent=2).decode())


def read_plan(folder: Path) -> RunPlan:
    """Read a run's plan.

    Raises:
        ArtifactError: If the folder has no plan, or the plan is corrupt.
    """
    try:
        data = read_regular(folder / PLAN, max_bytes=MAX_CARD_BYTES)
        return msgspec.json.decode(data, type=RunPlan)
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ArtifactError(f"{folder} is not a resumable run: {cause_of(error)}") from error


def run_dataset(folder: Path, *, progress: Progress = SILENT) -> Dataset:
    """Return a run's data set, read from its own split.

    Raises:
        DataError: If an image is missing, or is no longer the one that the run was begun with:
            features in the cache are found by the bytes that the split names.
    """
    plan = read_plan(folder)
    frame = read_split(folder)
    check_present(frame["path"], "image", of=folder, remedy="train a new run")
    _check_unchanged(dict(zip(frame["path"], frame["sha256"], strict=True)), folder, progress)
    return Dataset(
        name=plan.data.name,
        frame=frame,
        classes=plan.classes,
        split_rule=plan.data.split,  # pyright: ignore[reportArgumentType]
        findings=(),
        fingerprint=plan.data.fingerprint,
    )


def _check_unchanged(hashes: Mapping[str, str], folder: Path, progress: Progress) -> None:
    """Check the bytes of a run's images, by path."""
    workers = num_cores()
    with progress.bar("Checking images", len(hashes)) as bar:
        found = ordered_map(image_sha256, list(hashes), workers=workers, ahead=16 * workers)
        for (path, known), now in zip(hashes.items(), found, strict=True):
            if now != known:
                raise DataError(
                    f"{path} has changed since run {folder.name} was begun; restore it, or train a "
                    "new run"
                )
            bar.advance()


def save_state(folder: Path, state: dict[str, Any], history: list[EpochStats]) -> None:
    """Save the state and the history, from which the run can be resumed."""
    with atomic_path(folder / STATE) as temporary:
        torch.save({**state, "history": [asdict(stats) for stats in history]}, temporary)
    write_history(folder, [asdict(stats) for stats in history])


def read_state(folder: Path) -> tuple[dict[str, Any], list[EpochStats]]:
    """Read the state and the history that `save_state` wrote.

    Raises:
        ArtifactError: If they cannot be read.
    """
    try:
        state = load_pickled(folder / STATE)
        return state, [EpochStats(**row) for row in state.pop("history")]
    except (OSError, ArtifactError, KeyError, TypeError, AttributeError) as error:
        raise cannot_read(folder / STATE, error) from error


def save_checkpoint(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write a model's weights, which are contiguous and on the CPU."""
    with atomic_path(folder / CHECKPOINT) as temporary:
        save_file(state, temporary)


def save_card(folder: Path, card: Card) -> None:
    """Write the card; a folder with a card and a checkpoint is a usable run."""
    write_text(folder / CARD, card.to_json())


def load_run(folder: Path) -> tuple[Classifier, Card]:
    """Open a run: its model in eval mode on the CPU, and its card.

    Raises:
        ArtifactError: If the folder is not a run, or its files do not match each other.
    """
    card = load_card(folder)
    try:
        state = tensors_of(load_safetensors(folder / CHECKPOINT))
    except (OSError, ArtifactError) as error:
        raise cannot_read(folder / CHECKPOINT, error) from error
    return build_from_card(card, state), card


@dataclass(kw_only=True)
class EagerPredictor(CardBatches):
    """A run's PyTorch model as a predictor, the reference for every export."""

    model: Classifier
    card: Card
    choice: DeviceChoice
    device: str
    threads: int
    provider: str = "torch"
    placement: dict[str, int] = field(default_factory=dict)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, uint8 (N, H, W, 3), to logits, float32 (N, C)."""
        with torch.inference_mode():
            return self.model(torch.from_numpy(images).to(self.choice.name)).float().cpu().numpy()


def open_run(
    folder: Path, *, device: Device = "auto", threads: int | None = None
) -> EagerPredictor:
    """Open a run as a predictor.

    Args:
        folder: The run.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        threads: Number of threads of torch's operators, process-wide; None keeps torch's default.

    Raises:
        ArtifactError: If the folder is not a run.
        DeviceError: If the device is not available.
    """
    choice = torch_device(device)
    allow_tf32(False)  # exports are compared with this model, in full fp32
    if threads:
        torch.set_num_threads(threads)
    model, card = load_run(folder)
    # The fastest memory layout for convolutions, on CPUs and GPUs.
    model = model.to(choice.name).to(memory_format=torch.channels_last)
    return EagerPredictor(
        model=model,
        card=card,
        choice=choice,
        device=choice.device,
        threads=torch.get_num_threads(),
    )


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that a run depends on."""
    names = ("torch", "torchvision", "pillow")
    ours = {"tltools": __version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in names}


def now() -> str:
    """Return the time for a card: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
