"""Which intervals an estimate gets: those that hold for the way its log came about."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from sims.ope.adaptive import ImportanceBetting, running_spreads, stabilised
from sims.ope.bootstrap import Bootstrap
from sims.ope.collection import Collection
from sims.ope.estimators import Terms, mean_of
from sims.ope.intervals import Interval, Moments, student
from sims.ope.plan import Plan
from sims.ope.sequences import MixtureBernstein

STEP = 65_536
FAIR = ("ips", "dr")
"""Means of scores whose expectation given the past is the value."""

CONSISTENT = ("ips", "snips", "dr", "sndr")
"""Estimates that the one interval of betting, which is of the policy's value, is put beside."""

INDEPENDENT = ("student", "bca")
"""Intervals that take rows, or customers, as independent."""


class Subject(NamedTuple):
    """One estimate that wants intervals.

    Attributes
    ----------
    name
        Of the estimate.
    estimator
        The same without its model.
    terms
        What every row adds.
    plain
        The same without bias; None: its own have none.
    caution
        Why its bias can not be told from the log.
    """

    name: str
    estimator: str
    terms: Terms
    plain: Terms | None
    caution: str | None


class Given(NamedTuple):
    """Intervals of an estimate, and what to be careful about."""

    intervals: tuple[Interval, ...]
    standard_error: float | None
    caution: str | None


def kinds(how: Plan, collection: Collection) -> tuple[str, ...]:
    """Give the kinds of intervals: those asked for, or those that hold."""
    if how.intervals is not None:
        return tuple(how.intervals)
    if not collection.is_adaptive:
        return INDEPENDENT if how.replicates else INDEPENDENT[:1]
    return ("stabilised", "betting") if how.bounds is not None else ("stabilised",)


def explanation(how: Plan, collection: Collection) -> str:
    """Say which intervals there are, and why."""
    meant = {
        "student": "student (one look, independent rows)",
        "bca": "bca (one look, independent rows)",
        "stabilised": "stabilised (one look, also where the policy learned)",
        "betting": "betting (any number of looks, also where the policy learned)",
    }
    told = f"intervals: {', '.join(meant[kind] for kind in kinds(how, collection))}"
    told += f"; {collection.why}"
    if collection.is_adaptive and how.bounds is None and how.intervals is None:
        told += "; betting needs the range of rewards to be declared"
    return told


