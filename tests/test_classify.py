import io
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CLASSES, COLORS, color_logits, save_image
from PIL import Image

import tltools
from tltools.classify import ImageRef, Job, Plan, classify, list_images, run_job
from tltools.classify import listing as listing_module
from tltools.classify.inputs import list_portions
from tltools.data.suffixes import IMAGE_SUFFIXES
from tltools.errors import ConfigError, DataError, DeviceError
from tltools.progress import Silent
from tltools.runtime import load_predictor, pipeline

PLANS = [
    Plan(name, workers, batch_size)
    for name in ("fused", "ahead")
    for workers in (1, 3)
    for batch_size in (1, 2, 7, 32)
]


@pytest.fixture(scope="module")
def predictor(onnx_path):
    return load_predictor(onnx_path, device="cpu", threads=1)


def expected_probabilities(path: Path) -> np.ndarray:
    """The tiny model's prediction for an image, computed here in float64."""
    with Image.open(path) as image:
        logits = color_logits(np.asarray(image.convert("RGB"))[None])[0]
    return np.exp(logits) / np.exp(logits).sum()


def names(images) -> list[str]:
    return [image.name for image in images]


# ---------------------------------------------------------------------------------- images


def test_a_folder_is_listed_recursively_in_order_with_relative_names(images):
    expected = [f"{color}/{number}.png" for color in sorted(COLORS) for number in range(10)]
    listed = list(list_images([images]))
    assert names(listed) == expected
    assert [Path(image.place) for image in listed] == [images / name for name in expected]


@pytest.mark.parametrize("spelling", [".", "./", "red", "red/", "../images", "red/.."])
def test_names_are_relative_regardless_of_how_the_folder_is_spelled(images, monkeypatch, spelling):
    monkeypatch.chdir(images)
    listed = list(list_images([Path(spelling)]))
    root = Path(spelling)
    assert names(listed) == [Path(image.place).relative_to(root).as_posix() for image in listed]
    assert all(Path(image.place).exists() for image in listed)


def test_names_from_several_inputs_stay_different(images):
    listed = names(list_images([images / "red", images / "blue", images / "red/3.png"]))
    assert len(listed) == 21
    assert listed[0] == (images / "red/0.png").as_posix()
    assert listed[10] == (images / "blue/0.png").as_posix()
    assert listed[20] == (images / "red/3.png").as_posix()


def test_a_single_file_is_classified_whatever_its_suffix(images, tmp_path):
    path = tmp_path / "image.dat"
    shutil.copy(images / "red/0.png", path)
    assert list(list_images([path])) == [ImageRef(path.as_posix(), str(path))]


def test_a_list_is_relative_to_its_own_folder(images):
    lines = images / "some.txt"
    lines.write_bytes(b"\xef\xbb\xbfred/1.png\r\n\n  \nmissing.png\nblue/../red/2.png")
    listed = list(list_images([lines]))
    assert names(listed) == ["red/1.png", "missing.png", "blue/../red/2.png"]
    assert Path(listed[0].place) == images / "red/1.png"


def test_a_list_may_contain_absolute_paths(images, tmp_path):
    lines = tmp_path / "elsewhere.txt"
    lines.write_text(f"{images / 'red/1.png'}\n")
    assert [Path(image.place) for image in list_images([lines])] == [images / "red/1.png"]


def test_a_dash_reads_a_list_from_standard_input(images, monkeypatch):
    monkeypatch.chdir(images)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"red/1.png\nb.png\n")))
    assert list(list_images([Path("-")])) == [
        ImageRef("red/1.png", "red/1.png"),
        ImageRef("b.png", "b.png"),
    ]


def test_listing_is_lazy(images):
    listed = list_images([images])
    assert next(listed).name == "blue/0.png"
    for path in (images / "red").iterdir():
        path.unlink()  # not reached yet, as blue and green come first
    assert names(listed) == [f"{c}/{n}.png" for c in ("blue", "green") for n in range(10)][1:]


