"""Interpret the figures: the bottleneck of `classify`, and the export to use on this machine."""

import math
import shlex
from collections.abc import Collection, Iterable, Sequence
from statistics import median

from tltools.bench.budget import NOISE
from tltools.bench.rows import (
    EAGER,
    HAND_OVER,
    BenchPrecision,
    BenchRow,
    Bottleneck,
    Choice,
    ClassifyFigures,
    ClassifyRound,
    Recommendation,
    Stage,
    StageCosts,
)
from tltools.bench.text import accuracy, digits, milliseconds
from tltools.bench.timing import MAX_ROUND_SPREAD
from tltools.runtime.model_formats import FORMATS
from tltools.wording import in_percent_down, percent

MAX_ACCURACY_LOSS = 0.005
"""Largest loss of accuracy of a recommended export, as a share of all images."""
MIN_AGREEMENT = 0.99
"""Smallest share of images on which it must agree with PyTorch."""

PRECISION_ORDER: tuple[BenchPrecision, ...] = ("fp32", "tf32", "fp16", "int8")
"""The most exact first."""
ROUNDING = 1e-9
"""Rounding error of differences between shares: 0.955 - 0.96 is slightly less than -0.005."""
MAX_UNEXPLAINED = 1.3
"""If an image takes more than this many times what the stages explain, no stage is to blame."""

REMEDIES: dict[Stage, str] = {
    "reading": "try a faster disk, or classify with more --workers",
    "decoding": "try smaller image files or more cores",
    "writing": "try another output format: classify --output FILE.parquet or FILE.jsonl",
}


# --------------------------------------------------------------------------------- bottleneck


def find_bottleneck(
    costs: StageCosts,
    *,
    device: str,
    images_per_s: float,
    precisions: Collection[str] = (),
) -> Bottleneck:
    """Find the bottleneck stage of `classify`.

    On the CPU the stages share the cores, so their costs add up and the largest is the bottleneck.
    A GPU works in parallel to the cores: whichever takes longer for an image is the bottleneck. If
    the measured rate is far below what follows from this, the bottleneck is the hand-over between
    the stages, and the sentence says how much is unexplained.

    Args:
        costs: Seconds per image in each stage, as the plan runs it.
        device: Device of the inference.
        images_per_s: Measured rate of the whole.
        precisions: Precisions of the run's exports, which are not suggested again.
    """
    by_stage = costs.by_stage()
    others_s = sum(by_stage.values()) - costs.infer_s
    if device == "cpu":
        stage = max(by_stage, key=by_stage.__getitem__)
        total_s = others_s + costs.infer_s
        where = "that the cores need for the stages, each measured alone"
    elif costs.infer_s >= others_s:
        stage, total_s = "inference", costs.infer_s
        where = f"that the GPU needs, while the cores ({milliseconds(others_s)} ms) wait"
    else:
        del by_stage["inference"]
        stage, total_s = max(by_stage, key=by_stage.__getitem__), others_s
        where = f"that the cores need, while the GPU ({milliseconds(costs.infer_s)} ms) waits"
    reached_s = 1 / images_per_s
    if reached_s > MAX_UNEXPLAINED * total_s:
        return _hand_over(total_s=total_s, reached_s=reached_s, where=where)
    cost_s = costs.by_stage()[stage]
    share = cost_s / total_s
    remedy = _faster_model(device, precisions) if stage == "inference" else REMEDIES[stage]
    return Bottleneck(
        stage=stage,
        cost_s=cost_s,
        total_s=total_s,
        share=share,
        sentence=(
            f"{stage} takes {milliseconds(cost_s)} ms per image, {share:.0%} of the "
            f"{milliseconds(total_s)} ms {where}; classify as a whole took "
            f"{milliseconds(reached_s)} ms per image: {remedy}"
        ),
    )


def _hand_over(*, total_s: float, reached_s: float, where: str) -> Bottleneck:
    """Return the hand-over between the stages as the bottleneck."""
    rest_s = reached_s - total_s
    return Bottleneck(
        stage=HAND_OVER,
        cost_s=rest_s,
        total_s=reached_s,
        share=rest_s / reached_s,
        sentence=(
            f"hand-over between the stages takes {milliseconds(rest_s)} of "
            f"{milliseconds(reached_s)} ms per image: the stages explain "
            f"{milliseconds(total_s)} ms (those {where}), the rest is passing images on, "
            "keeping their order and waiting, or something that was not measured: classify with "
            "another number of --workers, a larger --batch-size, or as several jobs with --shard"
        ),
    )


def _faster_model(device: str, precisions: Collection[str]) -> str:
    if device != "cpu":
        return "try a smaller model" if "fp16" in precisions else "try fp16 or a smaller model"
    if "int8" in precisions:
        return "try a GPU, more cores or a smaller model"
    return "try int8, a GPU, more cores or a smaller model"


