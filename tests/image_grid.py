"""Images in every way in which the formats can store samples, each with the pixels that it means.

The files are written here, byte by byte, from the formats' specifications, so that what they mean
does not depend on any library. Only compressions that are too long to write here are Pillow's.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 23
"""Height and width of all images: odd, so that rows end within a byte, a tile and a block."""
_RNG = np.random.default_rng(5)
ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE]
RAMP = np.rint((ROWS + COLUMNS) * 255 / (2 * (SIZE - 1))).astype(np.uint8)
"""Gray from 0 to 255, for lossy formats."""
SMOOTH = np.dstack([COLUMNS * 255 // (SIZE - 1), ROWS * 255 // (SIZE - 1), RAMP]).astype(np.uint8)
"""A color gradient, for lossy formats."""

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A file, and what it means."""

    name: str
    data: bytes
    pixels: Pixels
    """The levels, 0 to 255, of its pixels over white: (H, W) or (H, W, 3)."""
    atol: float = 1
    """Most levels by which a reader may be off, for rounding and lossy formats."""


def noise(bits: int, channels: int = 1) -> Pixels:
    """Random samples of so many bits, with the smallest and the largest among them."""
    shape = (SIZE, SIZE) if channels == 1 else (SIZE, SIZE, channels)
    samples = _RNG.integers(0, 1 << bits, shape, dtype=np.uint64)
    samples[0, 0], samples[0, 1] = 0, (1 << bits) - 1
    return samples


def levels(samples: Pixels, bits: int) -> Pixels:
    """Scale samples of so many bits to 0-255."""
    return samples.astype(np.float64) * 255 / ((1 << bits) - 1)


def stretched(samples: Pixels) -> Pixels:
    """Scale the smallest sample to 0 and the largest to 255."""
    values = samples.astype(np.float64)
    return (values - values.min()) * 255 / (values.max() - values.min())


def over_white(color: Pixels, alpha: Pixels) -> Pixels:
    """Lay levels over white; `alpha` is from 0 to 1."""
    alpha = alpha if color.ndim == 2 else alpha[..., None]
    return color * alpha + 255 * (1 - alpha)


