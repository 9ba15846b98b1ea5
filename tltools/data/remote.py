"""List, read and write files in object stores and on other servers, with fsspec.

A failed request is retried if that may help. Credentials come from where each service's own tools
look for them; nothing here takes, prints or stores any.
"""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar, cast

from tltools.atomic import NO_ROOM
from tltools.data.answers import AwayError, BusyError, StalledError, TooLargeError, UnavailableError
from tltools.data.folders import is_system_folder
from tltools.data.image_ref import MAX_FILE_BYTES
from tltools.data.location import Url, web_folder, without_secrets
from tltools.errors import ConfigError, DataError, TltoolsError, UnreachableError
from tltools.packages import pip_install
from tltools.parallel import ordered_map

READS = 32
"""Number of concurrent requests: a request takes tens of milliseconds, in which a core decodes many
images."""
ATTEMPTS = 8
"""Number of attempts before a file or its server is given up."""
STALLED_ATTEMPTS = 2
"""Number of attempts if the server does not go on: each takes the longest pause that is allowed."""
FIRST_WAIT_S, MAX_WAIT_S = 0.2, 5.0
"""Wait before a retry, in seconds: random, with an upper limit that starts at the first value and
grows twofold up to the second, which spreads the requests of many machines (Marc Brooker,
"Exponential Backoff And Jitter", 2015)."""
BLOCK = 2**20
"""Number of bytes of an archive per request."""
BLOCKS_AHEAD = 8
PAGE = 1000
"""Number of files per listing request; no object store returns more."""
MAX_DEPTH = 64
"""Deepest nesting of folders: an index page may link to folders without end, such as itself."""

# Errors of a single file; any others may be transient, or concern the server.
_OF_THE_FILE = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    UnavailableError,
)
# Programming errors, which no server has caused.
_FAULTS = (TypeError, AttributeError, NameError, AssertionError)
# S3 error codes that concern the caller: the next file would fail in the same way.
_OF_THE_CALLER = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed"}
    | {"SignatureDoesNotMatch", "TokenRefreshRequired"}
)

Result = TypeVar("Result")


# --------------------------------------------------------------------------------- requests


class Answered:
    """The servers of a job that have answered."""

    def __init__(self) -> None:
        """Start without any."""
        self._servers: set[tuple[str, str]] = set()

    def add(self, url: Url) -> None:
        """Add the server of a URL."""
        self._servers.add(url.server)

    def __contains__(self, url: Url) -> bool:
        """Return whether the server of a URL has answered."""
        return url.server in self._servers

    @property
    def has_any(self) -> bool:
        """Return whether any server has answered."""
        return bool(self._servers)