def test_the_chapter_lists_the_suffixes_of_images():
    chapter = Path(tltools.__file__).parent / "docs" / "classify.md"
    listed = re.findall(
        r"`(\.\w+)`", chapter.read_text(encoding="utf-8").partition("by suffix, ")[2]
    )
    assert set(listed[: len(IMAGE_SUFFIXES)]) == IMAGE_SUFFIXES


def test_a_run_is_not_classified(cnn_run, cnn_exports, tmp_path):
    with pytest.raises(DataError, match=r"cnn is a run, not images; export it with tltools export"):
        list_images([cnn_run])
    with pytest.raises(DataError, match=r"no images in \S+/runs \(it is a folder of runs\); name"):
        next(list_images([cnn_run.parent]))
    with pytest.raises(DataError, match=r"no images in \S+ \(it is a folder of exports\); name"):
        next(list_images([cnn_run.parents[1] / "exports"]))


def test_a_missing_input_is_an_immediate_error(images):
    with pytest.raises(DataError, match="nowhere does not exist"):
        list_images([images, Path("nowhere")])


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match=r"no images in \S+; name others .*docs classify"):
        next(list_images([tmp_path]))
    with pytest.raises(DataError, match="no images in nothing"):
        next(list_images([]))


def test_the_number_of_images_is_known_before_they_are_read(images):
    lines = images / "some.txt"
    lines.write_text("".join(f"{number}.png\n" for number in range(2500)))
    portions = list(list_portions([images, lines, images / "red/0.png"]))
    assert [portion.num_images for portion in portions] == [10, 10, 10, 1024, 1024, 452, 1]
    for portion in portions:
        assert len(list(portion.images)) == portion.num_images


# ---------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_gives_the_same_predictions(predictor, images, plan):
    listed = list(list_images([images]))
    predictions = list(classify(predictor, iter(listed), plan=plan))
    assert names(predictions) == names(listed)
    for image, prediction in zip(listed, predictions, strict=True):
        assert prediction.label == Path(image.place).parent.name
        assert prediction.error is None
        assert prediction.confidence == prediction.probabilities.max()
        expected = expected_probabilities(Path(image.place))
        np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_unreadable_images_get_error_rows_and_spare_their_neighbors(predictor, images, plan):
    broken = {"red/0.png": b"", "red/4.png": b"no image", "green/9.png": None, "red/5.png": b"\0"}
    for name, content in broken.items():
        if content is None:
            (images / name).unlink()
            (images / name).symlink_to("nowhere")
        else:
            (images / name).write_bytes(content)
    listed = list(list_images([images]))
    predictions = list(classify(predictor, iter(listed), plan=plan))
    assert names(predictions) == names(listed)
    for image, prediction in zip(listed, predictions, strict=True):
        if prediction.name in broken:
            assert (prediction.label, prediction.confidence) == (None, None)
            assert prediction.probabilities is None
            assert prediction.error
        else:
            expected = expected_probabilities(Path(image.place))
            np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["fused", "ahead"])
def test_unreadable_images_never_reach_the_model(card, tmp_path, name):
    def refuse(_images):
        pytest.fail("the model was called without an image")

    predictor = SimpleNamespace(
        card=card,
        device="cpu",
        __call__=refuse,
        new_batch=lambda num: np.empty(card.preprocessing.shape(num), np.uint8),
    )
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").touch()
    predictions = list(classify(predictor, list_images([tmp_path]), plan=Plan(name, 1, 2)))
    assert [prediction.label for prediction in predictions] == [None, None]


@pytest.mark.parametrize("plan", [Plan("fused", 2, 2), Plan("ahead", 2, 4)], ids=str)
def test_images_are_read_only_a_little_ahead(predictor, images, plan):
    consumed = 0

    def endless():
        nonlocal consumed
        while True:
            consumed += 1
            yield ImageRef.of_file(images / "red/0.png", name=str(consumed))

    # Tasks in hand, the one that is being yielded and the one that is being made. They are largest
    # where images are quick and the main process is late.
    most = (pipeline.TASKS_AHEAD * plan.workers + 2) * pipeline.FUSED_TASK
    predictions = classify(predictor, endless(), plan=plan)
    for number in range(1, 2 * most):
        assert next(predictions).name == str(number)
        assert consumed - number <= most
    predictions.close()


