"""Reports: one HTML page that shows what runs, evaluations, exports and benches came to."""

from pathlib import Path

from tltools.errors import ConfigError

SUFFIXES = (".html", ".htm")


def check_place(path: Path, option: str = "`report=`") -> None:
    """Refuse a place for a report before any work is done.

    A report replaces an earlier one, so that the suffix guards everything else.

    Args:
        path: Where the report is to be written.
        option: What the user calls it.

    Raises:
        ConfigError: If it is a folder, or its suffix is not that of a page.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{option} {path} is no name of a page; end it in .html")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; name a file in it")