class Remote:
    """A server; connected on the first request, and again if the connection is lost."""

    def __init__(self, url: Url, answered: Answered | None = None) -> None:
        """Take a URL of the server; no request is made yet.

        Args:
            url: The URL that requests without another one concern.
            answered: The servers of the same job; None if this is the only one.
        """
        self.url = url
        self._answered = Answered() if answered is None else answered
        self._is_dead = False
        self._lock = Lock()
        self._connected: Any = None
        self._retrying = _import("tenacity", url).Retrying

    @property
    def path(self) -> str:
        """The URL's path as used in requests."""
        return self.path_of(self.url)

    def path_of(self, url: Url) -> str:
        """Return the path of another URL on the same server."""
        if url.is_web:
            return url.text
        rest = url.text.partition("://")[2]
        return "/" + rest.partition("/")[2] if url.kind == "sftp" else rest

    def ask(self, request: Callable[[Any], Result], url: Url | None = None) -> Result:
        """Make a request, and retry it if the failure may be transient.

        Args:
            request: Called with fsspec's file system.
            url: What the request concerns, for messages; None is the URL of this object.

        Raises:
            OSError: If the file is missing, may not be accessed or exceeds a limit; if the server
                answers, but not this request; if it never answered, but others of the job do; or if
                the local disk is full.
            UnreachableError: If the server cannot be reached.
        """
        answers = False
        try:
            try:
                result = self._ask_often(request)
            except Exception as error:
                answers = _may_pass(error) and not self._is_dead and self._answers()
                if not answers:
                    raise
                result = self._ask_once(request)  # the server may have been away until now
        except Exception as error:
            failure = self._failure(error, url or self.url, answers)
            if failure is error:
                raise
            raise failure from error
        self._answers_now()
        return result

    def _ask_often(self, request: Callable[[Any], Result]) -> Result:
        tenacity = sys.modules["tenacity"]
        attempts = self._retrying(
            stop=self._are_enough,
            wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=MAX_WAIT_S),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )
        return attempts(self._ask_once, request)

    def _are_enough(self, state: Any) -> bool:
        """Return whether a request has been tried often enough."""
        has_stalled = isinstance(state.outcome.exception(), StalledError)
        allowed = STALLED_ATTEMPTS if has_stalled else ATTEMPTS
        return state.attempt_number >= (1 if self._is_dead else allowed)

    def _answers_now(self) -> None:
        self._answered.add(self.url)
        self._is_dead = False

    def _failure(self, error: Exception, url: Url, answers: bool) -> Exception:
        """Return the error to raise for a request that has failed: the file's, or the server's.

        Args:
            error: How the last attempt failed.
            url: What was requested.
            answers: Whether the server has answered another request after that.
        """
        if _is_ours(error):
            return error
        reason = remote_reason(error)
        if _is_of_the_file(error):
            self._answers_now()
            if isinstance(error, UnavailableError):
                return error
            return (FileNotFoundError if isinstance(error, FileNotFoundError) else OSError)(reason)
        if answers:
            self._answers_now()
            return OSError(reason)
        if _may_pass(error) and self.url not in self._answered and self._answered.has_any:
            # The others show that the network works: the address is wrong, or its server is gone.
            self._is_dead = True
            return OSError(f"its server cannot be reached: {reason}")
        return UnreachableError(
            f"cannot reach {url}: {reason}; check the network, the address and your credentials, "
            "then run it again"
        )

    def _answers(self) -> bool:
        """Return whether the server answers a request that does not concern a file."""
        try:
            self._ask_once(lambda files: files.info(self.path_of(self.url.root)))
        except Exception as error:
            failed = isinstance(error, BusyError) and not isinstance(error, AwayError)
            return failed or _is_of_the_file(error)
        return True

    def _ask_once(self, request: Callable[[Any], Result]) -> Result:
        files = self._connect()
        try:
            return request(files)
        except Exception as error:
            # Object stores use many connections and manage them themselves.
            if self.url.kind == "sftp" and _may_pass(error):
                with self._lock:
                    if self._connected is files:  # and no other thread's new one
                        self._connected = None
            raise

    def _connect(self) -> Any:
        with self._lock:
            if self._connected is None:
                self._connected = _open_file_system(self.url)
            return self._connected

    def info(self, url: Url) -> dict[str, Any]:
        """Return the server's information about a file or folder: `type`, `size`.

        Raises:
            OSError: If it does not exist.
            UnreachableError: See `ask`.
        """
        return self.ask(lambda files: files.info(self.path_of(url)), url)

    def read(self, path: str, url: Url | None = None, *, max_bytes: int | None = None) -> bytes:
        """Return the content of a file.

        Args:
            path: The file, as in requests.
            url: The same for messages; None is the URL of this object.
            max_bytes: The most bytes to take; None if the size is known from a listing. Of a web
                server, which may send anything, no more than `MAX_FILE_BYTES` are taken.

        Raises:
            TooLargeError: If it has more bytes.
            OSError: See `ask`.
            UnreachableError: See `ask`.
        """

        def request(files: Any) -> bytes:
            if self.url.is_web:
                return files.cat_file(path, max_bytes=max_bytes or MAX_FILE_BYTES)
            if max_bytes is None:
                return files.cat_file(path)
            if self.url.kind == "s3":
                return _run(files, _read_by_s3, path, max_bytes)
            _check_size(files.info(path)["size"], max_bytes)
            return files.cat_file(path)

        return self.ask(request, url)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes of a file from `start` up to, but not including, `stop`.

        Raises:
            OSError: See `ask`; or if there are fewer.
            UnreachableError: See `ask`.
        """

        def request(files: Any) -> bytes:
            if self.url.kind != "sftp":
                return files.cat_file(path, start=start, end=stop)
            return _run(files, _read_by_sftp, path, start, stop)

        data = self.ask(request)
        if len(data) != stop - start:
            raise OSError("the file is truncated or has changed")
        return data

    def download(self, url: Url, local: Path) -> None:
        """Download a file to disk, whatever its size.

        Raises:
            OSError: See `ask`; or if the local file cannot be written.
            UnreachableError: See `ask`.
        """
        self.ask(lambda files: files.get_file(self.path_of(url), str(local)), url)

    def upload(self, local: Path, url: Url) -> None:
        """Upload a file, completely or not at all.

        Object stores show an object only when it is complete; on other servers the file is renamed
        at the end.

        Raises:
            TltoolsError: If the upload fails.
        """
        path = self.path_of(url)

        def request(files: Any) -> None:
            if url.kind != "sftp":
                files.put_file(str(local), path)
                files.invalidate_cache()
            else:
                files.put_file(str(local), f"{path}.part")
                files.mv(f"{path}.part", path)
            if files.info(path)["size"] != local.stat().st_size:
                raise OSError("the uploaded file has a different size")

        try:
            self.ask(request, url)
        except UnreachableError:
            raise
        except (OSError, NotImplementedError) as error:
            raise TltoolsError(
                f"cannot write {url}: {remote_reason(error)}; check your permissions there, or "
                "choose another place with `output=`"
            ) from error


def _run(files: Any, read: Callable[..., Any], *args: object) -> bytes:
    """Run a coroutine of this module in the event loop of a file system."""
    from fsspec.asyn import sync

    return cast("bytes", sync(files.loop, read, files, *args))


async def _read_by_s3(files: Any, path: str, max_bytes: int) -> bytes:
    """Read a file if it is not too large; `cat_file` would request its size first."""
    bucket, key, version = files.split_path(path)
    which = {"VersionId": version} if version else {}
    answer = await files._call_s3("get_object", Bucket=bucket, Key=key, **which)
    body = answer["Body"]
    try:
        _check_size(answer["ContentLength"], max_bytes)
        return await body.read()
    finally:
        body.close()


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise TooLargeError(f"the file has {num_bytes:,} bytes, more than {max_bytes:,}")


async def _read_by_sftp(files: Any, path: str, start: int, stop: int) -> bytes:
    """Read a part of a file.

    The file object of sshfs is not used because closing it hangs forever after a lost connection.
    """
    async with files._pool.get() as channel, channel.open(path, "rb") as file:
        return await file.read(stop - start, start)


def _import(module: str, url: Url) -> Any:
    """Import a module that a protocol needs.

    Raises:
        ConfigError: If the module is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        extra = url.kind
        raise ConfigError(
            f"{url.protocol}:// needs {error.name or module}, which is not installed: "
            f"{pip_install(extra)}"
        ) from error


