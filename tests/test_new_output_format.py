"""Adding an output format takes one object, defined in this test; the commands then know it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from conftest import run_tltools
from typer.main import get_command

from tltools import cli
from tltools.classify import Job, Shard, merge_shards, output_formats, run_job
from tltools.classify.output_formats import OutputFormat, Row, output_format
from tltools.classify.predict import Prediction
from tltools.classify.writer import check_output
from tltools.errors import ConfigError, DataError
from tltools.progress import Silent
from tltools.report.jobs import read_job

# -------------------------------------------------------------------------- an output format


class ToyCodec:
    """Rows with fields separated by bars, which no name in these tests contains."""

    def __init__(
        self, classes: Sequence[str], *, spreadsheet: bool = False, distance: bool = False
    ) -> None:
        self.classes = classes
        self.header = f"toy {' '.join(classes)}\n".encode()

    def encode(self, prediction: Prediction) -> bytes:
        fields = (prediction.name, prediction.label, prediction.confidence, prediction.error)
        return ("|".join("" if one is None else str(one) for one in fields) + "\n").encode()

    def read(self, file: BinaryIO) -> Iterator[tuple[Row, int]]:
        for line in file:
            fields = line.decode().removesuffix("\n").split("|")
            if not line.endswith(b"\n") or len(fields) != 4:
                return
            name, label, confidence, error = fields
            row = Row(name, label or None, float(confidence) if confidence else None, error or None)
            yield row, len(line)

    def split(self, file: BinaryIO) -> Iterator[bytes]:
        return iter(file)

    def text(self, text: str) -> str:
        return text


def read_toy(path: Path) -> tuple[list[str], Iterator[Row]]:
    first, _, rest = path.read_bytes().partition(b"\n")
    kind, *classes = first.decode().split()
    if kind != "toy":
        raise DataError(f"{path} is no toy")
    lines = rest.splitlines(keepends=True)
    return classes, (row for row, _ in ToyCodec(classes).read(iter(lines)))


TOY_OUTPUT = OutputFormat((".toy",), codec=ToyCodec, read=read_toy)


@pytest.fixture
def toy_output(monkeypatch):
    monkeypatch.setattr(
        output_formats, "OUTPUT_FORMATS", [*output_formats.OUTPUT_FORMATS, TOY_OUTPUT]
    )


@pytest.fixture
def toy_job(toy_output, onnx_path, images, tmp_path):
    """Make a job whose rows are encoded here: another process would not know the format."""
    (images / "red" / "bad.png").write_bytes(b"no image")

    def make(name: str, **settings) -> Job:
        options = {"device": "cpu", "threads": 2, "batch_size": 4, **settings}
        return Job(onnx_path, [images], tmp_path / name, **options)

    return make


def rows_of(path: Path) -> list[tuple]:
    """Rows as all formats have them: with six decimals."""
    _, rows = output_format(path).read(path)
    return [row._replace(confidence=row.confidence and round(row.confidence, 6)) for row in rows]


def test_an_output_format_is_written_and_read(toy_job, tmp_path):
    run_job(toy_job("out.toy"))
    summary = run_job(toy_job("out.csv"))
    assert rows_of(tmp_path / "out.toy") == rows_of(tmp_path / "out.csv")
    facts = read_job(tmp_path / "out.toy")
    assert facts.counts == summary.counts
    assert (facts.num_rows, facts.num_failed) == (31, 1)


def test_a_job_in_an_output_format_resumes(toy_job, tmp_path):
    class Stopping(Silent):
        @contextmanager
        def bar(self, description, total, unit="images"):
            yield self

        def advance(self, amount=1, note=""):
            raise KeyboardInterrupt

    run_job(toy_job("whole.toy"))
    with pytest.raises(KeyboardInterrupt):
        run_job(toy_job("out.toy"), progress=Stopping())
    with (tmp_path / "out.toy.part").open("ab") as file:
        file.write(b"torn|re")
    assert run_job(toy_job("out.toy")).num_kept == 4
    assert (tmp_path / "out.toy").read_bytes() == (tmp_path / "whole.toy").read_bytes()


def test_shards_in_an_output_format_merge(toy_job, tmp_path):
    run_job(toy_job("whole.toy"))
    outputs = [tmp_path / f"{index}.toy" for index in (1, 2)]
    for index, output in enumerate(outputs, 1):
        run_job(toy_job(output.name, shard=Shard(index, 2)))
    merged = merge_shards(outputs, tmp_path / "merged.toy")
    assert merged.num_rows == 31
    assert (tmp_path / "merged.toy").read_bytes() == (tmp_path / "whole.toy").read_bytes()


def test_the_commands_know_an_output_format(toy_output, onnx_path, images, tmp_path):
    classify = ("classify", images, "--model", onnx_path, "--device", "cpu", "--threads", 2)
    result = run_tltools(*classify, "-o", "out.toy", cwd=tmp_path)
    assert result.code == 0, result.err
    assert run_tltools("report", "out.toy", cwd=tmp_path).code == 0
    assert "out.toy" in (tmp_path / "report.html").read_text(encoding="utf-8")
    result = run_tltools(*classify, "-o", "out.txt", cwd=tmp_path)
    assert result.code == 2
    assert ".csv, .jsonl (or .ndjson), .parquet or .toy" in result.err


def test_the_errors_of_an_output_name_the_formats_that_would_do(toy_output, monkeypatch, tmp_path):
    lacks = replace(TOY_OUTPUT, suffixes=(".lacking",), requires="no_such_package")
    safe = replace(TOY_OUTPUT, suffixes=(".safe",), has_spreadsheet_mode=True)
    known = [*output_formats.OUTPUT_FORMATS, lacks, safe]
    monkeypatch.setattr(output_formats, "OUTPUT_FORMATS", known)
    with pytest.raises(ConfigError) as told:
        check_output(tmp_path / "out.lacking", overwrite=False)
    named = ["." + one.name for one in known if one.is_installed]
    assert ".toy" in named
    assert str(told.value).endswith(f"or choose {', '.join(named[:-1])} or {named[-1]}")
    with pytest.raises(ConfigError, match=r"choose \.csv or \.safe, or leave out"):
        check_output(tmp_path / "out.toy", overwrite=False, spreadsheet=True)


def test_an_unknown_suffix_is_an_error_wherever_predictions_are_read(tmp_path):
    path = tmp_path / "out.toy"
    path.write_bytes(TOY_OUTPUT.codec(("a", "b")).header)
    for read in (read_job, output_format):
        with pytest.raises(ConfigError, match=r"choose \.csv, \.jsonl \(or \.ndjson\) or \.parq"):
            read(path)
    result = run_tltools("report", "out.toy", cwd=tmp_path)
    assert result.code == 2
    assert ".csv, .jsonl (or .ndjson) or .parquet" in result.err


def test_the_help_names_every_output_format():
    command = get_command(cli.app).commands["classify"]
    (option,) = (option for option in command.params if option.name == "output")
    for one in output_formats.OUTPUT_FORMATS:
        assert one.suffixes[0] in option.help
