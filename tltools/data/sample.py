"""Draw the sample set: emergency and other vehicles, so that everything can be tried at once.

A picture is drawn at twice its size and then halved, which smooths the edges. Vehicles are drawn
in their own coordinates: x from the rear (0) to the front (1), y up from the road in the same
unit. Chance decides everything else, so that no single colour or shape gives the class away: there
are red lorries, white vans with stripes, taxis with roof signs, breakdown trucks with amber light
bars, and police cars at night behind a tree.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from tltools.atomic import atomic_folder
from tltools.errors import ConfigError, DataError
from tltools.parallel import num_cores, ordered_map
from tltools.progress import SILENT, Progress

SAMPLE_CLASSES = ("non-emergency", "emergency")
"""Class names of the labels 0 and 1."""

SAMPLE_CSV = "sample.csv"
"""Name of the table in the sample's folder; the pictures are in `images/` beside it."""

EMERGENCY_SHARE = 0.45
JPEG_QUALITY = 90

Color = tuple[int, int, int]
Point = tuple[float, float]

_RED, _DARK_RED = (200, 25, 28), (150, 16, 20)
_BLUE, _NAVY, _LIGHT_BLUE = (24, 72, 180), (18, 36, 92), (90, 150, 215)
_YELLOW, _LIME, _ORANGE = (245, 200, 25), (205, 225, 40), (240, 125, 25)
_GREEN, _WHITE, _BLACK = (20, 120, 70), (240, 240, 238), (26, 27, 30)
_SILVER, _GREY, _TYRE = (178, 182, 186), (98, 102, 108), (22, 22, 24)
_BROWN, _BEIGE, _PURPLE, _TEAL = (120, 90, 60), (200, 190, 165), (95, 40, 110), (60, 140, 140)
_CIVIL_COLORS = (
    *(_WHITE, _WHITE, _SILVER, _SILVER, _GREY, _GREY, _BLACK, _BLACK),
    *(_RED, _DARK_RED, _BLUE, _NAVY, _LIGHT_BLUE, _YELLOW),
    *(_ORANGE, _GREEN, _BROWN, _BEIGE, _PURPLE, _TEAL),
)
_AMBER_LIGHT, _BLUE_LIGHT, _RED_LIGHT = (255, 170, 30), (40, 110, 255), (255, 40, 40)


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a sample this sample; kept in its folder as `sample.json`."""

    num_images: int
    seed: int
    size: int
    version: int = 1
    """Of the drawing; counts up when other pictures come out."""


def draw_sample(
    folder: Path,
    *,
    num_images: int = 300,
    seed: int = 13,
    size: int = 224,
    progress: Progress = SILENT,
) -> Path:
    """Draw the sample set into `folder`, in the layout of the article's data.

    `sample.csv` has the columns `image_names` and `emergency_or_not` (1 or 0), `images/` the
    pictures. The same arguments give the same pictures. A folder that holds this sample already is
    left as it is.

    Args:
        folder: Where to draw; must not exist, be empty, or hold this very sample.
        num_images: Pictures, of which `EMERGENCY_SHARE` show an emergency vehicle.
        seed: Of all chance.
        size: Height and width of a picture in pixels.
        progress: Told about each picture.

    Returns:
        `folder`.

    Raises:
        ConfigError: If there would be fewer than two pictures per class, the pictures would be too
            small to show anything, or the seed is negative.
        DataError: If `folder` has other content or cannot be written.
    """
    if num_images < 4:
        raise ConfigError(f"the sample needs at least 4 pictures, got {num_images}")
    if size < 32:
        raise ConfigError(f"the sample's pictures need at least 32 pixels a side, got {size}")
    if seed < 0:
        raise ConfigError(f"the seed must not be negative, got {seed}")
    folder = Path(folder)
    facts = _Facts(num_images=num_images, seed=seed, size=size)
    try:
        if _holds(folder, facts):
            return folder
        with atomic_folder(folder) as temporary:
            _write_sample(temporary, facts, progress)
    except OSError as error:
        raise DataError(
            f"cannot write the sample to {folder}: {error.strerror or error}"
        ) from error
    return folder


def _holds(folder: Path, facts: _Facts) -> bool:
    """Tell whether `folder` holds this sample; False if it is free to be drawn into."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = msgspec.json.decode((folder / "sample.json").read_bytes(), type=_Facts)
    except (OSError, msgspec.MsgspecError):
        found = None
    num_found = len(list((folder / "images").glob("*.jpg")))
    if found == facts and num_found == facts.num_images and (folder / SAMPLE_CSV).is_file():
        return True
    raise DataError(
        f"{folder} exists and is not this sample ({facts.num_images} pictures, seed {facts.seed}): "
        "name another folder, or delete it first"
    )


