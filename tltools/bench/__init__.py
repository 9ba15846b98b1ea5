"""Measure models side by side: accuracy, latency, throughput, memory, size and loading."""

from tltools.bench.machine import Machine, describe_machine
from tltools.bench.records import BatchTiming, BenchReport, BenchRow, Table, write_report
from tltools.bench.run import Candidate, run_bench
from tltools.bench.timing import Latency, Timing, measure

__all__ = [
    "BatchTiming",
    "BenchReport",
    "BenchRow",
    "Candidate",
    "Latency",
    "Machine",
    "Table",
    "Timing",
    "describe_machine",
    "measure",
    "run_bench",
    "write_report",
]
