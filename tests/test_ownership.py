"""Nothing is replaced or removed that another program wrote: content proves it, not a name."""

import json
import os
import re
import shutil

import pytest
from conftest import run_tltools
from test_resume import Stopping, content, read_rows, stop

from tltools.classify import Job, Shard, merge_shards, run_job
from tltools.classify.unfinished import UnfinishedOutput
from tltools.classify.writer import Output
from tltools.errors import ConfigError, DataError, TltoolsError
from tltools.explain import explain_images


class Meddling(Stopping):
    """Progress that does something once five rows are written."""

    def __init__(self, deed):
        super().__init__()
        self._deed = deed

    def advance(self, amount=1, note=""):
        super().advance(amount)
        if self.advanced == 5:
            self._deed()


def job(onnx_path, images, output, **options) -> Job:
    return Job(onnx_path, [images], output, device="cpu", **options)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_resumed_job_does_not_replace_another_file_of_errors(
    overwrite, onnx_path, images, tmp_path
):
    """Neither the one that a stranger made since, nor another one that is named now."""
    output, errors, other = (tmp_path / name for name in ("out.csv", "errors.csv", "other.csv"))
    stop(onnx_path, [images], output, 9, errors_to=errors, overwrite=overwrite)
    other.write_text("precious")
    with pytest.raises(ConfigError, match=r"other\.csv exists; .*`errors_to=`"):
        run_job(job(onnx_path, images, output, errors_to=other))
    assert other.read_text() == "precious"
    if not overwrite:
        errors.write_text("precious")
        with pytest.raises(ConfigError, match=r"errors\.csv exists; .*`errors_to=`"):
            run_job(job(onnx_path, images, output, errors_to=errors))
        assert errors.read_text() == "precious"
        errors.unlink()
    assert run_job(job(onnx_path, images, output, errors_to=errors)).num_kept == 9
    assert errors.read_text() == "path,error\n"


@pytest.mark.parametrize("name", ["out.csv", "errors.csv"])
def test_a_file_that_appears_during_a_job_is_not_replaced(name, onnx_path, images, tmp_path):
    (images / "blue/1.png").write_bytes(b"")
    output, errors = tmp_path / "out.csv", tmp_path / "errors.csv"
    one = job(onnx_path, images, output, errors_to=errors)
    place = tmp_path / name
    with pytest.raises(ConfigError, match=rf"{name} exists"):
        run_job(one, progress=Meddling(lambda: place.write_text("precious")))
    assert place.read_text() == "precious"
    place.unlink()
    errors.unlink(missing_ok=True)
    assert run_job(one).num_kept == 30


@pytest.mark.parametrize("deed", ["replaced", "moved"])
def test_rows_that_another_job_writes_do_not_become_the_output(deed, onnx_path, images, tmp_path):
    output, part = tmp_path / "out.csv", tmp_path / "out.csv.part"
    record = tmp_path / "out.csv.part.json"

    def meddle():
        part.rename(tmp_path / "moved")
        if deed == "replaced":
            part.write_text("of a second job")
            record.write_text(record.read_text().replace("tiny", "second"))

    with pytest.raises(TltoolsError, match=r"out\.csv\.part: it was moved, deleted or replaced wh"):
        run_job(job(onnx_path, images, output), progress=Meddling(meddle))
    assert not output.exists()
    if deed == "replaced":
        assert part.read_text() == "of a second job"
        assert "second" in record.read_text()


def test_a_second_job_keeps_its_record_when_the_first_one_clears_up(onnx_path, images, tmp_path):
    record = tmp_path / "out.csv.part.json"

    def begin_second(_summary):
        record.write_text(record.read_text().replace("tiny", "second"))

    run_job(job(onnx_path, images, tmp_path / "out.csv"), on_summary=begin_second)
    assert "second" in record.read_text()


def test_a_file_that_is_named_like_a_record_stays(onnx_path, images, tmp_path):
    record = tmp_path / "out.csv.part.json"
    record.write_text('{"mine": 1}')
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"part\.json exists, and tltools did not write it"):
            run_job(job(onnx_path, images, tmp_path / "out.csv", overwrite=overwrite))
    assert record.read_text() == '{"mine": 1}'
    assert {path.name for path in tmp_path.iterdir()} == {"images", record.name}
    with Output(tmp_path / "out.csv", ["a"]):
        pass
    assert record.exists()


