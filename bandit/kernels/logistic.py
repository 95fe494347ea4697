"""Logistic likelihoods: mode and curvature of a posterior, and fewer rows that give the same.

Outcomes of a block come as rows ``x : (n, d)``, with ``base : (n, t)``, the first weight that a row
multiplies in each of t terms, ``load : (n, t)``, by what (1, or a level's attribute), and
``crossed : (t,)``, whether a term holds d weights for a row (crossed with the context) or one.
``phi`` is what that spells out: m numbers, z of them not zero.
"""

import numpy as np

from bandit.kernels import arithmetic, factors
from bandit.kernels.compiling import Bools, Floats, Ints, kernel

MAX_STEPS = 100
STILL = 3e-3
SAFE = 1.5
SHARES = 64
SPARE = 0.01
ROUNDING = 1e-13


@kernel
def add_successes(
    x: Floats, base: Ints, load: Floats, crossed: Bools, block: Ints, success: Floats, shift: Floats
) -> None:
    """Add ``success * phi`` of every outcome to ``shift : (b, m)``, in order."""
    for t in range(x.shape[0]):
        row = shift[block[t]]
        for j in range(crossed.shape[0]):
            at, s = base[t, j], success[t] * load[t, j]
            if crossed[j]:
                for i in range(x.shape[1]):
                    row[at + i] += s * x[t, i]
            else:
                row[at] += s


@kernel
def score(x: Floats, base: Ints, load: Floats, crossed: Bools, w: Floats, out: Floats) -> None:
    """Fill ``out : (n,)`` with ``phi . w`` of every row, w of shape (m,)."""
    for t in range(x.shape[0]):
        total = 0.0
        for j in range(crossed.shape[0]):
            at, f = base[t, j], load[t, j]
            if crossed[j]:
                for i in range(x.shape[1]):
                    total += (f * x[t, i]) * w[at + i]
            else:
                total += f * w[at]
        out[t] = total


@kernel
def respond(eta: Floats, weight: Floats, slope: Floats, curve: Floats) -> None:
    """Fill ``slope`` and ``curve`` with the derivatives of ``weight * log(1 + exp(eta))``."""
    for t in range(eta.shape[0]):
        e = arithmetic.exp(-abs(eta[t]))
        likelier = 1.0 / (1.0 + e)
        slope[t] = weight[t] * (likelier if eta[t] >= 0.0 else e * likelier)
        curve[t] = weight[t] * e * likelier * likelier


@kernel
def accumulate(
    x: Floats,
    base: Ints,
    load: Floats,
    crossed: Bools,
    slope: Floats,
    curve: Floats,
    g: Floats,
    p: Floats,
) -> None:
    """Add ``slope * phi`` to ``g : (m,)`` and ``curve * phi phi'`` to ``p : (m, m)``, below.

    Notes
    -----
    O(n z**2 / 2), in runs along x so that the inner loop vectorises in a fixed order; four
    rows at a time where x holds all weights.
    """
    n, d = x.shape
    done = 0
    if g.shape[0] == d and crossed.shape[0] == 1 and crossed[0] and np.all(load == 1.0):
        for t in range(0, n - 3, 4):
            v0, v1, v2, v3 = x[t], x[t + 1], x[t + 2], x[t + 3]
            for i in range(d):
                g[i] += slope[t] * v0[i]
                g[i] += slope[t + 1] * v1[i]
                g[i] += slope[t + 2] * v2[i]
                g[i] += slope[t + 3] * v3[i]
                c0, c1 = curve[t] * v0[i], curve[t + 1] * v1[i]
                c2, c3 = curve[t + 2] * v2[i], curve[t + 3] * v3[i]
                row = p[i]
                for q in range(i + 1):
                    row[q] += ((c0 * v0[q] + c1 * v1[q]) + c2 * v2[q]) + c3 * v3[q]
            done = t + 4
    for t in range(done, n):
        for j in range(crossed.shape[0]):
            at = base[t, j]
            for i in range(d if crossed[j] else 1):
                v = load[t, j] * x[t, i] if crossed[j] else load[t, j]
                if v != 0.0:
                    g[at + i] += slope[t] * v
                    c, row = curve[t] * v, p[at + i]
                    for other in range(j):
                        left, f = base[t, other], c * load[t, other]
                        if crossed[other]:
                            for q in range(d):
                                row[left + q] += f * x[t, q]
                        else:
                            row[left] += f
                    f = c * load[t, j]
                    if crossed[j]:
                        for q in range(i + 1):
                            row[at + q] += f * x[t, q]
                    else:
                        row[at] += f


