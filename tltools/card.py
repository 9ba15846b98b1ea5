"""The facts that travel with a run or an export, as one versioned JSON text.

A card may come from an untrusted source. Everything that other code relies on is checked here: its
size, its numbers, and the names that become parts of paths.
"""

import math
from bisect import bisect_left
from typing import Any, Literal

import msgspec

from tltools.errors import ArtifactError
from tltools.wording import grouped

CARD_VERSION = 1
CARD_KEY = "tltools.card"
"""Name of the card in an export: a key of ONNX `metadata_props`, an extra file of PyTorch's."""

MAX_CARD_BYTES = 2 * 2**20
"""Limit for a card; one with 20,000 classes takes about half of it."""
MAX_SIZE = 2048
"""Largest height and width of a model's input in pixels."""
MAX_NAME = 100
"""Maximum length of a run's name, which becomes part of folder and file names."""
FORBIDDEN = frozenset('/\\:*?"<>|')
"""Characters that some operating systems forbid in file names."""
CROP_RATIO = 256 / 224
"""Default of `Preprocessing.crop_ratio`, as in most of torchvision's presets."""
MAX_CROP_RATIO = 4.0
MAX_DEPTH = 20
"""Maximum nesting of `training`."""
MAX_TEST_IMAGES = 16
MAX_TEST_SIDE = 256
"""Largest height and width of a self-test's image in pixels."""

DISTANCE_LEVELS = (0.0, *map(float, range(1, 100)), 99.5, 99.9, 100.0)
"""The percentiles that a card has of distances; those between are interpolated."""

Resize = Literal["squash", "crop"]
Interpolation = Literal["bilinear", "bicubic"]
Precision = Literal["fp32", "fp16", "int8"]


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True):
    """How an image file becomes the model's input.

    `tltools.data.images.load_image` decodes and resizes; scaling and normalization,
    `(x / 255 - mean) / std`, are part of the model's graph.
    """

    size: int = 224
    """Height and width of the input in pixels."""
    resize: Resize = "squash"
    """`squash` to a square, or scale the shorter side and `crop` the center."""
    crop_ratio: float = CROP_RATIO
    """`crop` scales the shorter side to this multiple of `size`, rounded to whole pixels."""
    interpolation: Interpolation = "bilinear"
    """How pixels are resampled, with antialiasing."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Per channel (RGB), on the 0-1 scale."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Per channel (RGB), on the 0-1 scale."""

    @property
    def scaled_side(self) -> int:
        """What `crop` scales the shorter side to, in pixels."""
        return round(self.size * self.crop_ratio)

    def shape(self, num_images: int) -> tuple[int, int, int, int]:
        """Return the shape of a batch of the model's input, (N, size, size, 3)."""
        return num_images, self.size, self.size, 3


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Top-1 accuracy with its 95% interval and the counts behind it."""

    accuracy: float
    """`correct / total`, in [0, 1]."""
    low: float
    """Lower end of the 95% Wilson interval."""
    high: float
    """Upper end of the 95% Wilson interval."""
    correct: int
    total: int


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """The source of the weights before training."""

    source: str
    """`random`, torchvision's name of the weights, or the name of a local file."""
    sha256: str = ""
    """SHA-256 of the file's bytes; empty for random weights."""


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The images that a run was trained on."""

    name: str
    """Name of the CSV or folder."""
    fingerprint: str
    """SHA-256 over the sorted (image SHA-256, class, split) of all rows."""
    split: str
    """`default`, `article` or `given` (the data came with a split)."""
    num_train: int
    num_val: int


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How far an export's outputs are from PyTorch's on the same images."""

    max_abs_logit_diff: float
    top1_agreement: float
    """Fraction of images with the same label, in [0, 1]."""
    num_images: int
    num_training_images: int = 0
    """Number of these that the model was trained on, compared where validation images were too few
    for one to differ; they do not count for `accuracy_drop`."""
    batch_sizes: tuple[int, ...]
    """Batch sizes that were run."""
    atol: float | None
    """Largest logit difference that passes; None if only labels were checked."""
    rtol: float = 0.0
    """A difference of this fraction of `max_abs_logit` passes as well."""
    max_abs_logit: float | None = None
    """Largest absolute logit of PyTorch; None in older exports."""
    rounding: float | None = None
    """Largest difference of PyTorch's own logits from float64, on the images that differ most; a
    few times this passes as well. None if it was not needed and not measured."""
    min_top1_agreement: float
    """Smallest agreement that passes."""
    accuracy_drop: float | None = None
    """PyTorch's top-1 accuracy minus the export's on the validation images, in [-1, 1]."""
    max_accuracy_drop: float | None = None
    """Largest drop that passes; None if it was not checked."""

    @property
    def num_validation_images(self) -> int:
        """Number of images that the model was not trained on."""
        return self.num_images - self.num_training_images

    @property
    def images(self) -> str:
        """How many images were compared, and how many of each split if of several."""
        trained, total = self.num_training_images, grouped(self.num_images, "image")
        if not trained:
            return total
        return f"{total} ({self.num_validation_images:,} validation, {trained:,} training)"


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The result of comparing an export with PyTorch on one device."""

    device: Literal["cpu", "cuda"]
    provider: str
    """onnxruntime's execution provider that ran the export, or `torch`."""
    parity: Parity


