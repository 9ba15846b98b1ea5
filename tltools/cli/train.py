"""`tltools train`."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tltools.backbones import BACKBONES, COMPARED, find_backbone
from tltools.backbones.backbone import IMAGENET, FineTune, RecipeName
from tltools.cli.command import INTERRUPTED, Out, command, given_options
from tltools.cli.options import (
    CLUSTER,
    DATA,
    DeviceOption,
    RayAddressOption,
    ReadingOptions,
    ReportOption,
    open_cluster,
    path_or_run_or_url,
    split_names,
)
from tltools.cli.resume import Stopped, tell_how_to_resume
from tltools.cli.show import check_report, tell_findings, write_report
from tltools.cli.usage import typed_without
from tltools.data.folders import RUN_DIR, is_run
from tltools.errors import ArtifactError, ConfigError
from tltools.training.early import check_folds
from tltools.wording import counted, either, in_percent, listed, plural, score_text, similar_paths

if TYPE_CHECKING:
    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.data.location import Location
    from tltools.run_folder import FoldPredictions
    from tltools.runtime.device import Device
    from tltools.training import TrainConfig, TrainedRun, TrainSetup

SAMPLE = Path("sample")
TRAINING, PRETRAINED = "Training", "Pretrained backbones"
"""Titles of panels of the help."""


class LogChoice(StrEnum):
    """Values of `--log`; an enum, because typer takes no list of a Literal."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


# ------------------------------------------------------------------- choices of the backbones


def _models() -> list[str]:
    return [*BACKBONES, "all"]


def _model(name: str) -> str:
    """Check a name; an unlisted one loads torchvision or timm."""
    if "," in name:
        raise typer.BadParameter(f"name one model, or all, for {listed(COMPARED)}")
    if name not in _models():
        try:
            find_backbone(name)
        except ConfigError as error:
            from tltools.console import in_options

            raise typer.BadParameter(in_options(str(error))) from error
    return name


def _heads() -> list[str]:
    """Name the heads of backbones that have more than one."""
    choices = (one.heads for one in BACKBONES.values() if len(one.heads) > 1)
    return ["auto", *dict.fromkeys(name for heads in choices for name in heads)]


def _normalizations() -> list[str]:
    known = (one.pretrained.normalizations for one in BACKBONES.values() if one.pretrained)
    return ["auto", *dict.fromkeys(name for names in known for name in names)]


def _downloads() -> list[str]:
    known = (one.pretrained.downloads for one in BACKBONES.values() if one.pretrained)
    return list(dict.fromkeys(name for names in known for name in names))


def _completion(names: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Return the shell completion of a name."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _choice(names: Callable[[], list[str]], **settings: Any) -> Any:
    """Return an option whose choices are looked up when it is parsed."""

    def parse(text: str) -> str:
        if text not in names():
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(names())}")
        return text

    return typer.Option(
        parser=parse,
        autocompletion=_completion(names),
        **{"metavar": f"<{'|'.join(names())}>", **settings},
    )


def _defaults(setting: str) -> str:
    """Show the recipes' defaults of a setting: `15 cnn, 80 others`, or `128` if all agree."""
    return _shown(
        {name: getattr(one.recipes["default"], setting) for name, one in BACKBONES.items()}
    )


def _fine_tuning_defaults(setting: str) -> str:
    """Show the defaults of a setting for each kind of fine-tuning."""
    return _shown(
        {
            kind: getattr(recipe, setting)
            for one in BACKBONES.values()
            for kind, recipe in one.fine_tuning.items()
        }
    )


def _both_defaults(setting: str) -> str:
    """Show the default of a setting, and the one for fine-tuning."""
    usual, tuned = _defaults(setting), _fine_tuning_defaults(setting)
    return usual if usual == tuned else f"{usual}; {tuned} with --fine-tune"


