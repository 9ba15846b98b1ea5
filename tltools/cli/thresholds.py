"""Options of thresholds: choose one with `evaluate`, apply it in `classify` and `serve`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tltools.cli.show import free_output
from tltools.errors import ConfigError
from tltools.wording import in_percent, percent, percent_or_dash, with_counts

if TYPE_CHECKING:
    from tltools.card import Card, Proportion, Threshold
    from tltools.cli.command import Out
    from tltools.console import RichProgress
    from tltools.thresholds import Target

AUTO = "auto"
THRESHOLD = "Threshold"
"""Title of a panel of the help."""


def _threshold(text: str) -> "float | str":
    """Parse `auto` or a number between 0 and 1.

    Raises:
        BadParameter: If it is neither.
    """
    if text == AUTO:
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{text!r} is neither {AUTO} nor a number between 0 and 1")
    return value


ClassOption = Annotated[
    str | None,
    typer.Option(
        "--class",
        help="Class of the threshold.",
        show_default="the second of two classes",
        rich_help_panel=THRESHOLD,
    ),
]
ThresholdOption = Annotated[
    Any,  # float | Literal["auto"] | None
    typer.Option(
        help="Label an image --class at this probability or more; auto: evaluate's choice.",
        show_default="the most probable class",
        metavar="<auto|number>",
        parser=_threshold,
        rich_help_panel=THRESHOLD,
    ),
]


@dataclass(frozen=True, kw_only=True)
class ThresholdOptions:
    """Options for applying a threshold."""

    threshold: ThresholdOption = None
    class_name: ClassOption = None

    def resolve(
        self, model: Path, min_confidence: float | None, progress: "RichProgress"
    ) -> dict[str, Any]:
        """Return `threshold` and `min_confidence` for a model, and print what is applied.

        Raises:
            ConfigError: See `resolve_threshold`.
            ArtifactError: If the model's card is needed and cannot be read.
        """
        if self.threshold is None and self.class_name is None:
            return {"threshold": None, "min_confidence": min_confidence}
        from tltools.artifacts import read_artifact, run_of
        from tltools.classify.threshold import resolve_threshold

        card = read_artifact(model).card
        applied = resolve_threshold(
            card,
            self.threshold,
            class_name=self.class_name,
            min_confidence=min_confidence,
            run=run_of(model, card) if self.threshold == AUTO else None,
        )
        if applied.threshold is not None:
            others = [name for name in card.classes if name != applied.threshold.class_name]
            other = others[0] if len(others) == 1 else "the most probable other class"
            progress.say(
                f"Threshold: {applied.threshold.class_name} from a probability of "
                f"{applied.threshold.value!r} on, else {other}"
            )
        else:
            progress.say(f"Threshold: uncertain below a confidence of {applied.min_confidence!r}")
        return applied._asdict()


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Options for choosing a threshold."""

    target_precision: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Choose a threshold of this precision on validation images, and keep it.",
            rich_help_panel=THRESHOLD,
        ),
    ] = None
    target_recall: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Choose a threshold of this recall of --class instead.",
            rich_help_panel=THRESHOLD,
        ),
    ] = None

    def target(self, class_name: str | None) -> "Target | None":
        """Return what a threshold shall reach; None if none is to be chosen.

        Raises:
            ConfigError: If both targets are given, or one is out of range.
        """
        precision, recall = self.target_precision, self.target_recall
        if precision is None and recall is None:
            return None
        if precision is not None and recall is not None:
            raise ConfigError("give either --target-precision or --target-recall, not both")
        from tltools.thresholds import Target

        if precision is not None:
            return Target(figure="precision", at_least=precision, class_name=class_name)
        assert recall is not None
        return Target(figure="recall", at_least=recall, class_name=class_name)


