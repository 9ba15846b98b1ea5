import hashlib
from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from tltools.data.split import split_article, split_default
from tltools.errors import ConfigError, DataError


def sha(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


def made_up(seed: int, *, sizes: dict[str, int], copies: float = 0.1):
    """Rows of (class, group) in which some images have copies."""
    rng = np.random.default_rng(seed)
    classes, groups = [], []
    for name, size in sizes.items():
        number = 0
        while size:
            times = min(size, int(rng.integers(2, 5)) if rng.random() < copies else 1)
            classes += [name] * times
            groups += [sha((seed, name, number))] * times
            number, size = number + 1, size - times
    return classes, groups


def divide(classes, images, groups=None, *, val_fraction=0.1, seed=13):
    groups = images if groups is None else groups
    return split_default(classes, images, groups, val_fraction=val_fraction, seed=seed)


@pytest.mark.parametrize("val_fraction", [0.05, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("data_seed", range(5))
def test_every_class_has_its_share_and_no_duplicate_crosses_the_split(data_seed, val_fraction):
    classes, groups = made_up(data_seed, sizes={"a": 500, "b": 137, "c": 40})
    val = divide(classes, groups, val_fraction=val_fraction)
    sides: dict[str, set[bool]] = {}
    for group, is_val in zip(groups, val, strict=True):
        sides.setdefault(group, set()).add(bool(is_val))
    assert all(len(side) == 1 for side in sides.values())
    # Of different images: a copy goes where its group goes.
    pairs = set(zip(classes, groups, val.tolist(), strict=True))
    totals = Counter(name for name, _, _ in pairs)
    in_val = Counter(name for name, _, is_val in pairs if is_val)
    for name, total in totals.items():
        assert abs(in_val[name] - val_fraction * total) <= 2


def test_the_split_does_not_depend_on_the_order_of_the_rows():
    classes, groups = made_up(1, sizes={"a": 300, "b": 200})
    chosen = {group for group, val in zip(groups, divide(classes, groups), strict=True) if val}
    order = np.random.default_rng(0).permutation(len(groups))
    shuffled = divide([classes[i] for i in order], [groups[i] for i in order])
    again = {groups[i] for i, val in zip(order, shuffled, strict=True) if val}
    assert again == chosen


def test_val_is_not_a_block_of_neighboring_rows():
    # A split by the order of the hashes alone would put the smallest of them all into val.
    classes, groups = ["a"] * 1000, sorted(sha(i) for i in range(1000))
    places = np.flatnonzero(divide(classes, groups))
    assert len(places) == 100
    assert 0.35 < places.mean() / 1000 < 0.65
    assert np.diff(places).max() < 100


def test_the_same_seed_repeats_the_split_and_another_changes_it():
    classes, groups = made_up(2, sizes={"a": 400, "b": 400})
    first = divide(classes, groups, seed=13)
    np.testing.assert_array_equal(first, divide(classes, groups, seed=13))
    assert (first != divide(classes, groups, seed=14)).mean() > 0.1


@pytest.mark.parametrize(
    ("sizes", "in_val"),
    [
        pytest.param([1], 0, id="one image stays in train"),
        pytest.param([4], 0, id="one group stays in train"),
        pytest.param([1, 1], 1, id="two images are divided"),
        pytest.param([1, 1, 1], 1, id="three images"),
        pytest.param([7, 7], 7, id="one of two groups of copies"),
    ],
)
def test_small_classes_keep_an_image_in_train(sizes, in_val):
    groups = [sha(index) for index, size in enumerate(sizes) for _ in range(size)]
    val = divide(["a"] * len(groups), groups, val_fraction=0.1)
    assert val.sum() == in_val


def test_a_large_fraction_still_leaves_an_image_in_train():
    val = divide(["a"] * 5, [sha(i) for i in range(5)], val_fraction=0.99)
    assert val.sum() == 4


def test_no_rows_give_no_split():
    assert divide([], []).shape == (0,)


def test_an_image_with_two_classes_or_groups_is_a_value_error():
    with pytest.raises(ValueError, match="several classes or groups"):
        divide(["a", "b", "b"], [sha(1), sha(1), sha(2)])
    with pytest.raises(ValueError, match="several classes or groups"):
        divide(["a", "a"], [sha(1), sha(1)], [sha(1), sha(2)])


def test_near_duplicates_follow_the_image_that_stands_for_them():
    images = [sha(i) for i in range(400)]
    classes = ["a" if i % 3 else "b" for i in range(400)]  # a group may have several
    groups = [images[i - i % 4] if i < 80 else image for i, image in enumerate(images)]
    alone, together = divide(classes, images), divide(classes, images, groups)
    assert alone[:80].any()
    assert list(together[:80]) == [alone[i - i % 4] for i in range(80)]
    np.testing.assert_array_equal(together[80:], alone[80:])


def test_a_class_whose_images_are_all_near_duplicates_stays_in_train():
    images = [sha(i) for i in range(40)]
    for seed in range(20):
        val = divide(["a"] * 10 + ["b"] * 30, images, [images[0]] * 10 + images[10:], seed=seed)
        assert not val[:10].any()
        assert val.sum() == 3


def test_each_class_is_on_both_sides_whatever_its_groups():
    images = [sha(i) for i in range(40)]
    groups = [images[0]] * 10 + [images[10]] * 10 + images[20:]
    for seed in range(20):
        val = divide(["a"] * 20 + ["b"] * 20, images, groups, seed=seed, val_fraction=0.5)
        assert (val[0], val[10]) in {(True, False), (False, True)}


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -0.1, 10, float("nan")])
def test_an_invalid_fraction_is_refused(val_fraction):
    with pytest.raises(ConfigError, match="`val_fraction=` must be between 0 and 1"):
        divide(["a"], [sha(1)], val_fraction=val_fraction)


def test_the_articles_split_equals_scikit_learns():
    labels = np.array([0] * 70 + [1] * 30)
    rows = [f"{i}.jpg" for i in range(100)]
    _, expected = train_test_split(rows, test_size=0.1, random_state=13, stratify=labels)
    val = split_article(labels)
    assert {row for row, is_val in zip(rows, val, strict=True) if is_val} == set(expected)
    assert val.sum() == 10


def test_the_articles_split_of_too_few_images_is_an_error():
    with pytest.raises(DataError, match=r"cannot divide these 3 images .*: use `split=default`"):
        split_article(np.array([0, 0, 1]))
