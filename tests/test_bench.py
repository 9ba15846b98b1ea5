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

from tltools.bench import Candidate, run_bench, write_report
from tltools.bench.machine import cpu_name, describe_machine, memory_bytes, peak_memory_bytes
from tltools.bench.records import BatchTiming
from tltools.bench.run import batch_timing, command_line, doubts
from tltools.card import Card, DataFacts, Preprocessing, Weights
from tltools.errors import ArtifactError, ConfigError, DataError
from tltools.runtime import DeviceChoice

CLASSES = ("dark", "light", "other")


class FakePredictor:
    """Calls a picture light where its mean is above a threshold; `then` is what it does besides."""

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
    if what == "grow" and images is not None:
        np.ones(len(images) * 10_000_000, dtype=np.uint8).sum()


def open_fake(path: Path, device: str, threads: int | None):
    """Open what `fake` has written."""
    facts = json.loads(path.read_text())
    assert device == "cpu"
    with Path(facts["log"]).open("a") as log:
        log.write(f"{path.stem} {os.getpid()}\n")
    if facts["at_load"] == "artifact":
        raise ArtifactError("it is damaged; make it again")
    do(facts["at_load"])
    return FakePredictor(
        threshold=facts["threshold"],
        classes=tuple(facts["classes"]),
        then=facts["at_call"],
        threads=threads,
    )


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
def pictures(tmp_path):
    """Five grey pictures: 0, 50, 100, 150 and 200; the last two are light."""
    paths = []
    for value in (0, 50, 100, 150, 200):
        paths.append(tmp_path / f"{value}.png")
        Image.new("RGB", (16, 16), (value, value, value)).save(paths[-1])
    return paths


TARGETS = np.array([0, 0, 1, 1, 1])
"""One of the five, the third, is called light though its mean is 100."""


def bench(candidates, pictures, **options):
    options = {"batch_sizes": (1, 8), "rounds": 1, "runs": 4, "warmup": 1} | options
    return run_bench(
        candidates,
        open_predictor=open_fake,
        pictures=pictures,
        targets=TARGETS,
        device="cpu",
        threads=1,
        **options,
    )


def test_accuracy_and_agreement_are_counted_over_all_pictures(fake, pictures):
    report = bench(
        [
            fake("eager", kind="eager"),  # 4 of 5 right
            fake("same"),
            fake("strict", threshold=175),  # 150 is dark: 3 of 5 right, 4 of 5 as eager
        ],
        pictures,
    )
    eager, same, strict = report.rows
    assert [(row.score.correct, row.score.total) for row in report.rows] == [(4, 5), (4, 5), (3, 5)]
    assert (eager.agreement, same.agreement, strict.agreement) == (None, 1.0, 0.8)
    assert (eager.max_abs_logit_diff, same.max_abs_logit_diff) == (None, 0.0)
    assert strict.max_abs_logit_diff == 1.0


def test_each_run_is_compared_with_its_own_eager_model(fake, pictures):
    report = bench(
        [
            fake("onnx-a", run="a", threshold=175),
            fake("eager-a", run="a", kind="eager"),
            fake("eager-b", run="b", kind="eager", threshold=175),
            fake("onnx-b", run="b", threshold=175),
            fake("onnx-c", run="c"),
        ],
        pictures,
    )
    agreement = {row.name: row.agreement for row in report.rows}
    assert agreement["onnx-a"] == 0.8
    assert agreement["onnx-b"] == 1.0
    assert agreement["onnx-c"] is None


def test_candidates_take_turns_and_each_turn_is_a_new_process(fake, pictures, tmp_path):
    bench([fake("a"), fake("b")], pictures, rounds=3)
    names, processes = zip(
        *[line.split() for line in (tmp_path / "log").read_text().splitlines()], strict=True
    )
    assert names == ("a", "b", "a", "b", "a", "b")
    assert len({*processes, str(os.getpid())}) == 7


