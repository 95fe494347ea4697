"""Beliefs renewed after every outcome: rank-one updates of triangular and square roots."""

import math

import numpy as np

from bandit.kernels.arithmetic import exp, logistic
from bandit.kernels.compiling import Bools, Floats, Ints, Words, inlined_kernel, kernel
from bandit.kernels.folding import active_features, room_for
from bandit.kernels.layouts import Planes, Terms
from bandit.kernels.scoring import (
    best_actions,
    best_of,
    block_moments,
    narrow_moments,
    plane_scores,
    score_moments,
)
from bandit.kernels.streams import fill_normals

BLOCK = 64
"""Contexts that are scored together."""


@inlined_kernel
def scale_of(state: Floats) -> float:
    """Give what multiplies a spread: exploration times the noise's standard deviation.

    ``state : (7,)`` holds shape and scale of the noise, its variance if known (or 0),
    exploration, 1 for a logistic model (0 if not), and the bits of the stream's four words: one
    array, since each costs a call 0.1 us.
    """
    variance = state[2] if state[2] > 0.0 else state[1] / state[0]
    scale: float = state[3] * math.sqrt(variance)
    return scale


@inlined_kernel
def stream_of(state: Floats) -> Words:
    """Give the four words of the stream."""
    return state[5:7].view(np.uint32)


@kernel
def newton_site(eta: float, variance: float, reward: float) -> tuple[float, float]:
    """Laplace's step for one logistic outcome: gradient and curvature at the new mode.

    The curvature is at least 1e-200, so that it may divide.
    Solves ``e = eta + variance (reward - logistic(e))`` in its bracket, by Newton's method and,
    where that does not halve the gap, by bisection.
    """
    low, high = eta - variance, eta + variance
    e, last = eta, math.inf
    p = logistic(e)
    for _ in range(100):
        gap = e - eta - variance * (reward - p)
        if abs(gap) <= 1e-12 * (1.0 + variance):
            break
        if gap > 0.0:
            high = e
        else:
            low = e
        step = e - gap / (1.0 + variance * p * (1.0 - p))
        if not low < step < high or abs(gap) > 0.5 * last:
            step = 0.5 * (low + high)
        last = abs(gap)
        e = step
        p = logistic(e)
    odds = exp(-abs(e))
    return reward - p, max(odds / ((1.0 + odds) * (1.0 + odds)), 1e-200)


@kernel
def learn_arm(
    x: Floats, arm: int, reward: float, weight: float, arms: Floats, state: Floats
) -> None:
    """Add one outcome to the belief about one arm of a disjoint model.

    Parameters
    ----------
    x : (d,)
    arm, reward, weight
        What was played, what it earned, and how much that counts.
    arms : (d + d (d + 1) / 2, k)
        Means over packed triangular roots W of the covariances ``W'W`` in units of the noise,
        arm-minor; the arm's column is changed in place.
    state : (7,)
        As in ``scale_of``; shape and scale are changed in place.

    Notes
    -----
    O(1.5 d**2). With P the precision and ``v = W x``, ``P + x x'`` has the root
    ``T**-1 W`` for T the Cholesky factor of ``I + v v'``, whose inverse is known in closed form
    (Gill, Golub, Murray & Saunders, Mathematics of Computation 28, 1974, method C1). Nothing is
    subtracted from a variance, so no number of updates makes one negative.
    """
    d = x.shape[0]
    mean = 0.0
    for i in range(d):
        mean += x[i] * arms[i, arm]
    row, gain = np.empty(d), np.zeros(d)
    pull, is_binary = reward - mean, state[4] > 0.0
    if is_binary:
        variance, n = 0.0, d
        for i in range(d):
            v = 0.0
            for j in range(i + 1):
                v += arms[n + j, arm] * x[j]
            n += i + 1
            variance += v * v
        pull, curvature = newton_site(mean, weight * variance, reward)
        weight *= curvature
        pull /= curvature
    root = math.sqrt(weight)
    before, n = 1.0, d
    for i in range(d):
        v = 0.0
        for j in range(i + 1):
            w = arms[n + j, arm]
            row[j] = w
            v += w * x[j]
        v *= root
        after = before + v * v
        a, b = math.sqrt(before / after), v / math.sqrt(before * after)
        for j in range(i + 1):
            arms[n + j, arm] = a * row[j] - b * gain[j]
            gain[j] += v * row[j]
        n += i + 1
        before = after
    step = root * pull if is_binary else root * pull / before
    for i in range(d):
        arms[i, arm] += gain[i] * step
    if not is_binary:
        state[0] += 0.5 * weight
        state[1] += 0.5 * weight * pull * pull / before


@kernel
def learn_arms(x: Floats, arm: Ints, reward: Floats, arms: Floats, state: Floats) -> None:
    """Add outcomes in order, each as ``learn_arm`` does."""
    for t in range(x.shape[0]):
        learn_arm(x[t], arm[t], reward[t], 1.0, arms, state)


@inlined_kernel
def perturb(number: int, state: Floats, room: Floats) -> None:
    """Add noise to the scores in ``room : (3, k)``: means, then spreads, then space for normals."""
    fill_normals(stream_of(state), number << 20, room[2])
    scale = scale_of(state)
    for a in range(room.shape[1]):
        room[0, a] += (scale * room[1, a]) * room[2, a]


@kernel
def score_arms(x: Floats, number: int, arms: Floats, state: Floats) -> Floats:
    """Draw every arm's score, shape (k,): decision ``number`` of the stream."""
    d, room = x.shape[0], np.empty((3, arms.shape[1]))
    score_moments(x, arms[:d], arms[d:], room[0], room[1])
    perturb(number, state, room)
    scores: Floats = room[0]
    return scores


