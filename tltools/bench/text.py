"""Write the bench's numbers for people: few digits, never rounded in a model's favor."""

import math

from tltools.card import Score


def digits(value: float) -> str:
    """Write a positive number with three digits, or with all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds, down to a microsecond."""
    value = 1000 * seconds
    return digits(value) if value >= 1 else f"{value:.3f}"


def percent_down(share: float) -> str:
    """Write a share in [0, 1] as percent, rounded down: 99.96 % must not read as all of it."""
    return f"{math.floor(1000 * share) / 10:.1f}"


def accuracy(score: Score) -> str:
    """Write an accuracy with its interval."""
    return f"{100 * score.accuracy:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"