def packed(row: Pixels, bits: int) -> bytes:
    """Pack samples of fewer than 8 bits, or of 12, into bytes, most significant bits first."""
    text = "".join(f"{int(sample):0{bits}b}" for sample in row.ravel())
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# -------------------------------------------------------------------------------------- PNG

ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PNG_COLORS = {0: "gray", 2: "color", 3: "palette", 4: "gray-alpha", 6: "color-alpha"}


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(samples: Pixels, bits: int, color: int, *chunks: bytes, adam7: bool = False) -> bytes:
    """Write a PNG whose rows use all five filters in turn."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, adam7)
    size = max(1, bits * PNG_CHANNELS[color] // 8)
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if adam7 else [samples]
    data = b"".join(_filtered_rows(part, bits, size) for part in parts if part.size)
    body = (
        chunk(b"IHDR", header),
        *chunks,
        chunk(b"IDAT", zlib.compress(data)),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _filtered_rows(samples: Pixels, bits: int, size: int) -> bytes:
    above = None
    out = []
    for number, row in enumerate(samples):
        line = packed(row, bits) if bits < 8 else row.astype(f">u{bits // 8}").tobytes()
        raw = np.frombuffer(line, np.uint8).astype(int)
        above = np.zeros_like(raw) if above is None else above
        left, corner = (
            np.concatenate([np.zeros(size, int), one])[: len(raw)] for one in (raw, above)
        )
        guesses = (0 * raw, left, above, (left + above) // 2, _paeth(left, above, corner))
        kind = number % 5
        out.append(bytes([kind]) + ((raw - guesses[kind]) % 256).astype(np.uint8).tobytes())
        above = raw
    return b"".join(out)


def _paeth(left: Pixels, above: Pixels, corner: Pixels) -> Pixels:
    guess = left + above - corner
    far = [abs(guess - one) for one in (left, above, corner)]
    return np.where(
        (far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner)
    )


def png_cases() -> Iterator[Case]:
    """Every color type and depth, with and without interlacing and transparency."""
    for color, many in PNG_BITS.items():
        for bits, adam7, has_key in itertools.product(many, (False, True), (False, True)):
            if has_key and color in (4, 6):
                continue
            name = f"png-{PNG_COLORS[color]}-{bits}{'-adam7' * adam7}{'-transparent' * has_key}"
            yield _png_case(name, color, bits, adam7=adam7, has_key=has_key)


def _png_case(name: str, color: int, bits: int, *, adam7: bool, has_key: bool) -> Case:
    samples = noise(bits, PNG_CHANNELS[color])
    chunks = []
    if color == 3:
        palette = noise(8, 3).astype(np.uint8).reshape(-1, 3)[: 1 << bits]
        chunks.append(chunk(b"PLTE", palette.tobytes()))
        pixels = palette[samples.astype(int)].astype(np.float64)
        if has_key:
            alphas = np.arange(1 << bits) % 5 / 4
            chunks.append(chunk(b"tRNS", np.rint(alphas * 255).astype(np.uint8).tobytes()))
            pixels = over_white(pixels, alphas[samples.astype(int)])
    elif color in (4, 6):
        scaled = levels(samples, bits)
        pixels = over_white(
            scaled[..., 0] if color == 4 else scaled[..., :3], scaled[..., -1] / 255
        )
    else:
        pixels = levels(samples, bits)
        if has_key:
            key = samples[5, 6]
            chunks.append(chunk(b"tRNS", np.atleast_1d(key).astype(">u2").tobytes()))
            is_key = (samples == key) if color == 0 else (samples == key).all(axis=2)
            pixels[is_key] = 255
    atol = 2 if color in (4, 6) else 1
    return Case(name, png(samples, bits, color, *chunks, adam7=adam7), pixels, atol)


# -------------------------------------------------------------------------------------- BMP


def bmp(
    rows: Sequence[bytes],
    bits: int,
    *,
    header: int = 40,
    compression: int = 0,
    palette: bytes = b"",
    num_colors: int = 0,
    masks: Sequence[int] = (),
    top_down: bool = False,
) -> bytes:
    """Write a BMP from its rows, which are given from top to bottom."""
    rows = rows if top_down else rows[::-1]
    data = (
        b"".join(row + bytes(-len(row) % 4) for row in rows)
        if compression in (0, 3, 6)
        else rows[0]
    )
    height = -SIZE if top_down else SIZE
    extra = struct.pack(f"<{len(masks)}I", *masks)
    if header == 12:
        info = struct.pack("<IHHHH", 12, SIZE, height, 1, bits)
    else:
        sizes = (header, SIZE, height, 1, bits, compression, len(data), 0, 0, num_colors, 0)
        info = struct.pack("<IiiHHIIiiII", *sizes)
        if header > 40:
            info = (info + extra).ljust(header, b"\0")
            extra = b""
    start = 14 + len(info) + len(extra) + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    return head + info + extra + palette + data


def bmp_cases() -> Iterator[Case]:
    """All depths, headers, bit fields and orders of rows, and run lengths."""
    yield from _bmp_palettes()
    yield from _bmp_runs()
    colors = noise(8, 3)
    rows = [row[:, ::-1].astype(np.uint8).tobytes() for row in colors]
    for header, top_down in itertools.product((12, 40, 64, 108, 124), (False, True)):
        if header != 12 or not top_down:
            data = bmp(rows, 24, header=header, top_down=top_down)
            yield Case(f"bmp-24-header{header}{'-top-down' * top_down}", data, colors)
    empty = [np.insert(row[:, ::-1], 3, 0, axis=1).astype(np.uint8).tobytes() for row in colors]
    full = [np.insert(row[:, ::-1], 3, 255, axis=1).astype(np.uint8).tobytes() for row in colors]
    for header, top_down in itertools.product((40, 108, 124), (False, True)):
        for name, one in (("empty", empty), ("full", full)):
            data = bmp(one, 32, header=header, top_down=top_down)
            yield Case(f"bmp-32-header{header}-{name}{'-top-down' * top_down}", data, colors)
    yield from _bmp_fields()


def _bmp_palettes() -> Iterator[Case]:
    for bits, header, is_short in itertools.product((1, 2, 4, 8), (12, 40, 64, 124), (False, True)):
        num_colors = (1 << bits) - (1 if is_short and bits > 1 else 0)
        samples = noise(bits) % num_colors
        palette = noise(8, 3).reshape(-1, 3)[:num_colors].astype(np.uint8)
        table = palette[:, ::-1] if header == 12 else np.insert(palette[:, ::-1], 3, 0, axis=1)
        rows = [packed(row, bits) for row in samples]
        if header == 12 and is_short:
            continue  # it has no place for the number of colors
        used = num_colors if is_short else 0
        data = bmp(rows, bits, header=header, palette=table.tobytes(), num_colors=used)
        name = f"bmp-palette-{bits}-header{header}{'-short' * is_short}"
        yield Case(name, data, palette[samples.astype(int)])


FIELDS = {
    "555": (16, (0x7C00, 0x3E0, 0x1F)),
    "565": (16, (0xF800, 0x7E0, 0x1F)),
    "444": (16, (0xF00, 0xF0, 0xF)),
    "4444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "1555": (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
    "bgr": (16, (0x1F, 0x7E0, 0xF800)),
    "bgrx": (32, (0xFF0000, 0xFF00, 0xFF)),
    "rgbx": (32, (0xFF, 0xFF00, 0xFF0000)),
    "xbgr": (32, (0xFF000000, 0xFF0000, 0xFF00)),
    "xrgb": (32, (0xFF00, 0xFF0000, 0xFF000000)),
    "bgra": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "rgba": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "abgr": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    "argb": (32, (0xFF00, 0xFF0000, 0xFF000000, 0xFF)),
    "101010": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "888-gap": (32, (0xFF00000, 0xFF000, 0xFF)),
}


def _bmp_fields() -> Iterator[Case]:
    samples = noise(5, 3)
    words = samples[..., 0] << 10 | samples[..., 1] << 5 | samples[..., 2]
    yield Case(
        "bmp-16-no-fields",
        bmp([row.astype("<u2").tobytes() for row in words], 16),
        levels(samples, 5),
    )
    for (name, (bits, masks)), header in itertools.product(FIELDS.items(), (40, 56, 108, 124)):
        if len(masks) == 4 and header == 40:
            continue
        words = np.zeros((SIZE, SIZE), np.uint64)
        parts = []
        for mask in masks:
            shift = (mask & -mask).bit_length() - 1
            size = (mask >> shift).bit_length()
            samples = noise(size)
            words |= samples << np.uint64(shift)
            parts.append(levels(samples, size))
        color = np.dstack(parts[:3])
        pixels = over_white(color, parts[3] / 255) if len(masks) == 4 else color
        rows = [row.astype(f"<u{bits // 8}").tobytes() for row in words]
        data = bmp(rows, bits, header=header, compression=3, masks=masks)
        yield Case(f"bmp-fields-{name}-header{header}", data, pixels)


def _bmp_runs() -> Iterator[Case]:
    for bits, kind in ((8, 1), (4, 2)):
        palette = noise(8, 3).reshape(-1, 3)[: 1 << bits].astype(np.uint8)
        samples = noise(bits).astype(int)
        samples[4:9] = samples[4:9, :1]  # runs of one value
        table = np.insert(palette[:, ::-1], 3, 0, axis=1).tobytes()
        data = bmp([_runs(samples, bits)], bits, compression=kind, palette=table)
        yield Case(f"bmp-rle{bits}", data, palette[samples])
        samples = samples.copy()
        jumped = _runs(samples, bits, skip=(7, 3))
        samples[SIZE - 1 - 7, :3] = 0
        data = bmp([jumped], bits, compression=kind, palette=table)
        yield Case(f"bmp-rle{bits}-delta", data, palette[samples])


def _runs(samples: Pixels, bits: int, skip: tuple[int, int] | None = None) -> bytes:
    """Encode rows as runs, or literally where they are not; a delta skips the start of one row."""
    out = b""
    for number, row in enumerate(samples[::-1]):
        if skip and skip[0] == number:
            out += bytes([0, 2, skip[1], 0])
            row = row[skip[1] :]
        if (row == row[0]).all():
            value = int(row[0])
            out += bytes([len(row), value if bits == 8 else value << 4 | value])
        else:
            literal = packed(row, bits)
            out += bytes([0, len(row)]) + literal + bytes(len(literal) % 2)
        out += b"\0\0"
    return out + b"\0\1"


# ------------------------------------------------------------------------------------- TIFF

_TYPES = {1: "u", 2: "i", 3: "f"}
_YCBCR, _LAB = 6, 8


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a TIFF stores its samples."""

    order: str = "<"
    compression: int = 1
    planes: int = 1
    tile: int = 0
    rows: int = SIZE
    predictor: int = 1
    fill: int = 1
    is_big: bool = False

    @property
    def name(self) -> str:
        """What differs from the plainest layout."""
        parts = {
            f"compression{self.compression}": self.compression != 1,
            "big-endian": self.order == ">",
            "planes": self.planes == 2,
            "tiles": self.tile,
            "strips": self.rows != SIZE,
            f"predictor{self.predictor}": self.predictor != 1,
            "lsb-first": self.fill == 2,
            "bigtiff": self.is_big,
        }
        return "-".join(name for name, is_so in parts.items() if is_so) or "plain"


