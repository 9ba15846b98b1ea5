"""The Ray engine, on two nodes on this machine; skipped without Ray."""

import hashlib
import os
import shutil
import sys
from contextlib import closing, contextmanager

import msgspec
import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from conftest import COLORS, Recorder, run_tltools, save_image
from msgspec import structs

from tltools.classify import Job, run_job
from tltools.classify.identity import JobIdentity, PartsRecord
from tltools.classify.listing import NamesDigest
from tltools.classify.tally import Tally
from tltools.data.folders import make_output_folder
from tltools.decisions import ClassThreshold
from tltools.errors import ConfigError, DataError, DeviceError, TltoolsError
from tltools.progress import SILENT
from tltools.ray import actor as actor_module
from tltools.ray import engine as engine_module
from tltools.ray.actor import ActorSettings, ClassifyActor
from tltools.ray.engine import run_ray_job
from tltools.ray.job import RayJob
from tltools.ray.listing import PartTask, part_tasks
from tltools.ray.parts import MARK, Manifest, PartsFolder
from tltools.ray.updates import PartsTally, PartUpdate

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of many kinds
SIZE = 8
"""Of the tests' parts."""


# -------------------------------------------------------------------------- without a cluster


def report(number, before, after, **fields):
    return PartUpdate(number, is_done=True, before=before, after=after, counts={"red": 2}, **fields)


@pytest.fixture
def result():
    return PartsTally(Tally(None, spreadsheet=False), SILENT)


START = NamesDigest().digest()


def test_parts_in_any_order_form_a_complete_output(result):
    result.add(report(1, b"1", b"2"))
    result.add(PartUpdate(2, is_end=True, before=b"2", after=b"2"))
    result.add(report(0, START, b"1", failures=(("a.png", "cannot read image a.png: no"),)))
    result.add(report(1, b"1", b"2"))  # a part that was done twice, as when a worker was lost late
    result.check_whole()
    assert (result.num_rows, result.tally.counts["red"]) == (5, 4)
    assert result.tally.reasons == {"no": 1}


def test_parts_of_two_listings_are_refused(result):
    result.add(report(0, START, b"1"))
    with pytest.raises(TltoolsError, match="part 1 is not from the same listing"):
        result.add(report(1, b"other", b"2"))


@pytest.mark.parametrize("end", [None, (1, b"1"), (2, b"1"), (1, START)])
def test_a_missing_part_is_detected(result, end):
    result.add(report(0, START, b"1"))
    if end is not None:
        result.add(PartUpdate(end[0], is_end=True, before=end[1], after=end[1]))
    if end == (1, b"1"):
        result.check_whole()
        return
    with pytest.raises(TltoolsError, match="Ray lost some parts"):
        result.check_whole()


def test_the_listing_is_the_same_with_and_without_finished_parts(images):
    every = list(part_tasks([images], SIZE, frozenset()))
    assert [len(task.images) for task in every] == [8, 8, 8, 6, 0]
    assert [task.before for task in every[1:]] == [task.after for task in every[:-1]]
    some = list(part_tasks([images], SIZE, frozenset({0, 2})))
    assert some == [every[1], every[3], every[4]]
    names = [os.fsdecode(name) for task in every for _, name in task.images]
    assert names == sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))


def test_what_the_listing_leaves_out_is_told_as_by_a_local_job(images):
    (images / "@eaDir").mkdir()
    make_output_folder(images / "zout")
    (images / "labels.txt").write_text("left out")
    shutil.copy(images / "red/0.png", images / "photo")
    told = Recorder()
    result = PartsTally(Tally(None, spreadsheet=False), told)
    tasks = list(part_tasks([images], SIZE, frozenset()))
    for task in [*tasks, *tasks]:  # a listing that is restarted
        notes = {"unlisted": task.unlisted, "skipped": task.skipped, "left_out": task.left_out}
        result.add(PartUpdate(task.number, is_end=not task.images, **notes))
    system, output, image = sorted(told.said)
    assert system == f"skipped what the system made, such as {images / '@eaDir'}"
    assert image.startswith(f"skipped: {images / 'photo'} is an image, but names without a suffix")
    assert output == f"skipped what tltools wrote, such as {images / 'zout'}"
    assert result.left_out == {".txt": 1, "": 1}
    assert len(result.unlisted) == 1