def test_a_failing_model_ends_the_job(card, images):
    class Failing:
        device = "cpu"

        def __init__(self):
            self.card = card

        def __call__(self, _images):
            raise DeviceError("out of memory")

        def new_batch(self, num_images):
            return np.empty(card.preprocessing.shape(num_images), np.uint8)

    for plan in (Plan("fused", 2, 2), Plan("ahead", 2, 4)):
        with pytest.raises(DeviceError, match="out of memory"):
            list(classify(Failing(), list_images([images]), plan=plan))


# --------------------------------------------------------------------------------------- job


class Recorded(Silent):
    """Progress that keeps what it is told, and may stop the job as Ctrl-C would."""

    def __init__(self, stop_after: int | None = None):
        self.total: int | None = -1
        self.advanced = 0
        self.warnings: list[str] = []
        self._stop_after = stop_after

    @contextmanager
    def bar(self, description, total, unit="images"):
        self.total = total
        yield self

    def advance(self, amount=1, note=""):
        self.advanced += amount
        if self.advanced == self._stop_after:
            raise KeyboardInterrupt

    def warn(self, message):
        self.warnings.append(message)


def test_a_job_writes_every_row_and_a_summary(onnx_path, images, tmp_path):
    (images / "red/4.png").write_bytes(b"no image")
    (images / "blue/7.png").write_bytes(b"")
    (images / "blue/8.png").write_bytes(b"")
    progress = Recorded()
    output = tmp_path / "deep/er/predictions.csv"
    summary = run_job(Job(onnx_path, [images], output, device="cpu"), progress=progress)
    assert summary.counts == {"red": 9, "green": 10, "blue": 8}
    assert list(summary.counts) == list(CLASSES)
    assert (summary.num_images, summary.num_failed) == (30, 3)
    assert list(summary.errors.values()) == [2, 1]
    assert not any(".png" in reason for reason in summary.errors)
    assert summary.choice.device == "cpu"
    assert summary.output == output
    assert summary.seconds > 0
    assert summary.images_per_s == pytest.approx(30 / summary.seconds)
    assert (progress.total, progress.advanced, progress.warnings) == (30, 30, [])
    assert summary.unlisted == ()
    assert len(output.read_text().splitlines()) == 31
    assert list(output.parent.iterdir()) == [output]


def test_a_folder_that_cannot_be_listed_is_skipped_and_named(
    onnx_path, images, tmp_path, monkeypatch
):
    scandir = os.scandir

    def refuse_green(path):
        if path.name == "green":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_green)
    progress = Recorded()
    output = tmp_path / "predictions.csv"
    summary = run_job(Job(onnx_path, [images], output, device="cpu"), progress=progress)
    assert summary.counts == {"red": 10, "green": 0, "blue": 10}
    assert (summary.num_images, summary.num_failed, progress.total) == (20, 0, 20)
    (reason,) = summary.unlisted
    assert f"cannot list the folder {images / 'green'}: permission denied" in reason
    assert progress.warnings == [f"skipped: {reason}"]


def test_every_folder_is_listed_once(onnx_path, images, tmp_path, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scandir(path))[1])
    progress = Recorded()
    run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"), progress=progress)
    assert progress.total == 30
    expected = [images, *(images / name for name in ("blue", "green", "red"))]
    assert [path for path in listed if path in expected] == expected


def test_errors_that_differ_only_in_numbers_are_counted_together(onnx_path, images, tmp_path):
    content = (images / "red/0.png").read_bytes()
    for number in range(5):
        (images / f"red/{number}.png").write_bytes(content[: len(content) - 100 - number])
    summary = run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"))
    assert summary.num_failed == 5
    assert len(summary.errors) == 1