def tiff(
    samples: Pixels, bits: int, color: int, layout: Layout, *, kind: int = 1, tags: Any = None
) -> bytes:
    """Write a TIFF with one page from samples (H, W) or (H, W, C)."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    channels = samples.shape[2]
    planes = [samples[..., n : n + 1] for n in range(channels)] if layout.planes == 2 else [samples]
    parts = [
        _tiff_part(part, bits, kind, layout) for plane in planes for part in _parts(plane, layout)
    ]
    where, sizes = (324, 325) if layout.tile else (273, 279)
    entries = {
        256: (4, [SIZE]),
        257: (4, [SIZE]),
        258: (3, [bits] * channels),
        259: (3, [layout.compression]),
        262: (3, [color]),
        277: (3, [channels]),
        sizes: (4, [len(part) for part in parts]),
        284: (3, [layout.planes]),
        317: (3, [layout.predictor]),
        339: (3, [kind] * channels),
        **(
            {322: (4, [layout.tile]), 323: (4, [layout.tile])}
            if layout.tile
            else {278: (4, [layout.rows])}
        ),
        **({266: (3, [2])} if layout.fill == 2 else {}),
        **(tags or {}),
    }
    start = 16 if layout.is_big else 8
    offsets = itertools.accumulate((len(part) for part in parts[:-1]), initial=start)
    entries[where] = (4, list(offsets))
    return _tiff_file(entries, b"".join(parts), layout)


def _parts(plane: Pixels, layout: Layout) -> Iterator[Pixels]:
    if not layout.tile:
        yield from (plane[top : top + layout.rows] for top in range(0, SIZE, layout.rows))
        return
    size = layout.tile
    for top, left in itertools.product(range(0, SIZE, size), repeat=2):
        part = plane[top : top + size, left : left + size]
        yield np.pad(
            part, [(0, size - part.shape[0]), (0, size - part.shape[1]), (0, 0)], mode="edge"
        )


def _tiff_part(part: Pixels, bits: int, kind: int, layout: Layout) -> bytes:
    dtype = np.dtype(f"{layout.order}{_TYPES[kind]}{max(bits, 8) // 8}") if bits != 12 else None
    if layout.predictor == 2:
        whole = part.astype(f"u{bits // 8}")
        whole[:, 1:] = whole[:, 1:] - whole[:, :-1]  # wraps, as it should
        part = whole
    if layout.predictor == 3:
        data = b"".join(_float_predicted(row) for row in part)
    elif bits in (1, 2, 4, 12):
        data = b"".join(packed(row, bits) for row in part)
    else:
        data = part.astype(dtype).tobytes()
    if layout.compression in (8, 32946):
        data = zlib.compress(data)
    elif layout.compression == 5:
        data = _lzw(data)
    elif layout.compression == 32773:
        row_size = len(data) // len(part)
        data = b"".join(_packbits(data[at : at + row_size]) for at in range(0, len(data), row_size))
    return data.translate(_REVERSED) if layout.fill == 2 else data


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _float_predicted(row: Pixels) -> bytes:
    """Return the bytes of floats by significance, as differences (Adobe's technical note 3)."""
    channels = row.shape[-1]
    size = row.dtype.itemsize
    big = np.frombuffer(row.astype(row.dtype.newbyteorder(">")).tobytes(), np.uint8)
    planes = big.reshape(-1, size).T.ravel().astype(int)
    planes[channels:] -= planes[:-channels].copy()
    return (planes % 256).astype(np.uint8).tobytes()


def _packbits(data: bytes) -> bytes:
    out = b""
    for at in range(0, len(data), 100):
        part = data[at : at + 100]
        is_run = len(part) > 1 and len(set(part)) == 1
        out += bytes([257 - len(part), part[0]]) if is_run else bytes([len(part) - 1]) + part
    return out


def _lzw(data: bytes) -> bytes:
    """Encode as LZW with TIFF's early change of the code's length."""
    table = {bytes([n]): n for n in range(256)}
    codes: list[tuple[int, int]] = [(256, 9)]
    known, bits, current = dict(table), 9, b""
    for byte in data:
        longer = current + bytes([byte])
        if longer in known:
            current = longer
            continue
        codes.append((known[current], bits))
        known[longer] = len(known) + 2  # 256 and 257 are none of them
        current = bytes([byte])
        if len(known) + 2 == 4094:
            codes.append((256, bits))
            known, bits = dict(table), 9
        elif len(known) + 2 == 1 << bits:
            bits += 1
    codes.append((known[current], bits))
    if len(known) + 3 == 1 << bits:
        bits += 1
    codes.append((257, bits))
    text = "".join(f"{code:0{size}b}" for code, size in codes)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)


