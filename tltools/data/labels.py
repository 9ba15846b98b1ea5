"""Read a CSV or class folders into one table of labeled images."""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tltools.data.folders import find_images
from tltools.data.suffixes import is_image_name
from tltools.errors import ConfigError, DataError
from tltools.wording import counted, plural

if TYPE_CHECKING:
    import pandas as pd

SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names of splits in folders or a `split` column, and the split that each means."""

LABEL_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
"""Suffixes of files that may hold labels."""
_DELIMITERS = (",", ";", "\t")
_WHOLE_FLOAT = re.compile(r"([+-]?\d+)\.0*")


def read_labels(
    data: Path,
    *,
    images: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> "pd.DataFrame":
    """Read the labels of a data set in any supported layout.

    Images are not opened: `load_dataset` checks that they exist and can be read.

    Args:
        data: A CSV; a folder with exactly one CSV; a folder of class folders; or a folder with
            `train/` and `val/` (or `valid`, `validation`, `test`) of class folders.
        images: Folder of the CSV's images; by default the CSV's folder or `images/` in it.
        image_column: The CSV's column of images; by default the first.
        label_column: The CSV's column of labels; by default the next one that is not `split`.

    Returns:
        One row per label, in source order (class folders: by split, class and name), with the str
        columns `path` (absolute), `class` and `split` (`train`, `val`, `test`, or empty if the
        data has no split). Labels remain text: `007` is not `7`; but `1.0` becomes `1`, because
        spreadsheets turn a column of integers with gaps into floats. `attrs["loose"]` holds the
        paths of images outside all class folders, which have no row.

    Raises:
        ConfigError: If a named column does not exist, or a CSV argument is given for folders.
        DataError: If there is nothing to read, or the layout is invalid or ambiguous.
    """
    for_csv = images is not None or image_column is not None or label_column is not None
    if data.is_dir():
        path = _csv_of_folder(data, for_csv=for_csv)
        if path is None:
            return _read_folders(data)
    elif data.is_file():
        path = data
    else:
        raise DataError(f"{data} does not exist: name a CSV or a folder of class folders")
    if path.suffix.lower() not in LABEL_SUFFIXES:
        raise DataError(f"{path} is not a CSV: name a .csv or a folder of class folders")
    if images is not None and not images.is_dir():
        raise DataError(f"{images} is not a folder: name the folder of the images with `images=`")
    return _read_csv(path, images=images, image_column=image_column, label_column=label_column)


def shorten(items: Iterable[object], *, limit: int = 10, separator: str = ", ") -> str:
    """Join the first `limit` items for a one-line message, and count the rest."""
    texts = [text if text.isprintable() else repr(text) for text in map(str, items)]
    rest = f" and {len(texts) - limit:,} more" if len(texts) > limit else ""
    return separator.join(texts[:limit]) + rest


def _frame(rows: Sequence[tuple[str, str, str]], *, loose: Sequence[str] = ()) -> "pd.DataFrame":
    import pandas as pd

    # object: the str dtype of pandas cannot hold a file name that is not valid UTF-8.
    frame = pd.DataFrame(rows, columns=["path", "class", "split"], dtype=object)
    frame.attrs["loose"] = tuple(loose)
    return frame


# --- CSV ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    image: int
    label: int
    split: int | None


def _csv_of_folder(folder: Path, *, for_csv: bool) -> Path | None:
    """Return the one CSV that labels `folder`, or None if its class folders do."""
    paths = sorted(
        path for path in _visible(folder) if path.suffix.lower() == ".csv" and path.is_file()
    )
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
    classes = [p for p in _folders(folder) if p.name != "images" and _has_images(p)]
    if classes and not for_csv:
        names = shorten(path.name for path in classes)
        raise DataError(
            f"{folder} contains {paths[0].name} and folders of images ({names}), and either could "
            f"be the labels: name {paths[0]} itself, or move it away to use the folders"
        )
    return paths[0]


def _read_csv(
    path: Path, *, images: Path | None, image_column: str | None, label_column: str | None
) -> "pd.DataFrame":
    header, records = _parse_csv(path)
    columns = _choose_columns(path, header, image_column=image_column, label_column=label_column)
    names = [record[columns.image] for _, record in records]
    _check_filled(path, "image", header[columns.image], records, columns.image)
    _check_filled(path, "label", header[columns.label], records, columns.label)
    labels = [_plain(record[columns.label]) for _, record in records]
    splits = _splits_of_column(path, header, records, columns)
    folders = [images] if images is not None else [path.parent, path.parent / "images"]
    paths = _locate(names, folders)
    return _frame(list(zip(paths, labels, splits, strict=True)))


def _parse_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and, for each row that is not blank, its line number and cells."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; make it readable") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start:,} is 0x{error.object[error.start]:02x}): "
            "save it as 'CSV UTF-8', or convert it with iconv"
        ) from error
    empty = DataError(
        f"{path} is empty: it needs a header and one line per image, such as image,label"
    )
    if not text.strip().strip("".join(_DELIMITERS)):
        raise empty
    # The header decides: a label or an image's name may contain another delimiter.
    delimiter = max(_DELIMITERS, key=text.lstrip().splitlines()[0].count)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    filled = (cells for cells in reader if any(cell.strip() for cell in cells))
    try:
        header = [cell.strip() for cell in next(filled, ())]
        records = [(reader.line_num, cells) for cells in filled]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; fix the line") from error
    if not header:  # nothing but empty quotes
        raise empty
    if len(header) < 2:
        raise DataError(
            f"{path} has only one column ({header[0]!r}): put an image and a label in each line, "
            "separated by a comma, a semicolon or a tab"
        )
    if not records:
        raise DataError(f"{path} has a header but no rows: add one line per image")
    ragged = [line for line, cells in records if len(cells) != len(header)]
    if ragged:
        raise DataError(
            f"{path} has {len(header)} columns, but not in "
            f"{plural(len(ragged), 'line')} {shorten(ragged)}: put cells that contain "
            f"{_named(delimiter)} in double quotes"
        )
    return header, records


def _named(delimiter: str) -> str:
    return {",": "a comma", ";": "a semicolon", "\t": "a tab"}[delimiter]


def _choose_columns(
    path: Path, header: Sequence[str], *, image_column: str | None, label_column: str | None
) -> _Columns:
    def named(name: str, parameter: str) -> int:
        if header.count(name) != 1:
            how = "no column" if name not in header else "more than one column"
            raise ConfigError(
                f"`{parameter}=`: {path} has {how} {name!r}; its columns are {shorten(header)}"
            )
        return header.index(name)

    image = 0 if image_column is None else named(image_column, "image_column")
    if image_column is None and label_column is None and is_image_name(header[0]):
        raise DataError(
            f"{path} has no header: its first line names an image ({header[0]}); "
            "add a first line such as image,label"
        )
    if label_column is not None:
        label = named(label_column, "label_column")
    else:
        others = [i for i, name in enumerate(header) if i != image and name.lower() != "split"]
        if not others:
            raise DataError(
                f"{path} has no label column besides {shorten(header)}: add one, or name it with "
                "`label_column=`"
            )
        label = next((i for i in others if i > image), others[0])
    if label == image:
        raise ConfigError(f"column {header[image]!r} cannot hold both the images and the labels")
    splits = [i for i, name in enumerate(header) if name.lower() == "split"]
    splits = [i for i in splits if i not in (image, label)]
    return _Columns(image=image, label=label, split=splits[0] if splits else None)


def _check_filled(
    path: Path, what: str, column: str, records: Sequence[tuple[int, list[str]]], index: int
) -> None:
    empty = [line for line, cells in records if cells[index].strip().lower() in ("", "nan")]
    if empty:
        raise DataError(
            f"{path} has no {what} in {len(empty):,} of {len(records):,} "
            f"{plural(len(records), 'row')} (column {column!r}, "
            f"{plural(len(empty), 'line')} {shorten(empty)}): fill in or delete them"
        )


def _plain(label: str) -> str:
    """Return a label as text, with a whole float written as an integer."""
    label = label.strip()
    whole = _WHOLE_FLOAT.fullmatch(label)
    return whole[1] if whole else label


def _splits_of_column(
    path: Path,
    header: Sequence[str],
    records: Sequence[tuple[int, list[str]]],
    columns: _Columns,
) -> list[str]:
    if columns.split is None:
        return [""] * len(records)
    words = [cells[columns.split].strip().lower() for _, cells in records]
    if not any(words):
        return words
    unknown = [line for (line, _), word in zip(records, words, strict=True) if word not in SPLITS]
    if unknown:
        raise DataError(
            f"{path} has a column {header[columns.split]!r} that is not one of "
            f"{', '.join(SPLITS)} in {plural(len(unknown), 'line')} "
            f"{shorten(unknown)}: fix the values or rename the column"
        )
    return [SPLITS[word] for word in words]


def _locate(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return each image's absolute path in the first folder that contains it.

    A missing image is assigned to the folder with most of the others, so that messages name the
    expected path.
    """
    roots = [os.path.abspath(folder) for folder in folders]  # noqa: PTH100 - resolve() follows links
    found: list[str | None] = []
    hits = dict.fromkeys(roots, 0)
    for name in names:
        root = next((root for root in roots if os.path.isfile(os.path.join(root, name))), None)  # noqa: PTH113, PTH118
        if root is not None:
            hits[root] += 1
        found.append(root)
    usual = max(roots, key=lambda root: (hits[root], Path(root).is_dir()))
    return [
        os.path.normpath(os.path.join(root or usual, name))  # noqa: PTH118
        for root, name in zip(found, names, strict=True)
    ]


