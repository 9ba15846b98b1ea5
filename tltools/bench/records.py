"""The results of a bench: rows with every sample, tables to read, and files for programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec

from tltools.atomic import write_text
from tltools.bench.budget import NOISE, ROUND_IMAGES
from tltools.bench.machine import Machine
from tltools.bench.rows import BenchRow, Recommendation
from tltools.bench.settings import Effort
from tltools.bench.stages import MAX_IMAGES, MIN_BATCHES
from tltools.bench.text import digits, milliseconds, percent_down
from tltools.bench.timing import MAX_ROUND_SPREAD, MIN_LATENCY_RUNS, MIN_THROUGHPUT_RUNS
from tltools.bench.verdict import (
    MAX_ACCURACY_LOSS,
    MAX_UNEXPLAINED,
    MIN_AGREEMENT,
    answer_lines,
    int8_notes,
    recommendation_lines,
)
from tltools.runtime.model_formats import FORMATS
from tltools.wording import counted, in_percent, percent, plural

SCOPE = (
    "Times are for the model alone, from a batch of decoded images in memory to logits in memory; "
    "reading and decoding files is not included."
)
NO_VALUE = "-"
MAX_DOUBTFUL = 2
"""Largest number of candidates whose warnings are printed one by one."""
MAX_SIZES_BESIDE = 3
"""Number of batch sizes that fit beside the latency on a terminal of 80 columns."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table to print."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """All rows, and everything needed to interpret and reproduce them."""

    version: int = 1
    created: str
    """UTC, ISO 8601."""
    command: str
    complete: bool
    """False in the results written while the bench is still running."""
    scope: str = SCOPE
    settings: Effort
    machine: Machine
    peak_flops_per_s: dict[str, float] = field(default_factory=dict)
    """FLOP/s of the GPU in a large matrix product, by precision; empty without a GPU."""
    notes_on_inputs: tuple[str, ...] = ()
    """Warnings about the models, and about the images that they are judged on."""
    rows: tuple[BenchRow, ...]
    recommendation: Recommendation | None
    """None if `classify` was not measured."""

    def to_json(self) -> str:
        """Return everything as JSON, including samples; unknown values are null."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"

    def to_markdown(self) -> str:
        """Return a Markdown page: tables, notes, method and machine."""
        parts = ["# Benchmark", f"{self.created}: `{self.command}`"]
        if not self.complete:
            parts.append("**Incomplete: the bench was still running.**")
        lines = self.recommended()
        if lines:
            parts += ["## Recommendation", "\n".join(f"- {line}" for line in lines)]
        for table in self.tables():
            parts += [f"## {table.title}", _markdown_table(table)]
        lines = self.bottlenecks()
        if lines:
            parts += ["## Bottlenecks", "\n".join(f"- {line}" for line in lines)]
        notes = self.notes()
        if notes:
            parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
        parts += ["## Method", "\n".join(f"- {line}" for line in self.method())]
        parts += ["## Machine", "\n".join(f"- {line}" for line in self.describe_machine())]
        return "\n\n".join(parts) + "\n"

    def tables(self) -> tuple[Table, ...]:
        """Return tables that fit a terminal: accuracy and cost of each candidate, and its speed.

        The GPU's table is included if a GPU was used, that of `classify` if it was measured.
        """
        tables = [self._cost_table(), *self._speed_tables()]
        if self._on_gpu:
            tables.append(self._gpu_table())
        if self.recommendation is not None:
            tables.append(
                Table(
                    title="classify: images per second, and the cost of each stage",
                    columns=(
                        "",
                        "per s",
                        "read ms",
                        "decode ms",
                        "infer ms",
                        "write ms",
                        "bottleneck",
                    ),
                    rows=self._grouped([_classify_cells(row) for row in self.rows]),
                )
            )
        return tuple(tables)

    @property
    def _on_gpu(self) -> bool:
        return any(row.peak_gpu_bytes is not None for row in self.rows)

    def _cost_table(self) -> Table:
        """Return the cost table; with GPU memory, nodes are in the GPU's table."""
        last = ("GPU MB", "load s") if self._on_gpu else ("load s", "nodes")
        return Table(
            title="Accuracy and cost",
            columns=("", "accuracy % (95%)", "agree %", "size MB", "host MB", *last),
            rows=self._grouped([_cost_cells(row, on_gpu=self._on_gpu) for row in self.rows]),
        )

    def _speed_tables(self) -> list[Table]:
        """Return one table, or two if there are too many batch sizes for a terminal."""
        sizes = self.settings.batch_sizes
        latencies = [_latency_cells(row) for row in self.rows]
        rates = [_rate_cells(row, sizes) for row in self.rows]
        times, columns = ("p50 ms", "p95 ms", "p99 ms"), tuple(f"at {n}" for n in sizes)
        if len(sizes) > MAX_SIZES_BESIDE:
            statuses = [[row.status] for row in self.rows]
            return [
                self._table("Latency of one image", (*times, "status"), latencies, statuses),
                self._table("Images per second by batch size", columns, rates),
            ]
        return [
            self._table(
                "Latency of one image, and images per second by batch size",
                (*times, *columns, "status"),
                latencies,
                rates,
                [[row.status] for row in self.rows],
            )
        ]

    def _gpu_table(self) -> Table:
        return self._table(
            "GPU: FLOP/s, and share of the peak in the same precision",
            ("nodes", "GFLOP per image", "TFLOP/s", "peak TFLOP/s", "of peak"),
            [_gpu_cells(row, self.peak_flops_per_s) for row in self.rows],
        )

    def _table(self, title: str, columns: Sequence[str], *parts: Sequence[Sequence[str]]) -> Table:
        """Return a table whose rows are joined from parts side by side."""
        cells = [[cell for part in row for cell in part] for row in zip(*parts, strict=True)]
        return Table(title=title, columns=("", *columns), rows=self._grouped(cells))

    def recommended(self) -> list[str]:
        """Return which export to use on this machine, and why, one line each."""
        if self.recommendation is None:
            return []
        lines = recommendation_lines(self.recommendation)
        best = self.recommendation.choice
        if best is not None:
            row = next(row for row in self.rows if row.name == best.name)
            assert row.classify is not None
            lines.append(f"Bottleneck of classify with it: {row.classify.bottleneck.sentence}")
        return lines

    def answer(self) -> list[str]:
        """Return the recommendation with all that limits it, one line each."""
        return answer_lines(self.recommendation)

    def bottlenecks(self) -> list[str]:
        """Return the bottleneck of `classify` with each export, one line each."""
        return [
            f"{row.name}: {row.classify.bottleneck.sentence}"
            for row in self.rows
            if row.classify is not None
        ]

    def notes(self) -> list[str]:
        """Return failures and warnings, one line each."""
        return [*self.notes_on_inputs, *self.notes_on_rows()]

    def short_notes_on_rows(self) -> list[str]:
        """Return the same, with one line in place of the warnings of more than two rows."""
        doubtful = [row for row in self.rows if row.warnings]
        if len(doubtful) <= MAX_DOUBTFUL:
            return self.notes_on_rows()
        return [
            f"the timings of {len(doubtful)} of {len(self.rows)} candidates are unstable (column "
            "status): the machine was busy or changed its clock speed; close other programs and "
            "run again, or use more --rounds; the .md file has the details",
            *(f"{row.name}: {row.reason}" for row in self.rows if row.reason),
            *int8_notes(self.rows),
        ]

    def notes_on_rows(self) -> list[str]:
        """Return the failures and warnings of the measurements, one line each."""
        lines: list[str] = []
        for row in self.rows:
            if row.reason:
                lines.append(f"{row.name}: {row.reason}")
            lines += [f"{row.name}: {warning}" for warning in row.warnings]
        return lines + int8_notes(self.rows)

    def method(self) -> list[str]:
        """Return how the figures were measured and what they mean, one line each."""
        settings = self.settings
        return [
            self.scope,
            f"Requested device: {settings.device}; threads: {settings.threads}; used: "
            + "; ".join(sorted({_placement(row) for row in self.rows if row.provider}) or ["none"])
            + ".",
            f"{counted(settings.rounds, 'round')} in rotation, each measurement "
            f"in a new process: {settings.warmup} warm-up passes, then {settings.iterations} "
            f"timed passes, fewer if they take more than {settings.max_seconds:.3g} s, but at "
            f"least {MIN_LATENCY_RUNS} with single images, {MIN_THROUGHPUT_RUNS} with larger "
            f"batches, and with the largest batch as many as {ROUND_IMAGES} images need.",
            *self._left_out_method(),
            *self._budget_method(),
            "Latency: percentiles over the samples of all rounds. Images per second: batch size "
            "divided by the median time, median over the rounds.",
            f"Accuracy: {self._num_judged()}, with the 95% Wilson interval. agree: share of "
            "images with the same label as the eager PyTorch model of the same run (rounded down). "
            "The timed passes with the largest batches are included.",
            "Host MB: peak resident memory of the process, including its runtime, over all batch "
            "sizes. Load: seconds to open the file in a new process, including the import of its "
            "runtime. 1 MB is 10^6 bytes.",
            *(self._gpu_method() if self._on_gpu else []),
            "nodes: number of the graph's nodes that the execution provider runs, as recorded by "
            "the session.",
            *(self._classify_method() if self.recommendation is not None else []),
        ]

    def describe_machine(self) -> list[str]:
        """Return facts about the machine, one line each."""
        machine = self.machine
        memory = f"{machine.memory_bytes / 2**30:.0f} GiB" if machine.memory_bytes else "unknown"
        return [
            f"CPU: {machine.cpu}, {counted(machine.cores, 'core')}",
            f"Memory: {memory}",
            f"GPU: {'; '.join(machine.gpus) or 'none'}",
            f"System: {machine.os}",
            "Versions: " + ", ".join(f"{name} {v}" for name, v in machine.versions.items()),
        ]

    def _left_out_method(self) -> list[str]:
        if not self.settings.may_leave_out:
            return []
        return [
            "A batch size is skipped if two batches of it take longer than that and would gain "
            f"less than {percent(NOISE)}, estimated from smaller batches; a larger --budget or "
            "--batch-sizes includes it."
        ]

    def _budget_method(self) -> list[str]:
        return [
            f"--budget {self.settings.budget_s:g} (seconds) is divided among the candidates: the "
            "more candidates, the less time for each step."
        ]

    def _num_judged(self) -> str:
        """Return how many images the accuracies are measured on."""
        judged = {row.score.total for row in self.rows if row.score is not None}
        wanted = self.settings.num_images
        if not judged or judged == {wanted}:
            return f"{wanted} images"
        return (
            f"{min(judged)} of the {wanted} images, in random order, the same for all candidates: "
            "as many as the slowest classified in its share of the time (a larger --budget gives "
            "it more)"
        )

    def _gpu_method(self) -> list[str]:
        peaks = ", ".join(
            f"{precision} {digits(rate / 1e12)}"
            for precision, rate in self.peak_flops_per_s.items()
        )
        return [
            "GPU MB: peak GPU memory over all batch sizes, from the driver's free memory before "
            "the model is opened and after each batch size: model, activations and the runtime's "
            "reserve, without the CUDA context. Other programs on the same GPU are included.",
            "TFLOP/s: the exported graph's convolutions and matrix products (a multiply-add counts "
            "as two operations) at the best batch size, including copies to and from the GPU. "
            "Peak: a product of two large matrices in PyTorch in the same precision, measured in "
            f"this run: {peaks or 'unknown'} TFLOP/s.",
        ]

    def _classify_method(self) -> list[str]:
        settings = self.settings
        plans = {
            f"{row.format} {row.precision}: {plan.name}, {plan.workers} "
            f"{plural(plan.workers, 'worker')}, batches of {plan.batch_size}"
            for row in self.rows
            if row.classify is not None
            for plan in [row.classify.rounds[-1].plan]
        }
        return [
            "classify: from files to CSV rows, for about "
            f"{settings.classify_seconds:.3g} s per round with the plan that classify chooses, on "
            f"up to {min(MAX_IMAGES, settings.num_images)} of the images, repeated; median over "
            f"the rounds, or the first round only if {MIN_BATCHES} batches take longer than that. "
            "The images have been read before, so they come from the system's cache, not from the "
            "disk.",
            "The rate is measured from the first rows on and excludes the start of the workers.",
            "Stages: milliseconds per image when a stage runs alone, in as many threads as the "
            "plan has (writing: one). On the CPU the stages share the cores, so their costs add "
            "up and the largest is the bottleneck; a GPU works in parallel to the cores, so the "
            "longer of its time and the sum of the others counts. Inference with a slow model is "
            "taken from its timed batches above, if they have the plan's size. If an image takes "
            f"more than {MAX_UNEXPLAINED:g} times as long as the stages explain, the bottleneck is "
            "the hand-over between the stages, or something that was not measured.",
            f"Plans: {'; '.join(sorted(plans)) or 'none'}.",
            "Recommended: among each run's exports that lose at most "
            f"{100 * MAX_ACCURACY_LOSS:.1f} points of accuracy against PyTorch and agree with at "
            f"least {percent(MIN_AGREEMENT)} of its labels, the one that classifies fastest; "
            f"within {percent(NOISE)}, the most exact one, and "
            f"{' before '.join(one.title for one in FORMATS.values())}. A format that PyTorch has "
            "deprecated is recommended only if its slowest round beats the fastest one of every "
            f"other format; a single round may be {percent(MAX_ROUND_SPREAD)} off. Among the "
            "runs, the most accurate one.",
        ]

    def _grouped(self, cells: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
        """Insert a line with the run's name above its candidates; `cells` are in row order."""
        counts = Counter((row.run, row.format, row.precision) for row in self.rows)
        lines: list[tuple[str, ...]] = []
        for run in dict.fromkeys(row.run for row in self.rows):
            lines.append((run, *[""] * len(cells[0])))
            for row, row_cells in zip(self.rows, cells, strict=True):
                if row.run == run:
                    only = counts[row.run, row.format, row.precision] == 1
                    label = f"{row.format} {row.precision}" if only else row.name
                    lines.append((f"  {label}", *row_cells))
        return tuple(lines)


def write_result(result: BenchResult, folder: Path) -> tuple[Path, Path]:
    """Write a result as JSON and as Markdown, each completely or not at all.

    The names contain the start time of the bench, so that a later bench never replaces them, and
    the complete result replaces the incomplete ones of the same bench.

    Returns:
        The paths of the JSON file and of the Markdown file.
    """
    stem = "bench-" + "".join(char for char in result.created[:19] if char.isalnum())
    json_path, markdown_path = folder / f"{stem}.json", folder / f"{stem}.md"
    write_text(json_path, result.to_json())
    write_text(markdown_path, result.to_markdown())
    return json_path, markdown_path


def _cost_cells(row: BenchRow, *, on_gpu: bool) -> list[str]:
    score = row.score
    return [
        NO_VALUE
        if score is None
        else f"{_number(score.accuracy)} ({_number(score.low)}-{_number(score.high)})",
        NO_VALUE if row.agreement is None else percent_down(row.agreement),
        digits(row.size_bytes / 1e6),
        _megabytes(row.peak_memory_bytes),
        *([_megabytes(row.peak_gpu_bytes)] if on_gpu else []),
        digits(median(row.load_s)) if row.load_s else NO_VALUE,
        *([] if on_gpu else [_nodes(row) or NO_VALUE]),
    ]


def _number(share: float) -> str:
    """Format a share for a column of percent."""
    return in_percent(share).removesuffix("%")


def _megabytes(num_bytes: int | None) -> str:
    return NO_VALUE if num_bytes is None else f"{num_bytes / 1e6:,.0f}"


def _latency_cells(row: BenchRow) -> list[str]:
    times = [] if row.latency is None else [row.latency.p50_s, row.latency.p95_s, row.latency.p99_s]
    return [digits(1000 * seconds) for seconds in times] or [NO_VALUE] * 3


def _rate_cells(row: BenchRow, batch_sizes: Sequence[int]) -> list[str]:
    rates = {timing.batch_size: digits(timing.images_per_s) for timing in row.batches}
    return [rates.get(size, NO_VALUE) for size in batch_sizes]


def _gpu_cells(row: BenchRow, peaks: Mapping[str, float]) -> list[str]:
    peak = peaks.get(row.precision)
    return [
        _nodes(row) or NO_VALUE,
        NO_VALUE if row.flops_per_image is None else digits(row.flops_per_image / 1e9),
        NO_VALUE if row.flops_per_s is None else digits(row.flops_per_s / 1e12),
        NO_VALUE if peak is None else digits(peak / 1e12),
        NO_VALUE if row.peak_share is None else in_percent(row.peak_share),
    ]


def _classify_cells(row: BenchRow) -> list[str]:
    figures = row.classify
    if figures is None:
        return [NO_VALUE] * 6
    found = figures.bottleneck
    return [
        digits(figures.images_per_s),
        *map(milliseconds, figures.costs.by_stage().values()),
        f"{found.stage} {found.share:.0%}",
    ]


def _nodes(row: BenchRow) -> str:
    """Return how many of the graph's nodes the provider runs, such as `CUDA 150/152`."""
    name = row.provider.removesuffix("ExecutionProvider")
    if not row.placement:
        return name
    return f"{name} {row.placement.get(row.provider, 0)}/{sum(row.placement.values())}"


def _placement(row: BenchRow) -> str:
    threads = ""
    if row.threads is not None:
        threads = f", {counted(row.threads, 'thread')}"
    return f"{row.format} on {row.provider}{threads} ({row.device}: {row.device_reason})"


def _markdown_table(table: Table) -> str:
    """Format a table with the first column left-aligned and the others right-aligned."""
    lines = [
        table.columns,
        ("---", *["--:"] * (len(table.columns) - 1)),
        *[(cells[0].replace("  ", "&nbsp; ", 1), *cells[1:]) for cells in table.rows],
    ]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines
    )
