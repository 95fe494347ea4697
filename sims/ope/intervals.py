"""Intervals for a number of rows that was fixed beforehand.

``Moments`` gathers rows and serves the intervals with a formula; the bootstrap is in
``sims.ope.bootstrap``, intervals that hold at every look in ``sims.ope.sequences``, and those
for logs of a policy that learned in ``sims.ope.adaptive``. Derivations: docs/math/intervals.md.
"""

import math
from typing import NamedTuple, Self

import numpy as np
from scipy import special

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats, Ints
from sims.ope.estimators import Terms

BLOCK = 4096
"""Rows that are gathered at once: the same cuts whatever the batches."""


class Interval(NamedTuple):
    """Two ends, how they were found, and how often they hold the truth.

    Attributes
    ----------
    low, high
        The ends.
    kind
        Name of the method.
    level
        Probability of holding the truth that the method promises.
    """

    low: float
    high: float
    kind: str
    level: float

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low

    def covers(self, value: float) -> bool:
        """Whether the value lies between the ends."""
        return self.low <= value <= self.high


def check_level(level: float) -> float:
    """Give the probability of missing the truth.

    Raises
    ------
    InvalidInputError
        Unless the level lies between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise InvalidInputError(f"must lie between 0 and 1, got {level}", field="level")
    return 1.0 - level


def check_values(values: Floats, field: str, *, start: int = 0) -> Floats:
    """Give finite numbers as a vector of doubles.

    Raises
    ------
    InvalidInputError
        If it is no vector or a number is not finite: naming the row.
    """
    found = np.ascontiguousarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise InvalidInputError(f"must be a vector, has shape {found.shape}", field=field)
    if not np.isfinite(found).all():
        row = int(np.argmin(np.isfinite(found)))
        raise InvalidInputError(
            f"must be finite, got {found[row]}", field=f"{field}[{start + row}]"
        )
    return found


def check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """Give a declared range.

    Raises
    ------
    InvalidInputError
        Unless both ends are finite, the lower one first.
    """
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidInputError(
            f"must be two finite numbers, the lower first, got {bounds}", field="bounds"
        )
    return float(low), float(high)


def scaled(values: Floats, bounds: tuple[float, float], field: str, *, start: int = 0) -> Floats:
    """Move finite numbers from a declared range to [0, 1].

    Raises
    ------
    InvalidInputError
        If a number is not finite or outside of the range: naming the row.
    """
    found = check_values(values, field, start=start)
    low, high = check_bounds(bounds)
    outside: Bools = (found < low) | (found > high)
    if outside.any():
        row = int(np.argmax(outside))
        raise InvalidInputError(
            f"{found[row]} is outside of the declared range [{low}, {high}]",
            field=f"{field}[{start + row}]",
        )
    return np.clip((found - low) / (high - low), 0.0, 1.0)


def columns_of(terms: Terms, *, start: int = 0) -> Floats:
    """Give what every row adds, (n, 4): numerator, denominator, offset, and 1 for the row itself.

    Raises
    ------
    InvalidInputError
        If a number is not finite, or columns differ in length: naming the row.
    """
    parts = {"numerators": terms.numerators, "denominators": terms.denominators}
    if terms.offsets is not None:
        parts["offsets"] = terms.offsets
    checked = {field: check_values(part, field, start=start) for field, part in parts.items()}
    n = len(checked["numerators"])
    found = np.zeros((n, 4))
    found[:, 3] = 1.0
    for column, (field, part) in enumerate(checked.items()):
        if len(part) != n:
            raise InvalidInputError(f"has {len(part)} rows, numerators have {n}", field=field)
        found[:, column] = part
    return found


def gather(columns: Floats, clusters: Ints) -> Floats:
    """Sum the rows of every cluster, in order of first appearance.

    Parameters
    ----------
    columns : (n, m)
    clusters : (n,)
        Number of the customer, for instance.

    Returns
    -------
    (number of clusters, m)

    Raises
    ------
    InvalidInputError
        If the lengths differ.
    """
    if len(clusters) != len(columns):
        raise InvalidInputError(
            f"has {len(clusters)} rows, the terms have {len(columns)}", field="clusters"
        )
    _, places = np.unique(clusters, return_inverse=True)
    found = np.zeros((int(places.max()) + 1 if len(places) else 0, columns.shape[1]))
    np.add.at(found, places, columns)
    return found


class Moments:
    """Means and second moments of terms, gathered from batches.

    Whatever the batches, the bits are the same: rows are gathered in blocks of ``BLOCK``, and
    blocks are joined in order.

    Attributes
    ----------
    n
        Number of rows, or of clusters.
    low, high
        Smallest and largest numerator.
    values
        The numerators that occurred; at least three of them if there are more than two.
    is_mean
        Whether the value is a plain mean of rows.

    Notes
    -----
    O(n) time and O(1) memory. Blocks are centred before they are squared, and joined by the
    formula of Chan, Golub & LeVeque, The American Statistician 37, 1983.

    Examples
    --------
    >>> whole = Moments.of(Terms(np.array([0.0, 1.0, 1.0]), np.ones(3)))
    >>> whole.n, round(whole.value, 3), round(whole.error, 3)
    (3, 0.667, 0.333)
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = np.zeros(4)
        self._scatter = np.zeros((4, 4))
        self._pending = np.zeros((0, 4))
        self.low, self.high = math.inf, -math.inf
        self.is_mean = True
        self.values: set[float] = set()

    @classmethod
    def of(cls, terms: Terms, clusters: Ints | None = None) -> Self:
        """Gather terms at once; with ``clusters : (n,)`` a cluster counts as one row."""
        found = cls()
        columns = columns_of(terms)
        found._add(columns if clusters is None else gather(columns, clusters))
        return found

    def add(self, terms: Terms) -> None:
        """Gather a batch of rows."""
        self._add(columns_of(terms, start=self.n))

    def _add(self, columns: Floats) -> None:
        if not len(columns):
            return
        self.n += len(columns)
        self.low = min(self.low, float(columns[:, 0].min()))
        self.high = max(self.high, float(columns[:, 0].max()))
        self.is_mean &= bool((columns[:, (1, 3)] == 1.0).all() and not columns[:, 2].any())
        if len(self.values) <= 2:
            self.values.update(np.unique(columns[:, 0])[:3].tolist())
        rows = np.concatenate([self._pending, columns])
        whole = len(rows) - len(rows) % BLOCK
        for start in range(0, whole, BLOCK):
            done = self.n - len(rows) + start
            self._mean, self._scatter = _joined(
                (done, self._mean, self._scatter), rows[start : start + BLOCK]
            )
        self._pending = rows[whole:].copy()

    @property
    def _total(self) -> tuple[Floats, Floats]:
        done = self.n - len(self._pending)
        return _joined((done, self._mean, self._scatter), self._pending)

    @property
    def value(self) -> float:
        """The estimate.

        Raises
        ------
        InvalidInputError
            Without rows, or if no row carries weight.
        """
        mean, _ = self._total
        if not self.n or mean[1] <= 0.0:
            raise InvalidInputError("no row carries weight", field="terms")
        return float(mean[0] / mean[1] + mean[2] / mean[3])

    @property
    def variance(self) -> float:
        """Variance of the influence of one row: of the row itself where the value is a mean.

        Raises
        ------
        InvalidInputError
            With fewer than two rows, or if no row carries weight.
        """
        if self.n < 2:
            raise InvalidInputError(f"a spread needs 2 rows, there are {self.n}", field="terms")
        mean, scatter = self._total
        if mean[1] <= 0.0:
            raise InvalidInputError("no row carries weight", field="terms")
        slopes = np.array(
            [1.0 / mean[1], -mean[0] / mean[1] ** 2, 1.0 / mean[3], -mean[2] / mean[3] ** 2]
        )
        return max(float(slopes @ scatter @ slopes), 0.0) / (self.n - 1)

    @property
    def error(self) -> float:
        """Standard error of the value, by the delta method."""
        return math.sqrt(self.variance / self.n)


