"""Measure models side by side, and say which to take: accuracy, speed, memory, size, loading."""

from tltools.bench.machine import Machine, describe_machine
from tltools.bench.records import BenchReport, Table, write_report
from tltools.bench.rows import BatchTiming, BenchRow, Recommendation
from tltools.bench.run import Candidate, run_bench
from tltools.bench.timing import Latency, Timing, measure

__all__ = [
    "BatchTiming",
    "BenchReport",
    "BenchRow",
    "Candidate",
    "Latency",
    "Machine",
    "Recommendation",
    "Table",
    "Timing",
    "describe_machine",
    "measure",
    "run_bench",
    "write_report",
]
