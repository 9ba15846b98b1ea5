"""Opened exports: uint8 pictures in, logits out, on a device that is known."""

from tltools.runtime.device import (
    Device,
    DeviceChoice,
    chosen_gpus,
    default_threads,
    open_session,
    placement,
    torch_device,
)
from tltools.runtime.pipeline import Outputs, Plan, open_model, run_pictures
from tltools.runtime.predictor import (
    ExportPredictor,
    OnnxPredictor,
    Predictor,
    TorchScriptPredictor,
    load_predictor,
    read_card,
)

__all__ = [
    "Device",
    "DeviceChoice",
    "ExportPredictor",
    "OnnxPredictor",
    "Outputs",
    "Plan",
    "Predictor",
    "TorchScriptPredictor",
    "chosen_gpus",
    "default_threads",
    "load_predictor",
    "open_model",
    "open_session",
    "placement",
    "read_card",
    "run_pictures",
    "torch_device",
]
