"""List the pictures in tar and zip archives, and read them where they are: nothing is unpacked.

Names in an archive are names only: nothing here opens a path that comes from one.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from tltools.data.images import MAX_FILE_BYTES, Bytes, Source, is_archive_name, is_image_name
from tltools.errors import DataError

if TYPE_CHECKING:
    from tltools.data.remote import RemoteFile

MEMBERS_AT_ONCE = 1024
MAX_UNPACKED = 2**28
"""Bytes of a picture that is compressed in its archive: an uncompressed one of as many pixels as
are decoded is no larger, and a few kilobytes could claim any size."""
MAX_HELD = 2**27
"""Bytes of pictures that wait unpacked, behind a compressed tar, before further ones are packed."""
MAX_RATIO = 100
"""How many times larger than itself a compressed tar may become; pictures hardly become smaller
when they are compressed, so that one which is larger is made to waste time."""
MAX_HEADER = 2**20
"""Bytes that the description of one member may take."""

_BLOCK = tarfile.BLOCKSIZE
_END = b"\0" * _BLOCK
_OPENERS: tuple[tuple[bytes, Callable[[BinaryIO], io.BufferedIOBase]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)
_ZIP = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
_LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name
_ENCRYPTED = 0x1
# What the standard library raises, or has raised in some version, on damaged archives.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # RecursionError and NotImplementedError too
    MemoryError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
# Records of an extended header that change where a member is, or what it is called.
_MATTERS = re.compile(rb"path=|size=|GNU\.|hdrcharset=")


def is_sequential(path: Path) -> bool:
    """Tell whether an archive can only be read from its beginning on, as compressed tars can."""
    try:
        with _open_file(path) as file:
            return _opener(file.read(8)) is not None
    except OSError:
        return False


def list_archive(
    path: "Path | RemoteFile", *, on_error: Callable[[DataError], None] | None = None
) -> Iterator[list[Source]]:
    """List the pictures of an archive, in its own order, as it is read.

    They are the members with a picture's name, hidden ones (`.name`) left out. A member that is a
    link, a device, encrypted, or not there as a whole is one that cannot be read. Their names are
    those in the archive, without a `/` or `./` at the beginning. A zip's directory is read as a
    whole, which takes 0.6 KB of memory for each member.

    Args:
        path: A tar, plain or compressed with gzip, bzip2 or xz, or a zip; its content decides. One
            on a server is read from its beginning on, but for a zip.
        on_error: Is told why the rest of an archive is left out; None to raise the error.

    Yields:
        Pictures, at least one at a time. Those of a compressed tar, and of a tar on a server, come
        one by one and hold their bytes; others are read when they are asked for, by any thread.

    Raises:
        DataError: While iterating, where `on_error` is None.
        UnreachableError: While iterating, if the server of one cannot be asked.
    """
    try:
        members = _Members(path)
        if isinstance(path, Path):
            yield from _list_local(path, members)
        else:
            yield from _list_remote(path, members)
        members.check()
    except DataError as error:
        if on_error is None:
            raise
        on_error(error)
    except _DAMAGED as error:
        failure = DataError(
            f"cannot read all of the archive {path}: {_reason(error)}; make it again, or unpack "
            "what there is of it"
        )
        if on_error is None:
            raise failure from error
        on_error(failure)


def _list_local(path: Path, members: "_Members") -> Iterator[list[Source]]:
    with _open_file(path) as file:
        magic = file.read(8)
        file.seek(0)
        opener = _opener(magic)
        if magic.startswith(_ZIP):
            yield from _grouped(_list_zip(_Shared.listed(path, file), file, members))
        elif opener is not None:
            for source in _list_forwards(opener(file), _size(file), members):
                yield [source]
        else:
            yield from _grouped(_list_tar(_Shared.listed(path, file), file, members))


def _list_remote(file: "RemoteFile", members: "_Members") -> Iterator[list[Source]]:
    magic = file.read(0, min(8, file.size))
    opener = _opener(magic)
    if magic.startswith(_ZIP):
        with file.random() as content:
            yield from _grouped(_list_zip(file, content, members))
        return
    # One request for a few megabytes, and not one for each picture of a few kilobytes.
    with file.stream() as content:
        tar = content if opener is None else opener(content)
        for source in _list_forwards(tar, file.size, members):
            yield [source]


class _Readable(Protocol):
    """An archive that threads read at any place."""

    def read(self, start: int, size: int) -> bytes:
        """Return bytes of the archive; raise OSError if they are not there."""
        ...


class _Members:
    """What is to be said of an archive's members beyond the pictures among them."""

    def __init__(self, path: "Path | RemoteFile") -> None:
        self._path = path
        self._nested: str | None = None
        self._num_nested = 0

    def shown(self, name: str) -> str | None:
        """Return what a member is called if it is a picture's name, else None."""
        if not is_image_name(name):
            if is_archive_name(name):
                self._num_nested += 1
                self._nested = self._nested or name
            return None
        if not (name.startswith((".", "/")) or "/." in name):
            return name
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if any(part.startswith(".") and part != ".." for part in parts):
            return None
        return "/".join(parts)

    def check(self) -> None:
        """Raise the error of archives within the archive, whose pictures are left out."""
        if self._nested is not None:
            more = f" and {self._num_nested - 1} more" if self._num_nested > 1 else ""
            raise DataError(
                f"{self._path} holds archives ({self._nested}{more}), which are not looked into; "
                "unpack it and name these"
            )


