"""Sort the images of a finished job into folders by label, and undo that.

The whole plan is a manifest, written to the disk before the first file is touched: whatever stops
the work, the same command finishes it, and it can be undone.
"""

import csv
import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, cast, get_args

import msgspec

from tltools.atomic import (
    NO_ROOM,
    atomic_path,
    check_writable,
    is_temporary_name,
    remove_leftovers,
    sync_folder,
    write_text,
)
from tltools.card import FORBIDDEN
from tltools.classify.inputs import STDIN, list_images
from tltools.classify.output_formats import STDOUT, Row, output_format
from tltools.classify.placing import Action, place, release, take_back
from tltools.classify.predict import UNCERTAIN, UNKNOWN
from tltools.data.folders import (
    MARKER,
    SORT_COLUMNS,
    SORT_ERRORS,
    SORT_MANIFEST,
    SORT_RECORD,
    is_sorted_folder,
    mark_folder,
)
from tltools.data.location import Location, Url
from tltools.data.suffixes import is_archive_name
from tltools.errors import ConfigError, DataError, TltoolsError, cause_of
from tltools.progress import SILENT, Progress
from tltools.regular import regular_sha256
from tltools.wording import grouped, listed, plural

ACTIONS: tuple[Action, ...] = get_args(Action)
AT_ONCE = 256
"""Files that are placed before their folders are flushed to the disk and their sources removed."""
MAX_NAME_BYTES = 200
"""Longest name of a label's folder."""
MAX_FILE_NAME_BYTES = 255
"""Longest file name of most systems."""
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul"}
    | {f"{name}{number}" for name in ("com", "lpt") for number in range(1, 10)}
)
"""Lowercase names that Windows does not let a file or a folder have."""
_SKIPPED = "none"
"""Action of an image that is not sorted."""


@dataclass(frozen=True, kw_only=True)
class SortSettings:
    """Where and how to sort images."""

    folder: Path
    action: Action = "copy"

    def check(
        self, inputs: Sequence[Location], output: Location, *, is_written: bool = False
    ) -> None:
        """Refuse what cannot be sorted, before the images are classified.

        Args:
            inputs: The inputs of the job.
            output: Its output.
            is_written: Whether the job will write the output anew.

        Raises:
            ConfigError: If an input is not on this machine's disks or the folder is in use.
            TltoolsError: If the folder cannot be written.
        """
        if not isinstance(output, Path) or output == STDOUT:
            raise ConfigError("`sort_into=` needs a predictions file here; name one with `output=`")
        for source in inputs:
            if isinstance(source, Url) or source == STDIN or is_archive_name(source.name):
                kind = (
                    "on a server" if isinstance(source, Url)
                    else "standard input" if source == STDIN
                    else "an archive"
                )  # fmt: skip
                raise ConfigError(
                    f"`sort_into=` needs images in folders of this machine, and {source} is "
                    f"{kind}; extract or download the images first"
                )
        if output.absolute().is_relative_to(self.folder.absolute()):
            raise ConfigError(
                f"`output={output}` lies in the folder for the sorted images; choose another one"
            )
        record = _read_record(self.folder)
        if record is not None:
            if record.predictions == str(output.absolute()):
                if is_written and (self.folder / SORT_MANIFEST).exists():
                    raise self._is_of_earlier(output)
                self._check_action(record)
                return
            raise ConfigError(
                f"{self.folder} holds the sorted images of {record.predictions}; choose another "
                f"folder, or undo that with tltools classify {self.folder} --undo-sort"
            )
        if self.folder.exists() and not _is_unused(self.folder):
            raise ConfigError(f"{self.folder} exists and is not empty; choose another folder")
        check_writable(self.folder)

    def _is_of_earlier(self, predictions: Path) -> ConfigError:
        return ConfigError(
            f"{self.folder} holds the images of an earlier {predictions}; choose another folder, "
            f"or undo that with tltools classify {self.folder} --undo-sort"
        )

    def _check_action(self, record: "_Record") -> None:
        """Refuse to finish a sort with another action than it was begun with."""
        is_begun = record.action and (self.folder / SORT_MANIFEST).exists()
        if is_begun and record.action != self.action:
            raise ConfigError(
                f"{self.folder} was begun with `sort_by={record.action}`; use that to finish it, "
                f"or undo it with tltools classify {self.folder} --undo-sort"
            )


