"""Train, export, verify, run and measure transfer-learning image classifiers."""

__version__ = "0.1.0"
