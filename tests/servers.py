"""Servers for the tests of URLs, each a program: `python tests/servers.py s3|cut ...`.

They print their port when they are ready, and end with their parent.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

FAILED = "/failed-requests"
"""Where the S3 server tells how many requests it has failed."""


def serve_s3(fail_every: int, end_after: int) -> None:
    """Serve S3 from memory; every N-th read request fails, alternating between two ways."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    application = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()
    counts = {"read": 0, "failed": 0}

    def fails(environ) -> bool:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return False
        with lock:
            counts["read"] += 1
            if counts["read"] == end_after:
                os._exit(0)
            failing = fail_every > 0 and counts["read"] % fail_every == 0
            counts["failed"] += failing
        return failing

    def answer(environ, start):
        if environ["PATH_INFO"] == FAILED:
            start("200 OK", [("Content-Type", "text/plain")])
            return [str(counts["failed"]).encode()]
        if not fails(environ):
            return application(environ, start)
        start("503 Slow Down", [("Content-Type", "application/xml")])
        if counts["failed"] % 2:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return [b""]
        return [b"<Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>"]

    class Quiet(WSGIRequestHandler):
        def log(self, *_args: object) -> None:
            """Say nothing."""

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()


def serve_cut(target: int, num_bytes: int) -> None:
    """Forward connections to a port, and cut each off after a number of bytes."""

    def pump(source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while (data := source.recv(2**16)) and left[0] > 0:
                left[0] -= len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    while True:
        client, _ = server.accept()
        behind = socket.create_connection(("127.0.0.1", target))
        left = [num_bytes]
        for ends in ((client, behind), (behind, client)):
            threading.Thread(target=pump, args=(*ends, left), daemon=True).start()


@contextlib.contextmanager
def running(*args: object) -> Iterator[int]:
    """Run one of these servers, or another program that prints its port; yield the port."""
    command = [sys.executable, __file__, *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


def find_sshd() -> str | None:
    """Return OpenSSH's server, which is not on every user's PATH."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[int]:
    """Run OpenSSH's server for this user; keys and known hosts are in `folder/.ssh`."""
    ssh = folder / ".ssh"
    ssh.mkdir(mode=0o700)
    for path in (folder / "host_key", ssh / "id_ed25519"):
        command = [shutil.which("ssh-keygen") or "", "-q", "-t", "ed25519", "-N", "", "-f", path]
        subprocess.run(command, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host_key'}\n"
        f"AuthorizedKeysFile {ssh / 'id_ed25519.pub'}\nStrictModes no\nUsePAM no\nPidFile none\n"
        "PasswordAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    if os.getuid() == 0:  # where it gives up its rights
        Path("/run/sshd").mkdir(exist_ok=True)
    program = find_sshd()
    assert program is not None
    with subprocess.Popen(
        [program, "-D", "-e", "-f", config], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            _wait_for(port, server)
            trust(folder, port)
            yield port
        finally:
            server.send_signal(signal.SIGTERM)


def trust(folder: Path, port: int) -> None:
    """Make a port known by the key of the server of `folder`."""
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    with (folder / ".ssh" / "known_hosts").open("a") as file:
        file.write(f"[127.0.0.1]:{port} {kind} {key}\n")


def _wait_for(port: int, server: "subprocess.Popen[str]") -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if server.poll() is not None:
            assert server.stderr is not None
            raise RuntimeError(f"sshd ended: {server.stderr.read()}")
        time.sleep(0.1)
    raise RuntimeError("sshd does not answer")


def _end_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["s3", "cut"])
    parser.add_argument("--fail-every", type=int, default=0)
    parser.add_argument("--end-after", type=int, default=0)
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--bytes", type=int, default=0)
    args = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if args.kind == "s3":
        serve_s3(args.fail_every, args.end_after)
    else:
        serve_cut(args.target, args.bytes)


if __name__ == "__main__":
    main()
