"""The experiment's specification: one decision point, declared in full.

The file a user writes, the message that creates an experiment and what the simulator runs
are this one thing; ``bandit.spec_file`` reads and writes it.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

from bandit.actions import ActionSpace, check_name
from bandit.choosing import Policy
from bandit.context import ContextField, ContextSchema
from bandit.errors import BanditError, InvalidInputError, NotFoundError
from bandit.features import Encoder, FeatureMap, default_terms
from bandit.gate import Gate
from bandit.groups import Groups
from bandit.outcome import OutcomeRule
from bandit.policy import WITHOUT_MODEL, ActionName, PolicySpec, build, resolved_floor

MAX_DRAWN = 16_000_000
MAX_POOLED = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Publishing:
    """How often the belief that decides is renewed.

    Parameters
    ----------
    outcomes
        After this many new outcomes ...
    seconds
        ... or this long after the first of them, whichever comes first.
    max_age
        Seconds that outcomes may wait for a publication before decisions fall back
        (reason STALE_SNAPSHOT); None never falls back.

    Raises
    ------
    InvalidInputError
        If a value is not positive.
    """

    outcomes: int = 1_000
    seconds: float = 1.0
    max_age: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.outcomes <= 1_000_000:
            raise InvalidInputError(
                f"must be in [1, 1000000], got {self.outcomes}", field="outcomes"
            )
        if not 0.01 <= self.seconds <= 86_400:
            raise InvalidInputError(
                f"must be in [0.01, 86400], got {self.seconds}", field="seconds"
            )
        if self.max_age is not None and not self.seconds < self.max_age <= 1e9:
            raise InvalidInputError(
                f"must be more than publishing.seconds, got {self.max_age}", field="max_age"
            )


@dataclass(frozen=True, kw_only=True)
class ExperimentSpec:
    """One decision point: goal, action space, context schema, policy, controls.

    Parameters
    ----------
    name
        1 to 64 characters, unique per tenant.
    description
        For people; at most 2,000 characters.
    actions
        What may be said, where and when.
    context
        Typed fields known at decision time.
    outcome
        From reward events to the number learned.
    policy
        How actions are chosen.
    groups
        Shares of the groups the bandit is measured against.
    baseline
        Business as usual; required when ``groups.baseline`` is positive.
    fallback
        Sent when the experiment can not choose (paused, stale, nothing eligible); None sends
        nothing.
    publishing
        How often the belief is renewed.
    gate
        Limits that it must keep in simulation before it may start.

    Raises
    ------
    InvalidInputError
        With the path of the first part that does not fit the others.
    """

    name: str
    description: str = ""
    actions: ActionSpace
    context: tuple[ContextField, ...] = ()
    outcome: OutcomeRule
    policy: PolicySpec = field(default_factory=PolicySpec)
    groups: Groups = field(default_factory=Groups)
    baseline: ActionName | None = None
    fallback: ActionName | None = None
    publishing: Publishing = field(default_factory=Publishing)
    gate: Gate = field(default_factory=Gate)

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if len(self.description) > 2_000:
            raise InvalidInputError("is longer than 2000 characters", field="description")
        for name in ("baseline", "fallback"):
            action: ActionName | None = getattr(self, name)
            if action is not None:
                self._check_action(name, action)
        if self.groups.baseline > 0 and self.baseline is None:
            raise InvalidInputError(
                "is required when groups.baseline is positive", field="baseline"
            )
        for name, part in (("context", "schema"), ("policy", "features"), ("policy", "chooser")):
            if part == "features" and not self.has_weights:
                continue
            try:
                getattr(self, part)
            except BanditError as error:
                raise InvalidInputError(error.message, field=error.under(name).field) from None
        if self.is_joint and self.policy.draws * self.actions.size > MAX_DRAWN:
            raise InvalidInputError(
                f"{self.policy.draws} draws of {self.actions.size} actions, at most {MAX_DRAWN} "
                "together are allowed",
                field="policy.draws",
            )
        self._check_rates()
        self._check_pooled()
        self._check_fourier()

    def _check_action(self, name: str, action: ActionName) -> None:
        try:
            index = self.actions.index(action.variant, action.channel, action.slot)
        except NotFoundError as error:
            raise InvalidInputError(error.message, field=f"{name}.{error.field}") from None
        if not self.actions.mask[index]:
            raise InvalidInputError("is excluded by actions.exclusions, or retired", field=name)

    def _check_rates(self) -> None:
        """Refuse what a posterior of rates can not learn from."""
        if self.policy.posterior not in ("beta_bernoulli", "logistic"):
            return
        if self.policy.posterior == "beta_bernoulli":
            if self.actions.size > 2_000:
                raise InvalidInputError("takes at most 2000 actions", field="policy.posterior")
            if self.policy.terms:
                raise InvalidInputError("has no weights, so no terms", field="policy.posterior")
            if self.policy.fourier is not None:
                raise InvalidInputError("uses no context, so no fourier", field="policy.posterior")
        rule = self.outcome
        ends = [r.weight * end for r in rule.rewards for end in r.bounds]
        if not all(0.0 <= v <= 1.0 for v in (*ends, rule.default)):
            raise InvalidInputError(
                "needs outcomes in [0, 1]: bounds times weight, and the default",
                field="policy.posterior",
            )
        if rule.aggregation == "sum":
            raise InvalidInputError(
                "needs outcomes in [0, 1], which a sum can leave: use another aggregation",
                field="policy.posterior",
            )

    def _check_pooled(self) -> None:
        if not self.policy.pooled:
            return
        if self.actions.size == 1:
            raise InvalidInputError(
                "needs two actions or more: one has nothing in common with others",
                field="policy.pooled",
            )
        if not self.has_weights:
            return
        if not self.features.is_disjoint:
            raise InvalidInputError(
                "needs actions with weights of their own; where actions share weights, the term "
                "context is what levels have in common",
                field="policy.pooled",
            )
        work = self.features.blocks * self.features.weights**3
        if work > MAX_POOLED:
            raise InvalidInputError(
                f"takes at most {MAX_POOLED:,} actions x features**3, these are {work:,}",
                field="policy.pooled",
            )

    def _check_fourier(self) -> None:
        if self.policy.fourier is not None and not self.features.crossed.any():
            raise InvalidInputError(
                "does nothing where no term names the context; add context to one of policy.terms, "
                "or leave fourier out",
                field="policy.fourier",
            )

    @cached_property
    def schema(self) -> ContextSchema:
        """The context's schema."""
        return ContextSchema(fields=self.context)

    @cached_property
    def encoder(self) -> Encoder:
        """Context rows to features."""
        return Encoder(self.schema, self.policy.fourier)

    @cached_property
    def features(self) -> FeatureMap:
        """Which weights every action uses."""
        return FeatureMap(
            space=self.actions,
            terms=self.policy.terms or default_terms(self.actions),
            width=self.encoder.width,
        )

    @property
    def has_weights(self) -> bool:
        """Whether the posterior is over weights of features; else ``features`` has no use."""
        return self.policy.posterior != "beta_bernoulli"

    @cached_property
    def is_joint(self) -> bool:
        """Whether actions share weights, so that propensities come from joint draws."""
        return self.has_weights and not self.features.is_disjoint

    @cached_property
    def full_policy(self) -> PolicySpec:
        """The policy with its derived defaults written out: terms, floor, noise scale.

        It decides the same, bit for bit, also where a later release has other defaults.
        """
        policy, noise = self.policy, self.policy.noise
        if policy.posterior == "gaussian" and noise.sd is None:
            noise = replace(noise, scale=noise.scale_for(self.outcome.range))
        floor = policy.floor
        if policy.kind not in WITHOUT_MODEL:
            floor = resolved_floor(policy, self.actions, is_joint=self.is_joint)
        terms = self.features.terms if self.has_weights else ()
        return replace(policy, terms=terms, noise=noise, floor=floor)

    @cached_property
    def model_id(self) -> bytes:
        """What a belief is about, as 16 bytes: this name, these levels, terms and features.

        Retiring a level, and whatever else leaves scores and indices alone, does not change it.
        """
        policy = self.policy
        levels = [
            [(level.name, level.attributes, level.generation) for level in factor]
            for factor in self.actions.factors
        ]
        terms = self.features.terms if self.has_weights else ()
        parts = (self.name, policy.posterior, levels, self.context, terms, policy.fourier)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()

    @cached_property
    def chooser(self) -> Policy:
        """The policy, ready to choose."""
        return build(self.policy, self.actions, is_joint=self.is_joint)
