"""Scores of actions under a belief."""

import math

import numpy as np

from bandit.kernels.compiling import Bools, Floats, Ints, inlined_kernel, kernel
from bandit.kernels.layouts import Planes, Terms


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
    width = x.shape[0]
    for part in range(out.shape[0]):
        if crossed:
            mix(x, bank[first + part * width : first + (part + 1) * width], out[part])
        else:
            out[part, :] = bank[first + part]


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
def plane_scores(x: Floats, bank: Floats, terms: Terms, planes: Planes, out: Floats) -> None:
    """Score every cell of every plane under every draw: the sum of the plane's terms.

    Parameters
    ----------
    x : (d,)
    bank : (m, draws)
    out : (sum(sizes), draws)
        Filled.

    Notes
    -----
    O(draws (non-zero features of all cells + cells of all planes per term)); a term with
    attributes adds its cells times its parts.
    """
    level = np.empty(bank.shape[1])
    mixed = np.empty((terms.loads.shape[2], bank.shape[1]))
    begun = np.zeros(planes.sizes.shape[0], dtype=np.bool_)
    width = x.shape[0]
    for j in range(planes.homes.shape[0]):
        home, first = planes.homes[j], terms.offsets[j]
        if home < 0:
            continue
        start = planes.sizes[:home].sum()
        if terms.parts[j] > 0:
            part_scores(x, bank, first, terms.crossed[j], mixed[: terms.parts[j]])
        for cell in range(terms.counts[j]):
            weights = level
            if terms.parts[j] > 0:
                mix(terms.loads[j, cell], mixed[: terms.parts[j]], level)
            elif not terms.crossed[j]:
                weights = bank[first + cell]
            else:
                mix(x, bank[first + cell * width : first + (cell + 1) * width], level)
            for i in range(planes.begins[j, cell], planes.begins[j, cell + 1]):
                row = out[start + planes.users[j, i]]
                if begun[home]:
                    for t in range(row.shape[0]):
                        row[t] += weights[t]
                else:
                    row[:] = weights
        begun[home] = True


@kernel
def top_of_row(
    scores: Floats, planes: Planes, starts: Ints, row: int, columns: Ints, top: Floats
) -> None:
    """Find the highest sum of what varies among some columns of a row of the grid.

    Parameters
    ----------
    starts : (p,)
        First row of ``scores`` of each plane.
    columns : (n,)
        At least one.
    top : (draws,)
        Filled.
    """
    draws, n = scores.shape[1], columns.shape[0]
    cells, grid = planes.cells, planes.grid
    rows = np.empty((2, n), dtype=np.int64)
    varying = 0
    for p in range(cells.shape[0]):
        if planes.varies[p]:
            for i in range(n):
                rows[min(varying, 1), i] = starts[p] + cells[p, grid[row, columns[i]]]
            varying += 1
    if varying == 0:
        top[:] = 0.0
    elif varying == 1:
        top[:] = scores[rows[0, 0]]
        whole = 1 + (n - 1) // 4 * 4
        for i in range(1, whole, 4):
            a, b = scores[rows[0, i]], scores[rows[0, i + 1]]
            c, d = scores[rows[0, i + 2]], scores[rows[0, i + 3]]
            for t in range(draws):
                one = max(b[t], a[t])
                two = max(d[t], c[t])
                one = max(two, one)
                top[t] = max(top[t], one)
        for i in range(whole, n):
            a = scores[rows[0, i]]
            for t in range(draws):
                top[t] = max(top[t], a[t])
    else:
        top[:] = -np.inf
        for i in range(n):
            a, b = scores[rows[0, i]], scores[rows[1, i]]
            for t in range(draws):
                one = a[t] + b[t]
                top[t] = max(top[t], one)


@kernel
def best_actions(
    scores: Floats, planes: Planes, eligible: Bools, best: Floats, chosen: Ints
) -> None:
    """Find the best eligible action under every draw, the first of the grid among equals.

    Parameters
    ----------
    scores : (sum(sizes), draws)
        From ``plane_scores``.
    eligible : (k,)
    best, chosen : (draws,)
        Filled with the highest score and its action.

    Notes
    -----
    O(draws (g + s)) where what varies within the grid's rows is the same in all and rows have few
    distinct masks (a product mask has two: all columns, and none); else O(draws k), a maximum
    without an index for each action: which column won is looked up afterwards.
    """
    draws = scores.shape[1]
    cells, grid, count = planes.cells, planes.grid, planes.sizes.shape[0]
    height, width = grid.shape
    starts = np.zeros(count, dtype=np.int64)
    for p in range(1, count):
        starts[p] = starts[p - 1] + planes.sizes[p - 1]
    keys, known = np.empty(4, dtype=np.uint64), 0
    tops, nothing = np.empty((5, draws)), np.zeros(draws)
    columns, rows = np.empty(width, dtype=np.int64), np.full(draws, -1)
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
        if at >= known:
            top_of_row(scores, planes, starts, r, columns[:n], tops[at])
            if at < 4:
                keys[at] = key
                known = at + 1
        one, two, top = nothing, nothing, tops[at]
        for p in range(count):
            if not planes.varies[p]:  # at most two: some plane knows the columns' factor
                two = one
                one = scores[starts[p] + cells[p, grid[r, 0]]]
        for t in range(draws):  # without a branch, so that it vectorises
            score, held, row = two[t] + one[t] + top[t], best[t], rows[t]
            is_better = score > held
            best[t] = score if is_better else held
            rows[t] = r if is_better else row
    best_columns(scores, planes, starts, eligible, rows, chosen)


@kernel
def best_columns(
    scores: Floats, planes: Planes, starts: Ints, eligible: Bools, rows: Ints, chosen: Ints
) -> None:
    """Find the first eligible action with the highest varying score in the row of every draw.

    Parameters
    ----------
    rows : (draws,)
        Row of the grid, or -1 for none.
    chosen : (draws,)
        Filled; -1 where there is no row.
    """
    cells, grid = planes.cells, planes.grid
    held = np.full(rows.shape[0], -np.inf)
    score = np.empty(rows.shape[0])
    chosen[:] = -1
    for s in range(grid.shape[1]):
        seen = 0
        for p in range(starts.shape[0]):
            if not planes.varies[p]:
                continue
            if planes.is_alike:
                score[:] = scores[starts[p] + cells[p, grid[0, s]]]
            else:
                for t in range(rows.shape[0]):
                    one = scores[starts[p] + cells[p, grid[max(rows[t], 0), s]], t]
                    score[t] = one if seen == 0 else score[t] + one
            seen += 1
        if seen == 0:
            score[:] = 0.0
        for t in range(rows.shape[0]):
            if score[t] > held[t] and rows[t] >= 0 and eligible[grid[rows[t], s]]:
                chosen[t], held[t] = grid[rows[t], s], score[t]


@inlined_kernel
def best_of(scores: Floats, eligible: Bools | None) -> int:
    """Give the best eligible index, the first among equals; None stands for all."""
    best, chosen = -np.inf, -1
    for a in range(scores.shape[0]):
        if (eligible is None or eligible[a]) and (chosen < 0 or scores[a] > best):
            best, chosen = scores[a], a
    return chosen
