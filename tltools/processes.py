"""Start worker processes, talk to them, and share memory with them.

Nothing forks that has threads. On Linux a fork server starts the workers: a process that imports
what they need, starts no thread, and divides itself once for each. It is divided from a program
that has no threads yet, or started as a program of its own. Elsewhere each worker is started by
multiprocessing's `spawn`.

The standard library has a fork server too (`multiprocessing.forkserver`). It imports the calling
program's main module again, tells its parent nothing about how a child ended, and leaves a child
that hangs alive when the parent is killed; all three are needed here.
"""

import array
import ctypes
import errno
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NoReturn, Protocol

if sys.platform != "win32":
    import resource

HAS_FORK_SERVER = sys.platform == "linux"
STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a program to end. A terminal and a service manager send them to
every process of a job; only the one that orders the work answers."""
ANSWER_S = 5.0
"""How long the fork server may take to answer; it is never busy."""
_LENGTH = struct.Struct("<Q")
_BLOCK = 2**16
_PR_SET_PDEATHSIG = 1
_OWN_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Libraries that would start threads when they are imported; a worker is one core's."""


@contextmanager
def own_threads_only() -> Iterator[None]:
    """Keep libraries that are imported within from starting threads, now and later."""
    before = {name: os.environ.get(name) for name in _OWN_THREADS}
    os.environ.update(_OWN_THREADS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def num_threads() -> int:
    """Return how many threads this process has, those of libraries included (Linux)."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names are enough


class ClosedError(Exception):
    """The other end of a channel is closed, so its process has ended."""


class Channel:
    """Messages between two processes, over a socket; only processes of one job talk by it.

    `post` and `collect` never wait: one end serves many others. `send` and `receive` do.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Take one end of a pair."""
        self.socket = sock
        self._outbox: deque[memoryview] = deque()
        self._inbox = bytearray()
        self._block = bytearray(_BLOCK)  # kept: memory that is new costs a fault for each page

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    def send(self, message: object) -> None:
        """Send a message and wait until the system has taken all of it.

        Raises:
            ClosedError: If the other end is closed.
        """
        try:
            self.socket.sendall(_packed(message))
        except OSError as error:
            raise ClosedError from error

    def receive(self) -> Any:
        """Wait for a message.

        Raises:
            ClosedError: If the other end is closed.
        """
        (size,) = _LENGTH.unpack(self._receive_bytes(_LENGTH.size))
        return pickle.loads(self._receive_bytes(size))  # noqa: S301 - from our own process

    def _receive_bytes(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = self.socket.recv_into(view)
            except OSError as error:
                raise ClosedError from error
            if not count:
                raise ClosedError
            view = view[count:]
        return data

    def post(self, message: object) -> None:
        """Send a message as far as that is possible now; `flush` sends the rest.

        Raises:
            ClosedError: If the other end is closed.
        """
        self._outbox.append(memoryview(_packed(message)))
        self.flush()

    @property
    def has_more(self) -> bool:
        """Whether there is something left to send."""
        return bool(self._outbox)

    def flush(self) -> None:
        """Send what the system takes now.

        Raises:
            ClosedError: If the other end is closed.
        """
        while self._outbox:
            data = self._outbox[0]
            try:
                count = self.socket.send(data, getattr(socket, "MSG_DONTWAIT", 0))
            except BlockingIOError:
                return
            except OSError as error:
                raise ClosedError from error
            if count == len(data):
                self._outbox.popleft()
            else:
                self._outbox[0] = data[count:]

    def collect(self) -> Iterator[Any]:
        """Yield the complete messages that are here.

        Raises:
            ClosedError: After the last message, if the other end is closed.
        """
        closed = False
        while True:
            try:
                count = self.socket.recv_into(self._block, 0, getattr(socket, "MSG_DONTWAIT", 0))
            except BlockingIOError:
                break
            except OSError:
                count = 0
            if not count:
                closed = True
                break
            self._inbox += memoryview(self._block)[:count]
            if count < _BLOCK:
                break
        start = 0
        while len(self._inbox) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._inbox, start)
            stop = start + _LENGTH.size + size
            if len(self._inbox) < stop:
                break
            message = pickle.loads(  # noqa: S301 - from our own process
                memoryview(self._inbox)[start + _LENGTH.size : stop]
            )
            start = stop
            yield message
        del self._inbox[:start]
        if closed:
            raise ClosedError

    def send_handle(self, handle: int) -> None:
        """Send a file descriptor, behind a message that announces it.

        Raises:
            ClosedError: If the other end is closed.
        """
        handles = array.array("i", [handle])
        try:
            self.socket.sendmsg([b"h"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)])
        except OSError as error:
            raise ClosedError from error

    def receive_handle(self) -> int:
        """Receive a file descriptor.

        Raises:
            ClosedError: If the other end is closed.
        """
        handles = array.array("i")
        try:
            _, found, _, _ = self.socket.recvmsg(1, socket.CMSG_SPACE(handles.itemsize))
        except OSError as error:
            raise ClosedError from error
        for level, kind, data in found:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                handles.frombytes(data[: handles.itemsize])
                return handles[0]
        raise ClosedError


def _packed(message: object) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


# ------------------------------------------------------------------------------------- memory


class SharedMemory:
    """Zeroed bytes that processes share, without a name: they go with the last of the processes.

    So nothing is left in /dev/shm by a process that is killed, and a container's small /dev/shm
    does not bound it.
    """

    def __init__(self, num_bytes: int) -> None:
        """Allocate them; pages that are never written take no room.

        Raises:
            OSError: If there is no room.
        """
        self.num_bytes = num_bytes
        self._tag = ""
        self._handle = -1
        if sys.platform == "win32":
            self._tag = f"tltools-{os.getpid()}-{id(self)}-{time.monotonic_ns()}"
            self.map = mmap.mmap(-1, num_bytes, tagname=self._tag)
            return
        if hasattr(os, "memfd_create"):
            self._handle = os.memfd_create("tltools")
        else:
            self._handle, path = tempfile.mkstemp(prefix="tltools-")
            os.unlink(path)  # noqa: PTH108 - a name from mkstemp
        _lengthen(self._handle, num_bytes)
        self.map = mmap.mmap(self._handle, num_bytes)

    def announce(self) -> tuple[int, str]:
        """Return what `receive_memory` has to know."""
        return self.num_bytes, self._tag

    def send(self, channel: Channel) -> None:
        """Send the memory's descriptor, where it has one."""
        if self._handle >= 0:
            channel.send_handle(self._handle)

    def close(self) -> None:
        """Let go of it; arrays that lie in it keep it alive."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        with suppress(BufferError):
            self.map.close()


def _lengthen(handle: int, num_bytes: int) -> None:
    """Give shared memory its size, to which a limit of files (ulimit -f) is not meant to apply."""
    try:
        os.ftruncate(handle, num_bytes)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        try:
            os.ftruncate(handle, num_bytes)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def receive_memory(channel: Channel, num_bytes: int, tag: str) -> mmap.mmap:
    """Map the memory that another process shares.

    Args:
        channel: Where its descriptor comes from.
        num_bytes: As it was announced.
        tag: As it was announced.
    """
    if tag and sys.platform == "win32":
        return mmap.mmap(-1, num_bytes, tagname=tag)
    handle = channel.receive_handle()
    try:
        return mmap.mmap(handle, num_bytes)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------ workers


class Process(Protocol):
    """A worker process."""

    pid: int
    channel: Channel

    def kill(self) -> None:
        """End it at once, stopped or not."""
        ...

    def wait(self) -> int:
        """Wait for its end, which is near; return its exit code, or minus the signal's number."""
        ...


class Launcher(Protocol):
    """Starts worker processes."""

    def start(self, target: str) -> Process:
        """Start a process that calls `MODULE:FUNCTION` with its `Channel`.

        Raises:
            OSError: If the system starts no more.
        """
        ...

    def close(self) -> None:
        """End all processes that it has started, and everything of its own."""
        ...


def _run(target: str, channel: Channel) -> NoReturn:
    """Call a worker's function, and end this process whatever comes of it."""
    code = 1
    try:
        module, _, name = target.partition(":")
        getattr(import_module(module), name)(channel)
        code = 0
    except (ClosedError, KeyboardInterrupt):
        code = 0  # the process it worked for is gone
    except BaseException:  # a bug; there is no caller above this frame
        traceback.print_exc()
    finally:
        os._exit(code)


def _detach() -> None:
    """Leave the terminal's keys and standard input and output to the process that orders."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1):
        os.dup2(nowhere, handle)
    os.close(nowhere)


def _end_with_parent(parent: int) -> None:
    """Have the system kill this process when the thread that started it ends (Linux).

    A stopped process (SIGSTOP) could not do that by itself.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before
        os._exit(0)


class _Forked:
    """A worker that the fork server has started."""

    def __init__(self, server: "ForkServer", pid: int, channel: Channel) -> None:
        self.pid = pid
        self.channel = channel
        self._server = server

    def kill(self) -> None:
        """End it at once."""
        if self.pid not in self._server.ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; return its exit code, or minus the signal's number."""
        return self._server.wait(self.pid)


class ForkServer:
    """The process that divides for each worker; see the module."""

    def __init__(
        self,
        *,
        preload: Sequence[str] = (),
        fork: bool = False,
        farewell: Callable[[], str] | None = None,
    ) -> None:
        """Start it.

        Args:
            preload: Modules that workers need and that start no threads; workers share them.
            fork: Divide this process, which must have no other thread, instead of starting a
                program: a tenth of a second sooner.
            farewell: What it says on standard error if this process ends without `close`; called
                in the server.
        """
        self.ended: dict[int, int] = {}
        """Exit codes of workers that have ended, by process number."""
        self._preload = preload
        self._farewell = farewell
        self._kept: list[Process] = []
        self._asked_for: deque[Channel] = deque()
        self._begin(fork=fork)

    def _begin(self, *, fork: bool) -> None:
        """Start the server's process."""
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._pid = 0
        self._program: subprocess.Popen[bytes] | None = None
        # The system tells a child of the end of the thread that started it, not of the process.
        with_parent = threading.current_thread() is threading.main_thread()
        if fork:
            parent = os.getpid()
            self._pid = os.fork()
            if not self._pid:
                ours.close()
                _serve(Channel(theirs), self._preload, parent, self._farewell)
        else:
            self._program = _start_server(theirs, self._preload, with_parent=with_parent)
        theirs.close()

    def start(self, target: str) -> Process:
        """Start a worker; see `Launcher`. One that is kept, or was asked for, is taken first."""
        if self._kept:
            return self._kept.pop()
        try:
            return self._start(target)
        except (ClosedError, TimeoutError):  # the server was ended or stopped
            self.close()
            self._begin(fork=False)
        try:
            return self._start(target)
        except (ClosedError, TimeoutError) as error:
            raise OSError("the process that starts workers has ended") from error

    def _start(self, target: str) -> Process:
        if not self._asked_for:
            self._ask(target)
        channel = self._asked_for.popleft()
        try:
            pid = self._answer(lambda message: message[0] == "started")[1]
        except (ClosedError, TimeoutError):
            channel.close()
            raise
        if pid < 0:
            channel.close()
            raise OSError(-pid, os.strerror(-pid))
        return _Forked(self, pid, channel)

    def _ask(self, target: str) -> None:
        """Ask the server for a worker, and do not wait for it."""
        ours, theirs = socket.socketpair()
        try:
            self._channel.send(target)
            self._channel.send_handle(theirs.fileno())
        except ClosedError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._asked_for.append(Channel(ours))

    def prepare(self, target: str, message: object) -> None:
        """Have a worker started, and told something, while this process does something else."""
        with suppress(ClosedError):  # `start` says so
            self._ask(target)
            self._asked_for[-1].send(message)

    def keep(self, process: Process) -> None:
        """Keep a worker that waits for its next message."""
        self._kept.append(process)

    def wait(self, pid: int) -> int:
        """Wait for the end of a worker; return its exit code, or minus the signal's number."""
        while pid not in self.ended:
            try:
                self._answer(lambda message: message[:2] == ("ended", pid))
            except (ClosedError, TimeoutError):
                self.ended[pid] = -signal.SIGKILL
        return self.ended.pop(pid)

    def _answer(self, is_it: Callable[[Any], bool]) -> Any:
        """Wait for a message of the server; note the ends that it tells of meanwhile."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not _select([self._channel], [], left)[0]:
                raise TimeoutError
            message = self._channel.receive()
            if message[0] == "ended":
                self.ended[message[1]] = message[2]
            if is_it(message):
                return message

    def close(self) -> None:
        """End the server and with it all workers."""
        with suppress(ClosedError):
            self._channel.send("")
        for channel in (self._channel, *self._asked_for, *(one.channel for one in self._kept)):
            channel.close()
        self._asked_for.clear()
        self._kept.clear()
        if self._pid:
            with suppress(ChildProcessError):
                _reap(self._pid)
            self._pid = 0
        if self._program is not None:
            try:
                self._program.wait(ANSWER_S)
            except subprocess.TimeoutExpired:  # it was stopped
                self._program.kill()
                self._program.wait()
            self._program = None


def _reap(pid: int) -> None:
    """Wait for a child's end; kill it if it does not come, which means that it was stopped."""
    deadline = time.monotonic() + ANSWER_S
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.002)


