"""Charts, checked as text; their looks take a browser and a reader."""

import itertools
import re
import sys
from functools import cache
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from tltools.bench import (
    BatchTiming,
    BenchResult,
    BenchRow,
    Latency,
    Machine,
    Recommendation,
)
from tltools.bench.rows import Choice
from tltools.bench.settings import Effort
from tltools.card import Score
from tltools.metrics import reliability
from tltools.plots import _MAX_STRENGTH, draw_history, num_columns, short_name
from tltools.report.charts import (
    CHART_CSS,
    MAX_HISTOGRAMS,
    MAX_MATRIX,
    MAX_ROWS,
    _looks,
    accuracy_latency_chart,
    class_counts_chart,
    confidence_histogram,
    confusion_chart,
    history_chart,
    latency_chart,
    reliability_chart,
    size_chart,
    throughput_chart,
)
from tltools.report.svg import SERIES, _restyled, as_chart, new_figure, theme

BENCH = (latency_chart, throughput_chart, accuracy_latency_chart, size_chart)
EDGES = np.linspace(0, 1, 21)
HOSTILE = [
    "<script>alert(1)</script>",
    "a & b ]]> \"'",
    "$x^2$ costs $5$",
    "구급차",
    "_hidden",
    "#010101",
    "line\nbreak \x00\x1b[31m",
    "\udcff.png",
    "a name that is far too long for any chart to show whole",
]


def history(epochs: int) -> pd.DataFrame:
    steps = np.arange(1, epochs + 1)
    columns = {"epoch": steps, "train_loss": 1 / steps, "val_loss": 1.2 / steps}
    return pd.DataFrame(
        columns | {"train_accuracy": 1 - 0.5 / steps, "val_accuracy": 1 - 0.6 / steps}
    )


def row(kind="onnx fp32", *, run="cnn", ms=(2.0, 4.0), sizes=(1, 8), status="ok", **changes):
    """Make a candidate with samples from `ms[0]` to `ms[1]`; none of them where `ms` is empty."""
    format_, precision = kind.split()
    samples = tuple(np.linspace(ms[0], ms[1], 21) / 1000) if ms else ()
    batches = [
        BatchTiming(
            batch_size=size,
            rounds_s=(samples, samples),
            images_per_s=1000 * size**0.5 / ms[0],
            round_spread=0.0,
            num_outliers=0,
        )
        for size in (sizes if ms else ())
    ]
    p50, p95 = np.percentile(samples, [50, 95]) if ms else (0, 0)
    fields = {
        "name": f"{run} {kind}",
        "run": run,
        "format": format_,
        "precision": precision,
        "path": f"exports/{run}.onnx",
        "status": status,
        "reason": "it is damaged" if status == "failed" else "",
        "warnings": (),
        "score": Score(accuracy=0.9, low=0.85, high=0.95, correct=90, total=100),
        "accuracy_diff": None,
        "agreement": None,
        "max_abs_logit_diff": None,
        "load_s": (),
        "latency": Latency(p50_s=p50, p95_s=p95, p99_s=p95, num_samples=42) if ms else None,
        "batches": tuple(batches),
        "classify": None,
        "size_bytes": 1_500_000,
        "peak_memory_bytes": None,
        "device": "cpu",
        "device_reason": "as asked",
        "provider": "CPUExecutionProvider",
        "placement": {},
        "threads": 2,
    }
    return BenchRow(**(fields | changes))


def bench(*rows: BenchRow, best: str = "") -> BenchResult:
    choice = Choice(
        run="cnn",
        name=best,
        path="exports/cnn.onnx",
        images_per_s=1.0,
        score=None,
        reason="",
        passed_over=(),
        doubtful=False,
    )
    return BenchResult(
        created="2026-11-25T00:00:00+00:00",
        command="tltools bench",
        complete=True,
        settings=Effort(
            device="cpu",
            threads=2,
            batch_sizes=(1, 8),
            rounds=2,
            iterations=21,
            warmup=1,
            max_seconds=1.0,
            classify_seconds=1.0,
            accuracy_s=5.0,
            num_images=100,
            budget_s=240.0,
            may_leave_out=False,
        ),
        machine=Machine(cpu="c", cores=2, memory_bytes=None, os="o", gpus=(), versions={}),
        rows=rows,
        recommendation=Recommendation(choice=choice, alternative="", command="", choices=(choice,))
        if best
        else None,
    )