def _tiff_file(entries: dict[int, tuple[int, list[int]]], data: bytes, layout: Layout) -> bytes:
    order, is_big = layout.order, layout.is_big
    head = 16 if is_big else 8
    start = head + len(data)
    start += start % 2
    item, room, word = (20, 8, "Q") if is_big else (12, 4, "I")
    base = start + (8 if is_big else 2) + item * len(entries) + room
    body, extra = b"", b""
    for tag, (kind, numbers) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(numbers)}{' BsHI'[kind]}", *numbers)
        value = content.ljust(room, b"\0")
        if len(content) > room:
            value = struct.pack(f"{order}{word}", base + len(extra))
            extra += content + bytes(len(content) % 2)
        body += struct.pack(f"{order}HH{word}", tag, kind, len(numbers)) + value
    mark = b"II" if order == "<" else b"MM"
    if is_big:
        header = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, start)
    else:
        header = mark + struct.pack(f"{order}HI", 42, start)
    count = struct.pack(f"{order}{'Q' if is_big else 'H'}", len(entries))
    return (header + data).ljust(start, b"\0") + count + body + bytes(room) + extra


def layouts(bits: int, channels: int, kind: int = 1) -> Iterator[Layout]:
    """Return the layouts to try for samples of a kind."""
    yield from (Layout(), Layout(order=">"), Layout(rows=5), Layout(is_big=True))
    yield from (Layout(order=">", is_big=True), Layout(tile=16), Layout(tile=16, order=">"))
    for compression in (5, 8, 32946, 32773):
        yield from (Layout(compression=compression, order=order) for order in "<>")
        yield from (
            Layout(compression=compression, tile=16),
            Layout(compression=compression, rows=5),
        )
    if channels > 1:
        for compression, order in itertools.product((1, 8), "<>"):
            yield Layout(planes=2, compression=compression, order=order)
        yield from (Layout(planes=2, tile=16), Layout(planes=2, compression=8, tile=16))
        yield Layout(planes=2, rows=5, compression=5)
    if bits >= 8 and bits != 12 and kind != 3:
        yield from (Layout(predictor=2, compression=8, order=order) for order in "<>")
        yield from (Layout(predictor=2, compression=5), Layout(predictor=2, compression=8, tile=16))
    if kind == 3:
        yield from (Layout(predictor=3, compression=8, order=order) for order in "<>")
    if bits <= 8:
        yield from (Layout(fill=2), Layout(fill=2, compression=8))


