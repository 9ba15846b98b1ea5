"""`tltools serve`: a real server process and real clients on loopback."""

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import CLASSES, children, is_alive, run_tltools
from PIL import Image

from tltools.classify import Prediction
from tltools.serve.bodies import BODY, without_name
from tltools.serve.front import PATHS
from tltools.serve.settings import PACKAGES

linux = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc as on Linux")

DANGEROUS = """
import os, signal, time
import tltools.data.image_ref as module
give = module._give
def _give(data):  # reads an image's bytes, in the process that decodes them
    if data.startswith(b"CRASH"):
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
    if data.startswith(b"HANG"):
        time.sleep(1000)
    if data.startswith(b"SLOW"):
        time.sleep(0.03)
        data = data[4:]
    return give(data)
_give.__module__ = module.__name__
module._give = _give
"""
"""Loaded by each process of a server: images that begin so stand for those that a decoder crashes
on, hangs at or takes long for."""
BOUNDARY = "boundary-of-the-form"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def set_signals(ignored: Sequence[int]) -> None:
    """Ignore these; below nohup, and in a script's background, others are inherited as ignored."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)


class Server:
    """A running `tltools serve`."""

    def __init__(
        self,
        model: Path,
        site: Path,
        *options: object,
        host: str = "127.0.0.1",
        ignored: Sequence[int] = (),
    ) -> None:
        words = ["serve", str(model), "--port", "0", "--device", "cpu", "--json", *options]
        paths = [str(site), str(Path(__file__).parents[1]), *filter(None, sys.path)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tltools", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            preexec_fn=partial(set_signals, ignored),
        )
        text = ""
        while not text.endswith("\n}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            text += line
        self.facts = json.loads(text)
        self.port = int(self.facts["url"].rpartition(":")[2])

    def connect(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(
                method, path, body, named, encode_chunked="Transfer-Encoding" in named
            )
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def classify(self, body: Any, **headers: str) -> Answer:
        return self.ask("POST", "/classify", body, **headers)

    def send(self, files: dict[str, bytes]) -> Answer:
        """Send a form."""
        return self.classify(form(files), Content_Type=f"multipart/form-data; boundary={BOUNDARY}")

    def counts(self) -> dict[str, float]:
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def workers(self) -> list[int]:
        """The processes that decode: children of the fork server."""
        return [one for one in children(self.process.pid) if not children(one)]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End it; return its exit code and standard error."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


def form(files: dict[str, bytes]) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        .encode() + data + b"\r\n"
        for name, data in files.items()
    ]  # fmt: skip
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="module")
def start(onnx_path, tmp_path_factory) -> Iterator[Callable[..., Server]]:
    """Start servers; they are killed at the end."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(DANGEROUS)
    started: list[Server] = []

    def one(*options: object, model: Path = onnx_path, ignored: Sequence[int] = ()) -> Server:
        started.append(Server(model, site, "--workers", 2, *options, ignored=ignored))
        return started[-1]

    yield one
    for server in started:
        server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def server(start) -> Server:
    limits = ("--max-image-mb", 0.5, "--max-waiting", 6, "--image-timeout", 1)
    return start(*limits, "--client-timeout", 2)


@pytest.fixture(scope="module")
def red() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 40), (250, 10, 20)).save(file, "PNG")
    return file.getvalue()


def test_an_answer_is_the_row_that_classify_writes(server, onnx_path, images, tmp_path):
    ran = run_tltools("classify", images, "--model", onnx_path, "-o", "rows.jsonl", cwd=tmp_path)
    assert ran.code == 0, ran
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} == set(CLASSES)
    files = {row["path"]: (images / row["path"]).read_bytes() for row in rows}
    names = list(files)
    for start in range(0, len(names), 6):  # as many as the service takes at a time
        some = names[start : start + 6]
        assert server.send({name: files[name] for name in some}).json() == rows[start : start + 6]
    for row in rows[:3]:
        alone = server.classify(files[row["path"]])
        assert (alone.status, alone.json()) == (200, row | {"path": "request body"})
        assert alone.headers["content-type"] == "application/json"
        assert server.send({row["path"]: files[row["path"]]}).json() == row


