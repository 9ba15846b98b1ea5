"""Format the bench's numbers: few digits, never rounded in a model's favor."""

import math

from tltools.card import Score


def digits(value: float) -> str:
    """Format a positive number with three digits, or all digits before the decimal point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds, down to a microsecond."""
    value = 1000 * seconds
    return digits(value) if value >= 1 else f"{value:.3f}"


def percent_down(share: float) -> str:
    """Format a share in [0, 1] as percent, rounded down: 99.96 % must not read as 100 %."""
    return f"{math.floor(1000 * share) / 10:.1f}"


def accuracy(score: Score) -> str:
    """Format an accuracy with its interval."""
    return f"{100 * score.accuracy:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"
