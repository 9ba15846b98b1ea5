"""Read a CSV or class folders into one table of labeled images."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tltools.data.class_folders import LabeledImage, read_class_folders
from tltools.data.columns import (
    MULTI_LABEL,
    Columns,
    choose_columns,
    describe_columns,
    is_marked,
    normal_name,
)
from tltools.data.findings import Finding, shorten
from tltools.data.folders import (
    SORT_MANIFEST,
    find_images,
    is_output_folder,
    is_sorted_folder,
    is_system_folder,
    refuse_run,
)
from tltools.data.named_files import NamedFiles
from tltools.data.splits import (
    SPLITS,
    is_fold_name,
    is_split_name,
    is_yes,
    split_flag_of,
    split_of_word,
)
from tltools.data.suffixes import TABLE_SUFFIXES, is_archive_name
from tltools.data.tables import Table, read_table
from tltools.data.text import clean, look_key, word_key
from tltools.errors import ConfigError, DataError, cause_of
from tltools.schema import has_predictions
from tltools.wording import grouped, plural, similar_paths

if TYPE_CHECKING:
    import pandas as pd

LABEL_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
"""Suffixes of files that may hold labels."""
_WHOLE_FLOAT = re.compile(r"([+-]?\d+)\.0*")
_MANY_LABELS = 0.1
"""Fraction of images with several labels from which on this is no mistake, but the task."""
_LIST = re.compile(r"\[.*\]")
_LIST_SEPARATORS = "|;,"
"""Separators that hardly occur in the name of one class; `/` may as well be a hierarchy."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labeled images as their source gives them; the images are not opened."""

    frame: "pd.DataFrame"
    """One row per label, in source order (class folders: by split, class and name), with the str
    columns `path` (absolute), `class` and `split` (`train`, `val`, `test`, or empty if the data has
    no split)."""
    reading: str
    """Which columns or folders were read as images, labels and split, in one line."""
    findings: tuple[Finding, ...] = ()
    hints: Mapping[str, str] = field(default_factory=dict)
    """What may be meant instead, for paths that do not exist."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files without an image suffix in class folders, by suffix."""
    of_csv: bool = False
    """Whether a CSV holds the labels."""
    elsewhere: Path | None = None
    """The one folder beside the CSV that has all of its images, none of which was found."""


def read_labels(
    data: Path,
    *,
    images: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_level: int | None = None,
) -> Labels:
    """Read the labels of a data set in any supported layout.

    Images are not opened: `load_dataset` checks that they exist and can be read. Labels remain
    text: `007` is not `7`. But `1.0` becomes `1`, because spreadsheets turn a column of integers
    with gaps into floats, and labels that look the same become one.

    Args:
        data: A CSV; a folder with exactly one CSV; or class folders (see `read_class_folders`).
        images: Folder of the CSV's images; by default the CSV's folder or `images/` in it.
        image_column: The CSV's column of images; by default it is found (see `choose_columns`).
        label_column: The CSV's column of labels; likewise.
        class_level: See `read_class_folders`.

    Raises:
        ConfigError: If a named column does not exist, or an argument is for another layout.
        DataError: If there is nothing to read, or the layout is invalid or ambiguous.
    """
    for_csv = images is not None or image_column is not None or label_column is not None
    path = _csv_of(data, for_csv=for_csv, for_folders=class_level is not None)
    if path is None:
        found = read_class_folders(data, class_level=class_level)
        labels = Labels(_frame(found.rows), found.reading, found.findings, left_out=found.left_out)
        return _with_one_spelling(labels, found.rows)
    if class_level is not None:
        raise ConfigError(f"`class_level=` is for folders, and {path} is a CSV: leave it out")
    if images is not None and not images.is_dir():
        raise DataError(f"{images} is not a folder: name the folder of the images with `images=`")
    folders = [images] if images is not None else [path.parent, path.parent / "images"]
    return _read_csv(path, folders, image_column=image_column, label_column=label_column)


def _frame(rows: Sequence[LabeledImage]) -> "pd.DataFrame":
    import pandas as pd

    # object: the str dtype of pandas cannot hold a file name that is not valid UTF-8.
    return pd.DataFrame(rows, columns=["path", "class", "split"], dtype=object)