# --- Class folders --------------------------------------------------------------------------------


def _read_folders(folder: Path) -> "pd.DataFrame":
    split_folders = _split_folders(folder)
    if not split_folders:
        return _frame(_read_classes(folder, split=""), loose=_loose_images(folder))
    rows: list[tuple[str, str, str]] = []
    loose = _loose_images(folder)
    for path in sorted(split_folders, key=lambda path: list(SPLITS).index(path.name.lower())):
        loose += _loose_images(path)
        if _folders(path):  # otherwise a flat folder without labels
            rows += _read_classes(path, split=SPLITS[path.name.lower()])
    return _frame(rows, loose=loose)


def _split_folders(folder: Path) -> list[Path]:
    """Return `train/`, `val/` and so on; empty if the folders in `folder` are classes.

    A class may be named `train`, too, next to `car` and `bus`.
    """
    filled = [path for path in _folders(folder) if _has_images(path)]
    named = [path for path in filled if path.name.lower() in SPLITS]
    others = [path for path in filled if path not in named]
    divided = [path for path in named if _folders(path)]
    if named and not others and not divided:
        raise DataError(
            f"{folder} contains {shorten(path.name for path in named)}, but no class folders: "
            "put the images into one folder per class, or name a CSV with the labels"
        )
    if not others:
        return named
    if all(_loose_images(path) for path in divided):
        return []
    raise DataError(
        f"{folder} contains {shorten(path.name for path in divided)} with class folders, but also "
        f"folders of images that are not splits ({shorten(path.name for path in others)}): move "
        "those away"
    )


