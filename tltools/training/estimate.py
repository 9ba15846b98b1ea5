"""Estimate how long fine-tuning takes on this machine."""

import copy
import time
from collections.abc import Callable

import torch

from tltools.card import Score
from tltools.progress import Progress
from tltools.training.augment import NUM_VIEWS
from tltools.training.config import TrainConfig, default_config
from tltools.training.fine_tuning import FineTuned
from tltools.training.fit import Step, mixed_precision
from tltools.training.prepare import Job

_IMAGES = 2
"""Images of a timed step; a larger batch takes less time per image. VGG16 needs a second for each
on a slow processor, and the estimate must not take longer than the training."""


def suggest_fine_tuning(
    job: Job, progress: Progress, *, score: Score | None = None, command: str = ""
) -> None:
    """Say how long fine-tuning the last block would take on the CPU, if a head was trained.

    Args:
        job: The training of the head.
        progress: Where to say it.
        score: Its accuracy on validation images; nothing is said if none is wrong.
        command: See `TrainSetup`.
    """
    backbone = job.config.backbone
    if job.config.fine_tune != "none" or "last-block" not in backbone.fine_tuning:
        return
    if score is not None and score.correct == score.total:
        return
    seconds = fine_tuning_seconds(job)
    takes = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    how = f"use `model={backbone.name}` and `fine_tune=last-block`"
    if command:
        how = f"{command} `model={backbone.name}` `fine_tune=last-block`"
    progress.say(
        f"Fine-tuning {backbone.title}'s last block is usually more accurate and takes at most "
        f"about {takes} on this CPU: {how}"
    )


def fine_tuning_seconds(job: Job) -> float:
    """Return an upper estimate of the time to fine-tune the last block on the CPU, in seconds.

    One forward pass of the frozen layers and one step of the others are timed. The frozen layers
    are timed in fp32, although training images go through an int8 copy of them, which is faster.
    """
    config = default_config(job.config.model, fine_tune="last-block")
    num_train = len(job.dataset.part("train"))
    num_others = len(job.dataset.frame) - num_train
    before, rest = config.backbone.split(job.model.backbone)
    images = torch.zeros(job.preprocessing.shape(_IMAGES), dtype=torch.uint8)
    with torch.no_grad():
        normalized = job.model.normalized(images)
        inputs = before(normalized)  # prepares torch's kernels
        frozen_s = _seconds(lambda: before(normalized)) / _IMAGES
        tuned_s = _seconds(lambda: rest(inputs)) / _IMAGES
    step_s = _step_seconds(job, config, inputs) / _IMAGES
    outputs = num_train * NUM_VIEWS[config.augment] + num_others
    return outputs * frozen_s + config.epochs * (num_train * step_s + num_others * tuned_s)


def _step_seconds(job: Job, config: TrainConfig, inputs: torch.Tensor) -> float:
    """Return the time of one optimizer step on copies of the layers."""
    _, rest = config.backbone.split(copy.deepcopy(job.model.backbone))
    model = FineTuned(
        rest,
        copy.deepcopy(job.model.head),
        frozen=lambda samples: samples,
        scaling=None,
        dropout=config.dropout,
    ).train()
    step = Step(
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.0),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        autocast=mixed_precision(config, torch.device("cpu")),
    )
    target = torch.zeros(len(inputs), dtype=torch.int64)
    step(model, inputs, target)  # prepares torch's kernels
    return _seconds(lambda: step(model, inputs, target))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
