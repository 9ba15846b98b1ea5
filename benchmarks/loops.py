"""The loop that most people write, a `DataLoader` and a model, in every form and many settings.

First, every setting of a grid is tried once on some of the images, in one process per form. Then
the fastest settings are measured beside tltools, in alternating turns.
"""

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forms import EAGER, FORMS, Model, classes_of, open_form
from systems import Job, Row, Work, images_in, read_rows, top_rows, write_rows

from tltools.runtime import read_card

if TYPE_CHECKING:
    from torch import Tensor

PILLOW, TORCHVISION = DECODERS = ("Pillow", "torchvision.io")
NUM_FINAL = 3
"""Number of settings that are measured beside tltools in turns."""

Setting = dict[str, Any]
"""Arguments of `open_loop` without the job."""


class Images:
    """A dataset of a folder's JPEGs: uint8 pixels, (H, W, 3), and the file's name."""

    def __init__(self, folder: Path, size: int, decoder: str) -> None:
        """List the folder."""
        self.paths = images_in(folder)
        self.size = size
        self.load = _with_pillow
        if decoder == TORCHVISION:
            # Imported here; otherwise every worker would import it again.
            importlib.import_module("torchvision.transforms.v2.functional")
            self.load = _with_torchvision

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> "tuple[Tensor, str]":
        """Decode an image."""
        path = self.paths[index]
        return self.load(path, self.size), path.name


def _with_pillow(path: Path, size: int) -> "Tensor":
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(path) as image:
        pixels = image.convert("RGB")
    if pixels.size != (size, size):
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(pixels))


def _with_torchvision(path: Path, size: int) -> "Tensor":
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2.functional import resize

    pixels = decode_image(str(path), ImageReadMode.RGB)
    if pixels.shape[1:] != (size, size):
        pixels = resize(pixels, [size, size], antialias=True)
    return pixels.permute(1, 2, 0).contiguous()


def open_loop(
    job: Job,
    *,
    form: str,
    workers: int,
    threads: int | None,
    batch_size: int,
    device: str = "cpu",
    precision: str = "fp32",
    decoder: str = PILLOW,
) -> Work:
    """Prepare a loop; images stay uint8 until they are in the model.

    `threads` is the number of threads of one call of the model on the CPU; None for the library's
    default. On CUDA, batches are page-locked and copied asynchronously, and the results of a batch
    are fetched after the next batch has started.
    """
    from torch.utils.data import DataLoader

    model = open_form(form, job, device=device, precision=precision, threads=threads)
    size, classes = read_card(Path(job.export)).preprocessing.size, classes_of(job)

    def rows(folder: Path) -> Iterator[Row]:
        loader = DataLoader(
            Images(folder, size, decoder),  # type: ignore[arg-type]
            batch_size=batch_size,
            num_workers=workers,
            pin_memory=device == "cuda",
        )
        started = ((names, _begin(model, images, batch_size)) for images, names in loader)
        previous_names, previous = next(started)
        for names, current in started:
            yield from top_rows(previous_names, previous(), classes)
            previous_names, previous = names, current
        yield from top_rows(previous_names, previous(), classes)

    return lambda folder, output: write_rows(output, rows(folder))


def _begin(model: Model, images: "Tensor", batch_size: int) -> Callable[[], "Tensor"]:
    """Start a batch; return a function that waits for and returns its probabilities, (N, C)."""
    import torch

    probs = _padded(model, images, batch_size)
    if not probs.is_cuda:
        return lambda: probs
    fetched = probs.to("cpu", non_blocking=True)  # into page-locked memory, as torch does it
    event = torch.cuda.Event()
    event.record()

    def wait() -> "Tensor":
        event.synchronize()
        return fetched

    return wait


def _padded(model: Model, images: "Tensor", batch_size: int) -> "Tensor":
    """Pad a batch to its full size and run it: another shape would be compiled or planned again."""
    import torch

    number = len(images)
    if number < batch_size:
        padding = torch.zeros((batch_size - number, *images.shape[1:]), dtype=images.dtype)
        images = torch.cat([images, padding])
    return model(images)[:number]


