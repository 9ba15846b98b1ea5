"""Charts of the HTML reports: inline SVG that follows the page's fonts and colours.

matplotlib draws with stand-in colours, each of which becomes a CSS variable of `CHART_CSS`. A page
needs that style sheet once, and each chart in an element of the class `chart`, which scrolls
where a large matrix is wider than the window.
"""

import hashlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from statistics import median
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tltools.bench import BenchReport, BenchRow
from tltools.bench.text import digits, milliseconds
from tltools.bench.verdict import in_order
from tltools.metrics import Reliability
from tltools.plots import draw_confusion, draw_history, literal, short_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHART_CSS = """\
:root {
  --chart-fg: #1f2328; --chart-grid: #c9d1d9; --chart-bg: #ffffff;
  --series-1: #0b62a4; --series-2: #c2410c; --series-3: #00806a; --series-4: #a3247f;
  --series-5: #8a6d00; --series-6: #5b45b0; --series-7: #4d5761; --series-8: #1590c2;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --chart-fg: #e6edf3; --chart-grid: #3d444d; --chart-bg: #0d1117;
    --series-1: #6cb6ff; --series-2: #ff9466; --series-3: #3ccfb0; --series-4: #f08bd0;
    --series-5: #e3c341; --series-6: #b39dff; --series-7: #b1bac4; --series-8: #2f9ed6;
  }
}
.chart { overflow-x: auto; }
.chart > svg { display: block; width: 100%; height: auto; }
"""
"""The variables that the charts use, for light and dark. Paper is light."""

MAX_MATRIX = 50
"""Classes in a confusion matrix; of more, those with the most mistakes are shown."""
MAX_ROWS = 30
"""Classes in a chart of counts."""
MAX_HISTOGRAMS = 12
"""Classes in a chart of confidences."""
_NUM_BINS = 20
"""Of confidences."""
_NUMBERS = 30
"""Classes of a matrix up to which its cells show their counts."""
_LOG_FROM = 8
"""The largest of some values by the smallest from which on their axis is logarithmic."""

_WIDTH = 440
"""Of most charts, in the SVG's units; letters are 11 high, so that a phone shows them with 9."""
_UNITS = 72
"""Of the SVG in matplotlib's inch."""
_ROW = 32
"""Height of a row that has its name above its bar, in the SVG's units."""
_LETTER = 11

