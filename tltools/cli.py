"""The command line: parse, call the library, print."""

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tltools.errors import TltoolsError

if TYPE_CHECKING:
    from tltools.card import Score
    from tltools.classify import Summary
    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.evaluate import Evaluation
    from tltools.training import TrainedRun

app = typer.Typer(
    name="tltools",
    help="Train image classifiers, export them verified, classify folders, measure it all.\n\n"
    "A first walk: [bold]tltools train[/bold], [bold]tltools export --format onnx[/bold], "
    "[bold]tltools classify FOLDER[/bold], [bold]tltools bench[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""
SAMPLE = Path("sample")
SYSTEM_ERRORS = frozenset(
    {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
    | {errno.ESTALE, errno.ENOTCONN, errno.ENAMETOOLONG}
)
"""A full or removed disk, and what the user may not do: no faults of tltools'."""

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="Where to run; auto takes CUDA where it works and says so."),
]
InferenceDeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "tensorrt", "openvino"],
    typer.Option(
        "--device",
        help="Where to run; auto takes CUDA where it works and says so. tensorrt and openvino are "
        "onnxruntime's execution providers, where they are installed.",
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images", help="Where a CSV's pictures lie.", show_default="beside it, or images/"
    ),
]
ImageColumnOption = Annotated[
    str | None, typer.Option(help="The CSV's column of pictures.", show_default="the first")
]
LabelColumnOption = Annotated[
    str | None, typer.Option(help="The CSV's column of labels.", show_default="the second")
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option(help="Names for the labels in sorted order, with commas: non-emergency,emergency"),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out missing and unreadable pictures.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Decoding threads.", show_default="by the machine")
]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from tltools import __version__

        typer.echo(f"tltools {__version__}")
        raise typer.Exit


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A CSV (picture, label), a folder of class folders, or one with train/ and val/.",
            show_default="the drawn sample set, in sample/",
        ),
    ] = None,
    *,
    model: Annotated[
        Literal["cnn", "vgg16", "all"],
        typer.Option(help="A small CNN, frozen VGG16 with a new head, or both."),
    ] = "all",
    recipe: Annotated[
        Literal["default", "article"],
        typer.Option(
            help="Hyper-parameters: tuned, or the article's (which ends at the last epoch)."
        ),
    ] = "default",
    weights: Annotated[
        str,
        typer.Option(help="VGG16's: imagenet (downloaded once), or a .safetensors or .pth file."),
    ] = "imagenet",
    normalization: Annotated[
        Literal["auto", "torchvision", "original"],
        typer.Option(
            help="What the weights were trained with: torchvision's mean and std, or the original "
            "mean only; auto: original for features-only weights."
        ),
    ] = "auto",
    head: Annotated[
        Literal["auto", "last-layer", "pooled"],
        typer.Option(help="VGG16's: classifier[6], or a pooled one; auto: what the weights allow."),
    ] = "auto",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over train.", show_default="15 cnn, 80 vgg16")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures per step.", show_default="128")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate.", show_default="0.0001 cnn, 0.001 vgg16")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Adam's L2 penalty.", show_default="0 cnn, 0.1 vgg16")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and split.")] = 13,
    precision: Annotated[
        Literal["auto", "fp32", "amp"],
        typer.Option(help="amp: mixed precision, on a GPU; auto: amp there, else fp32."),
    ] = "auto",
    feature_precision: Annotated[
        Literal["auto", "fp32", "int8"],
        typer.Option(
            help="Of the features that VGG16's head learns from; it is judged by fp32 ones. "
            "auto: int8 on the CPU."
        ),
    ] = "auto",
    patience: Annotated[
        int | None,
        typer.Option(help="Stop early after so many epochs without a lower validation loss."),
    ] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment", help="Augment the CNN's training pictures.")
    ] = None,
    class_weights: Annotated[
        bool | None, typer.Option("--class-weights", help="Weigh rare classes up in the loss.")
    ] = None,
    resize: Annotated[
        Literal["squash", "crop"] | None,
        typer.Option(
            help="Squash to a square, or resize and crop the centre.",
            show_default="squash for the cnn, crop for vgg16",
        ),
    ] = None,
    split: Annotated[
        Literal["auto", "default", "article"],
        typer.Option(
            help="default keeps identical copies on one side; article is the article's exact one; "
            "auto keeps the data's own split, else default."
        ),
    ] = "auto",
    val_fraction: Annotated[float, typer.Option(help="Share of pictures for validation.")] = 0.1,
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    class_names: ClassNamesOption = None,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = "auto",
    run_dir: Annotated[Path, typer.Option(help="Where run folders are made.")] = Path("runs"),
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Where VGG16's features are kept.", show_default="user cache"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the newest unfinished run, as it was begun."),
    ] = False,
) -> None:
    """Train the models and compare them.

    Example: tltools train photos/labels.csv --weights vgg16.pth
    """
    from tltools.training import default_config

    models = ("cnn", "vgg16") if model == "all" else (model,)
    progress = _progress()
    configs = [
        default_config(
            name,
            recipe,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            seed=seed,
            precision=precision,
            patience=patience,
            class_weights=class_weights,
            resize=resize,
            augment=augment if name == "cnn" or model != "all" else None,
            head=head if name == "vgg16" or (model != "all" and head != "auto") else None,
            feature_precision=feature_precision if name == "vgg16" or model != "all" else None,
        )
        for name in models
    ]
    trained: list[TrainedRun] = []
    failure: TltoolsError | None = None
    if resume:
        from tltools.training import find_resumable, resume_run

        folder = find_resumable(run_dir, models, epochs=epochs)
        progress.say(f"Going on with {folder}")
        trained.append(
            resume_run(folder, epochs=epochs, device=device, cache_dir=cache_dir, progress=progress)
        )
    else:
        from tltools.training import train_models

        dataset = _training_data(
            data,
            progress,
            images=images,
            image_column=image_column,
            label_column=label_column,
            class_names=_names(class_names),
            split="article" if recipe == "article" and split == "auto" else split,
            val_fraction=val_fraction,
            seed=seed,
            skip_bad=skip_bad,
        )
        try:
            for run in train_models(
                dataset,
                configs,
                weights=weights,
                normalization=normalization,
                device=device,
                run_dir=run_dir,
                cache_dir=cache_dir,
                progress=progress,
            ):
                trained.append(run)  # noqa: PERF402 - those before a failure count
        except TltoolsError as error:
            if not trained:
                raise
            failure = error
    _print_summary(trained)
    if failure is not None:
        raise failure
    if trained[-1].interrupted:
        progress.say("Go on with it: tltools train --resume")
        raise typer.Exit(INTERRUPTED)
    progress.say("Next: tltools export --format onnx")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder, or an export (.onnx, .pt).")],
    data: Annotated[Path, typer.Argument(help="Labelled pictures, as for train.")],
    *,
    split: Annotated[
        Literal["all", "train", "val", "test"] | None,
        typer.Option(
            help="Part of data that brings a split.", show_default="test, else val, else all"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 32,
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    class_names: ClassNamesOption = None,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = "auto",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for evaluation.json and confusion_matrix.png."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Score a run or an export on labelled pictures.

    Example: tltools evaluate exports/cnn/cnn.fp32.onnx photos/labels.csv
    """
    from tltools.artifacts import open_predictor
    from tltools.data.dataset import load_dataset
    from tltools.evaluate import evaluate as evaluate_predictor
    from tltools.runtime.selftest import lacks_self_test

    progress = _progress()
    predictor = open_predictor(model, device)
    progress.say(f"Device: {predictor.choice.device} ({predictor.choice.reason})")
    if note := lacks_self_test(predictor.card):
        progress.warn(note)
    names = _names(class_names)
    dataset = load_dataset(
        data,
        images=images,
        image_column=image_column,
        label_column=label_column,
        class_names=names,
        skip_bad=skip_bad,
        purpose="evaluate",
        progress=progress,
    )
    _tell_findings(dataset, progress)
    result = evaluate_predictor(
        predictor,
        dataset,
        split=split,
        batch_size=batch_size,
        progress=progress,
    )
    if output is not None:
        from tltools.atomic import write_text
        from tltools.plots import plot_confusion

        write_text(output / "evaluation.json", result.to_json() + "\n")
        plot_confusion(
            result.confusion,
            result.classes,
            output / "confusion_matrix.png",
            title=f"{predictor.card.run} on {dataset.name}",
        )
        progress.say(f"Written: {output}/evaluation.json and confusion_matrix.png")
    if as_json:
        from tltools.console import printable_json

        typer.echo(printable_json(result.to_json()))
    else:
        _print_evaluation(result)


@app.command()
def export(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders.", show_default="the newest run of each model in runs/"),
    ] = None,
    *,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["onnx", "torchscript", "all"],
        typer.Option(help="File format; TorchScript is deprecated by PyTorch, though it works."),
    ] = "onnx",
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "all"],
        typer.Option(
            help="Of ONNX: int8 is a quarter of the size and the fastest on most CPUs; fp16 is "
            "half the size and meant for GPUs."
        ),
    ] = "fp32",
    calibration_images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training pictures that int8's ranges are taken from.", show_default="128"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Exports go to OUTPUT/RUN/.")] = Path("exports"),
    pictures: Annotated[
        int | None,
        typer.Option(min=1, help="Validation pictures to verify with.", show_default="all"),
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Export runs, each verified against PyTorch on real pictures or not made.

    An int8 export keeps as many layers in float as it takes to give the same labels.

    Example: tltools export runs/cnn --precision all
    """
    from tltools.artifacts import find_runs
    from tltools.console import print_table
    from tltools.export import export_run

    progress = _progress()
    folders = runs or [artifact.path for artifact in find_runs()]
    formats = ("torchscript", "onnx") if format == "all" else (format,)
    precisions = ("fp32", "fp16", "int8") if precision == "all" else (precision,)
    results = [
        result
        for folder in folders
        for result in export_run(
            folder,
            formats,
            output,
            precisions=precisions,
            calibration_images=calibration_images,
            num_pictures=pictures,
            device=device,
            progress=progress,
        )
    ]
    print_table(
        "Exports, verified against PyTorch on validation pictures",
        (
            "export",
            "MB",
            "top-1 agreement",
            "accuracy change",
            "largest logit difference",
            "pictures",
        ),
        [
            (
                str(result.path),
                f"{result.size_bytes / 1e6:.1f}",
                f"{result.parity.top1_agreement:.2%}",
                f"{0 - (result.parity.accuracy_drop or 0):+.2%}",
                f"{result.parity.max_abs_logit_diff:.1e}",
                str(result.parity.num_pictures),
            )
            for result in results
        ],
    )
    for result in results:
        if result.facts.float_layers:
            layers = ", ".join(result.facts.float_layers)
            progress.say(f"{result.path} keeps {len(result.facts.float_layers)} in fp32: {layers}")
    progress.say("Next: tltools classify FOLDER, and tltools bench")


@app.command()
def classify(
    context: typer.Context,
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Folders (searched recursively), pictures, or .txt lists of paths."),
    ],
    *,
    model: Annotated[
        Path | None,
        typer.Option(help="An export.", show_default="the most accurate ONNX one in exports/"),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".csv, .jsonl or .parquet; - is standard output.")
    ] = Path("predictions.csv"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    device: InferenceDeviceOption = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures per forward pass.", show_default="by the model"),
    ] = None,
    workers: WorkersOption = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Cores of one forward pass.", show_default="by the model"),
    ] = None,
    picture_timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Longest time for decoding one picture, in seconds."),
    ] = 30.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if any picture could not be classified.")
    ] = False,
    errors_to: Annotated[
        Path | None,
        typer.Option(help="A CSV of the pictures that could not be read, with the reasons."),
    ] = None,
    spreadsheet: Annotated[
        bool,
        typer.Option(
            "--spreadsheet",
            help="CSV for spreadsheets: an apostrophe before what they take for a formula.",
        ),
    ] = False,
    changed_only: Annotated[
        bool,
        typer.Option(
            "--changed-only",
            help="Skip pictures whose bytes this model has classified before with this option: "
            "their rows come from a ledger.",
        ),
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Where ledgers are kept.", show_default="user cache"),
    ] = None,
) -> None:
    """Classify pictures: one row for each, with its label, probabilities or error.

    A job that was stopped goes on where it was when the same command is given again.

    Example: tltools classify photos/ --output labels.parquet
    """
    from tltools.classify.supervisor import Watch, can_supervise, supervise_job

    watch = None
    if context.obj and can_supervise():
        watch = Watch(picture_timeout)
        supervise_job(watch, inputs, output, spreadsheet=spreadsheet, tell=_tell)
    from tltools.classify import run_job

    progress = _progress()
    if model is None:
        from tltools.artifacts import best_export

        best = best_export()
        model = best.path
        accuracy = best.card.metrics["val"].accuracy
        progress.say(f"Model: {model} (the best here, {accuracy:.1%} in validation)")
    summary = run_job(
        model,
        inputs,
        output,
        device=device,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        overwrite=overwrite and not (watch is not None and watch.is_restarted),
        spreadsheet=spreadsheet,
        errors_to=errors_to,
        ledger_dir=_ledger_dir(cache_dir, changed_only=changed_only),
        progress=progress,
        watch=watch,
    )
    _print_job(summary, progress)
    if strict and (summary.num_failed or summary.unlisted):
        progress.warn("--strict: not every picture was classified")
        raise typer.Exit(1)


