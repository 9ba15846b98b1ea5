"""Format the bench's numbers: few digits, never rounded in a model's favor."""

from tltools.card import Score
from tltools.wording import in_percent_down, with_interval


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
    """Format a share in [0, 1] for a column of percent, rounded down."""
    return in_percent_down(share).removesuffix("%")


def accuracy(score: Score) -> str:
    """Format an accuracy with its interval."""
    return with_interval(score.accuracy, score.low, score.high)
