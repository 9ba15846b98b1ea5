"""`tltools evaluate`."""

import shlex
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from tltools.cli.command import Out, command, given_options
from tltools.cli.options import (
    DeviceOption,
    EngineOption,
    MinConfidenceOption,
    OverwriteOption,
    RayAddressOption,
    ReadingOptions,
    ReportOption,
    Tf32Option,
    holds_images,
    load_to_score,
    open_cluster,
    path_or_run,
    path_or_url,
)
from tltools.cli.scores import refuse_another, refuse_others, write_scores
from tltools.cli.show import check_output_folder, check_report, write_report
from tltools.cli.thresholds import (
    TargetOptions,
    ThresholdOptions,
    proportion_text,
    tell_threshold,
)
from tltools.data.folders import is_run, runs_in
from tltools.errors import ConfigError, DataError
from tltools.runtime.model_formats import suffixes
from tltools.wording import (
    MAX_LISTED,
    SPLIT_NAMES,
    grouped,
    in_percent,
    percent,
    percent_or_dash,
    plural,
    score_text,
    together,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tltools.card import Card, Threshold
    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.data.location import Location
    from tltools.evaluate import Evaluation
    from tltools.ray.models import RayCluster
    from tltools.thresholds import Target


ModelArgument = Annotated[
    Path, typer.Argument(help=f"Run, or export ({suffixes()}).", parser=path_or_run)
]
DataArgument = Annotated[
    Any,  # Location
    typer.Argument(
        help="Labeled images, as for train.",
        show_default="for a threshold: the run's validation images",
        parser=path_or_url,
    ),
]
SplitOption = Annotated[
    Literal["all", "train", "val", "test"] | None,
    typer.Option(
        help="Split to score, for data with splits.", show_default="test, else val, else all"
    ),
]
ExcludeTrainOption = Annotated[
    bool,
    typer.Option("--exclude-train", help="Leave out images that the model was trained on."),
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for scores, predictions and confusion matrix."),
]


MistakesOption = Annotated[
    bool,
    typer.Option("--mistakes", help="Write only misclassified images, to mistakes.csv."),
]

_SPLITS = {"all": "all images", **SPLIT_NAMES}


class _Opened(NamedTuple):
    """A model that is ready to be scored."""

    card: "Card"
    run: "Callable[..., Evaluation]"
    cluster: "RayCluster | None"

    def score(self, dataset: "Dataset", **options: Any) -> "Evaluation":
        """Score it; the options are those of `tltools.evaluate.evaluate`."""
        with self.cluster or nullcontext():
            return self.run(dataset=dataset, **options)


@dataclass(frozen=True, kw_only=True)
class RunningOptions:
    """How a model is run."""

    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 16
    device: DeviceOption = "auto"
    tf32: Tf32Option = False
    engine: EngineOption = "local"
    ray_address: RayAddressOption = None

    def open(self, model: Path, progress: "RichProgress") -> _Opened:
        """Open a model here or on a cluster."""
        from tltools.runtime.selftest import lacks_self_test

        cluster = open_cluster(self.engine, self.ray_address, self.device, progress)
        card, run = _open(model, cluster, self.device, tf32=self.tf32, progress=progress)
        if note := lacks_self_test(card):
            progress.warn(note)
        return _Opened(card, partial(run, batch_size=self.batch_size, progress=progress), cluster)


@dataclass(frozen=True, kw_only=True)
class SubsetOptions:
    """Which labeled images a model is scored on."""

    split: SplitOption = None
    exclude_train: ExcludeTrainOption = False

    def load(
        self,
        data: "Location",
        reading: ReadingOptions,
        model: Path,
        card: "Card",
        progress: "RichProgress",
    ) -> "Dataset":
        """Load the images, without those that the model was trained on if that is requested."""
        from tltools.artifacts import training_images

        dataset = load_to_score(data, reading, progress)
        if not self.exclude_train:
            return dataset
        return _without_training_images(dataset, training_images(model, card), model, progress)


@command
def evaluate(
    context: typer.Context,
    model: ModelArgument,
    data: DataArgument = None,
    *,
    out: Out,
    subset: SubsetOptions,
    running: RunningOptions,
    min_confidence: MinConfidenceOption = None,
    labeling: ThresholdOptions,
    targets: TargetOptions,
    reading: ReadingOptions,
    output: FolderOption = None,
    mistakes: MistakesOption = False,
    overwrite: OverwriteOption = False,
    report: ReportOption = None,
) -> None:
    """Score a run or an export on labeled images, or choose a threshold for it.

    Example: tltools evaluate exports/cnn/cnn.fp32.onnx photos/labels.csv
    """
    _check_paths(model, data, output, report, only_mistakes=mistakes)
    target = targets.target(labeling.class_name)
    _check_options(given_options(context), has_target=target is not None)
    progress = out.progress
    if target is not None:
        card, threshold = _choose_threshold(model, target, data, subset, reading, running, progress)
        tell_threshold(model, card, threshold, out)
        return
    from tltools.artifacts import training_images

    limits = labeling.resolve(model, min_confidence, progress)
    opened = running.open(model, progress)
    dataset = subset.load(data, reading, model, opened.card, progress)
    if output is not None and not overwrite:
        refuse_another(output, opened.card.name, dataset.name)
    trained_on = training_images(model, opened.card)
    result = opened.score(dataset, split=subset.split, trained_on=trained_on, **limits)
    _tell_doubts(result, opened.card, progress)
    if output is not None:
        title = f"{opened.card.run} on {dataset.name}"
        written = write_scores(result, output, title=title, only_mistakes=mistakes)
        progress.say(f"Written to {output}: {written}")
    if report is not None:
        _write_page(result, report, model, opened.card, progress)
    if out.as_json:
        out.json(result.to_json())
    else:
        _print_evaluation(result, is_new=subset.exclude_train)
    _tell_next(result, model, output, progress, only_mistakes=mistakes)


def _refuse_swapped(model: Path, data: "Location | None") -> None:
    """Refuse labeled images in place of the model, also if the model is in place of the images.

    Raises:
        ConfigError: With the whole command to type.
    """
    from tltools.artifacts import is_artifact

    if is_artifact(model):
        return
    named = path_or_run(str(data)) if isinstance(data, Path) else None
    if named is not None and (is_artifact(named) or is_run(named)):
        right = shlex.join(["tltools", "evaluate", str(data), str(model)])
        raise ConfigError(f"the model comes first, then the labeled images: {right}")
    if holds_images(model):
        right = shlex.join(["tltools", "evaluate", _any_run(), str(model)])
        raise ConfigError(
            f"{model} is not a model; the model comes first, then the labeled images: {right}"
        )


def _any_run() -> str:
    """Return the only run in `runs/`, or a name that stands for one of them."""
    from tltools.artifacts import RUN_DIR

    found = list(islice(runs_in(RUN_DIR), 2))
    return str(found[0] if len(found) == 1 else RUN_DIR / "NAME")


def _check_paths(
    model: Path,
    data: "Location | None",
    output: Path | None,
    report: Path | None,
    *,
    only_mistakes: bool,
) -> None:
    """Check paths that may be misspelled, before PyTorch is imported to open a run."""
    _refuse_swapped(model, data)
    check_report(report)
    if output is not None:
        check_output_folder(output)
        refuse_others(output, only_mistakes=only_mistakes)
    if isinstance(data, Path):
        from tltools.data.labels import check_data

        check_data(data)
    if only_mistakes and output is None:
        raise ConfigError("--mistakes needs a folder to write to; add --output FOLDER")


def _tell_next(
    result: "Evaluation",
    model: Path,
    output: Path | None,
    progress: "RichProgress",
    *,
    only_mistakes: bool,
) -> None:
    """Name the command that shows misclassified images, if there are any."""
    from tltools.run_folder import MISTAKES, PREDICTIONS

    wrong = result.score.total - result.score.correct
    if not wrong:
        return
    images = grouped(wrong, "misclassified image")
    if output is None:
        name = path_or_run(str(model)).name if model.is_dir() else model.stem
        folder = shlex.quote(f"scores-{name}")
        progress.say(
            f"Next: the same command with --output {folder} --mistakes, then tltools report "
            f"{folder}/{MISTAKES} -o mistakes.html to see the {images}"
        )
        return
    rows = output / (MISTAKES if only_mistakes else PREDICTIONS)
    words = ["tltools", "report", str(rows), "-o", "mistakes.html"]
    progress.say(f"Next: {shlex.join(words)} to see the {images}")


def _tell_doubts(result: "Evaluation", card: "Card", progress: "RichProgress") -> None:
    """Warn of what makes the scores look better or worse than they are."""
    _tell_trained_on(result, progress)
    _tell_chosen_on(result, card, progress)
    _tell_target(result, card, progress)
    _tell_missing(result, progress)
    _tell_swapped(result, progress)


def _tell_trained_on(result: "Evaluation", progress: "RichProgress") -> None:
    """Warn if the model was trained on some of the images."""
    if result.num_trained_on:
        progress.warn(
            f"the model was trained on {result.num_trained_on:,} of these "
            f"{grouped(result.num_images, 'image')}, so it looks better than it is; leave them out "
            "with --exclude-train"
        )


def _tell_chosen_on(result: "Evaluation", card: "Card", progress: "RichProgress") -> None:
    """Warn if the threshold was chosen on these images."""
    from tltools.thresholds import described, is_chosen_on

    applied = result.min_confidence if result.threshold is None else result.threshold.value
    images = described(result.data, result.split)
    if is_chosen_on(card.threshold, applied, images):
        progress.warn(
            f"the threshold was chosen on the {images}, so it looks better on these than it is; "
            "confirm it on others"
        )


def _tell_target(result: "Evaluation", card: "Card", progress: "RichProgress") -> None:
    """Warn if the threshold in the card misses here what it was chosen to reach."""
    chosen = card.threshold
    applied = result.threshold
    value = result.min_confidence if applied is None else applied.value
    if chosen is None or value != chosen.value:
        return
    if (None if applied is None else applied.class_name) != chosen.class_name:
        return
    reached = result.score.accuracy if result.score.total else None  # of those that keep a label
    if chosen.class_name is not None:
        row = next(one for one in result.per_class if one.name == chosen.class_name)
        reached = row.precision if chosen.figure == "precision" else row.recall
    if reached is not None and reached < chosen.at_least:
        progress.warn(
            f"the threshold was chosen for a {chosen.figure} of at least "
            f"{percent(chosen.at_least)}, but reaches {in_percent(reached)} on these images"
        )


def _tell_missing(result: "Evaluation", progress: "RichProgress") -> None:
    """Warn of the model's classes of which there is no image."""
    missing = [row.name for row in result.per_class if not row.support]
    if missing:
        progress.warn(
            f"no image of {plural(len(missing), 'class', 'classes')} {together(missing)} among "
            "these, so recall and F1 of "
            f"{plural(len(missing), 'this class', 'these classes')} are unknown"
        )


def _tell_swapped(result: "Evaluation", progress: "RichProgress") -> None:
    """Warn of pairs of classes whose labels may be swapped, in these images or in the training."""
    from tltools.metrics import swapped_classes

    counts = result.confusion
    for one, other in swapped_classes(counts):
        names = result.classes[one], result.classes[other]
        progress.warn(
            f"{counts[one, other]:,} of {grouped(int(counts[one].sum()), 'image')} labeled "
            f"{names[0]} are predicted as {names[1]}, and {counts[other, one]:,} of "
            f"{counts[other].sum():,} labeled {names[1]} as {names[0]}: the two labels may be "
            "swapped; --class-names names classes in the sorted order of the labels"
        )


_OF_SCORES = ("min_confidence", "threshold", "output", "mistakes", "overwrite", "report")
_OF_DATA = ("split", "exclude_train", *(one.name for one in fields(ReadingOptions)))
"""Parameters that make no sense if a threshold is chosen, and without DATA."""


def _check_options(given: "Mapping[str, Any]", *, has_target: bool) -> None:
    """Refuse to score a model on nothing, and options that would do nothing.

    Raises:
        ConfigError: In either case.
    """
    scoring = [_option(name) for name in _OF_SCORES if has_target and name in given]
    if scoring:
        raise ConfigError(
            f"{', '.join(scoring)} is for scoring, which choosing a threshold does not; choose "
            "first, then score with --threshold auto"
        )
    if "data" in given:
        return
    if not has_target:
        raise ConfigError(
            "missing argument DATA: name the labeled images to score the model on; DATA may be "
            "omitted only with --target-precision or --target-recall"
        )
    reading = [_option(name) for name in _OF_DATA if name in given]
    if reading:
        raise ConfigError(f"{', '.join(reading)} is about DATA; name the labeled images, too")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _choose_threshold(
    model: Path,
    target: "Target",
    data: "Location | None",
    subset: SubsetOptions,
    reading: ReadingOptions,
    running: RunningOptions,
    progress: "RichProgress",
) -> "tuple[Card, Threshold]":
    """Choose a threshold on the validation images of the model's run, or on other images."""
    from tltools.artifacts import read_artifact
    from tltools.thresholds import (
        check_unseen,
        choose,
        described,
        own_images,
        own_predictions,
        unseen_split,
    )

    if data is None and model.is_dir():
        card, split = read_artifact(model).card, "val"
        name, predictions = card.data.name, own_predictions(model, card)
    else:
        opened = running.open(model, progress)
        card = opened.card
        target.class_of(card)  # raises an error before the images are scored
        if data is None:
            dataset, split = own_images(model, card), "val"
        else:
            dataset = subset.load(data, reading, model, card, progress)
            split = unseen_split(dataset, subset.split)
            if not check_unseen(model, card, dataset, split):
                progress.warn(
                    f"the run of {model} is not found, so it is not known whether the model was "
                    "trained on these images, which would make the threshold too low"
                )
        name, predictions = dataset.name, opened.score(dataset, split=split).predictions()
    return card, choose(card, target, predictions, images=described(name, split))


def _without_training_images(
    dataset: "Dataset",
    trained_on: "frozenset[str] | None",
    model: Path,
    progress: "RichProgress",
) -> "Dataset":
    """Return the data without the images that the model was trained on."""
    if trained_on is None:
        raise ConfigError(
            f"--exclude-train needs the run of {model}, which lists its images: run the command "
            "where runs/ is, or evaluate the run folder"
        )
    new = [sha not in trained_on for sha in dataset.frame["sha256"]]
    rest = dataset.frame.loc[new].reset_index(drop=True)
    if not len(rest):
        raise DataError(
            f"the model was trained on all {grouped(len(dataset.frame), 'image')} of "
            f"{dataset.name}; evaluate it on other images"
        )
    progress.say(f"{grouped(len(dataset.frame) - len(rest), 'training image')} left out")
    return replace(dataset, frame=rest)


def _open(
    model: Path,
    cluster: "RayCluster | None",
    device: str,
    *,
    tf32: bool,
    progress: "RichProgress",
) -> "tuple[Card, Callable[..., Evaluation]]":
    """Open a model here or on a cluster; return its card and the function that evaluates it."""
    from tltools.artifacts import model_files, open_predictor, read_artifact
    from tltools.evaluate import evaluate as evaluate_predictor
    from tltools.evaluate import evaluate_on_cluster
    from tltools.runtime.device import tell_device

    if cluster is None:
        predictor = open_predictor(model, device, tf32=tf32)
        tell_device(predictor.choice, progress)
        return predictor.card, partial(evaluate_predictor, predictor)
    card = read_artifact(model).card
    return card, partial(
        evaluate_on_cluster,
        card,
        cluster=cluster,
        open_model=partial(open_predictor, model.absolute(), tf32=tf32),
        same_files=model_files(model),
    )


def _write_page(
    result: "Evaluation", report: Path, model: Path, card: "Card", progress: "RichProgress"
) -> None:
    from tltools.report.models import evaluation_section, read_evaluation

    section = evaluation_section(
        read_evaluation(result.to_json().encode(), where=model),
        name=str(model),
        result=result,
        resize=card.preprocessing.resize,
    )
    write_report(report, [section], progress)


def _print_evaluation(result: "Evaluation", *, is_new: bool) -> None:
    from tltools.console import print_table

    auc = result.roc_auc.value
    # With a minimum confidence, accuracy is that of the images that reach it.
    accuracy, others = (
        ("top-1 accuracy", "")
        if result.coverage is None
        else ("their top-1 accuracy", ", all images")
    )
    part = f"{_SPLITS[result.split]}{' that are new to the model' if is_new else ''}"
    print_table(
        f"{result.data}, {part}: {grouped(result.num_images, 'image')}",
        ("metric", "value"),
        [
            *_limit_rows(result),
            (f"{accuracy} (95%)", score_text(result.score)),
            (
                f"ROC AUC{_averaged(result)}{others}",
                f"{auc:.4f}" if auc is not None else f"- ({result.roc_auc.note})",
            ),
            (f"expected calibration error{others}", _calibration_text(result)),
        ],
    )
    _print_classes(result)
    if len(result.classes) > MAX_LISTED:
        _print_mistakes(result)
        return
    print_table(
        f"Confusion matrix{_kept_text(result)}: rows are true classes, columns predicted ones",
        ("", *result.classes),
        [
            (name, *map(str, row))
            for name, row in zip(result.classes, result.confusion, strict=True)
        ],
    )


def _averaged(result: "Evaluation") -> str:
    """Say how the ROC AUC of more than two classes comes from those of single classes."""
    return "" if len(result.classes) <= 2 else " (one-vs-rest, macro)"


def _limit_rows(result: "Evaluation") -> list[tuple[str, str]]:
    """Return the rows of a table that say how the labels were chosen."""
    rows = []
    if result.threshold is not None:
        rows.append(("threshold", str(result.threshold)))
    if result.coverage is not None:
        rows.append(("minimum confidence", repr(result.min_confidence)))
        rows.append(("images that reach it (95%)", proportion_text(result.coverage)))
    return rows


def _kept_text(result: "Evaluation") -> str:
    """Say which images a table counts, if not all of them."""
    if result.coverage is None:
        return ""
    kept = result.coverage
    return f", of the {kept.count:,} of {grouped(kept.total, 'image')} that reach the confidence"


def _print_classes(result: "Evaluation") -> None:
    """Print the scores of each class; of many classes, those of the worst ones."""
    from tltools.console import print_table

    shown, title = result.per_class, f"By class{_kept_text(result)}"
    if len(shown) > MAX_LISTED:
        known = [row for row in shown if row.f1 is not None]
        shown = sorted(known, key=lambda row: row.f1 or 0.0)[:MAX_LISTED]
        title += (
            f": the {MAX_LISTED} of {len(result.classes):,} with the lowest F1 (--output FOLDER or "
            "--json has all)"
        )
    print_table(
        title,
        ("class", "precision", "recall", "F1", "images"),
        [
            (row.name, *map(percent_or_dash, (row.precision, row.recall, row.f1)), str(row.support))
            for row in shown
        ],
    )


def _print_mistakes(result: "Evaluation") -> None:
    """Print the most frequent mistakes."""
    import numpy as np

    from tltools.console import print_table

    wrong = result.confusion - np.diag(result.confusion.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_LISTED]
    pairs = [divmod(int(index), len(wrong)) for index in order]
    print_table(
        f"Most frequent mistakes{_kept_text(result)}",
        ("true class", "predicted class", "images"),
        [
            (result.classes[true], result.classes[pred], str(wrong[true, pred]))
            for true, pred in pairs
            if wrong[true, pred]
        ]
        or [("none", "", "")],
    )


def _calibration_text(result: "Evaluation") -> str:
    ece = in_percent(result.reliability.ece)
    if result.temperature == 1:
        return ece
    before = f"{in_percent(result.ece_uncalibrated)} without temperature {result.temperature:.2f}"
    return f"{ece} ({before})"
