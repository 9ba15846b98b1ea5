"""Shards of a job, and merging their outputs."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import COLORS, Recorder, run_tltools, save_image

from tltools.classify import ImageRef, Job, Shard, merge_shards, run_job
from tltools.classify.listing import ShardListing
from tltools.classify.shard_record import ShardRecord, shard_record_path
from tltools.classify.shards import SHARD_BLOCK
from tltools.classify.unfinished import UnfinishedOutput
from tltools.decisions import ClassThreshold
from tltools.errors import ConfigError, DataError
from tltools.runtime.pipeline import CPU_BATCH

SUFFIXES = (".csv", ".jsonl", ".parquet")
CSV_AND_SLOW = [".csv", *(pytest.param(one, marks=pytest.mark.slow) for one in SUFFIXES[1:])]
NUM_IMAGES = 10 * SHARD_BLOCK + 5
ODD_NAMES = ("a,b.png", 'c"d.png', "e\nf.png", '"\n",,.png', "g\r\nh.png", "=1+1.png", "é ü.png")
COMMAND = (sys.executable, "-c", "from tltools.cli import main; main()")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of images, some of them broken or with odd names."""
    root = tmp_path_factory.mktemp("many") / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    sources = [root / f"{number}.png" for number in range(30)]
    for number, source in enumerate(sources):
        save_image(source, list(COLORS.values())[number % 3], rng)
    sources[7].write_bytes(b"no image")
    for number in range(30, NUM_IMAGES):
        odd = ODD_NAMES[number % len(ODD_NAMES)] if number % 20 == 0 else "x.png"
        os.link(sources[number % 30], root / f"{number:05}{odd}")
    return root


def make(model, inputs, folder: Path, suffix: str, count: int, **options) -> list[Path]:
    """Run all shards of a job."""
    outputs = [folder / f"out-{index}-of-{count}{suffix}" for index in range(1, count + 1)]
    for index, output in enumerate(outputs, 1):
        shard = Shard(index, count)
        run_job(Job(model, inputs, output, device="cpu", shard=shard, **options))
    return outputs


# -------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("num_images", [0, 1, 31, 32, 33, 64, 500, 1000])
def test_every_image_is_in_exactly_one_shard(num_images, count):
    names = [f"{number}.png" for number in range(num_images)]
    images = [ImageRef(name, name) for name in names]
    listings = [ShardListing(images, Shard(index, count)) for index in range(1, count + 1)]
    found = [list(listing) for listing in listings]
    assert sorted(chain.from_iterable(found), key=images.index) == images
    sizes = [len(part) for part in found]
    assert sizes == [listing.shard.size(num_images) for listing in listings]
    assert max(sizes) - min(sizes) <= SHARD_BLOCK
    assert {listing.num_listed for listing in listings} == {num_images}
    assert len({listing.sha256 for listing in listings}) == 1


def test_the_digest_of_a_listing_covers_names_and_order():
    def digest(*names: str) -> str:
        listing = ShardListing([ImageRef(name, name) for name in names], Shard(2, 2))
        list(listing)
        return listing.sha256

    digests = {
        digest("a", "b"), digest("b", "a"), digest("ab"), digest("a"), digest(), digest("\udcff")
    }  # fmt: skip
    assert len(digests) == 6


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/0", "-1/4", "a/b", "1/4/2", "", "٢/٤"])
def test_an_invalid_shard_number_is_refused(text):
    with pytest.raises(ConfigError, match="`shard=` takes K/N"):
        Shard.parse(text)


def test_a_shard_is_parsed_and_names_its_output():
    assert Shard.parse(" 2/16 ") == Shard(2, 16)
    assert str(Shard(2, 16)) == "2/16"
    assert Shard(2, 4).name(Path("a/predictions.csv")) == Path("a/predictions-2-of-4.csv")


# ------------------------------------------------------------------------- merged equal to one run


