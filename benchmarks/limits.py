"""Upper limits of speed: decoding alone and the bare session; and loaders of large images.

Each is a system as in `systems`, so that all are measured in one rotation.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from forms import open_session
from numpy.typing import NDArray
from PIL import Image
from systems import Job, Work, images_in

from tltools.card import Preprocessing, Resize
from tltools.data.images import load_image
from tltools.parallel import num_cores
from tltools.runtime import read_card

CHUNK = 16
"""Images given to a thread at once."""


def combined(decode_s: float, infer_s: float) -> float:
    """Return the minimum time for two kinds of work that both use all cores, in seconds.

    As rates it is 1 / (1 / decode + 1 / infer).
    """
    return decode_s + infer_s


def open_decoding(job: Job) -> Work:
    """Prepare decoding alone: `load_image` in one thread per core, into reused memory."""
    preprocessing = read_card(Path(job.export)).preprocessing

    def load(paths: Sequence[Path]) -> None:
        out = np.empty(preprocessing.shape(1)[1:], np.uint8)
        for path in paths:
            load_image(path, preprocessing, out=out)

    return lambda folder, _output: _in_threads(load, images_in(folder), CHUNK)


def open_bare_session(job: Job, *, callers: int, threads: int, batch_size: int) -> Work:
    """Prepare the bare onnxruntime session; the clock starts once the images are in memory.

    Args:
        job: Names the export.
        callers: Threads that call the session concurrently, each with its own batches.
        threads: Threads of onnxruntime for one call.
        batch_size: Images in a call.
    """
    session = open_session(job.export, device="cpu", threads=threads)
    preprocessing = read_card(Path(job.export)).preprocessing

    def work(folder: Path, _output: Path) -> float:
        paths = images_in(folder)
        images = np.empty(preprocessing.shape(len(paths)), np.uint8)

        def load(indices: Sequence[int]) -> None:
            for index in indices:
                load_image(paths[index], preprocessing, out=images[index])

        _in_threads(load, range(len(paths)), CHUNK)
        batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]

        def call(caller: int) -> None:
            for batch in islice(batches, caller, None, callers):
                session.run(None, {"images": batch})

        with ThreadPoolExecutor(callers) as pool:
            ready = time.perf_counter()
            list(pool.map(call, range(callers)))
        return ready

    return work


def open_loader(job: Job, *, load: Callable[..., object], resize: Resize) -> Work:
    """Prepare one way to decode and resize images, in one thread per core."""
    rules = Preprocessing(size=read_card(Path(job.export)).preprocessing.size, resize=resize)

    def load_all(paths: Sequence[Path]) -> None:
        for path in paths:
            load(path, rules)

    return lambda folder, _output: _in_threads(load_all, images_in(folder), 1)


def load_in_full(path: Path, rules: Preprocessing) -> NDArray[np.uint8]:
    """Decode with Pillow at full resolution and resize, like torchvision's transforms."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    size, resampling = rules.size, Image.Resampling[rules.interpolation.upper()]
    if rules.resize == "squash":
        return np.asarray(image.resize((size, size), resampling))
    scale = round(size * rules.crop_ratio) / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), resampling)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def session_name(callers: int, threads: int, batch_size: int) -> str:
    """Name a bare session by its settings."""
    caller, thread = "s" * (callers > 1), "s" * (threads > 1)
    return f"session: {callers} caller{caller}, {threads} thread{thread}, batch {batch_size}"


def sessions(settings: Iterable[tuple[int, int, int]]) -> dict[str, Callable[[Job], Work]]:
    """Return bare sessions by name; each setting is callers, threads and batch size."""
    return {
        session_name(callers, threads, batch_size): partial(
            open_bare_session, callers=callers, threads=threads, batch_size=batch_size
        )
        for callers, threads, batch_size in settings
    }


DECODING = "decoding alone"
CORES = num_cores()
SMALL_SESSIONS = sessions([(CORES, 1, 1), (CORES, 1, 4), (1, CORES, 8), (1, CORES, 32)])
LARGE_SESSIONS = sessions([(CORES, 1, 1), (1, CORES, 1), (1, CORES, 8)])
LIMITS: dict[str, Callable[[Job], Work]] = {
    DECODING: open_decoding,
    **SMALL_SESSIONS,
    **LARGE_SESSIONS,
}
LOADERS: dict[str, Callable[[Job], Work]] = {
    f"{name}, {resize}": partial(open_loader, load=load, resize=resize)
    for resize in ("squash", "crop")
    for name, load in (("Pillow in full", load_in_full), ("load_image", load_image))
}


def _in_threads(function: Callable[[Sequence[Any]], Any], items: Sequence[Any], chunk: int) -> None:
    with ThreadPoolExecutor(num_cores()) as pool:
        list(pool.map(function, [items[i : i + chunk] for i in range(0, len(items), chunk)]))