class _Record(msgspec.Struct, frozen=True):
    predictions: str
    """Absolute path of the predictions file."""
    sha256: str
    """SHA-256 of its bytes."""
    action: str = ""
    """What is done with the images; empty in records of earlier versions."""
    folder: str = ""
    """Absolute path of the sorted folder, which may be moved; empty in those of earlier ones."""


class Entry(NamedTuple):
    """One line of a manifest."""

    source: str
    """Absolute path of the image."""
    target: str
    """Its new path, relative to the folder; empty if it is not sorted."""
    label: str
    """A class, `unknown` or `uncertain`; empty if the image could not be read."""
    action: str
    """One of `ACTIONS`, or `none`."""


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """How many images went where."""

    folder: Path
    action: Action
    counts: dict[str, int]
    """Number of images by label, most frequent first."""
    num_errors: int
    """Number of images that could not be read, in the folder `errors`."""
    renamed: dict[str, str]
    """Folders whose names differ from their labels, by label."""
    num_clashes: int
    """Number of images that got another name, because one of that name was there."""
    num_skipped: int
    """Number of images that are not sorted: they are missing, or listed twice."""


def sort_images(
    settings: SortSettings,
    inputs: Sequence[Location],
    predictions: Path,
    *,
    spreadsheet: bool = False,
    progress: Progress = SILENT,
) -> Sorted:
    """Copy, link or move the images of a finished job into one folder for each label.

    If that was stopped, the same call finishes it.

    Args:
        settings: Where and how.
        inputs: The inputs of the job, which still exist unless their images were moved before.
        predictions: Its complete output.
        spreadsheet: As the job was given it.
        progress: Where to report progress.

    Raises:
        ConfigError: See `SortSettings.check`.
        DataError: If the images are not those of the predictions.
        TltoolsError: If a file cannot be placed; nothing is lost.
    """
    settings.check(inputs, predictions)
    wanted = _Record(
        str(predictions.absolute()),
        regular_sha256(predictions),
        settings.action,
        str(settings.folder.absolute()),
    )
    manifest = settings.folder / SORT_MANIFEST
    found = _read_record(settings.folder)
    if found is not None:  # that its action fits has been checked
        found = msgspec.structs.replace(found, action=settings.action, folder=wanted.folder)
    if found != wanted or not manifest.exists():
        if manifest.exists():
            raise settings._is_of_earlier(predictions)
        mark_folder(settings.folder)
        write_text(settings.folder / SORT_RECORD, msgspec.json.encode(wanted).decode())
        _write_manifest(manifest, _plan(settings, inputs, predictions, spreadsheet=spreadsheet))
    return _carry_out(settings, manifest, progress)


# --------------------------------------------------------------------------------- the plan


def _plan(
    settings: SortSettings, inputs: Sequence[Location], predictions: Path, *, spreadsheet: bool
) -> Iterator[Entry]:
    """Yield an entry for each row of the predictions, in order."""
    classes, rows = output_format(predictions).read(predictions)
    folders = label_folders(classes)
    taken: set[str] = set()
    seen: set[str] = set()
    parents: dict[str, str] = {}
    for row, source in _paired(rows, inputs, predictions, spreadsheet=spreadsheet):
        label = row.label or ""
        # A folder may be listed twice, under its name and through a link.
        parent, name = os.path.split(source)
        if parent not in parents:
            parents[parent] = os.path.realpath(parent)
        real = os.path.join(parents[parent], name)  # noqa: PTH118
        if real in seen or not Path(source).is_file():
            yield Entry(source, "", label, _SKIPPED)
            continue
        seen.add(real)
        name = _free_name(folders[label], Path(source).name, taken)
        # A relative link would lead elsewhere, so the file that it leads to is copied.
        action = "copy" if Path(source).is_symlink() else settings.action
        yield Entry(source, f"{folders[label]}/{name}", label, action)


