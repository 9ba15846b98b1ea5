"""Local copies of remote or packed labeled data, as folders in the user's cache.

Training reads each image several times, so images are downloaded once, and again only if they have
changed.
"""

import csv
import hashlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

import msgspec
from platformdirs import user_cache_path

from tltools.atomic import NO_ROOM, atomic_folder, atomic_path, is_temporary_name, write_text
from tltools.data.archives import DAMAGED, read_members
from tltools.data.labels import LABEL_SUFFIXES
from tltools.data.location import Location, Url
from tltools.data.remote import READS, Entry, Remote, list_files, remote_reason, version_of
from tltools.data.suffixes import is_archive_name, is_image_name
from tltools.errors import DataError, TltoolsError, cause_of
from tltools.parallel import ordered_map
from tltools.progress import SILENT, Progress
from tltools.wording import grouped, plural

CLASS_SUFFIX = ".cls"
"""Suffix of WebDataset members that hold the class of the image with the same name."""
_MANIFEST = "files.json"
_NAMES = "names in UTF-8, with all characters"
"""Part of the keys of unpacked archives: earlier versions read names without the flag of UTF-8 as
code page 437, or left out names with a colon; what they unpacked is not used."""
_STRANGE = frozenset("\\\0:" if sys.platform == "win32" else "\0")
"""Characters that lead elsewhere in a name: on Windows, to another disk or stream."""


def local_data(data: Location, *, progress: Progress = SILENT) -> Path:
    """Return the path of labeled data on this machine, after downloading or unpacking it.

    Args:
        data: A folder or a CSV, local or at a URL (the CSV's folder is then downloaded); or a tar
            or zip of either, which may be a WebDataset shard with `.cls` members.
        progress: Where to report progress.

    Returns:
        `data` itself if it is a local folder or file.

    Raises:
        DataError: If the data is missing, corrupt or empty.
        UnreachableError: If a server cannot be reached.
        TltoolsError: If the cache cannot be written.
    """
    if isinstance(data, Path):
        if not (is_archive_name(data.name) and data.is_file()):
            return data
        info = data.stat()
        place = _cache(f"{data.resolve()}\n{info.st_size}\n{info.st_mtime_ns}\n{_NAMES}")
        return _unpacked(data, place / _stem(data.name))
    remote = Remote(data)
    if is_archive_name(data.name):
        return _fetch_archive(remote, progress)
    if data.suffix.lower() in LABEL_SUFFIXES:
        return _mirror(Remote(data.parent), progress) / data.name
    return _mirror(remote, progress)


def cache_folder(kind: str, key: str) -> Path:
    """Return a folder in the user's cache that is unique to a kind and key."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return user_cache_path("tltools", appauthor=False) / kind / digest


_cache = partial(cache_folder, "data")


def _stem(name: str) -> str:
    """Return an archive's name without its suffixes."""
    return name.partition(".")[0] or name


