"""Scores of actions under a belief."""

import math

import numpy as np

from bandit.kernels.compiling import Bools, Floats, Ints, inlined_kernel, kernel
from bandit.kernels.layouts import Planes, Terms

TILE = 128
"""Draws that are compared at a time, so that all their scores stay close to the processor."""


@inlined_kernel
def narrow_moments(x: Floats, mean: Floats, root: Floats, centre: Floats, spread: Floats) -> None:
    """``score_moments``, bit for bit, where a few arms would leave vectors mostly empty.

    Four arms at a time, in registers; the last four may have been scored before.
    """
    d, k = mean.shape
    for start in range(0, k, 4):
        first = max(min(start, k - 4), 0)  # unsigned, so that no index asks whether it is negative
        a, b = np.uint64(first), np.uint64(min(first + 1, k - 1))
        c, e = np.uint64(min(first + 2, k - 1)), np.uint64(min(first + 3, k - 1))
        m0, m1, m2, m3 = 0.0, 0.0, 0.0, 0.0
        q0, q1, q2, q3 = 0.0, 0.0, 0.0, 0.0
        n = 0
        for i in range(d):
            xi = x[i]
            m0, m1 = m0 + xi * mean[i, a], m1 + xi * mean[i, b]
            m2, m3 = m2 + xi * mean[i, c], m3 + xi * mean[i, e]
            p0, p1, p2, p3 = 0.0, 0.0, 0.0, 0.0
            for j in range(i + 1):
                xj, r = x[j], n + j
                p0, p1 = p0 + xj * root[r, a], p1 + xj * root[r, b]
                p2, p3 = p2 + xj * root[r, c], p3 + xj * root[r, e]
            n += i + 1
            q0, q1, q2, q3 = q0 + p0 * p0, q1 + p1 * p1, q2 + p2 * p2, q3 + p3 * p3
        centre[a], centre[b], centre[c], centre[e] = m0, m1, m2, m3
        spread[a], spread[b] = math.sqrt(q0), math.sqrt(q1)
        spread[c], spread[e] = math.sqrt(q2), math.sqrt(q3)


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
    if k < 8:
        narrow_moments(x, mean, root, centre, spread)
        return
    part = np.empty(k)
    x0 = x[0]
    for a in range(k):
        centre[a] = x0 * mean[0, a]
        spread[a] = (x0 * root[0, a]) * (x0 * root[0, a])
    first = 1
    for i in range(1, d):
        rows, xi, x0 = root[first : first + i + 1], x[i], x[0]
        first += i + 1
        for a in range(k):
            centre[a] += xi * mean[i, a]
            part[a] = x0 * rows[0, a]
        whole = 1 + i // 4 * 4
        for j in range(1, whole, 4):  # four rows a pass: a sum is loaded and stored once
            x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
            for a in range(k):
                part[a] = (
                    part[a]
                    + x0 * rows[j, a]
                    + x1 * rows[j + 1, a]
                    + x2 * rows[j + 2, a]
                    + x3 * rows[j + 3, a]
                )
        for j in range(whole, i + 1):
            x0 = x[j]
            for a in range(k):
                part[a] += x0 * rows[j, a]
        for a in range(k):
            spread[a] += part[a] * part[a]
    for a in range(k):
        spread[a] = math.sqrt(spread[a])


@kernel
def block_moments(x: Floats, mean: Floats, root: Floats, centre: Floats, spread: Floats) -> None:
    """Means and standard deviations of one arm's score in many contexts.

    Parameters
    ----------
    x : (d, n)
        Features, context-minor.
    mean : (d,)
    root : (d (d + 1) / 2,)
        The arm's column of what ``score_moments`` reads.
    centre, spread : (n,)
        Filled with the bits that ``score_moments`` gives.
    """
    d, n = x.shape
    part = np.empty(n)
    centre[:] = 0.0
    spread[:] = 0.0
    first = 0
    for i in range(d):
        row, m = x[i], mean[i]
        for t in range(n):
            centre[t] += row[t] * m
        row = root[first : first + i + 1]
        first += i + 1
        part[:] = 0.0
        whole = row.shape[0] // 4 * 4
        for j in range(0, whole, 4):
            r0, r1, r2, r3 = row[j], row[j + 1], row[j + 2], row[j + 3]
            x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
            for t in range(n):
                part[t] = part[t] + x0[t] * r0 + x1[t] * r1 + x2[t] * r2 + x3[t] * r3
        for j in range(whole, row.shape[0]):
            r0, x0 = row[j], x[j]
            for t in range(n):
                part[t] += x0[t] * r0
        for t in range(n):
            spread[t] += part[t] * part[t]
    for t in range(n):
        spread[t] = math.sqrt(spread[t])


