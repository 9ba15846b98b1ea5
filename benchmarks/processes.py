"""Measure whole processes of the command line: memory, time to the first row, start-up.

`stability` also compares the results of different settings.
"""

import csv
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tltools.classify import classify, list_images, open_model

SETTINGS = ((1, 1), (1, 8), (2, 1), (2, 32), (3, 7), (4, 64))
"""Workers and batch sizes whose results are compared with those of the first pair."""


def peak_memory(
    *, export: str, folder: str, output: str, words: Sequence[str] = ()
) -> dict[str, int]:
    """Run `tltools classify` and return the peak memory of its largest process.

    The figure is the system's for children that have ended. It includes the moment before a child
    becomes another program, so it is only valid above this process's own peak.
    """
    _classify(folder, export, output, *words)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024  # else it is KiB
    own = own_peak_bytes()
    if peak_bytes <= own:
        raise RuntimeError(f"this process's peak of {own} bytes hides its child's {peak_bytes}")
    return {"peak_bytes": peak_bytes}


def own_peak_bytes() -> int:
    """Return the peak memory of this process so far."""
    status = Path("/proc/self/status")
    # On Linux `ru_maxrss` is at least that of the parent process.
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="utf-8"), re.M)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def whole_job(
    *, export: str, folder: str, output: str, workers: int, part_size: int
) -> dict[str, float]:
    """Time `tltools classify` from start to end, on Ray if `part_size` is not 0.

    Returns:
        `seconds`; `output_bytes`, of the file or all parts; `peak_bytes` as in `peak_memory`, but
        not on Ray, whose workers are not children of this process.
    """
    words = ["--workers", str(workers)]
    if part_size:
        words += ["--engine", "ray", "--part-size", str(part_size)]
        # Otherwise Ray gives its workers the lowest priority.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name
    peak: dict[str, float] = {}
    start = time.perf_counter()
    if part_size:
        _classify(folder, export, output, *words)
    else:
        peak |= peak_memory(export=export, folder=folder, output=output, words=words)
    seconds = time.perf_counter() - start
    path = Path(output)
    files = path.glob("part-*") if path.is_dir() else [path]
    return {"seconds": seconds, "output_bytes": sum(file.stat().st_size for file in files)} | peak


def job_cpu(*, export: str, folder: str, workers: int) -> dict[str, float]:
    """Run a job in this process; return the CPU time of this process alone.

    Returns:
        `cpu_s`: user and system time since the process started, in seconds, without its children.
    """
    from tltools.classify import Job, run_job

    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "predictions.csv"
        summary = run_job(Job(Path(export), [Path(folder)], output, device="cpu", workers=workers))
    if summary.num_failed:
        raise RuntimeError(f"{summary.num_failed} images failed")
    used = resource.getrusage(resource.RUSAGE_SELF)  # its children are not in it
    return {"cpu_s": used.ru_utime + used.ru_stime}


def list_names(*, folder: str) -> dict[str, float]:
    """List a folder's images and do nothing else.

    Returns:
        `num_names`; `seconds`; `bytes`: growth of the process's peak memory.
    """
    before = own_peak_bytes()
    start = time.perf_counter()
    num_names = sum(1 for _ in list_images([Path(folder)]))
    seconds = time.perf_counter() - start
    return {"num_names": num_names, "seconds": seconds, "bytes": own_peak_bytes() - before}


def stages(*, export: str, folder: str, seconds: float) -> dict[str, float]:
    """Measure what each stage of `classify` costs, like `tltools bench`."""
    from tltools.bench.stages import measure_classify

    images = sorted(Path(folder).iterdir())
    found = measure_classify(
        open_model, Path(export), images, device="cpu", seconds=seconds, enter=lambda _name: None
    )
    return asdict(found.costs)


def first_row(*, export: str, folder: str) -> dict[str, float]:
    """Time `tltools classify FOLDER --output -` from its start to the first row, then stop it."""
    command = [*tltools(), "classify", folder, "--model", export, "--output", "-"]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        header, row = process.stdout.readline(), process.stdout.readline()
        seconds = time.perf_counter() - start
        process.terminate()  # it passes the signal on to its worker processes
    if not row:
        raise RuntimeError(f"no row, only {header!r}")
    return {"seconds": seconds}


def start_up(*, export: str, image: str, runs: int) -> dict[str, Any]:
    """Time whole processes that classify one image, after an untimed one.

    Returns:
        `seconds`, and `imports`: seconds of the modules' own time by package, largest first.
    """
    command = [*tltools(), "classify", image, "--model", export, "--output", "-"]
    seconds: list[float] = []
    printed = ""
    for _ in range(runs + 1):
        start = time.perf_counter()
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - start)
    rows = list(csv.DictReader(printed.splitlines()))
    if len(rows) != 1 or not rows[0]["label"]:
        raise RuntimeError(f"no label in {printed!r}")
    traced = [sys.executable, "-X", "importtime", "-m", "tltools", *command[len(tltools()) :]]
    lines = subprocess.run(traced, capture_output=True, text=True, check=True).stderr
    return {"seconds": seconds[1:], "imports": import_times(lines)}


def import_times(lines: str) -> list[tuple[str, float]]:
    """Sum the output of `python -X importtime` by package, in seconds, largest first."""
    totals: Counter[str] = Counter()
    for own_us, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", lines, re.M):
        package = name.partition(".")[0]
        totals["Python's own" if package in sys.stdlib_module_names else package] += int(own_us)
    return [(name, total / 1e6) for name, total in totals.most_common()]


def stability(*, export: str, folder: str) -> dict[str, Any]:
    """Classify a folder with several settings, and compare labels and probabilities.

    `open_model` makes the plan for each setting.
    """
    found: list[tuple[list[str | None], Any]] = []
    for workers, batch_size in SETTINGS:
        predictor, plan = open_model(Path(export), workers=workers, batch_size=batch_size)
        predictions = list(classify(predictor, list_images([Path(folder)]), plan=plan))
        labels = [prediction.label for prediction in predictions]
        found.append((labels, np.array([prediction.probabilities for prediction in predictions])))
    labels, probs = found[0]
    return {
        "num_images": len(labels),
        "num_settings": len(found),
        "same_labels": all(other == labels for other, _ in found),
        "max_diff": max(float(np.abs(other - probs).max()) for _, other in found),
    }


def _classify(folder: str, export: str, output: str, *words: str) -> None:
    """Run the command; if it fails, raise its own message."""
    command = [*tltools(), "classify", folder, "--model", export, "--output", output, *words]
    result = subprocess.run(
        [*command, "--overwrite"], check=False, capture_output=True, text=True, errors="replace"
    )
    if result.returncode:
        raise RuntimeError(result.stderr.strip() or f"it ended with {result.returncode}")


def tltools() -> list[str]:
    """Return the command that starts tltools in this environment."""
    script = Path(sys.executable).with_name("tltools")
    return [os.fspath(script)] if script.exists() else [sys.executable, "-m", "tltools"]
