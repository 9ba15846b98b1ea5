import json
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tltools.bench import BenchInputs, BenchSettings, Candidate, run_bench, write_result
from tltools.bench.budget import Limits
from tltools.bench.machine import cpu_name, describe_machine, memory_bytes, peak_memory_bytes
from tltools.bench.rows import BatchTiming, BenchRow, ClassifyRound, StageCosts
from tltools.bench.run import command_line
from tltools.bench.stages import Stopwatch, measure_classify, seconds_per_image
from tltools.bench.summary import batch_timing, doubts
from tltools.bench.verdict import (
    answer_lines,
    choose,
    classify_doubts,
    find_bottleneck,
    in_order,
    int8_notes,
    recommend,
    recommendation_lines,
    sum_up,
)
from tltools.bench.worker import Feed
from tltools.card import Card, DataFacts, Preprocessing, Score, Weights
from tltools.classify import Plan
from tltools.console import print_table
from tltools.errors import ArtifactError, ConfigError, DataError
from tltools.progress import SILENT, Silent
from tltools.report.benches import read_bench
from tltools.runtime import DeviceChoice

CLASSES = ("dark", "light", "other")


class FakePredictor:
    """Calls an image light where its mean is above a threshold; `then` is what it does besides."""

    provider = "FakeProvider"
    placement = {"FakeProvider": 3}  # noqa: RUF012

    def __init__(self, *, threshold, classes, then, threads):
        self.card = Card(
            run="fake",
            model="cnn",
            head="linear",
            classes=classes,
            preprocessing=Preprocessing(size=8),
            weights=Weights(source="random"),
            data=DataFacts(name="x", fingerprint="", split="default", num_train=1, num_val=1),
            metrics={},
            training={},
            versions={},
            created="2026-01-01T00:00:00+00:00",
        )
        self.choice = DeviceChoice("cpu", "as asked")
        self.device = "cpu"
        self.threads = threads
        self.threshold = threshold
        self.then = then

    def __call__(self, images):
        assert images.dtype == np.uint8
        assert images.shape[1:] == (8, 8, 3)
        do(self.then, images)
        light = images.mean(axis=(1, 2, 3)) > self.threshold
        logits = np.zeros((len(images), len(CLASSES)), dtype=np.float32)
        logits[np.arange(len(images)), light.astype(int)] = 1
        if self.then == "nan":
            logits[images.mean(axis=(1, 2, 3)) == 0, 2] = np.nan
        return logits[:, :2] if self.then == "narrow" else logits

    def new_batch(self, num_images):
        return np.empty((num_images, 8, 8, 3), dtype=np.uint8)


def do(what, images=None):
    if what == "raise":
        raise RuntimeError("no such kernel\nand a stack of C++ lines")
    if what == "sleep":
        time.sleep(600)
    if what == "exit":
        print("last words", file=sys.stderr, flush=True)
        os._exit(7)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "print":
        print("noise on standard output")
        print("noise on standard error", file=sys.stderr)
    if what == "look" and len(images) == 8:
        assert images[:, 0, 0, 0].tolist() == [0, 50, 100, 150, 200, 0, 50, 100]
    if what == "10 ms an image":
        time.sleep(0.01 * len(images))
    if what == "80 ms a call":
        time.sleep(0.08)
    if what == "grow" and images is not None:
        np.ones(len(images) * 10_000_000, dtype=np.uint8).sum()


def open_fake(path: Path, device: str, threads: int | None, *, tf32: bool = False):
    """Open the model that `fake` wrote."""
    facts = json.loads(path.read_text())
    assert device == "cpu"
    with Path(facts["log"]).open("a") as log:
        log.write(f"{path.stem} {os.getpid()}\n")
    if facts["at_load"] == "raise in round 2":
        do("raise" if Path(facts["log"]).read_text().count(f"{path.stem} ") == 2 else "")
    if facts["at_load"] == "artifact":
        raise ArtifactError("it is damaged; make it again")
    do(facts["at_load"])
    return FakePredictor(
        threshold=facts["threshold"],
        classes=tuple(facts["classes"]),
        then=facts["at_call"],
        threads=threads,
    )


def open_fake_model(path: Path, *, device: str, batch_size=None, workers=None, tf32=False):
    """Open the model that `fake` wrote, like `classify`."""
    assert (batch_size, workers, tf32) == (None, None, False)
    facts = json.loads(path.read_text())
    if facts["at_load"] == "refuse classify":
        raise ArtifactError("not for classify")
    predictor = open_fake(path, device, 1)
    predictor.then = "" if facts["at_call"] == "look" else facts["at_call"]
    return predictor, Plan("fused", 2, 1)


def open_fake_ahead(path: Path, **options):
    """Open the model that `fake` wrote, like `classify` opens a slow model."""
    return open_fake_model(path, **options)[0], Plan("ahead", 2, 8)


@pytest.fixture
def fake(tmp_path):
    """Make a candidate; the order in which candidates are opened is in `tmp_path / "log"`."""

    def make(name, *, run="a", kind="onnx", threshold=128, at_load="", at_call="", classes=CLASSES):
        path = tmp_path / f"{name}.json"
        facts = {
            "threshold": threshold,
            "at_load": at_load,
            "at_call": at_call,
            "classes": classes,
            "log": str(tmp_path / "log"),
        }
        path.write_text(json.dumps(facts))
        return Candidate(name=name, run=run, format=kind, precision="fp32", path=path)

    return make


@pytest.fixture
def images(tmp_path):
    """Five gray images: 0, 50, 100, 150 and 200; the last two are light."""
    paths = []
    for value in (0, 50, 100, 150, 200):
        paths.append(tmp_path / f"{value}.png")
        Image.new("RGB", (16, 16), (value, value, value)).save(paths[-1])
    return paths


TARGETS = np.array([0, 0, 1, 1, 1])
"""One of the five, the third, is called light though its mean is 100."""


def bench(
    candidates, images, *, targets=TARGETS, open_model=None, save=None, progress=SILENT, **changes
):
    """Run a short bench of candidates; `changes` are fields of the settings."""
    few = {"batch_sizes": (1, 8), "rounds": 1, "iterations": 4, "warmup": 1}
    settings = BenchSettings(**{"device": "cpu", "threads": 1} | few | changes)
    inputs = BenchInputs(
        candidates=list(candidates),
        images=list(images),
        targets=targets,
        name="gray squares",
        notes=(),
    )
    return run_bench(
        inputs,
        settings,
        open_predictor=open_fake,
        open_model=open_model,
        save=save,
        progress=progress,
    )


def test_accuracy_and_agreement_are_counted_over_all_images(fake, images):
    report = bench(
        [
            fake("eager", kind="eager"),  # 4 of 5 right
            fake("same"),
            fake("strict", threshold=175),  # 150 is dark: 3 of 5 right, 4 of 5 as eager
        ],
        images,
    )
    eager, same, strict = report.rows
    assert [(row.score.correct, row.score.total) for row in report.rows] == [(4, 5), (4, 5), (3, 5)]
    assert (eager.agreement, same.agreement, strict.agreement) == (None, 1.0, 0.8)
    assert (eager.max_abs_logit_diff, same.max_abs_logit_diff) == (None, 0.0)
    assert strict.max_abs_logit_diff == 1.0