@pytest.fixture(scope="module")
def careful(start, cnn_exports) -> Server:
    """A server that labels images `unknown`."""
    return start("--unknown", 95, model=cnn_exports["onnx"].path)


def test_an_answer_has_the_distance_and_unknown_label_of_classify(
    careful, cnn_exports, drawn, red, tmp_path
):
    shutil.copytree(drawn, tmp_path / "images")
    (tmp_path / "images" / "red.png").write_bytes(red)
    model = cnn_exports["onnx"].path
    words = ("classify", "images", "--model", model, "--unknown", 95, "-o", "rows.jsonl")
    ran = run_tltools(*words, "--device", "cpu", cwd=tmp_path)
    assert ran.code == 0, ran
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["label"] == "unknown" for row in rows} == {True, False}
    files = {row["path"]: (tmp_path / "images" / row["path"]).read_bytes() for row in rows}
    assert careful.send(files).json() == rows
    (row,) = (one for one in rows if one["path"] == "red.png")
    assert row["distance"] > 1
    assert careful.classify(red).json() == row | {"path": "request body"}
    bad = careful.classify(b"no image").json()
    assert (bad["label"], bad["distance"]) == (None, None)


def test_a_threshold_of_a_class_is_applied(start, red):
    never = start("--threshold", 1, "--class", "red")
    row = never.classify(red).json()
    assert row["label"] == "blue"
    assert row["confidence"] == row["probabilities"]["blue"] < row["probabilities"]["red"]
    assert never.ask("GET", "/health").json()["threshold"] == {"class": "red", "value": 1.0}
    assert never.ask("GET", "/").status == 200
    assert never.ask("GET", "/nowhere").status == 404
    assert never.send({"a.png": red, "b.png": b"no image"}).status == 200
    _, err = never.stop()
    assert "2 requests for labels answered; 2 images classified, 1 failed" in err


def test_a_model_that_needs_all_cores_answers_the_same(start, server, torchscript_path, images):
    paths = sorted(images.rglob("*.png"))[::5]
    ahead = start("--threads", 2, "--batch-size", 4)
    assert ahead.facts["plan"]["name"] == "ahead"
    torch = start(model=torchscript_path)
    assert torch.facts["provider"] == "torch"
    files = {path.name + str(number): path.read_bytes() for number, path in enumerate(paths)}
    expected = server.send(files).json()
    assert len({row["label"] for row in expected}) == 3
    for other in (ahead, torch):
        assert other.send(files).json() == expected
        assert other.classify(b"no image").status == 422
        code, err = other.stop()
        assert code == 128 + signal.SIGTERM
        assert (
            "2 requests for labels answered, 1 of them with an error; "
            f"{len(paths)} images classified, 1 failed" in err
        )


# ------------------------------------------------------------------------- what cannot be answered