def tell_threshold(model: Path, card: "Card", threshold: "Threshold", out: "Out") -> None:
    """Keep a chosen threshold in the card of a run, print it, and say how it is applied.

    Raises:
        ArtifactError: If the run's card has changed.
        TltoolsError: If it cannot be written.
    """
    from tltools.artifacts import run_of
    from tltools.thresholds import keep_in_card

    earlier = card.threshold
    written = keep_in_card(model, card, threshold) if model.is_dir() else None
    out.result(
        {"model": model, "written": written, "threshold": threshold},
        lambda: _print_threshold(threshold),
    )
    progress = out.progress
    applied = "--threshold auto" if written else shlex.join(_options(card, threshold))
    reached = threshold.precision if threshold.figure == "precision" else threshold.recall
    if reached is not None and reached.low < threshold.at_least:
        progress.say(
            f"On other images the {threshold.figure} may be below {percent(threshold.at_least)}: "
            f"the lower bound of its 95% interval is {in_percent(reached.low)}; confirm it on "
            f"other images: tltools evaluate {shlex.quote(str(model))} DATA {applied}"
        )
    kept = threshold.coverage
    if is_idle := threshold.class_name is None and kept.count == kept.total:
        progress.say(
            "Every image keeps its label: the precision is reached without a minimum, so that "
            "applying it changes little; to choose one on other labeled images: tltools evaluate "
            f"{shlex.quote(str(model))} DATA --target-precision {threshold.at_least:g}"
        )
    if written is not None:
        if earlier is not None and earlier != threshold:
            progress.say(f"It replaces the {kind_of(earlier)} {threshold_text(earlier)}")
        progress.say(f"Written: {written}; later exports have it, earlier ones do not")
        if not is_idle:
            _tell_next(model, card, progress)
        return
    if not is_idle:
        words = ["tltools", "classify", "FOLDER", "--model", str(model)]
        words += [*_options(card, threshold), *free_output()]
        progress.say(f"Next: {shlex.join(words)}")
    run = run_of(model, card)
    named = "RUN" if run is None else shlex.quote(str(run))
    progress.say(
        f"Exports have the threshold of their run, {card.run}: tltools evaluate {named} with the "
        "same options chooses one for the next export"
    )


def _tell_next(model: Path, card: "Card", progress: "RichProgress") -> None:
    """Say how the threshold in a run's card is applied."""
    from tltools.artifacts import EXPORT_DIR

    # An export has the name that its run was trained under: the folder may be renamed.
    export = EXPORT_DIR / card.run / f"{card.run}.fp32.onnx"
    output = "".join(f" {word}" for word in free_output())
    progress.say(
        f"Next: {shlex.join(['tltools', 'export', str(model)])}, then tltools classify FOLDER "
        f"--model {shlex.quote(str(export))} --threshold auto{output}"
    )


def _options(card: "Card", threshold: "Threshold") -> list[str]:
    """Return the options that apply a threshold which the card does not have."""
    from tltools.classify.threshold import positive_class

    if threshold.class_name is None:
        return ["--min-confidence", repr(threshold.value)]
    words = ["--threshold", repr(threshold.value)]
    if threshold.class_name != positive_class(card):
        words += ["--class", threshold.class_name]
    return words


def _print_threshold(one: "Threshold") -> None:
    from tltools.console import print_table

    of = "Minimum confidence" if one.class_name is None else f"Threshold of {one.class_name}"
    kept = "images that keep a label" if one.class_name is None else "images that get the class"
    rows = [
        ("threshold", repr(one.value), ""),
        ("precision", proportion_text(one.precision), percent_or_dash(one.held_out_precision)),
    ]
    if one.recall is not None:
        rows.append(("recall", proportion_text(one.recall), percent_or_dash(one.held_out_recall)))
    rows.append((kept, proportion_text(one.coverage), percent_or_dash(one.held_out_coverage)))
    print_table(
        f"{of} for a {one.figure} of at least {percent(one.at_least)}, chosen on "
        f"{one.num_images:,} {one.images}",
        ("", "on these images (95%)", "cross-validated"),
        rows,
    )


def kind_of(one: "Threshold") -> str:
    """Return what a threshold is called: one without a class is for the labels of all."""
    return "minimum confidence" if one.class_name is None else "threshold"


def threshold_text(one: "Threshold") -> str:
    """Describe a threshold in one line, without what it is called."""
    of = "" if one.class_name is None else f" for {one.class_name}"
    recall = "" if one.recall is None else f", recall {in_percent(one.recall.value)}"
    return (
        f"{one.value!r}{of}: precision {in_percent(one.precision.value)}{recall} on "
        f"{one.num_images:,} {one.images}"
    )


def proportion_text(one: "Proportion") -> str:
    """Format a fraction with its interval and counts."""
    return with_counts(one.value, one.low, one.high, one.count, one.total)
