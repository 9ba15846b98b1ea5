"""Describe the answers that a report opens with: the best model, the best export, what failed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tltools.artifacts import Artifact, newer_training
from tltools.bench import BenchResult, unmeasured_note
from tltools.classify.predict import UNCERTAIN
from tltools.errors import ArtifactError
from tltools.report.blocks import Block, Section, Text
from tltools.report.jobs import JobFacts
from tltools.report.models import EvaluationFacts, by_accuracy, cross_validation, scored_on
from tltools.runs import chance_doubt, read_and_compare
from tltools.wording import grouped, score_text, with_counts


def summary_section(
    runs: Sequence[Artifact],
    exports: Sequence[Artifact],
    benches: Sequence[tuple[Path, BenchResult]],
    jobs: Sequence[tuple[Path, JobFacts]],
    evaluations: Sequence[EvaluationFacts] = (),
    left_out: Sequence[Artifact] = (),
) -> Section | None:
    """Return the section that the page opens with; None if there is nothing to sum up.

    Args:
        runs: Runs on the page.
        exports: Exports on the page.
        benches: Benches on the page, with their files.
        jobs: Classification jobs on the page, with their files.
        evaluations: Evaluations on the page, as far as their model is known.
        left_out: Other runs of the same folder.
    """
    answers = (
        *_best_runs(runs, left_out),
        *_evaluated(evaluations),
        *_recommended(benches, runs),
        *_classified(jobs),
    )
    doubts = tuple(_doubts(runs, exports, benches, jobs))
    blocks: list[Block] = []
    if answers:
        blocks.append(Text(answers))
    if doubts:
        blocks.append(Text(doubts, tone="warning"))
    return Section("Summary", blocks) if blocks else None


def _by_data(runs: Sequence[Artifact]) -> Iterator[list[Artifact]]:
    """Yield the scored runs of each data set, the most accurate first."""
    groups: dict[str, list[Artifact]] = {}
    for run in by_accuracy(runs):
        if "val" in run.card.metrics:
            groups.setdefault(run.card.data.fingerprint, []).append(run)
    yield from groups.values()


def compared(runs: Sequence[Artifact]) -> list[tuple[Path, Path]]:
    """Return the pairs of runs that the summary compares, the better one first."""
    return [(group[0].path, group[1].path) for group in _by_data(runs) if len(group) > 1]


def _best_runs(runs: Sequence[Artifact], left_out: Sequence[Artifact]) -> Iterator[str]:
    """Yield a few sentences on each data set's best run."""
    others = {group[0].card.data.fingerprint: group[0] for group in _by_data(left_out)}
    for ranked in _by_data(runs):
        best, data = ranked[0], ranked[0].card.data
        score, other = best.card.metrics["val"], others.get(data.fingerprint)
        better = None if other is None else other.card.metrics["val"]
        is_best = better is None or better.accuracy <= score.accuracy
        line = (
            f"Best model {'' if is_best else 'on this page '}on {data.name} "
            f"({data.num_train:,} images for training, {data.num_val:,} for validation, "
            f"{grouped(len(best.card.classes), 'class', 'classes')}): "
            f"{best.path.name}, validation accuracy {score_text(score)}."
        )
        if other is not None and not is_best:
            line += (
                f" Left out, but more accurate on the same images: {other.path.name}, "
                f"{score_text(better)}."
            )
        if crossed := cross_validation(best):
            line += f" Cross-validation: {crossed}."
        yield f"{line} {_against(best, ranked[1])}" if len(ranked) > 1 else line


def _evaluated(evaluations: Sequence[EvaluationFacts]) -> Iterator[str]:
    """Yield a sentence on each set of images, with the accuracies of its models, best first."""
    groups: dict[str, list[EvaluationFacts]] = {}
    for one in sorted(evaluations, key=lambda one: -one.accuracy.value):
        if one.coverage is None:  # else the accuracy is of a part of the images only
            groups.setdefault(scored_on(one), []).append(one)
    for images, ranked in groups.items():
        yield f"Accuracy on {images}: {'; '.join(map(_accuracy_of, ranked))}."