_Identity = tuple[int, int, int, int]


class _Shared:
    """An archive that threads read at any place, opened when the first of them does so."""

    def __init__(self, path: str, identity: "_Identity") -> None:
        """Take an archive's absolute path, and which file it was when it was listed."""
        self._handle: int | None = None
        self._path = path
        self._identity = identity
        self.size = identity[2]
        self._lock = Lock()

    @classmethod
    def listed(cls, path: Path, file: BinaryIO) -> "_Shared":
        """Take an archive that is being listed."""
        return cls(os.path.abspath(path), _identity(file.fileno()))  # noqa: PTH100 - links stay

    def __reduce__(self) -> "tuple[Callable[..., _Shared], tuple[object, ...]]":
        """Return what another process makes of it: one for all of its pictures."""
        return _opened_once, (self._path, self._identity)

    def read(self, start: int, size: int) -> bytes:
        """Return bytes of the archive.

        Raises:
            OSError: If they are not there, or the archive is another one now.
        """
        if start + size > self.size:
            raise OSError("the archive ends before it does")
        if size > MAX_FILE_BYTES:
            raise OSError(f"it has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
        handle = self._open() if self._handle is None else self._handle
        data = self._read_at(handle, start, size)
        while len(data) < size:
            more = self._read_at(handle, start + len(data), size - len(data))
            if not more:
                raise OSError("the archive has become shorter")
            data += more
        return data

    def _open(self) -> int:
        with self._lock:
            if self._handle is None:
                handle = os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                if _identity(handle) != self._identity:
                    os.close(handle)
                    raise OSError("the archive has changed since it was listed")
                self._handle = handle
            return self._handle

    def _read_at(self, handle: int, start: int, size: int) -> bytes:
        if sys.platform == "win32":
            with self._lock:
                os.lseek(handle, start, os.SEEK_SET)
                return os.read(handle, size)
        return os.pread(handle, size, start)

    def __del__(self) -> None:
        """Close the archive with its last picture."""
        if self._handle is not None:
            os.close(self._handle)


@lru_cache(maxsize=16)
def _opened_once(path: str, identity: _Identity) -> _Shared:
    return _Shared(path, identity)


# ------------------------------------------------------------------------------------------ tar


class _Reader:
    """A tar as `tarfile` reads it: forwards, and little at once whatever a header asks for."""

    def __init__(self, file: BinaryIO | io.BufferedIOBase, max_bytes: int | None = None) -> None:
        """Begin at the beginning.

        Args:
            file: A tar.
            max_bytes: Of the tar, if it comes from a compressed one: it cannot be sought in.
        """
        self._file = file
        self._max_bytes = max_bytes
        self._again = b""
        self._position = 0

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, position: int) -> None:
        """Go forwards; beyond the end, too."""
        if position < self._position:
            raise tarfile.ReadError(f"it leads backwards at byte {self._position:,}")
        if self._max_bytes is None:
            self._file.seek(position)
            self._again = b""
            self._position = position
            return
        while self._position < position:
            if not self._read(min(position - self._position, MAX_HEADER)):
                return

    def read(self, size: int) -> bytes:
        """Read a description of a member."""
        if size > MAX_HEADER:
            raise tarfile.ReadError(f"{size:,} bytes describe the member at {self._position:,}")
        return self._read(size)

    def content(self, size: int) -> bytes:
        """Read a member's bytes.

        Raises:
            EOFError: If they end early.
        """
        data = self._read(size)
        if len(data) < size:
            raise EOFError("it ends early")
        return data

    def unread(self, data: bytes) -> None:
        """Go back behind what was read last."""
        self._again = data + self._again
        self._position -= len(data)

    def _read(self, size: int) -> bytes:
        data = self._again[:size]
        self._again = self._again[size:]
        if len(data) < size:
            data += self._file.read(size - len(data))
        self._position += len(data)
        if self._max_bytes is not None and self._position > self._max_bytes:
            raise tarfile.ReadError(
                f"it unpacks to more than {self._max_bytes:,} bytes (an archive bomb?)"
            )
        return data


