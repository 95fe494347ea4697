"""A policy that learns at once, played through a block of customers in one compiled loop.

Contexts and what every action would earn are drawn beforehand, for the whole block. The loop
chooses, looks the outcome up, and learns it as soon as it is due: with the engine's own kernels,
so a step gives the bits that ``bandit.online`` gives. An outcome that is not due yet waits in a
heap, ordered by when it is due and then by customer.
"""

import math
from typing import NamedTuple

import numpy as np

from bandit.kernels.compiling import Bools, Floats, Ints, Words, kernel
from bandit.kernels.layouts import Planes, Terms
from bandit.kernels.moments import joint_means, joint_moments
from bandit.kernels.online import (
    draw_arm,
    draw_shared,
    learn_arm,
    learn_shared,
    scale_of,
    stream_of,
)
from bandit.kernels.propensities import (
    apply_floor,
    floor_draw,
    normal_propensities,
    pick,
    pick_uniform,
)
from bandit.kernels.rules import greedy, softmax, top_two
from bandit.kernels.scoring import score_moments
from bandit.kernels.streams import uniform

THOMPSON, TOP_TWO, LINUCB, EPSILON_GREEDY, SOFTMAX = range(5)
_PICK = 1 << 19
"""Block of a decision's stream whose uniform picks; normals come from those before it."""


class Scene(NamedTuple):
    """A block of customers behind the outcomes that still wait.

    Attributes
    ----------
    x : (w + n, d)
        Features: first of the w decisions that wait for their outcome, then of the block.
    times : (n,)
        When each customer is decided for.
    which, masks : (n,), (e, k)
        Row of ``masks`` with each customer's eligible actions.
    earned, due : (n, k)
        What every action would earn, NaN for never, and when that is known.
    """

    x: Floats
    times: Floats
    which: Ints
    masks: Bools
    earned: Floats
    due: Floats


class Waiting(NamedTuple):
    """A heap of outcomes that are not known yet, with room for more.

    Attributes
    ----------
    due, rewards : (room,)
    places, actions : (room,)
        Row of the scene's features, and what was chosen.
    size : (1,)
        Entries in use.
    """

    due: Floats
    rewards: Floats
    places: Ints
    actions: Ints
    size: Ints


class Rule(NamedTuple):
    """How scores become a choice: a kind of this module, its parameter, the floor, and nodes."""

    kind: int
    parameter: float
    floor: float
    nodes: Floats
    marks: Floats


@kernel
def precedes(heap: Waiting, i: int, j: int) -> bool:
    """Whether entry ``i`` is learned before entry ``j``."""
    if heap.due[i] != heap.due[j]:
        return bool(heap.due[i] < heap.due[j])
    return bool(heap.places[i] < heap.places[j])


@kernel
def swap(heap: Waiting, i: int, j: int) -> None:
    """Let two entries change places."""
    heap.due[i], heap.due[j] = heap.due[j], heap.due[i]
    heap.rewards[i], heap.rewards[j] = heap.rewards[j], heap.rewards[i]
    heap.places[i], heap.places[j] = heap.places[j], heap.places[i]
    heap.actions[i], heap.actions[j] = heap.actions[j], heap.actions[i]


