"""The training loop: one epoch at a time; the caller prints, saves and stops."""

import copy
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tltools.training.config import TrainConfig
from tltools.training.sources import Source

REPORT_EVERY_S = 0.5
"""Shortest interval between reads of the loss within an epoch: each read blocks a GPU."""


@dataclass(frozen=True, kw_only=True)
class EpochStats:
    """One row of the history."""

    epoch: int
    """Counts from 1."""
    train_loss: float
    """Mean cross-entropy over the training samples, measured during training."""
    train_accuracy: float
    """Measured during training (before each step), in [0, 1]."""
    val_loss: float
    """Mean cross-entropy over the validation samples, in eval mode."""
    val_accuracy: float
    """In eval mode, in [0, 1]."""
    seconds: float


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    inputs: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Take one optimizer step, entirely on the inputs' device.

    Args:
        model: Model in training mode.
        optimizer: Optimizer of the model's trainable parameters.
        scaler: If enabled, the step uses mixed precision (fp16, as in torch's AMP recipe).
        inputs: (N, …).
        target: Class indices, int64 (N,).
        class_weights: Float32 (C,), or None.

    Returns:
        The summed loss and the number of correct predictions, scalars on the device. They are not
        read here, because reading blocks a GPU.
    """
    amp = scaler.is_enabled()
    with torch.autocast(inputs.device.type, torch.float16) if amp else nullcontext():
        logits = model(inputs)  # (N, C)
        loss = F.cross_entropy(logits, target, weight=class_weights)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    # A sum, so that a short last batch gets its proper weight.
    return loss.detach() * len(target), (logits.detach().argmax(dim=1) == target).sum()


@torch.inference_mode()
def predict_source(model: nn.Module, source: Source) -> tuple[Tensor, Tensor]:
    """Run a model in eval mode over a source, in order, on the source's device.

    Returns:
        Logits, float32 (N, C), and targets, int64 (N,), on the CPU.
    """
    model.eval()
    logits = [model(inputs) for inputs, _ in source.batches(torch.arange(len(source)))]
    return torch.cat(logits).float().cpu(), source.targets


class Trainer:
    """Train one model, epoch by epoch; the state can be saved and loaded between epochs.

    The order of the samples and the augmentation depend only on the seed and the epoch, so a
    resumed training ends with the same weights as one that never stopped.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        train: Source,
        val: Source,
        *,
        device: torch.device,
        num_classes: int,
        train_targets: np.ndarray,
    ) -> None:
        """Create the optimizer.

        Args:
            model: Model on the device; parameters without gradient are not trained.
            config: Settings.
            train: Training samples.
            val: Validation samples.
            device: Device that the steps run on.
            num_classes: C.
            train_targets: Class indices of the training samples, for class weights.
        """
        self.model, self.config, self.train, self.val = model, config, train, val
        self.device = device
        self.epoch = 0
        self.best_epoch = 0
        self.best_val_loss = float("inf")
        self.best_state: dict[str, Tensor] = {}
        self._epoch_end: dict[str, Any] = {}
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # The article's optimizer. Its L2 penalty worked better than AdamW's (benchmarks/LOG.md).
        # Fused on a GPU: with mixed precision, the others wait for the device at each step.
        self.optimizer = torch.optim.Adam(
            trainable,
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=device.type != "cpu" or None,
        )
        amp = config.precision == "amp" or (config.precision == "auto" and device.type != "cpu")
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp)
        self.class_weights: Tensor | None = None
        if config.class_weights:
            counts = np.bincount(train_targets, minlength=num_classes)
            # scikit-learn's "balanced" rule: N / (C * count of the class).
            balanced = len(train_targets) / (num_classes * np.maximum(counts, 1))
            self.class_weights = torch.tensor(balanced, dtype=torch.float32, device=device)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience has run out."""
        config = self.config
        impatient = config.patience and self.epoch - self.best_epoch >= config.patience
        return self.epoch >= config.epochs or bool(self.epoch and impatient)

    def batches_per_epoch(self) -> int:
        """Return the number of optimizer steps per epoch."""
        return max(1, round(len(self.train) / self.config.batch_size))

    def run_epoch(self) -> Iterator[tuple[int, float]]:
        """Train one epoch, yielding (samples since the last yield, mean loss so far).

        It yields every `REPORT_EVERY_S` and after the last step; the steps in between do not wait
        for a GPU. Validation follows the last step; afterwards, read `stats`.
        """
        config = self.config
        start = reported = time.perf_counter()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.train), generator=generator)
        self.model.train()
        loss_sum = torch.zeros((), device=self.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=self.device)
        num_seen = num_reported = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed * 1_000_003 + self.epoch)
            augment = generator if config.augment else None
            for inputs, target in self.train.batches(order, augment=augment):
                loss, correct = train_step(
                    self.model, self.optimizer, self.scaler, inputs, target, self.class_weights
                )
                loss_sum += loss
                num_correct += correct
                num_seen += len(target)
                late = time.perf_counter() - reported >= REPORT_EVERY_S
                if late or num_seen == len(order):
                    yield num_seen - num_reported, loss_sum.item() / num_seen
                    reported, num_reported = time.perf_counter(), num_seen
        logits, target = predict_source(self.model, self.val)
        self.epoch += 1
        self.stats = EpochStats(
            epoch=self.epoch,
            train_loss=loss_sum.item() / num_seen,
            train_accuracy=num_correct.item() / num_seen,
            val_loss=F.cross_entropy(logits, target).item(),
            val_accuracy=(logits.argmax(dim=1) == target).float().mean().item(),
            seconds=time.perf_counter() - start,
        )
        if self.stats.val_loss < self.best_val_loss:
            self.best_val_loss, self.best_epoch = self.stats.val_loss, self.epoch
            self.best_state = self._weights()
        self._epoch_end = copy.deepcopy(self._state())

    def chosen_state(self) -> dict[str, Tensor]:
        """Return the weights to keep, on the CPU: the best epoch's or the last epoch's."""
        # If no validation loss was finite, there is no best epoch.
        use_best = self.config.keep == "best" and self.best_state
        return self.best_state if use_best else self._weights()

    def _weights(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def rewind(self) -> None:
        """Return to the end of the last complete epoch, after an interrupt within an epoch."""
        self.load_state_dict(self._epoch_end)

    def state_dict(self) -> dict[str, Any]:
        """Return the state at the end of the last complete epoch.

        It holds everything that a resumed training needs besides its samples and settings.
        """
        return self._epoch_end

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_val_loss": self.best_val_loss,
            "best_state": self.best_state,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(_for_this_device(state["optimizer"], self.optimizer))
        if state["scaler"]:  # empty if the saved epochs were in fp32, for instance on the CPU
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_val_loss, self.best_state = state["best_val_loss"], state["best_state"]
        self._epoch_end = copy.deepcopy(state)


def _for_this_device(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a saved optimizer state with the `fused` flags of `optimizer`."""
    groups = [
        {**group, "fused": ours["fused"]}
        for group, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**saved, "param_groups": groups}