def test_every_run_is_compared_with_its_own_eager_model(fake, images):
    report = bench(
        [
            fake("onnx-a", run="a", threshold=175),
            fake("eager-a", run="a", kind="eager"),
            fake("eager-b", run="b", kind="eager", threshold=175),
            fake("onnx-b", run="b", threshold=175),
            fake("onnx-c", run="c"),
        ],
        images,
    )
    agreement = {row.name: row.agreement for row in report.rows}
    assert agreement["onnx-a"] == 0.8
    assert agreement["onnx-b"] == 1.0
    assert agreement["onnx-c"] is None


def test_candidates_take_turns_and_each_turn_is_a_new_process(fake, images, tmp_path):
    bench([fake("a"), fake("b")], images, rounds=3)
    names, processes = zip(
        *[line.split() for line in (tmp_path / "log").read_text().splitlines()], strict=True
    )
    assert names == ("a", "b", "a", "b", "a", "b")
    assert len({*processes, str(os.getpid())}) == 7


def test_every_sample_of_every_round_is_kept(fake, images):
    (row,) = bench([fake("a")], images, rounds=2, iterations=4, batch_sizes=(8,)).rows
    assert [timing.batch_size for timing in row.batches] == [1, 8]
    for timing in row.batches:
        assert [len(samples) for samples in timing.rounds_s] == [4, 4]
    singles = sorted(sample for samples in row.batches[0].rounds_s for sample in samples)
    assert row.latency.num_samples == 8
    assert row.latency.p50_s == pytest.approx((singles[3] + singles[4]) / 2)
    assert len(row.load_s) == 2
    assert (row.provider, row.threads, row.placement) == ("FakeProvider", 1, {"FakeProvider": 3})


def test_throughput_is_the_median_of_the_rounds():
    timing = batch_timing(8, [(0.5, 1, 9), (2, 2, 2), (4, 4, 4)])
    assert timing.images_per_s == 4.0  # of 8/1, 8/2 and 8/4
    assert timing.round_spread == 3.0  # 4/1 - 1


TROUBLES = {
    "load": ({"at_load": "raise"}, "failed at load: RuntimeError: no such kernel"),
    "own error": ({"at_load": "artifact"}, "failed at load: it is damaged; make it again"),
    "call": ({"at_call": "raise"}, "failed at batch size 1: RuntimeError: no such kernel"),
    "exit": (
        {"at_call": "exit"},
        "failed at batch size 1: the process ended with exit code 7 (last words)",
    ),
    "killed": (
        {"at_load": "killed"},
        "failed at load: the process was killed by SIGKILL, perhaps out of memory: try smaller "
        "batches",
    ),
    "nan": (
        {"at_call": "nan"},
        "failed at accuracy: logits of 1 of 5 images are not finite",
    ),
    "narrow": (
        {"at_call": "narrow"},
        "failed at accuracy: logits of shape (5, 2) instead of (5, 3)",
    ),
    "classes": (
        {"classes": ("light", "dark", "other")},
        "failed: its classes (light, dark, other) differ from those of the others (dark, light, "
        "other), or are in another order: bench it separately",
    ),
}


def test_failed_candidates_get_rows_and_the_others_continue(fake, images):
    troubled = [fake(name, **trouble) for name, (trouble, _) in TROUBLES.items()]
    report = bench([fake("first"), *troubled, fake("last")], images)
    first, *rows, last = report.rows
    assert "failed" not in (first.status, last.status)
    assert {row.status for row in rows} == {"failed"}
    reasons = {row.name: row.reason for row in rows}
    assert reasons == {name: f"{reason} (round 1)" for name, (_, reason) in TROUBLES.items()}
    assert all(row.score is None for row in rows)
    assert set(report.notes()) >= {f"{row.name}: {row.reason}" for row in rows}


def test_a_candidate_that_hangs_is_killed_and_not_retried(fake, images, tmp_path):
    start = time.monotonic()
    report = bench([fake("slow", at_call="sleep"), fake("good")], images, timeout_s=8.0, rounds=2)
    assert time.monotonic() - start < 60
    slow, good = report.rows
    assert slow.reason == (
        "failed at batch size 1: no sign of life for 8 s, so the process was killed (round 1)"
    )
    assert good.status != "failed"
    lines = (tmp_path / "log").read_text().split()
    assert lines[::2] == ["slow", "good", "good"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[1]), 0)


def test_a_models_output_stays_out_of_the_terminal(fake, images, capfd):
    report = bench([fake("a", at_call="print")], images)
    assert report.rows[0].status != "failed"
    assert capfd.readouterr() == ("", "")


def test_peak_memory_is_measured_in_the_candidates_own_process(fake, images):
    report = bench([fake("grows", at_call="grow"), fake("small")], images, batch_sizes=(1, 20))
    grows, small = (row.peak_memory_bytes for row in report.rows)
    assert grows - small == pytest.approx(200e6, rel=0.1)  # 20 images of 10 MB


def test_a_large_batch_repeats_the_images_in_their_order(fake, images):
    (row,) = bench([fake("looks", at_call="look")], images).rows
    assert row.reason == ""
    (row,) = bench([fake("looks", at_call="look")], images[::-1]).rows
    assert row.reason == "failed at batch size 8: AssertionError (round 1)"


def test_the_report_is_saved_after_each_measurement(fake, images):
    reports = []
    bench([fake("a"), fake("b", at_load="raise")], images, rounds=2, save=reports.append)
    assert [[row.name for row in report.rows] for report in reports] == [
        ["a"],
        ["a", "b"],
        ["a", "b"],
    ]
    assert [report.complete for report in reports] == [False] * 3
    assert [len(report.rows[0].load_s) for report in reports] == [1, 1, 2]


def test_the_files_contain_every_row_and_no_duplicate_names(fake, images, tmp_path):
    report = bench([fake("good", run="r|un"), fake("bad", at_load="raise")], images)
    json_path, markdown_path = write_result(report, tmp_path / "out")
    assert re.fullmatch(r"bench-\d{8}T\d{6}\.json", json_path.name)
    found = json.loads(json_path.read_text())
    assert [row["name"] for row in found["rows"]] == ["good", "bad"]
    assert found["rows"][0]["latency"]["p95_s"] == report.rows[0].latency.p95_s
    assert found["rows"][1]["score"] is None
    assert found["machine"]["versions"]["numpy"] == np.__version__
    text = markdown_path.read_text()
    assert "| r\\|un |" in text
    assert "bad: failed at load: RuntimeError: no such kernel" in text
    assert "a batch of decoded images in memory" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        json_path.with_suffix(".json").name,
        markdown_path.name,
    ]


def test_every_table_row_has_a_cell_for_each_column(fake, images):
    report = bench(
        [fake("good"), fake("bad", at_load="raise"), fake("more", run="b")],
        images,
        batch_sizes=(2, 4),
    )
    for table in report.tables():
        assert {len(cells) for cells in table.rows} == {len(table.columns)}
    cost, speed = report.tables()
    # Two candidates of run a would both be `onnx fp32`, so they go by their names.
    assert [cells[0] for cells in cost.rows] == ["a", "  good", "  bad", "b", "  onnx fp32"]
    assert cost.rows[1][1] == "80.0 (37.6-96.4)"  # Wilson's interval of 4 of 5
    assert speed.columns[4:] == ("at 1", "at 2", "at 4", "status")
    assert speed.rows[2][1:] == ("-", "-", "-", "-", "-", "-", "failed")


def test_agreement_is_not_rounded_up_to_100_percent(fake, images):
    report = bench([fake("a")], images)
    almost = replace(report, rows=(replace(report.rows[0], agreement=0.99996),))
    assert almost.tables()[0].rows[1][2] == "99.9"
    full = replace(report, rows=(replace(report.rows[0], agreement=1.0),))
    assert full.tables()[0].rows[1][2] == "100.0"