def _open_file_system(url: Url) -> Any:
    """Return fsspec's file system of a URL, without caching of listings: servers change."""
    extra = url.kind
    common: dict[str, Any] = {"skip_instance_cache": True}
    if extra == "sftp":  # fsspec's own accepts any host key, and only one request at a time
        # It logs every task that waited for a lost connection; those requests are retried.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        options = _import("fsspec.utils", url).infer_storage_options(url.text)
        options = {key: options[key] for key in ("host", "port", "username") if key in options}
        return _import("sshfs", url).SSHFileSystem(
            **options,
            **common,
            known_hosts=(),  # those of OpenSSH
            login_timeout=15,
            keepalive_interval=15,
        )
    common["use_listings_cache"] = False
    if extra == "s3":
        return _import("s3fs", url).S3FileSystem(
            **common,
            max_concurrency=1,  # otherwise it requests the size of each file first
            config_kwargs={"max_pool_connections": READS},
        )
    if extra == "https":
        return _import("tltools.data.web", url).WebFiles()
    fsspec = _import("fsspec", url)
    try:
        return fsspec.filesystem(url.protocol, **common, **_account(url))
    except ImportError as error:
        raise ConfigError(
            f"{url.protocol}:// needs a package that is not installed: {pip_install(extra)}"
        ) from error


def _account(url: Url) -> dict[str, Any]:
    """Return the Azure account in a URL, if any: `abfs://CONTAINER@ACCOUNT.dfs...`."""
    host = url.text.partition("://")[2].partition("/")[0]
    _, at, account = host.partition("@")
    return {"account_name": account.partition(".")[0]} if at and url.protocol != "gs" else {}