# No other colour is like these, and `_themed` refuses any other.
_FG, _GRID, _BG = "#010101", "#020202", "#030303"
_SERIES = tuple(f"#0404{number:02x}" for number in range(1, 9))
_VARIABLES = {
    _FG: "var(--chart-fg)",
    _GRID: "var(--chart-grid)",
    _BG: "var(--chart-bg)",
    **{color: f"var(--series-{number})" for number, color in enumerate(_SERIES, start=1)},
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Chart:
    """A picture for a page, and the same in words."""

    svg: str
    """One `svg` element without fixed size or colours. Its ids are its own, unless two charts of
    the page have the same title and the same content."""
    title: str
    """A few words, not drawn in the picture; plain text, not escaped."""
    description: str
    """What it shows, with its key figures, and what it leaves out; plain text, not escaped."""


# --------------------------------------------------------------------------------------- models


def history_chart(history: "pd.DataFrame", *, title: str = "Loss and accuracy by epoch") -> Chart:
    """Draw the course of a training.

    Args:
        history: Columns as in `tltools.plots.plot_history`, one row per epoch.
        title: Of the chart.
    """
    if history.empty:
        return _nothing(title, "The training has no epoch yet.")
    with _theme():
        figure = _figure(400)
        loss, accuracy = figure.subplots(2, 1, sharex=True)
        draw_history(loss, accuracy, history)
        loss.set_xlabel("")
        return _chart(figure, title, _describe_history(history))


def confusion_chart(
    matrix: NDArray[np.int64], classes: Sequence[str], *, title: str = "Confusion matrix"
) -> Chart:
    """Draw a confusion matrix.

    Args:
        matrix: Counts, (C, C); row is the true class, column the predicted class.
        classes: Names of the C classes.
        title: Of the chart.

    Raises:
        ValueError: If the shape does not fit the classes.
    """
    if matrix.shape != (len(classes), len(classes)):
        raise ValueError(f"matrix {matrix.shape} does not fit {len(classes)} classes")
    description = _describe_confusion(matrix, classes)
    if len(classes) > MAX_MATRIX:
        mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
        worst = np.sort(np.argsort(-mistakes, kind="stable")[:MAX_MATRIX])
        description += (
            f" Shown are the {MAX_MATRIX} of {len(classes):,} classes with the most mistakes."
        )
        # Shares are of all pictures of a class, not of those in the part that is shown.
        support = matrix.sum(axis=1)[worst]
        matrix, classes = matrix[np.ix_(worst, worst)], [classes[index] for index in worst]
    else:
        support = matrix.sum(axis=1)
    num_classes = len(classes)
    numbers = num_classes <= _NUMBERS
    names = [short_name(name) for name in classes]
    cell = 90 if num_classes == 2 else max(24 if numbers else 13, 66 - 5 * num_classes)
    letter = _LETTER if num_classes <= 10 else 8
    room = letter * max(map(_letters, names)) + 12
    flat = letter * max(map(_letters, names)) < cell
    side = cell * num_classes
    left, bottom = room + 20, (20 if flat else room) + 24
    width, height = left + side + 8, bottom + side + 8
    with _theme():
        figure = _figure(height, width, layout="none")
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        draw_confusion(
            axes,
            matrix,
            names,
            support=support,
            font=letter,
            flat=flat,
            on_strong=_BG,
            shares=num_classes <= 6,
            numbers=numbers,
        )
        axes.xaxis.set_label_coords(0.5, (8 - bottom) / side)
        axes.yaxis.set_label_coords((16 - left) / side, 0.5)
        return _chart(figure, title, description)


def reliability_chart(
    calibrated: Reliability,
    uncalibrated: Reliability | None,
    *,
    title: str = "Accuracy by confidence",
) -> Chart:
    """Draw how often a model is right at each confidence, and how many pictures there are.

    Args:
        calibrated: Of the model as it is.
        uncalibrated: Of the same model with a temperature of 1; None where that is the same.
        title: Of the chart.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with _theme():
        figure = _figure(430)
        accuracy, counts = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
        widths = np.diff(calibrated.edges)
        known = calibrated.counts > 0
        (diagonal,) = accuracy.plot((0, 1), (0, 1), ":", color=_FG, linewidth=1)
        bars = accuracy.bar(
            calibrated.edges[:-1][known],
            calibrated.accuracy[known],
            widths[known],
            align="edge",
            color=_SERIES[0],
            edgecolor=_BG,
        )
        after = "" if uncalibrated is None else "calibrated: "
        handles, names = [bars, diagonal], [f"{after}ECE {calibrated.ece:.1%}", "ideal"]
        counts.bar(
            calibrated.edges[:-1],
            calibrated.counts,
            widths,
            align="edge",
            color=_SERIES[0],
            edgecolor=_BG,
        )
        if uncalibrated is not None:
            some = uncalibrated.counts > 0
            (line,) = accuracy.plot(
                uncalibrated.confidence[some],
                uncalibrated.accuracy[some],
                "--s",
                color=_SERIES[1],
                markerfacecolor=_BG,
            )
            counts.stairs(uncalibrated.counts, uncalibrated.edges, color=_SERIES[1], ls="--")
            handles.insert(1, line)
            names.insert(1, f"uncalibrated: ECE {uncalibrated.ece:.1%}")
        for axis in (accuracy.yaxis, counts.xaxis):
            axis.set_major_formatter(PercentFormatter(xmax=1))
        accuracy.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        counts.set(xlabel="confidence", ylabel="pictures")
        counts.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in (accuracy, counts):
            axes.grid(visible=True)
        _legend(figure, handles, names)
        return _chart(figure, title, _describe_reliability(calibrated, uncalibrated))


# ------------------------------------------------------------------------------------- pictures


def class_counts_chart(counts: Mapping[str, int], *, title: str = "Pictures by class") -> Chart:
    """Draw the number of pictures of each class, in the order given."""
    total = sum(counts.values())
    if not total:
        return _nothing(title, "There is no picture.")
    shown = dict(sorted(counts.items(), key=lambda item: -item[1])[:MAX_ROWS])
    shown = {name: count for name, count in counts.items() if name in shown}
    most = max(counts, key=counts.__getitem__)
    least = min(counts, key=counts.__getitem__)
    description = (
        f"{_pictures(total)} in {_number(len(counts), 'class', 'classes')}: most in {_plain(most)} "
        f"({counts[most]:,}), fewest in {_plain(least)} ({counts[least]:,})."
    )
    if len(shown) < len(counts):
        description += f" Shown are the {len(shown)} largest classes."
    with _theme():
        lines = [
            _Line(short_name(name), f"{count:,} ({count / total:.1%})")
            for name, count in shown.items()
        ]
        figure, axes = _rows(lines)
        _bars(axes, list(enumerate(shown.values())))
        return _chart(figure, title, description)


def confidence_histogram(
    confidences: NDArray[np.floating],
    *,
    by_class: Mapping[str, NDArray[np.floating]] | None = None,
    title: str = "Confidence",
) -> Chart:
    """Draw how many predictions have which confidence, over all and by predicted class.

    Args:
        confidences: In [0, 1], (N,). Those that are not finite are left out.
        by_class: The same by class, each (N_c,).
        title: Of the chart.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    values = np.asarray(confidences, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return _nothing(title, "There is no prediction.")
    parts = {name: np.asarray(part, np.float64) for name, part in (by_class or {}).items()}
    largest = sorted(parts, key=lambda name: -len(parts[name]))[:MAX_HISTOGRAMS]
    named = [(name, parts[name]) for name in parts if name in set(largest)]
    panels = [("all", finite), *(named if len(parts) > 1 else [])]
    edges = np.linspace(0, 1, _NUM_BINS + 1)
    with _theme():
        figure = _figure(40 + 130 + 62 * (len(panels) - 1))
        grid = {"height_ratios": [2.2, *[1] * (len(panels) - 1)]}
        subplots = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw=grid)
        for axes, (name, part), color in zip(
            subplots[:, 0], panels, [_SERIES[0], *[_SERIES[2]] * len(panels)], strict=False
        ):
            part = part[np.isfinite(part)]
            axes.hist(part, edges, color=color, edgecolor=_BG)
            axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
            axes.grid(visible=True, axis="y")
            if len(panels) > 1:
                label = f"{short_name(name)}: {_pictures(len(part))}"
                literal(axes.set_title(label, loc="left", fontsize=_LETTER))
        subplots[-1, 0].set(xlabel="confidence", xlim=(0, 1))
        subplots[-1, 0].xaxis.set_major_formatter(PercentFormatter(xmax=1))
        subplots[0, 0].set_ylabel("pictures")
        return _chart(figure, title, _describe_confidences(values, finite, parts, len(panels) - 1))


# ---------------------------------------------------------------------------------------- bench


def latency_chart(report: BenchReport, *, title: str = "Latency of one picture") -> Chart:
    """Draw the distribution of each candidate's latency over the samples of all rounds."""
    samples = {
        row.name: 1000 * np.concatenate([np.asarray(one) for one in timing.rounds_s])
        for row in report.rows
        for timing in row.batches
        if timing.batch_size == 1 and any(timing.rounds_s) and row.latency is not None
    }
    timed = [row for row in in_order(report.rows) if row.name in samples]
    if not timed:
        return _nothing(title, f"No latency was measured.{_left_out(report, timed)}")
    texts = {
        row.name: f"p50 {milliseconds(row.latency.p50_s)}, p95 {milliseconds(row.latency.p95_s)} ms"
        for row in timed
        if row.latency is not None
    }
    with _theme():
        lines = _grouped(timed, texts)
        figure, axes = _rows(lines, axis="milliseconds")
        places = {line.row.name: place for place, line in enumerate(lines) if line.row is not None}
        axes.boxplot(
            [samples[name] for name in places],
            positions=[place + 0.2 for place in places.values()],
            widths=0.34,
            whis=(5, 95),
            orientation="horizontal",
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": _SERIES[0], "edgecolor": _FG, "alpha": 0.7},
            medianprops={"color": _FG, "linewidth": 2},
            flierprops={"marker": "o", "markersize": 2.5, "markeredgecolor": _FG},
        )
        _scale(axes, "x", np.concatenate(list(samples.values())))
        fastest = min(timed, key=lambda row: row.latency.p50_s if row.latency else math.inf)
        description = (
            f"Milliseconds for one picture. Boxes span the middle half of the samples, the bar in "
            f"them is the median (p50), whiskers reach from the 5th to the 95th percentile, dots "
            f"lie beyond. The fastest is {_plain(fastest.name)}: {texts[fastest.name]}."
        )
        return _chart(figure, title, description + _left_out(report, timed))


def throughput_chart(report: BenchReport, *, title: str = "Pictures per second") -> Chart:
    """Draw the pictures per second against the batch size, a line for each candidate."""
    timed = [row for row in in_order(report.rows) if row.batches]
    if not timed:
        return _nothing(title, f"No throughput was measured.{_left_out(report, timed)}")
    rates = {
        row.name: {timing.batch_size: timing.pictures_per_s for timing in row.batches}
        for row in timed
    }
    sizes = sorted({size for rate in rates.values() for size in rate})
    with _theme():
        figure = _figure(_height_with_legend(timed))
        axes = figure.subplots()
        handles = []
        for row, style in zip(timed, _styles(timed), strict=True):
            rate = dict(sorted(rates[row.name].items()))
            handles += axes.plot(list(rate), list(rate.values()), **style)
        if len(sizes) > 1:
            axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
        axes.set(xlabel="batch size", ylabel="pictures per second")
        _scale(axes, "y", np.array([one for rate in rates.values() for one in rate.values()]))
        axes.grid(visible=True)
        _legend(figure, handles, _labels(timed))
        name, size = max(
            ((name, size) for name, rate in rates.items() for size in rate),
            key=lambda key: rates[key[0]][key[1]],
        )
        description = (
            f"Pictures per second of the model alone by batch size. The highest rate is "
            f"{digits(rates[name][size])}, of {_plain(name)} with batches of {size}."
        )
        return _chart(figure, title, description + _left_out(report, timed))


def accuracy_latency_chart(
    report: BenchReport, *, title: str = "Accuracy against latency"
) -> Chart:
    """Draw a point for each candidate, with its accuracy's interval; the recommended is ringed."""
    from matplotlib.ticker import PercentFormatter

    timed = [
        row for row in in_order(report.rows) if row.latency is not None and row.score is not None
    ]
    if not timed:
        return _nothing(
            title, f"No candidate has both accuracy and latency.{_left_out(report, timed)}"
        )
    best = report.recommendation.choice if report.recommendation is not None else None
    with _theme():
        figure = _figure(_height_with_legend(timed))
        axes = figure.subplots()
        handles, names, times = [], _labels(timed), []
        sentence = " None of them is recommended."
        for row, style in zip(timed, _styles(timed), strict=True):
            assert row.latency is not None
            assert row.score is not None
            time, accuracy = 1000 * row.latency.p50_s, row.score.accuracy
            times.append(time)
            axes.vlines(time, row.score.low, row.score.high, color=style["color"], linewidth=1)
            handles += axes.plot(time, accuracy, **{**style, "linestyle": "none"})
            if best is not None and row.name == best.name:
                rings = axes.plot(
                    time, accuracy, "o", markersize=17, markerfacecolor="none", color=_FG
                )
                sentence = (
                    f" Recommended on this machine: {_plain(row.name)}, with {accuracy:.1%} and "
                    f"{milliseconds(row.latency.p50_s)} ms."
                )
        if best is not None and any(row.name == best.name for row in timed):
            handles += rings
            names.append("recommended here")
        axes.set(xlabel="median latency of one picture, milliseconds", ylabel="accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        _scale(axes, "x", np.array(times))
        axes.grid(visible=True)
        _legend(figure, handles, names)
        accuracies = [row.score.accuracy for row in timed if row.score is not None]
        description = (
            f"Accuracy with its 95 % interval against the median latency of one picture, "
            f"{_number(len(timed), 'candidate', 'candidates')}: {_span(accuracies, '{:.1%}')} and "
            f"{_span(times, '{:.3g}')} ms.{sentence}"
        )
        return _chart(figure, title, description + _left_out(report, timed))


def size_chart(report: BenchReport, *, title: str = "File sizes") -> Chart:
    """Draw the size of each candidate's file."""
    sized = [row for row in in_order(report.rows) if row.size_bytes]
    if not sized:
        return _nothing(title, "No file size is known.")
    texts = {row.name: f"{digits(row.size_bytes / 1e6)} MB" for row in sized}
    least = min(sized, key=lambda row: row.size_bytes)
    most = max(sized, key=lambda row: row.size_bytes)
    with _theme():
        lines = _grouped(sized, texts)
        figure, axes = _rows(lines)
        _bars(
            axes,
            [(place, line.row.size_bytes) for place, line in enumerate(lines) if line.row],
        )
        description = (
            f"Megabytes (10^6 bytes) of each file; for eager, of the checkpoint. The smallest is "
            f"{_plain(least.name)} with {texts[least.name]}, the largest {_plain(most.name)} with "
            f"{texts[most.name]}."
        )
        return _chart(figure, title, description)


# ---------------------------------------------------------------------------------- description


def _describe_history(history: "pd.DataFrame") -> str:
    epochs = len(history)
    text = f"Loss and accuracy on the training and validation pictures over {epochs:,} epoch"
    text += "s" if epochs > 1 else ""
    parts = []
    for column, name, best, written in (
        ("val_accuracy", "validation accuracy", "max", "{:.1%}"),
        ("val_loss", "validation loss", "min", "{:.3f}"),
    ):
        values = history[column].replace([np.inf, -np.inf], np.nan)
        if values.notna().any():
            at = values.idxmax() if best == "max" else values.idxmin()
            word = "at best" if best == "max" else "at least"
            last = values.iloc[-1]
            end = written.format(last) if np.isfinite(last) else "no finite number"
            parts.append(
                f"{name} ends at {end}, {word} {written.format(values[at])} in epoch "
                f"{int(history['epoch'][at])}"
            )
        else:
            parts.append(f"{name} has no finite value")
    return f"{text}: {'; '.join(parts)}."


def _describe_confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    total, right = int(matrix.sum()), int(matrix.trace())
    if not total:
        return f"Confusion matrix of {len(classes)} classes without a picture."
    text = f"{right:,} of {_pictures(total)} in {len(classes)} classes are labelled right."
    wrong = matrix - np.diag(matrix.diagonal())
    row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
    if wrong[row, column]:
        text += (
            f" The most frequent mistake: {int(wrong[row, column]):,} of {_plain(classes[row])} "
            f"labelled {_plain(classes[column])}."
        )
    return text + " Colour is the share of the true class."


def _describe_reliability(calibrated: Reliability, uncalibrated: Reliability | None) -> str:
    text = (
        f"Share of right labels by confidence, {_pictures(int(calibrated.counts.sum()))}. On the "
        f"diagonal confidence is accuracy. The expected calibration error is {calibrated.ece:.1%}"
    )
    return f"{text}{'' if uncalibrated is None else f', uncalibrated {uncalibrated.ece:.1%}'}."


def _describe_confidences(
    values: NDArray[np.float64],
    finite: NDArray[np.float64],
    parts: Mapping[str, NDArray[np.float64]],
    num_shown: int,
) -> str:
    text = (
        f"Confidence of {_number(len(finite), 'prediction', 'predictions')}: the median is "
        f"{median(finite):.1%}, {np.mean(finite < 0.5):.1%} lie below 50 %, "
        f"{np.mean(finite >= 0.9):.1%} at 90 % or above."
    )
    if 0 < num_shown < len(parts):
        text += f" Of the {len(parts):,} classes the {num_shown} largest are shown."
    if len(finite) < len(values):
        text += f" Without a number: {len(values) - len(finite):,}."
    return text


def _left_out(report: BenchReport, shown: Sequence[BenchRow]) -> str:
    """Name the candidates that a chart lacks, as a further sentence, and those in doubt."""
    names = {row.name for row in shown}
    missing = [
        f"{_plain(row.name)} ({'failed' if row.status == 'failed' else 'not measured'})"
        for row in report.rows
        if row.name not in names
    ]
    unstable = [_plain(row.name) for row in shown if row.status == "unstable"]
    text = f" Left out: {', '.join(missing)}." if missing else ""
    return text + (f" Unstable timings: {', '.join(unstable)}." if unstable else "")


def _pictures(count: int) -> str:
    return _number(count, "picture", "pictures")


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _span(values: Sequence[float], written: str) -> str:
    low, high = written.format(min(values)), written.format(max(values))
    return low if low == high else f"{low} to {high}"


def _plain(name: str) -> str:
    """Return a name in which nothing is invisible; XML has no place for control characters."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)


# -------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class _Line:
    """A row of a chart: its name at the left, its figure at the right."""

    name: str
    value: str = ""
    row: BenchRow | None = None
    is_head: bool = False


def _rows(lines: Sequence[_Line], *, axis: str = "") -> tuple["Figure", "Axes"]:
    """Return axes with a row from y = n - 0.5 to n + 0.5 for the n-th line, names written."""
    bottom, top = (40 if axis else 6), 4
    height = _ROW * len(lines) + bottom + top
    figure = _figure(height, layout="none")
    rect = (8 / _WIDTH, bottom / height, 1 - 16 / _WIDTH, 1 - (bottom + top) / height)
    axes = figure.add_axes(rect)
    axes.set(ylim=(len(lines) - 0.5, -0.5), yticks=[], xlabel=axis)
    axes.spines[:].set_visible(False)
    if axis:
        axes.grid(visible=True, axis="x")
    else:
        axes.set_xticks([])
    for place, line in enumerate(lines):
        where = {"va": "center", "transform": axes.get_yaxis_transform(), "parse_math": False}
        weight = "bold" if line.is_head else "normal"
        height = place + (0.1 if line.is_head else -0.25)
        axes.text(0, height, line.name, ha="left", weight=weight, **where)
        axes.text(1, height, line.value, ha="right", **where)
    return figure, axes


def _bars(axes: "Axes", values: Sequence[tuple[int, float]]) -> None:
    """Draw bars, of a place and a length each, into the axes of `_rows`."""
    places, lengths = [place + 0.17 for place, _ in values], [length for _, length in values]
    axes.barh(places, lengths, 0.28, color=_SERIES[0])
    axes.set_xlim(0, max(lengths))


def _grouped(rows: Sequence[BenchRow], texts: Mapping[str, str]) -> list[_Line]:
    """Return a line for each candidate, under its run's name where there are several runs."""
    runs = dict.fromkeys(row.run for row in rows)
    lines: list[_Line] = []
    for run in runs:
        if len(runs) > 1:
            lines.append(_Line(short_name(run), is_head=True))
        lines += [_Line(_kind(row, rows), texts[row.name], row) for row in rows if row.run == run]
    return lines


def _kind(row: BenchRow, rows: Sequence[BenchRow]) -> str:
    counts = Counter((one.run, one.format, one.precision) for one in rows)
    only = counts[row.run, row.format, row.precision] == 1
    return f"{row.format} {row.precision}" if only else short_name(row.name)


def _labels(rows: Sequence[BenchRow]) -> list[str]:
    """Return the candidates' names for a legend."""
    several = len({row.run for row in rows}) > 1
    return [
        f"{short_name(row.run)} {_kind(row, rows)}" if several else _kind(row, rows) for row in rows
    ]


def _styles(rows: Sequence[BenchRow]) -> list[dict[str, str]]:
    """Return the look of each candidate: colour and marker by its place in the run, line by run."""
    runs = list(dict.fromkeys(row.run for row in rows))
    styles: list[dict[str, str]] = []
    for number, run in enumerate(runs):
        for place, _ in enumerate(row for row in rows if row.run == run):
            color = _SERIES[place % len(_SERIES)]
            styles.append(
                {
                    "color": color,
                    "marker": _MARKERS[place % len(_MARKERS)],
                    "linestyle": _LINES[number % len(_LINES)],
                    "markerfacecolor": _BG if number % 2 else color,
                }
            )
    return styles


def _scale(axes: "Axes", axis: str, values: NDArray[np.float64]) -> None:
    """Make an axis of positive numbers logarithmic where they are far apart, else from zero."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = float(values.min()), float(values.max())
    one = axes.xaxis if axis == "x" else axes.yaxis
    if low > 0 and high / low > _LOG_FROM:
        axes.set(**{f"{axis}scale": "log"})
        one.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
        one.set_minor_locator(NullLocator())
        one.set_minor_formatter(NullFormatter())
    else:
        axes.set(**{f"{axis}lim": (0, 1.05 * high)})
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _height_with_legend(rows: Sequence[BenchRow]) -> int:
    return 300 + 18 * math.ceil(len(rows) / 2)


def _legend(figure: "Figure", handles: Sequence[object], names: Sequence[str]) -> None:
    """Put a legend below the axes, in two columns where the names leave room for them."""
    columns = 2 if max(map(_letters, names)) * _LETTER < _WIDTH / 2 - 40 else 1
    # matplotlib leaves out names that begin with an underscore, so that they come later.
    legend = figure.legend(handles, ["x"] * len(names), loc="outside lower center", ncols=columns)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
        literal(text)


def _letters(name: str) -> float:
    """Return about how wide a name is, in heights of a letter."""
    return sum(1.05 if ord(char) > 0x1100 else 0.6 for char in name)


@contextmanager
def _theme() -> Iterator[None]:
    """Draw with the stand-in colours, whatever the user's own matplotlibrc says."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The page's font has letters that matplotlib's lacks.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "axes.axisbelow": True,
                "axes.edgecolor": _GRID,
                "axes.labelcolor": _FG,
                "axes.prop_cycle": cycler(color=_SERIES),
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlecolor": _FG,
                "boxplot.capprops.color": _FG,
                "boxplot.whiskerprops.color": _FG,
                "font.size": _LETTER,
                "grid.color": _GRID,
                "legend.fontsize": _LETTER,
                "legend.frameon": False,
                "svg.fonttype": "none",
                "svg.hashsalt": "tltools",
                "text.color": _FG,
                "xtick.color": _GRID,
                "xtick.labelcolor": _FG,
                "ytick.color": _GRID,
                "ytick.labelcolor": _FG,
            }
        )
        yield


