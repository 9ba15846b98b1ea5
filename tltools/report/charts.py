"""Draw the charts of HTML reports: inline SVG that follows the page's fonts and colors.

A page contains `CHART_CSS` once, and each chart in an element of the class `chart`, which scrolls
if a large matrix is wider than the window. If a page has several charts of one kind, each should
have its own title, so that a screen reader can tell them apart.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tltools.bench import BenchResult, BenchRow
from tltools.bench.text import digits, milliseconds
from tltools.bench.verdict import in_order
from tltools.metrics import Reliability, interval, most_mistaken
from tltools.plots import (
    MAX_MATRIX,
    MatrixStyle,
    draw_confusion,
    draw_history,
    literal,
    num_columns,
    percent_axis,
    short_name,
)
from tltools.report.svg import (
    BG,
    CHART_CSS,
    FG,
    LETTER,
    SERIES,
    WIDTH,
    Chart,
    as_chart,
    new_figure,
    theme,
)
from tltools.wording import grouped, in_percent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CHART_CSS",
    "Chart",
    "accuracy_latency_chart",
    "class_counts_chart",
    "confidence_histogram",
    "confusion_chart",
    "history_chart",
    "latency_chart",
    "reliability_chart",
    "size_chart",
    "throughput_chart",
]

MAX_ROWS = 30
"""Maximum classes in a chart of counts."""
MAX_HISTOGRAMS = 8
"""Maximum labels in a chart of confidence."""
_EDGE = 1e-9
"""Tolerance for the edges of bins: 18 twentieths are slightly more than 0.9."""
_SOFT = 0.7
"""Opacity of areas that lines cross."""
_NUMBERS = 20
"""Maximum classes of a matrix whose cells show their counts."""
_CELLS = {1: 120, 2: 110, 3: 92, 4: 74, 5: 60, 6: 44}
"""Side of a matrix's cells by number of classes, in the SVG's units."""
_LOG_FROM = 8
"""An axis is logarithmic if its largest value is more than this many times the smallest."""

_ROW = 36
"""Height of a row with a name above its bar, in the SVG's units."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", ":", "-.")


# --------------------------------------------------------------------------------------- models


def history_chart(
    history: "pd.DataFrame",
    *,
    kept: int | None = None,
    title: str = "Loss and accuracy by epoch",
) -> Chart:
    """Draw loss and accuracy over the epochs.

    Args:
        history: Columns as in `tltools.plots.plot_history`, one row per epoch.
        kept: The epoch whose weights were kept, which is marked; None for none.
        title: Title of the chart.
    """
    if history.empty:
        return _nothing(title, "No epoch is complete yet.")
    with theme():
        figure = new_figure(400)
        loss, accuracy = figure.subplots(2, 1, sharex=True)
        draw_history(loss, accuracy, history, kept=kept)
        loss.set_xlabel("")
        accuracy.get_legend().remove()  # the same as that of the loss, above it
        figure.align_ylabels()
        marked = "" if kept is None else f" The weights of epoch {kept} were kept."
        return as_chart(figure, title, _describe_history(history) + marked)


def confusion_chart(
    matrix: NDArray[np.int64], classes: Sequence[str], *, title: str = "Confusion matrix"
) -> Chart:
    """Draw a confusion matrix.

    Args:
        matrix: Counts, (C, C); row is the true class, column the predicted class.
        classes: Names of the C classes.
        title: Title of the chart.

    Raises:
        ValueError: If the matrix is not (C, C).
    """
    if matrix.shape != (len(classes), len(classes)):
        raise ValueError(f"a matrix {matrix.shape} does not match {len(classes)} classes")
    if not matrix.sum():
        return _nothing(title, "There are no images.")
    description, support = _describe_confusion(matrix, classes), matrix.sum(axis=1)
    names = [short_name(name) for name in classes]
    if len(names) > MAX_MATRIX:
        worst = most_mistaken(matrix, MAX_MATRIX)
        matrix, support = matrix[np.ix_(worst, worst)], support[worst]
        names = [names[index] for index in worst]
        description += (
            f" Only the {MAX_MATRIX} of {len(classes):,} classes with the most mistakes are shown."
        )
    layout = _matrix_layout(names)
    with theme():
        figure = new_figure(layout.height, layout.width, layout=None)
        axes = figure.add_axes(layout.rect)
        draw_confusion(axes, matrix, names, support=support, style=_matrix_style(matrix, layout))
        axes.xaxis.set_label_coords(0.5, (18 - layout.bottom) / layout.side)
        axes.yaxis.set_label_coords(-(layout.name_width + 20) / layout.side, 0.5)
        return as_chart(figure, title, description)


