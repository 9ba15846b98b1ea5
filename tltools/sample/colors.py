"""The sample's palette, and how its colors vary."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

Color = tuple[int, int, int]
"""RGB, each 0 to 255."""

RED, DARK_RED = (200, 25, 28), (150, 16, 20)
BLUE, NAVY, LIGHT_BLUE = (24, 72, 180), (18, 36, 92), (90, 150, 215)
YELLOW, LIME, ORANGE = (245, 200, 25), (205, 225, 40), (240, 125, 25)
GREEN, WHITE, BLACK = (20, 120, 70), (240, 240, 238), (26, 27, 30)
SILVER, GRAY, TIRE = (178, 182, 186), (98, 102, 108), (22, 22, 24)
BROWN, BEIGE, PURPLE, TEAL = (120, 90, 60), (200, 190, 165), (95, 40, 110), (60, 140, 140)
CIVIL_COLORS = (
    *(WHITE, WHITE, SILVER, SILVER, GRAY, GRAY, BLACK, BLACK),
    *(RED, DARK_RED, BLUE, NAVY, LIGHT_BLUE, YELLOW),
    *(ORANGE, GREEN, BROWN, BEIGE, PURPLE, TEAL),
)
AMBER_LIGHT, BLUE_LIGHT, RED_LIGHT = (255, 170, 30), (40, 110, 255), (255, 40, 40)


def jittered(rng: np.random.Generator, color: Color, amount: int = 18) -> Color:
    """Return a color near `color`."""
    red, green, blue = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in color)
    return red, green, blue


def pick(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    """Return one of `colors` at random; repeated colors are more likely."""
    return colors[int(rng.integers(len(colors)))]


def mixed(first: Color, second: Color, share: float) -> Color:
    """Return the color that lies a fraction `share` of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def scaled(image: Image.Image, factors: tuple[float, float, float]) -> Image.Image:
    """Multiply the three channels by the factors."""
    table = [min(255, round(value * factor)) for factor in factors for value in range(256)]
    return image.point(table)