def _write_sample(folder: Path, facts: _Facts, progress: Progress) -> None:
    """Draw all pictures into an empty folder, and write the table and the facts."""
    num_emergency = min(max(round(facts.num_images * EMERGENCY_SHARE), 2), facts.num_images - 2)
    labels = np.arange(facts.num_images) < num_emergency
    labels = np.random.default_rng(facts.seed).permutation(labels).astype(int).tolist()
    digits = max(4, len(str(facts.num_images - 1)))
    names = [f"{index:0{digits}d}.jpg" for index in range(facts.num_images)]
    (folder / "images").mkdir()

    def draw(index: int) -> None:
        rng = np.random.default_rng((facts.seed, index))
        picture = draw_picture(rng, emergency=bool(labels[index]), size=facts.size)
        picture.save(folder / "images" / names[index], quality=JPEG_QUALITY)

    with progress.bar("drawing the sample", facts.num_images) as bar:
        workers = num_cores()
        for _ in ordered_map(draw, range(facts.num_images), workers=workers, ahead=4 * workers):
            bar.advance()
    with (folder / SAMPLE_CSV).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_names", "emergency_or_not"])
        writer.writerows(zip(names, labels, strict=True))
    (folder / "sample.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2))


def draw_picture(rng: np.random.Generator, *, emergency: bool, size: int) -> Image.Image:
    """Draw one vehicle in its surroundings.

    Returns:
        RGB picture, `size` x `size`.
    """
    full = 2 * size
    light = str(rng.choice(["day", "overcast", "dusk", "night"], p=[0.5, 0.25, 0.13, 0.12]))
    horizon = float(rng.uniform(0.46, 0.54))
    picture = _draw_scene(rng, full, horizon, light)
    vehicle, lamps = _draw_vehicle(rng, emergency, round(full * rng.uniform(0.75, 0.95)))
    center = full * rng.uniform(0.46, 0.54)
    bottom = full * (horizon + rng.uniform(0.26, 0.32))
    left, top = round(center - vehicle.width / 2), round(bottom - vehicle.height)
    _draw_shadow(picture, left, round(bottom), vehicle.width)
    picture.paste(vehicle, (left, top), vehicle)
    if rng.random() < 0.15:
        _draw_occluder(rng, ImageDraw.Draw(picture), full, horizon)
    if light in ("night", "dusk"):
        dark = (0.5, 0.54, 0.7) if light == "night" else (0.85, 0.68, 0.62)
        picture = _scaled(picture, dark)
    lamps = [(x + left, y + top, radius, color) for x, y, radius, color in lamps]
    picture = _add_glow(picture, lamps, 1.4 if light == "night" else 1.2)
    picture = _add_weather(rng, picture)
    picture = picture.resize((size, size), Image.Resampling.BOX)
    return _photographed(rng, picture)


# The surroundings


def _jittered(rng: np.random.Generator, color: Color, amount: int = 18) -> Color:
    """Return a colour near `color`."""
    red, green, blue = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in color)
    return red, green, blue