@dataclass(frozen=True)
class _MatrixLayout:
    """Places and sizes in a confusion matrix, in the SVG's units."""

    letter: float
    """Height of the names' letters."""
    name_width: float
    """Width of the longest name."""
    cell: float
    side: float
    """Height and width of all cells together."""
    left: float
    bottom: float
    height: float
    width: float

    @property
    def flat(self) -> bool:
        """Whether column names are horizontal."""
        return self.name_width < self.cell

    @property
    def rect(self) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of the cells, as shares of the figure."""
        return (
            self.left / self.width,
            self.bottom / self.height,
            self.side / self.width,
            self.side / self.height,
        )


def _matrix_layout(names: Sequence[str]) -> _MatrixLayout:
    num_classes = len(names)
    letter = LETTER if num_classes <= _NUMBERS else LETTER - 1
    cell = _CELLS.get(num_classes, 28 if num_classes <= _NUMBERS else 14)
    name_width = letter * max(map(_width, names))
    side, top, right = cell * num_classes, 6, 8
    left, bottom = name_width + 36, (letter if name_width < cell else name_width) + 32
    width = max(left + side + right, WIDTH)
    return _MatrixLayout(
        letter=letter,
        name_width=name_width,
        cell=cell,
        side=side,
        left=(width + left - side - right) / 2,  # a small matrix is centered
        bottom=bottom,
        height=bottom + side + top,
        width=width,
    )


def _matrix_style(matrix: NDArray[np.int64], layout: _MatrixLayout) -> MatrixStyle:
    num_digits = max(2, max(len(f"{count:,}") for count in matrix.flat))
    return MatrixStyle(
        font=min(layout.letter, layout.cell / (0.64 * num_digits)),
        name_font=layout.letter,
        flat=layout.flat,
        shares=len(matrix) <= 5,
        numbers=len(matrix) <= _NUMBERS,
    )


def reliability_chart(
    calibrated: Reliability,
    uncalibrated: Reliability | None,
    *,
    title: str = "Accuracy by confidence",
) -> Chart:
    """Draw a model's accuracy with its 95% interval, and its number of images, by confidence.

    Args:
        calibrated: Reliability of the model.
        uncalibrated: Reliability of the same model at temperature 1; None if it has no other.
        title: Title of the chart.
    """
    if not calibrated.counts.any():
        return _nothing(title, "There are no images.")
    with theme():
        figure = new_figure(430)
        accuracy, counts = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
        handles: list[Any] = []
        names: list[str] = []
        (diagonal,) = accuracy.plot((0, 1), (0, 1), ":", color=FG, linewidth=1.2)
        bars, spans = _reliability_bars(accuracy, counts, calibrated)
        handles.append(bars)
        kind = "accuracy" if uncalibrated is None else "calibrated"
        names.append(f"{kind} (ECE {in_percent(calibrated.ece)})")
        if uncalibrated is not None:
            handles.append(_reliability_line(accuracy, counts, uncalibrated))
            names.append(f"uncalibrated (ECE {in_percent(uncalibrated.ece)})")
        _label_reliability(accuracy, counts)
        figure.align_ylabels()
        _legend(figure, [*handles, spans, diagonal], [*names, "95% interval", "ideal"])
        return as_chart(figure, title, _describe_reliability(calibrated, uncalibrated))


def _reliability_bars(accuracy: "Axes", counts: "Axes", found: Reliability) -> tuple[Any, Any]:
    """Draw accuracy, with its 95% interval, and counts as bars; return the legend's handles.

    A dot marks the accuracy too, since a bar of 0% cannot be seen.
    """
    look: dict[str, Any] = {"color": SERIES[0], "edgecolor": BG, "alpha": _SOFT, "align": "edge"}
    left, widths, known = found.edges[:-1], np.diff(found.edges), found.counts > 0
    counts.bar(left, found.counts, widths, **look)
    bars = accuracy.bar(left[known], found.accuracy[known], widths[known], **look)
    middles, right = (left + widths / 2)[known], found.accuracy[known]
    low, high = np.transpose(
        [
            interval(round(share * count), count)
            for share, count in zip(right, found.counts[known].tolist(), strict=True)
        ]
    )
    spans = accuracy.errorbar(
        middles, right, (right - low, high - right), fmt="o", color=FG, ms=3, lw=1, clip_on=False
    )
    return bars, spans


def _reliability_line(accuracy: "Axes", counts: "Axes", found: Reliability) -> "Artist":
    """Draw accuracy and counts as dashed lines; return the legend's handle."""
    color, known = SERIES[1], found.counts > 0
    confidence, right = found.confidence[known], found.accuracy[known]
    (line,) = accuracy.plot(confidence, right, "--s", color=color, markerfacecolor=BG)
    counts.stairs(found.counts, found.edges, color=color, ls="--")
    return line