def _is_wanted(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return is_image_name(name) or suffix in LABEL_SUFFIXES or suffix == CLASS_SUFFIX


def _inside(folder: Path, name: str) -> Path | None:
    """Return the path of an untrusted name in `folder`; None if it leads out of the folder."""
    parts = name.split("/")
    strange = any(part in ("", ".", "..") or _STRANGE & set(part) for part in parts)
    return None if strange else folder.joinpath(*parts)


# ---------------------------------------------------------------------------------- folders


def _mirror(remote: Remote, progress: Progress) -> Path:
    place = _cache(str(remote.url))
    name = remote.url.name
    folder = place / ("data" if name in ("", ".", "..") else name)
    kept = _read_manifest(place)
    found = (entry for page in list_files(remote) for entry in page if _is_wanted(entry.name))
    entries = {entry.name: entry for entry in found}
    if strange := [one for one in entries if _inside(folder, one) is None]:
        progress.warn(
            f"{grouped(len(strange), 'file')} of {remote.url} {plural(len(strange), 'is', 'are')} "
            f"left out, because no file here can have such a name (first {strange[0]!r})"
        )
        for one in strange:
            del entries[one]
    if not entries:
        raise DataError(f"no images in {remote.url}; name a folder or prefix that contains images")
    known = {
        name: entry.version
        for name, entry in entries.items()
        if entry.version and kept.get(name) == entry.version and (folder / name).is_file()
    }
    missing = [entry for name, entry in entries.items() if name not in known]
    progress.say(
        f"Data: {remote.url}, copied to {folder} ({len(known)} cached, {len(missing)} to download)"
    )
    try:
        with progress.bar("Downloading", len(missing)) as bar:
            fetch = partial(_fetch, remote, folder)
            for entry in ordered_map(fetch, missing, workers=READS, ahead=READS):
                known[entry.name] = entry.version
                bar.advance()
    finally:
        write_text(place / _MANIFEST, msgspec.json.encode(known).decode())
    _remove_others(folder, entries)
    return folder


def _read_manifest(place: Path) -> dict[str, str]:
    """Return the versions of the cached files by name; empty if they are unknown."""
    try:
        return msgspec.json.decode((place / _MANIFEST).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def _fetch(remote: Remote, folder: Path, entry: Entry) -> Entry:
    path = _inside(folder, entry.name)
    assert path is not None
    url = remote.url.joined(entry.name)
    try:
        data = remote.read(entry.path, url)
    except OSError as error:
        raise DataError(f"cannot read {url}: {error}; fix or move the file") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return entry


def _remove_others(folder: Path, entries: Iterable[str]) -> None:
    """Remove files that no longer exist at the source, so that they are not used for training."""
    names = set(entries)
    for path in list(folder.rglob("*")):
        inner = path.relative_to(folder)
        if any(map(is_temporary_name, inner.parts)):
            continue  # of a process that downloads the same now
        if path.is_file() and inner.as_posix() not in names:
            path.unlink(missing_ok=True)


# --------------------------------------------------------------------------------- archives


def _fetch_archive(remote: Remote, progress: Progress) -> Path:
    url = remote.url
    try:
        info = remote.info(url)
    except OSError as error:
        raise _cannot_read(url, error) from error
    place = _cache(f"{url}\n{info.get('size')}\n{version_of(info)}\n{_NAMES}")
    folder = place / _stem(url.name)
    if folder.is_dir():
        return folder
    archive = place / url.name
    progress.say(f"Data: {url}, downloaded to {archive}")
    with atomic_path(archive) as temporary:
        try:
            remote.download(url, temporary)
        except OSError as error:
            if error.errno in NO_ROOM:  # of this machine, which is explained outside
                raise
            raise _cannot_read(url, error) from error
    try:
        return _unpacked(archive, folder)
    finally:
        with suppress(OSError):
            archive.unlink()


def _cannot_read(url: Url, error: OSError) -> DataError:
    reason = remote_reason(error)
    return DataError(
        f"cannot read the archive {url}: {reason}; check the name and your permissions"
    )


def _unpacked(archive: Path, folder: Path) -> Path:
    """Unpack an archive into a folder, completely or not at all, unless the folder exists."""
    if folder.is_dir():
        return folder
    classes: dict[str, str] = {}
    images: list[str] = []
    with atomic_folder(folder) as temporary:
        try:
            for member, data in read_members(archive, _is_wanted):
                name = "/".join(part for part in member.split("/") if part not in ("", "."))
                if name.endswith(CLASS_SUFFIX):
                    classes[name.removesuffix(CLASS_SUFFIX)] = _class_of(data)
                    continue
                path = _inside(temporary, name)
                if path is None:
                    raise DataError(
                        f"{archive} has a file that no folder can hold, {member!r}: pack it anew, "
                        "with names that do not lead out of it"
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                if is_image_name(name):
                    images.append(name)
        except DAMAGED as error:
            raise TltoolsError(
                f"cannot unpack {archive} to {folder}: {cause_of(error)}; recreate the archive, "
                "or free some disk space"
            ) from error
        if not images:
            raise DataError(f"no images in {archive}; name an archive that contains images")
        if classes:
            _write_labels(archive, temporary / "labels.csv", images, classes)
    return folder


def _class_of(data: bytes) -> str:
    return data[:4096].decode("utf-8", "replace").strip()


def _write_labels(
    archive: Path, path: Path, images: Iterable[str], classes: dict[str, str]
) -> None:
    """Write the labels of a WebDataset shard as a CSV."""
    rows = [(name, classes.get(_key(name))) for name in images]
    bare = [name for name, label in rows if not label]
    if bare:
        more = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        raise DataError(
            f"{archive} has {CLASS_SUFFIX} members for some images, but not for {bare[0]}{more}: "
            "add one for each image"
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *rows])


def _key(name: str) -> str:
    """Return the common part of the member names of a WebDataset sample: up to the first dot."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]