class _Tar:
    """The members of a tar, one after the other.

    `tarfile` takes 30 microseconds for an ordinary member and 70 for one with an extended header,
    as Python and WebDataset write them, with Python's lock held: up to a twentieth of what a small
    picture and model take. So such headers are read here, in 10 and 17, and all others by
    `tarfile`.
    """

    def __init__(self, reader: _Reader) -> None:
        """Begin at the beginning."""
        self._reader = reader
        self._next = 0
        self._library: tarfile.TarFile | None = None
        self._has_globals = False

    def members(self) -> Iterator[tuple[str, int, int, str | None]]:
        """Yield each member's name, first byte, size, and why it cannot be read (None if it can).

        Raises:
            EOFError: Where the tar ends without saying so.
            tarfile.TarError: Where it is damaged; `tarfile` raises other errors as well.
        """
        reader = self._reader
        while True:
            reader.seek(self._next)
            header = reader.read(_BLOCK)
            if header == _END:
                return
            if len(header) < _BLOCK:
                raise EOFError(f"it was cut off, with more to come at byte {self._next:,}")
            if not self._has_globals:
                if header[156] == _EXTENDED and self._passed(header):
                    continue
                ordinary = _ordinary_file(header)
                if ordinary is not None:
                    name, size = ordinary
                    start = reader.tell()
                    self._next = start + _padded(size)
                    yield name, start, size, None
                    continue
            self._has_globals |= header[156] == _GLOBAL
            reader.unread(header)
            member = self._by_library()
            if not member.isdir():
                yield member.name, member.offset_data, member.size, _problem(member)

    def _passed(self, header: bytes) -> bool:
        """Tell whether an extended header says nothing that matters; then it has been passed."""
        size = _checked_size(header)
        if size is None or size > MAX_HEADER:
            return False
        data = self._reader.read(_padded(size))
        if len(data) < size or _MATTERS.search(data):
            self._reader.unread(data)
            return False
        self._next = self._reader.tell()
        return True

    def _by_library(self) -> tarfile.TarInfo:
        before = self._reader.tell()
        if self._library is None:
            self._library = library = tarfile.TarFile(
                fileobj=cast("BinaryIO", self._reader), encoding="utf-8", errors="surrogateescape"
            )
            # It has read a member, and would try again to return one if there is none.
            member = None if library.offset == before else library.next()
        else:
            library = self._library
            library.offset = before
            member = library.next()
        cast("Any", library).members.clear()  # it would keep them all
        if member is None or member.size < 0 or library.offset <= before:
            raise tarfile.ReadError(f"it is damaged at byte {before:,}")
        self._next = library.offset
        return member


_EXTENDED, _GLOBAL = ord("x"), ord("g")


def _ordinary_file(header: bytes) -> tuple[str, int] | None:
    """Return the name and size that a header gives a plain file; None: it is not as simple."""
    if header[156] not in b"0\0" or header[257:262] != b"ustar":
        return None
    size = _checked_size(header)
    if size is None:
        return None
    name = header[:100].partition(b"\0")[0]
    if header[345]:  # the folders of a long name, or in GNU's own headers something else
        if header[262]:
            return None
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    if not name or name.endswith(b"/"):
        return None
    return name.decode("utf-8", "surrogateescape"), size


