"""Train with PyTorch: models, frozen features, the training loop, and run folders."""

from tltools.training.config import (
    TrainConfig,
    TrainSetup,
    default_config,
    default_configs,
    fit_batch_sizes,
)
from tltools.training.run import load_run, open_run
from tltools.training.train import (
    TrainedRun,
    find_resumable,
    resume_run,
    train_model,
    train_models,
    unfinished_runs,
)

__all__ = [
    "TrainConfig",
    "TrainSetup",
    "TrainedRun",
    "default_config",
    "default_configs",
    "find_resumable",
    "fit_batch_sizes",
    "load_run",
    "open_run",
    "resume_run",
    "train_model",
    "train_models",
    "unfinished_runs",
]
