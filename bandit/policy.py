"""The declaration of a policy, and the policy that it declares."""

from dataclasses import dataclass, field, fields

import numpy as np

from bandit.actions import ActionSpace
from bandit.choosing import (
    EpsilonGreedy,
    Fixed,
    LinUCB,
    Policy,
    Softmax,
    ThompsonSampling,
    TopTwo,
    Uniform,
)
from bandit.errors import InvalidInputError, NotFoundError
from bandit.features import Term
from bandit.fourier import Fourier
from bandit.posterior import Noise

KINDS = (
    "thompson_sampling",
    "top_two",
    "linucb",
    "epsilon_greedy",
    "softmax",
    "uniform",
    "fixed",
)

WITHOUT_MODEL = ("uniform", "fixed")
POSTERIORS = ("gaussian", "logistic", "beta_bernoulli")
MAX_DRAWS = 16_384
_OWN = {
    "top_two_share": ("top_two", 0.01, 1.0),
    "confidence": ("linucb", 0.0, 100.0),
    "epsilon": ("epsilon_greedy", 0.0, 1.0),
    "temperature": ("softmax", 1e-9, 1e9),
}
"""Parameters that one kind alone uses, that kind, and their limits."""


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
        ``thompson_sampling``, ``top_two``, ``linucb``, ``epsilon_greedy``, ``softmax``,
        ``uniform`` or ``fixed``.
    posterior
        ``gaussian`` (any reward, with context), ``logistic`` (outcomes in [0, 1], with context)
        or ``beta_bernoulli`` (outcomes in [0, 1], none).
    exploration
        Multiplies the posterior standard deviation: 1 is calibrated, 0 greedy.
    floor
        Least probability of every eligible action; None is 0 where propensities are exact,
        and a share of 1 / draws spread over the actions where they come from joint draws
        (``thompson_sampling`` and ``top_two`` with shared weights).
    draws
        Joint draws behind the propensities of shared weights.
    terms
        Blocks of weights; empty takes ``default_terms``.
    noise
        Known reward noise, or its prior.
    base_rate
        Share of successes that a ``logistic`` posterior expects before the first outcome.
    fourier
        Random Fourier features, for scores that are not linear in the context; None: linear.
    successes, failures
        Beta prior of every action.
    pooled
        Whether the actions' prior is fitted anew from what all of them taught, whenever the
        belief is published; the declared prior is then where the fit begins. For actions with
        weights of their own, and for ``beta_bernoulli``.
    action
        The action of a ``fixed`` policy.
    top_two_share
        Probability that ``top_two`` plays the leader, not its challenger.
    confidence
        Standard deviations that ``linucb`` adds to the mean.
    epsilon
        Share of its decisions that ``epsilon_greedy`` spreads evenly.
    temperature
        Difference of means, in the reward's unit, that ``softmax`` answers with e-fold odds.
    half_life
        Seconds after which an outcome weighs half as much as a new one; None never forgets.

    Raises
    ------
    InvalidInputError
        If a value is out of range, or parts do not fit together.
    """

    kind: str = "thompson_sampling"
    posterior: str = "gaussian"
    exploration: float = 0.35
    floor: float | None = None
    draws: int = 256
    terms: tuple[Term, ...] = ()
    noise: Noise = field(default_factory=Noise)
    base_rate: float = 0.5
    fourier: Fourier | None = None
    successes: float = 1.0
    failures: float = 1.0
    pooled: bool = False
    action: ActionName | None = None
    top_two_share: float = 0.5
    confidence: float = 1.0
    epsilon: float = 0.1
    temperature: float = 0.1
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
        self._check_logistic()
        if (self.action is not None) != (self.kind == "fixed"):
            raise InvalidInputError("goes with kind = fixed, and only there", field="action")
        if self.half_life is not None and not 1e-3 <= self.half_life <= 1e9:
            raise InvalidInputError(
                f"must be in [0.001, 1e9] seconds, got {self.half_life}", field="half_life"
            )
        self._check_own()

    def _check_own(self) -> None:
        """Check what one kind alone uses: a value that does nothing is a mistake."""
        for name, (kind, least, most) in _OWN.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidInputError(f"must be in [{least}, {most}], got {value}", field=name)
            if self.kind != kind and value != _DEFAULTS[name]:
                raise InvalidInputError(f"goes with kind = {kind}, and only there", field=name)

    def _check_logistic(self) -> None:
        if not 1e-6 <= self.base_rate <= 1.0 - 1e-6:
            raise InvalidInputError(
                f"must be in [1e-6, 1 - 1e-6], got {self.base_rate}", field="base_rate"
            )
        if self.posterior == "logistic":
            if self.noise != Noise():
                raise InvalidInputError(
                    "has no place in a logistic posterior: a rate fixes its own noise",
                    field="noise",
                )
        elif self.base_rate != 0.5:
            raise InvalidInputError(
                "goes with posterior = logistic, and only there", field="base_rate"
            )


_DEFAULTS = {part.name: part.default for part in fields(PolicySpec)}


def build(spec: PolicySpec, space: ActionSpace, *, is_joint: bool) -> Policy:
    """Give the policy that a spec declares.

    Parameters
    ----------
    is_joint
        Whether actions share weights; where propensities then come from joint draws, the
        floor has a default.

    Raises
    ------
    InvalidInputError
        If the floor does not leave room for every action, or the fixed action is unknown.
    """
    if spec.kind == "uniform":
        return Uniform()
    if spec.action is not None:
        return _fixed(spec.action, space)
    eligible = int(np.count_nonzero(space.mask))
    floor = resolved_floor(spec, space, is_joint=is_joint)
    if floor * eligible >= 1.0:
        raise InvalidInputError(
            f"{floor} times {eligible} actions leaves no room to choose; use less than "
            f"{1.0 / eligible:.6g}",
            field="floor",
        )
    match spec.kind:
        case "top_two":
            return TopTwo(spec.top_two_share, floor)
        case "linucb":
            return LinUCB(spec.confidence, floor)
        case "epsilon_greedy":
            return EpsilonGreedy(spec.epsilon, floor)
        case "softmax":
            return Softmax(spec.temperature, floor)
        case _:
            return ThompsonSampling(floor)


def resolved_floor(spec: PolicySpec, space: ActionSpace, *, is_joint: bool) -> float:
    """Give the declared floor, or its default; see ``build``."""
    if spec.floor is not None:
        return spec.floor
    is_drawn = is_joint and spec.kind in ("thompson_sampling", "top_two")
    return 1.0 / (spec.draws * int(np.count_nonzero(space.mask))) if is_drawn else 0.0


def _fixed(name: ActionName, space: ActionSpace) -> Policy:
    try:
        action = space.index(name.variant, name.channel, name.slot)
    except NotFoundError as error:
        raise InvalidInputError(error.message, field=f"action.{error.field}") from None
    if not space.mask[action]:
        raise InvalidInputError("is excluded by actions.exclusions, or retired", field="action")
    return Fixed(action)