def _pick(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    return colors[int(rng.integers(len(colors)))]


def _mixed(first: Color, second: Color, share: float) -> Color:
    """Return the colour at `share` of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _scaled(picture: Image.Image, factors: tuple[float, float, float]) -> Image.Image:
    """Multiply the three channels."""
    table = [min(255, round(value * factor)) for factor in factors for value in range(256)]
    return picture.point(table)


def _draw_scene(rng: np.random.Generator, full: int, horizon: float, light: str) -> Image.Image:
    """Draw sky, buildings, trees and road."""
    above, below = {
        "day": ((95, 155, 225), (205, 225, 240)),
        "overcast": ((165, 170, 178), (205, 208, 210)),
        "dusk": ((90, 85, 150), (250, 170, 110)),
        "night": ((30, 32, 60), (70, 70, 100)),
    }[light]
    above, below = _jittered(rng, above, 25), _jittered(rng, below, 25)
    steps = np.linspace(0, 1, full)[:, None]
    column = np.array(above) + (np.array(below) - above) * np.clip(steps / horizon, 0, 1)
    sky = np.repeat(column.astype(np.uint8)[:, None], full, axis=1)
    picture = Image.fromarray(sky)
    draw = ImageDraw.Draw(picture)
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
    return picture


def _draw_buildings(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, full: int, edge: float, *, lit: bool
) -> None:
    x = -full * rng.uniform(0, 0.2)
    walls = [(150, 120, 100), (120, 120, 125), (190, 180, 160), (130, 80, 70), (95, 105, 120)]
    while x < full:
        width, height = full * rng.uniform(0.14, 0.4), full * rng.uniform(0.15, 0.5)
        wall = _jittered(rng, _pick(rng, walls))
        draw.rectangle((x, edge - height, x + width, edge), fill=wall)
        step = full * rng.uniform(0.04, 0.07)
        for row in np.arange(edge - height + step / 2, edge - step, step):
            for column in np.arange(x + step / 2, x + width - step * 0.7, step):
                glass = (250, 220, 130) if lit and rng.random() < 0.4 else _mixed(wall, _NAVY, 0.5)
                draw.rectangle((column, row, column + step * 0.5, row + step * 0.6), fill=glass)
        if rng.random() < 0.4:  # a shop with a bright front
            shop = _pick(rng, (_RED, _BLUE, _YELLOW, _GREEN, _WHITE, _ORANGE))
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
        color = _jittered(rng, (85, 120, 80))
        draw.polygon([*ridge, (full, edge), (0, edge)], fill=color)


def _draw_tree(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, x: float, foot: float, height: float
) -> None:
    trunk = height * 0.05
    draw.rectangle((x - trunk, foot - height * 0.5, x + trunk, foot), fill=(84, 62, 44))
    for _ in range(6):
        radius = height * rng.uniform(0.14, 0.24)
        dx, dy = rng.uniform(-0.2, 0.2) * height, rng.uniform(0.5, 0.9) * height
        leaf = _jittered(rng, (52, 98, 48), 24)
        box = (x + dx - radius, foot - dy - radius, x + dx + radius, foot - dy + radius)
        draw.ellipse(box, fill=leaf)


def _draw_road(rng: np.random.Generator, draw: ImageDraw.ImageDraw, full: int, edge: float) -> None:
    verge = _pick(rng, ((150, 150, 145), (100, 125, 75), (170, 160, 140)))
    draw.rectangle((0, edge, full, full), fill=_jittered(rng, verge))
    kerb = edge + full * rng.uniform(0.03, 0.1)
    asphalt = _mixed(_jittered(rng, (82, 84, 88), 8), _BLACK, rng.uniform(-0.3, 0.5))
    draw.rectangle((0, kerb, full, full), fill=asphalt)
    draw.rectangle((0, kerb, full, kerb + full * 0.008), fill=_mixed(asphalt, _WHITE, 0.6))
    if rng.random() < 0.7:
        paint = _mixed(asphalt, _pick(rng, (_WHITE, _WHITE, _YELLOW)), 0.8)
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
        draw.rectangle((x - unit, top, x + unit, top + 5 * unit), fill=_BLACK)
        lamp = _pick(rng, (_RED_LIGHT, _AMBER_LIGHT, (60, 220, 90)))
        draw.ellipse((x - unit * 0.8, top + unit, x + unit * 0.8, top + 2.6 * unit), fill=lamp)
    else:
        board = _pick(rng, (_RED, _BLUE, _YELLOW, _GREEN, _WHITE))
        draw.rectangle((x - 3 * unit, top, x + 3 * unit, top + 3.5 * unit), fill=board)
        draw.rectangle((x - 2 * unit, top + unit, x + 2 * unit, top + 1.6 * unit), fill=_GREY)


def _draw_occluder(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, full: int, horizon: float
) -> None:
    """Draw something thin in front of the vehicle."""
    x, foot = full * rng.uniform(0.1, 0.9), full * rng.uniform(0.93, 1.05)
    if rng.random() < 0.6:
        thick = full * rng.uniform(0.008, 0.02)
        draw.rectangle((x - thick, full * (horizon - 0.4), x + thick, foot), fill=(60, 62, 66))
    else:
        _draw_tree(rng, draw, x, foot, full * rng.uniform(0.8, 1.0))


def _draw_shadow(picture: Image.Image, left: int, bottom: int, width: int) -> None:
    height = max(4, width // 22)
    shadow = Image.new("L", (width, 2 * height), 0)
    ImageDraw.Draw(shadow).ellipse((0, 0, width - 1, 2 * height - 1), fill=150)
    shadow = shadow.filter(ImageFilter.BoxBlur(height / 3))
    picture.paste((20, 20, 24), (left, bottom - round(1.2 * height)), shadow)


# Vehicles


@dataclass(frozen=True)
class _Body:
    """The shape of a vehicle seen from the side, facing right."""

    outline: tuple[Point, ...]
    windows: tuple[tuple[Point, ...], ...]
    wheels: tuple[float, ...]
    """x of the axles."""
    radius: float
    roof: tuple[float, float, float]
    """Where a light bar can stand: from x, to x, at y."""
    panel: tuple[float, float, float, float]
    """The flank that liveries and letters are painted on: left, bottom, right, top."""
    sill: float
    """y of the lower edge."""
    doors: tuple[float, ...] = ()
    """x of the gaps between doors."""
    cargo: tuple[float, float, float, float] | None = None
    """A box behind the cab: left, bottom, right, top."""


def _box(left: float, bottom: float, right: float, top: float) -> tuple[Point, ...]:
    return (left, bottom), (left, top), (right, top), (right, bottom)


def _points(text: str) -> tuple[Point, ...]:
    """Read points written as `x,y x,y`."""
    pairs = (pair.split(",") for pair in text.split())
    return tuple((float(x), float(y)) for x, y in pairs)


_BODIES = {
    "saloon": _Body(
        outline=_points(
            "0,0.09 0,0.2 0.03,0.235 0.17,0.25 0.28,0.345 0.33,0.357 "
            "0.5,0.357 0.55,0.345 0.7,0.25 0.92,0.218 0.985,0.175 1,0.09"
        ),
        windows=(
            _points("0.22,0.252 0.3,0.33 0.42,0.335 0.42,0.252"),
            _points("0.44,0.252 0.44,0.335 0.53,0.332 0.655,0.252"),
        ),
        wheels=(0.19, 0.79),
        radius=0.078,
        roof=(0.34, 0.5, 0.357),
        panel=(0.02, 0.12, 0.97, 0.235),
        sill=0.09,
        doors=(0.25, 0.43, 0.63),
    ),
    "estate": _Body(
        outline=_points(
            "0,0.09 0,0.24 0.05,0.34 0.1,0.362 0.52,0.362 "
            "0.56,0.35 0.7,0.25 0.92,0.218 0.985,0.175 1,0.09"
        ),
        windows=(
            _points("0.05,0.255 0.09,0.335 0.21,0.34 0.21,0.255"),
            _points("0.235,0.255 0.235,0.34 0.41,0.34 0.41,0.255"),
            _points("0.43,0.255 0.43,0.34 0.54,0.337 0.655,0.255"),
        ),
        wheels=(0.19, 0.79),
        radius=0.078,
        roof=(0.3, 0.5, 0.362),
        panel=(0.02, 0.12, 0.97, 0.24),
        sill=0.09,
        doors=(0.22, 0.42, 0.63),
    ),
    "hatchback": _Body(
        outline=_points(
            "0,0.1 0,0.27 0.1,0.385 0.16,0.405 0.5,0.405 "
            "0.56,0.385 0.72,0.275 0.93,0.235 0.99,0.19 1,0.1"
        ),
        windows=(
            _points("0.1,0.285 0.16,0.375 0.35,0.38 0.35,0.285"),
            _points("0.38,0.285 0.38,0.38 0.53,0.375 0.67,0.285"),
        ),
        wheels=(0.2, 0.79),
        radius=0.092,
        roof=(0.26, 0.48, 0.405),
        panel=(0.02, 0.13, 0.97, 0.265),
        sill=0.1,
        doors=(0.36, 0.66),
    ),
    "suv": _Body(
        outline=_points(
            "0,0.12 0,0.29 0.03,0.41 0.08,0.432 0.58,0.432 "
            "0.62,0.42 0.73,0.3 0.95,0.272 1,0.22 1,0.12"
        ),
        windows=(
            _points("0.04,0.305 0.07,0.405 0.2,0.41 0.2,0.305"),
            _points("0.225,0.305 0.225,0.41 0.42,0.41 0.42,0.305"),
            _points("0.445,0.305 0.445,0.41 0.6,0.405 0.69,0.305"),
        ),
        wheels=(0.19, 0.8),
        radius=0.092,
        roof=(0.32, 0.56, 0.432),
        panel=(0.02, 0.15, 0.98, 0.285),
        sill=0.12,
        doors=(0.21, 0.43, 0.67),
    ),
    "pickup": _Body(
        outline=_points(
            "0,0.13 0,0.265 0.37,0.265 0.4,0.38 0.44,0.4 0.6,0.4 0.73,0.275 0.95,0.25 1,0.2 1,0.13"
        ),
        windows=(_points("0.425,0.28 0.44,0.375 0.59,0.375 0.68,0.28"),),
        wheels=(0.19, 0.8),
        radius=0.09,
        roof=(0.44, 0.59, 0.4),
        panel=(0.02, 0.15, 0.98, 0.255),
        sill=0.13,
        doors=(0.41, 0.67),
    ),
    "van": _Body(
        outline=_points(
            "0,0.1 0,0.44 0.02,0.462 0.7,0.462 0.77,0.44 0.88,0.29 0.97,0.255 1,0.18 1,0.1"
        ),
        windows=(_points("0.66,0.29 0.66,0.42 0.74,0.42 0.83,0.29"),),
        wheels=(0.2, 0.82),
        radius=0.075,
        roof=(0.52, 0.7, 0.462),
        panel=(0.01, 0.13, 0.98, 0.42),
        sill=0.1,
        doors=(0.4, 0.63, 0.84),
    ),
    "minibus": _Body(
        outline=_points(
            "0,0.1 0,0.42 0.02,0.442 0.7,0.442 0.77,0.42 0.88,0.28 0.97,0.25 1,0.18 1,0.1"
        ),
        windows=(
            _points("0.03,0.28 0.03,0.4 0.2,0.4 0.2,0.28"),
            _points("0.22,0.28 0.22,0.4 0.42,0.4 0.42,0.28"),
            _points("0.44,0.28 0.44,0.4 0.63,0.4 0.63,0.28"),
            _points("0.66,0.28 0.66,0.4 0.74,0.4 0.82,0.28"),
        ),
        wheels=(0.2, 0.82),
        radius=0.075,
        roof=(0.5, 0.68, 0.442),
        panel=(0.01, 0.13, 0.98, 0.265),
        sill=0.1,
        doors=(0.43, 0.64, 0.83),
    ),
    "box": _Body(
        outline=_points("0.6,0.1 0.6,0.41 0.77,0.41 0.88,0.28 0.975,0.25 1,0.18 1,0.1"),
        windows=(_points("0.69,0.285 0.69,0.385 0.75,0.385 0.835,0.285"),),
        wheels=(0.2, 0.83),
        radius=0.075,
        roof=(0.5, 0.64, 0.53),
        panel=(0.01, 0.15, 0.64, 0.5),
        sill=0.1,
        doors=(0.67, 0.85),
        cargo=(0, 0.12, 0.65, 0.53),
    ),
    "lorry": _Body(
        outline=_points("0,0.1 0,0.15 0.73,0.15 0.74,0.42 0.78,0.45 0.965,0.45 0.995,0.25 1,0.1"),
        windows=(_points("0.84,0.28 0.84,0.41 0.955,0.41 0.98,0.28"),),
        wheels=(0.14, 0.26, 0.87),
        radius=0.07,
        roof=(0.78, 0.95, 0.45),
        panel=(0.01, 0.16, 0.7, 0.5),
        sill=0.1,
        doors=(0.82,),
        cargo=(0, 0.14, 0.71, 0.53),
    ),
    "bus": _Body(
        outline=_points("0,0.07 0,0.35 0.02,0.37 0.975,0.37 1,0.33 1,0.07"),
        windows=(
            *(_box(x, 0.2, x + 0.12, 0.33) for x in (0.03, 0.165, 0.3, 0.435, 0.57, 0.705)),
            _box(0.84, 0.09, 0.91, 0.33),
            _box(0.93, 0.19, 0.995, 0.33),
        ),
        wheels=(0.22, 0.78),
        radius=0.052,
        roof=(0.8, 0.95, 0.37),
        panel=(0.01, 0.09, 0.82, 0.19),
        sill=0.07,
    ),
    "engine": _Body(
        outline=_points("0,0.1 0,0.41 0.6,0.41 0.6,0.44 0.95,0.44 0.985,0.4 1,0.25 1,0.1"),
        windows=(
            _points("0.64,0.27 0.64,0.4 0.77,0.4 0.77,0.27"),
            _points("0.81,0.27 0.81,0.4 0.94,0.4 0.975,0.27"),
        ),
        wheels=(0.2, 0.84),
        radius=0.072,
        roof=(0.72, 0.94, 0.44),
        panel=(0.01, 0.13, 0.98, 0.25),
        sill=0.1,
        doors=(0.62, 0.79),
    ),
}

Lamp = tuple[float, float, float, Color]
"""Something that shines: x, y and radius in pixels, colour."""


@dataclass(frozen=True)
class _Design:
    """How one vehicle is painted and equipped."""

    body: str
    color: Color
    cargo_color: Color | None = None
    pattern: str = "plain"
    """`plain`, `stripe`, `chequers`, `doors`, `wedge` or `band`."""
    accents: tuple[Color, Color] = (_BLUE, _WHITE)
    text: str = ""
    text_color: Color = _BLACK
    emblem: str = ""
    """`cross`, `star`, `disc` or nothing."""
    emblem_color: Color = _RED
    lights: tuple[Color, ...] = ()
    """Colours of the light bar, from the rear."""
    roof_item: str = ""
    """`taxi`, `rack`, `ladder` or nothing."""
    lockers: bool = False


def _design_police(rng: np.random.Generator) -> _Design:
    body = str(rng.choice(["saloon", "estate", "hatchback", "suv", "van", "minibus", "pickup"]))
    style = int(rng.integers(5))
    base = _Design(body=body, color=_WHITE, text="POLICE")
    if style == 0:
        design = replace(base, pattern="chequers", accents=(_BLUE, _LIME), text_color=_NAVY)
    elif style == 1:
        design = replace(base, color=_BLACK, pattern="doors", accents=(_WHITE, _WHITE))
    elif style == 2:
        design = replace(base, color=_SILVER, pattern="doors", accents=(_BLUE, _BLUE))
        design = replace(design, text_color=_WHITE)
    elif style == 3:
        design = replace(base, pattern="stripe", accents=(_BLUE, _NAVY), text_color=_NAVY)
    else:
        design = replace(base, pattern="wedge", accents=(_NAVY, _YELLOW), text_color=_NAVY)
    lights = [
        (_BLUE_LIGHT, _BLUE_LIGHT),
        (_RED_LIGHT, _BLUE_LIGHT),
        (_RED_LIGHT, _WHITE, _BLUE_LIGHT),
    ]
    return replace(design, lights=lights[int(rng.integers(len(lights)))])


def _design_ambulance(rng: np.random.Generator) -> _Design:
    yellow = rng.random() < 0.3
    pattern = str(rng.choice(["chequers", "stripe", "band"]))
    accent = _pick(rng, (_RED, _ORANGE, _GREEN, _BLUE))
    if pattern == "chequers":
        accents = (_GREEN, _LIME) if rng.random() < 0.6 else (_RED, _LIME)
    else:
        accents = (accent, accent)
    star = rng.random() < 0.5
    return _Design(
        body=str(rng.choice(["van", "van", "box", "minibus"])),
        color=_YELLOW if yellow else _WHITE,
        cargo_color=_YELLOW if yellow else _WHITE,
        pattern=pattern,
        accents=accents,
        text="AMBULANCE",
        text_color=_pick(rng, (_RED, _BLUE, _GREEN)),
        emblem="star" if star else "cross",
        emblem_color=_BLUE if star else _RED,
        lights=((_BLUE_LIGHT, _BLUE_LIGHT), (_RED_LIGHT, _RED_LIGHT), (_RED_LIGHT, _BLUE_LIGHT))[
            int(rng.integers(3))
        ],
    )


def _design_fire(rng: np.random.Generator) -> _Design:
    large = rng.random() < 0.75
    return _Design(
        body="engine" if large else str(rng.choice(["suv", "van", "pickup"])),
        color=_pick(rng, (_RED, _RED, _DARK_RED, _LIME)) if large else _RED,
        pattern=str(rng.choice(["stripe", "band", "chequers"])),
        accents=(_YELLOW, _RED) if rng.random() < 0.5 else (_WHITE, _YELLOW),
        text="FIRE",
        text_color=_WHITE,
        lights=((_BLUE_LIGHT, _BLUE_LIGHT), (_RED_LIGHT, _RED_LIGHT), (_RED_LIGHT, _BLUE_LIGHT))[
            int(rng.integers(3))
        ],
        roof_item="ladder" if large or rng.random() < 0.3 else "",
        lockers=large,
    )


def _design_emergency(rng: np.random.Generator) -> _Design:
    designers = (_design_police, _design_police, _design_ambulance, _design_fire)
    design = designers[int(rng.integers(len(designers)))](rng)
    if rng.random() < 0.4:
        design = replace(design, text="")
    if rng.random() < 0.06:  # seen without its light bar
        design = replace(design, lights=())
    return design


def _design_civil(rng: np.random.Generator) -> _Design:
    names = [
        "saloon",
        "estate",
        "hatchback",
        "suv",
        "pickup",
        "van",
        "minibus",
        "box",
        "lorry",
        "bus",
    ]
    odds = [0.15, 0.1, 0.13, 0.13, 0.08, 0.14, 0.06, 0.07, 0.08, 0.06]
    body = str(rng.choice(names, p=odds))
    color = _jittered(rng, _pick(rng, _CIVIL_COLORS))
    accent = _pick(rng, (_RED, _BLUE, _GREEN, _ORANGE, _YELLOW, _NAVY))
    design = _Design(body=body, color=color, cargo_color=color)
    if body in ("van", "box", "lorry", "bus", "minibus"):
        if rng.random() < 0.45:
            design = replace(design, color=_jittered(rng, _pick(rng, (_WHITE, _RED, _YELLOW))))
        cargo = _jittered(rng, _pick(rng, (_WHITE, _WHITE, _SILVER, _RED, _BLUE, design.color)))
        design = replace(design, cargo_color=cargo, text_color=accent, accents=(accent, _WHITE))
        if rng.random() < 0.45:
            design = replace(design, pattern=str(rng.choice(["stripe", "band", "wedge"])))
        if rng.random() < 0.5:
            texts = ["BAKERY", "MOVERS", "EXPRESS", "FLOWERS", "RENTAL", "CITY", "POST"]
            design = replace(design, text=str(rng.choice(texts)))
        if rng.random() < 0.25:
            design = replace(design, emblem="disc", emblem_color=accent)
    elif rng.random() < 0.15:
        taxi = _pick(rng, (_YELLOW, _WHITE, _BLACK))
        design = replace(
            design, color=taxi, roof_item="taxi", text="TAXI" if rng.random() < 0.5 else ""
        )
    elif rng.random() < 0.1:
        design = replace(design, pattern="stripe", accents=(accent, _WHITE))
    if not design.roof_item and rng.random() < 0.15:
        design = replace(design, roof_item="rack")
    if body in ("pickup", "lorry", "van", "suv") and rng.random() < 0.12:  # breakdown or road works
        color = _pick(rng, (_YELLOW, _ORANGE, _WHITE))
        design = replace(design, color=color, lights=(_AMBER_LIGHT, _AMBER_LIGHT), roof_item="")
    return design


def _draw_vehicle(
    rng: np.random.Generator, emergency: bool, length: int
) -> tuple[Image.Image, list[Lamp]]:
    """Draw one vehicle on a transparent ground, its wheels at the lower edge.

    Returns:
        The RGBA picture, and what shines on it.
    """
    design = _design_emergency(rng) if emergency else _design_civil(rng)
    view = rng.random()
    if view < 0.84:
        mirrored = rng.random() < 0.5
        layer, lamps = _draw_side(rng, design, length, mirrored=mirrored)
        if mirrored:
            layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            lamps = [(layer.width - x, y, radius, color) for x, y, radius, color in lamps]
    else:
        layer, lamps = _draw_front(rng, design, length, rear=view > 0.93)
    angle = float(rng.normal(0, 1.5))
    return layer.rotate(angle, Image.Resampling.BILINEAR), lamps


class _Pen:
    """Draws in a vehicle's coordinates: y up, in units of its length."""

    def __init__(self, image: Image.Image, unit: float, *, mirrored: bool = False) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.unit = unit
        self.mirrored = mirrored
        """Whether the picture will be flipped, so that letters are written backwards now."""

    def xy(self, x: float, y: float) -> Point:
        return x * self.unit, self.image.height - y * self.unit

    def polygon(self, points: Sequence[Point], fill: Color | int) -> None:
        self.draw.polygon([self.xy(x, y) for x, y in points], fill=fill)

    def box(self, left: float, bottom: float, right: float, top: float, fill: Color | int) -> None:
        self.polygon(_box(left, bottom, right, top), fill)

    def disc(self, x: float, y: float, radius: float, fill: Color | int) -> None:
        (left, top), (right, bottom) = (
            self.xy(x - radius, y + radius),
            self.xy(x + radius, y - radius),
        )
        self.draw.ellipse((left, top, right, bottom), fill=fill)

    def text(self, x: float, y: float, height: float, text: str, fill: Color) -> None:
        """Write `text` centred at (x, y)."""
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


def _draw_side(
    rng: np.random.Generator, design: _Design, length: int, *, mirrored: bool
) -> tuple[Image.Image, list[Lamp]]:
    body = _BODIES[design.body]
    color = _jittered(rng, design.color, 10)
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
        brush.box(left, bottom, right, top, _jittered(rng, design.cargo_color or color, 8))
    _paint_livery(rng, brush, design, body)
    brush.box(0, 0, 1, body.sill + 0.022, _mixed(color, _BLACK, 0.6))
    layer.paste(_shaded(paint), mask=mask)

    glass = _mixed((52, 62, 74), _pick(rng, ((52, 62, 74), (150, 175, 195))), rng.random())
    for window in body.windows:
        pen.polygon(window, glass)
        (x0, y0), (x1, y1) = window[0], window[2]
        pen.polygon(
            ((x0 + 0.01, y0 + 0.005), (x1 - 0.02, y1 - 0.01), (x1 - 0.005, y1 - 0.01)),
            _mixed(glass, _WHITE, 0.25),
        )
    top = body.panel[3]
    for x in body.doors:
        pen.box(x, body.sill + 0.03, x + 0.004, top, _mixed(color, _BLACK, 0.45))
    front = body.outline[-1][0]
    pen.polygon(_box(front - 0.03, body.sill + 0.07, front, body.sill + 0.11), (250, 240, 205))
    pen.polygon(_box(0, body.sill + 0.08, 0.018, body.sill + 0.13), (190, 30, 30))
    for x in body.wheels:
        pen.disc(x, body.radius + 0.012, body.radius + 0.012, _mixed(color, _BLACK, 0.8))
        pen.disc(x, body.radius, body.radius, _TYRE)
        pen.disc(x, body.radius, body.radius * 0.58, _pick(rng, (_SILVER, _GREY, (140, 144, 150))))
        pen.disc(x, body.radius, body.radius * 0.2, _GREY)
    return layer, lamps


def _shaded(paint: Image.Image) -> Image.Image:
    """Darken towards the road, as light from above does."""
    pixels = np.asarray(paint)
    rows = np.linspace(1.06, 0.72, paint.height)[:, None, None]
    return Image.fromarray(np.clip(pixels * rows, 0, 255).astype(np.uint8))


def _paint_livery(rng: np.random.Generator, pen: _Pen, design: _Design, body: _Body) -> None:
    """Paint pattern, lockers, emblem and letters on the flank."""
    _paint_pattern(rng, pen, design, body)
    if design.lockers:
        for column in range(4):
            x, bottom = 0.03 + column * 0.14, 0.22 if column == 1 else 0.17  # over the wheel
            pen.box(x, bottom, x + 0.12, 0.37, _SILVER)
            for y in (0.25, 0.28, 0.31, 0.34):
                pen.box(x, y, x + 0.12, y + 0.003, _GREY)
    left, bottom, right, top = body.panel
    tall = top - bottom
    large = design.body in ("van", "box", "lorry")
    if design.emblem:
        y = (bottom + top) / 2 + tall * 0.15
        _paint_emblem(pen, design, 0.12 if large else 0.1, y, tall * 0.2)
    if design.text:
        x = 0.33 if large or not body.doors else (body.doors[0] + body.doors[-1]) / 2
        height = min(tall * 0.42, 0.62 * (right - left) / len(design.text), 0.085)
        y = top - tall * (0.2 if large else 0.4)
        pen.text(x + (0.04 if design.emblem else 0), y, height, design.text, design.text_color)


def _paint_pattern(rng: np.random.Generator, pen: _Pen, design: _Design, body: _Body) -> None:
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
    elif design.pattern == "chequers":
        cell = min(0.075, tall * 0.5)
        base = bottom + (tall - 2 * cell) * rng.uniform(0.2, 0.8)
        for row in range(2):
            for column in range(math.ceil((right - left) / cell)):
                x, y = left + column * cell, base + row * cell
                fill = first if (row + column) % 2 else second
                pen.box(x, y, min(x + cell, right), y + cell, fill)


def _paint_emblem(pen: _Pen, design: _Design, x: float, y: float, radius: float) -> None:
    radius = min(radius, 0.06)
    color, arm = design.emblem_color, radius * 0.36
    if design.emblem == "disc":
        pen.disc(x, y, radius, color)
        pen.disc(x, y, radius * 0.5, _WHITE)
        return
    pen.disc(x, y, radius * 1.15, _WHITE)
    for angle in (0, 90) if design.emblem == "cross" else (0, 60, 120):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        bar = ((-radius, -arm), (radius, -arm), (radius, arm), (-radius, arm))
        pen.polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in bar], color)


