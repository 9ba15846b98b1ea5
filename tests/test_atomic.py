"""A file or folder is written completely or not at all, on a full disk and by several processes."""

import errno
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from conftest import run_tltools

from tltools.atomic import (
    LEFTOVER_AGE_S,
    _umask,
    atomic_folder,
    atomic_path,
    check_writable,
    remove_leftovers,
    replace_bytes,
    sync_folder,
    write_text,
)
from tltools.card import Preprocessing
from tltools.errors import TltoolsError
from tltools.training.features import FeatureCache


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_old(path: Path) -> None:
    then = time.time() - LEFTOVER_AGE_S - 60
    os.utime(path, (then, then))


# ------------------------------------------------------------------------------ one process


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_writer_leaves_only_the_earlier_file(tmp_path, error):
    path = tmp_path / "new" / "result.txt"
    write_text(path, "earlier")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            assert temporary.suffix == ".txt"
            assert path.read_text() == "earlier"
            raise error

    with pytest.raises(error):
        write_half()
    assert files_in(tmp_path) == {"new/result.txt": b"earlier"}
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_threads_that_read_the_umask_leave_it_as_it_was():
    before = current_umask()
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: _umask(), range(50_000), chunksize=1)) == {before}
    assert current_umask() == before


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "folder"

    def write_half() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "one").write_text("1")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write_half()
    assert files_in(tmp_path) == {}
    with atomic_folder(path) as temporary:
        (temporary / "one").write_text("1")
    assert files_in(tmp_path) == {"folder/one": b"1"}
    with pytest.raises(FileExistsError), atomic_folder(path):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_path_is_named_in_the_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TltoolsError, match=r"cannot write .*file/x/result\.csv: .*choose another"):
        write_text(tmp_path / "file" / "x" / "result.csv", "")


