"""The images of a training: decoded once, and kept as bytes for all of its epochs."""

import mmap
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tltools.atomic import NO_ROOM
from tltools.card import Preprocessing
from tltools.errors import TltoolsError
from tltools.memory import available_memory
from tltools.progress import SILENT, Progress
from tltools.runtime.device import free_gpu_memory
from tltools.runtime.pipeline import decode_batches

MEMORY_SHARE = 0.5
"""Most of the memory that this process may still use that decoded images take."""
GPU_SHARE = 0.25
"""Most of a GPU's free memory that images or features take; a training step needs the rest."""
DECODE_BATCH = 64
"""Images that are decoded and stored together."""

Keep = Callable[[NDArray[np.uint8], int], None]
"""Stores a batch of images, uint8 (n, H, W, 3), the first of which has the given index."""


def fits_on_gpu(num_bytes: int, device: torch.device) -> bool:
    """Tell whether samples of so many bytes are kept on a device that is not the CPU."""
    return device.type != "cpu" and num_bytes <= GPU_SHARE * free_gpu_memory(device)


def decode_once(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    cache_dir: Path,
    progress: Progress = SILENT,
) -> Tensor:
    """Decode images and keep them where they fit: on the GPU, in memory, or in a file.

    They go to the GPU if they take at most `GPU_SHARE` of its free memory, else into memory if
    they take at most `MEMORY_SHARE` of what this process may still use, else into a file in
    `cache_dir` that is mapped into memory. The file has no name (on Windows it is deleted when it
    is closed), so that nothing is left behind, however the process ends.

    Args:
        paths: N images.
        preprocessing: Size and resize rule.
        device: Where the training runs.
        cache_dir: Where the file is made, if there is one.
        progress: Shows the decoding, and tells where the images are.

    Returns:
        Uint8 (N, H, W, 3), RGB, in the order of `paths`; on `device` or on the CPU.

    Raises:
        DataError: If an image cannot be read.
        TltoolsError: If there is no room for the file, or it cannot be written.
    """
    shape = preprocessing.shape(len(paths))
    num_bytes = int(np.prod(shape))
    if fits_on_gpu(num_bytes, device):
        images, place = torch.empty(shape, dtype=torch.uint8, device=device), "on the GPU"
    elif num_bytes <= MEMORY_SHARE * available_memory():
        images, place = torch.empty(shape, dtype=torch.uint8), "in memory"
    else:
        images, place = None, f"in a temporary file in {cache_dir}: they do not fit in memory"
    if images is None:
        images = _in_file(paths, preprocessing, num_bytes, cache_dir, progress).view(shape)
    else:
        _decode(paths, preprocessing, _copy_into(images), progress)
    progress.say(f"{len(paths)} decoded images take {num_bytes / 1e6:,.0f} MB {place}")
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
) -> Tensor:
    """Decode images into a file; return its bytes, uint8 (N * H * W * 3,), mapped."""
    with _explained(cache_dir, num_bytes):
        cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_dir).free
        if free < num_bytes:
            raise _no_room(cache_dir, num_bytes, f"has {free / 1e9:,.1f} GB free")
        file = TemporaryFile(dir=cache_dir, prefix="tltools-", buffering=0)  # noqa: SIM115

    def keep(batch: NDArray[np.uint8], start: int) -> None:  # noqa: ARG001
        with _explained(cache_dir, num_bytes):
            left = np.ascontiguousarray(batch).data.cast("B")
            while left:  # a file without a buffer may take a part at a time
                left = left[file.write(left) :]

    with file:
        _decode(paths, preprocessing, keep, progress)
        with _explained(cache_dir, num_bytes):
            os.fsync(file.fileno())  # some file systems tell only now that a disk is full
            # Private: what would be written to the tensor would not reach the file.
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(mapping, dtype=torch.uint8)


@contextmanager
def _explained(cache_dir: Path, num_bytes: int) -> Iterator[None]:
    """Turn the failure of the cache folder's disk into one line with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _no_room(cache_dir, num_bytes, "is full") from error
        raise TltoolsError(
            f"cannot keep decoded images in {cache_dir}: {error.strerror}; choose another folder "
            "with --cache-dir"
        ) from error


def _no_room(cache_dir: Path, num_bytes: int, state: str) -> TltoolsError:
    return TltoolsError(
        f"decoded images need {num_bytes / 1e9:,.1f} GB, and the disk of {cache_dir} {state}; "
        "choose another folder with --cache-dir"
    )