@kernel
def not_zero(x: Floats) -> tuple[Ints, Floats]:
    """List places and values of what is not zero; zeros at place 0 make it a multiple of four.

    Most features of a context with categories are zero. A zero more or less changes no bit of
    a sum that began at 0.
    """
    n, most = 0, x.shape[0] + 3
    places, values = np.zeros(most, dtype=np.int64), np.zeros(most)
    for i in range(x.shape[0]):
        if x[i] != 0.0:
            places[n], values[n] = i, x[i]
            n += 1
    n = (n + 3) // 4 * 4
    return places[:n], values[:n]


@kernel
def mix(places: Ints, values: Floats, scores: Floats, start: int, out: Floats) -> None:
    """Add up rows of ``scores`` times their values, from column ``start`` on, into ``out : (n,)``.

    Parameters
    ----------
    places, values
        Rows and their values, from ``not_zero``.

    Notes
    -----
    O(places n), place after place; four at a time, so that ``out`` is read a quarter as often.
    """
    n = out.shape[0]
    out[:] = 0.0
    for i in range(0, places.shape[0], 4):
        a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
        one = scores[places[i], start : start + n]
        two = scores[places[i + 1], start : start + n]
        three = scores[places[i + 2], start : start + n]
        four = scores[places[i + 3], start : start + n]
        for t in range(n):
            out[t] = out[t] + a * one[t] + b * two[t] + c * three[t] + d * four[t]


@kernel
def level_scores(
    x: Floats,
    bank: Floats,
    start: int,
    terms: Terms,
    crossed: bool,  # noqa: FBT001
    levels: Floats,
) -> None:
    """Score the cells of the terms that are crossed with the context, or of those that are not.

    Parameters
    ----------
    x : (d,)
    bank : (m, draws)
    start
        First of the ``n`` draws to look at.
    crossed
        Which terms; the scores of the others are the same for every context.
    levels : (sum(counts), n)
        Filled, term after term.

    Notes
    -----
    O(n (non-zero features of all cells)); a term with attributes adds its cells times its parts.
    """
    n, width, first = levels.shape[1], x.shape[0], 0
    places, values = not_zero(x)
    mixed = np.empty((terms.loads.shape[2], n))
    for j in range(terms.counts.shape[0]):
        own = levels[first : first + terms.counts[j]]
        first += terms.counts[j]
        if terms.crossed[j] != crossed:
            continue
        rows = mixed[: terms.parts[j]] if terms.parts[j] > 0 else own
        for row in range(rows.shape[0]):
            if crossed:
                begin = terms.offsets[j] + row * width
                mix(places, values, bank[begin : begin + width], start, rows[row])
            else:
                rows[row, :] = bank[terms.offsets[j] + row, start : start + n]
        if terms.parts[j] > 0:
            for cell in range(own.shape[0]):
                used, loads = not_zero(terms.loads[j, cell, : terms.parts[j]])
                mix(used, loads, mixed, 0, own[cell])


@kernel
def sum_levels(
    levels: Floats,
    terms: Terms,
    planes: Planes,
    crossed: bool,  # noqa: FBT001
    out: Floats,
) -> None:
    """Score every cell of the planes with a crossed term, or of those without.

    Parameters
    ----------
    levels : (sum(counts), n)
        From ``level_scores``.
    crossed
        Which planes; the scores of the others are the same for every context.
    out : (sum(sizes), n)
        Their cells are filled: the sum of the plane's terms, in their order.

    Notes
    -----
    O(n cells of the planes per term); the first two terms in one pass.
    """
    n, at = out.shape[1], 0
    for home in range(planes.sizes.shape[0]):
        is_crossed = False
        for j in range(planes.homes.shape[0]):
            is_crossed |= planes.homes[j] == home and terms.crossed[j]
        if is_crossed == crossed:
            seen, first = 0, 0
            one, before = 0, 0  # ``before``: the plane's first term, from row ``one``
            for j in range(planes.homes.shape[0]):
                if planes.homes[j] == home:
                    for cell in range(planes.sizes[home]):
                        a = at + cell
                        b, c = first + planes.uses[j, cell], one + planes.uses[before, cell]
                        if seen == 1:
                            for t in range(n):
                                out[a, t] = levels[c, t] + levels[b, t]
                        elif seen > 1:
                            for t in range(n):
                                out[a, t] += levels[b, t]
                    if seen == 0:
                        one, before = first, j
                    seen += 1
                first += terms.counts[j]
            for cell in range(planes.sizes[home]):
                if seen == 1:
                    out[at + cell] = levels[one + planes.uses[before, cell]]
        at += planes.sizes[home]


