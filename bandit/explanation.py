"""Why a decision fell as it did, as data: anybody can render it, nobody has to trust it.

Everything is computed from the belief that decided, the context and the decision; see
``docs/reference/explanation.md``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from scipy.linalg import solve_triangular

from bandit import rng
from bandit.actions import FACTORS, Exclusion
from bandit.decision import Decision, Reason
from bandit.errors import BanditError, InvalidInputError
from bandit.experiment import Experiment
from bandit.features import INTERCEPT, WAVES, FeatureMap
from bandit.kernels import moments
from bandit.kernels.compiling import Bools, Floats
from bandit.policy import WITHOUT_MODEL, ActionName
from bandit.posterior import BetaBernoulliPosterior, Moments, Posterior
from bandit.snapshot import Asked, Snapshot

BASELINE, NON_LINEAR = "(baseline)", "(non-linear)"
UNITS = {"gaussian": "outcome", "logistic": "log-odds", "beta_bernoulli": "rate"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What is believed about one action in this context.

    Attributes
    ----------
    index
        Index in the action space.
    action
        The same by its names.
    mean, sd
        Posterior mean and standard deviation of the score; ``exploration`` is not in it.
    rank
        1 + the number of eligible actions with a higher mean.
    best_probability
        Probability of being the best of the eligible, as the policy draws scores, before
        any floor.
    propensity
        Probability with which the action was to be chosen; None where it was not computed.
    """

    index: int
    action: ActionName
    mean: float
    sd: float
    rank: int
    best_probability: float
    propensity: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldShare:
    """What one context field adds to the difference of scores.

    Attributes
    ----------
    name
        Of the field; ``(baseline)`` for all that no field changes, ``(non-linear)`` for the
        random Fourier features of all fields.
    value
        The field's value in this context; None where missing, or not a field.
    amount
    """

    name: str
    value: float | str | bool | None
    amount: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TermShare:
    """What one term adds to the difference of scores.

    Attributes
    ----------
    term
        Such as ``context:variant``.
    chosen, rival
        Levels of either action in the factors that the term names.
    amount
        Zero where both actions share the term's weights.
    """

    term: str
    chosen: tuple[str, ...]
    rival: tuple[str, ...]
    amount: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The chosen action against the best other one.

    Attributes
    ----------
    rival
        The eligible action of the highest mean, the chosen one apart.
    difference
        Mean score of the chosen less that of the rival; negative if explored.
    difference_sd
        Posterior standard deviation of the difference; shared weights cancel out.
    fields, terms
        Two ways to split the difference; either adds up to it.
    """

    rival: Scored
    difference: float
    difference_sd: float
    fields: tuple[FieldShare, ...]
    terms: tuple[TermShare, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleEffect:
    """What the rules with one reason took away that no rule before them had.

    Attributes
    ----------
    reason
    count
        Number of ``actions``.
    actions
    """

    reason: str
    count: int
    actions: tuple[ActionName, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a decision fell as it did; ``dataclasses.asdict`` makes it JSON.

    Attributes
    ----------
    group, reason
        Of the decision, in lower case.
    chosen_by
        ``model``, the kind of a policy that has none (``uniform``, ``fixed``), or the reason.
    is_explored
        Whether the model chose an action that is not the best by mean; None if it did not
        choose.
    unit
        Of means and amounts: ``outcome``, ``log-odds`` or ``rate``.
    chosen
        The chosen action; None if nothing was sent, or the action was not eligible.
    comparison
        None if the model did not choose, or had one action to choose from.
    eligible
        Number of actions that the rules left.
    removed
        What the rules took away, in their order.
    """

    group: str
    reason: str
    chosen_by: str
    is_explored: bool | None
    unit: str
    chosen: Scored | None
    comparison: Comparison | None
    eligible: int
    removed: tuple[RuleEffect, ...]


@runtime_checkable
class _Linear(Protocol):
    """A posterior over weights of features."""

    features: FeatureMap

    def moments(self) -> Moments:
        """Derive means and factors."""
        ...


