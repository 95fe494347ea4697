"""What levels have in common: the prior of a factor's blocks, fitted from their statistics."""

import math

import numpy as np

from bandit.kernels.arithmetic import log
from bandit.kernels.compiling import Floats, Ints, kernel
from bandit.kernels.factors import cholesky, solve_mean


@kernel
def invert(lower: Floats) -> Floats:
    """Solve ``L z = I``; the upper triangle of z is zero, shapes (m, m)."""
    m = lower.shape[0]
    z = np.zeros((m, m))
    for i in range(m):
        z[i, i] = 1.0
        for j in range(i):
            f = lower[i, j]
            if f != 0.0:
                for c in range(j + 1):
                    z[i, c] -= f * z[j, c]
        for c in range(i + 1):
            z[i, c] /= lower[i, i]
    return z


@kernel
def posterior_covariance(p: Floats, prior: Floats, out: Floats) -> None:
    """Fill ``out = inv(p + diag(prior))``; only the lower triangle of ``p : (m, m)`` is read."""
    m = prior.shape[0]
    z = invert(cholesky(p, prior))
    out[:] = 0.0
    for k in range(m):
        for i in range(k + 1):
            f = z[k, i]
            if f != 0.0:
                for j in range(k + 1):
                    out[i, j] += f * z[k, j]


@kernel
def common_mean(
    covariance: Floats, h: Floats, seen: Ints, variance: Floats, hyper: Floats
) -> tuple[Floats, Floats]:
    """Give the posterior of the blocks' common mean, the blocks integrated out.

    Parameters
    ----------
    covariance : (n, m, m)
        ``V = inv(P + inv(T))`` of every seen block, T = diag(variance).
    h : (b, m)
    seen : (n,)
        Blocks with data.
    variance : (m,)
        Between blocks, in units of the noise variance.
    hyper : (m,)
        Prior precision of the common mean.

    Returns
    -------
    (m,), (m, m)
        Mean; inverse of the precision's lower factor, so that ``z' z`` is the covariance.
    """
    m = variance.shape[0]
    total, shift = np.zeros((m, m)), np.zeros(m)
    for n in range(seen.shape[0]):
        v = covariance[n]
        for i in range(m):
            dot = 0.0
            for j in range(m):
                dot += v[i, j] * h[seen[n], j]
            shift[i] += dot / variance[i]
            for j in range(i):
                total[i, j] -= v[i, j] / variance[i] / variance[j]
            total[i, i] += max((1.0 - v[i, i] / variance[i]) / variance[i], 0.0)
    lower = cholesky(total, hyper)
    mean, _ = solve_mean(lower, shift)
    return mean, invert(lower)


@kernel
def centre(p: Floats, h: Floats, mean: Floats) -> tuple[Floats, float]:
    """Take a prior mean out of a block's statistics.

    Parameters
    ----------
    p : (m, m)
        Lower triangle.
    h, mean : (m,)

    Returns
    -------
    (m,), float
        ``h - P mean``; what the mean explains of the sum of squares, ``2 mean'h - mean'P mean``.
    """
    rest = h.copy()
    for i in range(mean.shape[0]):
        for j in range(i):
            rest[i] -= p[i, j] * mean[j]
            rest[j] -= p[i, j] * mean[i]
        rest[i] -= p[i, i] * mean[i]
    explained = 0.0
    for i in range(mean.shape[0]):
        explained += mean[i] * (h[i] + rest[i])
    return rest, explained


@kernel
def add_deviation(
    v: Floats, p: Floats, h: Floats, mean: Floats, z: Floats, variance: Floats, out: Floats
) -> float:
    """Add a block's squared deviation from the common mean, and how well it is known.

    Parameters
    ----------
    v, p : (m, m)
        Posterior covariance in units of the noise variance; precision of the data, lower triangle.
    h, mean, variance : (m,)
    z : (m, m)
        From ``common_mean``.
    out : (2, m)
        Squares of ``E(w - mean)``, and ``1 - var(w - mean) / variance`` in [0, 1]; added to.

    Returns
    -------
    float
        What the common mean and the block explain of the sum of squared rewards.
    """
    m = mean.shape[0]
    rest, explained = centre(p, h, mean)
    row = np.empty(m)
    for i in range(m):
        deviation = 0.0
        for j in range(m):
            deviation += v[i, j] * rest[j]
            row[j] = -v[i, j] / variance[j]
        row[i] += 1.0
        known = 1.0 - v[i, i] / variance[i]
        for k in range(m):
            dot = 0.0
            for j in range(k + 1):
                dot += z[k, j] * row[j]
            known -= dot * dot / variance[i]
        out[0, i] += deviation * deviation
        out[1, i] += min(max(known, 0.0), 1.0)
        explained += deviation * rest[i]
    return explained