def search_loops(
    *,
    job: Mapping[str, str],
    settings: Sequence[Setting],
    folder: str,
    warmup: str,
    output: str,
    expected: str = "",
) -> Iterator[dict[str, Any]]:
    """Time each setting once, after a warm-up; the row of a failed setting says why.

    Yields:
        For each setting its name, the setting, `num_images`, `seconds` from the first image to the
        last row, and the share of labels equal to those in the CSV `expected`; or `failure`.
    """
    for setting in settings:
        row: dict[str, Any] = {"name": loop_name(setting), "setting": setting, "failure": ""}
        try:
            row |= _time_loop(Job(**job), setting, Path(folder), Path(warmup), Path(output))
            if expected:
                row["same_labels"] = same_labels(Path(output), Path(expected))
        except Exception as error:
            row["failure"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        yield row


def _time_loop(
    job: Job, setting: Setting, folder: Path, warmup: Path, output: Path
) -> dict[str, Any]:
    begun = time.perf_counter()
    work = open_loop(job, **setting)
    work(warmup, output)
    start = time.perf_counter()
    work(folder, output)
    seconds = time.perf_counter() - start
    number = len(images_in(folder))
    return {
        "num_images": number,
        "seconds": seconds,
        "images_per_s": number / seconds,
        "start_up_s": start - begun,
    }


def same_labels(output: Path, expected: Path) -> float:
    """Return the share of labels in one CSV that equal those in another, by file name.

    Raises:
        ValueError: If the two CSVs do not list the same images.
    """
    found, wanted = read_rows(output), read_rows(expected)
    if set(found) != set(wanted):
        raise ValueError(f"{len(found)} rows instead of {len(wanted)}, or rows of other images")
    return sum(found[name]["label"] == row["label"] for name, row in wanted.items()) / len(wanted)


def loop_name(setting: Mapping[str, Any]) -> str:
    """Name a loop by its settings."""
    workers, threads = setting["workers"], setting["threads"]
    words = [f"loop: {setting['form']}"]
    if setting.get("device", "cpu") == "cuda":
        words.append(f"CUDA {setting.get('precision', 'fp32')}")
    words.append(f"{workers} worker{'s' * (workers != 1)}")
    if setting.get("device", "cpu") == "cpu":
        words.append(f"{threads} thread{'s' * (threads != 1)}")
    words.append(f"batch {setting['batch_size']}")
    if setting.get("decoder", PILLOW) != PILLOW:
        words.append(setting["decoder"])
    return ", ".join(words)


def cpu_grid(cores: int, *, quick: bool) -> dict[str, list[Setting]]:
    """Return the settings to try on the CPU, by form: workers, threads, batch sizes, decoders."""
    workers = sorted({cores} if quick else {0, max(1, cores // 2), cores})
    threads = sorted({1, cores})
    batches = (16,) if quick else (1, 16, 64)
    grid: dict[str, list[Setting]] = {}
    for form in FORMS:
        grid[form] = [
            {"form": form, "workers": w, "threads": t, "batch_size": b}
            for w, t, b in product(workers, threads, batches)
            if b > 1 or form != "compiled"  # compiling for a batch of one takes minutes
        ]
        grid[form].append(
            {"form": form, "workers": cores, "threads": 1, "batch_size": 16}
            | {"decoder": TORCHVISION}
        )
    return grid


def cuda_grid(cores: int, precision: str) -> dict[str, list[Setting]]:
    """Return the settings to try on CUDA, by form: workers, batch sizes and decoders."""
    batches, workers = (32, 64, 128, 256), (max(1, cores // 2), cores)
    grid: dict[str, list[Setting]] = {}
    for form in FORMS:
        base: Setting = {"form": form, "threads": 1, "device": "cuda", "precision": precision}
        grid[form] = [
            base | {"workers": w, "batch_size": b} | ({"decoder": d} if d != PILLOW else {})
            for w, b, d in product(workers, batches, DECODERS)
        ]
    return grid


DATALOADERS: dict[str, Callable[[Job], Work]] = {
    f"DataLoader, {workers} worker{'s' * (workers != 1)}": partial(
        open_loop, form=EAGER, workers=workers, threads=None, batch_size=64
    )
    for workers in (0, 1, 2)
}
"""The loop that most people write, among the peers: the eager model, with torch's own threads."""


def fastest(rows: Iterable[Mapping[str, Any]], count: int = NUM_FINAL) -> list[Mapping[str, Any]]:
    """Return the fastest settings, and the fastest eager one if it is not among them."""
    good = [row for row in rows if not row["failure"]]
    good.sort(key=lambda row: -row["images_per_s"])
    eager = [row for row in good if row["setting"]["form"] == EAGER][:1]
    return good[:count] + [row for row in eager if row not in good[:count]]