def _label_reliability(accuracy: "Axes", counts: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in (accuracy.yaxis, counts.xaxis):
        percent_axis(axis)
    accuracy.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    counts.set(xlabel="confidence", ylabel="images")
    counts.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (accuracy, counts):
        axes.grid(visible=True)


# ------------------------------------------------------------------------------------- images


def class_counts_chart(counts: Mapping[str, int], *, title: str = "Images by class") -> Chart:
    """Draw the number of images of each class, in the order given."""
    total = sum(counts.values())
    if not total:
        return _nothing(title, "There are no images.")
    largest = set(sorted(counts, key=lambda name: -counts[name])[:MAX_ROWS])
    shown = [(short_name(name), count) for name, count in counts.items() if name in largest]
    others = [count for name, count in counts.items() if name not in largest]
    most = max(counts, key=counts.__getitem__)
    least = min(counts, key=counts.__getitem__)
    description = (
        f"{_images(total)} in {grouped(len(counts), 'class', 'classes')}: most in "
        f"{short_name(most)} ({counts[most]:,}), fewest in {short_name(least)} ({counts[least]:,})."
    )
    with theme():
        lines = [_Line(name, f"{count:,} ({in_percent(count / total)})") for name, count in shown]
        if others:  # without a bar, which could dwarf those of the classes
            name = grouped(len(others), "other class", "other classes")
            lines.append(_Line(name, f"{sum(others):,} ({in_percent(sum(others) / total)})"))
        figure, axes = _rows(lines)
        bars = [(place, count) for place, (_, count) in enumerate(shown)]
        _bars(axes, bars, whole=total)
        return as_chart(figure, title, description)


def confidence_histogram(
    edges: NDArray[np.float64],
    counts: Mapping[str, NDArray[np.int64]],
    *,
    title: str = "Confidence",
) -> Chart:
    """Draw the distribution of confidence, overall and by label.

    Args:
        edges: Edges of the B bins, (B + 1,), from 0 to 1. A bin includes its lower edge, and the
            last bin its upper edge too, as in `numpy.histogram`.
        counts: Predictions of each label by bin, (B,) each.
        title: Title of the chart.
    """
    from matplotlib.ticker import MaxNLocator

    totals = {label: int(part.sum()) for label, part in counts.items()}
    if not sum(totals.values()):
        return _nothing(title, "There are no predictions.")
    everything = np.sum(list(counts.values()), axis=0)
    panels = _histograms(counts, everything)
    with theme():
        figure = new_figure(40 + 130 + 62 * (len(panels) - 1))
        grid = {"height_ratios": [2, *[1] * (len(panels) - 1)]}
        subplots = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw=grid)
        for axes, (name, part) in zip(subplots[:, 0], panels, strict=True):
            axes.bar(edges[:-1], part, np.diff(edges), align="edge", color=SERIES[0], edgecolor=BG)
            axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.grid(visible=True, axis="y")
            if len(panels) > 1:
                label = f"{name}: {grouped(int(part.sum()), 'prediction')}"
                literal(axes.set_title(label, loc="left", fontsize=LETTER))
        subplots[-1, 0].set(xlabel="confidence", xlim=(0, 1))
        percent_axis(subplots[-1, 0].xaxis)
        subplots[0, 0].set_ylabel("predictions")
        low = everything[edges[1:] <= 0.5 + _EDGE].sum() / everything.sum()
        high = everything[edges[:-1] >= 0.9 - _EDGE].sum() / everything.sum()
        description = (
            f"Confidence of {grouped(int(everything.sum()), 'prediction')}: "
            f"{in_percent(low)} are below 50%, {in_percent(high)} at 90% or above."
        )
        return as_chart(figure, title, description)


