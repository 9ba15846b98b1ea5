"""Leave out the parts of a damaged image file that its pixels do not need.

Readers refuse files whose metadata (Exif, color profiles, XMP, text) is damaged, although every
pixel is there. This is tried only after a reader has refused a file.
"""

import struct
import zlib
from collections.abc import Iterator

import simplejpeg

from tltools.data.image_formats import JPEG, START_OF_SCAN, jpeg_segments

_PNG = b"\x89PNG\r\n\x1a\n"
_END = b"\xff\xd9"
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_ADOBE, _COMMENT = 0xEE, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_WEBP_METADATA = frozenset((b"ICCP", b"EXIF", b"XMP "))
_WEBP_FLAGS = 0x20 | 0x08 | 0x04  # the bits of VP8X that announce them


def repaired(data: bytes) -> Iterator[bytes]:
    """Yield files with the same pixels as a file that could not be read; none if nothing is known.

    Args:
        data: The bytes of a file. Only a JPEG that lacks nothing but its end marker, and metadata,
            are repaired: of an image whose pixels are damaged or missing, nothing is yielded that
            its reader would accept.
    """
    if data.startswith(JPEG):
        whole = data
        if not data.endswith(_END) and _has_all_pixels(data + _END):
            whole = data + _END
            yield whole
        yield _jpeg_without_metadata(whole)
    elif data.startswith(_PNG):
        yield _png_without_metadata(data)
    elif data[8:12] == b"WEBP":
        yield _webp_without_metadata(data)


# ------------------------------------------------------------------------------------ JPEG


def _has_all_pixels(data: bytes) -> bool:
    """Return whether a JPEG has all its scans, and each of them in full."""
    if not _has_all_scans(data):
        return False
    try:
        colors = simplejpeg.decode_jpeg_header(data)[2]
        space = "CMYK" if colors in ("CMYK", "YCCK") else "RGB"
        # Strict, unlike Pillow: it fails at a scan that ends early. Done at the smallest scale.
        simplejpeg.decode_jpeg(data, space, min_height=1, min_width=1)
    except (ValueError, MemoryError):
        return False
    return True


def _has_all_scans(data: bytes) -> bool:
    """Return whether the scans of a JPEG give every coefficient of each component in full."""
    missing: dict[int, set[int]] = {}
    for marker, start, end in jpeg_segments(data):
        content = data[start + 4 : end]
        if marker in _FRAMES:
            missing = {content[6 + 3 * n]: set(range(64)) for n in range((len(content) - 6) // 3)}
        elif marker == START_OF_SCAN and len(content) >= 4:
            first, last, precision = content[-3:]
            if precision & 15 == 0:
                for component in content[1:-3:2]:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def _jpeg_without_metadata(data: bytes) -> bytes:
    parts = [data[:2]]
    kept = 2
    for marker, start, end in jpeg_segments(data):
        if marker == START_OF_SCAN:
            break
        if (marker in _APPLICATION and marker != _ADOBE) or marker == _COMMENT:
            parts.append(data[kept:start])
            kept = end
    return b"".join((*parts, data[kept:]))


# ---------------------------------------------------------------------------- PNG and WebP


def _png_without_metadata(data: bytes) -> bytes:
    """Keep the chunks that the pixels need, and an intact orientation; the others may be corrupt.

    Transparency is needed: if it is corrupt, the image is refused.
    """
    parts = [_PNG]
    position = len(_PNG)
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + size
        is_critical = not kind[0] & 0x20
        if is_critical or kind == b"tRNS" or (kind == b"eXIf" and _is_intact(data[position:end])):
            parts.append(data[position:end])
        position = end
    return b"".join(parts)


def _is_intact(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _webp_without_metadata(data: bytes) -> bytes:
    parts: list[bytes] = []
    position = 12
    while position + 8 <= len(data):
        kind = data[position : position + 4]
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        end = position + 8 + size
        chunk = data[position:end]
        if kind == b"VP8X" and len(chunk) > 8:
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_FLAGS]) + chunk[9:]
        if kind not in _WEBP_METADATA:
            parts.append(chunk + b"\0" * (size & 1 if end <= len(data) else 0))
        position = end + (size & 1)
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body
