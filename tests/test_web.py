"""Web servers that misbehave: each bad address gets its row, within limits, without its secrets."""

import contextlib
import csv
import gzip
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import COLORS, save_image

from tltools.classify import list_images
from tltools.data import remote, remote_images, web
from tltools.data.answers import TooLargeError
from tltools.data.dataset import load_dataset
from tltools.data.image_ref import RemoteObject
from tltools.data.location import Url, location, without_secrets
from tltools.data.remote import Remote, list_files
from tltools.data.remote_images import Remotes, fetch_ahead
from tltools.errors import DataError, UnreachableError

SECRET = "SECRET"  # noqa: S105 - what to look for
SIGNED = f"sig={SECRET}&X-Amz-Signature={SECRET}"
MB = 2**20

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Server:
    """A web server in this process; its answers are functions by path."""

    port: int
    image: bytes
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    stop: Callable[[], None] = lambda: None
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def status(self, code: int) -> Answer:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(code)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return answer

    def first(self, code: int, then: Answer, *, times: int = 1) -> Answer:
        """Answer with a status the first times."""
        left = [times]

        def answer(handler: BaseHTTPRequestHandler) -> None:
            left[0] -= 1
            (self.status(code) if left[0] >= 0 else then)(handler)

        return answer

    def body(self, data: bytes, **headers: str) -> Answer:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            for name, value in ({"Content-Length": str(len(data))} | given).items():
                handler.send_header(name, value)
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(data)

        return answer

    def redirect(self, to: str) -> Answer:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", to)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return answer


def endless(data: bytes, pause_s: float = 0.0, *headers: tuple[str, str]) -> Answer:
    """Send the same again and again, without a length."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        while handler.command != "HEAD":
            handler.wfile.write(data)
            time.sleep(pause_s)

    return answer


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n" * 9)


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(1)  # until the client goes away


@contextlib.contextmanager
def serving(image: bytes, host: str = "127.0.0.1") -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            known.requests[path] += 1
            answer = known.answers.get(path)
            if answer is None:
                good = path.endswith(("good.png", ".good.png"))
                answer = known.body(image) if good else known.status(404)
            with contextlib.suppress(OSError):
                answer(self)

        do_HEAD = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, *_args: object) -> None:
            """Say nothing."""

    server = Quiet((host, 0), Handler)
    known = Server(server.server_port, image, host=f"[{host}]" if ":" in host else host)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    known.stop = stop
    try:
        yield known
    finally:
        stop()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("web") / "image.png"
    save_image(path, COLORS["red"], np.random.default_rng(0))
    return path.read_bytes()


@pytest.fixture
def server(image: bytes) -> Iterator[Server]:
    with serving(image) as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon."""
    for name, value in QUICK["remote"].items():
        monkeypatch.setattr(remote, name, value)
    for name, value in QUICK["web"].items():
        monkeypatch.setattr(web, name, value)


QUICK = {
    "remote": {"ATTEMPTS": 3, "FIRST_WAIT_S": 0.01, "MAX_WAIT_S": 0.02},
    "web": {"STALL_S": 0.5, "GRACE_S": 0.5, "ANSWER_S": 1.5, "CONNECT_S": 1.0},
}


