"""Turn a matplotlib figure into an SVG element that follows the fonts and colors of its page."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHART_CSS = """\
:root {
  --chart-fg: #1f2328; --chart-grid: #c9d1d9; --chart-bg: #ffffff;
  --series-1: #0b62a4; --series-2: #ff6000; --series-3: #4d2a33; --series-4: #bf7f69;
  --series-5: #8518f2; --series-6: #802000; --series-7: #390099; --series-8: #f23df2;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --chart-fg: #e6edf3; --chart-grid: #3d444d; --chart-bg: #0d1117;
    --series-1: #6cb6ff; --series-2: #ff9326; --series-3: #ae26ff; --series-4: #d9d9d9;
    --series-5: #bf311d; --series-6: #d9af86; --series-7: #b31ba0; --series-8: #7f7f7f;
  }
}
.chart { overflow-x: auto; }
.chart > svg { display: block; width: 100%; height: auto; }
@media print { .chart > svg { min-width: 0 !important; break-inside: avoid; } }
"""
"""CSS variables of the charts, for light and dark mode; printed pages are light.

A search chose each palette, among colors with a contrast of at least 3 to the background, for the
largest distance between any two colors as seen with each kind of color blindness."""

WIDTH = 440
"""Width of most charts, in the SVG's units; a phone shows their letters, 12 high, at 10 pixels."""
_UNITS = 72
"""SVG units per matplotlib inch."""
LETTER = 12
"""Height of most letters, in the SVG's units."""

FG, GRID, BG = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0404{number:02x}" for number in range(1, 9))
"""Placeholder colors for the variables; `as_chart` rejects any other color."""
_VARIABLES = {
    FG: "var(--chart-fg)",
    GRID: "var(--chart-grid)",
    BG: "var(--chart-bg)",
    **{color: f"var(--series-{number})" for number, color in enumerate(SERIES, start=1)},
}


@dataclass(frozen=True)
class Chart:
    """A chart for a page, and its description in words."""

    svg: str
    """One `svg` element without fixed size or colors. Its ids are unique, unless two charts on
    the page have the same title and the same content."""
    title: str
    """A few words, not drawn in the chart; plain text, not escaped."""
    description: str
    """What it shows, with its key figures, and what it leaves out; plain text, not escaped."""


@contextmanager
def theme() -> Iterator[None]:
    """Draw with the placeholder colors, regardless of the user's matplotlibrc."""
    import matplotlib
    from matplotlib.rcsetup import cycler

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The page's font has letters that matplotlib's lacks.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "axes.axisbelow": True,
                "axes.edgecolor": GRID,
                "axes.labelcolor": FG,
                "axes.prop_cycle": cycler(color=SERIES),
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlecolor": FG,
                "font.size": LETTER,
                "grid.color": GRID,
                "legend.fontsize": LETTER,
                "legend.frameon": False,
                "svg.fonttype": "none",
                "svg.hashsalt": "tltools",
                "text.color": FG,
                "xtick.color": GRID,
                "xtick.labelcolor": FG,
                "ytick.color": GRID,
                "ytick.labelcolor": FG,
            }
        )
        yield


def new_figure(
    height: float, width: float = WIDTH, *, layout: Literal["constrained"] | None = "constrained"
) -> "Figure":
    """Return a figure; height and width are in the SVG's units."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _UNITS, height / _UNITS), layout=layout)


def as_chart(figure: "Figure", title: str, description: str) -> Chart:
    """Convert a figure to a chart; call it under `theme`.

    Raises:
        KeyError: If the figure has a color that is not a placeholder.
    """
    file = BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314  (matplotlib wrote it)
    title, description = _plain(title), _plain(description)
    return Chart(_themed(root, title, description), title, description)


def _themed(root: ElementTree.Element, title: str, description: str) -> str:
    """Return matplotlib's SVG as an element for a page."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        # In HTML the parser knows the namespaces.
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if name.startswith("{")]:
            element.set(name.rpartition("}")[2], element.attrib.pop(name))
        if "style" in element.attrib:
            element.set("style", _restyled(element.attrib["style"]))
    body = ElementTree.tostring(root, encoding="unicode")
    digest = hashlib.sha256(f"{title}\0{description}\0{body}".encode()).hexdigest()
    key = f"chart-{digest[:10]}"
    _rename_ids(root, key)
    for name, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(name, id=f"{key}-{name}")
        element.text = text
        root.insert(0, element)
    width = float(root.attrib["viewBox"].split()[2])
    shrinks_to = f"min-width: {width:.0f}px; " if width > WIDTH else ""
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labeledby": f"{key}-title {key}-desc",
        "style": f"{shrinks_to}max-width: {1.25 * width:.0f}px; stroke-linejoin: round",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _restyled(style: str) -> str:
    """Replace a style's colors by variables, and drop its font, which the page sets."""
    style = re.sub(r"#[0-9a-f]{6}", lambda match: _VARIABLES[match[0]], style)
    parts = []
    for part in style.split("; "):
        name, _, value = part.partition(": ")
        if name == "font":  # all in one, as matplotlib 3.9 writes it
            weight = re.match(r"(?:\w+ )*?(bold|[1-9]00)\b", value)
            parts += [f"font-weight: {weight[1]}"] if weight else []
            parts += [f"font-size: {size}" for size in re.findall(r"[\d.]+px", value)[:1]]
        elif name != "font-family":
            parts.append(part)
    return "; ".join(parts)


def _rename_ids(root: ElementTree.Element, key: str) -> None:
    """Drop the ids that nothing refers to, and prefix the others with a key."""
    pattern = re.compile(r"#([\w-]+)")
    used: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("href", "clip-path") or "url(" in value:
                used.update(pattern.findall(value))
                element.set(name, pattern.sub(rf"#{key}-\1", value))
    for element in root.iter():
        if (name := element.attrib.pop("id", "")) in used:
            element.set("id", f"{key}-{name}")


def _plain(text: str) -> str:
    """Replace invisible characters; XML does not allow control characters."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
