"""`tltools inspect`."""

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tltools.cli.command import Out, command
from tltools.cli.options import (
    ClassLevelOption,
    ClassNamesOption,
    ImageColumnOption,
    ImagesOption,
    LabelColumnOption,
    path_or_run_or_url,
    split_names,
)
from tltools.errors import ConfigError, DataError
from tltools.wording import MAX_LISTED, counted, together

if TYPE_CHECKING:
    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.data.findings import Finding


@command
def inspect(
    path: Annotated[
        Any,  # Location
        typer.Argument(
            help="A run, an export, a folder of these, or labeled images.",
            parser=path_or_run_or_url,
        ),
    ],
    *,
    out: Out,
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    class_level: ClassLevelOption = None,
    class_names: ClassNamesOption = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="PNG file for a few images of each class.", show_default="no file"),
    ] = None,
) -> None:
    """Show a model's card, or audit labeled images; runs no model.

    Example: tltools inspect photos/labels.csv
    """
    _check_sheet(sheet)
    if isinstance(path, Path) and _show_model(path, out):
        return
    from tltools.data.dataset import load_dataset

    progress = out.progress
    dataset = load_dataset(
        path,
        images=images,
        image_column=image_column,
        label_column=label_column,
        class_level=class_level,
        class_names=split_names(class_names),
        purpose="inspect",
        progress=progress,
    )
    progress.say(f"Labels: {dataset.reading}")
    out.result(_audit(dataset), lambda: _show_audit(dataset, sheet, progress))
    if any(finding.severity == "error" for finding in dataset.findings):
        raise typer.Exit(1)
    given = {
        "--images": images,
        "--image-column": image_column,
        "--label-column": label_column,
        "--class-level": class_level,
        "--class-names": class_names,
    }
    options = [str(part) for pair in given.items() if pair[1] is not None for part in pair]
    first = ""
    if tiny := [name for name, row in _counts(dataset).items() if row["all"] == 1]:
        first = f"add images of {together(tiny)}, then "
    progress.say(f"Next: {first}{shlex.join(['tltools', 'train', str(path), *options])}")


def _show_model(path: Path, out: Out) -> bool:
    """Show a run, an export or a folder of these; return whether the path is one of them.

    Raises:
        ArtifactError: If it is one, but unfinished or damaged.
        DataError: If nothing is there.
    """
    from tltools.artifacts import exports_in, is_artifact, read_artifact
    from tltools.data.folders import is_run
    from tltools.runs import holds_runs

    if not path.exists():
        raise _missing(path)
    if is_artifact(path) or is_run(path):
        from tltools.cli.model_card import print_card

        card = read_artifact(path).card
        if out.as_json:
            out.json(card.to_text())
        else:
            print_card(path, card)
        return True
    if not path.is_dir():
        return False
    if holds_runs(path):
        from tltools.cli.run_list import show_runs

        show_runs(path, out)
        return True
    exports = exports_in(path)
    if exports:
        from tltools.cli.model_card import print_exports

        out.result(exports, lambda: print_exports(path, exports))
    return bool(exports)


def _check_sheet(sheet: Path | None) -> None:
    """Refuse a contact sheet that would replace something else, before any work.

    Raises:
        ConfigError: If it would, or is not named as a PNG.
    """
    from tltools.atomic import refuse_foreign
    from tltools.data.folders import SHEET_MARK

    if sheet is None:
        return
    if sheet.suffix.lower() != ".png":
        raise ConfigError(f"--sheet {sheet}: a contact sheet is a PNG; choose a name with .png")
    refuse_foreign(sheet, SHEET_MARK.encode(), "a contact sheet", parameter="--sheet")


def _missing(path: Path) -> DataError:
    from tltools.artifacts import RUN_DIR
    from tltools.wording import similar_paths

    return DataError(
        f"{path} does not exist{similar_paths(path, RUN_DIR)}: name a run, an export, a folder of "
        "these, or labeled images (a CSV or a folder of class folders)"
    )


def _counts(dataset: "Dataset") -> dict[str, dict[str, int]]:
    """Return the number of images by class and split, `all` included."""
    frame = dataset.frame
    splits = [split for split in ("train", "val", "test") if split in set(frame["split"])]
    counts = Counter(zip(frame["class"], frame["split"], strict=True))
    return {
        name: {split: counts[name, split] for split in splits}
        | {"all": sum(counts[name, split] for split in splits)}
        for name in dataset.classes
    }


def _findings(dataset: "Dataset") -> "list[Finding]":
    """Return the findings, with options of the command line instead of the library's parameters."""
    from tltools.cli.chance import note_few
    from tltools.console import in_options

    found = [*dataset.findings, *note_few(dataset, _counts(dataset))]
    return [replace(one, message=in_options(one.message)) for one in found]


def _audit(dataset: "Dataset") -> dict[str, Any]:
    return {
        "name": dataset.name,
        "num_images": len(dataset.frame),
        "split": dataset.split_rule,
        "reading": dataset.reading,
        "images": _counts(dataset),
        "findings": _findings(dataset),
        "left_out": dataset.left_out,
    }


def _show_audit(dataset: "Dataset", sheet: Path | None, progress: "RichProgress") -> None:
    _print_audit(dataset)
    if sheet is not None and len(dataset.frame):
        from tltools.plots import contact_sheet

        contact_sheet(dataset.frame, dataset.classes, sheet)
        progress.say(f"Contact sheet with a few images of each class: {sheet}")


def _found(dataset: "Dataset") -> str:
    """Say how many images there are, and how many others are missing or unreadable."""
    bad = {
        one.kind: len(one.paths)
        for one in dataset.findings
        if one.kind in ("missing", "unreadable")
    }
    number = len(dataset.frame)
    if not bad:
        return counted(number, "image")
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in bad.items())
    return f"{number:,} of {counted(number + sum(bad.values()), 'image')} ({reasons})"


def _print_audit(dataset: "Dataset") -> None:
    from tltools.console import print_table

    counts = _counts(dataset)
    columns = next(iter(counts.values()), {"all": 0})
    hidden = max(0, len(counts) - MAX_LISTED)
    print_table(
        f"{dataset.name}: {_found(dataset)}, split: {dataset.split_rule}",
        ("class", *columns),
        [(name, *map(str, row.values())) for name, row in list(counts.items())[:MAX_LISTED]]
        + ([(f"and {hidden:,} more (--json)", *[""] * len(columns))] if hidden else []),
    )
    print_table(
        "Findings",
        ("", "finding"),
        [(finding.severity, finding.message) for finding in _findings(dataset)]
        or [("ok", "no problems found")],
    )
