"""Write predictions as they are made: CSV, JSON Lines or Parquet, complete or as a `.part`."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tltools.classify.formats import (
    CsvFormat,
    JsonLinesFormat,
    JsonRow,
    RowFormat,
    column_names,
)
from tltools.classify.pipeline import Prediction
from tltools.classify.resume import Kept, Part, cannot_write
from tltools.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow

STDOUT = Path("-")
PARQUET = ".parquet"
SUFFIXES = (".csv", ".jsonl", ".ndjson", PARQUET)
PARQUET_ROW_GROUP = 4096
"""Rows that are held in memory until they are written."""
SYNC_EVERY_S = 5.0
"""A loss of power costs no more rows than were made in that time."""


class Output:
    """The rows of one job on their way to a file, or to standard output.

    Rows go to `<output>.part` beside the output as they are made, each handed to the system when
    it is complete, so that a killed job leaves its rows. For Parquet, whose files cannot be read
    before they are complete, these are rows of JSON Lines. At the end of the `with` block the
    file is put on the disk and renamed; if something stops the block, an interrupt included, it
    stays as a `.part` with its complete rows.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str],
        *,
        overwrite: bool = False,
        spreadsheet: bool = False,
        opened: Part | None = None,
        kept: Kept | None = None,
        on_complete: Callable[[Path, int], None] | None = None,
    ) -> None:
        """Prepare to write; nothing is created before the `with` block.

        Args:
            path: `.csv`, `.jsonl` (`.ndjson`) or `.parquet`; `-` for CSV on standard output.
            classes: The model's, in order.
            overwrite: Replace an output that exists.
            spreadsheet: Put an apostrophe before fields that a spreadsheet takes for a formula.
            opened: The output's part, which is open already; None to open it in the block.
            kept: The rows in `opened` to go on after.
            on_complete: Is told where the complete file is, and how many rows it has, just before
                it gets its name.

        Raises:
            ConfigError: As `check_output`.
        """
        check_output(path, overwrite=overwrite, spreadsheet=spreadsheet)
        self.path = path
        self._part = opened if opened is not None or path == STDOUT else Part(path)
        self._kept = kept
        self._on_complete = on_complete
        self._classes = classes
        self._format = row_format(path, classes, spreadsheet=spreadsheet)
        # One assignment changes both: whatever interrupts the program finds them in agreement.
        self._num_rows_and_bytes = (0, 0)

    @property
    def part(self) -> Path | None:
        """Where the rows are until the job is complete; None on standard output."""
        return None if self._part is None else self._part.path

    @property
    def num_rows(self) -> int:
        """Complete rows, those of an earlier job that is gone on with included."""
        return self._num_rows_and_bytes[0]

    def __enter__(self) -> Self:
        """Open the `.part`; one that an earlier job left is replaced, or gone on with if asked.

        Raises:
            ConfigError: If another job writes it.
        """
        self._next_sync = time.monotonic() + SYNC_EVERY_S
        try:
            if self._part is not None:
                if not self._part.is_open:
                    self._part.open()
                    self._part.forget()
                if self._kept is not None:
                    self._num_rows_and_bytes = (self._kept.num_rows, self._kept.num_bytes)
                self._part.cut(self._num_rows_and_bytes[1])
            if not self._num_rows_and_bytes[1]:
                self._append(self._format.header)
                self._num_rows_and_bytes = (0, len(self._format.header))
        except OSError as error:
            self._stop()
            raise cannot_write(self.part or "standard output", error) from error
        return self

    def write(self, prediction: Prediction) -> None:
        """Write one row.

        Raises:
            TltoolsError: If the file cannot be written, for lack of space for instance.
        """
        self.write_encoded([self._format.encode(prediction)])

    def write_encoded(self, rows: Sequence[bytes]) -> None:
        """Write rows that are encoded as `row_encoder` does it.

        Raises:
            TltoolsError: If the file cannot be written, for lack of space for instance.
        """
        data = b"".join(rows)
        num_rows, num_bytes = self._num_rows_and_bytes
        try:
            self._append(data)
            self._num_rows_and_bytes = (num_rows + len(rows), num_bytes + len(data))
            if self._part is not None and time.monotonic() > self._next_sync:
                self._part.sync()
                self._next_sync = time.monotonic() + SYNC_EVERY_S
        except BrokenPipeError:
            raise  # whoever reads standard output has seen enough: no error
        except OSError as error:
            raise cannot_write(self.part or "standard output", error) from error

    def __exit__(self, kind: type[BaseException] | None, *_details: object) -> None:
        """Finish the file, or leave what there is of it."""
        if kind is not None:
            self._stop()
            return
        if self._part is None:
            return
        try:
            converted = self.path.suffix.lower() == PARQUET
            if converted:
                self._convert()
            elif self._on_complete is not None:
                self._on_complete(self._part.path, self.num_rows)
            self._part.finish(rename=not converted)
        except BaseException as error:
            self._stop()
            if isinstance(error, OSError):
                raise cannot_write(self.part or "standard output", error) from error
            raise

    def _append(self, data: bytes) -> None:
        if self._part is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            self._part.append(data)

    def _stop(self) -> None:
        """Leave the complete rows, and no file where there are none."""
        if self._part is None:
            return
        num_rows, num_bytes = self._num_rows_and_bytes
        with suppress(OSError):  # the first error is the one to hear of
            self._part.cut(num_bytes if num_rows else 0)
        with suppress(OSError):
            self._part.close()

    def _convert(self) -> None:
        """Make the Parquet file of the rows in the part."""
        from tltools.atomic import atomic_path

        assert self._part is not None
        with self._part.path.open("rb") as file, atomic_path(self.path) as temporary:
            rows = JsonLinesFormat(self._classes).read_whole(file)
            write_parquet(temporary, (row for row, _ in rows), self._classes)
            if self._on_complete is not None:
                self._on_complete(temporary, self.num_rows)