@kernel
def plane_scores(x: Floats, bank: Floats, terms: Terms, planes: Planes, out: Floats) -> None:
    """Score every cell of every plane under every draw: the sum of the plane's terms.

    Parameters
    ----------
    x : (d,)
    bank : (m, draws)
    out : (sum(sizes), draws)
        Filled.
    """
    levels = np.empty((terms.counts.sum(), bank.shape[1]))
    for crossed in (False, True):
        level_scores(x, bank, 0, terms, crossed, levels)
        sum_levels(levels, terms, planes, crossed, out)


@kernel
def top_of_row(scores: Floats, rows: Ints, columns: Ints, top: Floats) -> None:
    """Find the highest sum of what varies among some columns of a row of the grid.

    Parameters
    ----------
    rows : (2, n)
        Rows of ``scores`` to add up for each column, at least one.
    columns : (n,)
    top : (2 TILE,)
        Filled with the highest sum under every draw, and from ``TILE`` on with its column, the
        first among equals.

    Notes
    -----
    Both results lie in one array, at a distance known when this is compiled: else it would
    not vectorise, for there would be too many places that might overlap.
    """
    n, draws = columns.shape[0], scores.shape[1]
    top[:draws] = -np.inf
    for i in range(0, n, 2):
        j = min(i + 1, n - 1)
        a, b, c, d = rows[0, i], rows[1, i], rows[0, j], rows[1, j]
        left, right = float(columns[i]), float(columns[j])
        for t in range(draws):
            one, two = scores[a, t] + scores[b, t], scores[c, t] + scores[d, t]
            is_right = two > one
            score, column = two if is_right else one, right if is_right else left
            is_better = score > top[t]
            top[t] = score if is_better else top[t]
            top[TILE + t] = column if is_better else top[TILE + t]


@kernel
def best_actions(scores: Floats, planes: Planes, eligible: Bools, chosen: Ints) -> None:
    """Find the best eligible action under every draw, the first of the grid among equals.

    Parameters
    ----------
    scores : (sum(sizes) + 1, draws)
        From ``plane_scores``, and a row of zeros; at most ``TILE`` draws.
    eligible : (k,)
    chosen : (draws,)
        Filled with the actions; -1 where none is eligible.

    Notes
    -----
    O(draws (g + s)) where what varies within the grid's rows is the same in all and rows have few
    distinct masks (a product mask has two: all columns, and none); else O(draws k).
    """
    draws = scores.shape[1]
    cells, grid, count = planes.cells, planes.grid, planes.sizes.shape[0]
    height, width = grid.shape
    nothing = scores.shape[0] - 1
    keys, known = np.empty(4, dtype=np.uint64), 0
    tops, best = np.empty((5, 2 * TILE)), np.empty(2 * TILE)
    columns, rows = np.empty(width, dtype=np.int64), np.empty((2, width), dtype=np.int64)
    best[:] = -np.inf
    for r in range(height):
        n, key = 0, np.uint64(0)
        for s in range(width):
            if eligible[grid[r, s]]:
                columns[n] = s
                n += 1
                key |= np.uint64(1) << np.uint64(s & 63)
        if n == 0:
            continue
        at = 4
        if planes.is_alike and width <= 64:
            at = 0
            while at < known and keys[at] != key:
                at += 1
        one, two, varying, first = nothing, nothing, 0, 0
        rows[:] = nothing
        for p in range(count):  # at most two of either: some plane knows the columns' factor
            if planes.varies[p]:
                for i in range(n):
                    rows[varying, i] = first + cells[p, grid[r, columns[i]]]
                varying += 1
            else:
                one, two = first + cells[p, grid[r, 0]], one
            first += planes.sizes[p]
        if at >= known:
            top_of_row(scores, rows, columns[:n], tops[at])
            if at < 4:
                keys[at] = key
                known = at + 1
        add_row(scores[two], scores[one], tops[at], float(r * width), best)
    for t in range(draws):
        place = int(best[TILE + t]) if best[t] > -np.inf else -1
        chosen[t] = grid[place // width, place % width] if place >= 0 else -1


@kernel
def add_row(two: Floats, one: Floats, top: Floats, place: float, best: Floats) -> None:
    """Keep the better of ``best`` and a row of the grid: its score and its place in the grid."""
    for t in range(one.shape[0]):
        score = two[t] + one[t] + top[t]
        is_better = score > best[t]
        best[t] = score if is_better else best[t]
        best[TILE + t] = place + top[TILE + t] if is_better else best[TILE + t]


@inlined_kernel
def best_of(scores: Floats, eligible: Bools | None) -> int:
    """Give the best eligible index, the first among equals; None stands for all."""
    best, chosen = -np.inf, -1
    for a in range(scores.shape[0]):
        if (eligible is None or eligible[a]) and (chosen < 0 or scores[a] > best):
            best, chosen = scores[a], a
    return chosen