@pytest.mark.parametrize("count", [1, 3, 13])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_merged_shards_equal_the_output_of_one_job(suffix, count, folder, onnx_path, tmp_path):
    whole, merged = tmp_path / f"whole{suffix}", tmp_path / f"merged{suffix}"
    run_job(Job(onnx_path, [folder], whole, device="cpu"))
    outputs = make(onnx_path, [folder], tmp_path, suffix, count)
    progress = Recorder()
    result = merge_shards(outputs[::-1], merged, progress=progress)
    assert (result.num_shards, result.num_rows) == (count, NUM_IMAGES)
    assert progress.bars == ["Merging"]
    assert merged.read_bytes() == whole.read_bytes()
    sizes = [
        msgspec.json.decode(shard_record_path(path).read_bytes(), type=ShardRecord).num_rows
        for path in outputs
    ]
    assert sum(sizes) == NUM_IMAGES
    assert (0 in sizes) == (count == 13)  # more shards than blocks: some are empty, and good
    left = {path.name for path in tmp_path.iterdir()}
    records = {shard_record_path(path).name for path in outputs}
    assert left == {whole.name, merged.name, *records, *(path.name for path in outputs)}


def test_shards_with_output_options_merge(folder, onnx_path, tmp_path):
    options = {"spreadsheet": True, "min_confidence": 0.9}
    run_job(Job(onnx_path, [folder], tmp_path / "whole.csv", device="cpu", **options))
    outputs = make(onnx_path, [folder], tmp_path, ".csv", 2, **options)
    merge_shards(outputs, tmp_path / "merged.csv")
    assert (tmp_path / "merged.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_parquet_of_many_row_groups_merges_row_for_row(folder, onnx_path, tmp_path, monkeypatch):
    import pyarrow.parquet

    monkeypatch.setattr("tltools.classify.output_formats.parquet.ROW_GROUP", 50)
    run_job(Job(onnx_path, [folder], tmp_path / "whole.parquet", device="cpu"))
    outputs = make(onnx_path, [folder], tmp_path, ".parquet", 2)
    assert pyarrow.parquet.ParquetFile(outputs[0]).num_row_groups == 4
    monkeypatch.setattr("tltools.classify.output_formats.parquet.ROW_GROUP", 64)
    merge_shards(outputs, tmp_path / "merged.parquet")
    merged = pyarrow.parquet.read_table(tmp_path / "merged.parquet")
    assert merged.equals(pyarrow.parquet.read_table(tmp_path / "whole.parquet"))


def test_the_model_gets_the_same_batches_as_in_one_job(folder, onnx_path, tmp_path, monkeypatch):
    from tltools.runtime.model_formats.onnx import OnnxPredictor

    call = OnnxPredictor.__call__
    batches: list[bytes] = []

    def recorded(self, images):
        if len(images) > 1:  # not the ones that open the model
            batches.append(images.tobytes())
        return call(self, images)

    monkeypatch.setattr(OnnxPredictor, "__call__", recorded)
    run_job(Job(onnx_path, [folder], tmp_path / "whole.csv", device="cpu", threads=2))
    whole, batches = batches, []
    make(onnx_path, [folder], tmp_path, ".csv", 3, threads=2)
    assert len(whole) == -(-NUM_IMAGES // CPU_BATCH)
    assert sorted(batches) == sorted(whole)


# ----------------------------------------------------------------------------------- refused


@pytest.fixture(scope="module")
def shards(folder, onnx_path, tmp_path_factory):
    """Three shards of one job, for tests that copy and spoil them."""
    return make(onnx_path, [folder], tmp_path_factory.mktemp("shards"), ".csv", 3)


@pytest.fixture
def copies(shards, tmp_path) -> list[Path]:
    for path in shards:
        for source in (path, shard_record_path(path)):
            (tmp_path / source.name).write_bytes(source.read_bytes())
    return [tmp_path / path.name for path in shards]


def refused(paths, output: Path, **options) -> str:
    """The error of a merge, which leaves nothing behind."""
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    with pytest.raises((DataError, ConfigError)) as caught:
        merge_shards(paths, output, **options)
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_shard_is_refused(copies, tmp_path):
    message = refused([copies[0], copies[2]], tmp_path / "m.csv")
    assert message == (
        "shard 2/3 is missing; name it too, or create it with tltools classify and `shard=2/3`"
    )
    assert "shard 1/3 (and 1 more) is missing" in refused([copies[2]], tmp_path / "m.csv")


def test_a_duplicate_shard_is_refused(copies, tmp_path):
    message = refused([*copies, copies[1]], tmp_path / "m.csv")
    assert message == f"{copies[1]} and {copies[1]} are both shard 2/3; name only one of them"


@pytest.mark.parametrize(("shard", "example"), [(Shard(1, 3), True), (None, False)])
def test_a_complete_shard_is_not_replaced_by_another(
    shard, example, copies, folder, onnx_path, tmp_path
):
    job = Job(onnx_path, [folder], copies[1], device="cpu", shard=shard)
    before = copies[1].read_bytes()
    with pytest.raises(ConfigError, match=f"{copies[1]} is shard 2/3 of a job, which") as raised:
        run_job(job)
    assert ("-1-of-3.csv" in str(raised.value)) is example
    assert "overwrite" not in str(raised.value)
    with pytest.raises(ConfigError, match="exists; replace it with"):
        run_job(dataclasses.replace(job, shard=Shard(2, 3)))
    assert copies[1].read_bytes() == before


def test_shards_of_different_splits_are_refused(copies, folder, onnx_path, tmp_path):
    other = tmp_path / "other.csv"
    run_job(Job(onnx_path, [folder], other, device="cpu", shard=Shard(2, 4)))
    message = refused([copies[0], other, copies[2]], tmp_path / "m.csv")
    assert message.startswith(f"{other} is shard 2/4, but {copies[0]} is shard 1/3; create")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"spreadsheet": True}, "has a different `spreadsheet=` than"),
        ({"min_confidence": 0.5}, "has a different `min_confidence=` than"),
        ({"threshold": ClassThreshold("red", 0.5)}, "has a different `threshold=` than"),
        ({"batch_size": 2}, "has a different `batch_size=` than"),
        ({"threads": 2}, "ran with a different plan (`threads=1` forces the same one) than"),
    ],
    ids=["spreadsheet", "min-confidence", "threshold", "batch-size", "plan"],
)
def test_shards_with_other_options_are_refused(
    options, reason, copies, folder, onnx_path, tmp_path
):
    run_job(
        Job(
            onnx_path,
            [folder],
            copies[1],
            device="cpu",
            shard=Shard(2, 3),
            overwrite=True,
            **options,
        )
    )
    message = refused(copies, tmp_path / "m.csv")
    assert message == (
        f"{copies[1]} {reason} {copies[0]}; create all shards with the same command except K"
    )


