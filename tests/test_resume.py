"""Jobs that are stopped in every way, and resumed.

`python tests/test_resume.py 200` kills that many jobs at random moments, which takes minutes; a
second number gives other moments.
"""

import csv
import errno
import fcntl
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import COLORS, children, is_alive, save_image
from msgspec import structs

import tltools
from tltools.classify import Job, run_job
from tltools.classify import opening as opening_module
from tltools.classify import writer as writer_module
from tltools.classify.identity import (
    FACTS,
    JobRecord,
    PartsRecord,
    differences,
    shard_difference,
)
from tltools.classify.output_formats import parquet as parquet_module
from tltools.classify.output_formats.csv_rows import read_csv
from tltools.classify.shards import Shard
from tltools.classify.unfinished import UnfinishedOutput
from tltools.decisions import ClassThreshold
from tltools.errors import ConfigError, TltoolsError
from tltools.progress import Silent
from tltools.runtime import Plan, load_predictor
from tltools.runtime.model_formats.onnx import OnnxPredictor

SUFFIXES = (".csv", ".jsonl", ".parquet")
CSV_AND_SLOW = [".csv", *(pytest.param(one, marks=pytest.mark.slow) for one in SUFFIXES[1:])]
NUM_MANY = 6000
ODD_NAMES = ("a,b.png", 'c"d.png', "e\nf.png", '"\n",,.png', "g\r\nh.png", "=1+1.png", "é ü.png")

COMMAND = (
    sys.executable, "-c", "from tltools.cli import main; main()", "classify"
)  # fmt: skip


def link_many(folder: Path, num_images: int) -> Path:
    """Make a folder of many images, some of them broken or with odd names."""
    (folder / "few").mkdir(parents=True)
    rng = np.random.default_rng(0)
    sources = [folder / "few" / f"{number}.png" for number in range(30)]
    for number, source in enumerate(sources):
        save_image(source, list(COLORS.values())[number % 3], rng)
    sources[7].write_bytes(b"no image")
    for number in range(num_images):
        odd = ODD_NAMES[number % len(ODD_NAMES)] if number % 50 == 0 else "x.png"
        os.link(sources[number % 30], folder / f"{number:05}{odd}")
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return link_many(tmp_path_factory.mktemp("many") / "images", NUM_MANY)


@pytest.fixture(scope="module")
def wholes(many, onnx_path, tmp_path_factory):
    """What jobs write that nobody stops, by suffix."""
    folder = tmp_path_factory.mktemp("wholes")
    for suffix in SUFFIXES:
        run_job(Job(onnx_path, [many], folder / f"out{suffix}", device="cpu"))
    return {suffix: folder / f"out{suffix}" for suffix in SUFFIXES}