def _histograms(
    counts: Mapping[str, NDArray[np.int64]], everything: NDArray[np.int64]
) -> list[tuple[str, NDArray[np.int64]]]:
    """Return name and counts of each histogram: all, then each label that has images, if several.

    Labels beyond `MAX_HISTOGRAMS` are counted together.
    """
    totals = {label: int(part.sum()) for label, part in counts.items()}
    largest = set(sorted(totals, key=lambda label: -totals[label])[:MAX_HISTOGRAMS])
    panels = [
        (short_name(label), part)
        for label, part in counts.items()
        if label in largest and totals[label]
    ]
    others = [part for label, part in counts.items() if label not in largest]
    if any(part.any() for part in others):
        name = grouped(len(others), "other label")
        panels.append((name, np.sum(others, axis=0)))
    return [("all", everything), *(panels if len(panels) > 1 else [])]


# ---------------------------------------------------------------------------------------- bench


def latency_chart(report: BenchResult, *, title: str = "Latency of one image") -> Chart:
    """Draw the distribution of each candidate's latency over the samples of all rounds."""
    samples = {
        row.name: 1000 * np.concatenate([np.asarray(one) for one in timing.rounds_s])
        for row in report.rows
        for timing in row.batches
        if timing.batch_size == 1 and any(timing.rounds_s) and row.latency is not None
    }
    timed = [row for row in _good(report) if row.name in samples]
    if not timed:
        return _nothing(title, f"No latency was measured.{_left_out(report, timed)}")
    texts = {
        row.name: f"p50 {milliseconds(row.latency.p50_s)}, p95 {milliseconds(row.latency.p95_s)} ms"
        + ("" if row.status == "ok" else f", {row.status}")
        for row in timed
        if row.latency is not None
    }
    with theme():
        lines = _grouped(timed, texts)
        figure, axes = _rows(lines, axis="milliseconds")
        # Not Axes.boxplot, which reads the name of the screen's backend and so loads pyplot.
        for place, line in enumerate(lines):
            if line.row is None:
                continue
            times, y = samples[line.row.name], place + 0.16
            p5, p25, p50, p75, p95 = np.percentile(times, [5, 25, 50, 75, 95])
            axes.hlines(y, p5, p95, color=FG, linewidth=1)
            axes.vlines([p5, p95], y - 0.08, y + 0.08, color=FG, linewidth=1)
            axes.barh(y, p75 - p25, 0.3, left=p25, color=SERIES[0], edgecolor=FG, linewidth=0.8)
            axes.vlines(p50, y - 0.15, y + 0.15, color=FG, linewidth=2)
            beyond = times[(times < p5) | (times > p95)]
            axes.plot(beyond, np.full(len(beyond), y), "o", color=FG, markersize=2)
        _scale(axes, "x", np.concatenate(list(samples.values())))
        fastest = min(timed, key=lambda row: row.latency.p50_s if row.latency else math.inf)
        description = (
            f"Latency of one image in milliseconds. A box spans the middle half of the samples, "
            f"its bar is the median (p50), the whiskers reach from the 5th to the 95th "
            f"percentile, and dots are samples beyond them. The fastest is {fastest.name}: "
            f"{texts[fastest.name]}."
        )
        return as_chart(figure, title, description + _left_out(report, timed))