def tiff_cases() -> Iterator[Case]:
    """All kinds of samples in all layouts."""
    for name, bits, color, kind, make in _tiff_kinds():
        samples, pixels, tags = make()
        channels = 1 if samples.ndim == 2 else samples.shape[2]
        for layout in layouts(bits, channels, kind):
            data = tiff(samples, bits, color, layout, kind=kind, tags=tags)
            atol = 7 if color in (_YCBCR, _LAB) else 3  # their samples are rounded
            yield Case(f"tiff-{name}-{layout.name}", data, pixels, atol)
    yield from _tiff_subsampled()
    yield from _tiff_by_pillow()
    for orientation in range(1, 9):
        samples = noise(8, 3)
        tags = {274: (3, [orientation])}
        pixels = upright(samples, orientation)
        yield Case(
            f"tiff-orientation{orientation}", tiff(samples, 8, 2, Layout(), tags=tags), pixels
        )


Made = tuple[Pixels, Pixels, dict[int, Any]]


def _tiff_kinds() -> Iterator[tuple[str, int, int, int, Callable[[], Made]]]:
    """Yield a name, bits, the color space, the kind of samples, and what makes them."""
    for bits in (1, 2, 4, 8, 12, 16):
        yield f"gray{bits}", bits, 1, 1, lambda bits=bits: _of(noise(bits), bits)
        yield (
            f"white-is-zero{bits}",
            bits,
            0,
            1,
            lambda bits=bits: _of(noise(bits), bits, is_negative=True),
        )
    for bits, kind in (
        (8, 2),
        (16, 2),
        (32, 1),
        (32, 2),
        (64, 1),
        (64, 2),
        (16, 3),
        (32, 3),
        (64, 3),
    ):
        name = f"{ ({1: 'uint', 2: 'int', 3: 'float'}[kind]) }{bits}"
        for color in (1, 0):
            yield (
                f"{'white-is-zero-' * (not color)}{name}",
                bits,
                color,
                kind,
                partial(_stretched, bits, kind, is_negative=not color),
            )
    for bits in (1, 2, 4, 8):
        yield f"palette{bits}", bits, 3, 1, lambda bits=bits: _palette(bits)
    for bits in (2, 4, 8, 16):
        yield f"color{bits}", bits, 2, 1, lambda bits=bits: _of(noise(bits, 3), bits)
    yield "color-float32", 32, 2, 3, lambda: _stretched(32, 3, channels=3)
    yield "color-uint32", 32, 2, 1, lambda: _stretched(32, 1, channels=3)
    yield "color-int16", 16, 2, 2, lambda: _stretched(16, 2, channels=3)
    for bits, (name, extra) in itertools.product(
        (8, 16), {"unspecified": 0, "associated": 1, "alpha": 2}.items()
    ):
        yield (
            f"color{bits}-{name}",
            bits,
            2,
            1,
            lambda bits=bits, extra=extra: _with_extra(bits, 3, extra),
        )
        yield (
            f"gray{bits}-{name}",
            bits,
            1,
            1,
            lambda bits=bits, extra=extra: _with_extra(bits, 1, extra),
        )
        yield (
            f"white-is-zero{bits}-{name}",
            bits,
            0,
            1,
            lambda bits=bits, extra=extra: _with_extra(bits, 1, extra, is_negative=True),
        )
    yield "color8-two-extra", 8, 2, 1, lambda: _two_extra(8)
    yield "color16-two-extra", 16, 2, 1, lambda: _two_extra(16)
    for bits in (8, 16):
        yield f"cmyk{bits}", bits, 5, 1, lambda bits=bits: _cmyk(bits)
    yield "ycbcr", 8, _YCBCR, 1, _ycbcr
    yield "lab", 8, _LAB, 1, _lab


def _of(samples: Pixels, bits: int, *, is_negative: bool = False) -> Made:
    pixels = levels(samples, bits)
    return samples, 255 - pixels if is_negative else pixels, {}


