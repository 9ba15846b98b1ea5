"""Charts of the HTML reports: inline SVG that follows the page's fonts and colors.

A page needs `CHART_CSS` once, and each chart in an element of the class `chart`, which scrolls
where a large matrix is wider than the window. Where a page has several charts of a kind, it should
give them titles, so that a screen reader tells them apart.
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
from tltools.metrics import Reliability
from tltools.plots import draw_confusion, draw_history, literal, num_columns, short_name
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
from tltools.wording import grouped

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

MAX_MATRIX = 50
"""Classes in a confusion matrix; of more, those with the most mistakes are shown."""
MAX_ROWS = 30
"""Classes in a chart of counts."""
MAX_HISTOGRAMS = 8
"""Labels in a chart of confidences."""
_EDGE = 1e-9
"""Of bins: 18 twentieths are a little more than 0.9."""
_SOFT = 0.7
"""Opacity of areas that lines cross."""
_NUMBERS = 20
"""Classes of a matrix up to which its cells show their counts."""
_CELLS = {1: 90, 2: 90, 3: 70, 4: 56, 5: 50, 6: 34}
"""Sides of a matrix's cells by its number of classes, in the SVG's units."""
_LOG_FROM = 8
"""The largest of some values by the smallest from which on their axis is logarithmic."""

_ROW = 36
"""Height of a row that has its name above its bar, in the SVG's units."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", ":", "-.")


# --------------------------------------------------------------------------------------- models


def history_chart(history: "pd.DataFrame", *, title: str = "Loss and accuracy by epoch") -> Chart:
    """Draw the course of a training.

    Args:
        history: Columns as in `tltools.plots.plot_history`, one row per epoch.
        title: Of the chart.
    """
    if history.empty:
        return _nothing(title, "The training has no epoch yet.")
    with theme():
        figure = new_figure(400)
        loss, accuracy = figure.subplots(2, 1, sharex=True)
        draw_history(loss, accuracy, history)
        loss.set_xlabel("")
        figure.align_ylabels()
        return as_chart(figure, title, _describe_history(history))


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
    if not matrix.sum():
        return _nothing(title, "There is no image.")
    description, support = _describe_confusion(matrix, classes), matrix.sum(axis=1)
    names = [short_name(name) for name in classes]
    if len(names) > MAX_MATRIX:
        mistakes = matrix.sum(axis=0) + support - 2 * matrix.diagonal()
        worst = np.sort(np.argsort(-mistakes, kind="stable")[:MAX_MATRIX])
        matrix, support = matrix[np.ix_(worst, worst)], support[worst]
        names = [names[index] for index in worst]
        description += (
            f" Shown are the {MAX_MATRIX} of {len(classes):,} classes with the most mistakes."
        )
    num_classes = len(names)
    numbers = num_classes <= _NUMBERS
    letter = LETTER if num_classes <= 6 else 9
    cell = _CELLS.get(num_classes, 26 if numbers else 12)
    longest = max(map(_width, names))  # in letters
    flat = letter * longest < cell
    left = letter * longest + 30
    bottom = (letter if flat else letter * longest) + 32
    side, top, right = cell * num_classes, 6, 8
    width, height = max(left + side + right, WIDTH), bottom + side + top
    left = (width + left - side - right) / 2  # a small matrix stands in the middle
    most = max(2, max(len(f"{count:,}") for count in matrix.flat))
    with theme():
        figure = new_figure(height, width, layout=None)
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        draw_confusion(
            axes,
            matrix,
            names,
            support=support,
            font=min(letter, cell / (0.64 * most)),
            name_font=letter,
            flat=flat,
            shares=num_classes <= 5,
            numbers=numbers,
        )
        axes.xaxis.set_label_coords(0.5, (18 - bottom) / side)
        axes.yaxis.set_label_coords(-(letter * longest + 14) / side, 0.5)
        return as_chart(figure, title, description)


