"""Read classes and splits from folders, in the layouts in which data sets are published.

A folder that could be read in two ways is refused: a wrong reading would train without an error.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tltools.data.findings import Finding, shorten
from tltools.data.folders import (
    MARKER,
    SHEET,
    SORT_ERRORS,
    SORT_MANIFEST,
    SkipReason,
    find_folders,
    is_sorted_folder,
    is_system_folder,
    own_content,
)
from tltools.data.left_out import LeftOut, describe_counts
from tltools.data.splits import (
    is_unlabeled_name,
    split_of_folder,
    split_of_word,
    without_split_word,
)
from tltools.data.suffixes import is_image_name
from tltools.decisions import UNCERTAIN, UNKNOWN
from tltools.errors import ConfigError, DataError, cause_of
from tltools.wording import counted, grouped, listed, plural

_ORDER = ("train", "val", "test", "")
_FEW = 50
"""Names in a folder that are looked at for a hint."""
_CONTAINERS = frozenset({
    "images", "image", "imgs", "img", "jpegimages", "data", "files", "all", "default", "unlabeled",
})  # fmt: skip
"""Names of folders that hold images and are no classes."""
_ANNOTATIONS = frozenset({
    "masks", "mask", "labels", "annotations", "annotation", "segmentations", "gt",
})  # fmt: skip
_PART_NAME = re.compile(r"(.*[\W_])?(part|batch|chunk|shard|fold)[\W_]*\d+", re.IGNORECASE)
_EXPORT_SUFFIXES = (".onnx", ".pt")
_DECIDE = (
    "choose with `class_level=1` (the upper folders are classes) or `class_level=2` (the folders "
    "in them are)"
)

_WITHOUT_LABEL = (SORT_ERRORS, UNCERTAIN, UNKNOWN)
"""Folders of sorted images that are no classes."""

Parts = tuple[str, ...]
"""A folder, as the names of the folders that lead to it."""


class LabeledImage(NamedTuple):
    """An image with its label."""

    path: str
    """Absolute path."""
    label: str
    split: str
    """`train`, `val`, `test`, or empty."""


@dataclass(frozen=True)
class FolderLabels:
    """The labels that folders give to the images in them."""

    rows: list[LabeledImage]
    """By split, class and name."""
    reading: str
    """Which folders are the classes and splits, in one line."""
    findings: tuple[Finding, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files without an image suffix, by suffix in lowercase, most frequent first."""


def read_class_folders(folder: Path, *, class_level: int | None = None) -> FolderLabels:
    """Read the labels of images from the folders that they are in.

    Args:
        folder: A folder in one of the layouts of `tltools docs data`.
        class_level: Level of the class folders below `folder`, from 1; None to find it.

    Raises:
        DataError: If there are no class folders, or the folders can be read in two ways. An empty
            class folder is a finding.
        ConfigError: If there are no folders at `class_level`.
    """
    tree = _Tree.scan(folder)
    layout = _find_layout(tree) if class_level is None else _layout_at(tree, class_level)
    _check_class_names(tree, layout)
    depths = sorted({len(parts) for parts in layout.classes})
    rows: list[LabeledImage] = []
    loose: list[str] = []
    for parts, names in tree.entries:
        owner = next((parts[:n] for n in depths if parts[:n] in layout.classes), None)
        start = os.path.join(tree.root, *parts)  # noqa: PTH118
        paths = [os.path.join(start, name) for name in names]  # noqa: PTH118
        if owner is None:
            loose += paths
        else:
            label, split = layout.classes[owner]
            rows += [LabeledImage(path, label, split) for path in paths]
    rows.sort(key=lambda row: _ORDER.index(row.split))
    findings = (*_empty(tree, layout), *_findings(tree, loose))
    if class_level is None:
        findings += _nested(tree, layout)
    return FolderLabels(rows, _describe(tree, layout), findings, tree.left_out)