def reliabilities():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.3, 1, 400)
    target = (rng.random(400) > first).astype(np.int64)
    sharp = np.stack([first**3, (1 - first) ** 3], axis=1)
    sharp /= sharp.sum(axis=1, keepdims=True)
    return reliability(np.stack([first, 1 - first], axis=1), target), reliability(sharp, target)


def every_chart(names=("fire", "ice"), **how):
    """Return a chart of each kind, with classes or candidates of these names."""
    names = list(names)
    report = bench(
        *(row(run=name, ms=(2.0 + place, 40.0)) for place, name in enumerate(names)),
        row("eager fp32", run=names[0]),
        best=f"{names[0]} onnx fp32",
    )
    before, after = reliabilities()
    counts = {name: 30 - place + np.arange(20) for place, name in enumerate(names)}
    matrix = np.diag(np.arange(len(names)) + 5) + 1
    return {
        "history": history_chart(history(5), **how),
        "confusion": confusion_chart(matrix, names, **how),
        "large confusion": confusion_chart(np.eye(40, dtype=int), (names * 40)[:40], **how),
        "reliability": reliability_chart(after, before, **how),
        "reliability, one": reliability_chart(after, None, **how),
        "class counts": class_counts_chart({name: len(name) for name in names}, **how),
        "confidences": confidence_histogram(EDGES, counts, **how),
        "nothing": class_counts_chart({}, **how),
        **{draw.__name__: draw(report, **how) for draw in BENCH},
    }


CHARTS = every_chart()
SVG = "{http://www.w3.org/2000/svg}"


def parse(chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.svg)  # noqa: S314  (ours)


def texts(chart) -> list[str]:
    return [element.text or "" for element in parse(chart).iter(f"{SVG}text")]


def ids(chart) -> list[str]:
    return [element.attrib["id"] for element in parse(chart).iter() if "id" in element.attrib]


@pytest.fixture(params=CHARTS)
def chart(request):
    return CHARTS[request.param]


# ----------------------------------------------------------------------------------- every chart


def test_a_chart_is_one_named_element_that_scales(chart):
    root = parse(chart)
    assert chart.svg.startswith("<svg ")
    assert root.tag == f"{SVG}svg"
    assert root.attrib["role"] == "img"
    assert {"width", "height"} & set(root.attrib) == set()
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    assert (left, top) == (0, 0)
    assert width > 0
    assert height > 0
    named = {element.attrib["id"]: element for element in root if "id" in element.attrib}
    title, description = (named[key] for key in root.attrib["aria-labeledby"].split())
    assert (title.tag, title.text) == (f"{SVG}title", chart.title)
    assert (description.tag, description.text) == (f"{SVG}desc", chart.description)
    assert chart.title
    assert chart.description.endswith(".")


def test_a_chart_has_no_global_styles_and_loads_nothing(chart):
    tags = {element.tag.removeprefix(SVG) for element in parse(chart).iter()}
    assert tags <= {"svg", "title", "desc", "defs", "g", "path", "rect", "clipPath", "use", "text"}
    for element in parse(chart).iter():
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            assert "href" not in name or value.startswith("#")
            assert re.findall(r"url\((?!#)", value) == []


def test_every_id_is_used_and_every_reference_resolves(chart):
    found = ids(chart)
    used = re.findall(r'(?:href="|url\()#([\w-]+)', chart.svg)
    assert len(found) == len(set(found))
    assert set(used) <= set(found)
    assert all(one.startswith("chart-") for one in found)
    assert len(found) == len(set(used)) + 2


