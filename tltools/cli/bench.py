"""`tltools bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import (
    ClassNamesOption,
    ImagesOption,
    InferenceDeviceOption,
    ReportOption,
    path_or_url,
    split_names,
    split_numbers,
)
from tltools.cli.show import check_report, tell_findings, write_report
from tltools.errors import TltoolsError


@command
def bench(
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs and exports.", show_default="those in exports/, and their runs"),
    ] = None,
    *,
    out: Out,
    data: Annotated[
        Any,  # Location | None
        typer.Option(
            help="Labelled pictures, as for train.",
            show_default="the runs' own validation pictures",
            parser=path_or_url,
        ),
    ] = None,
    images: ImagesOption = None,
    class_names: ClassNamesOption = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            help="For throughput, with commas.",
            show_default="1,8,32, on a GPU up to 256; of slow models fewer",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in rotation.")] = 3,
    num_runs: Annotated[
        int, typer.Option("--runs", min=1, help="Timed runs per round and batch size, at most.")
    ] = 50,
    threads: Annotated[
        int | None, typer.Option(min=1, help="For every candidate.", show_default="all cores")
    ] = None,
    budget: Annotated[
        float, typer.Option(min=1, help="Target for the whole bench in seconds.")
    ] = 240,
    device: InferenceDeviceOption = "auto",
    tf32: Annotated[
        bool, typer.Option(help="On a GPU, measure fp32 exports in TF32 as well.")
    ] = True,
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("exports"),
    report: ReportOption = None,
) -> None:
    """Measure each export beside its run, and say which to take on this machine.

    Accuracy, latency, throughput, memory, size; how fast `classify` is and what holds it up.

    Example: tltools bench exports/cnn/*.onnx --data photos/labels.csv
    """
    check_report(report)
    from tltools.artifacts import bench_inputs, open_predictor
    from tltools.bench import run_bench, uses_gpu
    from tltools.bench import write_report as write_files
    from tltools.classify import open_model
    from tltools.console import print_table, printable

    progress = out.progress
    dataset = None
    if data is not None:
        from tltools.data.dataset import load_dataset

        dataset = load_dataset(
            data,
            images=images,
            class_names=split_names(class_names),
            purpose="evaluate",
            progress=progress,
        )
        tell_findings(dataset, progress)
    on_gpu = uses_gpu(device)
    inputs = bench_inputs(models, dataset, tf32=tf32 and on_gpu)
    for note in inputs.notes:
        progress.warn(note)
    progress.say(
        f"Measuring {len(inputs.candidates)} candidates on {len(inputs.pictures)} pictures "
        f"of {inputs.name}, in turn"
    )
    found = run_bench(
        inputs.candidates,
        open_predictor=open_predictor,
        open_model=open_model,
        pictures=inputs.pictures,
        targets=inputs.targets,
        device=device,
        threads=threads,
        batch_sizes=split_numbers(batch_sizes, "--batch-sizes") if batch_sizes else None,
        rounds=rounds,
        runs=num_runs,
        budget_s=budget,
        save=lambda partial: write_files(partial, output),
        progress=progress,
    )
    if out.as_json:
        out.json(found.to_json())
    else:
        for table in found.tables():
            print_table(table.title, table.columns, table.rows)
        for line in found.recommended():
            typer.echo(printable(line))
    for note in found.notes():
        progress.warn(note)
    paths = write_files(found, output)
    progress.say("Written: " + ", ".join(str(path) for path in paths))
    if report is not None:
        from tltools.report.benches import bench_section

        write_report(report, [bench_section(found)], progress)
    if all(row.status == "failed" for row in found.rows):
        raise TltoolsError("none of the models could be measured: see above")
    if found.recommendation is not None and found.recommendation.command:
        progress.say(f"Next: {found.recommendation.command}")
