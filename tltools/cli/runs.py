"""`tltools runs`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tltools.cli.command import Out, command
from tltools.data.folders import RUN_DIR
from tltools.errors import ConfigError
from tltools.wording import (
    SPLIT_NAMES,
    counted,
    grouped,
    listed,
    minute,
    plural,
    score_text,
    size_text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tltools.artifacts import Artifact
    from tltools.run_folder import Relocated
    from tltools.runs import Comparison, Deletion


@command
def runs(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Two runs to compare, or runs for --delete or --images.",
        ),
    ] = None,
    *,
    out: Out,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Delete the named runs; their exports stay."),
    ] = False,
    exports: Annotated[
        bool, typer.Option("--exports", help="With --delete: delete their exports, too.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Delete without asking for confirmation.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder to which the images of the named runs were moved."),
    ] = None,
    run_dir: Annotated[Path, typer.Option(help="Folder for runs.")] = RUN_DIR,
) -> None:
    """List runs, compare two, or delete some.

    Example: tltools runs cnn cnn-2
    """
    given = names or []
    if given and given[0] in ("delete", "rm") and not delete:
        right = shlex.join(["tltools", "runs", "--delete", *given[1:]])
        raise ConfigError(f"--delete is an option: {right}")
    _check_options(delete=delete, yes=yes, exports=exports, images=images is not None)
    if images is not None:
        _relocate(given, images, run_dir, out)
    elif delete:
        _delete(given, run_dir, out, yes=yes, with_exports=exports)
    elif not given:
        from tltools.cli.run_list import show_runs

        show_runs(run_dir, out)
    elif len(given) == 2:
        _compare(given, run_dir, out)
    else:
        raise ConfigError(
            f"tltools runs compares two runs, and got {len(given)}; name two, or none to list all"
            + (f"; tltools inspect {run_dir}/RUN shows one" if len(given) == 1 else "")
        )


def _check_options(*, delete: bool, yes: bool, exports: bool, images: bool) -> None:
    """Refuse options that do not go together."""
    if yes and not delete:
        raise ConfigError("--yes answers the question of --delete; add --delete, or leave it out")
    if exports and not delete:
        raise ConfigError("--exports works only with --delete; add --delete, or leave it out")
    if images and delete:
        raise ConfigError("--images notes where images are; leave it out, or --delete")


# -------------------------------------------------------------------------------- comparison


def _compare(names: "Sequence[str]", run_dir: Path, out: Out) -> None:
    from tltools.artifacts import read_artifact
    from tltools.runs import differing_settings, find_run, read_and_compare

    folders = [find_run(name, run_dir) for name in names]
    if folders[0].resolve() == folders[1].resolve():
        raise ConfigError(
            f"both names are of the run {folders[0]}: name two runs, which tltools runs lists, or "
            f"see this one with tltools inspect {folders[0]}"
        )
    first, second = map(read_artifact, folders)
    found = read_and_compare(first, second)
    settings = differing_settings(first.card, second.card)
    document = {
        "runs": [_figures(first), _figures(second)],
        "settings": settings,
        "comparison": found,
        "better": found.better,
    }
    out.result(document, lambda: _print_comparison(first, second, found, settings))


def _figures(run: "Artifact") -> dict[str, Any]:
    card = run.card
    return {
        "path": run.path,
        "metrics": card.metrics,
        "confidence": card.confidence,
        "num_train": card.data.num_train,
        "num_val": card.data.num_val,
        "epochs_done": card.training.get("epochs_done"),
        "kept_epoch": card.training.get("kept_epoch"),
        "created": card.created,
    }


def _print_comparison(
    first: "Artifact",
    second: "Artifact",
    found: "Comparison",
    settings: dict[str, tuple[Any, Any]],
) -> None:
    from tltools.console import print_table, printable
    from tltools.runs import cross_validated, names_of, same_images, setting_title

    names = names_of(first, second)
    rows = [
        (
            f"{title} accuracy",
            *(
                score_text(one.card.metrics.get(split), is_seen=split == "train")
                for one in (first, second)
            ),
        )
        for split, title in SPLIT_NAMES.items()
        if any(split in one.card.metrics for one in (first, second))
    ]
    rows += [
        (title, *(_shown(_figures(one)[key]) for one in (first, second)))
        for key, title in (
            ("num_train", "training images"),
            ("num_val", "validation images"),
            ("epochs_done", "epochs trained"),
            ("kept_epoch", "epoch kept"),
        )
    ]
    crossed = [cross_validated(one.path, one.card.classes) for one in (first, second)]
    if any(crossed):
        rows.append(("cross-validated accuracy", *(one or "-" for one in crossed)))
    rows.append(("temperature", *(f"{one.card.temperature:.2f}" for one in (first, second))))
    rows.append(("trained (UTC)", *(minute(one.card.created) for one in (first, second))))
    print_table("Metrics", ("", *names), rows)
    print_table(
        "Settings that differ",
        ("", *names),
        [(setting_title(name), *map(_shown, pair)) for name, pair in settings.items()]
        or [("none", "", "")],
    )
    if "fingerprint" in settings and same_images(first, second):
        typer.echo("Both have the same images with the same labels, split in another way.")
    typer.echo(printable(found.sentence()))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------ moved images


def _relocate(names: "Sequence[str]", images: Path, run_dir: Path, out: Out) -> None:
    from tltools.run_folder import relocate
    from tltools.runs import find_run

    if not names:
        raise ConfigError("--images needs the names of runs; tltools runs lists them")
    moved: dict[str, Relocated] = {}
    for folder in dict.fromkeys(find_run(name, run_dir) for name in names):
        found = moved[str(folder)] = relocate(folder, images, progress=out.progress)
        out.progress.say(
            f"{folder}: {grouped(found.num_images, 'image')} found in {images}"
            if found.num_images
            else f"{folder}: all images are where they were; nothing to change"
        )
        if found.relabeled:
            path, label = found.relabeled[0]
            number = len(found.relabeled)
            out.progress.warn(
                f"{folder}: {grouped(number, 'image')} {plural(number, 'is', 'are')} in the folder "
                f"of another class now (first {path}, trained as {label}), which changes nothing "
                "in this run; train a new one to use the new labels"
            )
    out.result({folder: one._asdict() for folder, one in moved.items()})


# ---------------------------------------------------------------------------------- deletion


def _delete(
    names: "Sequence[str]", run_dir: Path, out: Out, *, yes: bool, with_exports: bool
) -> None:
    from tltools.runs import check_deletable, delete_run, find_run, plan_deletion

    if not names:
        raise ConfigError("--delete needs the names of runs; tltools runs lists them")
    folders = dict.fromkeys(find_run(name, run_dir, to_delete=True) for name in names)
    plans = [plan_deletion(folder, with_exports=with_exports) for folder in folders]
    for plan in plans:
        check_deletable(plan)
    if not yes:
        _ask(plans)
    for plan in plans:
        delete_run(plan)
        also = f" and {listed(list(map(str, plan.exports)))}" if plan.exports else ""
        out.progress.say(
            f"Deleted: {plan.folder} ({counted(len(plan.files), 'file')}){also}, "
            f"{size_text(plan.num_bytes)}"
        )
        if plan.kept_exports:
            which = "another run of this name" if with_exports else "the run"
            out.progress.say(
                f"Kept: {listed(list(map(str, plan.kept_exports)))}; until you delete "
                f"{plural(len(plan.kept_exports), 'it', 'them')}, other commands go on using "
                f"{plural(len(plan.kept_exports), 'this export', 'these exports')} of {which}"
            )
    out.result(
        [
            {
                "deleted": one.files + one.exports,
                "kept": one.kept,
                "exports": one.kept_exports,
                "folder": one.folder,
            }
            for one in plans
        ]
    )


def _ask(plans: "Sequence[Deletion]") -> None:
    """Show what would be deleted and ask on standard error; leave if the answer is no.

    Raises:
        ConfigError: If standard input is not a terminal.
    """
    from tltools.console import printable

    if not sys.stdin.isatty():
        raise ConfigError(
            "cannot ask for confirmation, since standard input is not a terminal; add --yes"
        )
    for plan in plans:
        typer.echo(printable(f"{plan.folder}, {size_text(plan.num_bytes)}:"), err=True)
        for path in plan.files:
            typer.echo(printable(f"  {path.name}"), err=True)
        if plan.kept:
            others = ", ".join(path.name for path in plan.kept)
            typer.echo(printable(f"  not written by training, kept: {others}"), err=True)
        for path in plan.exports:
            typer.echo(printable(f"  {path}"), err=True)
        if plan.kept_exports and not plan.exports:
            others = ", ".join(map(str, plan.kept_exports))
            typer.echo(printable(f"  exports, kept without --exports: {others}"), err=True)
    if not typer.confirm(f"Delete {grouped(len(plans), 'run')}?", err=True):
        typer.echo("Nothing deleted.", err=True)
        raise typer.Exit(1)