def drawn(root: ElementTree.Element):
    """Yield each drawn element with its inherited and its own styles."""
    by_id = {one.attrib["id"]: one for one in root.iter() if "id" in one.attrib}

    def walk(element, styles):
        styles = [*styles, element.attrib.get("style", "")]
        tag = element.tag.removeprefix(SVG)
        if tag == "use":
            yield from walk(by_id[element.attrib["href"][1:]], styles)
        elif tag in ("path", "rect", "text"):
            yield (
                tag,
                dict(
                    map(str.strip, part.split(":", 1))
                    for style in styles
                    for part in style.split(";")
                    if ":" in part
                ),
            )
        elif tag not in ("defs", "clipPath", "title", "desc"):
            for child in element:
                yield from walk(child, styles)

    return list(walk(root, []))


def test_every_color_is_a_variable(chart):
    found = drawn(parse(chart))
    assert found
    for tag, style in found:
        if tag == "text":
            assert style["fill"] == "var(--chart-fg)"
            assert "font-family" not in style
        if style.get("fill-opacity") != "0":
            assert re.fullmatch(r"none|var\(--[\w-]+\)", style["fill"]), (tag, style)
        assert re.fullmatch(r"none|var\(--[\w-]+\)", style.get("stroke", "none")), (tag, style)
    attributes = " ".join(value for one in parse(chart).iter() for value in one.attrib.values())
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?!-)|rgba?\(|hsl|DejaVu", attributes) == []


def test_every_variable_has_a_light_and_a_dark_value(chart):
    used = set(re.findall(r"var\((--[\w-]+)\)", chart.svg))
    assert len(used) >= 1
    for css in CHART_CSS.split("@media screen"):
        assert used <= set(re.findall(r"(--[\w-]+):", css))


def test_charts_are_reproducible_regardless_of_the_users_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its import fails from now on
    with mpl.rc_context({"axes.edgecolor": "red", "lines.linewidth": 9}):
        again = every_chart()
        assert mpl.rcParams["axes.edgecolor"] == "red"
    assert again == CHARTS


def test_ids_are_unique_among_charts_of_the_same_kind():
    pages = [*CHARTS.values(), *every_chart(title="Another run").values()]
    found = [one for chart in pages for one in ids(chart)]
    assert len(found) == len(set(found)) > 50


def test_a_color_without_a_variable_is_refused():
    with theme():
        figure = new_figure(100)
        figure.subplots().plot([1, 2], color="#123456")
        with pytest.raises(KeyError, match="#123456"):
            as_chart(figure, "t", "d")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (
            "font-weight: 700; font-size: 9px; font-family: 'A B', serif",
            "font-weight: 700; font-size: 9px",
        ),
        ("font: 9px 'A 100'; text-anchor: end", "font-size: 9px; text-anchor: end"),
        ("font: italic 700 9.5px 'A', 'B'", "font-weight: 700; font-size: 9.5px"),
        (f"fill: {SERIES[7]}; opacity: 0.5", "fill: var(--series-8); opacity: 0.5"),
        ("fill: none", "fill: none"),
    ],
)
def test_styles_keep_everything_but_colors_and_the_font(written, kept):
    assert _restyled(written) == kept


# ----------------------------------------------------------------------------------------- names


@cache
def charts_of_strangers():
    return every_chart(HOSTILE)


@pytest.mark.parametrize("kind", CHARTS)
def test_hostile_names_are_shown_as_text(kind):
    chart = charts_of_strangers()[kind]
    chart.svg.encode()
    assert "<script" not in chart.svg
    assert parse(chart) is not None
    shown = " | ".join(texts(chart))
    if kind not in ("history", "reliability", "reliability, one", "nothing"):
        for name in ("<script>aler…1)</script>", "$x^2$ costs $5$", "_hidden", "#010101"):
            assert name in shown
        assert "line\N{REPLACEMENT CHARACTER}break" in shown
        assert HOSTILE[-1] not in shown


def test_long_names_keep_both_ends_and_wide_letters_count_twice():
    assert short_name("x" * 24) == "x" * 24
    assert short_name("begin" + "x" * 50 + "end") == "begin" + "x" * 7 + "…" + "x" * 8 + "end"
    assert num_columns(short_name("구" * 30)) <= 24
    assert short_name("구" * 12) == "구" * 12
    assert short_name("구" * 30).startswith("구" * 6 + "…")