def test_an_interrupted_job_keeps_its_complete_rows(onnx_path, images, tmp_path):
    output = tmp_path / "predictions.csv"
    progress = Recorded(stop_after=12)
    with pytest.raises(KeyboardInterrupt):
        run_job(Job(onnx_path, [images], output, device="cpu"), progress=progress)
    part = tmp_path / "predictions.csv.part"
    assert not output.exists()
    assert progress.warnings == [f"stopped: 12 complete rows are kept in {part}"]
    run_job(Job(onnx_path, [images], tmp_path / "whole.csv", device="cpu"))
    whole = (tmp_path / "whole.csv").read_text().splitlines(keepends=True)
    assert part.read_text() == "".join(whole[:13])


def test_a_part_without_a_record_is_refused_unless_overwritten(onnx_path, images, tmp_path):
    part = tmp_path / "predictions.csv.part"
    part.write_text("old\n" * 1000)
    output = tmp_path / "predictions.csv"
    with pytest.raises(
        ConfigError, match=r"cannot resume .*csv\.part: its record .*is missing.*`overwrite=True`"
    ):
        run_job(Job(onnx_path, [images], output, device="cpu"))
    assert part.read_text() == "old\n" * 1000
    run_job(Job(onnx_path, [images], output, device="cpu", overwrite=True))
    assert not part.exists()
    assert len(output.read_text().splitlines()) == 31


def test_an_existing_output_is_refused_before_any_work(tmp_path):
    output = tmp_path / "predictions.csv"
    output.write_text("precious")
    with pytest.raises(ConfigError, match=r"exists; .*`overwrite=True`.*`output=`"):
        run_job(Job(tmp_path / "none.onnx", [tmp_path], output))
    with pytest.raises(DataError, match=r"missing\.jpg does not exist"):  # the likelier mistake
        run_job(Job(tmp_path / "none.onnx", [tmp_path / "missing.jpg"], output))
    assert output.read_text() == "precious"


def test_an_existing_output_is_replaced_on_request(onnx_path, images, tmp_path):
    output = tmp_path / "predictions.csv"
    output.write_text("old")
    run_job(Job(onnx_path, [images], output, device="cpu", overwrite=True))
    assert len(output.read_text().splitlines()) == 31


def test_a_failed_job_keeps_the_earlier_output(images, onnx_path, tmp_path):
    output = tmp_path / "predictions.csv"
    output.write_text("precious")
    with pytest.raises(KeyboardInterrupt):
        run_job(
            Job(onnx_path, [images], output, device="cpu", overwrite=True),
            progress=Recorded(stop_after=3),
        )
    assert output.read_text() == "precious"


