"""What makes two jobs the same job: the facts that their rows depend on, recorded and compared.

Only the same job resumes a stopped one, only shards of the same job are merged, and the parts that
a cluster writes belong to one data set by the same rule.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from tltools import __version__
from tltools.card import Card, Resize
from tltools.classify.inputs import STDIN
from tltools.classify.job import JobSettings
from tltools.classify.shards import Shard
from tltools.data.location import Location
from tltools.decisions import ClassThreshold
from tltools.errors import ArtifactError, cause_of
from tltools.regular import open_regular
from tltools.runtime import Plan

SMALL_MODEL = 8 * 2**20
"""Models below this many bytes are hashed without loading OpenSSL."""


class Complete(msgspec.Struct, frozen=True, kw_only=True):
    """A complete output, recorded just before it gets its name.

    A job that is killed afterwards has finished: its record and the output prove it.
    """

    device: int
    inode: int
    num_bytes: int
    modified_ns: int
    num_rows: int
    counts: dict[str, int]
    """Number of images by label."""
    errors: dict[str, int]
    """Number of images without a label, by reason."""
    examples: dict[str, str] = {}
    """The first image with each reason, and its own reason."""
    unlisted: tuple[str, ...] = ()
    left_out: dict[str, int] = {}

    def is_at(self, path: Path) -> bool:
        """Return whether this very file is at `path`, unchanged."""
        try:
            info = path.stat()
        except OSError:
            return False
        found = info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
        return found == (self.device, self.inode, self.num_bytes, self.modified_ns)


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's rows depend on, kept beside them while they are incomplete."""

    tltools: str = __version__
    model: str
    """Its path when the job started; `model_sha256` is what identifies it."""
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
    """Whether the complete output may replace an existing one."""
    threshold: ClassThreshold | None = None
    unknown: float | None = None
    shard: Shard | None = None
    """The shard whose rows these are; None for the whole listing."""
    tf32: bool = False
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Memory layout of the tensors on a GPU."""
    errors_to: str | None = None
    """Absolute path of the file of failed images, which the job may replace."""
    complete: Complete | None = None
    """The complete output, once it is about to get its name."""


class PartsRecord(JobRecord, frozen=True, kw_only=True):
    """What the rows of a data set written in parts depend on."""

    part_size: int
    """Number of images in every part except the last."""
    part_format: str
    """Suffix of the part files, without the dot."""


class Fact(NamedTuple):
    """Something that a job's rows depend on: a field of its record."""

    field: str
    begun: Callable[[Any, Mapping[str, Any]], str] | None = None
    """Describes how a stopped job differs, to follow "it was started"; takes its record and this
    job's facts. None if a resumed job takes the fact from the record."""
    shard: str | None = None
    """Describes how a shard differs, to precede the other shard's name; None if shards may differ
    in it."""


def _given(field: str) -> Callable[[Any, Mapping[str, Any]], str]:
    """Return a function that says whether a job was started with a flag."""
    return lambda record, _now: f"{'with' if getattr(record, field) else 'without'} `{field}=True`"


def _valued(field: str) -> Callable[[Any, Mapping[str, Any]], str]:
    """Return a function that says with which value of a parameter a job was started."""

    def say(record: Any, _now: Mapping[str, Any]) -> str:
        value = getattr(record, field)
        if value is None:
            return f"without `{field}=`"
        return f"with `{field}={f'{value:g}' if isinstance(value, float) else value}`"

    return say


def _threshold(record: Any, _now: Mapping[str, Any]) -> str:
    one = record.threshold
    if one is None:
        return "without `threshold=`"
    return f"with `threshold={one.value!r}` and `class_name={one.class_name}`"


def _place(record: Any, now: Mapping[str, Any]) -> str:
    here = f"{now['device']} ({now['provider']})"
    return f"on {record.device} ({record.provider}), but this job runs on {here}"


FACTS = (
    Fact(
        "tltools",
        lambda record, _now: f"by tltools {record.tltools}",
        "was made by a different tltools version than",
    ),
    Fact(
        "model_sha256",
        lambda record, _now: f"with a different model ({record.model})",
        "was made with a different model than",
    ),
    Fact(
        "inputs",
        lambda record, _now: f"with different inputs ({', '.join(record.inputs)})",
        "has different inputs than",
    ),
    Fact("classes", None, "has different classes than"),
    Fact("device", _place, "ran on a different device than"),
    Fact("provider", _place, "ran on a different execution provider than"),
    Fact("plan", None, "ran with a different plan (`threads=1` forces the same one) than"),
    Fact("batch_size", _valued("batch_size"), "has a different `batch_size=` than"),
    Fact("spreadsheet", _given("spreadsheet"), "has a different `spreadsheet=` than"),
    Fact("min_confidence", _valued("min_confidence"), "has a different `min_confidence=` than"),
    Fact("threshold", _threshold, "has a different `threshold=` than"),
    Fact("unknown", _valued("unknown"), "has a different `unknown=` than"),
    Fact("tf32", _given("tf32"), "has a different `tf32=` than"),
    Fact("shard", _valued("shard")),
    Fact("part_size", _valued("part_size")),
    Fact("part_format", _valued("part_format")),
)
"""Everything in which jobs can differ, in the order in which differences are reported."""


