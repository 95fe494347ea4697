"""Additive statistics: outcomes added one at a time, in log order."""

import numpy as np

from bandit.kernels.compiling import Bools, Cells, Floats, Ints, kernel


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
def fold_counts(action: Ints, reward: Floats, weight: Floats, counts: Floats) -> None:
    """Add weighted outcomes in [0, 1] to ``counts : (k, 2)``, successes and failures."""
    for t in range(action.shape[0]):
        counts[action[t], 0] += weight[t] * reward[t]
        counts[action[t], 1] += weight[t] * (1.0 - reward[t])
