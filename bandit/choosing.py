"""Policies: from belief and contexts to actions and the probability of every action.

A policy gives every eligible action a probability, mixes the vector with its floor, and draws
the action from the result. See ``docs/math/policies.md``.
"""

from dataclasses import dataclass
from typing import Protocol, cast

from bandit.kernels import deciding, rules
from bandit.kernels.compiling import Floats
from bandit.snapshot import Asked, Belief, Choices


class Policy(Protocol):
    """Anything that turns belief into choices, without changing the belief."""

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        """Choose one eligible action for every context.

        Parameters
        ----------
        propensities
            Whether to compute the probability of every action. The law of the choice is the
            same either way; the bits of a choice are promised per mode.
        """
        ...


@dataclass(frozen=True, slots=True)
class ThompsonSampling:
    """Choose each action with the probability that it is best, at least ``floor``.

    Notes
    -----
    Source: Agrawal & Goyal, ICML 2013, in score space.
    """

    floor: float = 0.0

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        """Choose by the published belief."""
        if propensities:
            return belief.decide(asked, self.floor)
        return belief.draw(asked, self.floor)


@dataclass(frozen=True, slots=True)
class TopTwo:
    """Play a draw of the best action with probability ``share``, else a draw of its challenger.

    Notes
    -----
    The challenger is the best action of another draw, drawn again until it is not the leader.
    Its law is known in closed form, so nothing is drawn again. Source: Russo, "Simple Bayesian
    algorithms for best-arm identification", Operations Research 68(6), 2020.
    """

    share: float = 0.5
    floor: float = 0.0

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        """Choose by the probabilities of being best."""
        best = cast("Floats", belief.decide(asked, 0.0).propensities)
        return _draw(rules.top_two(best, self.share), asked, self.floor, propensities=propensities)


@dataclass(frozen=True, slots=True)
class LinUCB:
    """Choose the action with the highest mean plus ``confidence`` standard deviations.

    Notes
    -----
    Source: Li, Chu, Langford & Schapire, WWW 2010, with the posterior's own standard
    deviation.
    """

    confidence: float = 1.0
    floor: float = 0.0

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        """Choose by the upper confidence bounds, the first among equals."""
        centre, spread = belief.moments(asked)
        bounds = centre + self.confidence * spread
        p = rules.greedy(bounds, asked.which, asked.masks, 0.0)
        return _draw(p, asked, self.floor, propensities=propensities)


@dataclass(frozen=True, slots=True)
class EpsilonGreedy:
    """Choose the highest mean, but with probability ``epsilon`` any eligible action alike."""

    epsilon: float = 0.1
    floor: float = 0.0

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        """Choose by the means, the first among equals."""
        p = rules.greedy(belief.means(asked), asked.which, asked.masks, self.epsilon)
        return _draw(p, asked, self.floor, propensities=propensities)


@dataclass(frozen=True, slots=True)
class Softmax:
    """Choose each action in proportion to ``exp(mean / temperature)``."""

    temperature: float = 0.1
    floor: float = 0.0

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        """Choose by the means."""
        p = rules.softmax(belief.means(asked), asked.which, asked.masks, self.temperature)
        return _draw(p, asked, self.floor, propensities=propensities)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Choose each eligible action with the same probability."""

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:  # noqa: ARG002
        """Choose without looking at the belief."""
        return Choices(*deciding.decide_uniform(asked.which, asked.masks, asked.streams))


@dataclass(frozen=True, slots=True)
class Fixed:
    """Choose one declared action where it is eligible, uniformly among the rest where not."""

    action: int

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:  # noqa: ARG002
        """Choose without looking at the belief."""
        masks = asked.masks.copy()
        held = masks[:, self.action].copy()
        masks[held] = False
        masks[held, self.action] = True
        return Choices(*deciding.decide_uniform(asked.which, masks, asked.streams))


def _draw(p: Floats, asked: Asked, floor: float, *, propensities: bool) -> Choices:
    """Mix with the floor and draw: the vector is needed in both modes, so both have its bits."""
    actions = rules.draw(p, asked.which, asked.masks, asked.streams, floor)
    return Choices(actions, p if propensities else None)