def test_parts_that_nothing_proves_to_be_ours_are_not_removed(onnx_path, images, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "part-000000.parquet").write_text("precious")
    (folder / MARK).write_text("")  # as Spark writes it
    identity = JobIdentity(RayJob(onnx_path, [images], folder, overwrite=True), overwrite=True)
    parts = PartsFolder(folder)
    with closing(parts), pytest.raises(ConfigError, match="contains parts, but no record of a job"):
        parts.open(identity, anew=True)
    assert (folder / "part-000000.parquet").read_text() == "precious"


def test_an_error_in_the_listing_is_raised(tmp_path):
    task = next(part_tasks([tmp_path], SIZE, frozenset()))
    assert isinstance(task, PartTask)
    assert task.failure is not None
    assert task.failure[0] == "DataError"
    assert "no images" in task.failure[1]


@pytest.fixture
def actor(onnx_path, card, images, tmp_path, monkeypatch):
    """An actor in this process."""
    (tmp_path / "out").mkdir()
    record = PartsRecord(
        model=str(onnx_path),
        model_sha256=hashlib.sha256(onnx_path.read_bytes()).hexdigest(),
        inputs=(str(images),),
        classes=tuple(card.classes),
        size=card.preprocessing.size,
        resize=card.preprocessing.resize,
        device="cpu",
        provider="CPUExecutionProvider",
        plan="fused",
        batch_size=1,
        spreadsheet=False,
        min_confidence=None,
        overwrite=False,
        part_size=SIZE,
        part_format="csv",
    )
    settings = ActorSettings(str(onnx_path), str(tmp_path / "out"), "cpu", 1, 30.0, record)
    made = ClassifyActor(msgspec.msgpack.encode(settings))
    yield made
    made.close()


def test_a_part_is_not_retried_forever(actor, images, tmp_path):
    task = next(part_tasks([images], SIZE, frozenset()))
    part, attempts = tmp_path / "out" / "part-000000.csv", tmp_path / "out" / ".attempts"
    attempts.mkdir()
    for num_lost in range(actor_module.MAX_DEATHS + 2):
        part.unlink(missing_ok=True)
        (attempts / "000000").write_bytes(b"x" * num_lost)
        told = list(actor._run(task))
        assert (
            len(told) == actor_module.NUM_UPDATES + 1
        )  # Ray takes the updates of all attempts for one
        assert part.exists() == (num_lost <= actor_module.MAX_DEATHS)
        assert told[-1].is_done == part.exists()
    kind, message = told[-1].failure
    assert kind == "TltoolsError"
    assert (
        f"part 0 has crashed {actor_module.MAX_DEATHS + 1} workers, and none of its images"
        in message
    )


def test_a_part_is_labeled_by_the_threshold_of_its_record(actor, images, tmp_path):
    record = structs.replace(actor._settings.record, threshold=ClassThreshold("green", 0.0))
    actor._settings = structs.replace(actor._settings, record=record)
    task = next(part_tasks([images], SIZE, frozenset()))
    assert list(actor._run(task))[-1].counts == {"green": SIZE}


def test_a_part_that_cannot_be_written_ends_the_job(actor, images, tmp_path):
    task = next(part_tasks([images], SIZE, frozenset()))
    (tmp_path / "out" / "part-000000.csv").mkdir()
    told = list(actor._run(task))
    assert len(told) == actor_module.NUM_UPDATES + 1
    assert "cannot write" in told[-1].failure[1]


def test_images_that_go_away_end_the_job_without_a_part(actor, images, tmp_path):
    task = next(part_tasks([images], SIZE, frozenset()))
    images.rename(tmp_path / "away")
    told = list(actor._run(task))
    kind, message = told[-1].failure
    assert kind == "UnreachableError"
    assert "disappeared" in message
    assert not (tmp_path / "out" / "part-000000.csv").exists()


