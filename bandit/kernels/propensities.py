"""The probability of every action, and one draw from it."""

import numpy as np

from bandit.kernels.arithmetic import exp, normal_tail
from bandit.kernels.compiling import Bools, Floats, Ints, kernel


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
def rivals(
    centre: Floats, spread: Floats, eligible: Bools, reach: float, low: float
) -> tuple[Ints, Floats]:
    """List the eligible arms that can win, highest upper end first, and those upper ends.

    An arm whose ``centre + reach * spread`` lies below ``low`` never wins.
    """
    k = centre.shape[0]
    index, upper = np.empty(k, dtype=np.int64), np.empty(k)
    n = 0
    for a in range(k):
        top = centre[a] + reach * spread[a]
        if eligible[a] and top > low:
            i = n
            while i > 0 and upper[i - 1] < top:
                upper[i], index[i] = upper[i - 1], index[i - 1]
                i -= 1
            upper[i], index[i] = top, a
            n += 1
    return index[:n], upper[:n]


@kernel
def sort_pairs(key: Floats, value: Floats) -> None:
    """Sort by ``key : (n,)``, carrying ``value : (n,)``: Shell's sort, in place.

    Notes
    -----
    O(n**1.3). NumPy's own would take a second to compile before a process's first decision.
    """
    n = key.shape[0]
    gap = 1
    while gap < n:
        gap = 3 * gap + 1
    while gap > 1:
        gap //= 3
        for i in range(gap, n):
            k, v, j = key[i], value[i], i
            while j >= gap and key[j - gap] > k:
                key[j], value[j] = key[j - gap], value[j - gap]
                j -= gap
            key[j], value[j] = k, v


@kernel
def intervals(
    centre: Floats, spread: Floats, index: Ints, marks: Floats, low: float, high: float
) -> Floats:
    """Cut [low, high] where any listed arm's density turns, no finer than the arm asks for."""
    n = 0
    cuts = np.empty(index.shape[0] * marks.shape[0])
    scale = np.empty(cuts.shape[0])
    for a in index:
        for mark in marks:
            cut = centre[a] + spread[a] * mark
            if low < cut < high:
                cuts[n], scale[n] = cut, spread[a]
                n += 1
    sort_pairs(cuts[:n], scale[:n])
    kept = np.empty(n + 2)
    kept[0] = low
    ends = 1
    for c in range(n):
        if cuts[c] - kept[ends - 1] > 0.6 * scale[c]:
            kept[ends] = cuts[c]
            ends += 1
    kept[ends] = high
    return kept[: ends + 1]


@kernel
def normal_propensities(
    centre: Floats, spread: Floats, eligible: Bools, nodes: Floats, marks: Floats, out: Floats
) -> None:
    """P(arm is best) for independent normal scores, by piecewise Gauss-Legendre.

    Parameters
    ----------
    centre, spread : (k,)
        Means and standard deviations, of which one is positive; each is taken to be at least
        1e-10 of the largest number among them.
    eligible : (k,)
    nodes : (q, 2)
        Nodes and weights on [-1, 1].
    marks : (b,)
        Breakpoints in standard deviations of every arm.
    out : (k,)
        Filled; sums to 1 before rounding.

    Notes
    -----
    O(b k q k), over blocks of 64 nodes so that every loop vectorises. Source: integral of
    f_a prod F_i, split where any arm's density turns, since one rule over all fails when a
    new arm's spread dwarfs a mature one's. Products run from both ends: no division by a CDF
    that may be zero.
    """
    k, block, reach = centre.shape[0], 64, 8.5
    out[:] = 0.0
    largest = 0.0
    for a in range(k):
        if eligible[a]:
            largest = max(largest, abs(centre[a]), spread[a])
    spread = np.maximum(spread, 1e-10 * largest)  # narrower, nodes would fall between numbers
    low, high = -np.inf, -np.inf
    for a in range(k):
        if eligible[a]:
            low = max(low, centre[a] - reach * spread[a])
            high = max(high, centre[a] + reach * spread[a])
    index, upper = rivals(centre, spread, eligible, reach, low)
    ends = intervals(centre, spread, index, marks, low, high)
    per = nodes.shape[0]
    at, weight = np.empty((ends.shape[0] - 1) * per), np.empty((ends.shape[0] - 1) * per)
    for c in range(ends.shape[0] - 1):
        half, middle = 0.5 * (ends[c + 1] - ends[c]), 0.5 * (ends[c + 1] + ends[c])
        for q in range(per):
            at[c * per + q] = middle + half * nodes[q, 0]
            weight[c * per + q] = half * nodes[q, 1] * 0.3989422804014327
    m = index.shape[0]
    cdf, density = np.empty((m, block)), np.empty((m, block))
    total, product = np.zeros((m, block)), np.empty(block)
    for start in range(0, at.shape[0], block):
        t, w = at[start : start + block], weight[start : start + block]
        others = product[: t.shape[0]]
        while m > 0 and upper[m - 1] <= t[0]:
            m -= 1  # from here on this arm lies below every node
        others[:] = 1.0
        for i in range(m):
            centre_i, scale = centre[index[i]], 1.0 / spread[index[i]]
            f, d = cdf[i], density[i]
            for g in range(t.shape[0]):
                z = (t[g] - centre_i) * scale
                peak = exp(-0.5 * z * z)
                tail = normal_tail(abs(z), peak)
                f[g] = tail if z < 0.0 else 1.0 - tail
                d[g] = peak * scale * w[g] * others[g]
                others[g] *= f[g]
        others[:] = 1.0
        for i in range(m - 1, -1, -1):
            f, d, sums = cdf[i], density[i], total[i]
            for g in range(t.shape[0]):
                sums[g] += d[g] * others[g]
                others[g] *= f[g]
    for i in range(index.shape[0]):
        for g in range(block):
            out[index[i]] += total[i, g]


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
