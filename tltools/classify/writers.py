"""Write predictions as they are made: CSV, JSON Lines or Parquet, complete or as a `.part`."""

import csv
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, Self

import msgspec

from tltools.classify.pipeline import Prediction
from tltools.errors import ConfigError, TltoolsError

STDOUT = Path("-")
DECIMALS = 6
"""Of probabilities in every format: more would be the rounding of the model's arithmetic."""
PARQUET_ROW_GROUP = 4096
"""Rows that are held in memory until they are written."""


class Writer(Protocol):
    """Writes rows in one format."""

    def write(self, prediction: Prediction) -> None:
        """Write one row."""
        ...

    def close(self) -> None:
        """Write what is left and close the file."""
        ...


class CsvWriter:
    """Comma-separated values: `path,label,confidence,prob_<class>...,error`, six decimals."""

    def __init__(self, file: IO[str], classes: Sequence[str]) -> None:
        """Write the header to `file`."""
        self._file = file
        self._nothing = [""] * (2 + len(classes))
        self._plain = csv.writer(file, lineterminator="\n")
        self._quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._write_row(column_names(classes))

    def write(self, prediction: Prediction) -> None:
        """Write one row; without a label its fields are empty."""
        path, error = _text(prediction.name), _text(prediction.error or "")
        if prediction.probabilities is None:
            self._write_row([path, *self._nothing, error])
            return
        numbers = [prediction.confidence, *prediction.probabilities.tolist()]
        texts = [f"{number:.{DECIMALS}f}" for number in numbers]
        self._write_row([path, prediction.label or "", *texts, error])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_row(self, row: Sequence[str]) -> None:
        # Before Python 3.13 the csv module leaves a carriage return unquoted if it is not part of
        # the line's end, and then reads it as one.
        careful = any("\r" in field for field in row)
        (self._quoted if careful else self._plain).writerow(row)