@kernel
def multiply(p: Floats, w: Floats) -> Floats:
    """Multiply a symmetric matrix, of which the lower triangle is read, by w of shape (m,)."""
    m = w.shape[0]
    out = np.zeros(m)
    for i in range(m):
        total = 0.0
        for j in range(i):
            total += p[i, j] * w[j]
            out[j] += p[i, j] * w[i]
        out[i] += total + p[i, i] * w[i]
    return out


@kernel
def solve(p: Floats, prior: Floats, g: Floats) -> tuple[Floats, Floats, float]:
    """Solve ``(p + diag(prior)) step = g``; give the factor, the step and ``g . step``.

    Rounding can make a nearly singular sum indefinite. Then its diagonal is raised by parts in
    1e14 of the largest entry, and by more until it can be factored.
    """
    lower = factors.cholesky(p, prior)
    step, gain = factors.solve_mean(lower, g)
    if not np.isfinite(gain):
        top = 0.0
        for i in range(g.shape[0]):
            top = max(top, p[i, i] + prior[i])
        ridge = 1e-14 * top
        for _ in range(7):
            lower = factors.cholesky(p, prior + ridge)
            step, gain = factors.solve_mean(lower, g)
            if np.isfinite(gain):
                break
            ridge *= 100.0
    return lower, step, gain


@kernel
def stride(
    eta: Floats, along: Floats, weight: Floats, slope: Floats, curve: Floats, gain: float
) -> float:
    """Choose how far to go along a Newton step so that the posterior surely rises.

    Parameters
    ----------
    eta, along : (n,)
        Scores of the rows, and how a whole step changes them.
    weight, slope, curve : (n,)
        As in ``respond``.
    gain
        ``g . step``, the slope of the log posterior along the step.

    Notes
    -----
    With reach = max |along|, curvature along the step grows no faster than exp(reach t). So
    t = log(1 + reach) / reach always rises (Sun & Tran-Dinh, Mathematical Programming 178,
    2019, eq. 13), and so does t = 1 while reach <= 1.79. Beyond, the first of 1, 1/2, 1/4 ...
    at which the concave log posterior still rises is better than at 0, too.
    """
    reach, linear, quadratic = 0.0, gain, gain
    for t in range(eta.shape[0]):
        reach = max(reach, abs(along[t]))
        linear += slope[t] * along[t]
        quadratic -= curve[t] * along[t] * along[t]
    if reach <= SAFE:
        return 1.0
    sure = arithmetic.log(1.0 + reach) / reach
    far = 1.0
    while far > sure:
        rise = linear - far * quadratic
        for t in range(eta.shape[0]):
            rise -= weight[t] * arithmetic.logistic(eta[t] + far * along[t]) * along[t]
        if rise >= 0.0:
            return far
        far *= 0.5
    return sure


@kernel
def fit(
    x: Floats,
    base: Ints,
    load: Floats,
    crossed: Bools,
    weight: Floats,
    shift: Floats,
    precision: Floats,
    prior: Floats,
    centre: Floats,
    start: Floats,
) -> tuple[Floats, Floats]:
    """Find the mode of a block's log posterior, and the factor of its curvature there.

    The log posterior is ``shift . w - w' precision w / 2 - sum weight log(1 + exp(phi . w))
    - (w - centre)' diag(prior) (w - centre) / 2``.

    Parameters
    ----------
    x, base, load, crossed
        The block's rows; see the module.
    weight : (n,)
    shift, prior, centre, start : (m,)
        ``start`` is where Newton's method begins; the mode does not depend on it, its last
        bits do.
    precision : (m, m)
        Lower triangle.

    Returns
    -------
    mode : (m,)
    lower : (m, m)
        Cholesky factor of the negative Hessian, at a point within 3e-3 of the mode in every
        row's score.

    Notes
    -----
    O(n z**2 / 2 + m**3 / 3) for each of 3 to 10 steps.
    """
    n, m = x.shape[0], shift.shape[0]
    w, lower = start.copy(), np.empty((m, m))
    eta, along, slope, curve = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    for _ in range(MAX_STEPS):
        score(x, base, load, crossed, w, eta)
        respond(eta, weight, slope, curve)
        g, p = np.zeros(m), precision.copy()
        accumulate(x, base, load, crossed, slope, curve, g, p)
        frozen = multiply(precision, w)
        for i in range(m):
            g[i] = shift[i] - g[i] - frozen[i] - prior[i] * (w[i] - centre[i])
        lower, step, gain = solve(p, prior, g)
        score(x, base, load, crossed, step, along)
        far = stride(eta, along, weight, slope, curve, gain)
        reach = 0.0
        for t in range(n):
            reach = max(reach, abs(along[t]))
        for i in range(m):
            w[i] += far * step[i]
        if reach <= STILL:
            break
    return w, lower


