"""Damaged archives, weights and results: errors of one line, whatever the bytes are."""

import io
import json
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import run_tltools
from PIL import Image
from safetensors.torch import save

from tltools.backbones import find_backbone
from tltools.data.archives import list_archive
from tltools.data.copies import local_data
from tltools.errors import ModelError, TltoolsError
from tltools.report.sources import find_sources
from tltools.training.pretrained import load_weights
from tltools.training.weight_files import tensors_of


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with some of them changed, inserted, removed or cut off."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        size = len(changed)
        at = chance.choice([chance.randrange(size + 1), min(size, chance.randrange(600))])
        end = max(0, size - 1 - chance.randrange(600))
        at = chance.choice([at, end])
        count = chance.choice([1, 2, 4, 8])
        kind = chance.randrange(6)
        if kind == 0:
            changed[at : at + 1] = chance.randbytes(1)
        elif kind == 1:
            changed[at:at] = chance.randbytes(count)
        elif kind == 2:
            del changed[at : at + chance.randrange(1, 40)]
        elif kind == 3 and chance.random() < 0.3:
            del changed[at:]
        else:
            filling = chance.choice([b"\xff" * count, bytes(count), b"\x7f" + b"\xff" * count])
            changed[at : at + count] = filling
    return bytes(changed)


def attempt(function, *args: object) -> bool:
    """Return whether it succeeds; anything but an error of one line, and any warning, fails."""
    message = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            function(*args)
        except TltoolsError as error:
            message = str(error)
    assert "\n" not in message
    return not message


