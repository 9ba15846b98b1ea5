"""The facts that travel with a run or an export, as one JSON text with a version."""

from typing import Any, Literal

import msgspec

from tltools.errors import ArtifactError

CARD_VERSION = 1
CARD_KEY = "tltools.card"
"""Where an export keeps its card: a key of ONNX `metadata_props`, a TorchScript extra file."""

Resize = Literal["squash", "crop"]
Format = Literal["torchscript", "onnx"]
Precision = Literal["fp32", "fp16", "int8"]


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True):
    """How a file becomes the model's input.

    Decoding and resizing are done by `tltools.data.images.load_image`; scaling and
    normalisation, `(x / 255 - mean) / std`, are part of the model's graph.
    """

    size: int = 224
    """Height and width of the input in pixels."""
    resize: Resize = "squash"
    """`squash` to a square, or scale the short side and `crop` the centre."""
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
    """Which pictures a run was trained on."""

    name: str
    """Name of the CSV or folder."""
    fingerprint: str
    """SHA-256 over the sorted (picture SHA-256, class, split) of all rows."""
    split: str
    """`default`, `article` or `given` (the data brought its own)."""
    num_train: int
    num_val: int


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How far an export's outputs are from PyTorch's on the same pictures."""

    max_abs_logit_diff: float
    top1_agreement: float
    """Share of pictures with the same label, in [0, 1]."""
    num_pictures: int
    batch_sizes: tuple[int, ...]
    """The batch sizes that were run."""
    atol: float | None
    """The largest logit difference that would have passed; None where only labels count."""
    min_top1_agreement: float
    """The smallest agreement that would have passed."""
    accuracy_drop: float | None = None
    """PyTorch's top-1 accuracy less the export's on these pictures, in [-1, 1]."""
    max_accuracy_drop: float | None = None
    """The largest drop that would have passed; None where it was not a condition."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How the activations' ranges of an int8 export were found."""

    method: str
    """`MinMax`: the smallest and the largest value on the calibration pictures."""
    num_pictures: int
    """Pictures of the run's training split."""


class ExportFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an export adds to its run's card."""

    format: Format
    precision: Precision
    opset: int | None = None
    """ONNX opset; None for TorchScript."""
    parity: Parity
    calibration: Calibration | None = None
    """Only in int8 exports."""
    float_layers: tuple[str, ...] = ()
    """Nodes kept in fp32 so that the parity bar holds (int8), or since fp16 could not hold their
    values."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that travel with a run or an export."""

    version: int = CARD_VERSION
    run: str
    """Name of the run folder."""
    model: str
    """`cnn` or `vgg16`."""
    head: str
    """`linear` (cnn), `last-layer` or `pooled` (vgg16)."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    preprocessing: Preprocessing
    weights: Weights
    data: DataFacts
    metrics: dict[str, Score]
    """Accuracy by split: `train`, `val` and, where the data has one, `test`."""
    training: dict[str, Any]
    """The training configuration, as in the run."""
    versions: dict[str, str]
    """Versions of tltools, torch, torchvision, pillow and Python."""
    created: str
    """UTC, ISO 8601."""
    export: ExportFacts | None = None
    """Only in exports."""

    def to_json(self) -> str:
        """Return the card as JSON, indented for people."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()


def card_from_json(text: str | bytes, *, where: str) -> Card:
    """Read a card and check it.

    Args:
        text: JSON.
        where: Names the file in messages.

    Raises:
        ArtifactError: If the text is not a card, or one of a later version.
    """
    try:
        card = msgspec.json.decode(text, type=Card)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{where} has no valid tltools card: {error}") from error
    if card.version > CARD_VERSION:
        raise ArtifactError(
            f"{where} has a card of version {card.version}, this tltools reads up to "
            f"{CARD_VERSION}: upgrade with pip install --upgrade tltools"
        )
    if len(card.classes) < 2 or len(set(card.classes)) != len(card.classes):
        raise ArtifactError(f"{where}: its card needs two or more different classes")
    return card
