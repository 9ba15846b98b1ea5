"""The drawn sample set: emergency and other vehicles, for trying everything right away."""

from tltools.sample.folder import SAMPLE_CLASSES, SAMPLE_CSV, draw_sample
from tltools.sample.image import draw_image

__all__ = ["SAMPLE_CLASSES", "SAMPLE_CSV", "draw_image", "draw_sample"]
