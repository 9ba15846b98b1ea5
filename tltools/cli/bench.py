"""`tltools bench`."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import (
    InferenceDeviceOption,
    ReadingOptions,
    ReportOption,
    holds_images,
    load_to_score,
    path_or_run,
    path_or_url,
    split_numbers,
)
from tltools.cli.show import check_output_folder, check_report, write_report
from tltools.errors import ConfigError, TltoolsError
from tltools.wording import counted

if TYPE_CHECKING:
    from tltools.bench import BenchResult, BenchSettings
    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.data.location import Location


ModelsArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Runs and exports to measure.",
        show_default="exports/ and their runs",
        parser=path_or_run,
    ),
]
DataOption = Annotated[
    Any,  # Location | None
    typer.Option(
        help="Labeled images, as for train; new to the models.",
        show_default="the runs' own validation images",
        parser=path_or_url,
    ),
]
BatchSizesOption = Annotated[
    str | None,
    typer.Option(
        help="Batch sizes for throughput, comma-separated.",
        show_default="1,8,32, up to 256 on a GPU; fewer for slow models",
    ),
]
IterationsOption = Annotated[
    int, typer.Option(min=1, help="Maximum timed forward passes per round and batch size.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads per forward pass.", show_default="all cores")
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="Seconds for the whole bench; fewer rounds if it takes longer.",
        show_default="240, or as long as 3 rounds take",
    ),
]
RoundsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of rounds; each measures every model.",
        show_default="3, or fewer if --budget is given",
    ),
]
MeasureTf32Option = Annotated[
    bool, typer.Option(help="On a GPU, also measure fp32 exports in TF32.")
]


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How much is measured, and where."""

    batch_sizes: BatchSizesOption = None
    rounds: RoundsOption = None
    iterations: IterationsOption = 50
    threads: ThreadsOption = None
    budget: BudgetOption = None
    device: InferenceDeviceOption = "auto"


@command
def bench(
    models: ModelsArgument = None,
    *,
    out: Out,
    data: DataOption = None,
    reading: ReadingOptions,
    measure: MeasureOptions,
    tf32: MeasureTf32Option = True,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "exports"
    ),
    report: ReportOption = None,
) -> None:
    """Measure exports beside their runs and recommend one for this machine.

    Measures accuracy, latency, throughput, memory and size, and finds the bottleneck of classify.

    Example: tltools bench exports/cnn/*.onnx --data new/labels.csv
    """
    _refuse_images(models or [])
    check_report(report)
    check_output_folder(output)
    from tltools.bench import bench_inputs, run_bench, uses_gpu, write_result

    progress = out.progress
    settings = _settings(measure)
    dataset = _dataset(data, reading, progress)
    inputs = bench_inputs(models, dataset, tf32=tf32 and uses_gpu(measure.device))
    for note in inputs.notes:
        progress.warn(note)
    progress.say(
        f"Measuring {counted(len(inputs.candidates), 'candidate')} in rotation on "
        f"{counted(len(inputs.images), 'image')} of {inputs.name}"
    )
    found = run_bench(
        inputs, settings, save=lambda partial: write_result(partial, output), progress=progress
    )
    _show(found, out)
    paths = write_result(found, output)
    progress.say("Columns: tltools docs benchmarks; how they were measured: the .md file")
    progress.say("Written: " + ", ".join(map(str, paths)))
    _write_page(found, report, progress)
    if all(row.status == "failed" for row in found.rows):
        raise TltoolsError("no model could be measured; the table above has the reasons")
    if found.recommendation is not None and found.recommendation.command:
        progress.say(f"Next: {found.recommendation.command}")


def _refuse_images(models: list[Path]) -> None:
    """Refuse labeled images among the models.

    Raises:
        ConfigError: With the whole command to type.
    """
    images = next((one for one in models if holds_images(one)), None)
    if images is not None:
        others = [str(one) for one in models if one != images]
        right = shlex.join(["tltools", "bench", *others, "--data", str(images)])
        raise ConfigError(f"{images} is not a model; labeled images go to --data: {right}")


def _settings(measure: MeasureOptions) -> "BenchSettings":
    from tltools.bench import BenchSettings

    sizes = measure.batch_sizes
    return BenchSettings(
        device=measure.device,
        threads=measure.threads,
        batch_sizes=split_numbers(sizes, "--batch-sizes") if sizes else None,
        rounds=measure.rounds,
        iterations=measure.iterations,
        budget_s=measure.budget,
    )


def _dataset(
    data: "Location | None", reading: ReadingOptions, progress: "RichProgress"
) -> "Dataset | None":
    """Load the labeled images of --data; return None for the runs' own.

    Raises:
        ConfigError: If there is nothing to read, but options say how.
    """
    if data is not None:
        return load_to_score(data, reading, progress)
    for name, value in asdict(reading).items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} says how --data is read; add --data, or leave it out")
    return None


def _show(found: "BenchResult", out: Out) -> None:
    """Print the notes as warnings, then the tables and the recommendation, which comes last.

    Those about the inputs have been printed before.
    """
    from tltools.console import print_table, printable

    for note in found.short_notes_on_rows():
        out.progress.warn(note)
    if out.as_json:
        out.json(found.to_json())
    else:
        for table in found.tables():
            print_table(table.title, table.columns, table.rows)
        for line in found.recommended():
            typer.echo(printable(line))


def _write_page(found: "BenchResult", report: Path | None, progress: "RichProgress") -> None:
    if report is not None:
        from tltools.report.benches import bench_section

        write_report(report, [bench_section(found)], progress)