def tltools(cwd: Path, *args: object) -> "subprocess.CompletedProcess[str]":
    """Run a command that gives up soon, in a process of its own."""
    settings = "".join(
        f"{module}.{name} = {value}\n"
        for module, values in QUICK.items()
        for name, value in values.items()
    )
    program = (
        "import sys\nfrom tltools.cli import main\nfrom tltools.data import remote, web\n"
        f"{settings}main(sys.argv[1:])"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, args)],
        cwd=cwd,
        env={**os.environ, "XDG_CACHE_HOME": str(cwd / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def fetch(*urls: str) -> list[bytes | str]:
    """Return the bytes of images of a list, or why there are none."""
    remotes = Remotes()
    images = [remotes.image(Url(url).plain, url) for url in urls]
    results: list[bytes | str] = []
    for one in fetch_ahead(images):
        assert isinstance(one.place, RemoteObject)
        try:
            results.append(one.place.read())
        except OSError as error:
            results.append(str(error))
    return results


# ------------------------------------------------------------------------- one bad address


def bad_addresses(server: Server, dead_port: int) -> dict[str, str]:
    """Return bad addresses, each with its reason; all have secrets."""
    answers, url = server.answers, server.url
    codes = {code: f"answered {code}" for code in (400, 401, 403, 410, 418, 451, 429, 500, 503)}
    for code in codes:
        answers[f"/{code}.png"] = server.status(code)
    answers["/loop.png"] = server.redirect(f"/loop.png?{SIGNED}")
    for number in range(12):
        answers[f"/far-{number}.png"] = server.redirect(f"/far-{number + 1}.png?{SIGNED}")
    answers["/file.png"] = server.redirect(f"file:///etc/passwd?{SIGNED}")
    answers["/odd.png"] = server.redirect(f"http://[{SECRET}/?{SIGNED}")
    answers["/short.png"] = server.body(server.image, Content_Length=str(10**6))
    answers["/negative.png"] = server.body(server.image, Content_Length="-5")
    answers["/huge.png"] = server.body(server.image, Content_Length=str(10**13))
    answers["/cut.png"] = cut_off
    answers["/garbage.png"] = garbage
    answers["/silent.png"] = silent
    answers["/slow.png"] = endless(b"x", 0.05)
    answers["/no-gzip.png"] = server.body(b"no gzip", Content_Encoding="gzip")
    signed = {
        **{f"{code}.png": reason for code, reason in codes.items()},
        "404.png": "no such file",
        "loop.png": "redirects more than",
        "far-0.png": "redirects more than",
        "file.png": "redirects to an address",
        "odd.png": "redirects to an address",
        "short.png": "incomplete",
        "negative.png": "not valid HTTP",
        "huge.png": "10,000,000,000,000 bytes",
        "cut.png": "",
        "garbage.png": "not valid HTTP",
        "silent.png": "not answer in time",
        "slow.png": "too slow",
        "no-gzip.png": "corrupt",
    }
    host = url.partition("://")[2]
    return {
        **{f"{url}/{name}?{SIGNED}": reason for name, reason in signed.items()},
        f"http://{SECRET}@{host}/403.png#{SECRET}": "answered 403",
        f"http://me:{SECRET}@{host}/good.png": "contains a password",
        f"http://me:{SECRET}/{SECRET}@{host}/good.png": "contains a password",
        f"sftp://me:{SECRET}@{host}/good.png": "contains a password",
        f"{url}::80/good.png?{SIGNED}": "not valid",
        f"http://?{SIGNED}": "not valid",
        f"http://{'a' * 300}.example/x.png?{SIGNED}": "",
        f"http://host:99999/x.png?{SIGNED}": "",
        f"http://unknown.invalid/x.png?{SIGNED}": "cannot be reached",
        f"http://127.0.0.1:{dead_port}/x.png?{SIGNED}": "cannot be reached",
        f"ftp://{host}/x.png?{SIGNED}": "not a protocol",
        f"zip://x.png::http://{host}/x.zip?{SIGNED}": "not a protocol",
    }


@pytest.fixture
def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.mark.parametrize("output", ["rows.csv", "rows.jsonl"])
def test_each_bad_address_gets_its_row_and_no_secret_is_told(
    server, dead_port, onnx_path, tmp_path, output
):
    bad = bad_addresses(server, dead_port)
    goods = [f"{server.url}/{number}.good.png?{SIGNED}" for number in range(40)]
    lines = [line for pair in zip(bad, goods, strict=False) for line in pair]
    assert len(bad) <= len(goods)
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "list.txt").write_text("\n".join(lines))
    done = tltools(
        work,
        *("classify", tmp_path / "list.txt", "--model", onnx_path, "-o", output, "-v"),
        *("--errors-to", "errors.csv"),
    )
    assert done.returncode == 0, done.stderr
    if output.endswith("csv"):
        rows = list(csv.DictReader((work / output).read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in (work / output).read_text().splitlines()]
    assert [row["path"] for row in rows] == [Url(line).plain for line in lines]
    for row, line in zip(rows, lines, strict=True):
        if line in bad:
            assert bad[line] in row["error"], (line, row["error"])
            assert Url(line).plain in row["error"]
        else:
            assert not row["error"]
    first = r"warning: 2 images not classified; the first is \S+: the server answered 403 Forbidden"
    assert re.search(first, done.stderr)
    report = tltools(work, "report", output, "-o", "report.html")
    assert report.returncode == 0, report.stderr
    for text in (done.stdout, done.stderr, report.stdout, report.stderr):
        assert SECRET not in text
    for path in work.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_a_server_that_answers_nothing_stops_the_job(dead_port, onnx_path, tmp_path):
    lines = [f"http://127.0.0.1:{dead_port}/{number}.png?{SIGNED}" for number in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    done = tltools(tmp_path, "classify", "list.txt", "--model", onnx_path, "-o", "a.csv")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: cannot reach http://127.0.0.1:{dead_port}/0.png: connect call failed"
    )
    assert SECRET not in done.stderr


def test_a_job_whose_server_goes_away_keeps_no_secret_and_resumes(server, onnx_path, tmp_path):
    lines = [f"{server.url}/{number}.png?{SIGNED}" for number in range(200)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    (tmp_path / "work").mkdir()
    good, away = server.body(server.image), server.status(503)
    server.answers |= {f"/{number}.png": good if number < 150 else away for number in range(200)}
    server.answers["/"] = away
    args = ("classify", tmp_path / "list.txt", "--model", onnx_path, "-o", "a.csv")
    done = tltools(tmp_path / "work", *args)
    assert done.returncode == 1
    assert "answered 503 Service Unavailable" in done.stderr
    kept = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert any(path.suffix == ".json" for path in kept)
    assert all(SECRET.encode() not in path.read_bytes() for path in kept)
    server.answers = {f"/{number}.png": good for number in range(200)}
    before = server.requests["/0.png"]
    done = tltools(tmp_path / "work", *args)
    assert done.returncode == 0, done.stderr
    assert server.requests["/0.png"] == before
    rows = list(csv.DictReader((tmp_path / "work" / "a.csv").read_text().splitlines()))
    assert [row["error"] for row in rows] == [""] * 200


def test_an_object_that_keeps_failing_is_not_the_store(monkeypatch, quick):
    class Store:
        def info(self, path: str) -> dict[str, str]:
            assert path == "bucket"
            return {"type": "directory"}

    store = Remote(Url("s3://bucket/photos"))
    monkeypatch.setattr(store, "_connect", Store)

    def request(_files: object) -> None:
        raise OSError("we encountered an internal error")

    with pytest.raises(OSError, match=r"^we encountered an internal error$"):
        store.ask(request)


@pytest.mark.parametrize("code", [500, 503])
def test_a_failing_server_is_no_failing_file(server, quick, code):
    """What fails must not get a row if all else of the server fails as well."""
    server.answers |= {"/bad.png": server.status(code), "/": server.status(code)}
    if code == 500:  # the start page may be broken, unlike a proxy's
        assert fetch(f"{server.url}/bad.png") == ["the server answered 500 Internal Server Error"]
        return
    with pytest.raises(UnreachableError, match=r"/bad\.png: the server answered 503"):
        fetch(f"{server.url}/bad.png")


def test_a_server_that_goes_away_stops_the_job_although_others_answer(server, quick, image):
    with serving(image) as other:
        remotes = Remotes()
        urls = [f"{one.url}/{number}.good.png" for number in range(3) for one in (server, other)]
        images = [remotes.image(url, url) for url in urls]
        for one in images[:3]:
            assert isinstance(one.place, RemoteObject)
            assert one.place.read() == image
        other.stop()
        assert isinstance(images[3].place, RemoteObject)
        with pytest.raises(UnreachableError, match=other.url):
            images[3].place.read()
        assert isinstance(images[4].place, RemoteObject)
        assert images[4].place.read() == image


def test_a_server_that_never_answered_is_soon_given_up_beside_others(server, quick, dead_port):
    """A list may have thousands of addresses on a server that is gone."""
    attempts: list[str] = []
    remotes = Remotes()
    for name in ("a", "b"):
        url = f"http://127.0.0.1:{dead_port}/{name}.png"
        (good, bad) = (remotes.image("", f"{server.url}/good.png"), remotes.image("", url))
        assert isinstance(good.place, RemoteObject)
        good.place.read()
        dead = remotes._remotes[Url(url).server]
        once = dead._ask_once
        dead._ask_once = lambda request, once=once: (attempts.append(""), once(request))[1]
        assert isinstance(bad.place, RemoteObject)
        with pytest.raises(OSError, match="cannot be reached"):
            bad.place.read()
        attempts.append("end")
        dead._ask_once = once
    assert attempts == [*[""] * 4, "end", "", "end"]  # three and whether it answers; then one


def test_a_file_that_fails_at_first_is_fetched(server, quick, image):
    good = server.body(image)
    server.answers["/a.png"] = server.first(503, good, times=2)
    server.answers["/b.png"] = server.first(429, server.first(500, good))
    server.answers["/c.png"] = server.first(408, good)
    assert fetch(*(f"{server.url}/{name}.png" for name in "abc")) == [image] * 3


@pytest.mark.parametrize("code", [403, 405, 500, 503])
def test_a_size_request_that_fails_at_first_is_tried_again(server, quick, code):
    """Twice: both of HEAD, which a server may refuse, and of GET."""
    server.answers["/a.zip"] = server.first(code, server.body(bytes(1000)), times=2)
    url = Url(f"{server.url}/a.zip")
    if code in (403, 405):
        with pytest.raises(OSError, match=f"answered {code}"):
            Remote(url).info(url)
        server.answers["/a.zip"] = server.first(code, server.body(bytes(1000)))
    assert Remote(url).info(url)["size"] == 1000


def test_a_compressed_file_has_no_known_size(server, quick):
    server.answers["/a.png"] = server.body(gzip.compress(b"x" * 999), Content_Encoding="gzip")
    url = Url(f"{server.url}/a.png")
    assert Remote(url).info(url)["size"] is None
    assert Remote(url).read(url.text) == b"x" * 999


def test_addresses_of_version_6_are_fetched(image, quick):
    try:
        with serving(image, "::1") as server:
            assert fetch(f"{server.url}/good.png") == [image]
            assert location(f"{server.url}/a::b.png") == Url(f"{server.url}/a::b.png")
    except OSError:
        pytest.skip("needs IPv6")


# --------------------------------------------------------------------------------- limits


def test_an_endless_answer_ends_at_the_limit(server, quick):
    server.answers["/a.png"] = endless(bytes(MB))
    url = Url(f"{server.url}/a.png")
    with pytest.raises(TooLargeError, match="more bytes than the limit of 4,194,304"):
        Remote(url).read(url.text, max_bytes=4 * MB)


def test_a_slow_answer_ends_at_the_limits(server, quick, monkeypatch):
    url = Url(f"{server.url}/a.png")
    server.answers["/a.png"] = endless(b"x", 0.05)
    with pytest.raises(OSError, match=r"too slow: it sent [\d]+ bytes in \d s"):
        Remote(url).read(url.text)
    assert server.requests["/a.png"] == 1
    # Compressed, so that what arrives never yields a byte.
    monkeypatch.setattr(web, "MAX_TRANSFER_S", 0.7)
    server.answers["/a.png"] = endless(b"\0", 0.05, ("Content-Encoding", "deflate"))
    with pytest.raises(OSError, match=r"too slow|corrupt"):
        Remote(url).read(url.text)


def test_headers_that_never_end_are_given_up(server, quick):
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.answers["/a.png"] = drip
    assert fetch(f"{server.url}/a.png") == ["the server does not answer in time"]


def test_files_beyond_the_limits_take_no_memory(server, tmp_path):
    """Endless answers and bombs on all connections: a process with little memory survives them."""
    zeros = gzip.compress(bytes(64 * MB))
    server.answers["/endless.png"] = endless(bytes(MB))
    server.answers["/bomb.png"] = endless(
        zeros, 0, ("Content-Encoding", "gzip"), ("Content-Type", "image/png")
    )
    program = """
import sys
from tltools.bench.machine import peak_memory_bytes
from tltools.data import remote, remote_images, web
from tltools.data.location import Url
from tltools.data.remote_images import Remotes, fetch_ahead
remote_images.MAX_FILE_BYTES = 2**25
remote_images.MAX_UNSIZED = 2**21
remotes = Remotes()
images = [remotes.image("", sys.argv[1] + name) for name in ("/endless.png", "/bomb.png") * 17]
for image in fetch_ahead(images):
    try:
        image.place.read()
    except OSError as error:
        assert "more bytes than the limit" in str(error), error
    else:
        raise SystemExit("read")
print(peak_memory_bytes() // 2**20)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, server.url], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    # 32 requests of 2 MB, one of 32 MB, what aiohttp buffers, and the program itself.
    assert int(done.stdout) < 300, done.stdout


def test_large_files_of_unknown_size_wait_their_turn(server, quick, monkeypatch):
    monkeypatch.setattr(remote_images, "MAX_UNSIZED", 1000)
    server.answers["/large.png"] = server.body(b"x" * 1001)
    server.answers["/small.png"] = server.body(b"y" * 1000)
    urls = [f"{server.url}/large.png", f"{server.url}/small.png"] * 3
    assert fetch(*urls) == [b"x" * 1001, b"y" * 1000] * 3
    assert server.requests == {"/large.png": 6, "/small.png": 3}


def test_a_download_is_limited(server, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "MAX_UNSIZED_BYTES", 3 * MB)
    server.answers["/a.zip"] = endless(bytes(MB))
    url = Url(f"{server.url}/a.zip")
    with pytest.raises(OSError, match="more bytes than the limit"):
        Remote(url).download(url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").stat().st_size <= 3 * MB


def test_an_archive_that_cannot_be_downloaded_is_named(server, quick):
    """The server answers the request for its size, and refuses or fails to send it."""
    whole = server.body(b"x" * 1000)

    def answering(then: Answer) -> Answer:
        return lambda handler: (whole if handler.command == "HEAD" else then)(handler)

    bad = {"403": server.status(403), "404": server.status(404), "500": server.status(500)}
    bad |= {"garbage": garbage, "cut": cut_off, "silent": silent}
    for name, answer in bad.items():
        server.answers[f"/{name}.zip"] = answering(answer)
        url = Url(f"{server.url}/{name}.zip?{SIGNED}")
        with pytest.raises(DataError, match=f"cannot read the archive {url}: ") as raised:
            load_dataset(url, purpose="inspect")
        assert SECRET not in str(raised.value)


def test_a_server_without_range_requests_is_told(server, quick):
    server.answers["/a.tar"] = server.body(bytes(10_240))
    url = Url(f"{server.url}/a.tar")
    with pytest.raises(OSError, match="parts of files"):
        Remote(url).read_range(url.text, 0, 512)


# -------------------------------------------------------------------------------- indexes


def index(*links: str) -> bytes:
    return "".join(f'<a class="x" href="{link}">x</a>\n' for link in links).encode()


def test_index_pages_are_listed(server, quick):
    page = server.body(
        index(
            *("../", "./", "?C=N;O=D", "#top", "http://elsewhere/x.png", "http://[bad/", "/b.png"),
            *("a%20b.png", "./c.png?x=1&amp;y=2", "/photos/d.png", "sub/", "sub/twice.png"),
            *("deep/er.png", "../photos/e.png", "a%20b.png", "javascript:x", "/photos/.hid.png"),
        ),
        Content_Type="text/html; charset=utf-8",
    )
    server.answers["/photos/"] = server.answers["/photos"] = page
    server.answers["/photos/sub"] = server.body(index("twice.png"), Content_Type="text/html")
    entries = [one for some in list_files(Remote(Url(f"{server.url}/photos"))) for one in some]
    assert [one.name for one in entries] == [
        *("a%20b.png", "c.png", "d.png", "deep/er.png", "e.png", "sub/twice.png"),
    ]
    assert all(one.path == f"{server.url}/photos/{one.name}" for one in entries)


def test_a_folder_is_listed_whose_address_has_a_query(server, quick):
    server.answers["/p"] = server.body(index("sub/", "a.png"), Content_Type="text/html")
    server.answers["/p/sub"] = server.body(index("b.png"), Content_Type="text/html")
    for query in ("", f"?{SIGNED}", "?dir=a/b"):
        entries = [
            one for some in list_files(Remote(Url(f"{server.url}/p{query}"))) for one in some
        ]
        assert [one.name for one in entries] == ["a.png", "sub/b.png"]


def test_an_index_of_itself_ends(server, quick, monkeypatch):
    monkeypatch.setattr(remote, "MAX_DEPTH", 5)
    for depth in range(9):
        server.answers["/p" + "/again" * depth] = server.body(
            index("again/", "a.png"), Content_Type="text/html"
        )
    problems: list[DataError] = []
    found = list_files(Remote(Url(f"{server.url}/p")), on_error=problems.append)
    assert sum(len(some) for some in found) == 6
    (problem,) = problems
    assert "lies in more than 5 folders" in str(problem)


def test_an_index_whose_folders_multiply_without_end_ends(server, quick):
    """As of a server that answers every address with the same page."""

    class Everything(dict[str, Answer]):
        def get(self, path: str, _default: object = None) -> Answer:
            return page

    page = server.body(index("a.png", "one/", "two/"), Content_Type="text/html")
    server.answers = Everything()
    problems: list[DataError] = []
    url = Url(f"{server.url}/p?{SIGNED}")
    found = list_files(Remote(url), on_error=problems.append)
    assert sum(len(some) for some in found) == remote.MAX_DEPTH + 1
    (problem,) = problems
    assert "without end" in str(problem)
    assert SECRET not in str(problem)
    with pytest.raises(DataError, match="without end"):
        list(list_files(Remote(url)))


def test_an_endless_index_is_refused(server, quick, monkeypatch):
    monkeypatch.setattr(web, "MAX_INDEX_BYTES", 3 * MB)
    server.answers["/p"] = endless(index("a.png") * 10_000, 0, ("Content-Type", "text/html"))
    with pytest.raises(DataError, match="more bytes than the limit"):
        list(list_files(Remote(Url(f"{server.url}/p"))))


# -------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "args",
    [
        ("classify", "{url}/403.png?{signed}", "-o", "a.csv", "-v"),
        ("classify", "{url}/500.png?{signed}", "-o", "a.csv", "-v"),
        ("classify", "{url}/loop.zip?{signed}", "-o", "a.csv", "-v"),
        ("classify", "{url}/500.tar?{signed}", "-o", "a.csv", "-v"),
        ("classify", "{url}/403.txt?{signed}", "-o", "a.csv", "-v"),
        ("classify", "{url}/folder?{signed}", "-o", "a.csv", "-v"),
        ("classify", "http://unknown.invalid/a.png?{signed}", "-o", "a.csv", "-v"),
        ("classify", "http://me:SECRET@host/a.png", "-o", "a.csv", "-v"),
        ("classify", "ftp://me:SECRET@host/a.png?{signed}", "-o", "a.csv", "-v"),
        ("classify", "{url}/good.png?{signed}", "-o", "{url}/a.csv?{signed}", "-v"),
        ("classify", "{url}/good.png?{signed}", "-o", "az://c/a.csv?{signed}", "-v"),
        ("train", "{url}/403.zip?{signed}", "-v"),
        ("train", "{url}/labels.csv?{signed}", "-v"),
        ("evaluate", "{model}", "{url}/500.zip?{signed}", "-v"),
        ("inspect", "{url}/folder?{signed}", "-v"),
        ("inspect", "{url}/403.zip?{signed}", "{url}/500.zip?{signed}", "-v"),
        ("bench", "{model}", "--data", "{url}/403.zip?{signed}", "-v"),
        ("report", "{url}/403.csv?{signed}", "-v"),
        ("merge", "{url}/403.csv?{signed}", "-o", "a.csv", "-v"),
        ("explain", "{model}", "{url}/403.png?{signed}", "-v"),
    ],
    ids=lambda args: " ".join(args).replace("?{signed}", ""),
)
def test_no_failing_command_tells_a_secret(server, onnx_path, tmp_path, args):
    for code in (403, 500):
        for suffix in ("png", "zip", "tar", "txt", "csv"):
            server.answers[f"/{code}.{suffix}"] = server.status(code)
    server.answers["/loop.zip"] = server.redirect(f"/loop.zip?{SIGNED}")
    given = [one.format(url=server.url, signed=SIGNED, model=onnx_path) for one in args]
    extra = ("--model", onnx_path) if args[0] == "classify" else ()
    done = tltools(tmp_path, *given, *extra)
    assert done.returncode != 0
    assert SECRET not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_lines_of_a_list_on_a_server_may_be_signed_and_are_shown_without_that(server, quick):
    lines = f"good.png?{SIGNED}\nsub/good.png#{SECRET}\n403.png?{SIGNED}\n"
    server.answers |= {"/p/list.txt": server.body(lines.encode()), "/p/403.png": server.status(403)}
    images = list(list_images([Url(f"{server.url}/p/list.txt")]))
    assert [one.name for one in images] == ["good.png", "sub/good.png", "403.png"]
    assert [one.place.url.text for one in images] == [
        f"{server.url}/p/{line}" for line in lines.splitlines()
    ]


def test_a_bug_tells_no_secret(tmp_path):
    program = (
        "import tltools.cli as cli\n"
        f"def _run(_): raise ZeroDivisionError('at https://me@host/a?{SIGNED}')\n"
        "cli._run = _run\ncli.main([])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "ZeroDivisionError: at https://host/a" in done.stderr
    assert "Traceback" in done.stderr
    assert SECRET not in done.stderr.rpartition("ZeroDivisionError")[2]


def test_an_error_chains_none_that_holds_a_secret(server, quick):
    """A program that embeds tltools prints tracebacks itself."""
    import traceback

    server.answers |= {"/500.png": server.status(500), "/403.png": server.status(403)}
    server.answers["/loop.png"] = server.redirect(f"/loop.png?{SIGNED}")
    addresses = [f"{server.url}/{name}.png?{SIGNED}" for name in ("403", "404", "500", "loop")]
    for text in (*addresses, f"http://unknown.invalid/?{SIGNED}", f"http://[{SECRET}/"):
        url = Url(text)
        with pytest.raises((OSError, UnreachableError)) as raised:
            Remote(url).read(url.text)
        assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("at https://h/a?sig=S;", "at https://h/a;"),
        ("'https://u@h/a#t' (https://h?x)", "'https://h/a' (https://h)"),
        ("https://u:S@h:8/a", "https://h:8/a"),
        ("https://u:S/S?S@h/a?b", "https://h/a"),
        ("https:/h/a?sig=S", "https:/h/a"),
        ("https://[::1]:80/a?b", "https://[::1]:80/a"),
        ("https://h/@a", "https://h/@a"),
        ("sftp://u:S@h/a?", "sftp://u@h/a?"),
        ("abfs://c@a.dfs/x?sv=1&sig=S", "abfs://c@a.dfs/x"),
        ("s3://b/what?.png", "s3://b/what?.png"),
        ("s3://b/a::b", "s3://b/a::b"),
        ("zip://a::https://h/b?sig=S", "zip://a::https://h/b"),
        ("ftp://u:S@h/a?token=S", "ftp://u@h/a"),
        ("a://b/c?d is no address", "a://b/c?d is no address"),
        ("no address? key=1", "no address? key=1"),
    ],
)
def test_addresses_lose_their_secrets(text, plain):
    assert without_secrets(text) == plain