def timing(*, spread=0.0, outliers=0, samples=100):
    return BatchTiming(
        batch_size=8,
        rounds_s=((1.0,) * samples,),
        images_per_s=8.0,
        round_spread=spread,
        num_outliers=outliers,
    )


def test_a_row_is_unstable_if_its_rounds_differ():
    assert doubts([timing(spread=0.1)]) == []
    (line,) = doubts([timing(spread=0.05), timing(spread=0.234), timing(spread=0.2)])
    assert line.startswith("the slowest round took 1.23 times as long as the fastest")
    assert "--rounds" in line


def test_many_unstable_rows_share_a_warning(fake, images):
    """Nine alike on a busy machine hide what else is said."""
    rows = [
        replace(row(f"onnx {i}", 10, status="unstable"), warnings=("the slowest round took 2",))
        for i in range(3)
    ]
    found = replace(bench([fake("a")], images), rows=(*rows, row("onnx last", 10)))
    (line,) = found.short_notes_on_rows()
    assert line.startswith("the timings of 3 of 4 candidates are unstable (column status)")
    two = replace(found, rows=(*rows[:2], row("onnx last", 10)))
    assert two.short_notes_on_rows() == two.notes_on_rows()
    assert len(two.notes_on_rows()) == 2


def test_a_row_is_unstable_with_more_than_one_percent_outliers():
    assert doubts([timing(outliers=1)]) == []
    (line,) = doubts([timing(), timing(outliers=2)])
    assert line.startswith("2 of 100 timed passes were far slower than the rest (at batch size 8)")


def test_the_report_quotes_the_command_as_typed():
    assert command_line(["/venv/bin/tltools", "bench", "a b"]) == "tltools bench 'a b'"
    assert command_line(["/src/tltools/__main__.py", "bench"]) == "tltools bench"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": (0, 8)}, "`batch_sizes=` must be at least 1, got 0"),
        ({"rounds": 0}, "`rounds=` must be at least 1, got 0"),
        ({"iterations": -1}, "`iterations=` must be at least 1, got -1"),
    ],
)
def test_settings_below_one_are_refused(fake, images, options, message):
    with pytest.raises(ConfigError, match=message):
        bench([fake("a")], images, **options)


def test_a_bench_without_candidates_is_refused(fake, images):
    with pytest.raises(ConfigError, match="nothing to bench"):
        bench([], images)
    with pytest.raises(DataError, match="no images to bench with"):
        bench([fake("a")], [], targets=np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=r"targets \(5,\) do not fit 4 images"):
        bench([fake("a")], images[:4])
    with pytest.raises(ValueError, match="names must differ"):
        bench([fake("a"), fake("a")], images)


def feed(images, **options):
    predictor = FakePredictor(threshold=128, classes=CLASSES, then="", threads=1)
    return Feed(predictor, images, **options)


def lights(one):
    """Return which images a feed classified as light; None for those not classified."""
    return None if not one.logits else np.concatenate(one.logits).argmax(axis=1).tolist()


def test_timed_batches_use_every_image_once(images):
    one = feed(images, start=0, size=2)
    seen = []
    for _ in range(4):
        one.advance()
        one.advance()  # which changes nothing before the batch was run
        seen.append(one.batch[:, 0, 0, 0].tolist())
        one.run()
        one.run()  # which counts once
    # The third batch has one image that is new; then there are no more.
    assert seen == [[0, 50], [100, 150], [200, 0], [200, 0]]
    assert one.is_done
    assert lights(one) == [0, 0, 0, 1, 1]


def test_timed_batches_begin_where_the_last_round_ended(images):
    one = feed(images, start=3, size=8)
    one.advance()
    assert one.batch[:, 0, 0, 0].tolist() == [150, 200, 0, 50, 100, 150, 200, 0]
    assert not one.is_done or lights(one) is None
    one.run()
    assert one.is_done
    assert lights(one) == [1, 1]
    later = feed(images, start=5, size=2)  # all are known
    later.advance()
    later.run()
    assert later.is_done
    assert lights(later) is None
    assert later.batch[:, 0, 0, 0].tolist() == [0, 50]


def test_timed_batches_of_another_size_continue_with_the_next_images(images):
    one = feed(images, start=0, size=4)
    one.advance()
    one.resize(2)
    one.advance()
    assert one.batch[:, 0, 0, 0].tolist() == [0, 50]
    one.run()
    assert one.num_left == 3
    one.resize(4)
    one.advance()
    assert one.batch[:, 0, 0, 0].tolist() == [100, 150, 200, 0]
    one.run()
    assert lights(one) == [0, 0, 0, 1, 1]


def bench_slow(candidates, images, **options):
    """Bench candidates that take 10 ms per image, at the default batch sizes."""
    slow = {"iterations": 50, "max_seconds": 0.02, "batch_sizes": None} | options
    return bench(candidates, images * 20, targets=np.tile(TARGETS, 20), **slow)


def test_slow_models_skip_batch_sizes_that_gain_nothing(fake, images):
    report = bench_slow([fake("slow", at_call="10 ms an image"), fake("fast")], images, rounds=2)
    slow, fast = report.rows
    assert [one.batch_size for one in slow.batches] == [1, 8]
    assert [one.batch_size for one in fast.batches] == [1, 8, 32]
    # 48 images a round, in batches of 8, of which the first warms up.
    assert [len(samples) for samples in slow.batches[1].rounds_s] == [5, 5]
    assert slow.score.total == 100  # the last round classifies what is left
    assert report.tables()[1].rows[1][6] == "-"
    assert any(line.startswith("A batch size is skipped if ") for line in report.method())


def test_batch_sizes_that_gain_are_timed_even_if_slow(fake, images):
    report = bench_slow([fake("slow", at_call="80 ms a call")], images, rounds=1)
    assert [one.batch_size for one in report.rows[0].batches] == [1, 8, 32]
    assert report.rows[0].score.total == 100


def test_requested_batch_sizes_are_always_timed(fake, images):
    slow = fake("slow", at_call="10 ms an image")
    report = bench_slow([slow], images, rounds=1, batch_sizes=(8, 32))
    assert [one.batch_size for one in report.rows[0].batches] == [1, 8, 32]
    assert not any("left out" in line for line in report.method())


def test_a_slow_model_gets_one_round_of_classify(fake, images):
    candidates = [fake("slow", at_call="10 ms an image"), fake("fast")]
    report = bench_slow(
        candidates,
        images,
        rounds=2,
        batch_sizes=(1,),
        open_model=open_fake_ahead,
        classify_seconds=0.1,
    )
    assert [len(one.classify.rounds) for one in report.rows] == [1, 2]


def test_images_not_yet_timed_are_classified_within_a_time_limit(images):
    one = feed(images * 10, start=0, size=2)
    one.advance()
    one.run()
    one.finish(60, enter=lambda _: None)
    assert lights(one) == 10 * [0, 0, 0, 1, 1]
    hurried = feed(images * 10, start=0, size=2)
    hurried.advance()
    hurried.run()
    entered = []
    hurried.finish(0, enter=entered.append)
    assert len(lights(hurried)) == 2 + 32  # one batch, whatever it takes
    assert entered == ["accuracy"]


