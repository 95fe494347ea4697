"""Compiled kernels: arrays in, arrays out; no objects, no I/O, no hidden random state.

A kernel checks nothing: shapes and finiteness are its caller's duty. All kernels share
this one file because Numba's disk cache does not notice an edit in another file. Features,
random numbers, folds, means and banks use only ``+ - * / sqrt`` in a fixed order, so their
bits do not depend on the platform's mathematical library; exact propensities use its erfc and
exp, so their last bits may.
"""

import math
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., object])
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Cells = NDArray[np.int32]
Bools = NDArray[np.bool_]
Words = NDArray[np.uint32]

NUMBER, LOG_NUMBER, CATEGORY, FLAG, CYCLIC = range(5)

_MASK = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_32 = np.uint64(32)


def kernel(function: F) -> F:
    """Compile the house way: lazily, cached on disk, without the GIL, IEEE arithmetic."""
    return cast("F", njit(cache=True, nogil=True, error_model="numpy")(function))


# --- fixed arithmetic -------------------------------------------------------------------


@kernel
def log(x: float) -> float:
    """Natural logarithm of a positive normal number, the same bits everywhere.

    ``2 atanh((m - 1) / (m + 1))`` by its series, with ``x = m 2**e`` and m in [0.7, 1.42].
    """
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m *= 2.0
        e -= 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    total = 0.0
    for k in range(25, 0, -2):
        total = total * z + 1.0 / k
    return 2.0 * s * total + e * 0.6931471805599453


@kernel
def sin_cos(turns: float) -> tuple[float, float]:
    """Sine and cosine of ``2 pi turns`` by Taylor series on an eighth of the circle."""
    t = turns - math.floor(turns)
    octant = int(t * 8.0 + 0.5)
    r = (t - octant * 0.125) * 6.283185307179586
    z = r * r
    s, c = 0.0, 0.0
    for k in range(18, 0, -2):
        s = 1.0 - s * z / (k * (k + 1.0))
        c = 1.0 - c * z / (k * (k - 1.0))
    s *= r
    h = 0.7071067811865476
    o = octant % 8
    if o % 2 == 1:
        s, c = (s + c) * h, (c - s) * h
    quarter = o // 2
    if quarter == 1:
        s, c = c, -s
    elif quarter == 2:
        s, c = -s, -c
    elif quarter == 3:
        s, c = -c, s
    return s, c


