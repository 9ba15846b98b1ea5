"""Measure models side by side, and say which to take: accuracy, speed, memory, size, loading."""

from tltools.bench.budget import BUDGET_S
from tltools.bench.flops import onnx_flops
from tltools.bench.gpu import uses_gpu
from tltools.bench.machine import Machine, describe_machine
from tltools.bench.records import BenchReport, Table, write_report
from tltools.bench.rows import BatchTiming, BenchRow, Recommendation
from tltools.bench.run import Candidate, run_bench
from tltools.bench.timing import Latency, Timing, measure

__all__ = [
    "BUDGET_S",
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
    "onnx_flops",
    "run_bench",
    "uses_gpu",
    "write_report",
]