@app.command()
def bench(
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs and exports.", show_default="those in exports/, and their runs"),
    ] = None,
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled pictures.", show_default="the runs' own validation pictures"),
    ] = None,
    images: ImagesOption = None,
    class_names: ClassNamesOption = None,
    batch_sizes: Annotated[str, typer.Option(help="For throughput, with commas.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in rotation.")] = 3,
    num_runs: Annotated[
        int, typer.Option("--runs", min=1, help="Timed runs per round and batch size, at most.")
    ] = 50,
    threads: Annotated[
        int | None, typer.Option(min=1, help="For every candidate.", show_default="all cores")
    ] = None,
    device: InferenceDeviceOption = "auto",
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("exports"),
) -> None:
    """Measure each export beside its run, and say which to take on this machine.

    Accuracy, latency, throughput, memory, size; how fast `classify` is and what holds it up.

    Example: tltools bench exports/cnn/*.onnx --data photos/labels.csv
    """
    from tltools.artifacts import bench_inputs, open_predictor
    from tltools.bench import run_bench, write_report
    from tltools.classify import open_model
    from tltools.console import print_table, printable

    progress = _progress()
    dataset = None
    if data is not None:
        from tltools.data.dataset import load_dataset

        dataset = load_dataset(
            data,
            images=images,
            class_names=_names(class_names),
            purpose="evaluate",
            progress=progress,
        )
        _tell_findings(dataset, progress)
    inputs = bench_inputs(models, dataset)
    for note in inputs.notes:
        progress.warn(note)
    progress.say(
        f"Measuring {len(inputs.candidates)} candidates on {len(inputs.pictures)} pictures "
        f"of {inputs.name}, in turn"
    )
    report = run_bench(
        inputs.candidates,
        open_predictor=open_predictor,
        open_model=open_model,
        pictures=inputs.pictures,
        targets=inputs.targets,
        device=device,
        threads=threads,
        batch_sizes=_numbers(batch_sizes, "--batch-sizes"),
        rounds=rounds,
        runs=num_runs,
        save=lambda report: write_report(report, output),
        progress=progress,
    )
    for table in report.tables():
        print_table(table.title, table.columns, table.rows)
    for line in report.recommended():
        typer.echo(printable(line))
    for note in report.notes():
        progress.warn(note)
    paths = write_report(report, output)
    progress.say("Written: " + ", ".join(str(path) for path in paths))
    if all(row.status == "failed" for row in report.rows):
        raise TltoolsError("none of the models could be measured: see above")
    if report.recommendation is not None and report.recommendation.command:
        progress.say(f"Next: {report.recommendation.command}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A run, an export, or labelled pictures.")],
    *,
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    class_names: ClassNamesOption = None,
    sheet: Annotated[
        Path, typer.Option(help="Where a few pictures of each class are drawn, as a PNG.")
    ] = Path("inspect.png"),
) -> None:
    """Show a model's card, or audit labelled pictures; runs no model.

    Example: tltools inspect photos/labels.csv
    """
    from tltools.artifacts import is_artifact, read_artifact

    if is_artifact(path):
        from tltools.console import printable_json

        typer.echo(printable_json(read_artifact(path).card.to_text()))
        return
    from tltools.data.dataset import load_dataset

    progress = _progress()
    dataset = load_dataset(
        path,
        images=images,
        image_column=image_column,
        label_column=label_column,
        class_names=_names(class_names),
        purpose="inspect",
        progress=progress,
    )
    _print_audit(dataset, sheet, progress)
    if any(finding.severity == "error" for finding in dataset.findings):
        raise typer.Exit(1)


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="A new folder.")] = SAMPLE,
    *,
    num_images: Annotated[int, typer.Option(help="Pictures to draw.")] = 300,
    seed: Annotated[int, typer.Option(help="Another seed draws other pictures.")] = 13,
) -> None:
    """Draw the sample set: emergency and other vehicles, with their labels.

    Example: tltools sample sample/
    """
    from tltools.data.sample import SAMPLE_CLASSES, draw_sample

    progress = _progress()
    drawn = draw_sample(folder, num_images=num_images, seed=seed, progress=progress)
    progress.say(f"{num_images} drawn pictures and their labels are in {drawn}/")
    progress.say(f"Next: tltools train {drawn} --class-names {','.join(SAMPLE_CLASSES)}")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check versions, devices and execution providers, and say what to mend.

    Example: tltools doctor
    """
    from tltools.doctor import diagnose

    checks = diagnose()
    if as_json:
        import msgspec

        from tltools.console import printable_json

        text = msgspec.json.format(msgspec.json.encode(checks), indent=2).decode()
        typer.echo(printable_json(text))
    else:
        from tltools.console import print_table

        print_table(
            "tltools doctor",
            ("", "check", "finding"),
            [
                (
                    check.status,
                    check.name,
                    ". To do: ".join(filter(None, (check.detail, check.remedy))),
                )
                for check in checks
            ],
        )
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------ helpers


def _progress() -> "RichProgress":
    from tltools.console import RichProgress

    return RichProgress()


def _tell(message: str) -> None:
    from tltools.console import printable

    typer.echo(printable(message), err=True)


def _ledger_dir(cache_dir: Path | None, *, changed_only: bool) -> Path | None:
    if not changed_only:
        if cache_dir is not None:
            from tltools.errors import ConfigError

            raise ConfigError("--cache-dir is where --changed-only keeps its ledger; add that")
        return None
    from platformdirs import user_cache_path

    return (cache_dir or user_cache_path("tltools", appauthor=False)) / "classified"


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _numbers(text: str, option: str) -> tuple[int, ...]:
    from tltools.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} takes numbers with commas, got {text!r}") from None


def _training_data(data: Path | None, progress: "RichProgress", **options) -> "Dataset":
    from tltools.data.dataset import load_dataset

    if data is None:
        from tltools.data.sample import SAMPLE_CLASSES, draw_sample

        data = draw_sample(SAMPLE, progress=progress)
        options["class_names"] = options["class_names"] or SAMPLE_CLASSES
        progress.warn(
            f"no DATA given: training on the drawn sample set in {data}/, which shows how tltools "
            "works and knows nothing of real pictures"
        )
    dataset = load_dataset(data, progress=progress, **options)
    _tell_findings(dataset, progress)
    progress.say(
        f"{dataset.name}: {len(dataset.part('train'))} pictures to train on, "
        f"{len(dataset.part('val'))} for validation; classes {', '.join(dataset.classes)}"
    )
    return dataset


def _tell_findings(dataset: "Dataset", progress: "RichProgress") -> None:
    for finding in dataset.findings:
        tell = progress.say if finding.severity == "note" else progress.warn
        tell(finding.message)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _score(score: "Score | None") -> str:
    if score is None:
        return "-"
    return (
        f"{score.accuracy:.2%} ({score.low:.1%} to {score.high:.1%}), {score.correct}/{score.total}"
    )


def _print_evaluation(result: "Evaluation") -> None:
    from tltools.console import print_table

    auc = result.roc_auc.value
    print_table(
        f"{result.data}, {result.split}: {result.num_pictures} pictures",
        ("metric", "value"),
        [
            ("top-1 accuracy (95 %)", _score(result.score)),
            ("ROC AUC", f"{auc:.4f}" if auc is not None else f"- ({result.roc_auc.note})"),
            ("pictures per second", f"{result.num_pictures / result.seconds:.0f}"),
        ],
    )
    print_table(
        "By class",
        ("class", "precision", "recall", "F1", "pictures"),
        [
            (
                row.name,
                *map(_share, (row.precision, row.recall, row.f1)),
                str(row.support),
            )
            for row in result.per_class
        ],
    )
    print_table(
        "Confusion matrix: true classes down, predicted across",
        ("", *result.classes),
        [
            (name, *map(str, row))
            for name, row in zip(result.classes, result.confusion, strict=True)
        ],
    )


def _print_audit(dataset: "Dataset", sheet: Path, progress: "RichProgress") -> None:
    from tltools.console import print_table
    from tltools.plots import contact_sheet

    frame = dataset.frame
    splits = [split for split in ("train", "val", "test") if split in set(frame["split"])]
    counts = frame.groupby(["class", "split"]).size()
    print_table(
        f"{dataset.name}: {len(frame)} pictures, split: {dataset.split_rule}",
        ("class", *splits, "all"),
        [
            (
                name,
                *(str(counts.get((name, split), 0)) for split in splits),
                str((frame["class"] == name).sum()),
            )
            for name in dataset.classes
        ],
    )
    print_table(
        "Findings",
        ("", "finding"),
        [(finding.severity, finding.message) for finding in dataset.findings]
        or [("ok", "nothing to complain about")],
    )
    if len(frame):
        contact_sheet(frame, dataset.classes, sheet)
        progress.say(f"A few pictures of each class: {sheet}")


def _print_job(summary: "Summary", progress: "RichProgress") -> None:
    """Tell what a classification did, on standard error: standard output may be the result."""
    from tltools.runtime.selftest import lacks_self_test

    if note := lacks_self_test(summary.card):
        progress.warn(note)
    choice = summary.choice
    placed, nodes = summary.placement.get(summary.provider, 0), sum(summary.placement.values())
    where = f"{summary.provider} {placed}/{nodes} nodes" if nodes else summary.provider
    progress.say(f"Device: {choice.device} ({choice.reason}), {where}")
    progress.say(f"Plan: {summary.plan}")
    total = max(summary.num_pictures, 1)
    for name, count in summary.counts.items():
        progress.say(f"{count:8d}  {count / total:6.1%}  {name}")
    for reason, count in summary.errors.items():
        progress.warn(f"{count} not classified: {reason}")
    where = summary.output or "standard output"
    kept = f", {summary.num_kept} of them from before" if summary.num_kept else ""
    if summary.num_known is not None:
        progress.say(f"{summary.num_known} pictures skipped: this model has classified their bytes")
    progress.say(
        f"{summary.num_pictures} rows{kept} ({summary.num_failed} with an error) in "
        f"{summary.seconds:.1f} s, {summary.pictures_per_s:.0f} pictures/s, written to {where}"
    )


def _print_summary(trained: "list[TrainedRun]") -> None:
    from tltools.console import print_table

    splits = [
        split
        for split in ("train", "val", "test")
        if any(split in run.card.metrics for run in trained)
    ]
    titles = {"train": "training accuracy", "val": "validation accuracy", "test": "test accuracy"}
    print_table(
        "Top-1 accuracy with its 95 % interval",
        ("model", *(titles[split] for split in splits), "run"),
        [
            (
                f"{run.card.model} {run.card.head}",
                *(_score(run.card.metrics.get(split)) for split in splits),
                str(run.folder),
            )
            for run in trained
        ],
    )


def main(args: list[str] | None = None) -> None:
    """Run the command line. A TltoolsError or the system's prints as one line, a bug in full."""
    try:
        # Whether this process is ours: `classify` divides it.
        app(args, obj=args is None)
    except TltoolsError as error:
        from tltools.console import printable

        typer.secho(f"error: {printable(str(error))}", fg="red", err=True)
        raise SystemExit(error.exit_code) from error
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        from tltools.console import printable

        where = f" {error.filename}" if error.filename else ""
        message = printable(f"the system refuses{where}: {error.strerror}; mend that and run again")
        typer.secho(f"error: {message}", fg="red", err=True)
        raise SystemExit(1) from error
    except SystemExit as leaving:
        # typer turns Ctrl-C into this exit code and says nothing.
        if leaving.code == INTERRUPTED:
            typer.secho("stopped by Ctrl-C", fg="yellow", err=True)
        raise