def differences(record: JobRecord, now: Mapping[str, Any]) -> str | None:
    """Describe how the job that left `record` differs from this one.

    Args:
        record: The stopped job's record.
        now: This job's known facts, by field.

    Returns:
        One clause per difference; None if there are none.
    """
    found = [
        f"it was started {fact.begun(record, now)}"
        for fact in FACTS
        if fact.begun is not None
        and fact.field in now
        and now[fact.field] != getattr(record, fact.field)
    ]
    return "; ".join(dict.fromkeys(found)) or None


def shard_difference(record: JobRecord, first: JobRecord) -> str | None:
    """Describe how a shard's job differs from the first shard's; None if it does not.

    Returns:
        A clause to be followed by the name of the first shard.
    """
    for fact in FACTS:
        if fact.shard and getattr(record, fact.field) != getattr(first, fact.field):
            return fact.shard
    return None


class OpenedModel(Protocol):
    """The properties of an opened model that a record holds."""

    card: Card
    device: str
    provider: str


class JobIdentity:
    """What identifies a job before its model is opened."""

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
        """Take a job's settings and start hashing the model file in a thread.

        Args:
            settings: The job's settings. A batch size of None matches any.
            overwrite: Whether the output may replace an existing one.
            shard: The shard of the listing to classify; None for all of it.
            tf32: Whether fp32 products are rounded to TF32.
            part_size: Number of images per part on a cluster; None matches any.
            part_format: Format of the parts; None matches any.
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
        """SHA-256 of the model file, as hexadecimal digits.

        Raises:
            ArtifactError: If the file cannot be read.
        """
        try:
            return self._sha256.result()
        except OSError as error:
            raise ArtifactError(
                f"cannot read the model {self._settings.model}: {cause_of(error)}"
            ) from error

    def differences(self, record: JobRecord) -> str | None:
        """Describe how the job that left `record` differs from this one; None if it does not."""
        given = {name: value for name, value in self._any_unless_given.items() if value is not None}
        now = {
            "tltools": __version__,
            "model_sha256": self.model_sha256,
            "inputs": self._inputs,
            "spreadsheet": self._settings.spreadsheet,
            "min_confidence": self._settings.min_confidence,
            "threshold": self._settings.threshold,
            "unknown": self._settings.unknown,
            "tf32": self._tf32,
            "shard": self._shard,
        }
        return differences(record, now | given)

    def record(self, opened: OpenedModel, plan: Plan) -> JobRecord:
        """Return the record of this job, which is about to start."""
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
            threshold=self._settings.threshold,
            unknown=self._settings.unknown,
            overwrite=self._overwrite,
            shard=self._shard,
            tf32=self._tf32,
            layout=getattr(opened, "layout", "nchw"),
            errors_to=absolute_or_none(self._settings.errors_to),
        )


def device_difference(record: JobRecord, opened: OpenedModel) -> str | None:
    """Describe how a job's device differs from the one of the opened model; None if it does not."""
    return differences(record, {"device": opened.device, "provider": opened.provider})


def absolute_or_none(path: Path | None) -> str | None:
    """Return a path as it is recorded; None if there is none."""
    return None if path is None else os.path.abspath(path)  # noqa: PTH100 - links stay


def _absolute(source: Location) -> str:
    if isinstance(source, Path) and source != STDIN:
        return os.path.abspath(source)  # noqa: PTH100 - links stay
    return str(source)


def _hash(path: Path, found: "Future[str]") -> None:
    try:
        with open_regular(path) as file:
            if path.stat().st_size < SMALL_MODEL:
                found.set_result(_small_sha256()(file.read()).hexdigest())
                return
            import hashlib

            found.set_result(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        found.set_exception(error)


def _small_sha256() -> Callable[[bytes], Any]:
    """Return Python's built-in SHA-256, which avoids loading OpenSSL (3.5 MB and 10 ms).

    The standard library's random.py does the same. It is four times slower, which matters only for
    large files.
    """
    for module in ("_sha2", "_sha256"):  # Python 3.12 and later; earlier versions
        with suppress(ImportError):
            return import_module(module).sha256
    import hashlib

    return hashlib.sha256
