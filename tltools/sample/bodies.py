"""The shapes of vehicles, seen from the side.

Each vehicle has its own coordinates: x from the rear (0) to the front (1), and y upward from the
road in the same unit.
"""

from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Body:
    """The shape of a vehicle seen from the side, facing right."""

    outline: tuple[Point, ...]
    windows: tuple[tuple[Point, ...], ...]
    wheels: tuple[float, ...]
    """x coordinates of the axles."""
    radius: float
    roof: tuple[float, float, float]
    """Place for a light bar: from x, to x, at y."""
    panel: tuple[float, float, float, float]
    """The side panel for liveries and letters: left, bottom, right, top."""
    sill: float
    """y coordinate of the lower edge."""
    doors: tuple[float, ...] = ()
    """x coordinates of the gaps between doors."""
    cargo: tuple[float, float, float, float] | None = None
    """The box behind the cab: left, bottom, right, top."""


def box(left: float, bottom: float, right: float, top: float) -> tuple[Point, ...]:
    """Return the corners of a rectangle."""
    return (left, bottom), (left, top), (right, top), (right, bottom)


def points(text: str) -> tuple[Point, ...]:
    """Read points written as `x,y x,y`."""
    pairs = (pair.split(",") for pair in text.split())
    return tuple((float(x), float(y)) for x, y in pairs)