def test_a_pipe_that_is_named_like_a_record_stops_the_job_and_never_holds_it(
    onnx_path, images, tmp_path
):
    os.mkfifo(tmp_path / "out.csv.part.json")
    with pytest.raises(ConfigError, match=r"part\.json exists, and tltools did not write it"):
        run_job(job(onnx_path, images, tmp_path / "out.csv"))


def test_a_record_that_a_power_failure_emptied_is_replaced(onnx_path, images, tmp_path):
    (tmp_path / "out.csv.part.json").write_bytes(bytes(100))
    run_job(job(onnx_path, images, tmp_path / "out.csv"))
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out.csv"}


def finished_but_not_cleared_up(one: Job) -> None:
    """Run a job that ends abruptly after its output is complete."""

    def leave(_summary):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(one, on_summary=leave)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_only_the_same_job_and_the_same_file_are_found_finished(
    suffix, onnx_path, images, tmp_path
):
    output, errors = tmp_path / f"out{suffix}", tmp_path / "errors.csv"
    one = job(onnx_path, images, output, errors_to=errors)
    finished_but_not_cleared_up(one)
    whole = content(output)
    others = [
        job(onnx_path, images / "red", output, errors_to=errors),
        job(onnx_path, images, output, errors_to=errors, min_confidence=0.5),
        job(onnx_path, images, output, errors_to=tmp_path / "other.csv"),
        job(onnx_path, images, output),
    ]
    for other in others:
        with pytest.raises(ConfigError, match="exists; replace it with `overwrite=True`"):
            run_job(other)
    told = []
    summary = run_job(one, on_summary=told.append)
    assert told == [summary]
    assert (summary.num_images, summary.num_kept, summary.images_per_s) == (30, 30, 0.0)
    assert summary.counts == {"red": 10, "green": 10, "blue": 10}
    assert content(output) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"images", output.name, errors.name}
    with pytest.raises(ConfigError, match="exists"):  # it has been cleared up
        run_job(one)


def test_a_changed_output_is_not_taken_for_a_finished_one(onnx_path, images, tmp_path):
    output = tmp_path / "out.csv"
    finished_but_not_cleared_up(job(onnx_path, images, output))
    shutil.copy(output, tmp_path / "copy.csv")
    (tmp_path / "copy.csv").replace(output)
    with pytest.raises(ConfigError, match="exists"):
        run_job(job(onnx_path, images, output))
    output.unlink()
    assert run_job(job(onnx_path, images, output)).num_kept == 0