def _read_classes(folder: Path, *, split: str) -> list[tuple[str, str, str]]:
    classes = _folders(folder)
    if not classes:
        raise DataError(
            f"{folder} contains neither a CSV nor class folders: make one folder per class, or "
            "name the CSV with the labels"
        )
    # Undecodable bytes are lone surrogates in a str, which no card could store.
    broken = [path.name for path in classes if not _is_unicode(path.name)]
    if broken:
        raise DataError(
            f"{folder} has class folders whose names are not UTF-8: rename {shorten(broken)}"
        )
    rows: list[tuple[str, str, str]] = []
    empty: list[str] = []
    for path in classes:
        images = [os.path.abspath(image) for image in find_images(path)]  # noqa: PTH100
        rows += [(image, path.name, split) for image in images]
        if not images:
            empty.append(path.name)
    if empty:
        raise DataError(
            f"{folder} has {counted(len(empty), 'empty class folder')} "
            f"({shorten(empty)}): add images or remove {plural(len(empty), 'it', 'them')}"
        )
    return rows


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}; make it readable") from error


def _folders(folder: Path) -> list[Path]:
    """Return the visible folders in `folder`, except the one that macOS adds to archives."""
    return [path for path in _visible(folder) if path.is_dir() and path.name != "__MACOSX"]


def _has_images(folder: Path) -> bool:
    return next(iter(find_images(folder)), None) is not None


def _loose_images(folder: Path) -> list[str]:
    paths = [path for path in _visible(folder) if is_image_name(path.name)]
    return [os.path.abspath(path) for path in paths if path.is_file()]  # noqa: PTH100