def test_without_ray_the_error_names_the_package(onnx_path, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ConfigError, match=r'pip install "ray\[data\]>=2\.60"'):
        run_ray_job(RayJob(onnx_path, [images], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(["-o", "-"], "cannot write to standard output; name a folder", id="stdout"),
        pytest.param(
            ["-o", "out", "--shard", "1/2"], "the cluster distributes the images itself", id="shard"
        ),
        pytest.param(
            ["-o", "out", "--report", "a.html"], "a report needs one predictions file", id="report"
        ),
        pytest.param(["-o", "out.csv"], "named like a file; choose --output out", id="suffix"),
        pytest.param(
            ["-o", "out", "--threads", "2"], "--threads is for --engine local", id="cores"
        ),
        pytest.param(
            ["-o", "out", "--changed-only"], "the ledger is a file on one machine", id="ledger"
        ),
    ],
)
def test_options_that_the_ray_engine_does_not_support_are_refused(
    args, message, onnx_path, images, tmp_path
):
    given = (images, "--model", onnx_path, "--engine", "ray", *args)
    code, _, err = run_tltools("classify", *given, cwd=tmp_path)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_archives_are_refused_with_a_remedy(onnx_path, tmp_path):
    (tmp_path / "images.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"images.tar; unpack it, or use `engine=local`"):
        run_ray_job(RayJob(onnx_path, [tmp_path / "images.tar"], tmp_path / "out"))


def test_parts_of_an_unknown_format_are_refused(onnx_path, images, tmp_path):
    job = RayJob(onnx_path, [images], tmp_path / "out", part_format="txt")
    with pytest.raises(ConfigError, match=r"ends in '\.txt'; choose \.csv, \.jsonl"):
        engine_module._check_files(job, None)


@pytest.mark.parametrize("option", ["--ray-address", "--part-size", "--part-format"])
def test_options_of_the_ray_engine_are_refused_without_it(option, onnx_path, images, tmp_path):
    value = "csv" if option == "--part-format" else "8"
    given = (images, "--model", onnx_path, option, value)
    code, _, err = run_tltools("classify", *given, cwd=tmp_path)
    assert code == 2
    assert f"{option} is for --engine ray" in err


# ------------------------------------------------------------------------------ with a cluster


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """Forty images in three folders; some cannot be read, one kills its decoder."""
    root = tmp_path_factory.mktemp("wild")
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir()
        for number in range(12):
            save_image(root / name / f"{number:02}.png", color, rng)
    (root / "blue" / "bad.png").write_bytes(b"no image")
    shutil.copy(root / "red" / "00.png", root / "red" / os.fsdecode(b"\xff=.png"))
    return root


@pytest.fixture(scope="module")
def reference(wild, onnx_path, tmp_path_factory):
    """The local engine's rows."""
    path = tmp_path_factory.mktemp("reference") / "out.parquet"
    run_job(Job(onnx_path, [wild], path, device="cpu"))
    return pyarrow.parquet.read_table(path).to_pylist()


def rows_of(folder):
    paths = sorted(folder.glob("part-*.parquet"))
    return [row for path in paths for row in pyarrow.parquet.ParquetFile(path).read().to_pylist()]


@contextmanager
def stopping_after(num_parts, monkeypatch, stop):
    """Call `stop` when so many parts are known."""
    add = PartsTally.add

    def counted(self, told):
        add(self, told)
        if len(self.parts) == num_parts and told.is_done:
            stop()

    with monkeypatch.context() as patch:
        patch.setattr(PartsTally, "add", counted)
        yield


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_rows_equal_those_of_the_local_engine(cluster, onnx_path, wild, reference, tmp_path):
    output, errors = tmp_path / "out", tmp_path / "errors.csv"
    recorder = Recorder()
    summary = run_ray_job(
        RayJob(onnx_path, [wild], output, part_size=SIZE, errors_to=errors), progress=recorder
    )
    assert rows_of(output) == reference
    assert recorder.bars == ["Classifying"]
    assert "Ray: up to 2 actors with a core on 2 machines" in recorder.said
    assert (summary.num_images, summary.num_failed) == (len(reference), 1)
    assert sum(summary.counts.values()) == len(reference) - 1
    manifest = msgspec.json.decode((output / MARK).read_bytes(), type=Manifest)
    assert (manifest.num_rows, manifest.num_failed) == (len(reference), 1)
    assert sorted(path.name for path in output.iterdir()) == [
        MARK,
        *(f"part-{number:06d}.parquet" for number in range(manifest.num_parts)),
    ]
    assert errors.read_text().splitlines()[1].startswith("blue/bad.png,cannot read image bad.png")
    # Other readers take the folder for one table, which the mark does not disturb.
    assert pyarrow.dataset.dataset(output).count_rows() == len(reference)
    with pytest.raises(
        ConfigError, match="exists and is complete; replace it with `overwrite=True`"
    ):
        run_ray_job(RayJob(onnx_path, [wild], output))


@pytest.mark.slow
def test_unknown_images_and_distances_equal_those_of_the_local_engine(
    cluster, cnn_exports, wild, tmp_path
):
    model, output = cnn_exports["onnx"].path, tmp_path / "out"
    local = run_job(Job(model, [wild], tmp_path / "local.parquet", device="cpu", unknown=95))
    expected = pyarrow.parquet.read_table(tmp_path / "local.parquet").to_pylist()
    summary = run_ray_job(RayJob(model, [wild], output, part_size=SIZE, unknown=95))
    assert rows_of(output) == expected
    assert summary.num_unknown == local.num_unknown > 0
    assert summary.counts == local.counts
    (bad,) = (row for row in expected if row["path"] == "blue/bad.png")
    assert bad["distance"] is None
    assert all(row["distance"] >= 0 for row in expected if row is not bad)


@pytest.mark.slow
def test_a_job_that_was_killed_before_its_clean_up_is_found_finished(
    cluster, onnx_path, images, tmp_path
):
    (images / "labels.txt").write_text("left out")
    output = tmp_path / "out"
    one = RayJob(onnx_path, [images], output, errors_to=tmp_path / "errors.csv")
    with pytest.raises(KeyboardInterrupt):
        run_ray_job(one, on_summary=lambda _summary: interrupt())
    assert (output / f"{MARK}.part.json").exists()
    first = {path.name: path.read_bytes() for path in output.iterdir() if "json" not in path.name}
    with pytest.raises(ConfigError, match="exists and is complete"):
        run_ray_job(RayJob(onnx_path, [images], output, min_confidence=0.5))
    summary = run_ray_job(one)
    assert (summary.num_images, summary.num_kept) == (30, 30)
    assert summary.counts == {"red": 10, "green": 10, "blue": 10}
    assert summary.left_out == {".txt": 1}
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first


@pytest.mark.slow
def test_a_stopped_job_resumes_with_the_missing_parts(
    cluster, onnx_path, wild, reference, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    options = {"part_size": SIZE, "part_format": "csv", "spreadsheet": True}
    with stopping_after(2, monkeypatch, interrupt), pytest.raises(KeyboardInterrupt):
        run_ray_job(RayJob(onnx_path, [wild], output, **options))
    kept = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert kept
    assert not (output / MARK).exists()
    for changes, message in (
        ({"part_size": 16}, "started with `part_size=8`"),
        ({"part_format": "parquet", "spreadsheet": False}, "`part_format=csv`"),
        ({"min_confidence": 0.5}, "started without `min_confidence=`"),
        ({"threshold": ClassThreshold("red", 0.5)}, "started without `threshold=`"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_ray_job(RayJob(onnx_path, [wild], output, **options | changes))
    summary = run_ray_job(RayJob(onnx_path, [wild], output, spreadsheet=True))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert summary.num_kept >= SIZE
    local = tmp_path / "local.csv"
    run_job(Job(onnx_path, [wild], local, device="cpu", spreadsheet=True))
    lines = [
        line for path in sorted(output.glob("part-*")) for line in path.read_text().splitlines()[1:]
    ]
    assert lines == local.read_text().splitlines()[1:]


@pytest.mark.slow
def test_added_and_removed_images_are_detected(cluster, onnx_path, wild, tmp_path, monkeypatch):
    output, folder = tmp_path / "out", tmp_path / "wild"
    shutil.copytree(wild, folder)
    with stopping_after(2, monkeypatch, interrupt), pytest.raises(KeyboardInterrupt):
        run_ray_job(RayJob(onnx_path, [folder], output, part_size=SIZE))
    (folder / "blue" / "00.png").unlink()
    with pytest.raises(ConfigError, match="images were added or removed"):
        run_ray_job(RayJob(onnx_path, [folder], output))
    assert run_ray_job(RayJob(onnx_path, [folder], output, overwrite=True)).num_kept == 0


@pytest.mark.slow
def test_a_lost_node_and_a_crashing_image_cost_no_other_row(
    cluster, onnx_path, wild, reference, tmp_path, monkeypatch
):
    output, folder = tmp_path / "out", tmp_path / "wild"
    shutil.copytree(wild, folder)
    shutil.copy(folder / "red" / "00.png", folder / "blue" / "crash.png")
    with stopping_after(1, monkeypatch, lambda: cluster.remove_node(cluster.second)):
        summary = run_ray_job(RayJob(onnx_path, [folder], output, part_size=SIZE))
    rows = rows_of(output)
    assert [row for row in rows if row["path"] != "blue/crash.png"] == reference
    assert summary.num_failed == 2
    (row,) = (row for row in rows if row["path"] == "blue/crash.png")
    assert row["error"] == "cannot read image crash.png: the decoder crashed (SIGSEGV)"


@pytest.mark.slow
def test_a_job_that_cannot_run_says_why(cluster, onnx_path, wild, tmp_path):
    with pytest.raises(DeviceError, match="`device=cuda`: the cluster has no GPU"):
        run_ray_job(RayJob(onnx_path, [wild], tmp_path / "out", device="cuda"))
    with pytest.raises(ConfigError, match="no machine of the cluster has the 64 cores"):
        run_ray_job(RayJob(onnx_path, [wild], tmp_path / "out", workers=64))
    with pytest.raises(ConfigError, match=r"not a multiple of the batch size, 3,.* `part_size=9`$"):
        run_ray_job(RayJob(onnx_path, [wild], tmp_path / "out", part_size=8, batch_size=3))
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"contains other files \('mine.txt'\)"):
        run_ray_job(RayJob(onnx_path, [wild], tmp_path / "full", overwrite=True))


@pytest.mark.slow
def test_an_actor_that_cannot_start_ends_the_job(cluster, onnx_path, wild, tmp_path, monkeypatch):
    model = tmp_path / "model.onnx"
    shutil.copy(onnx_path, model)
    opened = engine_module._open

    def open_and_remove(job, *args):
        found = opened(job, *args)
        job.model.unlink()  # so that no other process sees it
        return found

    monkeypatch.setattr(engine_module, "_open", open_and_remove)
    with pytest.raises(TltoolsError, match="all machines of the cluster must see the model"):
        run_ray_job(RayJob(model, [wild], tmp_path / "out", part_size=SIZE))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_unreachable_cluster_is_an_error(onnx_path, wild, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]>=2.60'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address, message in (
        ("127.0.0.1:9", "cannot reach the Ray cluster at 127.0.0.1:9: "),
        ("ray://127.0.0.1:9", "is a Ray Client address"),
    ):
        with pytest.raises(TltoolsError, match=message):
            run_ray_job(RayJob(onnx_path, [wild], tmp_path / "out", address=address))
    with pytest.raises(DataError, match="does not exist"):
        run_ray_job(RayJob(onnx_path, [tmp_path / "nothing"], tmp_path / "out"))