def test_accuracy_on_some_images_says_on_how_many(fake, images, monkeypatch):
    hurry = Limits(size_s=1, classify_s=1, accuracy_s=1e-9)
    monkeypatch.setattr("tltools.bench.budget.share_out", lambda *_, **__: hurry)
    report = bench(
        [fake("eager", kind="eager"), fake("a", threshold=175)],
        images * 20,
        targets=np.tile(TARGETS, 20),
        rounds=2,
        iterations=1,
    )
    # Each round classifies 8 in the warm-up and 8 in the timed run; the last one 32 more.
    eager, strict = report.rows
    assert (eager.score.total, strict.score.total) == (64, 64)
    assert strict.agreement == 51 / 64  # of five each, the one of 150 differs: 13 of 64
    (line,) = [line for line in report.method() if line.startswith("Accuracy: ")]
    assert line.startswith("Accuracy: 64 of the 100 images, in random order, the same for all")


@pytest.mark.parametrize("kind", ["onnx", "eager"])
def test_a_candidate_that_fails_midway_does_not_reduce_the_others_images(
    fake, images, monkeypatch, kind
):
    hurry = Limits(size_s=1, classify_s=1, accuracy_s=1e-9)
    monkeypatch.setattr("tltools.bench.budget.share_out", lambda *_, **__: hurry)
    report = bench(
        [fake("bad", kind=kind, at_load="raise in round 2"), fake("good")],
        images * 20,
        targets=np.tile(TARGETS, 20),
        rounds=2,
        iterations=1,
    )
    rows = {row.name: row for row in report.rows}
    assert rows["bad"].reason == "failed at load: RuntimeError: no such kernel (round 2)"
    assert rows["bad"].score is None  # 16 images, where the others have 64
    assert rows["good"].score.total == 64
    assert rows["good"].agreement is None


def test_candidates_are_scored_on_the_images_that_all_classified(fake, images):
    both = [fake("eager", kind="eager"), fake("a", threshold=175)]
    report = bench(both, images, rounds=2, save=(partials := []).append)
    assert {row.score.total for row in report.rows} == {5}
    assert [len(one.rows) for one in partials] == [1, 2, 2, 2]
    (line,) = [line for line in report.method() if line.startswith("Accuracy: ")]
    assert line.startswith("Accuracy: 5 images, with the 95% Wilson interval.")


def test_tf32_without_a_gpu_fails_with_a_reason(fake, images):
    plain = fake("plain")
    report = bench([plain, replace(plain, name="tf32", precision="tf32")], images)
    fp32, tf32 = report.rows
    assert fp32.status != "failed"
    assert tf32.reason == (
        "failed at load: TF32 needs a GPU, but this runs on the CPU: as asked (round 1)"
    )


def test_the_remaining_time_is_printed_at_the_start_and_after_each_round(fake, images):
    lines = []
    watcher = Silent()
    watcher.say = watcher.detail = lines.append
    bench([fake("a"), fake("b", at_load="raise")], images, rounds=2, progress=watcher)
    first, failure, left = lines
    assert re.match(r"This takes about \d+ s \(estimate: 2 candidates, 2 rounds, ", first)
    assert failure.startswith("b failed at load")
    assert re.fullmatch(r"Round 1 of 2 done: about \d+ s left", left)


def test_operations_per_second_come_from_the_best_batch_size(fake, images):
    (row,) = bench([replace(fake("a"), flops_per_image=1000)], images).rows
    assert row.flops_per_s == 1000 * max(timing.images_per_s for timing in row.batches)
    assert row.peak_share is None  # there is no GPU
    (row,) = bench([fake("a")], images).rows
    assert row.flops_per_s is None


def test_results_without_gpu_figures_can_be_read(fake, images):
    report = bench([fake("a")], images)
    found = json.loads(report.to_json())
    del found["peak_flops_per_s"]
    for name in ("peak_gpu_bytes", "flops_per_image", "flops_per_s", "peak_share"):
        del found["rows"][0][name]
    read = read_bench(json.dumps(found).encode(), where=Path("old.json"))
    assert read == report


def test_with_batch_size_one_accuracy_is_measured_last(fake, images):
    reports = []
    report = bench([fake("a")], images, batch_sizes=(1,), rounds=2, save=reports.append)
    assert [one.rows[0].score is None for one in reports] == [True, False]
    assert (report.rows[0].score.correct, report.rows[0].score.total) == (4, 5)


def test_an_unreadable_image_is_named(fake, images):
    images[2].write_bytes(b"not an image")
    (row,) = bench([fake("a")], images).rows
    assert row.reason.startswith("failed at images: ")
    assert "100.png" in row.reason


def test_the_machine_is_described_without_heavy_imports():
    machine = describe_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine.versions["numpy"] == np.__version__
    assert memory_bytes() > 2**28


