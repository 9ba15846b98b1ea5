"""Run measurements in separate processes, with a time limit and on chosen cores.

A measurement that exceeds its time limit is killed with all its children; the rows that it has
written are kept.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "ORT_DISABLE_TELEMETRY": "1",
}
"""Nothing is downloaded, installed or reported while measuring."""
CPUS = Path("/sys/devices/system/cpu")
TIMEOUT_S = 3600.0


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a measuring process: this one's, offline, with this checkout."""
    paths = (str(HERE.parent), os.environ.get("PYTHONPATH", ""))
    found = dict(os.environ) | OFFLINE | more
    found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return found


class MeasurementError(Exception):
    """A measurement failed; the message says why."""


@dataclass(frozen=True)
class Asker:
    """How measuring processes are started."""

    work: Path
    """Working folder of the processes, for their answers and logs."""
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=environment)
    under: Sequence[str] = ()
    """A command that starts the interpreter, such as `taskset -c 0`."""

    def ask(self, task: str, *, timeout_s: float = TIMEOUT_S, **request: Any) -> Any:
        """Run one task of worker.py in a new process, and return its result.

        Raises:
            MeasurementError: If it fails, or exceeds the time limit.
        """
        answer, _rows = self._run(task, timeout_s, request)
        if "failure" in answer:
            raise MeasurementError(answer["failure"])
        return answer["result"]

    def ask_rows(
        self, task: str, *, timeout_s: float = TIMEOUT_S, **request: Any
    ) -> tuple[list[dict[str, Any]], str]:
        """Run a task that yields rows; keep the rows even if it fails.

        Returns:
            The rows, and the reason why the task failed; empty if it did not.
        """
        answer, rows = self._run(task, timeout_s, request)
        return rows, answer.get("failure", "")

    def _run(
        self, task: str, timeout_s: float, request: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        answer_file, rows_file = self.work / "answer.json", self.work / "answer.rows"
        for path in (answer_file, rows_file):
            path.unlink(missing_ok=True)
        log = self.work / "worker.log"
        text = json.dumps({"task": task} | dict(request))
        command = [*self.under, self.python, str(HERE / "worker.py"), text, str(answer_file)]
        with log.open("w", encoding="utf-8") as file:
            code = run_limited(
                command, timeout_s, env=self.environment, cwd=self.work, stdout=file, stderr=file
            )
        rows: list[dict[str, Any]] = []
        if rows_file.exists():
            lines = rows_file.read_text(encoding="utf-8").splitlines(keepends=True)
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
        if answer_file.exists():
            return json.loads(answer_file.read_text(encoding="utf-8")), rows
        if code is None:
            return {"failure": f"it took longer than {timeout_s:.0f} s and was ended"}, rows
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        return {"failure": f"its process ended with {code}: {last[:200]}"}, rows


def run_limited(command: Sequence[str], timeout_s: float, **options: Any) -> int | None:
    """Run a command; kill it and all its children when the time is up.

    Args:
        command: The program and its arguments.
        timeout_s: Time limit, in seconds.
        options: As for `subprocess.Popen`.

    Returns:
        The exit status; None if the time was up.
    """
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process.pid)


def end_group(group: int) -> None:
    """Kill the processes of a group, if any are left."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def classify_command(
    asker: Asker,
    folder: Path,
    export: Path,
    output: Path,
    *,
    device: str,
    words: Sequence[str] = (),
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Run the real `tltools classify` and return its summary.

    Returns:
        `images_per_s`, from the first image to the finished file, from the command's JSON;
        `wall_s`, of the whole process; `num_images`, `num_failed`, and the `plan`.

    Raises:
        MeasurementError: If it fails, exceeds the time limit, or cannot read an image.
    """
    command = [*asker.under, asker.python, "-m", "tltools", "classify", str(folder)]
    command += ["--model", str(export), "--device", device, "-o", str(output), "--overwrite"]
    log, answer = asker.work / "classify.log", asker.work / "classify.json"
    begun = time.perf_counter()
    with answer.open("w", encoding="utf-8") as stdout, log.open("w", encoding="utf-8") as stderr:
        code = run_limited(
            [*command, *words, "--json"],
            timeout_s,
            env=asker.environment,
            cwd=asker.work,
            stdout=stdout,
            stderr=stderr,
        )
    wall_s = time.perf_counter() - begun
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        reason = f"ended with {code}" if code is not None else f"took longer than {timeout_s:.0f} s"
        raise MeasurementError(f"tltools classify {reason}: {lines[-1][:300]}")
    summary = read_summary(json.loads(answer.read_text(encoding="utf-8"))) | {"wall_s": wall_s}
    if summary["num_failed"]:
        raise MeasurementError(f"tltools classify could not read {summary['num_failed']} images")
    return summary


def read_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the benchmarks' figures from the JSON of `tltools classify`.

    Raises:
        MeasurementError: If a figure is missing.
    """
    for key in ("images_per_s", "num_images"):
        if key not in summary:
            raise MeasurementError(f"the JSON of tltools classify lacks {key}")
    return {
        "images_per_s": float(summary["images_per_s"]),
        "num_images": int(summary["num_images"]),
        "num_failed": int(summary["num_failed"]),
        "plan": summary.get("plan"),
        "layout": summary.get("layout"),
        "tf32": summary.get("tf32"),
        "seconds": summary.get("seconds"),
    }


def spread_cores() -> list[int]:
    """Return the cores that this process may use, one thread of each physical core first.

    Raises:
        MeasurementError: If the system does not let a process choose its cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise MeasurementError("this system does not let a process choose its cores")

    def rank(cpu: int) -> tuple[int, int]:
        try:
            text = (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
        except OSError:
            return 0, cpu
        return _numbers(text).index(cpu), cpu

    return sorted(os.sched_getaffinity(0), key=rank)


def _numbers(text: str) -> list[int]:
    """Read the kernel's lists of processors: `0,8` or `0-3`."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@contextmanager
def only_cores(count: int) -> Iterator[list[int]]:
    """Restrict this process, and its children, to the given number of cores.

    Raises:
        MeasurementError: If fewer cores are allowed.
    """
    cores = spread_cores()
    if count > len(cores):
        raise MeasurementError(f"{count} cores asked for, {len(cores)} allowed here")
    os.sched_setaffinity(0, cores[:count])
    try:
        yield cores[:count]
    finally:
        os.sched_setaffinity(0, cores)


def say(line: str) -> None:
    """Print a line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)
