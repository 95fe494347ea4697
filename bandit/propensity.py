"""Quadrature behind exact propensities: nodes, breakpoints and tabulated Beta scores."""

import numpy as np
from scipy import special

from bandit.kernels.compiling import Floats

NODES: Floats = np.column_stack(np.polynomial.legendre.leggauss(8))
"""Gauss-Legendre nodes and weights on [-1, 1], shape (8, 2)."""

MARKS: Floats = np.array([-8.0, -5.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 5.0, 8.0])
"""Breakpoints of every arm's density, in standard deviations."""

MAX_INTERVALS = 512


def beta_table(successes: Floats, failures: Floats) -> tuple[Floats, Floats]:
    """Tabulate Beta scores at common nodes.

    Parameters
    ----------
    successes, failures : (k,)
        Parameters of every arm's Beta distribution, at least 0.5.

    Returns
    -------
    cdf, density : (g, k)
        F and f times the quadrature weight at every node.

    Notes
    -----
    O(g k) incomplete beta functions, at publishing. Integrated over theta with
    t = sin(theta)**2, which is smooth for parameters from 0.5 (Jeffreys) upwards; intervals
    are cut at every arm's quantiles, thinned to at most 512.
    """
    a, b = successes, failures
    tails = special.ndtr(MARKS)[:, None]
    quantiles = special.betaincinv(a, b, tails)
    low, high = quantiles[0].min(), quantiles[-1].max()  # any arm may be the only one eligible
    cuts = np.unique(np.clip(np.concatenate([[low, high], quantiles.ravel()]), low, high))
    if len(cuts) > MAX_INTERVALS + 1:
        cuts = cuts[np.round(np.linspace(0, len(cuts) - 1, MAX_INTERVALS + 1)).astype(int)]
    theta = np.arcsin(np.sqrt(cuts))
    half = 0.5 * np.diff(theta)[:, None]
    angle = (0.5 * (theta[1:] + theta[:-1])[:, None] + half * NODES[:, 0]).ravel()[:, None]
    weight = (half * NODES[:, 1]).ravel()[:, None]
    sine, cosine = np.sin(angle), np.cos(angle)
    log_density = (2 * a - 1) * np.log(sine) + (2 * b - 1) * np.log(cosine) - special.betaln(a, b)
    cdf = special.betainc(a, b, sine**2)
    return np.ascontiguousarray(cdf), np.ascontiguousarray(2.0 * weight * np.exp(log_density))


def rank_table(scores: Floats) -> tuple[Floats, Floats]:
    """Tabulate arms of zero width: the best is the highest score, the first among equals.

    Returns
    -------
    cdf, density : (k, k)
        One node per arm, at which only it has mass and only lower-ranked arms lie below.
    """
    order = np.lexsort((np.arange(len(scores)), -scores))
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = np.arange(len(scores))
    return (rank[:, None] < rank[None, :]).astype(np.float64), np.eye(len(scores))