@kernel
def fit_blocks(
    p: Floats,
    h: Floats,
    s: Floats,
    declared: Floats,
    noise: tuple[float, float, float],
    rounds: int,
) -> tuple[Floats, Floats]:
    """Fit mean and variance of the prior that blocks share.

    Parameters
    ----------
    p : (b, m, m)
        Precision of the data, lower triangle.
    h : (b, m)
    s : (b, 2)
        Number of rewards and sum of their squares.
    declared : (m,)
        Declared prior variance, in units of the noise variance.
    noise
        Known variance or 0; else shape and scale of its inverse-gamma prior.
    rounds
        Number of fixed-point rounds.

    Returns
    -------
    (m,), (m,)
        Mean in the reward's unit; variance in units of the noise variance.

    Notes
    -----
    O(rounds b m**3); memory b m**2 beside the statistics. Every round: moments of all blocks,
    the common mean's posterior, then MacKay's update of the variance between blocks.
    """
    b, m = h.shape
    seen = np.empty(b, dtype=np.int64)
    n = 0
    for i in range(b):
        for j in range(m):
            if p[i, j, j] > 0.0:
                seen[n] = i
                n += 1
                break
    seen = seen[:n]
    half = 0.5 * declared
    variance = half.copy()
    if n == 0:
        return np.zeros(m), declared.copy()
    covariance, mean, z = np.empty((n, m, m)), np.zeros(m), np.zeros((m, m))
    known, shape, scale = noise
    for i in range(b):
        shape += 0.5 * s[i, 0]
    for step in range(rounds + 1):
        for i in range(n):
            posterior_covariance(p[seen[i]], 1.0 / variance, covariance[i])
        mean, z = common_mean(covariance, h, seen, variance, 1.0 / half)
        if step == rounds:
            break
        sums, residual = np.zeros((2, m)), 0.0
        for i in range(n):
            c = seen[i]
            explained = add_deviation(covariance[i], p[c], h[c], mean, z, variance, sums)
            residual += max(s[c, 1] - explained, 0.0)
        unit = known if known > 0.0 else (scale + 0.5 * residual) / shape
        for j in range(m):
            share = variance[j] / (variance[j] + half[j])
            spread = sums[0, j] / unit + share * half[j]
            variance[j] = min(max(spread / (sums[1, j] + share), 1e-6 * half[j]), 1e4 * half[j])
    for j in range(m):
        for k in range(j, m):
            variance[j] += z[k, j] * z[k, j]
    return mean, variance


@kernel
def gammas(x: float) -> tuple[float, float, float]:
    """Give log gamma, digamma and trigamma of ``x >= 0.5``.

    Notes
    -----
    Recurrence up to 10, then the asymptotic series; relative to the largest term the error is
    below 1e-14.
    """
    product, first, second = 1.0, 0.0, 0.0
    while x < 10.0:
        product *= x
        first -= 1.0 / x
        second += 1.0 / (x * x)
        x += 1.0
    y = 1.0 / x
    z = y * y
    large = log(x)
    series = 1.0 / 12 - z * (1.0 / 360 - z * (1.0 / 1260 - z * (1.0 / 1680 - z / 1188)))
    value = (x - 0.5) * large - x + 0.9189385332046728 + y * series - log(product)
    series = 1.0 / 12 - z * (1.0 / 120 - z * (1.0 / 252 - z * (1.0 / 240 - z / 132)))
    first += large - 0.5 * y - z * series
    series = 1.0 / 6 - z * (1.0 / 30 - z * (1.0 / 42 - z * (1.0 / 30 - z * 5 / 66)))
    second += y + 0.5 * z + y * z * series
    return value, first, second