@kernel
def normal_quantile(p: float) -> float:
    """Inverse of the standard normal CDF for p in (0, 1), relative error below 1e-15.

    Source: Wichura, Algorithm AS 241 (PPND16), Applied Statistics 37, 1988.
    """
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        a = (
            (2.5090809287301226727e3 * r + 3.3430575583588128105e4) * r + 6.7265770927008700853e4
        ) * r + 4.5921953931549871457e4
        a = (
            ((a * r + 1.3731693765509461125e4) * r + 1.9715909503065514427e3) * r
            + 1.3314166789178437745e2
        ) * r + 3.3871328727963666080e0
        b = (
            (5.2264952788528545610e3 * r + 2.8729085735721942674e4) * r + 3.9307895800092710610e4
        ) * r + 2.1213794301586595867e4
        b = (
            ((b * r + 5.3941960214247511077e3) * r + 6.8718700749205790830e2) * r
            + 4.2313330701600911252e1
        ) * r + 1.0
        return q * a / b
    r = p if q < 0.0 else 1.0 - p
    r = math.sqrt(-log(r))
    if r <= 5.0:
        r -= 1.6
        a = (
            (7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r
            + 2.41780725177450611770e-1
        ) * r + 1.27045825245236838258e0
        a = (
            ((a * r + 3.64784832476320460504e0) * r + 5.76949722146069140550e0) * r
            + 4.63033784615654529590e0
        ) * r + 1.42343711074968357734e0
        b = (
            (1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r
            + 1.51986665636164571966e-2
        ) * r + 1.48103976427480074590e-1
        b = (
            ((b * r + 6.89767334985100004550e-1) * r + 1.67638483018380384940e0) * r
            + 2.05319162663775882187e0
        ) * r + 1.0
    else:
        r -= 5.0
        a = (
            (2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r
            + 1.24266094738807843860e-3
        ) * r + 2.65321895265761230930e-2
        a = (
            ((a * r + 2.96560571828504891230e-1) * r + 1.78482653991729133580e0) * r
            + 5.46378491116411436990e0
        ) * r + 6.65790464350110377720e0
        b = (
            (2.04426310338993978564e-15 * r + 1.42151175831644588870e-7) * r
            + 1.84631831751005468180e-5
        ) * r + 7.86869131145613259100e-4
        b = (
            ((b * r + 1.48753612908506148525e-2) * r + 1.36929880922735805310e-1) * r
            + 5.99832206555887937690e-1
        ) * r + 1.0
    x = a / b
    return -x if q < 0.0 else x


# --- random numbers by name -------------------------------------------------------------


@kernel
def philox(stream: Words, block: int) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Give four random 32-bit words: block number ``block`` of a named stream.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
    Philox4x32-10. Counter: (block, 0) and two words of the name; key: the other two.
    """
    c0, c1 = np.uint64(block) & _MASK, np.uint64(block) >> _32
    c2, c3 = np.uint64(stream[2]), np.uint64(stream[3])
    k0, k1 = np.uint64(stream[0]), np.uint64(stream[1])
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c2 = (p1 >> _32) ^ c1 ^ k0, (p0 >> _32) ^ c3 ^ k1
        c1, c3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@kernel
def to_unit(high: np.uint64, low: np.uint64) -> float:
    """Turn 64 random bits into a number in the open interval (0, 1), 53 bits fine."""
    bits = ((high << _32) | low) >> np.uint64(11)
    unit = (np.float64(bits) + 0.5) * 1.1102230246251565e-16
    return min(unit, 0.9999999999999999)  # rounding may reach 1


@kernel
def uniform(stream: Words, block: int) -> float:
    """Give the first uniform of a block, in (0, 1)."""
    w0, w1, _, _ = philox(stream, block)
    return to_unit(w0, w1)


@kernel
def fill_normals(stream: Words, first: int, out: Floats) -> None:
    """Fill ``out : (n,)`` with standard normals from blocks ``first, first + 1, ...``."""
    n = out.shape[0]
    for i in range(0, n, 2):
        w0, w1, w2, w3 = philox(stream, first + i // 2)
        out[i] = normal_quantile(to_unit(w0, w1))
        if i + 1 < n:
            out[i + 1] = normal_quantile(to_unit(w2, w3))


# --- features ---------------------------------------------------------------------------


@kernel
def encode(rows: Floats, table: Floats, width: int) -> Floats:
    """Encode contexts as feature vectors, intercept first.

    Parameters
    ----------
    rows : (n, f)
        Packed contexts, NaN where missing.
    table : (f, 6)
        Per field: kind, low (or period), high, first column, levels, missing column or -1.

    Returns
    -------
    (n, width)
    """
    out = np.zeros((rows.shape[0], width))
    for i in range(rows.shape[0]):
        out[i, 0] = 1.0
        for f in range(rows.shape[1]):
            value, kind, at = rows[i, f], int(table[f, 0]), int(table[f, 3])
            if math.isnan(value):
                out[i, int(table[f, 5])] = 1.0
            elif kind <= LOG_NUMBER:
                low, high = table[f, 1], table[f, 2]
                value = min(max(value, low), high)
                if kind == LOG_NUMBER:
                    low, high, value = log(1.0 + low), log(1.0 + high), log(1.0 + value)
                out[i, at] = 2.0 * ((value - low) / (high - low)) - 1.0
            elif kind == CATEGORY:
                out[i, at + (int(value) if value >= 0 else int(table[f, 4]))] = 1.0
            elif kind == FLAG:
                out[i, at] = value
            else:
                s, c = sin_cos(value / table[f, 1])
                out[i, at], out[i, at + 1] = s, c
    return out


# --- folding: additive statistics, one outcome at a time, in order ----------------------


@kernel
def fold_dense(
    x: Floats, block: Ints, reward: Floats, weight: Floats, p: Floats, h: Floats, s: Floats
) -> None:
    """Add outcomes of a disjoint model: each touches the weights of one block.

    Parameters
    ----------
    x : (n, d)
        Features.
    block : (n,)
        Which block each outcome informs.
    reward, weight : (n,)
        What was earned, and how much it counts.
    p : (b, d, d)
        Sum of ``w x x'``, lower triangle; changed in place.
    h : (b, d)
        Sum of ``w r x``; changed in place.
    s : (b, 2)
        Sums of ``w`` and ``w r r``; changed in place.

    Notes
    -----
    O(n d**2).
    """
    d = x.shape[1]
    for t in range(x.shape[0]):
        b, r, w = block[t], reward[t], weight[t]
        for i in range(d):
            wx = w * x[t, i]
            h[b, i] += wx * r
            for j in range(i + 1):
                p[b, i, j] += wx * x[t, j]
        s[b, 0] += w
        s[b, 1] += w * r * r


@kernel
def fold_sparse(
    x: Floats,
    action: Ints,
    reward: Floats,
    weight: Floats,
    cells: Cells,
    offsets: Ints,
    crossed: Bools,
    p: Floats,
    h: Floats,
    s: Floats,
) -> None:
    """Add outcomes of a joint model: each touches one cell of every term.

    Parameters
    ----------
    x : (n, d)
    action : (n,)
    reward, weight : (n,)
    cells : (t, k)
        Cell of every action in each term.
    offsets : (t,)
        First weight of each term.
    crossed : (t,)
        Whether a term's cell holds d weights (crossed with the context) or one.
    p : (1, m, m)
    h : (1, m)
    s : (1, 2)
        As in ``fold_dense``; changed in place.

    Notes
    -----
    O(n z**2) for z non-zero features of an action.
    """
    d, terms = x.shape[1], cells.shape[0]
    index = np.empty(terms * d, dtype=np.int64)
    value = np.empty(terms * d)
    for t in range(x.shape[0]):
        n = 0
        for j in range(terms):
            cell = cells[j, action[t]]
            if crossed[j]:
                for i in range(d):
                    if x[t, i] != 0.0:
                        index[n], value[n] = offsets[j] + cell * d + i, x[t, i]
                        n += 1
            else:
                index[n], value[n] = offsets[j] + cell, 1.0
                n += 1
        r, w = reward[t], weight[t]
        for i in range(n):
            wx = w * value[i]
            h[0, index[i]] += wx * r
            row = p[0, index[i]]
            for j in range(i + 1):
                row[index[j]] += wx * value[j]
        s[0, 0] += w
        s[0, 1] += w * r * r


@kernel
def fold_counts(action: Ints, reward: Floats, counts: Floats) -> None:
    """Add outcomes in [0, 1] to ``counts : (k, 2)``, successes and failures."""
    for t in range(action.shape[0]):
        counts[action[t], 0] += reward[t]
        counts[action[t], 1] += 1.0 - reward[t]


# --- publishing: from statistics to what a decision reads -------------------------------


@kernel
def cholesky(p: Floats, prior: Floats) -> Floats:
    """Factor ``p + diag(prior)``; only the lower triangle of ``p : (m, m)`` is read.

    Returns
    -------
    (m, m)
        Lower triangular L with ``L @ L.T`` the sum.

    Notes
    -----
    O(m**3 / 3), column by column, so that the inner loop vectorises in a fixed order.
    """
    m = p.shape[0]
    upper = np.zeros((m, m))
    for i in range(m):
        for j in range(i, m):
            upper[i, j] = p[j, i]
        upper[i, i] += prior[i]
    for k in range(m):
        pivot = math.sqrt(upper[k, k])
        for j in range(k, m):
            upper[k, j] /= pivot
        for i in range(k + 1, m):
            f = upper[k, i]
            if f != 0.0:
                for j in range(i, m):
                    upper[i, j] -= f * upper[k, j]
    return upper.T.copy()


@kernel
def solve_mean(lower: Floats, h: Floats) -> tuple[Floats, float]:
    """Solve ``L L' mean = h``; also give ``mean' L L' mean``, shapes (m, m) and (m,)."""
    m = h.shape[0]
    y = h.copy()
    explained = 0.0
    for i in range(m):
        for j in range(i):
            y[i] -= lower[i, j] * y[j]
        y[i] /= lower[i, i]
        explained += y[i] * y[i]
    for i in range(m - 1, -1, -1):
        y[i] /= lower[i, i]
        for j in range(i):
            y[j] -= lower[i, j] * y[i]
    return y, explained


@kernel
def invert_lower(lower: Floats) -> Floats:
    """Solve ``L z = I`` and pack z by rows of its lower triangle, shape (m (m + 1) / 2,)."""
    m = lower.shape[0]
    z = np.zeros((m, m))
    packed = np.empty(m * (m + 1) // 2)
    n = 0
    for i in range(m):
        z[i, i] = 1.0
        for j in range(i):
            f = lower[i, j]
            for c in range(j + 1):
                z[i, c] -= f * z[j, c]
        for c in range(i + 1):
            z[i, c] /= lower[i, i]
            packed[n] = z[i, c]
            n += 1
    return packed


@kernel
def draw_bank(mean: Floats, lower: Floats, scale: float, stream: Words, draws: int) -> Floats:
    """Draw weights from N(mean, scale**2 (L L')**-1), one column a draw.

    Returns
    -------
    (m, draws)

    Notes
    -----
    O(draws m**2 / 2); weight i uses blocks ``i * ceil(draws / 2)`` and on of the stream.
    """
    m = mean.shape[0]
    bank = np.empty((m, draws))
    blocks = (draws + 1) // 2
    for i in range(m):
        fill_normals(stream, i * blocks, bank[i])
    for i in range(m - 1, -1, -1):
        row = bank[i]
        for t in range(draws):
            row[t] /= lower[i, i]
        for j in range(i):
            f = lower[i, j]
            if f != 0.0:
                other = bank[j]
                for t in range(draws):
                    other[t] -= f * row[t]
    for i in range(m):
        row = bank[i]
        for t in range(draws):
            row[t] = mean[i] + scale * row[t]
    return bank


# --- scoring ----------------------------------------------------------------------------


@kernel
def score_moments(x: Floats, mean: Floats, root: Floats, centre: Floats, spread: Floats) -> None:
    """Mean and standard deviation of every arm's score in a disjoint model.

    Parameters
    ----------
    x : (d,)
    mean : (d, k)
        Posterior means, arm-minor.
    root : (d (d + 1) / 2, k)
        Packed triangular roots of the covariances, arm-minor: ``sd**2 = |root x|**2``.
    centre, spread : (k,)
        Filled.

    Notes
    -----
    O(k d**2 / 2), vectorised over arms: each arm's sums keep their order.
    """
    d, k = mean.shape
    part = np.empty(k)
    centre[:] = 0.0
    spread[:] = 0.0
    n = 0
    for i in range(d):
        row, xi = mean[i], x[i]
        for a in range(k):
            centre[a] += xi * row[a]
        part[:] = 0.0
        for j in range(i + 1):
            row, xj = root[n], x[j]
            for a in range(k):
                part[a] += xj * row[a]
            n += 1
        for a in range(k):
            spread[a] += part[a] * part[a]
    for a in range(k):
        spread[a] = math.sqrt(spread[a])


@kernel
def plane_scores(
    x: Floats,
    bank: Floats,
    offsets: Ints,
    crossed: Bools,
    counts: Ints,
    homes: Cells,
    places: Cells,
    sizes: Ints,
    out: Floats,
) -> None:
    """Score every cell of every plane under every draw: the sum of the plane's terms.

    Parameters
    ----------
    x : (d,)
    bank : (m, draws)
    offsets, crossed, counts : (t,)
        First weight, whether crossed with the context, and number of cells of every term.
    homes : (t,)
        Plane of each term, or -1 for one that is the same for every action.
    places : (t, max(sizes))
        Cell of a term in each cell of its plane.
    sizes : (p,)
        Cells of each plane.
    out : (sum(sizes), draws)
        Filled.

    Notes
    -----
    O(draws (non-zero features of all cells + cells of all planes per term)).
    """
    d, draws = x.shape[0], bank.shape[1]
    level = np.empty(draws)
    begun = np.zeros(sizes.shape[0], dtype=np.bool_)
    for j in range(homes.shape[0]):
        home = homes[j]
        if home < 0:
            continue
        start = sizes[:home].sum()
        for cell in range(counts[j]):
            weights = bank[offsets[j] + cell]
            if crossed[j]:
                weights = level
                level[:] = 0.0
                for i in range(d):
                    xi = x[i]  # held in a register: `level` might alias x
                    if xi != 0.0:
                        row = bank[offsets[j] + cell * d + i]
                        for t in range(draws):
                            level[t] += xi * row[t]
            for c in range(sizes[home]):
                if places[j, c] == cell:
                    row = out[start + c]
                    if begun[home]:
                        for t in range(draws):
                            row[t] += weights[t]
                    else:
                        row[:] = weights
        begun[home] = True


@kernel
def best_actions(
    scores: Floats, cells: Cells, sizes: Ints, eligible: Bools, best: Floats, chosen: Ints
) -> None:
    """Find the best eligible action under every draw, the first among equals.

    Parameters
    ----------
    scores : (sum(sizes), draws)
        From ``plane_scores``.
    cells : (p, k)
        Cell of every action in each plane; at most three planes.
    best, chosen : (draws,)
        Filled with the highest score and its action.
    """
    draws, planes = scores.shape[1], cells.shape[0]
    best[:] = -np.inf
    chosen[:] = -1
    second = sizes[0]
    third = second + (sizes[1] if planes > 1 else 0)
    for a in range(eligible.shape[0]):
        if not eligible[a]:
            continue
        one = scores[cells[0, a]]
        two = scores[second + cells[1, a]] if planes > 1 else one
        three = scores[third + cells[2, a]] if planes > 2 else one
        for t in range(draws):
            score = one[t]
            if planes > 1:
                score += two[t]
            if planes > 2:
                score += three[t]
            if score > best[t]:
                best[t], chosen[t] = score, a


# --- propensities -----------------------------------------------------------------------


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


# --- deciding: one row or thousands, the same bits --------------------------------------


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


@kernel
def decide_independent(
    x: Floats,
    which: Ints,
    masks: Bools,
    streams: Words,
    mean: Floats,
    root: Floats,
    nodes: Floats,
    marks: Floats,
    floor: float,
) -> tuple[Ints, Floats]:
    """Thompson sampling among independent arms: exact propensities, then one draw from them.

    Parameters
    ----------
    x : (n, d)
    which : (n,)
        Row of ``masks`` that holds each decision's eligible actions.
    masks : (e, k)
    streams : (n, 4)
    mean, root
        As in ``score_moments``.
    nodes, marks
        As in ``normal_propensities``.

    Returns
    -------
    (n,) and (n, k)
        Actions and all propensities.
    """
    n, k = x.shape[0], masks.shape[1]
    actions, p = np.empty(n, dtype=np.int64), np.zeros((n, k))
    centre, spread = np.empty(k), np.empty(k)
    for t in range(n):
        eligible = masks[which[t]]
        score_moments(x[t], mean, root, centre, spread)
        if spread.max() > 0.0:
            normal_propensities(centre, spread, eligible, nodes, marks, p[t])
        else:
            p[t, best_of(centre, eligible)] = 1.0
        apply_floor(eligible, floor, p[t])
        actions[t] = pick(p[t], uniform(streams[t], 0))
    return actions, p


@kernel
def draw_independent(
    x: Floats,
    which: Ints,
    masks: Bools,
    streams: Words,
    mean: Floats,
    root: Floats,
    floor: float,
) -> Ints:
    """Draw as ``decide_independent`` does in law, without computing a propensity."""
    n, k = x.shape[0], masks.shape[1]
    actions = np.empty(n, dtype=np.int64)
    centre, spread, z = np.empty(k), np.empty(k), np.empty(k)
    for t in range(n):
        eligible = masks[which[t]]
        actions[t], _ = floor_draw(eligible, floor, uniform(streams[t], 0))
        if actions[t] < 0:
            score_moments(x[t], mean, root, centre, spread)
            fill_normals(streams[t], 1, z)
            for a in range(k):
                centre[a] += spread[a] * z[a]
            actions[t] = best_of(centre, eligible)
    return actions


@kernel
def best_of(scores: Floats, eligible: Bools) -> int:
    """Give the best eligible index, the first among equals."""
    best, chosen = -np.inf, -1
    for a in range(scores.shape[0]):
        if eligible[a] and (chosen < 0 or scores[a] > best):
            best, chosen = scores[a], a
    return chosen


@kernel
def decide_joint(
    x: Floats,
    which: Ints,
    masks: Bools,
    streams: Words,
    bank: Floats,
    offsets: Ints,
    crossed: Bools,
    counts: Ints,
    homes: Cells,
    places: Cells,
    cells: Cells,
    sizes: Ints,
    floor: float,
) -> tuple[Ints, Floats]:
    """Thompson sampling with shared weights: shares of wins in a sample bank, then one draw.

    Parameters
    ----------
    x, which, masks, streams
        As in ``decide_independent``.
    bank : (m, draws)
        Joint draws of all weights, fixed for a snapshot.
    offsets, crossed, counts, homes, places, sizes
        The terms and their planes, as in ``plane_scores``.
    cells
        As in ``best_actions``.

    Returns
    -------
    (n,) and (n, k)
        Actions and all propensities.

    Notes
    -----
    O(draws (non-zero features of all cells + k t)) a row.
    """
    n, k, draws = x.shape[0], masks.shape[1], bank.shape[1]
    actions, p = np.empty(n, dtype=np.int64), np.zeros((n, k))
    scores = np.empty((sizes.sum(), draws))
    best, chosen = np.empty(draws), np.empty(draws, dtype=np.int64)
    for t in range(n):
        eligible = masks[which[t]]
        plane_scores(x[t], bank, offsets, crossed, counts, homes, places, sizes, scores)
        best_actions(scores, cells, sizes, eligible, best, chosen)
        for winner in chosen:
            if winner >= 0:
                p[t, winner] += 1.0 / draws
        apply_floor(eligible, floor, p[t])
        actions[t] = pick(p[t], uniform(streams[t], 0))
    return actions, p


@kernel
def draw_joint(
    x: Floats,
    which: Ints,
    masks: Bools,
    streams: Words,
    bank: Floats,
    offsets: Ints,
    crossed: Bools,
    counts: Ints,
    homes: Cells,
    places: Cells,
    cells: Cells,
    sizes: Ints,
    floor: float,
) -> Ints:
    """Draw as ``decide_joint`` does in law: one member of the bank, its best action."""
    n, draws = x.shape[0], bank.shape[1]
    actions = np.empty(n, dtype=np.int64)
    scores = np.empty((sizes.sum(), 1))
    best, chosen = np.empty(1), np.empty(1, dtype=np.int64)
    for t in range(n):
        eligible = masks[which[t]]
        actions[t], u = floor_draw(eligible, floor, uniform(streams[t], 0))
        if actions[t] < 0:
            member = min(int(u * draws), draws - 1)
            column = bank[:, member].copy().reshape(-1, 1)
            plane_scores(x[t], column, offsets, crossed, counts, homes, places, sizes, scores)
            best_actions(scores, cells, sizes, eligible, best, chosen)
            actions[t] = chosen[0]
    return actions


@kernel
def decide_tabulated(
    which: Ints, masks: Bools, streams: Words, cdf: Floats, density: Floats, floor: float
) -> tuple[Ints, Floats]:
    """Thompson sampling without context among arms tabulated at common nodes."""
    n, k = which.shape[0], masks.shape[1]
    actions, p = np.empty(n, dtype=np.int64), np.zeros((n, k))
    for t in range(n):
        eligible = masks[which[t]]
        if t > 0 and which[t] == which[t - 1]:
            p[t] = p[t - 1]
        else:
            table_propensities(cdf, density, eligible, p[t])
            apply_floor(eligible, floor, p[t])
        actions[t] = pick(p[t], uniform(streams[t], 0))
    return actions, p


@kernel
def decide_uniform(which: Ints, masks: Bools, streams: Words) -> tuple[Ints, Floats]:
    """Draw uniformly among the eligible."""
    n, k = which.shape[0], masks.shape[1]
    actions, p = np.empty(n, dtype=np.int64), np.zeros((n, k))
    for t in range(n):
        eligible = masks[which[t]]
        share = 1.0 / eligible.sum()
        for a in range(k):
            if eligible[a]:
                p[t, a] = share
        actions[t] = pick_uniform(eligible, uniform(streams[t], 0))
    return actions, p
