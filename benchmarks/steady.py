"""Measure single parts at a steady rate for a few seconds: decoders, sessions, networks.

Each task yields a row for each setting, with `images_per_s` or the reason why it failed.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any

import numpy as np
from systems import Job, images_in

from tltools.card import Preprocessing
from tltools.data.images import load_image
from tltools.runtime import read_card

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

WARMUP_CALLS = 2
WARMUP_S = 0.5
"""Longest warm-up, in seconds; shorter measurements have an equally short warm-up."""
MIN_CALLS = 3
READY_S = 60.0
"""How long decoding processes may take to get ready, in seconds."""
FEEDS = ("host", "page-locked", "device")
"""Where a session's input is: in ordinary memory, in memory that the GPU copies from by itself, or
already on the GPU."""

Row = dict[str, Any]


def tried(name: str, measure: Callable[[], float], **facts: Any) -> Row:
    """Return a row with the images per second that `measure` returns, or why it failed."""
    row: Row = {"name": name, "images_per_s": None, "failure": ""} | facts
    try:
        row["images_per_s"] = measure()
    except Exception as error:
        row["failure"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    return row


def rate(call: Callable[[], object], seconds: float, num_images: int) -> float:
    """Call repeatedly and return images per second.

    Args:
        call: Processes `num_images` images and returns when they are done.
        seconds: Minimum duration after a warm-up; there are at least `MIN_CALLS` calls.
        num_images: Images of one call.
    """
    _repeat(call, min(seconds, WARMUP_S), WARMUP_CALLS)
    calls, took_s = _repeat(call, seconds, MIN_CALLS)
    return calls * num_images / took_s


def _repeat(call: Callable[[], object], seconds: float, least: int) -> tuple[int, float]:
    """Call for the given time, and at least `least` times; return the calls and their seconds."""
    calls, start = 0, time.perf_counter()
    while calls < least or time.perf_counter() - start < seconds:
        call()
        calls += 1
    return calls, time.perf_counter() - start


# --------------------------------------------------------------------------------- decoding


def decoding(
    *,
    export: str,
    folder: str,
    seconds: float,
    processes: Sequence[int] = (),
    threads: Sequence[int] = (),
) -> Iterator[Row]:
    """Decode a folder's images with `load_image`, for each number of processes and of threads."""
    preprocessing = read_card(Path(export)).preprocessing
    paths = images_in(Path(folder))
    how = (preprocessing, seconds)
    for count in processes:
        name = f"decoding, {count} process{'es' * (count > 1)}"
        yield tried(name, lambda count=count: _in_processes(paths, how, count), processes=count)
    for count in threads:
        name = f"decoding, {count} thread{'s' * (count > 1)}"
        yield tried(name, lambda count=count: _in_threads(paths, how, count), threads=count)


def decode_for(
    paths: Sequence[Path], preprocessing: Preprocessing, seconds: float, start: "Barrier"
) -> float:
    """Decode images in turn, starting when all decoders are ready; return images per second."""
    out = np.empty(preprocessing.shape(1)[1:], np.uint8)
    for path in islice(cycle(paths), 16):
        load_image(path, preprocessing, out=out)
    start.wait(READY_S)
    number, begun = 0, time.perf_counter()
    for path in cycle(paths):
        load_image(path, preprocessing, out=out)
        number += 1
        if time.perf_counter() - begun >= seconds:
            break
    return number / (time.perf_counter() - begun)


def put_rate(rates: "Queue[float]", *arguments: Any) -> None:
    """Decode in a process, and put the rate into the queue."""
    rates.put(decode_for(*arguments))


def _in_processes(paths: Sequence[Path], how: tuple[Preprocessing, float], count: int) -> float:
    context = multiprocessing.get_context("spawn")
    start, rates = context.Barrier(count), context.Queue()
    children = [
        context.Process(
            target=put_rate, args=(rates, paths[number::count], *how, start), daemon=True
        )
        for number in range(count)
    ]
    for child in children:
        child.start()
    found = [rates.get(timeout=READY_S + how[1]) for _ in children]
    for child in children:
        child.join()
    return sum(found)


def _in_threads(paths: Sequence[Path], how: tuple[Preprocessing, float], count: int) -> float:
    start = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        futures = [
            pool.submit(decode_for, paths[number::count], *how, start) for number in range(count)
        ]
        return sum(future.result() for future in futures)


