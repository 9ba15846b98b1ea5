"""Settings of a bench (rounds, passes, warm-up), and the resulting effort for each measurement."""

from dataclasses import dataclass

from tltools.runtime import Device

BUDGET_S = 240.0
"""Target seconds for a whole bench, so that both models with all exports take under five minutes
on two cores. Slow models take longer, since each measurement has a minimum number of iterations."""
ROUNDS = 3
CPU_BATCH_SIZES = (1, 8, 32)
GPU_BATCH_SIZES = (1, 8, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Requested settings; None leaves the choice to the bench."""

    device: Device = "auto"
    """Device for all candidates."""
    threads: int | None = None
    """CPU threads for all candidates; None: the cores available to this process."""
    batch_sizes: tuple[int, ...] | None = None
    """Batch sizes for throughput; size 1, for latency, is always added. None: the default sizes,
    without those that gain nothing for slow models."""
    rounds: int | None = None
    """Rounds, in each of which every candidate is measured in a new process; None: `ROUNDS`, or as
    many as fit into `budget_s` if it is given, at least one."""
    iterations: int = 50
    """Maximum number of timed forward passes per round and batch size."""
    warmup: int = 5
    """Maximum number of warm-up passes before them."""
    budget_s: float | None = None
    """Target for the whole bench in seconds, divided among all measurements; None: `BUDGET_S`."""
    max_seconds: float | None = None
    """Time limit for a measurement's timed passes, though at least 10 with single images and one
    with batches are run; None: its share of the budget."""
    classify_seconds: float | None = None
    """Seconds for measuring the whole of `classify`; None: its share of the budget."""
    timeout_s: float = 300.0
    """A process without a sign of life for this long is killed, and its candidate fails. A process
    reports before each batch size and after each batch of images for the accuracy."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How each candidate is measured, as recorded in the result."""

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
    """For images that no timed batch has classified, once per candidate."""
    num_images: int
    """Number of images for the accuracy."""
    budget_s: float
    """Target for the whole bench."""
    may_leave_out: bool
    """Whether larger batch sizes of slow models are skipped if they gain nothing."""
