"""What a report says of a bench."""

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


def read_bench(data: bytes, *, where: Path) -> BenchResult:
    """Read the text of a `bench-*.json`.

    Raises:
        DataError: If it is none that this version reads.
    """
    try:
        return msgspec.json.decode(data, type=BenchResult)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise DataError(
            f"{where} is not a report of this version's tltools bench: {error}; run it again"
        ) from error


def bench_section(report: BenchResult) -> Section:
    """Say what a bench found: what to take, the charts, the tables, how and where."""
    blocks: list[Block] = [Text((f"{report.created}: {report.command}",), tone="quiet")]
    if not report.complete:
        blocks.append(
            Text(("Not complete: the bench was still running, or was stopped.",), tone="warning")
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
