"""Quadrature behind exact propensities: nodes, breakpoints and tabulated Beta scores."""

import numpy as np
from scipy import special

from bandit.kernels.compiling import Floats

NODES: Floats = np.array(
    [
        (-0.9602898564975362, 0.10122853629037706),
        (-0.7966664774136267, 0.22238103445337443),
        (-0.525532409916329, 0.3137066458778869),
        (-0.18343464249564978, 0.36268378337836166),
        (0.18343464249564978, 0.36268378337836166),
        (0.525532409916329, 0.3137066458778869),
        (0.7966664774136267, 0.22238103445337443),
        (0.9602898564975362, 0.10122853629037706),
    ]
)
"""Gauss-Legendre nodes and weights on [-1, 1], shape (8, 2); Abramowitz & Stegun, table 25.4."""

MARKS: Floats = np.array([-8.0, -5.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 5.0, 8.0])
"""Breakpoints of every arm's density, in standard deviations."""

MAX_INTERVALS = 512

_LAGRANGE = np.linalg.inv(np.polynomial.legendre.legvander(NODES[:, 0], 7))
_PARTIAL: Floats = np.array(
    np.polynomial.legendre.legval(
        NODES[:, 0], np.polynomial.legendre.legint(_LAGRANGE, lbnd=-1.0)
    ).T,
    dtype=np.float64,
)
"""Integral from -1 to each node of the polynomial that is 1 at one node: shape (8, 8)."""


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
    Integrated over theta with t = sin(theta)**2, which is smooth for parameters from 0.5
    (Jeffreys) upwards; intervals are cut at every arm's quantiles. Up to 46 arms: O(g k)
    incomplete beta functions. More: see ``_integrated``.
    """
    a, b = successes, failures
    if len(a) * len(MARKS) > MAX_INTERVALS:
        return _integrated(a, b)
    quantiles = special.betaincinv(a, b, special.ndtr(MARKS)[:, None])
    low, high = quantiles[0].min(), quantiles[-1].max()  # any arm may be the only one eligible
    cuts = np.unique(np.clip(np.concatenate([[low, high], quantiles.ravel()]), low, high))
    theta = np.arcsin(np.sqrt(cuts))
    half = 0.5 * np.diff(theta)[:, None]
    angle = (0.5 * (theta[1:] + theta[:-1])[:, None] + half * NODES[:, 0]).ravel()[:, None]
    weight = (half * NODES[:, 1]).ravel()[:, None]
    sine, cosine = np.sin(angle), np.cos(angle)
    log_density = (2 * a - 1) * np.log(sine) + (2 * b - 1) * np.log(cosine) - special.betaln(a, b)
    cdf = special.betainc(a, b, sine**2)
    return np.ascontiguousarray(cdf), np.ascontiguousarray(2.0 * weight * np.exp(log_density))


def _integrated(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Tabulate many arms; F is the integral of f, so no incomplete beta function is needed.

    Parameters
    ----------
    a, b : (k,)

    Notes
    -----
    O(g k) exponentials, and 8 multiplications each. In an interval f is the polynomial through
    its 8 nodes, whose integral up to every node is a fixed combination of the 8 values.
    """
    cuts = _thinned(_quantiles(a, b), 0.5 / np.sqrt(a + b))
    half = 0.5 * (cuts[:, 1] - cuts[:, 0])[:, None]
    angle = half * (1.0 + NODES[:, 0]) + cuts[:, :1]
    sine, cosine = np.log(np.sin(angle))[:, :, None], np.log(np.cos(angle))[:, :, None]
    mass = (2 * a - 1) * sine
    mass += (2 * b - 1) * cosine
    mass -= special.betaln(a, b) - np.log(2.0)
    np.exp(mass, out=mass)
    mass *= half[:, :, None]
    cdf = np.einsum("qr,irk->iqk", _PARTIAL, mass)
    mass *= NODES[:, 1, None]
    below = np.cumsum(mass.sum(axis=1), axis=0)
    cdf[1:] += below[:-1, None, :]
    g = angle.size
    return np.clip(cdf / below[-1], 0.0, 1.0).reshape(g, -1), (mass / below[-1]).reshape(g, -1)


def _quantiles(a: Floats, b: Floats) -> Floats:
    """Give the arms' quantiles in theta, shape (marks, k); nearly where theta is nearly normal."""
    middle, spread = np.arctan2(np.sqrt(a), np.sqrt(b)), 0.5 / np.sqrt(a + b)
    theta: Floats = np.clip(middle + MARKS[:, None] * spread, 0.0, 0.5 * np.pi)
    few = np.minimum(a, b) < 100.0
    exact = special.betaincinv(a[few], b[few], special.ndtr(MARKS)[:, None])
    theta[:, few] = np.arcsin(np.sqrt(exact))
    return theta


def _thinned(quantiles: Floats, scale: Floats) -> Floats:
    """Cut the line at the arms' quantiles, each only as finely as its arm asks for.

    Parameters
    ----------
    quantiles : (marks, k)
    scale : (k,)
        Widths of the arms.

    Returns
    -------
    (i, 2)
        Intervals in which an arm has mass, at most ``MAX_INTERVALS``.

    Notes
    -----
    The best of many like arms lies where theirs are rare: there the marks are denser. An arm asks
    for as fine a cut as its tail is short: Beta(1, 1) ends at 1, and Beta(0.6, 10) begins at 0
    with a density that is no polynomial.
    """
    begins, ends = np.sort(quantiles[0]), np.sort(quantiles[-1])
    widths = np.broadcast_to(scale, quantiles.shape).copy()
    np.minimum(widths[1:], np.diff(quantiles, axis=0) / np.diff(MARKS)[:, None], out=widths[1:])
    wide = np.flatnonzero(np.diff(MARKS) > 1.0)
    quantiles = np.vstack([quantiles, 0.5 * (quantiles[wide + 1] + quantiles[wide])])
    widths = np.vstack([widths, widths[wide + 1]])
    order = np.argsort(quantiles, axis=None, kind="stable")
    places, widths = quantiles.ravel()[order], widths.ravel()[order]
    share = 0.6
    while True:
        gaps, kept = (share * widths).tolist(), [float(places[0])]
        for place, gap in zip(places.tolist(), gaps, strict=True):
            if place - kept[-1] > gap:
                kept.append(place)
        cuts = np.append(kept, places[-1])
        left, right = cuts[:-1], cuts[1:]
        alive = np.searchsorted(begins, right, "left") > np.searchsorted(ends, left, "right")
        alive &= right > left
        if alive.sum() <= MAX_INTERVALS:
            return np.column_stack([left, right])[alive]
        share *= 1.25


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
