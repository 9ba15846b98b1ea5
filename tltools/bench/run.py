"""Measure candidates side by side: accuracy, latency, throughput, memory, size and loading."""

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import gettempdir

import numpy as np
from numpy.typing import NDArray

from tltools.atomic import remove_leftovers
from tltools.bench.budget import (
    BUDGET_S,
    CPU_BATCH_SIZES,
    GPU_BATCH_SIZES,
    GPU_FLOPS_PER_S,
    GPU_START_S,
    ONNX_START_S,
    TORCH_START_S,
    Effort,
    Limits,
    Work,
    announcement,
    duration,
    estimate_s,
    image_seconds,
    quick_flops_per_s,
    share_out,
)
from tltools.bench.gpu import uses_gpu
from tltools.bench.machine import describe_machine
from tltools.bench.peak import measure_peaks
from tltools.bench.records import BenchReport, Settings
from tltools.bench.rows import BatchTiming, BenchFormat, BenchPrecision, BenchRow, Status
from tltools.bench.stages import TEMPORARY, OpenModel, is_slow
from tltools.bench.timing import MAX_ROUND_SPREAD, latency, num_outliers, round_spread
from tltools.bench.verdict import classify_doubts, in_order, recommend, sum_up
from tltools.bench.worker import Failure, Measured, OpenPredictor, Task, measure_in_new_process
from tltools.card import Score
from tltools.errors import ConfigError, DataError
from tltools.metrics import score
from tltools.parallel import num_cores
from tltools.progress import SILENT, Progress
from tltools.runtime import Device

MAX_OUTLIERS = 0.01
"""A larger share of outliers among the samples makes a row unstable: it moves the percentiles."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model in one format and precision."""

    name: str
    """Unique in the bench; for messages."""
    run: str
    """Candidates of one run are compared with its eager one, and stand together in the tables."""
    format: BenchFormat
    precision: BenchPrecision
    path: Path
    """The export; for `eager`, the run folder."""
    flops_per_image: int | None = None
    """Operations of convolutions and matrix products; None where that is not known."""


