"""What `fuzz.py` feeds of web servers: raw answers, sent by a server in the process that reads.

An input is a script: the raw answers to the first, second, … request of the address that is read,
divided by `NEXT`; the last one answers all later requests, and those of other addresses.
"""

import gzip
import io
import shutil
import socket
import tarfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import chain, islice
from pathlib import Path

from tltools.card import Preprocessing
from tltools.classify.inputs import list_portions
from tltools.data import remote, web
from tltools.data.copies import cache_folder
from tltools.data.dataset import load_dataset
from tltools.data.images import load_image
from tltools.data.location import Url, without_secrets
from tltools.data.remote_images import Remotes, fetch_ahead
from tltools.errors import TltoolsError

NEXT = b"\n=== next ===\n"
"""Between the answers of a script."""
PORT, PART, SIZE = b"{PORT}", b"{PART}", b"{SIZE}"
"""In an answer: the server's port; the requested range of what follows; and how long that is."""
SECRET = "SECRET"  # noqa: S105 - no message may have it
_RULES = Preprocessing(size=64)
_MOST = 50
_NAMES = {".img": "a.jpg", ".txt": "list.txt", ".html": "", ".tar": "a.tar", ".zip": "a.zip"}


# -------------------------------------------------------------------------------- the server


class _Server:
    """Answer each request with the bytes of the script, whatever they are."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listening.getsockname()[1]
        self._script: list[bytes] = []
        self._path = b""
        self._is_slow = self._stays = False
        self._requests: Counter[bytes] = Counter()
        threading.Thread(target=self._accept, daemon=True).start()

    def play(self, script: bytes, path: str) -> None:
        """Take what to answer from now on to requests of a path."""
        self._script = script.split(NEXT)
        self._path = path.encode()
        self._is_slow = zlib.crc32(script) % 8 == 0
        self._stays = zlib.crc32(script) % 4 == 1
        self._requests.clear()

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(1)
        with client, suppress(OSError):
            while (request := client.recv(2**16)) and self._answer(client, request):
                pass

    def _answer(self, client: socket.socket, request: bytes) -> bool:
        """Answer a request; return whether the connection stays."""
        words = [*request.split(b" ", 2), b"", b""]
        method, path = words[0], words[1].partition(b"?")[0]
        number = self._requests[method] if path.strip(b"/") == self._path else len(self._script)
        self._requests[method] += 1
        data = self._script[: number + 1][-1].replace(PORT, str(self.port).encode())
        head, mark, body = data.partition(PART)
        if mark:
            body = _part(request, body)
            data = head.replace(SIZE, str(len(body)).encode()) + body
        if request.startswith(b"HEAD "):
            data = b"".join(data.partition(b"\r\n\r\n")[:2])
        half = len(data) // 2
        client.sendall(data[:half])
        if self._is_slow:
            time.sleep(0.02)  # so that the second half is a packet of its own
        client.sendall(data[half:])
        return self._stays


def _part(request: bytes, body: bytes) -> bytes:
    """Return the range of a body that a request asks for."""
    _, found, text = request.partition(b"Range: bytes=")
    first, dash, last = text.partition(b"\r\n")[0].partition(b"-")
    if not (found and dash and first.isdigit() and last.isdigit()):
        return body
    return body[int(first) : int(last) + 1]


@cache
def _server() -> _Server:
    """Start the server, and shorten every wait: an input must take milliseconds."""
    for name in ("CONNECT_S", "ANSWER_S", "STALL_S", "GRACE_S", "MAX_TRANSFER_S"):
        assert hasattr(web, name)
        setattr(web, name, 0.2)
    remote.ATTEMPTS, remote.FIRST_WAIT_S, remote.MAX_WAIT_S = 2, 0.001, 0.001
    return _Server()


# ----------------------------------------------------------------------------------- reading


def read_as_answers(path: Path, data: bytes) -> None:
    """Read what the suffix says from a server that answers with the script."""
    server = _server()
    name = f"{zlib.crc32(data)}/{_NAMES[path.suffix]}".rstrip("/")
    url = Url(f"http://127.0.0.1:{server.port}/{name}?sig={SECRET}")
    errors: list[TltoolsError] = []
    second = {".img": _as_row, ".txt": _as_row}.get(path.suffix, _as_data)
    for read in (_as_input, second):
        server.play(data, name)
        try:
            read(url, errors)
        except TltoolsError as error:
            errors.append(error)
    for error in errors:
        text = str(error)
        assert SECRET not in text, text
        assert text == without_secrets(text), text
        assert text, repr(error)
        assert "\n" not in text, text
    shutil.rmtree(cache_folder("data", "").parent, ignore_errors=True)
    if errors:
        raise errors[0]


def _as_input(url: Url, errors: list[TltoolsError]) -> None:
    portions = list_portions([url], on_error=errors.append)
    images = chain.from_iterable(portion.images for portion in portions)
    for image in fetch_ahead(islice(images, _MOST)):
        try:
            load_image(image, _RULES)
        except TltoolsError as error:
            errors.append(error)


def _as_row(url: Url, _errors: list[TltoolsError]) -> None:
    """Read the address of a line of a list."""
    (image,) = fetch_ahead([Remotes().image("a", url)])
    load_image(image, _RULES)


def _as_data(url: Url, _errors: list[TltoolsError]) -> None:
    load_dataset(url, purpose="inspect")


# ------------------------------------------------------------------------------------- seeds


def answer_seeds(pixels: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield suffixes and scripts that are right, for images, lists, folders and archives."""
    image = _whole(pixels, b"Content-Type: image/jpeg")
    yield from ((".img", one) for one in _ways(pixels))
    for status in (b"301 Moved", b"302 Found", b"303 See", b"307 T", b"308 P"):
        for place in (b"/b.jpg", b"http://127.0.0.1:{PORT}/c.jpg?sig=SECRET", b"//127.0.0.1:9/d"):
            yield (
                ".img",
                NEXT.join((_head(status, b"Location: " + place, b"Content-Length: 0"), image)),
            )
    busy = _head(b"503 Busy", b"Retry-After: 1", b"Content-Length: 0")
    yield ".img", NEXT.join((busy, image))
    yield ".img", _head(b"404 Not Found", b"Content-Length: 0")
    names = b"a.jpg\nb.jpg\nhttp://127.0.0.1:{PORT}/c.jpg?sig=OTHER\n"
    yield ".txt", NEXT.join((_whole(names), image))
    yield ".txt", NEXT.join((_whole(names.decode().encode("utf-16")), image))
    for page in _pages():
        sent = _whole(page, b"Content-Type: text/html")
        yield ".html", NEXT.join((sent, sent, image))
        yield ".html", sent
    for suffix, data in _archives(pixels):
        yield suffix, _head(b"206 Partial", b'ETag: "1"', b"Content-Length: {SIZE}") + PART + data
        yield suffix, _head(b"200 OK", b"Content-Length: %d" % len(data)) + data