def sum_up(rounds: Sequence[ClassifyRound], precisions: Collection[str] = ()) -> ClassifyFigures:
    """Combine the rounds of one export; for `precisions` see `find_bottleneck`."""
    rates = [one.images_per_s for one in rounds]
    costs = StageCosts(
        read_s=median(one.costs.read_s for one in rounds),
        decode_s=median(one.costs.decode_s for one in rounds),
        infer_s=median(one.costs.infer_s for one in rounds),
        write_s=median(one.costs.write_s for one in rounds),
    )
    return ClassifyFigures(
        images_per_s=median(rates),
        round_spread=max(rates) / min(rates) - 1,
        costs=costs,
        bottleneck=find_bottleneck(
            costs,
            device=rounds[-1].device,
            images_per_s=median(rates),
            precisions=precisions,
        ),
        rounds=tuple(rounds),
    )


def classify_doubts(figures: ClassifyFigures | None) -> list[str]:
    """Return what makes the figures unreliable, and what to do about it, one line each."""
    if figures is None or figures.round_spread <= MAX_ROUND_SPREAD:
        return []
    return [
        f"classify's fastest round had {1 + figures.round_spread:.2f} times the rate of the "
        "slowest: the machine was busy or changed its clock speed; close other programs and run "
        "again, or use more --rounds"
    ]


# ----------------------------------------------------------------------------- recommendation


def recommend(rows: Sequence[BenchRow], *, unmeasured: str = "") -> Recommendation | None:
    """Recommend an export for this machine; None if `classify` was not measured at all.

    For each run it is the fastest export that is as accurate as the run's PyTorch model (see
    `choose`); over all runs, the choice of the most accurate run.

    Args:
        rows: What was measured.
        unmeasured: Which better run was not, in a sentence without its period; empty for none.
    """
    if all(row.classify is None for row in rows):
        return None
    runs = dict.fromkeys(row.run for row in rows)
    choices = tuple(choose([row for row in rows if row.run == run]) for run in runs)
    usable = [choice for choice in choices if choice.path]
    best = max(usable, key=_accuracy_then_rate, default=None)
    return Recommendation(
        choice=best,
        alternative="" if best is None else _alternative(best, usable),
        command="" if best is None else _command(best),
        choices=choices,
        unmeasured=unmeasured,
    )


def _command(choice: Choice) -> str:
    """Return the command that classifies with a choice."""
    options = f" {choice.options}" if choice.options else ""
    return f"tltools classify FOLDER --model {shlex.quote(choice.path)}{options}"


def choose(rows: Sequence[BenchRow]) -> Choice:
    """Choose among the exports of one run.

    An export qualifies if it did not fail, its accuracy is at most `MAX_ACCURACY_LOSS` below that
    of the run's PyTorch model, and it agrees with at least `MIN_AGREEMENT` of its labels. The
    fastest in `classify` is chosen; among those within `NOISE` of it, the most exact one, and the
    earlier format of `FORMATS`. An export in a deprecated format must be faster than the others
    beyond doubt (see `_is_clearly_faster`).
    """
    exports = [row for row in rows if row.format != EAGER]
    reference = _reference(rows)
    refused = {row.name: _why_refused(row, reference) for row in exports}
    good = [row for row in exports if not refused[row.name]]
    if not good:
        return Choice(
            run=rows[0].run,
            name="",
            path="",
            images_per_s=None,
            score=None,
            reason=_why_none(rows[0].run, [(row, refused[row.name]) for row in exports]),
            passed_over=(),
            doubtful=False,
        )
    chosen = _fastest(good)
    lasting = [row for row in good if not _is_deprecated(row)]
    if _is_deprecated(chosen) and not all(_is_clearly_faster(chosen, row) for row in lasting):
        chosen = _fastest(lasting)
    others = sorted((row for row in exports if row is not chosen), key=_rate, reverse=True)
    return Choice(
        run=chosen.run,
        name=chosen.name,
        path=chosen.path,
        images_per_s=_rate(chosen),
        score=chosen.score,
        reason=_why_chosen(chosen, rows) + _why_deprecated(chosen, lasting),
        passed_over=tuple(
            f"{_kind(row)}: {refused[row.name] or _why_slower(row, chosen)}" for row in others
        ),
        doubtful=chosen.status == "unstable",
        options="--tf32" if chosen.precision == "tf32" else "",
    )


def _fastest(rows: Sequence[BenchRow]) -> BenchRow:
    """Return the fastest row; among those within `NOISE` of it, the most exact one."""
    fastest = max(map(_rate, rows))
    return min((row for row in rows if fastest < (1 + NOISE) * _rate(row)), key=_exactness)