def _paired(
    rows: Iterable[Row], inputs: Sequence[Location], predictions: Path, *, spreadsheet: bool
) -> Iterator[tuple[Row, str]]:
    """Yield each row with the absolute path of its image.

    Paths are not read from the rows, which may not hold all bytes of a name, but from a second
    listing, which is in the same order.

    Raises:
        DataError: If that lists other images.
    """
    text = output_format(predictions).codec((), spreadsheet=spreadsheet).text
    images = list_images(inputs)
    for row in rows:
        image = next(images, None)
        if image is None or text(image.name) != row.path:
            raise DataError(
                f"the images have changed since {predictions} was written: at {row.path} there is "
                f"now {image.name if image else 'none'}; nothing was sorted; classify them again "
                "with `overwrite=True`"
            )
        if not isinstance(image.place, str):
            raise DataError(
                f"{image.name} is not a file of this machine, so it cannot be sorted; download the "
                "images first"
            )
        yield row, os.path.abspath(image.place)  # noqa: PTH100 - a link stays one


def label_folders(classes: Iterable[str]) -> dict[str, str]:
    """Return the folder of each label, under a name that every system takes.

    The label of images that could not be read is empty. A class whose safe name is another's gets a
    number.
    """
    taken = {f"/{SORT_MANIFEST}"}
    folders = {"": _free_name("", SORT_ERRORS, taken)}
    folders |= {label: _free_name("", label, taken) for label in (UNCERTAIN, UNKNOWN)}
    for label in classes:
        if label not in folders:
            folders[label] = _free_name("", safe_name(label), taken)
    return folders


def safe_name(label: str) -> str:
    """Return a name for a folder that Linux, macOS and Windows take, and that is not hidden."""
    name = "".join("_" if char in FORBIDDEN or not char.isprintable() else char for char in label)
    name = name.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore")
    name = name.strip().rstrip(". ")
    if name.startswith("."):
        name = f"_{name.lstrip('.')}"
    if name.split(".")[0].lower() in _RESERVED:
        name += "_"
    return name or "_"


def _free_name(folder: str, name: str, taken: set[str]) -> str:
    """Return a name that is free in a folder, also if case does not count: `a.jpg`, `a-2.jpg`."""
    stem, suffix = os.path.splitext(name) if folder else (name, "")  # noqa: PTH122
    number, free = 1, name
    while f"{folder}/{free}".casefold() in taken:
        number += 1
        end = f"-{number}{suffix}"
        free = stem + end
        while len(os.fsencode(free)) > MAX_FILE_NAME_BYTES:
            stem = stem[:-1]
            free = stem + end
    taken.add(f"{folder}/{free}".casefold())
    return free


# ----------------------------------------------------------------------------- the manifest


def _write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Write the plan, completely and flushed to the disk, or not at all."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        # A name may hold a carriage return, which Python before 3.13 would not quote.
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(SORT_COLUMNS)
        writer.writerows(entries)


