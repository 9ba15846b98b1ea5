"""What a bench found: rows with every sample, tables for people, files for programs."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from tltools.atomic import write_text
from tltools.bench.machine import Machine
from tltools.bench.timing import Latency
from tltools.card import Precision, Score

SCOPE = (
    "Times are of the model alone: a batch of decoded pictures in memory in, logits in memory out. "
    "Reading and decoding files is not part of them."
)
NO_VALUE = "-"

BenchFormat = Literal["eager", "torchscript", "onnx"]
Status = Literal["ok", "unstable", "failed"]


@dataclass(frozen=True, kw_only=True)
class BatchTiming:
    """Forward passes with batches of one size."""

    batch_size: int
    rounds_s: tuple[tuple[float, ...], ...]
    """Every sample of each round, in seconds for one batch."""
    pictures_per_s: float
    """Median over the rounds of `batch_size` by the round's median."""
    round_spread: float
    """By how much the slowest round's median exceeds the fastest's, as a share of it."""
    num_outliers: int


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One candidate's results. Where it failed, what is unknown is None or empty."""

    name: str
    run: str
    format: BenchFormat
    precision: Precision
    path: str
    status: Status
    reason: str
    """Of a failure: the stage and the error, in one line. Else empty."""
    warnings: tuple[str, ...]
    """What makes the figures doubtful and what to do about it, a line each."""
    score: Score | None
    agreement: float | None
    """Share of pictures with the label that the run's eager model gives, in [0, 1]; None for it."""
    max_abs_logit_diff: float | None
    """Largest difference from the run's eager model; None for itself."""
    load_s: tuple[float, ...]
    """Per round: opening the file in a new process, the import of its runtime included."""
    latency: Latency | None
    """Of single pictures, over the samples of all rounds."""
    batches: tuple[BatchTiming, ...]
    size_bytes: int
    """Of the export; for eager, of the checkpoint."""
    peak_memory_bytes: int | None
    """Main memory of the process at most, its runtime included, before accuracy is measured."""
    device: str
    device_reason: str
    provider: str
    """What really runs it: onnxruntime's execution provider, or `torch`."""
    placement: dict[str, int]
    """Number of the graph's nodes by provider, as onnxruntime recorded it; else empty."""
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was asked for."""

    device: str
    threads: int
    batch_sizes: tuple[int, ...]
    rounds: int
    runs: int
    warmup: int
    max_seconds: float
    num_pictures: int


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table for people."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All rows, and what is needed to judge and repeat them."""

    version: int = 1
    created: str
    """UTC, ISO 8601."""
    command: str
    complete: bool
    """False in the reports written while the bench goes on."""
    scope: str = SCOPE
    settings: Settings
    machine: Machine
    rows: tuple[BenchRow, ...]

    def to_json(self) -> str:
        """Return everything, samples included; what is unknown is null."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"

    def to_markdown(self) -> str:
        """Return the page for people: tables, notes, method and machine."""
        parts = ["# Benchmark", f"{self.created}: `{self.command}`"]
        if not self.complete:
            parts.append("**Not complete: the bench was still running.**")
        for table in self.tables():
            parts += [f"## {table.title}", _markdown_table(table)]
        notes = self.notes()
        if notes:
            parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
        parts += ["## Method", "\n".join(f"- {line}" for line in self.method())]
        parts += ["## Machine", "\n".join(f"- {line}" for line in self.describe_machine())]
        return "\n\n".join(parts) + "\n"

    def tables(self) -> tuple[Table, Table]:
        """Return what fits a terminal: what each candidate gives and costs, and its speed."""
        sizes = self.settings.batch_sizes
        return (
            Table(
                title="Accuracy and cost",
                columns=("", "accuracy % (95 %)", "agree %", "size MB", "peak MB", "load s"),
                rows=self._grouped([_cost_cells(row) for row in self.rows]),
            ),
            Table(
                title="Latency of one picture, and pictures per second by batch size",
                columns=("", "p50 ms", "p95 ms", "p99 ms", *[f"at {n}" for n in sizes], "status"),
                rows=self._grouped([_speed_cells(row, sizes) for row in self.rows]),
            ),
        )

    def notes(self) -> list[str]:
        """Return failures and warnings, a line each."""
        lines: list[str] = []
        for row in self.rows:
            if row.reason:
                lines.append(f"{row.name}: {row.reason}")
            lines += [f"{row.name}: {warning}" for warning in row.warnings]
        return lines

    def method(self) -> list[str]:
        """Return how the figures came about and what they mean, a line each."""
        settings = self.settings
        return [
            self.scope,
            f"Device asked for: {settings.device}; threads: {settings.threads}; used: "
            + "; ".join(sorted({_placement(row) for row in self.rows if row.provider}) or ["none"])
            + ".",
            f"{settings.rounds} rounds in rotation, each measurement in a new process: "
            f"{settings.warmup} runs of warm-up, then {settings.runs} timed runs, fewer where "
            f"they take more than {settings.max_seconds:g} s.",
            "Latency: percentiles over the samples of all rounds. Pictures per second: batch size "
            "by the median time, median of the rounds.",
            f"Accuracy: {settings.num_pictures} pictures, with the 95 % Wilson interval. agree: "
            "the same label as the eager PyTorch model of the same run (rounded down).",
            "Peak: the largest resident memory of the process, runtime included, over all batch "
            "sizes. Load: opening the file in a new process, the import of its runtime included. "
            "MB are 10^6 bytes.",
        ]

    def describe_machine(self) -> list[str]:
        """Return the machine, a line for each fact."""
        machine = self.machine
        memory = f"{machine.memory_bytes / 2**30:.0f} GiB" if machine.memory_bytes else "unknown"
        return [
            f"CPU: {machine.cpu}, {machine.cores} cores",
            f"Memory: {memory}",
            f"GPU: {'; '.join(machine.gpus) or 'none'}",
            f"System: {machine.os}",
            "Versions: " + ", ".join(f"{name} {v}" for name, v in machine.versions.items()),
        ]

    def _grouped(self, cells: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
        """Put a line with the run's name above its candidates; `cells` are in the rows' order."""
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


def write_report(report: BenchReport, folder: Path) -> tuple[Path, Path]:
    """Write the report as JSON and as Markdown, each completely or not at all.

    The names carry the moment the bench began, so that a later bench never replaces them and the
    reports of one bench, complete or not, replace each other.

    Returns:
        The paths of the JSON file and of the Markdown file.
    """
    stem = "bench-" + "".join(char for char in report.created[:19] if char.isalnum())
    json_path, markdown_path = folder / f"{stem}.json", folder / f"{stem}.md"
    write_text(json_path, report.to_json())
    write_text(markdown_path, report.to_markdown())
    return json_path, markdown_path


def _cost_cells(row: BenchRow) -> list[str]:
    score = row.score
    return [
        NO_VALUE
        if score is None
        else f"{100 * score.accuracy:.1f} ({100 * score.low:.1f}-{100 * score.high:.1f})",
        # Rounded down: 99.96 % must not read as full agreement.
        NO_VALUE if row.agreement is None else f"{math.floor(1000 * row.agreement) / 10:.1f}",
        _digits(row.size_bytes / 1e6),
        NO_VALUE if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:,.0f}",
        _digits(median(row.load_s)) if row.load_s else NO_VALUE,
    ]


def _speed_cells(row: BenchRow, batch_sizes: Sequence[int]) -> list[str]:
    times = [] if row.latency is None else [row.latency.p50_s, row.latency.p95_s, row.latency.p99_s]
    rates = {timing.batch_size: _digits(timing.pictures_per_s) for timing in row.batches}
    return [
        *([_digits(1000 * seconds) for seconds in times] or [NO_VALUE] * 3),
        *[rates.get(size, NO_VALUE) for size in batch_sizes],
        row.status,
    ]


def _placement(row: BenchRow) -> str:
    threads = "" if row.threads is None else f", {row.threads} threads"
    return f"{row.format} on {row.provider}{threads} ({row.device}: {row.device_reason})"


def _digits(value: float) -> str:
    """Write a positive number with three digits, or with all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _markdown_table(table: Table) -> str:
    """Write a table with its first column to the left and the others to the right."""
    lines = [
        table.columns,
        ("---", *["--:"] * (len(table.columns) - 1)),
        *[(cells[0].replace("  ", "&nbsp; ", 1), *cells[1:]) for cells in table.rows],
    ]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines
    )
