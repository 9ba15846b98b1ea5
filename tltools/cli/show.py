"""What several commands show."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tltools.card import Score
    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset
    from tltools.report.blocks import Section


def tell_findings(dataset: "Dataset", progress: "RichProgress") -> None:
    """Say what the audit of labelled pictures found."""
    for finding in dataset.findings:
        tell = progress.say if finding.severity == "note" else progress.warn
        tell(finding.message)


def write_report(path: Path, section: "Section", progress: "RichProgress") -> None:
    """Write a page with one section."""
    from tltools.report.page import write_page

    num_bytes = write_page(path, [section], progress=progress)
    progress.say(f"Written: {path} ({num_bytes / 1e6:.1f} MB), for any browser")


def score_text(score: "Score | None") -> str:
    """Write an accuracy with its interval and counts."""
    if score is None:
        return "-"
    return (
        f"{score.accuracy:.2%} ({score.low:.1%} to {score.high:.1%}), {score.correct}/{score.total}"
    )
