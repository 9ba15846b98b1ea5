"""The settings of a job as one value, and the summary of a finished job."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from tltools.card import Card
from tltools.classify.predict import check_min_confidence, check_unknown
from tltools.classify.shards import Shard
from tltools.data.location import Location
from tltools.decisions import ClassThreshold
from tltools.errors import ConfigError
from tltools.runtime import Device, DeviceChoice, Plan
from tltools.runtime.pipeline import check_positive
from tltools.runtime.predictor import Layout


@dataclass(frozen=True)
class JobSettings:
    """The settings of a job that every engine needs.

    Raises:
        ConfigError: If a number is out of range.
    """

    model: Path
    """Path of an export."""
    inputs: Sequence[Location]
    """Folders, images and lists, as `list_images` takes them."""
    output: Location
    _: KW_ONLY
    device: Device = "auto"
    batch_size: int | None = None
    """Number of images per model call; None to choose automatically."""
    workers: int | None = None
    """Number of decoding threads; None for one per core. On a cluster: cores per actor."""
    overwrite: bool = False
    """Replace an existing output, and the rows that a stopped job left of it."""
    spreadsheet: bool = False
    """Write a CSV that spreadsheets read as it is meant: with a byte order mark, and an apostrophe
    before fields that they would take for a formula."""
    errors_to: Path | None = None
    """A CSV of the images that could not be read and the reasons, written at the end."""
    min_confidence: float | None = None
    """Label images whose largest probability is lower `UNCERTAIN`; None labels none so."""
    threshold: ClassThreshold | None = None
    """Threshold of a class; None gives each image its most probable class."""
    unknown: float | None = None
    """Label images beyond this percentile of the training images' distances `UNKNOWN`, and write
    all distances; None does neither."""
    image_timeout_s: float = 30.0
    """Longest time for decoding one image, in seconds."""

    def __post_init__(self) -> None:
        """Reject invalid numbers; more is checked once the model's classes are known."""
        check_positive({"`batch_size=`": self.batch_size, "`workers=`": self.workers})
        if not 0 < self.image_timeout_s < inf:
            raise ConfigError(
                f"`image_timeout_s=` must be a number above 0, got {self.image_timeout_s:g}"
            )
        check_min_confidence(self.min_confidence)
        check_unknown(self.unknown)


@dataclass(frozen=True, kw_only=True)
class Job(JobSettings):
    """A job that runs on this machine.

    The output is a file whose suffix is one of `OUTPUT_FORMATS`, or `-` for CSV on standard output.
    If it is a URL, the rows are written to the user's cache folder and uploaded once complete.

    Raises:
        ConfigError: If a number is out of range.
    """

    threads: int | None = None
    """Number of cores per forward pass on the CPU; None to choose automatically."""
    tf32: bool = False
    """Let CUDA round fp32 products to TF32."""
    ledger_dir: Path | None = None
    """Folder of the model's ledger: images whose bytes the model has classified before are not
    decoded or run again, and their rows come from the ledger; new results are added to it. None
    classifies all images."""
    shard: Shard | None = None
    """The shard of the listing to classify; its record is kept beside the complete output, for
    `merge_shards`. None classifies the whole listing."""

    def __post_init__(self) -> None:
        """Reject invalid numbers."""
        super().__post_init__()
        check_positive({"`threads=`": self.threads})


@dataclass(frozen=True)
class Summary:
    """What a job did."""

    model: Path
    card: Card
    output: Location | None
    """None for standard output."""
    num_images: int
    """Number of rows in the output: `sum(counts.values()) + num_uncertain + num_unknown +
    num_failed`."""
    num_kept: int
    """Number of rows that a stopped job had left, after which this job resumed."""
    num_known: int | None
    """Number of images found in the ledger; None without a ledger. Up to one batch of `num_kept`
    may be included."""
    counts: dict[str, int]
    """Number of images by label, in the order of the card's classes."""
    num_uncertain: int
    """Number of images labeled `UNCERTAIN`."""
    num_unknown: int
    """Number of images labeled `UNKNOWN`."""
    num_failed: int
    errors: dict[str, int]
    """Number of images that could not be read, by reason, most frequent first; digits are `N`."""
    examples: dict[str, str]
    """The first image that could not be read, and why, by reason."""
    unlisted: tuple[str, ...]
    """Why each skipped folder, or rest of an archive, could not be listed, or an image's name is
    not searched for; such images have no rows."""
    seconds: float
    """Time from the first image to the finished file, without opening the model."""
    choice: DeviceChoice
    provider: str
    placement: dict[str, int]
    """Number of the model's nodes by execution provider."""
    plan: Plan
    layout: Layout = "nchw"
    """Memory layout of the tensors; on CUDA it is chosen by measuring."""
    tf32: bool = False
    """Whether fp32 products were rounded to TF32."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of files in folders and archives that have no image suffix, by suffix in lowercase
    (`""`: none), most frequent first."""

    @property
    def images_per_s(self) -> float:
        """Throughput from the first image to the finished file, in images per second."""
        return (self.num_images - self.num_kept) / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as values for JSON."""
        return {
            "model": str(self.model),
            "output": None if self.output is None else str(self.output),
            "num_images": self.num_images,
            "num_kept": self.num_kept,
            "num_known": self.num_known,
            "counts": self.counts,
            "num_uncertain": self.num_uncertain,
            "num_unknown": self.num_unknown,
            "num_failed": self.num_failed,
            "errors": self.errors,
            "unlisted": self.unlisted,
            "left_out": self.left_out,
            "seconds": self.seconds,
            "images_per_s": self.images_per_s,
            "device": self.choice.device,
            "provider": self.provider,
            "nodes": self.placement,
            "plan": self.plan,
            "layout": self.layout,
            "tf32": self.tf32,
        }
