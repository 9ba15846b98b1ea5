"""Compare models' accuracy, speed, memory, size and loading time, and recommend one."""

from tltools.bench.flops import onnx_flops
from tltools.bench.gpu import uses_gpu
from tltools.bench.inputs import BenchInputs, Candidate, bench_inputs, unmeasured_note
from tltools.bench.machine import Machine, describe_machine
from tltools.bench.records import BenchResult, Table, write_result
from tltools.bench.rows import BatchTiming, BenchRow, Recommendation
from tltools.bench.run import run_bench
from tltools.bench.settings import BenchSettings
from tltools.bench.timing import Latency, Timing, measure

__all__ = [
    "BatchTiming",
    "BenchInputs",
    "BenchResult",
    "BenchRow",
    "BenchSettings",
    "Candidate",
    "Latency",
    "Machine",
    "Recommendation",
    "Table",
    "Timing",
    "bench_inputs",
    "describe_machine",
    "measure",
    "onnx_flops",
    "run_bench",
    "unmeasured_note",
    "uses_gpu",
    "write_result",
]
