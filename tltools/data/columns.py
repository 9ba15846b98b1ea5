"""Choose a CSV's columns of images, labels and split: known names first, then their cells."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tltools.data.findings import shorten
from tltools.data.splits import (
    has_doubtful_flag,
    is_fold_name,
    is_split_name,
    split_flag_of,
    split_of_word,
)
from tltools.data.suffixes import is_image_name
from tltools.data.tables import Table
from tltools.errors import ConfigError, DataError
from tltools.wording import did_you_mean

_IMAGE_NAMES = frozenset({
    "image", "images", "img", "imgs", "imagename", "imagenames", "image_name", "image_names",
    "img_name", "img_names", "imageid", "image_id", "image_ids", "img_id", "image_index",
    "image_no", "imagepath", "image_path", "image_paths", "img_path", "image_file", "image_files",
    "image_filename", "img_file", "file", "files", "filename", "filenames", "file_name",
    "file_names", "fname", "filepath", "filepaths", "file_path", "file_paths", "path", "paths",
    "photo", "photos", "photo_path",
})  # fmt: skip
_IDENTIFIERS = frozenset({
    "id", "ids", "name", "names", "key", "uuid",
})  # fmt: skip
"""Names that may be those of images, but never of labels."""
_LABEL_NAMES = frozenset({
    "label", "labels", "class", "classes", "classname", "class_name", "class_names", "class_label",
    "class_labels", "classid", "class_id", "class_ids", "class_index", "target", "targets",
    "category", "categories", "category_name", "category_id", "label_name", "label_names",
    "labelname", "label_id", "label_ids", "label_index", "ground_truth", "groundtruth", "gt",
    "finding_labels", "y", "tag", "tags",
})  # fmt: skip
_NUMBERED_LABEL = re.compile(r"(label|class|target|category|tag)s?_?\d+")
_INDEX_NAME = re.compile(r"(unnamed_\d+|index|idx|row|row_id|level_0|)")
"""Names of the index that pandas and R write as the first column."""
_NO_LABEL_NAME = re.compile(r".*_(id|ids|uuid|url|md5|sha256|hash)|url|md5|sha256|hash|index|idx")
_FLAGS = frozenset({"0", "-1", "0.0", "-1.0", "false", "no", ""})
_SET = frozenset({"1", "1.0", "true", "x", "yes"})
"""Cells of a table with a column for each class, where the class is not, and is, the image's."""
MULTI_LABEL = "tltools learns one label per image, and does not support several"


@dataclass(frozen=True)
class Columns:
    """The indices of the columns that are read."""

    image: int
    labels: tuple[int, ...]
    """The column of labels, or one column of 0 and 1 for each class."""
    splits: tuple[int, ...] = ()
    """A column of split names, or columns that mark a split, such as `is_valid`."""

    @property
    def is_one_hot(self) -> bool:
        """Whether each class has a column of its own."""
        return len(self.labels) > 1


def describe_columns(table: Table, columns: Columns) -> str:
    """Say in one line which columns are read, and which are not."""

    def names(indices: Sequence[int]) -> str:
        return shorten(repr(table.header[index]) for index in indices)

    used = (columns.image, *columns.labels, *columns.splits)
    unused = [index for index in range(len(table.header)) if index not in used]
    text = f"images from column {names([columns.image])}, labels from {names(columns.labels)}"
    if columns.is_one_hot:
        text += " (one column per class)"
    if columns.splits:
        text += f", split from {names(columns.splits)}"
    return f"{text}; not used: {names(unused)}" if unused else text


def choose_columns(
    table: Table,
    *,
    image_column: str | None,
    label_column: str | None,
    exists: Callable[[str], bool],
) -> Columns:
    """Choose the columns of images, labels and split.

    Args:
        table: The CSV.
        image_column: Name of the column of images; None to find it.
        label_column: Name of the column of labels; None to find it.
        exists: Returns whether an image of this name exists.

    Raises:
        ConfigError: If a named column does not exist.
        DataError: If several columns qualify, or images have several labels.
    """
    choice = _Choice(table, exists)
    label = None if label_column is None else choice.named(label_column, "label_column")
    if image_column is not None:
        image = choice.named(image_column, "image_column")
    else:
        image = choice.image(without=label)
    if label == image:
        raise ConfigError(
            f"column {table.header[image]!r} cannot hold both the images and the labels"
        )
    labels = choice.labels(image) if label is None else (label,)
    _check_header(table, image, labels)
    return Columns(image=image, labels=labels, splits=choice.splits(image, labels))


