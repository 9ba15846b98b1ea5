"""What makes two jobs the same job: the facts that their rows depend on, recorded and compared.

A stopped job is gone on with only by the same job, shards are merged only if they are of one job,
and parts on a cluster belong to one data set by the same rule.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Protocol

import msgspec

from tltools import __version__
from tltools.card import Card, Resize
from tltools.classify.inputs import STDIN
from tltools.classify.job import JobSettings
from tltools.classify.shards import Shard
from tltools.data.location import Location
from tltools.errors import ArtifactError
from tltools.runtime import Plan

SMALL_MODEL = 8 * 2**20
"""Bytes of a model whose digest is worth no library of its own."""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's rows depend on, kept beside them while they are incomplete."""

    tltools: str = __version__
    model: str
    """Its path when the job was begun; what counts is `model_sha256`."""
    model_sha256: str
    inputs: tuple[str, ...]
    """As absolute paths and URLs; `-` is standard input."""
    classes: tuple[str, ...]
    size: int
    resize: Resize
    device: str
    provider: str
    plan: Literal["fused", "ahead"]
    batch_size: int
    spreadsheet: bool
    min_confidence: float | None
    overwrite: bool
    """Whether the complete output may replace one that exists."""
    shard: Shard | None = None
    """The shard of the listing that has rows here; None: all of it."""
    tf32: bool = False
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Of the tensors on a GPU."""


class PartsRecord(JobRecord, frozen=True, kw_only=True):
    """What the rows of a data set in parts depend on."""

    part_size: int
    """Images of each part but the last."""
    part_format: str
    """Suffix of the parts' files, without its dot."""


@dataclass(frozen=True)
class Fact:
    """Something that a job's rows depend on: a field of its record."""

    field: str
    begun: Callable[[Any, Mapping[str, Any]], str] | None = None
    """How a stopped job differs, after "it was begun", from its record and this job's facts; None
    where a job that goes on takes the fact from the record."""
    shard: str | None = None
    """How a shard differs from another one, before that one's name; None where shards may."""


def _given(option: str) -> Callable[[Any, Mapping[str, Any]], str]:
    """Return what says whether a job was begun with a flag."""
    field = option.removeprefix("--").replace("-", "_")
    return lambda record, _now: f"{'with' if getattr(record, field) else 'without'} {option}"


def _valued(option: str) -> Callable[[Any, Mapping[str, Any]], str]:
    """Return what says which value of an option a job was begun with."""
    field = option.removeprefix("--").replace("-", "_")

    def say(record: Any, _now: Mapping[str, Any]) -> str:
        value = getattr(record, field)
        if value is None:
            return f"without {option}"
        return f"with {option} {f'{value:g}' if isinstance(value, float) else value}"

    return say


def _place(record: Any, now: Mapping[str, Any]) -> str:
    here = f"{now['device']} ({now['provider']})"
    return f"on {record.device} ({record.provider}), and this is {here}"


FACTS = (
    Fact(
        "tltools",
        lambda record, _now: f"by tltools {record.tltools}",
        "was made by another version of tltools than",
    ),
    Fact(
        "model_sha256",
        lambda record, _now: f"with another model ({record.model})",
        "was made with another model than",
    ),
    Fact(
        "inputs",
        lambda record, _now: f"with other inputs ({', '.join(record.inputs)})",
        "has other inputs than",
    ),
    Fact("classes", None, "has other classes than"),
    Fact("device", _place, "ran on another device than"),
    Fact("provider", _place, "ran on another execution provider than"),
    Fact("plan", None, "ran with another plan (--threads 1 chooses one for all) than"),
    Fact("batch_size", _valued("--batch-size"), "has another --batch-size than"),
    Fact("spreadsheet", _given("--spreadsheet"), "has --spreadsheet unlike"),
    Fact("min_confidence", _valued("--min-confidence"), "has another --min-confidence than"),
    Fact("tf32", _given("--tf32"), "has --tf32 unlike"),
    Fact("shard", _valued("--shard")),
    Fact("part_size", _valued("--part-size")),
    Fact("part_format", _valued("--part-format")),
)
"""All that makes jobs differ, in the order in which differences are told."""


def differences(record: JobRecord, now: Mapping[str, Any]) -> str | None:
    """Say in what the job that left `record` was another one than this.

    Args:
        record: Of the stopped job.
        now: This job's facts by field, as far as they are known.

    Returns:
        All differences as a clause each; None if there are none.
    """
    found = [
        f"it was begun {fact.begun(record, now)}"
        for fact in FACTS
        if fact.begun is not None
        and fact.field in now
        and now[fact.field] != getattr(record, fact.field)
    ]
    return "; ".join(dict.fromkeys(found)) or None