def _code(error: BaseException) -> str:
    """Return the S3 code of an error, or an empty string."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return str(cast("dict[str, Any]", response).get("Error", {}).get("Code", ""))
        seen = seen.__cause__
    return ""


def _is_ours(error: BaseException) -> bool:
    """Return whether this machine or program has failed, so that a retry is useless."""
    no_room = isinstance(error, OSError) and error.errno in NO_ROOM
    return no_room or isinstance(error, (TltoolsError, *_FAULTS))


def _is_of_the_file(error: BaseException) -> bool:
    if _code(error) in _OF_THE_CALLER:
        return False
    return isinstance(error, _OF_THE_FILE) or _is_refused_by_sftp(error)


def _is_refused_by_sftp(error: BaseException) -> bool:
    """Return whether an SFTP server answered and refused the request."""
    asyncssh = sys.modules.get("asyncssh")
    if asyncssh is None:
        return False
    lost = (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)
    return isinstance(error, asyncssh.SFTPError) and not isinstance(error, lost)


def _may_pass(error: BaseException) -> bool:
    """Return whether a request that failed in this way may succeed when it is retried."""
    if not isinstance(error, Exception) or _is_ours(error):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    # Missing credentials and untrusted host keys do not resolve themselves within seconds.
    if names & {"NoCredentialsError", "HostKeyNotVerifiable", "PermissionDenied", "ImportError"}:
        return False
    return not (_is_of_the_file(error) or isinstance(error, PermissionError | NotImplementedError))


def remote_reason(error: BaseException | None) -> str:
    """Describe in one line why a request failed, without an address at the start."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = " ".join(without_secrets(str(error)).split()) or type(error).__name__
    return text if text[:2].isupper() else text[0].lower() + text[1:]


# ----------------------------------------------------------------------------------- listing


@dataclass(frozen=True, slots=True)
class Entry:
    """A file on a server, from a listing."""

    name: str
    """Name relative to the listed folder, with `/` between folders."""
    path: str
    """Path as used in requests."""
    num_bytes: int | None
    version: str
    """A value that changes when the file changes; empty if the server has none."""


def list_files(
    remote: Remote, *, on_error: Callable[[DataError], None] | None = None
) -> Iterator[list[Entry]]:
    """List all files in the folder of `remote` and its subfolders, as the listing arrives.

    Hidden files and folders (`.name`) are skipped. S3 lists files in the order of their keys, page
    by page; elsewhere, folders are listed one by one and sorted like local folders. Links to
    folders are not followed.

    Args:
        remote: The server, with the folder's URL.
        on_error: Called for each subfolder that cannot be listed, which is then skipped, and for
            one that lies too deep, which ends the listing; None to raise the error.

    Raises:
        DataError: While iterating, if the folder is missing or cannot be listed.
        UnreachableError: While iterating, if the server cannot be reached.
    """
    if remote.url.kind == "s3":
        return _list_s3(remote)
    return _walk_all(remote, on_error)


def _list_s3(remote: Remote) -> Iterator[list[Entry]]:
    bucket, _, prefix = remote.path.rstrip("/").partition("/")
    prefix += "/" if prefix else ""
    token: dict[str, str] = {}
    while True:
        try:
            page = remote.ask(
                lambda files, token=token: files.call_s3(
                    "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=PAGE, **token
                )
            )
        except OSError as error:
            raise _cannot_list(remote.url, error) from error
        entries = [
            Entry(
                found["Key"][len(prefix) :],
                f"{bucket}/{found['Key']}",
                int(found["Size"]),
                str(found.get("ETag") or found.get("LastModified")),
            )
            for found in page.get("Contents", ())
        ]
        if visible := [entry for entry in entries if _is_visible(entry.name)]:
            yield visible
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _is_visible(key: str) -> bool:
    """Return whether a key names a file that is not hidden, rather than a folder."""
    folders = key.split("/")[:-1]
    hidden = key.startswith(".") or "/." in key or any(map(is_system_folder, folders))
    return bool(key) and not key.endswith("/") and not hidden


class _TooDeepError(DataError):
    """A folder that lies in too many others."""


def _walk_all(
    remote: Remote, on_error: Callable[[DataError], None] | None
) -> Iterator[list[Entry]]:
    """Walk through all folders, and end at the first one that lies in too many.

    A server that answers every address with the same page has more folders than can ever be listed:
    two in each are 2^64 at the greatest depth.
    """
    try:
        yield from _walk(remote, remote.path, "", on_error)
    except _TooDeepError as error:
        if on_error is None:
            raise
        on_error(error)


