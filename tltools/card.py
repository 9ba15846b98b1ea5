"""The facts that travel with a run or an export, as one JSON text with a version.

A card may come from a stranger. What is read of one is checked here, so that nobody else needs to:
its size, its numbers, and the names that become parts of paths.
"""

import math
from typing import Any, Literal

import msgspec

from tltools.errors import ArtifactError

CARD_VERSION = 1
CARD_KEY = "tltools.card"
"""Where an export keeps its card: a key of ONNX `metadata_props`, a TorchScript extra file."""

MAX_CARD_BYTES = 2 * 2**20
"""A card of 20,000 classes has about half of it."""
MAX_SIZE = 2048
"""Largest height and width of a model's input in pixels."""
MAX_NAME = 100
"""Characters of a run's name, which is part of the names of folders and files."""
FORBIDDEN = frozenset('/\\:*?"<>|')
"""Characters that some system forbids in the name of a file."""
MAX_DEPTH = 20
"""Of what is nested in `training`."""
MAX_TEST_IMAGES = 16
MAX_TEST_SIDE = 256
"""Largest height and width of a self-test's image in pixels."""

Resize = Literal["squash", "crop"]
Precision = Literal["fp32", "fp16", "int8"]


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True):
    """How a file becomes the model's input.

    Decoding and resizing are done by `tltools.data.images.load_image`; scaling and
    normalization, `(x / 255 - mean) / std`, are part of the model's graph.
    """

    size: int = 224
    """Height and width of the input in pixels."""
    resize: Resize = "squash"
    """`squash` to a square, or scale the short side and `crop` the center."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Per channel (RGB), on the 0-1 scale."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Per channel (RGB), on the 0-1 scale."""

    def shape(self, num_images: int) -> tuple[int, int, int, int]:
        """Return the shape of a batch of the model's input, (N, size, size, 3)."""
        return num_images, self.size, self.size, 3


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Top-1 accuracy with its 95 % interval and the counts behind it."""

    accuracy: float
    """`correct / total`, in [0, 1]."""
    low: float
    """Lower end of the 95 % Wilson interval."""
    high: float
    """Upper end of the 95 % Wilson interval."""
    correct: int
    total: int


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Where the weights came from before training."""

    source: str
    """`random`, torchvision's name of the weights, or the name of a local file."""
    sha256: str = ""
    """Of the file's bytes; empty for random weights."""


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Which images a run was trained on."""

    name: str
    """Name of the CSV or folder."""
    fingerprint: str
    """SHA-256 over the sorted (image SHA-256, class, split) of all rows."""
    split: str
    """`default`, `article` or `given` (the data brought its own)."""
    num_train: int
    num_val: int


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How far an export's outputs are from PyTorch's on the same images."""

    max_abs_logit_diff: float
    top1_agreement: float
    """Share of images with the same label, in [0, 1]."""
    num_images: int
    batch_sizes: tuple[int, ...]
    """The batch sizes that were run."""
    atol: float | None
    """The largest logit difference that would have passed; None where only labels count."""
    min_top1_agreement: float
    """The smallest agreement that would have passed."""
    accuracy_drop: float | None = None
    """PyTorch's top-1 accuracy less the export's on these images, in [-1, 1]."""
    max_accuracy_drop: float | None = None
    """The largest drop that would have passed; None where it was not a condition."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """Where an export was compared with PyTorch, and what came of it."""

    device: Literal["cpu", "cuda"]
    provider: str
    """onnxruntime's name of what ran the export, or `torch`."""
    parity: Parity