@dataclass
class _Found:
    """What is known of a candidate so far."""

    rounds: list[Measured] = field(default_factory=list)
    failure: str = ""
    seconds: float = 0.0
    """What another round may take, by the latest one."""

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Those of all rounds, (n, C), of the first n pictures; None where there are none."""
        parts = [one.logits for one in self.rounds]
        return np.concatenate(parts) if parts else None

    @property
    def num_known(self) -> int:
        """How many of the first pictures have logits."""
        return sum(len(one.logits) for one in self.rounds)

    def add(self, result: Measured, settings: Settings) -> None:
        """Take the result of another round."""
        self.rounds.append(result)
        if self.has_classified(settings.classify_seconds):
            self.seconds -= result.classify_took_s

    def batch_sizes(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """Return the batch sizes to time: those of the first round where there was one."""
        return tuple(self.rounds[0].timings) if self.rounds else wanted

    def has_classified(self, seconds: float) -> bool:
        """Tell whether one round of `classify`, which had so many seconds, was enough."""
        found = self.rounds[0].classify if self.rounds else None
        return found is not None and is_slow(found, seconds=seconds)


def run_bench(
    candidates: Sequence[Candidate],
    *,
    open_predictor: OpenPredictor,
    pictures: Sequence[Path],
    targets: NDArray[np.int64],
    device: Device = "auto",
    threads: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    rounds: int = 3,
    runs: int = 50,
    warmup: int = 5,
    budget_s: float = BUDGET_S,
    max_seconds: float | None = None,
    open_model: OpenModel | None = None,
    classify_seconds: float | None = None,
    timeout_s: float = 300.0,
    command: str | None = None,
    save: Callable[[BenchReport], object] | None = None,
    progress: Progress = SILENT,
) -> BenchReport:
    """Measure all candidates in turn, for several rounds, each time in a new process.

    The turns (A B C A B C) let a machine that warms up or is busy for a while be as hard on one
    candidate as on the others. A candidate that fails gets a row that says so; the others go on.

    New processes import the calling program's main module, so a script that calls this needs
    `if __name__ == "__main__":`.

    Args:
        candidates: What to measure.
        open_predictor: Opens a candidate's path on a device with so many threads. It runs in the
            new process, so it is a function at the top of a module.
        pictures: Readable pictures; the first ones, repeated as needed, are those of the timings.
        targets: True class of each picture as an index into the cards' classes, (N,).
        device: Passed to `open_predictor`.
        threads: For all candidates alike; None for this process's cores.
        batch_sizes: For throughput. Latency is that of single pictures, which are always measured.
            None to choose: those of a slow model that cannot pay are left out then.
        rounds: Turns.
        runs: Timed runs per measurement at most.
        warmup: Untimed runs before them.
        budget_s: Target for the whole bench in seconds, shared out among all measurements (see
            `tltools.bench.budget`).
        max_seconds: Ends a measurement's timed runs early, though not before there are 10 of
            single pictures and one of batches; None for its share of the budget.
        open_model: Opens an export as `classify` does, in the new process like `open_predictor`;
            None to leave out what `classify` costs, and the recommendation with it.
        classify_seconds: For a measurement of the whole `classify`; see `measure_classify`; None
            for its share of the budget.
        timeout_s: A process that stays silent for longer is ended, and its candidate has failed.
            It speaks before each batch size and after each batch of the accuracy's pictures.
        command: For the report; None for this process's command line.
        save: Called with the report so far after each measurement, so that a crash keeps it.
        progress: Shows measurements done, and says of failures as they come.

    Raises:
        ConfigError: If there is no candidate, or a number is not positive.
        DataError: If there is no picture.
        ValueError: If names repeat, or `targets` does not fit `pictures`.
    """
    sizes = _batch_sizes(batch_sizes, device)
    limits = share_out(
        budget_s,
        num_candidates=max(1, len(candidates)),
        rounds=max(1, rounds),
        num_sizes=len(sizes),
    )
    settings = Settings(
        device=device,
        threads=threads or num_cores(),
        batch_sizes=sizes,
        rounds=rounds,
        runs=runs,
        warmup=warmup,
        max_seconds=max_seconds or limits.size_s,
        budget_s=budget_s,
        may_leave_out=batch_sizes is None,
        classify_seconds=classify_seconds or limits.classify_s,
        num_pictures=len(pictures),
    )
    _check(candidates, settings, pictures, targets)
    _announce(candidates, settings, limits, with_classify=open_model is not None, progress=progress)
    remove_leftovers(Path(gettempdir()), prefix=TEMPORARY)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe_machine()
    command = command or command_line(sys.argv)
    found = {candidate.name: _Found() for candidate in candidates}
    peaks, no_peaks = measure_peaks(device, {one.precision for one in candidates})
    if no_peaks:
        progress.warn(no_peaks)

    def report(*, complete: bool) -> BenchReport:
        rows = _rows(candidates, found, targets, peaks)
        return BenchReport(
            created=created,
            command=command,
            complete=complete,
            settings=settings,
            machine=machine,
            peak_flops_per_s=peaks,
            rows=rows,
            recommendation=recommend(rows),
        )

    def task(candidate: Candidate, *, is_last: bool) -> Task:
        state = found[candidate.name]
        leave_classify = candidate.format == "eager" or state.has_classified(
            settings.classify_seconds
        )
        return Task(
            open_predictor=open_predictor,
            path=candidate.path,
            device=device,
            threads=settings.threads,
            batch_sizes=state.batch_sizes(settings.batch_sizes),
            may_leave_out=settings.may_leave_out and not state.rounds,
            runs=runs,
            warmup=warmup,
            max_seconds=settings.max_seconds,
            pictures=tuple(pictures),
            num_known=state.num_known,
            accuracy_s=limits.accuracy_s if is_last else 0.0,
            tf32=candidate.precision == "tf32",
            open_model=None if leave_classify else open_model,
            classify_seconds=settings.classify_seconds,
        )

    with progress.bar("Benchmark", rounds * len(candidates), unit="measurements") as bar:
        for turn in range(rounds):
            for candidate in candidates:
                state = found[candidate.name]
                if not state.failure:
                    started = time.monotonic()
                    result = measure_in_new_process(
                        task(candidate, is_last=turn == rounds - 1),
                        timeout_s=timeout_s,
                        on_stage=lambda stage, name=candidate.name: bar.advance(
                            0, note=f"{name}: {stage}"
                        ),
                    )
                    state.seconds = time.monotonic() - started
                    problem = _problem(result, _first_classes(found), targets)
                    if problem or isinstance(result, Failure):
                        state.failure = f"{problem or result} (round {turn + 1})"
                        progress.say(f"{candidate.name} {state.failure}")
                    else:
                        state.add(result, settings)
                    if save is not None:
                        save(report(complete=False))
                bar.advance(note=candidate.name)
            round_s = sum(one.seconds for one in found.values() if not one.failure)
            left_s = (rounds - 1 - turn) * round_s
            if left_s:
                progress.say(f"Round {turn + 1} of {rounds} done: about {duration(left_s)} left")
    return report(complete=True)


def _batch_sizes(wanted: Sequence[int] | None, device: Device) -> tuple[int, ...]:
    """Return the batch sizes to time, ascending and 1 among them; None: the usual ones."""
    if wanted is None:
        wanted = GPU_BATCH_SIZES if uses_gpu(device) else CPU_BATCH_SIZES
    return tuple(sorted({1, *wanted}))


def _announce(
    candidates: Sequence[Candidate],
    settings: Settings,
    limits: Limits,
    *,
    with_classify: bool,
    progress: Progress,
) -> None:
    """Say how long this will take, by a guess of how fast each model is."""
    on_gpu = uses_gpu(settings.device)
    flops_per_s = GPU_FLOPS_PER_S if on_gpu else quick_flops_per_s()
    flops = {one.run: one.flops_per_image for one in candidates if one.flops_per_image}
    works = [
        Work(
            image_s=image_seconds(
                flops.get(one.run),
                flops_per_s=flops_per_s,
                int8=one.precision == "int8" and not on_gpu,
            ),
            with_classify=with_classify and one.format != "eager",
            start_s=(ONNX_START_S if one.format == "onnx" else TORCH_START_S)
            + (GPU_START_S if on_gpu else 0.0),
        )
        for one in candidates
    ]
    effort = Effort(
        rounds=settings.rounds,
        runs=settings.runs,
        warmup=settings.warmup,
        batch_sizes=settings.batch_sizes,
        may_leave_out=settings.may_leave_out,
        num_images=settings.num_pictures,
    )
    seconds = estimate_s(works, limits, effort)
    progress.say(
        announcement(seconds, num_candidates=len(candidates), rounds=settings.rounds, on_gpu=on_gpu)
    )


def _check(
    candidates: Sequence[Candidate],
    settings: Settings,
    pictures: Sequence[Path],
    targets: NDArray[np.int64],
) -> None:
    if not candidates:
        raise ConfigError("nothing to bench: name a run or an export, or make one by tltools train")
    for option, value in [
        ("--batch-sizes", settings.batch_sizes[0]),
        ("--rounds", settings.rounds),
        ("--runs", settings.runs),
        ("--threads", settings.threads),
    ]:
        if value < 1:
            raise ConfigError(f"{option} must be 1 or more, got {value}")
    names = [candidate.name for candidate in candidates]
    if len(set(names)) != len(names):
        raise ValueError(f"candidates' names must differ, got {names}")
    if len(pictures) == 0:
        raise DataError("no pictures to bench with: name labelled ones with --data")
    if targets.shape != (len(pictures),):
        raise ValueError(f"targets {targets.shape} do not fit {len(pictures)} pictures")


def _first_classes(found: dict[str, _Found]) -> tuple[str, ...] | None:
    for state in found.values():
        if state.rounds:
            return state.rounds[0].classes
    return None


def _problem(
    result: Measured | Failure, classes: tuple[str, ...] | None, targets: NDArray[np.int64]
) -> str:
    """Return why a result cannot be compared with the others, or nothing."""
    if isinstance(result, Failure):
        return ""
    if classes is not None and result.classes != classes:
        return (
            f"failed: its classes ({', '.join(result.classes)}) are not those of the others "
            f"({', '.join(classes)}), in this order: bench it by itself"
        )
    number = len(result.logits)
    expected = (number, len(result.classes))
    if number and result.logits.shape != expected:
        return f"failed at accuracy: logits of shape {result.logits.shape} instead of {expected}"
    if targets.max() >= len(result.classes):
        return f"failed at accuracy: the data has a class {targets.max()}, the model has fewer"
    unusable = int((~np.isfinite(result.logits)).any(axis=1).sum())
    if unusable:
        return f"failed at accuracy: logits of {unusable} of {number} pictures are not finite"
    return ""


def _rows(
    candidates: Sequence[Candidate],
    found: dict[str, _Found],
    targets: NDArray[np.int64],
    peaks: Mapping[str, float],
) -> tuple[BenchRow, ...]:
    """Return a row for each candidate that has been tried, those of a run together.

    All are judged on the same pictures: as many of the first ones as the slowest has come to.
    """
    numbers = [one.num_known for one in found.values() if one.rounds and not one.failure]
    targets = targets[: min(numbers, default=0)]
    eager = {
        candidate.run: found[candidate.name].logits
        for candidate in candidates
        if candidate.format == "eager" and found[candidate.name].rounds
    }
    return tuple(
        in_order(
            _row(
                candidate,
                state,
                targets,
                eager.get(candidate.run),
                {one.precision for one in candidates if one.run == candidate.run},
                peaks.get(candidate.precision),
            )
            for candidate in candidates
            if (state := found[candidate.name]).rounds or state.failure
        )
    )


def _row(
    candidate: Candidate,
    found: _Found,
    targets: NDArray[np.int64],
    eager_logits: NDArray[np.float32] | None,
    precisions: set[BenchPrecision],
    peak_flops_per_s: float | None,
) -> BenchRow:
    rounds = found.rounds
    last = rounds[-1] if rounds else None
    sizes = list(rounds[0].timings) if rounds else []
    batches = tuple(
        batch_timing(size, [measured.timings[size].samples_s for measured in rounds])
        for size in sizes
    )
    classified = [one.classify for one in rounds if one.classify is not None]
    classify = sum_up(classified, precisions) if classified else None
    warnings = (*doubts(batches), *classify_doubts(classify))
    judged = _judge(
        found.logits,
        targets,
        None if candidate.format == "eager" else eager_logits,
    )
    peaks = [m.peak_memory_bytes for m in rounds if m.peak_memory_bytes is not None]
    gpu_peaks = [m.peak_gpu_bytes for m in rounds if m.peak_gpu_bytes is not None]
    flops_per_s = _flops_per_s(candidate.flops_per_image, batches)
    status: Status = "failed" if found.failure else "unstable" if warnings else "ok"
    return BenchRow(
        name=candidate.name,
        run=candidate.run,
        format=candidate.format,
        precision=candidate.precision,
        path=str(candidate.path),
        status=status,
        reason=found.failure,
        warnings=warnings,
        score=judged.score,
        accuracy_diff=judged.accuracy_diff,
        agreement=judged.agreement,
        max_abs_logit_diff=judged.max_abs_logit_diff,
        load_s=tuple(measured.load_s for measured in rounds),
        latency=latency([s for samples in batches[0].rounds_s for s in samples])
        if batches
        else None,
        batches=batches,
        classify=classify,
        size_bytes=_size_bytes(candidate.path),
        peak_memory_bytes=max(peaks, default=None),
        peak_gpu_bytes=max(gpu_peaks, default=None),
        flops_per_image=candidate.flops_per_image,
        flops_per_s=flops_per_s,
        peak_share=flops_per_s / peak_flops_per_s
        if flops_per_s is not None and peak_flops_per_s is not None and gpu_peaks
        else None,
        device=last.device if last else "",
        device_reason=last.device_reason if last else "",
        provider=last.provider if last else "",
        placement=last.placement if last else {},
        threads=last.threads if last else None,
    )


@dataclass(frozen=True)
class _Judgement:
    """How good a candidate's labels are; the fields are those of `BenchRow`."""

    score: Score | None = None
    accuracy_diff: float | None = None
    agreement: float | None = None
    max_abs_logit_diff: float | None = None


