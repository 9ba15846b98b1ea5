"""What the names of images and archives end in."""

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"}
)
"""Lower-case suffixes of the files that are taken for images; their content decides how they are
decoded."""
ARCHIVE_SUFFIXES = (*(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip"),)
"""Lower-case endings of the files that are taken for archives; what kind, their content decides."""
_USUAL_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG")  # most names end here: found in one call


def is_image_name(name: str) -> bool:
    """Tell whether a file's name ends as an image's does."""
    return name.endswith(_USUAL_SUFFIXES) or _suffix(name) in IMAGE_SUFFIXES


def is_archive_name(name: str) -> bool:
    """Tell whether a file's name ends as an archive's does."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def _suffix(name: str) -> str:
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower()
