"""Scores of actions under a belief."""

import math

import numpy as np

from bandit.kernels.compiling import Bools, Cells, Floats, Ints, kernel


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
def part_scores(x: Floats, bank: Floats, first: int, crossed: bool, out: Floats) -> None:  # noqa: FBT001
    """Score the parts of a term with attributes under every draw, as ``plane_scores`` does cells.

    Parameters
    ----------
    first
        First weight of the term.
    crossed
        Whether a part holds d weights or one.
    out : (parts, draws)
        Filled.
    """
    d, draws = x.shape[0], bank.shape[1]
    for part in range(out.shape[0]):
        level = out[part]
        if not crossed:
            level[:] = bank[first + part]
            continue
        level[:] = 0.0
        for i in range(d):
            xi = x[i]
            if xi != 0.0:
                row = bank[first + part * d + i]
                for t in range(draws):
                    level[t] += xi * row[t]


@kernel
def mix(loads: Floats, scores: Floats, out: Floats) -> None:
    """Add up ``scores : (parts, draws)`` times ``loads : (parts,)`` into ``out : (draws,)``.

    Notes
    -----
    O(parts draws), part after part; four at a time, so that ``out`` is read a quarter as often.
    """
    n, draws = scores.shape
    out[:] = 0.0
    for part in range(0, n - n % 4, 4):
        a, b, c, d = loads[part], loads[part + 1], loads[part + 2], loads[part + 3]
        if a == 0.0 and b == 0.0 and c == 0.0 and d == 0.0:
            continue
        one, two, three, four = scores[part], scores[part + 1], scores[part + 2], scores[part + 3]
        for t in range(draws):
            out[t] = out[t] + a * one[t] + b * two[t] + c * three[t] + d * four[t]
    for part in range(n - n % 4, n):
        a, one = loads[part], scores[part]
        for t in range(draws):
            out[t] += a * one[t]


@kernel
def plane_scores(
    x: Floats,
    bank: Floats,
    offsets: Ints,
    crossed: Bools,
    counts: Ints,
    parts: Ints,
    loads: Floats,
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
    parts, loads
        Terms with attributes, as in ``fold_sparse``: their parts are scored once, then mixed
        for every cell.
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
    O(draws (non-zero features of all cells + cells of all planes per term)); a term with
    attributes adds its cells times its parts.
    """
    d, draws = x.shape[0], bank.shape[1]
    level = np.empty(draws)
    mixed = np.empty((loads.shape[2], draws))
    begun = np.zeros(sizes.shape[0], dtype=np.bool_)
    for j in range(homes.shape[0]):
        home = homes[j]
        if home < 0:
            continue
        start = sizes[:home].sum()
        if parts[j] > 0:
            part_scores(x, bank, offsets[j], crossed[j], mixed[: parts[j]])
        for cell in range(counts[j]):
            weights = level
            if parts[j] > 0:
                mix(loads[j, cell], mixed[: parts[j]], level)
            elif not crossed[j]:
                weights = bank[offsets[j] + cell]
            else:
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


@kernel
def best_of(scores: Floats, eligible: Bools) -> int:
    """Give the best eligible index, the first among equals."""
    best, chosen = -np.inf, -1
    for a in range(scores.shape[0]):
        if eligible[a] and (chosen < 0 or scores[a] > best):
            best, chosen = scores[a], a
    return chosen
