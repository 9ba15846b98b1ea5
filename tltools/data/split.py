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
    classes: Sequence[str],
    images: Sequence[str],
    groups: Sequence[str],
    *,
    val_fraction: float,
    seed: int,
) -> "NDArray[np.bool_]":
    """Choose a stratified validation set that keeps duplicates and near-duplicates together.

    scikit-learn splits the images in the order of their hashes, and each group follows the image
    that stands for it. So the split depends only on the images' contents and the seed, not on
    their names or the order of the rows, and images without near-duplicates are where they would
    be if there were no groups.

    Args:
        classes: Class of each image, (N,).
        images: SHA-256 of each image, (N,).
        groups: Group of each image that must stay on one side: the SHA-256 of one of its images,
            (N,).
        val_fraction: Fraction of each class in val, in (0, 1).
        seed: Random seed.

    Returns:
        Whether each image is in val, (N,). Each class has an image in train, and one in val
        if it has two or more groups of its own.

    Raises:
        ConfigError: If `val_fraction` is not in (0, 1).
        ValueError: If the lengths differ, or equal images have several classes or groups.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"`val_fraction=` must be between 0 and 1, got {val_fraction}")
    known = _known(classes, images, groups)
    members: defaultdict[str, list[str]] = defaultdict(list)
    groups_of: defaultdict[str, set[str]] = defaultdict(set)
    for image in sorted(known):
        name, group = known[image]
        members[name].append(image)
        groups_of[name].add(group)
    # A class with one group cannot be split: it stays in train.
    divisible = {name: found for name, found in members.items() if len(groups_of[name]) > 1}
    drawn = _draw_val(divisible, val_fraction=val_fraction, seed=seed) if divisible else set()
    val = {group for group in groups if group in drawn}
    _give_each_class_both_sides({name: sorted(groups_of[name]) for name in divisible}, val)
    for name in groups_of.keys() - divisible.keys():
        val -= groups_of[name]
    return np.array([group in val for group in groups], dtype=np.bool_)


def _known(
    classes: Sequence[str], images: Sequence[str], groups: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Return the class and the group of each image."""
    known: dict[str, tuple[str, str]] = {}
    for name, image, group in zip(classes, images, groups, strict=True):
        if known.setdefault(image, (name, group)) != (name, group):
            raise ValueError(f"image {image} has several classes or groups")
    return known


def _give_each_class_both_sides(groups_of: dict[str, list[str]], val: set[str]) -> None:
    """Move a group of a class that is only on one side; `val` is changed."""
    for groups in groups_of.values():
        if val.isdisjoint(groups):
            val.add(groups[0])
    for groups in groups_of.values():  # last, since training needs each class
        if val.issuperset(groups):
            val.remove(groups[0])


def _draw_val(members: dict[str, list[str]], *, val_fraction: float, seed: int) -> set[str]:
    """Return the images drawn for val; `members` holds two or more images of each class."""
    from sklearn.model_selection import train_test_split

    pairs = sorted((image, name) for name, images in members.items() for image in images)
    images, names = [image for image, _ in pairs], [name for _, name in pairs]
    # scikit-learn requires room for every class on each side.
    size = min(max(round(val_fraction * len(images)), len(members)), len(images) - len(members))
    _, chosen = train_test_split(images, test_size=size, random_state=seed, stratify=names)
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
