"""Counts of a job's results, and the file of images that failed."""

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from tltools.atomic import atomic_path
from tltools.classify.output_formats.csv_rows import CsvCodec
from tltools.classify.output_formats.format import utf8_text
from tltools.classify.predict import Rows
from tltools.classify.unfinished import (
    cannot_write,
    exists_already,
    record_path,
    unfinished_path,
)
from tltools.data.images import printable_name
from tltools.errors import ConfigError, TltoolsError


class Tally:
    """Counts of a job's results, and the errors for `errors_to`."""

    def __init__(self, errors_to: Path | None, *, spreadsheet: bool) -> None:
        """Start counting from zero."""
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        """The first image with each reason, and its own reason."""
        self.replaces = False
        """Whether an existing file of failed images may be replaced."""
        self._path = errors_to
        self._format = CsvCodec((), spreadsheet=spreadsheet)
        self._failed: BinaryIO | None = None if errors_to is None else _nameless_file(errors_to)
        self._write(self._format.start(("path", "error")))

    def add(self, name: str, label: str | None, error: str | None) -> None:
        """Count an image."""
        if label is None:
            kind = kind_of_error(name, error or "")
            self.reasons[kind] += 1
            if kind not in self.examples:
                self.examples[kind] = utf8_text(f"{name}: {reason_in(name, error or '')}")
            fields = [self._format.text(name), self._format.text(error or "")]
            self._write(self._format.line(fields))
        else:
            self.counts[label] += 1

    def add_all(self, rows: Rows) -> None:
        """Count the images of rows."""
        self.counts.update(label for label in rows.labels if label is not None)
        for name, error in rows.errors:
            self.add(name, None, error)

    def by_class(self, classes: Sequence[str]) -> dict[str, int]:
        """Return the number of images by class, in the order of `classes`."""
        return {name: self.counts[name] for name in classes}

    @property
    def num_failed(self) -> int:
        """Number of images that could not be read."""
        return self.reasons.total()

    @property
    def errors(self) -> dict[str, int]:
        """Number of images that could not be read, by reason, most frequent first."""
        return dict(self.reasons.most_common())

    def save(self) -> None:
        """Write the file of failed images, completely or not at all.

        Raises:
            ConfigError: If another program has written a file there in the meantime.
            TltoolsError: If it cannot be written.
        """
        if self._path is None or self._failed is None:
            return
        if not self.replaces:
            self.refuse_other_file()
        try:
            self._failed.seek(0)
            with atomic_path(self._path) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(self._failed, file)
        except OSError as error:
            raise _cannot_write_errors(self._path, error) from error

    def refuse_other_file(self) -> None:
        """Refuse to replace a file of failed images unless it holds what has been counted.

        Raises:
            ConfigError: If it does not: this job did not write it.
        """
        if self._path is None or self._failed is None or not self._path.exists():
            return
        self._failed.seek(0)
        try:
            same = self._path.read_bytes() == self._failed.read()
        except OSError as error:
            raise _cannot_write_errors(self._path, error) from error
        if not same:
            raise exists_already(self._path, parameter="errors_to")
        self.replaces = True

    def close(self) -> None:
        """Discard the collected errors."""
        if self._failed is not None:
            with suppress(OSError):
                self._failed.close()

    def _write(self, line: bytes) -> None:
        if self._path is None or self._failed is None:
            return
        try:
            self._failed.write(line)
        except OSError as error:
            raise _cannot_write_errors(self._path, error) from error


def _nameless_file(errors_to: Path) -> BinaryIO:
    """Open an unnamed temporary file in the folder of `errors_to`."""
    import tempfile  # here, because most jobs do without it

    try:
        errors_to.parent.mkdir(parents=True, exist_ok=True)
        return cast("BinaryIO", tempfile.TemporaryFile(dir=errors_to.parent))
    except OSError as error:
        raise _cannot_write_errors(errors_to, error) from error


def _cannot_write_errors(path: Path, error: OSError) -> TltoolsError:
    return cannot_write(path, error, parameter="errors_to")


def check_errors_to(path: Path, output: Path, *, overwrite: bool) -> None:
    """Reject a path for the errors that must not be written."""
    if path.absolute() == output.absolute():
        raise ConfigError(f"`errors_to=` and `output=` are both {path}; choose different files")
    if path.absolute() in (unfinished_path(output.absolute()), record_path(output.absolute())):
        raise ConfigError(f"`errors_to={path}` is where the rows of {output} are; choose another")
    if path.is_dir():
        raise ConfigError(f"`errors_to={path}` is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise exists_already(path, parameter="errors_to")


def kind_of_error(name: str, error: str) -> str:
    """Return an error without file name and numbers, so that equal kinds are counted together.

    A remark in parentheses that has a number, such as how many bytes are missing, is left out.
    """
    reason = re.sub(r" \([^()]*\d[^()]*\)", "", reason_in(name, error))
    return re.sub(r"\b\d[\d,.]*", "N", reason)


def reason_in(name: str, error: str) -> str:
    """Return an error of an image without the image's name."""
    _, found, reason = error.partition(f" {printable_name(name)}: ")
    return reason if found else error
