"""Ordered choices without replacement: the law of Plackett and Luce."""

import numpy as np

from bandit.kernels.arithmetic import exp, log
from bandit.kernels.compiling import Bools, Floats, Ints, Words, kernel
from bandit.kernels.propensities import pick
from bandit.kernels.streams import uniform


@kernel
def mass_left(p: Floats, taken: Bools) -> float:
    """Sum ``p : (k,)`` over what is not taken, afresh: what is left may be tiny."""
    total = 0.0
    for a in range(p.shape[0]):
        if not taken[a]:
            total += p[a]
    return total


@kernel
def pick_left(p: Floats, taken: Bools, u: float) -> int:
    """Draw an index that is not taken in proportion to ``p : (k,)``, or -1 if none has any."""
    wanted, total, last = u * mass_left(p, taken), 0.0, -1
    for a in range(p.shape[0]):
        if p[a] > 0.0 and not taken[a]:
            total += p[a]
            last = a
            if wanted < total:
                return a
    return last


@kernel
def draw_first(p: Floats, stream: Words) -> int:
    """Draw the first place from ``p : (k,)``, as a decision draws its action."""
    return pick(p, uniform(stream, 0))


@kernel
def complete(p: Floats, first: int, stream: Words, size: int) -> Ints:
    """Draw the places after the first, each from what the places before it left.

    Parameters
    ----------
    p : (k,)
        Probabilities of the first place; sum to 1.
    first
        Action of the first place.
    stream : (4,)
        Place j spends the first uniform of block j.
    size
        Places.

    Returns
    -------
    (size,)
        Shorter where fewer actions have a positive probability.

    Notes
    -----
    O(size k).
    """
    actions = np.empty(size, dtype=np.int64)
    taken = np.zeros(p.shape[0], dtype=np.bool_)
    a = first
    for j in range(size):
        if j > 0:
            a = pick_left(p, taken, uniform(stream, j))
        if a < 0:
            return actions[:j].copy()
        actions[j] = a
        taken[a] = True
    return actions


@kernel
def place_probabilities(p: Floats, actions: Ints) -> Floats:
    """Probability of each place's action given the places before it.

    Parameters
    ----------
    p : (k,)
        Probabilities of the first place; sum to 1.
    actions : (n,)

    Returns
    -------
    (n,)
        Zero for an action that an earlier place holds.
    """
    out = np.empty(actions.shape[0])
    taken = np.zeros(p.shape[0], dtype=np.bool_)
    for j in range(actions.shape[0]):
        a = actions[j]
        left = mass_left(p, taken) if j > 0 else 1.0
        out[j] = 0.0 if taken[a] or p[a] == 0.0 else p[a] / left
        taken[a] = True
    return out


@kernel
def count_below(stay: Floats, n: int, forward: Floats, backward: Floats, out: Floats) -> None:
    """Probability that fewer than n of the other events happen, for every event left out.

    Parameters
    ----------
    stay : (k,)
        Probabilities that independent events do **not** happen.
    forward, backward : (k + 1, n)
        Scratch: law of the number of events among the first a, and among those from a on.
    out : (k,)
        Filled.

    Notes
    -----
    O(k n), sums of products of positive numbers only.
    """
    k = stay.shape[0]
    forward[0, :] = 0.0
    backward[k, :] = 0.0
    forward[0, 0] = backward[k, 0] = 1.0
    for a in range(k):
        for i in range(n):
            forward[a + 1, i] = forward[a, i] * stay[a]
            if i > 0:
                forward[a + 1, i] += forward[a, i - 1] * (1.0 - stay[a])
    for a in range(k - 1, -1, -1):
        for i in range(n):
            backward[a, i] = backward[a + 1, i] * stay[a]
            if i > 0:
                backward[a, i] += backward[a + 1, i - 1] * (1.0 - stay[a])
    for a in range(k):
        total, below = 0.0, 0.0
        for i in range(n - 1, -1, -1):
            below += backward[a + 1, n - 1 - i]
            total += forward[a, i] * below
        out[a] = total


@kernel
def inclusion(p: Floats, n: int, slowest: float) -> Floats:
    """Probability of every action that it is in a slate of n places.

    Parameters
    ----------
    p : (k,)
        Positive; sum to 1.
    n
        Places, fewer than k.
    slowest
        The n-th largest of ``p``.

    Returns
    -------
    (k,)

    Notes
    -----
    Actions arrive at independent exponential times with rates p, and the first n are the
    slate; so the result is the integral of ``p_a exp(-p_a t) P(fewer than n others by t)``.
    With t = exp(s) the integrand decays doubly exponentially upwards and exponentially
    downwards, and the trapezoidal rule converges geometrically. O(k n sqrt(n)) times some
    hundreds of nodes.
    """
    k = p.shape[0]
    forward, backward = np.empty((k + 1, n)), np.empty((k + 1, n))
    stay, below, out = np.empty(k), np.empty(k), np.zeros(k)
    step = 0.25 / np.sqrt(n)
    low = log(1e-18)
    high = log(80.0) - log(slowest)
    for node in range(int((high - low) / step) + 2):
        time = exp(low + node * step)
        for a in range(k):
            stay[a] = exp(-p[a] * time)
        count_below(stay, n, forward, backward, below)
        for a in range(k):
            out[a] += step * p[a] * time * stay[a] * below[a]
    return out
