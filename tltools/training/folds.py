"""Cross-validation: train on all folds but one, and score the one left out.

One validation set of a few hundred images says little; the scores of K folds say how much they
vary. Each labeled image is predicted once by a model that has not seen it, so labels that most
likely are wrong can be found.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tltools.data.dataset import Dataset
from tltools.errors import DataError
from tltools.metrics import softmax
from tltools.progress import SILENT, Progress
from tltools.run_folder import FoldPredictions
from tltools.training.config import TrainConfig, TrainSetup
from tltools.training.fit import predict_source
from tltools.training.prepare import prepare
from tltools.wording import counted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A fold: the data set with other splits, and the rows that were left out."""

    dataset: Dataset
    rows: NDArray[np.int64]


def cross_validate(
    dataset: Dataset,
    config: TrainConfig,
    setup: TrainSetup,
    num_folds: int,
    *,
    progress: Progress = SILENT,
) -> FoldPredictions:
    """Train and score a model on each of K folds of the training and validation images.

    Near-duplicates are in the same fold. The last epoch is scored: choosing the best one by
    the fold itself would flatter it.

    Args:
        dataset: Labeled images; test images take no part.
        config: Settings of the model.
        setup: Weights, device and cache folder.
        num_folds: K, at least 2.
        progress: Shows the folds.

    Returns:
        The fold of each image and its probabilities, temperature 1.

    Raises:
        DataError: If a class has fewer different images than folds.
    """
    frame = dataset.frame.query("split != 'test'").reset_index(drop=True)
    config = replace(config, keep="last", patience=0)
    probs = np.zeros((len(frame), len(dataset.classes)))
    folds = np.zeros(len(frame), dtype=np.int64)
    for number, held in enumerate(_folds(dataset, frame, num_folds, config.seed), start=1):
        progress.say(f"{config.model}: fold {number} of {num_folds}")
        job = prepare(held.dataset, config, setup, calibrate_on=frame, progress=progress)
        trainer = job.new_trainer()
        epochs = range(1, config.epochs + 1)
        title = f"Training fold {number}"
        with progress.bar(title, len(trainer.train), epochs=epochs) as bar:
            while not trainer.finished:
                for done, loss in trainer.run_epoch():
                    bar.advance(done, note=f"loss {loss:.4f}")
        logits, _ = predict_source(job.trained, job.sources["val"])
        probs[held.rows] = softmax(logits.numpy())
        folds[held.rows] = number
    targets = np.array([dataset.classes.index(name) for name in frame["class"]])
    return FoldPredictions(
        paths=tuple(frame["path"]),
        targets=targets,
        folds=folds,
        probs=probs,
    )


def _folds(dataset: Dataset, frame: "pd.DataFrame", num_folds: int, seed: int) -> Iterator[_Held]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups = frame["group" if "group" in frame else "sha256"]
    different = {name: len(set(some)) for name, some in groups.groupby(frame["class"])}
    name, fewest = min(different.items(), key=lambda item: item[1])
    if fewest < num_folds:
        remedy = f"use `folds={fewest}` or fewer" if fewest > 1 else "add images"
        raise DataError(
            f"class {name} has {counted(fewest, 'different image')}, too few for {num_folds} "
            f"folds; {remedy}"
        )
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    for _, rows in splitter.split(frame, frame["class"], groups):
        split = np.full(len(frame), "train", dtype=object)
        split[rows] = "val"
        yield _Held(dataset=replace(dataset, frame=frame.assign(split=split)), rows=rows)
