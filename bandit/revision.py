"""Revisions: an experiment's specification is edited while it runs, and nothing learned is lost.

Levels are added (with a new generation) and retired; everything that gives the statistics their
meaning stays as it is. Statistics hold no prior, so the grown posterior is the one that the
revised experiment would have after the same log, bit for bit; see
``docs/math/factored-model.md``.
"""

from dataclasses import fields

import numpy as np

from bandit.actions import FACTORS, Level
from bandit.errors import BanditError, InvalidInputError
from bandit.features import FeatureMap
from bandit.kernels.compiling import Floats, Ints
from bandit.posterior import Posterior
from bandit.spec import ExperimentSpec

_FREE_POLICY_FIELDS = {  # terms are compared as resolved, below
    "kind", "action", "exploration", "floor", "draws", "noise", "successes", "failures", "terms",
    "pooled", "top_two_share", "confidence", "epsilon", "temperature",
}  # fmt: skip
# What the axes of statistics run over; old blocks and actions stay first, weights move.
_AXES: dict[str, tuple[str, ...]] = {
    "precision": ("block", "weight", "weight"),
    "shift": ("block", "weight"),
    "sums": ("block", ""),
    "counts": ("action", ""),
    "mode": ("block", "weight"),
}
# Rows of a window: taken over whole, however many; the actions they name never move.
_WINDOW = ("contexts", "chosen", "weights")


def check_revision(old: ExperimentSpec, new: ExperimentSpec) -> None:
    """Refuse an edit that would reset what was learned, or give it another meaning.

    Free to change: description, exclusions, groups, baseline, fallback, publishing, how the
    policy chooses, its priors of noise and counts, and which levels are retired. Levels may be
    added anywhere in their factor, with a generation above all that there were.

    Raises
    ------
    InvalidInputError
        With the path of the first part that may not change so, and what to do instead.
    """
    for name in ("name", "context", "outcome"):
        if getattr(old, name) != getattr(new, name):
            raise InvalidInputError(
                "can not change in a running experiment: what was learned would get another "
                "meaning; create a new experiment",
                field=name,
            )
    latest = max(level.generation for levels in old.actions.factors for level in levels)
    for factor, before, after in zip(
        FACTORS, old.actions.factors, new.actions.factors, strict=True
    ):
        _check_levels(before, after, f"actions.{factor}s", latest)
    for part in fields(old.policy):
        is_kept = part.name == "pooled" and old.policy.posterior == "logistic"  # thins by it
        if part.name in _FREE_POLICY_FIELDS and not is_kept:
            continue
        if getattr(old.policy, part.name) != getattr(new.policy, part.name):
            raise InvalidInputError(
                "can not change in a running experiment: what was learned would be lost; create "
                "a new experiment",
                field=f"policy.{part.name}",
            )
    if old.has_weights and old.features.terms != new.features.terms:
        raise InvalidInputError(
            f"would change from {_listed(old)} to {_listed(new)}; declare the old ones in "
            "policy.terms, or create a new experiment",
            field="policy.terms",
        )


def _check_levels(
    before: tuple[Level, ...], after: tuple[Level, ...], path: str, latest: int
) -> None:
    """Refuse levels that are gone, moved or changed, and added ones of an old generation."""
    places = {level.name: i for i, level in enumerate(after)}
    last = -1
    for level in before:
        place = places.get(level.name)
        if place is None:
            raise InvalidInputError(
                f"{level.name!r} is gone; a level stays for ever: set retired = true", field=path
            )
        if place < last:
            raise InvalidInputError(
                f"{level.name!r} moved before a level that it followed; keep the order",
                field=f"{path}[{place}]",
            )
        last = place
        for name in ("time", "attributes", "generation"):
            was, is_now = getattr(level, name), getattr(after[place], name)
            if was != is_now:
                raise InvalidInputError(
                    f"of {level.name!r} was {was!r}, is {is_now!r}, and can not change; retire "
                    "the level and add another one",
                    field=f"{path}[{place}].{name}",
                )
    known = {level.name for level in before}
    for i, level in enumerate(after):
        if level.name not in known and level.generation <= latest:
            raise InvalidInputError(
                f"{level.name!r} is new, so it needs a generation above {latest}, or indices of "
                f"actions would move; got {level.generation}",
                field=f"{path}[{i}].generation",
            )


def _listed(spec: ExperimentSpec) -> str:
    return ", ".join(f"{term.of} ({term.prior_sd:g})" for term in spec.features.terms)


def weight_places(old: FeatureMap, new: FeatureMap) -> Ints:
    """Give the place in the new model of every weight of a block in the old one, shape (m,).

    Notes
    -----
    The places increase, because levels keep their order; so a lower triangle stays one.
    O(k t + m).
    """
    if old.is_disjoint:
        return np.arange(old.weights)
    places: list[Ints] = []
    for j, term in enumerate(old.terms):
        cells = np.zeros(1, dtype=np.int64)
        for column, (before, after) in enumerate(
            zip(old.space.factors, new.space.factors, strict=True)
        ):
            if FACTORS[column] in term.names:
                position = {level.name: i for i, level in enumerate(after)}
                kept = np.array([position[level.name] for level in before])
                cells = np.add.outer(cells * len(after), kept).ravel()
            elif FACTORS[column] in term.factors:
                count = len(before[0].attributes)
                cells = np.add.outer(cells * count, np.arange(count)).ravel()
        width = old.width if old.crossed[j] else 1
        places.append(new.offsets[j] + np.add.outer(cells * width, np.arange(width)).ravel())
    return np.concatenate(places)


def grow(
    posterior: Posterior, empty: Posterior, old: FeatureMap | None, new: FeatureMap | None
) -> Posterior:
    """Give the posterior of the revised experiment: old statistics at their new places.

    Parameters
    ----------
    posterior
        Of the experiment before; it is not changed.
    empty
        Prior of the experiment after, which is filled and returned.
    old, new
        Their weights, for specifications that passed ``check_revision``; None if they have none.

    Returns
    -------
    Posterior
        New weights and actions have no statistics: they are at the prior, given what they share.

    Raises
    ------
    BanditError
        If the posterior holds statistics by level that are not known here.

    Notes
    -----
    O(b m**2). Statistics whose shape does not depend on the levels are taken over as they are;
    those that name actions stay right because indices never move.
    """
    places = None if old is None or new is None else weight_places(old, new)
    filled: dict[str, Floats] = {}
    for name, target in empty.arrays().items():
        source = posterior.arrays()[name]
        if name in _WINDOW:
            filled[name] = source.copy()
            continue
        filled[name] = target.copy()  # new weights: no statistics, and the prior's mode
        known = _AXES.get(name)
        if known is None:
            if source.shape != target.shape:
                raise BanditError(f"no way to add levels to the statistics {name!r}")
            filled[name][...] = source
            continue
        at = [
            places if axis == "weight" and places is not None else np.arange(n)
            for axis, n in zip(known, source.shape, strict=True)
        ]
        filled[name][np.ix_(*at)] = source
    empty.load(filled, seq=posterior.seq, count=posterior.count)
    return empty