def test_the_cpu_has_the_systems_name(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 9 GHz\nmodel name\t: other\n")
    assert cpu_name(cpuinfo) == "Fast CPU @ 9 GHz"
    assert cpu_name(tmp_path / "missing")


def test_peak_memory_is_read_from_the_system(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  9 kB\nVmHWM:\t   53200 kB\nVmRSS:\t  1 kB\n")
    assert peak_memory_bytes(status) == 53200 * 1024
    fallback = peak_memory_bytes(tmp_path / "missing")
    assert fallback == pytest.approx(peak_memory_bytes(), rel=0.5)


# ------------------------------------------------------------------------------------- classify


def test_a_stages_cost_is_its_mean_without_the_first_step():
    now = 100.0
    durations = iter([50.0, 1.0, 3.0, 2.0, 1000.0])

    def step():
        nonlocal now
        now += next(durations)
        return 4

    # The first does not count; after 1 + 3 + 2 = 6 s the 5 s are over.
    assert seconds_per_image(step, seconds=5, min_steps=1, clock=lambda: now) == 6 / 12


def test_a_slow_stage_runs_the_minimum_number_of_steps():
    now = 0.0

    def step():
        nonlocal now
        now += 100
        return 1

    assert seconds_per_image(step, seconds=5, min_steps=2, clock=lambda: now) == 100
    assert now == 300  # two, and the first that does not count


class SlowPredictor(FakePredictor):
    """Takes a tenth of a second for each image by a clock that hardly moves by itself."""

    def __init__(self):
        super().__init__(threshold=128, classes=CLASSES, then="", threads=1)
        self.now = 0.0
        self.batches = []

    def clock(self):
        self.now += 1e-3
        return self.now

    def __call__(self, images):
        self.now += 0.1 * len(images)
        self.batches.append(len(images))
        return super().__call__(images)


def test_the_model_stage_runs_as_in_the_plan(images, tmp_path):
    predictor = SlowPredictor()
    entered = []
    found = measure_classify(
        lambda path, device, tf32: (predictor, Plan("ahead", 1, 4)),
        tmp_path / "model",
        images,
        device="cpu",
        seconds=30.0,  # beside which the batches on their way are little
        enter=entered.append,
        clock=predictor.clock,
    )
    assert found.costs.infer_s == pytest.approx(0.1, rel=0.05)
    assert found.images_per_s == pytest.approx(10, rel=0.05)
    assert found.costs.read_s < 1e-3
    assert found.costs.decode_s < 1e-3
    assert found.costs.write_s < 1e-3
    # 0.1 s each for 30 s; if decoding took as long, there would be twice as many in that time.
    assert 270 <= found.num_images <= 8 + 600
    assert found.num_images % 4 == 0
    assert set(predictor.batches) == {4}
    assert (found.plan, found.device) == (Plan("ahead", 1, 4), "cpu")
    stages = ("opening", "reading", "decoding", "inference", "all stages", "writing")
    assert entered == [f"classify: {stage}" for stage in stages]


def test_a_slow_model_stays_within_its_time(images, tmp_path):
    # Eight at a time take 0.8 s, more than there is: one such batch is timed, after a first one.
    predictor = SlowPredictor()
    found = measure_classify(
        lambda path, device, tf32: (predictor, Plan("ahead", 1, 8)),
        tmp_path / "model",
        images,
        device="cpu",
        seconds=0.3,
        enter=lambda _: None,
        known_s={8: 0.1},
        clock=predictor.clock,
    )
    assert found.num_images == 16
    assert found.costs.infer_s == 0.1  # as was known
    assert predictor.batches == [8, 8]  # so it was not run for it


def test_classify_is_measured_for_exports_and_not_for_runs(fake, images, tmp_path):
    candidates = [fake("eager", kind="eager"), fake("onnx")]
    report = bench(candidates, images, open_model=open_fake_model, classify_seconds=0.1, rounds=2)
    eager, onnx = report.rows
    assert eager.classify is None
    assert len(onnx.classify.rounds) == 2
    assert onnx.classify.images_per_s > 0
    names = (tmp_path / "log").read_text().split()[::2]
    assert names == ["eager", "onnx", "onnx", "eager", "onnx", "onnx"]
    table = report.tables()[2]
    assert table.title == "classify: images per second, and the cost of each stage"
    assert table.rows[1] == ("  eager fp32", *["-"] * 6)
    assert re.fullmatch(r"(reading|decoding|inference|writing|hand-over) \d+%", table.rows[2][-1])
    assert report.recommendation.choice.name == "onnx"


def test_an_export_that_classify_cannot_open_fails(fake, images):
    candidates = [fake("bad", at_load="refuse classify"), fake("good")]
    report = bench(candidates, images, open_model=open_fake_model, classify_seconds=0.1)
    bad, good = report.rows
    assert bad.reason == "failed at classify: opening: not for classify (round 1)"
    assert good.classify is not None
    assert report.recommendation.choice.name == "good"
    assert f"Not onnx fp32: {bad.reason}" in report.recommended()


def test_without_classify_there_is_no_recommendation(fake, images):
    report = bench([fake("a")], images)
    assert report.recommendation is None
    assert report.recommended() == report.bottlenecks() == []
    assert len(report.tables()) == 2
    assert "classify" not in report.to_markdown()


def costs(*milliseconds):
    read, decode, infer, write = (one / 1000 for one in milliseconds)
    return StageCosts(read_s=read, decode_s=decode, infer_s=infer, write_s=write)


@pytest.mark.parametrize(
    ("milliseconds", "device", "stage", "total_ms", "share"),
    [
        pytest.param((1, 2, 6, 1), "cpu", "inference", 10, 0.6, id="cpu: the model"),
        pytest.param((1, 5, 3, 1), "cpu", "decoding", 10, 0.5, id="cpu: the images"),
        pytest.param((7, 1, 1, 1), "cpu", "reading", 10, 0.7, id="cpu: the disk"),
        pytest.param((1, 2, 3, 4), "cpu", "writing", 10, 0.4, id="cpu: the rows"),
        pytest.param((1, 4, 5, 1), "cuda", "decoding", 6, 4 / 6, id="gpu waits, the largest cost"),
        pytest.param((1, 4, 7, 1), "cuda", "inference", 7, 1.0, id="the cores wait for the gpu"),
        pytest.param((3, 1, 4, 2), "cuda", "reading", 6, 0.5, id="gpu waits for the disk"),
    ],
)
def test_the_bottleneck_is_the_stage_that_others_wait_for(
    milliseconds, device, stage, total_ms, share
):
    reached = 1000 / (1.2 * total_ms)  # a fifth slower than by the costs: still explained
    found = find_bottleneck(costs(*milliseconds), device=device, images_per_s=reached)
    assert found.stage == stage
    assert found.cost_s == pytest.approx(share * total_ms / 1000)
    assert found.total_s == pytest.approx(total_ms / 1000)
    assert found.share == pytest.approx(share)


def test_the_bottleneck_comes_with_its_figures_and_one_remedy():
    cpu = find_bottleneck(costs(0.01, 0.5, 1.5, 0.0123), device="cpu", images_per_s=400)
    assert cpu.sentence == (
        "inference takes 1.50 ms per image, 74% of the 2.02 ms that the cores need for the stages, "
        "each measured alone; classify as a whole took 2.50 ms per image: try int8, a GPU, more "
        "cores or a smaller model"
    )
    waiting_gpu = find_bottleneck(costs(0.1, 0.5, 0.4, 0), device="cuda", images_per_s=1600)
    assert waiting_gpu.sentence == (
        "decoding takes 0.500 ms per image, 83% of the 0.600 ms that the cores need, while the GPU "
        "(0.400 ms) waits; classify as a whole took 0.625 ms per image: try smaller image files "
        "or more cores"
    )
    busy_gpu = find_bottleneck(costs(0.1, 0.5, 0.8, 0), device="cuda", images_per_s=1000)
    assert busy_gpu.sentence == (
        "inference takes 0.800 ms per image, 100% of the 0.800 ms that the GPU needs, while the "
        "cores (0.600 ms) wait; classify as a whole took 1.00 ms per image: try fp16 or a smaller "
        "model"
    )


def test_unexplained_time_is_not_blamed_on_the_slowest_stage():
    # The CNN on an H200 with 16 cores: reading is the dearest stage, and all of them together
    # explain half of the 0.2 ms that an image took; Python's lock was the rest.
    found = find_bottleneck(costs(0.06, 0.03, 0.011, 0.008), device="cuda", images_per_s=4990)
    assert found.stage == "hand-over"
    # 1000 / 4990 = 0.2004; the cores' time is 0.06 + 0.03 + 0.008 = 0.098; 0.2004 - 0.098 = 0.1024
    assert found.total_s == pytest.approx(0.2004e-3, abs=1e-8)
    assert found.cost_s == pytest.approx(0.1024e-3, abs=1e-8)
    assert found.share == pytest.approx(0.511, abs=1e-3)
    assert found.sentence == (
        "hand-over between the stages takes 0.102 of 0.200 ms per image: the stages explain 0.098 "
        "ms (those that the cores need, while the GPU (0.011 ms) waits), the rest is passing "
        "images on, keeping their order and waiting, or something that was not measured: classify "
        "with another number of --workers, a larger --batch-size, or as several jobs with --shard"
    )


@pytest.mark.parametrize(
    ("device", "milliseconds", "reached_ms", "stage"),
    [
        pytest.param("cpu", (0, 1, 1, 0), 2.59, "decoding", id="the stages' sum explains it"),
        pytest.param("cpu", (0, 1, 1, 0), 2.61, "hand-over", id="a third more is not explained"),
        pytest.param("cuda", (0, 1, 2, 0), 2.59, "inference", id="the GPU explains it"),
        pytest.param("cuda", (0, 1, 2, 0), 2.61, "hand-over", id="the GPU does not"),
        pytest.param("cuda", (0, 2, 1, 0), 1.5, "decoding", id="faster than by the costs"),
    ],
)
def test_a_stage_is_blamed_only_if_it_explains_the_throughput(
    device, milliseconds, reached_ms, stage
):
    found = find_bottleneck(costs(*milliseconds), device=device, images_per_s=1000 / reached_ms)
    assert found.stage == stage
    assert 0 < found.share <= 1


@pytest.mark.parametrize(
    ("device", "precisions", "remedy"),
    [
        ("cpu", {"fp32", "fp16"}, "try int8, a GPU, more cores or a smaller model"),
        ("cpu", {"fp32", "int8"}, "try a GPU, more cores or a smaller model"),
        ("cuda", {"fp32", "int8"}, "try fp16 or a smaller model"),
        ("cuda", {"fp32", "fp16"}, "try a smaller model"),
    ],
)
def test_a_precision_already_measured_is_not_suggested(device, precisions, remedy):
    found = find_bottleneck(
        costs(0, 0, 1, 0), device=device, images_per_s=1000, precisions=precisions
    )
    assert found.sentence.endswith(f": {remedy}")


def classify_round(rate, *milliseconds, device="cpu"):
    return ClassifyRound(
        plan=Plan("ahead", 2, 32),
        device=device,
        costs=costs(*milliseconds or (0, 0, 1, 0)),
        images_per_s=rate,
        num_images=96,
    )


def test_rounds_of_classify_are_summarized_by_their_medians():
    found = sum_up(
        [
            classify_round(40, 1, 2, 9, 4),
            classify_round(160, 3, 8, 1, 6),
            classify_round(80, 2, 7, 3, 5),
        ]
    )
    assert found.images_per_s == 80
    assert found.costs == costs(2, 7, 3, 5)
    assert found.round_spread == 3.0  # 160 / 40 - 1
    assert found.bottleneck.stage == "decoding"
    assert found.bottleneck.share == pytest.approx(7 / 17)
    (line,) = classify_doubts(found)
    assert line.startswith("classify's fastest round had 4.00 times the rate of the slowest")
    assert classify_doubts(sum_up([classify_round(100), classify_round(109)])) == []
    assert classify_doubts(None) == []


# ------------------------------------------------------------------------------- recommendation


def row(kind, rate, *, correct=960, agreement=1.0, status="ok", run="a", **changes):
    """Make a row of a bench on 1,000 images, where PyTorch has 960 right."""
    format_, precision = kind.split()
    eager = format_ == "eager"
    suffix = {"eager": "", "onnx": ".onnx", "torchscript": ".pt"}[format_]
    fields = {
        "name": f"{run} {kind}",
        "run": run,
        "format": format_,
        "precision": precision,
        "path": f"exports/{run}/{run}.{precision}{suffix}",
        "status": status,
        "reason": "failed at load: it is damaged" if status == "failed" else "",
        "warnings": (),
        "score": Score(accuracy=correct / 1000, low=0.94, high=0.97, correct=correct, total=1000),
        "accuracy_diff": None if eager else (correct - 960) / 1000,
        "agreement": None if eager else agreement,
        "max_abs_logit_diff": None if eager else 1e-6,
        "load_s": (0.1,),
        "latency": None,
        "batches": (),
        "classify": None if eager else sum_up([classify_round(rate)]),
        "size_bytes": 1000,
        "peak_memory_bytes": 1000,
        "device": "cpu",
        "device_reason": "as asked",
        "provider": "CPUExecutionProvider",
        "placement": {},
        "threads": 2,
    }
    return BenchRow(**(fields | changes))


def rounds(kind, *rates, **changes):
    """Make a row of several rounds."""
    return row(kind, rates[0], classify=sum_up([classify_round(rate) for rate in rates]), **changes)


EAGER = row("eager fp32", 0)


def test_the_fastest_export_that_keeps_the_labels_is_recommended():
    found = recommend([EAGER, row("onnx fp32", 14), row("onnx fp16", 9), row("onnx int8", 52)])
    assert found.choice.path == "exports/a/a.int8.onnx"
    assert recommendation_lines(found) == [
        # 52 / 14 = 3.71
        "Recommended on this machine: exports/a/a.int8.onnx: 3.7 times as fast as onnx fp32 "
        "(52.0 against 14.0 images per second), agrees with 100.0% of PyTorch's labels; accuracy "
        "96.0% (94.0% to 97.0%)",
        "Not onnx fp32: 14.0 images per second, slower",
        "Not onnx fp16: 9.00 images per second, slower",
    ]
    assert found.command == "tltools classify FOLDER --model exports/a/a.int8.onnx"


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        pytest.param(
            [row("onnx fp32", 100), row("onnx int8", 104)], "onnx fp32", id="4% is noise: exact"
        ),
        pytest.param(
            [row("onnx fp32", 100), row("onnx int8", 105)], "onnx int8", id="5% is not noise"
        ),
        pytest.param(
            [row("onnx int8", 104), row("onnx fp16", 102), row("onnx fp32", 90)],
            "onnx fp16",
            id="fp16 is more exact than int8",
        ),
        pytest.param(
            [row("torchscript fp32", 104), row("onnx fp32", 100)], "onnx fp32", id="onnx in a tie"
        ),
        pytest.param(
            [row("torchscript fp32", 122), row("onnx fp32", 100)],
            "torchscript fp32",
            id="torchscript if it is faster, though each round were off by 10%",
        ),
        pytest.param(
            [row("torchscript fp32", 120), row("onnx fp32", 100)],
            "onnx fp32",
            id="not if one round leaves that in doubt",
        ),
        pytest.param(
            [row("torchscript fp32", 300, status="unstable"), row("onnx fp32", 100)],
            "onnx fp32",
            id="not by one unstable round",
        ),
        pytest.param(
            [rounds("torchscript fp32", 106, 111, 120), rounds("onnx fp32", 99, 100, 105)],
            "torchscript fp32",
            id="torchscript if it is faster in each of several rounds",
        ),
        pytest.param(
            [rounds("torchscript fp32", 104, 111, 120), rounds("onnx fp32", 99, 100, 105)],
            "onnx fp32",
            id="not if rounds overlap",
        ),
        pytest.param(
            [rounds("torchscript fp32", 101, 102), rounds("onnx fp16", 98, 99)],
            "onnx fp16",
            id="not if it is faster by less than 5%",
        ),
        pytest.param([row("torchscript fp32", 1)], "torchscript fp32", id="torchscript if alone"),
        pytest.param(
            [row("torchscript fp32", 100), row("onnx fp32", 900, correct=900)],
            "torchscript fp32",
            id="torchscript if the others lose accuracy",
        ),
        pytest.param(
            [row("onnx fp32", 10), row("onnx int8", 50, correct=955)],
            "onnx int8",
            id="half a point may be lost",
        ),
        pytest.param(
            [row("onnx fp32", 10), row("onnx int8", 50, correct=954)],
            "onnx fp32",
            id="more than that may not",
        ),
        pytest.param(
            [row("onnx fp32", 10), row("onnx int8", 50, agreement=0.99)],
            "onnx int8",
            id="99% of the labels are enough",
        ),
        pytest.param(
            [row("onnx fp32", 10), row("onnx int8", 50, agreement=0.989)],
            "onnx fp32",
            id="less are not, whatever the accuracy",
        ),
        pytest.param(
            [row("onnx fp32", 10), row("onnx int8", 50, status="failed")],
            "onnx fp32",
            id="what failed is out",
        ),
        pytest.param(
            [row("onnx fp32", 10), row("onnx int8", 50, classify=None)],
            "onnx fp32",
            id="what was not measured is out",
        ),
    ],
)
def test_the_recommended_export_of_a_run(rows, chosen):
    assert choose([EAGER, *rows]).name == f"a {chosen}"
    assert choose([*rows[::-1], EAGER]).name == f"a {chosen}"