@kernel
def draw_arm(x: Floats, eligible: Bools | None, number: int, arms: Floats, state: Floats) -> int:
    """Thompson sampling among independent arms; None finds all eligible, 0.1 us faster."""
    return best_of(score_arms(x, number, arms, state), eligible)


@kernel
def draw_few(x: Floats, eligible: Bools | None, number: int, arms: Floats, state: Floats) -> int:
    """``draw_arm`` for fewer than 8 arms, bit for bit and 0.1 us faster: nothing is called."""
    d, room = x.shape[0], np.empty((3, arms.shape[1]))
    narrow_moments(x, arms[:d], arms[d:], room[0], room[1])
    perturb(number, state, room)
    return best_of(room[0], eligible)


@kernel
def draw_arms(x: Floats, eligible: Bools | None, number: int, arms: Floats, state: Floats) -> Ints:
    """Decide as ``draw_arm`` does for contexts ``x : (n, d)``, numbers counting up, bit for bit."""
    n, d = x.shape
    k = arms.shape[1]
    chosen, scale, stream = np.empty(n, dtype=np.int64), scale_of(state), stream_of(state)
    by_arm = arms.T.copy()
    rows, z = np.zeros((d, BLOCK)), np.empty((BLOCK, k))
    scores, spread = np.empty((BLOCK, k)), np.empty(BLOCK)
    centre = np.empty(BLOCK)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        for t in range(size):
            fill_normals(stream, (number + start + t) << 20, z[t])
            for i in range(d):
                rows[i, t] = x[start + t, i]
        for a in range(k):
            column = by_arm[a]
            block_moments(rows, column[:d], column[d:], centre, spread)
            for t in range(size):
                scores[t, a] = centre[t] + (scale * spread[t]) * z[t, a]
        for t in range(size):
            chosen[start + t] = best_of(scores[t], eligible)
    return chosen


@kernel
def learn_shared(
    x: Floats,
    action: int,
    reward: float,
    weight: float,
    terms: Terms,
    mean: Floats,
    root: Floats,
    state: Floats,
) -> None:
    """Add one outcome to the belief about shared weights.

    Parameters
    ----------
    x, action, reward, weight, state
        As in ``learn_arm``.
    mean : (m,)
    root : (m, m)
        Lower triangular W with covariance ``W'W`` in units of the noise; changed in place.

    Notes
    -----
    O(m**2 + m z), by the same recursion as ``learn_arm``.
    """
    m = mean.shape[0]
    room = room_for(terms, x.shape[0])
    index, value = np.empty(room, dtype=np.int64), np.empty(room)
    n = active_features(x, action, terms, index, value)
    v, gain = np.empty(m), np.zeros(m)
    predicted, variance = 0.0, 0.0
    for i in range(n):
        predicted += value[i] * mean[index[i]]
    for j in range(m):
        row, total = root[j], 0.0
        for i in range(n):
            total += row[index[i]] * value[i]
        v[j] = total
        variance += total * total
    pull, is_binary = reward - predicted, state[4] > 0.0
    if is_binary:
        pull, curvature = newton_site(predicted, weight * variance, reward)
        weight *= curvature
        pull /= curvature
    scale, before = math.sqrt(weight), 1.0
    for j in range(m):
        f = scale * v[j]
        after = before + f * f
        a, b = math.sqrt(before / after), f / math.sqrt(before * after)
        row, sums = root[j, : j + 1], gain[: j + 1]
        for i in range(j + 1):
            w = row[i]
            row[i] = a * w - b * sums[i]
            sums[i] += f * w
        before = after
    step = scale * pull if is_binary else scale * pull / before
    for i in range(m):
        mean[i] += gain[i] * step
    if not is_binary:
        state[0] += 0.5 * weight
        state[1] += 0.5 * weight * pull * pull / before


@kernel
def add_rows(rows: Floats, factor: Floats, out: Floats) -> None:
    """Add ``L' factor`` to ``out : (m,)`` for lower triangular L, four rows a pass."""
    m = rows.shape[0]
    whole = m // 4 * 4
    for j in range(0, whole, 4):
        f0, f1, f2, f3 = factor[j], factor[j + 1], factor[j + 2], factor[j + 3]
        for i in range(j + 1):
            out[i] = (
                out[i]
                + f0 * rows[j, i]
                + f1 * rows[j + 1, i]
                + f2 * rows[j + 2, i]
                + f3 * rows[j + 3, i]
            )
        for q in range(j + 1, j + 4):
            for i in range(j + 1, q + 1):
                out[i] += factor[q] * rows[q, i]
    for j in range(whole, m):
        for i in range(j + 1):
            out[i] += factor[j] * rows[j, i]


@kernel
def draw_shared(
    x: Floats,
    eligible: Bools,
    number: int,
    mean: Floats,
    root: Floats,
    state: Floats,
    terms: Terms,
    planes: Planes,
) -> int:
    """Thompson sampling with shared weights: one joint draw of all of them."""
    m = mean.shape[0]
    z, drawn, weights = np.empty(m), np.zeros(m), np.empty((m, 1))
    fill_normals(stream_of(state), number << 20, z)
    add_rows(root, z, drawn)
    scale = scale_of(state)
    for i in range(m):
        weights[i, 0] = mean[i] + scale * drawn[i]
    scores, chosen = np.zeros((planes.sizes.sum() + 1, 1)), np.empty(1, dtype=np.int64)
    plane_scores(x, weights, terms, planes, scores[:-1])
    best_actions(scores, planes, eligible, chosen)
    return int(chosen[0])
