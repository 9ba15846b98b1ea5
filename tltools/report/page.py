"""Render the page: one file that contains its images and fetches nothing."""

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from tltools import __version__
from tltools.atomic import write_text
from tltools.card import Preprocessing, Resize
from tltools.console import printable
from tltools.data.images import load_image
from tltools.errors import DataError
from tltools.parallel import num_cores, ordered_map
from tltools.plots import short_name
from tltools.progress import SILENT, Progress
from tltools.report.blocks import Section, Tile
from tltools.report.charts import CHART_CSS
from tltools.wording import SPLIT_NAMES, counted, in_percent

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MAX_FILE_NAME = 28
"""Longest name of a file below its image, in columns."""
TITLE = "tltools report"
SIDE = 224
"""Height and width of an image in pixels: the size that models see."""
QUALITY = 75
"""WebP quality; a photograph takes about 8 kB."""


class Thumbnail(NamedTuple):
    """An image on the page, or the reason why it is missing."""

    uri: str
    problem: str


_UNKNOWN = Thumbnail("", "not found")


def write_page(
    path: Path, sections: Sequence[Section], *, title: str = TITLE, progress: Progress = SILENT
) -> int:
    """Write a report as one HTML file, completely or not at all, and replace an earlier one.

    Args:
        path: HTML file to write.
        sections: Sections in order.
        title: Title of the page.
        progress: Advances with each image, and is told how many cannot be found.

    Returns:
        The file's size in bytes.

    Raises:
        TltoolsError: If the file cannot be written.
    """
    tiles = [tile for section in sections for tile in section.tiles()]
    if num_lost := sum(tile.path is None for tile in tiles):
        progress.warn(
            f"{num_lost:,} of the page's {counted(len(tiles), 'image')} cannot be found; tltools "
            "report --images FOLDER shows them, where FOLDER is the one that they are in, or were "
            "sorted into"
        )
    html = render(sections, title=title, thumbnails=make_thumbnails(tiles, progress=progress))
    write_text(path, html)
    return path.stat().st_size


def make_thumbnails(
    tiles: Sequence[Tile], *, progress: Progress = SILENT
) -> dict[tuple[Path, Resize], Thumbnail]:
    """Decode and shrink each image once; return the thumbnails by path and resize rule."""
    wanted: dict[tuple[Path, Resize], None] = {
        (one.path, one.resize): None for one in tiles if one.path is not None
    }
    if not wanted:
        return {}
    workers = num_cores()
    with progress.bar("Making thumbnails", len(wanted)) as bar:
        made: dict[tuple[Path, Resize], Thumbnail] = {}
        results = ordered_map(_thumbnail, wanted, workers=workers, ahead=8 * workers)
        for key, result in zip(wanted, results, strict=True):
            made[key] = result
            bar.advance()
    return made


def _thumbnail(wanted: tuple[Path, Resize]) -> Thumbnail:
    path, resize = wanted
    try:
        pixels = load_image(path, Preprocessing(size=SIDE, resize=resize))
    except DataError as error:
        return Thumbnail("", str(error))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY)
    return Thumbnail(f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", "")


def render(
    sections: Sequence[Section],
    *,
    title: str,
    thumbnails: Mapping[tuple[Path, Resize], Thumbnail],
) -> str:
    """Return a report as HTML.

    All text is escaped, and the page's security policy allows only its own script and no requests.

    Args:
        sections: Sections in order.
        title: Title of the page.
        thumbnails: Thumbnails by path and resize rule; the page names images that have none.
    """
    from markupsafe import Markup

    environment = _environment()
    loader = environment.loader
    assert loader is not None
    style, _, _ = loader.get_source(environment, "report.css")
    script, _, _ = loader.get_source(environment, "report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    def image(tile: Tile) -> Thumbnail:
        if tile.path is None:
            return _UNKNOWN
        return thumbnails.get((tile.path, tile.resize), _UNKNOWN)

    return environment.get_template("page.html").render(
        title=title,
        sections=sections,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        # The package makes these itself, charts included; everything else is escaped.
        style=Markup(CHART_CSS + style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_digest=digest,
        svg=Markup,
        image=image,
        percent=in_percent,
        with_options=_with_options,
        split_names=SPLIT_NAMES,
        file_name=_file_name,
    )


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("tltools.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _file_name(name: str) -> str:
    """Return the last part of a path, shortened in its middle to two lines below an image."""
    return short_name(name.replace("\\", "/").rsplit("/", 1)[-1] or name, MAX_FILE_NAME)


def _with_options(text: str) -> "Markup":
    """Return text whose options, such as `--threshold`, are not broken at their dashes."""
    from markupsafe import Markup, escape

    parts = re.split(r"(?<!\S)(--[\w-]*\w)", printable(text))
    marked = (
        Markup('<span class="option">{}</span>').format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )
    return Markup("").join(marked)


def _plain(value: object) -> object:
    """Show invisible and direction-changing characters in text; leave markup unchanged."""
    return printable(value) if type(value) is str else value
