"""Read a CSV as people save it: any usual delimiter, UTF-8 or UTF-16, with or without `sep=`."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tltools.data.findings import shorten
from tltools.data.suffixes import is_image_name
from tltools.data.text import clean, encoding_of
from tltools.errors import DataError, cause_of
from tltools.regular import read_regular
from tltools.wording import plural

MAX_TABLE_BYTES = 2**30
"""Largest CSV: ten million images with paths of 100 characters."""

_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_EXCEL_HINT = re.compile(r'"?sep=(.)"?[ \t]*\r?\n', re.IGNORECASE)
"""First line by which Excel names the delimiter."""


class Record(NamedTuple):
    """One row of a CSV."""

    line: int
    """Number of its last line in the file, from 1."""
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """A CSV with a header and at least one row; all rows have as many cells as the header."""

    path: Path
    header: tuple[str, ...]
    records: tuple[Record, ...]

    def column(self, index: int) -> list[str]:
        """Return the cells of a column, stripped."""
        return [record.cells[index].strip() for record in self.records]

    def lines_where(self, wrong: Sequence[bool]) -> str:
        """Name the lines of the rows for which `wrong` is true: `line 3`, `lines 3, 5`."""
        lines = [record.line for record, bad in zip(self.records, wrong, strict=True) if bad]
        return f"{plural(len(lines), 'line')} {shorten(lines)}"


def read_table(path: Path) -> Table:
    """Read a CSV.

    The delimiter is the one that Excel's `sep=` names, or else the most frequent one in the header.
    Blank lines are skipped, and so are comments (`#`) above the header.

    Raises:
        DataError: If it cannot be read, is in another encoding, or is not a table with a header.
    """
    text = _text_of(path)
    hint = _EXCEL_HINT.match(text)
    if hint:
        text = "\n" + text[hint.end() :]  # keeps the numbers of the lines
    empty = DataError(
        f"{path} is empty: it needs a header and one line per image, such as image,label"
    )
    if not text.strip().strip("".join(_DELIMITERS)):
        raise empty
    delimiter = hint[1] if hint and hint[1] in _DELIMITERS else _delimiter_of(text)
    header, records = _parse(path, text, delimiter)
    if not header:  # nothing but empty quotes
        raise empty
    _check_header(path, header)
    if not records:
        raise DataError(f"{path} has a header but no rows: add one line per image")
    _check_rows(path, header, records, delimiter)
    return Table(path, tuple(header), tuple(records))


def _text_of(path: Path) -> str:
    try:
        data = read_regular(path, max_bytes=MAX_TABLE_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {path}: {cause_of(error)}; make it readable") from error
    encoding = encoding_of(data)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8" else "UTF-16"
        raise DataError(
            f"{path} is not {name} (byte {error.start:,} is 0x{error.object[error.start]:02x}): "
            "save it as 'CSV UTF-8', or convert it with iconv"
        ) from error


def _delimiter_of(text: str) -> str:
    """Return the delimiter of the header: a label or an image's name may contain another one."""
    lines = text.lstrip("\r\n ").splitlines()
    first = next((line for line in lines if not _is_comment(line)), "")
    return max(_DELIMITERS, key=first.count)


def _is_comment(line: str) -> bool:
    return line.startswith("#") and not any(delimiter in line for delimiter in _DELIMITERS)


def _parse(path: Path, text: str, delimiter: str) -> tuple[list[str], list[Record]]:
    """Return the cells of the header, and the rows that are not blank."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    filled = _filled(reader)
    try:
        header = [clean(cell) for cell in next(filled, Record(0, [])).cells]
        return header, list(filled)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; fix the line") from error


def _filled(reader: "csv._reader") -> Iterator[Record]:  # type: ignore[name-defined]
    """Yield the rows with any text, without the comments above the header."""
    above = True
    for cells in reader:
        comment = above and len(cells) == 1 and cells[0].startswith("#")
        if not comment and any(cell.strip() for cell in cells):
            above = False
            yield Record(reader.line_num, cells)


def _check_header(path: Path, header: Sequence[str]) -> None:
    if len(header) < 2:
        raise DataError(
            f"{path} has only one column ({header[0]!r}): put an image and a label in each line, "
            "separated by a comma, a semicolon or a tab"
        )
    named = next((name for name in header if is_image_name(name)), None)
    if named is not None:
        raise DataError(
            f"{path} has no header: its first line names an image ({named}); "
            "add a first line such as image,label"
        )


def _check_rows(
    path: Path, header: Sequence[str], records: Sequence[Record], delimiter: str
) -> None:
    ragged = [record.line for record in records if len(record.cells) != len(header)]
    if ragged:
        raise DataError(
            f"{path} has {len(header)} columns, but not in "
            f"{plural(len(ragged), 'line')} {shorten(ragged)}: put cells that contain "
            f"{_DELIMITERS[delimiter]} in double quotes"
        )
    repeated = [
        record.line
        for record in records
        if clean(record.cells[0]) == header[0] and list(map(clean, record.cells)) == list(header)
    ]
    if repeated:
        raise DataError(
            f"{path} repeats its header in {plural(len(repeated), 'line')} {shorten(repeated)}: "
            "delete it there"
        )