def check_data(data: Path) -> None:
    """Refuse a path that cannot be labeled images, without reading it.

    Raises:
        DataError: If it does not exist, or is a file that is neither a CSV nor an archive.
    """
    _refuse_run(data)
    is_archive = is_archive_name(data.name) and data.is_file()
    if not is_archive and not data.is_dir():
        _check_csv(data)


# --- Which layout ---------------------------------------------------------------------------------


def _csv_of(data: Path, *, for_csv: bool, for_folders: bool) -> Path | None:
    """Return the CSV with the labels, or None if `data` has class folders."""
    _refuse_run(data)
    if data.is_dir():
        return None if for_folders and not for_csv else _csv_of_folder(data, for_csv=for_csv)
    _check_csv(data)
    if data.name == SORT_MANIFEST and is_sorted_folder(data.parent):
        raise DataError(
            f"{data} says where images were sorted to: name {data.parent}, whose folders have them "
            "with the labels that you corrected"
        )
    if _is_predictions(data):
        raise DataError(
            f"{data} holds predictions of tltools, not labels: name a CSV with the true labels"
        )
    return data


def _refuse_run(data: Path) -> None:
    refuse_run(data, "labeled images", "name a CSV or a folder of class folders")


def _check_csv(data: Path) -> None:
    if not data.is_file():
        raise DataError(
            f"{data} does not exist{similar_paths(data)}: name a CSV or a folder of class folders"
        )
    suffix = data.suffix.lower()
    if suffix not in LABEL_SUFFIXES:
        kind = "export it as CSV" if suffix in TABLE_SUFFIXES else "name a .csv"
        raise DataError(f"{data} is not a CSV: {kind}, or a folder of class folders")


def _csv_of_folder(folder: Path, *, for_csv: bool) -> Path | None:
    """Return the one CSV that labels `folder`, or None if its class folders do."""
    visible = _visible(folder)
    paths = [path for path in visible if path.suffix.lower() == ".csv" and path.is_file()]
    paths = [path for path in paths if not _is_predictions(path)]
    if is_sorted_folder(folder):
        paths = [path for path in paths if path.name != SORT_MANIFEST]
    if not paths:
        if for_csv:
            raise ConfigError(
                f"{folder} contains no CSV: leave out `images=`, `image_column=` and "
                "`label_column=`, or name a CSV"
            )
        return None
    if len(paths) > 1:
        names = shorten(path.name for path in paths)
        raise DataError(f"{folder} contains {len(paths)} CSV files ({names}): name one of them")
    folders = [path for path in visible if path.is_dir() and not is_system_folder(path.name)]
    classes = [path for path in folders if path.name != "images" and _has_images(path)]
    if classes and not for_csv:
        names = shorten(path.name for path in classes)
        raise DataError(
            f"{folder} contains {paths[0].name} and folders of images ({names}), and either could "
            f"be the labels: name {paths[0]} itself, or move it away to use the folders"
        )
    return paths[0]


def _is_predictions(path: Path) -> bool:
    """Return whether a CSV holds predictions."""
    try:
        with path.open("rb") as file:
            header = file.readline(1 << 16).decode("utf-8-sig", "replace")
    except OSError:  # reading the labels will report it
        return False
    names = [name.strip().strip('"') for name in header.split(",")]
    return has_predictions(names)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {cause_of(error)}; make it readable") from error


def _has_images(folder: Path) -> bool:
    """Return whether a folder has images that are not output of tltools."""
    return not is_output_folder(folder) and next(iter(find_images(folder)), None) is not None


# --- CSV ------------------------------------------------------------------------------------------


