"""Show a list of runs on the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING

from tltools.wording import counted, minute, with_interval

if TYPE_CHECKING:
    from tltools.cli.command import Out
    from tltools.runs import RunFacts


def show_runs(run_dir: Path, out: "Out") -> None:
    """Print the runs in a folder: the result of `tltools runs`, and of `tltools inspect runs`.

    Raises:
        ArtifactError: If there is no run.
    """
    from tltools.runs import is_ours, list_runs

    found = list_runs(run_dir, on_problem=lambda error: out.progress.warn(str(error)))
    for run in found:
        if run.state == "damaged":
            remedy = "delete the folder yourself if you do not need it"
            if is_ours(run.path):
                remedy = f"tltools runs --delete {run.path} deletes it"
            out.progress.warn(f"{run.problem}; {remedy}")
    out.result(found, lambda: _print_runs(run_dir, found))
    if len(found) > 1:
        out.progress.say("Next: tltools runs A B compares two of them")


def _print_runs(run_dir: Path, runs: "list[RunFacts]") -> None:
    from tltools.console import print_table

    print_table(
        f"{counted(len(runs), 'run')} in {run_dir}/, the newest first",
        ("run", "model", "data", "validation accuracy", "trained (UTC)", "MB", "state"),
        [
            (
                run.path.name,
                run.model or "?",
                run.data or "?",
                _accuracy(run),
                minute(run.created),
                f"{run.num_bytes / 1e6:.1f}",
                _state(run),
            )
            for run in runs
        ],
    )


def _accuracy(run: "RunFacts") -> str:
    return "-" if run.val is None else with_interval(run.val.accuracy, run.val.low, run.val.high)


def _state(run: "RunFacts") -> str:
    """Say whether a run is finished, and how many exports it has."""
    is_finished = run.state == "finished"
    parts = [] if is_finished else [run.state]
    if run.exports:
        parts.append(counted(len(run.exports), "export"))
    if run.older_exports:
        parts.append(counted(len(run.older_exports), "older export"))
    return ", ".join(parts) or "not exported"
