"""Policies: from belief and contexts to actions and the probability of every action."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bandit.actions import ActionSpace
from bandit.errors import InvalidInputError, NotFoundError
from bandit.features import Term
from bandit.kernels import deciding
from bandit.posterior import Noise
from bandit.snapshot import Asked, Belief, Choices

KINDS = ("thompson_sampling", "uniform", "fixed")
POSTERIORS = ("gaussian", "beta_bernoulli")
MAX_DRAWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionName:
    """One action by the names of its levels."""

    variant: str
    channel: str
    slot: str = "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """How actions are chosen and what is believed.

    Parameters
    ----------
    kind
        ``thompson_sampling``, ``uniform`` or ``fixed``.
    posterior
        ``gaussian`` (any reward, with context) or ``beta_bernoulli`` (outcomes in [0, 1], none).
    exploration
        Multiplies the posterior standard deviation: 1 is calibrated, 0 greedy.
    floor
        Least probability of every eligible action; None is 0 where propensities are exact,
        and a share of 1 / draws spread over the actions where they come from joint draws.
    draws
        Joint draws behind the propensities of shared weights.
    terms
        Blocks of weights; empty takes ``default_terms``.
    noise
        Known reward noise, or its prior.
    successes, failures
        Beta prior of every action.
    action
        The action of a ``fixed`` policy.
    half_life
        Seconds after which an outcome weighs half as much as a new one; None never forgets.

    Raises
    ------
    InvalidInputError
        If a value is out of range, or parts do not fit together.
    """

    kind: str = "thompson_sampling"
    posterior: str = "gaussian"
    exploration: float = 1.0
    floor: float | None = None
    draws: int = 256
    terms: tuple[Term, ...] = ()
    noise: Noise = field(default_factory=Noise)
    successes: float = 1.0
    failures: float = 1.0
    action: ActionName | None = None
    half_life: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInputError(f"{self.kind!r} is none of {', '.join(KINDS)}", field="kind")
        if self.posterior not in POSTERIORS:
            raise InvalidInputError(
                f"{self.posterior!r} is none of {', '.join(POSTERIORS)}", field="posterior"
            )
        if self.exploration != 0.0 and not 1e-3 <= self.exploration <= 100.0:
            raise InvalidInputError(
                f"must be 0, or in [0.001, 100], got {self.exploration}", field="exploration"
            )
        if self.floor is not None and not 0.0 <= self.floor < 1.0:
            raise InvalidInputError(f"must be in [0, 1), got {self.floor}", field="floor")
        if not 16 <= self.draws <= MAX_DRAWS:
            raise InvalidInputError(
                f"must be in [16, {MAX_DRAWS}], got {self.draws}", field="draws"
            )
        for name in ("successes", "failures"):
            value = getattr(self, name)
            if not 0.5 <= value <= 1e9:
                raise InvalidInputError(f"must be in [0.5, 1e9], got {value}", field=name)
        if (self.action is not None) != (self.kind == "fixed"):
            raise InvalidInputError("goes with kind = fixed, and only there", field="action")
        if self.half_life is not None and not 1e-3 <= self.half_life <= 1e9:
            raise InvalidInputError(
                f"must be in [0.001, 1e9] seconds, got {self.half_life}", field="half_life"
            )


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


def build(spec: PolicySpec, space: ActionSpace, *, is_joint: bool) -> Policy:
    """Give the policy that a spec declares.

    Parameters
    ----------
    is_joint
        Whether propensities come from joint draws, which sets the floor's default.

    Raises
    ------
    InvalidInputError
        If the floor does not leave room for every action, or the fixed action is unknown.
    """
    if spec.kind == "uniform":
        return Uniform()
    if spec.kind == "fixed" and spec.action is not None:
        try:
            action = space.index(spec.action.variant, spec.action.channel, spec.action.slot)
        except NotFoundError as error:
            raise InvalidInputError(error.message, field=f"action.{error.field}") from None
        if not space.mask[action]:
            raise InvalidInputError("is excluded by actions.exclusions", field="action")
        return Fixed(action)
    eligible = int(np.count_nonzero(space.mask))
    floor = spec.floor
    if floor is None:
        floor = 1.0 / (spec.draws * eligible) if is_joint else 0.0
    if floor * eligible >= 1.0:
        raise InvalidInputError(
            f"{floor} times {eligible} actions leaves no room to choose; use less than "
            f"{1.0 / eligible:.6g}",
            field="floor",
        )
    return ThompsonSampling(floor)
