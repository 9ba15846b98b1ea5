import csv
import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tltools.classify import Output, Prediction
from tltools.classify.output_formats import STDOUT
from tltools.classify.output_formats import parquet as parquet_module
from tltools.classify.unfinished import UnfinishedOutput
from tltools.errors import ConfigError, TltoolsError

CLASSES = ('plain "quoted"', "comma, and\nnewline")
SUFFIXES = [".csv", ".jsonl", ".ndjson", ".parquet"]
NAMES = ["a.png", "b,c.png", 'd"e.png', "f\ng.png", "h\ri.png", "  j .png", "ü/k.png", "'l'.png"]


def predictions() -> list[Prediction]:
    rows = []
    for number, name in enumerate(NAMES):
        if number % 3 == 2:
            rows.append(Prediction(name, None, None, None, f"cannot read, {name}"))
        else:
            probabilities = np.array([1 / (number + 3), 1 - 1 / (number + 3)])
            confidence = float(probabilities[1])
            rows.append(Prediction(name, CLASSES[1], confidence, probabilities, None))
    return rows


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for column in ("confidence", *(f"prob_{name}" for name in CLASSES)):
            assert row[column] == "" or len(row[column]) == len("0.123456")
            row[column] = float(row[column]) if row[column] else None
        row["label"], row["error"] = row["label"] or None, row["error"] or None
    return rows


def read_json_lines(path):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    for row in rows:
        probabilities = row.pop("probabilities") or dict.fromkeys(CLASSES)
        assert list(probabilities) == list(CLASSES)
        row.update({f"prob_{name}": value for name, value in probabilities.items()})
    return rows


def read_parquet(path):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


READERS = {
    ".csv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": read_parquet,
}


def write_all(path, rows):
    with Output(path, CLASSES) as output:
        for row in rows:
            output.write(row)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_survive_a_round_trip(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write_all(path, predictions())
    rows = READERS[suffix](path)
    assert [row["path"] for row in rows] == NAMES
    for row, prediction in zip(rows, predictions(), strict=True):
        assert row["label"] == prediction.label
        assert row["error"] == prediction.error
        numbers = [row["confidence"], *(row[f"prob_{name}"] for name in CLASSES)]
        if prediction.probabilities is None:
            assert numbers == [None, None, None]
        else:
            expected = [prediction.confidence, *prediction.probabilities]
            assert numbers == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_formats_agree_to_the_last_digit(tmp_path, suffix):
    write_all(tmp_path / f"out{suffix}", predictions())
    write_all(tmp_path / "reference.csv", predictions())
    assert READERS[suffix](tmp_path / f"out{suffix}") == read_csv(tmp_path / "reference.csv")


def test_csv_columns_are_in_their_documented_order(tmp_path):
    path = tmp_path / "out.csv"
    with Output(path, ("no", "yes")) as output:
        output.write(Prediction("a.png", "yes", 2 / 3, np.array([1 / 3, 2 / 3]), None))
        output.write(Prediction("b.png", None, None, None, "it is empty"))
    assert path.read_bytes() == (
        b"path,label,confidence,prob_no,prob_yes,error\n"
        b"a.png,yes,0.666667,0.333333,0.666667,\n"
        b"b.png,,,,,it is empty\n"
    )


def test_parquet_columns_are_typed(tmp_path):
    import pyarrow.parquet

    path = tmp_path / "out.parquet"
    write_all(path, [Prediction("a.png", None, None, None, "it is empty")])
    schema = pyarrow.parquet.read_schema(path)
    assert [str(field.type) for field in schema] == [
        "string",
        "string",
        "double",
        "double",
        "double",
        "string",
    ]


def test_parquet_is_written_in_row_groups(tmp_path, monkeypatch):
    import pyarrow.parquet

    monkeypatch.setattr(parquet_module, "ROW_GROUP", 3)
    path = tmp_path / "out.parquet"
    write_all(path, predictions())
    file = pyarrow.parquet.ParquetFile(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert sizes == [3, 3, 2]
    assert [row["path"] for row in read_parquet(path)] == NAMES


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupt_leaves_a_readable_part_and_no_output(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    output = Output(path, CLASSES)
    with pytest.raises(KeyboardInterrupt), output:  # noqa: PT012
        for row in predictions()[:5]:
            output.write(row)
        raise KeyboardInterrupt
    assert output.num_rows == 5
    assert list(tmp_path.iterdir()) == [output.unfinished_path]
    reader = read_json_lines if suffix == ".parquet" else READERS[suffix]
    assert [row["path"] for row in reader(output.unfinished_path)] == NAMES[:5]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_reach_the_file_immediately(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    with Output(path, CLASSES) as output:
        for number, row in enumerate(predictions(), start=1):
            output.write(row)
            assert len(READERS[suffix](output.unfinished_path)) == number


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_output_without_rows_is_still_a_table(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write_all(path, [])
    assert READERS[suffix](path) == []


@pytest.mark.parametrize("name", ["out.txt", "out", "out.csv.gz"])
def test_an_unknown_suffix_is_an_error_that_lists_the_known_ones(tmp_path, name):
    with pytest.raises(ConfigError, match=r"choose \.csv, \.jsonl \(or \.ndjson\) or \.parquet"):
        Output(tmp_path / name, CLASSES)


def test_a_suffix_may_be_in_capitals(tmp_path):
    write_all(tmp_path / "OUT.CSV", predictions())
    assert len(read_csv(tmp_path / "OUT.CSV")) == len(NAMES)


def test_an_existing_output_is_refused_unless_overwritten(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("precious")
    with pytest.raises(ConfigError, match=r"out\.csv exists; .*`overwrite=True`.*`output=`"):
        Output(path, CLASSES)
    with Output(path, CLASSES, overwrite=True):
        assert path.read_text() == "precious"
    assert path.read_text().startswith("path,label")


def test_a_folder_as_output_is_refused(tmp_path):
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        Output(folder, CLASSES, overwrite=True)


def test_parquet_without_pyarrow_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # so that an import of it fails
    with pytest.raises(ConfigError, match=r"out\.parquet` needs pyarrow.*pip install pyarrow"):
        Output(tmp_path / "out.parquet", CLASSES)
    Output(tmp_path / "out.csv", CLASSES)


def test_standard_output_gets_csv_and_stays_open(tmp_path, capfdbinary, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_all(STDOUT, predictions())
    print("still open")
    sys.stdout.flush()
    out, _err = capfdbinary.readouterr()
    table, _, rest = out.rpartition(b"still open")
    (tmp_path / "captured.csv").write_bytes(table)
    assert [row["path"] for row in read_csv(tmp_path / "captured.csv")] == NAMES
    assert rest.strip() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["captured.csv"]


def test_a_full_disk_is_an_error_with_its_path(tmp_path, monkeypatch):
    def fail(_part, data):
        if not data.startswith(b"path,label"):  # the header fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(UnfinishedOutput, "append", fail)
    output = Output(tmp_path / "out.csv", CLASSES)
    with (
        pytest.raises(
            TltoolsError, match=r"cannot write .*out\.csv\.part: no space left.*`output=`"
        ),
        output,
    ):
        output.write(predictions()[0])
    assert not (tmp_path / "out.csv").exists()


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            TltoolsError, match=r"cannot write .*(file exists|not a directory).*`output=`"
        ),
        Output(tmp_path / "file/out.csv", CLASSES),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk_is_detected(tmp_path):
    (tmp_path / "out.csv.part").symlink_to("/dev/full")
    with (
        pytest.raises(TltoolsError, match="no space left"),
        Output(tmp_path / "out.csv", CLASSES),
    ):
        pass