def shard_difference(record: JobRecord, first: JobRecord) -> str | None:
    """Say in what a shard's job was another one than the first shard's; None if it was the same.

    Returns:
        A clause that ends before the name of the first shard.
    """
    for fact in FACTS:
        if fact.shard and getattr(record, fact.field) != getattr(first, fact.field):
            return fact.shard
    return None


class OpenedModel(Protocol):
    """What a record says of an opened model."""

    card: Card
    device: str
    provider: str


class JobIdentity:
    """What makes a job the same job, as far as it is known before the model is opened."""

    def __init__(
        self,
        settings: JobSettings,
        *,
        overwrite: bool,
        shard: Shard | None = None,
        tf32: bool = False,
        part_size: int | None = None,
        part_format: str | None = None,
    ) -> None:
        """Take a job's settings; a thread reads the model's file while there is other work.

        Args:
            settings: Of the job. A batch size of None is any.
            overwrite: Whether the output may replace one that exists.
            shard: The shard of the listing that is classified; None: all of it.
            tf32: Whether fp32 products are rounded to TF32.
            part_size: Images of a part on a cluster; None: any number.
            part_format: Of the parts; None: any.
        """
        self._settings = settings
        self._overwrite = overwrite
        self._shard = shard
        self._tf32 = tf32
        self._any_unless_given = {
            "batch_size": settings.batch_size,
            "part_size": part_size,
            "part_format": part_format,
        }
        self._inputs = tuple(map(_absolute, settings.inputs))
        self._sha256: Future[str] = Future()
        Thread(target=_hash, args=(settings.model, self._sha256), daemon=True).start()

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the model's file, as hexadecimal digits.

        Raises:
            ArtifactError: If it cannot be read.
        """
        try:
            return self._sha256.result()
        except OSError as error:
            raise ArtifactError(
                f"cannot read {self._settings.model}: {error.strerror or error}"
            ) from error

    def differences(self, record: JobRecord) -> str | None:
        """Say in what the job that left `record` was another one; None if it was this one."""
        given = {name: value for name, value in self._any_unless_given.items() if value is not None}
        now = {
            "tltools": __version__,
            "model_sha256": self.model_sha256,
            "inputs": self._inputs,
            "spreadsheet": self._settings.spreadsheet,
            "min_confidence": self._settings.min_confidence,
            "tf32": self._tf32,
            "shard": self._shard,
        }
        return differences(record, now | given)

    def record(self, opened: OpenedModel, plan: Plan) -> JobRecord:
        """Return the record of this job, which is about to begin."""
        card = opened.card
        return JobRecord(
            model=str(self._settings.model),
            model_sha256=self.model_sha256,
            inputs=self._inputs,
            classes=tuple(card.classes),
            size=card.preprocessing.size,
            resize=card.preprocessing.resize,
            device=opened.device,
            provider=opened.provider,
            plan=plan.name,
            batch_size=plan.batch_size,
            spreadsheet=self._settings.spreadsheet,
            min_confidence=self._settings.min_confidence,
            overwrite=self._overwrite,
            shard=self._shard,
            tf32=self._tf32,
            layout=getattr(opened, "layout", "nchw"),
        )


def device_difference(record: JobRecord, opened: OpenedModel) -> str | None:
    """Say if a job was begun on another device than its model was opened on now; None if not."""
    return differences(record, {"device": opened.device, "provider": opened.provider})


def _absolute(source: Location) -> str:
    if isinstance(source, Path) and source != STDIN:
        return os.path.abspath(source)  # noqa: PTH100 - links stay
    return str(source)


def _hash(path: Path, found: "Future[str]") -> None:
    try:
        if path.stat().st_size < SMALL_MODEL:
            found.set_result(_small_sha256()(path.read_bytes()).hexdigest())
            return
        import hashlib

        with path.open("rb") as file:
            found.set_result(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        found.set_exception(error)


def _small_sha256() -> Callable[[bytes], Any]:
    """Return Python's own SHA-256, which needs no OpenSSL: that takes 3.5 MB and 10 ms to load.

    As in the standard library's random.py. It is four times as slow, which counts for large files.
    """
    for module in ("_sha2", "_sha256"):  # since Python 3.12; before
        with suppress(ImportError):
            return import_module(module).sha256
    import hashlib

    return hashlib.sha256
