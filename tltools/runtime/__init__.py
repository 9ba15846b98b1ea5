"""Opened exports: uint8 images in, logits out, on a device that is known."""

from typing import TYPE_CHECKING

from tltools.lazy import lazy_names

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

# The facts of the formats are for `--help` too.
__getattr__ = lazy_names(
    __name__,
    {
        "Device": "tltools.runtime.device",
        "DeviceChoice": "tltools.runtime.device",
        "ExportPredictor": "tltools.runtime.predictor",
        "Outputs": "tltools.runtime.pipeline",
        "Plan": "tltools.runtime.pipeline",
        "Predictor": "tltools.runtime.predictor",
        "chosen_gpus": "tltools.runtime.device",
        "default_threads": "tltools.runtime.device",
        "load_predictor": "tltools.runtime.exports",
        "open_model": "tltools.runtime.pipeline",
        "open_session": "tltools.runtime.device",
        "placement": "tltools.runtime.device",
        "read_card": "tltools.runtime.exports",
        "run_images": "tltools.runtime.pipeline",
        "torch_device": "tltools.runtime.device",
    },
)
