"""List the images in tar and zip archives and read them in place, without unpacking to disk.

Names in an archive are only names: nothing here opens a path taken from an archive.
"""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol

from tltools.data.folders import is_system_folder
from tltools.data.image_ref import MAX_FILE_BYTES, Content, ImageRef, RemoteObject
from tltools.data.reasons import ENVIRONMENT, refuse_failing
from tltools.data.suffixes import is_archive_name, is_image_name
from tltools.data.tar import Tar, TarReader
from tltools.errors import DataError, UnreachableError, cause_of
from tltools.regular import open_regular

MEMBERS_AT_ONCE = 1024
MAX_UNPACKED = 2**28
"""Largest image, in bytes, unpacked from an archive: an uncompressed image with the largest number
of pixels that is decoded is no larger, and a few kilobytes could claim any size."""
MAX_HELD = 2**27
"""Bytes of waiting images from a compressed tar, above which further ones are compressed again."""
MAX_RATIO = 100
"""Largest expansion ratio of an archive above its first gigabyte; images hardly compress, so that
an archive with a larger ratio is malicious."""

_OPENERS: tuple[tuple[bytes, Callable[[BinaryIO], io.BufferedIOBase]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)
_ZIP = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
_LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name
_ENCRYPTED = 0x1
_IS_UTF8 = 0x800  # set if a member's name is UTF-8
_UNICODE_PATH = 0x7075  # extra field of Info-ZIP with the name in UTF-8
DAMAGED = (
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
"""What the standard library raises, or has raised in some version, for corrupt archives."""


def is_sequential(path: Path) -> bool:
    """Return whether an archive can only be read sequentially, like a compressed tar."""
    try:
        with open_regular(path) as file:
            return _opener(file.read(8)) is not None
    except OSError:
        return False


class _Readable(Protocol):
    """An archive that threads can read at any position."""

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from position `start`; raise OSError if they do not exist."""
        ...


class RemoteArchive(_Readable, Protocol):
    """An archive on a server; `str` returns its name for messages."""

    @property
    def size(self) -> int:
        """Size of the archive in bytes; raises OSError if it does not exist."""
        ...

    def stream(self) -> BinaryIO:
        """Open the archive for reading once, sequentially."""
        ...

    def random(self) -> BinaryIO:
        """Open the archive for random access in a single thread."""
        ...


def list_archive(
    path: Path | RemoteArchive,
    *,
    on_error: Callable[[DataError], None] | None = None,
    on_others: Callable[[Sequence[str]], None] | None = None,
) -> Iterator[list[ImageRef]]:
    """List the images of an archive in archive order, while it is read.

    These are the members with an image suffix, except hidden ones (`.name`). A member that is a
    link, a device, encrypted or truncated is an image that cannot be read. Names are those in the
    archive, without a leading `/` or `./`. The directory of a zip is read as a whole, which takes
    0.6 KB of memory per member.

    Args:
        path: A tar, plain or compressed with gzip, bzip2 or xz, or a zip; its content decides. A
            tar on a server is read sequentially.
        on_error: Called with the reason why the rest of an archive is skipped; None to raise it.
        on_others: Called with the names of members without an image suffix.

    Yields:
        Lists of at least one image. The images of a compressed tar, and of a tar on a server, come
        one by one and hold their bytes; others are read on demand, by any thread.

    Raises:
        DataError: While iterating, if `on_error` is None.
        UnreachableError: While iterating, if the server of an archive cannot be reached, or a disk
            or share fails.
    """
    try:
        members = _Members(path, on_others)
        if isinstance(path, Path):
            yield from _list_local(path, members)
        else:
            yield from _list_remote(path, members)
        members.check()
    except DataError as error:
        if on_error is None:
            raise
        on_error(error)
    except DAMAGED as error:
        if isinstance(path, Path):
            refuse_failing(path, error)
        failure = DataError(
            f"cannot read all of the archive {path}: {cause_of(error)}; recreate it, or unpack "
            "what is readable"
        )
        if on_error is None:
            raise failure from error
        on_error(failure)


def _list_local(path: Path, members: "_Members") -> Iterator[list[ImageRef]]:
    with open_regular(path) as file:
        magic = file.read(8)
        file.seek(0)
        opener = _opener(magic)
        if magic.startswith(_ZIP):
            yield from _grouped(_list_zip(_Shared.listed(path, file), file, members))
        elif opener is not None:
            for image in _list_forwards(opener(file), _size(file), members):
                yield [image]
        else:
            yield from _grouped(_list_tar(_Shared.listed(path, file), file, members))


def _list_remote(file: RemoteArchive, members: "_Members") -> Iterator[list[ImageRef]]:
    magic = file.read(0, min(8, file.size))
    opener = _opener(magic)
    if magic.startswith(_ZIP):
        with file.random() as content:
            yield from _grouped(_list_zip(file, content, members))
        return
    # Requests of a few megabytes instead of one per image of a few kilobytes.
    with file.stream() as content:
        tar = content if opener is None else opener(content)
        for image in _list_forwards(tar, file.size, members):
            yield [image]


class _Members:
    """Selects the images among an archive's members and keeps track of nested archives."""

    def __init__(
        self, path: Path | RemoteArchive, on_others: Callable[[Sequence[str]], None] | None
    ) -> None:
        self._path = path
        self._on_others = on_others
        self._nested: str | None = None
        self._num_nested = 0

    def shown(self, name: str) -> str | None:
        """Return the name to show for a member if it is an image, otherwise None."""
        if not is_image_name(name):
            if is_archive_name(name):
                self._num_nested += 1
                self._nested = self._nested or name
            if self._on_others is not None and not _is_hidden(name):
                self._on_others((name,))
            return None
        if not (name.startswith((".", "/")) or "/." in name):
            if _is_in_system_folder(name.rpartition("/")[0]):
                return None
            return name
        if _is_hidden(name):
            return None
        return "/".join(part for part in name.split("/") if part not in ("", "."))

    def check(self) -> None:
        """Raise an error if there are nested archives, whose images are skipped."""
        if self._nested is not None:
            more = f" and {self._num_nested - 1} more" if self._num_nested > 1 else ""
            raise DataError(
                f"{self._path} contains nested archives ({self._nested}{more}), which are not "
                "opened; unpack it and name them as inputs"
            )


@lru_cache(maxsize=1024)
def _is_in_system_folder(folder: str) -> bool:
    return any(map(is_system_folder, folder.split("/")))


def _is_hidden(name: str) -> bool:
    """Return whether a member, or a folder that it is in, is hidden or a system's."""
    return _is_in_system_folder(name.rpartition("/")[0]) or any(
        part.startswith(".") and part not in (".", "..") for part in name.split("/")
    )


_Identity = tuple[int, int, int, int]


class _Shared:
    """An archive that threads read at any position; opened by the first read."""

    def __init__(self, path: str, identity: "_Identity") -> None:
        """Take an archive's absolute path, and the identity of the file that was listed."""
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
        """Pickle as a path, so that another process opens the archive once for all images."""
        return _opened_once, (self._path, self._identity)

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from position `start`.

        Raises:
            OSError: If they do not exist.
            UnreachableError: If the archive is gone or has changed since it was listed, or its disk
                or share fails: no other image of it can be read either.
        """
        if start + size > self.size:
            raise OSError("the archive ends before the image does")
        if size > MAX_FILE_BYTES:
            raise OSError(f"it has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
        try:
            handle = self._open() if self._handle is None else self._handle
            data = self._read_at(handle, start, size)
            while len(data) < size:
                more = self._read_at(handle, start + len(data), size - len(data))
                if not more:
                    raise self._changed("was truncated")
                data += more
        except OSError as error:
            refuse_failing(self._path, error)
            raise self._changed(f"cannot be read any more ({cause_of(error)})") from error
        return data

    def _changed(self, how: str) -> UnreachableError:
        return UnreachableError(
            f"the archive {self._path} {how} after it was listed; restore it, then run it again"
        )

    def _open(self) -> int:
        with self._lock:
            if self._handle is None:
                handle = os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                if _identity(handle) != self._identity:
                    os.close(handle)
                    raise self._changed("was replaced")
                self._handle = handle
            return self._handle

    def _read_at(self, handle: int, start: int, size: int) -> bytes:
        if sys.platform == "win32":
            with self._lock:
                os.lseek(handle, start, os.SEEK_SET)
                return os.read(handle, size)
        return os.pread(handle, size, start)

    def __del__(self) -> None:
        """Close the archive when its last image is gone."""
        if self._handle is not None:
            os.close(self._handle)


@lru_cache(maxsize=16)
def _opened_once(path: str, identity: _Identity) -> _Shared:
    return _Shared(path, identity)


# ------------------------------------------------------------------------------------------ tar


def _list_tar(shared: _Shared, file: BinaryIO, members: _Members) -> Iterator[ImageRef]:
    for name, start, size, problem in Tar(TarReader(file)).members():
        shown = members.shown(name)
        if shown is not None:
            if problem is None:
                place = Content(partial(shared.read, start, size), is_portable=True)
            else:
                place = _refused(problem)
            yield ImageRef(shown, place)


def _list_forwards(
    file: "BinaryIO | io.BufferedIOBase", num_packed: int, members: _Members
) -> Iterator[ImageRef]:
    """List the images of a tar that is read once, with their bytes: it cannot be rewound."""
    reader = TarReader(file, max_bytes=_largest(num_packed))
    held = _Held()
    for name, start, size, problem in Tar(reader).members():
        shown = members.shown(name)
        if shown is None:
            continue
        if problem is None and size > MAX_UNPACKED:
            problem = _too_large(size)
        if problem is not None:
            yield ImageRef(shown, _refused(problem))
            continue
        try:
            reader.seek(start)
            content = _Unpacked(reader.content(size), held)
        except DAMAGED as error:
            if isinstance(error, OSError) and error.errno in ENVIRONMENT:
                raise
            problem = "the archive ends before the image does, or is corrupt there"
            yield ImageRef(shown, _refused(problem))
            raise
        yield ImageRef(shown, Content(content.read))
    # The checksum of the unpacked data follows the end of the tar.
    reader.drain()


class _Held:
    """Counts the bytes of images that wait to be decoded."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._lock = Lock()

    def add(self, num_bytes: int) -> int:
        """Add bytes, or subtract them; return the new total."""
        with self._lock:
            self.num_bytes += num_bytes
            return self.num_bytes


class _Unpacked:
    """The bytes of an image until it has been decoded.

    If many bytes are waiting, they are compressed again, so that an archive bomb takes no more
    memory than its packed size. Ordinary images take their own size.
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
        """Return the image's bytes."""
        return zlib.decompress(self._data) if self._is_packed else self._data

    def __del__(self) -> None:
        """Subtract the bytes from the total."""
        self._held.add(-self._num_held)


# ------------------------------------------------------------------------------------------ zip


def _list_zip(shared: _Readable, file: BinaryIO, members: _Members) -> Iterator[ImageRef]:
    with zipfile.ZipFile(file) as content:
        infos = content.filelist
    for info in infos:
        shown = None if info.is_dir() else members.shown(_name_of(info))
        if shown is None:
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            yield ImageRef(shown, _refused("it is a link in the archive"))
        elif info.flag_bits & _ENCRYPTED:
            yield ImageRef(shown, _refused("it is encrypted; unpack the archive with its password"))
        elif info.file_size > MAX_UNPACKED:
            yield ImageRef(shown, _refused(_too_large(info.file_size)))
        else:
            yield _zipped(shown, shared, info)


def _name_of(info: zipfile.ZipInfo) -> str:
    """Return a member's name as its writer meant it.

    `zip` on Linux and the Finder of macOS write UTF-8 without saying so, which `zipfile` takes for
    code page 437. As other programs do: a name that is valid UTF-8 is UTF-8, unless a field holds
    the name.
    """
    if info.flag_bits & _IS_UTF8 or info.orig_filename.isascii():
        return info.filename
    raw = info.orig_filename.encode("cp437")  # the bytes in the file
    name = _unicode_path(info.extra, raw)
    if name is None:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            return info.filename
    return name.partition("\0")[0].replace(os.sep, "/") or info.filename


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in Info-ZIP's extra field; None if there is none for the name `raw`."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        # A version, the checksum of the name that it replaces, and the name.
        if kind == _UNICODE_PATH and field[:5] == struct.pack("<BL", 1, zlib.crc32(raw)):
            return field[5:].decode("utf-8", "replace")
    return None


def _zipped(name: str, shared: _Readable, info: zipfile.ZipInfo) -> ImageRef:
    read = partial(_read_zipped, shared, info)
    if isinstance(shared, _Shared):
        return ImageRef(name, Content(read, is_portable=True))
    return ImageRef(name, RemoteObject(read, num_bytes=info.compress_size))


def _read_zipped(shared: _Readable, info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a member of a zip, after checking them.

    `ZipFile.open` is not used because threads would wait for each other at the shared file.

    Raises:
        OSError: If the member is missing or corrupt.
    """
    header = shared.read(info.header_offset, _LOCAL_HEADER)
    if not header.startswith(b"PK\3\4"):
        raise OSError("the archive is corrupt where the image starts")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    packed = shared.read(info.header_offset + _LOCAL_HEADER + names, info.compress_size)
    try:
        with zipfile.ZipExtFile(io.BytesIO(packed), "r", info) as file:
            data = file.read()  # no more than `info.file_size`
    except DAMAGED as error:
        raise OSError(f"it is corrupt in the archive: {cause_of(error)}") from error
    if len(data) != info.file_size:
        raise OSError("it is corrupt in the archive: it is truncated")
    return data


# --------------------------------------------------------------------------------------- both


def read_members(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each regular file of an archive whose name is wanted.

    Args:
        path: A tar, plain or compressed with gzip, bzip2 or xz, or a zip; its content decides.
        is_wanted: Takes the name of a member.

    Raises:
        OSError: If the archive or a wanted member cannot be read; other errors of `DAMAGED` too.
    """
    with open_regular(path) as file:
        magic = file.read(8)
        file.seek(0)
        if magic.startswith(_ZIP):
            yield from _zip_members(path, file, is_wanted)
            return
        opener = _opener(magic)
        limit = None if opener is None else _largest(_size(file))
        reader = TarReader(file if opener is None else opener(file), max_bytes=limit)
        for name, start, size, problem in Tar(reader).members():
            if problem is None and is_wanted(name):
                if size > MAX_UNPACKED:
                    raise OSError(f"{name}: {_too_large(size)}")
                reader.seek(start)
                yield name, reader.content(size)


def _zip_members(
    path: Path, file: BinaryIO, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    shared = _Shared.listed(path, file)
    with zipfile.ZipFile(file) as content:
        infos = [
            (name, info)
            for info in content.filelist
            if not (info.is_dir() or stat.S_ISLNK(info.external_attr >> 16))
            and is_wanted(name := _name_of(info))
        ]
    limit = _largest(shared.size)
    if sum(info.file_size for _, info in infos) > limit:
        raise OSError(f"it unpacks to more than {limit:,} bytes (an archive bomb?)")
    for name, info in infos:
        if info.flag_bits & _ENCRYPTED:
            raise OSError(f"{name} is encrypted; unpack the archive with its password")
        if info.file_size > MAX_UNPACKED:
            raise OSError(f"{name}: {_too_large(info.file_size)}")
        yield name, _read_zipped(shared, info)


def _largest(num_packed: int) -> int:
    """Return the most bytes to which an archive may unpack."""
    return MAX_RATIO * num_packed + 2**30


def _grouped(images: Iterator[ImageRef]) -> Iterator[list[ImageRef]]:
    """Yield images in lists; before an error is raised, the images that precede it are yielded."""
    group: list[ImageRef] = []
    try:
        for image in images:
            group.append(image)
            if len(group) == MEMBERS_AT_ONCE:
                yield group
                group = []
    except DAMAGED:
        if group:
            yield group
        raise
    if group:
        yield group


def _refused(problem: str) -> Content:
    return Content.of(OSError(problem))


def _too_large(size: int) -> str:
    return (
        f"it has {size:,} bytes, more than the limit of {MAX_UNPACKED:,} for unpacking in memory; "
        "unpack the archive"
    )


def _opener(magic: bytes) -> Callable[[BinaryIO], io.BufferedIOBase] | None:
    return next((opener for start, opener in _OPENERS if magic.startswith(start)), None)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _identity(handle: int) -> _Identity:
    info = os.fstat(handle)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
