"""Draw a vehicle's surroundings: sky, buildings, trees, road, and objects in front of it."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tltools.sample.colors import (
    AMBER_LIGHT,
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    NAVY,
    ORANGE,
    RED,
    RED_LIGHT,
    WHITE,
    YELLOW,
    jittered,
    mixed,
    pick,
)


def draw_scene(rng: np.random.Generator, full: int, horizon: float, light: str) -> Image.Image:
    """Draw sky, buildings, trees and road."""
    above, below = {
        "day": ((95, 155, 225), (205, 225, 240)),
        "overcast": ((165, 170, 178), (205, 208, 210)),
        "dusk": ((90, 85, 150), (250, 170, 110)),
        "night": ((30, 32, 60), (70, 70, 100)),
    }[light]
    above, below = jittered(rng, above, 25), jittered(rng, below, 25)
    steps = np.linspace(0, 1, full)[:, None]
    column = np.array(above) + (np.array(below) - above) * np.clip(steps / horizon, 0, 1)
    sky = np.repeat(column.astype(np.uint8)[:, None], full, axis=1)
    image = Image.fromarray(sky)
    draw = ImageDraw.Draw(image)
    edge = horizon * full
    place = rng.random()
    if place < 0.55:
        _draw_buildings(rng, draw, full, edge, lit=light in ("night", "dusk"))
    elif place < 0.8:
        _draw_hills(rng, draw, full, edge)
    for _ in range(int(rng.integers(0, 5))):
        _draw_tree(rng, draw, rng.uniform(0, full), edge, full * rng.uniform(0.15, 0.35))
    _draw_road(rng, draw, full, edge)
    for _ in range(int(rng.integers(0, 2))):
        _draw_sign(rng, draw, full, edge)
    return image


def _draw_buildings(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, full: int, edge: float, *, lit: bool
) -> None:
    x = -full * rng.uniform(0, 0.2)
    walls = [(150, 120, 100), (120, 120, 125), (190, 180, 160), (130, 80, 70), (95, 105, 120)]
    while x < full:
        width, height = full * rng.uniform(0.14, 0.4), full * rng.uniform(0.15, 0.5)
        wall = jittered(rng, pick(rng, walls))
        draw.rectangle((x, edge - height, x + width, edge), fill=wall)
        step = full * rng.uniform(0.04, 0.07)
        for row in np.arange(edge - height + step / 2, edge - step, step):
            for column in np.arange(x + step / 2, x + width - step * 0.7, step):
                glass = (250, 220, 130) if lit and rng.random() < 0.4 else mixed(wall, NAVY, 0.5)
                draw.rectangle((column, row, column + step * 0.5, row + step * 0.6), fill=glass)
        if rng.random() < 0.4:  # a shop with a bright front
            shop = pick(rng, (RED, BLUE, YELLOW, GREEN, WHITE, ORANGE))
            draw.rectangle((x, edge - full * 0.13, x + width, edge - full * 0.09), fill=shop)
        x += width


def _draw_hills(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, full: int, edge: float
) -> None:
    x = np.linspace(0, full, 40)
    for depth in (0.18, 0.1):
        height = (
            full * depth * (0.6 + 0.4 * np.sin(x / full * rng.uniform(3, 9) + rng.uniform(0, 6)))
        )
        ridge = [(a, b) for a, b in zip(x.tolist(), (edge - height).tolist(), strict=True)]
        color = jittered(rng, (85, 120, 80))
        draw.polygon([*ridge, (full, edge), (0, edge)], fill=color)


def _draw_tree(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, x: float, foot: float, height: float
) -> None:
    trunk = height * 0.05
    draw.rectangle((x - trunk, foot - height * 0.5, x + trunk, foot), fill=(84, 62, 44))
    for _ in range(6):
        radius = height * rng.uniform(0.14, 0.24)
        dx, dy = rng.uniform(-0.2, 0.2) * height, rng.uniform(0.5, 0.9) * height
        leaf = jittered(rng, (52, 98, 48), 24)
        box = (x + dx - radius, foot - dy - radius, x + dx + radius, foot - dy + radius)
        draw.ellipse(box, fill=leaf)


def _draw_road(rng: np.random.Generator, draw: ImageDraw.ImageDraw, full: int, edge: float) -> None:
    verge = pick(rng, ((150, 150, 145), (100, 125, 75), (170, 160, 140)))
    draw.rectangle((0, edge, full, full), fill=jittered(rng, verge))
    curb = edge + full * rng.uniform(0.03, 0.1)
    asphalt = mixed(jittered(rng, (82, 84, 88), 8), BLACK, rng.uniform(-0.3, 0.5))
    draw.rectangle((0, curb, full, full), fill=asphalt)
    draw.rectangle((0, curb, full, curb + full * 0.008), fill=mixed(asphalt, WHITE, 0.6))
    if rng.random() < 0.7:
        paint = mixed(asphalt, pick(rng, (WHITE, WHITE, YELLOW)), 0.8)
        y, dash = full * rng.uniform(0.86, 0.96), full * rng.uniform(0.1, 0.3)
        for x in np.arange(-dash * rng.random(), full, dash * 1.8):
            draw.rectangle((x, y, x + dash, y + full * 0.014), fill=paint)


def _draw_sign(rng: np.random.Generator, draw: ImageDraw.ImageDraw, full: int, edge: float) -> None:
    """Draw a street lamp, a traffic light or a bright board behind the vehicle."""
    x, height = full * rng.uniform(0.03, 0.97), full * rng.uniform(0.2, 0.45)
    top, thick = edge - height, full * 0.006
    draw.rectangle((x - thick, top, x + thick, edge + full * 0.05), fill=(70, 72, 75))
    kind, unit = rng.random(), full * 0.02
    if kind < 0.35:
        draw.ellipse((x - unit, top - unit, x + unit, top + unit), fill=(255, 240, 190))
    elif kind < 0.65:
        draw.rectangle((x - unit, top, x + unit, top + 5 * unit), fill=BLACK)
        lamp = pick(rng, (RED_LIGHT, AMBER_LIGHT, (60, 220, 90)))
        draw.ellipse((x - unit * 0.8, top + unit, x + unit * 0.8, top + 2.6 * unit), fill=lamp)
    else:
        board = pick(rng, (RED, BLUE, YELLOW, GREEN, WHITE))
        draw.rectangle((x - 3 * unit, top, x + 3 * unit, top + 3.5 * unit), fill=board)
        draw.rectangle((x - 2 * unit, top + unit, x + 2 * unit, top + 1.6 * unit), fill=GRAY)


def draw_occluder(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, full: int, horizon: float
) -> None:
    """Draw something thin in front of the vehicle."""
    x, foot = full * rng.uniform(0.1, 0.9), full * rng.uniform(0.93, 1.05)
    if rng.random() < 0.6:
        thick = full * rng.uniform(0.008, 0.02)
        draw.rectangle((x - thick, full * (horizon - 0.4), x + thick, foot), fill=(60, 62, 66))
    else:
        _draw_tree(rng, draw, x, foot, full * rng.uniform(0.8, 1.0))


def draw_shadow(image: Image.Image, left: int, bottom: int, width: int) -> None:
    """Draw the shadow of a vehicle whose wheels touch the road at `bottom`, in pixels."""
    height = max(4, width // 22)
    shadow = Image.new("L", (width, 2 * height), 0)
    ImageDraw.Draw(shadow).ellipse((0, 0, width - 1, 2 * height - 1), fill=150)
    shadow = shadow.filter(ImageFilter.BoxBlur(height / 3))
    image.paste((20, 20, 24), (left, bottom - round(1.2 * height)), shadow)
