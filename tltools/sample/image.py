"""Draw one image: a vehicle in its surroundings, with the flaws of a photograph.

It is drawn at twice its size and then halved, which smooths the edges. Everything except the class
is random, so that no single color or shape gives the class away: there are red trucks, white
vans with stripes, taxis with roof signs, tow trucks with amber light bars, and police cars at night
behind a tree.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from tltools.sample.colors import scaled
from tltools.sample.scene import draw_occluder, draw_scene, draw_shadow
from tltools.sample.vehicle import Lamp, draw_vehicle


def draw_image(rng: np.random.Generator, *, emergency: bool, size: int) -> Image.Image:
    """Draw one vehicle in its surroundings.

    Returns:
        RGB image, `size` x `size`.
    """
    full = 2 * size
    light = str(rng.choice(["day", "overcast", "dusk", "night"], p=[0.5, 0.25, 0.13, 0.12]))
    horizon = float(rng.uniform(0.46, 0.54))
    image = draw_scene(rng, full, horizon, light)
    vehicle, lamps = draw_vehicle(rng, emergency, round(full * rng.uniform(0.75, 0.95)))
    center = full * rng.uniform(0.46, 0.54)
    bottom = full * (horizon + rng.uniform(0.26, 0.32))
    left, top = round(center - vehicle.width / 2), round(bottom - vehicle.height)
    draw_shadow(image, left, round(bottom), vehicle.width)
    image.paste(vehicle, (left, top), vehicle)
    if rng.random() < 0.15:
        draw_occluder(rng, ImageDraw.Draw(image), full, horizon)
    if light in ("night", "dusk"):
        dark = (0.5, 0.54, 0.7) if light == "night" else (0.85, 0.68, 0.62)
        image = scaled(image, dark)
    lamps = [(x + left, y + top, radius, color) for x, y, radius, color in lamps]
    image = _add_glow(image, lamps, 1.4 if light == "night" else 1.2)
    image = _add_weather(rng, image)
    image = image.resize((size, size), Image.Resampling.BOX)
    return _photographed(rng, image)


def _add_glow(image: Image.Image, lamps: Sequence[Lamp], strength: float) -> Image.Image:
    """Add the glow of lamps to their surroundings."""
    if not lamps:
        return image
    glow = Image.new("RGB", image.size)
    draw = ImageDraw.Draw(glow)
    for x, y, radius, color in lamps:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    glow = glow.reduce(4).filter(ImageFilter.GaussianBlur(image.width / 50))
    glow = scaled(glow.resize(image.size), (strength, strength, strength))
    return ImageChops.add(image, glow)


def _add_weather(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    kind = rng.random()
    full = image.width
    if kind < 0.08:
        draw = ImageDraw.Draw(image)
        slant = rng.uniform(-8, 8)
        for x, y in rng.uniform(0, full, (140, 2)).tolist():
            draw.line((x, y, x + slant, y + full * 0.04), fill=(190, 200, 210), width=1)
    elif kind < 0.14:
        draw = ImageDraw.Draw(image)
        for x, y in rng.uniform(0, full, (220, 2)).tolist():
            draw.ellipse((x, y, x + 4, y + 4), fill=(245, 246, 250))
    elif kind < 0.2:
        fog = Image.new("RGB", image.size, (190, 195, 200))
        image = Image.blend(image, fog, rng.uniform(0.2, 0.45))
    return image


def _photographed(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Vary sharpness, exposure and color, and add noise."""
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.9, 1.15))
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.85, 1.25))
    noise = rng.standard_normal((*image.size, 3), np.float32) * np.float32(rng.uniform(1, 5))
    pixels = np.asarray(image, np.float32) + noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
