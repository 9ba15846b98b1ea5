"""A crew of worker processes: order, crashes, hangs, memory, and no leftovers."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import children, is_alive

from tltools import processes
from tltools.errors import DataError, TltoolsError
from tltools.processes import ForkServer, SharedMemory, Spawner
from tltools.runtime import workers
from tltools.runtime.workers import Crew, Mark, Task

linux = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc as on Linux")


class Double:
    """Work that doubles numbers; other items do to their worker what they say."""

    def open(self, memory):
        self.values = None if memory is None else np.frombuffer(memory, np.uint8)
        return self.do, os.getpid()

    def pack(self, task):
        return task.items, task.details

    def try_item(self, item):
        act(item)

    def do(self, task, mark):
        done = []
        for index, item in enumerate(task.items):
            if index in task.blamed:
                done.append(task.blamed[index])
                continue
            mark.item(index)
            done.append(act(item))
        mark.items_done()
        if task.details == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        return done


class Read(Double):
    def do(self, task, mark):
        return [int(self.values[item]) for item in task.items]


class Unable(Double):
    def open(self, memory):
        raise DataError("no such model")


def act(item):
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
    if item == "hang":
        time.sleep(60)
    if item == "error":
        raise DataError("as asked")
    if item == "bug":
        raise KeyError("as asked")
    if isinstance(item, tuple):  # crash so many times, as told by a file
        path, times = item
        with Path(path).open("a") as file:
            file.write("x")
        if Path(path).stat().st_size <= times:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return "survived"
    return item * 2


class Allocate(Double):
    def do(self, task, mark):
        found = []
        for index, item in enumerate(task.items):
            mark.item(index)
            with mark.bounded():
                try:
                    found.append(len(bytearray(item)))
                except MemoryError:
                    found.append("no room")
        mark.items_done()
        return found


LAUNCHERS = {
    "forked": lambda: ForkServer(preload=(__name__,), fork=True),
    "program": lambda: ForkServer(preload=workers.PRELOAD),
    "spawned": Spawner,
}


@pytest.fixture(params=["program", "spawned"])
def launcher(request):
    if request.param == "program" and not processes.HAS_FORK_SERVER:
        pytest.skip("no fork server on this system")
    made = LAUNCHERS[request.param]()
    yield made
    made.close()


def results(crew: Crew, tasks: list[Task]) -> list:
    pending = [crew.submit(task) for task in tasks]
    while not all(one.is_done for one in pending):
        crew.wait()
    return [one.result() for one in pending]


@pytest.mark.parametrize("size", [1, 3])
def test_tasks_run_in_the_given_number_of_processes(launcher, size):
    with Crew(Double(), size=size, launcher=launcher) as crew:
        found = results(crew, [Task([number, -number]) for number in range(40)])
        assert found == [[2 * number, -2 * number] for number in range(40)]
        pids = {worker.process.pid for worker in crew._workers}
        assert len(pids) == size
        assert os.getpid() not in pids


def test_memory_is_shared_with_all_workers(launcher):
    memory = SharedMemory(100)
    np.frombuffer(memory.map, np.uint8)[:] = np.arange(100)
    with Crew(Read(), size=2, launcher=launcher, memory=memory) as crew:
        assert results(crew, [Task([number]) for number in range(5)]) == [[i] for i in range(5)]
    memory.close()


@linux
def test_shared_memory_leaves_no_name_behind():
    folder = Path("/dev/shm")  # noqa: S108 - where named ones would be
    before = set(folder.iterdir())
    memory = SharedMemory(10_000_000)
    assert set(folder.iterdir()) == before
    memory.close()


def test_an_error_takes_the_place_of_its_result_and_the_rest_is_done(launcher):
    with Crew(Double(), size=2, launcher=launcher) as crew:
        first, error, bug, last = [crew.submit(Task([item])) for item in (1, "error", "bug", 2)]
        while not all(one.is_done for one in (first, error, bug, last)):
            crew.wait()
        assert (first.result(), last.result()) == ([2], [4])
        with pytest.raises(DataError, match="as asked"):
            error.result()
        with pytest.raises(RuntimeError, match=r"(?s)worker process failed.*in act\n.*KeyError"):
            bug.result()


@linux
def test_an_item_that_crashes_or_hangs_costs_only_itself(launcher):
    told = []
    tasks = [Task([1, "crash", 2]), Task([3]), Task(["hang", 4]), Task([5, 6])]
    with Crew(
        Double(),
        size=2,
        launcher=launcher,
        timeout_s=1.0,
        on_blame=lambda task, index, reason: told.append((task.items[index], reason)),
    ) as crew:
        found = results(crew, tasks)
    crash = "the decoder crashed (SIGSEGV)"
    hang = "the decoder took longer than 1 s for an image"
    assert found == [[2, crash, 4], [6], [hang, 8], [10, 12]]
    assert sorted(told) == [("crash", crash), ("hang", hang)]


@linux
@pytest.mark.parametrize(("times", "outcome"), [(1, "survived"), (2, "survived"), (3, None)])
def test_an_item_is_blamed_for_a_kill_only_if_it_recurs(launcher, tmp_path, times, outcome):
    """Somebody may kill a worker, and once more by chance while it tries the item alone."""
    with Crew(Double(), size=1, launcher=launcher) as crew:
        ((found,),) = results(crew, [Task([(str(tmp_path / "tries"), times)])])
    assert found == (outcome or "the decoder was killed by SIGKILL, perhaps out of memory")


@linux
def test_work_that_crashes_without_an_item_is_an_error_after_some_retries(launcher):
    with (
        Crew(Double(), size=1, launcher=launcher) as crew,
        pytest.raises(
            TltoolsError, match=r"the job crashed \(SIGSEGV\), 3 times at the same place"
        ),
    ):
        results(crew, [Task([1], "crash")])


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_workers_killed_or_stopped_from_outside_are_replaced(launcher, number, monkeypatch):
    monkeypatch.setattr(workers, "STOPPED_S", 0.2)
    with Crew(Double(), size=3, launcher=launcher, timeout_s=20) as crew:
        pending = []
        for value in range(300):
            pending.append(crew.submit(Task([value])))
            if value in (30, 150, 151):
                with suppress(ProcessLookupError):  # the one killed before, not replaced yet
                    os.kill(crew._workers[0].process.pid, number)
        while not all(one.is_done for one in pending):
            crew.wait()
        assert [one.result() for one in pending] == [[2 * value] for value in range(300)]


@linux
def test_idle_workers_may_be_killed_any_number_of_times(launcher):
    """No task is lost by it; a service would end after the third."""
    with Crew(Double(), size=1, launcher=launcher) as crew:
        for value in range(2 * workers.MAX_STALLS):
            assert results(crew, [Task([value])]) == [[2 * value]]
            pid = crew._workers[0].process.pid
            os.kill(pid, signal.SIGKILL)
            while crew._workers and crew._workers[0].process.pid == pid:
                crew.wait()


@linux
def test_an_item_cannot_exceed_its_workers_memory(launcher, monkeypatch):
    monkeypatch.setattr(workers, "share_of_memory", lambda _num: 200 * 2**20)
    with Crew(Allocate(), size=1, launcher=launcher) as crew:
        sizes = [10**6, 2 * 10**9, 10**8]
        assert results(crew, [Task(sizes), Task(sizes)]) == [[10**6, "no room", 10**8]] * 2


@linux
@pytest.mark.parametrize("workers_given", [1, 2])
def test_an_image_too_large_for_the_containers_memory_costs_only_its_own_row(
    workers_given, onnx_path, images, tmp_path
):
    """38 bytes of WebP that declare 9,459 x 9,459 pixels, for which libwebp takes 2.1 GB."""
    groups = Path("/sys/fs/cgroup/memory")
    group = groups / f"tltools-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(512 * 2**20))
    except OSError:
        pytest.skip("no right to make a control group of memory (version 1) here")
    size = 9458 | 9458 << 14
    data = b"\x2f" + size.to_bytes(4, "little") + bytes(13)
    chunk = b"VP8L" + len(data).to_bytes(4, "little") + data
    webp = b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk
    (images / "bomb.webp").write_bytes(webp)
    output = tmp_path / "out.csv"
    command = [sys.executable, "-c", "from tltools.cli import main; main()", "classify"]
    command += [images, "--model", onnx_path, "--device", "cpu", "-o", output]
    command += ["--workers", workers_given]
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", f'echo $$ > {group}/tasks; exec "$@"', "sh", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        peak = int((group / "memory.max_usage_in_bytes").read_text())
    finally:
        group.rmdir()
    assert done.returncode == 0, done.stderr
    assert "31 rows (1 with an error; percentages are of the other 30)" in done.stderr
    assert peak < 500 * 2**20


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("kind", ["forked", "program"])
def test_a_fork_server_killed_or_stopped_from_outside_is_replaced(kind, number, monkeypatch):
    monkeypatch.setattr(processes, "ANSWER_S", 0.5)
    launcher = LAUNCHERS[kind]()
    with Crew(Double(), size=2, launcher=launcher) as crew:
        assert results(crew, [Task([1]), Task([2])]) == [[2], [4]]
        server = launcher._pid or launcher._program.pid
        os.kill(server, number)
        os.kill(crew._workers[0].process.pid, signal.SIGKILL)
        assert results(crew, [Task([number]) for number in range(20)]) == [
            [2 * number] for number in range(20)
        ]
    launcher.close()
    assert not is_alive(server)


@linux
def test_a_fork_server_may_take_longer_to_start_than_to_answer(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(processes, "ANSWER_S", 0.5)
    launcher = ForkServer(preload=("slow_to_import",))
    worker = launcher.start(workers.TARGET)
    assert is_alive(worker.pid)
    worker.channel.close()
    launcher.close()


@linux
def test_ctrl_c_while_the_server_starts_prints_nothing_and_does_not_end_it(
    tmp_path, monkeypatch, capfd
):
    """The terminal sends it to each process of a job, and this one is still starting Python."""
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    launcher = ForkServer(preload=workers.PRELOAD)
    time.sleep(0.4)
    os.kill(launcher._program.pid, signal.SIGINT)
    worker = launcher.start(workers.TARGET)
    assert is_alive(worker.pid)
    worker.channel.close()
    launcher.close()
    assert capfd.readouterr().err == ""


def test_a_failure_to_open_is_raised(launcher):
    with Crew(Unable(), size=2, launcher=launcher) as crew, pytest.raises(DataError, match="no su"):
        results(crew, [Task([1])])


def test_little_work_is_done_in_this_process_and_much_in_workers(monkeypatch):
    monkeypatch.setattr(workers, "INLINE_S", 0.05)
    pids = []

    def here(task, mark):
        pids.append(os.getpid())
        time.sleep(0.01)
        return Double().do(task, Mark())

    with Crew(Double(), size=2, local=here) as crew:
        for value in range(3):
            assert crew.submit(Task([value])).result() == [2 * value]
        assert not crew._workers
        pending = []
        while not crew.is_staffed:
            pending.append(crew.submit(Task([1])))
        num_here = len(pids)
        pending += [crew.submit(Task([1])) for _ in range(20)]
        while not all(one.is_done for one in pending):
            crew.wait()
        assert len(pids) == num_here


@linux
def test_a_process_with_threads_never_forks():
    """The fork server is a program of its own where the calling one has threads."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with Crew(Double(), size=2) as crew:
            assert results(crew, [Task([1])]) == [[2]]
            assert isinstance(crew._owned, ForkServer)
            assert crew._owned._program is not None
            threads = Path(f"/proc/{crew._owned._program.pid}/task").iterdir()
            assert [one.name for one in threads] == [str(crew._owned._program.pid)]
    finally:
        stop.set()
        thread.join()