def test_a_hostile_title_is_shown_as_text():
    chart = history_chart(history(2), title="<b>&</b>\x00")
    assert chart.title == "<b>&</b>\N{REPLACEMENT CHARACTER}"
    assert parse(chart).find(f"{SVG}title").text == chart.title


# ---------------------------------------------------------------------------------------- models


def test_history_names_the_last_and_the_best_values():
    table = history(3)
    table["val_accuracy"] = [0.5, 0.75, 0.7]
    table["val_loss"] = [1.0, np.nan, 2.0]
    assert history_chart(table).description == (
        "Loss and accuracy on the training and validation images over 3 epochs: validation "
        "accuracy ends at 70.0% (highest: 75.0% in epoch 2); validation loss ends at 2.000 "
        "(lowest: 1.000 in epoch 1)."
    )


def test_the_legend_of_a_history_is_drawn_once():
    assert texts(history_chart(history(3), kept=2)).count("kept epoch") == 1


def test_history_of_one_epoch_of_no_epoch_and_without_a_finite_loss():
    assert "over 1 epoch: " in history_chart(history(1)).description
    assert "1" in texts(history_chart(history(1)))  # the epoch, and no fractions of it
    assert "0.95" not in " ".join(texts(history_chart(history(1))))
    assert history_chart(history(1)[:0]).description == "No epoch is complete yet."
    table = history(2).assign(val_loss=[np.nan, np.inf])
    assert "validation loss is never finite" in history_chart(table).description


def test_confusion_shows_counts_and_shares_and_names_the_most_frequent_mistake():
    chart = confusion_chart(np.array([[1500, 500], [1, 999]]), ["fire", "ice"])
    assert {"1,500", "75.0%", "500", "25.0%", "1", "0.1%", "999", "99.9%"} < set(texts(chart))
    assert chart.description.startswith(
        "2,499 of 3,000 images in 2 classes are labeled correctly. The most frequent mistake: 500 "
        "images of fire labeled ice."
    )


def test_confusion_without_a_mistake_names_none():
    assert "mistake" not in confusion_chart(np.eye(3, dtype=int), list("abc")).description


@pytest.mark.parametrize("num_classes", [1, 2, 5, 6, 20])
def test_confusion_of_few_classes_has_numbers(num_classes):
    matrix = 1234 * np.eye(num_classes, dtype=int)
    names = [f"name {index}" for index in range(num_classes)]
    shown = texts(confusion_chart(matrix, names))
    assert shown.count("1,234") == num_classes
    assert [shown.count(name) for name in names] == [2] * num_classes


def test_confusion_of_many_classes_is_limited_and_says_so():
    matrix = 1234 * np.eye(120, dtype=int)
    matrix[110, 3] = 7  # two classes with mistakes, of which the first comes among the first 50
    chart = confusion_chart(matrix, [f"name {index}" for index in range(120)])
    shown = texts(chart)
    assert "1,234" not in shown
    assert shown.count("name 110") == shown.count("name 3") == 2
    assert len([one for one in shown if one.startswith("name")]) == 2 * MAX_MATRIX
    assert f"Only the {MAX_MATRIX} of 120 classes" in chart.description
    assert "7 images of name 110 labeled name 3." in chart.description
    assert len(chart.svg) < 100_000


def test_confusion_shares_of_a_limited_matrix_refer_to_all_images():
    matrix = np.eye(60, dtype=int)
    matrix[0] = 1  # 60 images: a share of a sixtieth each
    chart = confusion_chart(matrix, [str(index) for index in range(60)])
    opacities = [float(one) for one in re.findall(r"opacity: ([\d.]+)", chart.svg)]
    assert min(opacities) == pytest.approx(0.15 + 0.85 / 60, abs=1e-6)


def test_a_confusion_matrix_that_is_empty_or_mismatched():
    with pytest.raises(ValueError, match=r"matrix \(2, 3\) does not match 2 classes"):
        confusion_chart(np.zeros((2, 3), np.int64), ["a", "b"])
    for names in ([], ["a", "b"]):
        empty = np.zeros((len(names), len(names)), np.int64)
        assert confusion_chart(empty, names).description == "There are no images."


