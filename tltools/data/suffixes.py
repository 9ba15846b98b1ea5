"""The suffixes of images and archives."""

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"}
)
"""Lowercase suffixes of files that are treated as images; their content decides how they are
decoded."""
ARCHIVE_SUFFIXES = (*(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip"),)
"""Lowercase suffixes of files that are treated as archives; their content decides the format."""
_USUAL_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG")  # most names end here: found in one call


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image suffix."""
    return name.endswith(_USUAL_SUFFIXES) or _suffix(name) in IMAGE_SUFFIXES


def is_archive_name(name: str) -> bool:
    """Return whether a file name has an archive suffix."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def _suffix(name: str) -> str:
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower()
