"""What a bench is asked for, and what comes of it for each measurement."""

from dataclasses import dataclass

from tltools.runtime import Device

BUDGET_S = 240.0
"""For a whole bench, so that both models with all their exports end within five minutes on two
cores. A target: slow models take longer, since each measurement has its fewest iterations."""
CPU_BATCH_SIZES = (1, 8, 32)
GPU_BATCH_SIZES = (1, 8, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is asked for; None leaves the choice to the bench."""

    device: Device = "auto"
    """Where every candidate runs."""
    threads: int | None = None
    """For all candidates alike; None: this process's cores."""
    batch_sizes: tuple[int, ...] | None = None
    """For throughput; single images, whose latency is measured, always join them. None: the usual
    ones, of which those are left out for slow models that cannot pay."""
    rounds: int = 3
    """Turns, in each of which every candidate is measured in a new process."""
    iterations: int = 50
    """Timed forward passes per round and batch size, at most."""
    warmup: int = 5
    """Untimed ones before them, at most."""
    budget_s: float = BUDGET_S
    """Target for the whole bench in seconds, shared out among all measurements."""
    max_seconds: float | None = None
    """Ends a measurement's timed passes early, though not before there are 10 of single images and
    one of batches; None: its share of the budget."""
    classify_seconds: float | None = None
    """For a measurement of the whole `classify`; None: its share of the budget."""
    timeout_s: float = 300.0
    """A process that stays silent for longer is ended, and its candidate has failed. It speaks
    before each batch size and after each batch of the accuracy's images."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is done with each candidate, as the result states it."""

    device: Device
    threads: int
    batch_sizes: tuple[int, ...]
    """Ascending, 1 included."""
    rounds: int
    iterations: int
    warmup: int
    max_seconds: float
    """For the timed passes of one batch size."""
    classify_seconds: float
    """For the whole of `classify`."""
    accuracy_s: float
    """For images of the accuracy that no timed batch has classified; once for each candidate."""
    num_images: int
    """For the accuracy."""
    budget_s: float
    """Target for the whole."""
    may_leave_out: bool
    """Whether the larger batch sizes of slow models are left out where they cannot pay."""
