"""Rules of choice: from scores or from probabilities of being best to choice probabilities."""

import numpy as np

from bandit.kernels.arithmetic import exp
from bandit.kernels.compiling import Bools, Floats, Ints, Words, kernel
from bandit.kernels.propensities import apply_floor, pick
from bandit.kernels.scoring import best_of
from bandit.kernels.streams import uniform


@kernel
def greedy(scores: Floats, which: Ints, masks: Bools, epsilon: float) -> Floats:
    """Give ``1 - epsilon`` to the best eligible score, and epsilon in equal parts to all.

    Parameters
    ----------
    scores : (n, k)
    which : (n,)
        Row of ``masks`` that holds each decision's eligible actions.
    masks : (e, k)
    epsilon
        In [0, 1].

    Returns
    -------
    (n, k)
    """
    n, k = scores.shape
    p = np.zeros((n, k))
    for t in range(n):
        eligible = masks[which[t]]
        share = epsilon / eligible.sum()
        for a in range(k):
            if eligible[a]:
                p[t, a] = share
        p[t, best_of(scores[t], eligible)] += 1.0 - epsilon
    return p


@kernel
def softmax(scores: Floats, which: Ints, masks: Bools, temperature: float) -> Floats:
    """Weigh every eligible action by ``exp((score - best) / temperature)``; rows do not sum to 1.

    Parameters and result as in ``greedy``.

    Notes
    -----
    The exponent is at most 0, so nothing overflows; below -708 it is cut off, which leaves
    an action 3e-308.
    """
    n, k = scores.shape
    p = np.zeros((n, k))
    for t in range(n):
        eligible = masks[which[t]]
        best = scores[t, best_of(scores[t], eligible)]
        for a in range(k):
            if eligible[a]:
                p[t, a] = exp((scores[t, a] - best) / temperature)
    return p


@kernel
def sums_of_others(values: Floats, out: Floats) -> None:
    """Fill ``out : (k,)`` with the sum of all values but the own, by sums from both ends."""
    total = 0.0
    for a in range(values.shape[0]):
        out[a] = total
        total += values[a]
    total = 0.0
    for a in range(values.shape[0] - 1, -1, -1):
        out[a] += total
        total += values[a]


@kernel
def top_two(best: Floats, share: float) -> Floats:
    """Choice probabilities of top-two Thompson sampling.

    Parameters
    ----------
    best : (n, k)
        Probability of every action that it is best, zero where not eligible.
    share
        Probability that the leader is played, in (0, 1]; else a challenger is.

    Returns
    -------
    (n, k)
        ``best_a (share + (1 - share) sum over b != a of best_b / (1 - best_b))``. Where one
        action has all the mass it gets ``share`` alone: the rows are still to be scaled.

    Notes
    -----
    O(n k). Nothing is subtracted: ``1 - best_b`` is the sum of the others, so that a
    challenger keeps its digits however sure the leader is.
    """
    n, k = best.shape
    p = np.empty((n, k))
    odds, others = np.empty(k), np.empty(k)
    for t in range(n):
        sums_of_others(best[t], others)
        for b in range(k):
            odds[b] = best[t, b] / others[b] if others[b] > 1e-290 else 0.0
        sums_of_others(odds, others)
        for a in range(k):
            p[t, a] = best[t, a] * (share + (1.0 - share) * others[a])
    return p


@kernel
def draw(p: Floats, which: Ints, masks: Bools, streams: Words, floor: float) -> Ints:
    """Scale every row of ``p : (n, k)`` and mix it with the floor in place; draw from the result.

    Returns
    -------
    (n,)
    """
    n = p.shape[0]
    actions = np.empty(n, dtype=np.int64)
    for t in range(n):
        apply_floor(masks[which[t]], floor, p[t])
        actions[t] = pick(p[t], uniform(streams[t], 0))
    return actions
