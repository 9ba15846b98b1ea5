"""Measure `tltools classify` and decoding alone on 1, 2, 4, 8 and 16 cores."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import image_files
from asking import Asker, MeasurementError, classify_command, only_cores, spread_cores

COUNTS = (1, 2, 4, 8, 16)


def core_counts(limit: int | None = None) -> list[int]:
    """Return the counts of `COUNTS` that this process may use."""
    allowed = limit or len(spread_cores())
    return [count for count in COUNTS if count <= allowed]


def over_cores(
    asker: Asker,
    export: Path,
    sources: Sequence[Path],
    *,
    counts: Sequence[int],
    images_per_core: int,
    seconds: float,
    timeout_s: float,
) -> Iterator[dict[str, Any]]:
    """Measure on each number of cores: the command on the CPU, then decoding in as many processes.

    Args:
        asker: Starts the processes, which inherit the cores of this one.
        export: Export of a model so fast that decoding matters.
        sources: JPEGs on the file system of the asker's folder; they are hard-linked.
        counts: Numbers of cores.
        images_per_core: Images per core, so that all jobs take about equally long.
        seconds: Duration of decoding alone, in seconds.
        timeout_s: Time limit of each measurement, in seconds.

    Yields:
        `cores`, `classify_per_s` and `decoding_per_s` in images per second, None where `failure`
        says why.
    """
    for count in counts:
        folder = asker.work / f"cores-{count}"
        if not folder.exists():
            image_files.links(sources, folder, images_per_core * count)
        yield _on_cores(asker, export, folder, count, seconds=seconds, timeout_s=timeout_s)


def _on_cores(
    asker: Asker, export: Path, folder: Path, count: int, *, seconds: float, timeout_s: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"cores": count, "classify_per_s": None, "decoding_per_s": None}
    row["failure"] = ""
    try:
        with only_cores(count) as used:
            row["cpus"] = used
            answer = classify_command(
                asker, folder, export, asker.work / "cores.csv", device="cpu", timeout_s=timeout_s
            )
            row |= {"classify_per_s": answer["images_per_s"], "wall_s": answer["wall_s"]}
            row["plan"] = answer["plan"]
            if seconds:
                request = {"export": str(export), "folder": str(folder), "seconds": seconds}
                rows, failure = asker.ask_rows(
                    "decoding", timeout_s=timeout_s, processes=[count], **request
                )
                row["failure"] = failure or rows[0]["failure"]
                row["decoding_per_s"] = rows[0]["images_per_s"] if rows else None
    except MeasurementError as error:
        row["failure"] = str(error)
    return row


def efficiency(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], what: str) -> float:
    """Return a rate as a multiple of one core's rate; NaN if either is missing."""
    one = next((other[what] for other in rows if other["cores"] == 1), None)
    return row[what] / one if one and row[what] else float("nan")


def core_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the table's columns and rows, as text."""
    columns = ["cores", "classify, images/s", "times one core", "efficiency"]
    columns += ["decoding alone, images/s", "times one core"]
    table: list[list[str]] = []
    for row in rows:
        if row["classify_per_s"] is None:
            table.append([f"{row['cores']}", f"failed: {row['failure']}", "", "", "", ""])
            continue
        factor = efficiency(rows, row, "classify_per_s")
        decoding = row["decoding_per_s"]
        table.append(
            [
                f"{row['cores']}",
                f"{row['classify_per_s']:,.0f}",
                f"{factor:.2f}",
                f"{factor / row['cores']:.0%}",
                f"{decoding:,.0f}" if decoding else row["failure"],
                f"{efficiency(rows, row, 'decoding_per_s'):.2f}" if decoding else "",
            ]
        )
    return columns, table