def _judge(
    logits: NDArray[np.float32] | None,
    targets: NDArray[np.int64],
    eager_logits: NDArray[np.float32] | None,
) -> _Judgement:
    """Count how many labels are right, and compare with the eager model's where there is one."""
    if logits is None or not 0 < len(targets) <= len(logits):
        return _Judgement()  # it failed before it came so far
    logits = logits[: len(targets)]
    preds = logits.argmax(axis=1)
    result = score(preds, targets)
    if eager_logits is None or len(eager_logits) < len(targets):
        return _Judgement(result)
    eager_logits = eager_logits[: len(targets)]
    eager_preds = eager_logits.argmax(axis=1)
    return _Judgement(
        result,
        accuracy_diff=(result.correct - score(eager_preds, targets).correct) / result.total,
        agreement=float((preds == eager_preds).mean()),
        max_abs_logit_diff=float(np.abs(logits - eager_logits).max()),
    )


def _flops_per_s(flops_per_image: int | None, batches: Sequence[BatchTiming]) -> float | None:
    """Return the operations per second with the best batch size, where they are known."""
    if flops_per_image is None or not batches:
        return None
    return flops_per_image * max(timing.pictures_per_s for timing in batches)


def batch_timing(batch_size: int, rounds_s: Sequence[tuple[float, ...]]) -> BatchTiming:
    """Sum up the rounds of one batch size."""
    return BatchTiming(
        batch_size=batch_size,
        rounds_s=tuple(rounds_s),
        pictures_per_s=median(batch_size / median(samples) for samples in rounds_s),
        round_spread=round_spread(rounds_s),
        num_outliers=num_outliers([s for samples in rounds_s for s in samples]),
    )


def doubts(batches: Sequence[BatchTiming]) -> list[str]:
    """Say what makes a candidate's timings doubtful, and what to do about it, a line each."""
    lines: list[str] = []
    worst = max(batches, key=lambda timing: timing.round_spread, default=None)
    if worst is not None and worst.round_spread > MAX_ROUND_SPREAD:
        lines.append(
            f"the slowest round took {1 + worst.round_spread:.2f} times as long as the fastest (at "
            f"batch size {worst.batch_size}): the machine was busy or changed its clock; close "
            "other programs and run again, or take more --rounds"
        )
    for timing in batches:
        num_samples = sum(len(samples) for samples in timing.rounds_s)
        if timing.num_outliers > MAX_OUTLIERS * num_samples:
            lines.append(
                f"{timing.num_outliers} of {num_samples} runs were far slower than the rest (at "
                f"batch size {timing.batch_size}): p99 and perhaps p95 tell of something else that "
                "was running; close it and run again"
            )
            break
    return lines


def command_line(argv: Sequence[str]) -> str:
    """Return what was typed, without the program's folder."""
    program = Path(argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *argv[1:]])


def _size_bytes(path: Path) -> int:
    """Return a file's size; of a run folder, the size of its checkpoint; 0 if there is none."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
