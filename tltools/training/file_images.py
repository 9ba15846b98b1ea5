"""Decoded images in a file, of which only the batches in use are in memory."""

import weakref
from collections.abc import Sequence
from io import RawIOBase
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tltools.errors import TltoolsError, cause_of


class FileImages:
    """Decoded images in a file, which is closed once no part of them is in use.

    They are read, not mapped: each page of a mapped file that was ever touched counts as memory of
    the process.
    """

    def __init__(
        self, file: "RawIOBase | _Shared", shape: tuple[int, ...], *, start: int = 0
    ) -> None:
        """Take over an open file.

        Args:
            file: The images' bytes, one image after the other.
            shape: (N, H, W, 3).
            start: Number of images in the file before these.
        """
        self.shape = shape
        self._start = start
        self._file = file if isinstance(file, _Shared) else _Shared(file)

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    def split(self, sizes: Sequence[int]) -> "list[FileImages]":
        """Return consecutive parts, which have so many images and share the file."""
        starts = accumulate(sizes, initial=self._start)
        return [
            FileImages(self._file, (size, *self.shape[1:]), start=start)
            for start, size in zip(starts, sizes, strict=False)
        ]

    def take(self, indices: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read the images at M indices into `out`, uint8 (M, H, W, 3), contiguous.

        Raises:
            TltoolsError: If the file cannot be read.
        """
        num_bytes = out[0].nbytes if len(out) else 0
        for index, image in zip(indices.tolist(), out, strict=True):
            self._file.read((self._start + index) * num_bytes, image.data.cast("B"))


class _Shared:
    """An open file of several owners, closed once the last of them is gone."""

    def __init__(self, file: RawIOBase) -> None:
        self._file = file
        weakref.finalize(self, file.close)

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes at an offset."""
        try:
            self._file.seek(offset)
            while buffer:  # a read may return less
                count = self._file.readinto(buffer)
                if not count:
                    raise TltoolsError("the temporary file of decoded images has become shorter")
                buffer = buffer[count:]
        except OSError as error:
            raise TltoolsError(
                f"cannot read the temporary file of decoded images: {cause_of(error)}; choose "
                "another folder with `cache_dir=`"
            ) from error