def _draw_on_roof(rng: np.random.Generator, pen: _Pen, design: _Design, body: _Body) -> None:
    left, right, y = body.roof
    middle = (left + right) / 2
    if design.roof_item == "rack":
        pen.box(left - 0.04, y + 0.012, right + 0.06, y + 0.02, _GREY)
        pen.box(left, y + 0.02, left + 0.12, y + 0.05, _BROWN)
    elif design.roof_item == "taxi":
        pen.box(middle - 0.045, y - 0.01, middle + 0.045, y + 0.035, _pick(rng, (_YELLOW, _WHITE)))
    elif design.roof_item == "ladder":
        y = max(top for _, top in body.outline[:3]) + 0.015
        for offset in (0.0, 0.03):
            pen.box(0.02, y + offset, left - 0.01, y + offset + 0.008, _SILVER)
        for x in np.arange(0.03, left - 0.01, 0.035).tolist():
            pen.box(x, y, x + 0.006, y + 0.035, _SILVER)


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
    pen.box(left, y - 0.01, left + 2 * half, y + 0.008, _BLACK)
    lamps = []
    for index, color in enumerate(lights):
        x = left + index * width
        lit = rng.random() < 0.9
        pen.box(x, y + 0.006, x + width, y + height, color if lit else _mixed(color, _BLACK, 0.35))
        if lit:
            center_x, center_y = pen.xy(x + width / 2, y + height / 2)
            lamps.append((center_x, center_y, width * pen.unit * 1.6, color))
    return lamps


