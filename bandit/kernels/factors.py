"""From statistics to means, triangular factors and joint draws."""

import math

import numpy as np

from bandit.kernels.compiling import Floats, Words, kernel
from bandit.kernels.streams import fill_normals

EPSILON = 2.0**-52


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

    A pivot is never below its prior: what is left of ``p`` after elimination is not negative.
    Nor is it below the rounding errors in a sum of so many terms, which collinear features
    magnify: ``eps`` times the largest diagonal, about the number of terms, times its own.
    """
    m = p.shape[0]
    upper = np.zeros((m, m))
    largest = 0.0
    for i in range(m):
        largest = max(largest, p[i, i])
    for i in range(m):
        for j in range(i, m):
            upper[i, j] = p[j, i]
        upper[i, i] += prior[i]
    for k in range(m):
        least = max(prior[k], EPSILON * largest * p[k, k])
        upper[k, k] = max(upper[k, k], least)
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
def multiply_lower(lower: Floats) -> Floats:
    """Give the lower triangle of ``L L'``, shape (m, m), for lower triangular L."""
    m = lower.shape[0]
    product = np.zeros((m, m))
    for i in range(m):
        for j in range(i + 1):
            total = 0.0
            for c in range(j + 1):
                total += lower[i, c] * lower[j, c]
            product[i, j] = total
    return product


@kernel
def gram(rows: Floats) -> Floats:
    """Give the lower triangle of ``A' A``, shape (m, m), for rows A of shape (n, m)."""
    n, m = rows.shape
    product = np.zeros((m, m))
    for t in range(n):
        row = rows[t]
        for i in range(m):
            f = row[i]
            if f != 0.0:
                to = product[i]
                for j in range(i + 1):
                    to[j] += f * row[j]
    return product


@kernel
def unpack_lower(packed: Floats, m: int) -> Floats:
    """Give the (m, m) matrix of a lower triangle packed by rows."""
    lower, n = np.zeros((m, m)), 0
    for i in range(m):
        for j in range(i + 1):
            lower[i, j] = packed[n]
            n += 1
    return lower


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
