"""What an output format is: one object with what encodes, reads, converts and merges its rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from tltools.classify.pipeline import Prediction
from tltools.errors import DataError

DECIMALS = 6
"""Of probabilities in every format: more would be the rounding of the model's arithmetic."""


class Row(NamedTuple):
    """A row that was read back."""

    path: str
    """As it stands in the file."""
    label: str | None
    """A class of the model, or `UNCERTAIN`; None where the image could not be read."""
    confidence: float | None
    error: str | None


class RowCodec(Protocol):
    """Turns predictions into the rows of one job, and finds those again."""

    classes: Sequence[str]
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

    def split(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield rows as they stand in a file, from where it is; the last one may be torn."""
        ...

    def text(self, text: str) -> str:
        """Return a name, or another text, as a row holds it."""
        ...


class MakeCodec(Protocol):
    """Makes the codec of a job's rows."""

    def __call__(self, classes: Sequence[str], *, spreadsheet: bool = False) -> RowCodec:
        """Take the model's classes, and whether spreadsheets must not see formulas."""
        ...


class ShardFile(Protocol):
    """The complete output of a shard, which is to be merged."""

    @property
    def num_bytes(self) -> int:
        """Size of the file when it was complete."""
        ...

    def open(self) -> BufferedReader:
        """Open the file.

        Raises:
            DataError: If that cannot be done.
        """
        ...

    def changed(self) -> DataError:
        """Return the error for a file that is not the one that its job left."""
        ...


Turn = tuple[ShardFile, int]
"""Whose rows come next in the listing, and how many of them."""


def merge_rows(
    shards: Sequence[ShardFile], turns: Iterable[Turn], output: Path, codec: RowCodec
) -> Iterator[int]:
    """Write the rows of shards to one file as they stand in theirs; yield how many, each time.

    A file is opened for each turn, so that there may be more shards than files can be open at
    once; a turn's rows fit into what one read fetches anyway.

    Raises:
        DataError: If a shard does not have the rows that it should.
    """
    positions = {shard: _after_header(shard, codec) for shard in shards}
    with output.open("wb") as merged:
        merged.write(codec.header)
        for shard, num_rows in turns:
            with shard.open() as file:
                file.seek(positions[shard])
                rows = list(islice(codec.split(file), num_rows))
            if len(rows) < num_rows:
                raise shard.changed()
            data = b"".join(rows)
            positions[shard] += len(data)
            merged.write(data)
            yield num_rows
    for shard, position in positions.items():
        if position != shard.num_bytes:
            raise shard.changed()


def _after_header(shard: ShardFile, codec: RowCodec) -> int:
    with shard.open() as file:
        if file.read(len(codec.header)) != codec.header:
            raise shard.changed()
    return len(codec.header)


@dataclass(frozen=True)
class OutputFormat:
    """A kind of file that predictions are written to: all that there is to know of it."""

    suffixes: tuple[str, ...]
    """In lower case; the first one names the format."""
    codec: MakeCodec
    """Of the rows while they are made, which are appended to a file one after the other."""
    read: Callable[[Path], tuple[list[str], Iterator[Row]]]
    """Returns the classes and the rows of a complete file, for which nothing is known beforehand.
    The classes may be missing where every image failed. Raises DataError, then or later, if the
    file is damaged or no file of predictions, and OSError."""
    merge: Callable[[Sequence[ShardFile], Iterable[Turn], Path, RowCodec], Iterator[int]] = (
        merge_rows
    )
    """Writes the rows of shards to one file; yields how many, each time. Raises DataError."""
    convert: Callable[[BinaryIO, Path, Sequence[str]], None] | None = None
    """Writes the output from the file of rows, where the file itself is not the output: a format
    whose files cannot be appended to. Takes the classes, too."""
    requires: str | None = None
    """A package that has to be installed."""
    has_spreadsheet_mode: bool = False

    @property
    def name(self) -> str:
        """The first suffix without its dot."""
        return self.suffixes[0].removeprefix(".")


def column_names(classes: Sequence[str]) -> list[str]:
    """Return the columns of formats that are tables, in order."""
    return ["path", "label", "confidence", *(f"prob_{name}" for name in classes), "error"]


def classes_of_columns(columns: Sequence[str], path: Path) -> list[str]:
    """Return the classes that a table's columns speak of.

    Raises:
        DataError: If they are not the columns of a file of predictions; names `path`.
    """
    classes = [name.removeprefix("prob_") for name in columns if name.startswith("prob_")]
    if columns[:3] != ["path", "label", "confidence"] or columns[-1:] != ["error"] or not classes:
        raise DataError(
            f"{path} is not what tltools classify writes: its columns are "
            f"{', '.join(columns[:8]) or 'none'}; name its output, or a run's folder"
        )
    return classes


def damaged_row(path: Path, number: int) -> DataError:
    """Return the error for a row of a complete file, from 1, that cannot be one."""
    return DataError(f"{path} row {number:,} is damaged; make the file again")


def utf8_text(text: str) -> str:
    r"""Return text that UTF-8 can hold: a byte of a name that is not UTF-8 becomes `\udcXX`."""
    return text.encode("utf-8", "backslashreplace").decode()