class Confidence(msgspec.Struct, frozen=True, kw_only=True):
    """How the model's probabilities are calibrated: softmax(logits / temperature)."""

    temperature: float = 1.0
    num_images: int = 0
    """Validation images that it was fitted on."""
    ece_before: float | None = None
    """Expected calibration error of softmax(logits) on them, in [0, 1]; None without an image."""
    ece_after: float | None = None
    """The same with a temperature, each image with one that was fitted without it."""
    nll_before: float | None = None
    """Mean negative log likelihood in nats, as for `ece_before`."""
    nll_after: float | None = None
    """As for `ece_after`."""
    note: str = ""
    """Why the temperature stayed 1, if it did."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How the activations' ranges of an int8 export were found."""

    method: str
    """`MinMax`: the smallest and the largest value on the calibration images."""
    num_images: int
    """Images of the run's training split."""


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """A few drawn images and PyTorch's answers, for whoever opens an export to compare with."""

    images: tuple[bytes, ...]
    """PNG files."""
    logits: bytes
    """PyTorch's, (N, C) for the N images, as little-endian float32."""
    tolerance: float
    """How far the export's logits may be from them on any machine."""


class ExportFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an export adds to its run's card."""

    format: str
    """Name of a `tltools.runtime.formats.ModelFormat`."""
    precision: Precision
    opset: int | None = None
    """ONNX opset; None in other formats."""
    parity: Parity
    """On the device that ran all images: the GPU where there was one."""
    verified: tuple[Verified, ...] = ()
    """The same for each device, the one of `parity` first; empty in exports made before several
    were tried."""
    fp16_exercised: bool | None = None
    """Of fp16 exports: whether a device that verified it computes in fp16, which onnxruntime's CPU
    provider does not; None in others and in earlier ones."""
    calibration: Calibration | None = None
    """Only in int8 exports."""
    float_layers: tuple[str, ...] = ()
    """Nodes kept in fp32 so that the parity bar holds (int8), or since fp16 could not hold their
    values."""
    self_test: SelfTest | None = None
    """None in exports made before there was one."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that travel with a run or an export."""

    version: int = CARD_VERSION
    run: str
    """Name of the run folder."""
    model: str
    """Name of the backbone."""
    head: str
    """Which of the backbone's heads."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    preprocessing: Preprocessing
    weights: Weights
    data: DataFacts
    metrics: dict[str, Score]
    """Accuracy by split: `train`, `val` and, where the data has one, `test`."""
    confidence: Confidence | None = None
    """None in runs and exports made before there was one; the temperature is 1 then."""
    training: dict[str, Any]
    """The training configuration, as in the run."""
    versions: dict[str, str]
    """Versions of tltools, torch, torchvision, pillow and Python."""
    created: str
    """UTC, ISO 8601."""
    export: ExportFacts | None = None
    """Only in exports."""

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities."""
        return 1.0 if self.confidence is None else self.confidence.temperature

    def to_json(self) -> str:
        """Return the card as JSON, indented for people."""
        return _indented(self)

    def to_text(self) -> str:
        """Return the card as JSON to look at: the bytes of the self-test are only counted."""
        document = msgspec.to_builtins(self)
        test = self.export and self.export.self_test
        if test:
            num_bytes = sum(map(len, test.images))
            document["export"]["self_test"] |= {
                "images": f"{len(test.images)} drawn images, {num_bytes:,} bytes",
                "logits": f"{len(test.images)} x {len(self.classes)}, float32",
            }
        return _indented(document)


def card_from_json(text: str | bytes, *, where: str) -> Card:
    """Read a card and check it.

    Args:
        text: JSON.
        where: Names the file in messages.

    Raises:
        ArtifactError: If the text is not a card, is one of a later version, or holds what no card
            can: numbers out of their range, a run's name that is not one of a folder.
    """
    if len(text) > MAX_CARD_BYTES:
        raise ArtifactError(
            f"{where} has a card of {len(text):,} bytes, more than {MAX_CARD_BYTES:,}: "
            "tltools did not make it"
        )
    try:
        _check_version(text, where)
        card = msgspec.json.decode(text, type=Card)
    except RecursionError as error:
        raise ArtifactError(f"{where} has no valid tltools card: it is nested too deep") from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ArtifactError(f"{where} has no valid tltools card: {error}") from error
    problem = _problem(card)
    if problem:
        raise ArtifactError(f"{where} has no valid tltools card: {problem}")
    return card


