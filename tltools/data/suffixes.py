"""The suffixes of images and archives."""

import re

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib"}
    | {".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs"}
    | {".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf", ".heic", ".heif", ".hif", ".jxl", ".dng"}
)
"""Lowercase suffixes of files that are treated as images; their content decides how they are
decoded."""
ARCHIVE_SUFFIXES = (*(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip"),)
"""Lowercase suffixes of files that are treated as archives; their content decides the format."""
TABLE_SUFFIXES = frozenset(
    {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xlsx", ".xls", ".ods", ".parquet", ".xml"}
    | {".yaml", ".yml"}
)
"""Lowercase suffixes of files that hold a table or a document, and never an image."""
_SAVED_FROM_A_PAGE = re.compile(r"(\.[a-z]+)[_:](large|medium|small|thumb|orig)")
_USUAL_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG")  # most names end here: found in one call


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image suffix."""
    if name.endswith(_USUAL_SUFFIXES):
        return True
    suffix = suffix_of(name)
    if suffix in IMAGE_SUFFIXES:
        return True
    saved = _SAVED_FROM_A_PAGE.fullmatch(suffix)  # photo.jpg_large, for instance
    return saved is not None and saved[1] in IMAGE_SUFFIXES


def is_archive_name(name: str) -> bool:
    """Return whether a file name has an archive suffix."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def suffix_of(name: str) -> str:
    """Return the suffix of a name or path in lowercase, with its dot; empty if there is none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return dot + suffix.lower() if stem else ""
