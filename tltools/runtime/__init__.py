"""Opened exports: uint8 images in, logits out, on a device that is known."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tltools.runtime.device import (
        Device,
        DeviceChoice,
        chosen_gpus,
        default_threads,
        open_session,
        placement,
        torch_device,
    )
    from tltools.runtime.exports import load_predictor, read_card
    from tltools.runtime.pipeline import Outputs, Plan, open_model, run_images
    from tltools.runtime.predictor import ExportPredictor, Predictor

__all__ = [
    "Device",
    "DeviceChoice",
    "ExportPredictor",
    "Outputs",
    "Plan",
    "Predictor",
    "chosen_gpus",
    "default_threads",
    "load_predictor",
    "open_model",
    "open_session",
    "placement",
    "read_card",
    "run_images",
    "torch_device",
]

_MODULES = {
    "Device": "device",
    "DeviceChoice": "device",
    "ExportPredictor": "predictor",
    "Outputs": "pipeline",
    "Plan": "pipeline",
    "Predictor": "predictor",
    "chosen_gpus": "device",
    "default_threads": "device",
    "load_predictor": "exports",
    "open_model": "pipeline",
    "open_session": "device",
    "placement": "device",
    "read_card": "exports",
    "run_images": "pipeline",
    "torch_device": "device",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and not before: the facts of the formats are for `--help` too."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
