"""Outputs at URLs: the rows are written on this machine and uploaded when they are complete.

A stopped job therefore resumes as it does for a file, and the object at the URL is replaced by a
complete file or not at all.
"""

from contextlib import suppress
from pathlib import Path

from tltools.atomic import NO_ROOM
from tltools.classify.identity import Complete
from tltools.classify.shard_record import shard_record_path
from tltools.classify.unfinished import exists_already
from tltools.data.copies import cache_folder
from tltools.data.location import Url
from tltools.data.remote import Remote
from tltools.errors import ConfigError, DataError, TltoolsError, UnreachableError, cause_of
from tltools.progress import Progress


def staged(url: Url) -> Path:
    """Return the local path of an output's rows, which is unique to the URL."""
    return cache_folder("uploads", str(url)) / url.name


class Destination:
    """The URL that an output is uploaded to."""

    def __init__(self, url: Url) -> None:
        """Take the URL; no request is made yet.

        Raises:
            ConfigError: If the URL is read-only, or its protocol needs a package that is not
                installed.
        """
        if url.is_web:
            raise ConfigError(
                f"`output={url}`: cannot write to web servers; choose s3://, gs://, az:// or sftp://"
            )
        self.url = url
        self.staged = staged(url)
        self._remote = Remote(url)

    def check_free(self, sent: Complete | None = None) -> None:
        """Refuse to replace an existing file.

        Args:
            sent: The complete output that this job may have uploaded before it was killed.

        Raises:
            ConfigError: If the URL exists, or the server does not say whether it does.
            UnreachableError: If the server cannot be reached.
        """
        if sent is not None and self.holds(sent):
            return
        try:
            self._remote.info(self.url)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(
                f"cannot check whether {self.url} exists ({error}); check your permissions there, "
                "or write it anyway with `overwrite=True`"
            ) from error
        raise exists_already(self.url)

    def holds(self, sent: Complete) -> bool:
        """Return whether a file as large as this complete output is at the URL.

        Raises:
            UnreachableError: If the server cannot be reached.
        """
        try:
            return self._remote.info(self.url).get("size") == sent.num_bytes
        except OSError:
            return False

    def discard_sent(self) -> None:
        """Remove a complete output that was uploaded by a job killed right afterwards."""
        self.staged.unlink(missing_ok=True)

    def discard_folder(self) -> None:
        """Remove the folder of the local copy, unless it holds another job's rows."""
        with suppress(OSError):
            self.staged.parent.rmdir()

    def send(self, complete: Path, progress: Progress) -> None:
        """Upload a complete output, after the shard record if there is one.

        Raises:
            TltoolsError: If the upload fails; the rows are kept on this machine.
        """
        progress.say(f"Uploading {complete.stat().st_size:,} bytes to {self.url}")
        record = shard_record_path(self.staged)
        try:
            if record.exists():
                self._remote.upload(record, self.url.parent.joined(record.name))
            self._remote.upload(complete, self.url)
        except UnreachableError as error:
            raise UnreachableError(f"{error}; the rows are kept") from error
        record.unlink(missing_ok=True)


def fetch_shard(url: Url, folder: Path) -> Path:
    """Download the output of a shard and its record into a new folder.

    Raises:
        DataError: If one of them is missing.
        TltoolsError: If there is no space for them.
        UnreachableError: If the server cannot be reached.
    """
    remote = Remote(url)
    path = folder / url.name
    folder.mkdir()
    record = shard_record_path(path)
    for one, local in ((url, path), (url.parent.joined(record.name), record)):
        try:
            remote.download(one, local)
        except OSError as error:
            if error.errno in NO_ROOM:  # here, and not on the server
                raise TltoolsError(
                    f"cannot copy {one} to {folder.parent}: {cause_of(error)}; free some disk "
                    "space there, or set TMPDIR to a folder with more"
                ) from error
            raise DataError(
                f"cannot read {one}: {error}; name the output of a shard, with its record beside it"
            ) from error
    return path