def _accuracy_of(evaluation: EvaluationFacts) -> str:
    """Name a model with its accuracy, and how many of the images it was trained on."""
    one, seen = evaluation.accuracy, evaluation.num_trained_on
    told = with_counts(one.value, one.low, one.high, one.correct, one.total)
    trained = f", of which it was trained on {seen:,}" if seen else ""
    applied = evaluation.threshold
    rule = f" (threshold for {applied.class_name}: {applied.value!r})" if applied else ""
    return f"{evaluation.model}{rule} {told}{trained}"


def _against(best: Artifact, second: Artifact) -> str:
    """Compare two runs in a sentence."""
    try:
        return read_and_compare(best, second).sentence()
    except ArtifactError as error:
        return f"{best.path.name} and {second.path.name} cannot be compared: {error}."


def _recommended(
    benches: Sequence[tuple[Path, BenchResult]], runs: Sequence[Artifact]
) -> Iterator[str]:
    """Yield what each bench recommends, and whether a better run on the page was not measured."""
    for _, bench in benches:
        lines = bench.answer()
        if bench.recommendation is not None and not bench.recommendation.unmeasured:
            names = {row.run for row in bench.rows}
            measured = [run for run in runs if run.card.run in names]
            lines += filter(None, [unmeasured_note(measured, runs)])  # trained since
        if lines:
            yield " ".join(f"{line}." for line in lines)


def _classified(jobs: Sequence[tuple[Path, JobFacts]]) -> Iterator[str]:
    for path, job in jobs:
        line = f"{path}: {job.num_classified:,} of {grouped(job.num_rows, 'image')} classified"
        if UNCERTAIN not in job.classes and (num := job.counts.get(UNCERTAIN)):
            line += f", {num:,} of them uncertain"
        if num := job.distances.num_unknown:
            line += f", {num:,} of them unlike the training data"
        yield f"{line}."


def _doubts(
    runs: Sequence[Artifact],
    exports: Sequence[Artifact],
    benches: Sequence[tuple[Path, BenchResult]],
    jobs: Sequence[tuple[Path, JobFacts]],
) -> Iterator[str]:
    """Yield what failed, and what may no longer hold."""
    yield from _doubts_of_models(runs, exports)
    for path, job in jobs:
        if job.num_failed:
            yield f"{path}: {grouped(job.num_failed, 'image')} could not be classified; see below."
    yield from _doubts_of_benches(benches, exports)


def _doubts_of_models(runs: Sequence[Artifact], exports: Sequence[Artifact]) -> Iterator[str]:
    for run in runs:
        if run.card.training.get("interrupted"):
            yield f"The training of {run.path.name} was stopped early."
        if doubt := chance_doubt(run.path, run.card):
            yield f"{run.path.name}: {doubt}."
    for export in exports:
        if why := newer_training(export):
            yield f"{export.path} {why}."


def _doubts_of_benches(
    benches: Sequence[tuple[Path, BenchResult]], exports: Sequence[Artifact]
) -> Iterator[str]:
    for path, bench in benches:
        if not bench.complete:
            yield f"{path} is incomplete: the benchmark was still running, or was stopped."
        failed = sum(1 for row in bench.rows if row.status == "failed")
        if failed:
            yield f"{path}: {grouped(failed, 'candidate')} failed; see the notes below."
        measured = path.stat().st_mtime
        newer = [str(one.path) for one in exports if one.path.stat().st_mtime > measured]
        if newer:
            yield (
                f"{path} is older than {', '.join(newer[:3])}"
                f"{f' and {len(newer) - 3:,} more' if len(newer) > 3 else ''}; run tltools bench "
                "again before you rely on it."
            )
