"""The settings of a job, as one value; and what there is to say when it is done."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from tltools.card import Card
from tltools.classify.pipeline import check_min_confidence
from tltools.classify.shards import Shard
from tltools.data.location import Location
from tltools.runtime import Device, DeviceChoice, Plan
from tltools.runtime.pipeline import check_positive
from tltools.runtime.predictor import Layout


@dataclass(frozen=True)
class JobSettings:
    """What every engine has to know of a job.

    Raises:
        ConfigError: If a number is out of its range.
    """

    model: Path
    """An export."""
    inputs: Sequence[Location]
    """Folders, images and lists, as `list_images` takes them."""
    output: Location
    _: KW_ONLY
    device: Device = "auto"
    batch_size: int | None = None
    """Images in one call of the model; None to choose."""
    workers: int | None = None
    """Threads that decode, one per core if None. On a cluster: cores of an actor."""
    overwrite: bool = False
    """Replace an output that exists, and what a stopped job left of it."""
    spreadsheet: bool = False
    """Put an apostrophe before fields that a spreadsheet takes for a formula; for CSV."""
    errors_to: Path | None = None
    """A CSV of the images that could not be read, with the reasons, written at the end."""
    min_confidence: float | None = None
    """Images whose largest probability is less are labeled `UNCERTAIN`; None: none is."""
    image_timeout_s: float = 30.0
    """Longest time for decoding an image."""

    def __post_init__(self) -> None:
        """Refuse numbers that no job can use; with the model's classes known, more is checked."""
        check_positive({"--batch-size": self.batch_size, "--workers": self.workers})
        check_min_confidence(self.min_confidence)


@dataclass(frozen=True, kw_only=True)
class Job(JobSettings):
    """A job for this machine.

    The output is a file whose suffix is one of `OUTPUT_FORMATS`, or `-` for CSV on standard output.
    For a URL, the rows are made in the user's cache folder and sent when they are complete.

    Raises:
        ConfigError: If a number is out of its range.
    """

    threads: int | None = None
    """Cores of one forward pass on the CPU; None to choose."""
    tf32: bool = False
    """Let CUDA round fp32 products to TF32."""
    ledger_dir: Path | None = None
    """Where the model's ledger is: images whose bytes it has classified are neither decoded nor
    run, and their rows are made from what it gave then; what is new is added to it. None: all
    images are classified."""
    shard: Shard | None = None
    """The shard of the listing to classify; a record of it is kept beside the complete output, for
    `merge_shards`. None: all of it."""

    def __post_init__(self) -> None:
        """Refuse numbers that no job can use."""
        super().__post_init__()
        check_positive({"--threads": self.threads})


@dataclass(frozen=True)
class Summary:
    """What a job did."""

    model: Path
    card: Card
    output: Location | None
    """None: standard output."""
    num_images: int
    """Rows of the output: `sum(counts.values()) + num_uncertain + num_failed`."""
    num_kept: int
    """Those of them that an earlier job had left, which this one went on with."""
    num_known: int | None
    """Images whose bytes the ledger knew; None without one. Up to a batch of `num_kept` may be
    among them."""
    counts: dict[str, int]
    """Images by label, in the order of the card's classes."""
    num_uncertain: int
    """Images labeled `UNCERTAIN`."""
    num_failed: int
    errors: dict[str, int]
    """Images that could not be read, by reason, the most frequent first; digits are `N`."""
    unlisted: tuple[str, ...]
    """Why a folder could not be listed, or the rest of an archive, for each that was left out; its
    images have no rows."""
    seconds: float
    """From the first image to the finished file; opening the model is not in it."""
    choice: DeviceChoice
    provider: str
    placement: dict[str, int]
    """Number of the model's nodes by execution provider."""
    plan: Plan
    layout: Layout = "nchw"
    """Of the tensors on CUDA, where it is chosen by measuring."""
    tf32: bool = False
    """Whether fp32 products were rounded to TF32."""

    @property
    def images_per_s(self) -> float:
        """Images per second, from the first to the finished file."""
        return (self.num_images - self.num_kept) / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return what a program wants to know, for JSON."""
        return {
            "model": str(self.model),
            "output": None if self.output is None else str(self.output),
            "num_images": self.num_images,
            "num_kept": self.num_kept,
            "num_known": self.num_known,
            "counts": self.counts,
            "num_uncertain": self.num_uncertain,
            "num_failed": self.num_failed,
            "errors": self.errors,
            "unlisted": self.unlisted,
            "seconds": self.seconds,
            "images_per_s": self.images_per_s,
            "device": self.choice.device,
            "provider": self.provider,
            "nodes": self.placement,
            "plan": self.plan,
            "layout": self.layout,
            "tf32": self.tf32,
        }
