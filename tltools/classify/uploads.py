"""Outputs elsewhere: a URL's rows are made on this machine, and go there when they are complete.

So a stopped job goes on from its rows as it does for a file, and what is at the URL is replaced by
a complete file or not at all.
"""

from contextlib import suppress
from pathlib import Path

from tltools.classify.shard_record import shard_record_path
from tltools.data.copies import cache_folder
from tltools.data.location import Url
from tltools.data.remote import Remote
from tltools.errors import ConfigError, DataError, UnreachableError
from tltools.progress import Progress


def staged(url: Url) -> Path:
    """Return where an output's rows are made: the same place for the same URL, and no other's."""
    return cache_folder("uploads", str(url)) / url.name


class Destination:
    """A URL that an output is to have."""

    def __init__(self, url: Url) -> None:
        """Take the URL; nobody is asked yet.

        Raises:
            ConfigError: If it cannot be written to, or what its protocol needs is not installed.
        """
        if url.is_web:
            raise ConfigError(
                f"--output {url}: web servers are only read; choose s3://, gs://, az:// or sftp://"
            )
        self.url = url
        self.staged = staged(url)
        self._remote = Remote(url)

    def check_free(self) -> None:
        """Refuse to replace what is there.

        Raises:
            ConfigError: If there is something, or the server does not let us know.
            UnreachableError: If the server cannot be asked.
        """
        try:
            self._remote.info(self.url)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(
                f"cannot tell whether {self.url} exists ({error}); see to your rights there, or "
                "write it in any case with --overwrite"
            ) from error
        raise ConfigError(
            f"{self.url} exists; replace it with --overwrite, or write elsewhere with --output"
        )

    def discard_sent(self) -> None:
        """Remove a complete output that an earlier job sent, and was killed just after that."""
        self.staged.unlink(missing_ok=True)
        with suppress(OSError):  # it holds another job's rows
            self.staged.parent.rmdir()

    def send(self, complete: Path, progress: Progress) -> None:
        """Put a complete output there, after the record of a shard if there is one.

        Raises:
            TltoolsError: If that cannot be done; the rows are kept here then.
        """
        progress.say(f"Sending {complete.stat().st_size:,} bytes to {self.url}")
        record = shard_record_path(self.staged)
        try:
            if record.exists():
                self._remote.upload(record, self.url.parent.joined(record.name))
            self._remote.upload(complete, self.url)
        except UnreachableError as error:
            raise UnreachableError(f"{error}; the rows are kept") from error
        record.unlink(missing_ok=True)


def fetch_shard(url: Url, folder: Path) -> Path:
    """Fetch the output of a shard and its record into a folder of their own.

    Raises:
        DataError: If one of them is not there.
        UnreachableError: If the server cannot be asked.
    """
    remote = Remote(url)
    path = folder / url.name
    folder.mkdir()
    record = shard_record_path(path)
    for one, local in ((url, path), (url.parent.joined(record.name), record)):
        try:
            remote.download(one, local)
        except OSError as error:
            raise DataError(
                f"cannot read {one}: {error}; name what classify --shard wrote, with its record "
                "beside it"
            ) from error
    return path