def test_the_kept_epoch_is_marked():
    chart = history_chart(history(5), kept=2)
    assert chart.description.endswith("The weights of epoch 2 were kept.")
    assert "kept epoch" in texts(chart)
    assert "kept epoch" not in texts(history_chart(history(5)))


def test_reliability_shows_the_errors_of_both():
    before, after = reliabilities()
    chart = reliability_chart(after, before)
    shown = " ".join(texts(chart))
    for name, one in (("calibrated", after), ("uncalibrated", before)):
        assert f"{name} (ECE {100 * one.ece:.1f}%)" in shown
    assert f"is {100 * after.ece:.1f}%, and {100 * before.ece:.1f}% uncalibrated." in (
        chart.description
    )
    alone = reliability_chart(after, None)
    assert "calibrated" not in " ".join(texts(alone)) + alone.description
    assert "400 images" in alone.description


# -------------------------------------------------------------------------------------- images


def test_class_counts_are_in_order_with_shares():
    chart = class_counts_chart({"b": 3, "a": 1, "c": 0})
    assert texts(chart) == ["b", "3 (75.0%)", "a", "1 (25.0%)", "c", "0 (0.0%)"]
    assert chart.description == "4 images in 3 classes: most in b (3), fewest in c (0)."


def test_class_counts_of_many_classes_end_with_the_others():
    shown = texts(class_counts_chart({f"c{index}": index for index in range(100)}))
    assert len(shown) == 2 * (MAX_ROWS + 1)
    assert shown[:2] == ["c70", "70 (1.4%)"]
    assert shown[-2:] == ["70 other classes", "2,415 (48.8%)"]  # 69 * 70 / 2 of 4,950


def test_confidence_is_drawn_by_label_with_the_others_summed():
    counts = {f"label {index}": np.full(20, index + 1) for index in range(12)}
    chart = confidence_histogram(EDGES, counts)
    shown = texts(chart)
    assert "all: 1,560 predictions" in shown  # 20 * 78
    assert "label 11: 240 predictions" in shown
    assert f"{12 - MAX_HISTOGRAMS} other labels: 200 predictions" in shown  # 20 * (1 + 2 + 3 + 4)
    assert chart.description == (
        "Confidence of 1,560 predictions: 50.0% are below 50%, 10.0% at 90% or above."
    )


def test_confidence_of_one_label_and_of_none():
    one = confidence_histogram(EDGES, {"a": np.eye(20, dtype=int)[19]})
    assert "Confidence of 1 prediction: 0.0% are below 50%, 100.0% at" in one.description
    assert not any("prediction:" in text for text in texts(one))
    for counts in ({}, {"a": np.zeros(20, int)}):
        assert confidence_histogram(EDGES, counts).description == "There are no predictions."


# ----------------------------------------------------------------------------------------- bench


def test_latency_names_the_percentiles_and_the_fastest():
    chart = latency_chart(bench(row("eager fp32", ms=(10.0, 20.0)), row(ms=(2.0, 4.0))))
    assert {"eager fp32", "p50 15.0, p95 19.5 ms", "onnx fp32", "p50 3.00, p95 3.90 ms"} < set(
        texts(chart)
    )
    assert "The fastest is cnn onnx fp32: p50 3.00, p95 3.90 ms." in chart.description


def test_run_names_are_above_their_candidates():
    chart = latency_chart(bench(row(run="cnn"), row(run="vgg16"), row("onnx int8", run="cnn")))
    shown = [text for text in texts(chart) if not re.match(r"p50|[\d.]+$|milli", text)]
    assert shown == ["cnn", "onnx fp32", "onnx int8", "vgg16", "onnx fp32"]


def test_two_files_of_the_same_kind_are_told_apart_by_name():
    chart = size_chart(bench(row(name="first"), row(name="second")))
    assert texts(chart) == ["first", "1.50 MB", "second", "1.50 MB"]


def test_throughput_names_the_highest_rate():
    chart = throughput_chart(bench(row(ms=(2.0, 4.0), sizes=(1, 16)), row("eager fp32", ms=(9, 9))))
    assert "throughput is 2,000: cnn onnx fp32 with batches of 16." in chart.description
    assert {"1", "8", "16", "eager fp32", "onnx fp32"} < set(texts(chart))