def test_a_faster_export_that_is_not_recommended_is_explained():
    rows = [
        row("onnx fp32", 10),
        row("torchscript fp32", 10.2),
        row("onnx fp16", 40, correct=940),
        row("onnx int8", 50, agreement=0.98996),
    ]
    assert choose([EAGER, *rows]).passed_over == (
        "onnx int8: 50.0 images per second, but agrees with only 98.9% of PyTorch's labels (99% "
        "are required)",
        "onnx fp16: 40.0 images per second, but 2.0 points less accurate than PyTorch (940 "
        "instead of 960 of 1000 correct; 0.5 points are allowed)",
        "torchscript fp32: 10.2 images per second, the same within measurement noise (5%)",
    )


def test_the_recommendation_says_that_torchscript_is_deprecated():
    onnx, slow = row("onnx fp32", 100), row("torchscript fp32", 115)
    found = choose([EAGER, onnx, slow])
    assert found.passed_over == (
        "torchscript fp32: 115 images per second, but PyTorch has deprecated TorchScript, and one "
        "round leaves its lead in doubt",
    )
    assert "deprecated" not in found.reason
    found = choose([EAGER, onnx, row("torchscript fp32", 200)])
    assert found.reason.endswith(
        "; PyTorch has deprecated TorchScript, but it is the fastest format in each round"
    )
    assert choose([EAGER, slow]).reason.endswith("; PyTorch has deprecated TorchScript")


