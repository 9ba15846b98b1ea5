"""Compare a head on frozen layers with fine-tuning, by cross-validation on the training images.

    python benchmarks/fine_tuning.py DATA --weights vgg16.safetensors --folds 5

Each line of the table is one set of hyper-parameters: the defaults, with the changes given by
`--try`. On the CPU the first fold also runs the frozen layers, which the others share.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asking import say
from pages import rate_text

from tltools.data.dataset import load_dataset
from tltools.training import TrainSetup, default_config
from tltools.training.folds import cross_validate

TRIES = ("fine_tune=none", "fine_tune=none augment=flip", "fine_tune=last-block")


def settings_of(words: str) -> dict[str, Any]:
    """Parse `name=value name=value`; a value is JSON or, failing that, text."""
    found: dict[str, Any] = {}
    for word in words.split():
        name, _, text = word.partition("=")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found


def measure(
    data: Path, model: str, words: str, setup: TrainSetup, num_folds: int
) -> dict[str, Any]:
    """Cross-validate one set of hyper-parameters."""
    dataset = load_dataset(data)
    train = dataset.frame.query("split == 'train'").reset_index(drop=True)
    begun = time.monotonic()
    found = cross_validate(
        # The validation split takes no part in choosing hyper-parameters.
        replace(dataset, frame=train),
        default_config(model, **settings_of(words)),
        setup,
        num_folds,
    )
    mean, deviation = found.mean_and_deviation()
    return {
        "settings": words,
        "accuracies": found.accuracies(),
        "mean": mean,
        "deviation": deviation,
        "seconds": time.monotonic() - begun,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("data", type=Path, help="labeled images, as for tltools train")
    add("--model", default="vgg16", help="a pre-trained network")
    add("--weights", required=True, help="its weights: a file, or imagenet")
    add("--folds", type=int, default=5)
    add("--device", default="auto")
    add("--cache-dir", type=Path, help="keep the outputs of frozen layers there")
    add("--try", dest="tries", action="append", help="hyper-parameters, as name=value name=value")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        setup = TrainSetup(
            weights=args.weights,
            device=args.device,
            cache_dir=args.cache_dir or Path(temporary),
        )
        print("| settings | mean | deviation | folds | s |\n| --- | --: | --: | --- | --: |")
        for words in args.tries or TRIES:
            say(words)
            row = measure(args.data, args.model, words, setup, args.folds)
            folds = ", ".join(f"{score:.3f}" for score in row["accuracies"])
            print(
                f"| {words} | {row['mean']:.4f} | {row['deviation']:.4f} | {folds} | "
                f"{rate_text(row['seconds'])} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