def _start_server(
    theirs: socket.socket, preload: Sequence[str], *, with_parent: bool
) -> "subprocess.Popen[bytes]":
    paths = os.pathsep.join(path for path in sys.path if path)
    order = repr((theirs.fileno(), list(preload), os.getpid() if with_parent else 0))
    return subprocess.Popen(  # noqa: S603 - this module itself
        [sys.executable, "-c", f"from {__name__} import run_server; run_server(*{order})"],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
    )


def run_server(handle: int, preload: Sequence[str], parent: int) -> NoReturn:
    """Be the fork server, as a program; `parent` is 0 where the thread that started it may end."""
    _serve(Channel(socket.socket(fileno=handle)), preload, parent, None)


def _serve(
    channel: Channel,
    preload: Sequence[str],
    parent: int,
    farewell: Callable[[], str] | None,
) -> NoReturn:
    """Start workers until the other end says that it is enough, or has ended."""
    try:
        _detach()
        if parent:
            _end_with_parent(parent)
        os.environ.update(_OWN_THREADS)
        for name in preload:
            import_module(name)
        if not _Server(channel).run() and farewell is not None:
            with suppress(OSError):
                os.write(2, f"{farewell()}\n".encode())
    finally:
        os._exit(0)


class _Server:
    """What the fork server does once it has imported everything."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._children: set[int] = set()
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        self._wake_end = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

    def run(self) -> bool:
        """Serve; return whether the end was said and not only seen."""
        said = False
        try:
            while True:
                ready = wait_for([self._channel], [self._wake], 3600)
                with suppress(BlockingIOError):
                    self._wake.recv(4096)
                self._tell_ends()
                if self._channel in ready:
                    target = self._channel.receive()
                    if not target:
                        said = True
                        break
                    self._start(target)
        except ClosedError:
            said = False
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)
        return said

    def _start(self, target: str) -> None:
        handle = self._channel.receive_handle()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(handle)
            self._say("started", -(error.errno or 1))
            return
        if not pid:
            self._become_worker(target, handle, parent)
        os.close(handle)
        self._children.add(pid)
        self._say("started", pid)

    def _become_worker(self, target: str, handle: int, parent: int) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._wake.close()
        self._wake_end.close()
        self._channel.close()
        _end_with_parent(parent)
        _run(target, Channel(socket.socket(fileno=handle)))

    def _tell_ends(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._children.remove(pid)
                self._say("ended", pid, os.waitstatus_to_exitcode(status))

    def _say(self, *message: object) -> None:
        """Send a message; one that has left may have said farewell first, which is read next."""
        with suppress(ClosedError):
            self._channel.send(message)


class _Spawned:
    """A worker that multiprocessing has started."""

    def __init__(self, process: Any, channel: Channel) -> None:
        self.pid: int = process.pid
        self.channel = channel
        self._process = process

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self) -> int:
        """Wait for its end; return its exit code, or minus the signal's number."""
        self._process.join(ANSWER_S)
        code = self._process.exitcode
        return -signal.SIGTERM if code is None else code