def test_without_its_run_an_export_is_compared_with_fp32():
    rows = [
        row("torchscript fp32", 8, agreement=None),
        row("onnx fp32", 10, agreement=None),
        row("onnx int8", 50, correct=954, agreement=None),
    ]
    found = choose(rows)
    assert found.name == "a onnx fp32"
    assert "less accurate than onnx fp32" in found.passed_over[0]
    assert "labels" not in found.reason


def test_the_most_accurate_of_several_runs_is_recommended():
    found = recommend(
        [
            row("eager fp32", 0, run="cnn", correct=775),
            row("onnx fp32", 1000, run="cnn", correct=775),
            row("eager fp32", 0, run="vgg16"),
            row("onnx fp32", 14, run="vgg16"),
            row("onnx int8", 50, run="vgg16", correct=957),
        ]
    )
    assert found.choice.path == "exports/vgg16/vgg16.int8.onnx"
    assert [choice.name for choice in found.choices] == ["cnn onnx fp32", "vgg16 onnx int8"]
    # 1000 / 50 = 20; 95.7 - 77.5 = 18.2
    assert found.alternative == (
        "exports/cnn/cnn.fp32.onnx is 20.0 times as fast (1,000 images per second) and 18.2 "
        "points less accurate: 77.5% (94.0% to 97.0%)"
    )
    assert recommendation_lines(found)[-1] == found.alternative


def test_a_less_accurate_run_that_is_no_faster_is_not_suggested():
    found = recommend(
        [row("onnx fp32", 10.4, run="cnn", correct=775), row("onnx fp32", 10, run="vgg16")]
    )
    assert found.choice.run == "vgg16"
    assert found.alternative == ""


def test_if_no_export_qualifies_the_reasons_are_given():
    found = recommend(
        [EAGER, row("onnx int8", 50, correct=900), row("onnx fp16", 9, status="failed")]
    )
    assert found.choice is None
    assert found.command == ""
    assert recommendation_lines(found) == [
        "Recommended on this machine: none",
        "no export of a is recommended: onnx int8: 50.0 images per second, but 6.0 points less "
        "accurate than PyTorch (900 instead of 960 of 1000 correct; 0.5 points are allowed); "
        "onnx fp16: failed at load: it is damaged",
    ]


def test_a_run_without_exports_is_noted_beside_the_recommendation():
    found = recommend([EAGER, row("onnx fp32", 10), row("eager fp32", 0, run="b")])
    assert found.choice.run == "a"
    assert recommendation_lines(found)[-1] == (
        "no export of b is recommended: it has no export; create one with tltools export"
    )


def test_unstable_timings_are_noted_in_the_recommendation():
    stable = recommendation_lines(recommend([EAGER, row("onnx fp32", 10)]))
    shaky = recommendation_lines(recommend([EAGER, row("onnx fp32", 10, status="unstable")]))
    assert shaky[0] == stable[0]
    assert not any("unstable" in line for line in stable)
    assert shaky[1].startswith("The timings of a onnx fp32, on which")


def test_a_recommendation_names_a_better_run_that_was_not_measured():
    rows = [EAGER, row("onnx fp32", 10, status="unstable")]
    found = recommend(rows, unmeasured="Only a was measured")
    lines = recommendation_lines(found)
    assert lines[1] == "Only a was measured"
    assert answer_lines(found) == lines[:3]
    assert "were unstable" in lines[2]
    assert "Only a was measured" in recommendation_lines(
        recommend([row("onnx int8", 50, status="failed"), EAGER, row("onnx fp32", 1, correct=1)],
                  unmeasured="Only a was measured")
    )  # fmt: skip


def test_a_path_with_a_space_is_quoted_in_the_command():
    found = recommend([row("onnx fp32", 10, path="my exports/a.onnx")])
    assert found.command == "tltools classify FOLDER --model 'my exports/a.onnx'"


def test_rows_of_a_run_are_ordered_by_format_and_precision():
    kinds = ["onnx int8", "torchscript fp32", "onnx fp16", "eager fp32", "onnx fp32"]
    rows = [
        row("onnx int8", 1, run="b"),
        *[row(kind, 1) for kind in kinds],
        row("eager fp32", 0, run="b"),
    ]
    assert [one.name for one in in_order(rows)] == [
        "b eager fp32",
        "b onnx int8",
        "a eager fp32",
        "a torchscript fp32",
        "a onnx fp32",
        "a onnx fp16",
        "a onnx int8",
    ]


def test_a_gpu_row_names_its_nodes_and_its_bottleneck(fake, images):
    report = bench([fake("a")], images)
    on_gpu = row(
        "onnx fp16",
        1600,
        provider="CUDAExecutionProvider",
        placement={"CUDAExecutionProvider": 150, "CPUExecutionProvider": 2},
        classify=sum_up([classify_round(1600, 0.1, 0.5, 0.4, 0, device="cuda")]),
    )
    rows = (EAGER, on_gpu, row("torchscript fp32", 900, provider="torch"))
    report = replace(report, rows=rows, recommendation=recommend(rows))
    cost, _speed, stages = report.tables()
    assert [cells[-1] for cells in cost.rows] == ["", "CPU", "CUDA 150/152", "torch"]
    assert stages.rows[2][1:] == ("1,600", "0.100", "0.500", "0.400", "0.000", "decoding 83%")
    assert "while the GPU (0.400 ms) waits" in report.recommended()[-1]


def test_a_gpu_has_its_own_table_and_its_memory_is_listed_beside_the_hosts(fake, images):
    report = bench([fake("a")], images)
    gpu = {"device": "cuda", "provider": "CUDAExecutionProvider"}
    sizes = (1, 8, 32, 64, 128, 256)
    rates = tuple(replace(timing(), batch_size=n, images_per_s=float(4 * n)) for n in sizes)
    fp16 = row(
        "onnx fp16",
        1600,
        **gpu,
        placement={"CUDAExecutionProvider": 150, "CPUExecutionProvider": 2},
        peak_memory_bytes=1_500_000_000,
        peak_gpu_bytes=2_600_000_000,
        flops_per_image=30_693_263_360,
        flops_per_s=214.9e12,
        peak_share=214.9 / 700,
        batches=rates,
    )
    rows = (EAGER, fp16, row("torchscript fp16", 900, provider="torch"))
    report = replace(
        report,
        rows=rows,
        settings=replace(report.settings, batch_sizes=sizes),
        peak_flops_per_s={"fp16": 700e12},
    )
    cost, latency, rates, arithmetic = report.tables()
    assert cost.columns[4:] == ("host MB", "GPU MB", "load s")
    assert cost.rows[2][4:] == ("1,500", "2,600", "0.10")
    assert latency.columns == ("", "p50 ms", "p95 ms", "p99 ms", "status")
    assert rates.columns == ("", *[f"at {n}" for n in sizes])
    assert rates.rows[2][1:] == ("4.00", "32.0", "128", "256", "512", "1,024")
    assert arithmetic.rows[2][1:] == ("CUDA 150/152", "30.7", "215", "700", "30.7%")
    assert arithmetic.rows[3][1:] == ("torch", "-", "-", "700", "-")
    for table in report.tables():
        assert {len(cells) for cells in table.rows} == {len(table.columns)}
    assert "measured in this run: fp16 700 TFLOP/s" in report.to_markdown()


