"""Show a list of runs on the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING

from tltools.cli.show import minute
from tltools.wording import counted

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
        ("run", "model", "data", "validation accuracy", "date (UTC)", "MB", "exported"),
        [
            (
                run.path.name,
                run.model or "?",
                run.data or "?",
                _accuracy(run),
                minute(run.created),
                f"{run.num_bytes / 1e6:.1f}",
                _exported(run),
            )
            for run in runs
        ],
    )


def _accuracy(run: "RunFacts") -> str:
    if run.val is None:
        return run.state
    state = "" if run.state == "finished" else f", {run.state}"
    return f"{run.val.accuracy:.1%} ({run.val.low:.1%} to {run.val.high:.1%}){state}"


def _exported(run: "RunFacts") -> str:
    parts = [str(len(run.exports))] if run.exports else []
    parts += [f"{len(run.older_exports)} older"] if run.older_exports else []
    return ", ".join(parts) or "no"