class Spawner:
    """Starts workers where there is no fork server: with `spawn`, as multiprocessing does it."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._workers: list[_Spawned] = []

    def start(self, target: str) -> Process:
        """Start a worker; see `Launcher`."""
        import multiprocessing

        ours, theirs = socket.socketpair()
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_run_spawned, args=(target, theirs), daemon=True)
        try:
            process.start()
        finally:
            theirs.close()
        worker = _Spawned(process, Channel(ours))
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
        self._workers.clear()


def _run_spawned(target: str, sock: socket.socket) -> NoReturn:
    threading.Thread(target=_end_after_parent, daemon=True).start()
    _detach()
    os.environ.update(_OWN_THREADS)
    _run(target, Channel(sock))


def _end_after_parent() -> None:
    """End this process, whatever it does, when the one that started it has ended."""
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def wait_for(channels: Iterable[Channel], others: Iterable[Any], timeout_s: float) -> set[Any]:
    """Wait until something can be read, or what is left can be sent; return what can be read.

    Args:
        channels: To other processes.
        others: Anything with a descriptor.
        timeout_s: Longest wait.
    """
    every = list(channels)
    sending = [channel for channel in every if channel.has_more]
    ready, writable = _select([*every, *others], sending, timeout_s)
    for channel in writable:
        with suppress(ClosedError):  # then it can be read as well, and is seen to be closed there
            channel.flush()
    return set(ready)


def _select(
    reading: Sequence[Any], writing: Sequence[Any], timeout_s: float
) -> tuple[list[Any], list[Any]]:
    """As `select.select`, which takes no descriptor above 1023."""
    if not hasattr(select, "poll"):
        ready, writable, _ = select.select(reading, writing, [], timeout_s)
        return ready, writable
    poll = select.poll()
    for one in reading:
        poll.register(one, select.POLLIN | (select.POLLOUT if one in writing else 0))
    by_handle = {one.fileno(): one for one in reading}
    events = poll.poll(timeout_s * 1000)
    wants = select.POLLIN | select.POLLHUP | select.POLLERR
    return (
        [by_handle[handle] for handle, event in events if event & wants],
        [by_handle[handle] for handle, event in events if event & select.POLLOUT],
    )
