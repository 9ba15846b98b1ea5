"""Train, export, verify, run and measure transfer-learning image classifiers.

For programs that classify images: `load_model`, whose results are `Prediction`, and whose
errors are `TltoolsError`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tltools.api import ImagePredictor, load_model
    from tltools.classify import Prediction
    from tltools.errors import TltoolsError

__all__ = ["ImagePredictor", "Prediction", "TltoolsError", "__version__", "load_model"]

__version__ = "0.1.0"

_MODULES = {
    "ImagePredictor": "tltools.api",
    "Prediction": "tltools.classify",
    "TltoolsError": "tltools.errors",
    "load_model": "tltools.api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and not before, so that `tltools --help` loads nothing heavy."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
