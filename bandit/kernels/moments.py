"""Mean and standard deviation of every action's score: what rules without draws look at."""

import math

import numpy as np

from bandit.kernels.compiling import Bools, Cells, Floats, Ints, kernel
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
def distance(one: Floats, two: Floats, three: Floats, common: Floats, centre: float) -> float:
    """Root mean square distance of ``one + two + three + common`` from ``centre``.

    Four sums side by side, so that the loop does not wait for each addition; their order is
    fixed.
    """
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    m = one.shape[0]
    whole = m - m % 4
    for t in range(0, whole, 4):
        e = one[t] + two[t] + three[t] + common[t] - centre
        f = one[t + 1] + two[t + 1] + three[t + 1] + common[t + 1] - centre
        g = one[t + 2] + two[t + 2] + three[t + 2] + common[t + 2] - centre
        h = one[t + 3] + two[t + 3] + three[t + 3] + common[t + 3] - centre
        a += e * e
        b += f * f
        c += g * g
        d += h * h
    for t in range(whole, m):
        e = one[t] + two[t] + three[t] + common[t] - centre
        a += e * e
    return math.sqrt(((a + b) + (c + d)) / m)


@kernel
def add_common(
    x: Floats, bank: Floats, offsets: Ints, crossed: Bools, homes: Cells, out: Floats
) -> None:
    """Add to ``out : (draws,)`` the terms of all actions, which ``plane_scores`` leaves out."""
    for j in range(homes.shape[0]):
        if homes[j] >= 0:
            continue
        for i in range(x.shape[0] if crossed[j] else 1):
            xi = x[i] if crossed[j] else 1.0
            row = bank[offsets[j] + i]
            for t in range(out.shape[0]):
                out[t] += xi * row[t]


@kernel
def joint_moments(
    x: Floats,
    mean: Floats,
    bank: Floats,
    offsets: Ints,
    crossed: Bools,
    counts: Ints,
    homes: Cells,
    places: Cells,
    cells: Cells,
    sizes: Ints,
) -> tuple[Floats, Floats]:
    """Moments of scores that share weights: exact means, spreads from a sample bank.

    Parameters
    ----------
    x : (n, d)
    mean : (m,)
        Means of all weights.
    bank : (m, draws)
        Joint draws of all weights.
    offsets, crossed, counts, homes, places, sizes
        The terms and their planes, as in ``plane_scores``.
    cells
        As in ``best_actions``.

    Returns
    -------
    (n, k) and (n, k)
        Means, and root mean square distances of the bank's scores from them.

    Notes
    -----
    O(draws (non-zero features of all cells + k planes)) a row. The spread's relative error is
    about ``1 / sqrt(2 draws)``.
    """
    n, k, draws, planes = x.shape[0], cells.shape[1], bank.shape[1], cells.shape[0]
    centre, spread = np.empty((n, k)), np.empty((n, k))
    exact, centres, none = mean.reshape(-1, 1), np.empty((sizes.sum(), 1)), np.zeros(draws)
    scores, common, one_common = np.empty((sizes.sum(), draws)), np.empty(draws), np.empty(1)
    second = sizes[0]
    third = second + (sizes[1] if planes > 1 else 0)
    for t in range(n):
        common[:], one_common[:] = 0.0, 0.0
        add_common(x[t], bank, offsets, crossed, homes, common)
        add_common(x[t], exact, offsets, crossed, homes, one_common)
        plane_scores(x[t], bank, offsets, crossed, counts, homes, places, sizes, scores)
        plane_scores(x[t], exact, offsets, crossed, counts, homes, places, sizes, centres)
        for a in range(k):
            total = one_common[0] + centres[cells[0, a], 0]
            one, two, three = scores[cells[0, a]], none, none
            if planes > 1:
                total += centres[second + cells[1, a], 0]
                two = scores[second + cells[1, a]]
            if planes > 2:
                total += centres[third + cells[2, a], 0]
                three = scores[third + cells[2, a]]
            centre[t, a] = total
            spread[t, a] = distance(one, two, three, common, total)
    return centre, spread
