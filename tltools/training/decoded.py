"""Decode the images of a training once, and keep them as bytes for all epochs."""

import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from io import RawIOBase
from pathlib import Path
from tempfile import TemporaryFile
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tltools.atomic import NO_ROOM
from tltools.card import Preprocessing
from tltools.errors import TltoolsError, cause_of
from tltools.memory import available_memory
from tltools.progress import SILENT, Progress
from tltools.runtime.device import free_gpu_memory
from tltools.runtime.pipeline import decode_batches
from tltools.training.file_images import FileImages
from tltools.wording import counted, plural

MEMORY_SHARE = 0.5
"""Largest fraction of the memory still available to this process used for decoded images."""
MEMORY_BYTES = 2**30
"""Most memory for decoded images where a file can take them: reading a batch that was just written
takes a fraction of the time of a training step, on it or without it."""
GPU_SHARE = 0.25
"""Largest fraction of a GPU's free memory used for images or features; training needs the rest."""
DECODE_BATCH = 64
"""Images decoded and stored together."""

Keep = Callable[[NDArray[np.uint8], int], None]
"""Stores a batch of images, uint8 (n, H, W, 3), starting at the given index."""


def fits_on_gpu(num_bytes: int, device: torch.device) -> bool:
    """Return whether this many bytes of samples fit on the device; False for the CPU."""
    return device.type != "cpu" and num_bytes <= GPU_SHARE * free_gpu_memory(device)


def decode_once(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    cache_dir: Path,
    progress: Progress = SILENT,
) -> Tensor | FileImages:
    """Decode images and keep them wherever they fit: on the GPU, in memory, or in a file.

    They go to the GPU if they take at most `GPU_SHARE` of its free memory, otherwise into memory
    up to `MEMORY_BYTES`, otherwise into a file in `cache_dir`, or into memory if none can be
    written; but never into more than `MEMORY_SHARE` of it. The file has no name (on Windows it is
    deleted when it is closed), so nothing is left behind, however the process ends.

    Args:
        paths: N images.
        preprocessing: Size and resize rule.
        device: Device that the training runs on.
        cache_dir: Folder of the file, if one is needed.
        progress: Shows the decoding, and reports where the images are kept.

    Returns:
        Uint8 (N, H, W, 3), RGB, in the order of `paths`; on `device`, on the CPU or in a file.

    Raises:
        DataError: If an image cannot be read.
        TltoolsError: If the images fit neither in memory nor on the disk, or nothing can be
            written there.
    """
    shape = preprocessing.shape(len(paths))
    num_bytes = int(np.prod(shape))
    take = plural(len(paths), "takes", "take")
    told = f"{counted(len(paths), 'decoded image')} {take} {num_bytes / 1e6:,.0f} MB"
    on_gpu = fits_on_gpu(num_bytes, device)
    fit_in_memory = num_bytes <= MEMORY_SHARE * available_memory()
    if not on_gpu and (num_bytes > MEMORY_BYTES or not fit_in_memory):
        try:
            file = _in_file(paths, preprocessing, num_bytes, cache_dir, progress)
            progress.say(f"{told} in a temporary file in {cache_dir}")
            return FileImages(file, shape)
        except _NoFileError as error:
            if not fit_in_memory:
                raise
            progress.warn(f"{error.reason}; they are kept in memory instead")
    images = torch.empty(shape, dtype=torch.uint8, device=device if on_gpu else "cpu")
    _decode(paths, preprocessing, _copy_into(images), progress)
    progress.detail(f"{told} {'on the GPU' if on_gpu else 'in memory'}")
    return images


def _copy_into(images: Tensor) -> Keep:
    def keep(batch: NDArray[np.uint8], start: int) -> None:
        images[start : start + len(batch)].copy_(torch.from_numpy(batch))

    return keep


def _decode(
    paths: Sequence[Path], preprocessing: Preprocessing, keep: Keep, progress: Progress
) -> None:
    start = 0
    with (
        progress.bar("Decoding", len(paths)) as bar,
        closing(_decoded(paths, preprocessing)) as batches,
    ):
        for batch in batches:
            keep(batch, start)
            start += len(batch)
            bar.advance(len(batch))


def _decoded(
    paths: Sequence[Path], preprocessing: Preprocessing
) -> Generator[NDArray[np.uint8], None, None]:
    yield from decode_batches(paths, preprocessing=preprocessing, batch_size=DECODE_BATCH)


def _in_file(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    num_bytes: int,
    cache_dir: Path,
    progress: Progress,
) -> RawIOBase:
    """Decode images into a file without a name; return it, open for reading."""
    with _explained(cache_dir, num_bytes):
        cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_dir).free
        if free < num_bytes:
            raise _no_room(cache_dir, num_bytes, f"has {free / 1e9:,.1f} GB free")
        # Unbuffered, so that it is the bare file.
        file = cast("RawIOBase", TemporaryFile(dir=cache_dir, prefix="tltools-", buffering=0))  # noqa: SIM115

    def keep(batch: NDArray[np.uint8], start: int) -> None:  # noqa: ARG001
        with _explained(cache_dir, num_bytes):
            left = np.ascontiguousarray(batch).data.cast("B")
            while left:  # it may write only part of the data
                left = left[file.write(left) :]

    try:
        _decode(paths, preprocessing, keep, progress)
        with _explained(cache_dir, num_bytes):
            os.fsync(file.fileno())  # some file systems report a full disk only now
    except BaseException:
        file.close()
        raise
    return file


class _NoFileError(TltoolsError):
    """Decoded images cannot be written to a file; `reason` says why, without the remedy."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; choose another folder with `cache_dir=`")
        self.reason = reason


@contextmanager
def _explained(cache_dir: Path, num_bytes: int) -> Iterator[None]:
    """Turn a disk error in the cache folder into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _no_room(cache_dir, num_bytes, "is full") from error
        raise _NoFileError(
            f"cannot write decoded images to {cache_dir}: {cause_of(error)}"
        ) from error


def _no_room(cache_dir: Path, num_bytes: int, state: str) -> _NoFileError:
    return _NoFileError(
        f"decoded images need {num_bytes / 1e9:,.1f} GB, but the disk of {cache_dir} {state}"
    )