def _findings(tree: "_Tree", loose: Sequence[str]) -> tuple[Finding, ...]:
    found: list[Finding] = []
    if loose:
        text = (
            f"{grouped(len(loose), 'image')} {plural(len(loose), 'is', 'are')} not in a class "
            f"folder and skipped: {shorten(Path(path).name for path in loose)}"
        )
        found.append(Finding("warning", "loose", text, tuple(loose)))
    for reason, kind, what in (
        ("system", "system-folder", "that the system made"),
        ("output", "own-output", "that tltools wrote"),
    ):
        skipped = [path for path, why in tree.skipped if why == reason]
        paths = [path for path in skipped if not is_sorted_folder(path)]
        if paths:
            names = shorten(path.relative_to(tree.root).as_posix() for path in paths)
            noun = "item" if any(path.name == SHEET for path in paths) else "folder"
            text = f"{grouped(len(paths), noun)} {what} skipped: {names}"
            found.append(Finding("note", kind, text, tuple(map(str, paths))))
    found += list(_of_sorted(tree))
    found += [Finding("warning", "left-out", str(error)) for error in tree.unread]
    if tree.left_out:
        found.append(Finding("note", "left-out-files", describe_counts(tree.left_out)))
    return tuple(found)


def _of_sorted(tree: "_Tree") -> Iterator[Finding]:
    """Say what the labels of sorted images are, and which images have none."""
    if tree.sorted_folders:
        text = (
            f"{_named(tree, tree.sorted_folders)} by predicted labels: correct them, by moving "
            "images to other folders, before you train on them"
        )
        yield Finding("note", "predicted-labels", text)
    if left_out := [path for path, _ in tree.skipped if is_sorted_folder(path)]:
        marks = listed([str(path / MARKER) for path in left_out])
        text = (
            f"{_named(tree, left_out)} by predicted labels, and left out: to train on them once "
            f"they are corrected, delete {marks}"
        )
        yield Finding("warning", "left-out-sorted", text, tuple(map(str, left_out)))
    if tree.unlabeled:
        names = listed([f"{name} ({number:,})" for name, number in tree.unlabeled.items()])
        text = (
            f"{grouped(sum(tree.unlabeled.values()), 'image')} without a label left out: {names}; "
            "move them to the folders of their classes to use them"
        )
        yield Finding("warning", "unlabeled", text)


def _named(tree: "_Tree", folders: Sequence[Path]) -> str:
    """Name folders that tltools sorted images into, as the subject of a sentence."""
    names = [path.relative_to(tree.root).as_posix() for path in folders]
    names = [tree.root.name if name == "." else name for name in names]
    return f"{listed(names)} {plural(len(names), 'holds', 'hold')} images that tltools sorted"


def _nested(tree: "_Tree", layout: "_Layout") -> tuple[Finding, ...]:
    """Doubt classes that hold folders in place of images, if others hold images or the same ones.

    A folder too high was named, perhaps: one that holds the images to classify, too.
    """
    if layout.splits:
        return ()

    def known(parts: Parts) -> set[str]:
        return {*_CONTAINERS, parts[-1].lower()}

    inner = {
        parts: folders
        for parts in layout.classes
        if not tree.has_loose(parts)
        # An archive's folder may hold one of its own name.
        and (folders := [one for one in tree.children(parts) if one.lower() not in known(parts)])
    }
    names = [name for folders in inner.values() for name in folders]
    is_even = len(inner) == len(layout.classes) and len(set(names)) == len(names)
    if not inner or is_even:
        return ()
    labels = [layout.classes[parts][0] for parts in inner]
    first = next(iter(inner))
    if len(inner) > 1:
        remedy = f"`class_level={len(first) + 1}` takes those as classes"
    elif len(names) > 1:
        remedy = f"name {tree.name(first)} as the data if those are the classes"
    else:
        remedy = f"move {names[0]} up if that is the class"
    text = (
        f"{plural(len(labels), 'class', 'classes')} {listed(labels)} "
        f"{plural(len(labels), 'has', 'have')} no images, only folders "
        f"({shorten(dict.fromkeys(names))}): {remedy}"
    )
    return (Finding("warning", "nested", text),)


