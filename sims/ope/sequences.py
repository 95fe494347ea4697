"""Confidence sequences: intervals that hold at every look, whenever one stops.

Rows are added in the order in which they were logged; the interval after any number of rows
holds the mean, at all times together, with the declared probability. Rows need not be
independent: it is enough that each lies in the declared range and that its expectation given
all rows before is the same mean. So they also hold for logs of a policy that learned, if rows
are unbiased scores (``sims.ope.adaptive`` says which, and has one that needs no bound on the
weights). Derivations: docs/math/confidence-sequences.md.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.kernels import betting
from sims.ope import boundaries
from sims.ope.intervals import Interval, check_bounds, check_level, scaled

UNIT = (0.0, 1.0)


class Sequence(Protocol):
    """What every confidence sequence does."""

    n: int

    def add(self, values: Floats) -> None:
        """Add rows, (n,), in the order of the log."""
        ...

    @property
    def interval(self) -> Interval:
        """The interval after all rows so far."""
        ...


def declared(
    low: float, high: float, bounds: tuple[float, float], kind: str, level: float
) -> Interval:
    """Give ends in [0, 1] in the declared range; what lies beyond it is cut."""
    least, most = bounds
    low, high = max(low, 0.0), min(high, 1.0)
    return Interval(least + low * (most - least), least + high * (most - least), kind, level)


class _Bounded:
    """Rows in a declared range, at a level that was declared with it."""

    kind = ""

    def __init__(self, bounds: tuple[float, float] = UNIT, *, level: float = 0.95) -> None:
        self.n = 0
        self.bounds = check_bounds(bounds)
        self.level = level
        self._alpha = check_level(level)

    def _take(self, values: Floats) -> Floats:
        """Give rows moved to [0, 1], and count them.

        Raises
        ------
        InvalidInputError
            If a row is not finite or outside of the range: naming it.
        """
        found = scaled(values, self.bounds, "values", start=self.n)
        self.n += len(found)
        return found

    def _give(self, low: float, high: float) -> Interval:
        """Give ends in [0, 1] in the declared range; what lies beyond it is cut."""
        if max(low, 0.0) > min(high, 1.0):
            raise InvalidInputError(
                f"no mean agrees with these {self.n} rows at level {self.level}: their "
                "expectation drifts, or the order is not that of the log",
                field="values",
            )
        return declared(low, high, self.bounds, self.kind, self.level)


class Hoeffding(_Bounded):
    """By the range alone: wide where rows vary little, and never in need of a variance.

    Notes
    -----
    Predictable plug-in, Waudby-Smith & Ramdas 2024, section 3.1. O(n) time, O(1) memory.
    """

    kind = "hoeffding_sequence"

    def __init__(self, bounds: tuple[float, float] = UNIT, *, level: float = 0.95) -> None:
        super().__init__(bounds, level=level)
        self._sums = np.zeros(3)

    def add(self, values: Floats) -> None:
        """Add rows, (n,), in the order of the log."""
        times = np.arange(self.n + 1.0, self.n + len(values) + 1.0)
        rows = self._take(values)
        log = math.log(2.0 / self._alpha)
        bets = np.minimum(np.sqrt(8.0 * log / (times * np.log1p(times))), 1.0)
        steps = np.stack([bets, bets * rows, bets**2 / 8.0], axis=1)
        self._sums = np.cumsum(np.vstack([self._sums[None, :], steps]), axis=0)[-1]

    @property
    def interval(self) -> Interval:
        """The interval after all rows so far."""
        if not self.n:
            return self._give(0.0, 1.0)
        bets, centre, spent = self._sums.tolist()
        half = (math.log(2.0 / self._alpha) + spent) / bets
        return self._give(centre / bets - half, centre / bets + half)


class PlugInBernstein(_Bounded):
    """Empirical Bernstein with bets that follow the variance seen so far.

    Notes
    -----
    Waudby-Smith & Ramdas 2024, theorem 2. O(n) time, O(1) memory.

    Examples
    --------
    >>> found = PlugInBernstein()
    >>> found.add(np.tile([0.4, 0.6], 500))
    >>> found.interval.low < 0.5 < found.interval.high, round(found.interval.width, 2)
    (True, 0.02)
    """

    kind = "bernstein_sequence"
    largest_bet = 0.5

    def __init__(self, bounds: tuple[float, float] = UNIT, *, level: float = 0.95) -> None:
        super().__init__(bounds, level=level)
        self._states = np.zeros((2, betting.PLUG_IN))

    def add(self, values: Floats) -> None:
        """Add rows, (n,), in the order of the log."""
        rows = self._take(values)
        bets = np.empty(len(rows))
        for side, x in enumerate((rows, 1.0 - rows)):
            betting.plug_in(x, self._alpha / 2, self.largest_bet, self._states[side], bets)

    @property
    def interval(self) -> Interval:
        """The interval after all rows so far."""
        if not self.n:
            return self._give(0.0, 1.0)
        low, high = (plug_in_low(state, self._alpha / 2) for state in self._states)
        return self._give(low, 1.0 - high)


def plug_in_low(state: Floats, error: float) -> float:
    """Give the lower end that belongs to sums of ``betting.plug_in``."""
    bets, centre, spent = state[3:].tolist()
    return float((centre - math.log(1.0 / error) - spent) / bets) if bets > 0.0 else -math.inf


class MixtureBernstein(_Bounded):
    """Empirical Bernstein by a uniform boundary of the sum of squared prediction errors.

    Parameters
    ----------
    bounds, level
        As everywhere.
    v_opt
        Sum of squared differences, of rows moved to [0, 1], at which it is tightest: the number
        of rows one expects to look at, times their variance.
    boundary
        ``mixture``: gamma-exponential, tightest about ``v_opt``; ``stitched``: with the best
        rate in the long run, from ``v_opt`` on.

    Notes
    -----
    Howard et al. 2021, theorem 4. O(n) time, O(1) memory; a look is a root.
    """

    kind = "mixture_sequence"

    def __init__(
        self,
        bounds: tuple[float, float] = UNIT,
        *,
        level: float = 0.95,
        v_opt: float = 25.0,
        boundary: str = "mixture",
    ) -> None:
        super().__init__(bounds, level=level)
        if boundary not in ("mixture", "stitched"):
            raise InvalidInputError(
                f"{boundary!r} is neither 'mixture' nor 'stitched'", field="boundary"
            )
        if not (math.isfinite(v_opt) and v_opt > 0.0):
            raise InvalidInputError(f"must be positive, got {v_opt}", field="v_opt")
        self.v_opt, self.boundary = v_opt, boundary
        self.kind = f"{boundary}_sequence"
        self._state = np.zeros(3)

    def add(self, values: Floats) -> None:
        """Add rows, (n,), in the order of the log."""
        betting.add_deviations(self._take(values), self._state)

    @property
    def interval(self) -> Interval:
        """The interval after all rows so far."""
        if not self.n:
            return self._give(0.0, 1.0)
        n, total, v = self._state.tolist()
        at, error = np.array([v]), self._alpha / 2
        if self.boundary == "mixture":
            reach = boundaries.gamma_exponential_mixture(at, error, self.v_opt)
        else:
            reach = boundaries.poly_stitching(at, error, self.v_opt, c=1.0)
        half = float(reach[0]) / n
        return self._give(total / n - half, total / n + half)


class BetaBinomial(_Bounded):
    """For rows that are 0 or 1: the mixture that knows that their variance is p (1 - p).

    Parameters
    ----------
    level
        As everywhere.
    n_opt
        Number of rows at which it is tightest.

    Notes
    -----
    Howard et al. 2021, proposition 7 inverted: all p under which the mixture is below
    1 / alpha. O(n) time, O(1) memory; a look is two roots.
    """

    kind = "beta_binomial_sequence"

    def __init__(self, *, level: float = 0.95, n_opt: float = 1000.0) -> None:
        super().__init__(UNIT, level=level)
        if not (math.isfinite(n_opt) and n_opt > 0.0):
            raise InvalidInputError(f"must be positive, got {n_opt}", field="n_opt")
        self.n_opt = n_opt
        self.successes = 0

    def add(self, values: Floats) -> None:
        """Add rows, (n,), in the order of the log.

        Raises
        ------
        InvalidInputError
            If a row is neither 0 nor 1: naming it.
        """
        found = np.asarray(values, dtype=np.float64)
        odd = (found != 0.0) & (found != 1.0)
        if odd.any():
            row = int(np.argmax(odd))
            raise InvalidInputError(
                f"must be 0 or 1, got {found[row]}", field=f"values[{self.n + row}]"
            )
        self.successes += int(self._take(found).sum())

    def _excess(self, p: float) -> float:
        """Give the log of the mixture if p were the rate, less its threshold."""
        v, g, h = p * (1.0 - p), p, 1.0 - p
        precision = boundaries.beta_binomial_precision(self.n_opt * v, self._alpha, g, h)
        walk = self.successes - self.n * p
        log = boundaries.log_beta_binomial(walk, self.n * v, precision, g, h)
        return log - math.log(1.0 / self._alpha)

    @property
    def interval(self) -> Interval:
        """The interval after all rows so far."""
        if not self.n:
            return self._give(0.0, 1.0)
        share = self.successes / self.n
        return self._give(self._end(share, 0.0), self._end(share, 1.0))

    def _end(self, share: float, far: float) -> float:
        """Find where the mixture reaches the threshold between the share and an end of [0, 1]."""
        tiny = 1e-12
        inside, outside = min(max(share, tiny), 1.0 - tiny), abs(far - tiny)
        if abs(share - far) <= tiny or self._excess(outside) <= 0.0:
            return far
        return boundaries.root(self._excess, inside, outside)


class Betting(_Bounded):
    """By betting against every mean at once, on both sides: mostly the tightest of these.

    Notes
    -----
    The hedged capital of Waudby-Smith & Ramdas 2024, section 4.4, with half of the error on
    each side, bets cut so that a row takes at most half of the wealth, and ends found as
    roots in place of a grid. O(n) time to add, O(30 n) a look, 16 bytes a row.

    Examples
    --------
    >>> found = Betting()
    >>> found.add(np.tile([0.4, 0.6], 500))
    >>> found.interval.low < 0.5 < found.interval.high, round(found.interval.width, 2)
    (True, 0.02)
    """

    kind = "betting_sequence"
    largest_share = 0.5

    def __init__(self, bounds: tuple[float, float] = UNIT, *, level: float = 0.95) -> None:
        super().__init__(bounds, level=level)
        self._state = np.zeros(betting.PLUG_IN)
        self._rows, self._bets = Column(), Column()

    def add(self, values: Floats) -> None:
        """Add rows, (n,), in the order of the log."""
        rows = self._take(values)
        bets = np.empty(len(rows))
        betting.plug_in(rows, self._alpha / 2, np.inf, self._state, bets)
        self._rows.append(rows)
        self._bets.append(bets)

    @property
    def interval(self) -> Interval:
        """The interval after all rows so far."""
        rows, bets = self._rows.values, self._bets.values
        low, high = (
            smallest_mean(partial(self._log_wealth, x, bets), self._alpha / 2)
            for x in (rows, 1.0 - rows)
        )
        return self._give(low, 1.0 - high)

    def _log_wealth(self, x: Floats, bets: Floats, mean: float) -> float:
        return betting.log_wealth(x, bets, mean, self.largest_share)


def smallest_mean(log_wealth: Callable[[float], float], error: float) -> float:
    """Find the smallest mean in [0, 1] against which a bettor has not won ``1 / error``.

    Parameters
    ----------
    log_wealth
        Log of the wealth of one who bets on more than a mean; falls as the mean grows.

    Notes
    -----
    Brent's method to 13 digits: about 15 calls.
    """
    threshold = math.log(1.0 / error)
    if log_wealth(0.0) <= threshold:
        return 0.0
    if log_wealth(1.0) > threshold:
        return 1.0
    return boundaries.root(lambda mean: log_wealth(mean) - threshold, 0.0, 1.0)


class Column:
    """Numbers that grow in number: appended in amortised O(1) each."""

    def __init__(self) -> None:
        self._room = np.empty(1024)
        self._n = 0

    def append(self, values: Floats) -> None:
        """Append numbers, (n,)."""
        needed = self._n + len(values)
        if needed > len(self._room):
            grown = np.empty(max(needed, 2 * len(self._room)))
            grown[: self._n] = self._room[: self._n]
            self._room = grown
        self._room[self._n : needed] = values
        self._n = needed

    @property
    def values(self) -> Floats:
        """All numbers so far."""
        return self._room[: self._n]