class Confidence(msgspec.Struct, frozen=True, kw_only=True):
    """How the model's probabilities are calibrated: softmax(logits / temperature)."""

    temperature: float = 1.0
    num_images: int = 0
    """Number of validation images that it was fitted on."""
    ece_before: float | None = None
    """Expected calibration error of softmax(logits) on them, in [0, 1]; None without images."""
    ece_after: float | None = None
    """The same with a temperature that was fitted without the image (held out)."""
    nll_before: float | None = None
    """Mean negative log-likelihood in nats, as for `ece_before`."""
    nll_after: float | None = None
    """Mean negative log-likelihood in nats, as for `ece_after`."""
    note: str = ""
    """Why the temperature stayed 1, if it did."""


class Proportion(msgspec.Struct, frozen=True, kw_only=True):
    """A fraction of images with its 95% interval and the counts behind it."""

    value: float
    """`count / total`, in [0, 1]."""
    low: float
    """Lower end of the 95% Wilson interval."""
    high: float
    """Upper end of the 95% Wilson interval."""
    count: int
    total: int


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold that was chosen for a purpose, and what it reaches on labeled images.

    The figures are of the images that it was chosen on, which is optimistic; those that are held
    out are of thresholds that were chosen without the image, by cross-validation.
    """

    value: float
    """Smallest probability of the class, or minimum confidence, in [0, 1]."""
    class_name: str | None
    """The class whose probability it is compared with; None: the label's, of any class."""
    figure: Literal["precision", "recall"]
    """What was to be reached."""
    at_least: float
    """The target, in (0, 1]."""
    images: str
    """What images it was chosen on, such as `validation images of labels.csv`."""
    num_images: int
    precision: Proportion
    """Of the images that get the class, those that are of the class; without a class: of the images
    that keep their label, those whose label is right."""
    recall: Proportion | None
    """Of the images of the class, those that get it; None without a class."""
    coverage: Proportion
    """Of all images, those that get the class, or keep their label."""
    held_out_precision: float | None
    """None if no image was kept."""
    held_out_recall: float | None
    held_out_coverage: float


class Beyond(msgspec.Struct, frozen=True, kw_only=True):
    """How many validation images are farther away than a percentile of the training images."""

    level: float
    """The percentile, in (0, 100)."""
    validation: Proportion


class Distances(msgspec.Struct, frozen=True, kw_only=True):
    """How far training images are from the others, by the output `distance` of an export.

    An image is unlike the training data if it is farther away than a percentile of these. They are
    distances of training images in fp32, by parameters that were fitted without the image.
    """

    percentiles: tuple[float, ...]
    """The distances at `DISTANCE_LEVELS`."""
    num_images: int
    """Number of distinct training images."""
    beyond: tuple[Beyond, ...] = ()
    """Shares of validation images; empty without validation images."""
    max_diff: float | None = None
    """Largest difference of a distance from PyTorch's; None in runs, as for the following ones."""
    rtol: float | None = None
    """Largest difference that passes, as a fraction of the distance."""
    num_compared: int = 0
    """Number of images that the distances were compared on."""

    def at(self, percentile: float) -> float:
        """Return the distance at a percentile, in [0, 100], interpolated linearly."""
        above = max(1, bisect_left(DISTANCE_LEVELS, percentile))
        low, high = DISTANCE_LEVELS[above - 1 : above + 1]
        first, last = self.percentiles[above - 1 : above + 1]
        return first + (last - first) * (percentile - low) / (high - low)

    def percentile_of(self, distance: float) -> float:
        """Return the percentile of a distance, in [0, 100]; the inverse of `at`."""
        values = self.percentiles
        if distance <= values[0] or distance >= values[-1]:
            return 0.0 if distance <= values[0] else 100.0
        above = bisect_left(values, distance)
        (low, high), (first, last) = (
            DISTANCE_LEVELS[above - 1 : above + 1],
            values[above - 1 : above + 1],
        )
        return low + (high - low) * (distance - first) / (last - first)


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How the activation ranges of an int8 export were calibrated."""

    method: str
    """`MinMax`: the smallest and the largest value on the calibration images."""
    num_images: int
    """Number of images, from the run's training split."""
    requested: int | None = None
    """Number of images that were asked for, of which the split may have fewer; None in older
    exports."""
    weight_bits: int = 8
    """Bits that the weights use. With 7, sums of products do not saturate on any processor; with 8,
    as in exports from before it was recorded, they may on x86 without VNNI."""


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """A few drawn images and PyTorch's logits, replayed whenever an export is opened."""

    images: tuple[bytes, ...]
    """PNG files."""
    logits: bytes
    """PyTorch's logits, (N, C) for the N images, as little-endian float32."""
    tolerance: float
    """Largest difference allowed between the export's logits and these, on any machine."""


class ExportFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that an export adds to its run's card."""

    format: str
    """Name of a `tltools.runtime.model_formats.ModelFormat`."""
    precision: Precision
    opset: int | None = None
    """ONNX opset; None in other formats."""
    parity: Parity
    """Parity on the device that ran all images: the GPU, if there was one."""
    verified: tuple[Verified, ...] = ()
    """Parity on each device, starting with that of `parity`; empty in exports from before several
    devices were checked."""
    fp16_exercised: bool | None = None
    """For fp16 exports: whether a device that verified it computes in fp16, which onnxruntime's CPU
    provider does not; None in other and in earlier exports."""
    calibration: Calibration | None = None
    """Set only in int8 exports."""
    float_layers: tuple[str, ...] = ()
    """Nodes kept in fp32 to meet the parity limits (int8), or because their values could overflow
    fp16."""
    self_test: SelfTest | None = None
    """None in exports from before self-tests existed."""
    distances: Distances | None = None
    """None in exports without the output `distance`."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that travel with a run or an export."""

    version: int = CARD_VERSION
    run: str
    """Name of the run folder."""
    model: str
    """Name of the backbone."""
    head: str
    """Name of the backbone's head."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    preprocessing: Preprocessing
    weights: Weights
    data: DataFacts
    metrics: dict[str, Score]
    """Accuracy by split: `train`, `val` and, if the data has one, `test`."""
    confidence: Confidence | None = None
    """None in runs and exports from before calibration existed; the temperature is then 1."""
    threshold: Threshold | None = None
    """None until `evaluate` chooses one for the run; `classify` applies it only on request."""
    training: dict[str, Any]
    """The run's training settings."""
    versions: dict[str, str]
    """Versions of tltools, torch, torchvision, pillow and Python."""
    created: str
    """UTC, ISO 8601."""
    export: ExportFacts | None = None
    """Set only in exports."""

    @property
    def name(self) -> str:
        """Name of the run, or of the export: `cnn`, or `cnn onnx fp32`."""
        facts = self.export
        return self.run if facts is None else f"{self.run} {facts.format} {facts.precision}"

    @property
    def owner(self) -> tuple[str, tuple[str, ...], str]:
        """What an export must share with a file of its name to replace it."""
        return self.model, self.classes, self.data.fingerprint

    @property
    def temperature(self) -> float:
        """Divisor of the logits before softmax."""
        return 1.0 if self.confidence is None else self.confidence.temperature

    def to_json(self) -> str:
        """Return the card as indented JSON."""
        return _indented(self)

    def to_text(self) -> str:
        """Return the card as JSON for display, with the self-test's bytes summarized."""
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
        ArtifactError: If the text is not a card, has a newer version, or holds invalid values:
            numbers out of range, or a run's name that cannot be a folder name.
    """
    if len(text) > MAX_CARD_BYTES:
        raise ArtifactError(
            f"{where} has a card of {len(text):,} bytes, more than {MAX_CARD_BYTES:,}: "
            "it was not written by tltools"
        )
    try:
        _check_version(text, where)
        card = msgspec.json.decode(text, type=Card)
    except RecursionError as error:
        raise ArtifactError(
            f"{where} has no valid tltools card: it is nested too deeply"
        ) from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ArtifactError(f"{where} has no valid tltools card: {error}") from error
    problem = _problem(card)
    if problem:
        raise ArtifactError(f"{where} has no valid tltools card: {problem}")
    return card


def with_threshold(text: str | bytes, threshold: Threshold, *, where: str, of: Card) -> str:
    """Return a card's JSON with a threshold; all else stays, also what this version ignores.

    Args:
        text: The card's JSON.
        threshold: The threshold.
        where: Names the file in messages.
        of: The card as it was when the threshold was chosen.

    Raises:
        ArtifactError: If the text is no longer that card, apart from an earlier threshold.
    """
    found = card_from_json(text, where=where)
    if msgspec.structs.replace(found, threshold=of.threshold) != of:
        raise ArtifactError(f"{where} has changed in the meantime: run the command again")
    document = msgspec.json.decode(text)
    document["threshold"] = msgspec.to_builtins(threshold)
    return _indented(document)


class _Versioned(msgspec.Struct):
    version: int = CARD_VERSION


def _check_version(text: str | bytes, where: str) -> None:
    """Raise ArtifactError if the card has a newer version, whatever else it contains."""
    version = msgspec.json.decode(text, type=_Versioned).version
    if version > CARD_VERSION:
        raise ArtifactError(
            f"{where} has a card of version {version}, but this tltools reads only up to version "
            f"{CARD_VERSION}: upgrade tltools (see tltools docs install)"
        )


def _problem(card: Card) -> str | None:
    """Return what is wrong with the values of a well-typed card, or None."""
    checks = (
        (_is_file_name(card.run), f"run {card.run[:MAX_NAME]!r} is not a valid folder name"),
        (card.version >= 1, f"version {card.version} does not exist"),
        (
            len(card.classes) >= 2 and len(set(card.classes)) == len(card.classes),
            "it needs two or more different classes",
        ),
        (
            1 <= card.preprocessing.size <= MAX_SIZE,
            f"an input size of {card.preprocessing.size} pixels is not between 1 and {MAX_SIZE}",
        ),
        (
            1 <= card.preprocessing.crop_ratio <= MAX_CROP_RATIO,
            f"a crop ratio of {card.preprocessing.crop_ratio} is not between 1 and "
            f"{MAX_CROP_RATIO:g}",
        ),
        (
            all(value > 0 for value in card.preprocessing.std),
            f"std must be positive, not {card.preprocessing.std}",
        ),
        (all(map(_is_score, card.metrics.values())), "an accuracy is not between 0 and 1"),
        (
            1e-3 <= card.temperature <= 1e3,
            f"a temperature of {card.temperature} is out of range",
        ),
        (_is_threshold(card), "its threshold is out of range, or of a class that it lacks"),
        (_depth(card.training) <= MAX_DEPTH, "it is nested too deeply"),
        (
            card.export is None or _is_format_name(card.export.format),
            "its format is not one that tltools writes",
        ),
    )
    problem = next((message for holds, message in checks if not holds), None)
    problem = problem or distances_problem(card.export and card.export.distances)
    if problem or card.export is None or card.export.self_test is None:
        return problem
    return _self_test_problem(card.export.self_test, len(card.classes))


def _is_file_name(name: str) -> bool:
    """Return whether a name is a valid file name on any system, and not hidden."""
    return (
        0 < len(name) <= MAX_NAME
        and not name.startswith(".")
        and name.isprintable()
        and FORBIDDEN.isdisjoint(name)
        and name == name.strip()
    )


def _is_format_name(name: str) -> bool:
    """Return whether a name could name a format; this module does not know the formats."""
    return name.isidentifier() and len(name) <= MAX_NAME


def _is_score(score: Score) -> bool:
    shares = (score.accuracy, score.low, score.high)
    return all(0 <= share <= 1 for share in shares) and 0 <= score.correct <= score.total < 2**53


def _is_threshold(card: Card) -> bool:
    """Return whether a card has no threshold, or one that can be shown and applied."""
    one = card.threshold
    if one is None:
        return True
    shares = (one.precision, one.coverage, *((one.recall,) if one.recall else ()))
    held_out = (one.held_out_precision, one.held_out_recall, one.held_out_coverage)
    return (
        0 <= one.value <= 1
        and 0 < one.at_least <= 1
        and (one.class_name is None or one.class_name in card.classes)
        and all(0 <= share <= 1 for part in shares for share in (part.value, part.low, part.high))
        and all(0 <= part.count <= part.total < 2**53 for part in shares)
        and all(share is None or 0 <= share <= 1 for share in held_out)
    )


def distances_problem(distances: Distances | None) -> str | None:
    """Return what is wrong with the values of well-typed distances, or None."""
    if distances is None:
        return None
    values = distances.percentiles
    if len(values) != len(DISTANCE_LEVELS) or not all(map(math.isfinite, values)):
        return f"its distances need {len(DISTANCE_LEVELS)} finite percentiles"
    if values[0] < 0 or list(values) != sorted(values):
        return "its percentiles of distances must be at least 0 and ascending"
    return None


def _depth(value: Any) -> int:
    """Return how deeply lists and dictionaries are nested; stop just beyond `MAX_DEPTH`."""
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
    """Return whether data starts like a PNG of few pixels; others could be costly to decode."""
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    is_png = data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR"
    return is_png and 0 < width <= MAX_TEST_SIDE and 0 < height <= MAX_TEST_SIDE


def _indented(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