def read_manifest(path: Path) -> Iterator[Entry]:
    """Yield the entries of a manifest.

    Raises:
        DataError: If it is not a manifest, or names a target outside its folder.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, strict=True)
            if tuple(next(rows, ())) != SORT_COLUMNS:
                raise DataError(f"{path} is not a manifest of sorted images; name such a folder")
            for number, row in enumerate(rows, 2):
                yield _checked(row, f"{path} line {number}")
    except FileNotFoundError as error:
        raise DataError(
            f"{path.parent} holds no sorted images: it has no {SORT_MANIFEST}; name a folder of "
            "`sort_into=`"
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {cause_of(error)}") from error


def sorted_places(folder: Path) -> dict[str, str]:
    """Return where the images of a folder of sorted images are, by name, and relative to it.

    Of `/photos/a/b.jpg` the names are `b.jpg`, `a/b.jpg` and so on: of the images of one job, the
    shortest path that ends in a name is meant. Empty if the folder holds no sorted images.
    """
    manifest = folder / SORT_MANIFEST
    if not is_sorted_folder(folder):
        return {}
    places: dict[str, str] = {}
    for one in sorted(read_manifest(manifest), key=lambda one: one.source.count("/")):
        if one.target:
            parts = Path(one.source).parts[1:]
            for start in range(len(parts)):
                places.setdefault("/".join(parts[start:]), one.target)
    return places


def _checked(row: Sequence[str], where: str) -> Entry:
    """Check a line: the paths of a manifest are used to move and delete files."""
    if len(row) == len(SORT_COLUMNS):
        entry = Entry(*row)
        parts = entry.target.split("/")
        inside = len(parts) == 2 and all(part not in ("", ".", "..") for part in parts)
        if entry.action == _SKIPPED:
            return entry
        if entry.action in ACTIONS and inside and Path(entry.source).is_absolute():
            return entry
    raise DataError(f"{where} is not what tltools wrote; repair the line, or remove it")


# -------------------------------------------------------------------------- carrying it out


def _carry_out(settings: SortSettings, manifest: Path, progress: Progress) -> Sorted:
    """Place the images of a manifest that are not in their places yet."""
    counts: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    clashes = skipped = 0
    total = sum(1 for _ in read_manifest(manifest))
    # Images that are links are copied before what they lead to may be moved.
    entries = chain(
        (one for one in read_manifest(manifest) if one.action != "move"),
        (one for one in read_manifest(manifest) if one.action == "move"),
    )
    with progress.bar("Sorting", total) as bar:
        while some := list(islice(entries, AT_ONCE)):
            done = [one for one in some if one.action != _SKIPPED]
            _place_all(settings.folder, done)
            skipped += len(some) - len(done)
            for entry in done:
                folder, name = entry.target.split("/")
                counts[entry.label] += 1
                clashes += name != Path(entry.source).name
                if entry.label and folder != entry.label:
                    renamed[entry.label] = folder
            bar.advance(len(some))
    for one in (settings.folder, *settings.folder.iterdir()):
        if one.is_dir():
            remove_leftovers(one)  # of a call that was stopped
    num_errors = counts.pop("", 0)
    return Sorted(
        folder=settings.folder,
        action=settings.action,
        counts=dict(counts.most_common()),
        num_errors=num_errors,
        renamed=renamed,
        num_clashes=clashes,
        num_skipped=skipped,
    )


def _place_all(folder: Path, entries: Sequence[Entry]) -> None:
    """Place some images; sources are removed once the targets are on the disk."""
    moved: list[tuple[Path, Path]] = []
    for entry in entries:
        source, target = Path(entry.source), folder / entry.target
        try:
            if not source.exists() and target.exists():
                continue  # moved before the work was stopped, or a link to such an image
            target.parent.mkdir(exist_ok=True)
            place(source, target, cast("Action", entry.action))
        except OSError as error:
            raise _cannot_place(source, target, entry.action, error) from error
        if entry.action == "move":
            moved.append((source, target))
    for parent in dict.fromkeys(target.parent for _, target in moved):
        sync_folder(parent)
    for source, target in moved:
        try:
            release(source, target)
        except OSError as error:
            raise _cannot_place(source, target, "move", error) from error


def _cannot_place(source: Path, target: Path, action: str, error: OSError) -> TltoolsError:
    verbs = {"copy": "copy", "hardlink": "hard-link", "move": "move"}
    if error.errno in NO_ROOM:
        remedy = "free some disk space"
    elif action == "hardlink" and error.errno != errno.EEXIST:
        remedy = (
            "the folder must be on the same disk, and its file system must have hard links; choose "
            "`sort_by=copy` and another folder"
        )
    elif error.errno == errno.ENOENT and not os.path.lexists(source):
        remedy = "bring the image back, or remove its line from the manifest"
    else:
        remedy = "fix that"
    return TltoolsError(
        f"cannot {verbs[action]} {source} to {target}: {cause_of(error)}; no image is lost; "
        f"{remedy}, then run the same command again to finish"
    )


# ----------------------------------------------------------------------------------- undoing


@dataclass(frozen=True, kw_only=True)
class Undone:
    """The result of undoing a sort."""

    folder: Path
    num_undone: int
    counts: dict[str, int]
    """Number of these by what sorting had done: `copy`, `hardlink`, `move`."""
    kept: tuple[str, ...]
    """Why each image that is still in the folder is there."""
    place: str = ""
    """The folder that moved images went back to, or the one above all of these."""
    others: tuple[str, ...] = ()
    """Files that sorting did not put there, relative to the folder, which stays for them."""


def undo_sort(folder: Path, *, progress: Progress = SILENT) -> Undone:
    """Bring moved images back, and delete copies and links, by the folder's manifest.

    Images that have changed since are kept, and with them the manifest: the call can be repeated.
    Folders that become empty are removed.

    Args:
        folder: A folder of sorted images.
        progress: Where to report progress.

    Raises:
        DataError: If it is not such a folder.
        TltoolsError: If a file cannot be moved or deleted.
    """
    manifest = folder / SORT_MANIFEST
    entries = [one for one in read_manifest(manifest) if one.action != _SKIPPED]
    entries = _after_a_move(folder, entries)
    elsewhere = _moved_by_hand(folder, entries)
    entries.sort(key=lambda one: one.action != "move")  # links lead somewhere again
    kept: list[str] = []
    counts: Counter[str] = Counter()
    with progress.bar("Undoing", len(entries)) as bar:
        for entry in entries:
            is_there = os.path.lexists(folder / entry.target)
            reason = _take_back(folder, entry, elsewhere.get(entry.target))
            if reason is not None:
                kept.append(f"{folder / entry.target} {reason}")
            elif is_there:
                counts[entry.action] += 1
            bar.advance()
    _remove_empty(folder, entries, everything=not kept)
    return Undone(
        folder=folder,
        num_undone=counts.total(),
        counts=dict(counts),
        place=_common_folder(one.source for one in entries if one.action == "move"),
        kept=tuple(kept),
        others=() if kept else tuple(_others_in(folder)),
    )


def _take_back(folder: Path, entry: Entry, elsewhere: str | None) -> str | None:
    """Undo one entry of a manifest; return why its image was kept, or None.

    Raises:
        TltoolsError: If a file cannot be moved or deleted.
    """
    if elsewhere is not None:
        return f"was moved to {folder / elsewhere}; put it back to undo that, too"
    target = folder / entry.target
    try:
        return take_back(Path(entry.source), target, cast("Action", entry.action))
    except OSError as error:
        raise TltoolsError(
            f"cannot bring back {target} to {entry.source}: {cause_of(error)}; no image is lost; "
            "fix that and run the same command again"
        ) from error


def _after_a_move(folder: Path, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with sources where they are if the folder was moved since the sorting.

    If the images' folders were moved with it, they are where they were relative to it.

    Raises:
        DataError: If a folder of images is neither there nor where it was.
    """
    record = _read_record(folder)
    old, new = "" if record is None else record.folder, os.path.realpath(folder)
    if not old or os.path.realpath(old) == new:
        return list(entries)
    places: dict[str, str] = {}
    for parent in {os.path.dirname(one.source) for one in entries}:  # noqa: PTH120 - speed
        beside = os.path.normpath(os.path.join(new, os.path.relpath(parent, old)))  # noqa: PTH118
        places[parent] = next((one for one in (beside, parent) if Path(one).is_dir()), "")
        if not places[parent]:
            raise DataError(
                f"{folder} was at {old} when it was sorted, and {parent}, where images came from, "
                f"is gone; make that folder, or {beside}, and run the same command again"
            )
    return [
        one._replace(source=str(Path(places[os.path.dirname(one.source)]) / Path(one.source).name))  # noqa: PTH120
        for one in entries
    ]