SCRIPT = """
import os, sys, time
sys.path[:0] = {path!r}
from test_workers import Double, LAUNCHERS
from tltools.runtime.workers import Crew, Task
launcher = LAUNCHERS[sys.argv[1]]()
crew = Crew(Double(), size=2, launcher=launcher, timeout_s=1000)
crew.__enter__()
hung = [crew.submit(Task(["hang"])) for _ in range(2)]
while any(worker.view[0] == 0 for worker in crew._workers) or len(crew._workers) < 2:
    crew.wait()
print(*[worker.process.pid for worker in crew._workers], flush=True)
time.sleep(60)
"""


@linux
@pytest.mark.parametrize("kind", LAUNCHERS)
@pytest.mark.parametrize("stop_first", [False, True])
def test_a_killed_program_leaves_no_processes(kind, stop_first):
    script = SCRIPT.format(path=[str(Path(__file__).parent)])
    program = subprocess.Popen([sys.executable, "-c", script, kind], stdout=subprocess.PIPE)
    pids = list(map(int, program.stdout.readline().split()))
    assert len(pids) == 2
    others = children(program.pid)
    if stop_first and kind != "spawned":  # multiprocessing's would have to go on to end
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
    program.kill()
    program.wait()
    program.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(is_alive, {*pids, *others})) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in {*pids, *others} if is_alive(pid)] == []