def _read_csv(
    path: Path,
    folders: Sequence[Path],
    *,
    image_column: str | None,
    label_column: str | None,
) -> Labels:
    table = read_table(path)
    files = NamedFiles([os.path.abspath(folder) for folder in folders])  # noqa: PTH100

    def exists(name: str) -> bool:
        return files.exact(name) is not None or bool(files.similar(name))

    columns = choose_columns(
        table, image_column=image_column, label_column=label_column, exists=exists
    )
    labels = _labels_of(table, columns)
    splits = _splits_of(table, columns)
    names = [record.cells[columns.image] for record in table.records]
    _check_filled(table, "image", columns.image, names)
    located = _locate(names, files, folders)
    rows = list(map(LabeledImage, located.paths, labels, splits))
    _check_one_label_each(path, rows)
    found = Labels(
        _frame(rows),
        describe_columns(table, columns),
        (
            *located.findings,
            *_note_splits(table, columns, splits),
            *_note_unread_splits(table, columns),
        ),
        located.hints,
        of_csv=True,
        elsewhere=_elsewhere(path, names, located.paths),
    )
    return _with_one_spelling(found, rows)


def _elsewhere(path: Path, names: Sequence[str], located: Sequence[str]) -> Path | None:
    """Return the one folder beside a CSV that has all of its images, if none was found.

    Args:
        path: The CSV.
        names: The images as the CSV names them.
        located: Where they were looked for.
    """
    if any(map(os.path.exists, located)):
        return None
    wanted = dict.fromkeys(names)
    try:
        folders = [one for one in _visible(path.parent) if one.is_dir()]
    except DataError:  # only the CSV can be read there, so nothing can be proposed
        return None
    found = [one for one in folders if all(os.path.isfile(one / name) for name in wanted)]  # noqa: PTH113
    return found[0] if len(found) == 1 else None


def _labels_of(table: Table, columns: Columns) -> list[str]:
    """Return the label of each row, as text."""
    if columns.is_one_hot:
        cells = [table.column(index) for index in columns.labels]
        return [
            table.header[columns.labels[next(i for i, cell in enumerate(row) if is_marked(cell))]]
            for row in zip(*cells, strict=True)
        ]
    (index,) = columns.labels
    labels = table.column(index)
    _check_filled(table, "label", index, labels)
    _check_lists(table, index, labels)
    return [_plain(label) for label in labels]


def _plain(label: str) -> str:
    """Return a label as text, with a whole float written as an integer."""
    whole = _WHOLE_FLOAT.fullmatch(label)
    return whole[1] if whole else label


def _check_filled(table: Table, what: str, index: int, cells: Sequence[str]) -> None:
    empty = [clean(cell).lower() in ("", "nan") for cell in cells]
    if any(empty):
        num_rows = len(table.records)
        raise DataError(
            f"{table.path} has no {what} in {sum(empty):,} of {num_rows:,} "
            f"{plural(num_rows, 'row')} (column {table.header[index]!r}, "
            f"{table.lines_where(empty)}): fill in or delete them"
        )


def _note_splits(table: Table, columns: Columns, splits: Sequence[str]) -> tuple[Finding, ...]:
    """Report a split that is read from columns that are not named `split`."""
    names = [table.header[index] for index in columns.splits]
    if [normal_name(name) for name in names] in ([], ["split"]):
        return ()
    counts = Counter(split for split in splits if split)
    text = (
        f"the split is read from {plural(len(names), 'column')} {shorten(map(repr, names))}: "
        f"{', '.join(f'{count:,} {split}' for split, count in counts.items())}"
    )
    return (Finding("note", "split-column", text),)


def _note_unread_splits(table: Table, columns: Columns) -> tuple[Finding, ...]:
    """Report columns that are named like a split and do not hold one."""
    used = (columns.image, *columns.labels, *columns.splits)
    names = [name for index, name in enumerate(table.header) if index not in used]
    names = [name for name in names if _is_like_split(name)]
    if not names:
        return ()
    text = (
        f"{plural(len(names), 'column')} {shorten(map(repr, names))} not read as a split: to use "
        "it, add a column `split` with train, val and test"
    )
    return (Finding("warning", "no-split-column", text),)


def _is_like_split(name: str) -> bool:
    return is_fold_name(normal_name(name)) or is_split_name(normal_name(name))


# --- Several labels per image ---------------------------------------------------------------------


