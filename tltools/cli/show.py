"""Output that several commands share, on the terminal and in reports."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tltools.errors import ConfigError
from tltools.wording import in_percent, ordinal, plural, size_text

_MAX_OUTPUTS = 100
"""Names that are tried for the output of a proposed command."""

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tltools.card import Card
    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.progress import Progress
    from tltools.report.blocks import Section


REPORT_PACKAGES = ("jinja2", "matplotlib")
"""Packages that every report needs; a minimal installation for `classify` has neither."""


def choose_export(progress: "Progress") -> Path:
    """Return the most accurate ONNX export in its default folder, and print which it is.

    Exports of an earlier training of the same run are not considered, and named.

    Raises:
        ArtifactError: If there is none.
        ConfigError: If there are models with different classes.
    """
    from operator import attrgetter

    from tltools.artifacts import (
        best_export,
        current_and_earlier_exports,
        earlier_notes,
        newer_training,
    )

    exports, earlier = current_and_earlier_exports(key=attrgetter("place"))
    best = best_export(exports=exports)
    score = best.card.metrics["val"]
    progress.say(
        f"Model: {best.path} (best validation accuracy here: {in_percent(score.accuracy)}, "
        f"{score.correct:,}/{score.total:,})"
    )
    for note in earlier_notes(exports, earlier):
        progress.say(f"{note[0].upper()}{note[1:]}")
    if why := newer_training(best):
        progress.warn(f"{best.path} {why}")
    return best.path


def free_output() -> list[str]:
    """Return options for a proposed `tltools classify` that write no file that is there."""
    numbers = ("", *(f"-{number}" for number in range(2, _MAX_OUTPUTS)))
    names = [f"predictions{number}.csv" for number in numbers]
    free = next((name for name in names if not Path(name).exists()), names[-1])
    return [] if free == names[0] else ["--output", free]


def unknown_text(card: "Card", unknown: float) -> str:
    """Say beyond which distance images are labeled unknown.

    Args:
        card: Card of an export with distances.
        unknown: A percentile of the training images' distances, as in `Job.unknown`.
    """
    from tltools.runtime.exports import distances_of

    limit = distances_of(card).at(unknown)
    return (
        f"Unknown: at a distance above {limit:.2f}, the {ordinal(unknown)} percentile of the "
        "training images"
    )


def tell_findings(dataset: "Dataset", progress: "Progress") -> None:
    """Print how labeled images were read, and the findings of their audit."""
    progress.say(f"Labels: {dataset.reading}")
    for finding in dataset.findings:
        tell = progress.say if finding.severity == "note" else progress.warn
        tell(finding.message)


def check_report(report: Path | None) -> None:
    """Refuse a report that cannot be written, before any work.

    Raises:
        ConfigError: If a package that reports need is not installed; see also `check_place`.
    """
    if report is not None:
        missing = [name for name in REPORT_PACKAGES if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"--report needs {' and '.join(missing)}, which "
                f"{plural(len(missing), 'is', 'are')} not installed: pip install "
                f"{' '.join(missing)}, or leave out --report"
            )
        from tltools.report import check_place

        check_place(report)


def check_output_folder(output: Path) -> None:
    """Refuse the name of a file for a folder that is made for several files.

    Raises:
        ConfigError: If it looks like a file's.
        TltoolsError: If it is a link to nowhere.
    """
    from tltools.atomic import refuse_lost_link
    from tltools.data.suffixes import IMAGE_SUFFIXES, TABLE_SUFFIXES, is_archive_name
    from tltools.runtime.model_formats import is_export_name

    refuse_lost_link(output)
    suffix = output.suffix.lower()
    is_file_name = suffix in TABLE_SUFFIXES | IMAGE_SUFFIXES | {".html", ".md", ".txt"}
    if output.is_file():
        raise ConfigError(f"--output {output} is a file; name a folder")
    if not output.is_dir() and (
        is_file_name or is_archive_name(output.name) or is_export_name(output)
    ):
        raise ConfigError(
            f"--output {output} would be a folder, for several files; name one without {suffix}"
        )


def write_report(
    path: Path, sections: "Sequence[Section]", progress: "RichProgress", *, title: str = ""
) -> int:
    """Write a report and return its size in bytes."""
    from tltools.report.page import TITLE, write_page

    replaced = ", replacing the earlier page" if path.exists() else ""
    num_bytes = write_page(path, sections, title=title or TITLE, progress=progress)
    progress.say(f"Written: {path} ({size_text(num_bytes)}){replaced}; open it in a browser")
    return num_bytes
