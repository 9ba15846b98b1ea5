"""Estimate how jobs scale: fit a cost model to measured folders, project 10^8 and 10^9 images.

The input is the JSON of `run.py --only scaling`. `python benchmarks/scaling.py RESULTS.json`
rewrites the page without measuring.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pages import section, with_results

PAGE = Path(__file__).with_name("SCALING.md")
TARGETS = (10**8, 10**9)
DEADLINE_H = 8.0
"""One night, in hours; with more hours, fewer machines do the work for the same money."""
JOB_CORES = 2
"""Cores of one job, as measured; a machine runs as many jobs as its cores allow."""
TAR_IMAGES = 1000
TAR_RANGE = 2**20
"""Bytes of a tar that `classify` reads with one GET."""
LIST_NAMES = 1000
"""Names in one answer of S3."""
RAY_PART = 4096
"""Images per part, the default for fast models."""

INSTANCE = "c7a.8xlarge"
INSTANCE_CORES = 32
INSTANCE_BYTES = 64 * 2**30
INSTANCE_BITS_PER_S = 12.5e9
INSTANCE_USD_H = 1.64224
GET_USD = 0.0004 / 1000
LIST_USD = 0.005 / 1000
STORAGE_USD_GB = 0.023
PREFIX_GETS_PER_S = 5500
LATENCY_S = 0.03
"""Latency of a GET of a small object, in seconds: "tens of milliseconds"."""

ASSUMPTIONS = (
    (
        f"{INSTANCE}, us-east-1, on demand, Linux: ${INSTANCE_USD_H} an hour",
        "AWS's price list of 2026-01-19, as kept in karpenter-provider-aws, "
        "`pkg/providers/pricing/zz_generated.pricing_aws.go` (commit 031e72b)",
    ),
    (
        f"{INSTANCE_CORES} vCPUs, each a whole core of a 4th generation EPYC, "
        f"{INSTANCE_BYTES // 2**30} GiB",
        "AWS's guides to compute-optimized instances and CPU options (C7a has one thread a core)",
    ),
    (
        "one of its cores does what one core here does",
        "the machine that was measured names itself AMD EPYC, family 25, model 17 and has AVX-512 "
        "with bf16: the same generation. Whether its cores are whole ones or threads is not "
        "visible; if they are threads, the instance is faster than this page says. Clock, "
        "neighbors and memory bandwidth with all 32 cores at work are **not measured**",
    ),
    (
        f"{INSTANCE_CORES // JOB_CORES} jobs of {JOB_CORES} cores side by side, none waiting for "
        "another",
        "what was measured is one such job; one process on 32 cores was not",
    ),
    (
        "images cost what those here cost, and are read as fast as from the page cache",
        "for others multiply network and storage by their bytes, and decoding by their pixels; "
        "the CPU's work for requests is **not in it**: s3fs took 2.5 ms for each object when 398 "
        "images of 119 kB were read from a server on loopback, so that objects of their own "
        "multiply the small model's compute",
    ),
    (
        "S3 Standard: GET $0.0004, LIST and PUT $0.005 for 1,000, $0.023 per GB and month; no "
        "price for transfer to machines of the same region",
        "c3x.dev/blog/s3-request-fees-explained and devnotes.tech on S3's prices, stored copies "
        "without a date: **check at aws.amazon.com/s3/pricing**. Above 50 TB storage costs less",
    ),
    (
        f"{PREFIX_GETS_PER_S:,} GETs a second for each partitioned prefix, "
        f"{LATENCY_S * 1e3:.0f} ms for a small GET",
        'S3 User Guide, "Optimizing performance": at least 5,500; the whitepaper of June 2019 '
        'says "tens of milliseconds" below 512 KB, of which 30 is our choice',
    ),
    (
        f"{INSTANCE_BITS_PER_S / 1e9:g} Gbit/s for the instance",
        "AWS's instance table as remembered, without a dated source: **to be checked**",
    ),
)


@dataclass(frozen=True)
class Cost:
    """Costs of one kind of job, in seconds on the measured machine."""

    fixed_s: float
    """Per job: start-up, opening the model and, with Ray, starting the cluster."""
    part_s: float
    """Per part that Ray writes; 0 without Ray."""
    image_s: float

    def seconds(self, num_images: int, num_parts: int = 0) -> float:
        """Return the estimated seconds of a job."""
        return self.fixed_s + self.part_s * num_parts + self.image_s * num_images


@dataclass(frozen=True)
class Need:
    """Estimated needs of a number of images on rented machines."""

    core_hours: float
    machines: int
    """Machines needed to finish within `DEADLINE_H`."""
    hours: float
    compute_usd: float
    num_jobs: int
    images_per_s: float
    """All machines together."""


def fit(points: Iterable[tuple[int, int, float]]) -> Cost:
    """Fit nonnegative fixed, part and image costs to measured seconds.

    Args:
        points: Images, parts and seconds of each job. Relative errors are minimized; otherwise
            the largest folder would decide alone.
    """
    from scipy.optimize import nnls

    columns, seconds = [], []
    for num_images, num_parts, value in points:
        columns.append((1, num_parts, num_images))
        seconds.append(value)
    matrix = np.array(columns, float) / np.array(seconds)[:, None]
    found, _ = nnls(matrix, np.ones(len(seconds)))
    return Cost(*(float(value) if value > 1e-9 else 0.0 for value in found))  # drop rounding errors


def need(num_images: int, *, core_s: float) -> Need:
    """Return what `num_images` images of `core_s` core-seconds each need on instances."""
    core_hours = num_images * core_s / 3600
    hours_of_one = core_hours / INSTANCE_CORES
    machines = max(1, math.ceil(hours_of_one / DEADLINE_H))
    hours = hours_of_one / machines
    return Need(
        core_hours=core_hours,
        machines=machines,
        hours=hours,
        compute_usd=hours_of_one * INSTANCE_USD_H,
        num_jobs=machines * INSTANCE_CORES // JOB_CORES,
        images_per_s=num_images / (hours * 3600),
    )


def costs(scaling: Mapping[str, Any]) -> dict[tuple[str, str, int], Cost]:
    """Fit a cost to the jobs of each model, engine and number of workers."""
    groups: dict[tuple[str, str, int], list[tuple[int, int, float]]] = {}
    for job in _measured(scaling):
        if not job["folders"]:
            key = (job["model"], job["engine"], job["workers"])
            point = (job["num_images"], _num_parts(job), median(job["seconds"]))
            groups.setdefault(key, []).append(point)
    return {key: fit(points) for key, points in groups.items() if len(points) > 1}


def to_markdown(results: Mapping[str, Any]) -> str:
    """Return the measured tables, the model and the projection as Markdown."""
    scaling, machine = results["scaling"], results["machine"]
    skipped = "".join(
        f" Not measured: {name}: {reason}."
        for name, reason in results["skipped"].items()
        if name.startswith("scaling")
    )
    parts = [
        f"Measured {results['created'][:10]} on {scaling['cores']} cores of {machine['cpu']}: "
        f"`{results['command']}`. Images of {scaling['image_bytes'] / 1e3:.1f} kB on average, "
        f"hard links, in the page cache. Seconds are those of whole processes of `tltools "
        f"classify`, medians of the given number of alternating turns.{skipped}"
    ]
    found = costs(scaling)
    parts += _measured_tables(scaling, found)
    parts += _model_tables(scaling, found)
    cnn = found.get(("CNN", "local", scaling["cores"]))
    if cnn is not None and cnn.image_s > 0:
        parts += _projection(scaling, found)
    else:
        parts += ["No projection: these folders are too small for the cost of an image to show."]
    return "\n\n".join(parts) + "\n"


def _measured_tables(
    scaling: Mapping[str, Any], found: Mapping[tuple[str, str, int], Cost]
) -> list[str]:
    rows: list[list[str]] = []
    for job in _measured(scaling):
        seconds, number = median(job["seconds"]), job["num_images"]
        cost = found.get((job["model"], job["engine"], job["workers"]))
        peak = median(job["peak_bytes"]) if job["peak_bytes"] else None
        rows.append(
            [
                job_name(job),
                images_of(job),
                f"{seconds:,.1f} s ({len(job['seconds'])})",
                f"{seconds / number * 1e3:,.3f} ms",
                f"{number / seconds:,.0f}" if number > seconds * 100 else f"{number / seconds:.1f}",
                f"{cost.seconds(number, _num_parts(job)) / seconds:.2f}" if cost else "",
                f"{peak / 1e6:.0f} MB" if peak else "",
            ]
        )
    columns = ["job", "images", "seconds (turns)", "each", "images/s", "model / measured"]
    parts = section("Measured", [*columns, "peak memory"], rows)
    rows = [
        [
            f"{row['num_names']:,} in {_layout(row)}",
            f"{row['seconds']:.2f} s",
            f"{row['seconds'] / row['num_names'] * 1e6:.2f} µs",
            f"{row['bytes'] / 1e6:.0f} MB",
            f"{row['bytes'] / row['num_names']:.0f} B",
        ]
        for row in scaling["listing"]
    ]
    columns = ["names", "listing alone", "a name", "memory beyond the start", "a name"]
    return parts + section("Listing", columns, rows)


def _model_tables(
    scaling: Mapping[str, Any], found: Mapping[tuple[str, str, int], Cost]
) -> list[str]:
    rows = [
        [
            f"{model}, {engine}, {workers} worker{'s' * (workers > 1)}",
            f"{cost.fixed_s:.2f} s",
            f"{cost.part_s:.2f} s" if engine == "ray" else "",
            f"{cost.image_s * 1e3:.3f} ms",
            f"{1 / cost.image_s:,.1f}" if cost.image_s else "",
        ]
        for (model, engine, workers), cost in found.items()
    ]
    columns = ["seconds = fixed + part * parts + image * images", "fixed", "part", "image"]
    parts = section("The model", [*columns, "images/s in the limit"], rows)
    listing = scaling["listing"]
    list_s = listing[0]["seconds"] / listing[0]["num_names"] if listing else 0.0
    rows = []
    for model, stages in scaling["stages"].items():
        values = [list_s, stages["read_s"], stages["decode_s"]]
        values += [stages["infer_s"], stages["write_s"]]
        cost = found.get((model, "local", scaling["cores"]))
        whole = f"{cost.image_s * 1e3:.3f}" if cost else ""
        rows.append(
            [model, *(f"{value * 1e3:.4f}" for value in values), f"{sum(values) * 1e3:.3f}", whole]
        )
    columns = ["ms an image, all cores", "listed", "read", "decoded", "inferred", "written"]
    return parts + section("Where an image's time goes", [*columns, "sum", "image"], rows)


def _projection(
    scaling: Mapping[str, Any], found: Mapping[tuple[str, str, int], Cost]
) -> list[str]:
    cores = scaling["cores"]
    kinds = {
        f"{model}{', Ray' * (engine == 'ray')}": (
            cost.image_s + cost.part_s / RAY_PART * (engine == "ray")
        )
        * cores
        for (model, engine, workers), cost in found.items()
        if workers == cores and cost.image_s > 0
    }
    rows: list[list[str]] = []
    for number in TARGETS:
        for name, core_s in kinds.items():
            value = need(number, core_s=core_s)
            rows.append(
                [
                    f"{_power(number)}, {name}",
                    f"{core_s * 1e3:.2f} ms",
                    f"{value.core_hours:,.0f}",
                    f"{value.core_hours / INSTANCE_CORES:,.1f}",
                    f"{value.machines:,} for {value.hours:.1f} h",
                    f"{value.images_per_s:,.0f}",
                    f"${value.compute_usd:,.2f}",
                ]
            )
    columns = ["images, model", "core time each", "core-hours", f"hours of one {INSTANCE}"]
    columns += [f"machines to end in {DEADLINE_H:g} h", "images/s", "compute"]
    parts = section("What 10^8 and 10^9 images would need", columns, rows)

    size, row_bytes = scaling["image_bytes"], _row_bytes(scaling)
    rows = []
    for number in TARGETS:
        tars = math.ceil(number / TAR_IMAGES)
        ranges = tars * math.ceil(TAR_IMAGES * size / TAR_RANGE)
        lists, tar_lists = math.ceil(number / LIST_NAMES), math.ceil(tars / LIST_NAMES)
        rows.append(
            [
                _power(number),
                f"{_count(number)} GET ${number * GET_USD:,.2f}, "
                f"{_count(lists)} LIST ${lists * LIST_USD:,.2f}",
                f"{_count(ranges)} GET ${ranges * GET_USD:,.2f}, "
                f"{_count(tar_lists)} LIST ${tar_lists * LIST_USD:,.2f}",
                _size(number * size),
                f"${number * size / 1e9 * STORAGE_USD_GB:,.2f}",
                *(_size(number * value) for value in row_bytes.values()),
            ]
        )
    columns = ["images", "requests, an object each", f"requests, tars of {TAR_IMAGES:,}"]
    columns += ["network in", "storage a month", *(f"output, {name}" for name in row_bytes)]
    parts += section("Storage, whatever the model", columns, rows)
    parts += section(
        "What breaks first", ["", *map(_power, TARGETS), "what to do"], _breaks(scaling, kinds)
    )
    rows = [list(row) for row in ASSUMPTIONS]
    return parts + section("Assumptions", ["assumed", "from, and what is not known"], rows)


def _breaks(scaling: Mapping[str, Any], kinds: Mapping[str, float]) -> list[list[str]]:
    """Return the obstacles at each target, with figures from the measurements."""
    rows: list[list[str]] = []
    fast, slow = (pick(kinds.items(), key=lambda item: item[1]) for pick in (min, max))
    needs = {name: [need(n, core_s=core_s) for n in TARGETS] for name, core_s in (fast, slow)}

    flat = next((row for row in scaling["listing"] if not row["folders"]), None)
    if flat:
        each = flat["bytes"] / flat["num_names"]
        rows.append(
            [
                f"one folder's names in memory ({each:.0f} B each, in every job)",
                *(_size(each * number) for number in TARGETS),
                f"{INSTANCE} has {INSTANCE_BYTES / 1e9:.0f} GB for {INSTANCE_CORES // JOB_CORES} "
                "jobs: folders or tars of 1,000",
            ]
        )
        each = flat["seconds"] / flat["num_names"]
        rows.append(
            [
                "`--shard K/N`: every job lists everything, on a local disk",
                *(f"{each * number / 60:,.0f} min a job" for number in TARGETS),
                "beyond some 10^7, give each job its own folder, prefix or list instead",
            ]
        )
    for name, values in needs.items():
        rows.append(
            [
                f"the same on S3, {name}: LISTs of all jobs",
                *(
                    f"{value.num_jobs:,} jobs, ${value.num_jobs * n / LIST_NAMES * LIST_USD:,.0f}"
                    for value, n in zip(values, TARGETS, strict=True)
                ),
                "as above; one inventory, split by the scheduler",
            ]
        )
        rows.append(
            [
                f"GETs a second, {name}, an object each",
                *(
                    f"{value.images_per_s:,.0f}/s, "
                    f"prefixes: {math.ceil(value.images_per_s / PREFIX_GETS_PER_S):,}"
                    for value in values
                ),
                f"tars: 1/{TAR_RANGE / scaling['image_bytes']:.0f} of it",
            ]
        )
    name, core_s = fast
    per_machine = INSTANCE_CORES / core_s
    bits = per_machine * scaling["image_bytes"] * 8
    rows.append(
        [
            f"GETs in flight to keep a job of {JOB_CORES} cores busy, {name}, an object each",
            *[f"{LATENCY_S / core_s * JOB_CORES:,.0f}"] * len(TARGETS),
            "`classify` has 32 under way: tars where that is less",
        ]
    )
    rows.append(
        [
            f"network into one machine, {name}",
            *[f"{bits / 1e9:.1f} Gbit/s"] * len(TARGETS),
            f"of {INSTANCE_BITS_PER_S / 1e9:g}; the limit is images of "
            f"{INSTANCE_BITS_PER_S / 8 / per_machine / 1e3:,.0f} kB",
        ]
    )
    csv_bytes = next(iter(_row_bytes(scaling).values()))
    rows.append(
        [
            "one output file, CSV",
            *(_size(csv_bytes * number) for number in TARGETS),
            "leave it in the jobs' files or in Ray's parts; `tltools merge` is one process",
        ]
    )
    rows.append(
        [
            f"parts of {RAY_PART:,} by Ray",
            *(f"{math.ceil(number / RAY_PART):,} files" for number in TARGETS),
            "`--part-size`; Ray on more than two nodes of one machine was never run",
        ]
    )
    for name, values in needs.items():
        rows.append(
            [
                f"a machine lost with its disk half way, {name}",
                *(
                    f"{v.hours / 2:.1f} h, ${v.hours / 2 * INSTANCE_USD_H:.2f} again"
                    for v in values
                ),
                "smaller shards, or output on storage that outlives it: then about 5 s are lost",
            ]
        )
    return rows


def _measured(scaling: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [job for job in scaling["jobs"] if job["seconds"]]


def _num_parts(job: Mapping[str, Any]) -> int:
    return math.ceil(job["num_images"] / job["part_size"]) if job["part_size"] else 0


def _layout(row: Mapping[str, Any]) -> str:
    return f"{row['folders']:,} folders" if row["folders"] else "one folder"


def images_of(job: Mapping[str, Any]) -> str:
    """Describe how many images a job has, and in how many folders."""
    return f"{job['num_images']:,} in {_layout(job)}"


def job_name(job: Mapping[str, Any]) -> str:
    """Name a job's model, engine and setting."""
    workers = f"{job['workers']} worker{'s' * (job['workers'] > 1)}"
    part = f", parts of {job['part_size']:,}" if job["part_size"] else ""
    return f"{job['model']}, {job['engine']}, {workers}{part}"


def _row_bytes(scaling: Mapping[str, Any]) -> dict[str, float]:
    """Return an output's bytes per image by format, from the CNN's largest job of each engine."""
    found: dict[str, float] = {}
    for job in sorted(_measured(scaling), key=lambda job: job["num_images"]):
        if job["model"] == "CNN" and job["part_size"] in (0, RAY_PART):
            name = "Parquet (Ray)" if job["engine"] == "ray" else "CSV"
            found[name] = job["output_bytes"] / job["num_images"]
    return dict(sorted(found.items()))


def _power(number: int) -> str:
    return f"10^{round(math.log10(number))}"


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"{number / 1e6:,.0f} million"


def _size(num_bytes: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes / 1e6:,.1f} MB"


def main(arguments: Sequence[str]) -> None:
    """Rewrite the page from saved results."""
    results = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_results(text, to_markdown(results)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
