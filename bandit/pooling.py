"""Pooled priors: what the levels of a factor have in common, fitted from their statistics.

Statistics never hold the prior, so it can be fitted anew whenever a belief is published: a pure
function of the statistics. A level without outcomes then starts from what the others taught.
"""

from typing import NamedTuple

import numpy as np

from bandit.kernels import pooling
from bandit.kernels.compiling import Floats

ROUNDS = 8
"""Rounds of the fixed point; each brings the prior's variance about a digit closer."""

STRENGTHS: Floats = 10.0 ** np.arange(0.0, 6.5, 0.5)
"""Strengths of a Beta prior that a fit begins with, from the least to the largest allowed."""


class Prior(NamedTuple):
    """Independent normal priors of the weights in every block.

    Attributes
    ----------
    mean : (b, m)
        In the reward's unit.
    precision : (b, m)
        In units of the noise precision.
    """

    mean: Floats
    precision: Floats


def declared_prior(precision: Floats, blocks: int) -> Prior:
    """Give every block the declared precision, shape (m,), around 0."""
    shape = blocks, len(precision)
    return Prior(np.zeros(shape), np.broadcast_to(precision, shape))


def pooled_prior(  # noqa: PLR0913  statistics, then what is believed of the noise
    precision: Floats,
    shift: Floats,
    sums: Floats,
    declared: Floats,
    *,
    variance: float | None = None,
    shape: float = 1.0,
    scale: float = 0.1,
    rounds: int = ROUNDS,
) -> Prior:
    """Fit the prior that all blocks share; see ``docs/math/pooled-priors.md``.

    Parameters
    ----------
    precision : (b, m, m)
        Sum of ``x x'`` per block, lower triangle, without the prior.
    shift : (b, m)
        Sum of ``r x``.
    sums : (b, 2)
        Number of rewards and sum of their squares; used only to learn the noise.
    declared : (m,)
        Precision of the declared prior, in units of the noise precision.
    variance
        Known noise variance (1 where statistics are in its units already); None learns it.
    shape, scale
        Inverse-gamma prior of the noise variance when it is learned.
    rounds
        Of the fixed point.

    Returns
    -------
    Prior
        The same for all blocks; the declared one where no block has data.

    Notes
    -----
    O(rounds b m**3), blocks without data excepted. Deterministic, to the bit.
    """
    noise = (variance or 0.0, shape, scale)
    mean, spread = pooling.fit_blocks(precision, shift, sums, 1.0 / declared, noise, rounds)
    size = shift.shape
    if not (np.isfinite(mean).all() and np.isfinite(spread).all()):
        return declared_prior(declared, len(shift))  # singular: nothing was learned of it
    return Prior(np.broadcast_to(mean, size), np.broadcast_to(1.0 / spread, size))


def pooled_beta(counts: Floats, declared: tuple[float, float]) -> tuple[float, float]:
    """Fit the Beta prior that all arms share, by the beta-binomial marginal likelihood.

    Parameters
    ----------
    counts : (k, 2)
        Successes and failures of every arm, without the prior; fractions are allowed.
    declared : (successes, failures)
        Centre of the weak hyper-prior; the result where no arm has counts.

    Returns
    -------
    float, float
        Pseudo-counts, at least 0.5 each and at most 1e6 together.

    Notes
    -----
    O(k) gamma functions, about 150 times. Deterministic, to the bit.
    """
    if not counts.any():
        return declared
    strength = declared[0] + declared[1]
    prior = np.array([declared[0] / strength, strength])
    mean, strength = pooling.fit_beta(counts, prior, STRENGTHS)
    return max(mean * strength, 0.5), max(strength - mean * strength, 0.5)