def batches(rate):
    return (replace(timing(), images_per_s=rate / 2), replace(timing(), images_per_s=rate))


def test_int8_on_a_gpu_is_compared_with_fp16():
    gpu = {"device": "cuda", "provider": "CUDAExecutionProvider"}
    placed = {"CUDAExecutionProvider": 76, "CPUExecutionProvider": 13}
    int8 = row("onnx int8", 1, batches=batches(1223.0), placement=placed, **gpu)
    fp16 = row("onnx fp16", 1, batches=batches(5448.0), **gpu)
    assert int8_notes([EAGER, fp16, int8]) == [
        # 1223 / 5448 = 0.224
        "a onnx int8: on a GPU, 13 of 89 nodes still run on the CPU; int8 does 1,223 images "
        "per second and onnx fp16 5,448 (0.22 times as fast)"
    ]
    (line,) = int8_notes([int8, row("onnx fp16", 1, run="b", batches=batches(5448.0), **gpu)])
    assert line.endswith("which was not measured: export it and run again")
    assert int8_notes([fp16, row("onnx int8", 1, batches=batches(1223.0))]) == []  # on the CPU
    assert int8_notes([replace(int8, status="failed", reason="no")]) == []


def test_int8_on_a_gpu_is_recommended_only_if_it_is_fastest():
    gpu = {"device": "cuda", "provider": "CUDAExecutionProvider"}
    rows = [row("onnx fp32", 1373, **gpu), row("onnx fp16", 4788, **gpu)]
    assert choose([EAGER, *rows, row("onnx int8", 1223, **gpu)]).name == "a onnx fp16"
    assert choose([EAGER, *rows, row("onnx int8", 5100, **gpu)]).name == "a onnx int8"


def test_tf32_is_recommended_with_its_option():
    found = recommend(
        [
            EAGER,
            row("onnx fp32", 1373),
            row("onnx tf32", 4300, path="exports/a/a.fp32.onnx"),
            row("onnx int8", 1223),
        ]
    )
    assert found.choice.name == "a onnx tf32"
    assert found.command == "tltools classify FOLDER --model exports/a/a.fp32.onnx --tf32"
    # 4300 / 1373 = 3.13
    assert recommendation_lines(found)[0].startswith(
        "Recommended on this machine: exports/a/a.fp32.onnx with --tf32: 3.1 times as fast as onnx "
        "fp32 (4,300 against 1,373 images per second)"
    )
    # Where fp16 is no faster, TF32 is the more exact one.
    assert choose([EAGER, row("onnx tf32", 100), row("onnx fp16", 104)]).name == "a onnx tf32"


def test_throughput_excludes_the_time_before_the_first_rows():
    now = 0.0
    watch = Stopwatch(lambda: now, skip=2)
    for time_of_row in (10.0, 10.5, 11.0, 12.5):
        now = time_of_row
        watch.count()
        assert watch.seconds() == max(0.0, now - 10.5)
    watch.stop()
    assert watch.rate() == 2 / 2.0


def test_the_tables_fit_a_terminal_of_80_columns(fake, images, capsys):
    report = bench([fake("a")], images)
    kinds = ["eager fp32", "torchscript fp32", "onnx fp32", "onnx fp16", "onnx int8"]
    batches = tuple(
        replace(timing(), batch_size=size, images_per_s=12_345.0) for size in (1, 8, 32)
    )
    rows = tuple(
        row(
            kind,
            12_345,
            status="unstable",
            size_bytes=537_000_000,
            peak_memory_bytes=2_345_000_000,
            load_s=(12.3,),
            latency=replace(report.rows[0].latency, p50_s=0.160, p95_s=1.234, p99_s=1.234),
            batches=batches,
            placement={"CPUExecutionProvider": 139},
            classify=None
            if kind == "eager fp32"
            else sum_up([classify_round(12_345, 0.011, 12.3, 123, 0.005)]),
        )
        for kind in kinds
    )
    settings = replace(report.settings, batch_sizes=(1, 8, 32))
    report = replace(report, rows=rows, settings=settings, recommendation=recommend(rows))
    for table in report.tables():
        print_table(table.title, table.columns, table.rows)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        for kind in kinds:  # on one line, whole
            (line,) = [line for line in lines if line.strip().startswith(kind)]
            assert line.split() == " ".join(table.rows[1 + kinds.index(kind)]).split()


def test_real_exports_are_measured_in_every_stage(make_onnx, make_card, tmp_path):
    paths = []
    for value in (10, 200):
        paths.append(tmp_path / f"{value}.jpg")
        Image.new("RGB", (60, 40), (value, 0, 100)).save(paths[-1])  # blue, red
    folder = tmp_path / "exports"
    folder.mkdir()
    candidates = [
        Candidate(
            name=f"tiny onnx {precision}",
            run="tiny",
            format="onnx",
            precision=precision,
            path=make_onnx(folder / f"tiny.{precision}.onnx", make_card().to_json()),
        )
        for precision in ("int8", "fp32")
    ]
    inputs = BenchInputs(
        candidates=candidates, images=paths, targets=np.array([2, 0]), name="two", notes=()
    )
    settings = BenchSettings(
        device="cpu", batch_sizes=(1,), rounds=1, iterations=3, classify_seconds=0.2
    )
    report = run_bench(inputs, settings)
    assert [(one.name, one.reason) for one in report.rows] == [
        ("tiny onnx fp32", ""),
        ("tiny onnx int8", ""),
    ]
    for one in report.rows:
        assert one.score.correct == 2
        (round_,) = one.classify.rounds
        assert round_.plan.name == "fused"
        assert round_.num_images >= 16
        stages = round_.costs.by_stage()
        assert min(stages[stage] for stage in ("reading", "inference", "writing")) > 0
        found = one.classify.bottleneck  # of these tiny files, how busy the machine is decides
        explained = sum(stages.values())
        assert found.cost_s == pytest.approx(
            found.total_s - explained if found.stage == "hand-over" else max(stages.values())
        )
        assert set(one.placement) == {"CPUExecutionProvider"}
    cost, _speed, stages = report.tables()
    assert all(re.fullmatch(r"CPU (\d+)/\1", cells[-1]) for cells in cost.rows[1:])
    assert [cells[0] for cells in stages.rows] == ["tiny", "  onnx fp32", "  onnx int8"]
    path = report.recommendation.choice.path
    assert path in {str(candidate.path) for candidate in candidates}
    text = report.to_markdown()
    assert f"- Recommended on this machine: {path}: " in text
    assert "## Bottlenecks" in text
    assert json.loads(report.to_json())["rows"][0]["classify"]["rounds"][0]["plan"]["workers"] >= 1
