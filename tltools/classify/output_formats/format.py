"""The definition of an output format: one object that encodes, reads, converts and merges rows."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from tltools.classify.predict import UNCERTAIN, UNKNOWN, Prediction
from tltools.errors import DataError
from tltools.schema import classes_of


class Row(NamedTuple):
    """A row read from a file."""

    path: str
    """The path as written in the file."""
    label: str | None
    """A class of the model, `UNKNOWN` or `UNCERTAIN`; None if the image could not be read."""
    confidence: float | None
    error: str | None
    distance: float | None = None
    """None if the file has no distances, too."""
    likeliest: str | None = None
    """Of an image that is `UNKNOWN` or `UNCERTAIN`: the class whose probability the confidence is;
    None for others, and if it was not read."""


def likeliest_of(
    label: str | None,
    confidence: float | None,
    classes: Sequence[str],
    probabilities: Sequence[float | None],
) -> str | None:
    """Return the class that an unknown or uncertain image may be; None for other images.

    Its probability is the confidence: with a threshold of a class, not always the largest one.

    Args:
        label: The label of the image.
        confidence: In [0, 1].
        classes: The C classes.
        probabilities: In [0, 1], C of them.
    """
    if label in classes or label not in (UNCERTAIN, UNKNOWN) or confidence is None:
        return None
    away = [math.inf if one is None else abs(one - confidence) for one in probabilities]
    return classes[away.index(min(away))] if away else None


class RowCodec(Protocol):
    """Encodes predictions as the rows of one job, and reads them back."""

    classes: Sequence[str]
    distance: bool
    """Whether the rows have the distances of the images."""
    header: bytes
    """The first bytes of a file."""

    def encode(self, prediction: Prediction) -> bytes:
        """Return the row of a prediction."""
        ...

    def read(self, file: BinaryIO) -> Iterator[tuple[Row, int]]:
        """Yield the complete rows of a file after its header, each with its size in bytes.

        Stops at the first truncated or invalid row.
        """
        ...

    def split(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the rows of a file as bytes, from its position; the last may be truncated."""
        ...

    def text(self, text: str) -> str:
        """Return a name or other text as it is stored in a row."""
        ...


class MakeCodec(Protocol):
    """Makes the codec of a job's rows."""

    def __call__(
        self, classes: Sequence[str], *, spreadsheet: bool = False, distance: bool = False
    ) -> RowCodec:
        """Take the model's classes, and which rows are wanted.

        With `spreadsheet`, spreadsheets are protected from formulas; with `distance`, the rows have
        the distances of the images.
        """
        ...


class ShardFile(Protocol):
    """The complete output of a shard that is being merged."""

    @property
    def num_bytes(self) -> int:
        """Size of the complete file, in bytes."""
        ...

    def open(self) -> BufferedReader:
        """Open the file for reading.

        Raises:
            DataError: If it cannot be opened.
        """
        ...

    def changed(self) -> DataError:
        """Return the error for a file that is not the one that its job wrote."""
        ...


Turn = tuple[ShardFile, int]
"""The shard whose rows come next in the listing, and how many of them."""


def merge_rows(
    shards: Sequence[ShardFile], turns: Iterable[Turn], output: Path, codec: RowCodec
) -> Iterator[int]:
    """Write the rows of shards unchanged to one file; yield the number of rows of each turn.

    A file is opened for each turn, so that there may be more shards than a process can have open
    files; the rows of a turn fit into a single read anyway.

    Raises:
        DataError: If a shard does not have the expected rows.
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


MAX_LINE_BYTES = 2**24
"""Longest line of a predictions file: the probabilities of half a million classes."""


def lines_of(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield the lines of a predictions file, which may be anything.

    Raises:
        DataError: If a line is too long, such as the hole of a file.
    """
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{path} has a line of more than {MAX_LINE_BYTES:,} bytes; name a predictions file"
            )
        yield line


@dataclass(frozen=True)
class OutputFormat:
    """A file format for predictions, with everything there is to know about it."""

    suffixes: tuple[str, ...]
    """Lowercase suffixes; the first one names the format."""
    codec: MakeCodec
    """Makes the codec of the rows that are appended to the unfinished file."""
    read: Callable[[Path], tuple[list[str], Iterator[Row]]]
    """Returns the classes and the rows of a complete file; the file alone is enough. The classes
    may be missing if every image failed. Raises DataError, at once or while iterating, if the file
    is corrupt or not a predictions file; and OSError."""
    merge: Callable[[Sequence[ShardFile], Iterable[Turn], Path, RowCodec], Iterator[int]] = (
        merge_rows
    )
    """Writes the rows of shards to one file; yields the number of rows each time. Raises
    DataError."""
    convert: Callable[[BinaryIO, Path, RowCodec], None] | None = None
    """Converts the file of rows to the output, given their codec; for formats whose files cannot
    be appended to. None if the file of rows is the output."""
    requires: str | None = None
    """A package that must be installed."""
    has_spreadsheet_mode: bool = False

    @property
    def name(self) -> str:
        """The first suffix, without the dot."""
        return self.suffixes[0].removeprefix(".")

    @property
    def is_installed(self) -> bool:
        """Whether the package that it requires, if any, is installed."""
        return self.requires is None or find_spec(self.requires) is not None


def classes_of_columns(columns: Sequence[str], path: Path) -> list[str]:
    """Return the classes that the columns of a table name.

    Raises:
        DataError: If they are not the columns of a predictions file; the message names `path`.
    """
    classes = classes_of(columns)
    if classes is None:
        raise DataError(
            f"{path} is not what tltools classify writes: its columns are "
            f"{', '.join(columns[:8]) or 'none'}; name a predictions file or a run folder"
        )
    return classes


def damaged_row(path: Path, number: int) -> DataError:
    """Return the error for an invalid row, counted from 1, of a complete file."""
    return DataError(f"{path} row {number:,} is damaged; recreate the file")


def utf8_text(text: str) -> str:
    r"""Return text that every reader of a file takes: UTF-8, and without zero bytes.

    Bytes of a name that are not UTF-8 become `\udcXX`, and a zero byte, which a list or an archive
    may give a name, becomes `\x00`.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", r"\x00")
