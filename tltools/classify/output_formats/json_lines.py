"""JSON Lines: one object per line, with the probabilities as an object keyed by class."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import msgspec

from tltools.classify.output_formats.format import (
    OutputFormat,
    Row,
    likeliest_of,
    lines_of,
    utf8_text,
)
from tltools.classify.predict import UNCERTAIN, UNKNOWN, Prediction
from tltools.errors import DataError
from tltools.regular import open_regular
from tltools.schema import DECIMALS


class JsonRow(msgspec.Struct, frozen=True):
    """A line."""

    path: str
    label: str | None
    confidence: float | None
    probabilities: dict[str, float] | None
    error: str | None
    distance: float | msgspec.UnsetType | None = msgspec.UNSET

    def short(self) -> Row:
        """Return the row without its probabilities."""
        distance = None if self.distance is msgspec.UNSET else self.distance
        shares = self.probabilities or {}
        likeliest = likeliest_of(self.label, self.confidence, tuple(shares), tuple(shares.values()))
        return Row(self.path, self.label, self.confidence, self.error, distance, likeliest)


class JsonLinesCodec:
    """Rows of JSON Lines."""

    header = b""

    def __init__(
        self,
        classes: Sequence[str],
        *,
        spreadsheet: bool = False,  # noqa: ARG002
        distance: bool = False,
    ) -> None:
        """Take the classes; `spreadsheet` has no effect on these files."""
        self.classes = classes
        self.distance = distance
        self._labels = frozenset((None, UNCERTAIN, UNKNOWN, *classes))
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(JsonRow)

    def encode(self, prediction: Prediction) -> bytes:
        """Return the row of a prediction; if there is no label, its values are null."""
        row = _json_row(prediction, self.classes)
        if self.distance:
            away = prediction.distance
            row = msgspec.structs.replace(
                row, distance=None if away is None else round(away, DECIMALS)
            )
        return self._encoder.encode(row) + b"\n"

    def text(self, text: str) -> str:
        """Return text as it is stored in a row."""
        return utf8_text(text)

    def split(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the rows of a file as bytes: its lines."""
        return iter(file)

    def read(self, file: BinaryIO) -> Iterator[tuple[Row, int]]:
        """Yield the complete rows."""
        for row, num_bytes in self.read_whole(file):
            yield row.short(), num_bytes

    def read_whole(self, file: BinaryIO) -> Iterator[tuple[JsonRow, int]]:
        """Yield the complete rows, including their probabilities."""
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                row = self._decoder.decode(line)
            except msgspec.DecodeError:
                return
            if row.label not in self._labels:
                return
            yield row, len(line)


def _json_row(prediction: Prediction, classes: Sequence[str]) -> JsonRow:
    """Return the row of a prediction with rounded probabilities by class."""
    name = utf8_text(prediction.name)
    if prediction.probabilities is None:
        error = None if prediction.error is None else utf8_text(prediction.error)
        return JsonRow(name, prediction.label, None, None, error)
    confidence = round(float(prediction.confidence or 0), DECIMALS)
    numbers = prediction.probabilities.round(DECIMALS).tolist()
    probabilities = dict(zip(classes, numbers, strict=True))
    return JsonRow(name, prediction.label, confidence, probabilities, None)


def read_json_lines(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Return the classes of the first row with probabilities, and all rows.

    Raises:
        DataError: If the file is corrupt or not a predictions file; iterating may raise it, too.
    """
    with closing(_lines(path)) as rows:
        probabilities = next((row.probabilities for row in rows if row.probabilities), {})
    # Start over: if every image failed, all rows have been read by now.
    return list(probabilities), (row.short() for row in _lines(path))


def _lines(path: Path) -> Generator[JsonRow, None, None]:
    decoder = msgspec.json.Decoder(JsonRow)
    with open_regular(path) as file:
        for number, line in enumerate(lines_of(file, path), 1):
            try:
                yield decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeError) as error:
                raise DataError(
                    f"{path} line {number:,} is not what tltools classify writes: {error}; name a "
                    "predictions file"
                ) from error


JSON_LINES = OutputFormat((".jsonl", ".ndjson"), codec=JsonLinesCodec, read=read_json_lines)