def _shown(values: dict[str, Any]) -> str:
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        shown = value if isinstance(value, str) else f"{value:g}"
        names.setdefault(shown, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(
        f"{value} {some[0] if len(some) == 1 else 'others'}" for value, some in names.items()
    )


# -------------------------------------------------------------------------------- the options

ModelOption = Annotated[
    str,
    typer.Option(
        parser=_model,
        autocompletion=_completion(_models),
        metavar="NAME",
        help=f"A name from tltools models, or timm:NAME; all: {' and '.join(COMPARED)}.",
    ),
]
RecipeOption = Annotated[
    Literal["default", "article"],
    typer.Option(
        help="Hyperparameters: tuned, or the article's (keeps the last epoch).",
        rich_help_panel=TRAINING,
    ),
]
WeightsOption = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(_downloads())} or torchvision's name (downloaded once), or a file.",
        rich_help_panel=PRETRAINED,
    ),
]
NormalizationOption = Annotated[
    str,
    _choice(
        _normalizations,
        metavar="<name>",
        help=f"Pixel normalization of weights: {either(_normalizations()[1:])}; auto: detected.",
        rich_help_panel=PRETRAINED,
    ),
]
HeadOption = Annotated[
    str,
    _choice(
        _heads,
        metavar="<name>",
        help="Head: last-layer (replaced) or pooled (features); auto: depends on the weights.",
        rich_help_panel=PRETRAINED,
    ),
]
FeaturePrecisionOption = Annotated[
    Literal["auto", "fp32", "fp16", "int8"],
    typer.Option(
        help="Precision of training features; auto: fp16 (GPU), int8, or fp32 (few images).",
        rich_help_panel=PRETRAINED,
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        help="Passes over the training images.",
        show_default=_both_defaults("epochs"),
        rich_help_panel=TRAINING,
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Images per training step.",
        show_default=f"{_both_defaults('batch_size')}, less for few images",
        rich_help_panel=TRAINING,
    ),
]
LearningRateOption = Annotated[
    float | None,
    typer.Option(
        help="Learning rate of the head and new layers.",
        show_default=_both_defaults("lr"),
        rich_help_panel=TRAINING,
    ),
]
WeightDecayOption = Annotated[
    float | None,
    typer.Option(
        help="Weight decay of the optimizer.",
        show_default=_both_defaults("weight_decay"),
        rich_help_panel=TRAINING,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        help="Random seed for weights, shuffling, augmentation and the split.",
        rich_help_panel=TRAINING,
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "amp"],
    typer.Option(
        help="amp: mixed precision (fp16 on GPU, bf16 on CPU); auto: where faster.",
        rich_help_panel=TRAINING,
    ),
]
PatienceOption = Annotated[
    int | None,
    typer.Option(
        help="Stop after this many epochs without a lower validation loss.",
        rich_help_panel=TRAINING,
    ),
]
AugmentOption = Annotated[
    Literal["none", "flip", "crop", "color"] | None,
    typer.Option(
        help="Random changes of training images; each includes those before it.",
        show_default=_both_defaults("augment"),
        rich_help_panel=TRAINING,
    ),
]
FineTuneOption = Annotated[
    Literal["none", "last-block", "all"] | None,
    typer.Option(
        help="Pretrained layers to train besides the head.",
        show_default="none; on a GPU, --model all adds last-block",
        rich_help_panel=PRETRAINED,
    ),
]
BackboneLearningRateOption = Annotated[
    float | None,
    typer.Option(
        "--backbone-lr",
        help="Learning rate of fine-tuned layers.",
        show_default=_fine_tuning_defaults("backbone_lr"),
        rich_help_panel=PRETRAINED,
    ),
]
ScheduleOption = Annotated[
    Literal["constant", "cosine"] | None,
    typer.Option(
        help="Learning rate: constant, or warm-up and cosine decay.",
        show_default=_both_defaults("schedule"),
        rich_help_panel=TRAINING,
    ),
]
OptimizerOption = Annotated[
    Literal["adam", "adamw"] | None,
    typer.Option(
        help="Adam with an L2 penalty, or AdamW with decoupled weight decay.",
        show_default=_both_defaults("optimizer"),
        rich_help_panel=TRAINING,
    ),
]
LabelSmoothingOption = Annotated[
    float | None,
    typer.Option(
        help="Probability spread over all classes in the loss's targets.",
        show_default=_both_defaults("label_smoothing"),
        rich_help_panel=TRAINING,
    ),
]
ClipGradOption = Annotated[
    float | None,
    typer.Option(
        help="Maximum norm of the gradient; 0 disables clipping.",
        show_default=_both_defaults("clip_grad"),
        rich_help_panel=TRAINING,
    ),
]
DropoutOption = Annotated[
    float | None,
    typer.Option(
        help="Fraction of features dropped before the head (fine-tuning).",
        show_default=_fine_tuning_defaults("dropout"),
        rich_help_panel=PRETRAINED,
    ),
]
ClassWeightsOption = Annotated[
    bool | None,
    typer.Option(
        "--class-weights",
        help="Weight the loss by inverse class frequency.",
        rich_help_panel=TRAINING,
    ),
]
ResizeOption = Annotated[
    Literal["squash", "crop"] | None,
    typer.Option(
        help="Squash to a square, or resize and crop the center.",
        show_default=_defaults("resize"),
        rich_help_panel=TRAINING,
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Height and width of the model's input in pixels.",
        show_default="the weights' own",
        rich_help_panel=TRAINING,
    ),
]
SplitOption = Annotated[
    Literal["auto", "default", "article"],
    typer.Option(
        help="Split rule; auto: the data's own split, else the recipe's.",
        rich_help_panel=DATA,
    ),
]
ValFractionOption = Annotated[
    float,
    typer.Option(help="Fraction of images for validation, between 0 and 1.", rich_help_panel=DATA),
]
FoldsOption = Annotated[
    int,
    typer.Option(
        help="Also cross-validate on this many folds, to find wrong labels.",
        show_default="no cross-validation",
        rich_help_panel=DATA,
    ),
]
RunDirOption = Annotated[Path, typer.Option(help="Folder for runs.")]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Resume the named or newest unfinished run with its original settings.",
    ),
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for cached features and for decoded images exceeding memory.",
        show_default="user cache",
        rich_help_panel=TRAINING,
    ),
]
LogOption = Annotated[
    list[LogChoice] | None,
    typer.Option(
        help="Also keep an experiment log in local files; repeatable.",
        show_default="none",
    ),
]
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help='ray: compute features on a Ray cluster (pip install "ray\\[data]>=2.60").',
        rich_help_panel=CLUSTER,
    ),
]