class _Split(NamedTuple):
    """Difference of two means by owner of the columns, and by term; and its sd."""

    owners: dict[int, float]
    terms: list[float]
    sd: float


class _LinearScores:
    """Scores of a posterior over weights."""

    def __init__(self, posterior: _Linear, owners: Sequence[int]) -> None:
        self._features = posterior.features
        self._moments = posterior.moments()
        self._owners = np.array(owners)
        self.terms = tuple(term.of for term in posterior.features.terms)

    def means(self, x: Floats) -> Floats:
        """Give every action's mean, shape (k,)."""
        f, mean = self._features, self._moments.mean
        if f.is_disjoint:
            return np.asarray((mean * x).sum(axis=1))
        centre: Floats = moments.joint_means(x.reshape(1, -1), mean[0], f.layout, f.planes)
        first: Floats = centre[0]
        return first

    def sd(self, x: Floats, action: int) -> float:
        """Give the standard deviation of one action's score."""
        f = self._features
        return self._spread(x, action) if f.is_disjoint else self._length(0, f.design(x, action))

    def split(self, x: Floats, one: int, other: int) -> _Split:
        """Split the difference of two means."""
        f, mean = self._features, self._moments.mean
        if f.is_disjoint:
            gap = x * (mean[one] - mean[other])
            sd = math.hypot(self._spread(x, one), self._spread(x, other))
            return _Split(self._by_owner(gap), [float(gap.sum())], sd)
        columns, terms, phi = np.zeros(f.width), [], f.design(x, one) - f.design(x, other)
        parts = phi * mean[0]
        for t, first in enumerate(f.offsets):
            part = parts[first : first + f.sizes[t]]
            terms.append(float(part.sum()))
            if f.crossed[t]:
                columns += part.reshape(-1, f.width).sum(axis=0)
            else:
                columns[0] += part.sum()  # beside the intercept: no field changes it
        return _Split(self._by_owner(columns), terms, self._length(0, phi))

    def _by_owner(self, columns: Floats) -> dict[int, float]:
        return {
            owner: float(columns[self._owners == owner].sum())
            for owner in dict.fromkeys(self._owners.tolist())
        }

    def _spread(self, x: Floats, action: int) -> float:
        return self._length(action, x)

    def _length(self, block: int, phi: Floats) -> float:
        root = solve_triangular(self._moments.lower[block], phi, lower=True)
        return math.sqrt(self._moments.noise_variance * float((root * root).sum()))


class _RateScores:
    """Scores of a Beta-Bernoulli posterior, which knows no context."""

    def __init__(self, posterior: BetaBernoulliPosterior, term: str) -> None:
        a, b = posterior.parameters()
        self._means = a / (a + b)
        self._sds = np.sqrt(self._means * (1.0 - self._means) / (a + b + 1.0))
        self.terms = (term,)

    def means(self, x: Floats) -> Floats:  # noqa: ARG002
        """Give every action's mean, shape (k,)."""
        return self._means

    def sd(self, x: Floats, action: int) -> float:  # noqa: ARG002
        """Give the standard deviation of one action's rate."""
        return float(self._sds[action])

    def split(self, x: Floats, one: int, other: int) -> _Split:  # noqa: ARG002
        """Give the whole difference to the action itself."""
        gap = float(self._means[one] - self._means[other])
        sd = math.hypot(float(self._sds[one]), float(self._sds[other]))
        return _Split({INTERCEPT: gap}, [gap], sd)


