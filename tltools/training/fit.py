"""The training loop: one epoch at a time; the caller prints, saves and stops."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tltools.errors import ConfigError, ModelError
from tltools.training.config import TrainConfig
from tltools.training.sources import Source

WARM_UP = 0.1
"""Fraction of the steps in which the learning rates of a cosine schedule rise."""
HOW_TO_CONVERGE = "use a lower learning rate (`lr=`), `clip_grad=1` or `precision=fp32`"
"""What helps against a loss that is not finite."""
REPORT_EVERY_S = 0.5
"""Shortest interval between reads of the loss within an epoch: each read blocks a GPU."""


class DivergedError(ModelError):
    """The loss of an epoch is not finite; the trainer can be rewound to the epoch before."""


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One kind of optimizer step, entirely on the inputs' device."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Scales the loss of fp16, whose gradients would underflow; disabled for other precisions."""
    autocast: torch.dtype | None = None
    """Precision of a forward pass in mixed precision; None for fp32."""
    class_weights: Tensor | None = None
    """Float32 (C,)."""
    label_smoothing: float = 0.0
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 does not clip it."""

    def __call__(self, model: nn.Module, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            model: Model in training mode.
            inputs: (N, …).
            target: Class indices, int64 (N,).

        Returns:
            The summed loss and the number of correct predictions, scalars on the device. They are
            not read here, because reading blocks a GPU.
        """
        with (
            torch.autocast(inputs.device.type, self.autocast)
            if self.autocast is not None
            else nullcontext()
        ):
            logits = model(inputs)  # (N, C)
            loss = F.cross_entropy(
                logits, target, weight=self.class_weights, label_smoothing=self.label_smoothing
            )
        self.scaler.scale(loss).backward()
        if self.clip_grad:
            self.scaler.unscale_(self.optimizer)
            parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # Gradients must not take memory while activations do, in the next forward pass.
        self.optimizer.zero_grad(set_to_none=True)
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
            model: Model on the device; parameters without gradient are not trained. Those of a
                child named `backbone` are pretrained and have their own learning rate, if the
                settings fine-tune them.
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
        self._epoch_end: Callable[[], dict[str, Any]] | None = None
        """Returns the state at the end of the last complete epoch; None where no step follows it
        yet, so that it is the present one."""
        self.optimizer = _optimizer(model, config, device)
        self._highest_rates = [group["lr"] for group in self.optimizer.param_groups]
        precision = mixed_precision(config, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.step = Step(
            optimizer=self.optimizer,
            scaler=self.scaler,
            autocast=precision,
            class_weights=_class_weights(train_targets, num_classes, device)
            if config.class_weights
            else None,
            label_smoothing=config.label_smoothing,
            clip_grad=config.clip_grad,
        )

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience has run out."""
        config = self.config
        impatient = config.patience and self.epoch - self.best_epoch >= config.patience
        return self.epoch >= config.epochs or bool(self.epoch and impatient)

    def batches_per_epoch(self) -> int:
        """Return the number of optimizer steps per epoch."""
        return -(-len(self.train) // self.config.batch_size)

    def run_epoch(self) -> Iterator[tuple[int, float]]:
        """Train one epoch, yielding (samples since the last yield, mean loss so far).

        It yields every `REPORT_EVERY_S` and after the last step; the steps in between do not wait
        for a GPU. Validation follows the last step; afterwards, read `stats`.

        Raises:
            DivergedError: If the training or the validation loss is not finite.
        """
        self._keep_epoch_end()
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
            batches = self.train.batches(order, generator)
            for number, (inputs, target) in enumerate(batches):
                self._set_learning_rates(number)
                loss, correct = self.step(self.model, inputs, target)
                loss_sum += loss
                num_correct += correct
                num_seen += len(target)
                late = time.perf_counter() - reported >= REPORT_EVERY_S
                if late or num_seen == len(order):
                    yield num_seen - num_reported, loss_sum.item() / num_seen
                    reported, num_reported = time.perf_counter(), num_seen
        logits, target = predict_source(self.model, self.val)
        stats = EpochStats(
            epoch=self.epoch + 1,
            train_loss=loss_sum.item() / num_seen,
            train_accuracy=num_correct.item() / num_seen,
            val_loss=F.cross_entropy(logits, target).item(),
            val_accuracy=(logits.argmax(dim=1) == target).float().mean().item(),
            seconds=time.perf_counter() - start,
        )
        for split, loss in (("training", stats.train_loss), ("validation", stats.val_loss)):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the training diverged: in epoch {stats.epoch}, the {split} loss is {loss}; "
                    f"{HOW_TO_CONVERGE}"
                )
        self._end_epoch(stats)

    def _end_epoch(self, stats: EpochStats) -> None:
        self.epoch, self.stats = stats.epoch, stats
        if self.stats.val_loss < self.best_val_loss:
            self.best_val_loss, self.best_epoch = self.stats.val_loss, self.epoch
            self.best_state = self._weights()
        self._epoch_end = None

    def _keep_epoch_end(self) -> None:
        """Copy the state before steps change it, unless it is saved; the first has none."""
        if self.epoch and self._epoch_end is None:
            state = self._state()
            changing = {key: one for key, one in state.items() if one is not self.best_state}
            kept = state | copy.deepcopy(changing)
            self._epoch_end = lambda: kept

    def _set_learning_rates(self, number: int) -> None:
        """Set the learning rates of this epoch's next step, counted from 0.

        They depend on nothing else, so a resumed training follows the same curve.
        """
        if self.config.schedule == "constant":
            return
        steps = self.batches_per_epoch()
        factor = warm_up_and_cosine(self.epoch * steps + number, self.config.epochs * steps)
        for group, highest in zip(self.optimizer.param_groups, self._highest_rates, strict=True):
            group["lr"] = highest * factor

    def chosen_state(self) -> dict[str, Tensor]:
        """Return the weights to keep, on the CPU: the best epoch's or the last epoch's."""
        return self.best_state if self.config.keep == "best" else self._weights()

    def _weights(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def rewind(self) -> None:
        """Return to the end of the last complete epoch, after an interrupt within a later one."""
        if self._epoch_end is not None:
            self.load_state_dict(self._epoch_end())

    def state_dict(self) -> dict[str, Any]:
        """Return the state at the end of the last complete epoch, which the next step changes.

        It holds everything that a resumed training needs besides its samples and settings.
        """
        return self._state() if self._epoch_end is None else self._epoch_end()

    def is_saved(self, read: Callable[[], dict[str, Any]]) -> None:
        """Keep no copy of the present state, since `read` returns it: it may take much memory."""
        self._epoch_end = read

    def _state(self) -> dict[str, Any]:
        # Not copies: each of the weights and of the moments of 1,000 classes takes 100 MB.
        is_best = self.best_epoch == self.epoch
        return {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_val_loss": self.best_val_loss,
            "best_state": self.best_state,
            "model": self.best_state if is_best else self.model.state_dict(),
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
        self._epoch_end = None


def mixed_precision(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Return the precision of the forward pass besides fp32: fp16, bf16, or None.

    Raises:
        ConfigError: If mixed precision is required, but the CPU does not compute in bf16.
    """
    if device.type != "cpu":
        return None if config.precision == "fp32" else torch.float16
    if config.precision == "amp" and not computes_in_bf16():
        raise ConfigError(
            "`precision=amp` needs a GPU or a CPU that computes in bf16; use `precision=fp32`"
        )
    wanted = config.precision == "amp" or (
        # The small CNN is bound by memory and gains nothing.
        config.precision == "auto" and config.fine_tune != "none" and computes_in_bf16()
    )
    return torch.bfloat16 if wanted else None


def computes_in_bf16() -> bool:
    """Return whether this CPU has instructions for bf16, which are twice as fast as fp32's."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _optimizer(
    model: nn.Module, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer of the trainable parameters.

    The article's is Adam; for a head, its L2 penalty worked better than AdamW (benchmarks/LOG.md).
    """
    trainable = {name: one for name, one in model.named_parameters() if one.requires_grad}
    groups = [{"params": list(trainable.values())}]
    if config.fine_tune != "none":
        tuned = [one for name, one in trainable.items() if name.startswith("backbone.")]
        new = [one for name, one in trainable.items() if not name.startswith("backbone.")]
        groups = [{"params": new}, {"params": tuned, "lr": config.backbone_lr}]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    # Fused on a GPU: with mixed precision, the others wait for the device at each step.
    return kind(
        groups,
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=device.type != "cpu" or None,
    )


def warm_up_and_cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rates: up linearly, then down to zero along a cosine.

    As in one-cycle schedules (Smith and Topin, arXiv:1708.07120), without their momentum cycle.
    """
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up)))) / 2


def _class_weights(targets: np.ndarray, num_classes: int, device: torch.device) -> Tensor:
    """Return scikit-learn's "balanced" weights, N / (C * count of the class), float32 (C,)."""
    counts = np.bincount(targets, minlength=num_classes)
    balanced = len(targets) / (num_classes * np.maximum(counts, 1))
    return torch.tensor(balanced, dtype=torch.float32, device=device)


def _for_this_device(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a saved optimizer state with the `fused` flags of `optimizer`."""
    groups = [
        {**group, "fused": ours["fused"]}
        for group, ours in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**saved, "param_groups": groups}