def test_shards_of_another_model_or_inputs_are_refused(
    copies, folder, make_card, make_onnx, onnx_path, tmp_path
):
    other = make_onnx(tmp_path / "other.onnx", make_card(run="other").to_json())
    options = {"device": "cpu", "shard": Shard(2, 3), "overwrite": True}
    run_job(Job(other, [folder], copies[1], **options))
    assert f"{copies[1]} was made with a different model" in refused(copies, tmp_path / "m.csv")
    run_job(Job(onnx_path, [folder / "0.png"], copies[1], **options))
    assert f"{copies[1]} has different inputs" in refused(copies, tmp_path / "m.csv")


def test_shards_of_different_listings_are_refused(copies, folder, onnx_path, tmp_path):
    extra = folder / "zzz.png"
    os.link(folder / "0.png", extra)
    try:
        run_job(
            Job(onnx_path, [folder], copies[1], device="cpu", shard=Shard(2, 3), overwrite=True)
        )
    finally:
        extra.unlink()
    message = refused(copies, tmp_path / "m.csv")
    assert message.startswith(f"{copies[1]} listed different images than {copies[0]} (326 and 325)")


def change_record(path: Path, **changes) -> None:
    record = shard_record_path(path)
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


def test_a_changed_shard_is_refused(copies, tmp_path):
    content = copies[1].read_bytes()
    message = (
        f"{copies[1]} has changed since the shard was completed; recreate it with tltools "
        "classify, `shard=2/3` and `overwrite=True`"
    )
    for spoiled in (content[:-1], content + b"\n", content.replace(b"red", b"der", 1), b""):
        copies[1].write_bytes(spoiled)
        assert refused(copies, tmp_path / "m.csv") == message


