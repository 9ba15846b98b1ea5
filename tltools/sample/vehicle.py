"""Draw a vehicle from the side, from the front or from behind."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tltools.sample.bodies import BODIES, Body, Point, box
from tltools.sample.colors import (
    BLACK,
    BROWN,
    GRAY,
    SILVER,
    TIRE,
    WHITE,
    YELLOW,
    Color,
    jittered,
    mixed,
    pick,
)
from tltools.sample.designs import Design, design_civil, design_emergency

Lamp = tuple[float, float, float, Color]
"""A light source: x, y and radius in pixels, and its color."""


def draw_vehicle(
    rng: np.random.Generator, emergency: bool, length: int
) -> tuple[Image.Image, list[Lamp]]:
    """Draw one vehicle on a transparent background, its wheels at the lower edge.

    Returns:
        The RGBA image, and the lamps that are lit.
    """
    design = design_emergency(rng) if emergency else design_civil(rng)
    view = rng.random()
    if view < 0.84:
        mirrored = rng.random() < 0.5
        layer, lamps = draw_side(rng, design, length, mirrored=mirrored)
        if mirrored:
            layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            lamps = [(layer.width - x, y, radius, color) for x, y, radius, color in lamps]
    else:
        layer, lamps = draw_front(rng, design, length, rear=view > 0.93)
    angle = float(rng.normal(0, 1.5))
    return layer.rotate(angle, Image.Resampling.BILINEAR), lamps


class _Pen:
    """Draw in a vehicle's coordinates: y upward, in units of its length."""

    def __init__(self, image: Image.Image, unit: float, *, mirrored: bool = False) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.unit = unit
        self.mirrored = mirrored
        """Whether the image will be flipped, so that letters must be drawn mirrored."""

    def xy(self, x: float, y: float) -> Point:
        return x * self.unit, self.image.height - y * self.unit

    def polygon(self, points: Sequence[Point], fill: Color | int) -> None:
        self.draw.polygon([self.xy(x, y) for x, y in points], fill=fill)

    def box(self, left: float, bottom: float, right: float, top: float, fill: Color | int) -> None:
        self.polygon(box(left, bottom, right, top), fill)

    def disc(self, x: float, y: float, radius: float, fill: Color | int) -> None:
        (left, top), (right, bottom) = (
            self.xy(x - radius, y + radius),
            self.xy(x + radius, y - radius),
        )
        self.draw.ellipse((left, top, right, bottom), fill=fill)

    def text(self, x: float, y: float, height: float, text: str, fill: Color) -> None:
        """Write `text` centered at (x, y)."""
        font = _font(max(6, round(height * self.unit)))
        left, top, right, bottom = (round(side) for side in font.getbbox(text))
        letters = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(letters).text((-left, -top), text, fill=255, font=font)
        if self.mirrored:
            letters = letters.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        center_x, center_y = self.xy(x, y)
        place = round(center_x - letters.width / 2), round(center_y - letters.height / 2)
        self.image.paste(fill, place, letters)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_side(
    rng: np.random.Generator, design: Design, length: int, *, mirrored: bool
) -> tuple[Image.Image, list[Lamp]]:
    """Draw a vehicle of this length from the side; `mirrored` means the result will be flipped."""
    body = BODIES[design.body]
    color = jittered(rng, design.color, 10)
    size = (length, round(length * 0.68))
    layer = Image.new("RGBA", size)
    pen = _Pen(layer, length)
    _draw_on_roof(rng, pen, design, body)
    lamps = _draw_light_bar(rng, pen, body.roof, design.lights) if design.lights else []

    mask = Image.new("L", size)
    outline = _Pen(mask, length)
    outline.polygon(body.outline, 255)
    paint = Image.new("RGB", size, color)
    brush = _Pen(paint, length, mirrored=mirrored)
    if body.cargo is not None:
        outline.box(*body.cargo, 255)
        left, bottom, right, top = body.cargo
        brush.box(left, bottom, right, top, jittered(rng, design.cargo_color or color, 8))
    _paint_livery(rng, brush, design, body)
    brush.box(0, 0, 1, body.sill + 0.022, mixed(color, BLACK, 0.6))
    layer.paste(_shaded(paint), mask=mask)

    glass = mixed((52, 62, 74), pick(rng, ((52, 62, 74), (150, 175, 195))), rng.random())
    for window in body.windows:
        pen.polygon(window, glass)
        (x0, y0), (x1, y1) = window[0], window[2]
        pen.polygon(
            ((x0 + 0.01, y0 + 0.005), (x1 - 0.02, y1 - 0.01), (x1 - 0.005, y1 - 0.01)),
            mixed(glass, WHITE, 0.25),
        )
    top = body.panel[3]
    for x in body.doors:
        pen.box(x, body.sill + 0.03, x + 0.004, top, mixed(color, BLACK, 0.45))
    front = body.outline[-1][0]
    pen.polygon(box(front - 0.03, body.sill + 0.07, front, body.sill + 0.11), (250, 240, 205))
    pen.polygon(box(0, body.sill + 0.08, 0.018, body.sill + 0.13), (190, 30, 30))
    for x in body.wheels:
        pen.disc(x, body.radius + 0.012, body.radius + 0.012, mixed(color, BLACK, 0.8))
        pen.disc(x, body.radius, body.radius, TIRE)
        pen.disc(x, body.radius, body.radius * 0.58, pick(rng, (SILVER, GRAY, (140, 144, 150))))
        pen.disc(x, body.radius, body.radius * 0.2, GRAY)
    return layer, lamps


