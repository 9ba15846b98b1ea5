"""What Ray costs: the two engines of `tltools classify` in turns, on a cluster of this machine.

    python benchmarks/engines.py FOLDER MODEL [--rounds 3] [--part-size N]

One line of JSON for each run, on standard output. Ray's workers get the priority that the rest has:
Ray gives them the lowest one, which on a busy machine would measure the other users.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path

from tltools.classify import Summary, run_job, run_ray_job
from tltools.progress import Bar, Silent

TOGETHER_S = 0.01
"""Rows that come within that time are of one batch."""


class Clock(Silent):
    """Progress that keeps when pictures were done."""

    def __init__(self) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()
        self._done: list[tuple[float, int]] = []

    @contextmanager
    def bar(self, description: str, total: int | None, unit: str = "pictures") -> Iterator[Bar]:
        """Keep what is reported, in batches."""
        del description, total, unit
        done = self._done

        class Kept:
            def advance(self, amount: int = 1, note: str = "") -> None:
                del note
                now = time.perf_counter()
                if done and now - done[-1][0] < TOGETHER_S:
                    amount += done.pop()[1]
                if amount:
                    done.append((now, amount))

        yield Kept()

    def result(self) -> dict[str, float]:
        """Return seconds in whole and until the first pictures, and the rate of the second half.

        By then both engines run; and what lies between doing and telling cancels out.
        """
        times = [when for when, _ in self._done]
        counts = list(accumulate(amount for _, amount in self._done))
        half = next(index for index, count in enumerate(counts) if 2 * count >= counts[-1])
        return {
            "seconds": round(time.perf_counter() - self._begun, 2),
            "first_s": round(times[0] - self._begun, 2),
            "pictures_per_s": round((counts[-1] - counts[half]) / (times[-1] - times[half]), 2),
        }


def main() -> None:
    """Run the engines in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part-size", type=int)
    options = parser.parse_args()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name
    begun = time.perf_counter()
    import ray
    import ray.data

    imported = time.perf_counter()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    started = time.perf_counter()
    print(json.dumps({"import_s": imported - begun, "start_s": started - imported}))
    engines: dict[str, Callable[..., Summary]] = {
        "local": partial(run_job, options.model, [options.folder]),
        "ray": partial(run_ray_job, options.model, [options.folder], part_size=options.part_size),
    }
    for _ in range(options.rounds):
        for name, run in engines.items():
            with tempfile.TemporaryDirectory() as folder:
                clock = Clock()
                output = Path(folder) / ("out.parquet" if name == "local" else "out")
                run(output, device="cpu", progress=clock)
                print(json.dumps({"engine": name, **clock.result()}), flush=True)


if __name__ == "__main__":
    main()