@pytest.mark.parametrize(("folder", "what"), [("runs", "it"), ("runs/cnn", "the folder above it")])
def test_a_folder_that_cannot_be_written_is_not_called_a_file(folder, what, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()

    def refuse(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(TltoolsError) as caught:
        check_writable(tmp_path / folder)
    assert str(caught.value) == (
        f"cannot write {tmp_path / folder}: permission denied; make {what} writable or choose "
        "another path, then run it again"
    )


def test_an_error_names_the_path_and_never_the_temporary_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(TltoolsError, match=r"cannot write \S+/taken: is a directory; make its"):
        write_text(tmp_path / "taken", "")

    def write_to_a_folder() -> None:
        with atomic_path(tmp_path / "result.txt") as temporary:
            temporary.unlink()
            temporary.mkdir()
            temporary.write_text("")

    with pytest.raises(TltoolsError, match=r"cannot write \S+/result\.txt: is a directory"):
        write_to_a_folder()
    assert files_in(tmp_path) == {}


KILLED = """
import os, signal, sys
from pathlib import Path
from tltools.atomic import atomic_folder, atomic_path
with atomic_path(Path(sys.argv[1])) as one, atomic_folder(Path(sys.argv[2])) as two:
    one.write_text("x")
    (two / "inner").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_behind(folder: Path) -> list[Path]:
    """Have a process killed while it writes a file and a folder; return what it leaves."""
    paths = [folder / "cnn.fp32.onnx", folder / "folder"]
    subprocess.run([sys.executable, "-c", KILLED, *map(str, paths)], check=False)
    return list(folder.glob(".tltools-*.tmp"))


def test_the_next_writer_removes_what_killed_processes_left(tmp_path):
    assert len(leave_behind(tmp_path)) == 2
    assert len(leave_behind(tmp_path)) == 2  # those of the first one are gone
    write_text(tmp_path / "result.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["result.txt"]


def test_a_folder_in_use_is_not_removed_by_another_process(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tltools.atomic import write_text\n"
        "write_text(Path(sys.argv[1]), 'other')"
    )
    with atomic_path(tmp_path / "a.txt") as temporary, atomic_folder(tmp_path / "b") as folder:
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "c.txt")], check=True)
        temporary.write_text("a")
        (folder / "d.txt").write_text("d")
    assert files_in(tmp_path) == {"a.txt": b"a", "b/d.txt": b"d", "c.txt": b"other"}


def test_what_is_only_named_like_a_temporary_folder_stays(tmp_path):
    names = [".photos.20240101.tmp", ".tltools-20240101.tmp", ".tltools-abcdefgh.tmp/.owner"]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "mine").write_text("mine")
    (tmp_path / ".tltools-12345678.tmp").write_text("mine")
    (tmp_path / ".notes.20240101.tmp.txt").write_text("mine")
    other = tmp_path / ".tltools-aaaaaaaa.tmp"
    other.mkdir()
    (other / ".owner").write_text("somebody else's")
    link, target = tmp_path / ".tltools-bbbbbbbb.tmp", tmp_path / "elsewhere"
    target.mkdir()
    link.symlink_to(target)
    mine = files_in(tmp_path)
    others = set(tmp_path.iterdir())
    left = sorted(set(leave_behind(tmp_path)) - others)
    shutil.copy(left[0] / ".owner", target)
    for path in tmp_path.rglob("*"):
        make_old(path)
    remove_leftovers(tmp_path)
    assert files_in(tmp_path).items() >= mine.items()
    assert link.is_symlink()
    assert (target / ".owner").exists()
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("unlocked", ["another machine", "no locks"])
def test_leftovers_are_removed_after_a_day_where_locks_do_not_reach(
    unlocked, tmp_path, monkeypatch
):
    left = leave_behind(tmp_path)
    if unlocked == "no locks":

        def refuse(*_args):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
    else:
        monkeypatch.setattr(platform, "node", lambda: "another")
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in left)
    for path in left[0].rglob("*"):
        make_old(path)
    remove_leftovers(tmp_path)
    assert [path.exists() for path in left] == [False, True]


# ----------------------------------------------------------------------------- a full disk

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
"""


def run_limited(limit: int, script: str, *args: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a script in a process whose files cannot become larger than `limit` bytes."""
    command = [sys.executable, "-c", LIMITED + script, str(limit), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


WRITERS = """
import contextlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
import numpy as np, onnx, pandas, torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file
from tltools.atomic import atomic_path
from tltools.errors import TltoolsError
from tltools.runtime.model_formats.torchscript import _save

class card:
    to_json = lambda: "{}"

big = torch.rand(100_000)
noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
figure = Figure()
figure.figimage(noise)
tensor = onnx.numpy_helper.from_array(big.numpy(), "big")
graph = onnx.helper.make_graph([], "graph", [], [], [tensor])
module = torch.jit.trace(torch.nn.Linear(1000, 100), torch.zeros(1, 1000))
writers = {
    "state.pt": lambda path: torch.save({"big": big}, path),
    "checkpoint.safetensors": lambda path: save_file({"big": big}, path),
    "model.onnx": lambda path: onnx.save(onnx.helper.make_model(graph), path),
    "module.pt": lambda path: _save(module, path, card),
    "table.csv": lambda path: pandas.DataFrame({"big": big.numpy()}).to_csv(path),
    "image.png": lambda path: Image.fromarray(noise).save(path),
    "figure.png": lambda path: figure.savefig(path),
    "text.txt": lambda path: path.write_text("x" * 100_000),
}
for name, write in writers.items():
    Path(name).write_text("earlier")
    try:
        with atomic_path(Path(name)) as temporary:
            write(temporary)
    except TltoolsError as error:
        print(error)
    else:
        print("no error", name)
"""


@pytest.mark.filterwarnings("ignore")
def test_a_full_disk_is_a_one_line_error_for_every_library_that_writes(tmp_path):
    done = run_limited(20_000, WRITERS, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 8, done.stderr
    for line in lines:
        assert line.startswith("cannot write "), line
        assert ": file too large; the earlier file there is unchanged; free some disk space" in line
    assert set(files_in(tmp_path).values()) == {b"earlier"}


COMMAND = "\nfrom tltools.cli import main\nmain(sys.argv[2:])\n"


@pytest.fixture
def workplace(cnn_run, cnn_exports, tmp_path):
    shutil.copytree(cnn_run, tmp_path / "runs" / "cnn")
    shutil.copytree(cnn_run.parents[1] / "exports", tmp_path / "exports")
    return tmp_path


FULL = {
    "train": (
        ("train", "{drawn}", "--model", "cnn", "--epochs", "1", "--device", "cpu"),
        100_000,
        r"cannot write runs/cnn-2/state.pt: file too large",
    ),
    "export": (
        ("export", "runs/cnn", "--format", "all", "--parity-images", "2"),
        100_000,
        "cannot write exports/cnn/cnn.fp32.pt: file too large",
    ),
    "bench": (
        ("bench", "exports/cnn/cnn.fp32.onnx", "--data", "{drawn}", "--rounds", "1",
         "--iterations", "1", "--batch-sizes", "1", "--device", "cpu"),
        1_000,
        r"cannot write exports/bench-",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] if one == "bench" else []) for one in FULL]
)
def test_a_command_reports_a_full_disk_and_works_once_there_is_space(workplace, drawn, name):
    args, limit, message = FULL[name]
    args = [arg.format(drawn=drawn) for arg in args]
    earlier = files_in(workplace)
    done = run_limited(limit, COMMAND, *args, cwd=workplace)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"error: {message}"), done.stderr
    assert "Traceback" not in done.stderr
    left = files_in(workplace)
    assert {path: left[path] for path in earlier} == earlier
    assert not [path for path in left if ".tmp" in path]
    ran = run_tltools(*args, cwd=workplace)
    assert ran.code == 0, ran
    made = files_in(workplace)
    assert set(made) > set(earlier) or name == "export"


def test_an_evaluation_that_does_not_fit_leaves_all_files_of_the_earlier_one(workplace, drawn):
    words = (drawn, "--device", "cpu", "--output", "scores")
    assert run_tltools("evaluate", "runs/cnn", *words, cwd=workplace).code == 0
    earlier = files_in(workplace / "scores")
    sizes = {path.name: path.stat().st_size for path in (workplace / "scores").iterdir()}
    limit = sizes.pop("confusion_matrix.png") - 1000  # only the last file does not fit
    assert max(sizes.values()) < limit
    words = ("evaluate", "exports/cnn/cnn.fp32.onnx", *map(str, words), "--overwrite")
    done = run_limited(limit, COMMAND, *words, cwd=workplace)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: cannot write scores/confusion_matrix.png: file too large;"
    ), done.stderr
    assert files_in(workplace / "scores") == earlier


def test_an_evaluation_that_is_stopped_between_its_files_leaves_no_mixture(
    workplace, drawn, monkeypatch
):
    words = (drawn, "--device", "cpu", "--output", "scores")
    assert run_tltools("evaluate", "runs/cnn", *words, cwd=workplace).code == 0
    replace = Path.replace

    def stop(path, target):
        if target == Path("scores") / "confusion_matrix.png":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    words += ("--overwrite",)  # of another model's
    ran = run_tltools("evaluate", "exports/cnn/cnn.fp32.onnx", *words, cwd=workplace)
    assert ran.code == 130
    # Only the rows, which are new, and the folder's mark.
    assert set(files_in(workplace / "scores")) == {".tltools", "predictions.csv"}


# ------------------------------------------------------------------- two processes, one cache

SHARING = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
import numpy as np
import tltools.training.features as features
from tltools.card import Preprocessing

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
save_file = features.save_file

def save_slowly(tensors, path):
    whole = Path(str(path) + ".whole")
    save_file(tensors, whole)
    data = whole.read_bytes()
    whole.unlink()
    with open(path, "wb") as file:  # half of it is there for a while
        file.write(data[: len(data) // 2])
        file.flush()
        time.sleep(0.002)
        file.write(data[len(data) // 2 :])

features.save_file = save_slowly
cache = features.FeatureCache(folder, weights_sha256="w", head="h", preprocessing=Preprocessing())
for number in range(60):
    # Half of the images are those of the other process, in the same shards.
    who = 0 if number % 2 else seed
    sha = f"{number:032x}{who:032x}"
    cache.add([sha], np.full((1, 4), number, dtype=np.float32))
    for known, values in cache.load().items():
        assert (values == int(known[:32], 16)).all()
print(len(cache.load()))
"""


def test_two_trainings_can_share_a_cache(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, str(tmp_path), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert int(out) >= 60
    cache = FeatureCache(tmp_path, weights_sha256="w", head="h", preprocessing=Preprocessing())
    assert len(cache.load()) == 90
    assert all(".tmp" not in name for name in files_in(tmp_path))


def test_a_half_written_shard_is_not_used_and_a_temporary_one_is_kept(tmp_path):
    cache = FeatureCache(tmp_path, weights_sha256="w", head="h", preprocessing=Preprocessing())
    features = np.arange(4, dtype=np.float32).reshape(1, 4)
    cache.add(["0" * 64], features)
    (shard,) = cache.folder.iterdir()
    writing = shard.with_name(".shard.abcdefgh.tmp.safetensors")
    writing.write_bytes(shard.read_bytes()[:-3])
    np.testing.assert_array_equal(cache.load()["0" * 64], features[0])
    assert writing.exists()
    shard.write_bytes(shard.read_bytes()[:-3])  # as power loss may leave it
    assert cache.load() == {}
    assert not shard.exists()


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    replace_bytes(path, b"first")
    replace_bytes(path, b"second")
    assert path.read_bytes() == b"second"

    def fail(*_args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        replace_bytes(path, b"third")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_only_a_real_failure_to_sync_a_folder_is_raised(number, raised, tmp_path, monkeypatch):
    def fail(_handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output") if raised else nullcontext():
        sync_folder(tmp_path)