def content(path: Path):
    """What has to be the same: bytes, or rows for Parquet."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def num_rows(part: Path) -> int:
    """Count the complete rows of a part, with a parser of its own."""
    text = part.read_bytes().decode()
    if ".csv" in part.name:
        return len(list(csv.reader(io.StringIO(text, newline="")))) - 1
    return len([json.loads(line) for line in text.splitlines()])


def start(args, *, command=COMMAND, prepare=None, **options) -> subprocess.Popen:
    """Start a command that can be stopped by signals, after `prepare` in its process."""

    def begin():
        # Below nohup, and in the background of a script, these are ignored: children inherit that.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if prepare is not None:
            prepare()

    return subprocess.Popen(
        [*command, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=begin,
        **options,
    )


def finish(process: subprocess.Popen) -> SimpleNamespace:
    out, err = process.communicate(timeout=120)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


# --------------------------------------------------------------------------------- kill -9


def kill_until_done(args, output: Path, rng: random.Random, *, max_kills: int) -> int:
    """Run a command, kill some of it at a random moment, and so on until it ends.

    What is killed is the job, all of its processes at once, or one or two of the others, which are
    stopped (SIGSTOP) now and then.

    Returns:
        The number of kills.
    """
    num_kills = 0
    while True:
        process = start(args)
        others: list[int] = []
        if num_kills < max_kills:
            try:
                process.wait(rng.uniform(0.0, 1.5))
            except subprocess.TimeoutExpired:
                others = children(process.pid)
                victims = rng.choice([None, [process.pid], others[:1], others[1:2], others[1:3]])
                number = signal.SIGKILL
                if victims is None:
                    os.killpg(process.pid, number)
                elif process.pid not in victims:
                    number = rng.choice([signal.SIGKILL, signal.SIGSTOP])
                for victim in victims or ():
                    with suppress(ProcessLookupError):
                        os.kill(victim, number)
                num_kills += 1
        result = finish(process)
        assert result.code in (0, -signal.SIGKILL), result.err
        deadline = time.monotonic() + 10
        while any(map(is_alive, others)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(is_alive, others))
        # One that was killed after its output was complete is found finished the next time.
        if output.exists() and not output.with_name(f"{output.name}.part.json").exists():
            return num_kills
        assert result.code


@pytest.mark.parametrize("suffix", CSV_AND_SLOW)
def test_kill_9_at_random_moments_loses_and_duplicates_no_row(
    suffix, many, wholes, onnx_path, tmp_path
):
    output = tmp_path / f"out{suffix}"
    args = [many, "--model", onnx_path, "--device", "cpu", "-o", output]
    kill_until_done(args, output, random.Random(suffix), max_kills=4)  # noqa: S311
    assert content(output) == content(wholes[suffix])
    assert not (tmp_path / f"out{suffix}.part").exists()


# ----------------------------------------------------------------------------- being stopped


class Stopping(Silent):
    """Progress that stops the job, as Ctrl-C would, and keeps what it is told."""

    def __init__(self, stop_after: int | None = None):
        self.advanced = 0
        self.totals: list[int | None] = []
        self.said: list[str] = []
        self._stop_after = stop_after

    @contextmanager
    def bar(self, description, total, unit="images", *, epochs=None):
        self.totals.append(total)
        yield self

    def advance(self, amount=1, note=""):
        before, self.advanced = self.advanced, self.advanced + amount
        if self._stop_after is not None and before < self._stop_after <= self.advanced:
            raise KeyboardInterrupt

    def say(self, message):
        self.said.append(message)

    warn = say


def stop(model, inputs, output, after, **options):
    """Run a job and stop it after so many rows."""
    with pytest.raises(KeyboardInterrupt):
        run_job(Job(model, inputs, output, device="cpu", **options), progress=Stopping(after))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_job_cleanly_with_the_right_count(
    number, many, wholes, onnx_path, tmp_path
):
    output = tmp_path / "out.csv"
    part = tmp_path / "out.csv.part"
    args = [many, "--model", onnx_path, "--device", "cpu", "-o", output]
    process = start(args)
    while process.poll() is None and (not part.exists() or part.stat().st_size < 1000):
        time.sleep(0.001)
    process.send_signal(number)
    result = finish(process)
    assert result.code == 128 + number
    counted = int(re.search(r"stopped: (\d+) complete rows are kept", result.err)[1])
    assert counted == num_rows(part) > 0
    assert "Traceback" not in result.err
    assert not output.exists()
    result = finish(start(args))
    assert result.code == 0
    assert f"Resuming after {counted} rows" in result.err
    assert f"{NUM_MANY + 30} rows, {counted} of them from before" in result.err
    assert content(output) == content(wholes[".csv"])


def test_an_ignored_signal_does_not_end_the_job(many, onnx_path, tmp_path):
    """As below nohup."""

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    output, part = tmp_path / "out.csv", tmp_path / "out.csv.part"
    args = [many / "few", "--model", onnx_path, "--device", "cpu", "-o", output]
    process = start(args, prepare=ignore)
    while process.poll() is None and not part.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGHUP)
    assert finish(process).code == 0
    assert num_rows(output) == 30


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("after", [1, 15, 16, 29])
def test_a_stopped_job_resumes_to_the_same_output(suffix, after, onnx_path, images, tmp_path):
    (images / "red/4.png").write_bytes(b"no image")
    (images / "blue/1.png").write_bytes(b"")
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    expected = run_job(Job(onnx_path, [images], whole, device="cpu"))
    stop(onnx_path, [images], output, after)
    progress = Stopping()
    summary = run_job(Job(onnx_path, [images], output, device="cpu"), progress=progress)
    assert content(output) == content(whole)
    rows = "1 row" if after == 1 else f"{after} rows"
    assert progress.said == [f"Resuming after {rows} in {output}.part"]
    assert (progress.totals, progress.advanced) == ([30 - after], 30 - after)
    assert (summary.num_images, summary.num_kept) == (30, after)
    assert (summary.counts, summary.errors) == (expected.counts, expected.errors)
    assert summary.images_per_s == pytest.approx((30 - after) / summary.seconds)
    assert sorted(tmp_path.iterdir()) == sorted([output, whole, images])


def test_a_list_from_standard_input_resumes_when_it_is_given_again(
    onnx_path, images, tmp_path, monkeypatch
):
    monkeypatch.chdir(images)
    lines = b"".join(b"red/%d.png\nmissing%d.png\n" % (n, n) for n in range(10))
    dash = Path("-")

    def give(lines):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))

    give(lines)
    run_job(Job(onnx_path, [dash], tmp_path / "whole.csv", device="cpu"))
    give(lines)
    stop(onnx_path, [dash], tmp_path / "out.csv", 9)
    give(lines)
    assert run_job(Job(onnx_path, [dash], tmp_path / "out.csv", device="cpu")).num_kept == 9
    assert content(tmp_path / "out.csv") == content(tmp_path / "whole.csv")


@pytest.mark.parametrize("batch_size", [1, 5, 8])
@pytest.mark.parametrize("name", ["fused", "ahead"])
def test_each_image_is_in_the_same_batch_as_without_a_stop(
    name, batch_size, onnx_path, images, tmp_path, monkeypatch
):
    (images / "green/3.png").write_bytes(b"no image")
    batches: list[bytes] = []
    call = OnnxPredictor.__call__

    def recording(self, batch):
        batches.append(batch.tobytes())
        return call(self, batch)

    def open_so(path, *, device, **_options):
        return load_predictor(path, device=device, threads=1), Plan(name, 1, batch_size)

    monkeypatch.setattr(opening_module, "open_model", open_so)
    monkeypatch.setattr(OnnxPredictor, "__call__", recording)
    run_job(Job(onnx_path, [images], tmp_path / "whole.csv", device="cpu"))
    expected = set(batches)
    for after in (3, 16, 23):
        output = tmp_path / f"{after}.csv"
        stop(onnx_path, [images], output, after)
        batches.clear()
        run_job(Job(onnx_path, [images], output, device="cpu"))
        assert set(batches) <= expected
        assert content(output) == content(tmp_path / "whole.csv")


def test_the_plan_of_the_first_rows_is_kept(onnx_path, images, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    stop(onnx_path, [images], output, 5)
    assert json.loads((tmp_path / "out.csv.part.json").read_text())["plan"] == "fused"
    open_model = opening_module.open_model

    def slow(path, **options):  # as if the forward pass were slower than the limit this time
        predictor, plan = open_model(path, **options)
        return predictor, Plan("ahead", plan.workers, plan.batch_size)

    monkeypatch.setattr(opening_module, "open_model", slow)
    assert run_job(Job(onnx_path, [images], output, device="cpu")).plan.name == "fused"


# ------------------------------------------------------------------------------- torn rows


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_part_that_is_torn_anywhere_is_repaired(suffix, onnx_path, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(ODD_NAMES):
        save_image(folder / name, list(COLORS.values())[number % 3], rng)
    (folder / ODD_NAMES[2]).write_bytes(b"")
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    run_job(Job(onnx_path, [folder], whole, device="cpu"))
    stop(onnx_path, [folder], output, 5)
    part, record = (tmp_path / f"out{suffix}.part{end}" for end in ("", ".json"))
    data, facts = part.read_bytes(), record.read_bytes()
    seen = set()
    for size in [*range(0, len(data), 7), *range(len(data) - 3, len(data) + 1)]:
        output.unlink(missing_ok=True)
        part.write_bytes(data[:size])
        record.write_bytes(facts)
        seen.add(run_job(Job(onnx_path, [folder], output, device="cpu")).num_kept)
        assert content(output) == content(whole), size
    assert seen == set(range(6))


@pytest.mark.parametrize("junk", [b"\0" * 4096, b"\xff\xfe", b'"open', b"a,b\n", b"{}\n", b"\n"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_incomplete_row_at_the_end_of_a_part_is_removed(
    suffix, junk, onnx_path, images, tmp_path
):
    output = tmp_path / f"out{suffix}"
    run_job(Job(onnx_path, [images], tmp_path / f"whole{suffix}", device="cpu"))
    stop(onnx_path, [images], output, 5)
    with (tmp_path / f"out{suffix}.part").open("ab") as file:
        file.write(junk)
    assert run_job(Job(onnx_path, [images], output, device="cpu")).num_kept == 5
    assert content(output) == content(tmp_path / f"whole{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_zero_bytes_in_a_part_end_its_rows(suffix, onnx_path, images, tmp_path):
    output, part = tmp_path / f"out{suffix}", tmp_path / f"out{suffix}.part"
    run_job(Job(onnx_path, [images], tmp_path / f"whole{suffix}", device="cpu"))
    stop(onnx_path, [images], output, 9)
    data = part.read_bytes()
    place = data.index(b"5.png") - 3
    part.write_bytes(data[:place] + b"\0" * 4 + data[place + 4 :])
    assert run_job(Job(onnx_path, [images], output, device="cpu")).num_kept == 5
    assert content(output) == content(tmp_path / f"whole{suffix}")


# -------------------------------------------------------------------------------- refusals


@pytest.fixture
def stopped(onnx_path, images, tmp_path):
    """A job that was stopped after twelve rows: those of blue, and two of green."""
    output = tmp_path / "out.csv"
    stop(onnx_path, [images], output, 12)
    return output


def assert_refused(reason, *args, **options):
    """Refused with the reason and a remedy, and what is there stays as it is."""
    part = args[2].with_name(args[2].name + ".part")
    before = part.read_bytes()
    with pytest.raises(ConfigError, match=reason + r".*`overwrite=True`.*`output=`"):
        run_job(Job(*args, device="cpu", **options))
    assert part.read_bytes() == before


def test_resuming_with_another_model_is_refused(stopped, onnx_path, make_onnx, card, images):
    other = make_onnx(stopped.parent / "other.onnx", card.to_json() + " ")
    assert_refused("it was started with a different model", other, [images], stopped)


def test_resuming_with_the_same_model_at_another_path_works(stopped, onnx_path, images, tmp_path):
    shutil.copy(onnx_path, tmp_path / "moved.onnx")
    summary = run_job(Job(tmp_path / "moved.onnx", [images], stopped, device="cpu"))
    assert summary.num_kept == 12


def test_resuming_with_other_inputs_is_refused(stopped, onnx_path, images):
    for inputs in ([images / "red"], [images, images / "red"]):
        assert_refused("it was started with different inputs", onnx_path, inputs, stopped)


def test_resuming_with_another_option_is_refused(stopped, onnx_path, images):
    args = (onnx_path, [images], stopped)
    assert_refused("it was started without `spreadsheet=True`", *args, spreadsheet=True)
    assert_refused("it was started with `batch_size=1`", *args, batch_size=2)
    assert_refused("it was started without `min_confidence=`", *args, min_confidence=0.5)
    threshold = ClassThreshold("red", 0.5)
    assert_refused("it was started without `threshold=`", *args, threshold=threshold)


def test_resuming_with_another_version_is_refused(stopped, onnx_path, images, tmp_path):
    record = tmp_path / "out.csv.part.json"
    record.write_text(record.read_text().replace(tltools.__version__, "0.0.0"))
    assert_refused(r"it was started by tltools 0\.0\.0", onnx_path, [images], stopped)


def test_resuming_on_another_device_is_refused(stopped, onnx_path, images, tmp_path):
    record = tmp_path / "out.csv.part.json"
    record.write_text(record.read_text().replace('"cpu"', '"cuda"'))
    assert_refused("it was started on cuda", onnx_path, [images], stopped)


def test_resuming_in_a_changed_folder_is_refused(stopped, onnx_path, images):
    args = (onnx_path, [images], stopped)
    (images / "blue/10.png").write_bytes(b"")
    assert_refused(r"row 3 is for 'blue/2\.png', but the inputs have 'blue/10\.png' there", *args)
    (images / "blue/10.png").unlink()
    (images / "blue/0.png").rename(images / "red/0a.png")
    assert_refused(r"row 1 is for 'blue/0\.png', but the inputs have 'blue/1\.png'", *args)
    for name in ("red", "green"):
        shutil.rmtree(images / name)
    (images / "blue/0.png").write_bytes(b"")
    assert_refused(r"row 11 is for 'green/0\.png', but the inputs have fewer", *args)


def test_images_added_after_the_finished_rows_are_classified(stopped, onnx_path, images):
    shutil.copy(images / "red/0.png", images / "red/new.png")
    summary = run_job(Job(onnx_path, [images], stopped, device="cpu"))
    assert (summary.num_images, summary.counts["red"]) == (31, 11)


@pytest.mark.parametrize("record", [None, b"", b"{}", b'{"tltools": 1}', b"\0" * 50])
def test_a_part_without_a_readable_record_is_refused(record, stopped, onnx_path, images, tmp_path):
    path = tmp_path / "out.csv.part.json"
    path.unlink()
    if record is not None:
        path.write_bytes(record)
    assert_refused(r"its record .* is missing or damaged", onnx_path, [images], stopped)


def test_a_part_with_other_columns_is_refused(stopped, onnx_path, images, tmp_path):
    part = tmp_path / "out.csv.part"
    part.write_bytes(part.read_bytes().replace(b"prob_red", b"prob_rod"))
    assert_refused("it does not start with the columns", onnx_path, [images], stopped)


def test_every_field_of_a_record_is_compared_or_accounted_for():
    """A new field has to be given its place: it makes jobs differ, or it follows from others."""
    follows = {"model", "size", "resize"}  # from the model's digest
    follows |= {"overwrite", "errors_to", "complete"}  # of no row
    chosen = {"layout"}  # by measuring, and taken from the record
    compared = {fact.field for fact in FACTS}
    assert compared | follows | chosen == set(PartsRecord.__struct_fields__)
    assert compared & (follows | chosen) == set()


def test_all_differences_are_listed_in_a_fixed_order():
    record = JobRecord(
        model="a.onnx", model_sha256="0", inputs=("/a",), classes=("x", "y"), size=32,
        resize="squash", device="cuda", provider="C", plan="ahead", batch_size=4,
        spreadsheet=True, min_confidence=0.25, overwrite=False, shard=Shard(1, 2), tf32=True,
        threshold=ClassThreshold("x", 0.75), unknown=99.5,
    )  # fmt: skip
    now = {
        "shard": None, "tf32": False, "min_confidence": None, "threshold": None,
        "unknown": None,
        "spreadsheet": False, "batch_size": 8, "device": "cpu", "provider": "P", "inputs": ("/b",),
    }  # fmt: skip
    assert differences(record, now) == (
        "it was started with different inputs (/a); "
        "it was started on cuda (C), but this job runs on cpu (P); "
        "it was started with `batch_size=4`; it was started with `spreadsheet=True`; "
        "it was started with `min_confidence=0.25`; "
        "it was started with `threshold=0.75` and `class_name=x`; "
        "it was started with `unknown=99.5`; it was started with `tf32=True`; "
        "it was started with `shard=1/2`"
    )
    assert differences(record, {"shard": Shard(1, 2), "tf32": True}) is None
    assert shard_difference(record, structs.replace(record, shard=Shard(2, 2))) is None
    other = structs.replace(record, tf32=False)
    assert shard_difference(record, other) == "has a different `tf32=` than"


def test_overwrite_starts_over(stopped, onnx_path, images, tmp_path):
    summary = run_job(Job(onnx_path, [images / "red"], stopped, device="cpu", overwrite=True))
    assert (summary.num_images, summary.num_kept) == (10, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.csv"]


def test_an_output_is_only_replaced_by_a_complete_one(onnx_path, images, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("precious")
    stop(onnx_path, [images], output, 12, overwrite=True)
    assert output.read_text() == "precious"
    stop(onnx_path, [images], output, 5)  # begun with overwrite: that need not be said again
    assert output.read_text() == "precious"
    assert run_job(Job(onnx_path, [images], output, device="cpu")).num_kept == 17
    assert num_rows(output) == 30
    with pytest.raises(ConfigError, match=r"exists; replace it with `overwrite=True`"):
        run_job(Job(onnx_path, [images], output, device="cpu"))


# ------------------------------------------------------------------------------- two at once


def test_a_file_system_without_locks_works(onnx_path, images, tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"))
    assert num_rows(tmp_path / "out.csv") == 30


def test_two_jobs_cannot_write_one_output(onnx_path, images, tmp_path):
    class Second(Stopping):
        def advance(self, amount=1, note=""):
            super().advance(amount)
            if self.advanced == 3:
                for overwrite in (False, True):
                    with pytest.raises(ConfigError, match=r"another job is writing .*out\.csv"):
                        run_job(Job(*args, device="cpu", overwrite=overwrite))

    args = (onnx_path, [images], tmp_path / "out.csv")
    assert run_job(Job(*args, device="cpu"), progress=Second()).num_images == 30
    assert num_rows(tmp_path / "out.csv") == 30


def test_a_part_completed_by_another_job_is_not_reused(tmp_path):
    first, second = (UnfinishedOutput(tmp_path / "out.csv") for _ in range(2))
    first.open()
    first.append(b"rows")
    lock = second._lock

    def late(handle):
        if first.is_open:
            first.finish()  # between the opening and the locking of the same file
        return lock(handle)

    second._lock = late
    second.open()
    assert second.num_bytes == 0
    assert (tmp_path / "out.csv").read_bytes() == b"rows"
    second.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "out.csv"]


# ------------------------------------------------------------------- full disks, lost power


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_an_error_and_the_job_resumes_with_free_space(
    suffix, many, wholes, onnx_path, tmp_path
):
    output = tmp_path / f"out{suffix}"
    args = [many, "--model", onnx_path, "--device", "cpu", "-o", output]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = finish(start(args, prepare=limit))
    assert result.code == 1
    assert re.search(
        rf"^error: cannot write {output}\.part: file too large; .*--output$", result.err, re.M
    )
    kept = int(re.search(r"stopped: (\d+) complete rows", result.err)[1])
    assert num_rows(tmp_path / f"out{suffix}.part") == kept > 0
    assert finish(start(args)).code == 0
    assert content(output) == content(wholes[suffix])


@pytest.fixture
def small_disk(tmp_path):
    """A file system with little room."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)  # noqa: S607


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_really_full_disk_costs_no_row(suffix, small_disk, many, wholes, onnx_path, tmp_path):
    output = small_disk / f"out{suffix}"
    with pytest.raises(TltoolsError, match=r"cannot write .*no space left"):
        run_job(Job(onnx_path, [many], output, device="cpu"))
    kept = num_rows(small_disk / f"out{suffix}.part")
    assert kept > 0
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)  # noqa: S607
    assert run_job(Job(onnx_path, [many], output, device="cpu")).num_kept == kept
    assert content(output) == content(wholes[suffix])


