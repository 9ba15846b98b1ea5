"""Turn the results that `run.py` saves as JSON into ratios, Markdown tables and a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import gpu_check
from cores import core_table
from image_files import LARGE_QUALITIES
from limits import DECODING, LARGE_SESSIONS, SMALL_SESSIONS, combined
from pages import rate_text, section

Results = Mapping[str, Any]
"""The JSON of run.py: `comparisons` by name, each with `rows` of measured systems, and other parts.
"""


RESULTS = ("broken", "memory", "listing", "startup", "stability")
"""Parts of the block `results` beside its comparisons."""
CORES = ("loops_search", "cores", "ordering")
"""Parts of the block `cores`."""
ORDERING_US = 15
"""Target for the ordering process: CPU time per image of the CNN, in microseconds."""


class Ratio(NamedTuple):
    """A ratio in each turn: their median, smallest and largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Format the ratio for a table."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


class Figure(NamedTuple):
    """A figure with its target."""

    name: str
    measured: str
    target: str
    held: bool


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Divide times measured in the same turns."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def seconds(results: Results, comparison: str, system: str) -> list[float] | None:
    """Return a system's times in a comparison, one for each turn; None if it has none."""
    rows = results.get("comparisons", {}).get(comparison, {}).get("rows", ())
    return next((row["seconds"] for row in rows if row["name"] == system and _good(row)), None)


def best(results: Results, comparison: str, prefix: str) -> tuple[str, list[float]] | None:
    """Return the system with the fastest median among those whose names start with `prefix`."""
    rows = results.get("comparisons", {}).get(comparison, {}).get("rows", ())
    good = [row for row in rows if row["name"].startswith(prefix) and _good(row)]
    if not good:
        return None
    row = min(good, key=lambda row: median(row["seconds"]))
    return row["name"], row["seconds"]


def combined_limit(results: Results) -> list[float] | None:
    """Return the time that decoding and the best bare session need together, for each turn."""
    decoding = seconds(results, "limits", DECODING)
    session = best(results, "limits", "session")
    if decoding is None or session is None:
        return None
    return [combined(a, b) for a, b in zip(decoding, session[1], strict=True)]


def figures(results: Results) -> list[Figure]:
    """Return the measured figures that have a target."""
    return _speed_figures(results) + _process_figures(results)


def _speed_figures(results: Results) -> list[Figure]:
    loop = best(results, "peers", "DataLoader") or ("", None)
    session = best(results, "vgg16", "session") or ("", None)
    fp32 = seconds(results, "vgg16", "tltools, fp32")
    pairs = [
        (f"CNN: tltools to the best eager loop ({loop[0]})", "peers", loop[1], "tltools", 4.0),
        ("CNN: tltools to the combined limit", "limits", combined_limit(results), "tltools", 0.90),
        (f"VGG16 fp32: tltools to the bare {session[0]}", "vgg16", session[1], fp32, 0.97),
        ("VGG16, end to end: int8 to fp32", "vgg16", fp32, "tltools, int8", 3.4),
    ]
    for quality in LARGE_QUALITIES:
        large, what = f"large-{quality}", f"12 megapixels, quality {quality}"
        for rule in ("squash", "crop"):
            full = seconds(results, large, f"Pillow in full, {rule}")
            name = f"{what}, {rule}: load_image to Pillow in full"
            pairs.append((name, large, full, f"load_image, {rule}", 4.0))
        full = seconds(results, large, "Pillow in full, squash")
        name = f"{what}: classify (CNN) to Pillow in full, squash"
        pairs.append((name, large, full, "tltools", 4.0))
    found: list[Figure] = []
    for name, comparison, slow, fast, target in pairs:
        times = seconds(results, comparison, fast) if isinstance(fast, str) else fast
        if slow and times:
            value = ratio(slow, times)
            found.append(Figure(name, str(value), f"≥ {target:g}", value.median >= target))
    return found


