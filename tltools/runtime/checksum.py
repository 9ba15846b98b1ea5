"""Tell whether an ONNX export is as it was written, byte for byte.

Its checksum is the last entry of the file's metadata, which a file can be given after it was
written, since a protobuf message may be continued at its end. The self-test would find most wrong
weights, but not those that its images do not use.
"""

import zlib
from pathlib import Path

KEY = "tltools_crc32"
"""Key of the entry; its value is the CRC-32 of all bytes before the entry, in hexadecimal."""
_DIGITS = 8
# StringStringEntryProto: key = 1, value = 2; ModelProto: metadata_props = 14. All lengths are below
# 128, so that each takes one byte.
_FIELDS = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12" + bytes([_DIGITS])
_HEAD = b"\x72" + bytes([len(_FIELDS) + _DIGITS]) + _FIELDS
_CHUNK = 2**20


def add_checksum(path: Path) -> None:
    """Append the checksum to an ONNX file that has none.

    Raises:
        OSError: If the file cannot be read or written.
    """
    crc32 = _crc32(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(_HEAD + crc32.encode())


def is_as_written(path: Path) -> bool:
    """Return whether an ONNX file has the bytes that its checksum is of, or has no checksum.

    Raises:
        OSError: If the file cannot be read.
    """
    num_bytes = path.stat().st_size - len(_HEAD) - _DIGITS
    if num_bytes < 0:
        return True
    with path.open("rb") as file:
        file.seek(num_bytes)
        end = file.read()
    if not end.startswith(_HEAD):
        return True
    return _crc32(path, num_bytes).encode() == end.removeprefix(_HEAD)


def _crc32(path: Path, num_bytes: int) -> str:
    """Return the CRC-32 of the first bytes of a file, in hexadecimal."""
    checksum = 0  # against accidents; hashlib would load OpenSSL, 3.5 MB
    chunk = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while num_bytes > 0:
            found = file.readinto(chunk[: min(num_bytes, _CHUNK)])
            if not found:  # it has become shorter
                break
            checksum = zlib.crc32(chunk[:found], checksum)
            num_bytes -= found
    return f"{checksum:0{_DIGITS}x}"
