"""The drawn sample set: emergency and other vehicles, so that everything can be tried at once."""

from tltools.sample.folder import SAMPLE_CLASSES, SAMPLE_CSV, draw_sample
from tltools.sample.image import draw_image

__all__ = ["SAMPLE_CLASSES", "SAMPLE_CSV", "draw_image", "draw_sample"]