def bomb() -> bytes:
    """A PNG of 2.5 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"no image", "not an image of a known format", id="no image"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"x" * 99, "body as an image: ", id="broken"),
        pytest.param(bomb(), "pixels", id="bomb"),
        pytest.param(b"CRASH", r"the decoder crashed \(SIGSEGV\)", id="crash"),
        pytest.param(b"HANG", "longer than 1 s", id="hang"),
    ],
)
def test_a_bad_image_is_a_422_with_the_reason_and_costs_only_itself(server, red, data, reason):
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(server.classify(data)))
    thread.start()
    while thread.is_alive():
        assert server.classify(red).json()["label"] == "red"
    row = answers[0].json()
    assert answers[0].status == 422
    assert re.search(reason, row.pop("error"))
    assert row == {"path": "request body", "label": None, "confidence": None, "probabilities": None}


def test_a_body_that_is_no_image_is_not_called_an_image_of_that_name():
    row = Prediction(BODY, None, None, None, f"cannot read image {BODY}: it is empty")
    assert without_name(row).error == "cannot read the request body as an image: it is empty"
    other = replace(row, error="the decoder crashed")
    assert without_name(other) == other
    named = Prediction("a.png", None, None, None, "cannot read image a.png: it is empty")
    assert without_name(named) == named


def test_a_bad_image_among_others_has_its_reason_in_their_list(server, red):
    found = server.send({"a.png": red, "b.png": b"no image", "c.png": red})
    assert found.status == 200
    assert [(row["path"], row["label"]) for row in found.json()] == [
        ("a.png", "red"), ("b.png", None), ("c.png", "red"),
    ]  # fmt: skip
    assert "b.png" in found.json()[1]["error"]


def test_a_name_in_a_form_is_never_opened(server, red):
    """Names are only repeated: a path or URL of a client's is not read."""
    for name in ("/etc/passwd", "http://127.0.0.1:1/a.png", "../../up.png"):
        assert server.send({name: red}).json()["path"] == name
        assert server.send({name: red}).json()["label"] == "red"


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        pytest.param("", b"", "no body", id="empty"),
        pytest.param("multipart/form-data", b"abc", "boundary", id="no boundary"),
        pytest.param(f"multipart/form-data; boundary={BOUNDARY}", b"abc", "form", id="garbage"),
        pytest.param(
            f"multipart/form-data; boundary={BOUNDARY}", form({}), "no file", id="no file"
        ),
        pytest.param(
            f"multipart/form-data; boundary={BOUNDARY}", form({"a": b"xyz"})[:-30], "no file",
            id="cut off",
        ),
        pytest.param(
            f"multipart/form-data; boundary={BOUNDARY}",
            form({str(number): b"x" for number in range(65)}), "Too many files", id="65 files",
        ),
        pytest.param(
            f"multipart/form-data; boundary={BOUNDARY}; charset=undefined",
            form({"a": b"x"}), "the form cannot be read", id="charset",
        ),
    ],
)  # fmt: skip
def test_a_request_without_an_image_is_a_400_with_the_reason(server, kind, body, reason):
    found = server.classify(body, Content_Type=kind)
    assert found.status == 400
    assert reason in found.json()["error"]


def test_other_paths_and_methods_are_refused(server):
    assert server.ask("GET", "/photos/a.png").status == 404
    refused = server.ask("GET", "/classify")
    assert refused.status == 405
    assert refused.json()["error"].startswith("method not allowed: POST an image to /classify")
    assert "error" in server.ask("GET", "/docs").json()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")


def peak_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024


@linux
def test_a_body_that_is_too_large_is_a_413_and_takes_no_memory(server, red):
    before = peak_bytes(server.process.pid)
    announced = server.classify(bytes(600_000))
    endless = server.classify(iter([bytes(10**6)] * 64), Transfer_Encoding="chunked")
    in_form = server.send({"a.png": red, "b.png": bytes(600_000)})
    for found in (announced, endless, in_form):
        assert found.status == 413
        assert "the image is larger than 0.5 MB" in found.json()["error"]
    whole = server.send({"a.png": red, **{str(n): bytes(900_000) for n in range(8)}})
    assert whole.status == 413
    assert "the form is larger than 4 MB" in whole.json()["error"]
    assert peak_bytes(server.process.pid) - before < 20e6
    assert server.counts()["tltools_held_bytes"] == 0
    assert server.classify(red).status == 200


def test_more_images_than_the_limit_are_a_503_that_says_when_to_try_again(server, red):
    hanging = [threading.Thread(target=server.classify, args=[b"HANG"]) for _ in range(6)]
    for thread in hanging:
        thread.start()
    while server.counts()["tltools_waiting_images"] < 6:
        assert any(thread.is_alive() for thread in hanging), "the service was never full"
    found = server.classify(red)
    assert (found.status, found.headers["retry-after"]) == (503, "1")
    assert "busy with 6 images, of 6 at most" in found.json()["error"]
    assert server.ask("GET", "/health").status == 200
    for thread in hanging:
        thread.join()
    assert server.counts()["tltools_waiting_images"] == 0
    assert server.classify(red).status == 200


