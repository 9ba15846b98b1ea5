"""Write predictions as they are made, to an unfinished file that finally becomes the output."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Self

from tltools.atomic import atomic_path, refuse_lost_link
from tltools.classify.output_formats import STDOUT, first_suffixes, output_format
from tltools.classify.predict import Prediction
from tltools.classify.resume import Kept
from tltools.classify.unfinished import UnfinishedOutput, cannot_write, exists_already
from tltools.errors import ConfigError, TltoolsError

SYNC_EVERY_S = 5.0
"""Interval of flushes to disk: a power failure loses at most the rows of this many seconds."""


class Output:
    """Writes the rows of one job to a file or to standard output.

    Rows are written to `<output>.part` beside the output as they are made, and each is handed to
    the system when complete, so that a killed job leaves its rows. At the end of the `with` block
    the file is flushed to disk and renamed, or converted if the format cannot be appended to. If
    the block is interrupted, the `.part` file stays with its complete rows.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str],
        *,
        overwrite: bool = False,
        spreadsheet: bool = False,
        distance: bool = False,
        opened: UnfinishedOutput | None = None,
        kept: Kept | None = None,
        on_complete: Callable[[Path, int], None] | None = None,
    ) -> None:
        """Prepare to write; nothing is created before the `with` block.

        Args:
            path: Its suffix is one of `OUTPUT_FORMATS`; `-` for CSV on standard output.
            classes: The model's classes, in order.
            overwrite: Replace an existing output.
            spreadsheet: Write a CSV that spreadsheets read as it is meant (see `CsvCodec`).
            distance: Write the distances of the images, too.
            opened: The unfinished output, if it is already open; None to open it in the block.
            kept: The rows in `opened` to resume after.
            on_complete: Called with the path of the complete file and its number of rows, just
                before the file is renamed.

        Raises:
            ConfigError: See `check_output`.
        """
        check_output(path, overwrite=overwrite, spreadsheet=spreadsheet)
        self.path = path
        self._overwrite = overwrite
        self._unfinished = (
            opened if opened is not None or path == STDOUT else UnfinishedOutput(path)
        )
        self._kept = kept
        self._on_complete = on_complete
        self._format = output_format(path)
        self._codec = self._format.codec(classes, spreadsheet=spreadsheet, distance=distance)
        # One assignment changes both, so that an interrupt always finds them consistent.
        self._num_rows_and_bytes = (0, 0)

    @property
    def unfinished_path(self) -> Path | None:
        """Path of the rows until the job is complete; None on standard output."""
        return None if self._unfinished is None else self._unfinished.path

    @property
    def num_rows(self) -> int:
        """Number of complete rows, including those of the job that is resumed."""
        return self._num_rows_and_bytes[0]

    def __enter__(self) -> Self:
        """Open the `.part` file; one left by an earlier job is replaced unless it is resumed.

        Raises:
            ConfigError: If another job is writing it.
        """
        self._next_sync = time.monotonic() + SYNC_EVERY_S
        try:
            if self._unfinished is not None:
                if not self._unfinished.is_open:
                    self._unfinished.open()
                    self._unfinished.forget()
                if self._kept is not None:
                    self._num_rows_and_bytes = (self._kept.num_rows, self._kept.num_bytes)
                self._unfinished.cut(self._num_rows_and_bytes[1])
            if not self._num_rows_and_bytes[1]:
                self._append(self._codec.header)
                self._num_rows_and_bytes = (0, len(self._codec.header))
        except OSError as error:
            self._stop()
            raise self._cannot_write(error) from error
        return self

    def write(self, prediction: Prediction) -> None:
        """Write one row.

        Raises:
            TltoolsError: If the file cannot be written, for example because the disk is full.
        """
        self.write_encoded([self._codec.encode(prediction)])

    def write_encoded(self, rows: Sequence[bytes]) -> None:
        """Write rows encoded by `row_encoder`.

        Raises:
            TltoolsError: If the file cannot be written, for example because the disk is full.
        """
        data = b"".join(rows)
        num_rows, num_bytes = self._num_rows_and_bytes
        try:
            self._append(data)
            self._num_rows_and_bytes = (num_rows + len(rows), num_bytes + len(data))
            if self._unfinished is not None and time.monotonic() > self._next_sync:
                self._unfinished.sync()
                self._next_sync = time.monotonic() + SYNC_EVERY_S
        except BrokenPipeError:
            raise  # the reader of standard output has closed it: no error
        except OSError as error:
            raise self._cannot_write(error) from error

    def __exit__(self, kind: type[BaseException] | None, *_details: object) -> None:
        """Finish the file, or keep its complete rows after an error."""
        if kind is not None:
            self._stop()
            return
        if self._unfinished is None:
            return
        try:
            self._check_free()
            self._unfinished.check_own()
            is_converted = self._format.convert is not None
            if is_converted:
                self._convert()
            elif self._on_complete is not None:
                self._on_complete(self._unfinished.path, self.num_rows)
            self._unfinished.finish(rename=not is_converted)
        except BaseException as error:
            self._stop()
            if isinstance(error, OSError):
                raise self._cannot_write(error) from error
            raise

    def _check_free(self) -> None:
        """Refuse to replace a file that another program has written in the meantime."""
        if not self._overwrite and self.path.exists():
            raise exists_already(self.path)

    def _append(self, data: bytes) -> None:
        if self._unfinished is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            self._unfinished.append(data)

    def _stop(self) -> None:
        """Keep the complete rows; remove the file if there are none."""
        if self._unfinished is None:
            return
        num_rows, num_bytes = self._num_rows_and_bytes
        with suppress(OSError):  # the first error is the one to report
            self._unfinished.cut(num_bytes if num_rows else 0)
        with suppress(OSError):
            self._unfinished.close()

    def _convert(self) -> None:
        """Convert the rows to the output."""
        assert self._unfinished is not None
        assert self._format.convert is not None
        with self._unfinished.path.open("rb") as rows, atomic_path(self.path) as temporary:
            self._format.convert(rows, temporary, self._codec)
            if self._on_complete is not None:
                self._on_complete(temporary, self.num_rows)

    def _cannot_write(self, error: OSError) -> TltoolsError:
        return cannot_write(self.unfinished_path or "standard output", error)