@kernel
def push(heap: Waiting, due: float, place: int, action: int, reward: float) -> None:
    """Let an outcome wait: O(log size)."""
    i = heap.size[0]
    heap.due[i], heap.places[i], heap.actions[i], heap.rewards[i] = due, place, action, reward
    heap.size[0] = i + 1
    while i > 0 and precedes(heap, i, (i - 1) // 2):
        swap(heap, i, (i - 1) // 2)
        i = (i - 1) // 2


@kernel
def pop(heap: Waiting) -> tuple[int, int, float]:
    """Take the first outcome that waits: its place, action and reward."""
    taken = heap.places[0], heap.actions[0], heap.rewards[0]
    n = heap.size[0] - 1
    heap.size[0] = n
    swap(heap, 0, n)
    i = 0
    while 2 * i + 1 < n:
        j = 2 * i + 1
        if j + 1 < n and precedes(heap, j + 1, j):
            j += 1
        if not precedes(heap, j, i):
            break
        swap(heap, i, j)
        i = j
    return taken


@kernel
def pick_by_means(centre: Floats, eligible: Bools, u: float, rule: Rule) -> int:
    """Choose by ``centre : (1, k)`` as epsilon-greedy, softmax or (bounds given) LinUCB do."""
    which, masks = np.zeros(1, dtype=np.int64), eligible.reshape(1, -1)
    if rule.kind == SOFTMAX:
        p = softmax(centre, which, masks, rule.parameter)
    else:
        p = greedy(centre, which, masks, rule.parameter if rule.kind == EPSILON_GREEDY else 0.0)
    apply_floor(eligible, rule.floor, p[0])
    return pick(p[0], u)


@kernel
def choose_arm(
    x: Floats, eligible: Bools, number: int, arms: Floats, state: Floats, rule: Rule
) -> int:
    """Decide among independent arms by any rule; Thompson sampling without a floor is the engine's.

    Parameters
    ----------
    x, eligible, number, arms, state
        As in ``bandit.kernels.online.draw_arm``.
    """
    if rule.kind == THOMPSON:
        if rule.floor > 0.0:
            u = uniform(stream_of(state), (number << 20) + _PICK)
            chosen, _ = floor_draw(eligible, rule.floor, u)
            if chosen >= 0:
                return chosen
        return draw_arm(x, eligible, number, arms, state)
    u = uniform(stream_of(state), (number << 20) + _PICK)
    d, k = x.shape[0], arms.shape[1]
    centre, spread = np.empty((1, k)), np.empty(k)
    score_moments(x, arms[:d], arms[d:], centre[0], spread)
    scale = scale_of(state)
    if rule.kind == LINUCB:
        for a in range(k):
            centre[0, a] += rule.parameter * (scale * spread[a])
    elif rule.kind == TOP_TWO:
        best = np.zeros((1, k))
        for a in range(k):
            spread[a] *= scale
        if spread.max() > 0.0:
            normal_propensities(centre[0], spread, eligible, rule.nodes, rule.marks, best[0])
        else:
            best = greedy(centre, np.zeros(1, dtype=np.int64), eligible.reshape(1, -1), 0.0)
        p = top_two(best, rule.parameter)
        apply_floor(eligible, rule.floor, p[0])
        return pick(p[0], u)
    return pick_by_means(centre, eligible, u, rule)


@kernel
def play_arms(
    scene: Scene,
    number: int,
    waiting: Waiting,
    arms: Floats,
    state: Floats,
    rule: Rule,
    actions: Ints,
) -> None:
    """Play a block with weights of every arm's own; see ``choose_arm``, ``learn_arm``.

    Parameters
    ----------
    number
        Of the block's first decision.
    actions : (n,)
        Filled with what was chosen.
    """
    n, first = scene.times.shape[0], scene.x.shape[0] - scene.times.shape[0]
    for t in range(n):
        while waiting.size[0] > 0 and waiting.due[0] <= scene.times[t]:
            place, action, reward = pop(waiting)
            learn_arm(scene.x[place], action, reward, 1.0, arms, state)
        x, eligible = scene.x[first + t], scene.masks[scene.which[t]]
        chosen = choose_arm(x, eligible, number + t, arms, state, rule)
        actions[t] = chosen
        reward, due = scene.earned[t, chosen], scene.due[t, chosen]
        if np.isnan(reward):
            continue
        if due <= scene.times[t]:
            learn_arm(x, chosen, reward, 1.0, arms, state)
        else:
            push(waiting, due, first + t, chosen, reward)


@kernel
def choose_shared(
    x: Floats,
    eligible: Bools,
    number: int,
    mean: Floats,
    root: Floats,
    state: Floats,
    terms: Terms,
    planes: Planes,
    rule: Rule,
) -> int:
    """Decide with shared weights, by any rule but top-two."""
    if rule.kind == THOMPSON:
        if rule.floor > 0.0:
            u = uniform(stream_of(state), (number << 20) + _PICK)
            chosen, _ = floor_draw(eligible, rule.floor, u)
            if chosen >= 0:
                return chosen
        return draw_shared(x, eligible, number, mean, root, state, terms, planes)
    u = uniform(stream_of(state), (number << 20) + _PICK)
    centre = joint_means(x.reshape(1, -1), mean, terms, planes)
    if (
        rule.kind == LINUCB
    ):  # the root's rows stand for m draws: their sum of squares is the variance
        m = mean.shape[0]
        rows = root.T.copy()
        _, spread = joint_moments(x.reshape(1, -1), np.zeros(m), rows, terms, planes)
        for a in range(centre.shape[1]):
            centre[0, a] += rule.parameter * (scale_of(state) * math.sqrt(m) * spread[0, a])
    return pick_by_means(centre, eligible, u, rule)


@kernel
def play_shared(
    scene: Scene,
    number: int,
    waiting: Waiting,
    mean: Floats,
    root: Floats,
    state: Floats,
    terms: Terms,
    planes: Planes,
    rule: Rule,
    actions: Ints,
) -> None:
    """Play a block with weights that actions share; as ``play_arms`` does."""
    n, first = scene.times.shape[0], scene.x.shape[0] - scene.times.shape[0]
    for t in range(n):
        while waiting.size[0] > 0 and waiting.due[0] <= scene.times[t]:
            place, action, reward = pop(waiting)
            learn_shared(scene.x[place], action, reward, 1.0, terms, mean, root, state)
        x, eligible = scene.x[first + t], scene.masks[scene.which[t]]
        chosen = choose_shared(x, eligible, number + t, mean, root, state, terms, planes, rule)
        actions[t] = chosen
        reward, due = scene.earned[t, chosen], scene.due[t, chosen]
        if np.isnan(reward):
            continue
        if due <= scene.times[t]:
            learn_shared(x, chosen, reward, 1.0, terms, mean, root, state)
        else:
            push(waiting, due, first + t, chosen, reward)


@kernel
def play_uniform(which: Ints, masks: Bools, stream: Words, number: int, actions: Ints) -> None:
    """Choose any eligible action alike, decision ``number`` and on."""
    for t in range(which.shape[0]):
        u = uniform(stream, ((number + t) << 20) + _PICK)
        actions[t] = pick_uniform(masks[which[t]], u)
