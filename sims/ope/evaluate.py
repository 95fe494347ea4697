"""The front door: what a policy would have earned, with intervals, or why that can not be said."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from sims.ope import tuning
from sims.ope.diagnostics import (
    Calibration,
    Diagnostics,
    diagnose,
    doubts,
    effective_rows,
    spread_doubts,
    weight_doubts,
)
from sims.ope.estimate import Estimate
from sims.ope.estimators import ESTIMATORS, Terms, Weighed, mean_of, terms_of
from sims.ope.interval_choice import Offer, Subject, explanation
from sims.ope.plan import Plan
from sims.ope.reading import Batches, Columns, fit, reduce
from sims.ope.targets import Target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What all estimators say of one policy.

    Parameters
    ----------
    estimates
        By name; with several models ``name:model``. ``logged`` is what the log itself earned.
    diagnostics
        Whether they can be trusted.
    columns
        Rows as estimates used them, for other intervals.
    why
        Which intervals there are, and why these.
    """

    estimates: Mapping[str, Estimate]
    diagnostics: Diagnostics
    columns: Columns
    why: str = ""

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    def terms(self, name: str) -> Terms:
        """Give what every row adds to an estimate, also to one that is withheld."""
        estimator, _, model = name.partition(":")
        weighed = self.columns.weighed[model or next(iter(self.columns.weighed))]
        if estimator == "logged":
            return _logged(weighed)
        setting = self.estimates[name].setting
        return terms_of(estimator, weighed, np.inf if setting is None else setting)

    def table(self) -> pa.Table:
        """Give a row for every interval of every estimate, and one for what has none."""
        rows = []
        for name, one in self.estimates.items():
            common = {
                "estimate": name,
                "value": one.value,
                "standard_error": one.standard_error,
                "setting": one.setting,
                "effective_rows": one.effective_rows,
                "withheld": one.withheld,
                "caution": one.caution,
            }
            for interval in one.intervals or (None,):
                ends = (None,) * 4 if interval is None else tuple(interval)
                rows.append({**common, **dict(zip(_ENDS, ends, strict=True))})
        return pa.Table.from_pylist(rows, schema=_SCHEMA)

    def calibration_table(self) -> pa.Table:
        """Give propensities against shares, ready to be drawn."""
        fields = Calibration._fields
        found = [row._asdict() for row in self.diagnostics.calibration]
        kinds = [pa.int64()] * 4 + [pa.float64()] * 5
        schema = pa.schema(list(zip(fields, kinds, strict=True)))
        return pa.Table.from_pylist(found, schema=schema)


