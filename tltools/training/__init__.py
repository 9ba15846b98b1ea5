"""Train with PyTorch: models, frozen features, the training loop, and run folders."""

from typing import TYPE_CHECKING

from tltools.lazy import lazy_names

if TYPE_CHECKING:
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
        check_resumable,
        find_resumable,
        resume_run,
        train_model,
        train_models,
    )

__all__ = [
    "TrainConfig",
    "TrainSetup",
    "TrainedRun",
    "check_resumable",
    "default_config",
    "default_configs",
    "find_resumable",
    "fit_batch_sizes",
    "load_run",
    "open_run",
    "resume_run",
    "train_model",
    "train_models",
]

# Importing PyTorch takes seconds, and the settings are checked without it.
__getattr__ = lazy_names(
    __name__,
    {
        "TrainConfig": "tltools.training.config",
        "TrainSetup": "tltools.training.config",
        "TrainedRun": "tltools.training.train",
        "default_config": "tltools.training.config",
        "default_configs": "tltools.training.config",
        "check_resumable": "tltools.training.train",
        "find_resumable": "tltools.training.train",
        "fit_batch_sizes": "tltools.training.config",
        "load_run": "tltools.training.run",
        "open_run": "tltools.training.run",
        "resume_run": "tltools.training.train",
        "train_model": "tltools.training.train",
        "train_models": "tltools.training.train",
    },
)