def check_output(path: Path, *, overwrite: bool, spreadsheet: bool = False) -> None:
    """Reject an output that cannot or must not be written, before any work is done.

    Raises:
        ConfigError: If the suffix is unknown or has no spreadsheet mode, a package that the format
            needs is not installed, or the file exists and `overwrite` is not set.
        TltoolsError: If its folder is a link to nowhere.
    """
    if path == STDOUT:
        return
    refuse_lost_link(path.parent)
    chosen = output_format(path, parameter="output")
    if spreadsheet and not chosen.has_spreadsheet_mode:
        raise ConfigError(
            f"`output={path}` has no spreadsheet mode; choose "
            f"{first_suffixes(lambda one: one.has_spreadsheet_mode)}, or leave out "
            "`spreadsheet=True`"
        )
    if not chosen.is_installed:
        raise ConfigError(
            f"`output={path}` needs {chosen.requires}, which is not installed: pip install "
            f"{chosen.requires}, or choose "
            f"{first_suffixes(lambda one: one.is_installed)}"
        )
    if path.is_dir():
        raise ConfigError(f"`output={path}` is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise exists_already(path)


def write_complete(
    path: Path,
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    *,
    spreadsheet: bool,
    distance: bool = False,
) -> None:
    """Write a file of finished predictions, completely or not at all.

    Raises:
        TltoolsError: If it cannot be written.
    """
    chosen = output_format(path)
    codec = chosen.codec(classes, spreadsheet=spreadsheet, distance=distance)
    rows = BytesIO(b"".join([codec.header, *map(codec.encode, predictions)]))
    try:
        with atomic_path(path) as temporary:
            if chosen.convert is None:
                temporary.write_bytes(rows.getbuffer())
            else:
                chosen.convert(rows, temporary, codec)
    except OSError as error:
        raise cannot_write(path, error) from error