def _moved_by_hand(folder: Path, entries: Sequence[Entry]) -> dict[str, str]:
    """Return the new places of images that were moved to another label's folder, by their old ones.

    That is how labels are corrected, which an undo must not lose.
    """
    targets = {one.target for one in entries}
    inner = [one.name for one in folder.iterdir() if one.is_dir()]
    moved: dict[str, str] = {}
    for target in targets:
        if os.path.lexists(folder / target):
            continue
        name = target.split("/")[1]
        places = {f"{one}/{name}" for one in inner if os.path.lexists(folder / one / name)}
        if len(places - targets) == 1:
            moved[target] = (places - targets).pop()
    return moved


def _common_folder(paths: Iterable[str]) -> str:
    """Return the folder that holds all paths; empty if there are none."""
    parents = {os.path.dirname(path) for path in paths}  # noqa: PTH120 - speed
    return os.path.commonpath(parents) if parents else ""


def _others_in(folder: Path) -> Iterator[str]:
    """Yield the files in a folder whose sorting was undone, if it is still there."""
    for path in sorted(folder.rglob("*")):
        if path.name != MARKER and not path.is_dir():
            yield path.relative_to(folder).as_posix()


def _remove_empty(folder: Path, entries: Sequence[Entry], *, everything: bool) -> None:
    """Remove the folders of labels that are empty; then tltools' own files, and the folder."""
    for name in sorted({entry.target.split("/")[0] for entry in entries}):
        if (folder / name).is_dir():
            remove_leftovers(folder / name)
            if _is_empty(folder / name):
                (folder / name).rmdir()
    if not everything:
        return
    remove_leftovers(folder)
    is_ours = {one.name for one in folder.iterdir()} <= {MARKER, SORT_RECORD, SORT_MANIFEST}
    # The manifest is last: as long as it is there, the call can be repeated.
    for name in (SORT_RECORD, *([MARKER] if is_ours else []), SORT_MANIFEST):
        (folder / name).unlink(missing_ok=True)
    if is_ours:
        folder.rmdir()