# --- The folders ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """All folders with images below a root."""

    root: Path
    """Absolute."""
    entries: list[tuple[Parts, list[str]]] = field(default_factory=list)
    """Folders and the names of images in them, in the order of their paths."""
    _children: dict[Parts, dict[str, None]] = field(default_factory=dict)
    _loose: set[Parts] = field(default_factory=set)
    skipped: list[tuple[Path, SkipReason]] = field(default_factory=list)
    unread: list[DataError] = field(default_factory=list)
    """One error for each suffix of images that is no image suffix."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of files without an image suffix, by suffix."""
    unlabeled: dict[str, int] = field(default_factory=dict)
    """Number of images in folders that sorting made for images without a label, by folder."""
    sorted_folders: list[Path] = field(default_factory=list)
    """Folders of sorted images that are read, since they are the root or no longer marked."""

    @classmethod
    def scan(cls, folder: Path) -> "_Tree":
        """List all images below a folder, once."""
        root = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() follows links
        tree = cls(root)

        def note(path: Path, reason: SkipReason) -> None:
            tree.skipped.append((path, reason))

        def look_at(path: Path, names: Sequence[str]) -> None:
            left_out.add(path, names)
            if SORT_MANIFEST in names and is_sorted_folder(path):
                tree.sorted_folders.append(path)
            if any(name.endswith(_EXPORT_SUFFIXES) for name in names):
                exports.append(path)

        exports: list[Path] = []
        left_out = LeftOut(tree.unread.append)
        for path, names in find_folders(root, on_others=look_at, on_skip=note):
            parts = path.relative_to(root).parts
            if tree.is_without_label(path):
                name = "/".join(parts)
                tree.unlabeled[name] = tree.unlabeled.get(name, 0) + len(names)
                continue
            tree.entries.append((parts, list(names)))
            tree._loose.add(parts)
            for depth, name in enumerate(parts):
                tree._children.setdefault(parts[:depth], {})[name] = None
        tree.left_out.update(left_out.counts())
        for path in exports:
            parts = path.relative_to(root).parts
            if parts and parts not in tree._loose and parts not in tree._children:
                note(path, "output")
        return tree

    def is_without_label(self, path: Path) -> bool:
        """Return whether a folder was made for sorted images that have no label."""
        return path.name in _WITHOUT_LABEL and path.parent in self.sorted_folders

    def children(self, folder: Parts) -> list[str]:
        """Return the names of the folders in `folder` with images in them or below."""
        return list(self._children.get(folder, ()))

    def has_loose(self, folder: Parts) -> bool:
        """Return whether images are in `folder` itself."""
        return folder in self._loose

    def core(self, folder: Parts) -> Parts:
        """Return the folder that the only folders in `folder` lead to, if it has folders."""
        while len(names := self.children(folder)) == 1 and self.children((*folder, names[0])):
            folder = (*folder, names[0])
        return folder

    def name(self, folder: Parts) -> str:
        """Return a folder's path, for messages."""
        return str(self.root.joinpath(*folder))

    def empty_folders(self, folder: Parts) -> list[str]:
        """Return the names of visible folders without images, except output of tltools."""
        path = self.root.joinpath(*folder)
        outputs = [place for place, reason in self.skipped if reason == "output"]
        try:
            names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        except OSError as error:
            raise DataError(f"cannot list {path}: {cause_of(error)}; make it readable") from error
        return [
            name
            for name in names
            if not name.startswith(".")
            and not is_system_folder(name)
            and name not in self._children.get(folder, ())
            and not self.is_without_label(path / name)
            and not any(place.is_relative_to(path / name) for place in outputs)
        ]