def _process_figures(results: Results) -> list[Figure]:
    found: list[Figure] = []

    def below(name: str, value: float, measured: str, target: float, unit: str = "") -> None:
        found.append(Figure(name, measured, f"< {target:g}{unit}", value < target))

    peaks = {row["num_images"]: median(row["peak_bytes"]) for row in results.get("memory", ())}
    if len(peaks) > 1:
        value = peaks[max(peaks)] / peaks[min(peaks)]
        name = f"Peak memory, {max(peaks):,} images to {min(peaks):,}"
        below(name, value, f"{value:.3f}", 1.10)
    for row in results.get("listing", ()):
        name = f"{row['num_names']:,} names in {row['layout']}: start to first row"
        below(name, median(row["seconds"]), _spread_s(row["seconds"]), 2, " s")
    if "startup" in results:
        values = results["startup"]["seconds"]
        below("One image, start to label", median(values), _spread_s(values), 0.5, " s")
    for row in results.get("stability", ()):
        text = f"{row['max_diff']:.1e}, {'same' if row['same_labels'] else 'other'} labels"
        name = f"{row['model']}: largest difference between {row['num_settings']} settings"
        below(name, row["max_diff"] if row["same_labels"] else 1.0, text, 1e-5)
    return found


def blocks(results: Results) -> dict[str, str]:
    """Return the measured blocks of results as Markdown, by the names of their marks."""
    found: dict[str, str] = {}
    if any(part in results for part in RESULTS) or _others(results):
        found["results"] = to_markdown(results)
    if any(part in results for part in CORES):
        found["cores"] = cores_markdown(results)
    if "gpu" in results:
        found["gpu"] = gpu_check.to_markdown(results["gpu"])
    return found


def _others(results: Results) -> list[str]:
    return [name for name in results.get("comparisons", {}) if name != "loops"]


def cores_markdown(results: Results) -> str:
    """Return the results of loops, cores and ordering as Markdown."""
    parts = [f"Measured {results['created']}: `{results['command']}`."]
    parts += ["\n".join(f"- {line}" for line in _context(results))]
    if "ordering" in results:
        values = results["ordering"]["us_per_image"]
        parts.append(
            f"The process that orders and writes the rows takes {median(values):.1f} us of CPU "
            f"per image ({min(values):.1f} to {max(values):.1f}; target: at most {ORDERING_US})."
        )
    if sentence := loop_sentence(results):
        parts.append(sentence)
    if "loops" in results.get("comparisons", {}):
        title = results["comparisons"]["loops"]["title"]
        parts += section(title, *_comparison_table(results, "loops"))
    parts += section("Every setting that was tried", *_search_table(results))
    if results.get("cores"):
        parts += section("CNN on the CPU alone, by cores", *core_table(results["cores"]))
    return "\n\n".join(parts) + "\n"


def loop_sentence(results: Results) -> str:
    """Say how tltools compares with the best loop, and name that loop; empty without one."""
    loop, times = best(results, "loops", "loop"), seconds(results, "loops", "tltools")
    if loop is None or not times:
        return ""
    return f"tltools is {ratio(loop[1], times)} times as fast as the best loop ({loop[0]})."


def _search_table(results: Results) -> tuple[list[str], list[list[str]]]:
    rows = sorted(results.get("loops_search", ()), key=lambda row: -(row.get("images_per_s") or 0))
    texts = [
        rate_text(row["images_per_s"]) if _good(row) else f"failed: {row['failure']}"
        for row in rows
    ]
    names = [row["name"] for row in rows]
    return ["", "images/s"], [list(line) for line in zip(names, texts, strict=True)]


def to_markdown(results: Results) -> str:
    """Return all results but those of loops, cores, ordering and the GPU as Markdown."""
    parts = [f"Measured {results['created']}: `{results['command']}`."]
    parts += ["\n".join(f"- {line}" for line in _context(results))]
    bounded = [[*figure[:3], "yes" if figure.held else "**no**"] for figure in figures(results)]
    parts += section("Against the targets", ["", "measured", "target", "held"], bounded)
    for name in _others(results):
        comparison = results["comparisons"][name]
        parts += section(comparison["title"], *_comparison_table(results, name))
    rows = [[row["name"], row["outcome"]] for row in results.get("broken", ())]
    parts += section("One truncated JPEG among others", ["", "what happened"], rows)
    rows = [
        [f"{row['num_images']:,}", ", ".join(f"{peak / 1e6:.0f}" for peak in row["peak_bytes"])]
        for row in results.get("memory", ())
    ]
    parts += section("Peak memory of tltools classify", ["images", "MB, each run"], rows)
    if "startup" in results:
        imports = results["startup"]["imports"]
        rows = [[name, f"{value * 1e3:.0f} ms"] for name, value in imports[:8]]
        rows += [["all imports", f"{sum(value for _, value in imports) * 1e3:.0f} ms"]]
        parts += section("Where starting up goes (under -X importtime)", ["package", ""], rows)
    return "\n\n".join(parts) + "\n"


