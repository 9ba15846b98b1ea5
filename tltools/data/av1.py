"""The size of the frames in an AVIF, which may be larger than the image that its container claims.

Decoders allocate what the frames need. The layouts are those of ISO/IEC 14496-12 (the boxes) and of
the AV1 specification, section 5.5 (the sequence header).
"""

from collections.abc import Iterator

_SEQUENCE_HEADER = 1
_MAX_ITEMS = 1000


class _Bits:
    """Reads numbers of any length, most significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def read(self, num_bits: int) -> int:
        """Return the next number.

        Raises:
            IndexError: If the data ends before it.
        """
        if num_bits > self._left:
            raise IndexError("the header is truncated")
        self._left -= num_bits
        return self._value >> self._left & (1 << num_bits) - 1


def coded_size(data: bytes) -> tuple[int, int] | None:
    """Return the largest width and height of an AVIF's frames; None if no header gives them."""
    sizes = [
        size
        for start in _starts(data)
        for header in _sequence_headers(data, start)
        if (size := _frame_size(header))
    ]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _starts(data: bytes) -> Iterator[int]:
    """Yield where the data of items, and the headers in their properties, may start."""
    position = data.find(b"av1C")
    while position >= 0:
        yield position + 8
        position = data.find(b"av1C", position + 4)
    position = data.find(b"mdat")
    if position >= 0:
        yield position + 4
    try:
        yield from _extents(data)
    except IndexError:
        return  # the decoder says what is wrong


def _extents(data: bytes) -> Iterator[int]:
    """Yield the first byte of each item, from the box that locates them."""
    position = data.find(b"iloc")
    if position < 0:
        return
    bits = _Bits(data[position + 4 : position + 4 + 64 * _MAX_ITEMS])
    version = bits.read(8)
    bits.read(24)
    offset_bits, length_bits, base_bits, index_bits = (8 * bits.read(4) for _ in range(4))
    for _ in range(min(bits.read(16 if version < 2 else 32), _MAX_ITEMS)):
        bits.read(16 if version < 2 else 32)
        if version:
            bits.read(16)
        bits.read(16)
        base = bits.read(base_bits)
        for extent in range(bits.read(16)):
            if version:
                bits.read(index_bits)
            offset = bits.read(offset_bits)
            bits.read(length_bits)
            if not extent:
                yield base + offset


def _sequence_headers(data: bytes, start: int) -> Iterator[bytes]:
    """Yield the sequence headers among the units that start at a position."""
    for _ in range(4):  # a header stands first, behind a delimiter at most
        if start >= len(data) or data[start] & 0x80:
            return
        first = data[start]
        start += 2 if first & 4 else 1
        if not first & 2:  # without a size, the unit extends to the end of its item
            size = len(data) - start
        else:
            size, shift = 0, 0
            while start < len(data):
                byte = data[start]
                size |= (byte & 0x7F) << shift
                start, shift = start + 1, shift + 7
                if not byte & 0x80 or shift > 28:
                    break
        if first >> 3 & 15 == _SEQUENCE_HEADER:
            yield data[start : start + min(size, 64)]
        start += size


def _frame_size(header: bytes) -> tuple[int, int] | None:
    """Return the largest frame that a sequence header announces; None if it is truncated."""
    bits = _Bits(header)
    try:
        bits.read(4)  # the profile, and whether it is a single frame
        if bits.read(1):
            bits.read(5)
        else:
            _skip_timing(bits)
        width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
        return bits.read(width_bits) + 1, bits.read(height_bits) + 1
    except IndexError:
        return None


def _skip_timing(bits: _Bits) -> None:
    """Skip the timing and the operating points of a sequence header."""
    delay_bits = 0
    has_model = False
    if bits.read(1):
        bits.read(64)
        if bits.read(1):
            zeros = 0
            while not bits.read(1):
                zeros += 1
            bits.read(zeros)
        has_model = bool(bits.read(1))
        if has_model:
            delay_bits = bits.read(5) + 1
            bits.read(32 + 10)
    has_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if has_model and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_delay and bits.read(1):
            bits.read(4)