def test_every_sample_of_every_round_is_kept(fake, pictures):
    (row,) = bench([fake("a")], pictures, rounds=2, runs=4, batch_sizes=(8,)).rows
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
    assert timing.pictures_per_s == 4.0  # of 8/1, 8/2 and 8/4
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
        "failed at load: the process was ended by SIGKILL, by the system perhaps, for want of "
        "memory: try smaller batches",
    ),
    "nan": (
        {"at_call": "nan"},
        "failed at accuracy: logits of 1 of 5 pictures are not finite",
    ),
    "narrow": (
        {"at_call": "narrow"},
        "failed at accuracy: logits of shape (5, 2) instead of (5, 3)",
    ),
    "classes": (
        {"classes": ("light", "dark", "other")},
        "failed: its classes (light, dark, other) are not those of the others (dark, light, "
        "other), in this order: bench it by itself",
    ),
}


def test_candidates_that_fail_get_rows_and_the_others_go_on(fake, pictures):
    troubled = [fake(name, **trouble) for name, (trouble, _) in TROUBLES.items()]
    report = bench([fake("first"), *troubled, fake("last")], pictures)
    first, *rows, last = report.rows
    assert "failed" not in (first.status, last.status)
    assert {row.status for row in rows} == {"failed"}
    reasons = {row.name: row.reason for row in rows}
    assert reasons == {name: f"{reason} (round 1)" for name, (_, reason) in TROUBLES.items()}
    assert all(row.score is None for row in rows)
    assert set(report.notes()) >= {f"{row.name}: {row.reason}" for row in rows}


def test_a_candidate_that_hangs_is_ended_and_not_tried_again(fake, pictures, tmp_path):
    start = time.monotonic()
    report = bench([fake("slow", at_call="sleep"), fake("good")], pictures, timeout_s=3.0, rounds=2)
    assert time.monotonic() - start < 60
    slow, good = report.rows
    assert slow.reason == (
        "failed at batch size 1: no sign of life for 3 s, so it was ended (round 1)"
    )
    assert good.status != "failed"
    lines = (tmp_path / "log").read_text().split()
    assert lines[::2] == ["slow", "good", "good"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[1]), 0)


def test_what_a_model_prints_stays_out_of_the_terminal(fake, pictures, capfd):
    report = bench([fake("a", at_call="print")], pictures)
    assert report.rows[0].status != "failed"
    assert capfd.readouterr() == ("", "")


def test_peak_memory_is_that_of_the_candidates_own_process(fake, pictures):
    report = bench([fake("grows", at_call="grow"), fake("small")], pictures, batch_sizes=(1, 20))
    grows, small = (row.peak_memory_bytes for row in report.rows)
    assert grows - small == pytest.approx(200e6, rel=0.1)  # 20 pictures of 10 MB


def test_a_large_batch_repeats_the_pictures_in_their_order(fake, pictures):
    (row,) = bench([fake("looks", at_call="look")], pictures).rows
    assert row.reason == ""
    (row,) = bench([fake("looks", at_call="look")], pictures[::-1]).rows
    assert row.reason == "failed at batch size 8: AssertionError (round 1)"


def test_the_report_is_saved_after_each_measurement(fake, pictures):
    reports = []
    bench([fake("a"), fake("b", at_load="raise")], pictures, rounds=2, save=reports.append)
    assert [[row.name for row in report.rows] for report in reports] == [
        ["a"],
        ["a", "b"],
        ["a", "b"],
    ]
    assert [report.complete for report in reports] == [False] * 3
    assert [len(report.rows[0].load_s) for report in reports] == [1, 1, 2]


