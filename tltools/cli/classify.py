"""`tltools classify`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import (
    CLUSTER,
    SPEED,
    InferenceDeviceOption,
    RayAddressOption,
    ReportOption,
    Tf32Option,
    WorkersOption,
    check_ray_options,
    path_or_url,
)
from tltools.cli.show import check_report, write_report
from tltools.cli.workers import start_workers
from tltools.errors import ConfigError

if TYPE_CHECKING:
    from tltools.classify import Shard, Summary
    from tltools.console import RichProgress
    from tltools.data.location import Location

FAILURES = "Images that fail"
"""Title of a part of the help."""


InputsArgument = Annotated[
    list[Any],  # Location
    typer.Argument(
        help="Folders (searched recursively), archives (tar, zip), images, or .txt lists of "
        "paths; or URLs of these: s3://, gs://, az://, sftp://, https://.",
        parser=path_or_url,
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(help="An export.", show_default="the most accurate ONNX one in exports/"),
]
OutputOption = Annotated[
    Any,  # Location | None
    typer.Option(
        "--output",
        "-o",
        help=".csv, .jsonl or .parquet; a URL, too; - is standard output. A folder with "
        "--engine ray.",
        show_default="predictions.csv, or predictions",
        parser=path_or_url,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output.")]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images per forward pass.",
        show_default="by the model",
        rich_help_panel=SPEED,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Cores of one forward pass.",
        show_default="by the model",
        rich_help_panel=SPEED,
    ),
]
ImageTimeoutOption = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Longest time for decoding one image, in seconds.",
        rich_help_panel=FAILURES,
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Exit with 1 if any image could not be classified.",
        rich_help_panel=FAILURES,
    ),
]
ErrorsToOption = Annotated[
    Path | None,
    typer.Option(
        help="A CSV of the images that could not be read, with the reasons.",
        rich_help_panel=FAILURES,
    ),
]
SpreadsheetOption = Annotated[
    bool,
    typer.Option(
        "--spreadsheet",
        help="CSV for spreadsheets: an apostrophe before what they take for a formula.",
    ),
]
MinConfidenceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Label what is less likely as 'uncertain'; probabilities are calibrated.",
        show_default="every image gets a class",
    ),
]
ChangedOnlyOption = Annotated[
    bool,
    typer.Option(
        "--changed-only",
        help="Skip images whose bytes this model has classified before with this option: "
        "their rows come from a ledger.",
    ),
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(help="Where ledgers are kept.", show_default="user cache"),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        metavar="K/N",
        help="Only the K-th of N parts, into predictions-K-of-N.csv; tltools merge puts all "
        "together.",
        show_default="all images",
    ),
]
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help='ray: a Ray cluster writes a folder of parts; pip install "ray\\[data]>=2.60".',
        rich_help_panel=CLUSTER,
    ),
]
PartSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images of a part.",
        show_default="by the model",
        rich_help_panel=CLUSTER,
    ),
]
PartFormatOption = Annotated[
    Literal["parquet", "csv"] | None,
    typer.Option(help="Of the parts.", show_default="parquet", rich_help_panel=CLUSTER),
]


@command
def classify(
    context: typer.Context,
    inputs: InputsArgument,
    *,
    out: Out,
    model: ModelOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    device: InferenceDeviceOption = "auto",
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    tf32: Tf32Option = False,
    image_timeout: ImageTimeoutOption = 30.0,
    strict: StrictOption = False,
    errors_to: ErrorsToOption = None,
    spreadsheet: SpreadsheetOption = False,
    min_confidence: MinConfidenceOption = None,
    changed_only: ChangedOnlyOption = False,
    cache_dir: CacheDirOption = None,
    report: ReportOption = None,
    shard: ShardOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    part_size: PartSizeOption = None,
    part_format: PartFormatOption = None,
) -> None:
    """Classify images: one row for each, with its label, probabilities or error.

    A job that was stopped goes on where it was when the same command is given again.

    Example: tltools classify photos/ --output labels.parquet
    """
    # Before anything is imported that starts threads.
    launcher = start_workers() if engine == "local" and context.obj else None
    output, one_shard = _place(output, shard, engine)
    _check_output(output, report, as_json=out.as_json)
    _check_engine(
        engine,
        local={
            "--threads": threads,
            "--tf32": tf32 or None,
            "--changed-only": changed_only or None,
            "--cache-dir": cache_dir,
            "--shard": shard,
            "--report": report,
        },
        ray={"--ray-address": ray_address, "--part-size": part_size, "--part-format": part_format},
    )
    settings: dict[str, Any] = {
        "device": device,
        "batch_size": batch_size,
        "workers": workers,
        "overwrite": overwrite,
        "spreadsheet": spreadsheet,
        "errors_to": errors_to,
        "min_confidence": min_confidence,
        "image_timeout_s": image_timeout,
    }
    model = model or _best_export(out.progress)
    if engine == "ray":
        from tltools.ray.engine import run_ray_job
        from tltools.ray.job import RayJob

        ray = {"address": ray_address, "part_size": part_size, "part_format": part_format}
        summary = run_ray_job(
            RayJob(model, inputs, output, **settings, **ray), progress=out.progress
        )
    else:
        from tltools.classify import Job, run_job

        ledger_dir = _ledger_dir(cache_dir, changed_only=changed_only)
        here = {"threads": threads, "tf32": tf32, "ledger_dir": ledger_dir, "shard": one_shard}
        job = Job(model, inputs, output, **settings, **here)
        summary = run_job(job, progress=out.progress, launcher=launcher)
    out.result(summary.as_dict(), lambda: _print_job(summary, out.progress))
    suggest = one_shard is None and engine == "local"
    _report(report, summary, inputs, out.progress, suggest=suggest)
    if strict:
        _fail_if_incomplete(summary, out.progress)


def _fail_if_incomplete(summary: "Summary", progress: "RichProgress") -> None:
    if summary.num_failed or summary.unlisted:
        progress.warn("--strict: not every image was classified")
        raise typer.Exit(1)


def _check_output(output: "Location", report: Path | None, *, as_json: bool) -> None:
    """Refuse what would read or write standard output twice, or read again what is not here."""
    if as_json and output.as_posix() == "-":
        raise ConfigError("--json and --output - would both be standard output; name a file")
    check_report(report)
    if report is not None and (output.as_posix() == "-" or not isinstance(output, Path)):
        raise ConfigError("--report reads the output again, so --output must be a file; name one")


def _best_export(progress: "RichProgress") -> Path:
    from tltools.artifacts import best_export

    best = best_export()
    accuracy = best.card.metrics["val"].accuracy
    progress.say(f"Model: {best.path} (the best here, {accuracy:.1%} in validation)")
    return best.path


def _place(
    output: "Location | None", shard: str | None, engine: str
) -> "tuple[Location, Shard | None]":
    default = Path("predictions" if engine == "ray" else "predictions.csv")
    if shard is None:
        return output or default, None
    from tltools.classify.shards import Shard

    one = Shard.parse(shard)
    return output or one.name(default), one


REASONS = {
    "--threads": "an actor's model uses the actor's cores, which are --workers",
    "--tf32": "actors open exports in full precision",
    "--changed-only": "its ledger is on one machine",
    "--cache-dir": "its ledger is on one machine",
    "--shard": "a cluster shares the images out by itself",
    "--report": "a report is made of one file, and not of parts",
}
"""Why options are for the local engine."""


def _check_engine(engine: str, *, local: dict[str, object], ray: dict[str, object]) -> None:
    """Refuse options that only the other engine takes; those that are not given are None."""
    check_ray_options(engine, ray)
    for option, value in local.items():
        if engine == "ray" and value is not None:
            raise ConfigError(f"{option} is for --engine local: {REASONS[option]}; leave it out")


def _ledger_dir(cache_dir: Path | None, *, changed_only: bool) -> Path | None:
    if not changed_only:
        if cache_dir is not None:
            raise ConfigError("--cache-dir is where --changed-only keeps its ledger; add that")
        return None
    from platformdirs import user_cache_path

    return (cache_dir or user_cache_path("tltools", appauthor=False)) / "classified"


def _report_command(output: Path, inputs: "list[Location]") -> str:
    words = ["tltools", "report", str(output)]
    if len(inputs) == 1 and isinstance(inputs[0], Path) and inputs[0].is_dir():
        words += ["--images", str(inputs[0])]
    return shlex.join(words)


def _report(
    path: Path | None,
    summary: "Summary",
    inputs: "list[Location]",
    progress: "RichProgress",
    *,
    suggest: bool,
) -> None:
    """Write the report that was asked for, or suggest the command that would."""
    if path is not None:
        _write_report(path, summary, inputs, progress)
    elif suggest and isinstance(summary.output, Path):
        progress.say(f"Next: {_report_command(summary.output, inputs)}")


def _write_report(
    path: Path, summary: "Summary", inputs: "list[Location]", progress: "RichProgress"
) -> None:
    from tltools.report.jobs import job_section, locate_inputs

    assert isinstance(summary.output, Path)
    facts = (
        f"Model {summary.model}, on {summary.choice.device}",
        f"{summary.seconds:.1f} s, {summary.images_per_s:.0f} images per second",
    )
    section = job_section(
        summary.output,
        locate=locate_inputs(inputs),
        resize=summary.card.preprocessing.resize,
        facts=facts,
    )
    write_report(path, [section], progress)


def _print_job(summary: "Summary", progress: "RichProgress") -> None:
    """Tell what a classification did, on standard error: standard output may be the result."""
    from tltools.runtime.selftest import lacks_self_test

    if note := lacks_self_test(summary.card):
        progress.warn(note)
    choice = summary.choice
    placed, nodes = summary.placement.get(summary.provider, 0), sum(summary.placement.values())
    where = f"{summary.provider} {placed}/{nodes} nodes" if nodes else summary.provider
    chosen = [
        name for name, on in (("TF32", summary.tf32), ("NHWC", summary.layout == "nhwc")) if on
    ]
    how = f", {', '.join(chosen)}" if chosen else ""
    progress.say(f"Device: {choice.device} ({choice.reason}), {where}{how}")
    progress.say(f"Plan: {summary.plan}")
    total = max(summary.num_images, 1)
    for name, count in summary.counts.items():
        progress.say(f"{count:8d}  {count / total:6.1%}  {name}")
    if summary.num_uncertain:
        progress.say(f"{summary.num_uncertain:8d}  {summary.num_uncertain / total:6.1%}  uncertain")
    for reason, count in summary.errors.items():
        progress.warn(f"{count} not classified: {reason}")
    where = summary.output or "standard output"
    kept = f", {summary.num_kept} of them from before" if summary.num_kept else ""
    if summary.num_known is not None:
        progress.say(f"{summary.num_known} images skipped: this model has classified their bytes")
    progress.say(
        f"{summary.num_images} rows{kept} ({summary.num_failed} with an error) in "
        f"{summary.seconds:.1f} s, {summary.images_per_s:.0f} images/s, written to {where}"
    )
