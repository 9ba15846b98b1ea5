"""Choose at random how vehicles are painted and equipped."""

from dataclasses import dataclass, replace

import numpy as np

from tltools.sample.colors import (
    AMBER_LIGHT,
    BLACK,
    BLUE,
    BLUE_LIGHT,
    CIVIL_COLORS,
    DARK_RED,
    GREEN,
    LIME,
    NAVY,
    ORANGE,
    RED,
    RED_LIGHT,
    SILVER,
    WHITE,
    YELLOW,
    Color,
    jittered,
    pick,
)

_CIVIL_ODDS = {
    "sedan": 0.15,
    "wagon": 0.1,
    "hatchback": 0.13,
    "suv": 0.13,
    "pickup": 0.08,
    "van": 0.14,
    "minibus": 0.06,
    "box": 0.07,
    "truck": 0.08,
    "bus": 0.06,
}


@dataclass(frozen=True)
class Design:
    """How one vehicle is painted and equipped."""

    body: str
    color: Color
    cargo_color: Color | None = None
    pattern: str = "plain"
    """`plain`, `stripe`, `checkers`, `doors`, `wedge` or `band`."""
    accents: tuple[Color, Color] = (BLUE, WHITE)
    text: str = ""
    text_color: Color = BLACK
    emblem: str = ""
    """`cross`, `star`, `disc` or empty."""
    emblem_color: Color = RED
    lights: tuple[Color, ...] = ()
    """Colors of the light bar, starting at the rear."""
    roof_item: str = ""
    """`taxi`, `rack`, `ladder` or empty."""
    lockers: bool = False


def _design_police(rng: np.random.Generator) -> Design:
    body = str(rng.choice(["sedan", "wagon", "hatchback", "suv", "van", "minibus", "pickup"]))
    style = int(rng.integers(5))
    base = Design(body=body, color=WHITE, text="POLICE")
    if style == 0:
        design = replace(base, pattern="checkers", accents=(BLUE, LIME), text_color=NAVY)
    elif style == 1:
        design = replace(base, color=BLACK, pattern="doors", accents=(WHITE, WHITE))
    elif style == 2:
        design = replace(base, color=SILVER, pattern="doors", accents=(BLUE, BLUE))
        design = replace(design, text_color=WHITE)
    elif style == 3:
        design = replace(base, pattern="stripe", accents=(BLUE, NAVY), text_color=NAVY)
    else:
        design = replace(base, pattern="wedge", accents=(NAVY, YELLOW), text_color=NAVY)
    lights = [
        (BLUE_LIGHT, BLUE_LIGHT),
        (RED_LIGHT, BLUE_LIGHT),
        (RED_LIGHT, WHITE, BLUE_LIGHT),
    ]
    return replace(design, lights=lights[int(rng.integers(len(lights)))])


def _design_ambulance(rng: np.random.Generator) -> Design:
    yellow = rng.random() < 0.3
    pattern = str(rng.choice(["checkers", "stripe", "band"]))
    accent = pick(rng, (RED, ORANGE, GREEN, BLUE))
    if pattern == "checkers":
        accents = (GREEN, LIME) if rng.random() < 0.6 else (RED, LIME)
    else:
        accents = (accent, accent)
    star = rng.random() < 0.5
    return Design(
        body=str(rng.choice(["van", "van", "box", "minibus"])),
        color=YELLOW if yellow else WHITE,
        cargo_color=YELLOW if yellow else WHITE,
        pattern=pattern,
        accents=accents,
        text="AMBULANCE",
        text_color=pick(rng, (RED, BLUE, GREEN)),
        emblem="star" if star else "cross",
        emblem_color=BLUE if star else RED,
        lights=((BLUE_LIGHT, BLUE_LIGHT), (RED_LIGHT, RED_LIGHT), (RED_LIGHT, BLUE_LIGHT))[
            int(rng.integers(3))
        ],
    )


def _design_fire(rng: np.random.Generator) -> Design:
    large = rng.random() < 0.75
    return Design(
        body="engine" if large else str(rng.choice(["suv", "van", "pickup"])),
        color=pick(rng, (RED, RED, DARK_RED, LIME)) if large else RED,
        pattern=str(rng.choice(["stripe", "band", "checkers"])),
        accents=(YELLOW, RED) if rng.random() < 0.5 else (WHITE, YELLOW),
        text="FIRE",
        text_color=WHITE,
        lights=((BLUE_LIGHT, BLUE_LIGHT), (RED_LIGHT, RED_LIGHT), (RED_LIGHT, BLUE_LIGHT))[
            int(rng.integers(3))
        ],
        roof_item="ladder" if large or rng.random() < 0.3 else "",
        lockers=large,
    )


def design_emergency(rng: np.random.Generator) -> Design:
    """Return a police car, an ambulance or a fire engine."""
    designers = (_design_police, _design_police, _design_ambulance, _design_fire)
    design = designers[int(rng.integers(len(designers)))](rng)
    if rng.random() < 0.4:
        design = replace(design, text="")
    if rng.random() < 0.06:  # light bar not visible
        design = replace(design, lights=())
    return design


def design_civil(rng: np.random.Generator) -> Design:
    """Return any other vehicle; some resemble emergency vehicles in color, stripes or lights."""
    body = str(rng.choice(list(_CIVIL_ODDS), p=list(_CIVIL_ODDS.values())))
    color = jittered(rng, pick(rng, CIVIL_COLORS))
    accent = pick(rng, (RED, BLUE, GREEN, ORANGE, YELLOW, NAVY))
    design = Design(body=body, color=color, cargo_color=color)
    if body in ("van", "box", "truck", "bus", "minibus"):
        if rng.random() < 0.45:
            design = replace(design, color=jittered(rng, pick(rng, (WHITE, RED, YELLOW))))
        cargo = jittered(rng, pick(rng, (WHITE, WHITE, SILVER, RED, BLUE, design.color)))
        design = replace(design, cargo_color=cargo, text_color=accent, accents=(accent, WHITE))
        if rng.random() < 0.45:
            design = replace(design, pattern=str(rng.choice(["stripe", "band", "wedge"])))
        if rng.random() < 0.5:
            texts = ["BAKERY", "MOVERS", "EXPRESS", "FLOWERS", "RENTAL", "CITY", "POST"]
            design = replace(design, text=str(rng.choice(texts)))
        if rng.random() < 0.25:
            design = replace(design, emblem="disc", emblem_color=accent)
    elif rng.random() < 0.15:
        taxi = pick(rng, (YELLOW, WHITE, BLACK))
        design = replace(
            design, color=taxi, roof_item="taxi", text="TAXI" if rng.random() < 0.5 else ""
        )
    elif rng.random() < 0.1:
        design = replace(design, pattern="stripe", accents=(accent, WHITE))
    if not design.roof_item and rng.random() < 0.15:
        design = replace(design, roof_item="rack")
    if (
        body in ("pickup", "truck", "van", "suv") and rng.random() < 0.12
    ):  # a tow truck or a road work vehicle
        color = pick(rng, (YELLOW, ORANGE, WHITE))
        design = replace(design, color=color, lights=(AMBER_LIGHT, AMBER_LIGHT), roof_item="")
    return design