def _stretched(bits: int, kind: int, channels: int = 1, *, is_negative: bool = False) -> Made:
    if kind == 3:
        shape = (SIZE, SIZE) if channels == 1 else (SIZE, SIZE, channels)
        samples = _RNG.normal(size=shape).astype(f"f{bits // 8}")
    else:
        samples = noise(bits, channels)
        samples = samples.astype(f"u{bits // 8}").view(f"{_TYPES[kind]}{bits // 8}")
    pixels = stretched(samples)
    return samples, 255 - pixels if is_negative else pixels, {}


def _palette(bits: int) -> Made:
    samples = noise(bits)
    palette = noise(16, 3).reshape(-1, 3)[: 1 << bits]
    entries = palette.T.ravel().tolist()
    return samples, levels(palette, 16)[samples.astype(int)], {320: (3, entries)}


def _with_extra(bits: int, channels: int, extra: int, *, is_negative: bool = False) -> Made:
    samples = noise(bits, channels + 1)
    samples[..., -1][3:9] = 0
    samples[..., -1][12:] = (1 << bits) - 1
    if extra == 1:  # the colors are multiplied by the opacity, so they are at most as large
        samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
    scaled = levels(samples, bits)
    color = scaled[..., 0] if channels == 1 else scaled[..., :-1]
    alpha = scaled[..., -1] / 255
    if is_negative:
        color = 255 - color
    if extra == 0:
        pixels = color
    elif extra == 2:
        pixels = over_white(color, alpha)
    else:
        pixels = color + 255 * (1 - (alpha if channels == 1 else alpha[..., None]))
    return samples, pixels, {338: (3, [extra])}


def _two_extra(bits: int) -> Made:
    samples = noise(bits, 5)
    return samples, levels(samples[..., :3], bits), {338: (3, [0, 0])}


def _cmyk(bits: int) -> Made:
    samples = noise(bits, 4)
    scaled = 255 - levels(samples, bits)
    return samples, scaled[..., :3] * scaled[..., 3:] / 255, {332: (3, [1])}


def _ycbcr() -> Made:
    samples = np.asarray(Image.fromarray(SMOOTH).convert("YCbCr")).astype(np.uint64)
    return samples, SMOOTH, {530: (3, [1, 1])}


# From linear sRGB to CIE XYZ with the white of daylight at 5000 K (Bradford).
_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
_WHITE = np.array([0.96422, 1, 0.82521])


def _lab() -> Made:
    pixels = 64 + SMOOTH // 2  # rounded samples of dark, pure colors are far apart
    share = pixels / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _XYZ.T / _WHITE
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    light = 116 * root[..., 1] - 16
    samples = [
        light * 2.55,
        500 * (root[..., 0] - root[..., 1]),
        200 * (root[..., 1] - root[..., 2]),
    ]
    return np.rint(np.dstack(samples)).astype(np.int64) % 256, pixels, {}


def _tiff_subsampled() -> Iterator[Case]:
    """Blocks of several lumas with one pair of colors; without the tag, blocks are 2 x 2."""
    ycc = np.asarray(Image.fromarray(SMOOTH).convert("YCbCr")).astype(float)
    for (wide, high), compression in itertools.product(((2, 1), (2, 2), (1, 2)), (1, 8)):
        padding = [(0, -SIZE % high), (0, -SIZE % wide), (0, 0)]
        whole = np.pad(ycc, padding, mode="edge")
        rows, columns = whole.shape[0] // high, whole.shape[1] // wide
        blocks = whole.reshape(rows, high, columns, wide, 3).swapaxes(1, 2)
        luma = blocks[..., 0].reshape(rows, columns, -1)
        data = (
            np.rint(np.dstack([luma, blocks[..., 1:].mean(axis=(2, 3))])).astype(np.uint8).tobytes()
        )
        data = zlib.compress(data) if compression == 8 else data
        entries = {
            256: (4, [SIZE]),
            257: (4, [SIZE]),
            258: (3, [8, 8, 8]),
            259: (3, [compression]),
            262: (3, [_YCBCR]),
            273: (4, [8]),
            277: (3, [3]),
            278: (4, [SIZE]),
            279: (4, [len(data)]),
            530: (3, [wide, high]),
        }
        for name in (f"{wide}x{high}", *(("default",) if wide == high == 2 else ())):
            if name == "default":
                del entries[530]
            file = _tiff_file(entries, data + bytes(2000), Layout())
            yield Case(f"tiff-ycbcr-{name}-compression{compression}", file, SMOOTH, atol=12)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply EXIF's orientation to stored pixels."""
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels),
    }
    return turned[orientation]


def _tiff_by_pillow() -> Iterator[Case]:
    black = noise(1).astype(bool)
    for compression in ("tiff_ccitt", "group3", "group4"):
        image = Image.fromarray(black)
        yield Case(
            f"tiff-{compression}", saved(image, "TIFF", compression=compression), black * 255
        )
    colors = noise(8, 3).astype(np.uint8)
    for compression in ("zstd", "lzma"):
        data = saved(Image.fromarray(colors), "TIFF", compression=compression)
        yield Case(f"tiff-{compression}", data, colors)
    for name, pixels in (("color", SMOOTH), ("gray", RAMP)):
        data = saved(Image.fromarray(pixels), "TIFF", compression="jpeg", quality=100)
        yield Case(f"tiff-jpeg-{name}", data, pixels, atol=12)


