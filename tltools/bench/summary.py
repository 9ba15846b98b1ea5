"""Combine the rounds of each candidate into a row with figures and warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from tltools.bench.inputs import Candidate
from tltools.bench.rows import (
    EAGER,
    BatchTiming,
    BenchPrecision,
    BenchRow,
    ClassifyFigures,
    Status,
)
from tltools.bench.settings import Effort
from tltools.bench.stages import is_slow
from tltools.bench.timing import MAX_ROUND_SPREAD, latency, num_outliers, round_spread
from tltools.bench.verdict import classify_doubts, in_order, sum_up
from tltools.bench.worker import Measured
from tltools.card import Score
from tltools.metrics import score
from tltools.wording import plural

MAX_OUTLIERS = 0.01
"""Largest share of outliers in a stable row: more of them distort the percentiles."""


@dataclass
class Found:
    """What has been measured for a candidate so far."""

    rounds: list[Measured] = field(default_factory=list)
    failure: str = ""
    seconds: float = 0.0
    """Expected duration of another round, in seconds."""

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Logits of all rounds for the first n images, (n, C); None if there are none."""
        parts = [one.logits for one in self.rounds]
        return np.concatenate(parts) if parts else None

    @property
    def num_known(self) -> int:
        """Number of images, from the first on, that have logits."""
        return sum(len(one.logits) for one in self.rounds)

    @property
    def peak_memory_bytes(self) -> int | None:
        """The largest of all rounds; None if unknown."""
        peaks = [one.peak_memory_bytes for one in self.rounds if one.peak_memory_bytes is not None]
        return max(peaks, default=None)

    @property
    def peak_gpu_bytes(self) -> int | None:
        """The largest of all rounds; None on the CPU."""
        peaks = [one.peak_gpu_bytes for one in self.rounds if one.peak_gpu_bytes is not None]
        return max(peaks, default=None)

    def batches(self) -> tuple[BatchTiming, ...]:
        """Return the combined timings, by batch size."""
        sizes = list(self.rounds[0].timings) if self.rounds else []
        return tuple(
            batch_timing(size, [measured.timings[size].samples_s for measured in self.rounds])
            for size in sizes
        )

    def classify(self, precisions: set[BenchPrecision]) -> ClassifyFigures | None:
        """Return the combined figures of `classify`; None if it was not measured."""
        classified = [one.classify for one in self.rounds if one.classify is not None]
        return sum_up(classified, precisions) if classified else None

    def add(self, result: Measured, effort: Effort) -> None:
        """Add the result of another round."""
        self.rounds.append(result)
        if self.has_classified(effort.classify_seconds):
            self.seconds -= result.classify_took_s

    def batch_sizes(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """Return the batch sizes to time: those of the first round once there is one."""
        return tuple(self.rounds[0].timings) if self.rounds else wanted

    def has_classified(self, seconds: float) -> bool:
        """Return whether one round of `classify`, limited to `seconds`, was enough."""
        found = self.rounds[0].classify if self.rounds else None
        return found is not None and is_slow(found, seconds=seconds)


def summarize(
    candidates: Sequence[Candidate],
    found: dict[str, Found],
    targets: NDArray[np.int64],
    peaks: Mapping[str, float],
) -> tuple[BenchRow, ...]:
    """Return a row for each candidate that has been tried, grouped by run.

    All are evaluated on the same images: as many as the slowest candidate has classified.
    """
    numbers = [one.num_known for one in found.values() if one.rounds and not one.failure]
    targets = targets[: min(numbers, default=0)]
    eager = {
        candidate.run: found[candidate.name].logits
        for candidate in candidates
        if candidate.format == EAGER and found[candidate.name].rounds
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
    found: Found,
    targets: NDArray[np.int64],
    eager_logits: NDArray[np.float32] | None,
    precisions: set[BenchPrecision],
    peak_flops_per_s: float | None,
) -> BenchRow:
    batches = found.batches()
    classify = found.classify(precisions)
    warnings = (*doubts(batches), *classify_doubts(classify))
    judged = _judge(found.logits, targets, None if candidate.format == EAGER else eager_logits)
    flops_per_s = _flops_per_s(candidate.flops_per_image, batches)
    gpu_bytes = found.peak_gpu_bytes
    status: Status = "failed" if found.failure else "unstable" if warnings else "ok"
    last = found.rounds[-1] if found.rounds else None
    return BenchRow(
        name=candidate.name,
        run=candidate.run,
        format=candidate.format,
        precision=candidate.precision,
        path=str(candidate.path),
        status=status,
        reason=found.failure,
        warnings=warnings,
        **vars(judged),
        load_s=tuple(measured.load_s for measured in found.rounds),
        latency=latency(sum(batches[0].rounds_s, ())) if batches else None,
        batches=batches,
        classify=classify,
        size_bytes=_size_bytes(candidate.path),
        peak_memory_bytes=found.peak_memory_bytes,
        peak_gpu_bytes=gpu_bytes,
        flops_per_image=candidate.flops_per_image,
        flops_per_s=flops_per_s,
        peak_share=_share(flops_per_s, peak_flops_per_s) if gpu_bytes is not None else None,
        device=last.device if last else "",
        device_reason=last.device_reason if last else "",
        provider=last.provider if last else "",
        placement=last.placement if last else {},
        threads=last.threads if last else None,
    )


@dataclass(frozen=True)
class _Judgement:
    """The quality of a candidate's labels; the fields are those of `BenchRow`."""

    score: Score | None = None
    accuracy_diff: float | None = None
    agreement: float | None = None
    max_abs_logit_diff: float | None = None


def _judge(
    logits: NDArray[np.float32] | None,
    targets: NDArray[np.int64],
    eager_logits: NDArray[np.float32] | None,
) -> _Judgement:
    """Count the correct labels, and compare with the eager model's labels if there is one."""
    if logits is None or not 0 < len(targets) <= len(logits):
        return _Judgement()  # it failed before
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
    """Return the operations per second at the best batch size; None if unknown."""
    if flops_per_image is None or not batches:
        return None
    return flops_per_image * max(timing.images_per_s for timing in batches)


def _share(flops_per_s: float | None, peak_flops_per_s: float | None) -> float | None:
    if flops_per_s is None or peak_flops_per_s is None:
        return None
    return flops_per_s / peak_flops_per_s


def batch_timing(batch_size: int, rounds_s: Sequence[tuple[float, ...]]) -> BatchTiming:
    """Combine the rounds of one batch size."""
    return BatchTiming(
        batch_size=batch_size,
        rounds_s=tuple(rounds_s),
        images_per_s=median(batch_size / median(samples) for samples in rounds_s),
        round_spread=round_spread(rounds_s),
        num_outliers=num_outliers([s for samples in rounds_s for s in samples]),
    )


def doubts(batches: Sequence[BatchTiming]) -> list[str]:
    """Return what makes a candidate's timings unreliable, and what to do, one line each."""
    lines: list[str] = []
    worst = max(batches, key=lambda timing: timing.round_spread, default=None)
    if worst is not None and worst.round_spread > MAX_ROUND_SPREAD:
        lines.append(
            f"the slowest round took {1 + worst.round_spread:.2f} times as long as the fastest (at "
            f"batch size {worst.batch_size}): the machine was busy or changed its clock speed; "
            "close other programs and run again, or use more --rounds"
        )
    for timing in batches:
        num_samples = sum(len(samples) for samples in timing.rounds_s)
        if timing.num_outliers > MAX_OUTLIERS * num_samples:
            lines.append(
                f"{timing.num_outliers} of {num_samples} timed passes "
                f"{plural(timing.num_outliers, 'was', 'were')} far slower than the rest "
                f"(at batch size {timing.batch_size}), so p99 and perhaps p95 reflect other "
                "programs; close them and run again"
            )
            break
    return lines


def _size_bytes(path: Path) -> int:
    """Return the size in bytes of a file, or of the checkpoint of a run folder (0 if none)."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
