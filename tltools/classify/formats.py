"""Rows of predictions as bytes, and back: CSV and JSON Lines."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

import msgspec

from tltools.classify.pipeline import UNCERTAIN, Prediction

DECIMALS = 6
"""Of probabilities in every format: more would be the rounding of the model's arithmetic."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a field begins with that a spreadsheet takes for a formula."""


class Row(NamedTuple):
    """What there is to know of a row that was written."""

    path: str
    """As it stands in the file."""
    label: str | None
    """A class of the model, or `UNCERTAIN`; None where the picture could not be read."""
    error: str | None


class RowFormat(Protocol):
    """Turns predictions into rows, and finds those again."""

    header: bytes
    """What a file begins with."""

    def encode(self, prediction: Prediction) -> bytes:
        """Return the row of a prediction."""
        ...

    def read(self, file: BinaryIO) -> Iterator[tuple[Row, int]]:
        """Yield the complete rows of a file behind its header, each with its size in bytes.

        They end where a row is torn, or cannot be one.
        """
        ...

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield rows as they stand in a file, from where it is; the last one may be torn."""
        ...

    def text(self, text: str) -> str:
        """Return a name, or another text, as a row holds it."""
        ...


class CsvFormat:
    """Comma-separated values: `path,label,confidence,prob_<class>...,error`, six decimals."""

    def __init__(self, classes: Sequence[str], *, spreadsheet: bool = False) -> None:
        """With `spreadsheet`, put an apostrophe before what would be taken for a formula."""
        self.text = _no_formula if spreadsheet else utf8_text
        self._plain = csv.writer(_Echo(), lineterminator="\n")
        self._quoted = csv.writer(_Echo(), lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._num_fields = len(column_names(classes))
        self._labels = {self.text(name): name for name in (*classes, UNCERTAIN)}
        self._texts = {name: text for text, name in self._labels.items()}
        self.header = self.line([self.text(name) for name in column_names(classes)])
        self._nothing = [""] * (self._num_fields - 2)

    def encode(self, prediction: Prediction) -> bytes:
        """Return the row of a prediction; without a label its fields are empty."""
        path = self.text(prediction.name)
        if prediction.probabilities is None:
            return self.line([path, *self._nothing, self.text(prediction.error or "")])
        numbers = [prediction.confidence, *prediction.probabilities.tolist()]
        texts = [f"{number:.{DECIMALS}f}" for number in numbers]
        return self.line([path, self._texts[prediction.label or ""], *texts, ""])

    def line(self, fields: Sequence[str]) -> bytes:
        """Return fields as one line, with quotes where it takes them."""
        # Before Python 3.13 the csv module leaves a carriage return unquoted if it is not part of
        # the line's end, and then reads it as one.
        careful = any("\r" in field for field in fields)
        text: Any = (self._quoted if careful else self._plain).writerow(fields)  # from _Echo
        return text.encode()

    def read(self, file: BinaryIO) -> Iterator[tuple[Row, int]]:
        """Yield the complete rows behind the header."""
        for record in self.records(file):
            row = self._row(record)
            if row is None:
                return
            yield row, len(record)

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield rows as they stand in the file. A name may contain line ends."""
        record = b""
        for line in file:
            record += line
            if record.count(b'"') % 2:  # within a quoted field, since quotes in it are doubled
                continue
            yield record
            record = b""

    def _row(self, record: bytes) -> Row | None:
        # A loss of power may leave zeros where bytes should be; no name contains one.
        if not record.endswith(b"\n") or b"\0" in record:
            return None
        try:
            fields = next(csv.reader([record.decode()], strict=True))
        except (UnicodeDecodeError, csv.Error):
            return None
        if len(fields) != self._num_fields or (fields[1] and fields[1] not in self._labels):
            return None
        return Row(fields[0], self._labels.get(fields[1]), fields[-1] or None)


class JsonLinesFormat:
    """One JSON object a line, with the probabilities as an object by class."""

    header = b""

    def __init__(self, classes: Sequence[str]) -> None:
        """Keep the classes."""
        self._classes = classes
        self._labels = frozenset((None, UNCERTAIN, *classes))
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(JsonRow)

    def encode(self, prediction: Prediction) -> bytes:
        """Return the row of a prediction; without a label its values are null."""
        return self._encoder.encode(json_row(prediction, self._classes)) + b"\n"

    def text(self, text: str) -> str:
        """Return a text as a row holds it."""
        return utf8_text(text)

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield rows as they stand in the file: its lines."""
        return iter(file)

    def read(self, file: BinaryIO) -> Iterator[tuple[Row, int]]:
        """Yield the complete rows."""
        for row, num_bytes in self.read_whole(file):
            yield Row(row.path, row.label, row.error), num_bytes

    def read_whole(self, file: BinaryIO) -> "Iterator[tuple[JsonRow, int]]":
        """Yield the complete rows with their numbers."""
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


class JsonRow(msgspec.Struct, frozen=True):
    """A row of JSON Lines."""

    path: str
    label: str | None
    confidence: float | None
    probabilities: dict[str, float] | None
    error: str | None


def json_row(prediction: Prediction, classes: Sequence[str]) -> JsonRow:
    """Return the row of a prediction with its numbers rounded, by class."""
    name = utf8_text(prediction.name)
    if prediction.probabilities is None:
        error = None if prediction.error is None else utf8_text(prediction.error)
        return JsonRow(name, prediction.label, None, None, error)
    confidence = round(float(prediction.confidence or 0), DECIMALS)
    numbers = prediction.probabilities.round(DECIMALS).tolist()
    probabilities = dict(zip(classes, numbers, strict=True))
    return JsonRow(name, prediction.label, confidence, probabilities, None)


class _Echo:
    """A file for `csv.writer`, whose `writerow` returns what `write` does: the line itself."""

    def write(self, text: str) -> str:
        return text


def column_names(classes: Sequence[str]) -> list[str]:
    """Return the columns of CSV and Parquet, in order."""
    return ["path", "label", "confidence", *(f"prob_{name}" for name in classes), "error"]


def utf8_text(text: str) -> str:
    r"""Return text that UTF-8 can hold: a byte of a name that is not UTF-8 becomes `\udcXX`."""
    return text.encode("utf-8", "backslashreplace").decode()


def _no_formula(text: str) -> str:
    safe = utf8_text(text)
    return "'" + safe if safe.startswith(FORMULA) else safe