# ------------------------------------------------------------------------------------- JPEG


def jpeg_cases() -> Iterator[Case]:
    """Color spaces, subsampling, scans and orientation."""
    image = Image.fromarray(SMOOTH)
    for subsampling, options in itertools.product(
        ("4:4:4", "4:2:2", "4:2:0"),
        ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}),
    ):
        name = "-".join(["jpeg", subsampling.replace(":", ""), *options])
        data = saved(image, "JPEG", quality=100, subsampling=subsampling, **options)
        yield Case(name, data, SMOOTH, atol=20)
    yield Case("jpeg-rgb", saved(image, "JPEG", quality=100, keep_rgb=True), SMOOTH, atol=6)
    for progressive in (False, True):
        data = saved(Image.fromarray(RAMP), "JPEG", quality=100, progressive=progressive)
        yield Case(f"jpeg-gray{'-progressive' * progressive}", data, RAMP, atol=6)
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[274] = orientation
        data = saved(image, "JPEG", quality=100, subsampling="4:4:4", exif=exif)
        yield Case(f"jpeg-orientation{orientation}", data, upright(SMOOTH, orientation), atol=8)
    yield from _jpeg_cmyk()


def _jpeg_cmyk() -> Iterator[Case]:
    """Adobe stores CMYK inverted; with transform 2, the inks are stored as YCbCr, and black so."""
    ink = 255 - SMOOTH
    black = RAMP // 3
    pixels = SMOOTH * (255 - black[..., None].astype(float)) / 255
    plain = np.dstack([ink, black])
    data = saved(Image.fromarray(plain, "CMYK"), "JPEG", quality=100)
    yield Case("jpeg-cmyk", data, pixels, atol=8)
    luma = np.asarray(Image.fromarray(ink).convert("YCbCr"))
    stored = 255 - np.dstack([luma, 255 - black])  # Pillow inverts what it is given
    file = bytearray(saved(Image.fromarray(stored, "CMYK"), "JPEG", quality=100))
    file[file.index(b"Adobe") + 11] = 2
    yield Case("jpeg-ycck", bytes(file), pixels, atol=8)


# -------------------------------------------------------------------------------------- GIF


def gif(
    samples: Pixels,
    bits: int,
    palette: Pixels,
    *,
    is_local: bool = False,
    interlaced: bool = False,
    key: int | None = None,
    at: tuple[int, int] = (0, 0),
) -> bytes:
    """Write a GIF of one frame, whose codes are cleared often enough never to grow."""
    height, width = samples.shape
    table = palette.astype(np.uint8).tobytes()
    here, there = (b"", table) if is_local else (table, b"")
    flag = 0x80 | bits - 1
    head = b"GIF89a" + struct.pack("<HHBBB", SIZE, SIZE, 0 if is_local else flag, 0, 0) + here
    if key is not None:
        head += b"\x21\xf9\x04\x01\0\0" + bytes([key, 0])
    flags = (flag if is_local else 0) | (0x40 if interlaced else 0)
    head += b"\x2c" + struct.pack("<HHHHB", at[1], at[0], width, height, flags) + there
    if interlaced:
        order = [
            *range(0, height, 8),
            *range(4, height, 8),
            *range(2, height, 4),
            *range(1, height, 2),
        ]
        samples = samples[order]
    data = _gif_codes(samples, max(bits, 2))
    blocks = b"".join(
        bytes([len(part)]) + part for part in (data[n : n + 255] for n in range(0, len(data), 255))
    )
    return head + bytes([max(bits, 2)]) + blocks + b"\0\x3b"