def _is_deprecated(row: BenchRow) -> bool:
    return row.format in FORMATS and FORMATS[row.format].is_deprecated


def _is_clearly_faster(row: BenchRow, other: BenchRow) -> bool:
    """Return whether a row is faster than another in its slowest round, and by more than noise."""
    if _rate(row) < (1 + NOISE) * _rate(other):
        return False
    return _round_rates(row)[0] > _round_rates(other)[-1]


def _round_rates(row: BenchRow) -> list[float]:
    """Return the rates of a row's rounds, ascending; for a single one, the range it stands for.

    Stable rounds differ by up to `MAX_ROUND_SPREAD`; one unstable round may be off by any amount.
    """
    assert row.classify is not None
    rates = sorted(one.images_per_s for one in row.classify.rounds)
    if len(rates) > 1:
        return rates
    if row.status == "unstable":
        return [0.0, math.inf]
    return [rates[0] / (1 + MAX_ROUND_SPREAD), rates[0] * (1 + MAX_ROUND_SPREAD)]


def _why_deprecated(chosen: BenchRow, lasting: Sequence[BenchRow]) -> str:
    """Return a clause about a chosen format that PyTorch has deprecated; otherwise empty."""
    if not _is_deprecated(chosen):
        return ""
    clause = f"; PyTorch has deprecated {FORMATS[chosen.format].title}"
    return f"{clause}, but it is the fastest format in each round" if lasting else clause


def _reference(rows: Sequence[BenchRow]) -> BenchRow | None:
    """Return the reference for the exports' accuracy: PyTorch, or else the fp32 export."""
    known = [row for row in rows if row.score is not None and row.status != "failed"]
    eager = [row for row in known if row.format == EAGER]
    exact = [row for row in known if row.precision == "fp32"]
    return next(iter(eager or sorted(exact, key=_exactness)), None)


def _why_refused(row: BenchRow, reference: BenchRow | None) -> str:
    """Return why an export does not qualify, or an empty string."""
    if row.status == "failed":
        return row.reason
    if row.classify is None or row.score is None:
        return "classify was not measured with it"
    rate = f"{digits(_rate(row))} images per second"
    if reference is not None and reference.score is not None:
        loss = reference.score.accuracy - row.score.accuracy
        if loss > MAX_ACCURACY_LOSS + ROUNDING:
            return (
                f"{rate}, but {100 * loss:.1f} points less accurate than {_kind(reference)} "
                f"({row.score.correct} instead of {reference.score.correct} of "
                f"{row.score.total} correct; {100 * MAX_ACCURACY_LOSS:.1f} points are allowed)"
            )
    if row.agreement is not None and row.agreement < MIN_AGREEMENT:
        return (
            f"{rate}, but agrees with only {in_percent_down(row.agreement)} of PyTorch's labels "
            f"({percent(MIN_AGREEMENT)} are required)"
        )
    return ""


def _why_none(run: str, refused: Sequence[tuple[BenchRow, str]]) -> str:
    if not refused:
        why = "it has no export; create one with tltools export"
    else:
        why = "; ".join(f"{_kind(row)}: {why}" for row, why in refused)
    return f"no export of {run} is recommended: {why}"


def _why_chosen(row: BenchRow, rows: Sequence[BenchRow]) -> str:
    """Return how fast and accurate an export is, compared with its run's fp32 export if any."""
    assert row.score is not None
    rate = f"{digits(_rate(row))} images per second"
    exact = [
        one
        for one in rows
        if one.precision == "fp32" and one.classify is not None and one.status != "failed"
    ]
    exact.sort(key=_exactness)
    if exact and row.precision != "fp32":
        times, other = _rate(row) / _rate(exact[0]), digits(_rate(exact[0]))
        rate = (
            f"{times:.1f} times as fast as {_kind(exact[0])} "
            f"({digits(_rate(row))} against {other} images per second)"
        )
    labels = (
        ""
        if row.agreement is None
        else f", agrees with {in_percent_down(row.agreement)} of PyTorch's labels"
    )
    return f"{rate}{labels}; accuracy {accuracy(row.score)}"


def _why_slower(row: BenchRow, chosen: BenchRow) -> str:
    rate = f"{digits(_rate(row))} images per second"
    if _is_deprecated(row) and _rate(row) >= (1 + NOISE) * _rate(chosen):
        num_rounds = len(row.classify.rounds) if row.classify is not None else 0
        doubt = "one round leaves" if num_rounds == 1 else "its rounds leave"
        return (
            f"{rate}, but PyTorch has deprecated {FORMATS[row.format].title}, and {doubt} its lead "
            "in doubt"
        )
    if max(_rate(row), _rate(chosen)) < (1 + NOISE) * min(_rate(row), _rate(chosen)):
        return f"{rate}, the same within measurement noise ({percent(NOISE)})"
    return f"{rate}, slower"