_FRONT_HEIGHTS = {"bus": 1.35, "lorry": 1.4, "engine": 1.35, "box": 1.3, "van": 1.15}
_FRONT_HEIGHTS |= {"minibus": 1.1, "suv": 0.95, "pickup": 0.95}


def _draw_front(
    rng: np.random.Generator, design: _Design, length: int, *, rear: bool
) -> tuple[Image.Image, list[Lamp]]:
    """Draw a vehicle of about this length from the front or from behind; the unit is its width."""
    tall = _FRONT_HEIGHTS.get(design.body, 0.8)
    upright = tall > 1
    width = round(length * (0.52 if upright else 0.62))
    color = _jittered(rng, design.color, 10)
    layer = Image.new("RGBA", (width, round(width * (tall + 0.25))))
    pen = _Pen(layer, width)
    inset, belt = (0.06, tall * 0.5) if upright else (0.17, tall * 0.56)
    roof = (inset + 0.08, 0.92 - inset, tall)
    lamps = _draw_light_bar(rng, pen, roof, design.lights) if design.lights else []
    if design.roof_item == "taxi":
        pen.box(0.38, tall - 0.02, 0.62, tall + 0.09, _pick(rng, (_YELLOW, _WHITE)))
    for x in (0.08, 0.76):
        pen.box(x, 0, x + 0.16, 0.3, _TYRE)

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
    shine = _mixed(glass, _WHITE, 0.25)
    pen.polygon(((0.55, sill), (0.66, top), (0.74, top), (0.63, sill)), shine)
    for x in (0.07, 0.75):
        pen.box(x, belt - 0.19, x + 0.18, belt - 0.09, (190, 25, 28) if rear else (252, 246, 215))
    if not rear:
        pen.box(0.3, belt - 0.24, 0.7, belt - 0.12, _mixed(color, _BLACK, 0.75))
    pen.box(0.03, 0.12, 0.97, 0.2, _mixed(color, _BLACK, 0.65))
    pen.box(0.38, 0.21, 0.62, 0.27, _WHITE)
    if design.text:
        pen.text(0.5, belt - 0.05, min(0.1, 0.9 / len(design.text)), design.text, design.text_color)
    if design.emblem:
        _paint_emblem(pen, design, 0.5, belt - 0.3 if rear else belt - 0.02, 0.07)
    return layer, lamps