@kernel
def expand(
    x: Floats,
    base: Ints,
    load: Floats,
    crossed: Bools,
    weight: Floats,
    shift: Floats,
    precision: Floats,
    at: Floats,
) -> tuple[Floats, Floats]:
    """Give the quadratic with the log likelihood's slope and curvature at some weights.

    Parameters
    ----------
    x, base, load, crossed, weight, shift, precision
        As in ``fit``.
    at : (m,)

    Returns
    -------
    (m, m), (m,)
        P, of which the lower triangle is filled, and h: the quadratic is ``h . w - w' P w / 2``.

    Notes
    -----
    O(n z**2 / 2): a step of ``fit`` without its factor.
    """
    n, m = x.shape[0], shift.shape[0]
    eta, slope, curve = np.empty(n), np.empty(n), np.empty(n)
    score(x, base, load, crossed, at, eta)
    respond(eta, weight, slope, curve)
    g, bent = np.zeros(m), np.zeros((m, m))
    accumulate(x, base, load, crossed, slope, curve, g, bent)
    pulled = multiply(bent, at)
    return precision + bent, shift - g + pulled


@kernel
def is_positive(p: Floats, spare: Floats) -> bool:
    """Say whether ``p + diag(spare)`` is positive; only the lower triangle of p is read.

    A factor that raises small pivots, as ``factors.cholesky`` does, could not tell.
    """
    m = p.shape[0]
    upper = np.zeros((m, m))
    for i in range(m):
        for j in range(i, m):
            upper[i, j] = p[j, i]
        upper[i, i] += spare[i]
    for k in range(m):
        if not upper[k, k] > 0.0:
            return False
        for i in range(k + 1, m):
            f = upper[k, i] / upper[k, k]
            if f != 0.0:
                for j in range(i, m):
                    upper[i, j] -= f * upper[k, j]
    return True


@kernel
def thin(
    x: Floats,
    base: Ints,
    load: Floats,
    crossed: Bools,
    weight: Floats,
    keep: int,
    mode: Floats,
    prior: Floats,
    precision: Floats,
    shift: Floats,
) -> Floats:
    """Let few rows stand for many: the log posterior's value, slope and curvature at ``mode`` stay.

    Rows are sorted by score; going along, one row is kept for every ``sum(weight) / keep`` of
    weight, and carries it. The difference in slope and curvature goes into ``shift : (m,)`` and
    ``precision : (m, m)``. That difference must not make the posterior less than concave
    anywhere: the kept weights are lowered by 64ths until ``precision`` is positive.

    Returns
    -------
    (n,)
        New weights; 0 drops a row.

    Notes
    -----
    O(n z**2 + 7 m**3 / 3). Source: control variates, as in Quiroz et al., JASA 114, 2019.
    """
    n, m = x.shape[0], shift.shape[0]
    eta, slope, curve = np.empty(n), np.empty(n), np.empty(n)
    score(x, base, load, crossed, mode, eta)
    order = np.argsort(eta, kind="mergesort")
    total = 0.0
    for t in range(n):
        total += weight[t]
    part = total / keep
    kept, passed, taken = np.zeros(n), 0.0, 0
    for t in order:
        passed += weight[t]
        while taken < keep and taken + 0.5 <= passed / part:
            kept[t] += part
            taken += 1
    old_g, old_p = np.zeros(m), np.zeros((m, m))
    respond(eta, weight, slope, curve)
    accumulate(x, base, load, crossed, slope, curve, old_g, old_p)
    new_g, new_p = np.zeros(m), np.zeros((m, m))
    respond(eta, kept, slope, curve)
    accumulate(x, base, load, crossed, slope, curve, new_g, new_p)

    low, high = 0, SHARES + 1  # a share of low / 64 is concave, one of high is not
    spare = SPARE * prior + ROUNDING * np.diag(precision + old_p)
    while high - low > 1:
        middle = (low + high) // 2
        if is_positive(precision + old_p - middle / SHARES * new_p, spare):
            low = middle
        else:
            high = middle
    share = low / SHARES
    moved = old_p - share * new_p
    pulled = multiply(moved, mode)
    for i in range(m):
        shift[i] += pulled[i] - (old_g[i] - share * new_g[i])
        for j in range(i + 1):
            precision[i, j] += moved[i, j]
    return share * kept