def _joined(gathered: tuple[int, Floats, Floats], rows: Floats) -> tuple[Floats, Floats]:
    """Join a block to (number, mean, scatter) of those before."""
    before, mean, scatter = gathered
    if not len(rows):
        return mean, scatter
    own = rows.mean(axis=0)
    centred = rows - own
    step = own - mean
    share = len(rows) / (before + len(rows))
    return (
        mean + step * share,
        scatter + centred.T @ centred + np.outer(step, step) * (before * share),
    )


def student(moments: Moments, level: float = 0.95) -> Interval:
    """Student's interval of a mean, or of a ratio of sums by the delta method.

    Raises
    ------
    InvalidInputError
        With fewer than two rows, or if all rows say the same: their spread is then unknown,
        not zero.

    Notes
    -----
    Approximate: right in the limit of many rows (the central limit theorem). Cochran, Sampling
    Techniques, 3rd ed. 1977, section 6.3.
    """
    alpha = check_level(level)
    error = moments.error
    if error <= 1e-15 * abs(moments.value):
        raise InvalidInputError(
            f"all {moments.n} rows say {moments.value}: their spread is unknown; an interval "
            "with a declared range (empirical_bernstein, betting) still holds",
            field="terms",
        )
    half = float(special.stdtrit(moments.n - 1, 1.0 - alpha / 2)) * error
    return Interval(moments.value - half, moments.value + half, "student", level)