def draw(results: Results, path: Path) -> None:
    """Draw the images per second of every measured comparison, and save the plot."""
    from matplotlib.figure import Figure as Plot

    names = [name for name, comp in results["comparisons"].items() if any(map(_good, comp["rows"]))]
    bars = {name: _bars(results, name) for name in names}
    heights = [len(bars[name]) + 1.2 for name in names]
    plot = Plot(figsize=(9, 0.34 * sum(heights) + 0.3), layout="constrained")
    axes = plot.subplots(len(names), squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis, name in zip(axes[:, 0], names, strict=True):
        labels, rates = zip(*bars[name], strict=True)
        base = next((rate for label, rate in bars[name] if label.startswith("tltools")), None)
        colors = [_color(label) for label in labels]
        drawn = axis.barh(labels, rates, color=colors, height=0.72)
        texts = [rate_text(rate) + (f"  ({rate / base:.2f}x)" if base else "") for rate in rates]
        axis.bar_label(drawn, texts, padding=4, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, max(rates) * 1.25)
        axis.set_title(results["comparisons"][name]["title"], loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("images per second (in brackets: relative to tltools)", fontsize=8)
    plot.savefig(path, dpi=130)


def _bars(results: Results, name: str) -> list[tuple[str, float]]:
    comparison = results["comparisons"][name]
    number = comparison["num_images"]
    bars = [
        (row["name"], number / median(row["seconds"])) for row in comparison["rows"] if _good(row)
    ]
    limit = combined_limit(results) if name == "limits" else None
    return [*bars, ("combined limit", number / median(limit))] if limit else bars


def _color(label: str) -> str:
    if label.startswith(("tltools", "load_image")):
        return "#1b6ca8"
    limits = (DECODING, "combined", *SMALL_SESSIONS, *LARGE_SESSIONS)
    return "#b9c4cc" if label.startswith(limits) else "#e08e45"


def _comparison_table(results: Results, name: str) -> tuple[list[str], list[list[str]]]:
    comparison = results["comparisons"][name]
    number = comparison["num_images"]
    base = next(
        (r for r in comparison["rows"] if r["name"].startswith("tltools") and _good(r)), None
    )
    columns = ["", "images/s", "time relative to tltools", "start-up", "same label as tltools"]
    table: list[list[str]] = []
    for row in comparison["rows"]:
        if not _good(row):
            table.append([row["name"], f"failed: {row['failure']}", "", "", ""])
            continue
        relative = str(ratio(row["seconds"], base["seconds"])) if base else ""
        same = row.get("same_labels")
        table.append(
            [
                row["name"],
                rate_text(number / median(row["seconds"])),
                "1" if row is base else relative,
                f"{median(row['start_up_s']):.1f} s",
                "" if same is None or row is base else f"{same:.2%}",
            ]
        )
    limit = combined_limit(results) if name == "limits" else None
    if limit:
        relative = str(ratio(limit, base["seconds"])) if base else ""
        table.append(["combined limit", rate_text(number / median(limit)), relative, "", ""])
    return columns, table


def _context(results: Results) -> list[str]:
    machine = results["machine"]
    memory = machine["memory_bytes"]
    versions = machine["versions"] | results["packages"]
    return [
        f"{machine['cores']} cores of {machine['cpu']}, "
        + (f"{memory / 2**30:.0f} GB, " if memory else "")
        + (", ".join(machine["gpus"]) or "no GPU"),
        f"{machine['os']}; " + ", ".join(f"{name} {text}" for name, text in versions.items()),
        *results["inputs"],
        f"{results['runs']} alternating turns; ratios are medians of the turns' own ratios, with "
        "the smallest and the largest",
        *(f"Not measured: {name}: {reason}" for name, reason in results["skipped"].items()),
    ]


def _good(row: Mapping[str, Any]) -> bool:
    return not row["failure"]


def _spread_s(values: Sequence[float]) -> str:
    return f"{median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"
