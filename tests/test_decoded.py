"""Images that are decoded once: where they are kept, and that no file remains."""

import io
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Recorder
from PIL import Image

from tltools.card import Preprocessing
from tltools.data.images import load_image
from tltools.errors import DataError, TltoolsError
from tltools.progress import Silent
from tltools.training import decoded
from tltools.training.decoded import decode_once
from tltools.training.file_images import FileImages
from tltools.training.sources import ImageSource

CPU, META = torch.device("cpu"), torch.device("meta")
SPEC = Preprocessing(size=16)


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(10):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def little_memory(monkeypatch):
    """Return slightly too little memory for the images of `paths`."""
    monkeypatch.setattr(decoded, "available_memory", lambda: 2 * 10 * 16 * 16 * 3 - 1)
    monkeypatch.setattr(decoded, "DECODE_BATCH", 4)


def expected(paths):
    return np.stack([load_image(path, Preprocessing(size=16, resize="squash")) for path in paths])


def taken(images, indices):
    """Return the images at some indices of a file."""
    out = np.zeros((len(indices), *images.shape[1:]), np.uint8)
    images.take(np.array(indices), out)
    return out


def deleted_files(folder: Path) -> list[str]:
    """Return the unnamed files in `folder` that this process has open or mapped."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    names = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [line for line in (*names, *maps) if str(folder) in line]


def test_images_are_kept_in_memory_if_they_fit(paths, cache_dir):
    progress = Recorder()
    images = decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir, progress=progress)
    np.testing.assert_array_equal(images.numpy(), expected(paths))
    assert progress.bars == ["Decoding"]
    assert progress.said == ["10 decoded images take 0 MB in memory"]
    assert not cache_dir.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_larger_sets_are_mapped_from_a_temporary_file(paths, cache_dir, little_memory):
    progress = Recorder()
    images = decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir, progress=progress)
    assert progress.said == [f"10 decoded images take 0 MB in a temporary file in {cache_dir}"]
    np.testing.assert_array_equal(taken(images, range(10)), expected(paths))
    assert list(cache_dir.iterdir()) == []
    assert deleted_files(cache_dir), "the images must be in a file"
    del images
    assert deleted_files(cache_dir) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_parts_of_the_images_in_a_file_share_it_and_close_it(paths, cache_dir, little_memory):
    images = decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir)
    first, second = images.split([4, 6])
    third, fourth = second.split([5, 1])
    del images, second
    order = [3, 0, 0]
    assert [len(part) for part in (first, third, fourth)] == [4, 5, 1]
    for part, offset in ((first, 0), (third, 4)):
        right = expected(paths)[[offset + index for index in order]]
        np.testing.assert_array_equal(taken(part, order), right)
    np.testing.assert_array_equal(taken(fourth, [0]), expected(paths)[9:])
    del first, third, part
    assert deleted_files(cache_dir), "one part is still in use"
    del fourth
    assert deleted_files(cache_dir) == []


def test_many_images_are_in_a_file_although_they_would_fit_in_memory(paths, cache_dir, monkeypatch):
    monkeypatch.setattr(decoded, "MEMORY_BYTES", 10 * 16 * 16 * 3 - 1)
    images = decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir)
    assert isinstance(images, FileImages)
    np.testing.assert_array_equal(taken(images, range(10)), expected(paths))


@pytest.mark.parametrize("limit", [0, 5_000], ids=["no folder", "full disk"])
def test_images_that_fit_go_into_memory_where_no_file_can_be_written(
    paths, cache_dir, monkeypatch, limit
):
    monkeypatch.setattr(decoded, "MEMORY_BYTES", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    progress = Recorder()
    if not limit:
        cache_dir.write_text("a file")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or soft, hard))
        images = decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir, progress=progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_array_equal(images.numpy(), expected(paths))
    assert progress.said[0].endswith("; they are kept in memory instead")
    assert str(cache_dir) in progress.said[0]


def test_a_batch_is_the_same_from_a_file_as_from_memory(paths, cache_dir, monkeypatch):
    order, targets = torch.tensor([7, 2, 9, 0, 2]), torch.arange(10)
    batches = []
    for limit in (2**30, 1):
        monkeypatch.setattr(decoded, "MEMORY_BYTES", limit)
        images = decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir)
        source = ImageSource(images, targets, batch_size=2, augment="crop")
        generator = torch.Generator().manual_seed(1)
        batches.append([one for one, _ in source.batches(order, generator)])
    for in_memory, in_file in zip(*batches, strict=True):
        assert torch.equal(in_memory, in_file)


def test_a_file_that_became_shorter_is_an_error(tmp_path):
    file = (tmp_path / "images").open("w+b", buffering=0)
    file.write(bytes(2 * 768))
    images = FileImages(file, (2, 16, 16, 3))
    file.truncate(768 + 5)
    with pytest.raises(TltoolsError, match="decoded images has become shorter"):
        taken(images, [1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_while_decoding_into_a_file_leaves_nothing(paths, cache_dir, little_memory):
    class StopsAtOnce(Silent):
        def bar(self, description, total, unit="images"):
            class Bar:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    return None

                def advance(self, amount=1, note=""):
                    raise KeyboardInterrupt

            return Bar()

    with pytest.raises(KeyboardInterrupt):
        decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir, progress=StopsAtOnce())
    assert list(cache_dir.iterdir()) == []
    assert deleted_files(cache_dir) == []


def test_free_space_is_checked_before_decoding(paths, cache_dir, little_memory, monkeypatch):
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000))
    monkeypatch.setattr(decoded, "decode_batches", None)
    with pytest.raises(TltoolsError, match=r"need 0.0 GB.*cache has 0.0 GB free; .*`cache_dir=`"):
        decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir)


def test_a_full_disk_is_a_one_line_error_with_a_remedy(paths, cache_dir, little_memory):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(TltoolsError, match=r"cache is full; choose .* `cache_dir=`"):
            decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache_dir.iterdir()) == []


def test_an_uncreatable_cache_folder_is_a_one_line_error(paths, cache_dir, little_memory):
    cache_dir.write_text("a file")
    with pytest.raises(TltoolsError, match=r"cannot write decoded images to .*`cache_dir=`"):
        decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir)


def test_an_image_that_cannot_be_read_is_named(paths, cache_dir, little_memory):
    paths[6].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"6\.png"):
        decode_once(paths, SPEC, device=CPU, cache_dir=cache_dir)
    assert list(cache_dir.iterdir()) == []


def test_a_file_that_cannot_be_read_is_a_one_line_error(tmp_path):
    descriptor = os.open(tmp_path / "images", os.O_WRONLY | os.O_CREAT)
    images = FileImages(io.FileIO(descriptor, "r"), (2, 16, 16, 3))
    with pytest.raises(TltoolsError, match="bad file descriptor; choose another folder with"):
        taken(images, [1])


@pytest.mark.parametrize(
    ("free", "place"), [(4 * 10 * 16 * 16 * 3, "meta"), (4 * 10 * 16 * 16 * 3 - 1, "cpu")]
)
def test_images_are_kept_on_the_gpu_if_they_take_a_quarter_of_it(
    paths, cache_dir, monkeypatch, free, place
):
    monkeypatch.setattr(decoded, "free_gpu_memory", lambda _: free)
    images = decode_once(paths, SPEC, device=META, cache_dir=cache_dir)
    assert (images.device.type, images.shape) == (place, (10, 16, 16, 3))
