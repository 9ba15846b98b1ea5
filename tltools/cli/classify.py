"""`tltools classify`."""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tltools.cli.command import Out, command, given_options
from tltools.cli.few_images import are_few_images, print_labels
from tltools.cli.options import (
    CLUSTER,
    BatchSizeOption,
    EngineOption,
    InferenceDeviceOption,
    MinConfidenceOption,
    OverwriteOption,
    RayAddressOption,
    ReportOption,
    Tf32Option,
    ThreadsOption,
    UnknownOption,
    WorkersOption,
    check_ray_options,
    path_or_export,
    path_or_url,
)
from tltools.cli.show import check_report, choose_export, unknown_text, write_report
from tltools.cli.sorting import SortOptions, check_sorting, sort_job, tell_sorted, undo_sorts
from tltools.cli.thresholds import ThresholdOptions
from tltools.cli.workers import start_workers
from tltools.errors import ConfigError, DataError
from tltools.runtime.model_formats import suffixes
from tltools.wording import MAX_LISTED, counted, grouped, in_percent, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from tltools.classify import Shard, Summary
    from tltools.classify.job import JobSettings
    from tltools.classify.remembered import Reference
    from tltools.console import RichProgress
    from tltools.data.location import Location
    from tltools.processes import Launcher

FAILURES = "Failed images"
"""Title of a panel of the help."""


InputsArgument = Annotated[
    list[Any],  # Location
    typer.Argument(
        help="Folders (with subfolders), archives, images, .txt lists, URLs; -: piped list.",
        parser=path_or_url,
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        help=f"Export ({suffixes()}), or the run whose export it is.",
        parser=path_or_export,
        show_default="most accurate ONNX export in exports/",
    ),
]
OutputOption = Annotated[
    Any,  # Location | None
    typer.Option(
        "--output",
        "-o",
        help="A .csv, .jsonl or .parquet file or URL; - is standard output.",
        show_default="predictions.csv, or the folder predictions with --engine ray",
        parser=path_or_url,
    ),
]
ImageTimeoutOption = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Time limit for decoding one image, in seconds.",
        rich_help_panel=FAILURES,
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Exit with 1 if an image failed, as without --output.",
        rich_help_panel=FAILURES,
    ),
]
ErrorsToOption = Annotated[
    Path | None,
    typer.Option(
        help="CSV file for failed images and their errors.",
        rich_help_panel=FAILURES,
    ),
]
SpreadsheetOption = Annotated[
    bool,
    typer.Option(
        "--spreadsheet",
        help="Write a CSV safe for spreadsheets: byte order mark, no formulas.",
    ),
]
ChangedOnlyOption = Annotated[
    bool,
    typer.Option(
        "--changed-only",
        help="Reuse the rows of images this model has already classified.",
    ),
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder for the ledgers of --changed-only.", show_default="user cache"),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        metavar="K/N",
        help="Classify only shard K of N; tltools merge joins the shards.",
        show_default="all images",
    ),
]
PartSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images per part.",
        show_default="chosen for the model",
        rich_help_panel=CLUSTER,
    ),
]
PartFormatOption = Annotated[
    Literal["parquet", "csv"] | None,
    typer.Option(help="File format of the parts.", show_default="parquet", rich_help_panel=CLUSTER),
]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options for both engines."""

    overwrite: OverwriteOption = False
    device: InferenceDeviceOption = "auto"
    batch_size: BatchSizeOption = None
    workers: WorkersOption = None
    image_timeout: ImageTimeoutOption = 30.0
    errors_to: ErrorsToOption = None
    spreadsheet: SpreadsheetOption = False
    min_confidence: MinConfidenceOption = None
    unknown: UnknownOption = None

    def settings(self) -> dict[str, Any]:
        """Return their values by the names of `JobSettings`."""
        values = dict(vars(self))
        values["image_timeout_s"] = values.pop("image_timeout")
        return values


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """Options for `--engine local` only."""

    threads: ThreadsOption = None
    tf32: Tf32Option = False
    changed_only: ChangedOnlyOption = False
    cache_dir: CacheDirOption = None
    report: ReportOption = None
    shard: ShardOption = None


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options for `--engine ray` only."""

    ray_address: RayAddressOption = None
    part_size: PartSizeOption = None
    part_format: PartFormatOption = None


