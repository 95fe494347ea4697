"""Slates: several actions in order, none twice, with the probability that they were chosen.

The first place is the decision itself. Every further place is drawn in proportion to the
same probabilities among what is left (the law of Plackett and Luce).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bandit.errors import InvalidInputError
from bandit.kernels import slates
from bandit.kernels.compiling import Floats, Ints, Words


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slate:
    """Actions in order, and how likely they were.

    Attributes
    ----------
    actions : (n,)
        None twice; empty where nothing is sent.
    probabilities : (n,)
        Probability of each place given the places before it, in (0, 1].
    propensity
        Their product: the probability of the whole slate in this order.
    """

    actions: Ints
    probabilities: Floats
    propensity: float


def rank(p: Floats, n: int) -> Ints:
    """Give the n most probable actions, the first among equals first.

    Parameters
    ----------
    p : (k,)
        Probabilities; sum to 1.
    n
        Places, at least 1.

    Returns
    -------
    (n,)
        Fewer where fewer have a positive probability.

    Raises
    ------
    InvalidInputError
        If ``p`` is no distribution, or n is less than 1.

    Notes
    -----
    O(k log k). A ranking is a function of ``p`` alone, so it has no propensity to reweight
    by: draw a slate where its outcomes are to be learned from.

    Examples
    --------
    >>> rank(np.array([0.2, 0.5, 0.0, 0.2, 0.1]), 3).tolist()
    [1, 0, 3]
    """
    _check(p, n)
    order = np.argsort(-p, kind="stable")[:n]
    return order[p[order] > 0.0]


def draw_slate(p: Floats, n: int, stream: Words) -> Slate:
    """Draw n actions in order, each in proportion to ``p`` among those that are left.

    Parameters
    ----------
    p : (k,)
        Probabilities of the first place; sum to 1.
    n
        Places, at least 1; the slate is shorter where fewer actions have a probability.
    stream : (4,)
        Name of the random stream.

    Raises
    ------
    InvalidInputError
        If ``p`` is no distribution, or n is less than 1.

    Notes
    -----
    O(n k). Source: Plackett, Applied Statistics 24, 1975; Luce, Individual Choice Behavior,
    1959.
    """
    _check(p, n)
    first = int(slates.draw_first(p, stream))
    return complete(p, first, n, stream)


def complete(p: Floats, first: int | None, n: int, stream: Words) -> Slate:
    """Draw the other places of a slate whose first action is drawn already.

    Parameters
    ----------
    p, n, stream
        As in ``draw_slate``, and trusted; place j, counted from 0, spends block j of the
        stream.
    first
        None gives the empty slate.
    """
    if first is None:
        return _slate(p, np.empty(0, dtype=np.int64))
    return _slate(p, slates.complete(p, first, stream, n))


def _slate(p: Floats, actions: Ints) -> Slate:
    probabilities = slates.place_probabilities(p, actions)
    return Slate(
        actions=actions, probabilities=probabilities, propensity=float(np.prod(probabilities))
    )


def slate_probability(p: Floats, actions: Sequence[int]) -> float:
    """Give the probability that ``draw_slate`` gives these actions in this order.

    Parameters
    ----------
    p : (k,)
        Probabilities of the first place; sum to 1.
    actions : (n,)

    Raises
    ------
    InvalidInputError
        If ``p`` is no distribution, or an action is outside 0 to k - 1.

    Notes
    -----
    O(n k). Zero where an action comes twice. Long slates of rare actions may underflow.

    Examples
    --------
    >>> slate_probability(np.array([0.5, 0.25, 0.25]), [0, 2])
    0.25
    """
    _check(p, 1)
    chosen = np.asarray(actions, dtype=np.int64)
    if not ((chosen >= 0) & (chosen < len(p))).all():
        raise InvalidInputError(f"name an action outside 0 to {len(p) - 1}", field="actions")
    return _slate(p, chosen).propensity


def inclusion_probabilities(p: Floats, n: int) -> Floats:
    """Give the probability of every action that it is anywhere in a drawn slate of n places.

    Parameters
    ----------
    p : (k,)
        Probabilities of the first place; sum to 1.
    n
        Places, at least 1.

    Returns
    -------
    (k,)
        Sums to n, or to the number of actions with a probability if that is less.

    Raises
    ------
    InvalidInputError
        If ``p`` is no distribution, or n is less than 1.

    Notes
    -----
    Exact to about 1e-12 for any k, by one integral; see ``docs/math/policies.md``.

    Examples
    --------
    >>> inclusion_probabilities(np.array([0.5, 0.25, 0.25]), 2).round(6).tolist()
    [0.833333, 0.583333, 0.583333]
    """
    _check(p, n)
    out, possible = np.zeros(len(p)), np.flatnonzero(p > 0.0)
    if n >= len(possible):
        out[possible] = 1.0
        return out
    some = p[possible]
    out[possible] = slates.inclusion(some, n, float(np.sort(some)[-n]))
    return out


def _check(p: Floats, n: int) -> None:
    if p.ndim != 1 or not ((p >= 0.0).all() and abs(p.sum() - 1.0) <= 1e-9):
        raise InvalidInputError("must be probabilities that sum to 1", field="p")
    if n < 1:
        raise InvalidInputError(f"must be at least 1, got {n}", field="n")