def test_accuracy_marks_the_recommended_candidate():
    rows = [row("onnx int8", ms=(2.0, 4.0)), row("eager fp32", ms=(20.0, 40.0))]
    chart = accuracy_latency_chart(bench(*rows, best="cnn onnx int8"))
    assert "recommended here" in texts(chart)
    assert chart.description.endswith(
        "2 candidates: 90.0% and 3.00 to 30.0 ms. Recommended on this machine: cnn onnx int8, "
        "with 90.0% and 3.00 ms."
    )
    for report in (bench(*rows), bench(*rows, best="another")):
        assert "recommended here" not in texts(accuracy_latency_chart(report))


@pytest.mark.parametrize("draw", BENCH[:3])
def test_failed_and_unmeasured_candidates_are_named_and_not_drawn(draw):
    failed = row("onnx int8", status="failed", ms=(0.001, 0.002))
    report = bench(row(), failed, row("onnx fp16", ms=()), row("eager fp32", status="unstable"))
    chart = draw(report)
    assert "int8" not in " ".join(texts(chart))
    assert (
        "Left out: cnn onnx int8 (failed), cnn onnx fp16 (not measured). Unstable timings: "
        "cnn eager fp32." in chart.description
    )


@pytest.mark.parametrize("draw", BENCH)
@pytest.mark.parametrize(
    "rows",
    [[], [row(ms=(), size_bytes=0)], [row(status="failed", ms=(), score=None, size_bytes=0)]],
    ids=["no row", "not measured", "failed"],
)
def test_an_empty_chart_says_why(draw, rows):
    chart = draw(bench(*rows))
    assert texts(chart) == ["no data"]
    assert chart.description.startswith("No ")


@pytest.mark.parametrize("draw", BENCH)
def test_one_candidate_and_one_batch_size(draw):
    assert "onnx fp32" in texts(draw(bench(row(sizes=(1,)))))


@pytest.mark.parametrize("runs", [["cnn"], ["cnn", "vgg16"], [f"run{n}" for n in range(9)]])
def test_no_combination_of_color_and_marker_is_used_twice(runs):
    kinds = ("eager fp32", "torchscript fp32", "onnx fp32", "onnx fp16", "onnx int8")
    rows = [row(kind, run=run) for run in runs for kind in kinds]
    chart = accuracy_latency_chart(bench(*rows))
    legend = [f"{run} {kind}" if len(runs) > 1 else kind for run in runs for kind in kinds]
    assert [text for text in texts(chart) if text in legend] == legend
    looks = re.findall(r'style="([^"]*series[^"]*)" href="#([\w-]+)"', chart.svg)
    assert len(set(looks)) == len(legend)


def test_kinds_look_the_same_in_two_runs():
    names = ("eager fp32", "onnx int8")
    rows = [row(names[0], run="a"), row(names[1], run="a"), row(names[1], run="b")]
    first, second, third = _looks(rows)
    assert third["color"] == second["color"] != first["color"]
    assert third["marker"] == second["marker"] != first["marker"]
    assert third["linestyle"] != second["linestyle"]


def test_names_in_a_legend_do_not_repeat_their_run():
    rows = [row(run="a"), row(run="a", name="a onnx fp32 (2)"), row(run="b")]
    shown = texts(throughput_chart(bench(*rows)))
    assert shown[-3:] == ["a onnx fp32", "a onnx fp32 (2)", "b onnx fp32"]


@pytest.mark.parametrize(("slowest", "is_log"), [(10.0, False), (100.0, True)])
def test_axes_are_logarithmic_where_values_are_far_apart(slowest, is_log):
    rows = [row(ms=(2.0, 2.0)), row("eager fp32", ms=(slowest, slowest))]
    assert ("0" in texts(latency_chart(bench(*rows)))) is not is_log


# ---------------------------------------------------------------------------------------- colors


def palette(css: str) -> dict[str, np.ndarray]:
    return {
        name: np.array([int(value[at : at + 2], 16) for at in (0, 2, 4)]) / 255
        for name, value in re.findall(r"--([\w-]+): #(\w{6})", css)
    }


