"""The facts that a bench finds for each candidate, and what follows from them."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tltools.bench.timing import Latency
from tltools.card import Score
from tltools.classify import Plan

EAGER = "eager"
"""The format of a run itself: PyTorch, as it was trained."""
BenchPrecision = Literal["fp32", "tf32", "fp16", "int8"]
"""`tf32` is an fp32 model whose products a GPU rounds to TF32."""
Status = Literal["ok", "unstable", "failed"]
Stage: TypeAlias = Literal["reading", "decoding", "inference", "writing"]
"""Of `classify`: file to bytes, bytes to pixels, pixels to logits, predictions to rows."""
HAND_OVER: Literal["hand-over"] = "hand-over"
"""What no stage explains: handing images between workers, keeping their order, waiting."""


@dataclass(frozen=True, kw_only=True)
class BatchTiming:
    """Forward passes with batches of one size."""

    batch_size: int
    rounds_s: tuple[tuple[float, ...], ...]
    """Every sample of each round, in seconds for one batch."""
    images_per_s: float
    """Median over the rounds of `batch_size` by the round's median."""
    round_spread: float
    """By how much the slowest round's median exceeds the fastest's, as a share of it."""
    num_outliers: int


@dataclass(frozen=True, kw_only=True)
class StageCosts:
    """Seconds for one image in each stage, had that stage the machine to itself.

    Each runs as `classify` runs it: reading, decoding and a `fused` plan's inference in all the
    plan's workers at once, so that this is the time of all cores together; writing in one thread.
    """

    read_s: float
    decode_s: float
    infer_s: float
    write_s: float

    def by_stage(self) -> dict[Stage, float]:
        """Return the costs under the stages' names."""
        return {
            "reading": self.read_s,
            "decoding": self.decode_s,
            "inference": self.infer_s,
            "writing": self.write_s,
        }


@dataclass(frozen=True, kw_only=True)
class ClassifyRound:
    """What one process found about `classify`."""

    plan: Plan
    """How decoding and the model shared the cores."""
    device: str
    costs: StageCosts
    images_per_s: float
    """Of the whole of it: files in, rows out, all stages at the same time."""
    num_images: int
    """Rows behind `images_per_s`."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """The stage that holds `classify` up."""

    stage: Stage | Literal["hand-over"]
    """`hand-over` where the stages together do not explain the rate that was reached."""
    cost_s: float
    """Seconds for one image in this stage."""
    total_s: float
    """Seconds for one image by the stages' costs: their sum where all run on the CPU; else the
    GPU's time or the sum of the others, whichever is longer, for they run at the same time. For
    `hand-over`, seconds for one image as `classify` reached them."""
    share: float
    """`cost_s / total_s`: how much of the time this stage is at work, in [0, 1]."""
    sentence: str
    """The same for people, with what would help."""


@dataclass(frozen=True, kw_only=True)
class ClassifyFigures:
    """How fast `classify` is with an export on this machine, and why it is no faster."""

    images_per_s: float
    """Median over the rounds."""
    round_spread: float
    """By how much the fastest round's rate exceeds the slowest's, as a share of it."""
    costs: StageCosts
    """Medians over the rounds."""
    bottleneck: Bottleneck
    rounds: tuple[ClassifyRound, ...]


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One candidate's results. Where it failed, what is unknown is None or empty."""

    name: str
    run: str
    format: str
    """Of a `tltools.runtime.formats.ModelFormat`, or `EAGER`."""
    precision: BenchPrecision
    path: str
    status: Status
    reason: str
    """Of a failure: the stage and the error, in one line. Else empty."""
    warnings: tuple[str, ...]
    """What makes the figures doubtful and what to do about it, a line each."""
    score: Score | None
    accuracy_diff: float | None
    """Accuracy less that of the run's eager model, in [-1, 1]; None for itself."""
    agreement: float | None
    """Share of images with the label that the run's eager model gives, in [0, 1]; None for it."""
    max_abs_logit_diff: float | None
    """Largest difference from the run's eager model; None for itself."""
    load_s: tuple[float, ...]
    """Per round: opening the file in a new process, the import of its runtime included."""
    latency: Latency | None
    """Of single images, over the samples of all rounds."""
    batches: tuple[BatchTiming, ...]
    classify: ClassifyFigures | None
    """None for eager, which `classify` does not take, and where it was not measured."""
    size_bytes: int
    """Of the export; for eager, of the checkpoint."""
    peak_memory_bytes: int | None
    """Main memory of the process at most, its runtime included, before accuracy is measured."""
    peak_gpu_bytes: int | None = None
    """Memory taken on the GPU at most by model, runtime and all batch sizes, without the CUDA
    context; by the driver's figure of free memory. None on the CPU."""
    flops_per_image: int | None = None
    """Operations of the export's convolutions and matrix products, a multiply-add counted as two;
    None for eager, which may do the same with less."""
    flops_per_s: float | None = None
    """Reached with the best batch size, copies to and from the device included."""
    peak_share: float | None = None
    """`flops_per_s` by those of a large matrix product in the same precision on the same GPU."""
    device: str
    device_reason: str
    provider: str
    """What really runs it: onnxruntime's execution provider, or `torch`."""
    placement: dict[str, int]
    """Number of the graph's nodes by provider, as onnxruntime recorded it; else empty."""
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The export of one run that is recommended on this machine, or why there is none."""

    run: str
    name: str
    """Of the candidate; empty where nothing is recommended."""
    path: str
    """Of the export; empty where nothing is recommended."""
    images_per_s: float | None
    """Of `classify`."""
    score: Score | None
    reason: str
    """Why this one, or why none, with the figures."""
    passed_over: tuple[str, ...]
    """Why not each of the run's other exports, a line each, the fastest first."""
    doubtful: bool
    """Whether the timings it rests on are unstable."""
    options: str = ""
    """What `classify` needs besides the path, as `--tf32`."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Which export to take on this machine."""

    choice: Choice | None
    """That of the run with the highest accuracy; None where no run has one."""
    alternative: str
    """What another run would gain in speed and cost in accuracy; else empty."""
    command: str
    """What classifies with it; empty where nothing is recommended."""
    choices: tuple[Choice, ...]
    """One for each run."""
