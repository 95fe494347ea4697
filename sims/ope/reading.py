"""A log read for evaluation: fitted in a first look, reduced to columns in a second."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bandit.decision import Group
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from sims.log import Log, taken
from sims.ope.balancing import Balanced, Balancer, Versions
from sims.ope.collection import Collection, Watch
from sims.ope.diagnostics import Counts, Left
from sims.ope.estimators import Weighed, weigh
from sims.ope.models import Fitted, RewardModel, cross_fit
from sims.ope.past import FittedInOrder, fit_in_order
from sims.ope.plan import Plan
from sims.ope.sampling import Sample
from sims.ope.targets import Target, probabilities

Batches = Log | Iterable[Log] | Callable[[], Iterable[Log]]
"""A log in memory, its batches, or a function that opens them anew."""

STEP = 65_536
"""Rows of a log in memory that are looked at together."""

_OTHER = "group with one action"
_USED = (int(Group.BANDIT), int(Group.RANDOM))


class Columns(NamedTuple):
    """Rows as estimates use them: 8 bytes a number, whatever contexts and actions take.

    Attributes
    ----------
    weighed
        By model; without one under the empty name.
    customers, times, versions : (n,) or None
        As in the log.
    collection
        How the log came about.
    """

    weighed: Mapping[str, Weighed]
    customers: Ints | None
    times: Floats | None
    versions: Ints | None
    collection: Collection


class Batch(NamedTuple):
    """Rows that are evaluated, their places in the log, and what was left out."""

    log: Log
    numbers: Ints
    places: Ints
    whole: Log


def _batches(log: Batches) -> Iterator[Batch]:
    """Give batches of rows with their places; leave out groups that have but one action."""
    whole: Iterable[Log] = _cut(log) if isinstance(log, Log) else log() if callable(log) else log
    start = 0
    for batch in whole:
        numbers = np.arange(start, start + len(batch))
        start += len(batch)
        if batch.groups is None:
            yield Batch(batch, numbers, np.arange(len(batch)), batch)
        else:
            places = np.flatnonzero(np.isin(batch.groups, _USED))
            yield Batch(taken(batch, places), numbers[places], places, batch)


def _cut(log: Log) -> Iterator[Log]:
    for start in range(0, len(log), STEP):
        part = taken(log, slice(start, start + STEP))
        yield part if start == 0 else replace(part, excluded={}, separated={})


def _check_twice(log: Batches) -> None:
    if not isinstance(log, Log) and not callable(log) and iter(log) is log:
        raise InvalidInputError(
            "is read twice where a model is fitted; give a list of batches, or a function that "
            "opens them",
            field="log",
        )


class Fits(NamedTuple):
    """What a first look at the log gave."""

    models: Mapping[str, Fitted | FittedInOrder | Floats]
    balanced: Balanced | Mapping[int, float] | None


def fit(log: Batches, target: Target, how: Plan) -> Fits:
    """Look at the log a first time, if something is to be fitted."""
    to_fit = {n: m for n, m in how.used_models.items() if isinstance(m, RewardModel)}
    given = {n: m for n, m in how.used_models.items() if not isinstance(m, RewardModel)}
    balancing = how.balancing if "balanced" in how.names else None
    if not to_fit and balancing is None:
        return Fits(given, None)
    _check_twice(log)
    samples = {name: Sample(model.fit_rows, how.seed) for name, model in to_fit.items()}
    balancer = balancing if isinstance(balancing, Balancer) else None
    if balancer is not None:
        samples[""] = Sample(balancer.fit_rows, how.seed)
    versions: dict[int, int] = {}
    rows = end = 0
    watch = Watch()
    for batch in _batches(log):
        watch.add(batch.log)
        end += len(batch.whole)
        for sample in samples.values():
            sample.add(batch.log, batch.numbers)
        if isinstance(balancing, Versions):
            _count_versions(batch.log, versions)
        rows += len(batch.log)
        how.tell("reading", rows)
    is_adaptive = watch.found(how.logging_is_adaptive).is_adaptive
    found: dict[str, Fitted | FittedInOrder | Floats] = dict(given)
    for name, model in to_fit.items():
        numbers, sampled = samples[name].rows()
        how.tell(f"fitting {name}", len(sampled))
        found[name] = (
            fit_in_order(model, sampled, numbers, end=end, seed=how.seed)
            if is_adaptive
            else cross_fit(model, sampled, numbers, seed=how.seed)
        )
    ordered = {name: found[name] for name in how.used_models}
    if balancer is None:
        return Fits(ordered, {v: c / rows for v, c in versions.items()} if versions else None)
    numbers, sampled = samples[""].rows()
    how.tell("fitting balanced", len(sampled))
    own = target if callable(target) else target[numbers]
    pi = probabilities(own, sampled)
    return Fits(ordered, balancer.fit(sampled, pi, numbers, seed=how.seed))


def _count_versions(log: Log, versions: dict[int, int]) -> None:
    if log.versions is None:
        raise InvalidInputError(
            "has no versions to balance by; use a Balancer", field="log.versions"
        )
    for version, count in zip(*np.unique(log.versions, return_counts=True), strict=True):
        versions[int(version)] = versions.get(int(version), 0) + int(count)


class _Gathered:
    """Columns of the batches so far."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Floats | Ints]] = {}

    def add(self, **columns: Floats | Ints | None) -> None:
        """Add a batch's columns."""
        for name, column in columns.items():
            if column is not None:
                self._parts.setdefault(name, []).append(column)

    def of(self, name: str, rows: int) -> Any:  # noqa: ANN401  numbers of either kind
        """Give a whole column, None if there is none.

        Raises
        ------
        InvalidInputError
            If some batches have it and others do not.
        """
        if name not in self._parts:
            return None
        found = np.concatenate(self._parts.pop(name))
        if len(found) != rows:
            raise InvalidInputError("is in some batches and not in others", field=f"log.{name}")
        return found