def throughput_chart(report: BenchResult, *, title: str = "Images per second") -> Chart:
    """Draw images per second by batch size, one line for each candidate."""
    timed = [row for row in _good(report) if row.batches]
    if not timed:
        return _nothing(title, f"No throughput was measured.{_left_out(report, timed)}")
    rates = {
        row.name: {timing.batch_size: timing.images_per_s for timing in row.batches}
        for row in timed
    }
    sizes = sorted({size for rate in rates.values() for size in rate})
    with theme():
        figure = new_figure(_height(_labels(timed)))
        axes = figure.subplots()
        handles = []
        for row, look in zip(timed, _looks(timed), strict=True):
            rate = dict(sorted(rates[row.name].items()))
            handles += axes.plot(list(rate), list(rate.values()), **look)
        if len(sizes) > 1:
            axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
        axes.set(xlabel="batch size", ylabel="images per second")
        _scale(axes, "y", np.array([one for rate in rates.values() for one in rate.values()]))
        axes.grid(visible=True)
        _legend(figure, handles, _labels(timed))
        name, size = max(
            ((name, size) for name, rate in rates.items() for size in rate),
            key=lambda key: rates[key[0]][key[1]],
        )
        description = (
            f"Images per second of the model alone, by batch size. The highest throughput is "
            f"{digits(rates[name][size])}: {name} with batches of {size}."
        )
        return as_chart(figure, title, description + _left_out(report, timed))


def accuracy_latency_chart(
    report: BenchResult, *, title: str = "Accuracy against latency"
) -> Chart:
    """Draw a point and its accuracy's interval for each candidate; ring the recommended one."""
    timed = [row for row in _good(report) if row.latency is not None and row.score is not None]
    if not timed:
        return _nothing(
            title, f"No candidate has both accuracy and latency.{_left_out(report, timed)}"
        )
    best = report.recommendation.choice if report.recommendation is not None else None
    with theme():
        figure = new_figure(_height(_labels(timed)))
        axes = figure.subplots()
        handles: list[Artist] = []
        names, times, rings = _labels(timed), [], []
        sentence = "" if report.recommendation is None else " None is recommended."
        for row, look in zip(timed, _looks(timed), strict=True):
            assert row.latency is not None
            assert row.score is not None
            time, accuracy = 1000 * row.latency.p50_s, row.score.accuracy
            times.append(time)
            axes.vlines(time, row.score.low, row.score.high, color=look["color"], linewidth=1)
            handles += axes.plot(time, accuracy, **{**look, "linestyle": "none"})
            if best is not None and row.name == best.name:
                rings = axes.plot(
                    time, accuracy, "o", markersize=17, markerfacecolor="none", color=FG
                )
                sentence = (
                    f" Recommended on this machine: {row.name}, with {in_percent(accuracy)} and "
                    f"{milliseconds(row.latency.p50_s)} ms."
                )
        handles += rings
        names += ["recommended here"] * len(rings)
        axes.set(xlabel="median latency of one image, ms", ylabel="accuracy")
        percent_axis(axes.yaxis)
        _scale(axes, "x", np.array(times))
        axes.grid(visible=True)
        _legend(figure, handles, names)
        accuracies = [row.score.accuracy for row in timed if row.score is not None]
        description = (
            f"Accuracy with its 95% interval against the median latency of one image for "
            f"{grouped(len(timed), 'candidate')}: "
            f"{_span(list(map(in_percent, sorted(accuracies))))} and "
            f"{_span([milliseconds(time / 1000) for time in sorted(times)])} ms.{sentence}"
        )
        return as_chart(figure, title, description + _left_out(report, timed))


def size_chart(report: BenchResult, *, title: str = "File sizes") -> Chart:
    """Draw the size of each candidate's file."""
    sized = [row for row in in_order(report.rows) if row.size_bytes]
    if not sized:
        return _nothing(title, "No file size is known.")
    texts = {row.name: f"{digits(row.size_bytes / 1e6)} MB" for row in sized}
    least = min(sized, key=lambda row: row.size_bytes)
    most = max(sized, key=lambda row: row.size_bytes)
    with theme():
        lines = _grouped(sized, texts)
        figure, axes = _rows(lines)
        _bars(
            axes,
            [(place, line.row.size_bytes) for place, line in enumerate(lines) if line.row],
        )
        description = (
            f"Size of each file in megabytes (10^6 bytes); for eager, of the checkpoint. The "
            f"smallest is {least.name} with {texts[least.name]}, the largest {most.name} with "
            f"{texts[most.name]}."
        )
        return as_chart(figure, title, description)