def test_a_form_with_more_images_than_the_service_takes_is_not_told_to_try_again(server, red):
    found = server.send({f"{number}.png": red for number in range(7)})
    assert found.status == 413
    assert "retry-after" not in found.headers
    assert found.json()["error"] == "the form has 7 images, and this service takes 6 at a time"


# ----------------------------------------------------------------------------------- slow clients


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"POST /classify HTTP/1.1\r\nHost: localhost\r\n", b"", id="half a head"),
        pytest.param(
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nabc",
            b"HTTP/1.1 408", id="half a body",
        ),
    ],
)  # fmt: skip
def test_a_slow_client_is_sent_away_and_blocks_no_other(server, red, sent, answer):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        slow.sendall(sent)
        assert server.classify(red).status == 200
        got = b""
        while some := slow.recv(4096):
            assert server.classify(red).status == 200
            got += some
    assert got.startswith(answer)
    assert bool(got) == bool(answer)


def test_a_client_that_leaves_in_the_middle_costs_nothing(server, red):
    for sent in (
        b"POST /classify HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 9999\r\n\r\nabc",
        b"POST /classify HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 8\r\n\r\nno image",
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(sent)
    deadline = time.monotonic() + 20
    while any(server.counts()[f"tltools_{name}"] for name in ("waiting_images", "held_bytes")):
        assert time.monotonic() < deadline
    assert server.classify(red).status == 200


def test_200_connections_at_a_time_are_all_answered(server, red):
    clients = [server.connect() for _ in range(200)]
    for client in clients:
        client.connect()
    found: Counter[int] = Counter()
    for client in clients:
        client.request("POST", "/classify", red)
    for client in clients:
        found[client.getresponse().status] += 1
        client.close()
    assert found.keys() <= {200, 503}
    assert found.total() == 200
    assert found[200] >= 6


# ------------------------------------------------------------------------------- browsers' pages


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "attacker.example"}, 403),
        ({"Host": "127.0.0.1.attacker.example:80"}, 403),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_pages_of_other_sites_are_refused(server, red, headers, status):
    found = server.classify(red, **headers)
    assert found.status == status
    assert not any(name.startswith("access-control") for name in found.headers)
    assert server.ask("GET", "/health", **headers).status == status


def test_the_page_loads_nothing_from_elsewhere(server):
    found = server.ask("GET", "/")
    assert found.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert not re.search(rb"https?://", found.body)