def _shaded(paint: Image.Image) -> Image.Image:
    """Darken toward the road, like light from above."""
    pixels = np.asarray(paint)
    rows = np.linspace(1.06, 0.72, paint.height)[:, None, None]
    return Image.fromarray(np.clip(pixels * rows, 0, 255).astype(np.uint8))


def _paint_livery(rng: np.random.Generator, pen: _Pen, design: Design, body: Body) -> None:
    """Paint the pattern, lockers, emblem and letters on the side."""
    _paint_pattern(rng, pen, design, body)
    if design.lockers:
        for column in range(4):
            x, bottom = 0.03 + column * 0.14, 0.22 if column == 1 else 0.17  # over the wheel
            pen.box(x, bottom, x + 0.12, 0.37, SILVER)
            for y in (0.25, 0.28, 0.31, 0.34):
                pen.box(x, y, x + 0.12, y + 0.003, GRAY)
    left, bottom, right, top = body.panel
    tall = top - bottom
    large = design.body in ("van", "box", "truck")
    if design.emblem:
        y = (bottom + top) / 2 + tall * 0.15
        _paint_emblem(pen, design, 0.12 if large else 0.1, y, tall * 0.2)
    if design.text:
        x = 0.33 if large or not body.doors else (body.doors[0] + body.doors[-1]) / 2
        height = min(tall * 0.42, 0.62 * (right - left) / len(design.text), 0.085)
        y = top - tall * (0.2 if large else 0.4)
        pen.text(x + (0.04 if design.emblem else 0), y, height, design.text, design.text_color)


def _paint_pattern(rng: np.random.Generator, pen: _Pen, design: Design, body: Body) -> None:
    left, bottom, right, top = body.panel
    tall = top - bottom
    first, second = design.accents
    if design.pattern == "stripe":
        y = bottom + tall * rng.uniform(0.35, 0.6)
        pen.box(left, y, right, y + min(0.05, tall * 0.3), first)
        pen.box(left, y - 0.018, right, y - 0.008, second)
    elif design.pattern == "band":
        pen.box(left, bottom, right, bottom + tall * rng.uniform(0.25, 0.45), first)
    elif design.pattern == "wedge":
        x = left + (right - left) * rng.uniform(0.3, 0.6)
        pen.polygon(((0, 0), (0, 0.6), (x - 0.12, 0.6), (x + 0.1, 0)), first)
        pen.polygon(((x + 0.1, 0), (x - 0.12, 0.6), (x - 0.08, 0.6), (x + 0.14, 0)), second)
    elif design.pattern == "doors":
        pen.box(body.doors[0], 0, body.doors[-1], top + 0.02, first)
    elif design.pattern == "checkers":
        cell = min(0.075, tall * 0.5)
        base = bottom + (tall - 2 * cell) * rng.uniform(0.2, 0.8)
        for row in range(2):
            for column in range(math.ceil((right - left) / cell)):
                x, y = left + column * cell, base + row * cell
                fill = first if (row + column) % 2 else second
                pen.box(x, y, min(x + cell, right), y + cell, fill)


def _paint_emblem(pen: _Pen, design: Design, x: float, y: float, radius: float) -> None:
    radius = min(radius, 0.06)
    color, arm = design.emblem_color, radius * 0.36
    if design.emblem == "disc":
        pen.disc(x, y, radius, color)
        pen.disc(x, y, radius * 0.5, WHITE)
        return
    pen.disc(x, y, radius * 1.15, WHITE)
    for angle in (0, 90) if design.emblem == "cross" else (0, 60, 120):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        bar = ((-radius, -arm), (radius, -arm), (radius, arm), (-radius, arm))
        pen.polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in bar], color)


def _draw_on_roof(rng: np.random.Generator, pen: _Pen, design: Design, body: Body) -> None:
    left, right, y = body.roof
    middle = (left + right) / 2
    if design.roof_item == "rack":
        pen.box(left - 0.04, y + 0.012, right + 0.06, y + 0.02, GRAY)
        pen.box(left, y + 0.02, left + 0.12, y + 0.05, BROWN)
    elif design.roof_item == "taxi":
        pen.box(middle - 0.045, y - 0.01, middle + 0.045, y + 0.035, pick(rng, (YELLOW, WHITE)))
    elif design.roof_item == "ladder":
        y = max(top for _, top in body.outline[:3]) + 0.015
        for offset in (0.0, 0.03):
            pen.box(0.02, y + offset, left - 0.01, y + offset + 0.008, SILVER)
        for x in np.arange(0.03, left - 0.01, 0.035).tolist():
            pen.box(x, y, x + 0.006, y + 0.035, SILVER)


