"""The systems to compare: tltools and its peers, each doing the same job in a separate process.

The job turns a folder of images into a CSV with the label and its probability for each image. A
system is a function that imports and loads what it needs and returns a function that does the job.
Each system imports its own packages, so that a missing package costs only its own row.

All systems have the same weights: those of the run that the export was made from. Their settings
are the fastest of those tried; README.md lists what was tried.
"""

import csv
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".jpg"

Row = tuple[str, str, float]
"""Name, label and the label's probability."""
Work = Callable[[Path, Path], float | None]
"""Does the job, given the folder and the CSV to write. If preparation should not count, returns the
time at its end: a reading of `time.perf_counter`, which all processes share."""


@dataclass(frozen=True)
class Job:
    """The inputs of a system."""

    export: str
    """Path of an ONNX export."""
    run: str
    """Path of the run that it was made from; empty if unknown."""
    scratch: str
    """A folder for the system's own files."""


def open_tltools(job: Job) -> Work:
    """Prepare `tltools classify` with its default settings."""
    from tltools.classify import Output, classify, list_images, open_model

    predictor, plan = open_model(Path(job.export))

    def work(folder: Path, output: Path) -> None:
        with Output(output, predictor.card.classes, overwrite=True) as rows:
            for prediction in classify(predictor, list_images([folder]), plan=plan):
                rows.write(prediction)

    return work


def open_timm(job: Job, *, device: str = "cpu", workers: int = 2) -> Work:
    """Prepare what timm's inference.py does: its dataset, its loader, its collection of results.

    On CUDA, with its prefetcher, page-locked memory and fp16. Two workers are its default.
    """
    import timm.data
    import torch

    from tltools.training import load_run

    model, card = load_run(run_of(job))
    on_cuda = device == "cuda"
    dtype = torch.float16 if on_cuda else torch.float32
    model = _on_floats(model).to(device, dtype)
    size = card.preprocessing.size

    def rows(folder: Path) -> Iterator[Row]:
        dataset = timm.data.create_dataset("", root=str(folder))
        loader = timm.data.create_loader(
            dataset,
            input_size=(3, size, size),
            batch_size=256 if on_cuda else 16,
            num_workers=workers,
            pin_memory=on_cuda,
            img_dtype=dtype,
            interpolation="bilinear",
            mean=(0, 0, 0),
            std=(1, 1, 1),
            crop_pct=1.0,
            crop_mode="squash",
            device=torch.device(device),
        )
        layout = torch.channels_last
        with torch.inference_mode():
            found = [
                model(images.contiguous(memory_format=layout)).float().softmax(dim=1)
                for images, _ in loader
            ]
        yield from top_rows(dataset.filenames(basename=True), torch.cat(found), card.classes)

    return lambda folder, output: write_rows(output, rows(folder))


def open_ultralytics(job: Job, *, device: str = "cpu", workers: int = 0) -> Work:
    """Prepare Ultralytics' predict on an ONNX model in the layout of its own exports.

    It reads images itself and ignores `workers`.
    """
    del workers
    import onnx
    import torch
    from ultralytics import YOLO

    from tltools.training import load_run

    model, card = load_run(run_of(job))
    size = card.preprocessing.size
    network = torch.nn.Sequential(_on_floats(model), torch.nn.Softmax(dim=1)).eval()
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 3, size, size),),
        input_names=["images"],
        output_names=["output0"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    path = Path(job.scratch) / "ultralytics.onnx"
    proto = program.model_proto
    names = dict(enumerate(card.classes))
    facts: dict[str, Any] = {"task": "classify", "stride": 1, "batch": 1, "channels": 3}
    facts |= {"imgsz": [size, size], "names": names, "args": {"dynamic": True}}
    onnx.helper.set_model_props(proto, {key: str(value) for key, value in facts.items()})
    onnx.save(proto, path)
    yolo = YOLO(path, task="classify")

    def rows(folder: Path) -> Iterator[Row]:
        results = yolo.predict(
            folder,
            stream=True,
            batch=64 if device == "cuda" else 1,
            imgsz=size,
            device=0 if device == "cuda" else device,
            verbose=False,
            save=False,
        )
        for result in results:
            yield Path(result.path).name, names[result.probs.top1], float(result.probs.top1conf)

    return lambda folder, output: write_rows(output, rows(folder))


def open_transformers(job: Job, *, device: str = "cpu", workers: int = 0) -> Work:
    """Prepare the image-classification pipeline of transformers around the same network.

    On CUDA in fp16, with its own workers.
    """
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, ViTImageProcessor, pipeline
    from transformers.modeling_outputs import ImageClassifierOutput

    from tltools.training import load_run

    model, card = load_run(run_of(job))
    size = card.preprocessing.size

    class Network(PreTrainedModel):
        config_class = PreTrainedConfig
        main_input_name = "pixel_values"

        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config)
            self.network = _on_floats(model)
            self.post_init()

        def _init_weights(self, module: "nn.Module") -> None:
            """Keep the weights."""

        def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
            return ImageClassifierOutput(logits=self.network(pixel_values))

    names = dict(enumerate(card.classes))
    config = PreTrainedConfig(id2label=names, label2id={name: i for i, name in names.items()})
    processor = ViTImageProcessor(
        size={"height": size, "width": size}, rescale_factor=1 / 255, do_normalize=False
    )
    on_cuda = device == "cuda"
    network = Network(config).eval()
    pipe = pipeline(
        "image-classification",
        model=network.half() if on_cuda else network,
        image_processor=processor,
        device=0 if on_cuda else device,
    )
    how = {"batch_size": 256, "num_workers": workers} if on_cuda else {"batch_size": 8}

    def rows(folder: Path) -> Iterator[Row]:
        paths = [str(path) for path in images_in(folder)]
        for path, found in zip(paths, pipe(paths, top_k=1, **how), strict=True):
            yield Path(path).name, found[0]["label"], found[0]["score"]

    return lambda folder, output: write_rows(output, rows(folder))


