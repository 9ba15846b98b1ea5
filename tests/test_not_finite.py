"""An image for which the model gives NaN or infinity gets an error row, in every output."""

import io
import json

import numpy as np
import onnx
import pytest
from conftest import CLASSES, SIZE, load_onnx
from PIL import Image
from test_resume import content, stop

from tltools.api import load_model
from tltools.classify import Job, merge_shards, run_job
from tltools.classify.ledger import Ledger
from tltools.classify.output_formats import output_format
from tltools.classify.output_formats.json_lines import JsonLinesCodec
from tltools.classify.output_formats.parquet import convert_rows
from tltools.classify.predict import NOT_FINITE
from tltools.classify.shards import Shard

BLACK = ["blue/3.png", "red/0.png", "red/9.png"]


@pytest.fixture(params=["nan", "infinity", "one-class"])
def model(request, onnx_path, tmp_path):
    """The tiny model, whose answer for a black image is not finite."""
    graph = load_onnx(onnx_path)
    gemm = graph.graph.node[-1]
    gemm.output[0] = "plain"
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [3], [0, 0, 0])
    one = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [3], [0, 1, 0])
    graph.graph.initializer.extend([zero, one])
    make = onnx.helper.make_node
    graph.graph.node.append(make("ReduceSum", ["means"], ["total"], keepdims=1))
    graph.graph.node.append(make("Div", ["one", "total"], ["inverse"]))
    added = {"nan": "Mul", "infinity": "Add", "one-class": "Sub"}[request.param]
    graph.graph.node.append(make("Mul", ["inverse", "zero"], ["nothing"]))
    extra = "nothing" if added == "Mul" else "inverse"
    graph.graph.node.append(make("Add" if added == "Mul" else added, ["plain", extra], ["logits"]))
    path = tmp_path / "not-finite.onnx"
    onnx.save(graph, path)
    return path


@pytest.fixture
def images(images):
    for name in BLACK:
        Image.new("RGB", (SIZE, SIZE)).save(images / name)
    return images


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_output_has_a_row_for_each_image(suffix, model, images, tmp_path):
    output = tmp_path / f"out{suffix}"
    summary = run_job(Job(model, [images], output, device="cpu"))
    assert (summary.num_images, summary.num_failed) == (30, 3)
    assert summary.errors == {NOT_FINITE: 3}
    rows = list(output_format(output).read(output)[1])
    assert [row.path for row in rows if row.error] == BLACK
    assert [row.label is None for row in rows] == [bool(row.error) for row in rows]
    assert rows[3].error == f"cannot classify image 3.png: {NOT_FINITE}"
    assert len(rows) == 30
    if suffix == ".jsonl":
        for line in output.read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_resumed_job_and_merged_shards_have_the_same_rows(suffix, model, images, tmp_path):
    whole, output, merged = (tmp_path / f"{name}{suffix}" for name in ("whole", "out", "merged"))
    run_job(Job(model, [images], whole, device="cpu"))
    stop(model, [images], output, 11)
    assert run_job(Job(model, [images], output, device="cpu")).num_kept == 11
    assert content(output) == content(whole)
    parts = [tmp_path / f"part-{number}{suffix}" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        run_job(Job(model, [images], part, device="cpu", shard=Shard(number, 2)))
    merge_shards(parts, merged)
    assert content(merged) == content(whole)


def test_the_ledger_does_not_remember_such_an_answer(model, images, tmp_path):
    outputs = [tmp_path / "1.csv", tmp_path / "2.csv"]
    for output in outputs:
        summary = run_job(Job(model, [images], output, device="cpu", ledger_dir=tmp_path / "l"))
    assert (summary.num_known, summary.num_failed) == (27, 3)
    assert content(outputs[0]) == content(outputs[1])
    with Ledger(tmp_path / "l", model_sha256="0" * 64, num_classes=3) as ledger:
        ledger.remember(b"k", np.array([0, np.inf, 0], np.float32))
        ledger.remember(b"l", np.zeros(3, np.float32))
    assert _keys(tmp_path / "l") == [b"l"]


def _keys(folder):
    import sqlite3

    path = next(folder.glob("0000*.sqlite"))
    connection = sqlite3.connect(path)
    try:
        return [key for (key,) in connection.execute("SELECT sha256 FROM classified")]
    finally:
        connection.close()


def test_a_program_gets_the_error_too(model, images):
    results = load_model(model, device="cpu").predict([images / BLACK[0], images / "red/1.png"])
    assert (results[0].label, results[0].confidence, results[1].label) == (None, None, "red")
    assert NOT_FINITE in str(results[0].error)


def test_a_damaged_row_is_never_left_out_of_a_parquet_file(tmp_path):
    rows = b'{"path":"a","label":null,"confidence":null,"probabilities":null,"error":"e"}\n'
    codec = JsonLinesCodec(CLASSES)
    convert_rows(io.BytesIO(rows * 2), tmp_path / "out.parquet", codec)
    for damage in (b'{"path":', b"\0\n" + rows):
        with pytest.raises(OSError, match="a row was damaged"):
            convert_rows(io.BytesIO(rows + damage), tmp_path / "out.parquet", codec)
