"""The words by which folders and columns name a split."""

import re
from collections.abc import Sequence

SPLITS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validating": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "holdout": "test",
}
"""Words for splits in folders or columns, and the split that each means."""

_FILLERS = frozenset({
    "set", "sets", "data", "dataset", "split", "images", "imgs", "image", "img", "folder", "files",
})  # fmt: skip
"""Words beside that of the split in the name of a folder: `train_images`, `seg_test`."""
_UNLABELED = frozenset({
    "pred", "prediction", "predict", "predictions", "unlabeled", "unlabelled", "inference",
})  # fmt: skip
_SPLIT_NAMES = frozenset({
    "split", "splits", "set", "subset", "partition", "phase", "usage", "stage", "mode", "dataset",
    "data_set", "data_split", "split_name", "dataset_split", "train_test_split", "train_val_split",
    "kaggle_split",
})  # fmt: skip
_FOLD_NAME = re.compile(r"(k|cv_?|k_)?folds?(_?(id|no|nr|number|\d+))?")
_FLAG_NAME = re.compile(r"is_(?P<word>[a-z]+)(_set|_image|_images|_data)?|(?P<bare>[a-z]+)")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_YES = frozenset({"1", "1.0", "true", "yes", "t", "y"})
_NO = frozenset({"0", "0.0", "false", "no", "f", "n"})


def split_of_word(word: str) -> str | None:
    """Return the split that a cell or a folder's name means; None if it is no split.

    Case, numbers and words such as in `training set`, `train_images` or `val2017` are ignored.
    """
    lowered = word.strip().lower().removesuffix("set")
    if lowered in SPLITS:
        return SPLITS[lowered]
    words = [part for part in map(str.lower, _WORDS.findall(word)) if part not in _FILLERS]
    words = [part for part in words if not part.isdigit()]
    return SPLITS.get(words[0]) if len(words) == 1 else None


def split_of_folder(name: str) -> str | None:
    """Return the split that a folder's name contains as one of its words: `seg_train`.

    None if there is none or more than one.
    """
    words = map(str.lower, _WORDS.findall(name))
    found = {SPLITS[word] for word in words if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def without_split_word(name: str) -> str:
    """Return a folder's name without the word of its split: `dogs_` of `dogs_train`."""
    return _WORDS.sub(lambda word: "" if word[0].lower() in SPLITS else word[0], name).lower()


def is_unlabeled_name(name: str) -> bool:
    """Return whether a folder's name says that its images have no labels: `seg_pred`."""
    return any(word in _UNLABELED for word in re.split(r"[\W_]+", name.lower()))


def is_split_name(name: str) -> bool:
    """Return whether a column may hold the names of splits; `name` as by `normal_name`."""
    return name in _SPLIT_NAMES


def is_fold_name(name: str) -> bool:
    """Return whether a column numbers the folds of a cross-validation."""
    return bool(_FOLD_NAME.fullmatch(name))


def split_flag_of(name: str, cells: Sequence[str]) -> str | None:
    """Return the split that a column of yes and no marks, such as `is_valid`; None if none.

    `valid` without `is_` may as well mean that a row is usable: see `has_doubtful_flag`.
    """
    match = _FLAG_NAME.fullmatch(name)
    if match is None or name == "valid":
        return None
    split = SPLITS.get(match["word"] or match["bare"])
    return split if split and _are_flags(cells) else None


def has_doubtful_flag(name: str, cells: Sequence[str]) -> bool:
    """Return whether a column of yes and no may mark the validation set or the usable rows."""
    return name == "valid" and _are_flags(cells)


def is_yes(cell: str) -> bool:
    """Return whether a cell of a column of yes and no means yes."""
    return cell.strip().lower() in _YES


def _are_flags(cells: Sequence[str]) -> bool:
    return all(cell.lower() in _YES or cell.lower() in _NO for cell in cells)