def open_ray(job: Job) -> Work:
    """Prepare Ray Data as in its guide to batch inference: read_images, then actors.

    Each job starts new actors. The clock starts when the first actor has its model, which favors
    Ray, since reading has begun by then.
    """
    import ray

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(Path(job.scratch).resolve() / "ray"),
    )
    from ray.data import ActorPoolStrategy, DataContext

    from tltools.training.run import load_card

    DataContext.get_current().enable_progress_bars = False
    size = load_card(run_of(job)).preprocessing.size

    class Actor:
        def __init__(self) -> None:
            import time

            import torch

            from tltools.training import load_run

            model, self.card = load_run(run_of(job))
            self.model = model.to(memory_format=torch.channels_last)
            self.ready = time.perf_counter()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            import torch

            with torch.inference_mode():
                probs = self.model(torch.from_numpy(batch["image"])).softmax(dim=1)
            rows = list(top_rows(batch["path"], probs, self.card.classes))
            return {
                "path": [Path(row[0]).name for row in rows],
                "label": [row[1] for row in rows],
                "prob": [row[2] for row in rows],
                "ready": [self.ready] * len(rows),
            }

    def work(folder: Path, output: Path) -> float:
        images = ray.data.read_images(
            str(folder), size=(size, size), mode="RGB", include_paths=True
        )
        results = images.map_batches(
            Actor, compute=ActorPoolStrategy(size=1), batch_size=16, num_cpus=0.5
        )
        ready: list[float] = []

        def rows() -> Iterator[Row]:
            for batch in results.iter_batches(batch_size=None):
                ready.append(min(batch["ready"]))
                yield from zip(batch["path"], batch["label"], batch["prob"], strict=True)

        write_rows(output, rows())
        return min(ready)

    return work


PEERS: dict[str, Callable[[Job], Work]] = {
    "timm": open_timm,
    "Ultralytics": open_ultralytics,
    "transformers": open_transformers,
    "Ray Data": open_ray,
}
CUDA_PEERS = ("timm", "transformers", "Ultralytics")
"""Peers that accept `device` and `workers`."""
PACKAGES = ("timm", "ultralytics", "transformers", "ray", "opencv-python", "simplejpeg")
"""Packages whose versions are recorded, besides those that tltools itself records."""


def images_in(folder: Path) -> list[Path]:
    """Return the JPEGs of a folder, in order."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def run_of(job: Job) -> Path:
    """Return the run that the export was made from.

    Raises:
        FileNotFoundError: If the run is unknown.
    """
    if not job.run:
        raise FileNotFoundError("needs the run that the export was made from: --cnn-run")
    return Path(job.run)


def _on_floats(model: Any) -> "nn.Module":
    """Return the same network for the peers' inputs: floats in [0, 1], (N, 3, H, W)."""
    import torch
    from torch import nn

    class OnFloats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, pixels: Any) -> Any:
            pixels = pixels * (self.inner.scale * 255) + self.inner.shift
            return self.inner.head(self.inner.backbone(pixels))

    return OnFloats().eval().to(memory_format=torch.channels_last)


def top_rows(names: Iterable[str], probs: Any, classes: tuple[str, ...]) -> Iterator[Row]:
    """Yield a row for each image from a tensor of probabilities, (N, C)."""
    best, indices = probs.max(dim=1)
    for name, prob, index in zip(names, best.tolist(), indices.tolist(), strict=True):
        yield name, classes[index], prob


def write_rows(output: Path, rows: Iterable[Row]) -> None:
    """Write a CSV of labels and their probabilities."""
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "confidence"))
        writer.writerows(rows)


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Return each image's row of a CSV of predictions, by file name."""
    with path.open(encoding="utf-8", newline="") as file:
        return {Path(row["path"]).name: row for row in csv.DictReader(file)}