class Explainer:
    """Explains decisions that one belief made.

    Parameters
    ----------
    experiment
        Which decided.
    posterior
        As it stood when the decision's snapshot was published.
    snapshot
        Published of it; None publishes it again, which gives the same.

    Raises
    ------
    InvalidInputError
        If the posterior or the snapshot is of another experiment.

    Notes
    -----
    Costs one publication and one ``moments`` when built, O(weights**2) an explanation.
    """

    def __init__(
        self, experiment: Experiment, posterior: Posterior, snapshot: Snapshot | None = None
    ) -> None:
        self._spec = experiment.spec
        self._posterior = posterior
        self._check_posterior()
        published = snapshot or experiment.publish(posterior, version=0)
        experiment.check_snapshot(published)
        self._belief = published.belief

    def _check_posterior(self) -> None:
        """Refuse a posterior over other actions or weights."""
        spec, posterior = self._spec, self._posterior
        fits = (posterior.kind, posterior.actions) == (spec.policy.posterior, spec.actions.size)
        if fits and isinstance(posterior, _Linear):
            mine, given = spec.features, posterior.features
            fits = (mine.terms, mine.width) == (given.terms, given.width) and all(
                [level.name for level in one] == [level.name for level in other]
                for one, other in zip(mine.space.factors, given.space.factors, strict=True)
            )
        if not fits:
            raise InvalidInputError(
                f"is not one of experiment {spec.name!r}: its kind, actions or weights differ",
                field="posterior",
            )

    @cached_property
    def _scores(self) -> _LinearScores | _RateScores:
        posterior = self._posterior
        if isinstance(posterior, BetaBernoulliPosterior):
            sizes = zip(FACTORS, self._spec.actions.factors, strict=True)
            several = [factor for factor, levels in sizes if len(levels) > 1]
            return _RateScores(posterior, ":".join(several or FACTORS[:1]))
        if isinstance(posterior, _Linear):
            return _LinearScores(posterior, self._spec.encoder.owners)
        raise BanditError(f"no explanation of {type(posterior).__name__}")

    def explain(
        self,
        row: Sequence[float] | Floats,
        decision: Decision,
        exclusions: tuple[Exclusion, ...] = (),
    ) -> Explanation:
        """Explain one decision.

        Parameters
        ----------
        row : (fields,)
            Context that was decided on, in schema order.
        decision
            What was decided.
        exclusions
            Rules that came with the request.

        Raises
        ------
        InvalidInputError
            If the row or the decision does not fit the experiment, or the policy's action is
            excluded: then these are not the exclusions that were decided with.
        """
        packed = self._packed(row)
        self._check_decision(decision)
        mask = self._spec.actions.eligible(exclusions)
        action, by = decision.action, self._chosen_by(decision)
        if action is not None and not mask[action]:
            raise InvalidInputError(
                "take away the action that was chosen; give those of the request",
                field="exclusions",
            )
        chosen, comparison = None, None
        if action is not None:
            x = self._spec.encoder.encode(packed)
            means, best = self._scores.means(x[0]), self._best(x, mask)
            chosen = self._scored(action, x[0], mask, means, best, decision)
            others = np.flatnonzero(mask & (np.arange(len(mask)) != action))
            if by == "model" and len(others):
                rival = int(others[np.argmax(means[others])])
                comparison = self._compare(
                    packed[0], x[0], action, self._scored(rival, x[0], mask, means, best, decision)
                )
        return Explanation(
            group=decision.group.name.lower(),
            reason=decision.reason.name.lower(),
            chosen_by=by,
            is_explored=chosen.rank > 1 if chosen is not None and by == "model" else None,
            unit=UNITS.get(self._posterior.kind, "score"),
            chosen=chosen,
            comparison=comparison,
            eligible=int(np.count_nonzero(mask)),
            removed=self._removed(exclusions),
        )

    def _packed(self, row: Sequence[float] | Floats) -> Floats:
        """Give a row that the context's schema could have given, shape (1, fields)."""
        schema = self._spec.schema
        try:
            packed = np.array(row, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"is no list of numbers: {error}", field="row") from None
        if packed.shape != (len(schema.fields),):
            raise InvalidInputError(
                f"has shape {packed.shape}, needs ({len(schema.fields)},): a number for each field",
                field="row",
            )
        packed = packed.reshape(1, -1)
        if not self._spec.encoder.takes(packed):
            try:
                schema.check_rows(packed)
            except InvalidInputError as error:
                path = f"row{error.field.removeprefix('[0]')}"
                raise InvalidInputError(error.message, field=path) from None
            raise InvalidInputError("does not fit the context's schema", field="row")
        return packed

    def _check_decision(self, decision: Decision) -> None:
        size, p = self._spec.actions.size, decision.propensities
        if decision.action is not None and decision.action >= size:
            raise InvalidInputError(
                f"chose action {decision.action}, and this experiment has {size}",
                field="decision.action",
            )
        if p is not None and np.shape(p) != (size,):
            raise InvalidInputError(
                f"has shape {np.shape(p)}, needs ({size},)", field="decision.propensities"
            )

    def _chosen_by(self, decision: Decision) -> str:
        if decision.reason is not Reason.POLICY:
            return decision.reason.name.lower()
        kind = self._spec.policy.kind
        return kind if kind in WITHOUT_MODEL else "model"

    def _best(self, x: Floats, mask: Bools) -> Floats:
        """Give every action's probability of being the best of the eligible, shape (k,)."""
        asked = Asked(
            x, np.zeros(1, np.int64), mask[None].copy(), rng.words(bytes(16)).reshape(1, 4)
        )
        found = self._belief.decide(asked, 0.0).propensities
        return np.full(len(mask), np.nan) if found is None else found[0]

    def _scored(  # noqa: PLR0913
        self,
        action: int,
        x: Floats,
        mask: Bools,
        means: Floats,
        best: Floats,
        decision: Decision,
    ) -> Scored:
        mean = float(means[action])
        p = decision.propensities
        if action == decision.action:
            propensity = None if math.isnan(decision.propensity) else float(decision.propensity)
        else:
            propensity = None if p is None else float(p[action])
        return Scored(
            index=action,
            action=self._named(action),
            mean=mean,
            sd=self._scores.sd(x, action),
            rank=1 + int(np.count_nonzero(means[mask] > mean)),
            best_probability=float(best[action]),
            propensity=propensity,
        )

    def _compare(self, row: Floats, x: Floats, action: int, rival: Scored) -> Comparison:
        split = self._scores.split(x, action, rival.index)
        values = self._spec.schema.values(row)
        fields = [FieldShare(name=BASELINE, value=None, amount=split.owners[INTERCEPT])]
        for place, field in enumerate(self._spec.context):
            if place in split.owners:
                share = split.owners[place]
                fields.append(FieldShare(name=field.name, value=values[field.name], amount=share))
        if WAVES in split.owners:
            waves = split.owners[WAVES]
            fields.append(FieldShare(name=NON_LINEAR, value=None, amount=waves))
        terms = [
            TermShare(
                term=of,
                chosen=self._levels(action, of),
                rival=self._levels(rival.index, of),
                amount=amount,
            )
            for of, amount in zip(self._scores.terms, split.terms, strict=True)
        ]
        return Comparison(
            rival=rival,
            difference=math.fsum(split.owners.values()),
            difference_sd=split.sd,
            fields=tuple(fields),
            terms=tuple(terms),
        )

    def _levels(self, action: int, term: str) -> tuple[str, ...]:
        levels = zip(FACTORS, self._spec.actions.levels(action), strict=True)
        return tuple(level.name for factor, level in levels if factor in term.split(":"))

    def _named(self, action: int) -> ActionName:
        variant, channel, slot = self._spec.actions.levels(action)
        return ActionName(variant=variant.name, channel=channel.name, slot=slot.name)

    def _removed(self, exclusions: tuple[Exclusion, ...]) -> tuple[RuleEffect, ...]:
        rules = (*self._spec.actions.exclusions, *exclusions)
        taken: dict[str, list[ActionName]] = {rule.reason: [] for rule in rules}
        for action, reason in self._spec.actions.removed(exclusions):
            taken.setdefault(reason, []).append(self._named(action))
        return tuple(
            RuleEffect(reason=reason, count=len(names), actions=tuple(names))
            for reason, names in taken.items()
        )


def explain(
    experiment: Experiment,
    posterior: Posterior,
    row: Sequence[float] | Floats,
    decision: Decision,
    *,
    exclusions: tuple[Exclusion, ...] = (),
) -> Explanation:
    """Explain one decision; see ``Explainer``, which explains many at the cost of one."""
    return Explainer(experiment, posterior).explain(row, decision, exclusions)
