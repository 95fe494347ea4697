"""Whole decisions: one row or thousands, the same bits."""

import numpy as np

from bandit.kernels.compiling import Bools, Floats, Ints, Words, kernel
from bandit.kernels.layouts import Planes, Terms
from bandit.kernels.propensities import (
    apply_floor,
    floor_draw,
    normal_propensities,
    pick,
    pick_uniform,
    table_propensities,
)
from bandit.kernels.scoring import (
    TILE,
    best_actions,
    best_of,
    level_scores,
    plane_scores,
    score_moments,
    sum_levels,
)
from bandit.kernels.streams import fill_normals, uniform


@kernel
def decide_independent(
    x: Floats,
    which: Ints,
    masks: Bools,
    streams: Words,
    mean: Floats,
    root: Floats,
    nodes: Floats,
    marks: Floats,
    floor: float,
) -> tuple[Ints, Floats]:
    """Thompson sampling among independent arms: exact propensities, then one draw from them.

    Parameters
    ----------
    x : (n, d)
    which : (n,)
        Row of ``masks`` that holds each decision's eligible actions.
    masks : (e, k)
    streams : (n, 4)
    mean, root
        As in ``score_moments``.
    nodes, marks
        As in ``normal_propensities``.

    Returns
    -------
    (n,) and (n, k)
        Actions and all propensities.
    """
    n, k = x.shape[0], masks.shape[1]
    actions, p = np.empty(n, dtype=np.int64), np.zeros((n, k))
    centre, spread = np.empty(k), np.empty(k)
    for t in range(n):
        eligible = masks[which[t]]
        score_moments(x[t], mean, root, centre, spread)
        widest = 0.0
        for a in range(k):
            widest = max(widest, spread[a])
        if widest > 0.0:
            normal_propensities(centre, spread, eligible, nodes, marks, p[t])
        else:
            p[t, best_of(centre, eligible)] = 1.0
        apply_floor(eligible, floor, p[t])
        actions[t] = pick(p[t], uniform(streams[t], 0))
    return actions, p


@kernel
def draw_independent(
    x: Floats,
    which: Ints,
    masks: Bools,
    streams: Words,
    mean: Floats,
    root: Floats,
    floor: float,
) -> Ints:
    """Draw as ``decide_independent`` does in law, without computing a propensity."""
    n, k = x.shape[0], masks.shape[1]
    actions = np.empty(n, dtype=np.int64)
    centre, spread, z = np.empty(k), np.empty(k), np.empty(k)
    for t in range(n):
        eligible = masks[which[t]]
        actions[t], _ = floor_draw(eligible, floor, uniform(streams[t], 0))
        if actions[t] < 0:
            score_moments(x[t], mean, root, centre, spread)
            fill_normals(streams[t], 1, z)
            for a in range(k):
                centre[a] += spread[a] * z[a]
            actions[t] = best_of(centre, eligible)
    return actions


@kernel
def decide_joint(
    x: Floats,
    which: Ints,
    masks: Bools,
    streams: Words,
    bank: Floats,
    terms: Terms,
    planes: Planes,
    floor: float,
) -> tuple[Ints, Floats]:
    """Thompson sampling with shared weights: shares of wins in a sample bank, then one draw.

    Parameters
    ----------
    x, which, masks, streams
        As in ``decide_independent``.
    bank : (m, draws)
        Joint draws of all weights, fixed for a snapshot.

    Returns
    -------
    (n,) and (n, k)
        Actions and all propensities.

    Notes
    -----
    O(draws (non-zero features of all cells + k t)) a row.
    """
    n, k, draws = x.shape[0], masks.shape[1], bank.shape[1]
    actions, p = np.empty(n, dtype=np.int64), np.zeros((n, k))
    tiles = (draws + TILE - 1) // TILE
    tile = (draws + tiles - 1) // tiles
    levels = np.empty((terms.counts.sum(), tile))
    scores, chosen = np.zeros((planes.sizes.sum() + 1, tile)), np.empty(tile, dtype=np.int64)
    for done in range(0, draws, tile):
        start = min(done, draws - tile)  # of the last tile, some may have been counted before
        level_scores(x[0], bank, start, terms, False, levels)  # noqa: FBT003
        sum_levels(levels, terms, planes, False, scores[:-1])  # noqa: FBT003
        for t in range(n):
            level_scores(x[t], bank, start, terms, True, levels)  # noqa: FBT003
            sum_levels(levels, terms, planes, True, scores[:-1])  # noqa: FBT003
            best_actions(scores, planes, masks[which[t]], chosen)
            for winner in chosen[done - start :]:
                if winner >= 0:
                    p[t, winner] += 1.0 / draws
    for t in range(n):
        apply_floor(masks[which[t]], floor, p[t])
        actions[t] = pick(p[t], uniform(streams[t], 0))
    return actions, p


@kernel
def draw_joint(
    x: Floats,
    which: Ints,
    masks: Bools,
    streams: Words,
    bank: Floats,
    terms: Terms,
    planes: Planes,
    floor: float,
) -> Ints:
    """Draw as ``decide_joint`` does in law: one member of the bank, its best action."""
    n, draws = x.shape[0], bank.shape[1]
    actions = np.empty(n, dtype=np.int64)
    scores, chosen = np.zeros((planes.sizes.sum() + 1, 1)), np.empty(1, dtype=np.int64)
    for t in range(n):
        eligible = masks[which[t]]
        actions[t], u = floor_draw(eligible, floor, uniform(streams[t], 0))
        if actions[t] < 0:
            member = min(int(u * draws), draws - 1)
            column = bank[:, member].copy().reshape(-1, 1)
            plane_scores(x[t], column, terms, planes, scores[:-1])
            best_actions(scores, planes, eligible, chosen)
            actions[t] = chosen[0]
    return actions


@kernel
def decide_tabulated(
    which: Ints, masks: Bools, streams: Words, cdf: Floats, density: Floats, floor: float
) -> tuple[Ints, Floats]:
    """Thompson sampling without context among arms tabulated at common nodes."""
    n, k = which.shape[0], masks.shape[1]
    actions, p = np.empty(n, dtype=np.int64), np.zeros((n, k))
    for t in range(n):
        eligible = masks[which[t]]
        if t > 0 and which[t] == which[t - 1]:
            p[t] = p[t - 1]
        else:
            table_propensities(cdf, density, eligible, p[t])
            apply_floor(eligible, floor, p[t])
        actions[t] = pick(p[t], uniform(streams[t], 0))
    return actions, p


@kernel
def decide_uniform(which: Ints, masks: Bools, streams: Words) -> tuple[Ints, Floats]:
    """Draw uniformly among the eligible."""
    n, k = which.shape[0], masks.shape[1]
    actions, p = np.empty(n, dtype=np.int64), np.zeros((n, k))
    for t in range(n):
        eligible = masks[which[t]]
        share = 1.0 / eligible.sum()
        for a in range(k):
            if eligible[a]:
                p[t, a] = share
        actions[t] = pick_uniform(eligible, uniform(streams[t], 0))
    return actions, p