def dice(seed: int | str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same at each run


# -------------------------------------------------------------------------------- weights

FIRST = "features.0.weight"


def saved(content: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def test_damaged_weights_are_told_in_one_line(tmp_path):
    state = {FIRST: torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}
    seeds = {
        "safetensors": [save(state)],
        "pth": [saved(state), saved(state, _use_new_zipfile_serialization=False)],
    }
    chance = dice(0)
    results = []
    for _ in range(400):
        suffix = chance.choice(list(seeds))
        path = tmp_path / f"weights.{suffix}"
        path.write_bytes(damaged(chance.choice(seeds[suffix]), chance))
        results.append(attempt(load_weights, find_backbone("vgg16"), str(path)))
    assert results.count(False) > 200
    assert True in results  # such as a changed value


@pytest.mark.parametrize(
    "content",
    [
        1,
        None,
        [torch.zeros(1)],
        {1: torch.zeros(1)},
        {FIRST: 1},
        {FIRST: torch.zeros(2).to_sparse()},
        {FIRST: torch.empty(2, device="meta")},
        {FIRST: torch.zeros(1).expand(10**12)},
    ],
    ids=repr,
)
def test_weights_that_are_no_ordinary_tensors_are_refused(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(saved(content))
    with pytest.raises(ModelError, match=r"cannot read weights from .*weights\.pth: [^\n]*;"):
        load_weights(find_backbone("vgg16"), str(path))


def test_other_pickles_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({FIRST: 1}))
    with pytest.raises(ModelError, match="cannot read weights"):
        load_weights(find_backbone("vgg16"), str(path))


def test_ordinary_tensors_may_share_memory():
    base = torch.zeros(4, 4)
    assert tensors_of({"a": base, "b": base.T}).keys() == {"a", "b"}


# ------------------------------------------------------------------------------- archives


def images() -> dict[str, bytes]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    names = [f"{name}/{number}.png" for name in "ab" for number in range(2)]
    long = "x" * 120 + "/" + "y" * 150 + ".png"
    return {**dict.fromkeys((*names, long), file.getvalue()), "labels.csv": b"image,label\n"}


def tar(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in images().items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zipped(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in images().items():
            archive.writestr(name, data)
    return file.getvalue()


ARCHIVES = {
    "tar": [tar("w")],
    "tgz": [tar("w:gz")],
    "tar.bz2": [tar("w:bz2")],
    "tar.xz": [tar("w:xz")],
    "zip": [zipped(zipfile.ZIP_STORED), zipped(zipfile.ZIP_DEFLATED), zipped(zipfile.ZIP_LZMA)],
}


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_damaged_archives_are_told_in_one_line(suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chance = dice(suffix)
    results = []
    for number in range(60):
        path = tmp_path / f"data-{number}.{suffix}"
        path.write_bytes(damaged(chance.choice(ARCHIVES[suffix]), chance))
        results.append(attempt(local_data, path))
        attempt(lambda path=path: [one for some in list_archive(path) for one in some])
    assert results.count(False) > 20


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_a_cut_archive_ends_each_command_in_one_line(suffix, onnx_path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / f"data.{suffix}"
    data = ARCHIVES[suffix][-1]
    path.write_bytes(data[: len(data) // 3])
    commands = (["inspect", path], ["train", path], ["evaluate", onnx_path, path])
    for command in commands if suffix == "tgz" else commands[:1]:
        ran = run_tltools(*command, cwd=tmp_path)
        assert ran.code == 1
        assert path.name in ran.err.splitlines()[-1]
        assert "Traceback" not in ran.err


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_an_archive_bomb_is_not_unpacked(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tltools.data.archives._largest", lambda num_packed: 100 * num_packed)
    path = tmp_path / f"data.{kind}"
    zeros = bytes(10**6)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/1.png", zeros)
    else:
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("a/1.png")
            info.size = len(zeros)
            archive.addfile(info, io.BytesIO(zeros))
    with pytest.raises(TltoolsError, match="an archive bomb"):
        local_data(path)
    assert not list((tmp_path / "cache").rglob("*.png"))


# -------------------------------------------------------------------------------- results

ODD = [0, -1, 1, 2**63 - 1, 10**30, 1e308, -1e308, 0.0, 0.5, 3, "", "x", None, [], {}]


def with_odd_values(document: object, chance: random.Random) -> bytes:
    """Return a JSON document in which some values are others."""
    changed = json.loads(json.dumps(document))
    places: list[tuple[list | dict, object]] = []

    def visit(part: object) -> None:
        if isinstance(part, list | dict):
            for key in list(part) if isinstance(part, dict) else range(min(len(part), 6)):
                places.append((part, key))
                visit(part[key])

    visit(changed)
    for part, key in chance.sample(places, chance.choice([1, 1, 2, 4])):
        part[key] = chance.choice([one for one in ODD if isinstance(one, type(part[key]))] or ODD)
    return json.dumps(changed).encode()


@pytest.fixture(scope="module")
def results(
    onnx_path: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """A bench, an evaluation and predictions."""
    place = tmp_path_factory.mktemp("results")
    folder = place / "data"
    for name in ("red", "green", "blue"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (9, 9), name).save(folder / name / f"{number}.png")
    for command in (
        ("bench", onnx_path, "--data", folder, "--budget", 1, "--output", place / "bench"),
        ("evaluate", onnx_path, folder, "--split", "all", "-o", place / "scores"),
        *(
            ("classify", folder, "--model", onnx_path, "-o", place / f"rows.{suffix}")
            for suffix in ("csv", "jsonl", "parquet")
        ),
    ):
        ran = run_tltools(*command, cwd=place)
        assert ran.code == 0, ran.err
    (bench,) = (place / "bench").glob("*.json")
    return {
        "bench.json": bench.read_bytes(),
        "evaluation.json": (place / "scores" / "evaluation.json").read_bytes(),
        **{path.name: path.read_bytes() for path in place.glob("rows.*")},
    }


def test_results_with_impossible_values_are_told_in_one_line(results, tmp_path):
    chance = dice(0)
    outcomes = []
    for _ in range(60):
        name = chance.choice([one for one in results if one.endswith(".json")])
        (tmp_path / name).write_bytes(with_odd_values(json.loads(results[name]), chance))
        outcomes.append(attempt(lambda path: find_sources([path]).sections(None), tmp_path / name))
    assert {True, False} == set(outcomes)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "bench.json"])
def test_damaged_results_are_told_in_one_line(name, results, tmp_path):
    chance = dice(name)
    for _ in range(15):
        (tmp_path / name).write_bytes(damaged(results[name], chance))
        attempt(lambda path: find_sources([path]).sections(None), tmp_path / name)


# -------------------------------------------------------------------------------- streams


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "0<&- 2>&-", "2>&- >/dev/full"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_work_is_lost_with_standard_error(streams, workers, drawn, onnx_path, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (9, 9), "red").save(folder / f"{number:02}.png")
    shutil.copy(__file__, folder / "broken.png")  # for a warning
    command = [sys.executable, "-m", "tltools", "classify", folder, "--model", onnx_path]
    command += ["--workers", workers, "-v", "-o", "rows.csv"]
    shell = ["sh", "-c", f'exec "$@" {streams}', "sh", *map(str, command)]
    done = subprocess.run(shell, cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == 0
    assert (tmp_path / "rows.csv").read_text().count("\n") == 22


@pytest.mark.parametrize(("streams", "code"), [("2>&-", 0), (">&-", 1), (">&- 2>&-", 1)])
def test_rows_for_a_closed_output_are_an_error(streams, code, onnx_path, tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    command = [sys.executable, "-m", "tltools", "classify", "a.png", "--model", str(onnx_path)]
    shell = ["sh", "-c", f'exec "$@" {streams}', "sh", *command, "-o", "-"]
    done = subprocess.run(shell, cwd=tmp_path, check=False, capture_output=True, timeout=120)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
