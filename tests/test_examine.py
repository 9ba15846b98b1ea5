import os
import shutil

import pytest

from tltools.classify.examine import find_culprits
from tltools.errors import TltoolsError

SITE = """
import os, signal, time
stat = os.stat
def dangerous(path, *args, **options):  # the first thing that is done with a picture
    name = os.path.basename(path) if isinstance(path, (str, os.PathLike)) else ""
    if name == "crash.png":
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
    if name == "hang.png":
        time.sleep(1000)
    if name == "leave.png":
        os._exit(7)
    return stat(path, *args, **options)
os.stat = dangerous
"""
"""Loaded by every Python process whose path has its folder, as a module of this name is."""


@pytest.fixture
def dangerous(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.syspath_prepend(tmp_path / "site")


def examine(paths, timeout_s=1.0):
    return list(
        find_culprits(
            [os.fsencode(path) for path in paths], size=32, resize="squash", timeout_s=timeout_s
        )
    )


@pytest.mark.usefixtures("dangerous")
def test_pictures_that_end_their_process_are_found(pictures):
    paths = sorted((pictures / "red").iterdir())
    (pictures / "bad.png").write_bytes(b"no picture")
    for name in ("crash.png", "hang.png"):
        shutil.copy(paths[0], pictures / name)
    crash, hang = pictures / "crash.png", pictures / "hang.png"
    order = [crash, paths[0], hang, pictures / "bad.png", pictures / "missing.png", paths[1], crash]
    assert examine(order) == [
        (0, "the decoder crashed (SIGSEGV)"),
        (2, "the decoder took longer than 1 s for a picture"),
        (6, "the decoder crashed (SIGSEGV)"),
    ]


def test_nothing_is_found_among_good_pictures(pictures):
    assert examine(sorted((pictures / "blue").iterdir()), timeout_s=60) == []
    assert examine([]) == []


@pytest.mark.usefixtures("dangerous")
def test_a_child_that_ends_without_a_crash_is_an_error(pictures):
    shutil.copy(next((pictures / "red").iterdir()), pictures / "leave.png")
    with pytest.raises(TltoolsError, match="ended with 7; see that tltools works"):
        examine([pictures / "leave.png"])


def test_names_of_any_bytes_reach_the_child(pictures):
    odd = pictures / os.fsdecode(b"\xff\n.png")
    shutil.copy(next((pictures / "red").iterdir()), odd)
    assert examine([odd], timeout_s=60) == []
