"""The probability of every action, and one draw from it."""

import math

import numpy as np

from bandit.kernels.compiling import Bools, Floats, kernel


@kernel
def add_best(cdf: Floats, density: Floats, eligible: Bools, left: Floats, out: Floats) -> None:
    """Add one node of P(a is best) = integral of f_a prod_{i != a} F_i.

    Parameters
    ----------
    cdf, density : (k,)
        F and f (times the quadrature weight) of every arm at the node.
    left : (k,)
        Scratch.
    out : (k,)
        Added to.

    Notes
    -----
    O(k) by products from both ends: no division by a CDF that may be zero.
    """
    k = cdf.shape[0]
    product = 1.0
    for a in range(k):
        left[a] = product
        if eligible[a]:
            product *= cdf[a]
    product = 1.0
    for a in range(k - 1, -1, -1):
        if eligible[a]:
            out[a] += density[a] * left[a] * product
            product *= cdf[a]


@kernel
def normal_propensities(
    centre: Floats, spread: Floats, eligible: Bools, nodes: Floats, marks: Floats, out: Floats
) -> None:
    """P(arm is best) for independent normal scores, by piecewise Gauss-Legendre.

    Parameters
    ----------
    centre, spread : (k,)
        Means and positive standard deviations.
    eligible : (k,)
    nodes : (q, 2)
        Nodes and weights on [-1, 1].
    marks : (b,)
        Breakpoints in standard deviations of every arm.
    out : (k,)
        Filled; sums to 1 before rounding.

    Notes
    -----
    O(b k q k). Source: integral of f_a prod F_i, split where any arm's density turns, since
    one rule over all fails when a new arm's spread dwarfs a mature one's.
    """
    k = centre.shape[0]
    out[:] = 0.0
    low, high = -np.inf, -np.inf
    for a in range(k):
        if eligible[a]:
            low = max(low, centre[a] - 8.5 * spread[a])
            high = max(high, centre[a] + 8.5 * spread[a])
    reach = np.zeros(k, dtype=np.bool_)
    cuts, scale = np.empty(k * marks.shape[0]), np.empty(k * marks.shape[0])
    n = 0
    for a in range(k):
        reach[a] = eligible[a] and centre[a] + 8.5 * spread[a] > low
        if reach[a]:
            for mark in marks:
                cut = centre[a] + spread[a] * mark
                if low < cut < high:
                    cuts[n], scale[n] = cut, spread[a]
                    n += 1
    order = np.argsort(cuts[:n])
    kept = np.empty(n + 2)
    kept[0] = low
    n = 1
    for c in order:  # a cut is only as fine as the arm that asks for it
        if cuts[c] - kept[n - 1] > 0.6 * scale[c]:
            kept[n] = cuts[c]
            n += 1
    kept[n] = high
    cuts = kept[: n + 1]
    cdf, density, left = np.zeros(k), np.zeros(k), np.empty(k)
    for c in range(cuts.shape[0] - 1):
        half = 0.5 * (cuts[c + 1] - cuts[c])
        if half <= 0.0:
            continue
        middle = 0.5 * (cuts[c + 1] + cuts[c])
        for q in range(nodes.shape[0]):
            t, w = middle + half * nodes[q, 0], half * nodes[q, 1]
            for a in range(k):
                if reach[a]:
                    z = (t - centre[a]) / spread[a]
                    cdf[a] = 0.5 * math.erfc(-z * 0.7071067811865476)
                    density[a] = w * math.exp(-0.5 * z * z) * 0.3989422804014327 / spread[a]
            add_best(cdf, density, reach, left, out)


@kernel
def table_propensities(cdf: Floats, density: Floats, eligible: Bools, out: Floats) -> None:
    """P(arm is best) for independent scores tabulated at common nodes.

    Parameters
    ----------
    cdf, density : (g, k)
        F and f (times the quadrature weight) at every node.
    eligible : (k,)
    out : (k,)
        Filled.
    """
    out[:] = 0.0
    left = np.empty(out.shape[0])
    for g in range(cdf.shape[0]):
        add_best(cdf[g], density[g], eligible, left, out)


@kernel
def apply_floor(eligible: Bools, floor: float, out: Floats) -> None:
    """Scale probabilities to sum to 1, then mix: ``p = floor + (1 - n floor) p`` where eligible.

    ``out : (k,)`` is changed in place. Where nothing sums (every arm a tie at zero width),
    the first eligible action takes all.
    """
    total, n, first = 0.0, 0, -1
    for a in range(out.shape[0]):
        if eligible[a]:
            total += out[a]
            n += 1
            if first < 0:
                first = a
    for a in range(out.shape[0]):
        if not eligible[a]:
            out[a] = 0.0
        else:
            share = out[a] / total if total > 0.0 else (1.0 if a == first else 0.0)
            out[a] = floor + (1.0 - n * floor) * share


@kernel
def pick(p: Floats, u: float) -> int:
    """Draw an index from probabilities ``p : (k,)`` with a uniform in (0, 1)."""
    total, last = 0.0, -1
    for a in range(p.shape[0]):
        if p[a] > 0.0:
            total += p[a]
            last = a
            if u < total:
                return a
    return last


@kernel
def pick_uniform(eligible: Bools, u: float) -> int:
    """Draw one eligible index, each equally likely."""
    n = 0
    for a in range(eligible.shape[0]):
        n += eligible[a]
    wanted = min(int(u * n), n - 1)
    for a in range(eligible.shape[0]):
        if eligible[a]:
            if wanted == 0:
                return a
            wanted -= 1
    return -1


@kernel
def floor_draw(eligible: Bools, floor: float, u: float) -> tuple[int, float]:
    """Spend one uniform on the floor: the action it falls on, or -1 and the uniform left."""
    n = 0
    for a in range(eligible.shape[0]):
        n += eligible[a]
    mixed = n * floor
    if u < mixed:
        return pick_uniform(eligible, u / mixed), 0.0
    return -1, (u - mixed) / (1.0 - mixed)