def test_an_overwriting_job_is_found_finished_too(onnx_path, images, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("old")
    finished_but_not_cleared_up(job(onnx_path, images, output, overwrite=True))
    assert run_job(job(onnx_path, images, output)).num_kept == 30
    assert len(read_rows(output)) == 30


def test_a_merge_replaces_nothing_but_is_found_finished(onnx_path, images, tmp_path):
    shards = [tmp_path / f"{index}.csv" for index in (1, 2)]
    for index, shard in enumerate(shards, 1):
        run_job(job(onnx_path, images, shard, shard=Shard(index, 2)))
    output = tmp_path / "out.csv"
    merge_shards(shards, output)
    before = output.stat()
    assert merge_shards(shards, output).num_rows == 30
    assert output.stat() == before
    output.write_text("precious")
    with pytest.raises(ConfigError, match=r"out\.csv exists; replace it with `overwrite=True`"):
        merge_shards(shards, output)
    shards[0].write_text("damaged")
    with pytest.raises(ConfigError, match=r"out\.csv exists"):
        merge_shards(shards, output)
    with pytest.raises(DataError, match="has changed"):
        merge_shards(shards, output, overwrite=True)
    assert output.read_text() == "precious"


def test_the_lost_file_is_not_reported_as_kept(onnx_path, images, tmp_path):
    unfinished = UnfinishedOutput(tmp_path / "out.csv")
    unfinished.open()
    unfinished.append(b"rows")
    unfinished.path.unlink()
    unfinished.path.write_text("another")
    with pytest.raises(OSError, match="replaced"):
        unfinished.finish()
    assert unfinished.is_lost
    unfinished.close()
    assert unfinished.path.read_text() == "another"


def test_the_contact_sheet_of_inspect_is_not_an_image_of_the_user(onnx_path, images, tmp_path):
    (images / "labels.txt").write_text("left out")
    ran = run_tltools("inspect", ".", "--json", cwd=images)
    assert json.loads(ran.out)["left_out"] == {".txt": 1}
    ran = run_tltools("inspect", ".", cwd=images)
    assert ran.code == 0
    assert "Left out, without an image suffix: 1 .txt" in " ".join(ran.out.split())
    assert not (images / "inspect.png").exists()
    assert run_tltools("inspect", ".", "--sheet", "inspect.png", cwd=images).code == 0
    assert (images / "inspect.png").exists()
    args = ("--model", onnx_path, "--device", "cpu", "-o", tmp_path / "out.csv")
    ran = run_tltools("classify", ".", *args, cwd=images)
    assert ran.code == 0, ran.err
    assert "skipped what tltools wrote, such as inspect.png" in ran.err
    assert len(read_rows(tmp_path / "out.csv")) == 30
    ran = run_tltools("inspect", ".", cwd=images)
    assert "1 item that tltools wrote skipped: inspect.png" in " ".join(ran.out.split())
    shutil.copy(images / "red/0.png", images / "inspect.png")  # the user's own
    run_tltools("classify", ".", *args, "--overwrite", cwd=images)
    assert len(read_rows(tmp_path / "out.csv")) == 31


# ------------------------------------------------------------------- what a command writes at once


def refused(words, path, cwd):
    """Run a command that must leave a file as it is."""
    before = path.read_bytes()
    ran = run_tltools(*words, cwd=cwd)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
    assert path.read_bytes() == before
    return ran.err


def test_a_contact_sheet_replaces_only_a_contact_sheet(drawn, tmp_path):
    words = ("inspect", drawn, "--sheet")
    (tmp_path / "rows.csv").write_text("path,label\n")
    assert "choose a name with .png" in refused(
        (*words, "rows.csv"), tmp_path / "rows.csv", tmp_path
    )
    photo = tmp_path / "photo.png"
    shutil.copy(next(drawn.rglob("*.png")), photo)
    assert "did not write it as a contact sheet" in refused((*words, photo), photo, tmp_path)
    for _ in range(2):
        assert run_tltools(*words, "sheet.png", cwd=tmp_path).code == 0


def test_a_heat_map_replaces_only_a_heat_map(cnn_run, drawn, tmp_path):
    image = next(drawn.rglob("*.png"))
    words = ("explain", cnn_run, image, "--device", "cpu", "-o")
    mine = tmp_path / "mine.png"
    shutil.copy(image, mine)
    assert "did not write it as a heat map" in refused((*words, mine), mine, tmp_path)
    for _ in range(2):
        assert run_tltools(*words, "heat.png", cwd=tmp_path).code == 0


def test_a_report_replaces_only_a_report(cnn_run, tmp_path):
    notes = tmp_path / "notes.html"
    notes.write_text("<html>my notes")
    words = ("report", cnn_run, "-o")
    assert "did not write it as a report" in refused((*words, notes), notes, tmp_path)
    (tmp_path / "link.html").symlink_to("nowhere")
    assert run_tltools(*words, "link.html", cwd=tmp_path).code == 2
    for _ in range(2):
        assert run_tltools(*words, "page.html", cwd=tmp_path).code == 0


@pytest.mark.parametrize("mistakes", [(), ("--mistakes",)])
def test_scores_replace_only_scores(cnn_run, cnn_exports, drawn, tmp_path, mistakes):
    export = cnn_exports["onnx"].path
    words = ("evaluate", export, drawn, "--device", "cpu", *mistakes, "-o")
    rows = tmp_path / ("mistakes.csv" if mistakes else "predictions.csv")
    job = ("classify", drawn, "--model", export, "--device", "cpu", "-o", rows)
    assert run_tltools(*job, cwd=tmp_path).code == 0
    assert "did not write it as an evaluation" in refused((*words, "."), rows, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [rows.name]
    run = tmp_path / "run"
    shutil.copytree(cnn_run, run)
    shutil.copy(run / "predictions.csv", run / rows.name) if mistakes else None
    refused((*words, run), run / rows.name, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "evaluation.json").write_text('{"mine": 1}')
    refused((*words, "other"), tmp_path / "other" / "evaluation.json", tmp_path)
    for _ in range(2):
        assert run_tltools(*words, "scores", cwd=tmp_path).code == 0


def test_rows_of_another_evaluation_are_removed_and_those_of_others_kept(
    cnn_run, cnn_exports, drawn, tmp_path
):
    scores, words = tmp_path / "scores", (drawn, "--device", "cpu", "-o", "scores")
    export = cnn_exports["onnx"].path
    predictions, mistakes = scores / "predictions.csv", scores / "mistakes.csv"
    removed = "was of another evaluation and is removed"
    # The rows and the mistakes of the same evaluation belong together.
    for more in ((), ("--mistakes",), ()):
        ran = run_tltools("evaluate", export, *words, *more, cwd=tmp_path)
        assert removed not in ran.err
    assert predictions.exists()
    assert mistakes.exists()
    refused = run_tltools("evaluate", cnn_run, *words, "--mistakes", cwd=tmp_path)
    assert refused.code == 2
    assert "Evaluating" not in refused.err
    assert (
        f"scores holds the evaluation of cnn onnx fp32 on {drawn.name}; choose ano" in refused.err
    )
    assert predictions.exists()
    ran = run_tltools("evaluate", cnn_run, *words, "--mistakes", "--overwrite", cwd=tmp_path)
    assert f"predictions.csv {removed}; they replace the evaluation of cnn onnx fp32 on" in ran.err
    again = run_tltools("evaluate", cnn_run, *words, "--mistakes", cwd=tmp_path)
    assert again.code == 0, again.err
    assert not predictions.exists()
    ran = run_tltools("evaluate", export, *words, "--overwrite", cwd=tmp_path)
    assert f"mistakes.csv {removed}" in ran.err
    assert not mistakes.exists()
    mistakes.write_text("mine")
    assert run_tltools("evaluate", cnn_run, *words, "--overwrite", cwd=tmp_path).code == 0
    assert mistakes.read_text() == "mine"


@pytest.mark.parametrize(("layout", "name"), [("python", "predict.py"), ("triton", "config.pbtxt")])
def test_an_edited_file_of_a_layout_is_kept(layout, name, cnn_exports, tmp_path):
    words = ("export", cnn_exports["onnx"].path, "--layout", layout, "-o", "out")
    for _ in range(2):
        assert run_tltools(*words, cwd=tmp_path).code == 0
    (edited,) = (tmp_path / "out").rglob(name)
    edited.write_text(edited.read_text() + "# mine\n")
    model = next(path for path in edited.parent.rglob("*.onnx"))
    at = model.stat().st_mtime_ns
    assert "is not replaced; move" in refused(words, edited, tmp_path)
    assert model.stat().st_mtime_ns == at


@pytest.mark.parametrize(
    "words",
    [
        "classify images --output lost/out.csv",
        "classify images --output out.csv --report lost/report.html",
        "train images --run-dir lost",
        "train images --run-dir lost/runs",
        "export runs/cnn --output lost",
        "evaluate runs/cnn images --output lost/scores",
        "bench runs/cnn --output lost",
        "report --output lost/report.html",
        "inspect images --sheet lost/sheet.png",
        "sample lost",
        "sample lost/sample",
    ],
)
def test_an_output_behind_a_link_to_nowhere_is_refused_at_once(words, onnx_path, images, tmp_path):
    (tmp_path / "lost").symlink_to(tmp_path / "not mounted" / "folder")
    words = [str(images) if one == "images" else one for one in words.split()]
    model = ["--model", onnx_path, "--device", "cpu"] if words[0] == "classify" else []
    before = sorted(tmp_path.iterdir())
    ran = run_tltools(*words, *model, cwd=tmp_path)
    assert ran.code in (1, 2)
    last = ran.err.splitlines()[-1]
    assert re.match(
        r"error: cannot write lost\S*: \S*lost is a link to .*, which does not exist", last
    )
    assert sorted(tmp_path.iterdir()) == before


def test_a_heat_map_behind_a_link_to_nowhere_is_refused_before_the_run_is_read(tmp_path):
    (tmp_path / "lost").symlink_to(tmp_path / "not mounted")
    with pytest.raises(TltoolsError, match="lost is a link to"):
        list(explain_images(tmp_path / "no run", [], tmp_path / "lost"))