class _Choice:
    """Finds columns of a table by their names and cells."""

    def __init__(self, table: Table, exists: Callable[[str], bool]) -> None:
        self._table = table
        self._exists = exists
        self._names = [normal_name(name) for name in table.header]

    def named(self, name: str, parameter: str) -> int:
        """Return the column with this name in the header."""
        header = self._table.header
        if header.count(name) != 1:
            how = "no column" if name not in header else "more than one column"
            guess = "" if name in header else did_you_mean(name, header)
            raise ConfigError(
                f"`{parameter}=`: {self._table.path} has {how} {name!r};{guess} "
                f"its columns are {shorten(header)}"
            )
        return header.index(name)

    # ------------------------------------------------------------------------------- images

    def image(self, *, without: int | None) -> int:
        """Return the column of images.

        Cells that end in an image suffix decide, then the name, then which files exist, then the
        position.
        """
        others = [i for i in range(len(self._names)) if i != without and not self._is_index(i)]
        known = [i for i in others if self._names[i] in _IMAGE_NAMES]
        suffixed = [i for i in others if any(map(is_image_name, self._table.column(i)))]
        if suffixed:
            found = [i for i in suffixed if i in known] or suffixed
            hidden = [i for i in known if i not in suffixed]
            if hidden and found[0] not in known:  # such as image_id beside a column of masks
                found = self._with_files([*hidden, *found])
        else:
            weak = [i for i in others if self._names[i] in _IDENTIFIERS]
            found = known or weak or self._with_files(others)
            if len(found) > 1 and not known and not weak and len(others) <= 2:
                found = found[:1]
        if len(found) > 1:
            found = self._with_files(found)
        if len(found) != 1:
            raise self._unclear("images", "image_column", found or others)
        return found[0]

    def _with_files(self, indices: Sequence[int]) -> list[int]:
        """Return the columns with the most cells that name files, all of them if none does."""
        rows = range(0, len(self._table.records), max(1, len(self._table.records) // 100))
        cells = {i: self._table.column(i) for i in indices}
        hits = {i: sum(self._exists(cells[i][row]) for row in rows) for i in indices}
        return [i for i in indices if hits[i] == max(hits.values())]

    def _is_index(self, index: int) -> bool:
        return bool(_INDEX_NAME.fullmatch(self._names[index]))

    # ------------------------------------------------------------------------------- labels

    def labels(self, image: int) -> tuple[int, ...]:
        """Return the column of labels, or those of a one-hot table."""
        others = [i for i in range(len(self._names)) if i != image]
        known = [i for i in others if self._names[i] in _LABEL_NAMES]
        if len(known) == 1:
            return (known[0],)
        if known:
            return (self._one_of_equals(known),)
        numbered = [i for i in others if _NUMBERED_LABEL.fullmatch(self._names[i])]
        if len(numbered) > 1:
            raise self._several_labels(f"has several columns of labels ({self._listed(numbered)})")
        rest = [i for i in others if not self._is_split(i) and not self._is_index(i)]
        possible = self._possible_labels(rest)
        if not possible:
            raise DataError(
                f"{self._table.path} has no label column besides {shorten(self._table.header)}: "
                "add one, or name it with `label_column=`"
            )
        if len(possible) == 1:
            return (possible[0],)
        return self._one_hot(possible)

    def _possible_labels(self, indices: Sequence[int]) -> list[int]:
        """Drop columns that name or describe single images, as long as another one is left."""
        found = list(indices)
        for drop in (self._names_no_label, self._has_image_names, self._differs_everywhere):
            found = [i for i in found if not drop(i)] or found
        return found

    def _names_no_label(self, index: int) -> bool:
        name = self._names[index]
        return name in _IDENTIFIERS or bool(_NO_LABEL_NAME.fullmatch(name))

    def _has_image_names(self, index: int) -> bool:
        return any(map(is_image_name, self._table.column(index)))

    def _differs_everywhere(self, index: int) -> bool:
        cells = self._table.column(index)
        return len(cells) > 3 and len(set(cells)) == len(cells)

    def _one_of_equals(self, known: Sequence[int]) -> int:
        """Return one of several columns if all divide the images into the same classes.

        A column of names is preferred to a column of numbers.
        """
        columns = {i: self._table.column(i) for i in known}
        num_pairs = len(set(zip(*columns.values(), strict=True)))
        if any(len(set(cells)) != num_pairs for cells in columns.values()):
            raise self._unclear("labels", "label_column", known)
        return next((i for i in known if not all(map(_is_number, columns[i]))), known[0])

    def _one_hot(self, possible: Sequence[int]) -> tuple[int, ...]:
        """Return the columns of a one-hot table, in which each row has one 1."""
        columns = [[cell.strip().lower() for cell in self._table.column(i)] for i in possible]
        if not all((_FLAGS | _SET).issuperset(cells) for cells in columns):
            raise self._unclear("labels", "label_column", possible)
        counts = [sum(map(is_marked, row)) for row in zip(*columns, strict=True)]
        if any(count != 1 for count in counts):
            wrong = [count != 1 for count in counts]
            raise self._several_labels(
                f"has columns of 0 and 1 ({self._listed(possible)}), but not exactly one 1 in "
                f"{self._table.lines_where(wrong)}"
            )
        return tuple(possible)

    # ------------------------------------------------------------------------------- splits

    def splits(self, image: int, labels: Sequence[int]) -> tuple[int, ...]:
        """Return the column of split names, or the columns that mark a split."""
        others = [i for i in range(len(self._names)) if i != image and i not in labels]
        worded = [i for i in others if self._has_split_words(i)]
        if len(worded) > 1:
            columns = [[split_of_word(cell) for cell in self._table.column(i)] for i in worded]
            if any(column != columns[0] for column in columns):
                raise DataError(
                    f"{self._table.path} has columns that divide the images differently "
                    f"({self._listed(worded)}): keep the one that is meant as `split`"
                )
        if worded:
            return (worded[0],)
        flags = [i for i in others if split_flag_of(self._names[i], self._table.column(i))]
        doubtful = [i for i in others if has_doubtful_flag(self._names[i], self._table.column(i))]
        if doubtful and not flags:
            raise DataError(
                f"{self._table.path}: column {self._listed(doubtful)} may mark the validation set "
                "or the usable rows: rename it to is_val, or remove it"
            )
        return tuple(flags)

    def _is_split(self, index: int) -> bool:
        name, cells = self._names[index], self._table.column(index)
        return (
            self._has_split_words(index)
            or is_fold_name(name)
            or split_flag_of(name, cells) is not None
            or has_doubtful_flag(name, cells)
        )

    def _has_split_words(self, index: int) -> bool:
        """Return whether a column assigns images to splits: by its name or its cells."""
        words = {split_of_word(cell) for cell in self._table.column(index) if cell}
        if is_split_name(self._names[index]):
            return bool(words - {None}) or self._names[index] == "split"
        return len(words) > 1 and None not in words

    # ------------------------------------------------------------------------------- errors

    def _listed(self, indices: Sequence[int]) -> str:
        return shorten(repr(self._table.header[i]) for i in indices)

    def _unclear(self, what: str, parameter: str, indices: Sequence[int]) -> DataError:
        return DataError(
            f"{self._table.path}: the {what} could be in {self._listed(indices)} of the columns "
            f"{shorten(self._table.header)}; name the column with `{parameter}=`"
        )

    def _several_labels(self, problem: str) -> DataError:
        return DataError(
            f"{self._table.path} {problem}: {MULTI_LABEL}; name one column with `label_column=`, "
            "or keep the rows with one label"
        )


def is_marked(cell: str) -> bool:
    """Return whether a cell of a column for a class says that the image is of it."""
    return cell.strip().lower() in _SET


def normal_name(name: str) -> str:
    """Return a column's name in lowercase, with `_` between its words."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[+-]?\d+(\.\d*)?", text))


def _check_header(table: Table, image: int, labels: Sequence[int]) -> None:
    """Refuse a table without a header, whose first row would be lost."""
    if len(labels) != 1 or normal_name(table.header[labels[0]]) in _LABEL_NAMES:
        return
    first, label = table.header[image], table.header[labels[0]]
    if normal_name(first) in _IMAGE_NAMES | _IDENTIFIERS:
        return
    numbered = _is_number(first) and not any(map(is_image_name, table.column(image)))
    if numbered or label in table.column(labels[0]):
        raise DataError(
            f"{table.path} has no header: its first line looks like an image ({first}) with its "
            f"label ({label}); add a first line such as image,label"
        )