@command
def classify(
    context: typer.Context,
    inputs: InputsArgument,
    *,
    out: Out,
    model: ModelOption = None,
    output: OutputOption = None,
    options: JobOptions,
    labeling: ThresholdOptions,
    strict: StrictOption = False,
    sorting: SortOptions,
    here: LocalOptions,
    engine: EngineOption = "local",
    there: ClusterOptions,
) -> None:
    """Classify images: one row each, with its label and probabilities or its error.

    For a few image files without --output, the labels are printed and nothing is written.

    To resume a stopped job, run the same command again.

    Example: tltools classify photos/ --output labels.parquet
    """
    from tltools.classify.inputs import check_inputs

    if sorting.undo_sort:
        undo_sorts(inputs, given_options(context), out)
        return
    check_inputs(inputs)
    if are_few_images(inputs, given_options(context)):
        opening = {"device": options.device, "batch_size": options.batch_size}
        opening |= {"threads": here.threads, "tf32": here.tf32}
        best = model or choose_export(out.progress)
        applied = labeling.resolve(best, options.min_confidence, out.progress)
        print_labels(best, inputs, out, unknown=options.unknown, **applied, **opening)
        return
    # Before any import that starts threads.
    launcher = start_workers() if engine == "local" and context.obj else None
    place, shard = _place(output, here.shard, engine)
    _check_output(place, here.report, as_json=out.as_json)
    _check_engine(engine, here, there)
    sort = check_sorting(
        sorting, inputs, place, engine=engine, shard=here.shard, overwrite=options.overwrite
    )
    from tltools.classify.job import JobSettings

    model = model or choose_export(out.progress)
    applied = labeling.resolve(model, options.min_confidence, out.progress)
    settings = JobSettings(model, inputs, place, **options.settings() | applied)
    suggest = shard is None and engine == "local"

    def tell(summary: "Summary") -> None:
        if here.report is not None:  # before images are moved
            _write_report(here.report, summary, inputs, options.unknown, out.progress)
        done = sort and sort_job(sort, settings, out.progress)
        moved_to = sort.folder if sort is not None and sort.action == "move" else None
        is_known = _remember(summary, inputs, options.unknown, moved_to)
        out.result(
            summary.as_dict() | ({"sorted": done} if done else {}),
            lambda: _print_job(summary, options.unknown, out.progress),
        )
        if done:
            tell_sorted(done, out.progress)
        elif suggest and here.report is None and (file := _labeled_file(summary)):
            out.progress.say(f"Next: {_report_command(file, inputs, is_known=is_known)}")

    if engine == "ray":
        summary = _run_on_cluster(settings, there, out.progress, tell)
    else:
        summary = _run_here(settings, here, shard, out.progress, launcher, tell)
    _check_done(summary, strict=strict, is_whole=shard is None)


def _run_here(
    settings: "JobSettings",
    options: LocalOptions,
    shard: "Shard | None",
    progress: "RichProgress",
    launcher: "Launcher | None",
    tell: "Callable[[Summary], None]",
) -> "Summary":
    from tltools.classify import Job, run_job

    job = Job(
        **vars(settings),
        threads=options.threads,
        tf32=options.tf32,
        ledger_dir=_ledger_dir(options.cache_dir, changed_only=options.changed_only),
        shard=shard,
    )
    return run_job(job, progress=progress, launcher=launcher, on_summary=tell)


def _run_on_cluster(
    settings: "JobSettings",
    options: ClusterOptions,
    progress: "RichProgress",
    tell: "Callable[[Summary], None]",
) -> "Summary":
    from tltools.ray.engine import run_ray_job
    from tltools.ray.job import RayJob

    job = RayJob(
        **vars(settings),
        address=options.ray_address,
        part_size=options.part_size,
        part_format=options.part_format,
    )
    return run_ray_job(job, progress=progress, on_summary=tell)


def _labeled_file(summary: "Summary") -> Path | None:
    """Return a job's local file; None if it has none, or one without a label."""
    has_labels = summary.num_failed < summary.num_images
    return summary.output if has_labels and isinstance(summary.output, Path) else None


def _check_done(summary: "Summary", *, strict: bool, is_whole: bool) -> None:
    """Refuse a whole job of which no image was classified; with `strict`, one that lacks any.

    Raises:
        DataError: If there is such a job; its output stays.
    """
    if strict and (summary.num_failed or summary.unlisted):
        raise DataError("--strict: not every image was classified")
    # A shard may hold the only bad images of a good job.
    if is_whole and summary.num_images and summary.num_failed == summary.num_images:
        raise DataError("no image was classified")


def _check_output(output: "Location", report: Path | None, *, as_json: bool) -> None:
    """Refuse two results on standard output, and a report on an output that is not a file."""
    if as_json and output.as_posix() == "-":
        raise ConfigError("--json and --output - would both write to standard output; name a file")
    check_report(report)
    if report is not None and (output.as_posix() == "-" or not isinstance(output, Path)):
        raise ConfigError("--report needs a local output file; name one with --output")


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
    "--threads": "each actor uses its own cores, see --workers",
    "--tf32": "actors run models in full precision",
    "--changed-only": "the ledger is a file on one machine",
    "--cache-dir": "the ledger is a file on one machine",
    "--shard": "the cluster distributes the images itself",
    "--report": "a report needs one predictions file, not a folder of parts",
}
"""Why these options work only with the local engine."""


def _check_engine(engine: str, here: LocalOptions, there: ClusterOptions) -> None:
    """Refuse options of the other engine."""
    check_ray_options(engine, _given(there))
    for option in _given(here):
        if engine == "ray":
            raise ConfigError(f"{option} is for --engine local: {REASONS[option]}; leave it out")