def _alternative(best: Choice, usable: Sequence[Choice]) -> str:
    """Return what the fastest choice of another run would gain and cost."""
    other = max(usable, key=lambda choice: choice.images_per_s or 0.0)
    assert best.images_per_s is not None
    assert other.images_per_s is not None
    if other.images_per_s < (1 + NOISE) * best.images_per_s:
        return ""
    assert best.score is not None
    assert other.score is not None
    points = 100 * (best.score.accuracy - other.score.accuracy)
    return (
        f"{other.path} is {other.images_per_s / best.images_per_s:.1f} times as fast "
        f"({digits(other.images_per_s)} images per second) and {points:.1f} points less "
        f"accurate: {accuracy(other.score)}"
    )


def _accuracy_then_rate(choice: Choice) -> tuple[float, float]:
    assert choice.score is not None
    assert choice.images_per_s is not None
    return choice.score.accuracy, choice.images_per_s


def _exactness(row: BenchRow) -> tuple[int, int, float]:
    """Return a sort key: the most exact export first, then by format, then the fastest."""
    return PRECISION_ORDER.index(row.precision), _format_rank(row.format), -_rate(row)


def _format_rank(name: str) -> int:
    """Return a format's rank, the preferred one first and PyTorch itself last."""
    return list(FORMATS).index(name) if name in FORMATS else len(FORMATS)


def _rate(row: BenchRow) -> float:
    return row.classify.images_per_s if row.classify is not None else 0.0


def _kind(row: BenchRow) -> str:
    return "PyTorch" if row.format == EAGER else f"{row.format} {row.precision}"


def recommendation_lines(found: Recommendation | None) -> list[str]:
    """Return the recommendation, its reasons, and why not the others, one line each."""
    if found is None:
        return []
    lines, best = answer_lines(found), found.choice
    if best is None:
        return [*lines, *(one.reason for one in found.choices)]
    lines += [f"Not {one}" for one in best.passed_over]
    if found.alternative:
        lines.append(found.alternative)
    lines += [one.reason for one in found.choices if not one.path]
    return lines


def answer_lines(found: Recommendation | None) -> list[str]:
    """Return the recommendation with all that limits it, one line each, without their periods."""
    if found is None:
        return []
    best = found.choice
    if best is None:
        lines = ["Recommended on this machine: none"]
    else:
        options = f" with {best.options}" if best.options else ""
        lines = [f"Recommended on this machine: {best.path}{options}: {best.reason}"]
    if found.unmeasured:
        lines.append(found.unmeasured)
    if best is not None and best.doubtful:
        lines.append(
            f"The timings of {best.name}, on which this recommendation is based, were unstable: "
            "run again on an idle machine"
        )
    return lines


def int8_notes(rows: Sequence[BenchRow]) -> list[str]:
    """Return how int8 compares with fp16 on a GPU, one line per int8 row that ran on a GPU."""
    lines: list[str] = []
    for row in rows:
        if row.precision != "int8" or row.device in ("", "cpu") or not _best_rate(row):
            continue
        line = f"{row.name}: on a GPU"
        num_nodes = sum(row.placement.values())
        stranded = num_nodes - row.placement.get(row.provider, 0)
        if stranded:
            line += f", {stranded} of {num_nodes} nodes still run on the CPU;"
        others = [
            one
            for one in rows
            if one.run == row.run and one.precision == "fp16" and _best_rate(one) > 0
        ]
        fp16 = max(others, key=_best_rate, default=None)
        if fp16 is None:
            line += (
                " int8 is usually slower than fp16, which was not measured: export it and run again"
            )
        else:
            times = _best_rate(row) / _best_rate(fp16)
            line += (
                f" int8 does {digits(_best_rate(row))} images per second and {_kind(fp16)} "
                f"{digits(_best_rate(fp16))} ({times:.2f} times as fast)"
            )
        lines.append(line)
    return lines


def _best_rate(row: BenchRow) -> float:
    """Return the model's throughput at its best batch size; 0 if it was not measured."""
    if row.status == "failed":
        return 0.0
    return max((timing.images_per_s for timing in row.batches), default=0.0)


def in_order(rows: Iterable[BenchRow]) -> list[BenchRow]:
    """Sort rows by run, in the order of first appearance, then format, then precision."""
    rows = list(rows)
    runs = list(dict.fromkeys(row.run for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            runs.index(row.run),
            # PyTorch first, so that the preferred format is last.
            -_format_rank(row.format),
            PRECISION_ORDER.index(row.precision),
        ),
    )