def _walk(
    remote: Remote, folder: str, prefix: str, on_error: Callable[[DataError], None] | None
) -> Iterator[list[Entry]]:
    url = remote.url.joined(prefix) if prefix else remote.url
    if prefix.count("/") > MAX_DEPTH:
        raise _TooDeepError(
            f"cannot list all of {remote.url}: {url} lies in more than "
            f"{MAX_DEPTH} folders, and the server may have more of them without end; name the "
            "folders with the images"
        )
    try:
        found = remote.ask(lambda files: files.ls(folder, detail=True), url)
    except OSError as error:
        failure = _cannot_list(url, error)
        if on_error is None or not prefix:
            raise failure from error
        on_error(failure)
        return
    # A web page may link to files in folders below it.
    start = len(web_folder(folder))
    infos = {
        name[start:] if remote.url.is_web else name.rpartition("/")[2]: info
        for info in found
        if (name := info["name"].rstrip("/"))
    }
    files: list[Entry] = []
    for name in sorted(name for name in infos if not (name.startswith(".") or "/." in name)):
        info = infos[name]
        if _kind(remote, info) == "directory":
            if files:
                yield files
                files = []
            if info["type"] == "directory" and not is_system_folder(name):
                yield from _walk(remote, info["name"].rstrip("/"), f"{prefix}{name}/", on_error)
            continue
        files.append(Entry(prefix + name, info["name"], info.get("size"), version_of(info)))
        if len(files) == PAGE:
            yield files
            files = []
    if files:
        yield files


def version_of(info: dict[str, Any]) -> str:
    """Return a value that changes when the file does, from its information; empty if unknown."""
    return str(next((info[key] for key in ("ETag", "etag", "mtime") if info.get(key)), ""))


def _kind(remote: Remote, info: dict[str, Any]) -> str:
    """Return the type of an entry, `file` or `directory`, following a link."""
    if info["type"] != "link":
        return info["type"]
    try:
        return remote.ask(lambda files: files.info(info["name"]))["type"]
    except OSError:  # a broken link: its row will report the error
        return "file"


def _cannot_list(url: Url, error: OSError) -> DataError:
    return DataError(
        f"cannot list {url}: {remote_reason(error)}; name a folder or prefix that you may list"
    )


def read_text_lines(url: Url) -> Iterator[bytes]:
    """Return the lines of a text file on a server.

    Raises:
        DataError: If the file cannot be read.
        UnreachableError: If the server cannot be reached.
    """
    remote = Remote(url)
    try:
        return iter(remote.read(remote.path, max_bytes=MAX_FILE_BYTES).splitlines(keepends=True))
    except OSError as error:
        raise DataError(
            f"cannot read the list {url}: {remote_reason(error)}; check the URL"
        ) from error


# ---------------------------------------------------------------------------------- archives


class RemoteFile:
    """An archive on a server, read sequentially or at any position by any thread."""

    def __init__(self, remote: Remote) -> None:
        """Take the server with the archive's URL; no request is made yet."""
        self._remote = remote
        self._size: int | None = None

    def __str__(self) -> str:
        """Return the URL."""
        return str(self._remote.url)

    @property
    def size(self) -> int:
        """Size of the file in bytes.

        Raises:
            OSError: If the file is missing, or the server does not report its size.
        """
        if self._size is None:
            info = self._remote.info(self._remote.url)
            if info["type"] == "directory":
                raise OSError("it is a folder")
            if info["size"] is None:
                raise OSError("the server does not report its size")
            self._size = int(info["size"])
        return self._size

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from position `start`.

        Raises:
            OSError: If they do not exist.
        """
        if start + size > self.size:
            raise OSError("the archive ends before the image does")
        if size > MAX_FILE_BYTES:
            raise OSError(f"it has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
        return self._remote.read_range(self._remote.path, start, start + size) if size else b""

    def stream(self) -> BinaryIO:
        """Return the file for sequential reading, with a few blocks prefetched."""
        starts = range(0, self.size, BLOCK)
        blocks = ordered_map(
            lambda start: self.read(start, min(BLOCK, self.size - start)),
            starts,
            workers=BLOCKS_AHEAD,
            ahead=BLOCKS_AHEAD,
        )
        return cast("BinaryIO", io.BufferedReader(_Blocks(blocks), 2**16))

    def random(self) -> BinaryIO:
        """Return the file for random access in a single thread."""
        return cast("BinaryIO", io.BufferedReader(_Anywhere(self), 2**20))


class _Blocks(io.RawIOBase):
    """A sequence of blocks as a file for sequential reading."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Anywhere(io.RawIOBase):
    """A file on a server, read at any position."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise OSError("cannot seek before the start of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._file.size - self._position))
        buffer[:count] = self._file.read(self._position, count)
        self._position += count
        return count
