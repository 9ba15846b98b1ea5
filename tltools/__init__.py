"""Train, export, verify, run and measure transfer-learning image classifiers.

For programs that classify images: `load_model`, whose results are `Prediction`, and whose
errors are `TltoolsError`.
"""

from typing import TYPE_CHECKING

from tltools.lazy import lazy_names

if TYPE_CHECKING:
    from tltools.api import ImagePredictor, load_model
    from tltools.classify import Prediction
    from tltools.errors import TltoolsError

__all__ = ["ImagePredictor", "Prediction", "TltoolsError", "__version__", "load_model"]

__version__ = "0.1.0"

# So that `tltools --help` loads nothing heavy.
__getattr__ = lazy_names(
    __name__,
    {
        "ImagePredictor": "tltools.api",
        "Prediction": "tltools.classify",
        "TltoolsError": "tltools.errors",
        "load_model": "tltools.api",
    },
)