BODIES: dict[str, Body] = {
    "sedan": Body(
        outline=points(
            "0,0.09 0,0.2 0.03,0.235 0.17,0.25 0.28,0.345 0.33,0.357 "
            "0.5,0.357 0.55,0.345 0.7,0.25 0.92,0.218 0.985,0.175 1,0.09"
        ),
        windows=(
            points("0.22,0.252 0.3,0.33 0.42,0.335 0.42,0.252"),
            points("0.44,0.252 0.44,0.335 0.53,0.332 0.655,0.252"),
        ),
        wheels=(0.19, 0.79),
        radius=0.078,
        roof=(0.34, 0.5, 0.357),
        panel=(0.02, 0.12, 0.97, 0.235),
        sill=0.09,
        doors=(0.25, 0.43, 0.63),
    ),
    "wagon": Body(
        outline=points(
            "0,0.09 0,0.24 0.05,0.34 0.1,0.362 0.52,0.362 "
            "0.56,0.35 0.7,0.25 0.92,0.218 0.985,0.175 1,0.09"
        ),
        windows=(
            points("0.05,0.255 0.09,0.335 0.21,0.34 0.21,0.255"),
            points("0.235,0.255 0.235,0.34 0.41,0.34 0.41,0.255"),
            points("0.43,0.255 0.43,0.34 0.54,0.337 0.655,0.255"),
        ),
        wheels=(0.19, 0.79),
        radius=0.078,
        roof=(0.3, 0.5, 0.362),
        panel=(0.02, 0.12, 0.97, 0.24),
        sill=0.09,
        doors=(0.22, 0.42, 0.63),
    ),
    "hatchback": Body(
        outline=points(
            "0,0.1 0,0.27 0.1,0.385 0.16,0.405 0.5,0.405 "
            "0.56,0.385 0.72,0.275 0.93,0.235 0.99,0.19 1,0.1"
        ),
        windows=(
            points("0.1,0.285 0.16,0.375 0.35,0.38 0.35,0.285"),
            points("0.38,0.285 0.38,0.38 0.53,0.375 0.67,0.285"),
        ),
        wheels=(0.2, 0.79),
        radius=0.092,
        roof=(0.26, 0.48, 0.405),
        panel=(0.02, 0.13, 0.97, 0.265),
        sill=0.1,
        doors=(0.36, 0.66),
    ),
    "suv": Body(
        outline=points(
            "0,0.12 0,0.29 0.03,0.41 0.08,0.432 0.58,0.432 "
            "0.62,0.42 0.73,0.3 0.95,0.272 1,0.22 1,0.12"
        ),
        windows=(
            points("0.04,0.305 0.07,0.405 0.2,0.41 0.2,0.305"),
            points("0.225,0.305 0.225,0.41 0.42,0.41 0.42,0.305"),
            points("0.445,0.305 0.445,0.41 0.6,0.405 0.69,0.305"),
        ),
        wheels=(0.19, 0.8),
        radius=0.092,
        roof=(0.32, 0.56, 0.432),
        panel=(0.02, 0.15, 0.98, 0.285),
        sill=0.12,
        doors=(0.21, 0.43, 0.67),
    ),
    "pickup": Body(
        outline=points(
            "0,0.13 0,0.265 0.37,0.265 0.4,0.38 0.44,0.4 0.6,0.4 0.73,0.275 0.95,0.25 1,0.2 1,0.13"
        ),
        windows=(points("0.425,0.28 0.44,0.375 0.59,0.375 0.68,0.28"),),
        wheels=(0.19, 0.8),
        radius=0.09,
        roof=(0.44, 0.59, 0.4),
        panel=(0.02, 0.15, 0.98, 0.255),
        sill=0.13,
        doors=(0.41, 0.67),
    ),
    "van": Body(
        outline=points(
            "0,0.1 0,0.44 0.02,0.462 0.7,0.462 0.77,0.44 0.88,0.29 0.97,0.255 1,0.18 1,0.1"
        ),
        windows=(points("0.66,0.29 0.66,0.42 0.74,0.42 0.83,0.29"),),
        wheels=(0.2, 0.82),
        radius=0.075,
        roof=(0.52, 0.7, 0.462),
        panel=(0.01, 0.13, 0.98, 0.42),
        sill=0.1,
        doors=(0.4, 0.63, 0.84),
    ),
    "minibus": Body(
        outline=points(
            "0,0.1 0,0.42 0.02,0.442 0.7,0.442 0.77,0.42 0.88,0.28 0.97,0.25 1,0.18 1,0.1"
        ),
        windows=(
            points("0.03,0.28 0.03,0.4 0.2,0.4 0.2,0.28"),
            points("0.22,0.28 0.22,0.4 0.42,0.4 0.42,0.28"),
            points("0.44,0.28 0.44,0.4 0.63,0.4 0.63,0.28"),
            points("0.66,0.28 0.66,0.4 0.74,0.4 0.82,0.28"),
        ),
        wheels=(0.2, 0.82),
        radius=0.075,
        roof=(0.5, 0.68, 0.442),
        panel=(0.01, 0.13, 0.98, 0.265),
        sill=0.1,
        doors=(0.43, 0.64, 0.83),
    ),
    "box": Body(
        outline=points("0.6,0.1 0.6,0.41 0.77,0.41 0.88,0.28 0.975,0.25 1,0.18 1,0.1"),
        windows=(points("0.69,0.285 0.69,0.385 0.75,0.385 0.835,0.285"),),
        wheels=(0.2, 0.83),
        radius=0.075,
        roof=(0.5, 0.64, 0.53),
        panel=(0.01, 0.15, 0.64, 0.5),
        sill=0.1,
        doors=(0.67, 0.85),
        cargo=(0, 0.12, 0.65, 0.53),
    ),
    "truck": Body(
        outline=points("0,0.1 0,0.15 0.73,0.15 0.74,0.42 0.78,0.45 0.965,0.45 0.995,0.25 1,0.1"),
        windows=(points("0.84,0.28 0.84,0.41 0.955,0.41 0.98,0.28"),),
        wheels=(0.14, 0.26, 0.87),
        radius=0.07,
        roof=(0.78, 0.95, 0.45),
        panel=(0.01, 0.16, 0.7, 0.5),
        sill=0.1,
        doors=(0.82,),
        cargo=(0, 0.14, 0.71, 0.53),
    ),
    "bus": Body(
        outline=points("0,0.07 0,0.35 0.02,0.37 0.975,0.37 1,0.33 1,0.07"),
        windows=(
            *(box(x, 0.2, x + 0.12, 0.33) for x in (0.03, 0.165, 0.3, 0.435, 0.57, 0.705)),
            box(0.84, 0.09, 0.91, 0.33),
            box(0.93, 0.19, 0.995, 0.33),
        ),
        wheels=(0.22, 0.78),
        radius=0.052,
        roof=(0.8, 0.95, 0.37),
        panel=(0.01, 0.09, 0.82, 0.19),
        sill=0.07,
    ),
    "engine": Body(
        outline=points("0,0.1 0,0.41 0.6,0.41 0.6,0.44 0.95,0.44 0.985,0.4 1,0.25 1,0.1"),
        windows=(
            points("0.64,0.27 0.64,0.4 0.77,0.4 0.77,0.27"),
            points("0.81,0.27 0.81,0.4 0.94,0.4 0.975,0.27"),
        ),
        wheels=(0.2, 0.84),
        radius=0.072,
        roof=(0.72, 0.94, 0.44),
        panel=(0.01, 0.13, 0.98, 0.25),
        sill=0.1,
        doors=(0.62, 0.79),
    ),
}