# ------------------------------------------------------------------------------------ helpers


def describe(done: Sorted) -> str:
    """Say in one line how many images went where."""
    parts = [f"{count:,} {label}" for label, count in done.counts.items()]
    parts += [f"{done.num_errors:,} in {SORT_ERRORS}/"] if done.num_errors else []
    verb = {"copy": "Copied", "hardlink": "Hard-linked", "move": "Moved"}[done.action]
    number = grouped(sum(done.counts.values()) + done.num_errors, "image")
    return f"{verb} {number} into {done.folder}/: {', '.join(parts) or 'none'}"


def describe_undone(undone: Undone) -> str:
    """Say in one line how many images were removed or moved back."""
    texts = {
        "copy": lambda count: f"removed {grouped(count, 'copy', 'copies')}",
        "hardlink": lambda count: f"removed {grouped(count, 'hard link')}",
        "move": lambda count: f"moved {grouped(count, 'image')} back",
    }
    done = " and ".join(texts[action](count) for action, count in undone.counts.items())
    if not done:
        return f"No image to remove from {undone.folder}"
    to = f" to {undone.place}" if undone.place and undone.counts.get("move") else ""
    stays = ""
    if undone.others:
        stays = f"; {undone.folder} stays, since sorting did not put {listed(undone.others)} there"
    return f"{done[:1].upper()}{done[1:]} from {undone.folder}{to}{stays}"


def notes(done: Sorted) -> Iterator[str]:
    """Say what is not as the labels and names were."""
    for label, folder in done.renamed.items():
        yield f"{done.folder}: the folder of {label!r} is {folder!r}, which every system takes"
    if done.num_clashes:
        yield (
            f"{done.folder}: {grouped(done.num_clashes, 'image')} got "
            f"{plural(done.num_clashes, 'another name', 'other names')}, because one of that name "
            f"was there; {SORT_MANIFEST} has both"
        )
    if done.num_skipped:
        yield (
            f"{done.folder}: {grouped(done.num_skipped, 'image')} not sorted: missing, or listed "
            f"twice; {SORT_MANIFEST} names {plural(done.num_skipped, 'it', 'them')}"
        )


def _read_record(folder: Path) -> _Record | None:
    try:
        return msgspec.json.decode((folder / SORT_RECORD).read_bytes(), type=_Record)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ConfigError(f"{folder} is a file; choose a folder") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{folder / SORT_RECORD} is damaged; choose another folder") from error


def _is_unused(folder: Path) -> bool:
    """Return whether a folder holds nothing but what a stopped sort may have left."""
    return all(one.name == MARKER or is_temporary_name(one.name) for one in folder.iterdir())


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None
