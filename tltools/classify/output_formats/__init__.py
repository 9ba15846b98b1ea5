"""The output formats of predictions: each is one object in its own file, listed here."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tltools.classify.output_formats.csv_rows import CSV
from tltools.classify.output_formats.format import OutputFormat, Row, RowCodec
from tltools.classify.output_formats.json_lines import JSON_LINES
from tltools.classify.output_formats.parquet import PARQUET
from tltools.classify.predict import Prediction
from tltools.errors import ConfigError
from tltools.wording import either

__all__ = [
    "OUTPUT_FORMATS",
    "STDOUT",
    "OutputFormat",
    "Row",
    "RowCodec",
    "all_suffixes",
    "first_suffixes",
    "known_suffixes",
    "output_format",
    "row_encoder",
]

STDOUT = Path("-")
"""Standard output, which receives CSV."""
OUTPUT_FORMATS: list[OutputFormat] = [CSV, JSON_LINES, PARQUET]


def output_format(path: Path, *, parameter: str | None = None) -> OutputFormat:
    """Return the format of a predictions file, by its suffix.

    Args:
        path: The file; `-` is standard output.
        parameter: Name of the parameter that gave the path, for the error message.

    Raises:
        ConfigError: If the suffix is unknown; the message lists the known ones.
    """
    if path == STDOUT:
        return CSV
    suffix = path.suffix.lower()
    for one in OUTPUT_FORMATS:
        if suffix in one.suffixes:
            return one
    raise ConfigError(
        f"{f'`{parameter}={path}`' if parameter else path} "
        f"{f'ends in {path.suffix!r}' if path.suffix else 'has no suffix'}; choose "
        f"{known_suffixes()}"
    )


def all_suffixes() -> tuple[str, ...]:
    """Return the suffixes of all formats, in lowercase."""
    return tuple(suffix for one in OUTPUT_FORMATS for suffix in one.suffixes)


def known_suffixes() -> str:
    """Return the suffixes of all formats for a message: `.csv, .jsonl (or .ndjson) or .parquet`."""
    names = []
    for one in OUTPUT_FORMATS:
        first, *others = one.suffixes
        names.append(f"{first} (or {', '.join(others)})" if others else first)
    return either(names)


def first_suffixes(where: Callable[[OutputFormat], bool] = lambda _: True) -> str:
    """Return the first suffix of each format that meets a condition: `.csv, .jsonl or .parquet`."""
    return either([one.suffixes[0] for one in OUTPUT_FORMATS if where(one)])


@lru_cache(maxsize=4)
def row_encoder(
    path: Path, classes: tuple[str, ...], *, spreadsheet: bool = False, distance: bool = False
) -> Callable[[Prediction], bytes]:
    """Return the function that encodes the rows of an output; repeated calls are free."""
    codec = output_format(path).codec(classes, spreadsheet=spreadsheet, distance=distance)
    return codec.encode
