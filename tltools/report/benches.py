"""Describe a bench: the report's section about it."""

from pathlib import Path

import msgspec

from tltools.bench import BenchResult
from tltools.errors import DataError
from tltools.report.blocks import Block, Charts, Section, Table, Text, Tone
from tltools.report.charts import (
    accuracy_latency_chart,
    latency_chart,
    size_chart,
    throughput_chart,
)
from tltools.wording import minute


def read_bench(data: bytes, *, where: Path) -> BenchResult:
    """Parse a `bench-*.json`.

    Args:
        data: Contents of the file.
        where: Path of the file, for the message.

    Raises:
        DataError: If this version did not write it.
    """
    try:
        return msgspec.json.decode(data, type=BenchResult)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise DataError(
            f"{where} is not a bench result of this version: {error}; run tltools bench again"
        ) from error


def bench_section(report: BenchResult) -> Section:
    """Return the section: recommendation, charts, tables, method and machine."""
    blocks: list[Block] = [Text((f"{minute(report.created)} UTC: {report.command}",), tone="quiet")]
    if not report.complete:
        blocks.append(
            Text(("Incomplete: the bench was still running, or was stopped.",), tone="warning")
        )
    if lines := report.recommended():
        blocks.append(Text(tuple(lines), title="Recommendation"))
    blocks.append(
        Charts(
            (
                accuracy_latency_chart(report),
                latency_chart(report),
                throughput_chart(report),
                size_chart(report),
            )
        )
    )
    blocks += [
        Table(table.title, ("candidate", *table.columns[1:]), table.rows)
        for table in report.tables()
    ]
    further: tuple[tuple[str, list[str], Tone], ...] = (
        ("Bottlenecks", report.bottlenecks(), "plain"),
        ("Notes", report.notes(), "warning"),
        ("Method", report.method(), "quiet"),
        ("Machine", report.describe_machine(), "quiet"),
    )
    blocks += [
        Text(tuple(lines), title=title, tone=tone) for title, lines, tone in further if lines
    ]
    return Section("Benchmark", blocks)
