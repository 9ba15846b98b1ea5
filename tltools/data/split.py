"""Split labeled images into train and val."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tltools.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARTICLE_VAL_FRACTION = 0.1
ARTICLE_SEED = 13


def split_default(
    classes: Sequence[str], groups: Sequence[str], *, val_fraction: float, seed: int
) -> "NDArray[np.bool_]":
    """Choose a stratified validation set that keeps byte-identical images together.

    scikit-learn splits the groups in the order of their hashes, so the split depends only on the
    images' contents and the seed, not on their names or the order of the rows.

    Args:
        classes: Class of each image, (N,).
        groups: Group of each image that must stay on one side, its SHA-256, (N,).
        val_fraction: Fraction of each class in val, in (0, 1).
        seed: Random seed.

    Returns:
        Whether each image is in val, (N,). Each class has an image in train, and one in val
        if it has two or more groups.

    Raises:
        ConfigError: If `val_fraction` is not in (0, 1).
        ValueError: If the lengths differ, or a group has images of several classes.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"`val_fraction=` must be between 0 and 1, got {val_fraction}")
    classes_of: defaultdict[str, set[str]] = defaultdict(set)
    for name, group in zip(classes, groups, strict=True):
        classes_of[group].add(name)
    if any(len(names) > 1 for names in classes_of.values()):
        raise ValueError("a group has images of several classes")
    members: defaultdict[str, list[str]] = defaultdict(list)
    for group in sorted(classes_of):
        members[min(classes_of[group])].append(group)
    # A class with one group cannot be split: it stays in train.
    divisible = {name: found for name, found in members.items() if len(found) > 1}
    val = _draw_val(divisible, val_fraction=val_fraction, seed=seed) if divisible else set()
    return np.array([group in val for group in groups], dtype=np.bool_)


def _draw_val(members: dict[str, list[str]], *, val_fraction: float, seed: int) -> set[str]:
    """Return the groups that go to val; `members` holds two or more groups for each class."""
    from sklearn.model_selection import train_test_split

    pairs = sorted((group, name) for name, groups in members.items() for group in groups)
    groups, names = [group for group, _ in pairs], [name for _, name in pairs]
    # scikit-learn requires room for every class on each side.
    size = min(max(round(val_fraction * len(groups)), len(members)), len(groups) - len(members))
    _, chosen = train_test_split(groups, test_size=size, random_state=seed, stratify=names)
    val = set(chosen)
    for found in members.values():  # it may still leave a small class out of one side
        if val.isdisjoint(found):
            val.add(found[0])
        elif val.issuperset(found):
            val.remove(found[0])
    return val


def split_article(targets: "NDArray[np.int64]") -> "NDArray[np.bool_]":
    """Choose the article's validation set: scikit-learn's split, in the order of the rows.

    It ignores duplicates, which may end up on both sides.

    Args:
        targets: Class index of each image, (N,), in the CSV's order.

    Returns:
        Whether each image is in val, (N,).

    Raises:
        DataError: If there are too few images to put each class on both sides.
    """
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(targets))
    try:
        _, val = train_test_split(
            rows, test_size=ARTICLE_VAL_FRACTION, random_state=ARTICLE_SEED, stratify=targets
        )
    except ValueError as error:
        raise DataError(
            f"the article's split cannot divide these {len(targets)} images ({error}): use "
            "`split=default`"
        ) from error
    return np.isin(rows, val)
