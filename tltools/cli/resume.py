"""`tltools train --resume`: refuse options that contradict the run that is resumed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tltools.backbones.backbone import Recipe
from tltools.cli.thresholds import kind_of
from tltools.errors import ConfigError
from tltools.wording import score_text

if TYPE_CHECKING:
    from tltools.card import Card
    from tltools.data.dataset import Dataset
    from tltools.progress import Progress
    from tltools.training import TrainConfig, TrainSetup
    from tltools.training.run import RunPlan

_MAY_CHANGE = {"epochs"}
"""A run can be trained for more epochs, and not for fewer: see `check_resumed`."""
_SPLITS = {"split", "val_fraction", "images", "image_column", "label_column", "class_level"}
_SPLITS |= {"class_names", "skip_bad", "seed"}
"""Parameters that say how data is read and split."""


def check_resumed(
    folder: Path,
    given: Mapping[str, Any],
    setup: "TrainSetup",
    load: "Callable[[], Dataset]",
) -> None:
    """Check that the given options do not contradict the settings of a run.

    Args:
        folder: The run.
        given: The options that were given, by the names of `train`'s parameters.
        setup: Where the command would train.
        load: Loads the labeled images that the options name.

    Raises:
        ConfigError: If one differs; the message names all that do.
    """
    from tltools.training.run import read_plan

    plan = read_plan(folder)
    planned = plan.train_config()
    model = given.get("model", "all")
    different = [
        f"{name} is {mine}, not {asked}"
        for name, mine, asked in (
            *([("`model=`", planned.model, model)] if model not in ("all", planned.model) else []),
            *_settings(plan, given),
            *_weights(plan, given, setup),
        )
    ]
    epochs = given.get("epochs")
    if epochs is not None and epochs < planned.epochs:
        different.append(f"`epochs=` is {planned.epochs} and can only be increased, not {epochs}")
    if given.get("folds"):
        different.append("only a new run can be cross-validated")
    if given.get("data") is not None:
        different += _data(plan, load())
    elif ignored := _SPLITS & given.keys() - {"seed"}:
        names = ", ".join(f"`{name}=`" for name in sorted(ignored))
        different.append(f"{names} cannot be checked without the data")
    if different:
        raise ConfigError(
            f"{folder} can be resumed only with its original settings: {'; '.join(different)}; "
            "omit these options, or train a new run without --resume"
        )


def tell_resumed(folder: Path, epochs: int | None, progress: "Progress") -> None:
    """Say which run is resumed or trained for more epochs.

    Args:
        folder: The run.
        epochs: A new total number of epochs, or None.
        progress: Where to say it.
    """
    from tltools.run_folder import STATE, is_finished
    from tltools.training.run import read_plan

    planned = read_plan(folder).train_config().epochs
    more = f"from {planned} to {epochs} epochs" if epochs and epochs > planned else ""
    if is_finished(folder):
        progress.say(f"Extending {folder} {more}")
        return
    begins = "" if (folder / STATE).exists() else "; no epoch was finished, so it begins again"
    progress.say(f"Resuming {folder}{f', extended {more}' if more else ''}{begins}")


def tell_change(before: "Card", after: "Card", progress: "Progress") -> None:
    """Say how the validation accuracy of a resumed run has changed; warn if it is lower now.

    Args:
        before: The card of the shorter training.
        after: That of the longer one.
        progress: Where to say it.
    """
    if before.threshold is not None and after.threshold is None:
        progress.warn(
            f"the {kind_of(before.threshold)} {before.threshold.value!r} was of the shorter "
            "training and is dropped; choose one again with tltools evaluate"
        )
    old, new = (one.metrics.get("val") for one in (before, after))
    if old is None or new is None:
        return
    epochs = tuple(one.training.get("kept_epoch") for one in (before, after))
    if epochs[0] == epochs[1]:
        progress.say(f"The same epoch is kept as before: {epochs[1]}")
        return
    tell = progress.warn if new.accuracy < old.accuracy else progress.say
    tell(
        f"the validation accuracy was {score_text(old)} before, with epoch {epochs[0]}, and is "
        f"{score_text(new)} now, with epoch {epochs[1]}"
    )


def tell_how_to_resume(folder: Path, progress: "Progress") -> None:
    """Name the command that resumes a run."""
    from tltools.run_folder import resume_command

    progress.say(f"To resume: {resume_command(folder)}")


class Stopped:
    """What Ctrl-C leaves of trainings, if it comes when a run cannot be finished early."""

    def __init__(self, configs: "Sequence[TrainConfig]", setup: "TrainSetup") -> None:
        """Note the runs that exist before the trainings."""
        from tltools.run_folder import resumable_runs

        self._configs = configs
        self._run_dir = setup.run_dir
        self._before = set(resumable_runs(self._run_dir))

    def tell(self, trained: "Sequence[Path]", progress: "Progress") -> None:
        """Say what is kept and how to go on.

        Args:
            trained: Runs of the models before the one that was stopped.
            progress: Where to say it.
        """
        from tltools.run_folder import is_locked, resumable_runs

        known = self._before.union(trained)
        begun = [one for one in resumable_runs(self._run_dir) if one not in known]
        # Another process may have begun runs, too, and be training them.
        if mine := [one for one in begun if not is_locked(one)]:  # stopped while it was scored, say
            tell_how_to_resume(mine[0], progress)
            return
        rest = list(dict.fromkeys(one.model for one in self._configs[len(trained) :]))
        stopped = self._configs[len(trained)]
        again = "run the same command again"
        if trained and len(rest) == 1:
            again += f" with `model={rest[0]}`"
        if stopped.backbone.pretrained is not None and stopped.fine_tune != "all":
            again += "; features in the cache are not computed again"
        progress.warn(
            f"{stopped.model} was stopped before its first epoch was complete, so there is "
            f"nothing to resume: {again}"
        )


def _settings(plan: "RunPlan", given: Mapping[str, Any]) -> "Iterator[tuple[str, object, object]]":
    """Yield the settings that differ: name, value of the run, value that was given."""
    from tltools.training import default_config, fit_batch_sizes

    config = plan.train_config()
    names = {field.name for field in fields(config)} - {"model"}
    changes = {name: value for name, value in given.items() if name in names - {"fine_tune"}}
    fine_tune = given.get("fine_tune") or config.fine_tune
    asked = default_config(
        config.model, given.get("recipe", "default"), fine_tune=fine_tune, **changes
    )
    if "batch_size" not in given and given.get("recipe") == "default":
        (asked,) = fit_batch_sizes([asked], plan.data.num_train)
    compared = set(names & given.keys() - _MAY_CHANGE)
    if "recipe" in given:
        compared |= {field.name for field in fields(Recipe)} - _MAY_CHANGE
    for name in sorted(compared):
        mine, other = getattr(config, name), getattr(asked, name)
        if mine != other and (name, other) != ("head", "auto"):
            yield f"`{name}=`", mine, other


def _weights(
    plan: "RunPlan", given: Mapping[str, Any], setup: "TrainSetup"
) -> "Iterator[tuple[str, object, object]]":
    from tltools.training.train import weights_to_resume_with

    asked = weights_to_resume_with(plan.train_config(), setup.weights)
    known = plan.weights
    # A file may have been moved: its bytes are compared when it is read.
    are_files = all(one is not None and Path(one).is_absolute() for one in (asked, known))
    if "weights" in given and asked != known and not are_files:
        yield "`weights=`", known, asked
    if "normalization" in given and setup.normalization != plan.normalization:
        yield "`normalization=`", plan.normalization, setup.normalization


def _data(plan: "RunPlan", dataset: "Dataset") -> list[str]:
    """Say whether these are other images, labels or another split."""
    same = dataset.fingerprint == plan.data.fingerprint and dataset.classes == plan.classes
    if same:
        return []
    return [
        f"it was begun with {plan.data.num_train} training and {plan.data.num_val} validation "
        f"images of {plan.data.name}, and {dataset.name} has other images, labels, class names "
        "or another split"
    ]