def _check_lists(table: Table, index: int, labels: Sequence[str]) -> None:
    """Refuse labels that are lists of other labels, such as `cat|dog` or `scab rust`."""
    distinct = set(map(clean, labels))
    lists = distinct if all(map(_LIST.fullmatch, distinct)) else set[str]()
    for separator in (*_LIST_SEPARATORS, "/", "+", "&", " "):
        lists |= _combinations(distinct, separator)
    if lists:
        wrong = [clean(label) in lists for label in labels]
        raise DataError(
            f"{table.path} has several labels in one cell (column {table.header[index]!r}, "
            f"{table.lines_where(wrong)}, such as {min(lists, key=len)!r}): {MULTI_LABEL}; keep "
            "the rows with one label, or join words that are one label by `_`"
        )


def _combinations(labels: set[str], separator: str) -> set[str]:
    """Return the labels that are made of others.

    Every part must be a label itself: `red panda` is none of `red apple` and `panda`. In lists with
    a usual separator, and of numbers, it is enough that every part is in several labels.
    """
    parts_of = {label: {part.strip() for part in label.split(separator)} for label in labels}
    uses = Counter(part for parts in parts_of.values() for part in parts)
    numbers = all(part.isdigit() for part in uses)

    def is_shared(part: str) -> bool:
        return part in labels or (uses[part] > 1 and (separator in _LIST_SEPARATORS or numbers))

    return {
        label
        for label, parts in parts_of.items()
        if len(parts) > 1 and all(part and is_shared(part) for part in parts)
    }


def _check_one_label_each(path: Path, rows: Sequence[LabeledImage]) -> None:
    """Refuse a table that lists many images once for each of their labels."""
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row.path, set()).add(look_key(row.label))
    several = [image for image, found in labels.items() if len(found) > 1]
    if len(several) > 1 and len(several) >= _MANY_LABELS * len(labels):
        raise DataError(
            f"{path} gives several labels to {len(several):,} of {len(labels):,} images, such as "
            f"{shorten(sorted(labels[several[0]]))} to {Path(several[0]).name}: {MULTI_LABEL}; "
            "keep the images with one label"
        )


# --- Splits ---------------------------------------------------------------------------------------


def _splits_of(table: Table, columns: Columns) -> list[str]:
    """Return the split of each row; empty if the table has none."""
    if not columns.splits:
        return [""] * len(table.records)
    first = columns.splits[0]
    if split_flag_of(normal_name(table.header[first]), table.column(first)):
        return _splits_of_flags(table, columns.splits)
    cells = table.column(first)
    if not any(cells):
        return cells
    splits = [split_of_word(cell) for cell in cells]
    if None in splits:
        raise DataError(
            f"{table.path} has a column {table.header[first]!r} that is not one of "
            f"{', '.join(SPLITS)} in {table.lines_where([split is None for split in splits])}: "
            "fix the values or rename the column"
        )
    return [split or "" for split in splits]


def _splits_of_flags(table: Table, indices: Sequence[int]) -> list[str]:
    """Return the split of each row from columns such as `is_valid`.

    Rows that are not in train, and of which no column says more, are test: they are never learned
    from, and never choose a model.
    """
    names = [table.header[index] for index in indices]
    columns = [table.column(index) for index in indices]
    marks = [
        split_flag_of(normal_name(name), cells) for name, cells in zip(names, columns, strict=True)
    ]
    unmarked = "test" if "train" in marks else "train"
    splits: list[str] = []
    for cells in zip(*columns, strict=True):
        marked = {mark for mark, cell in zip(marks, cells, strict=True) if mark and is_yes(cell)}
        splits.append("" if len(marked) > 1 else min(marked, default=unmarked))
    if "" in splits:
        raise DataError(
            f"{table.path} marks several splits ({shorten(names)}) in "
            f"{table.lines_where([not split for split in splits])}: mark one in each row"
        )
    return splits


# --- Image files ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Located:
    paths: list[str]
    """Absolute path of each row's image, which may not exist."""
    findings: tuple[Finding, ...]
    hints: dict[str, str]


