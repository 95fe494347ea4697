"""Mean and standard deviation of every action's score: what rules without draws look at."""

import math

import numpy as np

from bandit.kernels.compiling import Floats, kernel
from bandit.kernels.layouts import Planes, Terms
from bandit.kernels.scoring import plane_scores, score_moments


@kernel
def independent_moments(x: Floats, mean: Floats, root: Floats, k: int) -> tuple[Floats, Floats]:
    """Moments of the scores of independent arms.

    Parameters
    ----------
    x : (n, d)
    mean, root
        As in ``score_moments``.
    k
        Number of arms.

    Returns
    -------
    (n, k) and (n, k)
        Means and standard deviations.
    """
    n = x.shape[0]
    centre, spread = np.empty((n, k)), np.empty((n, k))
    for t in range(n):
        score_moments(x[t], mean, root, centre[t], spread[t])
    return centre, spread


@kernel
def root_mean_square(part: Floats) -> float:
    """Give the root mean square of ``part : (m,)``, which is overwritten.

    Sums of halves, so that the loops vectorise in a fixed order.
    """
    m = part.shape[0]
    for t in range(m):
        part[t] *= part[t]
    left = m
    while left > 1:
        half = (left + 1) // 2
        for t in range(left - half):
            part[t] += part[half + t]
        left = half
    return math.sqrt(part[0] / m)


@kernel
def add_common(x: Floats, bank: Floats, terms: Terms, planes: Planes, out: Floats) -> None:
    """Add to ``out : (draws,)`` the terms of all actions, which ``plane_scores`` leaves out."""
    for j in range(planes.homes.shape[0]):
        if planes.homes[j] >= 0:
            continue
        width = x.shape[0] if terms.crossed[j] else 1
        for part in range(max(terms.parts[j], 1)):
            load = terms.loads[j, terms.cells[j, 0], part] if terms.parts[j] > 0 else 1.0
            for i in range(width):
                f = load * x[i] if terms.crossed[j] else load
                row = bank[terms.offsets[j] + part * width + i]
                for t in range(out.shape[0]):
                    out[t] += f * row[t]


@kernel
def joint_means(x: Floats, mean: Floats, terms: Terms, planes: Planes) -> Floats:
    """Means of scores that share weights; see ``joint_moments``.

    Notes
    -----
    O(non-zero features of all cells + k planes) a row.
    """
    n, k = x.shape[0], planes.cells.shape[1]
    centre, common, weights = np.empty((n, k)), np.empty(1), mean.copy().reshape(-1, 1)
    scores = np.empty((planes.sizes.sum(), 1))
    for t in range(n):
        common[:] = 0.0
        add_common(x[t], weights, terms, planes, common)
        plane_scores(x[t], weights, terms, planes, scores)
        for a in range(k):
            first, total = 0, common[0]
            for plane in range(planes.sizes.shape[0]):
                total += scores[first + planes.cells[plane, a], 0]
                first += planes.sizes[plane]
            centre[t, a] = total
    return centre


@kernel
def joint_moments(
    x: Floats, mean: Floats, bank: Floats, terms: Terms, planes: Planes
) -> tuple[Floats, Floats]:
    """Moments of scores that share weights: exact means, spreads from a sample bank.

    Parameters
    ----------
    x : (n, d)
    mean : (m,)
        Means of all weights.
    bank : (m, draws)
        Joint draws of all weights.

    Returns
    -------
    (n, k) and (n, k)
        Means, and root mean square distances of the bank's scores from them.

    Notes
    -----
    O(draws (non-zero features of all cells + k planes)) a row. The spread's relative error is
    about ``1 / sqrt(2 draws)``.
    """
    n, k, draws = x.shape[0], planes.cells.shape[1], bank.shape[1]
    centre = joint_means(x, mean, terms, planes)
    spread, scores = np.empty((n, k)), np.empty((planes.sizes.sum(), draws))
    common, part = np.empty(draws), np.empty(draws)
    for t in range(n):
        common[:] = 0.0
        add_common(x[t], bank, terms, planes, common)
        plane_scores(x[t], bank, terms, planes, scores)
        for a in range(k):
            one, first = scores[planes.cells[0, a]], 0
            for i in range(draws):
                part[i] = common[i] + one[i] - centre[t, a]
            for plane in range(1, planes.sizes.shape[0]):
                first += planes.sizes[plane - 1]
                one = scores[first + planes.cells[plane, a]]
                for i in range(draws):
                    part[i] += one[i]
            spread[t, a] = root_mean_square(part)
    return centre, spread
