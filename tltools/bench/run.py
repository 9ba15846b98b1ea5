"""Measure candidates side by side: accuracy, latency, throughput, memory, size and loading."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tltools.artifacts import open_predictor as open_artifact
from tltools.bench.budget import Pace, announcement, duration, plan, works
from tltools.bench.gpu import uses_gpu
from tltools.bench.inputs import BenchInputs, Candidate
from tltools.bench.machine import describe_machine
from tltools.bench.peak import measure_peaks
from tltools.bench.records import BenchResult
from tltools.bench.rows import EAGER
from tltools.bench.settings import BenchSettings, Effort
from tltools.bench.stages import OpenModel
from tltools.bench.summary import Found, summarize
from tltools.bench.verdict import recommend
from tltools.bench.worker import Failure, Measured, OpenPredictor, Task, measure_in_new_process
from tltools.data.location import without_secrets
from tltools.errors import ConfigError, DataError
from tltools.progress import SILENT, Bar, Progress
from tltools.runtime import open_model as open_for_classify
from tltools.wording import listed


def run_bench(
    inputs: BenchInputs,
    settings: BenchSettings,
    *,
    open_predictor: OpenPredictor = open_artifact,
    open_model: OpenModel | None = open_for_classify,
    command: str | None = None,
    save: Callable[[BenchResult], object] | None = None,
    progress: Progress = SILENT,
) -> BenchResult:
    """Measure all candidates in rotation, for several rounds, each time in a new process.

    The rotation (A B C A B C) ensures that a machine that warms up, or is busy for a while, affects
    all candidates alike. A candidate that fails gets a row with the reason; the others continue.
    New processes import the calling program's main module, so a script that calls this needs
    `if __name__ == "__main__":`.

    Args:
        inputs: The candidates, and the images to measure them on.
        settings: How to measure.
        open_predictor: Opens a candidate's path on a device with a number of threads. It runs in
            the new process, so it must be a top-level function of a module.
        open_model: Opens an export as `classify` does, in the new process like `open_predictor`;
            None to skip the measurement of `classify` and the recommendation.
        command: The command to record in the result; None for this process's command line.
        save: Called with the result so far after each measurement, so that it survives a crash.
        progress: Shows finished measurements, and failures as they occur.

    Raises:
        ConfigError: If there is no candidate, or a number is not positive.
        DataError: If there is no image.
        ValueError: If names are not unique, or the targets do not match the images.
    """
    _check(inputs, settings)
    effort, estimates = _plan(inputs, settings, open_model is not None, progress)
    bench = _Bench(
        inputs,
        effort,
        open_predictor=open_predictor,
        open_model=open_model,
        timeout_s=settings.timeout_s,
        command=command or without_secrets(command_line(sys.argv)),
        progress=progress,
        pace=Pace(estimates, effort.rounds),
    )
    bench.run(save)
    return bench.result(complete=True)


class _Bench:
    """A running bench, with the results of each candidate so far."""

    def __init__(
        self,
        inputs: BenchInputs,
        effort: Effort,
        *,
        open_predictor: OpenPredictor,
        open_model: OpenModel | None,
        timeout_s: float,
        command: str,
        progress: Progress,
        pace: Pace,
    ) -> None:
        self._inputs = inputs
        self._effort = effort
        self._open_predictor = open_predictor
        self._open_model = open_model
        self._timeout_s = timeout_s
        self._command = command
        self._progress = progress
        self._pace = pace
        self._found = {candidate.name: Found() for candidate in inputs.candidates}
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._machine = describe_machine()
        precisions = {one.precision for one in inputs.candidates}
        self._peaks, no_peaks = measure_peaks(effort.device, precisions)
        if no_peaks:
            progress.warn(no_peaks)

    def run(self, save: Callable[[BenchResult], object] | None) -> None:
        """Measure all candidates in all rounds."""
        rounds, candidates = self._effort.rounds, self._inputs.candidates
        num_measurements = rounds * len(candidates)
        with self._progress.bar("Benchmark", num_measurements, unit="measurements") as bar:
            for turn in range(rounds):
                for index, candidate in enumerate(candidates):
                    if took_s := self._measure(candidate, turn, bar):
                        if told := self._pace.correction(index, took_s):
                            self._progress.say(told)
                        if save is not None:
                            save(self.result(complete=False))
                    bar.advance(note=candidate.name)
                left_s = self._seconds_left(turn)
                if left_s:
                    self._progress.detail(
                        f"Round {turn + 1} of {rounds} done: about {duration(left_s)} left"
                    )

    def _measure(self, candidate: Candidate, turn: int, bar: Bar) -> float:
        """Measure a candidate unless it has failed before; return the seconds it took, 0 if not."""
        state = self._found[candidate.name]
        if state.failure:
            return 0.0
        started = time.monotonic()
        result = measure_in_new_process(
            self._task(candidate, is_last=turn == self._effort.rounds - 1),
            timeout_s=self._timeout_s,
            on_stage=lambda stage: bar.advance(0, note=f"{candidate.name}: {stage}"),
        )
        state.seconds = took_s = time.monotonic() - started
        problem = _problem(result, _first_classes(self._found), self._inputs.targets)
        if problem or isinstance(result, Failure):
            state.failure = f"{problem or result} (round {turn + 1})"
            self._progress.say(f"{candidate.name} {state.failure}")
        else:
            state.add(result, self._effort)
        return took_s

    def _task(self, candidate: Candidate, *, is_last: bool) -> Task:
        effort, state = self._effort, self._found[candidate.name]
        leave_classify = candidate.format == EAGER or state.has_classified(effort.classify_seconds)
        return Task(
            open_predictor=self._open_predictor,
            path=candidate.path,
            device=effort.device,
            threads=effort.threads,
            batch_sizes=state.batch_sizes(effort.batch_sizes),
            may_leave_out=effort.may_leave_out and not state.rounds,
            iterations=effort.iterations,
            warmup=effort.warmup,
            max_seconds=effort.max_seconds,
            images=tuple(self._inputs.images),
            num_known=state.num_known,
            accuracy_s=effort.accuracy_s if is_last else 0.0,
            tf32=candidate.precision == "tf32",
            open_model=None if leave_classify else self._open_model,
            classify_seconds=effort.classify_seconds,
        )

    def _seconds_left(self, turn: int) -> float:
        """Return the expected duration of the rounds after this one, in seconds."""
        round_s = sum(one.seconds for one in self._found.values() if not one.failure)
        return (self._effort.rounds - 1 - turn) * round_s

    def result(self, *, complete: bool) -> BenchResult:
        """Return the result so far."""
        rows = summarize(self._inputs.candidates, self._found, self._inputs.targets, self._peaks)
        return BenchResult(
            created=self._created,
            command=self._command,
            complete=complete,
            settings=self._effort,
            machine=self._machine,
            peak_flops_per_s=self._peaks,
            notes_on_inputs=self._inputs.notes,
            rows=rows,
            recommendation=recommend(rows, unmeasured=self._inputs.unmeasured),
        )


def _plan(
    inputs: BenchInputs, settings: BenchSettings, with_classify: bool, progress: Progress
) -> tuple[Effort, list[float]]:
    """Plan the bench, and report how long it will take, from an estimate of each model's speed.

    Returns:
        How to measure, and the estimate for all rounds of each candidate, in seconds.
    """
    on_gpu = uses_gpu(settings.device)
    guesses = works(inputs.candidates, on_gpu=on_gpu, with_classify=with_classify)
    effort, estimates = plan(settings, guesses, num_images=len(inputs.images))
    progress.say(
        announcement(
            sum(estimates),
            budget_s=effort.budget_s,
            num_candidates=len(inputs.candidates),
            rounds=effort.rounds,
            num_sizes=len(effort.batch_sizes),
            with_tf32=any(one.precision == "tf32" for one in inputs.candidates),
        )
    )
    return effort, estimates


def _check(inputs: BenchInputs, settings: BenchSettings) -> None:
    if not inputs.candidates:
        raise ConfigError("nothing to bench: name a run or an export, or train one first")
    for name, value in [
        ("batch_sizes", None if settings.batch_sizes is None else min(settings.batch_sizes)),
        ("rounds", settings.rounds),
        ("iterations", settings.iterations),
        ("threads", settings.threads),
    ]:
        if value is not None and value < 1:
            raise ConfigError(f"`{name}=` must be at least 1, got {value}")
    names = [candidate.name for candidate in inputs.candidates]
    if len(set(names)) != len(names):
        raise ValueError(f"the candidates' names must differ, got {names}")
    number = len(inputs.images)
    if number == 0:
        raise DataError("no images to bench with: provide labeled images with `dataset=`")
    if inputs.targets.shape != (number,):
        raise ValueError(f"targets {inputs.targets.shape} do not fit {number} images")


def _first_classes(found: dict[str, Found]) -> tuple[str, ...] | None:
    for state in found.values():
        if state.rounds:
            return state.rounds[0].classes
    return None


def _problem(
    result: Measured | Failure, classes: tuple[str, ...] | None, targets: NDArray[np.int64]
) -> str:
    """Return why a result cannot be compared with the others, or an empty string."""
    if isinstance(result, Failure):
        return ""
    if classes is not None and result.classes != classes:
        return (
            f"failed: its classes ({listed(result.classes)}) differ from those of the others "
            f"({listed(classes)}), or are in another order: bench it separately"
        )
    number = len(result.logits)
    expected = (number, len(result.classes))
    if number and result.logits.shape != expected:
        return f"failed at accuracy: logits of shape {result.logits.shape} instead of {expected}"
    if targets.max() >= len(result.classes):
        return (
            f"failed at accuracy: the data has a class with index {targets.max()}, but the model "
            f"has only {len(result.classes)} classes"
        )
    unusable = int((~np.isfinite(result.logits)).any(axis=1).sum())
    if unusable:
        return f"failed at accuracy: logits of {unusable} of {number} images are not finite"
    return ""


def command_line(argv: Sequence[str]) -> str:
    """Return the command line as typed, without the program's folder."""
    program = Path(argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *argv[1:]])
