"""Measuring groups: means and lift with intervals, and whether the split is as declared."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from scipy import special

from bandit.decision import Group
from bandit.groups import Groups

CONFIDENCE = 0.95
_Z = float(special.ndtri(0.5 + CONFIDENCE / 2))


class Sample(NamedTuple):
    """Outcomes of one group, gathered by customer.

    Groups are drawn by customer, and one customer's outcomes resemble each other; so the mean
    is a ratio of two sums over customers, and its variance comes from how customers differ.

    Attributes
    ----------
    n
        Number of outcomes.
    total
        Their sum.
    customers
        Number of customers they belong to.
    deviation
        Sum over customers of ``(own total - mean * own count)**2``.
    """

    n: int
    total: float
    customers: int
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Gather outcomes of as many customers."""
        n, total = len(values), math.fsum(values)
        mean = total / n if n else 0.0
        return cls(n, total, n, math.fsum((v - mean) ** 2 for v in values))

    @property
    def mean(self) -> float:
        """Mean outcome; NaN without outcomes."""
        return self.total / self.n if self.n else math.nan

    @property
    def variance(self) -> float:
        """Variance of the mean; NaN with fewer than two customers.

        Notes
        -----
        The ratio estimator, Cochran, Sampling Techniques, 3rd ed. 1977, section 6.3; with one
        outcome a customer it is the sample variance over n.
        """
        if self.customers < 2:
            return math.nan
        return self.deviation * self.customers / (self.customers - 1) / self.n**2

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval of the mean, by the central limit theorem."""
        half = _Z * math.sqrt(self.variance)
        return self.mean - half, self.mean + half


class Lift(NamedTuple):
    """One mean against another: the difference, and the ratio less one, with 95 % intervals.

    The relative part is NaN unless both means are positive and known to be.
    """

    difference: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float


def lift(sample: Sample, against: Sample) -> Lift:
    """Compare a group with another, whose customers were split by a keyed hash.

    Returns
    -------
    Difference of the means with its Welch interval, and the relative lift with the interval
    of the log ratio (delta method).

    Notes
    -----
    Valid although the bandit adapts: who is in which group does not depend on the past, and
    a group's mean is a sum of martingale differences about the mean of its conditional
    expectations. Source: Hall & Heyde, Martingale Limit Theory, 1980, section 3.2.

    Examples
    --------
    >>> found = lift(Sample.of([1.0] * 1_200 + [0.0] * 8_800), Sample.of([1.0, 0.0] * 5_000))
    >>> round(found.relative, 2), found.high < 0
    (-0.76, True)
    """
    difference = sample.mean - against.mean
    half = _Z * math.sqrt(sample.variance + against.variance)
    relative = relative_half = math.nan
    is_known = sample.interval[0] > 0 and against.interval[0] > 0  # False for NaN
    if is_known:
        relative = math.log(sample.mean / against.mean)
        relative_half = _Z * math.sqrt(
            (sample.variance**0.5 / sample.mean) ** 2 + (against.variance**0.5 / against.mean) ** 2
        )
    return Lift(
        difference,
        difference - half,
        difference + half,
        math.expm1(relative),
        math.expm1(relative - relative_half),
        math.expm1(relative + relative_half),
    )


def sample_ratio_p_value(customers: Mapping[Group, int], groups: Groups) -> float:
    """Give the chance of group sizes at least this far from the declared shares.

    Parameters
    ----------
    customers
        Number of distinct customers of every group: one customer's decisions all fall in one
        group, so decisions would not be independent.

    Returns
    -------
    p-value of Pearson's chi-square; NaN without customers, 0 for customers in a group that
    has no share.
    """
    total = sum(customers.values())
    if total == 0:
        return math.nan
    shares = groups.shares
    if any(n > 0 and shares[group] <= 0 for group, n in customers.items()):
        return 0.0
    used = [group for group, share in shares.items() if share > 0]
    if len(used) == 1:
        return 1.0
    observed = [customers.get(group, 0) for group in used]
    whole = sum(shares[group] for group in used)
    expected = [total * shares[group] / whole for group in used]
    distance = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    return float(special.chdtrc(len(used) - 1, distance))
