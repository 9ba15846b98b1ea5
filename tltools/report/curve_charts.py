"""Draw precision against recall, or accuracy against coverage, with the threshold in use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tltools.curves import Curve
from tltools.plots import literal, percent_axis, short_name
from tltools.report.svg import BG, FG, LETTER, SERIES, Chart, as_chart, new_figure, theme
from tltools.wording import in_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 6
"""Maximum curves in a chart."""
_MAX_POINTS = 400
"""Maximum points of a curve, which is drawn 400 units wide at most."""
_SHARE = "share of images in the class"
_ROW = 205
"""Height of a row of small curves, in the SVG's units."""


@dataclass(frozen=True)
class Panel:
    """The curve of one class, or of all classes' confidence, with some image that counts."""

    curve: Curve
    class_name: str | None
    """None: accuracy against the coverage of a minimum confidence."""
    threshold: float | None = None
    """The threshold to mark; None for none."""

    @property
    def name(self) -> str:
        """Its title."""
        return "all classes" if self.class_name is None else short_name(self.class_name)

    def describe(self) -> str:
        """Return its key figures in words."""
        found = self.curve
        if self.class_name is None:
            right = found.num_hits / found.num_images
            text = f"All classes: accuracy {in_percent(right)} if every image keeps its label."
        else:
            text = (
                f"{self.name}: average precision {found.average_precision:.3f}; "
                f"{found.num_hits:,} of {found.num_images:,} images."
            )
        if self.threshold is None:
            return text
        place = found.at(self.threshold)
        if place is None:
            return f"{text} No image reaches the threshold {self.threshold!r}."
        first = in_percent(found.precision[place])
        if self.class_name is None:
            rest = f"accuracy {first}, images kept {in_percent(found.coverage[place])}"
        else:
            rest = f"precision {first}, recall {in_percent(found.recall[place])}"
        return f"{text} At the threshold {self.threshold!r}: {rest}."


def precision_recall_chart(
    panels: Sequence[Panel], *, title: str = "Precision and recall", note: str = ""
) -> Chart:
    """Draw up to `MAX_PANELS` curves, each with its threshold marked.

    Args:
        panels: The curves; one is drawn large, several in two columns.
        title: Title of the chart.
        note: Which classes the panels leave out.

    Raises:
        ValueError: If there is no panel, or there are more than `MAX_PANELS`.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not 1 <= len(panels) <= MAX_PANELS:
        raise ValueError(f"{len(panels)} panels are not between 1 and {MAX_PANELS}")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with theme():
        figure = new_figure(300 if len(panels) == 1 else _ROW * rows)
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            _draw(axes, panels[place], ticks=0.25 if len(panels) == 1 else 0.5)
            if place % columns:
                axes.set_ylabel("")
        engine = figure.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        # So that 100% and the next plot's 0% are apart, and a name below a plot and the next title.
        engine.set(wspace=0.1, hspace=0.12)
        shares = [
            line for axes in grid.flat for line in axes.get_lines() if line.get_label() == _SHARE
        ]
        if shares:
            figure.legend(shares[:1], [_SHARE], loc="outside lower center")
        description = " ".join((*(panel.describe() for panel in panels), note)).strip()
        return as_chart(figure, title, description)


def _draw(axes: "Axes", panel: Panel, *, ticks: float) -> None:
    """Draw a curve, with a tick at each multiple of `ticks` across."""
    from matplotlib.ticker import MultipleLocator

    found = panel.curve
    across = found.coverage if panel.class_name is None else found.recall
    shown = np.unique(np.linspace(0, len(across) - 1, _MAX_POINTS).round().astype(int))
    # Between two thresholds, precision is that of the lower one.
    axes.plot(
        np.append(0.0, across[shown]),
        np.append(found.precision[0], found.precision[shown]),
        drawstyle="steps-pre",
        color=SERIES[0],
    )
    share = found.num_hits / found.num_images
    if panel.class_name is not None:  # if every image got the class
        axes.axhline(share, linestyle=":", color=FG, linewidth=1.2, label=_SHARE)
    if panel.threshold is not None and (place := found.at(panel.threshold)) is not None:
        _mark(axes, float(across[place]), float(found.precision[place]), panel.threshold)
    for axis, step in ((axes.xaxis, ticks), (axes.yaxis, 0.25)):
        axis.set_major_locator(MultipleLocator(step))
        percent_axis(axis)
    across_name, up_name = (
        ("images that keep a label", "accuracy") if panel.class_name is None
        else ("recall", "precision")
    )  # fmt: skip
    axes.set(xlabel=across_name, ylabel=up_name, xlim=(0, 1.03), ylim=(0, 1.05))
    axes.tick_params(labelbottom=True)
    literal(axes.set_title(panel.name, loc="left", fontsize=LETTER))
    axes.grid(visible=True)


def _mark(axes: "Axes", across: float, up: float, threshold: float) -> None:
    """Mark a point, with its threshold below it, which hides what is behind it."""
    axes.plot([across], [up], "o", color=SERIES[1], markersize=8, markeredgecolor=BG, clip_on=False)
    axes.annotate(
        f"threshold {threshold!r}",
        (across, up),
        xytext=(-8 if across > 0.3 else 8, -8 if up > 0.3 else 8),
        textcoords="offset points",
        ha="right" if across > 0.3 else "left",
        va="top" if up > 0.3 else "bottom",
        bbox={"facecolor": BG, "edgecolor": "none", "pad": 1},
    )
