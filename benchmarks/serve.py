"""Measure `tltools serve` under load on loopback, beside `tltools classify` on the same images.

    python benchmarks/serve.py --model EXPORT --images FOLDER [--clients 1 8 32] [--seconds 10]

Clients are threads of one other process, each with a connection that it keeps, sending one image
after the other; they share the machine's cores with the service. Prints a Markdown table: requests
per second, their share of the images per second of the bare pipeline, and percentiles of the
latency that the clients see. `HTTP alone` is the same load on /health: what the server and its
clients can do without any image.
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import image_files

TLTOOLS = (sys.executable, "-m", "tltools")
NUM_BARE = 3000
"""Images of the bare pipeline's job: enough for its start to weigh nothing."""
MAX_WARM_UP_S = 2.0


def bare_rate(model: Path, images: Path, num_images: int, work: Path) -> float:
    """Return the images per second of `tltools classify`, from its first image to the file."""
    folder = image_files.links(image_files.find_jpegs(images), work / "bare", num_images)
    words = ("classify", folder, "--model", model, "-o", work / "bare.csv", "--json", "--quiet")
    ran = subprocess.run(
        [*TLTOOLS, *map(str, words), "--overwrite"], check=True, capture_output=True, text=True
    )
    return json.loads(ran.stdout)["images_per_s"]


@contextmanager
def running(model: Path, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Run the service; yield its URL and process number."""
    words = ["serve", str(model), "--port", "0", "--json", "--quiet", *options]
    process = subprocess.Popen([*TLTOOLS, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the service did not start")
            text += line
        yield json.loads(text)["url"], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()


def load(url: str, images: Sequence[bytes], num_clients: int, seconds: float) -> dict[str, Any]:
    """Return what clients saw: requests per second, percentiles in ms, other statuses.

    Args:
        url: The service's.
        images: Bodies to send in turn; empty: ask for /health.
        num_clients: Number of threads.
        seconds: Duration, after the warm-up.
    """
    host = url.removeprefix("http://")
    samples: list[tuple[float, float]] = []
    statuses: dict[int, int] = {}
    begun = time.monotonic() + min(MAX_WARM_UP_S, seconds)
    end = begun + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(host)
        bodies = cycle(images[number % len(images) :] + images[:number]) if images else None
        while (now := time.monotonic()) < end:
            if bodies is None:
                connection.request("GET", "/health")
            else:
                connection.request("POST", "/classify", next(bodies))
            response = connection.getresponse()
            response.read()
            statuses[response.status] = statuses.get(response.status, 0) + 1
            samples.append((now, time.monotonic()))
        connection.close()

    threads = [threading.Thread(target=client, args=(one,)) for one in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timed = [(after - before) * 1e3 for before, after in samples if before >= begun]
    cuts = quantiles(timed, n=100, method="inclusive")
    return {
        "rate": len(timed) / seconds,
        "p50": cuts[49],
        "p95": cuts[94],
        "p99": cuts[98],
        "statuses": statuses,
    }


def load_elsewhere(words: Sequence[str]) -> dict[str, Any]:
    """Return what `load` returns, run in a process of its own."""
    ran = subprocess.run(
        [sys.executable, __file__, "--load", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(ran.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--model", type=Path, help="an export")
    add("--images", type=Path, help="a folder of JPEGs")
    add("--clients", type=int, nargs="+", default=[1, 8, 32], help="clients at a time")
    add("--seconds", type=float, default=10, help="duration of each load")
    add("--rounds", type=int, default=3, help="how often everything is measured, in turn")
    add("--bare-images", type=int, default=NUM_BARE, help="images of the bare pipeline's job")
    add("--options", nargs="*", default=[], help="options of the service, without their dashes")
    add("--load", nargs=4, metavar=("URL", "IMAGES", "CLIENTS", "SECONDS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.load:
        url, folder, clients, seconds = given.load
        images = (
            [one.read_bytes() for one in image_files.find_jpegs(Path(folder))] if folder else []
        )
        print(json.dumps(load(url, images, int(clients), float(seconds))))
        return
    if given.model is None or given.images is None:
        parser.error("--model and --images are needed")
    with tempfile.TemporaryDirectory() as work:
        _measure(given, Path(work))


def _measure(given: argparse.Namespace, work: Path) -> None:
    bare: list[float] = []
    found: dict[str, list[dict[str, Any]]] = {}
    peaks: list[int] = []
    for number in range(given.rounds):
        folder = work / str(number)
        folder.mkdir()
        bare.append(bare_rate(given.model, given.images, given.bare_images, folder))
        with running(given.model, [f"--{one}" for one in given.options]) as (url, pid):
            for clients in given.clients:
                words = (url, str(given.images), str(clients), str(given.seconds))
                found.setdefault(str(clients), []).append(load_elsewhere(words))
            words = (url, "", str(max(given.clients)), str(given.seconds / 2))
            found.setdefault(f"{max(given.clients)}, HTTP alone", []).append(load_elsewhere(words))
            peaks.append(_peak_kb(pid))
    rate = median(bare)
    print(f"Bare pipeline: {rate:,.0f} images/s on {os.cpu_count()} cores; peak memory of the")
    print(f"service's main process: {median(peaks) / 1e3:,.0f} MB\n")
    print("| clients | requests/s | of the pipeline | p50 ms | p95 ms | p99 ms | answers |")
    print("| --- | --: | --: | --: | --: | --: | --- |")
    for name, rounds in found.items():
        of = {key: median(one[key] for one in rounds) for key in ("rate", "p50", "p95", "p99")}
        statuses = sorted({status for one in rounds for status in one["statuses"]})
        print(
            f"| {name} | {of['rate']:,.0f} | {of['rate'] / rate:.0%} | {of['p50']:.1f} | "
            f"{of['p95']:.1f} | {of['p99']:.1f} | {', '.join(statuses)} |"
        )


def _peak_kb(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