def _paint_front_pattern(pen: _Pen, design: _Design, belt: float) -> None:
    first, second = design.accents
    if design.pattern in ("band", "stripe"):
        pen.box(0, belt - 0.2, 1, belt - 0.1, first)
    elif design.pattern in ("chequers", "wedge"):
        for column in range(10):
            pen.box(column / 10, 0.2, column / 10 + 0.1, 0.34, first if column % 2 else second)
    elif design.pattern == "doors":
        pen.box(0.2, belt - 0.16, 0.8, belt, first)


# The camera


def _add_glow(picture: Image.Image, lamps: Sequence[Lamp], strength: float) -> Image.Image:
    """Let lamps shine on what is around them."""
    if not lamps:
        return picture
    glow = Image.new("RGB", picture.size)
    draw = ImageDraw.Draw(glow)
    for x, y, radius, color in lamps:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    glow = glow.reduce(4).filter(ImageFilter.GaussianBlur(picture.width / 50))
    glow = _scaled(glow.resize(picture.size), (strength, strength, strength))
    return ImageChops.add(picture, glow)


def _add_weather(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    kind = rng.random()
    full = picture.width
    if kind < 0.08:
        draw = ImageDraw.Draw(picture)
        slant = rng.uniform(-8, 8)
        for x, y in rng.uniform(0, full, (140, 2)).tolist():
            draw.line((x, y, x + slant, y + full * 0.04), fill=(190, 200, 210), width=1)
    elif kind < 0.14:
        draw = ImageDraw.Draw(picture)
        for x, y in rng.uniform(0, full, (220, 2)).tolist():
            draw.ellipse((x, y, x + 4, y + 4), fill=(245, 246, 250))
    elif kind < 0.2:
        fog = Image.new("RGB", picture.size, (190, 195, 200))
        picture = Image.blend(picture, fog, rng.uniform(0.2, 0.45))
    return picture


def _photographed(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Vary sharpness, exposure and colour, and add noise."""
    if rng.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.15))
    picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.9, 1.15))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.85, 1.25))
    noise = rng.standard_normal((*picture.size, 3), np.float32) * np.float32(rng.uniform(1, 5))
    pixels = np.asarray(picture, np.float32) + noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