def _checked_size(header: bytes) -> int | None:
    """Return the size in a header whose checksum holds; None if either is not as usual."""
    size, checksum = header[124:136].strip(b" \0"), header[148:156].strip(b" \0")
    if not (size.isdigit() and checksum.isdigit()):
        return None
    try:
        if int(checksum, 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        return int(size, 8)
    except ValueError:  # the digits 8 and 9
        return None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _problem(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return "it is a link in the archive; pack with --dereference --hard-dereference"
    if member.sparse is not None:
        return "it is a sparse file in the archive; pack without --sparse"
    return None if member.isreg() else "it is not a file"


def _list_tar(shared: _Shared, file: BinaryIO, members: _Members) -> Iterator[Source]:
    for name, start, size, problem in _Tar(_Reader(file)).members():
        shown = members.shown(name)
        if shown is not None:
            read = partial(shared.read, start, size) if problem is None else _refused(problem)
            yield Source(shown, read, is_portable=True)


def _list_forwards(
    file: "BinaryIO | io.BufferedIOBase", num_packed: int, members: _Members
) -> Iterator[Source]:
    """List the pictures of a tar that is read once, with their bytes: there is no way back."""
    reader = _Reader(file, max_bytes=MAX_RATIO * num_packed + 2**30)
    held = _Held()
    for name, start, size, problem in _Tar(reader).members():
        shown = members.shown(name)
        if shown is None:
            continue
        if problem is None and size > MAX_UNPACKED:
            problem = _too_large(size)
        if problem is not None:
            yield Source(shown, _refused(problem))
            continue
        try:
            reader.seek(start)
            content = _Content(reader.content(size), held)
        except _DAMAGED:
            yield Source(shown, _refused("the archive ends before it does, or is damaged there"))
            raise
        yield Source(shown, content.read)
    # Behind the end of the tar is the checksum of what was unpacked.
    while reader.read(MAX_HEADER):
        pass


class _Held:
    """How many bytes of pictures wait to be decoded."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._lock = Lock()

    def add(self, num_bytes: int) -> int:
        """Add bytes, or take them away; return how many there are then."""
        with self._lock:
            self.num_bytes += num_bytes
            return self.num_bytes


class _Content:
    """The bytes of a picture until it is done with.

    Where many are waiting, they are compressed: that keeps what was made to unpack to a lot as
    small as it was. Pictures that are as large as they look cost what they are.
    """

    def __init__(self, data: bytes, held: _Held) -> None:
        self._data = data
        self._held = held
        self._num_held = len(data)
        self._is_packed = held.add(len(data)) > MAX_HELD
        if self._is_packed:
            self._data = zlib.compress(data, level=1)
            self._num_held = len(self._data)
            held.add(self._num_held - len(data))

    def read(self) -> bytes:
        """Return the bytes."""
        return zlib.decompress(self._data) if self._is_packed else self._data

    def __del__(self) -> None:
        """Take the bytes off the account."""
        self._held.add(-self._num_held)


# ------------------------------------------------------------------------------------------ zip


def _list_zip(shared: _Readable, file: BinaryIO, members: _Members) -> Iterator[Source]:
    with zipfile.ZipFile(file) as content:
        infos = content.filelist
    for info in infos:
        shown = None if info.is_dir() else members.shown(info.filename)
        if shown is None:
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            yield Source(shown, _refused("it is a link in the archive"))
        elif info.flag_bits & _ENCRYPTED:
            yield Source(shown, _refused("it is encrypted; unpack the archive with its password"))
        elif info.file_size > MAX_UNPACKED:
            yield Source(shown, _refused(_too_large(info.file_size)))
        else:
            yield _zipped(shown, shared, info)


def _zipped(name: str, shared: _Readable, info: zipfile.ZipInfo) -> Source:
    read = partial(_read_zipped, shared, info)
    if isinstance(shared, _Shared):
        return Source(name, read, is_portable=True)
    from tltools.data.remote import RemoteSource  # which imports this module

    return RemoteSource(name, read, num_bytes=info.compress_size)


def _read_zipped(shared: _Readable, info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a zip's member, checked.

    Not by `ZipFile.open`, whose threads would wait for each other at the one file.

    Raises:
        OSError: If they are not there, or damaged.
    """
    header = shared.read(info.header_offset, _LOCAL_HEADER)
    if not header.startswith(b"PK\3\4"):
        raise OSError("the archive is damaged where it begins")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    packed = shared.read(info.header_offset + _LOCAL_HEADER + names, info.compress_size)
    try:
        with zipfile.ZipExtFile(io.BytesIO(packed), "r", info) as file:
            data = file.read()  # no more than `info.file_size`
    except _DAMAGED as error:
        raise OSError(f"it is damaged in the archive: {_reason(error)}") from error
    if len(data) != info.file_size:
        raise OSError("it is damaged in the archive: it ends early")
    return data


# --------------------------------------------------------------------------------------- both


def _grouped(sources: Iterator[Source]) -> Iterator[list[Source]]:
    """Yield pictures many at a time, and those before an error before it."""
    group: list[Source] = []
    try:
        for source in sources:
            group.append(source)
            if len(group) == MEMBERS_AT_ONCE:
                yield group
                group = []
    except _DAMAGED:
        if group:
            yield group
        raise
    if group:
        yield group


def _refused(problem: str) -> Bytes:
    return Bytes(OSError(problem))


def _too_large(size: int) -> str:
    return (
        f"it has {size:,} bytes, more than the {MAX_UNPACKED:,} that are unpacked in memory; "
        "unpack the archive"
    )


def _open_file(path: Path) -> BinaryIO:
    """Open a regular file; anything else could block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a file")
    return path.open("rb")


def _opener(magic: bytes) -> Callable[[BinaryIO], io.BufferedIOBase] | None:
    return next((opener for start, opener in _OPENERS if magic.startswith(start)), None)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _identity(handle: int) -> _Identity:
    info = os.fstat(handle)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split()) or type(error).__name__