@dataclass(frozen=True)
class _Layout:
    """Which folders are classes."""

    classes: dict[Parts, tuple[str, str]]
    """The class and the split of each class folder."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """The split of each split folder."""
    splits_in_classes: bool = False
    """Whether the split folders are in the class folders."""


def _describe(tree: _Tree, layout: _Layout) -> str:
    if not layout.splits:
        parents = {parts[:-1] for parts in layout.classes}
        if len(parents) == 1:
            return f"classes from the folders in {tree.name(parents.pop())}"
        return f"classes from the folders at level {min(map(len, layout.classes))}"
    names = shorten(
        name if name.lower() == split else f"{name} ({split})"
        for name, split in layout.splits.items()
    )
    if layout.splits_in_classes:
        return f"classes from folders, split from the folders in them: {names}"
    return f"classes from the folders in {names}"


def _layout_at(tree: _Tree, level: int) -> _Layout:
    """Return the folders at a level as classes; split folders above them are splits."""
    if level < 1:
        raise ConfigError(f"`class_level=` must be 1 or more, got {level}")
    classes: dict[Parts, tuple[str, str]] = {}
    splits: dict[str, str] = {}
    for parts, _ in tree.entries:
        if len(parts) >= level:
            words = {name: split for name in parts[: level - 1] if (split := split_of_word(name))}
            splits |= words
            classes[parts[:level]] = (parts[level - 1], next(iter(words.values()), ""))
    if not classes:
        raise ConfigError(f"{tree.root} has no images in folders at `class_level={level}`")
    bare = [parts for parts, (_, split) in classes.items() if not split]
    if splits and bare:
        raise DataError(
            f"{tree.root} contains {shorten(splits)}, but also folders of images that are not "
            f"splits ({shorten(dict.fromkeys(parts[0] for parts in bare))}): move those away"
        )
    return _Layout(classes, _in_order(splits))


# --- Finding the layout ---------------------------------------------------------------------------


def _find_layout(tree: _Tree) -> _Layout:
    base = _base(tree)
    names = tree.children(base)
    if not names:
        above = tree.root.parent
        remedy = (
            f"name {above} if {tree.root.name} is one of the classes, or the CSV with the labels"
            if base == () and tree.has_loose(()) and _has_folders_of_images(above)
            else "make one folder per class, or name the CSV with the labels"
        )
        raise DataError(
            f"{tree.name(base)} contains neither a CSV nor class folders{own_content(tree.root)}: "
            f"{remedy}"
        )
    layout = _splits_first(tree, base) or _classes_first(tree, base)
    if layout is None:
        _refuse_groups(tree, base)
        layout = _Layout({(*base, name): (name, "") for name in names})
    _refuse_no_classes(tree, base, sorted({label for label, _ in layout.classes.values()}))
    return layout


def _has_folders_of_images(folder: Path) -> bool:
    """Return whether several folders in a folder hold images; only some names are looked at."""

    def holds_images(path: Path) -> bool:
        with os.scandir(path) as entries:
            return any(is_image_name(one.name) for one in islice(entries, _FEW))

    try:
        inner = [one for one in islice(folder.iterdir(), _FEW) if one.is_dir()]
        return sum(map(holds_images, inner)) > 1
    except OSError:  # it cannot be listed, and is not proposed
        return False


def _base(tree: _Tree) -> Parts:
    """Return the folder that holds the splits or classes, below folders that only wrap it."""
    base: Parts = ()
    while len(names := tree.children(base)) == 1:
        inner = (*base, names[0])
        if not tree.children(inner) or split_of_word(names[0]):
            return base
        wraps = names[0].lower() in _CONTAINERS or any(map(split_of_word, tree.children(inner)))
        if tree.empty_folders(base) and not wraps:
            return base  # the others may be classes whose images cannot be seen
        base = inner
    return base


def _splits_first(tree: _Tree, base: Parts) -> _Layout | None:
    """Return the layout SPLIT/CLASS, or None if the folders in `base` are no splits.

    A class may be named `train`, too, next to `car` and `bus`.
    """
    splits = _named_splits(tree, base)
    others = [
        name
        for name in tree.children(base)
        if name not in splits
        and not (is_unlabeled_name(name) and not _class_names(tree, (*base, name), known=()))
    ]
    divided = [name for name in splits if tree.children((*base, name))]
    if not splits:
        return None
    if others and not divided:
        if len(set(splits.values())) > 1:
            raise _not_splits(tree, base, splits, others)
        return None
    if others and all(tree.has_loose((*base, name)) for name in divided):
        return None
    if others:
        raise _not_splits(tree, base, divided, others)
    return _read_splits(tree, base, splits)


def _named_splits(tree: _Tree, base: Parts) -> dict[str, str]:
    """Return the split of each folder that is named as one.

    `dogs_train` and `dogs_test` are splits as a pair, by the same rest of their names or by the
    same folders in them; `train_station` alone is none.
    """
    names = tree.children(base)
    exact = {name: split for name in names if (split := split_of_word(name))}
    pairs = {
        name: split for name in names if name not in exact and (split := split_of_folder(name))
    }
    rests = {without_split_word(name) for name in pairs}
    contents = [set(tree.children(tree.core((*base, name)))) for name in (*exact, *pairs)]
    contents = [names for names in contents if names]
    alike = len(contents) > 1 and bool(set.intersection(*contents))
    distinct = len({*exact.values(), *pairs.values()}) > 1
    if pairs and distinct and ((len(rests) == 1 and not exact) or alike):
        return {name: split for name in names if (split := exact.get(name) or pairs.get(name))}
    return exact


def _not_splits(
    tree: _Tree, base: Parts, splits: Sequence[str] | Mapping[str, str], others: Sequence[str]
) -> DataError:
    """Return the error that some folders are named like splits, and others are not."""
    if not any(tree.children((*base, name)) for name in splits):
        return DataError(
            f"{tree.name(base)} contains {shorten(splits)}, which are named like splits, and "
            f"{shorten(others)}, which are not: move those away, or use `class_level=1` if all of "
            "them are classes"
        )
    contains = f"{tree.name(base)} contains class folders in {shorten(splits)}"
    divided = [
        name
        for name in others
        if (inner := tree.children((*base, name))) and not any(map(split_of_word, inner))
    ]
    if divided:
        return DataError(
            f"{contains} and in {shorten(divided)}, which "
            f"{plural(len(divided), 'is', 'are')} not named like a split: name "
            f"{tree.name((*base, divided[0]))} as the data, or rename it to train, val or test"
        )
    return DataError(
        f"{contains}, but also folders of images that are not splits ({shorten(others)}): move "
        "those away"
    )


def _read_splits(tree: _Tree, base: Parts, splits: Mapping[str, str]) -> _Layout:
    contents = {name: tree.children((*base, name)) for name in splits}
    known = {label for names in contents.values() if len(names) > 1 for label in names}
    classes: dict[Parts, tuple[str, str]] = {}
    used: dict[str, str] = {}
    for name, split in splits.items():
        found = _class_names(tree, (*base, name), known=known)
        if not found:
            continue
        same = [other for other, used_split in used.items() if used_split == split]
        if same:
            raise DataError(
                f"{tree.name(base)} contains {shorten([*same, name])}, which both mean the "
                f"{split} split: move one of them away, or merge them"
            )
        used[name] = split
        classes |= {parts: (parts[-1], split) for parts in found}
    if not classes:
        raise DataError(
            f"{tree.name(base)} contains {shorten(splits)}, but no class folders: "
            "put the images into one folder per class, or name a CSV with the labels"
        )
    return _Layout(classes, _in_order(used))


def _class_names(tree: _Tree, split: Parts, *, known: "set[str] | tuple[()]") -> list[Parts]:
    """Return the class folders of a split; empty if its images have no classes."""
    names = tree.children(split)
    while len(names) == 1 and names[0] not in known and tree.children((*split, names[0])):
        split = (*split, names[0])
        names = tree.children(split)
    if len(names) == 1 and names[0] not in known:
        only = names[0]
        if only.lower() in _CONTAINERS or only == split[-1] or split_of_word(only):
            return []
    return [(*split, name) for name in names]


def _classes_first(tree: _Tree, base: Parts) -> _Layout | None:
    """Return the layout CLASS/SPLIT, or None if the folders in `base` hold no splits."""
    contents = {name: tree.children((*base, name)) for name in tree.children(base)}
    found = {
        name: splits
        for name, names in contents.items()
        if (splits := {inner: split for inner in names if (split := split_of_word(inner))})
    }
    if len({split for splits in found.values() for split in splits.values()}) <= 1:
        return None
    deeper = [
        tree.name((*base, name, inner))
        for name, splits in found.items()
        for inner in splits
        if tree.children((*base, name, inner))
    ]
    mixed = any(len(found.get(name, ())) < max(1, len(names)) for name, names in contents.items())
    if mixed or deeper:
        raise DataError(
            f"{tree.name(base)} contains split folders in some of its folders "
            f"({shorten(found)}), but they are not all CLASS/SPLIT or all SPLIT/CLASS: name one of "
            f"them as the data, or {_DECIDE}"
        )
    classes = {
        (*base, name, inner): (name, split)
        for name, splits in found.items()
        for inner, split in splits.items()
    }
    words = {inner: split for splits in found.values() for inner, split in splits.items()}
    return _Layout(classes, _in_order(words), splits_in_classes=True)


def _in_order(splits: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(splits.items(), key=lambda item: _ORDER.index(item[1])))


def _refuse_groups(tree: _Tree, base: Parts) -> None:
    """Refuse folders that share the names of their folders, such as sites or folds.

    They could be classes with the same parts in each, or groups of images of the same classes.
    """
    names = tree.children(base)
    contents = {name: tree.children(tree.core((*base, name))) for name in names}
    divided = [name for name in names if contents[name]]
    if len(divided) * 2 < len(names) or all(tree.has_loose((*base, name)) for name in divided):
        return
    holders: dict[str, int] = {}
    for name in divided:
        for inner in contents[name]:
            holders[inner] = holders.get(inner, 0) + 1
    shared = [inner for inner, count in holders.items() if count > 1]
    if len(shared) > 1 and len(shared) * 2 >= len(holders):
        raise DataError(
            f"{tree.name(base)} contains {shorten(names)}, and the same folders in them "
            f"({shorten(shared)}); either could be the classes: {_DECIDE}, name one of the folders "
            "as the data, or rename those that are splits to train, val and test"
        )


def _refuse_no_classes(tree: _Tree, base: Parts, names: Sequence[str]) -> None:
    """Refuse folders whose names say that they are not classes."""
    lowered = {name.lower() for name in names}
    if len(names) > 1 and lowered <= _CONTAINERS | _ANNOTATIONS:
        raise DataError(
            f"{tree.name(base)} contains {shorten(names)}, which are not classes: put the images "
            "into one folder per class, or name a CSV with the labels"
        )
    if len(names) > 1 and all(map(_PART_NAME.fullmatch, names)):
        raise DataError(
            f"{tree.name(base)} contains {shorten(names)}, which look like parts of one set: name "
            "a CSV with the labels, or use `class_level=1` if they are classes"
        )


# --- Checks ---------------------------------------------------------------------------------------


def _check_class_names(tree: _Tree, layout: _Layout) -> None:
    # Undecodable bytes are lone surrogates in a str, which no card could store.
    broken = sorted({name for name, _ in layout.classes.values() if not _is_unicode(name)})
    if broken:
        raise DataError(
            f"{tree.root} has class folders whose names are not UTF-8: rename {shorten(broken)}"
        )


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _empty(tree: _Tree, layout: _Layout) -> Iterator[Finding]:
    for parent in _parents(layout):
        if empty := tree.empty_folders(parent):
            text = (
                f"{tree.name(parent)} has {counted(len(empty), 'empty class folder')} "
                f"({shorten(empty)}): add images or remove {plural(len(empty), 'it', 'them')}"
            )
            yield Finding("error", "empty-class", text)


def _parents(layout: _Layout) -> Iterator[Parts]:
    """Yield the folders that hold class folders."""
    yield from dict.fromkeys(
        parts[:-1] for parts, (label, _) in layout.classes.items() if parts[-1] == label
    )