@dataclass(frozen=True, kw_only=True)
class SettingOptions:
    """Settings of a model; None keeps the recipe's value."""

    head: HeadOption = "auto"
    image_size: ImageSizeOption = None
    epochs: EpochsOption = None
    batch_size: BatchSizeOption = None
    lr: LearningRateOption = None
    backbone_lr: BackboneLearningRateOption = None
    schedule: ScheduleOption = None
    optimizer: OptimizerOption = None
    weight_decay: WeightDecayOption = None
    seed: SeedOption = 13
    precision: PrecisionOption = "auto"
    feature_precision: FeaturePrecisionOption = "auto"
    patience: PatienceOption = None
    augment: AugmentOption = None
    label_smoothing: LabelSmoothingOption = None
    clip_grad: ClipGradOption = None
    dropout: DropoutOption = None
    class_weights: ClassWeightsOption = None
    resize: ResizeOption = None


@dataclass(frozen=True, kw_only=True)
class DataOptions(ReadingOptions):
    """How labels are read and images are split."""

    split: SplitOption = "auto"
    val_fraction: ValFractionOption = 0.1


@command
def train(
    context: typer.Context,
    data: Annotated[
        Any,  # Location | None
        typer.Argument(
            help="CSV (image, label), class folders, or train/ and val/; archive or URL.",
            show_default="the drawn sample set, in sample/",
            parser=path_or_run_or_url,
        ),
    ] = None,
    *,
    out: Out,
    model: ModelOption = "all",
    recipe: RecipeOption = "default",
    fine_tune: FineTuneOption = None,
    folds: FoldsOption = 0,
    weights: WeightsOption = IMAGENET,
    normalization: NormalizationOption = "auto",
    settings: SettingOptions,
    reading: DataOptions,
    device: DeviceOption = "auto",
    run_dir: RunDirOption = RUN_DIR,
    cache_dir: CacheDirOption = None,
    log: LogOption = None,
    resume: ResumeOption = False,
    report: ReportOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Train models and compare them.

    Example: tltools train photos/labels.csv --weights vgg16.pth
    """
    check_report(report)
    check_folds(folds)
    models = _models_of(model)
    if engine == "ray":
        _check_features(models)
    run = _named_run(data, run_dir, given_options(context)) if resume else None
    if run is not None:
        data, run_dir = None, run.parent
    _check_early(data, models, weights, run_dir)
    from tltools.training import TrainSetup

    configs = _configs(model, recipe, fine_tune, settings, device)
    logs = tuple(one.value for one in log or ())
    if logs:
        from tltools.training.logs import check_logs

        check_logs(logs)
    setup = TrainSetup(
        weights=weights,
        normalization=normalization,
        device=device,
        run_dir=run_dir,
        cache_dir=cache_dir,
        logs=logs,
        cluster=open_cluster(engine, ray_address, device, out.progress),
        command=typed_without(context, "--model", "--fine-tune"),
    )
    load = partial(_training_data, data, reading, settings.seed, recipe, out.progress)
    if resume:
        trained = _resume(setup, run, given_options(context), load, out.progress)
        failure = None
    else:
        _tell_unfit(configs, settings, out.progress)
        _tell_unfinished(run_dir, models, out.progress)
        dataset = load()
        if settings.batch_size is None and recipe == "default":
            configs = _with_fitting_batches(configs, dataset, out.progress)
        trained, failure = _train(dataset, configs, setup, folds, out.progress)
    _show(trained, out, report, resumed=resume)
    if failure is not None:
        raise failure
    if trained[-1].interrupted:
        tell_how_to_resume(trained[-1].folder, out.progress)
        raise typer.Exit(INTERRUPTED)
    _tell_next([run.folder for run in trained], out.progress)


def _tell_next(folders: Sequence[Path], progress: "RichProgress") -> None:
    """Say what can be done with runs, which commands find without their names only in `runs/`."""
    from tltools.artifacts import find_runs

    is_found = all(one.parent.absolute() == RUN_DIR.absolute() for one in folders)
    named = f" {shlex.join(map(str, folders))}"
    # Without names, older runs of other kinds would be exported again, too.
    is_all = is_found and {one.path for one in find_runs()} == set(folders)
    progress.say(
        f"Next: tltools export{'' if is_all else named}, or tltools report"
        f"{'' if is_found else named} to see curves and mistakes"
    )


def _check_early(
    data: "Location | None", models: Sequence[str], weights: str, run_dir: Path
) -> None:
    """Check names and folders that may be misspelled, in a fraction of PyTorch's import time."""
    from tltools.atomic import check_writable
    from tltools.data.labels import check_data
    from tltools.training.early import check_weights

    if isinstance(data, Path):
        check_data(data)
    check_weights(models, weights)
    check_writable(run_dir)


def _configs(
    model: str,
    recipe: "RecipeName",
    fine_tune: "FineTune | None",
    settings: SettingOptions,
    device: "Device",
) -> "list[TrainConfig]":
    """Return the settings of all models to train.

    Fine-tuning is quick on a GPU, so there it is part of the comparison of all models.
    """
    from tltools.runtime.device import torch_device
    from tltools.runtime.driver import num_gpus
    from tltools.training import default_configs

    models, changes = _models_of(model), asdict(settings)
    configs = default_configs(models, recipe, fine_tune=fine_tune or "none", **changes)
    wanted = fine_tune is None and len(models) > 1 and recipe == "default"
    # Without a GPU, PyTorch need not be asked, so that errors in the data come before its import.
    if wanted and num_gpus() and torch_device(device).device != "cpu":
        # Which computes no features beforehand there.
        changes["feature_precision"] = None
        tuned = default_configs(models, recipe, fine_tune="last-block", **changes)
        configs += [one for one in tuned if one.fine_tune != "none"]
    return configs


def _tell_unfit(
    configs: "Sequence[TrainConfig]", settings: SettingOptions, progress: "RichProgress"
) -> None:
    """Say which given settings do not apply to some of several models.

    Raises:
        ConfigError: If one applies to none of them.
    """
    given = {name: one for name, one in asdict(settings).items() if one not in (None, "auto")}
    unfit = [[name for name in given if getattr(one, name) != given[name]] for one in configs]
    for name in given:
        if all(name in names for names in unfit):
            raise ConfigError(f"`{name}=` applies to none of the models to train; leave it out")
    for config, names in zip(configs, unfit, strict=True):
        if names:
            tuned = "" if config.fine_tune == "none" else f", `fine_tune={config.fine_tune}`"
            options = " and ".join(f"`{name}=`" for name in names)
            progress.say(
                f"{config.model}{tuned}: {options} {plural(len(names), 'does', 'do')} not apply"
            )


def _tell_unfinished(run_dir: Path, models: Sequence[str], progress: "RichProgress") -> None:
    """Say that a run could be resumed, since this command begins a new one."""
    from tltools.run_folder import resume_command, unfinished_runs

    # The newest of its model: the one that the command takes.
    if found := unfinished_runs(run_dir, models):
        progress.say(
            f"{found[0]} is unfinished: {resume_command(found[0])} continues it; this is a new run"
        )


def _with_fitting_batches(
    configs: "Sequence[TrainConfig]", dataset: "Dataset", progress: "RichProgress"
) -> "list[TrainConfig]":
    """Halve batch sizes that leave an epoch too few steps, and say so."""
    from tltools.training import fit_batch_sizes

    num_train = len(dataset.part("train"))
    fitted = fit_batch_sizes(configs, num_train)
    for before, after in dict.fromkeys(
        (one.batch_size, other.batch_size)
        for one, other in zip(configs, fitted, strict=True)
        if one != other
    ):
        progress.say(
            f"Batch size: {after}, because {before} would be "
            f"{counted(-(-num_train // before), 'step')} per epoch (--batch-size sets it)"
        )
    return fitted


def _models_of(model: str) -> list[str]:
    return list(COMPARED) if model == "all" else [model]


def _check_features(models: Sequence[str]) -> None:
    """Refuse a cluster if no model has frozen features."""
    if any(find_backbone(name).pretrained for name in models):
        return
    others = " or ".join(name for name, one in BACKBONES.items() if one.pretrained)
    raise ConfigError(
        f"--engine ray computes frozen features, and --model {models[0]} has none; leave it out, "
        f"or choose --model {others}"
    )


def _train(
    dataset: "Dataset",
    configs: "Sequence[TrainConfig]",
    setup: "TrainSetup",
    folds: int,
    progress: "RichProgress",
) -> "tuple[list[TrainedRun], Exception | KeyboardInterrupt | None]":
    """Train models one after another; return those before a failure, and the failure."""
    from tltools.training import train_models

    trained: list[TrainedRun] = []
    stopped = Stopped(configs, setup)
    try:
        for run in train_models(dataset, configs, setup=setup, folds=folds, progress=progress):
            trained.append(run)  # noqa: PERF402 - keeps runs before a failure
    except Exception as error:  # a bug in one model does not hide the runs of others
        if not trained:
            raise
        return trained, error
    except KeyboardInterrupt as error:  # before a run could be finished with the epochs so far
        stopped.tell([run.folder for run in trained], progress)
        if not trained:
            raise
        return trained, error
    return trained, None


def _named_run(data: "Location | None", run_dir: Path, given: dict[str, Any]) -> Path | None:
    """Return the run that `--resume` names in the place of the data; None if it names none.

    Raises:
        ConfigError: If there is neither a run nor data of this name, or the run is not in the given
            folder for runs.
    """
    if not isinstance(data, Path):
        return None
    if not data.exists() and not (run_dir / data).exists():
        raise ConfigError(
            f"{data} does not exist{similar_paths(data, run_dir)}: name a run, which tltools runs "
            "lists, or the images that it was begun with"
        )
    in_folder = run_dir / data
    run = in_folder if not is_run(data) and data.name == str(data) else data
    if not is_run(run):
        return None
    if "run_dir" in given and run.parent.absolute() != run_dir.absolute():
        raise ConfigError(f"{run} is not in {run_dir}; omit --run-dir, or name a run in it")
    return run


def _resume(
    setup: "TrainSetup",
    run: Path | None,
    given: dict[str, Any],
    load: "Callable[[], Dataset]",
    progress: "RichProgress",
) -> "list[TrainedRun]":
    """Resume a run, or the newest one, which the given options must not contradict.

    Without --model, the newest one may be of any model.
    """
    from tltools.cli.resume import check_resumed, tell_change, tell_resumed
    from tltools.run_folder import load_card
    from tltools.training import check_resumable, find_resumable, resume_run

    epochs = given.get("epochs")
    models = _models_of(given["model"]) if "model" in given else None
    if run is not None:
        del given["data"]
        check_resumable(run, epochs)
    folder = run or find_resumable(
        setup.run_dir,
        models,
        epochs=epochs,
        fine_tune=given.get("fine_tune"),
        progress=progress,
    )
    check_resumed(folder, given, setup, load)
    tell_resumed(folder, epochs, progress)
    earlier = None
    with suppress(ArtifactError):  # it has none before its first end, and a damaged one is replaced
        earlier = load_card(folder)
    try:
        trained = resume_run(folder, setup, epochs=epochs, progress=progress)
    except KeyboardInterrupt:
        progress.warn(f"{folder} keeps its epochs so far; run the same command again to resume it")
        raise
    if earlier is not None:
        tell_change(earlier, trained.card, progress)
    return [trained]


def _show(trained: "list[TrainedRun]", out: Out, report: Path | None, *, resumed: bool) -> None:
    """Print a table of the runs, and write the requested report."""
    from tltools.cli.chance import tell_chance
    from tltools.run_folder import read_folds

    folds = [read_folds(run.folder, run.card.classes) for run in trained]
    for run, found in zip(trained, folds, strict=True):
        if found is not None:
            _tell_folds(run, found, out.progress)
    unknown = [run for run, found in zip(trained, folds, strict=True) if not found]
    tell_chance(unknown, out.progress, resumed=resumed)
    facts = [_facts(run, found) for run, found in zip(trained, folds, strict=True)]
    out.result(facts, lambda: _print_summary(trained, folds))
    if report is not None:
        from tltools.artifacts import Artifact
        from tltools.report.models import training_section

        runs = [Artifact(run.folder, run.card) for run in trained]
        write_report(report, [training_section(runs)], out.progress)


def _training_data(
    data: "Location | None",
    reading: DataOptions,
    seed: int,
    recipe: "RecipeName",
    progress: "RichProgress",
) -> "Dataset":
    """Load the labeled images, or draw a sample set if none are given."""
    from tltools.data.dataset import load_dataset

    class_names = split_names(reading.class_names)
    if data is None:
        from tltools.sample import SAMPLE_CLASSES, draw_sample

        data = draw_sample(SAMPLE, progress=progress)
        class_names = class_names or SAMPLE_CLASSES
        progress.warn(
            f"no DATA given: training on the drawn sample set in {data}/; such a model shows how "
            "tltools works and is useless for real images"
        )
    options = {**asdict(reading), "class_names": class_names, "auto_split": recipe}
    dataset = load_dataset(data, seed=seed, progress=progress, **options)
    tell_findings(dataset, progress)
    progress.say(
        f"{dataset.name}: {counted(len(dataset.part('train')), 'image')} for training, "
        f"{len(dataset.part('val'))} for validation; classes {listed(dataset.classes)}"
    )
    return dataset


def _facts(run: "TrainedRun", folds: "FoldPredictions | None") -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "model": run.card.model,
        "head": run.card.head,
        "interrupted": run.interrupted,
        "metrics": run.card.metrics,
        "confidence": run.card.confidence,
        "fold_accuracies": None if folds is None else folds.accuracies(),
    }