# ---------------------------------------------------------------------------------- description


def _describe_history(history: "pd.DataFrame") -> str:
    epochs = history["epoch"].to_numpy()
    parts = []
    for column, name, best, word, written in (
        ("val_accuracy", "validation accuracy", np.nanargmax, "highest", in_percent),
        ("val_loss", "validation loss", np.nanargmin, "lowest", "{:.3f}".format),
    ):
        values = history[column].to_numpy(dtype=np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        if np.isnan(values).all():
            parts.append(f"{name} is never finite")
            continue
        end = "a value that is not finite" if np.isnan(values[-1]) else written(float(values[-1]))
        at = int(best(values))
        parts.append(
            f"{name} ends at {end} ({word}: {written(float(values[at]))} in epoch {epochs[at]:g})"
        )
    return (
        f"Loss and accuracy on the training and validation images over "
        f"{grouped(len(epochs), 'epoch')}: {'; '.join(parts)}."
    )


def _describe_confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    total, right = int(matrix.sum()), int(matrix.trace())
    text = f"{right:,} of {_images(total)} in {len(classes)} classes are labeled correctly."
    wrong = matrix - np.diag(matrix.diagonal())
    row, column = divmod(int(wrong.argmax()), len(classes))
    if wrong[row, column]:
        text += (
            f" The most frequent mistake: {_images(int(wrong[row, column]))} of "
            f"{short_name(classes[row])} labeled {short_name(classes[column])}."
        )
    return text + " A stronger color means a larger share of the true class."


def _describe_reliability(calibrated: Reliability, uncalibrated: Reliability | None) -> str:
    text = (
        f"Accuracy by confidence for {_images(int(calibrated.counts.sum()))}. On the diagonal, "
        f"confidence equals accuracy. The expected calibration error (ECE) is "
        f"{in_percent(calibrated.ece)}"
    )
    if uncalibrated is not None:
        text += f", and {in_percent(uncalibrated.ece)} uncalibrated"
    return f"{text}."


def _good(report: BenchResult) -> list[BenchRow]:
    """Return the candidates that did not fail; figures from before a failure are worthless."""
    return [row for row in in_order(report.rows) if row.status != "failed"]


def _left_out(report: BenchResult, shown: Sequence[BenchRow]) -> str:
    """Return sentences that name the candidates missing from a chart, and the unstable ones."""
    names = {row.name for row in shown}
    missing = [
        f"{row.name} ({'failed' if row.status == 'failed' else 'not measured'})"
        for row in report.rows
        if row.name not in names
    ]
    unstable = [row.name for row in shown if row.status == "unstable"]
    text = f" Left out: {', '.join(missing)}." if missing else ""
    return text + (f" Unstable timings: {', '.join(unstable)}." if unstable else "")


def _images(count: int) -> str:
    return grouped(count, "image")


def _span(values: Sequence[str]) -> str:
    """Return the first and the last value, or the value that they share."""
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


# -------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class _Line:
    """A row of a chart: its name on the left, its figure on the right."""

    name: str
    value: str = ""
    row: BenchRow | None = None
    is_head: bool = False


def _rows(lines: Sequence[_Line], *, axis: str = "") -> tuple["Figure", "Axes"]:
    """Return axes with the text of each line; line n spans y = n - 0.5 to n + 0.5."""
    bottom, top = (40 if axis else 6), 4
    height = _ROW * len(lines) + bottom + top
    figure = new_figure(height, layout=None)
    rect = (8 / WIDTH, bottom / height, 1 - 16 / WIDTH, 1 - (bottom + top) / height)
    axes = figure.add_axes(rect)
    axes.set(ylim=(len(lines) - 0.5, -0.5), yticks=[], xlabel=axis)
    axes.spines[:].set_visible(False)
    if axis:
        axes.grid(visible=True, axis="x")
    else:
        axes.set_xticks([])
    where: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform()}
    where |= {"parse_math": False, "bbox": {"color": BG, "pad": 1}}  # the grid ends at the letters
    for place, line in enumerate(lines):
        weight = "bold" if line.is_head else "normal"
        height = place + (0.1 if line.is_head else -0.26)
        axes.text(0, height, line.name, ha="left", weight=weight, **where)
        if line.value:
            axes.text(1, height, line.value, ha="right", **where)
    return figure, axes


