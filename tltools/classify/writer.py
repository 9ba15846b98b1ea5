"""Write predictions as they are made, to an unfinished file that becomes the output at the end."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Self

from tltools.atomic import atomic_path
from tltools.classify.output_formats import STDOUT, output_format
from tltools.classify.pipeline import Prediction
from tltools.classify.resume import Kept
from tltools.classify.unfinished import UnfinishedOutput, cannot_write
from tltools.errors import ConfigError, TltoolsError

SYNC_EVERY_S = 5.0
"""A loss of power costs no more rows than were made in that time."""


class Output:
    """The rows of one job on their way to a file, or to standard output.

    Rows go to `<output>.part` beside the output as they are made, each handed to the system when
    it is complete, so that a killed job leaves its rows. At the end of the `with` block the file is
    put on the disk and renamed, or converted where the format cannot be appended to; if something
    stops the block, an interrupt included, it stays as a `.part` with its complete rows.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str],
        *,
        overwrite: bool = False,
        spreadsheet: bool = False,
        opened: UnfinishedOutput | None = None,
        kept: Kept | None = None,
        on_complete: Callable[[Path, int], None] | None = None,
    ) -> None:
        """Prepare to write; nothing is created before the `with` block.

        Args:
            path: Its suffix is one of `OUTPUT_FORMATS`; `-` for CSV on standard output.
            classes: The model's, in order.
            overwrite: Replace an output that exists.
            spreadsheet: Put an apostrophe before fields that a spreadsheet takes for a formula.
            opened: The unfinished output, which is open already; None to open it in the block.
            kept: The rows in `opened` to go on after.
            on_complete: Called with the complete file's path and its number of rows, just before
                the file gets its name.

        Raises:
            ConfigError: As `check_output`.
        """
        check_output(path, overwrite=overwrite, spreadsheet=spreadsheet)
        self.path = path
        self._unfinished = (
            opened if opened is not None or path == STDOUT else UnfinishedOutput(path)
        )
        self._kept = kept
        self._on_complete = on_complete
        self._classes = classes
        self._format = output_format(path)
        self._codec = self._format.codec(classes, spreadsheet=spreadsheet)
        # One assignment changes both: whatever interrupts the program finds them in agreement.
        self._num_rows_and_bytes = (0, 0)

    @property
    def unfinished_path(self) -> Path | None:
        """Where the rows are until the job is complete; None on standard output."""
        return None if self._unfinished is None else self._unfinished.path

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
            TltoolsError: If the file cannot be written, for lack of space for instance.
        """
        self.write_encoded([self._codec.encode(prediction)])

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
            if self._unfinished is not None and time.monotonic() > self._next_sync:
                self._unfinished.sync()
                self._next_sync = time.monotonic() + SYNC_EVERY_S
        except BrokenPipeError:
            raise  # whoever reads standard output has seen enough: no error
        except OSError as error:
            raise self._cannot_write(error) from error

    def __exit__(self, kind: type[BaseException] | None, *_details: object) -> None:
        """Finish the file, or leave what there is of it."""
        if kind is not None:
            self._stop()
            return
        if self._unfinished is None:
            return
        try:
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

    def _append(self, data: bytes) -> None:
        if self._unfinished is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            self._unfinished.append(data)

    def _stop(self) -> None:
        """Leave the complete rows, and no file where there are none."""
        if self._unfinished is None:
            return
        num_rows, num_bytes = self._num_rows_and_bytes
        with suppress(OSError):  # the first error is the one to hear of
            self._unfinished.cut(num_bytes if num_rows else 0)
        with suppress(OSError):
            self._unfinished.close()

    def _convert(self) -> None:
        """Make the output from the rows."""
        assert self._unfinished is not None
        assert self._format.convert is not None
        with self._unfinished.path.open("rb") as rows, atomic_path(self.path) as temporary:
            self._format.convert(rows, temporary, self._classes)
            if self._on_complete is not None:
                self._on_complete(temporary, self.num_rows)

    def _cannot_write(self, error: OSError) -> TltoolsError:
        return cannot_write(self.unfinished_path or "standard output", error)


def check_output(path: Path, *, overwrite: bool, spreadsheet: bool = False) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    Raises:
        ConfigError: If the suffix is unknown or not one for spreadsheets, a package that the format
            needs is not installed, or the file exists and `overwrite` is not set.
    """
    if path == STDOUT:
        return
    chosen = output_format(path, option="--output")
    if spreadsheet and not chosen.has_spreadsheet_mode:
        raise ConfigError(f"--spreadsheet is for CSV; --output {path.name} ends in {path.suffix}")
    if chosen.requires is not None and find_spec(chosen.requires) is None:
        raise ConfigError(
            f"--output {path} needs {chosen.requires}, which is not installed: pip install "
            f"{chosen.requires}, or choose .csv or .jsonl"
        )
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{path} exists; replace it with --overwrite, or write elsewhere with --output"
        )


def write_complete(
    path: Path, predictions: Sequence[Prediction], classes: Sequence[str], *, spreadsheet: bool
) -> None:
    """Write a file of predictions that are all there, completely or not at all.

    Raises:
        TltoolsError: If it cannot be written.
    """
    chosen = output_format(path)
    codec = chosen.codec(classes, spreadsheet=spreadsheet)
    rows = BytesIO(b"".join([codec.header, *map(codec.encode, predictions)]))
    try:
        with atomic_path(path) as temporary:
            if chosen.convert is None:
                temporary.write_bytes(rows.getbuffer())
            else:
                chosen.convert(rows, temporary, classes)
    except OSError as error:
        raise cannot_write(path, error) from error