def parquet_schema(classes: Sequence[str]) -> "pyarrow.Schema":
    """Return the columns of Parquet: strings, and float64 for the numbers."""
    import pyarrow

    texts = {"path", "label", "error"}
    return pyarrow.schema(
        [
            (name, pyarrow.string() if name in texts else pyarrow.float64())
            for name in column_names(classes)
        ]
    )


def write_parquet(path: Path, rows: Iterable[JsonRow], classes: Sequence[str]) -> None:
    """Write rows as Parquet with the columns of the CSV.

    pyarrow is imported here, so that the other formats do without it.
    """
    import pyarrow
    import pyarrow.parquet

    schema = parquet_schema(classes)

    def values(row: JsonRow) -> Iterator[str | float | None]:
        yield from (row.path, row.label, row.confidence)
        numbers = row.probabilities or {}
        yield from (numbers.get(name) for name in classes)
        yield row.error

    iterator = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(iterator, PARQUET_ROW_GROUP)):
            columns = zip(*map(values, group), strict=True)
            arrays = [
                pyarrow.array(column, type=field.type)
                for column, field in zip(columns, schema, strict=True)
            ]
            writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))


def row_format(path: Path, classes: Sequence[str], *, spreadsheet: bool = False) -> RowFormat:
    """Return the format of an output's rows, until it is complete, by its suffix."""
    if path == STDOUT or path.suffix.lower() == ".csv":
        return CsvFormat(classes, spreadsheet=spreadsheet)
    return JsonLinesFormat(classes)


@lru_cache(maxsize=4)
def row_encoder(
    path: Path, classes: tuple[str, ...], *, spreadsheet: bool = False
) -> Callable[[Prediction], bytes]:
    """Return what encodes the rows of an output; see `row_format`."""
    return row_format(path, classes, spreadsheet=spreadsheet).encode


def check_output(path: Path, *, overwrite: bool, spreadsheet: bool = False) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    Raises:
        ConfigError: If the suffix is unknown or not one for spreadsheets, pyarrow is not installed
            for Parquet, or the file exists and `overwrite` is not set.
    """
    if path == STDOUT:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--output {path.name} ends in {path.suffix or 'nothing'!r}; choose .csv, .jsonl "
            "(or .ndjson) or .parquet, or - for CSV on standard output"
        )
    if spreadsheet and path.suffix.lower() != ".csv":
        raise ConfigError(f"--spreadsheet is for CSV; --output {path.name} ends in {path.suffix}")
    if path.suffix.lower() == PARQUET and find_spec("pyarrow") is None:
        raise ConfigError(
            f"--output {path} needs pyarrow, which is not installed: pip install pyarrow, or "
            "choose .csv or .jsonl"
        )
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{path} exists; replace it with --overwrite, or write elsewhere with --output"
        )