def _locate(names: Sequence[str], files: NamedFiles, folders: Sequence[Path]) -> _Located:
    """Find each image as it is named, or the only one with a similar name that no row names.

    A missing image is assigned to the folder with most of the others, so that messages name the
    expected path.
    """
    roots = [os.path.abspath(folder) for folder in folders]  # noqa: PTH100 - resolve() follows links
    found = {name: files.exact(name) for name in dict.fromkeys(names)}
    hits = Counter(root for root in found.values() if root is not None)
    usual = max(roots, key=lambda root: (hits[root], Path(root).is_dir()))
    paths = {
        name: os.path.normpath(os.path.join(root or usual, name))  # noqa: PTH118
        for name, root in found.items()
    }
    missing = [name for name, root in found.items() if root is None]
    similar = {name: files.similar(name) for name in missing}
    claims = Counter(path for matches in similar.values() for path in set(matches))
    claims.update(paths[name] for name, root in found.items() if root is not None)
    renamed: dict[str, str] = {}
    hints: dict[str, str] = {}
    for name, matches in similar.items():
        if len(matches) == 1 and claims[matches[0]] == 1:
            renamed[name] = paths[name] = os.path.normpath(matches[0])
        elif near := matches or files.other_suffixes(name):
            hints[paths[name]] = f"similar: {shorten(map(repr, map(os.path.basename, near)))}"
    if missing and not hits and not renamed and (below := _below(Path(usual), missing[0])):
        hints.setdefault(paths[missing[0]], f"{below} has this name; the CSV needs its folder, too")
    return _Located([paths[name] for name in names], _note_renamed(renamed), hints)


MAX_FOLDERS = 1000
"""Folders in which a missing image is looked for."""


def _below(root: Path, name: str) -> Path | None:
    """Return an image with a name, perhaps without its suffix, in a folder below another one."""
    with suppress(OSError):
        for folder in islice(sorted(one for one in root.iterdir() if one.is_dir()), MAX_FOLDERS):
            found = [folder / name, *(folder / f"{name}{suffix}" for suffix in (".jpg", ".png"))]
            if image := next((one for one in found if one.is_file()), None):
                return image
    return None


def _note_renamed(renamed: Mapping[str, str]) -> tuple[Finding, ...]:
    if not renamed:
        return ()
    pairs = (f"{name!a} is {os.path.basename(path)!a}" for name, path in renamed.items())  # noqa: PTH119
    text = (
        f"{grouped(len(renamed), 'image')} found under a name that is written differently "
        f"({shorten(pairs, limit=3)}): no other file fits"
    )
    return (Finding("note", "similar-name", text, tuple(renamed.values())),)


# --- Spelling of labels ---------------------------------------------------------------------------


def _with_one_spelling(labels: Labels, rows: Sequence[LabeledImage]) -> Labels:
    """Give labels that look the same one spelling, and report those that are nearly the same."""
    counts = Counter(row.label for row in rows)
    spelling, merged = _spellings(counts)
    findings = list(labels.findings)
    if merged:
        text = (
            f"{grouped(len(merged), 'class', 'classes')} written in several ways that look the "
            f"same ({shorten('; '.join(map(ascii, group)) for group in merged)}) and joined: they "
            "differ in Unicode normal form, blanks or invisible characters"
        )
        findings.append(Finding("warning", "label-spelling", text))
    alike = _groups(spelling.values(), word_key)
    if alike:
        text = (
            f"classes that differ only in case, blanks or separators are separate classes: "
            f"{shorten('; '.join(group) for group in alike)}; give them one spelling if they are "
            "the same"
        )
        findings.append(Finding("warning", "alike-classes", text))
    renamed = [row._replace(label=spelling[row.label]) for row in rows]
    return replace(labels, frame=_frame(renamed), findings=tuple(findings))


def _spellings(counts: Mapping[str, int]) -> tuple[dict[str, str], list[list[str]]]:
    """Return the spelling of each label, and the groups of labels that look the same."""
    spelling: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for label in counts:
        groups.setdefault(look_key(label), []).append(label)
    for group in groups.values():
        usual = max(sorted(group), key=lambda label: counts[label])
        spelling |= dict.fromkeys(group, clean(usual))
    return spelling, [sorted(group) for group in groups.values() if len(group) > 1]


def _groups(names: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    """Return the groups of two or more different names with the same key."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