def _given(options: LocalOptions | ClusterOptions) -> dict[str, object]:
    """Return the options that differ from their defaults, by name, such as `--part-size`."""
    values = {field: getattr(options, field.name) for field in fields(options)}
    return {
        f"--{field.name.replace('_', '-')}": value
        for field, value in values.items()
        if value != field.default
    }


def _ledger_dir(cache_dir: Path | None, *, changed_only: bool) -> Path | None:
    if not changed_only:
        if cache_dir is not None:
            raise ConfigError("--cache-dir works only with --changed-only; add --changed-only")
        return None
    from platformdirs import user_cache_path

    return (cache_dir or user_cache_path("tltools", appauthor=False)) / "classified"


def _remember(
    summary: "Summary",
    inputs: "list[Location]",
    unknown: float | None,
    moved_to: Path | None,
) -> bool:
    """Remember the inputs and distances for a report; return whether it can show the images."""
    from tltools.classify.remembered import remember_inputs

    if not isinstance(summary.output, Path):
        return False
    reference = _reference(summary, unknown)
    # Moved images return if the sorting is undone.
    return remember_inputs(
        summary.output, inputs, reference, model=summary.card.name, sorted_into=moved_to
    )


def _reference(summary: "Summary", unknown: float | None) -> "Reference | None":
    """Return what the distances of a job are compared with; None if it has none."""
    from tltools.classify.remembered import Reference
    from tltools.runtime.exports import distances_of

    if unknown is None:
        return None
    return Reference(summary.card.run, distances_of(summary.card), unknown)


def _report_command(output: Path, inputs: "list[Location]", *, is_known: bool) -> str:
    words = ["tltools", "report", str(output)]
    if not is_known and len(inputs) == 1 and isinstance(inputs[0], Path) and inputs[0].is_dir():
        words += ["--images", str(inputs[0])]
    return shlex.join(words)


def _write_report(
    path: Path,
    summary: "Summary",
    inputs: "list[Location]",
    unknown: float | None,
    progress: "RichProgress",
) -> None:
    from tltools.report.jobs import images_from, job_section, locate_inputs, read_job

    assert isinstance(summary.output, Path)
    facts = (
        f"Model {summary.model}, on {summary.choice.device}",
        images_from(inputs),
        f"{seconds(summary.seconds)}, {summary.images_per_s:.0f} images per second",
    )
    reference = _reference(summary, unknown)
    section = job_section(
        summary.output,
        locate=locate_inputs(inputs),
        resize=summary.card.preprocessing.resize,
        facts=facts,
        job=read_job(summary.output, lambda _classes: reference),
    )
    write_report(path, [section], progress)


def _print_labels(summary: "Summary", progress: "RichProgress") -> None:
    """Print how many images have each label, as shares of those that have one, as reports do."""
    total = summary.num_images - summary.num_failed
    if not total:
        return
    counts = sorted(summary.counts.items(), key=lambda one: -one[1])  # largest first, if cut off
    lines = [*summary.counts.items()] if len(counts) <= MAX_LISTED else counts[:MAX_LISTED]
    if rest := counts[len(lines) :]:
        lines.append((f"{len(rest):,} other labels", sum(count for _, count in rest)))
    others = ("uncertain", summary.num_uncertain), ("unknown", summary.num_unknown)
    for name, count in (*lines, *(one for one in others if one[1])):
        progress.say(f"{count:8d}  {in_percent(count / total):>6}  {name}")


def _print_job(summary: "Summary", unknown: float | None, progress: "RichProgress") -> None:
    """Summarize a job on standard error, since standard output may hold its result."""
    from tltools.console import rate
    from tltools.data.left_out import describe_counts
    from tltools.runtime.device import tell_device
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
    tell_device(choice, progress, f", {where}{how}")
    progress.detail(f"Plan: {summary.plan}")
    _print_labels(summary, progress)
    if unknown is not None:
        progress.say(unknown_text(summary.card, unknown))
    for reason, count in summary.errors.items():
        first = summary.examples.get(reason)
        others = "; the first is" if first and count > 1 else ":"
        progress.warn(f"{grouped(count, 'image')} not classified{others} {first or reason}")
    if summary.left_out:
        progress.say(describe_counts(summary.left_out))
    where = summary.output or "standard output"
    kept = f", {summary.num_kept} of them from before" if summary.num_kept else ""
    if summary.num_known is not None:
        skipped = counted(summary.num_known, "image")
        progress.say(f"{skipped} skipped: this model has classified their bytes")
    classified = summary.num_images - summary.num_failed
    of_others = f"; percentages are of the other {classified:,}" if summary.num_failed else ""
    failed = f"{summary.num_failed:,} with an error{of_others if classified else ''}"
    progress.say(
        f"{counted(summary.num_images, 'row')}{kept} ({failed}) in "
        f"{seconds(summary.seconds)}, {rate(summary.images_per_s, 'images')}, written to {where}"
    )
