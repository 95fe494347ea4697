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
def joint_means(
    x: Floats,
    mean: Floats,
    offsets: Ints,
    crossed: Bools,
    counts: Ints,
    homes: Cells,
    places: Cells,
    cells: Cells,
    sizes: Ints,
) -> Floats:
    """Means of scores that share weights; see ``joint_moments``.

    Notes
    -----
    O(non-zero features of all cells + k planes) a row.
    """
    (n, d), k, planes = x.shape, cells.shape[1], cells.shape[0]
    centre, scores, level = np.empty((n, k)), np.empty(sizes.sum()), np.empty(counts.max())
    for t in range(n):
        scores[:] = 0.0
        for j in range(homes.shape[0]):
            for cell in range(counts[j]):
                if crossed[j]:
                    level[cell] = 0.0
                    for i in range(d):
                        level[cell] += x[t, i] * mean[offsets[j] + cell * d + i]
                else:
                    level[cell] = mean[offsets[j] + cell]
            home = max(homes[j], 0)  # a term of all actions has one cell, wherever it is added
            first = sizes[:home].sum()
            for c in range(sizes[home]):
                scores[first + c] += level[places[j, c] if homes[j] >= 0 else 0]
        for a in range(k):
            first, total = 0, 0.0
            for plane in range(planes):
                total += scores[first + cells[plane, a]]
                first += sizes[plane]
            centre[t, a] = total
    return centre


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
    centre = joint_means(x, mean, offsets, crossed, counts, homes, places, cells, sizes)
    spread, scores = np.empty((n, k)), np.empty((sizes.sum(), draws))
    common, part = np.empty(draws), np.empty(draws)
    for t in range(n):
        common[:] = 0.0
        add_common(x[t], bank, offsets, crossed, homes, common)
        plane_scores(x[t], bank, offsets, crossed, counts, homes, places, sizes, scores)
        for a in range(k):
            one, first = scores[cells[0, a]], 0
            for i in range(draws):
                part[i] = common[i] + one[i] - centre[t, a]
            for plane in range(1, planes):
                first += sizes[plane - 1]
                one = scores[first + cells[plane, a]]
                for i in range(draws):
                    part[i] += one[i]
            spread[t, a] = root_mean_square(part)
    return centre, spread
