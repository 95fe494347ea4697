"""Intervals for logs of a policy that learned while it was logging.

There rows depend on each other: which action is logged depends on earlier rewards. With the
logged propensities every unbiased score (IPS, DR with a model that saw only earlier rows) still
has the same expectation given the past. Two things follow from that alone. ``stabilised``
weighs scores so that their sum is normal in the limit, for a look at a time fixed beforehand;
``ImportanceBetting`` and ``ImportanceBernstein`` bound the wealth of a bettor, for any number of
looks. Sequences of ``sims.ope.sequences`` hold too, for scores in a declared range. Derivations:
docs/math/adaptive-logs.md.
"""

import math
from functools import partial

import numpy as np
from scipy import special

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats, Ints
from sims.kernels import betting
from sims.ope.intervals import Interval, check_bounds, check_level, check_values, scaled
from sims.ope.sequences import Column, declared, plug_in_low, smallest_mean

WARM_UP = 100
"""Rows that a spread is learned from before it counts."""


def stabilised(scores: Floats, spreads: Floats, level: float = 0.95) -> Interval:
    """Interval of the mean of unbiased scores, each weighted by the inverse of its spread.

    Parameters
    ----------
    scores : (n,)
        Unbiased scores in the order of the log, such as IPS or DR contributions.
    spreads : (n,)
        About the standard deviation of every score given the past, up to a common factor, from
        what was known before the row; infinity: the row is left out. See ``arm_spreads``,
        ``version_spreads`` and ``running_spreads``.

    Raises
    ------
    InvalidInputError
        For a score that is not finite or a spread that is not positive: naming the row; with
        fewer than two rows that count; or if these are all equal.

    Notes
    -----
    Hadad, Hirshberg, Zhan, Wager & Athey, Confidence intervals for policy evaluation in adaptive
    experiments, PNAS 118, 2021, equations 7 and 12; with spreads by version, Bibaut, Dimakopoulou,
    Kallus, Chambaz & van der Laan, Post-contextual-bandit inference, NeurIPS 2021. Right in the
    limit of many rows, if spreads follow the true ones up to a common factor. O(n).
    """
    alpha = check_level(level)
    value, error = _stabilised(scores, spreads)
    half = float(special.ndtri(1.0 - alpha / 2)) * error
    return Interval(value - half, value + half, "stabilised", level)


def _stabilised(scores: Floats, spreads: Floats) -> tuple[float, float]:
    """Give the estimate and its standard error."""
    found = check_values(scores, "scores")
    widths = np.asarray(spreads, dtype=np.float64)
    if widths.shape != found.shape:
        raise InvalidInputError(f"must have shape {found.shape}", field="spreads")
    odd: Bools = ~(widths > 0.0)
    if odd.any():
        row = int(np.argmax(odd))
        raise InvalidInputError(f"must be positive, got {widths[row]}", field=f"spreads[{row}]")
    weights = 1.0 / widths
    if np.count_nonzero(weights) < 2:
        raise InvalidInputError("needs 2 rows that count", field="scores")
    weights /= weights.max()
    value = float((weights @ found) / weights.sum())
    error = math.sqrt(float(np.sum((weights * (found - value)) ** 2))) / float(weights.sum())
    if error <= 1e-15 * abs(value):
        raise InvalidInputError(
            f"all rows say {value}: their spread is unknown; ImportanceBetting still holds",
            field="scores",
        )
    return value, error


def arm_spreads(propensities: Floats) -> Floats:
    """Give spreads of the scores of one action under a policy without context, (n,).

    Parameters
    ----------
    propensities : (n,)
        Probability with which **the evaluated action** would have been chosen, on every row,
        whatever was chosen.

    Raises
    ------
    InvalidInputError
        If one does not lie in (0, 1]: naming the row.

    Notes
    -----
    The variance of an inverse-propensity score is about proportional to 1 / e, so weights are
    ``sqrt(e)``: the constant allocation of Hadad et al. 2021.
    """
    found = check_values(propensities, "propensities")
    odd: Bools = (found <= 0.0) | (found > 1.0)
    if odd.any():
        row = int(np.argmax(odd))
        raise InvalidInputError(
            f"must lie in (0, 1], got {found[row]}", field=f"propensities[{row}]"
        )
    return 1.0 / np.sqrt(found)


