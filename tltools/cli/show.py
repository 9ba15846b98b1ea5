"""What several commands show."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tltools.card import Score
    from tltools.console import RichProgress
    from tltools.data.dataset import Dataset


def tell_findings(dataset: "Dataset", progress: "RichProgress") -> None:
    """Say what the audit of labelled pictures found."""
    for finding in dataset.findings:
        tell = progress.say if finding.severity == "note" else progress.warn
        tell(finding.message)


def score_text(score: "Score | None") -> str:
    """Write an accuracy with its interval and counts."""
    if score is None:
        return "-"
    return (
        f"{score.accuracy:.2%} ({score.low:.1%} to {score.high:.1%}), {score.correct}/{score.total}"
    )