def _bars(axes: "Axes", values: Sequence[tuple[int, float]], *, whole: float | None = None) -> None:
    """Draw bars, each given by its place and length, into the axes of `_rows`.

    The axes are as wide as the whole that the bars are parts of, or else as the longest bar.
    """
    places, lengths = [place + 0.16 for place, _ in values], [length for _, length in values]
    axes.barh(places, lengths, 0.28, color=SERIES[0])
    axes.set_xlim(0, whole or max(lengths))


def _grouped(rows: Sequence[BenchRow], texts: Mapping[str, str]) -> list[_Line]:
    """Return a line for each candidate, under its run's name if there are several runs."""
    runs = dict.fromkeys(row.run for row in rows)
    lines: list[_Line] = []
    for run in runs:
        if len(runs) > 1:
            lines.append(_Line(short_name(run), is_head=True))
        lines += [_Line(_kind(row, rows), texts[row.name], row) for row in rows if row.run == run]
    return lines


def _kind(row: BenchRow, rows: Sequence[BenchRow]) -> str:
    """Return the name that tells a candidate from the others of its run."""
    counts = Counter((one.run, one.format, one.precision) for one in rows)
    only = counts[row.run, row.format, row.precision] == 1
    return f"{row.format} {row.precision}" if only else short_name(row.name)


def _labels(rows: Sequence[BenchRow]) -> list[str]:
    """Return the candidates' names for a legend."""
    several = len({row.run for row in rows}) > 1
    kinds = [_kind(row, rows) for row in rows]
    return [
        f"{short_name(row.run)} {kind}" if several and kind != short_name(row.name) else kind
        for row, kind in zip(rows, kinds, strict=True)
    ]


def _looks(rows: Sequence[BenchRow]) -> list[dict[str, Any]]:
    """Return the color, marker and line style of each candidate.

    With one or two runs, color and marker show format and precision; line style and marker fill
    show the run. With more runs, each candidate has its own pair of color and marker.
    """
    runs = list(dict.fromkeys(row.run for row in rows))
    seen: Counter[tuple[str, str, str]] = Counter()
    kinds: dict[tuple[str, str, int], int] = {}
    looks: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        again = seen[row.run, row.format, row.precision]
        seen[row.run, row.format, row.precision] += 1
        kind = kinds.setdefault((row.format, row.precision, again), len(kinds))
        number, run = (kind if len(runs) <= 2 else place), runs.index(row.run)
        color = SERIES[number % len(SERIES)]
        looks.append(
            {
                "color": color,
                "marker": _MARKERS[(number + number // len(SERIES)) % len(_MARKERS)],
                "linestyle": _LINES[run % len(_LINES)],
                "markerfacecolor": BG if run % 2 else color,
            }
        )
    return looks


def _scale(axes: "Axes", axis: str, values: NDArray[np.float64]) -> None:
    """Make an axis logarithmic if its values are positive and far apart, else start it at zero."""
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


def _height(names: Sequence[str]) -> int:
    """Return the height of a chart with a legend of these names."""
    return 290 + 17 * math.ceil(len(names) / _columns(names))


def _columns(names: Sequence[str]) -> int:
    return 2 if max(map(_width, names)) * LETTER < WIDTH / 2 - 44 else 1


def _legend(figure: "Figure", handles: Sequence["Artist"], names: Sequence[str]) -> None:
    """Draw a legend below the axes, in two columns if the names are short enough."""
    # matplotlib 3.9 skips names that begin with an underscore, so the names are set afterwards.
    legend = figure.legend(
        handles, ["x"] * len(names), loc="outside lower center", ncols=_columns(names)
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
        literal(text)


def _width(name: str) -> float:
    """Return the approximate width of a name, in letter heights."""
    return 0.56 * num_columns(name)


def _nothing(title: str, why: str) -> Chart:
    """Return an empty chart whose description says why there is no data."""
    with theme():
        figure = new_figure(40)
        figure.text(0.5, 0.5, "no data", ha="center", va="center")
        return as_chart(figure, title, why)