def _head(status: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, *headers, b"", b""))


def _whole(data: bytes, *headers: bytes) -> bytes:
    return _head(b"200 OK", *headers, b"Content-Length: {SIZE}") + PART + data


def _ways(data: bytes) -> Iterator[bytes]:
    """Yield the ways in which HTTP allows to send a file."""
    yield _whole(data, b"Content-Type: image/jpeg", b'ETag: "1"')
    yield _whole(data, b"Connection: close", b"Set-Cookie: a=b; Path=/")
    yield _head(b"200 OK", b"Connection: close") + data
    yield b"HTTP/1.0 200 OK\r\n\r\n" + data
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(one), one) for one in (data[:99], data[99:]))
    yield _head(b"200 OK", b"Transfer-Encoding: chunked") + chunks + b"0\r\nTrailer: 1\r\n\r\n"
    deflated = zlib.compress(data)
    for name, packed in ((b"gzip", gzip.compress(data)), (b"deflate", deflated)):
        yield _whole(packed, b"Content-Encoding: " + name)
        packed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
        yield _head(b"200 OK", b"Transfer-Encoding: chunked", b"Content-Encoding: " + name) + packed
    zeros = gzip.compress(bytes(2**26))
    yield _whole(zeros, b"Content-Encoding: gzip")


def _pages() -> Iterator[bytes]:
    link = '<a href="{}">x</a>'
    for links in (
        ("cat/", "dog/", "1.jpg", "2.jpg", "?C=N;O=D", "../", "/", "#top"),
        ("a%20b.jpg", "%2e%2e/x.jpg", "é.jpg", "http://127.0.0.1:9/x.jpg", "http://[", "a.jpg?b"),
        ("cat/1.jpg", "dog/2.jpg", "labels.csv", "a&amp;b.jpg", ".hidden.jpg"),
    ):
        yield "\n".join(["<html>", *map(link.format, links)]).encode()
    yield b"<a class=x href='1.jpg'>1</a><A HREF=\"cat/\">"


def _archives(pixels: bytes) -> Iterator[tuple[str, bytes]]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("cat/1.jpg", "dog/2.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(pixels)
            tar.addfile(member, io.BytesIO(pixels))
    yield ".tar", file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("cat/1.jpg", "dog/2.jpg"):
            archive.writestr(name, pixels)
    yield ".zip", file.getvalue()