def test_a_removed_mount_is_an_error_with_its_path(onnx_path, images, tmp_path, monkeypatch):
    append, num_appended = UnfinishedOutput.append, 0

    def fail(self, data):
        nonlocal num_appended
        num_appended += 1
        if num_appended > 12:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        append(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(UnfinishedOutput, "append", fail)
        with pytest.raises(TltoolsError, match=r"cannot write .*csv\.part: stale file handle"):
            run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"))
    summary = run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"))
    assert summary.num_kept == 11  # and the line of column names


def test_no_space_for_the_parquet_file_keeps_all_rows(onnx_path, images, tmp_path, monkeypatch):
    output = tmp_path / "out.parquet"

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet_module, "write_parquet", fail)
        with pytest.raises(TltoolsError, match="no space left"):
            run_job(Job(onnx_path, [images], output, device="cpu"))
    assert num_rows(tmp_path / "out.parquet.part") == 30
    assert run_job(Job(onnx_path, [images], output, device="cpu")).num_kept == 30
    assert [row["label"] for row in content(output)] == ["blue"] * 10 + ["green"] * 10 + [
        "red"
    ] * 10


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_synced_before_the_file_gets_its_name(
    suffix, onnx_path, images, tmp_path, monkeypatch
):
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(handle):
        info = os.fstat(handle)
        names = [path.name for path in tmp_path.rglob("*") if os.path.samestat(path.stat(), info)]
        folder = os.path.samestat(tmp_path.stat(), info)
        events.append(f"sync {'folder' if folder else names[0]}")
        fsync(handle)

    def recorded_replace(self, target):
        events.append(f"rename to {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    output = tmp_path / f"out{suffix}"
    run_job(Job(onnx_path, [images], output, device="cpu"))
    renamed = events.index(f"rename to {output.name}")
    assert re.fullmatch(
        rf"sync out{suffix}(\.part)?",
        next(
            event
            for event in reversed(events[:renamed])
            if event != "sync folder" and not event.endswith(".json")
        ),
    )
    assert "sync folder" in events[renamed:]


def test_rows_and_record_are_synced_periodically(onnx_path, images, tmp_path, monkeypatch):
    seen = []
    sync = UnfinishedOutput.sync
    monkeypatch.setattr(writer_module, "SYNC_EVERY_S", 0.0)
    monkeypatch.setattr(
        UnfinishedOutput, "sync", lambda self: (seen.append(self.num_bytes), sync(self))
    )
    stop(onnx_path, [images], tmp_path / "out.csv", 20)
    assert len(seen) >= 19
    assert seen == sorted(set(seen))


# ------------------------------------------------------------------ decoders that crash, hang

DANGEROUS = """
import ctypes, os, signal, sys, time
kinds = dict(pair.split("=") for pair in sys.argv.pop(1).split(";") if pair)
stat, first = os.stat, os.getpid()
def dangerous(path, *args, **options):  # the first thing that is done with an image
    kind = kinds.get(os.path.basename(path)) if isinstance(path, (str, os.PathLike)) else None
    crash = kind == "crash" and os.getpid() != first
    if crash or (kind == "model" and "onnxruntime" in sys.modules):
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
    if kind == "abort":
        os.abort()
    if kind == "hang":
        open(str(path) + ".hangs", "w").close()
        time.sleep(1000)
    if kind == "blocked":  # in C, with Python's lock held
        ctypes.PyDLL(None).sleep(1000)
    return stat(path, *args, **options)
os.stat = dangerous
from tltools.cli import main
main()
"""


def run_dangerous(kinds: dict[str, str], *args, lines: bytes | None = None, cwd=None):
    text = ";".join(f"{name}={kind}" for name, kind in kinds.items())
    done = subprocess.run(
        [sys.executable, "-c", DANGEROUS, text, "classify", *map(str, args)],
        capture_output=True,
        input=lines,
        timeout=120,
        cwd=cwd,
    )
    return SimpleNamespace(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


@pytest.fixture
def reference(onnx_path, images, tmp_path):
    """The rows of `images` by name."""
    run_job(Job(onnx_path, [images], tmp_path / "reference.csv", device="cpu"))
    return read_rows(tmp_path / "reference.csv")


def read_rows(path: Path) -> dict[str, str]:
    text = path.read_text()
    return {line.partition(",")[0]: line for line in text.splitlines()[1:]}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_image_that_crashes_or_hangs_its_decoder_costs_only_its_own_row(
    suffix, onnx_path, images, reference, tmp_path
):
    kinds = {"c1.png": "crash", "c2.png": "abort", "h.png": "hang", "b.png": "blocked"}
    places = ["blue/c1.png", "blue/c2.png", "green/h.png", "red/b.png", "red/c1.png"]
    for place in places:
        shutil.copy(images / "red/0.png", images / place)
    output = tmp_path / f"out{suffix}"
    args = (images, "--model", onnx_path, "--device", "cpu", "-o", output)
    result = run_dangerous(kinds, *args, "--image-timeout", 1)
    assert result.code == 0, result.err
    assert "35 rows" in result.err
    assert "(5 with an error; percentages are of the other " in result.err
    if suffix == ".parquet":
        rows = content(output)
        assert len(rows) == 35
        errors = {row["path"]: row["error"] for row in rows if row["error"]}
    else:
        found = read_rows(output)
        assert {name: row for name, row in found.items() if name not in places} == reference
        errors = {name: row.rpartition(",")[2] for name, row in found.items() if name in places}
    assert errors == {
        "blue/c1.png": "cannot read image c1.png: the decoder crashed (SIGSEGV)",
        "blue/c2.png": "cannot read image c2.png: the decoder crashed (SIGABRT)",
        "green/h.png": "cannot read image h.png: the decoder took longer than 1 s for an image",
        "red/b.png": "cannot read image b.png: the decoder took longer than 1 s for an image",
        "red/c1.png": "cannot read image c1.png: the decoder crashed (SIGSEGV)",
    }


def test_a_crash_with_overwrite_is_recovered_from(onnx_path, images, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("old")
    args = (images, "--model", onnx_path, "--device", "cpu", "-o", output, "--overwrite")
    result = run_dangerous({"5.png": "crash"}, *args)
    assert result.code == 0
    assert num_rows(output) == 30
    assert result.err.count("the error is recorded in its row") == 3


def test_a_model_that_crashes_ends_the_job_with_an_error(onnx_path, images, tmp_path):
    args = (images, "--model", onnx_path, "--device", "cpu", "-o", tmp_path / "out.csv")
    result = run_dangerous({"5.png": "model"}, *args)
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert last.startswith("error: the job crashed (SIGSEGV), 3 times at the same place")
    assert not (tmp_path / "out.csv").exists()


def test_ctrl_c_ends_a_job_whose_decoder_hangs(onnx_path, images, tmp_path):
    output = tmp_path / "out.csv"
    args = (images, "--model", onnx_path, "--device", "cpu", "-o", output, "--workers", 1)
    process = start(args, command=(sys.executable, "-c", DANGEROUS, "9.png=hang", "classify"))
    while process.poll() is None and not list(images.glob("*/*.hangs")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert result.code == 130
    assert "stopped by Ctrl-C" in result.err
    assert run_job(Job(onnx_path, [images], output, device="cpu")).num_images == 30


def test_a_crash_before_the_first_image_ends_the_job(onnx_path, images, tmp_path):
    shutil.copy(onnx_path, tmp_path / "model.onnx")
    args = (images, "--model", tmp_path / "model.onnx", "-o", tmp_path / "out.csv")
    result = run_dangerous({"model.onnx": "crash"}, *args)
    assert result.code == 1
    assert "before the first image, so no image is at fault" in result.err


def test_a_crash_costs_only_its_own_row_on_standard_output_too(onnx_path, images, reference):
    args = (images, "--model", onnx_path, "--device", "cpu", "-o", "-")
    result = run_dangerous({"5.png": "crash"}, *args)
    assert result.code == 0, result.err
    _, *rows = result.out.splitlines()
    found = {row.partition(",")[0]: row for row in rows}
    assert len(found) == 30
    for name, row in found.items():
        if name.endswith("/5.png"):
            assert row.endswith("cannot read image 5.png: the decoder crashed (SIGSEGV)")
        else:
            assert row == reference[name]


@pytest.mark.parametrize("piped", [False, True])
def test_a_list_survives_a_crash_from_a_file_and_through_a_pipe(piped, onnx_path, images, tmp_path):
    lines = tmp_path / "list"
    lines.write_text("".join(f"red/{number}.png\n" for number in range(10)))
    output = tmp_path / "out.csv"
    args = ("-", "--model", onnx_path, "--device", "cpu", "-o", output)
    if piped:
        result = run_dangerous({"5.png": "crash"}, *args, lines=lines.read_bytes(), cwd=images)
        assert result.code == 0, result.err
    else:
        with lines.open("rb") as file:
            done = subprocess.run(
                [sys.executable, "-c", DANGEROUS, "5.png=crash", "classify", *map(str, args)],
                stdin=file,
                capture_output=True,
                cwd=images,
                timeout=60,
            )
        assert done.returncode == 0, done.stderr
    assert num_rows(output) == 10


# ------------------------------------------------------------------- every image accounted


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl", "out.parquet", "-"])
def test_errors_are_written_to_a_separate_file(output, onnx_path, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (images / "red/4.png").write_bytes(b"no image")
    (images / "blue/a,b\n.png").write_bytes(b"")
    errors = tmp_path / "errors.csv"
    summary = run_job(Job(onnx_path, [images], Path(output), device="cpu", errors_to=errors))
    with errors.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "error"]
    assert [name for name, _ in rows] == ["blue/a,b\n.png", "red/4.png"]
    assert all(reason.startswith("cannot read image") for _, reason in rows)
    assert summary.num_failed == 2


def test_the_error_file_includes_errors_from_before_a_stop(onnx_path, images, tmp_path):
    (images / "blue/1.png").write_bytes(b"")
    (images / "red/4.png").write_bytes(b"no image")
    errors = tmp_path / "errors.csv"
    run_job(Job(onnx_path, [images], tmp_path / "whole.csv", device="cpu", errors_to=errors))
    expected = errors.read_bytes()
    errors.unlink()
    stop(onnx_path, [images], tmp_path / "out.csv", 12, errors_to=errors)
    assert not errors.exists()
    run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu", errors_to=errors))
    assert errors.read_bytes() == expected


def test_an_unsuitable_error_file_is_refused(onnx_path, images, tmp_path):
    errors = tmp_path / "errors.csv"
    errors.write_text("precious")
    args = (onnx_path, [images], tmp_path / "out.csv")
    with pytest.raises(ConfigError, match=r"errors\.csv exists; .*`errors_to=`"):
        run_job(Job(*args, device="cpu", errors_to=errors))
    with pytest.raises(ConfigError, match="both"):
        run_job(Job(*args, device="cpu", errors_to=tmp_path / "out.csv"))
    with pytest.raises(ConfigError, match="is a folder"):
        run_job(Job(*args, device="cpu", errors_to=tmp_path))
    assert errors.read_text() == "precious"
    run_job(Job(*args, device="cpu", errors_to=errors, overwrite=True))
    assert errors.read_text() == "path,error\n"


@pytest.mark.parametrize(("bad", "code"), [(True, 1), (False, 0)])
def test_strict_turns_a_failed_image_into_exit_code_1(bad, code, onnx_path, images, tmp_path):
    if bad:
        (images / "red/4.png").write_bytes(b"no image")
    output = tmp_path / "out.csv"
    args = [images, "--model", onnx_path, "--device", "cpu", "-o", output, "--strict"]
    result = finish(start(args))
    assert result.code == code
    assert num_rows(output) == 30
    assert ("--strict" in result.err) == bad


# ------------------------------------------------------------------------------ spreadsheets


def test_fields_that_look_like_formulas_are_escaped_on_request(onnx_path, images, tmp_path):
    names = ["+1.png", "-1.png", "=1+1.png", "@x.png", "\tx.png", "\rx.png", "x=1.png"]
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in names:
        shutil.copy(images / "red/0.png", folder / name)
    (folder / "-1.png").write_bytes(b"")

    def paths(output, **options):
        run_job(Job(onnx_path, [folder], output, device="cpu", **options))
        with output.open(newline="") as file:
            return sorted(row[0] for row in list(csv.reader(file))[1:])

    assert paths(tmp_path / "plain.csv") == sorted(names)
    expected = sorted(name if name[0] == "x" else "'" + name for name in names)
    assert paths(tmp_path / "sheet.csv", spreadsheet=True) == expected
    stop(onnx_path, [folder], tmp_path / "stopped.csv", 4, spreadsheet=True)
    assert paths(tmp_path / "stopped.csv", spreadsheet=True) == expected
    assert content(tmp_path / "stopped.csv") == content(tmp_path / "sheet.csv")
    with pytest.raises(ConfigError, match=r"out\.jsonl` has no spreadsheet mode; choose \.csv, or"):
        run_job(Job(onnx_path, [folder], tmp_path / "out.jsonl", device="cpu", spreadsheet=True))


def test_spreadsheets_show_names_in_every_language(onnx_path, images, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    shutil.copy(images / "red/0.png", folder / "Größe.png")
    (folder / "空.png").write_bytes(b"")
    output, errors = tmp_path / "out.csv", tmp_path / "errors.csv"
    args = [onnx_path, [folder], output]
    run_job(Job(*args, device="cpu", spreadsheet=True, errors_to=errors))
    for path, names in ((output, ["Größe.png", "空.png"]), (errors, ["空.png"])):
        assert path.read_bytes().startswith(b"\xef\xbb\xbfpath,")
        with path.open(encoding="utf-8-sig", newline="") as file:
            assert [row["path"] for row in csv.DictReader(file)] == names
    assert [row.path for row in read_csv(output)[1]] == ["Größe.png", "空.png"]
    stop(*args[:2], tmp_path / "stopped.csv", 1, spreadsheet=True)
    run_job(Job(*args[:2], tmp_path / "stopped.csv", device="cpu", spreadsheet=True))
    assert content(tmp_path / "stopped.csv") == content(output)
    plain = tmp_path / "plain.csv"
    run_job(Job(onnx_path, [folder], plain, device="cpu"))
    assert plain.read_bytes().startswith(b"path,")


def test_escaped_labels_are_counted_under_their_own_names(make_onnx, make_card, images, tmp_path):
    classes = ("=red", "+green", "blue")
    model = make_onnx(tmp_path / "model.onnx", make_card(classes=classes).to_json())
    output = tmp_path / "out.csv"
    stop(model, [images], output, 25, spreadsheet=True)
    summary = run_job(Job(model, [images], output, device="cpu", spreadsheet=True))
    assert summary.counts == {"=red": 10, "+green": 10, "blue": 10}
    assert output.read_text().count(",'=red,") == 10


def kill_many(num_kills: int, seed: int = 0) -> None:
    """Kill so many jobs at random moments, and compare what they come to."""
    work = Path(tempfile.mkdtemp())
    from conftest import make_card, make_onnx

    card = make_card.__wrapped__()()
    model = make_onnx.__wrapped__()(work / "tiny.onnx", card.to_json())
    folder = link_many(work / "images", 20_000)
    for suffix in SUFFIXES:
        run_job(Job(model, [folder], work / f"whole{suffix}", device="cpu"))
    rng = random.Random(seed)  # noqa: S311
    killed = dict.fromkeys(SUFFIXES, 0)
    while sum(killed.values()) < num_kills:
        suffix = min(SUFFIXES, key=killed.__getitem__)
        output = work / f"out{suffix}"
        args = [folder, "--model", model, "--device", "cpu", "-o", output]
        left = num_kills - sum(killed.values())
        killed[suffix] += kill_until_done(args, output, rng, max_kills=min(left, 25))
        assert content(output) == content(work / f"whole{suffix}")
        output.unlink()
        print(killed, flush=True)
    shutil.rmtree(work)


if __name__ == "__main__":
    kill_many(*map(int, sys.argv[1:]))
