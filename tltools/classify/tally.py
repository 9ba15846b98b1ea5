"""What became of a job's images, in numbers; and the file of those that failed."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from tltools.atomic import atomic_path
from tltools.classify.output_formats.csv_rows import CsvCodec
from tltools.classify.pipeline import Rows
from tltools.classify.unfinished import cannot_write
from tltools.errors import ConfigError, TltoolsError


class Tally:
    """What became of a job's images, in numbers, and the errors for `errors_to`."""

    def __init__(self, errors_to: Path | None, *, spreadsheet: bool) -> None:
        """Count from nothing."""
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._path = errors_to
        self._format = CsvCodec((), spreadsheet=spreadsheet)
        self._failed: BinaryIO | None = None if errors_to is None else _nameless_file(errors_to)
        self._write("path", "error")

    def add(self, name: str, label: str | None, error: str | None) -> None:
        """Count an image."""
        if label is None:
            self.reasons[kind_of_error(name, error or "")] += 1
            self._write(self._format.text(name), self._format.text(error or ""))
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
        """Images that could not be read."""
        return self.reasons.total()

    @property
    def errors(self) -> dict[str, int]:
        """Images that could not be read, by reason, the most frequent first."""
        return dict(self.reasons.most_common())

    def save(self) -> None:
        """Write the images that failed, completely or not at all.

        Raises:
            TltoolsError: If that cannot be done.
        """
        if self._path is None or self._failed is None:
            return
        try:
            self._failed.seek(0)
            with atomic_path(self._path) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(self._failed, file)
        except OSError as error:
            raise _cannot_write_errors(self._path, error) from error

    def close(self) -> None:
        """Let go of what was collected."""
        if self._failed is not None:
            with suppress(OSError):
                self._failed.close()

    def _write(self, *fields: str) -> None:
        if self._path is None or self._failed is None:
            return
        try:
            self._failed.write(self._format.line(fields))
        except OSError as error:
            raise _cannot_write_errors(self._path, error) from error


def _nameless_file(errors_to: Path) -> BinaryIO:
    """Open a file without a name beside `errors_to`, of which nothing is left in any case."""
    import tempfile  # here, because most jobs do without it

    try:
        errors_to.parent.mkdir(parents=True, exist_ok=True)
        return cast("BinaryIO", tempfile.TemporaryFile(dir=errors_to.parent))
    except OSError as error:
        raise _cannot_write_errors(errors_to, error) from error


def _cannot_write_errors(path: Path, error: OSError) -> TltoolsError:
    return cannot_write(path, error, option="--errors-to")


def check_errors_to(path: Path, output: Path, *, overwrite: bool) -> None:
    """Refuse a place for the errors that must not be written."""
    if path.absolute() == output.absolute():
        raise ConfigError(f"--errors-to and --output are both {path}; name another file for one")
    if path.is_dir():
        raise ConfigError(f"--errors-to {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{path} exists; replace it with --overwrite, or write elsewhere with --errors-to"
        )


def kind_of_error(name: str, error: str) -> str:
    """Return an error without the file's name and numbers, so that there are few of them."""
    _, found, reason = error.partition(f" {_last_name(name)}: ")
    return re.sub(r"\d[\d,.]*", "N", reason if found else error)


def _last_name(name: str) -> str:
    """Return an image's name without its folders, as errors show it."""
    last = os.path.basename(name)  # noqa: PTH119 - of a million images, perhaps
    return last if last.isprintable() else ascii(last)
