"""Means of the wheel bandit."""

import numpy as np

from bandit.kernels.compiling import Floats
from sims.worlds.effects import Wheel

SAFE = 4
"""The action that pays a little more inside; the others have the quadrants ++, +-, -+, --."""


def wheel_means(wheel: Wheel, x: Floats, y: Floats) -> Floats:
    """Give mean values of the five actions at points of the disc, shape (n, 5)."""
    means = np.full((len(x), 5), wheel.low)
    means[:, SAFE] = wheel.safe
    outside = np.flatnonzero(x * x + y * y > wheel.delta**2)
    quadrant = 2 * (x[outside] < 0) + (y[outside] < 0)
    means[outside, quadrant] = wheel.high
    return means