def test_the_files_hold_every_row_and_repeat_no_name(fake, pictures, tmp_path):
    report = bench([fake("good", run="r|un"), fake("bad", at_load="raise")], pictures)
    json_path, markdown_path = write_report(report, tmp_path / "out")
    assert re.fullmatch(r"bench-\d{8}T\d{6}\.json", json_path.name)
    found = json.loads(json_path.read_text())
    assert [row["name"] for row in found["rows"]] == ["good", "bad"]
    assert found["rows"][0]["latency"]["p95_s"] == report.rows[0].latency.p95_s
    assert found["rows"][1]["score"] is None
    assert found["machine"]["versions"]["numpy"] == np.__version__
    text = markdown_path.read_text()
    assert "| r\\|un |" in text
    assert "bad: failed at load: RuntimeError: no such kernel" in text
    assert "a batch of decoded pictures in memory" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        json_path.with_suffix(".json").name,
        markdown_path.name,
    ]


def test_every_table_row_has_a_cell_for_each_column(fake, pictures):
    report = bench(
        [fake("good"), fake("bad", at_load="raise"), fake("more", run="b")],
        pictures,
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


def test_agreement_is_not_rounded_up_to_full(fake, pictures):
    report = bench([fake("a")], pictures)
    almost = replace(report, rows=(replace(report.rows[0], agreement=0.99996),))
    assert almost.tables()[0].rows[1][2] == "99.9"
    full = replace(report, rows=(replace(report.rows[0], agreement=1.0),))
    assert full.tables()[0].rows[1][2] == "100.0"


def timing(*, spread=0.0, outliers=0, samples=100):
    return BatchTiming(
        batch_size=8,
        rounds_s=((1.0,) * samples,),
        pictures_per_s=8.0,
        round_spread=spread,
        num_outliers=outliers,
    )


def test_rounds_that_differ_make_a_row_doubtful():
    assert doubts([timing(spread=0.1)]) == []
    (line,) = doubts([timing(spread=0.05), timing(spread=0.234), timing(spread=0.2)])
    assert line.startswith("the slowest round took 1.23 times as long as the fastest")
    assert "--rounds" in line


def test_more_than_one_outlier_in_a_hundred_makes_a_row_doubtful():
    assert doubts([timing(outliers=1)]) == []
    (line,) = doubts([timing(), timing(outliers=2)])
    assert line.startswith("2 of 100 runs were far slower than the rest (at batch size 8)")


def test_the_command_line_is_what_was_typed():
    assert command_line(["/venv/bin/tltools", "bench", "a b"]) == "tltools bench 'a b'"
    assert command_line(["/src/tltools/__main__.py", "bench"]) == "tltools bench"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": (0, 8)}, "--batch-sizes must be 1 or more, got 0"),
        ({"rounds": 0}, "--rounds must be 1 or more, got 0"),
        ({"runs": -1}, "--runs must be 1 or more, got -1"),
    ],
)
def test_numbers_that_measure_nothing_are_refused(fake, pictures, options, message):
    with pytest.raises(ConfigError, match=message):
        bench([fake("a")], pictures, **options)


def test_nothing_to_measure_is_refused(fake, pictures):
    with pytest.raises(ConfigError, match="nothing to bench"):
        bench([], pictures)
    with pytest.raises(DataError, match="no pictures to bench with"):
        run_bench([fake("a")], open_predictor=open_fake, pictures=[], targets=np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=r"targets \(5,\) do not fit 4 pictures"):
        bench([fake("a")], pictures[:4])
    with pytest.raises(ValueError, match="names must differ"):
        bench([fake("a"), fake("a")], pictures)


def test_an_unreadable_picture_is_named(fake, pictures):
    pictures[2].write_bytes(b"not a picture")
    (row,) = bench([fake("a")], pictures).rows
    assert row.reason.startswith("failed at pictures: ")
    assert "100.png" in row.reason


def test_the_machine_is_described_without_heavy_imports():
    machine = describe_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine.versions["numpy"] == np.__version__
    assert memory_bytes() > 2**28


def test_the_processor_is_named_as_the_system_does(tmp_path):
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
