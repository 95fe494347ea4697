"""Bets on a mean, row by row: sums that are carried on, and the wealth of a bettor."""

import math

import numpy as np

from bandit.kernels.compiling import Floats, kernel

PLUG_IN = 6
"""Numbers that ``plug_in`` carries on."""


@kernel
def plug_in(x: Floats, error: float, largest: float, state: Floats, bets: Floats) -> None:
    """Choose a bet before every row, and gather what an empirical-Bernstein bound needs.

    Parameters
    ----------
    x : (n,)
        Rows, at least 0.
    error
        Probability of missing the truth on this side.
    largest
        Bets are cut here, for the sums; infinity: no sums of the bound, only bets.
    state : (6,)
        Rows so far, their sum, sum of squared differences from the running means, and sums of
        bets, of bets times rows, and of psi times squared differences from the prediction.
    bets : (n,)
        Where the uncut bets go.

    Notes
    -----
    Waudby-Smith & Ramdas, JRSS B 86, 2024, equations 15 and 26: ``sqrt(2 log(1 / error) / (t
    log(1 + t) variance))`` with the variance of the rows before, shrunk to that of one row of
    1/4 about 1/2. The prediction of a row is the mean of those before, at most 1.
    """
    log = 2.0 * math.log(1.0 / error)
    for i in range(x.shape[0]):
        before = state[0]
        state[0] += 1.0
        variance = (0.25 + state[2]) / state[0]
        bet = math.sqrt(log / (state[0] * math.log1p(state[0]) * variance))
        bets[i] = bet
        if largest < 1.0:
            cut = min(bet, largest)
            predicted = min(state[1] / before, 1.0) if before > 0.0 else 0.0
            psi = -math.log1p(-cut) - cut
            state[3] += cut
            state[4] += cut * x[i]
            state[5] += psi * (x[i] - predicted) ** 2
        state[1] += x[i]
        mean = min((0.5 + state[1]) / (state[0] + 1.0), 1.0)
        state[2] += (x[i] - mean) ** 2


@kernel
def add_deviations(x: Floats, state: Floats) -> None:
    """Carry on number, sum, and squared differences from the mean before (1/2 at first)."""
    for i in range(x.shape[0]):
        predicted = state[1] / state[0] if state[0] > 0.0 else 0.5
        state[2] += (x[i] - predicted) ** 2
        state[0] += 1.0
        state[1] += x[i]


@kernel
def log_wealth(x: Floats, bets: Floats, mean: float, largest: float) -> float:
    """Give the log of what a bettor has who bets that the mean is above ``mean``.

    Parameters
    ----------
    x : (n,)
        Rows, at least 0.
    bets : (n,)
        Each is cut at ``largest / mean``, so that no row can take more than the share
        ``largest`` of the wealth.

    Notes
    -----
    ``prod(1 + bet (x - mean))``. Every factor falls as ``mean`` grows, cut or not, so the
    wealth does too. The product is turned into a logarithm only when it leaves the middle of
    the doubles.
    """
    total, product = 0.0, 1.0
    cut = largest / mean if mean > 0.0 else np.inf
    for i in range(x.shape[0]):
        product *= 1.0 + min(bets[i], cut) * (x[i] - mean)
        if product > 1e100 or product < 1e-100:
            total += math.log(product)
            product = 1.0
    return total + math.log(product)


@kernel
def fading_spreads(scores: Floats, keep: float, warm_up: int, spreads: Floats) -> None:
    """Fill in the root of the fading mean of squared differences from the mean before.

    Parameters
    ----------
    scores : (n,)
    keep
        What is left of a row's weight after one more row.
    warm_up
        Rows whose spread stays as it is.
    spreads : (n,)
        Filled in from row ``warm_up`` on.
    """
    total, mean, squares, weight = 0.0, 0.0, 0.0, 0.0
    for i in range(scores.shape[0]):
        if i >= warm_up and squares > 0.0:
            spreads[i] = math.sqrt(squares / weight)
        difference = scores[i] - mean
        if i > 0:
            squares = keep * squares + difference * difference
            weight = keep * weight + 1.0
        total += scores[i]
        mean = total / (i + 1.0)
