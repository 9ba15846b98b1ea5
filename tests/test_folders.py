import os
import tracemalloc

import pytest

from tltools.card import Preprocessing
from tltools.data import folders
from tltools.data.folders import Names, find_folders, find_images
from tltools.data.images import load_image
from tltools.errors import DataError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return [root / name for name in names]


def test_images_are_found_recursively_in_sorted_order(tmp_path):
    expected = touch(tmp_path, "b.jpg", "a/z.PNG", "a/c/x.webp", "a-b.tif", "B.jpeg", "é.gif")
    touch(tmp_path, "notes.txt", "a/labels.csv", "jpg", "a/noext.")
    assert list(find_images(tmp_path)) == sorted(expected)


def test_hidden_files_and_folders_are_skipped(tmp_path):
    expected = touch(tmp_path, "a.jpg")
    touch(tmp_path, ".a.jpg", ".cache/b.jpg", ".jpg")
    assert list(find_images(tmp_path)) == expected


def test_a_folder_named_like_an_image_is_entered(tmp_path):
    expected = touch(tmp_path, "x.jpg/a.jpg")
    assert list(find_images(tmp_path)) == expected


def test_links_to_folders_are_followed_but_not_in_loops(tmp_path):
    touch(tmp_path, "a/b/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/self").symlink_to(tmp_path / "a/self")
    (tmp_path / "a/link").symlink_to(tmp_path / "elsewhere")
    found = [path.relative_to(tmp_path / "a").as_posix() for path in find_images(tmp_path / "a")]
    assert found == ["b/1.jpg", "link/2.jpg"]


def test_a_broken_link_is_yielded_so_that_it_gets_a_row(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    assert list(find_images(tmp_path)) == [tmp_path / "a.jpg"]
    with pytest.raises(DataError, match="no such file"):
        load_image(tmp_path / "a.jpg", Preprocessing())


def test_finding_is_lazy(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "b/1.jpg", "c/1.jpg")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scandir(path))[1])
    found = find_images(tmp_path)
    assert listed == []
    next(found)
    next(found)
    assert listed == [tmp_path, tmp_path / "b"]


def test_a_missing_root_is_refused_immediately(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_images(tmp_path / "gone")


def test_a_file_as_root_is_refused_immediately(tmp_path):
    (path,) = touch(tmp_path, "a.jpg")
    with pytest.raises(DataError, match="is not a folder"):
        find_images(path)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot list the folder .*: permission denied"):
        list(find_images(tmp_path))


def test_a_folder_that_cannot_be_listed_is_skipped_if_a_callback_is_given(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "b/c/1.jpg", "d.jpg")
    scandir = os.scandir

    def refuse_b(path):
        if path.name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_b)
    told = []
    found = [
        (folder, list(names)) for folder, names in find_folders(tmp_path, on_error=told.append)
    ]
    assert found == [(tmp_path / "a", ["1.jpg"]), (tmp_path, ["d.jpg"])]
    assert [type(error) for error in told] == [DataError]
    assert f"cannot list the folder {tmp_path / 'b'}: permission denied" in str(told[0])


def test_a_folder_comes_in_parts_if_subfolders_sort_between_its_files(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg", "c/1.jpg", "d.jpg", "e/1.jpg", "f/notes.txt")
    parts = [(folder, len(names), list(names)) for folder, names in find_folders(tmp_path)]
    assert parts == [
        (tmp_path, 2, ["a.jpg", "b.jpg"]),
        (tmp_path / "c", 1, ["1.jpg"]),
        (tmp_path, 1, ["d.jpg"]),
        (tmp_path / "e", 1, ["1.jpg"]),
    ]


@pytest.mark.parametrize("many", [0, 10**6], ids=["heap", "text"])
def test_names_are_in_order(many, monkeypatch):
    monkeypatch.setattr(folders, "MANY_NAMES", many)
    given = [f"é {number * 7919 % 1009}\n\udcff.jpg" for number in range(1009)]
    expected = sorted(given)
    names = Names(given)
    assert len(names) == 1009
    assert list(names) == expected
    assert len(names) == 1009


def test_names_joined_in_one_string_take_little_memory():
    def measure(make):
        tracemalloc.start()
        kept = make([f"image_{number:06}.jpg" for number in range(10_000)])
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(kept) == 10_000
        return size

    assert measure(Names) < measure(list) / 3
