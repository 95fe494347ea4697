"""Additive statistics: outcomes added one at a time, in log order."""

import numpy as np

from bandit.kernels.compiling import Floats, Ints, kernel
from bandit.kernels.layouts import Terms


@kernel
def are_sound(x: Floats, action: Ints, reward: Floats, actions: int, largest: float) -> int:
    """Give the first fault of outcomes: 0 none, 1 a number not finite or too large, 2 an action.

    ``x : (n, d)`` must be finite, ``reward : (n,)`` within +- ``largest``.
    """
    for t in range(x.shape[0]):
        if not abs(reward[t]) <= largest:
            return 1
        for i in range(x.shape[1]):
            if not abs(x[t, i]) < np.inf:
                return 1
    for t in range(action.shape[0]):
        if not 0 <= action[t] < actions:
            return 2
    return 0


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
def correct_dense(
    x: Floats, block: Ints, reward: Floats, replaced: Floats, weight: Floats, h: Floats, s: Floats
) -> None:
    """Let outcomes that ``fold_dense`` added be others: contexts and weights stay as they are.

    Parameters
    ----------
    reward, replaced : (n,)
        What was earned, and what was believed before.

    Notes
    -----
    Nothing is taken out of the precision, so it stays what it was to the last bit.
    """
    for t in range(x.shape[0]):
        b, w = block[t], weight[t]
        rise = w * (reward[t] - replaced[t])
        for i in range(x.shape[1]):
            h[b, i] += rise * x[t, i]
        s[b, 1] = max(s[b, 1] + rise * (reward[t] + replaced[t]), 0.0)


@kernel
def room_for(terms: Terms, d: int) -> int:
    """Give the most non-zero features that an action can have."""
    room = 0
    for j in range(terms.offsets.shape[0]):
        room += max(terms.parts[j], 1) * (d if terms.crossed[j] else 1)
    return room


@kernel
def active_features(x: Floats, action: int, terms: Terms, index: Ints, value: Floats) -> int:
    """List an action's non-zero features, in order of their index, and give their number.

    Parameters
    ----------
    x : (d,)
    index, value : (room_for(terms, d),)
        Filled with which weights the score adds up, and their coefficients.
    """
    d, n = x.shape[0], 0
    for j in range(terms.offsets.shape[0]):
        first, cell = terms.offsets[j], terms.cells[j, action]
        parts = max(terms.parts[j], 1)
        for part in range(parts):
            load, place = 1.0, cell
            if terms.parts[j] > 0:
                load, place = terms.loads[j, cell, part], part
                if load == 0.0:
                    continue
            if terms.crossed[j]:
                for i in range(d):
                    if x[i] != 0.0:
                        index[n], value[n] = first + place * d + i, load * x[i]
                        n += 1
            else:
                index[n], value[n] = first + place, load
                n += 1
    return n


@kernel
def fold_sparse(
    x: Floats,
    action: Ints,
    reward: Floats,
    weight: Floats,
    terms: Terms,
    p: Floats,
    h: Floats,
    s: Floats,
) -> None:
    """Add outcomes of a joint model: each touches one cell of every term, or all its parts.

    Parameters
    ----------
    x : (n, d)
    action : (n,)
    reward, weight : (n,)
    p : (1, m, m)
    h : (1, m)
    s : (1, 2)
        As in ``fold_dense``; changed in place.

    Notes
    -----
    O(n z**2) for z non-zero features of an action.
    """
    room = room_for(terms, x.shape[1])
    index, value = np.empty(room, dtype=np.int64), np.empty(room)
    for t in range(x.shape[0]):
        n = active_features(x[t], action[t], terms, index, value)
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
def correct_sparse(
    x: Floats,
    action: Ints,
    reward: Floats,
    replaced: Floats,
    weight: Floats,
    terms: Terms,
    h: Floats,
    s: Floats,
) -> None:
    """Let outcomes that ``fold_sparse`` added be others; see ``correct_dense``."""
    room = room_for(terms, x.shape[1])
    index, value = np.empty(room, dtype=np.int64), np.empty(room)
    for t in range(x.shape[0]):
        n = active_features(x[t], action[t], terms, index, value)
        rise = weight[t] * (reward[t] - replaced[t])
        for i in range(n):
            h[0, index[i]] += rise * value[i]
        s[0, 1] = max(s[0, 1] + rise * (reward[t] + replaced[t]), 0.0)


@kernel
def fold_counts(action: Ints, reward: Floats, weight: Floats, counts: Floats) -> None:
    """Add weighted outcomes in [0, 1] to ``counts : (k, 2)``, successes and failures."""
    for t in range(action.shape[0]):
        counts[action[t], 0] += weight[t] * reward[t]
        counts[action[t], 1] += weight[t] * (1.0 - reward[t])


@kernel
def correct_counts(
    action: Ints, reward: Floats, replaced: Floats, weight: Floats, counts: Floats
) -> None:
    """Move weight between successes and failures, as far as outcomes changed."""
    for t in range(action.shape[0]):
        rise = weight[t] * (reward[t] - replaced[t])
        counts[action[t], 0] = max(counts[action[t], 0] + rise, 0.0)
        counts[action[t], 1] = max(counts[action[t], 1] - rise, 0.0)