class Offer:
    """Makes intervals for the estimates of one log.

    Parameters
    ----------
    weights, rewards : (n,)
        Rows in the order of the log.
    customers : (n,) or None
        Whose they are.
    """

    def __init__(
        self,
        how: Plan,
        collection: Collection,
        weights: Floats,
        rewards: Floats,
        customers: Ints | None,
    ) -> None:
        self._how, self._customers = how, customers
        self._weights, self._rewards = weights, rewards
        self._is_adaptive = collection.is_adaptive
        self._kinds = kinds(how, collection)
        self._draws: Bootstrap | None = None
        self._wager: Interval | None = None

    def draw(self, shown: Mapping[str, Terms]) -> None:
        """Draw replicates of all estimates together, if an interval needs them."""
        how = self._how
        if "bca" not in self._kinds or not how.replicates or not shown:
            return
        self._draws = Bootstrap(list(shown), seed=how.seed, replicates=how.replicates)
        rows = len(next(iter(shown.values())).numerators)
        for start in range(0, rows, STEP):
            batch = {name: terms.part(start, start + STEP) for name, terms in shown.items()}
            customers = None if self._customers is None else self._customers[start : start + STEP]
            self._draws.add(batch, customers)
            how.tell("drawing", min(start + STEP, rows))

    def intervals(self, one: Subject) -> Given:
        """Give what holds for an estimate.

        Raises
        ------
        InvalidInputError
            If no interval can be made: why.
        """
        moments = Moments.of(one.terms, self._customers)
        if one.plain is not None:
            return self._of_biased(one, moments)
        found: list[Interval] = []
        refused: InvalidInputError | None = None
        for kind in self._kinds_of(one):
            make = self._makers[kind]
            try:
                found.append(make(self, one, moments))
            except InvalidInputError as error:
                if kind == "betting":
                    raise  # the propensities are wrong
                refused = error
        if refused is not None and not found:
            raise refused
        plain = [i.kind for i in found if i.kind in INDEPENDENT]
        is_wrong = self._is_adaptive and one.name != "logged" and bool(plain)
        caution = None
        if is_wrong:
            caution = f"{_and(plain)} take rows as independent, and the policy that logged learned"
        elif not found:
            caution = _NONE if self._is_adaptive else f"{_and(list(self._kinds))} are not of it"
        elif refused is not None:
            caution = refused.message
        has_error = not self._is_adaptive or bool(plain)
        return Given(tuple(found), moments.error if has_error else None, caution)

    def _kinds_of(self, one: Subject) -> list[str]:
        asked = list(self._kinds)
        if one.name == "logged" and self._is_adaptive and "student" not in asked:
            # its rows all have weight 1, and a sum of fair differences is normal in the limit
            asked = ["student", *(kind for kind in asked if kind != "bca")]
        fits = {
            "student": True,
            "bca": self._draws is not None,
            "stabilised": one.estimator in FAIR,
            "betting": one.estimator in (*CONSISTENT, "logged"),
        }
        return [kind for kind in asked if fits[kind]]

    def _of_biased(self, one: Subject, moments: Moments) -> Given:
        if self._is_adaptive:
            return Given((), None, _NONE)
        found: tuple[Interval, ...] = ()
        if "student" in self._kinds and one.caution is None:
            found = (_with_bias(one, moments, self._customers, self._how.level),)
        return Given(found, moments.error, one.caution)

    def _student(self, one: Subject, moments: Moments) -> Interval:
        del one
        return student(moments, self._how.level)

    def _bca(self, one: Subject, moments: Moments) -> Interval:
        del moments
        assert self._draws is not None  # noqa: S101  only asked for where it was drawn
        return self._draws.interval(one.name, self._how.level)

    def _stabilised(self, one: Subject, moments: Moments) -> Interval:
        del moments
        scores = one.terms.numerators
        return stabilised(scores, running_spreads(scores), self._how.level)

    def _betting(self, one: Subject, moments: Moments) -> Interval:
        """Give the one interval of the value; of the log's own mean one that may drift."""
        del moments
        assert self._how.bounds is not None  # noqa: S101  the plan checks it
        if one.name == "logged":
            mean = MixtureBernstein(self._how.bounds, level=self._how.level)
            mean.add(self._rewards)
            return mean.interval
        if self._wager is None:
            self._how.tell("betting", len(self._rewards))
            wager = ImportanceBetting(
                self._how.bounds,
                level=self._how.level,
                largest_weight=self._how.largest_weight,
            )
            wager.add(self._weights, self._rewards)
            self._wager = wager.interval
        return self._wager

    _makers: Mapping[str, Callable[["Offer", Subject, Moments], Interval]] = {
        "student": _student,
        "bca": _bca,
        "stabilised": _stabilised,
        "betting": _betting,
    }


_NONE = "it has no interval that holds where the policy that logged learned; read ips or dr"


def _and(words: list[str]) -> str:
    return " and ".join(words)


def _with_bias(one: Subject, own: Moments, customers: Ints | None, level: float) -> Interval:
    """Give an interval that holds although the estimate is biased.

    Notes
    -----
    The value less that of the plain estimator is an unbiased estimate of the bias. Its interval
    and that of the value share the error, half each.
    """
    assert one.plain is not None  # noqa: S101  checked by the caller
    rows = one.plain.numerators - one.terms.numerators
    bias = Moments.of(mean_of(np.asarray(rows)), customers)
    tail = 0.5 + level / 2
    half = student(own, tail).width / 2 + abs(bias.value) + student(bias, tail).width / 2
    return Interval(own.value - half, own.value + half, "student and bias", level)
