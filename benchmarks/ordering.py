"""Measure the CPU time per image of the process that orders and writes the rows.

    python benchmarks/ordering.py --model EXPORT --images FOLDER [--max-us 15]

It compares the user and system time of the main process of `tltools classify`, without its
workers, for two jobs that differ by 4,500 images; the difference excludes start-up. Images are
hard-linked as often as needed. Prints microseconds per image; exits with code 1 above `--max-us`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import image_files
from asking import Asker, say

SIZES = (1500, 6000)
"""Images of the two jobs: both large enough for all workers to be started."""
TIMEOUT_S = 1800


def ordering_us(
    model: Path,
    images: Path,
    *,
    sizes: Sequence[int] = SIZES,
    workers: int,
    rounds: int,
    work: Path,
) -> list[float]:
    """Return the ordering process's CPU time per image in each round, in microseconds.

    Args:
        model: An export.
        images: A folder of JPEGs.
        sizes: Images of the two jobs, the smaller first.
        workers: `--workers` of the jobs.
        rounds: How often both jobs run, in turn.
        work: A folder for copies of the images and links to them.

    Raises:
        MeasurementError: If a job or one of its images fails.
    """
    found_there = image_files.find_jpegs(images)
    copied = image_files.copies(found_there, work / "copied", min(len(found_there), sizes[1]))
    sources = image_files.find_jpegs(copied)
    folders = [image_files.links(sources, work / f"images-{size}", size) for size in sizes]
    asker = Asker(work)
    request = {"export": str(model.resolve()), "workers": workers, "timeout_s": TIMEOUT_S}
    found: list[float] = []
    for _ in range(rounds):
        small_s, large_s = (
            asker.ask("job_cpu", folder=str(folder.resolve()), **request)["cpu_s"]
            for folder in folders
        )
        found.append((large_s - small_s) / (sizes[1] - sizes[0]) * 1e6)
        say(f"ordering: {found[-1]:.1f} us per image ({small_s:.2f} s and {large_s:.2f} s of CPU)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 above the limit."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="an export")
    add("--images", type=Path, required=True, help="a folder of JPEGs")
    add("--max-us", type=float, help="the exit code is 1 if the median is above it")
    add("--workers", type=int, default=2, help="workers of the jobs (default: 2)")
    add("--rounds", type=int, default=3, help="how often both jobs are run (default: 3)")
    sizes_help = f"images of the two jobs (default: {SIZES[0]} {SIZES[1]})"
    add("--sizes", type=int, nargs=2, default=SIZES, help=sizes_help)
    add("--work", type=Path, help="parent of the folder for the linked images")
    add("--json", action="store_true", help="print the rounds as JSON, too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="tltools-ordering-") as work:
        found = ordering_us(
            options.model,
            options.images,
            sizes=options.sizes,
            workers=options.workers,
            rounds=options.rounds,
            work=Path(work),
        )
    if options.json:
        print(json.dumps({"us_per_image": found, "sizes": options.sizes}))
    value = median(found)
    print(f"{value:.1f} us of CPU per image ({min(found):.1f} to {max(found):.1f})")
    return int(options.max_us is not None and value > options.max_us)


if __name__ == "__main__":
    sys.exit(main())