def test_rows_that_contradict_the_record_are_refused(copies, tmp_path):
    change_record(copies[1], num_rows=95)
    assert "has 95 rows according to its record, but shard 2/3 of 325" in refused(
        copies, tmp_path / "m.csv"
    )


def test_a_forged_record_is_refused(copies, tmp_path):
    """Rows gone with the bytes' size and digest made right: the count does not come out."""
    import hashlib

    for content in (
        b"".join(copies[1].read_bytes().splitlines(keepends=True)[:-1]),
        copies[1].read_bytes() + b"more.png,red,1.0,1.0,0.0,0.0,\n",
    ):
        copies[1].write_bytes(content)
        change_record(copies[1], num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        assert "has changed since" in refused(copies, tmp_path / "m.csv")


def test_a_shard_that_changes_while_it_is_merged_is_refused(copies, tmp_path, monkeypatch):
    from tltools.classify import merge

    turns = merge._turns

    def changing(shards):
        yield from turns(shards)
        os.utime(copies[2], (1, 1))

    monkeypatch.setattr(merge, "_turns", changing)
    assert f"{copies[2]} has changed" in refused(copies, tmp_path / "m.csv")


def test_a_shard_without_a_valid_record_is_refused(copies, onnx_path, folder, tmp_path):
    record = shard_record_path(copies[1])
    for content in (b"", b"{}", b"no json", record.read_bytes()[:100]):
        record.write_bytes(content)
        assert refused(copies, tmp_path / "m.csv").startswith(f"{record} is not the record of a")
    record.unlink()
    (tmp_path / "there.csv").touch()
    # Another output, or its replacement, would not make a shard of it.
    for output in (tmp_path / "m.csv", copies[0], copies[1], tmp_path / "there.csv"):
        assert "has no record (out-2-of-3.csv.shard.json) beside it" in refused(copies, output)
    copies[1].unlink()
    message = refused(copies, tmp_path / "m.csv")
    assert message.startswith(f"{copies[1]} does not exist (did you mean {copies[0]} or ")
    assert message.endswith("; name the outputs of all shards")
    Path(f"{copies[1]}.part").write_text("")
    assert refused(copies, tmp_path / "m.csv") == (
        f"{copies[1]} is not complete; run its command again"
    )


def test_a_record_without_its_shard_is_refused(copies, tmp_path):
    copies[1].unlink()
    assert "is missing, although its record exists; run its command again" in refused(
        copies, tmp_path / "m.csv"
    )
    assert "is the record of a shard; name the shard's output instead" in refused(
        [shard_record_path(copies[0]), *copies], tmp_path / "m.csv"
    )


def test_impossible_outputs_are_refused(copies, tmp_path):
    assert "one of the shards" in refused(copies, copies[0], overwrite=True)
    assert "does not have the format of the shards; choose a name that ends in .csv" in refused(
        copies, tmp_path / "m.jsonl"
    )
    assert "ends in '.txt'; choose" in refused(copies, tmp_path / "m.txt")
    with pytest.raises(ConfigError, match="cannot write to standard output"):
        merge_shards(copies, Path("-"))
    (tmp_path / "m.csv").write_text("precious")
    assert "exists; replace it with `overwrite=True`" in refused(copies, tmp_path / "m.csv")
    merge_shards(copies, tmp_path / "m.csv", overwrite=True)
    assert (tmp_path / "m.csv").read_text() != "precious"


def test_shards_of_different_formats_are_refused(copies, folder, onnx_path, tmp_path):
    other = tmp_path / "other.jsonl"
    run_job(Job(onnx_path, [folder], other, device="cpu", shard=Shard(2, 3)))
    message = refused([copies[0], other, copies[2]], tmp_path / "m.csv")
    assert message.startswith(f"{other} has a different format than {copies[0]}")


def test_an_interrupted_merge_leaves_nothing(copies, tmp_path):
    class Interrupting(Recorder):
        def bar(self, description, total, unit="images"):
            raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        merge_shards(copies, tmp_path / "m.csv", progress=Interrupting())
    assert set(tmp_path.iterdir()) == before


# --------------------------------------------------------------------------- stopped, gone on with


@pytest.mark.parametrize("suffix", CSV_AND_SLOW)
def test_a_killed_shard_resumes(suffix, folder, onnx_path, tmp_path):
    """Of a list with each image many times, so that there is a while to kill it in."""
    names = [path.name for path in sorted(folder.iterdir()) if path.name.isprintable()]
    listing = folder.parent / "list.txt"
    listing.write_text("".join(f"images/{name}\n" for name in names * 20))
    run_job(Job(onnx_path, [listing], tmp_path / f"whole{suffix}", device="cpu"))
    outputs = [tmp_path / f"out-{index}{suffix}" for index in (1, 2)]
    num_kept = 0
    for index, output in enumerate(outputs, 1):
        args = ["classify", listing, "--model", onnx_path, "--device", "cpu", "-o", output]
        command = [*COMMAND, *map(str, args), "--shard", f"{index}/2"]
        part = Path(f"{output}.part")
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
        while process.poll() is None and (not part.exists() or part.stat().st_size < 20_000):
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not output.exists()
        assert not shard_record_path(output).exists()
        if index == 1:
            other = [*command[:-1], "2/2"]
            result = subprocess.run(other, capture_output=True, text=True)
            assert result.returncode == 2
            assert f"cannot resume {part}: it was started with --shard 1/2; st" in result.stderr
            result = subprocess.run(command[:-2], capture_output=True, text=True)
            assert result.returncode == 2
            assert "it was started with --shard 1/2" in result.stderr
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        num_kept += "Resuming after" in result.stderr
    assert num_kept == 2
    merge_shards(outputs, tmp_path / f"merged{suffix}")
    merged, whole = tmp_path / f"merged{suffix}", tmp_path / f"whole{suffix}"
    assert merged.read_bytes() == whole.read_bytes()


def test_a_shard_killed_between_record_and_rename_resumes(folder, onnx_path, tmp_path, monkeypatch):
    outputs = make(onnx_path, [folder], tmp_path, ".csv", 2)
    first = outputs[0].read_bytes()
    outputs[0].unlink()
    shard_record_path(outputs[0]).unlink()

    def killed(self, *, rename=True):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(UnfinishedOutput, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(Job(onnx_path, [folder], outputs[0], device="cpu", shard=Shard(1, 2)))
    assert shard_record_path(outputs[0]).exists()
    with pytest.raises(DataError, match="is not complete; run its command again"):
        merge_shards(outputs, tmp_path / "merged.csv")
    run_job(Job(onnx_path, [folder], outputs[0], device="cpu", shard=Shard(1, 2)))
    assert outputs[0].read_bytes() == first
    assert merge_shards(outputs, tmp_path / "merged.csv").num_rows == NUM_IMAGES


def test_a_whole_job_cannot_be_resumed_as_a_shard(folder, onnx_path, tmp_path):
    class Stopping(Recorder):
        def say(self, message):
            raise KeyboardInterrupt

    output = tmp_path / "out.csv"
    unfinished = UnfinishedOutput(output)
    run_job(Job(onnx_path, [folder], output, device="cpu"))
    output.rename(unfinished.path)
    record = json.loads(
        shard_record_path(make(onnx_path, [folder], tmp_path, ".csv", 1)[0]).read_text()
    )["job"]
    Path(f"{unfinished.path}.json").write_text(json.dumps(record | {"shard": None}))
    with pytest.raises(ConfigError, match="it was started without `shard=`"):
        run_job(Job(onnx_path, [folder], output, device="cpu", shard=Shard(1, 2)))


DANGEROUS = """
import os, signal, sys
name, stat = sys.argv.pop(1), os.stat
def dangerous(path, *args, **options):  # the first thing that is done with an image
    if isinstance(path, (str, os.PathLike)) and os.path.basename(path) == name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return stat(path, *args, **options)
os.stat = dangerous
from tltools.cli import main
main()
"""


@pytest.mark.parametrize("index", [1, 2])
def test_an_image_that_crashes_its_decoder_costs_only_its_own_row_of_its_shard(
    index, folder, onnx_path, tmp_path
):
    names = sorted(path.name for path in folder.iterdir())
    name = names[SHARD_BLOCK + 9]  # of the second shard
    args = ["classify", folder, "--model", onnx_path, "--device", "cpu", "-o", tmp_path / "o.jsonl"]
    args += ["--shard", f"{index}/2"]
    command = [sys.executable, "-c", DANGEROUS, name, *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    errors = [
        row["path"]
        for row in map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
        if "crashed" in (row["error"] or "")
    ]
    assert errors == ([name] if index == 2 else [])


# ------------------------------------------------------------------------------- the command line


def test_the_commands_write_shards_and_merge_them(folder, onnx_path, tmp_path):
    args = ("classify", folder, "--model", onnx_path, "--device", "cpu")
    for index in (1, 2):
        result = run_tltools(*args, "--shard", f"{index}/2", cwd=tmp_path)
        assert result.code == 0, result.err
        assert f"written to predictions-{index}-of-2.csv" in result.err
    names = ("predictions-2-of-2.csv", "predictions-1-of-2.csv")
    result = run_tltools("merge", *names, cwd=tmp_path)
    assert (result.code, result.out) == (0, "")
    assert f"{NUM_IMAGES} rows of 2 shards, written to predictions.csv" in result.err
    assert run_tltools(*args, "-o", "whole.csv", cwd=tmp_path).code == 0
    assert (tmp_path / "predictions.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    result = run_tltools("merge", *names, cwd=tmp_path)
    assert result.code == 0
    assert f"{NUM_IMAGES} rows of 2 shards, already in predictions.csv" in result.err
    with (tmp_path / "predictions.csv").open("a") as file:
        file.write("more")
    result = run_tltools("merge", *names, cwd=tmp_path)
    assert result.code == 2
    assert "predictions.csv exists; replace it with --overwrite" in result.err
    result = run_tltools("merge", *names, "--overwrite", "--json", "--quiet", cwd=tmp_path)
    assert json.loads(result.out) == {
        "output": "predictions.csv", "num_shards": 2, "num_rows": NUM_IMAGES
    }  # fmt: skip
    assert result.err == ""
    result = run_tltools("merge", names[0], "-o", "m.csv", cwd=tmp_path)
    assert result.code == 1
    assert result.err.splitlines()[-1] == (
        "error: shard 1/2 is missing; name it too, or create it with tltools classify and "
        "--shard 1/2"
    )


def test_a_shard_needs_an_output_file_and_its_summary_names_the_shard(folder, onnx_path, tmp_path):
    args = ("classify", folder, "--model", onnx_path, "--device", "cpu", "--shard", "2/2")
    result = run_tltools(*args, "-o", "-", cwd=tmp_path)
    assert result.code == 2
    assert "--shard keeps a record beside its output; name a file" in result.err
    result = run_tltools(*args, "--json", "--quiet", cwd=tmp_path)
    assert json.loads(result.out)["num_images"] == Shard(2, 2).size(NUM_IMAGES)
    assert json.loads(result.out)["output"] == "predictions-2-of-2.csv"