@kernel
def beta_evidence(counts: Floats, prior: Floats, p: float, n: float) -> Floats:
    """Log posterior of a Beta prior's mean p and strength n, given the arms' counts.

    Parameters
    ----------
    counts : (k, 2)
        Successes and failures.
    prior : (2,)
        Declared mean and strength, centres of the weak hyper-prior.

    Returns
    -------
    (4,)
        Value; its slopes in p and n; its curvature in p.
    """
    a, b = n * p, n * (1.0 - p)
    value_a, first_a, second_a = gammas(a)
    value_b, first_b, second_b = gammas(b)
    value_n, first_n, _ = gammas(n)
    out = np.zeros(4)
    for k in range(counts.shape[0]):
        s, f = counts[k, 0], counts[k, 1]
        if s + f > 0.0:
            in_a, in_b, in_n = gammas(a + s), gammas(b + f), gammas(n + s + f)
            slope_a, slope_b = in_a[1] - first_a, in_b[1] - first_b
            out[0] += (in_a[0] - value_a) + (in_b[0] - value_b) - (in_n[0] - value_n)
            out[1] += n * (slope_a - slope_b)
            out[2] += p * slope_a + (1.0 - p) * slope_b - (in_n[1] - first_n)
            out[3] += n * n * ((in_a[2] - second_a) + (in_b[2] - second_b))
    mean, strength = prior
    out[0] += mean * log(p) + (1.0 - mean) * log(1.0 - p)
    out[0] += 0.5 * log(n / strength) - log(1.0 + n / strength)
    out[1] += mean / p - (1.0 - mean) / (1.0 - p)
    out[2] += 0.5 / n - 1.0 / (n + strength)
    out[3] -= mean / (p * p) + (1.0 - mean) / ((1.0 - p) * (1.0 - p))
    return out


@kernel
def best_mean(counts: Floats, prior: Floats, p: float, n: float) -> tuple[float, float, float]:
    """Maximise ``beta_evidence`` over p with both parameters at least 0.5, starting at p.

    Returns
    -------
    float, float, float
        p; the value there; the slope in n along the best p.

    Notes
    -----
    Newton's steps, halving the bracket where one would leave it: concave in p, so the maximum
    is the only one.
    """
    low, high = 0.5 / n, max(1.0 - 0.5 / n, 0.5 / n)
    p = min(max(p, low), high)
    least, most = 0.0, 1.0
    at = beta_evidence(counts, prior, p, n)
    for _ in range(60):
        if at[1] > 0.0:
            least = p
        else:
            most = p
        step = min(max(p - at[1] / at[3], low), high)
        if not least < step < most:
            step = 0.5 * (max(least, low) + min(most, high))
        if abs(step - p) <= 1e-13 * p:
            break
        p = step
        at = beta_evidence(counts, prior, p, n)
    slope = at[2]
    if p in (low, high):  # at a bound, which moves with n
        slope += abs(at[1]) * 0.5 / (n * n)
    return p, at[0], slope


@kernel
def fit_beta(counts: Floats, prior: Floats, grid: Floats) -> tuple[float, float]:
    """Fit mean and strength of the arms' common Beta prior.

    Parameters
    ----------
    counts : (k, 2)
    prior : (2,)
        Declared mean and strength.
    grid : (g,)
        Strengths to begin with, ascending; the result lies between the first and the last.

    Returns
    -------
    float, float
        Mean and strength.

    Notes
    -----
    The best strength of the grid, then 30 bisections of the slope in n between its neighbours.
    O(k) gamma functions an evaluation, about 3 evaluations each.
    """
    best, value, side, p = 0, -np.inf, 0.0, prior[0]
    kept = p
    for g in range(grid.shape[0]):
        p, found, slope = best_mean(counts, prior, p, grid[g])
        if found > value:
            best, value, side, kept = g, found, slope, p
    low = high = grid[best]
    if side > 0.0 and best + 1 < grid.shape[0]:
        high = grid[best + 1]
    elif side < 0.0 and best > 0:
        low = grid[best - 1]
    p, n = kept, grid[best]
    if low < high:
        for _ in range(30):
            n = math.sqrt(low * high)
            p, _, slope = best_mean(counts, prior, p, n)
            if slope > 0.0:
                low = n
            else:
                high = n
    return p, n
