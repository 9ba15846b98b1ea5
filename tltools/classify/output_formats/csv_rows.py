"""CSV: `path,label,confidence,prob_<class>...,error[,distance]`, with six decimals."""

import csv
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tltools.classify.output_formats.format import (
    OutputFormat,
    Row,
    classes_of_columns,
    damaged_row,
    likeliest_of,
    lines_of,
    utf8_text,
)
from tltools.classify.predict import UNCERTAIN, UNKNOWN, Prediction
from tltools.errors import DataError
from tltools.regular import open_regular
from tltools.schema import DECIMALS, DISTANCE, ERROR, column_names

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of fields that a spreadsheet reads as a formula."""


class CsvCodec:
    """Rows of comma-separated values."""

    def __init__(
        self, classes: Sequence[str], *, spreadsheet: bool = False, distance: bool = False
    ) -> None:
        """Take the classes; with `spreadsheet`, write what spreadsheets read as it is meant.

        They take a file without a byte order mark for one in the system's old encoding, and fields
        that begin like a formula for one, unless there is an apostrophe before them.
        """
        self.classes = classes
        self.distance = distance
        self._mark = BOM_UTF8 if spreadsheet else b""
        self.text = _no_formula if spreadsheet else utf8_text
        self._plain = csv.writer(_Echo(), lineterminator="\n")
        self._quoted = csv.writer(_Echo(), lineterminator="\n", quoting=csv.QUOTE_ALL)
        columns = column_names(classes, distance=distance)
        self._num_fields = len(columns)
        self._error_at = columns.index(ERROR)
        self._labels = {self.text(name): name for name in (*classes, UNCERTAIN, UNKNOWN)}
        self._texts = {name: text for text, name in self._labels.items()}
        self.header = self.start([self.text(name) for name in columns])
        self._nothing = [""] * (self._error_at - 1)

    def encode(self, prediction: Prediction) -> bytes:
        """Return the row of a prediction; if there is no label, its fields are empty."""
        path = self.text(prediction.name)
        if prediction.probabilities is None:
            failed = [path, *self._nothing, self.text(prediction.error or "")]
            return self.line([*failed, ""] if self.distance else failed)
        numbers = [prediction.confidence, *prediction.probabilities.tolist()]
        texts = [f"{number:.{DECIMALS}f}" for number in numbers]
        row = [path, self._texts[prediction.label or ""], *texts, ""]
        if self.distance:
            away = prediction.distance
            row.append("" if away is None else f"{away:.{DECIMALS}f}")
        return self.line(row)

    def start(self, columns: Sequence[str]) -> bytes:
        """Return the first line of a file."""
        return self._mark + self.line(columns)

    def line(self, fields: Sequence[str]) -> bytes:
        """Return fields as one line, quoted where necessary."""
        # Before Python 3.13, the csv module does not quote a carriage return that is not part of
        # the line terminator, and then reads it as one.
        careful = any("\r" in field for field in fields)
        text: Any = (self._quoted if careful else self._plain).writerow(fields)  # from _Echo
        return text.encode()

    def read(self, file: BinaryIO) -> Iterator[tuple[Row, int]]:
        """Yield the complete rows after the header."""
        for record in self.split(file):
            row = self._row(record)
            if row is None:
                return
            yield row, len(record)

    def split(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the rows of a file as bytes. A name may contain line breaks."""
        record = b""
        for line in file:
            record += line
            if record.count(b'"') % 2:  # within a quoted field, since quotes in it are doubled
                continue
            yield record
            record = b""

    def _row(self, record: bytes) -> Row | None:
        # A power failure may leave zero bytes; `utf8_text` leaves none.
        if not record.endswith(b"\n") or b"\0" in record:
            return None
        try:
            fields = next(csv.reader([record.decode()], strict=True))
            confidence = float(fields[2]) if fields[2] else None
            distance = float(fields[-1]) if self.distance and fields[-1] else None
        except (UnicodeDecodeError, csv.Error, ValueError, IndexError):
            return None
        if len(fields) != self._num_fields or (fields[1] and fields[1] not in self._labels):
            return None
        label, error = self._labels.get(fields[1]), fields[self._error_at] or None
        return Row(fields[0], label, confidence, error, distance)


class _Echo:
    """A file for `csv.writer`, whose `writerow` returns the result of `write`: the line itself."""

    def write(self, text: str) -> str:
        return text


def read_csv(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Return the classes and the rows of a complete file, written with or without `spreadsheet`.

    Raises:
        DataError: If the file is corrupt or not a predictions file; iterating may raise it, too.
    """
    lines = _fields(path)
    columns = next(lines)
    classes = classes_of_columns(columns, path)
    distance_at = columns.index(DISTANCE) if DISTANCE in columns else None
    return classes, _rows(lines, classes, columns.index(ERROR), distance_at, path)


def read_columns(path: Path) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        DataError: If it cannot be read as CSV.
        OSError: If it cannot be read at all.
    """
    return next(_fields(path))


def _fields(path: Path) -> Iterator[list[str]]:
    try:
        with open_regular(path) as file:
            lines = (
                line.decode("utf-8" if number else "utf-8-sig")
                for number, line in enumerate(lines_of(file, path))
            )
            rows = csv.reader(lines, strict=True)
            yield next(rows, [])
            yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}; recreate it") from error


def _rows(
    lines: Iterator[list[str]],
    classes: Sequence[str],
    error_at: int,
    distance_at: int | None,
    path: Path,
) -> Iterator[Row]:
    known, end = frozenset(classes), 3 + len(classes)
    for number, fields in enumerate(lines, 1):
        likeliest = None
        try:
            label, confidence = fields[1] or None, float(fields[2]) if fields[2] else None
            failure = fields[error_at] or None
            away = "" if distance_at is None else fields[distance_at]
            distance = float(away) if away else None
            if label is not None and label not in known:
                label = without_apostrophe(label)
            if label is not None and label not in known:
                shares = [float(one) for one in fields[3:end]]
                likeliest = likeliest_of(label, confidence, classes, shares)
        except (IndexError, ValueError) as error:
            raise damaged_row(path, number) from error
        yield Row(fields[0], label, confidence, failure, distance, likeliest)


def without_apostrophe(text: str) -> str:
    """Return a field without the apostrophe added for spreadsheets."""
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


def _no_formula(text: str) -> str:
    safe = utf8_text(text)
    return "'" + safe if safe.startswith(FORMULA) else safe


CSV = OutputFormat((".csv",), codec=CsvCodec, read=read_csv, has_spreadsheet_mode=True)