def version_spreads(
    scores: Floats, weights: Floats, propensities: Floats, versions: Ints, under: Floats
) -> Floats:
    """Give spreads of IPS scores by version of the logging policy, learned from older rows, (n,).

    Rows of the past are weighed as if the version had logged them, so the spread follows the
    policy however quickly it changes.

    Parameters
    ----------
    scores : (n,)
        IPS contributions: weight times reward.
    weights : (n,)
        Probability of the logged action under the evaluated policy over its propensity.
    propensities : (n,)
        Those that were logged.
    versions : (n,)
        Number of the version that logged the row: 0, 1, ... in the order of the log.
    under : (number of versions, n)
        Propensity of every row's logged action, had the version met the row.

    Returns
    -------
    Infinity for the rows of versions with fewer than ``WARM_UP`` rows before them.

    Raises
    ------
    InvalidInputError
        For shapes that do not fit, versions out of order, or a propensity outside of (0, 1].

    Notes
    -----
    Bibaut et al. 2021, section 3, for scores without a model: with the past action's
    probability p under the evaluated policy, g under its own version and g' under this one, the
    score would have been ``p r / g'`` and its row counts ``g' / g`` times; so the second moment
    is the mean of ``score**2 g / g'``. One row more of the largest reward so far is added (1
    where there is none), so that a past without successes is no certainty. O(versions n).
    """
    found = check_values(scores, "scores")
    n = len(found)
    shapes = {"weights": weights, "propensities": propensities, "versions": versions}
    for field, column in shapes.items():
        if np.shape(column) != (n,):
            raise InvalidInputError(f"must have shape ({n},)", field=field)
    if (np.diff(versions) < 0).any() or (n and (versions[0] < 0 or versions[-1] >= len(under))):
        raise InvalidInputError(f"must not decrease, from 0 to {len(under) - 1}", field="versions")
    if np.shape(under) != (len(under), n):
        raise InvalidInputError(f"must have {n} columns", field="under")
    for field, table in (("propensities", propensities), ("under", under)):
        if not ((table > 0.0) & (table <= 1.0)).all():
            raise InvalidInputError("must lie in (0, 1]", field=field)
    spreads = np.full(n, np.inf)
    starts = np.searchsorted(versions, np.arange(len(under)))
    for version, start in enumerate(starts.tolist()):
        stop = int(starts[version + 1]) if version + 1 < len(starts) else n
        if start < WARM_UP or start == stop:
            continue
        past = slice(0, start)
        shift = propensities[past] / under[version, past]
        second = float(np.mean(found[past] ** 2 * shift))
        first = float(np.mean(found[past]))
        largest = float(np.max(np.abs(found[past]) / np.maximum(weights[past], 1e-300))) or 1.0
        one_more = largest**2 * float(np.mean(weights[past] ** 2 * shift)) / start
        spreads[start:stop] = math.sqrt(max(second - first**2, 0.0) + max(one_more, 1e-300))
    return spreads


def running_spreads(scores: Floats, half_life: float = 500.0) -> Floats:
    """Give spreads from how much the scores before differed, fading, (n,).

    For logs of which only the logged propensity is known. It follows a policy that changes
    slowly against ``half_life`` rows.

    Raises
    ------
    InvalidInputError
        For a score that is not finite, or a half-life that is not positive.

    Notes
    -----
    Squared differences from the mean of the rows before; the first ``WARM_UP`` rows are left
    out (infinity). O(n).
    """
    found = check_values(scores, "scores")
    if not (math.isfinite(half_life) and half_life > 0.0):
        raise InvalidInputError(f"must be positive, got {half_life}", field="half_life")
    spreads = np.full(len(found), np.inf)
    betting.fading_spreads(found, 0.5 ** (1.0 / half_life), WARM_UP, spreads)
    return spreads


class _Importance:
    """Rows as weight and reward: two scores that are never negative, one for each end."""

    kind = ""
    largest_weight: float | None = None

    def __init__(self, bounds: tuple[float, float] = (0.0, 1.0), *, level: float = 0.95) -> None:
        self.n = 0
        self.bounds = check_bounds(bounds)
        self.level = level
        self._alpha = check_level(level)

    def _take(self, weights: Floats, rewards: Floats) -> tuple[Floats, Floats]:
        """Give weights, and rewards moved to [0, 1]; count them.

        Raises
        ------
        InvalidInputError
            If a weight is negative, not finite or above the declared largest, or a reward
            outside of the declared range: naming the row.
        """
        factors = check_values(weights, "weights", start=self.n)
        paid = scaled(rewards, self.bounds, "rewards", start=self.n)
        if len(factors) != len(paid):
            raise InvalidInputError(
                f"has {len(factors)} rows, rewards have {len(paid)}", field="weights"
            )
        if (factors < 0.0).any():
            row = int(np.argmax(factors < 0.0))
            raise InvalidInputError(
                f"must be at least 0, got {factors[row]}", field=f"weights[{self.n + row}]"
            )
        most = math.inf if self.largest_weight is None else self.largest_weight
        if (factors > most).any():
            row = int(np.argmax(factors > most))
            raise InvalidInputError(
                f"{factors[row]} is above the declared largest weight {most}",
                field=f"weights[{self.n + row}]",
            )
        self.n += len(factors)
        return factors, paid

    def _give(self, low: float, high: float) -> Interval:
        if max(low, 0.0) > min(high, 1.0):
            raise InvalidInputError(
                f"no value agrees with these {self.n} rows at level {self.level}: weights do "
                "not average 1 (wrong propensities, or actions that were never logged)",
                field="weights",
            )
        return declared(low, high, self.bounds, self.kind, self.level)