def test_a_job_without_images_leaves_nothing_behind(onnx_path, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        run_job(Job(onnx_path, [tmp_path / "empty"], tmp_path / "out/predictions.csv"))
    assert not (tmp_path / "out").exists()


def test_the_total_is_unknown_if_counting_takes_too_long(onnx_path, images, tmp_path, monkeypatch):
    monkeypatch.setattr(listing_module, "COUNTING_S", 0.0)
    progress = Recorded()
    run_job(Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"), progress=progress)
    assert (progress.total, progress.advanced) == (None, 30)


def test_images_that_were_counted_are_classified(onnx_path, images, tmp_path, monkeypatch):
    now = iter(range(1000))  # seconds: time for the first folder and one more
    monkeypatch.setattr(listing_module, "COUNTING_S", 1.5)
    monkeypatch.setattr(listing_module.time, "perf_counter", lambda: next(now))
    progress = Recorded()
    summary = run_job(
        Job(onnx_path, [images], tmp_path / "out.csv", device="cpu"), progress=progress
    )
    assert (progress.total, progress.advanced) == (None, 30)
    assert summary.counts == {"red": 10, "green": 10, "blue": 10}


def test_a_list_on_standard_input_is_read_once(onnx_path, images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    lines = b"red/1.png\nmissing.png\nblue/2.png\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    summary = run_job(Job(onnx_path, [Path("-")], tmp_path / "out.csv", device="cpu"))
    assert (summary.num_images, summary.num_failed) == (3, 1)


def test_empty_standard_input_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    with pytest.raises(DataError, match="no images in -"):
        run_job(Job(tmp_path / "none.onnx", [Path("-")], tmp_path / "out/predictions.csv"))
    assert not (tmp_path / "out").exists()


def test_standard_input_is_not_read_ahead_to_be_counted(onnx_path, images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    progress = Recorded()

    def lines():
        yield b"red/1.png\n"
        assert progress.total is None  # the bar is there, so the job has begun
        yield b"blue/2.png\n"

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines()))
    summary = run_job(
        Job(onnx_path, [Path("-")], tmp_path / "o.csv", device="cpu"), progress=progress
    )
    assert summary.num_images == 2


def test_buffers_are_reused_by_each_thread_and_never_shared(predictor, images, monkeypatch):
    buffers = []
    load = pipeline.load_image

    def recording(place, rules, *, out, **options):
        buffers.append((threading.get_ident(), out.base.ctypes.data))
        return load(place, rules, out=out, **options)

    monkeypatch.setattr(pipeline, "load_image", recording)
    listed = list(list_images([images])) * 10
    predictions = list(classify(predictor, iter(listed), plan=Plan("fused", 3, 4)))
    for image, prediction in zip(listed, predictions, strict=True):
        assert prediction.label == Path(image.place).parent.name
    threads, addresses = zip(*set(buffers), strict=True)
    assert len(set(threads)) == len(threads) == len(set(addresses))


def test_a_torchscript_export_classifies_the_same(torchscript_path, onnx_path, images, tmp_path):
    for path in (torchscript_path, onnx_path):
        run_job(Job(path, [images], tmp_path / f"{path.suffix[1:]}.csv", device="cpu"))
    rows = [(tmp_path / f"{kind}.csv").read_text().splitlines() for kind in ("pt", "onnx")]
    assert [row.split(",")[:2] for row in rows[0]] == [row.split(",")[:2] for row in rows[1]]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_that_are_not_utf8_are_kept(onnx_path, tmp_path, suffix):
    folder = tmp_path / "images"
    folder.mkdir()
    save_image(folder / "a.png", COLORS["red"], np.random.default_rng(0))
    (folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    Path(os.fsdecode(os.fsencode(folder) + b"/b\xe9.png")).write_bytes(b"")
    output = tmp_path / f"out{suffix}"
    summary = run_job(Job(onnx_path, [folder], output, device="cpu"))
    assert (summary.counts["red"], summary.num_failed) == (1, 1)
    assert rb"caf\udce9.png" in output.read_bytes().replace(rb"\\", b"\\")


def test_classify_runs_without_the_training_packages(onnx_path, images, tmp_path):
    script = f"""
import sys
for name in ("torch", "torchvision", "pandas", "sklearn", "onnx", "matplotlib", "pyarrow"):
    sys.modules[name] = None  # any import of it now fails
from pathlib import Path
from tltools.classify import Job, run_job
output = Path({str(tmp_path / "out.csv")!r})
run_job(Job(Path({str(onnx_path)!r}), [Path({str(images)!r})], output))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 31


def test_a_killed_job_leaves_complete_rows(onnx_path, images, tmp_path):
    # os._exit in the middle is what kill -9 looks like to the file: nothing is flushed or closed.
    script = f"""
import os
from pathlib import Path
from tltools.classify import classify, list_images, open_model, Output
predictor, plan = open_model(Path({str(onnx_path)!r}), device="cpu")
with Output(Path({str(tmp_path / "out.csv")!r}), predictor.card.classes) as output:
    images = list_images([Path({str(images)!r})])
    for number, row in enumerate(classify(predictor, images, plan=plan), start=1):
        output.write(row)
        if number == 9:
            os._exit(1)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    lines = (tmp_path / "out.csv.part").read_text().splitlines(keepends=True)
    assert len(lines) == 10
    assert lines[-1].endswith("\n")


def test_real_images_are_classified_the_same_by_every_plan(predictor, shared):
    folder = shared / "data/hymenoptera/val/ants"
    listed = list(list_images([folder]))
    fused = list(classify(predictor, iter(listed), plan=Plan("fused", 2, 2)))
    ahead = list(classify(predictor, iter(listed), plan=Plan("ahead", 2, 16)))
    assert [p.label for p in fused] == [p.label for p in ahead]
    for one, other in zip(fused, ahead, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