def _figure(height: float, width: float = _WIDTH, *, layout: str = "constrained") -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _UNITS, height / _UNITS), layout=layout)  # pyright: ignore[reportArgumentType]


def _nothing(title: str, why: str) -> Chart:
    """Return a chart that says why there is none."""
    with _theme():
        figure = _figure(40)
        figure.text(0.5, 0.5, "no data", ha="center", va="center")
        return _chart(figure, title, why)


# ------------------------------------------------------------------------------------------ SVG


def _chart(figure: "Figure", title: str, description: str) -> Chart:
    """Return the figure as a chart; to be called under `_theme`."""
    file = BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314: matplotlib has just written it
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
    key = hashlib.sha256(f"{title}\0{description}\0{body}".encode()).hexdigest()[:10]
    _rename_ids(root, key)
    for name, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(name, id=f"{key}-{name}")
        element.text = text
        root.insert(0, element)
    width = float(root.attrib["viewBox"].split()[2])
    shrinks_to = f"min-width: {0.75 * width:.0f}px; " if width > _WIDTH else ""
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-desc",
        "style": f"{shrinks_to}max-width: {1.25 * width:.0f}px; stroke-linejoin: round",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _restyled(style: str) -> str:
    """Return a style with the page's font and variables for colours."""
    style = re.sub(r"#[0-9a-f]{6}", lambda match: _VARIABLES[match[0]], style)
    return re.sub(r"font: ([^;']*?)([\d.]+px)[^;]*", _font, style)


def _font(match: re.Match[str]) -> str:
    weight = "; font-weight: bold" if re.search(r"bold|700", match[1]) else ""
    return f"font-size: {match[2]}{weight}"


def _rename_ids(root: ElementTree.Element, key: str) -> None:
    """Keep those ids alone that something refers to, and put a key before them."""
    pattern = re.compile(r"#([\w-]+)")
    used: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("href", "clip-path") or "url(" in value:
                used.update(pattern.findall(value))
                element.set(name, pattern.sub(rf"#{key}-\1", value))
    for element in root.iter():
        if name := element.attrib.pop("id", ""):
            if name in used:
                element.set("id", f"{key}-{name}")
