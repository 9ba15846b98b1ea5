"""What Ray costs: the two engines of `tltools classify` in turns, on a cluster of this machine.

    python benchmarks/engines.py FOLDER MODEL [--rounds 3] [--part-size 64]

One line of JSON for each run, on standard output: seconds in whole; seconds until the first part is
done; and the rate from then on, by the times of the parts' files, since what Ray tells comes late.
Ray's workers get the priority that the rest has: Ray gives them the lowest one, which on a busy
machine would measure the other users.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tltools.classify import Job, Summary, run_job
from tltools.progress import Bar, Silent
from tltools.ray.engine import run_ray_job
from tltools.ray.job import RayJob


class Clock(Silent):
    """Progress that keeps when every so many pictures were done, as seconds since the epoch."""

    def __init__(self, part_size: int) -> None:
        """Count from nothing."""
        self.times: list[float] = []
        self._part_size = part_size
        self._num_done = 0

    @contextmanager
    def bar(self, description: str, total: int | None, unit: str = "pictures") -> Iterator[Bar]:
        """Count what is reported."""
        del description, total, unit
        clock = self

        class Counter:
            def advance(self, amount: int = 1, note: str = "") -> None:
                del note
                clock._num_done += amount
                if clock._num_done >= clock._part_size * (len(clock.times) + 1):
                    clock.times.append(time.time())

        yield Counter()


def main() -> None:
    """Run the engines in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part-size", type=int, default=64)
    options = parser.parse_args()
    size: int = options.part_size
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name
    begun = time.perf_counter()
    import ray
    import ray.data

    imported = time.perf_counter()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    started = time.perf_counter()
    print(json.dumps({"import_s": imported - begun, "start_s": started - imported}), flush=True)
    job = partial(Job, options.model, [options.folder], device="cpu")
    ray_job = partial(RayJob, options.model, [options.folder], device="cpu", part_size=size)
    engines: dict[str, Callable[[Path, Clock], Summary]] = {
        "local": lambda output, clock: run_job(job(output), progress=clock),
        "ray": lambda output, clock: run_ray_job(ray_job(output), progress=clock),
    }
    for _ in range(options.rounds):
        for name, run in engines.items():
            with tempfile.TemporaryDirectory() as folder:
                clock, begun = Clock(size), time.time()
                output = Path(folder) / ("out.parquet" if name == "local" else "out")
                run(output, clock)
                row = {"engine": name, "seconds": round(time.time() - begun, 2)}
                times = clock.times
                if output.is_dir():
                    parts = sorted(output.glob("part-*"))
                    times = sorted(part.stat().st_mtime for part in parts)[: len(times)]
            row["first_s"] = round(times[0] - begun, 2)
            row["pictures_per_s"] = round(size * (len(times) - 1) / (times[-1] - times[0]), 2)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