def reduce(log: Batches, target: Target, fits: Fits, how: Plan) -> tuple[Columns, Counts, Left]:
    """Look at the log and keep of every row what estimators need."""
    parts, counts, rows, start = _Gathered(), None, 0, 0
    left: dict[str, int] = {}
    bad = 0
    watch = Watch()
    for batch in _batches(log):
        part, whole = batch.log, batch.whole
        watch.add(part)
        for reasons, is_bad in ((whole.excluded, True), (whole.separated, False)):
            for reason, count in reasons.items():
                left[reason] = left.get(reason, 0) + count
                bad += count * is_bad
        if len(part) < len(whole):
            left[_OTHER] = left.get(_OTHER, 0) + len(whole) - len(part)
        counts = counts or Counts(whole.size)
        if whole.size != counts.size:
            raise InvalidInputError("differs between batches", field="log.size")
        if whole.groups is not None and whole.customers is not None:
            counts.add_customers(whole.groups, whole.customers)
        pi = probabilities(target, whole, start=start)
        own = None if how.logging is None else probabilities(how.logging, whole, start=start)
        is_all = len(part) == len(whole)
        pi = pi if is_all else pi[batch.places]
        counts.add(part, pi, own if own is None or is_all else own[batch.places])
        _weigh(batch, pi, fits, how, parts)
        start += len(whole)
        rows += len(part)
        how.tell("evaluating", rows)
    _check_lengths(target, how, start)
    if counts is None or rows == 0:
        raise InvalidInputError("has no rows to evaluate", field="log")
    rewards, weights = parts.of("rewards", rows), parts.of("weights", rows)
    common = {
        "rewards": rewards,
        "weights": weights,
        "balanced": parts.of("balanced", rows),
        "is_normalised": isinstance(how.balancing, Balancer),
    }
    weighed = {
        name: Weighed(
            **common,
            fitted=parts.of(f"fitted {name}", rows),
            direct=parts.of(f"direct {name}", rows),
        )
        for name in fits.models or ("",)
    }
    kept = [parts.of(name, rows) for name in ("customers", "times", "versions")]
    collection = watch.found(how.logging_is_adaptive)
    customers, times, versions = kept
    columns = Columns(weighed, customers, times, versions, collection)
    return columns, counts, Left(left, bad)


def _weigh(batch: Batch, pi: Floats, fits: Fits, how: Plan, parts: _Gathered) -> None:
    """Reduce one batch."""
    log = batch.log
    parts.add(rewards=log.rewards, customers=log.customers, times=log.times, versions=log.versions)
    weighed = None
    for name, model in fits.models.items():
        predicted = (
            model.predict(log, batch.numbers)
            if isinstance(model, Fitted | FittedInOrder)
            else model[batch.numbers[batch.numbers < len(model)]]
        )
        weighed = weigh(log, pi, predicted)
        parts.add(**{f"fitted {name}": weighed.fitted, f"direct {name}": weighed.direct})
    weighed = weighed or weigh(log, pi)
    parts.add(weights=weighed.weights)
    if isinstance(fits.balanced, Balanced):
        parts.add(balanced=fits.balanced.weights(log, pi, batch.numbers))
    elif isinstance(how.balancing, Versions) and fits.balanced is not None:
        parts.add(balanced=how.balancing.weights(log, pi, fits.balanced))


def _check_lengths(target: Target, how: Plan, rows: int) -> None:
    tables: dict[str, object] = {"target": target, "logging": how.logging}
    tables |= {f"models.{name}": model for name, model in how.used_models.items()}
    for name, table in tables.items():
        if isinstance(table, np.ndarray) and len(table) != rows:
            raise InvalidInputError(f"has {len(table)} rows, but the log has {rows}", field=name)
