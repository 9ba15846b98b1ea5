"""Runs, exports and results from strangers: what is no ordinary file is never waited for."""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tltools.artifacts import read_artifact
from tltools.classify.unfinished import read_record, record_path
from tltools.data.tables import read_table
from tltools.errors import TltoolsError
from tltools.regular import check_regular, open_regular, read_regular
from tltools.report.jobs import read_job
from tltools.report.sources import find_sources
from tltools.run_folder import (
    load_card,
    read_distances,
    read_folds,
    read_history,
    read_predictions,
    read_split,
)
from tltools.runtime import load_predictor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of these")

GB = 2**30


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def folder(path: Path) -> None:
    path.mkdir()


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 * GB)


KINDS = [pipe, device, socket_file, folder, hole]


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Fail instead of waiting for ever."""

    def fail(*_args: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _weights(path: Path) -> object:
    from tltools.backbones import find_backbone
    from tltools.training.pretrained import load_weights

    return load_weights(find_backbone("vgg16"), str(path))


def _run(path: Path) -> object:
    from tltools.training.run import load_run

    return load_run(path.parent)


def _plan(path: Path) -> object:
    from tltools.training.run import read_plan

    return read_plan(path.parent)


def _state(path: Path) -> object:
    from tltools.training.run import read_state

    return read_state(path.parent)


READERS: dict[str, Callable[[Path], object]] = {
    "card.json": lambda path: load_card(path.parent),
    "split.csv": lambda path: read_split(path.parent),
    "distances.csv": lambda path: read_distances(path.parent),
    "history.csv": lambda path: read_history(path.parent),
    "predictions.csv": lambda path: read_predictions(path.parent, ("a", "b")),
    "folds.csv": lambda path: read_folds(path.parent, ("a", "b")),
    "checkpoint.safetensors": _run,
    "plan.json": _plan,
    "state.pt": _state,
    "tiny.onnx": read_artifact,
    "tiny.pt2": read_artifact,
    "tiny.pt": read_artifact,
    "opened.onnx": load_predictor,
    "labels.csv": read_table,
    "evaluation.json": lambda path: find_sources([path]),
    "rows.csv": read_job,
    "rows.jsonl": read_job,
    "rows.parquet": read_job,
    "weights.safetensors": _weights,
    "weights.pth": _weights,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_none_is_refused_in_one_line(name, kind, cnn_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(cnn_run, run)
    path = run / name
    path.unlink(missing_ok=True)
    kind(path)
    with pytest.raises(TltoolsError) as raised:
        READERS[name](path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path if name != "plan.json" else run) in message


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_of_a_job_is_not_waited_for(kind, tmp_path):
    kind(record_path(tmp_path / "a.csv"))
    assert read_record(tmp_path / "a.csv") is None


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_of_the_expected_size_are_opened(kind, tmp_path):
    path = tmp_path / "file"
    kind(path)
    for read in (check_regular, open_regular, read_regular):
        with pytest.raises(OSError, match=r"it is not a file|it is a folder|more than 1,000"):
            read(path, max_bytes=1000)


def test_a_file_is_read_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", max_bytes=1000) == bytes(1000)
    with open_regular(path) as file:
        assert not os.get_inheritable(file.fileno())
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
