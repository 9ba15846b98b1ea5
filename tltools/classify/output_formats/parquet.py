"""Parquet: the columns of CSV with types, converted from rows of JSON Lines.

pyarrow is imported lazily, so that the other formats do not need it.
"""

from collections.abc import Iterable, Iterator, Sequence
from io import SEEK_END
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tltools.classify.output_formats.format import (
    OutputFormat,
    Row,
    RowCodec,
    ShardFile,
    Turn,
    classes_of_columns,
    damaged_row,
    likeliest_of,
)
from tltools.classify.output_formats.json_lines import JsonLinesCodec, JsonRow
from tltools.classify.predict import UNCERTAIN, UNKNOWN
from tltools.errors import DataError, cause_of
from tltools.regular import open_regular
from tltools.schema import column_names, prob_column

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP = 4096
"""Number of rows held in memory until they are written."""


def convert_rows(rows: BinaryIO, output: Path, codec: RowCodec) -> None:
    """Convert rows of JSON Lines to a Parquet file.

    Raises:
        OSError: If a row is damaged: no row may be missing from the output.
    """
    num_bytes = 0

    def whole() -> Iterator[JsonRow]:
        nonlocal num_bytes
        for row, size in JsonLinesCodec(codec.classes).read_whole(rows):
            num_bytes += size
            yield row

    write_parquet(output, whole(), codec.classes, distance=codec.distance)
    if num_bytes != rows.seek(0, SEEK_END):
        raise OSError("a row was damaged after it was written")


def write_parquet(
    path: Path, rows: Iterable[JsonRow], classes: Sequence[str], *, distance: bool = False
) -> None:
    """Write rows in groups of `ROW_GROUP`."""
    import pyarrow
    import pyarrow.parquet

    schema = _schema(classes, distance=distance)

    def values(row: JsonRow) -> Iterator[str | float | None]:
        yield from (row.path, row.label, row.confidence)
        numbers = row.probabilities or {}
        yield from (numbers.get(name) for name in classes)
        yield row.error
        if distance:
            yield row.short().distance

    iterator = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(iterator, ROW_GROUP)):
            columns = zip(*map(values, group), strict=True)
            arrays = [
                pyarrow.array(column, type=field.type)
                for column, field in zip(columns, schema, strict=True)
            ]
            writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))


def _schema(classes: Sequence[str], *, distance: bool) -> "pyarrow.Schema":
    """Return the schema: strings, and float64 for numbers."""
    import pyarrow

    texts = {"path", "label", "error"}
    return pyarrow.schema(
        [
            (name, pyarrow.string() if name in texts else pyarrow.float64())
            for name in column_names(classes, distance=distance)
        ]
    )


def read_parquet(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Return the classes and the rows of a file; one row group is in memory at a time.

    Raises:
        DataError: If the file is corrupt or not a predictions file; iterating may raise it, too.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with open_regular(path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
            columns = list(file.schema_arrow.names)
    except (pyarrow.ArrowException, OSError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    names = [name for name in Row._fields if name in columns]
    classes = classes_of_columns(columns, path)
    return classes, _rows(path, names, classes)


def _rows(path: Path, names: Sequence[str], classes: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number, limited = 0, {UNCERTAIN, UNKNOWN}.difference(classes)
    try:
        # Not read_table, which would read a folder's name as a partition.
        with open_regular(path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
            probs = [prob_column(name) for name in classes]
            for batch in file.iter_batches(batch_size=ROW_GROUP, columns=[*names, *probs]):
                columns = (batch.column(name).to_pylist() for name in names)
                for place, values in enumerate(zip(*columns, strict=True)):
                    name, label, confidence, error, *further = values
                    number += 1
                    value = None if confidence is None else float(confidence)
                    away = None if not further or further[0] is None else float(further[0])
                    shares = [
                        batch.column(one)[place].as_py()
                        for one in (probs if label in limited else ())
                    ]
                    likeliest = likeliest_of(label, value, classes, shares)
                    yield Row(str(name or ""), label or None, value, error or None, away, likeliest)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    except (TypeError, ValueError) as error:
        raise damaged_row(path, number) from error


def _unreadable(path: Path, error: Exception) -> Exception:
    """Return the error for a file that is damaged, or the system's own for one that it refuses."""
    if isinstance(error, OSError) and error.errno:  # Arrow raises OSError for damage, too
        return error
    return DataError(f"{path} cannot be read as Parquet: {cause_of(error)}; recreate it")


def merge_parquet(
    shards: Sequence[ShardFile], turns: Iterable[Turn], output: Path, codec: RowCodec
) -> Iterator[int]:
    """Merge the rows of Parquet files into one; yield the number of rows written each time.

    Memory: one row group per shard, and one of the output.

    Raises:
        DataError: If a shard does not have the expected rows.
    """
    import pyarrow
    import pyarrow.parquet

    schema = _schema(codec.classes, distance=codec.distance)
    sources = {shard: _ShardRows(shard, schema) for shard in shards}
    waiting: list[pyarrow.Table] = []
    num_waiting = 0
    with pyarrow.parquet.ParquetWriter(output, schema) as writer:
        for shard, num_rows in turns:
            waiting.extend(sources[shard].take(num_rows))
            num_waiting += num_rows
            if num_waiting >= ROW_GROUP:  # turns divide it
                writer.write_table(pyarrow.concat_tables(waiting).combine_chunks())
                yield num_waiting
                waiting.clear()
                num_waiting = 0
        if waiting:
            writer.write_table(pyarrow.concat_tables(waiting).combine_chunks())
            yield num_waiting
    for source in sources.values():
        source.check_end()


class _ShardRows:
    """The rows of a shard in order, one row group in memory at a time."""

    def __init__(self, shard: ShardFile, schema: "pyarrow.Schema") -> None:
        """Take a shard whose file has this schema."""
        self._shard = shard
        self._schema = schema
        self._group: pyarrow.Table = schema.empty_table()
        self._next_group = 0
        self._start = 0

    def take(self, num_rows: int) -> "Iterator[pyarrow.Table]":
        """Yield tables with the next `num_rows` rows.

        Raises:
            DataError: If there are fewer.
        """
        while num_rows:
            if self._start == len(self._group) and not self._read_group():
                raise self._shard.changed()
            some = self._group.slice(self._start, num_rows)
            self._start += len(some)
            num_rows -= len(some)
            yield some

    def check_end(self) -> None:
        """Check that all rows were taken.

        Raises:
            DataError: If some are left.
        """
        if self._start < len(self._group) or self._read_group():
            raise self._shard.changed()

    def _read_group(self) -> bool:
        """Read the next row group; return whether there was one."""
        import pyarrow
        import pyarrow.parquet

        try:
            with self._shard.open() as file, pyarrow.parquet.ParquetFile(file) as content:
                if self._next_group == content.num_row_groups:
                    return False
                self._group = content.read_row_group(self._next_group).cast(self._schema)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise self._shard.changed() from error
        self._next_group += 1
        self._start = 0
        return True


PARQUET = OutputFormat(
    (".parquet",),
    codec=JsonLinesCodec,
    read=read_parquet,
    merge=merge_parquet,
    convert=convert_rows,
    requires="pyarrow",
)