class _Versioned(msgspec.Struct):
    version: int = CARD_VERSION


def _check_version(text: str | bytes, where: str) -> None:
    """Raise ArtifactError if the card is of a later version, whatever else may be new in it."""
    version = msgspec.json.decode(text, type=_Versioned).version
    if version > CARD_VERSION:
        raise ArtifactError(
            f"{where} has a card of version {version}, this tltools reads up to "
            f"{CARD_VERSION}: upgrade tltools (see tltools docs install)"
        )


def _problem(card: Card) -> str | None:
    """Return what is wrong with a card of the right types, None if nothing is."""
    checks = (
        (_is_file_name(card.run), f"run {card.run[:MAX_NAME]!r} is no name of a folder"),
        (card.version >= 1, f"version {card.version} never was"),
        (
            len(card.classes) >= 2 and len(set(card.classes)) == len(card.classes),
            "it needs two or more different classes",
        ),
        (
            1 <= card.preprocessing.size <= MAX_SIZE,
            f"images of {card.preprocessing.size} pixels are not between 1 and {MAX_SIZE}",
        ),
        (
            all(value > 0 for value in card.preprocessing.std),
            f"std must be positive, not {card.preprocessing.std}",
        ),
        (all(map(_is_score, card.metrics.values())), "an accuracy is not between 0 and 1"),
        (
            1e-3 <= card.temperature <= 1e3,
            f"a temperature of {card.temperature} is none that tltools fits",
        ),
        (_depth(card.training) <= MAX_DEPTH, "it is nested too deep"),
        (
            card.export is None or _is_format_name(card.export.format),
            "its format is none that tltools writes",
        ),
    )
    problem = next((message for holds, message in checks if not holds), None)
    if problem or card.export is None or card.export.self_test is None:
        return problem
    return _self_test_problem(card.export.self_test, len(card.classes))


def _is_file_name(name: str) -> bool:
    """Tell whether a name is one part of a path on any system, and a visible one."""
    return (
        0 < len(name) <= MAX_NAME
        and not name.startswith(".")
        and name.isprintable()
        and FORBIDDEN.isdisjoint(name)
        and name == name.strip()
    )


def _is_format_name(name: str) -> bool:
    """Tell whether a name may be one of a format: this module knows none of them."""
    return name.isidentifier() and len(name) <= MAX_NAME


def _is_score(score: Score) -> bool:
    shares = (score.accuracy, score.low, score.high)
    return all(0 <= share <= 1 for share in shares) and 0 <= score.correct <= score.total < 2**53


def _depth(value: Any) -> int:
    """Return how deep lists and dictionaries are nested, up to a little beyond `MAX_DEPTH`."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        containers = [
            list(one.values()) if isinstance(one, dict) else one
            for one in level
            if isinstance(one, dict | list)
        ]
        level = [inner for container in containers for inner in container]
        depth += 1
    return depth


def _self_test_problem(test: SelfTest, num_classes: int) -> str | None:
    num = len(test.images)
    if not 1 <= num <= MAX_TEST_IMAGES or not all(map(_is_small_png, test.images)):
        return (
            f"its self-test must have 1 to {MAX_TEST_IMAGES} PNG images of at most "
            f"{MAX_TEST_SIDE} x {MAX_TEST_SIDE} pixels"
        )
    if len(test.logits) != 4 * num * num_classes:
        return f"its self-test must have {num} x {num_classes} logits of 4 bytes"
    if not (test.tolerance > 0 and math.isfinite(test.tolerance)):
        return f"its self-test's tolerance must be positive, not {test.tolerance}"
    return None


def _is_small_png(data: bytes) -> bool:
    """Tell whether data begins as a PNG of few pixels: decoding others could cost any amount."""
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    is_png = data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR"
    return is_png and 0 < width <= MAX_TEST_SIDE and 0 < height <= MAX_TEST_SIDE


def _indented(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
