"""Draw how far images are from the training images, beside the training images' own distances."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tltools.card import Distances
from tltools.report.svg import BG, FG, LETTER, SERIES, WIDTH, Chart, as_chart, new_figure, theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS_PER_OCTAVE = 16
"""Bins between a distance and twice that distance."""
_LOWEST, _HIGHEST = -10, 12
"""Exponents of 2 of the smallest and the largest edge: distances are about 1."""
EDGES: NDArray[np.float64] = 2.0 ** (
    np.arange(_LOWEST * BINS_PER_OCTAVE, _HIGHEST * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE
)
"""Edges of the B bins of distances, (B + 1,)."""
MAX_BARS = 32
"""Maximum bars of a chart."""


def bin_of(distance: float) -> int:
    """Return the index of a distance's bin; what is smaller or larger counts in the last ones."""
    place = int(np.searchsorted(EDGES, distance, side="right")) - 1
    return min(max(place, 0), len(EDGES) - 2)


def distance_histogram(
    counts: NDArray[np.int64],
    *,
    training: Distances | None,
    limit: float | None,
    limit_name: str = "limit",
    title: str,
    description: str,
) -> Chart:
    """Draw the distribution of images' distances on a logarithmic axis.

    Args:
        counts: Images by bin of `EDGES`, (B,), at least one.
        training: Distances of the training images, drawn as if they were as many; None for none.
        limit: The distance beyond which images are unknown; None for none.
        limit_name: What the legend calls it.
        title: Title of the chart.
        description: What it shows, in words.
    """
    first, last = (int(place) for place in np.flatnonzero(counts)[[0, -1]])
    if training is not None:
        first = min(first, max(bin_of(training.at(0)), bin_of(training.at(50) / 8)))
        last = max(last, bin_of(training.at(100)))
    if limit is not None:
        first, last = min(first, bin_of(limit)), max(last, bin_of(limit))
    step = -(-(last - first + 1) // MAX_BARS)
    places = np.arange(first, last + step + 1, step).clip(max=len(counts))
    places = np.unique(places)
    edges, bars = EDGES[places], np.add.reduceat(np.append(counts, 0), places)[:-1]
    with theme():
        figure = new_figure(300)
        axes = figure.subplots()
        handles: list[Any] = []
        look: dict[str, Any] = {"align": "edge", "color": SERIES[0], "edgecolor": BG}
        handles.append(axes.bar(edges[:-1], bars, np.diff(edges), **look))
        names = ["images"]
        if training is not None:
            shares = np.diff([training.percentile_of(edge) for edge in edges]) / 100
            handles.append(axes.stairs(shares * bars.sum(), edges, color=SERIES[1], lw=1.8))
            names.append("training images, scaled to as many")
        if limit is not None:
            handles.append(axes.axvline(limit, color=FG, linestyle="--", linewidth=1.4))
            names.append(limit_name)
        _label(axes, edges)
        figure.legend(handles, names, loc="outside lower center", ncols=1)
        return as_chart(figure, title, description)


def _label(axes: "Axes", edges: NDArray[np.float64]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axes.set(xscale="log", xlabel="distance", ylabel="images", xlim=(edges[0], edges[-1]))
    axes.xaxis.set_major_locator(FixedLocator(ticks_between(float(edges[0]), float(edges[-1]))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=True, axis="y")


_DIGIT = 0.62 * LETTER
"""Width of a digit of a tick's label, in the SVG's units."""
_AXIS = WIDTH - 60
"""Approximate width of the axis, in the SVG's units."""


def tick_text(value: float) -> str:
    """Return the label of a tick."""
    return f"{value:.10g}"


def ticks_between(low: float, high: float) -> Sequence[float]:
    """Return round numbers between two distances whose labels do not touch each other.

    Of the choices that fit, the one with the most ticks; `low` alone if no round number is between
    them. Far apart, ticks are equally far apart on the logarithmic axis, else in their values.
    """
    fitting = [
        ticks
        for ticks in (_decades(low, high) if high > _LINEAR_TO * low else _steps(low, high))
        if len(ticks) <= _MAX_TICKS
        and all(_are_apart(*pair, low, high) for pair in pairwise(ticks))
    ]
    return max(fitting, key=len, default=[]) or [low]


_MAX_TICKS = 8
_LINEAR_TO = 4
"""Up to this ratio of the largest to the smallest distance, ticks are multiples of a number."""


def _decades(low: float, high: float) -> Iterator[list[float]]:
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = (round(digit * 10.0**power, 9) for power in range(-4, 5) for digit in digits)
        yield [tick for tick in ticks if low <= tick <= high]


def _steps(low: float, high: float) -> Iterator[list[float]]:
    exponent = math.floor(math.log10(high - low))
    for step in (digit * 10.0**power for power in (exponent, exponent - 1) for digit in (5, 2, 1)):
        numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        yield [round(number * step, 9) for number in numbers]


def _are_apart(first: float, second: float, low: float, high: float) -> bool:
    """Return whether the labels of two ticks have room between them on a logarithmic axis."""
    away = math.log(second / first) / math.log(high / low) * _AXIS
    return away >= _DIGIT * ((len(tick_text(first)) + len(tick_text(second))) / 2 + 1.5)
