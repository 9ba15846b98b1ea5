"""Train, export and time every listed backbone in every format and precision; print a table.

    python benchmarks/backbones.py --size 224 --threads 2 > table.md

Weights are random (nothing is downloaded), the images are drawn; so the accuracy means nothing, but
the agreement of each export with PyTorch, its size and its latency do.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from random_weights import write_random_weights

from tltools.artifacts import open_predictor
from tltools.backbones import BACKBONES
from tltools.bench.timing import measure
from tltools.card import Precision
from tltools.console import RichProgress
from tltools.data.dataset import load_dataset
from tltools.errors import TltoolsError
from tltools.export import ExportSettings, export_run
from tltools.sample import SAMPLE_CLASSES, draw_sample
from tltools.training import TrainSetup, default_config, train_model

FILES: tuple[tuple[str, Precision], ...] = (
    ("torchscript", "fp32"),
    ("pt2", "fp32"),
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "int8"),
)
"""Formats and precisions of which a CPU can verify a file."""
COLUMNS = ("model", "file", "labels", "logits", "layers in float", "MB", "ms per image")


def rows_of(name: str, options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, ...]]:
    """Train one epoch of a network with random weights, and yield a row for each file."""
    data = draw_sample(folder / "sample", num_images=options.images)
    dataset = load_dataset(data, class_names=SAMPLE_CLASSES, val_fraction=0.4)
    weights, changes = "imagenet", {}
    if BACKBONES[name].pretrained:
        changes["feature_precision"] = options.features
        path = folder / f"{name}.safetensors"
        small = "pooled" in BACKBONES[name].heads
        weights = str(write_random_weights(name, path, size=options.size, features_only=small))
    setup = TrainSetup(
        weights=weights, device="cpu", run_dir=folder / "runs", cache_dir=folder / "cache"
    )
    config = default_config(name, epochs=options.epochs, image_size=options.size, **changes)
    progress = RichProgress(verbose=True)
    run = train_model(dataset, config, setup, progress=progress).folder
    yield (name, "PyTorch fp32", "", "", "", "", f"{latency_ms(run, options):.3g}")
    for format_, precision in FILES:
        settings = ExportSettings(
            formats=(format_,), precisions=(precision,), output=folder / "exports", device="cpu"
        )
        try:
            (made,) = export_run(run, settings, progress=progress)
        except TltoolsError as error:
            yield (name, f"{format_} {precision}", f"not written: {error}", "", "", "", "")
            continue
        yield (
            name,
            f"{format_} {precision}",
            f"{made.parity.top1_agreement:.1%}",
            f"{made.parity.max_abs_logit_diff:.1e}",
            str(len(made.facts.float_layers)),
            f"{made.size_bytes / 1e6:.1f}",
            f"{latency_ms(made.path, options):.3g}",
        )


def latency_ms(path: Path, options: argparse.Namespace) -> float:
    """Return the median time of one image, in milliseconds."""
    predictor = open_predictor(path, "cpu", options.threads)
    image = np.random.default_rng(0).integers(0, 256, (1, options.size, options.size, 3), np.uint8)
    timing = measure(lambda: predictor(image), warmup=5, runs=30, max_seconds=options.seconds)
    return 1000 * median(timing.samples_s)


def main() -> None:
    """Print the table as Markdown, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=list(BACKBONES), help="default: all listed")
    parser.add_argument("--size", type=int, default=224, help="input size in pixels")
    parser.add_argument("--images", type=int, default=100, help="images to draw")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of training")
    parser.add_argument("--features", default="fp32", help="precision of the training features")
    parser.add_argument("--threads", type=int, default=2, help="threads of each model")
    parser.add_argument("--seconds", type=float, default=3, help="limit for timing a file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{' --- |' * len(COLUMNS)}")
    for name in options.models:
        with tempfile.TemporaryDirectory(prefix="tltools-backbones-") as folder:
            for row in rows_of(name, options, Path(folder)):
                print(f"| {' | '.join(row)} |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