class ImportanceBernstein(_Importance):
    """Sequence for the value of a policy from weights and rewards, whatever the largest weight.

    The lower end comes from ``weight * reward``, the upper one from ``weight * (1 - reward)``
    with rewards in [0, 1]: both are at least 0, and their expectations are the value and what it
    lacks to 1. An empirical-Bernstein bound from below needs no more than that.

    Notes
    -----
    Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro, Anytime-valid off-policy inference for
    contextual bandits, 2022, with k = 0 (no model). O(n) time, O(1) memory.
    """

    kind = "importance_bernstein"
    largest_bet = 0.5

    def __init__(self, bounds: tuple[float, float] = (0.0, 1.0), *, level: float = 0.95) -> None:
        super().__init__(bounds, level=level)
        self._states = np.zeros((2, betting.PLUG_IN))

    def add(self, weights: Floats, rewards: Floats) -> None:
        """Add rows, (n,), in the order of the log."""
        factors, paid = self._take(weights, rewards)
        bets = np.empty(len(factors))
        for side, x in enumerate((factors * paid, factors * (1.0 - paid))):
            betting.plug_in(x, self._alpha / 2, self.largest_bet, self._states[side], bets)

    @property
    def interval(self) -> Interval:
        """The interval after all rows so far."""
        low, lack = (plug_in_low(state, self._alpha / 2) for state in self._states)
        return self._give(low, 1.0 - lack)


class ImportanceBetting(_Importance):
    """Sequence for the value of a policy by betting: mostly the narrowest for adaptive logs.

    Parameters
    ----------
    bounds
        Range of rewards, declared beforehand.
    level
        As everywhere.
    largest_weight
        No weight can be larger, known beforehand from the floor of the logging policy; None:
        not known. If it is, half of the money bets on scores of which ``weight - 1`` is taken
        away: much narrower where rewards are mostly near one end of their range, such as clicks.

    Raises
    ------
    InvalidInputError
        For a largest weight below 1: then weights can not average 1.

    Notes
    -----
    Waudby-Smith et al. 2022, with the scores of ``ImportanceBernstein``; the second bettor has
    the control variate of Karampatziakis, Mineiro & Ramdas, Off-policy confidence sequences,
    ICML 2021, and the two are averaged. O(n) to add, O(30 n) a look, 64 bytes a row.

    Examples
    --------
    >>> found = ImportanceBetting(largest_weight=2.0)
    >>> found.add(np.tile([0.0, 2.0], 500), np.tile([1.0, 1.0, 0.0, 0.0], 250))
    >>> found.interval.covers(0.5), round(found.interval.width, 1)
    (True, 0.2)
    """

    kind = "importance_betting"
    largest_share = 0.5

    def __init__(
        self,
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        level: float = 0.95,
        largest_weight: float | None = None,
    ) -> None:
        super().__init__(bounds, level=level)
        if largest_weight is not None and not (
            math.isfinite(largest_weight) and largest_weight >= 1
        ):
            raise InvalidInputError(
                f"must be finite and at least 1, got {largest_weight}", field="largest_weight"
            )
        self.largest_weight = largest_weight
        self._scores = [[Column(), Column()] for _ in range(4)]
        """Scores and bets, for the low and the high end: as they are, then with the variate."""
        self._states = np.zeros((4, betting.PLUG_IN))

    def add(self, weights: Floats, rewards: Floats) -> None:
        """Add rows, (n,), in the order of the log."""
        factors, paid = self._take(weights, rewards)
        earned, lacked = factors * paid, factors * (1.0 - paid)
        scores = [earned, lacked]
        if self.largest_weight is not None:
            most = self.largest_weight
            # 1 - lacked lies in [1 - most, 1]: moved to [0, 1]
            scores += [1.0 - lacked / most, 1.0 - earned / most]
        for side, x in enumerate(scores):
            bets = np.empty(len(x))
            betting.plug_in(x, self._alpha / 2, np.inf, self._states[side], bets)
            self._scores[side][0].append(x)
            self._scores[side][1].append(bets)

    @property
    def interval(self) -> Interval:
        """The interval after all rows so far."""
        low, lack = (
            smallest_mean(partial(self._log_wealth, side), self._alpha / 2) for side in (0, 1)
        )
        return self._give(low, 1.0 - lack)

    def _log_wealth(self, side: int, mean: float) -> float:
        x, bets = (column.values for column in self._scores[side])
        plain = betting.log_wealth(x, bets, mean, self.largest_share)
        if self.largest_weight is None:
            return plain
        x, bets = (column.values for column in self._scores[side + 2])
        moved = (mean - 1.0) / self.largest_weight + 1.0
        other = betting.log_wealth(x, bets, moved, self.largest_share)
        return float(np.logaddexp(plain, other)) - math.log(2.0)