def test_a_browser_shows_the_label_of_an_image_that_it_is_given(server, red, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    (tmp_path / "red.png").write_bytes(red)
    (tmp_path / "bad.png").write_bytes(b"no image")
    said: list[str] = []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("console", lambda message: said.append(message.text))
        page.goto(server.facts["url"])
        expect(page.locator("#model")).to_have_text(f"tiny.onnx, 3 classes: {', '.join(CLASSES)}")
        expect(page.locator("#rules")).to_have_text("")
        url = f"{server.facts['url']}/classify"
        expect(page.locator("#call")).to_have_text(f"curl -F file=@photo.jpg {url}")
        assert page.locator("footer a").first.get_attribute("href") == "openapi.json"
        page.set_input_files("#files", [tmp_path / "red.png", tmp_path / "bad.png"])
        expect(page.locator(".label")).to_contain_text("red")
        expect(page.locator(".bad")).to_contain_text("bad.png")
        expect(page.locator("dt")).to_have_text(["red", "blue", "green"])
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        browser.close()
    # The browser itself reports the 422.
    assert [line for line in said if "422" not in line] == []


def test_a_browser_shows_that_an_image_is_unknown_and_how_distant_it_is(careful, red, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    (tmp_path / "red.png").write_bytes(red)
    row = careful.classify(red).json()
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.goto(careful.facts["url"])
        expect(page.locator("#rules")).to_have_text(
            "unknown if farther from the training images than 95% of them"
        )
        page.set_input_files("#files", [tmp_path / "red.png"])
        expect(page.locator(".label")).to_contain_text("unknown")
        expect(page.locator(".distance")).to_have_text(f"distance {row['distance']:.2f}")
        browser.close()


# --------------------------------------------------------------------- health, metrics and OpenAPI


def test_health_names_the_model(server):
    found = server.ask("GET", "/health")
    assert found.status == 200
    expected = {
        "status": "ready", "ready": True, "model": "tiny.onnx", "run": "tiny",
        "classes": list(CLASSES), "format": "onnx", "precision": "fp32", "device": "cpu",
        "provider": "CPUExecutionProvider", "threshold": None, "min_confidence": None,
        "unknown": None,
    }  # fmt: skip
    assert found.json().items() >= expected.items()


def test_metrics_count_requests_images_and_batches(server, red):
    before = server.counts()
    server.send({"a.png": red, "b.png": b"no image"})
    server.classify(b"no image")
    server.ask("GET", "/nowhere/in/particular")
    after = server.counts()
    new = {name: value - before.get(name, 0) for name, value in after.items()}
    assert {name for name, value in new.items() if value and "bucket" not in name} == {
        'tltools_requests_total{path="/classify",status="200"}',
        'tltools_requests_total{path="/classify",status="422"}',
        'tltools_requests_total{path="other",status="404"}',
        'tltools_requests_total{path="/metrics",status="200"}',
        'tltools_images_total{outcome="classified"}',
        'tltools_images_total{outcome="failed"}',
        "tltools_request_seconds_sum", "tltools_request_seconds_count",
        "tltools_batch_images_sum", "tltools_batch_images_count",
    }  # fmt: skip
    assert new['tltools_images_total{outcome="classified"}'] == 1
    assert new['tltools_images_total{outcome="failed"}'] == 2
    assert new["tltools_request_seconds_count"] == 2
    assert new['tltools_request_seconds_bucket{le="+Inf"}'] == 2
    assert new["tltools_batch_images_sum"] == 3


def test_metrics_are_in_the_text_format_of_prometheus(server):
    found = server.ask("GET", "/metrics")
    assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = found.body.decode()
    assert text.endswith("\n")
    label = r'[a-z]+="[^"\\\n]*"'
    for line in text.splitlines():
        assert re.fullmatch(
            rf"# (HELP|TYPE) tltools_\w+ .+|tltools_\w+(\{{{label}(,{label})*\}})? \S+", line
        ), line
    buckets = re.findall(r"^tltools_request_seconds_bucket.* (\d+)$", text, re.MULTILINE)
    assert list(map(int, buckets)) == sorted(map(int, buckets))


def test_openapi_describes_every_path_and_answer(server, red):
    found = server.ask("GET", "/openapi.json").json()
    assert found["openapi"].startswith("3.")
    assert set(found["paths"]) == PATHS - {"/openapi.json"}
    assert "$ref" not in json.dumps(found)
    operation = found["paths"]["/classify"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert set(operation["responses"]) == {"200", "400", "403", "408", "413", "422", "503"}
    assert "One image, in a form too, is answered with an object" in operation["description"]
    assert isinstance(server.send({"a.png": red}).json(), dict)
    assert isinstance(server.send({"a.png": red, "b.png": red}).json(), list)
    row = operation["responses"]["422"]["content"]["application/json"]["schema"]
    assert list(server.classify(red).json()) == row["required"]
    assert list(row["properties"]) == [*row["required"], "distance"]  # with --unknown only


# --------------------------------------------------------------------------- killed and stopped


@linux
def test_a_killed_worker_loses_no_request(server, red):
    answers: Counter[int] = Counter()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answers[server.classify(b"SLOW" + red).status] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):  # more often than a job would stand
        before = answers.total()
        os.kill(server.workers()[0], signal.SIGKILL)
        while answers.total() < before + 6:
            time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert set(answers) == {200}
    for _ in range(4):  # idle ones, too
        os.kill(server.workers()[0], signal.SIGKILL)
        assert server.classify(red).status == 200
    assert server.ask("GET", "/health").json()["ready"]


class Load:
    """Clients that send one request after the other until the connection is refused."""

    def __init__(self, server: Server, image: bytes, num_clients: int) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self._server = server
        self._image = image
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while True:
            connection = self._server.connect()
            try:
                connection.connect()
            except OSError:
                return  # refused: the client knows that nothing was accepted
            try:
                self._use(connection)
            except (http.client.HTTPException, OSError) as error:
                with self._lock:
                    self.lost.append(repr(error))
            finally:
                connection.close()

    def _use(self, connection: http.client.HTTPConnection) -> None:
        while True:
            connection.request("POST", "/classify", self._image)
            response = connection.getresponse()
            assert json.loads(response.read())["label"] == "red"
            with self._lock:
                self.answered += 1
            if response.getheader("connection") == "close":
                return


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_under_load_loses_no_accepted_request(start, red, number):
    server = start()
    below = children(server.process.pid)
    assert len(below) == 3  # the fork server and two workers
    load = Load(server, b"SLOW" + red, 8)
    while load.answered < 20:
        time.sleep(0.01)
    code, err = server.stop(number)
    load.join()
    assert load.lost == []
    last = re.search(
        r"^(\d+) requests for labels answered; \d+ images classified$", err, re.MULTILINE
    )
    assert int(last[1]) == load.answered
    assert code == 128 + number
    assert ("stopped by Ctrl-C" in err) == (number == signal.SIGINT)
    assert not [pid for pid in below if is_alive(pid)]


@linux
def test_an_ignored_signal_does_not_stop_the_service(start, red):
    server = start(ignored=[signal.SIGINT, signal.SIGHUP])
    for number in (signal.SIGINT, signal.SIGHUP):
        server.process.send_signal(number)
        assert server.classify(red).status == 200
    assert server.stop()[0] == 128 + signal.SIGTERM


@linux
def test_a_killed_service_leaves_no_processes(start, red):
    server = start()
    assert server.classify(red).status == 200
    below = children(server.process.pid)
    assert server.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while any(map(is_alive, below)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------------------- it does not start


def test_a_port_in_use_is_an_error_before_the_model_is_opened(onnx_path, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = run_tltools("serve", tmp_path / "missing.onnx", "--port", port, cwd=tmp_path)
    assert ran.code == 2
    assert ran.err == (
        f"error: port {port} of 127.0.0.1 is in use; stop the program that uses it, or choose "
        "another with --port; 0 takes a free one\n"
    )


def test_an_address_of_another_machine_is_an_error(onnx_path, tmp_path):
    ran = run_tltools("serve", onnx_path, "--host", "192.0.2.1", cwd=tmp_path)
    warning, error = ran.err.splitlines()
    assert warning.startswith("warning: 192.0.2.1 can be reached from other machines")
    assert warning.endswith("leave out --host")
    assert error.startswith("error: cannot listen on 192.0.2.1, port 8000: ")
    assert ran.code == 2


@pytest.mark.parametrize("module", PACKAGES)
def test_a_missing_package_is_named_with_its_remedy(module, onnx_path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # its import fails from now on
    ran = run_tltools("serve", onnx_path, cwd=tmp_path)
    assert ran.code == 2
    assert ran.err.startswith(f'error: serve needs {PACKAGES[module]}: pip install "fastapi>=')


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--max-image-mb", 0), ("--client-timeout", -1), ("--image-timeout", "nan")),
        *(("--max-image-mb", "inf"), ("--client-timeout", "inf"), ("--max-delay-ms", "inf")),
    ],
)
def test_limits_out_of_range_are_refused(onnx_path, tmp_path, option, value):
    ran = run_tltools("serve", onnx_path, option, value, cwd=tmp_path)
    assert ran.code == 2
    assert option in ran.err


def test_no_other_command_needs_the_packages_of_the_service(onnx_path, red, tmp_path):
    (tmp_path / "red.png").write_bytes(red)
    program = (
        "import sys\n"
        f"for name in {[*PACKAGES, 'starlette', 'pydantic']}: sys.modules[name] = None\n"
        "from tltools.cli import main\n"
        f"main(['classify', 'red.png', '--model', {str(onnx_path)!r}, '--device', 'cpu'])"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.stdout.startswith("red "), ran.stderr