_ENDS = ("low", "high", "interval", "level")
_SCHEMA = pa.schema(
    [
        ("estimate", pa.string()),
        ("value", pa.float64()),
        ("standard_error", pa.float64()),
        ("setting", pa.float64()),
        ("effective_rows", pa.float64()),
        ("withheld", pa.string()),
        ("caution", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("interval", pa.string()),
        ("level", pa.float64()),
    ]
)


def evaluate(
    log: Batches, target: Target, plan: Plan | None = None, /, **named: object
) -> Evaluation:
    """Estimate what a policy would have earned for every row of a log.

    Parameters
    ----------
    log
        In memory, or in batches. Reward models, a balancer and versions look at the log twice:
        then batches must come from a list or a function that opens them, not from an iterator.
    target
        The policy: probabilities of every action (n, k), or a function from a batch to these; see
        ``targets``.
    plan, named
        A plan, or its parts by name; see ``Plan``.

    Raises
    ------
    InvalidInputError
        For a log or a target that does not fit: naming row and column.

    Notes
    -----
    Where the policy that logged learned from the log's own rows, models see earlier rows only, and
    intervals are those that hold there; see ``interval_choice``.

    Rows of the groups bandit and random count; others have only one action, and are left out and
    counted. Memory: what a batch takes, and 24 bytes a row and 16 more a model. The same bits
    whatever the threads; the same numbers up to rounding whatever the batches.

    Examples
    --------
    >>> from sims.ope.targets import fixed
    >>> from sims.log import Log
    >>> random = np.random.default_rng(1)
    >>> sent = random.integers(0, 2, 4_000)
    >>> clicks = (random.random(4_000) < np.where(sent == 1, 0.3, 0.1)).astype(float)
    >>> log = Log(actions=sent, rewards=clicks, propensities=np.full(4_000, 0.5), size=2)
    >>> found = evaluate(log, fixed(1), estimators=["snips"])
    >>> f"{found['snips'].value:.2f}, {found.diagnostics.effective_rows:.0f} rows"
    '0.30, 2006 rows'
    """
    how = _plan(plan, named)
    fits = fit(log, target, how)
    columns, counts, left = reduce(log, target, fits, how)
    first = next(iter(columns.weighed.values()))
    found = diagnose(
        counts,
        first.weights,
        columns.customers,
        left=left,
        groups=how.groups,
        limits=how.limits,
        level=how.level,
    )
    return Evaluation(
        estimates=_estimates(columns, found, how),
        diagnostics=found,
        columns=columns,
        why=explanation(how, columns.collection),
    )


def _plan(plan: Plan | None, named: Mapping[str, Any]) -> Plan:
    unknown = sorted(set(named) - set(Plan.__dataclass_fields__))
    if unknown:
        raise InvalidInputError(
            f"is not known; there are {', '.join(Plan.__dataclass_fields__)}", field=unknown[0]
        )
    return replace(plan or Plan(), **named)


def _logged(weighed: Weighed) -> Terms:
    return mean_of(weighed.rewards)


_TRACE = 0.01
"""An estimate whose weights sum to less than this share of the plain ones is the model's own."""


class _Asked(NamedTuple):
    """One estimate to make.

    Attributes
    ----------
    name, terms, setting
    weights
        Those that it uses; None: it rests on the model alone.
    withheld
        Why it is.
    plain
        Terms of the same rows without bias; None: its own have none.
    caution
        Why its bias can not be told from the log.
    """

    name: str
    terms: Terms
    setting: float | None
    weights: Floats | None
    withheld: str | None
    plain: Terms | None = None
    caution: str | None = None


def _estimates(columns: Columns, found: Diagnostics, how: Plan) -> dict[str, Estimate]:
    """Make all estimates, and withhold those that can not be trusted."""
    limits = how.limits
    common, of_weights = doubts(found, limits), weight_doubts(found, limits)
    some = next(iter(columns.weighed.values()))
    asked = [_Asked("logged", _logged(some), None, None, None)]
    for name in how.names:
        estimator = ESTIMATORS[name]
        by = columns.weighed if estimator.needs_model else {"": some}
        for model, weighed in by.items():
            setting = _setting(name, weighed, columns.customers, how)
            weights = _weights(name, weighed, setting)
            why = common
            if why is None and name != "dm" and not (name == "balanced" and some.is_normalised):
                why = of_weights
            if why is None and weights is not None:
                why = spread_doubts(weights, limits)
            if why is None and weights is None and len(weighed) < limits.effective_rows:
                why = (
                    f"there are {len(weighed)} rows, at least {limits.effective_rows:.0f} are "
                    "needed; log more"
                )
            label = f"{name}:{model}" if estimator.needs_model and len(by) > 1 else name
            terms = terms_of(name, weighed, np.inf if setting is None else setting)
            plain = _without_bias(name, weighed, terms)
            caution = None
            if plain is not None and (doubt := of_weights or spread_doubts(some.weights, limits)):
                caution = f"how biased it is can not be told: {doubt}"
            asked.append(_Asked(label, terms, setting, weights, why, plain, caution))
    return _with_intervals(asked, columns, how)


def _setting(name: str, weighed: Weighed, customers: Ints | None, how: Plan) -> float | None:
    """Give the setting of an estimator: given, or chosen from the log."""
    if not ESTIMATORS[name].setting:
        return None
    given = (how.settings or {}).get(name)
    if given is not None:
        return float(given)
    how.tell(f"setting {name}", len(weighed))
    return tuning.choose(name, weighed, customers).setting


def _weights(name: str, weighed: Weighed, setting: float | None) -> Floats | None:
    """Give the weights that an estimator uses; None if it rests on the model alone."""
    if name == "dm":
        return None
    if name == "balanced":
        return weighed.balanced
    used = ESTIMATORS[name].shrink(weighed.weights, np.inf if setting is None else setting)
    whole = float(weighed.weights.sum())
    is_model_alone = ESTIMATORS[name].needs_model and float(used.sum()) <= _TRACE * whole
    return None if is_model_alone and whole > 0.0 else used


def _without_bias(name: str, weighed: Weighed, terms: Terms) -> Terms | None:
    """Give the estimator without what biases it; None if nothing does."""
    if name == "dm":
        return terms_of("dr", weighed)
    if not ESTIMATORS[name].setting:
        return None
    plain = terms_of(name, weighed)
    return None if np.array_equal(plain.numerators, terms.numerators) else plain


def _with_intervals(asked: list[_Asked], columns: Columns, how: Plan) -> dict[str, Estimate]:
    """Put intervals around what is not withheld."""
    some = next(iter(columns.weighed.values()))
    offer = Offer(how, columns.collection, some.weights, some.rewards, columns.customers)
    offer.draw({one.name: one.terms for one in asked if one.withheld is None and one.plain is None})
    estimates = {}
    for one in asked:
        effective = None if one.weights is None else effective_rows(one.weights)
        estimate = None
        why = one.withheld
        if why is None:
            estimator = one.name.partition(":")[0]
            try:
                given = offer.intervals(
                    Subject(one.name, estimator, one.terms, one.plain, one.caution)
                )
                estimate = Estimate(
                    name=one.name,
                    value=one.terms.value,
                    intervals=given.intervals,
                    standard_error=given.standard_error,
                    setting=one.setting,
                    effective_rows=effective,
                    caution=given.caution,
                )
            except InvalidInputError as error:
                why = error.message
        estimates[one.name] = estimate or Estimate(
            name=one.name,
            value=None,
            setting=one.setting,
            effective_rows=effective,
            withheld=why,
        )
    return estimates
