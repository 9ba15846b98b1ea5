"""Build reports: one HTML page with the results of runs, evaluations, jobs, benches and exports.

`sources` finds the results. `models`, `jobs` and `benches` describe them as sections of `blocks`,
with `charts` drawn as SVG. `page` renders the sections with the files in `templates/`.
"""

from pathlib import Path

from tltools.atomic import refuse_foreign
from tltools.errors import ConfigError

SUFFIXES = (".html", ".htm")
MARK = '<meta name="generator" content="tltools">'
"""In the head of every report, to tell it from other pages."""


def check_place(path: Path, option: str = "`report=`") -> None:
    """Check the path of a report before any work is done.

    A report replaces an earlier one, and nothing else.

    Args:
        path: HTML file to write.
        option: Name of the option, for the message.

    Raises:
        ConfigError: If the path is a folder, does not end in .html, or is another page.
        TltoolsError: If its folder is a link to nowhere.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{option} {path} is not an HTML page; choose a name that ends in .html")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; choose a file in it")
    refuse_foreign(path, MARK.encode(), "a report", parameter=option)