def empirical_bernstein(
    moments: Moments, bounds: tuple[float, float], level: float = 0.95
) -> Interval:
    """Interval of a mean of independent rows within a declared range, for any number of them.

    Parameters
    ----------
    bounds
        Range of a row's contribution, known before the log was seen: for IPS from 0 to the
        largest reward times the largest possible weight.

    Raises
    ------
    InvalidInputError
        With fewer than two rows, a row outside of the range, or where the value is not a mean.

    Notes
    -----
    Maurer & Pontil, Empirical Bernstein Bounds and Sample Variance Penalization, COLT 2009,
    theorem 4, once for each side at half the error, cut at the range.
    """
    alpha = check_level(level)
    low, high = check_bounds(bounds)
    _check_mean(moments, "empirical_bernstein")
    if moments.low < low or moments.high > high:
        raise InvalidInputError(
            f"rows lie in [{moments.low}, {moments.high}], outside of the declared range "
            f"[{low}, {high}]",
            field="bounds",
        )
    log = math.log(4.0 / alpha)
    half = math.sqrt(2.0 * moments.variance * log / moments.n)
    half += 7.0 * (high - low) * log / (3.0 * (moments.n - 1))
    return Interval(
        max(moments.value - half, low), min(moments.value + half, high), "bernstein", level
    )


def clopper_pearson(moments: Moments, unit: float = 1.0, level: float = 0.95) -> Interval:
    """Exact interval of a mean of independent rows that are 0 or ``unit``.

    That is a click rate (unit 1), or IPS of clicks for a policy without chance on a uniform
    log (unit k, the number of actions).

    Raises
    ------
    InvalidInputError
        If a row is neither, or where the value is not a mean.

    Notes
    -----
    Clopper & Pearson, Biometrika 26, 1934: quantiles of beta distributions.
    """
    alpha = check_level(level)
    if not (math.isfinite(unit) and unit > 0.0):
        raise InvalidInputError(f"must be positive, got {unit}", field="unit")
    _check_mean(moments, "clopper_pearson")
    if not moments.n:
        raise InvalidInputError("there are no rows", field="terms")
    odd = sorted(moments.values - {0.0, unit})
    if odd:
        raise InvalidInputError(f"every row must be 0 or {unit}, one is {odd[0]}", field="terms")
    n = moments.n
    hits = round(moments.value / unit * n)
    low = 0.0 if hits == 0 else float(special.betaincinv(hits, n - hits + 1, alpha / 2))
    high = 1.0 if hits == n else float(special.betaincinv(hits + 1, n - hits, 1.0 - alpha / 2))
    return Interval(unit * low, unit * high, "clopper_pearson", level)


def _check_mean(moments: Moments, kind: str) -> None:
    if not moments.is_mean:
        raise InvalidInputError(
            f"{kind} is for plain means of independent rows; a ratio of sums takes student or "
            "the bootstrap",
            field="terms",
        )
