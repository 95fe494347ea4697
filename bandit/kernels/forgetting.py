"""Weights that halve with time: exact in whole half-lives, however much time has passed."""

import math

import numpy as np

from bandit.kernels.arithmetic import exp
from bandit.kernels.compiling import Floats, kernel

MOST_HALVINGS = 64.0
LN_2 = 0.6931471805599453


@kernel
def half_lives(elapsed: float, half_life: float) -> tuple[float, float]:
    """Split a time into whole half-lives and a rest, both towards zero.

    Returns
    -------
    (whole, rest)
        ``elapsed = whole half_life + rest`` exactly, with rest in the unit of time.

    Notes
    -----
    ``fmod`` is exact by its definition, so the rest loses nothing after any number of
    half-lives; the quotient that is left is a whole number but for its last bits.
    """
    rest = np.fmod(elapsed, half_life)
    return np.floor((elapsed - rest) / half_life + 0.5), rest


@kernel
def power(whole: float, rest: float, half_life: float) -> float:
    """``2**(whole + rest / half_life)``, relative error below 2e-15; 0 where it is too small."""
    small = exp(rest / half_life * LN_2)
    return math.ldexp(small, int(min(max(whole, -1100.0), 1000.0)))


@kernel
def weigh(times: Floats, start: int, half_life: float, clock: Floats, weight: Floats) -> int:
    """Weigh outcomes in order by ``2**((time - landmark) / half_life)``.

    Parameters
    ----------
    times : (n,)
        Seconds.
    start
        First outcome to weigh.
    clock : (3,)
        Origin in seconds; the landmark in whole half-lives after it; the latest time.
        The latest time is changed in place.
    weight : (n,)
        Filled from ``start`` on.

    Returns
    -------
    The outcome to stop before: n, or one ``MOST_HALVINGS`` or more past the landmark, which
    has to move first.
    """
    n: int = times.shape[0]
    for i in range(start, n):
        whole, rest = half_lives(times[i] - clock[0], half_life)
        if whole - clock[1] >= MOST_HALVINGS:
            return i
        weight[i] = power(whole - clock[1], rest, half_life)
        clock[2] = max(clock[2], times[i])
    return n


@kernel
def present(half_life: float, clock: Floats) -> float:
    """Give the factor that turns sums of weights at the landmark into those of the latest time."""
    whole, rest = half_lives(clock[2] - clock[0], half_life)
    return power(clock[1] - whole, -rest, half_life)
