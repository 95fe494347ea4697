"""Intervals of estimates."""

from typing import NamedTuple


class Interval(NamedTuple):
    """Ends of an interval.

    Attributes
    ----------
    low, high
    kind
        How it was made.
    level
        How often such an interval holds the truth, such as 0.95.
    """

    low: float
    high: float
    kind: str
    level: float
