"""Rows of a log reduced to what estimators look at, in one pass."""

import numpy as np

from bandit.kernels.compiling import Floats, Ints, kernel


@kernel
def reduce_rows(
    actions: Ints, propensities: Floats, target: Floats, predicted: Floats
) -> tuple[Floats, Floats, Floats]:
    """Give the weights, and what a model expects of the logged action and of the policy.

    Parameters
    ----------
    actions, propensities : (n,)
    target, predicted : (n, k)

    Returns
    -------
    weights, fitted, direct : (n,)
    """
    n, k = target.shape
    weights, fitted, direct = np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        action = actions[i]
        weights[i] = target[i, action] / propensities[i]
        fitted[i] = predicted[i, action]
        total = 0.0
        for a in range(k):
            total += target[i, a] * predicted[i, a]
        direct[i] = total
    return weights, fitted, direct


@kernel
def first_bad_row(target: Floats, tolerance: float) -> tuple[int, int, float]:
    """Find the first row that is no distribution.

    Parameters
    ----------
    target : (n, k)
    tolerance
        How far from 1 a row may sum.

    Returns
    -------
    row, column, value
        -1, -1 and 0 if there is none; column -1 and the sum where that is wrong.
    """
    n, k = target.shape
    for i in range(n):
        total = 0.0
        for a in range(k):
            p = target[i, a]
            if not 0.0 <= p <= 1.0 + tolerance:
                return i, a, p
            total += p
        if abs(total - 1.0) > tolerance:
            return i, -1, total
    return -1, -1, 0.0