PALETTES = dict(zip(("light", "dark"), map(palette, CHART_CSS.split("@media screen")), strict=True))


def linear(color):
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def contrast(one, other) -> float:
    """Return the contrast ratio of WCAG 2.2, from 1 to 21."""
    light = sorted(linear(color) @ [0.2126, 0.7152, 0.0722] for color in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


@pytest.mark.parametrize("scheme", PALETTES)
def test_colors_stand_out_from_the_background(scheme):
    colors = PALETTES[scheme]
    background = colors["chart-bg"]
    assert contrast(colors["chart-fg"], background) >= 7
    assert [name for name in colors if "series" in name] == [
        f"series-{number}" for number in range(1, len(SERIES) + 1)
    ]
    for name, color in colors.items():
        if "series" in name:
            assert contrast(color, background) >= 3, name


@pytest.mark.parametrize("scheme", PALETTES)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_text_in_the_cells_of_a_matrix_is_readable(scheme, share):
    colors, strength = PALETTES[scheme], share * _MAX_STRENGTH
    cell = strength * colors["series-1"] + (1 - strength) * colors["chart-bg"]
    assert contrast(colors["chart-fg"], cell) >= 4.5


SIGHT = {
    "all": np.eye(3),
    # Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision
    # Deficiency (2009), at a severity of 1.0, for linear RGB.
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(light):
    """Return CIE L*a*b* of linear sRGB under D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(to_xyz @ np.clip(light, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", PALETTES)
@pytest.mark.parametrize("sight", SIGHT)
def test_colors_differ_for_color_blind_readers(scheme, sight):
    colors = [
        lab(SIGHT[sight] @ linear(color))
        for name, color in PALETTES[scheme].items()
        if "series" in name
    ]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(colors, 2)]
    assert min(distances) >= 20


def test_percentages_of_axes_have_one_form_and_epochs_begin_at_one():
    from matplotlib.figure import Figure

    history = pd.DataFrame(
        {
            "epoch": range(1, 81),
            "train_loss": 0.5,
            "val_loss": 0.5,
            "train_accuracy": np.linspace(0.99, 1, 80),
            "val_accuracy": np.linspace(0.975, 1, 80),
        }
    )
    figure = Figure()
    loss, accuracy = figure.subplots(2, 1)
    draw_history(loss, accuracy, history, kept=None)
    figure.canvas.draw()
    texts = [one.get_text() for one in accuracy.get_yticklabels()]
    assert "100%" in texts
    assert "97.5%" in texts
    low, high = accuracy.get_xlim()
    assert (low, high) == (0.5, 80.5)


def test_names_of_columns_are_on_one_line():
    svg = parse(confusion_chart(np.eye(2, dtype=np.int64), ("nnn", "Üg")))
    heights: dict[str, list[float]] = {"nnn": [], "Üg": []}
    for one in svg.iter():
        if one.tag.endswith("text") and one.text in heights:
            heights[one.text].append(float(one.attrib["y"]))
    assert [len(found) for found in heights.values()] == [2, 2]  # of the row and of the column
    assert max(heights["nnn"]) == max(heights["Üg"])


def test_bars_are_parts_of_all_images_and_classes_without_images_have_no_histogram():
    svg = parse(class_counts_chart({"a": 6, "b": 6, "c": 0}, title="bars"))
    # Two bars of half the width: 8 units are left at each side of the axes.
    widths = set()
    for one in svg.iter(f"{SVG}path"):
        if "series-1" in one.attrib.get("style", ""):
            numbers = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", one.attrib["d"])]
            widths.add(round(max(numbers) - min(numbers)))
    assert widths - {0} == {(440 - 16) // 2}
    edges = np.linspace(0, 1, 5)
    none, some = np.zeros(4, dtype=np.int64), np.array([0, 0, 1, 2])
    shown = " ".join(
        one.text or ""
        for one in parse(confidence_histogram(edges, {"a": some, "b": none, "c": some})).iter()
    )
    assert "a: 3 predictions" in shown
    assert "b: 0" not in shown
