"""The measurements of a bench for each candidate, and the conclusions from them."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tltools.bench.timing import Latency
from tltools.card import Score
from tltools.classify import Plan

EAGER = "eager"
"""The format of a run itself: PyTorch, as trained."""
BenchPrecision = Literal["fp32", "tf32", "fp16", "int8"]
"""`tf32` is an fp32 model whose products are rounded to TF32 on a GPU."""
Status = Literal["ok", "unstable", "failed"]
Stage: TypeAlias = Literal["reading", "decoding", "inference", "writing"]
"""Stages of `classify`: file to bytes, bytes to pixels, pixels to logits, predictions to rows."""
HAND_OVER: Literal["hand-over"] = "hand-over"
"""Time that no stage explains: passing images between workers, keeping their order, waiting."""


@dataclass(frozen=True, kw_only=True)
class BatchTiming:
    """Forward passes with batches of one size."""

    batch_size: int
    rounds_s: tuple[tuple[float, ...], ...]
    """Every sample of each round, in seconds for one batch."""
    images_per_s: float
    """Median over the rounds of `batch_size` divided by the round's median time."""
    round_spread: float
    """Relative difference between the slowest and the fastest round's median."""
    num_outliers: int


@dataclass(frozen=True, kw_only=True)
class StageCosts:
    """Seconds per image in each stage when it runs alone on the machine.

    Each runs as in `classify`: reading, decoding and a `fused` plan's inference in all of the
    plan's workers at once, so this is the time of all cores together; writing in one thread.
    """

    read_s: float
    decode_s: float
    infer_s: float
    write_s: float

    def by_stage(self) -> dict[Stage, float]:
        """Return the costs by the stages' names."""
        return {
            "reading": self.read_s,
            "decoding": self.decode_s,
            "inference": self.infer_s,
            "writing": self.write_s,
        }


@dataclass(frozen=True, kw_only=True)
class ClassifyRound:
    """One process's measurements of `classify`."""

    plan: Plan
    """How decoding and the model shared the cores."""
    device: str
    costs: StageCosts
    images_per_s: float
    """Throughput of the whole, from files to rows, with all stages running concurrently."""
    num_images: int
    """Number of rows that `images_per_s` is measured on."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """The bottleneck of `classify`."""

    stage: Stage | Literal["hand-over"]
    """The stage, or `hand-over` if the stages together do not explain the measured rate."""
    cost_s: float
    """Seconds per image in this stage."""
    total_s: float
    """Seconds per image according to the stages' costs: their sum if all run on the CPU; otherwise
    the GPU's time or the sum of the others, whichever is longer, since they run concurrently. For
    `hand-over`, the measured seconds per image."""
    share: float
    """`cost_s / total_s`: the share of the time this stage is at work, in [0, 1]."""
    sentence: str
    """The same as a sentence, with a suggestion."""


@dataclass(frozen=True, kw_only=True)
class ClassifyFigures:
    """How fast `classify` is with an export on this machine, and why it is no faster."""

    images_per_s: float
    """Median over the rounds."""
    round_spread: float
    """Relative difference between the fastest and the slowest round's rate."""
    costs: StageCosts
    """Medians over the rounds."""
    bottleneck: Bottleneck
    rounds: tuple[ClassifyRound, ...]


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One candidate's results. If it failed, unknown values are None or empty."""

    name: str
    run: str
    format: str
    """Name of a `tltools.runtime.model_formats.ModelFormat`, or `EAGER`."""
    precision: BenchPrecision
    path: str
    status: Status
    reason: str
    """The stage and the error of a failure, in one line; otherwise empty."""
    warnings: tuple[str, ...]
    """What makes the figures unreliable and what to do about it, one line each."""
    score: Score | None
    accuracy_diff: float | None
    """Accuracy minus that of the run's eager model, in [-1, 1]; None for the eager model."""
    agreement: float | None
    """Share of images with the same label as the run's eager model, in [0, 1]; None for it."""
    max_abs_logit_diff: float | None
    """Largest difference from the run's eager model; None for the eager model."""
    load_s: tuple[float, ...]
    """Seconds per round to open the file in a new process, including the runtime's import."""
    latency: Latency | None
    """Latency of single images, over the samples of all rounds."""
    batches: tuple[BatchTiming, ...]
    classify: ClassifyFigures | None
    """None for eager, which `classify` does not accept, and if it was not measured."""
    size_bytes: int
    """Size of the export; for eager, of the checkpoint."""
    peak_memory_bytes: int | None
    """Peak main memory of the process, including its runtime, before accuracy is measured."""
    peak_gpu_bytes: int | None = None
    """Peak GPU memory of model, runtime and all batch sizes, without the CUDA context, from the
    driver's free memory. None on the CPU."""
    flops_per_image: int | None = None
    """Operations of the export's convolutions and matrix products, a multiply-add counted as two;
    None for eager, which may need fewer."""
    flops_per_s: float | None = None
    """Reached at the best batch size, including copies to and from the device."""
    peak_share: float | None = None
    """`flops_per_s` relative to a large matrix product in the same precision on the same GPU."""
    device: str
    device_reason: str
    provider: str
    """The onnxruntime execution provider that runs it, or `torch`."""
    placement: dict[str, int]
    """Number of the graph's nodes by execution provider, as recorded by onnxruntime; else empty."""
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The export of one run that is recommended on this machine, or why there is none."""

    run: str
    name: str
    """Name of the candidate; empty if nothing is recommended."""
    path: str
    """Path of the export; empty if nothing is recommended."""
    images_per_s: float | None
    """Throughput of `classify`."""
    score: Score | None
    reason: str
    """Why this one, or why none, with the figures."""
    passed_over: tuple[str, ...]
    """Why not each of the run's other exports, one line each, the fastest first."""
    doubtful: bool
    """Whether the underlying timings are unstable."""
    options: str = ""
    """Options that `classify` needs besides the path, such as `--tf32`."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The export to use on this machine."""

    choice: Choice | None
    """The choice of the run with the highest accuracy; None if no run has one."""
    alternative: str
    """What another run would gain in speed and cost in accuracy; otherwise empty."""
    command: str
    """The command that classifies with it; empty if nothing is recommended."""
    choices: tuple[Choice, ...]
    """One choice per run."""
    unmeasured: str = ""
    """Which more accurate run of the same data was not measured; empty if none is known."""
