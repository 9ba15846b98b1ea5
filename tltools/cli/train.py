"""`tltools train`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tltools.cli.command import INTERRUPTED, Out, command
from tltools.cli.options import (
    CLUSTER,
    DATA,
    ClassNamesOption,
    DeviceOption,
    ImageColumnOption,
    ImagesOption,
    LabelColumnOption,
    RayAddressOption,
    ReportOption,
    SkipBadOption,
    open_cluster,
    path_or_url,
    split_names,
)
from tltools.cli.show import check_report, score_text, tell_findings, write_report
from tltools.errors import ConfigError, TltoolsError

if TYPE_CHECKING:
    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.data.remote import Location
    from tltools.training import TrainedRun

SAMPLE = Path("sample")
TRAINING, VGG16 = "Training", "VGG16"
"""Titles of parts of the help."""


class LogChoice(StrEnum):
    """`--log`; typer takes no list of a Literal."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


@command
def train(
    data: Annotated[
        Any,  # Location | None
        typer.Argument(
            help="A CSV (picture, label), a folder of class folders, or one with train/ and val/; "
            "an archive or a URL of one of these.",
            show_default="the drawn sample set, in sample/",
            parser=path_or_url,
        ),
    ] = None,
    *,
    out: Out,
    model: Annotated[
        Literal["cnn", "vgg16", "all"],
        typer.Option(help="A small CNN, frozen VGG16 with a new head, or both."),
    ] = "all",
    recipe: Annotated[
        Literal["default", "article"],
        typer.Option(
            help="Hyper-parameters: tuned, or the article's (which ends at the last epoch).",
            rich_help_panel=TRAINING,
        ),
    ] = "default",
    weights: Annotated[
        str,
        typer.Option(
            help="VGG16's: imagenet (downloaded once), or a .safetensors or .pth file.",
            rich_help_panel=VGG16,
        ),
    ] = "imagenet",
    normalization: Annotated[
        Literal["auto", "torchvision", "original"],
        typer.Option(
            help="What the weights were trained with: torchvision's mean and std, or the original "
            "mean only; auto: original for features-only weights.",
            rich_help_panel=VGG16,
        ),
    ] = "auto",
    head: Annotated[
        Literal["auto", "last-layer", "pooled"],
        typer.Option(
            help="VGG16's: classifier[6], or a pooled one; auto: what the weights allow.",
            rich_help_panel=VGG16,
        ),
    ] = "auto",
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over train.", show_default="15 cnn, 80 vgg16", rich_help_panel=TRAINING
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Pictures per step.", show_default="128", rich_help_panel=TRAINING),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate.", show_default="0.0001 cnn, 0.001 vgg16", rich_help_panel=TRAINING
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="Adam's L2 penalty.", show_default="0 cnn, 0.1 vgg16", rich_help_panel=TRAINING
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Of weights, order, augmentation and split.", rich_help_panel=TRAINING),
    ] = 13,
    precision: Annotated[
        Literal["auto", "fp32", "amp"],
        typer.Option(
            help="amp: mixed precision, on a GPU; auto: amp there, else fp32.",
            rich_help_panel=TRAINING,
        ),
    ] = "auto",
    feature_precision: Annotated[
        Literal["auto", "fp32", "fp16", "int8"],
        typer.Option(
            help="Precision of the features used to train VGG16's head; evaluation always uses "
            "fp32. auto: int8 on the CPU, fp16 on a GPU.",
            rich_help_panel=VGG16,
        ),
    ] = "auto",
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop early after so many epochs without a lower validation loss.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment", help="Augment the CNN's training pictures.", rich_help_panel=TRAINING
        ),
    ] = None,
    class_weights: Annotated[
        bool | None,
        typer.Option(
            "--class-weights", help="Weigh rare classes up in the loss.", rich_help_panel=TRAINING
        ),
    ] = None,
    resize: Annotated[
        Literal["squash", "crop"] | None,
        typer.Option(
            help="Squash to a square, or resize and crop the centre.",
            show_default="squash for the cnn, crop for vgg16",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    split: Annotated[
        Literal["auto", "default", "article"],
        typer.Option(
            help="default keeps identical copies on one side; article is the article's exact one; "
            "auto keeps the data's own split, else default.",
            rich_help_panel=DATA,
        ),
    ] = "auto",
    val_fraction: Annotated[
        float, typer.Option(help="Share of pictures for validation.", rich_help_panel=DATA)
    ] = 0.1,
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    class_names: ClassNamesOption = None,
    skip_bad: SkipBadOption = False,
    device: DeviceOption = "auto",
    run_dir: Annotated[Path, typer.Option(help="Where run folders are made.")] = Path("runs"),
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for VGG16's features, and for decoded images that do not fit in memory.",
            show_default="user cache",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    log: Annotated[
        list[LogChoice] | None,
        typer.Option(
            help="Also keep an experiment log, in local files; may be given twice.",
            show_default="none",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the newest unfinished run, as it was begun."),
    ] = False,
    report: ReportOption = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help='ray: a Ray cluster computes VGG16\'s features; pip install "ray\\[data]>=2.60".',
            rich_help_panel=CLUSTER,
        ),
    ] = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Train the models and compare them.

    Example: tltools train photos/labels.csv --weights vgg16.pth
    """
    check_report(report)
    if engine == "ray" and model == "cnn":
        raise ConfigError(
            "--engine ray computes VGG16's features, and --model cnn has none; leave it out, or "
            "choose --model vgg16"
        )
    from tltools.training import default_config

    models = ("cnn", "vgg16") if model == "all" else (model,)
    progress = out.progress
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
    logs = [one.value for one in log or ()]
    if logs:
        from tltools.training.logs import check_logs

        check_logs(logs)
    remote = open_cluster(engine, ray_address, device, progress)
    trained: list[TrainedRun] = []
    failure: TltoolsError | None = None
    if resume:
        from tltools.training import find_resumable, resume_run

        folder = find_resumable(run_dir, models, epochs=epochs)
        progress.say(f"Going on with {folder}")
        trained.append(
            resume_run(
                folder,
                epochs=epochs,
                device=device,
                cache_dir=cache_dir,
                logs=logs,
                remote=remote,
                progress=progress,
            )
        )
    else:
        from tltools.training import train_models

        dataset = _training_data(
            data,
            progress,
            images=images,
            image_column=image_column,
            label_column=label_column,
            class_names=split_names(class_names),
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
                logs=logs,
                remote=remote,
                progress=progress,
            ):
                trained.append(run)  # noqa: PERF402 - those before a failure count
        except TltoolsError as error:
            if not trained:
                raise
            failure = error
    out.result([_facts(run) for run in trained], lambda: _print_summary(trained))
    if report is not None:
        from tltools.artifacts import Artifact
        from tltools.report.models import training_section

        runs = [Artifact(run.folder, run.card) for run in trained]
        write_report(report, [training_section(runs)], progress)
    if failure is not None:
        raise failure
    if trained[-1].interrupted:
        progress.say("Go on with it: tltools train --resume")
        raise typer.Exit(INTERRUPTED)
    progress.say("Next: tltools export --format onnx; tltools report shows curves and mistakes")


def _training_data(data: "Location | None", progress: "RichProgress", **options) -> "Dataset":
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
    tell_findings(dataset, progress)
    progress.say(
        f"{dataset.name}: {len(dataset.part('train'))} pictures to train on, "
        f"{len(dataset.part('val'))} for validation; classes {', '.join(dataset.classes)}"
    )
    return dataset


def _facts(run: "TrainedRun") -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "model": run.card.model,
        "head": run.card.head,
        "interrupted": run.interrupted,
        "metrics": run.card.metrics,
        "confidence": run.card.confidence,
    }


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
                *(score_text(run.card.metrics.get(split)) for split in splits),
                str(run.folder),
            )
            for run in trained
        ],
    )