def nvjpeg(*, folder: str, seconds: float, batches: Sequence[int]) -> Iterator[Row]:
    """Read and decode JPEGs on the GPU with torchvision (nvJPEG), in batches."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    paths = cycle([str(path) for path in images_in(Path(folder))])

    def call(batch: int) -> None:
        data = [read_file(path) for path in islice(paths, batch)]
        decode_jpeg(data, mode=ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()

    for batch in batches:
        name = f"nvJPEG, batch {batch}"
        yield tried(name, lambda batch=batch: rate(lambda: call(batch), seconds, batch))


# --------------------------------------------------------------------------------- sessions


def session_setting(
    batch: int,
    *,
    device: str = "cuda",
    tf32: bool = False,
    nhwc: bool = False,
    feed: str = "page-locked",
    callers: int = 1,
) -> dict[str, Any]:
    """Describe a bare session.

    Args:
        batch: Images of a call.
        device: `cpu` or `cuda`.
        tf32: Whether to round fp32 products to TF32.
        nhwc: The CUDA provider's `prefer_nhwc`.
        feed: One of `FEEDS`.
        callers: Threads that call the session concurrently.
    """
    return {
        "batch": batch,
        "device": device,
        "tf32": tf32,
        "nhwc": nhwc,
        "feed": feed,
        "callers": callers,
    }


def session_name(model: str, setting: Mapping[str, Any]) -> str:
    """Name a bare session by its settings."""
    words = [f"session {model}", f"batch {setting['batch']}"]
    words += [word for word in ("tf32", "nhwc") if setting[word]]
    if setting["device"] == "cuda":
        words.append(f"from {setting['feed']}")
    if setting["callers"] > 1:
        words.append(f"{setting['callers']} callers")
    return ", ".join(words)


def bare_sessions(
    *, export: str, model: str, settings: Sequence[Mapping[str, Any]], seconds: float
) -> Iterator[Row]:
    """Run an export in onnxruntime alone, on random images."""
    size = read_card(Path(export)).preprocessing.size
    opened: dict[tuple[Any, ...], Any] = {}

    def session_of(setting: Mapping[str, Any]) -> Any:
        from forms import open_session

        key = (setting["device"], setting["tf32"], setting["nhwc"])
        if key not in opened:
            opened.clear()  # one session's memory at a time
            options = {"use_tf32": str(int(setting["tf32"]))}
            options |= {"prefer_nhwc": "1"} if setting["nhwc"] else {}
            opened[key] = open_session(export, device=setting["device"], options=options)
        return opened[key]

    def measure(setting: Mapping[str, Any]) -> float:
        session = session_of(setting)
        calls = [_session_call(session, setting, size) for _ in range(setting["callers"])]
        with ThreadPoolExecutor(len(calls)) as pool:
            found = pool.map(lambda call: rate(call, seconds, setting["batch"]), calls)
            return sum(found)

    for setting in settings:
        name = session_name(model, setting)
        yield tried(name, lambda setting=setting: measure(setting), **setting)


def _session_call(session: Any, setting: Mapping[str, Any], size: int) -> Callable[[], object]:
    """Return a function that runs the session once, on its own input."""
    shape = (setting["batch"], size, size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    name = session.get_outputs()[0].name
    if setting["device"] == "cuda" and setting["feed"] == "page-locked":
        images = _page_locked(images)
    if setting["device"] == "cuda" and setting["feed"] == "device":
        return _bound_call(session, images, name)
    return lambda: session.run([name], {"images": images})


def _page_locked(images: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(images).pin_memory().numpy()


def _bound_call(session: Any, images: np.ndarray, output: str) -> Callable[[], object]:
    import onnxruntime

    binding = session.io_binding()
    binding.bind_ortvalue_input(
        "images", onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0)
    )
    binding.bind_output(output, "cpu")
    return lambda: session.run_with_iobinding(binding)


# --------------------------------------------------------------------------------- PyTorch


def torch_name(model: str, setting: Mapping[str, Any]) -> str:
    """Name a network in PyTorch by its settings."""
    words = (setting["form"], setting["precision"], "channels_last", f"batch {setting['batch']}")
    return f"PyTorch {model}, {', '.join(words)}"


def bare_torch(
    *,
    job: Mapping[str, str],
    model: str,
    settings: Sequence[Mapping[str, Any]],
    seconds: float,
    device: str,
) -> Iterator[Row]:
    """Run a network in PyTorch on images that are already on the device, without any copies."""
    for setting in settings:
        yield tried(
            torch_name(model, setting),
            lambda setting=setting: _torch_rate(Job(**job), setting, seconds, device),
            **setting,
        )


def _torch_rate(job: Job, setting: Mapping[str, Any], seconds: float, device: str) -> float:
    import torch
    from forms import open_module, set_tf32

    set_tf32(enabled=setting["precision"] == "tf32")
    size, batch = read_card(Path(job.export)).preprocessing.size, setting["batch"]
    module = open_module(setting["form"], job, device=device, precision=setting["precision"])
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8).to(device)

    in_a_row = 4 if device == "cuda" else 1  # so that the GPU need not wait for Python

    def call() -> None:
        for _ in range(in_a_row):
            module(images)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        return rate(call, seconds, in_a_row * batch)