def _draw_light_bar(
    rng: np.random.Generator, pen: _Pen, roof: tuple[float, float, float], lights: tuple[Color, ...]
) -> list[Lamp]:
    """Draw a light bar; some of its lamps are lit.

    Returns:
        The lamps that are lit.
    """
    left, right, y = roof
    middle, half = (left + right) / 2, (right - left) * rng.uniform(0.25, 0.5)
    left, width = middle - half, 2 * half / len(lights)
    height = rng.uniform(0.024, 0.04)
    pen.box(left, y - 0.01, left + 2 * half, y + 0.008, BLACK)
    lamps = []
    for index, color in enumerate(lights):
        x = left + index * width
        lit = rng.random() < 0.9
        pen.box(x, y + 0.006, x + width, y + height, color if lit else mixed(color, BLACK, 0.35))
        if lit:
            center_x, center_y = pen.xy(x + width / 2, y + height / 2)
            lamps.append((center_x, center_y, width * pen.unit * 1.6, color))
    return lamps


_FRONT_HEIGHTS = {"bus": 1.35, "truck": 1.4, "engine": 1.35, "box": 1.3, "van": 1.15}
_FRONT_HEIGHTS |= {"minibus": 1.1, "suv": 0.95, "pickup": 0.95}


def draw_front(
    rng: np.random.Generator, design: Design, length: int, *, rear: bool
) -> tuple[Image.Image, list[Lamp]]:
    """Draw a vehicle of about this length from the front or from behind; the unit is its width."""
    tall = _FRONT_HEIGHTS.get(design.body, 0.8)
    upright = tall > 1
    width = round(length * (0.52 if upright else 0.62))
    color = jittered(rng, design.color, 10)
    layer = Image.new("RGBA", (width, round(width * (tall + 0.25))))
    pen = _Pen(layer, width)
    inset, belt = (0.06, tall * 0.5) if upright else (0.17, tall * 0.56)
    roof = (inset + 0.08, 0.92 - inset, tall)
    lamps = _draw_light_bar(rng, pen, roof, design.lights) if design.lights else []
    if design.roof_item == "taxi":
        pen.box(0.38, tall - 0.02, 0.62, tall + 0.09, pick(rng, (YELLOW, WHITE)))
    for x in (0.08, 0.76):
        pen.box(x, 0, x + 0.16, 0.3, TIRE)

    paint = Image.new("RGB", layer.size, color)
    _paint_front_pattern(_Pen(paint, width), design, belt)
    mask = Image.new("L", layer.size)
    side = ((0.03, 0.12), (0.02, belt), (inset, tall - 0.03), (inset + 0.05, tall))
    _Pen(mask, width).polygon([*side, *((1 - x, y) for x, y in reversed(side))], 255)
    layer.paste(_shaded(paint), mask=mask)

    glass = (58, 68, 80)
    low, high, sill = 0.1, inset + 0.05, belt + 0.03
    top = tall - (0.1 if upright else 0.05)
    pen.polygon(((low, sill), (high, top), (1 - high, top), (1 - low, sill)), glass)
    shine = mixed(glass, WHITE, 0.25)
    pen.polygon(((0.55, sill), (0.66, top), (0.74, top), (0.63, sill)), shine)
    for x in (0.07, 0.75):
        pen.box(x, belt - 0.19, x + 0.18, belt - 0.09, (190, 25, 28) if rear else (252, 246, 215))
    if not rear:
        pen.box(0.3, belt - 0.24, 0.7, belt - 0.12, mixed(color, BLACK, 0.75))
    pen.box(0.03, 0.12, 0.97, 0.2, mixed(color, BLACK, 0.65))
    pen.box(0.38, 0.21, 0.62, 0.27, WHITE)
    if design.text:
        pen.text(0.5, belt - 0.05, min(0.1, 0.9 / len(design.text)), design.text, design.text_color)
    if design.emblem:
        _paint_emblem(pen, design, 0.5, belt - 0.3 if rear else belt - 0.02, 0.07)
    return layer, lamps


def _paint_front_pattern(pen: _Pen, design: Design, belt: float) -> None:
    first, second = design.accents
    if design.pattern in ("band", "stripe"):
        pen.box(0, belt - 0.2, 1, belt - 0.1, first)
    elif design.pattern in ("checkers", "wedge"):
        for column in range(10):
            pen.box(column / 10, 0.2, column / 10 + 0.1, 0.34, first if column % 2 else second)
    elif design.pattern == "doors":
        pen.box(0.2, belt - 0.16, 0.8, belt, first)