def reliability_chart(
    calibrated: Reliability,
    uncalibrated: Reliability | None,
    *,
    title: str = "Accuracy by confidence",
) -> Chart:
    """Draw how often a model is right at each confidence, and how many images there are.

    Args:
        calibrated: Of the model as it is.
        uncalibrated: Of the same model with a temperature of 1; None where that is the same.
        title: Of the chart.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if not calibrated.counts.any():
        return _nothing(title, "There is no image.")
    with theme():
        figure = new_figure(430)
        accuracy, counts = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
        widths = np.diff(calibrated.edges)
        known = calibrated.counts > 0
        (diagonal,) = accuracy.plot((0, 1), (0, 1), ":", color=FG, linewidth=1.2)
        bars = accuracy.bar(
            calibrated.edges[:-1][known],
            calibrated.accuracy[known],
            widths[known],
            align="edge",
            color=SERIES[0],
            edgecolor=BG,
            alpha=_SOFT,
        )
        handles: list[Artist] = [bars, diagonal]
        kind = "accuracy" if uncalibrated is None else "calibrated"
        names = [f"{kind} (ECE {_percent(calibrated.ece)})", "ideal"]
        counts.bar(
            calibrated.edges[:-1],
            calibrated.counts,
            widths,
            align="edge",
            color=SERIES[0],
            edgecolor=BG,
            alpha=_SOFT,
        )
        if uncalibrated is not None:
            some = uncalibrated.counts > 0
            (line,) = accuracy.plot(
                uncalibrated.confidence[some],
                uncalibrated.accuracy[some],
                "--s",
                color=SERIES[1],
                markerfacecolor=BG,
            )
            counts.stairs(uncalibrated.counts, uncalibrated.edges, color=SERIES[1], ls="--")
            handles.insert(1, line)
            names.insert(1, f"uncalibrated (ECE {_percent(uncalibrated.ece)})")
        for axis in (accuracy.yaxis, counts.xaxis):
            axis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
        accuracy.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        counts.set(xlabel="confidence", ylabel="images")
        counts.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in (accuracy, counts):
            axes.grid(visible=True)
        figure.align_ylabels()
        _legend(figure, handles, names)
        return as_chart(figure, title, _describe_reliability(calibrated, uncalibrated))


# ------------------------------------------------------------------------------------- images


def class_counts_chart(counts: Mapping[str, int], *, title: str = "Images by class") -> Chart:
    """Draw the number of images of each class, in the order given."""
    total = sum(counts.values())
    if not total:
        return _nothing(title, "There is no image.")
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
        lines = [_Line(name, f"{count:,} ({_percent(count / total)})") for name, count in shown]
        if others:  # without a bar, beside which those of the classes would be short
            name = grouped(len(others), "other class", "other classes")
            lines.append(_Line(name, f"{sum(others):,} ({_percent(sum(others) / total)})"))
        figure, axes = _rows(lines)
        _bars(axes, [(place, count) for place, (_, count) in enumerate(shown)])
        return as_chart(figure, title, description)


def confidence_histogram(
    edges: NDArray[np.float64],
    counts: Mapping[str, NDArray[np.int64]],
    *,
    title: str = "Confidence",
) -> Chart:
    """Draw how many predictions have which confidence, over all and by label.

    Args:
        edges: Of the B bins, (B + 1,), from 0 to 1. A bin holds its lower edge, the last one both,
            as those of `numpy.histogram`.
        counts: Predictions of each label by bin, (B,) each.
        title: Of the chart.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    totals = {label: int(part.sum()) for label, part in counts.items()}
    if not sum(totals.values()):
        return _nothing(title, "There is no prediction.")
    everything = np.sum(list(counts.values()), axis=0)
    largest = set(sorted(totals, key=lambda label: -totals[label])[:MAX_HISTOGRAMS])
    panels = [(short_name(label), part) for label, part in counts.items() if label in largest]
    others = [part for label, part in counts.items() if label not in largest]
    if others:
        name = grouped(len(others), "other label")
        panels.append((name, np.sum(others, axis=0)))
    panels = [("all", everything), *(panels if len(panels) > 1 else [])]
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
        subplots[-1, 0].xaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
        subplots[0, 0].set_ylabel("predictions")
        low = everything[edges[1:] <= 0.5 + _EDGE].sum() / everything.sum()
        high = everything[edges[:-1] >= 0.9 - _EDGE].sum() / everything.sum()
        description = (
            f"Confidence of {grouped(int(everything.sum()), 'prediction')}: "
            f"{_percent(low)} lie below 50 %, {_percent(high)} at 90 % or above."
        )
        return as_chart(figure, title, description)


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
            f"Milliseconds for one image. Boxes span the middle half of the samples, the bar in "
            f"them is the median (p50), whiskers reach from the 5th to the 95th percentile, dots "
            f"lie beyond. The fastest is {fastest.name}: {texts[fastest.name]}."
        )
        return as_chart(figure, title, description + _left_out(report, timed))


def throughput_chart(report: BenchResult, *, title: str = "Images per second") -> Chart:
    """Draw the images per second against the batch size, a line for each candidate."""
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
            f"Images per second of the model alone by batch size. The highest rate is "
            f"{digits(rates[name][size])}, of {name} with batches of {size}."
        )
        return as_chart(figure, title, description + _left_out(report, timed))


