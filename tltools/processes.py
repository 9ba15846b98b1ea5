"""Start worker processes, exchange messages with them, and share memory with them.

No process that has threads is ever forked. On Linux a fork server starts the workers: a process
that imports what they need, starts no threads, and forks once for each worker. The fork server
itself is forked from a program that has no threads yet, or started as a separate program.
Elsewhere, multiprocessing's `spawn` starts each worker.

The standard library's fork server (`multiprocessing.forkserver`) does not fit: it imports the
calling program's main module again, does not tell its parent how a child ended, and leaves a
hanging child alive when the parent is killed.
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
"""Signals that ask a program to end. Terminals and service managers send them to every process of
a job; only the main process reacts."""
START_S = 60.0
"""How long the fork server may take to start, that is to import its modules, in seconds."""
ANSWER_S = 5.0
"""How long the fork server may take to answer afterwards, in seconds; it is never busy."""
_LENGTH = struct.Struct("<Q")
_BLOCK = 2**16
_PR_SET_PDEATHSIG = 1
_OWN_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Keep libraries from starting threads when they are imported: a worker uses one core."""


@contextmanager
def own_threads_only() -> Iterator[None]:
    """Keep libraries that are imported within the block from ever starting threads."""
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
    """Return how many threads this process has, including those of libraries (Linux)."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names are enough


class ClosedError(Exception):
    """The other end of a channel is closed, so its process has ended."""


class Channel:
    """Messages between two processes of one job, over a socket.

    `post` and `collect` never wait, so one process can serve many others. `send` and `receive` do.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Use one end of a socket pair."""
        self.socket = sock
        self._outbox: deque[memoryview] = deque()
        self._inbox = bytearray()
        self._block = bytearray(_BLOCK)  # reused: new memory costs a page fault per page

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    def send(self, message: object) -> None:
        """Send a message, and wait until the system has accepted all of it.

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
        """Send as much of a message as possible without waiting; `flush` sends the rest.

        Raises:
            ClosedError: If the other end is closed.
        """
        self._outbox.append(memoryview(_packed(message)))
        self.flush()

    @property
    def has_more(self) -> bool:
        """Whether anything is left to send."""
        return bool(self._outbox)

    def flush(self) -> None:
        """Send as much as the system accepts now.

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
        """Yield the complete messages that have arrived.

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
        """Send a file descriptor, after a message that announces it.

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
    """Zeroed memory that processes share, without a name: the system frees it after the last one.

    A killed process leaves nothing in /dev/shm, and a container's small /dev/shm is no limit.
    """

    def __init__(self, num_bytes: int) -> None:
        """Allocate the memory; pages that are never written take no space.

        Raises:
            OSError: If the system is out of memory.
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
        """Return the number of bytes and the tag that `receive_memory` needs."""
        return self.num_bytes, self._tag

    def send(self, channel: Channel) -> None:
        """Send the memory's descriptor, if it has one."""
        if self._handle >= 0:
            channel.send_handle(self._handle)

    def close(self) -> None:
        """Release the memory; arrays that use it keep it alive."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        with suppress(BufferError):
            self.map.close()


def _lengthen(handle: int, num_bytes: int) -> None:
    """Set the size of shared memory, even beyond the file size limit (ulimit -f)."""
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
        channel: Channel on which its descriptor arrives.
        num_bytes: Size, from `SharedMemory.announce`.
        tag: Tag, from `SharedMemory.announce`.
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
        """Kill the process, even if it is stopped."""
        ...

    def wait(self) -> int:
        """Wait for a process that is about to end; return its exit code, or minus its signal."""
        ...


class Launcher(Protocol):
    """Starts worker processes."""

    def start(self, target: str) -> Process:
        """Start a process that calls `MODULE:FUNCTION` with its `Channel`.

        Raises:
            OSError: If the system cannot start another process.
        """
        ...

    def close(self) -> None:
        """End all processes that it has started, and free its resources."""
        ...


def _run(target: str, channel: Channel) -> NoReturn:
    """Call a worker's function, then end this process whatever happens."""
    code = 1
    try:
        module, _, name = target.partition(":")
        getattr(import_module(module), name)(channel)
        code = 0
    except (ClosedError, KeyboardInterrupt):
        code = 0  # the main process is gone
    except BaseException:  # a bug; there is no caller above this frame
        traceback.print_exc()
    finally:
        os._exit(code)


def _detach() -> None:
    """Leave signals from the terminal, standard input and standard output to the main process."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    if HAS_FORK_SERVER:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1):
        os.dup2(nowhere, handle)
    os.close(nowhere)


def _end_with_parent(parent: int) -> None:
    """Make the system kill this process when the thread that started it ends (Linux).

    A stopped process (SIGSTOP) could not end itself.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent has already ended
        os._exit(0)


