"""The setting of an estimator that trades bias for variance, chosen from the log: SLOPE.

Derivation, and how near to the best setting the choice comes: docs/math/ope.md.
"""

from typing import NamedTuple

import numpy as np

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from sims.ope.estimators import ESTIMATORS, Weighed, terms_of

WIDTH = 1.0
"""Standard errors on either side of a candidate."""

_QUANTILES = (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5, 0.25, 0.1)
_STRENGTHS = 20
_SLACK = 6.0**0.5 - 1.0
_TRACE = 0.01
"""Share of the sum of all weights that the smallest may make up together and not matter."""


class Candidate(NamedTuple):
    """One setting: the estimate it gives, and its standard error."""

    setting: float
    value: float
    error: float


class Choice(NamedTuple):
    """The setting chosen, and all that were looked at, the least biased first."""

    setting: float
    candidates: tuple[Candidate, ...]


def settings_of(name: str, weights: Floats) -> Floats:
    """Give settings to choose from, the least biased first: infinity, then decreasing.

    Notes
    -----
    Limits of clipping and switching are quantiles of the weights. Strengths of shrinkage are on
    the scale of squared weights, geometric from 100 times the 95 % quantile squared to a
    hundredth of the 5 % quantile squared (Su et al. 2020, section 7). The smallest weights, which
    make up a hundredth of the sum together, do not count: a policy that is sure gives most
    rows weights such as 1e-30, and settings would be spread over scales where nothing happens.
    The last setting is 0, the model alone, where there is a model.

    Raises
    ------
    InvalidInputError
        If the estimator has no setting.
    """
    estimator = ESTIMATORS[name]
    if not estimator.setting:
        raise InvalidInputError(f"{name!r} has nothing to set", field=f"settings.{name}")
    counted = np.sort(weights[weights > 0.0])
    if not len(counted):
        return np.array([np.inf])
    below = np.cumsum(counted)
    counted = counted[below > _TRACE * below[-1]]
    if estimator.setting == "shrinkage":
        low, high = np.quantile(counted, [0.05, 0.95])
        limits = np.geomspace(100.0 * high**2, 0.01 * low**2, _STRENGTHS)
    else:
        limits = np.unique(np.quantile(counted, _QUANTILES))[::-1]
    end = [0.0] if estimator.needs_model else []
    return np.concatenate([[np.inf], limits, end])


def choose(name: str, weighed: Weighed, clusters: Ints | None = None) -> Choice:
    """Choose the setting of an estimator.

    Parameters
    ----------
    name
        An estimator that has a setting.
    clusters : (n,) or None
        Customers: rows of one resemble each other.

    Notes
    -----
    SLOPE++: O(settings n).
    """
    found = candidates(name, weighed, clusters)
    return Choice(found[slope(found)].setting, tuple(found))


def candidates(name: str, weighed: Weighed, clusters: Ints | None = None) -> list[Candidate]:
    """Give what an estimator says at every setting, the least biased first; see ``choose``."""
    places = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
    found = []
    for setting in settings_of(name, weighed.weights).tolist():
        rows = terms_of(name, weighed, setting).numerators
        found.append(Candidate(setting, float(rows.mean()), standard_error(rows, places)))
    return found


def slope(candidates: list[Candidate], width: float = WIDTH) -> int:
    """Give the place of the last candidate that no earlier one contradicts.

    Parameters
    ----------
    candidates
        Bias may grow and spread shrink from one to the next.
    width
        Standard errors that a candidate is trusted to.

    Notes
    -----
    Tucker & Lee, Improved Estimator Selection for Off-Policy Evaluation, 2021, algorithm 1:
    candidate i stays if its value differs from that of every j before it by at most ``c_i +
    (sqrt(6) - 1) c_j``; the error of the choice is at most ``sqrt(6) + 3`` times the least
    sum of bias and ``c``, where ``c`` bounds the deviations. After Su, Srinath & Krishnamurthy,
    Adaptive Estimator Selection for Off-Policy Evaluation, ICML 2020.
    """
    for i, one in enumerate(candidates):
        for other in candidates[:i]:
            room = width * (one.error + _SLACK * other.error)
            if abs(one.value - other.value) > room:
                return i - 1
    return len(candidates) - 1


def standard_error(rows: Floats, places: Ints | None = None) -> float:
    """Give the standard error of a mean; infinite with fewer than two rows or clusters.

    Parameters
    ----------
    rows : (n,)
    places : (n,) or None
        Numbers of the clusters, 0 to their number less one.
    """
    n = len(rows)
    deviations = rows - rows.mean()
    if places is not None:
        deviations = np.bincount(places, deviations)
    m = len(deviations)
    if m < 2:
        return float("inf")
    return float(np.sqrt((deviations**2).sum() * m / (m - 1)) / n)