def accuracy_latency_chart(
    report: BenchResult, *, title: str = "Accuracy against latency"
) -> Chart:
    """Draw a point for each candidate, with its accuracy's interval; the recommended is ringed."""
    from matplotlib.ticker import PercentFormatter

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
        sentence = "" if report.recommendation is None else " None of them is recommended."
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
                    f" Recommended on this machine: {row.name}, with {_percent(accuracy)} and "
                    f"{milliseconds(row.latency.p50_s)} ms."
                )
        handles += rings
        names += ["recommended here"] * len(rings)
        axes.set(xlabel="median latency of one image, milliseconds", ylabel="accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
        _scale(axes, "x", np.array(times))
        axes.grid(visible=True)
        _legend(figure, handles, names)
        accuracies = [row.score.accuracy for row in timed if row.score is not None]
        description = (
            f"Accuracy with its 95 % interval against the median latency of one image, "
            f"{grouped(len(timed), 'candidate')}: "
            f"{_span(list(map(_percent, sorted(accuracies))))} and "
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
            f"Megabytes (10^6 bytes) of each file; for eager, of the checkpoint. The smallest is "
            f"{least.name} with {texts[least.name]}, the largest {most.name} with "
            f"{texts[most.name]}."
        )
        return as_chart(figure, title, description)


# ---------------------------------------------------------------------------------- description


def _describe_history(history: "pd.DataFrame") -> str:
    epochs = history["epoch"].to_numpy()
    parts = []
    for column, name, best, word, written in (
        ("val_accuracy", "validation accuracy", np.nanargmax, "at best", _percent),
        ("val_loss", "validation loss", np.nanargmin, "at least", "{:.3f}".format),
    ):
        values = history[column].to_numpy(dtype=np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        if np.isnan(values).all():
            parts.append(f"{name} is never finite")
            continue
        end = "no finite number" if np.isnan(values[-1]) else written(float(values[-1]))
        at = int(best(values))
        parts.append(
            f"{name} ends at {end}, {word} {written(float(values[at]))} in epoch {epochs[at]}"
        )
    return (
        f"Loss and accuracy on the training and validation images over "
        f"{grouped(len(epochs), 'epoch')}: {'; '.join(parts)}."
    )


def _describe_confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    total, right = int(matrix.sum()), int(matrix.trace())
    text = f"{right:,} of {_images(total)} in {len(classes)} classes are labeled right."
    wrong = matrix - np.diag(matrix.diagonal())
    row, column = divmod(int(wrong.argmax()), len(classes))
    if wrong[row, column]:
        text += (
            f" The most frequent mistake: {int(wrong[row, column]):,} of "
            f"{short_name(classes[row])} labeled {short_name(classes[column])}."
        )
    return text + " The stronger a color, the larger the share of its true class."


def _describe_reliability(calibrated: Reliability, uncalibrated: Reliability | None) -> str:
    text = (
        f"Share of right labels by confidence, {_images(int(calibrated.counts.sum()))}. On the "
        f"diagonal confidence is accuracy. The expected calibration error (ECE) is "
        f"{_percent(calibrated.ece)}"
    )
    if uncalibrated is not None:
        text += f", uncalibrated {_percent(uncalibrated.ece)}"
    return f"{text}."


def _good(report: BenchResult) -> list[BenchRow]:
    """Return the candidates that did not fail: whatever was measured before says nothing."""
    return [row for row in in_order(report.rows) if row.status != "failed"]


def _left_out(report: BenchResult, shown: Sequence[BenchRow]) -> str:
    """Name the candidates that a chart lacks, as a further sentence, and those in doubt."""
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
    """Return the first and the last, or the one."""
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


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


def _bars(axes: "Axes", values: Sequence[tuple[int, float]]) -> None:
    """Draw bars, of a place and a length each, into the axes of `_rows`."""
    places, lengths = [place + 0.16 for place, _ in values], [length for _, length in values]
    axes.barh(places, lengths, 0.28, color=SERIES[0])
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
    """Return what a candidate is called among those of its run."""
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
    """Return the look of each candidate.

    Color and marker stand for format and precision, and the line and the marker's inside for the
    run, where there are no more than two runs. Where there are more, each candidate has its own
    pair of color and marker.
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


def _height(names: Sequence[str]) -> int:
    """Return the height of a chart with a legend of these names."""
    return 290 + 17 * math.ceil(len(names) / _columns(names))


def _columns(names: Sequence[str]) -> int:
    return 2 if max(map(_width, names)) * LETTER < WIDTH / 2 - 44 else 1


def _legend(figure: "Figure", handles: Sequence["Artist"], names: Sequence[str]) -> None:
    """Put a legend below the axes, in two columns where the names leave room for them."""
    # matplotlib 3.9 leaves out names that begin with an underscore, so that they come later.
    legend = figure.legend(
        handles, ["x"] * len(names), loc="outside lower center", ncols=_columns(names)
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
        literal(text)


def _width(name: str) -> float:
    """Return about how wide a name is, in heights of its letters."""
    return 0.56 * num_columns(name)


def _nothing(title: str, why: str) -> Chart:
    """Return a chart that says why there is none."""
    with theme():
        figure = new_figure(40)
        figure.text(0.5, 0.5, "no data", ha="center", va="center")
        return as_chart(figure, title, why)