class JsonLinesWriter:
    """One JSON object a line, with the probabilities as an object by class."""

    def __init__(self, file: IO[str], classes: Sequence[str]) -> None:
        """Keep `file`; there is no header."""
        self._file = file
        self._classes = classes
        self._encoder = msgspec.json.Encoder()

    def write(self, prediction: Prediction) -> None:
        """Write one row; without a label its values are null."""
        row: dict[str, Any] = {
            "path": _text(prediction.name),
            "label": prediction.label,
            "confidence": None,
            "probabilities": None,
            "error": None if prediction.error is None else _text(prediction.error),
        }
        if prediction.probabilities is not None:
            row["confidence"] = round(float(prediction.confidence or 0), DECIMALS)
            numbers = prediction.probabilities.round(DECIMALS).tolist()
            row["probabilities"] = dict(zip(self._classes, numbers, strict=True))
        self._file.write(self._encoder.encode(row).decode() + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ParquetWriter:
    """Parquet with the columns of the CSV: strings, and float64 for the numbers."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        """Create `path`. pyarrow is imported here, so that the other formats start without it."""
        import pyarrow
        import pyarrow.parquet

        names = column_names(classes)
        texts = {"path", "label", "error"}
        self._schema = pyarrow.schema(
            [(name, pyarrow.string() if name in texts else pyarrow.float64()) for name in names]
        )
        self._record_batch = pyarrow.RecordBatch.from_arrays
        self._array = pyarrow.array
        self._parquet = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._nothing = [None] * (2 + len(classes))
        self._rows: list[list[Any]] = []

    def write(self, prediction: Prediction) -> None:
        """Take one row; a full row group goes to the file."""
        row: list[Any] = [_text(prediction.name)]
        if prediction.probabilities is None:
            row += self._nothing
        else:
            row += [prediction.label, round(float(prediction.confidence or 0), DECIMALS)]
            row += prediction.probabilities.round(DECIMALS).tolist()
        row.append(None if prediction.error is None else _text(prediction.error))
        self._rows.append(row)
        if len(self._rows) >= PARQUET_ROW_GROUP:
            self._write_rows()

    def close(self) -> None:
        """Write the last rows and the footer, without which nobody can read the file."""
        if self._rows:
            self._write_rows()
        self._parquet.close()

    def _write_rows(self) -> None:
        columns = zip(*self._rows, strict=True)
        arrays = [
            self._array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._parquet.write_batch(self._record_batch(arrays, schema=self._schema))
        self._rows = []


class Output:
    """The rows of one job on their way to a file, or to standard output.

    Rows go to `<output>.part` beside the output as they are made. At the end of the `with` block
    the file is put on the disk and renamed; if something stops the block, an interrupt included,
    it stays as a `.part` with its complete rows.
    """

    def __init__(self, path: Path, classes: Sequence[str], *, overwrite: bool = False) -> None:
        """Prepare to write; nothing is created before the `with` block.

        Raises:
            ConfigError: As `check_output`.
        """
        check_output(path, overwrite=overwrite)
        self.path = path
        self.part = None if path == STDOUT else path.with_name(path.name + ".part")
        """Where the rows are until the job is complete; None on standard output."""
        self.num_rows = 0
        self._classes = classes

    def __enter__(self) -> Self:
        """Create the `.part`; one that an earlier job left is replaced."""
        try:
            self._writer = self._open()
        except OSError as error:
            raise self._failure(error) from error
        return self

    def write(self, prediction: Prediction) -> None:
        """Write one row.

        Raises:
            TltoolsError: If the file cannot be written, for lack of space for instance.
        """
        try:
            self._writer.write(prediction)
        except BrokenPipeError:
            raise  # whoever reads standard output has seen enough: no error
        except OSError as error:
            raise self._failure(error) from error
        self.num_rows += 1

    def __exit__(self, kind: type[BaseException] | None, *_details: object) -> None:
        """Finish the file, or leave what there is of it."""
        if kind is not None:
            with suppress(OSError):  # the first error is the one to hear of
                self._writer.close()
            return
        try:
            self._writer.close()
            if self.part is not None:
                with self.part.open("rb") as file:
                    os.fsync(file.fileno())
                self.part.replace(self.path)
        except OSError as error:
            raise self._failure(error) from error

    def _open(self) -> Writer:
        if self.part is None:
            return CsvWriter(_Stdout(), self._classes)
        self.part.parent.mkdir(parents=True, exist_ok=True)
        if self.path.suffix.lower() == ".parquet":
            return ParquetWriter(self.part, self._classes)
        # Line buffering: each row is handed to the system when it is complete, so that even a
        # killed job leaves its rows.
        file = self.part.open("w", encoding="utf-8", newline="", buffering=1)
        try:
            return TEXT_WRITERS[self.path.suffix.lower()](file, self._classes)
        except OSError:
            with suppress(OSError):
                file.close()
            raise

    def _failure(self, error: OSError) -> TltoolsError:
        return TltoolsError(
            f"cannot write {self.part or 'standard output'}: {error.strerror or error}; "
            "choose another place with --output"
        )


TEXT_WRITERS = {".csv": CsvWriter, ".jsonl": JsonLinesWriter, ".ndjson": JsonLinesWriter}


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    Raises:
        ConfigError: If the suffix is unknown, or the file exists and `overwrite` is not set.
    """
    if path == STDOUT:
        return
    if path.suffix.lower() not in {*TEXT_WRITERS, ".parquet"}:
        raise ConfigError(
            f"--output {path} ends in {path.suffix or 'nothing'!r}; choose .csv, .jsonl "
            "(or .ndjson) or .parquet, or - for CSV on standard output"
        )
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{path} exists; replace it with --overwrite, or write elsewhere with --output"
        )


def column_names(classes: Sequence[str]) -> list[str]:
    """Return the columns of CSV and Parquet, in order."""
    return ["path", "label", "confidence", *(f"prob_{name}" for name in classes), "error"]


class _Stdout(io.TextIOWrapper):
    r"""Standard output in UTF-8 without newline translation; closing it leaves it open."""

    def __init__(self) -> None:
        sys.stdout.flush()
        super().__init__(sys.stdout.buffer, encoding="utf-8", newline="", line_buffering=True)

    def close(self) -> None:
        self.detach()


def _text(text: str) -> str:
    r"""Return text that UTF-8 can hold: a byte of a name that is not UTF-8 becomes `\udcXX`."""
    return text.encode("utf-8", "backslashreplace").decode()