def _gif_codes(samples: Pixels, bits: int) -> bytes:
    clear, width = 1 << bits, bits + 1
    codes = []
    for number, sample in enumerate(samples.ravel().tolist()):
        if number % ((1 << bits) - 2) == 0:
            codes.append(clear)
        codes.append(sample)
    codes.append(clear + 1)
    value = sum(code << (width * number) for number, code in enumerate(codes))
    return value.to_bytes(-(-width * len(codes) // 8), "little")


def gif_cases() -> Iterator[Case]:
    """All depths, with local palettes, interlacing, transparency and small frames."""
    for bits, is_local, interlaced, has_key in itertools.product(
        range(1, 9), (False, True), (False, True), (False, True)
    ):
        samples = noise(bits).astype(int)
        palette = noise(8, 3).reshape(-1, 3)[: 1 << bits]
        pixels = palette[samples].astype(float)
        if has_key:
            pixels[samples == 1] = 255
        options = {"is_local": is_local, "interlaced": interlaced, "key": 1 if has_key else None}
        name = "-".join(["gif", str(bits), *(option for option, is_so in options.items() if is_so)])
        yield Case(name, gif(samples, bits, palette, **options), pixels)
    samples = noise(4).astype(int)[:9, :11]
    palette = noise(8, 3).reshape(-1, 3)[:16]
    pixels = np.full((SIZE, SIZE, 3), 255.0)
    pixels[5:14, 3:14] = palette[samples]
    yield Case("gif-small-frame-transparent", gif(samples, 4, palette, key=99, at=(5, 3)), pixels)


# ------------------------------------------------------------------------------ the others


def netpbm_cases() -> Iterator[Case]:
    """Plain and raw bitmaps, graymaps and pixmaps of any largest value, with comments; gray PFM."""
    size = f"{SIZE} {SIZE}".encode()
    ink = noise(1)
    raw = b"".join(packed(row, 1) for row in ink)
    text = b"\n".join(b"".join(b"%d" % n for n in row) for row in ink.tolist())
    yield Case("pbm-raw", b"P4\n" + size + b"\n" + raw, 255 - levels(ink, 1))
    yield Case("pbm-plain", b"P1\n# comment\n" + size + b"\n" + text, 255 - levels(ink, 1))
    for most, (magic, channels) in itertools.product(
        (1, 2, 100, 254, 255, 256, 1000, 4095, 65535),
        ((b"P2", 1), (b"P5", 1), (b"P3", 3), (b"P6", 3)),
    ):
        samples = noise(16, channels) % (most + 1)
        samples.flat[0] = most
        head = magic + b"\n# comment\n" + size + b"\n%d\n" % most
        if magic in (b"P2", b"P3"):
            body = b" ".join(b"%d" % n for n in samples.ravel().tolist()) + b"\n"
        else:
            body = samples.astype(">u2" if most > 255 else "u1").tobytes()
        yield Case(f"{magic.decode()}-{most}", head + body, samples * 255.0 / most)
    for order, scale in (("<", b"-1.0"), (">", b"1.0")):
        values = _RNG.normal(size=(SIZE, SIZE)).astype(np.float32)
        data = b"Pf\n" + size + b"\n" + scale + b"\n" + values[::-1].astype(f"{order}f4").tobytes()
        yield Case(f"pfm-{'little' if order == '<' else 'big'}", data, stretched(values))


def pillow_cases() -> Iterator[Case]:
    """WebP, AVIF and JPEG 2000 by Pillow: lossy and not, with transparency and without."""
    colors, alpha = noise(8, 3).astype(np.uint8), noise(8).astype(np.uint8)
    clear = np.dstack([colors, alpha])
    white = over_white(colors.astype(float), alpha / 255)
    smooth = np.dstack([SMOOTH, RAMP])
    smooth_white = over_white(SMOOTH.astype(float), RAMP / 255)
    for name, image, pixels in (("color", colors, colors), ("alpha", clear, white)):
        one = Image.fromarray(image)
        exact = {"lossless": True, "exact": True}
        yield Case(f"webp-lossless-{name}", saved(one, "WEBP", **exact), pixels)
        frames = {"save_all": True, "append_images": [one.rotate(90)]}
        yield Case(f"webp-animated-{name}", saved(one, "WEBP", **exact, **frames), pixels)
        for suffix, options in (
            ("jp2", {}),
            ("j2k", {"no_jp2": True}),
            ("tiles", {"tile_size": (8, 8)}),
        ):
            yield Case(f"jpeg2000-{suffix}-{name}", saved(one, "JPEG2000", **options), pixels)
    for name, image, pixels in (("color", SMOOTH, SMOOTH), ("alpha", smooth, smooth_white)):
        one = Image.fromarray(image)
        yield Case(f"webp-lossy-{name}", saved(one, "WEBP", quality=100), pixels, atol=16)
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            data = saved(one, "AVIF", quality=100, subsampling=subsampling)
            yield Case(f"avif-{subsampling.replace(':', '')}-{name}", data, pixels, atol=20)
    gray = noise(8).astype(np.uint8)
    yield Case("jpeg2000-gray", saved(Image.fromarray(gray), "JPEG2000"), gray)
    deep = noise(16).astype(np.uint16)
    yield Case("jpeg2000-gray16", saved(Image.fromarray(deep), "JPEG2000"), levels(deep, 16))
    both = Image.fromarray(np.dstack([gray, alpha]), "LA")
    yield Case(
        "jpeg2000-gray-alpha", saved(both, "JPEG2000"), over_white(gray.astype(float), alpha / 255)
    )
    one = Image.fromarray(SMOOTH)
    data = saved(one, "JPEG2000", irreversible=True, quality_layers=[1])
    yield Case("jpeg2000-irreversible", data, SMOOTH, atol=3)
    yield Case("avif-gray", saved(Image.fromarray(RAMP), "AVIF", quality=100), RAMP, atol=6)


def cases() -> Iterator[Case]:
    """Yield the whole grid."""
    for some in (
        png_cases,
        bmp_cases,
        tiff_cases,
        jpeg_cases,
        gif_cases,
        netpbm_cases,
        pillow_cases,
    ):
        yield from some()