MAX_SUSPECTS = 10
"""Labels that look wrong that are printed; the run's `folds.csv` has all of them."""


def _tell_folds(run: "TrainedRun", folds: "FoldPredictions", progress: "RichProgress") -> None:
    """Say what cross-validation found."""
    from tltools.run_folder import FOLDS

    mean, deviation = folds.mean_and_deviation()
    scores = folds.accuracies()
    progress.say(
        f"{run.folder}: {len(scores)} folds: accuracy {in_percent(mean)}, standard deviation "
        f"{100 * deviation:.1f} points ({', '.join(map(in_percent, scores))})"
    )
    if not folds.beats_chance():
        progress.warn(
            f"{run.folder}: the folds' models are no better than always predicting the most common "
            "class, so they say nothing about wrong labels"
        )
        return
    if folds.doubts_too_many():
        progress.warn(
            f"{run.folder}: the folds' models (accuracy {in_percent(mean)}) doubt "
            f"{len(folds.doubted):,} of {counted(len(folds.paths), 'label')}, too many to say "
            "which are wrong; a better model, or more images, would say it"
        )
        return
    suspects = folds.suspects()
    if not len(suspects):
        progress.say(
            f"{run.folder}: no label looks wrong, according to the folds' models; "
            f"{run.folder / FOLDS} has their predictions"
        )
        return
    progress.warn(
        f"{counted(len(suspects), 'label')} of {len(folds.paths):,} may be wrong, according to the "
        f"folds' models (accuracy {in_percent(mean)}): look at "
        f"{plural(len(suspects), 'it', 'them')} in {run.folder / FOLDS} (column suspect) or in a "
        "report" + ("; the most suspicious ones:" if len(suspects) > MAX_SUSPECTS else ":")
    )
    for row in suspects[:MAX_SUSPECTS]:
        label, guess = folds.targets[row], folds.probs[row].argmax()
        classes = run.card.classes
        progress.say(
            f"  {folds.paths[row]}: labeled {classes[label]}, predicted {classes[guess]} "
            f"({in_percent(folds.probs[row, guess])})"
        )


def _print_summary(trained: "list[TrainedRun]", folds: "Sequence[FoldPredictions | None]") -> None:
    from tltools.console import print_table
    from tltools.runs import model_title

    splits = [
        split
        for split in ("train", "val", "test")
        if any(split in run.card.metrics for run in trained)
    ]
    titles = {"train": "training accuracy", "val": "validation accuracy", "test": "test accuracy"}
    print_table(
        "Top-1 accuracy with its 95% interval",
        (
            "model",
            *(titles[split] for split in splits),
            *(["mean of the folds ± standard deviation"] if any(folds) else []),
            "run",
        ),
        [
            (
                model_title(run.card),
                *(
                    score_text(run.card.metrics.get(split), is_seen=split == "train")
                    for split in splits
                ),
                *([_folds_text(found)] if any(folds) else []),
                str(run.folder),
            )
            for run, found in zip(trained, folds, strict=True)
        ],
    )


def _folds_text(folds: "FoldPredictions | None") -> str:
    """Return the mean accuracy of folds with its standard deviation."""
    if folds is None:
        return "-"
    mean, deviation = folds.mean_and_deviation()
    return f"{in_percent(mean)} ± {100 * deviation:.1f}"
