"""Policies that learn at once: every outcome is in the belief when the next customer comes."""

from typing import NamedTuple, Protocol

import numpy as np

from bandit import online, propensity, rng
from bandit.actions import ActionSpace
from bandit.experiment import Experiment
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.logistic import LogisticPosterior
from bandit.online import OnlineArms, OnlineWeights
from bandit.policy import PolicySpec
from bandit.posterior import GaussianPosterior
from sims.kernels import rollout as kernels
from sims.kernels.rollout import Rule, Scene, Waiting

_PARAMETERS = {
    "thompson_sampling": (kernels.THOMPSON, None),
    "top_two": (kernels.TOP_TWO, "top_two_share"),
    "linucb": (kernels.LINUCB, "confidence"),
    "epsilon_greedy": (kernels.EPSILON_GREEDY, "epsilon"),
    "softmax": (kernels.SOFTMAX, "temperature"),
}


class Block(NamedTuple):
    """Customers in a row, and all that may come of them.

    Attributes
    ----------
    start
        Number of the first.
    x : (n, d)
        Features.
    times : (n,)
        When they are decided for.
    which, masks : (n,), (e, k)
        Row of ``masks`` with each one's eligible actions.
    earned, due : (n, k)
        What every action would earn, NaN for never, and when that is known.
    """

    start: int
    x: Floats
    times: Floats
    which: Ints
    masks: Bools
    earned: Floats
    due: Floats


class Player(Protocol):
    """A policy in the middle of a replication."""

    def play(self, block: Block) -> Ints:
        """Decide for the next customers, learning on the way; give the actions, shape (n,)."""
        ...


def can_learn_at_once(experiment: Experiment) -> bool:
    """Whether there is a compiled loop for this policy.

    The others - Beta-Bernoulli, pooled, forgetful, and top-two with shared weights - are
    published after every outcome instead, which is the same law and slower.
    """
    policy = experiment.spec.policy
    if policy.kind in ("uniform", "fixed"):
        return True
    if policy.posterior == "beta_bernoulli" or policy.pooled or policy.half_life is not None:
        return False
    return not experiment.spec.is_joint or policy.kind != "top_two"


def begin(experiment: Experiment) -> Player:
    """Start a policy from its prior; see ``can_learn_at_once``."""
    policy = experiment.spec.policy
    stream = rng.words(rng.keyed(experiment.secret, "at-once", experiment.spec.name, b"")[:16])
    if policy.kind in ("uniform", "fixed"):
        return _Unlearned(policy, experiment.spec.actions, stream)
    posterior = experiment.prior()
    assert isinstance(posterior, GaussianPosterior | LogisticPosterior)  # noqa: S101
    belief = online.begin(posterior, exploration=policy.exploration, stream=stream)
    return _Learned(belief, experiment, _rule(policy))


def _rule(policy: PolicySpec) -> Rule:
    kind, parameter = _PARAMETERS[policy.kind]
    value = 0.0 if parameter is None else float(getattr(policy, parameter))
    return Rule(kind, value, policy.floor or 0.0, propensity.NODES, propensity.MARKS)


class _Unlearned:
    """Uniform, or one action where it is eligible and uniform where it is not."""

    def __init__(self, policy: PolicySpec, space: ActionSpace, stream: rng.Stream) -> None:
        self._stream = stream
        name = policy.action
        self._action = None if name is None else space.index(name.variant, name.channel, name.slot)

    def play(self, block: Block) -> Ints:
        masks = block.masks
        if self._action is not None:
            masks = masks.copy()
            held = masks[:, self._action].copy()
            masks[held] = False
            masks[held, self._action] = True
        actions = np.empty(len(block.times), dtype=np.int64)
        kernels.play_uniform(block.which, masks, self._stream, block.start, actions)
        return actions


class _Learned:
    """A belief that is renewed by every outcome, and the outcomes that it waits for."""

    def __init__(self, belief: OnlineArms | OnlineWeights, of: Experiment, rule: Rule) -> None:
        self._belief = belief
        self._features = of.spec.features
        self._rule = rule
        self._x = np.empty((0, of.spec.features.width))
        self._left = _heap(0)

    def play(self, block: Block) -> Ints:
        waits, n = len(self._x), len(block.times)
        heap = _heap(waits + n)
        for mine, left in zip(heap, self._left, strict=True):
            mine[: len(left)] = left  # a sorted list is a heap
        x = np.concatenate([self._x, block.x]) if waits else block.x
        scene = Scene(x, block.times, block.which, block.masks, block.earned, block.due)
        actions = np.empty(n, dtype=np.int64)
        belief, rule = self._belief, self._rule
        if isinstance(belief, OnlineArms):
            kernels.play_arms(scene, block.start, heap, *belief.arrays, rule, actions)
        else:
            f = self._features
            kernels.play_shared(
                *(scene, block.start, heap, *belief.arrays),
                *(f.layout, f.planes, rule, actions),
            )
        self._keep(x, heap)
        return actions

    def _keep(self, x: Floats, heap: Waiting) -> None:
        """Keep what is still waited for, in the order it is due."""
        size = int(heap.size[0])
        order = np.lexsort((heap.places[:size], heap.due[:size]))
        places = heap.places[order]
        back = np.argsort(np.argsort(places))  # customers keep their order among equals
        self._x = x[np.sort(places)]
        self._left = Waiting(
            heap.due[order],
            heap.rewards[order],
            back.astype(np.int64),
            heap.actions[order],
            np.array([size]),
        )


def _heap(room: int) -> Waiting:
    return Waiting(
        np.empty(room),
        np.empty(room),
        np.empty(room, dtype=np.int64),
        np.empty(room, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
    )