class _Forked:
    """A worker that the fork server started."""

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
    """A process that forks once for each worker; see the module."""

    def __init__(
        self,
        *,
        preload: Sequence[str] = (),
        fork: bool = False,
        farewell: Callable[[], str] | None = None,
    ) -> None:
        """Start the server.

        Args:
            preload: Modules that workers need and that start no threads; workers share them.
            fork: Fork this process, which must have no other thread, instead of starting a new
                program; this saves a tenth of a second.
            farewell: Called in the server if this process ends without `close`; returns a line to
                print on standard error.
        """
        self.ended: dict[int, int] = {}
        """Exit codes of workers that have ended, by process number."""
        self._preload = preload
        self._farewell = farewell
        self._kept: list[Process] = []
        self._requested: deque[Channel] = deque()
        self._begin(fork=fork)

    def _begin(self, *, fork: bool) -> None:
        """Start the server's process."""
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._is_started = False
        self._pid = 0
        self._program: subprocess.Popen[bytes] | None = None
        # The system notifies a child when the thread that started it ends, not the process.
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
        """Start a worker (see `Launcher`), or return one that was kept or prepared."""
        if self._kept:
            return self._kept.pop()
        try:
            return self._start(target)
        except (ClosedError, TimeoutError):  # the server was killed or stopped
            self.close()
            self._begin(fork=False)
        try:
            return self._start(target)
        except (ClosedError, TimeoutError) as error:
            raise OSError("the process that starts workers has ended") from error

    def _start(self, target: str) -> Process:
        if not self._requested:
            self._ask(target)
        channel = self._requested.popleft()
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
        """Ask the server for a worker, without waiting for it."""
        ours, theirs = socket.socketpair()
        try:
            self._channel.send(target)
            self._channel.send_handle(theirs.fileno())
        except ClosedError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._requested.append(Channel(ours))

    def prepare(self, target: str, message: object) -> None:
        """Start a worker and send it a message, without waiting for it."""
        with suppress(ClosedError):  # `start` will report it
            self._ask(target)
            self._requested[-1].send(message)

    def keep(self, process: Process) -> None:
        """Keep an idle worker for the next `start`."""
        self._kept.append(process)

    def wait(self, pid: int) -> int:
        """Wait until a worker ends; return its exit code, or minus its signal."""
        while pid not in self.ended:
            try:
                self._answer(lambda message: message[:2] == ("ended", pid))
            except (ClosedError, TimeoutError):
                self.ended[pid] = -signal.SIGKILL
        return self.ended.pop(pid)

    def _answer(self, is_it: Callable[[Any], bool]) -> Any:
        """Wait for a message from the server; record the exit codes that arrive before it."""
        deadline = time.monotonic() + (ANSWER_S if self._is_started else START_S)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not _select([self._channel], [], left)[0]:
                raise TimeoutError
            message = self._channel.receive()
            self._is_started = True
            if message[0] == "ended":
                self.ended[message[1]] = message[2]
            if is_it(message):
                return message

    def close(self) -> None:
        """End the server and all its workers."""
        with suppress(ClosedError):
            self._channel.send("")
        for channel in (self._channel, *self._requested, *(one.channel for one in self._kept)):
            channel.close()
        self._requested.clear()
        self._kept.clear()
        if self._pid:
            with suppress(ChildProcessError):
                _reap(self._pid)
            self._pid = 0
        if self._program is not None:
            try:
                self._program.wait(ANSWER_S)
            except subprocess.TimeoutExpired:  # the server is stopped
                self._program.kill()
                self._program.wait()
            self._program = None


def _reap(pid: int) -> None:
    """Wait until a child ends; kill it if it does not end in time, because it is stopped."""
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
    with _stops_held_back():
        return subprocess.Popen(  # noqa: S603 - this module itself
            [sys.executable, "-c", f"from {__name__} import run_server; run_server(*{order})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )


@contextmanager
def _stops_held_back() -> Iterator[None]:
    """Hold back Ctrl-C and the like from this thread, and from processes that it starts meanwhile.

    A process that starts would print a traceback; `_detach` lets it ignore them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_server(handle: int, preload: Sequence[str], parent: int) -> NoReturn:
    """Run as the fork server; `parent` is 0 if the thread that started this program may end."""
    _serve(Channel(socket.socket(fileno=handle)), preload, parent, None)


def _serve(
    channel: Channel,
    preload: Sequence[str],
    parent: int,
    farewell: Callable[[], str] | None,
) -> NoReturn:
    """Start workers on request, until the other end closes or ends."""
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
    """The fork server's main loop, after its imports."""

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
        """Serve; return whether the other end called `close`, rather than just ended."""
        is_closed = False
        try:
            while True:
                ready = wait_for([self._channel], [self._wake], 3600)
                with suppress(BlockingIOError):
                    self._wake.recv(4096)
                self._tell_ends()
                if self._channel in ready:
                    target = self._channel.receive()
                    if not target:
                        is_closed = True
                        break
                    self._start(target)
        except ClosedError:
            is_closed = False
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)
        return is_closed

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
        """Send a message; if the other end has ended, `run` reads that next."""
        with suppress(ClosedError):
            self._channel.send(message)


class _Spawned:
    """A worker that multiprocessing started."""

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
    """Starts workers with multiprocessing's `spawn`, on systems without the fork server."""

    def __init__(self) -> None:
        """Create the launcher without any worker."""
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
    """End this process, whatever it is doing, as soon as its parent has ended."""
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def wait_for(channels: Iterable[Channel], others: Iterable[Any], timeout_s: float) -> set[Any]:
    """Wait until something can be read, sending unsent messages meanwhile; return what is readable.

    Args:
        channels: Channels to other processes.
        others: Anything else with a file descriptor.
        timeout_s: Longest wait, in seconds.
    """
    every = list(channels)
    sending = [channel for channel in every if channel.has_more]
    ready, writable = _select([*every, *others], sending, timeout_s)
    for channel in writable:
        with suppress(ClosedError):  # then it is readable too, and reading it reports that
            channel.flush()
    return set(ready)


def _select(
    reading: Sequence[Any], writing: Sequence[Any], timeout_s: float
) -> tuple[list[Any], list[Any]]:
    """Do the same as `select.select`, but for descriptors above 1023 too."""
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
